"""What a row is said to cost, against what is counted."""

import dataclasses
from functools import cache

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dinocache.cost import activation_bytes, default_batch, gflop, weight_bytes
from dinocache.encoders import ENCODERS, encoder_spec
from dinocache.networks import Network, build_network, wanted
from dinocache.spec import EncoderSpec

GB = 1e9
COUNTED = [spec for spec in ENCODERS if spec.network != "volume"]
NOT_ON_SMALL_DEVICES = ("dinov3-7b", "dinov3-7b-sat")

every_row = pytest.mark.parametrize("spec", ENCODERS, ids=lambda spec: spec.name)


@cache
def on_meta(name: str) -> Network:
    """Build a network of the table without memory."""
    with torch.device("meta"):
        return build_network(encoder_spec(name)).requires_grad_(False)


def resolutions(spec: EncoderSpec) -> list[tuple[int, int]]:
    """Give the smallest size, the native one, and one that is no square."""
    step, native = spec.step_px, spec.native_px
    return [(step, step), (native, native), (3 * native // step * step, native)]


class TestGflop:
    @pytest.mark.parametrize("spec", COUNTED, ids=lambda spec: spec.name)
    def test_what_torch_counts(self, spec: EncoderSpec) -> None:
        # Of the 29 tokens at tiny's native size five are no patches, which an estimate leaves out.
        side = 10 * spec.native_px if spec.name == "tiny" else spec.native_px
        resolution = (side, side + 2 * spec.step_px)
        pixels = torch.empty(1, spec.channels, *resolution, device="meta")
        network = on_meta(spec.name)
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            network(pixels, wanted(spec.kinds))
        estimate = gflop(spec, resolution)
        assert estimate == pytest.approx(counter.get_total_flops() / 1e9, rel=0.03)

    def test_swapped_sides_cost_the_same(self) -> None:
        for spec in COUNTED:
            height, width = 3 * spec.step_px, 5 * spec.step_px
            assert gflop(spec, (height, width)) == pytest.approx(gflop(spec, (width, height)))

    def test_what_is_not_known(self) -> None:
        assert gflop(encoder_spec("anatomix"), (32, 48)) is None
        clip = dataclasses.replace(encoder_spec("dinov3-s"), network="open-clip")
        assert gflop(clip, (32, 48)) is None


class TestBytes:
    @every_row
    def test_params_are_those_of_the_network(self, spec: EncoderSpec) -> None:
        found = sum(parameter.numel() for parameter in on_meta(spec.name).parameters())
        assert found == spec.params
        assert weight_bytes(spec) == 4 * found

    @every_row
    def test_activations_grow_with_the_row(self, spec: EncoderSpec) -> None:
        sizes = [activation_bytes(spec, resolution) for resolution in resolutions(spec)]
        assert 0 < sizes[0] < sizes[1] < sizes[2]
        height, width = 3 * spec.step_px, 5 * spec.step_px
        largest = max(
            (spec.layer_shape(n) for n in range(spec.depth)), key=lambda s: s[1] / s[0] ** 2
        )
        one_map = 4 * largest[1] * (height // largest[0]) * (width // largest[0])
        assert activation_bytes(spec, (height, width)) > 2 * one_map


class TestDefaultBatch:
    @every_row
    def test_a_power_of_two_that_fits(self, spec: EncoderSpec) -> None:
        for resolution in resolutions(spec):
            batch = default_batch(spec, resolution)
            assert batch in [1 << n for n in range(9)]
            rows = batch * activation_bytes(spec, resolution)
            if spec.name not in NOT_ON_SMALL_DEVICES and batch > 1:
                assert weight_bytes(spec) + rows <= 8 * GB

    @every_row
    def test_one_row_fits_at_the_native_size(self, spec: EncoderSpec) -> None:
        if spec.name not in NOT_ON_SMALL_DEVICES:
            row = activation_bytes(spec, (spec.native_px, spec.native_px))
            assert weight_bytes(spec) + row <= 8 * GB

    @every_row
    def test_more_memory_never_gives_a_smaller_batch(self, spec: EncoderSpec) -> None:
        for resolution in resolutions(spec):
            batches = [
                default_batch(spec, resolution, memory_bytes=memory * GB)
                for memory in (0.5, 2, 4, 8, 12, 16, 24, 40, 80, 141)
            ]
            assert batches == sorted(batches)
            assert batches[0] >= 1
            assert batches[-1] <= 256
            assert default_batch(spec, resolution) == batches[3]

    def test_larger_rows_never_give_a_larger_batch(self) -> None:
        for spec in ENCODERS:
            batches = [default_batch(spec, resolution) for resolution in resolutions(spec)]
            assert batches == sorted(batches, reverse=True)

    def test_memory_decides_where_it_is_scarce(self) -> None:
        spec = encoder_spec("resnet50")
        few, many = (
            default_batch(spec, (512, 640), memory_bytes=memory * GB) for memory in (3, 80)
        )
        assert few < many

    @pytest.mark.parametrize("name", NOT_ON_SMALL_DEVICES)
    def test_what_does_not_fit_is_planned_for_a_larger_device(self, name: str) -> None:
        spec = encoder_spec(name)
        assert weight_bytes(spec) > 8 * GB
        for resolution in resolutions(spec):
            batch = default_batch(spec, resolution)
            assert batch == 1 or batch * activation_bytes(spec, resolution) <= 2 * GB
