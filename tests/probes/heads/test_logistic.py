import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from head_contract import DIM, N_NEW, N_OUTPUTS, N_VALIDATION, HeadContract, random_task
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler
from sklearn.utils.class_weight import compute_sample_weight

from probes.heads import LogisticHead
from probes.heads.logistic import _convergence_warnings

Array = npt.NDArray[Any]


class TestContract(HeadContract):
    name = "logistic"
    settings = {"points": 5, "max_iter": 50}  # noqa: RUF012


class TestContractOfOneC(HeadContract):
    name = "logistic"
    settings = {"c": 0.5, "balanced": True}  # noqa: RUF012


def learnable_task(n_items: int, *, exclusive: bool) -> tuple[Array, Array]:
    """Features of different units, and targets that follow the first three with noise."""
    draws = np.random.default_rng(n_items)
    x = draws.standard_normal((n_items, 17))
    if exclusive:
        y = np.eye(3)[(x[:, :3] + draws.gumbel(size=(n_items, 3))).argmax(axis=1)]
    else:
        y = (x[:, :3] + draws.logistic(size=(n_items, 3)) > [0, 1, -1]).astype(float)
    return (x * 2.0 ** np.arange(-8, 9) + np.arange(17)).astype(np.float32), y


def reference(
    x: Array, y: Array, new: Array, *, c: float, exclusive: bool, balanced: bool, tol: float
) -> Array:
    """Return scores by scikit-learn alone."""
    scaler = StandardScaler().fit(x.astype(float))
    x, new = scaler.transform(x.astype(float)), scaler.transform(new.astype(float))
    weight = "balanced" if balanced else None
    model = LogisticRegression(C=c, class_weight=weight, tol=tol, max_iter=5000)
    if exclusive:
        scores: Array = model.fit(x, y.argmax(axis=1)).predict_proba(new)
        return scores
    return np.stack([model.fit(x, column).predict_proba(new)[:, 1] for column in y.T], axis=1)


@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("balanced", [False, True])
class TestAgainstScikitLearn:
    def test_scores_of_one_c(self, exclusive: bool, balanced: bool) -> None:
        x, y = learnable_task(211, exclusive=exclusive)
        new, _ = learnable_task(29, exclusive=exclusive)
        head = LogisticHead(c=0.3, balanced=balanced).fit(x, y)
        assert bool(head.exclusive_) == exclusive
        assert head.weight_.shape == (3, 17)
        assert head.validation_loss_.shape == head.unconverged_.shape == (0,)
        for tol, atol in ((1e-4, 2e-6), (1e-8, 2e-3)):
            expected = reference(x, y, new, c=0.3, exclusive=exclusive, balanced=balanced, tol=tol)
            np.testing.assert_allclose(head.predict_proba(new), expected, atol=atol)

    def test_the_c_that_is_chosen(self, exclusive: bool, balanced: bool) -> None:
        x, y = learnable_task(211, exclusive=exclusive)
        held, of_held = learnable_task(103, exclusive=exclusive)
        head = LogisticHead(balanced=balanced, points=8).fit(x, y, validation=(held, of_held))
        losses = []
        grid = 10 ** np.linspace(-6, 5, 8)
        for c in grid:
            scores = reference(x, y, held, c=c, exclusive=exclusive, balanced=balanced, tol=1e-7)
            losses.append(self.loss(y, of_held, scores, exclusive=exclusive, balanced=balanced))
        assert 0 < np.argmin(losses) < 7
        assert head.c_ == grid[np.argmin(losses)]
        np.testing.assert_allclose(head.validation_loss_, losses, atol=2e-4)
        again = LogisticHead(c=float(head.c_), balanced=balanced).fit(x, y)
        np.testing.assert_allclose(head.predict_proba(held), again.predict_proba(held), atol=2e-3)

    @staticmethod
    def loss(y: Array, of_held: Array, scores: Array, *, exclusive: bool, balanced: bool) -> float:
        """Return scikit-learn's log-loss, mean over the outputs."""
        if exclusive:
            pairs = [(y.argmax(axis=1), of_held.argmax(axis=1), scores)]
        else:
            pairs = list(zip(y.T, of_held.T, scores.T, strict=True))
        losses = []
        for trained, truth, score in pairs:
            weights = None
            if balanced:
                of_training = compute_sample_weight("balanced", trained)
                of_class = dict(zip(trained, of_training, strict=True))
                weights = [of_class[label] for label in truth]
            losses.append(log_loss(truth, score, sample_weight=weights))
        return float(np.mean(losses))


class TestLogistic:
    def test_the_default_path_is_that_of_dinov3(self) -> None:
        x, y = learnable_task(97, exclusive=False)
        head = LogisticHead().fit(x, y, validation=learnable_task(41, exclusive=False))
        assert head.validation_loss_.shape == (45,)
        position = (np.log10(head.c_) + 6) / 11 * 44
        assert position == pytest.approx(np.argmin(head.validation_loss_))

    def test_two_exclusive_classes_are_one_regression(self) -> None:
        x, y = learnable_task(97, exclusive=False)
        two = np.stack([1 - y[:, 0], y[:, 0]], axis=1)
        softmax = LogisticHead(c=2.0).fit(x, two)
        assert softmax.exclusive_
        one = LogisticHead(c=2.0).fit(x, y[:, :1]).predict_proba(x)
        np.testing.assert_allclose(softmax.predict_proba(x), np.hstack([1 - one, one]), atol=1e-6)

    def test_auto_takes_a_softmax_only_for_exclusive_classes(self) -> None:
        x, y = learnable_task(97, exclusive=True)
        assert LogisticHead(c=1.0).fit(x, y).exclusive_
        assert not LogisticHead(c=1.0, loss="bce").fit(x, y).exclusive_
        assert not LogisticHead(c=1.0).fit(x, y[:, :1]).exclusive_
        with pytest.raises(ValueError, match=r"got 1 column\(s\) and rows with 0 to 1 ones"):
            LogisticHead(c=1.0, loss="ce").fit(x, y[:, :1])

    def test_of_equal_losses_the_strongest_regularisation(self) -> None:
        # Features that never vary: at any C nothing but the bias is learned.
        y = np.array([[1], [0], [0], [1], [0]])
        x = np.full((5, 2), 0.1, dtype=np.float32)
        head = LogisticHead(points=4).fit(x, y, validation=(x[:3], y[:3]))
        assert head.c_ == pytest.approx(1e-6)
        np.testing.assert_array_equal(head.weight_, np.zeros((1, 2)))
        np.testing.assert_allclose(head.bias_, [np.log(2 / 3)], atol=1e-3)

    @pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
    @pytest.mark.parametrize("constant", [0.0, 0.1, 1000.0])
    def test_a_feature_that_never_varies_has_no_say(self, dtype: str, constant: float) -> None:
        x, y, new = random_task(dtype=dtype)
        x[:, 2] = constant
        head = LogisticHead(c=1e3).fit(x, y)
        assert head.scale_[2] == 1
        np.testing.assert_array_equal(head.weight_[:, 2], np.zeros(N_OUTPUTS))
        before = head.predict_proba(new)
        new[:, 2] = -7
        np.testing.assert_allclose(head.predict_proba(new), before, rtol=1e-6)

    def test_raw_features(self) -> None:
        x, y, new = random_task()
        head = LogisticHead(c=1.0, standardize=False).fit(x, y)
        np.testing.assert_array_equal(head.mean_, np.zeros(DIM))
        np.testing.assert_array_equal(head.scale_, np.ones(DIM))
        models = [LogisticRegression().fit(x, column) for column in y.T]
        expected = np.stack([model.predict_proba(new)[:, 1] for model in models], axis=1)
        np.testing.assert_allclose(head.predict_proba(new), expected, atol=2e-4)

    def test_statistics_do_not_depend_on_blocks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        x, y = learnable_task(97, exclusive=False)
        whole = LogisticHead(c=1.0).fit(x, y)
        scores = whole.predict_proba(x)
        monkeypatch.setattr("probes.heads.logistic._ROWS", 10)
        pieces = LogisticHead(c=1.0).fit(x, y)
        np.testing.assert_allclose(pieces.mean_, x.astype(float).mean(axis=0), rtol=1e-6)
        np.testing.assert_allclose(pieces.scale_, x.astype(float).std(axis=0), rtol=1e-6)
        np.testing.assert_allclose(pieces.predict_proba(x), scores, rtol=1e-4)

    def test_a_c_that_did_not_converge_is_kept_not_warned_of(self) -> None:
        x, y = learnable_task(97, exclusive=False)
        head = LogisticHead(points=3, max_iter=2).fit(x, y, validation=(x, y))
        np.testing.assert_allclose(head.unconverged_, 10 ** np.array([-6, -0.5, 5]))
        assert LogisticHead(c=1e-6, max_iter=20).fit(x, y).unconverged_.shape == (0,)

    def test_other_warnings_come_through(self) -> None:
        def warn() -> None:
            with _convergence_warnings() as caught:
                warnings.warn("something else", UserWarning, stacklevel=1)
            assert not caught

        with pytest.warns(UserWarning, match="something else"):
            warn()

    @pytest.mark.parametrize("value", [0, 1])
    def test_an_output_of_one_value_is_named(self, value: int) -> None:
        x, y, _ = random_task()
        y[:, 1] = value
        with pytest.raises(ValueError, match=f"column 1 has only {value}; leave that output out"):
            LogisticHead(c=1.0).fit(x, y)

    @pytest.mark.parametrize(
        ("x", "y", "message"),
        [
            pytest.param((9, 4), (9, N_OUTPUTS), "5 features and 3 outputs; got 4 and 3", id="dim"),
            pytest.param((9, DIM), (9, 2), "got 5 and 2", id="outputs"),
            pytest.param((9, DIM), (8, N_OUTPUTS), "validation: .* same items", id="lengths"),
            pytest.param((0, DIM), (0, N_OUTPUTS), "validation: .* at least one", id="none"),
        ],
    )
    def test_validation_items_that_cannot_choose(
        self, x: tuple[int, int], y: tuple[int, int], message: str
    ) -> None:
        train_x, train_y, _ = random_task()
        with pytest.raises(ValueError, match=message):
            LogisticHead().fit(train_x, train_y, validation=(np.ones(x), np.ones(y)))

    def test_validation_items_of_no_class_or_two(self) -> None:
        x, y = learnable_task(97, exclusive=True)
        held, of_held = x[:N_VALIDATION], y[:N_VALIDATION].copy()
        of_held[6] = [1, 0, 1]
        with pytest.raises(ValueError, match=r"row 6 has 2 ones; leave .*, or set loss=bce"):
            LogisticHead().fit(x, y, validation=(held, of_held))
        LogisticHead(points=2, loss="bce").fit(x, y, validation=(held, of_held))

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"c": 0.0}, "c must be a number above 0, or none to choose it; got 0"),
            ({"c": np.inf}, "c must be .* got inf"),
            ({"points": 1}, "at least 2 .* got points=1"),
            ({"max_iter": 0}, "max_iter at least 1, .* max_iter=0"),
            ({"loss": "mse"}, "loss must be auto, bce or ce; got 'mse'"),
        ],
    )
    def test_settings_that_cannot_be_used(self, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            LogisticHead(**settings)

    def test_extreme_logits_keep_their_order(self) -> None:
        x, y, _ = random_task()
        head = LogisticHead(c=1.0, standardize=False).fit(x, y)
        direction = head.weight_[0] / (head.weight_[0] ** 2).sum()
        scores = head.predict_proba(np.outer([-1000, -60, -50, 1000], direction))[:, 0]
        assert scores[0] == 0
        assert 0 < scores[1] < scores[2] < 1e-20
        assert scores[3] == 1
        assert len(scores) < N_NEW
