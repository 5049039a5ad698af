import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probes.stats import Interval, group_bootstrap_weights, interval

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


class TestInterval:
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

    @pytest.mark.parametrize(
        ("values", "level", "message"),
        [
            pytest.param(np.ones((3, 2)), 0.95, r"\(n_boot,\), .* got \(3, 2\)", id="2-d"),
            pytest.param(np.ones(0), 0.95, r"at least one; got \(0,\)", id="empty"),
            pytest.param(np.ones(3), 95, r"between 0 and 1, such as 0\.95; got 95", id="percent"),
        ],
    )
    def test_arguments_that_cannot_be_used(
        self, values: npt.NDArray[np.float64], level: float, message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            interval(values, level=level)


@given(seed=st.integers(0, 10_000), copies=st.integers(2, 5))
@settings(max_examples=40, deadline=None)
def test_copies_within_groups_do_not_shrink_the_interval(seed: int, copies: int) -> None:
    draws = np.random.default_rng(seed)
    groups = draws.integers(11, size=37)
    groups[:2] = 0, 1
    values = draws.standard_normal(37)

    def width(groups: npt.NDArray[np.int64], values: npt.NDArray[np.float64]) -> float:
        weights = group_bootstrap_weights(groups, n_boot=200, seed=seed).astype(float)
        found = interval(weights @ values / weights.sum(axis=1))
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
