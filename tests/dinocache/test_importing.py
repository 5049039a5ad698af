"""Features of others as a store: what is read, what is refused, what is only declared."""

import json
import os
import pickle
import shutil
import zipfile
import zlib
from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import torch
from making import contents, tiny_request

from dinocache.cli import main
from dinocache.encoders import encoder_spec
from dinocache.errors import (
    RecipeMismatchError,
    RequestError,
    StoreIncompleteError,
    TableError,
)
from dinocache.exporting import export
from dinocache.extract import extract
from dinocache.forecast import dry_run
from dinocache.importing import Declared, import_features
from dinocache.progress import QuietProgress
from dinocache.recipe import ReaderRecipe, Recipe, WeightsRecipe, same_features
from dinocache.records import Record
from dinocache.store import FeatureStore
from dinocache.survey import survey
from dinocache.verify import verify
from dinocache.writer import StoreWriter

DIM = 13
SAID = Declared(model="some-encoder", resolution=(224, 192), tile_px=256, mpp=0.5)
ROWS = {"s0": 5, "s1": 43, "s2": 37}
Slide = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]


def slide(n_rows: int, *, dim: int = DIM, seed: int = 0) -> Slide:
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n_rows, dim)).astype(np.float32)
    return features, rng.integers(0, 100_000, (n_rows, 2))


def save_as_trident(path: Path, features: npt.NDArray[np.float32], coords: object) -> None:
    """As `save_h5` of trident/IO.py is called at the end of `extract_patch_features`."""
    attributes: dict[str, dict[str, object]] = {
        "features": {"name": path.stem, "savetodir": "/data/out", "encoder": "uni_v1"},
        "coords": {
            "patch_size": 256,
            "patch_size_level0": 512,
            "level0_magnification": 40,
            "target_magnification": 20,
            "overlap": 0,
            "name": path.stem,
            "savetodir": "/data/coords",
            "level0_width": 100_512,
            "level0_height": 100_512,
        },
    }
    with h5py.File(path, "w") as file:
        for key, value in {"features": features, "coords": np.asarray(coords)}.items():
            data = file.create_dataset(
                key,
                shape=value.shape,
                maxshape=(None, *value.shape[1:]),
                chunks=(1, *value.shape[1:]),
                dtype=value.dtype,
            )
            data[:] = value
            for name, said in attributes[key].items():
                data.attrs[name] = said


def save_as_clam(path: Path, features: npt.NDArray[np.float32], coords: object) -> None:
    """As `save_hdf5` of utils/file_utils.py appends batch by batch, coordinates as int32."""
    for start in range(0, len(features), 20):
        part = {
            "features": features[start : start + 20],
            "coords": np.asarray(coords)[start : start + 20].astype(np.int32),
        }
        with h5py.File(path, "a") as file:
            for key, value in part.items():
                if key not in file:
                    file.create_dataset(
                        key,
                        shape=value.shape,
                        maxshape=(None, *value.shape[1:]),
                        chunks=(32, *value.shape[1:]),
                        dtype=value.dtype,
                    )
                    file[key][:] = value
                else:
                    file[key].resize(len(file[key]) + len(value), axis=0)
                    file[key][-len(value) :] = value


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three slides as TRIDENT writes them."""
    made = tmp_path / "features_uni_v1"
    made.mkdir()
    for seed, (name, n_rows) in enumerate(ROWS.items()):
        save_as_trident(made / f"{name}.h5", *slide(n_rows, seed=seed))
    return made


def imported(source: Path, root: Path, **options: object) -> FeatureStore:
    given: dict[str, object] = {"dataset": "d", "declared": SAID}
    return import_features(source, root, **(given | options))  # type: ignore[arg-type]


def check(store: FeatureStore, name: str, wanted: Slide) -> None:
    np.testing.assert_array_equal(store.rows("cls", name), wanted[0].astype(np.float16))
    np.testing.assert_array_equal(store.coords(name)[0], wanted[1])


# Formats


def test_files_of_trident(folder: Path, tmp_path: Path) -> None:
    store = imported(folder, tmp_path / "root")
    assert store.path == tmp_path / "root/d/some-encoder/224x192"
    assert store.kinds == ("cls", "row_coord")
    for seed, (name, n_rows) in enumerate(ROWS.items()):
        check(store, name, slide(n_rows, seed=seed))
    assert store.coords("s0")[1] == (("x", "level-0 px"), ("y", "level-0 px"))
    ids, vectors = store.item_vectors("cls")
    assert ids == list(ROWS)
    mean = slide(5)[0].astype(np.float16).mean(0, np.float64)
    np.testing.assert_array_equal(vectors[0], mean.astype(np.float32))
    assert store.items["group"].tolist() == list(ROWS)
    assert "encoder=uni_v1, patch_size=256, patch_size_level0=512" in store.notes()["s0"][0]
    sound = verify(store.folder)
    assert (sound.exit_code, sound.leftovers) == (0, [])


def test_a_slide_that_several_units_share(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    save_as_trident(source / "a.h5", *slide(5))
    features, coords = slide(8200, seed=1)
    save_as_trident(source / "large.h5", features, coords)
    features[8195, 2] = np.nan
    save_as_clam(source / "torn.h5", features[4000:], coords[4000:])
    store = imported(source, tmp_path)
    assert len(store.segments[0].units_of(1)) == 3
    features[8195, 2] = slide(8200, seed=1)[0][8195, 2]
    check(store, "large", (features, coords))
    assert [f.item_id for f in store.failures()] == ["torn"]
    assert store.item_vectors("cls")[0] == ["a", "large"]
    list(export(store.path, tmp_path / "out", format="hdf5"))
    check(imported(tmp_path / "out", tmp_path / "again"), "large", (features, coords))
    assert verify(store.folder).exit_code == 0


def test_files_of_clam(tmp_path: Path) -> None:
    source = tmp_path / "h5_files"
    source.mkdir()
    save_as_clam(source / "a.h5", *slide(93))
    store = imported(source, tmp_path / "root")
    check(store, "a", slide(93))
    with h5py.File(source / "a.h5") as file:
        assert file["features"].chunks == (32, DIM)  # not whole: the last one is filled up


def test_out_and_in_again(folder: Path, tmp_path: Path) -> None:
    store = imported(folder, tmp_path / "root")
    for dtype in ("float32", "float16"):
        out = tmp_path / dtype
        list(export(store.path, out, format="hdf5", dtype=dtype))  # type: ignore[arg-type]
        again = imported(out, tmp_path / f"root-{dtype}")
        assert again.header.digest == store.header.digest
        for name in ROWS:
            check(again, name, (store.rows("cls", name), store.coords(name)[0].astype(np.int64)))  # type: ignore[arg-type]
        assert verify(again.folder).exit_code == 0


def test_out_and_in_again_by_npz(folder: Path, tmp_path: Path) -> None:
    store = imported(folder, tmp_path / "root")
    list(export(store.path, tmp_path / "out", format="npz", rows=True, dtype="float16"))
    again = imported(tmp_path / "out/rows", tmp_path / "root-rows")
    for seed, (name, n_rows) in enumerate(ROWS.items()):
        check(again, name, slide(n_rows, seed=seed))
    whole = imported(tmp_path / "out/features.npz", tmp_path / "root-items")
    np.testing.assert_array_equal(
        np.concatenate([whole.rows("cls", name) for name in ROWS]),
        store.item_vectors("cls")[1].astype(np.float16),
    )
    assert whole.kinds == ("cls",)
    assert [verify(s.folder).exit_code for s in (again, whole)] == [0, 0]


@pytest.mark.parametrize(
    "how",
    [
        {"chunks": (7, 5), "compression": "gzip", "shuffle": True},
        {"chunks": (64, DIM), "compression": "gzip", "maxshape": (None, DIM)},
        {"chunks": None},
        {"dtype": ">f8", "chunks": (9, 4)},
        {"dtype": "f2"},
    ],
)
def test_however_hdf5_stores_them(tmp_path: Path, how: dict[str, object]) -> None:
    (tmp_path / "in").mkdir()
    features, coords = slide(61)
    with h5py.File(tmp_path / "in/a.h5", "w") as file:
        file.create_dataset("feats", data=features, **how)
        file.create_dataset("coords", data=coords[None], dtype="f4")
    check(imported(tmp_path / "in", tmp_path), "a", (features, coords))


def test_a_leading_axis_of_one(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    features, coords = slide(61)
    with h5py.File(tmp_path / "in/a.h5", "w") as file:
        file.create_dataset("features", data=features[None], chunks=(1, 17, 6), compression="gzip")
        file["coords"] = coords
    check(imported(tmp_path / "in", tmp_path), "a", (features, coords))


def test_one_vector_a_slide(tmp_path: Path) -> None:
    """As TRIDENT's slide encoders give: coordinates beside it are those of tiles."""
    (tmp_path / "in").mkdir()
    with h5py.File(tmp_path / "in/a.h5", "w") as file:
        file["features"] = slide(1)[0][0]
        file["coords"] = slide(29)[1]
    store = imported(tmp_path / "in", tmp_path, declared=Declared(model="m", resolution=(8, 8)))
    np.testing.assert_array_equal(store.rows("cls", "a"), slide(1)[0].astype(np.float16))
    assert store.kinds == ("cls",)


def test_files_of_torch(tmp_path: Path) -> None:
    source = tmp_path / "pt_files"
    source.mkdir()
    torch.save(torch.from_numpy(slide(41, seed=1)[0]), source / "tensor.pt")
    torch.save(
        {
            "features": torch.from_numpy(slide(42, seed=2)[0]),
            "coords": torch.from_numpy(slide(42, seed=2)[1]),
            "label": 3,
        },
        source / "dict.pt",
    )
    torch.save(torch.from_numpy(slide(43, seed=3)[0]).bfloat16()[None], source / "bfloat.pt")
    old = torch.from_numpy(slide(44, seed=4)[0])
    torch.save(old, source / "old.pt", _use_new_zipfile_serialization=False)
    store = imported(source, tmp_path)
    check(store, "dict", slide(42, seed=2))
    for name, n_rows, seed in (("tensor", 41, 1), ("old", 44, 4)):
        wanted = slide(n_rows, seed=seed)[0].astype(np.float16)
        np.testing.assert_array_equal(store.rows("cls", name), wanted)
    rounded = torch.from_numpy(slide(43, seed=3)[0]).bfloat16().float().numpy().astype(np.float16)
    np.testing.assert_array_equal(store.rows("cls", "bfloat"), rounded)
    # An item without coordinates is no failure, and has none.
    assert store.failures() == []
    with pytest.raises(StoreIncompleteError, match="it has none"):
        store.coords("tensor")
    list(export(store.path, tmp_path / "out", format="hdf5"))
    with h5py.File(tmp_path / "out/tensor.h5") as file:
        assert list(file) == ["features"]
    assert verify(store.folder).exit_code == 0


def test_the_features_may_have_a_name(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    torch.save({"a": torch.ones(3, 7), "b": torch.full((5, 7), 2.0)}, tmp_path / "in/x.pt")
    with pytest.raises(RequestError, match=r"which are its features\? It has a, b"):
        imported(tmp_path / "in", tmp_path)
    assert imported(tmp_path / "in", tmp_path, key="b").rows("cls", "x").shape == (5, 7)
    with pytest.raises(RecipeMismatchError, match=r"reader\.options\.key: b in the store, a"):
        imported(tmp_path / "in", tmp_path, key="a")


def test_one_array_and_a_table(tmp_path: Path) -> None:
    features = slide(6)[0]
    np.save(tmp_path / "x.npy", np.asfortranarray(features))
    table = {
        "item_id": ["007", "b", "c"],
        "group": ["01", "01", "02"],
        "split": ["train", "train", "test"],
        "grade": [3, 1, 2],
        "row": [4, 0, 5],
        "mask": ["/somewhere/else.png"] * 3,
    }
    pd.DataFrame(table).to_csv(tmp_path / "t.tsv", index=False, sep="\t")
    progress = QuietProgress()
    store = imported(
        tmp_path / "x.npy", tmp_path, table=tmp_path / "t.tsv", format="npy", progress=progress
    )
    assert store.items["item_id"].tolist() == ["007", "b", "c"]
    assert store.items["group"].tolist() == ["01", "01", "02"]
    assert store.items["grade"].tolist() == [3, 1, 2]
    assert "mask" not in store.items
    ids, vectors = store.item_vectors("cls")
    assert ids == ["007", "b", "c"]
    np.testing.assert_array_equal(vectors, features[[4, 0, 5]].astype(np.float16))
    assert any("3 rows of x.npy are left out" in note for note in progress.notes)
    assert verify(store.folder).exit_code == 0


def test_one_array_in_the_order_of_a_table(tmp_path: Path) -> None:
    features = slide(4)[0]
    np.save(tmp_path / "x.npy", features)
    pd.DataFrame({"path": ["p/d.png", "c.png", "b.png", "a.png"], "t": [1, 0, 1, 0]}).to_parquet(
        tmp_path / "t.parquet"
    )
    store = imported(tmp_path / "x.npy", tmp_path, table=tmp_path / "t.parquet")
    assert store.items["item_id"].tolist() == ["p/d.png", "c.png", "b.png", "a.png"]
    np.testing.assert_array_equal(store.rows("cls", "b.png")[0], features[2].astype(np.float16))
    assert imported(tmp_path / "x.npy", tmp_path / "bare").items["item_id"].tolist() == [
        "0000",
        "0001",
        "0002",
        "0003",
    ]


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"item_id": ["a", "b", "c"]}, "3 rows, x.npy 4"),
        ({"item_id": ["a", "b"], "row": [0, 4]}, "from 0 to 3"),
        ({"item_id": ["a", "b"], "row": [1, 1]}, "each once"),
        ({"item_id": ["a", "b"], "row": ["x", 1]}, "from 0 to 3"),
        ({"item_id": ["a", "a", "b", "c"]}, "more than one row"),
        ({"item_id": ["a", None, "b", "c"]}, "empty 'item_id'"),
    ],
)
def test_a_table_that_does_not_fit(tmp_path: Path, table: dict[str, object], said: str) -> None:
    np.save(tmp_path / "x.npy", slide(4)[0])
    pd.DataFrame(table).to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(TableError, match=said):
        imported(tmp_path / "x.npy", tmp_path / "root", table=tmp_path / "t.csv")
    assert not (tmp_path / "root").exists()


def test_a_table_of_files(folder: Path, tmp_path: Path) -> None:
    """Rows find their files by path, by item id, or by the stem of the slide's own path."""
    table = {
        "item_id": ["x", "s1", "z", "gone"],
        "path": ["s0.h5", "", "slides/s2.svs", ""],
        "group": ["p1", "p2", "p1", "p3"],
        "tumour": [1, 0, 1, 0],
    }
    pd.DataFrame(table).to_csv(tmp_path / "t.csv", index=False)
    save_as_trident(folder / "unlisted.h5", *slide(3))
    progress = QuietProgress()
    store = imported(folder, tmp_path, table=tmp_path / "t.csv", progress=progress)
    for name, file, seed in (("x", "s0", 0), ("s1", "s1", 1), ("z", "s2", 2)):
        check(store, name, slide(ROWS[file], seed=seed))
    (failure,) = store.failures()
    assert (failure.item_id, failure.failure.reason) == ("gone", "the file is missing")
    assert store.items["tumour"].tolist() == [1, 0, 1, 0]
    assert any("1 files of features_uni_v1 are in no row" in note for note in progress.notes)
    assert verify(store.folder).exit_code == 0


def test_ids_survive_the_names_of_files(tmp_path: Path) -> None:
    ids = ["../up", "Case", "case", "plain"]
    np.save(tmp_path / "x.npy", slide(4)[0])
    pd.DataFrame({"item_id": ids}).to_csv(tmp_path / "t.csv", index=False)
    store = imported(tmp_path / "x.npy", tmp_path / "one", table=tmp_path / "t.csv")
    list(export(store.path, tmp_path / "out", format="hdf5"))
    again = imported(tmp_path / "out", tmp_path / "two")
    assert sorted(again.items["item_id"]) == sorted(ids)
    for item_id in ids:
        np.testing.assert_array_equal(again.rows("cls", item_id), store.rows("cls", item_id))
    by_table = imported(tmp_path / "out", tmp_path / "three", table=tmp_path / "t.csv")
    for item_id in ids:
        np.testing.assert_array_equal(by_table.rows("cls", item_id), store.rows("cls", item_id))
    # A file may say that it is another item only where its name agrees.
    (tmp_path / "out/plain.h5").rename(tmp_path / "out/plain~0123.h5")
    renamed = imported(tmp_path / "out", tmp_path / "four")
    assert "plain~0123" in renamed.items["item_id"].tolist()


# Items that fail


def test_bad_items_never_stop_it_and_never_hide(folder: Path, tmp_path: Path) -> None:
    (folder / "junk.h5").write_bytes(b"no such file")
    cut = (folder / "s2.h5").read_bytes()
    (folder / "cut.h5").write_bytes(cut[: len(cut) * 2 // 3])
    bad = {
        "nan": (np.nan, "NaN or infinite"),
        "inf": (-np.inf, "NaN or infinite"),
        "large": (65520.0, "65520 does not fit float16"),
    }
    for name, (value, _) in bad.items():
        features, coords = slide(24)
        features[17, 3] = value
        save_as_trident(folder / f"{name}.h5", features, coords)
    save_as_trident(folder / "wide.h5", *slide(9, dim=DIM + 1))
    save_as_trident(folder / "short.h5", slide(9)[0], slide(8)[1])
    save_as_trident(folder / "empty.h5", np.empty((0, DIM), np.float32), np.empty((0, 2), int))
    save_as_trident(folder / "lost.h5", slide(3)[0], np.array([[1, 2], [3, np.nan], [5, 6]]))
    with h5py.File(folder / "whole.h5", "w") as file:
        file["features"] = np.arange(26).reshape(2, DIM)
    save_as_trident(folder / "edge.h5", np.full((3, DIM), 65504, np.float32), slide(3)[1])
    store = imported(folder, tmp_path)
    reasons = {f.item_id: f.failure.reason for f in store.failures()}
    assert set(reasons) == {
        *bad, "junk", "cut", "wide", "short", "empty", "lost", "whole",
    }  # fmt: skip
    for name, (_, said) in bad.items():
        assert said in reasons[name]
    assert "14 wide, those of the store 13" in reasons["wide"]
    assert "coordinates are (8, 2), its features 9 rows" in reasons["short"]
    assert "no rows" in reasons["empty"]
    assert "coordinates are NaN" in reasons["lost"]
    assert "int64; floating-point" in reasons["whole"]
    for seed, (name, n_rows) in enumerate(ROWS.items()):
        check(store, name, slide(n_rows, seed=seed))
    assert store.rows("cls", "edge").max() == 65504
    assert store.item_vectors("cls")[0] == ["edge", *ROWS]
    assert store.failures()[0].failure.path.endswith(".h5")
    assert verify(store.folder).exit_code == 0


def test_failed_items_are_tried_again(folder: Path, tmp_path: Path) -> None:
    good = (folder / "s2.h5").read_bytes()
    (folder / "s2.h5").write_bytes(good[:900])
    assert len(imported(folder, tmp_path).failures()) == 1
    (folder / "s2.h5").write_bytes(good)
    assert len(imported(folder, tmp_path).failures()) == 1
    store = imported(folder, tmp_path, retry_failed=True)
    assert store.failures() == []
    check(store, "s2", slide(ROWS["s2"], seed=2))
    assert verify(store.folder).exit_code == 0


def test_a_file_that_grew_since_it_was_planned(folder: Path, tmp_path: Path) -> None:
    stop_after(2, folder, tmp_path)
    save_as_trident(folder / "s2.h5", *slide(38))
    (failure,) = imported(folder, tmp_path).failures()
    assert failure.failure.reason == "it has 38 rows; 37 were planned when it was imported"


# Interrupted


class Killed(BaseException):
    """As Ctrl-C."""


def stop_after(n_commits: int, source: Path, root: Path) -> None:
    """Import, and be killed before a commit."""
    before = StoreWriter.commit

    def commit(self: StoreWriter, record: Record) -> None:
        nonlocal n_commits
        if n_commits == 0:
            raise Killed
        n_commits -= 1
        before(self, record)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StoreWriter, "commit", commit)
        with pytest.raises(Killed):
            imported(source, root, unit_rows=16)


@pytest.mark.parametrize("n_commits", [0, 1, 2, 5, 6])
def test_it_goes_on_where_it_was_stopped(folder: Path, tmp_path: Path, n_commits: int) -> None:
    whole = imported(folder, tmp_path / "whole", unit_rows=16)
    stop_after(n_commits, folder, tmp_path / "cut")
    done: list[str] = []
    before = StoreWriter.commit

    def commit(self: StoreWriter, record: Record) -> None:
        done.append(f"{record.unit}.{record.kind}")
        before(self, record)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StoreWriter, "commit", commit)
        store = imported(folder, tmp_path / "cut", unit_rows=16)
    assert contents(store.path) == contents(whole.path)
    assert len(done) == len(set(done)) == len(whole.work()) - n_commits
    # And once more does nothing.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StoreWriter, "commit", None)
        assert imported(folder, tmp_path / "cut").is_complete


def test_another_declaration_is_another_recipe(folder: Path, tmp_path: Path) -> None:
    imported(folder, tmp_path)
    other = Declared(model="some-encoder", resolution=(224, 192), tile_px=256, mpp=0.25)
    with pytest.raises(
        RecipeMismatchError, match=r"declared\.mpp: 0\.5 in the store, 0\.25 declared now"
    ):
        imported(folder, tmp_path, declared=other)
    assert imported(folder, tmp_path, declared=other, variant="fine").path.name == "224x192-fine"


def test_other_items_are_refused(folder: Path, tmp_path: Path) -> None:
    imported(folder, tmp_path)
    save_as_trident(folder / "s3.h5", *slide(3))
    with pytest.raises(RecipeMismatchError, match="holds 3 items; 4 are given now, of which 3"):
        imported(folder, tmp_path)
    (folder / "s3.h5").unlink()
    pd.DataFrame({"item_id": list(ROWS), "t": [1, 2, 3]}).to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(RecipeMismatchError, match=r"dinocache relabel .* as s0\.h5"):
        imported(folder, tmp_path, table=tmp_path / "t.csv")


def test_an_extracted_store_is_not_gone_on_with(tiny_store: FeatureStore, tmp_path: Path) -> None:
    shutil.copytree(tiny_store.path, tmp_path / "images/tiny/32x48")
    np.save(tmp_path / "x.npy", slide(3, dim=48)[0])
    said = Declared(model="tiny", resolution=(32, 48))
    with pytest.raises(RecipeMismatchError, match=r"encoder\.weights\.sha256"):
        imported(tmp_path / "x.npy", tmp_path, dataset="images", declared=said)


def shown(capsys: pytest.CaptureFixture[str], store: FeatureStore) -> dict[str, str]:
    """What `dinocache info` prints, by the name of each line."""
    assert main(["info", str(store.path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    return {name: text for name, _, text in (line.partition("  ") for line in lines)}


def test_what_info_says(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = imported(folder, tmp_path)
    told = {name: text.strip() for name, text in shown(capsys, store).items()}
    assert told["encoder"] == "some-encoder, 13 wide, as declared"
    assert told["weights"] == "some-encoder, as declared"
    assert told["input"].startswith("224 x 192 px, as declared")
    assert told["tiles"] == "256 px at 0.5 um/px, as declared"
    assert told["imported"] == "cls of features_uni_v1 (hdf5)"
    assert told["complete"] == "yes"
    assert "reader" not in told
    (store.path / "sealed.json").unlink()
    (store.path / "units/0001-closing.item_cls.json").unlink()
    assert "`dinocache import`" in shown(capsys, FeatureStore(store.path))["complete"]


def test_what_info_says_where_less_was_declared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "x.npz", ours=np.ones((3, 512), np.float32), b=np.ones((3, 7), np.float32))
    said = Declared(model="conch", resolution=(448, 448), kind="embed", weights="random:0")
    store = imported(tmp_path / "x.npz", tmp_path, declared=said, key="ours")
    told = {name: text.strip() for name, text in shown(capsys, store).items()}
    assert told["encoder"] == "conch, 512 wide, as declared"
    assert told["weights"] == "random:0, as declared"
    assert told["imported"] == "embed of x.npz (npz, there 'ours')"
    assert "tiles" not in told
    (found,) = survey(tmp_path)
    assert (found.weights, found.weights_sha256) == ("declared:random:0", "")


# Beside an extraction


@pytest.mark.parametrize(
    "options", [{}, {"append": True}, {"retry_failed": True}, {"part": (1, 2)}, {"reader": "image"}]
)
def test_nothing_is_extracted_into_it(
    tiny_table: Path, tmp_path: Path, options: dict[str, object]
) -> None:
    """The same items, model and resolution, in the place where the extraction would go."""
    values = np.random.default_rng(0).normal(size=(42, 48)).astype(np.float32)
    np.save(tmp_path / "x.npy", values)
    said = Declared(model="tiny", resolution=(32, 48))
    there = imported(
        tmp_path / "x.npy", tmp_path, dataset="images", declared=said, table=tiny_table
    )
    before = contents(there.path)
    asked = tiny_request(tiny_table, tmp_path, **options)
    for command in (extract, dry_run):
        with pytest.raises(RequestError) as caught:
            command(asked)
        assert "tiny/32x48 holds imported features" in str(caught.value)
        assert "`dinocache import`, or give this a folder of its own with --variant NAME" in str(
            caught.value
        )
        assert "\n" not in str(caught.value)
    assert contents(there.path) == before


def test_an_extraction_beside_it(tiny_table: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((42, 48), np.float32))
    said = Declared(model="tiny", resolution=(32, 48))
    imported(tmp_path / "x.npy", tmp_path, dataset="images", declared=said, table=tiny_table)
    made = extract(tiny_request(tiny_table, tmp_path, features=("cls",), variant="ours"))
    assert made.complete
    assert made.path == tmp_path / "images/tiny/32x48-ours"


# What is declared


def test_the_recipe_says_that_it_is_declared(folder: Path, tmp_path: Path) -> None:
    recipe = imported(folder, tmp_path).header.recipe
    weights = recipe.encoder.weights
    assert weights == WeightsRecipe(name="declared:some-encoder", sha256="declared:some-encoder")
    assert (weights.is_declared, weights.is_random) == (True, False)
    encoder = recipe.encoder
    assert (encoder.dim, encoder.vectors, encoder.embed_dim) == (DIM, ("cls",), None)
    assert (encoder.depth, encoder.patch_px) == (1, 224)
    assert recipe.reader.name == "imported"
    assert recipe.reader.options == {
        "format": "hdf5",
        "key": None,
        "declared": {
            "model": "some-encoder",
            "resolution": [224, 192],
            "kind": "cls",
            "tile_px": 256,
            "mpp": 0.5,
        },
    }


def test_a_known_encoder_must_be_as_wide_as_it_is(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", slide(3)[0])
    said = Declared(model="uni", resolution=(224, 224))
    with pytest.raises(RequestError, match="are 13 wide; 1024 is that of uni"):
        imported(tmp_path / "x.npy", tmp_path / "root", declared=said)
    assert not (tmp_path / "root").exists()
    np.save(tmp_path / "x.npy", slide(3, dim=1024)[0])
    encoder = imported(tmp_path / "x.npy", tmp_path / "root", declared=said).header.recipe.encoder
    spec = encoder_spec("uni")
    assert (encoder.dim, encoder.depth, encoder.patch_px) == (1024, spec.depth, spec.patch_px)
    np.save(tmp_path / "y.npy", slide(3, dim=512)[0])
    embed = Declared(model="conch", resolution=(448, 448), kind="embed")
    store = imported(tmp_path / "y.npy", tmp_path / "root", declared=embed)
    assert store.item_vectors("embed")[1].shape == (3, 512)
    assert verify(store.folder).exit_code == 0


@pytest.mark.parametrize(
    ("declared", "said"),
    [
        ({"model": "resnet50", "resolution": (224, 224)}, "gives no 'cls'; it gives mean"),
        ({"model": "uni", "resolution": (225, 224)}, "multiples of 16"),
        ({"model": "m", "resolution": (0, 8)}, "must be from 1"),
        ({"model": "m", "resolution": (8, 1 << 17)}, "must be from 1 to 65536"),
        ({"model": "m", "resolution": (8, 8), "tile_px": -1}, "must be from 1"),
        ({"model": "m", "resolution": (8, 8), "mpp": 0.0}, "must be above 0"),
        ({"model": "m", "resolution": (8, 8), "kind": "dense"}, "choose from cls"),
        ({"model": "", "resolution": (8, 8)}, "1 to 200"),
        ({"model": "a\nb", "resolution": (8, 8)}, "printable"),
        ({"model": "m", "resolution": (8, 8), "dim": 12}, "are 13 wide; 12 is declared"),
        ({"model": "tiny", "resolution": (32, 48), "dim": 12}, "dim 12 was declared"),
    ],
)
def test_declarations_that_cannot_be(
    tmp_path: Path, declared: dict[str, object], said: str
) -> None:
    np.save(tmp_path / "x.npy", slide(3)[0])
    with pytest.raises(RequestError, match=said):
        imported(tmp_path / "x.npy", tmp_path / "root", declared=Declared(**declared))  # type: ignore[arg-type]
    assert not (tmp_path / "root").exists()


def test_random_weights_stay_random(tiny_store: FeatureStore, tmp_path: Path) -> None:
    list(export(tiny_store.path, tmp_path / "out", format="hdf5"))
    said = Declared(model="tiny", resolution=(32, 48))
    with pytest.raises(RequestError, match=r"0000\.h5 says that its weights are random:0"):
        imported(tmp_path / "out", tmp_path / "root", declared=said)
    said = Declared(model="tiny", resolution=(32, 48), weights="random:0")
    store = imported(tmp_path / "out", tmp_path / "root", declared=said)
    weights = store.header.recipe.encoder.weights
    assert (weights.name, weights.is_random, weights.is_declared) == (
        "declared:random:0",
        True,
        True,
    )
    for item_id in store.items["item_id"].tolist():
        np.testing.assert_array_equal(store.rows("cls", item_id), tiny_store.rows("cls", item_id))
    list(export(store.path, tmp_path / "again", format="npz", rows=True))
    with pytest.raises(RequestError, match="random:0"):
        imported(
            tmp_path / "again/rows",
            tmp_path / "other",
            declared=Declared(model="tiny", resolution=(32, 48)),
        )


def test_a_warning_where_the_files_say_another_tile(folder: Path, tmp_path: Path) -> None:
    progress = QuietProgress()
    said = Declared(model="m", resolution=(224, 224), tile_px=224)
    imported(folder, tmp_path, declared=said, progress=progress)
    assert any("3 files say patch_size 256, declared is tile_px 224" in n for n in progress.notes)


# Comparing


def declared_recipe(recipe: Recipe, **options: object) -> Recipe:
    """What an import of that recipe's features would have."""
    encoder = recipe.encoder.model_copy(update={"weights": WeightsRecipe.declared("x")})
    reader = ReaderRecipe(name="imported", options={"format": "hdf5", "declared": options})
    return recipe.model_copy(update={"encoder": encoder, "reader": reader})


def test_extracted_recipes_must_be_the_same(tiny_store: FeatureStore) -> None:
    recipe = tiny_store.header.recipe
    same_features(recipe, recipe, trust=False)
    other = recipe.model_copy(update={"precision": "bf16"})
    for trust in (False, True):
        with pytest.raises(RecipeMismatchError, match="precision is 'fp32' in one and 'bf16'"):
            same_features(recipe, other, trust=trust)


def test_what_is_declared_must_be_trusted_and_fit(tiny_store: FeatureStore) -> None:
    slides = tiny_store.header.recipe.model_copy(
        update={
            "reader": ReaderRecipe(
                name="slide", options={"tile_px": 256, "tile_mpp": 0.5, "overlap_px": 0}
            )
        }
    )
    said = declared_recipe(slides, tile_px=256, mpp=0.499)
    assert said.digest != slides.digest
    for pair in ((slides, said), (said, slides), (said, said)):
        with pytest.raises(RecipeMismatchError, match="--trust"):
            same_features(*pair, trust=False)
        same_features(*pair, trust=True)
    same_features(slides, declared_recipe(slides), trust=True)  # says nothing of tiles
    native = slides.model_copy(
        update={
            "reader": ReaderRecipe(name="slide", options={"tile_px": 256, "tile_mpp": "native"})
        }
    )
    same_features(native, said, trust=True)
    for options, what in (
        ({"tile_px": 256, "mpp": 0.25}, "um/px of a tile is 0.5 in one and 0.25"),
        ({"tile_px": 224}, "side of a tile, px is 256 in one and 224"),
    ):
        with pytest.raises(RecipeMismatchError, match=what):
            same_features(slides, declared_recipe(slides, **options), trust=True)
    for part, what in (
        ({"name": "uni"}, "the encoder is tiny in one and uni"),
        ({"dim": 49}, "the width of cls is 48 in one and 49"),
        ({"vectors": ("embed",)}, "the kind of vector is cls or mean in one and embed"),
    ):
        encoder = said.encoder.model_copy(update=part)
        other = said.model_copy(update={"encoder": encoder})
        with pytest.raises(RecipeMismatchError, match=what):
            same_features(slides, other, trust=True)
    given = said.input.model_copy(update={"resolution": (32, 64)})
    with pytest.raises(RecipeMismatchError, match="the resolution is 32x48 in one and 32x64"):
        same_features(slides, said.model_copy(update={"input": given}), trust=True)


# Hostile files


class Payload:
    """Pickled, it makes a folder where it is loaded."""

    def __init__(self, target: Path) -> None:
        self.target = str(target)

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self.target,)


def test_no_pickle_is_run(tmp_path: Path) -> None:
    owned, source = tmp_path / "owned", tmp_path / "in"
    source.mkdir()
    torch.save({"features": torch.ones(3, DIM), "x": Payload(owned)}, source / "zip.pt")
    (source / "raw.pt").write_bytes(pickle.dumps(Payload(owned)))
    torch.save(torch.ones(3, DIM), source / "good.pt")
    store = imported(source, tmp_path)
    reasons = {f.item_id: f.failure.reason for f in store.failures()}
    assert set(reasons) == {"zip", "raw"}
    assert "pickle of Python objects" in reasons["zip"]
    array = np.array([[Payload(owned)] * 3] * 2, object)
    np.save(tmp_path / "x.npy", array)
    np.savez(tmp_path / "x.npz", features=array)
    np.savez(tmp_path / "y.npz", features=np.ones((2, 3)), item_id=array[0, :2])
    (tmp_path / "z.npy").write_bytes(pickle.dumps(Payload(owned)))
    for name, said in (
        ("x.npy", "Python objects|object"),
        ("z.npy", "cannot be read"),
        ("x.npz", "which are its features"),
        ("y.npz", "Python objects"),
    ):
        with pytest.raises(RequestError, match=said):
            imported(tmp_path / name, tmp_path / "root")
    assert not owned.exists()


def test_the_payload_would_work(tmp_path: Path) -> None:
    """So that the test above can fail."""
    pickle.loads(pickle.dumps(Payload(tmp_path / "owned")))
    assert (tmp_path / "owned").is_dir()


def test_hdf5_that_claims_too_much_or_leads_elsewhere(tmp_path: Path) -> None:
    source, secret = tmp_path / "in", tmp_path / "secret.h5"
    source.mkdir()
    save_as_trident(secret, *slide(7))
    save_as_trident(source / "good.h5", *slide(7))
    with h5py.File(source / "huge.h5", "w") as file:
        file.create_dataset("features", (1 << 30, DIM), "f4", chunks=(32, DIM))
    with h5py.File(source / "unwritten.h5", "w") as file:
        file.create_dataset("features", (1 << 20, DIM), "f4")
    with h5py.File(source / "bomb.h5", "w") as file:
        file.create_dataset("features", (2000, 5000), "f4", chunks=(2000, 5000), compression="gzip")
        file["features"].id.write_direct_chunk((0, 0), b"x\x9c" + b"\0" * 99)
    with h5py.File(source / "external.h5", "w") as file:
        file["features"] = h5py.ExternalLink(str(secret), "features")
    with h5py.File(source / "soft.h5", "w") as file:
        file["real"] = slide(7)[0]
        file["features"] = h5py.SoftLink("/real")
    with h5py.File(source / "stored.h5", "w") as file:
        raw = tmp_path / "raw.bin"
        raw.write_bytes(slide(7)[0].tobytes())
        file.create_dataset("features", (7, DIM), "f4", external=[(str(raw), 0, 7 * DIM * 4)])
    with h5py.File(source / "virtual.h5", "w") as file:
        layout = h5py.VirtualLayout((7, DIM), "f4")
        layout[:] = h5py.VirtualSource(str(secret), "features", (7, DIM))
        file.create_virtual_dataset("features", layout)
    with h5py.File(source / "filter.h5", "w") as file:
        file.create_dataset("features", data=slide(7)[0], compression="lzf")
    with h5py.File(source / "group.h5", "w") as file:
        file.create_group("features")
    with h5py.File(source / "text.h5", "w") as file:
        file["features"] = ["a", "b"]
    (source / "link.h5").symlink_to(secret)
    store = imported(source, tmp_path)
    check(store, "good", slide(7))
    reasons = {f.item_id: f.failure.reason for f in store.failures()}
    expected = {
        "huge": "33554432 chunks of 1664 bytes, 0 were written",
        "unwritten": "claims 54525952 bytes, 0 are stored",
        "bomb": "cannot hold 40000000",
        "external": "is a link",
        "soft": "is a link",
        "stored": "in another file",
        "virtual": "in another file",
        "filter": "filter 32000",
        "group": "no data set",
        "text": "numbers were expected",
        "link": "leads out of its folder",
    }
    assert set(reasons) == set(expected)
    for name, said in expected.items():
        assert said in reasons[name], (name, reasons[name])
    assert verify(store.folder).exit_code == 0


def test_a_chunk_that_unpacks_to_less(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    save_as_trident(tmp_path / "in/good.h5", *slide(7))
    with h5py.File(tmp_path / "in/bad.h5", "w") as file:
        file.create_dataset("features", (6, DIM), "f4", chunks=(6, DIM), compression="gzip")
        file["features"].id.write_direct_chunk((0, 0), zlib.compress(b"\1" * 311))
    (failure,) = imported(tmp_path / "in", tmp_path).failures()
    assert failure.failure.reason == "a chunk of 311 bytes, not 312"


def test_torch_files_that_claim_too_much(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    torch.save(torch.ones(3, DIM), source / "good.pt")
    torch.save(torch.zeros(1, DIM).expand(1 << 40, DIM), source / "wide.pt")
    torch.save(torch.ones(3, DIM, device="meta"), source / "meta.pt")
    torch.save(torch.eye(DIM).to_sparse(), source / "sparse.pt")
    torch.save(torch.zeros(1 << 12, 128), tmp_path / "zeros.pt")
    with (
        zipfile.ZipFile(tmp_path / "zeros.pt") as loose,
        zipfile.ZipFile(source / "packed.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for info in loose.infolist():
            packed.writestr(info.filename, loose.read(info))
    store = imported(source, tmp_path)
    reasons = {f.item_id: f.failure.reason for f in store.failures()}
    assert set(reasons) == {"wide", "meta", "sparse", "packed"}
    assert "claims (1099511627776, 13) features in a file of" in reasons["wide"]
    assert "no plain tensor" in reasons["meta"]
    assert "claims to hold more" in reasons["packed"]


def npy(shape: tuple[int, ...], data: bytes) -> bytes:
    header = repr({"descr": "<f4", "fortran_order": False, "shape": shape}).encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header + data


def test_numpy_files_that_claim_too_much(tmp_path: Path) -> None:
    (tmp_path / "x.npy").write_bytes(npy((1 << 40, DIM), b"\0" * 520))
    with pytest.raises(RequestError, match="cannot be read"):
        imported(tmp_path / "x.npy", tmp_path / "root")
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(tmp_path / "x.npz", "w", method) as file:
            file.writestr("features.npy", npy((1 << 40, DIM), b"\0" * 520))
        with pytest.raises(RequestError, match="claims 57174604644352 bytes"):
            imported(tmp_path / "x.npz", tmp_path / "root")
    (tmp_path / "y.npy").write_bytes(npy((10, DIM), b"\0" * 520))
    assert len(imported(tmp_path / "y.npy", tmp_path / "root").items) == 10


def test_a_table_leads_to_no_other_folder(folder: Path, tmp_path: Path) -> None:
    save_as_trident(tmp_path / "other.h5", *slide(3))
    pd.DataFrame({"item_id": ["a"], "path": ["../other.h5"]}).to_csv(tmp_path / "t.csv")
    with pytest.raises(TableError, match="outside the data folder"):
        imported(folder, tmp_path / "root", table=tmp_path / "t.csv")


# What is no source


def test_sources_that_are_none(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "clam/h5_files").mkdir(parents=True)
    for source, said in (
        (tmp_path / "nothing", "there is no file or folder"),
        (tmp_path / "clam", "did you mean its folder h5_files"),
        (folder / "s0.h5", "a source is a folder"),
    ):
        with pytest.raises(RequestError, match=said):
            imported(source, tmp_path / "root")
    torch.save(torch.ones(3, DIM), folder / "t.pt")
    with pytest.raises(RequestError, match="files of hdf5, pt; choose with --format"):
        imported(folder, tmp_path / "root")
    assert imported(folder, tmp_path / "root", format="pt").items["item_id"].tolist() == ["t"]
    (folder / "s0.hdf5").write_bytes(b"")
    with pytest.raises(RequestError, match=r"s0\.h5 and s0\.hdf5 are one item"):
        imported(folder, tmp_path / "root", format="hdf5")
    (tmp_path / "junk").mkdir()
    (tmp_path / "junk/a.h5").write_bytes(b"junk")
    with pytest.raises(RequestError, match="none of the 1 items of junk can be used"):
        imported(tmp_path / "junk", tmp_path / "none")
    assert not (tmp_path / "none").exists()
    with pytest.raises(RequestError, match="--dataset"):
        imported(tmp_path / "junk", tmp_path / "none", dataset="../up")


def test_columns_are_read_as_they_are_written(tmp_path: Path) -> None:
    """An export of a volume comes back with its own coordinates; a third column is no pixel."""
    (tmp_path / "in").mkdir()
    with h5py.File(tmp_path / "in/a.h5", "w") as file:
        file["features"] = slide(4)[0]
        file["coords"] = np.arange(4)[:, None] * 0.5
        file["coords"].attrs["columns"] = json.dumps([["time", "s"]])
    with h5py.File(tmp_path / "in/b.h5", "w") as file:
        file["features"] = slide(4)[0]
        file["coords"] = np.zeros((4, 3))
    with h5py.File(tmp_path / "in/c.h5", "w") as file:
        file["features"] = slide(4)[0]
    store = imported(tmp_path / "in", tmp_path)
    coords, columns = store.coords("a")
    assert columns == (("time", "s"),)
    assert coords[:, 0].tolist() == [0, 0.5, 1, 1.5]
    assert [f.item_id for f in store.failures()] == ["b"]
    assert store.rows("cls", "c").shape == (4, DIM)
