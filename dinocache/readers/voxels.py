"""A volume as its file holds it: voxels that can be decoded, and where they lie."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from dinocache.errors import ItemError
from dinocache.geometry import Matrix
from dinocache.readers.contract import Labels

__all__ = ["VoxelFile", "Voxels", "checked_affine", "sizes"]


class Voxels(Protocol):
    """What can decode the voxels of a file. Arrays are (volumes, C, K, J, I)."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(I, J, K)."""

    @property
    def volumes(self) -> int:
        """How many volumes there are."""

    @property
    def channels(self) -> int:
        """Channels of a volume: 3 for colours, else 1."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of `pixels`."""

    def pixels(self, picks: Sequence[int]) -> npt.NDArray[Any]:
        """Decode the volumes of these numbers, ascending."""

    def labels(self, picks: Sequence[int]) -> Labels:
        """Decode them as whole numbers."""


@dataclass(frozen=True, kw_only=True)
class VoxelFile:
    """A file's volumes on its own grid.

    Attributes:
        voxels: To be decoded.
        affine: (4, 4) voxel (i, j, k, 1) to LPS, mm; None where the file does not say.
        notes: What a person should know.
        value_range: Least and greatest value that pixels can have; None is that of their type.
        file_window: The values that the file asks to be shown as black and white, if any.
    """

    voxels: Voxels
    affine: Matrix | None
    notes: tuple[str, ...] = ()
    value_range: tuple[float, float] | None = None
    file_window: tuple[float, float] | None = None


def checked_affine(affine: npt.ArrayLike) -> Matrix:
    """See that voxels span a volume.

    Args:
        affine: (4, 4).

    Returns:
        It, float64.

    Raises:
        ItemError: If it holds NaN or infinity, or if two of its axes are the same.
    """
    matrix = np.asarray(affine, np.float64)
    sides = np.linalg.norm(matrix[:3, :3], axis=0)
    if not np.isfinite(matrix).all() or not np.isfinite(sides).all():
        raise ItemError("its affine holds values that are not finite")
    if sides.min() < 1e-9 or sides.max() > 1e9:
        raise ItemError(f"its affine makes voxels of {sizes(sides)} mm")
    if abs(np.linalg.det(matrix[:3, :3] / sides)) < 1e-4:
        raise ItemError("its affine is singular: its axes do not span a volume")
    return matrix


def sizes(sides: npt.NDArray[np.float64]) -> str:
    """Write lengths as "a x b x c"."""
    return " x ".join(f"{side:g}" for side in sides)
