"""What segmentations of many cases are worth, for many weightings of the cases at once.

Each case is measured once and leaves some numbers; truth and prediction need not be in memory
together for more than one case. A bootstrap replicate is then a weight for each case.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from probes.metrics import components, frames, overlap
from probes.metrics.glossary import MaskMetric, check_mask_metrics
from probes.metrics.instances import compare_instances
from probes.metrics.surfaces import check_spacing, surface_distances

__all__ = ["Case", "CaseScores", "evaluate_cases", "measure_case", "measure_instances"]

_Float = npt.NDArray[np.float64]
_Bool = npt.NDArray[np.bool_]
_Int = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Case:
    """What the metrics need of one case: an image, a frame or a volume.

    Attributes:
        counts: (n_labels + 1, 4) int64 of `probes.metrics.overlap.overlap_counts`, the last row
            of any label; None of neurons.
        values: For each metric that does not follow from counts, (n_labels,) float64 or, if it has
            no value for each label, (1,); NaN where it is not defined.
    """

    counts: _Int | None
    values: Mapping[str, _Float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class CaseScores:
    """What `evaluate_cases` found; NaN marks a value that is not defined.

    Attributes:
        values: Of each metric, over all cases.
        per_label: (n_labels,) of each metric that has a value for each label.
        replicates: (n_replicates,) of each metric; none without weights.
        per_label_replicates: (n_replicates, n_labels).
        n_cases: For each mean over cases the number of cases in it, weights aside: (n_labels,),
            or (1,) of a metric without a value for each label.
        missed: (n_labels + 1,) cases whose truth has the label and whose prediction does not, last
            any label; they have no surface distance. Empty of neurons.
        invented: (n_labels + 1,) the other way round.
    """

    values: dict[str, float]
    per_label: dict[str, _Float]
    replicates: dict[str, _Float]
    per_label_replicates: dict[str, _Float]
    n_cases: dict[str, _Int]
    missed: _Int
    invented: _Int


def measure_case(
    truth: npt.NDArray[Any],
    prediction: npt.NDArray[Any],
    labels: Sequence[int],
    metrics: Sequence[str],
    spacing: Sequence[float] | None = None,
) -> Case:
    """Take from one case what metrics need.

    Args:
        truth: (Y, X) or (Z, Y, X) integers, 0 and labels that are not named being background; or,
            of classes that may overlap, (n_labels, ...) bool.
        prediction: Of the same shape and sort.
        labels: The labels that count, above 0.
        metrics: Names, see `probes.metrics.glossary`. Counts are always taken, so that what
            follows from them costs nothing more.
        spacing: Between voxels, mm, one number for each axis; None is 1, and none for volumes.

    Returns:
        The numbers.

    Raises:
        ValueError: If an argument is not as above.
    """
    entries = check_mask_metrics(metrics)
    for entry in entries:
        if entry.family == "instance":
            raise ValueError(f"metric {entry.name!r} is of instances; use measure_instances")
    truth, prediction = overlap.check_masks(truth, prediction, labels)
    overlapping = truth.dtype == bool
    check_spacing(spacing, truth.ndim - overlapping)
    measured = [entry for entry in entries if entry.family in ("surface", "component")]
    values = {e.name: np.full(len(labels) if e.per_label else 1, np.nan) for e in measured}
    for place, true, predicted in _masks(truth, prediction, labels, measured):
        for family in ("surface", "component"):
            here = [e for e in measured if e.family == family and place in _places(e, len(labels))]
            if not here:
                continue
            found = _OF_MASKS[family](true, predicted, spacing, {entry.base for entry in here})
            for entry in here:
                values[entry.name][place if entry.per_label else 0] = found[entry.base]
    return Case(counts=overlap.overlap_counts(truth, prediction, labels), values=values)


def _places(entry: MaskMetric, n_labels: int) -> range:
    """Return the masks that a metric looks at: those of labels, or the one of any label.

    With one label these are the same, and measured once.
    """
    if entry.per_label:
        return range(n_labels)
    return range(0, 1) if n_labels == 1 else range(n_labels, n_labels + 1)


def _masks(
    truth: npt.NDArray[Any],
    prediction: npt.NDArray[Any],
    labels: Sequence[int],
    measured: Sequence[MaskMetric],
) -> Iterator[tuple[int, _Bool, _Bool]]:
    """Yield place and masks, (Y, X) or (Z, Y, X) bool, of what some metrics look at."""
    wanted = {place for entry in measured for place in _places(entry, len(labels))}
    for place in sorted(wanted):
        if truth.dtype == bool:
            some = slice(None) if place == len(labels) else slice(place, place + 1)
            true, predicted = np.any(truth[some], axis=0), np.any(prediction[some], axis=0)
            yield place, np.asarray(true), np.asarray(predicted)
        elif place == len(labels):
            yield place, np.isin(truth, labels), np.isin(prediction, labels)
        else:
            yield place, truth == labels[place], prediction == labels[place]


def _of_surfaces(
    truth: _Bool, prediction: _Bool, spacing: Sequence[float] | None, bases: set[str]
) -> dict[str, float]:
    distances = surface_distances(truth, prediction, spacing)
    return {base: getattr(distances, base) for base in bases}


def _of_components(
    truth: _Bool, prediction: _Bool, spacing: Sequence[float] | None, bases: set[str]
) -> dict[str, float]:
    if spacing is None:
        raise ValueError(f"{' and '.join(sorted(bases))} need the spacing of the voxels, mm")
    return {base: getattr(components, base)(truth, prediction, spacing) for base in bases}


_OF_MASKS: Mapping[str, Callable[..., dict[str, float]]] = MappingProxyType(
    {"surface": _of_surfaces, "component": _of_components}
)


def measure_instances(truth: npt.NDArray[Any], prediction: npt.NDArray[Any]) -> Case:
    """Take from one volume of neurons what the metrics of instances need.

    Args:
        truth: (Y, X) or (Z, Y, X) integers of at least 0, an id for each neuron; 0 is left out.
        prediction: Of the same shape, an id for each segment.

    Returns:
        The numbers.

    Raises:
        ValueError: If an argument is not as above.
    """
    scores = compare_instances(truth, prediction)
    names = ("voi", "voi_split", "voi_merge", "arand")
    return Case(counts=None, values={name: np.array([getattr(scores, name)]) for name in names})


def evaluate_cases(
    cases: Sequence[Case],
    metrics: Sequence[str],
    weights: npt.NDArray[Any] | None = None,
    *,
    present_only: bool = False,
) -> CaseScores:
    """Compare the segmentations of cases with their truth.

    A mean over cases leaves out those in which the metric is not defined; a mean over labels those
    labels for which no case has a value. A replicate that drew no such case of a label is NaN
    there and overall, rather than a mean over fewer labels. What is pooled over cases is taken
    from weighted sums of their counts.

    Args:
        cases: At least one; all of the same labels.
        metrics: Names, see `probes.metrics.glossary`.
        weights: (n_replicates, n_cases) of at least 0, not all 0 in a row: how often a case was
            drawn.
        present_only: Means over cases of overlaps and distances leave out a label's cases whose
            truth does not have it, though something was predicted. Volumes and what is pooled
            take all.

    Returns:
        Values over all cases, and those of each replicate.

    Raises:
        ValueError: If an argument is not as above, or a case was not measured for a metric.
    """
    entries = check_mask_metrics(metrics)
    if not cases:
        raise ValueError("there must be at least one case")
    drawn = _checked_weights(weights, len(cases))
    ones = np.ones((1, len(cases)))
    counts = _stacked_counts(cases)
    scores = CaseScores(
        values={},
        per_label={},
        replicates={},
        per_label_replicates={},
        n_cases={},
        missed=_alone(counts, 2),
        invented=_alone(counts, 1),
    )
    for entry in entries:
        measured = _measured(entry, cases, counts, present_only)
        # Apart, so that a value does not depend on the weights, not even in its last bit.
        (value,), columns = measured.over(ones)
        scores.values[entry.name] = float(value)
        scores.replicates[entry.name], of_drawn = measured.over(drawn)
        if columns is not None and of_drawn is not None:
            scores.per_label[entry.name] = columns[0]
            scores.per_label_replicates[entry.name] = of_drawn
        if isinstance(measured, _Means):
            scores.n_cases[entry.name] = measured.number()
    return scores


def _checked_weights(weights: npt.NDArray[Any] | None, n_cases: int) -> _Float:
    """Return (n_replicates, n_cases) float64, without replicates if there are no weights."""
    if weights is None:
        return np.zeros((0, n_cases))
    weights = np.asarray(weights)
    if weights.ndim != 2 or weights.shape[1] != n_cases:
        raise ValueError(f"weights must be (n_replicates, {n_cases}), got {weights.shape}")
    if not np.isfinite(weights).all() or weights.min(initial=0) < 0:
        raise ValueError("weights must be finite and at least 0; count how often a case is drawn")
    if (weights.sum(axis=1) == 0).any():
        empty = int(np.argmin(weights.sum(axis=1)))
        raise ValueError(f"weights must not all be 0; those of replicate {empty} are")
    return weights.astype(np.float64)


def _stacked_counts(cases: Sequence[Case]) -> _Float | None:
    """Return (n_cases, n_labels + 1, 4); None of instances."""
    counts = [case.counts for case in cases if case.counts is not None]
    shapes = {array.shape for array in counts}
    if not counts:
        return None
    if len(counts) < len(cases) or len(shapes) > 1:
        raise ValueError(
            "cases must all have counts of the same labels, got "
            f"{', '.join(str(shape) for shape in sorted(shapes))} of {len(counts)} of {len(cases)}"
        )
    return np.stack(counts).astype(np.float64)


def _alone(counts: _Float | None, cell: int) -> _Int:
    """Return how many cases have voxels of a label in truth (2) or prediction (1) alone."""
    if counts is None:
        return np.zeros(0, dtype=np.int64)
    neither = (counts[..., 0] == 0) & (counts[..., 3 - cell] == 0)
    return np.asarray((neither & (counts[..., cell] > 0)).sum(axis=0), dtype=np.int64)


_Values = tuple[_Float, _Float | None]
"""Overall (n_rows,), and (n_rows, n_labels) where each label has a value."""


class _Means(NamedTuple):
    """A metric that is a mean over cases; values are NaN where they are not defined."""

    columns: _Float | None
    """(n_cases, n_labels)."""
    whole: _Float | None
    """(n_cases,) what the overall value is a mean of; None if that is the mean over labels."""

    def number(self) -> _Int:
        """Return how many cases have a value: (n_labels,), or (1,)."""
        parts = [part for part in self if part is not None]
        return np.atleast_1d(np.count_nonzero(~np.isnan(parts[0]), axis=0)).astype(np.int64)

    def over(self, rows: _Float) -> _Values:
        """Return means with weights (n_rows, n_cases)."""
        columns = None if self.columns is None else _weighted_mean(self.columns, rows)
        if self.whole is not None:
            return _weighted_mean(self.whole[:, np.newaxis], rows)[:, 0], columns
        assert self.columns is not None  # one of the two is given
        assert columns is not None
        known = np.asarray(np.any(~np.isnan(self.columns), axis=0))
        return _mean_over_labels(columns, known), columns


class _Pooled(NamedTuple):
    """A metric of the counts of all cases together."""

    name: str
    counts: _Float
    """(n_cases, n_labels + 1, 4)."""

    def over(self, rows: _Float) -> _Values:
        """Return what follows from counts summed with weights (n_rows, n_cases)."""
        flat = rows @ self.counts.reshape(len(self.counts), -1)
        sums = flat.reshape(len(rows), *self.counts.shape[1:])
        if self.name == "pooled_binary_iou":
            return overlap.iou(sums[:, -1]), None
        columns = (overlap.dice if self.name == "dice_agg" else overlap.iou)(sums[:, :-1])
        if self.name == "pooled_iou":
            return overlap.iou(sums[:, :-1].sum(axis=1)), columns
        known = ~np.isnan(overlap.iou(self.counts[:, :-1].sum(axis=0)))
        return _mean_over_labels(columns, known), columns


def _measured(
    entry: MaskMetric, cases: Sequence[Case], counts: _Float | None, present_only: bool
) -> _Means | _Pooled:
    if entry.family in ("overlap", "frame"):
        if counts is None:
            raise ValueError(f"metric {entry.name!r} needs counts; these cases are of instances")
        if entry.over == "pooled":
            return _Pooled(entry.name, counts)
        if entry.family == "frame":
            return _of_frames(entry.name, counts)
        values = _RATIOS[entry.base](_looked_at(entry, counts))
    else:
        values = _taken(entry.name, cases)
    if present_only and counts is not None and entry.family in ("overlap", "surface"):
        cells = _looked_at(entry, counts)
        values = np.where(cells[..., 0] + cells[..., 2] > 0, values, np.nan)
    return _Means(values, None) if entry.per_label else _Means(None, values[:, 0])


def _looked_at(entry: MaskMetric, counts: _Float) -> _Float:
    """Return the counts of any label, (n_cases, 1, 4), or of each."""
    return counts[:, -1:] if entry.is_binary else counts[:, :-1]


def _taken(name: str, cases: Sequence[Case]) -> _Float:
    """Return (n_cases, n_columns) of a metric that each case was measured for."""
    for number, case in enumerate(cases):
        if name not in case.values:
            raise ValueError(f"case {number} was not measured for {name!r}; name it there, too")
    return np.stack([case.values[name] for case in cases])


def _of_frames(name: str, counts: _Float) -> _Means:
    labels = counts[:, :-1]
    if name == "instrument_iou":
        return _Means(frames.present_iou(labels), frames.challenge_iou(labels))
    if name == "isinet_iou":
        return _Means(overlap.iou(labels), frames.isinet_iou(labels))
    if name == "mc_iou":
        return _Means(overlap.iou(labels), None)
    return _Means(None, frames.twoclass_iou(counts[:, -1]))


_RATIOS: Mapping[str, Callable[[_Float], _Float]] = MappingProxyType(
    {
        "dice": overlap.dice,
        "iou": overlap.iou,
        "precision": overlap.precision,
        "recall": overlap.recall,
    }
)


def _weighted_mean(values: _Float, rows: _Float) -> _Float:
    defined = ~np.isnan(values)
    total = rows @ np.where(defined, values, 0)
    weight = rows @ defined
    means: _Float = np.full(total.shape, np.nan)
    return np.divide(total, weight, out=means, where=weight > 0)


def _mean_over_labels(columns: _Float, known: _Bool) -> _Float:
    """Return (n_rows,) over the labels that have a value if every case counts."""
    if not known.any():
        return np.full(len(columns), np.nan)
    return np.asarray(columns[:, known].mean(axis=1))
