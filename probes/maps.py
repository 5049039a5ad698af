"""Items of a store as dense heads take them: maps, and labels in the rows' own grid."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from dinocache.errors import ProbeError, StoreIncompleteError
from dinocache.geometry import Geometry
from dinocache.layout import layer_number, parse_kind, plain_view
from dinocache.places import Where
from dinocache.store import FeatureStore
from dinocache.views import turned
from dinocache.zarrs import NativeArray
from probes.features import open_store

__all__ = ["Sort", "Span", "StoredCases", "stored_cases", "views_of"]

Sort = Literal["exclusive", "overlapping", "instances"]
"""What a mask holds: a class each value, a class each channel, or an id for each neuron."""
_MASKS_OPEN = 1024


class Span(NamedTuple):
    """Neighbouring rows of an item, commonly all of them."""

    item_id: str
    start: int
    stop: int


@dataclass(frozen=True, kw_only=True)
class StoredCases:
    """Some items of a store, or ranges of their rows: `Cases` of `probes.heads.cases`.

    Attributes:
        store: Where they stand.
        kinds: Of maps that are read together, those of the image as it is.
        spans: Which rows of which items, in this order.
        sort: What masks hold; None if labels are never asked for.
        labels_of: Value of the mask -> number of the class, from 1; of classes that overlap the
            number of the mask's channel; of neurons nothing.
        views: Of which there are maps.
    """

    store: FeatureStore
    kinds: tuple[str, ...]
    spans: tuple[Span, ...]
    sort: Sort | None
    labels_of: Mapping[int, int]
    views: tuple[str | None, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "_mask", lru_cache(_MASKS_OPEN)(self._open_mask))

    def __len__(self) -> int:
        return len(self.spans)

    @property
    def item_ids(self) -> tuple[str, ...]:
        """Which item each is of."""
        return tuple(span.item_id for span in self.spans)

    @property
    def overlapping(self) -> bool:
        """Whether classes may overlap."""
        return self.sort == "overlapping"

    def some(self, numbers: Sequence[int] | npt.NDArray[np.intp]) -> "StoredCases":
        """Choose some of them."""
        return replace(self, spans=tuple(self.spans[number] for number in numbers))

    def of(self, spans: Sequence[Span]) -> "StoredCases":
        """Take other rows of the same store."""
        return replace(self, spans=tuple(spans))

    @property
    def channels(self) -> tuple[int, ...]:
        """Of each map that is read together."""
        return tuple(self.store.layout(kind).tail[-1] for kind in self.kinds)

    @property
    def levels(self) -> tuple[int, ...]:
        """Of each map: 0 of the last layer, 1, 2, ... of ever earlier ones."""
        layers = [layer_number(kind) for kind in self.kinds]
        earlier = sorted({layer for layer in layers if layer is not None}, reverse=True)
        order: list[int | None] = [None, *earlier] if None in layers else [*earlier]
        return tuple(order.index(layer) for layer in layers)

    def n_rows(self, item: int) -> int:
        """How many rows an item has."""
        return self.spans[item].stop - self.spans[item].start

    def size(self, item: int) -> tuple[int, int]:
        """(Y, X) of an item's labels; where there are none, of its rows."""
        if self.sort is not None:
            return self._opened(item).shape[2:]
        shape = self.geometry(item).shape
        if shape is None:
            raise ProbeError(
                f"item {self.spans[item].item_id!r}: the store does not say how large its rows "
                "are; add `image` with `dinocache extract ... --features image`"
            )
        return shape[1:]

    def geometry(self, item: int) -> Geometry:
        """Where an item's rows lie."""
        attributes: dict[str, Any]
        item_id = self.spans[item].item_id
        if self.sort is not None:
            attributes = self._opened(item).attributes
        elif "image" in self.store.kinds:
            attributes = self.store.native_array("image", item_id).attributes
        else:
            attributes = {}
        return Geometry.from_attributes(attributes)

    def maps(
        self, item: int, start: int, stop: int, view: str | None = None
    ) -> tuple[npt.NDArray[np.floating[Any]], ...]:
        """Read maps of some rows: each (rows, grid_height, grid_width, channels)."""
        item_id, first, _ = self.spans[item]
        behind = f".{view}" if view else ""
        return tuple(
            self.store.rows(f"{kind}{behind}", item_id, first + start, first + stop)
            for kind in self.kinds
        )

    def labels(self, item: int, start: int, stop: int, view: str | None = None) -> npt.NDArray[Any]:
        """Read labels of some rows: (rows, Y, X) uint8, or (classes, rows, Y, X) bool.

        Of neurons ids as they are, (rows, Y, X) unsigned.
        """
        first = self.spans[item].start
        mask = self._opened(item).read(first + start, first + stop)
        return turned(view, self._labels(self.spans[item].item_id, mask), (-2, -1))

    def _labels(self, item_id: str, mask: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if self.overlapping:
            return np.stack([mask[channel] > 0 for channel in self.labels_of])
        if self.sort == "instances":
            if mask.dtype.kind == "i" and mask.min(initial=0) < 0:
                raise ProbeError(f"item {item_id!r}: its mask holds {mask.min()}, ids are above 0")
            ids: npt.NDArray[Any] = mask[0].astype(f"u{mask.dtype.itemsize}", copy=False)
            return ids
        values = np.unique(mask)
        if unknown := [value for value in values.tolist() if value and value not in self.labels_of]:
            raise ProbeError(
                f"item {item_id!r}: its mask holds the label {unknown[0]}, which the task does not "
                f"name (it names {', '.join(map(str, self.labels_of))})"
            )
        labels = np.zeros(mask.shape[1:], np.uint8)
        for value, number in self.labels_of.items():
            labels[mask[0] == value] = number
        return labels

    def _opened(self, item: int) -> NativeArray:
        found: NativeArray = self._mask(self.spans[item].item_id)  # type: ignore[attr-defined]
        return found

    def _open_mask(self, item_id: str) -> NativeArray:
        mask = self.store.native_array("mask", item_id)
        wanted = len(self.labels_of) if self.overlapping else 1
        if mask.shape[0] != wanted:
            raise ProbeError(
                f"item {item_id!r}: its mask has {mask.shape[0]} channels, {wanted} wanted"
            )
        return mask


def stored_cases(
    where: Where,
    kinds: Sequence[str],
    labels: Mapping[int, str],
    *,
    sort: Literal["classes", "instances"] | None = "classes",
) -> tuple[StoredCases, dict[str, str]]:
    """Find the items of a store that have maps and a mask.

    Args:
        where: The store: a path or a URL.
        kinds: Of maps: `dense`, `dense.L05`, `dense.ct`.
        labels: Value of the mask -> what it is; of classes that overlap, in the order of channels.
        sort: What masks are to hold; None if they are not looked at.

    Returns:
        (the items, in order of the item table; id -> why an item is none of them).

    Raises:
        StoreError: If the store lacks a kind, or cannot be read.
        ProbeError: If its maps do not cover whole images, or masks have other channels than labels.
    """
    store = open_store(where)
    wanted = (*kinds, "mask") if sort else tuple(kinds)
    _check_store(store, where, wanted)
    left_out: dict[str, str] = {}
    kept = []
    for item_id in map(str, store.items["item_id"]):
        for kind in wanted:
            found = store.presence(kind, item_id)
            if not found.present:
                reason = found.failure.reason if found.failure else "it has none"
                left_out[item_id] = f"no {kind}: {reason}"
                break
        else:
            kept.append(item_id)
    if not kept:
        raise ProbeError(f"no item of {where} has {' and '.join(wanted)}")
    held: Sort | None = "instances" if sort == "instances" else None
    if sort == "classes":
        channels = store.native_array("mask", kept[0]).shape[0]
        held = "overlapping" if channels > 1 else "exclusive"
        if channels > 1 and channels != len(labels):
            raise ProbeError(
                f"the masks of {where} have {channels} channels, the task names {len(labels)} "
                f"classes ({', '.join(labels.values())})"
            )
    overlapping = held == "overlapping"
    numbers = range(len(labels)) if overlapping else list(labels)
    cases = StoredCases(
        store=store,
        kinds=tuple(kinds),
        spans=tuple(Span(item_id, 0, store.n_rows(item_id)) for item_id in kept),
        sort=held,
        labels_of={value: number for number, value in enumerate(numbers, 0 if overlapping else 1)},
        views=views_of(store, kinds),
    )
    return cases, left_out


def _check_store(store: FeatureStore, where: Where, wanted: Sequence[str]) -> None:
    for kind in wanted:
        if kind not in store.kinds:
            raise StoreIncompleteError(
                f"{where} has no {kind!r} (it has {', '.join(store.kinds)}); add it with "
                f"`dinocache extract ... --features {','.join(wanted)}`"
            )
    mode = store.header.recipe.input.resize.mode
    if mode != "squash":
        raise ProbeError(
            f"{where} was made with --resize {mode}, so its maps do not cover whole images; dense "
            "heads want --resize squash, the default"
        )


def views_of(store: FeatureStore, kinds: Sequence[str]) -> tuple[str | None, ...]:
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
