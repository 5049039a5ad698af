"""Holding every byte of a store against what was committed.

Finds any flipped bit, any truncated, missing or foreign file. See docs/store-format.md.
"""

import math
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from dinocache import documents
from dinocache.durable import PARTIAL_SUFFIX
from dinocache.errors import StoreDamagedError, StoreError, one_line
from dinocache.folders import UNKNOWN_SIZE
from dinocache.items import from_parquet, is_named_by, is_table_name
from dinocache.layout import (
    BINDING_FORMAT,
    COORD,
    FEATURES,
    HEADER,
    ITEM_PREFIX,
    PART,
    PLANS,
    RUNS,
    SEALED,
    THUMBS,
    array_kind,
    calibration_name,
    plain_view,
    record_name,
)
from dinocache.places import Where
from dinocache.records import Record, Run, StoredObject
from dinocache.remote import in_parallel
from dinocache.store import FeatureStore, Work
from dinocache.writer import expected_documents
from dinocache.zarrs import MOST_DESCRIPTION

__all__ = ["Damage", "Soundness", "verify"]

_CHUNK = re.compile(
    r"(?:features|native)\.zarr/(?P<kind>[\w.]+)/(?:\d+/)?(?:c(?:\.\d+)+|zarr\.json)"
)
_AT_ONCE = 8
"""Files that are read at a time."""
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
        warnings: What this could not find out, and the way out.
    """

    complete: bool = False
    files: int = 0
    n_bytes: int = 0
    damages: list[Damage] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """0 sound and complete, 1 damaged, 3 sound but incomplete."""
        if self.damages:
            return 1
        return 0 if self.complete else 3


def verify(
    where: Where, tell: Callable[[int, int], None] | None = None, *, share: float = 1.0
) -> Soundness:
    """Read a store and compare it with its records.

    Args:
        where: The store: a path or a URL.
        tell: Called with (records done, records in all).
        share: Of the units whose files are read, others in each call; of all others that the files
            are there in their sizes is seen all the same.

    Returns:
        What was found.

    Raises:
        StoreNotFoundError: If there is no store.
    """
    found = Soundness()
    known = {HEADER, PART}
    try:
        store = FeatureStore(where)
    except StoreDamagedError as exc:
        # Without header, plan and items nothing else can be judged.
        found.damages.append(Damage(file=_named(str(exc)), what=str(exc)))
        return found
    if store.header.format < BINDING_FORMAT:
        found.warnings.append(_weak(store.header.format))
    _check_documents(store, found, known)
    broken = _check_calibrations(store, found, known)
    works = store.work()
    read = set(works if share >= 1 else random.sample(works, math.ceil(share * len(works))))
    sizes = None if share >= 1 else {entry.name: entry.bytes for entry in store.folder.walk()}
    for done, work in enumerate(works):
        _check_unit(store, work, found, known, None if work in read else sizes)
        if tell:
            tell(done + 1, len(works))
    found.complete = store.is_complete and store.folder.exists(SEALED)
    _check_zarr_documents(store, found, known, broken)
    _look_for_others(store, found, known)
    return found


def _weak(format: int) -> str:
    """Say what records of an older format cannot."""
    return (
        f"the records of a store of format {format} do not tell files of one size apart: bits that "
        "flipped are found, a file in the place of another is not. `dinocache compact STORE --to "
        "ROOT` writes what is there with records that do; extracted anew it is sure to be right"
    )


def _check_documents(store: FeatureStore, found: Soundness, known: set[str]) -> None:
    """Check the seal and older item tables; plans and the table in force open with the store."""
    known.update(f"plans/{s.number:04d}.json" for s in store.segments)
    for number, segment in enumerate(store.segments, 1):
        if segment.number != number:
            name = f"plans/{number:04d}.json"
            found.damages.append(Damage(file=name, what="missing, though a later segment exists"))
            break
    top = store.folder.list()
    for table in sorted(name for name in top.files if is_table_name(name)):
        known.add(table)
        try:
            from_parquet(store.folder.read(table, partial(is_named_by, name=table)), table)
        except StoreDamagedError as exc:
            found.damages.append(Damage(file=table, what=str(exc)))
    runs = [f"{RUNS}/{name}" for name in store.folder.list(RUNS).files if name.endswith(".json")]
    for name in sorted(runs):
        known.add(name)
        try:
            Run.from_body(documents.read(store.folder, name), name)
        except StoreDamagedError as exc:
            found.damages.append(Damage(file=name, what=str(exc)))
    if SEALED in top.files:
        known.add(SEALED)
        sealed = documents.read(store.folder, SEALED)
        plans = store.folder.list(PLANS).files
        for name in sealed.get("plans", {}):
            if name not in plans:
                found.damages.append(Damage(file=f"{PLANS}/{name}", what="missing"))
        table_name = sealed.get("items", "")
        if table_name and table_name not in top.files:
            found.damages.append(Damage(file=table_name, what="missing"))


def _check_calibrations(store: FeatureStore, found: Soundness, known: set[str]) -> set[str]:
    """Check what kinds were made small by; names the kinds of which it cannot be read."""
    broken = set()
    for kind in filter(store.is_fitted, store.kinds):
        name = calibration_name(plain_view(kind))
        known.add(name)
        try:
            if store.calibration(kind) is None:
                broken.add(kind)
        except StoreDamagedError as exc:
            broken.add(kind)
            found.damages.append(Damage(file=name, what=str(exc)))
            continue
        others = [work for work in store.work([kind]) if not _is_fitted_by(store, work)]
        if others:
            items = tuple(item for work in others for item in _items(work))
            what = "missing" if kind in broken else "not what these items were made small by"
            found.damages.append(Damage(file=name, what=what, items=items))
    # The arrays that repeat it cannot be held against it.
    for entry in store.folder.walk(FEATURES) if broken else ():
        array = entry.name.split("/")[1]
        if array_kind(array) != array and array_kind(array) in map(plain_view, broken):
            known.add(entry.name)
    return broken


def _is_fitted_by(store: FeatureStore, work: Work) -> bool:
    """Whether a unit was made small by what is there; one whose record is damaged is told of."""
    try:
        record = store.record(work.unit, work.kind)
    except StoreDamagedError:
        return True
    try:
        if record:
            store.check_fitted(record)
    except StoreDamagedError:
        return False
    return True


def _check_unit(
    store: FeatureStore,
    work: Work,
    found: Soundness,
    known: set[str],
    sizes: Mapping[str, int] | None,
) -> None:
    """Check the record of a unit and kind, and its files: their bytes, or just their sizes."""
    name = record_name(work.unit, work.kind)
    try:
        record = store.record(work.unit, work.kind)
        if record is None:
            return
        known.add(name)
        try:
            body = documents.read(store.folder, name)
            if Record.from_body(body, name) != record:
                raise StoreDamagedError("it differs from what sealed.json says of it")
        except FileNotFoundError:
            found.damages.append(Damage(file=name, what="missing", items=_items(work)))
    except StoreDamagedError as exc:
        known.add(name)
        found.damages.append(Damage(file=name, what=str(exc), items=_items(work)))
        return
    known.update(record.objects)
    if sizes is not None:
        for file, stored in record.objects.items():
            if sizes.get(file) not in (stored.bytes, UNKNOWN_SIZE):
                what = f"{sizes.get(file, 'no')} bytes, {stored.bytes} were committed"
                found.damages.append(Damage(file=file, what=what, items=_items(work)))
        return
    names = list(record.objects)
    # A few at a time: together they may be larger than the memory.
    for start in range(0, len(names), _AT_ONCE):
        some = names[start : start + _AT_ONCE]
        read = in_parallel(lambda file: _check_file(store, file, record.objects[file]), some)
        for file, (n_bytes, what) in zip(some, read, strict=True):
            found.files += n_bytes is not None
            found.n_bytes += n_bytes or 0
            if what:
                found.damages.append(Damage(file=file, what=what, items=_items(work)))


def _check_file(store: FeatureStore, file: str, stored: StoredObject) -> tuple[int | None, str]:
    """Read a committed file; gives its size, None if it cannot be read, and what is wrong."""
    try:
        content = store.folder.read(file, stored.is_of)
    except (OSError, StoreError) as exc:
        said = exc.strerror if isinstance(exc, OSError) and exc.strerror else one_line(exc)
        return None, f"missing or unreadable ({said})"
    if len(content) != stored.bytes:
        return len(content), f"{len(content)} bytes, {stored.bytes} were committed"
    if not stored.is_of(content):
        return len(content), "it is not what was committed"
    return len(content), ""


def _check_zarr_documents(
    store: FeatureStore, found: Soundness, known: set[str], broken: set[str]
) -> None:
    either = expected_documents(store, store.kinds, complete=False, broken=broken)
    kinds = {work.kind for work in store.work() if store.is_committed(work.unit, work.kind)}
    sealed = expected_documents(store, store.kinds, complete=True, broken=broken)
    for name, content in either.items():
        known.add(name)
        try:
            stored = store.folder.read(
                name, {content, sealed[name]}.__contains__, most=MOST_DESCRIPTION
            )
        except StoreDamagedError as exc:
            found.damages.append(Damage(file=name, what=str(exc)))
            continue
        except FileNotFoundError:
            # They are written one after the other, before anything that relies on them.
            kind = array_kind(name.split("/")[1])
            if kind in {*kinds, *map(plain_view, kinds)} or (kind == "zarr.json" and kinds):
                found.damages.append(Damage(file=name, what="missing"))
            continue
        if stored == sealed[name] and (found.complete or sealed[name] == content):
            continue
        if stored == sealed[name]:
            what = f"says complete, but {SEALED} or a record is missing"
            found.damages.append(Damage(file=name, what=what))
        elif stored in _earlier(store, name, broken):
            found.complete = False  # items were appended, and nothing of them is committed yet
        elif stored != content:
            found.damages.append(Damage(file=name, what="not what the plan and the recipe say"))
        elif sealed[name] != content:
            found.complete = False  # all is committed, but the run was stopped before it said so


def _earlier(store: FeatureStore, name: str, broken: set[str]) -> list[bytes]:
    """Give what a document held before segments of which nothing relies on it yet."""
    kind = name.split("/")[1].removeprefix(ITEM_PREFIX)
    relied = [
        w.segment.number
        for w in store.work()
        if kind == w.kind.removeprefix(ITEM_PREFIX) and store.is_committed(w.unit, w.kind)
    ]
    before = range(max(relied, default=0), len(store.segments))
    return [
        expected_documents(
            store, store.kinds, complete=False, segments=store.segments[:n], broken=broken
        )[name]
        for n in before
    ]


def _look_for_others(store: FeatureStore, found: Soundness, known: set[str]) -> None:
    for entry in store.folder.walk():
        name = entry.name
        if store.folder.path is not None and (store.folder.path / name).is_symlink():
            found.damages.append(Damage(file=name, what="a link; a store holds plain files only"))
        elif name in known:
            continue
        elif _is_partial(name.rpartition("/")[2]) or _is_uncommitted(store, name):
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


def _named(message: str) -> str:
    return message.split(" ", 1)[0].rstrip(":")
