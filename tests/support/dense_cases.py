"""Items with maps and labels in memory, for the tests of dense heads."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass
class Item:
    """Maps, each (rows, grid_height, grid_width, channels), and labels of all rows."""

    maps: tuple[Array, ...]
    labels: Array
    overlapping: bool = False

    def turned(self, axis: int) -> "Item":
        """Flip: 0 from top to bottom, 1 from left to right."""
        labels = np.flip(self.labels, axis=self.labels.ndim - 2 + axis)
        return replace(
            self, maps=tuple(np.flip(one, axis=1 + axis) for one in self.maps), labels=labels
        )


VIEWS: dict[str | None, Callable[[Item], Item]] = {
    None: lambda item: item,
    "hflip": lambda item: item.turned(1),
    "vflip": lambda item: item.turned(0),
}


@dataclass
class MemoryCases:
    """`Cases` in memory; remembers what was read, as (what, item, start, stop, view)."""

    items: Sequence[Item]
    views: tuple[str | None, ...] = (None,)
    channels: tuple[int, ...] = ()
    levels: tuple[int, ...] = ()
    sizes: dict[int, tuple[int, int]] = field(default_factory=dict)
    before_read: Callable[["MemoryCases"], None] = lambda cases: None
    reads: list[tuple[Any, ...]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.channels and self.items:
            self.channels = tuple(one.shape[3] for one in self.items[0].maps)
        self.levels = self.levels or (0,) * len(self.channels)

    def __len__(self) -> int:
        return len(self.items)

    def n_rows(self, item: int) -> int:
        return len(self.items[item].maps[0])

    def size(self, item: int) -> tuple[int, int]:
        height, width = self.items[item].labels.shape[-2:]
        return self.sizes.get(item, (height, width))

    def maps(self, item: int, start: int, stop: int, view: str | None = None) -> tuple[Array, ...]:
        self.reads.append(("maps", item, start, stop, view))
        self.before_read(self)
        return tuple(one[start:stop] for one in VIEWS[view](self.items[item]).maps)

    def labels(self, item: int, start: int, stop: int, view: str | None = None) -> Array:
        self.reads.append(("labels", item, start, stop, view))
        labels = VIEWS[view](self.items[item]).labels
        return labels[:, start:stop] if self.items[item].overlapping else labels[start:stop]


def patch_items(
    n_items: int,
    *,
    classes: int = 3,
    n_rows: int | Sequence[int] = 1,
    grid: tuple[int, int] = (5, 7),
    patch: tuple[int, int] = (2, 2),
    channels: Sequence[int] = (11,),
    grids: Sequence[tuple[int, int]] = (),
    noise: float = 0.05,
    seed: int = 0,
    overlapping: bool = False,
    dtype: str = "float32",
    mixed_by: int = 99,
) -> list[Item]:
    """Items whose labels are made of whole patches, and maps that hold the answer.

    A map is the one-hot label of each patch, mixed into its channels by a matrix that depends
    on ``mixed_by`` alone, with noise and an offset. Maps of ``grids`` beyond the first are finer
    by whole numbers and repeat the patches.

    Args:
        n_items: How many.
        classes: Besides the background.
        n_rows: Of each item.
        grid: Patches of the labels.
        patch: Pixels of a patch.
        channels: Of each map.
        grids: Of each map; by default ``grid``.
        noise: Standard deviation.
        seed: Of labels and noise.
        overlapping: Whether classes are drawn one by one.
        dtype: Of the maps.
        mixed_by: Seed of the matrices.
    """
    draws, mixing = np.random.default_rng(seed), np.random.default_rng(mixed_by)
    states = classes if overlapping else 1 + classes
    matrices = [mixing.standard_normal((states, width)) for width in channels]
    counts = [n_rows] * n_items if isinstance(n_rows, int) else n_rows
    items = []
    for count in counts:
        if overlapping:
            hot = (draws.random((count, *grid, classes)) < 0.4).astype(float)
            labels = np.moveaxis(hot, 3, 0).astype(bool)
        else:
            coarse = draws.integers(0, states, (count, *grid))
            hot, labels = np.eye(states)[coarse], coarse.astype(np.uint8)
        maps = []
        for matrix, own in zip(matrices, grids or [grid] * len(matrices), strict=True):
            finer = hot.repeat(own[0] // grid[0], 1).repeat(own[1] // grid[1], 2) @ matrix
            maps.append((3 + finer + noise * draws.standard_normal(finer.shape)).astype(dtype))
        labels = labels.repeat(patch[0], -2).repeat(patch[1], -1)
        items.append(Item(tuple(maps), labels, overlapping))
    return items


def shuffled(items: Sequence[Item], seed: int = 5) -> list[Item]:
    """The same items, with the patches of each map in a random order."""
    draws = np.random.default_rng(seed)
    return [
        replace(
            item,
            maps=tuple(
                draws.permutation(one.reshape(-1, one.shape[3])).reshape(one.shape)
                for one in item.maps
            ),
        )
        for item in items
    ]
