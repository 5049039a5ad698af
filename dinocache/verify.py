"""Holding every byte of a store against what was committed.

Finds any flipped bit, any truncated, missing or foreign file. See docs/store-format.md.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from dinocache import documents
from dinocache.durable import PARTIAL_SUFFIX
from dinocache.errors import StoreDamagedError
from dinocache.items import from_parquet
from dinocache.layout import COORD, HEADER, ITEM_PREFIX, RUNS, SEALED, THUMBS, record_name
from dinocache.records import Record, Run
from dinocache.store import FeatureStore, Work
from dinocache.writer import expected_documents

__all__ = ["Damage", "Soundness", "verify"]

_CHUNK = re.compile(
    r"(?:features|native)\.zarr/(?P<kind>[\w.]+)/(?:\d+/)?(?:c(?:\.\d+)+|zarr\.json)"
)
_THUMB = re.compile(rf"{THUMBS}/\d+\.png")


@dataclass(frozen=True, kw_only=True)
class Damage:
    """One file that is not as it must be.

    Attributes:
        file: Path within the store.
        what: What is wrong with it.
        items: Ids of the items concerned, in order; empty where it concerns none in particular.
    """

    file: str
    what: str
    items: tuple[str, ...] = ()


@dataclass(kw_only=True)
class Soundness:
    """What a verification found.

    Attributes:
        complete: Whether every unit of every kind is committed.
        files: Files read.
        n_bytes: Bytes read.
        damages: Everything that is wrong.
        leftovers: Files of writers that were killed, and rows not yet committed: harmless.
    """

    complete: bool = False
    files: int = 0
    n_bytes: int = 0
    damages: list[Damage] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """0 sound and complete, 1 damaged, 3 sound but incomplete."""
        if self.damages:
            return 1
        return 0 if self.complete else 3


def verify(path: Path, tell: Callable[[int, int], None] | None = None) -> Soundness:
    """Read a whole store and compare it with its records.

    Args:
        path: The store.
        tell: Called with (records done, records in all).

    Returns:
        What was found.

    Raises:
        StoreNotFoundError: If there is no store.
    """
    found = Soundness()
    known = {HEADER}
    try:
        store = FeatureStore(path)
    except StoreDamagedError as exc:
        # Without header, plan and items nothing else can be judged.
        found.damages.append(Damage(file=_named(str(exc)), what=str(exc)))
        return found
    _check_documents(store, found, known)
    works = store.work()
    for done, work in enumerate(works):
        _check_unit(store, work, found, known)
        if tell:
            tell(done + 1, len(works))
    found.complete = store.is_complete and (path / SEALED).is_file()
    _check_zarr_documents(store, found, known)
    _look_for_others(store, found, known)
    return found


def _check_documents(store: FeatureStore, found: Soundness, known: set[str]) -> None:
    """Check the seal and older item tables; plans and the table in force open with the store."""
    known.update(f"plans/{s.number:04d}.json" for s in store.segments)
    for number, segment in enumerate(store.segments, 1):
        if segment.number != number:
            name = f"plans/{number:04d}.json"
            found.damages.append(Damage(file=name, what="missing, though a later segment exists"))
            break
    for table in sorted(store.path.glob("items-????-*.parquet")):
        known.add(table.name)
        try:
            from_parquet(table.read_bytes(), table.name)
        except StoreDamagedError as exc:
            found.damages.append(Damage(file=table.name, what=str(exc)))
    for run in sorted((store.path / RUNS).glob("*.json")):
        known.add(name := f"{RUNS}/{run.name}")
        try:
            Run.from_body(documents.read(run, name), name)
        except StoreDamagedError as exc:
            found.damages.append(Damage(file=name, what=str(exc)))
    if (store.path / SEALED).is_file():
        known.add(SEALED)
        sealed = documents.read(store.path / SEALED, SEALED)
        for name in sealed.get("plans", {}):
            if not (store.path / "plans" / name).is_file():
                found.damages.append(Damage(file=f"plans/{name}", what="missing"))
        table_name = sealed.get("items", "")
        if table_name and not (store.path / table_name).is_file():
            found.damages.append(Damage(file=table_name, what="missing"))


def _check_unit(store: FeatureStore, work: Work, found: Soundness, known: set[str]) -> None:
    name = record_name(work.unit, work.kind)
    try:
        record = store.record(work.unit, work.kind)
        if record is None:
            return
        known.add(name)
        if (store.path / name).is_file():
            body = documents.read(store.path / name, name)
            if Record.from_body(body, name) != record:
                raise StoreDamagedError("it differs from what sealed.json says of it")
        else:
            found.damages.append(Damage(file=name, what="missing", items=_items(work)))
    except StoreDamagedError as exc:
        known.add(name)
        found.damages.append(Damage(file=name, what=str(exc), items=_items(work)))
        return
    for file, stored in record.objects.items():
        known.add(file)
        path = store.path / file
        try:
            content = path.read_bytes()
        except OSError as exc:
            what = f"missing or unreadable ({exc.strerror})"
            found.damages.append(Damage(file=file, what=what, items=_items(work)))
            continue
        found.files += 1
        found.n_bytes += len(content)
        if len(content) != stored.bytes:
            what = f"{len(content)} bytes, {stored.bytes} were committed"
        elif documents.checksum(content) != stored.crc32c:
            what = "its checksum is not the committed one"
        else:
            continue
        found.damages.append(Damage(file=file, what=what, items=_items(work)))


def _check_zarr_documents(store: FeatureStore, found: Soundness, known: set[str]) -> None:
    either = expected_documents(store, store.kinds, complete=False)
    kinds = {work.kind for work in store.work() if store.is_committed(work.unit, work.kind)}
    sealed = expected_documents(store, store.kinds, complete=True)
    for name, content in either.items():
        known.add(name)
        path = store.path / name
        if not path.is_file():
            # They are written one after the other, before anything that relies on them.
            kind = name.split("/")[1]
            if kind in kinds or (kind == "zarr.json" and kinds):
                found.damages.append(Damage(file=name, what="missing"))
            continue
        stored = path.read_bytes()
        if stored == sealed[name] and (found.complete or sealed[name] == content):
            continue
        if stored == sealed[name]:
            what = f"says complete, but {SEALED} or a record is missing"
            found.damages.append(Damage(file=name, what=what))
        elif stored in _earlier(store, name):
            found.complete = False  # items were appended, and nothing of them is committed yet
        elif stored != content:
            found.damages.append(Damage(file=name, what="not what the plan and the recipe say"))
        elif sealed[name] != content:
            found.complete = False  # all is committed, but the run was stopped before it said so


def _earlier(store: FeatureStore, name: str) -> list[bytes]:
    """Give what a document held before segments of which nothing relies on it yet."""
    kind = name.split("/")[1].removeprefix(ITEM_PREFIX)
    relied = [
        w.segment.number
        for w in store.work()
        if kind == w.kind.removeprefix(ITEM_PREFIX) and store.is_committed(w.unit, w.kind)
    ]
    before = range(max(relied, default=0), len(store.segments))
    return [
        expected_documents(store, store.kinds, complete=False, segments=store.segments[:n])[name]
        for n in before
    ]


def _look_for_others(store: FeatureStore, found: Soundness, known: set[str]) -> None:
    for path in _files(store.path):
        name = path.relative_to(store.path).as_posix()
        if path.is_symlink():
            found.damages.append(Damage(file=name, what="a link; a store holds plain files only"))
        elif name in known:
            continue
        elif _is_partial(path.name) or _is_uncommitted(store, name):
            found.leftovers.append(name)
        else:
            found.damages.append(Damage(file=name, what="no file of this store"))


def _is_partial(name: str) -> bool:
    return name.startswith(".") and name.endswith(PARTIAL_SUFFIX)


def _is_uncommitted(store: FeatureStore, name: str) -> bool:
    """Whether a file may belong to a unit that was begun and not committed."""
    match = _CHUNK.fullmatch(name)
    if match is None and not _THUMB.fullmatch(name):
        return False
    kind = match["kind"] if match else COORD
    row_kind = kind.removeprefix(ITEM_PREFIX)
    return row_kind in store.kinds and any(w.kind == kind for w in store.missing([row_kind]))


def _items(work: Work) -> tuple[str, ...]:
    for unit in work.segment.units:
        if unit.name == work.unit:
            return work.segment.item_ids[unit.first_item : unit.first_item + unit.n_items]
    return work.segment.item_ids


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.is_symlink():
            yield from _files(path)
        else:
            yield path


def _named(message: str) -> str:
    return message.split(" ", 1)[0].rstrip(":")
