"""One fit: features and labels in, a judged head out."""

import hashlib
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from dinocache import __version__
from dinocache.errors import ProbeError, RequestError
from probes.features import (
    VECTORS,
    ItemFeatures,
    is_vector,
    load_item_features,
    load_row_features,
)
from probes.heads import HEADS, Head, Setting, make_head
from probes.heads.knn import KnnHead
from probes.metrics.classification import METRICS, Metric, evaluate
from probes.runs import Estimate, HeadFacts, Result, SplitFacts, TaskFacts
from probes.splits import (
    Split,
    check_no_leakage,
    hold_out,
    splits_by_column,
    stratified_group_folds,
)
from probes.stats import group_bootstrap_weights, interval
from probes.targets import Targets, read_targets

__all__ = ["Fit", "FitRequest", "fit"]

DEFAULT_FOLDS = 5
CURVE_KS = (1, 5, 10, 20, 50, 100, 200)


@dataclass(frozen=True, kw_only=True)
class FitRequest:
    """What a person asks of `probe fit`.

    Attributes:
        store: Its folder.
        targets: Columns.
        task: DATASET/TASK that this is, if it is one.
        of: Whether items have targets, or each of their rows, whose columns then hold lists.
        head: Of `HEADS`.
        features: Kinds; None takes the publisher's vector.
        settings: Of the head.
        positive: The value of a binary target that counts.
        split: Column with sides, or numbers of folds.
        folds: Drawn here, instead.
        validation: Share of a fold's training groups that does not train.
        seeds: How often it is fitted.
        drop_missing: Whether items without a target are left out.
        replicates: Of the bootstrap.
    """

    store: Path
    targets: tuple[str, ...]
    task: str | None = None
    of: Literal["item", "row"] = "item"
    head: str = "linear"
    features: tuple[str, ...] | None = None
    settings: Mapping[str, Setting] | None = None
    positive: str | None = None
    split: str | None = None
    folds: int | None = None
    validation: float | None = None
    seeds: int = 1
    drop_missing: bool = False
    replicates: int = 1000


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What a fit gives: everything that a run folder holds."""

    result: Result
    predictions: pd.DataFrame
    arrays: dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class _Fold:
    """Test items of one fold, and what each seed's head said of them."""

    train: npt.NDArray[np.intp]
    test: npt.NDArray[np.intp]


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
    _check_request(request)
    if request.of == "row":
        loaded = load_row_features(request.store, request.features, request.targets)
    else:
        loaded = load_item_features(request.store, request.features)
    targets = read_targets(loaded.items, request.targets, positive=request.positive)
    kept, left_out = _keep(loaded, targets, request)
    groups = loaded.items["group"].to_numpy(dtype=np.str_)[kept]
    x, y, ids = loaded.x[kept], targets.y[kept], loaded.items["item_id"].to_numpy(np.str_)[kept]
    _check_finite(x, ids)
    try:
        folds, split = _split(request, loaded.items[kept], targets, kept, groups)
        _check_folds(folds, y, targets)
        seeds = _seeds(request)
        heads = {
            (seed, number): _make(request, seed).fit(x[fold.train], y[fold.train])
            for seed in seeds
            for number, fold in enumerate(folds)
        }
        scores = {key: head.predict_proba(x[folds[key[1]].test]) for key, head in heads.items()}
        metrics, per_class, skipped = _judge(request, targets, folds, y, groups, scores)
        curve = _curve(targets, folds, x, y, heads)
    except ValueError as exc:
        # The layers below know arrays only; their messages say what was expected and what came.
        raise exc if isinstance(exc, ProbeError) else ProbeError(str(exc)) from exc
    result = Result(
        task=TaskFacts(
            name=request.task,
            of=request.of,
            targets=request.targets,
            kind=targets.kind,
            classes=targets.classes,
        ),
        head=HeadFacts(name=request.head, settings=_make(request, seeds[0]).get_params()),
        features=loaded.kinds,
        store=loaded.store,
        split=split,
        seeds=seeds,
        items=len(ids),
        groups=len(set(groups)),
        left_out=left_out,
        metrics=metrics,
        per_class=per_class,
        auc_skipped=skipped,
        curve=curve,
        versions=_versions(),
    )
    return Fit(
        result=result,
        predictions=_predictions(targets, folds, ids, groups, y, scores),
        arrays={
            f"s{seed}.f{fold}.{name}": array
            for (seed, fold), head in heads.items()
            for name, array in head.to_arrays().items()
        },
    )


# Items and splits


def _check_request(request: FitRequest) -> None:
    if request.head not in HEADS:
        raise RequestError(f"--head {request.head!r}: choose from {', '.join(HEADS)}")
    if not request.targets:
        raise RequestError("--target: name at least one column")
    features = request.features or ()
    for option, given in (("--target", request.targets), ("--features", features)):
        if len(set(given)) < len(given):
            raise RequestError(f"{option} {','.join(given)!r}: give each once")
    unknown = [k for k in features if not is_vector(k)]
    if unknown or request.features == ():
        raise RequestError(
            f"--features {','.join(features)!r}: choose from {', '.join(VECTORS)}, or of a "
            "channel, as cls.pet"
        )
    if request.split is not None and request.folds is not None:
        raise RequestError("--split and --folds are two protocols; give one of them")
    if request.seeds < 1 or request.replicates < 1:
        raise RequestError("--seeds and --replicates must be at least 1")


def _keep(
    loaded: ItemFeatures, targets: Targets, request: FitRequest
) -> tuple[npt.NDArray[np.bool_], dict[str, str]]:
    """Choose the items that take part, and say why the others do not."""
    kept = targets.known.copy()
    ids = loaded.items["item_id"]
    if not kept.all() and not request.drop_missing:
        raise ProbeError(
            f"{int((~kept).sum())} of {len(kept)} items have no value of "
            f"{', '.join(request.targets)} (as {ids[~kept].iloc[0]!r}); --drop-missing leaves "
            "them out"
        )
    left_out = {i: f"extraction failed: {why}" for i, why in loaded.failed.items()}
    left_out |= dict.fromkeys(ids[~kept], "target missing")
    column = _split_column(request, loaded.items)
    if column is not None:
        sided = loaded.items[column].notna().to_numpy()
        left_out |= dict.fromkeys(ids[kept & ~sided], f"no value of {column!r}")
        kept &= sided
    return kept, left_out


def _split_column(request: FitRequest, items: pd.DataFrame) -> str | None:
    if request.folds is not None:
        return None
    if request.split is not None:
        if request.split not in items:
            raise ProbeError(
                f"--split: there is no column {request.split!r}; the store has "
                f"{', '.join(items.columns)}"
            )
        return request.split
    return "split" if "split" in items and items["split"].notna().any() else None


def _split(
    request: FitRequest,
    items: pd.DataFrame,
    targets: Targets,
    kept: npt.NDArray[np.bool_],
    groups: npt.NDArray[np.str_],
) -> tuple[list[_Fold], SplitFacts]:
    column = _split_column(request, items)
    if column is not None:
        splits = splits_by_column(items[column].to_numpy(dtype=object))
        if request.validation is not None:
            share, labels = request.validation, targets.strata[kept]
            splits = [
                split if split.val.any() else hold_out(split, labels, groups, share=share)
                for split in splits
            ]
        for split in splits:
            check_no_leakage(groups, split)
        folds = [
            _Fold(train=np.flatnonzero(split.train), test=np.flatnonzero(split.test))
            for split in splits
        ]
        sides = [
            "/".join(next(s for s, mask in split.sides().items() if mask[i]) for split in splits)
            for i in range(len(items))
        ]
    else:
        k = request.folds if request.folds is not None else DEFAULT_FOLDS
        numbers = stratified_group_folds(_strata(targets, kept, groups, k), groups, k=k)
        folds = [
            _Fold(train=np.flatnonzero(numbers != n), test=np.flatnonzero(numbers == n))
            for n in range(k)
        ]
        for n in range(k):
            test = numbers == n
            check_no_leakage(groups, Split(train=~test, val=np.zeros_like(test), test=test))
        sides = [str(n) for n in numbers]
    lines = sorted(f"{i}\t{side}\n" for i, side in zip(items["item_id"], sides, strict=True))
    return folds, SplitFacts(
        protocol="folds" if column is None else "column",
        column=column,
        folds=len(folds) if column is None or len(folds) > 1 else None,
        digest=hashlib.sha256("".join(lines).encode()).hexdigest(),
        n_train=float(np.mean([len(fold.train) for fold in folds])),
        n_test=float(np.mean([len(fold.test) for fold in folds])),
    )


def _strata(
    targets: Targets, kept: npt.NDArray[np.bool_], groups: npt.NDArray[np.str_], k: int
) -> npt.NDArray[np.str_]:
    """Give what folds are stratified by (n_kept,).

    With several labels a stratum is the rarest label of each item. One too thin for k folds goes
    to the commonest: a few patients without any label must not stop a fit. A label that fewer than
    k patients have does stop it.
    """
    strata = targets.strata[kept]
    if targets.kind != "multilabel":
        return strata
    for name, column in zip(targets.classes, targets.y[kept].T, strict=True):
        n_groups = len(set(groups[column == 1]))
        if n_groups < k:
            raise ProbeError(
                f"each of {k} folds needs items of every label; {name!r} has {n_groups} group(s): "
                "ask for fewer folds, or leave that target out"
            )
    sizes = {str(name): len(set(groups[strata == name])) for name in np.unique(strata)}
    thin = [name for name, size in sizes.items() if size < k]
    return np.where(np.isin(strata, thin), max(sizes, key=sizes.__getitem__), strata)


def _check_folds(folds: Sequence[_Fold], y: npt.NDArray[np.float32], targets: Targets) -> None:
    """A class that training never saw gives a meaningless head; say which."""
    for number, fold in enumerate(folds):
        for side, rows in (("train", fold.train), ("test", fold.test)):
            if len(rows) == 0:
                raise ProbeError(f"the {side} side has no items; check the split column")
            lacking = [
                c
                for c, share in zip(targets.classes, y[rows].mean(0), strict=True)
                if share in (0, 1)
            ]
            if lacking and (side == "train" or targets.kind == "binary"):
                raise ProbeError(
                    f"class {lacking[0]!r}: the {side} side (fold {number}) has only items with "
                    "it or only items without it; use another split or fewer folds"
                )


def _check_finite(x: npt.NDArray[np.float32], ids: npt.NDArray[np.str_]) -> None:
    finite = np.isfinite(x).all(1)
    if not finite.all():
        raise ProbeError(
            f"{int((~finite).sum())} items have NaN or infinite features "
            f"(as {str(ids[~finite][0])!r}); "
            "run `dinocache verify` on the store"
        )


# Heads


def _seeds(request: FitRequest) -> tuple[int, ...]:
    """Count from the head's own seed; a head that draws nothing is fitted once, as seed 0."""
    first = make_head(request.head, **(request.settings or {})).get_params().get("seed")
    return (0,) if first is None else tuple(range(int(first), int(first) + request.seeds))


def _make(request: FitRequest, seed: int) -> Head:
    settings: dict[str, Setting] = dict(request.settings or {})
    if "seed" in make_head(request.head, **settings).get_params():
        settings["seed"] = seed
    return make_head(request.head, **settings)


def _curve(
    targets: Targets,
    folds: Sequence[_Fold],
    x: npt.NDArray[np.float32],
    y: npt.NDArray[np.float32],
    heads: Mapping[tuple[int, int], Head],
) -> tuple[dict[str, float | None], ...] | None:
    """Judge a k-NN head at several k, from one search a fold."""
    if not all(isinstance(head, KnnHead) for head in heads.values()):
        return None
    ks = [k for k in CURVE_KS if k <= min(len(fold.train) for fold in folds)]
    points: dict[int, list[dict[str, float]]] = {k: [] for k in ks}
    for (_, number), head in heads.items():
        fold = folds[number]
        if isinstance(head, KnnHead):
            for k, scores in head.predict_curve(x[fold.test], ks).items():
                judged = evaluate(y[fold.test], scores, targets.kind)
                points[k].append({m: float(v) for m, v in judged.overall.items()})
    return tuple(
        {"k": float(k), **{m: _mean([p[m] for p in points[k]]) for m in METRICS}} for k in ks
    )


# Judging


def _judge(
    request: FitRequest,
    targets: Targets,
    folds: Sequence[_Fold],
    y: npt.NDArray[np.float32],
    groups: npt.NDArray[np.str_],
    scores: Mapping[tuple[int, int], npt.NDArray[np.float32]],
) -> tuple[dict[str, Estimate], dict[str, dict[str, float | None]], tuple[str, ...]]:
    values: dict[Metric, dict[tuple[int, int], float]] = {m: {} for m in METRICS}
    replicates: dict[Metric, list[npt.NDArray[np.float64]]] = {m: [] for m in METRICS}
    by_class: dict[Metric, list[npt.NDArray[np.float64]]] = {m: [] for m in METRICS}
    skipped: set[int] = set()
    for number, weights in enumerate(_weights(request, folds, groups)):
        truth = y[folds[number].test]
        for seed in sorted({s for s, _ in scores}):
            judged = evaluate(truth, scores[seed, number], targets.kind)
            drawn = evaluate(truth, scores[seed, number], targets.kind, weights=weights)
            skipped |= set(judged.auc_skipped)
            for metric in METRICS:
                values[metric][seed, number] = float(judged.overall[metric])
                replicates[metric].append(drawn.overall[metric])
                if metric in judged.per_class:
                    by_class[metric].append(judged.per_class[metric])
    metrics: dict[str, Estimate] = {
        m: _estimate(values[m], _mean_where_defined(np.stack(replicates[m]))) for m in METRICS
    }
    per_class: dict[str, dict[str, float | None]] = {
        name: {
            metric: _number(_mean_where_defined(np.stack(rows))[index])
            for metric, rows in by_class.items()
            if rows
        }
        for index, name in enumerate(targets.classes)
    }
    return metrics, per_class, tuple(targets.classes[i] for i in sorted(skipped))


def _weights(
    request: FitRequest, folds: Sequence[_Fold], groups: npt.NDArray[np.str_]
) -> Iterator[npt.NDArray[np.uint16]]:
    for number, fold in enumerate(folds):
        yield group_bootstrap_weights(groups[fold.test], n_boot=request.replicates, seed=number)


def _estimate(
    values: Mapping[tuple[int, int], float], replicates: npt.NDArray[np.float64]
) -> Estimate:
    found = interval(replicates)
    seeds, folds = ({key[axis] for key in values} for axis in (0, 1))
    by_seed = [_mean([v for (s, _), v in values.items() if s == seed]) for seed in sorted(seeds)]
    by_fold = [_mean([v for (_, f), v in values.items() if f == fold]) for fold in sorted(folds)]
    return Estimate(
        value=_mean(list(values.values())),
        low=_number(found.low),
        high=_number(found.high),
        level=found.level,
        defined=found.n_defined,
        replicates=found.n_replicates,
        sd_seeds=_deviation(by_seed),
        sd_folds=_deviation(by_fold),
    )


def _mean_where_defined(rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Mean over the first axis of what is not NaN; NaN where nothing is."""
    defined = ~np.isnan(rows)
    count = defined.sum(0)
    total: npt.NDArray[np.float64] = np.where(defined, rows, 0).sum(0)
    mean: npt.NDArray[np.float64] = np.divide(
        total, count, out=np.full_like(total, np.nan), where=count > 0
    )
    return mean


def _mean(values: Sequence[float]) -> float | None:
    return _number(float(_mean_where_defined(np.array(values, np.float64))))


def _deviation(values: Sequence[float | None]) -> float | None:
    defined = [v for v in values if v is not None]
    return float(np.std(defined, ddof=1)) if len(defined) > 1 else None


def _number(value: float | np.floating[Any]) -> float | None:
    return None if np.isnan(value) else float(value)


# What is kept


def _predictions(
    targets: Targets,
    folds: Sequence[_Fold],
    ids: npt.NDArray[np.str_],
    groups: npt.NDArray[np.str_],
    y: npt.NDArray[np.float32],
    scores: Mapping[tuple[int, int], npt.NDArray[np.float32]],
) -> pd.DataFrame:
    parts = []
    for (seed, number), given in scores.items():
        rows = folds[number].test
        part = {"item_id": ids[rows], "group": groups[rows], "seed": seed, "fold": number}
        for index, name in enumerate(targets.classes):
            part[f"truth.{name}"] = y[rows, index].astype(np.int8)
            part[f"score.{name}"] = given[:, index]
        parts.append(pd.DataFrame(part))
    return pd.concat(parts, ignore_index=True)


def _versions() -> dict[str, str]:
    packages = ("numpy", "scikit-learn", "torch", "zarr")
    return {
        "dinocache": __version__,
        "python": platform.python_version(),
        **{package: metadata.version(package) for package in packages},
    }
