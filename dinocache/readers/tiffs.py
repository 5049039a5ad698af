"""TIFF and BigTIFF: the structure of a file, checked before a codec sees a byte, and its pages.

The walk over the directories is our own, so that each offset, count and size is held against the
file; the codecs are imagecodecs'. Pages that are reduced copies of others, or transparency masks,
are left out (TIFF 6.0, NewSubfileType and SubfileType).
"""

import functools
import itertools
import math
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt

from dinocache.errors import ItemError

__all__ = ["Page", "decode_page", "first_orientation", "read_pages"]

Array = npt.NDArray[Any]

_MAX_PAGES = 1 << 20
_MAX_ENTRIES = 4096
_MAX_OVERLAP = 8
"""Times its own size that a file's directories may add up to: pages share a few values."""
_MAX_TEXT = 1 << 24
"""Bytes of a description: OME's can be some megabytes."""
_TYPES = {
    1: "B", 2: "s", 3: "H", 4: "I", 5: "II", 6: "b", 7: "s", 8: "h", 9: "i", 10: "ii", 11: "f",
    12: "d", 13: "I", 16: "Q", 17: "q", 18: "Q",
}  # fmt: skip
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 256, 257, 258, 259, 262
_FILL_ORDER, _DESCRIPTION, _STRIPS, _ORIENTATION, _SAMPLES = 266, 270, 273, 274, 277
_ROWS_PER_STRIP, _STRIP_BYTES, _X_RESOLUTION, _Y_RESOLUTION = 278, 279, 282, 283
_PLANAR, _T4_OPTIONS, _UNIT, _PREDICTOR, _COLOURS = 284, 292, 296, 317, 320
_TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_BYTES, _EXTRA, _FORMAT = 322, 323, 324, 325, 338, 339
_TABLES, _SUBFILE, _OLD_SUBFILE, _DEPTH = 347, 254, 255, 32997
_WANTED = {
    _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER, _DESCRIPTION, _STRIPS,
    _ORIENTATION, _SAMPLES, _ROWS_PER_STRIP, _STRIP_BYTES, _X_RESOLUTION, _Y_RESOLUTION, _PLANAR,
    _T4_OPTIONS, _UNIT, _PREDICTOR, _COLOURS, _TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_BYTES,
    _EXTRA, _FORMAT, _TABLES, _SUBFILE, _OLD_SUBFILE, _DEPTH,
}  # fmt: skip

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, MASK, CMYK, YCBCR = 0, 1, 2, 3, 4, 5, 6
_PHOTOMETRICS = {
    8: "L*a*b*", 9: "ICC L*a*b*", 10: "ITU L*a*b*", 32803: "colour filter array",
    32844: "LogL", 32845: "LogLuv", 34892: "linear raw",
}  # fmt: skip

_NONE, _JPEG = 1, 7
_COMPRESSIONS = {
    1: ("none", 1),
    2: ("CCITT RLE", 1 << 16),
    3: ("CCITT T.4", 1 << 16),
    4: ("CCITT T.6", 1 << 16),
    5: ("LZW", 2600),
    7: ("JPEG", 3 << 12),
    8: ("Deflate", 1040),
    32946: ("Deflate", 1040),
    32773: ("PackBits", 64),
    34925: ("LZMA", 1 << 16),
    34926: ("Zstandard", 1 << 16),
    50000: ("Zstandard", 1 << 16),
    34927: ("WebP", 1 << 16),
    50001: ("WebP", 1 << 16),
    33003: ("JPEG 2000", 1 << 16),
    33004: ("JPEG 2000", 1 << 16),
    33005: ("JPEG 2000", 1 << 16),
    34712: ("JPEG 2000", 1 << 16),
}
"""Number -> name, and how many bytes one encoded byte can stand for at most: what the codec's
format allows (Deflate 1032), rounded up; 65,536 where that is more than any real picture needs."""
_PICTURES = {"JPEG", "WebP", "JPEG 2000"}
"""Codecs that bring their own size and colours along."""


@dataclass(frozen=True, kw_only=True)
class Page:
    """One picture of a TIFF file, its claims checked.

    Attributes:
        order: Byte order, as numpy writes it.
        height: px.
        width: px.
        samples: Values a px, extra ones included.
        dtype: Of the samples, native.
        bits: Of a sample; at most those of `dtype`.
        photometric: What the samples mean; the numbers are TIFF's.
        compression: A name of `_COMPRESSIONS`.
        predictor: 1 none, 2 horizontal, 3 floating point.
        planar: Whether each sample has a plane of its own.
        lsb_first: Whether bits are filled from the least.
        orientation: 1 to 8.
        alpha: Whether the last sample is said to be alpha.
        segment: (height, width) of strips or tiles.
        tiled: Whether they are tiles.
        offsets: Of the segments.
        counts: Bytes of the segments.
        tables: JPEG tables that the segments share.
        colours: (3, 2 ** bits) uint8, of palettes.
        t4_options: Of CCITT T.4.
        description: ImageDescription.
        resolution: px a unit, x and y; 0 if not said.
        unit: TIFF's ResolutionUnit: 1 none, 2 inch, 3 cm.
    """

    order: Literal["<", ">"]
    height: int
    width: int
    samples: int
    dtype: np.dtype[Any]
    bits: int
    photometric: int
    compression: str
    predictor: int
    planar: bool
    lsb_first: bool
    orientation: int
    alpha: bool
    segment: tuple[int, int]
    tiled: bool
    offsets: tuple[int, ...]
    counts: tuple[int, ...]
    tables: bytes | None
    colours: npt.NDArray[np.uint8] | None
    t4_options: int
    description: str
    resolution: tuple[float, float]
    unit: int

    @property
    def layout(self) -> tuple[object, ...]:
        """What pages of one stack share."""
        return self.height, self.width, self.samples, self.dtype, self.photometric, self.bits


def read_pages(file: BinaryIO) -> list[Page]:
    """Walk the directories of a TIFF file.

    Args:
        file: The file, readable and seekable.

    Returns:
        Its pages, at least one. ImageJ's files of one directory and many images are laid out.

    Raises:
        ItemError: If a claim does not hold against the file, or it is of a sort that is not read.
    """
    pages = []
    for tags, order in _directories(file):
        if _number(tags, _SUBFILE, 0) & 0b101 or _number(tags, _OLD_SUBFILE, 0) == 2:
            continue
        pages.append(_page(tags, order, _size(file)))
    if not pages:
        raise ItemError("a TIFF without a page")
    return _imagej(pages, _size(file)) if len(pages) == 1 else pages


def first_orientation(file: BinaryIO) -> int:
    """Read the Orientation of a TIFF structure, such as an EXIF block; 1 if it says none.

    Args:
        file: The structure, from its byte order on.

    Returns:
        1 to 8.
    """
    try:
        for tags, _ in _directories(file, {_ORIENTATION}):
            return _orientation(tags)
    except ItemError:  # a picture with a damaged EXIF block is shown as it lies
        pass
    return 1


def _orientation(tags: dict[int, tuple[Any, ...]]) -> int:
    found = _number(tags, _ORIENTATION, 1)
    return found if 1 <= found <= 8 else 1


def _size(file: BinaryIO) -> int:
    return file.seek(0, os.SEEK_END)


def _directories(
    file: BinaryIO, wanted: set[int] = _WANTED
) -> Iterator[tuple[dict[int, tuple[Any, ...]], Literal["<", ">"]]]:
    size = _size(file)
    file.seek(0)
    head = file.read(16)
    if head[:2] not in (b"II", b"MM") or len(head) < 8:
        raise ItemError("a TIFF's header was expected")
    order: Literal["<", ">"] = "<" if head[:2] == b"II" else ">"
    version = struct.unpack(order + "H", head[2:4])[0]
    if version == 43 and len(head) == 16 and struct.unpack(order + "HH", head[4:8]) == (8, 0):
        big, at = True, struct.unpack(order + "Q", head[8:])[0]
    elif version == 42:
        big, at = False, struct.unpack(order + "I", head[4:8])[0]
    else:
        raise ItemError(f"a TIFF of version {version}, not 42 or 43")
    seen: set[int] = set()
    left = _Budget(_MAX_OVERLAP * size + _MAX_TEXT)
    while at:
        if at in seen or len(seen) >= _MAX_PAGES:
            raise ItemError("its directories of pages form a circle, or are too many")
        seen.add(at)
        tags, at = _directory(file, size, at, order, big, wanted, left)
        yield tags, order


class _Budget:
    """Bytes that directories may still take: those that lie over one another would never end."""

    def __init__(self, n_bytes: int) -> None:
        self._left = n_bytes

    def take(self, n_bytes: int) -> None:
        self._left -= n_bytes
        if self._left < 0:
            raise ItemError("its directories lie over one another")


def _directory(
    file: BinaryIO,
    size: int,
    at: int,
    order: str,
    big: bool,
    wanted: set[int],
    left: _Budget,
) -> tuple[dict[int, tuple[Any, ...]], int]:
    entry = struct.Struct(order + ("HHQ8s" if big else "HHI4s"))
    counter, pointer = ("Q", "Q") if big else ("H", "I")
    head = _read(file, size, at, struct.calcsize(order + counter))
    n_entries = struct.unpack(order + counter, head)[0]
    if n_entries > _MAX_ENTRIES:
        raise ItemError(f"a directory of {n_entries} entries")
    n_bytes = n_entries * entry.size + struct.calcsize(order + pointer)
    left.take(n_bytes)
    body = _read(file, size, at + len(head), n_bytes)
    tags = {}
    for tag, kind, count, inline in entry.iter_unpack(body[: n_entries * entry.size]):
        if tag in wanted and kind in _TYPES:
            tags[tag] = _values(file, size, order, big, _TYPES[kind], count, inline, left)
    (following,) = struct.unpack(order + pointer, body[n_entries * entry.size :])
    return tags, following


def _values(
    file: BinaryIO,
    size: int,
    order: str,
    big: bool,
    code: str,
    count: int,
    inline: bytes,
    left: _Budget,
) -> tuple[Any, ...]:
    n_bytes = count * struct.calcsize("=" + code)
    if code == "s" and n_bytes > _MAX_TEXT:
        raise ItemError(f"a text of {n_bytes} bytes in its directory")
    left.take(n_bytes)
    if n_bytes > len(inline):
        offset = struct.unpack(order + ("Q" if big else "I"), inline)[0]
        inline = _read(file, size, offset, n_bytes)
    if code == "s":
        return (inline[:n_bytes],)
    if len(code) == 2:
        pairs = struct.unpack(f"{order}{2 * count}{code[0]}", inline[:n_bytes])
        return tuple(a / b if b else 0.0 for a, b in zip(pairs[::2], pairs[1::2], strict=True))
    return struct.unpack(f"{order}{count}{code}", inline[:n_bytes])


def _read(file: BinaryIO, size: int, at: int, n_bytes: int) -> bytes:
    if at + n_bytes > size:
        raise ItemError(f"{n_bytes} bytes at {at} were expected, the file has {size} in all")
    file.seek(at)
    found = file.read(n_bytes)
    if len(found) != n_bytes:
        raise ItemError("the file became shorter while it was read")
    return found


def _number(tags: dict[int, tuple[Any, ...]], tag: int, default: int) -> int:
    values = tags.get(tag)
    if not values:
        return default
    if not isinstance(values[0], int):
        raise ItemError(f"its tag {tag} holds no whole number")
    return values[0]


def _whole(tags: dict[int, tuple[Any, ...]], tag: int) -> tuple[int, ...]:
    values = tags.get(tag, ())
    if not all(isinstance(v, int) and v >= 0 for v in values):
        raise ItemError(f"its tag {tag} holds what is no count")
    return values


def _text(tags: dict[int, tuple[Any, ...]], tag: int) -> bytes:
    values = tags.get(tag)
    return values[0] if values and isinstance(values[0], bytes) else b""


def _page(tags: dict[int, tuple[Any, ...]], order: Literal["<", ">"], size: int) -> Page:
    height, width = _number(tags, _HEIGHT, 0), _number(tags, _WIDTH, 0)
    samples, depth = _number(tags, _SAMPLES, 1), _number(tags, _DEPTH, 1)
    if height < 1 or width < 1 or not 1 <= samples <= 1024 or depth != 1:
        raise ItemError(f"a page of {width} x {height} x {depth} px, {samples} values each")
    dtype, bits = _sample_type(tags, samples)
    photometric = _number(tags, _PHOTOMETRIC, BLACK_IS_ZERO)
    number = _number(tags, _COMPRESSION, _NONE)
    if number not in _COMPRESSIONS:
        raise ItemError(f"its compression, TIFF's number {number}, is not read")
    compression, ratio = _COMPRESSIONS[number]
    _check_meaning(photometric, compression, samples, bits)
    planar = _number(tags, _PLANAR, 1) == 2 and samples > 1
    tiled = _TILES in tags
    if tiled:
        segment = _number(tags, _TILE_HEIGHT, 0), _number(tags, _TILE_WIDTH, 0)
        offsets, counts = _whole(tags, _TILES), _whole(tags, _TILE_BYTES)
    else:
        segment = min(_number(tags, _ROWS_PER_STRIP, height), height), width
        offsets, counts = _whole(tags, _STRIPS), _whole(tags, _STRIP_BYTES)
    if min(segment) < 1 or segment[0] > 2 * height + 65536 or segment[1] > 2 * width + 65536:
        raise ItemError(f"segments of {segment[1]} x {segment[0]} px in {width} x {height} px")
    expected = math.ceil(height / segment[0]) * math.ceil(width / segment[1])
    expected *= samples if planar else 1
    line = -(-segment[1] * (1 if planar else samples) * bits // 8)
    if not counts and compression == "none" and expected == 1 and len(offsets) == 1:
        counts = (segment[0] * line,)  # old writers leave the one count out
    if len(offsets) < expected or len(counts) < expected:
        raise ItemError(
            f"{width} x {height} px in segments of {segment[1]} x {segment[0]} are {expected}, "
            f"it lists {min(len(offsets), len(counts))}"
        )
    offsets, counts = offsets[:expected], counts[:expected]
    _check_segments(offsets, counts, size, ratio * (1 if bits >= 8 else 8), segment[0] * line)
    extra = _whole(tags, _EXTRA)
    extra = extra[: samples - 1]
    colours = None
    if photometric == PALETTE:
        table = np.array(_whole(tags, _COLOURS), np.uint16)
        if samples != 1 or dtype.kind != "u" or bits > 16 or table.size != 3 << bits:
            raise ItemError(f"a palette of {table.size} values for {bits} bits")
        colours = (table.reshape(3, -1) >> 8).astype(np.uint8)
    resolution = [tags.get(tag, (0.0,)) for tag in (_X_RESOLUTION, _Y_RESOLUTION)]
    across, down = (float(r[0]) if r and isinstance(r[0], float | int) else 0.0 for r in resolution)
    return Page(
        order=order,
        height=height,
        width=width,
        samples=samples,
        dtype=dtype,
        bits=bits,
        photometric=photometric,
        compression=compression,
        predictor=_predictor(tags, compression, bits, dtype),
        planar=planar,
        lsb_first=_number(tags, _FILL_ORDER, 1) == 2,
        orientation=_orientation(tags),
        alpha=bool(extra) and extra[-1] in (1, 2),
        segment=segment,
        tiled=tiled,
        offsets=offsets,
        counts=counts,
        tables=_text(tags, _TABLES) or None,
        colours=colours,
        t4_options=_number(tags, _T4_OPTIONS, 0),
        description=_text(tags, _DESCRIPTION).split(b"\0")[0].decode("utf-8", "replace"),
        resolution=(across, down),
        unit=_number(tags, _UNIT, 2),
    )


def _sample_type(tags: dict[int, tuple[Any, ...]], samples: int) -> tuple[np.dtype[Any], int]:
    all_bits = _whole(tags, _BITS)[:samples] or (1,)
    formats = _whole(tags, _FORMAT)[:samples] or (1,)
    if len(set(all_bits)) > 1 or len(set(formats)) > 1:
        raise ItemError(f"its samples differ in type: {all_bits} bits, formats {formats}")
    bits, form = all_bits[0], formats[0]
    if form == 3 and bits in (16, 32, 64):
        return np.dtype(f"f{bits // 8}"), bits
    if form == 2 and bits in (8, 16, 32, 64):
        return np.dtype(f"i{bits // 8}"), bits
    if form in (1, 4) and (1 <= bits <= 16 or bits in (32, 64)):
        return np.dtype(f"u{1 if bits <= 8 else 2 if bits <= 16 else bits // 8}"), bits
    raise ItemError(f"samples of {bits} bits, TIFF's format {form}, are not read")


def _check_meaning(photometric: int, compression: str, samples: int, bits: int) -> None:
    if photometric in _PHOTOMETRICS:
        raise ItemError(f"its colours are {_PHOTOMETRICS[photometric]}; convert it to RGB or grey")
    if photometric > YCBCR or photometric < 0:
        raise ItemError(f"its colours, TIFF's photometric {photometric}, are not read")
    if photometric == YCBCR and compression != "JPEG" and compression not in _PICTURES:
        raise ItemError("its colours are YCbCr without JPEG; convert it to RGB")
    if photometric in (RGB, YCBCR) and samples < 3:
        raise ItemError(f"a colour image of {samples} values a px")
    if photometric == CMYK and (samples not in (4, 5) or bits != 8):
        raise ItemError(f"separated inks: {samples} of {bits} bits; only CMYK of 8 bits is read")
    if compression.startswith("CCITT") and (samples != 1 or bits != 1):
        raise ItemError(f"{compression} of {samples} values of {bits} bits")
    if compression in _PICTURES and bits not in (8, 16):
        raise ItemError(f"{compression} of {bits} bits is not read in a TIFF")


def _predictor(
    tags: dict[int, tuple[Any, ...]], compression: str, bits: int, dtype: np.dtype[Any]
) -> int:
    predictor = _number(tags, _PREDICTOR, 1)
    if compression in _PICTURES or compression.startswith("CCITT"):
        return 1
    known = {1: True, 2: bits in (8, 16, 32, 64) and dtype.kind in "iu", 3: dtype.kind == "f"}
    if not known.get(predictor, False):
        raise ItemError(f"its predictor {predictor} does not go with {bits}-bit {dtype.name}")
    return predictor


def _check_segments(
    offsets: tuple[int, ...], counts: tuple[int, ...], size: int, ratio: int, n_bytes: int
) -> None:
    for offset, count in zip(offsets, counts, strict=True):
        if count < 1:
            raise ItemError("a part of the picture was never written")
        if offset + count > size:
            raise ItemError(
                f"{count} bytes of pixels at {offset} were expected, the file has {size} in all"
            )
    # The last strip may be thinner than the others.
    if len(counts) > 1:
        counts = counts[:-1]
        least = min(counts) * ratio
    else:
        least = counts[0] * ratio
    if least < n_bytes:
        raise ItemError(f"a segment of {min(counts)} bytes cannot hold the {n_bytes} it claims")


def _imagej(pages: list[Page], size: int) -> list[Page]:
    """Lay out the images behind the one directory of a large ImageJ file."""
    page = pages[0]
    if not page.description.startswith("ImageJ="):
        return pages
    fields = dict(
        line.split("=", 1) for line in page.description.splitlines() if line.count("=") == 1
    )
    images = fields.get("images", "1")
    n_images = int(images) if images.isdecimal() and len(images) < 8 else 1
    if n_images == 1 or page.compression != "none":
        return pages
    n_bytes = page.height * -(-page.width * page.samples * page.bits // 8)
    starts = list(itertools.accumulate((page.offsets[0], *page.counts)))
    if list(page.offsets) != starts[:-1] or sum(page.counts) != n_bytes:
        raise ItemError("an ImageJ file of several images that do not lie one behind another")
    if page.offsets[0] + n_images * n_bytes > size:
        raise ItemError(f"it says that {n_images} images follow; the file ends before")
    one = replace(page, segment=(page.height, page.width), counts=(n_bytes,))
    return [replace(one, offsets=(page.offsets[0] + i * n_bytes,)) for i in range(n_images)]


def decode_page(file: BinaryIO, page: Page) -> Array:
    """Decode a page.

    Args:
        file: The file that the page was read from.
        page: One of `read_pages`.

    Returns:
        (Y, X, samples) of `page.dtype`, as stored: not turned, palettes and white-is-zero as they
        are; YCbCr that JPEG keeps is RGB.

    Raises:
        ItemError: If its data are damaged.
    """
    size = _size(file)
    (down, across), planes = page.segment, page.samples if page.planar else 1
    samples = 1 if page.planar else page.samples
    place = itertools.product(
        range(planes), range(0, page.height, down), range(0, page.width, across)
    )
    codec = _codec(page)
    whole = None
    for offset, count, (plane, y, x) in zip(page.offsets, page.counts, place, strict=True):
        lines = down if page.tiled else min(down, page.height - y)
        data = _read(file, size, offset, count)
        segment = _segment(page, codec, data, (lines, across, samples))
        if len(page.offsets) == 1 and segment.shape[:2] == (page.height, page.width):
            return segment
        if whole is None:
            whole = np.empty((page.height, page.width, page.samples), page.dtype)
        part = slice(plane, plane + 1) if page.planar else slice(None)
        target = whole[y : y + down, x : x + across, part]
        target[...] = segment[: target.shape[0], : target.shape[1]]
    if whole is None:
        raise ItemError("a page without data")
    return whole


def _segment(
    page: Page,
    codec: Callable[..., Any],
    data: bytes,
    shape: tuple[int, int, int],
) -> Array:
    """Decode one strip or tile to (lines, columns, samples)."""
    lines, across, samples = shape
    if page.compression in _PICTURES:
        return _picture(page, codec, data, shape)
    if page.lsb_first and (page.bits < 8 or page.compression != "none"):
        import imagecodecs

        data = bytes(imagecodecs.bitorder_decode(data))
    if page.compression.startswith("CCITT"):
        bits = np.asarray(codec(data, lines, across))
        if bits.size != lines * across:
            raise ItemError(f"a segment of {bits.size} px, not {lines * across}")
        return bits.reshape(shape).astype(np.uint8)
    line = -(-across * samples * page.bits // 8)
    # Some writers fill the last strip up.
    data = codec(data, out=page.segment[0] * line + 64)
    if len(data) < lines * line:
        raise ItemError(f"a segment of {len(data)} bytes, not {lines * line}")
    if page.bits not in (8, 16, 32, 64):
        return _unpack(page, data, lines * line, shape)
    stored = page.dtype.newbyteorder(page.order)
    found: Array = np.frombuffer(data, stored, lines * across * samples).reshape(shape)
    if page.predictor == 3:
        import imagecodecs

        out = imagecodecs.floatpred_decode(found, axis=-2)
        return np.asarray(out).astype(page.dtype, copy=False)
    found = found.astype(page.dtype, copy=False)
    if page.predictor == 2:
        import imagecodecs

        found = np.asarray(imagecodecs.delta_decode(np.ascontiguousarray(found), axis=-2))
    return found


def _unpack(page: Page, data: bytes, n_bytes: int, shape: tuple[int, int, int]) -> Array:
    """Take samples of odd sizes apart; a line begins at a whole byte, its highest bit first."""
    lines, across, samples = shape
    packed = np.frombuffer(data, np.uint8, n_bytes).reshape(lines, -1)
    bits = np.unpackbits(packed, axis=1, count=across * samples * page.bits)
    if page.bits == 1:
        return bits.reshape(shape)
    values = np.zeros((lines, across * samples), page.dtype)
    each = bits.reshape(lines, across * samples, page.bits)
    for position in range(page.bits):
        values <<= 1
        values |= each[..., position]
    return values.reshape(shape)


def _picture(
    page: Page, codec: Callable[..., Any], data: bytes, shape: tuple[int, int, int]
) -> Array:
    """Decode a strip or tile that is a picture of its own; at a border it may be smaller."""
    lines, across, samples = shape
    if page.compression == "JPEG":
        _check_jpeg(data, (2 * lines + 64, 2 * across + 64))
    found = np.asarray(codec(data))
    if found.ndim == 2:
        found = found[..., None]
    if found.ndim == 3 and found.shape[-1] == 3 and samples == 4 and page.compression == "WebP":
        opaque = np.full((*found.shape[:2], 1), 255, found.dtype)
        found = np.concatenate([found, opaque], axis=-1)
    if found.ndim != 3 or found.shape[-1] != samples or found.dtype != page.dtype:
        raise ItemError(
            f"a {page.compression} segment of shape {found.shape}, {found.dtype}, where {shape}, "
            f"{page.dtype} was expected"
        )
    least = min(lines, page.height), min(across, page.width)
    if page.tiled:  # one at the border may hold only what lies inside
        least = _remainder(page.height, lines), _remainder(page.width, across)
    if found.shape[0] < least[0] or found.shape[1] < least[1]:
        raise ItemError(f"a {page.compression} segment of {found.shape}, expected {shape}")
    return found


def _remainder(whole: int, part: int) -> int:
    return whole % part or part


def _check_jpeg(data: bytes, most: tuple[int, int]) -> None:
    """Refuse what libjpeg would fill up with grey, or make room for."""
    position = 2
    while position + 9 < len(data) and data[position] == 0xFF:
        marker, length = data[position + 1], int.from_bytes(data[position + 2 : position + 4])
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack(">HH", data[position + 5 : position + 9])
            if height > most[0] or width > most[1]:
                raise ItemError(f"a JPEG segment that claims {width} x {height} px")
            break
        position += 2 + length
    else:
        raise ItemError("a JPEG segment without a frame")
    if data.rfind(b"\xff\xd9", position) < 0:
        raise ItemError("a JPEG segment that ends before its picture does")


def _as_it_is(data: bytes, *, out: int) -> bytes:
    return data


def _codec(page: Page) -> Callable[..., Any]:
    if page.compression == "none":
        return _as_it_is
    import imagecodecs

    if page.compression == "JPEG":
        meaning = {
            YCBCR: ("YCBCR", "RGB"),
            RGB: ("RGB", "RGB"),
            CMYK: ("CMYK", "CMYK"),
        }.get(page.photometric if not page.planar else BLACK_IS_ZERO, (None, None))
        if page.bits != 8:
            raise ItemError(f"JPEG of {page.bits} bits is not read in a TIFF")
        colours, wanted = meaning
        if page.samples not in (1, 3) and not page.planar and page.photometric != CMYK:
            colours = wanted = None
        return functools.partial(
            imagecodecs.jpeg8_decode, tables=page.tables, colorspace=colours, outcolorspace=wanted
        )
    if page.compression == "CCITT T.4":
        return functools.partial(imagecodecs.ccittfax3_decode, t4options=page.t4_options)
    decoders: dict[str, Callable[..., Any]] = {
        "CCITT RLE": imagecodecs.ccittrle_decode,
        "CCITT T.6": imagecodecs.ccittfax4_decode,
        "Deflate": imagecodecs.deflate_decode,
        "JPEG 2000": imagecodecs.jpeg2k_decode,
        "LZMA": imagecodecs.lzma_decode,
        "LZW": imagecodecs.lzw_decode,
        "PackBits": imagecodecs.packbits_decode,
        "WebP": imagecodecs.webp_decode,
        "Zstandard": imagecodecs.zstd_decode,
    }
    return decoders[page.compression]
