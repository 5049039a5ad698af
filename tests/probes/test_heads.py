import json
import subprocess
import sys
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.neighbors import NearestNeighbors

from probes.heads import HEADS, Head, KnnHead, LinearHead, make_head, parse_settings

N_TRAIN, N_NEW, DIM, N_OUTPUTS = 41, 7, 5, 3
SMALL: dict[str, dict[str, Any]] = {
    "knn": {"k": 4, "temperature": 0.07},
    "linear": {"epochs": 6, "batch_size": 16, "lr": 0.1},
}
Array = npt.NDArray[Any]


def random_task(seed: int = 0, dtype: str = "float32") -> tuple[Array, Array, Array]:
    draws = np.random.default_rng(seed)
    x = draws.standard_normal((N_TRAIN, DIM)).astype(dtype)
    y = (draws.random((N_TRAIN, N_OUTPUTS)) < 0.4).astype(np.uint8)
    return x, y, draws.standard_normal((N_NEW, DIM)).astype(dtype)


@pytest.mark.parametrize("name", HEADS)
class TestEveryHead:
    """What the layer above relies on, whichever head it is."""

    def head(self, name: str) -> Head:
        return make_head(name, **SMALL[name])

    @pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
    def test_scores_are_float32_probabilities(self, name: str, dtype: str) -> None:
        x, y, new = random_task(dtype=dtype)
        scores = self.head(name).fit(x, y).predict_proba(new)
        assert scores.shape == (N_NEW, N_OUTPUTS)
        assert scores.dtype == np.float32
        assert ((scores >= 0) & (scores <= 1)).all()

    def test_fit_returns_the_head_and_leaves_its_input_alone(self, name: str) -> None:
        x, y, new = random_task()
        before = x.copy(), y.copy(), new.copy()
        head = self.head(name)
        assert head.fit(x, y) is head
        head.predict_proba(new)
        for array, copy in zip((x, y, new), before, strict=True):
            np.testing.assert_array_equal(array, copy)

    def test_same_input_same_bits_and_no_global_random_state(self, name: str) -> None:
        x, y, new = random_task()
        scores = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            np.random.seed(seed)
            torch_state, numpy_draw = torch.get_rng_state(), np.random.RandomState()
            numpy_draw.set_state(np.random.get_state())
            scores.append(self.head(name).fit(x, y).predict_proba(new))
            assert torch.equal(torch_state, torch.get_rng_state())
            assert np.random.random() == numpy_draw.random()
        np.testing.assert_array_equal(scores[0], scores[1])

    def test_fitting_again_forgets(self, name: str) -> None:
        x, y, new = random_task()
        head = self.head(name).fit(*random_task(seed=8)[:2])
        np.testing.assert_array_equal(
            head.fit(x, y).predict_proba(new), self.head(name).fit(x, y).predict_proba(new)
        )

    def test_each_item_is_scored_by_itself(self, name: str) -> None:
        x, y, new = random_task()
        head = self.head(name).fit(x, y)
        together = head.predict_proba(new)
        alone = [head.predict_proba(new[row : row + 1])[0] for row in range(N_NEW)]
        np.testing.assert_allclose(together, alone, rtol=1e-5)
        assert head.predict_proba(new[:0]).shape == (0, N_OUTPUTS)

    def test_a_head_comes_back_from_json_and_safetensors(self, name: str) -> None:
        x, y, new = random_task()
        head = self.head(name).fit(x, y)
        params = json.loads(json.dumps(head.get_params()))
        restored = HEADS[name].from_arrays(params, load(save(head.to_arrays())))
        assert restored.get_params() == head.get_params()
        np.testing.assert_array_equal(restored.predict_proba(new), head.predict_proba(new))

    def test_params_are_the_settings_of_the_constructor(self, name: str) -> None:
        defaults = make_head(name).get_params()
        assert make_head(name, **defaults).get_params() == defaults
        texts = [f"{key}={value}" for key, value in defaults.items()]
        assert parse_settings(name, [text.replace("None", "none") for text in texts]) == defaults
        assert self.head(name).get_params() == {**defaults, **SMALL[name]}

    def test_a_missing_array_is_named(self, name: str) -> None:
        x, y, _ = random_task()
        head = self.head(name).fit(x, y)
        arrays = head.to_arrays()
        lost = sorted(arrays)[0]
        del arrays[lost]
        with pytest.raises(ValueError, match=rf"missing: {lost}\. Fit the head again\."):
            HEADS[name].from_arrays(head.get_params(), arrays)

    def test_unfitted(self, name: str) -> None:
        with pytest.raises(ValueError, match="not fitted; call fit or from_arrays first"):
            self.head(name).predict_proba(random_task()[2])
        with pytest.raises(ValueError, match="not fitted; there is nothing to save"):
            self.head(name).to_arrays()

    @pytest.mark.parametrize(
        ("x", "y", "message"),
        [
            pytest.param(np.ones(9), np.ones((9, 2)), r"must be \(n_items, dim\)", id="flat-x"),
            pytest.param(np.ones((9, 4), int), np.ones((9, 2)), r"\(9, 4\) int64", id="integers"),
            pytest.param(np.ones((9, 4)), np.ones(9), r"got \(9, 4\) and \(9,\)", id="flat-y"),
            pytest.param(np.ones((9, 4)), np.ones((8, 2)), "of the same items", id="lengths"),
            pytest.param(np.ones((0, 4)), np.ones((0, 2)), "at least one", id="no-items"),
            pytest.param(np.ones((9, 4)), np.ones((9, 0)), "at least one", id="no-outputs"),
            pytest.param(np.ones((9, 4)), np.full((9, 2), 2), "0 or 1, got 2", id="class-number"),
            pytest.param(np.ones((9, 4)), np.full((9, 2), np.nan), "0 or 1, got nan", id="nan-y"),
        ],
    )
    def test_training_data_that_cannot_be_used(
        self, name: str, x: Array, y: Array, message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            self.head(name).fit(x, y)

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_the_row_that_is_not_finite_is_named(self, name: str, value: float) -> None:
        x, y, new = random_task()
        head = self.head(name).fit(x, y)
        x[2, 1] = new[4, 3] = value
        with pytest.raises(ValueError, match=r"row 2 is not( finite)?; leave that item out"):
            head.fit(x, y)
        with pytest.raises(ValueError, match=r"row 4 is not( finite)?; leave that item out"):
            head.predict_proba(new)

    def test_features_of_another_encoder(self, name: str) -> None:
        x, y, new = random_task()
        head = self.head(name).fit(x, y)
        with pytest.raises(ValueError, match="fitted on features of width 5, got 4; give it"):
            head.predict_proba(new[:, :4])
        with pytest.raises(ValueError, match=r"must be \(n_items, dim\) floats, got \(5,\)"):
            head.predict_proba(new[0])


def test_torch_is_not_imported_before_it_trains() -> None:
    script = (
        "import sys, numpy as np; from probes.heads import make_head;"
        "head = make_head('knn', k=1).fit(np.ones((2, 3)), np.ones((2, 1)));"
        "head.predict_proba(np.ones((5, 3)));"
        "sys.exit('torch' in sys.modules or 'sklearn' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


class TestSettings:
    def test_text_is_read_as_the_declared_type(self) -> None:
        texts = ["lr=0.01", "standardize=False", "epochs = 3", "loss=ce", "weight_decay=1"]
        given = parse_settings("linear", texts)
        assert given == {
            "lr": 0.01,
            "standardize": False,
            "epochs": 3,
            "loss": "ce",
            "weight_decay": 1.0,
        }
        assert [type(value) for value in given.values()] == [float, bool, int, str, float]
        assert parse_settings("knn", ["temperature=none"]) == {"temperature": None}
        assert parse_settings("knn", ["temperature=7e-2"]) == {"temperature": 0.07}
        assert parse_settings("knn", []) == {}

    @pytest.mark.parametrize(
        ("name", "texts", "message"),
        [
            pytest.param("liner", [], "no head 'liner'; known heads: knn, linear", id="head"),
            pytest.param(
                "knn", ["lr=1"], "knn has no setting 'lr'; it has: k, temperature", id="setting"
            ),
            pytest.param("knn", ["k"], "written key=value, got 'k'", id="no-value"),
            pytest.param("knn", ["k="], "written key=value, got 'k='", id="empty-value"),
            pytest.param("knn", ["k=2", "k=3"], "k is given twice: 2 and 3", id="twice"),
            pytest.param("knn", ["k=2.5"], "must be a whole number, got '2.5'", id="int"),
            pytest.param("linear", ["lr=fast"], "must be a number, got 'fast'", id="float"),
            pytest.param(
                "linear", ["standardize=maybe"], "must be true or false, got 'maybe'", id="bool"
            ),
            pytest.param("linear", ["loss=mse"], "must be bce or ce, got 'mse'", id="choice"),
            pytest.param(
                "knn", ["temperature=hot"], "a number or none, got 'hot'", id="optional-float"
            ),
            pytest.param("linear", ["lr=0"], "lr must be a number above 0, got 0.0", id="lr"),
            pytest.param("linear", ["lr=nan"], "lr must be a number above 0", id="lr-nan"),
            pytest.param("linear", ["weight_decay=-1"], "of at least 0, got -1.0", id="decay"),
            pytest.param("linear", ["epochs=0"], "at least 1, got .* epochs=0", id="epochs"),
            pytest.param("linear", ["batch_size=0"], "got batch_size=0", id="batch"),
            pytest.param("linear", ["seed=-1"], "seed must be at least 0, got -1", id="seed"),
            pytest.param("knn", ["k=0"], "at least 1 neighbour, got 0", id="k"),
            pytest.param("knn", ["temperature=0"], "a number above 0, or none", id="temperature"),
        ],
    )
    def test_settings_that_cannot_be_used(self, name: str, texts: list[str], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            parse_settings(name, texts)

    def test_values_that_are_not_text_keep_their_type(self) -> None:
        assert make_head("linear", lr=1).get_params()["lr"] == 1.0
        with pytest.raises(ValueError, match="k of head knn must be a whole number, got True"):
            make_head("knn", k=True)
        with pytest.raises(ValueError, match=r"k of head knn must be a whole number, got 2\.5"):
            make_head("knn", k=2.5)

    def test_a_constructor_checks_what_the_table_does_not(self) -> None:
        with pytest.raises(ValueError, match="loss must be bce or ce, got 'mse'"):
            LinearHead(loss="mse")  # type: ignore[arg-type]


class TestLinear:
    def test_separable_classes_are_separated(self) -> None:
        draws = np.random.default_rng(0)
        x = draws.standard_normal((211, DIM)).astype(np.float32)
        y = np.stack([x[:, 0] > 0, x[:, 1] < x[:, 3]], axis=1)
        margin = np.minimum(abs(x[:, 0]), abs(x[:, 1] - x[:, 3])) > 0.3
        head = LinearHead(lr=0.05, epochs=200).fit(x[margin], y[margin])
        np.testing.assert_array_equal(head.predict_proba(x[margin]) >= 0.5, y[margin])
        assert head.weight_.shape == (2, DIM)
        assert abs(head.weight_[0]).argmax() == 0
        assert head.loss_curve_.shape == (200,)
        assert head.loss_curve_[-1] < 0.1 < head.loss_curve_[0]

    @pytest.mark.parametrize("loss", ["bce", "ce"])
    def test_its_optimum_is_the_logistic_regression(self, loss: str) -> None:
        draws = np.random.default_rng(1)
        x = draws.standard_normal((157, 4)) * [1, 5, 0.2, 1] + [0, 3, 0, -1]
        label = (x[:, 0] + draws.gumbel(size=(3, 157)) * 1.5).argmax(axis=0)
        y = np.eye(3)[label]
        head = make_head("linear", loss=loss, lr=0.05, epochs=400, batch_size=200)
        assert isinstance(head, LinearHead)
        head.fit(x.astype(np.float32), y)
        if loss == "ce":
            reference = LogisticRegression(C=np.inf, tol=1e-8, max_iter=500).fit(x, label)
            expected = log_loss(label, reference.predict_proba(x))
        else:
            columns = [
                LogisticRegression(C=np.inf, tol=1e-8, max_iter=500).fit(x, column).predict_proba(x)
                for column in y.T
            ]
            expected = np.mean([log_loss(c, p) for c, p in zip(y.T, columns, strict=True)])
        assert head.loss_curve_[-1] == pytest.approx(expected, rel=1e-4)

    def test_first_epoch_by_hand(self) -> None:
        # From zero weights every score is 1/2, whatever the features: the loss is log 2. The
        # first step of Adam has length lr, against the sign of the gradient.
        x, y = np.array([[-1.0], [3.0]], dtype=np.float32), np.array([[0], [1]])
        head = LinearHead(epochs=1, lr=0.25).fit(x, y)
        np.testing.assert_allclose(head.loss_curve_, [np.log(2)], rtol=1e-6)
        np.testing.assert_array_equal([head.mean_, head.scale_], [[1], [2]])
        assert head.mean_.dtype == head.scale_.dtype == head.weight_.dtype == np.float32
        np.testing.assert_allclose(head.weight_, [[0.25]], rtol=1e-6)
        np.testing.assert_allclose(head.bias_, [0], atol=1e-7)
        np.testing.assert_allclose(
            head.predict_proba(x)[:, 0], 1 / (1 + np.exp([0.25, -0.25])), rtol=1e-6
        )

    def test_decay_by_hand(self) -> None:
        # All features zero: no gradient for the weights, and the bias alone moves.
        x, y = np.zeros((2, 3), dtype=np.float32), np.array([[1], [1]])
        head = LinearHead(epochs=2, lr=0.25, weight_decay=0.5).fit(x, y)
        np.testing.assert_allclose(head.bias_, [0.25 * (1 - 0.25 * 0.5) + 0.25], rtol=0.01)
        np.testing.assert_array_equal(head.weight_, np.zeros((1, 3)))

    @pytest.mark.parametrize("dtype", ["float16", "float32"])
    @pytest.mark.parametrize("constant", [0.0, 0.1, 1000.0])
    def test_a_feature_that_never_varies_has_no_say(self, dtype: str, constant: float) -> None:
        x, y, new = random_task(dtype=dtype)
        x[:, 2] = constant
        head = LinearHead(epochs=3).fit(x, y)
        assert head.scale_[2] == 1
        np.testing.assert_array_equal(head.weight_[:, 2], np.zeros(N_OUTPUTS))
        before = head.predict_proba(new)
        new[:, 2] = -7
        np.testing.assert_allclose(head.predict_proba(new), before, rtol=1e-6)

    def test_standardised_features_do_not_care_for_units(self) -> None:
        x, y, new = random_task()
        unit, offset = np.array([[1, 8, 0.5, 64, 2], [0, 16, -1, 64, 2]], dtype=np.float32)
        before = LinearHead(epochs=5).fit(x, y).predict_proba(new)
        after = LinearHead(epochs=5).fit(x * unit + offset, y).predict_proba(new * unit + offset)
        np.testing.assert_allclose(after, before, rtol=1e-4)
        raw = LinearHead(epochs=5, standardize=False).fit(x, y)
        np.testing.assert_array_equal(raw.mean_, np.zeros(DIM))
        np.testing.assert_array_equal(raw.scale_, np.ones(DIM))

    def test_the_seed_decides_the_order_of_the_items(self) -> None:
        x, y, _ = random_task()
        fits = [LinearHead(epochs=2, batch_size=8, seed=seed).fit(x, y) for seed in (3, 3, 4)]
        np.testing.assert_array_equal(fits[0].weight_, fits[1].weight_)
        assert (fits[0].weight_ != fits[2].weight_).any()

    def test_threads_and_gradient_mode_are_the_callers(self) -> None:
        x, y, _ = random_task()
        before = torch.get_num_threads()
        weights = []
        try:
            for threads in (1, 2):
                torch.set_num_threads(threads)
                with torch.no_grad():
                    weights.append(LinearHead(epochs=2).fit(x, y).weight_)
                assert torch.get_num_threads() == threads
        finally:
            torch.set_num_threads(before)
        np.testing.assert_array_equal(weights[0], weights[1])

    def test_softmax_scores_sum_to_one(self) -> None:
        x, _, new = random_task()
        y = np.eye(4)[np.arange(N_TRAIN) % 4]
        scores = LinearHead(loss="ce", epochs=3).fit(x, y).predict_proba(1000 * new)
        np.testing.assert_allclose(scores.sum(axis=1), np.ones(N_NEW), rtol=1e-6)

    @pytest.mark.parametrize(
        ("y", "message"),
        [
            pytest.param([[1], [1]], r"got 1 column\(s\)", id="one-column"),
            pytest.param([[1, 1], [1, 0]], "rows with 1 to 2 ones. Use loss=bce", id="multilabel"),
            pytest.param([[0, 0], [1, 0]], "rows with 0 to 1 ones", id="no-class"),
        ],
    )
    def test_softmax_needs_exclusive_classes(self, y: list[list[int]], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            LinearHead(loss="ce").fit(np.ones((2, 3), dtype=np.float32), np.array(y))

    def test_extreme_logits_keep_their_order(self) -> None:
        x, y = np.array([[-1.0], [1.0]], dtype=np.float32), np.array([[0], [1]])
        head = LinearHead(epochs=1, lr=1.0, standardize=False).fit(x, y)
        scores = head.predict_proba(np.array([[-1000], [-60], [-50], [1000]], dtype=np.float32))
        assert scores[0] == 0
        assert 0 < scores[1, 0] < scores[2, 0] < 1e-20
        assert scores[3] == 1

    def test_a_loss_that_overflows_is_an_error_and_nothing_is_learned(self) -> None:
        x, y, _ = random_task()
        head = LinearHead(lr=1e36, epochs=3, standardize=False)
        with pytest.raises(ValueError, match=r"finite, it became (nan|inf) in epoch 1; lower lr"):
            head.fit(1000 * x, y)
        assert not hasattr(head, "weight_")


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

    @given(seed=st.integers(0, 10_000), k=st.integers(1, 12))
    @settings(max_examples=30, deadline=None)
    def test_equal_rows_come_in_their_order(self, seed: int, k: int) -> None:
        # Few distinct directions, so most neighbours tie; rows four times as long tie, too.
        draws = np.random.default_rng(seed)
        distinct = draws.standard_normal((4, 67)).astype(np.float32)
        kind = draws.integers(4, size=83)
        x = distinct[kind] * draws.choice([1, 4], size=(83, 1)).astype(np.float32)
        new = draws.standard_normal((3, 67)).astype(np.float32)
        index, cosine = KnnHead(k=k).fit(x, np.ones((83, 2))).neighbours(new)
        exact = distinct.astype(float) / np.linalg.norm(distinct.astype(float), axis=1)[:, None]
        expected = [
            np.lexsort((np.arange(83), -(exact @ query.astype(float))[kind]))[:k] for query in new
        ]
        np.testing.assert_array_equal(index, expected)
        reference = NearestNeighbors(n_neighbors=k, metric="cosine", algorithm="brute").fit(x)
        np.testing.assert_allclose(cosine, 1 - reference.kneighbors(new)[0], atol=1e-5)

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


def test_a_learning_rate_beyond_float32_is_refused() -> None:
    with pytest.raises(ValueError, match="lr must fit float32 arithmetic, at most 1e37, got 1e"):
        make_head("linear", lr=1e39)
