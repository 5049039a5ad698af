"""The command `probe`: what it prints and where it writes."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from dinocache.extract import relabel
from dinocache.store import FeatureStore
from probes.cli import main
from probes.runs import Result


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Default folders are relative: keep them out of the repository."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")


def fit(store: Path, *options: str) -> int:
    return main(["fit", str(store), "--replicates", "9", "--head", "knn", "--set", "k=3", *options])


def test_json_is_all_of_standard_output(
    tiny_store: FeatureStore, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(tiny_store.path, "--target", "third", "--out", "run", "--json") == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out) == json.loads(Path("run/result.json").read_text())
    assert printed.err == ""


def test_the_default_folder_says_what_was_fitted(
    tiny_store: FeatureStore, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(tiny_store.path, "--target", "third", "--features", "cls,mean") == 0
    folder = Path("runs/images/third/tiny-32x48-cls+mean-knn-k=3")
    assert capsys.readouterr().out.splitlines()[-1] == f"run: {folder}"
    assert Result.read(folder).features == ("cls", "mean")


def test_a_hostile_column_stays_in_its_folder(
    tiny_store: FeatureStore, tiny_table: Path, tmp_path: Path
) -> None:
    store = Path(shutil.copytree(tiny_store.path, tmp_path / "store"))
    column = "../../../[red]x"
    items = pd.read_csv(tiny_table, dtype={"item_id": str}).rename(columns={"third": column})
    items.to_csv("labels.csv", index=False)
    relabel(store, Path("labels.csv"), data=tiny_table.parent)
    assert fit(store, "--target", column) == 0
    found = [path.relative_to(tmp_path) for path in tmp_path.rglob("result.json")]
    assert found == [Path("runs/images/.._.._..__red_x/tiny-32x48-cls-knn-k=3/result.json")]


def test_what_a_person_reads(tiny_store: FeatureStore, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(tiny_store.path, "--target", "bright", "--positive", "0", "--out", "run") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("RANDOM WEIGHTS (random:0): these figures say nothing")
    assert lines[1] == "images/bright: tiny at 32x48 (random:0), cls, knn, positive: 0"
    assert lines[2] == (
        "42 items of 21 groups, 5 folds by group, about 34 train and 8 test; 1 seed(s); "
        "0 items left out"
    )
    result = Result.read(Path("run"))
    for metric, found in result.metrics.items():
        row = next(line for line in lines if line.startswith(metric))
        assert f" {found.value:.3f} " in row
        interval = "-" if found.low is None else f"{found.low:.3f} to {found.high:.3f}"
        assert f" {interval} " in row


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["--target", ","], "--target: name at least one column", id="no-target"),
        pytest.param(["--target", "third,third"], "give each once", id="target-twice"),
        pytest.param(["--target", "third", "--features", "cls,cls"], "give each once", id="kind"),
        pytest.param(
            ["--target", "third", "--features", ","], "from cls, mean, embed", id="no-kind"
        ),
        pytest.param(["--target", "third", "--set", "k"], "is written key=value", id="no-value"),
        pytest.param(["--target", "third", "--set", "k=4"], "k is given twice", id="set-twice"),
    ],
)
def test_a_wrong_request_is_one_line_and_leaves_nothing(
    tiny_store: FeatureStore,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    assert fit(tiny_store.path, *arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    "options", [["--folds", "1"], ["--seeds", "0"], ["--replicates", "0"], ["--moon"]]
)
def test_options_have_bounds(
    tiny_store: FeatureStore, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    assert main(["fit", str(tiny_store.path), "--target", "third", *options]) == 2
    assert options[0] in capsys.readouterr().err


def test_no_store(capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(Path("nowhere"), "--target", "third") == 1
    assert capsys.readouterr().err == (
        "error: there is no store at nowhere: it has no store.json. A store lies at "
        "ROOT/<dataset>/<model>/<resolution>; `dinocache extract` makes one.\n"
    )
