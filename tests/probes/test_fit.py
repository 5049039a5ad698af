"""From a store to a judged head, through the command line and as a library."""

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from cohorts import made_up
from making import make_table, tiny_request
from safetensors.numpy import load_file
from sklearn import metrics

from dinocache.errors import ProbeError
from dinocache.extract import extract, relabel
from dinocache.layout import SEALED, UNITS
from dinocache.store import FeatureStore
from probes.cli import main
from probes.features import ItemFeatures, load_item_features
from probes.fit import fit
from probes.heads import HEADS
from probes.request import FitRequest
from probes.runs import Result, find_results


@pytest.fixture
def copy(tiny_store: FeatureStore, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_store.path, tmp_path / "store"))


def with_columns(store: Path, table: Path, **columns: object) -> Path:
    """Give a copied store more columns."""
    items = pd.read_csv(table, dtype={"item_id": str}).assign(**columns)
    path = store.parent / "labels.csv"
    items.to_csv(path, index=False)
    relabel(store, path, data=table.parent)
    return store


def request(store: Path, *targets: str, **options: object) -> FitRequest:
    given: dict[str, object] = {"replicates": 50, "folds": 3}
    return FitRequest(store=store, targets=targets, **(given | options))  # type: ignore[arg-type]


ABLE: dict[str, dict[str, object]] = {"abmil": {"epochs": 25, "lr": 0.005}}
"""What a head needs besides `QUICK` to learn something."""
QUICK: dict[str, dict[str, object]] = {
    "abmil": {"epochs": 4, "min_epochs": 1, "projection": 8, "hidden": 4, "lr": 0.01},
    "knn": {"k": 5},
    "linear": {"epochs": 20},
    "logistic": {"points": 4},
    "xgboost": {"rounds": 8},
}


@pytest.mark.parametrize("head", sorted(HEADS))
@pytest.mark.parametrize("target", ["bright", "third"])
def test_figures_follow_from_the_predictions(
    tiny_store: FeatureStore, head: str, target: str
) -> None:
    """Each metric, computed again by scikit-learn from predictions.parquet, fold by fold."""
    fitted = fit(request(tiny_store.path, target, head=head, settings=QUICK[head]))
    result, predictions = fitted.result, fitted.predictions
    assert result.task.kind == ("binary" if target == "bright" else "multiclass")
    assert result.store.random_weights
    found: dict[str, list[float]] = {name: [] for name in result.metrics}
    for _, fold in predictions.groupby(["seed", "fold"]):
        truth = fold[[c for c in fold if c.startswith("truth.")]].to_numpy()
        scores = fold[[c for c in fold if c.startswith("score.")]].to_numpy()
        truth_columns = zip(truth.T, scores.T, strict=True)
        found["average_precision"].append(
            float(np.mean([metrics.average_precision_score(t, s) for t, s in truth_columns]))
        )
        if target == "bright":
            labels, called, average = truth[:, 0], scores[:, 0] >= 0.5, "binary"
            found["auc"].append(metrics.roc_auc_score(labels, scores[:, 0]))
        else:
            labels, called, average = truth.argmax(1), scores.argmax(1), "macro"
            columns = zip(truth.T, scores.T, strict=True)
            found["auc"].append(float(np.mean([metrics.roc_auc_score(t, s) for t, s in columns])))
        found["accuracy"].append(metrics.accuracy_score(labels, called))
        for name in ("precision", "recall", "f1"):
            score = getattr(metrics, f"{name}_score")
            found[name].append(score(labels, called, average=average, zero_division=0))
    for name, values in found.items():
        estimate = result.metrics[name]
        assert estimate.value == pytest.approx(np.mean(values), abs=1e-9)
        assert estimate.sd_folds == pytest.approx(np.std(values, ddof=1), abs=1e-9)
        if estimate.low is not None:
            assert estimate.low <= estimate.high
            assert estimate.value not in (0.0, 1.0)
    if target == "bright":
        assert result.metrics["auc"].value == 1.0  # bright and dark images differ by anything


def test_nobody_is_on_both_sides(tiny_store: FeatureStore) -> None:
    predictions = fit(request(tiny_store.path, "bright")).predictions
    folds = predictions.groupby("group")["fold"].nunique()
    assert (folds == 1).all()
    assert sorted(predictions["item_id"]) == sorted(tiny_store.items["item_id"])


@pytest.mark.parametrize("head", sorted(HEADS))
def test_again_gives_the_same_bytes_and_a_saved_head_predicts_alike(
    tiny_store: FeatureStore, tmp_path: Path, head: str
) -> None:
    given = ["fit", str(tiny_store.path), "--target", "third", "--head", head, "--folds", "3"]
    given += [] if head in ("knn", "logistic") else ["--seeds", "2"]
    given += [part for key, value in QUICK[head].items() for part in ("--set", f"{key}={value}")]
    runs = [tmp_path / "a", tmp_path / "b"]
    for run in runs:
        assert main([*given, "--replicates", "20", "--out", str(run)]) == 0
    for name in ("result.json", "predictions.parquet", "head.safetensors"):
        assert (runs[0] / name).read_bytes() == (runs[1] / name).read_bytes()
        assert str(tiny_store.path).encode() not in (runs[0] / name).read_bytes()
    result = Result.read(runs[0])
    arrays = load_file(runs[0] / "head.safetensors")
    mine = {k.removeprefix("s0.f1."): v for k, v in arrays.items() if k.startswith("s0.f1.")}
    restored = HEADS[head].from_arrays(result.head.settings, mine)
    predictions = pd.read_parquet(runs[0] / "predictions.parquet").query("seed == 0 and fold == 1")
    pool = "bags" if HEADS[head].takes == "bags" else "mean"
    loaded = load_item_features(tiny_store.path, ["cls"], pool)
    rows = loaded.items["item_id"].isin(predictions["item_id"]).to_numpy()
    np.testing.assert_array_equal(
        restored.predict_proba(loaded.x[rows]),
        predictions[[c for c in predictions if c.startswith("score.")]].to_numpy(),
    )


def test_seeds_and_the_curve(tiny_store: FeatureStore) -> None:
    linear = fit(request(tiny_store.path, "third", seeds=3, settings={"epochs": 3})).result
    assert linear.seeds == (0, 1, 2)
    assert linear.metrics["auc"].sd_seeds is not None
    assert linear.curve is None
    knn = fit(request(tiny_store.path, "third", head="knn", seeds=3, settings={"k": 5})).result
    assert knn.seeds == (0,)
    assert knn.curve is not None
    assert [p["k"] for p in knn.curve] == [1, 5, 10, 20]
    assert knn.curve[1]["auc"] == pytest.approx(knn.metrics["auc"].value)


def test_official_split_multilabel_and_both_kinds(copy: Path, tiny_table: Path) -> None:
    split = ["Training"] * 24 + ["valid"] * 6 + ["test"] * 10 + [None] * 2
    other = [i % 5 == 0 for i in range(42)]
    store = with_columns(copy, tiny_table, fold=split, other=np.array(other, int))
    asked = request(store, "bright", "other", split="fold", folds=None, features=("cls", "mean"))
    result = fit(asked).result
    assert result.task.kind == "multilabel"
    assert (result.split.n_train, result.split.n_test, result.items) == (24, 10, 40)
    assert set(result.per_class) == {"bright", "other"}
    assert result.left_out == {"0040": "no value of 'fold'", "0041": "no value of 'fold'"}
    assert result.features == ("cls", "mean")
    assert load_item_features(store, ["cls", "mean"]).x.shape == (42, 96)


def test_failed_items_and_missing_targets_are_left_out_and_named(tmp_path: Path) -> None:
    table = make_table(tmp_path, 24)
    (tmp_path / "png/0007.png").write_bytes(b"?")
    items = pd.read_csv(table, dtype={"item_id": str}).astype({"bright": "Int64"})
    items.loc[3, "bright"] = pd.NA
    items.to_csv(table, index=False)
    store = extract(tiny_request(table, tmp_path / "f")).path
    result = fit(request(store, "bright", drop_missing=True, settings={"epochs": 2})).result
    assert result.items == 22
    assert result.left_out == {
        "0003": "target missing",
        "0007": "extraction failed: not an image: PNG, JPEG, TIFF, BMP or WebP was expected",
    }


def mistakes() -> list[object]:
    def unseal(store: Path, table: Path) -> None:
        (store / SEALED).unlink()
        (store / UNITS / "0001-closing.item_cls.json").unlink()

    def flip(store: Path, table: Path) -> None:
        path = store / "features.zarr/item_cls/c.0.0"
        content = bytearray(path.read_bytes())
        content[500] ^= 1
        path.write_bytes(content)

    def columns(**values: object) -> object:
        return lambda store, table: with_columns(store, table, **values)

    leak = ["train", "test"] * 21
    return [
        (
            None,
            ["--target", "moon"],
            1,
            "there is no target 'moon'; the store has: bright, third",
        ),
        (columns(one=1), ["--target", "one"], 1, "target 'one' has one class ('1')"),
        (columns(m=np.arange(42) / 7), ["--target", "m"], 1, "it looks like a measurement"),
        (columns(s=leak), ["--target", "bright", "--split", "s"], 1, "on two sides of a split"),
        (
            columns(s="left"),
            ["--target", "bright", "--split", "s"],
            1,
            "a split column holds train",
        ),
        (None, ["--target", "bright", "--split", "x"], 1, "--split: there is no column 'x'"),
        (None, ["--target", "bright", "--folds", "40"], 1, "folds"),
        (
            columns(h=[None] + [0, 1, 1] * 13 + [0, 1]),
            ["--target", "h"],
            1,
            "--drop-missing leaves",
        ),
        (unseal, ["--target", "bright"], 1, "3 of 4 units of 'cls' are extracted; run the same"),
        (flip, ["--target", "bright"], 1, "item_cls/c.0.0 is damaged: its checksum does not match"),
        (None, ["--target", "bright", "--head", "oak"], 2, "--head 'oak': choose from abmil, knn"),
        (None, ["--target", "bright", "--set", "glow=1"], 2, "head linear has no setting 'glow'"),
        (None, ["--target", "bright", "--set", "lr=fast"], 2, "must be"),
        (None, ["--target", "bright", "--features", "dense"], 2, "from cls, mean, embed"),
        (None, ["--target", "bright", "--features", "embed"], 1, "has no 'embed'"),
        (None, ["--target", "bright", "--split", "a", "--folds", "3"], 2, "give one of them"),
        (None, ["--target", "third", "--positive", "a"], 1, "--positive is for two classes"),
        (None, ["--target", "bright", "--positive", "7"], 1, "--positive '7': target 'bright' has"),
        (None, ["--target", "bright", "--head", "knn", "--set", "k=99"], 1, "99"),
    ]


@pytest.mark.parametrize(("harm", "options", "code", "message"), mistakes())
def test_mistakes_are_one_clear_line(
    copy: Path,
    tiny_table: Path,
    capsys: pytest.CaptureFixture[str],
    harm: object,
    options: list[str],
    code: int,
    message: str,
) -> None:
    if callable(harm):
        harm(copy, tiny_table)
    assert main(["fit", str(copy), *options, "--out", str(copy.parent / "run")]) == code
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert not (copy.parent / "run").exists()


def test_nan_features_are_refused(
    tiny_store: FeatureStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = FeatureStore.item_vectors

    def spoiled(self: FeatureStore, kind: str) -> tuple[list[str], np.ndarray]:
        ids, vectors = plain(self, kind)
        vectors[4, 3] = np.nan
        return ids, vectors

    monkeypatch.setattr(FeatureStore, "item_vectors", spoiled)
    assert main(["fit", str(tiny_store.path), "--target", "bright"]) == 1
    assert "1 items have NaN or infinite features (as '0004')" in capsys.readouterr().err


def test_an_unwritable_place(
    tiny_store: FeatureStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("here")
    out = str(tmp_path / "file")
    assert main(["fit", str(tiny_store.path), "--target", "bright", "--out", out]) == 1
    assert "cannot write the run" in capsys.readouterr().err


def test_the_report(tiny_store: FeatureStore, tiny_table: Path, copy: Path, tmp_path: Path) -> None:
    """One page, complete in itself, with every figure, and hostile names as plain text."""
    hostile = "<script>alert(1)</script>"
    with_columns(copy, tiny_table, **{hostile: ["x", "y", "y"] * 14})
    runs = tmp_path / "runs"
    for target, out in (("bright", "one"), (hostile, "two/deep")):
        given = [
            "fit",
            str(copy),
            "--target",
            target,
            "--replicates",
            "9",
            "--out",
            str(runs / out),
        ]
        assert main(given) == 0
    page = runs / "page.html"
    assert main(["report", str(runs), "--store", str(copy), "--out", str(page)]) == 0
    source = page.read_text()
    results = find_results(runs)
    assert set(results) == {"one", "two/deep"}
    for result in results.values():
        assert f"{next(iter(result.metrics.values())).value:.3f}" in source
    assert source.count('<span class="tag">random:0</span>') == 2
    assert "<script>alert" not in source
    assert "&lt;script&gt;" in source
    assert "data:image/webp;base64,UklGR" in source
    assert main(["report", str(tmp_path / "nothing")]) == 2
    (runs / "one/result.json").write_text("{}")
    assert main(["report", str(runs), "--out", str(page)]) == 0  # the other run is whole
    assert "Left out: " in page.read_text()


BLOCKER = """
import sys
class Blocker:
    names = {blocked!r}
    def find_spec(self, name, path=None, target=None):
        if any(name == n or name.startswith(n + ".") for n in self.names):
            raise ImportError(name + " is not on this laptop")
sys.meta_path.insert(0, Blocker())
from probes.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_laptop_needs_nothing_that_extracts(tiny_store: FeatureStore, tmp_path: Path) -> None:
    extraction = [
        "cli",
        "encoders",
        "engine",
        "extract",
        "job",
        "readers",
        "transforms",
        "weights",
        "writer",
    ]
    blocked = ["timm", "torchvision", "huggingface_hub", "nibabel", "cv2"]
    blocked += [f"dinocache.{name}" for name in extraction]
    program = BLOCKER.format(blocked=blocked)
    without_pillow = BLOCKER.format(blocked=[*blocked, "PIL"])
    given = ["fit", str(tiny_store.path), "--target", "bright", "--out", str(tmp_path / "run")]
    for code, arguments in (
        (without_pillow, given),
        (program, ["report", str(tmp_path), "--store", str(tiny_store.path)]),
    ):
        ended = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
        )
        assert ended.returncode == 0, ended.stderr
    assert json.loads((tmp_path / "run/result.json").read_text())["store"]["weights"] == "random:0"


def test_real_x_rays(shared_data: Path, tmp_path: Path) -> None:
    """Real images, extraction and both probes, end to end."""
    source = shared_data / "xray" / "hannover-covid19"
    items = pd.read_csv(source / "data.csv", dtype=str).rename(
        columns={"image_id": "item_id", "patient_id": "group"}
    )
    items["path"] = "png/" + items["item_id"] + ".png"
    items = items[[(source / path).is_file() for path in items["path"]]]
    table = tmp_path / "hannover.csv"
    items[["item_id", "group", "path", "projection"]].to_csv(table, index=False)
    outcome = extract(tiny_request(table, tmp_path / "f", data=source, unit_rows=64))
    assert (outcome.rows, outcome.failures, outcome.complete) == (102, (), True)
    for head in sorted(HEADS):
        asked = {"head": head, "settings": QUICK[head] | ABLE.get(head, {})}
        result = fit(request(outcome.path, "projection", positive="pa", **asked)).result
        assert (result.items, result.groups) == (102, 35)
        assert result.store.weights == "random:0"
        assert (result.metrics["auc"].value or 0) > 0.8


# With features made up: what depends on who is whose, and on rare classes


@pytest.fixture
def fit_made_up(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    def fitted(features: ItemFeatures, *targets: str, **options: object) -> Result:
        monkeypatch.setattr("probes.cohort.load_item_features", lambda *_: features)
        monkeypatch.setattr("probes.fit.store_state", lambda path: {"path": str(path)})
        given = {"settings": {"epochs": 15}, "replicates": 300} | options
        return fit(request(Path("made-up"), *(targets or ("t",)), **given)).result

    return fitted


FitMadeUp = Callable[..., Result]


def width(result: Result, metric: str) -> float:
    found = result.metrics[metric]
    assert found.low is not None
    assert found.high is not None
    return found.high - found.low


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("noise", [0.3, 2])
def test_intervals_hold_the_value(fit_made_up: FitMadeUp, classes: int, noise: float) -> None:
    """In folds of four patients a draw often lacks a class; that must not lower the interval."""
    groups = np.arange(42) // 2
    result = fit_made_up(made_up(groups % classes, groups, noise=noise), folds=5)
    for found in result.metrics.values():
        assert found.value is not None
        assert found.low is not None
        assert found.high is not None
        assert found.low <= found.value <= found.high
    assert result.metrics["accuracy"].defined == 300
    if classes == 3:
        assert result.metrics["recall"].defined == result.metrics["auc"].defined < 300


@pytest.mark.parametrize("classes", [2, 3])
def test_a_head_without_a_mistake_has_no_interval(fit_made_up: FitMadeUp, classes: int) -> None:
    groups = np.arange(42) // 2
    features = made_up(groups % classes, groups)
    features = dataclasses.replace(features, x=np.eye(5, dtype=np.float32)[groups % classes])
    result = fit_made_up(features, folds=5, head="knn", settings={"k": 1})
    for found in result.metrics.values():
        assert (found.value, found.low, found.high) == (1, None, None)


def test_fewer_patients_are_less_certain(fit_made_up: FitMadeUp) -> None:
    """The same 240 items of the same split, once of 120 patients and once of 24."""
    labels = np.arange(240) // 10 % 2
    sides = np.where(np.arange(240) // 20 % 2, "test", "train")
    x = np.repeat(np.random.default_rng(1).normal(0, 1, (24, 5)), 10, axis=0)
    results = []
    for rows_of_a_patient in (2, 10):
        features = made_up(labels, np.arange(240) // rows_of_a_patient, side=sides)
        features = dataclasses.replace(features, x=(x + features.x / 9).astype(np.float32))
        results.append(fit_made_up(features, split="side", folds=None))
    many, few = results
    assert (many.groups, few.groups) == (120, 24)
    for metric in ("auc", "accuracy"):
        assert many.metrics[metric].value == few.metrics[metric].value
        assert width(few, metric) > 1.5 * width(many, metric)


def test_rows_that_stand_twice_make_nothing_more_certain(fit_made_up: FitMadeUp) -> None:
    """Copies of a patient's items belong to the patient: value and interval stay."""
    groups = np.arange(90) // 3
    once = made_up(groups % 2, groups)
    items = pd.concat([once.items, once.items.assign(item_id=once.items["item_id"] + "b")])
    twice = dataclasses.replace(
        once, x=np.concatenate([once.x, once.x]), items=items.reset_index(drop=True)
    )
    one, two = fit_made_up(once), fit_made_up(twice)
    assert (one.items, two.items, one.groups, two.groups) == (90, 180, 30, 30)
    for metric, found in one.metrics.items():
        again = two.metrics[metric]
        assert (again.value, again.low, again.high) == pytest.approx(
            (found.value, found.low, found.high), abs=1e-6
        )


def test_a_seed_that_is_set_is_the_first(fit_made_up: FitMadeUp) -> None:
    groups = np.arange(42) // 2
    features = made_up(groups % 2, groups)
    settings = {"seed": 3, "epochs": 2, "batch_size": 4}
    both = fit_made_up(features, settings=settings, seeds=2)
    assert (both.seeds, both.head.settings["seed"]) == ((3, 4), 3)
    one = fit_made_up(features, settings=settings)
    assert one.seeds == (3,)
    zero = fit_made_up(features, settings=settings | {"seed": 0})
    assert zero.seeds == (0,)
    assert zero.metrics != one.metrics


def test_a_few_patients_without_any_label_stop_no_fit(fit_made_up: FitMadeUp) -> None:
    groups = np.arange(60) // 2
    first, second = (groups % 2).astype(int), (groups % 3 == 0).astype(int)
    none = groups == 4
    first[none] = second[none] = 0
    features = made_up(first, groups, a=first, b=second)
    assert fit_made_up(features, "a", "b").items == 60


def test_a_label_rarer_than_the_folds_stops_the_fit(fit_made_up: FitMadeUp) -> None:
    groups = np.arange(60) // 2
    rare = np.isin(groups, [3, 8]).astype(int)
    features = made_up(groups % 2, groups, rare=rare)
    with pytest.raises(ProbeError, match=r"every label; 'rare' has 2 group\(s\): ask for fewer"):
        fit_made_up(features, "t", "rare")


@pytest.mark.parametrize(
    ("sides", "message"),
    [
        pytest.param(["train", "train", "val"], "the test side has no items", id="no-test"),
        pytest.param(["val", "val", "test"], "the train side has no items", id="no-train"),
    ],
)
def test_a_split_without_a_side(fit_made_up: FitMadeUp, sides: list[str], message: str) -> None:
    groups = np.arange(30) // 2
    features = made_up(groups % 2, groups, side=[sides[g % 3] for g in groups])
    with pytest.raises(ProbeError, match=message):
        fit_made_up(features, split="side", folds=None)


def test_a_class_that_training_lacks(fit_made_up: FitMadeUp) -> None:
    groups = np.arange(30) // 2
    labels = np.where(groups < 10, groups % 2, groups % 3)
    sides = np.where(groups < 10, "train", "test")
    with pytest.raises(ProbeError, match=r"class '2': the train side \(fold 0\) has only items"):
        fit_made_up(made_up(labels, groups, side=sides), split="side", folds=None)


def test_the_order_of_the_table_changes_no_fold(fit_made_up: FitMadeUp) -> None:
    """A split is of items, not of rows: its digest does not depend on their order."""
    groups = np.arange(42) // 2
    sides = np.where(groups % 3 == 0, "dev", np.where(groups % 3 == 1, "TRAIN", "testing"))
    features = made_up(groups % 2, groups, split=sides)
    backwards = dataclasses.replace(
        features, x=features.x[::-1], items=features.items[::-1].reset_index(drop=True)
    )
    one, two = (fit_made_up(f, folds=None) for f in (features, backwards))
    assert one.split == two.split
    assert (one.split.column, one.split.n_train, one.split.n_test) == ("split", 14, 14)


# Subgroups, classes, DeLong


def test_subgroups_are_judged_apart(fit_made_up: FitMadeUp) -> None:
    groups = np.arange(120) // 2
    centre = np.where(groups < 30, "north", "south")
    features = made_up(groups % 2, groups, noise=2, centre=centre)
    result = fit_made_up(features, folds=3, by=("centre",), settings={"epochs": 15})
    north, south = (result.subgroups["centre"][name] for name in ("north", "south"))
    assert (north.items, north.groups, south.items) == (60, 30, 60)
    whole = result.metrics["accuracy"].value
    of_parts = [part.metrics["accuracy"].value for part in (north, south)]
    assert min(of_parts) <= whole <= max(of_parts)
    assert north.metrics["auc"].low < north.metrics["auc"].value < north.metrics["auc"].high


def test_one_patient_has_no_interval(fit_made_up: FitMadeUp) -> None:
    groups = np.arange(60) // 2
    scanner = np.where(groups == 4, "old", "new")
    features = made_up(np.arange(60) % 2, groups, noise=2, scanner=scanner)
    result = fit_made_up(features, folds=3, by=("scanner",), metrics=("accuracy",))
    alone = result.subgroups["scanner"]["old"]
    assert (alone.items, alone.groups) == (2, 1)
    assert (alone.metrics["accuracy"].low, alone.metrics["accuracy"].high) == (None, None)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"by": ("moon",)}, "--by: there is no column 'moon'; the store has item_id, path, group"),
        ({"by": ("age",)}, "--by: 'age' has 40 values, which is no subgroup any more"),
        ({"metrics": ("subset_accuracy",)}, "is for multilabel tasks, this one is binary"),
    ],
)
def test_what_cannot_be_judged_is_said_before_training(
    fit_made_up: FitMadeUp, monkeypatch: pytest.MonkeyPatch, asked: dict[str, object], message: str
) -> None:
    def train(*_: object) -> None:
        raise AssertionError("trained")

    monkeypatch.setattr("probes.fit.train", train)
    features = made_up(np.arange(40) % 2, np.arange(40), age=np.arange(40) / 7)
    with pytest.raises(ProbeError, match=message):
        fit_made_up(features, folds=3, **asked)


def test_classes_have_intervals_and_delong_where_one_fold_tests(fit_made_up: FitMadeUp) -> None:
    groups = np.arange(180) // 2
    sides = np.where(groups < 60, "train", "test")
    result = fit_made_up(made_up(groups % 3, groups, noise=2, split=sides), seeds=2, folds=None)
    for name, found in result.delong.items():
        of_class = result.per_class[name]["auc"]
        assert found.value == pytest.approx(of_class.value)
        assert found.low < found.value < found.high
        assert (found.high - found.low) / (of_class.high - of_class.low) == pytest.approx(
            1, abs=0.4
        )
    assert set(result.delong) == {"0", "1", "2"}
    assert fit_made_up(made_up(groups % 3, groups, noise=2), folds=3).delong == {}


def test_more_models_make_nothing_more_certain(fit_made_up: FitMadeUp) -> None:
    """Five folds' heads on one test set: the patients are drawn once for all of them."""
    groups = np.arange(200) // 2
    column = np.where(groups < 60, "test", (groups % 5).astype(str))
    features = made_up(groups % 2, groups, noise=4, cv=column)
    five = fit_made_up(features, split="cv", folds=None)
    sides = np.where(groups < 60, "test", "train")
    features = made_up(groups % 2, groups, noise=4, side=sides)
    one = fit_made_up(features, split="side", folds=None)
    assert five.split.folds == 5
    assert width(five, "auc") > 0.8 * width(one, "auc")
