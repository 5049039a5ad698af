"""Reading stores: what is committed, as it was written, and nothing else."""

import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tensorstore
import torch
import zarr
from making import RowsItem, make_table, read_image, tiny_request

from dinocache import documents
from dinocache.encoders import encoder_spec
from dinocache.errors import (
    RequestError,
    StoreDamagedError,
    StoreIncompleteError,
    StoreNotFoundError,
)
from dinocache.extract import extract
from dinocache.inference import load_encoder
from dinocache.layout import (
    FEATURES,
    SEALED,
    UNITS,
    check_kinds,
    is_row_kind,
    layer_number,
)
from dinocache.readers import ItemFiles, OpenItem
from dinocache.readers.image import ImageReader
from dinocache.store import FeatureStore
from dinocache.transforms import Preprocess
from dinocache.verify import verify

KINDS = ("cls", "mean", "dense", "item_cls", "item_mean")


@pytest.fixture
def copy(tiny_store: FeatureStore, tmp_path: Path) -> Path:
    """A copy of the store that a test may harm."""
    return Path(shutil.copytree(tiny_store.path, tmp_path / "moved"))


def test_features_are_those_of_the_encoder(tiny_store: FeatureStore, tiny_table: Path) -> None:
    """Each stored number is that of the encoder called by hand, rounded to float16."""
    encoder = load_encoder(encoder_spec("tiny"), "random:0")
    prepare = Preprocess(tiny_store.header.recipe.input, torch.device("cpu"))
    ids = ["0000", "0017", "0041"]
    for item_id in ids:
        row = read_image(tiny_table.parent / f"png/{item_id}.png")
        wanted = encoder(prepare(row, [(0, 255)])[None], ("cls", "mean", "dense"))
        for kind, values in wanted.items():
            stored = tiny_store.rows(kind, item_id).astype(np.float32)
            # A batch of one rounds otherwise than a batch of eight; float16 adds half an ulp.
            np.testing.assert_allclose(stored, values.numpy(), rtol=2**-11, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_plain_readers_see_the_same(tiny_store: FeatureStore, kind: str) -> None:
    folder = tiny_store.path / FEATURES
    by_zarr = np.asarray(zarr.open_group(folder, mode="r")[kind][...])
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(folder / kind)}}
    by_tensorstore = tensorstore.open(spec).result().read().result()
    np.testing.assert_array_equal(by_zarr, by_tensorstore)
    ours = (
        tiny_store.item_vectors(kind.removeprefix("item_"))[1]
        if kind.startswith("item_")
        else np.concatenate([tiny_store.rows(kind, i) for i in tiny_store.items["item_id"]])
    )
    np.testing.assert_array_equal(ours, by_zarr)
    assert len(by_zarr) == 42
    assert not np.isnan(by_zarr).any()


def test_the_group_says_what_it_is(tiny_store: FeatureStore) -> None:
    said = zarr.open_group(tiny_store.path / FEATURES, mode="r").attrs["dinocache"]
    assert isinstance(said, dict)
    assert said["complete"] is True
    assert said["weights"] == "random:0"
    assert said["digest"] == tiny_store.header.digest


def test_image_is_the_file(tiny_store: FeatureStore, tiny_table: Path) -> None:
    array, attributes = tiny_store.native("image", "0005")
    row = read_image(tiny_table.parent / "png/0005.png")
    np.testing.assert_array_equal(array[:, 0], row)
    assert array.shape == (1, 1, 45, 50)
    assert attributes["windows"] == [[0, 255]]
    assert (attributes["affine"], attributes["spacing"]) == (None, None)


def test_the_store_travels(copy: Path, tiny_store: FeatureStore, tiny_table: Path) -> None:
    moved = FeatureStore(copy)
    np.testing.assert_array_equal(moved.item_vectors("cls")[1], tiny_store.item_vectors("cls")[1])
    for path in (p for p in copy.rglob("*") if p.is_file()):
        for place in (tiny_table.parent, tiny_store.path):
            assert str(place).encode() not in path.read_bytes(), path


def test_item_vectors_follow_the_table(copy: Path) -> None:
    store = FeatureStore(copy)
    store.items = store.items.iloc[::-1].iloc[:11]
    ids, vectors = store.item_vectors("mean")
    assert ids == [f"{i:04d}" for i in range(41, 30, -1)]
    for item_id, vector in zip(ids, vectors, strict=True):
        np.testing.assert_array_equal(vector, store.rows("mean", item_id)[0].astype(np.float32))


def test_uncommitted_rows_are_not_shown(copy: Path) -> None:
    """The data of a unit is there, its record is not: existence is never completion."""
    (copy / SEALED).unlink()
    (copy / UNITS / "0001-00001.cls.json").unlink()
    (copy / UNITS / "0001-closing.item_cls.json").unlink()
    store = FeatureStore(copy)
    assert not store.is_complete
    assert len(store.rows("cls", "0003")) == 1
    with pytest.raises(StoreIncompleteError, match="has no 'cls' of item '0020'"):
        store.rows("cls", "0020")
    with pytest.raises(StoreIncompleteError, match="2 of 4 units of 'cls' are extracted; run the"):
        store.item_vectors("cls")


@pytest.mark.parametrize("name", ["cls/c.1.0", "dense/c.1.0.0.0", "item_cls/c.0.0"])
@pytest.mark.parametrize("harm", ["missing", "truncated", "flipped"])
def test_a_damaged_file_is_an_error_never_data(copy: Path, name: str, harm: str) -> None:
    path = copy / FEATURES / name
    content = bytearray(path.read_bytes())
    if harm == "missing":
        path.unlink()
    elif harm == "truncated":
        path.write_bytes(content[:-7])
    else:
        content[len(content) // 3] ^= 4
        path.write_bytes(content)
    store = FeatureStore(copy)
    kind = name.split("/")[0]
    read = (
        partial(store.item_vectors, "cls")
        if kind == "item_cls"
        else lambda: [store.rows(kind, i) for i in store.items["item_id"][16:32]]
    )
    with pytest.raises(StoreDamagedError, match=kind):
        read()
    np.testing.assert_array_equal(store.rows("mean", "0020").shape, (1, 48))


def test_a_damaged_record_is_an_error(copy: Path) -> None:
    (copy / SEALED).unlink()
    path = copy / UNITS / "0001-00000.cls.json"
    body = json.loads(path.read_bytes())
    body["body"]["rows"] = [0, 17]
    path.write_text(json.dumps(body))
    with pytest.raises(StoreDamagedError, match=r"units/0001-00000.cls.json is damaged"):
        FeatureStore(copy).rows("cls", "0003")


def test_a_record_cannot_point_outside(copy: Path) -> None:
    (copy / SEALED).unlink()
    path = copy / UNITS / "0001-00000.cls.json"
    body = documents.decode(path.read_bytes(), "record")
    body["objects"] = {"../../elsewhere": {"bytes": 3, "xxh3": "0" * 16}}
    path.write_bytes(documents.encode(body))
    with pytest.raises(StoreDamagedError, match="which is outside the store"):
        FeatureStore(copy).rows("cls", "0003")


def test_a_record_of_another_store_is_refused(copy: Path) -> None:
    (copy / SEALED).unlink()
    path = copy / UNITS / "0001-00000.cls.json"
    body = documents.decode(path.read_bytes(), "record") | {"recipe": "0" * 32}
    path.write_bytes(documents.encode(body))
    with pytest.raises(StoreDamagedError, match="belongs to another unit or store"):
        FeatureStore(copy).rows("cls", "0003")


@pytest.mark.parametrize(
    ("version", "way_out"),
    [
        (2, r"Extract it again\."),
        (6, r"Upgrade dinocache to read it\."),
        ("new", r"Upgrade dinocache to read it\."),
    ],
)
def test_another_format_says_so(copy: Path, version: object, way_out: str) -> None:
    body = documents.decode((copy / "store.json").read_bytes(), "store.json")
    assert body["format"] == 5
    (copy / "store.json").write_bytes(documents.encode(body | {"format": version}))
    with pytest.raises(
        StoreDamagedError,
        match=rf"says format {version!r}; this version of dinocache reads 3 to 5\. {way_out}$",
    ):
        FeatureStore(copy)


def test_what_is_not_there(tiny_store: FeatureStore, tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError, match=r"has no store.json"):
        FeatureStore(tmp_path)
    with pytest.raises(RequestError, match="holds no item 'x'"):
        tiny_store.rows("cls", "x")
    with pytest.raises(StoreIncompleteError, match="has no 'mask' of item '0000'"):
        tiny_store.native("mask", "0000")


def test_large_items_over_several_units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Items of several rows, one over three units, through the engine: rows and means are right."""
    table = make_table(tmp_path, 4)
    rows = {"0000.png": 5, "0001.png": 75, "0002.png": 1, "0003.png": 9}

    def rolled(self: ImageReader, files: ItemFiles, like: object = None) -> OpenItem:
        """Row i of an item is its image rolled by i px."""
        with plain(self, files) as item:
            image = item.rows(0, 1)[0]
        return RowsItem([np.roll(image, i, axis=-1) for i in range(rows[files.path.name])])

    plain = ImageReader.open
    monkeypatch.setattr(ImageReader, "one_row", False)
    monkeypatch.setattr(ImageReader, "count_rows", lambda self, files: rows[files.path.name])
    monkeypatch.setattr(ImageReader, "open", rolled)
    monkeypatch.setattr("dinocache.plan.MAX_ITEM_ROWS_IN_A_UNIT", 32)
    outcome = extract(tiny_request(table, tmp_path / "f", features=("cls", "dense", "image")))
    store = FeatureStore(outcome.path)
    assert outcome.complete
    assert [u.n_rows for u in store.segments[0].units] == [5, 32, 32, 11, 10]
    assert store.header.grid.chunk_rows == 16
    ids, means = store.item_vectors("cls")
    assert ids == ["0000", "0001", "0002", "0003"]
    for item_id, mean in zip(ids, means, strict=True):
        stored = store.rows("cls", item_id)
        assert stored.shape == (rows[f"{item_id}.png"], 48)
        assert len(np.unique(stored[:, 0])) > len(stored) // 3
        np.testing.assert_array_equal(mean, stored.mean(0, dtype=np.float64).astype(np.float32))
    # The item's own grid comes together from its units.
    native, _ = store.native("image", "0001")
    assert native.shape[:2] == (1, 75)
    for index in (0, 31, 32, 74):
        np.testing.assert_array_equal(native[:, index], np.roll(native[:, 0], index, axis=-1))
    assert not verify(store.path).damages
    # Rows between units are absent, not zeros that look like features.
    everything = np.asarray(zarr.open_group(store.path / FEATURES, mode="r")["cls"][...])
    assert np.isnan(everything[5:16]).all()
    assert np.isfinite(everything[16:80]).all()


@pytest.mark.parametrize("step", [97, pytest.param(7, marks=pytest.mark.long)])
@pytest.mark.parametrize("kind", ["cls", "dense", "item_cls", "image"])
def test_every_flipped_bit_of_an_arrays_description_is_an_error(
    copy: Path, kind: str, step: int
) -> None:
    """Never a traceback of zarr's, never NaN or other numbers in the place of features."""
    name = "native.zarr/image/20" if kind == "image" else f"{FEATURES}/{kind}"
    path = copy / name / "zarr.json"
    content = path.read_bytes()

    def read() -> object:
        store = FeatureStore(copy)
        if kind == "image":
            return store.native("image", "0020")[0]
        return store.item_vectors("cls")[1] if kind == "item_cls" else store.rows(kind, "0020")

    expected = read()
    refused = 0
    for bit in range(0, 8 * len(content), step):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            found = read()
        except StoreDamagedError:
            refused += 1
        else:  # only the length may differ, and only where nothing that is read depends on it
            np.testing.assert_array_equal(found, expected)
    assert refused > 0.85 * 8 * len(content) / step


def test_kinds_have_one_order_and_one_name() -> None:
    asked = ["image", "dense", "dense.L10", "dense.L02", "embed", "dense.L02", "mean", "cls"]
    in_order = ("cls", "mean", "embed", "dense.L02", "dense.L10", "dense", "image")
    assert check_kinds(asked) == in_order
    assert [layer_number(kind) for kind in in_order] == [None, None, None, 2, 10, None, None]
    assert [is_row_kind(kind) for kind in in_order] == [True] * 6 + [False]


@pytest.mark.parametrize("kind", ["dense.L5", "dense.L005", "dense.l05", "dense.", "item_cls", ""])
def test_kinds_that_are_none(kind: str) -> None:
    message = (
        rf"^--features: {kind!r}; choose from cls, mean, embed, dense, dense\.L05 and the like, "
        r"dense\.hflip and other views, image, mask$"
    )
    assert not is_row_kind(kind)
    with pytest.raises(RequestError, match=message):
        check_kinds(["cls", kind])


def test_a_vector_that_the_encoder_does_not_give(tmp_path: Path) -> None:
    request = tiny_request(
        make_table(tmp_path, 3), tmp_path / "f", model="resnet50-trunc", features=("dense",)
    )
    store = FeatureStore(extract(request).path)
    with pytest.raises(
        StoreIncompleteError, match=r"no 'cls', and its encoder, resnet50-trunc, gives none \(it gi"
    ):
        store.item_vectors("cls")
    with pytest.raises(StoreIncompleteError, match=r"add it with .*--features mean"):
        store.item_vectors("mean")
