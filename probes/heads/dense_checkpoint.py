"""A fit that goes on after an interruption: its state at the end of an epoch, in one file.

The file is in the format of safetensors, with JSON in its header; nothing in it is executable. It
is replaced as a whole: after a crash the one of the epoch before is there.
"""

import contextlib
import hashlib
import json
import math
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Checkpoint", "Progress"]

_FORMAT = "1"


@dataclass(kw_only=True)
class Progress:
    """How far a fit has come.

    Attributes:
        epochs: That are done.
        loss_curve: Mean training loss of each.
        validation_curve: What each scored in validation; empty without.
        best_epoch: From 0; the last one where nothing is chosen.
        scaler: State of the gradient scaler; empty without.
    """

    epochs: int = 0
    loss_curve: list[float] = field(default_factory=list)
    validation_curve: list[float] = field(default_factory=list)
    best_epoch: int = 0
    scaler: dict[str, float] = field(default_factory=dict)

    @classmethod
    def from_json(cls, text: str) -> "Progress":
        """Read what `to_json` wrote.

        Raises:
            ValueError: If it is anything else.
        """
        values = json.loads(text)
        if not isinstance(values, dict) or set(values) != {one.name for one in fields(cls)}:
            raise ValueError("other fields")
        progress = cls(**values)
        curves = progress.loss_curve, progress.validation_curve
        scaler = progress.scaler
        sound = (
            _is_count(progress.epochs)
            and _is_count(progress.best_epoch)
            and all(isinstance(one, list) and all(map(_is_number, one)) for one in curves)
            and len(curves[0]) == progress.epochs
            and len(curves[1]) in (0, progress.epochs)
            and progress.best_epoch < max(1, progress.epochs)
            and isinstance(scaler, dict)
            and all(map(_is_number, scaler.values()))
        )
        if not sound:
            raise ValueError("other values")
        return progress

    def to_json(self) -> str:
        """Write it down."""
        return json.dumps(asdict(self), allow_nan=False)


class Checkpoint:
    """The file of a fit.

    Args:
        path: Where; its folder exists.
        parts: What makes this fit another than others, by words for a message; anything that
            goes into JSON. The file has digests of it.

    Raises:
        ValueError: If the folder does not exist.
    """

    def __init__(self, path: Path, parts: Mapping[str, Any]) -> None:
        if not path.parent.is_dir():
            raise ValueError(f"checkpoint {path} needs a folder that exists; make {path.parent}")
        self._path = path
        self._parts = {name: _digest(value) for name, value in parts.items()}

    def load(self, expected: "Mapping[str, Tensor]") -> "tuple[dict[str, Tensor], Progress] | None":
        """Read the file; None if there is none.

        Args:
            expected: Tensors of the names, shapes and dtypes that it must have; others are not
                read.

        Returns:
            Tensors by name, on the CPU, and the progress.

        Raises:
            ValueError: If it is damaged, or of another fit.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self._path, framework="pt", device="cpu") as file:
                progress = self._check(file.metadata() or {})
                found = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
                shapes = {name: tuple(one.get_shape()) for name, one in found.items()}
                if shapes != {name: tuple(tensor.shape) for name, tensor in expected.items()}:
                    raise self.damaged()
                tensors = {name: file.get_tensor(name) for name in expected}
        except FileNotFoundError:
            return None
        except SafetensorError as exc:
            raise self.damaged() from exc
        if any(tensors[name].dtype != tensor.dtype for name, tensor in expected.items()):
            raise self.damaged()
        return tensors, progress

    def save(self, tensors: "Mapping[str, Tensor]", progress: Progress) -> None:
        """Replace the file; it is on the disk when the call returns.

        Raises:
            OSError: If the disk refuses.
        """
        from safetensors.torch import save

        metadata = {
            "format": _FORMAT,
            "fit": json.dumps(self._parts),
            "progress": progress.to_json(),
        }
        content = save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, metadata)
        partial = self._path.with_name(f".{self._path.name}.partial")
        try:
            partial.unlink(missing_ok=True)  # of a fit that was killed here
            with partial.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self._path)
        finally:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
        _flush(self._path.parent)

    def _check(self, metadata: Mapping[str, str]) -> Progress:
        try:
            parts = json.loads(metadata["fit"])
            progress = Progress.from_json(metadata["progress"])
        except (KeyError, ValueError, TypeError, RecursionError) as exc:
            raise self.damaged() from exc
        if metadata.get("format") != _FORMAT or not isinstance(parts, dict):
            raise self.damaged()
        others = [name for name in self._parts if parts.get(name) != self._parts[name]]
        if others or set(parts) != set(self._parts):
            raise ValueError(
                f"checkpoint {self._path} is of another fit: it differs in "
                f"{', '.join(others) or 'its parts'}; name another file, or remove it to start "
                "anew"
            )
        return progress

    def damaged(self) -> ValueError:
        """Give the error of a file that no fit wrote so."""
        return ValueError(
            f"checkpoint {self._path} is damaged, or none of such a fit; remove it to start anew"
        )


def _digest(value: object) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _flush(folder: Path) -> None:
    if sys.platform == "win32":  # folders cannot be opened there; NTFS journals the rename itself
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some file systems have no such thing
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
