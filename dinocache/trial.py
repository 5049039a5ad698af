"""How long rows take on this machine: a few items are read, a few passes made, nothing is kept."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from dinocache.calibration import by_hash
from dinocache.cost import activation_bytes, weight_bytes
from dinocache.errors import ItemError, RequestError
from dinocache.intensity import item_windows
from dinocache.layout import Pass, base_of, is_row_kind, pass_of
from dinocache.progress import human_bytes
from dinocache.readers import guarded
from dinocache.recipe import Recipe
from dinocache.source import Source
from dinocache.spec import EncoderSpec
from dinocache.transforms import Preprocess, Staged, check_row

if TYPE_CHECKING:
    import torch

    from dinocache.inference import Encoder
    from dinocache.intensity import Window
    from dinocache.readers import OpenItem, Pixels

__all__ = [
    "Encoding",
    "Reading",
    "drawn",
    "try_encoding",
    "try_reading",
    "why_not",
]

MOST_ITEMS = 32
_READING_S, _ENCODING_S, _BUSY_S = 4.0, 10.0, 20.0
_ENOUGH_S = 0.5
"""A pass that takes so long tells how long a row takes, if those of more rows are not cheaper."""
_CHEAPER = 0.75
_BLOCK_ROWS, _BLOCK_BYTES = 16, 32 << 20
_KEPT_ROWS = 16
_MOST_BYTES = 12e9
"""Of weights that are drawn for a trial; drawing more takes minutes."""


@dataclass(kw_only=True)
class Reading:
    """What reading a few items took.

    Attributes:
        items: That were read.
        rows: Of these items, in all.
        nbytes: Of these rows, decoded.
        plane_px: Pixels of a row's plane, on average.
        item_s: Seconds of a thread for an item until its first rows are the encoder's input.
        first_rows: How many rows that is, on average.
        row_s: Seconds of a thread for each further row.
        cpu: Seconds that cores worked for each of a thread's; more than 1 where decoders have
            threads of their own.
        inputs: Of some rows: what each pass through the encoder takes.
        unreadable: Items that could not be read -> why.
    """

    items: int = 0
    rows: int = 0
    nbytes: int = 0
    plane_px: float = 0.0
    item_s: float = 0.0
    first_rows: float = 0.0
    row_s: float = 0.0
    cpu: float = 1.0
    inputs: list[tuple[Staged, ...]] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)

    def seconds(self, item_rows: Iterable[int]) -> float:
        """Estimate what items take in one thread, s.

        Args:
            item_rows: Rows of each.
        """
        return sum(
            self.item_s + self.row_s * max(0.0, rows - self.first_rows) for rows in item_rows
        )


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """What a few passes took.

    Attributes:
        row_s: Seconds a row.
        row_cpu_s: Seconds that cores worked a row.
        start_s: Seconds until the encoder was ready.
    """

    row_s: float
    row_cpu_s: float
    start_s: float


def drawn(item_ids: Iterable[str]) -> list[str]:
    """Draw a few items, by a hash of their ids: the same whenever it is asked."""
    return by_hash(item_ids)[:MOST_ITEMS]


# -------------------------------------------------------------------- reading


def try_reading(
    source: Source,
    recipe: Recipe,
    item_ids: Sequence[str],
    *,
    kinds: Sequence[str],
    workers: int,
    device: "torch.device | None",
) -> Reading:
    """Read a few items as an extraction does, for some seconds at most.

    Args:
        source: Of the items.
        recipe: What becomes of them.
        item_ids: Which, see `drawn`.
        kinds: What is kept of them.
        workers: Threads.
        device: That encodes; None opens the items and decodes nothing.

    Returns:
        What it took.
    """
    trial = _Reader(source, recipe, kinds, Preprocess(recipe.input, device) if device else None)
    reading = Reading()
    if not item_ids:
        return reading
    # The first item brings decoders along, which are not to be counted again and again.
    *others, first = item_ids
    began = time.monotonic()
    done = [trial.read(first)]
    counted = done
    if others and time.monotonic() - began < _READING_S:
        began, worked = time.monotonic(), time.process_time()
        with ThreadPoolExecutor(workers, thread_name_prefix="trial") as pool:
            until = began + _READING_S
            found = pool.map(lambda i: trial.read(i) if time.monotonic() < until else None, others)
            counted = [one for one in found if one is not None]
        worked = time.process_time() - worked
        seconds = sum(one.first_s + one.more_s for one in counted)
        reading.cpu = worked / seconds if seconds else 1.0
        done = [*done, *counted]
    _sum_up(reading, done, counted)
    return reading


@dataclass(kw_only=True)
class _Read:
    """What one item took."""

    item_id: str
    reason: str | None = None
    n_rows: int = 0
    nbytes: int = 0
    plane_px: int = 0
    first_rows: int = 0
    first_s: float = 0.0
    more_rows: int = 0
    more_s: float = 0.0
    inputs: list[tuple[Staged, ...]] = field(default_factory=list)


def _sum_up(reading: Reading, done: Sequence[_Read], counted: Sequence[_Read]) -> None:
    good = [one for one in done if one.reason is None]
    reading.unreadable = {one.item_id: one.reason for one in done if one.reason is not None}
    if not good:
        return
    reading.items = len(good)
    reading.rows = sum(one.n_rows for one in good)
    reading.nbytes = sum(one.nbytes for one in good)
    reading.plane_px = sum(one.plane_px * one.n_rows for one in good) / reading.rows
    counted = [one for one in counted if one.reason is None] or good
    reading.item_s = sum(one.first_s for one in counted) / len(counted)
    reading.first_rows = sum(one.first_rows for one in counted) / len(counted)
    more = sum(one.more_rows for one in counted)
    reading.row_s = sum(one.more_s for one in counted) / more if more else 0.0
    reading.inputs = [row for one in good for row in one.inputs][:_KEPT_ROWS]


class _Reader:
    """Reads the first rows of items."""

    def __init__(
        self, source: Source, recipe: Recipe, kinds: Sequence[str], prepare: Preprocess | None
    ) -> None:
        self._source, self._recipe = source, recipe
        self._prepare = prepare
        self._encoded = any(is_row_kind(kind) for kind in kinds)
        self._mask = "mask" in kinds

    def read(self, item_id: str) -> _Read:
        """Open an item and read two blocks of its rows: the first may decode the whole of it."""
        read = _Read(item_id=item_id)
        began = time.monotonic()
        try:
            with self._source.watch(item_id), self._source.open(item_id) as item:
                read.n_rows, read.nbytes = item.n_rows, item.nbytes
                shape = item.geometry.shape
                read.plane_px = shape[1] * shape[2] if shape else 0
                if self._prepare is not None:
                    self._decode(item, read, began)
        except ItemError as exc:
            read.reason, read.first_s = str(exc), time.monotonic() - began
        return read

    def _decode(self, item: "OpenItem", read: _Read, began: float) -> None:
        windows = guarded(lambda: item_windows(self._recipe.input.windows, item))
        a_row = max(item.nbytes // item.n_rows, 1)
        count = min(max(_BLOCK_BYTES // a_row, 1), _BLOCK_ROWS, item.n_rows)
        read.inputs = self._rows(item, windows, 0, count)[:_KEPT_ROWS]
        if self._mask and read.item_id in self._source.masks:
            guarded(item.mask)
        between = time.monotonic()
        read.first_rows, read.first_s = count, between - began
        read.more_rows = min(2 * count, item.n_rows) - count
        if read.more_rows:
            self._rows(item, windows, count, count + read.more_rows)
            read.more_s = time.monotonic() - between

    def _rows(
        self, item: "OpenItem", windows: "Sequence[Window]", start: int, stop: int
    ) -> list[tuple[Staged, ...]]:
        passes = self._recipe.channels.mode == "passes"
        found = []
        for row in guarded(lambda: item.rows(start, stop)):
            check_row(self._recipe.input, row, alone=passes)
            if self._encoded:
                found.append(self._staged(row, windows))
        return found

    def _staged(self, row: "Pixels", windows: "Sequence[Window]") -> tuple[Staged, ...]:
        if self._prepare is None:
            return ()
        if self._recipe.channels.mode == "stacked":
            return (self._prepare.stage(row, windows),)
        several = [*windows] * len(row) if len(windows) == 1 else windows
        return tuple(
            self._prepare.stage(row[c : c + 1], several[c : c + 1]) for c in range(len(row))
        )


# ------------------------------------------------------------------- encoding


def why_not(spec: EncoderSpec, resolution: tuple[int, int], device: "torch.device") -> str:
    """Say why an encoder cannot be tried here; empty if it can.

    Args:
        spec: The encoder.
        resolution: (height, width), px.
        device: Where it is to run.

    Returns:
        A clause.
    """
    import psutil

    weights = weight_bytes(spec)
    free = int(psutil.virtual_memory().available)
    needed = weights * 1.2 + (0 if device.type == "cuda" else activation_bytes(spec, resolution))
    if needed > free:
        return f"{spec.name} needs {human_bytes(needed)} of memory, {human_bytes(free)} are free"
    if weights > _MOST_BYTES:
        return f"drawing {human_bytes(weights)} of weights for {spec.name} takes minutes"
    if device.type == "cuda":
        import torch

        free = torch.cuda.mem_get_info(device)[0]
        needed = weights + activation_bytes(spec, resolution)
        if needed > free:
            return (
                f"{spec.name} needs {human_bytes(needed)}, {human_bytes(free)} of {device} are free"
            )
    return ""


def try_encoding(
    load: "Callable[[], Encoder]",
    recipe: Recipe,
    inputs: Sequence[tuple[Staged, ...]],
    *,
    kinds: Sequence[str],
    batch: int,
) -> Encoding:
    """Make passes of more and more rows, for some seconds at most.

    The first is of one row: on a CPU a whole batch may take a minute.

    Args:
        load: Makes the encoder.
        recipe: Of the input.
        inputs: Of some rows; where there is none, black ones are taken.
        kinds: What it makes.
        batch: Rows of a whole pass; of an encoder of volumes, those of a usual one.

    Returns:
        What it took.

    Raises:
        RequestError: If it cannot make a pass of one row.
    """
    began = time.monotonic()
    encoder = load()
    start_s = time.monotonic() - began
    trial = _Encoder(encoder, recipe, inputs, kinds)
    volume = encoder.spec.network == "volume"
    # Its network moves over a volume in windows: fewer rows than one has take as long.
    rows = min(batch, encoder.spec.native_px) if volume else 1
    made = [trial.pass_of(rows)]
    more = min(2 * rows, batch)
    while rows < more and _is_worth_it(made, more):
        try:
            made.append(trial.pass_of(more))
        except RequestError:  # too little memory for so many
            break
        rows, more = more, min(4 * more, batch)
    if len(made) == 1 and made[0].took_s < _ENCODING_S / 2:
        made.append(trial.pass_of(rows))  # without what the first pass of all has to do
    last = made[-1]
    return Encoding(
        row_s=last.took_s / last.rows, row_cpu_s=last.worked_s / last.rows, start_s=start_s
    )


class _Pass(NamedTuple):
    """What a pass took, and what cores worked for it, s."""

    rows: int
    took_s: float
    worked_s: float


def _is_worth_it(made: Sequence[_Pass], more: int) -> bool:
    """Whether a pass of more rows would tell more than those made, and not take too long.

    On a machine that is busy with other work threads wait for each other in every layer, which
    costs seconds a pass, whatever its rows. So it goes on for as long as rows get cheaper.
    """
    last, spent = made[-1], sum(one.took_s for one in made)
    if len(made) == 1:
        return spent + last.took_s * more / last.rows < _ENCODING_S
    before = made[-2]
    if last.took_s / last.rows < _CHEAPER * before.took_s / before.rows:
        a_row = max(last.took_s - before.took_s, 0.0) / (last.rows - before.rows)
        return spent + last.took_s + a_row * (more - last.rows) < _BUSY_S
    return last.took_s < _ENOUGH_S


class _Encoder:
    """Makes passes as an extraction does, down to the features' being in the host's memory."""

    def __init__(
        self,
        encoder: "Encoder",
        recipe: Recipe,
        inputs: Sequence[tuple[Staged, ...]],
        kinds: Sequence[str],
    ) -> None:
        import torch

        self._encoder = encoder
        self._prepare = Preprocess(recipe.input, encoder.device)
        black = Staged(torch.zeros((recipe.input.channels, *recipe.input.resolution)))
        self._rows = [row[0] for row in inputs if row] or [black]
        self._kinds: Mapping[Pass, list[str]] = _by_pass(kinds)

    def pass_of(self, rows: int) -> _Pass:
        """Encode some rows, once for each channel and view."""
        import torch

        staged = [self._rows[i % len(self._rows)] for i in range(rows)]
        if self._encoder.device.type != "cpu":  # which is told of each shape anew, once
            for bases in self._kinds.values():
                self._encoder(self._prepare.batch(staged), bases)
        began, worked = time.monotonic(), time.process_time()
        for bases in self._kinds.values():
            found = self._encoder(self._prepare.batch(staged), bases)
            for values in found.values():
                values.abs().flatten(1).amax(1).cpu()
                values.to(torch.float16).cpu()
        return _Pass(rows, time.monotonic() - began, time.process_time() - worked)


def _by_pass(kinds: Sequence[str]) -> dict[Pass, list[str]]:
    found: dict[Pass, list[str]] = {}
    for kind in filter(is_row_kind, kinds):
        found.setdefault(pass_of(kind), []).append(base_of(kind))
    return found
