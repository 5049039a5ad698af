"""Run folders: written whole, read as data. See docs/result-format.md."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import BaseModel, ConfigDict, ValidationError

from dinocache.errors import ProbeError, RequestError

__all__ = [
    "Estimate",
    "HeadFacts",
    "Result",
    "SplitFacts",
    "StoreOrigin",
    "TaskFacts",
    "find_results",
]

_MAX_BYTES = 64 << 20
_RESULT = "result.json"


class _Part(BaseModel):
    # JSON has no NaN: what is not defined is None.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class TaskFacts(_Part):
    """What was to be told from the features; `name` is DATASET/TASK where it has one."""

    name: str | None = None
    of: Literal["item", "row"] = "item"
    targets: tuple[str, ...]
    kind: Literal["binary", "multiclass", "multilabel"]
    classes: tuple[str, ...]


class HeadFacts(_Part):
    """Which head, with all its settings."""

    name: str
    settings: dict[str, bool | int | float | str | None]


class StoreOrigin(_Part):
    """Which store; `random_weights` taints every figure made from it."""

    dataset: str
    model: str
    resolution: str
    variant: str
    digest: str
    weights: str
    random_weights: bool
    items_table: str


class SplitFacts(_Part):
    """Who trained and who was tested."""

    protocol: Literal["column", "folds"]
    column: str | None
    folds: int | None
    digest: str
    n_train: float
    n_test: float


class Estimate(_Part):
    """A metric with its interval; None where it is not defined."""

    value: float | None
    low: float | None
    high: float | None
    level: float
    defined: int
    replicates: int
    sd_seeds: float | None
    sd_folds: float | None


class Result(_Part):
    """The body of `result.json`."""

    format: Literal[1] = 1
    task: TaskFacts
    head: HeadFacts
    features: tuple[str, ...]
    store: StoreOrigin
    split: SplitFacts
    seeds: tuple[int, ...]
    items: int
    groups: int
    left_out: dict[str, str]
    metrics: dict[str, Estimate]
    per_class: dict[str, dict[str, float | None]]
    auc_skipped: tuple[str, ...]
    curve: tuple[dict[str, float | None], ...] | None
    versions: dict[str, str]

    @property
    def title(self) -> str:
        """One line that names the run."""
        store = self.store
        variant = f"-{store.variant}" if store.variant else ""
        named = self.task.name or f"{store.dataset}/{'+'.join(self.task.targets)}"
        return (
            f"{named}: {store.model} at "
            f"{store.resolution}{variant} ({store.weights}), {'+'.join(self.features)}, "
            f"{self.head.name}"
        )

    def write(
        self,
        folder: Path,
        predictions: pd.DataFrame,
        arrays: Mapping[str, npt.NDArray[Any]],
    ) -> None:
        """Write a run folder; `result.json` comes last, so that a folder with it is whole.

        Args:
            folder: Made where needed; a former run there is replaced.
            predictions: See docs/result-format.md.
            arrays: What the heads learned.

        Raises:
            ProbeError: If the folder cannot be written.
        """
        from safetensors.numpy import save

        text = json.dumps(self.model_dump(mode="json"), indent=2, allow_nan=False) + "\n"
        tensors = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / _RESULT).unlink(missing_ok=True)
            predictions.to_parquet(folder / "predictions.parquet", index=False, engine="pyarrow")
            (folder / "head.safetensors").write_bytes(save(tensors))
            partial = folder / f".{_RESULT}.partial"
            partial.write_text(text, "utf-8")
            os.replace(partial, folder / _RESULT)
        except OSError as exc:
            raise ProbeError(f"cannot write the run {folder}: {exc.strerror or exc}") from exc

    @classmethod
    def read(cls, folder: Path) -> "Result":
        """Read a run folder's result.

        Args:
            folder: With a `result.json`.

        Returns:
            The result.

        Raises:
            ProbeError: If it is none, or of another version.
        """
        path = folder / _RESULT
        try:
            if path.stat().st_size > _MAX_BYTES:
                raise ProbeError(f"{path} is larger than any result")
            return cls.model_validate_json(path.read_bytes())
        except OSError as exc:
            raise ProbeError(f"there is no run at {folder}: {exc.strerror}") from exc
        except ValidationError as exc:
            error = exc.errors()[0]
            field = ".".join(str(part) for part in error["loc"]) or "the file"
            raise ProbeError(
                f"{path} is no result of this version ({field}: {error['msg']}); fit again"
            ) from exc


def find_results(root: Path) -> dict[str, Result]:
    """Read all runs below a folder.

    Args:
        root: The folder.

    Returns:
        Folder relative to the root -> result, in order of names.

    Raises:
        RequestError: If there is none.
        ProbeError: If one cannot be read.
    """
    folders = sorted(path.parent for path in root.rglob(_RESULT)) if root.is_dir() else []
    if not folders:
        raise RequestError(
            f"there is no run below {root}; `probe fit ... --out {root}/NAME` makes one"
        )
    return {str(f.relative_to(root).as_posix()): Result.read(f) for f in folders}
