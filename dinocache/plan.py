"""Which item is in which unit and in which rows: a pure function of the row counts and the grid.

See docs/store-format.md, "Plan segments". Nothing here looks at a clock, at free memory or at the
number of workers, so that whoever plans the same items makes the same units. What the items' files
looked like when they were planned is written beside them and changes none.
"""

import bisect
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from dinocache.documents import Body
from dinocache.errors import RequestError, StoreDamagedError
from dinocache.stamps import Stamp

__all__ = ["Grid", "Segment", "Unit", "make_grid", "make_segment"]

MAX_CHUNK_ROWS = 4096
MIN_UNIT_ROWS = 16
DEFAULT_MIN_UNIT_ROWS = 64
UNITS_AIMED_AT = 64
MAX_WASTE = 0.03
_MOST_ROWS = 1 << 48
"""Of a store: no number above is ever reached by counting."""
MAX_ITEM_ROWS_IN_A_UNIT = 4096
"""A larger item is shared by several units; a smaller one is decoded once, in one."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """What fixes the rows of a store for its whole life.

    Attributes:
        chunk_rows: Rows in a chunk of `cls` and `mean`; every unit starts on a multiple of it.
        item_chunk_rows: Rows in a chunk of `item_cls` and `item_mean`.
        unit_rows: Rows that a unit is filled up to.
        batch: Rows that pass through the encoder together; the last of a unit may be fewer.
        codec: That compresses the features' chunks.
    """

    chunk_rows: int
    item_chunk_rows: int
    unit_rows: int
    batch: int
    codec: Literal["none", "zstd", "blosc"] = "none"

    def __post_init__(self) -> None:
        """Refuse what no plan was made on: a store that somebody else made may say anything."""
        for what in ("chunk_rows", "item_chunk_rows", "unit_rows"):
            if not 1 <= getattr(self, what) <= MAX_CHUNK_ROWS:
                raise ValueError(f"{what} is {getattr(self, what)}, not 1 to {MAX_CHUNK_ROWS}")
        if not 1 <= self.batch <= _MOST_ROWS:
            raise ValueError(f"batch is {self.batch}")


@dataclass(frozen=True, kw_only=True)
class Unit:
    """Whole items, or a range of one large item, in consecutive rows.

    Attributes:
        name: Segment and number, as `0001-00007`.
        first_item: Position of its first item within the segment.
        n_items: How many items it holds (1 where it is a range of one).
        row_start: Its first row in the store.
        n_rows: How many rows.
        offset: First row within the item, for a range of one.
    """

    name: str
    first_item: int
    n_items: int
    row_start: int
    n_rows: int
    offset: int = 0


@dataclass(frozen=True, kw_only=True)
class Segment:
    """Items planned together.

    Attributes:
        number: From 1.
        recipe: Digest of the store's recipe.
        row_start: First row, a multiple of `chunk_rows`.
        item_start: First position on the item axis, a multiple of `item_chunk_rows`.
        item_ids: In order.
        item_rows: Rows of each item.
        stamps: What the files of each item looked like when it was planned; None where they were
            missing.
        units: In order of rows.
    """

    number: int
    recipe: str
    row_start: int
    item_start: int
    item_ids: tuple[str, ...]
    item_rows: tuple[int, ...]
    stamps: tuple[Stamp | None, ...]
    units: tuple[Unit, ...]

    @property
    def row_stop(self) -> int:
        """The row behind its last."""
        last = self.units[-1]
        return last.row_start + last.n_rows

    @property
    def item_stop(self) -> int:
        """The position behind its last on the item axis."""
        return self.item_start + len(self.item_ids)

    @property
    def closing_name(self) -> str:
        """Name of the unit that writes the `item_*` arrays."""
        return f"{self.number:04d}-closing"

    def pieces(self, unit: Unit) -> Iterator[tuple[int, int, int, int]]:
        """List what a unit holds.

        Args:
            unit: One of this segment.

        Yields:
            (position of the item in the segment, its first row in the store, first row within the
            item, rows), in order.
        """
        row = unit.row_start
        for item in range(unit.first_item, unit.first_item + unit.n_items):
            rows = self.item_rows[item] if unit.n_items > 1 else unit.n_rows
            yield item, row, unit.offset, rows
            row += rows

    def units_of(self, item: int) -> list[Unit]:
        """List the units that hold an item, by its position in the segment; mostly one."""
        # The first unit behind it, then back over those that begin at or before it.
        stop = bisect.bisect_right(self.units, item, key=lambda unit: unit.first_item)
        start = stop - 1
        while start > 0 and self.units[start - 1].first_item == self.units[stop - 1].first_item:
            start -= 1
        return list(self.units[start:stop])

    def rows_within(self, unit: Unit, item: int) -> tuple[int, int]:
        """Give (first row in the store, rows) of an item in one of its units."""
        if unit.n_items == 1:
            return unit.row_start, unit.n_rows
        starts = self._row_starts
        return unit.row_start + starts[item] - starts[unit.first_item], self.item_rows[item]

    @cached_property
    def _row_starts(self) -> list[int]:
        """Rows of all items before each item, gaps between units not counted."""
        return list(itertools.accumulate(self.item_rows, initial=0))

    def to_body(self) -> Body:
        """Give the document that stands for it."""
        return {
            "segment": self.number,
            "recipe": self.recipe,
            "row_start": self.row_start,
            "item_start": self.item_start,
            "items": [list(pair) for pair in zip(self.item_ids, self.item_rows, strict=True)],
            "stamps": [None if stamp is None else stamp.to_json() for stamp in self.stamps],
            "units": [
                [u.first_item, u.n_items, u.row_start, u.n_rows, u.offset] for u in self.units
            ],
        }

    @classmethod
    def from_body(cls, body: Body, name: str) -> "Segment":
        """Read the document back.

        Args:
            body: As `to_body` gives it.
            name: The file, for messages.

        Returns:
            The segment.

        Raises:
            StoreDamagedError: If a field is missing or of another type, or the units do not hold
                the items one after the other.
        """
        try:
            number = _count(body["segment"], 1)
            if len(body["stamps"]) != len(body["items"]):
                raise ValueError(f"{len(body['items'])} items, {len(body['stamps'])} stamps")
            segment = cls(
                number=number,
                recipe=str(body["recipe"]),
                row_start=_count(body["row_start"], 0),
                item_start=_count(body["item_start"], 0),
                item_ids=tuple(str(item_id) for item_id, _ in body["items"]),
                item_rows=tuple(_count(rows, 1) for _, rows in body["items"]),
                stamps=tuple(None if s is None else Stamp.from_json(s) for s in body["stamps"]),
                units=tuple(
                    Unit(
                        name=f"{number:04d}-{index:05d}",
                        first_item=_count(first, 0),
                        n_items=_count(items, 1),
                        row_start=_count(row, 0),
                        n_rows=_count(rows, 1),
                        offset=_count(offset, 0),
                    )
                    for index, (first, items, row, rows, offset) in enumerate(body["units"])
                ),
            )
            _check_units(segment)
        except (KeyError, TypeError, ValueError) as exc:
            raise StoreDamagedError(f"{name} is not a plan segment: {exc}") from exc
        return segment


def _count(value: object, least: int) -> int:
    """Let through a number of rows or items, or a place among them."""
    if type(value) is not int or not least <= value <= _MOST_ROWS:
        raise ValueError(f"{value!r:.40} is no number from {least} to {_MOST_ROWS}")
    return value


def _check_units(segment: Segment) -> None:
    """See that units hold all items one after the other, each row once, in rising rows."""
    if len(set(segment.item_ids)) != len(segment.item_ids):
        raise ValueError("an item stands in it twice")
    item, within, row = 0, 0, segment.row_start
    for unit in segment.units:
        rows = segment.item_rows[item : item + unit.n_items]
        whole = unit.offset == within == 0 and unit.n_rows == sum(rows)
        part = unit.n_items == 1 and unit.offset == within and within + unit.n_rows <= sum(rows)
        if unit.first_item != item or len(rows) != unit.n_items or not (whole or part):
            raise ValueError(f"unit {unit.name} does not hold the items behind those before it")
        if unit.n_rows > MAX_ITEM_ROWS_IN_A_UNIT or unit.row_start < row:
            raise ValueError(f"unit {unit.name} has rows {unit.row_start} and {unit.n_rows} more")
        within = 0 if whole else (within + unit.n_rows) % sum(rows)
        item, row = item + (unit.n_items if within == 0 else 0), unit.row_start + unit.n_rows
    if not segment.units or item != len(segment.item_ids) or row > _MOST_ROWS:
        raise ValueError(f"its units hold {item} of {len(segment.item_ids)} items")


def make_grid(item_rows: Sequence[int], *, unit_rows: int | None, batch: int) -> Grid:
    """Choose the grid of a new store.

    Args:
        item_rows: Rows of each item of the first segment, in order.
        unit_rows: Rows a unit, a power of two; None aims at 64 units or more of 64 to 4,096 rows.
        batch: Rows a batch.

    Returns:
        The grid; its chunks waste at most 3% of the rows, the end of the last unit apart.

    Raises:
        RequestError: If `unit_rows` is no power of two from 16 to 4,096, or `batch` is below 1.
    """
    if batch < 1:
        raise RequestError(f"--batch is {batch}; it must be at least 1")
    if unit_rows is None:
        aimed = _power_of_two_at_most(max(1, sum(item_rows) // UNITS_AIMED_AT))
        unit_rows = min(max(aimed, DEFAULT_MIN_UNIT_ROWS), MAX_CHUNK_ROWS)
    elif unit_rows not in (sizes := [1 << p for p in range(4, 13)]):
        raise RequestError(f"--unit-rows is {unit_rows}; it must be one of {sizes}")
    chunk_rows = unit_rows
    used = [rows for _, _, rows, _ in _fill(item_rows, unit_rows)][:-1]
    while chunk_rows > MIN_UNIT_ROWS and sum(-n % chunk_rows for n in used) > MAX_WASTE * sum(used):
        chunk_rows //= 2
    items = max(1, len(item_rows))
    item_chunk_rows = min(MAX_CHUNK_ROWS, 1 << (items - 1).bit_length())
    return Grid(
        chunk_rows=chunk_rows, item_chunk_rows=item_chunk_rows, unit_rows=unit_rows, batch=batch
    )


def make_segment(
    items: Sequence[tuple[str, int]],
    grid: Grid,
    *,
    recipe: str,
    after: Segment | None,
    stamps: Sequence[Stamp | None],
) -> Segment:
    """Plan some items behind what is planned already.

    Args:
        items: (item id, rows), in order; not empty; rows at least 1.
        grid: The store's.
        recipe: Digest of the store's recipe.
        after: The segment before this one; None for the first.
        stamps: What the files of each item look like, None for those that are missing; the units do
            not depend on them.

    Returns:
        The segment.

    Raises:
        RequestError: If an item has no rows.
    """
    if len(stamps) != len(items):
        raise AssertionError(f"{len(items)} items, {len(stamps)} stamps")
    for item_id, rows in items:
        if rows < 1:
            raise RequestError(f"item {item_id!r} has no rows; leave it out of the table")
    number = after.number + 1 if after else 1
    row = _align(after.row_stop, grid.chunk_rows) if after else 0
    row_start, units = row, []
    counts = [rows for _, rows in items]
    for index, (first, n_items, n_rows, offset) in enumerate(_fill(counts, grid.unit_rows)):
        units.append(
            Unit(
                name=f"{number:04d}-{index:05d}",
                first_item=first,
                n_items=n_items,
                row_start=row,
                n_rows=n_rows,
                offset=offset,
            )
        )
        row = _align(row + n_rows, grid.chunk_rows)
    return Segment(
        number=number,
        recipe=recipe,
        row_start=row_start,
        item_start=_align(after.item_stop, grid.item_chunk_rows) if after else 0,
        item_ids=tuple(item_id for item_id, _ in items),
        item_rows=tuple(counts),
        stamps=tuple(stamps),
        units=tuple(units),
    )


def _fill(counts: Sequence[int], unit_rows: int) -> Iterator[tuple[int, int, int, int]]:
    """Put items into units in order: yields (first item, items, rows, offset within the item)."""
    first, rows = 0, 0
    for index, count in enumerate(counts):
        if index > first and rows + count > unit_rows:
            yield first, index - first, rows, 0
            first, rows = index, 0
        if count > MAX_ITEM_ROWS_IN_A_UNIT:
            for offset in range(0, count, MAX_ITEM_ROWS_IN_A_UNIT):
                yield index, 1, min(MAX_ITEM_ROWS_IN_A_UNIT, count - offset), offset
            first, rows = index + 1, 0
        else:
            rows += count
    if rows:
        yield first, len(counts) - first, rows, 0


def _align(value: int, step: int) -> int:
    return -(-value // step) * step


def _power_of_two_at_most(value: int) -> int:
    return 1 << (value.bit_length() - 1)
