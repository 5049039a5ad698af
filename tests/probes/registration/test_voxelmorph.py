"""VoxelMorph: each piece against another implementation, and pairs that it learns to register."""

import itertools
import json
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.numpy import load, save
from scipy.linalg import expm
from scipy.ndimage import gaussian_filter, map_coordinates
from torch.nn import functional

from probes.heads.dense_training import Reached, telling
from probes.heads.device import Place, running_on
from probes.registration import voxelmorph, voxelmorph_network
from probes.registration.voxelmorph import PairSource, VoxelMorph
from probes.registration.voxelmorph_settings import Kind, VoxelMorphSettings

Array = npt.NDArray[Any]
GRIDS: dict[int, tuple[int, ...]] = {2: (24, 40), 3: (12, 24, 20)}
SMALL: dict[str, Any] = {"encoder": (6, 8), "decoder": (8, 8, 8, 6), "lr": 0.01, "epochs": 3}


@dataclass
class Pairs:
    """Pairs in memory, and in which order they were read."""

    fixed: list[Array]
    moving: list[Array]
    described: list[tuple[Array, Array]] | None = None
    before_read: Callable[[int], None] = lambda _: None
    reads: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.fixed)

    def images(self, pair: int) -> tuple[Array, Array]:
        self.reads.append(pair)
        self.before_read(pair)
        return self.fixed[pair], self.moving[pair]

    def features(self, pair: int) -> tuple[Array, Array] | None:
        return None if self.described is None else self.described[pair]


def sampled(image: Array, u: Array, order: int = 1) -> Array:
    """The image at x + u, beyond it its edge's values: by SciPy."""
    at = np.indices(image.shape) + u
    found: Array = map_coordinates(image, at, order=order, mode="nearest")
    return found


def smooth_pairs(
    axes: int,
    n: int = 4,
    *,
    seed: int = 0,
    channels: int = 0,
    grid: tuple[int, ...] | None = None,
) -> Pairs:
    """Random blobs, and the same moved by a smooth field of up to 3 voxels."""
    rng, grid = np.random.default_rng(seed), grid or GRIDS[axes]
    fixed, moving, described = [], [], []
    for _ in range(n):
        image = gaussian_filter(rng.normal(size=grid), 2.0)
        image = ((image - image.min()) / np.ptp(image)).astype(np.float32)
        at = np.indices(grid) / np.array(grid).reshape(-1, *[1] * axes)
        window = np.prod(np.sin(np.pi * at) ** 0.5, axis=0)
        shift = np.array([1.5, -2.5, 3.0][-axes:]).reshape(-1, *[1] * axes)
        u = shift * window
        moving.append(image)
        fixed.append(sampled(image, u).astype(np.float32))
        if channels:
            stack = np.stack([gaussian_filter(image, one) for one in range(channels)])
            warped = np.stack([sampled(one, u) for one in stack])
            described.append((warped.astype(np.float32), stack.astype(np.float32)))
    return Pairs(fixed, moving, described or None)


def correlation(one: Array, other: Array) -> float:
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])


def dice(one: Array, other: Array) -> float:
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


def jacobian(u: Array) -> Array:
    """Determinants of x + u."""
    axes = len(u)
    slopes = np.stack([np.stack(np.gradient(component)) for component in u])
    whole = np.moveaxis(slopes, (0, 1), (-2, -1)) + np.eye(axes)
    found: Array = np.linalg.det(whole)
    return found


def tensor(array: Array) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, np.float32))


class TestSettings:
    def test_defaults_are_those_of_the_method(self) -> None:
        made = VoxelMorphSettings()
        assert made.encoder == (16, 32, 32, 32)
        assert made.decoder == (32, 32, 32, 32, 32, 16, 16)
        assert (made.int_steps, made.image_loss, made.window) == (7, "ncc", 9)
        assert (made.lr, made.batch, made.smoothness_weight) == (1e-4, 1, 1.0)
        assert VoxelMorphSettings(image_loss="mse").smoothness_weight == 0.01
        assert VoxelMorphSettings(image_loss="mse", smoothness=0).smoothness_weight == 0

    def test_they_come_back_from_json_and_from_text(self) -> None:
        made = VoxelMorphSettings(
            encoder=(4, 8), decoder=(8, 4, 2), int_steps=0, image_loss="mse", steps_per_epoch=5
        )
        flat = made.get_params()
        assert all(type(one) in (int, float, str, bool) for one in flat.values())
        assert flat["encoder"] == "4,8"
        assert flat["smoothness"] == 0.01
        again = VoxelMorphSettings.from_params(json.loads(json.dumps(flat)))
        assert again.get_params() == flat
        assert (again.encoder, again.steps_per_epoch) == ((4, 8), 5)
        texts = VoxelMorphSettings.from_params({name: str(one) for name, one in flat.items()})
        assert texts == again
        assert VoxelMorphSettings.from_params({}) == VoxelMorphSettings()
        for none in (0, "none", "0"):
            assert VoxelMorphSettings.from_params({"steps_per_epoch": none}).steps_per_epoch is None

    @pytest.mark.parametrize(
        ("given", "said"),
        [
            ({"encoder": ()}, "encoder must be channels of 1 to 32 layers, got "),
            ({"encoder": [16]}, r"encoder must be channels .*, got \[16\]"),
            ({"decoder": (8, 0, 8, 8)}, "channels of decoder must be a whole number of 1 to 4096"),
            ({"decoder": (8, 8, 8)}, r"at least as many layers as encoder \(4\), got 3"),
            ({"int_steps": -1}, "int_steps must be a whole number of 0 to 16, got -1"),
            ({"int_steps": True}, "int_steps must be a whole number"),
            ({"image_loss": "mi"}, "image_loss must be ncc or mse, got 'mi'"),
            ({"window": 8}, "window must be odd, got 8"),
            ({"window": 1}, "window must be a whole number of 3 to 999"),
            ({"smoothness": -0.1}, "smoothness must be at least 0, got -0.1"),
            ({"feature_loss": float("nan")}, "feature_loss must be at least 0, got nan"),
            ({"lr": 0.0}, "lr must be above 0, got 0.0"),
            ({"epochs": 0}, "epochs must be a whole number of at least 1, got 0"),
            ({"steps_per_epoch": 0}, "steps_per_epoch must be a whole number of at least 1, got 0"),
            ({"batch": 0}, "batch must be"),
            ({"seed": -1}, "seed must be a whole number of at least 0, got -1"),
            ({"precision": "bf16"}, "precision must be auto or fp32, got 'bf16'"),
        ],
    )
    def test_what_is_out_of_range(self, given: dict[str, Any], said: str) -> None:
        with pytest.raises(ValueError, match=said):
            VoxelMorphSettings(**given)

    @pytest.mark.parametrize(
        ("given", "said"),
        [
            ({"levels": 3}, "has no setting 'levels'; it has: encoder, decoder, int_steps"),
            ({"epochs": "many"}, "setting epochs of voxelmorph cannot be 'many'; its default is 1"),
            ({"epochs": 1.5}, "setting epochs of voxelmorph cannot be 1.5"),
            ({"batch": True}, "setting batch of voxelmorph cannot be True"),
            ({"encoder": "16,,32"}, "cannot be '16,,32'; its default is '16,32,32,32'"),
            ({"lr": "fast"}, "setting lr of voxelmorph cannot be 'fast'"),
            ({"lr": "-1"}, "lr must be above 0, got -1.0"),
        ],
    )
    def test_texts_that_are_no_settings(self, given: dict[str, Any], said: str) -> None:
        with pytest.raises(ValueError, match=said):
            VoxelMorphSettings.from_params(given)


class TestPieces:
    @pytest.mark.parametrize("axes", [2, 3])
    def test_local_correlation_window_by_window(self, axes: int) -> None:
        rng, grid, window = np.random.default_rng(0), (7, 9, 11)[:axes], 5
        one, other = rng.random((2, *grid), dtype=np.float32)
        other[:4, :4] = 0.25  # constant there
        padded = [np.pad(array.astype(np.float64), window // 2) for array in (one, other)]
        squares = []
        for corner in np.ndindex(*grid):
            at = tuple(slice(n, n + window) for n in corner)
            a, b = (array[at] - array[at].mean() for array in padded)
            squares.append((a * b).sum() ** 2 / ((a * a).sum() * (b * b).sum() + 1e-5))
        found = voxelmorph_network.ncc_loss(
            tensor(one)[None, None], tensor(other)[None, None], window
        )
        assert found.item() == pytest.approx(-np.mean(squares), rel=1e-5)
        same = voxelmorph_network.ncc_loss(
            tensor(one)[None, None], 3 * tensor(one)[None, None], window
        )
        assert same.item() == pytest.approx(-1, abs=1e-4)

    @pytest.mark.parametrize("axes", [2, 3])
    def test_values_between_voxels_are_those_of_scipy(self, axes: int) -> None:
        rng, grid = np.random.default_rng(1), (5, 8, 11)[:axes]
        values = rng.normal(size=(2, 3, *grid))
        u = rng.normal(0, 3, (2, axes, *grid))  # beyond the grid, too
        expected = [[sampled(one, by) for one in some] for some, by in zip(values, u, strict=True)]
        for sample in (voxelmorph_network.sample, voxelmorph_network.sample_by_corners):
            found = sample(tensor(values), tensor(u)).numpy()
            np.testing.assert_allclose(found, expected, atol=1e-5)

    @pytest.mark.parametrize("grid", [(5, 8), (4, 5, 7), (1, 6)])
    def test_both_ways_to_sample_have_the_same_gradients(self, grid: tuple[int, ...]) -> None:
        rng, found = np.random.default_rng(2), []
        given = rng.normal(size=(2, 3, *grid)), rng.normal(0, 2, (2, len(grid), *grid))
        weights = tensor(rng.normal(size=given[0].shape))
        for sample in (voxelmorph_network.sample, voxelmorph_network.sample_by_corners):
            values, u = (tensor(one).requires_grad_() for one in given)
            (sample(values, u) * weights).sum().backward()
            found.append((values.grad, u.grad))
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)

    @pytest.mark.parametrize("axes", [2, 3])
    def test_linear_velocities_end_in_the_exponential_of_their_matrix(self, axes: int) -> None:
        rng, grid = np.random.default_rng(3), (26, 30, 34)[:axes]
        matrix = rng.normal(0, 0.12, (axes, axes))
        middle = (np.array(grid) - 1).reshape(-1, *[1] * axes) / 2
        x = np.indices(grid) - middle
        velocity = np.einsum("ij,j...->i...", matrix, x)
        found = voxelmorph_network.integrate(tensor(velocity)[None], 7)[0].numpy()
        # Paths that leave the grid see the velocities of its edge: in the middle none does.
        inner = (slice(None), *(slice(n // 2 - 4, n // 2 + 4) for n in grid))
        expected = np.einsum("ij,j...->i...", expm(matrix) - np.eye(axes), x)[inner]
        stepped = np.linalg.matrix_power(np.eye(axes) + matrix / 128, 128)
        exact = np.einsum("ij,j...->i...", stepped - np.eye(axes), x)[inner]
        np.testing.assert_allclose(found[inner], exact, atol=1e-4)
        assert np.abs(found[inner] - expected).max() < 0.01 * np.abs(expected).max()
        backward = voxelmorph_network.integrate(-tensor(velocity)[None], 7)
        there = voxelmorph_network.sample(tensor(found)[None], backward) + backward
        assert there[0][inner].abs().max() < 0.01

    @pytest.mark.parametrize("axes", [2, 3])
    def test_half_and_twice_the_size_are_those_of_torch(self, axes: int) -> None:
        given = tensor(np.random.default_rng(4).normal(size=(2, 3, *(4, 6, 10)[:axes])))
        mode = {2: "bilinear", 3: "trilinear"}[axes]
        for ours, factor in ((voxelmorph_network.halve, 0.5), (voxelmorph_network.double, 2.0)):
            theirs = functional.interpolate(given, scale_factor=factor, mode=mode)
            torch.testing.assert_close(ours(given), theirs, atol=1e-6, rtol=1e-5)

    def test_roughness_by_hand(self) -> None:
        field = torch.zeros(1, 2, 2, 3)
        field[0, 0, 0, 1] = 6
        # Along y: 36 once among 2 x 1 x 3 differences; along x: 36 twice among 2 x 2 x 2.
        assert voxelmorph_network.roughness(field).item() == pytest.approx((36 / 6 + 72 / 8) / 2)
        volume = torch.zeros(1, 3, 2, 3, 4)
        volume[0, 2, 1, 2, 3] = 2
        expected = (4 / (3 * 12) + 4 / (3 * 2 * 2 * 4) + 4 / (3 * 2 * 3 * 3)) / 3
        assert voxelmorph_network.roughness(volume).item() == pytest.approx(expected)

    @pytest.mark.parametrize("shape", [(8, 9, 10), (7, 6, 5), (1, 4, 4)])
    def test_a_volume_in_halves_is_convolved_as_one(self, shape: tuple[int, ...]) -> None:
        torch.manual_seed(0)
        layer, found = torch.nn.Conv3d(4, 3, 3, padding=1), []
        for convolve in (layer, lambda x: voxelmorph_network.convolve(layer, x)):
            x = torch.randn(1, 4, *shape, generator=torch.Generator().manual_seed(1))
            x.requires_grad_()
            layer.zero_grad()
            y = convolve(x)
            (y * torch.arange(y.numel()).view(y.shape).cos()).sum().backward()
            assert layer.weight.grad is not None
            found.append((y, x.grad, layer.weight.grad.clone(), layer.bias.grad.clone()))
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def network(
    settings: VoxelMorphSettings, grid: tuple[int, ...], channels: int = 0
) -> torch.nn.ModuleDict:
    kind = Kind(grid, channels)
    first = voxelmorph_network.initial_weights(settings, kind)
    return voxelmorph_network.with_weights(settings, kind, first, Place("cpu"))


def layer_by_layer(made: torch.nn.ModuleDict, x: torch.Tensor) -> torch.Tensor:
    """The default U-Net written out, for grids that 16 divides."""
    axes = x.ndim - 2
    convolve = {2: functional.conv2d, 3: functional.conv3d}[axes]
    pool = {2: functional.max_pool2d, 3: functional.max_pool3d}[axes]
    weights = dict(made.named_parameters())

    def layer(name: str, x: torch.Tensor) -> torch.Tensor:
        return convolve(x, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=1)

    def active(name: str, x: torch.Tensor) -> torch.Tensor:
        y = layer(name, x)
        return torch.where(y > 0, y, 0.2 * y)

    def up(x: torch.Tensor) -> torch.Tensor:
        for axis in range(2, x.ndim):
            x = x.repeat_interleave(2, dim=axis)
        return x

    full = active("encoder.0", x)
    half = active("encoder.1", pool(full, 2))
    quarter = active("encoder.2", pool(half, 2))
    eighth = active("encoder.3", pool(quarter, 2))
    y = active("decoder.0", pool(eighth, 2))
    y = active("decoder.1", torch.cat([up(y), eighth], 1))
    y = active("decoder.2", torch.cat([up(y), quarter], 1))
    y = active("decoder.3", torch.cat([up(y), half], 1))
    y = active("decoder.4", torch.cat([up(y), full], 1))
    return layer("flow", active("decoder.6", active("decoder.5", y)))


class TestNetwork:
    @pytest.mark.parametrize(
        ("axes", "channels", "count"),
        [
            # (inputs x 27 + 1) x outputs of each layer, with those that are skipped to it.
            (3, 0, 880 + 13856 + 3 * 27680 + 3 * 55328 + 41504 + 13840 + 6928 + 1299),
            (3, 24, 20752 + 13856 + 3 * 27680 + 3 * 55328 + 41504 + 13840 + 6928 + 1299),
            (2, 0, 304 + 4640 + 3 * 9248 + 3 * 18464 + 13856 + 4624 + 2320 + 290),
        ],
    )
    def test_number_of_parameters(self, axes: int, channels: int, count: int) -> None:
        made = network(VoxelMorphSettings(), GRIDS[axes], channels)
        assert sum(one.numel() for one in made.parameters()) == count
        if (axes, channels) == (3, 0):
            assert count == 327331

    @pytest.mark.parametrize("grid", [(32, 48), (16, 32, 48), (32, 48, 16)])
    def test_layers(self, grid: tuple[int, ...]) -> None:
        made = network(VoxelMorphSettings(), grid)
        with torch.no_grad():
            made["flow"].weight.mul_(1e5)
            x = tensor(np.random.default_rng(0).random((1, 2, *grid)))
            found, expected = voxelmorph_network.flow(made, x), layer_by_layer(made, x)
            assert expected.abs().max() > 0.1
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)

    @pytest.mark.parametrize("grid", [(20, 33), (5, 17, 40)])
    def test_grids_that_levels_do_not_divide_are_filled_with_zeros(
        self, grid: tuple[int, ...]
    ) -> None:
        whole = tuple(-(-n // 16) * 16 for n in grid)
        made = network(VoxelMorphSettings(), grid)
        x = tensor(np.random.default_rng(0).random((2, 2, *grid)))
        filled = torch.zeros(2, 2, *whole)
        inside = (slice(None), slice(None), *(slice(n) for n in grid))
        filled[inside] = x
        with torch.no_grad():
            made["flow"].weight.mul_(1e5)
            velocity, found = voxelmorph_network.move(made, x, 4)
            _, expected = voxelmorph_network.move(made, filled, 4)
        assert found.shape == (2, len(grid), *grid)
        assert velocity.shape == (2, len(grid), *(n // 2 for n in whole))
        torch.testing.assert_close(found, expected[inside], atol=1e-5, rtol=1e-5)

    def test_velocities_are_integrated_at_half_the_size(self) -> None:
        """A constant flow moves by itself, whatever the number of steps."""
        grid = (16, 32)
        made = network(VoxelMorphSettings(), grid)
        with torch.no_grad():
            made["flow"].bias.copy_(torch.tensor([2.5, -1.0]))
            made["flow"].weight.zero_()
            for steps in (0, 1, 7):
                velocity, found = voxelmorph_network.move(made, torch.rand(1, 2, *grid), steps)
                assert found.shape == (1, 2, *grid)
                torch.testing.assert_close(found[0, :, 7, 9], torch.tensor([2.5, -1.0]))
                assert velocity.shape[2:] == (grid if steps == 0 else (8, 16))
                half = 1 if steps == 0 else 0.5
                torch.testing.assert_close(velocity[0, :, 3, 5], half * torch.tensor([2.5, -1.0]))

    def test_first_weights(self) -> None:
        first = voxelmorph_network.initial_weights(VoxelMorphSettings(), Kind((16, 16), 0))
        flow = first["flow.weight"].numpy()
        assert flow.std() == pytest.approx(1e-5, rel=0.2)
        assert not first["flow.bias"].any()
        other = voxelmorph_network.initial_weights(VoxelMorphSettings(seed=1), Kind((16, 16), 0))
        assert not torch.equal(first["encoder.0.weight"], other["encoder.0.weight"])
        assert not torch.equal(first["flow.weight"], other["flow.weight"])

    @pytest.mark.parametrize("channels", [0, 5])
    @pytest.mark.parametrize("image_loss", ["ncc", "mse"])
    @pytest.mark.parametrize("int_steps", [0, 7])
    def test_the_loss_is_the_sum_of_its_parts(
        self, channels: int, image_loss: Literal["ncc", "mse"], int_steps: int
    ) -> None:
        settings = VoxelMorphSettings(
            **SMALL, int_steps=int_steps, image_loss=image_loss, smoothness=0.3, feature_loss=0.7
        )
        pairs = smooth_pairs(2, 2, channels=channels)
        kind = Kind(GRIDS[2], channels)
        made = network(settings, GRIDS[2], channels)
        with torch.no_grad():
            made["flow"].bias.copy_(torch.tensor([1.5, -2.0]))
            made["flow"].weight.mul_(1e4)
            batch = voxelmorph._Reader(pairs, kind, "").read([0, 1])
            found = voxelmorph._Losses(made, settings, Place("cpu")).of_batch(batch).item()
            velocity, u = voxelmorph_network.move(made, batch.seen(), int_steps)
        expected = 0.3 * (2 if int_steps else 1) * voxelmorph_network.roughness(velocity).item()
        for number in (0, 1):
            by = u[number].numpy()
            fixed, warped = pairs.fixed[number], sampled(pairs.moving[number], by)
            if image_loss == "mse":
                expected += ((fixed - warped) ** 2).mean() / 2
            else:
                both = tensor(fixed)[None, None], tensor(warped)[None, None]
                expected += voxelmorph_network.ncc_loss(*both, 9).item() / 2
            if pairs.described is not None:
                of_fixed, of_moving = pairs.described[number]
                moved = np.stack([sampled(one, by) for one in of_moving])
                expected += 0.7 * ((of_fixed - moved) ** 2).mean() / 2
        assert found == pytest.approx(expected, rel=1e-4)

    def test_the_moving_image_is_seen_first(self) -> None:
        pairs = smooth_pairs(2, 1, channels=3)
        plain = Pairs(pairs.fixed, pairs.moving)
        (seen,) = voxelmorph._Reader(plain, Kind(GRIDS[2], 0), "").read([0]).seen()
        np.testing.assert_array_equal(seen, np.stack([pairs.moving[0], pairs.fixed[0]]))
        (seen,) = voxelmorph._Reader(pairs, Kind(GRIDS[2], 3), "").read([0]).seen()
        assert pairs.described is not None
        np.testing.assert_array_equal(seen, np.concatenate(pairs.described[0][::-1]))


class TestBatches:
    def numbers(self, n: int, epoch: int, **settings: Any) -> list[list[int]]:  # noqa: ANN401
        pairs = smooth_pairs(2, n)
        reader = voxelmorph._Reader(pairs, Kind(GRIDS[2], 0), "")
        batches = voxelmorph._PairBatches(reader, VoxelMorphSettings(**settings))
        found = list(batches.epoch(epoch))
        assert len(found) == batches.n_batches
        for batch in found:
            for number, fixed in zip(batch.numbers, batch.fixed, strict=True):
                np.testing.assert_array_equal(fixed[0], pairs.fixed[number])
        return [list(one.numbers) for one in found]

    def test_each_pair_comes_once(self) -> None:
        orders = [self.numbers(7, epoch, batch=3) for epoch in (0, 1, 0)]
        for order in orders:
            assert [len(one) for one in order] == [3, 3, 1]
            assert sorted(itertools.chain(*order)) == list(range(7))
        assert orders[0] != orders[1]
        assert orders[0] == orders[2]
        assert self.numbers(7, 0, batch=3, seed=1) != orders[0]

    def test_steps_that_are_asked_for(self) -> None:
        order = list(itertools.chain(*self.numbers(3, 0, batch=2, steps_per_epoch=4)))
        assert len(order) == 8
        assert sorted(Counter(order).values()) == [2, 3, 3]
        assert len(self.numbers(7, 0, steps_per_epoch=2)) == 2


def registered(made: VoxelMorph, pairs: Pairs) -> tuple[list[float], list[float]]:
    """Correlation of each pair, and Dice of what is brighter than its median, when warped."""
    correlations, overlaps = [], []
    for number, (fixed, moving) in enumerate(zip(pairs.fixed, pairs.moving, strict=True)):
        u = made.displacement(pairs, number)
        assert (u.shape, u.dtype) == ((fixed.ndim, *fixed.shape), np.float32)
        correlations.append(correlation(fixed, sampled(moving, u)))
        labels = moving > np.median(moving)
        warped = sampled(labels.astype(np.uint8), u, order=0) > 0
        overlaps.append(dice(fixed > np.median(moving), warped))
    return correlations, overlaps


def unregistered(pairs: Pairs) -> tuple[float, float]:
    both = list(zip(pairs.fixed, pairs.moving, strict=True))
    labels = [(one > np.median(two), two > np.median(two)) for one, two in both]
    return (
        float(np.mean([correlation(*one) for one in both])),
        float(np.mean([dice(*one) for one in labels])),
    )


class TestRegistration:
    @pytest.mark.parametrize(
        ("axes", "settings"),
        [
            pytest.param(2, {"epochs": 25}, id="2D"),
            pytest.param(3, {"epochs": 25, "lr": 0.004}, id="3D"),
            pytest.param(2, {"image_loss": "mse", "smoothness": 0.001}, id="2D-mse"),
            pytest.param(2, {"int_steps": 0, "epochs": 25}, id="2D-plain"),
        ],
    )
    def test_pairs_are_registered(self, axes: int, settings: dict[str, Any]) -> None:
        pairs = smooth_pairs(axes)
        before = unregistered(pairs)
        assert max(before) < 0.83
        made = VoxelMorph(
            VoxelMorphSettings(
                **{**SMALL, "smoothness": 0.1, "window": 5, "epochs": 40, **settings}
            )
        ).fit(pairs)
        correlations, overlaps = registered(made, pairs)
        assert min(correlations) > 0.93
        assert min(overlaps) > 0.88
        assert made.loss_curve_[-1] < made.loss_curve_[0]
        if made.settings.int_steps:
            assert all(
                jacobian(made.displacement(pairs, number)).min() > 0 for number in range(len(pairs))
            )

    @pytest.mark.parametrize("axes", [2, 3])
    def test_features_register_pairs(self, axes: int) -> None:
        """Images say nothing: all pairs have one and the same."""
        pairs = smooth_pairs(axes, channels=3)
        same = np.random.default_rng(9).random(GRIDS[axes], dtype=np.float32)
        blind = Pairs([same] * 4, [same] * 4, pairs.described)
        made = VoxelMorph(
            VoxelMorphSettings(
                **{**SMALL, "epochs": 20, "lr": 0.005},
                image_loss="mse",
                smoothness=0.001,
                feature_loss=200,
            )
        ).fit(blind)
        before = unregistered(pairs)[0]
        found = [
            correlation(fixed, sampled(moving, made.displacement(blind, number)))
            for number, (fixed, moving) in enumerate(zip(pairs.fixed, pairs.moving, strict=True))
        ]
        assert min(found) > (1 + before) / 2
        assert int(made.channels_) == 3

    def test_the_moving_image_is_sampled_at_x_plus_u(self) -> None:
        """All pairs are shifted by one and the same: it is found in sign, axis and size."""
        image = smooth_pairs(2, 1).moving[0]
        shift = np.array([2.0, -3.0]).reshape(2, 1, 1) * np.ones((2, *image.shape))
        pairs = Pairs([sampled(image, shift).astype(np.float32)], [image])
        made = VoxelMorph(
            VoxelMorphSettings(**{**SMALL, "epochs": 100}, smoothness=0.3, window=5)
        ).fit(pairs)
        u = made.displacement(pairs, 0)[:, 5:-5, 5:-5]
        np.testing.assert_allclose(u.mean((1, 2)), [2, -3], atol=0.3)

    @pytest.mark.parametrize("axes", [2, 3])
    def test_strong_motion_does_not_fold(self, axes: int) -> None:
        """As displacements, the same velocities fold some voxels."""
        rng, grid = np.random.default_rng(0), (16, 24, 20)[:axes]
        velocity = gaussian_filter(rng.normal(0, 3**axes, (axes, *grid)), [0, *[2.5] * axes])
        twice = 2 * voxelmorph_network.double(tensor(velocity)[None])[0].numpy()
        field = voxelmorph_network.integrate(tensor(velocity)[None], 7)
        moved = 2 * voxelmorph_network.double(field)[0].numpy()
        assert (jacobian(twice) <= 0).mean() > 0.02
        assert jacobian(moved).min() > 0.1
        assert np.abs(moved).max() > 5


class StoppedError(Exception):
    """What ends a fit in the middle."""


def readers() -> list[threading.Thread]:
    return [one for one in threading.enumerate() if one.name.startswith("read-ahead")]


def same(one: VoxelMorph, other: VoxelMorph) -> bool:
    ours, theirs = one.to_arrays(), other.to_arrays()
    assert list(ours) == list(theirs)
    return all((ours[name] == theirs[name]).all() for name in ours)


class TestFit:
    @pytest.mark.parametrize("axes", [2, 3])
    def test_same_bits_and_no_global_random_state(self, axes: int) -> None:
        settings, pairs, found = VoxelMorphSettings(**SMALL), smooth_pairs(axes), []
        for seed in (1, 2):
            torch.manual_seed(seed)
            state = torch.get_rng_state()
            with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
                found.append(VoxelMorph(settings).fit(pairs))
                inside = found[-1].displacement(pairs, 1)
            assert torch.equal(state, torch.get_rng_state())
            np.testing.assert_array_equal(inside, found[-1].displacement(pairs, 1))
        assert same(*found)
        other = VoxelMorph(VoxelMorphSettings(**SMALL, seed=5)).fit(pairs)
        assert not same(found[0], other)
        assert readers() == []

    @pytest.mark.parametrize(
        ("reads", "precision", "held"),
        [
            (3, "fp32", False),
            (9, "fp32", False),
            (9, "fp32", True),
            (12, "bf16", False),
            (12, "fp16", True),
        ],
    )
    def test_an_interrupted_fit_ends_in_the_same_bits(
        self, tmp_path: Path, reads: int, precision: Literal["fp32", "bf16", "fp16"], *, held: bool
    ) -> None:
        settings, file = VoxelMorphSettings(**SMALL), tmp_path / "fit.safetensors"
        pairs = smooth_pairs(2, channels=2)
        validation = smooth_pairs(2, 2, seed=7, channels=2) if held else None
        left = itertools.count()

        def stop(_: int) -> None:
            if next(left) == reads:
                raise StoppedError

        with running_on(Place("cpu", precision)):
            expected = VoxelMorph(settings).fit(pairs, validation=validation)
            halting = Pairs(pairs.fixed, pairs.moving, pairs.described, before_read=stop)
            with pytest.raises(StoppedError):
                VoxelMorph(settings).fit(halting, validation=validation, checkpoint=file)
            assert readers() == []
            assert file.exists() == (reads > 6)
            rest = Pairs(pairs.fixed, pairs.moving, pairs.described)
            made = VoxelMorph(settings).fit(rest, validation=validation, checkpoint=file)
        assert same(made, expected)
        # Two looks at the first pair; 4 reads an epoch of those that were not done.
        assert len(rest.reads) == 2 + 4 * (3 - (reads - 2) // 4)

    def test_one_of_another_fit_is_refused(self, tmp_path: Path) -> None:
        file, settings, pairs = tmp_path / "fit", VoxelMorphSettings(**SMALL), smooth_pairs(2)
        VoxelMorph(settings).fit(pairs, checkpoint=file)
        content = file.read_bytes()
        others: list[tuple[str, VoxelMorphSettings, Pairs, Pairs | None]] = [
            ("settings", VoxelMorphSettings(**SMALL, seed=1), pairs, None),
            ("pairs", settings, smooth_pairs(2, 3), None),
            ("pairs", settings, smooth_pairs(2, grid=(24, 41)), None),
            ("validation pairs", settings, pairs, smooth_pairs(2, 1)),
            ("the first pair", settings, smooth_pairs(2, seed=3), None),
            ("the first pair", settings, Pairs(pairs.moving, pairs.fixed), None),
        ]
        for word, given, some, validation in others:
            with pytest.raises(ValueError, match=f"of another fit: it differs in .*{word}"):
                VoxelMorph(given).fit(some, validation=validation, checkpoint=file)
        assert file.read_bytes() == content
        with pytest.raises(ValueError, match="needs a folder that exists"):
            VoxelMorph(settings).fit(pairs, checkpoint=tmp_path / "none" / "fit")

    def test_validation_keeps_the_best_epoch(self) -> None:
        pairs, held = smooth_pairs(2), smooth_pairs(2, 2, seed=7)
        settings = VoxelMorphSettings(**{**SMALL, "lr": 0.05, "epochs": 12}, window=5)
        made = VoxelMorph(settings).fit(pairs, validation=held)
        best = int(made.best_epoch_)
        assert best == made.validation_curve_.argmin() < 11
        fewer = VoxelMorphSettings(**{**SMALL, "lr": 0.05, "epochs": best + 1}, window=5)
        until = VoxelMorph(fewer).fit(pairs)
        for name, array in until.weights_.items():
            np.testing.assert_array_equal(made.weights_[name], array)
        assert until.validation_curve_.shape == (0,)
        assert int(until.best_epoch_) == best
        kind = Kind(GRIDS[2], 0)
        weights = {name: torch.from_numpy(one) for name, one in made.weights_.items()}
        best_network = voxelmorph_network.with_weights(settings, kind, weights, Place("cpu"))
        losses = voxelmorph._Losses(best_network, settings, Place("cpu"))
        mean = losses.mean(voxelmorph._Reader(held, kind, ""))
        assert made.validation_curve_[best] == pytest.approx(mean, rel=1e-6)

    def test_how_far_it_is_is_told(self) -> None:
        seen: list[Reached] = []
        with telling(seen.append):
            made = VoxelMorph(VoxelMorphSettings(**SMALL, batch=3)).fit(smooth_pairs(2))
        assert [one[:4] for one in seen] == [
            (epoch, 3, step, 2) for epoch in range(3) for step in (1, 2)
        ]
        assert [one.loss for one in seen[::2]] == [None, *made.loss_curve_[:2].tolist()]

    def test_halves_where_a_place_multiplies_in_them(self) -> None:
        pairs, found = smooth_pairs(2), {}
        for name, precision, asked in (
            ("full", "fp32", "auto"),
            ("mixed", "bf16", "auto"),
            ("refused", "bf16", "fp32"),
        ):
            settings = VoxelMorphSettings(**{**SMALL, "epochs": 6}, precision=asked)  # type: ignore[arg-type]
            with running_on(Place("cpu", precision)):  # type: ignore[arg-type]
                made = VoxelMorph(settings).fit(pairs)
                found[name] = made.displacement(pairs, 0)
        assert found["mixed"].dtype == np.float32
        assert (found["mixed"] != found["full"]).any()
        np.testing.assert_array_equal(found["refused"], found["full"])
        assert np.abs(found["mixed"] - found["full"]).max() < 1

    def test_a_loss_that_overflows_is_named(self) -> None:
        settings = VoxelMorphSettings(**{**SMALL, "lr": 1e30})
        with pytest.raises(ValueError, match=r"became nan at pair \d; lower lr \(now 1e\+30\)"):
            VoxelMorph(settings).fit(smooth_pairs(2))
        assert readers() == []


class TestRefusals:
    def changed(self, number: int, **others: Any) -> Pairs:  # noqa: ANN401
        """Three pairs, of which one has another fixed or moving image, or other features."""
        pairs = smooth_pairs(2, 3, channels=2 if "described" in others else 0)
        for name, value in others.items():
            getattr(pairs, name)[number] = value
        return pairs

    @pytest.mark.parametrize(
        ("others", "said"),
        [
            (
                {"moving": np.zeros((24, 41), np.float32)},
                r"the moving image of training pair 2 must be \(24, 40\) as .*, got \(24, 41\)",
            ),
            (
                {"fixed": np.zeros((3, 24, 40), np.float32)},
                r"the fixed image of training pair 2 must be \(24, 40\) .*, got \(3, 24, 40\)",
            ),
            (
                {"fixed": np.full((24, 40), np.nan, np.float32)},
                "fixed image of training pair 2 must be finite",
            ),
            (
                {"fixed": np.full((24, 40), 0.5, np.float32)},
                "fixed image of training pair 2 is 0.5 everywhere; leave that pair out",
            ),
            (
                {"moving": np.linspace(-1, 1, 960, dtype=np.float32).reshape(24, 40)},
                r"moving image of training pair 2 must lie in \[0, 1\], it lies in \[-1, 1\]",
            ),
            (
                {"moving": np.ones((24, 40), np.uint8)},
                "moving image of training pair 2 must be floats, got uint8",
            ),
            ({"described": None}, "training pair 2 has none, unlike those that are trained on"),
            (
                {"described": (np.zeros((2, 24, 40)), np.zeros((3, 24, 40)))},
                r"features, moving of training pair 2 must be \(2, 24, 40\) .*got \(3, 24, 40\)",
            ),
            (
                {"described": (np.full((2, 24, 40), np.inf), np.zeros((2, 24, 40)))},
                "features, fixed of training pair 2 must be finite",
            ),
        ],
    )
    def test_a_pair_that_is_another_is_named(self, others: dict[str, Any], said: str) -> None:
        with pytest.raises(ValueError, match=said):
            VoxelMorph(VoxelMorphSettings(**SMALL)).fit(self.changed(2, **others))
        assert readers() == []

    def test_validation_is_held_to_the_same(self) -> None:
        made, pairs = VoxelMorph(VoxelMorphSettings(**SMALL)), smooth_pairs(2, 2)
        with pytest.raises(
            ValueError, match=r"fixed image of validation pair 0 must be \(24, 40\)"
        ):
            made.fit(pairs, validation=smooth_pairs(2, 1, grid=(20, 40)))
        with pytest.raises(ValueError, match="validation pair 0 has some, unlike those"):
            made.fit(pairs, validation=smooth_pairs(2, 1, channels=2))
        for some, validation in ((Pairs([], []), None), (pairs, Pairs([], []))):
            with pytest.raises(ValueError, match=r"at least one (training|validation) pair"):
                made.fit(some, validation=validation)
        with pytest.raises(ValueError, match=r"must be \(Z, Y, X\) or \(Y, X\), training pair 0"):
            made.fit(Pairs([np.zeros(5, np.float32)], [np.zeros(5, np.float32)]))
        empty = Pairs(pairs.fixed, pairs.moving, [(np.zeros((0, 24, 40), np.float32),) * 2] * 2)
        with pytest.raises(ValueError, match="features need at least one channel, training pair 0"):
            made.fit(empty)

    def test_displacements_of_other_pairs(self) -> None:
        made = VoxelMorph(VoxelMorphSettings(**SMALL))
        pairs: PairSource = smooth_pairs(2, 2)
        with pytest.raises(ValueError, match="not fitted; call fit or from_arrays first"):
            made.displacement(pairs, 0)
        made.fit(pairs)
        for number in (2, -1):
            with pytest.raises(ValueError, match=f"there are pairs 0 to 1, got {number}"):
                made.displacement(pairs, number)
        with pytest.raises(ValueError, match=r"fixed image of pair 1 must be .*, got \(40, 24\)"):
            made.displacement(smooth_pairs(2, 2, grid=(40, 24)), 1)
        with pytest.raises(ValueError, match="pair 0 has some, unlike those"):
            made.displacement(smooth_pairs(2, 1, channels=2), 0)


class TestSaved:
    @pytest.mark.parametrize(("axes", "channels"), [(2, 0), (2, 3), (3, 0)])
    def test_it_comes_back_from_json_and_safetensors(self, axes: int, channels: int) -> None:
        pairs = smooth_pairs(axes, 2, channels=channels)
        made = VoxelMorph(VoxelMorphSettings(**SMALL)).fit(pairs)
        params, arrays = json.loads(json.dumps(made.get_params())), load(save(made.to_arrays()))
        again = VoxelMorph.from_arrays(params, arrays)
        assert same(made, again)
        for array in arrays.values():
            array.flags.writeable = False
        np.testing.assert_array_equal(made.displacement(pairs, 1), again.displacement(pairs, 1))
        assert again.get_params() == made.get_params()

    def test_what_no_fit_saved(self) -> None:
        made = VoxelMorph(VoxelMorphSettings(**SMALL))
        with pytest.raises(ValueError, match="not fitted; there is nothing to save before fit"):
            made.to_arrays()
        made.fit(smooth_pairs(2, 1))
        params, arrays = made.get_params(), made.to_arrays()
        name = "weight.encoder.1.weight"
        cases: list[tuple[dict[str, Array], str]] = [
            ({"grid": np.array([1, 2, 3, 4])}, r"got a grid of \(1, 2, 3, 4\) and 0 channels"),
            ({"grid": np.array([24, 0])}, "got a grid of"),
            ({"grid": np.array([24.0, 40.0])}, "got a grid of"),
            ({"channels": np.array(-1)}, "and -1 channels"),
            ({"channels": np.array([0])}, r"array channels of voxelmorph must be \(\), got \(1,\)"),
            ({"channels": np.array(7)}, r"encoder.0.weight of voxelmorph must be \(6, 14, 3, 3\)"),
            ({name: arrays[name].astype(np.float64)}, "must be .* float32, got .* float64"),
            ({name: arrays[name][:1]}, r"must be \(8, 6, 3, 3\) float32, got \(1, 6, 3, 3\)"),
            ({name: arrays[name] * np.nan}, f"array {name} of voxelmorph must be finite"),
        ]
        for others, said in cases:
            with pytest.raises(ValueError, match=said):
                VoxelMorph.from_arrays(params, {**arrays, **others})
        for lost in (name, "grid"):
            with pytest.raises(ValueError, match=f"missing: {lost}. Fit it again"):
                VoxelMorph.from_arrays(
                    params, {key: one for key, one in arrays.items() if key != lost}
                )
        with pytest.raises(ValueError, match=r"missing: weight\.encoder\.2\.weight"):
            VoxelMorph.from_arrays({**params, "encoder": "6,8,8"}, arrays)

    def test_torch_is_not_loaded_before_it_is_needed(self) -> None:
        code = (
            "import sys; from probes.registration.voxelmorph import VoxelMorph, VoxelMorphSettings;"
            "VoxelMorph(VoxelMorphSettings.from_params({'epochs': '2'}));"
            "print('torch' in sys.modules)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == "False"
