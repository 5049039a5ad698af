"""A store of some items of another: rows are copied, the plan is its own.

It says what it was derived from, and is never put back into that store. See docs/sharing.md.
"""

import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from dinocache import documents
from dinocache.closing import write_means
from dinocache.copying import stored_kinds
from dinocache.errors import (
    RecipeMismatchError,
    RequestError,
    StoreIncompleteError,
    TableError,
    one_line,
)
from dinocache.folders import Folder
from dinocache.layout import COORD, FORMAT, HEADER, ITEM_PREFIX, NATIVE_KINDS, PART, check_kinds
from dinocache.plan import Segment, Unit, make_segment
from dinocache.records import Failure, Header, Part, Record, StoredObject
from dinocache.store import FeatureStore
from dinocache.writer import StoreWriter, create_store

__all__ = ["DERIVED", "choose_items", "derive_store"]

DERIVED = "derived"
"""Key of the provenance that says what a store was derived from."""


def choose_items(
    store: FeatureStore, *, equal: Sequence[str] = (), where: str | None = None
) -> list[str]:
    """Choose items by their columns.

    Args:
        store: Whose item table.
        equal: `COLUMN=VALUE`, all of which must hold; of one column given twice, either.
        where: What follows WHERE in SQL (DuckDB's) over the columns: `label = 1 AND sex = 'F'`.

    Returns:
        Ids, in order of the table.

    Raises:
        RequestError: If there is no such column, the condition cannot be read, or no item is left.
    """
    table = store.items
    wanted: dict[str, set[str]] = {}
    for one in equal:
        column, sign, value = one.partition("=")
        if not sign or column not in table:
            raise RequestError(
                f"--items {one!r}: give COLUMN=VALUE, of the columns {', '.join(table.columns)}"
            )
        wanted.setdefault(column, set()).add(value)
    for column, values in wanted.items():
        table = table[table[column].astype(str).isin(values)]
    ids = [str(i) for i in table["item_id"]]
    if where is not None:
        fitting = _fitting(store, where)
        ids = [i for i in ids if i in fitting]
    if not ids:
        raise RequestError(f"no item of {store.folder} is like that; `dinocache info` says more")
    return ids


def _fitting(store: FeatureStore, where: str) -> set[str]:
    import duckdb

    query = f"SELECT item_id FROM items WHERE {where}"
    try:
        if [s.type for s in duckdb.extract_statements(query)] != [duckdb.StatementType.SELECT]:
            raise RequestError(f"--where {where!r}: give one condition, nothing else")
        with duckdb.connect(":memory:") as connection:
            connection.execute("SET enable_external_access=false")
            connection.execute("SET lock_configuration=true")
            connection.register("items", store.items)
            return set(connection.execute(query).df()["item_id"].astype(str))
    except duckdb.Error as exc:
        raise RequestError(f"--where {where!r}: {one_line(exc)}") from exc


def derive_store(
    source: FeatureStore,
    target: Folder,
    item_ids: Sequence[str],
    *,
    kinds: Sequence[str] | None = None,
    tell: Callable[[int, int], None] | None = None,
) -> FeatureStore:
    """Make a store of some items of another, or go on with it.

    Args:
        source: Where from; it must have these kinds of these items, failed ones apart.
        target: Where to.
        item_ids: Which items.
        kinds: Kinds of rows and of items; None for all that the source has.
        tell: Called with (units done, units in all).

    Returns:
        The store, complete.

    Raises:
        RecipeMismatchError: If another store is there.
        StoreIncompleteError: If the source lacks something of these items.
        StoreDamagedError: If a file is not as it was committed.
    """
    chosen = set(item_ids)
    table = source.items[source.items["item_id"].isin(chosen)].reset_index(drop=True)
    if missing := chosen - set(table["item_id"]):
        raise TableError(f"{source.folder} has no item {sorted(missing)[0]!r}")
    stored = {w.kind for w in source.work()} if kinds is None else stored_kinds(source, kinds)
    if unknown := stored - {w.kind for w in source.work()}:
        raise RequestError(
            f"--features: {source.folder} has no {sorted(unknown)[0]!r}; choose from "
            f"{', '.join(source.kinds)}"
        )
    writer = _begin(source, target, stored)
    if writer.store.items.empty:
        writer.put_items(table)
    elif set(writer.store.items["item_id"]) != chosen:
        raise RecipeMismatchError(f"at {target} is a store of other items; choose another root")
    if not writer.store.segments:
        writer.add_segment(_plan(source, [str(i) for i in table["item_id"]]))
    held = check_kinds(kind.removeprefix(ITEM_PREFIX) for kind in stored)
    for calibration in filter(None, map(source.calibration, held)):
        writer.freeze(calibration)
    writer.prepare(held)
    (segment,) = writer.store.segments
    todo = writer.store.missing(held)
    units = {unit.name: unit for unit in segment.units}
    for done, work in enumerate(todo):
        if work.unit in units:
            writer.commit(_Unit(source, writer, segment, units[work.unit], work.kind).record())
        else:
            _close(source, writer, segment, work.kind)
        if tell:
            tell(done + 1, len(todo))
    writer.reload()
    writer.seal()
    return writer.store


def _begin(source: FeatureStore, target: Folder, stored: set[str]) -> StoreWriter:
    header = source.header
    said = f"some items of {header.dataset}, {source.items_name}"
    if not target.exists(HEADER):
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        provenance = {**header.provenance, DERIVED: said, "derived_on": now}
        if any(k.removeprefix(ITEM_PREFIX) not in stored for k in stored):  # items' means alone
            part = Part(of=said, digest=header.digest, kinds=tuple(sorted(stored)), units=None)
            target.create(PART, documents.encode(part.model_dump(mode="json")))
        create_store(target, header.model_copy(update={"format": FORMAT, "provenance": provenance}))
    there: Header = (store := FeatureStore(target)).header
    if there.digest != header.digest or there.provenance.get(DERIVED) != said:
        raise RecipeMismatchError(f"at {target} is another store; choose another root")
    return StoreWriter(store)


def _plan(source: FeatureStore, item_ids: Sequence[str]) -> Segment:
    rows = {
        item_id: count
        for segment in source.segments
        for item_id, count in zip(segment.item_ids, segment.item_rows, strict=True)
    }
    if unplanned := [item_id for item_id in item_ids if item_id not in rows]:
        raise StoreIncompleteError(
            f"{source.folder}: item {unplanned[0]!r} is not extracted yet; extract the rest first"
        )
    return make_segment(
        [(item_id, rows[item_id]) for item_id in item_ids],
        source.header.grid,
        recipe=source.header.digest,
        after=None,
        stamps=[None] * len(item_ids),
    )


@dataclass
class _Unit:
    """One unit and kind while its rows are copied."""

    source: FeatureStore
    writer: StoreWriter
    segment: Segment
    unit: Unit
    kind: str

    def __post_init__(self) -> None:
        self.failed: dict[str, Failure] = {}
        self.not_asked: list[str] = []
        self.notes: dict[str, tuple[str, ...]] = {}
        self.objects: dict[str, StoredObject] = {}
        self.made_by: dict[str, str] = {}
        self.numbers = 0

    def record(self) -> Record:
        """Copy, and say what was copied."""
        present = [piece for piece in self.segment.pieces(self.unit) if self._is_present(piece[0])]
        if self.kind in NATIVE_KINDS:
            self._copy_native(present)
        else:
            self._copy_rows(present)
        return Record(
            unit=self.unit.name,
            kind=self.kind,
            recipe=self.segment.recipe,
            rows=(self.unit.row_start, self.unit.row_start + self.unit.n_rows),
            items=self.unit.n_items,
            failed=self.failed,
            not_asked=tuple(self.not_asked),
            notes=self.notes,
            objects=self.objects,
            made_by=self.made_by,
            fitted=self.writer.fitted(self.kind, None, self.numbers),
        )

    def _is_present(self, position: int) -> bool:
        item_id = self.segment.item_ids[position]
        found = self.source.presence(self.kind, item_id)
        self.made_by = found.made_by
        if found.notes:
            self.notes[item_id] = found.notes
        if found.failure is not None:
            self.failed[item_id] = found.failure
        elif not found.present:
            self.not_asked.append(item_id)
        return found.present

    def _copy_rows(self, pieces: Sequence[tuple[int, int, int, int]]) -> None:
        layout, unit = self.writer.layout(self.kind), self.unit
        start, n_rows = unit.row_start, layout.file_rows
        block: npt.NDArray[Any] | None = None
        held = -1

        def put() -> None:
            if block is not None and not layout.is_absent(block):
                self.objects |= self.writer.write_rows(self.kind, start + held * n_rows, block)

        for position, row, offset, count in pieces:
            rows = self.source.stored_rows(self.kind, self.segment.item_ids[position])
            self.numbers += rows[offset : offset + count].size
            for at in range(count):
                file, within = divmod(row + at - start, n_rows)
                if file != held:
                    put()
                    held = file
                    length = min(n_rows, unit.n_rows - file * n_rows)
                    block = layout.nothing(length)
                if block is not None:
                    block[within] = rows[offset + at]
        put()
        if self.kind == COORD:
            self._copy_thumbs(pieces)

    def _copy_thumbs(self, pieces: Sequence[tuple[int, int, int, int]]) -> None:
        for position, _, offset, _ in pieces:
            if offset == 0:
                item_id = self.segment.item_ids[position]
                picture = self.source.thumbnail(item_id)
                if picture is not None:
                    position += self.segment.item_start
                    self.objects |= self.writer.put_thumb(position, picture)

    def _copy_native(self, pieces: Sequence[tuple[int, int, int, int]]) -> None:
        for position, _, offset, count in pieces:
            item_id = self.segment.item_ids[position]
            array, attributes = self.source.native(self.kind, item_id)
            self.objects |= self.writer.write_native(
                self.kind,
                self.segment.item_start + position,
                array[:, offset : offset + count],
                start=offset,
                depth=array.shape[1],
                attributes=attributes,
            )
        self.writer.close_native()


def _close(source: FeatureStore, writer: StoreWriter, segment: Segment, item_kind: str) -> None:
    """Copy the means over the items' rows, as they stand in the source."""
    kind = item_kind.removeprefix(ITEM_PREFIX)
    ids, vectors = source.item_vectors(kind)
    where = {item_id: number for number, item_id in enumerate(ids)}
    failures = {f.item_id: f.failure for f in source.failures() if kind in f.kinds}
    made_by: dict[str, str] = {}
    for closing in source.segments:
        if record := source.record(closing.closing_name, item_kind):
            made_by = record.made_by
    write_means(
        writer,
        segment,
        kind,
        lambda position: vectors[where[segment.item_ids[position]]],
        {item_id: failures[item_id] for item_id in segment.item_ids if item_id not in where},
        made_by,
    )
