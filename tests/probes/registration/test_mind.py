from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from probes.registration.mind import mind_ssc

Array = npt.NDArray[Any]

# Written out from the paper's definition: pairs of neighbours that do not face each other, in the
# order that ConvexAdam's channels have.
SOLID = [
    ((1, 0, 0), (0, -1, 0)),
    ((0, 1, 0), (-1, 0, 0)),
    ((0, -1, 0), (-1, 0, 0)),
    ((0, 1, 0), (1, 0, 0)),
    ((0, -1, 0), (0, 0, -1)),
    ((0, 1, 0), (0, 0, 1)),
    ((0, 0, -1), (-1, 0, 0)),
    ((1, 0, 0), (0, 0, 1)),
    ((0, 1, 0), (0, 0, -1)),
    ((0, 0, 1), (0, -1, 0)),
    ((1, 0, 0), (0, 0, -1)),
    ((0, 0, 1), (-1, 0, 0)),
]
FLAT = [((1, 0), (0, -1)), ((0, 1), (-1, 0)), ((0, -1), (-1, 0)), ((0, 1), (1, 0))]


def by_hand(image: Array, radius: int, dilation: int) -> Array:
    """Voxel after voxel, in float64."""
    grid, last = image.shape, np.array(image.shape) - 1

    def value(place: Array) -> float:
        return float(image[tuple(np.clip(place, 0, last))])

    pairs = SOLID if image.ndim == 3 else FLAT
    patch = [np.array(p) for p in product(range(-radius, radius + 1), repeat=image.ndim)]
    distances = np.empty((len(pairs), *grid))
    places = [np.array(place) for place in product(*map(range, grid))]
    for channel, (one, other) in enumerate(pairs):
        squares = np.empty(grid)
        for place in places:
            here, there = (value(place + dilation * np.array(shift)) for shift in (one, other))
            squares[tuple(place)] = (here - there) ** 2
        for place in places:
            # The patch ends at the image's edge; neighbours are looked for beyond it.
            around = [squares[tuple(np.clip(place + shift, 0, last))] for shift in patch]
            distances[(channel, *place)] = np.mean(around)
    distances -= distances.min(0)
    variance = distances.mean(0)
    variance = np.clip(variance, 0.001 * variance.mean(), 1000 * variance.mean())
    return np.exp(-distances / variance)


@pytest.mark.parametrize(("radius", "dilation"), [(1, 2), (2, 1), (0, 3)])
@pytest.mark.parametrize("grid", [(3, 5, 4), (9, 7)])
def test_is_the_definition(grid: tuple[int, ...], radius: int, dilation: int) -> None:
    image = np.random.default_rng(0).standard_normal(grid)
    image[:2, 3:] = 0.5  # where nothing varies, the variance is at its least
    found = mind_ssc(image, radius=radius, dilation=dilation)
    assert (found.dtype, found.shape[1:]) == (np.float32, grid)
    np.testing.assert_allclose(found, by_hand(image, radius, dilation), atol=2e-5)


@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.float64])
def test_contrast_does_not_matter(dtype: Any) -> None:  # noqa: ANN401
    image = np.random.default_rng(1).integers(0, 60, (5, 8, 7))
    expected = mind_ssc(image)
    np.testing.assert_allclose(mind_ssc((4 * image + 3).astype(dtype)), expected, atol=1e-5)
    if dtype == np.float64:
        np.testing.assert_allclose(mind_ssc(image * 1e30), expected, atol=1e-5)


def test_is_the_public_packages(shared_data: Path) -> None:
    pytest.importorskip("convexAdam")
    nibabel = pytest.importorskip("nibabel")
    import torch
    from convexAdam.convex_adam_utils import MINDSSC

    paths = sorted((shared_data / "volumes/msd-task04-hippocampus/images").glob("*.nii.gz"))[:2]
    for path, (radius, dilation) in zip(paths, [(1, 2), (2, 3)], strict=True):
        image = np.asarray(nibabel.load(path).dataobj).astype(np.float32)
        theirs = MINDSSC(torch.from_numpy(image)[None, None], radius, dilation, device="cpu")
        ours = mind_ssc(image, radius=radius, dilation=dilation)
        np.testing.assert_allclose(ours, theirs[0].numpy(), atol=1e-5)


VARIED = np.arange(12.0).reshape(3, 4) ** 2


@pytest.mark.parametrize(
    ("image", "options", "message"),
    [
        (VARIED[0], {}, r"\(Z, Y, X\) or \(Y, X\).*\(4,\)"),
        (VARIED[:0], {}, "not empty"),
        (VARIED * np.nan, {}, "finite"),
        (np.ones((3, 4, 5)), {}, "constant"),
        (1e12 + VARIED * 1e-3, {}, "structure"),
        (VARIED, {"radius": -1}, "radius must be at least 0.*-1"),
        (VARIED, {"dilation": 0}, "dilation at least 1, got 1, 0"),
    ],
)
def test_what_cannot_be_described(image: Array, options: Any, message: str) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match=message) as caught:
        mind_ssc(image, **options)
    assert "\n" not in str(caught.value)
