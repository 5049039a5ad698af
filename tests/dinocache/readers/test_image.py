"""The image reader: every format against what was written, and against other libraries."""

import itertools
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import av
import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian
from reader_contract import ReaderContract, Sample

from dinocache.errors import ItemError, RequestError
from dinocache.geometry import Geometry
from dinocache.readers import ItemFiles, make_reader

GREY = (np.arange(17 * 23).reshape(17, 23) * 7 % 251).astype(np.uint8)
RGB = np.stack([GREY, GREY[::-1], 255 - GREY], axis=-1)
ALPHA = np.dstack([RGB, GREY // 2])
DEEP = GREY.astype(np.uint16) * 257 + 3
DEEP_RGB = RGB.astype(np.uint16) * 257 - RGB % 5
FLOATS = GREY.astype(np.float32) * 17.25 - 1024.125
SMOOTH = np.linspace(20, 220, 48 * 37).reshape(48, 37).astype(np.uint8)


def read(path: Path, **options: object) -> np.ndarray:
    with make_reader("image", options).open(ItemFiles(path=path)) as item:
        (row,) = item.rows(0, 1)
        assert item.geometry.shape == (1, *row.shape[1:])
        return row


def read_mask(path: Path, mask: Path) -> np.ndarray:
    with make_reader("image").open(ItemFiles(path=path, mask=mask)) as item:
        return item.mask()


def first(array: np.ndarray) -> np.ndarray:
    """(Y, X) or (Y, X, C) to (C, Y, X)."""
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def lying_png(side: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        crc = zlib.crc32(name + data)
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"x") + chunk(b"IEND", b"")
    )


def lying_tiff(side: int) -> bytes:
    """One strip of four bytes that claims side x side px, compressed by Deflate."""
    entries = [(256, side), (257, side), (258, 8), (259, 8), (262, 1), (273, 8), (278, side)]
    entries += [(279, 4)]
    body = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    directory = struct.pack("<H", len(entries)) + body + struct.pack("<I", 0)
    return b"II*\0" + struct.pack("<I", 12) + b"x\x9c\x03\0" + directory


def lying_bmp(side: int) -> bytes:
    info = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + info


def write_dicom(path: Path, plane: np.ndarray, frames: int = 1) -> None:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    made.SOPClassUID, made.SOPInstanceUID = meta.MediaStorageSOPClassUID, "1.2.3"
    made.Modality, made.NumberOfFrames = "DX", frames
    made.Rows, made.Columns = plane.shape
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.BitsAllocated, made.BitsStored, made.HighBit, made.PixelRepresentation = 16, 12, 11, 0
    made.WindowCenter, made.WindowWidth = 600, 801
    made.PixelData = plane.astype("<u2").tobytes() * frames
    made.save_as(path, enforce_file_format=True)


def by_pillow(array: np.ndarray, mode: str | None = None, **options: object) -> object:
    return lambda path: Image.fromarray(array, mode).save(path, **options)


def by_tifffile(array: np.ndarray, **options: object) -> object:
    return lambda path: tifffile.imwrite(path, array, **options)


def by_imagecodecs(array: np.ndarray) -> object:
    return lambda path: path.write_bytes(imagecodecs.png_encode(array))


FORMATS: dict[str, tuple[str, object, np.ndarray, float, Callable[[int], bytes] | None]] = {
    "png": ("x.png", by_imagecodecs(RGB), RGB, 0, lying_png),
    "png-16": ("x.png", by_imagecodecs(DEEP), DEEP, 0, lying_png),
    "png-16-rgb": ("x.png", by_imagecodecs(DEEP_RGB), DEEP_RGB, 0, None),
    "jpeg": ("x.jpg", by_pillow(SMOOTH, quality=95), SMOOTH, 4, None),
    "webp": ("x.webp", by_pillow(RGB, lossless=True), RGB, 0, None),
    "bmp": ("x.bmp", by_pillow(RGB), RGB, 0, lying_bmp),
    "tiff": ("x.tif", by_tifffile(RGB, photometric="rgb", rowsperstrip=5), RGB, 0, lying_tiff),
    "tiff-16-lzw-tiles": (
        "x.tif",
        by_tifffile(DEEP_RGB, compression="lzw", predictor=True, tile=(16, 32), photometric="rgb"),
        DEEP_RGB,
        0,
        None,
    ),
    "tiff-planes-big": (
        "x.tif",
        by_tifffile(
            first(RGB), photometric="rgb", planarconfig="separate", bigtiff=True, byteorder=">"
        ),
        RGB,
        0,
        None,
    ),
    "tiff-float": (
        "x.tif",
        by_tifffile(FLOATS, compression="zlib", predictor=3, byteorder=">"),
        FLOATS,
        0,
        None,
    ),
    "dicom": ("x.dcm", lambda path: write_dicom(path, DEEP // 16), DEEP // 16, 0, None),
}


class TestFormats(ReaderContract):
    reader_name = "image"

    @pytest.fixture(params=list(FORMATS))
    def sample(self, request: pytest.FixtureRequest, tmp_path: Path) -> Sample:
        name, write, array, tolerance, lying = FORMATS[request.param]
        write(tmp_path / name)
        claims = None
        if lying is not None:
            claims = tmp_path / f"claims{Path(name).suffix}"
            claims.write_bytes(lying(1_000_000))
        files = ItemFiles(path=tmp_path / name)
        return Sample(files=files, rows=first(array)[None], tolerance=tolerance, claims=claims)


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp"])
@pytest.mark.parametrize("array", [GREY, RGB], ids=["grey", "rgb"])
def test_values_are_those_of_the_file(tmp_path: Path, suffix: str, array: np.ndarray) -> None:
    Image.fromarray(array).save(tmp_path / f"x.{suffix}")
    np.testing.assert_array_equal(read(tmp_path / f"x.{suffix}"), first(array))


def palette() -> tuple[Image.Image, np.ndarray]:
    image = Image.fromarray(GREY % 3).convert("P")
    image.putpalette([9, 8, 7, 60, 50, 40, 200, 100, 0])
    return image, np.array([[9, 8, 7], [60, 50, 40], [200, 100, 0]], np.uint8)[GREY % 3]


def test_other_modes(tmp_path: Path) -> None:
    image, colours = palette()
    modes = {
        "deep.png": (Image.fromarray(DEEP), DEEP),
        "deep.tif": (Image.fromarray(DEEP), DEEP),
        "rgba.png": (Image.fromarray(ALPHA), RGB),
        "rgba.tif": (Image.fromarray(ALPHA), RGB),
        "la.png": (Image.fromarray(np.dstack([GREY, GREY]), "LA"), GREY),
        "bit.png": (Image.fromarray(GREY > 99), (GREY > 99) * np.uint8(255)),
        "bit.tif": (Image.fromarray(GREY > 99), (GREY > 99) * np.uint8(255)),
        "bit.bmp": (Image.fromarray(GREY > 99), (GREY > 99) * np.uint8(255)),
        "palette.png": (image, colours),
        "palette.tif": (image, colours),
        "palette.bmp": (image, colours),
    }
    for name, (made, expected) in modes.items():
        made.save(tmp_path / name)
        found = read(tmp_path / name)
        assert found.dtype == expected.dtype, name
        np.testing.assert_array_equal(found, first(expected), err_msg=name)


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_cmyk_becomes_rgb_as_pillow_has_it(tmp_path: Path, suffix: str) -> None:
    image = Image.fromarray(ALPHA, "CMYK")
    image.save(tmp_path / f"x.{suffix}")
    with Image.open(tmp_path / f"x.{suffix}") as again:
        expected = np.asarray(again.convert("RGB"))
    np.testing.assert_array_equal(read(tmp_path / f"x.{suffix}"), first(expected))


@pytest.mark.parametrize("bits", [2, 4])
def test_grey_of_few_bits_has_the_full_range_and_whole_labels(tmp_path: Path, bits: int) -> None:
    levels = GREY % (1 << bits)
    packed = np.packbits(
        np.unpackbits(levels[..., None], axis=-1)[..., -bits:].reshape(17, -1), axis=1
    )
    header = struct.pack(">IIBBBBB", 23, 17, bits, 0, 0, 0, 0)
    lines = b"".join(b"\0" + line.tobytes() for line in packed)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    (tmp_path / "x.png").write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
            for name, data in chunks
        )
    )
    tifffile.imwrite(tmp_path / "x.tif", levels, bitspersample=bits)
    for name in ("x.png", "x.tif"):
        path = tmp_path / name
        np.testing.assert_array_equal(read(path), (levels * (255 // ((1 << bits) - 1)))[None])
        np.testing.assert_array_equal(read_mask(path, path), levels[None, None])


def test_white_is_zero_is_turned_round(tmp_path: Path) -> None:
    for name, array in {"grey": GREY, "deep": DEEP}.items():
        path = tmp_path / f"{name}.tif"
        tifffile.imwrite(path, array, photometric="miniswhite")
        np.testing.assert_array_equal(read(path), (np.iinfo(array.dtype).max - array)[None])


def test_floats_are_read_as_they_are(tmp_path: Path) -> None:
    values = FLOATS.copy()
    values[3, 2], values[4, 1] = np.nan, np.inf
    Image.fromarray(values).save(tmp_path / "float.tif")
    found = read(tmp_path / "float.tif")
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, values[None])
    with pytest.raises(ItemError, match=r"its mask: .* one channel of whole numbers.* float32"):
        read_mask(tmp_path / "float.tif", tmp_path / "float.tif")


@pytest.mark.parametrize(
    ("stored", "given"),
    [("i1", "int16"), ("i2", "int16"), ("u4", "float32"), ("f2", "float32"), ("f8", "float32")],
)
def test_types_that_fit_are_kept(tmp_path: Path, stored: str, given: str) -> None:
    values = (GREY // 2).astype(stored) - np.array(7, stored)
    tifffile.imwrite(tmp_path / "x.tif", values)
    found = read(tmp_path / "x.tif")
    assert found.dtype == given
    np.testing.assert_array_equal(found[0], values.astype(given))


def test_twelve_bits_say_their_range(tmp_path: Path) -> None:
    write_dicom(tmp_path / "x.dcm", DEEP // 16)
    with make_reader("image").open(ItemFiles(path=tmp_path / "x.dcm")) as item:
        assert item.value_range == (0, 4095)
        assert item.file_window is not None
        assert item.geometry.affine is None
    # Two samples of 12 bits in three bytes, a line padded to a whole byte.
    bits = np.unpackbits((DEEP // 16).astype(">u2").view(np.uint8).reshape(17, 23, 2), axis=-1)
    packed = np.packbits(bits[..., 4:].reshape(17, -1), axis=1).tobytes()
    body = [(256, 23), (257, 17), (258, 12), (259, 1), (262, 1), (273, 8), (279, len(packed))]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in body)
    head = b"II*\0" + struct.pack("<I", 8 + len(packed)) + packed
    path = tmp_path / "x.tif"
    path.write_bytes(head + struct.pack("<H", len(body)) + entries + bytes(4))
    np.testing.assert_array_equal(read(path), DEEP[None] // 16)
    with make_reader("image").open(ItemFiles(path=path)) as item:
        assert item.value_range == (0, 4095)


@pytest.mark.parametrize("suffix", ["jpg", "webp"])
def test_lossy_formats(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(SMOOTH).save(tmp_path / f"x.{suffix}", quality=95)
    found = read(tmp_path / f"x.{suffix}")
    assert np.abs(found.astype(int) - SMOOTH).max() < 12


COMPRESSIONS = ("none", "lzw", "zlib", "packbits", "zstd", "lzma", "jpeg", "jpeg2000", "webp")


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("layout", ["strips", "tiles"])
def test_tiffs_against_tifffile(tmp_path: Path, compression: str, layout: str) -> None:
    if compression == "webp" and layout == "tiles":
        pytest.skip("tifffile writes none")
    how = {"rowsperstrip": 5} if layout == "strips" else {"tile": (16, 16)}
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, RGB, photometric="rgb", compression=compression, **how)
    np.testing.assert_array_equal(read(path), first(tifffile.imread(path)))


@pytest.mark.parametrize("compression", ["group3", "group4", "tiff_ccitt", "packbits"])
def test_fax_against_libtiff(tmp_path: Path, compression: str) -> None:
    bits = np.kron(GREY[:5, :7] > 99, np.ones((4, 6), bool))
    Image.fromarray(bits).save(tmp_path / "x.tif", compression=compression)
    np.testing.assert_array_equal(read(tmp_path / "x.tif")[0], bits * np.uint8(255))
    found = read_mask(tmp_path / "x.tif", tmp_path / "x.tif")
    np.testing.assert_array_equal(found[0, 0], bits)


TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    0: lambda a: a,
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.T,
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].T,
    8: lambda a: np.rot90(a),
}
"""TIFF 6.0, Orientation: which sides of what is shown the first line and the first column are."""


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.webp", "x.tif"])
def test_orientation(tmp_path: Path, name: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / name
    if name == "x.tif":
        tifffile.imwrite(path, GREY, extratags=[(274, 3, 1, orientation, True)])
    else:
        Image.fromarray(GREY).save(path, exif=exif, lossless=True)
    if name == "x.tif":
        stored = GREY
    else:
        with Image.open(path) as image:
            stored = np.asarray(image.convert("L"))
    expected = TURNS[orientation](stored)
    files = ItemFiles(path=path)
    with make_reader("image").open(files) as item:
        found = item.rows(0, 1)[0][0]
        geometry = item.geometry
    np.testing.assert_array_equal(found, expected)
    assert geometry.shape == (1, *expected.shape)
    to_source = np.eye(4) if geometry.to_source is None else geometry.to_source
    for y, x in itertools.product(range(expected.shape[0]), range(expected.shape[1])):
        column, line, *rest = to_source @ (x, y, 0, 1)
        assert rest == [0, 1]
        assert stored[int(line), int(column)] == found[y, x]
    if orientation > 1:
        assert geometry.source_shape == (23, 17, 1)


def test_a_quarter_turn_by_hand(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned clockwise by a quarter
    Image.fromarray(GREY).save(tmp_path / "x.png", exif=exif)
    np.testing.assert_array_equal(read(tmp_path / "x.png"), np.rot90(GREY, -1)[None])


def test_pages_are_never_chosen_silently(tmp_path: Path) -> None:
    pages = np.stack([GREY, GREY[::-1], 255 - GREY])
    tifffile.imwrite(tmp_path / "x.tif", pages, photometric="minisblack")
    frames = [Image.fromarray(page).convert("RGB") for page in pages]
    for name, format_options in {"x.webp": {"lossless": True}, "apng.png": {}}.items():
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **format_options)
    for name, what in {
        "x.tif": "3 pages",
        "x.webp": "3 frames of an animation",
        "apng.png": "3 frames of an animation",
    }.items():
        with pytest.raises(ItemError, match=f"{what}: pick one by the option page"):
            read(tmp_path / name)
        for page in range(3):
            np.testing.assert_array_equal(read(tmp_path / name, page=page)[0], pages[page])
        with pytest.raises(ItemError, match="there is no page 3; it has 3"):
            read(tmp_path / name, page=3)
    np.testing.assert_array_equal(read(tmp_path / "x.tif", channels=(2, 0)), pages[[2, 0]])
    write_dicom(tmp_path / "x.dcm", DEEP // 16, frames=3)
    with pytest.raises(ItemError, match="3 frames: read it with --reader volume or video"):
        read(tmp_path / "x.dcm")
    np.testing.assert_array_equal(read(tmp_path / "x.dcm", page=1)[0], DEEP // 16)
    with pytest.raises(ItemError, match="there is no frame 3; it has 3"):
        read(tmp_path / "x.dcm", page=3)


def test_thumbnails_and_levels_are_no_pages(tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    with tifffile.TiffWriter(path) as writer:
        writer.write(GREY, subifds=1)
        writer.write(GREY[::2, ::2], subfiletype=1)
        writer.write(GREY[::3, ::3], subfiletype=1)
    np.testing.assert_array_equal(read(path)[0], GREY)


def test_channels(tmp_path: Path) -> None:
    six = np.stack([GREY + np.uint8(i) for i in range(6)], axis=-1)
    tifffile.imwrite(tmp_path / "six.tif", six, planarconfig="contig", photometric="minisblack")
    tifffile.imwrite(tmp_path / "four.tif", ALPHA, photometric="rgb", extrasamples=["unspecified"])
    Image.fromarray(ALPHA).save(tmp_path / "rgba.png")
    for name, n_channels in {"six.tif": 6, "four.tif": 4}.items():
        with pytest.raises(ItemError, match=f"{n_channels} channels, and the file does not say"):
            read(tmp_path / name)
    np.testing.assert_array_equal(
        read(tmp_path / "six.tif", channels=(4, 1)), first(six[..., [4, 1]])
    )
    np.testing.assert_array_equal(read(tmp_path / "rgba.png", channels=(3,))[0], GREY // 2)
    with pytest.raises(ItemError, match=r"it has 6 channels; the options ask for \(1, 6\)"):
        read(tmp_path / "six.tif", channels=(1, 6))
    with pytest.raises(RequestError, match="option page=-1"):
        make_reader("image", {"page": -1})


def test_masks(tmp_path: Path) -> None:
    image, _ = palette()
    Image.fromarray(RGB).save(tmp_path / "x.png")
    image.save(tmp_path / "palette.png")
    five = np.stack([i == GREY for i in range(5)]).astype(np.uint8) * 255
    tifffile.imwrite(tmp_path / "five.tif", five, photometric="minisblack")
    Image.fromarray(DEEP).save(tmp_path / "deep.png")
    Image.fromarray(GREY > 99).save(tmp_path / "bit.png")
    Image.fromarray(ALPHA).save(tmp_path / "rgba.png")
    Image.fromarray(GREY[:-1]).save(tmp_path / "small.png")
    expected = {
        "palette.png": (GREY % 3)[None, None],
        "five.tif": five[:, None],
        "deep.png": DEEP[None, None],
        "bit.png": (GREY > 99)[None, None],
    }
    for name, labels in expected.items():
        found = read_mask(tmp_path / "x.png", tmp_path / name)
        assert found.dtype.kind in "iu"
        np.testing.assert_array_equal(found, labels, err_msg=name)
    for name, message in {
        "rgba.png": "its mask: a mask has one channel of whole numbers; this one has 4 of uint8",
        "small.png": "its mask has 16 x 23 px, the image 17 x 23",
        "gone.png": "its mask: the file is missing",
    }.items():
        with pytest.raises(ItemError, match=message):
            read_mask(tmp_path / "x.png", tmp_path / name)
    with (
        make_reader("image").open(ItemFiles(path=tmp_path / "x.png")) as item,
        pytest.raises(ItemError, match="it has no mask"),
    ):
        item.mask()


def test_another_grid_is_refused(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "x.png")
    files = ItemFiles(path=tmp_path / "x.png")
    make_reader("image").open(files, Geometry(shape=(1, 17, 23))).close()
    with pytest.raises(ItemError, match="that of the first channel"):
        make_reader("image").open(files, Geometry(shape=(1, 17, 24)))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    large = RGB.repeat(20, 0).repeat(20, 1)
    for name in ("whole.png", "whole.jpg", "whole.webp", "whole.bmp", "whole.tif"):
        Image.fromarray(large).save(tmp_path / name)
    Image.fromarray(RGB, "LAB").save(tmp_path / "lab.tif")
    Image.fromarray(GREY).save(tmp_path / "x.gif")
    (tmp_path / "folder.png").mkdir()
    flipped = bytearray((tmp_path / "whole.png").read_bytes())
    flipped[-20] ^= 1
    cases = {
        "cut.png": ((tmp_path / "whole.png").read_bytes()[:300], "more than the file has left"),
        "crc.png": (bytes(flipped), "cannot be decoded: "),
        "cut.jpg": ((tmp_path / "whole.jpg").read_bytes()[:5000], "cannot be decoded: .*truncated"),
        "cut.webp": ((tmp_path / "whole.webp").read_bytes()[:700], "more than the file has left"),
        "cut.bmp": ((tmp_path / "whole.bmp").read_bytes()[:9000], "more than 9000 can hold"),
        "cut.tif": ((tmp_path / "whole.tif").read_bytes()[:9000], "bytes .*were expected"),
        "text.png": (b"hello", "not an image: PNG, JPEG, TIFF, BMP or WebP was expected"),
        "empty.png": (b"", "the file is empty"),
        "large.png": (lying_png(100_000), "its header claims 10000000000 bytes of pixels, more"),
        "larger.png": (lying_png(100_000_000), "its header claims"),
        "large.tif": (lying_tiff(100_000), "cannot hold the 10000000000 it claims"),
        "large.bmp": (lying_bmp(100_000), "its header claims 10000000000 bytes"),
        "gzip.png": (b"\x1f\x8b\x08\0", "it is compressed by gzip; unpack it first"),
        "x.gif": (None, "it is a GIF; convert it to PNG"),
        "none.png": (None, "the file is missing"),
        "folder.png": (None, "it is a folder, not an image file"),
        "lab.tif": (None, r"its colours are L\*a\*b\*; convert it to RGB or grey"),
    }
    for name, (content, message) in cases.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(ItemError, match=message) as caught:
            read(tmp_path / name)
        assert "\n" not in str(caught.value)
        assert str(tmp_path) not in str(caught.value)


def test_content_counts_and_not_the_name(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "x.bmp")
    (tmp_path / "x.bmp").rename(tmp_path / "x.jpg")  # as in EDD2020
    np.testing.assert_array_equal(read(tmp_path / "x.jpg")[0], GREY)


def test_real_images(shared_data: Path) -> None:
    """Every image at hand is read as Pillow or tifffile reads it, or refused by name."""
    refused: dict[str, str] = {}
    n_read = 0
    paths = [
        path
        for path in sorted(shared_data.rglob("*"))
        if path.suffix.lower() in (".png", ".jpg", ".tif", ".tiff")
    ]
    for path in paths:
        try:
            found = read(path)
        except ItemError as exc:
            refused[path.name] = str(exc)
            continue
        n_read += 1
        np.testing.assert_array_equal(found, independent(path), err_msg=path.name)
    assert n_read > 1300
    assert set(refused) == {
        "small_la.tiff",  # two channels, of which none is said to be alpha
        "unopenable.tiff",
        "zero_gi.tif",  # 0 px
        *(p.name for p in paths if p.name.endswith("_mask.tif") or p.parent.name == "snemi-mini"),
    }


def independent(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        if path.name.startswith("test_") and path.name.endswith("_16.png"):
            decoder = av.CodecContext.create("png", "r")
            (frame,) = decoder.decode(av.Packet(path.read_bytes()))
            wanted = "rgb48le" if "RGB" in path.name else "gray16le"
            return first(frame.to_ndarray(format=wanted))
        if path.name == "rgb_geotiff.tiff":  # 16 bits too
            return first(tifffile.imread(path))
        upright = ImageOps.exif_transpose(image)
        if upright.mode == "P" and isinstance(upright.info.get("transparency"), bytes):
            upright = upright.convert("RGBA")
        return first(
            np.asarray(upright.convert("L" if upright.mode in ("L", "LA", "1") else "RGB"))
        )


def test_real_orientations(shared_data: Path) -> None:
    folder = shared_data / "odd-files/large_image/test/test_files"
    for orientation in range(9):
        found = read(folder / f"test_orient{orientation}.tif")
        swapped = orientation >= 5
        assert found.shape == ((1, 120, 180) if swapped else (1, 180, 120))
        with tifffile.TiffFile(folder / f"test_orient{orientation}.tif") as file:
            stored = file.pages[0].asarray()
        np.testing.assert_array_equal(found[0], TURNS[orientation](stored))


def test_real_masks(shared_data: Path) -> None:
    folder = shared_data / "endoscopy/edd2020-sample/masks"
    for name, plane in {"ACB0003": (386, 394), "ACB0015": (479, 519)}.items():
        found = read_mask(
            folder / f"originalImage/EDD2020_{name}.jpg", folder / f"GT/EDD2020_{name}_mask.tif"
        )
        assert found.shape == (5, 1, *plane)
        expected = tifffile.imread(folder / f"GT/EDD2020_{name}_mask.tif")
        np.testing.assert_array_equal(found[:, 0], expected)


def test_directories_that_never_end_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, GREY, byteorder="<")
    with tifffile.TiffFile(path) as file:
        first_at = file.pages[0].offset
        following = first_at + 2 + 12 * len(file.pages[0].tags)
    content = bytearray(path.read_bytes())
    content[following : following + 4] = struct.pack("<I", first_at)
    path.write_bytes(content)
    with pytest.raises(ItemError, match="form a circle"):
        read(path)
    # Each directory is two bytes behind the last, all of 2,000 entries: hours, if one let them.
    entries = struct.pack("<H", 2000) * 40_000
    path.write_bytes(b"II*\0" + struct.pack("<I", 8) + entries)
    with pytest.raises(ItemError):
        read(path)


def test_a_jpeg_of_countless_scans_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(RGB).save(tmp_path / "x.jpg", progressive=True)
    assert read(tmp_path / "x.jpg").shape == (3, 17, 23)
    monkeypatch.setattr("dinocache.readers.pictures._FEW_SCANS", 2)
    monkeypatch.setattr("dinocache.readers.pictures._MAX_SCANNED", 17 * 23)
    with pytest.raises(ItemError, match=r"a JPEG of \d+ scans; save it anew"):
        read(tmp_path / "x.jpg")


def test_jpeg_bounds(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "x.jpg")
    content = bytearray((tmp_path / "x.jpg").read_bytes())
    frame = content.index(b"\xff\xc0") + 5
    for height, width, message in [
        (65_500, 65_500, "more than .* can hold"),
        (0, 23, "claims 23 x 0 px"),
        (5_000, 5_000, "more than .* can hold"),
    ]:
        content[frame : frame + 4] = struct.pack(">HH", height, width)
        (tmp_path / "x.jpg").write_bytes(content)
        with pytest.raises(ItemError, match=message):
            read(tmp_path / "x.jpg")


def test_what_is_too_large_is_refused_by_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(RGB).save(tmp_path / "x.png")
    monkeypatch.setattr("dinocache.readers.pictures.MAX_PIXELS", 17 * 23 - 1)
    with pytest.raises(ItemError, match="23 x 17 px of 3 uint8; at most 390 px"):
        read(tmp_path / "x.png")
