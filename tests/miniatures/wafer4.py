"""Wafer4: images and labels in two HDF5 files."""

from pathlib import Path

import numpy as np
from em import FEATURES, neurons, write_stack
from miniature import Miniature
from niftis import write_macos


def make(folder: Path) -> None:
    """125 sections, in a folder of their own."""
    shape = (125, 25, 22)
    inside = folder / "wafer4"
    inside.mkdir()
    raw = np.random.default_rng(14).integers(0, 256, shape, np.uint8)
    write_stack(inside / "wafer4_inputs.h5", raw)
    write_stack(inside / "wafer4_labels.h5", neurons(*shape).astype(np.uint16))
    write_macos(inside / "wafer4_inputs.h5")


MINIATURE = Miniature(
    make=make,
    items=1,
    groups=1,
    targets={"wafer4": {"mask": "wafer4/wafer4_labels.h5"}},
    masks=1,
    rows={"wafer4": 125},
    features=FEATURES,
)
