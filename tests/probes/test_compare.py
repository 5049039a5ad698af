"""Whether two runs differ on the same items."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cohorts import made_up
from sklearn.metrics import roc_auc_score

from dinocache.errors import ProbeError, RequestError
from probes.cli import main
from probes.compare import Comparison, compare_runs
from probes.fit import fit
from probes.request import FitRequest
from probes.runs import read_predictions
from probes.stats import delong_test

GROUPS = np.repeat(np.arange(60), 2)
LABELS = GROUPS % 2
Capture = pytest.CaptureFixture[str]
Fitted = Callable[..., Path]


@pytest.fixture
def fitted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Fitted:
    """Write a run on made-up items: the less noise, the better."""

    def write(
        name: str,
        noise: float,
        labels: object = LABELS,
        columns: dict[str, object] | None = None,
        **asked: object,
    ) -> Path:
        features = made_up(np.asarray(labels), GROUPS, noise=noise, **(columns or {}))
        monkeypatch.setattr("probes.cohort.load_item_features", lambda *_: features)
        monkeypatch.setattr("probes.fit.store_state", lambda path: {"path": str(path)})
        given = {"folds": 3, "settings": {"epochs": 30}, "replicates": 40} | asked
        run = fit(FitRequest(store=Path("s"), targets=("t",), **given))  # type: ignore[arg-type]
        run.result.write(tmp_path / name, run.predictions, run.arrays)
        return tmp_path / name

    return write


def by_metric(found: list[Comparison]) -> dict[str, Comparison]:
    return {one.metric: one for one in found}


def test_a_planted_difference_is_found(fitted: Fitted) -> None:
    worse, better = fitted("worse", 4), fitted("better", 0.7)
    found = by_metric(compare_runs([worse, better], replicates=400, permutations=400))
    assert set(found) == {"auc", "average_precision", "accuracy", "precision", "recall", "f1"}
    for one in found.values():
        assert one.difference == pytest.approx((one.value_run or 0) - (one.value_base or 0))
        assert (one.low or 0) > 0
        assert (one.p_holm or 1) < 0.05
        assert (one.p_bootstrap or 1) < 0.05
        assert (one.groups, one.random_weights) == (60, True)
    back = by_metric(compare_runs([better, worse], replicates=400, permutations=400))
    for metric, one in back.items():
        assert one.difference == pytest.approx(-(found[metric].difference or 0))
        assert one.p_permutation == found[metric].p_permutation


def test_values_are_those_of_the_runs(fitted: Fitted) -> None:
    runs = [fitted("a", 1.5), fitted("b", 1.5, head="knn", settings={"k": 5})]
    (auc,) = compare_runs(runs, metrics=["auc"], replicates=20, permutations=20)
    for run, value in zip(runs, (auc.value_base, auc.value_run), strict=True):
        folds = read_predictions(run).groupby("fold")
        expected = np.mean([roc_auc_score(f["truth.1"], f["score.1"]) for _, f in folds])
        assert value == pytest.approx(expected)


def test_a_run_does_not_differ_from_itself(fitted: Fitted) -> None:
    run = fitted("a", 2)
    for one in compare_runs([run, run], replicates=50, permutations=50):
        assert one.difference == 0
        assert one.p_permutation == one.p_holm == 1


def test_seeds_are_taken_in_turn(fitted: Fitted) -> None:
    one, three = fitted("one", 2, head="knn", settings={"k": 5}), fitted("three", 2, seeds=3)
    found = compare_runs([one, three], metrics=["auc"], replicates=30, permutations=30)[0]
    assert found.p_permutation is not None
    assert found.p_delong is None


def test_holm_counts_every_test(fitted: Fitted) -> None:
    runs = [fitted("a", 4), fitted("b", 0.7), fitted("c", 3.5)]
    found = compare_runs(runs, metrics=["auc", "accuracy"], replicates=60, permutations=200)
    assert [one.run for one in found] == [str(runs[1])] * 2 + [str(runs[2])] * 2
    lowest = min(found, key=lambda one: one.p_permutation or 1)
    assert lowest.p_holm == pytest.approx(min(1, 4 * (lowest.p_permutation or 1)))


def test_delong_where_one_set_is_scored_once(fitted: Fitted) -> None:
    asked = {"columns": {"side": np.where(GROUPS < 30, "train", "test")}, "split": "side"}
    runs = [fitted("a", 4, folds=None, **asked), fitted("b", 3, folds=None, **asked)]
    found = compare_runs(runs, metrics=["auc"], replicates=200, permutations=200)[0]
    ours, theirs = (read_predictions(run).sort_values("item_id") for run in runs)
    expected = delong_test(
        theirs["truth.1"].to_numpy(),
        theirs["score.1"].to_numpy(),
        ours["score.1"].to_numpy(),
        groups=theirs["group"].to_numpy(str),
    )
    assert found.p_delong == pytest.approx(expected.p)
    assert found.difference == pytest.approx(expected.value)


def test_runs_that_cannot_be_compared(fitted: Fitted, tmp_path: Path) -> None:
    run = fitted("a", 2)
    with pytest.raises(RequestError, match="name two runs or more"):
        compare_runs([run])
    with pytest.raises(ProbeError, match=r"has 3 folds, .* 4; compare runs of one split"):
        compare_runs([run, fitted("four", 2, folds=4)])
    with pytest.raises(ProbeError, match=r"tested other items: \d+ of fold 0 are in one of them"):
        compare_runs([run, fitted("other", 2, labels=(GROUPS + GROUPS // 30) % 2)])
    with pytest.raises(ProbeError, match=r"tells 1, .* tells 0, 1, 2; compare runs of one task"):
        compare_runs([run, fitted("three", 2, labels=GROUPS % 3)])
    with pytest.raises(RequestError, match="--metrics: there is no metric 'acc'"):
        compare_runs([run, run], metrics=["acc"])
    with pytest.raises(
        RequestError, match=r"thresholds by validation items \(youden_val\) are not"
    ):
        compare_runs([run, run], metrics=["recall@youden_val"])
    (run / "predictions.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(ProbeError, match=r"predictions\.parquet cannot be read .*; fit again"):
        compare_runs([run, run])


def test_the_command(fitted: Fitted, capsys: Capture) -> None:
    runs = [str(fitted("a", 4)), str(fitted("b", 0.7))]
    asked = ["--replicates", "30", "--permutations", "30", "--metrics", "auc,accuracy"]
    assert main(["compare", *runs, *asked]) == 0
    printed = capsys.readouterr().out
    assert "RANDOM WEIGHTS" in printed
    assert "60 groups" in printed
    assert main(["compare", *runs, *asked, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [one["metric"] for one in said] == ["auc", "accuracy"]
    assert main(["compare", runs[0]]) == 2
