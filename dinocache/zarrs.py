"""What zarr sees of a store: committed files to read, and a folder to write to."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from typing import Any

import zarr
from zarr.abc.store import (
    ByteRequest,
    OffsetByteRequest,
    RangeByteRequest,
    Store,
    SuffixByteRequest,
)
from zarr.core.buffer import Buffer, BufferPrototype

from dinocache import documents
from dinocache.committed import CommittedFiles
from dinocache.folders import Folder
from dinocache.records import StoredObject

__all__ = ["WrittenStore", "open_zarr"]


class _Store(Store):
    """What zarr asks of every store and these do not need."""

    supports_writes = False
    supports_deletes = False
    supports_listing = False

    async def _content(self, key: str) -> bytes | None:
        raise NotImplementedError

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
        """Refused."""
        raise NotImplementedError

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


class _FilesStore(_Store):
    """Committed files of one array that were fetched; a missing one is an error, never data.

    A chunk that no record names is all fill value: stores before 0.7 have no file for a row of an
    image or a mask that is all zero.
    """

    def __init__(self, files: CommittedFiles, name: str, document: bytes) -> None:
        super().__init__(read_only=True)
        self.files, self.name, self.document = files, name, document

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _FilesStore) and (self.files, self.name) == (
            other.files,
            other.name,
        )

    async def _content(self, key: str) -> bytes | None:
        if key == "zarr.json":
            return self.document
        name = f"{self.name}/{key}"
        if name not in self.files.expected:
            return None
        return await asyncio.to_thread(self.files.path(name).read_bytes)


class WrittenStore(_Store):
    """A folder that zarr writes whole files to; notes the size and checksum of each."""

    supports_writes = supports_deletes = True

    def __init__(self, folder: Folder, prefix: str) -> None:
        """See the class.

        Args:
            folder: The store's.
            prefix: Of names within it.
        """
        super().__init__()
        self.folder, self.prefix = folder, prefix
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

    async def set(self, key: str, value: Buffer) -> None:
        """Write a file (zarr calls this for each chunk or shard)."""
        await asyncio.to_thread(self.put, key, value.to_bytes())

    async def delete(self, key: str) -> None:
        """Remove a file (zarr calls this for each chunk in which nothing is)."""
        await asyncio.to_thread(self.folder.remove, f"{self.prefix}/{key}")

    def put(self, key: str, content: bytes) -> None:
        """Write a file."""
        name = f"{self.prefix}/{key}"
        self.folder.replace(name, content)
        self.written[name] = StoredObject(bytes=len(content), crc32c=documents.checksum(content))

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


def open_zarr(files: CommittedFiles, name: str, document: bytes) -> "zarr.Array[Any]":
    """Open an array of a store for reading, whose files were fetched.

    Args:
        files: Of the store.
        name: The array's folder.
        document: Its `zarr.json`.

    Raises:
        OSError, ValueError, KeyError: If it is none.
    """
    return zarr.open_array(_FilesStore(files, name, document), mode="r", zarr_format=3)
