"""The variance of an AUC, and of the difference of two, without resampling."""

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from probes.stats.groups import number_groups

__all__ = ["Auc", "AucDifference", "delong", "delong_test"]

_Float = npt.NDArray[np.float64]
_Bool = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Auc:
    """An AUC and how sure it is; both NaN without items of both sorts."""

    auc: float
    """The chance that an item with the label scores higher than one without."""
    variance: float
    """Its variance; NaN too where there is but one item or group of a sort."""

    def interval(self, *, level: float = 0.95) -> tuple[float, float]:
        """Return an interval that is symmetric on the logit scale, so that it stays in (0, 1).

        Args:
            level: Of confidence, between 0 and 1.

        Returns:
            Lower and upper end; both NaN where the AUC is 0 or 1: its variance is then 0, for want
            of an error and not of doubt.

        Raises:
            ValueError: If ``level`` is not between 0 and 1.

        References:
            Pepe, "The Statistical Evaluation of Medical Tests for Classification and Prediction",
            Oxford 2003, chapter 5.
        """
        reach = _quantile(level)
        if not 0 < self.auc < 1 or math.isnan(self.variance):
            return np.nan, np.nan
        centre = math.log(self.auc / (1 - self.auc))
        reach *= math.sqrt(self.variance) / (self.auc * (1 - self.auc))
        low, high = (1 / (1 + math.exp(-(centre + sign * reach))) for sign in (-1, 1))
        return low, high


@dataclass(frozen=True, kw_only=True)
class AucDifference:
    """The AUC of one run less that of another on the same items."""

    value: float
    """The difference."""
    standard_error: float
    """Of the difference."""
    z: float
    """The difference in standard errors; 0 if both are 0."""
    p: float
    """Two-sided p-value, of a normal distribution."""
    low: float
    """Lower end of the interval, value - quantile * standard error."""
    high: float
    """Upper end."""
    level: float
    """Of confidence."""


class _Components(NamedTuple):
    """An AUC as a mean over items with the label, and as one over those without."""

    auc: float
    positive: _Float
    """(n_positives,) share of the others that each outranks."""
    negative: _Float
    """(n_negatives,) share of the others that outrank each."""

    def minus(self, other: "_Components") -> "_Components":
        return _Components(
            self.auc - other.auc, self.positive - other.positive, self.negative - other.negative
        )


def delong(
    truth: npt.NDArray[Any],
    scores: npt.NDArray[np.floating[Any]],
    *,
    groups: npt.ArrayLike | None = None,
) -> Auc:
    """Return an AUC and its variance.

    Args:
        truth: (n_items,) of 0 and 1.
        scores: (n_items,) finite floats; ties count half.
        groups: (n_items,) the group of each item; None if items are independent.

    Returns:
        Both; the variance of independent items is that of DeLong et al., else Obuchowski's.

    Raises:
        ValueError: If an argument is not as above.

    References:
        DeLong, DeLong and Clarke-Pearson, Biometrics 44 (1988) 837-845; by sorting, as Sun and Xu,
        IEEE Signal Processing Letters 21 (2014) 1389-1393. Groups: Obuchowski, "Nonparametric
        analysis of clustered ROC curve data", Biometrics 53 (1997) 567-578.
    """
    labels = _check(truth, scores)
    found = _components(labels, np.asarray(scores))
    return Auc(auc=found.auc, variance=_variance(found, labels, groups))


def delong_test(
    truth: npt.NDArray[Any],
    scores_a: npt.NDArray[np.floating[Any]],
    scores_b: npt.NDArray[np.floating[Any]],
    *,
    groups: npt.ArrayLike | None = None,
    level: float = 0.95,
) -> AucDifference:
    """Compare the AUCs of two runs on the same items.

    Args:
        truth: (n_items,) of 0 and 1.
        scores_a: (n_items,) finite floats.
        scores_b: (n_items,) finite floats.
        groups: (n_items,) the group of each item; None if items are independent.
        level: Of the interval, between 0 and 1.

    Returns:
        AUC of A less that of B. Runs that rank all items alike do not differ: p is 1.

    Raises:
        ValueError: If an argument is not as above.

    References:
        As `delong`.
    """
    labels = _check(truth, scores_a)
    _check(truth, scores_b)
    reach = _quantile(level)
    of_a, of_b = (_components(labels, np.asarray(scores)) for scores in (scores_a, scores_b))
    apart = of_a.minus(of_b)
    error = math.sqrt(_variance(apart, labels, groups))
    z = apart.auc / error if error != 0 else 0.0 if apart.auc == 0 else np.nan
    return AucDifference(
        value=apart.auc,
        standard_error=error,
        z=z,
        p=math.erfc(abs(z) / math.sqrt(2)),
        low=apart.auc - reach * error,
        high=apart.auc + reach * error,
        level=level,
    )


def _components(labels: _Bool, scores: npt.NDArray[np.floating[Any]]) -> _Components:
    positives, negatives = scores[labels], scores[~labels]
    if len(positives) == 0 or len(negatives) == 0:
        return _Components(np.nan, np.full(len(positives), np.nan), np.full(len(negatives), np.nan))
    outranked = _share_below(positives, negatives)
    return _Components(float(outranked.mean()), outranked, 1 - _share_below(negatives, positives))


def _share_below(
    these: npt.NDArray[np.floating[Any]], others: npt.NDArray[np.floating[Any]]
) -> _Float:
    """Return what share of the others scores less than each of these, ties counting half."""
    others = np.sort(others)
    below, up_to = (np.searchsorted(others, these, side=side) for side in ("left", "right"))
    return (below + up_to) / (2 * len(others))


def _variance(found: _Components, labels: _Bool, groups: npt.ArrayLike | None) -> float:
    """Return Obuchowski's variance; with an item a group it is DeLong's."""
    if groups is None:
        group_of_item, n_groups = np.arange(len(labels)), len(labels)
    else:
        group_of_item, n_groups = number_groups(groups)
        if len(group_of_item) != len(labels):
            raise ValueError(
                f"groups must be ({len(labels)},) like the items, got {len(group_of_item)}"
            )
    sums, counts = [], []
    for components, among in ((found.positive, labels), (found.negative, ~labels)):
        of = group_of_item[among]
        sums.append(np.bincount(of, weights=components - found.auc, minlength=n_groups))
        counts.append(np.bincount(of, minlength=n_groups))
    having = [int((count > 0).sum()) for count in counts]
    if min(having) < 2:
        return np.nan
    n_positives, n_negatives = (int(count.sum()) for count in counts)
    alone = sum(
        n / (n - 1) * float(total @ total) / of**2
        for n, total, of in zip(having, sums, (n_positives, n_negatives), strict=True)
    )
    together = n_groups / (n_groups - 1) * float(sums[0] @ sums[1]) / (n_positives * n_negatives)
    return max(alone + 2 * together, 0.0)


def _quantile(level: float) -> float:
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, such as 0.95; got {level}")
    return NormalDist().inv_cdf((1 + level) / 2)


def _check(truth: npt.NDArray[Any], scores: npt.NDArray[np.floating[Any]]) -> _Bool:
    truth, scores = np.asarray(truth), np.asarray(scores)
    if truth.ndim != 1 or truth.shape != scores.shape or len(truth) == 0:
        raise ValueError(
            "truth and scores must both be (n_items,), at least one; "
            f"got {truth.shape} and {scores.shape}"
        )
    if not ((truth == 0) | (truth == 1)).all() or not np.isfinite(scores).all():
        raise ValueError("truth must be 0 or 1 and scores finite; leave out other items")
    return np.asarray(truth == 1)
