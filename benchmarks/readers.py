"""Rows a second of each reader, beside the bare decoder that people would use; and peak memory.

Everything is made here, and read from the page cache, on one core. Reader and decoder run in turn,
A B A B, each from opening the file to the last row, and their ratio is taken pair by pair. With
`--memory`, each figure is the peak resident memory of a process of its own above what it had when
the libraries were loaded. Words choose among the cases: `slide` runs those named so.

    python benchmarks/readers.py [image] [volume] [slide] [video] [stack] [DICOM]
    python benchmarks/readers.py --memory [image] [volume] [slide] [video] [stack]
"""

import gzip
import importlib
import io
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

if hasattr(os, "sched_setaffinity"):  # before any library counts the cores
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

import numpy as np
from PIL import Image

from dinocache.readers import ItemFiles, make_reader

PAIRS = 5
BATCH = 32
MAX_SECONDS = 60
SLIDE_PX = 100_000


@dataclass(frozen=True, kw_only=True)
class Case:
    """A format of a reader.

    Attributes:
        name: As the table shows it.
        reader: Of `READERS`.
        write: Makes the item in a folder and gives its path.
        bare: Decodes the same rows from that path; gets the coordinates of the reader's rows.
        options: Of the reader.
        repeats: How often the item is read in one measurement.
        wanted: Least ratio, where there is one.
    """

    name: str
    reader: str
    write: Callable[[Path], Path]
    bare: Callable[[Path, np.ndarray], object]
    options: Mapping[str, object] = field(default_factory=dict)
    repeats: int = 1
    wanted: float | None = None


def look(rows: Iterable[np.ndarray]) -> None:
    """Touch every value: a memory map of a file has read nothing yet."""
    for row in rows:
        row.max()


def generator() -> np.random.Generator:
    return np.random.default_rng(7)


def texture(height: int, width: int) -> np.ndarray:
    """Grey blobs of several sizes with a little noise: it compresses about as pictures do."""
    coarse = generator().integers(0, 200, (height // 16 + 2, width // 16 + 2)).astype(np.uint8)
    smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    noise = generator().integers(0, 12, (height, width))
    return np.clip(np.asarray(smooth, np.int16) + noise, 0, 255).astype(np.uint8)


def stained(height: int, width: int) -> np.ndarray:
    """A pink and violet texture, (height, width, 3)."""
    grey = texture(height, width).astype(np.int16)
    colours = [200 - grey // 4, 60 + grey // 2, 150 + grey // 8]
    return np.stack(colours, axis=-1).clip(0, 255).astype(np.uint8)


def write_png(folder: Path) -> Path:
    path = folder / "grey.png"
    Image.fromarray(texture(1024, 1024)).save(path)
    return path


def write_picture(name: str, **options: object) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = folder / name
        Image.fromarray(stained(1440, 1440)).save(path, **options)
        return path

    return write


def bare_picture(path: Path, _: np.ndarray) -> None:
    with Image.open(path) as image:
        look([np.asarray(image)])


def ct(slices: int) -> np.ndarray:
    """Hounsfield units with noise, (512, 512, slices) int16, in NIfTI's order."""
    body = texture(512, 512).T.astype(np.int16) * 6 - 1000
    noise = generator().integers(-15, 15, (512, 512, 8), np.int16)
    volume = np.empty((512, 512, slices), np.int16, order="F")
    for index in range(slices):
        volume[..., index] = np.roll(body, 3 * index, axis=0) + noise[..., index % 8]
    return volume


def write_nifti(folder: Path, slices: int = 256) -> Path:
    import nibabel

    path = folder / "volume.nii"
    nibabel.Nifti1Image(ct(slices), np.diag([-0.7, -0.7, 1.5, 1])).to_filename(path)
    return path


def write_gzip(folder: Path, slices: int = 256) -> Path:
    plain = write_nifti(folder, slices)
    path = folder / "volume.nii.gz"
    path.write_bytes(gzip.compress(plain.read_bytes(), compresslevel=3))
    plain.unlink()
    return path


def bare_nifti(*, mapped: bool = True) -> Callable[[Path, np.ndarray], None]:
    def read(path: Path, _: np.ndarray) -> None:
        import nibabel

        volume = np.asarray(nibabel.load(path, mmap=mapped).dataobj)
        look(volume[..., index] for index in range(volume.shape[2]))

    return read


def write_sitk(name: str) -> Callable[[Path], Path]:
    """The same volume by SimpleITK, compressed."""

    def write(folder: Path) -> Path:
        import SimpleITK

        image = SimpleITK.GetImageFromArray(ct(256).transpose(2, 1, 0))
        image.SetSpacing((0.7, 0.7, 1.5))
        SimpleITK.WriteImage(image, str(folder / name), useCompression=True, compressionLevel=3)
        return folder / name

    return write


def bare_sitk(path: Path, _: np.ndarray) -> None:
    import SimpleITK

    source = str(path)
    names = SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(source) if path.is_dir() else source
    image = SimpleITK.ReadImage(names)  # named: a view does not keep it alive
    look(SimpleITK.GetArrayViewFromImage(image))


def write_dicom_image(folder: Path) -> Path:
    return write_dicom(folder, 1) / "000.dcm"


def write_multiframe(folder: Path) -> Path:
    """All slices in one file, as ultrasound and X-ray angiography have their frames."""
    import pydicom

    series = write_dicom(folder, 64)
    slices = [pydicom.dcmread(path) for path in sorted(series.iterdir())]
    file = slices[0]
    file.NumberOfFrames = len(slices)
    file.PixelData = b"".join(one.PixelData for one in slices)
    path = folder / "frames.dcm"
    file.save_as(path)
    return path


def write_dicom(folder: Path, slices: int = 64) -> Path:
    import pydicom
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

    series = folder / "series"
    series.mkdir()
    volume = ct(slices)
    for index in range(slices):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = f"1.2.3.4.{index + 1}"
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        file = Dataset()
        file.file_meta = meta
        file.SOPClassUID = CTImageStorage
        file.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
        file.StudyInstanceUID, file.SeriesInstanceUID = "1.2.3.1", "1.2.3.2"
        file.FrameOfReferenceUID = "1.2.3.3"
        file.Modality = "CT"
        file.InstanceNumber = index + 1
        file.ImagePositionPatient = [0, 0, 1.5 * index]
        file.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        file.PixelSpacing, file.SliceThickness = [0.7, 0.7], 1.5
        file.Rows, file.Columns = 512, 512
        file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
        file.BitsAllocated, file.BitsStored, file.HighBit = 16, 16, 15
        file.PixelRepresentation = 1
        file.RescaleSlope, file.RescaleIntercept = 1, 0
        file.PixelData = np.ascontiguousarray(volume[..., index].T).tobytes()
        pydicom.dcmwrite(series / f"{index:03d}.dcm", file, enforce_file_format=True)
    return series


def bare_dicom(path: Path, _: np.ndarray) -> None:
    import pydicom

    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        pixels = pydicom.dcmread(file).pixel_array
        look(pixels if pixels.ndim == 3 else [pixels])


def write_slide(folder: Path, compression: str = "jpeg", side: int = 8192) -> Path:
    """A pyramid of tiles of 256 px at 0.25 um/px, all of it tissue."""
    import tifffile

    path = folder / f"slide-{compression}.tif"
    image = stained(side, side)
    with tifffile.TiffWriter(path) as file:
        for level in range(5):
            file.write(
                image,
                tile=(256, 256),
                photometric="rgb",
                compression=compression,
                resolution=(40_000 / 2**level,) * 2,
                resolutionunit="CENTIMETER",
                subfiletype=int(level > 0),
                metadata=None,
            )
            image = np.asarray(Image.fromarray(image).reduce(2))
    return path


def bare_openslide(level: int, side: int) -> Callable[[Path, np.ndarray], None]:
    def read(path: Path, coords: np.ndarray) -> None:
        import openslide

        with openslide.OpenSlide(path) as slide:
            for x, y in coords.astype(int).tolist():
                region = slide.read_region((x, y), level, (side, side))
                look([np.asarray(region.convert("RGB"))])

    return read


def write_video(name: str, codec: str, pixels: str = "yuv420p") -> Callable[[Path], Path]:
    return lambda folder: _encode(folder / name, codec, pixels)


def _encode(path: Path, codec: str, pixels: str) -> Path:
    """Twelve seconds of 1280 x 720 px, 25 frames a second, with a sensor's noise."""
    import av

    scene = stained(800, 1700) // 2 + 40
    noise = generator().integers(0, 8, (2 * 720, 2 * 1280, 3), np.uint8)
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 1280, 720, pixels
        for index in range(300):
            view = scene[index % 80 : index % 80 + 720, index : index + 1280]
            y, x = (37 * index) % 720, (91 * index) % 1280
            seen = view + noise[y : y + 720, x : x + 1280]
            frame = av.VideoFrame.from_ndarray(seen, format="rgb24")
            for packet in stream.encode(frame):
                file.mux(packet)
        for packet in stream.encode():
            file.mux(packet)
    return path


def bare_video(every: int) -> Callable[[Path, np.ndarray], None]:
    def read(path: Path, _: np.ndarray) -> None:
        import av

        with av.open(str(path)) as file:
            for index, frame in enumerate(file.decode(video=0)):
                if index % every == 0:
                    look([frame.to_ndarray(format="rgb24")])

    return read


def em() -> np.ndarray:
    """A stack of micrographs, (96, 1024, 1024) uint8."""
    scene = texture(1200, 1024)
    return np.stack([scene[index : index + 1024] for index in range(96)])


def write_hdf5(folder: Path) -> Path:
    import h5py

    path = folder / "stack.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("raw", data=em(), chunks=(16, 256, 256), compression="gzip")
    return path


def bare_hdf5(path: Path, _: np.ndarray) -> None:
    import h5py

    with h5py.File(path) as file:
        raw = file["raw"]
        for start in range(0, len(raw), BATCH):
            look(raw[start : start + BATCH])


def write_stack(folder: Path) -> Path:
    import tifffile

    path = folder / "stack.tif"
    tifffile.imwrite(path, em(), compression="zlib", photometric="minisblack", metadata=None)
    return path


def write_sequence(folder: Path) -> Path:
    """The sections as PNG files."""
    pictures = folder / "sections"
    pictures.mkdir()
    for index, section in enumerate(em()):
        Image.fromarray(section).save(pictures / f"{index}.png", compress_level=3)
    return pictures


def bare_sequence(path: Path, nothing: np.ndarray) -> None:
    for file in path.iterdir():
        bare_picture(file, nothing)


def bare_stack(path: Path, _: np.ndarray) -> None:
    import tifffile

    with tifffile.TiffFile(path) as file:
        look(page.asarray() for page in file.pages)


def cases() -> list[Case]:
    whole = {"tissue": "none"}
    pictures = [
        Case(name="image, PNG 1024 grey", reader="image", write=write_png, bare=bare_picture,
             repeats=20, wanted=0.85),
        *(
            Case(name=f"image, {name} 1440 RGB", reader="image", write=write_picture(file, **how),
                 bare=bare_picture, repeats=10, wanted=0.85)
            for name, file, how in (
                ("JPEG", "x.jpg", {"quality": 90}),
                ("TIFF deflate", "x.tif", {"compression": "tiff_adobe_deflate"}),
                ("TIFF LZW", "x.tif", {"compression": "tiff_lzw"}),
                ("BMP", "x.bmp", {}),
                ("WebP", "x.webp", {"quality": 90}),
            )
        ),
        Case(name="image, DICOM 512 16-bit, beside pydicom", reader="image",
             write=write_dicom_image, bare=bare_dicom, repeats=20),
    ]  # fmt: skip
    slides = [
        Case(name="slide, tiles of 224 px as stored", reader="slide", write=write_slide,
             bare=bare_openslide(1, 224), options={"tile_mpp": 0.5} | whole, repeats=2, wanted=2),
        Case(name="slide, of 224 px at a finer level", reader="slide", write=write_slide,
             bare=bare_openslide(0, 403), options={"tile_mpp": 0.45} | whole, wanted=2),
        Case(name="slide, of 224 px, half overlapping", reader="slide", write=write_slide,
             bare=bare_openslide(1, 224), options={"overlap_px": 112} | whole, wanted=2),
        Case(name="slide, of 224 px, deflate", reader="slide",
             write=lambda folder: write_slide(folder, "zlib"),
             bare=bare_openslide(1, 224), options=whole, wanted=2),
    ]  # fmt: skip
    volumes = [
        Case(name="volume, .nii.gz", reader="volume", write=write_gzip, bare=bare_nifti(),
             wanted=1.5),
        Case(name="volume, .nii, beside nibabel's map", reader="volume", write=write_nifti,
             bare=bare_nifti()),
        Case(name="volume, .nii, beside nibabel's read", reader="volume", write=write_nifti,
             bare=bare_nifti(mapped=False), wanted=0.85),
        Case(name="volume, NRRD gzip, beside SimpleITK", reader="volume",
             write=write_sitk("x.nrrd"), bare=bare_sitk, wanted=0.85),
        Case(name="volume, MHA zlib, beside SimpleITK", reader="volume",
             write=write_sitk("x.mha"), bare=bare_sitk, wanted=0.85),
        Case(name="volume, DICOM series, beside SimpleITK", reader="volume", write=write_dicom,
             bare=bare_sitk, wanted=0.85),
        Case(name="volume, DICOM series, beside pydicom", reader="volume", write=write_dicom,
             bare=bare_dicom),
        Case(name="volume, DICOM multi-frame, beside pydicom", reader="volume",
             write=write_multiframe, bare=bare_dicom),
    ]  # fmt: skip
    mp4, avi = write_video("x.mp4", "libx264"), write_video("x.avi", "mjpeg", "yuvj420p")
    mkv = write_video("x.mkv", "libx264")
    videos = [
        Case(name="video, MP4 H.264 720p, one frame a second", reader="video", write=mp4,
             bare=bare_video(25), options={"fps": 1}, wanted=0.85),
        Case(name="video, AVI Motion JPEG 720p, one frame a second", reader="video", write=avi,
             bare=bare_video(25), options={"fps": 1}, wanted=0.85),
        Case(name="video, MKV H.264 720p, one frame a second", reader="video", write=mkv,
             bare=bare_video(25), options={"fps": 1}, wanted=0.85),
        Case(name="video, MP4 H.264 720p, every frame, exact colours", reader="video", write=mp4,
             bare=bare_video(1)),
        Case(name="video, MP4 H.264 720p, every frame, fast colours", reader="video", write=mp4,
             bare=bare_video(1), options={"colours": "fast"}, wanted=0.85),
    ]  # fmt: skip
    stacks = [
        Case(name="stack, HDF5 gzip", reader="stack", write=write_hdf5, bare=bare_hdf5,
             wanted=0.85),
        Case(name="stack, TIFF deflate", reader="stack", write=write_stack, bare=bare_stack,
             wanted=0.85),
        Case(name="stack, folder of PNG", reader="stack", write=write_sequence,
             bare=bare_sequence, wanted=0.85),
    ]  # fmt: skip
    return [*pictures, *volumes, *slides, *videos, *stacks]


def read_all(case: Case, path: Path) -> tuple[int, np.ndarray]:
    """Open an item, decode all rows in batches; give their number and coordinates."""
    reader = make_reader(case.reader, case.options)
    with reader.open(ItemFiles(path=path)) as item:
        for start in range(0, item.n_rows, BATCH):
            look(item.rows(start, min(start + BATCH, item.n_rows)))
        return item.n_rows, item.coords()


def seconds(work: Callable[[], object], repeats: int) -> float:
    began = time.perf_counter()
    for _ in range(repeats):
        work()
    return (time.perf_counter() - began) / repeats


def compare(case: Case) -> str:
    """Measure a case and give its line of the table."""
    with tempfile.TemporaryDirectory() as scratch:
        path = case.write(Path(scratch))
        n_rows, coords = read_all(case, path)
        case.bare(path, coords)
        pairs: list[tuple[float, float]] = []
        began = time.perf_counter()
        while len(pairs) < PAIRS and time.perf_counter() - began < MAX_SECONDS:
            ours = seconds(lambda: read_all(case, path), case.repeats)
            pairs.append((ours, seconds(lambda: case.bare(path, coords), case.repeats)))
    mine, theirs = (statistics.median(times) for times in zip(*pairs, strict=True))
    ratio = statistics.median(bare / ours for ours, bare in pairs)
    wanted = "" if case.wanted is None else f"{case.wanted:g}"
    return (
        f"| {case.name} | {n_rows} | {n_rows / mine:.1f} | {n_rows / theirs:.1f} | {ratio:.2f} "
        f"| {wanted} |"
    )


def encoded(image: np.ndarray) -> bytes:
    """A JPEG stream in YCbCr 4:2:0, as slides have."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=80, subsampling="4:2:0")
    return stream.getvalue()


def write_large_slide(folder: Path) -> Path:
    """A pyramid of 100,000 px squared; its tissue, an ellipse, covers a sixth of it.

    The same few compressed tiles are written again and again.
    """
    import tifffile

    path = folder / "large.tif"
    glass = encoded(np.full((256, 256, 3), 243, np.uint8))
    scene = stained(512, 512)
    tissue = [encoded(scene[y:, x:][:256, :256]) for y in (0, 90, 200) for x in (0, 130, 256)]

    def tiles(side: int) -> Iterator[bytes]:
        across = math.ceil(side / 256)
        for line in range(across):
            for column in range(across):
                x, y = (256 * (at + 0.5) / side - 0.5 for at in (column, line))
                inside = (x / 0.36) ** 2 + (y / 0.15) ** 2 < 1
                yield tissue[(7 * line + column) % len(tissue)] if inside else glass

    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for level, side in enumerate(math.ceil(SLIDE_PX / 4**power) for power in range(5)):
            file.write(
                tiles(side),
                shape=(side, side, 3),
                dtype=np.uint8,
                tile=(256, 256),
                photometric="ycbcr",
                subsampling=(2, 2),
                compression="jpeg",
                resolution=(40_000 / 4**level,) * 2,
                resolutionunit="CENTIMETER",
                subfiletype=int(level > 0),
                metadata=None,
            )
    return path


def memory_cases() -> list[tuple[Case, float | None]]:
    """Cases with their limits, MB; every format is among them."""
    volume = Case(
        name="volume, 512 x 512 x 600 .nii.gz",
        reader="volume",
        write=lambda folder: write_gzip(folder, 600),
        bare=bare_nifti(),
    )
    slide = Case(
        name="slide, 100,000 px squared",
        reader="slide",
        write=write_large_slide,
        bare=bare_openslide(0, 448),
    )
    limited = [(volume, 1.6 * 512 * 512 * 600 * 2 / 1e6), (slide, 1000.0)]
    # One of each format: cases that differ in the decoder beside them are the same here.
    formats = {case.name.partition(", beside")[0]: case for case in cases()}
    return [*limited, *((case, None) for case in formats.values())]


def resident_mb() -> tuple[float, float]:
    """Of this process: now, and at most so far, 1e6 bytes."""
    status = Path("/proc/self/status")
    if not status.exists():
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        peak_mb = peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
        return peak_mb, peak_mb
    # ru_maxrss would count what the parent held when it forked.
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
    now, most = (int(lines[name].split()[0]) * 1024 / 1e6 for name in ("VmRSS", "VmHWM"))
    return now, most


def stream(name: str, path: Path) -> None:
    """Read an item to its end, after its sort's libraries are loaded; print rows, s and MB."""
    case = next(case for case, _ in memory_cases() if case.name == name)
    small = {"volume": lambda folder: write_gzip(folder, 4), "slide": small_slide}
    if case.reader in small:
        with tempfile.TemporaryDirectory() as scratch:
            read_all(case, small[case.reader](Path(scratch)))
    else:
        load_libraries()
    before, _ = resident_mb()
    began = time.perf_counter()
    reader = make_reader(case.reader, case.options)
    with reader.open(ItemFiles(path=path)) as item:
        n_rows, decoded = item.n_rows, 0
        for start in range(0, n_rows, BATCH):
            rows = item.rows(start, min(start + BATCH, n_rows))
            look(rows)
            decoded += sum(row.nbytes for row in rows)
            del rows
    took = time.perf_counter() - began
    print(n_rows, took, resident_mb()[1] - before, decoded / 1e6)


def load_libraries() -> None:
    for name in ("av", "h5py", "imagecodecs", "pydicom", "tifffile"):
        importlib.import_module(name)


def small_slide(folder: Path) -> Path:
    return write_slide(folder, side=2560)


def compare_memory(case: Case, limit: float | None) -> str:
    with tempfile.TemporaryDirectory() as scratch:
        path = case.write(Path(scratch))
        command = [sys.executable, __file__, "stream", case.name, str(path)]
        told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    n_rows, _, peak, decoded = (float(part) for part in told.split())
    wanted = "" if limit is None else f"{limit:.0f}"
    name = case.name.partition(", beside")[0]
    return f"| {name} | {n_rows:.0f} | {decoded:.0f} | {peak:.0f} | {wanted} |"


def main() -> None:
    arguments = sys.argv[1:]
    if arguments[:1] == ["stream"]:
        stream(arguments[1], Path(arguments[2]))
        return
    words = [word for word in arguments if not word.startswith("--")]

    def chosen(case: Case) -> bool:
        return not words or any(word.lower() in case.name.lower() for word in words)

    print(f"{time.strftime('%Y-%m-%d')}, one core, {platform.machine()}, numpy {np.__version__}\n")
    if "--memory" in arguments:
        print("| item | rows | MB decoded | peak MB above the libraries | limit |")
        print("|---|---|---|---|---|")
        for case, limit in memory_cases():
            if chosen(case):
                print(compare_memory(case, limit), flush=True)
        return
    print("| item | rows | rows/s | bare decoder | ours / bare | wanted |")
    print("|---|---|---|---|---|---|")
    for case in cases():
        if chosen(case):
            print(compare(case), flush=True)


if __name__ == "__main__":
    main()
