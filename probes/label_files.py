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
    *,
    restored: bool = False,
) -> None:
    """Write what was predicted of an item, on its file's own grid.

    Args:
        folder: Made where needed.
        item_id: Names the files.
        labels: Name of a class, or "" for all -> (rows, Y, X).
        geometry: Of the item.
        restored: Whether labels are on the file's own grid already, as `restore` gives them.

    Raises:
        ProbeError: If a file cannot be written, or a library for it is not installed.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, values in labels.items():
            if restored:
                write_nifti(_path(folder, item_id, name, ".nii.gz"), values, geometry)
            elif len(values) == 1 and geometry.affine is None:
                _write_png(_path(folder, item_id, name, ".png"), values[0])
            elif geometry.shape is None:
                np.save(_path(folder, item_id, name, ".npy"), values, allow_pickle=False)
            else:
                values = restore(values, geometry)
                write_nifti(_path(folder, item_id, name, ".nii.gz"), values, geometry)
    except OSError as exc:
        raise ProbeError(f"cannot write below {folder}: {exc.strerror or exc}") from exc
    except ModuleNotFoundError as exc:
        raise ProbeError(
            f"{exc.name} is not installed: `pip install 'dinocache[dense]'` brings what heads of "
            "maps need"
        ) from exc


def _path(folder: Path, item_id: str, name: str, ending: str) -> Path:
    """Name a file; where items are named as their files are, the ending is not said twice."""
    stem = item_id.removesuffix(ending)
    return folder / f"{safe_name(f'{stem}.{name}' if name else stem)}{ending}"


def _write_png(path: Path, values: npt.NDArray[Any]) -> None:
    from PIL import Image

    Image.fromarray(values).save(path)
