from typing import get_args

import pytest

from probes.metrics.names import (
    THRESHOLD_RULES,
    Kind,
    MetricName,
    check_metrics,
    known_metrics,
    needed_thresholds,
    parse_metric,
)


def test_a_name_has_a_base_an_average_and_a_threshold() -> None:
    assert parse_metric("macro_f1@0.3") == MetricName(
        text="macro_f1@0.3", base="f1", average="macro", family="counting", threshold=0.3
    )
    plain = parse_metric("average_precision")
    assert (plain.base, plain.average, plain.family, plain.threshold) == (
        "average_precision",
        "",
        "ranking",
        None,
    )
    assert parse_metric("recall@youden_val").threshold == "youden_val"
    assert parse_metric("video_jaccard").family == "phases"


def test_every_known_name_is_read_and_suits_the_tasks_that_it_is_listed_for() -> None:
    for kind in get_args(Kind):
        names = known_metrics(kind)
        assert [name.text for name in check_metrics(names, kind)] == list(names)
        assert set(names) < set(known_metrics())
    assert "subset_accuracy" not in known_metrics("binary")
    assert "relaxed_recall" not in known_metrics("multilabel")


def test_rules_that_need_validation_items() -> None:
    assert THRESHOLD_RULES == ("youden_val", "f1_val")
    assert needed_thresholds(["auc", "f1@0.5", "recall"]) == ()
    names = ["f1@f1_val", "recall@youden_val", "precision@youden_val"]
    assert needed_thresholds(names) == ("youden_val", "f1_val")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        pytest.param(
            "acuracy", r"no metric 'acuracy', did you mean 'accuracy'\?; known: auc", id="1"
        ),
        pytest.param("dice", r"no metric 'dice'; known: auc, average_precision, ", id="far"),
        pytest.param("twoclass_jaccard", "no metric 'twoclass_jaccard'", id="no-such-average"),
        pytest.param("auc@0.5", "'auc@0.5': auc looks at scores, .*; drop the @", id="no-decision"),
        pytest.param("f1@youden", "youden_val or f1_val; got 'youden'", id="rule"),
        pytest.param("f1@", "a number from 0 to 1, .* got ''", id="empty"),
        pytest.param("f1@1.5", "a number from 0 to 1, .* got '1.5'", id="range"),
        pytest.param("f1@nan", "a number from 0 to 1, .* got 'nan'", id="nan"),
    ],
)
def test_names_that_cannot_be_read(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_metric(name)


@pytest.mark.parametrize(
    ("names", "kind", "message"),
    [
        pytest.param(
            ["subset_accuracy"],
            "binary",
            "is for multilabel tasks, this one is binary; known for binary tasks: auc",
            id="kind",
        ),
        pytest.param(["video_recall"], "multilabel", "is for multiclass tasks", id="phases"),
        pytest.param(
            ["twoclass_f1"], "multiclass", "is for binary and multilabel tasks", id="two-kinds"
        ),
        pytest.param(
            ["auc", "f1@0.5"], "multiclass", "'f1@0.5': .* by the highest score", id="threshold"
        ),
        pytest.param([], "binary", "at least one metric; known for binary tasks", id="none"),
    ],
)
def test_names_that_do_not_suit_a_task(names: list[str], kind: Kind, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_metrics(names, kind)
