"""EndoVis 2018 as ISINet arranges it: train/ and val/, and masks of class ids."""

from pathlib import Path

import numpy as np
from miniature import Miniature
from niftis import write_macos
from PIL import Image

_SEQUENCES = {"train": ("seq1", "seq3", "seq16"), "val": ("seq2", "seq15")}
_MISSING = "seq3_frame002"


def make(folder: Path) -> None:
    """Five sequences of three frames, two of them to test on."""
    rng = np.random.default_rng(8)
    for side, sequences in _SEQUENCES.items():
        parts = {n: folder / side / n for n in ("images", "annotations", "binary_annotations")}
        for part in parts.values():
            part.mkdir(parents=True)
        for sequence in sequences:
            for number in range(3):
                name = f"{sequence}_frame{number:03d}"
                labels = np.zeros((32, 40), np.uint8)
                labels[4:20, 6:18] = 1 + number
                labels[10:28, 20:35] = 7 - number
                pixels = rng.integers(0, 256, (32, 40, 3), dtype=np.uint8)
                if name != _MISSING:  # not downloaded
                    Image.fromarray(pixels).save(parts["images"] / f"{name}.png")
                Image.fromarray(labels).save(parts["annotations"] / f"{name}.png")
                write_macos(parts["images"] / f"{name}.png")
                one = Image.fromarray((labels == 1 + number).astype(np.uint8) * 255)
                one.save(parts["binary_annotations"] / f"{name}_class{1 + number}_inst0.png")
    unlabelled = folder / "test/images"
    unlabelled.mkdir(parents=True)
    Image.fromarray(np.zeros((32, 40, 3), np.uint8)).save(unlabelled / "seq4_frame000.png")


MINIATURE = Miniature(
    make=make,
    items=14,
    groups=5,
    missing=(_MISSING,),
    sides={"official": {"train": 8, "test": 6}},
    targets={
        "seq16_frame001": {"group": "seq16", "frame": 1, "split": "train"},
        "seq2_frame002": {"group": "seq2", "mask": "val/annotations/seq2_frame002.png"},
    },
    masks=14,
    features=("cls", "mean", "dense", "image", "mask"),
)
