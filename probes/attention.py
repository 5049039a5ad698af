"""Pictures of what a bag's score hangs on: weights of tiles, laid over the slide."""

import io
import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dinocache.errors import StoreDamagedError, StoreIncompleteError
from dinocache.layout import THUMB_SIZE
from dinocache.store import FeatureStore

__all__ = [
    "Thumbnail",
    "attention_picture",
    "heat_map",
    "percentile_ranks",
    "read_thumbnail",
    "tile_side",
]

_LARGEST_PX = 4096
"""Side of a thumbnail beyond which it is none of ours; the slide reader makes 1,024."""
_MAP_PX = 512
"""Longer side of a heat map without a thumbnail."""


@dataclass(frozen=True, kw_only=True)
class Thumbnail:
    """A small picture of a whole slide.

    Attributes:
        pixels: (Y, X, 3) uint8.
        size: (width, height) of the slide, level-0 px.
    """

    pixels: npt.NDArray[np.uint8]
    size: tuple[int, int]


def attention_picture(
    corners: npt.NDArray[np.float64],
    weights: npt.NDArray[np.float32],
    *,
    side: float,
    thumbnail: Thumbnail | None = None,
    ranked: bool = True,
) -> bytes:
    """Draw a slide beside the weights of its tiles.

    Args:
        corners: (n_rows, 2) x and y of each tile's upper left corner, level-0 px.
        weights: (n_rows,) of the tiles, as `AbmilHead.attention` gives them.
        side: Of a tile, level-0 px.
        thumbnail: The slide; without one the tiles are drawn alone, on white.
        ranked: Colour a tile by its percentile within the slide, in place of its weight. A few
            tiles may hold most of the weight, and the others are then hard to tell apart.

    Returns:
        A PNG.

    Raises:
        ValueError: If the arrays do not fit each other, or a tile lies outside the slide.
    """
    from matplotlib.figure import Figure

    values = percentile_ranks(weights) if ranked else np.asarray(weights, np.float64)
    if thumbnail is None:
        corners = corners - corners.min(axis=0)
        width, height = (corners.max(axis=0) + side).tolist()
        scale = _MAP_PX / max(width, height)
        shape = max(1, round(height * scale)), max(1, round(width * scale))
    else:
        width, height = thumbnail.size
        shape = thumbnail.pixels.shape[0], thumbnail.pixels.shape[1]
    shown = heat_map(corners, values, side=side, size=(width, height), shape=shape)
    pictures = 1 if thumbnail is None else 2
    inches = 4 * pictures + 0.8, 4 * min(max(height / width, 0.2), 5)
    figure = Figure(figsize=inches, dpi=120, layout="constrained")
    axes = figure.subplots(1, pictures, squeeze=False)[0]
    for panel in axes:
        panel.set_axis_off()
        if thumbnail is not None:
            panel.imshow(thumbnail.pixels)
    heat = axes[-1].imshow(
        shown,
        cmap="viridis",
        vmin=0,
        vmax=100 if ranked else values.max(),
        alpha=1.0 if thumbnail is None else 0.6,
        interpolation="nearest",
    )
    label = "attention, percentile within the slide" if ranked else "attention"
    figure.colorbar(heat, ax=axes[-1], label=label, fraction=0.05)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def heat_map(
    corners: npt.NDArray[np.float64],
    values: npt.NDArray[np.float64],
    *,
    side: float,
    size: tuple[float, float],
    shape: tuple[int, int],
) -> npt.NDArray[np.float64]:
    """Paint tiles into a picture of the slide.

    Args:
        corners: (n_rows, 2) x and y of each tile's upper left corner, level-0 px.
        values: (n_rows,).
        side: Of a tile, level-0 px.
        size: (width, height) of the slide, level-0 px.
        shape: (Y, X) of the picture, px.

    Returns:
        (Y, X): the mean value of the tiles there, NaN where there is none. Edges of tiles are
        rounded to whole px, so that tiles that abut do so here; each has at least one px.

    Raises:
        ValueError: If the arrays do not fit each other, or a tile lies outside the slide.
    """
    corners, values = np.asarray(corners, np.float64), np.asarray(values, np.float64)
    if corners.ndim != 2 or corners.shape[1] != 2 or values.shape != (len(corners),):
        raise ValueError(
            "a heat map is made of corners (n_rows, 2) and values (n_rows,) of the same tiles; "
            f"got {corners.shape} and {values.shape}"
        )
    scale = np.array([shape[1] / size[0], shape[0] / size[1]])
    # Corners are rounded to whole px, and so may the last tile reach beyond the edge.
    if len(corners) == 0 or (corners < -1).any() or (corners + side > np.array(size) + 1).any():
        raise ValueError(
            f"tiles must lie within the slide of {size[0]:g} x {size[1]:g} level-0 px and be at "
            f"least one; got {len(corners)} with sides of {side:g} px"
        )
    last = np.array(shape[::-1]) - 1
    first = np.clip(np.rint(corners * scale).astype(int), 0, last)
    stop = np.clip(np.rint((corners + side) * scale).astype(int), first + 1, last + 1)
    # Each tile marks its four corners, and two running sums fill the rectangle between them.
    marks = np.zeros((2, shape[0] + 1, shape[1] + 1))
    for sign_x, x in ((1, first[:, 0]), (-1, stop[:, 0])):
        for sign_y, y in ((1, first[:, 1]), (-1, stop[:, 1])):
            np.add.at(marks[0], (y, x), sign_x * sign_y)
            np.add.at(marks[1], (y, x), sign_x * sign_y * values)
    counts, totals = marks.cumsum(axis=1).cumsum(axis=2)[:, :-1, :-1]
    counts = np.rint(counts)
    painted: npt.NDArray[np.float64] = np.full(shape, np.nan)
    np.divide(totals, counts, out=painted, where=counts > 0)
    return painted


def percentile_ranks(weights: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Say what share of the weights is smaller, half of the equal ones counted, in percent.

    Args:
        weights: (n_rows,).

    Returns:
        (n_rows,) above 0 and below 100.
    """
    from scipy.stats import rankdata

    ranks: npt.NDArray[np.float64] = (rankdata(weights) - 0.5) / len(weights) * 100
    return ranks


def tile_side(corners: npt.NDArray[np.float64], *, tile_px: int, overlap_px: int) -> float:
    """Find the side of a slide's tiles from how far they lie apart.

    Args:
        corners: (n_rows, 2) x and y of each tile's upper left corner, level-0 px.
        tile_px: Of the reader's options: side of a tile, px at its resolution.
        overlap_px: Of the reader's options: what neighbours share, px at its resolution.

    Returns:
        Level-0 px.

    Raises:
        ValueError: If all tiles lie in one line and one column.
    """
    steps = np.concatenate([np.diff(np.unique(axis)) for axis in np.asarray(corners).T])
    if len(steps) == 0:
        raise ValueError("one tile does not show how large it is; give its side in level-0 px")
    return float(steps.min()) * tile_px / (tile_px - overlap_px)


def read_thumbnail(store: FeatureStore, item_id: str) -> Thumbnail:
    """Read the small picture of a slide, with the tissue's outline and the tiles that were kept.

    Args:
        store: Features of slides.
        item_id: Which slide.

    Returns:
        The picture, and how large the slide is.

    Raises:
        StoreIncompleteError: If the store has none of this item.
        StoreDamagedError: If the file is not as it was committed, or no picture of ours.
    """
    content = store.thumbnail(item_id)
    if content is None:
        raise StoreIncompleteError(
            f"{store.folder} has no small picture of item {item_id!r}; only slides have one"
        )
    return _decode(content, f"the small picture of {item_id!r}")


def _decode(content: bytes, name: str) -> Thumbnail:
    """Decode a PNG whose header says that it is small."""
    from matplotlib.image import imread

    width, height = (int.from_bytes(content[at : at + 4], "big") for at in (16, 20))
    if content[12:16] != b"IHDR" or not 0 < width <= _LARGEST_PX or not 0 < height <= _LARGEST_PX:
        raise StoreDamagedError(
            f"{name} must be a PNG of at most {_LARGEST_PX} px a side; copy it again from where "
            "the store came from"
        )
    size = re.fullmatch(rb"(\d{1,9}) (\d{1,9})", _text_chunk(content, THUMB_SIZE))
    if size is None:
        raise StoreIncompleteError(
            f"{name} does not say how large the slide is: the store is older than version 0.6"
        )
    pixels = imread(io.BytesIO(content), format="png")
    if pixels.ndim != 3 or pixels.shape[2] != 3:
        raise StoreDamagedError(f"{name} must be a picture (Y, X, 3), got {pixels.shape}")
    return Thumbnail(
        pixels=np.asarray(np.rint(pixels * 255), np.uint8),
        size=(int(size[1]), int(size[2])),
    )


def _text_chunk(content: bytes, key: str) -> bytes:
    """Find a text chunk of a PNG: length, type, key, 0, text, checksum (PNG 1.2, section 4.2.3)."""
    at = 8
    while at + 12 <= len(content):
        end = at + 8 + int.from_bytes(content[at : at + 4], "big")
        found, _, text = content[at + 8 : end].partition(b"\0")
        if content[at + 4 : at + 8] == b"tEXt" and found == key.encode():
            return text
        at = end + 4
    return b""
