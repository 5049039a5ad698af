"""From columns of the item table to what a head learns."""

import numpy as np
import pandas as pd
import pytest

from dinocache.errors import ProbeError
from probes.targets import read_targets


def table(**columns: object) -> pd.DataFrame:
    """Five items with target columns."""
    ids = [f"i{n}" for n in range(5)]
    return pd.DataFrame({"item_id": ids, "path": ids, "group": ids, **columns})


@pytest.mark.parametrize(
    ("values", "positive", "expected"),
    [
        pytest.param([0, 1, 1, 0, 1], "1", [0, 1, 1, 0, 1], id="whole-numbers"),
        pytest.param([0.0, 1.0, 1.0, 0.0, 1.0], "1", [0, 1, 1, 0, 1], id="floats-that-are-whole"),
        pytest.param([True, False, True, True, False], "1", [1, 0, 1, 1, 0], id="booleans"),
        pytest.param(list("yynny"), "y", [1, 1, 0, 0, 1], id="else-the-last-in-order"),
        pytest.param(["Yes", "zero", "Yes", "Yes", "zero"], "Yes", [1, 0, 1, 1, 0], id="yes"),
        pytest.param(["pos", "un", "un", "pos", "un"], "pos", [1, 0, 0, 1, 0], id="pos"),
    ],
)
def test_two_values_are_binary(values: list[object], positive: str, expected: list[int]) -> None:
    targets = read_targets(table(t=values), ["t"], positive=None)
    assert (targets.kind, targets.classes) == ("binary", (positive,))
    assert targets.y.dtype == np.float32
    assert targets.y[:, 0].tolist() == expected
    assert targets.known.all()


def test_the_other_value_can_be_positive() -> None:
    items = table(t=["pa", "ap", "ap", "pa", "ap"])
    assert read_targets(items, ["t"], positive=None).classes == ("pa",)
    chosen = read_targets(items, ["t"], positive="ap")
    assert chosen.classes == ("ap",)
    assert chosen.y[:, 0].tolist() == [0, 1, 1, 0, 1]


def test_more_values_are_multiclass() -> None:
    targets = read_targets(table(t=list("cabbc")), ["t"], positive=None)
    assert (targets.kind, targets.classes) == ("multiclass", ("a", "b", "c"))
    assert targets.y.argmax(1).tolist() == [2, 0, 1, 1, 2]
    assert (targets.y.sum(1) == 1).all()
    assert targets.strata.tolist() == list("cabbc")


@pytest.mark.parametrize(
    "values",
    [
        pytest.param(pd.array([1, None, 0, 1, 0], "Int64"), id="whole-numbers"),
        pytest.param(pd.array(["1", None, "0", "1", "0"], "string"), id="text"),
        pytest.param([1.0, np.nan, 0.0, 1.0, 0.0], id="floats"),
        pytest.param([True, None, False, True, False], id="objects"),
    ],
)
def test_missing_values_are_unknown_and_no_class(values: object) -> None:
    targets = read_targets(table(t=values), ["t"], positive=None)
    assert targets.known.tolist() == [True, False, True, True, True]
    assert targets.kind == "binary"
    assert targets.y[targets.known, 0].tolist() == [1, 0, 1, 0]


def test_several_columns_are_multilabel_in_their_order() -> None:
    items = table(a=[1, 1, 1, 1, 0], b=[False, True, True, False, False], c=[0.0, 1, 0, 0, 0])
    targets = read_targets(items, ["c", "a", "b"], positive=None)
    assert (targets.kind, targets.classes) == ("multilabel", ("c", "a", "b"))
    assert targets.y.tolist() == [[0, 1, 0], [1, 1, 1], [0, 1, 1], [0, 1, 0], [0, 0, 0]]
    # Each item by the rarest label that it has: c once, b twice, a four times.
    assert targets.strata.tolist() == ["a", "c", "b", "a", "none"]


def test_an_item_needs_every_label() -> None:
    items = table(a=[1, 0, None, 1, 0], b=[0, 1, 1, None, 0])
    known = read_targets(items, ["a", "b"], positive=None).known
    assert known.tolist() == [True, True, False, False, True]


@pytest.mark.parametrize(
    ("columns", "positive", "message"),
    [
        pytest.param(["x"], None, "there is no target 'x'; the store has: t, u, one,", id="none"),
        pytest.param(["group"], None, "there is no target 'group'", id="reserved"),
        pytest.param(["one"], None, r"'one' has one class \('7'\); a probe needs", id="one-class"),
        pytest.param(["void"], None, r"'void' has one class \(no value\)", id="no-value"),
        pytest.param(["age"], None, "'age' has 5 different values; it looks like", id="measured"),
        pytest.param(["t"], "z", "--positive 'z': target 't' has a, b", id="positive"),
        pytest.param(
            ["u"], "a", "--positive is for two classes; 'u' has 3", id="positive-of-three"
        ),
        pytest.param(["bit", "t"], None, "'t' holds 'a'; with several targets", id="not-0-or-1"),
        pytest.param(["bit", "off"], None, "'off' has one class; a probe", id="label-of-one-class"),
    ],
)
def test_what_cannot_be_a_target_says_why(
    columns: list[str], positive: str | None, message: str
) -> None:
    items = table(
        t=list("abbab"),
        u=list("abcab"),
        one=[7] * 5,
        void=[None] * 5,
        age=[41.5, 17.25, 80.0, 63.1, 2.5],
        bit=[0, 1, 1, 0, 1],
        off=[0] * 5,
    )
    with pytest.raises(ProbeError, match=message):
        read_targets(items, columns, positive=positive)


def test_an_identifier_is_no_class() -> None:
    names = [f"p{n}" for n in range(201)]
    items = pd.DataFrame({"item_id": names, "path": names, "group": names, "who": names})
    with pytest.raises(ProbeError, match="'who' has 201 different values"):
        read_targets(items, ["who"], positive=None)
