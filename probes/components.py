"""Principal components of vectors that come in blocks: sums, and the widest axes."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["scatter_of", "widest_axes"]

_BLOCK = 1 << 22
"""Numbers that are computed with at once: 16 MiB as float32."""


def scatter_of(
    blocks: Iterator[npt.NDArray[np.floating[Any]]],
) -> tuple[int, npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Sum up vectors that come in blocks, in the memory of a block and (dim, dim).

    Each block is summed up around its own mean with float32 products, blocks in float64.

    Args:
        blocks: (n, dim) each; none may have another dim.

    Returns:
        How many there are, their (dim,) mean, their (dim, dim) products around it; of none
        (0,) and (0, 0).

    Raises:
        ValueError: If blocks are not as above, or a number is not finite as float32.
    """
    count, mean, scatter = 0, np.zeros(0), np.zeros((0, 0))
    wide, products = np.empty((0, 0), np.float32), np.empty((0, 0), np.float32)
    for tokens in _pieces(blocks):
        length, dim = tokens.shape
        if not count:
            mean, scatter = np.zeros(dim), np.zeros((dim, dim))
            products = np.empty((dim, dim), np.float32)
        if dim != len(mean):
            raise ValueError(f"tokens must be of one dimension, got {len(mean)} and {dim}")
        # Both are written over each time: fresh memory would cost as much as the products.
        if length > len(wide):
            wide = np.empty((length, dim), np.float32)
        around = wide[:length]
        with np.errstate(all="ignore"):  # what is not finite is refused right below
            near = tokens.mean(0, dtype=np.float64)
            near = near.astype(np.promote_types(tokens.dtype, np.float32))
            np.subtract(tokens, near, out=around, casting="same_kind")
        if not np.isfinite(around).all():
            raise ValueError("tokens must be finite as float32, these are not")
        # What rounding left of the mean, which of a mean far from 0 is much of the spread.
        rest = around.mean(0, dtype=np.float64)
        own = near + rest
        scatter += np.matmul(around.T, around, out=products)
        scatter -= length * np.outer(rest, rest)
        # Two means, weighed: what Chan, Golub and LeVeque add where parts are put together.
        off, total = own - mean, count + length
        scatter += np.outer(off, off) * (count * length / total)
        mean += off * (length / total)
        count = total
    return count, mean, scatter


def _pieces(
    blocks: Iterator[npt.NDArray[np.floating[Any]]],
) -> Iterator[npt.NDArray[np.floating[Any]]]:
    """Cut blocks, so that a large one is no trouble; leave empty ones out."""
    for block in blocks:
        if block.ndim != 2 or block.shape[1] == 0:
            raise ValueError(f"tokens must be (n, dim), got {block.shape}")
        most = max(1, _BLOCK // block.shape[1])
        for at in range(0, len(block), most):
            yield block[at : at + most]


def widest_axes(covariance: npt.NDArray[np.float64], count: int) -> npt.NDArray[np.float64]:
    """Find the axes along which a covariance is widest.

    Args:
        covariance: (dim, dim).
        count: How many, at most dim.

    Returns:
        (dim, count), columns of length 1, the widest first. Their signs are arbitrary; here the
        loading of largest magnitude is positive.
    """
    from scipy.linalg import eigh
    from threadpoolctl import threadpool_limits  # comes with scikit-learn

    dim = len(covariance)
    # Its steps are small: threads that share them wait for each other where others want a core,
    # and take up to 50 times as long.
    with threadpool_limits(1, "blas"):
        _, axes = eigh(covariance, subset_by_index=[dim - count, dim - 1])
    axes = axes[:, ::-1]
    largest = axes[np.abs(axes).argmax(0), range(count)]
    signed: npt.NDArray[np.float64] = axes * np.where(largest < 0, -1, 1)
    return signed
