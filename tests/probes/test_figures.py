"""Pictures of patch features."""

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.decomposition import PCA

from probes.figures import pca_colours, pca_picture


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
