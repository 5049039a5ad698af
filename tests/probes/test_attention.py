"""Pictures of attention over slides."""

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from making import tiny_request
from matplotlib.image import imread
from PIL import Image
from scipy.stats import percentileofscore

from dinocache.errors import RequestError, StoreDamagedError, StoreIncompleteError
from dinocache.extract import extract
from dinocache.readers import ItemFiles, make_reader
from dinocache.store import FeatureStore
from probes.attention import (
    Thumbnail,
    attention_picture,
    heat_map,
    percentile_ranks,
    read_thumbnail,
    tile_side,
)

Array = npt.NDArray[Any]
OPTIONS = {"tile_px": 32, "tile_mpp": "native", "tissue": "none"}


def test_tiles_are_painted_where_they_lie() -> None:
    # A slide of 60 x 40 px in a picture of 6 x 4 px.
    corners = np.array([[0, 0], [20, 0], [40, 20]])
    painted = heat_map(corners, np.array([1, 2, 3]), side=20, size=(60, 40), shape=(4, 6))
    none = np.nan
    expected = [
        [1, 1, 2, 2, none, none],
        [1, 1, 2, 2, none, none],
        [none, none, none, none, 3, 3],
        [none, none, none, none, 3, 3],
    ]
    np.testing.assert_array_equal(painted, expected)


@pytest.mark.parametrize(
    ("side", "step"),
    [
        pytest.param(70, 70, id="abutting"),
        pytest.param(70, 45, id="overlapping"),
        pytest.param(3, 70, id="smaller-than-a-pixel"),
    ],
)
def test_overlapping_tiles_give_their_mean(side: int, step: int) -> None:
    draws = np.random.default_rng(0)
    width, height, shape = 1003, 611, (37, 61)
    x, y = np.meshgrid(np.arange(0, width - side, step), np.arange(0, height - side, step))
    corners = np.stack([x.ravel(), y.ravel()], axis=1).astype(float)
    corners = corners[draws.random(len(corners)) < 0.7]
    values = draws.random(len(corners))
    total, count = np.zeros(shape), np.zeros(shape)
    for (left, top), value in zip(corners, values, strict=True):
        columns = [round(edge * shape[1] / width) for edge in (left, left + side)]
        lines = [round(edge * shape[0] / height) for edge in (top, top + side)]
        columns[1], lines[1] = max(columns[1], columns[0] + 1), max(lines[1], lines[0] + 1)
        total[slice(*lines), slice(*columns)] += value
        count[slice(*lines), slice(*columns)] += 1
    expected = np.full(shape, np.nan)
    expected[count > 0] = (total[count > 0]) / count[count > 0]
    painted = heat_map(corners, values, side=side, size=(width, height), shape=shape)
    np.testing.assert_allclose(painted, expected, atol=1e-12)


def test_tiles_that_abut_leave_no_gap() -> None:
    x, y = np.meshgrid(np.arange(40) * 7, np.arange(30) * 7)
    corners = np.stack([x.ravel(), y.ravel()], axis=1).astype(float)
    painted = heat_map(corners, np.ones(1200), side=7, size=(280, 210), shape=(99, 131))
    np.testing.assert_allclose(painted, np.ones((99, 131)))


@pytest.mark.parametrize(
    ("corners", "values", "message"),
    [
        pytest.param([[0, 0, 0]], [1], r"got \(1, 3\) and \(1,\)", id="three-coordinates"),
        pytest.param([[0, 0]], [1, 2], r"got \(1, 2\) and \(2,\)", id="other-tiles"),
        pytest.param([[95, 0]], [1], "within the slide of 100 x 50 level-0 px", id="outside"),
        pytest.param([[-5, 0]], [1], "within the slide", id="before"),
        pytest.param(np.ones((0, 2)), [], "at least one; got 0", id="none"),
    ],
)
def test_tiles_that_do_not_fit(corners: Any, values: Any, message: str) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match=message):
        heat_map(np.array(corners), np.array(values), side=10, size=(100, 50), shape=(5, 10))


def test_percentiles_are_those_of_scipy() -> None:
    weights = np.array([0.2, 0.1, 0.1, 0.5, 0.07, 0.03], np.float32)
    expected = [percentileofscore(weights, weight, kind="mean") for weight in weights]
    np.testing.assert_allclose(percentile_ranks(weights), expected)


@pytest.mark.parametrize("overlap", [0, 8])
def test_the_side_of_tiles(overlap: int) -> None:
    # Tiles of 32 px at a downsample of 4.
    lines, columns = np.array([[0, 0], [0, 3], [5, 2], [9, 3]]).T
    step = (32 - overlap) * 4
    corners = np.stack([columns * step, lines * step], axis=1)
    assert tile_side(corners, tile_px=32, overlap_px=overlap) == 128
    with pytest.raises(ValueError, match="one tile does not show how large it is"):
        tile_side(corners[:1], tile_px=32, overlap_px=overlap)


def picture(*, with_slide: bool, ranked: bool, peak: int = 3) -> Array:
    corners = np.stack(np.meshgrid([0, 100, 200], [0, 100]), axis=-1).reshape(-1, 2).astype(float)
    weights = np.full(6, 0.1, np.float32)
    weights[peak] = 0.5
    thumbnail = Thumbnail(pixels=np.full((41, 83, 3), 255, np.uint8), size=(415, 205))
    content = attention_picture(
        corners, weights, side=100, thumbnail=thumbnail if with_slide else None, ranked=ranked
    )
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    pixels: Array = imread(io.BytesIO(content), format="png")
    return pixels


@pytest.mark.parametrize("ranked", [True, False])
@pytest.mark.parametrize("with_slide", [True, False])
def test_pictures(with_slide: bool, ranked: bool) -> None:
    pixels = picture(with_slide=with_slide, ranked=ranked)
    np.testing.assert_array_equal(pixels, picture(with_slide=with_slide, ranked=ranked))
    height, width = pixels.shape[:2]
    proportion = (205 / 415) * 4 / 8.8 if with_slide else (200 / 300) * 4 / 4.8
    assert height / width == pytest.approx(proportion, rel=0.02)
    # Another peak changes the right panel alone: two tiles, one in either line.
    other = picture(with_slide=with_slide, ranked=ranked, peak=2)
    lines, columns = np.nonzero((pixels != other).any(axis=2))
    assert columns.min() > (0.45 * width if with_slide else 0)
    assert lines.min() < height / 2 < lines.max()
    brighter = (pixels - other)[..., 1]  # of viridis, green rises with the value
    changed = np.abs(brighter) > 0.05
    assert (brighter[changed & (np.arange(height) > height / 2)[:, np.newaxis]] > 0).all()
    assert (brighter[changed & (np.arange(height) < height / 2 - 9)[:, np.newaxis]] < 0).all()


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> tuple[FeatureStore, Path]:
    folder = tmp_path_factory.mktemp("slides")
    draws = np.random.default_rng(0)
    for name, shape in (("a", (70, 140, 3)), ("b", (100, 50, 3))):
        Image.fromarray(draws.integers(0, 255, shape, np.uint8)).save(folder / f"{name}.png")
    table = folder / "slides.csv"
    pd.DataFrame({"item_id": ["a", "b"], "path": ["a.png", "b.png"]}).to_csv(table, index=False)
    outcome = extract(
        tiny_request(table, folder / "features", reader="slide", options=OPTIONS, features=("cls",))
    )
    assert outcome.complete
    return FeatureStore(outcome.path), folder


@pytest.mark.parametrize(("item", "size"), [("a", (140, 70)), ("b", (50, 100))])
def test_from_a_store_to_a_picture(
    slides: tuple[FeatureStore, Path], item: str, size: tuple[int, int]
) -> None:
    store, folder = slides
    thumbnail = read_thumbnail(store, item)
    assert thumbnail.size == size
    with make_reader("slide", OPTIONS).open(ItemFiles(path=folder / f"{item}.png")) as opened:
        np.testing.assert_array_equal(thumbnail.pixels, opened.thumbnail())
    corners, columns = store.coords(item)
    assert columns == (("x", "level-0 px"), ("y", "level-0 px"))
    assert tile_side(corners, tile_px=32, overlap_px=0) == 32
    weights = np.arange(len(corners), dtype=np.float32)
    assert len(attention_picture(corners, weights, side=32, thumbnail=thumbnail)) > 1000


def test_a_thumbnail_that_is_not_there(
    slides: tuple[FeatureStore, Path], tiny_store: FeatureStore
) -> None:
    with pytest.raises(RequestError, match="holds no item 'c'"):
        read_thumbnail(slides[0], "c")
    with pytest.raises(StoreIncompleteError, match="no small picture of item '0003'; only slides"):
        read_thumbnail(tiny_store, "0003")


def test_a_thumbnail_that_is_damaged(slides: tuple[FeatureStore, Path], tmp_path: Path) -> None:
    store = FeatureStore(shutil.copytree(slides[0].path, tmp_path / "copy"))
    path = store.path / "thumbs" / "1.png"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(StoreDamagedError, match=r"thumbs/1\.png is damaged; run `dinocache ver"):
        read_thumbnail(store, "b")
    path.unlink()
    with pytest.raises(StoreDamagedError, match=r"thumbs/1\.png is missing; run `dinocache ver"):
        read_thumbnail(FeatureStore(store.path), "b")
