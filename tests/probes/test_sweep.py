"""Many runs by one command; what is there and has not changed is left alone."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from cohorts import killed_at_once
from making import make_table, tiny_request

from dinocache.extract import extract, relabel
from dinocache.folders import LocalFolder
from dinocache.store import FeatureStore
from probes.cli import main
from probes.fit import fit, inputs_of
from probes.request import FitRequest
from probes.runs import Result
from probes.sweep import Ran, SweepRequest, plan_sweep, run_sweep

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two stores of 42 images, at two resolutions."""
    table = make_table(tmp_path_factory.mktemp("images"), 42)
    stores = tmp_path_factory.mktemp("features")
    for resolution in ((32, 48), (48, 48)):
        assert extract(tiny_request(table, stores, resolution=resolution)).complete
    return stores


def asked(root: Path, out: Path, **options: object) -> SweepRequest:
    given: dict[str, object] = {
        "tasks": ("images",),
        "targets": ("third",),
        "heads": ("knn", "linear"),
        "settings": {"knn": {"k": (3, 5)}, "linear": {"epochs": (3,)}},
        "fixed": {"folds": 3, "replicates": 20},
    }
    return SweepRequest(root=root, out=out, **(given | options))  # type: ignore[arg-type]


def test_every_combination_is_a_run(root: Path, tmp_path: Path) -> None:
    planned = plan_sweep(asked(root, tmp_path, varied={"fraction": (0.5, None)}))
    assert len(planned) == 2 * 3 * 2
    assert len({one.folder for one in planned}) == len(planned)
    assert not any(one.unchanged for one in planned)
    names = [one.folder.relative_to(tmp_path).as_posix() for one in planned]
    assert names[0] == "images/third/tiny-32x48-cls-knn-k=3-folds=3-fraction=0.5"
    assert names[-1] == "images/third/tiny-48-cls-linear-epochs=3-folds=3"
    small = plan_sweep(asked(root, tmp_path, resolutions=("48",), heads=("linear",), settings={}))
    assert [one.request.store for one in small] == [LocalFolder(root / "images/tiny/48")]


def test_what_is_there_is_left(root: Path, tmp_path: Path) -> None:
    wanted = asked(root, tmp_path, resolutions=("48",))
    told: list[Ran] = []
    ran = run_sweep(plan_sweep(wanted), jobs=2, told=told.append)
    assert [one.state for one in ran] == ["fitted"] * 3
    assert {one.folder for one in told} == {one.folder for one in ran}
    for planned, one in zip(plan_sweep(wanted), ran, strict=True):
        assert planned.unchanged
        assert one.result == Result.read(one.folder) == fit(planned.request).result
    before = {one.folder: (one.folder / "result.json").stat().st_mtime_ns for one in ran}
    again = run_sweep(plan_sweep(wanted), jobs=2)
    assert [one.state for one in again] == ["unchanged"] * 3
    assert before == {one.folder: (one.folder / "result.json").stat().st_mtime_ns for one in again}
    (ran[1].folder / "result.json").write_text("{}")
    assert [one.unchanged for one in plan_sweep(wanted)] == [True, False, True]
    more = asked(root, tmp_path, resolutions=("48",), fixed={"folds": 3, "replicates": 21})
    assert not any(one.unchanged for one in plan_sweep(more))


def test_inputs_follow_what_decides(
    tiny_store: FeatureStore, tiny_table: Path, tmp_path: Path
) -> None:
    """The same wherever the store lies; another as soon as a target changes."""
    request = FitRequest(store=tiny_store.path, targets=("third",))
    copy = Path(shutil.copytree(tiny_store.path, tmp_path / "elsewhere"))
    there = FitRequest(store=copy, targets=("third",))
    assert inputs_of(request) == inputs_of(there)
    assert inputs_of(FitRequest(store=copy, targets=("third",), seeds=2)) != inputs_of(there)
    items = pd.read_csv(tiny_table, dtype={"item_id": str})
    items["third"] = items["third"].replace("a", "z")
    items.to_csv(tmp_path / "labels.csv", index=False)
    before = inputs_of(there)
    relabel(copy, tmp_path / "labels.csv", data=tiny_table.parent)
    assert inputs_of(there) != before


def test_one_that_fails_stops_no_other(root: Path, tmp_path: Path, capsys: Capture) -> None:
    command = [
        "sweep",
        "images",
        "--target",
        "bright",
        "--store",
        str(root),
        "--out",
        str(tmp_path),
    ]
    command += ["--head", "knn", "--set", "k=3,99", "--resolution", "48", "--replicates", "20"]
    command += ["--jobs", "1"]
    assert main([*command, "--dry-run"]) == 0
    assert capsys.readouterr().out.count("to do") == 2
    assert main(command) == 1
    printed = capsys.readouterr()
    assert "k=99" in printed.err
    assert "neighbours cannot vote among" in printed.err
    assert "1 of 2 runs failed; the same command tries them again" in printed.err
    assert "random weights" in printed.out
    assert main([*command, "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert [one["state"] for one in said] == ["unchanged", "failed"]
    assert 0 <= said[0]["metrics"]["auc"]["value"] <= 1


def test_a_process_that_is_killed(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("probes.sweep._run", killed_at_once)
    planned = plan_sweep(asked(root, tmp_path, heads=("knn",), resolutions=("48",)))
    ran = run_sweep(planned, jobs=1)
    assert [one.state for one in ran] == ["failed"] * 2
    assert "a process was killed" in ran[0].error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--head", "oak"], "--head 'oak': choose from"),
        (["--head", "knn,linear", "--set", "k=3"], "say whose setting it is, as knn.k=3"),
        (["--head", "knn", "--set", "glow=3"], "head knn has no setting 'glow'"),
        (["--shots", "some"], "--shots 'some': numbers with commas"),
        (["--resolution", "77"], "there is no store of images under"),
    ],
)
def test_sweeps_that_cannot_be(
    root: Path, tmp_path: Path, options: list[str], message: str, capsys: Capture
) -> None:
    command = [
        "sweep",
        "images",
        "--target",
        "bright",
        "--store",
        str(root),
        "--out",
        str(tmp_path),
    ]
    assert main([*command, *options]) in (1, 2)
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1
