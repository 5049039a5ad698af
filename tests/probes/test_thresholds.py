from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import precision_recall_curve, roc_curve

from probes.metrics.classification import evaluate
from probes.metrics.thresholds import thresholds_from

Array = npt.NDArray[Any]
RULES = ("youden_val", "f1_val")


def random_task(seed: int, n_items: int = 47, n_outputs: int = 3) -> tuple[Array, Array]:
    draws = np.random.default_rng(seed)
    truth = (draws.random((n_items, n_outputs)) < 0.4).astype(np.uint8)
    truth[:2] = [[0] * n_outputs, [1] * n_outputs]
    scores = (draws.integers(20, size=truth.shape) + 5 * truth) / 25
    return truth, scores.astype(np.float32)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_the_best_points_of_scikit_learns_curves(seed: int) -> None:
    truth, scores = random_task(seed)
    youden, f1 = (thresholds_from(truth, scores, rule) for rule in RULES)
    assert youden.shape == (3,)
    for column in range(3):
        false, true, limits = roc_curve(truth[:, column], scores[:, column])
        best = (true - false)[1:].max()
        assert youden[column] == limits[1:][(true - false)[1:] > best - 1e-9].max()
        precision, recall, limits = precision_recall_curve(truth[:, column], scores[:, column])
        value = 2 * precision * recall / np.maximum(precision + recall, 1e-9)
        assert f1[column] == limits[value[:-1] > value[:-1].max() - 1e-9].max()


def test_by_hand_and_the_highest_of_equals() -> None:
    truth = np.array([1, 0, 1, 0, 0])[:, None]
    scores = np.array([0.9, 0.8, 0.6, 0.3, 0.1])[:, None]
    # J: 1/2 at 0.9, 1/6, 2/3 at 0.6, 1/3, 0; F1: 2/3 at 0.9, 1/2, 4/5 at 0.6, 2/3, 4/7
    assert thresholds_from(truth, scores, "youden_val") == [0.6]
    assert thresholds_from(truth, scores, "f1_val") == [0.6]
    # J: 1/2 at 0.9, 0, 1/2 at 0.6, 0
    assert thresholds_from(truth[:4], scores[:4], "youden_val") == [0.9]


def test_an_output_of_one_label_has_none_and_its_metrics_are_nan() -> None:
    truth, scores = random_task(3)
    without = truth.copy()
    without[:, 1] = 0
    thresholds = {rule: thresholds_from(without, scores, rule) for rule in RULES}
    for values in thresholds.values():
        np.testing.assert_array_equal(np.isnan(values), [False, True, False])
    wanted = ["recall@youden_val", "micro_f1@f1_val", "subset_accuracy@f1_val", "recall", "auc"]
    found = evaluate(truth, scores, "multilabel", metrics=wanted, thresholds=thresholds)
    np.testing.assert_array_equal(
        np.isnan(found.per_class["recall@youden_val"]), [False, True, False]
    )
    assert np.isnan([found.overall[metric] for metric in wanted[:3]]).all()
    assert np.isfinite([found.overall[metric] for metric in wanted[3:]]).all()


def test_decisions_at_a_threshold_are_those_of_shifted_scores() -> None:
    truth, scores = random_task(4)
    held_truth, held_scores = random_task(5)
    thresholds = {rule: thresholds_from(held_truth, held_scores, rule) for rule in RULES}
    at = {"0.3": np.full(3, 0.3, np.float32), "0.5": np.full(3, 0.5), **thresholds}
    wanted = [f"f1@{name}" for name in at]
    found = evaluate(truth, scores, "multilabel", metrics=wanted, thresholds=thresholds)
    for name, limits in at.items():
        decided = (scores >= limits).astype(float)
        expected = evaluate(truth, decided, "multilabel", metrics=["f1"]).overall["f1"]
        assert found.overall[f"f1@{name}"] == expected
    plain = evaluate(truth, scores, "multilabel", metrics=["f1"])
    assert found.overall["f1@0.5"] == plain.overall["f1"]


def test_a_score_reaches_the_threshold_that_it_is_written_as() -> None:
    truth, scores = np.array([[1], [0]]), np.array([[0.7], [0.1]], np.float32)
    found = evaluate(truth, scores, "binary", metrics=["recall@0.7"])
    assert found.overall["recall@0.7"] == 1


def test_thresholds_that_are_missing_or_of_other_outputs() -> None:
    truth, scores = random_task(6)
    wanted = ["auc", "f1@youden_val"]
    with pytest.raises(ValueError, match="'f1@youden_val' needs validation items"):
        evaluate(truth, scores, "multilabel", metrics=wanted)
    with pytest.raises(ValueError, match="needs validation items"):
        evaluate(truth, scores, "multilabel", metrics=wanted, thresholds={"f1_val": np.ones(3)})
    thresholds = {"youden_val": np.ones(2)}
    with pytest.raises(ValueError, match=r"youden_val must be \(3,\), .* got \(2,\)"):
        evaluate(truth, scores, "multilabel", metrics=wanted, thresholds=thresholds)


@pytest.mark.parametrize(
    ("truth", "scores", "how", "message"),
    [
        pytest.param(np.ones((3, 2)), np.ones((3, 2)), "youden", "youden_val or f1_val", id="how"),
        pytest.param(
            np.ones((3, 2)), np.ones((3, 1)), "f1_val", r"got \(3, 2\) and \(3, 1\)", id="shapes"
        ),
        pytest.param(np.full((3, 2), 2), np.ones((3, 2)), "f1_val", "must be 0 or 1", id="truth"),
        pytest.param(
            np.ones((3, 2)), np.full((3, 2), np.nan), "f1_val", "scores finite", id="scores"
        ),
    ],
)
def test_validation_items_that_cannot_be_used(
    truth: Array, scores: Array, how: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        thresholds_from(truth, scores, how)
