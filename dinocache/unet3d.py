"""The 3D U-Net of Anatomix, and how it is moved over a volume.

Layers stand in one sequence, as in the published file, whose names are their positions.

References:
    Dey et al., arXiv:2411.02372. Read beside it: neel-dey/anatomix a29b8a8,
    `anatomix/model/network.py` and `anatomix/registration/convex_adam_utils.py` (windows of 128
    voxels that overlap by 80%, weighted by a Gaussian), and MONAI's sliding windows, which it uses.
"""

import itertools
import math

import torch
from torch import Tensor, nn

__all__ = ["UNet3d", "slide"]

WINDOW = 128
OVERLAP = 0.8
SIGMA = 0.25
"""Of the Gaussian, in windows."""


class UNet3d(nn.Module):
    """Convolutions in pairs, max pooling down, nearest neighbours up, skips by concatenation."""

    def __init__(self, *, width: int = 16, outputs: int = 16, levels: int = 4) -> None:
        super().__init__()
        layers = [*_convolution(1, width)]
        self._skip_from: list[int] = []
        self._skip_to: list[int] = []
        wide = width
        for level in range(levels):
            wider = wide if level == 0 else 2 * wide
            layers += [*_convolution(wide, wider), *_convolution(wider, wider)]
            self._skip_from.append(len(layers) - 1)
            layers.append(nn.MaxPool3d(2))
            wide = wider
        layers += [*_convolution(wide, 2 * wide), *_convolution(2 * wide, 2 * wide)]
        for _ in range(levels):
            self._skip_to.append(len(layers))
            layers.append(nn.Upsample(scale_factor=2, mode="nearest"))
            # What comes up is twice as wide as the skip beside it, down to the first level.
            layers += [*_convolution(3 * wide, wide), *_convolution(wide, wide)]
            wide //= 2
        layers.append(_same(2 * wide, outputs))
        self.model = nn.Sequential(*layers)

    def forward(self, volume: Tensor) -> Tensor:
        """Compute features.

        Args:
            volume: (batch, 1, Z, Y, X) in [0, 1]; sides are multiples of 16, at least 32.

        Returns:
            (batch, 16, Z, Y, X).
        """
        skips: list[Tensor] = []
        for position, layer in enumerate(self.model):
            volume = layer(volume)
            if position in self._skip_to:
                volume = torch.cat((skips.pop(), volume), dim=1)
            if position in self._skip_from:
                skips.append(volume)
        return volume


def slide(network: nn.Module, volume: Tensor) -> Tensor:
    """Move a network over a volume and blend what overlaps.

    Args:
        network: Takes and gives (1, channels, 128, 128, 128).
        volume: (1, 1, Z, Y, X); a side below 128 is padded with zeros to both sides.

    Returns:
        (1, channels, Z, Y, X).
    """
    shape = volume.shape[2:]
    short = [max(WINDOW - side, 0) for side in shape]
    before = [missing // 2 for missing in short]
    pads = [p for b, s in zip(before, short, strict=True) for p in (s - b, b)][::-1]
    padded = nn.functional.pad(volume, pads)
    weight = _gaussian(volume)
    total = norm = None
    for corner in itertools.product(*(_starts(side) for side in padded.shape[2:])):
        z, y, x = (slice(start, start + WINDOW) for start in corner)
        features = network(padded[..., z, y, x]).float()
        if total is None or norm is None:
            total = features.new_zeros((1, features.shape[1], *padded.shape[2:]))
            norm = features.new_zeros(padded.shape)
        total[..., z, y, x] += features * weight
        norm[..., z, y, x] += weight
    if total is None or norm is None:
        raise ValueError(f"a volume of {tuple(shape)} has no voxel")
    z, y, x = (slice(b, b + side) for b, side in zip(before, shape, strict=True))
    blended: Tensor = total[..., z, y, x] / norm[..., z, y, x]
    return blended


def _convolution(inputs: int, outputs: int) -> list[nn.Module]:
    return [_same(inputs, outputs), nn.BatchNorm3d(outputs), nn.ReLU()]


def _same(inputs: int, outputs: int) -> nn.Module:
    return nn.Conv3d(inputs, outputs, 3, padding="same", padding_mode="reflect", bias=False)


def _starts(side: int) -> list[int]:
    step = int(WINDOW * (1 - OVERLAP))
    return [min(i * step, side - WINDOW) for i in range(math.ceil((side - WINDOW) / step) + 1)]


def _gaussian(like: Tensor) -> Tensor:
    """Weigh the voxels of a window, (128, 128, 128)."""
    places = torch.arange(WINDOW, device=like.device, dtype=torch.float32) - (WINDOW - 1) / 2
    line = torch.exp(-0.5 * (places / (SIGMA * WINDOW)) ** 2)
    return (line[:, None, None] * line[:, None] * line).clamp_(min=1e-3)
