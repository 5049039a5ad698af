"""The compressed tiles of a TIFF file: its directory, held against the file, and regions of it.

tifffile reads the directory and knows how each tile is compressed; tiles are read by their offset,
so threads share one file without a lock, decoded, and kept in a cache of a bounded size: tiles of
the reader straddle those of the file, and each would be decoded up to four times. Strips count as
tiles as wide as the picture.
"""

import logging
import math
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dinocache.errors import ItemError
from dinocache.readers.contract import translated

__all__ = ["MAX_PX_PER_BYTE", "TiffPage", "TiffTiles", "is_tiff", "read_pages"]

MAX_PX_PER_BYTE = 10_000
"""A white tile of 1024 px squared by zstd takes 2,000; a header that claims more lies."""
_MAX_PAGES = 1024
_MAX_TILE_PX = 1 << 26
"""8192 px squared. OpenSlide ends the process when it has no memory for a tile."""
_MAX_SEGMENT_PX = 1 << 31
"""Of a strip of a plain TIFF file, which may be the whole picture."""
_CACHE_BYTES = 256 << 20
"""Three rows of tiles of 256 px, 100,000 px wide, are 230 MB."""
_MOST_EXPANSION = 4
"""Compressed, a tile of noise grows by a little; a larger one is not what it says."""
_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_JPEG = (7,)
_LOSSLESS = (1, 5, 8, 32773, 32946, 50000)
_GREY, _RGB, _YCBCR = 1, 2, 6

Pixels = npt.NDArray[np.uint8]
Decode = Callable[..., tuple[Any, Any, Any]]


@dataclass(frozen=True, kw_only=True, eq=False)
class TiffPage:
    """A picture of a TIFF file.

    Attributes:
        size: (width, height), px.
        tile: (width, height) of a tile, px; of strips, the picture's width.
        tiled: Tiles, not strips.
        reduced: Whether it says of itself that it is a smaller version of another.
        um_per_px: (x, y), where the file gives a resolution with a unit.
        why_not: What hinders its decoding here; None if nothing does.
        damage: What is wrong with the places of its tiles; None if nothing is, or they were not
            looked at, as it is not decoded here.
        offsets: (n_tiles,) bytes from the file's beginning.
        byte_counts: (n_tiles,); 0 is a tile that is not there.
        decode: tifffile's decoder of one tile.
        jpeg_tables: What the tiles' JPEG streams share.
    """

    size: tuple[int, int]
    tile: tuple[int, int]
    tiled: bool
    reduced: bool
    um_per_px: tuple[float, float] | None
    why_not: str | None
    damage: str | None
    offsets: npt.NDArray[np.int64]
    byte_counts: npt.NDArray[np.int64]
    decode: Decode
    jpeg_tables: bytes | None
    compression: int

    @property
    def columns(self) -> int:
        """Tiles side by side."""
        return -(-self.size[0] // self.tile[0])


def is_tiff(path: Path) -> bool:
    """Tell a TIFF file (classic or BigTIFF) by its first bytes."""
    with path.open("rb") as file:
        return file.read(4) in _MAGIC


def read_pages(path: Path) -> list[TiffPage]:
    """Read the directory of a TIFF file, no pixel.

    Args:
        path: The file.

    Returns:
        Its pages, and behind each those that its SubIFDs tag names.

    Raises:
        ItemError: If it is damaged, or claims what cannot be.
    """
    import tifffile

    # tifffile tells of whatever is odd in a file by its logger, which prints where nobody listens.
    logging.getLogger("tifffile").addHandler(logging.NullHandler())
    file_bytes = path.stat().st_size
    pages: list[TiffPage] = []
    with translated("its TIFF directory is damaged"), tifffile.TiffFile(path) as file:
        for page in _walk(file.pages):
            if len(pages) == _MAX_PAGES:
                raise ItemError(f"it has more than {_MAX_PAGES} pages")
            pages.append(_describe(page, file_bytes))
    return pages


def _walk(pages: Any) -> Any:  # noqa: ANN401 - tifffile is imported late
    for page in pages:
        yield page
        yield from page.pages or ()


def _describe(page: Any, file_bytes: int) -> TiffPage:  # noqa: ANN401 - tifffile is imported late
    width, height = int(page.imagewidth), int(page.imagelength)
    tiled = bool(page.is_tiled)
    if tiled:
        tile = int(page.tilewidth), int(page.tilelength)
    else:
        tile = width, min(height, int(page.rowsperstrip))
    if min(width, height, *tile) < 1:
        raise ItemError(f"a page claims {width} x {height} px in tiles of {tile[0]} x {tile[1]}")
    if width * height > MAX_PX_PER_BYTE * file_bytes:
        raise ItemError(f"a page claims {width} x {height} px; the file has {file_bytes} bytes")
    if tile[0] * tile[1] > (_MAX_TILE_PX if tiled else _MAX_SEGMENT_PX):
        raise ItemError(f"a page claims tiles of {tile[0]} x {tile[1]} px")
    compression = int(page.compression)
    offsets = np.array(page.dataoffsets, np.int64).reshape(-1)
    byte_counts = np.array(page.databytecounts, np.int64).reshape(-1)
    why_not = _why_not(page)
    return TiffPage(
        size=(width, height),
        tile=tile,
        tiled=tiled,
        reduced=bool(int(page.subfiletype) & 1),
        um_per_px=_um_per_px(page),
        why_not=why_not,
        damage=None if why_not else _damage(page, offsets, byte_counts, tile, file_bytes),
        offsets=offsets,
        byte_counts=byte_counts,
        decode=page.decode,
        jpeg_tables=page.jpegtables if compression in _JPEG else None,
        compression=compression,
    )


def _um_per_px(page: Any) -> tuple[float, float] | None:  # noqa: ANN401 - tifffile comes late
    um = {2: 25400.0, 3: 10000.0}.get(int(page.tags.valueof("ResolutionUnit", 2)))
    found = []
    for name in ("XResolution", "YResolution"):
        above, below = page.tags.valueof(name, (0, 0))
        if um is None or not above or not below:
            return None
        found.append(um * below / above)
    return found[0], found[1]


def _why_not(page: Any) -> str | None:  # noqa: ANN401 - tifffile is imported late
    """Say why a page cannot be decoded here."""
    photometric, samples = int(page.photometric), int(page.samplesperpixel)
    compression = int(page.compression)
    if (photometric, samples) not in ((_GREY, 1), (_RGB, 3), (_YCBCR, 3)):
        return f"its pixels are neither grey nor RGB (photometric {photometric}, {samples} samples)"
    if page.bitspersample != 8 or page.dtype != np.uint8:
        return f"its samples have {page.bitspersample} bits, not 8"
    if int(page.planarconfig) != 1 and samples > 1:
        return "its colours are stored apart (planar)"
    if int(page.imagedepth) != 1:
        return f"it has a depth of {page.imagedepth}"
    if int(page.tags.valueof("Orientation", 1)) != 1:
        return "it is stored turned or mirrored"
    if compression not in (*_JPEG, *_LOSSLESS):
        return f"its compression {compression} is not read here"
    if photometric == _YCBCR and compression not in _JPEG:
        return "its YCbCr pixels are not compressed as JPEG"
    return None


def _damage(
    page: Any,  # noqa: ANN401 - tifffile is imported late
    offsets: npt.NDArray[np.int64],
    byte_counts: npt.NDArray[np.int64],
    tile: tuple[int, int],
    file_bytes: int,
) -> str | None:
    """Hold the places of the tiles against the file."""
    expected = math.ceil(page.imagewidth / tile[0]) * math.ceil(page.imagelength / tile[1])
    if len(offsets) != expected or len(byte_counts) != expected:
        return f"it has {expected} tiles, and the places of {len(offsets)}"
    if (offsets < 0).any() or (byte_counts < 0).any():
        return "the places of its tiles are damaged"
    if (offsets > file_bytes - byte_counts).any():
        return "it is cut short: tiles lie behind the file's end"
    if (byte_counts > _MOST_EXPANSION * 3 * tile[0] * tile[1] + (1 << 16)).any():
        return "tiles claim more bytes than they have pixels"
    return None


class TiffTiles:
    """Regions of the pages of one file. Threads may share it.

    Attributes:
        pages: Those it was made of; keys of the cache.
    """

    def __init__(self, path: Path, pages: list[TiffPage]) -> None:
        self.pages = pages
        strips = [page.tile[0] * page.tile[1] * 3 for page in pages if not page.tiled]
        self._cache = _Cache(max([_CACHE_BYTES, *(2 * size for size in strips)]))
        self._file = path.open("rb", buffering=0)
        self._lock = threading.Lock()

    def region(self, index: int, x: int, y: int, width: int, height: int) -> Pixels:
        """Decode a rectangle of a page.

        Args:
            index: Of the page.
            x: Left edge, px of the page.
            y: Upper edge, px of the page.
            width: Of the region, px; it lies within the page.
            height: Of the region, px.

        Returns:
            (height, width, 3); white where the file has no tile.

        Raises:
            ItemError: If a tile is damaged.
        """
        page = self.pages[index]
        wide, high = page.tile
        out = np.empty((height, width, 3), np.uint8)
        for row in range(y // high, (y + height - 1) // high + 1):
            above = max(row * high, y)
            below = min((row + 1) * high, y + height)
            for column in range(x // wide, (x + width - 1) // wide + 1):
                left = max(column * wide, x)
                right = min((column + 1) * wide, x + width)
                tile = self._tile(index, row * page.columns + column)
                out[above - y : below - y, left - x : right - x] = (
                    255
                    if tile is None
                    else tile[
                        above - row * high : below - row * high,
                        left - column * wide : right - column * wide,
                    ]
                )
        return out

    def close(self) -> None:
        """Close the file and drop what was decoded."""
        self._cache.clear()
        self._file.close()

    def _tile(self, index: int, number: int) -> Pixels | None:
        page = self.pages[index]
        if page.byte_counts[number] == 0:
            return None
        return self._cache.get((index, number), lambda: self._decode(page, number))

    def _decode(self, page: TiffPage, number: int) -> Pixels:
        size = int(page.byte_counts[number])
        data = self._read(size, int(page.offsets[number]))
        if len(data) < size:
            raise ItemError(f"it is cut short: a tile of {size} bytes ends after {len(data)}")
        if page.compression in _JPEG:
            claimed = _jpeg_size(data)
            if claimed is None or claimed[0] > page.tile[0] or claimed[1] > page.tile[1]:
                raise ItemError(f"tile {number} is no JPEG of {page.tile[0]} x {page.tile[1]} px")
        with translated(f"tile {number} cannot be decoded"):
            decoded, _, _ = page.decode(data, number, jpegtables=page.jpeg_tables)
        found: Pixels = np.asarray(decoded)[0]  # (Y, X, samples), the depth of 1 gone
        high = min(page.tile[1], page.size[1] - number // page.columns * page.tile[1])
        wide = min(page.tile[0], page.size[0] - number % page.columns * page.tile[0])
        if found.dtype != np.uint8 or found.shape[0] < high or found.shape[1] < wide:
            raise ItemError(f"tile {number} has the shape {found.shape}, not that of its page")
        return found

    def _read(self, size: int, offset: int) -> bytes:
        with translated("cannot be read"):
            if hasattr(os, "pread"):
                return os.pread(self._file.fileno(), size, offset)
            with self._lock:  # Windows
                self._file.seek(offset)
                return self._file.read(size)


class _Cache:
    """The arrays used last, of bounded size together; each is made once, by one thread."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._bytes = 0
        self._held: OrderedDict[tuple[int, int], Future[Pixels]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: tuple[int, int], make: Callable[[], Pixels]) -> Pixels:
        with self._lock:
            promise = self._held.get(key)
            if promise is not None:
                self._held.move_to_end(key)
            else:
                mine: Future[Pixels] = Future()
                self._held[key] = mine
        if promise is not None:
            return promise.result()
        try:
            made = make()
        except BaseException as exc:
            with self._lock:
                self._held.pop(key, None)
            mine.set_exception(exc)
            raise
        mine.set_result(made)
        self._shrink(made.nbytes)
        return made

    def _shrink(self, added: int) -> None:
        with self._lock:
            self._bytes += added
            while self._bytes > self._limit and len(self._held) > 1:
                key, oldest = next(iter(self._held.items()))
                if not oldest.done():
                    break  # it is being made, by another thread; it counts when it is there
                del self._held[key]
                self._bytes -= oldest.result().nbytes

    def clear(self) -> None:
        with self._lock:
            self._held.clear()
            self._bytes = 0


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Give the (width, height) that a JPEG stream's frame header claims."""
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            high, wide = data[at + 5 : at + 7], data[at + 7 : at + 9]
            return int.from_bytes(wide, "big"), int.from_bytes(high, "big")
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big") if marker != 0xFF else 1
    return None
