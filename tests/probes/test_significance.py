import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import permutation_test

from probes.stats import group_swaps, holm, permutation_p_value

GROUPS = np.array(["p7", "p1", "p7", "p3", "p3", "p3", "p9"])


class TestGroupSwaps:
    def test_a_group_is_swapped_whole(self) -> None:
        swaps = group_swaps(GROUPS, n_permutations=50, seed=0)
        assert (swaps.shape, swaps.dtype) == ((50, 7), np.bool_)
        np.testing.assert_array_equal(swaps[:, 0], swaps[:, 2])
        np.testing.assert_array_equal(swaps[:, 3:5], swaps[:, 4:6])

    def test_each_group_is_swapped_half_the_times_whatever_the_others_do(self) -> None:
        swaps = group_swaps(np.arange(5), n_permutations=4000, seed=1).astype(float)
        np.testing.assert_allclose(swaps.mean(axis=0), np.full(5, 0.5), atol=5 * 0.0079)
        np.testing.assert_allclose(np.corrcoef(swaps.T), np.eye(5), atol=5 * 0.0158)

    def test_swaps_depend_on_the_seed_alone(self) -> None:
        swaps = group_swaps(GROUPS, n_permutations=9, seed=5)
        np.testing.assert_array_equal(swaps[:4], group_swaps(GROUPS, n_permutations=4, seed=5))
        assert (swaps != group_swaps(GROUPS, n_permutations=9, seed=6)).any()
        order = np.random.default_rng(0).permutation(7)
        shuffled = group_swaps(GROUPS[order], n_permutations=9, seed=5)
        np.testing.assert_array_equal(shuffled, swaps[:, order])

    @pytest.mark.parametrize(
        ("groups", "n_permutations", "message"),
        [
            pytest.param(["a", None], 9, "row 1 has None", id="missing"),
            pytest.param(["a", "b"], 0, "got n_permutations=0, seed=0", id="none"),
        ],
    )
    def test_arguments_that_cannot_be_used(
        self, groups: npt.ArrayLike, n_permutations: int, message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            group_swaps(groups, n_permutations=n_permutations)


class TestPermutation:
    def test_by_hand(self) -> None:
        permuted = [0.3, -0.2, 0.1, -0.31, 0.3 + 1e-15, np.nan]
        assert permutation_p_value(0.3, permuted) == (1 + 3) / (1 + 5)
        assert permutation_p_value(-0.3, permuted) == (1 + 3) / (1 + 5)
        assert permutation_p_value(0, permuted) == 1

    def test_what_is_not_defined(self) -> None:
        assert np.isnan(permutation_p_value(np.nan, [0.1, 0.2]))
        assert np.isnan(permutation_p_value(0.1, [np.nan]))
        with pytest.raises(ValueError, match=r"\(n_permutations,\), at least one; got \(0,\)"):
            permutation_p_value(0.1, [])

    def test_flipped_signs_of_means_are_those_of_scipy(self) -> None:
        # a difference of means over groups is the mean of signed differences
        draws = np.random.default_rng(2)
        apart = draws.standard_normal(23) + 0.45
        swaps = group_swaps(np.arange(23), n_permutations=20_000, seed=3)
        permuted = np.where(swaps, -apart, apart).mean(axis=1)
        expected = permutation_test(
            (apart, np.zeros(23)),
            lambda one, other, axis: np.mean(one - other, axis=axis),
            permutation_type="samples",
            vectorized=True,
            n_resamples=20_000,
            rng=np.random.default_rng(4),
        ).pvalue
        assert 0.01 < expected < 0.2
        # standard errors of 0.0015 each
        assert permutation_p_value(apart.mean(), permuted) == pytest.approx(expected, abs=0.008)


class TestHolm:
    def test_by_hand(self) -> None:
        # sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1 is 0.02, 0.03, 0.06, 0.04 -> 0.06
        np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])

    def test_tests_without_a_value_do_not_count(self) -> None:
        np.testing.assert_allclose(holm([np.nan, 0.02, np.nan, 0.3]), [np.nan, 0.04, np.nan, 0.3])
        assert np.isnan(holm([np.nan])).all()
        assert holm([]).shape == (0,)

    @given(values=st.lists(st.floats(0, 1), min_size=1, max_size=9), level=st.floats(0.001, 0.5))
    def test_findings_are_those_of_stepping_down(self, values: list[float], level: float) -> None:
        # Holm's own words: from the smallest on, stop at the first p above level / tests left
        ranked = sorted(range(len(values)), key=values.__getitem__)
        adjusted = holm(values)
        found = set()
        for step, test in enumerate(ranked):
            if values[test] * (len(values) - step) > level:
                break
            found.add(test)
        assert {int(i) for i in np.flatnonzero(adjusted <= level)} == found
        assert (adjusted >= values).all()
        assert (adjusted <= 1).all()

    @pytest.mark.parametrize("values", [[0.1, 1.2], [-0.1], [[0.1]]])
    def test_values_that_are_none(self, values: npt.ArrayLike) -> None:
        with pytest.raises(ValueError, match=r"\(n_tests,\) from 0 to 1"):
            holm(values)
