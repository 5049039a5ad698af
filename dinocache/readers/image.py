"""Single images: PNG, JPEG, TIFF, BMP, WebP, through Pillow.

Grey stays grey (one channel) until the encoder's input is made; colour palettes become RGB, an
alpha channel is dropped: the X-rays of NIH that have one have it opaque.
"""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from dinocache.errors import ItemError
from dinocache.readers.contract import ItemRows, Pixels

__all__ = ["ImageReader"]

A = TypeVar("A")

_MAX_PIXELS = 1 << 29
"""About 23,000 px squared: beyond, a header lies or the image is a slide."""
_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")
_AS_GREY = {"L": "L", "LA": "L", "1": "L"}
_AS_COLOUR = ("RGB", "RGBA", "P", "PA", "CMYK", "YCbCr", "RGBX")


class ImageReader:
    """One row an item: the image."""

    name = "image"

    def __init__(self) -> None:
        self.options: dict[str, Any] = {}

    def count_rows(self, path: Path) -> int:
        """Give 1; nothing is opened."""
        return 1

    def read(self, path: Path, start: int, stop: int) -> ItemRows:
        """Decode the image.

        Args:
            path: Its file.
            start: 0.
            stop: 1.

        Returns:
            One row, (1, Y, X) or (3, Y, X), uint8, uint16 or float32.

        Raises:
            ItemError: If the file is missing, cut short, no image, or of 32-bit integers.
        """
        return ItemRows([_decode(path, _channels_first)])

    def read_mask(self, path: Path) -> npt.NDArray[np.integer[Any]]:
        """Decode a mask of one channel; a palette's indices are the labels.

        Args:
            path: Its file.

        Returns:
            (1, Y, X) labels as stored.

        Raises:
            ItemError: As for `read`, or if it has colours, whose labels nobody can know.
        """
        return _decode(path, _labels)


def _decode(path: Path, convert: Callable[[Any], A]) -> A:
    from PIL import Image, ImageOps, UnidentifiedImageError

    Image.MAX_IMAGE_PIXELS = None  # Pillow would warn at a quarter of what we refuse
    try:
        with Image.open(path) as image:
            if image.width * image.height > _MAX_PIXELS:
                raise ItemError(f"its header claims {image.width} x {image.height} px")
            image.load()
            upright = ImageOps.exif_transpose(image)
            return convert(upright)
    except FileNotFoundError as exc:
        raise ItemError("the file is missing") from exc
    except IsADirectoryError as exc:
        raise ItemError("it is a folder, not an image file") from exc
    except UnidentifiedImageError as exc:
        raise ItemError("not an image that Pillow knows") from exc
    # What Pillow's decoders raise on damaged files (its documentation names only the first two).
    except (OSError, ValueError, SyntaxError, EOFError, MemoryError, KeyError, IndexError) as exc:
        raise ItemError(f"cannot be decoded: {_one_line(exc)}") from exc
    except (struct.error, zlib.error, TypeError, OverflowError, ArithmeticError) as exc:
        raise ItemError(f"cannot be decoded: {_one_line(exc)}") from exc


def _channels_first(image: Any) -> Pixels:  # noqa: ANN401 - Pillow is imported late
    if image.mode in _SIXTEEN_BIT or image.mode == "I":
        return _sixteen_bit(image)
    if image.mode == "F":
        return np.array(image, np.float32)[None]
    if image.mode in _AS_GREY:
        return np.array(image.convert("L"), np.uint8)[None]
    if image.mode in _AS_COLOUR:
        rgb = np.array(image.convert("RGB"), np.uint8)
        return np.ascontiguousarray(rgb.transpose(2, 0, 1))
    raise ItemError(f"its pixels are of Pillow's mode {image.mode!r}; convert it to 8 or 16 bits")


def _sixteen_bit(image: Any) -> npt.NDArray[np.uint16]:  # noqa: ANN401 - Pillow is imported late
    if image.mode != "I":
        return np.array(image, np.uint16)[None]
    # Pillow's mode for 16-bit grey PNG in older releases.
    values = np.asarray(image)
    if values.min() < 0 or values.max() > np.iinfo(np.uint16).max:
        raise ItemError("32-bit integers; convert it to 8 or 16 bits, or to float")
    return values.astype(np.uint16)[None]


def _labels(image: Any) -> npt.NDArray[np.integer[Any]]:  # noqa: ANN401 - Pillow is imported late
    if image.mode in _SIXTEEN_BIT or image.mode == "I":
        return _sixteen_bit(image)
    if image.mode == "1":
        return np.asarray(image, np.uint8)[None]
    if image.mode in ("L", "P"):
        return np.array(image, np.uint8)[None]
    raise ItemError(f"a mask has one channel; this one is of Pillow's mode {image.mode!r}")


def _one_line(exc: BaseException) -> str:
    return " ".join(str(exc).split()) or type(exc).__name__
