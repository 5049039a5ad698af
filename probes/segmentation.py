"""A fit of maps: labels of pixels or voxels told from patch features, and judged."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from dinocache.errors import ProbeError
from probes.features import row_picture, store_facts, store_state
from probes.figures import overlay_picture
from probes.heads import DenseHead, make_dense_head
from probes.judging import estimate, spread_replicates
from probes.label_files import write_labels
from probes.map_request import MapRequest
from probes.maps import StoredCases, stored_cases
from probes.metrics.cases import Case, evaluate_cases, measure_case
from probes.places import safe_name
from probes.protocol import DEFAULT_FOLDS, DEFAULT_VALIDATION, Fold, split_digest
from probes.runs import Estimate, HeadFacts, Result, SplitFacts, TaskFacts, library_versions
from probes.splits import (
    Split,
    check_no_leakage,
    hold_out,
    splits_by_column,
    stratified_group_folds,
)
from probes.stats import group_bootstrap_weights, group_draws

__all__ = ["Segmented", "segment"]

Key = tuple[int, int]
"""Seed and number of the fold."""
_OVERLAYS = 8
"""Items that are drawn of each head."""


@dataclass(frozen=True, kw_only=True)
class Segmented:
    """What a fit of maps gives: everything that a run folder holds besides label files."""

    result: Result
    predictions: pd.DataFrame
    arrays: dict[str, npt.NDArray[Any]]


def segment(request: MapRequest, folder: Path) -> Segmented:
    """Fit a head of maps, predict the test items and judge the predictions.

    Label files are written as items are predicted, and the state of a fit after each epoch: the
    same call goes on where it was interrupted.

    Args:
        request: What is asked.
        folder: Of the run.

    Returns:
        Result, one row a tested item, and what was learned; the same again for the same request.

    Raises:
        StoreError: If the store lacks maps or masks, or cannot be read.
        ProbeError: If labels and split do not allow this fit.
    """
    cases, left_out = stored_cases(request.store, request.features, request.labels)
    items = cases.store.items.set_index("item_id").loc[list(cases.item_ids)].reset_index()
    groups = items["group"].to_numpy(np.str_)
    try:
        folds, split, without = _draw(request, items, groups)
        left_out |= without
        run = _Run(request, cases, folder)
        for seed in range(request.seeds):
            for number, fold in enumerate(folds):
                run.do((seed, number), fold)
        judged = _judge(request, run.measured, folds, groups)
    except OSError as exc:
        raise ProbeError(f"cannot write the run {folder}: {exc.strerror or exc}") from exc
    except ValueError as exc:
        # The layers below know arrays only; their messages say what was expected and what came.
        raise exc if isinstance(exc, ProbeError) else ProbeError(str(exc)) from exc
    return Segmented(
        result=_result(request, cases, split, judged, left_out, groups),
        predictions=_table(request, cases, run.measured, folds, groups),
        arrays={
            f"s{seed}.f{fold}.{name}": array
            for (seed, fold), head in run.heads.items()
            for name, array in head.to_arrays().items()
        },
    )


# Who trains


def _draw(
    request: MapRequest, items: pd.DataFrame, groups: npt.NDArray[np.str_]
) -> tuple[list[Fold], SplitFacts, dict[str, str]]:
    """Deal items to sides; also gives who has none."""
    has_split = "split" in items and items["split"].notna().any()
    column = request.split or ("split" if request.folds is None and has_split else None)
    if column is not None and column not in items:
        raise ProbeError(
            f"--split: there is no column {column!r}; the store has {', '.join(items.columns)}"
        )
    alike = np.zeros(len(items), np.int64)  # labels of pixels are nothing to stratify items by
    known = np.ones(len(items), bool)
    if column is None:
        k = request.folds or DEFAULT_FOLDS
        numbers = stratified_group_folds(alike, groups, k=k, seed=0)
        splits = [
            Split(train=numbers != n, val=np.zeros(len(items), bool), test=numbers == n)
            for n in range(k)
        ]
    else:
        known = items[column].notna().to_numpy()
        splits = splits_by_column(items[column].to_numpy(dtype=object)[known])
    where = np.flatnonzero(known)
    selects = make_dense_head(request.head, **request.settings).selects
    share = request.validation or (DEFAULT_VALIDATION if selects else None)
    folds, held = [], False
    for split in splits:
        if share is not None and not split.val.any():
            split, held = hold_out(split, alike[known], groups[known], share=share), True
        check_no_leakage(groups[known], split)
        sides = (where[np.flatnonzero(side)] for side in (split.train, split.val, split.test))
        folds.append(Fold(**dict(zip(("train", "val", "test"), sides, strict=True))))
    ids = items["item_id"].to_numpy(np.str_)
    for side in ("train", "test"):
        if any(not len(getattr(fold, side)) for fold in folds):
            raise ProbeError(f"the {side} side has no items; check the split column")
    sizes = {
        side: float(np.mean([len(getattr(fold, side)) for fold in folds]))
        for side in ("train", "val", "test")
    }
    facts = SplitFacts(
        protocol="folds" if column is None else "column",
        column=column,
        folds=len(folds) if column is None or len(folds) > 1 else None,
        validation=share if held else None,
        digest=split_digest(ids, ids, folds),
        n_train=sizes["train"],
        n_val=sizes["val"],
        n_test=sizes["test"],
    )
    return folds, facts, dict.fromkeys(ids[~known].tolist(), f"no value of {column!r}")


# Fitting and predicting


class _Run:
    """Fits and predicts, one seed and fold after the other."""

    def __init__(self, request: MapRequest, cases: StoredCases, folder: Path) -> None:
        self.request, self.cases, self.folder = request, cases, folder
        self.heads: dict[Key, DenseHead] = {}
        self.measured: dict[Key, list[Case]] = {}
        self.drawn: dict[Key, int] = {}

    def do(self, key: Key, fold: Fold) -> None:
        """Fit one head, and ask it about its fold's test items."""
        settings = dict(self.request.settings)
        if "seed" in make_dense_head(self.request.head, **settings).get_params():
            settings["seed"] = key[0] + int(str(settings.get("seed", 0)))
        head = make_dense_head(self.request.head, **settings)
        self.folder.mkdir(parents=True, exist_ok=True)
        checkpoint = self.folder / f".fit.s{key[0]}.f{key[1]}.safetensors"
        self._tell(f"seed {key[0]}, fold {key[1]}: {len(fold.train)} items train")
        head.fit(
            self.cases.some(fold.train),
            len(self.request.labels),
            overlapping=self.cases.overlapping,
            validation=self.cases.some(fold.val) if head.selects else None,
            checkpoint=checkpoint,
        )
        self.heads[key] = head
        self.measured[key] = [self._case(key, head, item) for item in fold.test.tolist()]
        checkpoint.unlink(missing_ok=True)

    def _case(self, key: Key, head: DenseHead, item: int) -> Case:
        """Predict an item, write its labels, and measure them."""
        truth = self.cases.labels(item, 0, self.cases.n_rows(item))
        predicted = np.zeros_like(truth)
        for first, scores in head.predict(self.cases, item):
            last = first + scores.shape[-3]
            if self.cases.overlapping:
                predicted[:, first:last] = scores >= 0.5
            else:
                predicted[first:last] = scores.argmax(0)
        geometry = self.cases.geometry(item)
        place = self.folder / "labels" / f"s{key[0]}.f{key[1]}"
        write_labels(place, self.cases.item_ids[item], self._named(predicted), geometry)
        self._draw(key, item, truth, predicted)
        labels = range(1, len(self.request.labels) + 1)
        # 1 where the file does not say, so that distances are in pixels.
        spacing = geometry.spacing or (1.0, 1.0, 1.0)
        axes: tuple[float, ...] = spacing
        if truth.shape[-3] == 1:  # a picture has no surface before and behind it
            truth, predicted, axes = truth[..., 0, :, :], predicted[..., 0, :, :], spacing[1:]
        return measure_case(truth, predicted, labels, self.request.metrics, axes)

    def _draw(
        self, key: Key, item: int, truth: npt.NDArray[Any], predicted: npt.NDArray[Any]
    ) -> None:
        """Draw the row with the most labels of the first few items, where there is its image."""
        drawn = self.drawn.setdefault(key, 0)
        if drawn >= _OVERLAYS or "image" not in self.cases.store.kinds:
            return
        classes = range(1, len(self.request.labels) + 1)
        if not self.cases.overlapping:
            truth, predicted = (np.stack([v == c for c in classes]) for v in (truth, predicted))
        row = int(truth.sum(axis=(0, 2, 3)).argmax())
        item_id = self.cases.item_ids[item]
        store = self.cases.store.header.recipe.encoder.weights
        said = f" ({store.name})" if store.is_random else ""
        picture = overlay_picture(
            row_picture(self.cases.store, item_id, row),
            truth[:, row],
            predicted[:, row],
            list(self.request.labels.values()),
            title=f"{item_id}, row {row}{said}",
        )
        place = self.folder / "overlays" / f"s{key[0]}.f{key[1]}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{safe_name(item_id)}.png").write_bytes(picture)
        self.drawn[key] = drawn + 1

    def _named(self, predicted: npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
        """Give the mask's own values back: name of a file -> labels."""
        if self.cases.overlapping:
            names = self.request.labels.values()
            return {n: mask.astype(np.uint8) for n, mask in zip(names, predicted, strict=True)}
        values = np.array([0, *self.request.labels], np.uint8)
        return {"": values[predicted]}

    @staticmethod
    def _tell(text: str) -> None:
        if sys.stderr.isatty():
            print(text, file=sys.stderr)


# Judging


@dataclass(frozen=True, kw_only=True)
class _Judged:
    metrics: dict[str, Estimate]
    per_class: dict[str, dict[str, Estimate]]


def _judge(
    request: MapRequest,
    measured: Mapping[Key, Sequence[Case]],
    folds: Sequence[Fold],
    groups: npt.NDArray[np.str_],
) -> _Judged:
    """Compute every metric with its interval; groups are drawn once for all folds and seeds."""
    everybody = np.unique(np.concatenate([fold.test for fold in folds]))
    weights = np.zeros((request.replicates, len(groups)), np.uint16)
    if len(set(groups[everybody])) > 1:
        drawn = group_bootstrap_weights(groups[everybody], n_boot=request.replicates)
        weights[:, everybody] = drawn
        draws = group_draws(weights[:, everybody], groups[everybody])
    else:  # of one patient nothing can be drawn, and no interval is told
        weights[:, everybody] = 1
        draws = np.ones((request.replicates, 1), np.uint16)
    found = {}
    for key, cases in measured.items():
        some = weights[:, folds[key[1]].test]
        has_any = some.max(axis=1) > 0
        scores = evaluate_cases(
            cases, request.metrics, some[has_any], present_only=request.present_only
        )
        found[key] = scores, has_any
    names = list(request.labels.values())
    metrics: dict[str, Estimate] = {}
    per_class: dict[str, dict[str, Estimate]] = {name: {} for name in names}
    for metric in request.metrics:
        metrics[metric] = estimate(
            {key: scores.values[metric] for key, (scores, _) in found.items()},
            [spread_replicates(scores.replicates[metric], some) for scores, some in found.values()],
            draws,
        )
        if not all(metric in scores.per_label for scores, _ in found.values()):
            continue
        for index, name in enumerate(names):
            per_class[name][metric] = estimate(
                {key: float(s.per_label[metric][index]) for key, (s, _) in found.items()},
                [
                    spread_replicates(s.per_label_replicates[metric][:, index], some)
                    for s, some in found.values()
                ],
                draws,
            )
    return _Judged(metrics=metrics, per_class=per_class)


def _result(
    request: MapRequest,
    cases: StoredCases,
    split: SplitFacts,
    judged: _Judged,
    left_out: dict[str, str],
    groups: npt.NDArray[np.str_],
) -> Result:
    head = make_dense_head(request.head, **request.settings)
    views = [view for view in cases.views if view]
    return Result(
        inputs=request.digest(store=store_state(request.store), views=views, format=2),
        task=TaskFacts(
            name=request.task,
            targets=("mask",),
            kind="segmentation",
            classes=tuple(request.labels.values()),
        ),
        head=HeadFacts(name=request.head, settings=head.get_params()),
        features=request.features,
        pool="maps",
        store=store_facts(request.store),
        split=split,
        seeds=tuple(range(request.seeds)),
        items=len(cases),
        groups=len(set(groups)),
        left_out=left_out,
        metrics=judged.metrics,
        per_class=judged.per_class,
        subgroups={},
        delong={},
        auc_skipped=(),
        curve=None,
        versions=library_versions(),
        views=tuple(views),
    )


def _table(
    request: MapRequest,
    cases: StoredCases,
    measured: Mapping[Key, Sequence[Case]],
    folds: Sequence[Fold],
    groups: npt.NDArray[np.str_],
) -> pd.DataFrame:
    """One row a tested item, seed and fold: what was counted and measured of each class."""
    rows = []
    for (seed, number), of_key in measured.items():
        for item, case in zip(folds[number].test.tolist(), of_key, strict=True):
            row: dict[str, Any] = {"item_id": cases.item_ids[item], "group": groups[item]}
            row |= {"seed": seed, "fold": number}
            for index, name in enumerate(request.labels.values()):
                if case.counts is not None:
                    counts = case.counts[index].tolist()
                    row |= {f"{c}.{name}": n for c, n in zip(_CELLS, counts, strict=True)}
                for metric, values in case.values.items():
                    if len(values) == len(request.labels):
                        row[f"{metric}.{name}"] = float(values[index])
            rows.append(row)
    return pd.DataFrame(rows)


_CELLS = ("tp", "fp", "fn", "tn")
