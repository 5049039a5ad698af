"""AutoLaparo, task 1: a video and a text of a phase a second, which may differ by a row."""

from pathlib import Path

import av
import numpy as np
from miniature import Miniature

_MISSING = 18
_FPS = 25


def _seconds(video: int) -> int:
    return 3 + video % 2


def _phases(video: int) -> list[int]:
    """A row a second; video 1 has one more, video 2 one less."""
    rows = _seconds(video) + {1: 1, 2: -1}.get(video, 0)
    return [1 + (3 * video + second) % 7 for second in range(rows)]


def _write_video(path: Path, rng: np.random.Generator, seconds: int) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=_FPS, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for _ in range(seconds):
            pixels = rng.integers(0, 256, (4, 6, 3), dtype=np.uint8)
            picture = pixels.repeat(8, axis=0).repeat(8, axis=1)
            for _ in range(_FPS):
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                container.mux(stream.encode(frame))
        container.mux(stream.encode())


def make(folder: Path) -> None:
    """21 videos of 3 or 4 s."""
    rng = np.random.default_rng(7)
    (folder / "videos").mkdir()
    (folder / "labels").mkdir()
    for video in range(1, 22):
        path = folder / f"videos/{video:02d}.mp4"
        if video != _MISSING:
            _write_video(path, rng, _seconds(video))
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7 of macOS")
        lines = [f"{frame}\t{phase}" for frame, phase in enumerate(_phases(video), start=1)]
        text = "\n".join(["Frame\tPhase", *lines])
        end = "\r\n" if video == 3 else "\n"
        (folder / f"labels/label_{video:02d}.txt").write_bytes(
            text.replace("\n", end).encode() + (b"" if video == 4 else end.encode())
        )
    (folder / "README.txt").write_text("Laparoscopic hysterectomy\n")


MINIATURE = Miniature(
    make=make,
    items=20,
    groups=20,
    missing=(f"{_MISSING:02d}",),
    sides={"official": {"train": 10, "val": 4, "test": 6}},
    targets={
        "01": {"phase": [4, 5, 6, 7, 1]},
        "02": {"phase": [7, 1]},
        "03": {"phase": [3, 4, 5, 6]},
        "04": {"phase": [6, 7, 1]},
        "21": {"phase": [1, 2, 3, 4]},
    },
    rows={f"{video:02d}": _seconds(video) for video in range(1, 22) if video != _MISSING},
)
