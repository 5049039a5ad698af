"""Camelyon17 as AWS has it: images/ flat, patients without labels among them, stages.csv."""

from pathlib import Path

import numpy as np
from camelyon16 import write_slide
from miniature import Miniature

_PATIENTS = (0, 19, 21, 38, 40, 60, 69, 70, 82, 99)
_STAGES = ("negative", "macro", "itc", "micro", "negative")
_MISSING = "patient_060_node_1"


def _stage(patient: int, node: int) -> str:
    return _STAGES[(patient + node) % 5]


def make(folder: Path) -> None:
    """Three nodes of each of ten patients, of all centres and both sides of the border at 70."""
    rng = np.random.default_rng(4)
    images = folder / "images"
    images.mkdir()
    lines = ["patient,stage"]
    for patient in _PATIENTS:
        lines.append(f"patient_{patient:03d}.zip,pN0(i+)")
        for node in range(3):
            name = f"patient_{patient:03d}_node_{node}"
            lines.append(f"{name}.tif,{_stage(patient, node)}")
            if name != _MISSING:
                write_slide(images / f"{name}.tif", rng)
    write_slide(images / "patient_100_node_0.tif", rng)
    (images / "._patient_000_node_0.tif").write_bytes(b"\0\5\x16\7 of macOS")
    (folder / "stages.csv").write_text("\n".join(lines) + "\n")
    (folder / "masks").mkdir()
    write_slide(folder / "masks/patient_000_node_0_mask.tif", rng)


_KEPT = [
    (patient, node)
    for patient in _PATIENTS
    for node in range(3)
    if _stage(patient, node) != "itc" and f"patient_{patient:03d}_node_{node}" != _MISSING
]

MINIATURE = Miniature(
    make=make,
    items=23,
    groups=10,
    missing=(_MISSING,),
    sides={"unseen_attrimil": {"test": 16}, "unseen_centre": {"test": 15}},
    targets={
        "patient_000_node_0": {"tumour": 0, "stage": "negative", "centre": 0, "node": 0},
        "patient_019_node_2": {"tumour": 1, "stage": "macro", "centre": 0, "patient": 19},
        "patient_021_node_2": {"tumour": 1, "stage": "micro", "split.unseen_attrimil": "test"},
        "patient_038_node_1": {"tumour": 0, "centre": 1, "split.unseen_centre": "test"},
        "patient_040_node_0": {"centre": 2, "split.unseen_centre": None},
        "patient_069_node_0": {"centre": 3, "split.unseen_attrimil": "test"},
        "patient_070_node_0": {"centre": 3, "split.unseen_attrimil": None},
        "patient_099_node_0": {"centre": 4, "split.unseen_centre": "test"},
    },
    rows={f"patient_{patient:03d}_node_{node}": 2 for patient, node in _KEPT},
    options={"tile_px": 32, "tissue_downsample": 4, "min_area": 0.001, "median": 3},
    features=("mean",),
)
