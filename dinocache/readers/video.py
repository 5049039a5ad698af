"""Videos, frame by frame: MP4, AVI, Matroska and MPEG through PyAV; multi-frame DICOM; folders.

Row k is the frame on display k / fps seconds behind the first; without `fps` each frame is a row.
Times are the container's own, exact, also where frames follow at varying distances.

A frame is found by its presentation time: the decoder starts at the keyframe before it, so that
what lies further back in the file does not matter, damage included. Colours come to RGB by swscale
with its accurate, processor-independent arithmetic.
"""

import math
import os
import re
import struct
import threading
import zlib
from array import array
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from dinocache.errors import ItemError
from dinocache.geometry import Geometry
from dinocache.readers import dicom
from dinocache.readers.contract import (
    ItemFiles,
    OpenItem,
    Pixels,
    Reader,
    ReaderOptions,
    translated,
)
from dinocache.readers.image import own_grid_only
from dinocache.readers.sequence import Sequence

__all__ = ["VideoOptions", "VideoReader", "displayed"]

Times = npt.NDArray[np.float64]

_MAX_PIXELS = 1 << 26
_MAX_PACKETS = 10**8
_MAX_ROWS = 10**8
_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts"
"""Demuxers that read one file only: playlists would open others."""
_CODEC_OPTIONS = {
    "err_detect": "crccheck+explode",  # damage is an error, not a grey block
    "max_pixels": str(_MAX_PIXELS),
}
# SWS_BILINEAR | SWS_FULL_CHR_H_INT, and SWS_ACCURATE_RND | SWS_BITEXACT, of libswscale/swscale.h.
_SCALING = {"fast": 0x2 | 0x2000, "exact": 0x2 | 0x2000 | 0x40000 | 0x80000}


_FFV1_TRIES = 16
_ONES = 0xFFFFFFFF
_MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


class VideoOptions(ReaderOptions):
    """Which frames become rows."""

    fps: float | None = Field(None, gt=0, le=1e6)
    """Rows a second: the frame on display at each moment; all frames by default."""
    source_fps: float | None = Field(None, gt=0, le=1e6)
    """Frames a second of what does not say it itself: a folder, a DICOM file without times. Without
    it their times count frames, and fps is refused."""
    colours: Literal["exact", "fast"] = "exact"
    """How YUV becomes RGB: exact gives the same pixels on every processor; fast takes a tenth of
    that time, and each processor's own rounding, a grey level or so off."""


class VideoReader(Reader[VideoOptions]):
    """One row a frame."""

    name = "video"
    summary = "frames of MP4, AVI, Matroska, MPEG, multi-frame DICOM, folders of pictures"
    Options = VideoOptions
    columns = (("time", "s"),)

    def open(self, files: ItemFiles, like: Geometry | None = None) -> OpenItem:
        """Read all packets' times and decode the first frame: it says how it is to be turned."""
        item: _OpenFrames
        if files.path.is_dir():
            item = _OpenFolder(files.path, self.settings)
        elif files.path.is_file() and dicom.is_dicom(files.path):
            item = _OpenCine(files.path, self.settings)
        else:
            item = _OpenVideo(files.path, self.settings)
        try:
            own_grid_only(item.geometry, like)
        except ItemError:
            item.close()
            raise
        return item


def displayed(starts: Times, last: float, fps: float | None, tick: float) -> npt.NDArray[np.int64]:
    """Choose the frame of each row.

    Args:
        starts: (frames,) when each is shown first, s, ascending.
        last: How long the last is shown, s.
        fps: Rows a second; None for every frame.
        tick: Resolution of the times, s: what is off by less counts as in time, so that Matroska's
            milliseconds do not shift a row by a frame.

    Returns:
        (rows,) indices of frames, ascending, at least one.

    Raises:
        ItemError: If there would be too many.
    """
    if fps is None:
        return np.arange(len(starts))
    typical = float(np.median(np.diff(starts))) if len(starts) > 1 else last
    slack = min(tick, typical / 20) + 1e-9
    # As decimals, not as floats: 10 s at 0.1 rows a second are 1 row, not 2.
    span = Fraction(starts[-1] - starts[0] + last - slack)
    n_rows = max(1, math.ceil(span * Fraction(repr(fps))))
    if n_rows > _MAX_ROWS:
        raise ItemError(f"{n_rows} rows at fps {fps}; at most {_MAX_ROWS} are read")
    times = np.arange(n_rows) / fps
    return np.searchsorted(starts - starts[0], times + slack, side="right") - 1


@contextmanager
def _translated(what: str) -> Iterator[None]:
    """Keep the path, which PyAV's errors name, out of ours."""
    import av

    with translated(what):
        try:
            yield
        except av.error.FFmpegError as exc:
            raise ItemError(f"{what}: {exc.strerror}") from exc


class _OpenFrames(OpenItem):
    """Frames with times, some of which are rows."""

    def _settle(
        self,
        shape: tuple[int, int, int],
        itemsize: int,
        picks: npt.NDArray[np.int64],
        starts: Times,
    ) -> None:
        self._picks, self._starts = picks, starts
        self.n_rows = len(picks)
        self.geometry = Geometry(shape=(self.n_rows, *shape[1:]))
        self.nbytes = self.n_rows * math.prod(shape) * itemsize

    def coords(self) -> Times:
        return self._starts[self._picks][:, None]


def _own_times(
    n_frames: int, options: VideoOptions, what: str
) -> tuple[npt.NDArray[np.int64], Times]:
    """Time frames that say nothing of it themselves."""
    rate = options.source_fps
    if rate is None:
        if options.fps is not None:
            raise ItemError(f"{what} does not say how fast it is; the option source_fps does")
        return np.arange(n_frames), np.arange(n_frames, dtype=np.float64)
    starts = np.arange(n_frames) / rate
    return displayed(starts, 1 / rate, options.fps, 1e-6), starts


class _OpenFolder(_OpenFrames):
    def __init__(self, path: Path, options: VideoOptions) -> None:
        self._sequence = Sequence(path)
        picks, starts = _own_times(len(self._sequence), options, "a folder of pictures")
        self._settle(self._sequence.shape, self._sequence.dtype.itemsize, picks, starts)
        self.value_range = self._sequence.value_range
        self.notes = self._sequence.notes

    def rows(self, start: int, stop: int) -> list[Pixels]:
        return [self._sequence.row(index) for index in self._picks[start:stop].tolist()]


class _OpenCine(_OpenFrames):
    """A DICOM file of several frames, such as ultrasound."""

    def __init__(self, path: Path, options: VideoOptions) -> None:
        self._image = image = dicom.DicomImage(path)
        steps = _dicom_steps(path, image.frames)
        if steps is None:
            picks, starts = _own_times(image.frames, options, "the DICOM file")
        elif options.source_fps is not None:
            raise ItemError("the DICOM file has times of its own; leave source_fps out")
        else:
            starts = np.concatenate([[0.0], np.cumsum(steps[: image.frames - 1])])
            picks = displayed(starts, float(steps[-1]), options.fps, 1e-6)
        shape = image.channels, image.rows, image.columns
        self._settle(shape, image.dtype.itemsize, picks, starts)
        self.value_range, self.file_window = image.value_range, image.file_window

    def rows(self, start: int, stop: int) -> list[Pixels]:
        return [self._image.frame(index) for index in self._picks[start:stop].tolist()]


def _dicom_steps(path: Path, n_frames: int) -> Times | None:
    """Read how long each frame is shown, s.

    References:
        DICOM PS3.3 C.7.6.5 (Cine): Frame Time and its vector in ms, rates in frames a second.
    """
    from pydicom import dcmread

    tags = ["FrameTime", "FrameTimeVector", "CineRate", "RecommendedDisplayFrameRate"]
    with translated("its cine times cannot be read"), dicom.quiet():
        found = dcmread(path, force=True, stop_before_pixels=True, specific_tags=list(tags))
        vector = found.get("FrameTimeVector")
        if vector is not None and not isinstance(vector, str) and len(vector) == n_frames > 1:
            steps = np.array([float(step) for step in vector[1:]]) / 1000
            if np.isfinite(steps).all() and (steps > 0).all():
                return np.append(steps, np.median(steps))
        for tag, per_second in (
            ("FrameTime", False),
            ("CineRate", True),
            ("RecommendedDisplayFrameRate", True),
        ):
            value = float(found.get(tag) or 0)
            if math.isfinite(value) and value > 0:
                step = 1 / value if per_second else value / 1000
                return np.full(n_frames, step)
    return None


class _OpenVideo(_OpenFrames):
    one_at_a_time = True

    def __init__(self, path: Path, options: VideoOptions) -> None:
        if options.source_fps is not None:
            raise ItemError("a video has times of its own; leave source_fps out")
        self._lock = threading.Lock()
        with translated("cannot be read"), path.open("rb") as file:
            _check_whole(file)
        self._decoder = decoder = _Decoder(path, options.colours)
        try:
            first = decoder.open()
        except ItemError:
            decoder.close()
            raise
        self._kept: tuple[int, Pixels] | None = None
        starts = decoder.seconds
        tick = float(decoder.time_base)
        picks = displayed(starts, decoder.last_s, options.fps, tick)
        self._settle(first.shape, first.itemsize, picks, starts)
        if abs(starts[0]) > tick:
            self.notes = (f"its first frame is shown at {starts[0]:.3f} s",)

    def rows(self, start: int, stop: int) -> list[Pixels]:
        picks = self._picks[start:stop].tolist()
        with self._lock:
            found = {} if self._kept is None else dict([self._kept])
            wanted = sorted(set(picks) - set(found))
            found |= dict(zip(wanted, self._decoder.frames(wanted), strict=True))
            if picks:
                self._kept = picks[-1], found[picks[-1]]
        return [found[pick] for pick in picks]

    def close(self) -> None:
        self._kept = None
        self._decoder.close()


class _Decoder:
    """Finds the frames of one stream by presentation time.

    Attributes:
        time_base: Seconds a tick.
        seconds: (frames,) when each is shown, s, ascending.
        last_s: How long the last one is shown, s.
    """

    def __init__(self, path: Path, colours: str) -> None:
        self._path = path
        self._container: Any = None
        self._stream: Any = None
        self._frames: Iterator[tuple[int, Any]] = iter(())
        self._next = -1
        self._convert = _Converter(colours)
        self._slices_checked = False

    def open(self) -> Pixels:
        """Read all packets' times, and the first frame.

        Returns:
            The first frame.
        """
        self._demux()
        (first,) = self.frames([0])
        return first

    def close(self) -> None:
        if self._container is not None:
            self._container.close()
        self._container, self._stream, self._frames, self._next = None, None, iter(()), -1
        self._convert.close()

    # ------------------------------------------------------------------ times

    def _open(self) -> Any:  # noqa: ANN401 - av is imported late
        import av

        options = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}
        if self._container is not None:
            self._container.close()
        self._container = container = av.open(
            f"file:{self._path}", options=options, metadata_errors="ignore"
        )
        streams = [
            stream
            for stream in container.streams.video
            if not stream.disposition & av.stream.Disposition.attached_pic
        ]
        if not streams:
            raise ItemError("it holds no video")
        stream = streams[0]
        if stream.codec_context is None:
            raise ItemError("its video is of a sort that is not known")
        stream.codec_context.options = dict(_CODEC_OPTIONS)
        stream.codec_context.thread_type = "AUTO"
        return stream

    def _demux(self) -> None:
        with _translated("not a video that can be read"):
            stream = self._open()
            width, height = stream.codec_context.width, stream.codec_context.height
            if not 0 < width * height <= _MAX_PIXELS:
                raise ItemError(f"frames of {width} x {height} px; at most {_MAX_PIXELS} are read")
            self.time_base: Fraction = stream.time_base
            size = self._path.stat().st_size
            shown, keys, durations = array("q"), array("q"), array("q")
            without = 0
            vp8, ffv1 = (stream.codec_context.name == name for name in ("vp8", "ffv1"))
            for packet in self._container.demux(stream):
                if not packet.size:
                    continue
                if len(shown) >= _MAX_PACKETS:
                    raise ItemError(f"more than {_MAX_PACKETS} packets")
                if packet.is_corrupt or (packet.pos or 0) + packet.size > size + 64:
                    raise ItemError("it is cut short: a packet reaches over its end")
                hidden = vp8 and not bytes(memoryview(packet)[:1])[0] & 0x10
                if packet.is_discard or hidden:
                    continue
                if ffv1 and len(shown) < _FFV1_TRIES and not self._slices_checked:
                    self._slices_checked = _slices_are_whole(packet)
                without += packet.pts is None
                time = packet.dts if packet.pts is None else packet.pts
                if time is None:
                    raise ItemError("its packets have no times")
                shown.append(time)
                durations.append(packet.duration or 0)
                if packet.is_keyframe:
                    keys.append(time)
            self._finish_times(stream, shown, keys, durations, counted=without > 0)

    def _finish_times(
        self,
        stream: Any,  # noqa: ANN401 - av is imported late
        shown: array,  # type: ignore[type-arg]
        keys: array,  # type: ignore[type-arg]
        durations: array,  # type: ignore[type-arg]
        *,
        counted: bool,
    ) -> None:
        if not shown:
            raise ItemError("a video without a frame")
        times = np.frombuffer(shown, np.int64)
        order = np.argsort(times, kind="stable")
        self._counted = counted
        self._times = times[order] if counted else np.unique(times)
        base = self.time_base
        if base <= 0 or np.abs(self._times).max() > 1 << 62:
            raise ItemError("its times are beyond measure")
        # Where times are missing frames are counted, which needs the start.
        self._keys = np.unique(np.frombuffer(keys, np.int64)) if keys and not counted else None
        self.seconds = self._times * base.numerator / base.denominator
        last = int(np.frombuffer(durations, np.int64)[order[-1]])
        steps = np.diff(self._times)
        if last <= 0 and len(steps):
            last = int(np.median(steps))
        rate = stream.average_rate
        self.last_s = float(last * base) if last > 0 else float(1 / rate) if rate else 0.04
        self._check_promises(stream)

    def _check_promises(self, stream: Any) -> None:  # noqa: ANN401 - as above
        """Compare with the length that the header says."""
        held = float(self.seconds[-1] - self.seconds[0]) + self.last_s
        promised = 0.0
        if stream.duration:
            promised = float(stream.duration * self.time_base)
        elif len(self._container.streams) == 1 and self._container.duration:
            promised = self._container.duration / 1e6 - max(float(self.seconds[0]), 0)
        else:
            promised = _clock(stream.metadata.get("DURATION", "")) - float(self.seconds[0])
        if promised > held * 1.01 + 0.5:
            raise ItemError(f"its header promises {promised:.2f} s of frames, it holds {held:.2f}")

    # ------------------------------------------------------------------ frames

    def frames(self, wanted: list[int]) -> list[Pixels]:
        """Decode some frames.

        Args:
            wanted: Their indices, ascending.

        Returns:
            (C, Y, X) uint8 each, turned as they are to be shown.

        Raises:
            ItemError: If one is damaged.
        """
        found = []
        with _translated("cannot be decoded"):
            try:
                for index in wanted:
                    found.append(self._convert.start(self._frame(index)))
            except BaseException:
                # What a decoder does behind an error depends on what it saw before.
                self._stream, self._frames, self._next = None, iter(()), -1
                self._convert.drop(found)
                raise
            return [future.result() for future in found]

    def _frame(self, index: int) -> Any:  # noqa: ANN401 - av is imported late
        key = self._key_before(index)
        if not (0 <= self._next <= index and key <= self._next):
            self._seek(key)
        found = self._forward(index)
        if found is None and key > 0:  # the demuxer landed behind it
            self._seek(0)
            found = self._forward(index)
        if found is None:
            raise ItemError(f"the frame at {self.seconds[index]:.3f} s is missing or damaged")
        return found

    def _forward(self, index: int) -> Any:  # noqa: ANN401 - as above
        """Decode on to a frame; None if it does not come."""
        for position, frame in self._frames:
            self._next = position + 1
            if position == index:
                if frame.is_corrupt:
                    raise ItemError(f"the frame at {self.seconds[index]:.3f} s is damaged")
                return frame
            if position > index:
                break
        self._frames, self._next = iter(()), -1
        return None

    def _key_before(self, index: int) -> int:
        """Find the keyframe that a frame is decoded from; 0 stands for the start."""
        if self._keys is None:
            return 0
        at = int(np.searchsorted(self._keys, self._times[index], side="right")) - 1
        return int(np.searchsorted(self._times, self._keys[at])) if at > 0 else 0

    def _seek(self, key: int) -> None:
        if key == 0 or self._stream is None:
            self._stream = self._open()
        if key > 0:
            self._container.seek(int(self._times[key]), stream=self._stream, backward=True)
        self._frames, self._next = self._decoded(self._stream, key), key

    def _decoded(self, stream: Any, key: int) -> Iterator[tuple[int, Any]]:  # noqa: ANN401
        """Decode from a keyframe on, giving (index, frame)."""
        import av

        counter, settled = 0, key == 0
        for packet in self._container.demux(stream):
            if not packet.size and packet.dts is not None:
                continue
            if self._slices_checked and packet.size and not _slices_are_whole(packet):
                raise ItemError("damaged: a checksum is wrong")
            try:
                frames = packet.decode()
            except av.error.FFmpegError as exc:
                if settled:
                    raise ItemError(f"damaged: {exc.strerror}") from exc
                continue  # frames shown before the keyframe may need what lies before it
            for frame in frames:
                if self._counted:
                    yield counter, frame
                    counter += 1
                    continue
                if frame.pts is None:
                    raise ItemError("a frame without a time")
                index = int(np.searchsorted(self._times, frame.pts))
                known = index < len(self._times) and self._times[index] == frame.pts
                if known and index >= key:
                    settled = True
                    yield index, frame


def _clock(text: str) -> float:
    """Read Matroska's tag DURATION, 00:01:02.500000000; 0 for what is none."""
    found = re.fullmatch(r"(\d{1,4}):(\d\d):(\d\d(?:\.\d{1,9})?)", text.strip("\0 "))
    return int(found[1]) * 3600 + int(found[2]) * 60 + float(found[3]) if found else 0.0


def _slices_are_whole(packet: Any) -> bool:  # noqa: ANN401 - av is imported late
    """Check the checksums of an FFV1 frame's slices.

    FFmpeg's decoder puts the frame before in the place of a slice whose checksum is wrong, and says
    so to the log only. Whether there are checksums stands in a header that is itself coded; they
    are there if those of one of the first frames hold.

    References:
        RFC 9043, 4.9 (Slice Footer): 24 bits of size, an error status, a CRC-32 that makes the
        whole 0.
    """
    data = bytes(packet)
    end = len(data)
    while end > 0:
        start = end - 8 - int.from_bytes(data[end - 8 : end - 5])
        if end < 8 or start < 0:
            return False
        # zlib's CRC counts bits the other way round, and from all ones.
        if zlib.crc32(data[start:end].translate(_MIRRORED), _ONES) != _ONES:
            return False
        end = start
    return True


class _Converter:
    """Brings frames to arrays, beside the decoder."""

    def __init__(self, colours: str) -> None:
        self._scaling = _SCALING[colours]
        self._pool: ThreadPoolExecutor | None = None
        self._local = threading.local()
        self._sort: tuple[object, ...] | None = None

    def start(self, frame: Any) -> Any:  # noqa: ANN401 - av is imported late
        if self._pool is None:
            self._pool = ThreadPoolExecutor(min(4, os.cpu_count() or 1))
        sort = frame.width, frame.height, frame.format.name.startswith("gray")
        if self._sort is None:
            self._sort, self._turn = sort, _matrix(frame)
        if sort != self._sort:
            raise ItemError(f"a frame of {sort[:2]} px behind one of {self._sort[:2]}")
        if not 0 < frame.width * frame.height <= _MAX_PIXELS:
            raise ItemError(f"frames of {frame.width} x {frame.height} px")
        if self._scaling == _SCALING["fast"]:  # sooner done than handed over
            done: Future[Pixels] = Future()
            done.set_result(self._array(frame))
            return done
        return self._pool.submit(self._array, frame)

    def drop(self, started: list[Any]) -> None:
        """Wait for what is not wanted any more."""
        for future in started:
            future.cancel() or future.exception()

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None

    def _array(self, frame: Any) -> Pixels:  # noqa: ANN401 - as above
        from av.video.reformatter import VideoReformatter

        if frame.format.name.startswith("gray"):
            grey = frame if frame.format.name == "gray" else frame.reformat(format="gray")
            return _turned(grey.to_ndarray()[None], self._turn)
        if not hasattr(self._local, "reformatter"):
            self._local.reformatter = VideoReformatter()
        # Planes are what we give on; packed RGB would take three times as long.
        planar = self._local.reformatter.reformat(frame, format="gbrp", interpolation=self._scaling)
        green, blue, red = (
            np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[
                : frame.height, : frame.width
            ]
            for plane in planar.planes
        )
        return _turned(np.stack([red, green, blue]), self._turn)


def _matrix(frame: Any) -> tuple[int, int, int, int]:  # noqa: ANN401 - av is imported late
    """Read how a frame is to be turned: a, b, c, d of its display matrix, each -1, 0 or 1."""
    for data in frame.side_data:
        if getattr(data.type, "name", "") == "DISPLAYMATRIX":
            a, b, _, c, d = np.frombuffer(bytes(data)[:36], np.int32)[:5].tolist()
            signs = tuple((v > 0) - (v < 0) if abs(v) > 1 << 8 else 0 for v in (a, b, c, d))
            if (abs(signs[0]), abs(signs[1])) == (abs(signs[3]), abs(signs[2])) and sum(
                map(abs, signs)
            ) == 2:
                return signs[0], signs[1], signs[2], signs[3]
            raise ItemError("it is to be shown turned by an angle that is no quarter")
    return 1, 0, 0, 1


def _turned(
    image: npt.NDArray[np.uint8], matrix: tuple[int, int, int, int]
) -> npt.NDArray[np.uint8]:
    """Apply a display matrix: a px at (x, y) is shown at (a x + c y, b x + d y)."""
    a, b, c, d = matrix
    if (a, b, c, d) == (1, 0, 0, 1):
        return image
    if b:
        image = image.swapaxes(-1, -2)
    if a + c < 0:
        image = image[..., ::-1]
    if b + d < 0:
        image = image[..., ::-1, :]
    return np.ascontiguousarray(image)


# ---------------------------------------------------------------------- containers


def _check_whole(file: BinaryIO) -> None:
    """Refuse a file that its outermost boxes say is longer than it is.

    Raises:
        ItemError: If so, or it is of no sort that is read.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(64)
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        end = struct.unpack("<I", head[4:8])[0] + 8
    elif head[:4] == b"\x1aE\xdf\xa3":
        end = _matroska_end(head)
    elif head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"wide", b"skip", b"pnot"):
        end = _mp4_end(file, size)
    elif head[:4] in (b"\0\0\1\xba", b"\0\0\1\xb3") or head[:1] == b"G" or head[4:5] == b"G":
        end = 0
    elif not head:
        raise ItemError("the file is empty")
    else:
        raise ItemError("a video was expected: MP4, MOV, AVI, Matroska, WebM or MPEG")
    if end > size:
        raise ItemError(f"it is cut short: {end} bytes were written, {size} are here")


def _mp4_end(file: BinaryIO, size: int) -> int:
    """Walk the outer boxes: ISO/IEC 14496-12, 4.2."""
    at, seen = 0, set()
    while at + 8 <= size:
        file.seek(at)
        length, name = struct.unpack(">I4s", file.read(8))
        if length == 1:
            length = int.from_bytes(file.read(8))
        elif length == 0:
            length = size - at
        if length < 8:
            raise ItemError(f"a box of {length} bytes in an MP4")
        seen.add(name)
        at += length
    if b"moov" not in seen:
        raise ItemError("an MP4 without its table of frames (moov): it was never finished")
    return at


def _matroska_end(head: bytes) -> int:
    """Read where the segment ends: RFC 8794, 4 and 6; 0 if it is not said."""

    def number(at: int) -> tuple[int, int]:
        width = 9 - head[at].bit_length()
        value = int.from_bytes(head[at : at + width]) & ((1 << 7 * width) - 1)
        return (0 if value == (1 << 7 * width) - 1 else value), at + width

    length, at = number(4)
    at += length
    if at + 12 > len(head) or head[at : at + 4] != b"\x18\x53\x80\x67":
        return 0
    length, at = number(at + 4)
    return at + length if length else 0
