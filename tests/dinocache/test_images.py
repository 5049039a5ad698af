"""The image reader and what becomes of its pixels."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dinocache.encoders import encoder_spec
from dinocache.errors import ItemError
from dinocache.manifest import find_dataset
from dinocache.readers import ImageReader
from dinocache.recipe import InputRecipe
from dinocache.transforms import Preprocess, window_range

GREY = (np.arange(7 * 5).reshape(7, 5) * 7).astype(np.uint8)
RGB = np.stack([GREY, GREY[::-1], 255 - GREY], axis=-1)


def read(path: Path) -> np.ndarray:
    return ImageReader().read(path, 0, 1).rows[0]


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp"])
@pytest.mark.parametrize("array", [GREY, RGB], ids=["grey", "rgb"])
def test_values_are_those_of_the_file(tmp_path: Path, suffix: str, array: np.ndarray) -> None:
    Image.fromarray(array).save(tmp_path / f"x.{suffix}")
    expected = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
    np.testing.assert_array_equal(read(tmp_path / f"x.{suffix}"), expected)


def test_other_modes(tmp_path: Path) -> None:
    deep = (GREY.astype(np.uint16) * 257) + 3
    alpha = np.dstack([RGB, np.full_like(GREY, 255)])
    modes = {
        "deep.png": (Image.fromarray(deep), deep[None]),
        "deep.tif": (Image.fromarray(deep), deep[None]),
        "rgba.png": (Image.fromarray(alpha), RGB.transpose(2, 0, 1)),
        "la.png": (Image.fromarray(np.dstack([GREY, GREY]), "LA"), GREY[None]),
        "bit.png": (Image.fromarray(GREY > 99), (GREY > 99)[None] * np.uint8(255)),
    }
    palette = Image.fromarray(GREY % 3).convert("P")
    palette.putpalette([9, 8, 7, 60, 50, 40, 200, 100, 0])
    colours = np.array([[9, 8, 7], [60, 50, 40], [200, 100, 0]], np.uint8)
    modes["palette.png"] = (palette, colours[GREY % 3].transpose(2, 0, 1))
    for name, (image, expected) in modes.items():
        image.save(tmp_path / name)
        found = read(tmp_path / name)
        assert found.dtype == expected.dtype, name
        np.testing.assert_array_equal(found, expected, err_msg=name)
    np.testing.assert_array_equal(
        ImageReader().read_mask(tmp_path / "palette.png"), (GREY % 3)[None]
    )
    with pytest.raises(ItemError, match=r"a mask has one channel; .* 'RGBA'"):
        ImageReader().read_mask(tmp_path / "rgba.png")


def test_floats_are_read_as_they_are(tmp_path: Path) -> None:
    values = GREY.astype(np.float32) * 17.25 - 1024.125
    values[3, 2] = np.nan
    values[4, 1] = np.inf
    Image.fromarray(values).save(tmp_path / "float.tif")
    found = read(tmp_path / "float.tif")
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, values[None])
    with pytest.raises(ItemError, match=r"a mask has one channel; .* mode 'F'"):
        ImageReader().read_mask(tmp_path / "float.tif")


@pytest.mark.parametrize("suffix", ["jpg", "webp"])
def test_lossy_formats(tmp_path: Path, suffix: str) -> None:
    smooth = np.linspace(20, 220, 48 * 32).reshape(48, 32).astype(np.uint8)
    Image.fromarray(smooth).save(tmp_path / f"x.{suffix}", quality=95)
    found = read(tmp_path / f"x.{suffix}")
    assert np.abs(found.astype(int) - smooth).max() < 12


def test_exif_orientation(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned clockwise by a quarter
    Image.fromarray(GREY).save(tmp_path / "x.png", exif=exif)
    np.testing.assert_array_equal(read(tmp_path / "x.png"), np.rot90(GREY, -1)[None])


def lying_png(side: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        crc = zlib.crc32(name + data)
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"x") + chunk(b"IEND", b"")
    )


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    Image.fromarray(RGB.repeat(20, 0).repeat(20, 1)).save(tmp_path / "whole.png")
    Image.fromarray(RGB.repeat(20, 0).repeat(20, 1)).save(tmp_path / "whole.jpg")
    Image.fromarray(RGB, "LAB").save(tmp_path / "lab.tif")
    (tmp_path / "folder.png").mkdir()
    cases = {
        "cut.png": ((tmp_path / "whole.png").read_bytes()[:300], "cannot be decoded: "),
        "cut.jpg": ((tmp_path / "whole.jpg").read_bytes()[:700], "cannot be decoded: "),
        "text.png": (b"hello", "not an image that Pillow knows"),
        "empty.png": (b"", "not an image that Pillow knows"),
        "large.png": (lying_png(100_000), "its header claims 100000 x 100000 px"),
        "none.png": (None, "the file is missing"),
        "folder.png": (None, "it is a folder, not an image file"),
        "lab.tif": (None, "its pixels are of Pillow's mode 'LAB'; convert it to 8 or 16 bits"),
    }
    for name, (content, message) in cases.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(ItemError, match=message) as caught:
            read(tmp_path / name)
        assert "\n" not in str(caught.value)
        assert str(tmp_path) not in str(caught.value)


def recipe(height: int, width: int) -> InputRecipe:
    spec = encoder_spec("dinov3-s")
    return InputRecipe(resolution=(height, width), mean=spec.mean, std=spec.std)


def prepare(pixels: np.ndarray, height: int, width: int) -> torch.Tensor:
    given = recipe(height, width)
    return Preprocess(given, torch.device("cpu"))(pixels, window_range(given, [pixels]))


def bicubic(n_in: int, n_out: int) -> np.ndarray:
    """(n_out, n_in) weights of the antialiased bicubic filter, a = -0.5 (Keys 1981)."""
    scale = n_in / n_out
    stretch = max(scale, 1.0)
    weights = np.zeros((n_out, n_in))
    for out in range(n_out):
        centre = (out + 0.5) * scale
        for index in range(n_in):
            x = abs((index + 0.5 - centre) / stretch)
            if x < 1:
                weights[out, index] = 1.5 * x**3 - 2.5 * x**2 + 1
            elif x < 2:
                weights[out, index] = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize("size", [(32, 48), (160, 16)], ids=["down", "up-and-down"])
def test_resizing_is_the_antialiased_bicubic_filter(size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 65536, (3, 75, 90)).astype(np.uint16)
    found = prepare(pixels, *size)
    down, across = bicubic(75, size[0]), bicubic(90, size[1])
    resized = np.clip(down @ (pixels / 65535) @ across.T, 0, 1)
    mean, std = (np.array(v)[:, None, None] for v in (recipe(1, 1).mean, recipe(1, 1).std))
    np.testing.assert_allclose(found.numpy(), (resized - mean) / std, atol=5e-6)
    on_device = torch.nn.functional.interpolate(
        torch.from_numpy(pixels / 65535)[None].float(), size=size, mode="bicubic", antialias=True
    )[0].clamp(0, 1)
    np.testing.assert_allclose(on_device, resized, atol=1e-6)  # what a GPU runs


def test_against_timms_own_transform() -> None:
    """On X-rays; Pillow's 8-bit mode rounds, and cuts overshoots, behind each of its two passes."""
    import timm

    spec = encoder_spec("dinov3-s")
    transform = timm.data.create_transform(
        input_size=(3, 224, 256),
        interpolation="bicubic",
        mean=spec.mean,
        std=spec.std,
        crop_pct=1.0,
        crop_mode="squash",
    )
    demo = find_dataset("demo")
    for name in demo.table["path"][:5]:
        with Image.open(demo.data / name) as image:
            theirs = transform(image.convert("RGB"))
        ours = prepare(read(demo.data / name), 224, 256)
        levels = (ours - theirs).abs() * torch.tensor(spec.std)[:, None, None] * 255
        assert float(levels.mean()) < 0.4
        assert float(levels.quantile(0.995)) < 1.5  # the rest: cut overshoots beside hard edges


def test_depth_and_grey() -> None:
    low, high = (prepare(np.full((1, 9, 11), v, np.uint16), 16, 32) for v in (30_000, 30_001))
    assert (high > low).all()
    spec = encoder_spec("dinov3-s")
    for channel in range(3):
        value = (30_000 / 65535 - spec.mean[channel]) / spec.std[channel]
        np.testing.assert_allclose(low[channel], value, atol=1e-5)
    one = prepare(GREY[None], 16, 32)
    three = prepare(np.stack([GREY] * 3), 16, 32)
    np.testing.assert_array_equal(one, three)


def test_real_x_rays(shared_data: Path) -> None:
    """Every X-ray at hand is read, an RGBA one of NIH's among them, as Pillow reads it."""
    paths = sorted((shared_data / "xray").rglob("*.png"))
    assert len(paths) > 100
    modes = set()
    for path in paths[::7]:
        with Image.open(path) as image:
            modes.add(image.mode)
            expected = np.asarray(image.convert("L" if image.mode in ("L", "1") else "RGB"))
        found = read(path)
        np.testing.assert_array_equal(
            found[0] if len(found) == 1 else found.transpose(1, 2, 0), expected
        )
    assert "L" in modes
