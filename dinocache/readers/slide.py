"""Whole slides: the rows are tiles of one physical size that hold tissue.

A tile is read at the nearest level that is as fine as asked, or finer, as many px wide as it is
there; the recipe's `input` resizes it to the encoder's resolution. Tiles abut exactly in px of that
level: its grid begins at the slide's corner (0, 0), and no tile crosses the slide's edge.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from dinocache.errors import ItemError
from dinocache.geometry import Geometry
from dinocache.readers.contract import ItemFiles, Labels, OpenItem, Pixels, Reader, ReaderOptions
from dinocache.readers.pyramid import Pyramid, open_pyramid
from dinocache.readers.tissue import find_tissue, outline, tile_shares

__all__ = ["SlideOptions", "SlideReader"]

_REFERENCE_PX = 512
"""Side of the tile in which CLAM counts areas, level-0 px."""
_LEAST_UM, _MOST_UM = 0.05, 50.0
"""Um/px of level 0 that a microscope can have made."""
_ALIKE = 0.05
"""Two statements of um/px that differ by a smaller share are the same."""
_MAX_SIDE = 1 << 14
_MAX_TILES = 1 << 24
_THUMBNAIL_PX = 1024
_TISSUE_COLOUR, _TILE_COLOUR = (0, 140, 60), (30, 60, 230)


class SlideOptions(ReaderOptions):
    """Options of `SlideReader`. Those of the tissue are CLAM's preset `tcga` by default.

    CLAM's `bwh_biopsy` is saturation=15, median=11, close=2, min_area=1, min_hole=1, max_holes=2.
    CLAM looks at the level nearest to a 64th of level 0; here the overview is exactly that small,
    by averaging, so the tiles do not depend on which levels a file has.
    """

    tile_px: int = Field(224, ge=16, le=8192)
    """Side of a tile, px at tile_mpp."""
    tile_mpp: Annotated[float, Field(ge=0.01, le=1000)] | Literal["native"] = 0.5
    """Um/px at which a tile is tile_px wide; native: px of the finest level, of whatever size."""
    slide_mpp: Annotated[float, Field(ge=_LEAST_UM, le=_MOST_UM)] | None = None
    """Um/px of the finest level, for files that do not state it."""
    overlap_px: int = Field(0, ge=0)
    """Of neighbouring tiles, px at tile_mpp."""
    min_tissue: float = Field(0.25, ge=0, le=1)
    """Least share of a tile's area that is tissue."""
    tissue: Literal["saturation", "none"] = "saturation"
    """How tissue is found; none: every tile is kept."""
    saturation: int = Field(8, ge=0, le=254)
    """Saturation (of HSV, 0 to 255) above which there is tissue."""
    otsu: bool = False
    """Take Otsu's threshold in place of saturation."""
    median: int = Field(7, ge=1, le=63)
    """Side of the median filter, px of the overview, odd; 1: none."""
    close: int = Field(4, ge=0, le=64)
    """Side of the closing, px of the overview; 0: none."""
    min_area: float = Field(16, ge=0)
    """Area up to which a piece of tissue is dropped, in squares of 512 level-0 px."""
    min_hole: float = Field(4, ge=0)
    """Area up to which a hole is filled, in squares of 512 level-0 px."""
    max_holes: int = Field(8, ge=0)
    """Holes that a piece of tissue keeps at most."""
    tissue_downsample: float = Field(64, ge=4, le=1024)
    """Level-0 px a px of the overview in which tissue is found."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.overlap_px >= self.tile_px:
            raise ValueError("overlap_px must be less than tile_px")
        if self.median % 2 == 0:
            raise ValueError("median must be odd")
        return self


class SlideReader(Reader[SlideOptions]):
    """One row a tile that holds tissue, by y, then x."""

    name = "slide"
    summary = "whole slides: what OpenSlide opens, and large TIFF, JPEG, PNG"
    Options = SlideOptions
    columns = (("x", "level-0 px"), ("y", "level-0 px"))

    def open(self, files: ItemFiles, like: Geometry | None = None) -> OpenItem:
        """Read the header and an overview, and find the tiles with tissue."""
        if like is not None and like.shape is not None:
            raise ItemError("the tiles of a slide lie on no grid, and cannot be brought to one")
        pyramid = open_pyramid(files.path)
        try:
            return _OpenSlide(pyramid, self.settings)
        except BaseException:
            pyramid.close()
            raise


@dataclass(frozen=True, kw_only=True)
class _Grid:
    """Where tiles may lie.

    Attributes:
        level: That they are read at.
        side: Of a tile, px of the level.
        step: From one tile to the next, px of the level.
        columns: Tiles side by side.
        lines: Tiles one below another.
        downsample: Level-0 px a px of the level.
    """

    level: int
    side: int
    step: int
    columns: int
    lines: int
    downsample: float

    def corners(self, count: int) -> npt.NDArray[np.float64]:
        """Give the level-0 px, whole, of the first `count` tiles along one axis."""
        return np.asarray(np.rint(np.arange(count) * self.step * self.downsample))


class _OpenSlide(OpenItem):
    def __init__(self, pyramid: Pyramid, options: SlideOptions) -> None:
        self._pyramid = pyramid
        self._options = options
        mpp = None
        if options.tile_mpp != "native":
            mpp = settle_um_per_px(pyramid.um_per_px, options.slide_mpp)
        self._grid = _lay_grid(pyramid, options, mpp)
        self._tissue: npt.NDArray[np.bool_] | None = None
        if options.tissue != "none":
            self._tissue = self._find_tissue(min_area=options.min_area)
        self._line, self._column = self._choose()
        self.n_rows = len(self._line)
        self.size = pyramid.sizes[0]
        self.nbytes = 3 * self._grid.side**2 * self.n_rows + pyramid.held_bytes
        scale = "um/px unknown" if mpp is None else f"{mpp:.4g} um/px"
        self.notes = (
            f"{scale} at level 0; a tile is {self._grid.side} px of level {self._grid.level}",
        )

    def rows(self, start: int, stop: int) -> list[Pixels]:
        side, step = self._grid.side, self._grid.step
        return [
            self._pyramid.region(
                self._grid.level, int(column) * step, int(line) * step, side, side
            ).transpose(2, 0, 1)
            for line, column in zip(self._line[start:stop], self._column[start:stop], strict=True)
        ]

    def coords(self) -> npt.NDArray[np.float64]:
        x = self._grid.corners(self._grid.columns)[self._column]
        y = self._grid.corners(self._grid.lines)[self._line]
        return np.stack([x, y], axis=1)

    def mask(self) -> Labels:
        raise ItemError("masks of slides are not read; label the slide, or its tiles in a table")

    def thumbnail(self) -> npt.NDArray[np.uint8]:
        """Show the slide, the edge of its tissue (green) and the tiles that were kept (blue)."""
        from PIL import Image, ImageDraw

        width, height = self._pyramid.sizes[0]
        factor = max(1.0, max(width, height) / _THUMBNAIL_PX)
        if self._tissue is not None and self._options.tissue_downsample <= factor:
            image = Image.fromarray(self._overview)
        else:
            image = Image.fromarray(self._pyramid.overview(factor))
        shown = max(1, int(width / factor)), max(1, int(height / factor))
        image = image.resize(shown, Image.Resampling.BOX)
        across, down = shown[0] / width, shown[1] / height
        draw = ImageDraw.Draw(image, "RGBA")
        tile = self._grid.side * self._grid.downsample
        # Lines of tiles of a few px would hide the slide.
        line = (*_TILE_COLOUR, 200) if tile * across >= 8 else None
        for x, y in self.coords().tolist():
            corners = x * across, y * down, (x + tile) * across, (y + tile) * down
            draw.rectangle(corners, fill=(*_TILE_COLOUR, 40), outline=line)
        if self._tissue is not None:
            covered = _cover(self._tissue, self._options.tissue_downsample, (width, height), shown)
            image.paste(_TISSUE_COLOUR, mask=Image.fromarray(outline(covered)))
        return np.array(image)

    def close(self) -> None:
        self._pyramid.close()

    @cached_property
    def _overview(self) -> npt.NDArray[np.uint8]:
        return self._pyramid.overview(self._options.tissue_downsample)

    def _find_tissue(self, *, min_area: float) -> npt.NDArray[np.bool_]:
        options = self._options
        square = (_REFERENCE_PX / options.tissue_downsample) ** 2
        return find_tissue(
            self._overview,
            saturation=options.saturation,
            otsu=options.otsu,
            median=options.median,
            close=options.close,
            min_area=min_area * square,
            min_hole=options.min_hole * square,
            max_holes=options.max_holes,
        )

    def _choose(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Give the line and the column of each tile that is kept."""
        grid, options = self._grid, self._options
        if self._tissue is None:
            kept = np.ones((grid.lines, grid.columns), bool)
        else:
            shrink = options.tissue_downsample
            share = tile_shares(
                self._tissue,
                grid.corners(grid.columns) / shrink,
                grid.corners(grid.lines) / shrink,
                grid.side * grid.downsample / shrink,
            )
            kept = share >= options.min_tissue - 1e-9  # a full tile may come to 1 - 1e-16
            if not kept.any():
                raise ItemError(self._no_tissue(self._tissue.mean()))
        line, column = np.nonzero(kept)
        return line.astype(np.int64), column.astype(np.int64)

    def _no_tissue(self, share: float) -> str:
        options = self._options
        above = "Otsu's threshold" if options.otsu else f"{options.saturation}"
        small = self._find_tissue(min_area=0).mean() - share
        return (
            f"no tile is tissue for at least min_tissue={options.min_tissue:g} of its area: pieces "
            f"of saturation above {above} cover {share:.1%} of the slide, and those dropped as no "
            f"larger than min_area={options.min_area:g} squares of {_REFERENCE_PX} px {small:.1%}"
        )


def settle_um_per_px(stated: tuple[float, float] | None, given: float | None) -> float:
    """Find the size of a level-0 px.

    Args:
        stated: (x, y), by the file.
        given: By a person.

    Returns:
        Um/px.

    Raises:
        ItemError: If nobody says it, the two do not agree, or the pixels are no squares.
    """
    if stated is None:
        if given is None:
            raise ItemError("the file does not state its um/px; --mpp X gives it")
        return given
    x, y = stated
    if not all(_LEAST_UM <= value <= _MOST_UM for value in stated):
        if given is None:
            raise ItemError(
                f"the file states {x:.4g} x {y:.4g} um/px, which no slide has ({_LEAST_UM:g} to "
                f"{_MOST_UM:g}); --mpp X gives the true one"
            )
        return given
    if abs(x - y) > _ALIKE * min(x, y):
        raise ItemError(f"its pixels are no squares: {x:.4g} x {y:.4g} um")
    mean = (x + y) / 2
    if given is not None and abs(given - mean) > _ALIKE * mean:
        raise ItemError(f"the file states {mean:.4g} um/px, --mpp says {given:.4g}")
    return mean


def _lay_grid(pyramid: Pyramid, options: SlideOptions, mpp: float | None) -> _Grid:
    level, zoom = 0, 1.0
    if mpp is not None and options.tile_mpp != "native":
        wanted = options.tile_mpp
        if mpp > wanted * (1 + _ALIKE):
            raise ItemError(
                f"its finest level has {mpp:.4g} um/px, coarser than the tile_mpp of {wanted:g}"
            )
        level = pyramid.level_for(wanted / mpp)
        zoom = wanted / (mpp * pyramid.downsamples[level])
    side = round(options.tile_px * zoom)
    if side > _MAX_SIDE:
        raise ItemError(
            f"a tile would be {side} px at its nearest finer level, more than {_MAX_SIDE}; "
            "ask for smaller tiles, or convert it to a pyramid"
        )
    step = max(1, side - round(options.overlap_px * zoom))
    downsample = pyramid.downsamples[level]
    columns, lines = (
        _count(size, full, side=side, step=step, downsample=downsample)
        for size, full in zip(pyramid.sizes[level], pyramid.sizes[0], strict=True)
    )
    if min(columns, lines) < 1:
        width, height = pyramid.sizes[level]
        raise ItemError(
            f"it has {width} x {height} px at level {level}, less than a tile of {side} px"
        )
    if columns * lines > _MAX_TILES:
        raise ItemError(f"it would have {columns} x {lines} tiles; ask for larger ones")
    return _Grid(
        level=level, side=side, step=step, columns=columns, lines=lines, downsample=downsample
    )


def _count(size: int, full: int, *, side: int, step: int, downsample: float) -> int:
    """Count the tiles that fit along one axis, at their level and at level 0."""
    within = min(size, math.floor(full / downsample + 1e-6))
    return (within - side) // step + 1 if within >= side else 0


def _cover(
    mask: npt.NDArray[np.bool_], downsample: float, full: tuple[int, int], shown: tuple[int, int]
) -> npt.NDArray[np.bool_]:
    """Give the mask at each px of a picture of the whole slide, (Y, X)."""
    column, line = (
        ((np.arange(count) + 0.5) * size / count / downsample).astype(np.int64)
        for count, size in zip(shown, full, strict=True)
    )
    return np.asarray(
        mask[np.minimum(line, mask.shape[0] - 1)][:, np.minimum(column, mask.shape[1] - 1)]
    )
