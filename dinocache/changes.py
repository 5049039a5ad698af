"""Sources that no longer look as they did when a store was planned."""

import datetime
from collections.abc import Iterable
from dataclasses import dataclass

from dinocache.counting import stamp_items
from dinocache.progress import Progress
from dinocache.source import Source
from dinocache.stamps import Stamp
from dinocache.store import FeatureStore

__all__ = ["Changes", "changed_sources"]

_S = 1_000_000_000


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What became of sources.

    Attributes:
        changed: Item id -> what is other than it was.
        missing: Ids of items whose files are gone, or cannot be looked at.
    """

    changed: dict[str, str]
    missing: list[str]


def changed_sources(
    store: FeatureStore,
    source: Source,
    item_ids: Iterable[str],
    *,
    workers: int,
    progress: Progress,
) -> Changes:
    """Hold what a plan says of the files of items against the disk.

    A file is another one if its size is other, or its time and, where the plan has a sha256, also
    that. Files that no table names are not looked at: the slices beside a DICOM file that stands
    for its series, the data beside a detached header.

    Args:
        store: Whose plan; of several segments that hold an item the last counts.
        source: Where the items lie.
        item_ids: Which; those that no segment holds are left out.
        workers: Threads that read files whose content is asked for.
        progress: Told of how far that is.

    Returns:
        What is other, in order of `item_ids`.
    """
    planned = {
        item_id: stamp
        for segment in store.segments
        for item_id, stamp in zip(segment.item_ids, segment.stamps, strict=True)
    }
    asked = [str(i) for i in item_ids if i in planned]
    found = stamp_items(source, asked, workers=workers, progress=progress)
    doubtful = [i for i in asked if _content_decides(planned[i], found[i])]
    found |= stamp_items(source, doubtful, workers=workers, progress=progress, digest=True)
    reasons = {i: _difference(planned[i], found[i]) for i in asked}
    return Changes(
        changed={i: reason for i, reason in reasons.items() if reason},
        missing=[i for i in asked if found[i] is None],
    )


def _content_decides(then: Stamp | None, now: Stamp | None) -> bool:
    if then is None or now is None or then.sha256 is None:
        return False
    return then.bytes == now.bytes and not _same_time(then.modified_ns, now.modified_ns)


def _difference(then: Stamp | None, now: Stamp | None) -> str:
    """Say how files differ from what they were; empty if they do not, or are gone."""
    if now is None:
        return ""
    if then is None:
        return "missing when it was extracted, there now"
    if now.bytes != then.bytes:
        return f"{now.bytes} bytes, {then.bytes} when it was extracted"
    if _same_time(then.modified_ns, now.modified_ns):
        return ""
    if then.sha256 is not None and then.sha256 == now.sha256:
        return ""
    modified, before = _times(now.modified_ns, then.modified_ns)
    return f"modified {modified}, {before} when it was extracted"


def _same_time(one_ns: int, other_ns: int) -> bool:
    """Compare times; some file systems, and archives, keep whole seconds only."""
    if 0 in (one_ns % _S, other_ns % _S):
        return one_ns // _S == other_ns // _S
    return one_ns == other_ns


def _times(*times_ns: int) -> list[str]:
    """Write times of this machine's zone, as exactly as is needed to tell them apart."""
    epoch = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    moments = [epoch + datetime.timedelta(microseconds=ns // 1000) for ns in times_ns]
    local = [moment.astimezone().replace(tzinfo=None) for moment in moments]
    for digits in ("minutes", "seconds", "microseconds"):
        texts = [moment.isoformat(" ", digits) for moment in local]
        if len(set(texts)) == len(texts):
            break
    return texts
