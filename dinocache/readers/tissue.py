"""Where tissue lies on a slide: arrays in, arrays out.

The steps and their order are CLAM's (saturation, median, threshold, closing, small pieces away,
holes). It works on contours that OpenCV draws; here pieces and holes are labelled regions, and
their areas are counts of pixels.

References:
    CLAM, `wsi_core/WholeSlideImage.py`, `segmentTissue`. Differences: a closing with an even side
    moves nothing (OpenCV's moves by one pixel); beyond the picture there is background.
"""

import numpy as np
import numpy.typing as npt

__all__ = ["find_tissue", "outline", "saturation_of", "tile_shares"]

Mask = npt.NDArray[np.bool_]


def saturation_of(rgb: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Give the S of HSV.

    Args:
        rgb: (Y, X, 3).

    Returns:
        (Y, X), 0 to 255, to the nearest.
    """
    most = rgb.max(axis=2).astype(np.int32)
    spread = most - rgb.min(axis=2)
    divisor = np.maximum(most, 1)
    return np.asarray((255 * spread + divisor // 2) // divisor, np.uint8)


def find_tissue(
    rgb: npt.NDArray[np.uint8],
    *,
    saturation: int,
    otsu: bool,
    median: int,
    close: int,
    min_area: float,
    min_hole: float,
    max_holes: int,
) -> Mask:
    """Tell tissue from glass.

    Args:
        rgb: (Y, X, 3), the slide made small.
        saturation: What is above is tissue.
        otsu: Whether Otsu's threshold takes its place.
        median: Side of the median filter, px, odd; 1 is none.
        close: Side of the square of the morphological closing, px; 0 is none.
        min_area: A piece (8-connected) of so many px or fewer is dropped.
        min_hole: A hole (4-connected) of so many px or fewer is filled.
        max_holes: Holes that a piece keeps, the largest; the others are filled.

    Returns:
        (Y, X), true where there is tissue.
    """
    from scipy import ndimage

    values = saturation_of(rgb)
    if median > 1:
        values = ndimage.median_filter(values, size=median, mode="nearest")
    mask: Mask = values > (_otsu(values) if otsu else saturation)
    if close > 1:
        wide = np.pad(mask, close)
        square = np.ones((close, close), bool)
        mask = ndimage.binary_closing(wide, square)[close:-close, close:-close]
    pieces, _ = ndimage.label(mask, np.ones((3, 3), int))
    large = np.bincount(pieces.ravel()) > min_area
    large[0] = False
    mask = np.asarray(large[pieces])
    return mask | _filled(mask, pieces, min_hole, max_holes)


def tile_shares(
    mask: Mask, left: npt.NDArray[np.float64], top: npt.NDArray[np.float64], side: float
) -> npt.NDArray[np.float64]:
    """Give the share of tissue of each tile of a grid, to fractions of a mask's pixel.

    Args:
        mask: (Y, X).
        left: (columns,) left edges, in px of the mask.
        top: (rows,) upper edges, in px of the mask.
        side: Of a tile, in px of the mask.

    Returns:
        (rows, columns), 0 to 1; what reaches beyond the mask counts as glass.
    """
    total = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1))
    total[1:, 1:] = mask.cumsum(axis=0).cumsum(axis=1)

    def between(rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        # The sum grows linearly inside a pixel, so this interpolation is exact.
        return _at(_at(total, rows).T, left + side).T - _at(_at(total, rows).T, left).T

    return np.asarray((between(top + side) - between(top)) / side**2)


def outline(mask: Mask) -> Mask:
    """Give the pixels of a mask that touch what is not in it, (Y, X)."""
    from scipy import ndimage

    inner: Mask = ndimage.binary_erosion(mask)
    return mask & ~inner


def _at(total: npt.NDArray[np.float64], where: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Read between the rows of an array; beyond its ends, the ends."""
    where = np.clip(where, 0, len(total) - 1)
    low = np.minimum(where.astype(np.int64), len(total) - 2)
    share = (where - low)[:, None]
    return np.asarray(total[low] * (1 - share) + total[low + 1] * share)


def _otsu(values: npt.NDArray[np.uint8]) -> int:
    """Give the threshold that parts the values into two classes furthest apart.

    References:
        Otsu 1979, equation 18.
    """
    counts = np.bincount(values.ravel(), minlength=256).astype(np.float64)
    below = counts.cumsum()
    sums = (counts * np.arange(256)).cumsum()
    above = below[-1] - below
    parted = (below > 0) & (above > 0)
    low = np.divide(sums, below, out=np.zeros(256), where=parted)
    high = np.divide(sums[-1] - sums, above, out=np.zeros(256), where=parted)
    return int(np.argmax(below * above * (high - low) ** 2))


def _filled(mask: Mask, pieces: npt.NDArray[np.int32], min_hole: float, max_holes: int) -> Mask:
    """Give the holes of each piece that are no holes: all but its largest, if those are large."""
    from scipy import ndimage

    regions, count = ndimage.label(np.pad(~mask, 1, constant_values=True))
    sizes = np.bincount(regions.ravel(), minlength=count + 1)
    holes = np.setdiff1d(np.arange(1, count + 1), regions[0, 0])
    # The first pixel of a hole, line by line, has under itself the hole, above it the piece around.
    found, first = np.unique(regions, return_index=True)
    first = first[np.isin(found, holes)]
    rows, columns = np.divmod(first, regions.shape[1])
    owners = pieces[rows - 2, columns - 1]
    fill = np.zeros(count + 1, bool)
    for owner in np.unique(owners):
        mine = holes[owners == owner]
        mine = mine[np.argsort(-sizes[mine], kind="stable")]
        fill[mine[max_holes:]] = True
        fill[mine[sizes[mine] <= min_hole]] = True
    return np.asarray(fill[regions][1:-1, 1:-1])
