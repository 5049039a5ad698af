"""Masks of classes that overlap: a file a class, a channel each."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from making import tiny_request
from PIL import Image

from dinocache.errors import TableError
from dinocache.extract import extract
from dinocache.items import is_reserved, mask_columns, read_table
from dinocache.store import FeatureStore


def masked(shape: tuple[int, int], box: tuple[int, int, int, int]) -> np.ndarray:
    mask = np.zeros(shape, np.uint8)
    mask[box[0] : box[1], box[2] : box[3]] = 255
    return mask


@pytest.fixture
def table(tmp_path: Path) -> Path:
    rng = np.random.default_rng(5)
    rows = []
    for n, classes in enumerate([("polyp", "be"), ("be",), ()]):
        shape = (30 + n, 41)
        Image.fromarray(rng.integers(0, 255, (*shape, 3), dtype=np.uint8)).save(
            tmp_path / f"{n}.png"
        )
        row: dict[str, object] = {"item_id": f"i{n}", "path": f"{n}.png"}
        for k, name in enumerate(("be", "polyp")):
            if name in classes:
                mask = masked(shape, (2, 9 + n, 3 + k, 20))
                Image.fromarray(mask).save(tmp_path / f"{n}_{name}.tif")
                row[f"mask.{name}"] = f"{n}_{name}.tif"
        rows.append(row)
    pd.DataFrame(rows, columns=["item_id", "path", "mask.be", "mask.polyp"]).to_csv(
        tmp_path / "t.csv", index=False
    )
    return tmp_path / "t.csv"


def test_a_channel_a_class(table: Path, tmp_path: Path) -> None:
    outcome = extract(tiny_request(table, tmp_path / "f", features=("cls", "mask")))
    assert not outcome.failures
    store = FeatureStore(outcome.path)
    both, _ = store.native("mask", "i0")
    assert both.shape == (2, 1, 30, 41)
    np.testing.assert_array_equal(both[0, 0], masked((30, 41), (2, 9, 3, 20)) // 255)
    np.testing.assert_array_equal(both[1, 0], masked((30, 41), (2, 9, 4, 20)) // 255)
    one, _ = store.native("mask", "i1")
    assert one.shape == (2, 1, 31, 41)
    assert (int(one[0].sum()), int(one[1].sum())) == (8 * 17, 0)
    none, _ = store.native("mask", "i2")
    assert (none.shape, int(none.sum())) == ((2, 1, 32, 41), 0)


def test_what_is_wrong_with_one_of_them(table: Path, tmp_path: Path) -> None:
    Image.fromarray(masked((9, 9), (1, 2, 3, 4))).save(tmp_path / "0_polyp.tif")
    (tmp_path / "1_be.tif").write_bytes(b"no picture")
    outcome = extract(tiny_request(table, tmp_path / "f", features=("cls", "mask")))
    reasons = {f.item_id: f.failure.reason for f in outcome.failures}
    assert reasons.keys() == {"i0", "i1"}
    assert "0_polyp.tif: its mask has 9 x 9 px, the image 30 x 41" in reasons["i0"]
    assert "1_be.tif: " in reasons["i1"]


def test_of_volumes(tmp_path: Path) -> None:
    affine = np.diag([-1.0, -1, 2, 1])
    values = np.random.default_rng(2).integers(0, 99, (8, 7, 3)).astype(np.int16)
    nib.save(nib.Nifti1Image(values, affine), tmp_path / "v.nii.gz")
    for k, name in enumerate(("a", "b", "c")):
        labels = np.zeros((8, 7, 3), np.uint8)
        labels[k : k + 2, 1, k] = 3
        nib.save(nib.Nifti1Image(labels, affine), tmp_path / f"{name}.nii.gz")
    row = {"path": "v.nii.gz", **{f"mask.{name}": f"{name}.nii.gz" for name in "abc"}}
    pd.DataFrame([row]).to_csv(tmp_path / "t.csv", index=False)
    outcome = extract(tiny_request(tmp_path / "t.csv", tmp_path / "f", features=("cls", "mask")))
    mask, _ = FeatureStore(outcome.path).native("mask", "v.nii.gz")
    assert mask.shape == (3, 3, 7, 8)
    for k in range(3):
        assert np.argwhere(mask[k]).tolist() == [[k, 1, k], [k, 1, k + 1]]


def test_one_or_several(table: Path, tmp_path: Path) -> None:
    items = read_table(table, tmp_path)
    assert mask_columns(items) == ["mask.be", "mask.polyp"]
    assert is_reserved("mask.be")
    pd.read_csv(table).assign(mask="0_be.tif").to_csv(table, index=False)
    with pytest.raises(TableError, match="has both 'mask' and 'mask"):
        read_table(table, tmp_path)
