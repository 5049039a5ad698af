import gzip
import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from skimage.metrics import adapted_rand_error, variation_of_information

from probes.metrics import instances
from probes.metrics.instances import compare_instances

Array = npt.NDArray[Any]


def hold_to_skimage(truth: Array, prediction: Array) -> None:
    found = compare_instances(truth, prediction)
    split, merge = variation_of_information(truth, prediction, ignore_labels=[0])
    arand = adapted_rand_error(truth, prediction, ignore_labels=[0])[0]
    expected = (split, merge, arand, split + merge)
    assert (*found, found.voi) == pytest.approx(expected, abs=1e-9)


def random_ids(seed: int, shape: tuple[int, ...], dtype: type) -> tuple[Array, Array]:
    draws = np.random.default_rng(seed)
    coarse = draws.integers(0, 6, tuple(-(-n // 3) for n in shape))
    truth = np.kron(coarse, np.ones((3,) * len(shape), int))[tuple(slice(n) for n in shape)]
    prediction = np.where(draws.random(shape) < 0.8, truth + 1, draws.integers(0, 9, shape))
    return truth.astype(dtype), prediction.astype(dtype)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.uint64])
@pytest.mark.parametrize("shape", [(7, 10, 11), (13, 17)])
def test_scores_are_scikit_images(
    shape: tuple[int, ...], dtype: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(5):
        truth, prediction = random_ids(seed, shape, dtype)
        assert (truth == 0).any()
        assert (prediction == 0).any()
        hold_to_skimage(truth, prediction)
        whole = compare_instances(truth, prediction)
        with monkeypatch.context() as patch:
            patch.setattr(instances, "_BLOCK", 50)
            assert compare_instances(truth, prediction) == pytest.approx(whole, abs=1e-12)


def test_split_and_merge_by_hand() -> None:
    """Entropies as they are defined: a neuron in two equal halves is one bit of split."""
    whole, halves = np.ones((2, 3, 4), np.uint8), np.ones((2, 3, 4), np.uint8)
    halves[1] = 2
    split = compare_instances(whole, halves)
    assert (split.voi_split, split.voi_merge, split.voi) == pytest.approx((1, 0, 1))
    merged = compare_instances(halves, whole)
    assert (merged.voi_split, merged.voi_merge) == pytest.approx((0, 1))
    # Pairs of different voxels in one neuron, one segment, both: 24 * 23, 2 * 12 * 11, 2 * 12 * 11.
    assert split.arand == merged.arand == pytest.approx(1 - 2 * 264 / (552 + 264))


def test_the_same_but_for_the_ids() -> None:
    truth, _ = random_ids(0, (6, 7, 8), np.uint16)
    renamed = np.array([3, 9, 1, 7, 2, 8], np.uint32)[truth]
    assert (*compare_instances(truth, renamed),) == pytest.approx((0, 0, 0), abs=1e-12)


def test_voxels_without_a_neuron_do_not_matter() -> None:
    truth, prediction = random_ids(4, (6, 7, 8), np.int64)
    other = np.where(truth == 0, 77, prediction)
    assert compare_instances(truth, other) == pytest.approx(compare_instances(truth, prediction))


def test_ids_that_are_far_apart() -> None:
    truth, prediction = random_ids(2, (6, 7, 8), np.uint64)
    far = np.array([0, 5, 2**40, 2**63, 2**50, 2**64 - 1], np.uint64)[truth]
    some = np.uint64(2**41) * prediction
    assert compare_instances(far, some) == pytest.approx(compare_instances(truth, prediction))


def test_without_neurons_there_is_no_score() -> None:
    nothing = np.zeros((3, 4, 5), np.uint8)
    assert np.isnan(compare_instances(nothing, nothing + 1)).all()
    each = np.arange(1, 61, dtype=np.uint8).reshape(3, 4, 5)
    alone = compare_instances(each, each)
    assert (alone.voi, np.isnan(alone.arand)) == (0, True)  # no pair of voxels is in one neuron
    found = compare_instances(each, nothing)  # a prediction of nothing is one segment
    assert found.voi_merge == pytest.approx(np.log2(60))
    assert found.arand == pytest.approx(1)


IDS = np.ones((3, 4, 5), np.uint32)


@pytest.mark.parametrize(
    ("truth", "prediction", "message"),
    [
        (IDS, IDS[1:], r"got \(3, 4, 5\) and \(2, 4, 5\)"),
        (IDS[0, 0], IDS[0, 0], r"\(Y, X\) or \(Z, Y, X\)"),
        (IDS[:0], IDS[:0], "one shape"),
        (IDS, IDS.astype(float), "prediction must be ids, .*; got float64"),
        (IDS > 0, IDS, "truth must be ids, .*; got bool"),
        (IDS, IDS.astype(int) - 2, "prediction must be ids, .*; got int64 from -1"),
    ],
)
def test_what_cannot_be_compared(truth: Array, prediction: Array, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        compare_instances(truth, prediction)
    assert "\n" not in str(caught.value)


def test_real_neurons(shared_data: Path) -> None:
    h5py = pytest.importorskip("h5py")
    folder = shared_data / "em/flyem-fib/training_sample2"
    names = ("groundtruth", "oversegmented_stack_labels")
    if not all((folder / f"{name}.h5.gz").is_file() for name in names):
        pytest.skip("the neurons of FlyEM are not among the real images")
    volumes = []
    for name in names:
        with h5py.File(
            io.BytesIO(gzip.decompress((folder / f"{name}.h5.gz").read_bytes()))
        ) as file:
            ids, (parts, bodies) = file["stack"][:60, :90, :110], file["transforms"][:].T
        order = np.argsort(parts)
        volumes.append(bodies[order][np.searchsorted(parts[order], ids)].astype(np.int64))
    hold_to_skimage(*volumes)
    found = compare_instances(*volumes)
    assert found.voi_split > found.voi_merge  # made to be in too many parts
