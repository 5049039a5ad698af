from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pytest

from probes.metrics.classification import Kind, evaluate
from probes.metrics.names import known_metrics
from probes.metrics.swaps import swapped_differences
from probes.metrics.thresholds import thresholds_from
from probes.stats import group_swaps, holm, permutation_p_value

Array = npt.NDArray[Any]
KINDS: tuple[Kind, ...] = get_args(Kind)
N_ITEMS = 53
GROUPS = np.random.default_rng(0).integers(17, size=N_ITEMS)


def random_runs(kind: Kind, seed: int = 0) -> tuple[Array, Array, Array]:
    draws = np.random.default_rng(seed)
    n_outputs = {"binary": 1, "multiclass": 4, "multilabel": 3}[kind]
    truth = (draws.random((N_ITEMS, n_outputs)) < 0.4).astype(np.uint8)
    if kind == "multiclass":
        truth = np.eye(n_outputs, dtype=np.uint8)[draws.integers(n_outputs, size=N_ITEMS)]
    scores_a, scores_b = (
        (draws.integers(1, 12, size=truth.shape) / 12).astype(np.float32) for _ in range(2)
    )
    return truth, scores_a, scores_b


@pytest.mark.parametrize("kind", KINDS)
def test_every_swap_is_what_swapping_by_hand_gives(kind: Kind) -> None:
    truth, scores_a, scores_b = random_runs(kind)
    swaps = group_swaps(GROUPS, n_permutations=5, seed=3)
    # Scores of both runs are on one scale here; ranks and scores are swapped alike where a run's
    # ranks are its scores.
    wanted = [m for m in known_metrics(kind) if m not in ("auc", "average_precision")]
    sequences = GROUPS if kind == "multiclass" else None
    found = swapped_differences(
        truth, scores_a, scores_b, kind, swaps, metrics=wanted, sequences=sequences
    )
    assert list(found) == wanted
    for row, swap in enumerate(swaps):
        first, second = (
            evaluate(
                truth,
                np.where(swap[:, None], two, one),
                kind,
                metrics=wanted,
                sequences=sequences,
            ).overall
            for one, two in ((scores_a, scores_b), (scores_b, scores_a))
        )
        for metric in wanted:
            assert found[metric].shape == (5,)
            expected = first[metric] - second[metric]
            assert found[metric][row] == pytest.approx(expected, abs=1e-9), metric


@pytest.mark.parametrize("kind", KINDS)
def test_without_swaps_it_is_the_difference(kind: Kind) -> None:
    truth, scores_a, scores_b = random_runs(kind, seed=1)
    wanted = known_metrics(kind)
    none = np.zeros((1, N_ITEMS), dtype=bool)
    found = swapped_differences(
        truth, scores_a, scores_b, kind, none, metrics=wanted, sequences=GROUPS
    )
    of_a, of_b = (
        evaluate(truth, scores, kind, metrics=wanted, sequences=GROUPS).overall
        for scores in (scores_a, scores_b)
    )
    for metric in wanted:
        assert found[metric] == pytest.approx(of_a[metric] - of_b[metric], abs=1e-9), metric
    whole = swapped_differences(
        truth, scores_a, scores_b, kind, ~none, metrics=wanted, sequences=GROUPS
    )
    for metric in wanted:
        np.testing.assert_allclose(whole[metric], -found[metric], atol=1e-9)


def test_the_scale_of_a_run_does_not_matter_to_ranks_nor_its_threshold_to_decisions() -> None:
    truth, scores_a, scores_b = random_runs("binary", seed=2)
    swaps = group_swaps(GROUPS, n_permutations=7, seed=4)
    wanted = ["auc", "average_precision", "f1@youden_val", "f1"]

    def differences(scale: float) -> dict[str, Array]:
        scores = scale * scores_a
        return swapped_differences(
            truth,
            scores,
            scores_b,
            "binary",
            swaps,
            metrics=wanted,
            thresholds_a={"youden_val": thresholds_from(truth, scores, "youden_val")},
            thresholds_b={"youden_val": thresholds_from(truth, scores_b, "youden_val")},
        )

    before, after = differences(1), differences(0.0625)
    for metric in wanted[:3]:
        np.testing.assert_array_equal(before[metric], after[metric])
    assert (before["f1"] != after["f1"]).any()


def test_an_output_without_a_threshold_is_nan() -> None:
    truth, scores_a, scores_b = random_runs("multilabel")
    limits = {"f1_val": np.array([0.5, np.nan, 0.5])}, {"f1_val": np.array([0.5, 0.5, 0.5])}
    found = swapped_differences(
        truth,
        scores_a,
        scores_b,
        "multilabel",
        group_swaps(GROUPS, n_permutations=2),
        metrics=["recall@f1_val", "recall"],
        thresholds_a=limits[0],
        thresholds_b=limits[1],
    )
    assert np.isnan(found["recall@f1_val"]).all()
    assert np.isfinite(found["recall"]).all()


def p_value(seed: int, *, edge: float, n_permutations: int) -> float:
    """Of the AUCs of two runs on 60 patients with three images each."""
    draws = np.random.default_rng(seed)
    groups = np.repeat(np.arange(60), 3)
    truth = (draws.random(180) < 0.4)[:, None]
    common, *own = draws.standard_normal((3, 60))
    noise = 0.5 * common[groups] + [0.7 * one[groups] + draws.standard_normal(180) for one in own]
    # the runs write their scores on other scales
    scores_a, scores_b = truth + noise[0][:, None], np.exp((1 - edge) * truth + noise[1][:, None])
    swaps = group_swaps(groups, n_permutations=n_permutations, seed=seed)
    swaps[0] = False
    found = swapped_differences(truth, scores_a, scores_b, "binary", swaps, metrics=["auc"])
    return permutation_p_value(float(found["auc"][0]), found["auc"][1:])


def test_without_a_difference_p_values_are_uniform() -> None:
    p = np.array([p_value(seed, edge=0, n_permutations=100) for seed in range(300)])
    for level in (0.1, 0.25, 0.5, 0.75):
        # standard error at most 0.029
        assert np.mean(p <= level) == pytest.approx(level, abs=0.08)


def test_a_planted_difference_is_found_among_others() -> None:
    p = [p_value(seed, edge=edge, n_permutations=400) for seed, edge in enumerate([0.8, 0, 0, 0])]
    adjusted = holm(p)
    assert adjusted[0] < 0.05
    assert (adjusted[1:] > 0.05).all()


@pytest.mark.parametrize(
    ("swaps", "message"),
    [
        pytest.param(np.zeros((2, 52), bool), r"\(n_swaps, 53\) bool, got \(2, 52\)", id="length"),
        pytest.param(np.zeros(53, bool), r"got \(53,\) bool", id="flat"),
        pytest.param(np.zeros((2, 53)), "got .* float64", id="dtype"),
    ],
)
def test_swaps_that_cannot_be_used(swaps: Array, message: str) -> None:
    truth, scores_a, scores_b = random_runs("binary")
    with pytest.raises(ValueError, match=message):
        swapped_differences(truth, scores_a, scores_b, "binary", swaps)


def test_runs_on_other_items() -> None:
    truth, scores_a, scores_b = random_runs("binary")
    swaps = np.zeros((2, N_ITEMS), dtype=bool)
    with pytest.raises(ValueError, match=r"same items, got scores \(53, 1\) and \(52, 1\)"):
        swapped_differences(truth, scores_a, scores_b[1:], "binary", swaps)
