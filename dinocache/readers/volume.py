"""Volumes: NIfTI, DICOM series, NRRD, MetaImage. One row a slice."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from dinocache.errors import ItemError
from dinocache.geometry import Geometry, Matrix
from dinocache.readers.contract import (
    ItemFiles,
    Labels,
    OpenItem,
    Pixels,
    Reader,
    ReaderOptions,
    translated,
)
from dinocache.readers.dicom import is_dicom
from dinocache.readers.metaimage import is_metaimage, read_metaimage
from dinocache.readers.nifti import head_of, is_nifti, read_nifti
from dinocache.readers.nrrd import read_nrrd
from dinocache.readers.sampling import (
    Sampling,
    of_patient,
    orientation,
    same_place,
    scaling,
    shift,
)
from dinocache.readers.series import DICOM_SUFFIXES, Gaps, read_series
from dinocache.readers.voxels import VoxelFile

__all__ = ["VolumeOptions", "VolumeReader"]

Triple = tuple[int, int, int]
Side = Annotated[int, Field(ge=1, le=1 << 14)]
Voxels = Annotated[int, Field(ge=0, le=1 << 14)]
Millimetres = Annotated[float, Field(ge=0, le=1e6)]

_MAX_VOXELS = 1 << 31
_SAME_MM = 1e-3
_REFUSED = {
    ".mnc": "MINC", ".mgh": "MGH", ".mgz": "MGH", ".head": "AFNI", ".brik": "AFNI",
    ".par": "PAR/REC", ".rec": "PAR/REC", ".v": "ECAT", ".gii": "GIFTI", ".npz": "NPZ",
    ".npy": "NPY", ".h5": "HDF5", ".hdf5": "HDF5", ".mat": "MATLAB", ".xml": "XML", ".vtk": "VTK",
}  # fmt: skip
_REFUSED_HEADS = {
    b"CDF\1": "MINC", b"\x89HDF": "HDF5", b"PK\3\4": "ZIP or NPZ", b"\x93NUM": "NPY",
    b"\0\0\0\1": "MGH", b"MATR": "ECAT", b"BZh": "bzip2",
}  # fmt: skip
_PICTURES = (b"\x89PNG", b"\xff\xd8\xff", b"II*\0", b"MM\0*")


class VolumeOptions(ReaderOptions):
    """Options of the volume reader.

    (x, y, z) are the patient's axes: left-right, front-back, feet-head.
    """

    axis: Literal["axial", "coronal", "sagittal"] = "axial"
    """The plane that a row shows."""
    volumes: Literal["rows", "channels"] = "rows"
    """What the volumes of a 4-D file are: rows, one volume's after the other's; or channels."""
    pick: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    """Which volumes, from 0; all by default."""
    spacing: tuple[Millimetres, Millimetres, Millimetres] | None = None
    """(x, y, z) of a voxel, mm; 0 keeps that axis. Images are interpolated linearly, without
    smoothing before (as SimpleITK and torchio do), labels taken from the nearest voxel. The number
    of voxels is rounded; the volume's centre stays."""
    size: tuple[Voxels, Voxels, Voxels] | None = None
    """Instead of spacing: (x, y, z) of the whole volume, voxels; 0 keeps that axis. Its edges stay
    where they are, so volumes of other sizes get voxels of other sizes."""
    crop: Literal["none", "centre", "foreground", "mask"] = "none"
    """Around what it is cut: its centre, the box of its foreground, or the centroid of the labels
    of crop_mask, else of the mask."""
    crop_size: tuple[Side, Side, Side] | None = None
    """(x, y, z) of the cut, voxels, after resampling. What lies outside the volume gets its least
    value, in masks 0."""
    foreground_above: float = 0
    """Foreground is what is greater."""
    rows: Literal["all", "foreground", "labelled"] = "all"
    """Which slices are kept, after the crop: from the first to the last that has foreground, or a
    label of the mask; of a mask without any, the middle one."""
    gaps: Gaps = "refuse"
    """What to do with a DICOM series that lacks slices: refuse it, or keep it with a note."""

    @model_validator(mode="after")
    def _agree(self) -> "VolumeOptions":
        if self.spacing is not None and self.size is not None:
            raise ValueError("spacing and size are two ways to resample; give one of them")
        if self.crop in ("centre", "mask") and self.crop_size is None:
            raise ValueError(f"crop={self.crop} needs a crop_size, (x, y, z) in voxels")
        if self.crop == "none" and self.crop_size is not None:
            raise ValueError("crop_size needs a crop to be the size of: centre, foreground or mask")
        if self.pick is not None and (not self.pick or len(set(self.pick)) < len(self.pick)):
            raise ValueError("pick must name at least one volume, and each once")
        return self


class VolumeReader(Reader[VolumeOptions]):
    """One row a slice."""

    name = "volume"
    summary = "NIfTI, DICOM series, NRRD, MetaImage"
    Options = VolumeOptions
    columns = (("volume", "index"), ("slice", "voxel"))
    window = "percentile"

    def open(self, files: ItemFiles, like: Geometry | None = None) -> OpenItem:
        """Open a volume; with `like`, its rows are those of that grid, interpolated if need be."""
        return _OpenVolume(files, self.settings, like)

    def is_apart(self, files: ItemFiles) -> bool:
        """A DICOM series: the header of each slice is parsed in Python."""
        return files.path.suffix.lower() in DICOM_SUFFIXES or files.path.is_dir()

    def count_rows(self, files: ItemFiles) -> int:
        """Count rows by the header; pixels are read only for the box of the foreground."""
        settings = self.settings
        if settings.crop_size is not None:
            # Where it is cut does not change how many rows there are.
            settings = settings.model_copy(update={"crop": "centre"})
        with _OpenVolume(files, settings, None) as item:
            return item.n_rows


def _read(path: Path, gaps: Gaps) -> VoxelFile:
    """Find out what a path is, and read its header."""
    if not path.exists():
        raise ItemError("the file is missing")
    if path.is_dir():
        return read_series(path, gaps=gaps)
    head = head_of(path)
    suffix = path.suffix.lower() if path.suffix.lower() != ".gz" else Path(path.stem).suffix.lower()
    if not head:
        raise ItemError("the file is empty")
    if is_nifti(head):
        return read_nifti(path)
    if head.startswith(b"NRRD"):
        return read_nrrd(path)
    if is_metaimage(head):
        return read_metaimage(path)
    if is_dicom(path):
        return read_series(path, gaps=gaps)
    if suffix == ".img" and any(
        path.with_name(path.name.replace(".img", ending)).is_file()
        for ending in (".hdr", ".hdr.gz")
    ):
        return read_nifti(path)
    if head[128:132] == b"DICM":
        raise ItemError("gzipped DICOM is not read; unpack it")
    if head.startswith(_PICTURES):
        raise ItemError("a picture, not a volume; read it with the reader image, or stack")
    known = _REFUSED.get(suffix)
    known = known or next((n for start, n in _REFUSED_HEADS.items() if head.startswith(start)), "")
    if not known and 348 in (int.from_bytes(head[:4], o) for o in ("little", "big")):
        known = "Analyze 7.5"
    if known:
        raise ItemError(f"{known} is not read; convert to NIfTI")
    raise ItemError("neither NIfTI, DICOM, NRRD nor MetaImage; convert to NIfTI")


class _OpenVolume(OpenItem):
    def __init__(self, files: ItemFiles, settings: VolumeOptions, like: Geometry | None) -> None:
        self._files = files
        self._settings = settings
        self._source = _read(files.path, settings.gaps)
        self._lock = threading.Lock()
        self._decoded: npt.NDArray[Any] | None = None
        self._fill: float | None = None
        voxels = self._source.voxels
        self._picks = settings.pick or tuple(range(voxels.volumes))
        if max(self._picks) >= voxels.volumes:
            raise ItemError(f"it has {voxels.volumes} volumes; pick asks for {max(self._picks)}")
        self._oriented, self._oriented_shape = orientation(
            self._source.affine, voxels.shape, settings.axis
        )
        with translated("its grid cannot be made"):
            matrix, shape = self._own_grid() if like is None else self._grid_of(like)
        self._matrix = matrix
        if np.prod(shape, dtype=object) > _MAX_VOXELS:
            raise ItemError(
                f"its rows would be of {shape} voxels; at most {_MAX_VOXELS:,} are made"
            )
        self._sampling = Sampling(matrix, shape, voxels.shape)
        x, y, z = shape
        affine = self._source.affine
        volumes = len(self._picks) if settings.volumes == "rows" else 1
        self.geometry = Geometry(
            shape=(z, y, x),
            volumes=volumes,
            affine=None if affine is None else affine @ matrix,
            to_source=matrix,
            source_shape=voxels.shape,
        )
        if like is not None and like.volumes != volumes:
            raise ItemError(f"it has {volumes} volumes, the item's first channel {like.volumes}")
        self.n_rows = z * volumes
        self.notes = self._source.notes
        self.value_range = self._source.value_range
        self.file_window = self._source.file_window
        self.nbytes = self._count_bytes()

    # ------------------------------------------------------------------ grid

    def _own_grid(self) -> tuple[Matrix, Triple]:
        """Orient, resample, crop: (row grid to the file's own, (X, Y, Z))."""
        matrix, shape = self._resampled()
        if self._settings.crop != "none":
            start, shape = self._box(matrix, shape)
            matrix = matrix @ shift(start)
        if self._settings.rows != "all":
            first, stop = self._kept_slices(matrix, shape)
            matrix = matrix @ shift((0, 0, first))
            shape = (*shape[:2], stop - first)
        return matrix, shape

    def _kept_slices(self, matrix: Matrix, shape: Triple) -> tuple[int, int]:
        """Find the first slice that is kept, and the one behind the last, on a grid."""
        if self._settings.rows == "foreground":
            low, high = self._foreground(matrix)
        else:
            found = self._labelled(matrix)
            if found is None:
                return shape[2] // 2, shape[2] // 2 + 1
            low, high = found
        first = min(max(0, _nearest(float(low[2]))), shape[2] - 1)
        return first, min(max(first + 1, _nearest(float(high[2]))), shape[2])

    def _labelled(
        self, matrix: Matrix
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]] | None:
        """Find the outer edges of all labels' box, as `_foreground`; None where there is none."""
        if self._files.mask is None:
            raise ItemError("rows=labelled needs a label map, in the column mask")
        with _of_column("mask"):
            labels, placed = self._labels_of(self._files.mask)
        held: npt.NDArray[np.bool_] = np.any(labels > 0, axis=(0, 1))
        if not held.any():
            return None
        # Along x, y and z of the file.
        seen = [np.flatnonzero(np.any(held, axis=others)) for others in ((0, 1), (0, 2), (1, 2))]
        ends = np.array([[s[0] - 0.5, s[-1] + 0.5] for s in seen])
        corners = np.linalg.inv(matrix) @ placed @ np.vstack([ends, [1, 1]])
        return corners[:3].min(axis=1) + 0.5, corners[:3].max(axis=1) + 0.5

    def _resampled(self) -> tuple[Matrix, Triple]:
        wanted = self._settings.spacing
        if self._settings.size is not None:
            return self._resized(of_patient(self._settings.size, self._settings.axis))
        if wanted is None or not any(wanted):
            return self._oriented, self._oriented_shape
        if self._source.affine is None:
            raise ItemError("it does not say how large its voxels are; spacing cannot be changed")
        old = np.linalg.norm((self._source.affine @ self._oriented)[:3, :3], axis=0)
        asked = np.array(of_patient(wanted, self._settings.axis))
        factors = np.where(asked > 0, asked, old) / old
        sizes = [
            # Halves go up, also where float32 headers make 7.4999 of 7.5.
            max(1, _nearest(count / float(factor) + 1e-4))
            for count, factor in zip(self._oriented_shape, factors, strict=True)
        ]
        new = (sizes[0], sizes[1], sizes[2])
        return self._oriented @ scaling(self._oriented_shape, new, factors), new

    def _resized(self, wanted: Triple) -> tuple[Matrix, Triple]:
        old = self._oriented_shape
        x, y, z = (new or count for new, count in zip(wanted, old, strict=True))
        factors = np.divide(old, (x, y, z))
        return self._oriented @ scaling(old, (x, y, z), factors), (x, y, z)

    def _box(self, matrix: Matrix, shape: Triple) -> tuple[Triple, Triple]:
        """Place the crop: (first voxel, size), on the resampled grid."""
        settings = self._settings
        size = None
        if settings.crop_size is not None:
            size = of_patient(settings.crop_size, settings.axis)
        if settings.crop == "foreground":
            low, high = self._foreground(matrix)
            if size is None:
                first = [max(0, _nearest(edge)) for edge in low]
                last = [min(n, _nearest(edge)) for edge, n in zip(high, shape, strict=True)]
                first = [min(a, n - 1) for a, n in zip(first, shape, strict=True)]
                box = [max(1, b - a) for a, b in zip(first, last, strict=True)]
                return (first[0], first[1], first[2]), (box[0], box[1], box[2])
            middle = (low + high) / 2
        elif settings.crop == "mask":
            middle = self._centroid(matrix)
        else:
            middle = np.divide(shape, 2)
        if size is None:
            raise ItemError("its crop has no size")
        start = [_nearest(float(m) - s / 2) for m, s in zip(middle, size, strict=True)]
        return (start[0], start[1], start[2]), size

    def _foreground(
        self, matrix: Matrix
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Find the outer edges of the foreground's box, on the grid of `matrix`; 0 is its edge."""
        pixels = self._pixels()
        seen = [np.zeros(size, bool) for size in self._source.voxels.shape]
        for channel in (channel for one in pixels for channel in one):
            for k, plane in enumerate(channel):
                above = plane > self._settings.foreground_above
                if above.any():
                    seen[2][k] = True
                    seen[1] |= above.any(axis=1)
                    seen[0] |= above.any(axis=0)
        if not seen[2].any():
            raise ItemError(f"nothing in it is above {self._settings.foreground_above:g}")
        ends = np.array([[np.flatnonzero(s)[0] - 0.5, np.flatnonzero(s)[-1] + 0.5] for s in seen])
        placed = np.linalg.inv(matrix) @ np.vstack([ends, [1, 1]])
        return placed[:3].min(axis=1) + 0.5, placed[:3].max(axis=1) + 0.5

    def _centroid(self, matrix: Matrix) -> npt.NDArray[np.float64]:
        """Find the centre of all labels above 0, on the grid of `matrix`, from its edge on."""
        path = self._files.centre or self._files.mask
        if path is None:
            raise ItemError("crop=mask needs a label map, in the column crop_mask or mask")
        with _of_column("crop_mask" if self._files.centre else "mask"):
            labels, placed = self._labels_of(path)
            sums, total = np.zeros(3), 0
            for volume in labels:
                for k, plane in enumerate(volume[0]):
                    lines, columns = np.nonzero(plane > 0)
                    sums += (columns.sum(), lines.sum(), k * len(lines))
                    total += len(lines)
            if not total:
                raise ItemError("the label map is empty, so there is no centre to crop around")
        middle = np.linalg.inv(matrix) @ placed @ [*(sums / total), 1]
        return np.asarray(middle[:3] + 0.5)

    def _grid_of(self, like: Geometry) -> tuple[Matrix, Triple]:
        """Lay the grid of another channel over this file."""
        if like.shape is None:
            raise ItemError("the item's first channel has no grid that this one could follow")
        z, y, x = like.shape
        affine = self._source.affine
        if like.affine is None or affine is None:
            if like.affine is not None or affine is not None:
                raise ItemError(
                    "of the item's first channel and this one only one says where it lies, so they "
                    "cannot be brought together"
                )
            # Voxel by voxel: what was turned and cut of the first channel's file is so of this one.
            first, own = like.source_shape or (x, y, z), self._source.voxels.shape
            if first != own:
                raise ItemError(
                    f"it has {own} voxels, the item's first channel {first}, and neither says "
                    "where it lies, so they cannot be brought together"
                )
            return like.row_to_source(), (x, y, z)
        matrix = np.linalg.inv(affine) @ like.affine
        return _snapped(matrix, (x, y, z), affine), (x, y, z)

    # ---------------------------------------------------------------- pixels

    def rows(self, start: int, stop: int) -> list[Pixels]:
        if stop <= start:
            return []
        pixels = self._pixels()
        with translated("its rows cannot be made"):
            fill = self._fill_value() if self._sampling.needs_fill else 0.0
            x, y, z = self._sampling.shape
            if self._settings.volumes == "channels":
                return [
                    self._sampling.row(pixels, number, fill).reshape(-1, y, x)
                    for number in range(start, stop)
                ]
            return [
                self._sampling.row(pixels[number // z], number % z, fill)
                for number in range(start, stop)
            ]

    def _pixels(self) -> npt.NDArray[Any]:
        """Decode the volumes once: (volumes, C, K, J, I), in the order of `pick`."""
        with self._lock:
            if self._decoded is None:
                self._decoded = _picked(self._source.voxels.pixels, self._picks)
            return self._decoded

    def _fill_value(self) -> float:
        pixels = self._pixels()
        with self._lock:
            if self._fill is None:
                # fmin passes over NaN, without a copy and without a warning.
                least = np.fmin.reduce(pixels, axis=None)
                self._fill = float(least)
            return self._fill

    def _count_bytes(self) -> int:
        voxels = self._source.voxels
        held = int(np.prod([len(self._picks), voxels.channels, *voxels.shape], dtype=object))
        if self._sampling.is_view:
            return held * voxels.dtype.itemsize
        made = int(
            np.prod([len(self._picks), voxels.channels, *self._sampling.shape], dtype=object)
        )
        return held * voxels.dtype.itemsize + made * 4

    def coords(self) -> npt.NDArray[np.float64]:
        z = self._sampling.shape[2]
        volumes = self._picks if self._settings.volumes == "rows" else (0,)
        return np.stack(
            [np.repeat(volumes, z), np.tile(np.arange(z), len(volumes))], axis=1
        ).astype(np.float64)

    def mask(self) -> Labels:
        if self._files.mask is None:
            raise ItemError("it has no mask")
        with _of_column("mask"):
            return self._mask_of(self._files.mask)

    def _mask_of(self, path: Path) -> Labels:
        """Lay a label map under the rows."""
        labels, placed = self._labels_of(path)
        whole = np.linalg.inv(placed) @ self._matrix
        # Both grids are the same but for flips and the order of axes.
        whole[:3, :3][np.abs(whole[:3, :3]) < 1e-9] = 0
        sampled = Sampling(whole, self._sampling.shape, _own_shape(labels)).labels(labels)[:, 0]
        volumes, of_file = self.geometry.volumes, self._source.voxels.volumes
        if len(sampled) == of_file > 1:
            sampled = sampled[list(self._picks)]
            if self._settings.volumes == "rows":
                sampled = sampled.reshape(1, -1, *sampled.shape[2:])
            return sampled
        if len(sampled) == 1:
            return np.tile(sampled, (1, volumes, 1, 1)) if volumes > 1 else sampled
        if volumes > 1:
            raise ItemError(f"it has {len(sampled)} volumes, the image {of_file}")
        # Classes that may overlap, a volume each.
        return sampled

    def _labels_of(self, path: Path) -> tuple[Labels, Matrix]:
        """Decode a label map on the file's own grid: (volumes, 1, K, J, I), its grid to the file's.

        It may be stored with other flips and order of axes, as converters of DICOM leave them.
        """
        source = _read(path, self._settings.gaps)
        voxels = source.voxels
        if voxels.channels != 1:
            raise ItemError("it has colours; a label map has one number a voxel")
        turn, shape = orientation(source.affine, voxels.shape, self._settings.axis)
        if source.affine is None or self._source.affine is None:
            # Nothing says that either is turned: voxel by voxel.
            if voxels.shape != self._source.voxels.shape:
                raise ItemError(
                    f"it has {voxels.shape} voxels, the image {self._source.voxels.shape}"
                )
            return voxels.labels(range(voxels.volumes)), np.eye(4)
        if shape != self._oriented_shape:
            raise ItemError(
                f"it lies on another grid: {shape} voxels, the image has {self._oriented_shape}"
            )
        apart = same_place(
            source.affine @ turn, self._source.affine @ self._oriented, self._oriented_shape
        )
        if not apart <= _SAME_MM:
            raise ItemError(
                f"it lies on another grid: up to {apart:.3g} mm away; resample it to the image"
            )
        placed = np.rint(self._oriented @ np.linalg.inv(turn))
        return voxels.labels(range(voxels.volumes)), placed

    def close(self) -> None:
        self._decoded = None


@contextmanager
def _of_column(name: str) -> Iterator[None]:
    """Say in errors which of the item's files they are about."""
    try:
        yield
    except ItemError as exc:
        raise ItemError(f"its {name}: {exc}") from exc


def _own_shape(volume: npt.NDArray[Any]) -> Triple:
    k, j, i = volume.shape[-3:]
    return i, j, k


def _nearest(value: float) -> int:
    """Round, halves up: `round` would send 0.5 and 1.5 to different sides."""
    return int(np.floor(value + 0.5 + 1e-9))


def _picked(decode: Any, picks: tuple[int, ...]) -> npt.NDArray[Any]:  # noqa: ANN401 - a method
    ascending = sorted(picks)
    pixels: npt.NDArray[Any] = decode(ascending)
    if list(picks) == ascending:
        return pixels
    return pixels[[ascending.index(pick) for pick in picks]]


def _snapped(matrix: Matrix, shape: Triple, affine: Matrix) -> Matrix:
    """Take rounding out of a matrix between grids that fit, if no corner moves by 0.001 mm."""
    plain = np.zeros((4, 4))
    plain[3, 3] = 1
    for column, own in enumerate(np.abs(matrix[:3, :3]).argmax(axis=0)):
        plain[own, column] = matrix[own, column]
    plain[:3, 3] = matrix[:3, 3]
    if sorted(np.abs(matrix[:3, :3]).argmax(axis=0)) != [0, 1, 2]:
        return matrix
    for choice in (np.rint(plain), plain):
        if same_place(affine @ choice, affine @ matrix, shape) <= _SAME_MM:
            return choice
    return matrix
