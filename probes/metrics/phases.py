"""Metrics of phases of operations, for many weightings of the videos at once."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from probes.metrics.names import MetricName

__all__ = ["Phases", "check_sequences"]

_Float = npt.NDArray[np.float64]
_Bool = npt.NDArray[np.bool_]
_Int = npt.NDArray[np.intp]
_Values = tuple[_Float, _Float | None]

_RELAXED_S = 10
"""How near a border of a segment a frame may have the phase beyond it, s."""


class Phases:
    """Accuracy, precision, recall and Jaccard index of each video, then means.

    Of a video and a phase p that occurs in its truth, with P the frames that were called p, G
    those that are p, and T the right ones of P or G: precision |T| / |P|, recall |T| / |G|, Jaccard
    |T| / |P or G|; a precision without P is 0. Of each phase the mean over the videos that have
    it, then the mean over phases. Accuracy is the share of right frames of a video, then the mean
    over videos.

    ``video_``: right is a frame that was called what it is. ``relaxed_``: so is, in the first 10 s
    of each segment of the truth, a frame that was called the phase one before, and in the last
    10 s one that was called the phase one after, in the order of the columns; values are cut off
    at 1. Exceptions for phases 4 to 7 of Cholec80 are not made.

    Phases that no video has are left out of the mean over phases. A replicate that drew no video
    with some other phase is NaN there and overall.

    Args:
        truth: (n_frames, n_phases), one 1 in each row.
        decided: (n_frames, n_phases) of the same frames, one 1 in each row.
        sequences: (n_frames,) what `check_sequences` returned: the video of each frame. Frames of
            a video stand in order of time.
        fps: Frames a second.
        names: The metrics.

    References:
        Evaluation of the M2CAI 2016 workflow challenge, ``Evaluate.m``, as in TMRNet (Jin et al.,
        IEEE TMI 2021), whose relaxed mode, by a slip of indexing, forgives late frames by the
        first 10 s of a segment: Funke et al., "Metrics Matter in Surgical Phase Recognition",
        arXiv:2305.13961. Here it is the last 10 s, as is meant.
    """

    def __init__(
        self,
        truth: _Bool,
        decided: _Bool,
        sequences: _Int,
        fps: float,
        names: Sequence[MetricName],
    ) -> None:
        self._names = names
        self._sequences = sequences
        self._first = np.unique(sequences, return_index=True)[1]
        border = round(_RELAXED_S * fps)
        borders = {"video": 0, "relaxed": border}
        self._tables = {
            mode: _tabulate(truth, decided, sequences, borders[mode])
            for mode in {name.average for name in names}
        }
        self._occurs = _by_video(truth, sequences) > 0

    def __call__(self, weights: _Float) -> dict[str, _Values]:
        """Return overall (n_replicates,) and phases (n_replicates, n_phases) of each metric.

        Args:
            weights: (n_replicates, n_frames), the same for all frames of a video.

        Raises:
            ValueError: If they differ within a video.
        """
        of_video = weights[:, self._first]
        if not np.array_equal(of_video[:, self._sequences], weights):
            raise ValueError(
                "frames of a video must weigh the same: draw whole videos, with groups that hold "
                "all frames of each"
            )
        videos = of_video.sum(axis=1)
        values: dict[str, _Values] = {}
        for name in self._names:
            table = self._tables[name.average][name.base]
            if name.base == "accuracy":
                values[name.text] = of_video @ table / videos, None
            else:
                phases = self._mean_over_videos(of_video, table)
                kept = phases[:, self._occurs.any(axis=0)]
                values[name.text] = kept.mean(axis=1), phases
        return values

    def _mean_over_videos(self, of_video: _Float, table: _Float) -> _Float:
        having = of_video @ self._occurs.astype(np.float64)
        sums = of_video @ np.where(self._occurs, table, 0)
        return np.divide(sums, having, out=np.full_like(sums, np.nan), where=having > 0)


def check_sequences(sequences: npt.ArrayLike | None, n_items: int, metric: str) -> _Int:
    """Number the videos.

    Args:
        sequences: (n_items,) the video of each frame, strings or numbers.
        n_items: Number of frames.
        metric: That needs them.

    Returns:
        (n_items,) from 0.

    Raises:
        ValueError: If they are missing or others.
    """
    if sequences is None:
        raise ValueError(
            f"metric {metric!r} needs sequences, the video of each frame; give them, or take "
            "accuracy or macro_recall, over frames"
        )
    values = np.asarray(sequences)
    if values.shape != (n_items,):
        raise ValueError(f"sequences must be ({n_items},) like the items, got {values.shape}")
    for row, value in enumerate(values.tolist()):
        if not isinstance(value, str | int | float) or value != value:  # None, NaN
            raise ValueError(
                f"each frame needs a video, a string or number; row {row} has {value!r}"
            )
    return np.unique(values, return_inverse=True)[1]


def _tabulate(
    truth: _Bool, decided: _Bool, sequences: _Int, border: int
) -> dict[str, npt.NDArray[Any]]:
    """Return (n_videos, n_phases) of each metric, (n_videos,) of accuracy."""
    right = _right(truth.argmax(axis=1), decided.argmax(axis=1), sequences, border)
    either = truth | decided
    hits = _by_video(either & right[:, np.newaxis], sequences)

    def share(of: _Bool) -> _Float:
        whole = _by_video(of, sequences)
        return np.minimum(np.divide(hits, whole, out=np.zeros_like(hits), where=whole > 0), 1)

    frames = np.bincount(sequences)
    return {
        "accuracy": np.bincount(sequences, weights=right) / frames,
        "precision": share(decided),
        "recall": share(truth),
        "jaccard": share(either),
    }


def _right(truth: _Int, decided: _Int, sequences: _Int, border: int) -> _Bool:
    """Return which frames count as right, (n_frames,)."""
    right: _Bool = decided == truth
    for segment in _segments(truth, sequences):
        ahead = decided[segment] - truth[segment]
        near = min(border, len(segment))
        right[segment[:near]] |= ahead[:near] == -1
        right[segment[len(segment) - near :]] |= ahead[len(segment) - near :] == 1
    return right


def _segments(truth: _Int, sequences: _Int) -> Iterator[_Int]:
    """Yield the frames of each run of one phase, video by video."""
    order = np.argsort(sequences, kind="stable")
    changes = (np.diff(truth[order]) != 0) | (np.diff(sequences[order]) != 0)
    yield from np.split(order, np.flatnonzero(changes) + 1)


def _by_video(frames: _Bool, sequences: _Int) -> _Float:
    """Count frames (n_frames, n_phases) by video, (n_videos, n_phases)."""
    counts = [np.bincount(sequences, weights=column) for column in frames.T]
    return np.stack(counts, axis=1)
