"""Who takes part: items with their features and targets, and who is left out and why."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from dinocache.errors import ProbeError
from dinocache.places import Where
from probes.features import (
    Bags,
    ItemFeatures,
    check_same_recipe,
    item_columns,
    load_item_features,
    load_row_features,
)
from probes.request import FitRequest, TestOn
from probes.runs import StoreOrigin
from probes.targets import Targets, read_targets

__all__ = [
    "Cohort",
    "Features",
    "load_cohort",
    "load_labelled",
    "load_test_cohort",
    "split_column",
]

Features = npt.NDArray[np.float32] | Bags


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """Items that take part, in order of the item table.

    Attributes:
        ids: (n_items,) str.
        groups: (n_items,) str: the patients.
        x: (n_items, dim) float32, or n_items bags.
        targets: What the outputs are; its arrays are of these items.
        items: (n_items, columns) the item table.
        kinds: Of the features.
        sequences: (n_items,) which video a frame is of, or None.
        left_out: Item id -> why.
        store: Where they come from.
    """

    ids: npt.NDArray[np.str_]
    groups: npt.NDArray[np.str_]
    x: Features
    targets: Targets
    items: pd.DataFrame
    kinds: tuple[str, ...]
    sequences: npt.NDArray[np.intp] | None
    left_out: dict[str, str]
    store: StoreOrigin


def load_cohort(request: FitRequest) -> Cohort:
    """Read the items that a fit trains on, and tests unless others are to be tested.

    Args:
        request: What is asked.

    Returns:
        The items that have features, the target and a side of the split.

    Raises:
        StoreError: If the store is missing, incomplete or damaged.
        ProbeError: If a column is not there or cannot be what is asked; if features are not
            finite.
    """
    loaded = _load(request, request.store, request.targets)
    targets = read_targets(loaded.items, request.targets, positive=request.positive)
    return _keep(loaded, targets, split_column(request, loaded.items), request.drop_missing)


def load_test_cohort(request: FitRequest, test_on: TestOn, trained: Cohort) -> Cohort:
    """Read the items of another store that are tested.

    Args:
        request: What is asked.
        test_on: Which store and side.
        trained: The items that heads are fitted on.

    Returns:
        The items.

    Raises:
        StoreError: If the store is missing, incomplete or damaged.
        ProbeError: If it is of another recipe, other classes, or holds groups that train.
    """
    check_same_recipe(trained.store, test_on.store, trust=test_on.trust)
    loaded = _load(request, test_on.store, test_on.targets)
    side = test_on.split
    if side is not None:
        if side not in loaded.items:
            raise ProbeError(f"--test-on: {test_on.store} has no column {side!r}")
        tested = loaded.items[side].isin(["test", "testing"])
        if not tested.any():
            raise ProbeError(f"--test-on: no item of {test_on.store} has {side!r} = 'test'")
    else:
        tested = pd.Series(True, index=loaded.items.index)
    targets = read_targets(
        loaded.items, test_on.targets, positive=test_on.positive, classes=trained.targets.classes
    )
    cohort = _keep(loaded, targets, None, request.drop_missing, tested.to_numpy())
    if cohort.targets.kind != trained.targets.kind:
        raise ProbeError(
            f"--test-on: {test_on.store} is {cohort.targets.kind}, what is trained on is "
            f"{trained.targets.kind}"
        )
    if cohort.store.dataset == trained.store.dataset and (
        shared := sorted(set(cohort.groups) & set(trained.groups))
    ):
        raise ProbeError(
            f"--test-on: {len(shared)} groups train and are tested, as {str(shared[0])!r}; choose "
            "a split whose test side holds nobody who trains"
        )
    return cohort


def load_labelled(
    request: FitRequest, classes: tuple[str, ...]
) -> tuple[ItemFeatures, Cohort | None]:
    """Read all items of a store for heads that are there, and those of them that have the targets.

    Args:
        request: Store, kinds, and the columns that the targets would stand in.
        classes: What the heads' outputs stand for.

    Returns:
        All items; and the labelled ones, or None where the columns are not there.

    Raises:
        StoreError: If the store is missing, incomplete or damaged.
        ProbeError: If features are not finite, or labels are none that the heads know.
    """
    there = set(request.targets) <= set(item_columns(request.store))
    loaded = _load(request, request.store, request.targets if there else ())
    if isinstance(loaded.x, np.ndarray):
        _check_finite(loaded.x, loaded.items["item_id"].to_numpy(np.str_))
    if not there:
        return loaded, None
    targets = read_targets(
        loaded.items, request.targets, positive=request.positive, classes=classes
    )
    if not targets.known.any():
        return loaded, None
    return loaded, _keep(loaded, targets, None, drop_missing=True)


def split_column(request: FitRequest, items: pd.DataFrame) -> str | None:
    """Find the column that says who trains and who is tested; None where folds are dealt.

    Args:
        request: What is asked.
        items: The item table.

    Returns:
        Its name, or None.

    Raises:
        ProbeError: If it is not there.
    """
    if request.folds is not None:
        return None
    if request.split is not None:
        if request.split not in items:
            raise ProbeError(
                f"--split: there is no column {request.split!r}; the store has "
                f"{', '.join(items.columns)}"
            )
        return request.split
    return "split" if "split" in items and items["split"].notna().any() else None


def _load(request: FitRequest, store: Where, targets: tuple[str, ...]) -> ItemFeatures:
    if request.of == "row":
        return load_row_features(store, request.features, targets)
    return load_item_features(store, request.features, request.pool or "mean")


def _keep(
    loaded: ItemFeatures,
    targets: Targets,
    column: str | None,
    drop_missing: bool,
    wanted: npt.NDArray[np.bool_] | None = None,
) -> Cohort:
    """Choose the items that take part, and say why the others do not."""
    kept = np.ones(len(loaded.items), bool) if wanted is None else wanted
    ids = loaded.items["item_id"]
    unknown = kept & ~targets.known
    if unknown.any() and not drop_missing:
        raise ProbeError(
            f"{int(unknown.sum())} of {int(kept.sum())} items have no value of "
            f"{', '.join(targets.columns)} (as {ids[unknown].iloc[0]!r}); --drop-missing leaves "
            "them out"
        )
    left_out = {i: f"extraction failed: {why}" for i, why in loaded.failed.items()}
    left_out |= dict.fromkeys(ids[unknown], "target missing")
    kept = kept & targets.known
    if column is not None:
        sided = loaded.items[column].notna().to_numpy()
        left_out |= dict.fromkeys(ids[kept & ~sided], f"no value of {column!r}")
        kept &= sided
    chosen = ids.to_numpy(np.str_)[kept]
    x = loaded.x[kept]
    if isinstance(x, np.ndarray):
        _check_finite(x, chosen)
    return Cohort(
        ids=chosen,
        groups=loaded.items["group"].to_numpy(np.str_)[kept],
        x=x,
        targets=targets.of(kept),
        items=loaded.items[kept].reset_index(drop=True),
        kinds=loaded.kinds,
        sequences=None if loaded.sequences is None else loaded.sequences[kept],
        left_out=left_out,
        store=loaded.store,
    )


def _check_finite(x: npt.NDArray[np.float32], ids: npt.NDArray[np.str_]) -> None:
    finite = np.isfinite(x).all(1)
    if not finite.all():
        raise ProbeError(
            f"{int((~finite).sum())} items have NaN or infinite features "
            f"(as {str(ids[~finite][0])!r}); run `dinocache verify` on the store"
        )
