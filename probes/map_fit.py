"""A fit of maps: labels of pixels or voxels told from patch features, and judged."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from dinocache.errors import ProbeError
from probes.features import open_store, store_facts, store_state
from probes.heads import make_dense_head
from probes.judging import estimate, spread_replicates
from probes.map_request import MapRequest
from probes.map_run import Key, MapRun, seeds_of_maps
from probes.map_split import MapSplit, split_maps
from probes.maps import StoredCases, stored_cases, views_of
from probes.metrics.cases import Case, evaluate_cases
from probes.metrics.glossary import GLOSSARY
from probes.neuron_fit import NeuronRun
from probes.protocol import Fold
from probes.runs import Estimate, HeadFacts, Result, TaskFacts, library_versions
from probes.segmentation import ClassRun
from probes.stats import group_bootstrap_weights, group_draws

__all__ = ["CELLS", "MapFit", "columns_of", "fit_maps", "inputs_of", "judge_cases", "refused"]

CELLS = ("tp", "fp", "fn", "tn")
"""Columns of predictions: what is counted of each class, and, without its name, of any."""


@dataclass(frozen=True, kw_only=True)
class MapFit:
    """What a fit of maps gives: everything that a run folder holds besides label files."""

    result: Result
    predictions: pd.DataFrame
    arrays: dict[str, npt.NDArray[Any]]


def fit_maps(request: MapRequest, folder: Path) -> MapFit:
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
    neurons = request.kind == "instances"
    cases, left_out = stored_cases(
        request.store,
        request.features,
        request.labels,
        sort="instances" if neurons else "classes",
    )
    with refused(folder):
        split = split_maps(request, cases)
        run = (NeuronRun if neurons else ClassRun)(request, split.cases, folder)
        for seed in seeds_of_maps(request):
            for number, fold in enumerate(split.folds):
                run.do((seed, number), fold)
        judged = _judge(request, run, split)
    return MapFit(
        result=_result(request, run, split, judged, left_out),
        predictions=_table(request, run, split),
        arrays={
            f"s{seed}.f{fold}.{name}": array
            for (seed, fold), head in run.heads.items()
            for name, array in head.to_arrays().items()
        },
    )


@contextlib.contextmanager
def refused(folder: Path) -> Iterator[None]:
    """Say what stops a run of maps or pairs as a person is told it.

    Raises:
        ProbeError: For what cannot be written to the run's folder, a library that is missing, and
            arrays that the layers below refuse.
    """
    try:
        yield
    except OSError as exc:
        raise ProbeError(f"cannot write the run {folder}: {exc.strerror or exc}") from exc
    except ModuleNotFoundError as exc:
        raise ProbeError(
            f"{exc.name} is not installed: `pip install 'dinocache[dense]'` brings what maps and "
            "pairs need"
        ) from exc
    except ValueError as exc:
        # The layers below know arrays only; their messages say what was expected and what came.
        raise exc if isinstance(exc, ProbeError) else ProbeError(str(exc)) from exc


def inputs_of(request: MapRequest) -> str:
    """Sum up all that decides a run's figures, without fitting.

    Raises:
        StoreError: If the store cannot be read.
    """
    views = [view for view in views_of(open_store(request.store), request.features) if view]
    return request.digest(store=store_state(request.store), views=views, format=3)


# Judging


@dataclass(frozen=True, kw_only=True)
class _Judged:
    metrics: dict[str, Estimate]
    per_class: dict[str, dict[str, Estimate]]


def judge_cases(
    measured: Mapping[Key, Sequence[Case]],
    folds: Sequence[Fold],
    groups: npt.NDArray[np.str_],
    metrics: Sequence[str],
    classes: Sequence[str],
    *,
    replicates: int,
    present_only: bool = False,
) -> tuple[dict[str, Estimate], dict[str, dict[str, Estimate]]]:
    """Compute every metric with its interval; groups are drawn once for all folds and seeds.

    Args:
        measured: Seed and fold -> its tested cases, in the fold's order.
        folds: Numbers of cases.
        groups: (n_cases,) str.
        metrics: Names.
        classes: Names of labels, in the cases' order.
        replicates: Of the bootstrap.
        present_only: As for `evaluate_cases`.

    Returns:
        (metric -> estimate, class -> metric -> estimate).
    """
    everybody = np.unique(np.concatenate([fold.test for fold in folds]))
    weights = np.zeros((replicates, len(groups)), np.uint16)
    draws: npt.NDArray[Any] | None
    if len(set(groups[everybody])) > 1:
        drawn = group_bootstrap_weights(groups[everybody], n_boot=replicates)
        weights[:, everybody] = drawn
        draws = group_draws(weights[:, everybody], groups[everybody])
    else:
        weights[:, everybody] = 1
        draws = None
    found = {}
    for key, cases in measured.items():
        some = weights[:, folds[key[1]].test]
        has_any = some.max(axis=1) > 0
        scores = evaluate_cases(cases, metrics, some[has_any], present_only=present_only)
        found[key] = scores, has_any
    overall: dict[str, Estimate] = {}
    per_class: dict[str, dict[str, Estimate]] = {name: {} for name in classes}
    for metric in metrics:
        overall[metric] = estimate(
            {key: scores.values[metric] for key, (scores, _) in found.items()},
            [spread_replicates(scores.replicates[metric], some) for scores, some in found.values()],
            draws,
        )
        if not all(metric in scores.per_label for scores, _ in found.values()):
            continue
        for index, name in enumerate(classes):
            per_class[name][metric] = estimate(
                {key: float(s.per_label[metric][index]) for key, (s, _) in found.items()},
                [
                    spread_replicates(s.per_label_replicates[metric][:, index], some)
                    for s, some in found.values()
                ],
                draws,
            )
    return overall, per_class


def _judge(request: MapRequest, run: MapRun, split: MapSplit) -> _Judged:
    metrics: dict[str, Estimate] = {}
    per_class: dict[str, dict[str, Estimate]] = {}
    for ending, measured in run.measured.items():
        overall, of_classes = judge_cases(
            measured,
            split.folds,
            split.groups,
            request.metrics,
            list(request.labels.values()),
            replicates=request.replicates,
            present_only=request.present_only,
        )
        metrics |= {f"{metric}{ending}": found for metric, found in overall.items()}
        for name, found in of_classes.items():
            per_class.setdefault(name, {}).update({f"{m}{ending}": e for m, e in found.items()})
    return _Judged(metrics=metrics, per_class=per_class)


def _result(
    request: MapRequest,
    run: MapRun,
    split: MapSplit,
    judged: _Judged,
    left_out: dict[str, str],
) -> Result:
    head = make_dense_head(request.head, **request.settings)
    views = [view for view in split.cases.views if view]
    return Result(
        inputs=inputs_of(request),
        task=TaskFacts(
            name=request.task,
            targets=("mask",),
            kind=request.kind,
            classes=tuple(request.labels.values()),
            labels=dict(request.labels),
        ),
        head=HeadFacts(name=request.head, settings=head.get_params(), search=run.search),
        features=request.features,
        pool="maps",
        store=store_facts(request.store),
        split=split.facts,
        seeds=seeds_of_maps(request),
        items=len(set(split.cases.item_ids)),
        groups=len(set(split.groups)),
        left_out=left_out | split.left_out,
        metrics=judged.metrics,
        per_class=judged.per_class,
        subgroups={},
        delong={},
        auc_skipped=(),
        curve=None,
        versions=library_versions(),
        views=tuple(views),
        present_only=request.present_only,
        notes=(*_notes(split.cases), *dict.fromkeys(run.notes)),
    )


def _notes(cases: StoredCases) -> tuple[str, ...]:
    """Say where this fit differs from others of its kind, whatever it found."""
    views = ", ".join(view for view in cases.views if view)
    notes = [
        f"augmented by cached views ({views or 'none there'}): turns by other angles than 90 "
        "degrees, which the paper draws at random, are not among them"
    ]
    if any(cases.geometry(item).is_resampled for item in range(len(cases))):
        notes.append(
            "judged on the rows of the store, which were resampled or cut; label files are on the "
            "files' own grids"
        )
    return tuple(notes)


def _table(request: MapRequest, run: MapRun, split: MapSplit) -> pd.DataFrame:
    """One row a tested case, seed and fold: what was counted and measured of each class."""
    names = list(request.labels.values())
    rows = []
    for seed, number in run.heads:
        for place, item in enumerate(split.folds[number].test.tolist()):
            span = split.cases.spans[item]
            row: dict[str, Any] = {"item_id": span.item_id, "group": split.groups[item]}
            row |= {"seed": seed, "fold": number, "start": span.start, "stop": span.stop}
            for ending, measured in run.measured.items():
                row |= columns_of(measured[seed, number][place], names, ending)
            rows.append(row)
    return pd.DataFrame(rows)


def columns_of(case: Case, names: Sequence[str], ending: str) -> dict[str, Any]:
    """Give what was counted and measured of a case, a column each: see docs/result-format.md."""
    found: dict[str, Any] = {}
    for index, name in enumerate([*names, None] if case.counts is not None else []):
        counts = case.counts[index].tolist() if case.counts is not None else []
        behind = "" if name is None else f".{name}"
        found |= {f"{cell}{behind}": n for cell, n in zip(CELLS, counts, strict=True)}
    for metric, values in case.values.items():
        if GLOSSARY[metric].per_label:
            for name, value in zip(names, values.tolist(), strict=True):
                found[f"{metric}{ending}.{name}"] = value
        else:
            found[f"{metric}{ending}"] = float(values[0])
    return found
