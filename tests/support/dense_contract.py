"""What every head of maps must do, as tests: docs/heads.md, "Heads of maps".

A test class of a head inherits `MapsContract`, or `DenseContract` if the head labels each row by
itself, and says which head with which small settings.
"""

import json
import threading
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from dense_cases import Item, MemoryCases, patch_items
from safetensors.numpy import load, save

from probes.heads import DENSE_HEADS, DenseHead, Setting, make_dense_head, parse_settings

Array = npt.NDArray[Any]
CLASSES = 2


def small_task(
    seed: int = 0,
    *,
    n_rows: tuple[int, ...] = (2, 11, 1),
    channels: tuple[int, ...] = (5,),
    dtype: str = "float32",
    overlapping: bool = False,
) -> MemoryCases:
    items = patch_items(
        len(n_rows),
        classes=CLASSES,
        n_rows=n_rows,
        channels=channels,
        seed=seed,
        dtype=dtype,
        overlapping=overlapping,
    )
    return MemoryCases(items)


def all_rows(head: DenseHead, cases: MemoryCases, item: int) -> Array:
    """Probabilities (channels, rows, Y, X), whose blocks must follow one another."""
    blocks, rows = [], 0
    for first, block in head.predict(cases, item):
        assert first == rows
        rows += block.shape[1]
        blocks.append(block)
    assert rows == cases.n_rows(item)
    return np.concatenate(blocks, axis=1)


def readers() -> list[threading.Thread]:
    return [one for one in threading.enumerate() if one.name.startswith("read-ahead")]


class MapsContract:
    """Inherited by the tests of each head of maps."""

    name: str
    settings: dict[str, Any]
    classes = CLASSES

    def head(self, **others: Setting) -> DenseHead:
        return make_dense_head(self.name, **{**self.settings, **others})

    def fitted(self, cases: MemoryCases, *, overlapping: bool = False) -> DenseHead:
        head = self.head()
        held = small_task(seed=7, overlapping=overlapping) if head.selects else None
        return head.fit(cases, self.classes, overlapping=overlapping, validation=held)

    @pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
    @pytest.mark.parametrize("overlapping", [False, True])
    def test_probabilities(self, dtype: str, *, overlapping: bool) -> None:
        cases = small_task(dtype=dtype, overlapping=overlapping)
        head = self.fitted(cases, overlapping=overlapping)
        for item in range(len(cases)):
            found = all_rows(head, cases, item)
            shape = (CLASSES + (not overlapping), cases.n_rows(item), *cases.size(item))
            assert (found.shape, found.dtype) == (shape, np.float32)
            assert ((found >= 0) & (found <= 1)).all()
            if not overlapping:
                np.testing.assert_allclose(found.sum(0), 1, atol=1e-5)

    def test_fit_returns_the_head_and_leaves_its_input_alone(self) -> None:
        cases, untouched = small_task(), small_task()
        for item in cases.items:
            item.labels.flags.writeable = item.maps[0].flags.writeable = False
        head = self.fitted(cases)
        assert isinstance(head, DENSE_HEADS[self.name])
        all_rows(head, cases, 1)
        for one, other in zip(cases.items, untouched.items, strict=True):
            np.testing.assert_array_equal(one.maps[0], other.maps[0])
            np.testing.assert_array_equal(one.labels, other.labels)

    def test_same_input_same_bits_and_no_global_random_state(self) -> None:
        cases, found = small_task(), []
        for seed in (1, 2):
            torch.manual_seed(seed)
            np.random.seed(seed)
            torch_state, numpy_draw = torch.get_rng_state(), np.random.RandomState()
            numpy_draw.set_state(np.random.get_state())
            found.append(all_rows(self.fitted(cases), cases, 1))
            assert torch.equal(torch_state, torch.get_rng_state())
            assert np.random.random() == numpy_draw.random()
        np.testing.assert_array_equal(*found)
        other = self.head(seed=5)
        held = small_task(seed=7) if other.selects else None
        other.fit(cases, self.classes, validation=held)
        assert (all_rows(other, cases, 1) != found[0]).any()

    def test_threads_and_modes_are_the_callers(self) -> None:
        cases, threads = small_task(), torch.get_num_threads()
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
            inferring = self.fitted(cases)
            of_inferring = all_rows(inferring, cases, 1)
        with torch.no_grad():
            head = self.fitted(cases)
            assert not torch.is_grad_enabled()
        for _ in head.predict(cases, 1):
            assert torch.is_grad_enabled()
            assert not torch.is_inference_mode_enabled()
        assert torch.get_num_threads() == threads
        assert not torch.are_deterministic_algorithms_enabled()
        np.testing.assert_array_equal(of_inferring, all_rows(self.fitted(cases), cases, 1))

    def test_fitting_again_forgets(self) -> None:
        cases, head = small_task(), self.fitted(small_task())
        once = all_rows(head, cases, 1)
        held = small_task(seed=7) if head.selects else None
        head.fit(small_task(seed=8), self.classes, validation=held)
        assert (all_rows(head, cases, 1) != once).any()
        head.fit(cases, self.classes, validation=held)
        np.testing.assert_array_equal(all_rows(head, cases, 1), once)

    def test_the_order_of_items_does_not_matter_for_predict(self) -> None:
        cases = small_task()
        head = self.fitted(cases)
        turned = MemoryCases(cases.items[::-1])
        for item in (0, 2, 1):
            np.testing.assert_array_equal(
                all_rows(head, cases, item), all_rows(head, turned, 2 - item)
            )
        assert not [one for one in turned.reads if one[0] == "labels"]

    @pytest.mark.parametrize("overlapping", [False, True])
    def test_a_head_comes_back_from_json_and_safetensors(self, *, overlapping: bool) -> None:
        cases = small_task(overlapping=overlapping)
        head = self.fitted(cases, overlapping=overlapping)
        params = json.loads(json.dumps(head.get_params()))
        restored = DENSE_HEADS[self.name].from_arrays(params, load(save(head.to_arrays())))
        assert restored.get_params() == head.get_params()
        for name, array in head.to_arrays().items():
            np.testing.assert_array_equal(restored.to_arrays()[name], array)
        np.testing.assert_array_equal(all_rows(restored, cases, 1), all_rows(head, cases, 1))

    def test_params_are_the_settings_of_the_constructor(self) -> None:
        defaults = make_dense_head(self.name).get_params()
        assert make_dense_head(self.name, **defaults).get_params() == defaults
        texts = [f"{key}={value}".replace("None", "none") for key, value in defaults.items()]
        assert parse_settings(self.name, texts) == defaults
        assert self.head().get_params() == {**defaults, **self.settings}

    def test_what_is_saved_must_be_whole(self) -> None:
        head = self.fitted(small_task())
        for lost in head.to_arrays():
            arrays = head.to_arrays()
            del arrays[lost]
            with pytest.raises(ValueError, match=rf"missing: {lost}\. Fit the head again\."):
                DENSE_HEADS[self.name].from_arrays(head.get_params(), arrays)
        name = next(name for name in head.to_arrays() if name.startswith("weight."))
        arrays = {**head.to_arrays(), name: np.zeros((1, 1), np.float32)}
        with pytest.raises(ValueError, match=rf"array {name} of a .* Fit the head again\."):
            DENSE_HEADS[self.name].from_arrays(head.get_params(), arrays)
        arrays = {**head.to_arrays(), "classes": np.array([1, 2])}
        with pytest.raises(ValueError, match=r"array classes of a .* must be one number"):
            DENSE_HEADS[self.name].from_arrays(head.get_params(), arrays)

    def test_unfitted(self) -> None:
        with pytest.raises(ValueError, match="not fitted; call fit or from_arrays first"):
            self.head().predict(small_task(), 0)
        with pytest.raises(ValueError, match="not fitted; there is nothing to save"):
            self.head().to_arrays()

    def test_validation_items_choose_or_are_not_looked_at(self) -> None:
        cases, head = small_task(), self.head()
        if head.selects:
            with pytest.raises(ValueError, match="validation items choose, got none"):
                head.fit(cases, self.classes)
        else:
            held = small_task(seed=7)
            head.fit(cases, self.classes, validation=held)
            assert held.reads == []

    def test_features_of_another_encoder(self) -> None:
        head = self.fitted(small_task())
        with pytest.raises(ValueError, match=r"fitted on maps of \(5,\) channels, got \(4,\)"):
            head.predict(small_task(channels=(4,)), 0)
        with pytest.raises(ValueError, match="there are items 0 to 2, got 3"):
            head.predict(small_task(), 3)

    def test_maps_that_cannot_be_predicted_from(self) -> None:
        cases = small_task()
        head = self.fitted(cases)
        cases.items[1].maps[0][9, 1, 2, 3] = np.nan
        with pytest.raises(ValueError, match="item 1, row 9: maps must be finite, map 0 is not"):
            all_rows(head, cases, 1)
        assert readers() == []

    def test_a_reader_that_fails_ends_the_fit(self) -> None:
        class GoneError(Exception):
            pass

        def fail(cases: MemoryCases) -> None:
            if len(cases.reads) > 15:
                raise GoneError

        with pytest.raises(GoneError):
            self.fitted(MemoryCases(small_task().items, before_read=fail))
        assert readers() == []

    def test_predictions_that_are_not_asked_for_are_not_read(self) -> None:
        cases = small_task(n_rows=(41, 1, 1))
        head = self.fitted(cases)
        cases.reads.clear()
        blocks = head.predict(cases, 0)
        next(blocks)
        assert len(readers()) == 1
        blocks.close()
        assert readers() == []
        assert len(cases.reads) <= 3


class DenseContract(MapsContract):
    """Inherited by the tests of each head that labels each row by itself."""

    def test_each_row_is_labelled_by_itself(self) -> None:
        cases = small_task()
        head = self.fitted(cases)
        (one, *_), labels = cases.items[1].maps, cases.items[1].labels
        alone = MemoryCases([Item((one[n : n + 1],), labels[n : n + 1]) for n in range(11)])
        together = all_rows(head, cases, 1)
        for row in range(11):
            found = all_rows(head, alone, row)[:, 0]
            np.testing.assert_allclose(found, together[:, row], rtol=1e-4, atol=1e-6)
