"""Which values of an item become 0 and 1. See docs/readers.md, "Intensity"."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from dinocache.errors import ItemError
from dinocache.readers.contract import OpenItem, Pixels
from dinocache.recipe import WindowRecipe

__all__ = ["Window", "item_windows"]

Window = tuple[float, float]
Channel = npt.NDArray[np.generic]

_BLOCK_ROWS = 16


def item_windows(windows: tuple[WindowRecipe, ...], item: OpenItem) -> tuple[Window, ...]:
    """Give the values of an item that stand for 0 and 1.

    Args:
        windows: Of the recipe.
        item: The open item; all of its rows are read where a window depends on them.

    Returns:
        (low, high) with low < high, a pair for each window and, where one window holds for several
        files, for each of those.

    Raises:
        ItemError: If the recipe does not suit the item, or the item is damaged.
    """
    found = _found(windows, item)
    for low, high in found:
        if not low < high:
            raise ItemError(f"its file says that all its values lie between {low:g} and {high:g}")
    return found


def _found(windows: tuple[WindowRecipe, ...], item: OpenItem) -> tuple[Window, ...]:
    if len(item.parts) > 1:
        if len(windows) not in (1, len(item.parts)):
            raise ItemError(f"it has {len(item.parts)} channels, the recipe {len(windows)} windows")
        several = windows * len(item.parts) if len(windows) == 1 else windows
        return tuple(
            pair
            for window, part in zip(several, item.parts, strict=True)
            for pair in _found((window,), part)
        )
    return tuple(
        _window(window, item, None if len(windows) == 1 else channel)
        for channel, window in enumerate(windows)
    )


def _window(window: WindowRecipe, item: OpenItem, channel: int | None) -> Window:
    if window.mode == "range" and window.low is not None and window.high is not None:
        return window.low, window.high
    if window.mode == "file":
        if item.file_window is None:
            raise ItemError("its file names no window of its own; choose another --window")
        return item.file_window
    if window.mode == "full-range":
        return item.value_range or _range_of_type(item.rows(0, 1)[0])
    values = _Values(lambda: _channel_of(item, channel), nonzero=window.nonzero)
    low, high = _measured(window, values)
    return low, high if high > low else max(low + 1, math.nextafter(low, math.inf))


def _range_of_type(row: Pixels) -> Window:
    if row.dtype.kind == "f":
        raise ItemError(
            "its pixels are floats, which have no full range: say --window min-max, percentile or "
            "LOW:HIGH"
        )
    limits = np.iinfo(row.dtype.name)
    return float(limits.min), float(limits.max)


def _channel_of(item: OpenItem, channel: int | None) -> Iterable[Channel]:
    """Yield an item's rows, or one channel of each; a grey item has one for every window."""
    for start in range(0, item.n_rows, _BLOCK_ROWS):
        for row in item.rows(start, min(start + _BLOCK_ROWS, item.n_rows)):
            yield row if channel is None else row[min(channel, len(row) - 1)]


def _measured(window: WindowRecipe, values: "_Values") -> Window:
    if window.mode == "min-max":
        low, high = values.percentiles(0, 100)
        return low, high
    if window.low is None or window.high is None:
        raise AssertionError(f"a window {window.mode} without limits")
    if window.mode == "percentile":
        return values.percentiles(window.low, window.high)
    mean, deviation = values.moments()
    return mean + window.low * deviation, mean + window.high * deviation


class _Values:
    """All values of a channel, counted: exact, and in memory that does not grow with the item."""

    def __init__(self, rows: Callable[[], Iterable[Channel]], *, nonzero: bool) -> None:
        self._rows, self._nonzero = rows, nonzero
        self._total = 0
        self._dtype = np.dtype(np.uint8)
        for values in self._each():
            self._dtype = values.dtype
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                raise ItemError("its pixels are NaN or infinite")
            self._total += values.size
        if not self._total:
            raise ItemError("all of its values are 0, and the window leaves those out")

    def _each(self) -> Iterator[npt.NDArray[Any]]:
        for row in self._rows():
            yield row[row != 0] if self._nonzero else row.ravel()

    def percentiles(self, low: float, high: float) -> Window:
        """Give two percentiles, as numpy does by default (linear between neighbours)."""
        positions = [(self._total - 1) * percent / 100 for percent in (low, high)]
        last = self._total - 1
        ranks = {r for p in positions for r in (math.floor(p), min(math.floor(p) + 1, last))}
        at = self._at(sorted(ranks))
        first, second = (
            at[(below := math.floor(p))] + (at[min(below + 1, last)] - at[below]) * (p - below)
            for p in positions
        )
        return first, second

    def _at(self, ranks: list[int]) -> dict[int, float]:
        """Find the values of some ranks, from 0: by their upper 16 bits, then by the lower ones."""
        wide = self._dtype.itemsize > 2
        upper = np.zeros(1 << 16, np.int64)
        for values in self._each():
            upper += np.bincount(_keys(values) >> (16 if wide else 0), minlength=len(upper))
        before = upper.cumsum()
        bins = [int(np.searchsorted(before, rank, side="right")) for rank in ranks]
        if not wide:
            return {rank: _value(key, self._dtype) for rank, key in zip(ranks, bins, strict=True)}
        lower = {key: np.zeros(1 << 16, np.int64) for key in bins}
        for values in self._each():
            keys = _keys(values)
            top = keys >> 16
            for key, counts in lower.items():
                counts += np.bincount(keys[top == key] & 0xFFFF, minlength=len(counts))
        found = {}
        for rank, key in zip(ranks, bins, strict=True):
            within = rank - int(before[key] - upper[key])
            low = int(np.searchsorted(lower[key].cumsum(), within, side="right"))
            found[rank] = _value(key << 16 | low, self._dtype)
        return found

    def moments(self) -> tuple[float, float]:
        """Give mean and standard deviation (of the population)."""
        mean = sum(float(v.sum(dtype=np.float64)) for v in self._each()) / self._total
        squares = sum(float(((v - mean) ** 2).sum(dtype=np.float64)) for v in self._each())
        return mean, math.sqrt(squares / self._total)


def _keys(values: npt.NDArray[Any]) -> npt.NDArray[np.uint32]:
    """Turn values to whole numbers of the same order, from 0."""
    if values.dtype.kind != "f":
        return (values.astype(np.int64) - np.iinfo(values.dtype).min).astype(np.uint32)
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    # IEEE 754: negative numbers count downwards.
    return np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))


def _value(key: int, dtype: np.dtype[Any]) -> float:
    if dtype.kind != "f":
        return float(key + np.iinfo(dtype).min)
    bits = key ^ (1 << 31) if key >> 31 else key ^ 0xFFFFFFFF
    return float(np.array(bits, np.uint32).view(np.float32))
