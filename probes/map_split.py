"""Who trains, who chooses and who is tested, of items with maps or of their rows."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from dinocache.errors import ProbeError
from probes.heads import make_dense_head
from probes.map_request import SIDES, MapRequest
from probes.maps import Span, StoredCases
from probes.protocol import DEFAULT_FOLDS, DEFAULT_VALIDATION, Fold, split_digest
from probes.runs import SplitFacts
from probes.splits import (
    Split,
    check_no_leakage,
    hold_out,
    splits_by_column,
    stratified_group_folds,
)

__all__ = ["Dealt", "MapSplit", "deal_items", "split_maps"]


@dataclass(frozen=True, kw_only=True)
class Dealt:
    """Who is on which side.

    Attributes:
        folds: Numbers of items.
        facts: For `result.json`.
        left_out: Item id -> why it is on no side.
    """

    folds: list[Fold]
    facts: SplitFacts
    left_out: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class MapSplit(Dealt):
    """Cases, and on which side each is.

    Attributes:
        cases: All of them.
        groups: (n_cases,) str: what is drawn by the bootstrap.
    """

    cases: StoredCases
    groups: npt.NDArray[np.str_]


def split_maps(request: MapRequest, cases: StoredCases) -> MapSplit:
    """Deal items, or their rows, to sides.

    Args:
        request: What is asked.
        cases: Whole items.

    Returns:
        The same items, or the rows that were asked for.

    Raises:
        ProbeError: If there are no such rows or column, or a group is on two sides.
        ValueError: If groups do not allow the split.
    """
    items = cases.store.items.set_index("item_id").loc[list(cases.item_ids)].reset_index()
    if request.rows:
        return _by_rows(request, cases, items)
    selects = make_dense_head(request.head, **request.settings).selects
    dealt = deal_items(
        items,
        column=request.split,
        folds=request.folds,
        validation=request.validation or (DEFAULT_VALIDATION if selects else None),
    )
    groups = items["group"].to_numpy(np.str_)
    return MapSplit(cases=cases, groups=groups, **vars(dealt))


def deal_items(
    items: pd.DataFrame,
    *,
    column: str | None,
    folds: int | None,
    validation: float | None,
    needed: Sequence[str] = ("train", "test"),
) -> Dealt:
    """Deal items, or pairs of them, to sides by a column or by folds.

    Args:
        items: Of the item table.
        column: With sides, or numbers of folds; None takes `split` where it has values and no
            folds are asked for.
        folds: Dealt by group where there is no column.
        validation: Share of a fold's training groups that does not train, where the split has no
            such side.
        needed: Sides that no fold may lack.

    Returns:
        The sides.

    Raises:
        ProbeError: If there is no such column, or a group is on two sides.
        ValueError: If groups do not allow the split.
    """
    groups = items["group"].to_numpy(np.str_)
    if column is None and folds is None and "split" in items and items["split"].notna().any():
        column = "split"
    if column is not None and column not in items:
        raise ProbeError(
            f"--split: there is no column {column!r}; the store has {', '.join(items.columns)}"
        )
    alike = np.zeros(len(items), np.int64)  # labels of pixels are nothing to stratify items by
    known = np.ones(len(items), bool)
    if column is None:
        k = folds or DEFAULT_FOLDS
        numbers = stratified_group_folds(alike, groups, k=k, seed=0)
        splits = [
            Split(train=numbers != n, val=np.zeros(len(items), bool), test=numbers == n)
            for n in range(k)
        ]
    else:
        known = items[column].notna().to_numpy()
        if not known.any():
            raise ProbeError(
                f"none of the {len(items)} items that can be used has a value of {column!r}; "
                "deal them anew with --folds"
            )
        splits = splits_by_column(items[column].to_numpy(dtype=object)[known])
    where = np.flatnonzero(known)
    found, held = [], False
    for split in splits:
        if validation is not None and not split.val.any():
            split, held = hold_out(split, alike[known], groups[known], share=validation), True
        check_no_leakage(groups[known], split)
        sides = (where[np.flatnonzero(side)] for side in (split.train, split.val, split.test))
        found.append(Fold(**dict(zip(SIDES, sides, strict=True))))
    ids = items["item_id"].to_numpy(np.str_)
    for side in needed:
        if any(not len(getattr(fold, side)) for fold in found):
            raise ProbeError(
                f"the {side} side has no items; check the column {column!r}, or deal them anew "
                "with --folds"
            )
    return Dealt(
        folds=found,
        facts=SplitFacts(
            protocol="folds" if column is None else "column",
            column=column,
            folds=len(found) if column is None or len(found) > 1 else None,
            validation=validation if held else None,
            digest=split_digest(ids, ids, found),
            **_sizes(found),
        ),
        left_out=dict.fromkeys(ids[~known].tolist(), f"no value of {column!r}"),
    )


def _by_rows(request: MapRequest, cases: StoredCases, items: pd.DataFrame) -> MapSplit:
    """Cut items into ranges of rows, a case each."""
    n_rows = {span.item_id: span.stop for span in cases.spans}
    spans: list[Span] = []
    sides: dict[str, list[int]] = {side: [] for side in SIDES}
    for side, ranges in request.rows.items():
        for named, (start, stop) in ranges.items():
            for item_id in [named] if named else list(n_rows):
                if item_id not in n_rows:
                    raise ProbeError(
                        f"rows {start} to {stop} of {item_id!r} are asked for, the store has no "
                        f"such item with maps and a mask (it has {', '.join(list(n_rows)[:5])})"
                    )
                if stop > n_rows[item_id]:
                    raise ProbeError(
                        f"item {item_id!r} has {n_rows[item_id]} rows; {start} to {stop} are asked "
                        f"for to {side}"
                    )
                sides[side].append(len(spans))
                spans.append(Span(item_id, start, stop))
    fold = Fold(**{side: np.array(numbers, np.intp) for side, numbers in sides.items()})
    group_of = dict(zip(items["item_id"], items["group"], strict=True))
    used = {span.item_id for span in spans}
    names = np.array([f"{span.item_id} {span.start}-{span.stop}" for span in spans])
    return MapSplit(
        cases=cases.of(spans),
        groups=np.array([str(group_of[span.item_id]) for span in spans]),
        folds=[fold],
        facts=SplitFacts(
            protocol="rows",
            column=None,
            folds=None,
            validation=None,
            digest=split_digest(names, names, [fold]),
            **_sizes([fold]),
        ),
        left_out=dict.fromkeys((i for i in n_rows if i not in used), "none of its rows is named"),
    )


def _sizes(folds: list[Fold]) -> dict[str, float]:
    return {
        f"n_{side}": float(np.mean([len(getattr(fold, side)) for fold in folds])) for side in SIDES
    }
