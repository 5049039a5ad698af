from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from medpy.metric import binary as medpy
from sklearn.metrics import confusion_matrix, f1_score, jaccard_score

from probes.metrics import overlap
from probes.metrics.overlap import dice, iou, overlap_counts, precision, recall

Array = npt.NDArray[Any]
REFERENCES = [(dice, medpy.dc), (iou, medpy.jc), (precision, medpy.precision)]
REFERENCES += [(recall, medpy.recall)]


def random_maps(seed: int, shape: tuple[int, ...], top: int = 5) -> tuple[Array, Array]:
    draws = np.random.default_rng(seed)
    truth = draws.integers(0, top + 1, shape).astype(np.uint8)
    prediction = np.where(draws.random(shape) < 0.6, truth, draws.integers(0, top + 1, shape))
    return truth, prediction.astype(np.uint16)


def hold_to_medpy(truth: Array, prediction: Array, labels: list[int]) -> None:
    """Each label, then any label; medpy divides by zero where a mask is empty."""
    counts = overlap_counts(truth, prediction, labels)
    masks = [(truth == k, prediction == k) for k in labels]
    masks.append((np.isin(truth, labels), np.isin(prediction, labels)))
    for row, (true, predicted) in zip(counts, masks, strict=True):
        assert row.sum() == true.size
        for ours, theirs in REFERENCES:
            if true.any() and predicted.any():
                assert ours(row) == pytest.approx(theirs(predicted, true), abs=1e-9)
            else:
                assert np.isnan(ours(row)) != (true.any() or predicted.any())


@given(seed=st.integers(0, 10_000), flat=st.booleans())
@settings(max_examples=30, deadline=None)
def test_ratios_are_medpys(seed: int, flat: bool) -> None:
    truth, prediction = random_maps(seed, (13, 17) if flat else (5, 7, 9))
    hold_to_medpy(truth, prediction, [4, 1, 2])  # 3 and 5 are background
    hold_to_medpy(truth, prediction, [9])  # in neither


def test_scikit_learns_jaccard_and_f1_of_the_voxels() -> None:
    truth, prediction = random_maps(3, (6, 10, 11), top=3)
    counts = overlap_counts(truth, prediction, [1, 2, 3])[:-1]
    flat, options = (truth.ravel(), prediction.ravel()), {"labels": [1, 2, 3], "average": None}
    np.testing.assert_allclose(iou(counts), jaccard_score(*flat, **options), atol=1e-9)
    np.testing.assert_allclose(dice(counts), f1_score(*flat, **options), atol=1e-9)
    np.testing.assert_array_equal(counts[:, 0], np.diag(confusion_matrix(*flat))[1:])


def test_by_hand() -> None:
    truth = np.array([[1, 1, 2, 0], [0, 2, 2, 7]])
    prediction = np.array([[1, 2, 2, 0], [1, 0, 2, 2]])
    counts = overlap_counts(truth, prediction, [1, 2])
    assert counts.dtype == np.int64
    np.testing.assert_array_equal(counts, [[1, 1, 1, 5], [2, 2, 1, 3], [4, 2, 1, 1]])
    np.testing.assert_allclose(dice(counts), [1 / 2, 4 / 7, 8 / 11])
    np.testing.assert_allclose(iou(counts), [1 / 3, 2 / 5, 4 / 7])


def test_counts_of_cases_add_up() -> None:
    truth, prediction = random_maps(1, (8, 6, 7))
    halves = [overlap_counts(truth[part], prediction[part], [1, 2, 3]) for part in np.s_[:3, 3:]]
    np.testing.assert_array_equal(sum(halves), overlap_counts(truth, prediction, [1, 2, 3]))


@pytest.mark.parametrize("shape", [(3, 9, 11), (3, 4, 9, 11)])
def test_classes_that_overlap(shape: tuple[int, ...]) -> None:
    draws = np.random.default_rng(5)
    truth, prediction = draws.random(shape) < 0.3, draws.random(shape) < 0.3
    assert (truth.sum(axis=0) > 1).any()
    counts = overlap_counts(truth, prediction, [1, 2, 3])
    for label in range(3):
        alone = overlap_counts(
            truth[label].astype(np.uint8), prediction[label].astype(np.uint8), [1]
        )
        np.testing.assert_array_equal(counts[label], alone[0])
    union = [masks.any(axis=0).astype(np.uint8) for masks in (truth, prediction)]
    np.testing.assert_array_equal(counts[3], overlap_counts(*union, [1])[0])


def test_exclusive_classes_as_bool_are_the_label_map() -> None:
    truth, prediction = random_maps(2, (7, 9, 5), top=3)
    split = [np.stack([m == k for k in (1, 2, 3)]) for m in (truth, prediction)]
    np.testing.assert_array_equal(
        overlap_counts(split[0], split[1], [1, 2, 3]), overlap_counts(truth, prediction, [1, 2, 3])
    )


def test_empty_masks() -> None:
    nothing, something = np.zeros((4, 5), np.uint8), np.eye(4, 5, dtype=np.uint8)
    for measure in (dice, iou, precision, recall):
        assert np.isnan(measure(overlap_counts(nothing, nothing, [1]))).all()
        assert (measure(overlap_counts(nothing, something, [1])) == 0).all()
        assert (measure(overlap_counts(something, nothing, [1])) == 0).all()
        assert (measure(overlap_counts(something, something, [1])) == 1).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64, np.uint64])
def test_labels_of_every_type_and_far_above_those_named(dtype: type) -> None:
    top = min(np.iinfo(dtype).max, 2**62)
    truth = np.array([[0, 1, 200 if dtype is np.uint8 else 300, top]], dtype)
    counts = overlap_counts(truth, truth, [int(truth[0, 2]), 1])
    np.testing.assert_array_equal(counts, [[1, 0, 0, 3], [1, 0, 0, 3], [2, 0, 0, 2]])


def test_big_maps_are_counted_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    truth, prediction = random_maps(7, (9, 10, 11))
    whole = overlap_counts(truth, prediction, [1, 2])
    monkeypatch.setattr(overlap, "_BLOCK", 250)
    np.testing.assert_array_equal(overlap_counts(truth, prediction, [1, 2]), whole)


MAP, MASKS = np.zeros((3, 4), np.uint8), np.zeros((2, 3, 4), bool)


@pytest.mark.parametrize(
    ("truth", "prediction", "labels", "message"),
    [
        (MAP, MAP.T, [1], r"one shape, got \(3, 4\) and \(4, 3\)"),
        (MAP, MAP.astype(float), [1], "both be integers or both be bool, got uint8 and float64"),
        (MASKS, MASKS.astype(np.uint8), [1, 2], "got bool and uint8"),
        (MASKS, MASKS, [1], r"bool masks must be \(1, Y, X\) or .* got \(2, 3, 4\)"),
        (MAP[0], MAP[0], [1], r"\(Y, X\) or \(Z, Y, X\) and not empty; got \(4,\)"),
        (MAP[:0], MAP[:0], [1], "not empty"),
        (MAP, MAP, [], "at least one"),
        (MAP, MAP, [1, 1], "must differ"),
        (MAP, MAP, [0, 1], "from 1 to 65536"),
        (MAP, MAP, [2**20], "from 1 to 65536"),
        (MAP, MAP.astype(np.int8) - 1, [1], "prediction must be labels of at least 0, got -1"),
    ],
)
def test_what_cannot_be_compared(
    truth: Array, prediction: Array, labels: list[int], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        overlap_counts(truth, prediction, labels)
    assert "\n" not in str(caught.value)


def test_real_volumes(shared_data: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    paths = sorted((shared_data / "volumes/msd-task04-hippocampus/labels").glob("*.nii.gz"))[:4]
    if not paths:
        pytest.skip("the labels of hippocampus are not among the real images")
    for path in paths:
        truth = np.asarray(nibabel.load(path).dataobj).astype(np.uint8)
        assert set(np.unique(truth)) == {0, 1, 2}
        hold_to_medpy(truth, np.roll(truth, (1, -2, 1), axis=(0, 1, 2)), [1, 2])


def test_real_masks_that_overlap(shared_data: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    folder = shared_data / "endoscopy/edd2020-sample/masks"
    paths = sorted(folder.glob("GT/*.tif"))
    if not paths:
        pytest.skip("the masks of EDD2020 are not among the real images")
    for path in paths:
        truth = tifffile.imread(path) > 0
        prediction = np.roll(tifffile.imread(folder / "predict" / path.name) > 0, 9, axis=2)
        counts = overlap_counts(truth, prediction, [1, 2, 3, 4, 5])
        assert 0 < counts[-1, 0] < truth[0].size
        for label, (one, other) in enumerate(zip(truth, prediction, strict=True)):
            if one.any():
                assert dice(counts[label]) == pytest.approx(medpy.dc(other, one), abs=1e-9)
                assert recall(counts[label]) == pytest.approx(medpy.recall(other, one), abs=1e-9)
