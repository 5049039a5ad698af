"""The eight ways to turn and mirror a square: views of an image that are encoded besides it.

Of a view everything is turned: what the encoder sees, its maps, and, where somebody learns from
them, the labels.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from dinocache.errors import RequestError

__all__ = [
    "IDENTITY",
    "VIEWS",
    "flips",
    "parse_views",
    "swaps_axes",
    "turned",
    "turned_back",
]

IDENTITY = "identity"
_SWAP_Y_X = {
    "hflip": (False, False, True),
    "vflip": (False, True, False),
    "rot90": (True, True, False),
    "rot180": (False, True, True),
    "rot270": (True, False, True),
    "transpose": (True, False, False),
    "antitranspose": (True, True, True),
}
"""Whether rows become columns; then whether rows, and columns, are reversed."""
VIEWS = tuple(_SWAP_Y_X)
"""Besides `identity`; rotations are counter-clockwise, as NumPy's `rot90`."""
_BACK = {"rot90": "rot270", "rot270": "rot90"}


def parse_views(text: str) -> tuple[str | None, ...]:
    """Read `identity,hflip,rot90`.

    Args:
        text: As a person gives it; `all` for all eight.

    Returns:
        Names, each once; None for identity.

    Raises:
        RequestError: If one is unknown.
    """
    names = [part.strip() for part in text.split(",") if part.strip()]
    if names == ["all"]:
        return (None, *VIEWS)
    if unknown := [name for name in names if name not in (IDENTITY, *VIEWS)]:
        raise RequestError(
            f"--views: there is no view {unknown[0]!r}; choose from {IDENTITY}, "
            f"{', '.join(VIEWS)}, or all"
        )
    if not names:
        raise RequestError(f"--views names nothing; choose from {IDENTITY}, {', '.join(VIEWS)}")
    return tuple(dict.fromkeys(None if name == IDENTITY else name for name in names))


def swaps_axes(view: str | None) -> bool:
    """Tell whether rows become columns, for which an image must be square."""
    return view is not None and _SWAP_Y_X[view][0]


def flips(view: str | None, axes: tuple[int, int]) -> tuple[int, ...]:
    """Say which of the axes (Y, X) are reversed, once they are swapped if they are to be."""
    reversals = _SWAP_Y_X[view][1:] if view else (False, False)
    return tuple(axis for axis, flip in zip(axes, reversals, strict=True) if flip)


def turned(view: str | None, values: npt.NDArray[Any], axes: tuple[int, int]) -> npt.NDArray[Any]:
    """Turn an array.

    Args:
        view: One of `VIEWS`; None leaves it as it is.
        values: (..., Y, ..., X, ...).
        axes: Which are Y and X.

    Returns:
        A view of its memory.
    """
    if swaps_axes(view):
        values = values.swapaxes(*axes)
    return np.flip(values, flips(view, axes))


def turned_back(
    view: str | None, values: npt.NDArray[Any], axes: tuple[int, int]
) -> npt.NDArray[Any]:
    """Undo `turned`."""
    return turned(_BACK.get(view, view) if view else None, values, axes)
