"""Slides as pyramids of levels, whoever opens them: OpenSlide, tifffile or Pillow.

OpenSlide is the judge of formats, levels and um/px. Where a level of it is one page of tiles in a
TIFF file, its regions come from those tiles, which is several times faster and gives the same
pixels; where anything is unusual (tiles that overlap, several areas, JPEG 2000), from OpenSlide.
"""

import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dinocache.errors import ItemError, one_line
from dinocache.readers.contract import translated
from dinocache.readers.tiff_tiles import (
    MAX_PX_PER_BYTE,
    TiffPage,
    TiffTiles,
    is_tiff,
    read_pages,
)

__all__ = ["Pyramid", "open_pyramid"]

Pixels = npt.NDArray[np.uint8]

_MAX_PX = 1 << 38
"""Of level 0: half a million px squared, or eight of the largest slides side by side."""
_MAX_OVERVIEW_PX = 1 << 34
"""Of the level that an overview is made of: 131,000 px squared, some minutes."""
_MAX_PICTURE_PX = 1 << 31
"""Of a JPEG or PNG file, which is decoded as a whole, in 4 bytes a px."""
_MAX_JPEG_PX_PER_BYTE = 1024
"""A white progressive JPEG takes about 6 bits for 256 px."""
_BAND_PX = 1 << 24
_WHITE = 255
_OPENSLIDE_CACHE_BYTES = 256 << 20
_TILED_VENDORS = ("aperio", "generic-tiff", "philips")
"""Formats of OpenSlide whose levels are plain pages of tiles."""
_UM = {"inch": 25400.0, "centimeter": 10000.0}
_ALMOST = 1.01
"""Levels that are called 2x or 0.5 um/px are so to three digits, mostly."""


class _Readers:
    """Counts who reads, so that a close waits for them: OpenSlide crashes where it does not."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._reading = 0
        self._closed = False

    @contextmanager
    def reading(self) -> Iterator[None]:
        with self._changed:
            if self._closed:
                raise ItemError("the slide was closed before it was read")
            self._reading += 1
        try:
            yield
        finally:
            with self._changed:
                self._reading -= 1
                self._changed.notify_all()

    def stop(self) -> bool:
        """Let nobody begin, and wait for those who read; False where that was done before."""
        with self._changed:
            first, self._closed = not self._closed, True
            self._changed.wait_for(lambda: not self._reading)
        return first


class Pyramid(ABC):
    """An open slide. Threads may share it; what is read while it is closed is read to its end.

    Attributes:
        sizes: (width, height) of each level, px, the finest first.
        downsamples: Of each level, level-0 px a px.
        um_per_px: (x, y) of level 0, as the file states it; None if it does not.
        held_bytes: What it keeps decoded, besides a cache.
    """

    sizes: tuple[tuple[int, int], ...]
    downsamples: tuple[float, ...]
    um_per_px: tuple[float, float] | None = None
    held_bytes: int = 0

    def __init__(self) -> None:
        self._readers = _Readers()

    def region(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        """Decode a rectangle.

        Args:
            level: Of the pyramid.
            x: Left edge, px of the level.
            y: Upper edge, px of the level.
            width: Px of the level; the rectangle lies within it.
            height: Px of the level.

        Returns:
            (height, width, 3); white where nothing was scanned.

        Raises:
            ItemError: If the file is damaged, or was closed.
        """
        with self._readers.reading():
            return self._region(level, x, y, width, height)

    @abstractmethod
    def _region(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        """Decode a rectangle of a file that stays open meanwhile."""

    def overview(self, downsample: float) -> Pixels:
        """Make the whole slide small, each px the mean of what it covers.

        It is made of the coarsest level that is fine enough, in bands of bounded size.

        Args:
            downsample: Level-0 px a px.

        Returns:
            (Y, X, 3), level 0 by `downsample`, rounded up.

        Raises:
            ItemError: If the file is damaged, has no level small enough, or was closed.
        """
        with self._readers.reading():
            return self._overview(downsample)

    def _overview(self, downsample: float) -> Pixels:
        level = self.level_for(downsample)
        width, height = self.sizes[level]
        if width * height > _MAX_OVERVIEW_PX:
            raise ItemError(
                f"its coarsest level that serves has {width} x {height} px, too many to look "
                "through; convert it to a pyramid"
            )

        def band(top: int, bottom: int) -> Pixels:
            return self._region(level, 0, top, width, bottom - top)

        return _reduce(
            band, (width, height), self._small(downsample), downsample / self.downsamples[level]
        )

    def level_for(self, downsample: float) -> int:
        """Give the coarsest level that is as fine as that, or nearly."""
        fine = [i for i, d in enumerate(self.downsamples) if d <= downsample * _ALMOST]
        return max(fine, key=lambda i: self.downsamples[i], default=0)

    def close(self) -> None:
        """Close the file, once those who read it have finished."""
        if self._readers.stop():
            self._close()

    @abstractmethod
    def _close(self) -> None:
        """Close a file that nobody reads."""

    def _small(self, downsample: float) -> tuple[int, int]:
        width, height = self.sizes[0]
        return math.ceil(width / downsample), math.ceil(height / downsample)


def open_pyramid(path: Path) -> Pyramid:
    """Open a slide.

    Args:
        path: Of a file.

    Returns:
        The slide.

    Raises:
        ItemError: If it is missing, damaged, or nothing that is known.
    """
    with translated("cannot be read"):
        if path.is_dir():
            raise ItemError("it is a folder, not a slide's file")
        if path.stat().st_size == 0:
            raise ItemError("the file is empty")
        pages = read_pages(path) if is_tiff(path) else []
    with _openslide_errors(path):
        import openslide

        vendor = openslide.OpenSlide.detect_format(path)
    if vendor is not None:
        if vendor in _TILED_VENDORS:
            _check_tiles([page for page in pages if page.tiled])
        return _OpenSlidePyramid(path, pages)
    if pages:
        return _TiffPyramid(path, pages)
    return _Picture(path)


class _OpenSlidePyramid(Pyramid):
    def __init__(self, path: Path, pages: list[TiffPage]) -> None:
        super().__init__()
        self._path = path
        with _openslide_errors(path):
            import openslide

            self._slide = openslide.OpenSlide(path)
        self._tiles: TiffTiles | None = None
        try:
            with _openslide_errors(path):
                facts = dict(self._slide.properties)
                self.sizes = tuple((int(w), int(h)) for w, h in self._slide.level_dimensions)
                self.downsamples = tuple(float(d) for d in self._slide.level_downsamples)
                self._slide.set_cache(openslide.OpenSlideCache(_OPENSLIDE_CACHE_BYTES))
            _check_levels(self.sizes)
            self.um_per_px = _stated_um_per_px(facts)
            self._page_of = self._find_pages(facts, pages)
            if any(page is not None for page in self._page_of):
                self._tiles = TiffTiles(path, pages)
        except BaseException:
            self._slide.close()
            raise

    def _find_pages(self, facts: dict[str, str], pages: list[TiffPage]) -> list[int | None]:
        """Give each level's page, where it is the only one of that size, and is decoded here."""
        vendor = facts.get("openslide.vendor")
        found: list[int | None] = []
        for size in self.sizes:
            same = [i for i, page in enumerate(pages) if page.tiled and page.size == size]
            usable = vendor in _TILED_VENDORS and len(same) == 1
            page = pages[same[0]] if usable else None
            if page is None or page.why_not:
                found.append(None)
                continue
            # Where Aperio's scanner left a tile out, OpenSlide shows the level below it.
            sparse = vendor == "aperio" and bool((page.byte_counts == 0).any())
            found.append(None if sparse else same[0])
        return found

    def _region(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        page = self._page_of[level]
        if page is not None and self._tiles is not None:
            return self._tiles.region(page, x, y, width, height)
        scale = self.downsamples[level]
        with _openslide_errors(self._path):
            found = self._slide.read_region(
                (round(x * scale), round(y * scale)), level, (width, height)
            )
        return _on_white(found)

    def _close(self) -> None:
        if self._tiles is not None:
            self._tiles.close()
        self._slide.close()


class _TiffPyramid(Pyramid):
    """A TIFF file that OpenSlide does not open: strips, or a compression that it lacks."""

    def __init__(self, path: Path, pages: list[TiffPage]) -> None:
        super().__init__()
        first = pages[0] if pages else None
        if first is None:
            raise ItemError("it is a TIFF file without a picture")
        if first.why_not:
            raise ItemError(f"not a slide that OpenSlide knows, and {first.why_not}")
        levels = [first, *(page for page in pages[1:] if _is_level(page, first))]
        levels.sort(key=lambda page: -page.size[0])
        _check_tiles(levels)
        self.sizes = tuple(page.size for page in levels)
        _check_levels(self.sizes)
        self.downsamples = tuple(_downsample(first.size, size) for size in self.sizes)
        self.um_per_px = first.um_per_px
        self._tiles = TiffTiles(path, levels)

    def _region(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        return self._tiles.region(level, x, y, width, height)

    def _close(self) -> None:
        self._tiles.close()


class _Picture(Pyramid):
    """A JPEG, PNG or BMP file, decoded as a whole at the first region, 4 bytes a px.

    The overview of a JPEG needs less: its decoder gives an eighth of the side from the low
    frequencies of each block. The others are decoded for theirs, and kept.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._lock = threading.Lock()
        self._whole: Any = None
        self._checked = False
        with self._opened() as image:
            size = image.width, image.height
            self._checked = image.format == "PNG"
            most = _MAX_JPEG_PX_PER_BYTE if image.format == "JPEG" else MAX_PX_PER_BYTE
            self._shrinks = image.format == "JPEG"
        claimed = f"it has {size[0]} x {size[1]} px by its header"
        if size[0] * size[1] > most * path.stat().st_size:
            raise ItemError(f"{claimed}, and {path.stat().st_size} bytes")
        if size[0] * size[1] > _MAX_PICTURE_PX:
            raise ItemError(f"{claimed}, too many for one JPEG or PNG; convert it to tiled TIFF")
        self.sizes = (size,)
        self.downsamples = (1.0,)
        self.held_bytes = 4 * size[0] * size[1]

    def _region(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        return np.asarray(self._decoded().crop((x, y, x + width, y + height)))

    def _overview(self, downsample: float) -> Pixels:
        if not self._shrinks:
            return super()._overview(downsample)
        width, height = self.sizes[0]
        with self._opened() as image:
            wanted = int(width / downsample), int(height / downsample)
            image.draft(image.mode, (max(1, wanted[0]), max(1, wanted[1])))
            shrunk = _as_rgb(image)
        # The decoder divides by 1, 2, 4 or 8, and rounds sides up.
        ratio = max(width / shrunk.width, height / shrunk.height)
        scale = next(factor for factor in (1, 2, 4, 8) if factor >= ratio)

        def band(top: int, bottom: int) -> Pixels:
            return np.asarray(shrunk.crop((0, top, shrunk.width, bottom)))

        return _reduce(band, shrunk.size, self._small(downsample), downsample / scale)

    def _close(self) -> None:
        self._whole = None

    def _decoded(self) -> Any:  # noqa: ANN401 - Pillow is imported late
        with self._lock:
            if self._whole is None:
                with self._opened() as image:
                    self._whole = _as_rgb(image)
            return self._whole

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        from PIL import Image, UnidentifiedImageError

        Image.MAX_IMAGE_PIXELS = None  # Pillow would warn at a fraction of what we refuse
        with translated("cannot be decoded"):
            try:
                if self._checked:
                    with Image.open(self._path, formats=("PNG",)) as image:
                        image.verify()  # checksums, which decoding passes over
                with Image.open(self._path, formats=("JPEG", "PNG", "BMP")) as image:
                    yield image
            except UnidentifiedImageError as exc:
                raise ItemError("not a slide that OpenSlide, tifffile or Pillow know") from exc


def _reduce(
    band: Callable[[int, int], Pixels],
    size: tuple[int, int],
    small: tuple[int, int],
    scale: float,
) -> Pixels:
    """Average a picture that is read in bands.

    Args:
        band: Gives the lines from one to another.
        size: (width, height) of the picture.
        small: (width, height) of the result.
        scale: Px of the picture a px of the result; those of the last column and line may cover
            less.

    Returns:
        (Y, X, 3).
    """
    from PIL import Image

    width, height = size
    columns, lines = small
    right = math.ceil(columns * scale)
    out = np.empty((lines, columns, 3), np.uint8)
    step = max(1, int(_BAND_PX / (width * scale)))
    for first in range(0, lines, step):
        last = min(first + step, lines)
        top = min(int(first * scale), height - 1)
        bottom = max(top + 1, min(math.ceil(last * scale), height))
        found = band(top, bottom)
        below = math.ceil(last * scale) - bottom
        found = np.pad(found, ((0, max(0, below)), (0, max(0, right - width)), (0, 0)), mode="edge")
        box = (0, first * scale - top, columns * scale, last * scale - top)
        made = Image.fromarray(found).resize((columns, last - first), Image.Resampling.BOX, box=box)
        out[first:last] = np.asarray(made)
    return out


def _check_tiles(pages: list[TiffPage]) -> None:
    for page in pages:
        if page.damage:
            raise ItemError(page.damage)


def _check_levels(sizes: tuple[tuple[int, int], ...]) -> None:
    if not sizes or min(min(size) for size in sizes) < 1:
        raise ItemError("it has no level with pixels")
    width, height = sizes[0]
    if width * height > _MAX_PX:
        raise ItemError(f"it claims {width} x {height} px")


def _is_level(page: TiffPage, first: TiffPage) -> bool:
    """Tell whether a page is a smaller version of the first: by its mark, and its shape."""
    (width, height), (small_width, small_height) = first.size, page.size
    if not page.reduced or page.why_not or small_width >= width or small_height >= height:
        return False
    # Sides are rounded to whole px, and some writers' twice.
    return abs(small_height - small_width * height / width) <= 2


def _downsample(full: tuple[int, int], size: tuple[int, int]) -> float:
    return (full[0] / size[0] + full[1] / size[1]) / 2


def _stated_um_per_px(facts: dict[str, str]) -> tuple[float, float] | None:
    stated = _numbers(facts, "openslide.mpp-x", "openslide.mpp-y")
    if stated is not None:
        return stated
    # OpenSlide hands these on untranslated for some formats.
    per_unit = _numbers(facts, "tiff.XResolution", "tiff.YResolution")
    um = _UM.get(facts.get("tiff.ResolutionUnit", ""))
    if per_unit is None or um is None or 0 in per_unit:
        return None
    return um / per_unit[0], um / per_unit[1]


def _numbers(facts: dict[str, str], x: str, y: str) -> tuple[float, float] | None:
    try:
        return float(facts[x]), float(facts[y])
    except (KeyError, ValueError):
        return None


def _on_white(image: Any) -> Pixels:  # noqa: ANN401 - Pillow is imported late
    """Lay RGBA on white: alpha is 0 where nothing was scanned."""
    pixels = np.asarray(image)
    colour, alpha = pixels[..., :3], pixels[..., 3:]
    if alpha.min(initial=255) == 255:
        return np.ascontiguousarray(colour)
    share = alpha.astype(np.uint16)
    blended = (colour * share + _WHITE * (255 - share) + 127) // 255
    return blended.astype(np.uint8)


def _as_rgb(image: Any) -> Any:  # noqa: ANN401 - Pillow is imported late
    from PIL import Image

    image.load()
    if image.mode == "RGB":
        return image
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        return Image.fromarray(_on_white(image.convert("RGBA")))
    if image.mode in ("1", "L", "P", "CMYK", "YCbCr"):
        return image.convert("RGB")
    raise ItemError(f"its pixels are of Pillow's mode {image.mode!r}; a slide has 8-bit RGB")


@contextmanager
def _openslide_errors(path: Path) -> Iterator[None]:
    try:
        import openslide
    except (ImportError, OSError) as exc:
        raise ItemError(
            "slides need OpenSlide, which is not installed: install dinocache[extract]"
        ) from exc
    try:
        yield
    except openslide.OpenSlideUnsupportedFormatError as exc:
        raise ItemError("not a slide that OpenSlide knows") from exc
    except (openslide.OpenSlideError, OSError, ValueError, MemoryError) as exc:
        said = one_line(exc).replace(f" {path}", "")  # the caller adds it
        raise ItemError(f"OpenSlide cannot read it: {said}") from exc
