"""One DICOM data set: pixels, units, windows, what is refused."""

from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
import pytest
from dicoms import write_dicom
from pydicom.dataset import Dataset
from pydicom.pixels.encoders import RLELosslessEncoder
from pydicom.sequence import Sequence
from pydicom.uid import (
    HTJ2K,
    MPEG4HP41,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLSLossless,
    RLELossless,
    RTStructureSetStorage,
)

from dinocache.errors import ItemError
from dinocache.readers.dicom import DicomImage, is_dicom

sitk = pytest.importorskip("SimpleITK")

LINES, COLUMNS = 22, 14


def ramp(dtype: str, *, top: int | None = None) -> np.ndarray:
    """(Y, X): values all over the type's range."""
    limits = np.iinfo(dtype)
    high = limits.max if top is None else top
    low = limits.min if top is None else 0
    return np.linspace(low, high, LINES * COLUMNS).round().astype(dtype).reshape(LINES, COLUMNS)


def smooth(dtype: str, top: int) -> np.ndarray:
    y, x = np.mgrid[:LINES, :COLUMNS]
    return ((np.sin(y / 5) + np.cos(x / 4) + 2) / 4 * top).astype(dtype)


def rgb() -> np.ndarray:
    y, x = np.mgrid[:LINES, :COLUMNS]
    return np.stack([y * 11, x * 18, 255 - y * 5 - x], -1).astype(np.uint8)


# --------------------------------------------------------------------- native


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian,
                                    DeflatedExplicitVRLittleEndian])  # fmt: skip
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16"])
def test_native_values(tmp_path: Path, syntax: str, dtype: str) -> None:
    stored = ramp(dtype)
    image = DicomImage(write_dicom(tmp_path / "a.dcm", stored, syntax=syntax))
    assert (image.frames, image.channels, image.dtype) == (1, 1, np.dtype(dtype))
    frame = image.frame(0)
    assert frame.dtype == dtype
    assert np.array_equal(frame, stored[None])
    assert image.value_range == (np.iinfo(dtype).min, np.iinfo(dtype).max)


def test_a_data_set_without_preamble(tmp_path: Path) -> None:
    stored = ramp("uint16")
    whole = write_dicom(tmp_path / "a.dcm", stored, syntax=ImplicitVRLittleEndian).read_bytes()
    length = int.from_bytes(whole[140:144], "little")
    bare = tmp_path / "bare"
    bare.write_bytes(whole[144 + length :])
    assert is_dicom(bare)
    assert np.array_equal(DicomImage(bare).frame(0)[0], stored)


def test_frames_are_read_one_by_one(tmp_path: Path) -> None:
    stored = np.stack([ramp("uint16") // (n + 1) for n in range(3)])
    image = DicomImage(write_dicom(tmp_path / "a.dcm", stored))
    for n in (2, 0, 1):
        assert np.array_equal(image.frame(n)[0], stored[n])


def test_only_stored_bits_count(tmp_path: Path) -> None:
    # 5 bits, signed, with rubbish above them and below: -16 .. 15 lies at bits 3 to 7.
    values = np.arange(-16, 16, dtype=np.int16).reshape(4, 8)
    stored = ((values & 0x1F) << 3 | 0x0F00 | 0b101).astype(np.uint16)
    path = write_dicom(tmp_path / "a.dcm", stored, BitsStored=5, HighBit=7, PixelRepresentation=1)
    image = DicomImage(path)
    assert image.value_range == (-16, 15)
    assert np.array_equal(image.frame(0)[0], values)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_single_bits(tmp_path: Path, syntax: str) -> None:
    rng = np.random.default_rng(3)
    # Frames of 15 px do not begin on whole bytes.
    bits = rng.integers(0, 2, (3, 5, 3), np.uint8)
    packed = np.packbits(bits.ravel(), bitorder="little")
    packed = np.append(packed, np.zeros(len(packed) % 2, np.uint8))
    path = write_dicom(
        tmp_path / "a.dcm", packed[None], syntax=syntax, Rows=5, Columns=3, NumberOfFrames=3,
        BitsAllocated=1, BitsStored=1, HighBit=0,
    )  # fmt: skip
    image = DicomImage(path)
    assert (image.dtype, image.value_range) == (np.uint8, (0, 1))
    assert np.array_equal(np.stack([image.frame(n)[0] for n in range(3)]), bits)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_float_pixels(tmp_path: Path, dtype: str) -> None:
    values = np.array([[0.5, np.nan, -3e5], [np.inf, 7.25, 1e-8]], dtype)
    keyword = "FloatPixelData" if dtype == "float32" else "DoubleFloatPixelData"
    path = tmp_path / "a.dcm"
    write_dicom(path, np.zeros((2, 3), np.uint8))
    dataset = pydicom.dcmread(path)
    del dataset.PixelData
    setattr(dataset, keyword, values.astype(f"<{dtype[0]}{values.itemsize}").tobytes())
    dataset.BitsAllocated = values.itemsize * 8
    dataset.save_as(path)
    image = DicomImage(path)
    assert image.value_range is None
    assert np.array_equal(image.frame(0)[0], values.astype(np.float32), equal_nan=True)


# --------------------------------------------------------------------- units


@pytest.mark.parametrize(
    ("dtype", "bits", "slope", "intercept", "expected"),
    [
        pytest.param("uint16", 12, "1", "-1024", "int16", id="hounsfield"),
        pytest.param("uint16", 16, "1", "-1024", "float32", id="does-not-fit"),
        pytest.param("int16", 16, "1", "0", "int16", id="identity"),
        pytest.param("uint16", 12, "2.5", "0", "float32", id="fractions"),
        pytest.param("uint8", 8, "1", "0", "uint8", id="bytes"),
        pytest.param("uint8", 8, "-1", "255", "uint8", id="mirrored-by-slope"),
        pytest.param("uint16", 15, "2", "0", "uint16", id="doubled"),
    ],
)
def test_rescaled_values_and_their_type(
    tmp_path: Path, dtype: str, bits: int, slope: str, intercept: str, expected: str
) -> None:
    stored = ramp(dtype, top=(1 << bits) - 1) if dtype[0] == "u" else ramp(dtype)
    path = write_dicom(
        tmp_path / "a.dcm", stored, BitsStored=bits, HighBit=bits - 1, RescaleSlope=slope,
        RescaleIntercept=intercept,
    )  # fmt: skip
    image = DicomImage(path)
    wanted = stored * float(slope) + float(intercept)
    assert image.frame(0).dtype == image.dtype == expected
    assert np.array_equal(image.frame(0)[0], wanted)
    assert image.value_range == (wanted.min(), wanted.max())


def test_monochrome1_is_mirrored_with_its_window(tmp_path: Path) -> None:
    stored = ramp("uint16", top=4095)
    path = write_dicom(
        tmp_path / "a.dcm", stored, BitsStored=12, HighBit=11, RescaleSlope="1",
        RescaleIntercept="-24", PhotometricInterpretation="MONOCHROME1", WindowCenter="100.5",
        WindowWidth="51",
    )  # fmt: skip
    image = DicomImage(path)
    # Values are -24 .. 4071; v becomes 4047 - v. The window 75 .. 125 becomes 3922 .. 3972.
    assert np.array_equal(image.frame(0)[0], 4047 - (stored.astype(int) - 24))
    assert image.value_range == (-24, 4071)
    assert image.file_window == (3922, 3972)


@pytest.mark.parametrize(
    ("elements", "expected"),
    [
        ({"WindowCenter": "40", "WindowWidth": "400"}, (-160, 239)),
        ({"WindowCenter": ["40", "600"], "WindowWidth": ["400", "1500"]}, (-160, 239)),
        (
            {"WindowCenter": "40", "WindowWidth": "400", "VOILUTFunction": "LINEAR_EXACT"},
            (-160, 240),
        ),
        ({"WindowCenter": "40", "WindowWidth": "1"}, None),
        ({"WindowCenter": "40"}, None),
        ({}, None),
    ],
)
def test_windows(
    tmp_path: Path, elements: dict[str, object], expected: tuple[float, float] | None
) -> None:
    image = DicomImage(write_dicom(tmp_path / "a.dcm", ramp("int16"), **elements))
    assert image.file_window == expected


def lookup(first: int, values: list[int]) -> Dataset:
    table = Dataset()
    table.LUTDescriptor = [len(values), first, 16]
    table.LUTData = np.array(values, "<u2").tobytes()
    table["LUTData"].VR = "OW"
    return table


def test_lookup_tables(tmp_path: Path) -> None:
    table = lookup(2, [100, 70, 900])
    path = write_dicom(
        tmp_path / "a.dcm", np.array([[0, 2, 3], [4, 5, 9]], np.uint8),
        ModalityLUTSequence=Sequence([table]), VOILUTSequence=Sequence([lookup(50, [0, 1, 2, 3])]),
    )  # fmt: skip
    image = DicomImage(path)
    assert image.frame(0)[0].tolist() == [[100, 100, 70], [900, 900, 900]]
    assert image.value_range == (70, 900)
    assert image.file_window == (50, 53)


def test_rescaling_that_leaves_one_value_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    write_dicom(path, ramp("int16"), RescaleSlope="0", RescaleIntercept="-7")
    with pytest.raises(ItemError, match=r"^its RescaleSlope is 0, which makes -7 of every pixel$"):
        DicomImage(path)
    write_dicom(path, ramp("uint16"), DoseGridScaling="0.0")
    with pytest.raises(ItemError, match=r"^its DoseGridScaling is 0, which makes 0 of every"):
        DicomImage(path)
    write_dicom(path, ramp("uint8"), ModalityLUTSequence=Sequence([lookup(0, [31, 31, 31])]))
    with pytest.raises(ItemError, match=r"\(ModalityLUTSequence\) makes 31 of every pixel$"):
        DicomImage(path)


def test_what_a_damaged_header_says_stays_in_one_line(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", ramp("uint8"))
    content = path.read_bytes()
    path.write_bytes(content.replace(b"MONOCHROME2", b"MONO\nHROME2"))
    with pytest.raises(ItemError, match=r"^its pixels are MONO\?HROME2 with 1 samples"):
        DicomImage(path)
    path = write_dicom(path, None)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"1.2.840.10008.5.1.4.1.1.2", b"1.2\n840.10008.5.1.4.1.1.2"))
    with pytest.raises(
        ItemError, match=r"^holds no pixels \(1\.2\?840\.10008[.0-9]*\); it was cut"
    ):
        DicomImage(path)


def test_each_frame_has_its_own_rescaling(tmp_path: Path) -> None:
    groups = []
    for slope in ("2", "0.5"):
        transformation = Dataset()
        transformation.RescaleSlope, transformation.RescaleIntercept = slope, "1"
        group = Dataset()
        group.PixelValueTransformationSequence = Sequence([transformation])
        groups.append(group)
    stored = np.stack([ramp("uint8"), ramp("uint8")])
    path = write_dicom(
        tmp_path / "a.dcm", stored, PerFrameFunctionalGroupsSequence=Sequence(groups)
    )
    image = DicomImage(path)
    assert image.value_range == (1, 511)
    assert np.array_equal(image.frame(0)[0], stored[0] * 2.0 + 1)
    assert np.array_equal(image.frame(1)[0], stored[1] * 0.5 + 1)


# -------------------------------------------------------------------- colours


@pytest.mark.parametrize("planar", [0, 1])
def test_planes_of_colours(tmp_path: Path, planar: int) -> None:
    colours = rgb()
    stored = colours if not planar else np.moveaxis(colours, -1, 0).copy()
    path = write_dicom(
        tmp_path / "a.dcm", stored, Rows=LINES, Columns=COLUMNS, SamplesPerPixel=3,
        PhotometricInterpretation="RGB", PlanarConfiguration=planar,
        **({"NumberOfFrames": 1} if planar else {}),
    )  # fmt: skip
    image = DicomImage(path)
    assert image.channels == 3
    assert np.array_equal(image.frame(0), np.moveaxis(colours, -1, 0))


def test_luminance_and_chroma_become_rgb(tmp_path: Path) -> None:
    # White, black, and pure red of PS3.3 C.7.6.3.1.2: Y 76, Cb 85, Cr 255.
    stored = np.array([[[255, 128, 128], [0, 128, 128], [76, 85, 255], [76, 85, 255]]], np.uint8)
    path = write_dicom(tmp_path / "a.dcm", stored, PhotometricInterpretation="YBR_FULL")
    frame = DicomImage(path).frame(0)
    assert frame[:, 0, 0].tolist() == [255, 255, 255]
    assert frame[:, 0, 1].tolist() == [0, 0, 0]
    assert np.abs(frame[:, 0, 2].astype(int) - [254, 0, 0]).max() <= 1


def test_palette_becomes_rgb(tmp_path: Path) -> None:
    elements: dict[str, object] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for number, colour in enumerate(("Red", "Green", "Blue")):
        elements[f"{colour}PaletteColorLookupTableDescriptor"] = [4, 1, 16]
        values = np.arange(4, dtype="<u2") * 1000 + number
        elements[f"{colour}PaletteColorLookupTableData"] = values.tobytes()
    path = write_dicom(tmp_path / "a.dcm", np.array([[0, 1], [3, 77]], np.uint8), **elements)
    image = DicomImage(path)
    assert (image.channels, image.dtype, image.value_range) == (3, np.uint16, (0, 65535))
    assert image.frame(0)[0].tolist() == [[0, 0], [2000, 3000]]
    assert image.frame(0)[2].tolist() == [[2, 2], [2002, 3002]]


# ----------------------------------------------------------------- compressed


def compressed(name: str) -> tuple[str, np.ndarray, list[bytes], dict[str, object], float]:
    """(transfer syntax, pixels, frames, elements, tolerance)."""
    grey, deep, colours = smooth("uint8", 255), smooth("uint16", 4000), rgb()
    twelve = {"BitsStored": 12, "HighBit": 11}
    if name == "jpeg-8":
        return JPEGBaseline8Bit, grey, [imagecodecs.jpeg8_encode(grey, level=98)], {}, 4
    if name == "jpeg-rgb":
        frame = imagecodecs.jpeg8_encode(colours, level=98, colorspace="RGB", outcolorspace="RGB")
        return JPEGBaseline8Bit, colours, [frame], {}, 8
    if name == "jpeg-ybr":
        frame = imagecodecs.jpeg8_encode(colours, level=98, subsampling="444")
        ybr = {"PhotometricInterpretation": "YBR_FULL"}
        return JPEGBaseline8Bit, colours, [frame], ybr, 10
    if name == "jpeg-12":
        frame = imagecodecs.jpeg8_encode(deep, level=98, bitspersample=12)
        return JPEGExtended12Bit, deep, [frame], twelve, 40
    if name == "jpeg-lossless":
        return JPEGLossless, deep, [imagecodecs.jpeg8_encode(deep, lossless=True)], {}, 0
    if name == "jpeg-ls":
        return JPEGLSLossless, deep, [imagecodecs.jpegls_encode(deep)], {}, 0
    if name == "jpeg-ls-rgb":
        return JPEGLSLossless, colours, [imagecodecs.jpegls_encode(colours)], {}, 0
    if name == "jpeg-2000":
        frame = imagecodecs.jpeg2k_encode(deep, level=0, codecformat="j2k", bitspersample=12)
        return JPEG2000Lossless, deep, [frame], twelve, 0
    if name == "jpeg-2000-rgb":
        frame = imagecodecs.jpeg2k_encode(colours, level=0, codecformat="j2k", mct=True)
        return JPEG2000Lossless, colours, [frame], {"PhotometricInterpretation": "YBR_RCT"}, 0
    if name == "htj2k":
        return HTJ2K, deep, [imagecodecs.htj2k_encode(deep, level=0)], {}, 0
    if name == "rle":
        return RLELossless, deep, [run_lengths(deep)], {}, 0
    assert name == "rle-rgb"
    return RLELossless, colours, [run_lengths(colours)], {"PlanarConfiguration": 1}, 0


def run_lengths(pixels: np.ndarray) -> bytes:
    samples = 3 if pixels.ndim == 3 else 1
    return RLELosslessEncoder.encode(
        pixels.tobytes(), encoding_plugin="pydicom", rows=LINES, columns=COLUMNS,
        samples_per_pixel=samples, bits_allocated=pixels.itemsize * 8,
        bits_stored=pixels.itemsize * 8, pixel_representation=0, number_of_frames=1,
        photometric_interpretation="RGB" if samples == 3 else "MONOCHROME2",
        planar_configuration=0,
    )  # fmt: skip


COMPRESSED = ("jpeg-8", "jpeg-rgb", "jpeg-ybr", "jpeg-12", "jpeg-lossless", "jpeg-ls",
              "jpeg-ls-rgb", "jpeg-2000", "jpeg-2000-rgb", "htj2k", "rle", "rle-rgb")  # fmt: skip


@pytest.mark.parametrize("name", COMPRESSED)
def test_compressed_values(tmp_path: Path, name: str) -> None:
    syntax, pixels, frames, elements, tolerance = compressed(name)
    path = write_dicom(tmp_path / "a.dcm", pixels, syntax=syntax, frames=frames, **elements)
    frame = DicomImage(path).frame(0)
    wanted = np.moveaxis(pixels, -1, 0) if pixels.ndim == 3 else pixels[None]
    assert frame.dtype == pixels.dtype
    assert np.abs(frame.astype(int) - wanted.astype(int)).max() <= tolerance
    if name != "htj2k":
        # GDCM's decoders are others than ours, but for libjpeg's colours the same to the bit.
        theirs = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
        theirs = np.moveaxis(theirs[0], -1, 0) if pixels.ndim == 3 else theirs
        assert np.abs(frame.astype(int) - theirs.astype(int)).max() <= (1 if tolerance else 0)


@pytest.mark.parametrize("offsets", [True, False])
@pytest.mark.parametrize("parts", [1, 3])
def test_frames_in_fragments(tmp_path: Path, offsets: bool, parts: int) -> None:
    stored = np.stack([smooth("uint16", 4000) // (n + 1) for n in range(3)])
    frames = [imagecodecs.jpegls_encode(one) for one in stored]
    path = tmp_path / "a.dcm"
    write_dicom(path, stored, syntax=JPEGLSLossless, frames=frames, offsets=offsets)
    if parts > 1:
        dataset = pydicom.dcmread(path)
        dataset.PixelData = pydicom.encaps.encapsulate(
            frames, fragments_per_frame=parts, has_bot=offsets
        )
        dataset["PixelData"].is_undefined_length = True
        dataset.save_as(path)
    image = DicomImage(path)
    for n in (1, 0, 2):
        assert np.array_equal(image.frame(n)[0], stored[n])


def test_a_signed_value_in_an_unsigned_stream(tmp_path: Path) -> None:
    values = ramp("int16") // 16
    frame = imagecodecs.jpegls_encode((values & 0x0FFF).astype(np.uint16))
    path = write_dicom(
        tmp_path / "a.dcm", values, syntax=JPEGLSLossless, frames=[frame], BitsStored=16
    )
    dataset = pydicom.dcmread(path)
    dataset.BitsStored, dataset.HighBit = 12, 11
    # The stream says 16 bits, which then count: no sign below them.
    dataset.save_as(path)
    assert DicomImage(path).frame(0).min() >= 0
    frame = imagecodecs.jpeg2k_encode(
        (values & 0x0FFF).astype(np.uint16), level=0, codecformat="j2k", bitspersample=12
    )
    path = write_dicom(
        tmp_path / "b.dcm", values, syntax=JPEG2000Lossless, frames=[frame], BitsStored=12,
        HighBit=11,
    )  # fmt: skip
    assert np.array_equal(DicomImage(path).frame(0)[0], values)


# -------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("elements", "message"),
    [
        ({"Rows": 60_000, "Columns": 60_000}, "at most 2,147,483,648 px"),
        ({"Rows": 40_000, "Columns": 40_000}, r"3,200,000,000 bytes; 616 are there"),
        ({"NumberOfFrames": 2_000_000_000}, "2000000000 frames"),
        ({"Rows": 0}, "0 px|x 0 px"),
        ({"Rows": None}, "does not say its Rows"),
        ({"BitsStored": 17}, "17 bits of 16"),
        ({"BitsAllocated": 12, "BitsStored": 12, "HighBit": 11}, "12 bits a pixel"),
        ({"SamplesPerPixel": 4}, "4 samples"),
        ({"PhotometricInterpretation": "HSV"}, "HSV with 1 samples"),
        ({"RescaleSlope": "nan"}, "rescales by|damaged|readable"),
    ],
)
def test_lying_headers_are_refused(
    tmp_path: Path, elements: dict[str, object], message: str
) -> None:
    path = write_dicom(tmp_path / "a.dcm", ramp("uint16"), **elements)
    with pytest.raises(ItemError, match=message):
        DicomImage(path)


def test_objects_without_pixels_are_named(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", None, SOPClassUID=RTStructureSetStorage)
    with pytest.raises(ItemError, match=r"holds no pixels \(RT Structure Set Storage\)"):
        DicomImage(path)


def test_videos_inside_are_named(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", rgb(), syntax=MPEG4HP41, frames=[b"\0" * 90])
    with pytest.raises(ItemError, match=r"are a video .*MPEG-4"):
        DicomImage(path)


def test_a_compressed_frame_of_another_size_is_refused(tmp_path: Path) -> None:
    frame = imagecodecs.jpegls_encode(ramp("uint8")[:-1])
    path = write_dicom(tmp_path / "a.dcm", ramp("uint8"), syntax=JPEGLSLossless, frames=[frame])
    with pytest.raises(ItemError, match=r"frame has 14 x 21 px of 1 .* 14 x 22 of 1"):
        DicomImage(path)


def test_a_bomb_of_deflated_zeros_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dinocache.readers.dicom_frames._MAX_INFLATED", 10_000)
    path = write_dicom(
        tmp_path / "a.dcm", np.zeros((99, 101), np.uint16), syntax=DeflatedExplicitVRLittleEndian
    )
    with pytest.raises(ItemError, match="more than 10,000 bytes"):
        DicomImage(path)


def test_other_files_are_no_dicom(tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" * 30)
    with pytest.raises(ItemError, match="not a DICOM file"):
        DicomImage(path)


@pytest.mark.parametrize("name", COMPRESSED)
def test_damaged_streams_are_read_or_refused_by_name(tmp_path: Path, name: str) -> None:
    syntax, pixels, frames, elements, _ = compressed(name)
    path = write_dicom(tmp_path / "a.dcm", pixels, syntax=syntax, frames=frames, **elements)
    content = path.read_bytes()
    start = content.rindex(b"\xfe\xff\x00\xe0") + 8
    rng = np.random.default_rng(5)
    for trial in range(60):
        damaged = bytearray(content)
        reach = min(len(content), start + 64) if trial % 2 else len(content)
        for place in rng.integers(start, reach, 1 + trial % 5):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            frame = DicomImage(path).frame(0)
        except ItemError:
            continue
        assert frame.shape[1:] == (LINES, COLUMNS)


# ------------------------------------------------------------------ real files

UNREADABLE = {
    "JPEG2000-embedded-sequence-delimiter.dcm": "compressed frame has",
    "MR_truncated.dcm": "8,130 are there",
    "badVR.dcm": "NumberOfFrames '1A'",
    "meta_missing_tsyntax.dcm": "its Rows",
    "nested_priv_SQ.dcm": "its Rows",
}
# SimpleITK gives colours of more than 8 bits, single bits and doses in ways of its own.
OWN_WAY = ("SC_rgb_rle_16bit", "SC_rgb_rle_32bit", "liver_", "rtdose", "examples_palette")


def test_all_of_pydicoms_files(shared_data: Path) -> None:
    folder = shared_data / "odd-files" / "pydicom"
    read, refusals = 0, {}
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or not is_dicom(path):
            continue
        try:
            image = DicomImage(path)
            frames = np.stack([image.frame(n) for n in range(image.frames)])
        except ItemError as exc:
            refusals[path.name] = str(exc)
            continue
        assert path.name not in UNREADABLE
        assert frames.dtype == image.dtype
        read += 1
        if path.name.startswith(OWN_WAY):
            continue
        theirs = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
        theirs = theirs[..., None] if image.channels == 1 else theirs
        theirs = np.moveaxis(theirs, -1, 1)
        assert np.allclose(frames, theirs, rtol=1e-6, atol=1e-3), path.name
    assert read >= 70
    assert len(refusals) >= 20
    for name, message in refusals.items():
        assert UNREADABLE.get(name, "holds no pixels") in message, name
