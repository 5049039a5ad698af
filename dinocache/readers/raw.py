"""Bytes of volumes: bounded reading, straight into the array that is kept.

A header's claim is held against the file before anything is allocated. What is read is converted
block by block on its way, so that no second copy of a volume is ever in memory.
"""

import bz2
import zlib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from dinocache.errors import ItemError, one_line
from dinocache.readers.contract import Labels, translated

__all__ = [
    "Encoding",
    "RawVoxels",
    "inflated",
    "smallest_integers",
]

Encoding = Literal["raw", "gzip", "zlib", "bzip2"]

_MOST_EXPANSION = {"gzip": 1100, "zlib": 1100, "bzip2": 200_000}
"""Deflate makes at most 1032 bytes of one (zlib's technical notes), bzip2 some 100,000 of a run."""
_MOST_BYTES = 8 << 30
_BLOCK = 1 << 22
_TRAILING = 1 << 16
"""Bytes that may follow the last voxel of a compressed stream: padding, not another volume."""


class _Stream(Protocol):
    def readinto(self, buffer: memoryview, /) -> int | None: ...
    def close(self) -> None: ...


def inflated(data: bytes, *, window_bits: int, limit: int) -> bytes:
    """Inflate a whole deflate stream, to a bounded size.

    Args:
        data: The stream.
        window_bits: As zlib takes them; -15 for a stream without header.
        limit: Bytes that may come of it.

    Raises:
        ItemError: If more would come, or it is damaged or cut short.
    """
    stream = zlib.decompressobj(window_bits)
    try:
        content = stream.decompress(data, limit)
    except zlib.error as exc:
        raise ItemError(f"its compressed data are damaged: {one_line(exc)}") from exc
    if stream.unconsumed_tail:
        raise ItemError(f"its compressed data hold more than {limit:,} bytes")
    if not stream.eof:
        raise ItemError("its compressed data are cut short")
    return content


@dataclass(frozen=True, kw_only=True)
class RawVoxels:
    """Where the voxels of a file lie, and as what.

    In the file's order, fastest first: component, i, j, k, repeat.

    Attributes:
        path: The file.
        offset: First byte of them in the file.
        lead: Bytes to pass over in what comes of the compressed stream there.
        encoding: How the bytes are packed.
        stored: Their type, with its byte order.
        shape: (I, J, K).
        repeats: How many such grids follow one another.
        components: Values a voxel, next to one another.
        is_colour: Whether components are red, green, blue (and alpha, which is left out) of one
            volume; else each is a volume.
        slope: What a stored value is multiplied by.
        intercept: What is added then.
    """

    path: Path
    offset: int
    lead: int = 0
    encoding: Encoding
    stored: np.dtype[Any]
    shape: tuple[int, int, int]
    repeats: int = 1
    components: int = 1
    is_colour: bool = False
    slope: float = 1
    intercept: float = 0

    def __post_init__(self) -> None:
        if min(*self.shape, self.repeats, self.components) < 1:
            raise ItemError(f"its header claims {self.shape} voxels, {self.repeats} times")
        if self.components > 1 and self.repeats > 1 and not self.is_colour:
            raise ItemError(f"{self.components} values a voxel at {self.repeats} times: five axes")
        if not (np.isfinite(self.slope) and np.isfinite(self.intercept)):
            raise ItemError(f"its header rescales by {self.slope} and {self.intercept}")
        with translated("cannot be opened"):
            held = self.path.stat().st_size
        claim = self.lead + self._grid_values * self.repeats * self.stored.itemsize
        if self.encoding == "raw":
            if self.offset < 0 or self.offset + claim > held:
                raise ItemError(
                    f"its header claims {claim:,} bytes of voxels from byte {self.offset:,} on; "
                    f"the file has {held:,} bytes"
                )
        elif claim > min(held * _MOST_EXPANSION[self.encoding], _MOST_BYTES):
            raise ItemError(
                f"its header claims {claim:,} bytes of voxels, more than {held:,} compressed bytes "
                f"can hold, or more than {_MOST_BYTES:,}"
            )

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of what `pixels` gives; it follows from the header alone."""
        return _decoded_type(self.stored, self.slope, self.intercept)

    @property
    def volumes(self) -> int:
        """How many volumes it holds."""
        return self.repeats if self.is_colour else self.repeats * self.components

    @property
    def channels(self) -> int:
        """Channels of a volume: 3 for colours, else 1."""
        return 3 if self.is_colour else 1

    @property
    def value_range(self) -> tuple[float, float] | None:
        """What the stored type allows, rescaled; None for floats and long integers."""
        if self.stored.kind not in "iub" or self.stored.itemsize > 2:
            return None
        limits = np.iinfo(self.stored) if self.stored.kind != "b" else np.iinfo(np.uint8)
        ends = (limits.min * self.slope, limits.max * self.slope)
        return min(ends) + self.intercept, max(ends) + self.intercept

    @property
    def _grid_values(self) -> int:
        i, j, k = self.shape
        return i * j * k * self.components

    def pixels(self, picks: Sequence[int]) -> npt.NDArray[Any]:
        """Decode some volumes.

        Args:
            picks: Which, ascending.

        Returns:
            (volumes, C, K, J, I) of `dtype`, a view of what was read.
        """
        return self._read(picks, self.dtype, integral=False)

    def labels(self, picks: Sequence[int]) -> Labels:
        """Decode some volumes of a label map.

        Args:
            picks: Which, ascending.

        Returns:
            (volumes, C, K, J, I), the smallest integers that hold them.

        Raises:
            ItemError: If values are no whole numbers, or damaged.
        """
        plain = self.stored.kind in "iub" and self.slope == 1 and self.intercept == 0
        if not plain:
            return smallest_integers(self._read(picks, np.dtype(np.int32), integral=True))
        kept = np.dtype(np.uint8) if self.stored.kind == "b" else self.stored.newbyteorder("=")
        return smallest_integers(self._read(picks, kept, integral=False))

    def _read(
        self, picks: Sequence[int], dtype: np.dtype[Any], *, integral: bool
    ) -> npt.NDArray[Any]:
        i, j, k = self.shape
        spread = self.components > 1 and not self.is_colour
        grids = [0] if spread else picks
        with ExitStack() as stack, translated("cannot be decoded"):
            out = np.empty((len(grids), self._grid_values), dtype)
            stream = self._open(stack)
            place = 0
            for slot, grid in enumerate(grids):
                _skip(stream, (grid - place) * self._grid_values * self.stored.itemsize)
                self._fill(stream, out[slot], integral=integral)
                place = grid + 1
            if self.encoding != "raw" and place == self.repeats:
                _finish(stream)
        voxels = out.reshape(len(grids), k, j, i, self.components)
        if spread:
            one_each = voxels.transpose(4, 0, 1, 2, 3)
            return one_each if len(picks) == self.components else one_each[list(picks)]
        return voxels.transpose(0, 4, 1, 2, 3)[:, : self.channels]

    def _open(self, stack: ExitStack) -> _Stream:
        file = stack.enter_context(self.path.open("rb"))
        file.seek(self.offset)
        stream: _Stream
        if self.encoding == "raw":
            stream = file
        elif self.encoding == "gzip":
            from isal import igzip

            stream = igzip.IGzipFile(fileobj=file, mode="rb")
        elif self.encoding == "zlib":
            stream = _ZlibStream(file)
        else:
            stream = bz2.BZ2File(file)
        _skip(stream, self.lead)
        return stream

    def _fill(self, stream: _Stream, out: npt.NDArray[Any], *, integral: bool) -> None:
        """Fill a flat array from the stream, converting on the way."""
        native = self.stored.newbyteorder("=")
        plain = self.slope == 1 and self.intercept == 0 and not integral
        if plain and (out.dtype == native or (native.kind == "b" and out.dtype == np.uint8)):
            _read_all(stream, _bytes_of(out))
            if self.stored.isnative is False:
                out.byteswap(inplace=True)
            return
        step = max(1, _BLOCK // self.stored.itemsize)
        scratch = np.empty(min(step, out.size), self.stored)
        for start in range(0, out.size, step):
            block = scratch[: min(step, out.size - start)]
            _read_all(stream, _bytes_of(block))
            out[start : start + len(block)] = self._converted(block, integral=integral)

    def _converted(self, block: npt.NDArray[Any], *, integral: bool) -> npt.NDArray[Any]:
        if self.slope == 1 and self.intercept == 0:
            values = block
        else:
            # float64: 32-bit integers and slopes like 1e-3 lose nothing before the one rounding.
            values = block.astype(np.float64) * self.slope + self.intercept
        if not integral:
            return values
        whole: npt.NDArray[Any] = np.rint(values)
        if not np.array_equal(whole, values) or np.abs(whole).max(initial=0) >= 1 << 31:
            raise ItemError("a label map holds whole numbers; this one holds others")
        return whole


class _ZlibStream:
    """A zlib stream as a file: readinto, with bounded memory."""

    def __init__(self, file: Any) -> None:  # noqa: ANN401 - any binary file
        from isal import isal_zlib

        self._file = file
        self._inflate = isal_zlib.decompressobj()

    def readinto(self, buffer: memoryview, /) -> int:
        while not self._inflate.eof:
            packed = self._inflate.unconsumed_tail or self._file.read(1 << 18)
            content = self._inflate.decompress(packed, len(buffer))
            if content:
                buffer[: len(content)] = content
                return len(content)
            if not packed:
                raise EOFError("its compressed data are cut short")
        return 0

    def close(self) -> None:
        self._file.close()


def smallest_integers(labels: npt.NDArray[Any]) -> Labels:
    """Bring labels to the smallest integer type that holds them all."""
    low, high = int(labels.min()), int(labels.max())
    kept = np.promote_types(np.min_scalar_type(low), np.min_scalar_type(high))
    return labels.astype(kept, copy=False)


def _decoded_type(stored: np.dtype[Any], slope: float, intercept: float) -> np.dtype[Any]:
    if stored.kind == "b":
        stored = np.dtype(np.uint8)
    float32 = np.dtype(np.float32)
    if stored.kind not in "iu" or stored.itemsize > 2 or slope != 1 or intercept % 1:
        return float32
    if intercept == 0:
        return np.dtype(np.int16) if stored == np.int8 else stored.newbyteorder("=")
    low, high = np.iinfo(stored).min + intercept, np.iinfo(stored).max + intercept
    for kept in (np.int16, np.uint16):
        if np.iinfo(kept).min <= low and high <= np.iinfo(kept).max:
            return np.dtype(kept)
    return float32


def _bytes_of(array: npt.NDArray[Any]) -> memoryview:
    return array.view(np.uint8).data


def _read_all(stream: _Stream, buffer: memoryview) -> None:
    done = 0
    while done < len(buffer):
        # In pieces: gzip's readinto makes a copy of what it gives.
        got = stream.readinto(buffer[done : done + _BLOCK])
        if not got:
            raise ItemError(
                f"its voxels end early: {len(buffer) - done:,} bytes are missing of a block of "
                f"{len(buffer):,}"
            )
        done += got


def _skip(stream: _Stream, count: int) -> None:
    scratch = memoryview(bytearray(min(count, _BLOCK)))
    while count > 0:
        got = min(count, len(scratch))
        _read_all(stream, scratch[:got])
        count -= got


def _finish(stream: _Stream) -> None:
    """Read to the end of a compressed stream, which checks its checksum."""
    scratch = memoryview(bytearray(_TRAILING))
    left = 0
    while got := stream.readinto(scratch):
        left += got
        if left > _TRAILING:
            raise ItemError(
                f"its compressed data go on for more than {_TRAILING:,} bytes behind the last voxel"
            )
