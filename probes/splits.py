"""Who trains and who tests: official columns, folds by group, and a check for leaks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "Split",
    "check_no_leakage",
    "draw_fraction",
    "draw_shots",
    "hold_out",
    "split_by_column",
    "splits_by_column",
    "stratified_group_folds",
]

_SPELLINGS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
_SHOWN = 3
"""Offenders that a message names."""

_Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """Which items are on which side; an item may be on none.

    Raises:
        ValueError: If the masks differ in length or an item is on two sides.
    """

    train: _Mask
    """(n_items,) bool."""
    val: _Mask
    """(n_items,) bool, all False where there is no validation side."""
    test: _Mask
    """(n_items,) bool."""

    def __post_init__(self) -> None:
        shapes = {side.shape for side in self.sides().values()}
        if len(shapes) != 1 or len(shapes.pop()) != 1:
            raise ValueError(
                "train, val and test must be masks (n_items,) of the same items, got "
                f"{self.train.shape}, {self.val.shape} and {self.test.shape}"
            )
        twice = np.flatnonzero(sum(side.astype(int) for side in self.sides().values()) > 1)
        if len(twice):
            raise ValueError(f"an item is on one side at most; item {twice[0]} is on two")

    def sides(self) -> dict[str, _Mask]:
        """Return the masks by name."""
        return {"train": self.train, "val": self.val, "test": self.test}


def split_by_column(values: npt.ArrayLike) -> Split:
    """Read a dataset's own split.

    Args:
        values: (n_items,) the side of each item, in one of the usual spellings (train, training;
            val, valid, validation, dev; test, testing), in any case.

    Returns:
        The split.

    Raises:
        ValueError: If a value is none of those spellings.
    """
    sides = np.array([str(value).strip().lower() for value in np.asarray(values).tolist()])
    known = [spelling for spellings in _SPELLINGS.values() for spelling in spellings]
    unknown = sorted(set(sides.tolist()) - set(known))
    if unknown:
        raise ValueError(
            f"a split column holds {', '.join(known)}; got {_first(unknown)}. "
            "Rename these values, or leave out their items."
        )
    train, val, test = (np.isin(sides, spellings) for spellings in _SPELLINGS.values())
    return Split(train=train, val=val, test=test)


def splits_by_column(values: npt.ArrayLike) -> list[Split]:
    """Read a split that a dataset brings, or one by folds.

    Args:
        values: (n_items,) sides as for `split_by_column`; or numbers of folds, beside which some
            items may have the side test.

    Returns:
        One split; or one a fold. Where there is a test side, each fold is for validation once and
        the test side always tests, else each fold tests once.

    Raises:
        ValueError: If a value is neither, or there is one fold only.
    """
    texts = np.array([str(value).strip().lower() for value in np.asarray(values).tolist()])
    names = sorted({t for t in texts.tolist() if t.isdecimal()}, key=int)
    if not names:
        return [split_by_column(values)]
    tested = np.isin(texts, _SPELLINGS["test"])
    if unknown := sorted(set(texts[~tested].tolist()) - set(names)):
        raise ValueError(
            f"a split column with folds holds their numbers, and test; got {_first(unknown)}"
        )
    if len(names) < 2:
        raise ValueError(f"a split by folds needs at least 2, got fold {names[0]} only")
    nobody = np.zeros_like(tested)
    splits = []
    for name in names:
        fold = texts == name
        others = ~fold & ~tested
        if tested.any():
            splits.append(Split(train=others, val=fold, test=tested))
        else:
            splits.append(Split(train=others, val=nobody, test=fold))
    return splits


def hold_out(
    split: Split, labels: npt.ArrayLike, groups: npt.ArrayLike, *, share: float, seed: int = 0
) -> Split:
    """Keep a share of the training groups for validation, with about the same share of each label.

    Args:
        split: Without a validation side.
        labels: (n_items,) one label for each item.
        groups: (n_items,) the group of each item.
        share: Of the training groups, between 0 and 1.
        seed: Of the draw.

    Returns:
        The split with a validation side.

    Raises:
        ValueError: If there are too few groups.

    References:
        scikit-learn, ``train_test_split``.
    """
    from sklearn.model_selection import train_test_split

    label_of_item, group_of_item = np.asarray(labels), np.asarray(groups)
    names, first = np.unique(group_of_item[split.train], return_index=True)
    strata = label_of_item[split.train][first]
    kinds, counts = np.unique(strata, return_counts=True)
    strata = np.where(np.isin(strata, kinds[counts < 2]), kinds[counts.argmax()], strata)
    _, held = train_test_split(names, test_size=share, random_state=seed, stratify=strata)
    val = split.train & np.isin(group_of_item, held)
    return Split(train=split.train & ~val, val=val, test=split.test)


def draw_shots(
    split: Split,
    y: npt.ArrayLike,
    groups: npt.ArrayLike,
    names: Sequence[str],
    *,
    shots: int,
    seed: int = 0,
) -> Split:
    """Keep a few training items of each class, of different groups as far as there are.

    The rarest class draws first, and what it draws counts for every class that an item has: with
    several labels an item, a common label can come to more than ``shots``. Items without any label
    are drawn like a class of their own.

    Args:
        split: Whose training side is drawn from.
        y: (n_items, n_outputs) of 0 and 1.
        groups: (n_items,) the group of each item.
        names: Of the outputs.
        shots: Items a class, at least 1.
        seed: Of the draw.

    Returns:
        The split with a smaller training side.

    Raises:
        ValueError: If a class has fewer training items than ``shots``.
    """
    labels, group_of_item = np.asarray(y).astype(bool), np.asarray(groups)
    classes = [*zip(names, labels.T, strict=True), ("none of them", ~labels.any(axis=1))]
    order = np.random.default_rng(seed).permutation(len(labels))
    drawn = np.zeros(len(labels), dtype=bool)
    for name, has in sorted(classes, key=lambda named: int((named[1] & split.train).sum())):
        if name == "none of them" and not has.any():
            continue
        lacking = shots - int((drawn & has).sum())
        candidates = order[(has & split.train & ~drawn)[order]]
        if lacking > len(candidates):
            raise ValueError(
                f"{shots} items of each class were to be drawn; {name!r} has "
                f"{int((has & split.train).sum())} on the training side: ask for fewer"
            )
        _, first = np.unique(group_of_item[candidates], return_index=True)
        again = np.ones(len(candidates), dtype=bool)
        again[first] = False
        again |= np.isin(group_of_item[candidates], group_of_item[drawn])
        drawn[candidates[np.argsort(again, kind="stable")][: max(lacking, 0)]] = True
    return Split(train=drawn, val=split.val, test=split.test)


def draw_fraction(
    split: Split, labels: npt.ArrayLike, groups: npt.ArrayLike, *, fraction: float, seed: int = 0
) -> Split:
    """Keep a share of the training groups, with about the same share of each label.

    Args:
        split: Whose training side is drawn from.
        labels: (n_items,) one label for each item.
        groups: (n_items,) the group of each item.
        fraction: Of the training groups, between 0 and 1.
        seed: Of the draw.

    Returns:
        The split with a smaller training side.

    Raises:
        ValueError: If there are too few groups.
    """
    held = hold_out(split, labels, groups, share=1 - fraction, seed=seed)
    return Split(train=held.train, val=split.val, test=split.test)


def stratified_group_folds(
    labels: npt.ArrayLike, groups: npt.ArrayLike, *, k: int = 5, seed: int = 0
) -> npt.NDArray[np.int64]:
    """Deal groups into folds so that each fold has about the same share of every label.

    Fold i tests on its own items and trains on the others. Every fold then tests and trains on
    every label: otherwise the call is refused.

    Args:
        labels: (n_items,) what to stratify by: one label for each item, of any sort. For
            multi-label targets, for example the rarest label that the item has.
        groups: (n_items,) the group of each item; no group is in two folds.
        k: Number of folds, at least 2.
        seed: Seed of the shuffle, at least 0.

    Returns:
        (n_items,) int64, the fold of each item, 0 ... k - 1.

    Raises:
        ValueError: If the arguments are not as above, if there are fewer than ``k`` groups, in
            all or with some label, or if the folds came out without some label.

    References:
        scikit-learn, ``StratifiedGroupKFold``, which deals the groups, greedily.
    """
    names, label_of_item = _number(labels, "labels")
    _, group_of_item = _number(groups, "groups")
    _check_folds(names, label_of_item, group_of_item, k)
    folds = _deal(label_of_item, group_of_item, k, seed)
    for fold in range(k):
        tested = np.bincount(label_of_item[folds == fold], minlength=len(names))
        if not tested.all():
            raise ValueError(
                f"each of {k} folds needs items of every class, fold {fold} got none of "
                f"{names[np.argmin(tested)]!r}; try another seed (now {seed}) or fewer folds"
            )
    return folds


def check_no_leakage(groups: npt.ArrayLike, split: Split) -> None:
    """Refuse a split that has one group on two sides.

    Args:
        groups: (n_items,) the group of each item.
        split: The sides of the same items.

    Raises:
        ValueError: If a group has items on more than one side, or the lengths differ.
    """
    names, group_of_item = _number(groups, "groups")
    if len(group_of_item) != len(split.train):
        raise ValueError(
            f"groups and split must be of the same items, got {len(group_of_item)} groups for "
            f"{len(split.train)} items"
        )
    on_side = {
        side: np.bincount(group_of_item[mask], minlength=len(names)) > 0
        for side, mask in split.sides().items()
    }
    leaked = np.flatnonzero(np.sum(list(on_side.values()), axis=0) > 1)
    if len(leaked):
        offenders = [
            f"{names[group]!r} in " + " and ".join(side for side in on_side if on_side[side][group])
            for group in leaked
        ]
        raise ValueError(
            f"no group may be on two sides of a split; {len(leaked)} of {len(names)} are: "
            f"{_first(offenders)}. Mend the split or the groups, or use folds."
        )


def _number(values: npt.ArrayLike, what: str) -> tuple[list[Any], npt.NDArray[np.int64]]:
    """Return the distinct values, sorted, and each item's as a number (n_items,)."""
    values = np.asarray(values)
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"{what} must be (n_items,), one for each item; got {values.shape}")
    for row, value in enumerate(values.tolist()):
        if not isinstance(value, str | int | float) or value != value:  # None, NaN
            raise ValueError(
                f"{what} must be strings or numbers; row {row} has {value!r}. "
                "Fill it in or leave out the item."
            )
    names, number_of_item = np.unique(values, return_inverse=True)
    return names.tolist(), number_of_item


def _check_folds(
    names: Sequence[Any],
    label_of_item: npt.NDArray[np.int64],
    group_of_item: npt.NDArray[np.int64],
    k: int,
) -> None:
    if len(label_of_item) != len(group_of_item):
        raise ValueError(
            "labels and groups must be of the same items, got "
            f"{len(label_of_item)} and {len(group_of_item)}"
        )
    if k < 2:
        raise ValueError(f"folds must be at least 2, got k={k}")
    n_groups = len(np.unique(group_of_item))
    if n_groups < k:
        raise ValueError(f"{k} folds need at least {k} groups, got {n_groups}; ask for fewer folds")
    pairs = np.unique(np.stack([label_of_item, group_of_item]), axis=1)
    groups_of_label = np.bincount(pairs[0])
    rarest = int(np.argmin(groups_of_label))
    n_rarest = int(groups_of_label[rarest])
    if n_rarest < k:
        way_out = f"at most {n_rarest} folds" if n_rarest > 1 else "merge it or leave its items out"
        raise ValueError(
            f"each of {k} folds needs items of every class; the rarest class, {names[rarest]!r}, "
            f"has {n_rarest} group(s): {way_out}"
        )


def _deal(
    label_of_item: npt.NDArray[np.int64], group_of_item: npt.NDArray[np.int64], k: int, seed: int
) -> npt.NDArray[np.int64]:
    from sklearn.model_selection import StratifiedGroupKFold  # takes a second

    dealer = StratifiedGroupKFold(n_splits=k, shuffle=True, random_state=seed)
    folds = np.empty(len(label_of_item), dtype=np.int64)
    for fold, (_, tested) in enumerate(dealer.split(label_of_item, label_of_item, group_of_item)):
        folds[tested] = fold
    return folds


def _first(offenders: Sequence[str]) -> str:
    """Join the first few, and say how many more there are."""
    more = len(offenders) - _SHOWN
    return ", ".join(offenders[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
