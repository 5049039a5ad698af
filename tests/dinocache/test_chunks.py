"""Mapped chunks: the same numbers as zarr's, each checksum once, and zarr where they do not fit."""

import json
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import zarr

from dinocache.chunks import MappedArray, ZarrArray, open_array
from dinocache.errors import StoreDamagedError
from dinocache.layout import ArrayLayout, array_document

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


RANGES = [(0, 23), (0, 8), (3, 7), (5, 17), (16, 23), (22, 23), (9, 9)]


@pytest.mark.parametrize(("start", "stop"), RANGES)
def test_ranges(folder: Path, start: int, stop: int) -> None:
    array = open_array(folder)
    assert isinstance(array, MappedArray)
    np.testing.assert_array_equal(array.read(start, stop), VALUES[start:stop])
    np.testing.assert_array_equal(
        ZarrArray(folder, {"shape": [23, 6]}).read(start, stop), VALUES[start:stop]
    )


def test_each_checksum_is_verified_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[int] = []
    plain = google_crc32c.value

    def counted(content: np.ndarray) -> int:
        checked.append(len(content))
        return plain(content)

    monkeypatch.setattr(google_crc32c, "value", counted)
    array = open_array(folder)
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
    array = open_array(folder)
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
    array = open_array(path)
    assert isinstance(array, ZarrArray)
    np.testing.assert_array_equal(array.read(5, 17), VALUES[5:17])


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"shape": 3}'])
def test_what_is_no_array(folder: Path, text: str) -> None:
    (folder / "zarr.json").write_text(text)
    with pytest.raises(StoreDamagedError, match=r"cls/zarr.json is damaged"):
        open_array(folder)
    document = json.loads(
        array_document(
            ArrayLayout(kind="cls", axis="row", tail=(6,), dtype="float16", file_rows=8), 23
        )
    )
    assert MappedArray.can_read(document)
