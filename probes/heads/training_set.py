"""Items that train a linear model: what is measured on them, and their loss."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Loss", "Solution", "TrainingSet", "cross_entropy", "workers"]

Loss = Literal["bce", "ce"]
Array = npt.NDArray[np.float32]

_BLOCK_ROWS = 1024
"""Rows that are read at a time where all are: 3 MB of float32 at width 768 stay in the cache."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingSet:
    """Items that train a model, and what was measured on them alone.

    Attributes:
        items: (n_train,) intp, their rows, ascending.
        mean: (dim,) float32, of the features; zeros if they are not standardised.
        scale: (dim,) float32, standard deviations, 1 where a feature never varies; ones if the
            features are not standardised.
        varies: (dim,) bool, whether a feature varies; all true if not standardised.
        ones_weight: (n_outputs,) float32, what a target of 1 weighs in the loss; ones if classes
            are not balanced.
    """

    items: npt.NDArray[np.intp]
    mean: Array
    scale: Array
    varies: npt.NDArray[np.bool_]
    ones_weight: Array

    @classmethod
    def measure(
        cls,
        x: npt.NDArray[np.floating[Any]],
        y: npt.NDArray[Any],
        items: npt.NDArray[np.intp],
        *,
        loss: Loss,
        standardize: bool,
        balanced: bool,
    ) -> Self:
        """Measure features (n_items, dim) and targets (n_items, n_outputs) of these items."""
        dim, n_outputs = x.shape[1], y.shape[1]
        mean, deviation = np.zeros(dim, np.float32), np.ones(dim, np.float32)
        if standardize:
            mean, deviation = _mean_and_deviation(x, items)
        weight = np.ones(n_outputs)
        if balanced:
            weight = _ones_weight(y[items].sum(axis=0, dtype=np.float64), len(items), loss)
        # One over what is smaller overflows.
        varies = deviation >= np.finfo(np.float32).tiny
        return cls(
            items=items,
            mean=mean,
            scale=np.where(varies, deviation, np.float32(1)),
            varies=varies,
            ones_weight=weight.astype(np.float32),
        )

    def standardised(self, x: npt.NDArray[np.floating[Any]], items: npt.NDArray[np.intp]) -> Array:
        """Return features (n, dim) of items, less the mean and in units of the scale, float32."""
        inputs = x[items].astype(np.float32, copy=False)
        inputs -= self.mean
        inputs /= self.scale
        return inputs

    def weights(self, y: Array, loss: Loss) -> Array:
        """Return what items weigh, from their targets (n, n_outputs).

        Returns:
            (n, 1) where all outputs of an item weigh the same, else (n, n_outputs).
        """
        if loss == "ce":
            return (y @ self.ones_weight)[:, np.newaxis]
        if (self.ones_weight == 1).all():
            return np.ones((len(y), 1), dtype=np.float32)
        weights: Array = 1 + y * (self.ones_weight - 1)
        return weights


@dataclass(frozen=True, kw_only=True, eq=False)
class Solution:
    """What was learned from a training set.

    Attributes:
        weight: (n_outputs, dim) float32, for standardised features.
        bias: (n_outputs,) float32.
        curve: (n_steps,) float64, the loss as it went down.
        converged: Whether it is known to be the optimum.
    """

    weight: Array
    bias: Array
    curve: npt.NDArray[np.float64]
    converged: bool


def cross_entropy(loss: Loss, logits: "Tensor", targets: "Tensor", weights: "Tensor") -> "Tensor":
    """Return the weighted losses of some models, and make residuals of their logits.

    Args:
        loss: "bce", sigmoids, or "ce", a softmax over the outputs.
        logits: (n_models, n_outputs, n_items), overwritten by the derivatives of the losses with
            respect to them.
        targets: (n_outputs, n_items) of 0 and 1.
        weights: (n_outputs, n_items), or (1, n_items) where all outputs of an item weigh the same,
            as with "ce".

    Returns:
        (n_models,) sums over outputs and items of weight times cross-entropy.
    """
    import torch

    weighted = targets * weights
    if loss == "ce":
        losses = torch.log_softmax(logits, dim=1)
        torch.exp(losses, out=logits)
        losses.mul_(weighted).neg_()
    else:
        losses = torch.nn.functional.softplus(logits)
        losses.mul_(weights).addcmul_(logits, weighted, value=-1)
        logits.sigmoid_()
    logits.sub_(targets).mul_(weights)
    return losses.sum(dim=(1, 2))


@contextmanager
def workers(most: int) -> Iterator[ThreadPoolExecutor]:
    """Give threads, each of which computes torch's operations on its own.

    Work is shared between them in large pieces. torch's own threads share each small product and
    wait for each other: eight times as long where another process wants one of the cores. It
    also makes results the same however many cores there are. The caller's number of threads is
    set back afterwards.

    Args:
        most: Threads that there is work for.

    Yields:
        A pool of at most as many threads as torch had.
    """
    import torch  # takes seconds; predicting does without

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        # In each thread too: one that has done nothing large yet does not know, and MKL there
        # takes all cores.
        with ThreadPoolExecutor(
            min(before, most), initializer=torch.set_num_threads, initargs=(1,)
        ) as pool:
            yield pool
    finally:
        torch.set_num_threads(before)


def _mean_and_deviation(
    x: npt.NDArray[np.floating[Any]], items: npt.NDArray[np.intp]
) -> tuple[Array, Array]:
    """Return mean and standard deviation (dim,) of some items, summed in float64."""
    sums, squares = np.zeros(x.shape[1]), np.zeros(x.shape[1])
    blocks = [items[at : at + _BLOCK_ROWS] for at in range(0, len(items), _BLOCK_ROWS)]
    for block in blocks:
        sums += x[block].astype(np.float32, copy=False).sum(axis=0, dtype=np.float64)
    # The same float32 mean as in training and prediction, so that a constant feature is exactly
    # zero in all of them and not what is left by rounding.
    mean = (sums / len(items)).astype(np.float32)
    for block in blocks:
        centred = x[block].astype(np.float32, copy=False)
        centred -= mean
        squares += np.square(centred, dtype=np.float64).sum(axis=0)
    return mean, np.sqrt(squares / len(items)).astype(np.float32)


def _ones_weight(
    ones: npt.NDArray[np.float64], n_items: int, loss: Loss
) -> npt.NDArray[np.float64]:
    """Return (n_outputs,) weights of a 1 by which classes weigh alike.

    With "bce" the ones of an output weigh as much together as its zeros, which weigh 1 each.
    With "ce" the items of a class weigh as much together as those of any other, and 1 on average.

    Args:
        ones: (n_outputs,) items with a 1; where a class has no items, nothing is balanced.
        n_items: All items.
        loss: "bce" or "ce".
    """
    present = ones > 0
    if loss == "ce":
        return np.where(present, n_items / (present.sum() * np.maximum(ones, 1)), 0)
    both = present & (ones < n_items)
    return np.where(both, (n_items - ones) / np.maximum(ones, 1), 1)
