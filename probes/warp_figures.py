"""Pictures of registered pairs: arrays in, PNG bytes out."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from probes.figures import picture_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["warp_picture"]

Picture = npt.NDArray[np.float32]
Labels = npt.NDArray[np.integer[Any]]

_PANEL = 2.4
"""Inches that a panel is wide."""
_CELLS = 20
"""Of the grid, along the longer side."""
_NAMES_PER_LINE = 6
"""Of the legend."""


def warp_picture(
    source: Picture,
    target: Picture,
    warped: Picture,
    labels: tuple[Labels, Labels, Labels] | None = None,
    *,
    title: str,
    names: Sequence[str],
    spacing: tuple[float, float] | None = None,
    displacement: npt.NDArray[np.floating[Any]] | None = None,
) -> bytes:
    """Draw a pair and what registration made of it beside each other.

    Args:
        source: The moving picture, (Y, X) in [0, 1].
        target: The fixed one, likewise.
        warped: The moving one on the fixed one's grid, likewise.
        labels: Of each, (Y, X) whole numbers: 0 is background, 1 the first name. Source and target
            are drawn with their own; the warped picture with those of the target, and its own
            dashed.
        title: Above it.
        names: Of the labels; without labels nothing is said of them.
        spacing: Millimetres between pixels along y and x; None: as many along both.
        displacement: (2, Y, X) in pixels of the target's grid, along y and x: the warped picture
            is the source at x + u(x). Drawn over the warped picture: the lines of an even grid on
            the source, warped with it. Where they cross twice, it folds.

    Returns:
        A PNG: source, target, warped from left to right, and a line of names.

    Raises:
        ValueError: If shapes differ or a picture has fewer than two pixels a side, a label has no
            name, or the displacement is not finite.
    """
    from matplotlib.figure import Figure

    pictures = {"source (moving)": source, "target (fixed)": target, "warped": warped}
    _check(list(pictures.values()), labels, names, displacement)
    height, width = target.shape
    step_y, step_x = spacing or (1.0, 1.0)
    tall, wide = height * step_y, width * step_x
    lines = 0 if labels is None else -(-(len(names) + 2) // _NAMES_PER_LINE)
    size = (3 * _PANEL, _PANEL * tall / wide + 0.2 + 0.2 * bool(title) + 0.25 * lines)
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    panels = figure.subplots(1, 3)
    for axes, (name, picture) in zip(panels, pictures.items(), strict=True):
        axes.imshow(picture, cmap="gray", vmin=0, vmax=1, aspect=step_y / step_x)
        axes.set_title(name, fontsize=8)
    if displacement is not None:
        cell = max(tall, wide) / _CELLS
        _draw_grid(panels[2], displacement, (cell / step_y, cell / step_x))
    if labels is not None:
        of_source, of_target, of_warped = labels
        _outline(panels[0], of_source, len(names), "solid")
        _outline(panels[1], of_target, len(names), "solid")
        _outline(panels[2], of_target, len(names), "solid")
        _outline(panels[2], of_warped, len(names), "dashed")
        figure.legend(
            handles=_legend(names),
            loc="outside lower center",
            ncols=_NAMES_PER_LINE,
            fontsize=7,
            frameon=False,
        )
    return picture_png(figure, panels, title)


def _check(
    pictures: Sequence[Picture],
    labels: tuple[Labels, Labels, Labels] | None,
    names: Sequence[str],
    displacement: npt.NDArray[np.floating[Any]] | None,
) -> None:
    shapes = [one.shape for one in (*pictures, *(labels or ()))]
    shape = shapes[0]
    if len(shape) != 2 or min(shape) < 2 or len(set(shapes)) > 1:
        raise ValueError(
            "pictures and labels of a pair are planes (Y, X) of one size, at least 2 x 2, got "
            f"{', '.join(map(str, shapes))}"
        )
    for one in labels or ():
        if one.min() < 0 or one.max() > len(names):
            raise ValueError(
                f"labels are 0 to {len(names)}, as there are {len(names)} names; got {one.min()} "
                f"to {one.max()}"
            )
    if displacement is None:
        return
    if displacement.shape != (2, *shape):
        raise ValueError(
            f"pictures of {shape} need a displacement of {(2, *shape)}, got {displacement.shape}"
        )
    if not np.isfinite(displacement).all():
        raise ValueError("a displacement that is drawn must be finite, it is not")


def _draw_grid(
    axes: "Axes", displacement: npt.NDArray[np.floating[Any]], cell: tuple[float, float]
) -> None:
    """Draw where lines of an even grid on the source, so many pixels apart, come to lie."""
    at = np.indices(displacement.shape[1:]) + displacement
    for n, places, apart in zip(displacement.shape[1:], at, cell, strict=True):
        levels = np.arange(0, n, max(apart, 1.0))
        seen = levels[(levels > places.min()) & (levels < places.max())]
        if len(seen):
            axes.contour(places, seen, colors="yellow", linewidths=0.5, alpha=0.6)


def _outline(
    axes: "Axes", labels: Labels, n_labels: int, style: Literal["solid", "dashed"]
) -> None:
    for number in range(n_labels):
        mask = labels == 1 + number
        if mask.any() and not mask.all():
            axes.contour(mask, [0.5], colors=[_colour(number)], linestyles=style, linewidths=1.2)


def _colour(number: int) -> Any:  # noqa: ANN401
    from matplotlib import colormaps

    colours = colormaps["tab10"].colors  # type: ignore[attr-defined]
    return colours[number % len(colours)]


def _legend(names: Sequence[str]) -> list[Any]:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=_colour(n), label=name) for n, name in enumerate(names)]
    handles.append(Line2D([], [], color="grey", linestyle="solid", label="labels"))
    handles.append(Line2D([], [], color="grey", linestyle="dashed", label="warped labels"))
    return handles
