"""The video reader: frames by presentation time, in any order, of whole and of damaged files."""

import json
import shutil
import struct
import subprocess
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import imagecodecs
import numpy as np
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, UltrasoundMultiFrameImageStorage
from reader_contract import ReaderContract, Sample

from dinocache.errors import ItemError
from dinocache.readers import ItemFiles, make_reader
from dinocache.readers.video import _SCALING, displayed

N_FRAMES, HEIGHT, WIDTH = 26, 48, 80


def frames(count: int = N_FRAMES, *, grey: bool = False) -> np.ndarray:
    """(frames, C, Y, X) uint8, smooth, each another."""
    t, y, x = np.ogrid[:count, :HEIGHT, :WIDTH]
    planes = [(60 + 3 * t + y + x // 2), (220 - 4 * t - y + x // 4), (40 + 2 * t + 2 * y + 0 * x)]
    found = np.stack(planes[: 1 if grey else 3], axis=1) % 256
    return found.astype(np.uint8)


FRAMES, GREY = frames(), frames(grey=True)


def write(
    path: Path,
    rows: np.ndarray = FRAMES,
    *,
    codec: str = "ffv1",
    pixels: str = "bgr0",
    times_ms: Sequence[int] | None = None,
    rotation: int = 0,
    sound: bool = False,
    **options: str,
) -> Path:
    """Write (frames, C, Y, X) as a video; by default without loss, at 25 frames a second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = rows.shape[3], rows.shape[2], pixels
        if rotation:
            stream.set_display_rotation(rotation)
        if times_ms is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        if sound:
            write_sound(container)
        for index, row in enumerate(rows):
            if len(row) == 1:
                frame = av.VideoFrame.from_ndarray(row[0], format="gray")
            else:
                frame = av.VideoFrame.from_ndarray(row.transpose(1, 2, 0).copy(), format="rgb24")
            if times_ms is not None:
                frame.pts, frame.time_base = times_ms[index], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_sound(container: av.container.OutputContainer) -> None:
    """Add a tenth of a second of silence."""
    stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
    frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
    frame.sample_rate = 8000
    container.mux(stream.encode(frame))
    container.mux(stream.encode())


def write_folder(folder: Path, rows: np.ndarray = FRAMES) -> Path:
    folder.mkdir()
    for index, row in enumerate(rows):
        pixels = row.transpose(1, 2, 0).copy()
        (folder / f"frame{index}.png").write_bytes(imagecodecs.png_encode(pixels))
    return folder


def write_cine(path: Path, rows: np.ndarray = GREY, **elements: object) -> Path:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UltrasoundMultiFrameImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    made.SOPClassUID, made.SOPInstanceUID = meta.MediaStorageSOPClassUID, "1.2.3"
    made.Modality, made.NumberOfFrames = "US", len(rows)
    made.Rows, made.Columns = rows.shape[2:]
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.BitsAllocated, made.BitsStored, made.HighBit, made.PixelRepresentation = 8, 8, 7, 0
    made.PixelData = rows.tobytes()
    for name, value in elements.items():
        setattr(made, name, value)
    made.save_as(path, enforce_file_format=True)
    return path


VARIABLE_MS = np.cumsum([0, *([40, 20, 100, 7, 33] * 5)]).tolist()
FORMATS: dict[str, tuple[str, Callable[[Path], object], np.ndarray, float]] = {
    "mp4-h264": (
        "x.mp4",
        lambda p: write(p, codec="libx264", pixels="yuv444p", crf="4", g="9", bf="3"),
        FRAMES,
        9,
    ),
    "avi-mjpeg": (
        "x.avi",
        lambda p: write(p, codec="mjpeg", pixels="yuvj444p", qmin="1", qmax="2"),
        FRAMES,
        14,
    ),
    "mkv-ffv1": ("x.mkv", lambda p: write(p, level="3", g="5", slicecrc="1"), FRAMES, 0),
    "mkv-variable": ("x.mkv", lambda p: write(p, times_ms=VARIABLE_MS, g="1"), FRAMES, 0),
    "mkv-grey": ("x.mkv", lambda p: write(p, GREY, pixels="gray"), GREY, 0),
    "folder": ("frames", write_folder, FRAMES, 0),
    "dicom": ("x.dcm", lambda p: write_cine(p, FrameTime=40), GREY, 0),
}


class TestFormats(ReaderContract):
    reader_name = "video"

    @pytest.fixture(params=list(FORMATS))
    def sample(self, request: pytest.FixtureRequest, tmp_path: Path) -> Sample:
        name, make, rows, tolerance = FORMATS[request.param]
        make(tmp_path / name)
        return Sample(files=ItemFiles(path=tmp_path / name), rows=rows, tolerance=tolerance)


def read(path: Path, **options: object) -> tuple[np.ndarray, np.ndarray]:
    """(rows, C, Y, X) and times, s."""
    with make_reader("video", options).open(ItemFiles(path=path)) as item:
        return np.stack(item.rows(0, item.n_rows)), item.coords()[:, 0]


def refusal(path: Path, **options: object) -> str:
    with pytest.raises(ItemError) as caught:
        read(path, **options)
    assert "\n" not in str(caught.value)
    assert str(path.parent) not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("starts", "last", "fps", "tick", "expected"),
    [
        pytest.param([0, 0.04, 0.08], 0.04, None, 0.04, [0, 1, 2], id="every-frame"),
        pytest.param([0, 0.04, 0.08], 0.04, 25, 0.04, [0, 1, 2], id="its-own-rate"),
        pytest.param([0, 0.1, 0.2, 0.3], 0.1, 5, 1e-3, [0, 2], id="half-the-rate"),
        pytest.param([0, 0.1, 0.2, 0.3], 0.1, 20, 1e-3, [0, 0, 1, 1, 2, 2, 3, 3], id="twice"),
        pytest.param([5, 5.1, 5.2, 5.3], 0.1, 5, 1e-3, [0, 2], id="offset-start"),
        # On display at 0, 0.1, ... 0.5: at 0.1 that of 0.05 still is, and that of 0.11 not yet.
        pytest.param([0, 0.05, 0.11, 0.4], 0.2, 10, 1e-3, [0, 1, 2, 2, 3, 3], id="variable"),
        # Matroska's milliseconds: 66.67 ms are written as 67, which is not late for row 2.
        pytest.param([0, 0.033, 0.067, 0.1], 0.033, 30, 1e-3, [0, 1, 2, 3], id="rounded"),
        pytest.param([0.0], 10.0, 0.1, 1e-3, [0], id="one-long-frame"),
        pytest.param([0.0], 10.2, 0.1, 1e-3, [0, 0], id="a-little-longer"),
        pytest.param([0.0, 1.0], 1.0, 0.01, 1e-3, [0], id="slower-than-it-is-long"),
    ],
)
def test_which_frame_is_on_display(
    starts: list[float], last: float, fps: float | None, tick: float, expected: list[int]
) -> None:
    found = displayed(np.array(starts, float), last, fps, tick)
    assert found.tolist() == expected


def test_too_many_rows_are_refused() -> None:
    with pytest.raises(ItemError, match="at most 100000000 are read"):
        displayed(np.array([0.0, 3600.0]), 1.0, 1e6, 1e-3)


@pytest.mark.parametrize("name", ["x.mkv", "x.mp4", "x.avi"])
def test_times_are_the_container_s(tmp_path: Path, name: str) -> None:
    pixels = "bgr0" if name != "x.mp4" else "yuv420p"
    write(tmp_path / name, codec="ffv1" if name != "x.mp4" else "libx264", pixels=pixels)
    _, times = read(tmp_path / name)
    np.testing.assert_allclose(times, np.arange(N_FRAMES) / 25, atol=1e-9)
    _, times = read(tmp_path / name, fps=5)
    np.testing.assert_allclose(times, np.arange(0, N_FRAMES, 5) / 25, atol=1e-9)


def test_variable_rates_and_an_offset_start(tmp_path: Path) -> None:
    offset = [1400 + time for time in VARIABLE_MS]
    path = write(tmp_path / "x.mkv", times_ms=offset, g="1")
    rows, times = read(path)
    np.testing.assert_array_equal(rows, FRAMES)
    np.testing.assert_allclose(times * 1000, offset)
    rows, times = read(path, fps=10)
    shown = [max(i for i, t in enumerate(VARIABLE_MS) if t <= 100 * k) for k in range(len(rows))]
    # The last frame is shown for some time too: 1000 ms and its duration.
    assert 10 <= len(rows) <= 11
    np.testing.assert_array_equal(rows, FRAMES[shown])
    np.testing.assert_allclose(times * 1000, np.array(offset)[shown])
    with make_reader("video").open(ItemFiles(path=path)) as item:
        assert item.notes == ("its first frame is shown at 1.400 s",)


def test_more_rows_than_frames(tmp_path: Path) -> None:
    rows, times = read(write(tmp_path / "x.mkv"), fps=50)
    np.testing.assert_array_equal(rows, FRAMES.repeat(2, axis=0))
    np.testing.assert_allclose(times, (np.arange(N_FRAMES) / 25).repeat(2))


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("x.mp4", "libx264", {"g": "9", "bf": "3"}),
        ("x.mkv", "libx264", {"g": "9", "bf": "3", "x264-params": "open-gop=1"}),
        ("x.ts", "libx264", {"g": "9", "bf": "3", "x264-params": "open-gop=1"}),
        ("x.mkv", "libx265", {"x265-params": "keyint=9:open-gop=1:log-level=none"}),
        ("x.avi", "mpeg4", {"g": "9", "bf": "2"}),
        ("x.avi", "mpeg4", {"g": "9"}),
        ("x.mpg", "mpeg2video", {"g": "9", "bf": "2"}),
        ("x.webm", "libvpx-vp9", {"g": "9"}),
        ("x.webm", "libvpx", {"g": "9", "auto-alt-ref": "1", "lag-in-frames": "5"}),
        ("x.mov", "mjpeg", {}),
    ],
    ids=str,
)
def test_any_order_gives_the_frames_of_one_pass(
    tmp_path: Path, name: str, codec: str, options: dict[str, str]
) -> None:
    pixels = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    path = write(tmp_path / name, codec=codec, pixels=pixels, **options)
    with av.open(str(path)) as container:
        bare = list(container.decode(video=0))
    with make_reader("video").open(ItemFiles(path=path)) as item:
        assert item.n_rows == len(bare) == N_FRAMES
        whole = np.stack(item.rows(0, item.n_rows))
        for index in np.random.default_rng(0).permutation(N_FRAMES).tolist():
            stop = min(index + 3, N_FRAMES)
            np.testing.assert_array_equal(item.rows(index, stop), whole[index:stop])
    for row, frame in zip(whole, bare, strict=True):
        packed = frame.reformat(format="rgb24", interpolation=_SCALING["exact"]).to_ndarray()
        np.testing.assert_array_equal(row, packed.transpose(2, 0, 1))
    assert np.abs(whole.astype(int) - FRAMES).mean() < 6


def test_fast_colours_are_near_the_exact_ones(tmp_path: Path) -> None:
    path = tmp_path / "x.mp4"
    write(path, FRAMES, codec="libx264", pixels="yuv420p")
    rows = []
    for colours in ("exact", "fast"):
        with make_reader("video", {"colours": colours}).open(ItemFiles(path=path)) as item:
            rows.append(np.stack(item.rows(0, item.n_rows)).astype(int))
    apart = np.abs(rows[0] - rows[1])
    assert 0 < apart.mean() < 3
    assert apart.max() < 32


def test_sparse_rows_seek(tmp_path: Path) -> None:
    """What is decoded for rows far apart is their groups of pictures, not the whole."""
    path = write(tmp_path / "x.mkv", g="5")
    rows, _ = read(path, fps=1)
    np.testing.assert_array_equal(rows, FRAMES[[0, 25]])


def test_colours_are_those_of_the_standard(tmp_path: Path) -> None:
    """ITU-R BT.601, limited range: Y = 16 + 219 E, C = 128 + 224 E."""
    path = write(tmp_path / "x.mkv", pixels="yuv444p")
    rows, _ = read(path)
    with av.open(str(path)) as container:
        stored = [frame.to_ndarray() for frame in container.decode(video=0)]
    y, cb, cr = np.stack(stored, axis=1).astype(np.float64)
    y, cb, cr = (y - 16) / 219, (cb - 128) / 224, (cr - 128) / 224
    red, blue = y + 1.402 * cr, y + 1.772 * cb
    green = (y - 0.299 * red - 0.114 * blue) / 0.587
    expected = np.clip(np.stack([red, green, blue], axis=1) * 255, 0, 255)
    assert np.abs(rows - expected).max() < 1.6


@pytest.mark.parametrize("degrees", [90, 180, -90])
def test_rotation(tmp_path: Path, degrees: int) -> None:
    path = write(tmp_path / "x.mp4", codec="libx264", pixels="yuv444p", crf="4", rotation=degrees)
    plain = write(tmp_path / "plain.mp4", codec="libx264", pixels="yuv444p", crf="4")
    expected, _ = read(plain)
    found, _ = read(path)
    # FFmpeg counts degrees anticlockwise, as numpy does.
    np.testing.assert_array_equal(found, np.rot90(expected, degrees // 90, axes=(2, 3)))
    with make_reader("video").open(ItemFiles(path=path)) as item:
        assert item.geometry.shape == (N_FRAMES, *found.shape[2:])


@pytest.mark.parametrize("name", ["x.mp4", "x.mkv", "x.avi"])
@pytest.mark.parametrize("share", [0.3, 0.7, 0.98])
def test_a_file_cut_short_is_refused(tmp_path: Path, name: str, share: float) -> None:
    codec, pixels = ("mjpeg", "yuvj420p") if name == "x.avi" else ("libx264", "yuv420p")
    path = write(tmp_path / name, codec=codec, pixels=pixels)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    assert "cut short" in refusal(path) or "never finished" in refusal(path)


def test_damage_inside_is_never_passed_over(tmp_path: Path) -> None:
    """FFV1 has a checksum a slice: each frame is what was written, or refused."""
    path = write(tmp_path / "x.mkv", level="3", g="5", slicecrc="1")
    with av.open(str(path)) as container:
        places = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    content = bytearray(path.read_bytes())
    place, size = places[12]
    content[place + size // 2] ^= 0x55
    path.write_bytes(content)
    with make_reader("video").open(ItemFiles(path=path)) as item:
        assert item.n_rows == N_FRAMES
        good = 0
        for index in range(N_FRAMES):
            try:
                (row,) = item.rows(index, index + 1)
            except ItemError:
                continue
            np.testing.assert_array_equal(row, FRAMES[index])
            good += 1
        assert N_FRAMES - 5 <= good < N_FRAMES
        # The groups of pictures before and behind are whole, in whatever order they are read.
        np.testing.assert_array_equal(item.rows(15, 20), FRAMES[15:20])
        np.testing.assert_array_equal(item.rows(0, 10), FRAMES[:10])


def test_a_hole_in_h264_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "x.mp4", codec="libx264", pixels="yuv420p", g="100")
    with av.open(str(path)) as container:
        places = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    content = bytearray(path.read_bytes())
    place, size = places[10]
    content[place + 4 : place + size] = bytes(size - 4)
    path.write_bytes(content)
    assert "damaged" in refusal(path)
    with make_reader("video").open(ItemFiles(path=path)) as item:
        item.rows(0, 3)


@pytest.mark.parametrize("sound", [False, True], ids=["alone", "beside-sound"])
def test_promises_are_held(tmp_path: Path, sound: bool) -> None:
    """A Matroska file whose segment claims no size, cut at a packet's end."""
    path = write(tmp_path / "x.mkv", g="1", sound=sound)
    with av.open(str(path)) as container:
        places = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    content = bytearray(path.read_bytes())
    segment = content.index(b"\x18\x53\x80\x67")
    content[segment + 4 : segment + 12] = b"\x01" + b"\xff" * 7
    cluster = content.index(b"\x1f\x43\xb6\x75")
    width = 9 - content[cluster + 4].bit_length()
    unknown = (1 << 7 * width + 1) - 1
    content[cluster + 4 : cluster + 4 + width] = unknown.to_bytes(width)
    end = next(place for place, _ in places[5:])
    path.write_bytes(content[: end - 8])
    assert "its header promises 1.04 s of frames, it holds 0." in refusal(path)


def test_folders_have_times_only_if_told(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "frames", FRAMES[:12])
    rows, times = read(folder)
    np.testing.assert_array_equal(rows, FRAMES[:12])  # frame2 before frame10
    assert times.tolist() == list(range(12))
    rows, times = read(folder, source_fps=4, fps=2)
    np.testing.assert_array_equal(rows, FRAMES[:12:2])
    np.testing.assert_allclose(times, np.arange(6) / 2)
    assert "does not say how fast it is; the option source_fps does" in refusal(folder, fps=2)


@pytest.mark.parametrize(
    ("elements", "times"),
    [
        ({"FrameTime": 50}, np.arange(6) / 20),
        ({"CineRate": 10}, np.arange(6) / 10),
        ({"FrameTimeVector": [0, 10, 20, 30, 40, 50]}, np.array([0, 10, 30, 60, 100, 150]) / 1000),
        ({}, np.arange(6)),
    ],
    ids=["time", "rate", "vector", "none"],
)
def test_cine(tmp_path: Path, elements: dict[str, object], times: np.ndarray) -> None:
    path = write_cine(tmp_path / "x.dcm", GREY[:6], **elements)
    rows, found = read(path)
    np.testing.assert_array_equal(rows, GREY[:6])
    np.testing.assert_allclose(found, times)
    if elements:
        assert "has times of its own" in refusal(path, source_fps=3)
    else:
        assert "does not say how fast it is" in refusal(path, fps=3)
        assert len(read(path, fps=3, source_fps=6)[0]) == 3


def box(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body) + 8) + name + body


def test_refusals(tmp_path: Path) -> None:
    video = write(tmp_path / "x.mkv")
    cases = {
        "text.mp4": (b"#EXTM3U\n/etc/passwd\n", "a video was expected: MP4, MOV, AVI"),
        "empty.mp4": (b"", "the file is empty"),
        "gone.mp4": (None, "the file is missing"),
        "unfinished.mp4": (
            box(b"ftyp", b"isom" * 3) + box(b"mdat", bytes(99)),
            "an MP4 without its table of frames (moov)",
        ),
        "junk.mp4": (
            box(b"ftyp", b"isom" * 3) + box(b"moov", bytes(99)),
            "it holds no video",
        ),
    }
    for name, (content, message) in cases.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        assert message in refusal(tmp_path / name)
    assert "a video has times of its own" in refusal(video, source_fps=5)
    sound = tmp_path / "sound.mkv"
    with av.open(str(sound), "w") as container:
        write_sound(container)
    assert "it holds no video" in refusal(sound)


def test_the_size_of_frames_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dinocache.readers.video._MAX_PIXELS", HEIGHT * WIDTH - 1)
    assert "frames of 80 x 48 px; at most 3839 are read" in refusal(write(tmp_path / "x.mkv"))


def test_a_real_clip(shared_data: Path) -> None:
    """AutoLaparo: 10 s of 1080p at 25 frames a second, H.264 with B-frames."""
    path = shared_data / "endoscopy/autolaparo-clip/Up-1_2.mp4"
    with av.open(str(path)) as container:
        bare = {
            frame.pts: frame.to_ndarray(format="gray")[::9, ::9]
            for frame in container.decode(video=0)
        }
    files = ItemFiles(path=path)
    with make_reader("video").open(files) as item:
        assert item.n_rows == 250
        np.testing.assert_allclose(item.coords()[:, 0], np.arange(250) / 25)
        order = [249, 0, 100, 101, 37, 38, 200, 157, 156, 158]
        found = {index: item.rows(index, index + 1)[0] for index in order}
    for index, row in found.items():
        assert row.shape == (3, 1080, 1920)
        luma = np.tensordot((0.2126, 0.7152, 0.0722), row[:, ::9, ::9], 1)
        assert np.abs(luma - (bare[index * 1000].astype(float))).mean() < 12
    with make_reader("video", {"fps": 1}).open(files) as item:
        assert item.coords()[:, 0].tolist() == list(range(10))
        np.testing.assert_array_equal(item.rows(4, 5)[0], found[100])


@pytest.mark.skipif(shutil.which("ffprobe") is None, reason="ffprobe is not installed")
@pytest.mark.parametrize("which", ["real", "variable"])
def test_times_are_those_of_ffprobe(
    tmp_path: Path, request: pytest.FixtureRequest, which: str
) -> None:
    path = tmp_path / "x.mkv"
    if which == "real":
        shared = request.getfixturevalue("shared_data")
        path = shared / "endoscopy/autolaparo-clip/Up-1_2.mp4"
    else:
        write(path, FRAMES, times_ms=[40 * index + 7 * (index % 3) for index in range(N_FRAMES)])
    entries = ["-show_entries", "frame=pts_time:stream=width,height", "-of", "json"]
    command = ["ffprobe", "-v", "error", "-select_streams", "v", *entries, str(path)]
    said = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    with make_reader("video").open(ItemFiles(path=path)) as item:
        times = [float(frame["pts_time"]) for frame in said["frames"]]
        np.testing.assert_allclose(item.coords()[:, 0], times, atol=2e-6)
        (stream,) = said["streams"]
        assert item.rows(0, 1)[0].shape == (3, stream["height"], stream["width"])
