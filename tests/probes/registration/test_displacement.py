from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import SimpleITK as sitk
from scipy.interpolate import RegularGridInterpolator

from probes.registration.displacement import folding, jacobian_determinant, log_jacobian_sd, warp

Array = npt.NDArray[Any]
VOLUME, PICTURE = (5, 9, 7), (8, 11)


def random_displacement(grid: tuple[int, ...], size: float, seed: int = 0) -> Array:
    draws = np.random.default_rng(seed)
    return draws.uniform(-size, size, (len(grid), *grid)).astype(np.float32)


def linear(matrix: Array, grid: tuple[int, ...]) -> Array:
    """The displacement of x -> matrix @ x."""
    places = np.indices(grid).astype(float)
    return np.tensordot(matrix - np.eye(len(grid)), places, 1).astype(np.float32)


def test_the_moving_image_is_sampled_at_x_plus_u() -> None:
    fixed = np.random.default_rng(0).random((6, 9, 7)).astype(np.float32)
    moving = np.roll(fixed, (3, -2, 1), (0, 1, 2))
    u = np.broadcast_to(np.float32([3, -2, 1]).reshape(3, 1, 1, 1), (3, *fixed.shape))
    for method in ("linear", "nearest"):
        warped = warp(moving, u, method=method)
        np.testing.assert_array_equal(warped[:3, 2:, :6], fixed[:3, 2:, :6])


@pytest.mark.parametrize("grid", [VOLUME, PICTURE])
def test_linear_between_voxels(grid: tuple[int, ...]) -> None:
    image = np.random.default_rng(1).random((2, *grid))
    u = random_displacement(grid, 4)
    at = np.moveaxis(np.indices(grid) + u, 0, -1)
    inner = np.clip(at, 0, np.array(grid) - 1)
    axes = [np.arange(n) for n in grid]
    expected = np.stack([RegularGridInterpolator(axes, one)(inner) for one in image])
    warped = warp(image, u)
    assert warped.dtype == np.float32
    np.testing.assert_allclose(warped, expected, atol=1e-5)
    np.testing.assert_array_equal(warp(image[1], u), warped[1])
    beyond = ((at < -0.5) | (at > np.array(grid) - 0.5)).any(-1)
    assert 0.1 < beyond.mean() < 0.9
    expected[:, beyond] = -7
    np.testing.assert_allclose(warp(image, u, outside=-7), expected, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint64, np.bool_, np.float64])
def test_nearest_voxel(dtype: Any) -> None:  # noqa: ANN401
    labels = np.random.default_rng(2).integers(0, 2**40, PICTURE).astype(dtype)
    u = random_displacement(PICTURE, 5, seed=3)
    warped, framed = (warp(labels, u, method="nearest", outside=at) for at in (None, 0))
    assert warped.dtype == framed.dtype == dtype
    for y, x in product(*map(range, PICTURE)):
        place = np.array([y, x]) + u[:, y, x]
        distances = [np.hypot(*(place - [i, j])) for i, j in product(*map(range, PICTURE))]
        assert warped[y, x] == labels.flat[np.argmin(distances)]
        inside = (place >= -0.5).all() and (place <= np.array(PICTURE) - 0.5).all()
        assert framed[y, x] == (warped[y, x] if inside else 0)


def test_half_a_voxel_beyond_is_still_inside() -> None:
    image = np.arange(1, 7, dtype=np.uint8).reshape(2, 3)
    u = np.zeros((2, 2, 3), np.float32)
    u[1, 0], u[1, 1] = [-0.5, 0, 0.5], [-0.6, 0.5, 0.6]
    warped = warp(image, u, method="nearest", outside=0)
    np.testing.assert_array_equal(warped, [[1, 2, 3], [0, 6, 0]])


@pytest.mark.parametrize(
    ("matrix", "determinant"),
    [
        (np.array([[1.1, 0.2], [-0.3, 0.8]]), 0.94),
        (np.array([[0, 1], [1, 0]]), -1),
        (np.array([[1.2, 0.1, 0], [0, 0.9, 0.3], [0.2, 0, 1.1]]), 1.194),
    ],
)
def test_determinants_of_linear_maps(matrix: Array, determinant: float) -> None:
    u = linear(matrix, VOLUME[: len(matrix)])
    found = jacobian_determinant(u)
    assert (found.shape, found.dtype) == (u.shape[1:], np.float32)
    np.testing.assert_allclose(found, determinant, atol=1e-5)
    assert folding(u) == (determinant <= 0)
    if determinant > 0:
        assert log_jacobian_sd(u) == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("grid", [VOLUME, PICTURE])
def test_determinants_are_simpleitks(grid: tuple[int, ...]) -> None:
    u = random_displacement(grid, 0.8, seed=4)
    # Its vectors are x first.
    field = sitk.GetImageFromArray(np.moveaxis(u[::-1], 0, -1).astype(float), isVector=True)
    expected = sitk.GetArrayFromImage(sitk.DisplacementFieldJacobianDeterminant(field))
    inner = tuple(slice(1, -1) for _ in grid)
    np.testing.assert_allclose(jacobian_determinant(u)[inner], expected[inner], atol=1e-4)
    assert 0.02 < folding(u) < 0.6


def test_regularity_by_hand() -> None:
    # Its slopes are 0.5, 0.5, 0, -0.5, -0.5: one-sided at both ends, central between.
    u = np.zeros((2, 2, 5), np.float32)
    u[1] = [0, 0.5, 1, 0.5, 0]
    np.testing.assert_allclose(jacobian_determinant(u)[0], [1.5, 1.5, 1, 0.5, 0.5])
    logs = np.log([1.5, 1.5, 1, 0.5, 0.5])
    assert folding(u) == 0
    assert log_jacobian_sd(u) == pytest.approx(logs.std(), rel=1e-6)
    # Twice as steep they make 2, 2, 1, 0, 0; and 0 folds.
    assert folding(2 * u) == pytest.approx(0.4)
    assert log_jacobian_sd(2 * u) == pytest.approx(np.log([2, 2, 1]).std(), rel=1e-6)


FINE = np.zeros((2, 4, 5))


@pytest.mark.parametrize(
    ("image", "u", "options", "message"),
    [
        (np.zeros((4, 6)), FINE, {}, r"grid \(4, 5\).*got \(4, 6\)"),
        (np.zeros((1, 1, 4, 5)), FINE, {}, "channels"),
        (np.zeros((4, 5)), FINE[:1], {}, r"\(2, Y, X\) or \(3, Z, Y, X\)"),
        (np.zeros((4, 0)), FINE[:, :, :0], {}, "not empty"),
        (np.zeros((4, 5)), FINE + np.nan, {}, "finite"),
        (np.zeros((4, 5)), FINE, {"method": "cubic"}, "linear or nearest.*'cubic'"),
        (np.zeros((4, 5), np.uint8), FINE, {"method": "nearest", "outside": 0.5}, "uint8.*0.5"),
    ],
)
def test_what_cannot_be_warped(image: Array, u: Array, options: Any, message: str) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match=message) as caught:
        warp(image, u, **options)
    assert "\n" not in str(caught.value)


def test_derivatives_need_two_voxels() -> None:
    with pytest.raises(ValueError, match="2 voxels"):
        folding(np.zeros((2, 1, 5)))
