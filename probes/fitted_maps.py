"""A run of maps read back: its heads asked about items of another store."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dinocache.errors import ProbeError
from dinocache.places import Where
from probes.features import check_same_recipe, open_store
from probes.heads import DENSE_HEADS, DenseHead
from probes.map_fit import columns_of, judge_cases
from probes.map_request import MapRequest
from probes.map_run import name_of
from probes.maps import StoredCases, stored_cases
from probes.metrics.cases import Case, measure_instances
from probes.neuron_fit import FIXED, joined, predicted_affinities, write_neurons
from probes.protocol import Fold
from probes.runs import Estimate, Result, read_arrays
from probes.segmentation import measured_labels, predicted_labels, write_predicted

__all__ = ["MapAnswer", "predict_maps"]


@dataclass(frozen=True, kw_only=True)
class MapAnswer:
    """What heads of maps say of items.

    Attributes:
        table: One row an item: `item_id`, `group`, and, where it has a mask, what was counted and
            measured.
        metrics: Name -> estimate, of the labels that were written; None where there are no masks,
            or the heads were fitted on this dataset.
        left_out: Item id -> why.
    """

    table: pd.DataFrame
    metrics: dict[str, Estimate] | None
    left_out: dict[str, str]


def predict_maps(
    folder: Path,
    store: Where,
    out: Path,
    *,
    replicates: int = 1000,
    trust: bool = False,
) -> MapAnswer:
    """Label every item of a store of the same recipe, by the mean over a run's heads.

    Label files are written as items are predicted; neurons are joined at the fixed threshold.

    Args:
        folder: Of the run.
        store: A path or a URL.
        out: Folder of label files.
        replicates: Of the bootstrap, where items have masks.
        trust: Whether what somebody declared of imported features counts.

    Returns:
        What was told; and figures, unless the store is of the dataset that the heads were fitted
        on.

    Raises:
        StoreError: If the store is missing, incomplete or damaged.
        ProbeError: If it is of another recipe, or a file cannot be written.
    """
    result = Result.read(folder)
    check_same_recipe(result.store, store, trust=trust, row_by_row=True)
    request = _request(result, store, replicates)
    neurons = request.kind == "instances"
    has_masks = "mask" in open_store(store).kinds
    sort: Any = ("instances" if neurons else "classes") if has_masks else None
    cases, left_out = stored_cases(store, request.features, request.labels, sort=sort)
    heads = list(_heads(folder, result).values())
    asking = _Asking(request=request, cases=cases, heads=heads, out=out)
    measured: list[Case] = []
    rows: list[dict[str, Any]] = []
    groups = dict(zip(cases.store.items["item_id"], cases.store.items["group"], strict=True))
    try:
        for item, item_id in enumerate(cases.item_ids):
            row = {"item_id": item_id, "group": str(groups[item_id])}
            case = asking.neurons(item) if neurons else asking.classes(item)
            if case is not None:
                measured.append(case)
                row |= columns_of(case, list(request.labels.values()), "")
            rows.append(row)
    except OSError as exc:
        raise ProbeError(f"cannot write below {out}: {exc.strerror or exc}") from exc
    except ValueError as exc:
        raise exc if isinstance(exc, ProbeError) else ProbeError(f"{store}: {exc}") from exc
    metrics = None
    if measured and cases.store.header.dataset != result.store.dataset:
        nobody, everybody = np.empty(0, np.intp), np.arange(len(rows))
        metrics, _ = judge_cases(
            {(0, 0): measured},
            [Fold(train=nobody, val=nobody, test=everybody)],
            np.array([row["group"] for row in rows]),
            request.metrics,
            list(request.labels.values()),
            replicates=replicates,
            present_only=request.present_only,
        )
    return MapAnswer(table=pd.DataFrame(rows), metrics=metrics, left_out=left_out)


@dataclass(frozen=True, kw_only=True)
class _Asking:
    """Heads, and what they are asked about."""

    request: MapRequest
    cases: StoredCases
    heads: list[DenseHead]
    out: Path

    def classes(self, item: int) -> Case | None:
        """Label an item, and measure the labels where it has a mask."""
        overlapping = bool(self.heads[0].to_arrays()["overlapping"])
        predicted = predicted_labels(self.heads, self.cases, item, overlapping=overlapping)
        write_predicted(self.out, self.cases, item, predicted, self.request.labels)
        if self.cases.sort is None:
            return None
        truth = self.cases.labels(item, 0, self.cases.n_rows(item))
        return measured_labels(self.cases, item, truth, predicted.labels, self.request)

    def neurons(self, item: int) -> Case | None:
        """Find the neurons of an item, and measure them where it has a mask."""
        ids = joined(predicted_affinities(self.heads, self.cases, item), [FIXED])[FIXED]
        write_neurons(self.out, name_of(self.cases, item), self.cases, item, ids)
        if self.cases.sort is None:
            return None
        return measure_instances(self.cases.labels(item, 0, self.cases.n_rows(item)), ids)


def _request(result: Result, store: Where, replicates: int) -> MapRequest:
    kind = result.task.kind
    assert kind == "segmentation" or kind == "instances"  # of pool "maps"
    return MapRequest(
        store=store,
        labels=result.task.labels,
        kind=kind,
        head=result.head.name,
        features=result.features,
        settings=result.head.settings,
        metrics=tuple(metric for metric in result.metrics if "@" not in metric),
        present_only=result.present_only,
        replicates=replicates,
    )


def _heads(folder: Path, result: Result) -> Mapping[tuple[int, int], DenseHead]:
    named = read_arrays(folder)
    try:
        return {
            key: DENSE_HEADS[result.head.name].from_arrays(
                {**result.head.settings, "seed": key[0]}, arrays
            )
            for key, arrays in named.items()
        }
    except (ValueError, IndexError, KeyError) as exc:
        raise ProbeError(f"{folder}: the heads cannot be read ({exc}); fit again") from exc
