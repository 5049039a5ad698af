"""Mapped chunks: the same numbers as zarr's, each checksum once, and zarr where they do not fit."""

import json
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import zarr

from dinocache.chunks import ChunkedArray, MappedArray, ShardedArray, ZarrArray, open_array
from dinocache.committed import CommittedFiles, committed_files
from dinocache.errors import StoreDamagedError
from dinocache.folders import LocalFolder
from dinocache.layout import ArrayLayout, array_document
from dinocache.records import StoredObject

VALUES = np.random.default_rng(5).normal(size=(23, 6)).astype(np.float16)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An array of 23 rows in chunks of 8, written by zarr itself under our zarr.json."""
    layout = ArrayLayout(kind="cls", axis="row", tail=(6,), dtype="float16", file_rows=8)
    path = tmp_path / "cls"
    path.mkdir()
    (path / "zarr.json").write_bytes(array_document(layout, 23))
    zarr.open_array(path, mode="r+")[...] = VALUES
    return path


def files_of(folder: Path) -> CommittedFiles:
    """Take all chunks that are there for committed."""
    files = committed_files(LocalFolder(folder.parent))
    chunks = [p for p in folder.rglob("*") if p.is_file() and p.name != "zarr.json"]
    files.expect(
        {
            p.relative_to(folder.parent).as_posix(): StoredObject(bytes=p.stat().st_size, crc32c="")
            for p in chunks
        }
    )
    return files


def opened(folder: Path) -> ChunkedArray:
    files = files_of(folder)
    return open_array(files, folder.name, (folder / "zarr.json").read_bytes())


def through_zarr(folder: Path) -> ZarrArray:
    files, content = files_of(folder), (folder / "zarr.json").read_bytes()
    return ZarrArray(files, folder.name, json.loads(content), content)


RANGES = [(0, 23), (0, 8), (3, 7), (5, 17), (16, 23), (22, 23), (9, 9)]


@pytest.mark.parametrize(("start", "stop"), RANGES)
def test_ranges(folder: Path, start: int, stop: int) -> None:
    array = opened(folder)
    assert isinstance(array, MappedArray)
    np.testing.assert_array_equal(array.read(start, stop), VALUES[start:stop])
    np.testing.assert_array_equal(through_zarr(folder).read(start, stop), VALUES[start:stop])


def test_each_checksum_is_verified_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[int] = []
    plain = google_crc32c.value

    def counted(content: np.ndarray) -> int:
        checked.append(len(content))
        return plain(content)

    monkeypatch.setattr(google_crc32c, "value", counted)
    array = opened(folder)
    for _ in range(3):
        array.read(0, 12)
    assert checked == [96, 96]
    array.read(12, 23)
    assert checked == [96, 96, 96]


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda c: c[:-1], "it has 99 bytes, not 100"),
        (lambda c: c[:50] + bytes([c[50] ^ 32]) + c[51:], "its checksum does not match"),
        (lambda c: c[:98] + bytes([c[98] ^ 1]) + c[99:], "its checksum does not match"),
        (None, "it is missing"),
    ],
)
def test_a_damaged_chunk_is_named_when_it_is_touched(
    folder: Path, harm: object, message: str
) -> None:
    path = folder / "c.1.0"
    if callable(harm):
        path.write_bytes(harm(path.read_bytes()))
    else:
        path.unlink()
    array = opened(folder)
    np.testing.assert_array_equal(array.read(0, 8), VALUES[:8])
    with pytest.raises(StoreDamagedError, match=f"cls/c.1.0 is damaged: {message}"):
        array.read(7, 9)


@pytest.mark.parametrize("change", ["compressed", "slash", "split"])
def test_other_layouts_go_through_zarr(tmp_path: Path, change: str) -> None:
    path = tmp_path / "cls"
    zarr.create_array(
        path,
        shape=VALUES.shape,
        chunks=(8, 3) if change == "split" else (8, 6),
        dtype="float16",
        compressors=[zarr.codecs.ZstdCodec()] if change == "compressed" else None,
        chunk_key_encoding={"name": "default", "separator": "/" if change == "slash" else "."},
    )[...] = VALUES
    array = opened(path)
    assert isinstance(array, ZarrArray)
    np.testing.assert_array_equal(array.read(5, 17), VALUES[5:17])


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"shape": 3}'])
def test_what_is_no_array(folder: Path, text: str) -> None:
    (folder / "zarr.json").write_text(text)
    with pytest.raises(StoreDamagedError, match=r"cls/zarr.json is damaged"):
        opened(folder)
    document = json.loads(
        array_document(
            ArrayLayout(kind="cls", axis="row", tail=(6,), dtype="float16", file_rows=8), 23
        )
    )
    assert MappedArray.can_read(document)


# Shards

MAPS = np.random.default_rng(6).normal(size=(23, 2, 3, 5)).astype(np.float16)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """An array of 23 maps in shards of 8, written by zarr itself; maps 9, 10 and 13 are absent."""
    layout = ArrayLayout(
        kind="dense", axis="row", tail=(2, 3, 5), dtype="float16", file_rows=8, sharded=True
    )
    path = tmp_path / "dense"
    path.mkdir()
    (path / "zarr.json").write_bytes(array_document(layout, 23))
    maps = MAPS.copy()
    maps[[9, 10, 13]] = np.nan
    zarr.open_array(path, mode="r+")[...] = maps
    return path


@pytest.mark.parametrize(("start", "stop"), RANGES)
def test_ranges_of_maps(shards: Path, start: int, stop: int) -> None:
    array = opened(shards)
    assert isinstance(array, ShardedArray)
    found, expected = array.read(start, stop), through_zarr(shards).read(start, stop)
    np.testing.assert_array_equal(found, expected)
    present = [row - start for row in range(start, stop) if row not in (9, 10, 13)]
    np.testing.assert_array_equal(found[present], MAPS[start:stop][present])
    assert np.isnan(found).all(axis=(1, 2, 3)).sum() == stop - start - len(present)


def test_maps_in_another_order(shards: Path) -> None:
    """A writer may put the chunks of a shard in any order, with holes between them."""
    path = shards / "c.1.0.0.0"
    content = path.read_bytes()
    index = np.frombuffer(content[-132:-4], "<u8").reshape(8, 2).copy()
    present = [row for row in range(8) if index[row, 1] == 64]
    moved = b"".join(
        b"hole" + content[int(index[row, 0]) : int(index[row, 0]) + 64] for row in present[::-1]
    )
    for place, row in enumerate(present[::-1]):
        index[row, 0] = 4 + 68 * place
    packed = index.tobytes()
    path.write_bytes(moved + packed + google_crc32c.value(packed).to_bytes(4, "little"))
    np.testing.assert_array_equal(opened(shards).read(8, 16), through_zarr(shards).read(8, 16))


@pytest.mark.parametrize(
    ("at", "message"),
    [(70, "a checksum within it does not match"), (-20, "the checksum of its index does not")],
)
def test_a_damaged_shard_is_named(shards: Path, at: int, message: str) -> None:
    path = shards / "c.0.0.0.0"
    content = bytearray(path.read_bytes())
    content[at] ^= 4
    path.write_bytes(content)
    array = opened(shards)
    np.testing.assert_array_equal(array.read(16, 18), MAPS[16:18])
    with pytest.raises(StoreDamagedError, match=rf"dense/c\.0\.0\.0\.0 is damaged: {message}"):
        array.read(0, 3)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ((2**40, 64), "its index points beyond its end"),
        ((2**63 + 1, 64), "its index points beyond its end"),
        ((0, 2**40), "a chunk of it has not 64 bytes"),
    ],
)
def test_an_index_that_lies(shards: Path, entry: tuple[int, int], message: str) -> None:
    path = shards / "c.0.0.0.0"
    content = path.read_bytes()
    index = np.frombuffer(content[-132:-4], "<u8").reshape(8, 2).copy()
    index[1] = entry
    packed = index.tobytes()
    path.write_bytes(content[:-132] + packed + google_crc32c.value(packed).to_bytes(4, "little"))
    with pytest.raises(StoreDamagedError, match=message):
        opened(shards).read(0, 3)


def test_a_chunk_that_is_gone_is_no_data(tmp_path: Path) -> None:
    """Of arrays that zarr decodes, too, which takes an absent chunk for its fill value."""
    path = tmp_path / "cls"
    zarr.create_array(
        path,
        shape=VALUES.shape,
        chunks=(8, 6),
        dtype="float16",
        compressors=[zarr.codecs.ZstdCodec()],
        chunk_key_encoding={"name": "default", "separator": "."},
    )[...] = VALUES
    array = opened(path)
    (path / "c.1.0").unlink()
    np.testing.assert_array_equal(array.read(0, 8), VALUES[:8])
    with pytest.raises(StoreDamagedError, match="cls rows 7-9 is damaged"):
        array.read(7, 9)
