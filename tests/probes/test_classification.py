import warnings
from collections.abc import Callable, Iterable
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pytest
import sklearn.metrics as library
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve

from probes.metrics.classification import METRICS, Kind, evaluate
from probes.metrics.names import known_metrics

Array = npt.NDArray[Any]
KINDS: tuple[Kind, ...] = get_args(Kind)
N_ITEMS = 61
AVERAGED: dict[str, Callable[..., Any]] = {
    "precision": library.precision_score,
    "recall": library.recall_score,
    "f1": library.f1_score,
    "jaccard": library.jaccard_score,
}


def random_task(
    kind: Kind, seed: int = 0, n_items: int = N_ITEMS, dtype: str = "float32"
) -> tuple[Array, Array]:
    """Truth and scores; the scores tie often, and also at 0.5."""
    draws = np.random.default_rng(seed)
    n_outputs = {"binary": 1, "multiclass": 4, "multilabel": 3}[kind]
    scores = (draws.integers(9, size=(n_items, n_outputs)) / 8).astype(dtype)
    if kind == "multiclass":
        return np.eye(n_outputs)[draws.integers(n_outputs, size=n_items)], scores
    return (draws.random((n_items, n_outputs)) < 0.4).astype(np.uint8), scores


def names_of(kind: Kind) -> tuple[str, ...]:
    return tuple(n for n in known_metrics(kind) if not n.startswith(("video_", "relaxed_")))


def of_label(
    truth: Array, scores: Array, weights: Array, decided: Array, wanted: Iterable[str]
) -> dict[str, float]:
    """Metrics of one label by scikit-learn; ECE by Guo's equation 3, bin by bin."""
    kept: dict[str, Any] = {"sample_weight": weights}
    plain: dict[str, Callable[[], float]] = {
        "auc": lambda: library.roc_auc_score(truth, scores, **kept),
        "average_precision": lambda: library.average_precision_score(truth, scores, **kept),
        "accuracy": lambda: library.accuracy_score(truth, decided, **kept),
        "balanced_accuracy": lambda: library.balanced_accuracy_score(truth, decided, **kept),
        "specificity": lambda: library.recall_score(truth, decided, pos_label=0, **kept),
        "kappa": lambda: library.cohen_kappa_score(truth, decided, **kept),
        "mcc": lambda: library.matthews_corrcoef(truth, decided, **kept),
        "brier": lambda: library.brier_score_loss(truth, scores, **kept),
        "log_loss": lambda: library.log_loss(truth, scores, labels=[0, 1], **kept),
        "ece": lambda: calibration_error(truth, scores, weights),
    }
    values = {}
    for name in wanted:
        average, _, base = name.rpartition("_")
        if name in plain:
            values[name] = plain[name]()
        elif base in AVERAGED:
            average = {"": "binary", "twoclass": "macro"}.get(average, average)
            values[name] = AVERAGED[base](truth, decided, average=average, zero_division=0, **kept)
    return values


def calibration_error(right: Array, confidence: Array, weights: Array) -> float:
    error = 0.0
    for low in range(15):
        inside = (confidence > low / 15) & (confidence <= (low + 1) / 15)
        inside |= (confidence == 0) & (low == 0)
        if weights[inside].sum() > 0:
            accuracy = np.average(right[inside], weights=weights[inside])
            mean = np.average(confidence[inside], weights=weights[inside])
            error += weights[inside].sum() / weights.sum() * abs(accuracy - mean)
    return error


def of_classes(truth: Array, scores: Array, weights: Array) -> dict[str, Any]:
    """The same of exclusive classes."""
    labels, decided = truth.argmax(axis=1), scores.argmax(axis=1)
    chances = scores / scores.sum(axis=1, keepdims=True)
    kept: dict[str, Any] = {"sample_weight": weights}
    values = {
        "accuracy": library.accuracy_score(labels, decided, **kept),
        "balanced_accuracy": library.balanced_accuracy_score(labels, decided, **kept),
        "kappa": library.cohen_kappa_score(labels, decided, **kept),
        "mcc": library.matthews_corrcoef(labels, decided, **kept),
        "brier": library.brier_score_loss(labels, chances, scale_by_half=False, **kept),
        "log_loss": library.log_loss(labels, chances, **kept),
        "ece": calibration_error(decided == labels, chances.max(axis=1), weights),
    }
    return values | averages(labels, decided, weights)


def averages(labels: Array, decided: Array, weights: Array) -> dict[str, Any]:
    return {
        f"{average}_{base}": score(
            labels, decided, average=average, zero_division=0, sample_weight=weights
        )
        for base, score in AVERAGED.items()
        for average in ("macro", "weighted", "micro")
    }


def by_scikit_learn(truth: Array, scores: Array, kind: Kind, weights: Array) -> dict[str, Any]:
    """The overall values, one library call after the other."""
    decided = scores >= 0.5
    if kind == "multiclass":
        decided = np.eye(truth.shape[1], dtype=bool)[scores.argmax(axis=1)]
    values: dict[str, Any] = {}
    if kind == "multiclass":
        values |= of_classes(truth, scores, weights)
    if kind == "multilabel":
        values |= averages(truth, decided, weights)
        values["subset_accuracy"] = library.accuracy_score(truth, decided, sample_weight=weights)
    others = [name for name in names_of(kind) if name not in values]
    columns = zip(truth.T, scores.T, decided.T, strict=True)
    each = [of_label(y, s, weights, d, others) for y, s, d in columns]
    return values | {name: np.mean([one[name] for one in each]) for name in others}


@pytest.mark.parametrize("kind", KINDS)
class TestEveryKind:
    @given(seed=st.integers(0, 10_000))
    @settings(max_examples=4, deadline=None)
    def test_values_are_those_of_scikit_learn(self, kind: Kind, seed: int) -> None:
        truth, scores = random_task(kind, seed, dtype="float64")
        scores[:, 0] = np.where(scores.sum(axis=1) == 0, 0.125, scores[:, 0])
        draws = np.random.default_rng(seed + 1)
        weights = np.stack([draws.random(N_ITEMS), draws.poisson(2, N_ITEMS)])
        found = evaluate(truth, scores, kind, weights=weights, metrics=names_of(kind))
        for replicate, row in enumerate(weights):
            expected = by_scikit_learn(truth, scores, kind, row)
            for metric in names_of(kind):
                np.testing.assert_allclose(
                    found.overall[metric][replicate], expected[metric], atol=1e-9, err_msg=metric
                )
        assert found.auc_skipped == ()

    def test_values_of_each_class_are_those_of_the_class_against_the_rest(self, kind: Kind) -> None:
        truth, scores = random_task(kind, dtype="float64")
        weights = np.random.default_rng(5).random(N_ITEMS)
        found = evaluate(truth, scores, kind, weights=weights, metrics=names_of(kind))
        decided, chances = scores >= 0.5, scores
        if kind == "multiclass":
            decided = np.eye(4, dtype=bool)[scores.argmax(axis=1)]
            chances = scores / scores.sum(axis=1, keepdims=True)
        alone = {"accuracy", "balanced_accuracy", "ece", "log_loss"}
        averaged = ("macro_", "weighted_", "micro_", "subset_")
        assert set(found.per_class) == {
            name
            for name in names_of(kind)
            if not name.startswith(averaged) and not (kind == "multiclass" and name in alone)
        }
        for column in range(truth.shape[1]):
            ranked, given = scores[:, column], chances[:, column]
            expected = of_label(
                truth[:, column], ranked, weights, decided[:, column], found.per_class
            )
            expected["brier"] = np.average((given - truth[:, column]) ** 2, weights=weights)
            for metric, values in found.per_class.items():
                np.testing.assert_allclose(values[column], expected[metric], err_msg=metric)

    def test_every_name_can_be_asked_for_alone(self, kind: Kind) -> None:
        truth, scores = random_task(kind)
        together = evaluate(truth, scores, kind, metrics=names_of(kind))
        for metric in names_of(kind):
            alone = evaluate(truth, scores, kind, metrics=[metric])
            assert alone.overall[metric] == together.overall[metric]

    def test_shapes_follow_the_weights(self, kind: Kind) -> None:
        truth, scores = random_task(kind)
        n_outputs = truth.shape[1]
        for leading in [(), (5,), (5, 2)]:
            weights = np.ones((*leading, N_ITEMS))
            found = evaluate(truth, scores, kind, weights=weights)
            assert list(found.overall) == list(METRICS)
            assert {v.shape for v in found.overall.values()} == {leading}
            assert {v.shape for v in found.per_class.values()} == {(*leading, n_outputs)}
            without = {"accuracy"} if kind == "multiclass" else set()
            assert set(found.per_class) == set(METRICS) - without

    @pytest.mark.parametrize("dtype", [bool, np.uint16, np.float32])
    def test_weights_of_one_are_no_weights(self, kind: Kind, dtype: type) -> None:
        truth, scores = random_task(kind)
        plain = evaluate(truth, scores, kind)
        weighted = evaluate(truth, scores, kind, weights=np.ones((2, N_ITEMS), dtype=dtype))
        for metric in METRICS:
            for value in weighted.overall[metric]:
                assert value == plain.overall[metric]

    @given(seed=st.integers(0, 10_000))
    @settings(max_examples=15, deadline=None)
    def test_whole_weights_are_repeated_items(self, kind: Kind, seed: int) -> None:
        truth, scores = random_task(kind, seed)
        weights = np.random.default_rng(seed + 1).integers(0, 4, N_ITEMS)
        weighted = evaluate(truth, scores, kind, weights=weights, metrics=names_of(kind))
        rows = np.repeat(np.arange(N_ITEMS), weights)
        repeated = evaluate(truth[rows], scores[rows], kind, metrics=names_of(kind))
        for metric in names_of(kind):
            if metric in weighted.per_class:
                np.testing.assert_allclose(
                    weighted.per_class[metric], repeated.per_class[metric], atol=1e-12
                )
            if not repeated.auc_skipped:
                np.testing.assert_allclose(
                    weighted.overall[metric], repeated.overall[metric], atol=1e-12
                )

    def test_order_of_items_and_scale_of_weights_do_not_count(self, kind: Kind) -> None:
        truth, scores = random_task(kind)
        draws = np.random.default_rng(2)
        weights, order = draws.random(N_ITEMS), draws.permutation(N_ITEMS)
        before = evaluate(truth, scores, kind, weights=weights, metrics=names_of(kind))
        after = evaluate(
            truth[order], scores[order], kind, weights=7 * weights[order], metrics=names_of(kind)
        )
        for metric in names_of(kind):
            np.testing.assert_allclose(after.overall[metric], before.overall[metric], rtol=1e-12)

    def test_blocks_change_nothing(self, kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
        truth, scores = random_task(kind)
        weights = np.random.default_rng(3).poisson(1, (7, N_ITEMS))
        whole = evaluate(truth, scores, kind, weights=weights, metrics=names_of(kind))
        monkeypatch.setattr("probes.metrics.classification._BLOCK", 2 * N_ITEMS)
        pieces = evaluate(truth, scores, kind, weights=weights, metrics=names_of(kind))
        for metric in names_of(kind):
            np.testing.assert_allclose(pieces.overall[metric], whole.overall[metric], rtol=1e-12)

    def test_only_what_is_asked_for(self, kind: Kind) -> None:
        truth, scores = random_task(kind)
        wanted: list[str] = ["f1", "auc"]
        found = evaluate(truth, scores, kind, metrics=wanted)
        assert list(found.overall) == list(found.per_class) == wanted
        assert found.overall["f1"] == evaluate(truth, scores, kind).overall["f1"]


def test_binary_by_hand() -> None:
    truth = np.array([[1], [1], [1], [0], [0]])
    scores = np.array([[0.9], [0.5], [0.2], [0.5], [0.1]])  # 0.5 counts as positive
    found = evaluate(truth, scores, "binary")
    # pairs won: 2 of 2, 1.5 of 2, 1 of 2
    assert found.overall["auc"] == pytest.approx(4.5 / 6)
    assert found.overall["accuracy"] == pytest.approx(3 / 5)
    assert found.overall["precision"] == pytest.approx(2 / 3)
    assert found.overall["recall"] == pytest.approx(2 / 3)
    assert found.overall["f1"] == pytest.approx(2 / 3)


def test_multiclass_by_hand() -> None:
    truth = np.eye(3)[[0, 0, 1, 1, 1]]
    scores = np.array([[9, 1, 0], [1, 9, 0], [0, 9, 0], [0, 9, 0], [5, 5, 0]]) / 10
    # decided: 0, 1, 1, 1, and 0 as the first of equals; class 2 neither occurs nor is named
    found = evaluate(truth, scores, "multiclass")
    assert found.overall["accuracy"] == pytest.approx(3 / 5)
    np.testing.assert_allclose(found.per_class["precision"], [1 / 2, 2 / 3, 0])
    np.testing.assert_allclose(found.per_class["recall"], [1 / 2, 2 / 3, 0])
    assert found.overall["f1"] == pytest.approx((1 / 2 + 2 / 3) / 3)
    assert found.auc_skipped == (2,)
    np.testing.assert_allclose(found.per_class["auc"], [5 / 6, 4 / 6, np.nan])
    assert found.overall["auc"] == pytest.approx((5 + 4) / 12)


def test_a_column_of_one_label_has_no_auc_and_is_reported() -> None:
    truth = np.array([[0, 1, 1, 0], [0, 1, 0, 1], [0, 1, 1, 1]])
    scores = np.array([[0.2, 0.9, 0.7, 0.1], [0.6, 0.8, 0.3, 0.7], [0.1, 0.7, 0.2, 0.9]])
    found = evaluate(truth, scores, "multilabel")
    assert found.auc_skipped == (0, 1)
    np.testing.assert_array_equal(found.per_class["auc"], [np.nan, np.nan, 0.5, 1])
    assert found.overall["auc"] == 0.75
    assert found.per_class["recall"].tolist() == [0, 1, 0.5, 1]
    alone = evaluate(truth[:, :1], scores[:, :1], "binary")
    assert alone.auc_skipped == (0,)
    assert np.isnan(alone.overall["auc"])


def test_a_replicate_without_positives_is_not_a_mean_over_fewer_classes() -> None:
    truth = np.array([[0, 1, 1], [0, 1, 0], [0, 0, 1], [0, 0, 0]])
    scores = np.array([[0.2, 0.9, 0.7], [0.6, 0.8, 0.3], [0.1, 0.7, 0.2], [0.3, 0.1, 0.1]])
    weights = np.array([[1, 1, 1, 1], [0, 0, 2, 2], [2, 0, 0, 2]])
    found = evaluate(truth, scores, "multilabel", weights=weights)
    assert found.auc_skipped == (0,)
    np.testing.assert_array_equal(np.isnan(found.overall["auc"]), [False, True, False])
    np.testing.assert_array_equal(
        np.isnan(found.per_class["auc"]),
        [[True, False, False], [True, True, False], [True, False, False]],
    )
    for metric in ("precision", "recall", "f1"):
        np.testing.assert_array_equal(np.isnan(found.overall[metric]), [False, True, False])
    assert np.isfinite(found.overall["accuracy"]).all()


def test_weighted_recall_is_accuracy() -> None:
    truth, scores = random_task("multiclass")
    found = evaluate(truth, scores, "multiclass")
    support = truth.mean(axis=0)
    assert found.per_class["recall"] @ support == pytest.approx(found.overall["accuracy"])


@pytest.mark.parametrize(
    ("truth", "scores", "kind", "message"),
    [
        pytest.param(
            np.ones((4, 1)),
            np.ones((4, 2)),
            "binary",
            r"both be \(n_items, n_outputs\), .* got \(4, 1\) and \(4, 2\)",
            id="shapes",
        ),
        pytest.param(np.ones(4), np.ones(4), "binary", r"got \(4,\) and \(4,\)", id="flat"),
        pytest.param(
            np.ones((0, 2)), np.ones((0, 2)), "multilabel", "at least one of each", id="no-items"
        ),
        pytest.param(
            np.full((4, 1), -1), np.ones((4, 1)), "binary", "0 or 1, got -1; leave out", id="values"
        ),
        pytest.param(
            np.ones((2, 1)), np.array([[1], [np.nan]]), "binary", "finite, row 1 is not", id="nan"
        ),
        pytest.param(
            np.ones((4, 1)),
            np.ones((4, 1)),
            "ordinal",
            "one of binary, multiclass, multilabel; got 'ordinal'",
            id="kind",
        ),
        pytest.param(
            np.ones((4, 2)), np.ones((4, 2)), "binary", "one column, got 2; keep", id="binary"
        ),
        pytest.param(
            np.ones((4, 1)), np.ones((4, 1)), "multiclass", r"got 1 column\(s\)", id="one-class"
        ),
        pytest.param(
            np.ones((4, 3)), np.ones((4, 3)), "multiclass", "rows with 3 to 3 ones", id="one-hot"
        ),
    ],
)
def test_truth_and_scores_that_cannot_be_used(
    truth: Array, scores: Array, kind: Kind, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(truth, scores, kind)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        pytest.param(np.ones(5), r"must be \(..., 4\) like the items, got \(5,\)", id="length"),
        pytest.param(np.ones((0, 4)), r"got \(0, 4\)", id="no-replicates"),
        pytest.param(np.float64(1), r"got \(\)", id="number"),
        pytest.param([1, 1, 1, -1], "finite and at least 0", id="negative"),
        pytest.param([1, 1, 1, np.nan], "finite and at least 0", id="nan"),
        pytest.param([[1, 1, 1, 1], [0, 0, 0, 0]], r"all be 0; .* replicate \(1,\)", id="zero"),
    ],
)
def test_weights_that_cannot_be_used(weights: npt.ArrayLike, message: str) -> None:
    truth = np.array([[0], [1], [0], [1]])
    with pytest.raises(ValueError, match=message):
        evaluate(truth, truth.astype(float), "binary", weights=np.asarray(weights))


def test_two_by_two_by_hand() -> None:
    # 6 right of 10: 3 of 4 with the label, 3 of 6 without
    truth = np.array([1, 1, 1, 1, 0, 0, 0, 0, 0, 0])[:, None]
    scores = np.array([0.9, 0.8, 0.7, 0.2, 0.6, 0.6, 0.6, 0.1, 0.1, 0.1])[:, None]
    wanted = ["specificity", "balanced_accuracy", "jaccard", "kappa", "mcc", "macro_recall"]
    found = evaluate(truth, scores, "binary", metrics=wanted).overall
    assert found["specificity"] == 3 / 6
    assert found["balanced_accuracy"] == found["macro_recall"] == (3 / 4 + 3 / 6) / 2
    assert found["jaccard"] == 3 / 7
    by_chance = (6 * 4 + 4 * 6) / 100
    assert found["kappa"] == pytest.approx((0.6 - by_chance) / (1 - by_chance))
    assert found["mcc"] == pytest.approx((3 * 3 - 3 * 1) / np.sqrt(6 * 4 * 4 * 6))


def test_probabilities_by_hand() -> None:
    truth = np.array([[1], [0], [0], [1]])
    scores = np.array([[0.9], [0.9], [0.2], [1.0]])
    found = evaluate(truth, scores, "binary", metrics=["brier", "ece", "log_loss"]).overall
    assert found["brier"] == pytest.approx((0.01 + 0.81 + 0.04 + 0) / 4)
    # bins: two of 0.9 and one right; one of 0.2 and none; one of 1.0 and right
    assert found["ece"] == pytest.approx((2 * 0.4 + 0.2 + 0) / 4)
    logs = np.log([0.9, 0.1, 0.8, 1.0])
    assert found["log_loss"] == pytest.approx(-logs.mean())


@given(seed=st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_calibration_error_follows_from_scikit_learns_curve(seed: int) -> None:
    draws = np.random.default_rng(seed)
    scores = draws.random(90).astype(np.float32)
    truth = (draws.random(90) < scores**2).astype(int)
    shares, means = calibration_curve(truth, scores, n_bins=15)
    bins = np.ceil(scores.astype(np.float64) * 15)
    counts = np.bincount(bins.astype(int))
    expected = (np.abs(shares - means) * counts[counts > 0] / 90).sum()
    found = evaluate(truth[:, None], scores[:, None], "binary", metrics=["ece"])
    assert found.overall["ece"] == pytest.approx(expected, abs=1e-7)


def test_a_certain_mistake_costs_no_more_than_the_precision_of_the_scores() -> None:
    truth, scores = np.array([1, 0, 1]), np.array([0, 1, 0.5], np.float32)
    found = evaluate(truth[:, None], scores[:, None], "binary", metrics=["log_loss"])
    expected = library.log_loss(truth, scores)
    assert found.overall["log_loss"] == pytest.approx(expected, rel=1e-6)


def test_classes_that_do_not_add_up_are_divided_by_their_sum() -> None:
    truth = np.eye(3)[[0, 1, 2]]
    scores = np.array([[0.2, 0.1, 0.1], [0.9, 0.6, 0.3], [0, 0, 0]])
    chances = np.array([[2, 1, 1], [2, 4 / 3, 2 / 3], [4 / 3, 4 / 3, 4 / 3]]) / 4
    wanted = ["brier", "ece", "log_loss"]
    found = evaluate(truth, scores, "multiclass", metrics=wanted).overall
    assert found["brier"] == pytest.approx(((chances - truth) ** 2).sum() / 3)
    assert found["log_loss"] == pytest.approx(-np.log([1 / 2, 1 / 3, 1 / 3]).mean())
    # two of the bin up to 1/2 (1/2, right, and 1/2, wrong), one of that up to 1/3 (wrong)
    assert found["ece"] == pytest.approx(abs(1 / 2 + 1 / 2 - 1) / 3 + 1 / 9)


def test_what_is_no_probability_is_refused_where_it_matters() -> None:
    truth, scores = np.array([[1], [0], [1]]), np.array([[0.2], [1.5], [0.3]])
    evaluate(truth, scores, "binary", metrics=["auc"])
    with pytest.raises(ValueError, match=r"'brier' needs probabilities, .* row 1 has others"):
        evaluate(truth, scores, "binary", metrics=["brier"])


def test_labels_and_their_averages_by_hand() -> None:
    truth = np.array([[1, 0], [1, 1], [0, 0], [0, 0]])
    decided = np.array([[1, 0], [0, 1], [0, 1], [0, 0]])
    names = ["recall", "precision", "micro_precision", "weighted_recall", "twoclass_precision"]
    wanted = [*names, "subset_accuracy"]
    found = evaluate(truth, decided.astype(float), "multilabel", metrics=wanted).overall
    assert found["recall"] == (1 / 2 + 1) / 2
    assert found["precision"] == (1 + 1 / 2) / 2
    assert found["micro_precision"] == 2 / 3
    assert found["weighted_recall"] == pytest.approx((2 * 1 / 2 + 1 * 1) / 3)
    assert found["twoclass_precision"] == pytest.approx(((1 + 2 / 3) / 2 + (1 / 2 + 1) / 2) / 2)
    assert found["subset_accuracy"] == 2 / 4


TWO_SIDED = ["auc", "average_precision", "balanced_accuracy", "kappa", "mcc"]


def test_what_compares_two_sides_leaves_out_a_column_of_one() -> None:
    truth = np.array([[0, 1, 1], [0, 1, 0], [0, 1, 1], [0, 1, 0]])
    scores = np.array([[0.2, 0.9, 0.7], [0.6, 0.8, 0.3], [0.1, 0.7, 0.2], [0.3, 0.1, 0.1]])
    found = evaluate(truth, scores, "multilabel", metrics=TWO_SIDED)
    assert found.auc_skipped == (0, 1)
    for metric in TWO_SIDED:
        np.testing.assert_array_equal(np.isnan(found.per_class[metric]), [True, True, False])
        assert found.overall[metric] == found.per_class[metric][2]
        alone = evaluate(truth[:, :1], scores[:, :1], "binary", metrics=[metric])
        assert np.isnan(alone.overall[metric])


def test_where_nothing_is_called_what_divides_by_zero_is_zero() -> None:
    truth, scores = np.array([[1], [0], [0]]), np.array([[0.4], [0.2], [0.1]])
    wanted = ["precision", "recall", "f1", "jaccard", "kappa", "mcc"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = evaluate(truth, scores, "binary", metrics=wanted).overall
    assert [float(found[metric]) for metric in wanted] == [0, 0, 0, 0, 0, 0]
    classes = np.eye(3)[[0, 1, 2]]
    one = np.tile([1.0, 0, 0], (3, 1))
    found = evaluate(classes, one, "multiclass", metrics=["mcc", "kappa"]).overall
    assert [float(value) for value in found.values()] == [0, 0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_replicate_that_lost_a_class_says_nothing_about_it(kind: Kind) -> None:
    truth, scores = random_task(kind)
    without = np.where(truth[:, 0] == 1, 0, 1)
    found = evaluate(truth, scores, kind, weights=without, metrics=names_of(kind))
    about_the_class = {
        *("auc", "average_precision", "balanced_accuracy", "precision", "recall", "f1", "jaccard"),
        *(f"macro_{base}" for base in AVERAGED),
        *(f"twoclass_{base}" for base in ("precision", "recall", "f1")),
    }
    if kind != "multiclass":
        about_the_class |= {"kappa", "mcc"}
    lost = {metric for metric, value in found.overall.items() if np.isnan(value)}
    assert lost == about_the_class & set(names_of(kind))
    for metric, values in found.per_class.items():
        wanted = metric in {*about_the_class, "kappa", "mcc"}
        np.testing.assert_array_equal(np.isnan(values[1:]), np.zeros(len(values) - 1))
        assert np.isnan(values[0]) == wanted


def test_a_replicate_that_lost_all_without_the_label_has_no_specificity() -> None:
    truth, scores = np.array([[1], [0], [1]]), np.array([[0.9], [0.2], [0.3]])
    wanted = ["specificity", "recall", "twoclass_recall", "micro_recall"]
    found = evaluate(truth, scores, "binary", weights=np.array([1, 0, 1]), metrics=wanted).overall
    assert np.isnan(found["specificity"])
    assert np.isnan(found["twoclass_recall"])
    assert found["recall"] == found["micro_recall"] == 0.5


def test_labels_without_any_positive_in_a_replicate_have_no_micro_average() -> None:
    truth, scores = np.array([[1, 0], [0, 0]]), np.array([[0.9, 0.8], [0.2, 0.1]])
    wanted = ["micro_f1", "weighted_recall"]
    lost = evaluate(truth, scores, "multilabel", weights=np.array([0, 1]), metrics=wanted)
    assert np.isnan(list(lost.overall.values())).all()
    never = evaluate(truth[1:], scores[:1], "multilabel", metrics=wanted)
    assert [float(value) for value in never.overall.values()] == [0, 0]


def test_whole_numbers_may_be_scores() -> None:
    truth = np.array([[1], [0], [0]])
    found = evaluate(truth, truth, "binary", metrics=["accuracy@0.7", "brier"])
    assert (found.overall["accuracy@0.7"], found.overall["brier"]) == (1, 0)


def test_an_unknown_metric_is_refused() -> None:
    with pytest.raises(ValueError, match="no metric 'kapa', did you mean 'kappa'"):
        evaluate(np.array([[0], [1]]), np.ones((2, 1)), "binary", metrics=["auc", "kapa"])
