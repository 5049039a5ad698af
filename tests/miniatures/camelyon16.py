"""Camelyon16 as GigaDB has it: training and testing apart, a reference without a header."""

from pathlib import Path

import numpy as np
import tifffile
from miniature import Miniature, move

_EACH = 15
"""Training slides of each class: three a fold."""
_TESTED = (*range(1, 10), 49)
_MISSING = 4
"""A test slide that was not downloaded."""


def draw_slide(rng: np.random.Generator) -> np.ndarray:
    """Draw 160 x 128 px of glass; two tiles of 64 px, side by side, are tissue."""
    pixels = np.full((128, 160, 3), 243, np.uint8)
    texture = rng.integers(0, 80, (8, 16, 3)).repeat(8, axis=0).repeat(8, axis=1)
    pixels[:64, :128] = texture + np.array([150, 30, 100])
    return pixels


def write_slide(path: Path, rng: np.random.Generator) -> None:
    """Write a pyramid of two levels, 0.25 um/px and half of that."""
    pixels = draw_slide(rng)
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for level in range(2):
            per_cm = 10_000 / 0.25 / 2**level
            file.write(
                pixels[:: 2**level, :: 2**level],
                photometric="rgb",
                compression="jpeg",
                tile=(64, 64),
                subfiletype=level,
                resolution=(per_cm, per_cm),
                resolutionunit="CENTIMETER",
                metadata=None,
            )


def _is_tumour(number: int) -> bool:
    return number % 2 == 1


def make(folder: Path) -> None:
    """15 normal and 15 tumour slides, 8 to test, and the two that are left out."""
    rng = np.random.default_rng(3)
    for kind in ("normal", "tumor"):
        (folder / "training" / kind).mkdir(parents=True)
        numbers = [*range(1, _EACH + 1), *([86] if kind == "normal" else [])]
        for number in numbers:
            path = folder / f"training/{kind}/{kind}_{number:03d}.tif"
            write_slide(path, rng)
            path.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7 of macOS")
    (folder / "testing/images").mkdir(parents=True)
    lines = []
    for number in _TESTED:
        if number != _MISSING:
            write_slide(folder / f"testing/images/test_{number:03d}.tif", rng)
        label = "Tumor,IDC,Macro" if _is_tumour(number) else "Normal,None,None"
        lines.append(f"test_{number:03d},{label}")
    (folder / "testing/reference.csv").write_text("\n".join(lines) + "\n")
    (folder / "testing/masks").mkdir()
    write_slide(folder / "testing/masks/test_001_mask.tif", rng)


def _as_aws(folder: Path) -> None:
    move(folder, "training/*/*.tif", "images")
    move(folder, "testing/images/*.tif", "images")
    move(folder, "testing/reference.csv", "evaluation")


def _one_up(folder: Path) -> None:
    names = [path.name for path in folder.iterdir()]
    (folder / "CAMELYON16").mkdir()
    for name in names:
        (folder / name).rename(folder / "CAMELYON16" / name)


MINIATURE = Miniature(
    make=make,
    layouts={"AWS": _as_aws, "a folder more": _one_up},
    items=2 * _EACH + 8,
    groups=2 * _EACH + 8,
    missing=(
        *(f"normal_{n:03d}" for n in range(_EACH + 1, 161) if n != 86),
        f"test_{_MISSING:03d}",
        *(f"tumor_{n:03d}" for n in range(_EACH + 1, 112)),
    ),
    sides={
        "official": {"train": 30, "test": 8},
        "cv": {"0": 5, "1": 7, "2": 7, "3": 7, "4": 4, "test": 8},
    },
    targets={
        "normal_001": {"tumour": 0},
        "tumor_001": {"tumour": 1},
        "test_001": {"tumour": 1},
        "test_002": {"tumour": 0},
    },
    rows=dict.fromkeys(
        (
            *(f"normal_{n:03d}" for n in range(1, _EACH + 1)),
            *(f"tumor_{n:03d}" for n in range(1, _EACH + 1)),
            *(f"test_{n:03d}" for n in range(1, 10) if n != _MISSING),
        ),
        2,
    ),
    options={"tile_px": 32, "tissue_downsample": 4, "min_area": 0.001, "median": 3},
    features=("mean",),
)
