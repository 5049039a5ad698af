import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from medpy.metric import binary as medpy

from probes.metrics import overlap
from probes.metrics.cases import Case, evaluate_cases, measure_case, measure_instances
from probes.metrics.components import fn_volume, fp_volume
from probes.metrics.glossary import GLOSSARY, known_mask_metrics
from probes.stats import group_bootstrap_weights

Array = npt.NDArray[Any]
SPACING = (3.0, 0.7, 1.3)
ALL = known_mask_metrics("segmentation")
LABELS = [1, 2]


def volumes(seed: int, shape: tuple[int, ...] = (6, 11, 9)) -> tuple[Array, Array]:
    """Two boxes of labels 1 and 2; and boxes elsewhere that were predicted."""
    draws = np.random.default_rng(seed)
    pair = np.zeros((2, *shape), np.uint8)
    for side in pair:
        for label in LABELS:
            start = [int(draws.integers(0, n - 2)) for n in shape]
            side[tuple(slice(s, s + int(draws.integers(2, 5))) for s in start)] = label
    return pair[0], pair[1]


def some_cases() -> tuple[list[tuple[Array, Array]], list[Case]]:
    pairs = [volumes(seed) for seed in range(7)]
    nothing = np.zeros_like(pairs[0][0])
    pairs[2] = (np.where(pairs[2][0] == 2, 0, pairs[2][0]), pairs[2][1])  # 2 was invented
    pairs[3] = (pairs[3][0], nothing)  # both were missed
    pairs[4] = (nothing, nothing)
    return pairs, [measure_case(t, p, LABELS, ALL, SPACING) for t, p in pairs]


def test_values_are_means_of_the_libraries_values() -> None:
    pairs, cases = some_cases()
    found = evaluate_cases(cases, ALL)
    of_label = []
    for label in LABELS:
        masks = [(t == label, p == label) for t, p in pairs]
        some = [(t, p) for t, p in masks if t.any() or p.any()]
        both = [(t, p) for t, p in masks if t.any() and p.any()]
        of_label.append(
            {
                "dice": np.mean([medpy.dc(p, t) for t, p in some]),
                "iou": np.mean([medpy.jc(p, t) for t, p in some]),
                "precision": np.mean([medpy.precision(p, t) if p.any() else 0 for t, p in some]),
                "recall": np.mean([medpy.recall(p, t) if t.any() else 0 for t, p in some]),
                "hd95": np.mean([medpy.hd95(p, t, SPACING) for t, p in both]),
                "asd": np.mean([medpy.asd(p, t, SPACING) for t, p in both]),
                "assd": np.mean([medpy.assd(p, t, SPACING) for t, p in both]),
                "fp_volume": np.mean([fp_volume(t, p, SPACING) for t, p in masks]),
                "fn_volume": np.mean([fn_volume(t, p, SPACING) for t, p in masks]),
                "dice_agg": 2
                * sum((t & p).sum() for t, p in masks)
                / sum(t.sum() + p.sum() for t, p in masks),
                "miou": sum((t & p).sum() for t, p in masks) / sum((t | p).sum() for t, p in masks),
            }
        )
    for name in of_label[0]:
        expected = [values[name] for values in of_label]
        np.testing.assert_allclose(found.per_label[name], expected, atol=1e-9)
        assert found.values[name] == pytest.approx(np.mean(expected), abs=1e-9)
    union = [(t > 0, p > 0) for t, p in pairs if t.any() and p.any()]
    assert found.values["binary_hd95"] == pytest.approx(
        np.mean([medpy.hd95(p, t, SPACING) for t, p in union]), abs=1e-9
    )
    assert found.values["binary_dice"] == pytest.approx(
        np.mean([*(medpy.dc(p, t) for t, p in union), 0]), abs=1e-9
    )
    assert set(found.values) == set(ALL)
    assert set(found.per_label) == {name for name in ALL if GLOSSARY[name].per_label}


def test_what_is_counted_apart() -> None:
    _, cases = some_cases()
    found = evaluate_cases(cases, ["dice", "hd95", "fp_volume", "binary_dice"])
    np.testing.assert_array_equal(found.missed, [1, 1, 1])
    np.testing.assert_array_equal(found.invented, [0, 1, 0])
    np.testing.assert_array_equal(found.n_cases["dice"], [6, 6])
    np.testing.assert_array_equal(found.n_cases["hd95"], [5, 4])
    np.testing.assert_array_equal(found.n_cases["fp_volume"], [7, 7])
    np.testing.assert_array_equal(found.n_cases["binary_dice"], [6])


def test_present_only_leaves_out_what_was_invented() -> None:
    pairs, cases = some_cases()
    found = evaluate_cases(cases, ["dice", "fp_volume", "binary_dice"], present_only=True)
    np.testing.assert_array_equal(found.n_cases["dice"], [6, 5])
    dices = [medpy.dc(p == 2, t == 2) for t, p in pairs if (t == 2).any()]
    assert found.per_label["dice"][1] == pytest.approx(np.mean(dices))
    np.testing.assert_array_equal(found.n_cases["fp_volume"], [7, 7])
    one = measure_case(pairs[4][0], pairs[0][1], LABELS, ["dice"])
    alone = [evaluate_cases([one], ["dice", "binary_dice"], present_only=p) for p in (False, True)]
    assert alone[0].values == {"dice": 0, "binary_dice": 0}
    assert np.isnan(list(alone[1].values.values())).all()


def test_a_replicate_is_the_cases_that_it_drew() -> None:
    _, cases = some_cases()
    groups = np.array(["a", "a", "b", "c", "d", "d", "d"])
    weights = group_bootstrap_weights(groups, n_boot=25, seed=0)
    weights = np.concatenate([weights, np.eye(7)])  # each case alone: labels are lost
    found = evaluate_cases(cases, ALL, weights)
    over_labels = set(found.per_label) - {"instrument_iou", "isinet_iou", "pooled_iou"}
    lost = 0
    for replicate, drawn in enumerate(weights):
        again = [case for case, n in zip(cases, drawn, strict=True) for _ in range(int(n))]
        expected = evaluate_cases(again, ALL)
        for name in ALL:
            value = found.replicates[name][replicate]
            if name in over_labels and np.isnan(expected.per_label[name]).any():
                lost += 1
                assert np.isnan(value)  # not a mean over the labels that are left
            else:
                np.testing.assert_allclose(value, expected.values[name], atol=1e-12)
            if name in found.per_label:
                np.testing.assert_allclose(
                    found.per_label_replicates[name][replicate],
                    expected.per_label[name],
                    atol=1e-12,
                )
    assert lost > 10
    assert found.values == evaluate_cases(cases, ALL).values  # weights aside
    assert {values.shape for values in found.replicates.values()} == {(32,)}


def test_a_replicate_without_a_label_is_undefined() -> None:
    truth = np.array([[1, 1, 0], [0, 2, 2]])
    one, both = np.where(truth == 1, truth, 0), truth
    cases = [measure_case(t, t, LABELS, ["dice", "dice_agg", "hd95"]) for t in (one, both)]
    found = evaluate_cases(cases, ["dice", "dice_agg", "hd95"], np.array([[2, 0], [0, 2]]))
    assert found.values == {"dice": 1, "dice_agg": 1, "hd95": 0}
    for name, perfect in found.values.items():
        np.testing.assert_array_equal(found.replicates[name], [np.nan, perfect])
        np.testing.assert_array_equal(
            found.per_label_replicates[name], [[perfect, np.nan], [perfect, perfect]]
        )


def test_a_label_that_no_case_has_is_left_out() -> None:
    truth = np.array([[1, 1, 0], [0, 1, 0]])
    case = measure_case(truth, truth, [1, 5], ["dice", "miou", "hd95"])
    found = evaluate_cases([case], ["dice", "miou", "hd95"], np.array([[3.0]]))
    assert found.values == {"dice": 1, "miou": 1, "hd95": 0}
    np.testing.assert_array_equal(found.per_label["dice"], [1, np.nan])
    np.testing.assert_array_equal(found.replicates["dice"], [1])
    nothing = measure_case(truth * 0, truth * 0, [1, 5], ["dice", "miou", "hd95"])
    assert np.isnan(list(evaluate_cases([nothing], ["dice", "miou", "hd95"]).values.values())).all()


def test_classes_that_overlap_are_measured_one_by_one() -> None:
    draws = np.random.default_rng(2)
    truth, prediction = draws.random((2, 2, 5, 9, 7)) < 0.1
    case = measure_case(truth, prediction, LABELS, ALL, SPACING)
    for label in range(2):
        alone = measure_case(
            truth[label].astype(np.uint8), prediction[label].astype(np.uint8), [1], ALL, SPACING
        )
        np.testing.assert_array_equal(case.counts[label], alone.counts[0])
        for name in ("hd95", "asd", "assd", "fp_volume", "fn_volume"):
            assert case.values[name][label] == alone.values[name][0]
    union = [m.any(axis=0) for m in (truth, prediction)]
    assert case.values["binary_assd"] == pytest.approx(medpy.assd(union[1], union[0], SPACING))


def test_one_label_is_any_label() -> None:
    truth, prediction = volumes(0)
    truth, prediction = np.where(truth == 1, 1, 0), np.where(prediction == 1, 1, 0)
    case = measure_case(truth, prediction, [1], ["binary_hd95", "hd95", "binary_asd"], SPACING)
    assert case.values["hd95"] == case.values["binary_hd95"]
    assert case.values["hd95"] == pytest.approx(medpy.hd95(prediction, truth, SPACING))
    assert set(case.values) == {"hd95", "binary_hd95", "binary_asd"}


def test_instances() -> None:
    truth = np.ones((2, 3, 4), np.uint32)
    halves = truth.copy()
    halves[1] = 2
    cases = [measure_instances(truth, halves), measure_instances(truth, truth)]
    names = known_mask_metrics("instances")
    assert names == ("voi", "voi_split", "voi_merge", "arand")
    found = evaluate_cases(cases, names, np.array([[2, 0], [1, 3]]))
    assert found.values["voi"] == pytest.approx(0.5)
    assert found.values["voi_merge"] == pytest.approx(0)
    np.testing.assert_allclose(found.replicates["voi_split"], [1, 0.25])
    assert found.per_label == {}
    assert found.missed.shape == (0,)


TRUTH = np.ones((3, 4, 5), np.uint8)
CASE = measure_case(TRUTH, TRUTH, [1], ["dice"])


@pytest.mark.parametrize(
    ("cases", "metrics", "weights", "message"),
    [
        ([], ["dice"], None, "at least one case"),
        ([CASE], [], None, "at least one metric"),
        ([CASE], ["hd95"], None, "case 0 was not measured for 'hd95'"),
        ([CASE], ["voi"], None, "case 0 was not measured for 'voi'"),
        ([measure_instances(TRUTH, TRUTH)], ["dice"], None, "'dice' needs counts"),
        ([CASE, measure_instances(TRUTH, TRUTH)], ["dice"], None, r"\(2, 4\) of 1 of 2"),
        ([CASE, measure_case(TRUTH, TRUTH, [1, 2], ["dice"])], ["dice"], None, "same labels"),
        ([CASE], ["dice"], np.ones((3, 2)), r"\(n_replicates, 1\), got \(3, 2\)"),
        ([CASE], ["dice"], np.array([[-1.0]]), "at least 0"),
        ([CASE], ["dice"], np.array([[1], [0]]), "those of replicate 1 are"),
    ],
)
def test_what_cannot_be_evaluated(
    cases: list[Case], metrics: list[str], weights: Array | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        evaluate_cases(cases, metrics, weights)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("metrics", "spacing", "message"),
    [
        (["voi"], None, "use measure_instances"),
        (["fp_volume", "fn_volume"], None, "fn_volume and fp_volume need the spacing"),
        (["hd95"], (1.0, 2.0), "3 numbers above 0"),
        (["dic"], None, "did you mean 'dice'"),
    ],
)
def test_what_cannot_be_measured(
    metrics: list[str], spacing: tuple[float, ...] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        measure_case(TRUTH, TRUTH, [1], metrics, spacing)
    with pytest.raises(ValueError, match="one shape"):
        measure_case(TRUTH, TRUTH[1:], [1], ["hd95"])


def test_memory_is_a_few_times_the_volume(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small structures in a big volume: a few masks of it, and no distance of every voxel."""
    truth, prediction = np.zeros((2, 40, 300, 310), np.uint8)
    truth[10:20, 40:60, 30:70], prediction[12:25, 45:60, 30:72] = 1, 1
    truth[30:33, 200:210, 100:120], prediction[30:34, 204:210, 90:120] = 2, 2
    metrics = ["dice", "hd95", "asd", "binary_hd95", "fp_volume", "fn_volume"]
    monkeypatch.setattr(overlap, "_BLOCK", 2**16)
    measure_case(truth[:20], prediction[:20], LABELS, metrics, SPACING)  # what is imported late
    tracemalloc.start()
    measure_case(truth, prediction, LABELS, metrics, SPACING)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10 * truth.nbytes


def test_real_volumes(shared_data: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    paths = sorted((shared_data / "volumes/msd-task04-hippocampus/labels").glob("*.nii.gz"))[:5]
    if not paths:
        pytest.skip("the labels of hippocampus are not among the real images")
    names = ["dice", "hd95", "binary_asd", "dice_agg"]
    cases, dices, distances = [], [], []
    for path in paths:
        truth = np.asarray(nibabel.load(path).dataobj).astype(np.uint8)
        prediction = np.roll(truth, (1, 2, -1), axis=(0, 1, 2))
        cases.append(measure_case(truth, prediction, LABELS, names, SPACING))
        dices.append([medpy.dc(prediction == k, truth == k) for k in LABELS])
        distances.append(medpy.asd(prediction > 0, truth > 0, SPACING))
    found = evaluate_cases(cases, names)
    np.testing.assert_allclose(found.per_label["dice"], np.mean(dices, axis=0), atol=1e-9)
    assert found.values["binary_asd"] == pytest.approx(np.mean(distances), abs=1e-9)
