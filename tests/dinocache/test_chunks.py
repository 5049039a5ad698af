"""Chunks: the same numbers as zarr's, each checksum once, and none that holds more than it may."""

import contextlib
import json
from pathlib import Path
from typing import Any

import crc32c
import google_crc32c
import numcodecs
import numpy as np
import numpy.typing as npt
import pytest
import zarr

from dinocache.chunks import ChunkedArray, ChunkFiles, ShardedArray, open_array
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


def through_zarr(folder: Path, start: int, stop: int) -> npt.NDArray[Any]:
    return np.asarray(zarr.open_array(folder, mode="r")[start:stop])


RANGES = [(0, 23), (0, 8), (3, 7), (5, 17), (16, 23), (22, 23), (9, 9)]


@pytest.mark.parametrize(("start", "stop"), RANGES)
def test_ranges(folder: Path, start: int, stop: int) -> None:
    array = opened(folder)
    assert isinstance(array, ChunkFiles)
    np.testing.assert_array_equal(array.read(start, stop), VALUES[start:stop])
    np.testing.assert_array_equal(through_zarr(folder, start, stop), VALUES[start:stop])


def test_each_checksum_is_verified_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[int] = []
    plain = crc32c.crc32c

    def counted(content: npt.NDArray[np.uint8]) -> int:
        checked.append(len(content))
        return plain(content)

    monkeypatch.setattr(crc32c, "crc32c", counted)
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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("gzip", "it is compressed by 'gzip'"),
        ("slash", "its chunks have other names"),
        ("split", "its chunks do not span all axes but the first"),
        ("big", "its numbers are not little-endian"),
        ("no checksum", "its codecs are not those that dinocache writes"),
    ],
)
def test_other_layouts_are_refused(folder: Path, change: str, message: str) -> None:
    document = json.loads((folder / "zarr.json").read_bytes())
    if change == "gzip":
        document["codecs"].insert(1, {"name": "gzip", "configuration": {"level": 5}})
    elif change == "slash":
        document["chunk_key_encoding"]["configuration"]["separator"] = "/"
    elif change == "split":
        document["chunk_grid"]["configuration"]["chunk_shape"] = [8, 3]
    elif change == "big":
        document["codecs"][0]["configuration"]["endian"] = "big"
    else:
        del document["codecs"][1]
    (folder / "zarr.json").write_text(json.dumps(document))
    with pytest.raises(StoreDamagedError, match=message):
        opened(folder)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"shape": 3}'])
def test_what_is_no_array(folder: Path, text: str) -> None:
    (folder / "zarr.json").write_text(text)
    with pytest.raises(StoreDamagedError, match=r"cls/zarr.json is damaged"):
        opened(folder)


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
    for low, high in ((start, min(stop, 9)), (max(start, 11), min(stop, 13)), (14, stop)):
        found = array.read(low, high)
        np.testing.assert_array_equal(found, through_zarr(shards, low, max(low, high)))
        np.testing.assert_array_equal(found, MAPS[low : max(low, high)])
    if start <= 9 < stop:
        with pytest.raises(StoreDamagedError, match="a committed row is not in it"):
            array.read(start, stop)


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
    for low, high in ((8, 9), (11, 13), (14, 16)):
        np.testing.assert_array_equal(opened(shards).read(low, high), MAPS[low:high])


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


class Elsewhere(LocalFolder):
    """A folder that is as if it lay on a server."""

    path = None  # type: ignore[assignment]


@pytest.mark.parametrize(("folder_kind", "again"), [(LocalFolder, 0), (Elsewhere, 2)])
def test_checksums_of_maps(
    shards: Path, monkeypatch: pytest.MonkeyPatch, folder_kind: type[LocalFolder], again: int
) -> None:
    """Here each is verified once; of what was fetched, whenever it is taken from the cache."""
    files = committed_files(folder_kind(shards.parent))
    files.expect(files_of(shards).expected)
    array = open_array(files, shards.name, (shards / "zarr.json").read_bytes())
    array.read(0, 5)
    checked: list[int] = []
    plain = crc32c.crc32c

    def counted(content: npt.NDArray[np.uint8]) -> int:
        checked.append(len(content))
        return plain(content)

    monkeypatch.setattr(crc32c, "crc32c", counted)
    for _ in range(2):
        np.testing.assert_array_equal(array.read(0, 5), MAPS[:5])
    assert len(checked) == 2 * 5 * again
    checked.clear()
    np.testing.assert_array_equal(array.read(3, 8), MAPS[3:8])
    assert set(checked) == {60}
    assert len(checked) >= 3
    if not again:
        assert len(checked) == 3


def test_a_map_that_was_not_read_yet_is_not_vouched_for(shards: Path) -> None:
    """Its neighbours in the shard were read and are right; it is damaged, however often asked."""
    with (shards / "c.0.0.0.0").open("r+b") as file:
        file.seek(5 * 64 + 7)
        byte = file.read(1)[0]
        file.seek(5 * 64 + 7)
        file.write(bytes([byte ^ 16]))
    array = opened(shards)
    for _ in range(2):
        np.testing.assert_array_equal(array.read(2, 5), MAPS[2:5])
        np.testing.assert_array_equal(array.read(6, 8), MAPS[6:8])
        with pytest.raises(StoreDamagedError, match="a checksum within it does not match"):
            array.read(4, 7)


# Compressed


def compressed(tmp_path: Path, codec: str, dtype: str, *, sharded: bool) -> tuple[Path, Any]:
    """An array of 23 rows in files of 8, compressed, written by zarr itself."""
    values = (MAPS * 20).round().astype(dtype) if sharded else (VALUES * 20).round().astype(dtype)
    layout = ArrayLayout(
        kind="cls",
        axis="row",
        tail=values.shape[1:],
        dtype=dtype,  # type: ignore[arg-type]
        file_rows=8,
        sharded=sharded,
        codec=codec,  # type: ignore[arg-type]
    )
    path = tmp_path / "cls"
    path.mkdir()
    (path / "zarr.json").write_bytes(array_document(layout, 23))
    zarr.open_array(path, mode="r+")[...] = values
    return path, values


@pytest.mark.parametrize("codec", ["none", "zstd", "blosc"])
@pytest.mark.parametrize("dtype", ["int8", "float16", "float32"])
@pytest.mark.parametrize("sharded", [False, True])
def test_compressed(tmp_path: Path, codec: str, dtype: str, sharded: bool) -> None:
    path, values = compressed(tmp_path, codec, dtype, sharded=sharded)
    array = opened(path)
    assert array.dtype == dtype
    for start, stop in RANGES:
        np.testing.assert_array_equal(array.read(start, stop), values[start:stop])
        np.testing.assert_array_equal(through_zarr(path, start, stop), values[start:stop])


@pytest.mark.parametrize("codec", ["zstd", "blosc"])
@pytest.mark.parametrize("sharded", [False, True])
def test_what_becomes_larger_than_its_array_says(tmp_path: Path, codec: str, sharded: bool) -> None:
    """A chunk that is right in its checksum, and holds 128 MiB."""
    path, _ = compressed(tmp_path, codec, "int8", sharded=sharded)
    codecs = {"zstd": numcodecs.Zstd(), "blosc": numcodecs.Blosc(cname="zstd")}
    packed = codecs[codec].encode(np.zeros(1 << 27, np.uint8))
    chunk = packed + google_crc32c.value(packed).to_bytes(4, "little")
    name = "c.0.0.0.0" if sharded else "c.0.0"
    if sharded:
        index = np.full((8, 2), 2**64 - 1, "<u8")
        index[0] = 0, len(chunk)
        entries = index.tobytes()
        chunk += entries + google_crc32c.value(entries).to_bytes(4, "little")
    (path / name).write_bytes(chunk)
    message = "bytes, not|does not hold|has not"
    with pytest.raises(StoreDamagedError, match=message):
        opened(path).read(0, 1)


@pytest.mark.parametrize("codec", ["zstd", "blosc"])
def test_what_is_no_frame(tmp_path: Path, codec: str) -> None:
    path, _ = compressed(tmp_path, codec, "float32", sharded=False)
    whole = (path / "c.0.0").read_bytes()[:-4]
    rng = np.random.default_rng(3)
    for _ in range(60):
        frame = bytearray(whole[: int(rng.integers(1, len(whole) + 1))])
        frame[int(rng.integers(len(frame)))] ^= int(rng.integers(1, 256))
        content = bytes(frame) + google_crc32c.value(bytes(frame)).to_bytes(4, "little")
        (path / "c.0.0").write_bytes(content)
        with contextlib.suppress(StoreDamagedError):  # or other numbers: the checksum is right
            assert opened(path).read(0, 8).shape == (8, 6)


def test_a_chunk_that_is_gone_is_no_data(tmp_path: Path) -> None:
    path, values = compressed(tmp_path, "zstd", "float16", sharded=False)
    array = opened(path)
    (path / "c.1.0").unlink()
    np.testing.assert_array_equal(array.read(0, 8), values[:8])
    with pytest.raises(StoreDamagedError, match=r"cls/c\.1\.0 is damaged: it is missing"):
        array.read(7, 9)
