"""What dense heads learn from and are asked about: a contract, see docs/heads.md."""

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["Cases"]


class Cases(Protocol):
    """Items with maps of patch features, and labels of their pixels or voxels."""

    @property
    def channels(self) -> tuple[int, ...]:
        """Of each map that is read together."""

    @property
    def levels(self) -> tuple[int, ...]:
        """Of each map: 0 for the last layer, 1, 2, ... for ever earlier ones."""

    @property
    def views(self) -> tuple[str | None, ...]:
        """None for what is as it is, and the names of views that are turned."""

    def __len__(self) -> int:
        """How many items there are."""

    def n_rows(self, item: int) -> int:
        """How many images, slices or frames an item has."""

    def size(self, item: int) -> tuple[int, int]:
        """(Y, X) of an item's labels."""

    def maps(
        self, item: int, start: int, stop: int, view: str | None = None
    ) -> tuple[npt.NDArray[np.floating[Any]], ...]:
        """Read maps of some rows: each (rows, grid_height, grid_width, channels)."""

    def labels(self, item: int, start: int, stop: int, view: str | None = None) -> npt.NDArray[Any]:
        """Read labels of some rows: (rows, Y, X) whole numbers, or (classes, rows, Y, X) bool."""
