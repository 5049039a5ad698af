"""DICOM files that tests write for themselves."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid


def write_dicom(
    path: Path,
    pixels: np.ndarray | None,
    *,
    syntax: str = ExplicitVRLittleEndian,
    frames: list[bytes] | None = None,
    offsets: bool = True,
    preamble: bool = True,
    **elements: Any,  # noqa: ANN401 - values of elements
) -> Path:
    """Write one data set.

    Args:
        path: Where.
        pixels: (Y, X), (frames, Y, X) or (Y, X, 3), as they are to be stored; or None.
        syntax: Its transfer syntax.
        frames: Its compressed frames; `pixels` then give the shape alone.
        offsets: Whether compressed frames get a table of offsets.
        preamble: Whether the file begins as Part 10 wants it.
        elements: Further elements by keyword; None takes one away.
    """
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID = elements.get("SOPClassUID", CTImageStorage)
    meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset = Dataset()
    dataset.file_meta = meta
    dataset.SOPClassUID = meta.MediaStorageSOPClassUID
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    dataset.SeriesInstanceUID = "1.2.3"
    dataset.Modality = "CT"
    if pixels is not None:
        _describe(dataset, pixels)
    with warnings.catch_warnings():
        # What tests write is odd on purpose.
        warnings.simplefilter("ignore")
        for keyword, value in elements.items():
            if value is None:
                del dataset[keyword]
            else:
                setattr(dataset, keyword, value)
        if frames is not None:
            dataset.PixelData = encapsulate(frames, has_bot=offsets)
            dataset["PixelData"].is_undefined_length = True
            dataset["PixelData"].VR = "OB"
        elif pixels is not None:
            order = "<" if meta.TransferSyntaxUID.is_little_endian else ">"
            raw = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
            if order == ">" and pixels.dtype.itemsize == 1:
                raw = np.frombuffer(raw, "<u2").astype(">u2").tobytes()
            dataset.PixelData = raw + b"\0" * (len(raw) % 2)
            dataset["PixelData"].VR = "OW"
        dataset.save_as(path, enforce_file_format=preamble)
    return path


def _describe(dataset: Dataset, pixels: np.ndarray) -> None:
    colour = pixels.ndim == 3 and pixels.shape[-1] == 3
    shape = pixels.shape[:2] if colour else pixels.shape[-2:]
    dataset.Rows, dataset.Columns = shape
    dataset.SamplesPerPixel = 3 if colour else 1
    dataset.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        dataset.PlanarConfiguration = 0
    elif pixels.ndim == 3:
        dataset.NumberOfFrames = len(pixels)
    dataset.BitsAllocated = dataset.BitsStored = pixels.dtype.itemsize * 8
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")


def write_series(
    folder: Path,
    slices: np.ndarray,
    affine: np.ndarray,
    *,
    syntax: str = ExplicitVRLittleEndian,
    skip: tuple[int, ...] = (),
    **elements: Any,  # noqa: ANN401 - values of elements
) -> Path:
    """Write a series, a file a slice, its files named against the order of positions.

    Args:
        folder: Where; it is made.
        slices: (K, J, I).
        affine: (4, 4) voxel (i, j, k) to LPS, mm.
        syntax: Of its files.
        skip: Slices that are left out.
        elements: Of all files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for k, pixels in enumerate(slices):
        if k not in skip:
            write_dicom(
                folder / f"{len(slices) - k:03d}.dcm",
                pixels,
                syntax=syntax,
                **{**placed(affine, k), "InstanceNumber": k + 1, **elements},
            )
    return folder


def placed(affine: np.ndarray, k: int) -> dict[str, Any]:
    """Give the elements that place slice k of a grid."""
    columns = affine[:3, :3]
    sides = np.linalg.norm(columns, axis=0)
    return {
        "ImagePositionPatient": _texts(affine @ [0, 0, k, 1])[:3],
        "ImageOrientationPatient": _texts((columns / sides)[:, :2].T.ravel()),
        "PixelSpacing": _texts([sides[1], sides[0]]),
        "SliceThickness": _texts(sides[2:])[0],
    }


def _texts(values: Any) -> list[str]:  # noqa: ANN401 - numbers
    # Decimal strings have 16 characters.
    return [f"{value:.10f}"[:16] for value in values]
