"""A store's vectors in the formats of others, read back by their own libraries."""

import csv
import hashlib
import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from making import make_table, tiny_request
from PIL import Image

from dinocache.durable import PARTIAL_SUFFIX
from dinocache.errors import RequestError, StoreIncompleteError, StoreNotFoundError, StoreWriteError
from dinocache.exporting import export, file_names, possible_names
from dinocache.extract import extract, relabel
from dinocache.importing import Declared, import_features
from dinocache.store import FeatureStore

WIDTH = 48


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """Two pictures cut into tiles of 64 px, seen as 32 px at 0.5 um/px; c.png is no picture."""
    folder = tmp_path_factory.mktemp("slides")
    rng = np.random.default_rng(5)
    for name, size in (("a", (200, 130, 3)), ("b", (70, 140, 3))):
        Image.fromarray(rng.integers(0, 255, size).astype(np.uint8)).save(folder / f"{name}.png")
    (folder / "c.png").write_bytes(b"no picture")
    table = folder / "slides.csv"
    pd.DataFrame({"item_id": ["a", "b", "c"], "path": ["a.png", "b.png", "c.png"]}).to_csv(table)
    options = {"tile_px": 32, "tile_mpp": 0.5, "slide_mpp": 0.25, "tissue": "none"}
    request = tiny_request(table, folder / "root", reader="slide", options=options)
    return FeatureStore(extract(request).path)


def exported(store: FeatureStore, out: Path, **asked: object) -> list[str]:
    return [path.relative_to(out).as_posix() for path in export(store.path, out, **asked)]  # type: ignore[arg-type]


def leftovers(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.name.endswith(PARTIAL_SUFFIX)]


# HDF5


def test_hdf5_is_as_trident_has_it(slides: FeatureStore, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert exported(slides, out, format="hdf5") == ["a.h5", "b.h5"]
    with h5py.File(out / "a.h5") as file:
        features, coords = file["features"], file["coords"]
        assert features.dtype == np.float32
        assert features.shape == (6, WIDTH)  # 200 x 130 px hold 3 x 2 tiles of 64
        np.testing.assert_array_equal(features[:], slides.rows("cls", "a").astype(np.float32))
        assert features.chunks == (6, WIDTH)
        assert features.attrs["encoder"] == "tiny"
        assert features.attrs["name"] == "a"
        assert coords.dtype == np.int64
        assert coords[:].tolist() == [[x, y] for y in (0, 64, 128) for x in (0, 64)]
        said = dict(coords.attrs)
        assert json.loads(said.pop("columns")) == [["x", "level-0 px"], ["y", "level-0 px"]]
        # The um/px of level 0 is the slide's, not the recipe's: no patch_size_level0.
        assert said == {"patch_size": 32, "overlap": 0, "target_mpp": 0.5, "name": "a"}
        assert file.attrs["digest"] == slides.header.digest
        assert json.loads(file.attrs["recipe"]) == slides.header.recipe.model_dump(mode="json")
        assert (file.attrs["item_id"], file.attrs["dataset"]) == ("a", "slides")
    assert leftovers(out) == []


def test_tiles_of_native_px_have_a_size_at_level_0(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((40, 70, 3), np.uint8)).save(tmp_path / "a.png")
    pd.DataFrame({"path": ["a.png"]}).to_csv(tmp_path / "t.csv")
    options = {"tile_px": 32, "tile_mpp": "native", "tissue": "none", "overlap_px": 2}
    request = tiny_request(tmp_path / "t.csv", tmp_path, reader="slide", options=options)
    store = FeatureStore(extract(request).path)
    exported(store, tmp_path / "out", format="hdf5", dtype="float16")
    with h5py.File(tmp_path / "out/a.png.h5") as file:
        said = dict(file["coords"].attrs)
        assert (said["patch_size"], said["patch_size_level0"], said["overlap"]) == (32, 32, 2)
        assert not {"target_mpp", "target_magnification", "level0_magnification"} & set(said)
        assert file["features"].dtype == np.float16


def test_several_kinds_stand_beside_the_features(tiny_store: FeatureStore, tmp_path: Path) -> None:
    names = exported(tiny_store, tmp_path, format="hdf5", kinds=["mean", "cls"], items=["0007"])
    assert names == ["0007.h5"]
    with h5py.File(tmp_path / "0007.h5") as file:
        assert sorted(file) == ["cls", "features"]
        np.testing.assert_array_equal(file["features"][:], tiny_store.rows("mean", "0007"))
        np.testing.assert_array_equal(file["cls"][:], tiny_store.rows("cls", "0007"))
        assert file["features"].attrs["kind"] == "mean"


def test_many_rows_make_a_chunk(tmp_path: Path) -> None:
    """And coordinates of other readers keep their columns, as float64."""
    source = tmp_path / "in"
    source.mkdir()
    values = np.random.default_rng(1).normal(size=(9001, 70)).astype(np.float16)
    with h5py.File(source / "v.h5", "w") as file:
        file["features"] = values
        file["coords"] = np.arange(9001)[:, None] + 0.25
        file["coords"].attrs["columns"] = '[["slice","voxel"]]'
    store = import_features(
        source, tmp_path, dataset="d", declared=Declared(model="m", resolution=(32, 48))
    )
    exported(store, tmp_path / "out", format="hdf5")
    with h5py.File(tmp_path / "out/v.h5") as file:
        assert file["features"].chunks == ((1 << 20) // (70 * 4), 70)
        np.testing.assert_array_equal(file["features"][:], values)
        assert file["coords"].dtype == np.float64
        np.testing.assert_array_equal(file["coords"][:, 0], np.arange(9001) + 0.25)
        assert json.loads(file["coords"].attrs["columns"]) == [["slice", "voxel"]]
        assert bool(file.attrs["declared_weights"])


# The whole store in one file


def test_npz_needs_no_pickle(slides: FeatureStore, tmp_path: Path) -> None:
    assert exported(slides, tmp_path, format="npz", rows=True) == [
        "features.npz",
        "rows/a.npz",
        "rows/b.npz",
    ]
    with np.load(tmp_path / "features.npz", allow_pickle=False) as file:
        assert file["item_id"].tolist() == ["a", "b"]
        for kind in ("cls", "mean"):
            np.testing.assert_array_equal(file[kind], slides.item_vectors(kind)[1])
        assert str(file["digest"]) == slides.header.digest
        assert list(json.loads(str(file["failed"]))) == ["c"]
        assert bool(file["random_weights"])
    with np.load(tmp_path / "rows/b.npz", allow_pickle=False) as file:
        np.testing.assert_array_equal(file["cls"], slides.rows("cls", "b"))
        np.testing.assert_array_equal(file["coords"], slides.coords("b")[0])
        assert file["cls"].dtype == np.float32
        assert str(file["item_id"]) == "b"


def test_parquet_has_a_list_a_kind(slides: FeatureStore, tmp_path: Path) -> None:
    assert exported(slides, tmp_path, format="parquet") == ["features.parquet"]
    table = pq.read_table(tmp_path / "features.parquet")
    assert table.schema.field("cls").type.list_size == WIDTH
    frame = table.to_pandas()
    assert frame["item_id"].tolist() == ["a", "b"]
    np.testing.assert_array_equal(np.stack(frame["mean"]), slides.item_vectors("mean")[1])
    said = table.schema.metadata
    assert said[b"digest"].decode() == slides.header.digest
    assert json.loads(said[b"recipe"]) == slides.header.recipe.model_dump(mode="json")
    assert json.loads(said[b"failed"])["c"]


def test_parquet_refuses_a_column_of_that_name(tmp_path: Path) -> None:
    table = make_table(tmp_path, 3)
    pd.read_csv(table, dtype=str).assign(mean=[1, 2, 3]).to_csv(table, index=False)
    store = FeatureStore(extract(tiny_request(table, tmp_path)).path)
    with pytest.raises(RequestError, match="column 'mean'"):
        exported(store, tmp_path / "out", format="parquet")


@pytest.fixture(scope="module")
def described(tiny_store: FeatureStore, tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """The tiny store with columns of every sort, some of them missing."""
    folder = tmp_path_factory.mktemp("described")
    path = Path(shutil.copytree(tiny_store.path, folder / "store"))
    table = tiny_store.items.copy()
    n = len(table)
    table["age"] = [None if i % 4 == 0 else i / 8 for i in range(n)]
    table["count"] = pd.array([None if i % 5 == 0 else i for i in range(n)], dtype="Int64")
    table["smoker"] = pd.array([None if i % 3 == 0 else i % 2 == 0 for i in range(n)], "boolean")
    table["site/ward"] = [None if i % 2 else f"w{i % 6}" for i in range(n)]
    table["boxes"] = [[i, i + 1] for i in range(n)]
    table["remark"] = ["=HYPERLINK(1)", "+1-2", "-5", "@x", "\tx", "plain", "+1.5e3"] * 6
    table.to_parquet(folder / "t.parquet")
    return relabel(path, folder / "t.parquet")


def test_anndata_reads_it(described: FeatureStore, tmp_path: Path) -> None:
    anndata = pytest.importorskip("anndata")
    assert exported(described, tmp_path, format="anndata") == ["features.h5ad"]
    read = anndata.read_h5ad(tmp_path / "features.h5ad")
    ids, vectors = described.item_vectors("cls")
    assert read.obs_names.tolist() == ids
    np.testing.assert_array_equal(read.X, vectors)
    np.testing.assert_array_equal(read.obsm["mean"], described.item_vectors("mean")[1])
    assert list(read.obsm) == ["mean"]
    assert read.var_names[11] == "cls_11"
    ours = described.items
    for column in ("age", "count", "smoker", "bright", "group"):
        wanted, got = ours[column].tolist(), read.obs[column].tolist()
        assert [None if pd.isna(v) else v for v in got] == [
            None if pd.isna(v) else v for v in wanted
        ]
    assert read.obs["site_ward"].tolist()[2] == "w2"
    assert read.obs["site_ward"].isna().tolist() == ours["site/ward"].isna().tolist()
    assert json.loads(read.obs["boxes"].iloc[7]) == [7, 8]
    assert read.uns["digest"] == described.header.digest
    assert json.loads(read.uns["recipe"]) == described.header.recipe.model_dump(mode="json")
    assert (read.uns["weights"], bool(read.uns["random_weights"])) == ("random:0", True)


# CSV


def test_a_spreadsheet_runs_no_cell(described: FeatureStore, tmp_path: Path) -> None:
    assert exported(described, tmp_path, format="csv") == ["items.csv"]
    with (tmp_path / "items.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["remark"] for row in rows[:7]] == [
        "'=HYPERLINK(1)",
        "'+1-2",
        "-5",
        "'@x",
        "'\tx",
        "plain",
        "+1.5e3",
    ]
    assert [row["item_id"] for row in rows] == described.items["item_id"].tolist()
    assert (rows[0]["age"], rows[1]["age"]) == ("", "0.125")
    assert {row["dinocache_weights"] for row in rows} == {"random:0"}
    assert "cls_0" not in rows[0]


def test_csv_may_have_the_vectors(described: FeatureStore, tmp_path: Path) -> None:
    exported(described, tmp_path, format="csv", vectors=True, kinds=["mean"])
    read = pd.read_csv(tmp_path / "items.csv", dtype={"item_id": str})
    _, vectors = described.item_vectors("mean")
    names = [f"mean_{i}" for i in range(WIDTH)]
    np.testing.assert_array_equal(read[names].to_numpy(np.float32), vectors)
    assert set(read["dinocache_digest"]) == {described.header.digest}


def test_the_table_beside_another_format(slides: FeatureStore, tmp_path: Path) -> None:
    names = exported(slides, tmp_path, format="hdf5", csv=True)
    assert names == ["a.h5", "b.h5", "items.csv"]
    assert pd.read_csv(tmp_path / "items.csv")["item_id"].tolist() == ["a", "b"]


@pytest.mark.parametrize("format", ["hdf5", "npz", "parquet", "csv"])
def test_random_weights_are_said_by_each_file(
    slides: FeatureStore, tmp_path: Path, format: str
) -> None:
    (path, *_) = [tmp_path / name for name in exported(slides, tmp_path, format=format)]
    if format == "hdf5":
        with h5py.File(path) as file:
            said = file.attrs["weights"], str(bool(file["features"].attrs["random_weights"]))
    elif format == "npz":
        with np.load(path) as file:
            said = str(file["weights"]), str(bool(file["random_weights"]))
    elif format == "parquet":
        metadata = pq.read_schema(path).metadata
        said = metadata[b"weights"].decode(), metadata[b"random_weights"].decode().title()
    else:
        said = pd.read_csv(path)["dinocache_weights"][0], "True"
    assert said == ("random:0", "True")


# Names of files


def test_names_are_safe_and_never_the_same() -> None:
    ids = [
        "TCGA-AB-1234.01Z",
        "../../etc/passwd",
        "a/b",
        "a_b",
        "a\\b",
        "Case",
        "case",
        "CON",
        "lpt1.svs",
        "..",
        ".hidden",
        "ends.",
        "x" * 121,
        "x" * 300,
        "x" * 299,
        "Straße",
        "STRASSE",
        "with space",
        "nul\0byte",
        "-rf",
        "",
        "a_b~" + hashlib.sha256(b"a/b").hexdigest()[:20],
    ]
    names = file_names(ids)
    assert list(names) == ids
    assert len({name.casefold() for name in names.values()}) == len(ids)
    for item_id, name in names.items():
        assert name in possible_names(item_id)
        assert set(name) <= set(
            "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._+=-~"
        )
        assert name[0] not in ".-"
        assert len(name) <= 120
        assert name.split(".")[0].lower() not in ("con", "lpt1")
        assert not name.endswith(".")
    assert names["TCGA-AB-1234.01Z"] == "TCGA-AB-1234.01Z"
    assert names["a_b"] == "a_b"
    assert names["a/b"] == "a_b~" + hashlib.sha256(b"a/b").hexdigest()[:20]
    assert names["Case"].startswith("Case~")
    assert file_names(["Case"]) == {"Case": "Case"}


def test_hostile_ids_stay_in_the_folder(tmp_path: Path) -> None:
    ids = ["../../out", "b/../../c", "Up", "up"]
    values = np.random.default_rng(0).normal(size=(4, 7)).astype(np.float32)
    np.save(tmp_path / "x.npy", values)
    pd.DataFrame({"item_id": ids}).to_csv(tmp_path / "t.csv", index=False)
    store = import_features(
        tmp_path / "x.npy",
        tmp_path / "root",
        dataset="d",
        declared=Declared(model="m", resolution=(32, 48)),
        table=tmp_path / "t.csv",
    )
    before = set(tmp_path.rglob("*"))
    out = tmp_path / "deep" / "out"
    files = list(export(store.path, out, format="hdf5"))
    assert len(files) == 4
    made = {p for p in set(tmp_path.rglob("*")) - before if p.is_file()}
    assert made == set(files)
    assert {p.parent for p in files} == {out}
    found = {}
    for path in files:
        with h5py.File(path) as file:
            found[file.attrs["item_id"]] = file["features"][0]
    for item_id, row in zip(ids, values, strict=True):
        np.testing.assert_array_equal(found[item_id], row.astype(np.float16).astype(np.float32))


# What cannot be


def test_nothing_is_written_before_it_is_asked(tiny_store: FeatureStore, tmp_path: Path) -> None:
    files = export(tiny_store.path, tmp_path / "out", format="hdf5")
    assert not (tmp_path / "out").exists()
    next(files)
    assert len(list((tmp_path / "out").iterdir())) == 1


@pytest.mark.parametrize(
    ("asked", "error", "said"),
    [
        ({"format": "pickle"}, RequestError, "choose from hdf5"),
        ({"format": "hdf5", "kinds": ["dense"]}, RequestError, "only vectors"),
        ({"format": "hdf5", "kinds": ["embed"]}, StoreIncompleteError, "it has cls, mean"),
        ({"format": "hdf5", "kinds": []}, StoreIncompleteError, "nothing was asked"),
        ({"format": "npz", "items": ["0001", "nobody"]}, RequestError, "no item 'nobody'"),
        ({"format": "npz", "items": "0001"}, RequestError, "lists of names"),
        ({"format": "hdf5", "dtype": "int8"}, RequestError, "choose from float32"),
    ],
)
def test_what_is_not_there_is_refused_at_once(
    tiny_store: FeatureStore,
    tmp_path: Path,
    asked: dict[str, object],
    error: type[Exception],
    said: str,
) -> None:
    with pytest.raises(error, match=said):
        export(tiny_store.path, tmp_path / "out", **asked)  # type: ignore[arg-type]
    with pytest.raises(StoreNotFoundError):
        export(tmp_path, tmp_path / "out", format="npz")


def test_a_store_that_is_not_complete(tiny_store: FeatureStore, tmp_path: Path) -> None:
    path = Path(shutil.copytree(tiny_store.path, tmp_path / "store"))
    (path / "sealed.json").unlink()
    (path / "units/0001-00001.cls.json").unlink()
    with pytest.raises(StoreIncompleteError, match="3 of 4 units of cls"):
        export(path, tmp_path / "out", format="hdf5")
    # The table alone needs no features.
    assert [p.name for p in export(path, tmp_path / "out", format="csv")] == ["items.csv"]


def test_a_file_is_whole_or_absent(
    tiny_store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: object, where: Path) -> None:
        where.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(StoreWriteError, match="the disk is full"):
        exported(tiny_store, tmp_path, format="parquet")
    assert list(tmp_path.iterdir()) == []


def test_without_h5py_it_says_what_to_install(
    tiny_store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(RequestError, match=r"pip install 'dinocache\[export\]'"):
        export(tiny_store.path, tmp_path, format="anndata")
    assert exported(tiny_store, tmp_path, format="npz") == ["features.npz"]
