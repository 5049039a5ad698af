"""Where rows lie: in the file they came from, and in the patient.

Matrices are 4 x 4 on homogeneous voxel indices (x, y, z, 1), a voxel's centre at whole numbers;
for the row grid x is the column, y the line and z the row. See docs/readers.md, "Geometry".
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from dinocache.errors import StoreDamagedError
from dinocache.recipe import InputRecipe, ResizeRecipe

__all__ = [
    "Geometry",
    "Matrix",
    "apply",
    "input_to_row",
    "placement",
    "resized_shape",
    "restore",
    "token_to_input",
    "write_nifti",
]

Matrix = npt.NDArray[np.float64]
Shape = tuple[int, int]
T = TypeVar("T", bound=np.generic)

_TINY = 1e-6
"""Of a voxel: what rounding of affines makes of a whole number."""
_MAX_SIDE, _MAX_VOXELS = 1 << 24, 1 << 40
"""That a grid may claim to have, in all its volumes together."""


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """The grid of an item's rows.

    Attributes:
        shape: (rows, Y, X) of one volume of the row grid; None where rows form no grid (tiles).
        volumes: How many such volumes follow one another in the rows (a 4-D file: one a time).
        affine: (4, 4) row grid to LPS, mm; None where the file does not say.
        to_source: (4, 4) row grid to the file's own grid; a scaled permutation with an offset.
            None stands for the identity.
        source_shape: (I, J, K) of the file's own grid; None where it is the row grid's own
            (X, Y, rows).
    """

    shape: tuple[int, int, int] | None = None
    volumes: int = 1
    affine: Matrix | None = None
    to_source: Matrix | None = None
    source_shape: tuple[int, int, int] | None = None

    @property
    def spacing(self) -> tuple[float, float, float] | None:
        """(z, y, x), mm: lengths of the affine's columns; None where there is no affine."""
        if self.affine is None:
            return None
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0).tolist()
        return z, y, x

    @property
    def source_affine(self) -> Matrix | None:
        """(4, 4) the file's own grid to LPS, mm; None where the file does not say."""
        if self.affine is None or self.to_source is None:
            return self.affine
        return np.asarray(self.affine @ np.linalg.inv(self.to_source))

    @property
    def is_resampled(self) -> bool:
        """Whether rows differ from the file's own grid by more than turned and flipped axes."""
        if self.shape is None or self.to_source is None:
            return False
        turns = np.abs(self.to_source[:3, :3])
        whole = turns.round().clip(max=1)
        rows, height, width = self.shape
        sides = (whole @ [width, height, rows]).astype(int)
        cut = self.source_shape is not None and tuple(sides) != self.source_shape
        return cut or not np.allclose(turns, whole, atol=_TINY)

    def row_to_mm(self) -> Matrix:
        """Give the affine; refuse where there is none.

        Raises:
            ValueError: If the file does not say where it lies.
        """
        if self.affine is None:
            raise ValueError("the item's file does not say where its voxels lie, so nothing is mm")
        return self.affine

    def row_to_source(self) -> Matrix:
        """(4, 4) row grid to the file's own grid."""
        return np.eye(4) if self.to_source is None else self.to_source

    def to_attributes(self) -> dict[str, Any]:
        """Give what a store keeps of it, as JSON."""
        return {
            "affine": None if self.affine is None else self.affine.tolist(),
            "spacing": None if self.spacing is None else list(self.spacing),
            "shape": None if self.shape is None else list(self.shape),
            "volumes": self.volumes,
            "to_source": None if self.to_source is None else self.to_source.tolist(),
            "source_shape": None if self.source_shape is None else list(self.source_shape),
        }

    @classmethod
    def from_attributes(cls, attributes: dict[str, Any]) -> "Geometry":
        """Read back what `to_attributes` gave, which may be anybody's claim.

        Args:
            attributes: As JSON has them; all but `shape`, `volumes`, `affine`, `to_source` and
                `source_shape` is left.

        Raises:
            StoreDamagedError: If a grid is none, or larger than any file of ours; if a matrix is
                not finite, or cannot be inverted.
        """
        volumes = attributes.get("volumes", 1)
        if type(volumes) is not int or not 1 <= volumes <= _MAX_SIDE:
            raise _refused("volumes", volumes, f"a whole number from 1 to {_MAX_SIDE:,}")
        return cls(
            shape=_claimed_shape(attributes, "shape", volumes),
            volumes=volumes,
            affine=_claimed_matrix(attributes, "affine"),
            to_source=_claimed_matrix(attributes, "to_source"),
            source_shape=_claimed_shape(attributes, "source_shape", volumes),
        )


def _claimed_shape(
    attributes: dict[str, Any], key: str, volumes: int
) -> tuple[int, int, int] | None:
    found = attributes.get(key)
    if found is None:
        return None
    sides = found if isinstance(found, list | tuple) else ()
    sound = len(sides) == 3 and all(type(n) is int and 1 <= n <= _MAX_SIDE for n in sides)
    if not sound or math.prod(sides) * volumes > _MAX_VOXELS:
        what = f"three whole numbers from 1 to {_MAX_SIDE:,}, of at most {_MAX_VOXELS:,} voxels"
        raise _refused(key, found, what)
    return sides[0], sides[1], sides[2]


def _claimed_matrix(attributes: dict[str, Any], key: str) -> Matrix | None:
    found = attributes.get(key)
    if found is None:
        return None
    lines = found if isinstance(found, list | tuple) else ()
    try:
        if [len(line) for line in lines] != [4, 4, 4, 4]:
            raise ValueError
        if any(type(value) not in (int, float) for line in lines for value in line):
            raise ValueError
        matrix = np.array(lines, np.float64)
        # An overflow on the way is no crash: what comes of it is not finite.
        with np.errstate(all="ignore"):
            finite = np.isfinite(matrix).all() and np.isfinite(np.linalg.inv(matrix)).all()
        if not finite or matrix[3].tolist() != [0, 0, 0, 1]:
            raise ValueError
    except (TypeError, ValueError, OverflowError):  # LinAlgError is a ValueError
        what = "4 x 4 finite numbers that can be inverted, the last line 0, 0, 0, 1,"
        raise _refused(key, found, what) from None
    return matrix


def _refused(key: str, found: object, expected: str) -> StoreDamagedError:
    return StoreDamagedError(
        f"an item's geometry has {key} {str(found)[:100]}; {expected} were expected. No dinocache "
        "wrote that: extract the item anew, or copy the store from where it was made"
    )


def apply(matrix: Matrix, points: npt.ArrayLike) -> Matrix:
    """Take points through a matrix.

    Args:
        matrix: (4, 4).
        points: (..., 3), x, y, z.

    Returns:
        (..., 3).
    """
    return np.asarray(np.asarray(points) @ matrix[:3, :3].T + matrix[:3, 3])


def resized_shape(shape: Shape, resolution: Shape, resize: ResizeRecipe) -> Shape:
    """Say to which size a row is resized before it is padded or cropped.

    Args:
        shape: (height, width) of the row, px.
        resolution: (height, width) of the encoder's input, px.
        resize: Of the recipe.

    Returns:
        (height, width), px.

    References:
        `crop`: torchvision's `Resize` for a square (the other side is cut down to whole pixels),
        timm's `ResizeKeepRatio` otherwise (it is rounded); `pad`: the same with the longer side.
    """
    if resize.mode == "squash":
        return resolution
    ratios = [side / wanted for side, wanted in zip(shape, resolution, strict=True)]
    if resize.mode == "pad":
        ratio = max(ratios)
        height, width = (max(1, round(side / ratio)) for side in shape)
        return min(height, resolution[0]), min(width, resolution[1])
    height, width = (math.floor(side / (resize.crop_pct or 1)) for side in resolution)
    if height == width:
        short = min(shape)
        return int(height * shape[0] / short), int(height * shape[1] / short)
    ratio = min(shape[0] / height, shape[1] / width)
    return max(height, round(shape[0] / ratio)), max(width, round(shape[1] / ratio))


def placement(resized: Shape, resolution: Shape) -> tuple[int, int]:
    """Say where the upper left corner of a resized row lies in the encoder's input.

    Args:
        resized: (height, width), px.
        resolution: (height, width), px; in both it is at least, or at most, the resized one.

    Returns:
        (top, left), px; negative where rows and columns are cut off.
    """
    over = resized[0] - resolution[0], resized[1] - resolution[1]
    if min(over) >= 0:  # torchvision's CenterCrop rounds
        return -round(over[0] / 2), -round(over[1] / 2)
    return -over[0] // 2, -over[1] // 2


def input_to_row(shape: Shape, recipe: InputRecipe) -> Matrix:
    """Map a pixel of the encoder's input to a voxel of the row grid.

    Args:
        shape: (Y, X) of a row.
        recipe: Of the input.

    Returns:
        (4, 4) from (column, line, row, 1) to (x, y, z, 1).
    """
    resized = resized_shape(shape, recipe.resolution, recipe.resize)
    corner = placement(resized, recipe.resolution)
    matrix = np.eye(4)
    for axis, line in ((0, 1), (1, 0)):  # x is the second of (height, width)
        scale = shape[line] / resized[line]
        matrix[axis, axis] = scale
        # Edges coincide, not centres: a pixel's centre lies half a pixel behind its edge.
        matrix[axis, 3] = (0.5 - corner[line]) * scale - 0.5
    return matrix


def token_to_input(patch_px: int) -> Matrix:
    """Map a token of a patch grid to the pixel at its centre.

    Args:
        patch_px: Side of a patch, px.

    Returns:
        (4, 4) from (grid column, grid row, row, 1) to (column, line, row, 1) of the input.
    """
    matrix = np.diag([patch_px, patch_px, 1.0, 1.0])
    matrix[:2, 3] = (patch_px - 1) / 2
    return matrix


def restore(
    prediction: npt.NDArray[T],
    geometry: Geometry,
    to_row: Matrix | None = None,
    *,
    method: Literal["nearest", "linear"] = "nearest",
) -> npt.NDArray[T]:
    """Bring a prediction on rows back to the file's own grid.

    Args:
        prediction: (rows, H, W): labels, or one class's probability; of all volumes of the item.
        geometry: Of the item.
        to_row: (4, 4) from (W index, H index, row) to the row grid: `input_to_row(...)` for what
            stands on the encoder's input, `input_to_row(...) @ token_to_input(...)` for patches.
            None stands for the row grid itself.
        method: `nearest` for labels, `linear` for probabilities (float only).

    Returns:
        (I, J, K), or (I, J, K, volumes); 0 where there was no row. Its type is the prediction's.

    Raises:
        ValueError: If the shapes do not fit, or the rows form no grid.
    """
    if geometry.shape is None:
        raise ValueError("the rows of this item form no grid; there is nothing to put them back to")
    volumes, depth = geometry.volumes, geometry.shape[0]
    if prediction.ndim != 3 or len(prediction) != volumes * depth:
        raise ValueError(
            f"a prediction is (rows, H, W) with {volumes * depth} rows, not {prediction.shape}"
        )
    if method == "linear" and prediction.dtype.kind != "f":
        raise ValueError(f"linear is for float predictions, not {prediction.dtype}")
    matrix = geometry.row_to_source() @ (np.eye(4) if to_row is None else to_row)
    rows, height, width = geometry.shape
    target = geometry.source_shape or (width, height, rows)
    cells = prediction.reshape(volumes, depth, *prediction.shape[1:]).transpose(0, 3, 2, 1)
    restored = np.stack([_resample(cell, matrix, target, method) for cell in cells], axis=-1)
    return restored if volumes > 1 else restored[..., 0]


def _resample(
    cells: npt.NDArray[T], matrix: Matrix, target: tuple[int, int, int], method: str
) -> npt.NDArray[T]:
    """Sample (X, Y, Z) cells on a target grid; the matrix, cells to target, only permutes axes."""
    linear = matrix[:3, :3]
    axes = [int(np.abs(linear[i]).argmax()) for i in range(3)]
    off = np.abs(linear).sum(1) - np.abs(linear[range(3), axes])
    if sorted(axes) != [0, 1, 2] or (off > _TINY * np.abs(linear).max()).any():
        raise ValueError(f"rows and file must differ by permuted axes only, not by {matrix}")
    sampled = cells.transpose(axes)
    for axis, of_cells in enumerate(axes):
        scale, offset = linear[axis, of_cells], matrix[axis, 3]
        position = (np.arange(target[axis]) - offset) / scale
        sampled = _sample(sampled, axis, position, method)
    return np.ascontiguousarray(sampled)


def _sample(values: npt.NDArray[T], axis: int, position: Matrix, method: str) -> npt.NDArray[T]:
    """Sample along one axis at fractional positions; 0 beyond the outer cells' edges."""
    count = values.shape[axis]
    inside = (position > -0.5 - _TINY) & (position < count - 0.5 + _TINY)
    clipped = np.clip(position, 0, count - 1)
    if method == "nearest":
        sampled = values.take(np.floor(clipped + 0.5).astype(np.intp).clip(0, count - 1), axis)
    else:
        below = np.floor(clipped).astype(np.intp)
        above = np.minimum(below + 1, count - 1)
        along = [1] * values.ndim
        along[axis] = -1
        part = (clipped - below).astype(values.dtype).reshape(along)
        sampled = values.take(below, axis) * (1 - part) + values.take(above, axis) * part
    outside = [slice(None)] * values.ndim
    outside[axis] = np.flatnonzero(~inside)  # type: ignore[call-overload]
    sampled[tuple(outside)] = 0
    return sampled


def write_nifti(
    path: Path, values: npt.NDArray[Any], geometry: Geometry, *, intent: int = 0
) -> None:
    """Write an array on the file's own grid, with the file's own affine.

    Args:
        path: Ends in `.nii` or `.nii.gz`.
        values: (I, J, K) or (I, J, K, volumes), as `restore` gives it; (I, J, K, 1, n) of vectors.
            Types that NIfTI readers do not share are brought to the nearest that they do: whole
            numbers to the smallest that holds them, float16 to float32.
        geometry: Of the item; without an affine the file says so (codes of its transforms are 0).
            With gantry tilt only the sform can hold it, and the code of the qform is 0.
        intent: NIfTI's code of what the values are; 0 says nothing.

    References:
        NIfTI-1.1: x grows to the right, y to the front; LPS differs in both signs.
    """
    import nibabel

    lps = geometry.source_affine
    ras = None if lps is None else np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps
    image = nibabel.Nifti1Image(_of_nifti(values), ras)
    image.header["intent_code"] = intent
    if ras is not None:
        image.header.set_xyzt_units("mm")
        image.set_sform(ras, code="scanner")
        image.set_qform(ras, code="scanner")
        if not np.allclose(image.get_qform(), ras, rtol=1e-4, atol=1e-3):
            image.set_qform(None, code="unknown")
    nibabel.save(image, path)


def _of_nifti(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if values.dtype == np.float16:
        return values.astype(np.float32)
    if values.dtype.kind not in "bui" or values.dtype in (np.uint8, np.int16, np.int32):
        return values
    low, high = int(values.min(initial=0)), int(values.max(initial=0))
    for kept in (np.uint8, np.int16, np.int32, np.uint32, np.int64):
        if np.iinfo(kept).min <= low and high <= np.iinfo(kept).max:
            return values.astype(kept)
    return values
