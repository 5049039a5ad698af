"""What a head of neurons is trained on: affinities of labels, and how much each counts."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from probes.neurons.checks import check_ids

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["affinities", "affinity_weights", "weighted_mse", "widened"]

_LEAST, _MOST = 0.05, 0.99
"""Bounds of the share of affinities that are 1; the rarer are not weighed more than that."""


def widened(labels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Widen the borders between neurons, in plane.

    A voxel becomes background if more than one neuron lies in the 3 x 3 voxels around it in its
    section (fewer at the edge); background that was there stays. Borders between two sections stay
    as they are. What this needs besides its result is some sections' worth of memory.

    Args:
        labels: (Z, Y, X) ids, integers of at least 0; 0 is background.

    Returns:
        Of the same shape and type.

    Raises:
        ValueError: If the labels are not as above.

    References:
        Lee et al., arXiv:1706.00120: what lies at a border is nobody's.
    """
    labels = np.asarray(labels)
    check_ids(labels, "labels")
    wide = np.empty(labels.shape, labels.dtype)
    for section, out in zip(labels, wide, strict=True):
        ids = section.astype(f"u{section.dtype.itemsize}", copy=False)
        highest = _around(ids, np.maximum)
        # One less, and 0 is the highest of all: the least of them is the least neuron's.
        lowest = _around(ids - 1, np.minimum) + 1
        out[:] = np.where(lowest == highest, section, 0)
    return wide


def _around(ids: npt.NDArray[Any], choose: Callable[..., Any]) -> npt.NDArray[Any]:
    """Choose, for each pixel, among the 3 x 3 around it."""
    columns = ids.copy()
    choose(columns[1:], ids[:-1], out=columns[1:])
    choose(columns[:-1], ids[1:], out=columns[:-1])
    chosen = columns.copy()
    choose(chosen[:, 1:], columns[:, :-1], out=chosen[:, 1:])
    choose(chosen[:, :-1], columns[:, 1:], out=chosen[:, :-1])
    return chosen


def affinities(labels: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Say which voxels belong together with the one before them along z, y and x.

    The affinity of a voxel is 1 if it and the voxel before it are of one neuron, and 0 if they are
    of two, or if either is background. The first plane of each axis has nothing before it: there
    it is 1 in a neuron and 0 in the background. So in a volume of one section all affinities along
    z say only what is background. Agglomeration counts on the voxel *before*: affinities to the
    next one give neurons that are worth nothing.

    Args:
        labels: (Z, Y, X) ids, integers of at least 0; 0 is background. Commonly `widened`.

    Returns:
        (3, Z, Y, X): the channels are z, y, x. Three bytes a voxel; what is needed besides is a
        section's worth. Labels without any neuron give 0 everywhere.

    Raises:
        ValueError: If the labels are not as above.
    """
    labels = np.asarray(labels)
    check_ids(labels, "labels")
    found = np.empty((3, *labels.shape), np.bool_)
    for z, section in enumerate(labels):
        along_z, along_y, along_x = found[:, z]
        neuron = section > 0
        along_z[:] = neuron & (section == labels[z - 1]) if z else neuron
        along_y[0], along_x[:, 0] = neuron[0], neuron[:, 0]
        along_y[1:] = neuron[1:] & (section[1:] == section[:-1])
        along_x[:, 1:] = neuron[:, 1:] & (section[:, 1:] == section[:, :-1])
    return found


def affinity_weights(
    affinities: npt.NDArray[Any], *, per_channel: bool = False
) -> npt.NDArray[np.float32]:
    """Weigh affinities so that the rarer of 0 and 1 counts as much as the other, or nearly.

    With f, the share of 1, taken as at least 0.05 and at most 0.99: if f is above 0.5, 1 weighs 1
    and 0 weighs f / (1 - f); else 0 weighs 1 and 1 weighs (1 - f) / f. So nothing weighs more
    than 99.

    Args:
        affinities: (..., 3, Z, Y, X) of 0 and 1, any axes of samples before them; of `affinities`.
        per_channel: Whether f is that of each channel of a sample; else it is that of the sample.

    Returns:
        Of the same shape.

    Raises:
        ValueError: If the shape is another.
    """
    affinities = np.asarray(affinities)
    if affinities.ndim < 4 or affinities.shape[-4] != 3 or affinities.size == 0:
        raise ValueError(f"affinities must be (..., 3, Z, Y, X), got {affinities.shape}")
    axes = (-3, -2, -1) if per_channel else (-4, -3, -2, -1)
    ones = affinities > 0
    share = np.clip(ones.mean(axes, keepdims=True), _LEAST, _MOST)
    of_one = np.where(share > 0.5, 1, (1 - share) / share)
    of_zero = np.where(share > 0.5, share / (1 - share), 1)
    return np.where(ones, of_one.astype(np.float32), of_zero.astype(np.float32))


def weighted_mse(predicted: "Tensor", target: "Tensor", weights: "Tensor") -> "Tensor":
    """Compute the weighted squared error of affinities, a voxel.

    It is the sum over voxels, channels and samples, divided by voxels and samples: three channels
    that are wrong by 1 with weight 1 give 3.

    Args:
        predicted: (..., 3, Z, Y, X), in [0, 1]; half precision is computed with as float32.
        target: Of the same shape, of 0 and 1, any type.
        weights: Of the same shape; of `affinity_weights`.

    Returns:
        The loss, a scalar, float32 or more.

    Raises:
        ValueError: If the shapes differ, or are not as above.
    """
    shape = tuple(predicted.shape)
    if len(shape) < 4 or shape[-4] != 3 or not predicted.numel():
        raise ValueError(f"predicted affinities must be (..., 3, Z, Y, X), got {shape}")
    for name, other in (("target", target), ("weights", weights)):
        if tuple(other.shape) != shape:
            raise ValueError(
                f"{name} must have the shape of what is predicted, {shape}, "
                f"got {tuple(other.shape)}"
            )
    exact = predicted if predicted.itemsize > 4 else predicted.float()
    error = (exact - target.to(exact.dtype)) ** 2
    return (weights.to(exact.dtype) * error).sum() / (predicted.numel() // 3)
