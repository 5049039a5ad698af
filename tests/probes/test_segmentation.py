"""A fit of maps: from a store to labels on the files' own grids, and what they are worth."""

import itertools
import json
from collections.abc import Iterator
from itertools import combinations
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
from scipy.ndimage import map_coordinates

from dinocache.errors import ProbeError, RequestError
from dinocache.extract import extract
from dinocache.store import FeatureStore
from probes.cli import main
from probes.compare import compare_runs
from probes.fitted_maps import predict_maps
from probes.heads.linear2d import Linear2dHead
from probes.map_fit import fit_maps
from probes.map_request import MapRequest, parse_labels, parse_rows
from probes.maps import StoredCases, stored_cases
from probes.places import map_folder
from probes.runs import Result, read_predictions

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
    fitted = fit_maps(asked(store, head=head, settings=settings), tmp_path / "run")
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
    for folder in ("overlays/s0.f0", "components"):
        pictures = list((tmp_path / "run" / folder).glob("*.png"))
        assert len(pictures) == 4
        for picture in pictures:
            with Image.open(picture) as opened:
                assert opened.size[0] > 300


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
    found = fit_maps(asked(store), tmp_path / "run").result.metrics["dice"].value
    assert found is not None
    assert found < 0.45  # a third of the pixels has each label


def test_the_same_request_gives_the_same(store: Path, tmp_path: Path) -> None:
    request = asked(store, seeds=2, settings=SHORT)
    first, second = (fit_maps(request, tmp_path / name) for name in ("a", "b"))
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
    fitted = fit_maps(asked(store, split=None, folds=3, settings=SHORT), tmp_path / "run")
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
    whole = fit_maps(asked(store, settings=SHORT), tmp_path / "whole")
    plain, reads = FeatureStore.rows, [0]

    def stops(self: FeatureStore, kind: str, *where: int) -> npt.NDArray[Any]:
        reads[0] += 1
        if reads[0] == 60:
            raise KeyboardInterrupt
        return plain(self, kind, *where)

    with monkeypatch.context() as patched:
        patched.setattr(FeatureStore, "rows", stops)
        with pytest.raises(KeyboardInterrupt):
            fit_maps(asked(store, settings=SHORT), tmp_path / "run")
    assert list((tmp_path / "run").glob(".fit.*"))
    again = fit_maps(asked(store, settings=SHORT), tmp_path / "run")
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
    fitted = fit_maps(request, tmp_path / "run")
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
        (["--metrics", "voi"], "metric 'voi' is for instances, this task is segmentation"),
        (["--head", "linear"], "--head 'linear': of classes there are"),
        (["--features", "cls"], "--features 'cls': name maps, as dense"),
        (["--features", "dense.L05"], "has no 'dense.L05'"),
        (["--target", "side"], "--labels, --instances and --target are three sorts of fits"),
        (["--split", "centre"], "--split: there is no column 'centre'"),
        (["--set", "depth=3"], "has no setting 'depth'"),
    ):
        assert main([*words, *more]) in (1, 2)
        err = capsys.readouterr().err
        assert message in err
        assert err.count("\n") == 1
    run = str(tmp_path / "run")
    assert main(["attention", run, str(store), "--out", str(tmp_path / "a")]) in (1, 2)
    assert "gives no scores of items" in capsys.readouterr().err
    assert main(["predict", run, str(store), "--out", str(tmp_path / "p"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["metrics"], len(told["items"])) == ({}, 12)  # it was fitted on some of them
    assert main(["compare", run, run]) == 0
    assert "dice" in capsys.readouterr().out


def test_a_run_is_asked_about_another_store(store: Path, tmp_path: Path) -> None:
    fitted = fit_maps(asked(store, seeds=2), tmp_path / "run")
    fitted.result.write(tmp_path / "run", fitted.predictions, fitted.arrays)
    for name in ("other", "blind"):
        (tmp_path / name).mkdir()
    other = scans(tmp_path / "other", seed=9, name="other")
    answer = predict_maps(tmp_path / "run", other, tmp_path / "p", replicates=20)
    # What is written is what is judged: the mean over both heads.
    found = []
    for number in range(12):
        made, truth = (
            np.asarray(nibabel.load(path).dataobj)
            for path in (tmp_path / f"p/v{number}.nii.gz", tmp_path / f"other/m{number}.nii.gz")
        )
        pairs = [(made == value, truth == value) for value in (3, 7)]
        found.append([medpy.metric.binary.dc(*pair) for pair in pairs if pair[1].any()])
    assert answer.metrics is not None
    assert answer.metrics["dice"].value == pytest.approx(
        np.mean([np.mean(column) for column in zip(*found, strict=True)]), abs=1e-9
    )
    assert answer.metrics["dice"].value > 0.85
    assert answer.metrics["dice"].low is not None
    few = scans(tmp_path / "other", seed=9, name="few", options={"rows": "labelled"})
    assert predict_maps(tmp_path / "run", few, tmp_path / "f").metrics is not None
    blind = scans(tmp_path / "blind", seed=9, name="blind", features=("dense", "image"))
    without = predict_maps(tmp_path / "run", blind, tmp_path / "q")
    assert without.metrics is None
    for number in (0, 11):
        files = [tmp_path / place / f"v{number}.nii.gz" for place in ("p", "q")]
        first, second = (np.asarray(nibabel.load(file).dataobj) for file in files)
        np.testing.assert_array_equal(first, second)
    alien = scans(tmp_path / "blind", resolution=(32, 48), name="alien")
    with pytest.raises(ProbeError, match="of another recipe"):
        predict_maps(tmp_path / "run", alien, tmp_path / "r")


def test_runs_are_compared(store: Path, tmp_path: Path) -> None:
    """By hand from each item's own Dice: the difference, and how often a swap is as large."""
    for name, settings in (("short", {"epochs": 1, "lr": 0.001}), ("long", {**FAST, "epochs": 25})):
        fitted = fit_maps(asked(store, split=None, folds=3, settings=settings), tmp_path / name)
        fitted.result.write(tmp_path / name, fitted.predictions, fitted.arrays)
    runs = [tmp_path / "short", tmp_path / "long"]
    found = {one.metric: one for one in compare_runs(runs, replicates=100, permutations=100)}
    assert set(found) == {"dice", "iou", "hd95", "precision"}
    dice = found["dice"]
    values = [Result.read(run).metrics["dice"].value for run in runs]
    assert [dice.value_base, dice.value_run] == pytest.approx(values, abs=1e-12)
    assert dice.difference is not None
    assert dice.difference > 0.1
    assert dice.p_permutation is not None
    assert dice.p_permutation < 0.1  # of six patients there are 64 swaps, two as large
    assert found["hd95"].difference is not None
    assert found["hd95"].difference < 0
    same = compare_runs([runs[0], runs[0]], metrics=["dice", "miou"], permutations=50)
    assert [one.difference for one in same] == [0, 0]
    assert [one.p_permutation for one in same] == [1, 1]
    with pytest.raises(RequestError, match="asd was not measured by"):
        compare_runs(runs, metrics=["asd"])
    fitted = fit_maps(asked(store, split=None, folds=3, present_only=True, settings=SHORT), runs[0])
    fitted.result.write(runs[0], fitted.predictions, fitted.arrays)
    with pytest.raises(ProbeError, match="--present-only"):
        compare_runs(runs)


def test_ranges_of_rows(store: Path, tmp_path: Path) -> None:
    rows = {"train": {"": (0, 2)}, "test": {"v3": (2, 4), "v6": (2, 3)}}
    fitted = fit_maps(asked(store, split=None, rows=rows, settings=SHORT), tmp_path / "run")
    assert fitted.result.split.protocol == "rows"
    request = asked(store, split=None, rows=rows, settings={"epochs": 6}, present_only=True)
    assert map_folder(request).as_posix() == (
        "scans/grey+bright/tiny-64x48-dense-linear2d-epochs=6-"
        "rows=train_0_2+test_v3_2_4+test_v6_2_3-present-only"
    )
    assert (fitted.result.split.n_train, fitted.result.split.n_test) == (12, 2)
    assert fitted.predictions[["item_id", "start", "stop"]].to_numpy().tolist() == [
        ["v3", 2, 4],
        ["v6", 2, 3],
    ]
    counts = fitted.predictions[["tp", "fp", "fn", "tn"]].sum(axis=1).tolist()
    assert counts == [2 * 48 * 64, 48 * 64]
    # On the file's own grid; other rows are background. Files are stored from the head down.
    made = np.asarray(nibabel.load(tmp_path / "run/labels/s0.f0/v3.rows2-4.nii.gz").dataobj)
    assert made.shape == (48, 64, 4)
    assert made.any(axis=(0, 1)).sum() == 2
    for wrong, message in (
        ({"train": {"": (0, 2)}, "test": {"v3": (2, 9)}}, "item 'v3' has 4 rows; 2 to 9 are asked"),
        ({"train": {"": (0, 2)}, "test": {"v99": (2, 4)}}, "of 'v99' are asked for, the store has"),
    ):
        with pytest.raises(ProbeError, match=message):
            fit_maps(asked(store, split=None, rows=wrong), tmp_path / "x")


def test_labels_of_resampled_rows_are_told_from_probabilities(tmp_path: Path) -> None:
    """Rows of half as many voxels: between two of them the mean decides, not the nearer one."""
    store = scans(tmp_path, options={"spacing": [1.8, 1.8, 2.5]})
    fitted = fit_maps(asked(store), tmp_path / "run")
    (head,) = (Linear2dHead.from_arrays({**FAST, "seed": 0}, _of(fitted.arrays)),)
    cases, _ = stored_cases(store, ["dense"], {3: "grey", 7: "bright"})
    assert cases.size(0) == (32, 24)
    scores = np.concatenate([block for _, block in head.predict(cases, 1)], axis=1)
    made = np.asarray(nibabel.load(tmp_path / "run/labels/s0.f0/v1.nii.gz").dataobj)
    depth = scores.shape[1]
    # The file is stored from the head down and to the right: voxel (i, j, k) is that of (z, y, x).
    i, j, k = np.indices(made.shape)
    at = [depth - 1 - k, (63 - j + 0.5) / 2 - 0.5, (47 - i + 0.5) / 2 - 0.5]
    flips = [[np.flip(scores, axes) for axes in combinations((1, 2, 3), n)] for n in range(4)]
    told = [
        np.array([0, 3, 7])[
            np.stack([map_coordinates(one, at, order=1, mode="nearest") for one in some]).argmax(0)
        ]
        for some in itertools.chain.from_iterable(flips)
    ]
    # Which way the axes go is known by other tests; one of the eight is the file's.
    shares = [float((made == one).mean()) for one in told]
    assert max(shares) > 0.999
    assert sorted(shares)[-2] < 0.9


def _of(arrays: dict[str, Any]) -> dict[str, Any]:
    return {name.removeprefix("s0.f0."): array for name, array in arrays.items()}


def test_a_voxel_counts_on_the_labels_own_grid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One voxel, found in one item and missed by one in another; a patch is 16 x 16 of them."""
    rng = np.random.default_rng(3)
    rows = []
    for number in range(4):
        labels = np.zeros((47, 63, 5), np.uint8)
        labels[11 + number, 40, 2] = 1
        image = (90 * labels + rng.integers(0, 25, labels.shape)).astype(np.uint8)
        affine = np.diag([-0.7, -0.8, 3.0, 1.0])
        for name, values in (("i", image), ("m", labels)):
            nibabel.Nifti1Image(values, affine).to_filename(tmp_path / f"{name}{number}.nii.gz")
        side = "train" if number < 2 else "test"
        rows.append({"path": f"i{number}.nii.gz", "mask": f"m{number}.nii.gz", "side": side})
    table = tmp_path / "dots.csv"
    pd.DataFrame(rows).to_csv(table, index=False)
    kinds = ("dense", "mask")
    store = extract(tiny_request(table, tmp_path / "f", features=kinds, resolution=(48, 64))).path
    request = asked(
        store, labels={1: "dot"}, settings={"epochs": 1}, metrics=("recall", "hd95", "asd")
    )

    def predict(
        head: Linear2dHead, cases: StoredCases, item: int
    ) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
        dot = np.roll(cases.labels(item, 0, 5), item - 2, axis=1)
        yield 0, np.stack([1 - dot, dot]).astype(np.float32)

    monkeypatch.setattr(Linear2dHead, "predict", predict)
    fitted = fit_maps(request, tmp_path / "run")
    said = fitted.predictions.set_index("item_id")
    assert (said["tp.dot"] + said["fn.dot"]).tolist() == [1, 1]
    assert (said[["tp.dot", "fp.dot", "fn.dot", "tn.dot"]].sum(axis=1) == 47 * 63 * 5).all()
    assert said["tp.dot"].tolist() == [1, 0]
    assert said["hd95.dot"].tolist() == pytest.approx([0, 0.8], abs=1e-6)
    assert said["asd.dot"].tolist() == pytest.approx([0, 0.8], abs=1e-6)
    for number in (2, 3):
        made = np.asarray(nibabel.load(tmp_path / f"run/labels/s0.f0/i{number}.nii.gz").dataobj)
        truth = np.asarray(nibabel.load(tmp_path / f"m{number}.nii.gz").dataobj)
        name = f"i{number}.nii.gz"
        assert int(said.loc[name, "tp.dot"]) == int(((made > 0) & (truth > 0)).sum())


def test_words_of_rows() -> None:
    assert parse_rows("train=0:100,test=100:125") == {
        "train": {"": (0, 100)},
        "test": {"": (100, 125)},
    }
    assert parse_rows("train=A@C@0:8,test=B@1:2")["train"] == {"A@C": (0, 8)}
    for text in ("", "train", "train=1", "train=1:2,train=3:4", "train=-1:2"):
        with pytest.raises(RequestError, match="--rows"):
            parse_rows(text)
    given: dict[str, Any] = {"store": "x", "labels": {1: "a"}}
    for rows, message in (
        ({"train": {"": (0, 5)}}, "no rows to test"),
        ({"train": {"": (0, 5)}, "test": {"": (4, 8)}}, "4:5 is on two sides, train and test"),
        ({"train": {"": (0, 5)}, "test": {"A": (4, 8)}}, "4:5 is on two sides"),
        ({"train": {"": (0, 5)}, "test": {"": (8, 8)}}, "8:8: no such range"),
        ({"fit": {"": (0, 5)}, "test": {"": (8, 9)}}, "'fit' is no side"),
    ):
        with pytest.raises(RequestError, match=message):
            MapRequest(rows=rows, **given)
    MapRequest(rows={"train": {"B": (0, 5)}, "test": {"A": (4, 8)}}, **given)
    with pytest.raises(RequestError, match="three protocols"):
        MapRequest(rows={"train": {"B": (0, 5)}, "test": {"A": (4, 8)}}, folds=3, **given)


def test_words() -> None:
    assert parse_labels("2=liver, 5=tumour") == {2: "liver", 5: "tumour"}
    for text in ("", "1", "0=air", "256=x", "1=a,1=b", "1=a,2=a", "1="):
        with pytest.raises(RequestError, match="--labels"):
            parse_labels(text)


def volumes(folder: Path, masks: Any, **changed: Any) -> Path:  # noqa: ANN401
    """Volumes of 48 x 32 voxels with these masks, (X, Y, Z) or None; the last two are tested."""
    rng = np.random.default_rng(1)
    rows = []
    for number, mask in enumerate(masks):
        depth = 4 if mask is None else mask.shape[2]
        image = rng.integers(0, 200, changed.get("size", (48, 32, depth))).astype(np.uint8)
        nibabel.Nifti1Image(image, np.diag([1, 1, 2, 1.0])).to_filename(folder / f"i{number}.nii")
        row = {"item_id": f"v{number}", "path": f"i{number}.nii", "side": "train"}
        if mask is not None:
            affine = changed.get("affine", np.diag([1, 1, 2, 1.0]))
            nibabel.Nifti1Image(mask, affine).to_filename(folder / f"m{number}.nii")
            row["mask"] = f"m{number}.nii"
        rows.append(row | ({"side": "test"} if number >= len(masks) - 2 else {}))
    pd.DataFrame(rows).to_csv(folder / "v.csv", index=False)
    kinds = ("dense", "mask")
    return extract(
        tiny_request(folder / "v.csv", folder / "f", features=kinds, resolution=(32, 48))
    ).path


def drawn(value: int, depth: int = 4) -> npt.NDArray[np.uint8]:
    mask = np.zeros((48, 32, depth), np.uint8)
    mask[:20, 4:20] = value
    return mask


def test_masks_that_say_nothing(tmp_path: Path) -> None:
    request: dict[str, Any] = {"labels": {3: "grey", 7: "bright"}, "settings": SHORT}
    empty = volumes(tmp_path, [drawn(0)] * 4 + [drawn(3)] * 2)
    with pytest.raises(ProbeError, match=r"masks of all 4 training items are empty.*grey, bright"):
        fit_maps(asked(empty, **request), tmp_path / "run")
    (tmp_path / "half").mkdir()
    half = volumes(tmp_path / "half", [drawn(0), drawn(3), drawn(3), drawn(3), drawn(7), drawn(0)])
    fitted = fit_maps(asked(half, **request), tmp_path / "run")
    assert any("no training item of a fold has bright" in note for note in fitted.result.notes)
    # An empty truth: a Dice of 0 if anything is predicted, and no distance.
    said = fitted.predictions.set_index("item_id")
    assert said.loc["v5", "tp.grey"] + said.loc["v5", "fn.grey"] == 0
    assert np.isnan(said.loc["v5", "hd95.grey"])
    only = fit_maps(asked(half, present_only=True, **request), tmp_path / "present").result
    assert only.per_class["bright"]["dice"].value == 0  # of the one that has it
    assert only.per_class["grey"]["dice"].value is None  # nobody has it


def test_volumes_of_one_slice(tmp_path: Path) -> None:
    store = volumes(tmp_path, [drawn(3, 1)] * 4)
    settings = {"epochs": 2, "width": 8, "stages": 2}
    for head, more in (("decoder3d", settings), ("linear2d", SHORT)):
        request = asked(store, labels={3: "grey"}, head=head, settings=more)
        fit_maps(request, tmp_path / head)
        made = nibabel.load(tmp_path / head / "labels/s0.f0/v3.nii.gz")
        assert made.shape == (48, 32, 1)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"size": (48, 31, 4)}, "31"),
        ({"affine": np.diag([1, 1, 2.5, 1.0])}, "another grid"),
    ],
    ids=["size", "spacing"],
)
def test_masks_of_another_grid_are_left_out(
    tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    store = volumes(tmp_path, [drawn(3)] * 4, **changed)
    with pytest.raises(ProbeError, match=r"no item of .* has dense and mask"):
        fit_maps(asked(store, labels={3: "grey"}), tmp_path / "run")
    reasons = [failed.failure.reason for failed in FeatureStore(store).failures()]
    assert len(reasons) == 4
    assert all(message in reason for reason in reasons)


def test_a_split_of_nobody(tmp_path: Path) -> None:
    store = scans(tmp_path)
    table = pd.read_csv(tmp_path / "scans.csv").assign(cv=["a", *[None] * 11])
    table["mask"] = [None, *table["mask"][1:]]
    table.to_csv(tmp_path / "some.csv", index=False)
    asked_for: dict[str, Any] = {"features": ("dense", "mask"), "resolution": (64, 48)}
    store = extract(tiny_request(tmp_path / "some.csv", tmp_path / "f", **asked_for)).path
    with pytest.raises(ProbeError, match=r"none of the 11 items .* has a value of 'cv'.*--folds"):
        fit_maps(asked(store, split="cv"), tmp_path / "run")


def test_a_split_without_a_side(store: Path, tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match="a split column holds train"):
        fit_maps(asked(store, split="group"), tmp_path)
