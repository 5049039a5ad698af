"""A registration of pairs: what `probe register` does, from request to result."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from probes.features import store_facts, store_state
from probes.map_fit import MapFit, columns_of, judge_cases, refused
from probes.map_run import Key
from probes.map_split import Dealt, deal_items
from probes.metrics.cases import Case, evaluate_cases
from probes.pairs import StoredPairs, stored_pairs
from probes.protocol import DEFAULT_VALIDATION, Fold, split_digest
from probes.register_request import RegisterRequest, make_method
from probes.registration_run import PairRun, Registered
from probes.runs import Estimate, HeadFacts, Result, SplitFacts, TaskFacts, library_versions

__all__ = ["inputs_of", "register"]


def register(request: RegisterRequest, folder: Path) -> MapFit:
    """Register pairs of a store's items, and judge how well their labels agree then.

    Files of a pair are written as it is done.

    Args:
        request: What is asked.
        folder: Of the run.

    Returns:
        Result, one row a tested pair, and what was learned; but for the time that it took, the
        same again for the same request.

    Raises:
        StoreError: If the store lacks maps, images or masks, or cannot be read.
        ProbeError: If no pair can be registered, or the split does not allow it.
    """
    pairs = stored_pairs(request.store, request.kinds, request.labels, request.pairs)
    with refused(folder):
        dealt = _deal(request, pairs)
        run = PairRun(request, pairs, folder, inputs_of(request))
        for number, fold in enumerate(dealt.folds):
            run.do((0, number), fold)
        return MapFit(
            result=_result(request, run, dealt),
            predictions=_table(request, run, dealt.folds),
            arrays=run.arrays,
        )


def inputs_of(request: RegisterRequest) -> str:
    """Sum up all that decides a run's figures.

    Raises:
        StoreError: If the store cannot be read.
    """
    return request.digest(store=store_state(request.store), format=1)


def _deal(request: RegisterRequest, pairs: StoredPairs) -> Dealt:
    table = pairs.table
    if request.everything:
        nobody, all_of_them = np.zeros(0, np.intp), np.arange(len(pairs))
        fold = Fold(train=nobody, val=nobody, test=all_of_them)
        ids = table["item_id"].to_numpy(np.str_)
        facts = SplitFacts(
            protocol="all",
            column=None,
            folds=None,
            digest=split_digest(ids, ids, [fold]),
            n_train=0,
            n_test=len(pairs),
        )
        return Dealt(folds=[fold], facts=facts, left_out={})
    trains = request.method == "voxelmorph"
    return deal_items(
        table,
        column=request.split,
        folds=request.folds,
        validation=request.validation or (DEFAULT_VALIDATION if trains else None),
        needed=("train", "test") if trains else ("test",),
    )


# Judging


def _result(request: RegisterRequest, run: PairRun, dealt: Dealt) -> Result:
    pairs, table = run.pairs, run.pairs.table
    groups = table["group"].to_numpy(np.str_)
    judged = {
        when: _judge(request, {k: [getattr(one, when) for one in f] for k, f in run.found.items()},
                     dealt.folds, groups)
        for when in ("before", "after")
    }  # fmt: skip
    metrics, per_class = judged["after"]
    seconds = [one.seconds for found in run.found.values() for one in found]
    method = make_method(request.method, **request.settings)
    return Result(
        inputs=run.inputs,
        task=TaskFacts(
            name=request.task,
            targets=("mask",),
            kind="registration",
            classes=tuple(request.labels.values()),
            labels=dict(request.labels),
        ),
        head=HeadFacts(name=request.method, settings=vars(method).copy(), search=run.search),
        features=request.features,
        pool="maps",
        store=store_facts(request.store),
        split=dealt.facts,
        seeds=(0,),
        items=len(pairs),
        groups=len(set(groups)),
        left_out={**pairs.left_out, **dealt.left_out},
        metrics=metrics,
        per_class=per_class,
        unregistered=judged["before"][0],
        seconds=float(np.median(seconds)),
        subgroups={},
        delong={},
        auc_skipped=(),
        curve=None,
        versions=library_versions(),
        notes=_notes(request, pairs),
    )


def _judge(
    request: RegisterRequest,
    measured: Mapping[Key, Sequence[Case]],
    folds: Sequence[Fold],
    groups: npt.NDArray[np.str_],
) -> tuple[dict[str, Estimate], dict[str, dict[str, Estimate]]]:
    """Judge pairs as items of maps are judged, with the deviation over pairs beside."""
    names = list(request.labels.values())
    overall, per_class = judge_cases(
        measured, folds, groups, request.metrics, names, replicates=request.replicates
    )
    cases = [case for found in measured.values() for case in found]
    # Each pair alone: what papers print behind a mean.
    alone = evaluate_cases(cases, request.metrics, np.eye(len(cases), dtype=np.uint16))
    of_pairs = {name: _deviation(values) for name, values in alone.replicates.items()}
    overall = {
        name: found.model_copy(update={"sd_items": of_pairs[name]})
        for name, found in overall.items()
    }
    for index, label in enumerate(names):
        for name, values in alone.per_label_replicates.items():
            update = {"sd_items": _deviation(values[:, index])}
            per_class[label][name] = per_class[label][name].model_copy(update=update)
    return overall, per_class


def _deviation(values: npt.NDArray[np.float64]) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.std(ddof=1)) if len(known) > 1 else None


def _notes(request: RegisterRequest, pairs: StoredPairs) -> tuple[str, ...]:
    """Say what to know before a figure is set beside another's."""
    rule = request.pairs
    header = pairs.cases.store.header
    notes = [f"{rule.role} {rule.moving} is warped to {rule.role} {rule.fixed}"]
    options = header.recipe.reader.options
    if options.get("crop") == "mask":
        notes.append(
            "images are cut around the centroid of their TRUE labels (the reader's option "
            "crop=mask): what is registered has been centred by what it is judged by"
        )
    spacing = pairs.geometry(0)[0].spacing if rule.distances == "mm" else None
    notes.append(
        "distances are in mm on the rows' grid"
        if spacing
        else "distances are in voxels of the rows' grid"
    )
    if pairs.left_out:
        name, why = next(iter(pairs.left_out.items()))
        notes.append(f"{len(pairs.left_out)} pairs are left out; {name}: {why}")
    return tuple(notes)


def _table(request: RegisterRequest, run: PairRun, folds: Sequence[Fold]) -> pd.DataFrame:
    """One row a tested pair: what was counted and measured of each label, before and after."""
    names = list(request.labels.values())
    items = run.pairs.table
    rows = []
    for (seed, number), found in run.found.items():
        for pair, one in zip(folds[number].test.tolist(), found, strict=True):
            item = items.iloc[pair]
            row: dict[str, Any] = {"item_id": item["item_id"], "group": item["group"]}
            row |= {"seed": seed, "fold": number, "pair": item["pair"], "moving": item["moving"]}
            row |= _columns(one, names)
            rows.append(row)
    return pd.DataFrame(rows)


def _columns(one: Registered, names: Sequence[str]) -> dict[str, Any]:
    before = {f"unregistered.{k}": v for k, v in columns_of(one.before, names, "").items()}
    return columns_of(one.after, names, "") | before | {"seconds": one.seconds}
