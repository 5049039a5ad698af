from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from medpy.metric import binary as medpy

from probes.metrics import surfaces
from probes.metrics.surfaces import asd, assd, bounding_box, check_spacing, hd95, surface_distances

Array = npt.NDArray[Any]
SPACING = (3.0, 0.7, 1.3)


def blobs(seed: int, shape: tuple[int, ...], count: int = 4) -> Array:
    draws = np.random.default_rng(seed)
    mask = np.zeros(shape, bool)
    for _ in range(count):
        start = [int(draws.integers(0, n)) for n in shape]
        mask[tuple(slice(s, s + int(draws.integers(1, 7))) for s in start)] = True
    return mask


def hold_to_medpy(truth: Array, prediction: Array, spacing: Sequence[float] | None) -> None:
    options = {"voxelspacing": spacing}
    found = surface_distances(truth, prediction, spacing)
    assert found.hd95 == hd95(truth, prediction, spacing)
    assert found.asd == asd(truth, prediction, spacing)
    assert found.assd == assd(truth, prediction, spacing)
    assert found.hd95 == pytest.approx(medpy.hd95(prediction, truth, **options), abs=1e-9)
    assert found.asd == pytest.approx(medpy.asd(prediction, truth, **options), abs=1e-9)
    assert found.assd == pytest.approx(medpy.assd(prediction, truth, **options), abs=1e-9)


@pytest.mark.parametrize("sparse", [0, 10**9], ids=["tree", "transform"])
def test_distances_are_medpys(sparse: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surfaces, "_SPARSE", sparse)
    for seed in range(12):
        truth, prediction = blobs(seed, (11, 19, 14)), blobs(seed + 100, (11, 19, 14))
        hold_to_medpy(truth, prediction, SPACING)
        hold_to_medpy(truth, prediction, None)
        hold_to_medpy(truth.any(axis=0), prediction.any(axis=0), (0.4, 2.5))


@given(seed=st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_of_noise(seed: int) -> None:
    draws = np.random.default_rng(seed)
    truth, prediction = draws.random((2, 6, 9, 8)) < draws.uniform(0.02, 0.9)
    truth[2, 3, 4] = prediction[5, 0, 7] = True
    hold_to_medpy(truth, prediction, SPACING)


@pytest.mark.parametrize("sparse", [0, 10**9], ids=["tree", "transform"])
def test_the_box_changes_nothing(sparse: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Anywhere in a larger volume, at its sides, too, where a mask is cut off: not a digit."""
    monkeypatch.setattr(surfaces, "_SPARSE", sparse)
    one, other = blobs(1, (7, 12, 9)), blobs(2, (7, 12, 9))
    for place in [(0, 0, 0), (13, 21, 15), (5, 0, 15), (3, 8, 4)]:
        volumes = np.zeros((2, 20, 33, 24), bool)
        where = tuple(slice(p, p + n) for p, n in zip(place, one.shape, strict=True))
        volumes[(0, *where)], volumes[(1, *where)] = one, other
        hold_to_medpy(volumes[0], volumes[1], SPACING)
        padded = [np.pad(v, 6) for v in volumes]
        inside, beyond = surface_distances(*volumes, SPACING), surface_distances(*padded, SPACING)
        np.testing.assert_array_equal(inside.to_truth, beyond.to_truth)
        np.testing.assert_array_equal(inside.to_prediction, beyond.to_prediction)
    full = np.ones((4, 5, 6), bool)
    hold_to_medpy(full, blobs(3, (4, 5, 6)), SPACING)


def test_what_is_measured_is_the_box_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []
    real = surfaces._distances

    def note(start: Array, end: Array, spacing: Array) -> Array:
        seen.append(start.shape)
        return real(start, end, spacing)

    monkeypatch.setattr(surfaces, "_distances", note)
    truth, prediction = np.zeros((2, 60, 200, 300), bool)
    truth[10:14, 20:25, 30:36], prediction[11:16, 20:25, 33:39] = True, True
    hold_to_medpy(truth[:20, :40, :50], prediction[:20, :40, :50], SPACING)
    seen.clear()
    surface_distances(truth, prediction, SPACING)
    assert seen == [(6, 5, 9)] * 2


def test_by_hand() -> None:
    truth, prediction = np.zeros((2, 5, 9), bool)
    truth[2, 1] = True
    prediction[2, 1:7] = True  # 0, 1, ... 5 columns away
    found = surface_distances(truth, prediction, (1.0, 2.0))
    np.testing.assert_allclose(found.to_truth, [0, 2, 4, 6, 8, 10])
    np.testing.assert_allclose(found.to_prediction, [0])
    assert found.asd == pytest.approx(5)
    assert asd(prediction, truth, (1.0, 2.0)) == 0  # not symmetric
    assert found.assd == pytest.approx(30 / 7)
    assert found.hd95 == pytest.approx(9.4)  # 0, 0, 2, ... 10: 0.7 of the way from 8 to 10


def test_single_voxels() -> None:
    truth, prediction = np.zeros((2, 5, 6, 7), bool)
    truth[0, 0, 0] = prediction[4, 5, 6] = True
    far = float(np.hypot(np.hypot(4 * 3.0, 5 * 0.7), 6 * 1.3))
    found = surface_distances(truth, prediction, SPACING)
    assert (found.hd95, found.asd, found.assd) == pytest.approx((far, far, far))
    assert surface_distances(truth, truth, SPACING).hd95 == 0


def test_an_empty_mask_has_no_distance() -> None:
    nothing, something = np.zeros((4, 5, 6), bool), blobs(0, (4, 5, 6))
    for pair in [(nothing, something), (something, nothing), (nothing, nothing)]:
        found = surface_distances(*pair, SPACING)
        assert np.isnan([found.hd95, found.asd, found.assd]).all()
        assert len(found.to_truth) == len(found.to_prediction) == 0


def test_boxes() -> None:
    mask = np.zeros((5, 7, 9), bool)
    assert bounding_box(mask) is None
    mask[1, 2, 8] = mask[3, 6, 4] = True
    assert bounding_box(mask) == (slice(1, 4), slice(2, 7), slice(4, 9))


VOLUME = np.zeros((3, 4, 5), bool)


@pytest.mark.parametrize(
    ("truth", "prediction", "spacing", "message"),
    [
        (VOLUME, VOLUME[1:], None, r"got \(3, 4, 5\) and \(2, 4, 5\)"),
        (VOLUME[0, 0], VOLUME[0, 0], None, r"\(Y, X\) or \(Z, Y, X\)"),
        (VOLUME, VOLUME.astype(np.uint8), None, "must be bool, got bool and uint8"),
        (VOLUME, VOLUME, (1.0, 1.0), r"3 numbers above 0, mm; got \(1.0, 1.0\)"),
        (VOLUME, VOLUME, (1.0, 0.0, 1.0), "above 0"),
        (VOLUME, VOLUME, (1.0, np.nan, 1.0), "above 0"),
    ],
)
def test_what_cannot_be_measured(
    truth: Array, prediction: Array, spacing: Sequence[float] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        surface_distances(truth, prediction, spacing)
    assert "\n" not in str(caught.value)


def test_no_spacing_is_one_voxel() -> None:
    np.testing.assert_array_equal(check_spacing(None, 2), [1, 1])


def test_real_volumes(shared_data: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    paths = sorted((shared_data / "volumes/msd-task04-hippocampus/labels").glob("*.nii.gz"))[:3]
    if not paths:
        pytest.skip("the labels of hippocampus are not among the real images")
    for path in paths:
        truth = np.asarray(nibabel.load(path).dataobj).astype(np.uint8)
        prediction = np.roll(truth, (2, -1, 1), axis=(0, 1, 2))
        for label in (1, 2):
            hold_to_medpy(truth == label, prediction == label, SPACING)
