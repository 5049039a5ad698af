"""Picture files: PNG, JPEG, TIFF, BMP, WebP, told apart by content.

Headers are held against the file's size and fixed bounds before anything is decoded.

imagecodecs decodes PNG, JPEG, WebP and TIFF's codecs: it checks PNG's checksums, keeps 16 bits of
colour, takes less time than Pillow, and gives the same pixels. Pillow decodes what is rarer: BMP,
CMYK, palettes where their indices are wanted, animations.
"""

import io
import math
import os
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from dinocache.errors import ItemError
from dinocache.readers import tiffs
from dinocache.readers.contract import Pixels, translated

__all__ = ["MAX_PIXELS", "Picture", "open_pictures", "printable", "turned"]

Array = npt.NDArray[Any]

MAX_PIXELS = 1 << 31
"""About 46,000 px squared."""
_MAX_BYTES = 1 << 33
"""Of a decoded picture: what a machine that extracts can be expected to have left."""
_MAX_CHUNKS = 1 << 20
_MAX_FILL = 1 << 12
_MAX_SCANNED, _FEW_SCANS = 1 << 34, 16
"""Px that the scans of a progressive JPEG may go over in all; thousands of scans take hours."""
_HEADS = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
    b"BM": "BMP",
}
_OTHERS = {
    b"GIF8": "a GIF; convert it to PNG",
    b"\x1f\x8b": "compressed by gzip; unpack it first",
    b"PK\x03\x04": "a ZIP archive; unpack it first",
    b"BZh": "compressed by bzip2; unpack it first",
    b"\x89HDF\r\n\x1a\n": "an HDF5 file; read it with --reader stack",
    b"\x93NUMPY": "a NumPy array; it is not read as a picture",
    b"\0\0\0\x0cjP": "a JPEG 2000 file; convert it to PNG or TIFF",
    b"\xff\x4f\xff\x51": "a JPEG 2000 file; convert it to PNG or TIFF",
    b"\x1aE\xdf\xa3": "a Matroska video; read it with --reader video",
    b"%PDF": "a PDF",
    b"8BPS": "a Photoshop file; convert it to PNG or TIFF",
}
# An encoded byte stands for at most so many: Deflate's 1032 by its format; JPEG needs a bit for a
# block of 64 px of the one component that is not subsampled.
_PNG_RATIO, _JPEG_RATIO, _RUN_RATIO = 1040, 1 << 12, 256


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One picture of a file; nothing of it is decoded yet.

    Attributes:
        path: The file.
        kind: PNG, JPEG, TIFF, BMP or WebP.
        page: Its place in the file, from 0.
        height: As stored, px.
        width: As stored, px.
        orientation: EXIF's and TIFF's, 1 to 8: how what is stored is to be turned.
        channels: Once decoded; palettes and CMYK are 3.
        alpha: Whether the last of them is alpha.
        dtype: Once decoded.
        value_range: If it is not that of the type.
        palette: Whether values are indices of colours.
        animated: Whether it is a frame that builds on others.
        bits: Of a stored sample.
        data_at: Of a JPEG: where its entropy-coded data begin.
        tiff: Its TIFF page.
    """

    path: Path
    kind: str
    page: int = 0
    height: int
    width: int
    orientation: int = 1
    channels: int
    alpha: bool = False
    dtype: np.dtype[Any]
    value_range: tuple[float, float] | None = None
    palette: bool = False
    animated: bool = False
    bits: int = 8
    data_at: int = 0
    tiff: tiffs.Page | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, Y, X), upright."""
        plane = self.height, self.width
        return (self.channels, *(plane[::-1] if self.orientation >= 5 else plane))

    @property
    def nbytes(self) -> int:
        """Once decoded."""
        return math.prod(self.shape) * self.dtype.itemsize

    def decode(self) -> Pixels:
        """Decode it.

        Returns:
            (C, Y, X) of `dtype`, upright, alpha included.

        Raises:
            ItemError: If it is damaged.
        """
        with translated("cannot be decoded"), self.path.open("rb") as file:
            found = self._decoded(file)
            if found.ndim == 2:
                found = found[..., None]
            stored = self.height, self.width, self.channels
            if found.shape != stored or found.dtype != self.dtype:
                raise ItemError(
                    f"its header says {stored}, {self.dtype.name}; decoded it is {found.shape}, "
                    f"{found.dtype.name}"
                )
            return turned(found.transpose(2, 0, 1), self.orientation)

    def labels(self) -> npt.NDArray[np.integer[Any]]:
        """Decode it as a map of labels: a palette's indices, grey as it is stored.

        Returns:
            (Y, X) integers, upright.

        Raises:
            ItemError: If it is damaged, or has several channels.
        """
        if (self.channels != 1 and not self.palette) or self.dtype.kind not in "iu":
            values = f"{self.channels} of {self.dtype.name}"
            raise ItemError(f"a mask has one channel of whole numbers; this one has {values}")
        with translated("cannot be decoded"), self.path.open("rb") as file:
            if self.tiff is not None:
                found = tiffs.decode_page(file, self.tiff)[..., 0]
                if self.tiff.photometric == tiffs.WHITE_IS_ZERO:
                    found = found.dtype.type((1 << self.bits) - 1) - found
            elif self.palette or self.kind == "BMP":
                found = _by_pillow(file, indices=True)
                if found.dtype == np.bool_:
                    found = found.astype(np.uint8)
            else:
                found = self._decoded(file)
                if self.bits < 8:
                    found = found // np.uint8(255 // ((1 << self.bits) - 1))
            if found.shape != (self.height, self.width):
                raise ItemError(
                    f"its header says {self.height} x {self.width} labels; decoded they are "
                    f"{found.shape}"
                )
            return turned(found, self.orientation)

    def _decoded(self, file: BinaryIO) -> Array:
        """Decode to (Y, X) or (Y, X, C)."""
        if self.tiff is not None:
            return _tiff_values(tiffs.decode_page(file, self.tiff), self.tiff)
        if self.animated:
            return _by_pillow(file, page=self.page)
        if self.kind == "BMP" or (self.kind == "JPEG" and self.bits == 32):
            return _by_pillow(file)
        import imagecodecs

        content = file.read()
        if self.kind == "PNG":
            return np.asarray(imagecodecs.png_decode(_needed(content)))
        if self.kind == "WebP":
            return np.asarray(imagecodecs.webp_decode(content, hasalpha=self.alpha))
        if content.rfind(b"\xff\xd9", self.data_at) < 0:
            return _by_pillow(file)  # it knows whether what is there is enough
        scans = content.count(b"\xff\xda", 0)
        if scans > _FEW_SCANS and scans * self.height * self.width > _MAX_SCANNED:
            raise ItemError(f"a JPEG of {scans} scans; save it anew")
        return np.asarray(imagecodecs.jpeg8_decode(content))


def open_pictures(path: Path) -> list[Picture]:
    """Read a file's headers.

    Args:
        path: The file.

    Returns:
        Its pictures: one, but for TIFFs of several pages and animations.

    Raises:
        ItemError: If it is none, or claims what it cannot hold.
    """
    if path.is_dir():
        raise ItemError("it is a folder, not an image file")
    with translated("its header cannot be read"), path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        head = file.read(16)
        kind = next((kind for start, kind in _HEADS.items() if head.startswith(start)), "")
        if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
            kind = "WebP"
        if not kind:
            raise ItemError(_not_ours(head))
        read = {"PNG": _png, "JPEG": _jpeg, "TIFF": _tiff, "BMP": _bmp, "WebP": _webp}[kind]
        found = read(path, file, size)
        for picture in found:
            _check(picture)
        return found


def printable(text: str) -> str:
    """Make what a file, or its name, says fit for a message of one line."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _not_ours(head: bytes) -> str:
    if not head:
        return "the file is empty"
    for start, what in _OTHERS.items():
        if head.startswith(start):
            return f"it is {what}"
    if head[4:8] == b"ftyp" or (head[:4] == b"RIFF" and head[8:12] == b"AVI "):
        return "it is a video; read it with --reader video"
    return "not an image: PNG, JPEG, TIFF, BMP or WebP was expected"


def _check(picture: Picture) -> None:
    height, width = picture.height, picture.width
    if not (height and width):
        raise ItemError(f"its header claims {width} x {height} px")
    if height * width > MAX_PIXELS or picture.nbytes > _MAX_BYTES:
        raise ItemError(
            f"its header claims {width} x {height} px of {picture.channels} {picture.dtype.name}; "
            f"at most {MAX_PIXELS} px in {_MAX_BYTES >> 30} GiB are read as one image"
        )


def _hold(ratio: int, n_encoded: int, n_decoded: int) -> None:
    if n_encoded * ratio + 4096 < n_decoded:
        raise ItemError(
            f"its header claims {n_decoded} bytes of pixels, more than {n_encoded} can hold"
        )


def _exactly(file: BinaryIO, n_bytes: int) -> bytes:
    found = file.read(n_bytes)
    if len(found) != n_bytes:
        raise ItemError("the file ends within its header")
    return found


def _png(path: Path, file: BinaryIO, size: int) -> list[Picture]:
    file.seek(8)
    header, transparent, n_data, frames, orientation = b"", False, 0, 1, 1
    for _ in range(_MAX_CHUNKS):
        at = file.tell()
        head = file.read(8)
        if len(head) < 8:
            raise ItemError("the PNG ends before its last chunk")
        length, name = struct.unpack(">I4s", head)
        if at + 12 + length > size:
            raise ItemError(f"a PNG chunk of {length} bytes, more than the file has left")
        if name == b"IHDR" and length == 13:
            header = file.read(13)
        elif name == b"tRNS":
            transparent = True
        elif name == b"IDAT":
            n_data += length
        elif name == b"acTL" and length == 8:
            frames = struct.unpack(">I", file.read(4))[0]
        elif name == b"eXIf":
            orientation = tiffs.first_orientation(io.BytesIO(file.read(min(length, 1 << 16))))
        elif name == b"IEND":
            break
        file.seek(at + 12 + length)
    if not header:
        raise ItemError("a PNG without a header")
    width, height, bits, colour = struct.unpack(">IIBB", header[:10])
    stored = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(colour)
    if stored is None or bits not in (1, 2, 4, 8, 16):
        raise ItemError(f"a PNG of colour type {colour} and {bits} bits")
    _hold(_PNG_RATIO, n_data, height * -(-width * stored * bits // 8))
    if not 1 <= frames <= size // 26:
        raise ItemError(f"its header claims {frames} frames of an animation")
    alpha = transparent or colour in (4, 6)
    picture = Picture(
        path=path,
        kind="PNG",
        height=height,
        width=width,
        orientation=orientation,
        channels={0: 1, 2: 3, 3: 3, 4: 1, 6: 3}[colour] + alpha,
        alpha=alpha,
        dtype=np.dtype(np.uint16 if bits == 16 else np.uint8),
        palette=colour == 3,
        bits=bits,
        animated=frames > 1,
    )
    return _frames(picture, frames)


def _needed(content: bytes) -> bytes:
    """Leave out the chunks of a PNG that do not make its pixels.

    libpng warns of odd colour profiles on the standard error, of which X-rays are full.
    """
    kept, at = [content[:8]], 8
    while at + 12 <= len(content):
        end = at + 12 + int.from_bytes(content[at : at + 4])
        if content[at + 4 : at + 8] in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"):
            kept.append(content[at:end])
        at = end
    return b"".join(kept)


def _frames(picture: Picture, count: int) -> list[Picture]:
    """List an animation's frames, which are composed in RGBA."""
    if count == 1:
        return [picture]
    frame = replace(picture, animated=True, channels=4, alpha=True, dtype=np.dtype(np.uint8))
    return [replace(frame, page=page) for page in range(count)]


def _jpeg(path: Path, file: BinaryIO, size: int) -> list[Picture]:
    file.seek(2)
    orientation, frame = 1, b""
    for _ in range(_MAX_CHUNKS):
        marker = _exactly(file, 2)
        for _ in range(_MAX_FILL):  # bytes before a marker
            if marker[1] != 0xFF:
                break
            marker = b"\xff" + _exactly(file, 1)
        if marker[0] != 0xFF:
            raise ItemError("a JPEG whose markers are damaged")
        if marker[1] == 0x01 or 0xD0 <= marker[1] <= 0xD8:
            continue
        length = struct.unpack(">H", _exactly(file, 2))[0] - 2
        at = file.tell()
        if length < 0 or at + length > size:
            raise ItemError("a JPEG segment that reaches over the end of the file")
        if marker[1] == 0xE1 and file.read(6) == b"Exif\0\0":
            orientation = tiffs.first_orientation(io.BytesIO(file.read(length - 6)))
        elif 0xC0 <= marker[1] <= 0xCF and marker[1] not in (0xC4, 0xC8, 0xCC):
            if marker[1] not in (0xC0, 0xC1, 0xC2, 0xC9, 0xCA):
                raise ItemError("a lossless or hierarchical JPEG; convert it to PNG")
            frame = file.read(6)
        file.seek(at + length)
        if marker[1] in (0xDA, 0xD9):
            break
    if len(frame) < 6:
        raise ItemError("a JPEG without a frame")
    precision, height, width, components = struct.unpack(">BHHB", frame)
    if precision != 8 or components not in (1, 3, 4):
        raise ItemError(f"a JPEG of {components} components of {precision} bits; convert it to PNG")
    _hold(_JPEG_RATIO, size - file.tell(), height * width)
    channels = 1 if components == 1 else 3
    picture = Picture(
        path=path,
        kind="JPEG",
        data_at=file.tell(),
        height=height,
        width=width,
        orientation=orientation,
        channels=channels,
        dtype=np.dtype(np.uint8),
        bits=8 * components if components == 4 else 8,
    )
    return [picture]


def _webp(path: Path, file: BinaryIO, size: int) -> list[Picture]:
    file.seek(4)
    end = min(size, struct.unpack("<I", _exactly(file, 4))[0] + 8)
    file.seek(12)
    plane, alpha, orientation, frames = (0, 0), False, 1, 0
    for _ in range(_MAX_CHUNKS):
        at = file.tell()
        if at + 8 > end:
            break
        name, length = struct.unpack("<4sI", _exactly(file, 8))
        if at + 8 + length > size:
            raise ItemError(f"a WebP chunk of {length} bytes, more than the file has left")
        body = file.read(min(length, 10))
        if name == b"VP8X" and length >= 10:
            alpha = bool(body[0] & 0x10)
            sides = [int.from_bytes(body[i : i + 3], "little") + 1 for i in (4, 7)]
            plane = sides[1], sides[0]
        elif name == b"VP8 " and len(body) == 10 and plane == (0, 0):
            width, height = struct.unpack("<HH", body[6:10])
            plane = height & 0x3FFF, width & 0x3FFF
        elif name == b"VP8L" and len(body) >= 5 and plane == (0, 0):
            packed = int.from_bytes(body[1:5], "little")
            plane = (packed >> 14 & 0x3FFF) + 1, (packed & 0x3FFF) + 1
            alpha = bool(packed >> 28 & 1)
        elif name == b"ANMF":
            frames += 1
        elif name == b"EXIF":
            file.seek(at + 8)
            exif = file.read(min(length, 1 << 16)).removeprefix(b"Exif\0\0")
            orientation = tiffs.first_orientation(io.BytesIO(exif))
        file.seek(at + 8 + length + length % 2)
    if plane == (0, 0) or plane[0] > 16384 or plane[1] > 16384:
        raise ItemError(f"a WebP of {plane[1]} x {plane[0]} px")
    picture = Picture(
        path=path,
        kind="WebP",
        height=plane[0],
        width=plane[1],
        orientation=orientation,
        channels=3 + alpha,
        alpha=alpha,
        dtype=np.dtype(np.uint8),
        animated=frames > 1,
    )
    return _frames(picture, max(frames, 1))


def _bmp(path: Path, file: BinaryIO, size: int) -> list[Picture]:
    with _pillow(file) as image:
        mode, (width, height) = image.mode, image.size
        run_length = str(image.info.get("compression", 0)) not in ("0", "3", "6")
    channels = {"1": 1, "L": 1, "P": 3, "RGB": 3, "RGBA": 4}.get(mode)
    if channels is None:
        raise ItemError(f"a BMP of Pillow's mode {mode!r}; convert it to PNG")
    _hold(_RUN_RATIO if run_length else 8 if mode in ("1", "P", "L") else 1, size, height * width)
    picture = Picture(
        path=path,
        kind="BMP",
        height=height,
        width=width,
        channels=channels,
        alpha=mode == "RGBA",
        dtype=np.dtype(np.uint8),
        palette=mode == "P",
    )
    return [picture]


def _tiff(path: Path, file: BinaryIO, size: int) -> list[Picture]:
    pages = tiffs.read_pages(file)
    return [_tiff_picture(path, number, page) for number, page in enumerate(pages)]


def _tiff_picture(path: Path, number: int, page: tiffs.Page) -> Picture:
    colour = page.photometric in (tiffs.PALETTE, tiffs.CMYK)
    kept = page.dtype.itemsize <= 2 and page.dtype.kind in "iu"
    dtype = page.dtype if kept and page.dtype != np.int8 else np.dtype(np.float32)
    value_range = None
    if page.dtype == np.int8:
        dtype, value_range = np.dtype(np.int16), (-128.0, 127.0)
    if colour:
        dtype = np.dtype(np.uint8)
    elif page.dtype.kind == "u" and page.bits not in (1, 2, 4, 8, 16, 32, 64):
        value_range = 0.0, float((1 << page.bits) - 1)
    return Picture(
        path=path,
        kind="TIFF",
        page=number,
        height=page.height,
        width=page.width,
        orientation=page.orientation,
        channels=3 if colour else page.samples,
        alpha=page.alpha and not colour,
        dtype=dtype,
        value_range=value_range,
        palette=page.photometric == tiffs.PALETTE,
        bits=page.bits,
        tiff=page,
    )


def _tiff_values(stored: Array, page: tiffs.Page) -> Array:
    """Give (Y, X, C) values their meaning."""
    if page.colours is not None:
        return page.colours.T[stored[..., 0]]
    if page.photometric == tiffs.CMYK:
        from PIL import Image

        inks = Image.fromarray(np.ascontiguousarray(stored[..., :4]), "CMYK")
        return np.asarray(inks.convert("RGB"))
    if page.photometric == tiffs.WHITE_IS_ZERO:
        if page.dtype.kind != "u":
            raise ItemError(f"white is zero in a TIFF of {page.dtype.name}; turn its values round")
        stored = stored.dtype.type((1 << page.bits) - 1) - stored
    if page.bits in (1, 2, 4):
        return np.asarray(stored * np.uint8(255 // ((1 << page.bits) - 1)))
    if page.dtype == np.int8:
        return stored.astype(np.int16)
    if page.dtype.itemsize > 2 or page.dtype.kind == "f":
        with np.errstate(over="ignore"):
            return stored.astype(np.float32, copy=False)
    return stored


def turned(image: Array, orientation: int) -> Array:
    """Turn (..., Y, X) upright.

    Args:
        image: As stored.
        orientation: 1 to 8: TIFF 6.0, Orientation, and Exif 2.32, 4.6.4.A.

    Returns:
        (..., Y, X), or (..., X, Y) for 5 to 8; in a piece unless nothing is to be done.
    """
    if orientation >= 5:
        image = image.swapaxes(-1, -2)
    if orientation in (3, 4, 7, 8):
        image = image[..., ::-1, :]
    if orientation in (2, 3, 6, 7):
        image = image[..., ::-1]
    return image if orientation == 1 else np.ascontiguousarray(image)


def _pillow(file: BinaryIO) -> Any:  # noqa: ANN401 - Pillow is imported late
    from PIL import Image, UnidentifiedImageError

    Image.MAX_IMAGE_PIXELS = None  # ours are the bounds
    file.seek(0)
    try:
        return Image.open(file, formats=["BMP", "JPEG", "PNG", "WEBP"])
    except UnidentifiedImageError as exc:  # its message names the path
        raise ItemError("its header is damaged") from exc


def _by_pillow(file: BinaryIO, *, page: int = 0, indices: bool = False) -> Array:
    """Decode by Pillow to (Y, X) or (Y, X, C); a frame of an animation to RGBA."""
    with _pillow(file) as image:
        if getattr(image, "n_frames", 1) > 1 and not indices and image.format != "MPO":
            image.seek(page)
            return np.asarray(image.convert("RGBA"))
        image.load()
        if indices:
            return np.asarray(image)
        wanted = {"1": "L", "P": "RGB", "CMYK": "RGB"}.get(image.mode)
        return np.asarray(image.convert(wanted) if wanted else image)
