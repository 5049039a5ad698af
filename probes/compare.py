"""Whether two runs differ on the same items, patient by patient."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import BaseModel, ConfigDict

from dinocache.errors import ProbeError, RequestError
from probes.judging import mean_where_defined
from probes.metrics.classification import evaluate
from probes.metrics.names import check_metrics, needed_thresholds
from probes.metrics.swaps import swapped_differences
from probes.runs import Result, read_predictions
from probes.stats import (
    delong_test,
    group_bootstrap_weights,
    group_draws,
    group_swaps,
    holm,
    paired_bootstrap,
    permutation_p_value,
)

__all__ = ["Comparison", "compare_runs"]

_Float = npt.NDArray[np.float64]


class Comparison(BaseModel):
    """One metric of one run, set against that of the first.

    `difference` is run less base; `low` and `high` are its interval by bootstrap over groups.
    `p_holm` is `p_permutation`, corrected for every test that was asked for at once. What is not
    defined is None.
    """

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    base: str
    run: str
    metric: str
    value_base: float | None
    value_run: float | None
    difference: float | None
    low: float | None
    high: float | None
    p_bootstrap: float | None
    p_permutation: float | None
    p_delong: float | None
    p_holm: float | None
    groups: int
    random_weights: bool


@dataclass(frozen=True, kw_only=True)
class _Run:
    """What a run said, fold by fold, items in order of their ids.

    Attributes:
        name: Its folder.
        result: What it found.
        ids: Fold -> (n_items,) str.
        groups: Fold -> (n_items,) str.
        truth: Fold -> (n_items, n_outputs).
        scores: Fold -> seed number -> (n_items, n_outputs).
    """

    name: str
    result: Result
    ids: dict[int, npt.NDArray[np.str_]]
    groups: dict[int, npt.NDArray[np.str_]]
    truth: dict[int, npt.NDArray[np.int8]]
    scores: dict[int, list[npt.NDArray[np.float32]]]

    @classmethod
    def read(cls, folder: Path) -> "_Run":
        result = Result.read(folder)
        _ = result.task.scored  # a segmentation has no scores to compare
        table = read_predictions(folder)
        classes = result.task.classes
        columns = [f"{part}.{name}" for part in ("truth", "score") for name in classes]
        if lacking := [column for column in columns if column not in table]:
            raise ProbeError(f"{folder}: predictions have no column {lacking[0]!r}; fit again")
        run = cls(name=str(folder), result=result, ids={}, groups={}, truth={}, scores={})
        ordered = table.assign(order=_order(table["item_id"])).sort_values(
            ["fold", "seed", "order"]
        )
        for _, part in ordered.groupby(["fold", "seed"], sort=True):
            fold = int(part["fold"].iloc[0])
            run.ids[fold] = part["item_id"].to_numpy(np.str_)
            run.groups[fold] = part["group"].to_numpy(np.str_)
            run.truth[fold] = part[columns[: len(classes)]].to_numpy(np.int8)
            scores = part[columns[len(classes) :]].to_numpy(np.float32)
            run.scores.setdefault(fold, []).append(scores)
        return run

    def sequences(self, fold: int) -> npt.NDArray[np.str_] | None:
        """Say which video each frame is of, (n_items,); None where items are no frames."""
        if self.result.task.of != "row":
            return None
        return np.array([item_id.rpartition("#")[0] for item_id in self.ids[fold]])


def compare_runs(
    folders: Sequence[Path],
    *,
    metrics: Sequence[str] | None = None,
    replicates: int = 1000,
    permutations: int = 1000,
) -> list[Comparison]:
    """Set runs against the first of them.

    Values are means over folds and seeds, as in `result.json`. Groups are drawn, or swap their
    predictions, once for all folds and seeds. A run with fewer seeds has them taken again in turn.

    Args:
        folders: Of two runs or more.
        metrics: Names; None for all that every run has and that need no validation items.
        replicates: Of the bootstrap.
        permutations: Of the permutation test.

    Returns:
        For each further run, one a metric.

    Raises:
        RequestError: If there are fewer than two runs, or a metric cannot be compared.
        ProbeError: If a run cannot be read, or they tested other items.
    """
    if len(folders) < 2:
        raise RequestError("name two runs or more: the first is what others are set against")
    base, *others = (_Run.read(folder) for folder in folders)
    names = _metrics([base, *others], metrics)
    found = []
    for other in others:
        _check_same(base, other)
        pair = _Pair(base, other, names, replicates, permutations)
        found += [pair.compare(metric) for metric in names]
    adjusted = holm([np.nan if c.p_permutation is None else c.p_permutation for c in found])
    return [
        one.model_copy(update={"p_holm": _number(p)})
        for one, p in zip(found, adjusted, strict=True)
    ]


class _Pair:
    """Two runs of the same items, and all that is drawn once for them."""

    def __init__(
        self,
        base: _Run,
        other: _Run,
        metrics: Sequence[str],
        replicates: int,
        permutations: int,
    ) -> None:
        self._base, self._other, self._metrics = base, other, metrics
        ids = np.concatenate(list(base.ids.values()))
        self._ids, first = np.unique(ids, return_index=True)
        self._groups = np.concatenate(list(base.groups.values()))[first]
        self._weights = group_bootstrap_weights(self._groups, n_boot=replicates)
        self._swaps = group_swaps(self._groups, n_permutations=permutations)

    def compare(self, metric: str) -> Comparison:
        """Test one metric."""
        values = [self._values(run)[metric] for run in (self._base, self._other)]
        difference = values[1] - values[0]
        drawn = paired_bootstrap(
            self._replicates[1][metric],
            self._replicates[0][metric],
            estimate=difference,
            draws=group_draws(self._weights, self._groups),
        )
        return Comparison(
            base=self._base.name,
            run=self._other.name,
            metric=metric,
            value_base=_number(values[0]),
            value_run=_number(values[1]),
            difference=_number(difference),
            low=_number(drawn.low),
            high=_number(drawn.high),
            p_bootstrap=_number(drawn.p),
            p_permutation=_number(permutation_p_value(difference, self._permuted[metric])),
            p_delong=self._delong() if metric == "auc" else None,
            p_holm=None,
            groups=len(set(self._groups)),
            random_weights=any(r.result.store.random_weights for r in (self._base, self._other)),
        )

    def _values(self, run: _Run) -> dict[str, float]:
        found = self._of_each(run, None)
        return {m: float(mean_where_defined(values)) for m, values in found.items()}

    @cached_property
    def _replicates(self) -> list[dict[str, _Float]]:
        """For each run, metric -> (n_replicates,)."""
        return [
            {m: mean_where_defined(v) for m, v in self._of_each(run, self._weights).items()}
            for run in (self._base, self._other)
        ]

    @cached_property
    def _permuted(self) -> dict[str, _Float]:
        """Metric -> (n_permutations,) differences of run less base."""
        each: dict[str, list[_Float]] = {metric: [] for metric in self._metrics}
        for fold, ids in self._base.ids.items():
            ours, theirs = self._base.scores[fold], self._other.scores[fold]
            for seed in range(max(len(ours), len(theirs))):
                differences = swapped_differences(
                    self._base.truth[fold],
                    theirs[seed % len(theirs)],
                    ours[seed % len(ours)],
                    self._base.result.task.scored,
                    self._swaps[:, np.searchsorted(self._ids, ids)],
                    metrics=self._metrics,
                    sequences=self._base.sequences(fold),
                )
                for metric, values in differences.items():
                    each[metric].append(values)
        return {m: mean_where_defined(np.stack(values)) for m, values in each.items()}

    def _of_each(self, run: _Run, weights: npt.NDArray[np.uint16] | None) -> dict[str, _Float]:
        """Judge each fold and seed: metric -> (folds x seeds, ...)."""
        each: dict[str, list[_Float]] = {metric: [] for metric in self._metrics}
        for fold, ids in run.ids.items():
            drawn = None if weights is None else weights[:, np.searchsorted(self._ids, ids)]
            for scores in run.scores[fold]:
                found = _judged(run, fold, scores, self._metrics, drawn)
                for metric, values in found.items():
                    each[metric].append(values)
        return {metric: np.stack(values) for metric, values in each.items()}

    def _delong(self) -> float | None:
        """Give DeLong's p, where one column of one test set is scored once by each run."""
        folds = list(self._base.ids)
        scored = [run.scores[folds[0]] for run in (self._base, self._other)]
        truth = self._base.truth[folds[0]]
        if len(folds) > 1 or truth.shape[1] > 1 or any(len(of_run) > 1 for of_run in scored):
            return None
        test = delong_test(
            truth[:, 0],
            scored[1][0][:, 0],
            scored[0][0][:, 0],
            groups=self._base.groups[folds[0]],
        )
        return _number(test.p)


def _judged(
    run: _Run,
    fold: int,
    scores: npt.NDArray[np.float32],
    metrics: Sequence[str],
    weights: npt.NDArray[np.uint16] | None,
) -> Mapping[str, _Float]:
    some = slice(None) if weights is None else weights.max(axis=1) > 0
    found = evaluate(
        run.truth[fold],
        scores,
        run.result.task.scored,
        weights=None if weights is None else weights[some],
        metrics=metrics,
        sequences=run.sequences(fold),
    ).overall
    if weights is None:
        return found
    whole = {metric: np.full(len(weights), np.nan) for metric in found}
    for metric, values in found.items():
        whole[metric][some] = values  # a draw may hold nobody of a small fold
    return whole


def _metrics(runs: Sequence[_Run], asked: Sequence[str] | None) -> tuple[str, ...]:
    """Choose what is compared."""
    kind = runs[0].result.task.scored
    if asked is None:
        names = [m for m in runs[0].result.metrics if all(m in r.result.metrics for r in runs)]
        asked = [m for m in names if not needed_thresholds([m])]
    try:
        check_metrics(asked, kind)
    except ValueError as exc:
        raise RequestError(f"--metrics: {exc}") from exc
    if rules := needed_thresholds(asked):
        raise RequestError(
            f"--metrics: thresholds by validation items ({', '.join(rules)}) are not kept with the "
            "predictions; compare at a number, as @0.3, or what looks at scores"
        )
    return tuple(asked)


def _check_same(base: _Run, other: _Run) -> None:
    """Refuse runs that were not tested on the same items of the same folds."""
    ours, theirs = base.result.task, other.result.task
    if (ours.kind, ours.classes) != (theirs.kind, theirs.classes):
        raise ProbeError(
            f"{base.name} tells {', '.join(ours.classes)}, {other.name} tells "
            f"{', '.join(theirs.classes)}; compare runs of one task"
        )
    if set(base.ids) != set(other.ids):
        raise ProbeError(
            f"{base.name} has {len(base.ids)} folds, {other.name} {len(other.ids)}; compare runs "
            "of one split"
        )
    for fold, ids in base.ids.items():
        if missing := set(ids) ^ set(other.ids[fold]):
            raise ProbeError(
                f"{base.name} and {other.name} tested other items: {len(missing)} of fold {fold} "
                f"are in one of them only, as {min(missing)!r}; compare runs of one split and one "
                "set of items"
            )
        if (base.truth[fold] != other.truth[fold]).any():
            raise ProbeError(
                f"{base.name} and {other.name} were fitted on other labels of the same items; fit "
                "the older one again"
            )


def _order(item_ids: pd.Series) -> pd.Series:
    """Give what items are ordered by: their ids, frames of a video by their numbers."""
    parts = item_ids.str.rpartition("#")
    return parts[0] + parts[1] + parts[2].str.zfill(9)


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
