"""What an encoder is given, held against the transforms of timm, open_clip and the publishers."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import open_clip.transform
import pytest
import timm.data
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from making import RowsItem
from PIL import Image
from torchvision import transforms
from torchvision.transforms import functional

from dinocache.encoders import ENCODERS
from dinocache.errors import ItemError
from dinocache.geometry import resized_shape
from dinocache.intensity import Window, item_windows
from dinocache.recipe import InputRecipe, ResizeRecipe, WindowRecipe
from dinocache.spec import EncoderSpec
from dinocache.transforms import Preprocess, _resize_float, _resize_tensor, check_row

CPU = torch.device("cpu")
TOLERANCE = 1e-5
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
UNCHANGED = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
SIZES = [(300, 421), (640, 533), (901, 1177), (53, 47)]
"""(height, width): landscape, portrait, larger and smaller than any encoder's input."""

Pixels = npt.NDArray[Any]
Mode = Literal["squash", "pad", "crop"]
Resampling = Literal["bicubic", "bilinear"]
Arithmetic = Literal["float32", "uint8"]


def noise(shape: tuple[int, ...], *, dtype: str = "uint8", seed: int = 0) -> Pixels:
    """Hard edges under noise, which alone would average out."""
    rng = np.random.default_rng(seed)
    coarse = rng.random((*shape[:-2], -(-shape[-2] // 9), -(-shape[-1] // 9)))
    values = np.kron(coarse, np.ones((9, 9)))[..., : shape[-2], : shape[-1]]
    values = (values + rng.random(shape)) / 2
    if dtype == "float32":
        return (values * 3000 - 1000).astype(np.float32)
    return np.round(values * np.iinfo(dtype).max).astype(dtype)


@pytest.fixture(scope="module")
def photographs() -> list[Pixels]:
    return [noise((3, *size), seed=seed) for seed, size in enumerate(SIZES)]


def input_recipe(
    resolution: tuple[int, int],
    *,
    resize: ResizeRecipe | None = None,
    window: WindowRecipe | None = None,
    normalise: tuple[tuple[float, float, float], tuple[float, float, float]] = IMAGENET,
    channels: Literal[1, 3] = 3,
) -> InputRecipe:
    return InputRecipe(
        resolution=resolution,
        channels=channels,
        windows=(window or WindowRecipe(),),
        resize=resize or ResizeRecipe(),
        mean=normalise[0],
        std=normalise[1],
    )


def window_range(recipe: InputRecipe, rows: Sequence[Pixels]) -> Window:
    (window,) = item_windows(recipe.windows, RowsItem(rows))
    for row in rows:
        check_row(recipe, row)
    return window


def prepare(recipe: InputRecipe, pixels: Pixels, device: torch.device = CPU) -> torch.Tensor:
    return Preprocess(recipe, device)(pixels, [window_range(recipe, [pixels])])


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert (ours.shape, ours.dtype) == (theirs.shape, torch.float32)
    return (ours - theirs).abs().max().item()


# 1. 8-bit images, each encoder's own transform


def published(
    resize: int,
    crop: int,
    resampling: str,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> transforms.Compose:
    return transforms.Compose(
        [
            transforms.Resize(resize, functional.InterpolationMode(resampling)),
            transforms.CenterCrop(crop),
            transforms.ToTensor(),
            transforms.Normalize(mean, std),
        ]
    )


CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
PUBLISHED: dict[str, Callable[[Image.Image], torch.Tensor]] = {
    # mahmoodlab/UNI, get_encoder: without the crop, which its README leaves out, an image that is
    # not square would not fit into a batch.
    "uni": published(224, 224, "bilinear", *IMAGENET),
    "uni2-h": published(224, 224, "bilinear", *IMAGENET),
    "resnet50-trunc": published(224, 224, "bilinear", *IMAGENET),
    # mahmoodlab/CONCH, conch/open_clip_custom: transform.py, factory.py
    "conch": published(448, 448, "bicubic", *CLIP),
    "biomedclip": open_clip.transform.image_transform(
        224, is_train=False, mean=CLIP[0], std=CLIP[1]
    ),
    # facebookresearch/moco-v3, main_lincls.py
    "mocov3-b": published(256, 224, "bilinear", *IMAGENET),
    # facebookresearch/swav, eval_linear.py and src/multicropdataset.py; 0.228 is theirs
    "swav": published(256, 224, "bilinear", IMAGENET[0], (0.228, 0.224, 0.225)),
    # facebookresearch/vissl, eval_resnet_8gpu_transfer_in1k_linear.yaml
    "simclr-vissl": published(256, 224, "bilinear", *IMAGENET),
    # What is compared: filter and kept part of google-research/simclr, tf2/data_util.py, and
    # google-deepmind/deepmind-research, byol/utils/dataset.py, done as torchvision does it. They
    # crop first, then resize by TensorFlow without antialiasing. The ports' own evaluations take
    # torchvision's default, bilinear; simclr-converter's has 256 px and no crop.
    "simclr": published(256, 224, "bicubic", *UNCHANGED),
    "byol": published(256, 224, "bicubic", *IMAGENET),
}


def library_transform(spec: EncoderSpec) -> Callable[[Image.Image], torch.Tensor]:
    if spec.name in PUBLISHED:
        return PUBLISHED[spec.name]
    if spec.name == "tiny":  # nobody published it; it is a DINOv3 of 64 px
        config = timm.data.resolve_data_config(
            {"input_size": (3, 64, 64)},
            pretrained_cfg=timm.get_pretrained_cfg(f"{spec.library_name}.lvd1689m").to_dict(),
        )
    else:
        (name, *_) = (f.repo[5:] for f in spec.hub if f.repo.startswith("timm/"))
        config = timm.data.resolve_data_config(
            pretrained_cfg=timm.get_pretrained_cfg(name).to_dict()
        )
    return timm.data.create_transform(**config)


@pytest.mark.parametrize(
    "spec", [pytest.param(spec, id=spec.name) for spec in ENCODERS if spec.channels == 3]
)
def test_8_bit_images_as_the_encoder_s_own_library(
    spec: EncoderSpec, photographs: list[Pixels]
) -> None:
    recipe = input_recipe(
        (spec.native_px, spec.native_px),
        resize=ResizeRecipe(
            mode="crop", crop_pct=spec.crop_pct, filter=spec.filter, arithmetic="uint8"
        ),
        window=WindowRecipe(mode=spec.window),
        normalise=(spec.mean, spec.std),
    )
    library = library_transform(spec)
    for pixels in photographs:
        theirs = library(Image.fromarray(pixels.transpose(1, 2, 0)))
        assert difference(prepare(recipe, pixels), theirs) <= TOLERANCE, pixels.shape


@pytest.mark.parametrize("resampling", ["bicubic", "bilinear"])
@pytest.mark.parametrize("mode", ["squash", "pad"])
@pytest.mark.parametrize("resolution", [(96, 96), (64, 112), (112, 80)])
def test_8_bit_images_as_open_clip(
    mode: Mode, resampling: Resampling, resolution: tuple[int, int], photographs: list[Pixels]
) -> None:
    library = open_clip.transform.image_transform(
        resolution,
        is_train=False,
        mean=IMAGENET[0],
        std=IMAGENET[1],
        resize_mode={"squash": "squash", "pad": "longest"}[mode],
        interpolation=resampling,
    )
    resize = ResizeRecipe(mode=mode, filter=resampling, arithmetic="uint8")
    recipe = input_recipe(resolution, resize=resize)
    for pixels in photographs:
        theirs = library(Image.fromarray(pixels.transpose(1, 2, 0)))
        assert difference(prepare(recipe, pixels), theirs) <= TOLERANCE, pixels.shape


# 2. float32, against the libraries' own transforms on tensors


def timm_steps(
    resolution: tuple[int, int],
    *,
    mode: str,
    resampling: str = "bicubic",
    crop_pct: float | None = None,
) -> list[Callable[[torch.Tensor], torch.Tensor]]:
    """timm's resize, then crop or pad; black where timm fills with the mean, as open_clip does."""
    made = timm.data.create_transform(
        (3, *resolution),
        crop_mode={"squash": "squash", "crop": "center", "pad": "border"}[mode],
        crop_pct=crop_pct or 1.0,
        interpolation=resampling,
    )
    resize, place, *_ = made.transforms
    if mode == "pad":
        place.fill = 0
    return [resize, place]


def reference(
    windowed: npt.NDArray[np.float64], steps: list[Callable[[torch.Tensor], torch.Tensor]]
) -> torch.Tensor:
    """Resize, clip, place and normalise, by the library's own steps.

    In float64: with float32 torch rounds the positions of the filter too, and is off by 2e-5.
    """
    image = torch.from_numpy(windowed)
    for step in steps:
        image = step(image).clamp(0, 1)
    return transforms.Normalize(*IMAGENET)(image.expand(3, -1, -1)).float()


GEOMETRIES = [
    pytest.param("squash", None, id="squash"),
    pytest.param("crop", 1.0, id="crop"),
    pytest.param("crop", 0.875, id="crop-0.875"),
    pytest.param("pad", None, id="pad"),
]


@pytest.mark.parametrize("resampling", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("mode", "crop_pct"), GEOMETRIES)
@pytest.mark.parametrize("resolution", [(96, 96), (64, 112), (112, 80)])
def test_float32_as_the_library_on_tensors(
    mode: Mode,
    crop_pct: float | None,
    resampling: Resampling,
    resolution: tuple[int, int],
    photographs: list[Pixels],
) -> None:
    resize = ResizeRecipe(mode=mode, crop_pct=crop_pct, filter=resampling)
    recipe = input_recipe(resolution, resize=resize)
    steps = timm_steps(resolution, mode=mode, resampling=resampling, crop_pct=crop_pct)
    for pixels in photographs:
        theirs = reference(pixels / 255, steps)
        assert difference(prepare(recipe, pixels), theirs) <= TOLERANCE, pixels.shape


DEEP = [
    pytest.param("uint16", WindowRecipe(), (0.0, 65535.0), id="uint16-full-range"),
    pytest.param("uint16", WindowRecipe(mode="min-max"), None, id="uint16-min-max"),
    pytest.param("float32", WindowRecipe(mode="min-max"), None, id="float32-min-max"),
    pytest.param(
        "float32",
        WindowRecipe(mode="range", low=-1024, high=3071),
        (-1024.0, 3071.0),
        id="float32-range",
    ),
]


@pytest.mark.parametrize(("mode", "crop_pct"), GEOMETRIES)
@pytest.mark.parametrize(("dtype", "window", "limits"), DEEP)
def test_deep_images_keep_their_depth(
    dtype: str,
    window: WindowRecipe,
    limits: tuple[float, float] | None,
    mode: Mode,
    crop_pct: float | None,
) -> None:
    pixels = noise((1, 301, 233), dtype=dtype)
    low, high = limits or (float(pixels.min()), float(pixels.max()))
    recipe = input_recipe(
        (64, 112), window=window, resize=ResizeRecipe(mode=mode, crop_pct=crop_pct)
    )
    ours = prepare(recipe, pixels)
    steps = timm_steps((64, 112), mode=mode, crop_pct=crop_pct)
    values = (pixels.astype(np.float64) - low) / (high - low)
    assert difference(ours, reference(values, steps)) <= TOLERANCE
    eighth = reference(np.round(values * 255) / 255, steps)
    assert difference(ours, eighth) > 100 * TOLERANCE


def test_a_narrow_range_of_16_bits_is_not_flattened() -> None:
    pixels = np.arange(1000, 1187, dtype=np.uint16)[None, :, None].repeat(201, axis=2)
    ours = prepare(input_recipe((96, 80), normalise=UNCHANGED), pixels)[0, :, 0]
    assert len(ours.unique()) == 96  # in 8 bits all would be 4
    assert (ours.diff() > 0).all()
    assert ours[[0, -1]].tolist() == pytest.approx([1000 / 65535, 1186 / 65535], rel=1e-3)


# 3. The three ways of resizing agree


@pytest.mark.parametrize("resampling", ["bicubic", "bilinear"])
@pytest.mark.parametrize("shape", [(96, 80), (400, 333), (211, 180)])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_on_tensors_as_by_pillow(dtype: str, shape: tuple[int, int], resampling: str) -> None:
    pixels = noise((2, 211, 173), dtype=dtype)
    low, high = float(pixels.min()), float(pixels.max())
    windowed = ((pixels - np.float64(low)) / (high - low)).astype(np.float32)
    tensor = _resize_tensor(torch.from_numpy(pixels.copy()), [(low, high)], shape, resampling)
    ours = torch.from_numpy(_resize_float(windowed, shape, resampling))
    assert tensor.shape == (2, *shape)
    assert difference(tensor, ours) <= TOLERANCE


@pytest.mark.parametrize("mode", ["squash", "pad", "crop"])
@pytest.mark.parametrize("arithmetic", ["float32", "uint8"])
def test_an_image_of_the_right_size_is_not_resampled(arithmetic: Arithmetic, mode: Mode) -> None:
    pixels = noise((3, 64, 48))
    resize = ResizeRecipe(mode=mode, arithmetic=arithmetic)
    ours = prepare(input_recipe((64, 48), resize=resize, normalise=UNCHANGED), pixels)
    assert torch.equal((ours * 255).round().byte(), torch.from_numpy(pixels))
    windowed = torch.from_numpy(pixels).float()
    exact = windowed / 255 if arithmetic == "uint8" else windowed * np.float32(1 / 255).item()
    assert torch.equal(ours, exact.clamp(0, 1))


def test_a_tensor_of_the_right_size_is_not_resampled() -> None:
    pixels = torch.from_numpy(noise((2, 64, 48))) / 256
    assert torch.equal(_resize_tensor(pixels.clone(), [(0.0, 1.0)], (64, 48), "bicubic"), pixels)


@pytest.mark.parametrize("shape", [(32, 48), (64, 40)])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_the_reader_s_pixels_stay_as_they_are(dtype: str, shape: tuple[int, int]) -> None:
    pixels = noise((1, 32, 48), dtype=dtype)
    before = pixels.copy()
    prepare(input_recipe(shape, window=WindowRecipe(mode="min-max")), pixels)
    assert np.array_equal(pixels, before)


# 4. Channels, windows, shapes


@pytest.mark.parametrize("arithmetic", ["float32", "uint8"])
def test_grey_becomes_three_equal_channels(arithmetic: Arithmetic) -> None:
    recipe = input_recipe((32, 48), resize=ResizeRecipe(arithmetic=arithmetic))
    grey = noise((1, 71, 59))
    assert torch.equal(prepare(recipe, grey), prepare(recipe, grey.repeat(3, axis=0)))


@pytest.mark.parametrize("arithmetic", ["float32", "uint8"])
def test_colours_become_grey_by_their_luma(arithmetic: Arithmetic) -> None:
    recipe = input_recipe(
        (32, 48),
        resize=ResizeRecipe(arithmetic=arithmetic),
        normalise=((0.25, 9.0, 9.0), (0.5, 9.0, 9.0)),  # of which a grey input takes the first
        channels=1,
    )
    pixels = noise((3, 32, 48))
    ours = prepare(recipe, pixels)
    red, green, blue = torch.from_numpy(pixels).double() / 255
    luma = (0.299 * red + 0.587 * green + 0.114 * blue)[None]
    assert difference(ours, ((luma - 0.25) / 0.5).float()) <= TOLERANCE
    pillow = np.asarray(Image.fromarray(pixels.transpose(1, 2, 0)).convert("L"))
    assert np.abs((ours[0].numpy() * 0.5 + 0.25) * 255 - pillow).max() < 0.51  # it rounds


def test_grey_stays_grey() -> None:
    pixels = noise((1, 32, 48))
    ours = prepare(input_recipe((32, 48), normalise=UNCHANGED, channels=1), pixels)
    assert torch.equal((ours * 255).round().byte(), torch.from_numpy(pixels))


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("uint8", (0, 255)), ("uint16", (0, 65535)), ("int16", (-32768, 32767))],
)
def test_the_full_range_is_the_type_s(dtype: str, expected: tuple[int, int]) -> None:
    rows = [np.full((1, 3, 5), 7, dtype)]
    assert window_range(input_recipe((16, 32)), rows) == expected


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_min_and_max_are_of_all_rows(dtype: str) -> None:
    recipe = input_recipe((16, 32), window=WindowRecipe(mode="min-max"))
    rows = [np.array([[[40, 19, 95]]], dtype), np.array([[[9], [70]]], dtype)]
    assert window_range(recipe, rows) == window_range(recipe, rows[::-1]) == (9, 95)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_a_range_is_what_was_asked_for(dtype: str) -> None:
    window = WindowRecipe(mode="range", low=-160, high=240.5)
    rows = [np.array([[[40, 9, 70]]], dtype)]
    assert window_range(input_recipe((16, 32), window=window), rows) == (-160, 240.5)


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        pytest.param("uint8", 0, id="black"),
        pytest.param("uint8", 255, id="white"),
        pytest.param("uint16", 65535, id="white-16-bit"),
        pytest.param("float32", -1024.5, id="air"),
        pytest.param("float32", -3.4e38, id="fill-value"),  # where v + 1 is v
    ],
)
def test_the_window_of_a_constant_image_is_not_empty(dtype: str, value: float) -> None:
    recipe = input_recipe((16, 32), window=WindowRecipe(mode="min-max"), normalise=UNCHANGED)
    pixels = np.full((1, 5, 7), value, dtype)
    low, high = window_range(recipe, [pixels])
    assert low < high
    assert low == pixels.min()
    assert (Preprocess(recipe, CPU)(pixels, [(low, high)]) == 0).all()


@pytest.mark.parametrize("mode", ["min-max", "range"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_a_number_is_refused(mode: Literal["min-max", "range"], bad: float) -> None:
    recipe = input_recipe((16, 32), window=WindowRecipe(mode=mode, low=0, high=1))
    rows = [np.zeros((1, 3, 5), np.float32), np.zeros((1, 2, 7), np.float32)]
    rows[1][0, 1, 6] = bad
    with pytest.raises(ItemError, match=r"^its pixels are NaN or infinite$"):
        window_range(recipe, rows)


def test_floats_have_no_full_range() -> None:
    with pytest.raises(
        ItemError,
        match=r"its pixels are floats, which have no full range: say --window min-max, percentile "
        r"or LOW:HIGH",
    ):
        window_range(input_recipe((16, 32)), [np.zeros((1, 3, 5), np.float32)])


@pytest.mark.parametrize("dtype", ["uint16", "int16"])
def test_8_bit_arithmetic_is_for_8_bits(dtype: str) -> None:
    recipe = input_recipe((16, 32), resize=ResizeRecipe(arithmetic="uint8"))
    with pytest.raises(
        ItemError,
        match=rf"its pixels are {dtype}; --arithmetic uint8 is for 8-bit images over their full "
        r"range only",
    ):
        window_range(recipe, [np.zeros((1, 3, 5), dtype)])


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_what_lies_outside_the_window_is_clipped(dtype: str) -> None:
    window = WindowRecipe(mode="range", low=20, high=60)
    pixels = np.array([[[0, 20, 30, 40, 60, 200]]], dtype)
    ours = prepare(input_recipe((1, 6), window=window, normalise=UNCHANGED), pixels)
    assert ours[2, 0].tolist() == pytest.approx([0, 0, 0.25, 0.5, 1, 1])


@pytest.mark.parametrize("resolution", [(40, 24), (96, 80)])
def test_what_lies_outside_the_window_does_not_bleed(resolution: tuple[int, int]) -> None:
    """Metal at 3000 HU in a window of soft tissue is as bright as bone, and no wider."""
    window = WindowRecipe(mode="range", low=-160, high=240)
    recipe = input_recipe(resolution, window=window)
    pixels = noise((1, 64, 48), dtype="float32") / 30
    pixels[0, 20:23, 10:30] = 3000
    assert torch.equal(prepare(recipe, pixels), prepare(recipe, pixels.clip(-160, 240)))


@pytest.mark.parametrize("mode", ["squash", "crop", "pad"])
@pytest.mark.parametrize("resolution", [(40, 24), (96, 80)])
def test_bicubic_does_not_leave_the_range(resolution: tuple[int, int], mode: Mode) -> None:
    pixels = np.where(noise((1, 61, 47)) > 127, 255, 0).astype(np.uint8)
    recipe = input_recipe(resolution, resize=ResizeRecipe(mode=mode), normalise=UNCHANGED)
    ours = prepare(recipe, pixels)
    assert (ours.min().item(), ours.max().item()) == (0, 1)


shapes = st.tuples(st.integers(1, 2500), st.integers(1, 2500))
resolutions = st.one_of(
    st.integers(1, 45).map(lambda n: (14 * n, 14 * n)),
    st.tuples(st.integers(1, 45), st.integers(1, 45)).map(lambda n: (16 * n[0], 16 * n[1])),
)


@settings(max_examples=200, deadline=None)
@given(shapes, resolutions, st.sampled_from([1.0, 0.96, 0.9, 0.875]))
def test_crop_resizes_to_the_shapes_of_torchvision_and_timm(
    shape: tuple[int, int], resolution: tuple[int, int], crop_pct: float
) -> None:
    ours = resized_shape(shape, resolution, ResizeRecipe(mode="crop", crop_pct=crop_pct))
    resize, _ = timm_steps(resolution, mode="crop", crop_pct=crop_pct)
    assert ours == resize(torch.empty((1, *shape), device="meta")).shape[1:]
    assert all(side >= wanted for side, wanted in zip(ours, resolution, strict=True))


@settings(max_examples=200, deadline=None)
@given(shapes, resolutions)
def test_pad_resizes_to_the_shapes_of_timm(
    shape: tuple[int, int], resolution: tuple[int, int]
) -> None:
    ours = resized_shape(shape, resolution, ResizeRecipe(mode="pad"))
    image = torch.empty((1, *shape), device="meta")
    theirs = timm.data.transforms.ResizeKeepRatio.get_params(image, resolution, 1.0)
    assert list(ours) == [max(side, 1) for side in theirs]  # timm fails on a side of nothing
    assert all(side <= wanted for side, wanted in zip(ours, resolution, strict=True))
    assert any(side == wanted for side, wanted in zip(ours, resolution, strict=True))


@given(shapes, resolutions)
def test_squash_resizes_to_the_resolution(
    shape: tuple[int, int], resolution: tuple[int, int]
) -> None:
    assert resized_shape(shape, resolution, ResizeRecipe(mode="squash")) == resolution


@pytest.mark.parametrize("over", range(1, 8))
@pytest.mark.parametrize("mode", ["crop", "pad"])
def test_the_odd_pixel_goes_where_the_libraries_put_it(mode: Mode, over: int) -> None:
    image = torch.arange(1, 1 + 9 * (9 + over), dtype=torch.float32) / 256
    image = image.reshape(1, 9, 9 + over)
    resolution = (9, 9) if mode == "crop" else (9 + over + 1, 9 + over)
    if mode == "pad":
        library = timm.data.transforms.CenterCropOrPad(resolution)
    else:
        library = transforms.CenterCrop(resolution)
    window = WindowRecipe(mode="range", low=0, high=1)
    for turned in (False, True):
        pixels, wanted = image, resolution
        theirs = library(image)
        if turned:
            pixels, wanted, theirs = image.mT, resolution[::-1], theirs.mT
        recipe = input_recipe(
            wanted, window=window, resize=ResizeRecipe(mode=mode), normalise=UNCHANGED, channels=1
        )
        assert torch.equal(prepare(recipe, pixels.numpy()), theirs)


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 300), st.integers(1, 300)),
    st.integers(0, 255),
    st.sampled_from(["bicubic", "bilinear"]),
    st.sampled_from(["float32", "uint8"]),
)
def test_a_constant_image_stays_constant(
    shape: tuple[int, int], value: int, resampling: Resampling, arithmetic: Arithmetic
) -> None:
    resize = ResizeRecipe(filter=resampling, arithmetic=arithmetic)
    recipe = input_recipe((48, 80), resize=resize)
    ours = prepare(recipe, np.full((1, *shape), value, np.uint8))
    expected = transforms.Normalize(*IMAGENET)(torch.full((3, 48, 80), value / 255))
    assert difference(ours, expected) <= TOLERANCE


# 5. The GPU

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("resampling", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("mode", "crop_pct"), GEOMETRIES)
@pytest.mark.parametrize("resolution", [(96, 96), (64, 112)])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_cuda_as_the_cpu(
    dtype: str,
    resolution: tuple[int, int],
    mode: Mode,
    crop_pct: float | None,
    resampling: Resampling,
) -> None:
    resize = ResizeRecipe(mode=mode, crop_pct=crop_pct, filter=resampling)
    recipe = input_recipe(resolution, window=WindowRecipe(mode="min-max"), resize=resize)
    for seed, size in enumerate(SIZES):
        pixels = noise((1 + 2 * (seed % 2), *size), dtype=dtype, seed=seed)
        pixels.flags.writeable = False  # as Pillow gives those of 16 bits
        ours = prepare(recipe, pixels, torch.device("cuda"))
        assert ours.device.type == "cuda"
        assert difference(ours.cpu(), prepare(recipe, pixels)) <= TOLERANCE, pixels.shape


@pytest.mark.gpu
@needs_cuda
def test_cuda_takes_images_many_times_its_input() -> None:
    """torch's antialiased kernel refuses factors beyond about 47 for want of shared memory."""
    pixels = noise((1, 9001, 130))
    recipe = input_recipe((64, 48))
    ours = prepare(recipe, pixels, torch.device("cuda"))
    assert difference(ours.cpu(), prepare(recipe, pixels)) <= TOLERANCE
