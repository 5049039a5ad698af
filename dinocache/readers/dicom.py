"""DICOM: one data set's frames, in modality units.

pydicom reads the header; pixels are read and decoded by `dicom_frames`. Overlays are not drawn;
what lies in the unused high bits is cut off.
"""

import contextlib
import struct
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dinocache.errors import ItemError
from dinocache.readers.contract import Pixels, translated
from dinocache.readers.dicom_frames import (
    BIG_ENDIAN,
    DEFLATED,
    EXPLICIT,
    IMPLICIT,
    BoundedFile,
    FrameLayout,
    StoredFrames,
    data_of,
)
from dinocache.readers.pictures import printable

__all__ = ["DicomImage", "is_dicom", "purpose_of", "quiet"]

_MAX_PIXELS = 1 << 31
_MAX_FRAMES = 1 << 17

_PIXELS: dict[int, np.dtype[Any] | None] = {
    0x7FE00008: np.dtype(np.float32),
    0x7FE00009: np.dtype(np.float64),
    0x7FE00010: None,
}
"""Float Pixel Data, Double Float Pixel Data, Pixel Data."""
_IMAGES = (
    "Image Storage", "RT Dose Storage", "Segmentation Storage", "Parametric Map Storage",
    "Topography Map Storage", "Thickness Map Storage", "Volume Analysis Storage",
    "US Volume Storage", "AIT Storage",
)  # fmt: skip
"""What the names of SOP classes contain that hold pixels."""
_NO_IMAGES = ("Surface Segmentation Storage",)
_LONG_LENGTH = ("OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV")
_UNDEFINED = 0xFFFFFFFF

_KEYWORDS = (
    "SOPClassUID", "Modality", "SeriesInstanceUID", "SeriesNumber", "SeriesDescription",
    "InstanceNumber", "ImageType", "FrameOfReferenceUID",
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "ImagerPixelSpacing",
    "NominalScannedPixelSpacing", "SpacingBetweenSlices", "SliceThickness",
    "GridFrameOffsetVector", "DetectorInformationSequence",
    "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames",
    "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
    "WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence",
    "RescaleSlope", "RescaleIntercept", "RescaleType", "Units", "ModalityLUTSequence",
    "DoseGridScaling",
    "RedPaletteColorLookupTableDescriptor", "GreenPaletteColorLookupTableDescriptor",
    "BluePaletteColorLookupTableDescriptor", "RedPaletteColorLookupTableData",
    "GreenPaletteColorLookupTableData", "BluePaletteColorLookupTableData",
    "SegmentedRedPaletteColorLookupTableData", "SegmentedGreenPaletteColorLookupTableData",
    "SegmentedBluePaletteColorLookupTableData",
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
    "ExtendedOffsetTable", "ExtendedOffsetTableLengths",
)  # fmt: skip
"""All that is read of a header: private elements, reports and names of people are passed over."""

_lock = threading.RLock()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep pydicom's warnings from the screen.

    It warns of each odd value, of which the clinic's files are full. One thread at a time: Python's
    warning filters belong to the process.
    """
    with _lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def is_dicom(path: Path) -> bool:
    """Say whether a file looks like DICOM; its name does not matter.

    Files without preamble count if they start with an element of group 2 or 8.

    Args:
        path: A file.

    Raises:
        ItemError: If it cannot be read.
    """
    with translated("cannot be read"), path.open("rb") as file:
        start = file.read(132)
    return start[128:] == b"DICM" or _starts_like_a_data_set(start)


def _starts_like_a_data_set(start: bytes) -> bool:
    if len(start) < 8:
        return False
    group, element = struct.unpack("<HH", start[:4])
    if group in (2, 8) and element <= 0x1000:
        known = start[4:6].isalpha() and start[4:6].isupper()
        return known or struct.unpack("<I", start[4:8])[0] <= 128
    return start[:2] in (b"\0\2", b"\0\10") and start[4:6].isalpha() and start[4:6].isupper()


def _is_behind_group_2(tag: Any, vr: str | None, length: int) -> bool:  # noqa: ANN401 - a tag
    return int(tag) >> 16 != 2


def purpose_of(path: Path) -> tuple[str | None, bool]:
    """Find out of a file that is no readable image what it was to be.

    Args:
        path: A DICOM file.

    Returns:
        Its SeriesInstanceUID, None where it cannot be read, and whether files of its sort (plans,
        structures, reports, DICOMDIR) hold no pixels.
    """
    from pydicom.filereader import read_dataset, read_partial

    series, uid = None, None
    tags: list[Any] = [0x00080016, 0x0020000E]
    with (
        contextlib.suppress(ItemError),
        translated("cannot be read"),
        quiet(),
        BoundedFile(path) as file,
    ):
        if file.read(132)[128:] == b"DICM":
            meta = read_dataset(file, False, True, stop_when=_is_behind_group_2)
            uid = meta.get("MediaStorageSOPClassUID")
            if str(meta.get("TransferSyntaxUID", "")) == DEFLATED:
                return None, _is_without_pixels(uid)
        file.seek(0)
        header = read_partial(file, stop_when=_is_behind_series, force=True, specific_tags=tags)
        uid = header.get("SOPClassUID") or uid
        series = str(header.get("SeriesInstanceUID") or "") or None
    return series, _is_without_pixels(uid)


def _is_behind_series(tag: Any, vr: str | None, length: int) -> bool:  # noqa: ANN401 - a tag
    return int(tag) > 0x0020000E


def _is_without_pixels(uid: Any) -> bool:  # noqa: ANN401 - a UID, or None
    """Say whether an SOP class is one of DICOM's own, and not of images."""
    from pydicom.uid import UID

    with quiet():
        known = UID(str(uid or ""))
    name = known.name
    if known.type not in ("SOP Class", "Meta SOP Class") or name == str(known):
        return False
    return name.startswith(_NO_IMAGES) or not any(part in name for part in _IMAGES)


@dataclass(frozen=True, kw_only=True)
class _Rescale:
    """Stored values to modality units: a line, or a table.

    Attributes:
        slope: Of the line.
        intercept: Of the line.
        first: The stored value of the table's first entry.
        table: (n,) float64, or None: then the line holds.
    """

    slope: float = 1
    intercept: float = 0
    first: int = 0
    table: npt.NDArray[np.float64] | None = None

    def range_of(self, low: float, high: float) -> tuple[float, float]:
        if self.table is not None:
            return float(self.table.min()), float(self.table.max())
        ends = sorted((low * self.slope + self.intercept, high * self.slope + self.intercept))
        return ends[0], ends[1]

    @property
    def is_integral(self) -> bool:
        return self.table is not None or not (self.slope % 1 or self.intercept % 1)


class DicomImage:
    """The frames of one DICOM file. Its header is read at once, pixels frame by frame.

    Frames may be read from several threads.

    Attributes:
        dataset: The pydicom data set, without pixels.
        frames: How many.
        rows: Lines of a frame.
        columns: Columns of a frame.
        channels: 1 for grey, 3 for RGB.
        dtype: Of the frames; it follows from the header.
        value_range: Least and greatest value that pixels can have; None for float pixels.
        file_window: First window of the file, as (low, high) in the unit of the pixels.
        spacing: (y, x), mm, in the patient where the file says so, else at the detector; or None.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        if not is_dicom(path):
            raise ItemError("not a DICOM file")
        with translated("not a readable DICOM file"), quiet():
            self._read_header()
            self._understand()

    # ------------------------------------------------------------------ header

    def _read_header(self) -> None:
        from pydicom.datadict import tag_for_keyword
        from pydicom.filereader import read_dataset, read_partial

        tags = [tag for keyword in _KEYWORDS if (tag := tag_for_keyword(keyword)) is not None]
        element: tuple[int, str | None, int] | None = None

        def at_pixels(tag: int, vr: str | None, length: int) -> bool:
            nonlocal element
            if tag in _PIXELS:
                element = (int(tag), vr, length)
            return element is not None

        meta: Any = {}
        with BoundedFile(self._path) as whole:
            if whole.read(132)[128:] == b"DICM":
                # Group 2 is explicit and little endian, whatever follows it (PS3.10 7.1).
                meta = read_dataset(whole, False, True, stop_when=_is_behind_group_2)
        deflated_from = None
        if str(meta.get("TransferSyntaxUID", "")) == DEFLATED:
            deflated_from = 144 + int(meta["FileMetaInformationGroupLength"].value)
        with data_of(self._path, deflated_from) as file:
            if deflated_from is not None:
                self.dataset = read_dataset(
                    file, False, True, stop_when=at_pixels, specific_tags=tags
                )
                syntax, little, implicit = EXPLICIT, True, False
            else:
                read = read_partial(file, stop_when=at_pixels, force=True, specific_tags=tags)
                implicit, little = (bool(flag) for flag in read.original_encoding)
                named = read.file_meta.get("TransferSyntaxUID")
                guessed = IMPLICIT if implicit else EXPLICIT if little else BIG_ENDIAN
                syntax = str(named) if named else guessed
                self.dataset = read
            place = file.tell()
            held = file.seek(0, 2)
        if element is None:
            uid = self.dataset.get("SOPClassUID") or meta.get("MediaStorageSOPClassUID")
            # A name is known of DICOM's own classes.
            name = printable(str(getattr(uid, "name", None) or ""))[:80]
            name = name or "and does not say what it is"
            cut = "" if _is_without_pixels(uid) else "; it was cut short, or they were taken away"
            raise ItemError(f"holds no pixels ({name}){cut}")
        tag, vr, length = element
        start = place + 8 + (4 if not implicit and vr in _LONG_LENGTH else 0)
        self._little, self._floats = little, _PIXELS[tag]
        self._describe()
        extended = self.dataset.get("ExtendedOffsetTable")
        self._stored = StoredFrames(
            FrameLayout(
                path=self._path,
                deflated_from=deflated_from,
                start=start,
                held=max(0, held - start if length == _UNDEFINED else min(held - start, length)),
                syntax=syntax,
                little=little,
                as_words=vr in (None, "OW"),
                encapsulated=length == _UNDEFINED,
                frames=self.frames,
                rows=self.rows,
                columns=self.columns,
                samples=self._samples,
                allocated=self._allocated,
                stored_bits=self._stored_bits,
                high_bit=self._high_bit,
                signed=self._signed,
                planar=self._planar,
                photometric=self.photometric,
                is_float=self._floats is not None,
                extended_offsets=extended if isinstance(extended, bytes) else None,
            )
        )

    def _describe(self) -> None:
        """Read what is said of the frames, and refuse what cannot be."""
        self.rows, self.columns = self._whole("Rows"), self._whole("Columns")
        self.frames = self._whole("NumberOfFrames", default=1) or 1
        self._samples = self._whole("SamplesPerPixel", default=1)
        self._allocated = (
            self._floats.itemsize * 8 if self._floats else self._whole("BitsAllocated")
        )
        self._stored_bits = self._whole("BitsStored", default=self._allocated) or self._allocated
        self._high_bit = self._whole("HighBit", default=self._stored_bits - 1)
        self._signed = bool(self._whole("PixelRepresentation", default=0)) and self._allocated > 1
        self._planar = bool(self._whole("PlanarConfiguration", default=0))
        photometric = self.dataset.get("PhotometricInterpretation") or "MONOCHROME2"
        self.photometric = printable(str(photometric).strip().upper())[:40]
        self._check_claims()

    def _understand(self) -> None:
        """Say what values there can be, in which unit."""
        self._palette = self._read_palette() if self.photometric == "PALETTE COLOR" else None
        self.channels = 3 if self._palette is not None or self._samples == 3 else 1
        self._rescales = self._read_rescales()
        self.value_range = self._read_range()
        self.dtype = self._choose_type()
        self.file_window = self._read_window()
        self.spacing = self._read_spacing()

    def _whole(self, keyword: str, *, default: int | None = None) -> int:
        value = self.dataset.get(keyword)
        if value is None or value == "":
            if default is None:
                raise ItemError(f"its header does not say its {keyword}")
            return default
        try:
            return int(value)
        except (TypeError, ValueError, OverflowError) as exc:
            raise ItemError(f"its header claims {keyword} {str(value)[:40]!r}") from exc

    def _check_claims(self) -> None:
        claim = f"{self.columns} x {self.rows} px, {self.frames} frames"
        if min(self.rows, self.columns, self.frames) < 1 or self.frames > _MAX_FRAMES:
            raise ItemError(f"its header claims {claim}")
        if self.rows * self.columns > _MAX_PIXELS:
            raise ItemError(f"its header claims {claim}; at most {_MAX_PIXELS:,} px are read")
        if self._samples not in (1, 3):
            raise ItemError(f"{self._samples} samples a pixel; 1 and 3 are read")
        grey = ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR")
        colours = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_422", "YBR_ICT", "YBR_RCT")
        if self.photometric not in (grey if self._samples == 1 else colours):
            raise ItemError(
                f"its pixels are {self.photometric} with {self._samples} samples, which is not read"
            )
        if self._floats is None and self._allocated not in (1, 8, 16, 32):
            raise ItemError(f"{self._allocated} bits a pixel; 1, 8, 16 and 32 are read")
        if not (
            1 <= self._stored_bits <= self._allocated
            and self._stored_bits - 1 <= self._high_bit < self._allocated
        ):
            raise ItemError(
                f"its header claims {self._stored_bits} bits of {self._allocated}, the highest at "
                f"{self._high_bit}"
            )
        described = self.dataset.get("PerFrameFunctionalGroupsSequence")
        if described and len(described) < self.frames:
            raise ItemError(
                f"its header claims {self.frames} frames, and describes {len(described)}"
            )

    # -------------------------------------------------------------- values

    def _groups(self, frame: int, keyword: str) -> Any:  # noqa: ANN401 - a data set or None
        """Find a functional group: the frame's own, else the shared one."""
        own = self.dataset.get("PerFrameFunctionalGroupsSequence")
        shared = self.dataset.get("SharedFunctionalGroupsSequence")
        for item in (own[frame] if own and frame < len(own) else None, shared and shared[0]):
            found = item.get(keyword) if item else None
            if found:
                return found[0]
        return None

    def value(self, keyword: str) -> Any:  # noqa: ANN401 - whatever the element holds
        """Give an element's value, None where there is none.

        Args:
            keyword: Its name.

        Raises:
            ItemError: If it is damaged.
        """
        with translated(f"its {keyword} is damaged"), quiet():
            return self.dataset.get(keyword)

    def group(self, frame: int, keyword: str) -> Any:  # noqa: ANN401 - a data set or None
        """Give a functional group macro of a frame (PS3.3 C.7.6.16).

        Args:
            frame: Which frame.
            keyword: Of the macro's sequence.

        Returns:
            Its one item, the frame's own or the shared one, or None.

        Raises:
            ItemError: If the header is damaged.
        """
        with translated("its functional groups are damaged"), quiet():
            return self._groups(frame, keyword)

    @property
    def is_rescaled_by_table(self) -> bool:
        """Whether a modality LUT, and not a slope, makes its values."""
        return self._rescales[0].table is not None

    def _read_rescales(self) -> list[_Rescale]:
        """One for all frames, or one a frame."""
        if self.channels == 3 or self._floats is not None:
            return [_Rescale()]
        if self.dataset.get("PerFrameFunctionalGroupsSequence"):
            return [self._read_rescale(frame) for frame in range(self.frames)]
        return [self._read_rescale(0)]

    def _read_rescale(self, frame: int) -> _Rescale:
        tables = self.dataset.get("ModalityLUTSequence")
        if tables:
            first, table = self._table(tables[0])
            if table.min() == table.max():
                raise ItemError(
                    f"its lookup table (ModalityLUTSequence) makes {table[0]:g} of every pixel"
                )
            return _Rescale(first=first, table=table)
        holder = self._groups(frame, "PixelValueTransformationSequence") or self.dataset
        keyword, slope = "RescaleSlope", holder.get("RescaleSlope")
        intercept = holder.get("RescaleIntercept")
        if slope is None:
            keyword, slope = "DoseGridScaling", self.dataset.get("DoseGridScaling")
        found = _Rescale(
            slope=1.0 if slope in (None, "") else float(slope),
            intercept=0.0 if intercept in (None, "") else float(intercept),
        )
        if not (np.isfinite(found.slope) and np.isfinite(found.intercept)):
            raise ItemError(f"its header rescales by {slope} and {intercept}")
        if found.slope == 0:
            raise ItemError(f"its {keyword} is 0, which makes {found.intercept:g} of every pixel")
        return found

    def _table(self, item: Any) -> tuple[int, npt.NDArray[np.float64]]:  # noqa: ANN401
        """Read a lookup table: (first stored value, entries). PS3.3 C.11.1.1."""
        count, first, bits = (int(value) for value in item["LUTDescriptor"].value)
        data = item["LUTData"].value
        if isinstance(data, bytes):
            wide = len(data) >= 2 * (count or 1 << 16)
            order = "<" if self._little else ">"
            entries = np.frombuffer(data, f"{order}u2" if wide else np.uint8)
        else:
            entries = np.atleast_1d(np.asarray(data, np.int64)) & 0xFFFF
        if len(entries) < (count or 1 << 16):
            raise ItemError(f"its lookup table claims {count or 1 << 16} entries of {bits} bits")
        if self._signed and first >= 1 << 15:
            first -= 1 << 16
        return first, entries[: count or 1 << 16].astype(np.float64)

    def _read_range(self) -> tuple[float, float] | None:
        if self._floats is not None:
            return None
        if self._palette is not None:
            return 0.0, 255.0 if self._palette.dtype == np.uint8 else 65535.0
        ranges = [rescale.range_of(*self._stored.layout.value_range) for rescale in self._rescales]
        return min(low for low, _ in ranges), max(high for _, high in ranges)

    def _choose_type(self) -> np.dtype[Any]:
        if self._palette is not None:
            return self._palette.dtype
        if self.value_range is None or not all(r.is_integral for r in self._rescales):
            return np.dtype(np.float32)
        low, high = self.value_range
        unsigned = ["u1", "u2"] if self._allocated <= 8 else ["u2"]
        plain = all(r == _Rescale() for r in self._rescales)
        for kept in [*unsigned, "i2"] if plain else ["u1", "i2", "u2"]:
            limits = np.iinfo(kept)
            if limits.min <= low and high <= limits.max:
                return np.dtype(kept)
        return np.dtype(np.float32)

    def _read_window(self) -> tuple[float, float] | None:
        """First window of the file, PS3.3 C.11.2.1; None if there is none, or it is empty."""
        if self.channels == 3:
            return None
        holder = self._groups(0, "FrameVOILUTSequence") or self.dataset
        found = _window_of(holder)
        if found is None and self.dataset.get("VOILUTSequence"):
            first, table = self._table(self.dataset["VOILUTSequence"].value[0])
            found = (float(first), float(first + len(table) - 1))
        if found is None or not found[0] < found[1]:
            return None
        if self.photometric == "MONOCHROME1" and self.value_range is not None:
            turn = sum(self.value_range)
            return turn - found[1], turn - found[0]
        return found

    def _read_spacing(self) -> tuple[float, float] | None:
        measures = self._groups(0, "PixelMeasuresSequence")
        for holder, keyword in (
            (measures, "PixelSpacing"),
            (self.dataset, "PixelSpacing"),
            (self.dataset, "ImagerPixelSpacing"),
            (self.dataset, "NominalScannedPixelSpacing"),
        ):
            values = holder.get(keyword) if holder else None
            if values:
                y, x = (float(value) for value in values)
                if np.isfinite([y, x]).all() and min(y, x) > 0:
                    return y, x
        return None

    def _read_palette(self) -> npt.NDArray[Any]:
        """Make the palette a table of all stored values: (values, 3), uint8 or uint16."""
        from pydicom.pixels.processing import apply_color_lut

        if self._stored.layout.stored_bits > 16 or self._floats is not None:
            raise ItemError(f"a palette for pixels of {self._stored.layout.stored_bits} bits")
        low, high = self._stored.layout.value_range
        values = np.arange(low, high + 1, dtype=np.int32)
        # Behind its end pydicom's lookup gives the last entry, as PS3.3 C.7.6.3.1.5 asks.
        palette = apply_color_lut(values, self.dataset)
        if palette.ndim != 2 or palette.shape[1] < 3 or palette.dtype.kind != "u":
            raise ItemError("its palette is damaged")
        palette = np.ascontiguousarray(palette[:, :3])
        # Some writers claim 16 bits and keep 8 in them.
        if palette.dtype == np.uint8 or palette.max(initial=0) <= np.iinfo(np.uint8).max:
            return palette.astype(np.uint8)
        return palette.astype(np.uint16)

    # -------------------------------------------------------------- frames

    def frame(self, index: int) -> Pixels:
        """Decode a frame.

        Grey values are rescaled (modality LUT, or slope and intercept); those of MONOCHROME1, where
        low is bright, are mirrored in `value_range`, so that bright is bright. Colours come as RGB.

        Args:
            index: Which, below `frames`.

        Returns:
            (C, Y, X), of `dtype`.

        Raises:
            ItemError: If it is damaged.
        """
        with translated("its pixels cannot be decoded"):
            stored = self._stored.frame(index)
            if self._floats is not None:
                return self._upright(stored.astype(np.float32))
            return self._finished(stored, index)

    def _finished(self, stored: npt.NDArray[Any], index: int) -> Pixels:
        if self._palette is not None:
            low, _ = self._stored.layout.value_range
            return np.ascontiguousarray(np.moveaxis(self._palette[stored[0] - low], -1, 0))
        if self.channels == 3:
            return stored.astype(self.dtype, copy=False)
        rescale = self._rescales[index if len(self._rescales) > 1 else 0]
        if rescale.table is not None:
            place = np.clip(stored.astype(np.int64) - rescale.first, 0, len(rescale.table) - 1)
            values = rescale.table[place]
        elif rescale == _Rescale():
            return self._upright(stored.astype(self.dtype, copy=False))
        else:
            values = stored.astype(np.float64) * rescale.slope + rescale.intercept
        return self._upright(values.astype(self.dtype))

    def _upright(self, pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if self.photometric != "MONOCHROME1":
            return pixels
        if self.value_range is None:
            return -pixels
        turn = sum(self.value_range)
        if self.dtype.kind == "f":
            return (turn - pixels.astype(np.float64)).astype(np.float32)
        return (int(turn) - pixels.astype(np.int32)).astype(self.dtype)


def _window_of(holder: Any) -> tuple[float, float] | None:  # noqa: ANN401 - a data set
    centre, width = _first(holder.get("WindowCenter")), _first(holder.get("WindowWidth"))
    if centre is None or width is None:
        return None
    if str(holder.get("VOILUTFunction") or "LINEAR").upper() == "LINEAR":
        return centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2
    return centre - width / 2, centre + width / 2


def _first(value: Any) -> float | None:  # noqa: ANN401 - one or many
    if value is None or value == "":
        return None
    if not isinstance(value, int | float | str):
        value = value[0] if len(value) else None
    if value is None or not np.isfinite(float(value)):
        return None
    return float(value)
