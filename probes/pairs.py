"""Pairs of a store's items that are registered with each other, as arrays on one grid."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from dinocache.errors import ProbeError
from dinocache.geometry import Geometry
from dinocache.manifest import Pairs
from dinocache.places import Where
from probes.maps import StoredCases, stored_cases

__all__ = ["Pair", "StoredPairs", "distance_unit", "stored_pairs"]

Floats = npt.NDArray[np.float32]
_SAME = 1e-3
"""Share of a voxel's side by which those of a pair may differ."""


class Pair(NamedTuple):
    """Two items; numbers are of the cases."""

    name: str
    fixed: int
    moving: int


@dataclass(frozen=True, kw_only=True)
class StoredPairs:
    """Pairs of items with labels, an image and, where they are asked for, maps.

    Grids are (Z, Y, X) of volumes; of items with one row (Y, X). What is given for both comes as
    (fixed, moving).

    Attributes:
        cases: Items.
        pairs: Of them.
        left_out: Name of a pair -> why it cannot be registered.
    """

    cases: StoredCases
    pairs: tuple[Pair, ...]
    left_out: Mapping[str, str]

    def __len__(self) -> int:
        return len(self.pairs)

    def some(self, numbers: Sequence[int] | npt.NDArray[np.intp]) -> "StoredPairs":
        """Choose some of them."""
        return replace(self, pairs=tuple(self.pairs[number] for number in numbers))

    @property
    def table(self) -> pd.DataFrame:
        """A row a pair: that of its fixed item in the item table, and the names of all three."""
        items = self.cases.store.items.set_index("item_id", drop=False)
        rows = items.loc[[self.item_ids(number)[0] for number in range(len(self))]]
        moving = [self.item_ids(number)[1] for number in range(len(self))]
        return rows.reset_index(drop=True).assign(
            pair=[pair.name for pair in self.pairs], moving=moving
        )

    def item_ids(self, number: int) -> tuple[str, str]:
        """Name a pair's items."""
        pair = self.pairs[number]
        return self.cases.item_ids[pair.fixed], self.cases.item_ids[pair.moving]

    def geometry(self, number: int) -> tuple[Geometry, Geometry]:
        """Where a pair's rows lie."""
        pair = self.pairs[number]
        return self.cases.geometry(pair.fixed), self.cases.geometry(pair.moving)

    def grid(self, number: int) -> tuple[int, ...]:
        """(Z, Y, X), or (Y, X), of a pair."""
        fixed = self.pairs[number].fixed
        return _plain((self.cases.n_rows(fixed), *self.cases.size(fixed)))

    def labels(self, number: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        """Read the labels of a pair: grid uint8, 0 and the numbers of the task's labels from 1."""
        fixed, moving = (self._labels(case) for case in self.pairs[number][1:])
        return fixed, moving

    def values(self, number: int) -> tuple[Floats, Floats]:
        """Read the images of a pair: grid, values as stored; of several channels their mean."""
        fixed, moving = (self._stored(case)[0] for case in self.pairs[number][1:])
        return fixed, moving

    def images(self, number: int) -> tuple[Floats, Floats]:
        """Read the images of a pair: grid, each in its own window, from 0 to 1."""
        fixed, moving = (_in_window(*self._stored(case)) for case in self.pairs[number][1:])
        return fixed, moving

    def _labels(self, case: int) -> npt.NDArray[np.uint8]:
        labels = self.cases.labels(case, 0, self.cases.n_rows(case))
        return np.asarray(labels.reshape(_plain(labels.shape)))

    def _stored(self, case: int) -> tuple[Floats, tuple[float, float]]:
        stored = self.cases.store.native_array("image", self.cases.item_ids[case])
        low, high = stored.attributes["windows"][0]
        values = stored.read().mean(axis=0, dtype=np.float32)
        return values.reshape(_plain(values.shape)), (low, high)


def _in_window(values: Floats, window: tuple[float, float]) -> Floats:
    low, high = window
    scaled: Floats = np.clip((values - np.float32(low)) / np.float32((high - low) or 1), 0, 1)
    return scaled


def _plain(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[1:] if shape[0] == 1 else shape


def stored_pairs(
    where: Where, kinds: Sequence[str], labels: Mapping[int, str], rule: Pairs
) -> StoredPairs:
    """Find the pairs of a store.

    Args:
        where: The store: a path or a URL.
        kinds: Of maps, all of one grid; none where images alone are registered.
        labels: Value of the mask -> what it is.
        rule: Which items belong together.

    Returns:
        In order of names.

    Raises:
        StoreError: If the store lacks maps, images or masks, or cannot be read.
        ProbeError: If there is no such column, or no pair that can be registered.
    """
    cases, of_items = stored_cases(where, (*kinds, "image"), labels)
    cases = replace(cases, kinds=tuple(kinds))
    if cases.overlapping:
        raise ProbeError(f"the masks of {where} have several channels; a registration wants one")
    items = cases.store.items
    if lacking := [column for column in (rule.by, rule.role) if column not in items]:
        raise ProbeError(
            f"the items of {where} have no column {lacking[0]!r}, which tells pairs; there are "
            f"{', '.join(items.columns)}"
        )
    pairs, left_out = _matched(cases, items, rule, of_items)
    kept = []
    for pair in pairs:
        if reason := _fault(cases, pair):
            left_out[pair.name] = reason
        else:
            kept.append(pair)
    if not kept:
        why = next(iter(left_out.values()), f"{rule.by!r} names none")
        raise ProbeError(f"no pair of {where} can be registered: {why}")
    return StoredPairs(cases=cases, pairs=tuple(kept), left_out=dict(sorted(left_out.items())))


def _matched(
    cases: StoredCases, items: pd.DataFrame, rule: Pairs, of_items: Mapping[str, str]
) -> tuple[list[Pair], dict[str, str]]:
    """Put items together that have the same value of a column."""
    numbers = {item_id: number for number, item_id in enumerate(cases.item_ids)}
    roles = items[rule.role].astype(str)
    wanted = items[roles.isin([rule.fixed, rule.moving]) & items[rule.by].notna()]
    pairs: list[Pair] = []
    left_out: dict[str, str] = {}
    for name, of_pair in wanted.groupby(wanted[rule.by].astype(str), sort=True):
        found = []
        for role in (rule.fixed, rule.moving):
            ids = of_pair.loc[of_pair[rule.role].astype(str) == role, "item_id"].astype(str)
            if len(ids) != 1:
                left_out[str(name)] = f"it has {len(ids)} items with {rule.role} {role!r}, not one"
                break
            if ids.iloc[0] not in numbers:
                left_out[str(name)] = f"{ids.iloc[0]}: {of_items[ids.iloc[0]]}"
                break
            found.append(numbers[ids.iloc[0]])
        else:
            pairs.append(Pair(str(name), *found))
    return pairs, left_out


def _fault(cases: StoredCases, pair: Pair) -> str | None:
    """Say why a pair cannot be registered, if it cannot."""
    both = (pair.fixed, pair.moving)
    names = " and ".join(cases.item_ids[case] for case in both)
    grids = [(cases.n_rows(case), *cases.size(case)) for case in both]
    if grids[0] != grids[1]:
        return (
            f"{names} have {_sides(grids[0])} and {_sides(grids[1])} voxels; extract them with the "
            "reader's options spacing or size, and crop, so that they share a grid"
        )
    spacings = [cases.geometry(case).spacing for case in both]
    if not _alike(*spacings):
        said = " and ".join(_spacing(spacing) for spacing in spacings)
        return (
            f"{names} have voxels of {said}; extract them with the reader's option spacing, so "
            "that they share a grid"
        )
    only = StoredPairs(cases=cases, pairs=(pair,), left_out={})
    for case, image, labels in zip(both, only.images(0), only.labels(0), strict=True):
        if image.min() == image.max():
            return f"the image of {cases.item_ids[case]} is the same everywhere"
        if not labels.any():
            return f"the mask of {cases.item_ids[case]} is empty"
    return None


def _alike(one: Sequence[float] | None, other: Sequence[float] | None) -> bool:
    if one is None or other is None:
        return one is other
    return bool(np.allclose(one, other, rtol=_SAME, atol=0))


def _sides(grid: Sequence[int]) -> str:
    return " x ".join(map(str, grid))


def _spacing(spacing: Sequence[float] | None) -> str:
    if spacing is None:
        return "no size"
    return " x ".join(f"{side:.4g}" for side in spacing) + " mm"


def distance_unit(rule: Pairs, geometry: Geometry, axes: int) -> tuple[float, ...]:
    """Say how far apart voxels are, as distances between surfaces are measured.

    Args:
        rule: In mm or in voxels.
        geometry: Of the fixed item.
        axes: 3, or 2 of pictures.

    Returns:
        (z, y, x), or (y, x); 1 where voxels are wanted, or the file does not say.
    """
    spacing: tuple[Any, ...] | None = geometry.spacing if rule.distances == "mm" else None
    return (spacing or (1.0, 1.0, 1.0))[-axes:]
