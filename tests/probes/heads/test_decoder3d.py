"""The head `decoder3d`: what it computes, that it learns across rows, how it joins blocks."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from dense_cases import Item, MemoryCases, patch_items, shuffled
from dense_contract import CLASSES, MapsContract, all_rows, readers, small_task
from torch.nn import functional

from probes.heads import dense_blocks_head
from probes.heads.decoder3d import Decoder3dHead
from probes.heads.dense_blocks import Blend, BlockBatches, Drawing, starts_of
from probes.heads.dense_head import MapKinds
from probes.heads.dense_rows import Group, Piece, read_labels
from probes.heads.device import Place, running_on
from probes.heads.linear2d import Linear2dHead

Array = npt.NDArray[Any]
SMALL: dict[str, Any] = {
    "width": 8,
    "stages": 2,
    "block_rows": 4,
    "epochs": 2,
    "warmup": 0,
    "lr": 0.01,
}
LEARNING: dict[str, Any] = {
    "width": 8,
    "stages": 2,
    "block_rows": 7,
    "epochs": 10,
    "warmup": 1,
    "lr": 0.02,
}


class TestContract(MapsContract):
    name = "decoder3d"
    settings = SMALL


class TestContractWithPatienceAndSteps(MapsContract):
    name = "decoder3d"
    settings = {**SMALL, "patience": 1, "steps": 3, "width": 4}  # noqa: RUF012


def later(items: list[Item], map_number: int = 0) -> list[Item]:
    """The same items, of which the maps of a row tell of the row after it."""
    return [
        replace(
            item,
            maps=tuple(
                np.roll(one, -1, axis=0) if number == map_number else one
                for number, one in enumerate(item.maps)
            ),
        )
        for item in items
    ]


def blind(items: list[Item], numbers: tuple[int, ...]) -> list[Item]:
    """The same items, of which these maps are noise."""
    draws = np.random.default_rng(77)
    return [
        replace(
            item,
            maps=tuple(
                draws.standard_normal(one.shape).astype(one.dtype) if number in numbers else one
                for number, one in enumerate(item.maps)
            ),
        )
        for item in items
    ]


def mean_dice(head: Decoder3dHead | Linear2dHead, cases: MemoryCases, classes: int) -> float:
    """Dice of each class over all pixels of all items; the mean over classes.

    First rows are left out: where maps tell of the row after, nothing tells of them.
    """
    both, sizes = np.zeros(classes), np.zeros(classes)
    for item in range(len(cases)):
        found, truth = all_rows(head, cases, item), cases.items[item].labels
        for n in range(classes):
            hard = found[n] > 0.5 if truth.dtype == bool else found.argmax(0) == 1 + n
            true = truth[n] if truth.dtype == bool else truth == 1 + n
            both[n] += (hard & true)[1:].sum()
            sizes[n] += hard[1:].sum() + true[1:].sum()
    return float((2 * both / sizes).mean())


class TestLearning:
    @pytest.mark.parametrize("overlapping", [False, pytest.param(True, marks=pytest.mark.long)])
    def test_what_neighbouring_rows_hold(self, *, overlapping: bool) -> None:
        made: dict[str, Any] = {"classes": 2, "n_rows": 9, "grid": (3, 5)}
        made["overlapping"] = overlapping
        training, held_out = (
            MemoryCases(later(patch_items(n, seed=seed, **made))) for n, seed in ((20, 0), (3, 1))
        )
        head = Decoder3dHead(**LEARNING).fit(training, 2, overlapping=overlapping)
        assert mean_dice(head, training, 2) >= 0.98
        assert mean_dice(head, held_out, 2) >= 0.98
        flat = Linear2dHead(epochs=20, lr=0.05).fit(training, 2, overlapping=overlapping)
        assert mean_dice(flat, held_out, 2) < 0.6

    def test_what_is_not_there_is_not_learned(self) -> None:
        training, held_out = (
            MemoryCases(shuffled(patch_items(n, seed=seed, classes=3, n_rows=9, grid=(3, 5))))
            for n, seed in ((20, 0), (3, 1))
        )
        head = Decoder3dHead(**LEARNING).fit(training, 3)
        assert mean_dice(head, held_out, 3) < 0.42

    @pytest.mark.parametrize(
        ("levels", "telling"),
        [
            pytest.param((0, 0), 1, id="the-second-pass", marks=pytest.mark.long),
            pytest.param((0, 1, 2), 1, id="a-skip"),
        ],
    )
    def test_one_map_that_holds_the_answer(self, levels: tuple[int, ...], telling: int) -> None:
        channels = (9, 6, 8)[: len(levels)]
        others = tuple(number for number in range(len(levels)) if number != telling)

        def cases(n: int, seed: int) -> MemoryCases:
            items = patch_items(n, seed=seed, classes=2, n_rows=8, grid=(3, 5), channels=channels)
            return MemoryCases(later(blind(items, others), telling), levels=levels)

        made = {**LEARNING, "width": 8 * max(1, *levels), "stages": 1 + max(1, *levels)}
        training, held_out = cases(20, 0), cases(3, 1)
        head = Decoder3dHead(**made).fit(training, 2)
        assert mean_dice(head, training, 2) >= 0.98
        assert mean_dice(head, held_out, 2) >= 0.96

    def test_mixed_precision(self) -> None:
        training = MemoryCases(
            later(patch_items(20, classes=2, n_rows=5, grid=(3, 5), dtype="float16"))
        )
        with running_on(Place("cpu", "bf16")):
            head = Decoder3dHead(**{**LEARNING, "epochs": 16}).fit(training, 2)
            assert mean_dice(head, training, 2) >= 0.95
        assert all(array.dtype == np.float32 for array in head.weights_.values())

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    @pytest.mark.gpu
    def test_on_cuda(self) -> None:
        items = patch_items(20, classes=2, n_rows=5, channels=(9, 6), dtype="float16")
        training = MemoryCases(later(items), levels=(0, 1))
        once, again = (Decoder3dHead(**LEARNING).fit(training, 2) for _ in range(2))
        assert mean_dice(once, training, 2) >= 0.95
        for key, array in once.weights_.items():
            np.testing.assert_array_equal(array, again.weights_[key])


class TestEquations:
    cases = MemoryCases(
        patch_items(
            2,
            n_rows=3,
            channels=(5, 3, 4, 6),
            grids=((2, 3), (2, 3), (4, 6), (4, 6)),
            grid=(2, 3),
            patch=(5, 7),
            classes=2,
        ),
        levels=(2, 0, 0, 1),
    )

    def entering(self, head: Decoder3dHead, numbers: list[int], name: str) -> torch.Tensor:
        """Maps of one level through their 1x1 convolution: (rows, channels, height, width)."""
        ends = np.cumsum((0, 5, 3, 4, 6))
        brought = []
        for number in numbers:
            part = slice(ends[number], ends[number + 1])
            one = (self.cases.items[1].maps[number] - head.mean_[part]) / head.scale_[part]
            x = torch.from_numpy(one).permute(0, 3, 1, 2)
            grid = (4, 6) if len(numbers) > 1 else tuple(x.shape[2:])
            brought.append(functional.interpolate(x, grid, mode="bilinear"))
        weight, bias = (torch.from_numpy(head.weights_[f"{name}.{k}"]) for k in ("weight", "bias"))
        return functional.conv2d(torch.cat(brought, dim=1), weight[:, :, None, None], bias)

    def test_against_layers_of_torch(self) -> None:
        made = {**SMALL, "stages": 3, "foreground": 0.5}
        head = Decoder3dHead(**made).fit(self.cases, 2)
        w = {name: torch.from_numpy(array) for name, array in head.weights_.items()}
        inputs = (8, 8 + 4, 4 + 2)
        shapes = {"stem.weight": (8, 7), "stem.bias": (8,)}
        shapes |= {"skips.1.weight": (4, 6), "skips.1.bias": (4,)}
        shapes |= {"skips.2.weight": (2, 5), "skips.2.bias": (2,)}
        for n, (before, after) in enumerate(zip(inputs, (8, 4, 2), strict=True)):
            for layer, of in ((0, before), (3, after)):
                shapes[f"stages.{n}.{layer}.weight"] = (after, of, 3, 3, 3)
                for name in (f"{layer}.bias", f"{layer + 1}.weight", f"{layer + 1}.bias"):
                    shapes[f"stages.{n}.{name}"] = (after,)
        shapes |= {"last.weight": (3, 2, 1, 1, 1), "last.bias": (3,)}
        assert {name: tuple(one.shape) for name, one in w.items()} == shapes

        def in_plane(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
            return functional.interpolate(x, size, mode="bilinear", align_corners=False)

        x = self.entering(head, [1, 2], "stem")
        for n in range(3):
            size = (4 << n, 6 << n)
            x = in_plane(x, size)
            if n:
                skip = self.entering(head, [3] if n == 1 else [0], f"skips.{n}")
                x = torch.cat([x, in_plane(skip, size)], dim=1)
            volume = x.transpose(0, 1)[None]  # rows are the depth of one volume
            for layer in (0, 3):
                own = f"stages.{n}.{layer}"
                volume = functional.conv3d(volume, w[f"{own}.weight"], w[f"{own}.bias"], padding=1)
                mean = volume.mean((2, 3, 4), keepdim=True)
                variance = volume.var((2, 3, 4), correction=0, keepdim=True)
                norm = f"stages.{n}.{layer + 1}"
                scale, shift = (w[f"{norm}.{k}"][:, None, None, None] for k in ("weight", "bias"))
                volume = (volume - mean) / (variance + 1e-5).sqrt() * scale + shift
                volume = torch.where(volume > 0, volume, 0.01 * volume)
            x = volume[0].transpose(0, 1)
        x = functional.conv2d(x, w["last.weight"][..., 0], w["last.bias"])
        assert tuple(x.shape) == (3, 3, 16, 24)
        expected = in_plane(x, (10, 21)).softmax(1).transpose(0, 1)
        np.testing.assert_allclose(all_rows(head, self.cases, 1), expected, rtol=1e-3, atol=1e-5)

    def test_norms_start_as_the_identity(self) -> None:
        head = Decoder3dHead(**SMALL)
        network = head._network_of(MapKinds((5,), (0,)), 3)
        first = head._first_weights(network)
        assert list(first) == [name for name, _ in network.named_parameters()]
        assert (first["stages.1.4.weight"] == 1).all()
        assert (first["stages.1.4.bias"] == 0).all()
        drawn = first["stages.0.0.weight"]
        assert 0.9 < drawn.abs().max() * np.sqrt(8 * 27) <= 1

    def test_a_row_sees_eight_rows_to_either_side(self) -> None:
        (item,) = patch_items(1, n_rows=25, grid=(3, 2), channels=(5,), classes=2)
        head = Decoder3dHead(**{**SMALL, "stages": 4, "block_rows": 25})
        network = head.fit(MemoryCases([item]), 2)._ready(Place("cpu"))
        for module in network.modules():
            if isinstance(module, torch.nn.InstanceNorm3d):  # it sees all rows
                module.forward = lambda x: x  # type: ignore[method-assign]

        def middle(changed: int | None) -> Array:
            maps = item.maps[0][None].copy()
            if changed is not None:
                maps[0, changed] += 1
            with torch.inference_mode():
                logits: Array = network([torch.from_numpy(maps)], (6, 4))[0, :, 12].numpy()
            return logits

        seen = [row for row in range(25) if (middle(row) != middle(None)).any()]
        assert seen == list(range(4, 21))

    def test_the_default_is_the_size_that_is_said(self) -> None:
        network = Decoder3dHead()._network_of(MapKinds((1024, 1024), (0, 1)), 4)
        assert [stage[3].out_channels for stage in network.stages] == [128, 64, 32, 16]
        assert [stage[0].in_channels for stage in network.stages] == [128, 128 + 64, 64, 32]


class TestBlocks:
    def numbered(self, n_rows: tuple[int, ...], labelled: dict[int, list[int]]) -> MemoryCases:
        """Maps say which row of which item they are of; rows have labels where it is said."""
        items = []
        for number, n in enumerate(n_rows):
            value = 100 * number + np.arange(n)
            maps = np.broadcast_to(value[:, None, None, None], (n, 2, 3, 5)).astype(np.float32)
            labels = np.zeros((n, 4, 7), np.uint8)
            labels[labelled.get(number, []), 1, 2] = 1
            items.append(Item((maps,), labels))
        return MemoryCases(items)

    def batches(self, cases: MemoryCases, **others: Any) -> BlockBatches:  # noqa: ANN401
        drawing = Drawing(block_rows=6, batch_size=2, foreground=0, steps=None, seed=3)

        def read(piece: Piece) -> Array:
            return read_labels(cases, piece, 1, overlapping=False)

        return BlockBatches(cases, read, drawing._replace(**others))

    def blocks(self, batches: list[list[Group]]) -> list[tuple[int, int, int]]:
        """(Item, first row, rows) of each block."""
        found = []
        for batch in batches:
            for group in batch:
                rows = group.maps[0][:, :, 1, 2, 4].int().numpy()
                assert (np.diff(rows, axis=1) == 1).all()
                assert group.labels.shape == (len(rows), rows.shape[1], 4, 7)
                assert (rows // 100 == group.items[:, None]).all()
                found += [(row[0] // 100, row[0] % 100, len(row)) for row in rows.tolist()]
        return found

    def test_an_epoch_has_as_many_blocks_as_cover_each_item(self) -> None:
        cases = replace(self.numbered((20, 6, 1, 13), {}), views=(None, "hflip"))
        batches = self.batches(cases)
        first, second = (self.blocks(list(batches.epoch(n))) for n in (0, 1))
        assert batches.n_batches == 9
        for found in (first, second):
            count = [[one[0] for one in found].count(item) for item in range(4)]
            assert count == [8, 2, 2, 6]
            assert {one[2] for one in found if one[0] != 2} == {6}
            assert {one[1:] for one in found if one[0] == 2} == {(0, 1)}
            assert all(start + n <= cases.n_rows(item) for item, start, n in found)
        assert first != second
        assert self.blocks(list(self.batches(cases).epoch(1))) == second
        views = [one[4] for one in cases.reads if one[0] == "maps"]
        assert views.count(None) == views.count("hflip") == 3 * 9

    def test_first_rows_are_drawn_evenly(self) -> None:
        batches = self.batches(self.numbered((9,), {}), steps=500)
        starts = [one[1] for one in self.blocks(list(batches.epoch(0)))]
        assert np.bincount(starts) == pytest.approx([250] * 4, rel=0.2)

    def test_steps_draw_items_by_their_rows(self) -> None:
        batches = self.batches(self.numbered((60, 20), {}), steps=200)
        assert batches.n_batches == 200
        found = self.blocks(list(batches.epoch(4)))
        assert len(found) == 400
        assert [one[0] for one in found].count(0) == pytest.approx(300, abs=30)

    @pytest.mark.parametrize("foreground", [0, 0.5, 1])
    def test_a_share_of_blocks_is_around_a_row_with_a_label(self, foreground: float) -> None:
        cases = self.numbered((90, 40), {0: [0, 50, 89]})
        batches = self.batches(cases, steps=200, foreground=foreground)
        found = [one for one in self.blocks(list(batches.epoch(0))) if one[0] == 0]
        around = [any(start <= row < start + n for row in (0, 50, 89)) for _, start, n in found]
        by_chance = (6 + 1 + 1) / 85
        assert np.mean(around) == pytest.approx(
            foreground + (1 - foreground) * by_chance, abs=0.1 if foreground < 1 else 0
        )
        if foreground == 1:
            assert {start for _, start, _ in found} == {0, 84, *range(45, 51)}
        # Labels are looked through once, as they are needed, a piece at a time.
        searched = [one for one in cases.reads if one[0] == "labels" and one[2] % 8 == 0]
        n_labels = len([one for one in cases.reads if one[0] == "labels"])
        assert n_labels == 400 + (foreground > 0) * (12 + 5)
        assert len(searched) >= (foreground > 0) * 17
        cases.reads.clear()
        list(batches.epoch(1))
        assert len([one for one in cases.reads if one[0] == "labels"]) == 400

    def test_in_order(self) -> None:
        batches = self.batches(self.numbered((13, 6, 1), {}))
        found = self.blocks(list(batches.in_order()))
        assert found == [(0, 0, 4), (0, 4, 4), (0, 8, 5), (1, 0, 6), (2, 0, 1)]

    def test_blocks_of_unlike_sizes_are_groups(self) -> None:
        batches = self.batches(self.numbered((13, 2), {}), batch_size=9)
        (batch,) = batches.epoch(0)
        assert sorted(tuple(one.labels.shape) for one in batch) == [(1, 2, 4, 7), (3, 6, 4, 7)]


class TestPredicting:
    fitted = Decoder3dHead(**SMALL, overlap=0.5).fit(small_task(), CLASSES)

    @pytest.mark.parametrize(
        ("n_rows", "overlap", "expected"),
        [
            (1, 0.5, [0]),
            (3, 0.5, [0]),
            (4, 0.5, [0]),
            (5, 0.5, [0, 1]),
            (10, 0.5, [0, 2, 4, 6]),
            (10, 0, [0, 4, 6]),
            (7, 0.99, [0, 1, 2, 3]),
        ],
    )
    def test_where_blocks_begin(self, n_rows: int, overlap: float, expected: list[int]) -> None:
        assert starts_of(n_rows, 4, overlap) == expected

    @pytest.mark.parametrize("n_rows", [1, 3, 4, 5, 10])
    @pytest.mark.parametrize("overlap", [0, 0.5, 0.8])
    def test_each_row_comes_once_and_is_averaged(self, n_rows: int, overlap: float) -> None:
        """Against all blocks in memory, weighed by hand."""
        head = Decoder3dHead.from_arrays(
            {**self.fitted.get_params(), "overlap": overlap}, self.fitted.to_arrays()
        )
        cases = small_task(n_rows=(2, n_rows))
        network, size = head._ready(Place("cpu")), min(4, n_rows)
        maps = torch.from_numpy(cases.items[1].maps[0])
        middle, sigma = (size - 1) / 2, size / 8
        gauss = [max(np.exp(-(((k - middle) / sigma) ** 2) / 2), 1e-4) for k in range(size)]
        sums, total = np.zeros((3, n_rows, 10, 14)), np.zeros(n_rows)
        for start in starts_of(n_rows, 4, overlap):
            with torch.inference_mode():
                logits = network([maps[None, start : start + size]], (10, 14))[0].numpy()
            for k in range(size):
                sums[:, start + k] += gauss[k] * logits[:, k]
                total[start + k] += gauss[k]
        expected = torch.from_numpy(sums / total[:, None, None]).softmax(0)
        np.testing.assert_allclose(all_rows(head, cases, 1), expected, rtol=1e-4, atol=1e-6)

    def test_rows_that_are_done_come_at_once(self) -> None:
        cases = small_task(n_rows=(2, 11, 1))
        firsts = []
        for first, scores in self.fitted.predict(cases, 1):
            read = [one for one in cases.reads if one[0] == "maps"]
            assert len(read) <= len(firsts) + 2  # one ahead
            assert all(stop - start <= 4 for _, _, start, stop, _ in read)
            firsts.append((first, scores.shape[1]))
        assert firsts == [(0, 2), (2, 2), (4, 2), (6, 1), (7, 4)]
        assert readers() == []

    def test_what_comes_at_the_labels_size_is_bounded(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cases = small_task(n_rows=(2, 11, 1))
        whole = all_rows(self.fitted, cases, 1)
        row_bytes = 3 * 4 * 3 * 10 * 14
        for rows, most in ((3, 3), (0.5, 1)):
            monkeypatch.setattr(dense_blocks_head, "_OUTPUT_BYTES", int(rows * row_bytes))
            assert max(one.shape[1] for _, one in self.fitted.predict(cases, 1)) == most
            np.testing.assert_allclose(all_rows(self.fitted, cases, 1), whole, rtol=1e-5)

    def test_what_is_held_is_what_is_not_done(self) -> None:
        blend, ones = Blend(), torch.ones((2, 6, 3, 5))
        np.testing.assert_allclose(blend.add(ones, 4), ones[:, :4])
        assert blend._sums is not None
        assert blend._sums.untyped_storage().nbytes() == 2 * 2 * 3 * 5 * 4
        assert blend.add(ones, 6).shape == (2, 6, 3, 5)
        assert blend._sums.numel() == 0


class StoppedError(Exception):
    """What ends a fit in the middle."""


class TestCheckpoint:
    held = small_task(seed=7)

    # 8 reads before the first epoch; 2 for each of 5 blocks of an epoch, 4 to find labels.
    @pytest.mark.parametrize("reads", [22, 36])
    @pytest.mark.parametrize(
        "made",
        [
            pytest.param({}, id="plain"),
            pytest.param({"patience": 3, "warmup": 2}, id="patience"),
            pytest.param({"steps": 3, "foreground": 1}, id="steps"),
        ],
    )
    def test_an_interrupted_fit_ends_in_the_same_bits(
        self, tmp_path: Path, reads: int, made: dict[str, Any]
    ) -> None:
        made, file = {**SMALL, "epochs": 4, **made}, tmp_path / "fit"

        def stop(cases: MemoryCases) -> None:
            if len(cases.reads) > reads:
                raise StoppedError

        expected = Decoder3dHead(**made).fit(small_task(), CLASSES, validation=self.held)
        head = Decoder3dHead(**made)
        stopping = MemoryCases(small_task().items, before_read=stop)
        with pytest.raises(StoppedError):
            head.fit(stopping, CLASSES, validation=self.held, checkpoint=file)
        assert readers() == []
        assert file.exists()
        rest = small_task()
        head.fit(rest, CLASSES, validation=self.held, checkpoint=file)
        for name, array in expected.to_arrays().items():
            np.testing.assert_array_equal(head.to_arrays()[name], array)
        again = small_task()
        head.fit(again, CLASSES, validation=self.held, checkpoint=file)
        assert len(again.reads) == 8 < len(rest.reads)

    def test_one_of_other_levels_is_refused(self, tmp_path: Path) -> None:
        items = small_task(channels=(5, 4)).items
        head, file = Decoder3dHead(**{**SMALL, "epochs": 1}), tmp_path / "fit"
        head.fit(MemoryCases(items, levels=(0, 1)), CLASSES, checkpoint=file)
        for levels in ((1, 0), (0, 0)):
            with pytest.raises(
                ValueError, match=r"of another fit: it differs in .*(levels|its parts)"
            ):
                head.fit(MemoryCases(items, levels=levels), CLASSES, checkpoint=file)


class TestLevels:
    items = small_task(channels=(5, 4)).items

    def cases(self, *levels: int) -> MemoryCases:
        return MemoryCases(self.items, levels=levels)

    @pytest.mark.parametrize(
        ("levels", "message"),
        [
            ((0, 2), r"levels 1 to 1 are taken by 2 stages, got the level 2; .* set stages=3"),
            ((1, 1), r"some the level 0, that of the last layer; got the levels \(1, 1\)"),
            ((0, -1), r"some the level 0"),
            ((0,), r"each of 2 maps needs a level"),
        ],
    )
    def test_levels_that_cannot_be_taken(self, levels: tuple[int, ...], message: str) -> None:
        cases = self.cases(*levels)
        with pytest.raises(ValueError, match=message):
            Decoder3dHead(**SMALL).fit(cases, CLASSES)
        assert cases.reads == []

    def test_they_are_saved_and_asked_for(self) -> None:
        head = Decoder3dHead(**SMALL).fit(self.cases(1, 0), CLASSES)
        restored = Decoder3dHead.from_arrays(head.get_params(), head.to_arrays())
        np.testing.assert_array_equal(
            all_rows(restored, self.cases(1, 0), 1), all_rows(head, self.cases(1, 0), 1)
        )
        with pytest.raises(ValueError, match=r"maps of the levels \(1, 0\), got \(0, 1\)"):
            head.predict(self.cases(0, 1), 1)
        for levels in ((0, 2), (0,), (1, 1)):
            arrays = {**head.to_arrays(), "levels": np.array(levels)}
            with pytest.raises(ValueError, match="array levels of a Decoder3dHead of 2 stages"):
                Decoder3dHead.from_arrays(head.get_params(), arrays)

    def test_those_of_validation_are_the_same(self) -> None:
        head = Decoder3dHead(**SMALL, patience=1)
        with pytest.raises(ValueError, match=r"maps of the levels \(0, 1\); got \(1, 0\)"):
            head.fit(self.cases(0, 1), CLASSES, validation=self.cases(1, 0))

    def test_heads_of_rows_do_not_look_at_them(self) -> None:
        found = [
            all_rows(Linear2dHead(epochs=1).fit(cases, CLASSES), self.cases(0, 0), 1)
            for cases in (self.cases(0, 1), self.cases(0, 0))
        ]
        np.testing.assert_array_equal(*found)


def test_the_score_is_the_mean_dice_of_items_then_of_classes() -> None:
    held = small_task(seed=7, n_rows=(4, 3, 2))
    held.items[0].labels[...] = 0  # that item has no truth of any class
    head = Decoder3dHead(**SMALL, patience=1).fit(small_task(), CLASSES, validation=held)
    dice = np.full((3, CLASSES), np.nan)
    for item in range(3):
        found, truth = all_rows(head, held, item).argmax(0), held.items[item].labels
        for n in range(CLASSES):
            one, other = found == 1 + n, truth == 1 + n
            if one.any() or other.any():
                dice[item, n] = 2 * (one & other).sum() / (one.sum() + other.sum())
    score = head.validation_curve_[head.best_epoch_]
    assert score == pytest.approx(np.nanmean(dice, axis=0).mean(), abs=1e-3)


def test_views_are_as_turned_copies() -> None:
    items = patch_items(2, n_rows=(4, 9), classes=2, channels=(5,))
    turned = [one.turned(axis) for axis in (1, 0) for one in items]
    made = {**SMALL, "foreground": 0.7}
    views, copies, plain = (
        Decoder3dHead(**made).fit(cases, 2).to_arrays()
        for cases in (
            MemoryCases(items, views=(None, "hflip", "vflip")),
            MemoryCases([*items, *turned]),
            MemoryCases(items),
        )
    )
    for key, array in views.items():
        np.testing.assert_array_equal(array, copies[key])
    assert any((array != plain[key]).any() for key, array in views.items())


def test_what_cannot_be_used_is_named() -> None:
    bad = small_task()
    bad.items[1].labels[9, 2, 3] = 3
    with pytest.raises(ValueError, match="item 1, row 9: labels must be 0 to 2, got 3"):
        Decoder3dHead(**SMALL).fit(bad, CLASSES)
    assert readers() == []


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ({"width": 12}, "width must be a multiple of 8 to be halved in 4 stages, got 12"),
        ({"stages": 0}, "stages must be at least 1"),
        ({"block_rows": 0}, "block_rows must be at least 1"),
        ({"overlap": 1.0}, "overlap must be at least 0 and less than 1, got 1.0"),
        ({"overlap": -0.1}, "overlap must be at least 0"),
        ({"foreground": 1.1}, "foreground must be 0 to 1"),
        ({"foreground": float("nan")}, "foreground must be 0 to 1"),
        ({"steps": 0}, "steps must be at least 1, or none"),
        (
            {"epochs": 10, "warmup": 10},
            r"warmup must be at least 0 and less than epochs \(10\), got 10",
        ),
        ({"lr": 0}, "lr must be above 0"),
    ],
)
def test_settings_out_of_range(made: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Decoder3dHead(**made)


def test_nothing_heavy_is_imported_before_it_trains() -> None:
    script = (
        "import sys; from probes.heads import make_dense_head;"
        "make_dense_head('decoder3d'); make_dense_head('affinity');"
        "sys.exit(bool({'torch', 'skimage', 'waterz', 'scipy'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
