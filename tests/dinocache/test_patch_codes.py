"""Patches as bytes: how far their cosines are off, and what that is held against."""

import numpy as np
import numpy.typing as npt
import pytest

from dinocache import patch_codes
from dinocache.patch_codes import AIM, PatchCodes


def cosines(patches: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    tokens = patches.reshape(-1, patches.shape[-1])
    tokens = tokens / np.linalg.norm(tokens, axis=1, keepdims=True)
    return tokens @ tokens.T


def read(codes: PatchCodes) -> npt.NDArray[np.float64]:
    return np.stack([codes.cosines(n) for n in range(len(codes.base))]).astype(np.float64)


def some(
    spread: float, *, height: int = 9, width: int = 13, dim: int = 37
) -> npt.NDArray[np.float64]:
    rng = np.random.default_rng(3)
    return rng.normal(size=(height, width, dim)) * np.arange(1.0, dim + 1) ** -spread + 0.3


@pytest.mark.parametrize("spread", [0, 0.5, 2], ids=["noise", "features", "few components"])
def test_the_error_is_the_greatest_of_all_pairs(spread: float) -> None:
    given = some(spread)
    codes = PatchCodes.of(given, 1000)
    off = np.abs(read(codes) - cosines(given))
    assert codes.error == pytest.approx(off.max(), abs=1e-5)
    assert codes.error <= AIM
    assert (codes.is_close, codes.is_all, codes.pairs) == (True, True, 117**2)
    assert codes.codes.dtype == codes.fine.dtype == np.int8
    assert codes.fine.shape == (117, 2)


def test_no_more_components_are_kept_than_are_needed() -> None:
    few, many = (PatchCodes.of(some(spread), 1000) for spread in (2, 0))
    assert few.codes.shape[1] < many.codes.shape[1] <= 37
    less = PatchCodes.of(some(0), many.codes.shape[1] - 4)
    assert less.codes.shape[1] == many.codes.shape[1] - 4
    assert (less.is_close, less.error > AIM) == (False, True)
    off = np.abs(read(less) - cosines(some(0)))
    assert less.error == pytest.approx(off.max(), abs=1e-5)


def test_patches_that_are_much_alike_can_be_told_apart() -> None:
    given = some(0.5) * 1e-3 + np.ones(37)
    wanted = cosines(given)
    assert np.ptp(wanted) < AIM / 100
    codes = PatchCodes.of(given, 1000)
    assert codes.error <= max(wanted.std() / 10, 1e-5)


def test_patches_that_are_the_same_need_no_component() -> None:
    codes = PatchCodes.of(np.full((2, 3, 5), 0.25), 1000)
    assert codes.codes.shape == (6, 0)
    np.testing.assert_allclose(codes.cosines(4), np.ones(6), atol=1e-6)


def test_directions_by_hand() -> None:
    given = np.array([[[1.0, 0, 0], [0, 2, 0]], [[0, 0, 3], [-4, 0, 0]]])
    expected = np.eye(4)
    expected[0, 3] = expected[3, 0] = -1
    np.testing.assert_allclose(read(PatchCodes.of(given, 3)), expected, atol=AIM)


def test_of_very_many_patches_some_pairs_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patch_codes, "_PAIRS", 117 * 30)
    codes = PatchCodes.of(some(0.5), 1000)
    assert (codes.is_all, codes.pairs) == (False, 30 * 117)  # every fourth patch against all
    off = np.abs(read(codes) - cosines(some(0.5)))
    assert codes.error == pytest.approx(off[::4].max(), abs=1e-5)
