"""The stored values of a DICOM file's frames, native or compressed, one frame at a time.

Compressed frames are decoded by imagecodecs (BSD), which holds libjpeg-turbo, OpenJPEG, CharLS and
a PackBits decoder. GDCM, which has decoders of its own, ends the interpreter on damaged streams.
"""

import contextlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from io import BufferedReader, BytesIO, FileIO
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from dinocache.errors import ItemError
from dinocache.readers.raw import inflated

__all__ = [
    "BIG_ENDIAN",
    "DEFLATED",
    "EXPLICIT",
    "IMPLICIT",
    "BoundedFile",
    "FrameLayout",
    "StoredFrames",
    "data_of",
]

IMPLICIT = "1.2.840.10008.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
DEFLATED = "1.2.840.10008.1.2.1.99"
BIG_ENDIAN = "1.2.840.10008.1.2.2"
_GE_BIG_ENDIAN_PIXELS = "1.2.840.113619.5.2"
"""GE's private implicit syntax, whose pixels alone are big endian."""
_NATIVE = (IMPLICIT, EXPLICIT, DEFLATED, BIG_ENDIAN, _GE_BIG_ENDIAN_PIXELS)
_RLE = "1.2.840.10008.1.2.5"
_JPEG = tuple(f"1.2.840.10008.1.2.4.{part}" for part in (50, 51, 57, 70))
_JPEG_LS = tuple(f"1.2.840.10008.1.2.4.{part}" for part in (80, 81))
_JPEG_2000 = tuple(f"1.2.840.10008.1.2.4.{part}" for part in (90, 91, 201, 202, 203))
_VIDEO = tuple(f"1.2.840.10008.1.2.4.{part}" for part in range(100, 109))

_MAX_INFLATED = 1 << 30


class BoundedFile(BufferedReader):
    """A file that is never asked for more than it has: Python sets that aside before it reads."""

    def __init__(self, path: Path) -> None:
        super().__init__(FileIO(path))
        self._size = path.stat().st_size

    def read(self, size: int | None = -1, /) -> bytes:
        """Read as many bytes as are asked for, or as are left."""
        left = max(0, self._size - self.tell())
        return super().read(left if size is None or size < 0 else min(size, left))


@contextlib.contextmanager
def data_of(path: Path, deflated_from: int | None) -> Iterator[BinaryIO]:
    """Open a data set, inflated if it is deflated.

    The inflated bytes are not kept, as few files are such and all are small.

    Args:
        path: The file.
        deflated_from: First deflated byte; None where none is.
    """
    with BoundedFile(path) as file:
        if deflated_from is None:
            yield file
        else:
            file.seek(deflated_from)
            yield BytesIO(inflated(file.read(), window_bits=-15, limit=_MAX_INFLATED))


@dataclass(frozen=True, kw_only=True)
class FrameLayout:
    """What a header says of how frames are stored.

    Attributes:
        path: The file.
        deflated_from: First byte of a deflated data set; None where it is not deflated.
        start: First byte of the pixel element's value, in the inflated data set.
        held: Bytes that are there from `start` on.
        syntax: UID of the transfer syntax.
        little: Whether it is little endian.
        as_words: Whether bytes stand in 16-bit words (VR OW).
        encapsulated: Whether frames lie in items.
        frames: How many.
        rows: Lines of a frame.
        columns: Columns of a frame.
        samples: Values a pixel, 1 or 3.
        allocated: Bits a value takes.
        stored_bits: Bits of it that count.
        high_bit: The highest of them.
        signed: Whether that is a sign.
        planar: Whether samples stand in planes.
        photometric: What values mean.
        is_float: Whether they are IEEE floats.
        extended_offsets: The extended offset table, if any.
    """

    path: Path
    deflated_from: int | None
    start: int
    held: int
    syntax: str
    little: bool
    as_words: bool
    encapsulated: bool
    frames: int
    rows: int
    columns: int
    samples: int
    allocated: int
    stored_bits: int
    high_bit: int
    signed: bool
    planar: bool
    photometric: str
    is_float: bool
    extended_offsets: bytes | None

    @property
    def frame_bits(self) -> int:
        """Bits of a native frame."""
        if self.photometric.endswith("_422"):
            return self.rows * ((self.columns + 1) // 2) * 4 * self.allocated
        return self.rows * self.columns * self.samples * self.allocated

    @property
    def syntax_name(self) -> str:
        """Name of the transfer syntax."""
        from pydicom.uid import UID

        return " ".join(UID(self.syntax).name.split())[:64]

    @property
    def value_range(self) -> tuple[int, int]:
        """Least and greatest stored value."""
        if self.signed:
            return -(1 << self.stored_bits - 1), (1 << self.stored_bits - 1) - 1
        return 0, (1 << self.stored_bits) - 1


class StoredFrames:
    """Decodes frames to stored values.

    Attributes:
        layout: As the header says, but for a depth that the compressed stream knows better.
    """

    def __init__(self, layout: FrameLayout) -> None:
        self.layout = layout
        self._index: list[list[tuple[int, int]]] | None = None
        if layout.encapsulated == (layout.syntax in _NATIVE):
            packed = "packed in items" if layout.encapsulated else "not packed in items"
            raise ItemError(
                f"its pixels are {packed}, against its transfer syntax {layout.syntax_name}"
            )
        claim = layout.frames * (64 if layout.encapsulated else layout.frame_bits)
        if (claim + 7) // 8 > layout.held:
            raise ItemError(
                f"its header claims {layout.columns} x {layout.rows} px, {layout.frames} frames: "
                f"at least {(claim + 7) // 8:,} bytes; {layout.held:,} are there"
            )
        if layout.encapsulated:
            self.layout = self._with_precision()

    def frame(self, index: int) -> npt.NDArray[Any]:
        """Decode a frame.

        Args:
            index: Which.

        Returns:
            (samples, Y, X), integers of the allocated size with their sign, or floats; colours
            are RGB.

        Raises:
            ItemError: If it ends early or is not what the header says. Damaged streams raise what
                imagecodecs does.
        """
        layout = self.layout
        stored = self._compressed_frame(index) if layout.encapsulated else self._native_frame(index)
        if layout.is_float:
            return stored
        values = self._significant(stored)
        if self._is_ybr_still:
            return _rgb(values, layout.stored_bits, narrow="PARTIAL" in layout.photometric)
        return values

    @property
    def _is_ybr_still(self) -> bool:
        """Whether decoded samples are luminance and chroma.

        JPEG's are converted by its decoder, those of JPEG 2000's own transforms too.
        """
        return (
            self.layout.photometric.startswith("YBR")
            and self.layout.syntax not in _JPEG
            and self.layout.photometric not in ("YBR_ICT", "YBR_RCT")
        )

    def _significant(self, stored: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Cut values to their stored bits and give them their sign."""
        width = stored.dtype.itemsize * 8
        bits = min(self.layout.stored_bits, width)
        # Decoders give the value itself; only what lies as it is has a high bit elsewhere.
        top = self.layout.high_bit + 1 if not self.layout.encapsulated else bits
        plain = bits == width == top
        kind = "i" if self.layout.signed else "u"
        wanted = np.dtype(f"{kind}{stored.dtype.itemsize}")
        values = stored.view(wanted)
        if plain or self.layout.allocated == 1:
            return values
        # Up to the top of the container, then down: the sign bit follows.
        unsigned = stored.view(np.dtype(f"u{stored.dtype.itemsize}"))
        lifted = np.left_shift(unsigned, width - top).view(wanted)
        return np.asarray(np.right_shift(lifted, width - bits))

    # -------------------------------------------------------------- native

    def _native_frame(self, index: int) -> npt.NDArray[Any]:
        first_bit = self.layout.frame_bits * index
        start, stop = first_bit // 8, (first_bit + self.layout.frame_bits + 7) // 8
        # Bytes in 16-bit words of a big-endian file stand in swapped pairs.
        swapped = not self.layout.little and self.layout.as_words and self.layout.allocated <= 8
        begin = start - start % 2 if swapped else start
        with data_of(self.layout.path, self.layout.deflated_from) as file:
            file.seek(self.layout.start + begin)
            data = file.read(stop - begin + (stop - begin) % 2 * swapped)
        if len(data) < stop - begin:
            raise ItemError(f"frame {index} ends early: {len(data):,} of {stop - begin:,} bytes")
        if swapped:
            data = np.frombuffer(data[: len(data) // 2 * 2], ">u2").astype("<u2").tobytes()
        data = data[start - begin : stop - begin]
        shape = (self.layout.rows, self.layout.columns)
        if self.layout.allocated == 1:
            bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
            return bits[first_bit % 8 :][: self.layout.rows * self.layout.columns].reshape(
                1, *shape
            )
        order = "<" if self.layout.little and self.layout.syntax != _GE_BIG_ENDIAN_PIXELS else ">"
        kind = "f" if self.layout.is_float else "u"
        values = np.frombuffer(data, f"{order}{kind}{self.layout.allocated // 8}")
        values = values.astype(values.dtype.newbyteorder("="), copy=False)
        if self.layout.photometric.endswith("_422"):
            return _full_width(values.reshape(self.layout.rows, -1, 4), self.layout.columns)
        if self.layout.samples == 1:
            return values.reshape(1, *shape)
        if self.layout.planar:
            return values.reshape(self.layout.samples, *shape)
        return np.moveaxis(values.reshape(*shape, self.layout.samples), -1, 0)

    # ---------------------------------------------------------- compressed

    def _fragments(self, file: BinaryIO) -> Iterator[tuple[int, int]]:
        """Walk the items behind the pixel element: (offset, length) of each, the table first.

        By their lengths: a delimiter's bytes may occur inside a frame. PS3.5 A.4.
        """
        place = self.layout.start
        while True:
            file.seek(place)
            head = file.read(8)
            if len(head) < 8:
                return
            group, element, length = struct.unpack("<HHI", head)
            if (group, element) == (0xFFFE, 0xE0DD):
                return
            if (group, element) != (0xFFFE, 0xE000) or length > self.layout.held:
                raise ItemError("its compressed frames are damaged: no item where one should be")
            yield place + 8, length
            place += 8 + length

    def _with_precision(self) -> FrameLayout:
        """Look at the first frame: what its stream says of depth and size must be believed."""
        layout = self.layout
        if layout.is_float:
            raise ItemError(f"float pixels in {layout.syntax_name}")
        if layout.syntax in _VIDEO:
            raise ItemError(f"its frames are a video ({layout.syntax_name}); export it as MP4")
        if layout.syntax not in (_RLE, *_JPEG, *_JPEG_LS, *_JPEG_2000):
            raise ItemError(f"its transfer syntax is not read: {layout.syntax_name}")
        with data_of(layout.path, layout.deflated_from) as file:
            items = self._fragments(file)
            next(items, None)
            offset, length = next(items, (0, 0))
            if not length:
                raise ItemError("its header announces compressed frames; there are none")
            file.seek(offset)
            start = file.read(min(length, 1 << 16))
        if layout.syntax == _RLE:
            return layout
        found = _stream_head(start)
        self._check_stream(found)
        # Some writers leave BitsStored at the scanner's depth, where the stream has more.
        bits = max(found.bits, layout.stored_bits)
        return replace(layout, stored_bits=bits, high_bit=bits - 1)

    def _check_stream(self, found: "_StreamHead") -> None:
        layout = self.layout
        claimed = (layout.rows, layout.columns, layout.samples)
        if (found.rows, found.columns, found.samples) != claimed:
            raise ItemError(
                f"its compressed frame has {found.columns} x {found.rows} px of {found.samples} "
                f"samples, its header claims {layout.columns} x {layout.rows} of {layout.samples}"
            )
        if found.bits > layout.allocated:
            raise ItemError(
                f"its header claims {layout.allocated} bits, its compressed frame has {found.bits}"
            )

    def _frame_fragments(self, file: BinaryIO, index: int) -> list[tuple[int, int]]:
        if self._index is None:
            self._index = self._index_frames(file)
        return self._index[index]

    def _index_frames(self, file: BinaryIO) -> list[list[tuple[int, int]]]:
        """Say which fragments make which frame."""
        items = self._fragments(file)
        table_at, table_length = next(items, (0, 0))
        parts = list(items)
        if self.layout.frames == 1:
            return [parts]
        if len(parts) == self.layout.frames:
            return [[part] for part in parts]
        if len(parts) < self.layout.frames:
            raise ItemError(f"its header claims {self.layout.frames} frames; it has {len(parts)}")
        origin = table_at + table_length
        starts = self._offsets(file, table_at, table_length)
        if starts is None:
            starts = [parts[0][0] - 8 - origin]
            for (offset, length), (after, _) in pairwise(parts):
                file.seek(offset + max(0, length - 10))
                # End of a JPEG or JPEG 2000 stream, with padding.
                if b"\xff\xd9" in file.read(min(length, 10)):
                    starts.append(after - 8 - origin)
        frames: list[list[tuple[int, int]]] = [[] for _ in starts]
        places = np.searchsorted(starts, [offset - 8 - origin for offset, _ in parts], "right") - 1
        for place, part in zip(places.tolist(), parts, strict=True):
            frames[max(place, 0)].append(part)
        if len(frames) != self.layout.frames or not all(frames):
            raise ItemError(
                f"its header claims {self.layout.frames} frames; which of {len(parts)} fragments "
                "they are made of cannot be told"
            )
        return frames

    def _offsets(self, file: BinaryIO, table_at: int, table_length: int) -> list[int] | None:
        extended = self.layout.extended_offsets
        if extended is not None and len(extended) == 8 * self.layout.frames:
            return [int(start) for start in np.frombuffer(extended, "<u8")]
        if table_length != 4 * self.layout.frames:
            return None
        file.seek(table_at)
        return [int(start) for start in np.frombuffer(file.read(table_length), "<u4")]

    def _compressed_frame(self, index: int) -> npt.NDArray[Any]:
        with data_of(self.layout.path, self.layout.deflated_from) as file:
            parts = self._frame_fragments(file, index)
            data = bytearray()
            for offset, length in parts:
                file.seek(offset)
                data += file.read(length)
        if self.layout.syntax == _RLE:
            return self._run_lengths(bytes(data))
        found = _stream_head(bytes(data[: 1 << 16]))
        self._check_stream(found)
        pixels = self._decoded(bytes(data), found)
        if pixels.ndim == 2:
            pixels = pixels[..., None]
        if pixels.shape != (self.layout.rows, self.layout.columns, self.layout.samples):
            raise ItemError(f"its frame {index} came out of the decoder as {pixels.shape}")
        return np.moveaxis(pixels, -1, 0)

    def _decoded(self, data: bytes, found: "_StreamHead") -> npt.NDArray[Any]:
        import imagecodecs

        if self.layout.syntax in _JPEG_2000:
            return np.asarray(imagecodecs.jpeg2k_decode(data, numthreads=1))
        if self.layout.syntax in _JPEG_LS:
            return np.asarray(imagecodecs.jpegls_decode(data))
        if found.samples == 1:
            return np.asarray(imagecodecs.jpeg8_decode(data))
        # The same on both sides: the samples as they are, chroma brought to full size.
        space = "YCBCR" if self._jpeg_is_ybr(data) else "RGB"
        return np.asarray(imagecodecs.jpeg8_decode(data, colorspace=space, outcolorspace="RGB"))

    def _jpeg_is_ybr(self, data: bytes) -> bool:
        """Adobe's marker says what a JPEG stream holds; without it, the DICOM header."""
        place = data[:1024].find(b"\xff\xee")
        if place >= 0 and data[place + 4 : place + 9] == b"Adobe" and len(data) > place + 15:
            return data[place + 15] == 1
        return self.layout.photometric.startswith("YBR")

    def _run_lengths(self, data: bytes) -> npt.NDArray[Any]:
        """Decode RLE: one segment a byte plane, the highest first. PS3.5 G."""
        import imagecodecs

        size, depth = self.layout.rows * self.layout.columns, self.layout.allocated // 8
        count, *offsets = struct.unpack("<16I", data[:64].ljust(64, b"\0"))
        if self.layout.allocated == 1 or count != self.layout.samples * depth:
            raise ItemError(
                f"its RLE frame has {count} segments, not {self.layout.samples * depth}"
            )
        ends = [*offsets[1:count], len(data)]
        planes = np.empty((self.layout.samples, depth, size), np.uint8)
        for place, (start, stop) in enumerate(zip(offsets, ends, strict=False)):
            segment = data[start:stop]
            # A byte more may follow, as segments have even length; PackBits makes 64 of 1 at most.
            if size > 128 * len(segment):
                raise ItemError("its RLE frame ends early")
            plane = np.frombuffer(imagecodecs.packbits_decode(segment), np.uint8)
            if len(plane) < size:
                raise ItemError("its RLE frame ends early")
            planes[place // depth, place % depth] = plane[:size]
        values = np.ascontiguousarray(planes.transpose(0, 2, 1)).view(f">u{depth}")[..., 0]
        shape = (self.layout.samples, self.layout.rows, self.layout.columns)
        return values.reshape(shape).astype(f"u{depth}")


@dataclass(frozen=True, kw_only=True)
class _StreamHead:
    """What a compressed frame says of itself."""

    rows: int
    columns: int
    samples: int
    bits: int


def _stream_head(data: bytes) -> _StreamHead:
    """Read size and depth of a JPEG, JPEG-LS or JPEG 2000 stream."""
    place = data.find(b"\xff\x4f\xff\x51") if data[:2] != b"\xff\xd8" else -1
    if place >= 0:
        at = place + 8
        x1, y1, x0, y0 = struct.unpack(">4I", data[at : at + 16])
        samples, depth = struct.unpack(">HB", data[at + 32 : at + 35])
        return _StreamHead(rows=y1 - y0, columns=x1 - x0, samples=samples, bits=(depth & 0x7F) + 1)
    place = 2
    while data[:2] == b"\xff\xd8" and place + 10 <= len(data):
        if data[place] != 0xFF:
            break
        marker = data[place + 1]
        if marker in (0xFF, 0x01) or 0xD0 <= marker <= 0xD7:
            place += 1 if marker == 0xFF else 2
            continue
        # All start-of-frame markers, and JPEG-LS's own.
        if (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)) or marker == 0xF7:
            bits, rows, columns, samples = struct.unpack(">BHHB", data[place + 4 : place + 10])
            return _StreamHead(rows=rows, columns=columns, samples=samples, bits=bits)
        place += 2 + int(struct.unpack(">H", data[place + 2 : place + 4])[0])
    raise ItemError("its compressed frame does not begin as JPEG or JPEG 2000")


def _full_width(pairs: npt.NDArray[Any], columns: int) -> npt.NDArray[Any]:
    """Give each of two neighbours (Y1, Y2, Cb, Cr) its own chroma: (3, Y, X). PS3.3 C.7.6.3.1.2."""
    luminance = pairs[..., :2].reshape(len(pairs), -1)
    chroma = np.repeat(pairs[..., 2:], 2, axis=1)
    planes = (luminance, chroma[..., 0], chroma[..., 1])
    return np.ascontiguousarray(np.stack(planes)[:, :, :columns])


def _rgb(ybr: npt.NDArray[Any], bits: int, *, narrow: bool) -> npt.NDArray[Any]:
    """Convert (3, Y, X) luminance and chroma. PS3.3 C.7.6.3.1.2; `narrow` for YBR_PARTIAL."""
    top = float((1 << bits) - 1)
    half = float(1 << bits - 1)
    y, blue, red = ybr.astype(np.float64)
    blue, red = blue - half, red - half
    if narrow:
        unit = float(1 << bits - 8)
        y = (y - 16 * unit) * 255 / 219
        blue, red = blue * 255 / 224, red * 255 / 224
    planes = (
        y + 1.402 * red,
        y - (0.114 * 1.772 * blue + 0.299 * 1.402 * red) / 0.587,
        y + 1.772 * blue,
    )
    return np.asarray(np.rint(np.clip(np.stack(planes), 0, top))).astype(ybr.dtype)
