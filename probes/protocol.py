"""Who trains, who chooses and who is tested, fold by fold."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dinocache.errors import ProbeError
from probes.cohort import Cohort, split_column
from probes.request import FitRequest
from probes.runs import SplitFacts
from probes.splits import (
    Split,
    check_no_leakage,
    draw_fraction,
    draw_shots,
    hold_out,
    splits_by_column,
    stratified_group_folds,
)
from probes.targets import Targets

__all__ = ["Fold", "draw_folds", "split_digest"]

DEFAULT_FOLDS = 5
DEFAULT_VALIDATION = 0.2
"""Share of the training groups that chooses, where something is to be chosen and nobody is."""

_Rows = npt.NDArray[np.intp]


@dataclass(frozen=True, kw_only=True)
class Fold:
    """Row numbers: of the training cohort, and, for `test`, of the tested one."""

    train: _Rows
    val: _Rows
    test: _Rows


def draw_folds(
    request: FitRequest, trained: Cohort, tested: Cohort, *, validates: bool
) -> tuple[list[Fold], SplitFacts]:
    """Deal items to sides.

    Args:
        request: What is asked.
        trained: Items that train and choose.
        tested: Items that are tested; the same object where no other store is.
        validates: Whether something is chosen by validation items: where a split has none, a share
            of the training groups is held out.

    Returns:
        At least one fold, and the facts for `result.json`.

    Raises:
        ProbeError: If a group is on two sides, or a class is absent from a side that needs it.
        ValueError: If labels and groups do not allow the split.
    """
    column = split_column(request, trained.items)
    share = request.validation or (DEFAULT_VALIDATION if validates else None)
    strata = trained.targets.strata
    others = tested is not trained
    splits, held = [], False
    for split in _base_splits(request, trained, column, fold_tests=not others):
        if share is not None and not split.val.any():
            split, held = hold_out(split, strata, trained.groups, share=share), True
        splits += _draw_training(request, trained, split)
    for split in splits:
        check_no_leakage(trained.groups, split)
    everybody = np.arange(len(tested.ids))
    folds = [
        Fold(
            train=np.flatnonzero(split.train),
            val=np.flatnonzero(split.val),
            test=everybody if others else np.flatnonzero(split.test),
        )
        for split in splits
    ]
    _check_folds(folds, trained.targets, tested.targets)
    sizes = {
        side: float(np.mean([len(getattr(fold, side)) for fold in folds]))
        for side in ("train", "val", "test")
    }
    return folds, SplitFacts(
        protocol="folds" if column is None else "column",
        column=column,
        folds=len(folds) // request.repeats if column is None or len(folds) > 1 else None,
        repeats=request.repeats,
        shots=request.shots,
        fraction=request.fraction,
        validation=share if held else None,
        digest=split_digest(trained.ids, tested.ids, folds),
        n_train=sizes["train"],
        n_val=sizes["val"],
        n_test=sizes["test"],
    )


def _base_splits(
    request: FitRequest, cohort: Cohort, column: str | None, *, fold_tests: bool
) -> list[Split]:
    """Give the splits before training items are held out or drawn.

    Where another store is tested, a fold has nobody to test, and chooses instead.
    """
    if column is not None:
        splits = splits_by_column(cohort.items[column].to_numpy(dtype=object))
    else:
        splits = list(_dealt(request, cohort))
    if fold_tests or len(splits) == 1:
        return splits
    nobody = np.zeros(len(cohort.ids), bool)
    return [
        split if split.val.any() else Split(train=split.train, val=split.test, test=nobody)
        for split in splits
    ]


def _dealt(request: FitRequest, cohort: Cohort) -> Iterator[Split]:
    k = request.folds if request.folds is not None else DEFAULT_FOLDS
    draws = request.shots is not None or request.fraction is not None
    for repeat in range(1 if draws else request.repeats):
        numbers = stratified_group_folds(_strata(cohort, k), cohort.groups, k=k, seed=repeat)
        for number in range(k):
            test = numbers == number
            yield Split(train=~test, val=np.zeros_like(test), test=test)


def _draw_training(request: FitRequest, cohort: Cohort, split: Split) -> list[Split]:
    """Draw few shots, or a fraction, from the training side, as often as is asked."""
    y, groups, targets = cohort.targets.y, cohort.groups, cohort.targets
    if request.shots is not None:
        shots = request.shots
        return [
            draw_shots(split, y, groups, targets.classes, shots=shots, seed=seed)
            for seed in range(request.repeats)
        ]
    if request.fraction is not None:
        fraction = request.fraction
        return [
            draw_fraction(split, targets.strata, groups, fraction=fraction, seed=seed)
            for seed in range(request.repeats)
        ]
    return [split]


def _strata(cohort: Cohort, k: int) -> npt.NDArray[np.str_]:
    """Give what folds are stratified by (n_items,).

    With several labels a stratum is the rarest label of each item. One too thin for k folds goes
    to the commonest: a few patients without any label must not stop a fit. A label that fewer than
    k patients have does stop it.
    """
    targets, groups = cohort.targets, cohort.groups
    if targets.kind != "multilabel":
        return targets.strata
    for name, has in zip(targets.classes, targets.y.T, strict=True):
        n_groups = len(set(groups[has == 1]))
        if n_groups < k:
            raise ProbeError(
                f"each of {k} folds needs items of every label; {name!r} has {n_groups} group(s): "
                "ask for fewer folds, or leave that target out"
            )
    sizes = {str(s): len(set(groups[targets.strata == s])) for s in np.unique(targets.strata)}
    thin = [name for name, size in sizes.items() if size < k]
    return np.where(
        np.isin(targets.strata, thin), max(sizes, key=sizes.__getitem__), targets.strata
    )


def _check_folds(folds: Sequence[Fold], trained: Targets, tested: Targets) -> None:
    """A class that training never saw gives a meaningless head; say which."""
    for number, fold in enumerate(folds):
        sides = {"train": (fold.train, trained), "test": (fold.test, tested)}
        if len(fold.val):
            sides["val"] = fold.val, trained
        for side, (rows, targets) in sides.items():
            if len(rows) == 0:
                raise ProbeError(f"the {side} side has no items; check the split column")
            lacking = [
                c
                for c, share in zip(targets.classes, targets.y[rows].mean(0), strict=True)
                if share in (0, 1)
            ]
            if lacking and (side == "train" or targets.kind == "binary"):
                raise ProbeError(
                    f"class {lacking[0]!r}: the {side} side (fold {number}) has only items with "
                    "it or only items without it; use another split or fewer folds"
                )


def split_digest(
    ids: npt.NDArray[np.str_], tested_ids: npt.NDArray[np.str_], folds: Sequence[Fold]
) -> str:
    """Sum up who is on which side; the order of the items does not count.

    Args:
        ids: Of the items that train and choose.
        tested_ids: Of those that are tested.
        folds: Which of them.
    """
    lines = [
        f"{named[row]}\t{side}\t{number}\n"
        for number, fold in enumerate(folds)
        for side, named in (("train", ids), ("val", ids), ("test", tested_ids))
        for row in getattr(fold, side)
    ]
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()
