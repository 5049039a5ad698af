"""A grid of rows laid over a volume: views where it can be, interpolation where it must.

Matrices take a voxel (x, y, z, 1) of the rows to a voxel (i, j, k, 1) of the volume; arrays are
(..., K, J, I) and (..., Z, Y, X).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dinocache.errors import ItemError
from dinocache.geometry import Matrix
from dinocache.readers.contract import Labels

__all__ = [
    "Sampling",
    "corners",
    "of_patient",
    "orientation",
    "same_place",
    "scaling",
    "shift",
]

Triple = tuple[int, int, int]
_NEAR = 1e-6
"""Of a voxel: what rounding may move a place by."""
_BLOCK = 1 << 18
"""Places of an oblique row that are worked out at once, 24 bytes each."""
_AXES: dict[str, tuple[tuple[int, int], tuple[int, int], tuple[int, int]]] = {
    "axial": ((0, 1), (1, 1), (2, 1)),
    "coronal": ((0, 1), (2, -1), (1, 1)),
    "sagittal": ((1, 1), (2, -1), (0, 1)),
}
"""For column, line and row: the axis of the patient (L, P, S) and its direction."""


def orientation(affine: Matrix | None, shape: Triple, axis: str) -> tuple[Matrix, Triple]:
    """Bring a volume to LPS by permuting and flipping, then turn its rows.

    Args:
        affine: (4, 4) voxel to LPS; None: as if it were the identity.
        shape: (I, J, K).
        axis: axial, coronal or sagittal.

    Returns:
        (4, 4) row grid to the volume's own, and (X, Y, Z).
    """
    sides = np.eye(3) if affine is None else affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    orders = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
    # Patient axis p lies along the volume's axis order[p]; rounding lets equal ones stay equal.
    order = max(orders, key=lambda o: round(sum(abs(sides[p, o[p]]) for p in range(3)), 6))
    matrix = np.zeros((4, 4))
    matrix[3, 3] = 1
    for column, (patient, direction) in enumerate(_AXES[axis]):
        own = order[patient]
        sign = direction if sides[patient, own] >= 0 else -direction
        matrix[own, column] = sign
        matrix[own, 3] = 0 if sign > 0 else shape[own] - 1
    x, y, z = (shape[order[patient]] for patient, _ in _AXES[axis])
    return matrix, (x, y, z)


def of_patient(values: tuple[Any, Any, Any], axis: str) -> tuple[Any, Any, Any]:
    """Sort values of patient axes (x, y, z) to those of the row grid."""
    x, y, z = (values[patient] for patient, _ in _AXES[axis])
    return x, y, z


def scaling(old: Triple, new: Triple, factors: npt.NDArray[np.float64]) -> Matrix:
    """Take a grid of `new` voxels, each `factors` of the old ones wide, to one of `old`.

    Both have the same centre.
    """
    matrix = np.diag([*factors, 1.0])
    matrix[:3, 3] = (np.array(old) - 1) / 2 - factors * (np.array(new) - 1) / 2
    return matrix


def shift(start: Triple) -> Matrix:
    """Begin a grid at a voxel."""
    matrix = np.eye(4)
    matrix[:3, 3] = start
    return matrix


def corners(shape: Triple) -> npt.NDArray[np.float64]:
    """Give the centres of a grid's eight corner voxels, (4, 8) homogeneous."""
    ends = np.meshgrid(*([0, size - 1] for size in shape), indexing="ij")
    return np.stack([*(end.ravel() for end in ends), np.ones(8)]).astype(np.float64)


def same_place(one: Matrix, other: Matrix, shape: Triple) -> float:
    """Say how far two affines take the corners of a grid (X, Y, Z) apart, at most, mm."""
    apart = (one - other) @ corners(shape)
    return float(np.linalg.norm(apart[:3], axis=0).max())


@dataclass(frozen=True, kw_only=True)
class _Line:
    """Where the voxels along one axis of the rows are taken from.

    Attributes:
        own: The volume's axis, 0 for i.
        low: (n,) the voxel at or below, clamped into the volume.
        high: (n,) the one above, clamped.
        weight: (n,) float32, of `high`.
        inside: The slice of those that lie in the volume.
    """

    own: int
    low: npt.NDArray[np.int64]
    high: npt.NDArray[np.int64]
    weight: npt.NDArray[np.float32]
    inside: slice

    @property
    def is_exact(self) -> bool:
        """Whether each lies on a voxel, and they follow one another."""
        steps = np.diff(self.low[self.inside])
        even = not len(steps) or (steps[0] != 0 and bool((steps == steps[0]).all()))
        return bool(even and not self.weight.any())

    @property
    def view(self) -> slice:
        """The voxels inside, as a slice of the volume; only of an exact line."""
        low = self.low[self.inside]
        if not len(low):
            return slice(0, 0)
        step = int(low[1] - low[0]) if len(low) > 1 else 1
        stop = int(low[-1]) + step
        return slice(int(low[0]), None if stop < 0 else stop, step)


class Sampling:
    """A way to read rows from a volume.

    Attributes:
        shape: (X, Y, Z) of the rows.
        is_view: Whether all rows are views of the volume.
        keeps_type: Whether values are the volume's own, and none is made between them.
        needs_fill: Whether some voxels lie outside the volume.
    """

    def __init__(self, matrix: Matrix, shape: Triple, volume: Triple) -> None:
        self.shape = shape
        self._matrix = matrix
        self._lines = _lines(matrix, shape, volume)
        exact = self._lines is not None and all(line.is_exact for line in self._lines)
        whole = self._lines is not None and all(
            line.inside == slice(0, size) for line, size in zip(self._lines, shape, strict=True)
        )
        self.keeps_type = exact
        self.is_view = exact and whole
        self.needs_fill = not whole

    def row(self, volume: npt.NDArray[Any], z: int, fill: float) -> npt.NDArray[Any]:
        """Make one row.

        Args:
            volume: (..., K, J, I).
            z: Which.
            fill: The value of what lies outside.

        Returns:
            (..., Y, X): of the volume's type where `keeps_type`, else float32.
        """
        if self._lines is None:
            return self._oblique_row(volume, z, fill)
        columns, lines, rows = self._lines
        turned = _turned(volume, self._lines)
        if self.is_view:
            return turned[..., rows.low[z], lines.view, columns.view]
        dtype = volume.dtype if self.keeps_type else np.dtype(np.float32)
        out = np.full((*turned.shape[:-3], self.shape[1], self.shape[0]), fill, dtype)
        if not rows.inside.start <= z < rows.inside.stop:
            return out
        inside = (..., lines.inside, columns.inside)
        if self.keeps_type:
            out[inside] = turned[..., rows.low[z], lines.view, columns.view]
            return out
        plane = _blend(turned, rows, slice(z, z + 1), axis=-3)[..., 0, :, :]
        plane = _blend(plane, lines, lines.inside, axis=-2)
        out[inside] = _blend(plane, columns, columns.inside, axis=-1)
        return out

    def labels(self, volume: Labels) -> Labels:
        """Make all rows of a label map, by the nearest voxel; outside is 0.

        Args:
            volume: (..., K, J, I).

        Returns:
            (..., Z, Y, X), of its type.

        Raises:
            ItemError: If the rows lie obliquely in the volume.
        """
        if self._lines is None:
            raise ItemError("a label map cannot be laid over rows that lie obliquely in it")
        columns, lines, rows = self._lines
        turned = _turned(volume, self._lines)
        if self.is_view:
            return turned[..., rows.view, lines.view, columns.view]
        x, y, z = self.shape
        out = np.zeros((*turned.shape[:-3], z, y, x), volume.dtype)
        nearest = [
            np.where(line.weight >= 0.5, line.high, line.low)[line.inside]
            for line in (rows, lines, columns)
        ]
        picked = turned[..., nearest[0], :, :][..., nearest[1], :][..., nearest[2]]
        out[..., rows.inside, lines.inside, columns.inside] = picked
        return out

    def _oblique_row(self, volume: npt.NDArray[Any], z: int, fill: float) -> npt.NDArray[Any]:
        from scipy import ndimage

        x, y, _ = self.shape
        front = volume.shape[:-3]
        size = np.array(volume.shape[-3:])[:, None, None]
        columns, lines, rows, offset = (side[::-1, None, None] for side in self._matrix[:3].T)
        out = np.empty((*front, y, x), np.float32)
        along = offset + rows * z + columns * np.arange(x)
        step = max(1, _BLOCK // x)
        for top in range(0, y, step):
            places = along + lines * np.arange(top, min(top + step, y))[:, None]
            inside = _inside(places, size).all(axis=0)
            np.clip(places, 0, size - 1, out=places)
            for one in np.ndindex(*front):
                part = out[one][top : top + step]
                ndimage.map_coordinates(volume[one], places, part, order=1, mode="nearest")
                part[~inside] = fill
        return out


def _lines(matrix: Matrix, shape: Triple, volume: Triple) -> tuple[_Line, _Line, _Line] | None:
    """Take a matrix apart into its axes; None if it is no scaled permutation."""
    sides = matrix[:3, :3]
    owners = np.abs(sides).argmax(axis=0).tolist()
    others = np.abs(sides).copy()
    others[owners, range(3)] = 0
    if sorted(owners) != [0, 1, 2] or others.any():
        return None
    x, y, z = (
        _line(own, sides[own, column] * np.arange(size) + matrix[own, 3], volume[own])
        for column, (own, size) in enumerate(zip(owners, shape, strict=True))
    )
    return x, y, z


def _line(own: int, places: npt.NDArray[np.float64], size: int) -> _Line:
    inside = np.flatnonzero(_inside(places, size))
    clamped = np.clip(places, 0, size - 1)
    low = np.floor(clamped + _NEAR).astype(np.int64)
    weight = np.clip(clamped - low, 0, 1)
    weight[weight < _NEAR] = 0
    return _Line(
        own=own,
        low=low,
        high=np.minimum(low + 1, size - 1),
        weight=weight.astype(np.float32),
        inside=slice(int(inside[0]), int(inside[-1]) + 1) if len(inside) else slice(0, 0),
    )


def _inside(
    places: npt.NDArray[np.float64], size: int | npt.NDArray[np.int64]
) -> npt.NDArray[np.bool_]:
    """Say which places have a value, and not the fill: also the outer half of an edge voxel has."""
    found: npt.NDArray[np.bool_] = (places >= -0.5 - _NEAR) & (places <= size - 0.5 + _NEAR)
    return found


def _turned(volume: npt.NDArray[Any], lines: tuple[_Line, _Line, _Line]) -> npt.NDArray[Any]:
    """View (..., K, J, I) with the axes of the rows, (..., z, y, x)."""
    front = volume.ndim - 3
    return volume.transpose(*range(front), *(front + 2 - line.own for line in reversed(lines)))


def _blend(
    values: npt.NDArray[Any], line: _Line, part: slice, *, axis: int
) -> npt.NDArray[np.float32]:
    """Interpolate linearly along one axis."""
    low, high, weight = line.low[part], line.high[part], line.weight[part]
    below = values.take(low, axis).astype(np.float32, copy=False)
    if not weight.any():
        return below
    above = values.take(high, axis).astype(np.float32, copy=False)
    above = above - below
    above *= weight.reshape(-1, *[1] * (-axis - 1))
    above += below
    return above
