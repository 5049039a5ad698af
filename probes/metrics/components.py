"""Volumes of lesions that were missed as a whole, or invented."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from probes.metrics.surfaces import bounding_box, check_spacing

__all__ = ["fn_volume", "fp_volume"]

_MM3_PER_ML = 1000.0


def fp_volume(truth: npt.ArrayLike, prediction: npt.ArrayLike, spacing: Sequence[float]) -> float:
    """Return the volume of predicted components that do not touch the truth.

    A component are voxels joined by faces or edges (18 neighbours, not the 8 at the corners). One
    true voxel in it is enough for it not to count.

    Args:
        truth: (Z, Y, X) bool.
        prediction: Of the same shape.
        spacing: Between voxels (z, y, x), mm.

    Returns:
        ml; 0 if there is none.

    Raises:
        ValueError: If an argument is not as above.

    References:
        autoPET, ``val_script.py``, ``false_pos_pix`` times the volume of a voxel.
    """
    return _untouched_volume(prediction, truth, spacing)


def fn_volume(truth: npt.ArrayLike, prediction: npt.ArrayLike, spacing: Sequence[float]) -> float:
    """Return the volume of true components that the prediction does not touch.

    Args:
        truth: See `fp_volume`.
        prediction: See `fp_volume`.
        spacing: See `fp_volume`.

    Returns:
        ml; 0 if there is none.

    Raises:
        ValueError: See `fp_volume`.

    References:
        autoPET, ``val_script.py``, ``false_neg_pix`` times the volume of a voxel.
    """
    return _untouched_volume(truth, prediction, spacing)


def _untouched_volume(mask: npt.ArrayLike, other: npt.ArrayLike, spacing: Sequence[float]) -> float:
    from scipy.ndimage import generate_binary_structure, label

    mask, other = np.asarray(mask), np.asarray(other)
    if mask.ndim != 3 or mask.shape != other.shape or mask.dtype != bool or other.dtype != bool:
        raise ValueError(
            "volumes of components need two bool masks (Z, Y, X) of one shape, got "
            f"{mask.shape} {mask.dtype} and {other.shape} {other.dtype}"
        )
    voxel = float(np.prod(check_spacing(spacing, 3))) / _MM3_PER_ML
    box = bounding_box(mask)
    if box is None:
        return 0.0
    components, n_components = label(mask[box], generate_binary_structure(3, 2))
    sizes = np.bincount(components.ravel(), minlength=n_components + 1)
    sizes[components[other[box]]] = 0  # touched
    return int(sizes[1:].sum()) * voxel
