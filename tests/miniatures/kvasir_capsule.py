"""Kvasir-Capsule: folders a class, two official lists whose class names differ from the folders'.

As in the real lists, one video is in both, and one frame is there twice, with two findings.
"""

from pathlib import Path

import numpy as np
from miniature import Miniature
from PIL import Image

_FOLDER_OF = {
    "Angiectasia": "Angiectasia",
    "Blood": "Blood - fresh",
    "Erosion": "Erosion",
    "Erythematous": "Erythema",
    "Foreign Bodies": "Foreign body",
    "Ileo-cecal valve": "Ileocecal valve",
    "Lymphangiectasia": "Lymphangiectasia",
    "Normal": "Normal clean mucosa",
    "Pylorus": "Pylorus",
    "Reduced Mucosal View": "Reduced mucosal view",
    "Ulcer": "Ulcer",
}
_UNLISTED = ("Ampulla of vater", "Blood - hematin", "Polyp")
_SHARED = "64440803f87b4843"
_TWICE = "b000000000000001_200.jpg"
_MISSING = "a000000000000002_103.jpg"


def _list(half: int) -> list[tuple[str, str]]:
    """Three frames of each class in each half, of two videos."""
    listed = []
    for number, label in enumerate(_FOLDER_OF):
        video = f"{'ab'[half]}00000000000000{1 + number % 2}"
        listed += [(f"{video}_{number * 100 + frame}.jpg", label) for frame in range(1, 4)]
    if half == 0:
        listed += [(f"{_SHARED}_{frame}.jpg", "Angiectasia") for frame in (20404, 20405)]
    else:
        listed += [(f"{_SHARED}_77.jpg", "Erythematous")]
        listed += [(_TWICE, "Erosion"), (_TWICE, "Pylorus")]
    return listed


def _write(rng: np.random.Generator, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(path)
    path.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7 of macOS")


def make(folder: Path) -> None:
    """11 classes in the lists, three more in folders only."""
    rng = np.random.default_rng(6)
    (folder / "official_splits").mkdir()
    for half in range(2):
        listed = _list(half)
        for name, label in listed:
            if name != _MISSING:
                _write(rng, folder / "labelled_images" / _FOLDER_OF[label] / name)
        lines = ["filename,label", *(f"{name},{label}" for name, label in listed)]
        (folder / f"official_splits/split_{half}.csv").write_text("\n".join(lines) + "\n")
    for name in _UNLISTED:
        _write(rng, folder / "labelled_images" / name / "a000000000000001_9.jpg")


MINIATURE = Miniature(
    make=make,
    items=34 + 36,
    groups=5,
    missing=(f"Blood - fresh/{_MISSING}",),
    sides={"official": {"train": 32, "test": 36}, "reversed": {"train": 36, "test": 32}},
    targets={
        "Blood - fresh/a000000000000002_101.jpg": {
            "finding": "Blood - fresh",
            "official_list": "split_0",
        },
        f"Erosion/{_TWICE}": {"finding": "Erosion", "split": "test", "split.reversed": "train"},
        f"Pylorus/{_TWICE}": {"finding": "Pylorus", "split": "test"},
        f"Angiectasia/{_SHARED}_20404.jpg": {"split": None, "split.reversed": None},
        f"Erythema/{_SHARED}_77.jpg": {"finding": "Erythema", "split": "test"},
    },
)
