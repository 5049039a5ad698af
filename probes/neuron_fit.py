"""Neurons of EM volumes: what heads predict of a volume, joined, as files and figures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from probes.features import row_picture
from probes.figures import affinity_picture
from probes.heads import DenseHead
from probes.map_request import MapRequest
from probes.map_run import Key, MapRun, folder_of_key, name_of
from probes.maps import StoredCases
from probes.metrics.cases import Case, measure_instances
from probes.neurons import agglomerate, choose_threshold, fragments, write_instances
from probes.protocol import Fold
from probes.runs import SearchFacts
from probes.segmentation import mean_scores

__all__ = ["CHOSEN", "FIXED", "NeuronRun", "joined", "predicted_affinities", "write_neurons"]

FIXED = 0.5
"""Threshold of the agglomeration that the paper's predecessors take."""
CANDIDATES = tuple(round(0.1 * n, 1) for n in range(1, 10))
CHOSEN = "@val"
"""Behind the names of metrics at the threshold that known sections chose."""
_LAST = 0.2
"""Of the training rows, the last ones, that choose where no others are named."""


def predicted_affinities(
    heads: Sequence[DenseHead], cases: StoredCases, item: int
) -> npt.NDArray[np.float32]:
    """Predict the affinities of a case: (3, rows, Y, X) in [0, 1], the mean over heads."""
    found = np.empty((3, cases.n_rows(item), *cases.size(item)), np.float32)
    at = 0
    for block in mean_scores(heads, cases, item):
        found[:, at : at + block.shape[1]] = block
        at += block.shape[1]
    return np.clip(found, 0, 1, out=found)


def joined(
    affinities: npt.NDArray[np.float32], thresholds: Sequence[float]
) -> dict[float, npt.NDArray[Any]]:
    """Cut affinities into fragments and join them: threshold -> (rows, Y, X) ids."""
    rising = sorted(set(thresholds))
    found = agglomerate(affinities, fragments(affinities), rising)
    return dict(zip(rising, found, strict=True))


def write_neurons(
    folder: Path, name: str, cases: StoredCases, item: int, ids: npt.NDArray[Any]
) -> None:
    """Write ids as CREMI does: `volumes/labels/neuron_ids` of <name>.h5."""
    folder.mkdir(parents=True, exist_ok=True)
    spacing = cases.geometry(item).spacing
    nm = None if spacing is None else [1e6 * side for side in spacing]
    write_instances(folder / f"{name}.h5", ids, nm)


class NeuronRun(MapRun):
    """Fits heads of affinities; neurons are judged at a fixed threshold and at a chosen one."""

    n_classes, overlapping = 3, False

    def __init__(self, request: MapRequest, cases: StoredCases, folder: Path) -> None:
        super().__init__(request, cases, folder)
        self._thresholds: dict[Key, float] = {}
        self._losses: dict[Key, Mapping[float, float]] = {}

    def choose(self, key: Key, fold: Fold) -> None:
        """Choose the threshold with the least variation of information, mean over volumes.

        By rows that are named for it; else by the last fifth of the training rows of each volume,
        which the head has seen. Never by rows that are tested.
        """
        known = self.cases.some(fold.val) if len(fold.val) else self._last(fold)
        tried: list[Mapping[float, float]] = []
        for item in range(len(known)):
            truth = known.labels(item, 0, known.n_rows(item))
            if not truth.any():
                continue
            affinities = predicted_affinities([self.heads[key]], known, item)
            tried.append(choose_threshold(affinities, truth, CANDIDATES).voi)
        losses = {t: float(np.mean([found[t] for found in tried])) for t in CANDIDATES if tried}
        self._losses[key] = losses
        self._thresholds[key] = min(losses, key=lambda t: (losses[t], t)) if losses else FIXED

    def _last(self, fold: Fold) -> StoredCases:
        spans = [self.cases.spans[item] for item in fold.train.tolist()]
        return self.cases.of(
            [
                span._replace(start=span.stop - max(1, round(_LAST * (span.stop - span.start))))
                for span in spans
            ]
        )

    @property
    def search(self) -> SearchFacts:
        """Of each head, in the order of seeds and folds."""
        return SearchFacts(
            grid={"threshold": CANDIDATES},
            chosen=tuple({"threshold": one} for one in self._thresholds.values()),
            losses=tuple(tuple(of.values()) for of in self._losses.values()),
        )

    def ask(self, key: Key, item: int) -> dict[str, Case]:
        """See `MapRun`."""
        truth = self.cases.labels(item, 0, self.cases.n_rows(item))
        affinities = predicted_affinities([self.heads[key]], self.cases, item)
        at = {"": FIXED, CHOSEN: self._thresholds[key]}
        found = joined(affinities, list(at.values()))
        place, name = folder_of_key(self.folder / "labels", key), name_of(self.cases, item)
        cases = {}
        for ending, threshold in at.items():
            write_neurons(place, f"{name}{ending}", self.cases, item, found[threshold])
            cases[ending] = measure_instances(truth, found[threshold])
        if self.is_drawn(key):
            self._draw(key, item, truth, affinities, found[FIXED])
        return cases

    def _draw(
        self,
        key: Key,
        item: int,
        truth: npt.NDArray[Any],
        affinities: npt.NDArray[np.float32],
        ids: npt.NDArray[Any],
    ) -> None:
        """Draw the section in the middle."""
        row, span = len(ids) // 2, self.cases.spans[item]
        picture = affinity_picture(
            row_picture(self.cases.store, span.item_id, span.start + row),
            affinities[:, row],
            ids[row],
            truth[row],
            title=self.title(item, span.start + row),
        )
        self.draw(key, item, picture)
