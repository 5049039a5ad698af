from collections import deque
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probes.metrics.components import fn_volume, fp_volume

Array = npt.NDArray[Any]
SPACING = (3.0, 2.0, 2.5)
ML = 3.0 * 2.0 * 2.5 / 1000
STEPS = [s for s in product((-1, 0, 1), repeat=3) if 0 < sum(map(abs, s)) < 3]


def untouched(mask: Array, other: Array) -> int:
    """Voxels of components without any of ``other``, by walking from voxel to neighbour."""
    left = {tuple(place) for place in np.argwhere(mask)}
    total = 0
    while left:
        queue, component = deque([left.pop()]), []
        while queue:
            place = queue.popleft()
            component.append(place)
            for step in STEPS:
                neighbour = tuple(a + b for a, b in zip(place, step, strict=True))
                if neighbour in left:
                    left.remove(neighbour)
                    queue.append(neighbour)
        if not any(other[place] for place in component):
            total += len(component)
    return total


@given(seed=st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_volumes_are_those_of_walking_through_the_voxels(seed: int) -> None:
    assert len(STEPS) == 18
    draws = np.random.default_rng(seed)
    truth, prediction = draws.random((2, 5, 7, 8)) < draws.uniform(0.02, 0.3)
    assert fp_volume(truth, prediction, SPACING) == pytest.approx(untouched(prediction, truth) * ML)
    assert fn_volume(truth, prediction, SPACING) == pytest.approx(untouched(truth, prediction) * ML)


def test_edges_join_and_corners_do_not() -> None:
    truth, prediction = np.zeros((2, 4, 5, 6), bool)
    truth[1, 1, 1] = True
    prediction[1, 1, 1] = prediction[1, 2, 2] = True  # by an edge
    assert fp_volume(truth, prediction, SPACING) == 0
    prediction[2, 3, 3] = True  # by a corner of the second
    assert fp_volume(truth, prediction, SPACING) == pytest.approx(ML)
    assert fn_volume(truth, prediction, SPACING) == 0


def test_empty_masks() -> None:
    nothing, something = np.zeros((3, 4, 5), bool), np.zeros((3, 4, 5), bool)
    something[0, 0, :2] = something[2, 3, 4] = True
    assert fp_volume(nothing, nothing, SPACING) == fn_volume(nothing, nothing, SPACING) == 0
    assert fp_volume(nothing, something, SPACING) == pytest.approx(3 * ML)
    assert fn_volume(nothing, something, SPACING) == 0
    assert fn_volume(something, nothing, SPACING) == pytest.approx(3 * ML)


VOLUME = np.zeros((3, 4, 5), bool)


@pytest.mark.parametrize(
    ("truth", "prediction", "spacing", "message"),
    [
        (VOLUME, VOLUME[:, 1:], SPACING, r"got \(3, 3, 5\) bool and \(3, 4, 5\) bool"),
        (VOLUME[0], VOLUME[0], SPACING, r"two bool masks \(Z, Y, X\)"),
        (VOLUME, VOLUME.astype(np.int8), SPACING, "int8"),
        (VOLUME, VOLUME, (1.0, 2.0), "3 numbers above 0"),
    ],
)
def test_what_has_no_volume(
    truth: Array, prediction: Array, spacing: tuple[float, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        fp_volume(truth, prediction, spacing)
    assert "\n" not in str(caught.value)
