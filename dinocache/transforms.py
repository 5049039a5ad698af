"""From decoded pixels to the encoder's input: window, resize, normalise.

The libraries' own transforms resize 8-bit images with Pillow, which rounds to 8 bits behind each of
its two passes. Here values are windowed to [0, 1] first and resized as float32, so that 16-bit
images keep their depth and the work can be done on the GPU; `arithmetic: uint8` does as the
libraries do, for 8-bit images. See docs/encoders.md, "Input", for how the two compare.
"""

import math
from dataclasses import dataclass
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

__all__ = ["Preprocess", "Staged", "check_row"]

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


@dataclass(frozen=True)
class Staged:
    """A row, or one channel of it, as far as it is made where it was decoded.

    Attributes:
        values: (C, Y, X). On a CUDA device's way the decoded pixels, in pinned memory; else float32
            of the encoder's height and width, in [0, 1].
        windows: Still to be applied, on the device; none where that is done.
    """

    values: "torch.Tensor"
    windows: "tuple[Window, ...]" = ()


class Preprocess:
    """Makes the encoder's input: `stage` in the threads that decode, `batch` on the device."""

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
        """Window, resize and normalise one row.

        Args:
            pixels: As for `stage`.
            windows: As for `stage`.

        Returns:
            (channels, height, width) float32, normalised, on the device.
        """
        return self.batch([self.stage(pixels, windows)])[0]

    def stage(self, pixels: "Pixels", windows: "Sequence[Window]") -> Staged:
        """Do what is done on the host.

        NumPy and Pillow only: torch would start threads of its own beside each that decodes.

        Args:
            pixels: (C, Y, X), C from 1 to 3. Of two channels the mean becomes the third.
            windows: Values that become 0 and 1: a pair for all channels, one a channel, or, for one
                channel, one for each that is to be made of it.

        Returns:
            What `batch` takes.
        """
        import torch

        resize = self.recipe.resize
        shape = resized_shape(pixels.shape[1:], self.recipe.resolution, resize)
        values: npt.NDArray[Any] = pixels
        if len(windows) > len(pixels):
            values = np.repeat(pixels, len(windows), axis=0)
        if resize.arithmetic == "uint8":
            eighth = [_pillow(channel, shape, resize.filter) for channel in values]
            resized = np.stack(eighth).astype(np.float32) / np.float32(255)
        elif self.device.type == "cuda":
            raw = torch.from_numpy(np.ascontiguousarray(values))
            return Staged(raw.pin_memory(), tuple(windows))
        else:
            low = np.array([w[0] for w in windows], np.float32)[:, None, None]
            scale = np.array([1 / (w[1] - w[0]) for w in windows], np.float32)[:, None, None]
            windowed = np.clip((values.astype(np.float32) - low) * scale, 0, 1)
            resized = _resize_float(windowed, shape, resize.filter)
            # Bicubic overshoots at edges; an image has no values outside its range.
            np.clip(resized, 0, 1, out=resized)
        return Staged(torch.from_numpy(resized))

    def batch(self, rows: "Sequence[Staged | None]") -> "torch.Tensor":
        """Put rows together and normalise them.

        Args:
            rows: Of `stage`; None where there is none.

        Returns:
            (rows, channels, height, width) float32, normalised, on the device; 0 where there was no
            row. On a CUDA device the work may not be done yet.
        """
        import torch

        recipe, cuda = self.recipe, self.device.type == "cuda"
        on_host = all(row is None or not row.windows for row in rows)
        whole = torch.zeros(
            (len(rows), recipe.channels, *recipe.resolution),
            device=None if on_host else self.device,
            pin_memory=on_host and cuda,
        )
        for place, row in zip(whole, rows, strict=True):
            if row is not None:
                self._put(place, self._resized(row))
        whole = whole.to(self.device, non_blocking=True)
        torch.addcmul(self._shift, whole, self._scale, out=whole)
        for index, row in enumerate(rows):
            if row is None:
                whole[index] = 0
        return whole

    def _resized(self, row: Staged) -> "torch.Tensor":
        if not row.windows:
            return row.values
        resize = self.recipe.resize
        shape = resized_shape(
            (row.values.shape[1], row.values.shape[2]), self.recipe.resolution, resize
        )
        moved = row.values.to(self.device, non_blocking=True)
        return _resize_tensor(moved, row.windows, shape, resize.filter).clamp_(0, 1)

    def _put(self, place: "torch.Tensor", image: "torch.Tensor") -> None:
        """Centre an image, (C, Y, X) in [0, 1], in zeros, (channels, height, width)."""
        import torch

        sides = (image.shape[1], image.shape[2])
        inner = (place.shape[1], place.shape[2])
        top, left = placement(sides, inner)
        cut = image[
            :,
            max(-top, 0) : max(-top, 0) + min(inner[0], sides[0]),
            max(-left, 0) : max(-left, 0) + min(inner[1], sides[1]),
        ]
        if len(cut) == 2:
            cut = torch.cat([cut, cut.mean(0, keepdim=True)])
        if len(place) == 1 and len(cut) == 3:
            cut = sum(w * c for w, c in zip(_LUMA, cut, strict=True))[None]
        top, left = max(top, 0), max(left, 0)
        place[:, top : top + cut.shape[1], left : left + cut.shape[2]] = cut


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
