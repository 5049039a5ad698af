"""A run read back: its heads asked about other items."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from making import make_table, tiny_request
from sklearn.metrics import roc_auc_score

from dinocache.errors import ProbeError, RequestError
from dinocache.extract import extract
from dinocache.store import FeatureStore
from probes.cli import main
from probes.features import load_item_features
from probes.fit import fit
from probes.fitted import FittedRun
from probes.request import FitRequest, TestOn

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of the same recipe and another dataset: 30 images of 15 patients."""
    table = make_table(tmp_path_factory.mktemp("others"), 30)
    table = table.rename(table.with_name("others.csv"))
    return extract(tiny_request(table, tmp_path_factory.mktemp("features"))).path


@pytest.fixture(scope="module")
def run(tiny_store: FeatureStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    command = ["fit", str(tiny_store.path), "--target", "third", "--folds", "3", "--seeds", "2"]
    command += ["--grid", "lr=0.01,0.1", "--set", "epochs=4", "--replicates", "20"]
    assert main([*command, "--out", str(folder)]) == 0
    return folder


def test_scores_are_means_over_the_heads(run: Path, other: Path) -> None:
    fitted = FittedRun.read(run)
    assert list(fitted.heads) == [(s, f) for s in (0, 1) for f in range(3)]
    search = fitted.result.head.search
    assert search is not None
    for (_, fold), head in fitted.heads.items():
        assert head.get_params()["lr"] == search.chosen[fold]["lr"]
    answer = fitted.predict(other, replicates=20)
    x = load_item_features(other, ["cls"]).x
    scores = np.stack([head.predict_proba(x) for head in fitted.heads.values()])
    found = answer.table[[f"score.{c}" for c in fitted.result.task.classes]]
    np.testing.assert_allclose(found, scores.mean(0), atol=1e-7)
    np.testing.assert_allclose(answer.table["sd.b"], scores[:, :, 1].std(0, ddof=1), atol=1e-7)
    assert answer.metrics is not None
    truth = pd.get_dummies(load_item_features(other, ["cls"]).items["third"]).to_numpy()
    expected = np.mean([roc_auc_score(truth, one, average="macro") for one in scores])
    assert answer.metrics["auc"].value == pytest.approx(expected)


def test_items_that_may_have_trained_are_not_judged(run: Path, tiny_store: FeatureStore) -> None:
    answer = FittedRun.read(run).predict(tiny_store.path)
    assert answer.metrics is None
    assert len(answer.table) == 42


def test_the_command(run: Path, other: Path, tmp_path: Path, capsys: Capture) -> None:
    for name in ("scores.csv", "scores.parquet"):
        assert main(["predict", str(run), str(other), "--out", str(tmp_path / name)]) == 0
    read = pd.read_csv(tmp_path / "scores.csv", dtype={"item_id": str})
    stored = pd.read_parquet(tmp_path / "scores.parquet")
    pd.testing.assert_frame_equal(read, stored, check_dtype=False)
    capsys.readouterr()
    assert main(["predict", str(run), str(other), "--json", "--replicates", "20"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert len(said["items"]) == 30
    assert said["metrics"]["auc"]["replicates"] == 20
    assert main(["predict", str(run), str(other)]) == 0
    assert "30 items, 0 left out" in capsys.readouterr().out
    assert main(["predict", str(run), str(other), "--out", "scores.xml"]) == 2


def test_features_of_another_recipe(
    run: Path, other: Path, tmp_path: Path, capsys: Capture
) -> None:
    table = make_table(tmp_path / "images", 12)
    larger = extract(tiny_request(table, tmp_path / "features", resolution=(48, 48))).path
    assert main(["predict", str(run), str(larger)]) == 1
    printed = capsys.readouterr().err
    assert "is of another recipe than the head was fitted on: input.resolution is" in printed
    assert printed.count("\n") == 1
    with pytest.raises(ProbeError, match="another recipe"):
        fit(
            FitRequest(
                store=other, targets=("third",), test_on=TestOn(store=larger, targets=("third",))
            )
        )


def test_heads_that_cannot_be_read(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    (copy / "head.safetensors").write_bytes(b"\x00" * 40)
    with pytest.raises(ProbeError, match=r"head\.safetensors cannot be read .*; fit again"):
        FittedRun.read(copy)
    (copy / "head.safetensors").unlink()
    with pytest.raises(ProbeError, match="cannot be read"):
        FittedRun.read(copy)
    with pytest.raises(ProbeError, match="there is no run at"):
        FittedRun.read(tmp_path)


def test_a_linear_head_weighs_no_rows(run: Path, other: Path) -> None:
    with pytest.raises(RequestError, match="a linear head weighs no rows; fit --head abmil"):
        FittedRun.read(run).attention(other, "0000")


# Trained on one dataset, tested on another


def test_another_dataset_is_tested(tiny_store: FeatureStore, other: Path) -> None:
    tested = TestOn(store=other, targets=("third",))
    request = FitRequest(
        store=tiny_store.path,
        targets=("third",),
        folds=3,
        test_on=tested,
        settings={"epochs": 5},
        replicates=30,
        seeds=2,
    )
    result = (fitted := fit(request)).result
    assert result.test_store is not None
    assert (result.store.dataset, result.test_store.dataset) == ("images", "others")
    assert (result.split.n_train, result.split.n_val, result.split.n_test) == (28, 14, 30)
    assert len(fitted.predictions) == 30 * 3 * 2
    assert result.metrics["auc"].sd_folds is not None
    # The same patients are tested by each fold and seed: they are drawn once for all of them.
    alone = fit(FitRequest(store=other, targets=("third",), folds=3, replicates=30)).result
    assert result.metrics["auc"].low is not None
    assert alone.metrics["auc"].value is not None


def test_patients_who_train_are_not_tested(tiny_store: FeatureStore) -> None:
    tested = TestOn(store=tiny_store.path, targets=("third",))
    with pytest.raises(ProbeError, match="21 groups train and are tested, as 'p"):
        fit(FitRequest(store=tiny_store.path, targets=("third",), test_on=tested))


@pytest.mark.parametrize(
    ("columns", "target", "message"),
    [
        ({"third": "q"}, "third", r"holds 'q', which the head does not know \(it knows a, b, c\)"),
        ({"bright": 0}, "bright", "holds 0, and never '1', which the head was fitted to tell"),
        ({"bright": [0, 1, 2] * 4}, "bright", "holds 0, 1, 2; the head tells '1' from one other"),
    ],
)
def test_labels_that_the_head_does_not_know(
    tiny_store: FeatureStore, tmp_path: Path, columns: dict[str, object], target: str, message: str
) -> None:
    table = make_table(tmp_path / "images", 12)
    items = pd.read_csv(table, dtype={"item_id": str}).assign(**columns)
    items.to_csv(table.with_name("strange.csv"), index=False)
    strange = extract(tiny_request(table.with_name("strange.csv"), tmp_path / "features")).path
    tested = TestOn(store=strange, targets=(target,))
    with pytest.raises(ProbeError, match=message):
        fit(FitRequest(store=tiny_store.path, targets=(target,), folds=3, test_on=tested))
