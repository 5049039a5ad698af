"""Stacks of electron microscopes in HDF5, all sections of them, and next to nothing of each."""

from functools import partial
from pathlib import Path

import h5py
import numpy as np
from miniature import Miniature

FEATURES = ("cls", "mean", "dense", "image", "mask")


def neurons(sections: int, height: int, width: int) -> np.ndarray:
    """Label four columns that lean from section to section, with borders of 0 between them."""
    z, y, x = np.indices((sections, height, width))
    across = x + z // 10
    labels = 1 + across // 9 + 10 * (y > height // 2)
    labels[across % 9 == 0] = 0
    return labels.astype(np.uint64)


def write_stack(path: Path, stack: np.ndarray) -> None:
    """Write one data set, `main`."""
    with h5py.File(path, "w") as file:
        file.create_dataset("main", data=stack, compression="gzip", chunks=(25, *stack.shape[1:]))


def _make_cremi(folder: Path, *, sample: str) -> None:
    rng = np.random.default_rng(ord(sample))
    shape = (125, 24, 27)
    with h5py.File(folder / f"sample_{sample}_20160501.hdf", "w") as file:
        file.attrs["file_format"] = "0.2"
        raw = file.create_dataset(
            "volumes/raw",
            data=rng.integers(0, 256, shape, np.uint8),
            compression="gzip",
            chunks=(5, 12, 27),
        )
        raw.attrs["resolution"] = (40.0, 4.0, 4.0)
        clefts = np.full(shape, 2**64 - 1, np.uint64)
        for name, labels in (("neuron_ids", neurons(*shape)), ("clefts", clefts)):
            made = file.create_dataset(f"volumes/labels/{name}", data=labels, compression="gzip")
            made.attrs["resolution"] = (40.0, 4.0, 4.0)
        file.create_dataset("annotations/ids", data=np.arange(3, dtype=np.uint64))
    # With a border around the labels: not what is wanted.
    (folder / f"sample_{sample}_padded_20160501.hdf").write_bytes(b"larger")


def cremi(sample: str) -> Miniature:
    """Make the miniature of a sample, A, B or C."""
    return Miniature(
        make=partial(_make_cremi, sample=sample),
        items=1,
        groups=1,
        targets={sample: {"mask": f"sample_{sample}_20160501.hdf"}},
        masks=1,
        rows={sample: 125},
        features=FEATURES,
    )
