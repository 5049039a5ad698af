"""Tasks by name, their stores, and splits that stand in columns."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from miniature import miniature
from PIL import Image

from dinocache.cli import main as dinocache
from dinocache.errors import ProbeError, RequestError, StoreNotFoundError
from dinocache.extract import extract
from dinocache.request import ExtractRequest
from dinocache.store import FeatureStore
from probes.cli import main as probe
from probes.cli import task_names
from probes.features import load_row_features
from probes.runs import Result, read_predictions
from probes.splits import Split, check_no_leakage, hold_out, splits_by_column
from probes.tasks import list_tasks, store_of

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two stores of a small nih14."""
    folder = tmp_path_factory.mktemp("nih")
    miniature("nih14").make(folder)
    stores = folder.parent / "stores"
    command = ["extract", "nih14", "--data", str(folder), "--store", str(stores), "--model", "tiny"]
    command += ["--weights", "random", "--allow-missing", "--no-isolate", "--resolution"]
    for side in ("32", "48"):
        assert dinocache([*command, side]) == 0
    return stores


def test_a_task_is_fitted_by_its_name(root: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "run"
    command = ["probe", "fit", "nih14/findings", "--store", str(root), "--model", "tiny"][1:]
    command += ["--resolution", "32", "--replicates", "20", "--out", str(out)]
    assert probe(command) == 0
    assert "nih14/findings: tiny at 32 (random:0), cls, linear" in capsys.readouterr().out
    result = json.loads((out / "result.json").read_text())
    assert result["task"]["name"] == "nih14/findings"
    assert (result["split"]["column"], result["seeds"]) == ("split", [0, 1, 2])
    assert len(result["task"]["targets"]) == 14
    more = ["--head", "knn", "--set", "k=3", "--features", "mean", "--json", "--seeds", "2"]
    assert probe([*command, *more]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["head"]["name"], said["head"]["settings"]["k"]) == ("knn", 3)
    assert said["features"] == ["mean"]


def test_the_report_sets_a_run_beside_the_paper(root: Path, tmp_path: Path) -> None:
    command = ["fit", "nih14/findings", "--store", str(root), "--model", "tiny", "--seeds", "1"]
    command += ["--resolution", "32", "--replicates", "20", "--out", str(tmp_path / "runs/one")]
    assert probe(command) == 0
    assert probe(["report", str(tmp_path / "runs"), "--figures", "none"]) == 0
    table = pd.read_csv(tmp_path / "runs/report/tables.csv")
    own = table[table["source"] == "own"]
    assert set(own["table"]) == {2}
    assert set(own["dataset"]) == {"NIH-14"}
    result = json.loads((tmp_path / "runs/one/result.json").read_text())
    figures = dict(zip(own["metric"], own["value"], strict=True))
    assert figures == {
        metric: pytest.approx(result["metrics"][metric]["value"])
        for metric in ("auc", "accuracy", "precision", "recall")
    }
    [warnings] = set(own["warnings"])
    assert warnings.startswith("random weights (random:0); ")
    for warning in (
        " items tested, the official release has 25,596",
        "resolution 32, the paper's is 256",
        "the paper prints nothing of this encoder",
        "1 of 3 seeds",
    ):
        assert warning in warnings


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nih14/moon"], "nih14 has no task 'moon'; it has findings"),
        (["moon/x"], "'moon/x' is not DATASET/TASK"),
        (["nih14/findings"], "there are several stores of nih14: tiny at 32, tiny at 48"),
        (["nih14/findings", "--resolution", "64"], "there is no store of nih14 by tiny at 64"),
        (["nih14/findings", "--resolution", "32", "--split", "x"], "a task says itself what"),
        (["nih14/findings", "--resolution", "32", "--head", "moon"], "wants the head 'moon'"),
        (["camelyon16/tumour", "--resolution", "32"], "there is no store of camelyon16 by tiny"),
    ],
)  # fmt: skip
def test_what_cannot_be_fitted(
    root: Path, arguments: list[str], message: str, capsys: Capture
) -> None:
    assert probe(["fit", *arguments, "--store", str(root), "--model", "tiny"]) in (1, 2)
    assert message in capsys.readouterr().err


def test_a_folder_needs_a_target(root: Path, capsys: Capture) -> None:
    assert probe(["fit", str(root / "nih14/tiny/32")]) == 2
    assert "say what is to be told with --target" in capsys.readouterr().err


def test_where_a_store_is_found(root: Path) -> None:
    asked = {"model": "tiny", "variant": ""}
    assert store_of(root, "nih14", resolution="48", **asked).path == root / "nih14/tiny/48"
    with pytest.raises(StoreNotFoundError, match=r"\(there is: tiny at 32, tiny at 48\)"):
        store_of(root, "nih14", resolution=None, model="dinov3-s", variant="")
    with pytest.raises(StoreNotFoundError, match=r"\(there is: none of it\)"):
        store_of(root, "ct-rate", resolution=None, **asked)
    with pytest.raises(RequestError, match="several stores"):
        store_of(root, "nih14", resolution=None, **asked)


def test_tasks_are_listed(capsys: Capture) -> None:
    assert probe(["tasks"]) == 0
    printed = capsys.readouterr().out
    assert "nih14/findings" in printed
    assert probe(["tasks", "nih14", "--json"]) == 0
    task, thresholds = json.loads(capsys.readouterr().out)
    assert (task["task"], task["head"]) == ("nih14/findings", "linear")
    assert thresholds["split"] == "with_val"
    assert len(list_tasks(None)) > len(list_tasks("nih14")) == 2
    assert probe(["tasks", "moon"]) == 2
    assert "nih14/" in task_names("ni")
    assert task_names("nih14/f") == ["nih14/findings", "nih14/findings-thresholds"]
    assert task_names("moon/") == []


def test_a_task_that_is_trained_on_another_dataset(tmp_path: Path, capsys: Capture) -> None:
    """Five folds of Camelyon16 stop five heads, which are tested on slides of Camelyon17."""
    for name in ("camelyon16", "camelyon17"):
        data = tmp_path / name
        data.mkdir()
        miniature(name).make(data)
        made = extract(
            ExtractRequest(
                dataset=name,
                data=data,
                root=tmp_path / "features",
                model="tiny",
                resolution=(32, 32),
                features=("mean",),
                options=miniature("camelyon16").options,
                weights="random:0",
                device="cpu",
                allow_missing=True,
            )
        )
    command = ["fit", "camelyon17/unseen", "--store", str(tmp_path / "features"), "--model", "tiny"]
    command += ["--set", "epochs=2", "--set", "min_epochs=1", "--replicates", "20"]
    assert probe([*command, "--out", str(tmp_path / "run")]) == 0
    assert "tested on camelyon17" in capsys.readouterr().out
    result = Result.read(tmp_path / "run")
    assert (result.store.dataset, result.pool) == ("camelyon16", "bags")
    assert result.test_store is not None
    assert result.test_store.dataset == "camelyon17"
    assert (result.split.column, result.split.folds) == ("split.cv", 5)
    assert result.metrics["auc"].sd_folds is not None
    tested = read_predictions(tmp_path / "run")
    items = FeatureStore(made.path).items.set_index("item_id")
    assert set(tested["item_id"]) <= set(items.index[items["split.unseen_attrimil"] == "test"])
    assert (tested.groupby("fold").size() == tested["item_id"].nunique()).all()
    swept = ["sweep", "camelyon17/unseen", "--store", str(tmp_path / "features"), "--jobs", "1"]
    assert probe([*swept, "--dry-run", "--out", str(tmp_path / "runs")]) == 0
    assert "runs/camelyon17/unseen/tiny-32-mean-abmil" in capsys.readouterr().out
    slide = tested["item_id"][0]
    drawn = ["attention", str(tmp_path / "run"), str(made.path), slide]
    assert probe([*drawn, "--out", str(tmp_path / "weights")]) == 0
    table, picture = (Path(line) for line in capsys.readouterr().out.splitlines())
    rows = pd.read_parquet(table)
    assert rows.columns.tolist() == ["x (level-0 px)", "y (level-0 px)", "weight"]
    assert len(rows) == len(FeatureStore(made.path).rows("mean", slide)) > 1
    assert rows["weight"].sum() == pytest.approx(1, abs=1e-5)
    assert picture.name == f"{slide}.png"
    with Image.open(picture) as image:
        assert min(image.size) > 100


# Splits that stand in a column


def test_sides_of_a_column() -> None:
    (split,) = splits_by_column(["train", "Valid", "test", "training"])
    assert [split.train.tolist(), split.val.tolist(), split.test.tolist()] == [
        [True, False, False, True], [False, True, False, False], [False, False, True, False],
    ]  # fmt: skip


def test_folds_of_a_column() -> None:
    first, second, third = splits_by_column(["2", "0", "1", "0"])
    assert first.test.tolist() == [False, True, False, True]
    assert first.train.tolist() == [True, False, True, False]
    assert not first.val.any()
    assert (second.test.sum(), third.test.sum()) == (1, 1)


def test_folds_beside_a_test_side() -> None:
    first, second = splits_by_column(["0", "test", "1", "1", "Testing"])
    for split in (first, second):
        assert split.test.tolist() == [False, True, False, False, True]
    assert first.val.tolist() == [True, False, False, False, False]
    assert second.train.tolist() == [True, False, False, False, False]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["0", "0"], "at least 2, got fold 0 only"),
        (["0", "1", "train"], "holds their numbers, and test; got train"),
        (["left"], "a split column holds"),
    ],
)
def test_columns_that_are_no_split(values: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        splits_by_column(values)


def test_a_share_is_held_out_by_group_and_label() -> None:
    groups = np.repeat([f"g{k:02d}" for k in range(40)], 3)
    labels = np.repeat(["sick" if k % 4 == 0 else "well" for k in range(40)], 3)
    test = np.arange(120) >= 96
    whole = Split(train=~test, val=np.zeros(120, bool), test=test)
    held = hold_out(whole, labels, groups, share=0.25, seed=1)
    check_no_leakage(groups, held)
    assert held.val.sum() == 24
    assert (labels[held.val] == "sick").sum() == 6
    assert held.test.tolist() == test.tolist()
    assert (held.train | held.val).tolist() == whole.train.tolist()
    again = hold_out(whole, labels, groups, share=0.25, seed=1)
    assert again.val.tolist() == held.val.tolist()


def test_rows_need_lists(root: Path) -> None:
    with pytest.raises(ProbeError, match=r"item '.*': Hernia must hold a list, one value a row"):
        load_row_features(root / "nih14/tiny/32", None, ["Hernia"])
