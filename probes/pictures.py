"""Pictures for a page: made small, as WebP."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["webp_of_array", "webp_of_png"]

_LARGEST_FILE = 32 << 20
_LARGEST_PX = 8192
_QUALITY = 72


def webp_of_png(png: Path | bytes, side: int) -> bytes | None:
    """Make a PNG small.

    Args:
        png: Its path, or its content.
        side: Of the longer side at most, px.

    Returns:
        WebP; None if it is no PNG, larger than 32 MiB or 8,192 px, or a link.
    """
    from PIL import Image

    try:
        if isinstance(png, Path):
            if png.is_symlink() or png.stat().st_size > _LARGEST_FILE:
                return None
            png = png.read_bytes()
        with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
            if max(image.size) > _LARGEST_PX:
                return None
            return _webp(image.convert("RGB"), side)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None  # what Pillow raises of what is no picture, or a damaged one


def webp_of_array(picture: npt.NDArray[np.floating[Any]], side: int) -> bytes:
    """Make a small picture of an array.

    Args:
        picture: (Y, X) or (Y, X, 3) in [0, 1].
        side: Of the longer side at most, px.

    Returns:
        WebP.
    """
    from PIL import Image

    pixels = (np.clip(picture, 0, 1) * 255).round().astype(np.uint8)
    return _webp(Image.fromarray(pixels).convert("RGB"), side)


def _webp(image: Any, side: int) -> bytes:  # noqa: ANN401 - of PIL
    image.thumbnail((side, side))
    buffer = io.BytesIO()
    image.save(buffer, format="WEBP", quality=_QUALITY, method=4)
    return buffer.getvalue()
