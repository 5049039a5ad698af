"""What becomes of an image's pixels."""

from pathlib import Path

import numpy as np
import pytest
import torch
from making import RowsItem
from PIL import Image

from dinocache.dataset import find_dataset
from dinocache.encoders import encoder_spec
from dinocache.intensity import item_windows
from dinocache.readers import ItemFiles, make_reader
from dinocache.recipe import InputRecipe
from dinocache.transforms import Preprocess

GREY = (np.arange(7 * 5).reshape(7, 5) * 7).astype(np.uint8)


def read(path: Path) -> np.ndarray:
    with make_reader("image").open(ItemFiles(path=path)) as item:
        return item.rows(0, 1)[0]


def recipe(height: int, width: int) -> InputRecipe:
    spec = encoder_spec("dinov3-s")
    return InputRecipe(resolution=(height, width), mean=spec.mean, std=spec.std)


def prepare(pixels: np.ndarray, height: int, width: int) -> torch.Tensor:
    given = recipe(height, width)
    return Preprocess(given, torch.device("cpu"))(
        pixels, item_windows(given.windows, RowsItem([pixels]))
    )


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
