"""Differences of two runs on the same items when predictions are swapped between them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from probes.metrics.classification import METRICS, evaluate
from probes.metrics.names import Kind, Metric, MetricName, check_metrics
from probes.metrics.thresholds import check_thresholds, decide

__all__ = ["swapped_differences"]

_Float = npt.NDArray[np.float64]
_Scores = npt.NDArray[np.floating[Any]]
_Thresholds = Mapping[str, npt.ArrayLike]


def swapped_differences(
    truth: npt.NDArray[Any],
    scores_a: _Scores,
    scores_b: _Scores,
    kind: Kind,
    swaps: npt.NDArray[np.bool_],
    *,
    metrics: Sequence[Metric] = METRICS,
    thresholds_a: _Thresholds | None = None,
    thresholds_b: _Thresholds | None = None,
    sequences: npt.ArrayLike | None = None,
    fps: float = 1.0,
) -> dict[Metric, _Float]:
    """Return by how much run A is above run B, for each way of swapping their predictions.

    The items stand twice, with the predictions of A and with those of B; a swap is then a
    weighting of these, and `evaluate` takes all swaps at once. What is swapped is what a metric
    looks at: ranks of the scores among the run's own (AUC, average precision), so that the runs'
    scales do not matter; decisions at the run's own threshold; or the scores.

    Args:
        truth: (n_items, n_outputs); see `evaluate`.
        scores_a: (n_items, n_outputs) of run A.
        scores_b: (n_items, n_outputs) of run B.
        kind: What the columns are.
        swaps: (n_swaps, n_items) bool, whether an item's predictions are swapped: what
            `probes.stats.group_swaps` returned. A row without any gives the difference itself.
        metrics: What to compute.
        thresholds_a: Of run A; see `evaluate`.
        thresholds_b: Of run B.
        sequences: See `evaluate`.
        fps: See `evaluate`.

    Returns:
        (n_swaps,) of each metric.

    Raises:
        ValueError: If an argument is not as above.

    References:
        Ranks are swapped, not scores: Venkatraman and Begg, Biometrika 83 (1996) 835-848.
    """
    truth, scores_a, scores_b = np.asarray(truth), np.asarray(scores_a), np.asarray(scores_b)
    swaps = np.asarray(swaps)
    if swaps.ndim != 2 or swaps.dtype != bool or swaps.shape[1] != len(truth):
        raise ValueError(
            f"swaps must be (n_swaps, {len(truth)}) bool, got {swaps.shape} {swaps.dtype}"
        )
    if scores_a.shape != scores_b.shape:
        raise ValueError(
            f"two runs are compared on the same items, got scores {scores_a.shape} and "
            f"{scores_b.shape}"
        )
    twice = None
    if sequences is not None:
        _, video = np.unique(np.asarray(sequences), return_inverse=True)
        twice = np.concatenate([video, video + len(video)])
    names = check_metrics(metrics, kind)
    found: dict[Metric, _Float] = {}
    for alike in _alike(names):
        seen = [
            _what_counts(scores, kind, alike[0], thresholds)
            for scores, thresholds in ((scores_a, thresholds_a), (scores_b, thresholds_b))
        ]
        of_a, of_b = (
            evaluate(
                np.concatenate([truth, truth]),
                np.concatenate([scores for scores, _ in seen]),
                kind,
                weights=weights,
                metrics=[_stem(name) for name in alike],
                sequences=twice,
                fps=fps,
            ).overall
            for weights in (np.hstack([~swaps, swaps]), np.hstack([swaps, ~swaps]))
        )
        unknown = np.nan if any(undefined for _, undefined in seen) else 0
        found |= {name.text: of_a[_stem(name)] - of_b[_stem(name)] + unknown for name in alike}
    return {name.text: found[name.text] for name in names}


def _alike(names: Sequence[MetricName]) -> Iterator[list[MetricName]]:
    """Yield metrics that look at the same thing, together."""
    for sort in dict.fromkeys((name.family, name.threshold) for name in names):
        yield [name for name in names if (name.family, name.threshold) == sort]


def _stem(name: MetricName) -> Metric:
    return name.text.partition("@")[0]


def _what_counts(
    scores: _Scores, kind: Kind, name: MetricName, thresholds: _Thresholds | None
) -> tuple[_Scores, bool]:
    """Return what a metric looks at, as scores (n_items, n_outputs) that it sees the same in.

    Also whether some output has no threshold, and the metric therefore no value.
    """
    if name.family == "calibration":
        return scores, False
    if name.family == "ranking":
        from scipy.stats import rankdata

        return rankdata(scores, axis=0), False
    chosen = check_thresholds((name,), thresholds, scores.shape[1])
    decision = decide(scores, kind, name.threshold, chosen)
    return decision.labels.astype(np.float32), bool(decision.undefined.any())
