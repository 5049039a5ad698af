"""Intervals of bootstrap replicates, of a value and of a difference."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Difference", "Interval", "interval", "paired_bootstrap"]

_Float = npt.NDArray[np.float64]

_ROUNDING = 1e-12
"""Values that are equal but for the order of their sums."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An interval and how many replicates it rests on."""

    low: float
    """Lower end; NaN where no replicate is defined."""
    high: float
    """Upper end; NaN where no replicate is defined."""
    level: float
    """Of confidence."""
    n_defined: int
    """Replicates that have a value."""
    n_replicates: int
    """Replicates in all."""

    @property
    def degenerate(self) -> bool:
        """Whether all replicates agree, as where nothing was ever wrong.

        Drawing again what has no errors finds none: such an interval says nothing of how rare
        they are. With n independent groups and no error, a rate of 3 / n is not excluded at 95%
        (Hanley and Lippman-Hand, JAMA 249 (1983) 1743-1745).
        """
        return self.n_defined > 0 and self.low == self.high


@dataclass(frozen=True, kw_only=True)
class Difference(Interval):
    """A value of one run less that of another on the same items."""

    value: float
    """The difference."""
    p: float
    """Two-sided: 1 - the level at which the interval would just reach 0; at least about 1 over
    the number of replicates."""


def interval(
    values: npt.NDArray[np.floating[Any]],
    *,
    estimate: float | None = None,
    draws: npt.NDArray[Any] | None = None,
    level: float = 0.95,
) -> Interval:
    """Return the interval of bootstrap replicates.

    With ``estimate`` and ``draws`` it is bias-corrected and accelerated (BCa), and its levels are
    those of a t distribution, as suits few groups. Without, it is the percentile interval, which
    is too short and too low near 1: see benchmarks/coverage.py.

    Replicates that are NaN (an AUC whose replicate drew no positive item) are left out and
    counted: an interval that rests on few of them says little.

    Args:
        values: (n_boot,) one value of a metric, or of a difference, for each replicate.
        estimate: The value with each group once.
        draws: (n_boot, n_groups) how often each group was drawn; see `probes.stats.group_draws`.
        level: Of confidence, between 0 and 1.

    Returns:
        The interval; both ends are NaN if no replicate is defined, or the estimate is not.

    Raises:
        ValueError: If an argument is not as above, or only one of ``estimate`` and ``draws`` is
            given.

    References:
        Efron and Tibshirani, "An Introduction to the Bootstrap", Chapman and Hall 1993, section
        13.3 (percentile) and 14.3 (BCa). Instead of their jackknife, the influence of a group is
        the covariance of values with its draws: Efron, JASA 109 (2014) 991-1007, theorem 1. Levels
        of t: the expanded percentile interval of Hesterberg, The American Statistician 69 (2015)
        371-386.
    """
    values = _check(values, level)
    defined = values[~np.isnan(values)]
    if (estimate is None) != (draws is None):
        raise ValueError("a BCa interval needs both estimate and draws; give both or neither")
    low, high = np.nan, np.nan
    if estimate is None or draws is None:
        if len(defined):
            low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    elif len(defined) and not math.isnan(estimate):
        accelerated = _Accelerated(values, estimate, draws)
        low, high = (accelerated.end((1 + sign * level) / 2) for sign in (-1, 1))
    return Interval(
        low=float(low),
        high=float(high),
        level=level,
        n_defined=len(defined),
        n_replicates=len(values),
    )


def paired_bootstrap(
    values_a: npt.NDArray[np.floating[Any]],
    values_b: npt.NDArray[np.floating[Any]],
    *,
    estimate: float,
    draws: npt.NDArray[Any],
    level: float = 0.95,
) -> Difference:
    """Return the interval and the p-value of the difference of two runs.

    With few groups the p-value is somewhat too small (6.8% below 0.05 of 60 patients without a
    difference, 5.4% by permutation: benchmarks/coverage.py); to decide, prefer
    `probes.stats.permutation_p_value`.

    Args:
        values_a: (n_boot,) one value of run A for each replicate.
        values_b: (n_boot,) those of run B, of the same draws of the same items.
        estimate: The difference A - B with each group once.
        draws: (n_boot, n_groups); see `probes.stats.group_draws`.
        level: Of confidence, between 0 and 1.

    Returns:
        A less B, its BCa interval, and the p-value that goes with it; all NaN but the counts if
        there are none.

    Raises:
        ValueError: If an argument is not as above.

    References:
        As `interval`; p-values that go with intervals: Efron and Tibshirani 1993, section 15.4.
    """
    values_a, values_b = _check(values_a, level), _check(values_b, level)
    if values_a.shape != values_b.shape:
        raise ValueError(
            "replicates of two runs are compared draw by draw, got "
            f"{values_a.shape} and {values_b.shape}; judge both with the same draws"
        )
    values = values_a - values_b
    found = interval(values, estimate=estimate, draws=draws, level=level)
    known = not math.isnan(found.low)
    return Difference(
        **vars(found),
        value=estimate,
        p=_Accelerated(values, estimate, draws).p_of_zero() if known else np.nan,
    )


class _Accelerated:
    """A BCa interval of any level."""

    def __init__(self, values: _Float, estimate: float, draws: npt.NDArray[Any]) -> None:
        draws = np.asarray(draws)
        if draws.ndim != 2 or len(draws) != len(values) or draws.shape[1] < 2:
            raise ValueError(
                f"draws must be ({len(values)}, n_groups) of at least 2 groups, got {draws.shape}"
            )
        defined = ~np.isnan(values)
        self._values = values[defined]
        self._n_groups = draws.shape[1]
        self._bias = self._normal_quantile_of(estimate)
        self._acceleration = _acceleration(values, draws)

    def end(self, level: float) -> float:
        """Return the one-sided limit that the value is below with this confidence."""
        from scipy.special import ndtr, stdtrit

        groups = self._n_groups
        expanded = math.sqrt(groups / (groups - 1)) * float(stdtrit(groups - 1, level))
        shifted = self._bias + expanded
        slope = 1 - self._acceleration * shifted
        # Beyond its pole the formula turns round: the outermost replicate is the limit.
        z = self._bias + shifted / slope if slope > 0 else math.copysign(math.inf, expanded)
        return float(np.quantile(self._values, float(ndtr(z))))

    def p_of_zero(self) -> float:
        """Return the two-sided p-value of a true value of 0."""
        from scipy.special import stdtr

        groups = self._n_groups
        shifted = self._normal_quantile_of(0.0) - self._bias
        slope = 1 + self._acceleration * shifted
        z = shifted / slope - self._bias if slope > 0 else math.copysign(math.inf, shifted)
        below = float(stdtr(groups - 1, z * math.sqrt((groups - 1) / groups)))
        return 2 * min(below, 1 - below)

    def _normal_quantile_of(self, value: float) -> float:
        """Return the normal quantile of the share of replicates below a value, ties half."""
        from scipy.special import ndtri

        equal = np.abs(self._values - value) <= _ROUNDING
        below = (self._values < value)[~equal].sum() + equal.sum() / 2
        return float(ndtri((below + 0.5) / (len(self._values) + 1)))  # never 0 or 1


def _acceleration(values: _Float, draws: npt.NDArray[Any]) -> float:
    """Return a sixth of the skewness of the groups' influence on the value."""
    defined = ~np.isnan(values)
    spread = float(values[defined].std())
    if spread == 0:
        return 0.0
    centred = np.where(defined, values - values[defined].mean(), 0)
    influence = np.einsum("i,ij->j", centred, draws) / defined.sum()  # draws stay small integers
    return float((influence**3).sum() / (6 * spread**3))


def _check(values: npt.NDArray[np.floating[Any]], level: float) -> _Float:
    checked: _Float = np.asarray(values, dtype=np.float64)
    if checked.ndim != 1 or len(checked) == 0:
        raise ValueError(f"an interval is of values (n_boot,), at least one; got {checked.shape}")
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, such as 0.95; got {level}")
    return checked
