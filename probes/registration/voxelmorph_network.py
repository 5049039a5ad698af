"""VoxelMorph's U-Net: layers, velocities to displacements, and the losses; tensors in and out."""

import math
from collections.abc import Mapping
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from probes.heads.dense_networks import first_weights
from probes.heads.dense_rows import draws_of
from probes.heads.device import Place
from probes.registration.voxelmorph_settings import Kind, VoxelMorphSettings

__all__ = [
    "initial_weights",
    "make_network",
    "move",
    "ncc_loss",
    "roughness",
    "sample",
    "with_weights",
]

_SLOPE = 0.2
"""Of leaky ReLUs, below 0."""
_FIRST_FLOW = 1e-5
"""Standard deviation of the first weights that make velocities: training starts at no motion."""
_LEAST_VARIANCE = 1e-5
"""Added to products of variances: windows in which an image is constant count as 0."""
_FEW_VALUES = 20480
"""Of so many (channels, Z, Y), or fewer, torch convolves a single volume in a slow way."""


def make_network(settings: VoxelMorphSettings, kind: Kind) -> nn.ModuleDict:
    """Make the U-Net on the meta device."""
    convolution = nn.Conv3d if len(kind.grid) == 3 else nn.Conv2d

    def layer(before: int, after: int) -> nn.Module:
        return convolution(before, after, 3, padding=1, device="meta", dtype=torch.float32)

    width, encoder, decoder = 2 * max(1, kind.channels), [], []
    for after in settings.encoder:
        encoder.append(layer(width, after))
        width = after
    skips = list(settings.encoder)
    for after in settings.decoder:
        decoder.append(layer(width, after))
        width = after + (skips.pop() if skips else 0)
    return nn.ModuleDict(
        {
            "encoder": nn.ModuleList(encoder),
            "decoder": nn.ModuleList(decoder),
            "flow": layer(width, len(kind.grid)),
        }
    )


def initial_weights(settings: VoxelMorphSettings, kind: Kind) -> dict[str, Tensor]:
    """Draw weights by the settings' seed; those of the flow are next to 0."""
    weights = first_weights(make_network(settings, kind), settings.seed)
    shape = tuple(weights["flow.weight"].shape)
    drawn = draws_of(settings.seed, 2).normal(0, _FIRST_FLOW, shape)
    weights["flow.weight"] = torch.from_numpy(drawn.astype(np.float32))
    weights["flow.bias"] = torch.zeros_like(weights["flow.bias"])
    return weights


def with_weights(
    settings: VoxelMorphSettings, kind: Kind, weights: Mapping[str, Tensor], place: Place
) -> nn.ModuleDict:
    """Make the network with its weights, at a place."""
    network = make_network(settings, kind)
    network.load_state_dict(weights, assign=True)
    # Channels that stand last in memory: gradients of weights take half the time on the CPU.
    last = torch.channels_last_3d if len(kind.grid) == 3 else torch.channels_last
    return network.to(place.device).to(memory_format=last)


def move(network: nn.ModuleDict, seen: Tensor, int_steps: int) -> tuple[Tensor, Tensor]:
    """Give velocities and displacements of pairs, float32.

    Args:
        network: The U-Net.
        seen: (pairs, channels, *grid).
        int_steps: As in the settings.

    Returns:
        Velocities (pairs, axes, *grid of half the size) of the grid filled up to what the levels
        divide, in voxels of that size, or where there are no steps of the full size; and
        displacements (pairs, axes, *grid), in voxels of the grid.
    """
    size = seen.shape[2:]
    raw = flow(network, seen)
    with torch.autocast(seen.device.type, enabled=False):
        if not int_steps:
            velocity = field = raw
        else:
            velocity = halve(raw) / 2
            field = 2 * double(integrate(velocity, int_steps))
    for axis, n in enumerate(size, start=2):
        field = field.narrow(axis, 0, n)
    return velocity, field


def flow(network: nn.ModuleDict, x: Tensor) -> Tensor:
    """Pass (pairs, channels, *grid) through the U-Net: (pairs, axes, *grid filled up)."""
    encoder = cast(nn.ModuleList, network["encoder"])
    decoder = cast(nn.ModuleList, network["decoder"])
    multiple, volumes = 1 << len(encoder), x.ndim == 5
    beyond = [(-n) % multiple for n in x.shape[2:]]
    if any(beyond):
        x = functional.pad(x, [part for n in beyond[::-1] for part in (0, n)])
    x = x.contiguous(memory_format=torch.channels_last_3d if volumes else torch.channels_last)
    pool = functional.max_pool3d if volumes else functional.max_pool2d
    skips: list[Tensor] = []
    for layer in encoder:
        skips.append(functional.leaky_relu(convolve(layer, x), _SLOPE))
        x = pool(skips[-1], 2)
    for layer in decoder:
        x = functional.leaky_relu(convolve(layer, x), _SLOPE)
        if skips:
            x = torch.cat([functional.interpolate(x, scale_factor=2.0), skips.pop()], dim=1)
    with torch.autocast(x.device.type, enabled=False):  # halves would round displacements
        return convolve(network["flow"], x.float())


def convolve(layer: nn.Module, x: Tensor) -> Tensor:
    """Convolve (pairs, channels, *grid) 3x3(x3).

    For one volume of few values torch takes a way of its own on the CPU, that is up to nine times
    as slow: then its halves are two, each with a slice of the other.
    """
    n_slices = x.shape[2]
    few = x.ndim == 5 and len(x) == 1 and math.prod(x.shape[1:4]) <= _FEW_VALUES
    if x.is_cuda or not few or n_slices % 2:
        return cast(Tensor, layer(x))
    more = functional.pad(x, (0, 0, 0, 0, 1, 1))
    halves = torch.cat([more[:, :, : n_slices // 2 + 2], more[:, :, n_slices // 2 :]])
    weight, bias = cast(Tensor, layer.weight), cast(Tensor, layer.bias)
    found = functional.conv3d(halves, weight, bias, padding=(0, 1, 1))
    return torch.cat([found[:1], found[1:]], dim=2)


def halve(field: Tensor) -> Tensor:
    """Average (pairs, axes, *grid) over blocks of two voxels an axis."""
    for axis in range(2, field.ndim):
        shape = field.shape
        pairs = field.reshape(*shape[:axis], shape[axis] // 2, 2, *shape[axis + 1 :])
        field = pairs.mean(axis + 1)
    return field


def double(field: Tensor) -> Tensor:
    """Bring (pairs, axes, *grid) to twice the grid: linear, corners not aligned.

    By sums of neighbours: the gradient of torch's own is summed on CUDA in an order that changes.
    """
    for axis in range(2, field.ndim):
        n = field.shape[axis]
        before = torch.cat([field.narrow(axis, 0, 1), field.narrow(axis, 0, n - 1)], axis)
        behind = torch.cat([field.narrow(axis, 1, n - 1), field.narrow(axis, n - 1, 1)], axis)
        both = [0.75 * field + 0.25 * before, 0.75 * field + 0.25 * behind]
        field = torch.stack(both, axis + 1).flatten(axis, axis + 1)
    return field


def integrate(velocity: Tensor, steps: int) -> Tensor:
    """Follow velocities for a unit of time: scaling, then squaring so many times.

    References:
        Arsigny, Commowick, Pennec, Ayache, MICCAI 2006.
    """
    field = velocity / (1 << steps)
    for _ in range(steps):
        field = field + sample(field, field)
    return field


def sample(values: Tensor, displacement: Tensor) -> Tensor:
    """Give values at x + u(x), linear between voxels; beyond the grid those of its edge.

    Args:
        values: (pairs, channels, *grid).
        displacement: u, (pairs, axes, *grid) in voxels.
    """
    if values.is_cuda and values.requires_grad:
        return sample_by_corners(values, displacement)
    sizes = displacement.shape[2:]
    places = [
        (2 * (at + displacement[:, axis]) + 1) / sizes[axis] - 1
        for axis, at in enumerate(_voxels(displacement))
    ]
    return functional.grid_sample(
        values,
        torch.stack(places[::-1], dim=-1),
        mode="bilinear",
        padding_mode="border",
        align_corners=False,
    )


def sample_by_corners(values: Tensor, displacement: Tensor) -> Tensor:
    """Do what `sample` does.

    torch's own sums the gradient of values on CUDA in an order that changes; that of indexing is
    sorted before.
    """
    sizes = displacement.shape[2:]
    n_pairs, n_voxels = len(values), math.prod(sizes)
    flat = values.transpose(0, 1).flatten(1)
    pair = torch.arange(n_pairs, device=values.device).view(-1, *[1] * len(sizes))
    corners = [(pair * n_voxels, torch.ones_like(displacement[:, 0]))]
    for axis, at in enumerate(_voxels(displacement)):
        place = (at + displacement[:, axis]).nan_to_num().clamp(0, sizes[axis] - 1)
        low = place.detach().floor().clamp(max=max(0, sizes[axis] - 2))
        share, stride = place - low, math.prod(sizes[axis + 1 :])
        step = stride if sizes[axis] > 1 else 0
        corners = [
            corner
            for index, weight in corners
            for corner in (
                (index + low.long() * stride, weight * (1 - share)),
                (index + low.long() * stride + step, weight * share),
            )
        ]
    found = [weight * flat[:, index] for index, weight in corners]
    return sum(found[1:], found[0]).transpose(0, 1)


def _voxels(displacement: Tensor) -> list[Tensor]:
    """Number the voxels along each axis; each is spread over the others."""
    sizes = displacement.shape[2:]
    return [
        torch.arange(n, dtype=displacement.dtype, device=displacement.device).view(
            -1, *[1] * (len(sizes) - 1 - axis)
        )
        for axis, n in enumerate(sizes)
    ]


def ncc_loss(fixed: Tensor, warped: Tensor, window: int) -> Tensor:
    """Give minus the mean square of correlations in windows around each voxel.

    Args:
        fixed: (pairs, 1, *grid), needs no gradient.
        warped: Likewise.
        window: Width of a window; beyond the grid is 0.
    """
    count = window ** (fixed.ndim - 2)
    of_fixed = _box_sums(torch.cat([fixed, fixed.square()], dim=1), window)
    of_warped = _box_sums(torch.cat([warped, warped.square(), fixed * warped], dim=1), window)
    f, ff = of_fixed.unbind(dim=1)
    w, ww, fw = of_warped.unbind(dim=1)
    cross = fw - f * w / count
    variances = (ff - f.square() / count) * (ww - w.square() / count)
    squares: Tensor = cross.square() / (variances + _LEAST_VARIANCE)
    return -squares.mean()


def _box_sums(x: Tensor, window: int) -> Tensor:
    """Sum (pairs, channels, *grid) over windows around each voxel; beyond the grid is 0.

    By products with matrices of ones, axis by axis: fast, and so are their gradients.
    """
    last = x.ndim - 1
    for axis in range(2, x.ndim):
        at = torch.arange(x.shape[axis], device=x.device)
        near = ((at - at[:, None]).abs() <= window // 2).to(x.dtype)
        x = x @ near if axis == last else (near @ x.flatten(axis + 1)).view(x.shape)
    return x


def roughness(field: Tensor) -> Tensor:
    """Give the mean square of differences of neighbours, over the axes of (pairs, axes, *grid)."""
    axes = range(2, field.ndim)
    parts = [field.diff(dim=axis).square().mean() for axis in axes if field.shape[axis] > 1]
    return torch.stack(parts).sum() / len(axes)
