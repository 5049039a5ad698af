from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest
import torch
from head_contract import DIM, N_NEW, N_OUTPUTS, N_TRAIN, HeadContract, random_task
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from probes.heads import LinearHead, make_head, optimum

Array = npt.NDArray[Any]


class TestContract(HeadContract):
    name = "linear"
    settings = {"epochs": 6, "batch_size": 16, "lr": 0.1}  # noqa: RUF012


class TestContractOfTheOptimum(HeadContract):
    name = "linear"
    settings = {"solver": "lbfgs", "l2": 0.05, "balanced": True}  # noqa: RUF012


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


def correlated(n_items: int, dim: int, n_outputs: int, noise: float) -> tuple[Array, Array]:
    """Features along few directions, scaled from 0.01 to 100, and a class of each item."""
    draws = np.random.default_rng(2)
    factors = draws.standard_normal((n_items, dim // 4))
    x = factors @ draws.standard_normal((dim // 4, dim))
    x = (x + noise * draws.standard_normal(x.shape)) * np.geomspace(0.01, 100, dim)
    logits = factors @ draws.standard_normal((dim // 4, n_outputs))
    label = (logits + 2 * draws.gumbel(size=logits.shape)).argmax(axis=1)
    return x.astype(np.float32), label


def objective(head: LinearHead, x: Array, y: Array) -> tuple[float, float]:
    """The objective of lbfgs and the largest component of its gradient, in float64."""
    inputs = (x - head.mean_.astype(float)) / head.scale_
    weight = head.weight_.astype(float)
    logits = inputs @ weight.T + head.bias_
    if head.loss == "ce":
        logits -= logits.max(axis=1, keepdims=True)
        scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        losses = -np.log(scores[y == 1])
    else:
        scores = 1 / (1 + np.exp(-logits))
        losses = (np.logaddexp(0, logits) - y * logits).sum(axis=1)
    residuals = (scores - y) / len(x)
    gradient = residuals.T @ inputs + head.l2 * weight
    largest = max(abs(gradient).max(), abs(residuals.sum(axis=0)).max())
    return losses.mean() + head.l2 / 2 * (weight**2).sum(), largest


class TestOptimum:
    @pytest.mark.parametrize("loss", ["bce", "ce"])
    @pytest.mark.parametrize("l2", [1e-3, 0.1])
    @pytest.mark.parametrize(
        ("n_items", "noise"),
        [
            pytest.param(407, 1.0, id="well-conditioned"),
            pytest.param(407, 1e-3, id="correlated"),
            pytest.param(23, 1e-3, id="fewer-items-than-features"),
        ],
    )
    def test_it_is_that_of_scikit_learn(
        self, loss: Literal["bce", "ce"], l2: float, n_items: int, noise: float
    ) -> None:
        x, label = correlated(n_items, 40, 3, noise)
        y = np.eye(3)[label]
        head = LinearHead(solver="lbfgs", loss=loss, l2=l2).fit(x, y)
        assert head.converged_
        value, largest = objective(head, x, y)
        assert largest < 1.5e-6  # the weights are rounded to float32
        assert head.loss_curve_[-1] == pytest.approx(value, rel=1e-6)
        assert (np.diff(head.loss_curve_) < 1e-9).all()
        scaled = (x - x.mean(axis=0, dtype=float)) / x.std(axis=0, dtype=float)
        settings = {"C": 1 / (l2 * n_items), "tol": 1e-6, "max_iter": 10_000}
        if loss == "ce":
            expected = LogisticRegression(**settings).fit(scaled, label).predict_proba(scaled)
        else:
            columns = [LogisticRegression(**settings).fit(scaled, column) for column in y.T]
            expected = np.stack([one.predict_proba(scaled)[:, 1] for one in columns], axis=1)
        scores = head.predict_proba(x)
        np.testing.assert_allclose(scores, expected, atol=2e-4)
        if loss == "ce":
            losses = [log_loss(label, some) for some in (scores, expected)]
        else:
            losses = [
                np.mean([log_loss(y[:, c], some[:, c]) for c in range(3)])
                for some in (scores, expected)
            ]
        assert losses[0] == pytest.approx(losses[1], rel=1e-3)

    def test_pieces_of_items_add_up(self, monkeypatch: pytest.MonkeyPatch) -> None:
        x, label = correlated(407, 40, 3, 1.0)
        at_once = LinearHead(solver="lbfgs", l2=0.01).fit(x, np.eye(3)[label])
        monkeypatch.setattr(optimum, "_ROWS", 100)
        monkeypatch.setattr(optimum, "_BLOCK_ROWS", 30)
        in_pieces = LinearHead(solver="lbfgs", l2=0.01).fit(x, np.eye(3)[label])
        np.testing.assert_allclose(in_pieces.weight_, at_once.weight_, atol=2e-5)
        assert in_pieces.loss_curve_[-1] == pytest.approx(at_once.loss_curve_[-1], rel=1e-9)

    @pytest.mark.parametrize("loss", ["bce", "ce"])
    def test_balanced_classes_weigh_alike(self, loss: Literal["bce", "ce"]) -> None:
        x, label = correlated(301, 12, 3, 1.0)
        label[label == 2] = np.where(np.arange(sum(label == 2)) < 9, 2, 1)
        y = np.eye(3)[label]
        head = LinearHead(solver="lbfgs", loss=loss, l2=0.01, balanced=True).fit(x, y)
        scaled = (x - x.mean(axis=0, dtype=float)) / x.std(axis=0, dtype=float)
        settings: dict[str, Any] = {"C": 1 / (0.01 * 301), "tol": 1e-7, "max_iter": 1000}
        if loss == "ce":
            reference = LogisticRegression(class_weight="balanced", **settings).fit(scaled, label)
            expected = reference.predict_proba(scaled)
        else:
            weights = [{0: 1.0, 1: (301 - n) / n} for n in y.sum(axis=0)]
            columns = [
                LogisticRegression(class_weight=weight, **settings).fit(scaled, column)
                for weight, column in zip(weights, y.T, strict=True)
            ]
            expected = np.stack([one.predict_proba(scaled)[:, 1] for one in columns], axis=1)
        np.testing.assert_allclose(head.predict_proba(x), expected, atol=1e-4)

    def test_classes_that_are_separated_end_with_large_weights(self) -> None:
        x = np.array([[-2.0, 0.1], [-1.0, 0.3], [1.0, 0.2], [2.0, 0.4]], dtype=np.float32)
        y = np.array([[0], [0], [1], [1]])
        head = LinearHead(solver="lbfgs").fit(x, y)
        assert head.converged_
        assert head.loss_curve_[-1] < 1e-4
        np.testing.assert_allclose(head.predict_proba(x), y, atol=1e-4)

    def test_the_number_of_iterations_is_bounded(self) -> None:
        x, label = correlated(101, 12, 3, 1.0)
        head = LinearHead(solver="lbfgs", max_iter=3).fit(x, np.eye(3)[label])
        assert not head.converged_
        assert head.loss_curve_.shape == (3,)

    def test_outputs_of_one_value_and_features_without_variance(self) -> None:
        x, y = np.full((7, 2), 3.3, dtype=np.float32), np.zeros((7, 3))
        y[:, 1], y[:2, 2] = 1, 1
        head = LinearHead(solver="lbfgs", balanced=True).fit(x, y)
        assert head.converged_
        np.testing.assert_array_equal(head.weight_, np.zeros((3, 2)))
        np.testing.assert_allclose(head.predict_proba(x)[0], [0, 1, 0.5], atol=1e-4)

    def test_features_beyond_float32_products(self) -> None:
        x, label = correlated(31, 5, 2, 1.0)
        head = LinearHead(solver="lbfgs", standardize=False)
        with pytest.raises(
            ValueError, match=r"must have squares within float32.*set standardize=true"
        ):
            head.fit(x * np.float32(1e30), np.eye(2)[label])
        assert not hasattr(head, "weight_")


class TestBalance:
    @pytest.mark.parametrize("loss", ["bce", "ce"])
    def test_descent_weighs_as_torch_does(self, loss: Literal["bce", "ce"]) -> None:
        x, label = correlated(59, 8, 3, 1.0)
        label[:5] = [0, 1, 2, 2, 1]
        y = np.eye(3)[label]
        head = LinearHead(loss=loss, balanced=True, standardize=False, epochs=6, batch_size=17)
        head.fit(x, y)
        ones = torch.from_numpy(y.sum(axis=0))
        criterion: torch.nn.Module
        if loss == "ce":
            criterion = torch.nn.CrossEntropyLoss(weight=59 / (3 * ones))
        else:
            criterion = torch.nn.BCEWithLogitsLoss(pos_weight=(59 - ones) / ones)
        model = torch.nn.Linear(8, 3, dtype=torch.float64)
        torch.nn.init.zeros_(model.weight)
        torch.nn.init.zeros_(model.bias)
        adamw = torch.optim.AdamW(model.parameters(), lr=head.lr, weight_decay=0)
        order = np.random.default_rng(head.seed)
        inputs, targets = torch.from_numpy(x.astype(float)), torch.from_numpy(y)
        for _ in range(6):
            shuffled = order.permutation(59)
            for start in range(0, 59, 17):
                rows = shuffled[start : start + 17]
                adamw.zero_grad()
                # Of probabilities, also classes: torch then takes the mean over items.
                torch.autograd.backward(criterion(model(inputs[rows]), targets[rows]))
                adamw.step()
        np.testing.assert_allclose(head.weight_, model.weight.detach(), atol=1e-6)
        np.testing.assert_allclose(head.bias_, model.bias.detach(), atol=1e-6)

    def test_an_output_of_one_value_is_left_as_it_is(self) -> None:
        x, y, _ = random_task()
        y[:, 0], y[:, 1] = 0, 1
        plain = LinearHead(epochs=4).fit(x, y)
        balanced = LinearHead(epochs=4, balanced=True).fit(x, y)
        np.testing.assert_array_equal(balanced.weight_[:2], plain.weight_[:2])
        assert (balanced.weight_[2] != plain.weight_[2]).any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({"l2": 0.1}, "of solver=lbfgs, got l2=0.1; with adamw set", id="l2"),
        pytest.param({"l2": -1.0}, "l2 must be a number of at least 0, got -1", id="negative"),
        pytest.param(
            {"solver": "lbfgs", "weight_decay": 0.1}, "got weight_decay=0.1; with lbfgs", id="decay"
        ),
        pytest.param({"solver": "sgd"}, "must be adamw or lbfgs, got 'sgd'", id="solver"),
        pytest.param({"max_iter": 0}, "at least 1, got .* max_iter=0", id="iterations"),
    ],
)
def test_settings_of_the_other_solver_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_head("linear", **settings)


def test_a_learning_rate_beyond_float32_is_refused() -> None:
    with pytest.raises(ValueError, match="lr must fit float32 arithmetic, at most 1e37, got 1e"):
        make_head("linear", lr=1e39)
