"""The heads `linear2d` and `decoder2d`: what they compute, and that they learn it."""

import subprocess
import sys
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest
import torch
from dense_cases import Item, MemoryCases, patch_items, shuffled
from dense_contract import CLASSES, DenseContract, all_rows, small_task
from torch.nn import functional

from probes.heads import dense_head
from probes.heads.decoder2d import Decoder2dHead
from probes.heads.dense_head import DenseRowsHead
from probes.heads.dense_networks import resize, resize_by_products
from probes.heads.device import Place, choose_place, running_on
from probes.heads.linear2d import Linear2dHead

Array = npt.NDArray[Any]
Precision = Literal["bf16", "fp16"]
HEADS = {
    "linear2d": lambda **others: Linear2dHead(**{"lr": 0.05, "epochs": 40, **others}),
    "decoder2d": lambda **others: Decoder2dHead(
        **{"width": 32, "blocks": 2, "lr": 0.01, "epochs": 40, **others}
    ),
}


class TestLinearContract(DenseContract):
    name = "linear2d"
    settings = {"epochs": 2, "lr": 0.01}  # noqa: RUF012


class TestDecoderContract(DenseContract):
    name = "decoder2d"
    settings = {"width": 8, "blocks": 2, "epochs": 2, "lr": 0.01}  # noqa: RUF012


class TestDecoderContractWithPatience(DenseContract):
    name = "decoder2d"
    settings = {"width": 4, "blocks": 1, "epochs": 3, "lr": 0.01, "patience": 1}  # noqa: RUF012


def masks_of(labels: Array, classes: int) -> Array:
    return labels if labels.dtype == bool else np.stack([labels == 1 + n for n in range(classes)])


def mean_dice(head: DenseRowsHead, cases: MemoryCases, classes: int) -> float:
    """Dice of each class over all pixels of all items; the mean over classes."""
    both, sizes = np.zeros(classes), np.zeros(classes)
    for item in range(len(cases)):
        found, truth = all_rows(head, cases, item), cases.items[item].labels
        hard = found > 0.5 if truth.dtype == bool else masks_of(found.argmax(0), classes)
        truth = masks_of(truth, classes)
        both += (hard & truth).sum((1, 2, 3))
        sizes += hard.sum((1, 2, 3)) + truth.sum((1, 2, 3))
    return float((2 * both / sizes).mean())


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("overlapping", [False, True])
def test_what_features_hold_is_learned_and_what_they_do_not_is_not(
    name: str, *, overlapping: bool
) -> None:
    made = {"classes": 3, "overlapping": overlapping}
    training = MemoryCases(patch_items(24, **made))
    held_out = MemoryCases(patch_items(9, seed=1, **made))
    head = HEADS[name]().fit(training, 3, overlapping=overlapping)
    assert mean_dice(head, training, 3) >= 0.98
    assert mean_dice(head, held_out, 3) >= 0.95
    assert head.loss_curve_[-1] < 0.2 * head.loss_curve_[0]

    training, held_out = (MemoryCases(shuffled(one.items)) for one in (training, held_out))
    blind = HEADS[name]().fit(training, 3, overlapping=overlapping)
    # One of four labels has a chance of 0.25 to 0.4; all masks, with 0.4 of the pixels each, 0.57.
    assert mean_dice(blind, held_out, 3) < (0.6 if overlapping else 0.42)


@pytest.mark.parametrize("name", HEADS)
def test_rows_of_different_sizes_and_grids(name: str) -> None:
    made = {"classes": 2, "channels": (7,)}
    kinds = [((5, 7), (2, 2)), ((6, 4), (1, 2)), ((3, 8), (3, 1))]
    items = [
        patch_items(8, grid=grid, patch=patch, seed=n, **made)
        for n, (grid, patch) in enumerate(kinds)
    ]
    training = MemoryCases([one for some in zip(*items, strict=True) for one in some])
    head = HEADS[name](epochs=25).fit(training, 2)
    assert [all_rows(head, training, n).shape[2:] for n in range(3)] == [(10, 14), (6, 8), (9, 8)]
    assert mean_dice(head, training, 2) >= 0.93


class TestEquations:
    """Against torch's own layers, on maps that stand channels first."""

    cases = MemoryCases(
        patch_items(2, n_rows=3, channels=(5, 3), grids=((2, 3), (4, 6)), grid=(2, 3), classes=2)
    )
    size = (4, 6)

    def standardised(self, head: DenseRowsHead) -> torch.Tensor:
        """Both maps (rows, 8, 4, 6), brought to the largest grid and concatenated."""
        maps = [torch.from_numpy(one.transpose(0, 3, 1, 2)) for one in self.cases.items[1].maps]
        brought = [functional.interpolate(one, (4, 6), mode="bilinear") for one in maps]
        mean, scale = (torch.from_numpy(a)[:, None, None] for a in (head.mean_, head.scale_))
        return (torch.cat(brought, dim=1) - mean) / scale

    @pytest.mark.parametrize("standardize", [False, True])
    def test_linear(self, *, standardize: bool) -> None:
        head = Linear2dHead(epochs=3, lr=0.1, standardize=standardize).fit(self.cases, 2)
        weights = {name: torch.from_numpy(array) for name, array in head.weights_.items()}
        logits = functional.conv2d(
            self.standardised(head), weights["stem.weight"][:, :, None, None], weights["stem.bias"]
        )
        expected = logits.softmax(1).transpose(0, 1)
        np.testing.assert_allclose(all_rows(head, self.cases, 1), expected, rtol=1e-4, atol=1e-6)

    def test_decoder(self) -> None:
        head = Decoder2dHead(width=16, blocks=2, epochs=3, lr=0.01).fit(self.cases, 2)
        w = {name: torch.from_numpy(array) for name, array in head.weights_.items()}
        assert {name: tuple(one.shape) for name, one in w.items()} == {
            "stem.weight": (16, 8),
            "stem.bias": (16,),
            "blocks.0.0.weight": (16, 16, 3, 3),
            "blocks.0.0.bias": (16,),
            "blocks.0.1.weight": (16,),
            "blocks.0.1.bias": (16,),
            "blocks.1.0.weight": (8, 16, 3, 3),
            "blocks.1.0.bias": (8,),
            "blocks.1.1.weight": (8,),
            "blocks.1.1.bias": (8,),
            "last.weight": (3, 8, 1, 1),
            "last.bias": (3,),
        }
        x = functional.conv2d(
            self.standardised(head), w["stem.weight"][:, :, None, None], w["stem.bias"]
        )
        for n, groups in ((0, 16), (1, 8)):
            x = functional.conv2d(x, w[f"blocks.{n}.0.weight"], w[f"blocks.{n}.0.bias"], padding=1)
            norm = w[f"blocks.{n}.1.weight"], w[f"blocks.{n}.1.bias"]
            x = functional.gelu(functional.group_norm(x, groups, *norm))
            x = functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        assert x.shape[2:] == (16, 24)
        x = functional.conv2d(x, w["last.weight"], w["last.bias"])
        size = self.cases.size(1)
        x = functional.interpolate(x, size, mode="bilinear", align_corners=False)
        expected = x.softmax(1).transpose(0, 1)
        np.testing.assert_allclose(all_rows(head, self.cases, 1), expected, rtol=1e-3, atol=1e-5)

    def test_statistics_of_the_maps(self) -> None:
        head = Linear2dHead(epochs=1).fit(self.cases, 2)
        patches = [
            np.concatenate([item.maps[n].reshape(-1, width) for item in self.cases.items])
            for n, width in enumerate((5, 3))
        ]
        mean = np.concatenate([one.mean(0, dtype=np.float64) for one in patches])
        std = np.concatenate([one.std(0, dtype=np.float64) for one in patches])
        np.testing.assert_allclose(head.mean_, mean, rtol=1e-6)
        np.testing.assert_allclose(head.scale_, std, rtol=1e-5)

    def test_a_channel_that_never_varies_is_divided_by_one(self) -> None:
        items = patch_items(3, channels=(5,), classes=2)
        for item in items:
            item.maps[0][..., 2] = 7.7
        head = Linear2dHead(epochs=1).fit(MemoryCases(items), 2)
        assert (head.mean_[2], head.scale_[2]) == (np.float32(7.7), 1)

    def test_the_default_decoder_is_the_size_that_is_said(self) -> None:
        network = Decoder2dHead()._network((1024,), 8)
        assert [block[0].out_channels for block in network.blocks] == [256, 128, 64]
        assert sum(one.numel() for one in network.parameters()) == 1_222_728


def test_one_pixel_survives_where_patches_are_pixels() -> None:
    draws = np.random.default_rng(3)

    def item() -> Item:
        labels = np.zeros((2, 9, 13), np.uint8)
        labels[0, draws.integers(9), draws.integers(13)] = 1
        noise = 0.05 * draws.standard_normal((2, 9, 13, 3))
        return Item(((labels[..., None] + noise).astype(np.float32),), labels)

    training, held_out = (MemoryCases([item() for _ in range(n)]) for n in (12, 5))
    head = Linear2dHead(lr=0.1, epochs=60).fit(training, 1)
    for number, one in enumerate(held_out.items):
        np.testing.assert_array_equal(all_rows(head, held_out, number).argmax(0), one.labels)


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("overlapping", [False, True])
def test_views_are_as_turned_copies(name: str, *, overlapping: bool) -> None:
    made = {"classes": 2, "channels": (5, 4), "overlapping": overlapping}
    items = patch_items(3, n_rows=(2, 9, 1), **made)
    turned = [one.turned(axis) for axis in (1, 0) for one in items]
    heads = [
        HEADS[name](epochs=2, batch_size=4).fit(cases, 2, overlapping=overlapping)
        for cases in (
            MemoryCases(items, views=(None, "hflip", "vflip")),
            MemoryCases([*items, *turned]),
            MemoryCases(items),
        )
    ]
    views, copies, plain = (one.to_arrays() for one in heads)
    for key, array in views.items():
        np.testing.assert_array_equal(array, copies[key])
    assert any((array != plain[key]).any() for key, array in views.items())


def test_blocks_of_predictions_are_bounded_by_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = small_task()
    head = Decoder2dHead(width=8, blocks=2, epochs=1).fit(cases, CLASSES)
    whole = all_rows(head, cases, 1)
    assert [first for first, _ in head.predict(cases, 1)] == [0, 8]
    # Three numbers of 4 bytes for each of 3 x 10 x 14 pixels, and for 35 patches of 64 values.
    row_bytes = 3 * 4 * (3 * 10 * 14 + 35 * 64)
    for rows, firsts in ((3, [0, 3, 6, 8]), (0.5, list(range(11)))):
        monkeypatch.setattr(dense_head, "_BLOCK_BYTES", int(rows * row_bytes))
        assert [first for first, _ in head.predict(cases, 1)] == firsts
        np.testing.assert_allclose(all_rows(head, cases, 1), whole, rtol=1e-4, atol=1e-6)


class TestPlaces:
    def test_the_cpu_in_float32_unless_there_is_cuda(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert choose_place() == Place("cpu", "fp32")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        for native, precision in ((True, "bf16"), (False, "fp16")):
            monkeypatch.setattr(
                torch.cuda, "is_bf16_supported", lambda *, native=native, **_: native
            )
            assert choose_place() == Place("cuda", precision)
        with running_on(Place("cpu", "bf16")):
            assert choose_place() == Place("cpu", "bf16")
        assert choose_place().kind == "cuda"

    @pytest.mark.parametrize("precision", ["bf16", "fp16"])
    @pytest.mark.parametrize("name", HEADS)
    def test_mixed_precision_learns(self, name: str, precision: Precision) -> None:
        training = MemoryCases(patch_items(16, classes=2, dtype="float16"))
        with running_on(Place("cpu", precision)):
            head = HEADS[name](epochs=15).fit(training, 2)
            assert mean_dice(head, training, 2) >= 0.93
        assert all(array.dtype == np.float32 for array in head.weights_.values())
        in_full = HEADS[name](epochs=15).fit(training, 2)
        assert any((in_full.weights_[key] != one).any() for key, one in head.weights_.items())

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    @pytest.mark.gpu
    @pytest.mark.parametrize("name", HEADS)
    def test_on_cuda(self, name: str) -> None:
        training = MemoryCases(patch_items(16, classes=2, dtype="float16"))
        once, again = (HEADS[name](epochs=15).fit(training, 2) for _ in range(2))
        assert mean_dice(once, training, 2) >= 0.93
        for key, array in once.weights_.items():
            np.testing.assert_array_equal(array, again.weights_[key])


@pytest.mark.parametrize(("size", "to"), [((5, 7), (10, 14)), ((6, 4), (17, 9)), ((9, 8), (4, 3))])
def test_products_interpolate_as_torch_does(size: tuple[int, int], to: tuple[int, int]) -> None:
    draws = np.random.default_rng(2)
    x = torch.from_numpy(draws.standard_normal((2, 3, *size)).astype(np.float32))
    pull = torch.from_numpy(draws.standard_normal((2, 3, *to)).astype(np.float32))
    found = []
    for function in (resize, resize_by_products):
        leaf = x.clone().requires_grad_()
        y = function(leaf, to)
        (y * pull).sum().backward()
        found.append((y.detach(), leaf.grad))
    expected = functional.interpolate(x, to, mode="bilinear", align_corners=False)
    np.testing.assert_array_equal(found[0][0], expected)
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ({"lr": 0}, "lr must be above 0, got 0"),
        ({"weight_decay": -1}, "weight_decay must be at least 0"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"warmup": 50}, r"warmup must be at least 0 and less than epochs \(50\), got 50"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"patience": 0}, "patience must be at least 1, or none"),
        ({"seed": -1}, "seed must be at least 0"),
    ],
)
def test_settings_out_of_range(made: dict[str, Any], message: str) -> None:
    for head in (Linear2dHead, Decoder2dHead):
        with pytest.raises(ValueError, match=message):
            head(**made)


@pytest.mark.parametrize("made", [{"width": 6, "blocks": 3}, {"width": 0}, {"blocks": 0}])
def test_widths_that_cannot_be_halved(made: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"(width|blocks) must be"):
        Decoder2dHead(**made)


def test_torch_is_not_imported_before_it_trains() -> None:
    script = (
        "import sys; from probes.heads import decoder2d, linear2d, device, losses;"
        "decoder2d.Decoder2dHead(); linear2d.Linear2dHead(); sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
