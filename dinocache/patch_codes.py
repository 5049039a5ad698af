"""Patches of a map as bytes: few enough for a page that compares any two of them."""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from dinocache.feature_pictures import unit_vectors, widest_axes

__all__ = ["AIM", "FINER", "PatchCodes"]

AIM = 0.02
"""Greatest error of a cosine, where there is room for it."""
FINER = 254
"""Times as fine as the others the second codes of the first components are."""

_OF_SPREAD = 0.1
"""The same as a share of the standard deviation of a map's cosines."""
_FINE = 2
"""Components that are kept twice as precisely as int8."""
_ROUNDING = 1e-5
"""Of float32; patches that are all the same differ by no more."""
_PAIRS = 1 << 23
"""Of patches, that the error is measured on; all of a map of up to 53 x 53 patches."""
_AT_ONCE = 4
"""Components that are added before the error is measured again."""

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class PatchCodes:
    """Patches made so small that a page can hold them, for cosines between any two.

    A patch's features have the length 1 and are u = m + c, m their mean. u_i . u_j is
    b_i + b_j + c_i . c_j with b = m . (c + m / 2). b is kept as float32, c as int8 of its leading
    principal components, each with a scale. What rounding leaves of the first two, which are by
    far the largest, is kept as int8, too, 254 times as fine.

    Attributes:
        codes: (patches, components) int8.
        fine: (patches, at most 2) int8.
        scales: (components,) float32.
        base: (patches,) float32, b.
        error: The greatest difference to a cosine of the features, of the pairs that were looked
            at.
        is_close: Whether that is as small as it should be; see `of`.
        pairs: How many these are.
        is_all: Whether these are all.
    """

    codes: npt.NDArray[np.int8]
    fine: npt.NDArray[np.int8]
    scales: Floats
    base: Floats
    error: float
    is_close: bool
    pairs: int
    is_all: bool

    @classmethod
    def of(cls, patches: npt.NDArray[np.floating[Any]], most: int) -> Self:
        """Make patches small.

        As many components are kept as keep the error at or below `AIM`, and below a tenth of the
        standard deviation of the cosines: patches of a map may all be much alike.

        Args:
            patches: (..., dim) of one map.
            most: Components at most.

        Returns:
            The codes; with a greater error where `most` are too few.
        """
        units = unit_vectors(patches.reshape(-1, patches.shape[-1]))
        mean = units.mean(0)
        around = units - mean
        base = (around @ mean + mean @ mean / 2).astype(np.float32)
        parts = around @ widest_axes(around, most)
        largest = np.abs(parts).max(0)
        scales = np.where(largest > 0, largest / 127, 1).astype(np.float32)
        codes = np.rint(parts / scales).astype(np.int8)
        first = slice(0, _FINE)
        left = (parts - codes * scales)[:, first] / scales[first]
        fine = np.rint(left * FINER).astype(np.int8)
        some = np.arange(0, len(units), -(-(len(units) ** 2) // _PAIRS))
        error, kept, is_close = _least_components(units, base, _read(codes, fine, scales), some)
        return cls(
            codes=codes[:, :kept],
            fine=fine[:, :kept],
            scales=scales[:kept],
            base=base,
            error=error,
            is_close=is_close,
            pairs=len(some) * len(units),
            is_all=len(some) == len(units),
        )

    def cosines(self, patch: int) -> Floats:
        """Compare a patch to all, as the page does: (patches,) float32."""
        read = _read(self.codes, self.fine, self.scales)
        found: Floats = self.base + self.base[patch] + read @ read[patch]
        return found


def _read(codes: npt.NDArray[np.int8], fine: npt.NDArray[np.int8], scales: Floats) -> Floats:
    read = codes.astype(np.float32)
    read[:, : fine.shape[1]] += fine.astype(np.float32) / FINER
    return read * scales


def _least_components(
    units: npt.NDArray[np.float64],
    base: Floats,
    read: Floats,
    some: npt.NDArray[np.intp],
) -> tuple[float, int, bool]:
    """Add components until the error is small enough, or there are no more.

    Returns:
        The error, how many there are then, and whether it is small enough.
    """
    left = (units[some] @ units.T).astype(np.float32)
    # Of patches that are all the same nothing is left but rounding.
    aim = max(min(AIM, _OF_SPREAD * float(left.std(dtype=np.float64))), _ROUNDING)
    left -= base[some, None]
    left -= base
    kept = 0
    while True:
        error = float(max(left.max(), -left.min()))
        if error <= aim or kept == read.shape[1]:
            return error, kept, error <= aim
        more = read[:, kept : kept + _AT_ONCE]
        left -= more[some] @ more.T
        kept += more.shape[1]
