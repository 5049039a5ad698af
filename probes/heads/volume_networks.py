"""The network of heads of blocks. This module loads torch: it is imported when one is fitted."""

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from probes.heads.dense_networks import MapNetwork, Stem, resize

__all__ = ["Decoder3d", "resize_planes"]

_SLOPE = 0.01


def resize_planes(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Bring (blocks, channels, rows, height, width) to a size in plane, as `resize` does."""
    return resize(x.flatten(1, 2), size).view(*x.shape[:3], *size)


class Decoder3d(MapNetwork):
    """Stages of 3x3x3 convolutions, each at twice the grid in plane of the one before.

    Maps are (blocks, rows, grid_height, grid_width, channels). Those of level 0 enter the first
    stage, those of level k the stage after k others, beside what comes from there.

    Args:
        channels: Of each map.
        levels: Of each map, 0 to ``stages`` - 1; some are 0.
        outputs: Channels of the logits.
        width: Of the first stage; each later one has half as many channels.
        stages: At least 1.
    """

    def __init__(
        self,
        channels: Sequence[int],
        levels: Sequence[int],
        outputs: int,
        *,
        width: int,
        stages: int,
    ) -> None:
        super().__init__()
        self.channels = list(channels)
        self.numbers = {
            level: [number for number, own in enumerate(levels) if own == level]
            for level in sorted(set(levels))
        }
        widths = [width, *(width >> number for number in range(stages))]
        stems = {
            level: Stem([channels[number] for number in numbers], widths[1 + level])
            for level, numbers in self.numbers.items()
        }
        self.stem = stems.pop(0)
        self.skips = nn.ModuleDict({str(level): stem for level, stem in stems.items()})
        self.stages = nn.ModuleList(
            _stage(before + after * (level in stems), after)
            for level, (before, after) in enumerate(pairwise(widths))
        )
        self.last = nn.Conv3d(widths[-1], outputs, 1, device="meta", dtype=torch.float32)

    def on_grid(self, maps: Sequence[Tensor]) -> Tensor:
        """Give logits (blocks, outputs, rows, height, width) on the last stage's grid.

        It is the largest grid of level 0, times two for each stage but the first.
        """
        x = self._enter(self.stem, maps, 0)
        for level, stage in enumerate(self.stages):
            if level:
                x = resize_planes(x, (2 * x.shape[-2], 2 * x.shape[-1]))
            if level and level in self.numbers:
                skip = self._enter(cast(Stem, self.skips[str(level)]), maps, level)
                x = torch.cat([x, resize_planes(skip, (x.shape[-2], x.shape[-1]))], dim=1)
            x = stage(x)
        return cast(Tensor, self.last(x))

    def _enter(self, stem: Stem, maps: Sequence[Tensor], level: int) -> Tensor:
        """Bring the maps of a level to its channels: (blocks, channels, rows, height, width)."""
        some = [maps[number] for number in self.numbers[level]]
        rows: Tensor = stem([one.flatten(0, 1) for one in some])
        blocks = rows.view(*some[0].shape[:2], *rows.shape[1:])
        return blocks.transpose(1, 2).contiguous()

    def statistics_of(self, mean: Tensor, scale: Tensor) -> dict[str, Tensor]:
        """Say which buffers get what of the mean and scale of all maps, one behind another."""
        of_maps = {
            "mean": torch.split(mean, self.channels),
            "scale": torch.split(scale, self.channels),
        }
        return {
            f"skips.{level}.{name}" if level else f"stem.{name}": torch.cat(
                [parts[number] for number in numbers]
            )
            for level, numbers in self.numbers.items()
            for name, parts in of_maps.items()
        }

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Give logits (blocks, outputs, rows, *size), float32."""
        logits = self.on_grid(maps)
        with torch.autocast(logits.device.type, enabled=False):
            return resize_planes(logits.float(), size)


class _Conv3d(nn.Conv3d):
    """A convolution that is as fast on the CPU as torch's can be.

    There torch takes several times as long for one block as for two, and twice as long where
    channels do not stand last in memory.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Convolve (blocks, channels, rows, height, width)."""
        if input.is_cuda:
            return super().forward(input)
        alone = len(input) == 1
        x = torch.cat([input, torch.zeros_like(input)]) if alone else input
        found = super().forward(x.contiguous(memory_format=torch.channels_last_3d))
        return found[:1] if alone else found


def _stage(before: int, after: int) -> nn.Sequential:
    """Make twice a convolution, a norm and an activation."""
    layers: list[nn.Module] = []
    for channels in (before, after):
        layers += [
            _Conv3d(channels, after, 3, padding=1, device="meta", dtype=torch.float32),
            nn.InstanceNorm3d(after, affine=True, device="meta", dtype=torch.float32),
            nn.LeakyReLU(_SLOPE),
        ]
    return nn.Sequential(*layers)
