"""Arrays of a store, read by ranges of their first axis.

With the codecs `bytes` and `crc32c` a chunk is the raw little-endian array and four bytes
(docs/store-format.md, "Arrays"), so a row range is copied out of mapped files: about ten times
faster than decoding through zarr, and of a shard on a server the maps of one item are one request.
Each chunk's checksum is verified once, when it is first touched; of what comes from a server,
whenever it comes or is taken from the cache. Compressed chunks are held against their checksum and
the size that they must have, then decompressed.
"""

import functools
import json
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import crc32c
import numcodecs
import numpy as np
import numpy.typing as npt

from dinocache.committed import Bytes, CommittedFiles, map_file, most_open_files
from dinocache.errors import StoreDamagedError
from dinocache.zarrs import check_memory, frame_bytes, no_memory

__all__ = ["ChunkedArray", "longest_chunk", "open_array"]

_CRC_BYTES = 4
_MAX_MAPPED = most_open_files() // 4
"""Chunks of one array mapped at a time: Python keeps a file open for each."""
_MAX_DECODED = 4
"""Chunks of one array that are held decompressed."""
_BYTES = {"name": "bytes", "configuration": {"endian": "little"}}
_CRC = {"name": "crc32c"}
_PLAIN = [_BYTES, _CRC]
_DTYPES = {"int8": "i1", "float16": "<f2", "float32": "<f4", "float64": "<f8"}
_ABSENT = np.uint64(2**64 - 1)
_BLOSC_HEAD = 16


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
        self.dtype = np.dtype(_DTYPES[document["data_type"]])
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

    def room(self, n_rows: int, dtype: npt.DTypeLike | None = None) -> npt.NDArray[Any]:
        """Take memory for rows, also of another type; `StoreError` where there is not that much."""
        shape = (max(n_rows, 0), *self.shape[1:])
        dtype = self.dtype if dtype is None else np.dtype(dtype)
        n_bytes = math.prod(shape) * dtype.itemsize
        check_memory(self.name, n_bytes)
        try:
            return np.empty(shape, dtype)
        except MemoryError:
            raise no_memory(self.name, n_bytes) from None

    def _file(self, index: int) -> str:
        return f"{self.name}/{'.'.join(['c', str(index), *['0'] * (len(self._chunk) - 1)])}"


def longest_chunk(codec: str, n_bytes: int) -> int:
    """Say how long a chunk can be in its file, with its checksum.

    Args:
        codec: `none`, `zstd`, `blosc`.
        n_bytes: Of its numbers.
    """
    more = 0 if codec == "none" else (n_bytes >> 7) + 1024
    return n_bytes + more + _CRC_BYTES


class _Codec:
    """What became of a chunk's bytes before their checksum was taken."""

    def __init__(self, codecs: list[dict[str, Any]]) -> None:
        """See the class; raises `ValueError` for codecs that dinocache does not write."""
        first, between, last = codecs[0], codecs[1:-1], codecs[-1]
        if first["name"] != "bytes" or last != _CRC or len(between) > 1:
            raise ValueError("its codecs are not those that dinocache writes")
        if first != _BYTES and first.get("configuration"):
            raise ValueError("its numbers are not little-endian")
        self.name = between[0]["name"] if between else "none"
        if self.name not in ("none", "zstd", "blosc"):
            raise ValueError(f"it is compressed by {self.name!r}")

    def decode(self, content: Bytes, out: npt.NDArray[np.uint8]) -> None:
        """Fill bytes from a chunk whose checksum was verified; raises `ValueError`."""
        content = content[:-_CRC_BYTES]
        if self._size(content) != out.nbytes:
            raise ValueError(f"it does not hold {out.nbytes} bytes")
        if self.name == "none":
            out[...] = content
            return
        codec = numcodecs.Zstd() if self.name == "zstd" else numcodecs.Blosc()
        try:
            codec.decode(np.ascontiguousarray(content), out)
        except RuntimeError as exc:
            raise ValueError(str(exc)) from exc

    def _size(self, content: Bytes) -> int:
        """Say how large what a chunk holds is, before it is decompressed."""
        if self.name == "none":
            return len(content)
        if self.name == "zstd":
            return frame_bytes(content[:_BLOSC_HEAD].tobytes())
        if len(content) < _BLOSC_HEAD or int.from_bytes(content[12:16], "little") != len(content):
            raise ValueError("it is no whole blosc frame")
        return int.from_bytes(content[4:8], "little")


def _is_whole(content: Bytes) -> bool:
    """Whether a chunk's checksum, its last four bytes, is that of the others."""
    stored = int.from_bytes(content[-_CRC_BYTES:].tobytes(), "little")
    return crc32c.crc32c(content[:-_CRC_BYTES].data) == stored


class ChunkFiles(ChunkedArray):
    """Chunks that span all axes but the first, a file each: mapped, or decompressed."""

    def __init__(
        self, files: CommittedFiles, name: str, document: dict[str, Any], codec: _Codec
    ) -> None:
        super().__init__(files, name, document)
        self._codec = codec
        self._chunk_bytes = math.prod(self._chunk) * self.dtype.itemsize
        self._verified: set[int] = set()
        held = _MAX_MAPPED if codec.name == "none" else _MAX_DECODED
        self._map = functools.lru_cache(held)(self._open)

    def read_into(self, block: npt.NDArray[Any], start: int) -> None:
        """See `ChunkedArray`; a copy, as a view would keep its chunk's file open."""
        rows, stop = self._chunk[0], start + len(block)
        for index in range(start // rows, -(-stop // rows)):
            first = index * rows
            low, high = max(start, first), min(stop, first + rows)
            block[low - start : high - start] = self._map(index)[low - first : high - first]

    def _open(self, index: int) -> npt.NDArray[Any]:
        name = self._file(index)
        try:
            raw = map_file(self.files.path(name))
        except FileNotFoundError as exc:
            raise _damaged(name, "it is missing") from exc
        size, longest = len(raw), longest_chunk(self._codec.name, self._chunk_bytes)
        if size != longest if self._codec.name == "none" else not _CRC_BYTES < size <= longest:
            raise _damaged(name, f"it has {size} bytes, not {longest}")
        if index not in self._verified:
            if not _is_whole(raw):
                raise _damaged(name, "its checksum does not match")
            self._verified.add(index)
        if self._codec.name == "none":
            values = np.frombuffer(raw, self.dtype, self._chunk_bytes // self.dtype.itemsize)
            return values.reshape(self._chunk)
        decoded = np.empty(self._chunk, self.dtype)
        _decode(self._codec, name, raw, decoded)
        return decoded


@dataclass(frozen=True)
class _Shard:
    """What is known of a shard.

    Attributes:
        where: (rows, 2) uint64, offset and length of each chunk.
        is_whole: (rows,) whether a chunk's checksum was seen to match, of a file that stays here.
    """

    where: npt.NDArray[np.uint64]
    is_whole: npt.NDArray[np.bool_]


class ShardedArray(ChunkedArray):
    """Shards of chunks of one row, each of which spans all axes but the first (ZEP 2)."""

    def __init__(
        self, files: CommittedFiles, name: str, document: dict[str, Any], codec: _Codec
    ) -> None:
        super().__init__(files, name, document)
        self._codec = codec
        self._row_bytes = math.prod(self.shape[1:]) * self.dtype.itemsize
        self._shard = functools.lru_cache(_MAX_MAPPED)(self._open)

    def read_into(self, block: npt.NDArray[Any], start: int) -> None:
        """See `ChunkedArray`."""
        rows, stop = self._chunk[0], start + len(block)
        for index in range(start // rows, -(-stop // rows)):
            first = index * rows
            low, high = max(start, first), min(stop, first + rows)
            self._read_shard(index, low - first, block[low - start : high - start])

    def _read_shard(self, index: int, first: int, block: npt.NDArray[Any]) -> None:
        """Read neighbouring rows of one shard into a block, by one request if they lie together."""
        shard, rows = self._shard(index), slice(first, first + len(block))
        where, is_whole = shard.where[rows], shard.is_whole[rows]
        if (where[:, 0] == _ABSENT).any():
            raise _damaged(self._file(index), "a committed row is not in it")
        stops = where.sum(1)
        apart = np.flatnonzero(where[1:, 0] != stops[:-1]) + 1
        for low, high in pairwise([0, *apart.tolist(), len(block)]):
            some = _Shard(where[low:high], is_whole[low:high])
            self._read_chunks(index, some, block[low:high])

    def _read_chunks(self, index: int, some: _Shard, block: npt.NDArray[Any]) -> None:
        """Read chunks that follow each other in a shard."""
        if not len(block):
            return
        name, where = self._file(index), some.where.astype(np.int64)
        offset, stop = int(where[0, 0]), int(where[-1].sum())
        if not 0 <= offset < stop <= self.files.size(name):
            raise _damaged(name, "its index points beyond its end")
        starts = where[:, 0] - offset
        spans = list(zip(starts.tolist(), (starts + where[:, 1]).tolist(), strict=True))
        unseen = [
            span for span, seen in zip(spans, some.is_whole.tolist(), strict=True) if not seen
        ]

        def is_whole(content: Bytes) -> bool:
            return all(_is_whole(content[low:high]) for low, high in unseen)

        content = self.files.part(name, offset, stop, is_whole)
        if len(content) != stop - offset or not is_whole(content):
            raise _damaged(name, "a checksum within it does not match")
        if self.files.parts_stay:
            some.is_whole[:] = True
        if self._codec.name == "none":
            raw = content.reshape(len(block), -1)[:, : self._row_bytes]
            block.reshape(len(block), -1).view(np.uint8)[...] = raw
            return
        for number, (low, high) in enumerate(spans):
            _decode(self._codec, name, content[low:high], block[number])

    def _open(self, index: int) -> _Shard:
        """Read where each chunk is from the end of a shard."""
        name, entries = self._file(index), self._chunk[0] * 16
        size = self.files.size(name)
        if size < entries + _CRC_BYTES:
            raise _damaged(name, f"its {size} bytes are fewer than its index has")
        content = self.files.part(name, size - entries - _CRC_BYTES, size, _is_whole)
        if len(content) != entries + _CRC_BYTES or not _is_whole(content):
            raise _damaged(name, "the checksum of its index does not match")
        where = np.frombuffer(content[:entries], "<u8").reshape(-1, 2)
        present = where[where[:, 0] != _ABSENT]
        self._check_lengths(name, present[:, 1])
        present = present[np.argsort(present[:, 0])]
        if (present[1:, 0] < present[:-1].sum(1)).any():
            raise _damaged(name, "its chunks overlap")
        return _Shard(where, np.zeros(len(where), np.bool_))

    def _check_lengths(self, name: str, lengths: npt.NDArray[np.uint64]) -> None:
        longest = longest_chunk(self._codec.name, self._row_bytes)
        least = longest if self._codec.name == "none" else _CRC_BYTES + 1
        if ((lengths < least) | (lengths > longest)).any():
            raise _damaged(name, f"a chunk of it has not {longest} bytes")


def _decode(codec: _Codec, name: str, content: Bytes, block: npt.NDArray[Any]) -> None:
    try:
        codec.decode(content, block.reshape(-1).view(np.uint8))
    except ValueError as exc:
        raise _damaged(name, str(exc)) from exc


def open_array(files: CommittedFiles, name: str, content: bytes) -> ChunkedArray:
    """Open an array.

    Args:
        files: Of the store.
        name: The array's folder.
        content: Of its `zarr.json`.

    Returns:
        The array.

    Raises:
        StoreDamagedError: If `zarr.json` is not that of an array as dinocache writes it.
    """
    try:
        document = json.loads(content)
        _check_spans(document)
        codecs = document["codecs"]
        if codecs[0]["name"] != "sharding_indexed":
            return ChunkFiles(files, name, document, _Codec(codecs))
        sharding = codecs[0]["configuration"]
        expected = {
            "chunk_shape": [1, *document["shape"][1:]],
            "codecs": sharding["codecs"],
            "index_codecs": _PLAIN,
            "index_location": "end",
        }
        if len(codecs) > 1 or sharding != expected:
            raise ValueError("its shards are not laid out as dinocache does")
        return ShardedArray(files, name, document, _Codec(sharding["codecs"]))
    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as exc:
        raise _damaged(f"{name}/zarr.json", f"it is not that of an array of ours ({exc})") from exc


def _check_spans(document: dict[str, Any]) -> None:
    """See that chunks lie along the first axis and have the names that they should."""
    shape, grid = document["shape"], document["chunk_grid"]
    chunk = grid["configuration"]["chunk_shape"]
    if document["data_type"] not in _DTYPES:
        raise ValueError(f"its numbers are {document['data_type']}")
    if not all(isinstance(n, int) and n > 0 for n in (*shape, *chunk)) or grid["name"] != "regular":
        raise ValueError("its shape is none")
    if chunk[1:] != shape[1:]:
        raise ValueError("its chunks do not span all axes but the first")
    encoding = {"name": "default", "configuration": {"separator": "."}}
    if document["chunk_key_encoding"] != encoding:
        raise ValueError("its chunks have other names")


def _damaged(name: str, why: str) -> StoreDamagedError:
    return StoreDamagedError(
        f"{name} is damaged: {why}. Run `dinocache verify` to see what else is, and copy those "
        "files again from where the store came from."
    )
