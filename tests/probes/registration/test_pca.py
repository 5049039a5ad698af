from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.decomposition import PCA

from probes.registration import pca
from probes.registration.pca import project, scaled, shared_components, to_grid

Array = npt.NDArray[Any]
DIM = 11


def tokens(count: int, seed: int = 0) -> Array:
    draws = np.random.default_rng(seed)
    factors = draws.standard_normal((count, DIM)) * 0.7 ** np.arange(DIM)
    turned = factors @ np.linalg.qr(np.random.default_rng(9).standard_normal((DIM, DIM)))[0]
    return turned + np.linspace(-30, 40, DIM)


def of(*blocks: Array) -> Callable[[], Iterator[Array]]:
    return lambda: iter(blocks)


def test_are_the_components_of_all_tokens_together() -> None:
    fixed, moving = tokens(70), tokens(50, seed=1) + np.eye(DIM)[4] * 3
    basis = shared_components(of(fixed, moving), 5)
    assert (basis.shape, basis.dtype) == ((DIM, 5), np.float32)
    expected = PCA(5).fit(np.concatenate([fixed, moving])).components_.T
    expected *= np.where(expected[np.abs(expected).argmax(0), range(5)] < 0, -1, 1)
    np.testing.assert_allclose(basis, expected, atol=1e-5)
    # They are those of neither alone.
    assert np.abs(shared_components(of(fixed), 5) - expected).max() > 0.1


@pytest.mark.parametrize("block", [1, 3 * DIM, 1 << 22])
def test_blocks_do_not_matter(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    every = tokens(40).astype(np.float16)
    expected = shared_components(of(every), 3)
    monkeypatch.setattr(pca, "_BLOCK", block)
    found = shared_components(of(every[:1], every[1:1], every[1:30], every[30:]), 3)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_mean_far_away_costs_no_digits() -> None:
    basis = shared_components(of(tokens(300) + 1e4), 3)
    np.testing.assert_allclose(basis, shared_components(of(tokens(300)), 3), atol=1e-3)


@pytest.mark.parametrize(
    ("blocks", "count", "message"),
    [
        ([tokens(4)], 5, "5 components.*4 tokens of 11"),
        ([], 1, "0 tokens"),
        ([tokens(20)], 12, "12 components.*20 tokens of 11"),
        ([tokens(20)], 0, "at least 1 component.*0"),
        ([tokens(20) * np.inf], 2, "finite"),
        ([np.full((20, DIM), 3.7)], 2, "all the same"),
        ([tokens(20), tokens(20)[:, :5]], 2, "one dimension, got 11 and 5"),
        ([tokens(20)[0]], 2, r"\(n, dim\), got \(11,\)"),
    ],
)
def test_what_has_no_components(blocks: list[Array], count: int, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        shared_components(of(*blocks), count)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("block", [1, 1 << 22])
def test_projection_takes_no_mean_off(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pca, "_BLOCK", block)
    maps = tokens(3 * 4 * 2).reshape(3, 4, 2, DIM).astype(np.float16)
    basis = shared_components(of(maps.reshape(-1, DIM)), 5)
    found = project(maps, basis)
    assert (found.shape, found.dtype) == ((5, 3, 4, 2), np.float32)
    for row, y, x in [(0, 0, 0), (2, 3, 1), (1, 2, 0)]:
        expected = maps[row, y, x].astype(float) @ basis
        np.testing.assert_allclose(found[:, row, y, x], expected, rtol=1e-4)
    assert abs(found[0].mean()) > 1


def test_what_cannot_be_projected() -> None:
    basis = np.eye(DIM, 2, dtype=np.float32)
    with pytest.raises(ValueError, match=r"\(rows, height, width, 11\), got \(2, 3, 4, 5\)"):
        project(np.zeros((2, 3, 4, 5)), basis)
    with pytest.raises(ValueError, match="finite"):
        project(np.full((1, 2, 3, DIM), np.nan), basis)


def interpolated(components: Array, grid: tuple[int, ...], **options: Any) -> Array:  # noqa: ANN401
    import torch
    from torch.nn.functional import interpolate

    found: Array = interpolate(torch.from_numpy(components)[None], grid, **options)[0].numpy()
    return found


@pytest.mark.parametrize("grid", [(4, 20, 18), (9, 5, 6), (4, 5, 31), (7, 13, 6)])
def test_volumes_are_brought_to_their_grid_as_torch_does(grid: tuple[int, int, int]) -> None:
    components = np.random.default_rng(2).standard_normal((3, 4, 5, 6)).astype(np.float32)
    found = to_grid(components, grid)
    assert found.flags.c_contiguous
    assert found.dtype == np.float32
    expected = interpolated(components, grid, mode="trilinear", align_corners=False)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("grid", [(3, 4), (20, 7), (8, 9), (1, 30)])
def test_pictures_are_brought_to_their_grid_as_torch_does(grid: tuple[int, int]) -> None:
    components = np.random.default_rng(3).standard_normal((2, 1, 8, 9)).astype(np.float32)
    found = to_grid(components, grid)
    options = {"mode": "bilinear", "align_corners": False, "antialias": True}
    np.testing.assert_allclose(found, interpolated(components[:, 0], grid, **options), atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "grid", "message"),
    [
        ((2, 3, 4), (5, 6), r"\(C, rows, height, width\)"),
        ((2, 3, 4, 0), (3, 5, 6), r"\(C, rows, height, width\)"),
        ((2, 3, 4, 5), (5,), r"\(Z, Y, X\) or \(Y, X\), got \(5,\)"),
        ((2, 3, 4, 5), (3, 0, 5), r"got \(3, 0, 5\)"),
        ((2, 3, 4, 5), (8, 9), "one row of maps, these are 3"),
    ],
)
def test_what_has_no_grid(shape: tuple[int, ...], grid: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_grid(np.zeros(shape, np.float32), grid)


def test_both_are_scaled_by_what_is_common() -> None:
    draws = np.random.default_rng(4)
    fixed = (7 + 3 * draws.standard_normal((2, 5, 6))).astype(np.float32)
    moving = (5 + 9 * draws.standard_normal((2, 4, 7))).astype(np.float32)
    deviation = np.concatenate([fixed.ravel(), moving.ravel()]).astype(float).std()
    for one, before in zip(scaled(fixed, moving, 0.1), (fixed, moving), strict=True):
        assert one.dtype == np.float32
        np.testing.assert_allclose(one, before * (0.1 / deviation), rtol=1e-5)


@pytest.mark.parametrize(
    ("fixed", "moving", "factor", "message"),
    [
        (np.ones((2, 3)), np.ones((2, 3)), 1, "all the same"),
        (np.ones((2, 3)), np.full((2, 3), np.nan), 1, "finite"),
        (np.ones((2, 3)), np.zeros((3, 3)), 1, "same channels"),
        (np.ones((2, 3)), np.zeros((2, 3)), 0, "above 0, got 0"),
    ],
)
def test_what_cannot_be_scaled(fixed: Array, moving: Array, factor: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scaled(fixed, moving, factor)
