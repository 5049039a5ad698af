"""Distances between the surfaces of two masks, as medpy defines them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = [
    "SurfaceDistances",
    "asd",
    "assd",
    "bounding_box",
    "check_spacing",
    "hd95",
    "surface_distances",
]

_Float = npt.NDArray[np.float64]
_Bool = npt.NDArray[np.bool_]
_Spacing = Sequence[float] | None

_SPARSE = 64
"""Voxels of the box for each voxel of a surface, from which a search tree is the faster way."""


class SurfaceDistances(NamedTuple):
    """From each voxel of one surface to the nearest of the other, mm; empty if a mask is."""

    to_truth: _Float
    """(n,) of the prediction's surface."""
    to_prediction: _Float
    """(m,) of the truth's surface."""

    @property
    def hd95(self) -> float:
        """See `hd95`."""
        both = np.concatenate(self)
        return float(np.percentile(both, 95)) if both.size else np.nan

    @property
    def asd(self) -> float:
        """See `asd`."""
        return float(self.to_truth.mean()) if self.to_truth.size else np.nan

    @property
    def assd(self) -> float:
        """See `assd`."""
        both = np.concatenate(self)
        return float(both.mean()) if both.size else np.nan


def hd95(truth: npt.ArrayLike, prediction: npt.ArrayLike, spacing: _Spacing = None) -> float:
    """Return the 95th percentile of the distances from each surface to the other, taken together.

    Other libraries take the greater of the percentiles of the two directions; that is another
    figure.

    Args:
        truth: (Y, X) or (Z, Y, X) bool.
        prediction: Of the same shape.
        spacing: Between voxels, mm, one number for each axis; None is 1.

    Returns:
        mm; NaN if a mask is empty.

    Raises:
        ValueError: If an argument is not as above.

    References:
        medpy 0.5, ``metric.binary.hd95``.
    """
    return surface_distances(truth, prediction, spacing).hd95


def asd(truth: npt.ArrayLike, prediction: npt.ArrayLike, spacing: _Spacing = None) -> float:
    """Return the mean distance from the prediction's surface to the truth's.

    It is not symmetric. medpy's ``asd(result, reference)`` has the prediction first.

    Args:
        truth: See `hd95`.
        prediction: See `hd95`.
        spacing: See `hd95`.

    Returns:
        mm; NaN if a mask is empty.

    Raises:
        ValueError: See `hd95`.

    References:
        medpy 0.5, ``metric.binary.asd``.
    """
    return surface_distances(truth, prediction, spacing).asd


def assd(truth: npt.ArrayLike, prediction: npt.ArrayLike, spacing: _Spacing = None) -> float:
    """Return the mean of the distances from each surface to the other, taken together.

    Args:
        truth: See `hd95`.
        prediction: See `hd95`.
        spacing: See `hd95`.

    Returns:
        mm; NaN if a mask is empty.

    Raises:
        ValueError: See `hd95`.

    References:
        medpy 0.5, ``metric.binary.assd``: the mean of all distances, not of the two means.
    """
    return surface_distances(truth, prediction, spacing).assd


def surface_distances(
    truth: npt.ArrayLike, prediction: npt.ArrayLike, spacing: _Spacing = None
) -> SurfaceDistances:
    """Measure from surface to surface.

    A mask's surface are its voxels with a face to a voxel outside, or to the outside of the
    array. All is done in the box around both masks: what is beyond holds no surface, and is
    outside of both masks either way.

    Args:
        truth: See `hd95`.
        prediction: See `hd95`.
        spacing: See `hd95`.

    Returns:
        The distances, in the order of the voxels.

    Raises:
        ValueError: See `hd95`.
    """
    masks = np.asarray(truth), np.asarray(prediction)
    if masks[0].shape != masks[1].shape or masks[0].ndim not in (2, 3):
        raise ValueError(
            "truth and prediction must have one shape (Y, X) or (Z, Y, X), got "
            f"{masks[0].shape} and {masks[1].shape}"
        )
    if masks[0].dtype != bool or masks[1].dtype != bool:
        raise ValueError(
            f"truth and prediction must be bool, got {masks[0].dtype} and {masks[1].dtype}; "
            "compare a label map with the label"
        )
    steps = check_spacing(spacing, masks[0].ndim)
    boxes = bounding_box(masks[0]), bounding_box(masks[1])
    if boxes[0] is None or boxes[1] is None:
        return SurfaceDistances(np.empty(0), np.empty(0))
    pairs = zip(boxes[0], boxes[1], strict=True)
    box = tuple(slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in pairs)
    of_truth, of_prediction = _surface(masks[0][box]), _surface(masks[1][box])
    return SurfaceDistances(
        to_truth=_distances(of_prediction, of_truth, steps),
        to_prediction=_distances(of_truth, of_prediction, steps),
    )


def check_spacing(spacing: _Spacing, n_axes: int) -> _Float:
    """See that a spacing has a positive number for each axis.

    Args:
        spacing: mm; None is 1 for each.
        n_axes: Of the masks.

    Returns:
        (n_axes,) float64.

    Raises:
        ValueError: If it does not.
    """
    steps = np.ones(n_axes) if spacing is None else np.asarray(spacing, dtype=np.float64)
    if steps.shape != (n_axes,) or not np.isfinite(steps).all() or (steps <= 0).any():
        raise ValueError(f"spacing must be {n_axes} numbers above 0, mm; got {spacing}")
    return steps


def bounding_box(mask: _Bool) -> tuple[slice, ...] | None:
    """Return the smallest box that holds a mask.

    Args:
        mask: Of any number of axes, bool.

    Returns:
        A slice for each axis; None if the mask is empty.
    """
    box: list[slice] = []
    for axis in range(mask.ndim):
        # Within the box so far: the first axis has left little of the others.
        inside = mask[tuple(box)]
        others = tuple(other for other in range(mask.ndim) if other != axis)
        there = np.flatnonzero(inside.any(axis=others))
        if len(there) == 0:
            return None
        box.append(slice(int(there[0]), int(there[-1]) + 1))
    return tuple(box)


def _surface(mask: _Bool) -> _Bool:
    from scipy.ndimage import binary_erosion

    return np.asarray(mask & ~binary_erosion(mask))


def _distances(start: _Bool, end: _Bool, spacing: _Float) -> _Float:
    """Return the distance from each voxel of one surface to the nearest of another."""
    points = np.argwhere(start)
    if (len(points) + np.count_nonzero(end)) * _SPARSE < end.size:
        from scipy.spatial import KDTree

        distances, _ = KDTree(np.argwhere(end) * spacing).query(points * spacing)
        return np.asarray(distances)
    from scipy.ndimage import distance_transform_edt

    # Which voxel is the nearest, and distances for the surface alone: a quarter of the memory
    # that distances for every voxel of the box would take.
    nearest: npt.NDArray[Any] = distance_transform_edt(
        ~end, sampling=spacing, return_distances=False, return_indices=True
    )
    ends = nearest[(slice(None), *points.T)].T
    return np.asarray(np.sqrt((((ends - points) * spacing) ** 2).sum(axis=1)))
