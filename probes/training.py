"""Heads of a run: one a seed and fold, and the settings that validation items chose."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt

from probes.cohort import Cohort
from probes.heads import Head, LinearHead, Setting, fit_linear, make_head
from probes.metrics.classification import evaluate
from probes.protocol import Fold
from probes.request import FitRequest
from probes.runs import SearchFacts

__all__ = ["Key", "Trained", "seeds_of", "train"]

Key = tuple[int, int]
"""Seed and number of the fold."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What was learned.

    Attributes:
        heads: Seed and fold -> head, in this order.
        settings: Of all heads; where a search chose, those that were not searched.
        search: What was tried, or None.
    """

    heads: Mapping[Key, Head]
    settings: dict[str, Setting]
    search: SearchFacts | None


def seeds_of(request: FitRequest) -> tuple[int, ...]:
    """Count from the head's own seed; a head that draws nothing is fitted once, as seed 0."""
    first = make_head(request.head, **request.settings).get_params().get("seed")
    return (0,) if first is None else tuple(range(int(first), int(first) + request.seeds))


def train(request: FitRequest, cohort: Cohort, folds: Sequence[Fold]) -> Trained:
    """Fit a head for each seed and fold.

    With a grid, each point of it is fitted for each seed and fold; for each fold the point with
    the lowest log-loss over its validation items, mean over the seeds, is kept. The log-loss is
    proper and always defined; a metric of a few validation items often ties, or is not.

    Args:
        request: What is asked.
        cohort: Items that train and choose.
        folds: Which of them.

    Returns:
        The heads.

    Raises:
        ValueError: If a head cannot be fitted on them.
    """
    grid = _possible(request, folds)
    points = [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]
    seeds = seeds_of(request)
    fitted = _fit_all(request, cohort, folds, seeds, points)
    settings = make_head(request.head, **request.settings).get_params()
    if not grid:
        return Trained(
            heads={key[:2]: head for key, head in fitted.items()}, settings=settings, search=None
        )
    losses = [
        [
            float(np.mean([_loss(fitted[s, n, p], cohort, fold.val) for s in seeds]))
            for p in range(len(points))
        ]
        for n, fold in enumerate(folds)
    ]
    chosen = [int(np.argmin(of_fold)) for of_fold in losses]
    return Trained(
        heads={(s, n): fitted[s, n, p] for s in seeds for n, p in enumerate(chosen)},
        settings={k: v for k, v in settings.items() if k not in grid},
        search=SearchFacts(
            grid=grid,
            chosen=tuple(points[p] for p in chosen),
            losses=tuple(tuple(of_fold) for of_fold in losses),
        ),
    )


def _possible(request: FitRequest, folds: Sequence[Fold]) -> dict[str, tuple[Setting, ...]]:
    """Leave out neighbours that training items are too few for."""
    grid = {key: tuple(values) for key, values in request.grid.items()}
    if request.head == "knn" and "k" in grid:
        most = min(len(fold.train) for fold in folds)
        grid["k"] = tuple(k for k in grid["k"] if isinstance(k, int) and k <= most) or (most,)
    return grid


def _fit_all(
    request: FitRequest,
    cohort: Cohort,
    folds: Sequence[Fold],
    seeds: Sequence[int],
    points: Sequence[Mapping[str, Setting]],
) -> dict[tuple[int, int, int], Head]:
    """Fit a head for each seed, fold and point; linear heads all at once."""
    keys = list(product(seeds, range(len(folds)), range(len(points))))
    heads = {(seed, fold, point): _make(request, seed, points[point]) for seed, fold, point in keys}
    y = cohort.targets.y
    if request.head == "linear" and isinstance(cohort.x, np.ndarray):
        masks = np.zeros((len(folds), len(y)), bool)
        for mask, fold in zip(masks, folds, strict=True):
            mask[fold.train] = True
        linear = [head for head in heads.values() if isinstance(head, LinearHead)]
        fit_linear(linear, cohort.x, y, [masks[fold] for _, fold, _ in keys])
        return heads
    for (_, number, _), head in heads.items():
        fold = folds[number]
        validation = (cohort.x[fold.val], y[fold.val]) if head.selects else None
        head.fit(cohort.x[fold.train], y[fold.train], validation=validation)
    return heads


def _make(request: FitRequest, seed: int, point: Mapping[str, Setting]) -> Head:
    settings: dict[str, Setting] = {**request.settings, **point}
    if "seed" in make_head(request.head, **settings).get_params():
        settings["seed"] = seed
    return make_head(request.head, **settings)


def _loss(head: Head, cohort: Cohort, rows: npt.NDArray[np.intp]) -> float:
    targets = cohort.targets
    judged = evaluate(
        targets.y[rows], head.predict_proba(cohort.x[rows]), targets.kind, metrics=["log_loss"]
    )
    return float(judged.overall["log_loss"])
