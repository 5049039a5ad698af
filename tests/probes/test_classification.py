from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, precision_recall_fscore_support, roc_auc_score

from probes.metrics.classification import METRICS, Kind, Metric, evaluate

Array = npt.NDArray[Any]
KINDS: tuple[Kind, ...] = get_args(Kind)
N_ITEMS = 61


def random_task(kind: Kind, seed: int = 0, n_items: int = N_ITEMS) -> tuple[Array, Array]:
    """Truth and scores; the scores tie often, and also at 0.5."""
    draws = np.random.default_rng(seed)
    n_outputs = {"binary": 1, "multiclass": 4, "multilabel": 3}[kind]
    scores = (draws.integers(9, size=(n_items, n_outputs)) / 8).astype(np.float32)
    if kind == "multiclass":
        return np.eye(n_outputs)[draws.integers(n_outputs, size=n_items)], scores
    return (draws.random((n_items, n_outputs)) < 0.4).astype(np.uint8), scores


def by_scikit_learn(truth: Array, scores: Array, kind: Kind, weights: Array) -> dict[Metric, Any]:
    """The same values, per class where there are some, one library call after the other."""
    columns = range(truth.shape[1])
    auc = [roc_auc_score(truth[:, c], scores[:, c], sample_weight=weights) for c in columns]
    if kind == "multiclass":
        labels, decided = truth.argmax(axis=1), scores.argmax(axis=1)
        accuracy: Any = accuracy_score(labels, decided, sample_weight=weights)
        counted = precision_recall_fscore_support(
            labels, decided, labels=list(columns), sample_weight=weights, zero_division=0
        )
    else:
        decided = scores >= 0.5
        accuracy = [
            accuracy_score(truth[:, c], decided[:, c], sample_weight=weights) for c in columns
        ]
        each = [
            precision_recall_fscore_support(
                truth[:, c], decided[:, c], average="binary", sample_weight=weights, zero_division=0
            )
            for c in columns
        ]
        counted = list(zip(*each, strict=True))
    precision, recall, f1 = counted[:3]
    return {"auc": auc, "accuracy": accuracy, "precision": precision, "recall": recall, "f1": f1}


@pytest.mark.parametrize("kind", KINDS)
class TestEveryKind:
    def test_values_are_those_of_scikit_learn(self, kind: Kind) -> None:
        truth, scores = random_task(kind)
        draws = np.random.default_rng(5)
        weights = np.stack([np.ones(N_ITEMS), draws.random(N_ITEMS), draws.poisson(1, N_ITEMS)])
        found = evaluate(truth, scores, kind, weights=weights)
        for replicate, row in enumerate(weights):
            for metric, expected in by_scikit_learn(truth, scores, kind, row).items():
                overall = found.overall[metric][replicate]
                np.testing.assert_allclose(overall, np.mean(expected), rtol=0, atol=1e-9)
                if metric in found.per_class:
                    per_class = found.per_class[metric][replicate]
                    np.testing.assert_allclose(per_class, expected, rtol=0, atol=1e-9)
        assert found.auc_skipped == ()

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
    @settings(max_examples=25, deadline=None)
    def test_whole_weights_are_repeated_items(self, kind: Kind, seed: int) -> None:
        truth, scores = random_task(kind, seed)
        weights = np.random.default_rng(seed + 1).integers(0, 4, N_ITEMS)
        weighted = evaluate(truth, scores, kind, weights=weights)
        rows = np.repeat(np.arange(N_ITEMS), weights)
        repeated = evaluate(truth[rows], scores[rows], kind)
        for metric in METRICS:
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
        before = evaluate(truth, scores, kind, weights=weights)
        after = evaluate(truth[order], scores[order], kind, weights=7 * weights[order])
        for metric in METRICS:
            np.testing.assert_allclose(after.overall[metric], before.overall[metric], rtol=1e-12)

    def test_blocks_change_nothing(self, kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
        truth, scores = random_task(kind)
        weights = np.random.default_rng(3).poisson(1, (7, N_ITEMS))
        whole = evaluate(truth, scores, kind, weights=weights)
        monkeypatch.setattr("probes.metrics.classification._BLOCK", 2 * N_ITEMS)
        pieces = evaluate(truth, scores, kind, weights=weights)
        for metric in METRICS:
            np.testing.assert_allclose(pieces.overall[metric], whole.overall[metric], rtol=1e-12)

    def test_only_what_is_asked_for(self, kind: Kind) -> None:
        truth, scores = random_task(kind)
        wanted: list[Metric] = ["f1", "auc"]
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


def test_an_unknown_metric_lists_the_known_ones() -> None:
    unknown: Any = ["auc", "kappa"]
    message = "no metric 'kappa'; known: auc, accuracy, precision, recall, f1"
    with pytest.raises(ValueError, match=message):
        evaluate(np.array([[0], [1]]), np.ones((2, 1)), "binary", metrics=unknown)
