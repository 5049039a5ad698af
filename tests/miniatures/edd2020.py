"""EDD 2020: a mask a class, for those classes only that a frame has; they may overlap."""

from pathlib import Path

import numpy as np
from miniature import Miniature
from niftis import write_macos
from PIL import Image

_CLASSES = ("BE", "suspicious", "HGD", "cancer", "polyp")
_KINDS = (("BE",), ("BE", "HGD"), ("polyp",), ("BE", "suspicious", "HGD"))
"""What frames have, by turns: of 24, 18 have BE, 12 HGD, 6 suspicious tissue, 6 a polyp."""
_MISSING = "EDD2020_ABC0022"


def make(folder: Path) -> None:
    """24 frames of different sizes, and one in which nothing is."""
    rng = np.random.default_rng(9)
    root = folder / "EDD2020_release-I_2020-01-15"
    for part in ("originalImages", "masks", "bbox"):
        (root / part).mkdir(parents=True)
    (root / "class_list.txt").write_text("\n".join(_CLASSES))
    for number in range(25):
        name = f"EDD2020_{'ACB' if number < 20 else 'ABC'}{number:04d}"
        shape = (36 + number % 5, 44 - number % 3)
        pixels = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
        if name != _MISSING:  # not downloaded
            Image.fromarray(pixels).save(root / f"originalImages/{name}.jpg")
        write_macos(root / f"originalImages/{name}.jpg")
        for kind in _KINDS[number % 4] if number < 24 else ():
            at = 2 + 4 * _CLASSES.index(kind)
            mask = np.zeros(shape, np.uint8)
            mask[at : at + 12, at : at + 14] = 255
            Image.fromarray(mask).save(root / f"masks/{name}_{kind}.tif", compression="tiff_lzw")
            write_macos(root / f"masks/{name}_{kind}.tif")
        (root / f"bbox/{name}.txt").write_text("2 2 16 14 BE\n")


_ROOT = "EDD2020_release-I_2020-01-15"

MINIATURE = Miniature(
    make=make,
    items=24,
    groups=24,
    missing=(_MISSING,),
    sides={"cv": {"0": 5, "1": 5, "2": 5, "3": 4, "4": 5}},
    targets={
        "EDD2020_ACB0001": {
            "mask.BE": f"{_ROOT}/masks/EDD2020_ACB0001_BE.tif",
            "mask.HGD": f"{_ROOT}/masks/EDD2020_ACB0001_HGD.tif",
            "mask.polyp": None,
            "classes": "BE, HGD",
            "rarest": "HGD",
        },
        "EDD2020_ACB0003": {"rarest": "suspicious", "mask.cancer": None},
        "EDD2020_ABC0024": {"rarest": "none", "classes": None},
    },
    masks=23,
    features=("cls", "mean", "dense", "image", "mask"),
)
