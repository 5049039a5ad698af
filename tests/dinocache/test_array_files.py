"""Files of arrays: byte for byte those of zarr, and none where nothing is."""

import shutil
import tracemalloc
from pathlib import Path
from typing import Any, Literal, get_args

import google_crc32c
import numpy as np
import numpy.typing as npt
import pytest
import tensorstore
import xxhash
import zarr

from dinocache.array_files import file_content
from dinocache.layout import ArrayLayout, array_document
from dinocache.records import StoredObject
from dinocache.store import FeatureStore
from dinocache.writer import StoreWriter

Codec = Literal["none", "zstd", "blosc"]
Dtype = Literal["int8", "float16", "float32", "float64"]

CODECS, DTYPES = get_args(Codec), get_args(Dtype)
N_ROWS = 31
ABSENT_ROWS = [8, 10, 15, *range(16, 24), 27]
"""The first and the last of a file, all of another, one of a file that ends with the array."""


def layout_of(
    dtype: Dtype,
    codec: Codec,
    *,
    sharded: bool,
    tail: tuple[int, ...] | None = None,
) -> ArrayLayout:
    return ArrayLayout(
        kind="dense" if sharded else "cls",
        axis="row",
        tail=tail or ((2, 3, 5) if sharded else (6,)),
        dtype=dtype,
        file_rows=8,
        sharded=sharded,
        codec=codec,
    )


def values_of(layout: ArrayLayout, n_rows: int = N_ROWS) -> npt.NDArray[Any]:
    """Draw rows, of which one is all zeros and one begins with what stands where nothing is."""
    rng = np.random.default_rng(7)
    values = (20 * rng.normal(size=(n_rows, *layout.tail))).round().astype(layout.dtype)
    values[3] = 0
    values[5].reshape(-1)[:2] = layout.absent
    return values


def write_by_zarr(folder: Path, layout: ArrayLayout, values: npt.NDArray[Any]) -> None:
    folder.mkdir()
    (folder / "zarr.json").write_bytes(array_document(layout, len(values)))
    zarr.open_array(folder, mode="r+")[...] = values


def contents(layout: ArrayLayout, values: npt.NDArray[Any]) -> dict[str, bytes]:
    """Make all files of an array: name -> content."""
    found = {}
    for start in range(0, len(values), layout.file_rows):
        name = layout.key(start // layout.file_rows).rpartition("/")[2]
        content = file_content(layout, values[start : start + layout.file_rows])
        if content is not None:
            found[name] = bytes(content)
    return found


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sharded", [False, True])
def test_files_are_those_of_zarr(tmp_path: Path, codec: Codec, dtype: Dtype, sharded: bool) -> None:
    layout = layout_of(dtype, codec, sharded=sharded)
    values = values_of(layout)
    values[ABSENT_ROWS] = layout.absent
    write_by_zarr(tmp_path / "zarr", layout, values)
    theirs = {p.name: p.read_bytes() for p in (tmp_path / "zarr").iterdir()}
    del theirs["zarr.json"]
    assert len(theirs) == 3
    assert contents(layout, values) == theirs


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("sharded", [False, True])
def test_another_library_reads_them(tmp_path: Path, codec: Codec, sharded: bool) -> None:
    layout = layout_of("float16", codec, sharded=sharded)
    values = values_of(layout)
    values[ABSENT_ROWS] = np.nan
    (tmp_path / "zarr.json").write_bytes(array_document(layout, N_ROWS))
    for name, content in contents(layout, values).items():
        (tmp_path / name).write_bytes(content)
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(tmp_path)}}
    np.testing.assert_array_equal(tensorstore.open(spec).result().read().result(), values)
    np.testing.assert_array_equal(np.asarray(zarr.open_array(tmp_path, mode="r")[...]), values)


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("n_rows", [1, 3, 7])
def test_rows_behind_a_unit_are_absent(tmp_path: Path, sharded: bool, n_rows: int) -> None:
    """A unit ends within a file; the array goes on behind it."""
    layout = layout_of("float32", "none", sharded=sharded)
    values = values_of(layout, 16)
    values[n_rows:8] = np.nan
    write_by_zarr(tmp_path / "zarr", layout, values)
    name = "c.0.0.0.0" if sharded else "c.0.0"
    content = file_content(layout, values[:n_rows])
    assert content is not None
    assert bytes(content) == (tmp_path / "zarr" / name).read_bytes()


def test_the_index_of_a_shard_by_hand() -> None:
    """Two maps of three numbers, the second absent, in a shard of four."""
    layout = ArrayLayout(
        kind="dense", axis="row", tail=(1, 1, 3), dtype="float16", file_rows=4, sharded=True
    )
    rows = np.array([[1, 2, 3], [np.nan] * 3, [4, np.nan, 6]], np.float16).reshape(3, 1, 1, 3)
    content = file_content(layout, rows)
    assert content is not None
    first, third = rows[0].tobytes(), rows[2].tobytes()
    nowhere = 2**64 - 1
    index = np.array([[0, 10], [nowhere] * 2, [10, 10], [nowhere] * 2], "<u8").tobytes()
    parts = [p + google_crc32c.value(p).to_bytes(4, "little") for p in (first, third, index)]
    assert bytes(content) == b"".join(parts)


@pytest.mark.parametrize("codec", CODECS)
def test_rows_that_are_a_view(codec: Codec) -> None:
    layout = layout_of("float32", codec, sharded=True)
    values = values_of(layout, 16)
    turned = np.ascontiguousarray(values.transpose(3, 2, 1, 0)).transpose(3, 2, 1, 0)
    assert not turned.flags.c_contiguous
    assert contents(layout, turned) == contents(layout, values)
    assert contents(layout, np.repeat(values, 2, 0)[::2]) == contents(layout, values)


def test_blocks_of_blosc_are_in_order(tmp_path: Path) -> None:
    """A chunk of several blocks, which threads would place as they end."""
    layout = layout_of("float32", "blosc", sharded=False, tail=(100_000,))
    values = values_of(layout, 8)
    write_by_zarr(tmp_path / "zarr", layout, values)
    for _ in range(3):
        assert contents(layout, values) == {"c.0.0": (tmp_path / "zarr/c.0.0").read_bytes()}


def test_rows_are_copied_once() -> None:
    layout = layout_of("float16", "none", sharded=True, tail=(16, 32, 128))
    values = values_of(layout, 8)
    tracemalloc.start()
    content = file_content(layout, values)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert content is not None
    assert len(content) <= peak < 1.2 * values.nbytes


# Through a store


@pytest.fixture
def writer(tiny_store: FeatureStore, tmp_path: Path) -> StoreWriter:
    """Of a copy of the store: 42 rows, in files of 16."""
    return StoreWriter(FeatureStore(Path(shutil.copytree(tiny_store.path, tmp_path / "copy"))))


@pytest.mark.parametrize("kind", ["cls", "dense"])
def test_several_files_at_once(writer: StoreWriter, kind: str) -> None:
    layout, folder = writer.layout(kind), writer.store.path
    values = values_of(layout, 42)
    values[16:32] = np.nan
    assert (folder / layout.key(1)).exists()
    objects = writer.write_rows(kind, 0, values)
    assert list(objects) == [layout.key(0), layout.key(2)]
    assert not (folder / layout.key(1)).exists()
    for name, stored in objects.items():
        content = (folder / name).read_bytes()
        digest = xxhash.xxh3_64_hexdigest(content)
        assert stored == StoredObject(bytes=len(content), xxh3=digest)
    array = zarr.open_array(folder / "features.zarr" / kind, mode="r")
    np.testing.assert_array_equal(np.asarray(array[...]), values)
    writer.write_rows(kind, 16, values[:10])
    np.testing.assert_array_equal(np.asarray(array[16:26]), values[:10])
    np.testing.assert_array_equal(np.asarray(array[26:32]), np.nan)
    np.testing.assert_array_equal(np.asarray(array[:16]), values[:16])


def test_rows_that_do_not_fit(writer: StoreWriter) -> None:
    with pytest.raises(AssertionError, match="cls rows at 3"):
        writer.write_rows("cls", 3, values_of(writer.layout("cls"), 8))
    with pytest.raises(AssertionError, match="float32"):
        writer.write_rows("cls", 0, values_of(writer.layout("cls"), 8).astype(np.float32))
