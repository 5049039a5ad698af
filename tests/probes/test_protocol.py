"""Who trains, who chooses and who is tested."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cohorts import made_up

from dinocache.errors import ProbeError, RequestError
from probes.cohort import Cohort, load_cohort
from probes.features import ItemFeatures
from probes.protocol import Fold, draw_folds
from probes.request import FitRequest
from probes.runs import SplitFacts
from probes.splits import Split, draw_fraction, draw_shots

GROUPS = np.repeat([f"g{k:02d}" for k in range(30)], 3)
LABELS = np.repeat(["sick" if k % 3 == 0 else "well" for k in range(30)], 3)

Drawn = tuple[list[Fold], SplitFacts, Cohort]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Drawn]:
    """Folds of made-up items."""

    def draw(features: ItemFeatures, *, validates: bool = False, **asked: Any) -> Drawn:  # noqa: ANN401
        monkeypatch.setattr("probes.cohort.load_item_features", lambda *_: features)
        request = FitRequest(store=Path("made-up"), targets=asked.pop("targets", ("t",)), **asked)
        cohort = load_cohort(request)
        return *draw_folds(request, cohort, cohort, validates=validates), cohort

    return draw


def sides(folds: list[Fold]) -> list[tuple[int, int, int]]:
    return [(len(fold.train), len(fold.val), len(fold.test)) for fold in folds]


def test_repeated_folds_are_other_folds(drawn: Callable[..., Drawn]) -> None:
    folds, facts, cohort = drawn(made_up(LABELS, GROUPS), folds=5, repeats=3)
    assert (len(folds), facts.folds, facts.repeats) == (15, 5, 3)
    for repeat in range(3):
        tested = np.concatenate([fold.test for fold in folds[repeat * 5 : repeat * 5 + 5]])
        assert sorted(tested) == list(range(90))
    of_repeats = [
        {frozenset(cohort.groups[fold.test]) for fold in folds[r * 5 : r * 5 + 5]} for r in range(3)
    ]
    assert of_repeats[0] != of_repeats[1] != of_repeats[2]


def test_who_chooses_is_of_other_patients(drawn: Callable[..., Drawn]) -> None:
    folds, facts, cohort = drawn(made_up(LABELS, GROUPS), folds=3, validates=True)
    assert facts.validation == 0.2
    assert sides(folds) == [(48, 12, 30)] * 3
    for fold in folds:
        of_sides = [set(cohort.groups[rows]) for rows in (fold.train, fold.val, fold.test)]
        assert sum(map(len, of_sides)) == len(set.union(*of_sides)) == 30
    assert sides(drawn(made_up(LABELS, GROUPS), folds=3)[0]) == [(60, 0, 30)] * 3
    some, facts, _ = drawn(made_up(LABELS, GROUPS), folds=3, validation=0.5)
    assert (sides(some)[0], facts.validation) == ((30, 30, 30), 0.5)


def test_few_shots_are_of_different_patients(drawn: Callable[..., Drawn]) -> None:
    sides_of = np.where(np.arange(90) < 60, "train", "test")
    folds, facts, cohort = drawn(made_up(LABELS, GROUPS, split=sides_of), shots=4, repeats=3)
    assert (facts.shots, facts.repeats, len(folds)) == (4, 3, 3)
    for fold in folds:
        labels = cohort.items["t"].to_numpy()[fold.train]
        assert sorted(labels) == ["sick"] * 4 + ["well"] * 4
        assert len(set(cohort.groups[fold.train])) == 8
        assert fold.test.tolist() == list(range(60, 90))
    assert len({tuple(fold.train) for fold in folds}) == 3
    again = drawn(made_up(LABELS, GROUPS, split=sides_of), shots=4, repeats=2)[0]
    assert [f.train.tolist() for f in again] == [f.train.tolist() for f in folds[:2]]


def test_more_shots_than_patients_take_more_of_each() -> None:
    whole = Split(train=np.ones(90, bool), val=np.zeros(90, bool), test=np.zeros(90, bool))
    y = (LABELS == "sick")[:, None]
    few = draw_shots(whole, y, GROUPS, ["sick"], shots=12)
    assert (few.train & y[:, 0]).sum() == 12
    assert len(set(GROUPS[few.train & y[:, 0]])) == 10
    with pytest.raises(ValueError, match="31 items of each class were to be drawn; 'sick' has 30"):
        draw_shots(whole, y, GROUPS, ["sick"], shots=31)


def test_shots_of_several_labels() -> None:
    draws = np.random.default_rng(3)
    y = draws.random((200, 4)) < [0.5, 0.05, 0.2, 0.1]
    groups = np.arange(200)
    whole = Split(train=np.ones(200, bool), val=np.zeros(200, bool), test=np.zeros(200, bool))
    few = draw_shots(whole, y, groups, list("abcd"), shots=3, seed=5).train
    assert (y[few].sum(0) >= 3).all()
    assert y[few][:, 1].sum() == 3  # the rarest label draws first
    assert (~y[few].any(1)).sum() == 3


def test_a_fraction_keeps_shares_and_patients_whole() -> None:
    whole = Split(train=np.ones(90, bool), val=np.zeros(90, bool), test=np.zeros(90, bool))
    part = draw_fraction(whole, LABELS, GROUPS, fraction=0.3, seed=1).train
    assert part.sum() == 27
    assert (LABELS[part] == "sick").sum() == 9
    assert not part[~np.isin(GROUPS, GROUPS[part])].any()
    assert np.isin(GROUPS, GROUPS[part]).sum() == 27


def test_the_digest_names_who_is_where(drawn: Callable[..., Drawn]) -> None:
    one = drawn(made_up(LABELS, GROUPS), folds=3)[1].digest
    assert drawn(made_up(LABELS, GROUPS), folds=3)[1].digest == one
    assert drawn(made_up(LABELS, GROUPS), folds=3, validation=0.3)[1].digest != one
    assert drawn(made_up(LABELS, GROUPS), folds=3, fraction=0.9)[1].digest != one


def test_a_class_that_validation_lacks(drawn: Callable[..., Drawn]) -> None:
    sided = np.repeat(["train"] * 20 + ["test"] * 10, 3)
    sided[np.isin(GROUPS, ["g01", "g02", "g04"])] = "val"
    with pytest.raises(ProbeError, match=r"class 'well': the val side \(fold 0\) has only items"):
        drawn(made_up(LABELS, GROUPS, split=sided), validates=True)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"shots": 3, "fraction": 0.5}, "both choose who trains"),
        ({"shots": 0}, "at least 1 a class"),
        ({"fraction": 1.5}, "--fraction 1.5: a share between 0 and 1"),
        ({"validation": 0.0}, "--validation 0.0: a share between"),
        ({"repeats": 0}, "must be at least 1"),
        ({"metrics": ("auc", "auc")}, "--metrics 'auc,auc': give each once"),
        ({"metrics": ("acc",)}, "there is no metric 'acc'"),
        ({"grid": {"lr": (0.1, -1.0)}}, "lr must be a number above 0"),
        ({"pool": "bags"}, "--head linear takes vectors"),
        ({"head": "abmil", "pool": "max"}, "--head abmil takes rows"),
        ({"head": "abmil", "pool": "bags", "of": "row"}, "here each is one"),
        ({"pool": "max", "of": "row"}, "are single rows"),
    ],
)
def test_requests_that_cannot_be(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        FitRequest(store=Path("s"), targets=("t",), **asked)
