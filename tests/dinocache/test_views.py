"""Views of an image, and the slices of a volume that are kept."""

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import torch
from making import contents, make_table, tiny_request

from dinocache.cli import main
from dinocache.errors import ItemError, RequestError
from dinocache.extract import extract
from dinocache.geometry import Geometry, restore
from dinocache.layout import Kind, Pass, check_kinds, parse_kind, pass_of, plain_view
from dinocache.readers import ItemFiles, make_reader
from dinocache.store import FeatureStore
from dinocache.verify import verify
from dinocache.views import VIEWS, flips, parse_views, swaps_axes, turned, turned_back

NUMPYS = {
    None: lambda a: a,
    "hflip": np.fliplr,
    "vflip": np.flipud,
    "rot90": np.rot90,
    "rot180": lambda a: np.rot90(a, 2),
    "rot270": lambda a: np.rot90(a, 3),
    "transpose": lambda a: a.T,
    "antitranspose": lambda a: np.rot90(a, 2).T,
}


@pytest.mark.parametrize("view", [None, *VIEWS])
def test_each_view_is_numpys(view: str | None) -> None:
    grey = np.arange(15).reshape(3, 5)
    np.testing.assert_array_equal(turned(view, grey, (0, 1)), NUMPYS[view](grey))
    maps = np.random.default_rng(1).normal(size=(2, 4, 6, 3))
    found = turned(view, maps, (1, 2))
    for row in range(2):
        for channel in range(3):
            expected = NUMPYS[view](maps[row, :, :, channel])
            np.testing.assert_array_equal(found[row, :, :, channel], expected)
    np.testing.assert_array_equal(turned_back(view, found, (1, 2)), maps)
    tensor = torch.from_numpy(maps)
    if swaps_axes(view):
        tensor = tensor.swapaxes(1, 2)
    np.testing.assert_array_equal(tensor.flip(flips(view, (1, 2))).numpy(), found)
    assert len({turned(v, grey, (0, 1)).tobytes() for v in (None, *VIEWS)}) == 8


def test_names_of_kinds() -> None:
    assert parse_kind("dense.L05.pet.hflip") == Kind("dense.L05", 5, "pet", "hflip")
    assert parse_kind("dense.rot90") == Kind("dense", None, None, "rot90")
    assert parse_kind("dense.hflippy") == Kind("dense", None, "hflippy", None)
    assert parse_kind("dense.hflip.pet") is None
    assert parse_kind("cls.hflip") is None
    assert pass_of("dense.ct.vflip") == Pass("ct", "vflip")
    assert plain_view("dense.L00.ct.vflip") == "dense.L00.ct"
    assert plain_view("dense.L00.ct") == "dense.L00.ct"
    asked = ["dense.vflip", "mask", "dense", "dense.L02.vflip", "cls", "dense.hflip"]
    assert check_kinds(asked) == (
        *("cls", "dense", "dense.hflip", "dense.L02.vflip", "dense.vflip", "mask"),
    )


def test_words() -> None:
    assert parse_views("identity, rot90,rot90") == (None, "rot90")
    assert parse_views("all") == (None, *VIEWS)
    for text in ("mirror", "", "hflip,all"):
        with pytest.raises(RequestError, match="--views"):
            parse_views(text)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_table(tmp_path_factory.mktemp("images"), 19)


@pytest.fixture(scope="module")
def viewed(table: Path, tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    request = tiny_request(
        table,
        tmp_path_factory.mktemp("viewed"),
        features=("cls", "dense"),
        views=(None, *VIEWS),
        resolution=(48, 48),
    )
    return FeatureStore(extract(request).path)


def test_a_view_is_the_features_of_the_turned_image(viewed: FeatureStore, tmp_path: Path) -> None:
    """Images of the encoder's size need no resizing, so a turned file gives the same pixels."""
    from PIL import Image

    rng = np.random.default_rng(3)
    pixels = rng.integers(0, 256, (5, 48, 48)).astype(np.uint8)
    for view in (None, *VIEWS):
        folder = tmp_path / str(view)
        folder.mkdir()
        for number, image in enumerate(pixels):
            Image.fromarray(np.ascontiguousarray(turned(view, image, (0, 1)))).save(
                folder / f"{number}.png"
            )
        pd.DataFrame({"path": [f"{n}.png" for n in range(5)]}).to_csv(folder / "t.csv", index=False)
    asked: dict[str, Any] = {"features": ("dense", "dense.L00"), "resolution": (48, 48)}
    both = tiny_request(tmp_path / "None/t.csv", tmp_path / "f", views=(None, *VIEWS), **asked)
    store = FeatureStore(extract(both).path)
    for view in VIEWS:
        alone = extract(tiny_request(tmp_path / f"{view}/t.csv", tmp_path / f"f{view}", **asked))
        for kind in ("dense", "dense.L00"):
            np.testing.assert_array_equal(
                store.all_rows(f"{kind}.{view}"), FeatureStore(alone.path).all_rows(kind)
            )
    assert viewed.kinds == ("cls", "dense", *(f"dense.{view}" for view in VIEWS))


def test_views_can_come_later(viewed: FeatureStore, table: Path, tmp_path: Path) -> None:
    asked: dict[str, Any] = {"features": ("cls", "dense"), "resolution": (48, 48)}
    extract(tiny_request(table, tmp_path, **asked))
    outcome = extract(tiny_request(table, tmp_path, views=VIEWS, **asked))
    assert outcome.complete
    assert contents(outcome.path) == contents(viewed.path)
    assert verify(outcome.path).exit_code == 0


def test_views_share_a_basis(tmp_path: Path) -> None:
    table = make_table(tmp_path, 33)
    request = tiny_request(
        table,
        tmp_path,
        features=("dense",),
        views=(None, "hflip"),
        resolution=(48, 48),
        quantize="int8",
        pca="9",
    )
    path = extract(request).path
    store = FeatureStore(path)
    assert [p.name for p in (path / "calibration").iterdir()] == ["dense.json"]
    assert store.calibration_checksum("dense.hflip") == store.calibration_checksum("dense")
    assert store.all_rows("dense.hflip").shape == (33, 3, 3, 9)
    assert verify(path).exit_code == 0
    assert main(["pull", str(path), str(tmp_path / "p"), "--features", "dense.hflip"]) == 0
    copy = FeatureStore(next((tmp_path / "p").rglob("store.json")).parent)
    np.testing.assert_array_equal(copy.all_rows("dense.hflip"), store.all_rows("dense.hflip"))
    assert verify(copy.folder).exit_code == 0


def test_an_oblong_image_is_not_turned(tmp_path: Path) -> None:
    table = make_table(tmp_path, 5)
    with pytest.raises(RequestError, match="only an image of equal sides can be turned by 90"):
        extract(tiny_request(table, tmp_path, features=("dense",), views=(None, "rot90")))
    outcome = extract(tiny_request(table, tmp_path, features=("dense",), views=(None, "rot180")))
    assert FeatureStore(outcome.path).all_rows("dense.rot180").shape == (5, 2, 3, 48)


def test_the_plan_counts_views(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = make_table(tmp_path, 5)
    words = ["plan", str(table), "--model", "tiny", "--features", "dense", "--views", "all"]
    assert main([*words, "--resolution", "48", "--no-timing", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    sizes = {kind: n for kind, n in said["n_bytes"].items() if kind.startswith("dense")}
    assert len(sizes) == 8
    assert len(set(sizes.values())) == 1


# Slices that are kept


def volume(
    folder: Path, *, labels: dict[int, int], bright: tuple[int, int] = (0, 11), flip: bool = False
) -> ItemFiles:
    """13 x 9 x 11 voxels (x, y, z) of 1 x 2 x 3 mm; a label in slices, bright from one to one."""
    image, mask = np.zeros((13, 9, 11), np.float32), np.zeros((13, 9, 11), np.uint8)
    image[2:5, 3:6, bright[0] : bright[1]] = 7
    for z, label in labels.items():
        mask[4, 5, z] = label
    affine = np.diag([-1.0, -2.0, 3.0, 1.0])
    if flip:  # the same volume, its slices from the head on
        image, mask = image[:, :, ::-1], mask[:, :, ::-1]
        affine = affine @ np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, 10], [0, 0, 0, 1.0]])
    folder.mkdir(exist_ok=True, parents=True)
    nibabel.Nifti1Image(image, affine).to_filename(folder / "i.nii.gz")
    nibabel.Nifti1Image(mask, affine).to_filename(folder / "m.nii.gz")
    return ItemFiles(path=folder / "i.nii.gz", mask=folder / "m.nii.gz")


@pytest.mark.parametrize("flip", [False, True])
def test_labelled(tmp_path: Path, flip: bool) -> None:
    files = volume(tmp_path, labels={3: 2, 6: 1}, flip=flip)
    with make_reader("volume").open(files) as item:
        whole, mask = item.rows(0, 11), item.mask()
    with make_reader("volume", {"rows": "labelled"}).open(files) as item:
        assert item.n_rows == 4
        for row, expected in zip(item.rows(0, 4), whole[3:7], strict=True):
            np.testing.assert_array_equal(row, expected)
        np.testing.assert_array_equal(item.mask(), mask[:, 3:7])
        assert [labels.max() for labels in item.mask()[0]] == [2, 0, 0, 1]
        geometry: Geometry = item.geometry
    full = restore(np.ones((4, 9, 13), np.uint8), geometry)
    assert full.shape == (13, 9, 11)
    assert np.flatnonzero(full.any(axis=(0, 1))).tolist() == [
        *(range(4, 8) if flip else range(3, 7))
    ]
    assert make_reader("volume", {"rows": "labelled"}).count_rows(files) == 4


def test_foreground(tmp_path: Path) -> None:
    files = volume(tmp_path, labels={3: 2}, bright=(4, 9))
    with make_reader("volume", {"rows": "foreground"}).open(files) as item:
        assert item.n_rows == 5
        assert all(row.max() == 7 for row in item.rows(0, 5))
        assert item.mask().max() == 0
    crop = {"crop": "centre", "crop_size": [5, 5, 7], "rows": "foreground"}
    with make_reader("volume", crop).open(files) as item:
        assert item.n_rows == 5  # of slices 2 to 8 those from 4 on


def test_nothing_is_labelled(tmp_path: Path) -> None:
    files = volume(tmp_path, labels={})
    with make_reader("volume", {"rows": "labelled"}).open(files) as item:
        assert item.n_rows == 1
        assert item.mask().shape == (1, 1, 9, 13)
    with pytest.raises(ItemError, match="rows=labelled needs a label map, in the column mask"):
        make_reader("volume", {"rows": "labelled"}).open(ItemFiles(path=files.path))


def test_a_store_of_what_is_labelled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths: list[dict[str, str]] = []
    expected: list[npt.NDArray[Any]] = []
    for number, slices in enumerate(([2, 5], [7], [0, 10])):
        volume(tmp_path / str(number), labels=dict.fromkeys(slices, 1))
        paths.append({"path": f"{number}/i.nii.gz", "mask": f"{number}/m.nii.gz"})
        expected.append(np.arange(slices[0], slices[-1] + 1))
    pd.DataFrame(paths).to_csv(tmp_path / "t.csv", index=False)
    words = ["extract", str(tmp_path / "t.csv"), "--store", str(tmp_path / "f"), "--model", "tiny"]
    words += ["--resolution", "32", "--weights", "random", "--features", "dense,image,mask"]
    assert main([*words, "--rows", "labelled", "--window", "0:7"]) == 0
    store = FeatureStore(tmp_path / "f/t/tiny/32")
    assert store.header.recipe.reader.options["rows"] == "labelled"
    for item_id, slices in zip(store.items["item_id"], expected, strict=True):
        assert len(store.rows("dense", item_id)) == len(slices)
        mask = store.native("mask", item_id)[0]
        assert mask.shape == (1, len(slices), 9, 13)
        assert mask[0, 0].max() == mask[0, -1].max() == 1
    capsys.readouterr()
    assert main([*words, "--rows", "some"]) == 2
    assert "rows" in capsys.readouterr().err
