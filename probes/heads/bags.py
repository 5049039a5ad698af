"""Bags of rows: reading them one ahead, and the statistics of their features."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from probes.heads.pooling import EachBlock
from probes.heads.saved import check_bag

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Bags", "read_ahead", "row_statistics"]

Bags = Sequence[npt.NDArray[np.floating[Any]]]
"""(n_rows, dim) each, read when it is indexed."""


def read_ahead(
    x: Bags,
    numbers: Iterable[int],
    dim: int | None,
    choose: "Callable[[Tensor], Tensor]" = lambda bag: bag,
) -> "Iterator[Tensor]":
    """Give bags in turn; each is read and checked in a thread while the one before it is used.

    Args:
        x: All bags.
        numbers: Of those to be read.
        dim: Width that they must have; None for any.
        choose: Takes what is needed of a bag.

    Yields:
        (n_rows, dim) float16 or float32, of which nobody else changes a number.

    Raises:
        ValueError: If a bag is not (n_rows, dim) finite floats, is empty or of another width.
    """
    import torch

    def read(number: int) -> "Tensor":
        bag = np.asarray(x[number])
        check_bag(bag, number)
        if dim is not None and bag.shape[1] != dim:
            raise ValueError(
                f"the head was fitted on features of width {dim}, got {bag.shape[1]}; give it "
                f"features of the encoder that it was fitted on (bag {number})"
            )
        dtype = np.float16 if bag.dtype == np.float16 else np.float32
        # A mapped file is copied, so that the disk is waited for here.
        return choose(torch.from_numpy(np.require(bag, dtype, ["C", "O", "W"])))

    with ThreadPoolExecutor(1) as reader:
        coming = None
        for number in numbers:
            ready, coming = coming, reader.submit(read, int(number))
            if ready is not None:
                yield ready.result()
        if coming is not None:
            yield coming.result()


def row_statistics(
    x: Bags, each_block: EachBlock, *, standardize: bool
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Read all bags once, which checks them.

    Args:
        x: All bags.
        each_block: Of `row_blocks`.
        standardize: Whether the features are to be standardised.

    Returns:
        Mean and scale (dim,) of the features over all rows, summed in float64; zeros and ones
        unless ``standardize``.

    Raises:
        ValueError: As `read_ahead`.
    """
    import torch

    (bag,) = read_ahead(x, [0], None)
    # Around a value of each feature: one that never varies then has a sum of exactly zero.
    origin = bag[0].double()
    sums, squares, n_rows = torch.zeros_like(origin), torch.zeros_like(origin), 0
    for bag in read_ahead(x, range(len(x)), len(origin)):
        if not standardize:
            continue

        def of_block(rows: slice, bag: "Tensor" = bag) -> "tuple[Tensor, Tensor]":
            centred = bag[rows].double() - origin
            return centred.sum(0), centred.square().sum(0)

        for block_sums, block_squares in each_block(of_block, len(bag)):
            sums += block_sums
            squares += block_squares
        n_rows += len(bag)
    if not standardize:
        return np.zeros(len(origin), np.float32), np.ones(len(origin), np.float32)
    shift = sums / n_rows
    scale = (squares / n_rows - shift.square()).clamp(min=0).sqrt().float()
    scale[scale == 0] = 1
    return (origin + shift).float().numpy(), scale.numpy()
