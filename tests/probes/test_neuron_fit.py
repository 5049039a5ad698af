"""A fit of neurons: from a stack's store to ids in files, and what they are worth."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
from making import tiny_request
from skimage.metrics import adapted_rand_error, variation_of_information

from dinocache.errors import ProbeError, RequestError
from dinocache.extract import extract
from probes.cli import main
from probes.fitted_maps import predict_maps
from probes.map_fit import fit_maps
from probes.map_request import MapRequest
from probes.runs import Result

SETTINGS = {"epochs": 30, "width": 16, "stages": 3, "lr": 0.01, "block_rows": 6, "steps": 4}


def neurons(folder: Path, *, name: str = "A", mask: bool = True, seed: int = 0) -> Path:
    """Nineteen sections of 64 x 80, 3 x 4 neurons of whole patches that shift from time to time.

    Neighbours differ in brightness; ids are those of a large dataset.
    """
    rng = np.random.default_rng(seed)
    ids = np.zeros((19, 64, 80), np.uint64)
    raw = np.zeros(ids.shape, np.uint8)
    for z in range(19):
        y = np.minimum((np.arange(64) + 16 * (z // 10)) // 32, 2)
        x = np.arange(80) // 32
        ids[z] = 10_000_000_000 + y[:, None] * 3 + x
        raw[z] = 40 + 55 * ((2 * y[:, None] + x) % 4) + rng.integers(0, 12, (64, 80))
    with h5py.File(folder / f"{name}.h5", "w") as file:
        file["volumes/raw"] = raw
        file["volumes/raw"].attrs["resolution"] = (40.0, 4.0, 4.0)
        file["volumes/labels/neuron_ids"] = ids
    row = {"item_id": name, "path": f"{name}.h5"} | ({"mask": f"{name}.h5"} if mask else {})
    table = folder / f"{name}.csv"
    pd.DataFrame([row]).to_csv(table, index=False)
    asked: dict[str, Any] = {
        "reader": "stack",
        "options": {"dataset": "volumes/raw"},
        "features": ("dense", "image"),
        "resolution": (64, 80),
    }
    if mask:
        asked["features"] = ("dense", "image", "mask")
        asked["options"]["mask_dataset"] = "volumes/labels/neuron_ids"
    return extract(tiny_request(table, folder / "f", **asked)).path


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return neurons(tmp_path_factory.mktemp("stack"))


def asked(store: Path, **more: object) -> MapRequest:
    given: dict[str, Any] = {
        "store": store,
        "kind": "instances",
        "head": "affinity",
        "settings": SETTINGS,
        "rows": {"train": {"": (0, 13)}, "test": {"": (13, 19)}},
        "replicates": 20,
    }
    return MapRequest(**(given | more))


def read(path: Path) -> np.ndarray[Any, Any]:
    with h5py.File(path) as file:
        ids = file["volumes/labels/neuron_ids"]
        assert ids.attrs["resolution"].tolist() == pytest.approx([40, 4, 4])
        return np.asarray(ids)


def test_neurons_are_found(store: Path, tmp_path: Path) -> None:
    fitted = fit_maps(asked(store), tmp_path / "run")
    result = fitted.result
    fitted.result.write(tmp_path / "run", fitted.predictions, fitted.arrays)
    assert (result.task.kind, result.task.classes, result.split.protocol) == (
        "instances",
        (),
        "rows",
    )
    with h5py.File(store.parents[3] / "A.h5") as file:
        truth = (
            file["volumes/labels/neuron_ids"][13:] - 9_999_999_999
        )  # skimage counts up to the highest
    for ending in ("", "@val"):
        made = read(tmp_path / f"run/labels/s0.f0/A.rows13-19{ending}.h5")
        split, merge = variation_of_information(truth, made, ignore_labels=[0])
        error, _, _ = adapted_rand_error(truth, made, ignore_labels=[0])
        for name, value in (
            ("voi_split", split),
            ("voi_merge", merge),
            ("voi", split + merge),
            ("arand", error),
        ):
            found = result.metrics[f"{name}{ending}"]
            assert found.value == pytest.approx(value, abs=1e-9)
            assert found.low is None  # of one volume nothing can be drawn
    assert result.metrics["voi"].value is not None
    assert result.metrics["voi"].value < 1.6  # all of it one neuron: 3.0; borders alone: 0.6
    search = result.head.search
    assert search is not None
    assert search.grid["threshold"] == tuple(n / 10 for n in range(1, 10))
    (chosen,), (losses,) = search.chosen, search.losses
    assert losses[round(10 * float(str(chosen["threshold"]))) - 1] == min(losses)
    assert [path.name for path in (tmp_path / "run/overlays/s0.f0").iterdir()] == [
        "A.rows13-19.png"
    ]
    answer = predict_maps(tmp_path / "run", store, tmp_path / "p")
    assert (answer.metrics, len(answer.table)) == (None, 1)
    assert read(tmp_path / "p/A.h5").shape == (19, 64, 80)
    other = neurons(tmp_path, name="B", mask=False)
    assert predict_maps(tmp_path / "run", other, tmp_path / "p").metrics is None
    assert len(np.unique(read(tmp_path / "p/B.h5"))) > 3


def test_rows_that_choose_are_neither_trained_on_nor_tested(store: Path, tmp_path: Path) -> None:
    rows = {"train": {"A": (0, 9)}, "val": {"A": (9, 13)}, "test": {"A": (13, 19)}}
    short = SETTINGS | {"epochs": 2}
    first = fit_maps(asked(store, rows=rows, settings=short), tmp_path / "a").result
    again = fit_maps(asked(store, rows=rows, settings=short), tmp_path / "b").result
    assert first == again
    assert (first.split.n_train, first.split.n_val, first.split.n_test) == (1, 1, 1)
    without = {"train": {"A": (0, 9)}, "test": {"A": (13, 19)}}
    other = fit_maps(asked(store, rows=without, settings=short), tmp_path / "c").result
    # The same head, asked about other sections to choose by.
    assert other.metrics["voi"] == first.metrics["voi"]
    assert other.head.search is not None
    assert first.head.search is not None
    assert other.head.search.losses != first.head.search.losses


def test_commands(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["fit", str(store), "--instances", "--rows", "train=0:13,test=13:19"]
    for setting in ("epochs=2", "width=8", "stages=3", "steps=1"):
        words += ["--set", setting]
    words += ["--out", str(tmp_path / "run"), "--replicates", "5"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "voi@val" in said
    assert "ranges of rows" in said
    assert Result.read(tmp_path / "run").head.name == "affinity"
    for more, message in (
        (["--labels", "1=a"], "--labels, --instances and --target are three sorts of fits"),
        (["--head", "decoder3d"], "--head 'decoder3d': of affinities there are affinity"),
        (["--metrics", "dice"], "metric 'dice' is for segmentation and registration"),
        (["--folds", "3"], "--split, --folds and --rows are three protocols"),
        (["--rows", "train=0:13,test=13:20"], "item 'A' has 19 rows; 13 to 20 are asked for"),
    ):
        assert main([*words, *more]) in (1, 2)
        err = capsys.readouterr().err
        assert message in err
        assert err.count("\n") == 1
    assert main(["fit", str(store), "--target", "group", "--rows", "train=0:1,test=1:2"]) == 2
    assert "--rows and --present-only are of maps" in capsys.readouterr().err


def test_what_cannot_be(store: Path, tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match="2 folds need at least 2 groups, got 1"):
        fit_maps(asked(store, rows={}, folds=2), tmp_path)
    with pytest.raises(RequestError, match="neurons have ids"):
        asked(store, labels={1: "a"})
