"""From decoded pixels to the encoder's input: window, resize, normalise.

The libraries' own transforms resize 8-bit images with Pillow, which rounds to 8 bits behind each of
its two passes. Here values are windowed to [0, 1] first and resized as float32, so that 16-bit
images keep their depth and the work can be done on the GPU; `arithmetic: uint8` does as the
libraries do, for 8-bit images. See docs/encoders.md, "Input", for how the two compare.
"""

import math
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from dinocache.errors import ItemError
from dinocache.recipe import InputRecipe, ResizeRecipe

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from dinocache.readers.contract import Pixels

__all__ = ["Preprocess", "check_resizing", "resized_shape", "window_range"]

Shape = tuple[int, int]

_MOST_OVER = 64
"""Times the resolution's area."""
_LUMA = (0.299, 0.587, 0.114)
"""ITU-R BT.601, as Pillow's mode L."""


def window_range(recipe: InputRecipe, rows: "Sequence[Pixels]") -> tuple[float, float]:
    """Give the stored values of an item that stand for 0 and 1.

    Args:
        recipe: Of the input.
        rows: All rows of the item, (C, Y, X) each.

    Returns:
        (low, high), low < high.

    Raises:
        ItemError: If values are NaN or infinite, or the recipe does not say what to do with them.
    """
    window, dtype = recipe.window, rows[0].dtype
    if recipe.resize.arithmetic == "uint8" and (dtype != np.uint8 or window.mode != "full-range"):
        raise ItemError(
            f"its pixels are {dtype} under the window {window.mode}; --arithmetic uint8 is for "
            "8-bit images over their full range only"
        )
    if window.mode == "full-range":
        if dtype.kind == "f":
            raise ItemError(
                "its pixels are floats, which have no full range: say --window min-max or "
                "--window LOW:HIGH"
            )
        limits = np.iinfo(dtype.name)
        return float(limits.min), float(limits.max)
    if dtype.kind == "f" and not all(np.isfinite(row).all() for row in rows):
        raise ItemError("its pixels are NaN or infinite")
    if window.mode == "range" and window.low is not None and window.high is not None:
        return window.low, window.high
    low, high = float(min(r.min() for r in rows)), float(max(r.max() for r in rows))
    return low, high if high > low else max(low + 1, math.nextafter(low, math.inf))


def check_resizing(recipe: InputRecipe, shape: Shape) -> None:
    """Refuse an image that would be resized to something huge before it is cropped.

    Args:
        recipe: Of the input.
        shape: (height, width) of the image, px.

    Raises:
        ItemError: If its sides differ by more than 64 times.
    """
    height, width = resized_shape(shape, recipe.resolution, recipe.resize)
    if height * width > _MOST_OVER * math.prod(recipe.resolution):
        raise ItemError(
            f"{shape[0]} x {shape[1]} px would be resized to {height} x {width} before it is "
            "cropped: its sides differ too much; --resize squash or pad takes it"
        )


def resized_shape(shape: Shape, resolution: Shape, resize: ResizeRecipe) -> Shape:
    """Say to which size an image is resized before it is padded or cropped.

    Args:
        shape: (height, width) of the image, px.
        resolution: (height, width) of the encoder's input, px.
        resize: Of the recipe.

    Returns:
        (height, width), px.

    References:
        `crop`: torchvision's `Resize` for a square (the other side is cut down to whole pixels),
        timm's `ResizeKeepRatio` otherwise (it is rounded); `pad`: the same with the longer side.
    """
    if resize.mode == "squash":
        return resolution
    ratios = [side / wanted for side, wanted in zip(shape, resolution, strict=True)]
    if resize.mode == "pad":
        ratio = max(ratios)
        height, width = (max(1, round(side / ratio)) for side in shape)
        return min(height, resolution[0]), min(width, resolution[1])
    height, width = (math.floor(side / (resize.crop_pct or 1)) for side in resolution)
    if height == width:
        short = min(shape)
        return int(height * shape[0] / short), int(height * shape[1] / short)
    ratio = min(shape[0] / height, shape[1] / width)
    return max(height, round(shape[0] / ratio)), max(width, round(shape[1] / ratio))


class Preprocess:
    """Makes the encoder's input of one row."""

    def __init__(self, recipe: InputRecipe, device: "torch.device") -> None:
        import torch

        self.recipe = recipe
        self.device = device
        mean, std = (
            torch.tensor(v[: recipe.channels], device=device)[:, None, None]
            for v in (recipe.mean, recipe.std)
        )
        self._scale, self._shift = 1 / std, -mean / std

    def __call__(self, pixels: "Pixels", window: tuple[float, float]) -> "torch.Tensor":
        """Window, resize and normalise.

        Args:
            pixels: (C, Y, X) uint8, uint16 or float32, C 1 or 3.
            window: Values that become 0 and 1; see `window_range`.

        Returns:
            (channels, height, width) float32, normalised, on the device.
        """
        import torch

        resize = self.recipe.resize
        shape = resized_shape(pixels.shape[1:], self.recipe.resolution, resize)
        if resize.arithmetic == "uint8":
            eighth = [_pillow(channel, shape, resize.filter) for channel in pixels]
            resized = torch.from_numpy(np.stack(eighth).astype(np.float32) / np.float32(255))
        elif self.device.type == "cuda":
            resized = _resize_tensor(
                torch.from_numpy(pixels).to(self.device), window, shape, resize.filter
            )
        else:
            low, scale = np.float32(window[0]), np.float32(1 / (window[1] - window[0]))
            values = np.clip((pixels.astype(np.float32) - low) * scale, 0, 1)
            resized = torch.from_numpy(_resize_float(values, shape, resize.filter))
        # Bicubic overshoots at edges; an image has no values outside its range.
        placed = self._place(resized.to(self.device).clamp_(0, 1))
        if self.recipe.channels == 1 and len(placed) == 3:
            placed = sum(w * c for w, c in zip(_LUMA, placed, strict=True))[None]
        return torch.addcmul(self._shift, placed, self._scale)

    def _place(self, image: "torch.Tensor") -> "torch.Tensor":
        """Centre an image in the resolution: cut off what is over, fill with 0 what is short."""
        import torch

        height, width = self.recipe.resolution
        over = (image.shape[1] - height, image.shape[2] - width)
        if over == (0, 0):
            return image
        top, left = (round(n / 2) for n in over)
        if min(over) >= 0:
            return image[:, top : top + height, left : left + width]
        top, left = (-n // 2 for n in over)
        placed = torch.zeros((len(image), height, width), device=image.device)
        placed[:, top : top + image.shape[1], left : left + image.shape[2]] = image
        return placed


def _resize_float(
    values: npt.NDArray[np.float32], shape: Shape, resampling: str
) -> npt.NDArray[np.float32]:
    """Resize (C, Y, X) by Pillow's float mode, which is within 1e-7 of the filter in float64."""
    if values.shape[1:] == shape:
        return values
    return np.stack([_pillow(channel, shape, resampling) for channel in values])


def _resize_tensor(
    pixels: "torch.Tensor", window: tuple[float, float], shape: Shape, resampling: str
) -> "torch.Tensor":
    """Window and resize (C, Y, X) on its own device, as two products with the filter's weights.

    torch's antialiased resize rounds positions to float32, which costs up to 2e-5, and on CUDA
    refuses to reduce more than some 47 times.
    """
    import torch

    values = pixels.to(torch.float32).sub(window[0]).mul_(1 / (window[1] - window[0])).clamp_(0, 1)
    if values.shape[1:] == shape:
        return values
    rows, columns = (
        _weights(side, wanted, resampling, str(values.device))
        for side, wanted in zip(values.shape[1:], shape, strict=True)
    )
    return rows @ values @ columns.T


@lru_cache(maxsize=8)
def _weights(side: int, wanted: int, resampling: str, device: str) -> "torch.Tensor":
    """Say what each of `side` pixels adds to each wanted one, (wanted, side) float32.

    References:
        Keys (1981), cubic convolution, a = -0.5, or the triangle; as wide as the reduction, which
        is what antialiasing means in Pillow and torch.
    """
    import torch

    scale = side / wanted
    wanted_px, side_px = (
        torch.arange(n, dtype=torch.float64, device=device) + 0.5 for n in (wanted, side)
    )
    x = (side_px - (wanted_px * scale)[:, None]).abs() / max(scale, 1)
    if resampling == "bilinear":
        weights = (1 - x).clamp(min=0)
    else:
        near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
        weights = torch.where(x < 1, near, torch.where(x < 2, far, 0))
    normalised: torch.Tensor = (weights / weights.sum(1, keepdim=True)).to(torch.float32)
    return normalised


def _pillow(
    channel: npt.NDArray[np.generic], shape: Shape, resampling: str
) -> npt.NDArray[np.generic]:
    from PIL import Image

    height, width = shape
    filters = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
    return np.asarray(Image.fromarray(channel).resize((width, height), filters[resampling]))
