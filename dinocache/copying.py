"""Copies of stores, byte by byte: whole, or some kinds and units; resumable, and checked.

What stands in a copy keeps its rows, so that parts of one store can be put together. See
docs/sharing.md.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from dinocache import documents
from dinocache.errors import RecipeMismatchError, RequestError, StoreDamagedError
from dinocache.folders import Folder
from dinocache.items import is_table_name
from dinocache.layout import (
    BINDING_FORMAT,
    COORD,
    HEADER,
    ITEM_PREFIX,
    PART,
    PLANS,
    RUNS,
    SEALED,
    UNITS,
    array_kind,
    calibration_name,
    is_row_kind,
    is_vector_kind,
    plain_view,
    record_name,
)
from dinocache.records import Part, Record, StoredObject
from dinocache.remote import in_parallel
from dinocache.store import FeatureStore, Work
from dinocache.writer import StoreWriter, expected_documents

__all__ = ["Copied", "Rename", "copy_file", "copy_store", "stored_kinds"]

_BATCH_BYTES = 256 << 20
"""Of files that are under way at a time."""
_BATCH_FILES = 256

Tell = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Copied:
    """What a copy came to.

    Attributes:
        store: The copy.
        units: Units and kinds that were copied now.
        files: Files that were copied now, and their bytes.
        n_bytes: Likewise.
        there: Units and kinds that were there before.
        lacking: Units and kinds that the source does not have yet.
    """

    store: FeatureStore
    units: int
    files: int
    n_bytes: int
    there: int
    lacking: int


@dataclass(frozen=True, kw_only=True)
class Rename:
    """What a copy says otherwise than its source; files of features stay as they are.

    Attributes:
        header: Bytes of `store.json`.
        plan: Plan's name -> its bytes.
        record: Gives the bytes of a record.
        items: (name, bytes) of the item table.
    """

    header: bytes
    plans: dict[str, bytes]
    record: Callable[[Record], bytes]
    items: tuple[str, bytes]


def copy_store(
    source: FeatureStore,
    target: Folder,
    *,
    kinds: Sequence[str] | None = None,
    units: Sequence[str] | None = None,
    rename: Rename | None = None,
    tell: Tell | None = None,
) -> Copied:
    """Bring to a folder what it lacks of a store.

    Data comes first, then the records, then items and plan, and in a new copy the header last: at
    no moment anybody sees a store that lacks what it says it has. Files are held against the
    digests of the records as they are copied.

    Args:
        source: Where from; what is committed there is copied.
        target: Where to: nothing, the same store, or a part of it.
        kinds: As stored: `cls`, `item_cls`, `image`; None for all.
        units: Names; None for all.
        rename: What the copy says otherwise.
        tell: Called with (bytes done, bytes in all).

    Returns:
        What was done.

    Raises:
        RequestError: If the source has no such kind or unit.
        RecipeMismatchError: If another store is there, or units of this one were done otherwise.
        StoreDamagedError: If a file of the source is not as it was committed.
        StoreError: If one cannot be read or written now; what is copied stays, and the same call
            goes on.
    """
    mine = rename or _as_it_is(source)
    part = _part_of(source, kinds, units)
    is_new = not target.exists(HEADER)
    if not is_new:
        _check_same(source, target, mine)
    part = _join(target, part, is_new=is_new)
    wanted = [work for work in source.work() if part is None or part.covers(work.unit, work.kind)]
    committed = [w for w in wanted if source.is_committed(w.unit, w.kind)]
    there = _there(source, target, committed, mine, is_new=is_new)
    todo = [w for w in committed if record_name(w.unit, w.kind) not in there]
    if part is not None and (is_new or target.exists(PART)):
        target.replace(PART, documents.encode(part.model_dump(mode="json")))
    _copy_calibrations(source, target, part, is_new=is_new)
    files, n_bytes = _copy_units(source, target, todo, mine, tell)
    _write_documents(source, target, part, todo)
    for name in source.folder.list(RUNS).files if rename is None else ():
        if not target.exists(f"{RUNS}/{name}"):
            target.replace(f"{RUNS}/{name}", source.folder.read(f"{RUNS}/{name}"))
    _write_last(target, mine, is_new=is_new)
    writer = StoreWriter(FeatureStore(target))
    writer.seal()
    return Copied(
        store=writer.store,
        units=len(todo),
        files=files,
        n_bytes=n_bytes,
        there=len(committed) - len(todo),
        lacking=len(wanted) - len(committed),
    )


def _as_it_is(source: FeatureStore) -> Rename:
    folder = source.folder
    names = [f"{segment.number:04d}.json" for segment in source.segments]
    return Rename(
        header=folder.read(HEADER),
        plans={name: folder.read(f"{PLANS}/{name}") for name in names},
        record=lambda record: documents.encode(record.model_dump(mode="json")),
        items=(source.items_name, folder.read(source.items_name)),
    )


def _part_of(
    source: FeatureStore, kinds: Sequence[str] | None, units: Sequence[str] | None
) -> Part | None:
    """Say what is wanted of a store; None is all of it."""
    works = source.work()
    for option, asked, known in (
        ("--features", kinds, {w.kind for w in works}),
        ("--units", units, {w.unit for w in works}),
    ):
        if unknown := [name for name in asked or () if name not in known]:
            raise RequestError(
                f"{option}: {source.folder} has no {unknown[0]!r}; choose from "
                f"{', '.join(sorted(known)[:20])}"
            )
    if kinds is None and units is None:
        return source.part
    encoder = source.header.recipe.encoder.name
    return Part(
        of=f"{source.header.dataset} by {encoder}",
        digest=source.header.digest,
        kinds=None if kinds is None else tuple(sorted(stored_kinds(source, kinds))),
        units=None if units is None else tuple(sorted(set(units))),
    )


def stored_kinds(source: FeatureStore, kinds: Sequence[str]) -> set[str]:
    """Add to kinds of a row the means over items, and where the rows stand."""
    of_rows = [kind for kind in kinds if is_row_kind(kind)]
    means = {f"{ITEM_PREFIX}{kind}" for kind in of_rows if is_vector_kind(kind)}
    return {*kinds, *means, *((COORD,) if of_rows and COORD in source.kinds else ())}


def _join(target: Folder, part: Part | None, *, is_new: bool) -> Part | None:
    """Say what the copy holds then: what it held, and what comes now."""
    try:
        held = Part.from_body(documents.read(target, PART), PART)
    except FileNotFoundError:
        return part if is_new else None  # it is a whole store, and stays one
    if part is None:
        target.remove(PART)
        return None
    return held.joined(part)


def _check_same(source: FeatureStore, target: Folder, mine: Rename) -> None:
    """See that the store there is this one, and its plan not another."""
    if target.read(HEADER) != mine.header:
        there = FeatureStore(target).header
        differs = source.header.recipe.differences(there.recipe)
        what = "; ".join(f"{k}: {a} here, {b} there" for k, (a, b) in differs.items())
        raise RecipeMismatchError(
            f"at {target} is another store ({what or 'made at another time'}); give this one "
            "another root"
        )
    for name in target.list(PLANS).files:
        if name in mine.plans and target.read(f"{PLANS}/{name}") != mine.plans[name]:
            raise RecipeMismatchError(
                f"{target}: {PLANS}/{name} differs from that of {source.folder}: both were "
                "appended to, apart from each other. Give one of them another root."
            )


def _there(
    source: FeatureStore, target: Folder, works: Sequence[Work], mine: Rename, *, is_new: bool
) -> set[str]:
    """Name the records that stand in a copy; of one without header, those that are ours."""
    names = {f"{UNITS}/{name}" for name in target.list(UNITS).files}
    if not names or not (is_new or source.header.format >= BINDING_FORMAT):
        return names
    records = [source.record(work.unit, work.kind) for work in works]
    named = [(record_name(r.unit, r.kind), r) for r in records if r]
    held = [(name, record) for name, record in named if name in names]
    if not is_new:
        _check_alike(source, FeatureStore(target), [record for _, record in held])
        return names
    same = in_parallel(lambda one: target.read(one[0]) == mine.record(one[1]), held)
    return {name for (name, _), is_ours in zip(held, same, strict=True) if is_ours}


def _check_alike(source: FeatureStore, target: FeatureStore, held: Sequence[Record]) -> None:
    """See that units that are there hold what they hold here, or none goes with the others."""
    theirs = in_parallel(lambda record: target.record(record.unit, record.kind), held)
    for ours, record in zip(held, theirs, strict=True):
        if record is not None and record.objects != ours.objects:
            raise RecipeMismatchError(
                f"{target.folder}: {record_name(ours.unit, ours.kind)} differs from that of "
                f"{source.folder}, as both were extracted apart from each other. Give one of "
                "them another root."
            )


def _copy_calibrations(
    source: FeatureStore, target: Folder, part: Part | None, *, is_new: bool
) -> None:
    """Copy what kinds were made small by; it must be the same where it is there."""
    for kind in filter(source.is_fitted, source.kinds):
        wanted = {kind, f"{ITEM_PREFIX}{kind}"}
        if part is not None and part.kinds is not None and wanted.isdisjoint(part.kinds):
            continue
        if (calibration := source.calibration(kind)) is None:
            continue
        name, content = calibration_name(plain_view(kind)), calibration.encode()
        if is_new:  # what is left of another store that was begun here must not count
            target.keep(name, content)
        elif not target.create(name, content) and target.read(name) != content:
            raise RecipeMismatchError(
                f"{target}: {name} differs from that of {source.folder}: both were begun apart "
                "from each other. Give one of them another root."
            )


def _copy_units(
    source: FeatureStore, target: Folder, todo: Sequence[Work], mine: Rename, tell: Tell | None
) -> tuple[int, int]:
    """Copy files of units, and then their records, in batches; gives files and bytes."""
    records = [source.record(work.unit, work.kind) for work in todo]
    total = sum(o.bytes for r in records if r for o in r.objects.values())
    files, done = 0, 0
    batch: list[Record] = []
    pending: dict[str, StoredObject] = {}

    def finish() -> None:
        nonlocal files, done
        in_parallel(partial(copy_file, source.folder, target), list(pending.items()))
        in_parallel(lambda r: target.replace(record_name(r.unit, r.kind), mine.record(r)), batch)
        files += len(pending)
        done += sum(stored.bytes for stored in pending.values())
        batch.clear()
        pending.clear()
        if tell:
            tell(done, total)

    for record in records:
        if record is None:
            continue
        batch.append(record)
        pending |= record.objects
        n_bytes = sum(stored.bytes for stored in pending.values())
        if len(pending) >= _BATCH_FILES or n_bytes >= _BATCH_BYTES or len(batch) >= _BATCH_FILES:
            finish()
    finish()
    return files, done


def copy_file(source: Folder, target: Folder, file: tuple[str, StoredObject]) -> bytes:
    """Copy a committed file.

    Args:
        source: The store's folder.
        target: The copy's.
        file: Its name, and what was committed.

    Returns:
        What is in it.

    Raises:
        StoreDamagedError: If it is missing, or not as it was committed.
    """
    name, stored = file
    try:
        content = source.read(name, stored.is_of)
    except FileNotFoundError:
        content = b""
    if not stored.is_of(content):
        raise StoreDamagedError(
            f"{source}: {name} is missing or damaged; `dinocache verify {source}` says what else "
            "is, `dinocache repair` mends it"
        )
    target.replace(name, content)
    return content


def _write_documents(
    source: FeatureStore, target: Folder, part: Part | None, todo: Sequence[Work]
) -> None:
    """Write the description of each array, in the length that it has at the source."""
    if not todo:
        return
    for name, content in expected_documents(source, source.kinds, complete=False).items():
        array = name.split("/")[1]
        kind = array_kind(array)
        held = set(part.kinds or ()) if part else set()
        if kind != array:  # what views were made small by is their image's
            held |= set(map(plain_view, held))
        if part is None or part.kinds is None or kind == "zarr.json" or kind in held:
            target.keep(name, content)


def _write_last(target: Folder, mine: Rename, *, is_new: bool) -> None:
    """Write what makes the copy a store, or what it has now a part of it."""
    name, content = mine.items
    if is_new:  # what is left of another store that was begun here must not count
        ours = {name, *(f"{PLANS}/{plan}" for plan in mine.plans)}
        listed = [f"{PLANS}/{plan}" for plan in target.list(PLANS).files]
        listed += [n for n in target.list().files if is_table_name(n) or n == SEALED]
        for other in listed:
            if other not in ours:
                target.remove(other)
    for plan, document in mine.plans.items():
        target.keep(f"{PLANS}/{plan}", document)
    latest = max((n for n in target.list().files if n.startswith("items-")), default="")
    if name > latest:
        target.replace(name, content)
    if is_new:
        target.create(HEADER, mine.header)
