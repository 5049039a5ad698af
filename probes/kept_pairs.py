"""What an interrupted registration has left, so that the same one goes on from there."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dinocache import __version__
from probes.displacement_files import IN_VOXELS, read_displacement

__all__ = ["KeptPairs"]

Floats = npt.NDArray[np.float32]
_MARK = ".registered.json"
_MOST_BYTES = 1 << 20


class KeptPairs:
    """Displacements and trials of one request; those of another, or damaged ones, count as none.

    Args:
        inputs: All that decides the figures, summed up.
    """

    def __init__(self, inputs: str) -> None:
        self._inputs = f"{__version__} {inputs}"

    def displacement(
        self, folder: Path, settings: Mapping[str, Any], axes: int
    ) -> tuple[Floats, float] | None:
        """Read a pair's displacement back, and how long it took, s.

        Args:
            folder: Of the pair.
            settings: That it must have been made with.
            axes: Of its grid.
        """
        known = _read(folder / _MARK)
        if (known.get("inputs"), known.get("settings")) != (self._inputs, dict(settings)):
            return None
        path = folder / IN_VOXELS
        if _sum(path) != known.get("sha256"):
            return None
        return read_displacement(path, axes), float(known["seconds"])

    def keep_displacement(self, folder: Path, settings: Mapping[str, Any], seconds: float) -> None:
        """Vouch for the displacement that has been written to a folder."""
        mark = {"inputs": self._inputs, "settings": dict(settings), "seconds": seconds}
        _write(folder / _MARK, {**mark, "sha256": _sum(folder / IN_VOXELS)})

    def losses(self, path: Path) -> dict[str, list[float]]:
        """Read what settings were worth for pairs: name -> a loss each."""
        known = _read(path)
        return known["losses"] if known.get("inputs") == self._inputs else {}

    def keep_losses(self, path: Path, losses: Mapping[str, Sequence[float]]) -> None:
        """Write what settings were worth for pairs."""
        _write(path, {"inputs": self._inputs, "losses": dict(losses)})


def _sum(path: Path) -> str:
    """Sum up a file; "" if there is none."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MOST_BYTES:
            return {}
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(content), "utf-8")
    os.replace(partial, path)
