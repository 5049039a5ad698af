"""Displacements, and what they make of an image, as NIfTI that other programs open."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dinocache.geometry import Geometry, Matrix, apply, write_nifti

__all__ = ["IN_VOXELS", "displacement_mm", "read_displacement", "write_displacement", "write_grid"]

IN_MM, IN_VOXELS = "displacement_mm.nii.gz", "displacement_voxels.nii.gz"

_VECTOR = 1007
"""NIFTI_INTENT_VECTOR: ITK takes its numbers as they are."""


def displacement_mm(
    displacement: npt.NDArray[np.float32], fixed: Geometry, moving: Geometry
) -> npt.NDArray[np.float64]:
    """Turn a displacement in voxels to one in the patient's space.

    Args:
        displacement: (axes, *grid), voxels, in the order of the grid's axes: (Z, Y, X) or (Y, X).
        fixed: Of the rows that it stands on.
        moving: Of the rows that it leads to.

    Returns:
        (Z, Y, X, 3): from where a fixed voxel lies to where it is taken from, LPS, mm; where the
        files do not say where they lie, as if voxels were of 1 mm.
    """
    voxels = _as_volume(displacement)
    z, y, x = (np.arange(side) for side in voxels.shape[1:])
    places = np.stack(np.meshgrid(z, y, x, indexing="ij")[::-1], axis=-1).astype(np.float64)
    moved = places + np.moveaxis(voxels[::-1], 0, -1)
    return np.asarray(apply(_affine(moving), moved) - apply(_affine(fixed), places))


def write_displacement(
    folder: Path,
    displacement: npt.NDArray[np.float32],
    fixed: Geometry,
    moving: Geometry,
) -> None:
    """Write a displacement in mm and in voxels.

    `displacement_mm.nii.gz` holds what ITK calls a displacement field: at each voxel of the fixed
    rows the way, LPS, mm, to where the moving image is sampled. `displacement_voxels.nii.gz` holds
    the same in voxels of the rows' grid, (x, y, z).

    Args:
        folder: That is there.
        displacement: (axes, *grid), voxels.
        fixed: Of the rows that it stands on.
        moving: Of the rows that it leads to.

    Raises:
        OSError: If a file cannot be written.
    """
    inner = np.moveaxis(_as_volume(displacement)[::-1], 0, -1)
    for name, vectors in (("mm", displacement_mm(displacement, fixed, moving)), ("voxels", inner)):
        values = vectors.transpose(2, 1, 0, 3)[:, :, :, None, :].astype(np.float32)
        path = folder / (IN_VOXELS if name == "voxels" else IN_MM)
        write_nifti(path, values, _rows_only(fixed), intent=_VECTOR)


def read_displacement(path: Path, axes: int) -> npt.NDArray[np.float32]:
    """Read back a file `displacement_voxels.nii.gz` of ours: (axes, *grid), voxels."""
    import nibabel

    image = nibabel.Nifti1Image.from_filename(path)
    vectors = np.asarray(image.dataobj, np.float32)[:, :, :, 0]
    volume = vectors.transpose(3, 2, 1, 0)[::-1]
    return np.ascontiguousarray(volume if axes == 3 else volume[1:, 0])


def write_grid(path: Path, values: npt.NDArray[Any], geometry: Geometry) -> None:
    """Write an image or labels, (Z, Y, X) or (Y, X), on the rows' own grid.

    Raises:
        OSError: If the file cannot be written.
    """
    volume = values if values.ndim == 3 else values[None]
    write_nifti(path, volume.transpose(2, 1, 0), _rows_only(geometry))


def _as_volume(displacement: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Give (3, Z, Y, X): a picture's displacement stays in its plane."""
    if len(displacement) == 3:
        return displacement
    flat = np.zeros_like(displacement[:1])
    return np.concatenate([flat, displacement])[:, None]


def _affine(geometry: Geometry) -> Matrix:
    # NIfTI's own axes stand for a file that does not say.
    return np.diag([-1.0, -1.0, 1.0, 1.0]) if geometry.affine is None else geometry.affine


def _rows_only(geometry: Geometry) -> Geometry:
    """Give the rows' grid as that of a file of its own."""
    return Geometry(shape=geometry.shape, affine=_affine(geometry))
