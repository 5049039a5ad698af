"""NIfTI files as small as they can be, and what macOS lays beside them."""

from pathlib import Path

import nibabel as nib
import numpy as np


def write_nifti(
    path: Path, voxels: np.ndarray, spacing: tuple[float, float, float] = (1, 1, 1)
) -> None:
    """Write (x, y, z) voxels, x to the left and y to the back, as ITK writes a plain image."""
    x, y, z = spacing
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, np.diag([-x, -y, z, 1])), path)


def write_macos(path: Path) -> None:
    """Lay beside a file what archives made on macOS have beside each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    (path.parent / f"._{path.name}").write_bytes(b"\0\5\x16\7 of macOS")
