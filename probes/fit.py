"""One fit: features and labels in, a judged head out."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from dinocache import __version__
from dinocache.errors import ProbeError
from probes.cohort import Cohort, load_cohort, load_test_cohort
from probes.features import store_state
from probes.heads import KnnHead, make_head
from probes.judging import Judgement, Predictions, judge, predict, subgroups_of
from probes.metrics.classification import evaluate
from probes.metrics.names import check_metrics, needed_thresholds
from probes.protocol import Fold, draw_folds
from probes.request import FitRequest
from probes.runs import HeadFacts, Result, SplitFacts, TaskFacts, library_versions
from probes.training import Trained, seeds_of, train

__all__ = ["Fit", "fit", "inputs_of"]

CURVE_KS = (1, 5, 10, 20, 50, 100, 200)
CURVE_METRICS = ("auc", "accuracy", "precision", "recall", "f1")


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What a fit gives: everything that a run folder holds."""

    result: Result
    predictions: pd.DataFrame
    arrays: dict[str, npt.NDArray[Any]]


def fit(request: FitRequest) -> Fit:
    """Fit a head on cached features and judge it on items that it has not seen.

    Args:
        request: What is asked.

    Returns:
        Result, predictions and what was learned; the same again for the same request.

    Raises:
        StoreError: If the store is missing, incomplete or damaged.
        ProbeError: If features, labels and split do not allow this fit.
        RequestError: If the request itself cannot be.
    """
    cohort = load_cohort(request)
    others = request.test_on
    tested = load_test_cohort(request, others, cohort) if others else cohort
    for column in request.by:  # before anything is trained
        subgroups_of(tested.items, column)
    try:
        check_metrics(request.metrics, cohort.targets.kind)
        folds, split = draw_folds(request, cohort, tested, validates=_validates(request))
        trained = train(request, cohort, folds)
        predictions = predict(request, trained, cohort, tested, folds)
        judgement = judge(request, tested, folds, predictions)
        curve = _curve(trained, cohort, tested, folds)
    except ValueError as exc:
        # The layers below know arrays only; their messages say what was expected and what came.
        raise exc if isinstance(exc, ProbeError) else ProbeError(str(exc)) from exc
    return Fit(
        result=_result(request, cohort, tested, split, trained, judgement, curve),
        predictions=_table(tested, folds, predictions),
        arrays={
            f"s{seed}.f{fold}.{name}": array
            for (seed, fold), head in trained.heads.items()
            for name, array in head.to_arrays().items()
        },
    )


def inputs_of(request: FitRequest) -> str:
    """Sum up all that decides the figures of a fit, without fitting.

    Args:
        request: What is asked.

    Returns:
        sha256, hex: equal where a fit would give the same.

    Raises:
        StoreError: If a store cannot be read.
    """
    stores = [request.store, *([request.test_on.store] if request.test_on else [])]
    return request.digest(
        stores=[store_state(path) for path in stores], format=2, version=__version__
    )


def _validates(request: FitRequest) -> bool:
    """Tell whether something is chosen by validation items."""
    head = make_head(request.head, **request.settings)
    return bool(head.selects or request.grid or needed_thresholds(request.metrics))


def _curve(
    trained: Trained, cohort: Cohort, tested: Cohort, folds: list[Fold]
) -> tuple[dict[str, float | None], ...] | None:
    """Judge a k-NN head at several k, from one search a fold."""
    heads = {number: head for (_, number), head in trained.heads.items()}
    ks = [k for k in CURVE_KS if k <= min(len(fold.train) for fold in folds)]
    points: dict[int, list[list[float]]] = {k: [] for k in ks}
    for number, head in heads.items():
        if not isinstance(head, KnnHead):
            return None
        rows = folds[number].test
        for k, scores in head.predict_curve(tested.x[rows], ks).items():
            truth, kind = tested.targets.y[rows], cohort.targets.kind
            judged = evaluate(truth, scores, kind, metrics=CURVE_METRICS).overall
            points[k].append([float(judged[metric]) for metric in CURVE_METRICS])
    curve = []
    for k, found in points.items():
        point: dict[str, float | None] = {"k": float(k)}
        for metric, mean in zip(CURVE_METRICS, np.mean(found, axis=0), strict=True):
            point[metric] = None if np.isnan(mean) else float(mean)
        curve.append(point)
    return tuple(curve)


def _result(
    request: FitRequest,
    cohort: Cohort,
    tested: Cohort,
    split: SplitFacts,
    trained: Trained,
    judgement: Judgement,
    curve: tuple[dict[str, float | None], ...] | None,
) -> Result:
    others = tested is not cohort
    return Result(
        inputs=inputs_of(request),
        task=TaskFacts(
            name=request.task,
            of=request.of,
            targets=request.targets,
            kind=cohort.targets.kind,
            classes=cohort.targets.classes,
        ),
        head=HeadFacts(name=request.head, settings=trained.settings, search=trained.search),
        features=cohort.kinds,
        pool=request.pool or "mean",
        store=cohort.store,
        test_store=tested.store if others else None,
        split=split,
        seeds=seeds_of(request),
        items=len(cohort.ids) + (len(tested.ids) if others else 0),
        groups=len(set(cohort.groups)) + (len(set(tested.groups)) if others else 0),
        left_out=cohort.left_out | tested.left_out,
        metrics=judgement.metrics,
        per_class=judgement.per_class,
        subgroups=judgement.subgroups,
        delong=judgement.delong,
        auc_skipped=judgement.auc_skipped,
        curve=curve,
        versions=library_versions(),
    )


def _table(tested: Cohort, folds: list[Fold], predictions: Predictions) -> pd.DataFrame:
    parts = []
    for (seed, number), given in predictions.scores.items():
        rows = folds[number].test
        part: dict[str, Any] = {"item_id": tested.ids[rows], "group": tested.groups[rows]}
        part |= {"seed": seed, "fold": number}
        for index, name in enumerate(tested.targets.classes):
            part[f"truth.{name}"] = tested.targets.y[rows, index].astype(np.int8)
            part[f"score.{name}"] = given[:, index]
        parts.append(pd.DataFrame(part))
    return pd.concat(parts, ignore_index=True)
