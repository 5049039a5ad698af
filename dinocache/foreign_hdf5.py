"""HDF5 of others: what TRIDENT and CLAM write, and exports of ours.

HDF5's library gives the header and the places of the chunks; bytes are read and decoded here, as in
`dinocache.readers.hdf5`, whose reasons are the same. No link is followed, and what a file claims to
hold is held against its size before memory is taken.
"""

import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dinocache.errors import ItemError, RequestError
from dinocache.foreign_item import (
    MOST_OF_DEFLATE,
    Floats,
    ForeignItem,
    checked_columns,
    checked_shape,
    chosen_key,
    parsed_columns,
    shortened,
)

__all__ = ["Hdf5Item", "import_h5py"]

_MAX_CHUNK = 1 << 30
_MAX_CHUNKS = 1 << 24
_MAX_TEXT = 1 << 16
_GZIP, _SHUFFLE = 1, 2
_SAID = {
    "": ("dataset", "weights", "digest"),
    "features": ("encoder",),
    "coords": (
        "patch_size",
        "patch_size_level0",
        "overlap",
        "level0_magnification",
        "target_magnification",
        "target_mpp",
        "patch_level",
    ),
}
"""Attributes of HDF5 files that are noted: of the root, of the features, of the coordinates."""


def import_h5py() -> Any:  # noqa: ANN401 - h5py comes late
    """Give h5py.

    Raises:
        RequestError: If it is not installed.
    """
    try:
        import h5py
    except ModuleNotFoundError as exc:
        raise RequestError(
            "this format needs h5py, which is not installed: pip install 'dinocache[export]'"
        ) from exc
    return h5py


class Hdf5Item(ForeignItem):
    """A file of TRIDENT, of CLAM, or an export of ours.

    Args:
        path: Of the file.
        key: Name of the features within it; None looks for the usual ones.

    Raises:
        ItemError: If it holds none, keeps them elsewhere, or claims more than its size.
    """

    def __init__(self, path: Path, key: str | None) -> None:
        h5py = import_h5py()
        size = path.stat().st_size
        # No lock: the file may lie on read-only media.
        with h5py.File(path, "r", locking=False) as file:
            names = [str(name) for name, _ in zip(file, range(1000), strict=False)]
            chosen = chosen_key(dict.fromkeys(names), [n for n in names if n != "coords"], key)
            found = _data_set(file, chosen)
            self.n_rows, self.dim = checked_shape(found.shape, found.dtype)
            self._values = _Stored(found, path, size)
            self._coords: _Stored | None = None
            self.said = _hdf5_texts(file, _SAID[""]) | _hdf5_texts(found, _SAID["features"])
            if "coords" in names and found.ndim > 1:
                placed = _data_set(file, "coords")
                if placed.dtype.kind not in "iuf":
                    raise ItemError(f"its coordinates are {placed.dtype}")
                named = parsed_columns(_hdf5_texts(placed, ("columns",), None).get("columns"))
                self.columns = checked_columns(placed.shape, self.n_rows, named)
                self._coords = _Stored(placed, path, size)
                self.said |= _hdf5_texts(placed, _SAID["coords"])
            if item_id := _hdf5_texts(file, ("item_id",), None):
                self.said |= item_id

    def rows(self, start: int, stop: int) -> Floats:
        """Read (rows, dim), as they are stored."""
        return self._values.read(start, stop)

    def coords(self, start: int, stop: int) -> npt.NDArray[np.float64]:
        """Read (rows, columns) of an item that has coordinates."""
        if self._coords is None:
            raise AssertionError("it has no coordinates")
        return self._coords.read(start, stop).astype(np.float64)


def _data_set(file: Any, name: str) -> Any:  # noqa: ANN401 - h5py comes late
    """Give a data set of numbers that lies in this file, and nowhere else."""
    import h5py

    link = file.get(name, getlink=True)
    if link is None:
        raise ItemError(f"it has no data set {name!r}")
    if not isinstance(link, h5py.HardLink):
        raise ItemError(f"{name!r} is a link, which is not followed; make a copy that holds it")
    found = file[name]
    if not isinstance(found, h5py.Dataset) or found.shape is None:
        raise ItemError(f"{name!r} is no data set")
    if found.is_virtual or found.external:
        raise ItemError(f"{name!r} keeps its values in another file; make a copy that holds them")
    stored = found.id.get_type()
    if found.dtype.kind not in "iuf" or found.dtype.itemsize > 8:
        raise ItemError(f"{name!r} holds {found.dtype}; numbers were expected")
    if stored.get_size() != found.dtype.itemsize or stored.get_precision() != 8 * stored.get_size():
        raise ItemError(f"{name!r} holds numbers of {stored.get_precision()} bits")
    return found


class _Stored:
    """A data set of one, two or three axes (the first of one), read as (rows, columns)."""

    def __init__(self, found: Any, path: Path, size: int) -> None:  # noqa: ANN401 - as above
        self._path, self._dtype = path, found.dtype
        self._rows, self._columns = _two_axes(found.shape)
        self._whole: npt.NDArray[Any] | None = None
        self._last: tuple[int, npt.NDArray[Any]] | None = None
        self._offsets: npt.NDArray[np.int64] | None = None
        claimed = self._rows * self._columns * self._dtype.itemsize
        if found.chunks is not None:
            self._note_chunks(found, size)
            return
        self._filters: tuple[int, ...] = ()
        self._chunk, self._full = (1, self._columns), (1, self._columns)
        stored, offset = found.id.get_storage_size(), found.id.get_offset()
        if stored != claimed or claimed > size:
            raise ItemError(
                f"{found.name} claims {claimed} bytes, {stored} are stored in a file of {size}"
            )
        if offset is None:  # within the header: 64 KiB at most
            self._whole = np.asarray(found[()]).reshape(self._rows, self._columns)
            return
        if offset + stored > size:
            raise ItemError(f"{found.name} lies outside of the file")
        self._start = offset

    def _note_chunks(self, found: Any, size: int) -> None:  # noqa: ANN401 - as above
        """Look up where chunks lie, and hold them against the file."""
        plist = found.id.get_create_plist()
        filters = tuple(plist.get_filter(i)[0] for i in range(plist.get_nfilters()))
        if unknown := [f for f in filters if f not in (_GZIP, _SHUFFLE)]:
            raise ItemError(
                f"{found.name} is packed by filter {unknown[0]} of HDF5, which is not read; "
                "`h5repack -f GZIP=1` makes a copy that is"
            )
        if len(set(filters)) < len(filters):
            raise ItemError(f"{found.name} is packed by one filter several times over")
        self._filters, self._full = filters, tuple(found.chunks)
        self._chunk = _two_axes(found.chunks)
        chunk_bytes = math.prod(self._full) * self._dtype.itemsize
        down, across = -(-self._rows // self._chunk[0]), -(-self._columns // self._chunk[1])
        written = found.id.get_num_chunks()
        if written != down * across or written > _MAX_CHUNKS or chunk_bytes > _MAX_CHUNK:
            raise ItemError(
                f"{found.name} claims {down * across} chunks of {chunk_bytes} bytes, {written} "
                "were written"
            )
        self._across = across
        offsets = np.full(written, -1)
        self._sizes, self._masks = np.zeros(written, np.int64), np.zeros(written, np.int64)

        def note(chunk: Any) -> None:  # noqa: ANN401 - h5py's StoreInfo
            corner = tuple(chunk.chunk_offset)
            if len(corner) == 3 and corner[0] == 0:
                corner = corner[1:]
            elif len(corner) == 1:
                corner = (0, *corner)
            row, column = corner
            number = row // self._chunk[0] * across + column // self._chunk[1]
            outside = chunk.byte_offset is None or chunk.byte_offset + chunk.size > size
            if outside or not (0 <= row < self._rows and 0 <= column < self._columns):
                raise ItemError(f"a chunk of {found.name} lies outside of it")
            packed = _GZIP in self._filters and not chunk.filter_mask >> filters.index(_GZIP) & 1
            if chunk.size * (MOST_OF_DEFLATE if packed else 1) < chunk_bytes or (
                not packed and chunk.size != chunk_bytes
            ):
                raise ItemError(f"a chunk of {chunk.size} bytes cannot hold {chunk_bytes}")
            offsets[number], self._sizes[number] = chunk.byte_offset, chunk.size
            self._masks[number] = chunk.filter_mask

        found.id.chunk_iter(note)
        if (offsets < 0).any():
            raise ItemError(f"chunks of {found.name} are missing")
        self._offsets = offsets

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Read (rows, columns) in the machine's order of bytes.

        Raises:
            ItemError: If they are damaged.
        """
        if self._whole is not None:
            return self._whole[start:stop].astype(self._dtype.newbyteorder("="))
        with self._path.open("rb") as file:
            if self._offsets is None:
                line = self._columns * self._dtype.itemsize
                data = _read_at(file, self._start + start * line, (stop - start) * line)
                found = np.frombuffer(data, self._dtype).reshape(stop - start, self._columns)
                return found.astype(self._dtype.newbyteorder("="))
            deep, wide = self._chunk
            out = np.empty((stop - start, self._columns), self._dtype.newbyteorder("="))
            for top in range(start - start % deep, stop, deep):
                low, high = max(top, start), min(top + deep, stop)
                for left in range(0, self._columns, wide):
                    chunk = self._decoded(file, top // deep * self._across + left // wide)
                    target = out[low - start : high - start, left : left + wide]
                    target[...] = chunk[low - top : high - top, : target.shape[1]]
            return out

    def _decoded(self, file: Any, number: int) -> npt.NDArray[Any]:  # noqa: ANN401
        if self._last is not None and self._last[0] == number:
            return self._last[1]
        if self._offsets is None:
            raise AssertionError("it has no chunks")
        data = _read_at(file, int(self._offsets[number]), int(self._sizes[number]))
        n_bytes = math.prod(self._full) * self._dtype.itemsize
        for place, which in reversed(list(enumerate(self._filters))):
            if int(self._masks[number]) >> place & 1:
                continue
            if which == _GZIP:
                data = zlib.decompressobj().decompress(data, n_bytes + 1)
            else:
                data = _unshuffled(data, self._dtype.itemsize)
        if len(data) != n_bytes:
            raise ItemError(f"a chunk of {len(data)} bytes, not {n_bytes}")
        chunk = np.frombuffer(data, self._dtype).reshape(self._full)
        if chunk.ndim == 3:
            chunk = chunk[0]
        self._last = number, chunk.reshape(self._chunk)
        return self._last[1]


def _two_axes(shape: Sequence[int]) -> tuple[int, int]:
    """Give (rows, columns) of (columns,), (rows, columns) or (any, rows, columns)."""
    rows, columns = (1, *shape)[-2:]
    return int(rows), int(columns)


def _read_at(file: Any, offset: int, n_bytes: int) -> bytes:  # noqa: ANN401 - a binary file
    file.seek(offset)
    data: bytes = file.read(n_bytes)
    if len(data) != n_bytes:
        raise ItemError("the file became shorter while it was read")
    return data


def _unshuffled(data: bytes, width: int) -> bytes:
    """Undo HDF5's shuffle; bytes that fill no whole value stay as they are."""
    count = len(data) // width
    planes = np.frombuffer(data, np.uint8, count * width).reshape(width, count)
    return planes.T.tobytes() + data[count * width :]


def _hdf5_texts(
    holder: Any,  # noqa: ANN401 - h5py comes late
    names: Sequence[str],
    most: int | None = 200,
) -> dict[str, str]:
    """Read some attributes that are one text or one number."""
    import h5py

    found = {}
    for name in names:
        if name not in holder.attrs:
            continue
        attribute = h5py.h5a.open(holder.id, name.encode())
        if attribute.shape not in ((), (1,)) or attribute.get_storage_size() > _MAX_TEXT:
            continue
        value = holder.attrs[name]
        if isinstance(value, np.ndarray):
            value = value.ravel()[0]
        if isinstance(value, bytes):
            value = value.decode("utf-8", "replace")
        if isinstance(value, str | int | float | np.number | np.bool_):
            text = str(value)
            found[name] = text[:_MAX_TEXT] if most is None else shortened(text)
    return found
