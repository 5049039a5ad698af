"""Splits by rule: what published code draws, and what no rule may do."""

import hashlib

import numpy as np
import pandas as pd
import pytest
from sklearn.model_selection import KFold, StratifiedKFold, train_test_split

from dinocache.errors import TableError
from dinocache.manifest import Folds, Parts, Step
from dinocache.splits import add_splits, check_no_leaks, digest_of, side_of


def items(n: int, *, per_group: int = 1) -> pd.DataFrame:
    rng = np.random.default_rng(n)
    numbers = rng.permutation(n)  # the order of a table must not count
    return pd.DataFrame(
        {
            "item_id": [f"i{k:04d}" for k in numbers],
            "group": [f"g{k // per_group:04d}" for k in numbers],
            "label": [str(k // per_group % 3 == 0) for k in numbers],
            "site": [f"s{k // per_group % 7}" for k in numbers],
            "split": ["test" if k // per_group % 5 == 0 else "Training" for k in numbers],
        }
    )


def sides(table: pd.DataFrame, name: str) -> dict[str, set[str]]:
    column = table[f"split.{name}"]
    return {str(side): set(table["item_id"][column == side]) for side in column.dropna().unique()}


def test_two_draws_are_those_of_the_code_that_published_them() -> None:
    """MGCA's RSNA: train_test_split(df, 0.3, 0), then (test, valid) of what is left."""
    table = items(203)
    rule = Parts(steps=(Step(share=0.3, to="test"), Step(share=0.5, of="test", to="val")))
    made = sides(add_splits(table, {"mgca": rule}, "d"), "mgca")
    frame = table.sort_values("item_id").reset_index(drop=True)
    train, rest = train_test_split(frame, test_size=0.3, random_state=0)
    test, val = train_test_split(rest, test_size=0.5, random_state=0)
    expected = {"train": train, "test": test, "val": val}
    assert made == {side: set(part["item_id"]) for side, part in expected.items()}


def test_folds_are_scikit_learns_over_sorted_groups() -> None:
    table = items(61)
    ids = np.array(sorted(table["item_id"]))
    labels = table.set_index("item_id")["label"].loc[ids]
    made = add_splits(
        table,
        {"plain": Folds(folds=4, seed=3), "strata": Folds(folds=5, stratify=("label",))},
        "d",
    )
    plain = KFold(4, shuffle=True, random_state=3).split(ids)
    assert sides(made, "plain") == {str(f): set(ids[t]) for f, (_, t) in enumerate(plain)}
    strata = StratifiedKFold(5, shuffle=True, random_state=0).split(ids, labels)
    assert sides(made, "strata") == {str(f): set(ids[t]) for f, (_, t) in enumerate(strata)}


def test_a_base_keeps_its_test_side() -> None:
    table = items(120, per_group=3)
    rules = {
        "folds": Folds(folds=3, base="official", stratify=("label",)),
        "val": Parts(base="official", steps=(Step(share=0.25, to="val", stratify=("label",)),)),
    }
    made = add_splits(table, rules, "d")
    tested = set(table["item_id"][table["split"] == "test"])
    assert sides(made, "folds").keys() == {"0", "1", "2", "test"}
    assert sides(made, "folds")["test"] == sides(made, "val")["test"] == tested
    assert len(sides(made, "val")["val"]) == 24  # of 32 groups of three a quarter
    check_no_leaks(made, "d")


def test_the_order_of_a_table_does_not_count() -> None:
    table = items(90, per_group=2)
    rules = {
        "cv": Folds(folds=5, stratify=("site",)),
        "p": Parts(steps=(Step(share=0.2, to="test"),)),
    }
    turned = table.iloc[::-1].reset_index(drop=True)
    one, other = (add_splits(t, rules, "d") for t in (table, turned))
    for name in ("split.cv", "split.p", "split"):
        assert digest_of(one, name) == digest_of(other, name)


def test_groups_with_several_labels_count_once() -> None:
    """A patient with any lesion is one with a lesion."""
    table = pd.DataFrame(
        {
            "item_id": [f"i{k}" for k in range(40)],
            "group": [f"g{k // 2}" for k in range(40)],
            "lesion": ["1" if k in range(1, 20, 2) else "0" for k in range(40)],
        }
    )
    rule = Parts(steps=(Step(share=0.2, to="test", stratify=("lesion",)),))
    made = sides(add_splits(table, {"p": rule}, "d"), "p")
    diseased = {f"i{k}" for k in range(20)}
    assert len(made["test"]) == 8
    assert len(made["test"] & diseased) == 4


def test_strata_of_one_are_put_together() -> None:
    table = items(30)
    table["label"] = ["common"] * 27 + ["one", "two", "three"]
    rule = Parts(steps=(Step(share=0.2, to="test", stratify=("label",)),))
    assert len(sides(add_splits(table, {"p": rule}, "d"), "p")["test"]) == 6
    table["label"] = ["common"] * 29 + ["alone"]
    assert len(sides(add_splits(table, {"p": rule}, "d"), "p")["test"]) == 6


def test_what_cannot_be_drawn() -> None:
    table = items(12)
    with pytest.raises(TableError, match=r"d: split 'cv': the items have no column 'moon'"):
        add_splits(table, {"cv": Folds(folds=3, stratify=("moon",))}, "d")
    with pytest.raises(TableError, match=r"d: split 'cv' cannot be drawn: Cannot have .*=50"):
        add_splits(table, {"cv": Folds(folds=50)}, "d")
    undrawn: list[str] = []
    made = add_splits(table, {"cv": Folds(folds=50)}, "d", undrawn)
    assert made["split.cv"].isna().all()
    assert undrawn[0].startswith("d: split 'cv' cannot be drawn")
    with pytest.raises(TableError, match=r"d: split 'p': the items have no column 'split.none'"):
        add_splits(table, {"p": Parts(base="none", steps=(Step(share=0.5, to="val"),))}, "d")


def test_a_group_on_two_sides() -> None:
    table = items(12, per_group=2)
    check_no_leaks(table, "d")
    table.loc[table["item_id"] == "i0003", "split"] = "test"
    with pytest.raises(
        TableError, match=r"d: 1 of 6 groups .* 'split', as 'g0001' in test and train"
    ):
        check_no_leaks(table, "d")
    table["split"] = None
    table["split.cv"] = ["0"] * 11 + ["1"]
    with pytest.raises(TableError, match=r"of 'split.cv', as .* in 0 and 1"):
        check_no_leaks(table, "d")


def test_the_digest_is_what_it_says() -> None:
    table = pd.DataFrame({"item_id": ["b", "a", "c"], "split": ["test", "train", None]})
    assert digest_of(table, "split") == hashlib.sha256(b"a\ttrain\nb\ttest\n").hexdigest()
    assert [side_of(s) for s in (" Validation", "DEV", "testing", "3")] == [
        "val",
        "val",
        "test",
        "3",
    ]
