"""Single images: PNG, JPEG, TIFF, BMP, WebP, and DICOM of one frame.

Grey stays grey (one channel) until the encoder's input is made; colour palettes become RGB, an
alpha channel is dropped: the X-rays of NIH that have one have it opaque.
"""

from abc import abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from dinocache.errors import ItemError
from dinocache.geometry import Geometry
from dinocache.readers import dicom
from dinocache.readers.contract import ItemFiles, Labels, OpenItem, Pixels, Reader, ReaderOptions
from dinocache.readers.pictures import Picture, open_pictures

__all__ = ["ImageOptions", "ImageReader", "own_grid_only"]


class ImageOptions(ReaderOptions):
    """What is taken of a file that holds more than a picture of one or three channels."""

    page: int | None = Field(None, ge=0)
    """The page of a TIFF, or the frame of an animation or a DICOM file, from 0."""
    channels: tuple[int, ...] | None = Field(None, min_length=1)
    """Which channels, in this order, from 0. Of a TIFF whose pages have one channel each and of
    which no page is picked, these are its pages."""


class ImageReader(Reader[ImageOptions]):
    """One row an item: the image."""

    name = "image"
    summary = "PNG, JPEG, TIFF, BMP, WebP, DICOM of one frame"
    Options = ImageOptions
    one_row = True

    def open(self, files: ItemFiles, like: Geometry | None = None) -> OpenItem:
        """Read the header; the image is decoded as a whole, later."""
        item: OpenItem
        if files.path.is_file() and dicom.is_dicom(files.path):
            item = _OpenDicom(files, self.settings)
        else:
            item = _OpenPicture(files, self.settings)
        own_grid_only(item.geometry, like)
        return item


def own_grid_only(own: Geometry, like: Geometry | None) -> None:
    """Refuse another grid than the item's own.

    Args:
        own: The grid of the file.
        like: The grid that is asked for, if any.

    Raises:
        ItemError: If they differ.
    """
    if like is None:
        return
    same = like.shape == own.shape and like.volumes == own.volumes
    if same and like.affine is not None and own.affine is not None:
        same = bool(np.allclose(like.affine, own.affine, rtol=1e-4, atol=1e-6))
    if not same:
        raise ItemError(f"its grid is {own.shape}, that of the first channel {like.shape}")


class _OneRow(OpenItem):
    """A picture, kept once it is decoded: windows are measured on it before it is encoded."""

    n_rows = 1
    _kept: Pixels | None = None

    @abstractmethod
    def _decode(self) -> Pixels:
        """Decode the picture."""

    def rows(self, start: int, stop: int) -> list[Pixels]:
        if start >= stop:
            return []
        pixels = self._kept  # two threads may both decode it: the same
        if pixels is None:
            pixels = self._kept = self._decode()
        return [pixels]

    def close(self) -> None:
        self._kept = None


class _OpenPicture(_OneRow):
    def __init__(self, files: ItemFiles, options: ImageOptions) -> None:
        self._files = files
        pages = open_pictures(files.path)
        self._pages, self._picks = _choose(pages, options)
        first = self._pages[0]
        if len({(page.shape, page.dtype) for page in self._pages}) > 1:
            raise ItemError("its pages differ in size or type; pick one by the option page")
        self.geometry = _geometry(first)
        self._plane = first.shape[1:]
        self.value_range = first.value_range
        self.nbytes = sum(page.nbytes for page in self._pages)

    def _decode(self) -> Pixels:
        if len(self._pages) > 1:
            return np.concatenate([page.decode() for page in self._pages])
        pixels = self._pages[0].decode()
        return pixels if self._picks is None else pixels[self._picks]

    def mask(self) -> Labels:
        if self._files.mask is None:
            raise ItemError("it has no mask")
        return _mask(self._files.mask, self._plane)


class _OpenDicom(_OneRow):
    def __init__(self, files: ItemFiles, options: ImageOptions) -> None:
        self._files = files
        self._image = image = dicom.DicomImage(files.path)
        if options.page is None and image.frames > 1:
            raise ItemError(
                f"{image.frames} frames: read it with --reader volume or video, or pick one by the "
                "option page"
            )
        self._frame = options.page or 0
        if self._frame >= image.frames:
            raise ItemError(f"there is no frame {self._frame}; it has {image.frames}")
        self._picks = _picked(options, image.channels)
        self.geometry = Geometry(shape=(1, image.rows, image.columns))
        self.value_range = image.value_range
        self.file_window = image.file_window
        self.nbytes = image.rows * image.columns * image.channels * image.dtype.itemsize

    def _decode(self) -> Pixels:
        pixels = self._image.frame(self._frame)
        return pixels if self._picks is None else pixels[self._picks]

    def mask(self) -> Labels:
        if self._files.mask is None:
            raise ItemError("it has no mask")
        return _mask(self._files.mask, (self._image.rows, self._image.columns))


def _choose(
    pages: list[Picture], options: ImageOptions
) -> tuple[list[Picture], list[int] | slice | None]:
    """Pick pages and channels; no channels stand for all."""
    n_pages = len(pages)
    if options.page is not None:
        if options.page >= n_pages:
            raise ItemError(f"there is no page {options.page}; it has {n_pages}")
        pages = [pages[options.page]]
    elif n_pages > 1 and options.channels is not None and pages[0].channels == 1:
        return [pages[i] for i in _picked(options, n_pages) or ()], None
    if len(pages) > 1:
        what = "frames of an animation" if pages[0].animated else "pages"
        raise ItemError(f"{n_pages} {what}: pick one by the option page")
    page = pages[0]
    picks = _picked(options, page.channels)
    if picks is None and page.alpha:
        if page.channels not in (2, 4):
            raise ItemError(f"{page.channels} channels, one of them alpha: pick some by channels")
        return pages, slice(page.channels - 1)
    if picks is None and page.channels not in (1, 3):
        raise ItemError(
            f"{page.channels} channels, and the file does not say that one is alpha: pick some by "
            "the option channels"
        )
    return pages, picks


def _picked(options: ImageOptions, n_channels: int) -> list[int] | None:
    if options.channels is None:
        return None
    if not all(0 <= i < n_channels for i in options.channels):
        raise ItemError(f"it has {n_channels} channels; the options ask for {options.channels}")
    return list(options.channels)


def _geometry(picture: Picture) -> Geometry:
    _, height, width = picture.shape
    if picture.orientation == 1:
        return Geometry(shape=(1, height, width))
    # Where a picture that is turned upright lies in its file: (column, line, 0).
    swapped, across, down = _TURNS[picture.orientation]
    matrix = np.eye(4)
    if swapped:
        matrix[:2, :2] = [[0, 1], [1, 0]]
    for axis, (backwards, side) in enumerate(((across, picture.width), (down, picture.height))):
        if backwards:
            matrix[axis] *= -1
            matrix[axis, 3] = side - 1
    return Geometry(
        shape=(1, height, width), to_source=matrix, source_shape=(picture.width, picture.height, 1)
    )


_TURNS = {
    2: (False, True, False),
    3: (False, True, True),
    4: (False, False, True),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}
"""Orientation -> whether lines and columns change places, and which run backwards in the file."""


def _mask(path: Path, plane: tuple[int, ...]) -> Labels:
    """Decode a mask file to (C, 1, Y, X)."""
    try:
        found = _labels(path)
    except ItemError as exc:
        raise ItemError(f"its mask: {exc}") from exc
    shapes = {labels.shape for labels in found}
    if shapes != {tuple(plane)}:
        size = " and ".join(" x ".join(map(str, shape)) for shape in sorted(shapes))
        raise ItemError(f"its mask has {size} px, the image {plane[0]} x {plane[1]}")
    return np.stack(found)[:, None]


def _labels(path: Path) -> list[npt.NDArray[np.integer[Any]]]:
    if path.is_file() and dicom.is_dicom(path):
        image = dicom.DicomImage(path)
        frames = [image.frame(i) for i in range(image.frames)]
        if image.channels != 1 or frames[0].dtype.kind not in "iu":
            raise ItemError("a mask has one channel of whole numbers")
        return [frame[0] for frame in frames]
    pages = open_pictures(path)
    if pages[0].animated:
        raise ItemError("a mask is no animation")
    return [page.labels() for page in pages]
