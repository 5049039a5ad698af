"""The bytes of an array's files: chunks, and shards of them, as docs/store-format.md has them.

They are those that zarr-python makes of the same rows under the same `zarr.json`, for a fraction of
its time: each row is copied once, and that something is in it is seen by its first number.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import crc32c
import numcodecs
import numcodecs.blosc
import numpy as np
import numpy.typing as npt

from dinocache.chunks import longest_chunk
from dinocache.committed import Bytes
from dinocache.layout import ArrayLayout

__all__ = ["file_content"]

_ABSENT = np.uint64(2**64 - 1)
_THREADS = 4
"""Maps of one shard are compressed beside each other."""
# Several threads within one call place blocks in the order in which they end: other bytes each
# time. zarr turns them off as well.
numcodecs.blosc.use_threads = False


def file_content(layout: ArrayLayout, rows: npt.NDArray[Any]) -> memoryview | None:
    """Make the content of one file of an array.

    Args:
        layout: The array's.
        rows: (1 to `file_rows`, ...) of the layout's dtype, from the file's first row on; NaN, or
            -128, where nothing is. Behind them nothing is.

    Returns:
        All bytes of the file; None where nothing is in all rows: then there is no such file.
    """
    if layout.sharded:
        return _shard(layout, rows)
    if _is_absent(layout, rows):
        return None
    if short := layout.file_rows - len(rows):
        rows = np.concatenate([rows, layout.nothing(short)])
    content = _Content(longest_chunk(layout.codec, rows.nbytes))
    for chunk in _encoded(layout, [rows]):
        content.append(chunk)
    return content.bytes


def _shard(layout: ArrayLayout, rows: npt.NDArray[Any]) -> memoryview | None:
    """Put the maps that are there behind each other, then where each of them is (ZEP 2)."""
    present = [number for number, row in enumerate(rows) if not _is_absent(layout, row)]
    if not present:
        return None
    index = np.full((layout.file_rows, 2), _ABSENT, "<u8")
    longest = longest_chunk(layout.codec, layout.row_bytes)
    content = _Content(len(present) * longest + longest_chunk("none", index.nbytes))
    chunks = _encoded(layout, [rows[number] for number in present])
    for number, chunk in zip(present, chunks, strict=True):
        index[number] = content.append(chunk)
    content.append(_raw(index))
    return content.bytes


def _is_absent(layout: ArrayLayout, rows: npt.NDArray[Any]) -> bool:
    """Tell whether nothing is in all of some numbers; of features the first one shows it."""
    return layout.is_absent(rows[(0,) * rows.ndim]) and layout.is_absent(rows)


def _encoded(layout: ArrayLayout, chunks: Sequence[npt.NDArray[Any]]) -> Iterator[Bytes]:
    """Give what stands in the file of each chunk, in order, but for its checksum."""
    dtype = np.dtype(layout.dtype).newbyteorder("<")
    raw = (_raw(np.ascontiguousarray(chunk, dtype)) for chunk in chunks)
    if layout.codec == "none":
        yield from raw
        return
    codec = (
        numcodecs.Zstd(level=3)
        if layout.codec == "zstd"
        else numcodecs.Blosc("zstd", 5, numcodecs.Blosc.BITSHUFFLE, typesize=dtype.itemsize)
    )
    with ThreadPoolExecutor(min(_THREADS, len(chunks))) as pool:
        for content in pool.map(codec.encode, raw):
            yield np.frombuffer(content, np.uint8)


def _raw(values: npt.NDArray[Any]) -> Bytes:
    return values.reshape(-1).view(np.uint8)


class _Content:
    """The bytes of a file while they are gathered."""

    def __init__(self, most: int) -> None:
        # At once: a bytearray that grows takes three times as long, as its pages are small.
        self._room = np.empty(most, np.uint8)
        self._size = 0

    def append(self, chunk: Bytes) -> tuple[int, int]:
        """Add a chunk and its checksum; gives where it begins, and its length with the checksum."""
        start, behind = self._size, self._size + len(chunk)
        self._room[start:behind] = chunk
        checksum = crc32c.crc32c(chunk.data).to_bytes(4, "little")
        self._size = behind + len(checksum)
        self._room[behind : self._size] = np.frombuffer(checksum, np.uint8)
        return start, self._size - start

    @property
    def bytes(self) -> memoryview:
        """All that was added."""
        return self._room[: self._size].data
