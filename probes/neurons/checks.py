"""What volumes of ids and of affinities must be."""

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["check_affinities", "check_ids"]


def check_ids(ids: npt.NDArray[Any], name: str, shape: tuple[int, ...] | None = None) -> None:
    """Refuse what is no volume of ids.

    Args:
        ids: Expected to be (Z, Y, X) integers of at least 0.
        name: Of the argument, for the message.
        shape: What it must be, if that is known.

    Raises:
        ValueError: If it is anything else.
    """
    if ids.ndim != 3 or ids.size == 0:
        raise ValueError(f"{name} must be a volume (Z, Y, X), got the shape {ids.shape}")
    if shape is not None and ids.shape != shape:
        raise ValueError(f"{name} must have the shape of the affinities, {shape}, got {ids.shape}")
    if ids.dtype.kind not in "ui":
        raise ValueError(f"{name} must be ids, integers of at least 0; got {ids.dtype}")
    if ids.dtype.kind == "i" and ids.min() < 0:
        raise ValueError(f"{name} must be ids, integers of at least 0; got {ids.min()}")


def check_affinities(affinities: npt.NDArray[Any]) -> None:
    """Refuse what are no affinities.

    Args:
        affinities: Expected to be (3, Z, Y, X) numbers or bool, all of them in [0, 1].

    Raises:
        ValueError: If they are anything else.
    """
    if affinities.ndim != 4 or affinities.shape[0] != 3 or affinities.size == 0:
        raise ValueError(
            f"affinities must be (3, Z, Y, X), the channels z, y, x; got {affinities.shape}"
        )
    if affinities.dtype.kind not in "fuib":
        raise ValueError(f"affinities must be numbers in [0, 1], got {affinities.dtype}")
    lowest, highest = affinities.min(), affinities.max()
    if np.isnan(lowest):  # the least of numbers with a NaN among them is NaN
        raise ValueError("affinities must be numbers in [0, 1], got NaN")
    if lowest < 0 or highest > 1:
        raise ValueError(f"affinities must be in [0, 1], got {lowest:g} to {highest:g}")
