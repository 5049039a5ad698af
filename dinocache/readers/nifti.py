"""NIfTI-1 and -2: one file, a gzip of it, or a pair .hdr/.img. Headers by nibabel, voxels by us."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dinocache.errors import ItemError
from dinocache.geometry import Matrix
from dinocache.readers.contract import translated
from dinocache.readers.raw import RawVoxels
from dinocache.readers.voxels import VoxelFile, checked_affine, sizes

__all__ = ["head_of", "is_nifti", "read_nifti"]

_TYPES = {
    2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4",
    1024: "i8", 1280: "u8", 128: "u1", 2304: "u1",
}  # fmt: skip
"""NIfTI's data type -> numpy's; the last two are RGB and RGBA bytes."""
_COLOURS = {128: 3, 2304: 4}
_REFUSED = {
    1: "single bits", 32: "complex", 1792: "complex", 2048: "complex", 1536: "128-bit floats",
}  # fmt: skip
_UNIT_MM = {1: 1e3, 2: 1.0, 3: 1e-3}
"""NIfTI's spatial units: metre, millimetre, micrometre."""
_RAS_TO_LPS = np.diag([-1.0, -1, 1, 1])
_HEAD = 544
_SIZE_TOLERANCE = 0.01
"""Of a voxel's side: what the affine and pixdim may differ by."""
_SCANNER = 1
"""Code of a transform to the scanner's own coordinates."""
_CIFTI_INTENTS = range(3000, 3100)


def head_of(path: Path) -> bytes:
    """Read a file's first 544 bytes; of a gzip, of what it holds.

    Args:
        path: A file.

    Raises:
        ItemError: If it cannot be read.
    """
    with translated("cannot be read"), path.open("rb") as file:
        start = file.read(_HEAD)
        if start[:2] != b"\x1f\x8b":
            return start
        from isal import igzip

        file.seek(0)
        return igzip.IGzipFile(fileobj=file, mode="rb").read(_HEAD)


def is_nifti(head: bytes) -> bool:
    """Say whether a file of these first bytes is a NIfTI header, of either version."""
    return head[344:348] in (b"n+1\0", b"ni1\0") or head[4:7] in (b"n+2", b"ni2")


def read_nifti(path: Path) -> VoxelFile:
    """Read a NIfTI header.

    The affine is nibabel's choice: the sform, else the qform, else one made of voxel sizes alone.
    Its unit is brought to mm, as ITK does and nibabel does not. Where the sform's voxels are not of
    the size that pixdim says, pixdim's holds, and as in ITK (5.4, as SimpleITK 2.5 has it) the rest
    is the qform's if there is one, unless the sform is a scanner's (code 1) and not sheared. The
    files of ACDC have no qform, 1 x 1 x 1 mm in their sform and the true size in pixdim.

    Args:
        path: The file, or either file of a pair.

    Returns:
        Its volumes.

    Raises:
        ItemError: If it is damaged, or holds complex numbers or surfaces.
    """
    path, image = _pair(path)
    head = head_of(path)
    if not is_nifti(head):
        raise ItemError("not a NIfTI header")
    with translated("its NIfTI header is damaged"):
        import nibabel

        second = head[4:7] in (b"n+2", b"ni2")
        kind: Any = nibabel.Nifti2Header if second else nibabel.Nifti1Header
        header = kind(head[: kind.sizeof_hdr], check=False)
        single = head[5:6] == b"+" if second else head[345:346] == b"+"
        if not single and image is None:
            raise ItemError("a NIfTI header whose .img is not beside it")
        return _understood(header, path if single or image is None else image, single=single)


def _pair(path: Path) -> tuple[Path, Path | None]:
    """Find (header, voxels) of a pair; voxels are None where there is one file only."""
    name = path.name
    for here, there in ((".hdr", ".img"), (".hdr.gz", ".img.gz")):
        for ending, other in ((here, there), (there, here)):
            if name.endswith(ending):
                stem = name.removesuffix(ending)
                choices = [path.with_name(stem + other + more) for more in ("", ".gz")]
                found = next((choice for choice in choices if choice.is_file()), None)
                if ending == there:
                    return (found, path) if found else (path, None)
                return path, found
    return path, None


def _understood(header: Any, path: Path, *, single: bool) -> VoxelFile:  # noqa: ANN401 - nibabel's
    if int(header["intent_code"]) in _CIFTI_INTENTS:
        raise ItemError("CIFTI is not read: it holds surfaces; export volumes as NIfTI")
    code = int(header["datatype"])
    if code not in _TYPES:
        known = _REFUSED.get(code, f"NIfTI type {code}")
        raise ItemError(f"its voxels are {known}, which is not read; convert it to real numbers")
    shape, repeats = _shape(header)
    slope, intercept = header.get_slope_inter() if code not in _COLOURS else (None, None)
    packed = _is_gzip(path)
    start = _start(header, single=single)
    voxels = RawVoxels(
        path=path,
        offset=0 if packed else start,
        lead=start if packed else 0,
        encoding="gzip" if packed else "raw",
        stored=np.dtype(header.endianness + _TYPES[code]),
        shape=shape,
        repeats=repeats,
        components=_COLOURS.get(code, 1),
        is_colour=code in _COLOURS,
        slope=1.0 if slope is None else float(slope),
        intercept=0.0 if intercept is None else float(intercept),
    )
    affine, notes = _affine(header)
    low, high = float(header["cal_min"]), float(header["cal_max"])
    return VoxelFile(
        voxels=voxels,
        affine=affine,
        notes=notes,
        value_range=voxels.value_range,
        file_window=(low, high) if np.isfinite([low, high]).all() and low < high else None,
    )


def _is_gzip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _shape(header: Any) -> tuple[tuple[int, int, int], int]:  # noqa: ANN401 - nibabel's
    """(I, J, K) and how many follow one another; one further axis may be longer than 1."""
    axes = int(header["dim"][0])
    if not 1 <= axes <= 7:
        raise ItemError(f"its header claims {axes} axes")
    sizes = [int(size) for size in header["dim"][1 : axes + 1]]
    if min(sizes) < 1:
        raise ItemError(f"its header claims axes of {sizes}")
    i, j, k, *others = [*sizes, 1, 1][: max(3, axes)]
    if sum(size > 1 for size in others) > 1:
        raise ItemError(f"it has axes of {sizes}; one axis beyond the volume's three is read")
    return (i, j, k), max(others, default=1)


def _start(header: Any, *, single: bool) -> int:  # noqa: ANN401 - nibabel's
    start = float(header["vox_offset"])
    if not np.isfinite(start) or start < 0 or start % 1:
        raise ItemError(f"its header claims voxels from byte {start} on")
    return int(start) if start or not single else int(header.single_vox_offset)


def _affine(header: Any) -> tuple[Matrix, tuple[str, ...]]:  # noqa: ANN401 - nibabel's
    # Bits 0 to 2; codes beyond the table say nothing.
    unit = _UNIT_MM.get(int(header["xyzt_units"]) & 7, 1.0)
    scale = np.diag([unit, unit, unit, 1])
    affine = checked_affine(_RAS_TO_LPS @ header.get_best_affine())
    notes: tuple[str, ...] = ()
    if not int(header["sform_code"]) and not int(header["qform_code"]):
        notes = ("it does not say how it lies in the patient; nibabel's default is taken",)
    sides = np.linalg.norm(affine[:3, :3], axis=0)
    voxel = np.abs(np.asarray(header["pixdim"][1:4], np.float64))
    if (
        np.isfinite(voxel).all()
        and voxel.min() > 0
        and (abs(voxel / sides - 1) > _SIZE_TOLERANCE).any()
    ):
        said = f"its sform makes voxels of {sizes(sides)}, its pixdim of {sizes(voxel)}"
        qform = _qform(header, voxel)
        if qform is not None and not (
            int(header["sform_code"]) == _SCANNER and _is_upright(affine)
        ):
            affine = qform
            notes += (f"{said}; its qform holds",)
        else:
            affine[:3, :3] *= voxel / sides
            notes += (f"{said}; pixdim holds",)
    return checked_affine(scale @ affine), notes


def _qform(header: Any, voxel: npt.NDArray[np.float64]) -> Matrix | None:  # noqa: ANN401 - nibabel's
    """Give the qform in LPS; None where there is none, or its voxels are not those of pixdim."""
    if not int(header["qform_code"]):
        return None
    from nibabel.spatialimages import HeaderDataError

    try:
        affine = checked_affine(_RAS_TO_LPS @ header.get_qform())
    except (ValueError, HeaderDataError, ItemError):  # of a quaternion or sizes that are none
        return None
    sides = np.linalg.norm(affine[:3, :3], axis=0)
    return affine if (abs(voxel / sides - 1) <= _SIZE_TOLERANCE).all() else None


def _is_upright(affine: Matrix) -> bool:
    """Say whether an affine's axes are at right angles."""
    sides = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return bool(np.allclose(sides.T @ sides, np.eye(3), atol=1e-3))
