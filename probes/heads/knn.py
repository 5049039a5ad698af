"""k nearest neighbours by cosine similarity; nothing is trained."""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from probes.heads.saved import SavedHead, check_features, check_training

__all__ = ["KnnHead"]

_BLOCK = 2**22
"""Numbers in the largest temporary array: 16 MB as float32, about what a cache holds."""

_TILE = 4096
"""Training rows that are compared at a time."""


class KnnHead(SavedHead):
    """Share of the ``k`` most similar training items that carry a label.

    score_c(q) = sum_j w_j y_jc / sum_j w_j over the k neighbours j of q, with w_j = 1, or
    w_j = exp(cos(q, j) / temperature). At a score of 0.5, uniform weights are a majority vote.
    Among equally similar training items the one that stands first is the nearer neighbour.

    Args:
        k: Neighbours that vote, at least 1 and at most the number of training items.
        temperature: None for votes of equal weight, or a number above 0: the smaller, the more
            the nearest ones count.

    Attributes:
        unit_features_: (n_train, dim) float32, training features scaled to length 1.
        targets_: (n_train, n_outputs) uint8 of 0 and 1.

    Raises:
        ValueError: If a setting is out of its range.

    References:
        Liu et al., "Does DINOv3 Set a New Medical Vision Standard?", arXiv:2509.06467, for k-NN
        on frozen features as independent binary tasks; the paper names neither k nor the
        weights. Weights by temperature (0.07 there): Wu et al., "Unsupervised Feature Learning
        via Non-Parametric Instance Discrimination", CVPR 2018, section 3.4.
    """

    unit_features_: npt.NDArray[np.float32]
    targets_: npt.NDArray[np.uint8]

    learned = ("unit_features", "targets")

    def __init__(self, *, k: int = 20, temperature: float | None = None) -> None:
        if k < 1:
            raise ValueError(f"k must be at least 1 neighbour, got {k}")
        if temperature is not None and not 0 < temperature < np.inf:
            raise ValueError(
                f"temperature must be a number above 0, or none for equal votes; got {temperature}"
            )
        self.k = k
        self.temperature = temperature

    def fit(
        self,
        x: npt.NDArray[np.floating[Any]],
        y: npt.NDArray[Any],
        *,
        validation: tuple[Any, npt.NDArray[Any]] | None = None,
    ) -> Self:
        """Keep the training items.

        Args:
            x: (n_items, dim) features, a floating dtype, no row all zeros.
            y: (n_items, n_outputs) of 0 and 1.
            validation: Not looked at.

        Returns:
            The head itself, fitted.

        Raises:
            ValueError: If the shapes or the values are not as above, or there are fewer than
                ``k`` items.
        """
        x, y = np.asarray(x), np.asarray(y)
        check_training(x, y)
        _check_k(self.k, len(x))
        self.unit_features_ = _unit_rows(x)
        self.targets_ = y.astype(np.uint8)
        return self

    def predict_proba(self, x: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float32]:
        """Score items by their ``k`` neighbours.

        Args:
            x: (n_items, dim) features, a floating dtype, no row all zeros.

        Returns:
            (n_items, n_outputs) float32 in [0, 1].

        Raises:
            ValueError: If the head is not fitted, or ``x`` is not as above.
        """
        return self.predict_curve(x, [self.k])[self.k]

    def predict_curve(
        self, x: npt.NDArray[np.floating[Any]], ks: Sequence[int]
    ) -> dict[int, npt.NDArray[np.float32]]:
        """Score items for several numbers of neighbours, searching once.

        Args:
            x: (n_items, dim) features, a floating dtype, no row all zeros.
            ks: Numbers of neighbours, each at least 1 and at most the number of training items.

        Returns:
            For each of ``ks``, ascending, (n_items, n_outputs) float32: what `predict_proba`
            gives with that ``k``.

        Raises:
            ValueError: If the head is not fitted, ``ks`` is empty or out of range, or ``x`` is
                not as above.
        """
        ks = sorted(set(ks))
        if not ks:
            raise ValueError("a curve over k needs at least one k, got none")
        queries = self._queries(x, ks)
        curve = {k: np.empty((len(x), self.targets_.shape[1]), dtype=np.float32) for k in ks}
        for rows in self._blocks(len(x), ks[-1]):
            index, cosine = self._nearest(queries[rows], ks[-1])
            weights = self._weights(cosine)[:, :, np.newaxis]
            votes = np.cumsum(weights * self.targets_[index], axis=1)
            totals = np.cumsum(weights, axis=1)
            for k in ks:
                curve[k][rows] = votes[:, k - 1] / totals[:, k - 1]
        return curve

    def neighbours(
        self, x: npt.NDArray[np.floating[Any]]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Find the ``k`` training items most similar to each item, most similar first.

        Args:
            x: (n_items, dim) features, a floating dtype, no row all zeros.

        Returns:
            Row numbers among the training items, (n_items, k) int64, and their cosine
            similarities, (n_items, k) float64.

        Raises:
            ValueError: If the head is not fitted, or ``x`` is not as above.
        """
        queries = self._queries(x, [self.k])
        index = np.empty((len(x), self.k), dtype=np.int64)
        cosine = np.empty((len(x), self.k))
        for rows in self._blocks(len(x), self.k):
            index[rows], cosine[rows] = self._nearest(queries[rows], self.k)
        return index, cosine

    def get_params(self) -> dict[str, bool | int | float | str | None]:
        """Return the settings of the constructor, ready for JSON."""
        return {"k": self.k, "temperature": self.temperature}

    def _queries(
        self, x: npt.NDArray[np.floating[Any]], ks: Sequence[int]
    ) -> npt.NDArray[np.float32]:
        """Check what is asked; return ``x`` with rows of length 1."""
        if not hasattr(self, "targets_"):
            raise ValueError("the head is not fitted; call fit or from_arrays first")
        n_train, dim = self.unit_features_.shape
        for k in ks:
            _check_k(k, n_train)
        x = np.asarray(x)
        check_features(x)
        if x.shape[1] != dim:
            raise ValueError(
                f"the head was fitted on features of width {dim}, got {x.shape[1]}; "
                "give it features of the encoder that it was fitted on"
            )
        return _unit_rows(x)

    def _blocks(self, n_items: int, k: int) -> list[slice]:
        """Cut the queries so that neither similarities nor votes exceed `_BLOCK` numbers."""
        n_train, n_outputs = self.targets_.shape
        widest = max(-(-n_train // _n_tiles(n_train, k)), k * n_outputs)
        step = max(1, _BLOCK // widest)
        return [slice(start, start + step) for start in range(0, n_items, step)]

    def _nearest(
        self, queries: npt.NDArray[np.float32], k: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Find the k nearest training items of each query, exactly.

        Tile by tile, a float32 product is compared with the k-th best so far; few pass.
        A tile is every n-th training row, not a run of them: were items sorted by class, runs
        would raise the k-th best step by step and let a whole class pass.

        Args:
            queries: (n_queries, dim) float32, rows of length 1.
            k: Number of neighbours.

        Returns:
            Row numbers (n_queries, k) int64 and cosines (n_queries, k) float64, best first.
        """
        n_tiles = _n_tiles(len(self.unit_features_), k)
        shortlist = _Shortlist(queries, self.unit_features_, k)
        products = np.empty(len(queries) * -(-len(self.unit_features_) // n_tiles), np.float32)
        for first in range(n_tiles):
            tile = self.unit_features_[first::n_tiles]
            similarity = products[: len(queries) * len(tile)].reshape(len(queries), len(tile))
            np.matmul(queries, tile.T, out=similarity)
            shortlist.add(similarity, first, n_tiles)
        return shortlist.nearest()

    def _weights(self, cosine: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        if self.temperature is None:
            return np.ones_like(cosine)
        # Relative to the nearest neighbour, which cancels in the score and cannot overflow.
        weights: npt.NDArray[np.float64] = np.exp((cosine - cosine[:, :1]) / self.temperature)
        return weights


class _Shortlist:
    """Training rows that may be among the k nearest of each query, judged by float32 products.

    A float32 matrix product gives two equal training rows similarities that differ in the last
    bit, depending on where the rows stand (OpenBLAS and MKL both do). So it only shortlists: who
    misses the k-th best by no more than its rounding error is compared in float64, pair by pair,
    and there equal rows tie.

    Args:
        queries: (n_queries, dim) float32, rows of length 1.
        units: (n_train, dim) float32, rows of length 1.
        k: Number of neighbours.

    References:
        Higham, "Accuracy and Stability of Numerical Algorithms", 2nd edition, section 3.1: a
        product of two vectors of length 1 errs by at most dim * eps / 2; here it counts twice,
        once for the k-th best and once for who is compared with it. Two eps more are for
        lengths of not quite 1 and for the comparison itself.
    """

    def __init__(
        self, queries: npt.NDArray[np.float32], units: npt.NDArray[np.float32], k: int
    ) -> None:
        self._queries, self._units, self._k = queries, units, k
        self._slack = (queries.shape[1] + 2) * np.finfo(np.float32).eps
        # (n_queries, k) float32, the best products so far, the k-th best first; none yet.
        self._best = np.empty((len(queries), 0), dtype=np.float32)
        self._query = np.empty(0, dtype=np.int64)
        self._train = np.empty(0, dtype=np.int64)
        self._similarity = np.empty(0, dtype=np.float32)

    def add(self, similarity: npt.NDArray[np.float32], start: int, step: int) -> None:
        """Take in the products (n_queries, n_rows) with the training rows start, start + step, ...

        The first call must bring at least k rows.
        """
        n_rows = similarity.shape[1]
        first = not self._best.size
        if first:
            self._best = np.partition(similarity, n_rows - self._k, axis=1)[:, n_rows - self._k :]
        found = np.flatnonzero(similarity >= self._floor()[:, np.newaxis])
        query, column = np.divmod(found, n_rows)
        value = similarity.ravel()[found]
        if not first:
            self._best = _largest(self._best, query, value)
        self._query = np.concatenate([self._query, query])
        self._train = np.concatenate([self._train, start + step * column])
        self._similarity = np.concatenate([self._similarity, value])
        if len(self._query) > max(_BLOCK // 4, 2 * self._best.size):
            # So many only where very many rows are all but equal: memory stays bounded.
            self._query, self._train, cosine = self._k_best()
            self._similarity = cosine.astype(np.float32)

    def nearest(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Return row numbers (n_queries, k) and cosines (n_queries, k), best first."""
        _, train, cosine = self._k_best()
        return train.reshape(-1, self._k), cosine.reshape(-1, self._k)

    def _floor(self) -> npt.NDArray[np.float32]:
        """Return, for each query, the product below which a row is not among the k nearest."""
        floor: npt.NDArray[np.float32] = self._best[:, 0] - np.float32(self._slack)
        return floor

    def _k_best(
        self,
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Return the k best pairs of each query so far, by float64 products, then by row number."""
        kept = self._similarity >= self._floor()[self._query]
        query, train = self._query[kept], self._train[kept]
        cosine = _pair_products(self._queries, self._units, query, train)
        order = np.lexsort((train, -cosine, query))
        first = np.searchsorted(query[order], np.arange(len(self._queries)))
        best = order[first[:, np.newaxis] + np.arange(self._k)].ravel()
        return query[best], train[best], cosine[best]


def _n_tiles(n_train: int, k: int) -> int:
    """Return into how many tiles of at least k, and about `_TILE`, training rows are cut."""
    return max(1, n_train // max(_TILE, k))


def _largest(
    best: npt.NDArray[np.float32], row: npt.NDArray[np.int64], value: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Keep the k largest of each row.

    Args:
        best: (n_rows, k) values.
        row: (n_values,) the row that each new value belongs to, ascending.
        value: (n_values,) new values.

    Returns:
        (n_rows, k), the smallest of each row first.
    """
    counts = np.bincount(row, minlength=len(best))
    most, k = int(counts.max()), best.shape[1]
    wide = np.full((len(best), k + most), -np.inf, dtype=np.float32)
    wide[:, :k] = best
    nth = np.arange(len(row)) - (np.cumsum(counts) - counts)[row]
    wide[row, k + nth] = value
    return np.partition(wide, most, axis=1)[:, most:]


def _pair_products(
    left: npt.NDArray[np.float32],
    right: npt.NDArray[np.float32],
    left_rows: npt.NDArray[np.int64],
    right_rows: npt.NDArray[np.int64],
) -> npt.NDArray[np.float64]:
    """Multiply pairs of rows, summed in float64 in an order that only the length decides."""
    products = np.empty(len(left_rows))
    step = max(1, _BLOCK // 8 // left.shape[1])
    for start in range(0, len(products), step):
        pairs = slice(start, start + step)
        products[pairs] = np.einsum(
            "ij,ij->i", left[left_rows[pairs]], right[right_rows[pairs]], dtype=np.float64
        )
    return products


def _unit_rows(x: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float32]:
    """Scale the rows of ``x`` (n_items, dim) to length 1, as float32."""
    lengths = np.sqrt(np.einsum("ij,ij->i", x, x, dtype=np.float64))
    unusable = ~(np.isfinite(lengths) & (lengths > 0))
    if unusable.any():
        row = int(np.argmax(unusable))
        what = "all zeros" if lengths[row] == 0 else "not finite"
        raise ValueError(
            f"cosine similarity needs features with a direction, row {row} is {what}; "
            "leave that item out"
        )
    units = np.empty(x.shape, dtype=np.float32)
    np.divide(x, lengths[:, np.newaxis], out=units, dtype=np.float64, casting="same_kind")
    return units


def _check_k(k: int, n_train: int) -> None:
    if not 1 <= k <= n_train:
        raise ValueError(
            f"k={k} neighbours cannot vote among {n_train} training items; set k to 1 ... {n_train}"
        )
