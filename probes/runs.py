"""Run folders: written whole, read as data. See docs/result-format.md."""

import json
import os
import platform
from collections.abc import Mapping
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import BaseModel, ConfigDict, ValidationError

from dinocache import __version__
from dinocache.errors import ProbeError, RequestError
from dinocache.spreadsheets import write_csv

__all__ = [
    "Estimate",
    "HeadFacts",
    "Interval",
    "Result",
    "SearchFacts",
    "SplitFacts",
    "StoreOrigin",
    "Subgroup",
    "TaskFacts",
    "find_results",
    "library_versions",
    "read_arrays",
    "read_predictions",
    "read_results",
    "when_made",
    "write_table",
]

_MAX_BYTES = 64 << 20
_RESULT = "result.json"
_HEAD = "head.safetensors"
_PREDICTIONS = "predictions.parquet"


class _Part(BaseModel):
    # JSON has no NaN: what is not defined is None.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class TaskFacts(_Part):
    """What was to be told from the features; `name` is DATASET/TASK where it has one."""

    name: str | None = None
    of: Literal["item", "row"] = "item"
    targets: tuple[str, ...]
    kind: Literal["binary", "multiclass", "multilabel", "segmentation", "instances", "registration"]
    classes: tuple[str, ...]
    labels: dict[int, str] = {}
    """Of masks: value, or channel -> class."""

    @property
    def scored(self) -> Literal["binary", "multiclass", "multilabel"]:
        """Of which kind the scores of items are.

        Raises:
            ProbeError: If it is of maps, and items have none.
        """
        if self.kind == "segmentation" or self.kind == "instances" or self.kind == "registration":
            raise ProbeError(f"the run is of {self.kind}, which gives no scores of items")
        return self.kind


Setting = bool | int | float | str | None


class SearchFacts(_Part):
    """What was tried, and what the validation items of each fold chose."""

    grid: dict[str, tuple[Setting, ...]]
    chosen: tuple[dict[str, Setting], ...]
    losses: tuple[tuple[float, ...], ...]


class HeadFacts(_Part):
    """Which head, with all its settings, and how they were chosen where they were."""

    name: str
    settings: dict[str, Setting]
    search: SearchFacts | None = None


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
    recipe: dict[str, Any] = {}
    bases: dict[str, str] = {}
    """Of kinds of which principal components are kept: kind -> digest of the basis. Components of
    another basis are other features."""


class SplitFacts(_Part):
    """Who trained and who was tested."""

    protocol: Literal["column", "folds", "rows", "all"]
    column: str | None
    folds: int | None
    repeats: int = 1
    shots: int | None = None
    fraction: float | None = None
    validation: float | None = None
    digest: str
    n_train: float
    n_val: float = 0
    n_test: float

    @property
    def said(self) -> str:
        """Name the protocol in a few words."""
        if self.protocol == "rows":
            return "ranges of rows"
        if self.protocol == "all":
            return "every one tested"
        return f"split {self.column!r}" if self.column else f"{self.folds} folds by group"


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
    sd_items: float | None = None
    """Of registrations: over the tested pairs."""


class Interval(_Part):
    """A value and its interval, by a formula."""

    value: float | None
    low: float | None
    high: float | None
    level: float


class Subgroup(_Part):
    """Items that share a value of a column, judged apart."""

    items: int
    groups: int
    metrics: dict[str, Estimate]


class Result(_Part):
    """The body of `result.json`."""

    format: Literal[2] = 2
    inputs: str
    task: TaskFacts
    head: HeadFacts
    features: tuple[str, ...]
    pool: Literal["mean", "max", "mean+std", "bags", "maps"]
    views: tuple[str, ...] = ()
    """Of maps: turned images that trained beside the image as it is."""
    present_only: bool = False
    """Of maps: whether a label's means leave out items whose truth does not have it."""
    unregistered: dict[str, Estimate] = {}
    """Of registrations: metrics of the same pairs as they are."""
    seconds: float | None = None
    """Of registrations: the median of a pair, from its features to the displacement."""
    notes: tuple[str, ...] = ()
    """What to know before a figure is set beside another's."""
    store: StoreOrigin
    test_store: StoreOrigin | None = None
    split: SplitFacts
    seeds: tuple[int, ...]
    items: int
    groups: int
    left_out: dict[str, str]
    metrics: dict[str, Estimate]
    per_class: dict[str, dict[str, Estimate]]
    subgroups: dict[str, dict[str, Subgroup]]
    delong: dict[str, Interval]
    auc_skipped: tuple[str, ...]
    curve: tuple[dict[str, float | None], ...] | None
    versions: dict[str, str]

    @property
    def title(self) -> str:
        """One line that names the run."""
        store = self.store
        variant = f"-{store.variant}" if store.variant else ""
        encoder = f"{store.model} at {store.resolution}{variant} ({store.weights})"
        parts = [encoder] if self.is_of_encoder else []
        parts += ["+".join(self.features)] if self.features else []
        return f"{self.task_name}: {', '.join([*parts, self.head.name])}"

    @property
    def task_name(self) -> str:
        """DATASET/TASK, or the dataset and the targets where the task has no name."""
        return self.task.name or f"{self.store.dataset}/{'+'.join(self.task.targets)}"

    @property
    def random_weights(self) -> bool:
        """Whether the figures are those of weights drawn at random."""
        return self.store.random_weights and self.is_of_encoder

    @property
    def is_of_encoder(self) -> bool:
        """Whether the figures depend on an encoder; those of images and of MIND do not."""
        return self.task.kind != "registration" or bool({*self.features} - {"mind", "image"})

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
        # Not `ascontiguousarray`, which makes a list of one number of a number.
        tensors = {name: np.asarray(array, order="C") for name, array in arrays.items()}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / _RESULT).unlink(missing_ok=True)
            predictions.to_parquet(folder / _PREDICTIONS, index=False, engine="pyarrow")
            (folder / _HEAD).write_bytes(save(tensors))
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


def library_versions() -> dict[str, str]:
    """Say which versions computed a run."""
    packages = ("numpy", "scikit-learn", "torch", "xgboost", "zarr")
    return {
        "dinocache": __version__,
        "python": platform.python_version(),
        **{package: metadata.version(package) for package in packages},
    }


def read_arrays(folder: Path) -> dict[tuple[int, int], dict[str, npt.NDArray[Any]]]:
    """Read what a run's heads learned.

    Args:
        folder: A run folder.

    Returns:
        Seed and fold -> name -> array.

    Raises:
        ProbeError: If the file is not there, is no safetensors file, or names no heads.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = folder / _HEAD
    heads: dict[tuple[int, int], dict[str, npt.NDArray[Any]]] = {}
    try:
        for name, array in load_file(path).items():
            seed, fold, learned = name.split(".", 2)
            heads.setdefault((int(seed[1:]), int(fold[1:])), {})[learned] = array
    except (OSError, SafetensorError, ValueError) as exc:
        raise ProbeError(f"{path} cannot be read ({exc}); fit again") from exc
    return heads


def read_predictions(folder: Path) -> pd.DataFrame:
    """Read a run's predictions.

    Args:
        folder: A run folder.

    Returns:
        See docs/result-format.md.

    Raises:
        ProbeError: If the file is not there, or is not what a run writes.
    """
    path = folder / _PREDICTIONS
    try:
        table = pd.read_parquet(path, engine="pyarrow")
    except (OSError, ValueError) as exc:  # pyarrow's errors are ValueErrors
        raise ProbeError(f"{path} cannot be read ({exc}); fit again") from exc
    if lacking := [c for c in ("item_id", "group", "seed", "fold") if c not in table]:
        raise ProbeError(f"{path} has no column {lacking[0]!r}; fit again")
    return table


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a table as its file's ending says: .csv (that no spreadsheet runs) or .parquet.

    Raises:
        ProbeError: If it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".csv":
            write_csv(table, path)
        else:
            table.to_parquet(path, index=False, engine="pyarrow")
    except OSError as exc:
        raise ProbeError(f"cannot write {path}: {exc.strerror or exc}") from exc


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
    results, errors = read_results(root)
    for error in errors.values():
        raise error
    return results


def read_results(root: Path) -> tuple[dict[str, Result], dict[str, ProbeError]]:
    """Read the runs below a folder, past those that cannot be read.

    Args:
        root: The folder.

    Returns:
        Folder relative to the root -> result; and likewise -> why there is none. Both in order of
        names.

    Raises:
        RequestError: If there is no run, whole or damaged.
    """
    folders = sorted(path.parent for path in root.rglob(_RESULT)) if root.is_dir() else []
    if not folders:
        raise RequestError(
            f"there is no run below {root}; `probe fit ... --out {root}/NAME` makes one"
        )
    results: dict[str, Result] = {}
    errors: dict[str, ProbeError] = {}
    for folder in folders:
        name = folder.relative_to(root).as_posix()
        try:
            results[name] = Result.read(folder)
        except ProbeError as exc:
            errors[name] = exc
    return results, errors


def when_made(folder: Path) -> datetime:
    """Say when a run was made: when its `result.json` was last written, which a copy may change.

    Args:
        folder: A run folder.

    Returns:
        In this machine's time zone.

    Raises:
        ProbeError: If there is no run, or its file is of no time that a calendar has.
    """
    try:
        return datetime.fromtimestamp((folder / _RESULT).stat().st_mtime).astimezone()
    except (OSError, OverflowError, ValueError) as exc:
        raise ProbeError(f"{folder}: when it was made cannot be read ({exc})") from exc
