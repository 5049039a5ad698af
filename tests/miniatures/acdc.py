"""ACDC: patients in training/ and testing/, frames named by Info.cfg, headers that contradict."""

from pathlib import Path

import nibabel as nib
import numpy as np
from miniature import Miniature
from niftis import write_macos

_DISEASES = {n: "DCM" if n % 2 else "NOR" for n in (*range(1, 11), *range(101, 105))}
_FRAMES = {n: (1, 9 + n % 5) for n in _DISEASES} | {4: (11, 4)}
"""ED and ES; of one patient ES comes first, as in patient090 of the real ones."""


def _write(path: Path, voxels: np.ndarray) -> None:
    # As released: no qform, an sform of 1 mm, and the true size in pixdim.
    image = nib.Nifti1Image(voxels, np.eye(4))
    image.header.set_qform(None, code=0)
    image.header.set_zooms((1.5625, 1.5625, 10))
    nib.save(image, path)


def make(folder: Path) -> None:
    """Ten patients to train on and four to test on, two frames each."""
    rng = np.random.default_rng(18)
    for number, disease in _DISEASES.items():
        patient = f"patient{number:03d}"
        part = folder / "database" / ("testing" if number > 100 else "training")
        inside = part / patient
        inside.mkdir(parents=True)
        ed, es = _FRAMES[number]
        (inside / "Info.cfg").write_text(
            f"ED: {ed}\nES: {es}\nGroup: {disease}\nHeight: 184.0\nNbFrame: 30\nWeight: 95.0\n"
        )
        (inside / f"{patient}_4d.nii.gz").write_bytes(b"all frames")
        for frame in (ed, es):
            stem = f"{patient}_frame{frame:02d}"
            labels = np.zeros((16, 18, 3), np.uint8)
            for label in (1, 2, 3):
                labels[2 + 2 * label : 6 + 2 * label, 6:12, :2] = label
            if stem != "patient006_frame10":  # not downloaded
                _write(inside / f"{stem}.nii.gz", rng.integers(0, 500, (16, 18, 3), np.int16))
            _write(inside / f"{stem}_gt.nii.gz", labels)
            write_macos(inside / f"{stem}.nii.gz")
        (part / "MANDATORY_CITATION.md").write_text("Bernard et al. 2018\n")


MINIATURE = Miniature(
    make=make,
    items=27,
    groups=14,
    missing=("patient006_frame10",),
    sides={
        "official": {"train": 19, "test": 8},
        "val": {"train": 15, "val": 4, "test": 8},
    },
    targets={
        "patient004_frame11": {
            "phase": "ED",
            "disease": "NOR",
            "crop_mask": "database/training/patient004/patient004_frame11_gt.nii.gz",
        },
        "patient004_frame04": {
            "phase": "ES",
            "frame": 4,
            "crop_mask": "database/training/patient004/patient004_frame11_gt.nii.gz",
        },
        "patient103_frame12": {"phase": "ES", "group": "patient103", "split": "test"},
    },
    masks=27,
    rows={
        stem: 4
        for n, frames in _FRAMES.items()
        for f in frames
        if (stem := f"patient{n:03d}_frame{f:02d}") != "patient006_frame10"
    },
    options={"crop_size": [16, 12, 4]},
    features=("cls", "mean", "dense", "image", "mask"),
)
