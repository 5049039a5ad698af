from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from head_contract import N_NEW, N_TRAIN, HeadContract, random_task
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors

from probes.heads import KnnHead
from probes.heads.knn import _Shortlist

Array = npt.NDArray[Any]


class TestContract(HeadContract):
    name = "knn"
    settings = {"k": 4, "temperature": 0.07}  # noqa: RUF012


class TestKnn:
    def test_votes_by_hand(self) -> None:
        x = np.array([[2, 0], [3, 4], [0, 5], [-1, 0]], dtype=np.float32)
        y = np.array([[1, 0, 1], [0, 1, 1], [0, 1, 0], [0, 0, 0]])
        query = np.array([[7.0, 0]], dtype=np.float32)  # cosines 1, 0.6, 0, -1
        head = KnnHead(k=3).fit(x, y)
        np.testing.assert_allclose(head.predict_proba(query), [[1 / 3, 2 / 3, 2 / 3]], rtol=1e-6)
        index, cosine = head.neighbours(query)
        assert index.tolist() == [[0, 1, 2]]
        np.testing.assert_allclose(cosine, [[1, 0.6, 0]], atol=1e-7)
        weights = np.exp(np.array([1, 0.6, 0]) / 0.5)
        expected = weights @ y[:3] / weights.sum()
        warm = KnnHead(k=3, temperature=0.5).fit(x, y)
        np.testing.assert_allclose(warm.predict_proba(query), [expected], rtol=1e-6)

    def test_a_very_low_temperature_is_the_nearest_neighbour(self) -> None:
        x, y, new = random_task()
        cold = KnnHead(k=9, temperature=1e-6).fit(x, y).predict_proba(new)
        np.testing.assert_allclose(cold, KnnHead(k=1).fit(x, y).predict_proba(new), atol=1e-6)

    @pytest.mark.parametrize("k", [1, 6, N_TRAIN])
    def test_neighbours_are_those_of_scikit_learn(self, k: int) -> None:
        x, y, new = random_task()
        index, cosine = KnnHead(k=k).fit(x, y).neighbours(new)
        reference = NearestNeighbors(n_neighbors=k, metric="cosine", algorithm="brute")
        distance, expected = reference.fit(x.astype(float)).kneighbors(new.astype(float))
        np.testing.assert_array_equal(index, expected)
        np.testing.assert_allclose(cosine, 1 - distance, atol=1e-6)

    @given(seed=st.integers(0, 10_000), k=st.integers(1, 12), tile=st.sampled_from([5, 16, 4096]))
    @settings(max_examples=30, deadline=None)
    def test_equal_rows_come_in_their_order(self, seed: int, k: int, tile: int) -> None:
        # Few distinct directions, so most neighbours tie; rows four times as long tie, too.
        draws = np.random.default_rng(seed)
        distinct = draws.standard_normal((4, 67)).astype(np.float32)
        kind = draws.integers(4, size=83)
        x = distinct[kind] * draws.choice([1, 4], size=(83, 1)).astype(np.float32)
        new = draws.standard_normal((3, 67)).astype(np.float32)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("probes.heads.knn._TILE", tile)
            index, cosine = KnnHead(k=k).fit(x, np.ones((83, 2))).neighbours(new)
        exact = distinct.astype(float) / np.linalg.norm(distinct.astype(float), axis=1)[:, None]
        expected = [
            np.lexsort((np.arange(83), -(exact @ query.astype(float))[kind]))[:k] for query in new
        ]
        np.testing.assert_array_equal(index, expected)
        reference = NearestNeighbors(n_neighbors=k, metric="cosine", algorithm="brute").fit(x)
        np.testing.assert_allclose(cosine, 1 - reference.kneighbors(new)[0], atol=1e-5)

    @pytest.mark.parametrize("order", ["drawn", "by-class", "by-likeness"])
    @pytest.mark.parametrize("k", [1, 20, 700])
    def test_tiles_change_nothing(
        self, k: int, order: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        draws = np.random.default_rng(k)
        centre = draws.standard_normal((5, 33))
        kind = draws.integers(5, size=701)
        x = (centre[kind] + draws.standard_normal((701, 33)) / 4).astype(np.float32)
        new = (centre + draws.standard_normal((5, 33)) / 4).astype(np.float32)
        if order == "by-class":
            x = x[np.argsort(kind, kind="stable")]
        if order == "by-likeness":
            x = x[np.argsort(x @ new[0])]
        whole = KnnHead(k=k).fit(x, np.ones((701, 2))).neighbours(new)
        monkeypatch.setattr("probes.heads.knn._TILE", 32)
        tiles = KnnHead(k=k).fit(x, np.ones((701, 2))).neighbours(new)
        for expected, got in zip(whole, tiles, strict=True):
            np.testing.assert_array_equal(got, expected)
        reference = NearestNeighbors(n_neighbors=k, metric="cosine", algorithm="brute")
        distance, expected = reference.fit(x.astype(float)).kneighbors(new.astype(float))
        np.testing.assert_array_equal(tiles[0], expected)
        np.testing.assert_allclose(tiles[1], 1 - distance, atol=1e-6)

    @pytest.mark.parametrize("dim", [67, 768, 1024])
    def test_very_many_equal_rows_are_thinned_out_on_the_way(
        self, dim: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        draws = np.random.default_rng(dim)
        distinct = draws.standard_normal((3, dim)).astype(np.float32)
        x = distinct[draws.integers(3, size=997)]
        expected = [np.flatnonzero((x == row).all(axis=1))[:4] for row in distinct]
        head = KnnHead(k=4).fit(x, np.ones((997, 2)))
        np.testing.assert_array_equal(head.neighbours(distinct)[0], expected)
        thinned = []
        k_best = _Shortlist._k_best
        monkeypatch.setattr(
            _Shortlist, "_k_best", lambda self: (thinned.append(len(self._query)), k_best(self))[1]
        )
        monkeypatch.setattr("probes.heads.knn._TILE", 50)
        monkeypatch.setattr("probes.heads.knn._BLOCK", 256)
        np.testing.assert_array_equal(head.neighbours(distinct)[0], expected)
        # Three queries, one a block: each shortlist was thinned out once in three tiles or so.
        assert len(thinned) > 3 * 4
        assert max(thinned) <= 64 + 53

    def test_blocks_change_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        x, y, new = random_task()
        whole = KnnHead(k=6).fit(x, y).neighbours(new)
        monkeypatch.setattr("probes.heads.knn._BLOCK", 2 * N_TRAIN)
        pieces = KnnHead(k=6).fit(x, y)
        assert len(pieces._blocks(N_NEW, 6)) == 4
        for expected, got in zip(whole, pieces.neighbours(new), strict=True):
            np.testing.assert_array_equal(got, expected)

    @pytest.mark.parametrize("temperature", [None, 0.07])
    def test_the_curve_is_the_scores_of_each_k(self, temperature: float | None) -> None:
        x, y, new = random_task()
        curve = KnnHead(temperature=temperature).fit(x, y).predict_curve(new, [9, 1, N_TRAIN, 9])
        assert list(curve) == [1, 9, N_TRAIN]
        for k, scores in curve.items():
            head = KnnHead(k=k, temperature=temperature).fit(x, y)
            np.testing.assert_allclose(scores, head.predict_proba(new), rtol=1e-6)
        if temperature is None:
            np.testing.assert_allclose(curve[N_TRAIN], [y.mean(axis=0)] * N_NEW, rtol=1e-6)

    def test_length_does_not_count(self) -> None:
        x, y, new = random_task()
        head = KnnHead(k=6).fit(x, y)
        before = head.neighbours(new)[0]
        np.testing.assert_array_equal(head.fit(x * 2, y).neighbours(new / 1024)[0], before)

    def test_more_neighbours_than_training_items(self) -> None:
        x, y, new = random_task()
        message = r"k=42 neighbours cannot vote among 41 training items; set k to 1 \.\.\. 41"
        with pytest.raises(ValueError, match=message):
            KnnHead(k=N_TRAIN + 1).fit(x, y)
        head = KnnHead().fit(x, y)
        with pytest.raises(ValueError, match=message):
            head.predict_curve(new, [3, N_TRAIN + 1])
        with pytest.raises(ValueError, match="k=0 neighbours"):
            head.predict_curve(new, [0])
        with pytest.raises(ValueError, match="needs at least one k, got none"):
            head.predict_curve(new, [])

    def test_a_row_without_direction_is_named(self) -> None:
        x, y, new = random_task()
        head = KnnHead(k=2).fit(x, y)
        x[11] = new[5] = 0
        with pytest.raises(ValueError, match="row 11 is all zeros; leave that item out"):
            head.fit(x, y)
        with pytest.raises(ValueError, match="row 5 is all zeros"):
            head.predict_proba(new)
