"""How dense heads are trained: what is read when, schedules, checkpoints, what is refused."""

import itertools
import json
import math
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest
import torch
from dense_cases import Item, MemoryCases, patch_items
from dense_contract import CLASSES, all_rows, readers, small_task
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from probes.heads import DenseHead, dense_rows
from probes.heads.decoder2d import Decoder2dHead
from probes.heads.dense_rows import RowBatches, read_ahead, statistics
from probes.heads.dense_training import Schedule, train
from probes.heads.device import Place, running_on
from probes.heads.linear2d import Linear2dHead

Array = npt.NDArray[Any]
Change = Callable[[list[Item]], None]
SMALL: dict[str, Any] = {"width": 8, "blocks": 2, "epochs": 4, "lr": 0.01, "batch_size": 3}


class TestBatches:
    def batches(self, cases: MemoryCases, batch_size: int = 4) -> RowBatches:
        return RowBatches(cases, CLASSES, overlapping=False, batch_size=batch_size, seed=3)

    def numbered(self, n_rows: tuple[int, ...]) -> MemoryCases:
        """Maps and labels that say which row they are of."""
        items, count = [], 0
        for n in n_rows:
            number = np.arange(count, count + n)
            maps = np.broadcast_to(number[:, None, None, None], (n, 2, 3, 5)).astype(np.float32)
            labels = np.broadcast_to(number[:, None, None] % 3, (n, 4, 7)).astype(np.uint8)
            items.append(Item((maps,), labels))
            count += n
        return MemoryCases(items)

    @pytest.mark.parametrize("batch_size", [1, 4, 100])
    def test_each_row_comes_once_an_epoch_and_neighbours_are_read_together(
        self, batch_size: int
    ) -> None:
        cases = self.numbered((37, 1, 8, 100))
        batches = self.batches(cases, batch_size=batch_size)
        orders = []
        for epoch in (0, 1):
            cases.reads.clear()
            rows: list[int] = []
            sizes = []
            for batch in batches.epoch(epoch):
                (group,) = batch
                seen = group.maps[0][:, 1, 2, 4].int().tolist()
                assert group.labels[:, 3, 6].tolist() == [number % 3 for number in seen]
                firsts = np.array([0, 37, 38, 46])
                assert (group.items == np.searchsorted(firsts, seen, "right") - 1).all()
                rows += seen
                sizes.append(len(seen))
            assert sorted(rows) == list(range(146))
            assert sizes == [batch_size] * (146 // batch_size) + [146 % batch_size] * (
                146 % batch_size > 0
            )
            assert len(sizes) == batches.n_batches
            read = [one for one in cases.reads if one[0] == "maps"]
            assert len(read) == 5 + 1 + 1 + 13
            assert max(stop - start for _, _, start, stop, _ in read) == 8
            orders.append(rows)
        assert orders[0] != orders[1]
        assert [
            group.maps[0][:, 1, 2, 4].int().tolist()
            for batch in self.batches(cases, batch_size=batch_size).epoch(1)
            for group in batch
        ] == [orders[1][n : n + batch_size] for n in range(0, 146, batch_size)]

    def test_a_batch_has_rows_of_many_items(self) -> None:
        batches = self.batches(self.numbered((100,) * 6), batch_size=8)
        kinds = [len(set(batch[0].items.tolist())) for batch in batches.epoch(0)]
        assert np.mean(kinds) > 2

    def test_memory_is_bounded(self) -> None:
        """No more rows are read ahead than a batch is drawn from."""
        cases = self.numbered((400,))
        read = given = most = 0
        for batch in self.batches(cases).epoch(0):
            given += len(batch[0].items)
            read = sum(one[3] - one[2] for one in cases.reads if one[0] == "maps")
            most = max(most, read - given)
        assert most <= 64 + 8

    def test_in_order(self) -> None:
        batches = self.batches(self.numbered((9, 2)), batch_size=4)
        rows = [batch[0].maps[0][:, 0, 0, 0].tolist() for batch in batches.in_order()]
        assert rows == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]

    def test_rows_of_several_sizes_are_grouped(self) -> None:
        some = patch_items(2, classes=CLASSES, channels=(5,), grid=(4, 3))
        cases = MemoryCases([*small_task().items, *some])
        (batch,) = self.batches(cases, batch_size=99).epoch(0)
        shapes = Counter(
            {
                (tuple(one.maps[0].shape[1:]), tuple(one.labels.shape[1:])): len(one.items)
                for one in batch
            }
        )
        assert shapes == {((5, 7, 5), (10, 14)): 14, ((4, 3, 5), (8, 6)): 2}

    def test_statistics_stop_when_enough_was_seen(self, monkeypatch: pytest.MonkeyPatch) -> None:
        cases = self.numbered((100,) * 6)
        monkeypatch.setattr(dense_rows, "_STATISTICS_PATCHES", 100)
        found = statistics(cases, self.batches(cases), CLASSES, overlapping=False)
        assert found.counts.sum() == 24 * 4 * 7  # three pieces of 8 rows, 6 patches each
        assert len([one for one in cases.reads if one[0] == "maps"]) <= 3 + 3
        assert readers() == []


class TestReadAhead:
    def test_values_come_in_order_and_the_thread_ends(self) -> None:
        assert list(read_ahead(iter(range(9)))) == list(range(9))
        assert list(read_ahead([])) == []
        assert readers() == []

    def test_no_more_are_made_than_are_asked_for(self) -> None:
        made: list[int] = []

        def values() -> Iterator[int]:
            for number in range(99):
                made.append(number)
                yield number

        coming = read_ahead(values(), depth=2)
        assert [next(coming) for _ in range(3)] == [0, 1, 2]
        coming.close()  # type: ignore[attr-defined]
        assert len(made) <= 5
        assert readers() == []

    def test_an_error_comes_in_its_turn(self) -> None:
        def values() -> Iterator[int]:
            yield 1
            raise LookupError("gone")

        coming = read_ahead(values())
        assert next(coming) == 1
        with pytest.raises(LookupError, match="gone"):
            next(coming)
        assert readers() == []

    def test_reading_goes_on_while_the_caller_is_busy(self) -> None:
        second = threading.Event()

        def values() -> Iterator[int]:
            yield 1
            second.set()
            yield 2

        coming = read_ahead(values())
        next(coming)
        assert second.wait(30)
        assert list(coming) == [2]


class TestSchedule:
    def test_warm_up_and_cosine_by_hand(self) -> None:
        schedule = Schedule(lr=0.8, weight_decay=0, epochs=3, warmup=1, patience=None)
        rates = [schedule.lr_of(step, 4) for step in range(12)]
        assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8])
        assert rates[8] == pytest.approx(0.4)
        assert rates[11] == pytest.approx(0.4 * (1 + math.cos(math.pi * 7 / 8)))
        without = Schedule(lr=0.8, weight_decay=0, epochs=1, warmup=0, patience=None)
        assert [without.lr_of(step, 2) for step in range(2)] == pytest.approx([0.8, 0.4])

    def test_steps_are_those_of_adamw(self) -> None:
        """One weight, one loss: against torch's own optimiser and schedulers."""

        class Numbers:
            n_batches = 3

            def epoch(self, number: int) -> Iterator[float]:
                yield from (1.0 + number, 2.0, -0.5)

        networks = [torch.nn.Linear(2, 1) for _ in range(2)]
        for network in networks:
            torch.nn.init.constant_(network.weight, 0.7)
            torch.nn.init.constant_(network.bias, -0.2)
        ours, theirs = networks

        def loss(network: torch.nn.Module, number: float) -> torch.Tensor:
            made: torch.Tensor = (network(torch.tensor([number, 0.3])) - 1).square().sum()
            return made

        schedule = Schedule(lr=0.05, weight_decay=0.1, epochs=4, warmup=1, patience=None)
        progress = train(
            ours, Numbers(), lambda number: loss(ours, number), schedule, place=Place("cpu")
        )
        optimiser = torch.optim.AdamW(theirs.parameters(), lr=0.05, weight_decay=0.1)
        rising = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: (step + 1) / 3)
        curve = []
        for epoch in range(4):
            total = 0.0
            if epoch == 1:
                for group in optimiser.param_groups:
                    group["lr"] = group["initial_lr"] = 0.05
                rising = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 9)  # type: ignore[assignment]
            for number in Numbers().epoch(epoch):
                value = loss(theirs, number)
                optimiser.zero_grad()
                value.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                rising.step()
                total += value.item()
            curve.append(total / 3)
        torch.testing.assert_close(ours.weight, theirs.weight, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(ours.bias, theirs.bias, rtol=1e-5, atol=1e-7)
        assert progress.loss_curve == pytest.approx(curve)
        assert (progress.epochs, progress.best_epoch) == (4, 3)


class TestPatience:
    held = small_task(seed=7)

    def fitted(
        self, scores: list[float], monkeypatch: pytest.MonkeyPatch, patience: int
    ) -> Decoder2dHead:
        given = iter(scores)
        monkeypatch.setattr("probes.heads.dense_head._mean_dice", lambda _: next(given))
        head = Decoder2dHead(**{**SMALL, "epochs": 6, "patience": patience})
        return head.fit(small_task(), CLASSES, validation=self.held)

    def test_it_stops_and_keeps_the_best(self, monkeypatch: pytest.MonkeyPatch) -> None:
        scores = [0.1, 0.3, 0.3, 0.2, 0.9, 0.9]
        head = self.fitted(scores, monkeypatch, patience=2)
        assert head.validation_curve_.tolist() == scores[:4]
        assert (len(head.loss_curve_), head.best_epoch_) == (4, 1)
        rest = self.fitted([0.1, 0.3, 0, 0, 0, 0], monkeypatch, patience=6)
        assert len(rest.loss_curve_) == 6
        for name, array in head.weights_.items():
            np.testing.assert_array_equal(array, rest.weights_[name])
        last = self.fitted([1, 2, 3, 4, 5, 6], monkeypatch, patience=6)
        assert any((last.weights_[name] != one).any() for name, one in head.weights_.items())

    @pytest.mark.parametrize("overlapping", [False, True])
    def test_the_score_is_the_mean_dice_of_items_then_of_classes(
        self, *, overlapping: bool
    ) -> None:
        held = small_task(seed=7, overlapping=overlapping)
        masks = held.items[0].labels
        masks[...] = 0  # that item has no truth of any class
        head = Decoder2dHead(**SMALL, patience=9)
        head.fit(
            small_task(overlapping=overlapping), CLASSES, overlapping=overlapping, validation=held
        )
        dice = np.full((3, CLASSES), np.nan)
        for item, number in itertools.product(range(3), range(CLASSES)):
            found, truth = all_rows(head, held, item), held.items[item].labels
            if overlapping:
                one, other = found[number] > 0.5, truth[number]
            else:
                one, other = found.argmax(0) == 1 + number, truth == 1 + number
            if one.any() or other.any():
                dice[item, number] = 2 * (one & other).sum() / (one.sum() + other.sum())
        expected = np.nanmean(dice, axis=0).mean()
        assert head.validation_curve_[head.best_epoch_] == pytest.approx(expected, abs=1e-3)
        assert head.best_epoch_ == head.validation_curve_.argmax()

    def test_validation_that_cannot_choose(self) -> None:
        head = Decoder2dHead(**SMALL, patience=1)
        with pytest.raises(ValueError, match=r"maps of \(5,\) channels; got \(4,\)"):
            head.fit(small_task(), CLASSES, validation=small_task(channels=(4,)))
        with pytest.raises(ValueError, match="validation: a dense head is fitted on at least one"):
            head.fit(small_task(), CLASSES, validation=MemoryCases([], channels=(5,)))
        nothing = small_task()
        for item in nothing.items:
            item.labels[...] = 0
        with pytest.raises(ValueError, match="validation items must have pixels of some class"):
            head.fit(small_task(), CLASSES, validation=nothing)
        assert readers() == []


class StoppedError(Exception):
    """What ends a fit in the middle."""


class TestCheckpoint:
    def stopping(self, reads: int) -> MemoryCases:
        """The same cases, of which so many pieces can be read."""

        def stop(cases: MemoryCases) -> None:
            if sum(one[0] == "maps" for one in cases.reads) > reads:
                raise StoppedError

        return MemoryCases(small_task().items, before_read=stop)

    # 4 pieces are read in an epoch, and 4 before the first one.
    @pytest.mark.parametrize("reads", [10, 14, 17])
    @pytest.mark.parametrize(
        "made",
        [
            pytest.param({}, id="plain"),
            pytest.param({"patience": 3, "warmup": 2}, id="patience"),
        ],
    )
    @pytest.mark.parametrize("precision", ["fp32", "fp16"])
    def test_an_interrupted_fit_ends_in_the_same_bits(
        self, tmp_path: Path, reads: int, made: dict[str, Any], precision: Literal["fp32", "fp16"]
    ) -> None:
        file, head = tmp_path / "fit.safetensors", Decoder2dHead(**SMALL, **made)
        held = small_task(seed=7) if head.selects else None
        with running_on(Place("cpu", precision)):
            expected = Decoder2dHead(**SMALL, **made).fit(small_task(), CLASSES, validation=held)
            with pytest.raises(StoppedError):
                head.fit(self.stopping(reads), CLASSES, validation=held, checkpoint=file)
            assert readers() == []
            assert file.exists()
            rest = small_task()
            head.fit(rest, CLASSES, validation=held, checkpoint=file)
        done = (reads - 4) // 4
        assert sum(one[0] == "maps" for one in rest.reads) == 4 + 4 * (4 - done)
        for name, array in expected.to_arrays().items():
            np.testing.assert_array_equal(head.to_arrays()[name], array)
        assert [one.name for one in tmp_path.iterdir()] == [file.name]

    def test_one_that_is_done_trains_no_more(self, tmp_path: Path) -> None:
        file, made = tmp_path / "fit", {**SMALL, "patience": 1}
        held = small_task(seed=7)
        once = Decoder2dHead(**made).fit(small_task(), CLASSES, validation=held, checkpoint=file)
        content, cases = file.read_bytes(), small_task()
        again = Decoder2dHead(**made).fit(cases, CLASSES, validation=held, checkpoint=str(file))
        assert sum(one[0] == "maps" for one in cases.reads) == 4
        assert file.read_bytes() == content
        for name, array in once.to_arrays().items():
            np.testing.assert_array_equal(again.to_arrays()[name], array)

    def test_one_of_another_fit_is_refused(self, tmp_path: Path) -> None:
        file = tmp_path / "fit"
        Linear2dHead(epochs=1).fit(small_task(), CLASSES, checkpoint=file)
        content = file.read_bytes()

        def refused(word: str, head: DenseHead, cases: MemoryCases, classes: int = CLASSES) -> None:
            held = small_task(seed=7) if head.selects else None
            with pytest.raises(ValueError, match=f"is of another fit: it differs in .*{word}"):
                head.fit(cases, classes, validation=held, checkpoint=file)
            assert file.read_bytes() == content

        refused("head", Decoder2dHead(**SMALL), small_task())
        refused("settings", Linear2dHead(epochs=1, seed=1), small_task())
        refused("validation items", Linear2dHead(epochs=1, patience=1), small_task())
        refused("classes", Linear2dHead(epochs=1), small_task(), 3)
        refused("items", Linear2dHead(epochs=1), small_task(n_rows=(2, 11, 2)))
        refused("items", Linear2dHead(epochs=1), MemoryCases(small_task().items, views=("hflip",)))
        refused("features and labels", Linear2dHead(epochs=1), small_task(seed=1))
        changed = small_task()
        changed.items[1].labels[3, 4, 5] = (changed.items[1].labels[3, 4, 5] + 1) % 3
        refused("features and labels", Linear2dHead(epochs=1), changed)
        with running_on(Place("cpu", "bf16")):
            refused("device", Linear2dHead(epochs=1), small_task())

    def test_a_file_that_is_damaged_is_refused(self, tmp_path: Path) -> None:
        file, head = tmp_path / "fit", Linear2dHead(epochs=2)
        head.fit(small_task(), CLASSES, checkpoint=file)
        content, tensors = file.read_bytes(), load_file(file)
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata()

        def progress(**others: object) -> dict[str, str]:
            return {
                **metadata,
                "progress": json.dumps({**json.loads(metadata["progress"]), **others}),
            }

        def written(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> bytes:
            save_file(tensors, file, metadata)
            return file.read_bytes()

        name = "weight.stem.weight"
        assert name in tensors
        damaged = {
            "empty": b"",
            "cut": content[:-1],
            "text": b"a text that is no such file",
            "no metadata": written(tensors, {}),
            "other format": written(tensors, {**metadata, "format": "2"}),
            "no json": written(tensors, {**metadata, "fit": "{"}),
            "lost": written({k: v for k, v in tensors.items() if k != name}, metadata),
            "another": written({**tensors, "other": tensors[name].clone()}, metadata),
            "shape": written({**tensors, name: tensors[name][:1].clone()}, metadata),
            "dtype": written({**tensors, name: tensors[name].double()}, metadata),
            "epochs": written(tensors, progress(epochs=-1)),
            "curve": written(tensors, progress(loss_curve=[0.1])),
            "numbers": written(tensors, progress(loss_curve=["a", None])),
            "chosen": written(tensors, progress(validation_curve=[0.1, 0.2])),
            "best": written(tensors, progress(best_epoch=2)),
            "scaler": written(tensors, progress(scaler={"scale": 2.0})),
            "fields": written(tensors, progress(more=1)),
        }
        for what, bad in damaged.items():
            file.write_bytes(bad)
            with pytest.raises(ValueError, match="is damaged, or none of such a fit; remove it"):
                head.fit(small_task(), CLASSES, checkpoint=file)
            assert file.read_bytes() == bad, what
        file.write_bytes(content)
        head.fit(small_task(), CLASSES, checkpoint=file)

    def test_a_write_that_fails_leaves_the_one_before(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        file, calls = tmp_path / "fit", itertools.count()
        expected = Decoder2dHead(**SMALL).fit(small_task(), CLASSES)
        replace = Path.replace

        def refuse(self: Path, target: Path) -> Path:
            if next(calls) == 2:
                raise OSError(28, "No space left on device")
            return replace(self, target)

        monkeypatch.setattr(Path, "replace", refuse)
        (tmp_path / ".fit.partial").write_bytes(b"of a fit that was killed")
        with pytest.raises(OSError, match="No space"):
            Decoder2dHead(**SMALL).fit(small_task(), CLASSES, checkpoint=file)
        assert [one.name for one in tmp_path.iterdir()] == ["fit"]
        found = Decoder2dHead(**SMALL).fit(small_task(), CLASSES, checkpoint=file)
        for name, array in expected.to_arrays().items():
            np.testing.assert_array_equal(found.to_arrays()[name], array)

    def test_a_folder_that_is_missing_is_named_before_anything_is_trained(
        self, tmp_path: Path
    ) -> None:
        with pytest.raises(ValueError, match=r"needs a folder that exists; make .*missing"):
            Linear2dHead().fit(small_task(), CLASSES, checkpoint=tmp_path / "missing" / "fit")


def with_nan(items: list[Item]) -> None:
    items[1].maps[0][9, 1, 2, 3] = np.nan


def with_infinity(items: list[Item]) -> None:
    items[1].maps = (items[1].maps[0].astype(np.float16),)
    items[1].maps[0][10, 1, 2, 3] = np.inf


def beyond_halves(items: list[Item]) -> None:
    items[1].maps = (items[1].maps[0].astype(np.float64),)
    items[1].maps[0][8, 1, 2, 3] = 1e300


def with_label(label: int) -> Change:
    def change(items: list[Item]) -> None:
        items[1].labels = items[1].labels.astype(np.int16)
        items[1].labels[9, 2, 3] = label

    return change


def set_maps(change: Callable[[Array], tuple[Array, ...]]) -> Change:
    def of(items: list[Item]) -> None:
        items[1].maps = change(items[1].maps[0])

    return of


def set_labels(change: Callable[[Array], Array]) -> Change:
    def of(items: list[Item]) -> None:
        items[1].labels = change(items[1].labels)

    return of


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(with_nan, "item 1, row 9: maps must be finite, map 0 is not", id="nan"),
        pytest.param(with_infinity, "item 1, row 10: maps must be finite", id="infinity"),
        pytest.param(beyond_halves, "item 1, row 8: maps must be finite", id="too-large"),
        pytest.param(with_label(3), "item 1, row 9: labels must be 0 to 2, got 3", id="label"),
        pytest.param(with_label(-1), "item 1, row 9: labels must be 0 to 2, got -1", id="negative"),
        pytest.param(
            set_maps(lambda one: (one[..., :4],)),
            r"item 1, row [08]: map 0 must be \(\d, grid_height, grid_width, 5\), got "
            r"\(\d, 5, 7, 4\)",
            id="channels",
        ),
        pytest.param(
            set_maps(lambda one: (one, one)),
            "item 1, row [08]: 1 maps are read .* got 2",
            id="maps",
        ),
        pytest.param(
            set_maps(lambda one: (one.astype(int),)), "item 1, row [08]: .* floats", id="dtype"
        ),
        pytest.param(
            set_maps(lambda one: (one[:, 0],)), r"item 1, row [08]: .* got \(\d, 7, 5\)", id="flat"
        ),
        pytest.param(
            set_labels(lambda one: one.astype(float)), "item 1, row [08]: .* whole", id="floats"
        ),
        pytest.param(set_labels(lambda one: one[:9]), "item 1, row 8: labels must be", id="rows"),
    ],
)
@pytest.mark.parametrize("as_validation", [False, True])
def test_the_item_and_row_that_cannot_be_used_are_named(
    change: Change, message: str, *, as_validation: bool
) -> None:
    bad, good = small_task(), small_task(seed=3)
    change(bad.items)
    head = Linear2dHead(epochs=2, patience=1)
    training, held = (good, bad) if as_validation else (bad, good)
    with pytest.raises(ValueError, match=message) as caught:
        head.fit(training, CLASSES, validation=held)
    assert "\n" not in str(caught.value)
    assert readers() == []


def test_a_view_is_named() -> None:
    items = small_task().items
    items[0].maps[0][1] = np.nan
    with pytest.raises(ValueError, match="item 0, row 1, view hflip: maps must be finite"):
        Linear2dHead(epochs=1).fit(MemoryCases(items, views=("hflip",)), CLASSES)


def test_labels_of_another_size_than_is_said() -> None:
    cases = MemoryCases(small_task().items, sizes={2: (10, 13)})
    with pytest.raises(
        ValueError, match=r"item 2, row 0: labels must be \(1, 10, 13\), got \(1, 10"
    ):
        Linear2dHead(epochs=1).fit(cases, CLASSES)


def test_classes_that_overlap_are_masks() -> None:
    cases = small_task(overlapping=True)
    with pytest.raises(ValueError, match=r"labels must be \(3, \d+, 10, 14\), got \(2, "):
        Linear2dHead(epochs=1).fit(cases, 3, overlapping=True)
    for item in cases.items:
        item.labels = item.labels.astype(np.uint8)
    with pytest.raises(ValueError, match="labels of classes that overlap must be bool, got uint8"):
        Linear2dHead(epochs=1).fit(cases, CLASSES, overlapping=True)


@pytest.mark.parametrize(
    ("cases", "classes", "message"),
    [
        (MemoryCases([], channels=(5,)), 2, "at least one item, got none"),
        (small_task(), 0, "classes must be a whole number of at least 1, got 0"),
        (small_task(n_rows=(2, 0)), 2, "item 1 has 0 rows of 10 x 14 pixels; leave that item out"),
        (MemoryCases(small_task().items, views=()), 2, "cases need a view"),
        (MemoryCases(small_task().items, channels=(0,)), 2, "at least one map, each of at least"),
    ],
)
def test_cases_that_nothing_is_learned_from(cases: MemoryCases, classes: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Linear2dHead().fit(cases, classes)
    assert cases.reads == []


def test_a_loss_that_overflows_is_named() -> None:
    items = small_task().items
    for item in items:
        item.maps[0][...] *= 1e35
    with pytest.raises(
        ValueError, match=r"training loss must stay finite, it became .* in epoch 0"
    ):
        Linear2dHead(epochs=2, lr=1e5, standardize=False).fit(MemoryCases(items), CLASSES)
    assert readers() == []


def test_what_validates_goes_with_patience() -> None:
    schedule = Schedule(lr=1, weight_decay=0, epochs=1, warmup=0, patience=1)
    with pytest.raises(ValueError, match="given with a patience, and only then"):
        train(torch.nn.Linear(1, 1), None, None, schedule, place=Place("cpu"))  # type: ignore[arg-type]
