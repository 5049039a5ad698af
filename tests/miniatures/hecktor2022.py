"""HECKTOR 2022: CT and PET on grids of their own, labels on that of the CT, in two spellings."""

from pathlib import Path

import numpy as np
from miniature import Miniature
from niftis import write_macos, write_nifti

_CENTRES = ("CHUM", "CHUV", "MDA")
_MISSING = "MDA-014"


def _cases() -> list[str]:
    return [f"{_CENTRES[n % 3]}-{n:03d}" for n in range(1, 17)]


def make(folder: Path) -> None:
    """16 cases of three centres."""
    rng = np.random.default_rng(16)
    root = folder / "hecktor2022_training"
    for index, case in enumerate(_cases()):
        ct = rng.integers(-1000, 1500, (24, 22, 4)).astype(np.int16)
        pet = rng.gamma(1, 2, (6, 6, 4)).astype(np.float32)
        labels = np.zeros(ct.shape, np.uint8)
        labels[8:14, 8:14, 1:3] = 1
        labels[15:20, 8:14, 1:3] = 2
        spelt = case if index % 2 else case.replace("-", "_")
        if case != _MISSING:  # PET was not downloaded
            write_nifti(root / f"imagesTr/{case}__PT.nii.gz", pet, (4, 4, 3))
        write_nifti(root / f"imagesTr/{case}__CT.nii.gz", ct, (1, 1, 3))
        write_nifti(root / f"labelsTr/{spelt}.nii.gz", labels, (1, 1, 3))
        for name in (f"imagesTr/{case}__CT.nii.gz", f"labelsTr/{spelt}.nii.gz"):
            write_macos(root / name)
    (root / "hecktor2022_clinical_info_training.csv").write_text("PatientID\n")
    testing = folder / "hecktor2022_testing/imagesTs"
    for kind in ("CT", "PT"):
        write_nifti(testing / f"USZ-001__{kind}.nii.gz", np.zeros((4, 4, 2), np.int16))


MINIATURE = Miniature(
    make=make,
    items=15,
    groups=15,
    missing=(_MISSING,),
    sides={"holdout": {"train": 11, "test": 4}},
    targets={
        "CHUV-001": {
            "centre": "CHUV",
            "path.ct": "hecktor2022_training/imagesTr/CHUV-001__CT.nii.gz",
            "path.pet": "hecktor2022_training/imagesTr/CHUV-001__PT.nii.gz",
            "mask": "hecktor2022_training/labelsTr/CHUV_001.nii.gz",
        },
        "MDA-002": {"centre": "MDA", "mask": "hecktor2022_training/labelsTr/MDA-002.nii.gz"},
    },
    masks=15,
    rows={case: 6 for case in _cases() if case != _MISSING},
    features=("cls", "mean", "dense", "image", "mask"),
)
