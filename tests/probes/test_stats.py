from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap, norm, t

from probes.stats import (
    Difference,
    Interval,
    group_bootstrap_weights,
    group_draws,
    interval,
    paired_bootstrap,
)

Array = npt.NDArray[np.float64]

GROUPS = np.array(["p7", "p1", "p7", "p3", "p3", "p3", "p9"])


class TestGroupBootstrapWeights:
    def test_a_group_is_drawn_whole(self) -> None:
        weights = group_bootstrap_weights(GROUPS, n_boot=50, seed=0)
        assert weights.shape == (50, 7)
        assert weights.dtype == np.uint16
        np.testing.assert_array_equal(weights[:, 0], weights[:, 2])
        np.testing.assert_array_equal(weights[:, 3:5], weights[:, 4:6])

    def test_as_many_groups_are_drawn_as_there_are(self) -> None:
        weights = group_bootstrap_weights(GROUPS, n_boot=50, seed=0)
        first_of_each_group = weights[:, [0, 1, 3, 6]]
        np.testing.assert_array_equal(first_of_each_group.sum(axis=1), np.full(50, 4))

    def test_each_group_is_drawn_once_on_average(self) -> None:
        weights = group_bootstrap_weights(np.arange(6), n_boot=4000, seed=1)
        # the multiplicity is binomial(6, 1/6): mean 1, variance 5/6
        np.testing.assert_allclose(weights.mean(axis=0), np.ones(6), atol=5 * 0.0144)
        np.testing.assert_allclose(weights.var(axis=0), np.full(6, 5 / 6), rtol=0.15)

    def test_draws_depend_on_the_seed_alone(self) -> None:
        weights = group_bootstrap_weights(GROUPS, n_boot=9, seed=5)
        np.testing.assert_array_equal(
            weights[:4], group_bootstrap_weights(GROUPS, n_boot=4, seed=5)
        )
        assert (weights != group_bootstrap_weights(GROUPS, n_boot=9, seed=6)).any()
        order = np.random.default_rng(0).permutation(7)
        shuffled = group_bootstrap_weights(GROUPS[order], n_boot=9, seed=5)
        np.testing.assert_array_equal(shuffled, weights[:, order])

    def test_groups_may_be_numbers_or_python_strings(self) -> None:
        _, numbers = np.unique(GROUPS, return_inverse=True)
        expected = group_bootstrap_weights(GROUPS, n_boot=3, seed=2)
        for groups in (numbers, GROUPS.tolist(), GROUPS.astype(object)):
            got = group_bootstrap_weights(groups, n_boot=3, seed=2)
            np.testing.assert_array_equal(got, expected)

    @pytest.mark.parametrize(
        ("groups", "n_boot", "seed", "message"),
        [
            pytest.param(["a", "a"], 9, 0, "at least 2 groups to draw from, got 1", id="one-group"),
            pytest.param([], 9, 0, "at least 2 groups to draw from, got 0", id="no-items"),
            pytest.param([["a"], ["b"]], 9, 0, r"must be \(n_items,\), .* got \(2, 1\)", id="2-d"),
            pytest.param(["a", None], 9, 0, "row 1 has None", id="missing"),
            pytest.param([3.0, np.nan], 9, 0, "row 1 has nan", id="nan"),
            pytest.param(["a", "b"], 0, 0, "got n_boot=0, seed=0", id="n-boot"),
            pytest.param(["a", "b"], 9, -1, "got n_boot=9, seed=-1", id="seed"),
        ],
    )
    def test_arguments_that_cannot_be_used(
        self, groups: npt.ArrayLike, n_boot: int, seed: int, message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            group_bootstrap_weights(groups, n_boot=n_boot, seed=seed)


class TestGroupDraws:
    def test_one_column_a_group(self) -> None:
        weights = group_bootstrap_weights(GROUPS, n_boot=5, seed=0)
        draws = group_draws(weights, GROUPS)
        assert (draws.shape, draws.dtype) == ((5, 4), np.uint16)
        np.testing.assert_array_equal(draws, weights[:, [1, 3, 0, 6]])  # p1, p3, p7, p9

    def test_weights_of_other_items(self) -> None:
        with pytest.raises(ValueError, match=r"\(n_boot, 7\) like the items, got \(5, 6\)"):
            group_draws(np.ones((5, 6)), GROUPS)


def skewed_mean(
    n_groups: int, n_boot: int, seed: int = 0
) -> tuple[Array, Array, float, npt.NDArray[np.uint16]]:
    """A mean of skewed values, one a group: values, replicates, estimate, draws."""
    x = np.random.default_rng(seed).exponential(size=n_groups) ** 1.5
    draws = group_bootstrap_weights(np.arange(n_groups), n_boot=n_boot, seed=seed + 1)
    return x, draws @ x / n_groups, float(x.mean()), draws


class TestPercentile:
    def test_percentiles_by_hand(self) -> None:
        found = interval(np.arange(101.0), level=0.9)
        assert isinstance(found, Interval)
        assert (found.low, found.high) == pytest.approx((5, 95))
        assert (found.level, found.n_defined, found.n_replicates) == (0.9, 101, 101)

    def test_undefined_replicates_are_left_out_and_counted(self) -> None:
        values = np.array([np.nan, 3.0, 1.0, np.nan, 2.0])
        found = interval(values, level=0.5)
        assert (found.low, found.high) == (1.5, 2.5)
        assert (found.n_defined, found.n_replicates) == (3, 5)

    def test_nothing_defined_is_nan(self) -> None:
        found = interval(np.full(4, np.nan))
        assert np.isnan([found.low, found.high]).all()
        assert (found.n_defined, found.n_replicates) == (0, 4)
        assert not found.degenerate


class TestAccelerated:
    def test_the_formulas_word_by_word(self) -> None:
        x, values, estimate, draws = skewed_mean(23, 50_000)
        found = interval(values, estimate=estimate, draws=draws, level=0.9)
        z0 = norm.ppf(np.mean(values < estimate))
        jackknife = np.array([np.delete(x, i).mean() for i in range(23)])
        apart = jackknife.mean() - jackknife
        a = (apart**3).sum() / (6 * (apart**2).sum() ** 1.5)
        for end, level in ((found.low, 0.05), (found.high, 0.95)):
            z = np.sqrt(23 / 22) * t.ppf(level, 22)
            adjusted = norm.cdf(z0 + (z0 + z) / (1 - a * (z0 + z)))
            # a and z0 are themselves of 50,000 replicates
            assert end == pytest.approx(np.quantile(values, adjusted), abs=0.04 * values.std())

    def test_with_many_groups_it_is_that_of_scipy(self) -> None:
        x, values, estimate, draws = skewed_mean(300, 6000)
        found = interval(values, estimate=estimate, draws=draws)
        expected = bootstrap(
            (x,), np.mean, n_resamples=6000, method="BCa", rng=np.random.default_rng(5)
        ).confidence_interval
        width = expected.high - expected.low
        assert found.low == pytest.approx(expected.low, abs=0.05 * width)
        assert found.high == pytest.approx(expected.high, abs=0.05 * width)
        plain = interval(values)
        assert found.low > plain.low + 0.03 * width
        assert found.high > plain.high + 0.03 * width

    def test_few_groups_widen_it(self) -> None:
        values = np.random.default_rng(2).standard_normal(5000)
        draws = group_bootstrap_weights(np.arange(5), n_boot=5000, seed=9)
        found = interval(values, estimate=0.0, draws=draws)
        reach = np.sqrt(5 / 4) * t.ppf(0.975, 4)  # 3.1 instead of 1.96
        assert (found.low, found.high) == pytest.approx((-reach, reach), rel=0.15)

    def test_undefined_replicates_are_left_out_with_their_draws(self) -> None:
        _, values, estimate, draws = skewed_mean(23, 200)
        holes = values.copy()
        holes[::3] = np.nan
        found = interval(holes, estimate=estimate, draws=draws)
        kept = ~np.isnan(holes)
        whole = interval(values[kept], estimate=estimate, draws=draws[kept])
        assert (found.low, found.high) == (whole.low, whole.high)
        assert (found.n_defined, found.n_replicates) == (kept.sum(), 200)

    def test_an_estimate_beyond_all_replicates_stays_among_them(self) -> None:
        _, values, _, draws = skewed_mean(23, 200)
        for estimate in (values.min() - 9, values.max() + 9):
            found = interval(values, estimate=float(estimate), draws=draws)
            assert values.min() <= found.low <= found.high <= values.max()

    def test_an_estimate_that_is_not_defined(self) -> None:
        _, values, _, draws = skewed_mean(23, 200)
        found = interval(values, estimate=np.nan, draws=draws)
        assert np.isnan([found.low, found.high]).all()
        assert found.n_defined == 200

    def test_where_all_replicates_agree(self) -> None:
        draws = group_bootstrap_weights(np.arange(9), n_boot=50)
        found = interval(np.ones(50), estimate=1.0, draws=draws)
        assert (found.low, found.high) == (1, 1)
        assert found.degenerate
        assert not interval(np.arange(50.0)).degenerate


@pytest.mark.parametrize(
    ("values", "given_", "message"),
    [
        pytest.param(np.ones((3, 2)), {}, r"\(n_boot,\), .* got \(3, 2\)", id="2-d"),
        pytest.param(np.ones(0), {}, r"at least one; got \(0,\)", id="empty"),
        pytest.param(
            np.ones(3), {"level": 95}, r"between 0 and 1, such as 0\.95; got 95", id="percent"
        ),
        pytest.param(np.ones(3), {"estimate": 0.5}, "both estimate and draws", id="no-draws"),
        pytest.param(
            np.ones(3),
            {"estimate": 0.5, "draws": np.ones((2, 5))},
            r"draws must be \(3, n_groups\) of at least 2 groups, got \(2, 5\)",
            id="other-draws",
        ),
        pytest.param(
            np.ones(3), {"estimate": 0.5, "draws": np.ones((3, 1))}, "at least 2 groups", id="one"
        ),
    ],
)
def test_intervals_that_cannot_be(values: Array, given_: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        interval(values, **given_)


class TestPairedBootstrap:
    def runs(self, apart: float, seed: int, n_groups: int = 40) -> tuple[Array, Array, float, Any]:
        """Means of two runs on the same groups."""
        draws = np.random.default_rng(seed)
        x = draws.standard_normal(n_groups) + 0.5 * draws.standard_normal((2, n_groups))
        x[0] += apart
        drawn = group_bootstrap_weights(np.arange(n_groups), n_boot=400, seed=seed)
        values = drawn @ x.T / n_groups
        return values[:, 0], values[:, 1], float(x[0].mean() - x[1].mean()), drawn

    def test_a_planted_difference_is_found(self) -> None:
        values_a, values_b, estimate, draws = self.runs(0.5, seed=0)
        found = paired_bootstrap(values_a, values_b, estimate=estimate, draws=draws)
        assert isinstance(found, Difference)
        assert found.value == estimate
        assert 0 < found.low < estimate < found.high
        assert found.p < 0.01
        assert (found.level, found.n_defined, found.n_replicates) == (0.95, 400, 400)
        turned = paired_bootstrap(values_b, values_a, estimate=-estimate, draws=draws)
        assert turned.p == pytest.approx(found.p)
        assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low), rel=0.03)

    def test_its_p_value_is_the_level_that_reaches_zero(self) -> None:
        values_a, values_b, estimate, draws = self.runs(0.15, seed=2)
        found = paired_bootstrap(values_a, values_b, estimate=estimate, draws=draws)
        assert 0.01 < found.p < 0.9
        at = interval(values_a - values_b, estimate=estimate, draws=draws, level=1 - found.p)
        assert min(abs(at.low), abs(at.high)) < 0.02 * (at.high - at.low)

    def test_without_a_difference_p_values_are_uniform(self) -> None:
        p = []
        for seed in range(400):
            values_a, values_b, estimate, draws = self.runs(0, seed=seed)
            p.append(paired_bootstrap(values_a, values_b, estimate=estimate, draws=draws).p)
        for level in (0.05, 0.1, 0.25, 0.5, 0.75):
            # standard error at most 0.025
            assert np.mean(np.array(p) <= level) == pytest.approx(level, abs=0.075)

    def test_runs_that_are_the_same_do_not_differ(self) -> None:
        values, _, _, draws = self.runs(0, seed=1)
        found = paired_bootstrap(values, values, estimate=0.0, draws=draws)
        assert (found.value, found.low, found.high, found.p) == (0, 0, 0, 1)

    def test_what_is_not_defined(self) -> None:
        values, other, estimate, draws = self.runs(0, seed=1)
        found = paired_bootstrap(values, np.full(400, np.nan), estimate=estimate, draws=draws)
        assert np.isnan([found.low, found.high, found.p]).all()
        assert found.n_defined == 0
        with pytest.raises(ValueError, match=r"draw by draw, got \(400,\) and \(399,\)"):
            paired_bootstrap(values, other[1:], estimate=estimate, draws=draws)


@given(seed=st.integers(0, 10_000), copies=st.sampled_from([2, 10]))
@settings(max_examples=40, deadline=None)
def test_copies_within_groups_do_not_shrink_the_interval(seed: int, copies: int) -> None:
    draws = np.random.default_rng(seed)
    groups = draws.integers(11, size=37)
    groups[:2] = 0, 1
    values = draws.standard_normal(37)

    def width(groups: npt.NDArray[np.int64], values: npt.NDArray[np.float64]) -> float:
        weights = group_bootstrap_weights(groups, n_boot=200, seed=seed)
        replicates = weights @ values / weights.sum(axis=1)
        draws = group_draws(weights, groups)
        found = interval(replicates, estimate=float(values.mean()), draws=draws)
        return found.high - found.low

    copied = width(np.repeat(groups, copies), np.repeat(values, copies))
    assert copied == pytest.approx(width(groups, values), rel=1e-9)


def test_dependent_items_widen_the_interval() -> None:
    # 40 patients, 6 identical images each: as uncertain as 40 images, not as 240.
    values = np.repeat(np.random.default_rng(4).standard_normal(40), 6)

    def width(groups: npt.NDArray[np.int64]) -> float:
        weights = group_bootstrap_weights(groups, n_boot=800, seed=0).astype(float)
        found = interval(weights @ values / weights.sum(axis=1))
        return found.high - found.low

    by_patient, by_image = width(np.repeat(np.arange(40), 6)), width(np.arange(240))
    assert by_patient / by_image == pytest.approx(np.sqrt(6), rel=0.15)
