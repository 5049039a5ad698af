"""MIND-SSC: what a place looks like against its own surroundings, whatever the contrast."""

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["mind_ssc"]

# Neighbours before (-) and behind (+) a place along an axis, in the order of the descriptor's
# reference implementation. In the plane, those of its two axes are left: the first four.
_PAIRS = (
    ((0, 1), (1, -1)),
    ((1, 1), (0, -1)),
    ((1, -1), (0, -1)),
    ((1, 1), (0, 1)),
    ((1, -1), (2, -1)),
    ((1, 1), (2, 1)),
    ((2, -1), (0, -1)),
    ((0, 1), (2, 1)),
    ((1, 1), (2, -1)),
    ((2, 1), (1, -1)),
    ((0, 1), (2, -1)),
    ((2, 1), (0, -1)),
)
"""(axis, side) of both neighbours of each channel."""
_NARROWEST, _WIDEST = 0.001, 1000
"""Bounds of the local variance, as multiples of its mean."""

Floats = npt.NDArray[np.float32]


def mind_ssc(image: npt.NDArray[Any], *, radius: int = 1, dilation: int = 2) -> Floats:
    """Describe each voxel by how alike its neighbours are.

    The neighbours lie `dilation` voxels away along each axis, 6 of a volume, 4 of a picture. Each
    pair of them that does not face each other, 12 or 4, is a channel: D, the mean squared
    difference of the patches around both. From D its least channel is taken; divided by its mean
    over channels, the local variance (kept between 0.001 and 1000 times its mean over the image),
    it is turned to exp(-D). Beyond the image its edge goes on.

    The picture's four channels are this module's analogue, and not in the reference.

    Args:
        image: (Z, Y, X) or (Y, X), finite, not constant. Its scale and offset do not matter.
        radius: Of the patches, voxels: they are 2 * radius + 1 wide.
        dilation: Distance of the neighbours, voxels.

    Returns:
        (12, Z, Y, X) or (4, Y, X), in [0, 1].

    Raises:
        ValueError: If an argument is not as above.

    References:
        Heinrich et al., MICCAI 2013, "Towards realtime multimodal fusion for image-guided
        interventions using self-similarities". The channels are in the order of ConvexAdam's.
    """
    image = np.asarray(image)
    _check(image, radius, dilation)
    # By a power of two, which loses no digit: in [-1, 1] squares do not overflow.
    _, exponent = np.frexp(max(-float(image.min()), float(image.max())))
    values = np.ldexp(image.astype(np.float64), -exponent).astype(np.float32)
    axes = image.ndim
    pairs = [pair for pair in _PAIRS if max(axis for axis, _ in pair) < axes]
    wide = np.pad(values, dilation, mode="edge")
    found = np.empty((len(pairs), *image.shape), np.float32)
    for channel, (one, other) in zip(found, pairs, strict=True):
        difference = _beside(wide, one, dilation) - _beside(wide, other, dilation)
        difference *= difference
        channel[:] = _mean_around(difference, radius)
    found -= found.min(0)
    spread = found.mean(0)
    typical = float(spread.mean(dtype=np.float64))
    if typical == 0:
        raise ValueError("an image must have structure, this one is alike along all axes")
    np.clip(spread, typical * _NARROWEST, typical * _WIDEST, out=spread)
    found /= -spread
    return np.exp(found, out=found)


def _beside(wide: Floats, neighbour: tuple[int, int], dilation: int) -> Floats:
    """Give the image as seen from a neighbour: all of its voxels shifted, of one widened so far."""
    starts = [dilation] * wide.ndim
    axis, side = neighbour
    starts[axis] += side * dilation
    inner: Floats = wide[
        tuple(slice(s, s + n - 2 * dilation) for s, n in zip(starts, wide.shape, strict=True))
    ]
    return inner


def _mean_around(values: Floats, radius: int) -> Floats:
    """Average over the patch around each voxel, one axis after the other; the edge goes on."""
    for axis, n in enumerate(values.shape):
        widths = [(radius, radius) if k == axis else (0, 0) for k in range(values.ndim)]
        wide = np.moveaxis(np.pad(values, widths, mode="edge"), axis, 0)
        total = wide[:n].copy()
        for shift in range(1, 2 * radius + 1):
            total += wide[shift : shift + n]
        values = np.moveaxis(total, 0, axis)
    values /= (2 * radius + 1) ** values.ndim
    return values


def _check(image: npt.NDArray[Any], radius: int, dilation: int) -> None:
    if image.ndim not in (2, 3) or 0 in image.shape:
        raise ValueError(f"an image must be (Z, Y, X) or (Y, X), not empty, got {image.shape}")
    if radius < 0 or dilation < 1:
        raise ValueError(
            f"the radius must be at least 0 and the dilation at least 1, got {radius}, {dilation}"
        )
    if not np.isfinite(image).all():
        raise ValueError("an image must be finite, this one is not")
    if image.min() == image.max():
        raise ValueError("an image must vary from place to place, this one is constant")
