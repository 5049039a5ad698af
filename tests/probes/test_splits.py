from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probes.splits import Split, check_no_leakage, split_by_column, stratified_group_folds


def split_of(sides: str) -> Split:
    """One letter for each item: t(rain), v(al), s (test), or - for none."""
    train, val, test = (np.array([side == letter for side in sides]) for letter in "tvs")
    return Split(train=train, val=val, test=test)


class TestSplitByColumn:
    def test_usual_spellings(self) -> None:
        values = ["train", " Training", "val", "VALID", "validation", "dev", "test", "Testing "]
        split = split_by_column(values)
        assert np.flatnonzero(split.train).tolist() == [0, 1]
        assert np.flatnonzero(split.val).tolist() == [2, 3, 4, 5]
        assert np.flatnonzero(split.test).tolist() == [6, 7]
        assert list(split.sides()) == ["train", "val", "test"]

    def test_validation_may_be_absent(self) -> None:
        split = split_by_column(np.array(["test", "train", "test"], dtype=object))
        assert split.val.tolist() == [False, False, False]
        assert split.test.tolist() == [True, False, True]

    def test_unknown_values_are_listed(self) -> None:
        values: list[Any] = ["train", "fold1", None, "holdout", "fold1", "unused"]
        with pytest.raises(ValueError, match=r"got fold1, holdout, none and 1 more\. Rename"):
            split_by_column(values)

    def test_an_item_is_on_one_side(self) -> None:
        both, none = np.array([False, True]), np.array([False, False])
        with pytest.raises(ValueError, match="one side at most; item 1 is on two"):
            Split(train=both, val=none, test=both)
        with pytest.raises(ValueError, match=r"got \(2,\), \(2,\) and \(1,\)"):
            Split(train=both, val=none, test=none[:1])


class TestStratifiedGroupFolds:
    @given(seed=st.integers(0, 10_000), k=st.integers(2, 5))
    @settings(max_examples=25, deadline=None)
    def test_no_group_in_two_folds_and_every_label_in_each(self, seed: int, k: int) -> None:
        draws = np.random.default_rng(seed)
        groups = draws.integers(43, size=131)
        labels = draws.integers(3, size=131)
        folds = stratified_group_folds(labels, groups, k=k, seed=seed)
        assert folds.shape == (131,)
        assert set(folds.tolist()) == set(range(k))
        for group in range(43):
            assert len(set(folds[groups == group].tolist())) <= 1
        for fold in range(k):
            check_no_leakage(
                groups,
                Split(train=folds != fold, val=np.zeros(131, dtype=bool), test=folds == fold),
            )
            assert set(labels[folds == fold].tolist()) == {0, 1, 2}

    def test_every_fold_gets_its_share(self) -> None:
        labels = np.array(["benign"] * 80 + ["malignant"] * 20)
        folds = stratified_group_folds(labels, np.arange(100), k=4, seed=3)
        for fold in range(4):
            assert (labels[folds == fold] == "benign").sum() == 20
            assert (labels[folds == fold] == "malignant").sum() == 5

    def test_the_seed_decides(self) -> None:
        labels, groups = np.arange(60) % 2, np.arange(60) // 3
        folds = [stratified_group_folds(labels, groups, k=5, seed=seed) for seed in (1, 1, 2)]
        np.testing.assert_array_equal(folds[0], folds[1])
        assert (folds[0] != folds[2]).any()

    def test_labels_and_groups_of_any_sort(self) -> None:
        labels = [0.0, 1.0] * 6
        groups = np.array([f"p{number // 2}" for number in range(12)], dtype=object)
        assert set(stratified_group_folds(labels, groups, k=3).tolist()) == {0, 1, 2}

    @pytest.mark.parametrize(
        ("labels", "groups", "k", "message"),
        [
            pytest.param(
                [0, 1, 0, 1],
                ["a", "a", "b", "b"],
                3,
                "3 folds need at least 3 groups, got 2; ask for fewer",
                id="groups",
            ),
            pytest.param(
                ["x", "y", "y", "x", "x", "x"],
                [1, 2, 3, 4, 5, 6],
                3,
                r"rarest class, 'y', has 2 group\(s\): at most 2 folds",
                id="rarest",
            ),
            pytest.param(
                ["x", "x", "x", "y", "y", "y"],
                [1, 2, 3, 4, 4, 4],
                3,
                r"rarest class, 'y', has 1 group\(s\): merge it or leave its items out",
                id="one-group-with-it",
            ),
            pytest.param([0, 1], ["a", "b"], 1, "at least 2, got k=1", id="one-fold"),
            pytest.param([0, 1], ["a"], 2, "of the same items, got 2 and 1", id="lengths"),
            pytest.param([], [], 2, r"labels must be \(n_items,\), .* got \(0,\)", id="no-items"),
            pytest.param([0, None], ["a", "b"], 2, "labels .* row 1 has None", id="no-label"),
            pytest.param([0, 1], ["a", None], 2, "groups .* row 1 has None", id="no-group"),
        ],
    )
    def test_arguments_that_cannot_be_used(
        self, labels: npt.ArrayLike, groups: npt.ArrayLike, k: int, message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            stratified_group_folds(labels, groups, k=k)

    def test_a_fold_that_came_out_without_a_label(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # Dealing greedily can do this where groups of very different sizes mix labels.
        monkeypatch.setattr("probes.splits._deal", lambda *_: np.array([0, 0, 1, 0]))
        message = (
            r"of every class, fold 1 got none of 'y'; try another seed \(now 3\) or fewer folds"
        )
        with pytest.raises(ValueError, match=message):
            stratified_group_folds(["x", "y", "x", "y"], [1, 2, 3, 4], k=2, seed=3)


class TestCheckNoLeakage:
    def test_groups_on_one_side_each(self) -> None:
        check_no_leakage(["a", "a", "b", "c", "c"], split_of("ttvss"))

    def test_items_on_no_side_do_not_count(self) -> None:
        check_no_leakage(["a", "a", "b"], split_of("t-s"))

    def test_up_to_three_groups_are_named(self) -> None:
        groups = ["d", "d", "a", "a", "b", "b", "c", "c", "e"]
        message = (
            r"4 of 5 are: 'a' in train and val, 'b' in val and test, 'c' in train and test "
            r"and 1 more\. Mend the split"
        )
        with pytest.raises(ValueError, match=message):
            check_no_leakage(groups, split_of("tstvvsstt"))

    @pytest.mark.parametrize(
        ("groups", "message"),
        [
            pytest.param(["a", "b"], "got 2 groups for 3 items", id="lengths"),
            pytest.param(["a", "b", None], "groups must be .* row 2 has None", id="missing"),
        ],
    )
    def test_groups_that_cannot_be_used(self, groups: list[Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            check_no_leakage(groups, split_of("tvs"))
