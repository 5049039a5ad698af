import contextlib
import struct
import threading
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from reader_contract import ReaderContract, Sample

from dinocache.errors import ItemError, RequestError
from dinocache.geometry import Geometry
from dinocache.readers import ItemFiles, make_reader
from dinocache.readers.pyramid import Pyramid, open_pyramid
from dinocache.readers.slide import settle_um_per_px
from dinocache.recipe import InputRecipe
from dinocache.transforms import Preprocess

openslide = pytest.importorskip("openslide")
tifffile = pytest.importorskip("tifffile")
pytest.importorskip("imagecodecs")

WIDTH, HEIGHT = 620, 470
BLOB = (slice(64, 320), slice(128, 448))
"""Lines and columns of tissue: tiles of 64 px, five wide and four high."""
NATIVE = {
    "tile_px": 64,
    "tile_mpp": "native",
    "tissue_downsample": 4,
    "min_area": 0.01,
    "median": 3,
}
EVERYWHERE = {"tissue": "none"}


def scanned(width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """Make glass with a rectangle of stained texture."""
    generator = np.random.default_rng(5)
    image = np.full((height, width, 3), 244, np.uint8)
    lines, columns = (
        range(*part.indices(end)) for part, end in zip(BLOB, (height, width), strict=True)
    )
    coarse = generator.integers(0, 90, (len(lines) // 8 + 1, len(columns) // 8 + 1, 3))
    texture = coarse.repeat(8, axis=0).repeat(8, axis=1)[: len(lines), : len(columns)]
    image[BLOB] = texture + np.array([150, 20, 90])
    return image


def halved(image: np.ndarray) -> np.ndarray:
    height, width = (side // 2 * 2 for side in image.shape[:2])
    parts = image[:height, :width].reshape(height // 2, 2, width // 2, 2, 3)
    return parts.mean(axis=(1, 3)).round().astype(np.uint8)


def write_pyramid(
    path: Path,
    image: np.ndarray,
    *,
    levels: int = 3,
    um_per_px: float | tuple[float, float] | None = 0.25,
    unit: str = "CENTIMETER",
    compression: str | None = "jpeg",
    tile: int | None = 48,
    description: str | None = None,
) -> Path:
    """Write a TIFF pyramid, each level half of the one before; without `tile` in strips."""
    with tifffile.TiffWriter(path) as file:
        for level in range(levels):
            more: dict[str, object] = {"rowsperstrip": 37} if tile is None else {}
            if tile is not None:
                more["tile"] = tile, tile
            if um_per_px is not None:
                each = um_per_px if isinstance(um_per_px, tuple) else (um_per_px, um_per_px)
                um = {"CENTIMETER": 10_000, "INCH": 25_400}[unit]
                more |= {
                    "resolution": tuple(um / value / 2**level for value in each),
                    "resolutionunit": unit,
                }
            file.write(
                image,
                photometric="rgb",
                compression=compression,
                subfiletype=1 if level else 0,
                metadata=None,
                description=description if level == 0 else None,
                **more,
            )
            image = halved(image)
    return path


def overwrite(path: Path, page: int = 0, **tags: object) -> Path:
    """Change tags of a TIFF file in place."""
    with tifffile.TiffFile(path, mode="r+b") as file:
        for name, value in tags.items():
            file.pages[page].tags[name].overwrite(value)
    return path


def by_openslide(path: Path, x: int, y: int, level: int, size: tuple[int, int]) -> np.ndarray:
    """Read a region as it is usually done, on white, (Y, X, 3)."""
    with openslide.OpenSlide(path) as slide:
        region = slide.read_region((x, y), level, size)
    white = Image.new("RGBA", size, (255, 255, 255, 255))
    return np.asarray(Image.alpha_composite(white, region).convert("RGB"))


def tiles_of(image: np.ndarray, side: int = 64) -> np.ndarray:
    """Cut the tiles of the blob, (20, 3, side, side)."""
    return np.stack(
        [
            image[y : y + side, x : x + side].transpose(2, 0, 1)
            for y in range(64, 320, side)
            for x in range(128, 448, side)
        ]
    )


class TestTiledJpegTiff(ReaderContract):
    reader_name = "slide"

    @pytest.fixture
    def sample(self, tmp_path: Path) -> Sample:
        path = write_pyramid(tmp_path / "slide.tif", scanned())
        whole = by_openslide(path, 0, 0, 0, (WIDTH, HEIGHT))
        claims = write_pyramid(tmp_path / "claims.tif", scanned(64, 48), levels=1)
        overwrite(claims, ImageWidth=10**6, ImageLength=10**6)
        return Sample(
            files=ItemFiles(path=path),
            rows=tiles_of(whole),
            options=NATIVE,
            tolerance=1,
            claims=claims,
        )


class TestDeflateTiff(ReaderContract):
    reader_name = "slide"

    @pytest.fixture
    def sample(self, tmp_path: Path) -> Sample:
        path = write_pyramid(tmp_path / "slide.tif", scanned(), compression="zlib", tile=80)
        claims = write_pyramid(tmp_path / "claims.tif", scanned(64, 48), levels=1)
        overwrite(claims, TileWidth=10**6, TileLength=10**6)
        return Sample(
            files=ItemFiles(path=path), rows=tiles_of(scanned()), options=NATIVE, claims=claims
        )


class TestStripTiff(ReaderContract):
    """OpenSlide opens tiled TIFF files only."""

    reader_name = "slide"

    @pytest.fixture
    def sample(self, tmp_path: Path) -> Sample:
        path = write_pyramid(tmp_path / "slide.tif", scanned(), compression="lzw", tile=None)
        claims = write_pyramid(tmp_path / "claims.tif", scanned(64, 48), levels=1, tile=None)
        overwrite(claims, ImageWidth=10**6, ImageLength=10**6, RowsPerStrip=10**6)
        return Sample(
            files=ItemFiles(path=path), rows=tiles_of(scanned()), options=NATIVE, claims=claims
        )


class TestPng(ReaderContract):
    reader_name = "slide"

    @pytest.fixture
    def sample(self, tmp_path: Path) -> Sample:
        path = tmp_path / "slide.png"
        Image.fromarray(scanned()).save(path)
        claims = tmp_path / "claims.png"
        header = b"IHDR" + struct.pack(">IIBBBBB", 10**6, 10**6, 8, 2, 0, 0, 0)
        body = b"IDAT" + zlib.compress(bytes(3000))
        claims.write_bytes(
            b"\x89PNG\r\n\x1a\n"
            + b"".join(
                struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part))
                for part in (header, body)
            )
        )
        return Sample(
            files=ItemFiles(path=path), rows=tiles_of(scanned()), options=NATIVE, claims=claims
        )


class TestJpeg(ReaderContract):
    reader_name = "slide"

    @pytest.fixture
    def sample(self, tmp_path: Path) -> Sample:
        path = tmp_path / "slide.jpg"
        Image.fromarray(scanned()).save(path, quality=90)
        with Image.open(path) as image:
            whole = np.asarray(image.convert("RGB"))
        content = path.read_bytes()
        frame = content.index(b"\xff\xc0")
        claims = tmp_path / "claims.jpg"
        claims.write_bytes(content[: frame + 5] + b"\xff\xff\xff\xff" + content[frame + 9 :])
        return Sample(
            files=ItemFiles(path=path), rows=tiles_of(whole), options=NATIVE, claims=claims
        )


def refusal(path: Path, **options: object) -> str:
    """Give the message with which a slide is refused, at opening or at its first tile."""
    with (
        pytest.raises(ItemError) as caught,
        make_reader("slide", options).open(ItemFiles(path=path)) as item,
    ):
        item.rows(0, item.n_rows)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("um_per_px", "tile_mpp", "level", "side"),
    [
        pytest.param(0.25, 0.5, 1, 64, id="a-level-is-as-wanted"),
        pytest.param(0.23, 0.5, 1, 70, id="finer-level-then-larger-tile"),
        pytest.param(0.26, 0.5, 0, 123, id="next-level-is-too-coarse"),
        pytest.param(0.251, 0.5, 1, 64, id="half-a-percent-is-equal"),
        pytest.param(0.5, 0.5, 0, 64, id="finest"),
        pytest.param(0.51, 0.5, 0, 63, id="two-percent-coarser"),
        pytest.param(0.25, 1.3, 2, 83, id="between-levels"),
    ],
)
def test_a_tile_has_its_physical_size_at_the_nearest_finer_level(
    tmp_path: Path, um_per_px: float, tile_mpp: float, level: int, side: int
) -> None:
    path = write_pyramid(tmp_path / "slide.tif", scanned(640, 480), um_per_px=um_per_px)
    reader = make_reader("slide", EVERYWHERE | {"tile_px": 64, "tile_mpp": tile_mpp})
    with reader.open(ItemFiles(path=path)) as item:
        found = item.rows(0, item.n_rows)
        coords = item.coords()
    assert {row.shape for row in found} == {(3, side, side)}
    assert len(found) == (640 // 2**level // side) * (480 // 2**level // side)
    for row, (x, y) in zip(found, coords.astype(int).tolist(), strict=True):
        np.testing.assert_array_equal(
            row.transpose(1, 2, 0), by_openslide(path, x, y, level, (side, side))
        )


def test_coordinates_are_corners_at_level_0_by_y_then_x(tmp_path: Path) -> None:
    path = write_pyramid(tmp_path / "slide.tif", scanned(), compression="zlib")
    reader = make_reader("slide", EVERYWHERE | {"tile_px": 50, "tile_mpp": 0.25})
    assert reader.columns == (("x", "level-0 px"), ("y", "level-0 px"))
    with reader.open(ItemFiles(path=path)) as item:
        coords = item.coords().astype(int).tolist()
        rows = item.rows(0, item.n_rows)
    assert coords == [[x, y] for y in range(0, 421, 50) for x in range(0, 571, 50)]
    for row, (x, y) in zip(rows, coords, strict=True):
        np.testing.assert_array_equal(row.transpose(1, 2, 0), scanned()[y : y + 50, x : x + 50])
    with make_reader("slide", EVERYWHERE | {"tile_px": 50}).open(ItemFiles(path=path)) as item:
        assert item.coords()[[0, 1, 6]].tolist() == [[0, 0], [100, 0], [0, 100]]


def test_tiles_abut_where_levels_have_odd_sides(tmp_path: Path) -> None:
    path = write_pyramid(tmp_path / "slide.tif", scanned(623, 471))
    reader = make_reader("slide", EVERYWHERE | {"tile_px": 30, "tile_mpp": 1.0})
    with (
        reader.open(ItemFiles(path=path)) as item,
        contextlib.closing(open_pyramid(path)) as pyramid,
    ):
        assert pyramid.downsamples[2] != 4
        coords = item.coords()
        rows = item.rows(0, item.n_rows)
        whole = pyramid.region(2, 0, 0, *pyramid.sizes[2])
    assert coords[:3, 0].tolist() == [round(k * 30 * pyramid.downsamples[2]) for k in range(3)]
    np.testing.assert_array_equal(rows[1].transpose(1, 2, 0), whole[:30, 30:60])


def test_overlap(tmp_path: Path) -> None:
    path = write_pyramid(tmp_path / "slide.tif", scanned(), compression="zlib")
    options = EVERYWHERE | {"tile_px": 100, "tile_mpp": 0.25, "overlap_px": 40}
    with make_reader("slide", options).open(ItemFiles(path=path)) as item:
        coords = item.coords().astype(int).tolist()
        rows = item.rows(0, item.n_rows)
    assert coords == [[x, y] for y in range(0, 371, 60) for x in range(0, 521, 60)]
    np.testing.assert_array_equal(rows[0][:, :, 60:], rows[1][:, :, :40])


@pytest.mark.parametrize(
    ("min_tissue", "columns"),
    [
        pytest.param(0.2, [96, 192, 288, 384], id="a-third-is-enough"),
        pytest.param(0.5, [96, 192, 288, 384], id="two-thirds-are-enough"),
        pytest.param(0.7, [192, 288], id="whole-ones"),
        pytest.param(1.0, [192, 288], id="all-of-it"),
    ],
)
def test_min_tissue(tmp_path: Path, min_tissue: float, columns: list[int]) -> None:
    """Tiles of 96 px: 128 to 448 covers two thirds of the one at 96, and of that at 384."""
    path = write_pyramid(tmp_path / "slide.tif", scanned(), compression="zlib")
    options = NATIVE | {"tile_px": 96, "median": 1, "close": 0, "min_tissue": min_tissue}
    with make_reader("slide", options).open(ItemFiles(path=path)) as item:
        coords = item.coords()
    assert coords[coords[:, 1] == 96, 0].tolist() == columns
    assert set(coords[:, 1]) <= {0, 96, 192, 288}


@pytest.mark.parametrize("levels", [1, 2, 4])
def test_tissue_does_not_depend_on_the_levels_that_there_are(tmp_path: Path, levels: int) -> None:
    path = write_pyramid(tmp_path / "slide.tif", scanned(), levels=levels, compression="zlib")
    with make_reader("slide", NATIVE | {"tissue_downsample": 8}).open(ItemFiles(path=path)) as item:
        assert item.coords().tolist() == [
            [x, y] for y in range(64, 320, 64) for x in range(128, 448, 64)
        ]


def test_an_overview_is_the_mean_of_what_it_covers(tmp_path: Path) -> None:
    path = write_pyramid(tmp_path / "slide.tif", scanned(), levels=1, compression="zlib")
    with contextlib.closing(open_pyramid(path)) as pyramid:
        overview = pyramid.overview(10)
        odd = pyramid.overview(13)
    assert overview.shape == (47, 62, 3)
    mean = scanned().reshape(47, 10, 62, 10, 3).mean(axis=(1, 3))
    assert np.abs(overview - mean).max() <= 1
    assert odd.shape == (37, 48, 3)
    assert (odd[:, -1] == 244).all()


def test_bands_do_not_change_an_overview(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_pyramid(tmp_path / "slide.tif", scanned(), levels=1)
    with contextlib.closing(open_pyramid(path)) as pyramid:
        whole = pyramid.overview(11)
        monkeypatch.setattr("dinocache.readers.pyramid._BAND_PX", 3 * 11 * WIDTH)
        np.testing.assert_array_equal(pyramid.overview(11), whole)


def test_no_tissue_names_the_thresholds(tmp_path: Path) -> None:
    path = write_pyramid(tmp_path / "slide.tif", np.full((300, 410, 3), 244, np.uint8))
    message = refusal(path, **NATIVE)
    assert "min_tissue=0.25" in message
    assert "saturation above 8" in message
    blob = write_pyramid(tmp_path / "blob.tif", scanned())
    assert "min_area=0.4 squares of 512 px 2" in refusal(blob, **NATIVE | {"min_area": 0.4})


def test_a_slide_smaller_than_a_tile_is_refused(tmp_path: Path) -> None:
    path = write_pyramid(tmp_path / "slide.tif", scanned(400, 110))
    message = refusal(path, tile_px=56, **EVERYWHERE)
    assert message == "it has 200 x 55 px at level 1, less than a tile of 56 px"


@pytest.mark.parametrize(
    ("stated", "given", "expected"),
    [
        pytest.param((0.25, 0.25), None, 0.25, id="stated"),
        pytest.param((0.25, 0.26), None, 0.255, id="mean-of-nearly-square"),
        pytest.param((0.25, 0.25), 0.26, 0.25, id="agreeing"),
        pytest.param(None, 0.3, 0.3, id="given"),
        pytest.param((352.8, 352.8), 0.3, 0.3, id="72-dpi-is-no-statement"),
        pytest.param((0.0, 0.0), 0.3, 0.3, id="zero-is-no-statement"),
        pytest.param((float("nan"), 0.25), 0.3, 0.3, id="nan-is-no-statement"),
    ],
)
def test_um_per_px(
    stated: tuple[float, float] | None, given: float | None, expected: float
) -> None:
    assert settle_um_per_px(stated, given) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("stated", "given", "message"),
    [
        pytest.param(None, None, "does not state its um/px; --mpp X gives it", id="missing"),
        pytest.param((0.25, 0.25), 0.5, "states 0.25 um/px, --mpp says 0.5", id="conflict"),
        pytest.param((0.25, 0.5), None, "no squares: 0.25 x 0.5 um", id="not-square"),
        pytest.param((0.25, 0.5), 0.25, "no squares: 0.25 x 0.5 um", id="not-square-given"),
        pytest.param((352.8, 352.8), None, "352.8 x 352.8 um/px, which no slide has", id="dpi"),
        pytest.param((0.0, 0.25), None, "--mpp X gives the true one", id="zero"),
    ],
)
def test_um_per_px_that_cannot_be(
    stated: tuple[float, float] | None, given: float | None, message: str
) -> None:
    with pytest.raises(ItemError, match=message):
        settle_um_per_px(stated, given)


@pytest.mark.parametrize("unit", ["CENTIMETER", "INCH"])
@pytest.mark.parametrize("tile", [48, None])
def test_resolution_tags_have_units(tmp_path: Path, unit: str, tile: int | None) -> None:
    path = write_pyramid(tmp_path / "slide.tif", scanned(), um_per_px=0.243, unit=unit, tile=tile)
    with contextlib.closing(open_pyramid(path)) as pyramid:
        assert pyramid.um_per_px == pytest.approx((0.243, 0.243), rel=1e-3)


@pytest.mark.parametrize("tile", [48, None])
def test_um_per_px_of_files(tmp_path: Path, tile: int | None) -> None:
    bare = write_pyramid(tmp_path / "bare.tif", scanned(), um_per_px=None, tile=tile)
    assert "--mpp X gives it" in refusal(bare, **EVERYWHERE)
    with make_reader("slide", EVERYWHERE | {"slide_mpp": 0.5}).open(ItemFiles(path=bare)) as item:
        assert item.rows(0, 1)[0].shape == (3, 224, 224)
    stated = write_pyramid(tmp_path / "stated.tif", scanned(), um_per_px=0.25, tile=tile)
    assert "0.25 um/px, --mpp says 0.5" in refusal(stated, slide_mpp=0.5, **EVERYWHERE)
    flat = write_pyramid(tmp_path / "flat.tif", scanned(), um_per_px=(0.25, 0.5), tile=tile)
    assert "no squares" in refusal(flat, **EVERYWHERE)
    dots = write_pyramid(tmp_path / "dots.tif", scanned(), um_per_px=352.8, tile=tile)
    assert "352.8" in refusal(dots, **EVERYWHERE)


def test_a_picture_states_no_um_per_px(tmp_path: Path) -> None:
    path = tmp_path / "slide.jpg"
    Image.fromarray(scanned()).save(path, dpi=(72, 72))
    assert "--mpp X gives it" in refusal(path, **EVERYWHERE)


def test_a_coarser_slide_is_not_enlarged(tmp_path: Path) -> None:
    path = write_pyramid(tmp_path / "slide.tif", scanned(), um_per_px=1.0)
    assert "1 um/px, coarser than the tile_mpp of 0.5" in refusal(path, **EVERYWHERE)


def test_tiles_that_the_file_leaves_out_are_white(tmp_path: Path) -> None:
    path = write_pyramid(tmp_path / "slide.tif", scanned(), tile=64)
    with tifffile.TiffFile(path) as file:
        counts = list(file.pages[0].databytecounts)
    counts[2 * 10 + 3] = 0  # y 128, x 192
    overwrite(path, TileByteCounts=counts)
    with contextlib.closing(open_pyramid(path)) as pyramid:
        found = pyramid.region(0, 100, 90, 230, 120)
    assert (found[38:102, 92:156] == 255).all()
    np.testing.assert_array_equal(found, by_openslide(path, 100, 90, 0, (230, 120)))


def test_transparent_pixels_are_white(tmp_path: Path) -> None:
    rgba = np.concatenate([scanned(), np.full((HEIGHT, WIDTH, 1), 255, np.uint8)], axis=2)
    rgba[200:, :, 3] = 0
    for suffix in ("tif", "png"):
        path = tmp_path / f"slide.{suffix}"
        if suffix == "png":
            Image.fromarray(rgba).save(path)
        else:
            tifffile.imwrite(
                path, rgba, tile=(64, 64), photometric="rgb", extrasamples=["unassalpha"],
                compression="zlib", metadata=None,
            )  # fmt: skip
        with make_reader("slide", NATIVE).open(ItemFiles(path=path)) as item:
            coords = item.coords()
            last = item.rows(item.n_rows - 1, item.n_rows)[0]
        assert coords[:, 1].max() == 192 - 64, "a tile with an eighth of tissue was kept"
        assert last.shape == (3, 64, 64)
        with contextlib.closing(open_pyramid(path)) as pyramid:
            assert (pyramid.region(0, 128, 200, 99, 88) == 255).all()


def test_threads_share_a_slide_whose_cache_is_too_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dinocache.readers.tiff_tiles._CACHE_BYTES", 5 * 48 * 48 * 3)
    path = write_pyramid(tmp_path / "slide.tif", scanned())
    whole = by_openslide(path, 0, 0, 0, (WIDTH, HEIGHT))
    with contextlib.closing(open_pyramid(path)) as pyramid, ThreadPoolExecutor(4) as pool:
        corners = [(x, y) for y in range(0, 400, 37) for x in range(0, 500, 41)] * 3

        def same(corner: tuple[int, int]) -> bool:
            x, y = corner
            return np.array_equal(pyramid.region(0, x, y, 90, 70), whole[y : y + 70, x : x + 90])

        assert all(pool.map(same, corners))
        cache = pyramid._tiles._cache
        assert cache._bytes == sum(kept.result().nbytes for kept in cache._held.values())
        assert cache._bytes <= 5 * 48 * 48 * 3


SLOW = {
    "openslide": ("slide.tif", "_OpenSlidePyramid"),
    "strips": ("slide.tif", "_TiffPyramid"),
    "picture": ("slide.png", "_Picture"),
}


@pytest.mark.parametrize("sort", list(SLOW))
def test_close_waits_for_those_who_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sort: str
) -> None:
    name, kind = SLOW[sort]
    path = tmp_path / name
    if sort == "picture":
        Image.fromarray(scanned()).save(path)
    else:
        write_pyramid(path, scanned(), tile=None if sort == "strips" else 48)
    pyramid = open_pyramid(path)
    assert type(pyramid).__name__ == kind
    expected = pyramid.region(0, 100, 60, 90, 70)
    began, may_go_on, closing = threading.Event(), threading.Event(), threading.Event()
    happened: list[str] = []
    read, close = type(pyramid)._region, type(pyramid)._close

    def slow(self: Pyramid, *where: int) -> np.ndarray:
        began.set()
        assert may_go_on.wait(60)
        found = read(self, *where)
        happened.append("read")
        return found

    def noted(self: Pyramid) -> None:
        happened.append("closed")
        close(self)

    monkeypatch.setattr(type(pyramid), "_region", slow)
    monkeypatch.setattr(type(pyramid), "_close", noted)

    def shut() -> None:
        closing.set()
        pyramid.close()

    with ThreadPoolExecutor(2) as pool:
        reading = pool.submit(pyramid.region, 0, 100, 60, 90, 70)
        assert began.wait(60)
        closed = pool.submit(shut)
        assert closing.wait(60)
        with contextlib.suppress(TimeoutError):
            closed.result(0.2)
        assert happened == []
        may_go_on.set()
        np.testing.assert_array_equal(reading.result(60), expected)
        closed.result(60)
    assert happened == ["read", "closed"]
    pyramid.close()
    assert happened == ["read", "closed"]
    for again in (lambda: pyramid.region(0, 0, 0, 9, 9), lambda: pyramid.overview(4)):
        with pytest.raises(ItemError, match=r"^the slide was closed before it was read$"):
            again()


@pytest.mark.parametrize("grey", [False, True])
def test_grey_becomes_three_channels(tmp_path: Path, grey: bool) -> None:
    image = scanned()[..., 0]
    path = tmp_path / "slide.tif"
    strips = {} if grey else {"tile": (64, 64)}
    tifffile.imwrite(path, image, photometric="minisblack", metadata=None, **strips)
    with contextlib.closing(open_pyramid(path)) as pyramid:
        found = pyramid.region(0, 5, 6, 300, 200)
    np.testing.assert_array_equal(found, image[6:206, 5:305, None].repeat(3, axis=2))


def test_jpeg2000_of_aperio_comes_from_openslide(tmp_path: Path) -> None:
    path = write_pyramid(
        tmp_path / "slide.svs", scanned(), levels=1, compression="aperio_jp2000_rgb",
        description="Aperio Image Library v1\r\n620x470 |AppMag = 20|MPP = 0.4990",
    )  # fmt: skip
    with contextlib.closing(open_pyramid(path)) as pyramid:
        assert pyramid.um_per_px == (0.499, 0.499)
        found = pyramid.region(0, 100, 50, 90, 70)
    np.testing.assert_array_equal(found, by_openslide(path, 100, 50, 0, (90, 70)))


def test_the_thumbnail_shows_tissue_and_tiles(tmp_path: Path) -> None:
    path = write_pyramid(tmp_path / "slide.tif", scanned(2460, 1210), compression="zlib")
    with make_reader("slide", NATIVE).open(ItemFiles(path=path)) as item:
        shown = item.thumbnail()
    assert shown.shape == (503, 1024, 3)
    scale = 1024 / 2460
    edge = shown[round(190 * scale) - 3 : round(190 * scale) + 3, round(448 * scale) - 4 :][:, :8]
    assert (edge == (0, 140, 60)).all(axis=2).any()
    assert (shown[400:, 600:] == 244).all(), "glass is left as it is"
    inside = shown[60:120, 70:170].astype(int)
    assert inside[..., 2].mean() > scanned()[150:290, 170:400, 2].mean()
    with make_reader("slide", NATIVE | EVERYWHERE).open(ItemFiles(path=path)) as item:
        assert item.thumbnail().shape == (503, 1024, 3)


def test_masks_are_refused(tmp_path: Path) -> None:
    path = write_pyramid(tmp_path / "slide.tif", scanned())
    reader = make_reader("slide", NATIVE)
    with (
        reader.open(ItemFiles(path=path)) as item,
        pytest.raises(ItemError, match="masks of slides are not read"),
    ):
        item.mask()
    with pytest.raises(ItemError, match="lie on no grid"):
        reader.open(ItemFiles(path=path), Geometry(shape=(1, 2, 3)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tile_px": 0}, "tile_px"),
        ({"tile_mpp": "40x"}, "tile_mpp"),
        ({"overlap_px": 224}, "overlap_px must be less than tile_px"),
        ({"median": 6}, "median must be odd"),
        ({"slide_mpp": 0}, "slide_mpp"),
        ({"tissue": "otsu"}, "tissue"),
    ],
)
def test_options_that_cannot_be(options: dict[str, object], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        make_reader("slide", options)


def broken_tile(path: Path) -> None:
    with tifffile.TiffFile(path) as file:
        place = file.pages[0].dataoffsets[0]
    with path.open("r+b") as file:
        content = file.read()
        frame = content.index(b"\xff\xc0", place)
        file.seek(frame + 5)
        file.write(b"\xff\xff\xff\xff")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        pytest.param(broken_tile, "tile 0 is no JPEG of 48 x 48 px", id="tile-claims-4-gigapixels"),
        pytest.param(
            lambda path: overwrite(path, TileWidth=10**6, TileLength=10**6),
            "tiles of 1000000 x 1000000 px",
            id="tiles-of-terapixels",
        ),
        pytest.param(
            lambda path: overwrite(path, TileOffsets=[1 << 31] * 130),
            "tiles lie behind the file's end",
            id="offsets",
        ),
        pytest.param(
            lambda path: overwrite(path, ImageWidth=1240), "places of 130", id="too-few-tiles"
        ),
        pytest.param(
            lambda path: overwrite(path, ImageWidth=0), "620|0 x 470|no level", id="no-width"
        ),
    ],
)
def test_damage_is_named(tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    path = write_pyramid(tmp_path / "slide.tif", scanned(), levels=1)
    damage(path)
    found = refusal(path, **NATIVE | EVERYWHERE)
    assert any(part in found for part in message.split("|")), found


def test_a_folder_and_text_are_no_slides(tmp_path: Path) -> None:
    assert "a folder" in refusal(tmp_path)
    text = tmp_path / "slide.svs"
    text.write_text("no slide")
    assert "not a slide that OpenSlide, tifffile or Pillow know" in refusal(text)


def test_deep_tiff_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "slide.tif"
    tifffile.imwrite(path, scanned().astype(np.uint16), photometric="rgb", metadata=None)
    assert "samples have 16 bits, not 8" in refusal(path, **NATIVE)


SVS = "slides/openslide-cmu1/tests/fixtures/svs-images/cmu-1-small-region.svs"
FIXTURES = "odd-files/openslide-python/tests/fixtures"


def test_a_real_svs_gives_the_pixels_of_openslide(shared_data: Path) -> None:
    path = shared_data / SVS
    with make_reader("slide", {"min_area": 1}).open(ItemFiles(path=path)) as item:
        rows = item.rows(0, item.n_rows)
        coords = item.coords().astype(int).tolist()
        thumbnail = item.thumbnail()
        assert item._pyramid._page_of == [0]
    assert 30 < len(rows) < 9 * 13
    for row, (x, y) in zip(rows, coords, strict=True):
        np.testing.assert_array_equal(
            row.transpose(1, 2, 0), by_openslide(path, x, y, 0, (224, 224))
        )
    assert max(thumbnail.shape) == 1024


def test_a_real_svs_is_of_20x_and_not_of_40x(shared_data: Path) -> None:
    path = shared_data / SVS
    assert "states 0.499 um/px, --mpp says 0.25" in refusal(path, slide_mpp=0.25)
    assert "coarser than the tile_mpp of 0.25" in refusal(path, tile_mpp=0.25)


def test_boxes_give_the_pixels_of_openslide(shared_data: Path) -> None:
    path = shared_data / FIXTURES / "boxes.tiff"
    assert "352.8 x 352.8 um/px" in refusal(path)
    for tile_mpp, level in ((0.5, 0), (1.0, 1), (2.1, 2)):
        options = {"tile_px": 16, "tile_mpp": tile_mpp, "slide_mpp": 0.5} | EVERYWHERE
        with make_reader("slide", options).open(ItemFiles(path=path)) as item:
            rows = item.rows(0, item.n_rows)
            coords = item.coords().astype(int).tolist()
        side = rows[0].shape[1]
        with contextlib.closing(open_pyramid(path)) as pyramid:
            assert pyramid._page_of == [0, 1, 2, 3]
            shrink = pyramid.downsamples[level]
        for row, (x, y) in zip(rows, coords, strict=True):
            if (x / shrink).is_integer() and (y / shrink).is_integer():
                expected = by_openslide(path, x, y, level, (side, side))
                difference = np.abs(row.transpose(1, 2, 0).astype(int) - expected)
                assert difference.max() <= 1


@pytest.mark.parametrize("name", ["small.svs", "boxes_0.dcm", "boxes_1.dcm"])
def test_other_slides_of_openslide(shared_data: Path, name: str) -> None:
    path = shared_data / FIXTURES / name
    options = {"tile_px": 16, "tile_mpp": 0.499} | EVERYWHERE
    with make_reader("slide", options).open(ItemFiles(path=path)) as item:
        row = item.rows(0, 1)[0].transpose(1, 2, 0)
    np.testing.assert_array_equal(row, by_openslide(path, 0, 0, 0, (16, 16)))


@pytest.mark.parametrize(
    "name",
    [
        f"{FIXTURES}/unreadable.svs",
        f"{FIXTURES}/unopenable.tiff",
        "slides/openslide-cmu1/tests/fixtures/svs-images/broken.svs",
    ],
)
def test_real_broken_slides_are_refused(shared_data: Path, name: str) -> None:
    assert refusal(shared_data / name, tile_px=16, tile_mpp=0.499, **EVERYWHERE)


def test_odd_tiffs_are_read_or_refused(shared_data: Path) -> None:
    folder = shared_data / "odd-files" / "large_image" / "test" / "test_files"
    reader = make_reader("slide", EVERYWHERE | {"tile_px": 16, "tile_mpp": "native"})
    read = []
    for path in sorted(folder.iterdir()):
        with contextlib.suppress(ItemError), reader.open(ItemFiles(path=path)) as item:
            item.rows(0, min(3, item.n_rows))
            read.append(path.name)
    assert {"grey10kx5k.tif", "yb10kx5k.zstd.tiff", "test_orient6.tif"} <= set(read)


def test_resized_tiles_are_those_of_a_plain_loop(shared_data: Path) -> None:
    """OpenSlide's region, resized by Pillow in 8 bits, as tools for slides do."""
    path = next((shared_data / "slides/openslide-cmu1").rglob("cmu-1-small-region.svs"))
    options = {"tile_px": 224, "tile_mpp": 0.75, "min_area": 0}
    recipe = InputRecipe(resolution=(224, 224), mean=(0, 0, 0), std=(1, 1, 1))
    prepare = Preprocess(recipe, torch.device("cpu"))
    with make_reader("slide", options).open(ItemFiles(path=path)) as item:
        rows, coords = item.rows(0, item.n_rows), item.coords().astype(int)
    side = rows[0].shape[1]
    assert side == round(224 * 0.75 / 0.499)
    differences = []
    for row, (x, y) in zip(rows, coords, strict=True):
        tile = by_openslide(path, x, y, 0, (side, side))
        np.testing.assert_array_equal(row, tile.transpose(2, 0, 1))
        resized = Image.fromarray(tile).resize((224, 224), Image.Resampling.BICUBIC)
        ours = prepare(row, [(0, 255)]).numpy().transpose(1, 2, 0) * 255
        differences.append(np.abs(ours - np.asarray(resized)).mean())
    assert len(differences) > 15
    assert max(differences) <= 2
