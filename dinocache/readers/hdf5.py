"""One three-dimensional data set of an HDF5 file, section by section.

A file can send a reader to other files (external links, external storage, virtual data sets) and to
code (filters of plugins): those are refused by name. Links are followed here, one by one.

HDF5 gives the header and the places of the chunks; bytes are read and decoded here. Its own filters
trust the file: a chunk that claims no bytes made Fletcher32's crash the process (HDF5 1.14), and
what inflates to less than a chunk is read beyond its end.
"""

import itertools
import math
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from dinocache.errors import ItemError
from dinocache.readers.contract import Labels, Pixels, translated

__all__ = ["MM_OF_UNIT", "Sections", "is_hdf5"]

MM_OF_UNIT = {
    "pm": 1e-9,
    "nm": 1e-6,
    "nanometer": 1e-6,
    "nanometers": 1e-6,
    "um": 1e-3,
    "\u00b5m": 1e-3,
    "\u03bcm": 1e-3,
    "\\u00b5m": 1e-3,
    "micron": 1e-3,
    "microns": 1e-3,
    "micrometer": 1e-3,
    "micrometers": 1e-3,
    "mm": 1.0,
    "cm": 10.0,
    "m": 1000.0,
}
_GZIP, _SHUFFLE, _FLETCHER, _LZF = 1, 2, 3, 32000
_FILTERS = {_GZIP: "gzip", _SHUFFLE: "shuffle", _FLETCHER: "fletcher32", _LZF: "lzf"}
_RATIO = 1100
"""Deflate makes at most 1032 bytes of one; LZF less."""
_MAX_OBJECTS = 10_000
_MAX_CHUNK = 1 << 30
_MAX_SLAB = 1 << 30
_MAX_LABELS = 1 << 34
_MAX_LISTED = 8
_MAX_CHUNKS = 1 << 24
_MAX_LOSS = 1 << 20
"""Bytes that packing may add to a chunk that does not become smaller."""


class Sections:
    """The sections of a data set.

    A slab as thick as the chunks is kept, so that a chunk is not decoded once a section.

    Attributes:
        shape: (1, Y, X) of a section.
        dtype: Of what `rows` gives.
        value_range: Of truth values 0 and 1; else None, that of the type.
        spacing_mm: (z, y, x), if the file says it.
        notes: None yet.
    """

    value_range: tuple[float, float] | None = None
    notes: tuple[str, ...] = ()

    def __init__(self, path: Path, dataset: str | None, *, labels: bool) -> None:
        import h5py

        self._lock, self._reading = threading.Lock(), threading.Lock()
        self._slab: tuple[int, npt.NDArray[Any]] | None = None
        with translated("HDF5 that cannot be read"):
            size = path.stat().st_size
            # No lock: the file may lie on read-only media.
            with h5py.File(path, "r", locking=False) as file:
                found = _named(file, dataset) if dataset else _only(file, labels=labels)
                _check(found)
                self._layout = _layout(found, size, labels=labels)
                self.spacing_mm = _spacing(found, file)
                if found.dtype.kind == "b":
                    self.value_range = 0.0, 1.0
            self._file = path.open("rb")
        n_rows, height, width = self._layout.shape
        self._n_rows = n_rows
        self.shape = (1, height, width)
        self._stored = self._layout.stored.newbyteorder("=")
        self.dtype = _given(self._stored)
        thick = self._layout.chunk[0]
        section = height * width * self._stored.itemsize
        self._thick = thick if thick > 1 and thick * section <= _MAX_SLAB else 1

    def __len__(self) -> int:
        return self._n_rows

    def rows(self, start: int, stop: int) -> list[Pixels]:
        """Read some sections.

        Args:
            start: First.
            stop: Behind the last.

        Returns:
            (1, Y, X) arrays of `dtype`.

        Raises:
            ItemError: If they are damaged.
        """
        found: list[Pixels] = []
        with translated("cannot be decoded"), np.errstate(over="ignore"):
            while start < stop:
                first, slab = self._around(start, stop)
                part = slab[start - first : stop - first]
                found += [section[None] for section in part.astype(self.dtype)]
                start += len(part)
        return found

    def _around(self, start: int, stop: int) -> tuple[int, npt.NDArray[Any]]:
        """Read the sections from `start` on, up to `stop` or to the end of its slab."""
        if self._thick == 1:
            return start, self._read(start, stop)
        first = start - start % self._thick
        with self._lock:
            if self._slab is None or self._slab[0] != first:
                self._slab = None  # give its memory back before the next is made
                self._slab = first, self._read(first, min(first + self._thick, self._n_rows))
            return self._slab

    def _read(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Decode sections, as stored but for the order of bytes."""
        layout = self._layout
        (_, height, width), (deep, down, across) = layout.shape, layout.chunk
        missing = bool((layout.offsets < 0).any())
        make = np.zeros if missing else np.empty
        whole = make((stop - start, height, width), self._stored)
        corners = itertools.product(
            range(start - start % deep, stop, deep), range(0, height, down), range(0, width, across)
        )
        for z, y, x in corners:
            chunk = self._chunk(layout.number((z, y, x)))
            if chunk is not None:
                low, high = max(z, start), min(z + deep, stop)
                target = whole[low - start : high - start, y : y + down, x : x + across]
                target[...] = chunk[low - z : high - z, : target.shape[1], : target.shape[2]]
        return whole

    def _chunk(self, number: int) -> npt.NDArray[Any] | None:
        layout = self._layout
        offset, size = int(layout.offsets[number]), int(layout.sizes[number])
        if offset < 0:
            return None
        with self._reading:
            self._file.seek(offset)
            data = self._file.read(size)
        if len(data) != size:
            raise ItemError("the file became shorter while it was read")
        for place, which in reversed(list(enumerate(layout.filters))):
            if not int(layout.masks[number]) >> place & 1:
                data = _unfiltered(data, which, layout)
        if len(data) != layout.chunk_bytes:
            raise ItemError(f"a chunk of {len(data)} bytes, not {layout.chunk_bytes}")
        return np.frombuffer(data, layout.stored).reshape(layout.chunk)

    def labels(self) -> Labels:
        """Read the whole as labels.

        Returns:
            (1, Z, Y, X) integers as stored; what was never written is 0.

        Raises:
            ItemError: If it is damaged, or holds no whole numbers.
        """
        if self._stored.kind not in "iu":
            raise ItemError(f"a mask holds whole numbers; this one {self._stored.name}")
        if math.prod(self._layout.shape) * self._stored.itemsize > _MAX_LABELS:
            raise ItemError(f"{self._layout.shape} labels of {self._stored.name} are too many")
        with translated("cannot be decoded"):
            return self._read(0, self._n_rows)[None]

    def close(self) -> None:
        """Close the file."""
        self._slab = None
        self._file.close()


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """Where the values of a data set lie.

    Attributes:
        shape: (sections, Y, X).
        chunk: The same of a chunk; of a data set in a piece its lines, many at once.
        stored: Type of the values, with its order of bytes.
        filters: That encoded a chunk, in this order.
        offsets: Of the chunks, bytes; -1 for those that were never written.
        sizes: Of the chunks, bytes.
        masks: Of the chunks: bit i says that filter i was left out.
    """

    shape: tuple[int, int, int]
    chunk: tuple[int, int, int]
    stored: np.dtype[Any]
    filters: tuple[int, ...]
    offsets: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    masks: npt.NDArray[np.int64]

    @property
    def counts(self) -> tuple[int, int, int]:
        """Chunks along each axis."""
        z, y, x = (-(-side // part) for side, part in zip(self.shape, self.chunk, strict=True))
        return z, y, x

    @property
    def chunk_bytes(self) -> int:
        """Of a decoded chunk."""
        return math.prod(self.chunk) * self.stored.itemsize

    def number(self, corner: tuple[int, ...]) -> int:
        """Give the number of the chunk that begins at (z, y, x)."""
        _, lines, columns = self.counts
        z, y, x = (at // part for at, part in zip(corner, self.chunk, strict=True))
        return (z * lines + y) * columns + x


def _layout(found: Any, size: int, *, labels: bool) -> _Layout:  # noqa: ANN401 - h5py comes late
    """Look up where values lie, and hold it against the file."""
    shape, chunks = tuple(found.shape), found.chunks
    # Truth values are kept as they are stored, a byte each.
    kept = np.dtype(np.uint8) if found.dtype.kind == "b" else found.dtype
    plain: dict[str, Any] = {"shape": shape, "stored": kept, "filters": ()}
    if chunks is None:
        # One section each, so that sections can be read alone.
        offset, section = found.id.get_offset(), math.prod(shape[1:]) * found.dtype.itemsize
        stored = found.id.get_storage_size()
        if found.id.get_create_plist().get_layout() == 0:  # H5D_COMPACT
            raise ItemError(f"{found.name} lies within its header, too small for a stack")
        if offset is None or stored != section * shape[0] or offset + stored > size:
            raise ItemError(
                f"{found.name} claims {section * shape[0]} bytes, {stored} are stored in a file of "
                f"{size}"
            )
        numbers = np.arange(shape[0])
        return _Layout(
            chunk=(1, *shape[1:]),
            offsets=offset + numbers * section,
            sizes=np.full(shape[0], section),
            masks=np.zeros(shape[0], np.int64),
            **plain,
        )
    filters = _filters(found)
    if math.prod(chunks) * found.dtype.itemsize > _MAX_CHUNK:
        raise ItemError(f"{found.name} has chunks of {chunks}, too large to be read by sections")
    expected = math.prod(-(-side // part) for side, part in zip(shape, chunks, strict=True))
    written = found.id.get_num_chunks()
    if written != expected and not (labels and written):
        raise ItemError(f"{written} of the {expected} chunks of {found.name} were written")
    if expected > _MAX_CHUNKS:
        raise ItemError(f"{found.name} claims {expected} chunks; at most {_MAX_CHUNKS} are read")
    layout = _Layout(
        chunk=tuple(chunks),
        offsets=np.full(expected, -1),
        sizes=np.zeros(expected, np.int64),
        masks=np.zeros(expected, np.int64),
        **(plain | {"filters": filters}),
    )

    def note(chunk: Any) -> None:  # noqa: ANN401 - h5py's StoreInfo
        corner = chunk.chunk_offset
        inside = all(
            0 <= at < side and at % part == 0
            for at, side, part in zip(corner, shape, chunks, strict=True)
        )
        if not inside or chunk.byte_offset is None or chunk.byte_offset + chunk.size > size:
            raise ItemError(f"a chunk of {found.name} lies outside of the file, or the data set")
        used = [f for i, f in enumerate(filters) if not chunk.filter_mask >> i & 1]
        size_inside = chunk.size - 4 * (_FLETCHER in used)
        packed = _GZIP in used or _LZF in used
        if (
            size_inside * (_RATIO if packed else 1) < layout.chunk_bytes
            or size_inside > layout.chunk_bytes + _MAX_LOSS
        ):
            raise ItemError(f"a chunk of {chunk.size} bytes cannot hold {layout.chunk_bytes}")
        number = layout.number(corner)
        layout.offsets[number], layout.sizes[number] = chunk.byte_offset, chunk.size
        layout.masks[number] = chunk.filter_mask

    found.id.chunk_iter(note)
    if not labels and (layout.offsets < 0).any():
        raise ItemError(f"chunks of {found.name} are missing")
    return layout


def _unfiltered(data: bytes, which: int, layout: _Layout) -> bytes:
    """Undo a filter of a chunk."""
    import imagecodecs

    most = layout.chunk_bytes
    if which == _SHUFFLE:
        # Bytes that fill no whole value stay as they are.
        width = layout.stored.itemsize
        count = len(data) // width
        planes = np.frombuffer(data, np.uint8, count * width).reshape(width, count)
        return planes.T.tobytes() + data[count * width :]
    if which == _FLETCHER:
        data, checksum = data[:-4], int.from_bytes(data[-4:], "little")
        if len(data) < 1 or imagecodecs.h5checksum_fletcher32(data) != checksum:
            raise ItemError("the checksum of a chunk is wrong")
        return data
    decode = imagecodecs.lzf_decode if which == _LZF else imagecodecs.deflate_decode
    return bytes(decode(data, out=most + 4))


def _given(stored: np.dtype[Any]) -> np.dtype[Any]:
    if stored in (np.uint8, np.int16, np.uint16):
        return stored
    return np.dtype(np.int16 if stored == np.int8 else np.float32)


def is_hdf5(file: BinaryIO) -> bool:
    """Look for the signature: at the start, or behind a user block of 512 bytes, 1024, and so on.

    Args:
        file: The file.
    """
    for place in (0, *(1 << power for power in range(9, 21))):
        file.seek(place)
        if file.read(8) == b"\x89HDF\r\n\x1a\n":
            return True
    return False


def _named(file: Any, name: str) -> Any:  # noqa: ANN401 - h5py is imported late
    """Follow a path, link by link."""
    import h5py

    at = file
    parts = deque(part for part in name.split("/") if part and part != ".")
    for _ in range(256):
        if not parts:
            break
        part = parts.popleft()
        link = at.get(part, getlink=True) if isinstance(at, h5py.Group) else None
        if link is None:
            raise ItemError(f"no data set {name!r}; it has {_listed(file)}")
        if isinstance(link, h5py.ExternalLink):
            raise ItemError(f"{name!r} is a link to another file; give that file")
        if isinstance(link, h5py.SoftLink):
            target = link.path
            if target.startswith("/"):
                at = file
            parts.extendleft(reversed([p for p in target.split("/") if p and p != "."]))
            continue
        at = at[part]
    else:
        raise ItemError(f"{name!r} is a link to itself")
    if not isinstance(at, h5py.Dataset):
        raise ItemError(f"{name!r} is no data set; it has {_listed(file)}")
    return at


def _datasets(file: Any) -> Iterator[Any]:  # noqa: ANN401 - h5py is imported late
    """Walk all data sets below hard links, each once."""
    import h5py

    seen: set[int] = set()
    waiting = deque([file["/"]])
    while waiting:
        group = waiting.popleft()
        for name in group:
            link = group.get(name, getlink=True)
            if not isinstance(link, h5py.HardLink):
                continue
            found = group[name]
            address = h5py.h5o.get_info(found.id).addr
            if address in seen:
                continue
            seen.add(address)
            if len(seen) > _MAX_OBJECTS:
                raise ItemError(f"more than {_MAX_OBJECTS} objects; name one by option dataset")
            if isinstance(found, h5py.Group):
                waiting.append(found)
            elif isinstance(found, h5py.Dataset):
                yield found


def _listed(file: Any) -> str:  # noqa: ANN401 - h5py is imported late
    named = [f"{d.name} {d.shape} {d.dtype}" for d in _datasets(file)]
    more = f" and {len(named) - _MAX_LISTED} more" if len(named) > _MAX_LISTED else ""
    return ", ".join(named[:_MAX_LISTED]) + more if named else "none"


def _only(file: Any, *, labels: bool) -> Any:  # noqa: ANN401 - h5py is imported late
    kinds = "iub" if labels else "iufb"
    found = [d for d in _datasets(file) if d.ndim == 3 and d.dtype.kind in kinds]
    if len(found) != 1:
        option = "mask_dataset" if labels else "dataset"
        raise ItemError(
            f"{len(found)} data sets of three dimensions; name one by the option {option}: "
            + _listed(file)
        )
    return found[0]


def _check(found: Any) -> None:  # noqa: ANN401 - as above
    """Refuse what is no stack of numbers in this file."""
    import h5py

    name, shape, dtype = found.name, found.shape, found.dtype
    if shape is None or len(shape) != 3 or min(shape) < 1:
        raise ItemError(f"{name} has shape {shape}; (sections, y, x) was expected")
    if dtype.kind not in "iufb" or dtype.itemsize > 8:
        raise ItemError(f"{name} holds {dtype}; numbers were expected")
    stored = found.id.get_type()
    while isinstance(stored, h5py.h5t.TypeEnumID):  # h5py's truth values, and numbers with names
        stored = stored.get_super()
    if stored.get_size() != dtype.itemsize or stored.get_precision() != 8 * dtype.itemsize:
        raise ItemError(f"{name} holds numbers of {stored.get_precision()} bits; 8, 16, 32 or 64")
    if found.is_virtual:
        raise ItemError(f"{name} is a virtual data set, made of other files; give those")
    if found.external:
        raise ItemError(f"{name} keeps its values in another file; make a copy that holds them")


def _filters(found: Any) -> tuple[int, ...]:  # noqa: ANN401 - as above
    plist = found.id.get_create_plist()
    numbers = tuple(plist.get_filter(i)[0] for i in range(plist.get_nfilters()))
    unknown = [number for number in numbers if number not in _FILTERS]
    if unknown:
        raise ItemError(
            f"{found.name} is compressed by filter {unknown[0]} of HDF5, which is not read; only "
            f"{', '.join(_FILTERS.values())} are"
        )
    if len(set(numbers)) < len(numbers):
        raise ItemError(f"{found.name} is compressed by one filter several times over")
    return numbers


def _spacing(found: Any, file: Any) -> tuple[float, float, float] | None:  # noqa: ANN401
    for holder in (found, file):
        unit = _text(holder, "units") or _text(holder, "unit")
        scale = MM_OF_UNIT.get((unit or "").strip().lower())
        for name, otherwise in (
            ("resolution", 1e-6),
            ("voxel_size", 1e-6),
            ("element_size_um", 1e-3),
            ("spacing", None),
        ):
            values = _three(holder, name)
            used = 1e-3 if name == "element_size_um" else scale if unit else otherwise
            if values is not None and used is not None:
                return values[0] * used, values[1] * used, values[2] * used
    return None


def _three(holder: Any, name: str) -> tuple[float, float, float] | None:  # noqa: ANN401
    import h5py

    if name not in holder.attrs:
        return None
    attribute = h5py.h5a.open(holder.id, name.encode())
    if attribute.shape != (3,) or attribute.dtype.kind not in "iuf":
        return None
    z, y, x = (float(value) for value in holder.attrs[name])
    return (z, y, x) if all(0 < side < 1e12 for side in (z, y, x)) else None


def _text(holder: Any, name: str) -> str | None:  # noqa: ANN401 - as above
    import h5py

    if name not in holder.attrs:
        return None
    attribute = h5py.h5a.open(holder.id, name.encode())
    if attribute.shape not in ((), (1,), (3,)) or attribute.get_storage_size() > 1 << 16:
        return None
    value = holder.attrs[name]
    if isinstance(value, np.ndarray) and value.size:
        value = value.ravel()[0]
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
