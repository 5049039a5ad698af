"""What every head must do, as tests: docs/heads.md.

A test class of a head inherits `HeadContract` and says which head with which small settings.
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.numpy import load, save

from probes.heads import HEADS, Head, make_head, parse_settings

N_TRAIN, N_NEW, N_VALIDATION, DIM, N_OUTPUTS = 41, 7, 13, 5, 3
Array = npt.NDArray[Any]
X = Array | Sequence[Array]


def random_task(seed: int = 0, dtype: str = "float32") -> tuple[Array, Array, Array]:
    draws = np.random.default_rng(seed)
    x = draws.standard_normal((N_TRAIN, DIM)).astype(dtype)
    y = (draws.random((N_TRAIN, N_OUTPUTS)) < 0.4).astype(np.uint8)
    return x, y, draws.standard_normal((N_NEW, DIM)).astype(dtype)


class HeadContract:
    """Inherited by the tests of each head."""

    name: str
    settings: dict[str, Any]

    def head(self) -> Head:
        return make_head(self.name, **self.settings)

    def given(self, x: Array) -> X:
        """Vectors as they are, or a bag of one to four rows around each."""
        if HEADS[self.name].takes == "vectors":
            return x
        shifts = np.random.default_rng(6).standard_normal((4, DIM)) / 9
        return [
            (row + shifts[: 1 + number % 4]).astype(x.dtype) if x.ndim == 2 else row
            for number, row in enumerate(x)
        ]

    def fitted(self, x: Array, y: Array) -> Head:
        head = self.head()
        draws = np.random.default_rng(4)
        held = draws.standard_normal((N_VALIDATION, DIM)).astype(np.float32)
        of_held = np.zeros((N_VALIDATION, y.shape[-1] if y.ndim == 2 else 1), np.uint8)
        of_held[::2] = 1
        validation = (self.given(held), of_held) if head.selects else None
        return head.fit(self.given(x), y, validation=validation)

    def scores(self, head: Head, x: Array) -> Array:
        return head.predict_proba(self.given(x))

    @pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
    def test_scores_are_float32_probabilities(self, dtype: str) -> None:
        x, y, new = random_task(dtype=dtype)
        scores = self.scores(self.fitted(x, y), new)
        assert scores.shape == (N_NEW, N_OUTPUTS)
        assert scores.dtype == np.float32
        assert ((scores >= 0) & (scores <= 1)).all()

    def test_fit_returns_the_head_and_leaves_its_input_alone(self) -> None:
        x, y, new = random_task()
        before = x.copy(), y.copy(), new.copy()
        head = self.fitted(x, y)
        assert isinstance(head, HEADS[self.name])
        self.scores(head, new)
        for array, copy in zip((x, y, new), before, strict=True):
            np.testing.assert_array_equal(array, copy)

    def test_same_input_same_bits_and_no_global_random_state(self) -> None:
        x, y, new = random_task()
        scores = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            np.random.seed(seed)
            torch_state, numpy_draw = torch.get_rng_state(), np.random.RandomState()
            numpy_draw.set_state(np.random.get_state())
            scores.append(self.scores(self.fitted(x, y), new))
            assert torch.equal(torch_state, torch.get_rng_state())
            assert np.random.random() == numpy_draw.random()
        np.testing.assert_array_equal(scores[0], scores[1])

    def test_threads_and_gradient_mode_are_the_callers(self) -> None:
        x, y, new = random_task()
        threads = torch.get_num_threads()
        with torch.inference_mode():
            inferring = self.scores(self.fitted(x, y), new)
        with torch.no_grad():
            self.fitted(x, y)
            assert not torch.is_grad_enabled()
        assert torch.get_num_threads() == threads
        np.testing.assert_array_equal(inferring, self.scores(self.fitted(x, y), new))

    def test_fitting_again_forgets(self) -> None:
        x, y, new = random_task()
        once = self.scores(self.fitted(x, y), new)
        self.fitted(*random_task(seed=8)[:2])
        np.testing.assert_array_equal(self.scores(self.fitted(x, y), new), once)

    def test_each_item_is_scored_by_itself(self) -> None:
        x, y, new = random_task()
        head = self.fitted(x, y)
        given = self.given(new)
        together = head.predict_proba(given)
        alone = [head.predict_proba(given[row : row + 1])[0] for row in range(N_NEW)]
        np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-7)
        assert head.predict_proba(given[:0]).shape == (0, N_OUTPUTS)

    def test_a_head_comes_back_from_json_and_safetensors(self) -> None:
        x, y, new = random_task()
        head = self.fitted(x, y)
        params = json.loads(json.dumps(head.get_params()))
        restored = HEADS[self.name].from_arrays(params, load(save(head.to_arrays())))
        assert restored.get_params() == head.get_params()
        np.testing.assert_array_equal(self.scores(restored, new), self.scores(head, new))

    def test_params_are_the_settings_of_the_constructor(self) -> None:
        defaults = make_head(self.name).get_params()
        assert make_head(self.name, **defaults).get_params() == defaults
        texts = [f"{key}={value}" for key, value in defaults.items()]
        assert (
            parse_settings(self.name, [text.replace("None", "none") for text in texts]) == defaults
        )
        assert self.head().get_params() == {**defaults, **self.settings}

    def test_a_missing_array_is_named(self) -> None:
        x, y, _ = random_task()
        head = self.fitted(x, y)
        arrays = head.to_arrays()
        lost = sorted(arrays)[0]
        del arrays[lost]
        with pytest.raises(ValueError, match=rf"missing: {lost}\. Fit the head again\."):
            HEADS[self.name].from_arrays(head.get_params(), arrays)

    def test_unfitted(self) -> None:
        with pytest.raises(ValueError, match="not fitted; call fit or from_arrays first"):
            self.scores(self.head(), random_task()[2])
        with pytest.raises(ValueError, match="not fitted; there is nothing to save"):
            self.head().to_arrays()

    def test_validation_items_choose_or_are_not_looked_at(self) -> None:
        x, y, new = random_task()
        head = self.head()
        if head.selects:
            with pytest.raises(ValueError, match="validation"):
                head.fit(self.given(x), y)
        else:
            nonsense = np.full((2, DIM), np.nan), np.full((2, N_OUTPUTS), 7)
            head.fit(self.given(x), y, validation=(self.given(nonsense[0]), nonsense[1]))
            np.testing.assert_array_equal(
                self.scores(head, new), self.scores(self.fitted(x, y), new)
            )

    @pytest.mark.parametrize(
        ("x", "y", "message"),
        [
            pytest.param(np.ones(9), np.ones((9, 2)), "must be ", id="flat-x"),
            pytest.param(np.ones((9, 4), int), np.ones((9, 2)), "4\\) int64", id="integers"),
            pytest.param(np.ones((9, 4)), np.ones(9), r"\(9,\)", id="flat-y"),
            pytest.param(np.ones((9, 4)), np.ones((8, 2)), "of the same items", id="lengths"),
            pytest.param(np.ones((0, 4)), np.ones((0, 2)), "at least one", id="no-items"),
            pytest.param(np.ones((9, 4)), np.ones((9, 0)), "at least one", id="no-outputs"),
            pytest.param(np.ones((9, 4)), np.full((9, 2), 2), "0 or 1, got 2", id="class-number"),
            pytest.param(np.ones((9, 4)), np.full((9, 2), np.nan), "0 or 1, got nan", id="nan-y"),
        ],
    )
    def test_training_data_that_cannot_be_used(self, x: Array, y: Array, message: str) -> None:
        given: X = x
        if HEADS[self.name].takes == "bags":
            given = [row[None] if x.ndim == 2 else row for row in x]
        validation = (given, y) if self.head().selects else None
        with pytest.raises(ValueError, match=message):
            self.head().fit(given, y, validation=validation)

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_the_row_that_is_not_finite_is_named(self, value: float) -> None:
        x, y, new = random_task()
        head = self.fitted(x, y)
        x[2, 1] = new[4, 3] = value
        with pytest.raises(ValueError, match=r"(row|bag) 2 is not( finite)?; leave that item out"):
            self.fitted(x, y)
        with pytest.raises(ValueError, match=r"(row|bag) 4 is not( finite)?; leave that item out"):
            self.scores(head, new)

    def test_features_of_another_encoder(self) -> None:
        x, y, new = random_task()
        head = self.fitted(x, y)
        narrow = [bag[:, :4] for bag in self.given(new)] if head.takes == "bags" else new[:, :4]
        with pytest.raises(ValueError, match="fitted on features of width 5, got 4; give it"):
            head.predict_proba(narrow)
