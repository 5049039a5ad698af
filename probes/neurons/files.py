"""Neurons as files that other programs open."""

import contextlib
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from probes.neurons.checks import check_ids

__all__ = ["write_instances"]

_HDF5, _NIFTI = (".h5", ".hdf", ".hdf5"), (".nii", ".nii.gz")
_NIFTI_TYPES = (np.uint8, np.int16, np.int32, np.uint32, np.uint64)
"""Those that most readers share come first."""


def write_instances(
    path: Path,
    labels: npt.NDArray[Any],
    spacing_nm: Sequence[float] | None = None,
    affine: npt.NDArray[Any] | None = None,
) -> None:
    """Write a volume of ids; the file is there whole or not at all.

    HDF5 is as CREMI has it: ``volumes/labels/neuron_ids``, (Z, Y, X) uint64, compressed, with the
    attribute ``resolution``, nm along z, y, x. NIfTI has the axes (X, Y, Z) and the smallest type
    that holds the ids; its unit is the micrometre, or the millimetre of an affine that is given.

    Args:
        path: Ends in .h5, .hdf or .hdf5, or in .nii or .nii.gz; its folder exists. A file that is
            there is replaced.
        labels: (Z, Y, X) ids, integers of at least 0.
        spacing_nm: Along z, y, x, in nm. None: the file does not say.
        affine: Of NIfTI only, and instead of a spacing: (4, 4), from (x, y, z) of a voxel to mm to
            the right, to the front, up.

    Raises:
        ValueError: If an argument is not as above.
        OSError: If the disk refuses.
    """
    labels = np.asarray(labels)
    check_ids(labels, "labels")
    ending = next((e for e in _HDF5 + _NIFTI if path.name.lower().endswith(e)), None)
    if ending is None:
        raise ValueError(f"{path.name} must end in one of {', '.join(_HDF5 + _NIFTI)}")
    spacing = None if spacing_nm is None else [float(step) for step in spacing_nm]
    if spacing is not None and (len(spacing) != 3 or not all(0 < s < np.inf for s in spacing)):
        raise ValueError(f"spacing_nm must be three numbers above 0: z, y, x; got {spacing}")
    if affine is not None:
        _check_affine(affine, spacing, ending)
    # The ending stays: libraries go by it.
    partial = path.with_name(f".{uuid.uuid4().hex}.partial{ending}")
    try:
        if ending in _HDF5:
            _write_hdf5(partial, labels, spacing)
        else:
            _write_nifti(partial, labels, spacing, affine)
        partial.replace(path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def _check_affine(affine: npt.NDArray[Any], spacing: Sequence[float] | None, ending: str) -> None:
    if ending in _HDF5:
        raise ValueError(f"an affine can be kept in NIfTI only, not in {ending}; give spacing_nm")
    if spacing is not None:
        raise ValueError("give spacing_nm or an affine, not both")
    if np.shape(affine) != (4, 4) or not np.isfinite(affine).all():
        raise ValueError(f"affine must be finite numbers (4, 4), got the shape {np.shape(affine)}")


def _write_hdf5(path: Path, labels: npt.NDArray[Any], spacing: Sequence[float] | None) -> None:
    import h5py

    with h5py.File(path, "x") as file:
        file.attrs["file_format"] = "0.2"
        ids = file.create_dataset(
            "volumes/labels/neuron_ids",
            labels.shape,
            np.uint64,
            chunks=(1, *(min(256, size) for size in labels.shape[1:])),
            compression="gzip",
            compression_opts=4,
        )
        if spacing is not None:
            ids.attrs["resolution"] = spacing
        for z, section in enumerate(labels):  # the whole in uint64 may not fit into memory
            ids[z] = section


def _write_nifti(
    path: Path,
    labels: npt.NDArray[Any],
    spacing: Sequence[float] | None,
    affine: npt.NDArray[Any] | None,
) -> None:
    import nibabel

    highest = int(labels.max())
    kept = next(t for t in _NIFTI_TYPES if highest <= np.iinfo(t).max)
    if spacing is not None:
        affine = np.diag([*(step / 1000 for step in reversed(spacing)), 1.0])
    image = nibabel.Nifti1Image(labels.astype(kept, copy=False).T, affine, dtype=kept)
    if affine is not None:
        image.header.set_xyzt_units("micron" if spacing is not None else "mm")
        image.set_sform(affine, code="scanner")
        image.set_qform(affine, code="scanner")
    nibabel.save(image, path)
