"""Items to rows: opened, decoded and resized ahead of the encoder, in threads, within bounds.

An item is decoded in blocks of rows, so that a slide of 100,000 tiles needs no more memory than a
few of them; or as a whole in a process, for which a thread waits: see `dinocache.decoders`.
"""

import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dinocache.errors import ItemError
from dinocache.intensity import Window
from dinocache.layout import COORD, is_row_kind
from dinocache.meter import Meter
from dinocache.plan import Segment, Unit
from dinocache.progress import Progress
from dinocache.readers import Labels, OpenItem, Pixels, guarded, read_rows
from dinocache.recipe import Recipe, WindowRecipe
from dinocache.source import Source
from dinocache.transforms import Staged, check_row

__all__ = ["READ", "Decoding", "Head", "Piece", "Row", "UnitWork"]

READ = "read"
"""The stage's name."""

_BLOCK_ROWS, _BLOCK_BYTES = 16, 32 << 20
"""What a thread decodes at once: enough to be worth the hand-over, little enough to be held many
times over."""
_AHEAD_BYTES = 2 << 30
"""Of items that are open behind the one that is encoded."""
_NO_COORDS = np.empty((0, 0))


MakeInputs = Callable[[Pixels, Sequence[Window]], tuple[Staged, ...]]
"""Makes of a row what each pass through the encoder takes."""


@dataclass(frozen=True, kw_only=True)
class UnitWork:
    """A unit and the kinds of it that are missing."""

    segment: Segment
    unit: Unit
    kinds: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Row:
    """A decoded row, as far as somebody wants it.

    Attributes:
        pixels: (C, Y, X); None unless the item's own grid is kept.
        inputs: One a pass through the encoder; none where no kind of a row is wanted.
    """

    pixels: Pixels | None
    inputs: tuple[Staged, ...]


class _SharedItem:
    """An item that several pieces in a row are of: opened once, closed behind the last of them."""

    def __init__(
        self,
        source: Source,
        item_id: str,
        *,
        position: int,
        planned_rows: int,
        recipes: tuple[WindowRecipe, ...],
        mask: bool,
        meter: Meter,
    ) -> None:
        self.item_id = item_id
        self.position = position
        self._source, self._planned_rows = source, planned_rows
        self._recipes, self._mask = recipes, mask
        self._meter = meter
        self._lock, self._turn = threading.Lock(), threading.Lock()
        self._users = 0
        self._item: OpenItem | None = None
        self._windows: tuple[Window, ...] = ()
        self._reason: str | None = None

    def use(self) -> None:
        with self._lock:
            self._users += 1

    def get(self) -> tuple[OpenItem, tuple[Window, ...]]:
        """Open it and measure its windows at the first call; raises `ItemError`."""
        with self._lock:
            if self._reason is not None:
                raise ItemError(self._reason)
            if self._item is None:
                try:
                    with self._meter.busy(READ):
                        self._item, self._windows = self._opened()
                except ItemError as exc:
                    self._reason = str(exc)
                    raise
            return self._item, self._windows

    @property
    def nbytes(self) -> int | None:
        """Of all its rows once decoded; None before it is open."""
        item = self._item
        return None if item is None else item.nbytes

    @property
    def in_turn(self) -> AbstractContextManager[object]:
        """Held while rows are read, by one thread at a time where the item wants that."""
        one = self._item is not None and self._item.one_at_a_time
        return self._turn if one else nullcontext()

    def _opened(self) -> tuple[OpenItem, tuple[Window, ...]]:
        item, windows = self._source.open_measured(self.item_id, self._recipes, mask=self._mask)
        if item.n_rows != self._planned_rows:
            item.close()
            raise ItemError(
                f"it has {item.n_rows} rows, {self._planned_rows} were planned: the file or its "
                "reader has changed since; --retry-failed plans it anew"
            )
        return item, windows

    def release(self) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0 and self._item is not None:
                self._item.close()
                self._item = None


@dataclass(frozen=True, kw_only=True)
class Head:
    """What is known of a piece once its item is open, and its first rows."""

    item: OpenItem
    windows: tuple[Window, ...]
    rows: list[Row]
    block_rows: int
    coords: npt.NDArray[np.float64]
    mask: Labels | None
    mask_reason: str | None
    thumbnail: npt.NDArray[np.uint8] | None


@dataclass(frozen=True, kw_only=True)
class Piece:
    """The rows of an item that belong to one unit."""

    shared: _SharedItem
    offset: int
    n_rows: int
    head: Future[Head]

    @property
    def item_id(self) -> str:
        """The item's."""
        return self.shared.item_id

    @property
    def position(self) -> int:
        """The item's, on the item axis."""
        return self.shared.position


class Decoding:
    """Decodes the rows of units.

    Args:
        source: Of the items.
        recipe: Of the store.
        make_inputs: Makes the encoder's inputs of a row.
        workers: Threads.
        rows_ahead: Rows that are decoded before they are asked for, if they are of many items.
        whole_items: Whether the encoder needs all rows of an item together.
        meter: Counts the threads' work as `READ`.
        progress: Told of what a person may want to change.
        ahead: Whether anything is read before it is asked for; if not, one item is open at a time,
            and it is read only while its rows are waited for.
    """

    def __init__(
        self,
        source: Source,
        recipe: Recipe,
        make_inputs: MakeInputs,
        *,
        workers: int,
        rows_ahead: int,
        whole_items: bool,
        meter: Meter,
        progress: Progress,
        ahead: bool = True,
    ) -> None:
        self.source = source
        self._recipe, self._make_inputs = recipe, make_inputs
        self._workers, self._rows_ahead = workers, rows_ahead
        self._whole_items = whole_items
        self._meter, self._progress = meter, progress
        self._ahead = ahead
        self._warned = False
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")

    def stop(self) -> None:
        """Begin nothing more, and wait for what is being read: its files are closed next."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def pieces(self, work: Sequence[UnitWork]) -> Generator[Piece, None, None]:
        """Yield the pieces of all units in order, their heads decoded a bounded number ahead.

        Whoever takes one releases it. Close it, after `stop`, to release those that nobody took.
        """
        ahead: deque[Piece] = deque()
        shared: _SharedItem | None = None
        mask = any("mask" in unit_work.kinds for unit_work in work)
        try:
            for unit_work in work:
                segment = unit_work.segment
                for item, _, offset, n_rows in segment.pieces(unit_work.unit):
                    position = segment.item_start + item
                    if shared is None or shared.position != position:
                        shared = _SharedItem(
                            self.source,
                            segment.item_ids[item],
                            position=position,
                            planned_rows=segment.item_rows[item],
                            recipes=self._recipe.input.windows,
                            mask=mask,
                            meter=self._meter,
                        )
                    shared.use()
                    head = self._pool.submit(self._head, shared, offset, n_rows, unit_work.kinds)
                    ahead.append(Piece(shared=shared, offset=offset, n_rows=n_rows, head=head))
                    while self._is_enough(ahead):
                        yield ahead.popleft()
            while ahead:
                yield ahead.popleft()
        finally:
            for piece in ahead:
                piece.shared.release()

    def _is_enough(self, ahead: Sequence[Piece]) -> bool:
        """Whether to wait: at most as many large items at once as there are threads, and bytes."""
        if not self._ahead:
            return bool(ahead)
        if len(ahead) > self._workers and sum(p.n_rows for p in ahead) >= self._rows_ahead:
            return True
        if len(ahead) < 2:
            return False
        sizes = {id(piece.shared): piece.shared.nbytes for piece in ahead}
        largest = max((size for size in sizes.values() if size), default=0)
        return sum(largest if size is None else size for size in sizes.values()) > _AHEAD_BYTES

    def _head(self, shared: _SharedItem, offset: int, n_rows: int, kinds: Sequence[str]) -> Head:
        """Open an item and decode its first block; in a decoding thread."""
        with self.source.watch(shared.item_id):
            item, windows = shared.get()
            if self._whole_items and n_rows < item.n_rows:
                raise ItemError(
                    "it is shared by several units, but its encoder needs all of its rows "
                    "together; give it fewer rows"
                )
            a_row = max(item.nbytes // item.n_rows, 1)
            block_rows = min(max(_BLOCK_BYTES // a_row, 1), _BLOCK_ROWS)
            stop = offset + min(block_rows, n_rows)
            with shared.in_turn, self._meter.busy(READ):
                pixels = self._read(item, offset, stop)
                self._warn_of_dark(item, pixels)
                mask, mask_reason = None, None
                if "mask" in kinds and shared.item_id in self.source.masks:
                    try:
                        mask = guarded(item.mask)
                        _check_mask(mask, item.n_rows, pixels[0])
                        mask = mask[:, offset : offset + n_rows]
                    except ItemError as exc:
                        named = next((p for p in self.source.masks[shared.item_id] if p), "")
                        mask_reason = f"mask {named}: {exc}"
                asked = COORD in kinds
                return Head(
                    item=item,
                    windows=windows,
                    rows=self._rows(pixels, windows, kinds),
                    block_rows=block_rows,
                    coords=(
                        guarded(item.coords)[offset : offset + n_rows] if asked else _NO_COORDS
                    ),
                    mask=mask,
                    mask_reason=mask_reason,
                    thumbnail=guarded(item.thumbnail) if asked and offset == 0 else None,
                )

    def _read(self, item: OpenItem, start: int, stop: int) -> list[Pixels]:
        rows = read_rows(item, start, stop)
        names = self._recipe.channels.names
        passes = self._recipe.channels.mode == "passes"
        for row in rows:
            check_row(self._recipe.input, row, alone=passes)
            if passes and len(row) != len(names):
                raise ItemError(
                    f"it has {len(row)} channels, {len(names)} were named ({', '.join(names)})"
                )
        return rows

    def _rows(
        self, pixels: Sequence[Pixels], windows: Sequence[Window], kinds: Sequence[str]
    ) -> list[Row]:
        encoded, kept = any(is_row_kind(kind) for kind in kinds), "image" in kinds
        return [
            Row(
                pixels=row if kept else None,
                inputs=self._make_inputs(row, windows) if encoded else (),
            )
            for row in pixels
        ]

    def blocks(
        self, piece: Piece, head: Head, kinds: Sequence[str]
    ) -> Generator[list[Row], None, None]:
        """Yield the rows of a piece in order, decoded a bounded number of blocks ahead."""
        yield head.rows
        stop = piece.offset + piece.n_rows
        starts = range(piece.offset + len(head.rows), stop, head.block_rows)
        limit = 2 if head.item.one_at_a_time else self._workers * 2
        if not self._ahead:
            limit = 1
        ahead: deque[Future[list[Row]]] = deque()

        def read(start: int) -> list[Row]:
            last = min(start + head.block_rows, stop)
            with self.source.watch(piece.item_id):
                with piece.shared.in_turn, self._meter.busy(READ):
                    pixels = self._read(head.item, start, last)
                with self._meter.busy(READ):
                    return self._rows(pixels, head.windows, kinds)

        try:
            for start in starts:
                ahead.append(self._pool.submit(read, start))
                if len(ahead) >= limit:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            # The item is closed next: no thread may still be in it. What could be cancelled has not
            # begun, and is told to those who wait only when its turn in the pool comes.
            wait([future for future in ahead if not future.cancel()])

    def _warn_of_dark(self, item: OpenItem, rows: Sequence[Pixels]) -> None:
        """Say once that 16-bit images may hold 12 bits, which full-range makes near black."""
        if self._warned or self._recipe.input.windows[0].mode != "full-range" or item.value_range:
            return
        if rows[0].dtype == np.uint16 and (top := max(int(row.max()) for row in rows)) < 1 << 13:
            self._warned = True
            self._progress.note(
                f"note: a 16-bit image has no value above {top}; if all are so, make the store "
                f"with --window 0:{(1 << top.bit_length()) - 1}, else they are near black"
            )


def _check_mask(mask: Labels, n_rows: int, row: Pixels) -> None:
    expected = (n_rows, *row.shape[1:])
    if mask.shape[1:] != expected:
        raise ItemError(
            f"it is {_size(mask.shape[1:])}, its image {_size(expected)} (slices x rows x columns)"
        )


def _size(shape: Sequence[int]) -> str:
    return " x ".join(str(n) for n in shape)
