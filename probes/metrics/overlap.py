"""Counts of voxels that two segmentations of one case share, and the ratios that follow.

Counts are whole numbers that can be added up, over labels or cases: what is aggregated over cases
comes from the same counts as the value of a case.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["check_masks", "dice", "iou", "overlap_counts", "precision", "recall"]

_Float = npt.NDArray[np.float64]
_Int = npt.NDArray[np.int64]
_Counts = npt.NDArray[np.int64] | npt.NDArray[np.float64]

_BLOCK = 2**22
"""Voxels that are counted at once: some 32 MB of indices."""


def overlap_counts(
    truth: npt.NDArray[Any], prediction: npt.NDArray[Any], labels: Sequence[int]
) -> _Int:
    """Count the voxels of one case, label by label and of any label together.

    Args:
        truth: (Y, X) or (Z, Y, X) integers, 0 and labels that are not named being background; or,
            of classes that may overlap, (n_labels, Y, X) or (n_labels, Z, Y, X) bool.
        prediction: Of the same shape and sort.
        labels: The labels to count, above 0; of overlapping classes a name for each of them.

    Returns:
        (n_labels + 1, 4) int64 of true positive, false positive, false negative and true negative
        voxels; the last row is of any label against the background.

    Raises:
        ValueError: If an argument is not as above.
    """
    truth, prediction = check_masks(truth, prediction, labels)
    if truth.dtype == bool:
        return _counts_of_classes(truth, prediction)
    codes = _Codes(labels)
    n = len(labels) + 1
    table = np.zeros((n, n), dtype=np.int64)
    for some_true, some_predicted in _blocks(truth, prediction):
        cells = codes(some_true) * n + codes(some_predicted)
        table += np.bincount(cells, minlength=n * n).reshape(n, n)
    return _counts_of_table(table)


def _counts_of_table(table: _Int) -> _Int:
    """Return the counts of a table (true, predicted) whose first row and column are background."""
    true_positive = np.diagonal(table)[1:]
    predicted, true = table.sum(axis=0)[1:], table.sum(axis=1)[1:]
    of_labels = np.stack([true_positive, predicted - true_positive, true - true_positive])
    of_any = [table[1:, 1:].sum(), table[0, 1:].sum(), table[1:, 0].sum()]
    counts = np.column_stack([of_labels, of_any]).T
    return np.column_stack([counts, table.sum() - counts.sum(axis=1)]).astype(np.int64)


def _counts_of_classes(truth: npt.NDArray[Any], prediction: npt.NDArray[Any]) -> _Int:
    """Return the counts of classes that may overlap."""
    counts = np.zeros((len(truth) + 1, 4), dtype=np.int64)
    # Plane by plane, as the union over classes is needed, too.
    for row in range(truth.shape[1]):
        true, predicted = truth[:, row], prediction[:, row]
        for label, (one, other) in enumerate(
            zip([*true, true.any(axis=0)], [*predicted, predicted.any(axis=0)], strict=True)
        ):
            both = np.count_nonzero(one & other)
            more, less = np.count_nonzero(other) - both, np.count_nonzero(one) - both
            counts[label] += (both, more, less, one.size - both - more - less)
    return counts


class _Codes:
    """The place of each voxel's label in the list of labels, from 1; 0 if it is not there."""

    def __init__(self, labels: Sequence[int]) -> None:
        self._top = max(labels)
        self._table = np.zeros(self._top + 2, dtype=np.int64)
        self._table[np.asarray(labels)] = np.arange(1, len(labels) + 1)

    def __call__(self, block: npt.NDArray[Any]) -> _Int:
        top = self._top + 1
        if np.iinfo(block.dtype).max > top:
            block = np.minimum(block, block.dtype.type(top))
        return np.asarray(self._table[block])


def _blocks(
    truth: npt.NDArray[Any], prediction: npt.NDArray[Any]
) -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
    """Yield some rows of both at a time, flat."""
    step = max(1, _BLOCK // max(1, truth[0].size))
    for start in range(0, len(truth), step):
        some = slice(start, start + step)
        blocks = truth[some].ravel(), prediction[some].ravel()
        for name, block in zip(("truth", "prediction"), blocks, strict=True):
            if block.dtype.kind == "i" and block.min(initial=0) < 0:
                raise ValueError(
                    f"{name} must be labels of at least 0, got {block.min()}; make what is not "
                    "labelled background"
                )
        yield blocks


def check_masks(
    truth: npt.NDArray[Any], prediction: npt.NDArray[Any], labels: Sequence[int]
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """See that two segmentations can be compared; see `overlap_counts`.

    Args:
        truth: Of one case.
        prediction: Of the same case.
        labels: The labels to compare.

    Returns:
        Both as arrays.

    Raises:
        ValueError: If shapes, types or labels do not suit.
    """
    truth, prediction = np.asarray(truth), np.asarray(prediction)
    if truth.shape != prediction.shape:
        raise ValueError(
            f"truth and prediction must have one shape, got {truth.shape} and {prediction.shape}; "
            "bring the prediction to the grid of the truth"
        )
    named = [int(label) for label in labels]
    if not named or len(set(named)) < len(named) or min(named) < 1 or max(named) > 2**16:
        raise ValueError(f"labels must differ and be from 1 to 65536, at least one; got {named}")
    kinds = {truth.dtype.kind, prediction.dtype.kind}
    if kinds == {"b"}:
        if truth.ndim not in (3, 4) or len(truth) != len(named) or truth.size == 0:
            raise ValueError(
                f"bool masks must be ({len(named)}, Y, X) or ({len(named)}, Z, Y, X), a class for "
                f"each label; got {truth.shape}"
            )
    elif not kinds <= {"u", "i"}:
        raise ValueError(
            "truth and prediction must both be integers or both be bool, got "
            f"{truth.dtype} and {prediction.dtype}"
        )
    elif truth.ndim not in (2, 3) or truth.size == 0:
        raise ValueError(f"label maps must be (Y, X) or (Z, Y, X) and not empty; got {truth.shape}")
    return truth, prediction


# Ratios, each of (..., 4) counts or of their weighted sums: NaN where there is nothing in either
# mask, and 0 where there is something in one of them alone.


def dice(counts: _Counts) -> _Float:
    """Return 2TP / (2TP + FP + FN).

    Args:
        counts: (..., 4) of `overlap_counts`, or sums of them.

    Returns:
        (...) float64, NaN where neither has a voxel.
    """
    tp, fp, fn = _cells(counts)
    return _ratio(2 * tp, 2 * tp + fp + fn, tp + fp + fn)


def iou(counts: _Counts) -> _Float:
    """Return TP / (TP + FP + FN); see `dice`."""
    tp, fp, fn = _cells(counts)
    return _ratio(tp, tp + fp + fn, tp + fp + fn)


def precision(counts: _Counts) -> _Float:
    """Return TP / (TP + FP), 0 if nothing was predicted though there is something; see `dice`."""
    tp, fp, fn = _cells(counts)
    return _ratio(tp, tp + fp, tp + fp + fn)


def recall(counts: _Counts) -> _Float:
    """Return TP / (TP + FN), 0 if something was predicted though there is nothing; see `dice`."""
    tp, fp, fn = _cells(counts)
    return _ratio(tp, tp + fn, tp + fp + fn)


def _cells(counts: _Counts) -> tuple[_Float, _Float, _Float]:
    numbers = np.asarray(counts, dtype=np.float64)
    return numbers[..., 0], numbers[..., 1], numbers[..., 2]


def _ratio(numerator: _Float, denominator: _Float, either: _Float) -> _Float:
    values = np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)
    return np.where(either > 0, values, np.nan)
