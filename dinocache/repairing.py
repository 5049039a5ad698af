"""Mending a store: what is broken is taken away, so that it is extracted or pulled again."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from dinocache.copying import copy_store
from dinocache.errors import RequestError, StoreDamagedError
from dinocache.folders import Folder
from dinocache.layout import (
    CALIBRATION,
    RUNS,
    SEALED,
    calibration_name,
    plain_view,
    record_name,
)
from dinocache.places import Where, folder_of
from dinocache.store import FeatureStore, Work
from dinocache.verify import Soundness, verify
from dinocache.writer import StoreWriter, expected_documents

__all__ = ["Garbage", "Mended", "collect_garbage", "repair"]

_DAY_S = 86_400.0


@dataclass(frozen=True, kw_only=True)
class Mended:
    """What a repair came to.

    Attributes:
        units: Units and kinds, as `0001-00003.cls`, whose records were taken back.
        fetched: How many of them were copied from another place.
        found: What `verify` says now.
    """

    units: tuple[str, ...]
    fetched: int
    found: Soundness


def repair(
    where: Where, *, source: Where | None = None, tell: Callable[[int, int], None] | None = None
) -> Mended:
    """Take back the records of units that are broken, and copy these from another place.

    Without a source they are then missing, and the same `dinocache extract` does exactly them
    again. What describes arrays, and the seal, is written anew from plan and records.

    Args:
        where: The store: a path or a URL.
        source: The same store elsewhere, or a part of it.
        tell: As of `verify`.

    Returns:
        What was done.

    Raises:
        StoreDamagedError: If header, plan or item table are damaged: they cannot be made anew, but
            copied where there is a source.
        RequestError: If the source is another store.
    """
    folder = folder_of(where)
    found = verify(folder, tell)
    if found.damages and not found.files and source is not None:
        _copy_documents(folder_of(source), folder, found)
        found = verify(folder, tell)
    store = FeatureStore(folder)
    broken = _broken_units(store, found)
    refitted = [d for d in found.damages if d.file.startswith(f"{CALIBRATION}/")]
    if source is None:
        # Fitted again it comes out the same; but what is whole and another stays, as nobody knows
        # why, and the units that it is not of are done again.
        others = {f"{w.unit}.{w.kind}" for w in store.work() if not _is_fitted(store, w)}
        kinds = {name.partition(".")[2] for name in others}
        names = {calibration_name(plain_view(kind)) for kind in kinds}
        refitted = [d for d in refitted if d.file not in names]
        broken |= others
    for name in sorted(broken):
        unit, _, kind = name.partition(".")
        folder.remove(record_name(unit, kind))
    if found.damages and folder.exists(SEALED):
        folder.remove(SEALED)
    for damage in found.damages:
        if damage.file.startswith(f"{RUNS}/"):  # for people; nothing depends on it
            folder.remove(damage.file)
    for damage in refitted:
        folder.remove(damage.file)
    fetched = 0
    if source is not None:
        fetched = copy_store(FeatureStore(source), folder).units
    writer = StoreWriter(FeatureStore(folder))
    for name, content in expected_documents(
        writer.store, writer.store.kinds, complete=False
    ).items():
        folder.keep(name, content)
    writer.reload()
    writer.seal()
    return Mended(units=tuple(sorted(broken)), fetched=fetched, found=verify(folder))


def _is_fitted(store: FeatureStore, work: Work) -> bool:
    """Whether a unit was made small by the calibration that is there; if none is, nobody knows."""
    try:
        record = store.record(work.unit, work.kind)
        if record is None or store.calibration(work.kind) is None:
            return True
    except StoreDamagedError:
        return True
    return record.fitted is not None and (
        record.fitted.calibration == store.calibration_checksum(work.kind)
    )


def _broken_units(store: FeatureStore, found: Soundness) -> set[str]:
    """Name the units and kinds whose record, or a file of which, is damaged."""
    damaged = {damage.file for damage in found.damages}
    broken = set()
    for work in store.work():
        name = record_name(work.unit, work.kind)
        try:
            record = store.record(work.unit, work.kind)
        except StoreDamagedError:
            broken.add(f"{work.unit}.{work.kind}")
            continue
        if record and (name in damaged or not damaged.isdisjoint(record.objects)):
            broken.add(f"{work.unit}.{work.kind}")
    return broken


def _copy_documents(source: Folder, target: Folder, found: Soundness) -> None:
    """Copy what a store cannot be opened without."""
    for damage in found.damages:
        try:
            target.replace(damage.file, source.read(damage.file))
        except FileNotFoundError as exc:
            raise RequestError(f"{source} has no {damage.file}; is it the same store?") from exc


@dataclass(frozen=True, kw_only=True)
class Garbage:
    """Files that nothing refers to.

    Attributes:
        removed: Their names.
        n_bytes: That they had.
        young: How many stay, as they may be of work that is under way.
        uploads: In parts, never ended, that were given up.
    """

    removed: tuple[str, ...]
    n_bytes: int
    young: int
    uploads: int


def collect_garbage(
    where: Where, *, older_than_s: float = _DAY_S, dry_run: bool = False
) -> Garbage:
    """Remove files that no record refers to: of writers that were killed, and of units done anew.

    Args:
        where: The store: a path or a URL.
        older_than_s: What changed since then stays.
        dry_run: Remove nothing, only say what would be.

    Returns:
        What was removed.

    Raises:
        StoreError: If the store cannot be read.
        StoreWriteError: If a file cannot be removed.
    """
    folder = folder_of(where)
    store = FeatureStore(folder)
    leftovers = set(verify(folder, share=0).leftovers)
    before = time.time() - older_than_s
    entries = [entry for entry in folder.walk() if entry.name in leftovers]
    old = [entry for entry in entries if entry.modified < before]
    for entry in old if not dry_run else ():
        store.folder.remove(entry.name)
    return Garbage(
        removed=tuple(entry.name for entry in old),
        n_bytes=sum(entry.bytes for entry in old),
        young=len(entries) - len(old),
        uploads=0 if dry_run else folder.abort_uploads(before),
    )
