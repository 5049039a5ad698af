"""How sure a number is: the bootstrap over groups, and percentile intervals."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Interval", "group_bootstrap_weights", "interval"]


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A percentile interval and how many replicates it rests on."""

    low: float
    """Lower end; NaN where no replicate is defined."""
    high: float
    """Upper end; NaN where no replicate is defined."""
    level: float
    """Share of the defined replicates between the ends."""
    n_defined: int
    """Replicates that have a value."""
    n_replicates: int
    """Replicates in all."""


def group_bootstrap_weights(
    groups: npt.ArrayLike, *, n_boot: int = 1000, seed: int = 0
) -> npt.NDArray[np.uint16]:
    """Draw whole groups with replacement, as a weight for each item and replicate.

    The items of a patient are not independent, so patients are drawn, as many as there are; an
    item weighs how often its group was drawn. Replicate i does not depend on ``n_boot``, nor on
    the order of the items. The result takes 2 bytes an item and replicate (50 MB for 25,000
    items and 1,000 replicates); little more is held meanwhile.

    Args:
        groups: (n_items,) the group of each item, strings or numbers.
        n_boot: Number of replicates, at least 1.
        seed: Seed of the draws, at least 0.

    Returns:
        (n_boot, n_items) uint16.

    Raises:
        ValueError: If ``groups`` is not as above or holds fewer than two groups, or another
            argument is out of range.

    References:
        Davison and Hinkley, "Bootstrap Methods and their Application", Cambridge 1997,
        section 3.8 (hierarchical data: resampling at the highest level).
    """
    if n_boot < 1 or seed < 0:
        raise ValueError(
            f"n_boot must be at least 1 and seed at least 0, got n_boot={n_boot}, seed={seed}"
        )
    group_of_item, n_groups = _number_groups(groups)
    if n_groups < 2:
        raise ValueError(
            f"a bootstrap needs at least 2 groups to draw from, got {n_groups}; "
            "give more groups or report no interval"
        )
    draws = np.random.default_rng(seed)
    weights = np.empty((n_boot, len(group_of_item)), dtype=np.uint16)
    for replicate in weights:
        drawn = draws.integers(n_groups, size=n_groups)
        replicate[:] = np.bincount(drawn, minlength=n_groups)[group_of_item]
    return weights


def interval(values: npt.NDArray[np.floating[Any]], *, level: float = 0.95) -> Interval:
    """Return the percentile interval of bootstrap replicates.

    Replicates that are NaN (an AUC whose replicate drew no positive item) are left out and
    counted: an interval that rests on few of them says little.

    Args:
        values: (n_boot,) one value of a metric, or of a difference, for each replicate.
        level: Share of the replicates inside, between 0 and 1.

    Returns:
        The interval; both ends are NaN if no replicate is defined.

    Raises:
        ValueError: If ``values`` is not (n_boot,), or ``level`` is not between 0 and 1.

    References:
        Efron and Tibshirani, "An Introduction to the Bootstrap", Chapman and Hall 1993,
        section 13.3 (percentile interval).
    """
    values = np.asarray(values)
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"an interval is of values (n_boot,), at least one; got {values.shape}")
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, such as 0.95; got {level}")
    defined = values[~np.isnan(values)]
    low, high = np.nan, np.nan
    if len(defined):
        low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return Interval(
        low=float(low),
        high=float(high),
        level=level,
        n_defined=len(defined),
        n_replicates=len(values),
    )


def _number_groups(groups: npt.ArrayLike) -> tuple[npt.NDArray[np.int64], int]:
    """Return each item's group as a number from 0, (n_items,), and how many groups there are."""
    groups = np.asarray(groups)
    if groups.ndim != 1:
        raise ValueError(f"groups must be (n_items,), one for each item; got {groups.shape}")
    for row, group in enumerate(groups.tolist()):
        if not isinstance(group, str | int | float) or group != group:  # None, NaN
            raise ValueError(
                f"each item needs a group, a string or number; row {row} has {group!r}. "
                "An item of its own can be its own group."
            )
    names, group_of_item = np.unique(groups, return_inverse=True)
    return group_of_item, len(names)
