"""Metrics of the order of scores, for many weightings of the items at once.

A column's items are sorted once. All that its values need of a weighting are sums over runs of
items between two distinct scores of positives; those are one sparse matrix product.
"""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from probes.metrics.names import MetricName

__all__ = ["Ranking"]

_Float = npt.NDArray[np.float64]
_Bool = npt.NDArray[np.bool_]
_Values = tuple[_Float, _Float]


class Ranking:
    """AUC and average precision of each column, and their means over columns.

    The AUC of a column is the chance that an item with the label scores higher than one without,
    ties counting half; multiclass columns are taken one against the rest. Average precision is
    sum_n (R_n - R_{n-1}) P_n over distinct scores, the highest first, with precision P_n and
    recall R_n of what scores at least that much; nothing is interpolated.

    Args:
        truth: (n_items, n_outputs).
        scores: (n_items, n_outputs).
        names: The metrics.

    References:
        AUC as the Mann-Whitney statistic: Hanley and McNeil, Radiology 143 (1982) 29-36.
        Average precision: scikit-learn, ``average_precision_score``.
    """

    def __init__(
        self,
        truth: _Bool,
        scores: npt.NDArray[np.floating[Any]],
        names: Sequence[MetricName],
    ) -> None:
        self._names = names
        self._columns = [_Column(*column) for column in zip(truth.T, scores.T, strict=True)]
        self._kept = truth.any(axis=0) & ~truth.all(axis=0)

    def __call__(self, weights: _Float) -> dict[str, _Values]:
        """Return overall (n_replicates,) and columns (n_replicates, n_outputs) of each metric.

        Args:
            weights: (n_replicates, n_items).
        """
        by_item = np.ascontiguousarray(weights.T)
        bases = {name.base for name in self._names}
        found = [column(by_item, bases) for column in self._columns]
        values = {}
        for name in self._names:
            columns = np.stack([column[name.base] for column in found], axis=1)
            kept = columns[:, self._kept]
            empty = np.full(len(columns), np.nan)
            values[name.text] = kept.mean(axis=1) if kept.size else empty, columns
        return values


class _Column:
    """One column's items between the distinct scores of its positives, ascending."""

    def __init__(self, truth: _Bool, scores: npt.NDArray[np.floating[Any]]) -> None:
        steps, of_positive = np.unique(scores[truth], return_inverse=True)
        negatives = np.flatnonzero(~truth)
        # Step i counts the negatives from step i - 1, included, up to step i, excluded.
        above = np.searchsorted(steps, scores[negatives], side="right")
        tied = np.isin(scores[negatives], steps)
        n_items, n_steps = len(truth), len(steps)
        self._positives = _sums(of_positive, np.flatnonzero(truth), n_steps, n_items)
        self._negatives = _sums(above, negatives, n_steps + 1, n_items)
        self._ties = _sums(above[tied] - 1, negatives[tied], n_steps, n_items)

    def __call__(self, by_item: _Float, bases: Collection[str]) -> dict[str, _Float]:
        """Return (n_replicates,) of each metric for weights (n_items, n_replicates)."""
        positives = self._positives @ by_item
        below = np.cumsum(self._negatives @ by_item, axis=0)
        n_positives, n_negatives = positives.sum(axis=0), below[-1]
        below = below[:-1]
        # A replicate that lost one of the sides says nothing about the column.
        defined = (n_positives > 0) & (n_negatives > 0)
        undefined = np.full(len(defined), np.nan)
        found = {}
        if "auc" in bases:
            won = np.einsum("ij,ij->j", positives, below)
            if self._ties.nnz:
                won += np.einsum("ij,ij->j", positives, self._ties @ by_item) / 2
            pairs = n_positives * n_negatives
            found["auc"] = np.divide(won, pairs, out=undefined.copy(), where=defined)
        if "average_precision" in bases:
            hits = np.cumsum(positives[::-1], axis=0)[::-1]
            called = hits + (n_negatives - below)
            precision = np.divide(hits, called, out=np.zeros_like(hits), where=called > 0)
            area = np.einsum("ij,ij->j", positives, precision)
            found["average_precision"] = np.divide(
                area, n_positives, out=undefined.copy(), where=defined
            )
        return found


def _sums(
    step: npt.NDArray[np.int64], item: npt.NDArray[np.int64], n_steps: int, n_items: int
) -> Any:  # noqa: ANN401 - scipy's sparse arrays have no types
    """Return the sparse (n_steps, n_items) matrix that sums items by step."""
    from scipy.sparse import csr_array

    ones = np.ones(len(item))
    return csr_array((ones, (step, item)), shape=(n_steps, n_items))
