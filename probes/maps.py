"""Items of a store as dense heads take them: maps, and labels in the rows' own grid."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from dinocache.errors import ProbeError, StoreIncompleteError
from dinocache.geometry import Geometry
from dinocache.layout import parse_kind, plain_view
from dinocache.places import Where
from dinocache.store import FeatureStore
from dinocache.views import turned
from probes.features import open_store

__all__ = ["StoredCases", "stored_cases"]

_MASKS_HELD = 2
"""Label maps of items that are decoded: blocks of one follow each other."""


@dataclass(frozen=True, kw_only=True)
class StoredCases:
    """Some items of a store, a `Cases` of `probes.heads.cases`.

    Attributes:
        store: Where they stand.
        kinds: Of maps that are read together, those of the image as it is.
        item_ids: Which items, in this order.
        labels_of: Value of the mask -> number of the class, from 1; of classes that overlap the
            number of the mask's channel.
        overlapping: Whether classes may overlap: a channel of the mask each.
        views: Of which there are maps.
    """

    store: FeatureStore
    kinds: tuple[str, ...]
    item_ids: tuple[str, ...]
    labels_of: Mapping[int, int]
    overlapping: bool
    views: tuple[str | None, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "_mask", lru_cache(_MASKS_HELD)(self._read_mask))

    def __len__(self) -> int:
        return len(self.item_ids)

    def some(self, numbers: Sequence[int] | npt.NDArray[np.intp]) -> "StoredCases":
        """Choose some of them."""
        return StoredCases(
            **{**vars_of(self), "item_ids": tuple(self.item_ids[number] for number in numbers)}
        )

    @property
    def channels(self) -> tuple[int, ...]:
        """Of each map that is read together."""
        return tuple(self.store.layout(kind).tail[-1] for kind in self.kinds)

    def n_rows(self, item: int) -> int:
        """How many rows an item has."""
        return self.store.n_rows(self.item_ids[item])

    def size(self, item: int) -> tuple[int, int]:
        """(Y, X) of an item's labels."""
        shape = self._mask(item)[0].shape  # type: ignore[attr-defined]
        return int(shape[-2]), int(shape[-1])

    def geometry(self, item: int) -> Geometry:
        """Where an item's rows lie."""
        found: Geometry = self._mask(item)[1]  # type: ignore[attr-defined]
        return found

    def maps(
        self, item: int, start: int, stop: int, view: str | None = None
    ) -> tuple[npt.NDArray[np.floating[Any]], ...]:
        """Read maps of some rows: each (rows, grid_height, grid_width, channels)."""
        behind = f".{view}" if view else ""
        return tuple(
            self.store.rows(f"{kind}{behind}", self.item_ids[item], start, stop)
            for kind in self.kinds
        )

    def labels(self, item: int, start: int, stop: int, view: str | None = None) -> npt.NDArray[Any]:
        """Read labels of some rows: (rows, Y, X) uint8, or (classes, rows, Y, X) bool."""
        labels: npt.NDArray[Any] = self._mask(item)[0]  # type: ignore[attr-defined]
        return turned(view, labels[..., start:stop, :, :], (-2, -1))

    def _read_mask(self, item: int) -> tuple[npt.NDArray[Any], Geometry]:
        item_id = self.item_ids[item]
        mask, attributes = self.store.native("mask", item_id)
        geometry = Geometry.from_attributes(attributes)
        if self.overlapping:
            return np.stack([mask[channel] > 0 for channel in self.labels_of]), geometry
        if len(mask) != 1:
            raise ProbeError(f"item {item_id!r}: its mask has {len(mask)} channels, one is wanted")
        values = np.unique(mask)
        if unknown := [value for value in values.tolist() if value and value not in self.labels_of]:
            raise ProbeError(
                f"item {item_id!r}: its mask holds the label {unknown[0]}, which the task does not "
                f"name (it names {', '.join(map(str, self.labels_of))})"
            )
        labels = np.zeros(mask.shape[1:], np.uint8)
        for value, number in self.labels_of.items():
            labels[mask[0] == value] = number
        return labels, geometry


def vars_of(cases: StoredCases) -> dict[str, Any]:
    """Give the fields of cases."""
    return {name: getattr(cases, name) for name in StoredCases.__dataclass_fields__}


def stored_cases(
    where: Where, kinds: Sequence[str], labels: Mapping[int, str]
) -> tuple[StoredCases, dict[str, str]]:
    """Find the items of a store that have maps and a mask.

    Args:
        where: The store: a path or a URL.
        kinds: Of maps: `dense`, `dense.L05`, `dense.ct`.
        labels: Value of the mask -> what it is; of classes that overlap, in the order of channels.

    Returns:
        (the items, in order of the item table; id -> why an item is none of them).

    Raises:
        StoreError: If the store lacks a kind, or cannot be read.
        ProbeError: If its maps do not cover whole images, or masks have other channels than labels.
    """
    store = open_store(where)
    for kind in (*kinds, "mask"):
        if kind not in store.kinds:
            raise StoreIncompleteError(
                f"{where} has no {kind!r} (it has {', '.join(store.kinds)}); add it with "
                f"`dinocache extract ... --features {','.join((*kinds, 'mask'))}`"
            )
    mode = store.header.recipe.input.resize.mode
    if mode != "squash":
        raise ProbeError(
            f"{where} was made with --resize {mode}, so its maps do not cover whole images; dense "
            "heads want --resize squash, the default"
        )
    left_out: dict[str, str] = {}
    kept = []
    for item_id in map(str, store.items["item_id"]):
        for kind in (*kinds, "mask"):
            found = store.presence(kind, item_id)
            if not found.present:
                reason = found.failure.reason if found.failure else "it has none"
                left_out[item_id] = f"no {kind}: {reason}"
                break
        else:
            kept.append(item_id)
    if not kept:
        raise ProbeError(f"no item of {where} has {', '.join(kinds)} and a mask")
    channels = len(store.native("mask", kept[0])[0])
    overlapping = channels > 1
    if overlapping and channels != len(labels):
        raise ProbeError(
            f"the masks of {where} have {channels} channels, the task names {len(labels)} classes "
            f"({', '.join(labels.values())})"
        )
    numbers = range(channels) if overlapping else list(labels)
    cases = StoredCases(
        store=store,
        kinds=tuple(kinds),
        item_ids=tuple(kept),
        labels_of={value: number for number, value in enumerate(numbers, 0 if overlapping else 1)},
        overlapping=overlapping,
        views=_views_of(store, kinds),
    )
    return cases, left_out


def _views_of(store: FeatureStore, kinds: Sequence[str]) -> tuple[str | None, ...]:
    """List the views of which all of these maps are there, the image as it is first."""
    by_kind = [
        {
            parsed.view
            for held in store.kinds
            if plain_view(held) == kind and (parsed := parse_kind(held))
        }
        for kind in kinds
    ]
    common = set.intersection(*by_kind)
    return (None, *sorted(view for view in common if view))
