"""Which values become 0 and 1, held against numpy over all values at once."""

from typing import Literal

import numpy as np
import pytest
from making import RowsItem

from dinocache.errors import ItemError
from dinocache.intensity import item_windows
from dinocache.readers.contract import OpenItem, Pixels
from dinocache.recipe import WindowRecipe
from dinocache.request import parse_windows


def volume(dtype: str, *, channels: int = 1, seed: int = 0) -> list[Pixels]:
    rng = np.random.default_rng(seed)
    values = rng.normal(100, 900, (37, channels, 11, 13)) * (
        rng.random((37, channels, 11, 13)) > 0.3
    )
    if dtype.startswith("float"):
        return list(values.astype(dtype))
    limits = np.iinfo(dtype)
    return list(values.clip(limits.min, limits.max).astype(dtype))


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "float32"])
@pytest.mark.parametrize("nonzero", [False, True])
@pytest.mark.parametrize("text", ["min-max", "percentile", "percentile:3.7:91", "z-score:1.5"])
def test_measured_windows(dtype: str, nonzero: bool, text: str) -> None:
    rows = volume(dtype)
    (window,) = parse_windows(f"{text}/nonzero" if nonzero else text)
    ((low, high),) = item_windows((window,), RowsItem(rows))
    values = np.concatenate([row.ravel() for row in rows]).astype(np.float64)
    if nonzero:
        values = values[values != 0]
    if text == "min-max":
        expected = values.min(), values.max()
    elif text.startswith("z"):
        expected = values.mean() - 1.5 * values.std(), values.mean() + 1.5 * values.std()
    else:
        limits = (0.5, 99.5) if text == "percentile" else (3.7, 91)
        expected = tuple(np.percentile(values, limits))
    np.testing.assert_allclose((low, high), expected, rtol=1e-6, atol=1e-9)


def test_each_channel_has_its_own_window() -> None:
    rows = volume("int16", channels=2)
    windows = parse_windows("min-max,percentile:5:95")
    found = item_windows(windows, RowsItem(rows))
    first, second = (np.stack([row[c] for row in rows]) for c in (0, 1))
    assert found[0] == (first.min(), first.max())
    np.testing.assert_allclose(found[1], np.percentile(second, (5, 95)))


def test_three_windows_of_one_grey_channel() -> None:
    rows = volume("int16")
    assert item_windows(parse_windows("lung,soft-tissue,bone"), RowsItem(rows)) == (
        (-1350, 150),
        (-160, 240),
        (-500, 1300),
    )


class Parts(RowsItem):
    """An item of two files."""

    def __init__(self, *parts: OpenItem) -> None:
        super().__init__(parts[0].rows(0, parts[0].n_rows))
        self._parts = parts

    @property
    def parts(self) -> tuple[OpenItem, ...]:
        return self._parts


def test_several_files_are_measured_each_by_itself() -> None:
    ct, pet = RowsItem(volume("int16")), RowsItem(volume("float32", seed=1))
    ct.value_range = (-1024, 3071)
    both = Parts(ct, pet)
    assert item_windows(parse_windows("full-range,suv"), both) == ((-1024, 3071), (0, 20))
    one = item_windows(parse_windows("min-max"), both)
    assert one == (
        item_windows(parse_windows("min-max"), ct)[0],
        item_windows(parse_windows("min-max"), pet)[0],
    )
    with pytest.raises(ItemError, match="it has 2 channels, the recipe 3 windows"):
        item_windows(parse_windows("hu,suv,suv"), both)


def test_what_the_file_says() -> None:
    item = RowsItem(volume("uint16"))
    with pytest.raises(ItemError, match="its file names no window of its own"):
        item_windows(parse_windows("file"), item)
    assert item_windows(parse_windows("full-range"), item) == ((0, 65535),)
    item.value_range, item.file_window = (0, 4095), (120, 900)
    assert item_windows(parse_windows("full-range"), item) == ((0, 4095),)
    assert item_windows(parse_windows("file"), item) == ((120, 900),)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_nothing_but_zeros(dtype: str) -> None:
    item = RowsItem([np.zeros((1, 3, 5), dtype)])
    with pytest.raises(ItemError, match="all of its values are 0"):
        item_windows(parse_windows("percentile/nonzero"), item)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("text", ["min-max", "percentile", "z-score"])
def test_not_a_number_is_refused(bad: float, text: str) -> None:
    rows = volume("float32")
    rows[20][0, 3, 4] = bad
    with pytest.raises(ItemError, match="NaN or infinite"):
        item_windows(parse_windows(text), RowsItem(rows))


Mode = Literal["range", "percentile", "z-score", "file"]


@pytest.mark.parametrize(
    ("text", "mode", "low", "high"),
    [
        ("W400L40", "range", -160, 240),
        ("w1500l-600", "range", -1350, 150),
        ("hu", "range", -1000, 1000),
        ("brain", "range", 0, 80),
        ("file", "file", None, None),
        ("percentile", "percentile", 0.5, 99.5),
        ("percentile:2:98.5", "percentile", 2, 98.5),
        ("z-score", "z-score", -3, 3),
        ("z-score:2.5", "z-score", -2.5, 2.5),
    ],
)
def test_words_for_windows(text: str, mode: Mode, low: float | None, high: float | None) -> None:
    assert parse_windows(text) == (WindowRecipe(mode=mode, low=low, high=high),)
