"""Damaged files of every format of every reader: what becomes of them.

Each mutant of a sample is read in a child process with bounded memory, under a watchdog. It may be
read, or refused by an `ItemError`; whatever else comes is a defect: another exception, the death of
the interpreter, more than 30 s, more memory than the limit. For formats that are checksummed as a
whole, so is a mutant that reads with other values.

    python benchmarks/fuzz.py [--formats image:png,stack:*] [--mutations 2000] [--seed 0]
                              [--jobs 2] [--keep FOLDER]

A mutant is remade from the format, the seed and its number; --keep saves those that fail.
"""

import argparse
import contextlib
import fnmatch
import io
import json
import os
import queue
import random
import resource
import select
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dinocache.errors import ItemError
from dinocache.readers import ItemFiles, make_reader

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
WATCHDOG_S = 30
MEMORY_LIMIT = 2 << 30
"""Address space that a child may have beyond what it has once its libraries are loaded."""
EXTREMES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
OUTCOMES = ("read", "refused", "exception", "crash", "hang", "memory", "wrong")
DEFECTS = OUTCOMES[2:]


# ---------------------------------------------------------------------- samples


def picture(height: int = 61, width: int = 83, channels: int = 3) -> np.ndarray:
    """(Y, X) or (Y, X, C) uint8: smooth, with texture."""
    y, x = np.mgrid[:height, :width]
    rng = np.random.default_rng(height)
    planes = [
        (y * (2 + c) + x * (3 - c)) % 256 // 2 + rng.integers(0, 100, y.shape)
        for c in range(channels)
    ]
    found = np.stack(planes, -1).astype(np.uint8)
    return found if channels > 1 else found[..., 0]


def pillow(name: str, array: np.ndarray | None = None, **options: object) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        from PIL import Image

        path = folder / name
        Image.fromarray(picture() if array is None else array).save(path, **options)
        return path

    return make


def png(name: str, array: np.ndarray) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        import imagecodecs

        path = folder / name
        path.write_bytes(imagecodecs.png_encode(array))
        return path

    return make


def tiff(name: str, array: np.ndarray, **options: object) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        import tifffile

        path = folder / name
        tifffile.imwrite(path, array, **options)
        return path

    return make


def video(name: str, codec: str, pixels: str, **options: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        import av

        path = folder / name
        with av.open(str(path), "w") as container:
            stream = container.add_stream(codec, rate=25, options=options)
            stream.width, stream.height, stream.pix_fmt = 96, 64, pixels
            for index in range(24):
                array = np.roll(picture(64, 96), 3 * index, axis=1)
                frame = av.VideoFrame.from_ndarray(array, format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        return path

    return make


def hdf5(name: str, **options: object) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        import h5py

        path = folder / name
        stack = np.stack([picture(61, 83, 1) + np.uint8(i) for i in range(7)])
        with h5py.File(path, "w") as file:
            made = file.create_dataset("volumes/raw", data=stack, **options)
            made.attrs["resolution"] = (40.0, 4.0, 4.0)
            file.create_dataset("volumes/labels", data=np.arange(4.0))
        return path

    return make


def folder_of_pngs(folder: Path) -> Path:
    for index in range(3):
        png(f"section{index}.png", picture(61, 83, 1) + np.uint8(index))(folder)
    return folder


def voxels() -> np.ndarray:
    """(Z, Y, X) int16."""
    z, y, x = np.mgrid[:11, :23, :17]
    noise = np.random.default_rng(0).integers(0, 40, z.shape)
    return (z * 31 + y * 17 - x * 13 + noise).astype(np.int16)


def nifti(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        import nibabel

        path = folder / name
        kind = nibabel.Nifti2Image if "2" in name else nibabel.Nifti1Image
        if path.suffix == ".hdr":
            kind = nibabel.Nifti1Pair
        nibabel.save(kind(voxels().T, np.diag([-1.0, -1.5, 3.0, 1.0])), path)
        return path

    return make


def itk(name: str, *, compressed: bool) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        import SimpleITK

        path = folder / name
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(voxels()), str(path), compressed)
        return path

    return make


def dicom_series(folder: Path) -> Path:
    for number, plane in enumerate(voxels()[:4]):
        _dicom(folder / f"{number}.dcm", plane, number)
    return folder


def dicom_file(folder: Path) -> Path:
    _dicom(folder / "one.dcm", voxels()[0], 0)
    return folder / "one.dcm"


def _dicom(path: Path, plane: np.ndarray, number: int) -> None:
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = f"1.2.3.{number + 1}"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    made.SOPClassUID, made.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    made.SeriesInstanceUID, made.Modality, made.InstanceNumber = "1.2.3", "CT", number
    made.ImagePositionPatient, made.ImageOrientationPatient = [0, 0, 3 * number], [1, 0, 0, 0, 1, 0]
    made.PixelSpacing, made.RescaleSlope, made.RescaleIntercept = [1.5, 1], 1, -1024
    made.Rows, made.Columns = plane.shape
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.BitsAllocated, made.BitsStored, made.HighBit, made.PixelRepresentation = 16, 16, 15, 1
    made.PixelData = plane.astype("<i2").tobytes()
    made.save_as(path, enforce_file_format=True)


def real(relative: str) -> Callable[[Path], Path]:
    """Take a file, or a folder, of the real images beside the repository."""

    def make(folder: Path) -> Path:
        source = SHARED_DATA / relative
        target = folder / source.name
        if source.is_dir():
            return Path(shutil.copytree(source, target))
        return Path(shutil.copyfile(source, target))

    return make


@dataclass(frozen=True)
class Format:
    """What is mutated.

    Attributes:
        reader: That reads it.
        name: Of the format.
        make: Writes a sample into a folder and gives its path.
        options: Of the reader.
        checksummed: Whether every byte that makes values is under a checksum.
    """

    reader: str
    name: str
    make: Callable[[Path], Path]
    options: dict[str, object] = field(default_factory=dict)
    checksummed: bool = False

    @property
    def label(self) -> str:
        """As --formats takes it."""
        return f"{self.reader}:{self.name}"


GREY, DEEP = picture(61, 83, 1), picture().astype(np.uint16) * 257
FIVE = np.stack([GREY] * 5)
CHUNKS: dict[str, object] = {"chunks": (3, 16, 20)}
SLIDE: dict[str, object] = {"tile_px": 64, "tile_mpp": "native", "tissue": "none"}
SMALL_SLIDE = SLIDE | {"tile_px": 16}
LARGE = picture(256, 320)
EDD = "endoscopy/edd2020-sample/masks/originalImage"
OPENSLIDE = "odd-files/openslide-python/tests/fixtures"
CMU = "slides/openslide-cmu1/tests/fixtures/svs-images/cmu-1-small-region.svs"
NIBABEL = "odd-files/nibabel/nibabel/tests/data"
PYDICOM = "odd-files/pydicom/src/pydicom/data/test_files"
FORMATS = (
    Format("image", "png", png("x.png", picture()), checksummed=True),
    Format("image", "png16", png("x.png", DEEP), checksummed=True),
    Format("image", "png-palette", pillow("x.png", GREY // 16 * 16), checksummed=True),
    Format("image", "jpeg", pillow("x.jpg", quality=90)),
    Format("image", "jpeg-progressive", pillow("x.jpg", progressive=True)),
    Format("image", "webp", pillow("x.webp", quality=80)),
    Format("image", "webp-lossless", pillow("x.webp", lossless=True)),
    Format("image", "bmp", pillow("x.bmp")),
    Format("image", "tiff", tiff("x.tif", picture(), photometric="rgb")),
    Format("image", "tiff-lzw", tiff("x.tif", DEEP, compression="lzw", predictor=True)),
    Format("image", "tiff-deflate", tiff("x.tif", DEEP, compression="zlib", tile=(32, 48))),
    Format("image", "tiff-packbits", tiff("x.tif", GREY, compression="packbits")),
    Format("image", "tiff-jpeg", tiff("x.tif", picture(), compression="jpeg", tile=(32, 48))),
    Format("image", "tiff-jpeg2000", tiff("x.tif", picture(), compression="jpeg2000")),
    Format("image", "tiff-webp", tiff("x.tif", picture(), compression="webp")),
    Format("image", "tiff-zstd", tiff("x.tif", DEEP, compression="zstd", bigtiff=True)),
    Format("image", "tiff-lzma", tiff("x.tif", GREY, compression="lzma")),
    Format("image", "tiff-ccitt", pillow("x.tif", GREY > 99, compression="group4")),
    Format("image", "dicom", dicom_file),
    *(
        Format("image", f"dicom-{name}-real", real(f"{PYDICOM}/{file}.dcm"))
        for name, file in (
            ("deflated", "image_dfl"),
            ("rle", "SC_rgb_rle"),
            ("jpeg", "SC_rgb_jpeg_dcmtk"),
            ("jpeg-12-bit", "JPGExtended"),
            ("jpeg-ls", "MR_small_jpeg_ls_lossless"),
            ("jpeg2000", "examples_jpeg2k"),
            ("palette", "examples_palette"),
        )
    ),
    Format("image", "jpeg-real", real(f"{EDD}/EDD2020_ACB0003.jpg")),
    Format("image", "tiff-real", real("odd-files/large_image/test/test_files/test_orient6.tif")),
    Format("video", "mp4-h264", video("x.mp4", "libx264", "yuv420p", g="8")),
    Format("video", "avi-mjpeg", video("x.avi", "mjpeg", "yuvj420p")),
    Format("video", "avi-mpeg4", video("x.avi", "mpeg4", "yuv420p")),
    Format("video", "mkv-ffv1", video("x.mkv", "ffv1", "bgr0", level="3", slicecrc="1")),
    Format("video", "mkv-h264", video("x.mkv", "libx264", "yuv420p", g="8")),
    Format("video", "webm-vp9", video("x.webm", "libvpx-vp9", "yuv420p", g="8")),
    Format("video", "mpeg-ts", video("x.ts", "mpeg2video", "yuv420p")),
    Format("video", "dicom-real", real(f"{PYDICOM}/examples_ybr_color.dcm")),
    Format("video", "folder", folder_of_pngs, checksummed=True),
    Format("stack", "hdf5", hdf5("x.h5")),
    Format("stack", "hdf5-gzip", hdf5("x.h5", **CHUNKS, compression="gzip", shuffle=True)),
    Format("stack", "hdf5-lzf", hdf5("x.h5", **CHUNKS, compression="lzf", fletcher32=True)),
    Format("stack", "hdf5-real", real("em/gala/tests/example-data/train-gt.lzf.h5")),
    Format("stack", "tiff", tiff("x.tif", FIVE, photometric="minisblack")),
    Format("stack", "tiff-imagej", tiff("x.tif", FIVE, imagej=True, metadata={"axes": "ZYX"})),
    Format("stack", "folder", folder_of_pngs, checksummed=True),
    Format("volume", "nifti", nifti("x.nii")),
    Format("volume", "nifti-gz", nifti("x.nii.gz"), checksummed=True),
    Format("volume", "nifti2", nifti("x2.nii")),
    Format("volume", "nifti-pair", nifti("x.hdr")),
    Format("volume", "nifti-4d-real", real(f"{NIBABEL}/example4d.nii.gz")),
    Format("volume", "nrrd", itk("x.nrrd", compressed=False)),
    Format("volume", "nrrd-gz", itk("x.nrrd", compressed=True)),
    Format("volume", "metaimage", itk("x.mha", compressed=False)),
    Format("volume", "metaimage-detached", itk("x.mhd", compressed=False)),
    Format("volume", "metaimage-zlib", itk("x.mha", compressed=True)),
    Format("volume", "dicom-series", dicom_series),
    Format("volume", "dicom-multiframe-real", real(f"{PYDICOM}/rtdose_rle.dcm")),
    Format("slide", "tiff", tiff("x.tif", LARGE, tile=(64, 64), compression="jpeg"), SLIDE),
    Format("slide", "png", png("x.png", LARGE), SLIDE, checksummed=True),
    Format("slide", "jpeg", pillow("x.jpg", LARGE), SLIDE),
    Format("slide", "pyramid-real", real(f"{OPENSLIDE}/boxes.tiff"), SLIDE),
    Format("slide", "dicom-real", real(f"{OPENSLIDE}/boxes_0.dcm"), SMALL_SLIDE),
    Format("slide", "svs-real", real(CMU), SLIDE),
)  # fmt: skip


# ---------------------------------------------------------------------- mutations


def mutate(content: bytes, rng: random.Random) -> bytes:
    """Damage bytes in one to four ways; mostly near the start, where headers are."""
    made = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        if not made:
            break
        rng.choice(_WAYS)(made, _place(len(made), rng), rng)
    return bytes(made)


def _place(length: int, rng: random.Random) -> int:
    reach = rng.choice((32, 256, 2048, length, length))
    at = rng.randrange(min(reach, length))
    return length - 1 - at if rng.random() < 0.15 else at


def _flip(made: bytearray, at: int, rng: random.Random) -> None:
    for offset in range(rng.choice((1, 1, 4, 32))):
        if at + offset < len(made):
            made[at + offset] ^= rng.randrange(1, 256)


def _extreme(made: bytearray, at: int, rng: random.Random) -> None:
    width = rng.choice((1, 2, 4, 8))
    value = rng.choice(EXTREMES)
    if rng.random() < 0.3:
        value = len(made) + rng.randrange(-8, 9)
    packed = (value % (1 << 8 * width)).to_bytes(width, rng.choice(("little", "big")))
    made[at : at + width] = packed[: max(0, len(made) - at)]


def _digits(made: bytearray, at: int, rng: random.Random) -> None:
    """Replace the next number of a header in text."""
    while at < len(made) and not 0x30 <= made[at] <= 0x39:
        at += 1
    end = at
    while end < len(made) and 0x30 <= made[end] <= 0x39:
        end += 1
    made[at:end] = rng.choice((b"0", b"-1", b"1", b"65536", b"99999999999", b"1e30", b"nan"))


def _truncate(made: bytearray, at: int, rng: random.Random) -> None:
    del made[rng.randrange(len(made)) :]


def _insert(made: bytearray, at: int, rng: random.Random) -> None:
    made[at:at] = rng.randbytes(rng.choice((1, 2, 4, 64)))


def _delete(made: bytearray, at: int, rng: random.Random) -> None:
    del made[at : at + rng.choice((1, 2, 4, 64, 1024))]


def _duplicate(made: bytearray, at: int, rng: random.Random) -> None:
    made[at:at] = made[at : at + rng.choice((1, 4, 16, 256))]


def _splice(made: bytearray, at: int, rng: random.Random) -> None:
    length = rng.choice((2, 8, 64, 512))
    other = rng.randrange(len(made))
    part = made[other : other + length]
    made[at : at + len(part)] = part


_WAYS: tuple[Callable[[bytearray, int, random.Random], None], ...] = (
    _flip, _flip, _extreme, _extreme, _digits, _truncate, _insert, _delete, _duplicate, _splice,
)  # fmt: skip


# ---------------------------------------------------------------------- child


def read(fmt: Format, path: Path) -> list[np.ndarray]:
    """Read what a run would read of an item: at most 24 rows."""
    reader = make_reader(fmt.reader, fmt.options)
    with reader.open(ItemFiles(path=path)) as item:
        n_rows = item.n_rows
        assert n_rows >= 1
        rows = list(item.rows(0, min(n_rows, 16)))
        rows += item.rows(max(16, n_rows - 8), n_rows) if n_rows > 16 else []
        assert item.coords().shape == (n_rows, len(reader.columns))
        assert len({(row.shape, row.dtype) for row in rows}) == 1
        assert str(rows[0].dtype) in ("uint8", "int16", "uint16", "float32")
        if item.geometry.shape is not None:
            assert item.geometry.shape[1:] == rows[0].shape[1:]
        item.thumbnail()
    return rows


def victims(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())


def make_mutant(fmt: Format, sample: Path, seed: int, number: int, folder: Path) -> Path:
    """Write a mutant of a sample into a folder.

    Returns:
        The item to read.
    """
    rng = random.Random(f"{fmt.label} {seed} {number}")
    shutil.rmtree(folder, ignore_errors=True)
    target = folder / sample.name
    if sample.is_dir():
        shutil.copytree(sample, target)
    else:  # with what lies beside it: the data of a detached header
        shutil.copytree(sample.parent, folder)
    victim = rng.choice(victims(folder))
    victim.write_bytes(mutate(victim.read_bytes(), rng))
    return target


def outcome(fmt: Format, path: Path, expected: list[np.ndarray]) -> tuple[str, str]:
    """Read a mutant and name what came of it."""
    try:
        rows = read(fmt, path)
    except ItemError as exc:
        chain: BaseException | None = exc
        while chain is not None:
            # FFmpeg says so of claims that it does not even try.
            if isinstance(chain, MemoryError) and type(chain).__module__ != "av.error":
                return "memory", str(exc)
            chain = chain.__cause__ or chain.__context__
        text = str(exc)
        if "\n" in text or not text.strip() or str(path) in text:
            return "exception", f"a message that is not one line without the path: {text!r}"
        return "refused", text
    except MemoryError:
        return "memory", traceback.format_exc()
    except Exception:
        return "exception", traceback.format_exc()
    if fmt.checksummed:
        same = len(rows) == len(expected) and all(
            a.dtype == b.dtype and np.array_equal(a, b) for a, b in zip(rows, expected, strict=True)
        )
        if not same:
            return "wrong", "it reads with other values"
    return "read", ""


def child(samples: Path) -> None:
    """Answer jobs, a line of JSON each."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    warnings.simplefilter("ignore")
    scratch = Path(tempfile.mkdtemp(dir=samples))
    by_label = {fmt.label: fmt for fmt in FORMATS}
    expected: dict[str, list[np.ndarray]] = {}
    for line in sys.stdin:
        job = json.loads(line)
        fmt, sample = by_label[job["label"]], Path(job["sample"])
        if fmt.label not in expected:
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
            try:
                expected[fmt.label] = read(fmt, sample)
            except ItemError as exc:
                answers.write(json.dumps({"what": "exception", "why": f"the sample: {exc}"}) + "\n")
                continue
            resource.setrlimit(
                resource.RLIMIT_AS, (_address_space() + MEMORY_LIMIT, resource.RLIM_INFINITY)
            )
        path = make_mutant(fmt, sample, job["seed"], job["number"], scratch / "mutant")
        what, why = outcome(fmt, path, expected[fmt.label])
        answers.write(json.dumps({"what": what, "why": why}) + "\n")


def _address_space() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


# ---------------------------------------------------------------------- parent


class Child:
    """A process that reads one mutant after another, started anew when it dies."""

    def __init__(self, samples: Path) -> None:
        self._samples = samples
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, job: dict[str, Any]) -> tuple[str, str]:
        """Have a mutant read; give its outcome and the reason."""
        process = self._process
        if process is None or process.poll() is not None:
            process = self._process = subprocess.Popen(
                [sys.executable, __file__, "--child", str(self._samples)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
            )
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(job).encode() + b"\n")
        process.stdin.flush()
        answer, ends = b"", time.monotonic() + WATCHDOG_S
        while not answer.endswith(b"\n"):
            left = ends - time.monotonic()
            ready = select.select([process.stdout], [], [], max(left, 0))[0]
            if not ready:
                self.stop()
                return "hang", f"more than {WATCHDOG_S} s"
            part = os.read(process.stdout.fileno(), 1 << 16)
            if not part:
                process.wait()
                return "crash", f"the interpreter ended with {process.returncode}"
            answer += part
        found = json.loads(answer)
        return found["what"], found["why"]

    def stop(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


@dataclass
class Tally:
    """What became of a format's mutants."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    seconds: float = 0


def fuzz(
    chosen: list[Format], mutations: int, seed: int, jobs: int, keep: Path | None
) -> Iterator[tuple[Format, Tally]]:
    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
        samples = Path(scratch)
        children = [Child(samples) for _ in range(jobs)]
        for fmt in chosen:
            folder = samples / fmt.label.replace(":", "-")
            folder.mkdir()
            began = time.monotonic()
            sample = fmt.make(folder)
            tally = Tally()
            numbers: queue.SimpleQueue[int] = queue.SimpleQueue()
            for number in range(mutations):
                numbers.put(number)

            def work(
                child: Child, fmt: Format = fmt, sample: Path = sample, tally: Tally = tally,
                numbers: "queue.SimpleQueue[int]" = numbers,
            ) -> None:  # fmt: skip
                while True:
                    try:
                        number = numbers.get_nowait()
                    except queue.Empty:
                        return
                    job = {
                        "label": fmt.label,
                        "sample": str(sample),
                        "seed": seed,
                        "number": number,
                    }
                    what, why = child.ask(job)
                    tally.counts[what] += 1
                    if what in DEFECTS:
                        tally.examples.setdefault(what, f"{number}: {why}")
                        if keep is not None:
                            _keep(fmt, sample, seed, number, keep, f"{what}\n{why}\n")

            threads = [threading.Thread(target=work, args=(child,)) for child in children]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            tally.seconds = time.monotonic() - began
            yield fmt, tally
        for each in children:
            each.stop()


def _keep(fmt: Format, sample: Path, seed: int, number: int, keep: Path, why: str) -> None:
    folder = keep / fmt.label.replace(":", "-") / f"{seed}-{number}"
    make_mutant(fmt, sample, seed, number, folder)
    (folder / "outcome.txt").write_text(why)


def choose(patterns: str) -> list[Format]:
    chosen = [
        fmt
        for fmt in FORMATS
        if any(fnmatch.fnmatch(fmt.label, pattern) for pattern in patterns.split(","))
    ]
    if not chosen:
        raise SystemExit(f"no such format; there are {', '.join(f.label for f in FORMATS)}")
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--formats", default="*", help="READER:FORMAT, with *, by commas")
    parser.add_argument("--mutations", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--keep", type=Path, help="folder for mutants that fail")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        child(options.child)
        return
    print("| format | mutants | " + " | ".join(OUTCOMES) + " | s |")
    print("|---|" + "---|" * (len(OUTCOMES) + 2))
    defects = []
    for fmt, tally in fuzz(
        choose(options.formats), options.mutations, options.seed, options.jobs, options.keep
    ):
        cells = " | ".join(str(tally.counts[what]) for what in OUTCOMES)
        print(
            f"| {fmt.label} | {sum(tally.counts.values())} | {cells} | {tally.seconds:.0f} |",
            flush=True,
        )
        defects += [f"{fmt.label} {what} {why}" for what, why in tally.examples.items()]
    for defect in defects:
        print(f"\n{defect.strip()}", file=sys.stderr)
    if defects:
        raise SystemExit(1)


if __name__ == "__main__":
    with contextlib.redirect_stderr(sys.stderr if "--child" not in sys.argv else io.StringIO()):
        main()
