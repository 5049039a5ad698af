"""What heads are worth on the items that they were tested on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from dinocache.errors import ProbeError
from probes.cohort import Cohort
from probes.metrics.classification import Scores, evaluate
from probes.metrics.names import needed_thresholds
from probes.metrics.thresholds import thresholds_from
from probes.protocol import Fold
from probes.request import FitRequest
from probes.runs import Estimate, Interval, Subgroup
from probes.stats import Auc, delong, group_bootstrap_weights, group_draws, interval
from probes.training import Key, Trained

__all__ = [
    "Judged",
    "Judgement",
    "Predictions",
    "estimate",
    "judge",
    "judge_each",
    "mean_where_defined",
    "predict",
    "spread_replicates",
    "subgroups_of",
]

_MOST_VALUES = 30
"""Of a column whose values are judged apart."""
_Float = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """What the heads said.

    Attributes:
        scores: Seed and fold -> (n_test, n_outputs) float32 of the fold's test items.
        thresholds: Seed and fold -> rule -> (n_outputs,) thresholds by validation items.
    """

    scores: Mapping[Key, npt.NDArray[np.float32]]
    thresholds: Mapping[Key, Mapping[str, _Float]]


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What they are worth: parts of `result.json`."""

    metrics: dict[str, Estimate]
    per_class: dict[str, dict[str, Estimate]]
    subgroups: dict[str, dict[str, Subgroup]]
    delong: dict[str, Interval]
    auc_skipped: tuple[str, ...]


def predict(
    request: FitRequest, trained: Trained, cohort: Cohort, tested: Cohort, folds: Sequence[Fold]
) -> Predictions:
    """Ask each head about its fold's test items, and choose thresholds by its validation items.

    Args:
        request: What is asked.
        trained: The heads.
        cohort: Items that trained and choose.
        tested: Items that are tested.
        folds: Which of them.

    Returns:
        Scores and thresholds.
    """
    targets, rules = cohort.targets, needed_thresholds(request.metrics)
    thresholds: dict[Key, dict[str, _Float]] = {}
    for key, head in trained.heads.items():
        rows = folds[key[1]].val
        scores = head.predict_proba(cohort.x[rows]) if rules else None
        thresholds[key] = (
            {}
            if scores is None
            else {rule: thresholds_from(targets.y[rows], scores, rule) for rule in rules}
        )
    return Predictions(
        scores={
            key: head.predict_proba(tested.x[folds[key[1]].test])
            for key, head in trained.heads.items()
        },
        thresholds=thresholds,
    )


def judge(
    request: FitRequest, tested: Cohort, folds: Sequence[Fold], predictions: Predictions
) -> Judgement:
    """Compute every metric with its interval.

    Groups are drawn once for all folds and seeds: see docs/result-format.md.

    Args:
        request: What is asked.
        tested: Items that are tested.
        folds: Which of them.
        predictions: What the heads said of them.

    Returns:
        Estimates of all items, of each class, of each subgroup.

    Raises:
        ProbeError: If a column of `request.by` cannot be judged apart.
        ValueError: If a metric is not of this kind of target.
    """
    everybody = np.unique(np.concatenate([fold.test for fold in folds]))
    weights = np.zeros((request.replicates, len(tested.ids)), np.uint16)
    weights[:, everybody] = group_bootstrap_weights(
        tested.groups[everybody], n_boot=request.replicates
    )
    draws = group_draws(weights[:, everybody], tested.groups[everybody])
    judged = judge_each(
        request.metrics, tested, folds, predictions, weights, np.ones(len(tested.ids), bool)
    )
    classes = tested.targets.classes
    first = next(iter(judged.values())).values
    apart = {
        column: {
            value: found
            for value, rows in subgroups_of(tested.items, column).items()
            if (found := _subgroup(request, tested, folds, predictions, weights, draws, rows))
        }
        for column in request.by
    }
    return Judgement(
        metrics={metric: _overall(judged, metric, draws) for metric in request.metrics},
        per_class={
            name: {m: _of_class(judged, m, index, draws) for m in first.per_class}
            for index, name in enumerate(classes)
        },
        subgroups=apart,
        delong=_delong(tested, folds, predictions) if "auc" in request.metrics else {},
        auc_skipped=tuple(
            name
            for index, name in enumerate(classes)
            if any(index in one.values.auc_skipped for one in judged.values())
        ),
    )


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One head on its test items: values, and (n_replicates, ...) of them."""

    values: Scores
    overall: Mapping[str, _Float]
    per_class: Mapping[str, _Float]


def judge_each(
    metrics: Sequence[str],
    tested: Cohort,
    folds: Sequence[Fold],
    predictions: Predictions,
    weights: npt.NDArray[np.uint16],
    among: npt.NDArray[np.bool_],
) -> dict[Key, Judged]:
    """Judge each head on its test items among (n_items,) bool; one without any is left out."""
    judged = {}
    for key, scores in predictions.scores.items():
        rows = folds[key[1]].test
        chosen = among[rows]
        if not chosen.any():
            continue
        rows = rows[chosen]
        truth, given = tested.targets.y[rows], scores[chosen]
        options: dict[str, Any] = {
            "metrics": metrics,
            "thresholds": predictions.thresholds.get(key),
            "sequences": None if tested.sequences is None else tested.sequences[rows],
        }
        drawn = weights[:, rows]
        some = drawn.max(axis=1) > 0  # a draw may hold nobody of a small fold
        kind = tested.targets.kind
        of_draws = evaluate(truth, given, kind, weights=drawn[some], **options)
        judged[key] = Judged(
            values=evaluate(truth, given, kind, **options),
            overall={m: spread_replicates(v, some) for m, v in of_draws.overall.items()},
            per_class={m: spread_replicates(v, some) for m, v in of_draws.per_class.items()},
        )
    return judged


def spread_replicates(values: _Float, some: npt.NDArray[np.bool_]) -> _Float:
    """Put values of some replicates at their places; NaN elsewhere.

    Args:
        values: (n_some, ...), in order.
        some: (n_replicates,) which they are of.
    """
    whole = np.full((len(some), *values.shape[1:]), np.nan)
    whole[some] = values
    return whole


def _overall(judged: Mapping[Key, Judged], metric: str, draws: npt.NDArray[Any]) -> Estimate:
    return estimate(
        {key: float(one.values.overall[metric]) for key, one in judged.items()},
        [one.overall[metric] for one in judged.values()],
        draws,
    )


def _of_class(
    judged: Mapping[Key, Judged], metric: str, index: int, draws: npt.NDArray[Any]
) -> Estimate:
    return estimate(
        {key: float(one.values.per_class[metric][index]) for key, one in judged.items()},
        [one.per_class[metric][:, index] for one in judged.values()],
        draws,
    )


def estimate(
    values: Mapping[Key, float], replicates: Sequence[_Float], draws: npt.NDArray[Any] | None
) -> Estimate:
    """Put together what heads of several seeds and folds are worth.

    An interval without width, where each draw gave the same, is none: a head that made no mistake
    among few patients will make some among others.

    Args:
        values: Seed and fold -> the metric.
        replicates: Of each of them, (n_replicates,), by the same draws.
        draws: (n_replicates, n_groups) how often each group was drawn; None where there is only
            one, of which nothing can be drawn: there is no interval then.

    Returns:
        Means over seeds and folds where they are defined.
    """
    mean = _mean(list(values.values()))
    seeds, folds = ({key[axis] for key in values} for axis in (0, 1))
    by_seed = [_mean([v for (s, _), v in values.items() if s == seed]) for seed in sorted(seeds)]
    by_fold = [_mean([v for (_, f), v in values.items() if f == fold]) for fold in sorted(folds)]
    drawn = mean_where_defined(np.stack(replicates))
    sds = {"sd_seeds": _deviation(by_seed), "sd_folds": _deviation(by_fold)}
    if draws is None:
        return Estimate(
            value=mean, low=None, high=None, level=0.95, defined=0, replicates=len(drawn), **sds
        )
    found = interval(drawn, estimate=np.nan if mean is None else mean, draws=draws)
    return Estimate(
        value=mean,
        low=None if found.degenerate else _number(found.low),
        high=None if found.degenerate else _number(found.high),
        level=found.level,
        defined=found.n_defined,
        replicates=found.n_replicates,
        **sds,
    )


# Subgroups


def subgroups_of(items: pd.DataFrame, column: str) -> dict[str, npt.NDArray[np.bool_]]:
    """Find the items of each value of a column.

    Args:
        items: (n_items, columns).
        column: Its name.

    Returns:
        Value, as text -> (n_items,) bool.

    Raises:
        ProbeError: If there is no such column, or it has too many values.
    """
    if column not in items:
        raise ProbeError(
            f"--by: there is no column {column!r}; the store has {', '.join(items.columns)}"
        )
    texts = items[column].map(lambda v: str(v) if not isinstance(v, float) else f"{v:g}")
    known = items[column].notna()
    values = sorted(set(texts[known]))
    if len(values) > _MOST_VALUES:
        raise ProbeError(
            f"--by: {column!r} has {len(values)} values, which is no subgroup any more; make bands "
            "of it in the table, then `dinocache relabel`"
        )
    return {value: ((texts == value) & known).to_numpy() for value in values}


def _subgroup(
    request: FitRequest,
    tested: Cohort,
    folds: Sequence[Fold],
    predictions: Predictions,
    weights: npt.NDArray[np.uint16],
    draws: npt.NDArray[np.uint16],
    among: npt.NDArray[np.bool_],
) -> Subgroup | None:
    """Judge some items; None where nobody of them is tested."""
    judged = judge_each(request.metrics, tested, folds, predictions, weights, among)
    if not judged:
        return None
    rows = np.unique(np.concatenate([folds[n].test for _, n in judged]))
    rows = rows[among[rows]]
    return Subgroup(
        items=len(rows),
        groups=len(set(tested.groups[rows])),
        metrics={m: _overall(judged, m, draws) for m in request.metrics},
    )


def _delong(tested: Cohort, folds: Sequence[Fold], predictions: Predictions) -> dict[str, Interval]:
    """Give each class's AUC with DeLong's interval, where one fold is tested."""
    if len(folds) > 1:
        return {}
    rows, level = folds[0].test, 0.95
    found = {}
    for index, name in enumerate(tested.targets.classes):
        truth = tested.targets.y[rows, index]
        of_seeds = [
            delong(truth, scores[:, index], groups=tested.groups[rows])
            for scores in predictions.scores.values()
        ]
        mean = Auc(
            auc=float(np.mean([one.auc for one in of_seeds])),
            variance=float(np.mean([one.variance for one in of_seeds])),
        )
        low, high = mean.interval(level=level)
        found[name] = Interval(
            value=_number(mean.auc), low=_number(low), high=_number(high), level=level
        )
    return found


def mean_where_defined(rows: _Float) -> _Float:
    """Mean over the first axis of what is not NaN; NaN where nothing is."""
    defined = ~np.isnan(rows)
    count = defined.sum(0)
    total: _Float = np.where(defined, rows, 0).sum(0)
    mean: _Float = np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
    return mean


def _mean(values: Sequence[float]) -> float | None:
    return _number(float(mean_where_defined(np.array(values, np.float64))))


def _deviation(values: Sequence[float | None]) -> float | None:
    defined = [v for v in values if v is not None]
    return float(np.std(defined, ddof=1)) if len(defined) > 1 else None


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
