"""Does units: decode, encode and write overlap; each unit is committed as a whole.

Decoding runs in threads (the readers' libraries release the interpreter's lock), encoding in the
calling thread, writing in one thread of its own, with bounded queues between. An item is decoded in
blocks of rows, so that a slide of 100,000 tiles needs no more memory than a few of them.
"""

import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dinocache.errors import ItemError, RequestError
from dinocache.intensity import Window, item_windows
from dinocache.layout import COORD, ITEM_PREFIX, NATIVE_KINDS, is_row_kind, parse_kind
from dinocache.plan import Segment, Unit
from dinocache.progress import Progress
from dinocache.readers import Labels, OpenItem, Pixels
from dinocache.recipe import WindowRecipe
from dinocache.records import Failure, Record, StoredObject
from dinocache.source import Source, guarded
from dinocache.store import FeatureStore
from dinocache.transforms import Preprocess, check_row
from dinocache.writer import StoreWriter

if TYPE_CHECKING:
    import torch

    from dinocache.inference import Encoder

__all__ = ["Engine", "UnitWork", "close_segment"]

FLOAT16_MAX = 65504.0
_WRITES_AHEAD = 8
_NOTES_TOLD = 5
_NO_COORDS = np.empty((0, 0))
_BLOCK_ROWS, _BLOCK_BYTES = 16, 32 << 20
"""What a thread decodes at once: enough to be worth the hand-over, little enough to be held many
times over."""


@dataclass(frozen=True, kw_only=True)
class UnitWork:
    """A unit and the kinds of it that are missing."""

    segment: Segment
    unit: Unit
    kinds: tuple[str, ...]


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
    ) -> None:
        self.item_id = item_id
        self.position = position
        self._source, self._planned_rows, self._recipes = source, planned_rows, recipes
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
                    self._item = self._opened()
                    item = self._item
                    self._windows = guarded(lambda: item_windows(self._recipes, item))
                except ItemError as exc:
                    self._reason = str(exc)
                    raise
            return self._item, self._windows

    @property
    def in_turn(self) -> AbstractContextManager[object]:
        """Held while rows are read, by one thread at a time where the item wants that."""
        one = self._item is not None and self._item.one_at_a_time
        return self._turn if one else nullcontext()

    def _opened(self) -> OpenItem:
        item = self._source.open(self.item_id)
        if item.n_rows != self._planned_rows:
            item.close()
            raise ItemError(
                f"it has {item.n_rows} rows, {self._planned_rows} were planned: the file or its "
                "reader has changed since; --retry-failed plans it anew"
            )
        return item

    def release(self) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0 and self._item is not None:
                self._item.close()
                self._item = None


@dataclass(frozen=True, kw_only=True)
class _Head:
    """What is known of a piece once its item is open, and its first rows."""

    item: OpenItem
    windows: tuple[Window, ...]
    rows: list[Pixels]
    block_rows: int
    coords: npt.NDArray[np.float64]
    mask: Labels | None
    mask_reason: str | None
    thumbnail: npt.NDArray[np.uint8] | None


@dataclass(frozen=True, kw_only=True)
class _Piece:
    """The rows of an item that belong to one unit."""

    shared: _SharedItem
    offset: int
    n_rows: int
    head: Future[_Head]

    @property
    def item_id(self) -> str:
        return self.shared.item_id

    @property
    def position(self) -> int:
        """The item's, on the item axis."""
        return self.shared.position


@dataclass
class _Committing:
    """What gathers, in the writing thread, until a unit's kind is committed."""

    objects: dict[str, StoredObject] = field(default_factory=dict)
    failed: dict[str, Failure] = field(default_factory=dict)
    not_asked: list[str] = field(default_factory=list)
    notes: dict[str, tuple[str, ...]] = field(default_factory=dict)


class Engine:
    """Encodes the items of a store, unit by unit.

    Attributes:
        writer: Of the store.
        source: Of the items.
        encoder: The frozen model.
        progress: Told of what is committed.
        made_by: Versions of what makes the numbers, for the records.
    """

    def __init__(
        self,
        writer: StoreWriter,
        source: Source,
        encoder: "Encoder",
        *,
        workers: int,
        progress: Progress,
        made_by: dict[str, str],
    ) -> None:
        self.writer = writer
        self.source = source
        self.encoder = encoder
        self.progress = progress
        self.made_by = made_by
        self._workers = workers
        header = writer.store.header
        self._batch = header.grid.batch
        self._recipe = header.recipe
        self._prepare = Preprocess(header.recipe.input, encoder.device)
        self._warned = False
        self._told = 0
        self._by_item = encoder.spec.network == "volume"
        channels = header.recipe.channels
        self._passes: tuple[str | None, ...] = (None,)
        if channels.mode == "passes":
            self._passes = channels.names
        self._all_kinds = [kind for kind in writer.store.kinds if is_row_kind(kind)]

    def run(self, work: Sequence[UnitWork]) -> None:
        """Do some units; returns when all are committed.

        Args:
            work: In order of rows.

        Raises:
            StoreWriteError: If the disk refuses; what was committed before is whole.
        """
        pool = ThreadPoolExecutor(self._workers, thread_name_prefix="decode")
        writing = _WritingThread()
        try:
            pieces = self._pieces(work, pool)
            for unit_work in work:
                self._do_unit(unit_work, pieces, pool, writing)
            writing.finish()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            writing.stop()

    # Decoding

    def _pieces(self, work: Sequence[UnitWork], pool: ThreadPoolExecutor) -> Iterator[_Piece]:
        """Yield the pieces of all units in order, their heads decoded a bounded number ahead."""
        ahead: deque[_Piece] = deque()
        shared: _SharedItem | None = None
        limit = self._workers * 2 + self._batch
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
                    )
                shared.use()
                head = pool.submit(self._head, shared, offset, n_rows, unit_work.kinds)
                ahead.append(_Piece(shared=shared, offset=offset, n_rows=n_rows, head=head))
                # At most as many large items at once as there are threads, or many small ones.
                while len(ahead) > self._workers and sum(p.n_rows for p in ahead) >= limit:
                    yield ahead.popleft()
        yield from ahead

    def _head(self, shared: _SharedItem, offset: int, n_rows: int, kinds: Sequence[str]) -> _Head:
        """Open an item and decode its first block; in a decoding thread."""
        item, windows = shared.get()
        if self._by_item and n_rows < item.n_rows:
            raise ItemError(
                "it is shared by several units, but its encoder needs all of its rows together; "
                "give it fewer rows"
            )
        a_row = max(item.nbytes // item.n_rows, 1)
        block_rows = min(max(_BLOCK_BYTES // a_row, 1), _BLOCK_ROWS)
        with shared.in_turn:
            rows = self._read(item, offset, offset + min(block_rows, n_rows))
        self._warn_of_dark(item, rows)
        mask, mask_reason = None, None
        if "mask" in kinds and shared.item_id in self.source.masks:
            try:
                mask = guarded(item.mask)
                _check_mask(mask, item.n_rows, rows[0])
                mask = mask[:, offset : offset + n_rows]
            except ItemError as exc:
                mask_reason = f"mask {self.source.masks[shared.item_id]}: {exc}"
        asked = COORD in kinds
        return _Head(
            item=item,
            windows=windows,
            rows=rows,
            block_rows=block_rows,
            coords=guarded(item.coords)[offset : offset + n_rows] if asked else _NO_COORDS,
            mask=mask,
            mask_reason=mask_reason,
            thumbnail=guarded(item.thumbnail) if asked and offset == 0 else None,
        )

    def _read(self, item: OpenItem, start: int, stop: int) -> list[Pixels]:
        rows = guarded(lambda: item.rows(start, stop))
        passes = self._recipe.channels.mode == "passes"
        for row in rows:
            check_row(self._recipe.input, row, alone=passes)
            if passes and len(row) != len(self._passes):
                raise ItemError(
                    f"it has {len(row)} channels, {len(self._passes)} were named "
                    f"({', '.join(str(name) for name in self._passes)})"
                )
        return rows

    def _blocks(
        self, piece: _Piece, head: _Head, pool: ThreadPoolExecutor
    ) -> Generator[list[Pixels], None, None]:
        """Yield the rows of a piece in order, decoded a bounded number of blocks ahead."""
        yield head.rows
        stop = piece.offset + piece.n_rows
        starts = range(piece.offset + len(head.rows), stop, head.block_rows)
        limit = 2 if head.item.one_at_a_time else self._workers * 2
        ahead: deque[Future[list[Pixels]]] = deque()

        def read(start: int) -> list[Pixels]:
            with piece.shared.in_turn:
                return self._read(head.item, start, min(start + head.block_rows, stop))

        try:
            for start in starts:
                ahead.append(pool.submit(read, start))
                if len(ahead) >= limit:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            # The item is closed next: no thread may still be in it.
            for future in ahead:
                future.cancel()
            wait(ahead)

    def _warn_of_dark(self, item: OpenItem, rows: Sequence[Pixels]) -> None:
        """Say once that 16-bit images may hold 12 bits, which full-range makes near black."""
        if self._warned or self._recipe.input.windows[0].mode != "full-range" or item.value_range:
            return
        if rows[0].dtype == np.uint16 and (top := max(int(row.max()) for row in rows)) < 1 << 13:
            self._warned = True
            self.progress.note(
                f"note: a 16-bit image has no value above {top}; if all are so, make the store "
                f"with --window 0:{(1 << top.bit_length()) - 1}, else they are near black"
            )

    # A unit

    def _do_unit(
        self,
        work: UnitWork,
        pieces: Iterator[_Piece],
        pool: ThreadPoolExecutor,
        writing: "_WritingThread",
    ) -> None:
        unit = _OpenUnit(self, work, writing)
        for _ in range(work.unit.n_items):
            piece = next(pieces)
            try:
                self._do_piece(piece, unit, pool)
            finally:
                piece.shared.release()
        unit.encode()
        unit.finish()

    def _do_piece(self, piece: _Piece, unit: "_OpenUnit", pool: ThreadPoolExecutor) -> None:
        done, head = 0, None
        try:
            head = piece.head.result()
            unit.begin(piece, head)
            with closing(self._blocks(piece, head, pool)) as blocks:
                for block in blocks:
                    unit.put_image(piece, head, done, block)
                    for pixels in block:
                        unit.put_row(piece.item_id, pixels, head.windows)
                    done += len(block)
        except ItemError as exc:
            unit.fail(piece, str(exc), begun=head is not None)
        for _ in range(piece.n_rows - done):
            # A failed row keeps its place, so that its neighbours' batch stays as planned.
            unit.put_row(piece.item_id, None, ())
        if self._by_item:
            unit.encode()

    def prepare(self, pixels: Pixels, windows: Sequence[Window]) -> "tuple[torch.Tensor, ...]":
        """Make a row's input for each pass through the encoder."""
        if self._recipe.channels.mode == "stacked":
            return (self._prepare(pixels, windows),)
        several = [*windows] * len(pixels) if len(windows) == 1 else windows
        return tuple(
            self._prepare(pixels[c : c + 1], several[c : c + 1]) for c in range(len(pixels))
        )

    def encode(
        self, batch: "Sequence[torch.Tensor | None]", kinds: Sequence[str], channel: str | None
    ) -> "dict[str, torch.Tensor]":
        """Encode one batch in one pass.

        Args:
            batch: (channels, height, width) each; None where a row failed. Not all are None.
            kinds: Of this channel.
            channel: Its name; None where all go together.

        Returns:
            Kind -> (batch, ...) float32.
        """
        import torch

        recipe = self._recipe.input
        empty = torch.zeros((recipe.channels, *recipe.resolution), device=self.encoder.device)
        rows = [empty if row is None else row for row in batch]
        asked: Sequence[str] = kinds
        if self.encoder.compiled and not self._by_item:
            # One shape and one graph, also for what is left of a unit that was interrupted: what is
            # compiled for other outputs may differ in its last bits.
            rows += [empty] * (self._batch - len(rows))
            asked = [k for k in self._all_kinds if _channel(k) == channel]
        bases = {kind: _base(kind) for kind in asked}
        found = self.encoder(torch.stack(rows), tuple(bases.values()))
        values = {kind: found[base][: len(batch)] for kind, base in bases.items() if kind in kinds}
        self._check_shapes(values)
        return values

    def tell(self, item_id: str, notes: Sequence[str]) -> None:
        """Say what a person should know of an item; of the first few only, the store has all."""
        self._told += 1
        if self._told <= _NOTES_TOLD:
            more = "; further notes stand in the records" if self._told == _NOTES_TOLD else ""
            self.progress.note(f"note: {item_id}: {'; '.join(notes)}{more}")

    @property
    def batch(self) -> int:
        """Rows that pass through the encoder together; all of an item for a volume's encoder."""
        return 1 << 62 if self._by_item else self._batch

    @property
    def passes(self) -> tuple[str | None, ...]:
        """Channels that pass through the encoder one by one; one None where they go together."""
        return self._passes

    def _check_shapes(self, found: "Mapping[str, torch.Tensor]") -> None:
        """See that an encoder gives what its facts promise: zarr would cut off what is over."""
        for kind, features in found.items():
            promised = self.writer.layout(kind).tail
            if tuple(features.shape[1:]) != promised:
                raise RequestError(
                    f"{self.encoder.spec.name} gives {kind} of {_size(features.shape[1:])} where "
                    f"{_size(promised)} is stored; at its own "
                    f"{self.encoder.spec.native_px} px it may fit"
                )


class _OpenUnit:
    """A unit while its rows come: batches to encode, blocks to write, what to commit."""

    def __init__(self, engine: Engine, work: UnitWork, writing: "_WritingThread") -> None:
        self._engine, self._work, self._writing = engine, work, writing
        self._gathered = {kind: _Committing() for kind in work.kinds}
        self._row_kinds = [kind for kind in work.kinds if is_row_kind(kind)]
        in_features = [kind for kind in work.kinds if kind not in NATIVE_KINDS]
        self._blocks = {
            kind: _RowBlocks(engine.writer.layout(kind).file_rows, work.unit.row_start)
            for kind in in_features
        }
        self._batch: list[tuple[torch.Tensor, ...] | None] = []
        self._owners: list[str] = []

    def begin(self, piece: _Piece, head: _Head) -> None:
        """Take what an item has besides its rows' pixels."""
        if notes := head.item.notes:
            for gathering in self._gathered.values():
                gathering.notes[piece.item_id] = notes
            self._engine.tell(piece.item_id, notes)
        if COORD in self._gathered:
            self._add(COORD, head.coords)
            if head.thumbnail is not None:
                write = self._engine.writer.write_thumb
                self._keep(COORD, partial(write, piece.position, head.thumbnail))
        if "mask" in self._gathered:
            self._put_mask(piece, head)

    def _put_mask(self, piece: _Piece, head: _Head) -> None:
        gathering = self._gathered["mask"]
        if piece.item_id not in self._engine.source.masks:
            gathering.not_asked.append(piece.item_id)
        elif head.mask is None:
            reason = head.mask_reason or "it has no mask"
            gathering.failed[piece.item_id] = self._engine.source.failure(piece.item_id, reason)
        else:
            self._put_native("mask", piece, head, 0, head.mask)

    def put_image(self, piece: _Piece, head: _Head, first: int, rows: Sequence[Pixels]) -> None:
        """Take rows of the item's own grid, from number `first` of the piece."""
        if "image" in self._gathered:
            self._put_native("image", piece, head, first, np.stack(rows, axis=1))

    def _put_native(
        self, kind: str, piece: _Piece, head: _Head, first: int, rows: npt.NDArray[Any]
    ) -> None:
        attributes = head.item.geometry.to_attributes()
        if kind == "image":
            attributes["windows"] = [list(window) for window in head.windows]
        write = partial(
            self._engine.writer.write_native,
            kind,
            piece.position,
            rows,
            start=piece.offset + first,
            depth=head.item.n_rows,
            attributes=attributes,
        )
        self._keep(kind, write)

    def put_row(self, item_id: str, pixels: Pixels | None, windows: Sequence[Window]) -> None:
        """Take a row, or None where there is none; encodes when the batch is full."""
        if not self._row_kinds:
            return
        self._batch.append(None if pixels is None else self._engine.prepare(pixels, windows))
        self._owners.append(item_id)
        if len(self._batch) == self._engine.batch:
            self.encode()

    def fail(self, piece: _Piece, reason: str, *, begun: bool) -> None:
        """Note that an item, or what is left of it, cannot be read."""
        failure = self._engine.source.failure(piece.item_id, reason)
        for kind, gathering in self._gathered.items():
            if kind == "mask" and piece.item_id not in self._engine.source.masks:
                if not begun:
                    gathering.not_asked.append(piece.item_id)
            else:
                gathering.failed[piece.item_id] = failure
        if COORD in self._blocks and not begun:
            columns = self._engine.writer.layout(COORD).tail
            self._add(COORD, np.full((piece.n_rows, *columns), np.nan))

    def encode(self) -> None:
        """Encode the batch; rows whose features cannot be kept become NaN and failures."""
        batch, owners = self._batch, self._owners
        self._batch, self._owners = [], []
        if not batch:
            return
        for number, channel in enumerate(self._engine.passes):
            kinds = [kind for kind in self._row_kinds if _channel(kind) == channel]
            if not kinds:
                continue
            inputs = [None if row is None else row[number] for row in batch]
            if all(row is None for row in inputs):
                for kind in kinds:
                    tail = self._engine.writer.layout(kind).tail
                    self._add(kind, np.full((len(batch), *tail), np.nan, np.float16))
                continue
            for kind, values in self._engine.encode(inputs, kinds, channel).items():
                self._add(kind, self._kept(kind, values, inputs, owners))

    def _kept(
        self,
        kind: str,
        values: "torch.Tensor",
        inputs: "Sequence[torch.Tensor | None]",
        owners: Sequence[str],
    ) -> npt.NDArray[np.float16]:
        import torch

        largest = values.abs().flatten(1).amax(1)
        kept = (largest <= FLOAT16_MAX).tolist()  # False for NaN, too
        half = values.to(torch.float16).cpu().numpy()
        for index, owner in enumerate(owners):
            if inputs[index] is not None and kept[index]:
                continue
            half[index] = np.nan
            if inputs[index] is not None:
                reason = _why_not_kept(kind, float(largest[index]))
                failure = self._engine.source.failure(owner, reason)
                self._gathered[kind].failed.setdefault(owner, failure)
        return half

    def finish(self) -> None:
        """Write what is left, then commit; both in the writing thread."""
        for kind, blocks in self._blocks.items():
            for row, block in blocks.rest():
                self._keep(kind, partial(self._write_rows, kind, row, block))
        self._writing.put(self._commit)

    def _add(self, kind: str, values: npt.NDArray[Any]) -> None:
        for row, block in self._blocks[kind].add(values):
            self._keep(kind, partial(self._write_rows, kind, row, block))

    def _keep(self, kind: str, write: Callable[[], dict[str, StoredObject]]) -> None:
        """Write later, and note what was written for the commit."""
        gathering = self._gathered[kind]
        self._writing.put(lambda: gathering.objects.update(write()))

    # In the writing thread

    def _write_rows(self, kind: str, row: int, block: npt.NDArray[Any]) -> dict[str, StoredObject]:
        if np.isnan(block).all():
            return {}
        return self._engine.writer.write_rows(kind, row, block)

    def _commit(self) -> None:
        unit, engine = self._work.unit, self._engine
        for kind, gathering in self._gathered.items():
            engine.writer.commit(
                Record(
                    unit=unit.name,
                    kind=kind,
                    recipe=self._work.segment.recipe,
                    rows=(unit.row_start, unit.row_start + unit.n_rows),
                    items=unit.n_items,
                    failed=gathering.failed,
                    not_asked=tuple(gathering.not_asked),
                    notes=gathering.notes,
                    objects=gathering.objects,
                    made_by=engine.made_by,
                )
            )
        engine.writer.close_native()
        written = sum(o.bytes for g in self._gathered.values() for o in g.objects.values())
        engine.progress.advance(unit.n_rows, written)


class _RowBlocks:
    """Cuts a unit's rows, as they come, into whole files."""

    def __init__(self, file_rows: int, row_start: int) -> None:
        self._file_rows = file_rows
        self._row = row_start
        self._parts: list[npt.NDArray[Any]] = []

    def add(self, values: npt.NDArray[Any]) -> Iterator[tuple[int, npt.NDArray[Any]]]:
        """Take rows; yields (first row, rows) of each file that is full."""
        self._parts.append(values)
        if sum(len(part) for part in self._parts) < self._file_rows:
            return
        block = np.concatenate(self._parts)
        while len(block) >= self._file_rows:
            yield self._row, block[: self._file_rows]
            self._row, block = self._row + self._file_rows, block[self._file_rows :]
        self._parts = [block]

    def rest(self) -> Iterator[tuple[int, npt.NDArray[Any]]]:
        """Yield what is left behind the last whole file."""
        if self._parts and len(block := np.concatenate(self._parts)):
            yield self._row, block


class _WritingThread:
    """Runs calls one after another in a thread of its own, a bounded number behind."""

    def __init__(self) -> None:
        self._queue: queue.Queue[Callable[[], None] | None] = queue.Queue(_WRITES_AHEAD)
        self._error: BaseException | None = None
        self._dropping = False
        self._thread = threading.Thread(target=self._run, name="write", daemon=True)
        self._thread.start()

    def put(self, call: Callable[[], None]) -> None:
        """Queue a call; raises what an earlier one raised."""
        if self._error is not None:
            raise self._error
        self._queue.put(call)

    def finish(self) -> None:
        """Wait for all calls; raises what one of them raised."""
        self._queue.put(None)
        self._thread.join()
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """Drop the calls that have not begun, and end."""
        if self._thread.is_alive():
            self._dropping = True
            self._queue.put(None)
            self._thread.join()

    def _run(self) -> None:
        while (call := self._queue.get()) is not None:
            if self._error is not None or self._dropping:
                continue
            try:
                call()
            except BaseException as exc:  # raised again in the calling thread
                self._error = exc


def close_segment(
    writer: StoreWriter, segment: Segment, kind: str, made_by: dict[str, str]
) -> None:
    """Write the mean over each item's rows, from the committed rows of a segment.

    Args:
        writer: Of the store; every unit of the segment is committed for this kind.
        segment: Which.
        kind: `cls` or `mean`.
        made_by: For the record.

    Raises:
        StoreWriteError: If the disk refuses.
        StoreDamagedError: If a committed file is not as it was written.
    """
    store, item_kind = writer.store, f"{ITEM_PREFIX}{kind}"
    layout = writer.layout(item_kind)
    failed = _failed_in(store, segment, kind)
    objects: dict[str, StoredObject] = {}
    n_items = len(segment.item_ids)
    for start in range(0, n_items, layout.file_rows):
        stop = min(start + layout.file_rows, n_items)
        block = np.full((stop - start, *layout.tail), np.nan, np.float32)
        for item in range(start, stop):
            if segment.item_ids[item] not in failed:
                rows = store.segment_rows(kind, segment, item)
                block[item - start] = rows.mean(0, dtype=np.float64)
        if not np.isnan(block).all():
            objects |= writer.write_rows(item_kind, segment.item_start + start, block)
    writer.commit(
        Record(
            unit=segment.closing_name,
            kind=item_kind,
            recipe=segment.recipe,
            rows=(segment.item_start, segment.item_stop),
            items=n_items,
            failed=failed,
            not_asked=(),
            objects=objects,
            made_by=made_by,
        )
    )


def _failed_in(store: FeatureStore, segment: Segment, kind: str) -> dict[str, Failure]:
    failed: dict[str, Failure] = {}
    for unit in segment.units:
        record = store.record(unit.name, kind)
        if record is not None:
            failed |= record.failed
    return failed


def _check_mask(mask: Labels, n_rows: int, row: Pixels) -> None:
    expected = (n_rows, *row.shape[1:])
    if mask.shape[1:] != expected:
        raise ItemError(
            f"it is {_size(mask.shape[1:])}, its image {_size(expected)} (slices x rows x columns)"
        )


def _base(kind: str) -> str:
    parsed = parse_kind(kind)
    return parsed.base if parsed else kind


def _channel(kind: str) -> str | None:
    parsed = parse_kind(kind)
    return parsed.channel if parsed else None


def _size(shape: Sequence[int]) -> str:
    return " x ".join(str(n) for n in shape)


def _why_not_kept(kind: str, largest: float) -> str:
    if largest > FLOAT16_MAX and largest != float("inf"):
        return (
            f"{kind}: a feature of {largest:.6g} does not fit float16 (at most {FLOAT16_MAX:.0f})"
        )
    return f"{kind}: features are NaN or infinite"
