"""Does units: decode, encode and write overlap; each unit is committed as a whole.

Decoding runs in threads (Pillow and torch release the interpreter's lock), encoding in the calling
thread, writing in one thread of its own, with bounded queues between.
"""

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dinocache.errors import ItemError, RequestError
from dinocache.layout import ITEM_PREFIX, NATIVE_KINDS, is_row_kind
from dinocache.plan import Segment, Unit
from dinocache.progress import Progress
from dinocache.readers import Geometry, Pixels, Reader
from dinocache.records import Failure, Record, StoredObject
from dinocache.store import FeatureStore
from dinocache.transforms import Preprocess, check_resizing, window_range
from dinocache.writer import StoreWriter

if TYPE_CHECKING:
    import torch

    from dinocache.inference import Encoder

__all__ = ["Engine", "Source", "UnitWork", "close_segment"]

FLOAT16_MAX = 65504.0
_WRITES_AHEAD = 8


@dataclass(frozen=True, kw_only=True)
class UnitWork:
    """A unit and the kinds of it that are missing."""

    segment: Segment
    unit: Unit
    kinds: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where the items of a store come from.

    Attributes:
        data: The data folder.
        reader: Opens the items.
        paths: Item id -> path relative to the data folder.
        masks: Item id -> path of its mask; items without one are not in it.
    """

    data: Path
    reader: Reader
    paths: Mapping[str, str]
    masks: Mapping[str, str]

    def failure(self, item_id: str, reason: str) -> Failure:
        """Make the entry of the failure ledger."""
        return Failure(reason=reason, reader=self.reader.name, path=self.paths[item_id])


@dataclass(frozen=True, kw_only=True)
class _Piece:
    """An item of a unit, decoded: its rows or why there are none."""

    item_id: str
    position: int
    n_rows: int
    rows: list[Pixels] | None
    window: tuple[float, float]
    geometry: Geometry
    mask: npt.NDArray[np.integer[Any]] | None
    reason: str | None
    mask_reason: str | None


@dataclass
class _Committing:
    """What gathers, in the writing thread, until a unit's kind is committed."""

    objects: dict[str, StoredObject] = field(default_factory=dict)
    failed: dict[str, Failure] = field(default_factory=dict)
    not_asked: list[str] = field(default_factory=list)


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
        self._prepare = Preprocess(header.recipe.input, encoder.device)
        self._warned = False
        self._by_item = encoder.spec.network == "volume"
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
            pieces = self._decoded(work, pool)
            for unit_work in work:
                self._do_unit(unit_work, pieces, writing)
            writing.finish()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            writing.stop()

    # Decoding

    def _decoded(self, work: Sequence[UnitWork], pool: ThreadPoolExecutor) -> Iterator[_Piece]:
        """Yield the pieces of all units in order, decoded a bounded number ahead."""
        ahead: deque[Future[_Piece]] = deque()
        limit = self._workers * 2 + self._batch
        for unit_work in work:
            segment = unit_work.segment
            for item, _, offset, n_rows in segment.pieces(unit_work.unit):
                ahead.append(
                    pool.submit(self._decode, segment, item, offset, n_rows, unit_work.kinds)
                )
                if len(ahead) >= limit:
                    yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()

    def _decode(
        self, segment: Segment, item: int, offset: int, n_rows: int, kinds: Sequence[str]
    ) -> _Piece:
        item_id = segment.item_ids[item]
        rows, reason, window, geometry = None, None, (0.0, 1.0), Geometry()
        try:
            read = self.source.reader.read(
                self.source.data / self.source.paths[item_id], offset, offset + n_rows
            )
            window = self._window(read.rows, whole=n_rows == segment.item_rows[item])
            rows, geometry = read.rows, read.geometry
        except ItemError as exc:
            reason = str(exc)
        mask, mask_reason = None, reason
        if "mask" in kinds and item_id in self.source.masks and rows is not None:
            try:
                mask = self.source.reader.read_mask(self.source.data / self.source.masks[item_id])
                _check_mask(mask, rows)
            except ItemError as exc:
                mask_reason = f"mask {self.source.masks[item_id]}: {exc}"
        return _Piece(
            item_id=item_id,
            position=segment.item_start + item,
            n_rows=n_rows,
            rows=rows,
            window=window,
            geometry=geometry,
            mask=mask,
            reason=reason,
            mask_reason=mask_reason,
        )

    def _window(self, rows: Sequence[Pixels], *, whole: bool) -> tuple[float, float]:
        recipe = self._prepare.recipe
        if not whole and (recipe.window.mode == "min-max" or self._by_item):
            raise ItemError(
                "it is shared by several units, but its window or its encoder needs all of its "
                "rows together; give it fewer rows"
            )
        for row in rows:
            check_resizing(recipe, row.shape[1:])
        self._warn_of_dark(rows)
        return window_range(recipe, rows)

    def _warn_of_dark(self, rows: Sequence[Pixels]) -> None:
        """Say once that 16-bit images may hold 12 bits, which full-range makes near black."""
        if self._warned or self._prepare.recipe.window.mode != "full-range":
            return
        if rows[0].dtype == np.uint16 and (top := max(int(row.max()) for row in rows)) < 1 << 13:
            self._warned = True
            self.progress.note(
                f"note: a 16-bit image has no value above {top}; if all are so, make the store "
                f"with --window 0:{(1 << top.bit_length()) - 1}, else they are near black"
            )

    # A unit

    def _do_unit(self, work: UnitWork, pieces: Iterator[_Piece], writing: "_WritingThread") -> None:
        gathered = {kind: _Committing() for kind in work.kinds}
        row_kinds = [kind for kind in work.kinds if is_row_kind(kind)]
        blocks = {
            k: _RowBlocks(self.writer.layout(k).file_rows, work.unit.row_start) for k in row_kinds
        }
        batch: list[torch.Tensor | None] = []
        owners: list[str] = []

        def encode() -> None:
            for kind, values in self._encode(batch, owners, row_kinds, gathered).items():
                for row, block in blocks[kind].add(values):
                    writing.put(partial(self._write, gathered[kind], kind, row, block))
            batch.clear()
            owners.clear()

        for _ in range(work.unit.n_items):
            piece = next(pieces)
            self._put_native(piece, gathered, writing)
            if not row_kinds:
                continue
            if piece.reason is not None:
                for kind in row_kinds:
                    gathered[kind].failed[piece.item_id] = self.source.failure(
                        piece.item_id, piece.reason
                    )
            for index in range(piece.n_rows):
                # A failed row keeps its place, so that its neighbours' batch stays as planned.
                decoded = None if piece.rows is None else piece.rows[index]
                batch.append(None if decoded is None else self._prepare(decoded, piece.window))
                owners.append(piece.item_id)
                if len(batch) == self._batch and not self._by_item:
                    encode()
            if batch and self._by_item:
                encode()
        if batch:
            encode()
        for kind, rows in blocks.items():
            for row, block in rows.rest():
                writing.put(partial(self._write, gathered[kind], kind, row, block))
        writing.put(partial(self._commit, work, gathered))

    def _encode(
        self,
        batch: Sequence["torch.Tensor | None"],
        owners: Sequence[str],
        kinds: Sequence[str],
        gathered: Mapping[str, _Committing],
    ) -> dict[str, npt.NDArray[np.float16]]:
        """Encode one batch; rows whose features cannot be kept become NaN and failures."""
        import torch

        present = [row is not None for row in batch]
        values: dict[str, torch.Tensor] = {}
        if any(present):
            recipe = self._prepare.recipe
            empty = torch.zeros((recipe.channels, *recipe.resolution), device=self.encoder.device)
            rows = [empty if row is None else row for row in batch]
            asked = kinds
            if self.encoder.compiled and not self._by_item:
                # One shape and one graph, also for what is left of a unit that was interrupted:
                # what is compiled for other outputs may differ in its last bits.
                rows += [empty] * (self._batch - len(rows))
                asked = self._all_kinds
            found = self.encoder(torch.stack(rows), asked)
            self._check_shapes(found)
            values = {kind: features[: len(batch)] for kind, features in found.items()}
        encoded = {}
        for kind in kinds:
            if not any(present):
                tail = self.writer.layout(kind).tail
                encoded[kind] = np.full((len(batch), *tail), np.nan, np.float16)
                continue
            largest = values[kind].abs().flatten(1).amax(1)
            kept = (largest <= FLOAT16_MAX).tolist()  # False for NaN, too
            half = values[kind].to(torch.float16).cpu().numpy()
            for index, owner in enumerate(owners):
                if present[index] and kept[index]:
                    continue
                half[index] = np.nan
                if present[index]:
                    reason = _why_not_kept(kind, float(largest[index]))
                    gathered[kind].failed.setdefault(owner, self.source.failure(owner, reason))
            encoded[kind] = half
        return encoded

    def _check_shapes(self, found: Mapping[str, "torch.Tensor"]) -> None:
        """See that an encoder gives what its facts promise: zarr would cut off what is over."""
        for kind, features in found.items():
            promised = self.writer.layout(kind).tail
            if tuple(features.shape[1:]) != promised:
                raise RequestError(
                    f"{self.encoder.spec.name} gives {kind} of {_size(features.shape[1:])} where "
                    f"{_size(promised)} is stored; at its own "
                    f"{self.encoder.spec.native_px} px it may fit"
                )

    def _put_native(
        self, piece: _Piece, gathered: Mapping[str, _Committing], writing: "_WritingThread"
    ) -> None:
        for kind in NATIVE_KINDS:
            if kind not in gathered:
                continue
            gathering = gathered[kind]
            if kind == "mask" and piece.item_id not in self.source.masks:
                gathering.not_asked.append(piece.item_id)
                continue
            reason = piece.reason if kind == "image" else piece.mask_reason
            if reason is not None or piece.rows is None:
                gathering.failed[piece.item_id] = self.source.failure(piece.item_id, reason or "")
                continue
            attributes: dict[str, Any] = vars(piece.geometry).copy()
            array: npt.NDArray[Any] = np.stack(piece.rows, axis=1)
            if kind == "image":
                attributes["value_range"] = list(piece.window)
            elif piece.mask is not None:
                array = piece.mask[None]
            write = partial(self._write_native, gathering, kind, piece.position, array, attributes)
            writing.put(write)

    # In the writing thread

    def _write(
        self, gathering: _Committing, kind: str, row: int, block: npt.NDArray[np.float16]
    ) -> None:
        if not np.isnan(block).all():
            gathering.objects.update(self.writer.write_rows(kind, row, block))

    def _write_native(
        self,
        gathering: _Committing,
        kind: str,
        position: int,
        array: npt.NDArray[Any],
        attributes: dict[str, Any],
    ) -> None:
        gathering.objects.update(self.writer.write_native(kind, position, array, attributes))

    def _commit(self, work: UnitWork, gathered: Mapping[str, _Committing]) -> None:
        unit = work.unit
        for kind, gathering in gathered.items():
            self.writer.commit(
                Record(
                    unit=unit.name,
                    kind=kind,
                    recipe=work.segment.recipe,
                    rows=(unit.row_start, unit.row_start + unit.n_rows),
                    items=unit.n_items,
                    failed=gathering.failed,
                    not_asked=tuple(gathering.not_asked),
                    objects=gathering.objects,
                    made_by=self.made_by,
                )
            )
        written = sum(o.bytes for g in gathered.values() for o in g.objects.values())
        self.progress.advance(unit.n_rows, written)


class _RowBlocks:
    """Cuts a unit's rows, as they come, into whole files."""

    def __init__(self, file_rows: int, row_start: int) -> None:
        self._file_rows = file_rows
        self._row = row_start
        self._parts: list[npt.NDArray[np.float16]] = []

    def add(self, values: npt.NDArray[np.float16]) -> Iterator[tuple[int, npt.NDArray[np.float16]]]:
        """Take rows; yields (first row, rows) of each file that is full."""
        self._parts.append(values)
        if sum(len(part) for part in self._parts) < self._file_rows:
            return
        block = np.concatenate(self._parts)
        while len(block) >= self._file_rows:
            yield self._row, block[: self._file_rows]
            self._row, block = self._row + self._file_rows, block[self._file_rows :]
        self._parts = [block]

    def rest(self) -> Iterator[tuple[int, npt.NDArray[np.float16]]]:
        """Yield what is left behind the last whole file."""
        block = np.concatenate(self._parts) if self._parts else np.empty((0,), np.float16)
        if len(block):
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


def _check_mask(mask: npt.NDArray[np.integer[Any]], rows: Sequence[Pixels]) -> None:
    expected = (len(rows), *rows[0].shape[1:])
    if mask.shape != expected:
        raise ItemError(
            f"it is {_size(mask.shape)}, its image {_size(expected)} (slices x rows x columns)"
        )


def _size(shape: Sequence[int]) -> str:
    return " x ".join(str(n) for n in shape)


def _why_not_kept(kind: str, largest: float) -> str:
    if largest > FLOAT16_MAX and largest != float("inf"):
        return (
            f"{kind}: a feature of {largest:.6g} does not fit float16 (at most {FLOAT16_MAX:.0f})"
        )
    return f"{kind}: features are NaN or infinite"
