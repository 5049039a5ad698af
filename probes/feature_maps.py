"""Maps of an item as people can look at them: principal components as colours, a foreground."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dinocache.errors import ProbeError
from probes.components import scatter_of, widest_axes

__all__ = ["MOST_PATCHES", "ComponentMaps", "ReadMaps"]

ReadMaps = Callable[[int, int], npt.NDArray[np.floating[Any]]]
"""(first row, the one behind the last) -> (rows, grid_height, grid_width, dim)."""

MOST_PATCHES = 200_000
"""Patches of an item that components are fitted on; of a larger item, some rows are."""
_BLOCK = 1 << 22
"""Numbers that are turned to float64 at once: 32 MiB, and as many for what is made of them."""
_BINS = 256
_LEAST_SPREAD = 1e-4
"""Of the widest component's: what a component has below that is rounding of float32."""
_ROUNDING = 2.0**-23
"""Of float32, as a share of a number."""
_FEWEST = 4
"""Patches that three components need."""

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class ComponentMaps:
    """Three principal components of an item's patches, the same for all of its rows.

    Signs of components are arbitrary; here the loading of largest magnitude is positive. So are
    the sides of the threshold: foreground is the side that stands less along the border of the
    rows than among all patches, and the upper one of a draw. Where that is wrong, as of tissue
    that fills the picture, `dataclasses.replace` turns `is_above`; not with `foreground_only`,
    whose components are those of one side.

    Attributes:
        mean: (dim,) float32, of the patches whose components these are.
        basis: (dim, 3) float32, columns of length 1, the widest first.
        low: (3,) float32, the 1st percentile of each component, which becomes 0.
        high: (3,) float32, the 99th, which becomes 1; where it is `low` the component does not
            vary, and is 0.
        centre: (dim,) float32, the mean of all patches.
        axis: (dim,) float32, the first component of all patches.
        threshold: Of that component, between background and foreground, by Otsu's method.
        is_above: Whether what is above it is foreground.
        foreground_only: Whether `mean`, `basis`, `low` and `high` are of the foreground alone;
            else they are of all patches, `centre` is `mean`, `axis` the first column of `basis`.
        rows: (k,) numbers of the rows that it was fitted on.

    References:
        DINOv2 (arXiv:2304.07193), "PCA of patch features": components of the patches whose first
        component is above a threshold. Otsu, IEEE Trans. Systems, Man, Cybernetics 9 (1979) 62-66.
    """

    mean: Floats
    basis: Floats
    low: Floats
    high: Floats
    centre: Floats
    axis: Floats
    threshold: float
    is_above: bool
    foreground_only: bool
    rows: npt.NDArray[np.intp]

    @classmethod
    def fit(
        cls,
        read: ReadMaps,
        n_rows: int,
        *,
        foreground_only: bool = False,
        most_patches: int = MOST_PATCHES,
    ) -> "ComponentMaps":
        """Find the components of an item, and the range of each.

        Rows are read in blocks, several times; beside a block there are some (dim, dim) matrices
        and three numbers a patch. Of an item with at most `most_patches` patches all are taken,
        and mean, covariance (summed up in float64) and percentiles are exact. Of a larger one rows
        evenly spaced are taken whole, as many as have that many patches, at least one.

        Args:
            read: Gives some rows of the item, of finite numbers:
                `functools.partial(store.rows, "dense", item_id)`.
            n_rows: How many the item has.
            foreground_only: Whether the components are to be those of the foreground; what is
                outside is black then.
            most_patches: See above.

        Returns:
            The components.

        Raises:
            ProbeError: If there are fewer than 4 patches (of the foreground) or 3 dimensions, or
                a number is not finite.
            StoreError: If `read` cannot read.
        """
        sample = _Sample.of(read, n_rows, most_patches)
        centre, all_basis = sample.components()
        scores = sample.scores(centre, all_basis)
        threshold = _otsu(scores[:, 0])
        above = scores[:, 0] > threshold
        is_above = _stands_inside(above.reshape(-1, *sample.grid))
        mean, basis = centre, all_basis
        if foreground_only:
            kept = above == is_above
            mean, basis = sample.components(kept)
            scores = sample.scores(mean, basis)[kept]
        low, high = _ranges(scores)
        return cls(
            mean=mean,
            basis=basis,
            low=low,
            high=high,
            centre=centre,
            axis=all_basis[:, 0],
            threshold=threshold,
            is_above=is_above,
            foreground_only=foreground_only,
            rows=sample.rows,
        )

    def rgb(self, maps: npt.NDArray[np.floating[Any]]) -> Floats:
        """Colour rows by their components.

        Args:
            maps: (rows, grid_height, grid_width, dim).

        Returns:
            (rows, grid_height, grid_width, 3) float32 in [0, 1]: red is the first component. All
            0 outside the foreground where the components are those of the foreground.

        Raises:
            ProbeError: If maps have another dim.
        """
        patches = self._patches(maps)
        span = self.high - self.low
        colours = _project(patches, self.mean, self.basis)
        colours -= self.low
        colours /= np.where(span > 0, span, np.inf).astype(np.float32)
        np.clip(colours, 0, 1, out=colours)
        if self.foreground_only:
            colours[~self._is_foreground(patches)] = 0
        return colours.reshape(*maps.shape[:3], 3)

    def foreground(self, maps: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.bool_]:
        """Tell which patches are foreground.

        Args:
            maps: (rows, grid_height, grid_width, dim).

        Returns:
            (rows, grid_height, grid_width); none of an item whose patches are all alike.

        Raises:
            ProbeError: If maps have another dim.
        """
        return self._is_foreground(self._patches(maps)).reshape(maps.shape[:3])

    def _is_foreground(self, patches: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        above = _project(patches, self.centre, self.axis[:, None])[:, 0] > self.threshold
        return above if self.is_above else ~above

    def _patches(self, maps: npt.NDArray[np.floating[Any]]) -> npt.NDArray[Any]:
        if maps.ndim != 4 or maps.shape[-1] != len(self.mean):
            raise ProbeError(
                f"the components are of (rows, height, width, {len(self.mean)}), these maps are "
                f"{maps.shape}; give maps of the kind and store that they were fitted on"
            )
        return maps.reshape(-1, maps.shape[-1])


@dataclass(frozen=True, kw_only=True)
class _Sample:
    """Rows of an item, or some of them, read again as often as they are needed.

    Attributes:
        read: Gives rows.
        rows: (k,) which.
        grid: (height, width) of a row, in patches.
        dim: Of a patch.
        is_whole: Whether all rows are taken, so that neighbours can be read together.
    """

    read: ReadMaps
    rows: npt.NDArray[np.intp]
    grid: tuple[int, int]
    dim: int
    is_whole: bool

    @classmethod
    def of(cls, read: ReadMaps, n_rows: int, most_patches: int) -> "_Sample":
        """Choose rows of an item that have so many patches; see `ComponentMaps.fit`."""
        shape = read(0, 1).shape if n_rows > 0 else ()
        if len(shape) != 4:
            raise ProbeError(
                "principal components are of maps (rows, height, width, dim), as of the kind "
                f"`dense`; of {n_rows} row(s) these have the shape {shape}"
            )
        _, height, width, dim = shape
        rows = _spaced(n_rows, most_patches // (height * width))
        whole = len(rows) == n_rows
        return cls(read=read, rows=rows, grid=(height, width), dim=dim, is_whole=whole)

    def blocks(self) -> Iterator[npt.NDArray[Any]]:
        """Yield (patches, dim), row after row, of about `_BLOCK` numbers."""
        height, width = self.grid
        most = max(1, _BLOCK // self.dim)
        together = max(1, most // (height * width)) if self.is_whole else 1
        for first in self.rows[::together].tolist():
            stop = min(first + together, int(self.rows[-1]) + 1)
            maps = self.read(first, stop)
            if maps.shape != (stop - first, *self.grid, self.dim):
                raise ProbeError(
                    f"rows {first} to {stop - 1} have maps of {maps.shape}, the first row's are "
                    f"(1, {height}, {width}, {self.dim}); components are of maps of one size"
                )
            patches = maps.reshape(-1, self.dim)
            for at in range(0, len(patches), most):
                yield patches[at : at + most]

    def components(self, kept: npt.NDArray[np.bool_] | None = None) -> tuple[Floats, Floats]:
        """Find the (dim,) mean and the (dim, 3) first components, of all patches or those kept."""
        count = len(self.rows) * self.grid[0] * self.grid[1] if kept is None else int(kept.sum())
        if count < _FEWEST or self.dim < 3:
            what, way_out = "patches", ""
            if kept is not None:
                what, way_out = "patches of foreground", "; leave foreground_only out"
            raise ProbeError(
                f"three principal components need {_FEWEST} {what} and 3 dimensions, this item "
                f"has {count} and {self.dim}{way_out}"
            )
        try:
            _, mean, scatter = scatter_of(self._chosen(kept))
        except ProbeError:
            raise
        except ValueError as exc:
            raise ProbeError(
                "a map holds numbers that are not finite, of which there are no components; "
                "`dinocache verify` says whether the store is damaged"
            ) from exc
        axes = widest_axes(scatter / count, 3)
        return mean.astype(np.float32), axes.astype(np.float32)

    def _chosen(self, kept: npt.NDArray[np.bool_] | None) -> Iterator[npt.NDArray[Any]]:
        """Yield all patches, or those kept."""
        at = 0
        for block in self.blocks():
            yield block if kept is None else block[kept[at : at + len(block)]]
            at += len(block)

    def scores(self, mean: Floats, basis: Floats) -> Floats:
        """Give the components of all patches: (patches, 3)."""
        return np.concatenate([_project(block, mean, basis) for block in self.blocks()])


def _spaced(n_rows: int, most: int) -> npt.NDArray[np.intp]:
    """Choose rows: the middles of equal parts of the item; all where there are no more than most.

    Args:
        n_rows: How many there are.
        most: How many are wanted; one is chosen in any case.
    """
    parts = min(n_rows, max(1, most))
    return (2 * np.arange(parts, dtype=np.intp) + 1) * n_rows // (2 * parts)


def _project(patches: npt.NDArray[Any], mean: Floats, basis: Floats) -> Floats:
    """Give the (patches, k) components of patches, a block of them at a time."""
    found = np.empty((len(patches), basis.shape[1]), np.float32)
    most = max(1, _BLOCK // len(mean))
    for at in range(0, len(patches), most):
        some = patches[at : at + most].astype(np.float32)
        some -= mean
        np.matmul(some, basis, out=found[at : at + most])
    return found


def _ranges(scores: Floats) -> tuple[Floats, Floats]:
    """Give what becomes 0 and 1 of each component; the same of one that does not vary."""
    low, high = np.percentile(scores, [1, 99], axis=0).astype(np.float32)
    span = high - low
    return low, np.where(span > _LEAST_SPREAD * span.max(), high, low).astype(np.float32)


def _otsu(values: Floats) -> float:
    """Divide values in two so that the variance between both is largest, on 256 bins.

    Returns:
        The middle of the last bin of the lower part; the highest of values that are all the same
        but for rounding, which has none above it.
    """
    wide = values.astype(np.float64)
    low, high = float(wide.min()), float(wide.max())
    if high - low <= _ROUNDING * max(abs(low), abs(high)):
        return high
    counts, edges = np.histogram(wide, _BINS)
    middles = (edges[1:] + edges[:-1]) / 2
    below = np.cumsum(counts)
    sums = np.cumsum(counts * middles)
    above, rest = below[-1] - below[:-1], sums[-1] - sums[:-1]
    # No part is empty: the first bin holds the lowest value, the last one the highest.
    between = below[:-1] * above * (sums[:-1] / below[:-1] - rest / above) ** 2
    return float(middles[between.argmax()])


def _stands_inside(mask: npt.NDArray[np.bool_]) -> bool:
    """Tell whether of (rows, height, width) no larger share is set along the border than of all."""
    border = np.ones(mask.shape[1:], np.bool_)
    border[1:-1, 1:-1] = False
    return bool(mask[:, border].mean() <= mask.mean())
