"""Metrics of scores as probabilities, for many weightings of the items at once."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from probes.metrics.names import Kind, MetricName

__all__ = ["Calibration"]

_Float = npt.NDArray[np.float64]
_Bool = npt.NDArray[np.bool_]
_Values = tuple[_Float, _Float | None]

_BINS = 15


class Calibration:
    """Brier score, expected calibration error and logarithmic loss: the lower, the better.

    Rows of multiclass scores are divided by their sum, as one classifier against the rest for
    each class does not make them add up to 1; a row of zeros is shared out evenly.

    - ``brier``: mean of (p - y)^2. Over labels a mean; over classes the sum, from 0 to 2.
    - ``log_loss``: mean of -log p of what is true; p is kept away from 0 and 1 by the spacing of
      the scores' dtype at 1, as scikit-learn does. Over labels a mean.
    - ``ece``: 15 bins of equal width, each (low, high] but the first, which has 0 too;
      sum over bins of |mean confidence - share that is right|, weighted by the items in it.
      Binary and multilabel: confidence is the score, right is who has the label, for each label;
      over labels a mean. Multiclass: confidence is that of the class with the highest score,
      right is an item of that class.

    Args:
        truth: (n_items, n_outputs).
        scores: (n_items, n_outputs) in [0, 1].
        kind: What the columns are.
        names: The metrics.

    Raises:
        ValueError: If a score is not in [0, 1].

    References:
        Brier, Monthly Weather Review 78 (1950) 1-3. Expected calibration error: Guo
        et al., "On Calibration of Modern Neural Networks", ICML 2017, equation 3; for a label
        alone as in Naeini et al., AAAI 2015.
    """

    def __init__(
        self,
        truth: _Bool,
        scores: npt.NDArray[np.floating[Any]],
        kind: Kind,
        names: Sequence[MetricName],
    ) -> None:
        inside = ((scores >= 0) & (scores <= 1)).all(axis=1)
        if not inside.all():
            raise ValueError(
                f"metric {names[0].text!r} needs probabilities, scores from 0 to 1; row "
                f"{np.argmin(inside)} has others"
            )
        margin = float(np.finfo(scores.dtype).eps)
        chances = scores.astype(np.float64)
        if kind == "multiclass":
            chances = _add_up_to_one(chances)
        terms = {
            "brier": lambda: (chances - truth) ** 2,
            "log_loss": lambda: _losses(truth, np.clip(chances, margin, 1 - margin), kind),
            "ece": lambda: _gaps(truth, chances, kind),
        }
        self._terms = {name.text: terms[name.base]() for name in names}
        self._names = names
        self._kind: Kind = kind

    def __call__(self, weights: _Float) -> dict[str, _Values]:
        """Return overall (n_replicates,) and columns (n_replicates, n_outputs) of each metric.

        Args:
            weights: (n_replicates, n_items).
        """
        total = weights.sum(axis=1, keepdims=True)
        values: dict[str, _Values] = {}
        for name in self._names:
            columns = weights @ self._terms[name.text] / total
            if name.base == "ece":
                columns = np.abs(columns).reshape(len(weights), -1, _BINS).sum(axis=2)
            if self._kind != "multiclass":
                values[name.text] = columns.mean(axis=1), columns
            elif name.base == "brier":
                values[name.text] = columns.sum(axis=1), columns
            else:
                values[name.text] = columns[:, 0], None
        return values


def _add_up_to_one(scores: _Float) -> _Float:
    total = scores.sum(axis=1, keepdims=True)
    even = np.full_like(scores, 1 / scores.shape[1])
    return np.asarray(np.divide(scores, total, out=even, where=total > 0))


def _losses(truth: _Bool, chances: _Float, kind: Kind) -> _Float:
    """Return -log of the chance of what is true, (n_items, n_outputs); (n_items, 1) of classes."""
    if kind == "multiclass":
        return -np.log(chances[truth])[:, np.newaxis]
    return -np.log(np.where(truth, chances, 1 - chances))


def _gaps(truth: _Bool, chances: _Float, kind: Kind) -> _Float:
    """Return confidence less right, (n_items, n_outputs * _BINS), each in the column of its bin."""
    if kind == "multiclass":
        top = chances.argmax(axis=1, keepdims=True)
        chances = np.take_along_axis(chances, top, axis=1)
        truth = np.take_along_axis(truth, top, axis=1)
    inner_edges = np.linspace(0, 1, _BINS + 1)[1:-1]
    bins = np.searchsorted(inner_edges, chances, side="left")
    gaps = np.zeros((*chances.shape, _BINS))
    np.put_along_axis(gaps, bins[..., np.newaxis], (chances - truth)[..., np.newaxis], axis=2)
    return gaps.reshape(len(chances), -1)
