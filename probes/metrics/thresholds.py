"""Operating points: where a score becomes a decision."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from probes.metrics.names import THRESHOLD_RULES, Kind, MetricName

__all__ = ["Decision", "check_thresholds", "decide", "thresholds_from"]

_Float = npt.NDArray[np.float64]
_Bool = npt.NDArray[np.bool_]


class Decision(NamedTuple):
    """The labels given by one threshold."""

    labels: _Bool
    """(n_items, n_outputs)."""
    undefined: _Bool
    """(n_outputs,) whether an output has no threshold."""


def thresholds_from(
    truth: npt.NDArray[Any], scores: npt.NDArray[np.floating[Any]], how: str
) -> _Float:
    """Choose a threshold for each output; the label is given where ``score >= threshold``.

    Candidates are the scores themselves. Among equally good ones the highest is taken. Give
    validation items: a threshold that was chosen by the items that it judges flatters them.

    Args:
        truth: (n_items, n_outputs) of 0 and 1.
        scores: (n_items, n_outputs) finite floats.
        how: ``youden_val`` maximises recall + specificity - 1, ``f1_val`` maximises F1.

    Returns:
        (n_outputs,) float64; NaN for an output whose items all have, or all lack, the label.

    Raises:
        ValueError: If an argument is not as above.

    References:
        Youden, Cancer 3 (1950) 32-35.
    """
    truth, scores = np.asarray(truth), np.asarray(scores)
    if how not in THRESHOLD_RULES:
        raise ValueError(f"a threshold is chosen by {' or '.join(THRESHOLD_RULES)}, got {how!r}")
    if truth.ndim != 2 or truth.shape != scores.shape or truth.size == 0:
        raise ValueError(
            "truth and scores must both be (n_items, n_outputs), at least one of each; "
            f"got {truth.shape} and {scores.shape}"
        )
    if not ((truth == 0) | (truth == 1)).all() or not np.isfinite(scores).all():
        raise ValueError("truth must be 0 or 1 and scores finite; leave out other items")
    columns = zip(truth.T == 1, scores.T, strict=True)
    return np.array([_threshold(labels, column, how) for labels, column in columns])


def _threshold(labels: _Bool, scores: npt.NDArray[np.floating[Any]], how: str) -> float:
    positives, negatives = int(labels.sum()), int((~labels).sum())
    if positives == 0 or negatives == 0:
        return np.nan
    candidates, index = np.unique(-scores, return_inverse=True)  # the highest score first
    hits = np.cumsum(np.bincount(index, weights=labels))
    called = np.cumsum(np.bincount(index))
    if how == "youden_val":
        # Times both numbers: whole, so that equals are equal.
        quality = hits * negatives - (called - hits) * positives
    else:
        quality = 2 * hits / (called + positives)
    return float(-candidates[np.argmax(quality)])


def check_thresholds(
    names: tuple[MetricName, ...], thresholds: Mapping[str, npt.ArrayLike] | None, n_outputs: int
) -> dict[str, _Float]:
    """See that the thresholds that some metrics need are there.

    Args:
        names: The metrics.
        thresholds: For a name of a rule, (n_outputs,).
        n_outputs: Number of outputs.

    Returns:
        For each rule that the metrics need, (n_outputs,) float64.

    Raises:
        ValueError: If one is missing or of another shape.
    """
    checked: dict[str, _Float] = {}
    for name in names:
        rule = name.threshold
        if not isinstance(rule, str):
            continue
        if thresholds is None or rule not in thresholds:
            raise ValueError(
                f"metric {name.text!r} needs validation items to choose its threshold by; give "
                "some, or name a number, as @0.5"
            )
        values = np.asarray(thresholds[rule], dtype=np.float64)
        if values.shape != (n_outputs,):
            raise ValueError(
                f"thresholds {rule} must be ({n_outputs},), one for each output; got {values.shape}"
            )
        checked[rule] = values
    return checked


def decide(
    scores: npt.NDArray[np.floating[Any]],
    kind: Kind,
    threshold: float | str | None,
    chosen: Mapping[str, _Float],
) -> Decision:
    """Give labels.

    Args:
        scores: (n_items, n_outputs).
        kind: Multiclass items get the class with the highest score, the first of equals.
        threshold: Of `MetricName`; None is 0.5.
        chosen: What `check_thresholds` returned.

    Returns:
        The labels, and which outputs have no threshold.
    """
    n_outputs = scores.shape[1]
    if kind == "multiclass":
        labels = np.zeros(scores.shape, dtype=bool)
        labels[np.arange(len(scores)), scores.argmax(axis=1)] = True
        return Decision(labels, np.zeros(n_outputs, dtype=bool))
    if isinstance(threshold, str):
        limits = chosen[threshold]
    else:
        limits = np.full(n_outputs, 0.5 if threshold is None else threshold)
    # In the precision of the scores: a float32 score written 0.7 reaches a threshold of 0.7.
    return Decision(scores >= limits.astype(scores.dtype), np.isnan(limits))
