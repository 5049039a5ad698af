"""Whether a difference could be chance: permutations, and many tests at once."""

import numpy as np
import numpy.typing as npt

__all__ = ["holm", "permutation_p_value"]

_Float = npt.NDArray[np.float64]

_ROUNDING = 1e-12
"""Differences that are equal but for the order of their sums."""


def permutation_p_value(observed: float, permuted: npt.ArrayLike) -> float:
    """Return the two-sided p-value of a difference among those of random permutations.

    p = (1 + number of permutations at least as far from 0) / (1 + number of permutations): never
    0, and valid however few permutations there are. If two runs are equally good at every
    patient, swapping their predictions there changes nothing but chance; so each permutation
    swaps whole groups (`probes.stats.group_swaps`), and `probes.metrics.swaps` gives the
    differences. With g groups no p below about 2^(1 - g) can be reached.

    Args:
        observed: The difference without swaps.
        permuted: (n_permutations,) the difference of each permutation; those that are NaN are left
            out.

    Returns:
        The p-value; NaN if ``observed`` is NaN or no permutation is defined.

    Raises:
        ValueError: If ``permuted`` is not (n_permutations,).

    References:
        Phipson and Smyth, "Permutation P-values should never be zero", Statistical Applications in
        Genetics and Molecular Biology 9 (2010) article 39.
    """
    values = np.asarray(permuted, dtype=np.float64)
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"permuted must be (n_permutations,), at least one; got {values.shape}")
    values = values[~np.isnan(values)]
    if np.isnan(observed) or len(values) == 0:
        return np.nan
    as_far = np.abs(values) >= abs(observed) - _ROUNDING
    return float((1 + as_far.sum()) / (1 + len(values)))


def holm(p_values: npt.ArrayLike) -> _Float:
    """Adjust p-values of several tests, so that one false finding among them is rare.

    The i-th smallest of m is multiplied by m - i + 1; none becomes less than a smaller one, nor
    more than 1.

    Args:
        p_values: (n_tests,) in [0, 1]; a test without a value is NaN and counts as none.

    Returns:
        (n_tests,) float64, NaN where there was no value: a test below 0.05 there is a finding at a
        family-wise error rate of 0.05.

    Raises:
        ValueError: If a value is not in [0, 1], or the shape is not as above.

    References:
        Holm, Scandinavian Journal of Statistics 6 (1979) 65-70.
    """
    values = np.asarray(p_values, dtype=np.float64)
    known = ~np.isnan(values)
    if values.ndim != 1 or ((values[known] < 0) | (values[known] > 1)).any():
        raise ValueError(f"p-values must be (n_tests,) from 0 to 1, got {values}")
    order = np.argsort(np.where(known, values, np.inf), kind="stable")[: known.sum()]
    multiplied = values[order] * np.arange(len(order), 0, -1)
    adjusted = np.full(len(values), np.nan)
    adjusted[order] = np.minimum(np.maximum.accumulate(multiplied), 1)
    return adjusted
