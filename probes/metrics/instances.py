"""How two ways of dividing a volume into neurons differ."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["InstanceScores", "compare_instances"]

_BLOCK = 2**23
"""Voxels that are counted at once."""
_MOST_IDS = 2**22
"""Ids up to here are rows of the table as they are; others are numbered anew first."""


class InstanceScores(NamedTuple):
    """What `compare_instances` found; the lower, the better."""

    voi_split: float
    """Bits: entropy of the segments given the true neurons, more of it if neurons are split."""
    voi_merge: float
    """Bits: entropy of the true neurons given the segments, more of it if neurons are merged."""
    arand: float
    """Adapted Rand error, 0 to 1."""

    @property
    def voi(self) -> float:
        """Bits: variation of information, both entropies together."""
        return self.voi_split + self.voi_merge


def compare_instances(truth: npt.NDArray[Any], prediction: npt.NDArray[Any]) -> InstanceScores:
    """Compare the segments of a volume with its neurons.

    Voxels whose true id is 0 are left out. A predicted 0 is a segment like any other.

    Args:
        truth: (Y, X) or (Z, Y, X) integers of at least 0, an id for each neuron.
        prediction: Of the same shape, an id for each segment.

    Returns:
        The scores; NaN if all of the truth is 0, and NaN for ``arand`` where no two voxels are in
        one neuron or segment.

    Raises:
        ValueError: If an argument is not as above.

    References:
        scikit-image, ``variation_of_information`` and ``adapted_rand_error``, both with
        ``ignore_labels=[0]``. Meila, Journal of Multivariate Analysis 98 (2007) 873-895;
        Arganda-Carreras et al., Frontiers in Neuroanatomy 9 (2015) 142.
    """
    from skimage.metrics import adapted_rand_error, variation_of_information

    truth, prediction = np.asarray(truth), np.asarray(prediction)
    _check(truth, prediction)
    table = _overlaps(truth, prediction)
    if table.sum() == 0:
        return InstanceScores(np.nan, np.nan, np.nan)
    # With a table the images are not looked at, but for their shapes.
    nothing = np.zeros(0, dtype=np.int64)
    split, merge = variation_of_information(nothing, nothing, table=table / table.sum())
    with np.errstate(invalid="ignore", divide="ignore"):
        arand, _, _ = adapted_rand_error(nothing, nothing, table=table)
    return InstanceScores(float(split), float(merge), float(arand))


def _check(truth: npt.NDArray[Any], prediction: npt.NDArray[Any]) -> None:
    if truth.shape != prediction.shape or truth.ndim not in (2, 3) or truth.size == 0:
        raise ValueError(
            "truth and prediction must have one shape (Y, X) or (Z, Y, X), got "
            f"{truth.shape} and {prediction.shape}"
        )
    for name, ids in (("truth", truth), ("prediction", prediction)):
        if ids.dtype.kind not in "ui" or (ids.dtype.kind == "i" and ids.min() < 0):
            least = f" from {ids.min()}" if ids.dtype.kind == "i" else ""
            raise ValueError(f"{name} must be ids, integers of at least 0; got {ids.dtype}{least}")


def _overlaps(truth: npt.NDArray[Any], prediction: npt.NDArray[Any]) -> Any:  # noqa: ANN401
    """Return the sparse table (neurons, segments) of how many voxels they share.

    Block by block: a table of the whole at once would take some thirty times the volume.
    """
    from scipy.sparse import csr_array

    known = [_known_ids(ids) for ids in (truth, prediction)]
    shape = tuple(
        int(ids.max()) + 1 if few is None else len(few)
        for ids, few in zip((truth, prediction), known, strict=True)
    )
    table = csr_array(shape, dtype=np.float64)
    flat = truth.reshape(-1), prediction.reshape(-1)
    for start in range(0, truth.size, _BLOCK):
        some = [ids[start : start + _BLOCK] for ids in flat]
        there = some[0] != 0
        places = tuple(_places(ids[there], few) for ids, few in zip(some, known, strict=True))
        table = table + csr_array((np.ones(len(places[0])), places), shape=shape)
    return table


def _known_ids(ids: npt.NDArray[Any]) -> npt.NDArray[Any] | None:
    """Return the ids in order if they are to be numbered anew, else None."""
    if int(ids.max()) < _MOST_IDS:
        return None
    flat = ids.reshape(-1)
    blocks = (np.unique(flat[start : start + _BLOCK]) for start in range(0, ids.size, _BLOCK))
    return np.unique(np.concatenate(list(blocks)))


def _places(ids: npt.NDArray[Any], known: npt.NDArray[Any] | None) -> npt.NDArray[np.int64]:
    places = ids if known is None else np.searchsorted(known, ids)
    return places.astype(np.int64)
