"""Reading a store: only what is committed, and only as it was written.

See docs/store-format.md. Needs neither torch nor any reader of images.
"""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd

from dinocache import documents
from dinocache.chunks import ChunkedArray, open_array
from dinocache.errors import (
    RequestError,
    StoreDamagedError,
    StoreIncompleteError,
    StoreNotFoundError,
)
from dinocache.items import from_parquet
from dinocache.layout import (
    COORD,
    FEATURES,
    HEADER,
    ITEM_PREFIX,
    NATIVE,
    PLANS,
    SEALED,
    UNITS,
    array_document,
    array_layout,
    is_vector_kind,
    parse_kind,
    record_name,
    stored_kinds,
)
from dinocache.plan import Segment
from dinocache.records import Failure, Header, Record

__all__ = ["FailedItem", "FeatureStore", "Work"]

T = TypeVar("T")

_RECORD = re.compile(r"(?P<unit>\d{4}-(?:\d{5}|closing))\.(?P<kind>[\w.]+)\.json")
_PLAN = re.compile(r"\d{4}\.json")


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


class FeatureStore:
    """A store as it stands on the disk at the moment of opening.

    Attributes:
        path: Its folder.
        header: What `store.json` says.
        segments: Its plan, in order.
        items: The item table in force.
        items_name: That table's file.
        kinds: Row and native kinds that it has or was told to have.
    """

    def __init__(self, path: Path, *, before: "FeatureStore | None" = None) -> None:
        """See the class.

        Args:
            path: Its folder.
            before: The same, as it stood earlier: what never changes is not read again.

        Raises:
            StoreNotFoundError: If there is none.
            StoreDamagedError: If its files are not as they were written.
        """
        if not (path / HEADER).is_file():
            raise StoreNotFoundError(
                f"there is no store at {path}: it has no {HEADER}. A store lies at "
                "ROOT/<dataset>/<model>/<resolution>; `dinocache extract` makes one."
            )
        self.path = path
        self._once_read: dict[str, tuple[tuple[int, int], Any]] = {}
        if before is not None:
            self._once_read |= before._once_read
        self.header = Header.from_body(documents.read(path / HEADER, HEADER), HEADER)
        self.segments = self._read_segments()
        self.items_name, self.items = self._read_items()
        self.kinds = stored_kinds(path)
        self._sealed = self._read_sealed()
        self._records: dict[tuple[str, str], Record] = {}
        self._on_disk = self._list_records()
        self._arrays: dict[str, ChunkedArray] = {}
        self._checked: set[tuple[str, str]] = set()

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
                body = documents.read(self.path / name, name)
            else:
                return None
            record = Record.from_body(body, name)
            if (record.unit, record.kind, record.recipe) != (unit, kind, self.header.digest):
                raise StoreDamagedError(f"{name} belongs to another unit or store")
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
                for unit in segment.units:
                    record = self.record(unit.name, kind)
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

    def notes(self) -> dict[str, tuple[str, ...]]:
        """Give what a person should know of items: id -> notes, of those that have any."""
        found: dict[str, tuple[str, ...]] = {}
        for segment in self.segments:
            for unit in segment.units:
                for kind in self.kinds[:1]:  # each kind's record has the same
                    if record := self.record(unit.name, kind):
                        found |= record.notes
        return found

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
        self._require(kind, [w for w in self.missing([kind]) if w.kind == item_kind])
        dim = array_layout(item_kind, self.header.recipe, self.header.grid).tail[0]
        where: dict[str, tuple[int, int]] = {}
        blocks = []
        for index, segment in enumerate(self.segments):
            record = self.record(segment.closing_name, item_kind)
            absent = record.absent if record else frozenset()
            self._check_objects(segment.closing_name, item_kind)
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

    def rows(self, kind: str, item_id: str) -> npt.NDArray[np.float16]:
        """Read the rows of one item.

        Args:
            kind: `cls`, `mean`, `embed`, `dense`, `dense.L05`.
            item_id: Which item.

        Returns:
            (rows, dim) or (rows, grid_height, grid_width, dim) float16; may be a read-only view.

        Raises:
            RequestError: If the store holds no such item.
            StoreIncompleteError: If the item is not extracted, or failed.
            StoreDamagedError: If a file is not as it was committed.
        """
        return self.segment_rows(kind, *self._find(kind, item_id))

    def segment_rows(self, kind: str, segment: Segment, position: int) -> npt.NDArray[np.float16]:
        """Read the rows of one item of one segment, whose units are committed.

        Args:
            kind: As for `rows`.
            segment: Which.
            position: The item's within the segment.

        Returns:
            As `rows`.

        Raises:
            StoreDamagedError: If a file is not as it was committed.
        """
        parts = []
        for unit in segment.units_of(position):
            self._check_objects(unit.name, kind)
            row, count = segment.rows_within(unit, position)
            parts.append(self._array(kind).read(row, row + count))
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

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
        import zarr

        segment, position = self._find(kind, item_id)
        name = f"{NATIVE}/{kind}/{segment.item_start + position}"
        for unit in segment.units_of(position):
            self._check_objects(unit.name, kind, within=f"{name}/")
        try:
            array = zarr.open_array(self.path / name, mode="r")
            return np.asarray(array[...]), dict(array.attrs)
        except (ValueError, OSError, RuntimeError, KeyError) as exc:
            raise StoreDamagedError(f"{name} is damaged: {exc}") from exc

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
            raise RequestError(f"{self.path}: each item is one row, which has no coordinates")
        found: npt.NDArray[Any] = self.segment_rows(COORD, *self._find(COORD, item_id))
        return found, columns

    # Inside

    def _require(self, kind: str, missing: Sequence[Work]) -> None:
        encoder = self.header.recipe.encoder
        parsed = parse_kind(kind)
        if is_vector_kind(kind) and parsed and parsed.base not in encoder.vectors:
            raise StoreIncompleteError(
                f"{self.path} has no {kind!r}, and its encoder, {encoder.name}, gives none "
                f"(it gives {', '.join((*encoder.vectors, 'dense'))})"
            )
        if kind not in self.kinds:
            raise StoreIncompleteError(
                f"{self.path} has no {kind!r} (it has {', '.join(self.kinds) or 'nothing yet'}); "
                f"add it with `dinocache extract ... --features {kind}`"
            )
        if missing or self.unplanned():
            total = len(self.work([kind]))
            done = total - len(self.missing([kind]))
            raise StoreIncompleteError(
                f"{self.path}: {done} of {total} units of {kind!r} are extracted; "
                "run the same `dinocache extract` again to do the rest"
            )

    def _find(self, kind: str, item_id: str) -> tuple[Segment, int]:
        """Find the latest segment in which an item is present."""
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
            raise RequestError(f"{self.path} holds no item {item_id!r}")
        raise StoreIncompleteError(
            f"{self.path} has no {kind!r} of item {item_id!r}: it is not extracted yet, it failed "
            "(`dinocache failures` says why), or it has none"
        )

    @cached_property
    def _positions(self) -> dict[int, dict[str, int]]:
        return {s.number: {item: i for i, item in enumerate(s.item_ids)} for s in self.segments}

    def _array(self, kind: str) -> ChunkedArray:
        if kind not in self._arrays:
            self._check_document(kind)
            self._arrays[kind] = open_array(self.path / FEATURES / kind)
        return self._arrays[kind]

    def _check_document(self, kind: str) -> None:
        """See that an array's `zarr.json` is the one that recipe and grid ask for, but its length.

        The length may be ahead of the plan that was read: another process may have appended since.
        """
        name = f"{FEATURES}/{kind}/zarr.json"
        layout = array_layout(kind, self.header.recipe, self.header.grid)
        try:
            content = documents.content_of(self.path / name)
            length = json.loads(content)["shape"][0]
            whole = type(length) is int and content == array_document(layout, length)
        except (OSError, ValueError, KeyError, TypeError, IndexError):
            whole = False
        if not whole:
            raise StoreDamagedError(
                f"{name} is missing or damaged; run `dinocache verify` to see what else is, and "
                "copy it again from where the store came from"
            )

    def _check_objects(self, unit: str, kind: str, within: str = "") -> None:
        """See once that a unit's files exist in their sizes: zarr reads a missing one as NaN."""
        record = self.record(unit, kind)
        if record is None or (unit, kind + within) in self._checked:
            return
        for name, stored in record.objects.items():
            if not name.startswith(within):
                continue
            path = self.path / name
            size = path.stat().st_size if path.is_file() else None
            if size != stored.bytes:
                came = "is missing" if size is None else f"has {size} bytes, not {stored.bytes}"
                raise StoreDamagedError(
                    f"{name} {came}; run `dinocache verify` to see what else is, and copy it again "
                    "from where the store came from"
                )
            # Chunks carry checksums of their own; their description does not.
            described = name.endswith("/zarr.json")
            if described and documents.checksum(documents.content_of(path)) != stored.crc32c:
                raise StoreDamagedError(f"{name} is damaged: its checksum does not match")
        self._checked.add((unit, kind + within))

    def _read_segments(self) -> tuple[Segment, ...]:
        folder = self.path / PLANS
        names = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
        segments = []
        for name in (f"{PLANS}/{n}" for n in names if _PLAN.fullmatch(n)):
            segment = self._once(name, self._read_segment)
            if segment.recipe != self.header.digest:
                raise StoreDamagedError(f"{name} belongs to another store")
            segments.append(segment)
        return tuple(segments)

    def _read_segment(self, name: str) -> Segment:
        return Segment.from_body(documents.read(self.path / name, name), name)

    def _once(self, name: str, read: Callable[[str], T]) -> T:
        """Read a file that is never changed, unless it was read before and looks the same."""
        status = (self.path / name).stat()
        looks = status.st_size, status.st_mtime_ns
        known = self._once_read.get(name)
        if known is None or known[0] != looks:
            self._once_read[name] = known = looks, read(name)
        found: T = known[1]
        return found

    def _read_items(self) -> tuple[str, pd.DataFrame]:
        name = _latest_items(self.path)
        if name is None:
            columns = ["item_id", "path", "group"]
            return "", pd.DataFrame({c: pd.Series(dtype="string") for c in columns})
        return name, self._once(name, self._read_table)

    def _read_table(self, name: str) -> pd.DataFrame:
        return from_parquet(documents.content_of(self.path / name), name)

    def _read_sealed(self) -> dict[str, Any]:
        path = self.path / SEALED
        if not path.is_file():
            return {}
        units = documents.read(path, SEALED).get("units")
        return units if isinstance(units, dict) else {}

    def _list_records(self) -> frozenset[tuple[str, str]]:
        if self._sealed and all(f"{w.unit}.{w.kind}" in self._sealed for w in self.work()):
            return frozenset()
        folder = self.path / UNITS
        names = (p.name for p in folder.iterdir()) if folder.is_dir() else iter(())
        matches = (_RECORD.fullmatch(name) for name in names)
        return frozenset((m["unit"], m["kind"]) for m in matches if m)


def _latest_items(path: Path) -> str | None:
    """Name the item table in force.

    Args:
        path: The store.

    Returns:
        The file's name; None if there is none yet.
    """
    return max((p.name for p in path.glob("items-????-*.parquet")), default=None)
