"""Networks of dense heads. This module loads torch: it is imported when one is fitted.

Weights are made on the meta device; `first_weights` draws them by a generator of its own.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = [
    "Decoder2d",
    "Linear2d",
    "MapNetwork",
    "RowNetwork",
    "Stem",
    "first_weights",
    "resize",
]

_GROUPS = 32


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Bring maps to a size, bilinear, corners not aligned.

    On CUDA the gradient of torch's own is summed in an order that changes: there it is computed
    as two products with the matrices of its weights while a network is trained.

    Args:
        x: (rows, channels, height, width).
        size: Height and width.
    """
    if x.shape[-2:] == size:
        return x
    if x.is_cuda and torch.is_grad_enabled():
        return resize_by_products(x, size)
    return functional.interpolate(x, size=size, mode="bilinear", align_corners=False)


def resize_by_products(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Do what `resize` does, by products of matrices."""
    height, width = (
        _weights(n, m, x.device).to(x.dtype) for n, m in zip(x.shape[-2:], size, strict=True)
    )
    return height.t() @ (x @ width)


@lru_cache(maxsize=64)
def _weights(n: int, m: int, device: torch.device) -> Tensor:
    """Return (n, m): what each of n values adds to each of m between them."""
    with torch.inference_mode(mode=False), torch.autocast("cpu", enabled=False):
        single = torch.eye(n, dtype=torch.float32, device="cpu")[None]
        return functional.interpolate(single, size=m, mode="linear")[0].to(device)


class Stem(nn.Module):
    """Standardise maps, bring them to the largest grid, concatenate them, convolve 1x1.

    Each map is convolved by its own part of the weights, then brought to that grid, then summed:
    the same function, as both steps are linear and the interpolation's weights sum to 1, on fewer
    channels.

    Args:
        channels: Of each map.
        width: Channels of the result.
    """

    def __init__(self, channels: Sequence[int], width: int) -> None:
        super().__init__()
        self.channels = list(channels)
        total = sum(channels)
        self.weight = nn.Parameter(torch.empty(width, total, dtype=torch.float32, device="meta"))
        self.bias = nn.Parameter(torch.empty(width, dtype=torch.float32, device="meta"))
        self.mean: Tensor
        self.scale: Tensor
        for name in ("mean", "scale"):
            empty = torch.empty(total, dtype=torch.float32, device="meta")
            self.register_buffer(name, empty)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Turn maps (rows, grid_height, grid_width, channels) into (rows, width, height, width)."""
        grid = (max(one.shape[1] for one in maps), max(one.shape[2] for one in maps))
        of_maps = (
            torch.split(x, self.channels, dim=-1) for x in (self.weight, self.mean, self.scale)
        )
        # Gradients of what follows take twice as long where channels stand last in memory (CPU).
        convolved = [
            resize(
                functional.linear((one - mean) / scale, weight).permute(0, 3, 1, 2).contiguous(),
                grid,
            )
            for one, weight, mean, scale in zip(maps, *of_maps, strict=True)
        ]
        return sum(convolved[1:], convolved[0]) + self.bias[:, None, None]


class MapNetwork(nn.Module):
    """What turns maps into logits of pixels."""

    stem: Stem

    def on_grid(self, maps: Sequence[Tensor]) -> Tensor:
        """Give logits (rows, channels, height, width) at the size that they are computed in."""
        raise NotImplementedError

    def statistics_of(self, mean: Tensor, scale: Tensor) -> dict[str, Tensor]:
        """Say which buffers get what of the mean and scale of all maps, one behind another."""
        return {"stem.mean": mean, "stem.scale": scale}

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Give logits (rows, channels, *size), float32."""
        logits = self.on_grid(maps)
        with torch.autocast(logits.device.type, enabled=False):
            return resize(logits.float(), size)


class RowNetwork(MapNetwork):
    """One that looks at each row by itself."""

    patch_values: int
    """Most values between two layers, for each patch of the largest grid."""

    def row_bytes(self, grids: Sequence[tuple[int, ...]]) -> int:
        """Say about how much memory a row takes without gradients, up to its logits.

        Args:
            grids: Height and width of each map.
        """
        patches = max(grid[0] for grid in grids) * max(grid[1] for grid in grids)
        return 3 * 4 * patches * max(self.patch_values, sum(self.stem.channels))


class Linear2d(RowNetwork):
    """A 1x1 convolution."""

    def __init__(self, channels: Sequence[int], outputs: int) -> None:
        super().__init__()
        self.stem = Stem(channels, outputs)
        self.patch_values = outputs

    def on_grid(self, maps: Sequence[Tensor]) -> Tensor:
        """Give logits on the largest grid."""
        return cast(Tensor, self.stem(maps))


class Decoder2d(RowNetwork):
    """A stem, blocks of [3x3 convolution, GroupNorm, GELU, twice the size], a 1x1 convolution."""

    def __init__(self, channels: Sequence[int], outputs: int, *, width: int, blocks: int) -> None:
        super().__init__()
        self.stem = Stem(channels, width)
        widths = [width, *(width >> number for number in range(blocks))]
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(before, after, 3, padding=1, device="meta", dtype=torch.float32),
                nn.GroupNorm(math.gcd(_GROUPS, after), after, device="meta", dtype=torch.float32),
                nn.GELU(),
            )
            for before, after in pairwise(widths)
        )
        self.patch_values = max(after << 2 * n for n, after in enumerate(widths[1:], start=1))
        self.last = nn.Conv2d(widths[-1], outputs, 1, device="meta", dtype=torch.float32)

    def on_grid(self, maps: Sequence[Tensor]) -> Tensor:
        """Give logits on the largest grid times two for each block."""
        x = self.stem(maps)
        for block in self.blocks:
            x = block(x)
            x = resize(x, (2 * x.shape[-2], 2 * x.shape[-1]))
        return cast(Tensor, self.last(x))


def first_weights(network: nn.Module, seed: int) -> dict[str, Tensor]:
    """Draw weights evenly from within 1 / sqrt(inputs) of zero, as PyTorch's layers do.

    Norms begin as the identity.

    Args:
        network: On the meta device.
        seed: Of what is drawn.

    Returns:
        Parameters by name, float32, in the network's order.
    """
    draws = np.random.default_rng(seed)
    weights: dict[str, Tensor] = {}
    for name, module in network.named_modules():
        inputs = 1.0
        for own, parameter in module.named_parameters(recurse=False):
            shape = tuple(parameter.shape)
            if isinstance(module, nn.GroupNorm | nn.InstanceNorm3d):
                drawn = np.full(shape, 1 if own == "weight" else 0, np.float32)
            else:
                if own == "weight":  # it comes before its bias
                    inputs = math.prod(shape[1:])
                drawn = (draws.uniform(-1, 1, shape) / np.sqrt(inputs)).astype(np.float32)
            weights[f"{name}.{own}" if name else own] = torch.from_numpy(drawn)
    return weights
