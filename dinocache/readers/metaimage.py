"""MetaImage: .mha, and .mhd with its one data file in the same folder.

References:
    ITK's MetaIO documentation; where it is silent, what SimpleITK reads (see the tests).
"""

from pathlib import Path

import numpy as np

from dinocache.errors import ItemError
from dinocache.geometry import Matrix
from dinocache.readers.contract import translated
from dinocache.readers.nrrd import beside
from dinocache.readers.raw import Encoding, RawVoxels
from dinocache.readers.voxels import VoxelFile, checked_affine

__all__ = ["is_metaimage", "read_metaimage"]

_MAX_HEADER = 1 << 16
_TYPES = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4",
    "MET_UINT": "u4", "MET_LONG": "i4", "MET_ULONG": "u4", "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4", "MET_DOUBLE": "f8",
}  # fmt: skip
_MATRIX = ("TransformMatrix", "Rotation", "Orientation")
_ORIGIN = ("Offset", "Position", "Origin")


def is_metaimage(head: bytes) -> bool:
    """Say whether a file of these first bytes is a MetaImage header."""
    first = head.lstrip().split(b"=", 1)[0].strip()
    return first in (b"ObjectType", b"NDims", b"Comment", b"ObjectSubType") and b"NDims" in head


def read_metaimage(path: Path) -> VoxelFile:
    """Read a MetaImage header. Its axes are LPS, as ITK's are.

    Args:
        path: The file.

    Returns:
        Its volumes.

    Raises:
        ItemError: If it is damaged, names a file elsewhere, or is packed in a way not read.
    """
    fields, end = _fields(path)
    with translated("its MetaImage header is damaged"):
        sizes = [int(size) for size in _words(fields, "DimSize")]
        if len(sizes) != int(fields.get("NDims", "0")) or not 2 <= len(sizes) <= 4:
            raise ItemError(
                f"its header claims {fields.get('NDims')} axes of {sizes}; 2 to 4 are read"
            )
        if min(sizes) < 1:
            raise ItemError(f"its header claims axes of {sizes}")
        voxels = _voxels(path, fields, end, sizes)
        return VoxelFile(
            voxels=voxels, affine=_affine(fields, len(sizes)), value_range=voxels.value_range
        )


def _fields(path: Path) -> tuple[dict[str, str], int]:
    """Read "key = value" lines up to ElementDataFile: (fields, first byte behind)."""
    with translated("cannot be read"), path.open("rb") as file:
        fields: dict[str, str] = {}
        while "ElementDataFile" not in fields:
            line = file.readline(_MAX_HEADER)
            if not line or file.tell() > _MAX_HEADER:
                raise ItemError("its MetaImage header does not end in ElementDataFile")
            key, _, value = line.decode("latin-1").partition("=")
            fields[key.strip()] = value.strip()
        return fields, file.tell()


def _words(fields: dict[str, str], *names: str) -> list[str]:
    """Give the words of the first of these fields that there is."""
    return next((fields[name].split() for name in names if name in fields), [])


def _is(fields: dict[str, str], *names: str) -> bool:
    return _words(fields, *names)[:1] in (["True"], ["true"], ["1"])


def _voxels(path: Path, fields: dict[str, str], end: int, sizes: list[int]) -> RawVoxels:
    kind = _TYPES.get(fields.get("ElementType", ""))
    if kind is None:
        raise ItemError(f"its voxels are of type {fields.get('ElementType', '')[:30]!r}, not read")
    if "BinaryData" in fields and not _is(fields, "BinaryData"):
        raise ItemError("its voxels are written as text, which is not read; save it as binary")
    stored = np.dtype(
        (">" if _is(fields, "BinaryDataByteOrderMSB", "ElementByteOrderMSB") else "<") + kind
    )
    components = int(fields.get("ElementNumberOfChannels", "1"))
    i, j, k, repeats = [*sizes, 1, 1][:4]
    data, offset = fields["ElementDataFile"], end
    if data.upper() != "LOCAL":
        if data.split()[:1] == ["LIST"] or "%" in data:
            raise ItemError("its voxels lie in several files, which is not read; join them")
        path, offset = beside(path, data), 0
    skip = int(fields.get("HeaderSize", "0"))
    if skip == -1:
        values = int(np.prod([i, j, k, repeats, components], dtype=object))
        offset = path.stat().st_size - values * stored.itemsize
    elif skip > 0:
        offset = skip
    return RawVoxels(
        path=path, offset=offset, encoding=_encoding(path, offset, fields), stored=stored,
        shape=(i, j, k), repeats=repeats, components=components,
        is_colour=stored == np.uint8 and components in (3, 4),
    )  # fmt: skip


def _encoding(path: Path, offset: int, fields: dict[str, str]) -> Encoding:
    if not _is(fields, "CompressedData"):
        return "raw"
    with path.open("rb") as file:
        file.seek(max(0, offset))
        return "gzip" if file.read(2) == b"\x1f\x8b" else "zlib"


def _affine(fields: dict[str, str], axes: int) -> Matrix | None:
    spacing = [float(word) for word in _words(fields, "ElementSpacing", "ElementSize")]
    if not spacing:
        return None
    matrix = [float(word) for word in _words(fields, *_MATRIX)] or np.eye(axes).ravel().tolist()
    origin = [float(word) for word in _words(fields, *_ORIGIN)] or [0.0] * axes
    if len(spacing) != axes or len(matrix) != axes * axes or len(origin) != axes:
        raise ItemError(f"its header claims {axes} axes; its spacing, matrix or offset has others")
    space = min(axes, 3)
    affine = np.eye(4)
    # Each line of the matrix is the direction of one axis of the file.
    directions = np.reshape(matrix, (axes, axes)).T[:space, :space]
    affine[:space, :space] = directions * spacing[:space]
    affine[:space, 3] = origin[:space]
    return checked_affine(affine)
