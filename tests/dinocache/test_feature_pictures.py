"""Pictures of patch features: their colours, their likeness, and what is drawn of them."""

import io
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from matplotlib.image import imread
from sklearn.decomposition import PCA

from dinocache import feature_pictures
from dinocache.feature_pictures import (
    PatchColours,
    nearest_picture,
    patch_similarity,
    pca_colours,
    pca_picture,
    rows_picture,
    similarity_picture,
    widest_axes,
)
from probes import figures

Floats = npt.NDArray[np.float32]


def patches(height: int = 6, width: int = 9, dim: int = 11) -> npt.NDArray[np.float32]:
    """Features whose leading components differ clearly in size."""
    rng = np.random.default_rng(0)
    scales = 0.6 ** np.arange(dim)
    return (rng.normal(size=(height, width, dim)) * scales).astype(np.float32)


def assert_same_up_to_sign(ours: npt.NDArray[np.float32], theirs: npt.NDArray[np.float32]) -> None:
    """Compare colours; the other sign of a component turns its channel c into 1 - c."""
    for channel in range(3):
        mine, other = ours[..., channel], theirs[..., channel]
        distance = min(np.abs(mine - other).max(), np.abs(mine - (1 - other)).max())
        assert distance < 1e-4


def test_colours_are_the_first_three_components_of_scikit_learn() -> None:
    given = patches()
    components = PCA(3, svd_solver="full").fit_transform(given.reshape(-1, 11).astype(float))
    low, high = np.percentile(components, [2, 98], axis=0)
    expected = np.clip((components - low) / (high - low), 0, 1).reshape(6, 9, 3)
    colours = pca_colours(given)
    assert (colours.shape, colours.dtype) == ((6, 9, 3), np.float32)
    assert_same_up_to_sign(colours, expected.astype(np.float32))


def test_each_channel_uses_the_whole_range() -> None:
    colours = pca_colours(patches())
    assert colours.min(axis=(0, 1)).tolist() == [0, 0, 0]
    assert colours.max(axis=(0, 1)).tolist() == [1, 1, 1]


def test_the_axes_of_the_features_do_not_matter() -> None:
    given = patches()
    rotation, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(11, 11)))
    assert_same_up_to_sign(pca_colours(given), pca_colours((given @ rotation).astype(np.float32)))


def test_shift_and_scale_do_not_matter_and_patches_keep_their_colours() -> None:
    given = patches()
    kept = given.copy()
    colours = pca_colours(given)
    np.testing.assert_array_equal(given, kept)
    np.testing.assert_allclose(pca_colours(given * 4 + 2), colours, atol=1e-4)
    np.testing.assert_allclose(pca_colours(given[::-1, ::-1]), colours[::-1, ::-1], atol=1e-5)


def test_equal_patches_have_one_colour() -> None:
    colours = pca_colours(np.full((3, 4, 5), 0.25, np.float32))
    assert np.isfinite(colours).all()
    assert np.ptp(colours, axis=(0, 1)).tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("shape", "is_enough"),
    [
        pytest.param((1, 3, 5), False, id="three-patches"),
        pytest.param((3, 4, 2), False, id="two-dimensions"),
        pytest.param((1, 4, 3), True, id="just-enough"),
    ],
)
def test_too_few_patches(shape: tuple[int, int, int], is_enough: bool) -> None:
    given = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    if is_enough:
        assert pca_colours(given).shape == (1, 4, 3)
    else:
        with pytest.raises(ValueError, match="needs 4 patches and 3 dimensions, got"):
            pca_colours(given)


def read_png(content: bytes) -> tuple[int, int]:
    """Give (height, width) from a PNG's header."""
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    return int.from_bytes(content[20:24], "big"), int.from_bytes(content[16:20], "big")


@pytest.mark.parametrize("channels", [(), (3,)], ids=["grey", "colour"])
def test_the_picture_has_the_proportions_of_two_images(channels: tuple[int, ...]) -> None:
    image = np.random.default_rng(0).random((30, 50, *channels), dtype=np.float32)
    height, width = read_png(pca_picture(image, patches()))
    assert height / width == pytest.approx(30 / (2 * 50), rel=0.02)
    assert pca_picture(image, patches()) == pca_picture(image, patches())


@pytest.mark.parametrize("n_tokens", [7, 40], ids=["fewer than dimensions", "more"])
def test_axes_are_those_of_the_singular_values(n_tokens: int) -> None:
    rng = np.random.default_rng(2)
    tokens = rng.normal(size=(n_tokens, 11)) * 0.7 ** np.arange(11)
    tokens -= tokens.mean(0)
    axes = widest_axes(tokens, 5)
    _, _, expected = np.linalg.svd(tokens, full_matrices=False)
    assert axes.shape == (11, 5)
    np.testing.assert_allclose(np.abs(axes.T @ expected[:5].T), np.eye(5), atol=1e-8)
    assert (axes[np.abs(axes).argmax(0), range(5)] > 0).all()


def test_what_has_no_spread_has_no_axis() -> None:
    tokens = np.outer([1.0, -1, 2, -2], np.arange(1, 8))
    axes = widest_axes(tokens, 7)
    assert axes.shape == (7, 4)
    np.testing.assert_allclose(axes[:, 0], np.arange(1, 8) / np.sqrt(140), atol=1e-12)
    assert not axes[:, 1:].any()


def test_one_basis_gives_one_vector_one_colour_everywhere() -> None:
    one, other = patches(), patches(3, 5) * 2 + 1
    other[1, 2] = one[4, 7]
    shared = PatchColours.fit(np.concatenate([one.reshape(-1, 11), other.reshape(-1, 11)]))
    np.testing.assert_array_equal(shared.of(one)[4, 7], shared.of(other)[1, 2])
    assert (pca_colours(one)[4, 7] != pca_colours(other)[1, 2]).any()


def test_many_patches_are_fitted_on_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_pictures, "_MOST_TOKENS", 20)
    given = patches()  # 54: every third
    expected = PatchColours.fit(given.reshape(-1, 11)[::3])
    np.testing.assert_array_equal(PatchColours.fit(given).axes, expected.axes)


def test_similarity_by_hand() -> None:
    given = np.zeros((2, 3, 4), np.float32)
    given[0, 0] = 3, 4, 0, 0
    given[0, 1] = 6, 8, 0, 0  # the same direction
    given[0, 2] = 0, 0, 5, 0  # nothing in common
    given[1, 0] = -3, -4, 0, 0
    given[1, 1] = 1, 0, 0, 0
    found = patch_similarity(given, (0, 0))
    assert (found.shape, found.dtype) == ((2, 3), np.float32)
    np.testing.assert_allclose(found, [[1, 1, 0], [-1, 0.6, 0]], atol=1e-7)
    np.testing.assert_array_equal(patch_similarity(given, (1, 2)), np.zeros((2, 3)))


def pixels(content: bytes) -> Floats:
    found: Floats = imread(io.BytesIO(content), format="png")
    return found[..., :3]


def share(content: bytes, colour: tuple[float, float, float]) -> float:
    """Give the share of a picture that has about this colour."""
    return float((np.abs(pixels(content) - colour).max(-1) < 0.02).mean())


GREY = np.full((30, 50), 0.5, np.float32)


def test_one_row_stands_beside_its_colours_and_several_above_them() -> None:
    red = np.tile(np.float32([1, 0, 0]), (3, 5, 1))
    one = rows_picture([GREY], [red])
    height, width = read_png(one)
    assert height < width
    drawn = pixels(one)
    assert share(one, (1, 0, 0)) == pytest.approx(share(one, (0.5, 0.5, 0.5)), rel=0.05)
    assert not (drawn[:, : width // 2] == [1, 0, 0]).all(-1).any()
    three = pixels(rows_picture([GREY] * 3, [red] * 3, names=["row 0", "row 4", "row 8"]))
    is_red = (three == [1, 0, 0]).all(-1)
    assert is_red[len(three) // 2 :].sum() == is_red.sum() > 0


@pytest.mark.parametrize("count", [0, 17])
def test_too_few_or_too_many_rows(count: int) -> None:
    with pytest.raises(ValueError, match="1 to 16 rows"):
        rows_picture([GREY] * count, [np.zeros((2, 2, 3), np.float32)] * count)


def test_similarity_goes_from_the_least_to_the_most_alike_of_the_others() -> None:
    similarity = np.full((3, 5), 0.25, np.float32)
    similarity[0, 1], similarity[2, 4], similarity[1, 2] = 0.75, 0.25, 1
    drawn = similarity_picture(GREY, similarity, (1, 2))
    dark, bright = (0.267, 0.005, 0.329), (0.993, 0.906, 0.144)  # the ends of viridis
    patch = 1 / 15
    # 13 patches are least alike; the one, and the patch itself, whose edge is covered, most.
    ratio = share(drawn, dark) / share(drawn, bright)
    assert 13 / 2 * 0.9 < ratio < 13 / (1 + 0.3) * 1.1
    assert share(drawn, dark) > 13 * patch * 0.2


def test_the_chosen_patch_is_outlined_where_it_is() -> None:
    def outlined(y: int, x: int) -> tuple[float, float]:
        drawn = pixels(similarity_picture(GREY, np.eye(3, 5, dtype=np.float32), (y, x)))
        left = drawn[:, : int(drawn.shape[1] * 0.44)]  # a colour bar stands to the right
        found = np.argwhere(np.abs(left - [1, 0.176, 0.584]).max(-1) < 0.02)
        assert len(found)
        return tuple(found.mean(0))

    (top, first), (bottom, last) = outlined(0, 1), outlined(2, 3)
    assert top < bottom
    assert first < last
    # Patches of 10 x 10 px: two down are as far as two along.
    assert bottom - top == pytest.approx(last - first, rel=0.03)


@pytest.mark.parametrize("patch", [(3, 0), (0, 5), (-1, 0)])
def test_a_patch_outside_is_not_drawn(patch: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="a grid of 3 x 5"):
        similarity_picture(GREY, np.zeros((3, 5), np.float32), patch)


def test_nearest_items_stand_in_lines_of_five() -> None:
    red = np.tile(np.float32([1, 0, 0]), (20, 20, 1))
    near = [(red, f"{n}") for n in range(6)]
    one_line = read_png(nearest_picture(GREY, near[:4], name="x"))
    two_lines = read_png(nearest_picture(GREY, near, name="x"))
    assert two_lines[1] == one_line[1]
    assert 1.7 < two_lines[0] / one_line[0] < 2.1
    with pytest.raises(ValueError, match="nothing near"):
        nearest_picture(GREY, [], name="x")


def test_texts_of_others_are_drawn_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """No mathematics in dollars, no warning of letters that the font lacks, long ones broken."""
    texts: dict[str, Any] = {
        "title": r"$\frac{1}$ \u5fc3 " + "long " * 60,
        "warning": "$",
        "caption": "$_$" * 90,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = nearest_picture(GREY, [(GREY, r"$\bad{$ \u5fc3")], name="$x$", **texts)
    plain = read_png(nearest_picture(GREY, [(GREY, "a")], name="b"))
    assert read_png(drawn)[1] == plain[1]
    assert read_png(drawn)[0] > plain[0]


def test_a_warning_is_in_the_picture() -> None:
    plain = rows_picture([GREY], [np.zeros((3, 5, 3), np.float32)], title="a")
    warned = rows_picture([GREY], [np.zeros((3, 5, 3), np.float32)], title="a", warning="RANDOM")
    assert share(warned, (0.631, 0.137, 0)) > share(plain, (0.631, 0.137, 0)) == 0


def test_reports_find_the_picture_where_it_was() -> None:
    assert figures.pca_picture is pca_picture
    assert figures.pca_colours is pca_colours
