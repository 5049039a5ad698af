"""Neurons from affinities: fragments by watershed, joined while they seem to be one."""

import contextlib
import ctypes
import importlib
import itertools
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from probes.neurons.checks import check_affinities, check_ids

__all__ = ["Scoring", "ThresholdChoice", "agglomerate", "choose_threshold", "fragments"]

Scoring = Literal["median", "mean"]
"""By what affinity two segments are joined, of all those between them."""

_SCORINGS = MappingProxyType(
    {
        "median": "OneMinus<HistogramQuantileAffinity<RegionGraphType,50,ScoreValue,256,true>>",
        "mean": "OneMinus<MeanAffinity<RegionGraphType,ScoreValue>>",
    }
)
"""C++ types, as waterz spells those that it brings compiled."""
_QUEUE = 256
"""Bins of the queue: scores in one bin are merged in the order they came."""
_stdout = threading.Lock()


class ThresholdChoice(NamedTuple):
    """What `choose_threshold` found."""

    threshold: float
    """The best one; of several, the lowest."""
    voi: dict[float, float]
    """Threshold -> variation of information in bits; the lower, the better."""


def fragments(affinities: npt.NDArray[Any]) -> npt.NDArray[np.unsignedinteger[Any]]:
    """Cut a volume into pieces that should lie in one neuron each, section by section.

    With b = 1 - (a_y + a_x) / 2, a watershed on b floods each section from the regional maxima of
    the distance to the nearest pixel with b >= 0.5. Neighbours are the four that share an edge.
    Borders are flooded, too: a section is covered whole. There are two exceptions: a section with
    b < 0.5 everywhere is one fragment, and one with b >= 0.5 everywhere has none, it is 0. The
    affinities along z are not looked at: no fragment lies in two sections.

    Args:
        affinities: (3, Z, Y, X) in [0, 1]; the channels are z, y, x.

    Returns:
        (Z, Y, X) ids from 1 without gaps, rising with z; uint32 (uint64 from 2**32 voxels). The
        same for the same affinities.

    Raises:
        ValueError: If the affinities are not as above, or NaN is among them.
    """
    affinities = np.asarray(affinities)
    check_affinities(affinities)
    shape = affinities.shape[1:]
    ids = np.zeros(shape, np.uint32 if int(np.prod(shape, dtype=object)) < 2**32 else np.uint64)
    last = 0
    for z in range(shape[0]):
        along_y, along_x = affinities[1:, z].astype(np.float32)
        cut = _cut(1 - 0.5 * (along_y + along_x))
        np.add(cut, last, out=ids[z], where=cut > 0, casting="unsafe")
        last += int(cut.max())
    return ids


def _cut(border: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
    """Cut one section (Y, X) into fragments from 1."""
    from scipy.ndimage import distance_transform_edt, label
    from skimage.morphology import local_maxima
    from skimage.segmentation import watershed

    inside = border < 0.5
    if inside.all() or not inside.any():  # without a border there is no distance to it
        return inside.astype(np.int32)
    distance = distance_transform_edt(inside)
    seeds, _ = label(local_maxima(distance, connectivity=1))
    flooded: npt.NDArray[Any] = watershed(border, seeds, connectivity=1)
    return flooded


def agglomerate(
    affinities: npt.NDArray[np.float32],
    fragments: npt.NDArray[Any],
    thresholds: Sequence[float],
    scoring: Scoring = "median",
) -> Iterator[npt.NDArray[np.unsignedinteger[Any]]]:
    """Join fragments to neurons while the affinity between two is high enough.

    Two segments are joined if 1 - (the affinity between them) is below the threshold: the higher
    it is, the fewer and larger are the neurons. Pairs with the highest affinity come first. What
    the affinity between two segments is, ``scoring`` says: of affinities at the faces between them
    the mean; or the median, where two fragments start with the highest one of theirs, and segments
    that were joined pool what their fragments started with.

    In bytes a voxel this takes 12 for the affinities, 8 for a copy of the fragments, about 14 while
    those that touch are looked for, and what a yielded volume takes. Besides, each pair that
    touches takes up to 2 KB (median), and there are about five a fragment: noise in the affinities
    makes many, and then this is most of it. Nothing is compiled: only scorings that waterz brings
    compiled are used. While it works, what other threads write to the standard output may be lost,
    as waterz cannot be told to be silent.

    Args:
        affinities: (3, Z, Y, X) in [0, 1], float32, C-contiguous (nothing is copied); the channels
            are z, y, x, to the voxel before.
        fragments: (Z, Y, X) ids of `fragments`, no higher than there are voxels; 0 is never
            joined. They stay as they are.
        thresholds: In [0, 1], rising.
        scoring: "median" or "mean".

    Returns:
        An iterator with one volume (Z, Y, X) a threshold, in their order, each made when it is
        asked for and free to keep or change. A neuron has the id of one of its fragments; the type
        is the smallest unsigned one that holds the highest fragment's.

    Raises:
        ValueError: If an argument is not as above, or this waterz would have to compile.
    """
    check_affinities(affinities)
    if affinities.dtype != np.float32 or not affinities.flags.c_contiguous:
        raise ValueError(
            "affinities must be float32 and C-contiguous (np.ascontiguousarray(affinities, "
            f"np.float32) makes them so), got {affinities.dtype} with strides {affinities.strides}"
        )
    check_ids(fragments, "fragments", affinities.shape[1:])
    if fragments.max() > fragments.size:
        raise ValueError(
            f"fragments must have ids of at most {fragments.size}, as many as there are voxels; "
            f"got {fragments.max()}"
        )
    _check_thresholds(thresholds)
    return _agglomerated(affinities, fragments, thresholds, _compiled(scoring))


def _agglomerated(
    affinities: npt.NDArray[np.float32],
    fragments: npt.NDArray[Any],
    thresholds: Sequence[float],
    function: str,
) -> Iterator[npt.NDArray[np.unsignedinteger[Any]]]:
    from waterz import agglomerate as merged_until

    kept = np.min_scalar_type(int(fragments.max()))
    # A copy in any case: waterz writes the neurons of each threshold where the fragments were.
    segments = fragments.astype(np.uint64, order="C")
    merging = merged_until(
        affinities,
        [float(threshold) for threshold in thresholds],
        fragments=segments,
        scoring_function=function,
        discretize_queue=_QUEUE,
    )
    for _ in thresholds:
        with _silent():
            next(merging)
        yield segments.astype(kept)


def _check_thresholds(thresholds: Sequence[float]) -> None:
    rising = all(low < high for low, high in itertools.pairwise(thresholds))
    if not len(thresholds) or not rising or not all(0 <= t <= 1 for t in thresholds):
        raise ValueError(f"thresholds must be numbers in [0, 1], rising; got {list(thresholds)}")


def _compiled(scoring: str) -> str:
    """Return the C++ type of a scoring that waterz need not compile.

    Raises:
        ValueError: If there is no such scoring, or it had to.
    """
    if scoring not in _SCORINGS:
        raise ValueError(f"scoring must be {' or '.join(_SCORINGS)}, got {scoring!r}")
    function = _SCORINGS[scoring]
    try:
        known = importlib.import_module("waterz._prebuilt.agglomerate").SPECS
    except ModuleNotFoundError as exc:
        if exc.name == "waterz":
            raise
        known = ()
    if (function, str(_QUEUE)) not in known:
        raise ValueError(
            f"this waterz would have to compile the scoring {scoring}, which needs a C++ compiler; "
            "install waterz 0.10.1 or newer as a wheel, which brings it compiled"
        )
    return function


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Let nothing come to the standard output, neither from Python nor from C++."""
    with _stdout, open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        libc = ctypes.CDLL("ucrtbase" if sys.platform == "win32" else None)
        try:
            kept = os.dup(1)
        except OSError:  # it is closed, and there is nothing to keep silent
            yield
            return
        try:
            libc.fflush(None)
            os.dup2(nowhere.fileno(), 1)
            yield
        finally:
            libc.fflush(None)
            os.dup2(kept, 1)
            os.close(kept)


def choose_threshold(
    affinities: npt.NDArray[np.float32],
    truth: npt.NDArray[Any],
    thresholds: Sequence[float],
    scoring: Scoring = "median",
) -> ThresholdChoice:
    """Choose how far to agglomerate, by sections that are known and are not tested on.

    Args:
        affinities: (3, Z, Y, X) as `agglomerate` takes them.
        truth: (Z, Y, X) ids of neurons, not widened; where it is 0 is not looked at.
        thresholds: Candidates, as `agglomerate` takes them.
        scoring: "median" or "mean".

    Returns:
        The threshold with the least variation of information, both parts together.

    Raises:
        ValueError: If an argument is not as above, or the truth has no neuron.

    References:
        scikit-image, ``variation_of_information`` with ``ignore_labels=[0]``.
    """
    from skimage.metrics import variation_of_information

    truth = np.asarray(truth)
    check_affinities(affinities)
    check_ids(truth, "truth", affinities.shape[1:])
    known = truth > 0
    if not known.any():
        raise ValueError("truth must have neurons, ids above 0; all of it is 0")
    # From 0 without gaps: the table of skimage is as large as the highest id.
    _, neurons = np.unique(truth[known], return_inverse=True)
    found = {}
    segments = agglomerate(affinities, fragments(affinities), thresholds, scoring)
    for threshold, ids in zip(thresholds, segments, strict=True):
        parts = variation_of_information(neurons, ids[known].astype(np.int64))
        found[float(threshold)] = float(parts.sum())
    return ThresholdChoice(min(found, key=lambda threshold: (found[threshold], threshold)), found)
