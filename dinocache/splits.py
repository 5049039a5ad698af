"""Splits that follow from a rule: the same on every machine, and never one group on two sides.

Groups (patients) are drawn, in the order of their names, by scikit-learn's own functions, so that
a rule which a paper wrote with them gives its lists.
"""

import hashlib
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from dinocache.errors import TableError
from dinocache.manifest import Folds, Parts, SplitRule, split_column

__all__ = ["add_splits", "check_no_leaks", "digest_of", "side_of", "split_columns"]

SIDES = ("train", "val", "test")
_SPELLINGS = {
    "training": "train",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "testing": "test",
}


def split_columns(table: pd.DataFrame) -> list[str]:
    """Name the columns of an item table that hold a split."""
    return [c for c in table.columns if c == "split" or c.startswith(split_column(""))]


def side_of(value: str) -> str:
    """Bring the usual spellings of a side to train, val and test; a fold's number stays."""
    plain = value.strip().lower()
    return _SPELLINGS.get(plain, plain)


def add_splits(
    table: pd.DataFrame, rules: Mapping[str, SplitRule], name: str, undrawn: list[str] | None = None
) -> pd.DataFrame:
    """Add a column for each rule: `train`, `val`, `test`, or the number of a fold.

    Args:
        table: Of items, with `item_id` and `group`.
        rules: Name -> rule.
        name: The dataset's, for messages.
        undrawn: Where it is given, a draw that is impossible leaves its column empty and is said
            here.

    Returns:
        The table with the columns `split.<name>`; an item that a rule leaves out has none there.

    Raises:
        TableError: If a column that a rule names is not there, or a draw is impossible.
    """
    table = table.copy()
    for split, rule in rules.items():
        said = f"{name}: split {split!r}"
        if lacking := [column for column in _needed(rule) if column not in table]:
            raise TableError(f"{said}: the items have no column {lacking[0]!r}")
        try:
            with warnings.catch_warnings():
                # A stratum of fewer groups than folds: they are dealt as far as they go.
                warnings.filterwarnings("ignore", message="The least populated class")
                found = _folds(table, rule) if isinstance(rule, Folds) else _parts(table, rule)
        except ValueError as exc:
            text = f"{said} cannot be drawn: {' '.join(str(exc).split())}"
            if undrawn is None:
                raise TableError(text) from exc
            undrawn.append(text)
            found = pd.Series(pd.NA, table.index)
        table[split_column(split)] = found.astype("string")
    return table


def _needed(rule: SplitRule) -> list[str]:
    strata = (
        rule.stratify if isinstance(rule, Folds) else [c for s in rule.steps for c in s.stratify]
    )
    return [*strata, *([split_column(rule.base)] if rule.base else [])]


def _groups(table: pd.DataFrame, base: str | None, side: str) -> list[str]:
    if base is None:
        return sorted(table["group"].unique())
    of_base = table[split_column(base)].map(side_of, na_action="ignore") == side
    return sorted(table["group"][of_base.fillna(False)].unique())


def _parts(table: pd.DataFrame, rule: Parts) -> "pd.Series[str]":
    from sklearn.model_selection import train_test_split

    sides = {
        side: _groups(table, rule.base, side) for side in SIDES if rule.base or side == "train"
    }
    for step in rule.steps:
        strata = None
        if step.stratify:
            strata = _strata(table, sides[step.of], step.stratify)
        kept, drawn = train_test_split(
            sides[step.of], test_size=step.share, random_state=step.seed, stratify=strata
        )
        sides[step.of] = kept
        sides[step.to] = [*sides.get(step.to, []), *drawn]
    side_of_group = {group: side for side, groups in sides.items() for group in groups}
    return table["group"].map(side_of_group)


def _folds(table: pd.DataFrame, rule: Folds) -> "pd.Series[str]":
    from sklearn.model_selection import KFold, StratifiedKFold

    groups = _groups(table, rule.base, "train")
    if rule.stratify:
        strata = _strata(table, groups, rule.stratify)
        dealer = StratifiedKFold(rule.folds, shuffle=True, random_state=rule.seed)
        dealt = dealer.split(groups, strata)
    else:
        dealt = KFold(rule.folds, shuffle=True, random_state=rule.seed).split(groups)
    fold_of_group = {groups[i]: str(fold) for fold, (_, tested) in enumerate(dealt) for i in tested}
    found = table["group"].map(fold_of_group)
    if rule.base is None:
        return found
    given = table[split_column(rule.base)].map(side_of, na_action="ignore")
    return found.where(given != "test", "test")


def _strata(
    table: pd.DataFrame, groups: Sequence[str], columns: Sequence[str]
) -> npt.NDArray[np.str_]:
    """Give each group its stratum: the greatest value of each column among its items.

    Strata of one group, which cannot be on both sides, are put together; if that leaves one, it
    goes to the largest.
    """
    texts = table[list(columns)].astype("string").fillna("")
    greatest = texts.groupby(table["group"]).max()
    joined = greatest.agg("|".join, axis=1).loc[list(groups)].to_numpy(np.str_)
    names, counts = np.unique(joined, return_counts=True)
    rare = np.isin(joined, names[counts < 2])
    if rare.sum() > 1:
        joined = np.where(rare, "other", joined)
    elif rare.any():
        joined = np.where(rare, names[counts.argmax()], joined)
    return joined.astype(np.str_)


def digest_of(table: pd.DataFrame, column: str) -> str:
    """Give the sha256 of who is where: of `item_id TAB side LF`, in order of ids."""
    sides = table.set_index("item_id")[column].dropna().sort_index()
    lines = "".join(f"{item_id}\t{side}\n" for item_id, side in sides.items())
    return hashlib.sha256(lines.encode()).hexdigest()


def check_no_leaks(table: pd.DataFrame, name: str) -> None:
    """Refuse a table in which a group is on two sides of a split.

    Args:
        table: Of items.
        name: The dataset's, for messages.

    Raises:
        TableError: Which group, and where.
    """
    for column in split_columns(table):
        sides = table[["group", column]].dropna()
        sides = sides.assign(side=sides[column].map(side_of))
        on = sides.groupby("group")["side"].nunique()
        leaked = on[on > 1]
        if len(leaked):
            first = leaked.index[0]
            where = " and ".join(sorted(sides["side"][sides["group"] == first].unique()))
            raise TableError(
                f"{name}: {len(leaked)} of {len(on)} groups are on two sides of {column!r}, as "
                f"{first!r} in {where}; nothing of one group (patient) may be"
            )
