"""AC3 and AC4: two stacks, of which AC3 has more sections than are tested on."""

from pathlib import Path

import numpy as np
from em import FEATURES, neurons, write_stack
from miniature import Miniature

_SECTIONS = {"AC3": 130, "AC4": 100}


def make(folder: Path) -> None:
    """Images and labels of each, in HDF5."""
    rng = np.random.default_rng(13)
    for name, sections in _SECTIONS.items():
        shape = (sections, 23, 26)
        write_stack(folder / f"{name}_inputs.h5", rng.integers(0, 256, shape, np.uint8))
        write_stack(folder / f"{name}_labels.h5", neurons(*shape).astype(np.uint16))


MINIATURE = Miniature(
    make=make,
    items=2,
    groups=2,
    sides={"official": {"train": 1, "test": 1}},
    targets={
        "AC3": {"split": "test", "mask": "AC3_labels.h5"},
        "AC4": {"split": "train", "mask": "AC4_labels.h5"},
    },
    masks=2,
    rows=_SECTIONS,
    features=FEATURES,
)
