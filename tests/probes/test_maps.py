"""Items of a store as heads of maps take them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pytest
from making import tiny_request
from PIL import Image

from dinocache.errors import ProbeError, StoreIncompleteError
from dinocache.extract import extract
from dinocache.views import turned
from probes.maps import stored_cases

SLICES = (7, 4, 9, 5, 6)


def volumes(folder: Path, **options: object) -> Path:
    """Five volumes of 13 x 11 voxels and some slices, with labels 2 and 5, and their store."""
    rng = np.random.default_rng(4)
    rows = []
    for number, depth in enumerate(SLICES):
        image = rng.integers(0, 200, (13, 11, depth)).astype(np.int16)
        labels = np.zeros(image.shape, np.uint8)
        labels[2:6, 3:7, 1:] = 2
        labels[8:11, 1:4, :2] = 5
        affine = np.diag([-1.0, -1.5, 2.0, 1.0])
        for name, values in (("i", image), ("m", labels)):
            nibabel.Nifti1Image(values, affine).to_filename(folder / f"{name}{number}.nii.gz")
        row = {"path": f"i{number}.nii.gz", "mask": f"m{number}.nii.gz", "item_id": f"v{number}"}
        rows.append(row)
    table = folder / "scans.csv"
    pd.DataFrame(rows).to_csv(table, index=False)
    asked: dict[str, Any] = {
        "features": ("dense", "dense.L00", "image", "mask"),
        "resolution": (48, 48),
        "views": (None, "hflip", "rot90"),
    }
    return extract(tiny_request(table, folder / "f", **(asked | options))).path


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return volumes(tmp_path_factory.mktemp("volumes"))


def frames(folder: Path, *, drop: Sequence[int] = ()) -> Path:
    """Six pictures of sizes of their own, two classes that overlap, a file each."""
    rng = np.random.default_rng(5)
    rows = []
    for number in range(6):
        size = 40 + number, 50 - number
        Image.fromarray(rng.integers(0, 255, (*size, 3)).astype(np.uint8)).save(
            folder / f"{number}.png"
        )
        row = {"path": f"{number}.png"}
        for name, part in (("a", np.s_[3:20, 5:30]), ("b", np.s_[10:35, 20:40])):
            mask = np.zeros(size, np.uint8)
            mask[part] = 255
            Image.fromarray(mask).save(folder / f"{number}{name}.png")
            row[f"mask.{name}"] = f"{number}{name}.png"
        rows.append(row)
    for number in drop:
        (folder / f"{number}.png").write_bytes(b"no image")
    table = folder / "frames.csv"
    pd.DataFrame(rows).to_csv(table, index=False)
    return extract(tiny_request(table, folder / "f", features=("dense", "mask"))).path


def test_volumes(store: Path) -> None:
    cases, left_out = stored_cases(store, ["dense", "dense.L00"], {2: "liver", 5: "tumour"})
    assert (len(cases), left_out, cases.overlapping) == (5, {}, False)
    assert cases.channels == (48, 48)
    assert cases.views == (None, "hflip", "rot90")
    assert [cases.n_rows(item) for item in range(5)] == list(SLICES)
    assert cases.size(2) == (11, 13)
    maps = cases.maps(2, 3, 8)
    whole = cases.store.rows("dense.L00", "v2")
    np.testing.assert_array_equal(maps[1], whole[3:8])
    labels = cases.labels(2, 0, 9)
    assert labels.shape == (9, 11, 13)
    assert np.unique(labels).tolist() == [0, 1, 2]
    assert (labels[5] == 1).sum() == 16
    assert (labels[2] == 2).sum() == 0
    assert (labels[1] == 2).sum() == 9
    few = cases.some([4, 1])
    assert few.item_ids == ("v4", "v1")
    np.testing.assert_array_equal(few.maps(0, 0, 2)[0], cases.maps(4, 0, 2)[0])


@pytest.mark.parametrize("view", ["hflip", "rot90"])
def test_maps_and_labels_are_turned_alike(store: Path, view: str) -> None:
    cases, _ = stored_cases(store, ["dense"], {2: "liver", 5: "tumour"})
    expected = cases.store.rows(f"dense.{view}", "v0")[1:4]
    np.testing.assert_array_equal(cases.maps(0, 1, 4, view)[0], expected)
    np.testing.assert_array_equal(
        cases.labels(0, 1, 4, view), turned(view, cases.labels(0, 1, 4), (1, 2))
    )


def test_classes_that_overlap(tmp_path: Path) -> None:
    cases, left_out = stored_cases(frames(tmp_path, drop=[3]), ["dense"], {1: "a", 2: "b"})
    assert cases.overlapping
    assert cases.item_ids == tuple(f"{n}.png" for n in (0, 1, 2, 4, 5))
    assert set(left_out) == {"3.png"}
    assert left_out["3.png"].startswith("no dense:")
    assert cases.size(3) == (44, 46)
    labels = cases.labels(3, 0, 1)
    assert (labels.shape, labels.dtype) == ((2, 1, 44, 46), bool)
    assert labels.sum((1, 2, 3)).tolist() == [17 * 25, 25 * 20]
    with pytest.raises(ProbeError, match="have 2 channels, the task names 3 classes"):
        stored_cases(cases.store.path, ["dense"], {1: "a", 2: "b", 3: "c"})


def test_what_cannot_be(store: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreIncompleteError, match=r"has no 'dense\.L01'.*--features dense\.L01"):
        stored_cases(store, ["dense.L01"], {1: "x"})
    cases, _ = stored_cases(store, ["dense"], {2: "liver"})
    with pytest.raises(ProbeError, match="item 'v0': its mask holds the label 5, which the task"):
        cases.labels(0, 0, 1)
    padded = volumes(tmp_path, resize="pad", views=(None,))
    with pytest.raises(ProbeError, match="--resize pad, so its maps do not cover whole images"):
        stored_cases(padded, ["dense"], {1: "x"})
