"""Rows of maps and labels: checked as they are read, neighbours together, batches ahead of time."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from probes.heads.cases import Cases

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "PIECE_ROWS",
    "Batch",
    "Group",
    "MapBatches",
    "Piece",
    "Pieces",
    "RowBatches",
    "Sample",
    "Statistics",
    "batch_of",
    "check_cases",
    "draws_of",
    "read_ahead",
    "read_labels",
    "read_maps",
    "statistics",
]

Array = npt.NDArray[Any]
Batch = list["Group"]
T = TypeVar("T")

PIECE_ROWS = 8
"""Rows of one item that are read together."""
_WINDOW_ROWS = 64
"""A batch is drawn from at least so many rows in memory, and from four times its own."""
_STATISTICS_PATCHES = 1 << 20


class Piece(NamedTuple):
    """Neighbouring rows of an item."""

    item: int
    start: int
    stop: int
    view: str | None

    def of_row(self, row: int) -> str:
        """Name one of its rows for a message; ``row`` counts from its start."""
        turned = "" if self.view is None else f", view {self.view}"
        return f"item {self.item}, row {self.start + row}{turned}"


class Sample(NamedTuple):
    """A row, or a block of rows: what `Group` has of each."""

    item: int
    maps: tuple[Array, ...]
    labels: Array


@dataclass(frozen=True)
class Group:
    """Rows, or blocks of rows, of one batch whose maps and labels have one size.

    Attributes:
        items: (rows,) int64, of which item each is.
        maps: Each (rows, grid_height, grid_width, channels), float16 or float32; of blocks
            (blocks, rows, grid_height, grid_width, channels).
        labels: (rows, Y, X) uint8 or int32, or of classes that overlap (rows, classes, Y, X) bool;
            of blocks (blocks, rows, Y, X) or (blocks, classes, rows, Y, X).
    """

    items: npt.NDArray[np.int64]
    maps: "tuple[Tensor, ...]"
    labels: "Tensor"


class MapBatches(Protocol):
    """What a dense head is fitted on: `Batches` of `Group`s, and more."""

    @property
    def n_batches(self) -> int:
        """How many batches an epoch has."""

    def epoch(self, number: int) -> Iterator[Batch]:
        """Give all batches of an epoch."""

    def in_order(self) -> Iterator[Batch]:
        """Give each row once, in the order of items and rows."""

    def drawn_pieces(self) -> Iterator[Piece]:
        """Give all pieces in an order of their own."""

    def read_labels(self, piece: Piece) -> Array:
        """Read (rows, Y, X) numbers, or (rows, channels, Y, X) bool, of a piece."""


class Statistics(NamedTuple):
    """What a first look at the cases tells.

    Attributes:
        mean: Of each channel of all maps, one map behind another, float32.
        scale: Their standard deviations, 1 where that is zero.
        counts: Pixels of each label; or of each class that may overlap.
    """

    mean: npt.NDArray[np.float32]
    scale: npt.NDArray[np.float32]
    counts: npt.NDArray[np.int64]


def check_cases(cases: Cases, what: str = "") -> None:
    """Refuse cases that have nothing to learn from; nothing is read.

    Args:
        cases: The items.
        what: Comes before a message.

    Raises:
        ValueError: If there is no item, map, channel or view, or an item has no row or no pixel.
    """
    if len(cases) == 0:
        raise ValueError(f"{what}a dense head is fitted on at least one item, got none")
    if not cases.channels or min(cases.channels) < 1:
        raise ValueError(
            f"{what}a dense head needs at least one map, each of at least one channel; got maps "
            f"of {_list(cases.channels)} channels"
        )
    if not cases.views:
        raise ValueError(f"{what}cases need a view to be read in, got none; give views=(None,)")
    for item in range(len(cases)):
        if cases.n_rows(item) < 1 or min(cases.size(item)) < 1:
            raise ValueError(
                f"{what}item {item} has {cases.n_rows(item)} rows of "
                f"{_by(cases.size(item))} pixels; leave that item out"
            )


def read_maps(cases: Cases, piece: Piece) -> tuple[Array, ...]:
    """Read the maps of a piece.

    Returns:
        Each (rows, grid_height, grid_width, channels), float16 or float32.

    Raises:
        ValueError: If there are other maps, rows or channels than the cases say, or values that
            are not finite floats; item and row are named.
    """
    maps = tuple(np.asarray(one) for one in cases.maps(*piece))
    if len(maps) != len(cases.channels):
        raise ValueError(
            f"{piece.of_row(0)}: {len(cases.channels)} maps are read together, got {len(maps)}"
        )
    checked = []
    for number, (one, channels) in enumerate(zip(maps, cases.channels, strict=True)):
        n_rows = piece.stop - piece.start
        if one.ndim != 4 or len(one) != n_rows or one.shape[3] != channels or 0 in one.shape:
            raise ValueError(
                f"{piece.of_row(0)}: map {number} must be ({n_rows}, grid_height, grid_width, "
                f"{channels}), got {one.shape}; give all items features of one encoder"
            )
        if not np.issubdtype(one.dtype, np.floating):
            raise ValueError(f"{piece.of_row(0)}: map {number} must be floats, got {one.dtype}")
        if one.dtype != np.float16:
            with np.errstate(over="ignore"):  # what is too large is not finite then
                one = one.astype(np.float32, copy=False)
        for row, patches in enumerate(one):
            if not _is_finite(patches):
                raise ValueError(
                    f"{piece.of_row(row)}: maps must be finite, map {number} is not; leave that "
                    "item out"
                )
        checked.append(one)
    return tuple(checked)


def read_labels(cases: Cases, piece: Piece, classes: int, *, overlapping: bool) -> Array:
    """Read the labels of a piece.

    Returns:
        (rows, Y, X) uint8 or int32; of classes that overlap (rows, classes, Y, X) bool.

    Raises:
        ValueError: If shape, dtype or values are others; item and row are named.
    """
    labels = np.asarray(cases.labels(*piece))
    shape: tuple[int, ...] = (piece.stop - piece.start, *cases.size(piece.item))
    if overlapping:
        shape = (classes, *shape)
    if labels.shape != shape:
        raise ValueError(
            f"{piece.of_row(0)}: labels must be {shape}, got {labels.shape}; see that they are "
            "of that item and of these classes"
        )
    if overlapping:
        if labels.dtype != np.bool_:
            raise ValueError(
                f"{piece.of_row(0)}: labels of classes that overlap must be bool, got "
                f"{labels.dtype}"
            )
        return labels.swapaxes(0, 1)
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"{piece.of_row(0)}: labels must be whole numbers, got {labels.dtype}")
    for row, of_row in enumerate(labels):
        low, high = int(of_row.min()), int(of_row.max())
        if low < 0 or high > classes:
            raise ValueError(
                f"{piece.of_row(row)}: labels must be 0 to {classes}, got "
                f"{low if low < 0 else high}; leave that item out, or fit more classes"
            )
    return labels.astype(np.uint8 if classes <= 255 else np.int32, copy=False)


def read_ahead(values: Iterable[T], depth: int = 2) -> Iterator[T]:
    """Give values in turn; a thread makes the next ones while one is used.

    An error of theirs is raised here, in its turn. The thread ends with the last value, with an
    error, and when this generator is closed; a read that goes on then is waited for.

    Args:
        values: Made when they are asked for.
        depth: How many may be ready.
    """
    coming: deque[Future[T | None]] = deque()
    values, end = iter(values), object()
    with ThreadPoolExecutor(1, "read-ahead") as reader:
        try:
            while True:
                while len(coming) < depth:
                    coming.append(reader.submit(next, values, end))  # type: ignore[arg-type]
                value = coming.popleft().result()
                if value is end:
                    return
                yield value  # type: ignore[misc]
        finally:
            for future in coming:
                future.cancel()


class Pieces:
    """All rows of all items, in views, as pieces of neighbours.

    Args:
        cases: The items.
        views: In which they are read.
    """

    def __init__(self, cases: Cases, views: tuple[str | None, ...]) -> None:
        self._cases, self._views = cases, views
        # Of each piece: view, item, first row. Plain numbers: there may be millions.
        self._pieces = np.array(
            [
                (view, item, start)
                for view in range(len(views))
                for item in range(len(cases))
                for start in range(0, cases.n_rows(item), PIECE_ROWS)
            ]
        )

    def __len__(self) -> int:
        return len(self._pieces)

    def some(self, order: Iterable[int]) -> Iterator[Piece]:
        """Give pieces by their numbers."""
        for view, item, start in (self._pieces[number].tolist() for number in order):
            stop = min(start + PIECE_ROWS, self._cases.n_rows(item))
            yield Piece(item, start, stop, self._views[view])

    def drawn(self, seed: int) -> Iterator[Piece]:
        """Give all pieces in an order of a seed."""
        return self.some(draws_of(seed, 0).permutation(len(self)))


class RowBatches:
    """The rows of all items and views as batches.

    Args:
        cases: The items.
        classes: Besides the background.
        overlapping: Whether classes may overlap.
        batch_size: Rows of a batch; the last of an epoch may have fewer.
        seed: Of the order in each epoch, which depends on nothing else.
        views: Instead of those of the cases.
    """

    def __init__(
        self,
        cases: Cases,
        classes: int,
        *,
        overlapping: bool,
        batch_size: int,
        seed: int,
        views: tuple[str | None, ...] | None = None,
    ) -> None:
        self._cases, self._classes, self._overlapping = cases, classes, overlapping
        self._batch_size, self._seed = batch_size, seed
        views = cases.views if views is None else views
        self._pieces = Pieces(cases, views)
        n_rows = sum(cases.n_rows(item) for item in range(len(cases))) * len(views)
        self.n_batches = -(-n_rows // batch_size)

    def epoch(self, number: int) -> Iterator[Batch]:
        """Give all batches of an epoch: neighbours are read together, pieces in random order."""
        draws = draws_of(self._seed, 1, number)
        window = max(_WINDOW_ROWS, 4 * self._batch_size)
        waiting: list[Sample] = []
        for piece in self._pieces.some(draws.permutation(len(self._pieces))):
            waiting += self._read(piece)
            while len(waiting) >= window:
                yield self._draw(waiting, draws)
        while waiting:
            yield self._draw(waiting, draws)

    def _draw(self, waiting: list[Sample], draws: np.random.Generator) -> Batch:
        """Take rows of a batch out of those that wait."""
        n_rows = min(self._batch_size, len(waiting))
        chosen = draws.choice(len(waiting), n_rows, replace=False).tolist()
        rows = [waiting[number] for number in chosen]
        for number in sorted(chosen, reverse=True):
            del waiting[number]
        return batch_of(rows)

    def in_order(self) -> Iterator[Batch]:
        """Give all batches in the order of items and rows."""
        waiting: list[Sample] = []
        for piece in self._pieces.some(range(len(self._pieces))):
            waiting += self._read(piece)
            while len(waiting) >= self._batch_size:
                yield batch_of(waiting[: self._batch_size])
                del waiting[: self._batch_size]
        if waiting:
            yield batch_of(waiting)

    def drawn_pieces(self) -> Iterator[Piece]:
        """Give all pieces in an order of their own."""
        return self._pieces.drawn(self._seed)

    def read_labels(self, piece: Piece) -> Array:
        """Read the labels of a piece; see the function `read_labels`."""
        return read_labels(self._cases, piece, self._classes, overlapping=self._overlapping)

    def _read(self, piece: Piece) -> list[Sample]:
        maps = read_maps(self._cases, piece)
        labels = self.read_labels(piece)
        # Copies: a row that waits is not to keep its neighbours in memory.
        return [
            Sample(piece.item, tuple(one[row].copy() for one in maps), labels[row].copy())
            for row in range(len(labels))
        ]


def batch_of(samples: Iterable[Sample]) -> Batch:
    """Put together what has one size."""
    import torch

    alike: dict[object, list[Sample]] = {}
    for one in samples:
        key = (one.labels.shape, *((maps.shape, maps.dtype) for maps in one.maps))
        alike.setdefault(key, []).append(one)
    return [
        Group(
            np.array([one.item for one in some]),
            tuple(
                torch.from_numpy(np.stack(maps))
                for maps in zip(*(one.maps for one in some), strict=True)
            ),
            torch.from_numpy(np.stack([one.labels for one in some])),
        )
        for some in alike.values()
    ]


def statistics(cases: Cases, batches: MapBatches, classes: int, *, overlapping: bool) -> Statistics:
    """Read pieces until about a million patches were seen: mean and scale of each channel.

    Sums are in float64, in an order that threads do not change.

    Args:
        cases: The items.
        batches: Of these cases; says in which order pieces are read, and reads their labels.
        classes: Besides the background.
        overlapping: Whether classes may overlap.

    Raises:
        ValueError: As `read_maps` and `read_labels`.
    """

    def read() -> Iterator[tuple[tuple[Array, ...], Array]]:
        for piece in batches.drawn_pieces():
            labels = batches.read_labels(piece)
            yield read_maps(cases, piece), labels

    counts = np.zeros(classes if overlapping else 1 + classes, np.int64)
    moments: list[_Moments] = []
    pieces = read_ahead(read())
    for maps, labels in pieces:
        if overlapping:
            counts += labels.sum((0, 2, 3))
        else:
            counts += np.bincount(labels.reshape(-1), minlength=1 + classes)
        moments = moments or [_Moments(one) for one in maps]
        for moment, one in zip(moments, maps, strict=True):
            moment.add(one)
        if max(moment.n_patches for moment in moments) >= _STATISTICS_PATCHES:
            break
    pieces.close()  # type: ignore[attr-defined]
    means, scales = zip(*(moment.mean_and_scale() for moment in moments), strict=True)
    return Statistics(np.concatenate(means), np.concatenate(scales), counts)


class _Moments:
    """Sums of the channels of a map, and of their squares."""

    def __init__(self, maps: Array) -> None:
        # Around a value of each channel: one that never varies then has a sum of exactly zero.
        self.origin = maps[0, 0, 0].astype(np.float64)
        self.sums, self.squares = np.zeros_like(self.origin), np.zeros_like(self.origin)
        self.n_patches = 0

    def add(self, maps: Array) -> None:
        for row in maps:
            centred = row.reshape(-1, len(self.origin)) - self.origin
            self.sums += centred.sum(0)
            self.squares += np.square(centred, out=centred).sum(0)
            self.n_patches += len(centred)

    def mean_and_scale(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        shift = self.sums / self.n_patches
        variance = (self.squares / self.n_patches - shift**2).clip(min=0)
        scale = np.sqrt(variance).astype(np.float32)
        scale[scale == 0] = 1
        return (self.origin + shift).astype(np.float32), scale


def draws_of(seed: int, *key: int) -> np.random.Generator:
    """Make a generator of a seed, and of what is drawn."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def _is_finite(values: Array) -> bool:
    if values.dtype != np.float16 or not values.flags.c_contiguous:
        return bool(np.isfinite(values).all())
    # All bits of the exponent are set. numpy's own test of halves takes ten times as long.
    return bool((values.view(np.uint16) & 0x7FFF).max(initial=0) < 0x7C00)


def _list(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers)) or "no"


def _by(size: tuple[int, int]) -> str:
    return " x ".join(map(str, size))
