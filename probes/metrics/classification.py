"""Classification metrics of one set of scores, for many weightings of its items at once.

A bootstrap replicate is a weight for each item (how often it was drawn), so a thousand of them
are one matrix. Metrics that count items are then matrix products, and an AUC sorts its scores
once for all replicates.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

__all__ = ["METRICS", "Kind", "Metric", "Scores", "evaluate"]

Kind = Literal["binary", "multiclass", "multilabel"]
Metric = Literal["auc", "accuracy", "precision", "recall", "f1"]
METRICS: tuple[Metric, ...] = get_args(Metric)

_Float = npt.NDArray[np.float64]
_Bool = npt.NDArray[np.bool_]

_BLOCK = 2**22
"""Numbers in the largest temporary array: 32 MB as float64."""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What `evaluate` found; NaN marks a value that is not defined.

    ``...`` stands for the leading axes of the weights: none without weights, (n_boot,) with a
    row of weights for each replicate.
    """

    overall: dict[Metric, _Float]
    """(...) of each metric."""
    per_class: dict[Metric, _Float]
    """(..., n_outputs) of each metric that has a value for each class; multiclass accuracy has
    none."""
    auc_skipped: tuple[int, ...]
    """Columns that the overall AUC leaves out: their items all have, or all lack, the label."""


def evaluate(
    truth: npt.NDArray[Any],
    scores: npt.NDArray[np.floating[Any]],
    kind: Kind,
    *,
    weights: npt.NDArray[Any] | None = None,
    metrics: Sequence[Metric] = METRICS,
) -> Scores:
    """Compare scores with the truth.

    A label is given where ``score >= 0.5`` (binary, multilabel), or to the class with the highest
    score, the first of equals (multiclass). Precision, recall and F1 are those of each column's
    label; where one divides by zero it is 0. The overall value is the unweighted mean over the
    columns (macro), except multiclass accuracy: the share of items that are right.

    The AUC of a column is the chance that an item with the label scores higher than one without,
    ties counting half; multiclass columns are taken one against the rest. Which columns the
    overall AUC skips does not depend on the weights: a replicate that lost all positives of
    another column is NaN there and overall, rather than a mean over fewer classes. Its precision,
    recall and F1 are NaN likewise.

    Args:
        truth: (n_items, n_outputs) of 0 and 1: one column (binary), or one 1 in each row
            (multiclass), or any (multilabel).
        scores: (n_items, n_outputs) finite floats, in [0, 1] for a meaningful 0.5.
        kind: What the columns are.
        weights: (..., n_items) of at least 0, not all 0 along the items; a weight of 2 is the
            same as an item that stands there twice. None is 1 for each item.
        metrics: What to compute.

    Returns:
        Overall values and those of each class.

    Raises:
        ValueError: If an argument is not as above.

    References:
        AUC as the Mann-Whitney statistic: Hanley and McNeil, Radiology 143 (1982) 29-36. The rest
        as in Sokolova and Lapalme, Information Processing and Management 45 (2009) 427-437.
    """
    truth, scores = np.asarray(truth), np.asarray(scores)
    _check_truth(truth, scores, kind)
    _check_metrics(metrics)
    weights = np.ones(len(truth)) if weights is None else np.asarray(weights)
    _check_weights(weights, len(truth))
    truth, decided = truth.astype(bool), _decide(scores, kind)
    rankings = [_rank(*column) for column in zip(truth.T, scores.T, strict=True)]
    blocks = []
    for block in _blocks(weights.reshape(-1, len(truth))):
        values = _count(truth, decided, block, kind)
        if "auc" in metrics:
            values["auc"] = _auc(rankings, block)
        blocks.append(values)
    leading = weights.shape[:-1]
    per_column = {
        metric: np.concatenate([values[metric] for values in blocks]).reshape(*leading, -1)
        for metric in metrics
    }
    skipped = tuple(
        int(column) for column in np.flatnonzero(truth.all(axis=0) | ~truth.any(axis=0))
    )
    return Scores(
        overall={
            metric: _mean_over_columns(values, skipped if metric == "auc" else ())
            for metric, values in per_column.items()
        },
        per_class={
            metric: values
            for metric, values in per_column.items()
            if (kind, metric) != ("multiclass", "accuracy")
        },
        auc_skipped=skipped,
    )


def _decide(scores: npt.NDArray[np.floating[Any]], kind: Kind) -> _Bool:
    """Return the labels given, (n_items, n_outputs)."""
    if kind != "multiclass":
        return scores >= 0.5
    decided = np.zeros(scores.shape, dtype=bool)
    decided[np.arange(len(scores)), scores.argmax(axis=1)] = True
    return decided


def _blocks(weights: npt.NDArray[Any]) -> Iterator[_Float]:
    """Yield the rows of ``weights`` (n_replicates, n_items) as float64, some at a time."""
    step = max(1, _BLOCK // weights.shape[1])
    for start in range(0, len(weights), step):
        yield weights[start : start + step].astype(np.float64)


def _count(truth: _Bool, decided: _Bool, weights: _Float, kind: Kind) -> dict[Metric, _Float]:
    """Return the metrics that count items.

    Args:
        truth: (n_items, n_outputs).
        decided: (n_items, n_outputs).
        weights: (n_replicates, n_items).
        kind: What the columns are.

    Returns:
        (n_replicates, n_outputs) of each; multiclass accuracy is (n_replicates, 1).
    """
    hits = weights @ (truth & decided).astype(np.float64)
    called = weights @ decided.astype(np.float64)
    present = weights @ truth.astype(np.float64)
    total = weights.sum(axis=1, keepdims=True)
    right = (
        hits.sum(axis=1, keepdims=True)
        if kind == "multiclass"
        else total - called - present + 2 * hits
    )
    # A replicate that drew no item of a class says nothing about it: not 0, as if all were missed.
    lost = (present == 0) & truth.any(axis=0)
    return {
        "accuracy": right / total,
        "precision": np.where(lost, np.nan, _ratio(hits, called)),
        "recall": np.where(lost, np.nan, _ratio(hits, present)),
        "f1": np.where(lost, np.nan, _ratio(2 * hits, called + present)),
    }


def _ratio(numerator: _Float, denominator: _Float) -> _Float:
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)


class _Ranking(NamedTuple):
    """One column's items by score: all that its AUC needs besides weights."""

    negatives: npt.NDArray[np.int64]
    """(n_negatives,) items without the label, ascending by score."""
    positives: npt.NDArray[np.int64]
    """(n_positives,) items with the label."""
    below: npt.NDArray[np.int64]
    """(n_positives,) how many negatives score lower than each positive."""
    up_to: npt.NDArray[np.int64]
    """(n_positives,) how many score lower or the same."""


def _rank(truth: _Bool, scores: npt.NDArray[np.floating[Any]]) -> _Ranking:
    negatives, positives = np.flatnonzero(~truth), np.flatnonzero(truth)
    negatives = negatives[np.argsort(scores[negatives], kind="stable")]
    return _Ranking(
        negatives,
        positives,
        below=np.searchsorted(scores[negatives], scores[positives], side="left"),
        up_to=np.searchsorted(scores[negatives], scores[positives], side="right"),
    )


def _auc(rankings: Sequence[_Ranking], weights: _Float) -> _Float:
    """Return (n_replicates, n_outputs) for weights (n_replicates, n_items), NaN where undefined."""
    by_item = np.ascontiguousarray(weights.T)  # whole rows are gathered: twice as fast
    return np.stack([_column_auc(ranking, by_item) for ranking in rankings], axis=1)


def _column_auc(ranking: _Ranking, by_item: _Float) -> _Float:
    """Return (n_replicates,) for weights (n_items, n_replicates)."""
    n_negatives, n_replicates = len(ranking.negatives), by_item.shape[1]
    passed = np.zeros((n_negatives + 1, n_replicates))  # weight of the n lowest negatives
    np.cumsum(by_item[ranking.negatives], axis=0, out=passed[1:])
    positives = by_item[ranking.positives]
    outranked = (passed[ranking.below] + passed[ranking.up_to]) / 2
    pairs = positives.sum(axis=0) * passed[-1]
    won = np.einsum("ij,ij->j", positives, outranked)
    auc = np.full(n_replicates, np.nan)
    np.divide(won, pairs, out=auc, where=pairs > 0)
    return auc


def _mean_over_columns(values: _Float, skipped: Sequence[int]) -> _Float:
    kept = np.delete(values, skipped, axis=-1)
    if kept.shape[-1] == 0:
        return np.full(values.shape[:-1], np.nan)
    return np.asarray(kept.mean(axis=-1))


def _check_truth(truth: npt.NDArray[Any], scores: npt.NDArray[Any], kind: Kind) -> None:
    if truth.ndim != 2 or truth.shape != scores.shape or truth.size == 0:
        raise ValueError(
            "truth and scores must both be (n_items, n_outputs), at least one of each; "
            f"got {truth.shape} and {scores.shape}"
        )
    if not ((truth == 0) | (truth == 1)).all():
        raise ValueError(
            f"truth must be 0 or 1, got {truth[(truth != 0) & (truth != 1)][0]}; "
            "leave out items without a label"
        )
    finite = np.isfinite(scores).all(axis=1)
    if not finite.all():
        raise ValueError(f"scores must be finite, row {np.argmin(finite)} is not; fit again")
    if kind not in get_args(Kind):
        raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}; got {kind!r}")
    if kind == "binary" and truth.shape[1] != 1:
        raise ValueError(
            f"a binary truth is one column, got {truth.shape[1]}; keep the positive one, "
            "or say multiclass or multilabel"
        )
    if kind == "multiclass" and (truth.shape[1] < 2 or (truth.sum(axis=1) != 1).any()):
        raise ValueError(
            "a multiclass truth is two or more columns with one 1 in each row, got "
            f"{truth.shape[1]} column(s) and rows with {truth.sum(axis=1).min():g} to "
            f"{truth.sum(axis=1).max():g} ones; say binary or multilabel"
        )


def _check_metrics(metrics: Sequence[Metric]) -> None:
    unknown = [metric for metric in metrics if metric not in METRICS]
    if unknown:
        raise ValueError(f"there is no metric {unknown[0]!r}; known: {', '.join(METRICS)}")


def _check_weights(weights: npt.NDArray[Any], n_items: int) -> None:
    if weights.ndim == 0 or weights.shape[-1] != n_items or weights.size == 0:
        raise ValueError(f"weights must be (..., {n_items}) like the items, got {weights.shape}")
    if not np.isfinite(weights).all() or weights.min(initial=0) < 0:
        raise ValueError("weights must be finite and at least 0; count how often an item is drawn")
    empty = np.argwhere(weights.sum(axis=-1) == 0)
    if len(empty):
        raise ValueError(
            f"weights must not all be 0; those of replicate {tuple(empty[0].tolist())} are"
        )
