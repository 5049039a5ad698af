"""Reading a store: only what is committed, and only as it was written.

See docs/store-format.md. Needs neither torch nor any reader of images.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd

from dinocache import documents
from dinocache.calibration import Calibration
from dinocache.chunks import ChunkedArray, open_array
from dinocache.committed import CommittedFiles, committed_files
from dinocache.errors import (
    RequestError,
    StoreDamagedError,
    StoreIncompleteError,
    StoreNotFoundError,
)
from dinocache.folders import Entry, Listing, check_size
from dinocache.items import from_parquet, is_named_by, is_table_name
from dinocache.layout import (
    COORD,
    FEATURES,
    HEADER,
    ITEM_PREFIX,
    NATIVE,
    NATIVE_KINDS,
    PART,
    PLANS,
    SEALED,
    UNITS,
    ArrayLayout,
    array_document,
    array_layout,
    calibration_name,
    check_kinds,
    encoded_dim,
    form_of,
    is_row_kind,
    is_vector_kind,
    parse_kind,
    plain_view,
    record_name,
    thumb_name,
)
from dinocache.places import Where, folder_of
from dinocache.plan import Segment
from dinocache.records import Failure, Header, Part, Record, Seal, StoredObject
from dinocache.remote import in_parallel
from dinocache.zarrs import MOST_DESCRIPTION, NativeArray, open_native

__all__ = ["FailedItem", "FeatureStore", "Presence", "Work"]

T = TypeVar("T")

_THREADS, _WORTH_THREADS = 3, 32 << 20
"""Copies of files of their own go on beside each other; bytes for which it is worth it."""
_CODES_AT_ONCE = 256
"""Rows of int8 that stand beside the floats that they become."""

_RECORD = re.compile(r"(?P<unit>\d{4}-(?:\d{5}|closing))\.(?P<kind>[\w.]+)\.json")
_MOST_PICTURE = 1 << 26
"""Bytes of a small picture, and its px."""
_PLAN = re.compile(r"\d{4}\.json")


def _check_picture(name: str, content: bytes) -> None:
    """Refuse what is no PNG, or becomes much larger than its bytes when it is decoded."""
    if content[:8] != b"\x89PNG\r\n\x1a\n" or content[12:16] != b"IHDR":
        raise StoreDamagedError(f"{name} is no PNG")
    width, height = (int.from_bytes(content[at : at + 4], "big") for at in (16, 20))
    if width * height > _MOST_PICTURE:
        raise StoreDamagedError(f"{name} says {width} x {height} px; a small picture has fewer")


def _read_codes(
    array: ChunkedArray, calibration: Calibration, block: npt.NDArray[Any], row: int
) -> None:
    """Read int8 from a row on, and give them their scales."""
    for first in range(0, len(block), _CODES_AT_ONCE):
        some = block[first : first + _CODES_AT_ONCE]
        calibration.read_into(some, array.read(row + first, row + first + len(some)))


@dataclass(frozen=True, kw_only=True)
class Work:
    """One unit and kind that a store should hold."""

    segment: Segment
    unit: str
    kind: str


@dataclass(frozen=True, kw_only=True)
class FailedItem:
    """An item without features, and why."""

    item_id: str
    kinds: tuple[str, ...]
    failure: Failure


@dataclass(frozen=True, kw_only=True)
class Presence:
    """Whether an item has a kind.

    Attributes:
        present: Whether it has.
        failure: Why not; None also where it was not asked for.
        notes: What a person should know of it.
        made_by: Versions of what made it.
    """

    present: bool
    failure: Failure | None
    notes: tuple[str, ...]
    made_by: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class _Span:
    """Rows that stand together in a store.

    Attributes:
        unit: Whose.
        row: The first.
        n_rows: How many.
    """

    unit: str
    row: int
    n_rows: int


@dataclass(frozen=True, kw_only=True)
class _Spans:
    """All rows of a kind.

    Attributes:
        spans: In order.
        items: (n_items,) number of each item, in order of its rows.
        counts: (n_items,) rows of each.
    """

    spans: list[_Span]
    items: npt.NDArray[np.intp]
    counts: npt.NDArray[np.intp]

    @property
    def n_rows(self) -> int:
        return int(self.counts.sum())

    @cached_property
    def numbers(self) -> npt.NDArray[np.intp]:
        """(n_rows,) number of each row's item."""
        return np.repeat(self.items, self.counts)

    @cached_property
    def _stops(self) -> npt.NDArray[np.intp]:
        return np.cumsum([span.n_rows for span in self.spans], dtype=np.intp)

    def within(self, start: int, stop: int) -> list[tuple[_Span, int, int]]:
        """Give the spans that hold some of all rows, and which rows of each."""
        first = int(np.searchsorted(self._stops, start, "right"))
        found = []
        for number in range(first, len(self.spans)):
            before = int(self._stops[number - 1]) if number else 0
            if before >= stop:
                break
            span = self.spans[number]
            found.append((span, max(start - before, 0), min(stop - before, span.n_rows)))
        return found


class FeatureStore:
    """A store as it stands at the moment of opening, on a disk or below a URL.

    Attributes:
        folder: Where it lies.
        header: What `store.json` says.
        segments: Its plan, in order.
        items: The item table in force.
        items_name: That table's file.
        kinds: Row and native kinds that it has or was told to have.
        part: What it holds of the store that it was copied from; None if it is whole.
    """

    def __init__(self, where: Where, *, before: "FeatureStore | None" = None) -> None:
        """See the class.

        Args:
            where: Its folder: a path or a URL.
            before: The same, as it stood earlier: what never changes is not read again.

        Raises:
            StoreNotFoundError: If there is none.
            StoreDamagedError: If its files are not as they were written.
            StoreError: If it cannot be read now.
        """
        self.folder = folder_of(where)
        self._once_read: dict[str, tuple[Entry | None, Any]] = {}
        if before is not None:
            self._once_read |= before._once_read
        header, seal, part, top, plans, features, native = self._look()
        if header is None:
            raise StoreNotFoundError(
                f"there is no store at {self.folder}: it has no {HEADER}. A store lies at "
                "ROOT/<dataset>/<model>/<resolution>; `dinocache extract` makes one."
            )
        self.header = Header.from_body(header, HEADER)
        self._seal = Seal.from_body(seal or {"units": {}, "plans": {}, "items": ""}, SEALED)
        self.part = None if part is None else Part.from_body(part, PART)
        self.segments = self._read_segments(plans)
        self.items_name, self.items = self._read_items(top)
        self.kinds = self._find_kinds(features, native)
        self._records: dict[tuple[str, str], Record] = {}
        self._on_disk = self._list_records()
        self._files: CommittedFiles = committed_files(self.folder)
        self._arrays: dict[str, ChunkedArray] = {}
        self._checked: set[tuple[str, str]] = set()
        self._calibrations: dict[str, tuple[Calibration, str] | None] = {}
        self._spans: dict[str, _Spans] = {}

    @property
    def path(self) -> Path:
        """Its folder on this machine.

        Raises:
            RequestError: If it lies elsewhere.
        """
        if self.folder.path is None:
            raise RequestError(f"{self.folder} is not on this machine; `dinocache pull` brings it")
        return self.folder.path

    # What is there

    def record(self, unit: str, kind: str) -> Record | None:
        """Give the commit record of one unit and kind; None if it is not committed.

        Args:
            unit: Its name.
            kind: Of a row, an item (`item_cls`) or native.

        Returns:
            The record, or None.

        Raises:
            StoreDamagedError: If there is one but it is damaged, or of another recipe.
        """
        key = unit, kind
        if key not in self._records:
            name = record_name(unit, kind)
            if f"{unit}.{kind}" in self._sealed:
                body = self._sealed[f"{unit}.{kind}"]
            elif key in self._on_disk:
                body = documents.read(self.folder, name)
            else:
                return None
            record = Record.from_body(body, name)
            if (record.unit, record.kind, record.recipe) != (unit, kind, self.header.digest):
                raise StoreDamagedError(f"{name} belongs to another unit or store")
            for path, stored in record.objects.items():
                if not stored.fits(self.header.format):
                    raise StoreDamagedError(
                        f"{name}: {path} has not the digest of format {self.header.format}"
                    )
            self._records[key] = record
        return self._records[key]

    def is_committed(self, unit: str, kind: str) -> bool:
        """Tell whether a unit and kind is done, without reading its record."""
        return f"{unit}.{kind}" in self._sealed or (unit, kind) in self._on_disk

    def work(self, kinds: Iterable[str] | None = None) -> list[Work]:
        """List every unit and kind that the plan asks for, closing units last in their segment.

        Args:
            kinds: Row and native kinds; by default all of the store's.

        Returns:
            Done or not, in order of segments, units, kinds.
        """
        kinds = self.kinds if kinds is None else tuple(kinds)
        closing = [f"{ITEM_PREFIX}{k}" for k in kinds if is_vector_kind(k)]
        return [
            Work(segment=segment, unit=unit, kind=kind)
            for segment in self.segments
            for unit, of_unit in [
                *((u.name, kinds) for u in segment.units),
                (segment.closing_name, closing),
            ]
            for kind in of_unit
            if self.part is None or self.part.covers(unit, kind)
        ]

    def missing(self, kinds: Iterable[str] | None = None) -> list[Work]:
        """List the units and kinds that are not committed."""
        return [w for w in self.work(kinds) if not self.is_committed(w.unit, w.kind)]

    @property
    def is_complete(self) -> bool:
        """Whether the plan covers all items, and every unit of every kind is committed."""
        return bool(self.kinds) and not self.unplanned() and not self.missing()

    def unplanned(self) -> list[str]:
        """List the ids of items in the table that no segment holds yet, in order."""
        planned = {i for segment in self.segments for i in segment.item_ids}
        return [str(i) for i in self.items["item_id"].tolist() if i not in planned]

    def failures(self) -> list[FailedItem]:
        """List the items that failed and were not extracted since.

        Returns:
            One entry an item, in order of the plan; kinds that failed, the first reason.
        """
        failed: dict[str, dict[str, Failure]] = {}
        for segment in self.segments:
            for kind in self.kinds:
                # An item may be of several units; what a segment says of it replaces what those
                # before it said.
                said: dict[str, Failure | None] = {}
                pending: set[str] = set()
                if self.holds(kind):
                    records = [(unit, self.record(unit.name, kind)) for unit in segment.units]
                else:  # a part with the items' means alone
                    closing = self.record(segment.closing_name, f"{ITEM_PREFIX}{kind}")
                    records = [(unit, closing) for unit in segment.units]
                for unit, record in records:
                    first = unit.first_item
                    for item_id in segment.item_ids[first : first + unit.n_items]:
                        if record is None:
                            pending.add(item_id)
                        elif said.get(item_id) is None:
                            said[item_id] = record.failed.get(item_id)
                for item_id, failure in said.items():
                    if failure is not None:
                        failed.setdefault(item_id, {})[kind] = failure
                    elif item_id in failed and item_id not in pending:
                        failed[item_id].pop(kind, None)
        return [
            FailedItem(
                item_id=item_id,
                kinds=tuple(failed[item_id]),
                failure=next(iter(failed[item_id].values())),
            )
            for item_id in dict.fromkeys(i for s in self.segments for i in s.item_ids)
            if failed.get(item_id)
        ]

    def presence(self, kind: str, item_id: str) -> Presence:
        """Say whether an item has a kind, and if not, why.

        Args:
            kind: Of a row, or native.
            item_id: Which item.

        Raises:
            StoreIncompleteError: If that is not known yet.
        """
        absent: Presence | None = None
        for segment in reversed(self.segments):
            position = self._positions[segment.number].get(item_id)
            if position is None:
                continue
            records = [self.record(u.name, kind) for u in segment.units_of(position)]
            known = [record for record in records if record is not None]
            if len(known) < len(records):
                continue
            failures = [r.failed[item_id] for r in known if item_id in r.failed]
            found = Presence(
                present=not failures and not any(item_id in r.not_asked for r in known),
                failure=failures[0] if failures else None,
                notes=known[0].notes.get(item_id, ()),
                made_by=known[0].made_by,
            )
            if found.present:
                return found
            absent = absent or found
        if absent is None:
            raise StoreIncompleteError(
                f"{self.folder}: {kind!r} of item {item_id!r} is not extracted yet; run the same "
                "`dinocache extract` again"
            )
        return absent

    def notes(self) -> dict[str, tuple[str, ...]]:
        """Give what a person should know of items: id -> notes, of those that have any."""
        found: dict[str, tuple[str, ...]] = {}
        for segment in self.segments:
            for unit in segment.units:
                for kind in self.kinds[:1]:  # each kind's record has the same
                    if record := self.record(unit.name, kind):
                        found |= record.notes
        return found

    # What makes features small

    def is_fitted(self, kind: str) -> bool:
        """Tell whether a kind is kept by scales or a basis that were fitted on a sample."""
        form = form_of(kind, self.header.recipe)
        return form is not None and form.is_fitted

    def calibration(self, kind: str) -> Calibration | None:
        """Give what makes a kind small: its offsets, basis, scales, and what they cost.

        Args:
            kind: Of a row; views of an image share that of the image as it is.

        Returns:
            It; None where the kind is kept as it is, or nothing of it is written yet.

        Raises:
            StoreDamagedError: If its document is not as it was written.
        """
        held = self._calibration(kind)
        return None if held is None else held[0]

    def calibration_checksum(self, kind: str) -> str | None:
        """Give the checksum of a kind's calibration: equal ones give comparable components."""
        held = self._calibration(kind)
        return None if held is None else held[1]

    def _calibration(self, kind: str) -> tuple[Calibration, str] | None:
        recipe = self.header.recipe
        kind = plain_view(kind)
        form, name = form_of(kind, recipe), calibration_name(kind)
        if form is None or not form.is_fitted:
            return None
        if self._calibrations.get(kind) is None:
            try:
                content = self.folder.read(name, lambda come: documents.is_whole(come, name))
            except FileNotFoundError:
                return None
            found = Calibration.decode(content, name, form=form, dim=encoded_dim(kind, recipe))
            if (found.kind, found.recipe) != (kind, self.header.digest):
                raise StoreDamagedError(f"{name} belongs to another kind or store")
            self._calibrations[kind] = found, documents.checksum(content)
        return self._calibrations[kind]

    def check_fitted(self, record: Record) -> None:
        """See that rows were made small by the calibration that is there.

        Args:
            record: Of a unit.

        Raises:
            StoreDamagedError: If it is missing, damaged, or another.
        """
        if not self.is_fitted(record.kind):
            return
        checksum = self.calibration_checksum(record.kind)
        if record.fitted is None or record.fitted.calibration != checksum:
            name = calibration_name(plain_view(record.kind))
            said = "missing" if checksum is None else "not the one"
            raise StoreDamagedError(
                f"{name} is {said} that unit {record.unit} was written with; copy it again from "
                "where the store came from"
            )

    # Reading features

    def item_vectors(self, kind: str) -> tuple[list[str], npt.NDArray[np.float32]]:
        """Read one vector an item: the mean over its rows.

        Args:
            kind: `cls`, `mean` or `embed`.

        Returns:
            (ids, (n_items, dim) float32), in order of the item table; items that failed are left
            out.

        Raises:
            StoreIncompleteError: If not every unit is committed.
            StoreDamagedError: If a file is not as it was committed.
        """
        item_kind = f"{ITEM_PREFIX}{kind}"
        self._require_covered(item_kind)
        self._require(kind, [w for w in self.missing([kind]) if w.kind == item_kind])
        dim = array_layout(item_kind, self.header.recipe, self.header.grid).tail[0]
        where: dict[str, tuple[int, int]] = {}
        blocks = []
        self._fetch(item_kind, [segment.closing_name for segment in self.segments])
        for index, segment in enumerate(self.segments):
            record = self.record(segment.closing_name, item_kind)
            absent = record.absent if record else frozenset()
            if len(absent) == len(segment.item_ids):
                blocks.append(np.empty((0, dim), np.float32))
                continue
            blocks.append(self._array(item_kind).read(segment.item_start, segment.item_stop))
            for position, item_id in enumerate(segment.item_ids):
                if item_id not in absent:
                    where[item_id] = index, position
        ids = [str(i) for i in self.items["item_id"] if i in where]
        vectors = np.empty((len(ids), dim), np.float32)
        segments = np.array([where[i][0] for i in ids], np.intp)
        positions = np.array([where[i][1] for i in ids], np.intp)
        for index, block in enumerate(blocks):
            here = segments == index
            vectors[here] = block[positions[here]]
        return ids, vectors

    def rows(
        self, kind: str, item_id: str, start: int = 0, stop: int | None = None
    ) -> npt.NDArray[np.float16 | np.float32]:
        """Read the rows of one item, or some that follow each other.

        Args:
            kind: `cls`, `mean`, `embed`, `dense`, `dense.L05`.
            item_id: Which item.
            start: The first row of it.
            stop: The one behind the last; None for all.

        Returns:
            (rows, dim) or (rows, grid_height, grid_width, dim): float16, or float32 where they are
            kept as float32 or int8; of a basis, the components (`calibration` undoes it).

        Raises:
            RequestError: If the store holds no such item.
            StoreIncompleteError: If the item is not extracted, or failed.
            StoreDamagedError: If a file is not as it was committed.
        """
        return self.segment_rows(kind, *self._find(kind, item_id), start=start, stop=stop)

    def n_rows(self, item_id: str) -> int:
        """Say how many rows an item has in the latest segment that plans it.

        Raises:
            RequestError: If the store holds no such item.
        """
        for segment in reversed(self.segments):
            if (position := self._positions[segment.number].get(item_id)) is not None:
                return segment.item_rows[position]
        raise RequestError(f"{self.folder} holds no item {item_id!r}")

    def layout(self, kind: str) -> ArrayLayout:
        """Say how an array of this store is laid out."""
        return array_layout(kind, self.header.recipe, self.header.grid)

    def all_rows(self, kind: str, part: slice = slice(None)) -> npt.NDArray[Any]:
        """Read the rows of all items, or some of them.

        Args:
            kind: As for `rows`, or `row_coord`.
            part: Which of all rows; without a step.

        Returns:
            (n_rows, ...), in order of the plan: neighbours in the store stay neighbours.

        Raises:
            StoreIncompleteError: If not every unit is committed.
            StoreDamagedError: If a file is not as it was committed.
        """
        spans = self._all_spans(kind)
        start, stop, step = part.indices(spans.n_rows)
        if step != 1:
            raise RequestError(f"rows are read without a step, got one of {step}")
        touched = spans.within(start, stop)
        self._fetch(kind, list(dict.fromkeys(span.unit for span, _, _ in touched)))
        return self._read(kind, [(span.row + low, high - low) for span, low, high in touched])

    def row_items(self, kind: str) -> npt.NDArray[np.intp]:
        """Give the number in the item table of the item of each of `all_rows`: (n_rows,)."""
        return self._all_spans(kind).numbers

    def _all_spans(self, kind: str) -> "_Spans":
        self._require_covered(kind)
        self._require(kind, [w for w in self.missing([kind]) if w.kind == kind])
        if kind not in self._spans:
            self._spans[kind] = self._find_spans(kind)
        return self._spans[kind]

    def _find_spans(self, kind: str) -> "_Spans":
        """Find the runs of rows of items that are present, the latest segment of each."""
        index = pd.Index(self.items["item_id"].astype(str))
        owner = np.full(len(index), -1)
        numbers_of = []
        for number, segment in enumerate(self.segments):
            numbers = index.get_indexer(pd.Index(segment.item_ids))
            absent: set[str] = set()
            for unit in segment.units:
                record = self.record(unit.name, kind)
                absent |= record.absent if record else set()
            present = numbers >= 0
            if absent:
                present &= ~np.isin(np.array(segment.item_ids), list(absent))
            owner[numbers[present]] = number
            numbers_of.append(numbers)
        spans: list[_Span] = []
        found = [(np.empty(0, np.intp), np.empty(0, np.intp))]
        for number, segment in enumerate(self.segments):
            rows = np.array(segment.item_rows, np.intp)
            for unit in segment.units:
                some = slice(unit.first_item, unit.first_item + unit.n_items)
                counts = rows[some] if unit.n_items > 1 else np.array([unit.n_rows], np.intp)
                items = numbers_of[number][some]
                ours = (items >= 0) & (owner[items] == number)
                if ours.all():
                    row, n_rows = unit.row_start, unit.n_rows
                    spans.append(_Span(unit=unit.name, row=row, n_rows=n_rows))
                    found.append((items, counts))
                    continue
                starts = unit.row_start + np.concatenate([[0], np.cumsum(counts)])
                edges = np.flatnonzero(np.diff(ours, prepend=False, append=False))
                for low, high in edges.reshape(-1, 2).tolist():
                    row, stop = int(starts[low]), int(starts[high])
                    spans.append(_Span(unit=unit.name, row=row, n_rows=stop - row))
                found.append((items[ours], counts[ours]))
        items, counts = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return _Spans(spans=spans, items=items, counts=counts)

    def segment_rows(
        self,
        kind: str,
        segment: Segment,
        position: int,
        *,
        start: int = 0,
        stop: int | None = None,
        stored: bool = False,
    ) -> npt.NDArray[Any]:
        """Read the rows of one item of one segment, whose units are committed.

        Args:
            kind: As for `rows`.
            segment: Which.
            position: The item's within the segment.
            start: The first row of the item.
            stop: The one behind the last; None for all.
            stored: Whether they are to be as they stand, int8 without their scales.

        Returns:
            As `rows`.

        Raises:
            StoreDamagedError: If a file is not as it was committed.
        """
        stop = segment.item_rows[position] if stop is None else stop
        touched: list[str] = []
        pieces: list[tuple[int, int]] = []
        at = 0
        for unit in segment.units_of(position):
            row, count = segment.rows_within(unit, position)
            low, high = max(start - at, 0), min(stop - at, count)
            if low < high:
                touched.append(unit.name)
                pieces.append((row + low, high - low))
            at += count
        self._fetch(kind, touched)
        return self._read(kind, pieces, stored=stored)

    def stored_rows(self, kind: str, item_id: str) -> npt.NDArray[Any]:
        """Read the rows of one item as they stand, int8 without their scales; see `rows`."""
        return self.segment_rows(kind, *self._find(kind, item_id), stored=True)

    def unit_rows(
        self, kind: str, unit: str, row: int, n_rows: int, *, stored: bool = False
    ) -> npt.NDArray[Any]:
        """Read rows of a committed unit by their numbers in the store; all must be present.

        Args:
            kind: As for `rows`.
            unit: Its name.
            row: The first.
            n_rows: How many.
            stored: Whether they are to be as they stand, int8 without their scales.

        Returns:
            (n_rows, ...), as `rows`.

        Raises:
            StoreDamagedError: If a file is not as it was committed.
        """
        self._fetch(kind, [unit])
        return self._read(kind, [(row, n_rows)], stored=stored)

    def _read(
        self, kind: str, pieces: Sequence[tuple[int, int]], *, stored: bool = False
    ) -> npt.NDArray[Any]:
        """Read (first row, rows) of an array, one behind the other, whose files were fetched."""
        array, n_rows = self._array(kind), sum(count for _, count in pieces)
        calibration = None
        if array.dtype == np.int8 and not stored:
            calibration = self.calibration(kind)
        block = array.room(n_rows, None if calibration is None else np.float32)
        tasks: list[tuple[npt.NDArray[Any], int]] = []
        at, at_once = 0, self.layout(kind).file_rows
        for row, count in pieces:
            stops = [*range(row - row % at_once + at_once, row + count, at_once), row + count]
            for first, stop in pairwise([row, *stops]):
                tasks.append((block[at : at + stop - first], first))
                at += stop - first

        def fill(task: tuple[npt.NDArray[Any], int]) -> None:
            some, first = task
            if calibration is None:
                array.read_into(some, first)
            else:
                _read_codes(array, calibration, some, first)

        if block.nbytes < _WORTH_THREADS:
            for task in tasks:
                fill(task)
        else:
            with ThreadPoolExecutor(_THREADS) as pool:
                list(pool.map(fill, tasks))
        return block

    def native(self, kind: str, item_id: str) -> tuple[npt.NDArray[Any], dict[str, Any]]:
        """Read an item's own grid.

        Args:
            kind: `image` or `mask`.
            item_id: Which item.

        Returns:
            ((C, Z, Y, X) array, attributes: `windows`, and what `Geometry.from_attributes` reads).

        Raises:
            RequestError: If the store holds no such item.
            StoreIncompleteError: If the item is not extracted, or failed, or has no such kind.
            StoreDamagedError: If a file is not as it was committed.
        """
        found = self.native_array(kind, item_id)
        return found.read(), found.attributes

    def native_array(self, kind: str, item_id: str) -> NativeArray:
        """Open an item's own grid, to be read by its rows; arguments and errors as of `native`."""
        segment, position = self._find(kind, item_id)
        name = f"{NATIVE}/{kind}/{segment.item_start + position}"
        units = [u.name for u in segment.units_of(position)]
        self._fetch(kind, units, within=f"{name}/")
        return open_native(self._files, name, segment.item_rows[position])

    def coords(self, item_id: str) -> tuple[npt.NDArray[np.float64], tuple[tuple[str, str], ...]]:
        """Read where the rows of one item stand.

        Args:
            item_id: Which item.

        Returns:
            ((rows, k) float64, a (name, unit) for each of its k columns).

        Raises:
            RequestError: If the store holds no such item, or its reader gives no coordinates.
            StoreIncompleteError: If the item is not extracted, or failed.
            StoreDamagedError: If a file is not as it was committed.
        """
        columns = self.header.recipe.reader.columns
        if not columns:
            raise RequestError(f"{self.folder}: each item is one row, which has no coordinates")
        found: npt.NDArray[Any] = self.segment_rows(COORD, *self._find(COORD, item_id))
        return found, columns

    # Inside

    def _require(self, kind: str, missing: Sequence[Work]) -> None:
        encoder = self.header.recipe.encoder
        parsed = parse_kind(kind)
        if is_vector_kind(kind) and parsed and parsed.base not in encoder.vectors:
            raise StoreIncompleteError(
                f"{self.folder} has no {kind!r}, and its encoder, {encoder.name}, gives none "
                f"(it gives {', '.join((*encoder.vectors, 'dense'))})"
            )
        if kind not in self.kinds:
            raise StoreIncompleteError(
                f"{self.folder} has no {kind!r} (it has {', '.join(self.kinds) or 'nothing yet'}); "
                f"add it with `dinocache extract ... --features {kind}`"
            )
        if missing or self.unplanned():
            total = len(self.work([kind]))
            done = total - len(self.missing([kind]))
            raise StoreIncompleteError(
                f"{self.folder}: {done} of {total} units of {kind!r} are extracted; "
                "run the same `dinocache extract` again to do the rest"
            )

    def holds(self, kind: str) -> bool:
        """Tell whether a kind, as stored, is to be here; some of its units may still not be."""
        return self.part is None or self.part.kinds is None or kind in self.part.kinds

    def _require_covered(self, kind: str) -> None:
        if self.part is not None and not self.holds(kind):
            raise StoreIncompleteError(
                f"{self.folder} is a part of the store {self.part.of}, without {kind!r} (it has "
                f"{', '.join(self.part.kinds or ())}); `dinocache pull` from there brings more"
            )

    def _find(self, kind: str, item_id: str) -> tuple[Segment, int]:
        """Find the latest segment in which an item is present."""
        self._require_covered(kind)
        held = False
        for segment in reversed(self.segments):
            position = self._positions[segment.number].get(item_id)
            if position is None:
                continue
            held = True
            records = [self.record(u.name, kind) for u in segment.units_of(position)]
            if all(r is not None and item_id not in r.absent for r in records):
                return segment, position
        if not held:
            raise RequestError(f"{self.folder} holds no item {item_id!r}")
        raise StoreIncompleteError(
            f"{self.folder} has no {kind!r} of item {item_id!r}: it is not extracted yet, it "
            "failed (`dinocache failures` says why), or it has none"
        )

    @cached_property
    def _positions(self) -> dict[int, dict[str, int]]:
        return {s.number: {item: i for i, item in enumerate(s.item_ids)} for s in self.segments}

    def thumbnail(self, item_id: str) -> bytes | None:
        """Read the small picture of a slide, with the tissue's outline and the tiles kept.

        Args:
            item_id: Which slide.

        Returns:
            A PNG; None if the item has none.

        Raises:
            RequestError: If the store holds no such item.
            StoreIncompleteError: If the item is not extracted.
            StoreDamagedError: If the file is not as it was committed.
        """
        if COORD not in self.kinds:
            return None
        segment, position = self._find(COORD, item_id)
        name = thumb_name(segment.item_start + position)
        unit = segment.units_of(position)[0].name
        record = self.record(unit, COORD)
        if record is None or name not in record.objects:
            return None
        self._fetch(COORD, [unit], within=name)
        check_size(name, record.objects[name].bytes, _MOST_PICTURE)
        content = self._files.path(name).read_bytes()
        if not record.objects[name].is_of(content):
            raise StoreDamagedError(
                f"{name} is damaged; run `dinocache verify` to see what else is, and copy it again "
                "from where the store came from"
            )
        _check_picture(name, content)
        return content

    def _array(self, kind: str) -> ChunkedArray:
        if kind not in self._arrays:
            document = self._read_document(kind)
            self._arrays[kind] = open_array(self._files, f"{FEATURES}/{kind}", document)
        return self._arrays[kind]

    def _read_document(self, kind: str) -> bytes:
        """Read an array's `zarr.json`, which must be what recipe and grid ask for, but its length.

        The length may be ahead of the plan that was read: another process may have appended since.
        """
        name = f"{FEATURES}/{kind}/zarr.json"
        layout = array_layout(kind, self.header.recipe, self.header.grid)

        def is_ours(content: bytes) -> bool:
            try:
                length = json.loads(content)["shape"][0]
                return type(length) is int and content == array_document(layout, length)
            except (ValueError, KeyError, TypeError, IndexError, RecursionError):
                return False

        try:
            content = self.folder.read(name, is_ours, most=MOST_DESCRIPTION)
        except FileNotFoundError:
            content = b""
        if not is_ours(content):
            raise StoreDamagedError(
                f"{name} is missing or damaged; run `dinocache verify` to see what else is, and "
                "copy it again from where the store came from"
            )
        return content

    def _fetch(self, kind: str, units: Sequence[str], within: str = "") -> None:
        """See once that files of units can be read: zarr reads a missing one as NaN.

        Args:
            kind: Which.
            units: Their names.
            within: How the names of the files begin.
        """
        wanted: dict[str, StoredObject] = {}
        fresh = [unit for unit in units if (unit, kind + within) not in self._checked]
        for unit in fresh:
            if record := self.record(unit, kind):
                self.check_fitted(record)
                wanted |= {n: o for n, o in record.objects.items() if n.startswith(within)}
        by_parts = is_row_kind(kind) and not is_vector_kind(kind)
        (self._files.expect if by_parts else self._files.fetch)(wanted)
        for name, stored in wanted.items():
            # Chunks carry checksums of their own; their description does not.
            described = name.endswith("/zarr.json")
            if described:
                check_size(name, stored.bytes, MOST_DESCRIPTION)
            content = self._files.path(name).read_bytes() if described else b""
            if described and not stored.is_of(content):
                raise StoreDamagedError(f"{name} is damaged: it is not what was committed")
        self._checked.update((unit, kind + within) for unit in fresh)

    def _look(
        self,
    ) -> tuple[Any, ...]:
        """Read header, seal and part, and list what else there is; at once from a server."""

        def read(name: str) -> documents.Body | None:
            try:
                return documents.read(self.folder, name)
            except FileNotFoundError:
                return None

        tasks: list[Callable[[], Any]] = [
            lambda: read(HEADER),
            lambda: read(SEALED),
            lambda: read(PART),
            *(lambda name=name: self.folder.list(name) for name in ("", PLANS, FEATURES, NATIVE)),
        ]
        if self.folder.path is None:
            return tuple(in_parallel(lambda task: task(), tasks))
        return tuple(task() for task in tasks)

    @property
    def _sealed(self) -> Mapping[str, Any]:
        """Bodies of the records that the seal gathers."""
        return self._seal.units

    def _read_segments(self, listed: Listing) -> tuple[Segment, ...]:
        # A server that lists nothing leaves what the seal names.
        names = sorted({n for n in (*listed.files, *self._seal.plans) if _PLAN.fullmatch(n)})

        def read(name: str) -> Segment:
            return self._once(f"{PLANS}/{name}", listed.files.get(name), self._read_segment)

        if self.folder.path is None:
            segments = in_parallel(read, names)
        else:
            segments = [read(name) for name in names]
        for segment, name in zip(segments, names, strict=True):
            if segment.recipe != self.header.digest:
                raise StoreDamagedError(f"{PLANS}/{name} belongs to another store")
            if f"{segment.number:04d}.json" != name:
                raise StoreDamagedError(f"{PLANS}/{name} says that it is segment {segment.number}")
        for before, segment in pairwise(segments):
            if segment.row_start < before.row_stop or segment.item_start < before.item_stop:
                raise StoreDamagedError(
                    f"{PLANS}/{segment.number:04d}.json begins at row {segment.row_start} and "
                    f"item {segment.item_start}, before the segment before it ends"
                )
        return tuple(segments)

    def _read_segment(self, name: str) -> Segment:
        return Segment.from_body(documents.read(self.folder, name), name)

    def _once(self, name: str, looks: Entry | None, read: Callable[[str], T]) -> T:
        """Read a file that is never changed, unless it was read before and looks the same."""
        known = self._once_read.get(name)
        if known is None or known[0] != looks:
            try:
                self._once_read[name] = known = looks, read(name)
            except FileNotFoundError as exc:
                raise StoreDamagedError(
                    f"{name} is missing, though {SEALED} names it; copy it again from where the "
                    "store came from"
                ) from exc
        found: T = known[1]
        return found

    def _read_items(self, top: Listing) -> tuple[str, pd.DataFrame]:
        names = [n for n in (*top.files, self._seal.items) if is_table_name(n)]
        if not names:
            columns = ["item_id", "path", "group"]
            return "", pd.DataFrame({c: pd.Series(dtype="string") for c in columns})
        name = max(names)
        return name, self._once(name, top.files.get(name), self._read_table)

    def _read_table(self, name: str) -> pd.DataFrame:
        content = self.folder.read(name, lambda come: is_named_by(come, name))
        table = from_parquet(content, name)
        for column in ("path", "group"):
            if column not in table:
                raise StoreDamagedError(f"{name} is no table of items: it has no column {column!r}")
        return table

    def _find_kinds(self, features: Listing, native: Listing) -> tuple[str, ...]:
        """List the kinds whose arrays exist, or that the seal knows, in the usual order."""
        listed = [f"{FEATURES}/{name}" for name in features.folders]
        listed += [f"{NATIVE}/{name}" for name in native.folders if name in NATIVE_KINDS]
        if self.folder.path is not None:
            listed = [name for name in listed if self.folder.exists(f"{name}/zarr.json")]
        sealed = (name.partition(".")[2] for name in self._sealed)
        # A part may have the items' means alone.
        names = {
            name.removeprefix(ITEM_PREFIX)
            for name in (*(name.partition("/")[2] for name in listed), *sealed)
        }
        found = [n for n in names if is_row_kind(n) or n in (COORD, *NATIVE_KINDS)]
        return check_kinds(found) if found else ()

    def _list_records(self) -> frozenset[tuple[str, str]]:
        if self._sealed and all(f"{w.unit}.{w.kind}" in self._sealed for w in self.work()):
            return frozenset()
        matches = (_RECORD.fullmatch(name) for name in self.folder.list(UNITS).files)
        return frozenset((m["unit"], m["kind"]) for m in matches if m)
