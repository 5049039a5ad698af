"""What every reader of items can do.

A reader says how many rows an item has without decoding all of it, and gives any range of rows.
Arrays are (C, Z, Y, X); a row is one slice (C, Y, X) of it.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["Geometry", "Pixels", "Reader"]

Pixels = npt.NDArray[np.uint8] | npt.NDArray[np.uint16] | npt.NDArray[np.float32]
"""Decoded values as the file has them; the recipe's window brings them to [0, 1]."""


@dataclass(frozen=True)
class Geometry:
    """Where an item lies; None where its file does not say.

    Attributes:
        affine: (4, 4), voxel index (x, y, z, 1) to LPS, mm.
        spacing: (z, y, x), mm.
    """

    affine: list[list[float]] | None = None
    spacing: list[float] | None = None


@dataclass(frozen=True)
class ItemRows:
    """Some rows of an item.

    Attributes:
        rows: One (C, Y, X) array a row.
        geometry: Of the item.
    """

    rows: list[Pixels]
    geometry: Geometry = field(default_factory=Geometry)


class Reader(Protocol):
    """Opens items of one sort."""

    name: str
    options: dict[str, Any]
    """As the recipe records them."""

    def count_rows(self, path: Path) -> int:
        """Count an item's rows, from its header alone.

        Args:
            path: The item's file or folder.

        Returns:
            At least 1.

        Raises:
            ItemError: If that cannot be told.
        """
        ...

    def read(self, path: Path, start: int, stop: int) -> ItemRows:
        """Decode rows.

        Args:
            path: The item's file or folder.
            start: First row.
            stop: Row behind the last.

        Returns:
            The rows, (C, Y, X) each; C is 1 for grey, 3 for RGB.

        Raises:
            ItemError: If the file is missing, damaged, or of another sort.
        """
        ...

    def read_mask(self, path: Path) -> npt.NDArray[np.integer[Any]]:
        """Decode a label map.

        Args:
            path: The mask's file.

        Returns:
            (Z, Y, X) labels as stored; 0 is background.

        Raises:
            ItemError: As for `read`.
        """
        ...
