"""Predicted labels as files that other programs open: NIfTI of volumes, PNG of pictures."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dinocache.errors import ProbeError
from dinocache.geometry import Geometry, restore, write_nifti
from probes.places import safe_name

__all__ = ["write_labels"]


def write_labels(
    folder: Path,
    item_id: str,
    labels: Mapping[str, npt.NDArray[np.uint8]],
    geometry: Geometry,
) -> None:
    """Write what was predicted of an item, on its file's own grid.

    Args:
        folder: Made where needed.
        item_id: Names the files.
        labels: Name of a class, or "" for all -> (rows, Y, X).
        geometry: Of the item.

    Raises:
        ProbeError: If a file cannot be written, or a library for it is not installed.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, values in labels.items():
            stem = safe_name(f"{item_id}.{name}" if name else item_id)
            if len(values) == 1 and geometry.affine is None:
                _write_png(folder / f"{stem}.png", values[0])
            elif geometry.shape is None:
                np.save(folder / f"{stem}.npy", values, allow_pickle=False)
            else:
                write_nifti(folder / f"{stem}.nii.gz", restore(values, geometry), geometry)
    except OSError as exc:
        raise ProbeError(f"cannot write below {folder}: {exc.strerror or exc}") from exc
    except ModuleNotFoundError as exc:
        raise ProbeError(
            f"{exc.name} is not installed: `pip install 'dinocache[dense]'` brings what heads of "
            "maps need"
        ) from exc


def _write_png(path: Path, values: npt.NDArray[Any]) -> None:
    from PIL import Image

    Image.fromarray(values).save(path)
