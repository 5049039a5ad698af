"""Pictures of features: arrays in, PNG bytes out."""

import io
from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

__all__ = ["overlay_picture", "pca_colours", "pca_picture"]


def pca_colours(patches: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Colour patch features by their first three principal components.

    Args:
        patches: (grid_height, grid_width, dim).

    Returns:
        (grid_height, grid_width, 3) float32 in [0, 1]: each component's 2nd to 98th percentile. A
        component's sign is fixed so that its largest loading is positive.

    Raises:
        ValueError: If there are fewer than four patches or three dimensions.

    References:
        DINOv3 (arXiv:2508.10104), figures of dense features.
    """
    height, width, dim = patches.shape
    if height * width < 4 or dim < 3:
        raise ValueError(f"a PCA picture needs 4 patches and 3 dimensions, got {patches.shape}")
    tokens = patches.reshape(-1, dim).astype(np.float64)
    tokens -= tokens.mean(0)
    _, _, axes = np.linalg.svd(tokens, full_matrices=False)
    axes = axes[:3]
    axes *= np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(1)])[:, None]
    components = tokens @ axes.T
    low, high = np.percentile(components, [2, 98], axis=0)
    scaled: npt.NDArray[np.float64] = np.clip(
        (components - low) / np.maximum(high - low, 1e-12), 0, 1
    )
    return scaled.reshape(height, width, 3).astype(np.float32)


def pca_picture(image: npt.NDArray[np.float32], patches: npt.NDArray[np.float32]) -> bytes:
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
    left.imshow(image, cmap="gray", vmin=0, vmax=1)
    height, width = image.shape[:2]
    right.imshow(colours, interpolation="nearest", extent=(0, width, height, 0))
    for axes in (left, right):
        axes.set_axis_off()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", transparent=True)
    return buffer.getvalue()


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
