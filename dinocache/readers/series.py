"""DICOM series: a folder of slices, or one file of many frames, to a volume."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from dinocache.errors import ItemError
from dinocache.geometry import Matrix
from dinocache.readers.contract import Labels, translated
from dinocache.readers.dicom import DicomImage, is_dicom, purpose_of, quiet
from dinocache.readers.pictures import printable
from dinocache.readers.raw import smallest_integers
from dinocache.readers.voxels import VoxelFile, checked_affine

__all__ = ["DICOM_SUFFIXES", "Gaps", "read_series"]

Gaps = Literal["refuse", "keep"]

_MAX_FILES = 20_000
_MAX_BYTES = 8 << 30
DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
_STEP_TOLERANCE = 0.01
"""Of the distance of slices: what two of them may differ by."""
_STEP_TOLERANCE_MM = 0.01
_SAME_MM = 1e-3
_TILT_DEGREES = 0.1


@dataclass(frozen=True, kw_only=True)
class _Slice:
    """A frame and where it lies.

    Attributes:
        image: Its file.
        frame: Its number there.
        position: (3,) LPS of its first pixel's centre, mm; None where the file does not say.
        directions: (2, 3) unit vectors along a line and down a column; None likewise.
    """

    image: DicomImage
    frame: int
    position: npt.NDArray[np.float64] | None
    directions: npt.NDArray[np.float64] | None


def read_series(path: Path, *, gaps: Gaps) -> VoxelFile:
    """Read the headers of a series.

    Args:
        path: Its folder, which holds one series; or one of its files: then those of its folder
            with the same SeriesInstanceUID. A file of several frames is a volume alone.
        gaps: What to do where slices are missing.

    Returns:
        One volume, its slices along the normal (PS3.3 C.7.6.2.1.1).

    Raises:
        ItemError: If it is no single series, its slices do not form a grid, or one is damaged.
    """
    images = _of_folder(path) if path.is_dir() else _of_file(path)
    _check_alike(images)
    if "MOSAIC" in {str(word).upper() for word in images[0].value("ImageType") or ()}:
        raise ItemError("a mosaic of slices is not taken apart; convert it to NIfTI (dcm2niix)")
    slices = [one for image in images for one in _placed(image)]
    if images[0].rows * images[0].columns * len(slices) > _MAX_BYTES:
        raise ItemError(f"it has {len(slices)} slices, more than {_MAX_BYTES:,} px")
    affine, order, notes = _arrange(slices, gaps=gaps)
    voxels = _SeriesVoxels([slices[number] for number in order])
    ranges = [image.value_range for image in images if image.value_range is not None]
    return VoxelFile(
        voxels=voxels,
        affine=affine,
        notes=notes + _unit_note(images[0]),
        value_range=(min(low for low, _ in ranges), max(high for _, high in ranges))
        if len(ranges) == len(images)
        else None,
        file_window=slices[order[0]].image.file_window,
    )


# ---------------------------------------------------------------------- files


def _of_folder(folder: Path) -> list[DicomImage]:
    images, refusals = _images(folder)
    if not images:
        reason = f": {refusals[0]}" if refusals else ""
        raise ItemError(f"a folder without DICOM images{reason}")
    series = sorted({_series_of(image) for image in images})
    if len(series) > 1:
        named = "; ".join(_describe(images, uid) for uid in series[:5])
        more = f"; and {len(series) - 5} more" if len(series) > 5 else ""
        raise ItemError(
            f"the folder holds {len(series)} series ({named}{more}); name one of its files as the "
            "path"
        )
    _check_whole(refusals)
    return images


def _of_file(path: Path) -> list[DicomImage]:
    image = DicomImage(path)
    if image.frames > 1 or not _series_of(image):
        return [image]
    found, refusals = _images(path.parent, series=_series_of(image))
    # What cannot be read may be one of its slices; at an end of it no gap would tell.
    _check_whole(refusals)
    return [other for other in found if other.frames == 1]


def _check_whole(refusals: list[str]) -> None:
    if refusals:
        raise ItemError(
            f"{len(refusals)} of its DICOM files cannot be read: {refusals[0]}; mend that file, or "
            "take it away"
        )


def _images(folder: Path, series: str | None = None) -> tuple[list[DicomImage], list[str]]:
    """Read the headers of a folder's images: (images, what is wrong with the others)."""
    with translated("the folder cannot be read"):
        paths = sorted(path for path in folder.iterdir() if not path.is_dir())
    if len(paths) > _MAX_FILES:
        raise ItemError(f"the folder holds {len(paths)} files; at most {_MAX_FILES} are looked at")
    images, refusals = [], []
    for path in paths:
        try:
            if not _is_to_be_read(path):
                continue
            image = DicomImage(path)
        except ItemError as exc:
            # Plans, structures and DICOMDIR lie beside many series; a damaged slice must not hide.
            of_series, without_pixels = purpose_of(path)
            if not without_pixels and series in (None, of_series or series):
                refusals.append(f"{printable(path.name[:60])}: {exc}")
            continue
        if series is None or _series_of(image) == series:
            images.append(image)
    return images, refusals


def _is_to_be_read(path: Path) -> bool:
    """Tell DICOM from what else lies in a folder: texts, pictures, hidden files.

    Raises:
        ItemError: If it is named as a slice may be, and cannot be one.
    """
    named = path.suffix.lower() in DICOM_SUFFIXES
    # Names that are UIDs, or end in a number, have no suffix either.
    may_be = named or not path.suffix or path.suffix[1:].isdecimal()
    if path.name.startswith(".") or not may_be:
        return path.is_file() and is_dicom(path)
    if path.exists() and not path.is_file():
        return False
    if is_dicom(path):
        return True
    with translated("cannot be read"), path.open("rb") as file:
        start = file.read(132)
    if not start:
        raise ItemError("the file is empty")
    if not start.strip(b"\0"):
        raise ItemError("it begins as DICOM does, with zeros, and nothing of DICOM follows")
    if named:
        raise ItemError("it is named as DICOM, and is not DICOM")
    return False


def _series_of(image: DicomImage) -> str:
    return str(image.value("SeriesInstanceUID") or "")


def _describe(images: list[DicomImage], uid: str) -> str:
    of_it = [image for image in images if _series_of(image) == uid]
    words = [of_it[0].value(name) for name in ("Modality", "SeriesNumber", "SeriesDescription")]
    name = " ".join(" ".join(str(word) for word in words if word not in (None, "")).split())
    return f"{printable(name[:40] or uid[:64])}: {len(of_it)} files"


def _check_alike(images: list[DicomImage]) -> None:
    first = images[0]
    for image in images:
        for name, of_it, of_first in (
            ("size", (image.columns, image.rows), (first.columns, first.rows)),
            ("channels", image.channels, first.channels),
            ("kind of pixels", image.photometric, first.photometric),
            ("kind of rescaling", image.is_rescaled_by_table, first.is_rescaled_by_table),
            ("unit", _unit(image), _unit(first)),
            ("spacing", _rounded(image.spacing), _rounded(first.spacing)),
            ("range of mirrored values", _mirrored_range(image), _mirrored_range(first)),
        ):
            if of_it != of_first:
                raise ItemError(f"its slices differ in {name}: {of_first} and {of_it}")


def _unit(image: DicomImage) -> tuple[str, ...]:
    return tuple(str(image.value(name) or "") for name in ("RescaleType", "Units"))


def _unit_note(image: DicomImage) -> tuple[str, ...]:
    """Say what PET counts in where that is not SUV (GML): a window in SUV would be wrong.

    References:
        DICOM PS3.3 C.8.9.1.1.3 (Units).
    """
    units = str(image.value("Units") or "").strip().upper()
    if str(image.value("Modality") or "") != "PT" or units in ("", "GML"):
        return ()
    return (f"its values are in {'Bq/ml' if units == 'BQML' else units}, not SUV",)


def _rounded(spacing: tuple[float, float] | None) -> tuple[float, ...] | None:
    return spacing and tuple(round(side, 4) for side in spacing)


def _mirrored_range(image: DicomImage) -> tuple[float, float] | None:
    """Of MONOCHROME1: slices mirrored in different ranges would not fit together."""
    return image.value_range if image.photometric == "MONOCHROME1" else None


# ------------------------------------------------------------------ positions


def _placed(image: DicomImage) -> list[_Slice]:
    """Place all frames of a file; where nothing tells them apart, only the first is looked at."""
    header = image.dataset
    if "PerFrameFunctionalGroupsSequence" in header or "GridFrameOffsetVector" in header:
        return [_place(image, frame) for frame in range(image.frames)]
    first = _place(image, 0)
    return [replace(first, frame=frame) for frame in range(image.frames)]


def _place(image: DicomImage, frame: int) -> _Slice:
    position = image.group(frame, "PlanePositionSequence")
    orientation = image.group(frame, "PlaneOrientationSequence")
    with translated("its position is damaged"), quiet():
        where = (position or image.dataset).get("ImagePositionPatient")
        along = (orientation or image.dataset).get("ImageOrientationPatient")
        if not where or not along:
            return _Slice(image=image, frame=frame, position=None, directions=None)
        point = np.array([float(value) for value in where])
        directions = np.array([float(value) for value in along]).reshape(2, 3)
        if point.shape != (3,) or not np.isfinite(point).all() or np.abs(point).max() > 1e7:
            raise ItemError(f"its ImagePositionPatient is {list(where)}")
        lengths = np.linalg.norm(directions, axis=1)
        if not np.allclose(lengths, 1, atol=1e-2) or abs(directions[0] @ directions[1]) > 1e-2:
            raise ItemError(f"its ImageOrientationPatient is {list(along)}: not two unit vectors")
        if position is None:
            point = point + _offset(image, frame) * np.cross(*directions)
    return _Slice(
        image=image, frame=frame, position=point, directions=directions / lengths[:, None]
    )


def _offset(image: DicomImage, frame: int) -> float:
    """Say how far a frame of a dose lies behind the first, mm (PS3.3 C.8.8.3.2)."""
    offsets = image.value("GridFrameOffsetVector")
    if offsets is None or image.frames == 1:
        return 0.0
    # Absolute positions along z are allowed as well; their differences are the same.
    return float(offsets[frame]) - float(offsets[0])


def _arrange(
    slices: list[_Slice], *, gaps: Gaps
) -> tuple[Matrix | None, list[int], tuple[str, ...]]:
    """Order slices along their normal: (affine, order, notes)."""
    directions, spacing = slices[0].directions, slices[0].image.spacing
    as_they_are = list(range(len(slices)))
    if directions is None or spacing is None or any(s.position is None for s in slices):
        if len({id(one.image) for one in slices}) > 1:
            raise ItemError("its slices do not say where they lie (ImagePositionPatient)")
        if len(slices) > 1:
            return None, as_they_are, ("its frames do not say where they lie",)
        return None, as_they_are, ()
    for one in slices:
        if one.directions is None or np.abs(one.directions - directions).max() > 1e-3:
            raise ItemError("its slices do not lie in parallel: several views are in one series")
    normal = np.cross(directions[0], directions[1])
    points = np.array([one.position for one in slices])
    if len(points) > 1 and np.ptp(points, axis=0).max() < _SAME_MM and slices[0].image.frames > 1:
        return None, as_they_are, ("its frames all lie in one place: they are times, or views",)
    heights = points @ normal
    order = np.argsort(heights, kind="stable").tolist()
    points, heights = points[order], heights[order]
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = directions[0] * spacing[1], directions[1] * spacing[0]
    affine[:3, 3] = points[0]
    if len(order) == 1:
        thickness, notes = _thickness(slices[0].image)
        affine[:3, 2] = normal * thickness
        return checked_affine(affine), order, notes
    notes = _check_steps(points, heights, gaps=gaps)
    step = (points[-1] - points[0]) / (len(points) - 1)
    affine[:3, 2] = step
    tilt = float(np.degrees(np.arccos(np.clip(step @ normal / np.linalg.norm(step), -1, 1))))
    if tilt > _TILT_DEGREES:
        notes += (f"its slices are sheared by {tilt:.1f} degrees (gantry tilt)",)
    return checked_affine(affine), order, notes


def _thickness(image: DicomImage) -> tuple[float, tuple[str, ...]]:
    measures = image.group(0, "PixelMeasuresSequence")
    with translated("its slice thickness is damaged"), quiet():
        measures = measures or image.dataset
        for keyword in ("SpacingBetweenSlices", "SliceThickness"):
            value = measures.get(keyword) or image.dataset.get(keyword)
            if value and np.isfinite(float(value)) and float(value) > 0:
                return float(value), ()
    return 1.0, ("its one slice does not say how thick it is; taken as 1 mm",)


def _check_steps(
    points: npt.NDArray[np.float64], heights: npt.NDArray[np.float64], *, gaps: Gaps
) -> tuple[str, ...]:
    steps = np.diff(heights)
    twice = int((steps < _SAME_MM).sum())
    if twice:
        raise ItemError(
            f"{twice} of its {len(heights)} slices lie where another does: several times, echoes "
            "or segments in one series; put each into a folder of its own"
        )
    usual = float(np.median(steps))
    allowed = max(_STEP_TOLERANCE * usual, _STEP_TOLERANCE_MM)
    odd = np.flatnonzero(np.abs(steps - usual) > allowed)
    if len(odd):
        missing = int(np.rint(steps[odd] / usual - 1).clip(0).sum())
        where = ", ".join(f"{heights[n]:.2f} and {heights[n + 1]:.2f} mm" for n in odd[:3].tolist())
        more = f" and {len(odd) - 3} more places" if len(odd) > 3 else ""
        said = (
            f"{missing or 'no'} slices are missing of a regular series {usual:g} mm apart; it is "
            f"irregular between {where}{more}"
        )
        if gaps == "refuse":
            raise ItemError(f"{said}; mend it, or read it with gaps=keep")
        return (f"{said}; its slices are taken as evenly spaced",)
    straight = points[0] + np.outer(np.linspace(0, 1, len(points)), points[-1] - points[0])
    drift = float(np.linalg.norm(points - straight, axis=1).max())
    # Rounded steps add up along a long series.
    if drift > 2 * allowed:
        said = f"its slices lie up to {drift:.2f} mm beside a straight line"
        if gaps == "refuse":
            raise ItemError(f"{said}; mend it, or read it with gaps=keep")
        return (said,)
    return ()


# --------------------------------------------------------------------- voxels


class _SeriesVoxels:
    """The slices of a series, in order."""

    volumes = 1

    def __init__(self, slices: list[_Slice]) -> None:
        self._slices = slices
        first = slices[0].image
        self.shape = (first.columns, first.rows, len(slices))
        self.channels = first.channels
        self.dtype = _common([one.image.dtype for one in slices])

    def pixels(self, picks: Sequence[int]) -> npt.NDArray[Any]:
        """Decode all slices: (1, C, K, J, I)."""
        columns, lines, count = self.shape
        with translated("cannot be decoded"):
            out = np.empty((1, self.channels, count, lines, columns), self.dtype)
            for number, one in enumerate(self._slices):
                out[0, :, number] = one.image.frame(one.frame)
        return out[: len(picks)]

    def labels(self, picks: Sequence[int]) -> Labels:
        """Decode all slices as whole numbers."""
        values = self.pixels(picks)
        if values.dtype.kind != "f":
            return smallest_integers(values)
        if not np.array_equal(values, np.rint(values)) or np.abs(values).max(initial=0) > 1 << 53:
            raise ItemError("a label map holds whole numbers; this one holds others")
        return smallest_integers(values.astype(np.int64))


def _common(types: list[np.dtype[Any]]) -> np.dtype[Any]:
    """Choose the type that holds the values of all slices."""
    kinds = set(types)
    if len(kinds) == 1:
        return types[0]
    found = np.result_type(*kinds)
    return found if found in (np.int16, np.uint16) else np.dtype(np.float32)
