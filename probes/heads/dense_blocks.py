"""Blocks of neighbouring rows: how they are drawn, batches of them, and how they are joined."""

from collections.abc import Callable, Iterator
from itertools import islice, pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from probes.heads.cases import Cases
from probes.heads.dense_rows import (
    PIECE_ROWS,
    Batch,
    Piece,
    Pieces,
    Sample,
    batch_of,
    draws_of,
    read_maps,
)

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Blend", "BlockBatches", "Drawing", "starts_of"]

Array = npt.NDArray[Any]

_LEAST_WEIGHT = 1e-4
"""Of a row at the edge of a block: one that no other block covers is divided by it."""


class Drawing(NamedTuple):
    """How blocks are drawn.

    Attributes:
        block_rows: Rows of a block; fewer where an item has fewer.
        batch_size: Blocks of a batch; the last of an epoch may have fewer.
        foreground: Share of the blocks that are drawn around a row with a label, of items that
            have one.
        steps: Batches of an epoch, for which items are drawn in proportion to their rows. None:
            so many blocks of each item in each view as it takes to cover it.
        seed: Of what is drawn in each epoch, which depends on nothing else.
    """

    block_rows: int
    batch_size: int
    foreground: float
    steps: int | None
    seed: int


class BlockBatches:
    """Blocks of rows of all items and views as batches.

    Args:
        cases: The items.
        read: Reads the labels of a piece: (rows, Y, X) numbers, or (rows, channels, Y, X) bool.
        drawing: How blocks are drawn.
        views: Instead of those of the cases.
    """

    def __init__(
        self,
        cases: Cases,
        read: Callable[[Piece], Array],
        drawing: Drawing,
        views: tuple[str | None, ...] | None = None,
    ) -> None:
        self._cases, self.read_labels, self._drawing = cases, read, drawing
        self._views = cases.views if views is None else views
        self._labelled: dict[int, npt.NDArray[np.int64]] = {}
        self._n_rows = np.array([cases.n_rows(item) for item in range(len(cases))])
        self._n_blocks = -(-self._n_rows // drawing.block_rows)
        covering = int(self._n_blocks.sum()) * len(self._views)
        self.n_batches = drawing.steps or -(-covering // drawing.batch_size)

    def epoch(self, number: int) -> Iterator[Batch]:
        """Give all batches of an epoch, blocks in random order."""
        draws, size = draws_of(self._drawing.seed, 1, number), self._drawing.batch_size
        chosen = self._draw_items(draws)
        # All are drawn at once: what one block needs does not move what others get.
        parts = draws.random((len(chosen), 3))
        for first in range(0, len(chosen), size):
            yield batch_of(
                self._read(self._place(item, view, *part))
                for (view, item), part in zip(
                    chosen[first : first + size].tolist(),
                    parts[first : first + size].tolist(),
                    strict=True,
                )
            )

    def in_order(self) -> Iterator[Batch]:
        """Give each row once, in order, in blocks of nearly one size."""
        blocks = self._in_order()
        while some := list(islice(blocks, self._drawing.batch_size)):
            yield batch_of(map(self._read, some))

    def drawn_pieces(self) -> Iterator[Piece]:
        """Give all rows as small pieces, in an order of their own."""
        return Pieces(self._cases, self._views).drawn(self._drawing.seed)

    def _draw_items(self, draws: np.random.Generator) -> npt.NDArray[np.int64]:
        """Give the view and item, by number, of each block of an epoch."""
        n_views, n_items = len(self._views), len(self._cases)
        if self._drawing.steps is None:
            pairs = np.indices((n_views, n_items)).reshape(2, -1).T
            return draws.permutation(pairs.repeat(np.tile(self._n_blocks, n_views), axis=0))
        n_blocks = self._drawing.steps * self._drawing.batch_size
        items = draws.choice(n_items, n_blocks, p=self._n_rows / self._n_rows.sum())
        return np.stack([draws.integers(n_views, size=n_blocks), items], axis=1)

    def _place(self, item: int, view: int, chance: float, where: float, within: float) -> Piece:
        """Say which rows a block has, by three numbers that were drawn from [0, 1)."""
        n_rows = int(self._n_rows[item])
        size = min(self._drawing.block_rows, n_rows)
        start = int(where * (n_rows - size + 1))
        if chance < self._drawing.foreground and len(rows := self._rows_with_labels(item)):
            row = int(rows[int(where * len(rows))]) - int(within * size)
            start = min(max(row, 0), n_rows - size)
        return Piece(item, start, start + size, self._views[view])

    def _rows_with_labels(self, item: int) -> npt.NDArray[np.int64]:
        """Find the rows of an item that have any label; once, the first time they are needed."""
        if item not in self._labelled:
            n_rows, has = int(self._n_rows[item]), []
            for start in range(0, n_rows, PIECE_ROWS):
                piece = Piece(item, start, min(start + PIECE_ROWS, n_rows), self._views[0])
                labels = self.read_labels(piece)
                has.append(labels.reshape(len(labels), -1).any(1))
            self._labelled[item] = np.flatnonzero(np.concatenate(has))
        return self._labelled[item]

    def _in_order(self) -> Iterator[Piece]:
        for view in self._views:
            for item in range(len(self._cases)):
                n_rows, n_blocks = int(self._n_rows[item]), int(self._n_blocks[item])
                bounds = [n_rows * number // n_blocks for number in range(n_blocks + 1)]
                for start, stop in pairwise(bounds):
                    yield Piece(item, start, stop, view)

    def _read(self, piece: Piece) -> Sample:
        maps, labels = read_maps(self._cases, piece), self.read_labels(piece)
        return Sample(piece.item, maps, labels.swapaxes(0, 1) if labels.ndim == 4 else labels)


def starts_of(n_rows: int, block_rows: int, overlap: float) -> list[int]:
    """Say where blocks begin that cover all rows; the last one ends at the last row.

    Args:
        n_rows: Of an item.
        block_rows: Of a block; an item with fewer is one block.
        overlap: Share of a block that the next one covers, too; the last one perhaps more.
    """
    last = max(0, n_rows - block_rows)
    return [*range(0, last, max(1, round(block_rows * (1 - overlap)))), last]


class Blend:
    """Averages logits of blocks that overlap; holds those rows only that are not done.

    A row counts by a Gaussian of its place in the block, with a standard deviation of an eighth
    of the block around the middle.
    """

    def __init__(self) -> None:
        self._sums: Tensor | None = None
        self._counts: Tensor | None = None

    def add(self, logits: "Tensor", done: int) -> "Tensor":
        """Add the next block, and give the rows that no later one covers.

        Args:
            logits: (channels, rows, height, width) float32, from the first row that is not done.
            done: How many of its first rows are done with it.

        Returns:
            (channels, done, height, width).
        """
        counts = _gaussian(logits.shape[1], logits)
        sums = logits * counts[:, None, None]
        if self._sums is not None and self._counts is not None:
            held = len(self._counts)
            sums[:, :held] += self._sums
            counts[:held] += self._counts
        # Copies: what is held is not to keep the whole block in memory.
        self._sums, self._counts = sums[:, done:].clone(), counts[done:].clone()
        return sums[:, :done] / counts[:done, None, None]


def _gaussian(n_rows: int, like: "Tensor") -> "Tensor":
    """Give the weight of each row of a block; none is 0."""
    from_middle = (np.arange(n_rows) - (n_rows - 1) / 2) / (n_rows / 8)
    weights = np.exp(-0.5 * from_middle**2).clip(min=_LEAST_WEIGHT)
    return like.new_tensor(weights.astype(np.float32))
