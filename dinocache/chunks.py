"""Zarr arrays of uncompressed chunks, mapped into memory.

With the codecs `bytes` and `crc32c` a chunk file is the raw little-endian array and four bytes
(docs/store-format.md, "Arrays"), so locally a row range is copied out of mapped files: about ten
times faster than decoding through zarr. Each chunk's checksum is verified once, when it is first
touched.
"""

import functools
import json
import os
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt

from dinocache.errors import StoreDamagedError

__all__ = ["ChunkedArray", "MappedArray", "ZarrArray", "open_array"]

_CRC_BYTES = 4
_MAX_MAPPED = 64
"""Chunks of one array mapped at a time: Python keeps a file open for each, macOS allows 256."""
_PLAIN_CODECS = [
    {"name": "bytes", "configuration": {"endian": "little"}},
    {"name": "crc32c"},
]
_DTYPES = {"float16": "<f2", "float32": "<f4", "float64": "<f8"}


class ChunkedArray:
    """An array in a folder, read by ranges of its first axis."""

    def __init__(self, folder: Path, document: dict[str, Any]) -> None:
        self.folder = folder
        self.shape: tuple[int, ...] = tuple(document["shape"])

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Read rows.

        Args:
            start: First row.
            stop: Row behind the last.

        Returns:
            (stop - start, ...) array of the stored dtype.

        Raises:
            StoreDamagedError: If a chunk is missing, or its bytes are not those written.
        """
        raise NotImplementedError


class MappedArray(ChunkedArray):
    """Chunks that span all axes but the first, mapped into memory."""

    def __init__(self, folder: Path, document: dict[str, Any]) -> None:
        super().__init__(folder, document)
        self._chunk: tuple[int, ...] = tuple(document["chunk_grid"]["configuration"]["chunk_shape"])
        self._dtype = np.dtype(_DTYPES[document["data_type"]])
        self._verified: set[int] = set()
        self._map = functools.lru_cache(_MAX_MAPPED)(self._open)

    @staticmethod
    def can_read(document: dict[str, Any]) -> bool:
        """Whether the assumptions hold: layout, key encoding and codecs are the plain ones."""
        shape, grid = document["shape"], document["chunk_grid"]
        chunk = grid["configuration"].get("chunk_shape", [])
        return (
            document["data_type"] in _DTYPES
            and grid["name"] == "regular"
            and all(isinstance(n, int) and n > 0 for n in (*shape, *chunk))
            and chunk[1:] == shape[1:]
            and document["chunk_key_encoding"]
            == {"name": "default", "configuration": {"separator": "."}}
            and document["codecs"] == _PLAIN_CODECS
        )

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Read rows; a copy, as a view would keep its chunk's file open."""
        rows = self._chunk[0]
        block = np.empty((max(stop - start, 0), *self.shape[1:]), self._dtype)
        for index in range(start // rows, -(-stop // rows)):
            first = index * rows
            low, high = max(start, first), min(stop, first + rows)
            block[low - start : high - start] = self._map(index)[low - first : high - first]
        return block

    def _open(self, index: int) -> npt.NDArray[Any]:
        path = self.folder / ".".join(["c", str(index), *["0"] * (len(self._chunk) - 1)])
        name = f"{self.folder.name}/{path.name}"
        data_bytes = int(np.prod(self._chunk)) * self._dtype.itemsize
        try:
            size = path.stat().st_size
        except FileNotFoundError as exc:
            raise _damaged(name, "it is missing") from exc
        if size != data_bytes + _CRC_BYTES:
            raise _damaged(name, f"it has {size} bytes, not {data_bytes + _CRC_BYTES}")
        raw = np.memmap(path, np.uint8, "r")
        if index not in self._verified:
            stored = int.from_bytes(raw[data_bytes:].tobytes(), "little")
            if google_crc32c.value(raw[:data_bytes]) != stored:
                raise _damaged(name, "its checksum does not match")
            self._verified.add(index)
        return np.frombuffer(raw, self._dtype, data_bytes // self._dtype.itemsize).reshape(
            self._chunk
        )


class ZarrArray(ChunkedArray):
    """Any other array, through zarr."""

    def __init__(self, folder: Path, document: dict[str, Any]) -> None:
        import zarr

        super().__init__(folder, document)
        self._array = zarr.open_array(folder, mode="r")

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Read rows; zarr verifies each checksum at each read."""
        try:
            block: npt.NDArray[Any] = np.asarray(self._array[start:stop])
        except (ValueError, OSError, RuntimeError) as exc:
            raise _damaged(f"{self.folder.name} rows {start}-{stop}", str(exc)) from exc
        if len(block) != stop - start:
            raise _damaged(f"{self.folder.name}/zarr.json", f"it ends before row {stop}")
        return block


def open_array(folder: Path) -> ChunkedArray:
    """Open an array by the fastest way that its layout allows.

    Args:
        folder: The array's folder, with its `zarr.json`.

    Returns:
        The array.

    Raises:
        StoreDamagedError: If `zarr.json` is missing or not an array's.
    """
    path = folder / "zarr.json"
    try:
        document = json.loads(path.read_bytes())
        mappable = MappedArray.can_read(document)
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise _damaged(f"{folder.name}/zarr.json", f"it is not an array's ({exc})") from exc
    # A page file on Windows cannot be replaced while it is mapped, so there zarr reads.
    if mappable and os.name == "posix":
        return MappedArray(folder, document)
    return ZarrArray(folder, document)


def _damaged(name: str, why: str) -> StoreDamagedError:
    return StoreDamagedError(
        f"{name} is damaged: {why}. Run `dinocache verify` to see what else is, and copy those "
        "files again from where the store came from."
    )
