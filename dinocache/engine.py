"""Does units: reading, encoding, collecting and writing overlap; each unit is committed as a whole.

    decode threads --rows--> encode --batches--> collect --files--> write --records--> commit
                             (the calling thread)

Every arrow is a bounded queue. On a CUDA device the calling thread only launches: copies from
pinned memory, the forward pass and the copies back are behind it, and `collect` waits for them.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dinocache.calibration import LARGEST_CODE, Calibration, made_small
from dinocache.decoding import READ, Decoding, Head, Piece, Row, UnitWork
from dinocache.errors import ItemError, RequestError, StoppedError, TooManyFailuresError
from dinocache.intensity import Window
from dinocache.layout import COORD, NATIVE_KINDS, Pass, base_of, encoded_dim, is_row_kind, pass_of
from dinocache.meter import Meter
from dinocache.pipeline import Stage
from dinocache.progress import Progress
from dinocache.readers import Pixels
from dinocache.records import Failure, Record, StoredObject
from dinocache.source import Source
from dinocache.store import FeatureStore
from dinocache.transforms import Preprocess, Staged
from dinocache.views import flips, swaps_axes
from dinocache.writer import StoreWriter

if TYPE_CHECKING:
    import torch

    from dinocache.inference import Encoder

__all__ = ["Engine"]

FLOAT16_MAX = 65504.0
ENCODE, COLLECT, WRITE = "encode", "collect", "write"
_BATCHES_AHEAD = 2
_WRITERS, _WRITES_AHEAD = 2, 2
"""Each write waits for the disk most of its time, so a second one goes meanwhile."""
_UNITS_BEHIND = 1
"""Units that are encoded and not committed yet: what a kill costs beside the one in work."""
_NOTES_TOLD = 5


@dataclass
class _Committing:
    """What gathers until a unit's kind is committed."""

    objects: dict[str, StoredObject] = field(default_factory=dict)
    clipped: int = 0
    numbers: int = 0
    failed: dict[str, Failure] = field(default_factory=dict)
    not_asked: list[str] = field(default_factory=list)
    notes: dict[str, tuple[str, ...]] = field(default_factory=dict)


class _Writing:
    """Threads that write, each through a writer of its own, and one that commits behind them."""

    def __init__(self, store: FeatureStore, meter: Meter) -> None:
        self._meter = meter
        self.writers = [StoreWriter(store) for _ in range(_WRITERS)]
        self._stages = [Stage(WRITE, ahead=_WRITES_AHEAD, meter=meter) for _ in self.writers]
        self._committing = Stage(None, ahead=_UNITS_BEHIND, meter=meter)

    def put(self, key: int, call: Callable[[StoreWriter], None]) -> Future[None]:
        """Queue a write; those of the same key are done in order."""
        index = key % len(self._stages)
        return self._stages[index].put(partial(call, self.writers[index]))

    def commit(self, writes: Sequence[Future[None]], call: Callable[[StoreWriter], None]) -> None:
        """Queue what is done once all of these writes are; waits while too many units are behind.

        The next unit describes the array of an item that it shares with this one anew.
        """
        for stage, writer in zip(self._stages, self.writers, strict=True):
            stage.put(writer.close_native)

        def wait_and_commit() -> None:
            for write in writes:
                write.result()
            with self._meter.busy(WRITE):
                call(self.writers[0])

        self._committing.put(wait_and_commit)

    def finish(self) -> None:
        """Wait for all; raises what one of them raised."""
        for stage in (*self._stages, self._committing):
            stage.finish()

    def stop(self) -> None:
        """Drop what has not begun."""
        for stage in (*self._stages, self._committing):
            stage.stop()


class Engine:
    """Encodes the items of a store, unit by unit.

    Attributes:
        writer: Of the store.
        source: Of the items.
        encoder: The frozen model.
        progress: Told of what is committed.
        made_by: Versions of what makes the numbers, for the records.
        meter: How busy each stage is.
        rows_done: Committed by this engine.
        units_done: Likewise.
        failed: Ids of the items that failed.
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
        failed: set[str] | None = None,
        max_failures: int | None = None,
        stop: threading.Event | None = None,
        device_turn: AbstractContextManager[Any] | None = None,
        careful: bool = False,
    ) -> None:
        """See the class.

        Args:
            writer: Of the store.
            source: Of the items.
            encoder: The frozen model.
            workers: Threads that read.
            progress: Told of what is committed.
            made_by: For the records.
            failed: Ids of items that failed in this run before; those that fail now are added.
            max_failures: Items that may fail.
            stop: Once set, the unit in work is dropped and `StoppedError` raised.
            device_turn: Held during a pass, where several engines share a device.
            careful: Whether items are read one by one and never beside a pass, so that what ends
                the process is known.
        """
        self.writer = writer
        self.source = source
        self.encoder = encoder
        self.progress = progress
        self.made_by = made_by
        self.meter = Meter({READ: workers, ENCODE: 1, COLLECT: 1, WRITE: _WRITERS})
        self._workers = workers
        self._max_failures = max_failures
        self._stop = stop or threading.Event()
        self._device_turn = device_turn or nullcontext()
        self._careful = careful
        header = writer.store.header
        self._batch = header.grid.batch
        self._recipe = header.recipe
        self._prepare = Preprocess(header.recipe.input, encoder.device)
        self.rows_done = self.units_done = 0
        self._told = 0
        self.failed = set() if failed is None else failed
        self._by_item = encoder.spec.network == "volume"
        channels = header.recipe.channels
        self._channels: tuple[str | None, ...] = (None,)
        if channels.mode == "passes":
            self._channels = channels.names
        self._all_kinds = [kind for kind in writer.store.kinds if is_row_kind(kind)]
        self._keeping: dict[str, _Keeping] = {}

    def run(self, work: Sequence[UnitWork]) -> None:
        """Do some units; returns when all are committed.

        Args:
            work: In order of rows.

        Raises:
            StoreWriteError: If the disk refuses; what was committed before is whole.
            StoppedError: If it was asked to stop; likewise.
            TooManyFailuresError: If more items failed than may; likewise.
        """
        decoding = self.decoding()
        pieces = decoding.pieces(work)
        collecting = Stage(None, ahead=_BATCHES_AHEAD, meter=self.meter)
        writing = _Writing(self.writer.store, self.meter)
        try:
            try:
                for unit_work in work:
                    self._do_unit(_OpenUnit(self, unit_work, collecting, writing), pieces, decoding)
            except (StoppedError, TooManyFailuresError):
                # The unit in work is dropped, those behind it are whole.
                decoding.stop()
                collecting.finish()
                writing.finish()
                raise
            collecting.finish()
            writing.finish()
        finally:
            decoding.stop()
            pieces.close()
            collecting.stop()
            writing.stop()

    def decoding(self) -> Decoding:
        """Make what decodes the rows of units; to be stopped."""
        return Decoding(
            self.source,
            self._recipe,
            self.staged,
            workers=self._workers,
            rows_ahead=self._workers * 2 + self._batch,
            whole_items=self._by_item,
            meter=self.meter,
            progress=self.progress,
            ahead=not self._careful,
        )

    # A unit

    def _do_unit(self, unit: "_OpenUnit", pieces: Iterator[Piece], decoding: Decoding) -> None:
        self._check_failures()
        for _ in range(unit.work.unit.n_items):
            self.check_stop()  # also where no item can be read
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
            with closing(decoding.blocks(piece, head, unit.work.kinds)) as blocks:
                for block in blocks:
                    unit.put_image(piece, head, done, block)
                    for row in block:
                        unit.put_row(piece.item_id, row.inputs)
                    done += len(block)
                    self.check_stop()
        except ItemError as exc:
            unit.fail(piece, str(exc), begun=head is not None)
        for _ in range(piece.n_rows - done):
            # A failed row keeps its place, so that its neighbours' batch stays as planned.
            unit.put_row(piece.item_id, None)
        if self._by_item:
            unit.encode()

    def check_stop(self) -> None:
        """Raise `StoppedError` if it was asked to stop."""
        if self._stop.is_set():
            raise StoppedError("stopped; what was committed is whole")

    def _check_failures(self) -> None:
        """See between two units, so that what failed is recorded, whether too many items did."""
        if self._max_failures is not None and len(self.failed) > self._max_failures:
            raise TooManyFailuresError(
                f"stopped: {len(self.failed)} items failed, --max-failures is "
                f"{self._max_failures}. What was committed is whole, `dinocache failures "
                f"{self.writer.folder}` says why they failed; mend them, or raise the limit, "
                "and run the same command again"
            )

    def note_failure(self, item_id: str) -> None:
        """Count an item that failed."""
        self.failed.add(item_id)

    def staged(self, pixels: Pixels, windows: Sequence[Window]) -> tuple[Staged, ...]:
        """Make a row's input for each pass through the encoder, as far as threads can."""
        if self._recipe.channels.mode == "stacked":
            return (self._prepare.stage(pixels, windows),)
        several = [*windows] * len(pixels) if len(windows) == 1 else windows
        return tuple(
            self._prepare.stage(pixels[c : c + 1], several[c : c + 1]) for c in range(len(pixels))
        )

    def encode(
        self,
        batch: Sequence[Staged | None],
        kinds: Sequence[str],
        once: Pass,
        *,
        plain: bool = False,
    ) -> "_Encoded":
        """Encode one batch in one pass.

        Args:
            batch: None where a row failed. Not all are None.
            kinds: Of this pass.
            once: Which channel, and how it is turned.
            plain: Whether features come as float32, whatever the store keeps.

        Returns:
            Its features, maybe still on their way from the device.
        """
        asked: Sequence[str] = kinds
        rows = list(batch)
        if self.encoder.compiled and not self._by_item:
            # One shape and one graph, also for what is left of a unit that was interrupted: what is
            # compiled for other outputs may differ in its last bits.
            rows += [None] * (self._batch - len(rows))
            asked = [k for k in self._all_kinds if pass_of(k) == once]
        bases = {kind: base_of(kind) for kind in asked}
        with self._device_turn:
            encoded = _Encoded(self.encoder.device, self.meter)
            images = self._prepare.batch(rows)
            if swaps_axes(once.view):
                images = images.swapaxes(-2, -1)
            if axes := flips(once.view, (-2, -1)):
                images = images.flip(axes)
            found = self.encoder(images, tuple(bases.values()))
            wanted = {k: found[base][: len(batch)] for k, base in bases.items() if k in kinds}
            self._check_shapes(wanted)
            as_it_is = _Keeping("float32", None, self.encoder.device)
            encoded.take(
                {
                    kind: (as_it_is if plain else self._kept(kind))(values)
                    for kind, values in wanted.items()
                }
            )
        return encoded

    def _kept(self, kind: str) -> "_Keeping":
        """Say how a kind is kept."""
        if kind not in self._keeping:
            dtype = self.writer.layout(kind).dtype
            calibration = self.writer.store.calibration(kind)
            self._keeping[kind] = _Keeping(dtype, calibration, self.encoder.device)
        return self._keeping[kind]

    def tell(self, item_id: str, notes: Sequence[str]) -> None:
        """Say what a person should know of an item; of the first few only, the store has all."""
        self._told += 1
        if self._told <= _NOTES_TOLD:
            more = "; further notes stand in the records" if self._told == _NOTES_TOLD else ""
            self.progress.note(f"note: {item_id}: {'; '.join(notes)}{more}")

    @property
    def whole_items(self) -> bool:
        """Whether all rows of an item pass through the encoder together."""
        return self._by_item

    @property
    def batch(self) -> int:
        """Rows that pass through the encoder together; all of an item for a volume's encoder."""
        return 1 << 62 if self._by_item else self._batch

    def passes_of(self, kinds: Sequence[str]) -> list[tuple[int, Pass]]:
        """List the passes that some kinds take, with the number of the channel of each."""
        wanted = dict.fromkeys(map(pass_of, kinds))
        return [(self._channels.index(once.channel), once) for once in wanted]

    def _check_shapes(self, found: "Mapping[str, torch.Tensor]") -> None:
        """See that an encoder gives what its facts promise: zarr would cut off what is over."""
        for kind, features in found.items():
            promised = (*self.writer.layout(kind).tail[:-1], encoded_dim(kind, self._recipe))
            if tuple(features.shape[1:]) != promised:
                raise RequestError(
                    f"{self.encoder.spec.name} gives {kind} of {_size(features.shape[1:])} where "
                    f"{_size(promised)} is stored; at its own "
                    f"{self.encoder.spec.native_px} px it may fit"
                )


class _Keeping:
    """What becomes of a kind's features on the encoder's device before they are copied."""

    def __init__(self, dtype: str, calibration: Calibration | None, device: "torch.device") -> None:
        import torch

        def there(values: npt.NDArray[np.float32] | None) -> "torch.Tensor | None":
            return None if values is None else torch.tensor(values, device=device)

        self.dtype: torch.dtype = getattr(torch, dtype)
        self.most = FLOAT16_MAX if dtype == "float16" else float(np.finfo(np.float32).max)
        self._calibration = calibration
        self._fitted: list[torch.Tensor | None] = []
        if calibration is not None:
            arrays = calibration.offset, calibration.basis, calibration.scale
            self._fitted = [there(values) for values in arrays]

    def __call__(self, values: "torch.Tensor") -> "_Kept":
        """Make (rows, ...) what is stored."""
        values = values.float()
        if self._calibration is not None:
            values = made_small(values, *self._fitted)
        largest, clipped = values.abs().flatten(1).amax(1), None
        if self.dtype.itemsize == 1:
            clipped = (values.abs() > LARGEST_CODE).flatten(1).sum(1)
            values = values.clip(-LARGEST_CODE, LARGEST_CODE)
        return _Kept(values.to(self.dtype), largest, clipped, self.most)


class _Kept(NamedTuple):
    """The features of a batch: of torch, then of NumPy."""

    rows: Any
    """(rows, ...) of the store's type."""
    largest: Any
    """(rows,) the largest magnitude before they were cast."""
    clipped: Any
    """(rows,) how many numbers were cut off, of int8; else None."""
    most: float
    """The largest magnitude that can be kept."""


class _Encoded:
    """The features of a batch, on their way from the device."""

    def __init__(self, device: "torch.device", meter: Meter) -> None:
        """Begin to measure; the batch is launched next."""
        import torch

        self._meter = meter
        self._stream = torch.cuda.current_stream(device) if device.type == "cuda" else None
        self._began = time.monotonic()
        self._events: list[torch.cuda.Event] = []
        self._mark()

    def _mark(self) -> None:
        """Note the moment at which the device comes this far."""
        import torch

        if self._stream is not None:
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record(self._stream)
            self._events.append(event)

    def take(self, features: Mapping[str, _Kept]) -> None:
        """Begin the copies to the host."""
        self._found = {
            kind: kept._replace(
                rows=self._to_host(kept.rows),
                largest=self._to_host(kept.largest),
                clipped=None if kept.clipped is None else self._to_host(kept.clipped),
            )
            for kind, kept in features.items()
        }
        self._mark()
        if self._stream is None:
            self._meter.add(ENCODE, time.monotonic() - self._began)

    def _to_host(self, values: "torch.Tensor") -> "torch.Tensor":
        import torch

        if self._stream is None:
            return values.cpu()
        pinned = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        return pinned.copy_(values, non_blocking=True)

    def result(self) -> dict[str, _Kept]:
        """Wait for the device."""
        if self._stream is not None:
            first, last = self._events
            last.synchronize()
            self._meter.add(ENCODE, first.elapsed_time(last) / 1000)
        return {
            kind: kept._replace(
                rows=kept.rows.numpy(),
                largest=kept.largest.numpy(),
                clipped=None if kept.clipped is None else kept.clipped.numpy(),
            )
            for kind, kept in self._found.items()
        }


class _OpenUnit:
    """A unit while its rows come: batches to encode, files to write, what to commit.

    `begin`, `put_image`, `put_row`, `fail`, `encode` and `finish` are called where the encoder
    runs; what they queue, in the collecting thread; writes and the commit, in theirs.
    """

    def __init__(
        self, engine: Engine, work: UnitWork, collecting: Stage, writing: _Writing
    ) -> None:
        self.work = work
        self._engine, self._collecting, self._writing = engine, collecting, writing
        self._gathered = {kind: _Committing() for kind in work.kinds}
        self._row_kinds = [kind for kind in work.kinds if is_row_kind(kind)]
        in_features = [kind for kind in work.kinds if kind not in NATIVE_KINDS]
        self._blocks = {
            kind: _RowBlocks(engine.writer.layout(kind).file_rows, work.unit.row_start)
            for kind in in_features
        }
        self._writes: list[Future[None]] = []
        self._batch: list[tuple[Staged, ...] | None] = []
        self._owners: list[str] = []

    def begin(self, piece: Piece, head: Head) -> None:
        """Take what an item has besides its rows' pixels."""
        if notes := head.item.notes:
            for gathering in self._gathered.values():
                gathering.notes[piece.item_id] = notes
            self._engine.tell(piece.item_id, notes)
        if COORD in self._gathered:
            self._collecting.put(partial(self._add, COORD, head.coords))
            if (picture := head.thumbnail) is not None:
                self._write(
                    COORD,
                    piece.position,
                    lambda writer: writer.write_thumb(piece.position, picture, head.item.size),
                )
        if "mask" in self._gathered:
            self._put_mask(piece, head)

    def _put_mask(self, piece: Piece, head: Head) -> None:
        gathering = self._gathered["mask"]
        if piece.item_id not in self._engine.source.masks:
            gathering.not_asked.append(piece.item_id)
        elif head.mask is None:
            self._fail("mask", piece.item_id, head.mask_reason or "it has no mask")
        else:
            self._put_native("mask", piece, head, 0, head.mask)

    def put_image(self, piece: Piece, head: Head, first: int, rows: Sequence[Row]) -> None:
        """Take rows of the item's own grid, from number `first` of the piece."""
        if "image" in self._gathered:
            pixels = [row.pixels for row in rows if row.pixels is not None]
            self._put_native("image", piece, head, first, np.stack(pixels, axis=1))

    def _put_native(
        self, kind: str, piece: Piece, head: Head, first: int, rows: npt.NDArray[Any]
    ) -> None:
        attributes = head.item.geometry.to_attributes()
        if kind == "image":
            attributes["windows"] = [list(window) for window in head.windows]
        depth = head.item.n_rows

        def write(writer: StoreWriter) -> dict[str, StoredObject]:
            return writer.write_native(
                kind,
                piece.position,
                rows,
                start=piece.offset + first,
                depth=depth,
                attributes=attributes,
            )

        self._write(kind, piece.position, write)

    def put_row(self, item_id: str, inputs: tuple[Staged, ...] | None) -> None:
        """Take a row, or None where there is none; encodes when the batch is full."""
        if not self._row_kinds:
            return
        self._batch.append(inputs)
        self._owners.append(item_id)
        if len(self._batch) == self._engine.batch:
            self.encode()

    def fail(self, piece: Piece, reason: str, *, begun: bool) -> None:
        """Note that an item, or what is left of it, cannot be read."""
        for kind, gathering in self._gathered.items():
            if kind == "mask" and piece.item_id not in self._engine.source.masks:
                if not begun:
                    gathering.not_asked.append(piece.item_id)
            else:
                self._fail(kind, piece.item_id, reason, replaces=True)
        if COORD in self._blocks and not begun:
            nothing = self._engine.writer.layout(COORD).nothing(piece.n_rows)
            self._collecting.put(partial(self._add, COORD, nothing))

    def _fail(self, kind: str, item_id: str, reason: str, *, replaces: bool = False) -> None:
        failed, failure = self._gathered[kind].failed, self._engine.source.failure(item_id, reason)
        if replaces:
            failed[item_id] = failure
        else:  # at once: two threads come here, and the record must not depend on which is first
            failed.setdefault(item_id, failure)
        self._engine.note_failure(item_id)

    def encode(self) -> None:
        """Encode the batch."""
        batch, owners = self._batch, self._owners
        self._batch, self._owners = [], []
        if not batch:
            return
        for number, once in self._engine.passes_of(self._row_kinds):
            kinds = [kind for kind in self._row_kinds if pass_of(kind) == once]
            inputs = [None if row is None else row[number] for row in batch]
            if all(row is None for row in inputs):
                self._collecting.put(partial(self._add_nothing, kinds, len(batch)))
                continue
            encoded = self._engine.encode(inputs, kinds, once)
            present = [row is not None for row in inputs]
            self._collecting.put(partial(self._collect, encoded, present, owners))

    def finish(self) -> None:
        """Write what is left, then commit."""
        self._collecting.put(self._finish)

    # In the collecting thread

    def _collect(self, encoded: _Encoded, present: Sequence[bool], owners: Sequence[str]) -> None:
        """Take a batch's features; those that cannot be kept become NaN and failures."""
        for kind, found in encoded.result().items():
            with self._engine.meter.busy(COLLECT):
                kept = (found.largest <= found.most) & np.array(present)  # False for NaN, too
                for index in map(int, np.flatnonzero(~kept)):
                    found.rows[index] = self._engine.writer.layout(kind).absent
                    if present[index]:
                        reason = _why_not_kept(kind, float(found.largest[index]), found.most)
                        self._fail(kind, owners[index], reason)
                if found.clipped is not None:
                    gathering = self._gathered[kind]
                    gathering.clipped += int(found.clipped[kept].sum())
                    gathering.numbers += int(found.rows[kept].size)
            self._add(kind, found.rows)

    def _add_nothing(self, kinds: Sequence[str], n_rows: int) -> None:
        for kind in kinds:
            self._add(kind, self._engine.writer.layout(kind).nothing(n_rows))

    def _add(self, kind: str, values: npt.NDArray[Any]) -> None:
        with self._engine.meter.busy(COLLECT):
            files = list(self._blocks[kind].add(values))
        for row, block in files:
            self._write_rows(kind, row, block)

    def _write_rows(self, kind: str, row: int, block: npt.NDArray[Any]) -> None:
        if not self._engine.writer.layout(kind).is_absent(block):
            number = row // len(block)
            self._write(kind, number, lambda writer: writer.write_rows(kind, row, block))

    def _finish(self) -> None:
        for kind, blocks in self._blocks.items():
            for row, block in blocks.rest():
                self._write_rows(kind, row, block)
        self._writing.commit(self._writes, self._commit)

    def _write(
        self, kind: str, key: int, write: Callable[[StoreWriter], dict[str, StoredObject]]
    ) -> None:
        """Write later, and note what was written for the commit."""
        objects = self._gathered[kind].objects
        self._writes.append(self._writing.put(key, lambda writer: objects.update(write(writer))))

    # In the committing thread

    def _commit(self, writer: StoreWriter) -> None:
        unit, engine = self.work.unit, self._engine
        for kind, gathering in self._gathered.items():
            writer.commit(
                Record(
                    unit=unit.name,
                    kind=kind,
                    recipe=self.work.segment.recipe,
                    rows=(unit.row_start, unit.row_start + unit.n_rows),
                    items=unit.n_items,
                    failed=gathering.failed,
                    not_asked=tuple(gathering.not_asked),
                    notes=gathering.notes,
                    objects=gathering.objects,
                    made_by=engine.made_by,
                    fitted=writer.fitted(kind, gathering.clipped, gathering.numbers),
                )
            )
        written = sum(o.bytes for g in self._gathered.values() for o in g.objects.values())
        engine.rows_done += unit.n_rows
        engine.units_done += 1
        engine.progress.advance(unit.n_rows, written, engine.meter.fractions())


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


def _size(shape: Sequence[int]) -> str:
    return " x ".join(str(n) for n in shape)


def _why_not_kept(kind: str, largest: float, most: float) -> str:
    if largest > most and largest != float("inf"):
        return f"{kind}: a feature of {largest:.6g} does not fit float16 (at most {most:.0f})"
    return f"{kind}: features are NaN or infinite"
