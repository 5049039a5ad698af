"""Displacements on a grid: what is warped by them, and how regular they are.

A displacement is (axes, *grid), in voxels, component k along axis k of the grid; (Z, Y, X) or
(Y, X). What is warped stands at x + u(x) in the moving image, x on the fixed image's grid. So of a
moving image that is the fixed one rolled by +3, the displacement is +3.
"""

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

__all__ = ["folding", "jacobian_determinant", "log_jacobian_sd", "warp"]

Floats = npt.NDArray[np.float32]


def warp(
    image: npt.NDArray[Any],
    displacement: npt.NDArray[np.floating[Any]],
    *,
    method: Literal["linear", "nearest"] = "linear",
    outside: float | None = None,
) -> npt.NDArray[Any]:
    """Sample an image at x + u.

    Args:
        image: (*grid), or (channels, *grid): the moving one, or its labels.
        displacement: (axes, *grid), voxels.
        method: Between voxels; "nearest" for labels: of two that are as near the one behind.
        outside: What stands more than half a voxel beyond the outermost voxels' centres; None is
            the value of the nearest voxel, as is up to there in any case.

    Returns:
        Of the image's shape; of its type where the method is "nearest", else float32.

    Raises:
        ValueError: If grids differ or are not of 2 or 3 axes, a displacement is not finite, the
            method is another, or what stands outside is no value of the image's type.
    """
    image, grid = np.asarray(image), _check(displacement)
    axes = len(grid)
    if image.shape not in (grid, (*image.shape[:1], *grid)):
        raise ValueError(
            f"an image must be on the displacement's grid {grid}, or be channels of such; "
            f"got {image.shape}"
        )
    if method not in ("linear", "nearest"):
        raise ValueError(f"the method must be linear or nearest, got {method!r}")
    places = np.indices(grid, np.float32, sparse=True)
    at = np.stack([place + u for place, u in zip(places, displacement, strict=True)])
    stack = image if image.ndim > axes else image[None]
    warped = _nearest(stack, at) if method == "nearest" else _linear(stack, at)
    if outside is not None:
        if warped.dtype.type(outside) != outside:
            raise ValueError(f"what stands outside must be a {warped.dtype}, got {outside}")
        for k, n in enumerate(grid):
            warped[:, (at[k] < -0.5) | (at[k] > n - 0.5)] = outside
    return warped.reshape(image.shape)


def _nearest(stack: npt.NDArray[Any], at: npt.NDArray[Any]) -> npt.NDArray[Any]:
    grid = at.shape[1:]
    index = tuple(
        np.clip(np.floor(place + 0.5), 0, n - 1).astype(np.intp)
        for place, n in zip(at, grid, strict=True)
    )
    warped: npt.NDArray[Any] = stack[(slice(None), *index)]
    return warped


def _linear(stack: npt.NDArray[Any], at: npt.NDArray[Any]) -> Floats:
    from scipy.ndimage import map_coordinates

    warped = np.empty(stack.shape, np.float32)
    for channel, out in zip(stack, warped, strict=True):
        map_coordinates(channel, at, output=out, order=1, mode="nearest")
    return warped


def jacobian_determinant(displacement: npt.NDArray[np.floating[Any]]) -> Floats:
    """Say by how much x + u(x) widens the surroundings of each voxel.

    Derivatives are central differences, one-sided at the edges.

    Args:
        displacement: (axes, *grid), voxels. Spacing does not matter.

    Returns:
        (*grid): 1 where nothing changes; 0 or less where the mapping folds.

    Raises:
        ValueError: If it is not as above, is not finite, or the grid has an axis of 1 voxel.
    """
    grid = _check(displacement)
    if min(grid) < 2:
        raise ValueError(f"derivatives need 2 voxels along each axis, the grid is {grid}")
    # rows[k][l]: of component k along axis l.
    rows = [list(np.gradient(np.asarray(u, np.float32))) for u in displacement]
    for k, row in enumerate(rows):
        row[k] += 1
    if len(rows) == 2:
        (a, b), (c, d) = rows
        flat: Floats = a * d - b * c
        return flat
    (a, b, c), (d, e, f), (g, h, i) = rows
    solid: Floats = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)
    return solid


def folding(displacement: npt.NDArray[np.floating[Any]]) -> float:
    """Return the share of voxels at which x + u(x) folds, in [0, 1]: |J| <= 0.

    Args:
        displacement: See `jacobian_determinant`.

    Returns:
        0 for what keeps its order everywhere.

    Raises:
        ValueError: See `jacobian_determinant`.
    """
    return float((jacobian_determinant(displacement) <= 0).mean())


def log_jacobian_sd(displacement: npt.NDArray[np.floating[Any]]) -> float:
    """Return the standard deviation of log |J| where nothing folds: 0 for a shift or a scaling.

    Voxels that fold have no logarithm; clipped to some small number, a few would be most of the
    figure. `folding` counts them.

    Args:
        displacement: See `jacobian_determinant`.

    Returns:
        The population's (divided by the number of voxels); NaN if all of them fold.

    Raises:
        ValueError: See `jacobian_determinant`.

    References:
        Learn2Reg's evaluation adds 3 to |J| first, and clips; its figures are smaller.
    """
    determinants = jacobian_determinant(displacement).astype(np.float64)
    kept = determinants[determinants > 0]
    return float(np.log(kept).std()) if len(kept) else float("nan")


def _check(displacement: npt.NDArray[np.floating[Any]]) -> tuple[int, ...]:
    """Return the grid of a displacement; see `warp` for what is refused."""
    shape = np.shape(displacement)
    if len(shape) not in (3, 4) or shape[0] != len(shape) - 1 or 0 in shape:
        raise ValueError(
            f"a displacement must be (2, Y, X) or (3, Z, Y, X) and not empty, got {shape}"
        )
    if not np.isfinite(displacement).all():
        raise ValueError("a displacement must be finite, this one is not")
    return tuple(shape[1:])
