"""Runs that are set against each other: what each said of its items, fold by fold."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pandas as pd

from dinocache.errors import ProbeError, RequestError
from probes.map_fit import CELLS
from probes.metrics.cases import Case, evaluate_cases
from probes.metrics.classification import evaluate
from probes.metrics.glossary import GLOSSARY, MaskMetric, MaskTask, check_mask_metrics
from probes.metrics.names import check_metrics, needed_thresholds
from probes.metrics.swaps import swapped_differences
from probes.runs import Result, read_predictions

__all__ = ["ComparedRun", "ScoredRun", "compared", "read_compared"]

_Float = npt.NDArray[np.float64]
_Bool = npt.NDArray[np.bool_]
_Weights = npt.NDArray[np.uint16]


class ComparedRun(ABC):
    """What a run said, fold by fold, items in order of their ids.

    Attributes:
        name: Its folder.
        result: What it found.
        ids: Fold -> (n_items,) str; of ranges of rows with the range behind.
        groups: Fold -> (n_items,) str.
        n_seeds: Fold -> how many heads were asked.
    """

    def __init__(self, name: str, result: Result, table: pd.DataFrame) -> None:
        self.name, self.result = name, result
        self.ids: dict[int, npt.NDArray[np.str_]] = {}
        self.groups: dict[int, npt.NDArray[np.str_]] = {}
        self.n_seeds: dict[int, int] = {}
        named = table.assign(order=_order(table), name=_names(table))
        ordered = named.sort_values(["fold", "seed", "order"])
        for _, part in ordered.groupby(["fold", "seed"], sort=True):
            fold = int(part["fold"].iloc[0])
            ids = part["name"].to_numpy(np.str_)
            if fold in self.ids and not np.array_equal(ids, self.ids[fold]):
                raise ValueError(f"seeds of fold {fold} tested other items")
            self.ids[fold] = ids
            self.groups[fold] = part["group"].to_numpy(np.str_)
            self.n_seeds[fold] = self.n_seeds.get(fold, 0) + 1
            self._take(fold, part)
        if not self.ids:
            raise ValueError("they are of no item")
        if max(self.n_seeds.values()) > len(result.seeds):
            raise ValueError("they are of more seeds than the result names")

    @abstractmethod
    def _take(self, fold: int, part: pd.DataFrame) -> None:
        """Keep what one head said."""

    @abstractmethod
    def check_metrics(self, names: Sequence[str]) -> None:
        """Refuse what cannot be compared; raises `RequestError`."""

    @abstractmethod
    def judge(
        self, fold: int, seed: int, metrics: Sequence[str], weights: _Weights | None
    ) -> Mapping[str, _Float]:
        """Judge one head: metric -> (n_replicates,), or () without weights."""

    @abstractmethod
    def swapped(
        self, other: Self, fold: int, seeds: tuple[int, int], metrics: Sequence[str], swaps: _Bool
    ) -> Mapping[str, _Float]:
        """Say by how much another run is above this one where their answers are swapped.

        Args:
            other: Of the same items.
            fold: Which.
            seeds: Number of the head of this run, and of the other's.
            metrics: Names.
            swaps: (n_swaps, n_items).

        Returns:
            Metric -> (n_swaps,).
        """

    @abstractmethod
    def has_truth_of(self, other: Self, fold: int) -> bool:
        """Whether both runs know the same labels of their items."""


class ScoredRun(ComparedRun):
    """A classification: truth and scores of items.

    Attributes:
        truth: Fold -> (n_items, n_outputs).
        scores: Fold -> seed number -> (n_items, n_outputs).
    """

    def __init__(self, name: str, result: Result, table: pd.DataFrame) -> None:
        self.truth: dict[int, npt.NDArray[np.int8]] = {}
        self.scores: dict[int, list[npt.NDArray[np.float32]]] = {}
        self._columns = [f"{p}.{c}" for p in ("truth", "score") for c in result.task.classes]
        _check_columns(name, table, self._columns)
        super().__init__(name, result, table)

    def _take(self, fold: int, part: pd.DataFrame) -> None:
        n_classes = len(self.result.task.classes)
        self.truth[fold] = part[self._columns[:n_classes]].to_numpy(np.int8)
        scores = part[self._columns[n_classes:]].to_numpy(np.float32)
        if not np.isfinite(scores).all():
            raise ValueError("a score is no finite number")
        self.scores.setdefault(fold, []).append(scores)

    def check_metrics(self, names: Sequence[str]) -> None:
        """See `ComparedRun`."""
        try:
            check_metrics(names, self.result.task.scored)
        except ValueError as exc:
            raise RequestError(f"--metrics: {exc}") from exc
        if rules := needed_thresholds(names):
            raise RequestError(
                f"--metrics: thresholds by validation items ({', '.join(rules)}) are not kept with "
                "the predictions; compare at a number, as @0.3, or what looks at scores"
            )

    def judge(
        self, fold: int, seed: int, metrics: Sequence[str], weights: _Weights | None
    ) -> Mapping[str, _Float]:
        """See `ComparedRun`."""
        some = slice(None) if weights is None else weights.max(axis=1) > 0
        found = evaluate(
            self.truth[fold],
            self.scores[fold][seed],
            self.result.task.scored,
            weights=None if weights is None else weights[some],
            metrics=metrics,
            sequences=self._sequences(fold),
        )
        if weights is None:
            return found.overall
        return {metric: _spread(found.overall[metric], some) for metric in metrics}

    def swapped(
        self, other: Self, fold: int, seeds: tuple[int, int], metrics: Sequence[str], swaps: _Bool
    ) -> Mapping[str, _Float]:
        """See `ComparedRun`."""
        return swapped_differences(
            self.truth[fold],
            other.scores[fold][seeds[1]],
            self.scores[fold][seeds[0]],
            self.result.task.scored,
            swaps,
            metrics=metrics,
            sequences=self._sequences(fold),
        )

    def has_truth_of(self, other: Self, fold: int) -> bool:
        """See `ComparedRun`."""
        return bool((self.truth[fold] == other.truth[fold]).all())

    def _sequences(self, fold: int) -> npt.NDArray[np.str_] | None:
        """Say which video each frame is of, (n_items,); None where items are no frames."""
        if self.result.task.of != "row":
            return None
        return np.array([item_id.rpartition("#")[0] for item_id in self.ids[fold]])


class _MaskRun(ComparedRun):
    """A segmentation, or pairs: what was counted and measured of each item."""

    def __init__(self, name: str, result: Result, table: pd.DataFrame) -> None:
        self._cases: dict[int, list[dict[str, list[Case]]]] = {}
        super().__init__(name, result, table)

    def _take(self, fold: int, part: pd.DataFrame) -> None:
        endings = {"@".join(["", *m.split("@")[1:]]) for m in self.result.metrics}
        rows = part.to_dict(orient="records")
        said = {ending: [self._case(row, ending) for row in rows] for ending in endings}
        self._cases.setdefault(fold, []).append(said)

    def _case(self, row: dict[Any, Any], ending: str) -> Case:
        """Read back what `probes.map_fit` wrote."""
        classes = self.result.task.classes
        counts = None
        if self.result.task.kind != "instances":
            names = [*(f".{name}" for name in classes), ""]
            counts = np.array([[row[f"{cell}{of}"] for cell in CELLS] for of in names], np.int64)
        values = {}
        for metric in self.result.metrics:
            name, at, rule = metric.partition("@")
            entry = GLOSSARY[name]
            if f"{at}{rule}" == ending and entry.family not in ("overlap", "frame"):
                of = [f"{metric}.{c}" for c in classes] if entry.per_label else [metric]
                values[name] = np.array([row[column] for column in of], np.float64)
        return Case(counts=counts, values=values)

    def check_metrics(self, names: Sequence[str]) -> None:
        """See `ComparedRun`."""
        try:
            entries = check_mask_metrics(
                [name.partition("@")[0] for name in names], kind_of_maps(self.result)
            )
        except ValueError as exc:
            raise RequestError(f"--metrics: {exc}") from exc
        for name, entry in zip(names, entries, strict=True):
            if name not in self.result.metrics and not _counted(entry, name):
                raise RequestError(
                    f"--metrics: {name} was not measured by {self.name}; fit again with --metrics"
                )

    def judge(
        self, fold: int, seed: int, metrics: Sequence[str], weights: _Weights | None
    ) -> Mapping[str, _Float]:
        """See `ComparedRun`."""
        some = None if weights is None else weights.max(axis=1) > 0
        drawn = None if weights is None or some is None else weights[some]
        found: dict[str, _Float] = {}
        for ending, names in _by_ending(metrics).items():
            scores = evaluate_cases(
                self._cases[fold][seed][ending],
                names,
                drawn,
                present_only=self.result.present_only,
            )
            for name in names:
                found[f"{name}{ending}"] = (
                    np.asarray(scores.values[name])
                    if some is None
                    else _spread(scores.replicates[name], some)
                )
        return {metric: found[metric] for metric in metrics}

    def swapped(
        self, other: Self, fold: int, seeds: tuple[int, int], metrics: Sequence[str], swaps: _Bool
    ) -> Mapping[str, _Float]:
        """See `ComparedRun`."""
        found: dict[str, _Float] = {}
        for ending, names in _by_ending(metrics).items():
            # The items stand twice, with each run's answers: a swap is a weighting of these.
            ours = self._cases[fold][seeds[0]][ending]
            both = [*ours, *other._cases[fold][seeds[1]][ending]]
            above, below = (
                evaluate_cases(both, names, weights, present_only=self.result.present_only)
                for weights in (np.hstack([swaps, ~swaps]), np.hstack([~swaps, swaps]))
            )
            for name in names:
                found[f"{name}{ending}"] = above.replicates[name] - below.replicates[name]
        return {metric: found[metric] for metric in metrics}

    def has_truth_of(self, other: Self, fold: int) -> bool:
        """See `ComparedRun`; by the sizes of what is drawn."""
        ours, theirs = (run._cases[fold][0][""] for run in (self, other))
        for mine, yours in zip(ours, theirs, strict=True):
            if mine.counts is None or yours.counts is None:
                continue
            drawn = [CELLS.index("tp"), CELLS.index("fn")]
            if (mine.counts[:, drawn].sum(1) != yours.counts[:, drawn].sum(1)).any():
                return False
        return True


def kind_of_maps(result: Result) -> MaskTask:
    """Say of which kind a run of maps or pairs is."""
    kind = result.task.kind
    assert kind == "segmentation" or kind == "instances" or kind == "registration"  # pool "maps"
    return kind


def read_compared(folder: Path) -> ComparedRun:
    """Read a run folder; raises `ProbeError` if it is none, or damaged."""
    return compared(folder, Result.read(folder), read_predictions(folder))


def compared(folder: Path, result: Result, table: pd.DataFrame) -> ComparedRun:
    """Take a run that is read already.

    Args:
        folder: Of the run, whose path is its name.
        result: Its result.
        table: Its predictions.

    Returns:
        The run.

    Raises:
        ProbeError: If the predictions are not as a run writes them.
    """
    kind = _MaskRun if result.pool == "maps" else ScoredRun
    try:
        return kind(str(folder), result, table)
    except (AttributeError, KeyError, TypeError, ValueError) as exc:
        raise ProbeError(f"{folder}: its predictions cannot be read ({exc}); fit again") from exc


def _check_columns(name: str, table: pd.DataFrame, columns: Sequence[str]) -> None:
    if lacking := [column for column in columns if column not in table]:
        raise ProbeError(f"{name}: predictions have no column {lacking[0]!r}; fit again")


def _counted(entry: MaskMetric, name: str) -> bool:
    """Whether a metric follows from what is counted in any case."""
    return entry.family in ("overlap", "frame") and entry.name == name


def _by_ending(metrics: Sequence[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for metric in metrics:
        name, at, rule = metric.partition("@")
        found.setdefault(f"{at}{rule}", []).append(name)
    return found


def _spread(values: _Float, some: Any) -> _Float:  # noqa: ANN401 - an index
    """Put values of some replicates at their places: a draw may hold nobody of a small fold."""
    whole = np.full(len(some), np.nan)
    whole[some] = values
    return whole


def _names(table: pd.DataFrame) -> pd.Series:
    if "start" not in table:
        return table["item_id"]
    return table["item_id"] + " " + table["start"].astype(str) + ":" + table["stop"].astype(str)


def _order(table: pd.DataFrame) -> pd.Series:
    """Give what items are ordered by: their ids, frames of a video by numbers, and their rows."""
    parts = table["item_id"].str.rpartition("#")
    order = parts[0] + parts[1] + parts[2].str.zfill(9)
    if "start" in table:
        order = order + table["start"].map(" {:09d}".format) + table["stop"].map("-{}".format)
    return order
