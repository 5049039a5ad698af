"""Does units: decode, encode and write overlap; each unit is committed as a whole.

Decoding runs in threads (the readers' libraries release the interpreter's lock), encoding in the
calling thread, writing in one thread of its own, with bounded queues between.
"""

import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dinocache.decoding import Decoding, Head, Piece, UnitWork
from dinocache.errors import ItemError, RequestError
from dinocache.intensity import Window
from dinocache.layout import COORD, ITEM_PREFIX, NATIVE_KINDS, is_row_kind, parse_kind
from dinocache.plan import Segment
from dinocache.progress import Progress
from dinocache.readers import Pixels
from dinocache.records import Failure, Record, StoredObject
from dinocache.source import Source
from dinocache.store import FeatureStore
from dinocache.transforms import Preprocess
from dinocache.writer import StoreWriter

if TYPE_CHECKING:
    import torch

    from dinocache.inference import Encoder

__all__ = ["Engine", "close_segment"]

FLOAT16_MAX = 65504.0
_WRITES_AHEAD = 8
_NOTES_TOLD = 5


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
        decoding = Decoding(
            self.source,
            self._recipe,
            workers=self._workers,
            rows_ahead=self._workers * 2 + self._batch,
            whole_items=self._by_item,
            progress=self.progress,
        )
        writing = _WritingThread()
        try:
            pieces = decoding.pieces(work)
            for unit_work in work:
                self._do_unit(unit_work, pieces, decoding, writing)
            writing.finish()
        finally:
            decoding.stop()
            writing.stop()

    # A unit

    def _do_unit(
        self,
        work: UnitWork,
        pieces: Iterator[Piece],
        decoding: Decoding,
        writing: "_WritingThread",
    ) -> None:
        unit = _OpenUnit(self, work, writing)
        for _ in range(work.unit.n_items):
            piece = next(pieces)
            try:
                self._do_piece(piece, unit, decoding)
            finally:
                piece.shared.release()
        unit.encode()
        unit.finish()

    def _do_piece(self, piece: Piece, unit: "_OpenUnit", decoding: Decoding) -> None:
        done, head = 0, None
        try:
            head = piece.head.result()
            unit.begin(piece, head)
            with closing(decoding.blocks(piece, head)) as blocks:
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

    def begin(self, piece: Piece, head: Head) -> None:
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

    def _put_mask(self, piece: Piece, head: Head) -> None:
        gathering = self._gathered["mask"]
        if piece.item_id not in self._engine.source.masks:
            gathering.not_asked.append(piece.item_id)
        elif head.mask is None:
            reason = head.mask_reason or "it has no mask"
            gathering.failed[piece.item_id] = self._engine.source.failure(piece.item_id, reason)
        else:
            self._put_native("mask", piece, head, 0, head.mask)

    def put_image(self, piece: Piece, head: Head, first: int, rows: Sequence[Pixels]) -> None:
        """Take rows of the item's own grid, from number `first` of the piece."""
        if "image" in self._gathered:
            self._put_native("image", piece, head, first, np.stack(rows, axis=1))

    def _put_native(
        self, kind: str, piece: Piece, head: Head, first: int, rows: npt.NDArray[Any]
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

    def fail(self, piece: Piece, reason: str, *, begun: bool) -> None:
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
