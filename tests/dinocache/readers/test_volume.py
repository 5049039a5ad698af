"""Volumes: formats, orientation, spacing, crops, series, masks."""

import gzip
import shutil
import struct
import tracemalloc
import zlib
from pathlib import Path

import imagecodecs
import nibabel as nib
import numpy as np
import pydicom
import pytest
from dicoms import placed, write_dicom, write_series
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import JPEGLSLossless
from reader_contract import ReaderContract, Sample

from dinocache.errors import ItemError, RequestError
from dinocache.readers import ItemFiles, make_reader
from dinocache.readers.contract import OpenItem

sitk = pytest.importorskip("SimpleITK")

Z, Y, X = 5, 7, 4
RAS = np.diag([-1.0, -1, 1, 1])


def values(dtype: str = "int16", seed: int = 1) -> np.ndarray:
    """(Z, Y, X) of the rows: feet to head, front to back, right to left."""
    return np.random.default_rng(seed).integers(-900, 900, (Z, Y, X)).astype(dtype)


def on_file(rows: np.ndarray) -> np.ndarray:
    """Store (..., Z, Y, X) as (..., k, j, i): i to the feet, j to the left, k to the front."""
    front = rows.ndim - 3
    turned = rows[..., ::-1, ::-1, :]
    return turned.transpose(*range(front), front + 1, front + 2, front)


def oblique() -> np.ndarray:
    """Affine of `on_file` to LPS: voxels of 3 x 0.8 x 1.25 mm, turned by some degrees."""
    a, b = np.radians(8), np.radians(-5)
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]]) @ np.array(
        [[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]]
    )
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.array([[0, 0.8, 0], [0, 0, -1.25], [-3, 0, 0]]).astype(float)
    affine[:3, 3] = [12.5, -40.25, 77]
    return affine


def write_nifti(
    path: Path, stored: np.ndarray, affine: np.ndarray, *, kind: type = nib.Nifti1Image
) -> Path:
    """Write (k, j, i), or (t, k, j, i)."""
    nib.save(kind(stored.T, RAS @ affine), path)
    return path


def write_itk(path: Path, stored: np.ndarray, affine: np.ndarray, *, packed: bool = False) -> Path:
    image = sitk.GetImageFromArray(np.ascontiguousarray(stored))
    sides = np.linalg.norm(affine[:3, :3], axis=0)
    image.SetSpacing(sides.tolist())
    image.SetDirection((affine[:3, :3] / sides).ravel().tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    sitk.WriteImage(image, str(path), packed)
    return path


def rows_of(expected: np.ndarray) -> np.ndarray:
    """(Z, Y, X) to (rows, 1, Y, X)."""
    return expected[:, None]


def open_volume(path: Path, **options: object) -> OpenItem:
    mask, centre = options.pop("mask", None), options.pop("centre", None)
    files = ItemFiles(path=path, mask=mask, centre=centre)  # type: ignore[arg-type]
    return make_reader("volume", options).open(files)


def read(path: Path, **options: object) -> np.ndarray:
    with open_volume(path, **options) as item:
        return np.stack(item.rows(0, item.n_rows))


# ------------------------------------------------------------------- contract


class VolumeContract(ReaderContract):
    reader_name = "volume"
    rows = rows_of(values())

    def write(self, folder: Path) -> Path:
        raise NotImplementedError

    def lie(self, path: Path) -> Path | None:
        """Write a file that claims 10^12 pixels."""
        return None

    @pytest.fixture
    def sample(self, tmp_path: Path) -> Sample:
        (tmp_path / "item").mkdir()
        (tmp_path / "lie").mkdir()
        path = self.write(tmp_path / "item")
        return Sample(
            files=ItemFiles(path=path),
            rows=self.rows,
            claims=self.lie(self.write(tmp_path / "lie")),
        )

    def test_where_its_corners_lie(self, sample: Sample) -> None:
        """Against SimpleITK: each corner of the rows is a voxel of the file at the same place."""
        with open_volume(sample.files.path) as item:
            geometry = item.geometry
        image = self.by_itk(sample.files.path)
        assert geometry.affine is not None
        assert geometry.source_shape == image.GetSize()[:3]
        z, y, x = geometry.shape
        for corner in np.ndindex(2, 2, 2):
            voxel = np.array([*corner, 1]) * [x - 1, y - 1, z - 1, 1]
            source = (geometry.to_source @ voxel)[:3]
            index = [round(float(value)) for value in source]
            assert np.allclose(source, index, atol=1e-9)
            index += [0] * (image.GetDimension() - 3)
            point = image.TransformIndexToPhysicalPoint(index)[:3]
            assert np.allclose((geometry.affine @ voxel)[:3], point, atol=1e-3)

    def by_itk(self, path: Path) -> "sitk.Image":
        return sitk.ReadImage(str(path))


class TestNifti(VolumeContract):
    def write(self, folder: Path) -> Path:
        return write_nifti(folder / "a.nii", on_file(values()), oblique())

    def lie(self, path: Path) -> Path:
        content = bytearray(path.read_bytes())
        content[42:48] = struct.pack("<3h", 10_000, 10_000, 10_000)
        path.write_bytes(content)
        return path


class TestNiftiGzip(TestNifti):
    def write(self, folder: Path) -> Path:
        return write_nifti(folder / "a.nii.gz", on_file(values()), oblique())

    def lie(self, path: Path) -> Path:
        content = bytearray(gzip.decompress(path.read_bytes()))
        content[42:48] = struct.pack("<3h", 10_000, 10_000, 10_000)
        path.write_bytes(gzip.compress(content))
        return path


class TestNiftiPair(TestNifti):
    def write(self, folder: Path) -> Path:
        return write_nifti(folder / "a.hdr", on_file(values()), oblique(), kind=nib.Nifti1Pair)


class TestNifti4D(VolumeContract):
    rows = np.concatenate([rows_of(values(seed=seed)) for seed in (1, 2, 3)])

    def write(self, folder: Path) -> Path:
        stored = np.stack([on_file(values(seed=seed)) for seed in (1, 2, 3)])
        return write_nifti(folder / "a.nii", stored, oblique())


class TestNifti2BigEndian(VolumeContract):
    rows = rows_of(values("float32") / 8)

    def write(self, folder: Path) -> Path:
        stored = (on_file(values("float32")) / 8).astype(">f4")
        header = nib.Nifti2Header(endianness=">")
        header.set_data_dtype(">f4")
        image = nib.Nifti2Image(stored.T, RAS @ oblique(), header)
        nib.save(image, folder / "a.nii")
        assert (folder / "a.nii").read_bytes()[:4] == b"\0\0\x02\x1c"
        return folder / "a.nii"

    def by_itk(self, path: Path) -> "sitk.Image":
        # SimpleITK reads no NIfTI-2 here; the same as NIfTI-1.
        other = path.with_name("one.nii")
        image = nib.load(path)
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj, np.float32), image.affine), other)
        return sitk.ReadImage(str(other))

    def lie(self, path: Path) -> Path:
        content = bytearray(path.read_bytes())
        content[24:48] = struct.pack(">3q", 10_000, 10_000, 10_000)
        path.write_bytes(content)
        return path


class TestNrrd(VolumeContract):
    packed = False

    def write(self, folder: Path) -> Path:
        return write_itk(folder / "a.nrrd", on_file(values()), oblique(), packed=self.packed)

    def lie(self, path: Path) -> Path:
        content = path.read_bytes()
        assert b"sizes: 5 4 7" in content
        path.write_bytes(content.replace(b"sizes: 5 4 7", b"sizes: 10000 10000 10000"))
        return path


class TestNrrdGzip(TestNrrd):
    packed = True


class TestNrrdDetached(TestNrrd):
    def write(self, folder: Path) -> Path:
        return write_itk(folder / "a.nhdr", on_file(values()), oblique())


class TestMha(VolumeContract):
    ending = "mha"
    packed = False

    def write(self, folder: Path) -> Path:
        return write_itk(
            folder / f"a.{self.ending}", on_file(values("uint16")), oblique(), packed=self.packed
        )

    rows = rows_of(values("uint16"))

    def lie(self, path: Path) -> Path:
        content = path.read_bytes()
        assert b"DimSize = 5 4 7" in content
        path.write_bytes(content.replace(b"DimSize = 5 4 7", b"DimSize = 10000 10000 10000"))
        return path


class TestMhaZlib(TestMha):
    packed = True


class TestMhd(TestMha):
    ending = "mhd"


class TestMhdZlib(TestMhd):
    packed = True


class TestSeries(VolumeContract):
    """k of `on_file` runs to the front; a series is sorted along its normal, which does as well."""

    def write(self, folder: Path) -> Path:
        return write_series(folder / "series", on_file(values()), oblique())

    def lie(self, path: Path) -> Path:
        victim = sorted(path.iterdir())[0]
        write_dicom(victim, values()[0], Rows=60_000, Columns=60_000)
        return path

    def by_itk(self, path: Path) -> "sitk.Image":
        names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(path))
        return sitk.ReadImage(names)


class TestSeriesByOneFile(TestSeries):
    def write(self, folder: Path) -> Path:
        return super().write(folder) / "003.dcm"

    def lie(self, path: Path) -> Path:
        return write_dicom(path, values()[0], Rows=60_000, Columns=60_000)

    def by_itk(self, path: Path) -> "sitk.Image":
        return super().by_itk(path.parent)


def write_enhanced(path: Path, stored: np.ndarray, affine: np.ndarray, **elements: object) -> Path:
    """Write an enhanced multi-frame file, its frames from the last slice to the first."""
    groups = []
    for k in reversed(range(len(stored))):
        plane = placed(affine, k)
        position = Dataset()
        position.ImagePositionPatient = plane["ImagePositionPatient"]
        group = Dataset()
        group.PlanePositionSequence = Sequence([position])
        groups.append(group)
    orientation, measures, shared = Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = plane["ImageOrientationPatient"]
    measures.PixelSpacing = plane["PixelSpacing"]
    measures.SliceThickness = plane["SliceThickness"]
    shared.PlaneOrientationSequence = Sequence([orientation])
    shared.PixelMeasuresSequence = Sequence([measures])
    return write_dicom(
        path, stored[::-1], PerFrameFunctionalGroupsSequence=Sequence(groups),
        SharedFunctionalGroupsSequence=Sequence([shared]),
        SOPClassUID="1.2.840.10008.5.1.4.1.1.2.1", **elements,
    )  # fmt: skip


class TestMultiFrame(VolumeContract):
    def write(self, folder: Path) -> Path:
        return write_enhanced(folder / "a.dcm", on_file(values()), oblique())

    def lie(self, path: Path) -> Path:
        dataset = pydicom.dcmread(path)
        dataset.NumberOfFrames = 1_000_000
        dataset.save_as(path)
        return path

    def by_itk(self, path: Path) -> "sitk.Image":
        # GDCM sorts no frames: the grid that they were written from.
        return sitk.ReadImage(
            str(write_itk(path.with_suffix(".mha"), on_file(values()), oblique()))
        )


class TestCompressedMultiFrame(TestMultiFrame):
    def write(self, folder: Path) -> Path:
        path = super().write(folder)
        dataset = pydicom.dcmread(path)
        frames = [
            imagecodecs.jpegls_encode(one.view("u2")) for one in on_file(values())[::-1].copy()
        ]
        dataset.PixelData = pydicom.encaps.encapsulate(frames)
        dataset["PixelData"].is_undefined_length = True
        dataset["PixelData"].VR = "OB"
        dataset.file_meta.TransferSyntaxUID = JPEGLSLossless
        dataset.save_as(path)
        return path


# ---------------------------------------------------------------- orientation


@pytest.mark.parametrize(
    ("axis", "turn"),
    [
        pytest.param("axial", lambda v: v, id="axial"),
        pytest.param("coronal", lambda v: v.transpose(1, 0, 2)[:, ::-1], id="coronal"),
        pytest.param("sagittal", lambda v: v.transpose(2, 0, 1)[:, ::-1][::1], id="sagittal"),
    ],
)
def test_rows_are_as_radiologists_hold_them(tmp_path: Path, axis: str, turn: object) -> None:
    path = write_nifti(tmp_path / "a.nii", on_file(values()), oblique())
    expected = turn(values())  # type: ignore[operator]
    with open_volume(path, axis=axis) as item:
        rows = item.rows(0, item.n_rows)
        geometry = item.geometry
    assert np.array_equal(np.stack(rows)[:, 0], expected)
    # Each voxel of the rows is the file's at the place that the geometry says.
    stored = on_file(values())
    for z, y, x in np.ndindex(expected.shape):
        i, j, k = np.rint(geometry.to_source @ [x, y, z, 1])[:3].astype(int)
        assert stored[k, j, i] == expected[z, y, x]
    assert np.allclose(geometry.source_affine, oblique(), atol=1e-5)


def test_rows_are_views(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii", on_file(values()), oblique())
    with open_volume(path) as item:
        rows = item.rows(0, item.n_rows)
    base = {id(row.base if row.base is not None else row) for row in rows}
    assert len(base) == 1
    assert item.nbytes == values().nbytes


def test_little_memory_is_needed_besides_the_volume(tmp_path: Path) -> None:
    rows = np.random.default_rng(7).integers(0, 9, (90, 210, 200)).astype(np.int16)
    for name in ("a.nii", "a.nii.gz"):
        path = write_nifti(tmp_path / name, rows, straight())
        open_volume(path).rows(0, 1)
        tracemalloc.start()
        try:
            with open_volume(path) as item:
                taken = [item.rows(z, z + 1) for z in range(item.n_rows)]
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert len(taken) == 90
        # Blocks of 4 MiB on the way, which are much of this small volume.
        assert peak < rows.nbytes + (9 << 20)


# ----------------------------------------------------------------------- NIfTI


@pytest.mark.parametrize(
    ("stored", "slope", "inter", "expected"),
    [
        ("int8", 1, 0, "int16"),
        ("uint8", 1, 0, "uint8"),
        ("uint8", 1, -1024, "int16"),
        ("uint16", 1, -32768, "int16"),
        ("int16", 1, -1, "float32"),
        ("uint8", 0.5, 0, "float32"),
        ("int32", 1, 0, "float32"),
        ("float64", 1, 0, "float32"),
        ("uint8", float("nan"), 0, "uint8"),
        ("uint8", 0, 7, "uint8"),
    ],
)
@pytest.mark.parametrize("ending", ["nii", "nii.gz"])
def test_scaled_values_and_their_type(
    tmp_path: Path, stored: str, slope: float, inter: float, expected: str, ending: str
) -> None:
    raw = np.random.default_rng(4).integers(0, 120, (3, 5, 4)).astype(stored)
    image = nib.Nifti1Image(raw.T, RAS)
    image.header["scl_slope"], image.header["scl_inter"] = slope, inter
    path = tmp_path / f"a.{ending}"
    content = image.to_bytes()
    # nibabel works out a scaling of its own when it writes.
    header = bytearray(content[:348])
    header[112:120] = struct.pack("<2f", slope, inter)
    content = bytes(header) + content[348:]
    path.write_bytes(gzip.compress(content) if ending == "nii.gz" else content)
    rows = read(path)
    theirs = np.asarray(nib.load(path).dataobj)
    assert rows.dtype == expected
    assert np.allclose(rows[:, 0], theirs.T, rtol=1e-6)


def test_colours(tmp_path: Path) -> None:
    stored = np.random.default_rng(5).integers(0, 255, (4, 5, 3, 3), np.uint8)
    pixels = stored.copy().view([("R", "u1"), ("G", "u1"), ("B", "u1")])[..., 0]
    nib.save(nib.Nifti1Image(pixels, RAS), tmp_path / "a.nii.gz")
    assert np.array_equal(read(tmp_path / "a.nii.gz"), stored.transpose(2, 3, 1, 0))


@pytest.mark.parametrize("ending", ["mha", "nrrd"])
@pytest.mark.parametrize("samples", [3, 4])
def test_colours_of_itk(tmp_path: Path, ending: str, samples: int) -> None:
    stored = np.random.default_rng(5).integers(0, 255, (4, 5, 7, samples), np.uint8)
    image = sitk.GetImageFromArray(stored, isVector=True)
    sitk.WriteImage(image, str(tmp_path / f"a.{ending}"))
    assert np.array_equal(read(tmp_path / f"a.{ending}"), stored[..., :3].transpose(0, 3, 1, 2))
    # Vectors of other numbers are no colours, but volumes.
    image = sitk.GetImageFromArray(stored.astype(np.float32), isVector=True)
    sitk.WriteImage(image, str(tmp_path / f"a.{ending}"))
    wanted = stored.transpose(3, 0, 1, 2).reshape(-1, 1, 5, 7)
    assert np.array_equal(read(tmp_path / f"a.{ending}"), wanted)


def test_two_dimensions_are_one_slice(tmp_path: Path) -> None:
    stored = values()[0]
    nib.save(nib.Nifti1Image(stored.T, RAS), tmp_path / "a.nii")
    assert np.array_equal(read(tmp_path / "a.nii"), stored[None, None])


def test_pixdim_holds_against_the_sform(tmp_path: Path) -> None:
    image = nib.Nifti1Image(values().T, RAS)
    image.header["pixdim"][1:4] = 1.5, 1.25, 10
    image.header.set_sform(RAS, 2)
    (tmp_path / "a.nii").write_bytes(image.to_bytes())
    header = bytearray(image.to_bytes())
    header[80:92] = struct.pack("<3f", 1.5, 1.25, 10)
    (tmp_path / "a.nii").write_bytes(header)
    with open_volume(tmp_path / "a.nii") as item:
        assert np.allclose(item.geometry.spacing, (10, 1.25, 1.5))
        assert "1 x 1 x 1, its pixdim of 1.5 x 1.25 x 10" in item.notes[0]


def turned(degrees: float, sides: tuple[float, ...], origin: tuple[float, ...]) -> np.ndarray:
    """Affine to RAS: turned about the third axis."""
    a = np.radians(degrees)
    affine = np.eye(4)
    affine[:2, :2] = [[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]
    affine[:3, :3] = affine[:3, :3] @ np.diag(sides)
    affine[:3, 3] = origin
    return affine


@pytest.mark.parametrize(
    ("qform_code", "sform_code", "shear", "said"),
    [
        pytest.param(0, 1, 0.0, "pixdim holds", id="acdc"),
        pytest.param(0, 2, 0.0, "pixdim holds", id="aligned-alone"),
        pytest.param(1, 2, 0.0, "its qform holds", id="aligned"),
        pytest.param(2, 4, 0.0, "its qform holds", id="mni"),
        pytest.param(1, 1, 0.3, "its qform holds", id="scanner-sheared"),
        pytest.param(1, 1, 0.0, "pixdim holds", id="scanner"),
    ],
)
def test_a_sform_that_disagrees_with_pixdim_is_as_in_itk(
    tmp_path: Path, qform_code: int, sform_code: int, shear: float, said: str
) -> None:
    pixdim = 1.5, 1.25, 10
    sheared = np.eye(4)
    sheared[0, 1] = shear
    image = nib.Nifti1Image(on_file(values()).T, None)
    image.set_sform(turned(4, (1, 1, 1), (3, 7, -5)) @ sheared, sform_code)
    image.set_qform(turned(11, pixdim, (-20, 30, 45)), qform_code)
    image.header["pixdim"][1:4] = pixdim
    nib.save(image, tmp_path / "a.nii")
    by_itk = sitk.ReadImage(str(tmp_path / "a.nii"))
    expected = np.eye(4)
    expected[:3, :3] = np.reshape(by_itk.GetDirection(), (3, 3)) @ np.diag(by_itk.GetSpacing())
    expected[:3, 3] = by_itk.GetOrigin()
    with open_volume(tmp_path / "a.nii") as item:
        assert np.allclose(item.geometry.source_affine, expected, atol=1e-4)
        assert item.notes[0].endswith(f"its pixdim of 1.5 x 1.25 x 10; {said}")


def test_units_are_brought_to_mm(tmp_path: Path) -> None:
    image = nib.Nifti1Image(values().T, RAS @ np.diag([4.0, 5, 30, 1]))
    image.header.set_xyzt_units("micron")
    nib.save(image, tmp_path / "a.nii")
    with open_volume(tmp_path / "a.nii") as item:
        assert np.allclose(item.geometry.spacing, (0.03, 0.005, 0.004))


def test_no_orientation_is_noted(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(values().T, None), tmp_path / "a.nii")
    with open_volume(tmp_path / "a.nii") as item:
        assert "does not say how it lies" in item.notes[0]
        assert np.allclose(item.geometry.spacing, (1, 1, 1))


def edited(path: Path, place: int, packed: bytes) -> Path:
    content = bytearray(path.read_bytes())
    content[place : place + len(packed)] = packed
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("place", "packed", "message"),
    [
        (70, struct.pack("<h", 32), "its voxels are complex"),
        (70, struct.pack("<h", 1536), "128-bit floats"),
        (68, struct.pack("<h", 3001), "CIFTI is not read"),
        (40, struct.pack("<h", 9), "claims 2304 axes"),
        (42, struct.pack("<h", -3), r"axes of \[-3, "),
        (108, struct.pack("<f", np.nan), "voxels from byte nan"),
        (112, struct.pack("<2f", 1, np.inf), "header is damaged"),
        (280, struct.pack("<f", np.nan), "not finite"),
        (40, struct.pack("<6h", 5, 2, 2, 2, 2, 2), "one axis beyond the volume's three"),
        (344, b"\0\0\0\0", "Analyze 7.5 is not read; convert to NIfTI"),
    ],
)
def test_what_is_refused_of_nifti(tmp_path: Path, place: int, packed: bytes, message: str) -> None:
    path = write_nifti(tmp_path / "a.nii", on_file(values()), oblique())
    edited(path, place, packed)
    with pytest.raises(ItemError, match=message):
        read(path)


def test_singular_affines_are_refused(tmp_path: Path) -> None:
    affine = oblique()
    path = write_nifti(tmp_path / "a.nii", on_file(values()), affine)
    # All lines of the sform the same.
    edited(path, 280, struct.pack("<12f", *[1, 2, 3, 0] * 3))
    with pytest.raises(ItemError, match="singular"):
        open_volume(path)


def test_one_flipped_bit_in_a_gzip_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    whole = write_nifti(tmp_path / "a.nii", on_file(values()), oblique()).read_bytes()
    content = bytearray(gzip.compress(whole, 0))
    content[-100] ^= 4
    path.write_bytes(content)
    with pytest.raises(ItemError, match="CRC check failed"):
        read(path)


def test_a_stream_that_goes_on_is_refused(tmp_path: Path) -> None:
    whole = write_nifti(tmp_path / "a.nii", on_file(values()), oblique()).read_bytes()
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(whole + bytes(1000)))
    assert len(read(path)) == Z
    path.write_bytes(gzip.compress(whole + bytes(100_000)))
    with pytest.raises(ItemError, match="go on for more than 65,536 bytes"):
        read(path)


# ------------------------------------------------------------ volumes of a file


def test_which_volumes_and_as_what(tmp_path: Path) -> None:
    stored = np.stack([on_file(values(seed=seed)) for seed in (1, 2, 3)])
    for ending in ("nii", "nii.gz"):
        path = write_nifti(tmp_path / f"a.{ending}", stored, oblique())
        rows = read(path, pick=[2, 0])
        assert np.array_equal(rows[:Z, 0], values(seed=3))
        assert np.array_equal(rows[Z:, 0], values(seed=1))
        channels = read(path, volumes="channels", pick=[1, 2])
        assert np.array_equal(channels, np.stack([values(seed=2), values(seed=3)], 1))
        with open_volume(path, pick=[2, 0]) as item:
            assert item.coords().tolist() == [[t, z] for t in (2, 0) for z in range(Z)]
            assert item.geometry.volumes == 2
        with pytest.raises(ItemError, match="has 3 volumes; pick asks for 3"):
            open_volume(path, pick=[3])


@pytest.mark.parametrize("first", [True, False])
def test_a_nrrd_axis_outside_space(tmp_path: Path, first: bool) -> None:
    volumes = np.stack([values("uint8", seed=seed) for seed in (1, 2, 3)])
    stored = np.moveaxis(volumes, 0, -1) if first else volumes
    sizes, kinds = [X, Y, Z], ["space"] * 3
    directions = ["(1,0,0)", "(0,1,0)", "(0,0,2)"]
    place = 0 if first else 3
    sizes.insert(place, 3)
    kinds.insert(place, "list")
    directions.insert(place, "none")
    header = (
        f"NRRD0005\ntype: uint8\ndimension: 4\nspace: left-posterior-superior\n"
        f"sizes: {' '.join(map(str, sizes))}\nspace directions: {' '.join(directions)}\n"
        f"kinds: {' '.join(kinds)}\nencoding: raw\nspace origin: (1,2,3)\n# a comment\n\n"
    )
    path = tmp_path / "a.nrrd"
    path.write_bytes(header.encode() + stored.tobytes())
    assert np.array_equal(read(path)[:, 0], volumes.reshape(-1, Y, X))
    assert np.array_equal(read(path, pick=[1])[:, 0], volumes[1])
    path.write_bytes(header.replace("list", "RGB-color").encode() + stored.tobytes())
    rows = read(path)
    assert rows.shape == ((Z, 3, Y, X) if first else (3 * Z, 1, Y, X))


# --------------------------------------------------------------------- spacing


def straight(spacing: tuple[float, float, float] = (1, 1, 1)) -> np.ndarray:
    """Affine of a volume that is LPS already."""
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = 10, 20, 30
    return affine


def test_linear_resampling_by_hand(tmp_path: Path) -> None:
    # Four voxels of 1 mm to two of 2 mm: each lies between two. To eight of 0.5 mm: at the
    # quarters, the outer ones at the edge voxel's own value.
    stored = np.zeros((1, 1, 4), np.int16)
    stored[0, 0] = 0, 10, 30, 60
    path = write_nifti(tmp_path / "a.nii", stored, straight())
    assert read(path, spacing=[2, 0, 0])[0, 0, 0].tolist() == [5, 45]
    finer = read(path, spacing=[0.5, 0, 0])
    assert finer.dtype == np.float32
    assert finer[0, 0, 0].tolist() == [0, 2.5, 7.5, 15, 25, 37.5, 52.5, 60]


@pytest.mark.parametrize(("axis", "spacing"), [("axial", (1.5, 0, 0.7)), ("coronal", (0.5, 2, 3))])
def test_resampling_against_simpleitk(
    tmp_path: Path, axis: str, spacing: tuple[float, float, float]
) -> None:
    path = write_nifti(tmp_path / "a.nii", on_file(values()), oblique())
    with open_volume(path, axis=axis, spacing=spacing) as item:
        rows = np.stack(item.rows(0, item.n_rows))[:, 0]
        geometry = item.geometry
    image = sitk.Cast(sitk.ReadImage(str(path)), sitk.sitkFloat32)
    grid = sitk.ResampleImageFilter()
    z, y, x = geometry.shape
    sides = np.linalg.norm(geometry.affine[:3, :3], axis=0)
    grid.SetSize([x, y, z])
    grid.SetOutputSpacing(sides.tolist())
    grid.SetOutputDirection((geometry.affine[:3, :3] / sides).ravel().tolist())
    grid.SetOutputOrigin(geometry.affine[:3, 3].tolist())
    grid.SetDefaultPixelValue(-12345)
    theirs = sitk.GetArrayFromImage(grid.Execute(image))
    # Within its outer half voxel SimpleITK takes the edge's value, as we do.
    known = theirs > -12000
    assert known.mean() > 0.9
    assert np.abs(rows - theirs)[known].max() < 0.2


def test_the_spacing_is_what_was_asked_for_and_the_centre_stays(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii", on_file(values()), oblique())
    with open_volume(path) as item:
        before = item.geometry
    with open_volume(path, spacing=[0.9, 3, 2]) as item:
        after = item.geometry
    # 4 x 0.8 mm -> 3.56, 4 voxels; 7 x 1.25 -> 2.9, 3; 5 x 3 -> 7.5, 8.
    assert after.shape == (8, 3, 4)
    assert np.allclose(after.spacing, (2, 3, 0.9))
    old, new = (np.array([*sides, 2]) / 2 - [0.5, 0.5, 0.5, 0] for sides in ((X, Y, Z), (4, 3, 8)))
    assert np.allclose(before.affine @ old, after.affine @ new)


def test_a_size_keeps_the_edges_where_they_are(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii", on_file(values()), oblique())
    with open_volume(path) as item:
        before = item.geometry
    with open_volume(path, size=[7, 0, 3], axis="coronal") as item:
        after = item.geometry
        assert item.n_rows == Y
        assert item.rows(0, 1)[0].shape == (1, 3, 7)
    assert after.shape == (Y, 3, 7)
    with open_volume(path, axis="coronal") as item:
        turned = item.geometry
    for old, new in (((-0.5,) * 3, (-0.5,) * 3), ((X - 0.5, Z - 0.5, 0), (6.5, 2.5, 0))):
        ends = (np.array([*end, 1]) for end in (old, new))
        first, second = (g.affine @ end for g, end in zip((turned, after), ends, strict=True))
        # The first axis that is kept has the same ends, too.
        assert np.allclose(first, second)
    assert before.shape == (Z, Y, X)


def test_a_size_needs_no_spacing(tmp_path: Path) -> None:
    """By hand: four voxels become two, whatever their size."""
    stored = np.zeros((1, 1, 4), np.int16)
    stored[0, 0] = 0, 10, 30, 60
    path = tmp_path / "a.nrrd"
    path.write_bytes(
        b"NRRD0004\ntype: short\ndimension: 3\nsizes: 4 1 1\nencoding: raw\nendian: little\n\n"
        + stored.tobytes()
    )
    assert read(path, size=[2, 0, 0])[0, 0, 0].tolist() == [5, 45]
    with pytest.raises(ItemError, match="spacing cannot be changed"):
        open_volume(path, spacing=[1, 1, 1])


# ------------------------------------------------------------------------ crop


def test_centre_crop_pads_with_the_least_value(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii", on_file(values()), oblique())
    with open_volume(path, crop="centre", crop_size=[2, 9, 3]) as item:
        rows = np.stack(item.rows(0, item.n_rows))[:, 0]
        geometry = item.geometry
    expected = np.pad(values()[1:4, :, 1:3], ((0, 0), (1, 1), (0, 0)),
                      constant_values=values().min())  # fmt: skip
    assert rows.dtype == np.int16
    assert np.array_equal(rows, expected)
    with open_volume(path) as item:
        whole = item.geometry
    assert np.allclose(geometry.affine @ [0, 1, 0, 1], whole.affine @ [1, 0, 1, 1])


def labels() -> np.ndarray:
    found = np.zeros((Z, Y, X), np.uint8)
    found[3, 1:4, 2] = 2
    found[4, 2, 2] = 0
    return found


def test_crop_around_a_mask(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii", on_file(values()), oblique())
    mask = write_nifti(tmp_path / "m.nii.gz", on_file(labels()), oblique())
    reader = make_reader("volume", {"crop": "mask", "crop_size": [3, 3, 1]})
    files = ItemFiles(path=path, mask=mask)
    # The centroid is z 3, y 2, x 2.
    with reader.open(files) as item:
        assert np.array_equal(np.stack(item.rows(0, 1))[0, 0], values()[3, 1:4, 1:4])
        assert np.array_equal(item.mask()[0, 0], labels()[3, 1:4, 1:4])
    assert reader.count_rows(files) == 1
    other = np.zeros((Z, Y, X), np.uint8)
    other[0, 6, 0] = 1
    centre = write_nifti(tmp_path / "c.nii", on_file(other), oblique())
    with reader.open(ItemFiles(path=path, mask=mask, centre=centre)) as item:
        row = item.rows(0, 1)[0][0]
        least = values().min()
        assert row[:2, 1:].tolist() == values()[0, 5:7, :2].tolist()
        assert (row[2] == least).all()
        assert (row[:, 0] == least).all()
        assert not item.mask().any()
    empty = write_nifti(tmp_path / "e.nii", on_file(np.zeros_like(other)), oblique())
    with pytest.raises(ItemError, match="label map is empty"):
        reader.open(ItemFiles(path=path, centre=empty))
    with pytest.raises(ItemError, match="needs a label map"):
        reader.open(ItemFiles(path=path))


def test_the_box_of_the_foreground(tmp_path: Path) -> None:
    stored = np.zeros((Z, Y, X), np.int16)
    stored[1:3, 2:6, 3] = 7
    stored[0, 0, 0] = 3
    path = write_nifti(tmp_path / "a.nii", on_file(stored), oblique())
    reader = make_reader("volume", {"crop": "foreground", "foreground_above": 3})
    with reader.open(ItemFiles(path=path)) as item:
        rows = np.stack(item.rows(0, item.n_rows))
    assert rows.shape == (2, 1, 4, 1)
    assert (rows == 7).all()
    assert reader.count_rows(ItemFiles(path=path)) == 2
    sized = read(path, crop="foreground", foreground_above=3, crop_size=[1, 6, 4])
    assert np.array_equal(sized[:, 0], stored[0:4, 1:7, 3:4])
    with pytest.raises(ItemError, match="nothing in it is above 100"):
        open_volume(path, crop="foreground", foreground_above=100)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop": "mask"}, r"crop=mask needs a crop_size, \(x, y, z\) in voxels"),
        ({"crop_size": [1, 2, 3]}, "crop_size needs a crop to be the size of: centre"),
        ({"pick": [1, 1]}, "pick must name at least one volume, and each once"),
        ({"spacing": [-1, 1, 1]}, "greater than or equal to 0"),
        ({"size": [-1, 1, 1]}, "greater than or equal to 0"),
        ({"size": [9, 9, 0], "spacing": [1, 0, 0]}, "two ways to resample"),
        ({"axis": "oblique"}, "'axial', 'coronal' or 'sagittal'"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, object], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        make_reader("volume", options)


# ------------------------------------------------------------------------ masks


@pytest.mark.parametrize("kind", ["uint8", "int64", "float64"])
@pytest.mark.parametrize("ending", ["nii.gz", "nrrd", "mha"])
def test_masks_follow_the_rows(tmp_path: Path, kind: str, ending: str) -> None:
    path = write_nifti(tmp_path / "a.nii", on_file(values()), oblique())
    stored = on_file(labels().astype(kind))
    mask = tmp_path / f"m.{ending}"
    if ending == "nii.gz":
        image = nib.Nifti1Image(stored.T, RAS @ oblique(), dtype=kind)
        nib.save(image, mask)
    else:
        write_itk(mask, stored, oblique())
    with open_volume(path, mask=mask, axis="coronal") as item:
        found = item.mask()
        assert found.shape == (1, Y, Z, X)
        assert found.dtype == np.uint8
        assert np.array_equal(found[0], labels().transpose(1, 0, 2)[:, ::-1])
    with open_volume(path, mask=mask, spacing=[0.4, 0.625, 1.5]) as item:
        twice = labels().repeat(2, 0).repeat(2, 1).repeat(2, 2)
        assert np.array_equal(item.mask()[0], twice)


def test_a_mask_stored_with_other_flips(tmp_path: Path) -> None:
    path = write_series(tmp_path / "series", on_file(values()), oblique())
    # As a converter leaves it: the same voxels, another order of axes.
    straightened = oblique() @ np.array([[0, 0, -1, 4], [1, 0, 0, 0], [0, -1, 0, 6], [0, 0, 0, 1]])
    mask = write_nifti(tmp_path / "m.nii", labels(), straightened)
    with open_volume(path, mask=mask) as item:
        assert np.array_equal(item.mask()[0], labels())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("moved", "up to 0.5 mm away"),
        ("smaller", "another grid"),
        ("fractions", "whole numbers"),
        ("missing", "the file is missing"),
    ],
)
def test_masks_that_do_not_fit(tmp_path: Path, change: str, message: str) -> None:
    path = write_nifti(tmp_path / "a.nii", on_file(values()), oblique())
    affine, stored = oblique(), on_file(labels())
    if change == "moved":
        affine[0, 3] += 0.5
    if change == "smaller":
        stored = stored[:-1]
    if change == "fractions":
        stored = stored / np.float32(3)
    mask = write_nifti(tmp_path / "m.nii", stored, affine)
    if change == "missing":
        mask.unlink()
    with open_volume(path, mask=mask) as item, pytest.raises(ItemError, match=message):
        item.mask()


def test_masks_of_several_volumes(tmp_path: Path) -> None:
    path = write_nifti(
        tmp_path / "a.nii", np.stack([on_file(values(seed=n)) for n in (1, 2)]), oblique()
    )
    one = write_nifti(tmp_path / "one.nii", on_file(labels()), oblique())
    two = write_nifti(
        tmp_path / "two.nii", np.stack([on_file(labels()), on_file(labels() * 3)]), oblique()
    )
    with open_volume(path, mask=one) as item:
        assert np.array_equal(item.mask()[0], np.concatenate([labels(), labels()]))
    with open_volume(path, mask=two, pick=[1]) as item:
        assert np.array_equal(item.mask()[0], labels() * 3)
    with open_volume(path, mask=two, volumes="channels") as item:
        assert np.array_equal(item.mask(), np.stack([labels(), labels() * 3]))
    with open_volume(path, mask=two) as item:
        assert np.array_equal(item.mask()[0], np.concatenate([labels(), labels() * 3]))


def test_errors_say_which_file_they_are_about(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii", on_file(values()), oblique())
    mask = write_nifti(tmp_path / "m.nii", on_file(labels()), oblique())
    gone = tmp_path / "gone.nii"
    reader = make_reader("volume", {"crop": "mask", "crop_size": [2, 3, 1]})
    with pytest.raises(ItemError, match=r"^its crop_mask: the file is missing$"):
        reader.open(ItemFiles(path=path, mask=mask, centre=gone))
    with pytest.raises(ItemError, match=r"^its mask: the file is missing$"):
        reader.open(ItemFiles(path=path, mask=gone))
    with pytest.raises(ItemError, match=r"^the file is missing$"):
        reader.open(ItemFiles(path=gone, mask=mask))
    with (
        reader.open(ItemFiles(path=path, mask=gone, centre=mask)) as item,
        pytest.raises(ItemError, match=r"^its mask: the file is missing$"),
    ):
        item.mask()
    smaller = write_nifti(tmp_path / "s.nii", on_file(labels())[:-1], oblique())
    with pytest.raises(ItemError, match=r"^its crop_mask: it lies on another grid: \("):
        reader.open(ItemFiles(path=path, centre=smaller))


# --------------------------------------------------------------- other channels


def test_a_channel_of_the_same_grid_is_left_alone(tmp_path: Path) -> None:
    reader = make_reader("volume", {"spacing": [0, 2, 0], "crop": "centre", "crop_size": [2, 9, 4]})
    first = write_nifti(tmp_path / "a.nii", on_file(values()), oblique())
    second = write_itk(tmp_path / "b.mha", on_file(values(seed=2)), oblique())
    with reader.open(ItemFiles(path=first)) as item:
        like = item.geometry
    with reader.open(ItemFiles(path=second)) as item:
        expected = np.stack(item.rows(0, item.n_rows))
    with reader.open(ItemFiles(path=second), like) as item:
        assert np.allclose(np.stack(item.rows(0, item.n_rows)), expected, atol=1e-3)
    plain = make_reader("volume")
    with plain.open(ItemFiles(path=first)) as item:
        like = item.geometry
    with plain.open(ItemFiles(path=second), like) as item:
        rows = item.rows(0, item.n_rows)
    assert rows[0].dtype == np.int16
    assert np.array_equal(np.stack(rows)[:, 0], values(seed=2))


def test_a_channel_of_another_grid_is_resampled(tmp_path: Path) -> None:
    # A plane a + b x + c y + d z over LPS comes out exactly, wherever it is sampled.
    def plane(affine: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
        k, j, i = np.mgrid[: shape[0], : shape[1], : shape[2]]
        x, y, z, _ = affine @ np.stack([i.ravel(), j.ravel(), k.ravel(), np.ones(i.size)])
        return (3 + 2 * x - y + 0.5 * z).reshape(shape).astype(np.float32)

    like_affine = oblique()
    like_affine[:3, 3] = 0
    first = write_nifti(tmp_path / "a.nii", plane(like_affine, (7, 4, 5)), like_affine)
    wide = np.diag([2.0, 1.5, 2.5, 1])
    wide[:3, 3] = -30
    second = write_nifti(tmp_path / "b.nii", plane(wide, (30, 40, 35)), wide)
    reader = make_reader("volume")
    with reader.open(ItemFiles(path=first)) as item:
        like, expected = item.geometry, np.stack(item.rows(0, item.n_rows))
    with reader.open(ItemFiles(path=second), like) as item:
        assert item.geometry.shape == like.shape
        assert np.allclose(np.stack(item.rows(0, item.n_rows)), expected, atol=1e-3)
    far = wide.copy()
    far[0, 3] = 500
    third = write_nifti(tmp_path / "c.nii", plane(far, (8, 9, 10)), far)
    with reader.open(ItemFiles(path=third), like) as item:
        rows = np.stack(item.rows(0, item.n_rows))
        assert np.allclose(rows, plane(far, (8, 9, 10)).min())


@pytest.mark.parametrize("dtype", ["int16", "float32"])
@pytest.mark.parametrize("degrees", [7, 23, 40])
def test_an_oblique_channel_against_simpleitk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, degrees: float
) -> None:
    """Slice planes coincide: their places are whole numbers but for rounding, the ends too."""
    monkeypatch.setattr("dinocache.readers.sampling._BLOCK", 30)
    rng = np.random.default_rng(int(degrees))
    a, b = np.radians(degrees), np.radians(-17)
    tilt = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    spin = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    sides = np.array([0.9, 1.1, 2.7])
    one, other = np.eye(4), np.eye(4)
    one[:3, :3] = tilt @ np.diag(sides)
    other[:3, :3] = tilt @ spin @ np.diag(sides)
    # The second's corner is near the first's, so that some lie in its outer half voxels.
    other[:3, 3] = one[:3, :3] @ [2.2, 1.7, 0]
    first = write_itk(tmp_path / "a.mha", np.zeros((6, 9, 11), np.int16), one)
    stored = rng.integers(10, 900, (6, 8, 7)).astype(dtype)
    second = write_itk(tmp_path / "b.mha", stored, other)
    reader = make_reader("volume")
    with reader.open(ItemFiles(path=first)) as item:
        like = item.geometry
    with reader.open(ItemFiles(path=second), like) as item:
        rows = np.stack(item.rows(0, item.n_rows))[:, 0]
    image = sitk.Cast(sitk.ReadImage(str(second)), sitk.sitkFloat32)
    grid = sitk.ReadImage(str(first))
    least = float(stored.min())
    by_itk = sitk.Resample(image, grid, sitk.Transform(), sitk.sitkLinear, least)
    marked = sitk.Resample(image, grid, sitk.Transform(), sitk.sitkLinear, -1.0)
    expected = sitk.GetArrayFromImage(by_itk)
    assert np.allclose(rows, expected, atol=2e-3)
    outside = sitk.GetArrayFromImage(marked) == -1
    assert not outside.all(axis=(1, 2)).any()
    assert outside.any()
    # Places in the outer half voxels are met.
    place = np.linalg.inv(other) @ one
    z, y, x = np.mgrid[:6, :9, :11]
    i, j, _, _ = np.moveaxis(place @ np.stack([x, y, z, np.ones_like(x)]).reshape(4, -1), 0, 0)
    outer = ((i < 0) | (i > 6) | (j < 0) | (j > 7)).reshape(x.shape)
    assert (outer & ~outside).any()


def write_bare(path: Path, stored: np.ndarray) -> Path:
    """Write a NRRD that does not say where it lies."""
    sizes = " ".join(str(size) for size in stored.shape[::-1])
    header = (
        f"NRRD0004\ntype: short\ndimension: 3\nsizes: {sizes}\nencoding: raw\nendian: little\n\n"
    )
    path.write_bytes(header.encode() + stored.astype("<i2").tobytes())
    return path


@pytest.mark.parametrize("axis", ["axial", "coronal"])
def test_channels_that_do_not_say_where_they_lie(tmp_path: Path, axis: str) -> None:
    first = write_bare(tmp_path / "a.nrrd", values())
    second = write_bare(tmp_path / "b.nrrd", values() + 1)
    marked = np.zeros((Z, Y, X), np.int16)
    marked[1, 2, 1] = 1
    mask = write_bare(tmp_path / "m.nrrd", marked)
    # As large as the whole, but shifted.
    reader = make_reader("volume", {"crop": "mask", "crop_size": [X, Y, Z], "axis": axis})
    with reader.open(ItemFiles(path=first, mask=mask)) as item:
        like, rows = item.geometry, np.stack(item.rows(0, item.n_rows))
    with reader.open(ItemFiles(path=second), like) as item:
        assert np.array_equal(np.stack(item.rows(0, item.n_rows)), rows + 1)
        assert np.array_equal(item.geometry.to_source, like.to_source)
        assert item.geometry.source_shape == (X, Y, Z)
    # As large as the cut of the first.
    small = make_reader("volume", {"crop": "centre", "crop_size": [2, 3, 3], "axis": axis})
    with small.open(ItemFiles(path=first)) as item:
        like = item.geometry
    cut = write_bare(tmp_path / "c.nrrd", values()[:3, :3, :2])
    message = r"it has \(2, 3, 3\) voxels, the item's first channel \(4, 7, 5\), and neither says"
    with pytest.raises(ItemError, match=message):
        small.open(ItemFiles(path=cut), like)
    placed_one = write_itk(tmp_path / "d.mha", values(), straight())
    with pytest.raises(ItemError, match="only one says where it lies"):
        small.open(ItemFiles(path=placed_one), like)


# ----------------------------------------------------------------------- series


def test_missing_slices(tmp_path: Path) -> None:
    stored = np.random.default_rng(6).integers(0, 99, (9, 5, 4)).astype(np.int16)
    affine = straight((0.5, 0.75, 2.5))
    folder = write_series(tmp_path / "series", stored, affine, skip=(3, 4, 6))
    with pytest.raises(ItemError, match=r"3 slices are missing .* 2.5 mm .* 35.00 and 42.50 mm, "):
        open_volume(folder)
    with open_volume(folder, gaps="keep") as item:
        assert item.n_rows == 6
        assert "evenly spaced" in item.notes[0]


@pytest.mark.parametrize(
    ("one", "message"),
    [
        ({"RescaleType": "US"}, "differ in unit"),
        ({"PhotometricInterpretation": "MONOCHROME1"}, "differ in kind of pixels"),
        ({"PixelSpacing": ["1", "2"]}, "differ in spacing"),
    ],
)
def test_slices_that_differ(tmp_path: Path, one: dict[str, object], message: str) -> None:
    folder = write_series(tmp_path / "series", values(), straight(), RescaleType="HU")
    elements = {**placed(straight(), 2), "RescaleType": "HU", **one}
    write_dicom(folder / "003.dcm", values()[2], **elements)
    with pytest.raises(ItemError, match=message):
        open_volume(folder)


def test_a_mosaic_is_refused(tmp_path: Path) -> None:
    kind = ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]
    path = write_dicom(tmp_path / "a.dcm", values()[0], **placed(straight(), 0), ImageType=kind)
    with pytest.raises(ItemError, match="a mosaic of slices"):
        open_volume(path)


@pytest.mark.parametrize(
    ("units", "notes"),
    [
        ("BQML", ("its values are in Bq/ml, not SUV",)),
        ("CNTS", ("its values are in CNTS, not SUV",)),
        ("GML", ()),
    ],
)
def test_pet_that_is_no_suv_is_noted(tmp_path: Path, units: str, notes: tuple[str, ...]) -> None:
    path = write_series(tmp_path / "s", values(), oblique(), Modality="PT", Units=units)
    with open_volume(path) as item:
        assert item.notes == notes


def test_gantry_tilt_is_noted_and_kept(tmp_path: Path) -> None:
    # Each slice 3 mm on and 3 tan 12 mm to the back.
    affine = straight((0.5, 0.75, 3))
    affine[1, 2] = 3 * np.tan(np.radians(12))
    stored = values()
    folder = write_series(tmp_path / "series", stored, affine)
    with open_volume(folder) as item:
        assert item.notes == ("its slices are sheared by 12.0 degrees (gantry tilt)",)
        assert np.allclose(item.geometry.affine, affine, atol=1e-6)


def test_slopes_of_each_slice(tmp_path: Path) -> None:
    stored = values("uint16", seed=3) % 100
    folder = tmp_path / "series"
    folder.mkdir()
    for k, pixels in enumerate(stored):
        write_dicom(
            folder / f"{k}.dcm", pixels, **placed(straight(), k), RescaleSlope=f"{k + 0.5}",
            RescaleIntercept="0",
        )  # fmt: skip
    rows = read(folder)
    assert rows.dtype == np.float32
    assert np.array_equal(rows[:, 0], stored * (np.arange(Z) + 0.5)[:, None, None])


def test_what_is_refused_of_a_folder(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "series", values(), straight())
    # What lies beside a series without pixels does not matter.
    write_dicom(folder / "structures.dcm", None, SOPClassUID="1.2.840.10008.5.1.4.1.1.481.3")
    (folder / "notes.txt").write_text("hello")
    assert len(read(folder)) == Z
    extra = write_dicom(folder / "x.dcm", values()[0], **placed(straight(), 2))
    with pytest.raises(ItemError, match="1 of its 6 slices lie where another does"):
        open_volume(folder)
    write_dicom(extra, values()[0][:, :3].copy(), **placed(straight(), 9))
    with pytest.raises(ItemError, match=r"differ in size: \(4, 7\) and \(3, 7\)"):
        open_volume(folder)
    write_dicom(extra, values()[0], **placed(straight(), 9), SeriesInstanceUID="1.2.4",
                SeriesDescription="localizer", SeriesNumber=7)  # fmt: skip
    with pytest.raises(ItemError, match=r"2 series \(.*CT 7 localizer: 1 files\); name one"):
        open_volume(folder)
    assert len(read(folder / "002.dcm")) == Z
    turned = placed(
        straight() @ np.array([[0, 0, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]]), 9
    )
    write_dicom(extra, values()[0], **{**turned, "PixelSpacing": ["1", "1"]})
    with pytest.raises(ItemError, match="not lie in parallel"):
        open_volume(folder)
    write_dicom(extra, values()[0], PixelSpacing=["1", "1"])
    with pytest.raises(ItemError, match="where they lie"):
        open_volume(folder)
    shutil.rmtree(folder)
    folder.mkdir()
    with pytest.raises(ItemError, match="a folder without DICOM images"):
        open_volume(folder)


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


ENDS = {
    "empty": lambda path: cut(path, 0),
    "zeros": lambda path: cut(path, 90),
    "meta": lambda path: cut(path, 180),
    "header": lambda path: cut(path, 420),
    "pixels": lambda path: cut(path, path.stat().st_size - 6),
    "rubbish": lambda path: path.write_bytes(b"<html>not found</html>"),
    "link": lambda path: (path.unlink(), path.symlink_to("gone.dcm")),
}


@pytest.mark.parametrize("by_one_file", [False, True])
@pytest.mark.parametrize("suffix", [".dcm", ".IMA", ""])
@pytest.mark.parametrize("end", list(ENDS))
def test_a_damaged_slice_at_an_end_is_named(
    tmp_path: Path, end: str, suffix: str, by_one_file: bool
) -> None:
    folder = write_series(tmp_path / "series", values(), straight())
    for path in list(folder.iterdir()):
        path.rename(path.with_suffix(suffix))
    last = folder / f"001{suffix}"
    ENDS[end](last)
    path = folder / f"003{suffix}" if by_one_file else folder
    if end == "rubbish" and not suffix:
        assert open_volume(path).n_rows == Z - 1  # such as a LICENSE
        return
    with pytest.raises(ItemError, match=rf"^1 of its DICOM files cannot be read: {last.name}: "):
        open_volume(path)


def test_what_may_lie_beside_a_series(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "series", values(), straight())
    for name in ("notes.txt", "LICENSE", "._001.dcm", "preview.png", "index.xml", "Thumbs.db"):
        (folder / name).write_bytes(b"\0\5\x16\7 whatever")
    for name in ("empty.txt", ".hidden", ".keep.dcm"):
        (folder / name).write_bytes(b"")
    for number, uid in enumerate(
        # Structures, a report, a plan, a presentation state, raw data, a directory.
        ("481.3", "88.33", "481.5", "11.1", "66", None)
    ):
        sop = "1.2.840.10008.1.3.10" if uid is None else f"1.2.840.10008.5.1.4.1.1.{uid}"
        write_dicom(folder / f"other{number}.dcm", None, SOPClassUID=sop)
    # A plan that is cut short is no slice either.
    cut(folder / "other2.dcm", 400)
    assert len(read(folder)) == len(read(folder / "004.dcm")) == Z
    # Nor is a damaged slice of another series, where it says so.
    stray = write_dicom(folder / "x.dcm", values()[0], **placed(straight(), 7),
                        SeriesInstanceUID="1.2.4")  # fmt: skip
    cut(stray, stray.stat().st_size - 6)
    assert len(read(folder / "004.dcm")) == Z
    with pytest.raises(ItemError, match=r"1 of its DICOM files cannot be read: x\.dcm: "):
        open_volume(folder)
    # Of what is not DICOM's own nothing is known.
    write_dicom(stray, None, SOPClassUID="1.2.3.4.5")
    with pytest.raises(ItemError, match=r"x\.dcm: holds no pixels \(1\.2\.3\.4\.5\); it was cut"):
        open_volume(folder)


def test_a_series_has_the_window_of_its_first_slice(tmp_path: Path) -> None:
    # Files are named against the order of positions.
    folder = write_series(tmp_path / "series", values(), straight())
    for k, pixels in enumerate(values()):
        write_dicom(folder / f"{Z - k:03d}.dcm", pixels, **placed(straight(), k),
                    WindowCenter=str(100 * (k + 1)), WindowWidth="51")  # fmt: skip
    with open_volume(folder) as item:
        assert item.file_window == (74.5, 124.5)


def test_frames_without_positions(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", values())
    with open_volume(path) as item:
        assert item.geometry.affine is None
        assert item.geometry.source_shape == (X, Y, Z)
        assert np.array_equal(np.stack(item.rows(0, Z))[:, 0], values())
    with pytest.raises(ItemError, match="spacing cannot be changed"):
        open_volume(path, spacing=[1, 1, 1])


def test_doses_stand_behind_one_another(tmp_path: Path) -> None:
    path = write_dicom(
        tmp_path / "a.dcm", values("uint16"), **placed(straight((1, 1, 1)), 0),
        GridFrameOffsetVector=["0", "2", "4", "6", "8"], DoseGridScaling="0.5",
    )  # fmt: skip
    with open_volume(path) as item:
        assert np.allclose(item.geometry.spacing, (2, 1, 1))
        assert np.array_equal(np.stack(item.rows(0, Z))[:, 0], values("uint16") / 2)


# ---------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.mnc", b"CDF\x01", "MINC is not read; convert to NIfTI"),
        ("a.mgz", gzip.compress(b"\0\0\0\1" + bytes(300), mtime=0), "MGH is not read"),
        ("a+orig.HEAD", b"type = string-attribute", "AFNI is not read"),
        ("a.PAR", b"# === DATA", "PAR/REC is not read"),
        ("a.npz", b"PK\x03\x04", "NPZ is not read"),
        ("a.dat", b"\x89HDF\r\n", "HDF5 is not read"),
        ("a.png", b"\x89PNG\r\n", "a picture, not a volume"),
        ("a.dat", b"nothing known", "neither NIfTI, DICOM, NRRD nor MetaImage"),
        ("a.nii", b"", "empty"),
        ("a.nii.gz", gzip.compress(b"short", mtime=0), "neither NIfTI"),
        ("a.nii.gz", b"\x1f\x8b rubbish", "cannot be read"),
    ],
)
def test_other_formats_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ItemError, match=message):
        open_volume(tmp_path / name)


@pytest.mark.parametrize("name", ["../away.raw", "/etc/hostname", "..", "sub/a.raw"])
@pytest.mark.parametrize("ending", ["mhd", "nhdr"])
def test_headers_do_not_reach_out_of_their_folder(tmp_path: Path, name: str, ending: str) -> None:
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    for place in (tmp_path / "away.raw", folder / "sub" / "a.raw"):
        place.write_bytes(values().tobytes())
    path = write_itk(folder / f"a.{ending}", on_file(values()), oblique())
    own = "a.raw"
    path.write_text(path.read_text().replace(own, name))
    with pytest.raises(ItemError, match="outside its folder"):
        open_volume(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("encoding: hex", "encoding 'hex' is not read"),
        ("type: block", "type 'block', which is not read"),
        ("sizes: 4 7", "claims 3 axes of 4 7"),
        ("sizes: 4 7 0", "claims 3 axes of 4 7 0"),
        ("sizes: 4 7 x", "header is damaged"),
        ("space directions: (1,0,0) (2,0,0) (0,0,1)", "singular"),
        ("space directions: (1,0,0) (0,inf,0) (0,0,1)", "not finite"),
        ("byte skip: -7", "passes over -7 bytes"),
        ("data file: LIST", "several files"),
        ("line skip: 99999", "passes over 99999 lines"),
    ],
)
def test_what_is_refused_of_nrrd(tmp_path: Path, line: str, message: str) -> None:
    fields = {
        "type": "short", "dimension": "3", "space": "RAS", "sizes": f"{X} {Y} {Z}",
        "space directions": "(1,0,0) (0,1,0) (0,0,1)", "endian": "little", "encoding": "raw",
    }  # fmt: skip
    name, value = line.split(": ")
    fields[name] = value
    header = "NRRD0004\n" + "".join(f"{key}: {text}\n" for key, text in fields.items()) + "\n"
    (tmp_path / "a.nrrd").write_bytes(header.encode() + values().tobytes())
    with pytest.raises(ItemError, match=message):
        open_volume(tmp_path / "a.nrrd")


def test_a_nrrd_in_ras(tmp_path: Path) -> None:
    header = (
        f"NRRD0004\ntype: short\ndimension: 3\nspace: RAS\nsizes: {X} {Y} {Z}\nendian: big\n"
        "space directions: (1,0,0) (0,2,0) (0,0,3)\nspace origin: (5,6,7)\nencoding: bzip2\n\n"
    )
    import bz2

    path = tmp_path / "a.nrrd"
    path.write_bytes(header.encode() + bz2.compress(values(">i2").tobytes()))
    with open_volume(path) as item:
        assert np.array_equal(np.stack(item.rows(0, Z))[:, 0], values()[:, ::-1, ::-1])
        assert np.allclose(item.geometry.source_affine[:3, 3], [-5, -6, 7])


def test_a_metaimage_bomb_is_refused(tmp_path: Path) -> None:
    path = write_itk(tmp_path / "a.mha", on_file(values("uint16")), oblique(), packed=True)
    content = path.read_bytes()
    at = content.index(b"ElementDataFile = LOCAL\n") + 24
    path.write_bytes(content[:at] + zlib.compress(values("uint16").tobytes() + bytes(1 << 20)))
    with pytest.raises(ItemError, match="go on for more than"):
        read(path)


# ------------------------------------------------------------------- real files


def compare(path: Path, image: "sitk.Image") -> None:
    """Hold rows and corners against SimpleITK's."""
    with open_volume(path) as item:
        rows = np.stack(item.rows(0, item.n_rows))
        geometry = item.geometry
        notes = item.notes
    array = sitk.GetArrayFromImage(image)
    array = array[..., None] if image.GetNumberOfComponentsPerPixel() == 1 else array
    array = array.reshape(-1, *array.shape[-4:])
    z, y, x = geometry.shape
    where = np.stack([*np.mgrid[:z, :y, :x][::-1].reshape(3, -1), np.ones(z * y * x)])
    i, j, k = np.rint((geometry.to_source @ where)[:3]).astype(int)
    theirs = array[:, k, j, i].reshape(len(array), z, y, x, -1)
    theirs = np.moveaxis(theirs, -1, 2).reshape(len(rows), -1, y, x)
    assert np.allclose(rows, theirs, rtol=1e-5, equal_nan=True), path.name
    if any("does not say how it lies" in note for note in notes):
        return
    for corner in np.ndindex(2, 2, 2):
        voxel = np.array([*corner, 1]) * [x - 1, y - 1, z - 1, 1]
        index = [round(float(v)) for v in (geometry.to_source @ voxel)[:3]]
        index += [0] * (image.GetDimension() - 3)
        point = image.TransformIndexToPhysicalPoint(index)[:3]
        assert np.allclose((geometry.affine @ voxel)[:3], point, atol=2e-3), path.name


@pytest.mark.parametrize(
    "folder",
    [
        "volumes/msd-task04-hippocampus",
        "volumes/totalsegmentator",
        "volumes/pyradiomics",
        "volumes/prostate-nrrd",
        "volumes/torchio-head",
        "petct/soft-tissue-sarcoma/nifti",
        "cardiac/acdc",
    ],
)
def test_real_volumes(shared_data: Path, folder: str) -> None:
    endings = (".nii", ".nii.gz", ".nrrd")
    paths = [p for p in sorted((shared_data / folder).rglob("*")) if p.name.endswith(endings)]
    if not paths:
        pytest.skip(f"{folder} is not among the real images")
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    for path in paths[:60]:
        compare(path, sitk.ReadImage(str(path)))


def test_real_series(shared_data: Path) -> None:
    folders = sorted((shared_data / "petct").rglob("image"))
    folders.append(shared_data / "volumes" / "lungmask-dicom" / "tests" / "testdata")
    for folder in folders:
        names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))
        compare(folder, sitk.ReadImage(names))


def test_real_heart_by_the_protocol_of_acdc(shared_data: Path) -> None:
    folder = shared_data / "cardiac" / "acdc" / "training" / "patient001"
    path = folder / "patient001_frame01.nii.gz"
    mask = folder / "patient001_frame01_gt.nii.gz"
    options = {"spacing": [1.5, 1.5, 3.15], "crop": "mask", "crop_size": [128, 128, 32]}
    with open_volume(path, mask=mask, **options) as item:
        assert item.n_rows == 32
        labels = item.mask()
        row = item.rows(16, 17)[0]
    assert row.shape == (1, 128, 128)
    middle = np.argwhere(labels[0] > 0).mean(axis=0)
    assert np.abs(middle - [15.5, 63.5, 63.5]).max() < 1


@pytest.mark.parametrize("folder", ["odd-files/nibabel", "odd-files/pydicom", "odd-files/ffn"])
def test_odd_files_are_read_or_refused_by_name(shared_data: Path, folder: str) -> None:
    read_files = 0
    for path in sorted((shared_data / folder).rglob("*")):
        if not path.is_file() or path.name.startswith("IM0000"):
            continue
        try:
            rows = read(path)
        except ItemError as exc:
            assert str(exc).count("\n") == 0  # noqa: PT017 - the message, whichever it is
        else:
            assert rows.ndim == 4
            read_files += 1
    assert read_files or folder.endswith("ffn")
