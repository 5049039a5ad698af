"""The one door to the stores: from a folder of features to arrays and labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from dinocache.errors import ProbeError, StoreIncompleteError
from dinocache.layout import VECTOR_KINDS, is_vector_kind
from dinocache.recipe import resolution_name
from dinocache.store import FeatureStore
from probes.runs import StoreOrigin

__all__ = [
    "VECTORS",
    "ItemFeatures",
    "first_dense_item",
    "is_vector",
    "load_item_features",
    "load_row_features",
    "store_facts",
]

VECTORS = VECTOR_KINDS
"""Kinds of which an item has one vector."""
is_vector = is_vector_kind


@dataclass(frozen=True, kw_only=True)
class ItemFeatures:
    """One vector an item, with its row of the item table.

    Attributes:
        x: (n_items, dim) float32.
        kinds: Of the vectors that stand in a row of x, in this order.
        items: (n_items, columns) table in the same order.
        failed: Ids of items whose extraction failed -> why; they are in neither.
        store: Where they come from.
    """

    x: npt.NDArray[np.float32]
    kinds: tuple[str, ...]
    items: pd.DataFrame
    failed: dict[str, str]
    store: StoreOrigin


def load_item_features(path: Path, kinds: Sequence[str] | None) -> ItemFeatures:
    """Read one vector an item from a store.

    Args:
        path: The store's folder.
        kinds: Of `VECTORS` or of a channel, as `cls.pet`, concatenated in this order; None takes
            the one that the encoder's publisher uses, or the next that the store has, of all
            channels.

    Returns:
        Features and labels; an item that failed in one kind is left out.

    Raises:
        StoreError: If the store is missing, incomplete or damaged.
    """
    store = FeatureStore(path)
    kinds = kinds or _usual_kinds(store)
    read = [store.item_vectors(kind) for kind in kinds]
    common = set[str].intersection(*(set(ids) for ids, _ in read))
    blocks = [block[[i in common for i in ids]] for ids, block in read]
    items = store.items[store.items["item_id"].isin(common)].reset_index(drop=True)
    return ItemFeatures(
        kinds=tuple(kinds),
        x=blocks[0] if len(blocks) == 1 else np.concatenate(blocks, axis=1),
        items=items,
        failed={f.item_id: f.failure.reason for f in store.failures() if f.item_id not in common},
        store=_facts(store),
    )


def load_row_features(
    path: Path, kinds: Sequence[str] | None, targets: Sequence[str]
) -> ItemFeatures:
    """Read one vector a row from a store, with the row's own targets.

    Args:
        path: The store's folder.
        kinds: As for `load_item_features`.
        targets: Columns that hold a list, one value a row of the item. Where list and rows differ
            in length, what is over of the longer is left out.

    Returns:
        Features and labels; `item_id` of a row is the item's, `#` and the row.

    Raises:
        StoreError: If the store is missing, incomplete or damaged.
        ProbeError: If a target is not there, or holds no list.
    """
    store = FeatureStore(path)
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
        count = min(len(rows), *(len(values) for values in lists))
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
    )


def _usual_kinds(store: FeatureStore) -> list[str]:
    of_encoder = store.header.recipe.encoder.vectors
    channels = store.header.recipe.channels
    suffixes = [f".{c}" for c in channels.names] if channels.mode == "passes" else [""]
    named = ([f"{k}{suffix}" for suffix in suffixes] for k in of_encoder)
    return next((n for n in named if set(n) <= set(store.kinds)), ["cls"])


def first_dense_item(path: Path) -> tuple[str, npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Read the first item of a store that has both its patch features and its image.

    Args:
        path: The store's folder.

    Returns:
        (item id, (grid_height, grid_width, dim) float32, (Y, X) or (Y, X, 3) float32 in [0, 1]),
        of the item's middle row.

    Raises:
        StoreError: If the store is missing or damaged, or no item has both.
    """
    store = FeatureStore(path)
    if lacking := [kind for kind in ("dense", "image") if kind not in store.kinds]:
        raise StoreIncompleteError(
            f"a picture needs dense and image; {path} has no {lacking[0]!r}. Add it with "
            f"`dinocache extract ... --features {lacking[0]}`, or choose another store."
        )
    absent = {f.item_id for f in store.failures()}
    item_id = next((str(i) for i in store.items["item_id"] if i not in absent), None)
    if item_id is None:
        raise StoreIncompleteError(f"{path} has no item to draw: each of them failed")
    maps = store.rows("dense", item_id)
    image, attributes = store.native("image", item_id)
    middle = len(maps) // 2
    low, high = attributes["windows"][0]
    picture = np.clip((image[:, middle].astype(np.float32) - low) / (high - low), 0, 1)
    shown = picture[0] if len(picture) == 1 else picture.transpose(1, 2, 0)
    return item_id, maps[middle].astype(np.float32), shown


def store_facts(path: Path) -> StoreOrigin:
    """Say what a store is, for tables and captions."""
    return _facts(FeatureStore(path))


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
    )
