"""CAMUS: two views of each patient, two frames of each view, official lists of patients."""

from pathlib import Path

import numpy as np
from miniature import Miniature
from niftis import write_macos, write_nifti

_LISTS = {
    "training": ["patient0001", "patient0003", "patient0004"],
    "validation": ["patient0006"],
    "testing": ["patient0002", "patient0005"],
}
_MISSING = "patient0004_4CH_ES"


def _frame(rng: np.random.Generator, shape: tuple[int, int], shrink: int) -> tuple[np.ndarray, ...]:
    """Make a picture and its labels, (x, y) as NIfTI has them: the apex is up."""
    labels = np.zeros(shape, np.uint8)
    labels[6 + shrink : 24 - shrink, 6:28] = 2
    labels[9 + shrink : 21 - shrink, 9:28] = 1
    labels[9:21, 28:36] = 3
    return rng.integers(0, 256, shape, np.uint8), labels


def make(folder: Path) -> None:
    """Six patients, of sizes that differ."""
    rng = np.random.default_rng(17)
    lists = folder / "database_split"
    lists.mkdir()
    for name, patients in _LISTS.items():
        (lists / f"subgroup_{name}.txt").write_text("\r\n".join(patients) + "\r\n")
        for patient in patients:
            inside = folder / "database_nifti" / patient
            for view in ("2CH", "4CH"):
                shape = (30 + int(patient[-1]), 40 + (view == "4CH"))
                stem = f"{patient}_{view}"
                for shrink, phase in enumerate(("ED", "ES")):
                    image, labels = _frame(rng, shape, shrink)
                    if f"{stem}_{phase}" != _MISSING:
                        write_nifti(inside / f"{stem}_{phase}.nii.gz", image, (0.308, 0.308, 1))
                    write_nifti(inside / f"{stem}_{phase}_gt.nii.gz", labels, (0.308, 0.308, 1))
                    write_macos(inside / f"{stem}_{phase}.nii.gz")
                for ending in ("", "_gt"):
                    (inside / f"{stem}_half_sequence{ending}.nii.gz").write_bytes(b"not needed")
                (inside / f"Info_{view}.cfg").write_text(
                    f"ED: 1\nES: 18\nNbFrame: 18\nSex: F\nAge: 56\n"
                    f"ImageQuality: {'Good' if view == '2CH' else 'Poor'}\n"
                    f"EF: {50 + int(patient[-1])}\nFrameRate: 48.4\n"
                )
            (inside / "MANDATORY_CITATION.md").write_text("Leclerc et al. 2019\n")


MINIATURE = Miniature(
    make=make,
    items=23,
    groups=6,
    missing=(_MISSING,),
    sides={"official": {"train": 11, "val": 4, "test": 8}},
    targets={
        "patient0001_2CH_ED": {
            "pair": "patient0001_2CH",
            "phase": "ED",
            "view": "2CH",
            "quality": "Good",
            "ef": 51.0,
            "split": "train",
        },
        "patient0005_4CH_ES": {
            "group": "patient0005",
            "pair": "patient0005_4CH",
            "phase": "ES",
            "quality": "Poor",
            "split": "test",
            "mask": "database_nifti/patient0005/patient0005_4CH_ES_gt.nii.gz",
        },
    },
    masks=23,
    features=("cls", "mean", "dense", "image", "mask"),
)
