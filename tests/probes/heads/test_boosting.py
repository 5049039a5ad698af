import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import xgboost
from head_contract import DIM, N_OUTPUTS, HeadContract, random_task
from sklearn.metrics import log_loss
from sklearn.utils.class_weight import compute_sample_weight

from probes.heads import XgboostHead

Array = npt.NDArray[Any]
SETTINGS = {"lr": 0.3, "depth": 3, "subsample": 0.7, "colsample": 0.6, "l2": 2.0, "seed": 5}
"""Of the head; their names in XGBoost's own interface stand in `wrapper`."""


class TestContract(HeadContract):
    name = "xgboost"
    settings = {"rounds": 6, "patience": 2, "colsample": 0.7}  # noqa: RUF012


class TestContractOfAllRounds(HeadContract):
    name = "xgboost"
    settings = {"rounds": 5, "patience": None, "balanced": True}  # noqa: RUF012


def learnable_task(n_items: int, *, exclusive: bool) -> tuple[Array, Array]:
    draws = np.random.default_rng(n_items)
    x = draws.standard_normal((n_items, 11)).astype(np.float32)
    if exclusive:
        return x, np.eye(4)[(x[:, :4] + draws.gumbel(size=(n_items, 4))).argmax(axis=1)]
    return x, (x[:, :3] + draws.logistic(size=(n_items, 3)) > [0, 1, -1]).astype(np.uint8)


def wrapper(
    patience: int | None, threads: int, scale_pos_weight: float | None = None
) -> xgboost.XGBClassifier:
    """Return XGBoost's own classifier with `SETTINGS`."""
    return xgboost.XGBClassifier(
        n_estimators=20,
        learning_rate=0.3,
        max_depth=3,
        subsample=0.7,
        colsample_bytree=0.6,
        min_child_weight=1,
        reg_lambda=2,
        tree_method="hist",
        random_state=5,
        early_stopping_rounds=patience,
        n_jobs=threads,
        **({} if scale_pos_weight is None else {"scale_pos_weight": scale_pos_weight}),
    )


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("patience", [None, 3])
class TestAgainstXgboostsOwnClassifier:
    def test_an_output_is_a_booster(self, balanced: bool, patience: int | None) -> None:
        x, y = learnable_task(307, exclusive=False)
        held, of_held = learnable_task(83, exclusive=False)
        new, _ = learnable_task(29, exclusive=False)
        head = XgboostHead(rounds=20, patience=patience, balanced=balanced, **SETTINGS)
        head.fit(x, y, validation=(held, of_held))
        scores = head.predict_proba(new)
        for column in range(3):
            label, truth = y[:, column], of_held[:, column]
            weight = (label == 0).sum() / (label == 1).sum() if balanced else 1.0
            model = wrapper(patience, 1 + column % 2, scale_pos_weight=weight)
            weights = np.where(truth == 1, weight, 1.0)
            model.fit(
                x, label, eval_set=[(held, truth)], sample_weight_eval_set=[weights], verbose=False
            )
            np.testing.assert_array_equal(scores[:, column], model.predict_proba(new)[:, 1])
            if patience:
                assert head.rounds_[column] == model.best_iteration + 1
                expected = log_loss(
                    truth, head.predict_proba(held)[:, column], sample_weight=weights
                )
                assert head.validation_loss_[column] == pytest.approx(expected, rel=1e-5)
        assert (patience is None) == (head.rounds_ == 20).all()

    def test_exclusive_classes_share_one(self, balanced: bool, patience: int | None) -> None:
        x, y = learnable_task(307, exclusive=True)
        held, of_held = learnable_task(83, exclusive=True)
        new, _ = learnable_task(29, exclusive=True)
        head = XgboostHead(rounds=20, patience=patience, balanced=balanced, **SETTINGS)
        head.fit(x, y, validation=(held, of_held))
        assert head.sizes_.shape == head.rounds_.shape == (1,)
        label, truth = y.argmax(axis=1), of_held.argmax(axis=1)
        weights = held_weights = None
        if balanced:
            weights = compute_sample_weight("balanced", label)
            of_class = dict(zip(label, weights, strict=True))
            held_weights = [np.array([of_class[c] for c in truth])]
        model = wrapper(patience, 2 if patience else 1).fit(
            x,
            label,
            sample_weight=weights,
            eval_set=[(held, truth)],
            sample_weight_eval_set=held_weights,
            verbose=False,
        )
        np.testing.assert_array_equal(head.predict_proba(new), model.predict_proba(new))
        if patience:
            assert head.rounds_ == [model.best_iteration + 1]


class TestXgboost:
    def test_one_stump_by_hand(self) -> None:
        # One round, one split, no penalty: a leaf is the sum of gradients y - p over the sum of
        # p (1 - p), added to the logit of the mean, p = 1/2.
        x = np.array([[-1], [-1], [-1], [1], [1], [1]], dtype=np.float32)
        y = np.array([[0], [0], [1], [0], [1], [1]])
        head = XgboostHead(
            rounds=1,
            patience=None,
            lr=1.0,
            depth=1,
            subsample=1.0,
            colsample=1.0,
            l2=0.0,
            min_child_weight=0.0,
        )
        leaf = 0.5 / 0.75
        expected = 1 / (1 + np.exp([leaf, -leaf]))
        scores = head.fit(x, y).predict_proba(x[[0, -1]])
        np.testing.assert_allclose(scores[:, 0], expected, rtol=1e-5)

    def test_without_patience_validation_is_not_needed(self) -> None:
        x, y = learnable_task(97, exclusive=False)
        head = XgboostHead(rounds=7, patience=None).fit(x, y)
        assert head.rounds_.tolist() == [7, 7, 7]
        assert head.validation_loss_.shape == (0,)
        assert head.shape_.tolist() == [11, 3]

    def test_the_seed_decides_what_trees_see(self) -> None:
        x, y = learnable_task(97, exclusive=False)
        fits = [
            XgboostHead(rounds=3, patience=None, seed=seed).fit(x, y).predict_proba(x)
            for seed in (3, 3, 4)
        ]
        np.testing.assert_array_equal(fits[0], fits[1])
        assert (fits[0] != fits[2]).any()

    @pytest.mark.parametrize("dtype", ["float16", "float64"])
    def test_features_are_read_as_float32(self, dtype: str) -> None:
        x, y, new = random_task(dtype=dtype)
        settings = {"rounds": 4, "patience": None}
        scores = XgboostHead(**settings).fit(x, y).predict_proba(new)
        single = XgboostHead(**settings).fit(x.astype(np.float32), y)
        np.testing.assert_array_equal(scores, single.predict_proba(new.astype(np.float32)))

    def test_blocks_change_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        x, y = learnable_task(97, exclusive=True)
        head = XgboostHead(rounds=4, patience=None).fit(x, y)
        whole = head.predict_proba(x)
        monkeypatch.setattr("probes.heads.boosting._PREDICT_ROWS", 10)
        np.testing.assert_array_equal(head.predict_proba(x), whole)

    def test_an_output_without_positives(self) -> None:
        x, y, new = random_task()
        y[:, 1] = 0
        scores = XgboostHead(rounds=4, patience=None).fit(x, y).predict_proba(new)
        assert (scores[:, 1] < 0.05).all()
        with pytest.raises(ValueError, match="column 1 has only 0; leave that output out"):
            XgboostHead(rounds=4, patience=None, balanced=True).fit(x, y)

    @pytest.mark.parametrize(
        "damage",
        [
            pytest.param(lambda models: models[:0], id="empty"),
            pytest.param(lambda models: models[:-1], id="cut"),
            pytest.param(lambda models: models[::-1].copy(), id="reversed"),
            pytest.param(lambda models: models ^ (np.arange(len(models)) == 99), id="one-bit"),
        ],
    )
    def test_broken_bytes(self, damage: Callable[[Array], Array]) -> None:
        x, y, _ = random_task()
        head = XgboostHead(rounds=2, patience=None).fit(x, y)
        arrays = head.to_arrays()
        arrays["boosters"] = damage(arrays["boosters"])
        message = r"^booster \d is not what was saved, its checksum differs; fit the head again$"
        with pytest.raises(ValueError, match=message):
            XgboostHead.from_arrays(head.get_params(), arrays)

    def test_xgboost_that_is_not_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        x, y, _ = random_task()
        monkeypatch.setitem(sys.modules, "xgboost", None)
        with pytest.raises(ValueError, match="needs the package xgboost: pip install xgboost"):
            XgboostHead(rounds=2, patience=None).fit(x, y)

    def test_validation_items_of_another_width(self) -> None:
        x, y, _ = random_task()
        held = np.ones((9, DIM - 1)), np.ones((9, N_OUTPUTS))
        with pytest.raises(ValueError, match="5 features and 3 outputs; got 4 and 3"):
            XgboostHead().fit(x, y, validation=held)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"rounds": 0}, "rounds must be at least 1, got 0"),
            ({"patience": 0}, "patience must be at least 1, got 0"),
            ({"depth": 0}, "depth must be at least 1, got 0"),
            ({"lr": 0.0}, "lr must be above 0 and at most 1, got 0"),
            ({"subsample": 1.5}, "subsample must be above 0 and at most 1, got 1.5"),
            ({"colsample": np.nan}, "colsample must be above 0 and at most 1, got nan"),
            ({"l2": -1.0}, "l2 must be a number of at least 0, got -1"),
            ({"min_child_weight": np.inf}, "min_child_weight must be a number .* got inf"),
            ({"loss": "mse"}, "loss must be auto, bce or ce; got 'mse'"),
            ({"seed": -1}, "seed must be at least 0 and below 2\\*\\*31, got -1"),
        ],
    )
    def test_settings_that_cannot_be_used(self, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            XgboostHead(**settings)


def test_nothing_is_imported_with_the_table_of_heads() -> None:
    script = (
        "import sys; from probes.heads import make_head; make_head('xgboost');"
        "make_head('logistic'); sys.exit('xgboost' in sys.modules or 'sklearn' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
