import gc
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest
import torch
from head_contract import HeadContract
from sklearn.metrics import roc_auc_score

from probes.heads import AbmilHead
from probes.heads.pooling import PARAMETERS, BagNetwork, Pooling, row_blocks

Array = npt.NDArray[Any]
DIM, PROJECTION, HIDDEN = 5, 4, 3
POOLINGS: list[Pooling] = ["gated", "plain", "mean", "max"]
SMALL: dict[str, Any] = {"projection": PROJECTION, "hidden": HIDDEN, "patience": None, "epochs": 2}


class TestContract(HeadContract):
    name = "abmil"
    settings = {**SMALL, "epochs": 1}  # noqa: RUF012


class TestContractWithPatience(HeadContract):
    name = "abmil"
    settings = {**SMALL, "epochs": 2, "patience": 1, "min_epochs": 1}  # noqa: RUF012


def make_bags(lengths: list[int], dtype: str = "float32", seed: int = 0) -> list[Array]:
    draws = np.random.default_rng(seed)
    return [draws.standard_normal((n_rows, DIM)).astype(dtype) + 0.5 for n_rows in lengths]


def labels(*values: int) -> Array:
    return np.array(values)[:, np.newaxis]


def by_the_equations(head: AbmilHead, bag: Array) -> tuple[Array, Array]:
    """Scores and weights of the rows, from the learned values, in float64."""
    learned = {name: array.astype(np.float64) for name, array in head.to_arrays().items()}
    rows = (bag.astype(np.float64) - learned["mean"]) / learned["scale"]
    h = rows @ learned["projection_weight"].T + learned["projection_bias"]
    if head.pooling == "mean":
        weights = np.full(len(bag), 1 / len(bag))
        z = h.mean(axis=0)
    elif head.pooling == "max":
        weights = np.bincount(h.argmax(axis=0), minlength=len(bag)) / PROJECTION
        z = h.max(axis=0)
    else:
        v, *u = np.split(learned["attention_weight"], len(learned["attention_weight"]) // HIDDEN)
        b_v, *b_u = np.split(learned["attention_bias"], len(learned["attention_bias"]) // HIDDEN)
        branch = np.tanh(h @ v.T + b_v)
        if head.pooling == "gated":
            branch = branch / (1 + np.exp(-(h @ u[0].T + b_u[0])))
        s = branch @ learned["score_weight"]
        weights = np.exp(s) / np.exp(s).sum()
        z = weights @ h
    logits = learned["class_weight"] @ z + learned["class_bias"]
    if head.exclusive_:
        return np.exp(logits) / np.exp(logits).sum(), weights
    return 1 / (1 + np.exp(-logits)), weights


class TestEquations:
    @pytest.mark.parametrize("pooling", POOLINGS)
    @pytest.mark.parametrize(
        "y",
        [
            pytest.param(labels(1, 0, 1, 0), id="binary"),
            pytest.param(np.eye(3)[[0, 1, 2, 1]], id="classes"),
            pytest.param(np.array([[1, 1], [0, 1], [0, 0], [1, 0]]), id="several-labels"),
        ],
    )
    @pytest.mark.parametrize("standardize", [False, True])
    def test_scores_and_weights(self, pooling: Pooling, y: Array, standardize: bool) -> None:
        x = make_bags([7, 1, 2600, 1025])
        x[2][:, 1] *= 40
        head = AbmilHead(**SMALL, pooling=pooling, standardize=standardize, lr=0.05).fit(x, y)
        scores = head.predict_proba(x)
        for bag, score in zip(x, scores, strict=True):
            expected, weights = by_the_equations(head, bag)
            np.testing.assert_allclose(score, expected, rtol=1e-5, atol=1e-6)
            attention = head.attention(bag)
            assert (attention.shape, attention.dtype) == ((len(bag),), np.float32)
            np.testing.assert_allclose(attention, weights, rtol=1e-4, atol=1e-7)
            assert attention.sum(dtype=np.float64) == pytest.approx(1, abs=1e-6)

    def test_shapes_of_what_is_learned(self) -> None:
        x, y = make_bags([2, 3, 4]), np.eye(3)[:, :2]
        shapes = {
            "mean": (DIM,),
            "scale": (DIM,),
            "projection_weight": (PROJECTION, DIM),
            "projection_bias": (PROJECTION,),
            "attention_weight": (2 * HIDDEN, PROJECTION),
            "attention_bias": (2 * HIDDEN,),
            "score_weight": (HIDDEN,),
            "class_weight": (2, PROJECTION),
            "class_bias": (2,),
            "exclusive": (),
            "loss_curve": (2,),
            "validation_curve": (0,),
            "best_epoch": (),
        }
        learned = AbmilHead(**SMALL).fit(x, y).to_arrays()
        assert {name: array.shape for name, array in learned.items()} == shapes
        plain = AbmilHead(**SMALL, pooling="plain", bias=False).fit(x, y)
        assert plain.attention_weight_.shape == (HIDDEN, PROJECTION)
        np.testing.assert_array_equal(plain.attention_bias_, np.zeros(HIDDEN))
        unweighted = AbmilHead(**SMALL, pooling="max").fit(x, y)
        assert unweighted.attention_weight_.shape == (0, PROJECTION)
        assert unweighted.score_weight_.shape == (0,)

    @pytest.mark.parametrize("pooling", POOLINGS)
    def test_the_order_of_the_rows_does_not_matter(self, pooling: Pooling) -> None:
        (bag,) = make_bags([2100])
        head = AbmilHead(**SMALL, pooling=pooling).fit([bag, bag / 2], labels(0, 1))
        order = np.random.default_rng(1).permutation(len(bag))
        np.testing.assert_allclose(
            head.predict_proba([bag[order]]), head.predict_proba([bag]), rtol=1e-5
        )
        np.testing.assert_allclose(
            head.attention(bag[order]), head.attention(bag)[order], rtol=1e-4, atol=1e-7
        )

    def test_a_bag_twice_over_scores_the_same(self) -> None:
        (bag,) = make_bags([1500])
        for pooling in POOLINGS:
            head = AbmilHead(**SMALL, pooling=pooling).fit([bag, bag / 2], labels(0, 1))
            twice = head.predict_proba([np.concatenate([bag, bag])])
            np.testing.assert_allclose(twice, head.predict_proba([bag]), rtol=1e-5)


class Reference(torch.nn.Module):
    """The paper's equations by torch's own layers, from given first weights."""

    def __init__(self, head: AbmilHead, n_logits: int) -> None:
        super().__init__()
        self.project = torch.nn.Linear(DIM, PROJECTION)
        self.v = torch.nn.Linear(PROJECTION, HIDDEN)
        self.u = torch.nn.Linear(PROJECTION, HIDDEN)
        self.w = torch.nn.Linear(HIDDEN, 1, bias=False)
        self.classify = torch.nn.Linear(PROJECTION, n_logits)
        self.gated = head.pooling == "gated"
        learned = {name: torch.tensor(array) for name, array in head.to_arrays().items()}
        of_layer = {self.project: "projection", self.classify: "class"}
        with torch.no_grad():
            for layer, name in of_layer.items():
                layer.weight.copy_(learned[f"{name}_weight"])
                layer.bias.copy_(learned[f"{name}_bias"])
            self.v.weight.copy_(learned["attention_weight"][:HIDDEN])
            self.v.bias.copy_(learned["attention_bias"][:HIDDEN])
            if self.gated:
                self.u.weight.copy_(learned["attention_weight"][HIDDEN:])
                self.u.bias.copy_(learned["attention_bias"][HIDDEN:])
            self.w.weight.copy_(learned["score_weight"][None])

    def forward(self, bag: torch.Tensor) -> torch.Tensor:
        h = self.project(bag)
        branch = self.v(h).tanh()
        if self.gated:
            branch = branch * self.u(h).sigmoid()
        logits: torch.Tensor = self.classify((self.w(branch).softmax(0) * h).sum(0))
        return logits


class TestTraining:
    @pytest.mark.parametrize("pooling", ["gated", "plain"])
    @pytest.mark.parametrize("loss", ["bce", "ce"])
    def test_steps_are_those_of_torch(self, pooling: Pooling, loss: Literal["bce", "ce"]) -> None:
        x, y = make_bags([1300]), np.array([[0, 1, 0]])
        settings: dict[str, Any] = {**SMALL, "pooling": pooling, "loss": loss, "dropout": 0.0}
        # At such a rate the weights stay what they were drawn as.
        first = AbmilHead(**settings, lr=1e-30).fit(x, y)
        network = Reference(first, 3)
        adam = torch.optim.Adam(network.parameters(), lr=0.02, weight_decay=0.1)
        losses = []
        for _ in range(9):
            logits = network(torch.from_numpy(x[0]))
            if loss == "ce":
                error = torch.nn.functional.cross_entropy(logits[None], torch.tensor([1]))
            else:
                error = torch.nn.functional.binary_cross_entropy_with_logits(
                    logits, torch.tensor(y[0], dtype=torch.float32)
                )
            adam.zero_grad()
            torch.autograd.backward(error)
            adam.step()
            losses.append(error.item())
        settings.update(lr=0.02, weight_decay=0.1, epochs=9)
        head = AbmilHead(**settings).fit(x, y)
        np.testing.assert_allclose(head.loss_curve_, losses, rtol=1e-4)
        expected = network.project.weight.detach().numpy()
        np.testing.assert_allclose(head.projection_weight_, expected, rtol=1e-3, atol=1e-4)

    def test_it_finds_the_one_row_that_counts(self) -> None:
        def task(n_bags: int, seed: int) -> tuple[list[Array], Array, Array]:
            # Every other bag has one row that is far from the others in one feature.
            draws = np.random.default_rng(seed)
            x = [draws.standard_normal((n, 9), dtype=np.float32) for n in range(20, 20 + n_bags)]
            y = np.arange(n_bags) % 2
            where = np.array([draws.integers(len(bag)) for bag in x])
            for bag, row, label in zip(x, where, y, strict=True):
                bag[row, 2] += 6 * label
            return x, y[:, np.newaxis], where

        x, y, _ = task(60, seed=10)
        new, of_new, where = task(60, seed=20)
        aucs = {}
        poolings: list[Pooling] = ["gated", "mean"]
        for pooling in poolings:
            head = AbmilHead(
                pooling=pooling, projection=32, hidden=16, patience=None, epochs=15, lr=0.005
            )
            scores = head.fit(x, y).predict_proba(new)
            aucs[pooling] = roc_auc_score(of_new[:, 0], scores[:, 0])
            if pooling == "gated":
                found = [head.attention(bag).argmax() for bag in new[1::2]]
                assert (found == where[1::2]).mean() > 0.9
                assert head.loss_curve_[-1] < 0.3 < head.loss_curve_[0]
        assert aucs["gated"] > 0.95
        assert aucs["mean"] < 0.85

    def test_it_stops_and_keeps_the_best_epoch(self) -> None:
        x, y = make_bags([5, 6, 7, 8]), labels(0, 1, 0, 1)
        settings: dict[str, Any] = {**SMALL, "lr": 0.05, "seed": 3}
        # The same bags under the other label: what is learned is worse for them.
        patient = AbmilHead(**{**settings, "epochs": 40, "patience": 3, "min_epochs": 8})
        patient.fit(x, y, validation=(x, 1 - y))
        best = int(patient.best_epoch_)
        assert best == patient.validation_curve_.argmin()
        assert len(patient.loss_curve_) == len(patient.validation_curve_) == max(8, best + 4)
        again = AbmilHead(**{**settings, "epochs": best + 1}).fit(x, y)
        for name in PARAMETERS:
            np.testing.assert_array_equal(getattr(patient, f"{name}_"), getattr(again, f"{name}_"))
        scores = patient.predict_proba(x)[:, 0].astype(np.float64)
        losses = -np.log(np.where(y[:, 0] == 1, 1 - scores, scores))
        assert patient.validation_curve_[best] == pytest.approx(losses.mean(), rel=1e-5)

    def test_all_epochs_where_the_loss_keeps_falling(self) -> None:
        x, y = make_bags([5, 6]), labels(0, 1)
        head = AbmilHead(**{**SMALL, "epochs": 9, "patience": 1, "min_epochs": 0, "lr": 1e-3})
        head.fit(x, y, validation=(x, y))
        assert len(head.validation_curve_) == head.best_epoch_ + 1 == 9

    @pytest.mark.parametrize(
        ("y", "expected"),
        [
            pytest.param(labels(*[0] * 18, 1, 1), [1 / 36] * 18 + [1 / 4] * 2, id="binary"),
            pytest.param(
                np.eye(3)[[0] * 14 + [1] * 5 + [2]],
                [1 / 42] * 14 + [1 / 15] * 5 + [1 / 3],
                id="classes",
            ),
            pytest.param(
                np.array([[1, 1]] + [[1, 0]] * 9 + [[0, 0]] * 10),
                # 1/10 and 1/1, 1/10 and 1/19, 1/10 and 1/19; of all, 4.
                np.array([1.1] + [0.1 + 1 / 19] * 19) / 4,
                id="several-labels",
            ),
        ],
    )
    def test_balanced_bags_are_drawn_by_class(self, y: Array, expected: Array) -> None:
        x = Recorded([1] * 20)
        AbmilHead(**{**SMALL, "epochs": 15, "pooling": "mean"}).fit(x, y)
        drawn = np.bincount(x.asked[1 + 20 :], minlength=20)
        assert drawn.sum() == 15 * 20
        expected = np.asarray(expected) * 15 * 20
        assert (np.abs(drawn - expected) < 5 * np.sqrt(expected)).all()

    def test_otherwise_each_bag_comes_once_an_epoch(self) -> None:
        x = Recorded([1] * 20)
        AbmilHead(**{**SMALL, "epochs": 3}, balanced=False).fit(x, labels(*[0, 1] * 10))
        epochs = np.reshape(x.asked[1 + 20 :], (3, 20))
        np.testing.assert_array_equal(np.sort(epochs, axis=1), [np.arange(20)] * 3)
        assert (epochs[0] != epochs[1]).any()

    def test_some_rows_of_a_bag(self) -> None:
        x, y = make_bags([30, 40]), labels(0, 1)
        whole = AbmilHead(**SMALL).fit(x, y)
        enough = AbmilHead(**SMALL, max_rows=40).fit(x, y)
        few = AbmilHead(**SMALL, max_rows=7, lr=1e-30).fit(x, y)
        np.testing.assert_array_equal(enough.projection_weight_, whole.projection_weight_)
        assert (few.loss_curve_ != whole.loss_curve_).all()
        np.testing.assert_allclose(
            few.predict_proba(x)[0], by_the_equations(few, x[0])[0], rtol=1e-5
        )

    @pytest.mark.parametrize("setting", [{"seed": 1}, {"dropout": 0.0}, {"bias": False}])
    def test_settings_that_change_the_result(self, setting: dict[str, Any]) -> None:
        x, y = make_bags([3, 4]), labels(0, 1)
        usual, other = AbmilHead(**SMALL).fit(x, y), AbmilHead(**{**SMALL, **setting}).fit(x, y)
        assert (usual.loss_curve_ != other.loss_curve_).all()

    def test_standardised_features_do_not_care_for_units(self) -> None:
        x, y = make_bags([1030, 4, 9]), labels(0, 1, 1)
        unit, offset = np.array([[1, 8, 0.5, 64, 2]]), np.array([[0, 16, -1, 640, 2]])
        others = [(bag * unit + offset).astype(np.float32) for bag in x]
        settings: dict[str, Any] = {**SMALL, "standardize": True, "lr": 0.01}
        head = AbmilHead(**settings).fit(others, y)
        rows = np.concatenate(others).astype(np.float64)
        np.testing.assert_allclose(head.mean_, rows.mean(axis=0), rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(head.scale_, rows.std(axis=0), rtol=1e-6)
        before = AbmilHead(**settings).fit(x, y).predict_proba(x)
        np.testing.assert_allclose(head.predict_proba(others), before, rtol=1e-3)

    @pytest.mark.parametrize("constant", [0.0, 0.1, 1000.0])
    def test_a_feature_that_never_varies_has_scale_one(self, constant: float) -> None:
        x, y = make_bags([6, 7], dtype="float16"), labels(0, 1)
        for bag in x:
            bag[:, 3] = constant
        assert AbmilHead(**SMALL, standardize=True).fit(x, y).scale_[3] == 1


class TestGradients:
    """In float64, so that what is compared is the arithmetic and not its rounding."""

    @staticmethod
    def network(pooling: Pooling) -> tuple[BagNetwork, torch.Tensor]:
        draws = np.random.default_rng(5)
        branches = {"gated": 2, "plain": 1}.get(pooling, 0) * HIDDEN
        shapes = {
            "mean": (DIM,),
            "scale": (DIM,),
            "projection_weight": (PROJECTION, DIM),
            "projection_bias": (PROJECTION,),
            "attention_weight": (branches, PROJECTION),
            "attention_bias": (branches,),
            "score_weight": (min(branches, HIDDEN),),
            "class_weight": (2, PROJECTION),
            "class_bias": (2,),
        }
        arrays = {name: draws.standard_normal(shape) for name, shape in shapes.items()}
        arrays["scale"] = 1 + arrays["scale"] ** 2
        network = BagNetwork(arrays, pooling=pooling)
        for tensor in network.parameters.values():
            tensor.requires_grad_()
        return network, torch.from_numpy(draws.standard_normal((2111, DIM)))

    @pytest.mark.parametrize("pooling", POOLINGS)
    @pytest.mark.parametrize("dropout", [0.0, 0.4])
    def test_against_differences(self, pooling: Pooling, dropout: float) -> None:
        network, bag = self.network(pooling)

        def loss_of(logits: torch.Tensor) -> torch.Tensor:
            return (logits * torch.tensor([1.0, -2.0], dtype=torch.float64)).tanh().sum()

        draws = np.random.default_rng(7)
        with row_blocks() as each_block:
            network.backward(bag, loss_of, each_block, dropout=dropout, seed=11)
            gradients = {
                n: p.grad.clone() for n, p in network.parameters.items() if p.grad is not None
            }
            for name, tensor in network.parameters.items():
                direction = torch.from_numpy(draws.standard_normal(tensor.shape))
                slope = (gradients[name] * direction).sum().item() if tensor.numel() else 0.0
                weights, step, losses = tensor.detach(), 1e-5, []
                for move in (step, -2 * step):
                    weights += move * direction
                    losses.append(
                        network.backward(bag, loss_of, each_block, dropout=dropout, seed=11)
                    )
                weights += step * direction
                found = (losses[0] - losses[1]) / (2 * step)
                assert found == pytest.approx(slope, rel=1e-5, abs=1e-8), name

    @pytest.mark.parametrize(("pooling", "kept"), [("gated", 0.75**2), ("plain", 0.75)])
    def test_the_share_that_is_dropped(self, pooling: Pooling, kept: float) -> None:
        # Tanh and gate are 1, and each row has a class of its own: the logits are the attention,
        # which knows two values, of rows kept and dropped.
        n_rows, branches = 1100, {"gated": 2, "plain": 1}[pooling]
        arrays = {
            "mean": np.zeros(n_rows),
            "scale": np.ones(n_rows),
            "projection_weight": np.eye(n_rows),
            "projection_bias": np.zeros(n_rows),
            "attention_weight": np.zeros((branches, n_rows)),
            "attention_bias": np.full(branches, 50.0),
            "score_weight": np.array([0.3]),
            "class_weight": np.eye(n_rows),
            "class_bias": np.zeros(n_rows),
        }
        network = BagNetwork(arrays, pooling=pooling)
        for tensor in network.parameters.values():
            tensor.requires_grad_()
        bag, seen = torch.eye(n_rows, dtype=torch.float64), []

        def loss_of(logits: torch.Tensor) -> torch.Tensor:
            seen.append(logits.detach().numpy())
            return logits.sum()

        with row_blocks() as each_block:
            for seed in (1, 1, 2):
                network.backward(bag, loss_of, each_block, dropout=0.25, seed=seed)
        np.testing.assert_array_equal(seen[0], seen[1])
        assert (seen[0] != seen[2]).any()
        low, high = seen[0].min(), seen[0].max()
        assert high / low == pytest.approx(np.exp(0.3 / kept), rel=1e-9)
        for attention in seen:
            assert (attention[:76] != attention[1024:]).any()  # each block draws for itself
            assert np.isclose(attention, attention.max()).mean() == pytest.approx(kept, abs=0.06)


class Recorded:
    """Bags that are made when they are asked for, and watched."""

    def __init__(self, lengths: list[int]) -> None:
        self._lengths = lengths
        self.asked: list[int] = []
        self.threads: set[int] = set()
        self.most_held = 0
        self._held: list[weakref.ref[Array]] = []

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[Array]:
        raise AssertionError("bags are read by their numbers")

    def __getitem__(self, number: int) -> Array:
        self.asked.append(number)
        self.threads.add(threading.get_ident())
        bag = np.random.default_rng(number).standard_normal((self._lengths[number], DIM))
        self._held = [held for held in self._held if held() is not None]
        bag = bag.astype(np.float32)
        self._held.append(weakref.ref(bag))
        self.most_held = max(self.most_held, len(self._held))
        return bag


class TestReading:
    def test_few_bags_are_held_and_another_thread_reads(self) -> None:
        x = Recorded([3, 1500, 2, 40, 7, 1100, 9, 5])
        y = labels(*[0, 1] * 4)
        gc.disable()  # bags must go without it
        try:
            head = AbmilHead(**{**SMALL, "patience": 1}).fit(x, y, validation=(x, y))
            head.predict_proba(x)
        finally:
            gc.enable()
        assert x.most_held <= 3
        assert threading.get_ident() not in x.threads

    @pytest.mark.parametrize("dtype", ["float16", "float32"])
    def test_how_bags_lie_does_not_matter(self, dtype: str, tmp_path: Path) -> None:
        x, y = make_bags([1100, 3], dtype), labels(0, 1)
        scores = AbmilHead(**SMALL).fit(x, y).predict_proba(x)
        for number, bag in enumerate(x):
            np.save(tmp_path / f"{number}.npy", bag)
        wider = [np.concatenate([bag, bag], axis=1) for bag in x]
        others = {
            "mapped": [np.load(tmp_path / f"{n}.npy", mmap_mode="r") for n in range(2)],
            "transposed": [np.asfortranarray(bag) for bag in x],
            "views": [bag[:, :DIM] for bag in wider],
        }
        for bags in others.values():
            head = AbmilHead(**SMALL).fit(bags, y)
            np.testing.assert_array_equal(head.predict_proba(bags), scores)

    def test_where_a_bag_lies_in_memory_does_not_matter(self) -> None:
        x, y = make_bags([1100]), labels(1)
        network = BagNetwork(AbmilHead(**SMALL).fit(x, y).to_arrays(), pooling="gated")
        space = np.empty(x[0].size + 16, np.float32)
        logits = []
        for offset in range(16):
            bag = space[offset : offset + x[0].size].reshape(x[0].shape)
            bag[:] = x[0]
            with row_blocks() as each_block:
                logits.append(network.logits(torch.from_numpy(bag), each_block).item())
        assert len(set(logits)) == 1

    def test_threads_do_not_matter(self) -> None:
        x, y = make_bags([2500, 1200]), labels(0, 1)
        before = torch.get_num_threads()
        learned = []
        try:
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                learned.append(AbmilHead(**SMALL).fit(x, y).to_arrays())
                assert torch.get_num_threads() == threads
        finally:
            torch.set_num_threads(before)
        for name, array in learned[0].items():
            np.testing.assert_array_equal(learned[1][name], array)
            np.testing.assert_array_equal(learned[2][name], array)

    def test_an_error_of_the_store_comes_through(self) -> None:
        class Damaged(Recorded):
            def __getitem__(self, number: int) -> Array:
                if number == 1:
                    raise OSError("no such file")
                return super().__getitem__(number)

        threads = torch.get_num_threads()
        with pytest.raises(OSError, match="no such file"):
            AbmilHead(**SMALL).fit(Damaged([2, 3]), labels(0, 1))
        assert torch.get_num_threads() == threads


class TestRefusals:
    def test_bags_that_cannot_be_used(self) -> None:
        y = labels(0, 1, 1)
        for bad, message in [
            (np.ones((0, DIM)), "bag 2 has no rows; leave that item out"),
            (np.ones((4, 3)), r"fitted on features of width 5, got 3; .*\(bag 2\)"),
            (np.ones(DIM), r"bag 2 must be \(n_rows, dim\) floats, got \(5,\) float64"),
        ]:
            x = [*make_bags([3, 4]), bad]
            with pytest.raises(ValueError, match=message):
                AbmilHead(**SMALL).fit(x, y)
            head = AbmilHead(**SMALL).fit(x[:2], y[:2])
            with pytest.raises(ValueError, match=message):
                head.predict_proba(x)
        with pytest.raises(ValueError, match="bag 0 has no rows"):
            head.attention(np.ones((0, DIM)))
        with pytest.raises(ValueError, match="not fitted; call fit"):
            AbmilHead().attention(np.ones((2, DIM)))

    def test_a_bag_that_is_not_finite_trains_nothing(self) -> None:
        x = make_bags([3, 4, 9000], dtype="float16")
        x[2][8500, 1] = -np.inf
        head = AbmilHead(**SMALL)
        with pytest.raises(ValueError, match="bag 2 is not; leave that item out"):
            head.fit(x, labels(0, 1, 0))
        assert not hasattr(head, "class_bias_")

    def test_validation(self) -> None:
        x, y = make_bags([3, 4]), labels(0, 1)
        head = AbmilHead(**{**SMALL, "patience": 2})
        assert head.selects
        assert not AbmilHead(patience=None).selects
        with pytest.raises(
            ValueError, match=r"patience=2 validation .* give fit validation=\(x, y\), or"
        ):
            head.fit(x, y)
        with pytest.raises(ValueError, match=r"must have the 1 columns of .* got 2"):
            head.fit(x, y, validation=(x, np.ones((2, 2))))
        with pytest.raises(ValueError, match=r"validation: .* at least one; got 0 bags"):
            head.fit(x, y, validation=([], y[:0]))

    def test_targets_for_a_softmax(self) -> None:
        x = make_bags([3, 4])
        with pytest.raises(ValueError, match=r"rows with 1 to 2 ones\. Use loss=bce"):
            AbmilHead(**SMALL, loss="ce").fit(x, np.array([[1, 1], [0, 1]]))
        head = AbmilHead(**{**SMALL, "patience": 1})
        with pytest.raises(
            ValueError, match="validation bag 0 has 0 ones; leave that item out, or"
        ):
            head.fit(x, np.eye(2), validation=(x, np.array([[0, 0], [0, 1]])))

    def test_a_loss_that_overflows(self) -> None:
        x = [bag * np.float32(1e30) for bag in make_bags([3, 4])]
        with pytest.raises(ValueError, match=r"must stay finite, it became .* in epoch \d"):
            AbmilHead(**{**SMALL, "epochs": 40}, lr=1e30).fit(x, labels(0, 1))

    @pytest.mark.parametrize(
        ("setting", "message"),
        [
            ({"pooling": "sum"}, "pooling must be gated, plain, mean, max; got 'sum'"),
            ({"loss": "mse"}, "loss must be auto, bce or ce; got 'mse'"),
            ({"dropout": 1.0}, "dropout must be at least 0 and below 1, got 1.0"),
            ({"lr": 0.0}, "lr must be a number above 0"),
            ({"lr": np.nan}, "lr must be a number above 0"),
            ({"weight_decay": -1.0}, "weight_decay must be a number of at least 0, got -1.0"),
            ({"projection": 0}, "projection must be at least 1, got 0"),
            ({"hidden": 0}, "hidden must be at least 1, got 0"),
            ({"epochs": 0}, "epochs must be at least 1, got 0"),
            ({"patience": 0}, "patience must be at least 1, got 0"),
            ({"max_rows": 0}, "max_rows must be at least 1, got 0"),
            ({"min_epochs": -1}, "min_epochs must be at least 0, got -1"),
            ({"seed": -1}, "seed must be at least 0, got -1"),
        ],
    )
    def test_settings(self, setting: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            AbmilHead(**setting)
