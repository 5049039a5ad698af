"""Pictures of features: arrays in, PNG bytes out."""

import io

import numpy as np
import numpy.typing as npt

__all__ = ["pca_colours", "pca_picture"]


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
