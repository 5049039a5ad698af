"""From decoded pixels to the encoder's input: window, resize, normalise.

The libraries' own transforms resize 8-bit images with Pillow, which rounds to 8 bits behind each of
its two passes. Here values are windowed to [0, 1] first and resized as float32, so that 16-bit
images keep their depth and the work can be done on the GPU; `arithmetic: uint8` does as the
libraries do, for 8-bit images. See docs/encoders.md, "Input", for how the two compare.
"""

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dinocache.errors import ItemError
from dinocache.geometry import placement, resized_shape
from dinocache.recipe import InputRecipe

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from dinocache.intensity import Window
    from dinocache.readers.contract import Pixels

__all__ = ["Preprocess", "check_row"]

Shape = tuple[int, int]

_MOST_CHANNELS = 3
_MOST_OVER = 64
"""Times the resolution's area."""
_LUMA = (0.299, 0.587, 0.114)
"""ITU-R BT.601, as Pillow's mode L."""


def check_row(recipe: InputRecipe, row: "Pixels", *, alone: bool = False) -> None:
    """Refuse a row that cannot become an encoder's input.

    Args:
        recipe: Of the input.
        row: (C, Y, X).
        alone: Whether each of its channels passes through the encoder by itself.

    Raises:
        ItemError: If its values are NaN or infinite or of a type that `arithmetic: uint8` does not
            take, it has more than three channels, or sides that differ by more than 64 times.
    """
    if row.dtype.kind == "f" and not np.isfinite(row).all():
        raise ItemError("its pixels are NaN or infinite")
    if recipe.resize.arithmetic == "uint8" and row.dtype != np.uint8:
        raise ItemError(
            f"its pixels are {row.dtype}; --arithmetic uint8 is for 8-bit images over their full "
            "range only"
        )
    channels, windows = len(row), len(recipe.windows)
    if not alone and channels > _MOST_CHANNELS:
        raise ItemError(
            f"it has {channels} channels, the encoder takes up to 3: choose some of them, or let "
            "each pass by itself with --channels passes"
        )
    if windows not in (1, channels) and (channels, alone) != (1, False):
        raise ItemError(f"it has {channels} channels, the recipe {windows} windows")
    height, width = resized_shape(row.shape[1:], recipe.resolution, recipe.resize)
    if height * width > _MOST_OVER * math.prod(recipe.resolution):
        raise ItemError(
            f"{row.shape[1]} x {row.shape[2]} px would be resized to {height} x {width} before it "
            "is cropped: its sides differ too much; --resize squash or pad takes it"
        )


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

    def __call__(self, pixels: "Pixels", windows: "Sequence[Window]") -> "torch.Tensor":
        """Window, resize and normalise.

        Args:
            pixels: (C, Y, X), C from 1 to 3. Of two channels the mean becomes the third.
            windows: Values that become 0 and 1: a pair for all channels, one a channel, or, for one
                channel, one for each that is to be made of it.

        Returns:
            (channels, height, width) float32, normalised, on the device.
        """
        import torch

        resize = self.recipe.resize
        shape = resized_shape(pixels.shape[1:], self.recipe.resolution, resize)
        values: npt.NDArray[Any] = pixels
        if len(windows) > len(pixels):
            values = np.repeat(pixels, len(windows), axis=0)
        if resize.arithmetic == "uint8":
            eighth = [_pillow(channel, shape, resize.filter) for channel in values]
            resized = torch.from_numpy(np.stack(eighth).astype(np.float32) / np.float32(255))
        elif self.device.type == "cuda":
            moved = torch.from_numpy(np.ascontiguousarray(values)).to(self.device)
            resized = _resize_tensor(moved, windows, shape, resize.filter)
        else:
            low = np.array([w[0] for w in windows], np.float32)[:, None, None]
            scale = np.array([1 / (w[1] - w[0]) for w in windows], np.float32)[:, None, None]
            windowed = np.clip((values.astype(np.float32) - low) * scale, 0, 1)
            resized = torch.from_numpy(_resize_float(windowed, shape, resize.filter))
        # Bicubic overshoots at edges; an image has no values outside its range.
        placed = self._place(resized.to(self.device).clamp_(0, 1))
        if len(placed) == 2:
            placed = torch.cat([placed, placed.mean(0, keepdim=True)])
        if self.recipe.channels == 1 and len(placed) == 3:
            placed = sum(w * c for w, c in zip(_LUMA, placed, strict=True))[None]
        return torch.addcmul(self._shift, placed, self._scale)

    def _place(self, image: "torch.Tensor") -> "torch.Tensor":
        """Centre an image in the resolution: cut off what is over, fill with 0 what is short."""
        import torch

        height, width = self.recipe.resolution
        if image.shape[1:] == (height, width):
            return image
        top, left = placement((image.shape[1], image.shape[2]), (height, width))
        if top <= 0 and left <= 0 and image.shape[1] >= height and image.shape[2] >= width:
            return image[:, -top : height - top, -left : width - left]
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
    pixels: "torch.Tensor", windows: "Sequence[Window]", shape: Shape, resampling: str
) -> "torch.Tensor":
    """Window and resize (C, Y, X) on its own device, as two products with the filter's weights.

    torch's antialiased resize rounds positions to float32, which costs up to 2e-5, and on CUDA
    refuses to reduce more than some 47 times.
    """
    import torch

    low, scale = (
        torch.tensor(numbers, dtype=torch.float32, device=pixels.device)[:, None, None]
        for numbers in ([w[0] for w in windows], [1 / (w[1] - w[0]) for w in windows])
    )
    values = pixels.to(torch.float32).sub(low).mul_(scale).clamp_(0, 1)
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
