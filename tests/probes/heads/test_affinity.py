"""The head `affinity`: what it is trained on, and that it learns it."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from dense_cases import Item, MemoryCases
from dense_contract import MapsContract, all_rows, readers, small_task

from probes.heads import DENSE_HEADS, make_dense_head
from probes.heads.affinity import AffinityHead
from probes.heads.dense_rows import Piece
from probes.neurons.targets import affinities, widened

Array = npt.NDArray[Any]
SMALL: dict[str, Any] = {"width": 8, "stages": 2, "block_rows": 4, "epochs": 2}
LEARNING: dict[str, Any] = {
    "width": 16,
    "stages": 2,
    "block_rows": 7,
    "epochs": 8,
    "batch_size": 1,
    "lr": 0.01,
}


class TestContract(MapsContract):
    name = "affinity"
    settings = SMALL
    classes = 3

    @pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
    def test_probabilities(self, dtype: str) -> None:  # type: ignore[override]
        cases = small_task(dtype=dtype)
        head = self.fitted(cases)
        for item in range(len(cases)):
            found = all_rows(head, cases, item)
            assert (found.shape, found.dtype) == ((3, cases.n_rows(item), 10, 14), np.float32)
            assert ((found >= 0) & (found <= 1)).all()

    @pytest.mark.parametrize("widen", [False, True])
    def test_a_head_comes_back_from_json_and_safetensors(self, *, widen: bool) -> None:  # type: ignore[override]
        cases = small_task()
        head = self.head(widen=widen).fit(cases, 3)
        restored = DENSE_HEADS["affinity"].from_arrays(head.get_params(), head.to_arrays())
        assert restored.get_params() == {**self.head().get_params(), "widen": widen}
        for name, array in head.to_arrays().items():
            np.testing.assert_array_equal(restored.to_arrays()[name], array)
        np.testing.assert_array_equal(all_rows(restored, cases, 1), all_rows(head, cases, 1))


def neurons(seed: int, n_rows: int = 9) -> Item:
    """Four neurons a row, of which maps tell where each is, and which end with their row.

    They are made of whole patches of 2 x 2 pixels, with a corner that is nobody's.
    """
    draws, mixing = np.random.default_rng(seed), np.random.default_rng(99)
    y, x = np.indices((4, 7))
    cells = 2 * (y >= draws.integers(2, 4)) + (x >= draws.integers(2, 5))
    ends = (draws.random((n_rows, 4)) < 0.4)[:, cells]
    ids = draws.integers(1 << 40, 1 << 50) + 4 * (ends.cumsum(0) - ends) + cells
    hot = np.concatenate([np.eye(4)[cells + 0 * ids], ends[..., None]], axis=3)
    ids[:, :1, -2:] = hot[:, :1, -2:] = 0
    maps = hot @ mixing.standard_normal((5, 11))
    maps += 0.02 * draws.standard_normal(maps.shape)
    return Item((maps.astype(np.float16),), ids.astype(np.uint64).repeat(2, 1).repeat(2, 2))


def truth_of(ids: Array) -> Array:
    return affinities(widened(ids))


class TestTargets:
    @pytest.mark.parametrize("widen", [False, True])
    @pytest.mark.parametrize("view", [None, "hflip", "vflip"])
    def test_those_of_blocks_are_those_of_the_volume(
        self, view: str | None, *, widen: bool
    ) -> None:
        cases = MemoryCases([neurons(0), neurons(1)])
        ids = cases.labels(1, 0, 9, view)
        whole = affinities(widened(ids) if widen else ids)
        assert whole[0, 3:].any()
        assert not whole[0, 3:].all()
        head = AffinityHead(widen=widen)
        for start, stop in ((0, 9), (0, 1), (0, 4), (1, 2), (3, 7), (8, 9)):
            found = head._read_labels(cases, Piece(1, start, stop, view), 3, overlapping=True)
            np.testing.assert_array_equal(found.swapaxes(0, 1), whole[:, start:stop])

    def test_blocks_of_a_batch_have_them(self) -> None:
        items = [neurons(seed, n_rows=13) for seed in (0, 1)]
        for item in items:  # maps that say which row they are of
            item.maps = (np.broadcast_to(np.arange(13.0)[:, None, None, None], (13, 3, 5, 2)),)
        batches = AffinityHead(block_rows=4)._batches(MemoryCases(items), 3, overlapping=True)
        firsts = set()
        for batch in batches.epoch(0):
            for group in batch:
                assert group.labels.shape == (len(group.items), 3, 4, 8, 14)
                assert group.labels.dtype == torch.bool
                for item, maps, target in zip(
                    group.items, group.maps[0], group.labels, strict=True
                ):
                    first = int(maps[0, 0, 0, 0])
                    firsts.add(first)
                    whole = truth_of(items[item].labels)
                    np.testing.assert_array_equal(target, whole[:, first : first + 4])
        assert len(firsts) > 3

    def test_the_loss_is_that_of_a_batch(self) -> None:
        """Groups of unlike sizes count by their voxels."""
        draws = np.random.default_rng(4)
        pairs, errors, voxels = [], [], 0
        for shape in ((2, 3, 4, 5, 6), (1, 3, 2, 7, 3)):
            logits = torch.from_numpy(draws.standard_normal(shape).astype(np.float32))
            target = torch.from_numpy(draws.random(shape) < 0.8)
            pairs.append((logits, target))
            for sample, own in zip(logits.sigmoid(), target, strict=True):
                share = float(own.float().mean())
                weights = torch.where(own, 1.0, share / (1 - share))
                errors.append((weights * (sample - own.float()) ** 2).sum())
                voxels += own[0].numel()
        found = AffinityHead()._loss(pairs, 3, overlapping=True)
        assert float(found) == pytest.approx(float(sum(errors)) / voxels, rel=1e-5)


class TestLearning:
    def test_affinities_are_learned(self) -> None:
        training, held_out = (
            MemoryCases([neurons(seed) for seed in seeds]) for seeds in (range(20), range(100, 103))
        )
        head = AffinityHead(**LEARNING).fit(training, 3)
        for cases in (training, held_out):
            for item in range(3):
                found, truth = all_rows(head, cases, item) > 0.5, truth_of(cases.items[item].labels)
                for axis in range(3):
                    right = found[axis] == truth[axis]
                    of_both = [right[truth[axis]].mean(), right[~truth[axis]].mean()]
                    assert min(of_both) >= 0.95, (item, axis, of_both)
        assert head.loss_curve_[-1] < 0.2 * head.loss_curve_[0]

    def test_an_interrupted_fit_ends_in_the_same_bits(self, tmp_path: Path) -> None:
        class StoppedError(Exception):
            pass

        def stop(cases: MemoryCases) -> None:
            if len(cases.reads) > 26:
                raise StoppedError

        made, file = {**SMALL, "epochs": 4, "foreground": 0.5, "weight_decay": 0.01}, tmp_path / "a"
        expected, head = AffinityHead(**made).fit(small_task()), AffinityHead(**made)
        with pytest.raises(StoppedError):
            head.fit(MemoryCases(small_task().items, before_read=stop), checkpoint=file)
        rest = small_task()
        head.fit(rest, checkpoint=file)
        whole = small_task()
        AffinityHead(**made).fit(whole)
        assert len(rest.reads) < len(whole.reads)
        for name, array in expected.to_arrays().items():
            np.testing.assert_array_equal(head.to_arrays()[name], array)

    def test_what_is_saved_says_what_it_predicts(self) -> None:
        head = AffinityHead(**SMALL).fit(small_task())
        assert (int(head.classes_), bool(head.overlapping_)) == (3, True)
        assert head.gives == "affinities"
        assert {one.gives for one in DENSE_HEADS.values()} == {"affinities", "classes"}
        for name, value in (("classes", 2), ("overlapping", False)):
            arrays = {**head.to_arrays(), name: np.array(value)}
            with pytest.raises(ValueError, match="Fit the head again"):
                AffinityHead.from_arrays(head.get_params(), arrays)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(
            lambda one: one.astype(float),
            "item 1, row 0: .* whole numbers, got float64",
            id="floats",
        ),
        pytest.param(lambda one: one.astype(int) - 3, "at least 0, got -3", id="negative"),
        pytest.param(
            lambda one: one[:9], r"item 1, row \d: .* \(4, 10, 14\), got \(2, 10, 14\)", id="rows"
        ),
    ],
)
def test_labels_that_are_no_ids_are_named(change: Any, message: str) -> None:  # noqa: ANN401
    cases = small_task()
    cases.items[1].labels = change(cases.items[1].labels)
    with pytest.raises(ValueError, match=message) as caught:
        AffinityHead(**SMALL).fit(cases)
    assert "\n" not in str(caught.value)
    assert readers() == []


def test_the_row_of_a_negative_id_is_named() -> None:
    cases = small_task()
    cases.items[1].labels = cases.items[1].labels.astype(np.int32)
    cases.items[1].labels[9, 2, 3] = -7
    with pytest.raises(ValueError, match=r"item 1, row 9: ids of neurons .* got -7"):
        AffinityHead(**SMALL).fit(cases)


def test_classes_are_not_told_apart() -> None:
    for classes, overlapping in ((2, False), (3, True)):
        cases = small_task()
        with pytest.raises(
            ValueError, match=r"classes must be 3 \(along z, y, x\) and overlapping"
        ):
            AffinityHead(**SMALL).fit(cases, classes, overlapping=overlapping)
        assert cases.reads == []
    with pytest.raises(ValueError, match="head affinity has no setting 'patience'"):
        make_dense_head("affinity", patience=2)
