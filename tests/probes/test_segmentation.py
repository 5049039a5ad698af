"""A fit of maps: from a store to labels on the files' own grids, and what they are worth."""

import json
from pathlib import Path
from typing import Any

import medpy.metric.binary
import nibabel
import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from making import tiny_request
from PIL import Image

from dinocache.errors import ProbeError, RequestError
from dinocache.extract import extract
from dinocache.store import FeatureStore
from probes.cli import main
from probes.map_request import MapRequest, parse_labels
from probes.runs import Result, read_predictions
from probes.segmentation import segment

FAST = {"epochs": 60, "lr": 0.02}
SHORT = {"epochs": 6, "lr": 0.02}


def scans(folder: Path, *, seed: int = 0, **options: object) -> Path:
    """Twelve volumes of six patients whose patches of 16 px are dark, grey or bright.

    48 x 64 voxels (x, y) and three or four slices, stored from the head down and to the right, so
    that rows and files have other orders. Grey is label 3, bright is label 7.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(12):
        depth = 3 + number % 2
        kinds = rng.integers(0, 3, (3, 4, depth))
        large = np.kron(kinds, np.ones((16, 16, 1), int))
        image = (80 * large + rng.integers(0, 25, large.shape)).astype(np.uint8)
        labels = np.array([0, 3, 7], np.uint8)[large]
        affine = np.array([[0.9, 0, 0, 5], [0, -0.9, 0, 7], [0, 0, -2.5, 9], [0, 0, 0, 1]])
        for name, values in (("i", image), ("m", labels)):
            nibabel.Nifti1Image(values, affine).to_filename(folder / f"{name}{number}.nii.gz")
        rows.append(
            {
                "item_id": f"v{number}",
                "path": f"i{number}.nii.gz",
                "mask": f"m{number}.nii.gz",
                "group": f"p{number // 2}",
                "side": "test" if number < 4 else "train",
            }
        )
    table = folder / "scans.csv"
    pd.DataFrame(rows).to_csv(table, index=False)
    asked: dict[str, Any] = {"features": ("dense", "image", "mask"), "resolution": (64, 48)}
    asked |= options
    return extract(tiny_request(table, folder / "f", **asked)).path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scans")


@pytest.fixture(scope="module")
def store(place: Path) -> Path:
    return scans(place)


def asked(store: Path, **more: object) -> MapRequest:
    given: dict[str, Any] = {
        "store": store,
        "labels": {3: "grey", 7: "bright"},
        "head": "linear2d",
        "settings": FAST,
        "split": "side",
        "metrics": ("dice", "iou", "hd95", "precision"),
        "replicates": 50,
    }
    return MapRequest(**(given | more))


@pytest.mark.parametrize("head", ["linear2d", "decoder2d"])
def test_labels_of_whole_patches_are_learned(
    store: Path, place: Path, tmp_path: Path, head: str
) -> None:
    settings = FAST if head == "linear2d" else {"epochs": 25, "lr": 0.003, "width": 32}
    fitted = segment(asked(store, head=head, settings=settings), tmp_path / "run")
    result = fitted.result
    assert result.metrics["dice"].value is not None
    assert result.metrics["dice"].value > 0.85  # a third by chance; borders blur
    assert set(result.per_class) == {"grey", "bright"}
    assert (result.split.n_train, result.split.n_test) == (8, 4)
    # What is in the files, on the files' own grids, is what was judged.
    dice: dict[int, list[float]] = {3: [], 7: []}
    distances: dict[int, list[float]] = {3: [], 7: []}
    for number in range(4):
        made = nibabel.load(tmp_path / f"run/labels/s0.f0/v{number}.nii.gz")
        truth = nibabel.load(place / f"m{number}.nii.gz")
        assert made.shape == truth.shape
        np.testing.assert_allclose(made.affine, truth.affine, atol=1e-5)
        ours, theirs = (np.asarray(file.dataobj) for file in (made, truth))
        assert set(np.unique(ours)) <= {0, 3, 7}
        for value, found in dice.items():
            found.append(medpy.metric.binary.dc(ours == value, theirs == value))
            distances[value].append(
                medpy.metric.binary.hd95(ours == value, theirs == value, (0.9, 0.9, 2.5))
            )
    for value, name in ((3, "grey"), (7, "bright")):
        assert result.per_class[name]["dice"].value == pytest.approx(np.mean(dice[value]), abs=1e-9)
        assert result.per_class[name]["hd95"].value == pytest.approx(
            np.mean(distances[value]), abs=1e-6
        )
    assert len(list((tmp_path / "run/overlays/s0.f0").glob("*.png"))) == 4


def test_shuffled_features_tell_nothing(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = FeatureStore.rows

    def shuffled(self: FeatureStore, kind: str, *where: int) -> npt.NDArray[Any]:
        found = plain(self, kind, *where)
        rng = np.random.default_rng(abs(hash((kind, *where))) % 2**32)
        flat = found.reshape(-1, found.shape[-1])
        return flat[rng.permutation(len(flat))].reshape(found.shape)

    monkeypatch.setattr(FeatureStore, "rows", shuffled)
    found = segment(asked(store), tmp_path / "run").result.metrics["dice"].value
    assert found is not None
    assert found < 0.45  # a third of the pixels has each label


def test_the_same_request_gives_the_same(store: Path, tmp_path: Path) -> None:
    request = asked(store, seeds=2, settings=SHORT)
    first, second = (segment(request, tmp_path / name) for name in ("a", "b"))
    assert first.result == second.result
    assert set(first.arrays) == set(second.arrays)
    for name, array in first.arrays.items():
        np.testing.assert_array_equal(array, second.arrays[name])
    pd.testing.assert_frame_equal(first.predictions, second.predictions)
    assert first.result.seeds == (0, 1)
    assert len(first.predictions) == 8
    counted = first.predictions[["tp.grey", "fp.grey", "fn.grey", "tn.grey"]].sum(axis=1)
    assert set(counted) == {48 * 64 * 3, 48 * 64 * 4}


def test_folds_by_patient(store: Path, tmp_path: Path) -> None:
    fitted = segment(asked(store, split=None, folds=3, settings=SHORT), tmp_path / "run")
    assert fitted.result.split.folds == 3
    sides = fitted.predictions.groupby("fold")["group"].agg(set)
    assert set.union(*sides) == {f"p{n}" for n in range(6)}
    assert not set.intersection(sides[0], sides[1])
    assert len(fitted.predictions) == 12
    interval = fitted.result.metrics["iou"]
    assert interval.low is not None
    assert interval.high is not None
    assert interval.value is not None
    assert interval.low <= interval.value <= interval.high


def test_a_fit_that_was_interrupted_goes_on(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = segment(asked(store, settings=SHORT), tmp_path / "whole")
    plain, reads = FeatureStore.rows, [0]

    def stops(self: FeatureStore, kind: str, *where: int) -> npt.NDArray[Any]:
        reads[0] += 1
        if reads[0] == 60:
            raise KeyboardInterrupt
        return plain(self, kind, *where)

    with monkeypatch.context() as patched:
        patched.setattr(FeatureStore, "rows", stops)
        with pytest.raises(KeyboardInterrupt):
            segment(asked(store, settings=SHORT), tmp_path / "run")
    assert list((tmp_path / "run").glob(".fit.*"))
    again = segment(asked(store, settings=SHORT), tmp_path / "run")
    for name, array in whole.arrays.items():
        np.testing.assert_array_equal(array, again.arrays[name])
    assert not list((tmp_path / "run").glob(".fit.*"))


def test_pictures_of_their_own_sizes_with_classes_that_overlap(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    rows = []
    for number in range(10):
        patches = rng.integers(0, 4, (4, 3))  # dark, left class, right class, both
        sides = 16 + number % 3
        grey = np.kron(patches * 60, np.ones((sides, sides), int))
        picture = (grey + rng.integers(0, 15, grey.shape)).astype(np.uint8)
        Image.fromarray(picture).save(tmp_path / f"{number}.png")
        row = {"item_id": f"f{number}", "path": f"{number}.png", "split": "train"}
        for name, bit in (("a", 1), ("b", 2)):
            mask = np.kron((patches & bit > 0) * 255, np.ones((sides, sides), int))
            Image.fromarray(mask.astype(np.uint8)).save(tmp_path / f"{number}{name}.png")
            row[f"mask.{name}"] = f"{number}{name}.png"
        rows.append(row)
    for row in rows[:3]:
        row["split"] = "test"
    table = tmp_path / "frames.csv"
    pd.DataFrame(rows).to_csv(table, index=False)
    path = extract(
        tiny_request(table, tmp_path / "f", features=("dense", "mask"), resolution=(64, 48))
    ).path
    request = MapRequest(
        store=path,
        labels={1: "a", 2: "b"},
        head="decoder2d",
        settings={"epochs": 60, "lr": 0.003, "width": 32},
        metrics=("dice", "instrument_iou"),
        replicates=20,
    )
    fitted = segment(request, tmp_path / "run")
    assert fitted.result.metrics["dice"].value is not None
    assert fitted.result.metrics["dice"].value > 0.7
    made = np.asarray(Image.open(tmp_path / "run/labels/s0.f0/f2.b.png"))
    assert made.shape == (4 * 18, 3 * 18)
    assert set(np.unique(made)) <= {0, 1}


def test_commands(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["fit", str(store), "--labels", "3=grey,7=bright", "--head", "linear2d"]
    words += ["--split", "side", "--set", "epochs=2", "--replicates", "10"]
    words += ["--out", str(tmp_path / "run")]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "RANDOM WEIGHTS (random:0): these figures say nothing about the model" in said
    assert "dice" in said
    assert f"predicted labels: {tmp_path / 'run' / 'labels'}" in said
    result = Result.read(tmp_path / "run")
    assert (result.task.kind, result.task.classes) == ("segmentation", ("grey", "bright"))
    assert len(read_predictions(tmp_path / "run")) == 4
    assert main(["metrics", "--json"]) == 0
    assert {"dice", "hd95"} <= {m["name"] for m in json.loads(capsys.readouterr().out)["maps"]}
    for more, message in (
        (["--labels", "3=grey"], "its mask holds the label 7, which the task does not name"),
        (["--labels", "grey"], "give VALUE=NAME from 1 to 255, as 1=liver"),
        (["--metrics", "auc"], "auc"),
        (["--metrics", "voi"], "metric 'voi' is not of segmentations"),
        (["--head", "linear"], "--head 'linear': of maps there are"),
        (["--features", "cls"], "--features 'cls': name maps, as dense"),
        (["--features", "dense.L05"], "has no 'dense.L05'"),
        (["--target", "side"], "--labels and --target are two sorts of fits"),
        (["--split", "centre"], "--split: there is no column 'centre'"),
        (["--set", "depth=3"], "has no setting 'depth'"),
    ):
        assert main([*words, *more]) in (1, 2)
        err = capsys.readouterr().err
        assert message in err
        assert err.count("\n") == 1
    assert main(["predict", str(tmp_path / "run"), str(store)]) in (1, 2)
    assert "gives no scores of items" in capsys.readouterr().err
    assert main(["compare", str(tmp_path / "run"), str(tmp_path / "run")]) in (1, 2)
    assert "the run is a segmentation" in capsys.readouterr().err


def test_words() -> None:
    assert parse_labels("2=liver, 5=tumour") == {2: "liver", 5: "tumour"}
    for text in ("", "1", "0=air", "256=x", "1=a,1=b", "1=a,2=a", "1="):
        with pytest.raises(RequestError, match="--labels"):
            parse_labels(text)


def test_a_split_without_a_side(store: Path, tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match="a split column holds train"):
        segment(asked(store, split="group"), tmp_path)
