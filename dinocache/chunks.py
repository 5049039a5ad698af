"""Arrays of a store, read by ranges of their first axis.

With the codecs `bytes` and `crc32c` a chunk is the raw little-endian array and four bytes
(docs/store-format.md, "Arrays"), so a row range is copied out of mapped files: about ten times
faster than decoding through zarr, and of a shard on a server the maps of one item are one request.
Each chunk's checksum is verified once, when it is first touched. Arrays with other codecs are
decoded by zarr.
"""

import functools
import json
import math
from abc import ABC, abstractmethod
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt

from dinocache.committed import Bytes, CommittedFiles, map_file
from dinocache.errors import StoreDamagedError
from dinocache.zarrs import check_memory, no_memory, open_zarr

__all__ = ["ChunkedArray", "open_array"]

_CRC_BYTES = 4
_MAX_MAPPED = 64
"""Chunks of one array mapped at a time: Python keeps a file open for each, macOS allows 256."""
_PLAIN_CODECS = [
    {"name": "bytes", "configuration": {"endian": "little"}},
    {"name": "crc32c"},
]
_DTYPES = {"float16": "<f2", "float32": "<f4", "float64": "<f8"}
_ABSENT = np.uint64(2**64 - 1)


class ChunkedArray(ABC):
    """An array of a store.

    Attributes:
        name: Its folder within the store.
        shape: Of the whole.
        dtype: Of what is read.
    """

    dtype: np.dtype[Any]

    def __init__(self, files: CommittedFiles, name: str, document: dict[str, Any]) -> None:
        self.files = files
        self.name = name
        self.shape: tuple[int, ...] = tuple(document["shape"])
        self._chunk: tuple[int, ...] = tuple(document["chunk_grid"]["configuration"]["chunk_shape"])

    @abstractmethod
    def read_into(self, block: npt.NDArray[Any], start: int) -> None:
        """Read rows, whose files were fetched, or are expected where they are read by parts.

        Args:
            block: (n_rows, ...) of `dtype`, filled with the rows.
            start: The first of them.

        Raises:
            StoreDamagedError: If a chunk is missing, or its bytes are not those written.
        """

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Read rows `start` up to but not including `stop`, as `read_into`."""
        block = self.room(stop - start)
        self.read_into(block, start)
        return block

    def room(self, n_rows: int) -> npt.NDArray[Any]:
        """Take memory for rows; raises `StoreError` where there is not that much."""
        shape = (max(n_rows, 0), *self.shape[1:])
        n_bytes = math.prod(shape) * self.dtype.itemsize
        check_memory(self.name, n_bytes)
        try:
            return np.empty(shape, self.dtype)
        except MemoryError:
            raise no_memory(self.name, n_bytes) from None

    def _file(self, index: int) -> str:
        return f"{self.name}/{'.'.join(['c', str(index), *['0'] * (len(self._chunk) - 1)])}"


class MappedArray(ChunkedArray):
    """Plain chunks that span all axes but the first."""

    def __init__(self, files: CommittedFiles, name: str, document: dict[str, Any]) -> None:
        super().__init__(files, name, document)
        self.dtype = np.dtype(_DTYPES[document["data_type"]])
        self._verified: set[int] = set()
        self._map = functools.lru_cache(_MAX_MAPPED)(self._open)

    @staticmethod
    def can_read(document: dict[str, Any]) -> bool:
        """Whether the assumptions hold: layout, key encoding and codecs are the plain ones."""
        return _spans_all_but_the_first(document) and document["codecs"] == _PLAIN_CODECS

    def read_into(self, block: npt.NDArray[Any], start: int) -> None:
        """See `ChunkedArray`; a copy, as a view would keep its chunk's file open."""
        rows, stop = self._chunk[0], start + len(block)
        for index in range(start // rows, -(-stop // rows)):
            first = index * rows
            low, high = max(start, first), min(stop, first + rows)
            block[low - start : high - start] = self._map(index)[low - first : high - first]

    def _open(self, index: int) -> npt.NDArray[Any]:
        name = self._file(index)
        path = self.files.path(name)
        data_bytes = int(np.prod(self._chunk)) * self.dtype.itemsize
        try:
            size = path.stat().st_size
        except FileNotFoundError as exc:
            raise _damaged(name, "it is missing") from exc
        if size != data_bytes + _CRC_BYTES:
            raise _damaged(name, f"it has {size} bytes, not {data_bytes + _CRC_BYTES}")
        raw = map_file(path)
        if index not in self._verified:
            stored = int.from_bytes(raw[data_bytes:].tobytes(), "little")
            if google_crc32c.value(raw[:data_bytes]) != stored:
                raise _damaged(name, "its checksum does not match")
            self._verified.add(index)
        return np.frombuffer(raw, self.dtype, data_bytes // self.dtype.itemsize).reshape(
            self._chunk
        )


class ShardedArray(ChunkedArray):
    """Shards of plain chunks of one row, each of which spans all axes but the first (ZEP 2)."""

    def __init__(self, files: CommittedFiles, name: str, document: dict[str, Any]) -> None:
        super().__init__(files, name, document)
        self.dtype = np.dtype(_DTYPES[document["data_type"]])
        self._row_bytes = int(np.prod(self.shape[1:])) * self.dtype.itemsize
        self._index = functools.lru_cache(_MAX_MAPPED)(self._read_index)

    @staticmethod
    def can_read(document: dict[str, Any]) -> bool:
        """Whether the assumptions hold."""
        codecs = document["codecs"]
        return (
            _spans_all_but_the_first(document)
            and len(codecs) == 1
            and codecs[0]["name"] == "sharding_indexed"
            and codecs[0]["configuration"]
            == {
                "chunk_shape": [1, *document["shape"][1:]],
                "codecs": _PLAIN_CODECS,
                "index_codecs": _PLAIN_CODECS,
                "index_location": "end",
            }
        )

    def read_into(self, block: npt.NDArray[Any], start: int) -> None:
        """See `ChunkedArray`."""
        rows, stop = self._chunk[0], start + len(block)
        for index in range(start // rows, -(-stop // rows)):
            first = index * rows
            low, high = max(start, first), min(stop, first + rows)
            self._read_shard(index, low - first, block[low - start : high - start])

    def _read_shard(self, index: int, first: int, block: npt.NDArray[Any]) -> None:
        """Read neighbouring rows of one shard into a block, by one request if they lie together."""
        name, length = self._file(index), self._row_bytes + _CRC_BYTES
        where = self._index(index)[first : first + len(block)]
        present = where[:, 0] != _ABSENT
        block[~present] = np.nan
        if not present.any():
            return
        if (where[present, 1] != length).any():
            raise _damaged(name, f"a chunk of it has not {length} bytes")
        offsets = where[present, 0].astype(np.int64)
        rows = np.flatnonzero(present)
        if (np.diff(offsets) != length).any():
            for row in rows.tolist():
                self._read_chunks(index, int(where[row, 0]), block[row : row + 1])
        elif present.all():
            self._read_chunks(index, int(offsets[0]), block)
        else:
            some = np.empty((len(rows), *block.shape[1:]), block.dtype)
            self._read_chunks(index, int(offsets[0]), some)
            block[rows] = some

    def _read_chunks(self, index: int, offset: int, block: npt.NDArray[Any]) -> None:
        """Read chunks that follow each other in a shard."""
        name, length = self._file(index), self._row_bytes + _CRC_BYTES
        stop = offset + len(block) * length
        if not 0 <= offset < stop <= self.files.size(name):
            raise _damaged(name, "its index points beyond its end")

        def is_whole(content: Bytes) -> bool:
            ends = range(self._row_bytes, len(content), length)
            return all(
                bool(
                    google_crc32c.value(content[end - self._row_bytes : end])
                    == int.from_bytes(content[end : end + _CRC_BYTES].tobytes(), "little")
                )
                for end in ends
            )

        content = self.files.part(name, offset, stop, is_whole)
        if len(content) != stop - offset or not is_whole(content):
            raise _damaged(name, "a checksum within it does not match")
        raw = content.reshape(len(block), length)[:, : self._row_bytes]
        block.reshape(len(block), -1).view(np.uint8)[...] = raw

    def _read_index(self, index: int) -> npt.NDArray[np.uint64]:
        """Read offset and length of each chunk, (rows, 2), from the end of a shard."""
        name, entries = self._file(index), self._chunk[0] * 16
        size = self.files.size(name)

        def is_whole(content: Bytes) -> bool:
            stored = int.from_bytes(content[entries:].tobytes(), "little")
            return bool(google_crc32c.value(content[:entries]) == stored)

        if size < entries + _CRC_BYTES:
            raise _damaged(name, f"its {size} bytes are fewer than its index has")
        content = self.files.part(name, size - entries - _CRC_BYTES, size, is_whole)
        if len(content) != entries + _CRC_BYTES or not is_whole(content):
            raise _damaged(name, "the checksum of its index does not match")
        where = np.frombuffer(content[:entries], "<u8").reshape(-1, 2)
        present = where[where[:, 0] != _ABSENT]
        if (present[:, 1] != self._row_bytes + _CRC_BYTES).any():
            raise _damaged(name, f"a chunk of it has not {self._row_bytes + _CRC_BYTES} bytes")
        if (np.diff(np.sort(present[:, 0])) < self._row_bytes + _CRC_BYTES).any():
            raise _damaged(name, "its chunks overlap")
        return where


class ZarrArray(ChunkedArray):
    """Any other array, through zarr."""

    def __init__(
        self, files: CommittedFiles, name: str, document: dict[str, Any], content: bytes
    ) -> None:
        super().__init__(files, name, document)
        self._array = open_zarr(files, name, content)
        self.dtype = self._array.dtype

    def read_into(self, block: npt.NDArray[Any], start: int) -> None:
        """See `ChunkedArray`; zarr verifies each checksum at each read."""
        stop = start + len(block)
        try:
            rows = np.asarray(self._array[start:stop])
        except (ValueError, OSError, RuntimeError) as exc:
            raise _damaged(f"{self.name} rows {start}-{stop}", str(exc)) from exc
        if len(rows) != len(block):
            raise _damaged(f"{self.name}/zarr.json", f"it ends before row {stop}")
        block[...] = rows


def open_array(files: CommittedFiles, name: str, content: bytes) -> ChunkedArray:
    """Open an array by the fastest way that its layout allows.

    Args:
        files: Of the store.
        name: The array's folder.
        content: Of its `zarr.json`.

    Returns:
        The array.

    Raises:
        StoreDamagedError: If `zarr.json` is not an array's.
    """
    try:
        document = json.loads(content)
        for way in (MappedArray, ShardedArray):
            if way.can_read(document):
                return way(files, name, document)
        return ZarrArray(files, name, document, content)
    except (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError) as exc:
        raise _damaged(f"{name}/zarr.json", f"it is not an array's ({exc})") from exc


def _spans_all_but_the_first(document: dict[str, Any]) -> bool:
    shape, grid = document["shape"], document["chunk_grid"]
    chunk = grid["configuration"].get("chunk_shape", [])
    return (
        document["data_type"] in _DTYPES
        and grid["name"] == "regular"
        and all(isinstance(n, int) and n > 0 for n in (*shape, *chunk))
        and chunk[1:] == shape[1:]
        and document["chunk_key_encoding"]
        == {"name": "default", "configuration": {"separator": "."}}
    )


def _damaged(name: str, why: str) -> StoreDamagedError:
    return StoreDamagedError(
        f"{name} is damaged: {why}. Run `dinocache verify` to see what else is, and copy those "
        "files again from where the store came from."
    )
