"""Pictures of what an encoder sees in the patches of an image: arrays in, PNG bytes out.

Needs neither torch nor a store.
"""

import io
import textwrap
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "PatchColours",
    "nearest_picture",
    "patch_similarity",
    "pca_colours",
    "pca_picture",
    "rows_picture",
    "similarity_picture",
    "unit_vectors",
    "widest_axes",
]

Floats = npt.NDArray[np.float32]

_MOST_COLUMNS = 16
"""Rows of an item beside each other."""
_MOST_TOKENS = 20_000
"""Patches that components are fitted on; of more, some evenly spread."""
_FEWEST_TOKENS = 4
_SMALLEST_NORM = 1e-12
_DPI = 144
_TALLEST = 2.5
"""Times its width that a panel is high at most."""
_POINTS_PER_LETTER = 0.55
"""Of the size of a font, on average."""
_MARK = "#ff2d95"
"""Of a chosen patch: viridis has nothing like it."""
_WARNING = "#a12300"


def unit_vectors(vectors: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
    """Give vectors the length 1, as float64; one of zeros stays as it is.

    Args:
        vectors: (..., dim).

    Returns:
        (..., dim): products of two are their cosine.
    """
    wide = vectors.astype(np.float64)
    wide /= np.maximum(np.linalg.norm(wide, axis=-1, keepdims=True), _SMALLEST_NORM)
    return wide


def widest_axes(tokens: npt.NDArray[np.float64], count: int) -> npt.NDArray[np.float64]:
    """Find the axes along which vectors around 0 spread most.

    Args:
        tokens: (n, dim), their mean taken off.
        count: How many are wanted.

    Returns:
        (dim, at most `count`), columns of length 1, the widest first; of fewer vectors than
        dimensions there are no more than vectors, and what has no spread is a column of zeros. The
        loading of largest magnitude is positive.
    """
    from scipy.linalg import eigh
    from threadpoolctl import threadpool_limits  # comes with scikit-learn

    n_tokens, dim = tokens.shape
    side = min(n_tokens, dim)
    # The smaller of both products: one of (dim, dim) is much for few patches of a wide encoder.
    products = tokens.T @ tokens if dim <= n_tokens else tokens @ tokens.T
    # Its steps are small: threads that share them wait for each other where others want a core.
    with threadpool_limits(1, "blas"):
        spreads, axes = eigh(products, subset_by_index=[max(side - count, 0), side - 1])
    axes = axes[:, ::-1]
    if dim > n_tokens:
        lengths = np.sqrt(np.maximum(spreads[::-1], 0))
        has_spread = lengths > lengths.max(initial=0) * 1e-7
        axes = tokens.T @ np.divide(axes, lengths, out=np.zeros_like(axes), where=has_spread)
    largest = axes[np.abs(axes).argmax(0), range(axes.shape[1])]
    found: npt.NDArray[np.float64] = axes * np.where(largest < 0, -1, 1)
    return found


@dataclass(frozen=True, kw_only=True, eq=False)
class PatchColours:
    """Three principal components of patches as red, green, blue.

    Attributes:
        mean: (dim,) of the patches that they were fitted on.
        axes: (dim, 3), the widest first; the loading of largest magnitude is positive.
        low: (3,) the 2nd percentile of each component, which becomes 0.
        high: (3,) the 98th, which becomes 1.

    References:
        DINOv3 (arXiv:2508.10104), figures of dense features.
    """

    mean: npt.NDArray[np.float64]
    axes: npt.NDArray[np.float64]
    low: npt.NDArray[np.float64]
    high: npt.NDArray[np.float64]

    @classmethod
    def fit(cls, patches: npt.NDArray[np.floating[Any]]) -> Self:
        """Find the components of patches.

        Args:
            patches: (..., dim), of one image or of many; of more than 20,000 that many are taken,
                evenly spread.

        Raises:
            ValueError: If there are fewer than four patches or three dimensions.
        """
        dim = patches.shape[-1]
        tokens = patches.reshape(-1, dim)
        if len(tokens) < _FEWEST_TOKENS or dim < 3:
            raise ValueError(f"a PCA picture needs 4 patches and 3 dimensions, got {patches.shape}")
        some = tokens[:: -(-len(tokens) // _MOST_TOKENS)]
        wide: npt.NDArray[np.float64] = some.astype(np.float64)
        mean = wide.mean(0)
        wide -= mean
        axes = widest_axes(wide, 3)
        low, high = np.percentile(wide @ axes, [2, 98], axis=0)
        return cls(mean=mean, axes=axes, low=low, high=high)

    def of(self, patches: npt.NDArray[np.floating[Any]]) -> Floats:
        """Colour patches.

        Args:
            patches: (..., dim).

        Returns:
            (..., 3) float32 in [0, 1].
        """
        components = (patches.astype(np.float64) - self.mean) @ self.axes
        scaled = (components - self.low) / np.maximum(self.high - self.low, 1e-12)
        return np.clip(scaled, 0, 1).astype(np.float32)


def pca_colours(patches: Floats) -> Floats:
    """Colour patch features by their first three principal components.

    Args:
        patches: (grid_height, grid_width, dim).

    Returns:
        (grid_height, grid_width, 3) float32 in [0, 1]: each component's 2nd to 98th percentile. A
        component's sign is fixed so that its largest loading is positive.

    Raises:
        ValueError: If there are fewer than four patches or three dimensions.
    """
    return PatchColours.fit(patches).of(patches)


def patch_similarity(patches: npt.NDArray[np.floating[Any]], patch: tuple[int, int]) -> Floats:
    """Compare a patch to all others by the cosine of their features.

    Args:
        patches: (grid_height, grid_width, dim).
        patch: (row, column) on the grid, from 0.

    Returns:
        (grid_height, grid_width) float32 in [-1, 1]; 1 at the patch itself, 0 where there are only
        zeros.
    """
    units = unit_vectors(patches)
    cosines: Floats = np.clip(units @ units[patch], -1, 1).astype(np.float32)
    return cosines


def pca_picture(image: Floats, patches: Floats) -> bytes:
    """Draw an image beside its patch features.

    Args:
        image: (Y, X) or (Y, X, 3) in [0, 1].
        patches: (grid_height, grid_width, dim).

    Returns:
        A PNG.
    """
    from matplotlib.figure import Figure

    colours = pca_colours(patches)
    aspect = image.shape[0] / image.shape[1]
    figure = Figure(figsize=(8, 4 * aspect), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw(left, image)
    _draw(right, colours, like=image)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", transparent=True)
    return buffer.getvalue()


def rows_picture(
    pictures: Sequence[Floats],
    colours: Sequence[Floats],
    *,
    names: Sequence[str] = (),
    title: str = "",
    warning: str = "",
    caption: str = "",
) -> bytes:
    """Draw rows of an item with the colours of their patches.

    Args:
        pictures: Of each row (Y, X) or (Y, X, 3) in [0, 1].
        colours: Of each row (grid_height, grid_width, 3) in [0, 1].
        names: Of the rows, above them; none for an item of one row.
        title: Above it.
        warning: Below the title.
        caption: Below the picture.

    Returns:
        A PNG: one row of an item with its colours to the right, several with theirs below.

    Raises:
        ValueError: If there are no rows, more than 16, or not as many colours.
    """
    count = len(pictures)
    if not 1 <= count <= _MOST_COLUMNS or len(colours) != count:
        raise ValueError(
            f"1 to {_MOST_COLUMNS} rows are drawn beside each other, each with its colours; got "
            f"{count} and {len(colours)}"
        )
    lines, columns, panel = (1, 2, 3.4) if count == 1 else (2, count, 1.7)
    figure, panels = _figure(
        pictures, (lines, columns), panel, (title, warning, caption), named=bool(names)
    )
    above, below = (panels[0, :1], panels[0, 1:]) if count == 1 else panels
    for number, (picture, colour) in enumerate(zip(pictures, colours, strict=True)):
        _draw(above[number], picture)
        _draw(below[number], colour, like=picture)
        if names:
            above[number].set_title(names[number], fontsize=8, parse_math=False)
    return _png(figure)


def similarity_picture(
    picture: Floats,
    similarity: Floats,
    patch: tuple[int, int],
    *,
    title: str = "",
    warning: str = "",
    caption: str = "",
) -> bytes:
    """Draw how much alike all patches are to one of them.

    Args:
        picture: (Y, X) or (Y, X, 3) in [0, 1].
        similarity: (grid_height, grid_width), of `patch_similarity`.
        patch: (row, column) of the one, from 0; it is outlined.
        title: Above it.
        warning: Below the title.
        caption: Below the picture.

    Returns:
        A PNG: the picture, and the map in viridis, from the least to the most alike of the others.

    Raises:
        ValueError: If the patch is not on the grid.
    """
    from matplotlib.patches import Rectangle

    (rows, columns), (y, x) = similarity.shape, patch
    if not (0 <= y < rows and 0 <= x < columns):
        raise ValueError(f"a patch of a grid of {rows} x {columns} was expected, got {patch}")
    figure, panels = _figure([picture], (1, 2), 3.4, (title, warning, caption), beside=0.7)
    left, right = panels[0]
    _draw(left, picture)
    heat = _draw(right, similarity, like=picture, cmap="viridis")
    heat.set_clim(*_range(similarity, patch))
    figure.colorbar(heat, ax=right, label="cosine", fraction=0.046, pad=0.03)
    height, width = picture.shape[0] / rows, picture.shape[1] / columns
    for axes in (left, right):
        corner, size = (x * width, y * height), (width, height)
        for colour, line in (("white", 3.0), (_MARK, 1.6)):
            # Not clipped: at the rim half of the line is beyond the picture.
            axes.add_patch(
                Rectangle(
                    corner, *size, fill=False, edgecolor=colour, linewidth=line, clip_on=False
                )
            )
    return _png(figure)


def nearest_picture(
    picture: Floats,
    nearest: Sequence[tuple[Floats, str]],
    *,
    name: str,
    title: str = "",
    warning: str = "",
    caption: str = "",
) -> bytes:
    """Draw an item with those that are nearest to it.

    Args:
        picture: Of the item, (Y, X) or (Y, X, 3) in [0, 1].
        nearest: Picture and name of each, the nearest first.
        name: Of the item.
        title: Above it.
        warning: Below the title.
        caption: Below the picture.

    Returns:
        A PNG: five pictures a line, the item first.

    Raises:
        ValueError: If nothing is near.
    """
    if not nearest:
        raise ValueError("there is nothing near to draw")
    shown = [(picture, name), *nearest]
    columns = min(5, len(shown))
    lines = -(-len(shown) // columns)
    pictures = [one for one, _ in shown]
    texts = title, warning, caption
    figure, panels = _figure(pictures, (lines, columns), 1.7, texts, named=True)
    for axes in panels.flat:
        axes.set_axis_off()
    for number, (axes, (one, text)) in enumerate(zip(panels.flat, shown, strict=False)):
        _draw(axes, one)
        axes.set_title(
            _broken(text, 1.7, 8), fontsize=8, parse_math=False, color="black" if number else _MARK
        )
    return _png(figure)


def _range(similarity: Floats, patch: tuple[int, int]) -> tuple[float, float]:
    """Give the least and the most alike of the other patches; of one patch -1 and 1."""
    others = similarity.copy()
    others[patch] = np.nan
    if others.size == 1:
        return -1.0, 1.0
    low, high = float(np.nanmin(others)), float(np.nanmax(others))
    return low, max(high, low + 1e-6)


def _draw(axes: "Axes", values: Floats, *, like: Floats | None = None, cmap: str = "gray") -> Any:  # noqa: ANN401
    """Draw a picture, or a map of patches to the size of a picture, without axes."""
    height, width = (values if like is None else like).shape[:2]
    axes.set_axis_off()
    return axes.imshow(
        values,
        cmap=cmap,
        vmin=0,
        vmax=1,
        interpolation="antialiased" if like is None else "nearest",
        extent=(0, width, height, 0),
    )


def _figure(
    pictures: Sequence[Floats],
    shape: tuple[int, int],
    panel: float,
    texts: tuple[str, str, str],
    *,
    named: bool = False,
    beside: float = 0.0,
) -> "tuple[Figure, npt.NDArray[Any]]":
    """Make a figure of panels.

    Args:
        pictures: That are to be drawn.
        shape: Lines and columns of panels.
        panel: Inches that a panel is wide.
        texts: Title, warning, caption.
        named: Whether panels have names above them.
        beside: Inches for a colour bar.
    """
    from matplotlib.figure import Figure

    tallest = min(max(one.shape[0] / one.shape[1] for one in pictures), _TALLEST)
    lines, columns = shape
    width = max(panel * columns + beside, 4.0)
    looks = (10.0, "black"), (9.0, _WARNING), (7.5, "#444444")
    set_texts = [
        (_broken(text, width, size), size, colour)
        for text, (size, colour) in zip(texts, looks, strict=True)
    ]
    heights = [
        (text.count("\n") + 1) * size * 1.35 / 72 if text else 0 for text, size, _ in set_texts
    ]
    top, bottom = heights[0] + heights[1] + 0.08, heights[2] + 0.06
    height = lines * (panel * tallest + 0.25 * named + 0.03) + top + bottom
    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    figure.get_layout_engine().set(  # type: ignore[union-attr, call-arg]
        rect=(0, bottom / height, 1, 1 - (top + bottom) / height)
    )
    at = 1 - 0.05 / height
    for (text, size, colour), used in zip(set_texts[:2], heights[:2], strict=True):
        figure.text(0.5, at, text, size=size, color=colour, ha="center", va="top", parse_math=False)
        at -= used / height
    text, size, colour = set_texts[2]
    below = 0.05 / height
    figure.text(
        0.5, below, text, size=size, color=colour, ha="center", va="bottom", parse_math=False
    )
    return figure, figure.subplots(lines, columns, squeeze=False)


def _broken(text: str, inches: float, size: float) -> str:
    """Break a text into lines that fit."""
    letters = max(8, int(inches * 72 / (size * _POINTS_PER_LETTER)))
    return "\n".join(
        part for line in text.splitlines() for part in textwrap.wrap(line, letters) or [""]
    )


def _png(figure: "Figure") -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # Names of items may be of any script; what the font lacks is drawn as a box.
        warnings.filterwarnings("ignore", r"Glyph .* missing from font")
        figure.savefig(buffer, format="png")
    return buffer.getvalue()
