"""All runs below a folder: who stands where, who led when, and what compares with what."""

import json
import os
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from dinocache.errors import ProbeError, RequestError
from dinocache.manifest import find_task, shipped_manifests
from probes.cli import main
from probes.compare import compare_runs
from probes.leaderboard import (
    Group,
    Leaderboard,
    LeaderboardRequest,
    Line,
    higher_is_better,
    make_leaderboard,
)
from probes.metrics.glossary import GLOSSARY
from probes.metrics.names import known_metrics
from probes.printing import leaderboard_markdown
from probes.runs import Estimate, Result, find_results, read_results

Capture = pytest.CaptureFixture[str]
NEGATIVE = (0.1, 0.2, 0.3, 0.4, 0.5)
# AUC: of 25 pairs those in which the positive item has the higher score.
BEST = (0.9, 0.8, 0.7, 0.6, 0.45)  # 5 + 5 + 5 + 5 + 4
MIDDLE = (0.9, 0.8, 0.7, 0.35, 0.25)  # 5 + 5 + 5 + 3 + 2
WORST = (0.9, 0.8, 0.35, 0.25, 0.15)  # 5 + 5 + 3 + 2 + 1
AUC = {BEST: 24 / 25, MIDDLE: 20 / 25, WORST: 16 / 25}
NOON = datetime(2025, 6, 1, 12, tzinfo=UTC).timestamp()
QUICK = {"replicates": 30, "permutations": 60}


def estimate(value: float | None) -> Estimate:
    low, high = (None, None) if value is None else (value - 0.0625, value + 0.03125)
    return Estimate(
        value=value, low=low, high=high, level=0.95, defined=8, replicates=9,
        sd_seeds=None, sd_folds=None,
    )  # fmt: skip


def write(
    folder: Path,
    predictions: pd.DataFrame,
    metrics: dict[str, float | None],
    *,
    made: float = 0,
    **changes: Any,  # noqa: ANN401 - of parts of the result
) -> Path:
    """Write a run; it was made so many hours after noon."""
    facts: dict[str, Any] = {
        "name": None, "of": "item", "targets": ("t",), "kind": "binary", "classes": ("yes",),
        "labels": {}, "dataset": "demo", "model": "tiny", "resolution": "32x48", "variant": "",
        "digest": "d", "weights": "hub:tiny", "random_weights": False, "items_table": "items",
        "head": "linear", "features": ("cls",), "pool": "mean", "present_only": False,
        "test_store": None, "seeds": (0,),
    } | changes  # fmt: skip
    store = {
        key: facts[key]
        for key in ("dataset", "model", "resolution", "variant", "digest", "weights",
                    "random_weights", "items_table")
    }  # fmt: skip
    Result.model_validate(
        {
            "inputs": "i",
            "task": {k: facts[k] for k in ("name", "of", "targets", "kind", "classes", "labels")},
            "head": {"name": facts["head"], "settings": {}},
            "features": facts["features"],
            "pool": facts["pool"],
            "present_only": facts["present_only"],
            "store": store,
            "test_store": facts["test_store"] and store | facts["test_store"],
            "split": {
                "protocol": "folds", "column": None, "folds": 2, "digest": "s", "n_train": 7,
                "n_test": 5,
            },
            "seeds": facts["seeds"],
            "items": len(predictions),
            "groups": predictions["group"].nunique(),
            "left_out": {},
            "metrics": {name: estimate(value) for name, value in metrics.items()},
            "per_class": {},
            "subgroups": {},
            "delong": {},
            "auc_skipped": (),
            "curve": None,
            "versions": {},
        }
    ).write(folder, predictions, {"s0.f0.w": np.zeros(3, np.float32)})  # fmt: skip
    os.utime(folder / "result.json", (NOON + 3600 * made,) * 2)
    return folder


def scored(
    folder: Path,
    positive: Sequence[float],
    *,
    times: float = 1,
    ids: str = "i",
    folds: Sequence[int] = (0,) * 10,
    truth: Sequence[int] = (0,) * 5 + (1,) * 5,
    groups: Sequence[str] = tuple("abcdefghij"),
    metrics: dict[str, float | None] | None = None,
    **changes: Any,  # noqa: ANN401 - see `write`
) -> Path:
    """Write a run of ten patients, of whom five are positive; scores are divided by `times`."""
    scores = np.array([*NEGATIVE, *positive]) / times
    table = pd.DataFrame(
        {
            "item_id": [f"{ids}{n}" for n in range(10)],
            "group": list(groups),
            "seed": 0,
            "fold": list(folds),
            "truth.yes": np.array(truth, np.int8),
            "score.yes": scores.astype(np.float32),
        }
    )
    brier = float(np.mean((scores - np.array(truth)) ** 2))
    found = {"auc": AUC[tuple(positive)], "brier": brier} if metrics is None else metrics
    return write(folder, table, found, **changes)


def board(root: Path, **asked: Any) -> Leaderboard:  # noqa: ANN401 - of the request
    return make_leaderboard(LeaderboardRequest(root=root, **(QUICK | asked)))


def only(found: Leaderboard) -> Group:
    (group,) = found.groups
    return group


def names(group: Group) -> list[str]:
    return [line.run for line in group.lines]


def by_name(group: Group) -> dict[str, Line]:
    return {line.run: line for line in group.lines}


def test_the_order_by_hand(tmp_path: Path) -> None:
    scored(tmp_path / "x/b", MIDDLE, made=1)
    scored(tmp_path / "a", WORST, made=2, head="knn", seeds=(0, 1), features=("cls", "mean"))
    scored(tmp_path / "c", BEST, made=3, variant="two", model="large")
    group = only(board(tmp_path))
    assert (group.task, group.metric, group.higher_is_better) == ("demo/t", "auc", True)
    assert (group.items, group.groups, group.folds, group.apart) == (10, 10, 1, "")
    assert group.leader == "c"
    assert [(line.rank, line.run, line.value) for line in group.lines] == [
        (1, "c", 0.96),
        (2, "x/b", 0.8),
        (3, "a", 0.64),
    ]
    first, second, third = group.lines
    assert (first.comparison, first.reason) == (None, "")
    assert (first.encoder, second.encoder) == ("large@32x48-two", "tiny@32x48")
    assert (third.head, third.features, third.seeds) == ("knn", ("cls", "mean"), 2)
    assert (third.low, third.high) == (0.64 - 0.0625, 0.64 + 0.03125)
    assert third.made.timestamp() == NOON + 2 * 3600
    # What is compared are the predictions: they say the same.
    for line in (second, third):
        assert line.comparison is not None
        assert line.comparison.value_run == pytest.approx(line.value)
        assert line.comparison.difference == pytest.approx((line.value or 0) - 0.96)
        assert (line.comparison.base, line.comparison.run) == ("c", line.run)
    assert group.record is None


def test_lower_is_better_by_hand(tmp_path: Path) -> None:
    """A tenth of the scores keeps every order, and so the AUC, but is far from 1."""
    scored(tmp_path / "best-but-low", BEST, times=10)
    scored(tmp_path / "middle", MIDDLE)
    scored(tmp_path / "worst", WORST)
    assert names(only(board(tmp_path))) == ["best-but-low", "middle", "worst"]
    group = only(board(tmp_path, metric="brier"))
    assert (group.metric, group.higher_is_better) == ("brier", False)
    # Negative items: 0.01 + 0.04 + 0.09 + 0.16 + 0.25 = 0.55, or a hundredth of it. Positive ones:
    # middle 0.01 + 0.04 + 0.09 + 0.4225 + 0.5625, worst 0.01 + 0.04 + 0.4225 + 0.5625 + 0.7225,
    # and of a tenth 0.8281 + 0.8464 + 0.8649 + 0.8836 + 0.912025.
    assert [(line.run, round(line.value or 0, 5)) for line in group.lines] == [
        ("middle", 0.1675),
        ("worst", 0.23075),
        ("best-but-low", 0.43405),
    ]
    worst = by_name(group)["worst"].comparison
    assert worst is not None
    assert worst.difference == pytest.approx(0.23075 - 0.1675)


def test_every_metric_has_a_better_way() -> None:
    lower = {m for m in known_metrics() if not higher_is_better(m, "binary")}
    assert lower == {"brier", "ece", "log_loss"}
    for name, entry in GLOSSARY.items():
        assert higher_is_better(f"{name}@val", entry.tasks[0]) == entry.higher_is_better
    assert higher_is_better("recall@youden_val", "multilabel")
    with pytest.raises(ProbeError, match="there is no metric 'goodness' of binary"):
        higher_is_better("goodness", "binary")


def test_tests_are_those_of_compare(tmp_path: Path) -> None:
    best = scored(tmp_path / "c", BEST)
    others = [scored(tmp_path / "b", MIDDLE), scored(tmp_path / "a", WORST)]
    found = [line.comparison for line in only(board(tmp_path)).lines[1:]]
    expected = compare_runs([best, *others], metrics=["auc"], **QUICK)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours is not None
        named = {"base": ours.base, "run": ours.run}
        assert ours == theirs.model_copy(update=named)
    # Alone, each has the same p by permutation; Holm's correction is that of the group's tests.
    for other, ours in zip(others, found, strict=True):
        (alone,) = compare_runs([best, other], metrics=["auc"], **QUICK)
        assert ours is not None
        assert ours.p_permutation == alone.p_permutation
        assert ours.p_bootstrap == alone.p_bootstrap
    ps = sorted(one.p_permutation or 0 for one in expected)
    assert sorted(one.p_holm or 0 for one in expected)[0] == pytest.approx(min(1, 2 * ps[0]))


def test_groups_stand_apart_where_something_differs(tmp_path: Path) -> None:
    for name in ("a1", "a2", "a3"):
        scored(tmp_path / name, MIDDLE)
    scored(tmp_path / "items", BEST, ids="other", made=1)
    scored(tmp_path / "folds", BEST, folds=(0, 1) * 5, made=2)
    table = pd.read_parquet(tmp_path / "a1/predictions.parquet")
    renamed = {"truth.yes": "truth.no", "score.yes": "score.no"}
    write(
        tmp_path / "classes", table.rename(columns=renamed), {"auc": 0.8}, classes=("no",), made=3
    )
    scored(tmp_path / "elsewhere", BEST, test_store={"dataset": "there"}, made=4)
    scored(tmp_path / "target", BEST, targets=("u",))
    found = board(tmp_path)
    assert [(group.task, names(group), group.apart) for group in found.groups] == [
        ("demo/t", ["a1", "a2", "a3"], ""),
        ("demo/t", ["items"], "other test items (10, not those 10)"),
        ("demo/t", ["folds"], "other folds of the same test items"),
        ("demo/t", ["classes"], "other classes"),
        ("demo/t", ["elsewhere"], "items of another dataset"),
        ("demo/u", ["target"], ""),
    ]
    assert found.groups[0].leader == "a1"
    assert found.groups[4].dataset == "there"


def test_who_trained_does_not_part_runs(tmp_path: Path) -> None:
    """Rows come in whatever order, and seeds in whatever number."""
    scored(tmp_path / "a", BEST)
    table = pd.read_parquet(tmp_path / "a/predictions.parquet")
    twice = pd.concat([table, table.assign(seed=1)]).sample(frac=1, random_state=3)
    write(tmp_path / "b", twice, {"auc": 0.96}, seeds=(0, 1))
    (line,) = only(board(tmp_path)).lines[1:]
    assert line.comparison is not None
    assert line.comparison.difference == 0


def test_random_weights_never_lead_real_ones(tmp_path: Path) -> None:
    random = {"random_weights": True, "weights": "random:0"}
    scored(tmp_path / "random", BEST, made=0, **random)
    scored(tmp_path / "real", WORST, made=1)
    scored(tmp_path / "better", MIDDLE, made=2)
    group = only(board(tmp_path, over_time=True))
    assert group.leader == "better"
    assert [(line.rank, line.run, line.random_weights) for line in group.lines] == [
        (1, "better", False),
        (2, "real", False),
        (None, "random", True),
    ]
    last = group.lines[2].comparison
    assert last is not None
    assert last.difference == pytest.approx(0.96 - 0.8)
    assert [step.run for step in group.record or ()] == ["real", "better"]


def test_random_weights_are_named_on_every_line(tmp_path: Path, capsys: Capture) -> None:
    random = {"random_weights": True, "weights": "random:0"}
    for number, scores in enumerate((WORST, MIDDLE, BEST)):
        scored(tmp_path / f"run{number}", scores, made=number, **random)
    assert only(board(tmp_path)).leader == "run2"  # where there is nothing else
    given = ["leaderboard", str(tmp_path), "--permutations", "9", "--replicates", "9"]
    assert main([*given, "--over-time"]) == 0
    printed = capsys.readouterr().out
    lines = [line for line in printed.splitlines() if "run" in line and "tiny" in line]
    assert len(lines) == 6
    assert all("tiny@32x48 random" in line for line in lines)
    assert "lead no group that has others" in printed
    assert main([*given, "--out", str(tmp_path / "o.csv")]) == 0
    assert pd.read_csv(tmp_path / "o.csv")["weights"].tolist() == ["random"] * 3


def test_steps_of_the_record(tmp_path: Path) -> None:
    """By time, whatever the names; a run that is no better takes no lead."""
    worst = scored(tmp_path / "z", WORST, made=1)
    scored(tmp_path / "b-as-bad", WORST, made=2)
    middle = scored(tmp_path / "y", MIDDLE, made=3)
    best = scored(tmp_path / "a", BEST, made=4)
    scored(tmp_path / "0-later", MIDDLE, made=5)
    group = only(board(tmp_path, over_time=True, permutations=400))
    steps = group.record or ()
    assert [(step.run, step.before) for step in steps] == [("z", None), ("y", "z"), ("a", "y")]
    assert [step.value for step in steps] == [0.64, 0.8, 0.96]
    assert [step.made.timestamp() for step in steps] == [NOON + 3600 * n for n in (1, 3, 4)]
    assert (steps[0].comparison, steps[0].significant, steps[0].reason) == (None, None, "")
    alone = [
        compare_runs(pair, metrics=["auc"], replicates=30, permutations=400)[0].p_permutation or 0
        for pair in ([worst, middle], [middle, best])
    ]
    # Holm's correction of two: twice the smaller one, then the larger, and never less than that.
    smaller = min(1, 2 * min(alone))
    corrected = [smaller if p == min(alone) else max(smaller, p) for p in alone]
    for step, p, holm in zip(steps[1:], alone, corrected, strict=True):
        assert step.comparison is not None
        assert step.comparison.p_permutation == p
        assert step.comparison.p_holm == pytest.approx(holm)
        assert step.significant == (holm < 0.05)


def test_a_clear_step_is_significant_and_a_small_one_is_not(tmp_path: Path) -> None:
    """Of twenty patients, of whom the first run has all the wrong way round."""
    truth = np.repeat([0, 1], 10)
    ids = [f"i{n:02d}" for n in range(20)]
    table = pd.DataFrame({"item_id": ids, "group": ids, "seed": 0, "fold": 0, "truth.yes": truth})
    right = np.linspace(0.1, 0.9, 20)
    nearly = right.copy()
    nearly[[9, 10]] = nearly[[10, 9]]  # one of a hundred pairs is the wrong way round
    for made, scores, auc in ((0, right[::-1], 0.0), (1, nearly, 0.99), (2, right, 1.0)):
        write(tmp_path / f"r{made}", table.assign(**{"score.yes": scores}), {"auc": auc}, made=made)
    record = only(board(tmp_path, over_time=True, permutations=200)).record or ()
    assert [(step.run, step.significant) for step in record] == [
        ("r0", None),
        ("r1", True),
        ("r2", False),
    ]


def test_of_one_moment_the_best_takes_the_lead(tmp_path: Path) -> None:
    for name, scores in (("a", WORST), ("b", BEST), ("c", MIDDLE)):
        scored(tmp_path / name, scores, made=1)
    assert [step.run for step in only(board(tmp_path, over_time=True)).record or ()] == ["b"]


def test_equal_values_stand_in_order_of_time(tmp_path: Path) -> None:
    for made, name in enumerate(("b", "c", "a")):
        scored(tmp_path / name, MIDDLE, made=made)
    assert names(only(board(tmp_path))) == ["b", "c", "a"]


def test_what_cannot_be_compared_says_why(tmp_path: Path) -> None:
    scored(tmp_path / "best", BEST)
    scored(tmp_path / "labels", WORST, truth=(0, 0, 0, 0, 1, 0, 1, 1, 1, 1))
    scored(tmp_path / "metric", MIDDLE, metrics={"f1": 0.5})
    scored(tmp_path / "undefined", MIDDLE, metrics={"auc": None})
    scored(tmp_path / "present", MIDDLE, present_only=True)
    found = by_name(only(board(tmp_path)))
    assert list(found) == ["best", "present", "labels", "metric", "undefined"]
    assert {name: line.reason for name, line in found.items()} == {
        "best": "",
        "labels": "other labels",
        "metric": "not judged by auc",
        "undefined": "auc is not defined",
        "present": "one of both is --present-only",
    }
    assert all(line.comparison is None for line in found.values())
    assert (found["metric"].rank, found["undefined"].rank) == (None, None)


def test_one_patient_cannot_be_swapped(tmp_path: Path) -> None:
    for made, (name, scores) in enumerate((("a", WORST), ("b", BEST))):
        scored(tmp_path / name, scores, groups=["p"] * 10, made=made)
    group = only(board(tmp_path, over_time=True))
    assert group.groups == 1
    assert by_name(group)["a"].reason == "one group: nothing to draw or swap"
    step = (group.record or ())[1]
    assert (step.reason, step.significant) == ("one group: nothing to draw or swap", None)


def test_thresholds_of_validation_items_are_not_kept(tmp_path: Path) -> None:
    for made, value in enumerate((0.25, 0.5)):
        scored(tmp_path / f"{value}", MIDDLE, metrics={"recall@youden_val": value}, made=made)
    group = only(board(tmp_path, over_time=True))
    expected = "the thresholds of validation items are not kept"
    assert names(group) == ["0.5", "0.25"]
    assert group.lines[1].reason == (group.record or ())[1].reason == expected


def test_only_the_first_are_tested(tmp_path: Path) -> None:
    for number, scores in enumerate((BEST, MIDDLE, MIDDLE, WORST)):
        scored(tmp_path / f"r{number}", scores, made=number)
    seen: list[tuple[str, int, int]] = []
    found = make_leaderboard(
        LeaderboardRequest(root=tmp_path, top=2, **QUICK),
        told=lambda *said: seen.append(said),
    )
    lines = only(found).lines
    assert [line.comparison is not None for line in lines] == [False, True, False, False]
    assert [line.reason for line in lines] == ["", "", *["not tested: below the first 2"] * 2]
    assert seen == [*(("runs read", n, 4) for n in (1, 2, 3, 4)), ("tests", 1, 1)]
    p = lines[1].comparison
    assert p is not None
    assert p.p_holm == p.p_permutation  # one test
    assert len([line for line in only(board(tmp_path)).lines if line.comparison]) == 3


def test_a_task_is_ordered_by_its_own_first_metric(tmp_path: Path) -> None:
    own = find_task("camelyon16/tumour")[2].metrics[0]
    assert own == "auc"
    elsewhere = f"{tmp_path}/x.yaml/tumour"  # a manifest that some result.json names is not read
    shutil.copy(shipped_manifests()["camelyon16"], tmp_path / "x.yaml")
    assert find_task(elsewhere)[2].metrics[0] == "auc"
    tasks = ("camelyon16/tumour", "camelyon16/gone", "unheard/of", elsewhere)
    for number, task in enumerate(tasks):
        metrics = {"f1": 0.5, "auc": 0.8}
        scored(tmp_path / f"runs/{number}", MIDDLE, metrics=metrics, name=task)
    found = {group.task: group.metric for group in board(tmp_path / "runs").groups}
    assert found == dict(zip(tasks, ("auc", "f1", "f1", "f1"), strict=True))


def test_else_by_what_most_runs_name_first(tmp_path: Path) -> None:
    scored(tmp_path / "0", MIDDLE, metrics={"f1": 0.5, "auc": 0.8}, made=0)
    scored(tmp_path / "1", MIDDLE, metrics={"auc": 0.8, "f1": 0.5}, made=1)
    assert only(board(tmp_path)).metric == "f1"  # of as many the older one's
    scored(tmp_path / "2", MIDDLE, metrics={"auc": 0.8}, made=2)
    group = only(board(tmp_path))
    assert group.metric == "auc"
    assert names(group) == ["0", "1", "2"]


def damage(tmp_path: Path) -> None:
    """Leave one run whole of five."""
    scored(tmp_path / "whole", BEST)
    (tmp_path / "garbage").mkdir()
    (tmp_path / "garbage/result.json").write_text("{")
    older = scored(tmp_path / "older", BEST) / "result.json"
    older.write_text(older.read_text().replace('"format": 2', '"format": 1'))
    (scored(tmp_path / "cut", BEST) / "predictions.parquet").write_bytes(b"PAR1")
    numbers = scored(tmp_path / "numbers", BEST) / "predictions.parquet"
    pd.read_parquet(numbers).assign(item_id=range(10)).to_parquet(numbers)


def test_damaged_runs_are_listed_with_their_error(tmp_path: Path, capsys: Capture) -> None:
    damage(tmp_path)
    found = board(tmp_path)
    assert names(only(found)) == ["whole"]
    assert list(found.errors) == ["cut", "garbage", "numbers", "older"]
    assert "predictions.parquet cannot be read" in found.errors["cut"]
    assert "is no result of this version (the file: Invalid JSON" in found.errors["garbage"]
    assert "its predictions cannot be read" in found.errors["numbers"]
    assert "(format: Input should be 2); fit again" in found.errors["older"]
    assert main(["leaderboard", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "4 run(s) cannot be read:" in printed
    at = [printed.index(f"\n{name}: ") for name in found.errors]
    assert at == sorted(at)
    assert at[0] > printed.index("whole")
    table = found.table()
    assert table["run"].tolist() == ["whole", "cut", "garbage", "numbers", "older"]
    assert table["reason"].tolist()[1:] == list(found.errors.values())


def test_the_exit_code_is_1_where_nothing_can_be_read(tmp_path: Path, capsys: Capture) -> None:
    damage(tmp_path)
    for name in ("result.json", "head.safetensors", "predictions.parquet"):
        (tmp_path / "whole" / name).unlink()
    assert main(["leaderboard", str(tmp_path)]) == 1
    assert "4 run(s) cannot be read:" in capsys.readouterr().out
    assert main(["leaderboard", str(tmp_path), "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert (said["groups"], len(said["errors"])) == ([], 4)


def test_results_are_read_past_those_that_cannot_be(tmp_path: Path) -> None:
    damage(tmp_path)
    results, errors = read_results(tmp_path)
    assert list(results) == ["cut", "numbers", "whole"]
    assert list(errors) == ["garbage", "older"]
    with pytest.raises(ProbeError, match=r"garbage.result\.json is no result of this"):
        find_results(tmp_path)
    with pytest.raises(RequestError, match="there is no run below"):
        read_results(tmp_path / "whole/none")


def test_a_metric_that_nobody_knows_is_an_error_of_its_run(tmp_path: Path) -> None:
    scored(tmp_path / "a", BEST)
    scored(tmp_path / "b", BEST, metrics={"goodness": 1.0})
    scored(tmp_path / "c", BEST, metrics={})
    found = board(tmp_path)
    assert names(only(found)) == ["a"]
    assert "there is no metric 'goodness' of binary" in found.errors["b"]
    assert "has no metric; fit again" in found.errors["c"]


def test_tasks_and_dates_are_chosen(tmp_path: Path, capsys: Capture) -> None:
    scored(tmp_path / "a", BEST, made=-48)
    scored(tmp_path / "b", MIDDLE, made=0)
    scored(tmp_path / "c", MIDDLE, name="other/task", made=0)
    found = board(tmp_path, task="demo/*", since=datetime(2025, 5, 31, tzinfo=UTC))
    assert names(only(found)) == ["b"]
    assert (found.other_tasks, found.before) == (1, 1)
    assert [group.task for group in board(tmp_path, task="*").groups] == ["demo/t", "other/task"]
    with pytest.raises(RequestError, match=r"'\*/x': no run .* there are demo/t, other/task"):
        board(tmp_path, task="*/x")
    with pytest.raises(RequestError, match="'kappa': no run has it; they have auc, brier"):
        board(tmp_path, metric="kappa")
    assert main(["leaderboard", str(tmp_path), "--since", "2031-01-01"]) == 0
    assert "3 run(s) made before are left out" in capsys.readouterr().out
    assert main(["leaderboard", str(tmp_path / "none")]) == 2


def test_the_metric_is_one_that_some_groups_lack(tmp_path: Path) -> None:
    scored(tmp_path / "a", BEST, metrics={"f1": 0.5})
    scored(tmp_path / "b", BEST, targets=("u",), metrics={"auc": 0.5})
    lacking, having = board(tmp_path, metric="auc").groups
    assert (lacking.leader, lacking.lines[0].reason) == (None, "not judged by auc")
    assert having.leader == "b"


def counts(*dice: tuple[int, int, int], **more: Sequence[float]) -> pd.DataFrame:
    """Give predictions of masks of one label: (tp, fp, fn) of each item, a patient each."""
    rows = []
    for number, (tp, fp, fn) in enumerate(dice):
        cells = {"tp": tp, "fp": fp, "fn": fn, "tn": 50}
        rows.append(
            {"item_id": f"v{number}", "group": f"p{number}", "seed": 0, "fold": 0, "start": 0,
             "stop": 3}
            | cells
            | {f"{cell}.wall": value for cell, value in cells.items()}
        )  # fmt: skip
    return pd.DataFrame(rows).assign(**more)


def test_segmentations(tmp_path: Path) -> None:
    """Dice of half against three quarters; surfaces say the opposite, and there lower is better."""
    asked: dict[str, Any] = {
        "kind": "segmentation", "classes": ("wall",), "labels": {3: "wall"}, "pool": "maps",
        "targets": ("mask",),
    }  # fmt: skip
    half = counts((4, 4, 4), (4, 4, 4), (4, 4, 4), **{"hd95.wall": [1.0, 2.0, 3.0]})
    most = counts((6, 2, 2), (6, 2, 2), (6, 2, 2), **{"hd95.wall": [4.0, 5.0, 6.0]})
    write(tmp_path / "half", half, {"dice": 0.5, "hd95": 2.0}, **asked)
    write(tmp_path / "most", most, {"dice": 0.75, "hd95": 5.0}, **asked)
    group = only(board(tmp_path))
    assert (names(group), group.metric) == (["most", "half"], "dice")
    comparison = group.lines[1].comparison
    assert comparison is not None
    assert comparison.difference == pytest.approx(-0.25)
    group = only(board(tmp_path, metric="hd95"))
    assert (names(group), group.higher_is_better) == (["half", "most"], False)
    comparison = group.lines[1].comparison
    assert comparison is not None
    assert comparison.difference == pytest.approx(3.0)


def test_registrations(tmp_path: Path, capsys: Capture) -> None:
    """What needs no encoder has no random weights, whatever its store has."""
    asked: dict[str, Any] = {
        "kind": "registration", "classes": ("wall",), "labels": {3: "wall"}, "pool": "maps",
        "targets": ("mask",), "random_weights": True, "weights": "random:0", "head": "convexadam",
    }  # fmt: skip
    pairs = {"pair": list("klm"), "moving": list("nop")}
    half = counts((4, 4, 4), (4, 4, 4), (4, 4, 4), folding=[0.1, 0.2, 0.3], **pairs)
    most = counts((6, 2, 2), (6, 2, 2), (6, 2, 2), folding=[0.3, 0.4, 0.5], **pairs)
    write(tmp_path / "mind", half, {"dice": 0.5, "folding": 0.2}, **asked, features=("mind",))
    write(tmp_path / "dense", most, {"dice": 0.75, "folding": 0.4}, **asked, features=("dense",))
    group = only(board(tmp_path))
    assert [(line.rank, line.run, line.encoder) for line in group.lines] == [
        (1, "mind", ""),
        (None, "dense", "tiny@32x48"),
    ]
    assert group.lines[1].comparison is not None
    folding = only(board(tmp_path, metric="folding"))
    assert (folding.leader, folding.higher_is_better) == ("mind", False)
    assert main(["leaderboard", str(tmp_path), "--permutations", "9"]) == 0
    assert "3 pairs of 3 groups" in capsys.readouterr().out


def test_the_files(tmp_path: Path, capsys: Capture) -> None:
    scored(tmp_path / "runs/a", WORST, made=0)
    scored(tmp_path / "runs/b", BEST, made=1)
    scored(tmp_path / "runs/c", MIDDLE, made=2)
    given = ["leaderboard", str(tmp_path / "runs"), "--over-time", "--permutations", "60"]
    for ending in ("csv", "parquet", "md"):
        assert main([*given, "--out", str(tmp_path / f"out/l.{ending}")]) == 0
        assert "3 run(s) in 1 group(s), 0 cannot be read: " in capsys.readouterr().out
    tables = [pd.read_csv(tmp_path / "out/l.csv"), pd.read_parquet(tmp_path / "out/l.parquet")]
    for table in tables:
        assert table["run"].tolist() == ["b", "c", "a"]
        assert table["rank"].tolist() == [1, 2, 3]
        assert table["value"].tolist() == [0.96, 0.8, 0.64]
        assert table["better"].unique().tolist() == ["higher"]
        assert datetime.fromisoformat(table["made"][0]).timestamp() == NOON + 3600
        assert table["took_lead_from"][0] == "a"
        assert table["lead_difference"][0] == pytest.approx(0.32)
        assert table["difference"][1] == pytest.approx(-0.16)
        assert table["p_holm"].isna().tolist() == [True, False, False]
        assert table["lead_significant"].isna().tolist() == [False, True, True]
    text = (tmp_path / "out/l.md").read_text()
    assert "| 1 | b | tiny@32x48 | cls | linear |" in text
    assert "Who took the lead, and when:" in text
    assert main([*given, "--out", "l.html"]) == 2
    assert "end it in .csv, .parquet or .md" in capsys.readouterr().err


def test_json_says_all(tmp_path: Path, capsys: Capture) -> None:
    scored(tmp_path / "a", WORST)
    scored(tmp_path / "b", BEST)
    given = ["leaderboard", str(tmp_path), "--json", "--permutations", "60", "--replicates", "30"]
    assert main([*given, "--over-time"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert Leaderboard.model_validate(said) == board(tmp_path, over_time=True)
    assert said["groups"][0]["lines"][1]["comparison"]["p_permutation"] > 0


def test_names_of_others_are_text(tmp_path: Path) -> None:
    """In Markdown nothing is fetched or run; a spreadsheet runs no formula."""
    scored(tmp_path / "runs/=HYPERLINK(1)", BEST, head="![x](http://x.y)|<b>\x1b[1m\nz")
    found = board(tmp_path / "runs")
    (row,) = [line for line in leaderboard_markdown(found).splitlines() if "HYPERLINK" in line]
    assert r"!\[x\](http://x.y)\|\<b\>\\x1b\[1m z" in row
    assert row.replace(r"\|", "").count("|") == 14
    scored(tmp_path / "runs/plain", MIDDLE)
    assert main(["leaderboard", str(tmp_path / "runs"), "--out", str(tmp_path / "o.csv")]) == 0
    assert pd.read_csv(tmp_path / "o.csv")["run"].tolist()[0] == "'=HYPERLINK(1)"


def test_a_folder_whose_name_is_no_text(tmp_path: Path) -> None:
    scored(tmp_path / "a", BEST)
    strange = scored(tmp_path / "b", BEST)
    try:
        strange.rename(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    except OSError:
        pytest.skip("this file system takes names that are text only")
    found = board(tmp_path)
    assert names(only(found)) == ["a"]
    (error,) = found.errors.values()
    assert "its name is no text; rename the folder" in error
