"""Whether two runs differ on the same items, patient by patient."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from dinocache.errors import ProbeError, RequestError
from probes.compared import ComparedRun, ScoredRun, read_compared
from probes.judging import mean_where_defined
from probes.metrics.names import needed_thresholds
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
    base, *others = (read_compared(folder) for folder in folders)
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
        base: ComparedRun,
        other: ComparedRun,
        metrics: Sequence[str],
        replicates: int,
        permutations: int,
    ) -> None:
        self._base, self._other, self._metrics = base, other, metrics
        ids = np.concatenate(list(base.ids.values()))
        self._ids, first = np.unique(ids, return_index=True)
        self._groups = np.concatenate(list(base.groups.values()))[first]
        if len(set(self._groups)) < 2:
            raise ProbeError(
                f"{base.name} tested one group ({self._groups[0]}); a comparison draws, and swaps, "
                "groups, and needs at least two"
            )
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
            random_weights=any(r.result.random_weights for r in (self._base, self._other)),
        )

    def _values(self, run: ComparedRun) -> dict[str, float]:
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
            ours, theirs = self._base.n_seeds[fold], self._other.n_seeds[fold]
            swaps = self._swaps[:, np.searchsorted(self._ids, ids)]
            for seed in range(max(ours, theirs)):
                seeds = seed % ours, seed % theirs
                differences = self._base.swapped(self._other, fold, seeds, self._metrics, swaps)
                for metric, values in differences.items():
                    each[metric].append(values)
        return {m: mean_where_defined(np.stack(values)) for m, values in each.items()}

    def _of_each(
        self, run: ComparedRun, weights: npt.NDArray[np.uint16] | None
    ) -> dict[str, _Float]:
        """Judge each fold and seed: metric -> (folds x seeds, ...)."""
        each: dict[str, list[_Float]] = {metric: [] for metric in self._metrics}
        for fold, ids in run.ids.items():
            drawn = None if weights is None else weights[:, np.searchsorted(self._ids, ids)]
            for seed in range(run.n_seeds[fold]):
                found = run.judge(fold, seed, self._metrics, drawn)
                for metric, values in found.items():
                    each[metric].append(values)
        return {metric: np.stack(values) for metric, values in each.items()}

    def _delong(self) -> float | None:
        """Give DeLong's p, where one column of one test set is scored once by each run."""
        base, other = self._base, self._other
        if not isinstance(base, ScoredRun) or not isinstance(other, ScoredRun):
            return None
        folds = list(base.ids)
        scored = [run.scores[folds[0]] for run in (base, other)]
        truth = base.truth[folds[0]]
        if len(folds) > 1 or truth.shape[1] > 1 or any(len(of_run) > 1 for of_run in scored):
            return None
        test = delong_test(
            truth[:, 0],
            scored[1][0][:, 0],
            scored[0][0][:, 0],
            groups=base.groups[folds[0]],
        )
        return _number(test.p)


def _metrics(runs: Sequence[ComparedRun], asked: Sequence[str] | None) -> tuple[str, ...]:
    """Choose what is compared."""
    if asked is None:
        names = [m for m in runs[0].result.metrics if all(m in r.result.metrics for r in runs)]
        scored = isinstance(runs[0], ScoredRun)
        asked = [m for m in names if not scored or not needed_thresholds([m])]
    for run in runs:
        run.check_metrics(asked)
    return tuple(asked)


def _check_same(base: ComparedRun, other: ComparedRun) -> None:
    """Refuse runs that were not tested on the same items of the same folds."""
    ours, theirs = base.result.task, other.result.task
    if (ours.kind, ours.classes) != (theirs.kind, theirs.classes):
        told = [", ".join(task.classes) or "neurons" for task in (ours, theirs)]
        raise ProbeError(
            f"{base.name} tells {told[0]}, {other.name} tells {told[1]}; compare runs of one task"
        )
    if base.result.present_only != other.result.present_only:
        raise ProbeError(
            f"one of {base.name} and {other.name} was fitted with --present-only, so that its "
            "means are over other items; fit both alike"
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
        if not base.has_truth_of(other, fold):
            raise ProbeError(
                f"{base.name} and {other.name} were fitted on other labels of the same items; fit "
                "the older one again"
            )


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
