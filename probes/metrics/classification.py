"""Classification metrics of one set of scores, for many weightings of its items at once.

A bootstrap replicate is a weight for each item (how often it was drawn), so a thousand of them
are one matrix, and a metric is a few matrix products. scikit-learn has most of these metrics, but
for one weighting a call, far too slow for thousands; the tests hold ours to it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from probes.metrics.calibration import Calibration
from probes.metrics.counting import Counting
from probes.metrics.names import Kind, Metric, MetricName, check_metrics
from probes.metrics.phases import Phases, check_sequences
from probes.metrics.ranking import Ranking
from probes.metrics.thresholds import check_thresholds, decide

__all__ = ["METRICS", "Kind", "Metric", "Scores", "evaluate"]

METRICS: tuple[Metric, ...] = ("auc", "accuracy", "precision", "recall", "f1")
"""What is computed if nothing else is asked for."""

_Float = npt.NDArray[np.float64]
_Bool = npt.NDArray[np.bool_]
_Measure = Callable[[_Float], Mapping[Metric, tuple[_Float, _Float | None]]]

_BLOCK = 2**22
"""Numbers in a block of weights: 32 MB as float64."""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What `evaluate` found; NaN marks a value that is not defined.

    ``...`` stands for the leading axes of the weights: none without weights, (n_boot,) with a
    row of weights for each replicate.
    """

    overall: dict[Metric, _Float]
    """(...) of each metric."""
    per_class: dict[Metric, _Float]
    """(..., n_outputs) of each metric that has a value for each class."""
    auc_skipped: tuple[int, ...]
    """Columns whose items all have, or all lack, the label. What compares two sides, as an AUC,
    leaves them out of its overall value."""


def evaluate(
    truth: npt.NDArray[Any],
    scores: npt.NDArray[np.floating[Any]],
    kind: Kind,
    *,
    weights: npt.NDArray[Any] | None = None,
    metrics: Sequence[Metric] = METRICS,
    thresholds: Mapping[str, npt.ArrayLike] | None = None,
    sequences: npt.ArrayLike | None = None,
    fps: float = 1.0,
) -> Scores:
    """Compare scores with the truth.

    A label is given where ``score >= threshold``, 0.5 if the metric's name has no ``@`` (binary,
    multilabel), or to the class with the highest score, the first of equals (multiclass). A plain
    name is of the positive class (binary), the unweighted mean over classes (multiclass; accuracy,
    kappa and MCC are of the whole table), or the mean over labels, each with its positive class
    (multilabel). ``macro_``, ``weighted_`` and ``micro_`` are scikit-learn's ``average``, over
    both classes if binary; ``twoclass_`` is the mean of both classes of each label.

    Where precision and the like divide by zero they are 0. A replicate that drew no item of a
    class, though there are some, is NaN there and overall, rather than 0 or a mean over fewer
    classes. What is skipped does not depend on the weights; see `Scores.auc_skipped`.

    Args:
        truth: (n_items, n_outputs) of 0 and 1: one column (binary), or one 1 in each row
            (multiclass), or any (multilabel).
        scores: (n_items, n_outputs) finite floats, in [0, 1] for a meaningful 0.5.
        kind: What the columns are.
        weights: (..., n_items) of at least 0, not all 0 along the items; a weight of 2 is the
            same as an item that stands there twice. None is 1 for each item.
        metrics: What to compute; `probes.metrics.names` has the names.
        thresholds: For each rule that a metric's ``@`` names, (n_outputs,): what
            `probes.metrics.thresholds.thresholds_from` gave of validation items. An output whose
            threshold is NaN is NaN, and with it the overall value.
        sequences: (n_items,) the video of each frame, for ``video_`` and ``relaxed_``; frames of
            a video stand in order of time and weigh the same.
        fps: Frames a second, for ``relaxed_``.

    Returns:
        Overall values and those of each class, under the names that were given.

    Raises:
        ValueError: If an argument is not as above, or one that a metric needs is missing.

    References:
        `probes.metrics.ranking`, `counting`, `calibration` and `phases` name them.
    """
    truth, scores = np.asarray(truth), np.asarray(scores)
    _check_truth(truth, scores, kind)
    if not np.issubdtype(scores.dtype, np.floating):
        scores = scores.astype(np.float64)
    names = check_metrics(metrics, kind)
    chosen = check_thresholds(names, thresholds, truth.shape[1])
    weights = np.ones(len(truth)) if weights is None else np.asarray(weights)
    _check_weights(weights, len(truth))
    labels = truth.astype(bool)
    measures = list(_measures(labels, scores, kind, names, chosen, sequences, fps))
    overall: dict[Metric, list[_Float]] = {name.text: [] for name in names}
    per_class: dict[Metric, list[_Float]] = {name.text: [] for name in names}
    for block in _blocks(weights.reshape(-1, len(truth))):
        for measure in measures:
            for metric, (value, columns) in measure(block).items():
                overall[metric].append(value)
                if columns is not None:
                    per_class[metric].append(columns)
    leading = weights.shape[:-1]
    return Scores(
        overall={m: np.concatenate(found).reshape(leading) for m, found in overall.items()},
        per_class={
            m: np.concatenate(found).reshape(*leading, -1)
            for m, found in per_class.items()
            if found
        },
        auc_skipped=tuple(np.flatnonzero(labels.all(axis=0) | ~labels.any(axis=0)).tolist()),
    )


def _measures(
    truth: _Bool,
    scores: npt.NDArray[np.floating[Any]],
    kind: Kind,
    names: Sequence[MetricName],
    chosen: Mapping[str, _Float],
    sequences: npt.ArrayLike | None,
    fps: float,
) -> Iterator[_Measure]:
    """Yield what computes the metrics of a block of weights; each does its own share once."""
    of_family = {
        family: [name for name in names if name.family == family]
        for family in ("ranking", "counting", "calibration", "phases")
    }
    if of_family["ranking"]:
        yield Ranking(truth, scores, of_family["ranking"])
    for threshold in dict.fromkeys(name.threshold for name in of_family["counting"]):
        decision = decide(scores, kind, threshold, chosen)
        counted = [name for name in of_family["counting"] if name.threshold == threshold]
        yield Counting(truth, decision, kind, counted)
    if of_family["calibration"]:
        yield Calibration(truth, scores, kind, of_family["calibration"])
    if of_family["phases"]:
        phases = of_family["phases"]
        videos = check_sequences(sequences, len(truth), phases[0].text)
        decision = decide(scores, kind, None, chosen)
        yield Phases(truth, decision.labels, videos, fps, phases)


def _blocks(weights: npt.NDArray[Any]) -> Iterator[_Float]:
    """Yield the rows of ``weights`` (n_replicates, n_items) as float64, some at a time."""
    step = max(1, _BLOCK // weights.shape[1])
    for start in range(0, len(weights), step):
        yield weights[start : start + step].astype(np.float64)


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
