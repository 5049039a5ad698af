"""What a row becomes in two steps, `stage` where it is decoded and `batch` on the device.

Held against formulas in NumPy, Pillow and torchvision that share nothing with them.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional

from dinocache.intensity import Window
from dinocache.recipe import InputRecipe, ResizeRecipe, WindowRecipe
from dinocache.transforms import Preprocess, Staged

CPU = torch.device("cpu")
TOLERANCE = 2e-5
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RESOLUTION = (48, 80)
FULL = (0.0, 255.0)
SIZES = [(61, 97), (48, 80), (33, 30), (200, 101), (7, 150), (47, 81)]
"""(height, width): larger, the resolution itself, smaller, upright, a strip, and off by one."""

Array = npt.NDArray[Any]
Mode = Literal["squash", "pad", "crop"]
Arithmetic = Literal["float32", "uint8"]
MODES: tuple[Mode, ...] = ("squash", "pad", "crop")


def recipe_of(
    mode: Mode = "squash",
    *,
    arithmetic: Arithmetic = "float32",
    channels: Literal[1, 3] = 3,
    windows: int = 1,
    normalised: bool = True,
    resolution: tuple[int, int] = RESOLUTION,
) -> InputRecipe:
    return InputRecipe(
        resolution=resolution,
        channels=channels,
        windows=(WindowRecipe(),) * windows,
        resize=ResizeRecipe(
            mode=mode, crop_pct=1.0 if mode == "crop" else None, arithmetic=arithmetic
        ),
        mean=MEAN if normalised else (0.0, 0.0, 0.0),
        std=STD if normalised else (1.0, 1.0, 1.0),
    )


def picture(size: tuple[int, int], channels: int, *, seed: int = 0) -> Array:
    """A slope with edges under noise, so that neighbours differ and are alike."""
    rng = np.random.default_rng([*size, channels, seed])
    y, x = np.mgrid[: size[0], : size[1]]
    slope = (3 * y + 2 * x)[None] % 160 + np.arange(channels)[:, None, None] * 21
    return (slope + rng.integers(0, 40, (channels, *size))).astype(np.uint8)


# A batch and its rows


@pytest.mark.parametrize("arithmetic", ["float32", "uint8"])
@pytest.mark.parametrize("mode", MODES)
def test_a_batch_is_its_rows_one_by_one(mode: Mode, arithmetic: Arithmetic) -> None:
    """Whatever their sizes and channels; and a row that is not there is 0 and changes no other."""
    prepare = Preprocess(recipe_of(mode, arithmetic=arithmetic), CPU)
    rows = [picture(size, (1, 3, 2, 3, 1, 2)[i], seed=i) for i, size in enumerate(SIZES)]
    staged: list[Staged | None] = [prepare.stage(row, [FULL]) for row in rows]
    with_gaps = [None, *staged[:2], None, None, *staged[2:], None]
    batch = prepare.batch(with_gaps)
    assert (batch.shape, batch.dtype) == ((10, 3, *RESOLUTION), torch.float32)
    present = [index for index, row in enumerate(with_gaps) if row is not None]
    for place, row in zip(present, rows, strict=True):
        assert torch.equal(batch[place], prepare(row, [FULL])), row.shape
        assert batch[place].abs().max() > 0.5
    for index in {*range(10)} - {*present}:
        assert torch.equal(batch[index], torch.zeros(3, *RESOLUTION))
    assert torch.equal(batch[present], prepare.batch(staged))
    assert torch.equal(prepare.batch([None] * 3), torch.zeros(3, 3, *RESOLUTION))


def test_what_is_staged_is_not_changed_by_its_batch() -> None:
    """The same staged row may be in two batches: of an item of several units."""
    prepare = Preprocess(recipe_of("pad"), CPU)
    staged = prepare.stage(picture((61, 97), 3), [FULL])
    before = staged.values.clone()
    assert torch.equal(prepare.batch([staged, None])[0], prepare.batch([None, staged])[1])
    assert torch.equal(staged.values, before)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_what_waits_for_its_batch_is_float32_in_0_to_1(mode: Mode, channels: int) -> None:
    """Of the encoder's size or smaller where it is padded: a queue of it has bounds."""
    prepare = Preprocess(recipe_of(mode), CPU)
    values = prepare.stage(picture((200, 101), channels), [(40.0, 90.0)]).values
    shape = {"squash": (48, 80), "pad": (48, 24), "crop": (158, 80)}[mode]
    assert (values.shape, values.dtype) == ((channels, *shape), torch.float32)
    assert (values.min().item(), values.max().item()) == (0, 1)


# Against other formulas


def windowed(pixels: Array, windows: Sequence[Window]) -> Array:
    """(C, Y, X) in float64, each channel by its own window."""
    low, high = (np.array(values)[:, None, None] for values in zip(*windows, strict=True))
    return np.clip((pixels.astype(np.float64) - low) / (high - low), 0, 1)


def resized(values: Array, shape: tuple[int, int], *, filter_: str = "bicubic") -> Array:
    """By torchvision, in float64."""
    if values.shape[1:] == shape:
        return values
    mode = functional.InterpolationMode(filter_)
    found = functional.resize(torch.from_numpy(values), list(shape), mode, antialias=True)
    return found.clamp(0, 1).numpy()


def normalised(values: Array) -> torch.Tensor:
    mean, std = (np.array(v)[:, None, None] for v in (MEAN, STD))
    return torch.from_numpy((np.broadcast_to(values, (3, *values.shape[1:])) - mean) / std).float()


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert ours.shape == theirs.shape
    return (ours - theirs).abs().max().item()


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("size", SIZES)
def test_squash(size: tuple[int, int], channels: int) -> None:
    pixels = picture(size, channels)
    values = resized(windowed(pixels, [(20.0, 190.0)]), RESOLUTION)
    if channels == 2:
        values = np.concatenate([values, values.mean(0, keepdims=True)])
    ours = Preprocess(recipe_of(), CPU)(pixels, [(20.0, 190.0)])
    assert difference(ours, normalised(values)) <= TOLERANCE


@pytest.mark.parametrize(
    ("size", "inner", "corner"),
    [
        ((61, 97), (48, 76), (0, 2)),
        ((33, 30), (48, 44), (0, 18)),
        ((200, 101), (48, 24), (0, 28)),
        ((7, 150), (4, 80), (22, 0)),
        ((48, 80), (48, 80), (0, 0)),
        ((50, 81), (48, 78), (0, 1)),
    ],
)
def test_pad(size: tuple[int, int], inner: tuple[int, int], corner: tuple[int, int]) -> None:
    """Black, not grey, around the centred picture: the padding is normalised like any 0."""
    pixels = picture(size, 3)
    values = np.zeros((3, *RESOLUTION))
    top, left = corner
    values[:, top : top + inner[0], left : left + inner[1]] = resized(
        windowed(pixels, [FULL]), inner
    )
    ours = Preprocess(recipe_of("pad"), CPU)(pixels, [FULL])
    assert difference(ours, normalised(values)) <= TOLERANCE


@pytest.mark.parametrize(
    ("size", "outer"),
    [
        ((61, 97), (50, 80)),
        ((33, 30), (88, 80)),
        ((200, 101), (158, 80)),
        ((50, 150), (48, 144)),
        ((48, 80), (48, 80)),
    ],
)
def test_crop(size: tuple[int, int], outer: tuple[int, int]) -> None:
    pixels = picture(size, 3)
    covered = torch.from_numpy(resized(windowed(pixels, [FULL]), outer))
    values = functional.center_crop(covered, list(RESOLUTION)).numpy()
    ours = Preprocess(recipe_of("crop"), CPU)(pixels, [FULL])
    assert difference(ours, normalised(values)) <= TOLERANCE


@pytest.mark.parametrize("mode", MODES)
def test_the_third_of_two_channels_is_their_mean(mode: Mode) -> None:
    pixels = picture((61, 97), 2)
    ours = Preprocess(recipe_of(mode, normalised=False), CPU)(pixels, [FULL])
    alone = Preprocess(recipe_of(mode, normalised=False, channels=1), CPU)
    for channel in range(2):
        assert torch.equal(ours[channel], alone(pixels[channel : channel + 1], [FULL])[0])
    assert difference(ours[2], (ours[0].double() + ours[1].double()).div(2).float()) <= 1e-7


@pytest.mark.parametrize("arithmetic", ["float32", "uint8"])
@pytest.mark.parametrize("mode", MODES)
def test_luma_is_taken_behind_the_resizing(mode: Mode, arithmetic: Arithmetic) -> None:
    """Each is linear, but what overshoots is cut before: ITU-R BT.601 of what was cut."""
    pixels = np.where(picture((61, 97), 3) > 90, 255, 0).astype(np.uint8)
    coloured, grey = (
        Preprocess(recipe_of(mode, arithmetic=arithmetic, channels=n, normalised=False), CPU)(
            pixels, [FULL]
        )
        for n in (3, 1)
    )
    assert grey.shape == (1, *RESOLUTION)
    red, green, blue = coloured.double()
    assert difference(grey[0], (0.299 * red + 0.587 * green + 0.114 * blue).float()) <= 1e-6


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("filter_", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", SIZES)
def test_uint8_is_pillow_s_own_arithmetic(
    size: tuple[int, int], filter_: Literal["bicubic", "bilinear"], channels: int
) -> None:
    """Rounded to 8 bits behind each of Pillow's passes; bit by bit where nothing is normalised."""
    recipe = recipe_of(arithmetic="uint8", normalised=False)
    resize = recipe.resize.model_copy(update={"filter": filter_})
    recipe = recipe.model_copy(update={"resize": resize})
    pixels = picture(size, channels)
    ours = Preprocess(recipe, CPU)(pixels, [FULL])
    height, width = RESOLUTION
    by_pillow = np.stack(
        [
            np.asarray(
                Image.fromarray(channel).resize((width, height), Image.Resampling[filter_.upper()])
            )
            for channel in pixels
        ]
    )
    expected = torch.from_numpy(by_pillow).float() / 255
    if channels == 2:
        expected = torch.cat([expected, expected.mean(0, keepdim=True)])
    assert torch.equal(ours, expected.expand(3, -1, -1))
    eighths = ours[: min(channels, 2)] * 255
    assert difference(eighths, eighths.round()) < 1e-4


def test_each_channel_has_its_own_window() -> None:
    windows = [(0.0, 255.0), (40.0, 90.0), (-100.0, 500.0)]
    recipe = recipe_of(windows=3)
    for size in SIZES:
        pixels = picture(size, 3)
        values = resized(windowed(pixels, windows), RESOLUTION)
        assert difference(Preprocess(recipe, CPU)(pixels, windows), normalised(values)) <= TOLERANCE


def test_three_windows_make_three_channels_of_a_grey_row() -> None:
    windows = [(0.0, 255.0), (40.0, 90.0), (100.0, 140.0)]
    pixels = picture((61, 97), 1)
    values = resized(windowed(pixels.repeat(3, axis=0), windows), RESOLUTION)
    ours = Preprocess(recipe_of(windows=3), CPU)(pixels, windows)
    assert difference(ours, normalised(values)) <= TOLERANCE
    assert not torch.equal(ours[0], ours[1])


@pytest.mark.parametrize("dtype", ["uint16", "int16", "float32"])
@pytest.mark.parametrize("mode", MODES)
def test_deep_rows_are_windowed_before_they_are_resized(mode: Mode, dtype: str) -> None:
    """And never rounded to 8 bits: between two of these there are a hundred values."""
    low, high = (-300.0, 900.0) if dtype != "uint16" else (1000.0, 3000.0)
    plain = picture((61, 97), 1).astype(np.float64) / 255
    pixels = (low + (high - low) * (1.5 * plain - 0.25)).astype(dtype)
    inner = {"squash": RESOLUTION, "pad": (48, 76), "crop": (50, 80)}[mode]
    values = resized(windowed(pixels, [(low, high)]), inner)
    if mode == "crop":
        values = values[:, 1:49]
    ours = Preprocess(recipe_of(mode), CPU)(pixels, [(low, high)])
    if mode == "pad":
        ours = ours[:, :, 2:78]
    assert difference(ours, normalised(values)) <= TOLERANCE


# On the device

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("arithmetic", ["float32", "uint8"])
@pytest.mark.parametrize("mode", MODES)
def test_a_batch_on_cuda_is_that_of_the_cpu(mode: Mode, arithmetic: Arithmetic) -> None:
    cuda = torch.device("cuda")
    here, there = (
        Preprocess(recipe_of(mode, arithmetic=arithmetic), device) for device in (CPU, cuda)
    )
    rows = [picture(size, (1, 3, 2, 3, 1, 2)[i], seed=i) for i, size in enumerate(SIZES)]
    ours = there.batch([None, *(there.stage(row, [FULL]) for row in rows), None])
    assert ours.device.type == "cuda"
    expected = here.batch([None, *(here.stage(row, [FULL]) for row in rows), None])
    assert difference(ours.cpu(), expected) <= TOLERANCE
    assert torch.equal(ours[0].cpu(), torch.zeros(3, *RESOLUTION))
    assert torch.equal(there.batch([None] * 2).cpu(), torch.zeros(2, 3, *RESOLUTION))
