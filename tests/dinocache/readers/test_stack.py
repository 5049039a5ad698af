"""The stack reader: HDF5, TIFF stacks, folders of sections."""

import struct
from collections.abc import Callable
from pathlib import Path

import h5py
import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image
from reader_contract import ReaderContract, Sample

from dinocache.errors import ItemError, RequestError
from dinocache.geometry import Geometry
from dinocache.readers import ItemFiles, make_reader
from dinocache.readers.sequence import natural

STACK = np.random.default_rng(0).integers(0, 256, (7, 19, 29)).astype(np.uint8)
DEEP = STACK.astype(np.uint16) * 257
LABELS = (STACK.astype(np.uint64) << np.uint64(40)) + np.uint64(5)


def write_hdf5(path: Path, array: np.ndarray = STACK, **options: object) -> Path:
    with h5py.File(path, "w") as file:
        file.create_dataset("volumes/raw", data=array, **options)
        file.create_dataset("volumes/line", data=np.arange(4))
    return path


def write_pngs(folder: Path, array: np.ndarray = STACK) -> Path:
    folder.mkdir()
    for index, section in enumerate(array):
        (folder / f"section{index + 5}.png").write_bytes(imagecodecs.png_encode(section))
    (folder / "Thumbs.db").write_bytes(b"?")
    (folder / ".hidden.png").write_bytes(b"?")
    return folder


def by_tifffile(array: np.ndarray, **options: object) -> Callable[[Path], object]:
    return lambda path: tifffile.imwrite(path, array, **options)


def by_h5py(array: np.ndarray = STACK, **options: object) -> Callable[[Path], object]:
    return lambda path: write_hdf5(path, array, **options)


def claims_of(path: Path) -> Path:
    """An HDF5 file whose data set claims 10^12 px of which none was written."""
    with h5py.File(path, "w") as file:
        file.create_dataset("raw", (10_000, 10_000, 10_000), "u1", chunks=(1, 1000, 1000))
    return path


FORMATS: dict[str, tuple[str, Callable[[Path], object], np.ndarray]] = {
    "hdf5": ("x.h5", by_h5py(), STACK),
    "hdf5-chunks": ("x.h5", by_h5py(DEEP, chunks=(3, 8, 16)), DEEP),
    "hdf5-gzip": (
        "x.h5",
        by_h5py(STACK.astype(">f4"), chunks=(2, 19, 10), compression="gzip", shuffle=True),
        STACK.astype(np.float32),
    ),
    "hdf5-lzf": (
        "x.hdf",
        by_h5py(STACK.astype("i8"), chunks=(7, 19, 29), compression="lzf", fletcher32=True),
        STACK.astype(np.float32),
    ),
    "tiff": ("x.tif", by_tifffile(DEEP, photometric="minisblack"), DEEP),
    "tiff-imagej": ("x.tif", by_tifffile(STACK, imagej=True, metadata={"axes": "ZYX"}), STACK),
    "tiff-lzw": (
        "x.tif",
        by_tifffile(STACK, compression="lzw", ome=True, metadata={"axes": "ZYX"}),
        STACK,
    ),
    "folder": ("sections", write_pngs, STACK),
}


class TestFormats(ReaderContract):
    reader_name = "stack"

    @pytest.fixture(params=list(FORMATS))
    def sample(self, request: pytest.FixtureRequest, tmp_path: Path) -> Sample:
        name, write, array = FORMATS[request.param]
        write(tmp_path / name)
        claims = claims_of(tmp_path / "claims.h5") if name.endswith("h5") else None
        return Sample(files=ItemFiles(path=tmp_path / name), rows=array[:, None], claims=claims)


def refusal(path: Path, **options: object) -> str:
    with pytest.raises(ItemError) as caught:
        make_reader("stack", options).open(ItemFiles(path=path))
    assert "\n" not in str(caught.value)
    assert str(path.parent) not in str(caught.value)
    return str(caught.value)


def spacing(path: Path, **options: object) -> tuple[float, float, float] | None:
    with make_reader("stack", options).open(ItemFiles(path=path)) as item:
        return item.geometry.spacing


def test_sections_count(tmp_path: Path) -> None:
    with make_reader("stack").open(ItemFiles(path=write_hdf5(tmp_path / "x.h5"))) as item:
        assert item.coords().tolist() == [[i] for i in range(7)]
        assert item.geometry.shape == (7, 19, 29)
        assert item.nbytes == STACK.nbytes
        assert item.geometry.affine is None


def test_a_data_set_is_named_or_the_only_one(tmp_path: Path) -> None:
    path = write_hdf5(tmp_path / "x.h5")
    with h5py.File(path, "a") as file:
        file.create_dataset("volumes/labels/neuron_ids", data=LABELS)
        file["again"] = h5py.SoftLink("/volumes/raw")
        file["circle"] = h5py.SoftLink("/circle")
    message = refusal(path)
    assert message.startswith("2 data sets of three dimensions; name one by the option dataset: ")
    assert "/volumes/raw (7, 19, 29) uint8" in message
    for name in ("/volumes/raw", "volumes/raw", "again"):
        with make_reader("stack", {"dataset": name}).open(ItemFiles(path=path)) as item:
            np.testing.assert_array_equal(item.rows(2, 3)[0][0], STACK[2])
    assert "no data set 'other'; it has" in refusal(path, dataset="other")
    assert "'volumes' is no data set" in refusal(path, dataset="volumes")
    assert "'circle' is a link to itself" in refusal(path, dataset="circle")
    assert "shape (4,)" in refusal(path, dataset="volumes/line")


def test_other_files_and_code_are_out_of_reach(tmp_path: Path) -> None:
    other = write_hdf5(tmp_path / "other.h5")
    np.save(tmp_path / "secret.npy", STACK)
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file["outside"] = h5py.ExternalLink(other.name, "/volumes/raw")
        layout = h5py.VirtualLayout(STACK.shape, STACK.dtype)
        layout[:] = h5py.VirtualSource(other.name, "volumes/raw", STACK.shape)
        file.create_virtual_dataset("virtual", layout)
        file.create_dataset("external", STACK.shape, "u1", external=str(tmp_path / "secret.npy"))
        file.create_dataset("objects", (2, 3, 5), h5py.string_dtype())
        file.create_dataset("compound", (2, 3, 5), np.dtype([("a", "u1"), ("b", "f4")]))
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_chunk((1, 19, 29))
        plist.set_filter(32015, h5py.h5z.FLAG_OPTIONAL, (3,))
        space = h5py.h5s.create_simple(STACK.shape)
        h5py.h5d.create(file.id, b"zstd", h5py.h5t.STD_U8LE, space, plist)
    for name, message in {
        "outside": "'outside' is a link to another file; give that file",
        "virtual": "a virtual data set, made of other files",
        "external": "keeps its values in another file",
        "objects": "numbers were expected",
        "compound": "numbers were expected",
        "zstd": "is compressed by filter 32015 of HDF5, which is not read",
    }.items():
        assert message in refusal(path, dataset=name), name


def test_what_was_never_written_is_no_image(tmp_path: Path) -> None:
    path = claims_of(tmp_path / "x.h5")
    assert "0 of the 1000000 chunks of /raw were written" in refusal(path)
    with h5py.File(path, "w") as file:
        file.create_dataset("raw", (100, 1000, 1000), "u1")
        part = file.create_dataset("part", STACK.shape, "u1", chunks=(1, 19, 29))
        part[:3] = STACK[:3]
    assert "/raw claims 100000000 bytes, 0 are stored" in refusal(path, dataset="raw")
    assert "3 of the 7 chunks of /part were written" in refusal(path, dataset="part")
    # Labels are sparse: what was not written is background.
    files = ItemFiles(path=write_hdf5(tmp_path / "y.h5"), mask=path)
    with make_reader("stack", {"mask_dataset": "part"}).open(files) as item:
        expected = np.where(np.arange(7)[:, None, None] < 3, STACK, 0)
        np.testing.assert_array_equal(item.mask()[0], expected)


@pytest.mark.parametrize("size", [0, 3, 1 << 20, (1 << 32) - 1])
def test_a_chunk_that_lies_about_its_size(tmp_path: Path, size: int) -> None:
    """HDF5's own Fletcher32 ends the process on a chunk of less than 4 bytes."""
    path = write_hdf5(tmp_path / "x.h5", chunks=(1, 19, 29), fletcher32=True)
    content = bytearray(path.read_bytes())
    key = struct.pack("<II4Q", 19 * 29 + 4, 0, 3, 0, 0, 0)  # of the B-tree: fourth section
    place = content.index(key)
    content[place : place + 4] = struct.pack("<I", size)
    path.write_bytes(content)
    message = refusal(path)
    assert "cannot hold 551" in message or "outside of the file" in message


@pytest.mark.parametrize("options", [{"compression": "gzip"}, {"fletcher32": True}], ids=str)
def test_damaged_chunks_are_refused(tmp_path: Path, options: dict[str, object]) -> None:
    path = write_hdf5(tmp_path / "x.h5", chunks=(2, 19, 29), **options)
    with h5py.File(path) as file:
        chunk = file["volumes/raw"].id.get_chunk_info(1)
    content = bytearray(path.read_bytes())
    content[chunk.byte_offset + chunk.size // 2] ^= 1
    path.write_bytes(content)
    with make_reader("stack").open(ItemFiles(path=path)) as item:
        np.testing.assert_array_equal(np.stack(item.rows(0, 2))[:, 0], STACK[:2])
        with pytest.raises(ItemError, match=r"cannot be decoded|checksum of a chunk is wrong"):
            item.rows(2, 3)


def test_user_blocks_and_compact_layouts(tmp_path: Path) -> None:
    path = tmp_path / "x.mat"  # as MATLAB writes them
    with h5py.File(path, "w", userblock_size=512) as file:
        file.create_dataset("chunks", data=STACK, chunks=(3, 8, 9), compression="gzip")
        file.create_dataset("piece", data=DEEP.astype(">u2"))
        space = h5py.h5s.create_simple((2, 3, 5))
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_layout(h5py.h5d.COMPACT)
        h5py.h5d.create(file.id, b"compact", h5py.h5t.STD_U8LE, space, plist)
    for name, expected in {"chunks": STACK, "piece": DEEP}.items():
        with make_reader("stack", {"dataset": name}).open(ItemFiles(path=path)) as item:
            np.testing.assert_array_equal(np.stack(item.rows(0, 7))[:, 0], expected)
    assert "lies within its header" in refusal(path, dataset="compact")


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        pytest.param({"resolution": (40.0, 4.0, 5.0)}, (40e-6, 4e-6, 5e-6), id="cremi"),
        pytest.param({"voxel_size": (40, 4, 5), "units": "nm"}, (40e-6, 4e-6, 5e-6), id="nm"),
        pytest.param({"element_size_um": (0.04, 0.004, 0.005)}, (40e-6, 4e-6, 5e-6), id="um"),
        pytest.param({"spacing": (2.0, 1.0, 3.0), "unit": "mm"}, (2, 1, 3), id="spacing-unit"),
        pytest.param({"spacing": (2.0, 1.0, 3.0)}, None, id="spacing-of-no-unit"),
        pytest.param({"resolution": (40.0, 0.0, 5.0)}, None, id="zero"),
        pytest.param({"resolution": "4x4x40"}, None, id="text"),
        pytest.param({}, None, id="none"),
    ],
)
def test_spacing_of_hdf5(
    tmp_path: Path, attributes: dict[str, object], expected: tuple[float, ...] | None
) -> None:
    path = write_hdf5(tmp_path / "x.h5")
    with h5py.File(path, "a") as file:
        file["volumes/raw"].attrs.update(attributes)
    found = spacing(path)
    assert found == (None if expected is None else pytest.approx(expected))
    assert spacing(path, spacing_nm=(50, 6, 7)) == pytest.approx((50e-6, 6e-6, 7e-6))


def test_spacing_of_tiffs(tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    how = {"axes": "ZYX", "spacing": 0.05, "unit": "um"}
    tifffile.imwrite(path, STACK, imagej=True, metadata=how, resolution=(250, 200))
    assert spacing(path) == pytest.approx((50e-6, 5e-6, 4e-6))
    ome = {"axes": "ZYX", "PhysicalSizeX": 4, "PhysicalSizeY": 5, "PhysicalSizeZ": 50}
    ome |= {f"PhysicalSize{axis}Unit": "nm" for axis in "XYZ"}
    tifffile.imwrite(path, STACK, ome=True, metadata=ome)
    assert spacing(path) == pytest.approx((50e-6, 5e-6, 4e-6))
    tifffile.imwrite(path, STACK, photometric="minisblack")
    assert spacing(path) is None


def test_other_axes_of_tiffs_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    two = np.stack([STACK, STACK])
    tifffile.imwrite(path, two, imagej=True, metadata={"axes": "TZYX"})
    assert refusal(path) == "an ImageJ stack of 2 frames; one is read"
    tifffile.imwrite(path, two, ome=True, metadata={"axes": "CZYX"})
    assert refusal(path) == "an OME TIFF of SizeC 2; 1 is read"
    with tifffile.TiffWriter(path) as writer:
        writer.write(STACK[0])
        writer.write(STACK[1, :-1])
    assert "its pages differ in size or type" in refusal(path)


def test_channels_in_planes_are_no_sections(tmp_path: Path) -> None:
    path = tmp_path / "x.ome.tif"
    planes = np.stack([STACK[:4], STACK[1:5], STACK[2:6]])
    tifffile.imwrite(path, planes, photometric="minisblack", metadata={"axes": "CZYX"})
    assert refusal(path) == "an OME TIFF of SizeC 3; 1 is read"
    colours = np.moveaxis(planes, 0, -1)
    tifffile.imwrite(path, colours, photometric="rgb", metadata={"axes": "ZYXS"})
    with make_reader("stack").open(ItemFiles(path=path)) as item:
        assert np.array_equal(np.stack(item.rows(0, item.n_rows)), np.moveaxis(colours, -1, 1))
    tifffile.imwrite(path, STACK, metadata={"axes": "ZYX"})
    path.write_bytes(path.read_bytes().replace(b'SizeZ="7"', b'SizeZ="5"'))
    assert refusal(path) == "an OME TIFF of SizeZ 5 in 7 pages; one each is read"


@pytest.mark.parametrize("options", [{}, {"chunks": (2, 8, 29), "compression": "gzip"}])
def test_truth_values_are_bytes(tmp_path: Path, options: dict[str, object]) -> None:
    truth = STACK > 99
    path = write_hdf5(tmp_path / "x.h5", truth, **options)
    reader = make_reader("stack", {"mask_dataset": "volumes/raw"})
    with reader.open(ItemFiles(path=path)) as item:
        rows = np.stack(item.rows(0, item.n_rows))[:, 0]
        found = item.mask()
        assert item.value_range == (0, 1)
    assert rows.dtype == found.dtype == np.uint8
    np.testing.assert_array_equal(rows, truth)
    np.testing.assert_array_equal(found[0], truth)


def test_numbers_with_names_are_numbers(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        kind = h5py.enum_dtype({"cell": 1, "membrane": 2}, basetype="i2")
        file.create_dataset("raw", data=STACK.astype("i2") % 3, dtype=kind)
    with make_reader("stack").open(ItemFiles(path=path)) as item:
        np.testing.assert_array_equal(np.stack(item.rows(0, 7))[:, 0], STACK.astype("i2") % 3)


def test_large_imagej_files_have_one_directory(tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, STACK, imagej=True, metadata={"axes": "ZYX"})
    with tifffile.TiffFile(path) as file:
        following = file.pages[0].offset + 2 + 12 * len(file.pages[0].tags)
    content = bytearray(path.read_bytes())
    content[following : following + 4] = bytes(4)
    path.write_bytes(content)
    with make_reader("stack").open(ItemFiles(path=path)) as item:
        np.testing.assert_array_equal(np.stack(item.rows(0, item.n_rows))[:, 0], STACK)
    path.write_bytes(bytes(content).replace(b"images=7", b"images=9"))
    assert "9 images follow; the file ends before" in refusal(path)


def test_masks_of_every_sort(tmp_path: Path) -> None:
    raw = write_hdf5(tmp_path / "x.h5")
    with h5py.File(raw, "a") as file:
        file.create_dataset("volumes/labels/neuron_ids", data=LABELS, chunks=(2, 19, 29))
    tifffile.imwrite(tmp_path / "m.tif", STACK % 3, photometric="minisblack")
    write_pngs(tmp_path / "m", DEEP)
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file.create_dataset("ids", data=STACK.astype("i4"))
        file.create_dataset("probabilities", data=STACK.astype("f4"))
        file.create_dataset("small", data=STACK[:, :-1])
    options = {"dataset": "volumes/raw"}
    for mask, dataset, expected in [
        (None, "/volumes/labels/neuron_ids", LABELS),
        (tmp_path / "m.tif", None, STACK % 3),
        (tmp_path / "m", None, DEEP),
        (tmp_path / "m.h5", "ids", STACK.astype("i4")),
    ]:
        reader = make_reader("stack", options | {"mask_dataset": dataset})
        with reader.open(ItemFiles(path=raw, mask=mask)) as item:
            found = item.mask()
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected[None])
    for mask, dataset, message in [
        (None, None, "it has no mask"),
        (tmp_path / "m.h5", "probabilities", "its mask: a mask holds whole numbers"),
        (tmp_path / "m.h5", "small", r"its mask: \(7, 18, 29\) voxels, the stack has"),
        (tmp_path / "gone.h5", None, "its mask: the file is missing"),
        (tmp_path / "m.tif", "ids", "its mask: no HDF5 file, so there is no data set 'ids'"),
    ]:
        reader = make_reader("stack", options | {"mask_dataset": dataset})
        with (
            reader.open(ItemFiles(path=raw, mask=mask)) as item,
            pytest.raises(ItemError, match=message),
        ):
            item.mask()


def test_folders(tmp_path: Path) -> None:
    folder = write_pngs(tmp_path / "x", np.concatenate([STACK, 255 - STACK]))
    with make_reader("stack").open(ItemFiles(path=folder)) as item:  # 5 to 18: 10 behind 9
        np.testing.assert_array_equal(np.stack(item.rows(0, 7))[:, 0], STACK)
        assert item.notes == ()
    (folder / "section7.png").unlink()
    with make_reader("stack").open(ItemFiles(path=folder)) as item:
        assert item.n_rows == 13
        assert item.notes == ("of the numbers 5 to 18 1 are missing",)
    Image.fromarray(STACK[0, :-1]).save(folder / "section7.png")
    assert refusal(folder) == (
        "section7.png is 1 x 18 x 29 uint8, section5.png 1 x 19 x 29 uint8; all must be the same"
    )
    (folder / "section7.png").write_bytes(b"?")
    assert "section7.png: not an image" in refusal(folder)
    (tmp_path / "empty").mkdir()
    assert "a folder without a picture" in refusal(tmp_path / "empty")


def test_pictures_of_several_kinds_are_refused(tmp_path: Path) -> None:
    folder = write_pngs(tmp_path / "x")
    tifffile.imwrite(folder / "section6.TIF", STACK[1])
    assert refusal(folder) == (
        "a folder of pictures of several kinds, PNG (section5.png) and TIFF (section6.TIF); keep "
        "one kind in it"
    )
    with pytest.raises(ItemError, match="of several kinds"):
        make_reader("video").open(ItemFiles(path=folder))
    (folder / "section6.TIF").unlink()
    same = tmp_path / "y"
    same.mkdir()
    for index, name in enumerate(("s0.jpg", "s1.JPEG", "s2.jpeg")):
        (same / name).write_bytes(imagecodecs.jpeg8_encode(STACK[index]))
    for path, count in ((folder, 7), (same, 3)):
        with make_reader("stack").open(ItemFiles(path=path)) as item:
            assert item.n_rows == count


def test_names_that_are_no_text_stay_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("a\nb", data=STACK)
        file.create_dataset("c", data=STACK)
    assert "/a?b" in refusal(path)


def test_natural_order() -> None:
    names = ["f10", "f9", "f2b", "f2a10", "f2a9", "f", "10", "2", "g1"]
    expected = ["2", "10", "f", "f2a9", "f2a10", "f2b", "f9", "f10", "g1"]
    assert sorted(names, key=natural) == expected


def test_refusals(tmp_path: Path) -> None:
    (tmp_path / "x.h5.gz").write_bytes(b"\x1f\x8b\x08\0")
    (tmp_path / "x.txt").write_bytes(b"hello")
    assert refusal(tmp_path / "x.h5.gz") == "it is compressed by gzip; unpack it first"
    assert "an HDF5 file, a TIFF, or a folder" in refusal(tmp_path / "x.txt")
    assert refusal(tmp_path / "gone.h5") == "the file is missing"
    path = write_hdf5(tmp_path / "x.h5")
    with pytest.raises(ItemError, match="that of the first channel"):
        make_reader("stack").open(ItemFiles(path=path), Geometry(shape=(7, 19, 30)))
    with pytest.raises(
        RequestError, match="each of the three values of spacing_nm must be above 0"
    ):
        make_reader("stack", {"spacing_nm": (1, 0, 2)})


def test_real_stacks(shared_data: Path) -> None:
    gala = shared_data / "em/gala/tests/example-data"
    for path in sorted(gala.glob("*.h5")):
        with h5py.File(path) as file:
            expected = file["stack"][...]
        with make_reader("stack").open(ItemFiles(path=path, mask=path)) as item:
            rows = np.stack(item.rows(0, item.n_rows))[:, 0]
            np.testing.assert_array_equal(rows, expected)
            if expected.dtype.kind in "iu":
                np.testing.assert_array_equal(item.mask()[0], expected)
    for path in sorted(gala.rglob("*.tif")):
        with make_reader("stack").open(ItemFiles(path=path)) as item:
            rows = np.stack(item.rows(0, item.n_rows))[:, 0]
        np.testing.assert_array_equal(rows, tifffile.imread(path))
    membrane = shared_data / "em/isbi2012/data/membrane/train"
    files = ItemFiles(path=membrane / "image", mask=membrane / "label")
    with make_reader("stack", {"spacing_nm": (50, 4, 4)}).open(files) as item:
        assert item.n_rows == 20
        assert item.geometry.spacing == pytest.approx((50e-6, 4e-6, 4e-6))
        for index in (0, 2, 10, 19):
            with Image.open(membrane / f"image/{index}.png") as image:
                np.testing.assert_array_equal(item.rows(index, index + 1)[0][0], image)
        assert item.mask().shape == (1, 20, 512, 512)
    path = shared_data / "em/flyem-fib/training_sample2/groundtruth.h5.gz"
    with pytest.raises(ItemError, match="unpack it first"):
        make_reader("stack").open(ItemFiles(path=path))
