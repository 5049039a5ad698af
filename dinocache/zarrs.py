"""A folder that zarr writes to, and the images and masks that are read of a store."""

import asyncio
import json
import math
import os
from collections.abc import AsyncIterator, Iterable
from typing import Any

import crc32c
import numcodecs
import numpy as np
import numpy.typing as npt
from zarr.abc.store import (
    ByteRequest,
    OffsetByteRequest,
    RangeByteRequest,
    Store,
    SuffixByteRequest,
)
from zarr.core.buffer import Buffer, BufferPrototype

from dinocache.committed import CommittedFiles
from dinocache.errors import StoreDamagedError, StoreError, one_line
from dinocache.folders import MOST_WHOLE, Folder, check_size
from dinocache.layout import native_document
from dinocache.records import StoredObject

__all__ = [
    "MOST_DESCRIPTION",
    "NativeArray",
    "WrittenStore",
    "check_memory",
    "frame_bytes",
    "no_memory",
    "open_native",
]

MOST_DESCRIPTION = 16 << 20
"""Bytes of a `zarr.json`."""
_NUMBERS = {f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)}
_NUMBERS |= {"float16", "float32", "float64"}
_CRC_BYTES = 4
_ZSTD = b"\x28\xb5\x2f\xfd"


class WrittenStore(Store):
    """A folder that zarr writes whole files to; notes the size and digest of each."""

    supports_writes = True
    supports_deletes = False
    supports_listing = False

    def __init__(self, folder: Folder, prefix: str, format: int) -> None:
        """See the class.

        Args:
            folder: The store's.
            prefix: Of names within it.
            format: Version of the store's format.
        """
        super().__init__()
        self.folder, self.prefix, self.format = folder, prefix, format
        self.written: dict[str, StoredObject] = {}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, WrittenStore) and (self.folder, self.prefix) == (
            other.folder,
            other.prefix,
        )

    async def _content(self, key: str) -> bytes | None:
        try:
            # zarr reads descriptions alone: files of numbers are written as a whole.
            return await asyncio.to_thread(self.folder.read, f"{self.prefix}/{key}", _is_json)
        except FileNotFoundError:
            return None

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Give a file, or a part of it; None if there is none."""
        content = await self._content(key)
        if content is None:
            return None
        match byte_range:
            case RangeByteRequest(start, end):
                content = content[start:end]
            case OffsetByteRequest(offset):
                content = content[offset:]
            case SuffixByteRequest(suffix):
                content = content[-suffix:]
        return prototype.buffer.from_bytes(content)

    async def get_partial_values(
        self,
        prototype: BufferPrototype,
        key_ranges: Iterable[tuple[str, ByteRequest | None]],
    ) -> list[Buffer | None]:
        """Give parts of files."""
        return [await self.get(key, prototype, byte_range) for key, byte_range in key_ranges]

    async def exists(self, key: str) -> bool:
        """Tell whether there is such a file."""
        return await self._content(key) is not None

    async def set(self, key: str, value: Buffer) -> None:
        """Write a file (zarr calls this for each chunk)."""
        await asyncio.to_thread(self.put, key, value.to_bytes())

    async def delete(self, key: str) -> None:
        """Refused."""
        raise NotImplementedError

    async def list(self) -> AsyncIterator[str]:
        """Refused."""
        raise NotImplementedError
        yield ""

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Refused."""
        raise NotImplementedError
        yield ""

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Refused."""
        raise NotImplementedError
        yield ""

    def put(self, key: str, content: bytes) -> None:
        """Write a file."""
        name = f"{self.prefix}/{key}"
        self.folder.replace(name, content)
        self.written[name] = StoredObject.of(content, self.format)

    def take(self) -> dict[str, StoredObject]:
        """Give what was written since the last call."""
        written, self.written = self.written, {}
        return written


def _is_json(content: bytes) -> bool:
    try:
        json.loads(content)
    except ValueError:
        return False
    return True


def check_memory(name: str, n_bytes: int) -> None:
    """Refuse what this machine can never hold; raises `StoreError`."""
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows
        return
    if n_bytes > memory:
        raise no_memory(name, n_bytes)


def no_memory(name: str, n_bytes: int) -> StoreError:
    """Say that something needs more memory than there is."""
    return StoreError(
        f"{name}: what is asked for has {n_bytes} bytes, more than there is memory; read less of "
        "it at a time"
    )


class NativeArray:
    """An item's own grid, read by its rows, a compressed file each.

    A row that no record names is all zero: stores before 0.7 have no file for such a row of an
    image or a mask. A file that a record names and that is missing is an error, never data.

    Attributes:
        shape: (C, Z, Y, X).
        dtype: Of its numbers.
        attributes: `windows`, and what `Geometry.from_attributes` reads.
    """

    def __init__(
        self,
        files: CommittedFiles,
        name: str,
        shape: tuple[int, int, int, int],
        dtype: str,
        attributes: dict[str, Any],
    ) -> None:
        self._files, self._name = files, name
        self.shape, self.dtype, self.attributes = shape, np.dtype(dtype), attributes
        self._row_bytes = math.prod((shape[0], *shape[2:])) * self.dtype.itemsize

    def read(self, start: int = 0, stop: int | None = None) -> npt.NDArray[Any]:
        """Read rows `start` up to but not including `stop`: (C, rows, Y, X).

        Raises:
            StoreDamagedError: If a file is not as it was committed.
            StoreError: If they are larger than the memory.
        """
        channels, n_rows, height, width = self.shape
        rows = range(*slice(start, stop).indices(n_rows))
        check_memory(self._name, len(rows) * self._row_bytes)
        try:
            block = np.zeros((channels, len(rows), height, width), self.dtype)
            for place, row in enumerate(rows):
                content = self._read_row(row)
                if content is not None:
                    values = np.frombuffer(content, self.dtype.newbyteorder("<"))
                    block[:, place] = values.reshape(channels, height, width)
        except MemoryError:
            raise no_memory(self._name, len(rows) * self._row_bytes) from None
        except (ValueError, OSError, RuntimeError) as exc:
            raise StoreDamagedError(f"{self._name} is damaged: {one_line(exc)}") from exc
        return block

    def _read_row(self, row: int) -> bytes | None:
        """Give the bytes of a row; None where no record names it."""
        name = f"{self._name}/c.0.{row}.0.0"
        stored = self._files.expected.get(name)
        if stored is None:
            return None
        # It has the size that its record says: that was looked at when it was fetched.
        check_size(name, stored.bytes, self._row_bytes + (self._row_bytes >> 7) + 1024)
        content = self._files.path(name).read_bytes()
        packed, checksum = content[:-_CRC_BYTES], content[-_CRC_BYTES:]
        if crc32c.crc32c(packed) != int.from_bytes(checksum, "little"):
            raise ValueError(f"the checksum of {name} does not match")
        if frame_bytes(packed) != self._row_bytes:
            raise ValueError(f"{name} does not hold {self._row_bytes} bytes")
        found: bytes = numcodecs.Zstd().decode(packed)
        return found


def open_native(files: CommittedFiles, name: str, rows: int) -> NativeArray:
    """Open an item's own grid, whose files were fetched.

    Args:
        files: Of the store.
        name: The array's folder.
        rows: Of the item.

    Returns:
        What reads it.

    Raises:
        StoreDamagedError: If it is not as we write it.
    """
    document = f"{name}/zarr.json"
    if document not in files.expected:
        raise StoreDamagedError(f"{document} is in no record of its units")
    content = files.path(document).read_bytes()
    try:
        said = json.loads(content)
        shape, dtype, attributes = tuple(said["shape"]), said["data_type"], said["attributes"]
        ours = dtype in _NUMBERS and native_document(shape, dtype, attributes) == content
    except (ValueError, KeyError, TypeError, RecursionError):
        ours = False
    if not ours or not all(type(n) is int and n > 0 for n in shape) or shape[1] != rows:
        raise StoreDamagedError(
            f"{document} is not that of an item of {rows} rows as dinocache writes it"
        )
    row_bytes = math.prod((shape[0], *shape[2:])) * np.dtype(dtype).itemsize
    check_size(f"{name}, a row of it,", row_bytes, MOST_WHOLE)
    return NativeArray(files, name, shape, dtype, attributes)


def frame_bytes(content: bytes) -> int:
    """Say how large what a zstd frame holds is (RFC 8878, 3.1.1.1), before it is decompressed."""
    if content[:4] != _ZSTD or len(content) < 14:
        raise ValueError("a row is no zstd")
    head = content[4]
    single = head >> 5 & 1
    width = (single, 2, 4, 8)[head >> 6]
    at = 6 - single + (0, 1, 2, 4)[head & 3]
    if width == 0:
        raise ValueError("a row does not say how large it is")
    return int.from_bytes(content[at : at + width], "little") + (256 if width == 2 else 0)
