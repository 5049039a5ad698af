"""Classes of pixels and voxels: what heads predict of an item, as labels, files and figures."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dinocache.errors import ProbeError
from dinocache.geometry import Geometry, restore
from probes.features import row_picture
from probes.figures import overlay_picture
from probes.heads import DenseHead
from probes.label_files import write_labels
from probes.map_request import MapRequest
from probes.map_run import Key, MapRun, folder_of_key, name_of
from probes.maps import StoredCases
from probes.metrics.cases import Case, measure_case
from probes.protocol import Fold

__all__ = [
    "ClassRun",
    "mean_scores",
    "measured_labels",
    "predicted_labels",
    "write_predicted",
]

_ROWS_TOGETHER = 32
"""Of masks, that are looked at together."""
Labels = npt.NDArray[Any]
"""(rows, Y, X) uint8 of exclusive classes, or (classes, rows, Y, X) bool."""


class Predicted(NamedTuple):
    """What was predicted of an item."""

    labels: Labels
    """On its rows."""
    restored: Labels | None
    """On its file's own grid, where rows lie otherwise between its voxels; else None. (I, J, K), or
    (classes, I, J, K) bool."""


def predicted_labels(
    heads: Sequence[DenseHead], cases: StoredCases, item: int, *, overlapping: bool
) -> Predicted:
    """Label an item by the mean probability of some heads.

    Where rows were resampled, labels of the file's own voxels are told from probabilities that are
    interpolated between rows, not from labels.

    Args:
        heads: At least one, fitted alike.
        cases: With the item; its mask is not read.
        item: Which.
        overlapping: Whether the heads' classes may overlap.

    Returns:
        Exclusive classes: the most probable, (rows, Y, X) uint8. Classes that overlap: those of at
        least 0.5, (classes, rows, Y, X) bool.
    """
    geometry = cases.geometry(item)
    blocks, kept = [], []
    for scores in mean_scores(heads, cases, item):
        blocks.append(scores >= 0.5 if overlapping else scores.argmax(0).astype(np.uint8))
        if geometry.is_resampled:
            kept.append(scores.astype(np.float16))
    labels = np.concatenate(blocks, axis=1 if overlapping else 0)
    if not kept:
        return Predicted(labels, None)
    scores = _whole_item(np.concatenate(kept, axis=1), cases, item)
    return Predicted(labels, _restored(scores, geometry, overlapping=overlapping))


def _restored(
    scores: npt.NDArray[np.floating[Any]], geometry: Geometry, *, overlapping: bool
) -> Labels:
    """Label the voxels of the file from scores (classes, rows, Y, X); background beyond them."""
    best: npt.NDArray[Any] | None = None
    found: list[npt.NDArray[Any]] = []
    for number, of_class in enumerate(scores):
        values = restore(of_class.astype(np.float32), geometry, method="linear")
        if overlapping:
            found.append(values >= 0.5)
        elif best is None:
            best, found = values, [np.zeros(values.shape, np.uint8)]
        else:
            higher = values > best
            found[0][higher] = number
            best[higher] = values[higher]
    return np.stack(found) if overlapping else found[0]


def _whole_item(rows: npt.NDArray[Any], cases: StoredCases, item: int) -> npt.NDArray[Any]:
    """Put 0 for the rows of an item that are none of the case's: (..., rows, Y, X)."""
    span = cases.spans[item]
    behind = cases.store.n_rows(span.item_id) - span.stop
    if not behind and not span.start:
        return rows
    return np.pad(rows, [(0, 0)] * (rows.ndim - 3) + [(span.start, behind), (0, 0), (0, 0)])


def mean_scores(
    heads: Sequence[DenseHead], cases: StoredCases, item: int
) -> Iterator[npt.NDArray[np.float32]]:
    """Yield what heads predict of an item, block by block of its rows, the mean over the heads."""
    # Heads of one sort give the same blocks.
    for blocks in zip(*(head.predict(cases, item) for head in heads), strict=True):
        yield blocks[0][1] if len(blocks) == 1 else _mean([scores for _, scores in blocks])


def _mean(scores: Sequence[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
    return np.asarray(np.mean(scores, axis=0, dtype=np.float32))


def write_predicted(
    folder: Path, cases: StoredCases, item: int, predicted: Predicted, names: Mapping[int, str]
) -> None:
    """Write labels with the mask's own values; of classes that overlap a file each.

    Rows of the item that are none of the case's are background.
    """
    files: dict[str, npt.NDArray[np.uint8]]
    restored = predicted.restored is not None
    labels = _whole_item(predicted.labels, cases, item)
    if predicted.restored is not None:
        labels = predicted.restored
    if labels.dtype == bool:
        files = {
            name: mask.astype(np.uint8) for name, mask in zip(names.values(), labels, strict=True)
        }
    else:
        files = {"": np.array([0, *names], np.uint8)[labels]}
    write_labels(folder, name_of(cases, item), files, cases.geometry(item), restored=restored)


def measured_labels(
    cases: StoredCases, item: int, truth: Labels, labels: Labels, request: MapRequest
) -> Case:
    """Measure labels on the mask's own grid."""
    # 1 where the file does not say, so that distances are in pixels.
    spacing = cases.geometry(item).spacing or (1.0, 1.0, 1.0)
    axes: tuple[float, ...] = spacing
    if truth.shape[-3] == 1:  # a picture has no surface before and behind it
        truth, labels, axes = truth[..., 0, :, :], labels[..., 0, :, :], spacing[1:]
    return measure_case(truth, labels, range(1, len(request.labels) + 1), request.metrics, axes)


class ClassRun(MapRun):
    """Fits heads of classes."""

    def __init__(self, request: MapRequest, cases: StoredCases, folder: Path) -> None:
        super().__init__(request, cases, folder)
        self.n_classes, self.overlapping = len(request.labels), cases.overlapping

    def check(self, fold: Fold) -> None:
        """Note classes that no training item has; refuse a fold that has none of them."""
        missing = set(range(self.n_classes))
        for item in fold.train.tolist():
            for row in range(0, self.cases.n_rows(item), _ROWS_TOGETHER):
                stop = min(row + _ROWS_TOGETHER, self.cases.n_rows(item))
                labels = self.cases.labels(item, row, stop)
                if self.overlapping:
                    missing -= {number for number in missing if labels[number].any()}
                else:
                    missing -= {int(value) - 1 for value in np.unique(labels)}
                if not missing:
                    return
        names = list(self.request.labels.values())
        absent = ", ".join(names[number] for number in sorted(missing))
        if len(missing) == self.n_classes:
            raise ProbeError(
                f"the masks of all {len(fold.train)} training items are empty: none has {absent}; "
                "see that --labels names the values that the masks hold"
            )
        self.notes.append(f"no training item of a fold has {absent}; what is told of it is nothing")

    def ask(self, key: Key, item: int) -> dict[str, Case]:
        """See `MapRun`."""
        head = self.heads[key]
        predicted = predicted_labels([head], self.cases, item, overlapping=self.overlapping)
        place = folder_of_key(self.folder / "labels", key)
        write_predicted(place, self.cases, item, predicted, self.request.labels)
        labels = predicted.labels
        truth = self.cases.labels(item, 0, self.cases.n_rows(item))
        if self.is_drawn(key):
            self._draw(key, item, truth, labels)
        return {"": measured_labels(self.cases, item, truth, labels, self.request)}

    def _draw(self, key: Key, item: int, truth: Labels, labels: Labels) -> None:
        """Draw the row with the most labels."""
        classes = range(1, len(self.request.labels) + 1)
        if not self.overlapping:
            truth, labels = (np.stack([v == c for c in classes]) for v in (truth, labels))
        row = int(truth.sum(axis=(0, 2, 3)).argmax())
        span = self.cases.spans[item]
        picture = overlay_picture(
            row_picture(self.cases.store, span.item_id, span.start + row),
            truth[:, row],
            labels[:, row],
            list(self.request.labels.values()),
            title=self.title(item, span.start + row),
        )
        self.draw(key, item, picture)
