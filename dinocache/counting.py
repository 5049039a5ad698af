"""How many rows items have: by their headers, in threads, each read once and then remembered.

On a file server the headers of 10,000 volumes take minutes. What they said is remembered between
runs under the item's paths, for as long as its files look the same.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from dinocache import __version__
from dinocache.errors import ItemError
from dinocache.memory import Memory
from dinocache.progress import Progress
from dinocache.source import Source
from dinocache.stamps import Stamp, stamp_of

__all__ = ["Counted", "count_items", "stamp_items"]

T = TypeVar("T")
R = TypeVar("R")

_LOOKERS = 32
"""Threads that look at files: on a file server they only wait."""
_READERS = 16
"""At least so many read headers: those of a file server mostly wait, too."""
_LOOKED_AT_ONCE, _SLOW_S = 256, 0.025
"""A local disk answers for so many files in a tenth of that time; threads would only wait for each
other."""
_AHEAD = 8
_TELL_EVERY_S = 10.0
# Files that say by themselves how many rows they have. Of others the folder is looked at, too: a
# DICOM file stands for its series, a .mrxs for what lies beside it.
_ALONE = (
    ".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd", ".hdr", ".hdr.gz",
    ".svs", ".ndpi", ".scn", ".bif", ".svslide", ".tif", ".tiff", ".png", ".jpg", ".jpeg",
    ".mp4", ".avi", ".mkv", ".mov", ".m4v", ".webm", ".mpg", ".mpeg", ".h5", ".hdf", ".hdf5",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Counted:
    """What headers say.

    Attributes:
        rows: Item id -> rows; 1 where it cannot be opened.
        unreadable: Items that cannot be opened -> why.
    """

    rows: dict[str, int] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)


def stamp_items(
    source: Source,
    item_ids: Sequence[str],
    *,
    workers: int,
    progress: Progress,
    digest: bool = False,
) -> dict[str, Stamp | None]:
    """Look at the files of items, in threads.

    Args:
        source: Of the items.
        item_ids: Which.
        workers: Threads that read, if they are to be read.
        progress: Told of how far that is.
        digest: Whether to read them, for the sha256 of each; what is known of files that look the
            same is not read again.

    Returns:
        Item id -> stamp of all its files; None where one is missing.
    """
    stamps = _in_parts(lambda item_id: stamp_of(_paths(source, item_id)), item_ids)
    return _digested(source, stamps, workers, progress) if digest else stamps


def count_items(
    source: Source,
    stamps: Mapping[str, Stamp | None],
    *,
    workers: int,
    progress: Progress,
    remembered: bool = True,
) -> Counted:
    """Count the rows of items by their headers, in threads.

    What is unreadable is not remembered: it may be mended without looking otherwise.

    Args:
        source: Of the items.
        stamps: Item id -> stamp, see `stamp_items`.
        workers: Threads.
        progress: Told of how far it is.
        remembered: Whether what is known of files that look the same may be taken.

    Returns:
        What was found.
    """
    found = Counted()
    if not stamps:
        return found
    if source.reader.one_row:
        missing = [item_id for item_id, stamp in stamps.items() if stamp is None]
        found.rows.update(dict.fromkeys(stamps, 1))
        _read_headers(source, missing, found, workers, lambda *_: None)
        return found
    memory = Memory(
        "rows", [__version__, _whole(source), source.reader.name, source.reader.options]
    )
    states = _in_parts(lambda item_id: _state(source, item_id, stamps[item_id]), [*stamps])
    if remembered:
        for item_id, state in states.items():
            if rows := _recalled(memory.recall(_name(source, item_id)), state):
                found.rows[item_id] = rows
    unknown = [item_id for item_id in stamps if item_id not in found.rows]
    if len(unknown) > 1:
        known = f"; those of {len(found.rows)} are remembered" if found.rows else ""
        progress.note(f"reading the headers of {len(unknown)} items{known}")
    tell = _Teller(progress, len(unknown), "headers read")

    def keep(item_id: str, rows: int | None) -> None:
        tell.one_more()
        if rows is not None and (state := states[item_id]):
            memory.keep(_name(source, item_id), [*state, rows])

    try:
        _read_headers(source, unknown, found, workers, keep)
    finally:
        memory.save()
    return found


def _recalled(value: object, state: list[int]) -> int | None:
    """Take a number of rows out of what is remembered, if it was of such files."""
    match value:
        case [*seen, int(rows)] if state and seen == state and rows > 0:
            return rows
    return None


def _read_headers(
    source: Source,
    item_ids: Sequence[str],
    found: Counted,
    workers: int,
    keep: Callable[[str, int | None], None],
) -> None:
    def count(item_id: str) -> int | str:
        try:
            return source.count_rows(item_id)
        except ItemError as exc:
            return str(exc)

    for item_id, rows in _in_threads(count, item_ids, max(workers, _READERS)):
        if isinstance(rows, str):
            found.rows[item_id], found.unreadable[item_id] = 1, rows
            keep(item_id, None)
        else:
            found.rows[item_id] = rows
            keep(item_id, rows)


def _digested(
    source: Source, stamps: dict[str, Stamp | None], workers: int, progress: Progress
) -> dict[str, Stamp | None]:
    """Put the sha256 into stamps."""
    memory = Memory("digests", _whole(source))
    unknown = []
    for item_id, stamp in stamps.items():
        if stamp is not None:
            match memory.recall(_name(source, item_id)):
                case [stamp.bytes, stamp.modified_ns, str(sha256)]:
                    stamps[item_id] = stamp._replace(sha256=sha256)
                case _:
                    unknown.append(item_id)
    tell = _Teller(progress, len(unknown), "items digested")

    def digest(item_id: str) -> Stamp | None:
        return stamp_of(_paths(source, item_id), digest=True)

    try:
        for item_id, found in _in_threads(digest, unknown, workers):
            stamps[item_id] = found
            tell.one_more()
            if found and found.sha256:
                memory.keep(_name(source, item_id), found.to_json())
    finally:
        memory.save()
    return stamps


def _in_parts(work: Callable[[str], R], item_ids: Sequence[str]) -> dict[str, R]:
    """Do what is short for each item: many at a time, in threads once that turns out slow."""
    starts = deque(range(0, len(item_ids), _LOOKED_AT_ONCE))
    done: list[R] = []

    def part(start: int) -> list[R]:
        return [work(item_id) for item_id in item_ids[start : start + _LOOKED_AT_ONCE]]

    took = 0.0
    while starts and took < _SLOW_S:
        began = time.monotonic()
        done += part(starts.popleft())
        took = time.monotonic() - began
    for _, some in _in_threads(part, starts, min(_LOOKERS, len(starts))):
        done += some
    return dict(zip(item_ids, done, strict=True))


def _in_threads(work: Callable[[T], R], asked: Iterable[T], threads: int) -> Iterator[tuple[T, R]]:
    """Yield what `work` makes of each thing, in order, a bounded number ahead."""
    pool = ThreadPoolExecutor(max(threads, 1), thread_name_prefix="look")
    ahead: deque[tuple[T, Future[R]]] = deque()
    try:
        for one in asked:
            ahead.append((one, pool.submit(work, one)))
            if len(ahead) > _AHEAD * threads:
                first, future = ahead.popleft()
                yield first, future.result()
        while ahead:
            first, future = ahead.popleft()
            yield first, future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


class _Teller:
    """Says how far a long work is, not too often."""

    def __init__(self, progress: Progress, total: int, what: str) -> None:
        self._progress, self._total, self._what = progress, total, what
        self._done = 0
        self._said = time.monotonic()

    def one_more(self) -> None:
        self._done += 1
        if self._done < self._total and time.monotonic() - self._said >= _TELL_EVERY_S:
            self._said = time.monotonic()
            self._progress.note(f"{self._done} of {self._total} {self._what}")


def _whole(source: Source) -> str:
    return str(source.data.resolve())


def _listed(source: Source, item_id: str) -> list[str]:
    """List the paths of an item: of its channels, its mask and its crop mask."""
    others = (*source.masks.get(item_id, ()), source.crop_masks.get(item_id))
    return [*source.paths[item_id], *(path for path in others if path)]


def _paths(source: Source, item_id: str) -> list[str]:
    return [f"{source.data}/{path}" for path in _listed(source, item_id)]


def _name(source: Source, item_id: str) -> str:
    return "\0".join(_listed(source, item_id))


def _state(source: Source, item_id: str, stamp: Stamp | None) -> list[int]:
    """Say what must be the same for a count to hold; empty where there is nothing to count."""
    if stamp is None:
        return []
    path = f"{source.data}/{source.paths[item_id][0]}"
    if path.lower().endswith(_ALONE) or os.path.isdir(path):
        return [stamp.bytes, stamp.modified_ns]
    try:
        return [stamp.bytes, stamp.modified_ns, os.stat(os.path.dirname(path)).st_mtime_ns]
    except OSError:
        return []
