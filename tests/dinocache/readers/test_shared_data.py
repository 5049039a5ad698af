"""Every real file at hand is read by the reader that its name suggests, or refused by name.

`LISTED` is the whole list: the first pattern that fits says what must come of a file.
"""

from collections import Counter
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest

from dinocache.errors import ItemError
from dinocache.readers import ItemFiles, guess_reader, make_reader

SLIDE = {"tile_px": 64, "min_area": 0}
NOT_AN_IMAGE = "not an image: PNG, JPEG, TIFF, BMP or WebP was expected"
# Pattern of the path -> (reader, rows, options), or what the refusal says.
Read = tuple[str, int | None, dict[str, object]]
LISTED: dict[str, Read | str] = {
    # Damaged, cut short, or lying
    "*/MR_truncated.dcm": "8,192 bytes; 8,130 are there",
    "*/badVR.dcm": "its header claims NumberOfFrames '1A'",
    "*/JPEG2000-embedded-sequence-delimiter.dcm": "its compressed frame has 3722445056 x 1024",
    "*/no_meta.dcm": NOT_AN_IMAGE,
    "*/broken.svs": "not a slide that OpenSlide, tifffile or Pillow know",
    "*/unreadable.svs": "less than a tile of 224 px",
    "*/unopenable.tiff": "TIFF's number 52479, is not read",
    "*/zero_gi.tif": "a page of 2 x 0 x 1 px",
    "*/small_la.tiff": "2 channels, and the file does not say that one is alpha",
    # DICOM that is no picture
    "*/chrJapMulti*.dcm": "holds no pixels (Computed Radiography Image Storage)",
    "*/chrKoreanMulti.dcm": "holds no pixels (Computed Radiography Image Storage)",
    "*/chrSQEncoding*.dcm": "holds no pixels (MR Image Storage)",
    "*/ExplVR_*NoMeta.dcm": "holds no pixels (RT Ion Plan Storage)",
    "*/rtplan*.dcm": "holds no pixels (RT Plan Storage)",
    "*/rtstruct.dcm": "holds no pixels (RT Structure Set Storage)",
    "petct/*/mask/RS.dcm": "holds no pixels (RT Structure Set Storage)",
    "*/reportsi*.dcm": "holds no pixels (Basic Text SR Storage)",
    "*/test-SR.dcm": "holds no pixels (Comprehensive SR Storage)",
    "*/waveform_ecg.dcm": "holds no pixels (12-lead ECG Waveform Storage)",
    "*/DICOMDIR*": "holds no pixels (Media Storage Directory Storage)",
    "*/TINY_ALPHA/*/IM*": "holds no pixels (CT Image Storage)",
    "*/UN_sequence.dcm": "holds no pixels (CT Image Storage)",
    "*/priv_SQ.dcm": "holds no pixels (MR Image Storage)",
    "*/csa_slice_norm.dcm": "holds no pixels (MR Image Storage)",
    "*/no_meta_group_length.dcm": "holds no pixels (RT Image Storage)",
    "*/empty_charset_LEI.dcm": "holds no pixels (and does not say what it is)",
    "*/meta_missing_tsyntax.dcm": "its header does not say its Rows",
    "*/nested_priv_SQ.dcm": "its header does not say its Rows",
    # Of several frames: read as volumes or videos
    "*/liver_*1frame.dcm": ("image", 1, {}),
    "*/rtdose*1frame.dcm": ("image", 1, {}),
    "*/rtdose*.dcm": ("volume", 15, {}),
    "*_2frame.dcm": ("video", 2, {}),
    "*/examples_ybr_color.dcm": ("video", 30, {}),
    "*/boxes_?.dcm": ("slide", None, {"tile_px": 16, "tile_mpp": "native", "tissue": "none"}),
    "*/emri*.dcm": ("volume", 10, {}),
    "*.dcm": ("image", 1, {}),
    "*/dicomdirtests/*/*": ("image", 1, {}),
    "volumes/totalsegmentator/*/CT.1.3.12*": ("image", 1, {}),
    # Volumes
    "*/row_major.dconn.nii": "CIFTI is not read: it holds surfaces",
    "*/analyze.hdr": "Analyze 7.5 is not read",
    "*/nifti?.hdr": "a NIfTI header whose .img is not beside it",
    "*.nii.gz": ("volume", None, {}),
    "*.nii": ("volume", None, {}),
    "*.nrrd": ("volume", None, {}),
    # Slides
    "*/small.svs": ("slide", 1, {"tile_px": 16, "tile_mpp": "native", "tissue": "none"}),
    "*.svs": ("slide", None, SLIDE),
    # Videos and stacks
    "*.mp4": ("video", 250, {}),
    "*/t1_to_mni_affine.h5": "0 data sets of three dimensions",
    "em/gala/*.h5": ("stack", 50, {}),
    "em/gala/*/snemi-mini/*.tif": ("stack", 32, {}),
    "endoscopy/edd2020-sample/*_mask.tif": ("stack", 5, {}),
    # Images
    "*.png": ("image", 1, {}),
    "*.jpg": ("image", 1, {}),
    "*.tif": ("image", 1, {}),
    "*.tiff": ("image", 1, {}),
    # Of other sorts
    "*.mnc": "",  # MINC-1 is no format of ours, MINC-2 is HDF5
    "*.gz": "it is compressed by gzip; unpack it first",
    "*.mgz": "it is compressed by gzip; unpack it first",
    "*.bz2": "it is compressed by bzip2; unpack it first",
    "*.np[yz]": "",  # ZIP or NumPy
    "*.zip": "it is a ZIP archive; unpack it first",
    "*": NOT_AN_IMAGE,
}


def listed(name: str) -> Read | str:
    return next(come for pattern, come in LISTED.items() if fnmatch(name, pattern))


def test_every_file_is_read_or_refused_by_name(shared_data: Path) -> None:
    wrong, count = [], Counter[str]()
    for path in sorted(p for p in shared_data.rglob("*") if p.is_file()):
        name = path.relative_to(shared_data).as_posix()
        expected = listed(name)
        reader, n_rows, options = ("", None, {}) if isinstance(expected, str) else expected
        made = make_reader(reader or guess_reader([path]), options)
        try:
            with made.open(ItemFiles(path=path)) as item:
                found = item.n_rows
                rows = item.rows(0, min(found, 2)) + item.rows(found - 1, found)
        except ItemError as exc:
            if not isinstance(expected, str) or expected not in str(exc):
                wrong.append(f"{name}: refused ({exc}), expected {expected}")
            count["refused"] += 1
            continue
        count[made.name] += 1
        if not reader or found != (n_rows or found):
            wrong.append(f"{name}: {found} rows by {made.name}, expected {expected}")
        if any(row.ndim != 3 or row.dtype != rows[0].dtype for row in rows):
            wrong.append(f"{name}: rows of {[row.shape for row in rows]}")
    assert not wrong, "\n".join(wrong)
    assert count["image"] > 1500
    assert count["volume"] > 650
    assert count["refused"] > 300


@pytest.mark.parametrize(
    ("folder", "rows", "spacing"),
    [
        ("volumes/totalsegmentator/tests/reference_files/example_ct_dicom", 20, None),
        ("petct/soft-tissue-sarcoma/dicom/STS_008/CT/image", 51, (3.27, 0.9765625, 0.9765625)),
        ("petct/soft-tissue-sarcoma/dicom/STS_008/PET/image", 51, (3.27, 4.6875, 4.6875)),
        ("petct/soft-tissue-sarcoma/dicom/STS_008/MR_T1/image", 28, None),
    ],
)
def test_folders_of_dicom(
    shared_data: Path, folder: str, rows: int, spacing: tuple[float, float, float] | None
) -> None:
    path = shared_data / folder
    assert guess_reader([path]) == "volume"
    with make_reader("volume").open(ItemFiles(path=path)) as item:
        assert item.n_rows == rows
        if spacing is not None:
            np.testing.assert_allclose(item.geometry.spacing or (), spacing, rtol=1e-6)


def test_folders_of_pictures(shared_data: Path) -> None:
    path = shared_data / "em/isbi2012/data/membrane/train/image"
    assert guess_reader([path]) == "stack"
    with make_reader("stack").open(ItemFiles(path=path)) as item:
        assert item.n_rows == 20
        # 2.png comes before 10.png.
        third, (picture,) = item.rows(2, 3)[0], item.rows(0, 20)[2:3]
        np.testing.assert_array_equal(third, picture)
        with make_reader("image").open(ItemFiles(path=path / "2.png")) as alone:
            np.testing.assert_array_equal(third, alone.rows(0, 1)[0])
