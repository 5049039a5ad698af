"""IoUs of frames of a video, each the mean of something else over frames or labels.

They all follow from the counts of each frame, so that frames may be weighted afterwards.
"""

import numpy as np
import numpy.typing as npt

from probes.metrics.overlap import iou

__all__ = ["challenge_iou", "isinet_iou", "present_iou", "twoclass_iou"]

_Float = npt.NDArray[np.float64]
_Counts = npt.NDArray[np.int64] | npt.NDArray[np.float64]


def present_iou(counts: _Counts) -> _Float:
    """Return the IoU of each label in each frame whose truth has it.

    Args:
        counts: (n_frames, n_labels, 4) of `probes.metrics.overlap.overlap_counts`, without their
            last row.

    Returns:
        (n_frames, n_labels) float64, NaN where the truth does not have the label.
    """
    return np.where(counts[..., 0] + counts[..., 2] > 0, iou(counts), np.nan)


def challenge_iou(counts: _Counts) -> _Float:
    """Return each frame's mean IoU over the labels that its truth has: Challenge IoU.

    Args:
        counts: See `present_iou`.

    Returns:
        (n_frames,) float64, NaN of frames whose truth is empty.

    References:
        EndoVis 2018 robotic scene segmentation challenge, as Gonzalez et al. (ISINet, MICCAI
        2020) write it.
    """
    return _mean_over_labels(present_iou(counts))


def isinet_iou(counts: _Counts) -> _Float:
    """Return each frame's mean IoU over the labels that its truth or its prediction has.

    Args:
        counts: See `present_iou`.

    Returns:
        (n_frames,) float64, NaN of frames with nothing in either.

    References:
        Gonzalez et al., "ISINet: an instance-based approach for surgical instrument
        segmentation", MICCAI 2020.
    """
    return _mean_over_labels(iou(counts))


def twoclass_iou(counts: _Counts) -> _Float:
    """Return each frame's mean of the foreground's IoU and the background's.

    Args:
        counts: (n_frames, 4) of any label against the background: the last row of
            `probes.metrics.overlap.overlap_counts`.

    Returns:
        (n_frames,) float64. A side that is in neither mask is left out: an empty frame that was
        predicted empty is 1.
    """
    numbers = np.asarray(counts, dtype=np.float64)
    sides = np.stack([numbers, numbers[..., [3, 2, 1, 0]]], axis=-2)
    return _mean_over_labels(iou(sides))


def _mean_over_labels(values: _Float) -> _Float:
    """Return the mean over the last axis of what is defined; NaN where nothing is."""
    defined = ~np.isnan(values)
    number = np.asarray(defined.sum(axis=-1))
    total = np.asarray(np.where(defined, values, 0).sum(axis=-1))
    means: _Float = np.full(total.shape, np.nan)
    return np.asarray(np.divide(total, number, out=means, where=number > 0))
