"""Which values of an item become 0 and 1. See docs/readers.md, "Intensity"."""

import math
from collections.abc import Callable, Iterable

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
    if len(item.parts) > 1:
        if len(windows) not in (1, len(item.parts)):
            raise ItemError(f"it has {len(item.parts)} channels, the recipe {len(windows)} windows")
        several = windows * len(item.parts) if len(windows) == 1 else windows
        return tuple(
            pair
            for window, part in zip(several, item.parts, strict=True)
            for pair in item_windows((window,), part)
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
    """All values of a channel: counted where they are integers, else gathered.

    Counting needs no second copy of a volume and gives percentiles exactly.
    """

    def __init__(self, rows: Callable[[], Iterable[Channel]], *, nonzero: bool) -> None:
        self._counts: npt.NDArray[np.int64] | None = None
        self._offset = 0
        gathered = []
        for row in rows():
            if row.dtype.kind == "f":
                if not np.isfinite(row).all():
                    raise ItemError("its pixels are NaN or infinite")
                gathered.append(row[row != 0] if nonzero else row.ravel())
            else:
                self._count(row)
        if self._counts is not None and nonzero:
            self._counts[-self._offset] = 0
        self._gathered = np.concatenate(gathered) if gathered else np.empty(0, np.float32)
        if not (self._gathered.size or (self._counts is not None and self._counts.any())):
            raise ItemError("all of its values are 0, and the window leaves those out")

    def _count(self, row: Channel) -> None:
        limits = np.iinfo(row.dtype.name)
        if self._counts is None:
            self._counts = np.zeros(limits.max - limits.min + 1, np.int64)
            self._offset = limits.min
        # Behind an offset in the unsigned type of the same width: bincount takes no negatives.
        unsigned = row.ravel().view(f"u{row.dtype.itemsize}") if limits.min else row.ravel()
        counts = np.bincount(unsigned, minlength=len(self._counts))
        self._counts += np.roll(counts, -limits.min) if limits.min else counts

    def percentiles(self, low: float, high: float) -> Window:
        """Give two percentiles, as numpy does by default (linear between neighbours)."""
        if self._counts is None:
            found = np.percentile(self._gathered, [low, high], overwrite_input=True)
            return float(found[0]), float(found[1])
        total = self._counts.cumsum()
        return self._counted(total, low), self._counted(total, high)

    def _counted(self, total: npt.NDArray[np.int64], percent: float) -> float:
        position = (int(total[-1]) - 1) * percent / 100
        below = math.floor(position)
        first, second = (
            int(np.searchsorted(total, rank, side="right")) + self._offset
            for rank in (below, min(below + 1, int(total[-1]) - 1))
        )
        return first + (second - first) * (position - below)

    def moments(self) -> tuple[float, float]:
        """Give mean and standard deviation (of the population)."""
        if self._counts is None:
            values = self._gathered
            return float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64))
        levels = np.arange(len(self._counts), dtype=np.float64) + self._offset
        weights = self._counts / self._counts.sum()
        mean = float(levels @ weights)
        return mean, math.sqrt(float((levels - mean) ** 2 @ weights))
