"""The one door to the stores: from a folder of features to arrays and labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from dinocache.errors import ProbeError, StoreIncompleteError
from dinocache.layout import VECTOR_KINDS, is_vector_kind
from dinocache.places import Where, folder_of
from dinocache.recipe import Recipe, resolution_name, same_features
from dinocache.store import FeatureStore
from probes.runs import StoreOrigin

__all__ = [
    "VECTORS",
    "Bags",
    "ItemFeatures",
    "Pool",
    "check_same_recipe",
    "first_dense_item",
    "is_vector",
    "item_columns",
    "kinds_of",
    "load_item_features",
    "load_row_features",
    "open_store",
    "row_coords",
    "row_picture",
    "store_facts",
    "store_state",
]

VECTORS = VECTOR_KINDS
"""Kinds of which an item has one vector."""
is_vector = is_vector_kind


Pool = Literal["mean", "max", "mean+std", "bags"]
"""How the rows of an item become what a head takes: one vector, or the rows themselves."""


class Bags(Sequence[npt.NDArray[np.float16]]):
    """The rows of items, read from the store when they are asked for.

    `bags[i]` is (n_rows, dim) float16, where the store allows it a view of the file; `bags[2:5]`
    and `bags[[4, 1]]` are other `Bags`, and read nothing.
    """

    def __init__(self, store: FeatureStore, kinds: Sequence[str], item_ids: Sequence[str]) -> None:
        """See the class.

        Args:
            store: Where they stand.
            kinds: Of vectors, side by side in a row.
            item_ids: Which items, in this order.
        """
        self.store = store
        self.kinds = tuple(kinds)
        self.item_ids = np.asarray(item_ids, dtype=np.str_)

    @classmethod
    def of(cls, where: Where, kinds: Sequence[str], item_ids: Sequence[str]) -> "Bags":
        """Open a store for its rows; see the class."""
        return cls(open_store(where), kinds, item_ids)

    def __len__(self) -> int:
        return len(self.item_ids)

    def __getitem__(self, which: Any) -> Any:  # noqa: ANN401 - an array, or fewer bags
        if not isinstance(which, int | np.integer):
            return Bags(self.store, self.kinds, self.item_ids[which])
        item_id = str(self.item_ids[which])
        rows = [self.store.rows(kind, item_id) for kind in self.kinds]
        return rows[0] if len(rows) == 1 else np.concatenate(rows, axis=1)


@dataclass(frozen=True, kw_only=True)
class ItemFeatures:
    """What a head takes of each item, with its row of the item table.

    Attributes:
        x: (n_items, dim) float32; or the bags.
        kinds: Of the vectors that stand in a row of x, in this order.
        items: (n_items, columns) table in the same order.
        failed: Ids of items whose extraction failed -> why; they are in neither.
        store: Where they come from.
        sequences: (n_items,) which video a frame is of, frames in their order; None where items
            are no frames.
    """

    x: npt.NDArray[np.float32] | Bags
    kinds: tuple[str, ...]
    items: pd.DataFrame
    failed: dict[str, str]
    store: StoreOrigin
    sequences: npt.NDArray[np.intp] | None = None


def load_item_features(
    where: Where, kinds: Sequence[str] | None, pool: Pool = "mean"
) -> ItemFeatures:
    """Read what a head takes of each item from a store.

    Args:
        where: The store: a path or a URL.
        kinds: Of `VECTORS` or of a channel, as `cls.pet`, concatenated in this order; None takes
            the one that the encoder's publisher uses, or the next that the store has, of all
            channels.
        pool: `mean` over an item's rows is read as it stands in the store; `max` and `mean+std`
            (both side by side; population standard deviation) are computed from the rows, one item
            at a time; `bags` leaves them as they are.

    Returns:
        Features and labels; an item that failed in one kind is left out.

    Raises:
        StoreError: If the store is missing, incomplete or damaged.
    """
    store = open_store(where)
    kinds = kinds or _usual_kinds(store)
    read = [store.item_vectors(kind) for kind in kinds]
    common = set[str].intersection(*(set(ids) for ids, _ in read))
    items = store.items[store.items["item_id"].isin(common)].reset_index(drop=True)
    x: npt.NDArray[np.float32] | Bags
    if pool == "mean":
        blocks = [block[[i in common for i in ids]] for ids, block in read]
        x = blocks[0] if len(blocks) == 1 else np.concatenate(blocks, axis=1)
    else:
        x = Bags(store, kinds, items["item_id"].tolist())
        x = x if pool == "bags" else _pooled(x, pool)
    return ItemFeatures(
        kinds=tuple(kinds),
        x=x,
        items=items,
        failed={f.item_id: f.failure.reason for f in store.failures() if f.item_id not in common},
        store=_facts(store),
    )


def _pooled(bags: Bags, pool: Literal["max", "mean+std"]) -> npt.NDArray[np.float32]:
    pooled = []
    for rows in bags:
        wide = rows.astype(np.float32)
        parts = [wide.max(0)] if pool == "max" else [wide.mean(0), wide.std(0)]
        pooled.append(np.concatenate(parts))
    return np.stack(pooled)


def load_row_features(
    where: Where, kinds: Sequence[str] | None, targets: Sequence[str]
) -> ItemFeatures:
    """Read one vector a row from a store, with the row's own targets.

    Args:
        where: The store: a path or a URL.
        kinds: As for `load_item_features`.
        targets: Columns that hold a list, one value a row of the item. Where list and rows differ
            in length, what is over of the longer is left out.

    Returns:
        Features and labels; `item_id` of a row is the item's, `#` and the row.

    Raises:
        StoreError: If the store is missing, incomplete or damaged.
        ProbeError: If a target is not there, or holds no list.
    """
    store = open_store(where)
    kinds = kinds or _usual_kinds(store)
    failed = {f.item_id: f.failure.reason for f in store.failures()}
    items = store.items[~store.items["item_id"].isin(list(failed))]
    blocks, tables = [], []
    for _, item in items.iterrows():
        lists: list[Any] = [item.get(target) for target in targets]
        if not all(isinstance(values, np.ndarray | list) for values in lists):
            raise ProbeError(
                f"item {item['item_id']!r}: {', '.join(targets)} must hold a list, one value a row"
            )
        rows = np.concatenate([store.rows(kind, str(item["item_id"])) for kind in kinds], axis=1)
        count = min([len(rows), *(len(values) for values in lists)])
        blocks.append(rows[:count].astype(np.float32))
        table = pd.DataFrame([item.drop(list(targets))] * count).reset_index(drop=True)
        table["item_id"] = [f"{item['item_id']}#{row}" for row in range(count)]
        for target, values in zip(targets, lists, strict=True):
            table[target] = list(values[:count])
        tables.append(table)
    return ItemFeatures(
        kinds=tuple(kinds),
        x=np.concatenate(blocks),
        items=pd.concat(tables, ignore_index=True),
        failed=failed,
        store=_facts(store),
        sequences=np.repeat(np.arange(len(blocks)), [len(block) for block in blocks]),
    )


def item_columns(where: Where) -> tuple[str, ...]:
    """Name the columns of a store's item table."""
    return tuple(open_store(where).items.columns)


def row_coords(where: Where, item_id: str) -> pd.DataFrame:
    """Say where the rows of an item stand.

    Args:
        where: The store: a path or a URL.
        item_id: Which item.

    Returns:
        One row a row of the item, a column a coordinate, named with its unit, as `x (px)`; without
        columns where the store knows none.

    Raises:
        StoreError: If the store is missing or damaged, or has no such item.
    """
    store = open_store(where)
    if not store.header.recipe.reader.columns:
        return pd.DataFrame(index=[0])
    coords, columns = store.coords(item_id)
    return pd.DataFrame(coords, columns=[f"{name} ({unit})" for name, unit in columns])


def kinds_of(where: Where, kinds: Sequence[str] | None) -> tuple[str, ...]:
    """Say which kinds are read from a store where none, or these, are asked for.

    Args:
        where: The store: a path or a URL.
        kinds: What is asked, or None.

    Returns:
        Names of kinds.

    Raises:
        StoreError: If the store cannot be read.
    """
    return tuple(kinds or _usual_kinds(open_store(where)))


def _usual_kinds(store: FeatureStore) -> list[str]:
    of_encoder = store.header.recipe.encoder.vectors
    channels = store.header.recipe.channels
    suffixes = [f".{c}" for c in channels.names] if channels.mode == "passes" else [""]
    named = ([f"{k}{suffix}" for suffix in suffixes] for k in of_encoder)
    return next((n for n in named if set(n) <= set(store.kinds)), ["cls"])


def first_dense_item(where: Where) -> tuple[str, npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Read the first item of a store that has both its patch features and its image.

    Args:
        where: The store: a path or a URL.

    Returns:
        (item id, (grid_height, grid_width, dim) float32, (Y, X) or (Y, X, 3) float32 in [0, 1]),
        of the item's middle row.

    Raises:
        StoreError: If the store is missing or damaged, or no item has both.
    """
    store = open_store(where)
    if lacking := [kind for kind in ("dense", "image") if kind not in store.kinds]:
        raise StoreIncompleteError(
            f"a picture needs dense and image; {where} has no {lacking[0]!r}. Add it with "
            f"`dinocache extract ... --features {lacking[0]}`, or choose another store."
        )
    absent = {f.item_id for f in store.failures()}
    item_id = next((str(i) for i in store.items["item_id"] if i not in absent), None)
    if item_id is None:
        raise StoreIncompleteError(f"{where} has no item to draw: each of them failed")
    maps = store.rows("dense", item_id)
    middle = len(maps) // 2
    return item_id, maps[middle].astype(np.float32), row_picture(store, item_id, middle)


def row_picture(store: FeatureStore, item_id: str, row: int) -> npt.NDArray[np.float32]:
    """Read a row of an item's own grid as people look at it.

    Args:
        store: With the kind `image`.
        item_id: Which item.
        row: Which row.

    Returns:
        (Y, X), or (Y, X, 3) of three channels, in [0, 1]: its window.
    """
    image = store.native_array("image", item_id)
    low, high = image.attributes["windows"][0]
    values = image.read(row, row + 1)[:, 0].astype(np.float32)
    picture: npt.NDArray[np.float32] = np.clip((values - low) / (high - low), 0, 1)
    return picture.transpose(1, 2, 0) if len(picture) == 3 else picture[0]


def store_facts(where: Where) -> StoreOrigin:
    """Say what a store is, for tables and captions."""
    return _facts(open_store(where))


def store_state(where: Where) -> dict[str, Any]:
    """Sum up what decides the features and targets that a store gives, wherever it lies.

    Args:
        where: The store: a path or a URL.

    Returns:
        JSON: recipe digest, item table, plan segments and failed items.

    Raises:
        StoreError: If it cannot be read.
    """
    store = open_store(where)
    return {
        "recipe": store.header.digest,
        "dataset": store.header.dataset,
        "items": store.items_name,
        "segments": [segment.number for segment in store.segments],
        "failed": sorted(f.item_id for f in store.failures()),
    }


_WHERE_ONLY = ("rows", "gaps", "dataset", "mask_dataset", "spacing_nm")
"""Options of readers that no map depends on: which rows there are, and where in a file they are."""


def check_same_recipe(
    ours: StoreOrigin, where: Where, *, trust: bool = False, row_by_row: bool = False
) -> None:
    """Refuse features that a head was not fitted on.

    Args:
        ours: The store that it was fitted on.
        where: The store that it is to be asked about.
        trust: Whether what somebody declared of imported features counts.
        row_by_row: Whether rows are features of their own, so that it does not matter which of
            them a store keeps.

    Raises:
        StoreError: If that store cannot be read; `RecipeMismatchError` if it, or the head's, was
            imported, and that is not trusted or does not fit.
        ProbeError: If its recipe differs, and in what.
    """
    theirs = open_store(where)
    there, here = theirs.header.recipe, Recipe.from_body(ours.recipe, "the run's recipe")
    bases = _bases(theirs)
    if other := [k for k, basis in ours.bases.items() if bases.get(k, basis) != basis]:
        raise ProbeError(
            f"{where} keeps principal components of {', '.join(other)} by another basis than the "
            "head was fitted on, so they are other features. Make both stores with "
            "`--calibration` of the one, or without --pca"
        )
    if there.encoder.weights.is_declared or here.encoder.weights.is_declared:
        same_features(here, there, trust=trust)
        return
    if there.digest == ours.digest:
        return
    different = here.differences(there)
    if row_by_row:
        beside = [f"reader.options.{option}" for option in _WHERE_ONLY]
        different = {field: both for field, both in different.items() if field not in beside}
        if not different:
            return
    field, (was, came) = next(iter(different.items()))
    more = f", and {len(different) - 1} more field(s) differ" if len(different) > 1 else ""
    raise ProbeError(
        f"{where} is of another recipe than the head was fitted on: {field} is {came!r} there and "
        f"was {was!r}{more}. Extract that dataset with the same settings, or fit a head on it"
    )


_REMOTE: dict[str, FeatureStore] = {}
"""What lies below a URL is opened once a process."""


def open_store(where: Where) -> FeatureStore:
    """Open a store, what lies below a URL once a process; raises `StoreError`."""
    folder = folder_of(where)
    if folder.path is not None:
        return FeatureStore(folder)
    if str(folder) not in _REMOTE:
        _REMOTE[str(folder)] = FeatureStore(folder)
    return _REMOTE[str(folder)]


def _facts(store: FeatureStore) -> StoreOrigin:
    header = store.header
    encoder = header.recipe.encoder
    return StoreOrigin(
        dataset=header.dataset,
        model=encoder.name,
        resolution=resolution_name(header.recipe.input.resolution),
        variant=header.variant,
        digest=header.digest,
        weights=encoder.weights.name,
        random_weights=encoder.weights.is_random,
        items_table=store.items_name,
        recipe=header.recipe.model_dump(mode="json"),
        bases=_bases(store),
    )


def _bases(store: FeatureStore) -> dict[str, str]:
    fitted = {kind: store.calibration(kind) for kind in store.kinds}
    digests = {kind: one.basis_digest for kind, one in fitted.items() if one is not None}
    return {kind: digest for kind, digest in digests.items() if digest is not None}
