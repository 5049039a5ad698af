"""Whether two runs differ on the same items, patient by patient."""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from dinocache.errors import DinocacheError, ProbeError, RequestError, one_line
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

__all__ = ["Comparison", "Tested", "compare_each", "compare_runs", "read_tested", "with_holm"]

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
    first, *others = (read_compared(folder) for folder in folders)
    names = _metrics([first, *others], metrics)
    base = _Base(first, names, replicates, permutations)
    found = []
    for other in others:
        pair = _Pair(base, other)
        found += [pair.compare(metric) for metric in names]
    return with_holm(found)


def compare_each(
    base: Path,
    others: Iterable[Path],
    *,
    metric: str,
    replicates: int = 1000,
    permutations: int = 1000,
    told: Callable[[], None] = lambda: None,
) -> tuple[list[Comparison], dict[Path, str]]:
    """Set runs against one, as `compare_runs` does, past those that cannot be.

    One run is held at a time beside the base.

    Args:
        base: A run folder.
        others: Run folders.
        metric: A name.
        replicates: Of the bootstrap.
        permutations: Of the permutation test.
        told: Called as each is done, compared or not.

    Returns:
        What was compared, corrected for all of it, in order; and folder -> why it was not, in a
        few words.
    """
    found: list[Comparison] = []
    refused: dict[Path, str] = {}
    against: _Base | None = None
    for folder in others:
        try:
            if against is None:
                run = read_compared(base)
                run.check_metrics((metric,))
                against = _Base(run, (metric,), replicates, permutations)
            other = read_compared(folder)
            other.check_metrics((metric,))
            found.append(_Pair(against, other).compare(metric))
        except DinocacheError as exc:
            refused[folder] = _in_short(exc)
        told()
    return with_holm(found), refused


def with_holm(found: Sequence[Comparison]) -> list[Comparison]:
    """Correct tests for each other.

    Args:
        found: All that were asked for at once.

    Returns:
        The same, with `p_holm` of these.
    """
    adjusted = holm([np.nan if c.p_permutation is None else c.p_permutation for c in found])
    return [
        one.model_copy(update={"p_holm": _number(p)})
        for one, p in zip(found, adjusted, strict=True)
    ]


@dataclass(frozen=True, kw_only=True)
class Tested:
    """Who was tested; runs that are equal in `folds_digest` can be paired.

    Attributes:
        items: How many.
        groups: How many they are of.
        folds: How many.
        items_digest: sha256 over the items, whatever their folds.
        folds_digest: sha256 over the items of each fold.
    """

    items: int
    groups: int
    folds: int
    items_digest: str
    folds_digest: str


def read_tested(folder: Path) -> Tested:
    """Read who was tested by a run.

    Args:
        folder: A run folder.

    Returns:
        The items, summed up.

    Raises:
        ProbeError: If its result or predictions cannot be read.
    """
    run = read_compared(folder)
    items = sorted({one for ids in run.ids.values() for one in ids.tolist()})
    folds = {fold: sorted(ids.tolist()) for fold, ids in run.ids.items()}
    return Tested(
        items=len(items),
        groups=len({group for groups in run.groups.values() for group in groups.tolist()}),
        folds=len(folds),
        items_digest=_digest(items),
        folds_digest=_digest(sorted(folds.items())),
    )


class _UnlikeError(ProbeError):
    """Two runs that cannot be paired.

    Args:
        message: For whoever named the two.
        short: For a table of many.
    """

    def __init__(self, message: str, short: str) -> None:
        super().__init__(message)
        self.short = short


class _Base:
    """A run that others are set against, and all that is drawn once for them."""

    def __init__(
        self, run: ComparedRun, metrics: Sequence[str], replicates: int, permutations: int
    ) -> None:
        self.run, self.metrics = run, metrics
        self._replicates, self._permutations = replicates, permutations
        self.ids, first = np.unique(np.concatenate(list(run.ids.values())), return_index=True)
        self.groups = np.concatenate(list(run.groups.values()))[first]

    @cached_property
    def n_groups(self) -> int:
        """How many groups can be drawn and swapped; raises `ProbeError` if it is one."""
        found = len(set(self.groups))
        if found < 2:
            raise _UnlikeError(
                f"{self.run.name} tested one group ({self.groups[0]}); a comparison draws, and "
                "swaps, groups, and needs at least two",
                "one group: nothing to draw or swap",
            )
        return found

    @cached_property
    def weights(self) -> npt.NDArray[np.uint16]:
        """How often each replicate draws each item, (n_replicates, n_items)."""
        return group_bootstrap_weights(self.groups, n_boot=self._replicates)

    @cached_property
    def swaps(self) -> npt.NDArray[np.bool_]:
        """Which items each permutation swaps, (n_permutations, n_items)."""
        return group_swaps(self.groups, n_permutations=self._permutations)

    @cached_property
    def draws(self) -> npt.NDArray[np.int64]:
        """How often each replicate draws each group."""
        return group_draws(self.weights, self.groups)

    @cached_property
    def values(self) -> dict[str, float]:
        """Metric -> what it is for the base."""
        return self.values_of(self.run)

    @cached_property
    def replicates(self) -> dict[str, _Float]:
        """Metric -> (n_replicates,) of the base."""
        return self.replicates_of(self.run)

    def values_of(self, run: ComparedRun) -> dict[str, float]:
        """Judge a run of the same items: metric -> value."""
        found = self._of_each(run, None)
        return {m: float(mean_where_defined(values)) for m, values in found.items()}

    def replicates_of(self, run: ComparedRun) -> dict[str, _Float]:
        """Judge it on each draw: metric -> (n_replicates,)."""
        found = self._of_each(run, self.weights)
        return {m: mean_where_defined(values) for m, values in found.items()}

    def _of_each(
        self, run: ComparedRun, weights: npt.NDArray[np.uint16] | None
    ) -> dict[str, _Float]:
        """Judge each fold and seed: metric -> (folds x seeds, ...)."""
        each: dict[str, list[_Float]] = {metric: [] for metric in self.metrics}
        for fold, ids in run.ids.items():
            drawn = None if weights is None else weights[:, np.searchsorted(self.ids, ids)]
            for seed in range(run.n_seeds[fold]):
                found = run.judge(fold, seed, self.metrics, drawn)
                for metric, values in found.items():
                    each[metric].append(values)
        return {metric: np.stack(values) for metric, values in each.items()}


class _Pair:
    """Two runs of the same items."""

    def __init__(self, base: _Base, other: ComparedRun) -> None:
        _check_same(base.run, other)
        self._base, self._other = base, other
        self._n_groups = base.n_groups

    def compare(self, metric: str) -> Comparison:
        """Test one metric."""
        base = self._base
        values = base.values[metric], self._values[metric]
        difference = values[1] - values[0]
        drawn = paired_bootstrap(
            self._replicates[metric],
            base.replicates[metric],
            estimate=difference,
            draws=base.draws,
        )
        return Comparison(
            base=base.run.name,
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
            groups=self._n_groups,
            random_weights=any(r.result.random_weights for r in (base.run, self._other)),
        )

    @cached_property
    def _values(self) -> dict[str, float]:
        return self._base.values_of(self._other)

    @cached_property
    def _replicates(self) -> dict[str, _Float]:
        return self._base.replicates_of(self._other)

    @cached_property
    def _permuted(self) -> dict[str, _Float]:
        """Metric -> (n_permutations,) differences of run less base."""
        base, other = self._base.run, self._other
        each: dict[str, list[_Float]] = {metric: [] for metric in self._base.metrics}
        for fold, ids in base.ids.items():
            ours, theirs = base.n_seeds[fold], other.n_seeds[fold]
            swaps = self._base.swaps[:, np.searchsorted(self._base.ids, ids)]
            for seed in range(max(ours, theirs)):
                seeds = seed % ours, seed % theirs
                differences = base.swapped(other, fold, seeds, self._base.metrics, swaps)
                for metric, values in differences.items():
                    each[metric].append(values)
        return {m: mean_where_defined(np.stack(values)) for m, values in each.items()}

    def _delong(self) -> float | None:
        """Give DeLong's p, where one column of one test set is scored once by each run."""
        base, other = self._base.run, self._other
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


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _in_short(exc: Exception) -> str:
    """Say in a few words why a run was not compared."""
    if isinstance(exc, _UnlikeError):
        return exc.short
    return one_line(exc).removeprefix("--metrics: ").partition(";")[0]


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
        raise _UnlikeError(
            f"{base.name} tells {told[0]}, {other.name} tells {told[1]}; compare runs of one task",
            "other classes",
        )
    if base.result.present_only != other.result.present_only:
        raise _UnlikeError(
            f"one of {base.name} and {other.name} was fitted with --present-only, so that its "
            "means are over other items; fit both alike",
            "one of both is --present-only",
        )
    if set(base.ids) != set(other.ids):
        raise _UnlikeError(
            f"{base.name} has {len(base.ids)} folds, {other.name} {len(other.ids)}; compare runs "
            "of one split",
            "other folds",
        )
    for fold, ids in base.ids.items():
        if missing := set(ids) ^ set(other.ids[fold]):
            raise _UnlikeError(
                f"{base.name} and {other.name} tested other items: {len(missing)} of fold {fold} "
                f"are in one of them only, as {min(missing)!r}; compare runs of one split and one "
                "set of items",
                "other items",
            )
        if not base.has_truth_of(other, fold):
            raise _UnlikeError(
                f"{base.name} and {other.name} were fitted on other labels of the same items; fit "
                "the older one again",
                "other labels",
            )


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
