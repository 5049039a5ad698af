"""Components of an item's patches as colours, and its foreground."""

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from skimage.filters import threshold_otsu
from sklearn.decomposition import PCA

from dinocache.errors import ProbeError
from probes import feature_maps
from probes.feature_maps import ComponentMaps, ReadMaps

ROWS, HEIGHT, WIDTH, DIM = 13, 6, 7, 11


def item(rows: int = ROWS) -> npt.NDArray[np.float32]:
    """Maps of an item: a body in the middle of each row, air around it, components of clear size.

    What tells both apart is the first component; the body has components of its own.
    """
    rng = np.random.default_rng(3)
    maps = rng.normal(size=(rows, HEIGHT, WIDTH, DIM)) * 0.7 ** np.arange(DIM) + 5
    body = np.zeros((rows, HEIGHT, WIDTH), np.bool_)
    body[:, 1:-1, 2:-1] = True
    maps[body] += np.linspace(-3, 5, DIM)
    maps[body] += rng.normal(size=(body.sum(), 1)) * np.cos(np.arange(DIM)) * 1.5
    return maps.astype(np.float32)


def reader(maps: npt.NDArray[Any], asked: list[tuple[int, int]] | None = None) -> ReadMaps:
    """Read as a store does, and keep in mind what was asked for."""

    def read(start: int, stop: int) -> npt.NDArray[Any]:
        assert 0 <= start < stop <= len(maps)
        if asked is not None:
            asked.append((start, stop))
        return maps[start:stop].copy()

    return read


def fitted(maps: npt.NDArray[Any], **options: Any) -> ComponentMaps:  # noqa: ANN401
    return ComponentMaps.fit(reader(maps), len(maps), **options)


def of_scikit_learn(patches: npt.NDArray[Any]) -> tuple[PCA, npt.NDArray[np.float64]]:
    """Fit components of patches and give them the signs that ours have: (fit, (3, dim) axes)."""
    pca = PCA(3, svd_solver="full").fit(patches.astype(np.float64))
    axes = pca.components_
    return pca, axes * np.sign(axes[range(3), np.abs(axes).argmax(1)])[:, None]


def expected_colours(patches: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    pca, axes = of_scikit_learn(patches)
    scores = (patches.astype(np.float64) - pca.mean_) @ axes.T
    low, high = np.percentile(scores, [1, 99], axis=0)
    return np.clip((scores - low) / (high - low), 0, 1)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_components_of_all_rows_are_those_of_scikit_learn(dtype: type) -> None:
    maps = item().astype(dtype)
    found = fitted(maps)
    pca, axes = of_scikit_learn(maps.reshape(-1, DIM))
    np.testing.assert_allclose(found.mean, pca.mean_, rtol=1e-6)
    np.testing.assert_allclose(found.basis, axes.T, atol=1e-5)
    assert (found.basis.shape, found.basis.dtype, found.mean.dtype) == ((DIM, 3), "f4", "f4")
    colours = found.rgb(maps)
    assert (colours.shape, colours.dtype) == ((ROWS, HEIGHT, WIDTH, 3), np.float32)
    wanted = expected_colours(maps.reshape(-1, DIM)).reshape(ROWS, HEIGHT, WIDTH, 3)
    np.testing.assert_allclose(colours, wanted, atol=1e-4)
    np.testing.assert_array_equal(found.rows, np.arange(ROWS))


def test_a_component_is_turned_so_that_its_largest_loading_is_positive() -> None:
    for maps in (item(), -item()):
        basis = fitted(maps).basis
        assert (basis[np.abs(basis).argmax(0), range(3)] > 0).all()


def test_the_rows_of_an_item_share_their_colours() -> None:
    maps = item()
    found = fitted(maps)
    whole = found.rgb(maps)
    for row in range(ROWS):
        np.testing.assert_allclose(found.rgb(maps[row : row + 1])[0], whole[row], atol=1e-6)
    # A row alone would have a range of its own.
    assert np.abs(fitted(maps[2:3]).rgb(maps[2:3]) - whole[2:3]).max() > 0.05


def test_the_foreground_is_what_otsu_divides_of_the_first_component() -> None:
    maps = item()
    found = fitted(maps)
    scores = (maps.reshape(-1, DIM) - found.mean) @ found.basis[:, 0]
    threshold = threshold_otsu(scores)
    assert found.threshold == pytest.approx(threshold, abs=1e-5)
    above = (scores > threshold).reshape(ROWS, HEIGHT, WIDTH)
    np.testing.assert_array_equal(found.foreground(maps), above == found.is_above)
    assert found.foreground(maps).dtype == np.bool_


@pytest.mark.parametrize("sign", [1, -1])
def test_the_foreground_is_the_side_that_stands_inside(sign: int) -> None:
    maps = sign * item()
    found = fitted(maps)
    foreground = found.foreground(maps)
    assert foreground[:, 1:-1, 2:-1].mean() > 0.95
    foreground[:, 1:-1, 2:-1] = False
    assert foreground.mean() < 0.05
    other = replace(found, is_above=not found.is_above)
    np.testing.assert_array_equal(other.foreground(maps), ~found.foreground(maps))


def test_both_signs_of_an_item_are_on_different_sides_of_the_threshold() -> None:
    # The axis is the same up to its sign, which the loadings fix: the item decides the side.
    assert fitted(item()).is_above != fitted(-item()).is_above


@pytest.mark.parametrize(
    ("values", "seed"), [("two heaps", 0), ("one heap", 1), ("two values", 2), ("steps", 3)]
)
def test_otsu_is_that_of_scikit_image(values: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    given = {
        "two heaps": np.concatenate([rng.normal(-3, 1, 700), rng.normal(4, 0.5, 90)]),
        "one heap": rng.normal(2, 3, 900),
        "two values": rng.permutation([-1.5] * 17 + [2.25] * 5),
        "steps": rng.integers(0, 9, 300) * 0.25,
    }[values].astype(np.float32)
    ours = feature_maps._otsu(given)
    assert ours == pytest.approx(threshold_otsu(given), rel=1e-5)
    np.testing.assert_array_equal(given > ours, given > threshold_otsu(given))


@pytest.mark.parametrize("sign", [1, -1])
def test_components_of_the_foreground_alone(sign: int) -> None:
    maps = sign * item()
    plain, inner = fitted(maps), fitted(maps, foreground_only=True)
    np.testing.assert_array_equal(inner.foreground(maps), plain.foreground(maps))
    foreground = plain.foreground(maps)
    pca, axes = of_scikit_learn(maps[foreground])
    np.testing.assert_allclose(inner.mean, pca.mean_, rtol=1e-5)
    np.testing.assert_allclose(inner.basis, axes.T, atol=1e-4)
    assert np.abs(inner.basis - plain.basis).max() > 0.1
    np.testing.assert_allclose(inner.axis, plain.basis[:, 0], atol=1e-6)
    colours = inner.rgb(maps)
    np.testing.assert_allclose(colours[foreground], expected_colours(maps[foreground]), atol=1e-4)
    assert not colours[~foreground].any()
    assert plain.rgb(maps)[~foreground].any()


@pytest.mark.parametrize("foreground_only", [False, True])
@pytest.mark.parametrize("patches", [1, 5, 2 * HEIGHT * WIDTH + 3])
def test_small_blocks_give_the_same(
    monkeypatch: pytest.MonkeyPatch, patches: int, foreground_only: bool
) -> None:
    maps = item()
    whole = fitted(maps, foreground_only=foreground_only)
    monkeypatch.setattr(feature_maps, "_BLOCK", patches * DIM)
    asked: list[tuple[int, int]] = []
    read = reader(maps, asked)
    found = ComponentMaps.fit(read, ROWS, foreground_only=foreground_only)
    np.testing.assert_allclose(found.rgb(maps), whole.rgb(maps), atol=1e-4)
    np.testing.assert_array_equal(found.foreground(maps), whole.foreground(maps))
    together = max(1, patches // (HEIGHT * WIDTH))
    assert max(stop - start for start, stop in asked) == together


def test_a_mean_far_from_zero_costs_no_digits() -> None:
    maps = item().astype(np.float64) + 1e6
    found = fitted(maps)
    _, axes = of_scikit_learn(maps.reshape(-1, DIM))
    np.testing.assert_allclose(found.basis, axes.T, atol=1e-5)


def test_of_a_large_item_some_rows_are_taken_whole() -> None:
    maps = item(40)
    asked: list[tuple[int, int]] = []
    most = 5 * HEIGHT * WIDTH + 4
    found = ComponentMaps.fit(reader(maps, asked), 40, most_patches=most)
    # The middles of five parts of eight rows; the very first row is looked at for its size.
    assert found.rows.tolist() == [4, 12, 20, 28, 36]
    assert {*asked} == {(0, 1), *((row, row + 1) for row in (4, 12, 20, 28, 36))}
    alone = fitted(maps[[4, 12, 20, 28, 36]])
    np.testing.assert_allclose(found.basis, alone.basis, atol=1e-5)
    np.testing.assert_allclose(found.low, alone.low, atol=1e-5)
    np.testing.assert_allclose(found.high, alone.high, atol=1e-5)
    assert found.rgb(maps).shape == (40, HEIGHT, WIDTH, 3)


@pytest.mark.parametrize(
    ("rows", "parts"),
    [(ROWS, ROWS), (ROWS - 1, 12), (1, 1), (0, 1)],
    ids=["just all", "all but one", "one", "less than a row"],
)
def test_how_many_rows_are_taken(rows: int, parts: int) -> None:
    chosen = fitted(item(), most_patches=rows * HEIGHT * WIDTH).rows
    assert len(set(chosen.tolist())) == len(chosen) == parts
    assert 0 <= chosen.min() <= chosen.max() < ROWS


def test_what_is_given_stays_as_it_is() -> None:
    maps = item()
    kept = maps.copy()
    found = fitted(maps)
    found.rgb(maps)
    found.foreground(maps)
    np.testing.assert_array_equal(maps, kept)


def test_an_item_whose_patches_are_alike_is_black_and_has_no_foreground() -> None:
    maps = np.full((3, 4, 5, 7), 0.1, np.float16)
    found = fitted(maps)
    assert not found.rgb(maps).any()
    assert not found.foreground(maps).any()


def test_a_component_that_does_not_vary_is_zero() -> None:
    # All patches lie on a line: what the other components have is rounding.
    along = np.random.default_rng(5).normal(size=(3, 4, 5, 1))
    maps = (along * np.linspace(1, 3, 9) + 2).astype(np.float32)
    colours = fitted(maps).rgb(maps)
    assert np.ptp(colours[..., 0]) == 1
    assert not colours[..., 1:].any()


def refused(maps: npt.NDArray[Any], **options: Any) -> str:  # noqa: ANN401
    with pytest.raises(ProbeError) as caught:
        fitted(maps, **options)
    return str(caught.value)


def test_what_has_no_components() -> None:
    rng = np.random.default_rng(0)
    assert "need 4 patches and 3 dimensions, this item has 3 and 5" in refused(
        rng.normal(size=(1, 1, 3, 5))
    )
    assert "this item has 12 and 2" in refused(rng.normal(size=(1, 4, 3, 2)))
    assert fitted(rng.normal(size=(1, 2, 2, 3))).basis.shape == (3, 3)
    assert "of the kind `dense`; of 8 row(s) these have the shape (1, 5)" in refused(
        rng.normal(size=(8, 5))
    )
    assert "of 0 row(s)" in refused(rng.normal(size=(0, 3, 4, 5)))


def test_a_foreground_that_is_too_small() -> None:
    maps = np.random.default_rng(0).normal(size=(2, 5, 6, 7)) * 0.01
    maps[0, 2, 2:5] += 40
    assert fitted(maps).foreground(maps).sum() == 3
    said = refused(maps, foreground_only=True)
    assert "4 patches of foreground" in said
    assert "has 3 and 7; leave foreground_only out" in said
    assert "has 0 and 7" in refused(np.ones((2, 5, 6, 7)), foreground_only=True)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite(value: float) -> None:
    maps = item()
    maps[7, 3, 2, 4] = value
    assert "not finite" in refused(maps)


def test_maps_of_another_kind() -> None:
    found = fitted(item())
    for other in (np.zeros((2, 6, 7, 12)), np.zeros((6, 7, DIM))):
        for ask in (found.rgb, found.foreground):
            with pytest.raises(ProbeError, match=r"are of \(rows, height, width, 11\), these maps"):
                ask(other)


def test_rows_of_another_size() -> None:
    maps = item()
    with pytest.raises(ProbeError, match=r"rows 0 to 12 have maps of \(13, 5, 7, 11\)"):
        ComponentMaps.fit(lambda a, b: maps[a:b, : 6 - (b > 1)], ROWS)
