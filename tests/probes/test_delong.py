import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from probes.stats import delong, delong_test

Array = npt.NDArray[Any]

# Albumin (g/dl), total protein (g/dl), K-G score and whether surgery helped, of the 43 of 49
# patients of DeLong, DeLong and Clarke-Pearson 1988 who have all three; as printed in the manual
# of SAS/STAT, PROC LOGISTIC, "Comparing Receiver Operating Characteristic Curves".
OVARIAN_TEXT = """
    3.0 5.8 10 0  3.2 6.3 5 1  3.9 6.8 3 1  2.8 4.8 6 0  3.2 5.8 3 1  0.9 4.0 5 0  2.5 5.7 8 0
    1.6 5.6 5 1   3.8 5.7 5 1  3.7 6.7 6 1  3.2 5.4 4 1  3.8 6.6 6 1  4.1 6.6 5 1  3.6 5.7 5 1
    4.3 7.0 4 1   3.6 6.7 4 0  2.3 4.4 6 1  4.2 7.6 4 0  4.0 6.6 6 0  3.5 5.8 6 1  3.8 6.8 7 1
    3.0 4.7 8 0   4.5 7.4 5 1  3.7 7.4 5 1  3.1 6.6 6 1  4.1 8.2 6 1  4.3 7.0 5 1  4.3 6.5 4 1
    3.2 5.1 5 1   2.6 4.7 6 1  3.3 6.8 6 0  1.7 4.0 7 0  3.7 6.1 5 1  3.3 6.3 7 1  4.2 7.7 6 1
    3.5 6.2 5 1   2.9 5.7 9 0  2.1 4.8 7 1  2.8 6.2 8 0  4.0 7.0 7 1  3.3 5.7 6 1  3.7 6.9 5 1
    3.6 6.6 5 1
"""
OVARIAN = np.array(OVARIAN_TEXT.split(), dtype=float).reshape(-1, 4)
HELPED = OVARIAN[:, 3].astype(int)
ALBUMIN, PROTEIN, KG = OVARIAN[:, 0], OVARIAN[:, 1], 10 - OVARIAN[:, 2]


class TestPublished:
    """Figures as SAS prints them, to four places."""

    @pytest.mark.parametrize(
        ("scores", "auc", "error"),
        [
            pytest.param(ALBUMIN, 0.7366, 0.0927, id="albumin"),
            pytest.param(PROTEIN, 0.6478, 0.1000, id="total-protein"),
            pytest.param(KG, 0.7258, 0.1028, id="k-g"),
        ],
    )
    def test_areas(self, scores: Array, auc: float, error: float) -> None:
        found = delong(HELPED, scores)
        assert found.auc == pytest.approx(auc, abs=5e-5)
        assert math.sqrt(found.variance) == pytest.approx(error, abs=5e-5)

    @pytest.mark.parametrize(
        ("scores", "difference", "error", "low", "high", "chi_square", "p"),
        [
            pytest.param(
                ALBUMIN, 0.0108, 0.0953, -0.1761, 0.1976, 0.0127, 0.9102, id="albumin-k-g"
            ),
            pytest.param(
                PROTEIN, -0.0780, 0.1046, -0.2830, 0.1271, 0.5554, 0.4561, id="total-protein-k-g"
            ),
        ],
    )
    def test_differences(
        self,
        scores: Array,
        difference: float,
        error: float,
        low: float,
        high: float,
        chi_square: float,
        p: float,
    ) -> None:
        found = delong_test(HELPED, scores, KG)
        assert found.value == pytest.approx(difference, abs=5e-5)
        assert found.standard_error == pytest.approx(error, abs=5e-5)
        assert found.z**2 == pytest.approx(chi_square, abs=5e-5)
        assert found.p == pytest.approx(p, abs=5e-5)
        assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)
        assert found.level == 0.95


def random_task(seed: int) -> tuple[Array, Array, Array, Array]:
    """Truth, scores of two runs that tie often, and groups of several items."""
    draws = np.random.default_rng(seed)
    groups = draws.integers(13, size=41)
    truth = (draws.random(41) < 0.4).astype(int)
    truth[:4], groups[:4] = [0, 1, 0, 1], [0, 1, 2, 3]
    scores = draws.integers(8, size=(2, 41)) + 2 * truth + draws.integers(4, size=13)[groups]
    return truth, scores[0] / 16, scores[1] / 16, groups


def covariances(truth: Array, runs: list[Array], groups: Array) -> Array:
    """Obuchowski 1997 word by word: psi of all pairs, sums by cluster, S10 + S01 + 2 S11."""
    positives, negatives = np.flatnonzero(truth == 1), np.flatnonzero(truth == 0)
    clusters = np.unique(groups)
    by_positive, by_negative, areas = [], [], []
    for scores in runs:
        x, y = scores[positives][:, None], scores[negatives][None, :]
        psi = np.where(x > y, 1.0, np.where(x == y, 0.5, 0.0))
        areas.append(psi.mean())
        by_positive.append([psi.mean(axis=1)[groups[positives] == c] for c in clusters])
        by_negative.append([psi.mean(axis=0)[groups[negatives] == c] for c in clusters])
    m, n, i = len(positives), len(negatives), len(clusters)
    i10, i01 = len(set(groups[positives])), len(set(groups[negatives]))
    covariance = np.zeros((len(runs), len(runs)))
    for r in range(len(runs)):
        for s in range(len(runs)):
            s10 = s01 = s11_rs = s11_sr = 0.0
            for c in range(i):
                x_r, x_s = (sum(by_positive[k][c] - areas[k]) for k in (r, s))
                y_r, y_s = (sum(by_negative[k][c] - areas[k]) for k in (r, s))
                s10 += i10 / ((i10 - 1) * m) * x_r * x_s
                s01 += i01 / ((i01 - 1) * n) * y_r * y_s
                s11_rs += i / (i - 1) * x_r * y_s
                s11_sr += i / (i - 1) * x_s * y_r
            covariance[r, s] = s10 / m + s01 / n + (s11_rs + s11_sr) / (m * n)
    return covariance


@given(seed=st.integers(0, 10_000), clustered=st.booleans())
@settings(max_examples=30, deadline=None)
def test_areas_and_covariances_of_all_pairs(seed: int, clustered: bool) -> None:
    truth, scores_a, scores_b, groups = random_task(seed)
    expected = covariances(
        truth, [scores_a, scores_b], groups if clustered else np.arange(len(truth))
    )
    given_groups = groups if clustered else None
    for run, scores in enumerate((scores_a, scores_b)):
        found = delong(truth, scores, groups=given_groups)
        assert found.auc == pytest.approx(roc_auc_score(truth, scores))
        assert found.variance == pytest.approx(expected[run, run], rel=1e-9, abs=1e-15)
    apart = delong_test(truth, scores_a, scores_b, groups=given_groups, level=0.9)
    variance = expected[0, 0] + expected[1, 1] - 2 * expected[0, 1]
    assert apart.standard_error**2 == pytest.approx(variance, rel=1e-7, abs=1e-14)
    assert apart.high - apart.low == pytest.approx(2 * 1.6448536 * apart.standard_error)


def test_an_item_a_group_is_the_same_as_independent_items() -> None:
    truth, scores_a, scores_b, _ = random_task(1)
    names = [f"p{i}" for i in range(len(truth))]
    alone, grouped = delong(truth, scores_a), delong(truth, scores_a, groups=names)
    assert grouped.variance == pytest.approx(alone.variance, rel=1e-12)
    tests = [delong_test(truth, scores_a, scores_b, groups=groups) for groups in (None, names)]
    assert tests[0].p == pytest.approx(tests[1].p, rel=1e-9)


def test_copies_within_groups_make_nothing_surer() -> None:
    truth, scores, _, groups = random_task(2)
    once = delong(truth, scores, groups=groups)
    ten = [np.repeat(values, 10) for values in (truth, scores, groups)]
    assert delong(ten[0], ten[1], groups=ten[2]).variance == pytest.approx(once.variance, rel=1e-9)
    assert delong(ten[0], ten[1]).variance < once.variance / 4


def test_the_interval_is_even_on_the_logit_scale_and_stays_inside() -> None:
    found = delong(HELPED, ALBUMIN)
    low, high = found.interval(level=0.9)

    def logit(share: float) -> float:
        return math.log(share / (1 - share))

    reach = 1.6448536 * math.sqrt(found.variance) / (found.auc * (1 - found.auc))
    assert logit(high) - logit(found.auc) == pytest.approx(reach)
    assert logit(found.auc) - logit(low) == pytest.approx(reach)
    near = delong(np.array([0, 0, 0, 1, 1, 1]), np.array([1, 2, 4, 3, 5, 6]) / 6)
    assert 0 < near.interval()[0] < near.auc < near.interval()[1] < 1


def test_what_has_no_error_has_no_interval() -> None:
    perfect = delong(np.array([0, 0, 1, 1]), np.array([0.1, 0.2, 0.8, 0.9]))
    assert (perfect.auc, perfect.variance) == (1, 0)
    assert np.isnan(perfect.interval()).all()


def test_items_of_one_sort_have_no_area() -> None:
    found = delong(np.ones(3), np.array([0.1, 0.2, 0.3]))
    assert np.isnan([found.auc, found.variance, *found.interval()]).all()
    apart = delong_test(np.ones(3), np.array([0.1, 0.2, 0.3]), np.array([0.1, 0.2, 0.3]))
    assert np.isnan([apart.value, apart.z, apart.p, apart.low]).all()


def test_one_item_or_one_group_of_a_sort_has_no_variance() -> None:
    truth, scores = np.array([0, 0, 1]), np.array([0.1, 0.5, 0.3])
    assert delong(truth, scores).auc == 0.5
    assert np.isnan(delong(truth, scores).variance)
    truth, scores = np.array([0, 0, 1, 1]), np.array([0.1, 0.5, 0.3, 0.6])
    assert np.isnan(delong(truth, scores, groups=["a", "b", "c", "c"]).variance)


def test_runs_that_rank_alike_do_not_differ() -> None:
    truth, scores, _, groups = random_task(3)
    apart = delong_test(truth, scores, 7 * scores - 1, groups=groups)
    assert (apart.value, apart.standard_error, apart.z, apart.p) == (0, 0, 0, 1)


@pytest.mark.parametrize(
    ("truth", "scores", "groups", "level", "message"),
    [
        pytest.param([0, 1], [0.1], None, 0.95, r"got \(2,\) and \(1,\)", id="lengths"),
        pytest.param([[0], [1]], [[0.1], [0.2]], None, 0.95, r"\(n_items,\)", id="columns"),
        pytest.param([], [], None, 0.95, "at least one", id="empty"),
        pytest.param([0, 2], [0.1, 0.2], None, 0.95, "must be 0 or 1", id="truth"),
        pytest.param([0, 1], [0.1, np.nan], None, 0.95, "scores finite", id="nan"),
        pytest.param([0, 1], [0.1, 0.2], ["a"], 0.95, r"\(2,\) like the items, got 1", id="groups"),
        pytest.param([0, 1], [0.1, 0.2], None, 95, "between 0 and 1, such as", id="level"),
    ],
)
def test_arguments_that_cannot_be_used(
    truth: Any,  # noqa: ANN401
    scores: Any,  # noqa: ANN401
    groups: list[str] | None,
    level: float,
    message: str,
) -> None:
    with pytest.raises(ValueError, match=message):
        delong_test(truth, scores, scores, groups=groups, level=level)
