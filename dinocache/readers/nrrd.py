"""NRRD: .nrrd, and .nhdr with its one data file in the same folder.

References:
    The format's definition, teem.sourceforge.net/nrrd/format.html (sections 2 to 5).
"""

import re
from pathlib import Path

import numpy as np

from dinocache.errors import ItemError
from dinocache.geometry import Matrix
from dinocache.readers.contract import translated
from dinocache.readers.raw import Encoding, RawVoxels
from dinocache.readers.voxels import VoxelFile, checked_affine

__all__ = ["beside", "read_nrrd"]

_MAX_HEADER = 1 << 20
_TYPES = {
    "i1": ("signed char", "int8", "int8_t"),
    "u1": ("uchar", "unsigned char", "uint8", "uint8_t"),
    "i2": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
    "u2": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
    "i4": ("int", "signed int", "int32", "int32_t"),
    "u4": ("uint", "unsigned int", "uint32", "uint32_t"),
    "i8": ("longlong", "long long", "long long int", "signed long long", "int64", "int64_t",
           "signed long long int"),
    "u8": ("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"),
    "f4": ("float",),
    "f8": ("double",),
}  # fmt: skip
_TYPE_OF = {name: kind for kind, names in _TYPES.items() for name in names}
_ENCODINGS: dict[str, Encoding] = {
    "raw": "raw", "gz": "gzip", "gzip": "gzip", "bz2": "bzip2", "bzip2": "bzip2",
}  # fmt: skip
_SPACES = {
    "left-posterior-superior": (1, 1, 1), "lps": (1, 1, 1),
    "right-anterior-superior": (-1, -1, 1), "ras": (-1, -1, 1),
    "left-anterior-superior": (1, -1, 1), "las": (1, -1, 1),
}  # fmt: skip
"""What each axis of the space is multiplied by to be LPS."""
_UNIT_MM = {"mm": 1.0, "um": 1e-3, "micron": 1e-3, "cm": 10.0, "m": 1e3}
_COLOURS = {"rgb-color": 3, "3-color": 3, "rgba-color": 4, "4-color": 4}
_SPATIAL = ("domain", "space")


def read_nrrd(path: Path) -> VoxelFile:
    """Read a NRRD header.

    Of its axes, up to three lie in space. One more may be the first or the last: colours, or
    volumes (times, directions of diffusion).

    Args:
        path: The file.

    Returns:
        Its volumes.

    Raises:
        ItemError: If it is damaged, names a file elsewhere, or is packed in a way not read.
    """
    fields, end = _fields(path)
    with translated("its NRRD header is damaged"):
        return _understood(path, fields, end)


def beside(path: Path, name: str) -> Path:
    """Find a data file that a header names; it must lie in the header's folder.

    Args:
        path: The header.
        name: What it names.

    Raises:
        ItemError: If it lies elsewhere, or is not there.
    """
    plain = name.strip().removeprefix("./")
    if not plain or plain != Path(plain).name or "\\" in plain or "\0" in plain or plain == "..":
        raise ItemError(f"its header names a data file outside its folder: {name[:80]!r}")
    found = path.with_name(plain)
    if not found.is_file():
        raise ItemError(f"its header names the data file {plain[:80]!r}, which is not beside it")
    return found


def _fields(path: Path) -> tuple[dict[str, str], int]:
    """Read "field: value" lines up to the empty one: (fields, first byte behind)."""
    with translated("cannot be read"), path.open("rb") as file:
        start = file.read(_MAX_HEADER)
    ends = [match.end() for match in re.finditer(rb"\n\r?\n", start[:_MAX_HEADER])][:1]
    end = ends[0] if ends else len(start)
    lines = start[:end].decode("ascii", "replace").splitlines()
    if not lines or not re.fullmatch(r"NRRD000[1-5]", lines[0]):
        raise ItemError(f"not a NRRD header of version 1 to 5: {lines[0][:20] if lines else ''!r}")
    fields = {}
    for line in lines[1:]:
        name, separator, value = line.partition(":")
        # "key:=value" is free text; "#" begins a comment.
        if separator and not line.startswith("#") and not value.startswith("="):
            fields[re.sub(r"[ _-]", "", name).lower()] = value.strip()
    if not ends and "datafile" not in fields:
        raise ItemError("its NRRD header does not end")
    return fields, end


def _understood(path: Path, fields: dict[str, str], end: int) -> VoxelFile:
    for name in ("dimension", "type", "sizes", "encoding"):
        if name not in fields:
            raise ItemError(f"its NRRD header lacks the field {name!r}")
    sizes = [int(size) for size in fields["sizes"].split()]
    if len(sizes) != int(fields["dimension"]) or not 1 <= len(sizes) <= 16 or min(sizes) < 1:
        raise ItemError(f"its header claims {fields['dimension']} axes of {fields['sizes'][:60]}")
    axes = _Axes(fields, sizes)
    voxels = _voxels(path, fields, end, axes)
    return VoxelFile(
        voxels=voxels, affine=axes.affine, notes=axes.notes, value_range=voxels.value_range
    )


class _Axes:
    """Which axes lie in space, and where.

    Attributes:
        shape: (I, J, K).
        repeats: Volumes along a last axis outside space.
        components: Values along a first axis outside space.
        is_colour: Whether those are colours.
        affine: (4, 4) voxel to LPS, mm, or None.
        notes: What had to be assumed.
    """

    def __init__(self, fields: dict[str, str], sizes: list[int]) -> None:
        kinds = fields.get("kinds", "").lower().split() or ["???"] * len(sizes)
        directions = _directions(fields, len(sizes))
        if len(kinds) != len(sizes):
            raise ItemError(f"its header claims {len(sizes)} axes and {len(kinds)} kinds")
        if "complex" in kinds:
            raise ItemError("its voxels are complex, which is not read")
        spatial = [
            axis
            for axis in range(len(sizes))
            if (directions[axis] is not None if directions else _may_be_space(kinds, axis))
        ]
        outside = [axis for axis in range(len(sizes)) if axis not in spatial and sizes[axis] > 1]
        if len(spatial) > 3 or not spatial or len(outside) > 1:
            raise ItemError(
                f"it has axes of {sizes}, {len(spatial)} of them in space; three are read and one "
                "more"
            )
        self.repeats = self.components = 1
        self.is_colour = False
        if outside:
            axis = outside[0]
            if spatial[0] < axis < spatial[-1]:
                raise ItemError("an axis outside space lies between those in it; permute it")
            if axis > spatial[-1]:
                self.repeats = sizes[axis]
            else:
                self.components = sizes[axis]
                self.is_colour = _is_colour(kinds[axis], sizes[axis], fields["type"].lower())
        i, j, k = ([sizes[axis] for axis in spatial] + [1, 1])[:3]
        self.shape = (i, j, k)
        self.notes: tuple[str, ...] = ()
        self.affine = self._affine(fields, spatial, directions)

    def _affine(
        self,
        fields: dict[str, str],
        spatial: list[int],
        directions: list[list[float] | None] | None,
    ) -> Matrix | None:
        affine = np.eye(4)
        if not directions:
            spacings = [float(value) for value in fields.get("spacings", "").split()]
            if len(spatial) < 2 or len(spacings) <= max(spatial):
                return None
            sides = [spacings[axis] for axis in spatial]
            if not np.isfinite(sides).all():
                return None
            affine[range(len(sides)), range(len(sides))] = sides
            self.notes = ("it does not say how it lies in the patient, only its voxel size",)
            return checked_affine(affine)
        space = fields.get("space", "").lower().removesuffix("-time").removesuffix("t")
        signs = _SPACES.get(space)
        if signs is None:
            signs = (1, 1, 1)
            self.notes = (f"its space is {space or 'unnamed'!r}, not the patient's; taken as LPS",)
        vectors = [directions[axis] or [] for axis in spatial]
        for column, vector in enumerate(vectors):
            affine[: len(vector[:3]), column] = vector[:3]
        if len(vectors) == 1:
            return None
        if len(vectors) == 2:
            normal = np.cross(affine[:3, 0], affine[:3, 1])
            affine[:3, 2] = normal / np.linalg.norm(normal)
        if "spaceorigin" in fields:
            origin = _vector(fields["spaceorigin"])
            affine[: len(origin[:3]), 3] = origin[:3]
        unit = fields.get("spaceunits", "").replace('"', " ").split()[:1]
        scale = _UNIT_MM.get(unit[0].lower(), 1.0) if unit else 1.0
        return checked_affine(np.diag([*(sign * scale for sign in signs), 1]) @ affine)


def _is_colour(kind: str, size: int, values: str) -> bool:
    """Say whether an axis is colours; ITK writes them as vectors of three or four bytes."""
    bytes_of_colour = _TYPE_OF.get(values) == "u1" and size in (3, 4)
    return _COLOURS.get(kind) == size or (bytes_of_colour and kind in ("vector", "4-vector"))


def _may_be_space(kinds: list[str], axis: int) -> bool:
    """Without directions: by kind, and of unknown kinds the first three."""
    if kinds[axis] in _SPATIAL:
        return True
    named = [kind in _SPATIAL for kind in kinds]
    unknown = [other for other, kind in enumerate(kinds) if kind in ("???", "none")]
    return not any(named) and axis in unknown[:3]


def _directions(fields: dict[str, str], count: int) -> list[list[float] | None] | None:
    if "spacedirections" not in fields:
        return None
    found = re.findall(r"none|\([^)]*\)", fields["spacedirections"].lower())
    if len(found) != count:
        raise ItemError(f"its header claims {count} axes and {len(found)} directions")
    vectors = [None if text == "none" else _vector(text) for text in found]
    # Newer writers say "none" as a vector of NaN.
    return [None if vector and np.isnan(vector).all() else vector for vector in vectors]


def _vector(text: str) -> list[float]:
    values = [float(value) for value in text.strip().strip("()").split(",")]
    if not 1 <= len(values) <= 4:
        raise ItemError(f"its header has a vector of {len(values)} values")
    return values


def _voxels(path: Path, fields: dict[str, str], end: int, axes: _Axes) -> RawVoxels:
    encoding = _ENCODINGS.get(fields["encoding"].lower())
    if encoding is None:
        raise ItemError(f"its encoding {fields['encoding'][:20]!r} is not read; save it as gzip")
    kind = _TYPE_OF.get(fields["type"].lower())
    if kind is None:
        raise ItemError(f"its voxels are of type {fields['type'][:30]!r}, which is not read")
    if kind[1] != "1" and encoding and "endian" not in fields:
        raise ItemError("its NRRD header does not say its endian")
    order = ">" if fields.get("endian", "").lower() == "big" else "<"
    stored = np.dtype(order + kind)
    offset, lead = end, 0
    if "datafile" in fields:
        if fields["datafile"].split()[:1] == ["LIST"] or len(fields["datafile"].split()) > 2:
            raise ItemError("its voxels lie in several files, which is not read; join them")
        path, offset = beside(path, fields["datafile"]), 0
    offset += _lines(path, offset, int(fields.get("lineskip", "0")))
    skip = int(fields.get("byteskip", "0"))
    if encoding == "raw" and skip == -1:
        values = int(np.prod([*axes.shape, axes.repeats, axes.components], dtype=object))
        offset = path.stat().st_size - values * stored.itemsize
    elif skip < 0:
        raise ItemError(f"its header passes over {skip} bytes")
    elif encoding == "raw":
        offset += skip
    else:
        lead = skip
    return RawVoxels(
        path=path, offset=offset, lead=lead, encoding=encoding, stored=stored, shape=axes.shape,
        repeats=axes.repeats, components=axes.components, is_colour=axes.is_colour,
    )  # fmt: skip


def _lines(path: Path, offset: int, count: int) -> int:
    """Say how many bytes the first lines behind `offset` take."""
    if count <= 0:
        return 0
    if count > 10_000:
        raise ItemError(f"its header passes over {count} lines")
    with path.open("rb") as file:
        file.seek(offset)
        for _ in range(count):
            file.readline(_MAX_HEADER)
        return file.tell() - offset
