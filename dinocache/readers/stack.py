"""Stacks of sections, as electron microscopes make them: HDF5, TIFF, folders of pictures.

Rows are sections. The spacing is taken from the option, else from the file:

| file | where | unit |
|---|---|---|
| HDF5 | attributes `resolution`, `voxel_size` | nm, or what `units` says |
| HDF5 | attribute `element_size_um` | um |
| HDF5 | attribute `spacing`, only beside `units` | what `units` says |
| ImageJ TIFF | `spacing`, `unit`, XResolution, YResolution | what `unit` says |
| OME TIFF | PhysicalSizeZ, Y, X | um, or what PhysicalSizeZUnit etc. say |

Attributes are (z, y, x), of the data set or else of the file's root.
"""

import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import Field

from dinocache.errors import ItemError
from dinocache.geometry import Geometry
from dinocache.readers.contract import (
    ItemFiles,
    Labels,
    OpenItem,
    Pixels,
    Reader,
    ReaderOptions,
    translated,
)
from dinocache.readers.hdf5 import MM_OF_UNIT, Sections, is_hdf5
from dinocache.readers.image import own_grid_only
from dinocache.readers.pictures import Picture, open_pictures, printable
from dinocache.readers.sequence import Sequence

__all__ = ["StackOptions", "StackReader"]

Spacing = tuple[float, float, float]

_MAX_ROW = 1 << 30
_MAX_ROWS = 1 << 24


class StackOptions(ReaderOptions):
    """Where in a file the stack lies, and how far its voxels are apart."""

    dataset: str | None = Field(None, min_length=1)
    """Path of the data set in HDF5 files; by default the only one of three dimensions."""
    mask_dataset: str | None = Field(None, min_length=1)
    """The same of the mask. Without a file of its own the mask is in the item's."""
    spacing_nm: Spacing | None = None
    """(z, y, x), nm; by default the file's, if it says one."""

    def model_post_init(self, context: object, /) -> None:
        """Refuse a spacing that is none."""
        if self.spacing_nm is not None and min(self.spacing_nm) <= 0:
            raise ValueError("each of the three values of spacing_nm must be above 0")


class StackReader(Reader[StackOptions]):
    """One row a section."""

    name = "stack"
    summary = "sections of electron microscopes: HDF5, TIFF, folders of pictures"
    Options = StackOptions
    columns = (("section", "voxel"),)

    def open(self, files: ItemFiles, like: Geometry | None = None) -> OpenItem:
        """Read the header."""
        item = _OpenStack(files, self.settings)
        try:
            own_grid_only(item.geometry, like)
        except ItemError:
            item.close()
            raise
        return item


class _OpenStack(OpenItem):
    def __init__(self, files: ItemFiles, options: StackOptions) -> None:
        self._files, self._options = files, options
        self._source = source = _open(files.path, options.dataset)
        try:
            channels, height, width = source.shape
            if height * width * channels > _MAX_ROW or len(source) > _MAX_ROWS:
                raise ItemError(
                    f"{len(source)} sections of {height} x {width} px; at most {_MAX_ROWS} of "
                    f"{_MAX_ROW} px are read"
                )
        except ItemError:
            self.close()
            raise
        self.n_rows = len(source)
        self.value_range = source.value_range
        self.notes = source.notes
        self.nbytes = self.n_rows * channels * height * width * source.dtype.itemsize
        self.geometry = Geometry(
            shape=(self.n_rows, height, width),
            affine=_affine(options.spacing_nm, source.spacing_mm),
        )

    def rows(self, start: int, stop: int) -> list[Pixels]:
        return self._source.rows(start, stop)

    def coords(self) -> npt.NDArray[np.float64]:
        return np.arange(self.n_rows, dtype=np.float64)[:, None]

    def mask(self) -> Labels:
        path, dataset = self._files.mask, self._options.mask_dataset
        if path is None and dataset is None:
            raise ItemError("it has no mask: no file, and no option mask_dataset")
        expected = self.n_rows, *self._source.shape[1:]
        try:
            source = _open(path or self._files.path, dataset, labels=True)
            try:
                shape = (len(source), *source.shape[1:])
                if shape != expected or source.shape[0] != 1:
                    raise ItemError(f"{shape} voxels, the stack has {expected}")
                return source.labels()
            finally:
                source.close()
        except ItemError as exc:
            raise ItemError(f"its mask: {exc}") from exc

    def close(self) -> None:
        self._source.close()


def _affine(
    spacing_nm: Spacing | None, spacing_mm: Spacing | None
) -> npt.NDArray[np.float64] | None:
    if spacing_nm is not None:
        spacing_mm = (spacing_nm[0] * 1e-6, spacing_nm[1] * 1e-6, spacing_nm[2] * 1e-6)
    return None if spacing_mm is None else np.diag([*reversed(spacing_mm), 1.0])


def _open(path: Path, dataset: str | None, *, labels: bool = False) -> "Sections | _Pictures":
    try:
        return _find(path, dataset, labels=labels)
    except ItemError as exc:  # it may quote the file
        raise ItemError(printable(str(exc))) from exc


def _find(path: Path, dataset: str | None, *, labels: bool) -> "Sections | _Pictures":
    if path.is_dir():
        return _folder(path)
    with translated("cannot be read"), path.open("rb") as file:
        head = file.read(8)
        found = is_hdf5(file)
    if found:
        return Sections(path, dataset, labels=labels)
    if dataset is not None:
        raise ItemError(f"no HDF5 file, so there is no data set {dataset!r} in it")
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return _tiff(path)
    if head[:2] == b"\x1f\x8b":
        raise ItemError("it is compressed by gzip; unpack it first")
    raise ItemError("an HDF5 file, a TIFF, or a folder of pictures was expected")


class _Pictures:
    """Sections that are pictures: pages of a TIFF, files of a folder."""

    def __init__(self, pictures: list[Picture] | Sequence, spacing_mm: Spacing | None) -> None:
        self._pictures = pictures
        self.spacing_mm = spacing_mm
        self.notes: tuple[str, ...] = ()
        if isinstance(pictures, Sequence):
            self.shape, self.dtype, self.notes = pictures.shape, pictures.dtype, pictures.notes
            self.value_range = pictures.value_range
        else:
            first = pictures[0]
            self.shape, self.dtype, self.value_range = first.shape, first.dtype, first.value_range

    def __len__(self) -> int:
        return len(self._pictures)

    def rows(self, start: int, stop: int) -> list[Pixels]:
        pictures = self._pictures
        if isinstance(pictures, Sequence):
            return [pictures.row(i) for i in range(start, stop)]
        return [pictures[i].decode() for i in range(start, stop)]

    def labels(self) -> Labels:
        if isinstance(self._pictures, Sequence):
            return self._pictures.labels()
        return np.stack([picture.labels() for picture in self._pictures])[None]

    def close(self) -> None:
        """Each picture is opened and closed by itself."""


def _folder(path: Path) -> _Pictures:
    return _Pictures(Sequence(path), None)


def _tiff(path: Path) -> _Pictures:
    pages = open_pictures(path)
    first = pages[0]
    if len({(page.shape, page.dtype) for page in pages}) > 1:
        raise ItemError("its pages differ in size or type; a stack has sections of one size")
    if first.shape[0] not in (1, 3):
        raise ItemError(f"its pages have {first.shape[0]} channels, not 1 or 3")
    described = first.tiff.description if first.tiff else ""
    if first.tiff and described.startswith("ImageJ="):
        spacing = _imagej_spacing(first.tiff.resolution, described)
    elif "<OME" in described:
        spacing = _ome_spacing(described, pages)
    else:
        spacing = None
    return _Pictures(pages, spacing)


def _imagej_spacing(resolution: tuple[float, float], described: str) -> Spacing | None:
    fields = dict(line.split("=", 1) for line in described.splitlines() if line.count("=") == 1)
    for axis in ("channels", "frames"):
        if fields.get(axis, "1").strip() != "1":
            raise ItemError(f"an ImageJ stack of {fields[axis]} {axis}; one is read")
    scale = MM_OF_UNIT.get(fields.get("unit", "").strip().lower())
    across, down = resolution
    deep = _number(fields.get("spacing", ""))
    if scale is None or deep is None or not (across > 0 and down > 0):
        return None
    return _spacing((deep * scale, scale / down, scale / across))


def _ome_spacing(described: str, pages: list[Picture]) -> Spacing | None:
    pixels = re.search(r"<(?:\w+:)?Pixels\b([^>]*)>", described)
    given = dict(re.findall(r"(\w+)\s*=\s*\"([^\"]*)\"", pixels[1])) if pixels else {}
    # Red, green and blue are one plane's; channels in planes of their own are not sections.
    channels = pages[0].tiff.samples if pages[0].tiff else 1
    for axis, known in (("SizeC", ("1", str(channels))), ("SizeT", ("1",))):
        if given.get(axis, "1") not in known:
            raise ItemError(f"an OME TIFF of {axis} {given[axis]}; 1 is read")
    sections = given.get("SizeZ", str(len(pages)))
    if sections != str(len(pages)):
        raise ItemError(f"an OME TIFF of SizeZ {sections} in {len(pages)} pages; one each is read")
    found = []
    for axis in "ZYX":
        size = _number(given.get(f"PhysicalSize{axis}", ""))
        scale = MM_OF_UNIT.get(given.get(f"PhysicalSize{axis}Unit", "um").lower())
        if size is None or scale is None:
            return None
        found.append(size * scale)
    return _spacing((found[0], found[1], found[2]))


def _spacing(found: Spacing) -> Spacing | None:
    return found if all(np.isfinite(found)) and min(found) > 0 else None


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
