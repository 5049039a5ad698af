"""Principal components that the fixed and the moving image share, as channels on their grid."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from probes.components import scatter_of, widest_axes

__all__ = ["project", "scaled", "shared_components", "to_grid"]

_BLOCK = 1 << 22
"""Numbers that are computed with at once: 16 MiB as float32."""
_LEAST_SPREAD = 1e-12
"""Variance as a share of the squared mean: below that, tokens differ by rounding."""

Floats = npt.NDArray[np.float32]


def shared_components(
    blocks: Callable[[], Iterator[npt.NDArray[np.floating[Any]]]], n_components: int
) -> Floats:
    """Find the principal components of tokens that come in blocks.

    They are exact, those of the covariance, which is summed up block by block: of each around the
    block's own mean with float32 products, over blocks in float64. So memory is bounded by a
    block and (dim, dim), whatever the number of tokens. Signs of components are arbitrary; here
    the loading of largest magnitude is positive.

    Args:
        blocks: Yields all tokens that count, of the fixed and the moving image, (n, dim) each.
        n_components: How many components are wanted, the widest first.

    Returns:
        (dim, n_components), columns of length 1.

    Raises:
        ValueError: If there are fewer tokens or dimensions than components, blocks are not as
            above, numbers are not finite, or all tokens are the same.
    """
    if n_components < 1:
        raise ValueError(f"at least 1 component must be asked for, got {n_components}")
    count, mean, scatter = scatter_of(blocks())
    dim = len(mean)
    if count < n_components or dim < n_components:
        raise ValueError(
            f"{n_components} components need as many tokens and dimensions, "
            f"got {count} tokens of {dim}"
        )
    if scatter.trace() <= _LEAST_SPREAD * count * (mean @ mean):
        raise ValueError(f"components are of tokens that differ, these {count} are all the same")
    return widest_axes(scatter / count, n_components).astype(np.float32)


def project(maps: npt.NDArray[np.floating[Any]], basis: Floats) -> Floats:
    """Give the components of maps, without taking a mean off.

    So each component has an offset; fixed and moving have the same one, and differences between
    them are free of it.

    Args:
        maps: (rows, grid_height, grid_width, dim).
        basis: (dim, components), of `shared_components`.

    Returns:
        (components, rows, grid_height, grid_width).

    Raises:
        ValueError: If maps are not as above or not finite.
    """
    if maps.ndim != 4 or maps.shape[-1] != len(basis):
        raise ValueError(f"maps must be (rows, height, width, {len(basis)}), got {maps.shape}")
    rows, height, width, dim = maps.shape
    found = np.empty((basis.shape[1], rows, height, width), np.float32)
    together = max(1, _BLOCK // max(1, height * width * dim))
    for at in range(0, rows, together):
        tokens = maps[at : at + together].reshape(-1, dim).astype(np.float32, copy=False)
        found[:, at : at + together] = (tokens @ basis).T.reshape(len(found), -1, height, width)
    if not np.isfinite(found).all():
        raise ValueError("maps must be finite, these are not")
    return found


def to_grid(components: Floats, grid: Sequence[int]) -> Floats:
    """Bring components to the grid of an image which the maps cover edge to edge.

    Linear along each axis between the centres of patches, the outermost going on to the edge
    (`align_corners=False`); where an axis shrinks, with the triangle as wide as the new voxels.

    Args:
        components: (C, rows, grid_height, grid_width), of `project`.
        grid: (Z, Y, X), rows being along Z; or (Y, X) of one row.

    Returns:
        (C, *grid).

    Raises:
        ValueError: If shapes are not as above, or a picture has several rows.
    """
    if components.ndim != 4 or 0 in components.shape:
        raise ValueError(f"components must be (C, rows, height, width), got {components.shape}")
    if len(grid) not in (2, 3) or min(grid) < 1:
        raise ValueError(f"a grid must be (Z, Y, X) or (Y, X), got {tuple(grid)}")
    if len(grid) == 2 and components.shape[1] != 1:
        raise ValueError(f"a picture has one row of maps, these are {components.shape[1]}")
    brought = components.astype(np.float32, copy=False)
    if len(grid) == 2:
        brought = brought[:, 0]
    # The last axis first: the planes that the next one runs over are the smaller.
    for axis in range(len(grid), 0, -1):
        brought = _resized(brought, axis, grid[axis - 1])
    return np.ascontiguousarray(brought)


def _resized(values: Floats, axis: int, size: int) -> Floats:
    """Resize one axis; see `to_grid`."""
    before = values.shape[axis]
    if before == size:
        return values
    step = before / size
    reach = max(step, 1.0)
    centres = (np.arange(size) + 0.5) * step - 0.5
    weights = 1 - np.abs(np.arange(before) - centres[:, None]) / reach
    weights = np.clip(weights, 0, None)
    weights /= weights.sum(1, keepdims=True)
    return np.moveaxis(np.tensordot(values, weights.astype(np.float32), (axis, 1)), -1, axis)


def scaled(fixed: Floats, moving: Floats, factor: float = 1.0) -> tuple[Floats, Floats]:
    """Divide both stacks by the standard deviation of all of their values, offsets included.

    Args:
        fixed: (C, *grid).
        moving: Of the same channels.
        factor: What the result is multiplied by: 0.1 beside the channels of MIND.

    Returns:
        Both, so scaled.

    Raises:
        ValueError: If channels differ, the factor is not above 0, or values are not finite or all
            the same.
    """
    if len(fixed) != len(moving) or not fixed.size or not moving.size:
        raise ValueError(
            f"both stacks must have the same channels, got {fixed.shape} and {moving.shape}"
        )
    if not 0 < factor < np.inf:
        raise ValueError(f"the factor must be above 0, got {factor}")
    sizes = fixed.size, moving.size
    means = fixed.mean(dtype=np.float64), moving.mean(dtype=np.float64)
    mean = np.average(means, weights=sizes)
    squares = [np.square(channel - mean).sum() for one in (fixed, moving) for channel in one]
    deviation = float(np.sqrt(sum(squares) / sum(sizes)))
    if not np.isfinite(deviation) or deviation == 0:
        raise ValueError("features must be finite and not all the same, these are not")
    scale = np.float32(factor / deviation)
    return fixed * scale, moving * scale
