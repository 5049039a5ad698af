"""Many linear heads at once: `fit_linear` against one head at a time, and against autograd."""

from itertools import product
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest
import torch

from probes.heads.linear import LinearHead, fit_linear
from probes.heads.training_set import workers

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]

N_ITEMS, DIM, N_OUTPUTS, N_FOLDS = 211, 11, 3, 4
GRID = ((0.01, 0.0), (0.03, 0.5))


def drawn(loss: str = "bce") -> tuple[Array, Array]:
    """Features of all sorts: off centre, constant, and constant in all folds but the first."""
    draws = np.random.default_rng(1)
    x = draws.standard_normal((N_ITEMS, DIM)) * np.geomspace(0.1, 10, DIM)
    x += 3 * draws.standard_normal(DIM)
    x[:, 4] = 7.1
    x[:, 5] = np.arange(N_ITEMS) % 20 == 0
    y = draws.random((N_ITEMS, N_OUTPUTS)) < 0.4
    if loss == "ce":
        # Of unequal classes: where they were equal in the first batch, the biases' first gradient
        # would be a rounding error of float32, which Adam scales up to a step.
        logits = np.outer([0, 1.5, 3], np.ones(N_ITEMS)) + draws.gumbel(size=(N_OUTPUTS, N_ITEMS))
        logits[0] += 10 * x[:, 0]
        y = np.eye(N_OUTPUTS)[logits.argmax(axis=0)]
    return x.astype(np.float32), y.astype(np.uint8)


def folds() -> list[Mask]:
    """Training items of each fold, of different sizes; items of a fifth part train nothing."""
    part = np.arange(N_ITEMS) % (N_FOLDS + 1)
    masks = [(part != fold) & (part < N_FOLDS) for fold in range(N_FOLDS)]
    masks[1][: N_ITEMS // 5] = False
    return masks


def by_autograd(
    head: LinearHead, x: Array, y: Array, mask: Mask, union: Array, batch: int
) -> tuple[Array, Array]:
    """Train one head in float64 by torch, over batches of the items that train any head."""
    own = x[mask].astype(np.float64)
    scale = own.std(axis=0)
    inputs = torch.from_numpy((x - own.mean(axis=0)) / np.where(scale < 1e-6, 1, scale))
    inputs[:, scale < 1e-6] = 0
    targets, trains = torch.from_numpy(y.astype(np.float64)), torch.from_numpy(mask)
    weight = torch.zeros(y.shape[1], x.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(y.shape[1], dtype=torch.float64, requires_grad=True)
    adamw = torch.optim.AdamW([weight, bias], lr=head.lr, weight_decay=head.weight_decay)
    order = np.random.default_rng(head.seed)
    for _ in range(head.epochs):
        shuffled = torch.from_numpy(union[order.permutation(len(union))])
        for start in range(0, len(union), batch):
            rows = shuffled[start : start + batch]
            rows = rows[trains[rows]]
            logits = torch.nn.functional.linear(inputs[rows], weight, bias)
            if head.loss == "ce":
                loss = torch.nn.functional.cross_entropy(logits, targets[rows].argmax(dim=1))
            else:
                loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets[rows])
            adamw.zero_grad()
            torch.autograd.backward(loss)
            adamw.step()
    return weight.detach().numpy(), bias.detach().numpy()


class TestFolds:
    @pytest.mark.parametrize("loss", ["bce", "ce"])
    def test_each_is_what_autograd_learns_from_its_own_items(
        self, loss: Literal["bce", "ce"]
    ) -> None:
        (x, y), masks = drawn(loss), folds()
        heads, train = [], []
        for seed, mask, (lr, decay) in product((0, 1), masks, GRID):
            settings: dict[str, Any] = {"lr": lr, "weight_decay": decay, "seed": seed}
            heads.append(LinearHead(loss=loss, epochs=5, batch_size=31, **settings))
            train.append(mask)
        fit_linear(heads, x, y, train)
        union = np.flatnonzero(np.any(masks, axis=0))
        batch = round(31 * len(union) / np.mean([mask.sum() for mask in masks]))
        for head, mask in zip(heads, train, strict=True):
            with workers(1):
                weight, bias = by_autograd(head, x, y, mask, union, batch)
            np.testing.assert_allclose(head.weight_, weight, atol=2e-6)
            np.testing.assert_allclose(head.bias_, bias, atol=2e-6)

    def test_one_batch_is_the_fit_of_the_items_alone(self) -> None:
        (x, y), masks = drawn(), folds()
        heads = [LinearHead(epochs=9, batch_size=500) for _ in masks]
        fit_linear(heads, x, y, masks)
        for head, mask in zip(heads, masks, strict=True):
            alone = LinearHead(epochs=9, batch_size=500).fit(x[mask], y[mask])
            np.testing.assert_array_equal(head.mean_, alone.mean_)
            np.testing.assert_array_equal(head.scale_, alone.scale_)
            np.testing.assert_allclose(head.weight_, alone.weight_, atol=1e-6)
            np.testing.assert_allclose(head.bias_, alone.bias_, atol=1e-6)
            np.testing.assert_allclose(head.loss_curve_, alone.loss_curve_, rtol=1e-6)

    def test_what_never_varies_among_the_items_of_a_fold_has_no_say_there(self) -> None:
        x, y = drawn()
        rare = x[:, 5] > 0
        heads = [LinearHead(epochs=4, batch_size=16) for _ in range(2)]
        fit_linear(heads, x, y, [~rare, np.arange(N_ITEMS) > 5])
        np.testing.assert_array_equal(heads[0].weight_[:, 5], np.zeros(N_OUTPUTS))
        assert heads[0].scale_[5] == 1
        assert (heads[1].weight_[:, 5] != 0).all()
        np.testing.assert_array_equal([head.weight_[:, 4] for head in heads], np.zeros((2, 3)))

    @pytest.mark.parametrize("solver", ["adamw", "lbfgs"])
    def test_items_of_no_fold_influence_nothing(self, solver: Literal["adamw", "lbfgs"]) -> None:
        (x, y), masks = drawn(), folds()
        nobody = ~np.any(masks, axis=0)
        other_x, other_y = x.copy(), y.copy()
        other_x[nobody] *= -1000
        other_y[nobody] = 1 - y[nobody]
        learned = []
        for features, targets in ((x, y), (other_x, other_y)):
            heads = [LinearHead(solver=solver, balanced=True, epochs=3) for _ in masks]
            fit_linear(heads, features, targets, masks)
            learned.append([head.to_arrays() for head in heads])
        for one, other in zip(*learned, strict=True):
            for name, array in one.items():
                np.testing.assert_array_equal(array, other[name])

    def test_balance_is_that_of_the_own_items(self) -> None:
        (x, y), masks = drawn(), folds()
        y[masks[0]] = np.arange(masks[0].sum())[:, np.newaxis] % 2  # nothing to balance there
        heads = [LinearHead(balanced=True, epochs=3, batch_size=500) for _ in masks]
        fit_linear(heads, x, y, masks)
        for head, mask in zip(heads, masks, strict=True):
            alone = LinearHead(balanced=True, epochs=3, batch_size=500).fit(x[mask], y[mask])
            np.testing.assert_allclose(head.weight_, alone.weight_, atol=1e-6)

    def test_raw_features_have_no_statistics(self) -> None:
        (x, y), masks = drawn(), folds()
        heads = [LinearHead(standardize=False, epochs=3, batch_size=500) for _ in masks]
        fit_linear(heads, x, y, masks)
        alone = LinearHead(standardize=False, epochs=3, batch_size=500).fit(
            x[masks[2]], y[masks[2]]
        )
        np.testing.assert_array_equal(heads[2].mean_, np.zeros(DIM))
        np.testing.assert_allclose(heads[2].weight_, alone.weight_, atol=1e-6)


class TestNeighbours:
    """A head does not care who is trained beside it."""

    @pytest.mark.parametrize("n_points", [2, 12])
    def test_grid_and_seeds(self, n_points: int) -> None:
        # 12 points of 3 outputs on 4 folds are wide enough to be cut.
        (x, y), masks = drawn(), folds()
        points = np.geomspace(1e-3, 1e-1, n_points).tolist()
        keys = list(product((5, 6), range(N_FOLDS), points))

        def make(seed: int, lr: float) -> LinearHead:
            return LinearHead(lr=lr, weight_decay=lr, seed=seed, epochs=4, batch_size=24)

        together = [make(seed, lr) for seed, _, lr in keys]
        fit_linear(together, x, y, [masks[fold] for _, fold, _ in keys])
        one_point = [make(6, points[1]) for _ in masks]
        fit_linear(one_point, x, y, masks)
        for fold, alone in enumerate(one_point):
            head = together[keys.index((6, fold, points[1]))]
            np.testing.assert_allclose(head.weight_, alone.weight_, atol=1e-5)
            np.testing.assert_allclose(head.bias_, alone.bias_, atol=1e-5)
            np.testing.assert_allclose(head.loss_curve_, alone.loss_curve_, rtol=1e-5)

    def test_all_items_teach_what_a_fit_teaches(self) -> None:
        x, y = drawn()
        heads = [
            LinearHead(lr=lr, seed=s, epochs=4, batch_size=24) for lr in (0.1, 0.01) for s in (0, 3)
        ]
        fit_linear(heads, x, y, [np.ones(N_ITEMS, dtype=bool)] * 4)
        for head in heads:
            alone = LinearHead(**head.get_params()).fit(x, y)  # type: ignore[arg-type]
            np.testing.assert_allclose(head.weight_, alone.weight_, atol=1e-6)
            np.testing.assert_array_equal(head.mean_, alone.mean_)
        assert (heads[0].weight_ != heads[1].weight_).any()

    def test_heads_of_other_kinds_are_trained_apart(self) -> None:
        (x, y), masks = drawn("ce"), folds()
        kinds: list[dict[str, Any]] = [
            {"loss": "ce", "batch_size": 500},
            {"loss": "bce", "batch_size": 500, "standardize": False},
            {"loss": "bce", "batch_size": 500, "balanced": True},
            {"loss": "ce", "solver": "lbfgs", "l2": 0.01},
            {"loss": "ce", "solver": "lbfgs", "l2": 0.1},
        ]
        heads = [LinearHead(epochs=3, **kind) for kind in kinds]
        fit_linear(heads, x, y, [masks[0]] * len(kinds))
        for head in heads:
            alone = LinearHead(**head.get_params()).fit(x[masks[0]], y[masks[0]])  # type: ignore[arg-type]
            np.testing.assert_allclose(head.weight_, alone.weight_, atol=1e-6)


class TestArrays:
    @pytest.mark.parametrize("n_heads", [1, 50])
    def test_the_number_of_threads_changes_no_bit(self, n_heads: int) -> None:
        (x, y), mask = drawn(), folds()[0]
        before = torch.get_num_threads()
        weights = []
        try:
            for threads in (1, 2, 5):
                torch.set_num_threads(threads)
                heads = [LinearHead(lr=0.001 * (1 + n), epochs=3) for n in range(n_heads)]
                fit_linear(heads, x, y, [mask] * n_heads)
                assert torch.get_num_threads() == threads
                weights.append([head.weight_ for head in heads])
        finally:
            torch.set_num_threads(before)
        np.testing.assert_array_equal(weights[0], weights[1])
        np.testing.assert_array_equal(weights[0], weights[2])

    def test_halves_are_their_float32(self) -> None:
        x, y = drawn()
        halves = x.astype(np.float16)
        of_halves = LinearHead(epochs=3).fit(halves, y)
        for dtype in (np.float32, np.float64, ">f4"):
            head = LinearHead(epochs=3).fit(halves.astype(dtype), y)
            np.testing.assert_allclose(head.weight_, of_halves.weight_, atol=1e-7)
            np.testing.assert_array_equal(head.mean_, of_halves.mean_)

    def test_arrays_that_cannot_be_written_or_lie_otherwise(self) -> None:
        x, y = drawn()
        expected = LinearHead(epochs=3).fit(x, y).weight_
        x.flags.writeable = y.flags.writeable = False
        np.testing.assert_array_equal(LinearHead(epochs=3).fit(x, y).weight_, expected)
        strided = np.asfortranarray(np.repeat(x, 2, axis=0))[::2]
        np.testing.assert_array_equal(LinearHead(epochs=3).fit(strided, y).weight_, expected)

    @pytest.mark.parametrize(
        ("train", "message"),
        [
            pytest.param(np.ones((2, 9), bool), "its own mask of items, got 1 and 2", id="heads"),
            pytest.param(
                np.ones((1, 8), bool), r"\(9,\) bool, that of head 0 is \(8,\)", id="items"
            ),
            pytest.param(np.ones((1, 9)), r"is \(9,\) float64", id="numbers"),
            pytest.param(np.zeros((1, 9), bool), "head 0 has no items to train on", id="nobody"),
        ],
    )
    def test_masks_that_are_none(self, train: Array, message: str) -> None:
        x, y = np.eye(9, 4), np.ones((9, 2))
        with pytest.raises(ValueError, match=message):
            fit_linear([LinearHead()], x, y, train)

    def test_classes_must_be_exclusive_where_they_train(self) -> None:
        x, y = drawn("ce")
        y[7] = 1
        mask = np.arange(N_ITEMS) != 7
        fit_linear([LinearHead(loss="ce", epochs=1)], x, y, [mask])
        with pytest.raises(ValueError, match=r"rows with 1 to 3 ones\. Use loss=bce"):
            fit_linear([LinearHead(loss="ce", epochs=1)], x, y, [~mask | mask])

    def test_a_loss_that_overflows_names_its_learning_rate_and_no_head_is_fitted(self) -> None:
        x, y = drawn()
        heads = [LinearHead(lr=lr, epochs=3, standardize=False) for lr in (0.01, 1e36)]
        with pytest.raises(ValueError, match=r"in epoch 1; lower lr \(now 1e\+36\)"):
            fit_linear(heads, 1000 * x, y, [np.ones(N_ITEMS, bool)] * 2)
        assert not any(hasattr(head, "weight_") for head in heads)

    def test_no_heads(self) -> None:
        x, y = drawn()
        fit_linear([], x, y, np.ones((0, N_ITEMS), dtype=bool))
