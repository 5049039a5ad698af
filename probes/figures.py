"""Pictures of features: arrays in, PNG bytes out."""

import io
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from dinocache.feature_pictures import pca_colours, pca_picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "affinity_picture",
    "component_picture",
    "id_colours",
    "overlay_picture",
    "pca_colours",
    "pca_picture",
    "picture_png",
]

_MOST_COLUMNS = 16
"""Rows of an item beside each other."""
_PANEL = 2.4
"""Inches that a panel is wide."""


def overlay_picture(
    image: npt.NDArray[np.float32],
    truth: npt.NDArray[np.bool_],
    prediction: npt.NDArray[np.bool_],
    names: Sequence[str],
    title: str = "",
) -> bytes:
    """Draw the outlines of truth and prediction over an image.

    Args:
        image: (Y, X) or (Y, X, 3) in [0, 1].
        truth: (classes, Y, X): solid lines.
        prediction: (classes, Y, X): dashed lines.
        names: Of the classes.
        title: Above it.

    Returns:
        A PNG.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    height, width = image.shape[:2]
    figure = Figure(figsize=(5, 5 * height / width + 0.8), dpi=120, layout="constrained")
    axes = figure.subplots()
    axes.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    colours = colormaps["tab10"].colors  # type: ignore[attr-defined]
    for number in range(len(names)):
        for masks, style in ((truth, "solid"), (prediction, "dashed")):
            mask = masks[number]
            if mask.any() and not mask.all():
                colour = colours[number % len(colours)]
                axes.contour(mask, [0.5], colors=[colour], linestyles=style, linewidths=1.2)
    axes.set_axis_off()
    axes.set_title(title, fontsize=9)
    handles = [
        Line2D([], [], color=colours[n % len(colours)], label=name) for n, name in enumerate(names)
    ]
    styles: tuple[tuple[Literal["solid", "dashed"], str], ...] = (
        ("solid", "truth"),
        ("dashed", "predicted"),
    )
    handles += [Line2D([], [], color="grey", linestyle=style, label=what) for style, what in styles]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=7, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def component_picture(
    pictures: Sequence[npt.NDArray[np.float32]],
    rgb: npt.NDArray[np.float32],
    foreground: npt.NDArray[np.bool_],
    *,
    title: str = "",
) -> bytes:
    """Draw some rows of an item with their components, and the outline of their foreground.

    Args:
        pictures: Of each row (Y, X) or (Y, X, 3) in [0, 1].
        rgb: (rows, grid_height, grid_width, 3) in [0, 1], as `ComponentMaps.rgb` gives it.
        foreground: (rows, grid_height, grid_width).
        title: Above it.

    Returns:
        A PNG: a column a row of the item; the picture, its components (each patch a square of one
        colour), and the picture with the outline.

    Raises:
        ValueError: If there are no rows, or more than 16, or they do not belong together.
    """
    from matplotlib.collections import LineCollection
    from matplotlib.figure import Figure

    count = len(pictures)
    if not 1 <= count <= _MOST_COLUMNS:
        raise ValueError(f"1 to {_MOST_COLUMNS} rows are drawn beside each other, got {count}")
    if rgb.shape != (count, *foreground.shape[1:], 3) or len(foreground) != count:
        raise ValueError(
            f"{count} pictures need as many maps and foregrounds on one grid, got {rgb.shape} and "
            f"{foreground.shape}"
        )
    tallest = max(picture.shape[0] / picture.shape[1] for picture in pictures)
    size = (_PANEL * count, 3 * _PANEL * tallest + 0.3 * bool(title))
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    panels = figure.subplots(3, count, squeeze=False)
    for number, picture in enumerate(pictures):
        height, width = picture.shape[:2]
        top, middle, bottom = panels[:, number]
        for axes in (top, bottom):
            axes.imshow(picture, cmap="gray", vmin=0, vmax=1)
        middle.imshow(rgb[number], interpolation="nearest", extent=(0, width, height, 0))
        edges = _patch_edges(foreground[number])
        # Pixels have their middles at whole numbers: the picture begins at -0.5.
        lines = edges * [width, height] - 0.5
        bottom.add_collection(LineCollection(list(lines), colors="yellow", linewidths=1.2))
    return picture_png(figure, panels.flat, title)


def affinity_picture(
    picture: npt.NDArray[np.float32],
    affinities: npt.NDArray[np.floating[Any]],
    segments: npt.NDArray[np.integer[Any]] | None = None,
    truth: npt.NDArray[np.integer[Any]] | None = None,
    *,
    title: str = "",
) -> bytes:
    """Draw a section with its affinities, and its neurons as they are and as they were found.

    Args:
        picture: (Y, X) or (Y, X, 3) in [0, 1].
        affinities: (3, Y, X) in [0, 1], in the order z, y, x; black is 0.
        segments: (Y, X) ids of at least 0 that were found; None leaves their panel out.
        truth: (Y, X) true ids; likewise.
        title: Above it.

    Returns:
        A PNG: section, affinities, truth, segmentation from left to right. Ids have the colours of
        `id_colours`.

    Raises:
        ValueError: If shapes differ, or an id is below 0.
    """
    from matplotlib.figure import Figure

    height, width = picture.shape[:2]
    if affinities.shape != (3, height, width):
        raise ValueError(
            f"a section of {(height, width)} needs affinities of {(3, height, width)}, got "
            f"{affinities.shape}"
        )
    # Colours of ids must not mix; thin borders of what is grey must not be left out.
    shown: list[tuple[str, npt.NDArray[Any], str]] = [("section", picture, "auto")]
    grey = affinities.astype(np.float32)
    shown += [(f"affinity {axis}", grey[number], "auto") for number, axis in enumerate("zyx")]
    for name, ids in (("truth", truth), ("segmentation", segments)):
        if ids is None:
            continue
        if ids.shape != (height, width):
            raise ValueError(f"{name} of a section of {(height, width)} is {ids.shape}")
        shown.append((name, id_colours(ids), "nearest"))
    size = (_PANEL * len(shown), _PANEL * height / width + 0.3 + 0.3 * bool(title))
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    panels = figure.subplots(1, len(shown), squeeze=False)[0]
    for axes, (name, values, interpolation) in zip(panels, shown, strict=True):
        axes.imshow(values, cmap="gray", vmin=0, vmax=1, interpolation=interpolation)
        axes.set_title(name, fontsize=8)
    return picture_png(figure, panels, title)


def id_colours(ids: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.uint8]:
    """Give each id a colour that is its own in every picture: by a hash, 0 is black.

    Args:
        ids: Of any shape, at least 0.

    Returns:
        (..., 3) uint8; of other ids than 0 the brightest channel is at least 153.

    Raises:
        ValueError: If an id is below 0.

    References:
        Steele, Lea, Flood, OOPSLA 2014: the finalizer of SplitMix64.
    """
    from matplotlib.colors import hsv_to_rgb

    known, which = np.unique(ids, return_inverse=True)
    if len(known) and known[0] < 0:
        raise ValueError(f"ids are at least 0, got {known[0]}")
    mixed = known.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    shares = np.stack([mixed >> np.uint64(at) & np.uint64(0xFFFF) for at in (0, 16, 32)], -1)
    hue, saturation, value = (shares / 0xFFFF).T
    colours = hsv_to_rgb(np.stack([hue, 0.45 + 0.55 * saturation, 0.6 + 0.4 * value], -1))
    table: npt.NDArray[np.uint8] = np.rint(colours * 255).astype(np.uint8)
    table[known == 0] = 0
    found: npt.NDArray[np.uint8] = table[which].reshape(*ids.shape, 3)
    return found


def _patch_edges(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Find the sides of patches at which a mask begins or ends, those at the rim included.

    Args:
        mask: (grid_height, grid_width).

    Returns:
        (sides, 2 ends, 2) of x and y, both in [0, 1] over the whole grid.
    """
    height, width = mask.shape
    y, x = np.nonzero(np.diff(np.pad(mask, ((1, 1), (0, 0))), axis=0))
    level = np.stack([np.stack([x, y], -1), np.stack([x + 1, y], -1)], 1)
    y, x = np.nonzero(np.diff(np.pad(mask, ((0, 0), (1, 1))), axis=1))
    upright = np.stack([np.stack([x, y], -1), np.stack([x, y + 1], -1)], 1)
    found: npt.NDArray[np.float64] = np.concatenate([level, upright]) / [width, height]
    return found


def picture_png(figure: "Figure", panels: "Iterable[Axes]", title: str) -> bytes:
    """Give a figure whose panels have no axes, with its title, as a PNG."""
    for axes in panels:
        axes.set_axis_off()
    if title:
        figure.suptitle(title, fontsize=9, wrap=True)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
