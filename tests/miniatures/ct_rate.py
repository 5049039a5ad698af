"""CT-RATE: folders by patient and scan, the corrected train volumes, lists of what is no chest."""

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
from miniature import Miniature

_LABELS = (
    "Medical material", "Arterial wall calcification", "Cardiomegaly", "Pericardial effusion",
    "Coronary artery wall calcification", "Hiatal hernia", "Lymphadenopathy", "Emphysema",
    "Atelectasis", "Lung nodule", "Lung opacity", "Pulmonary fibrotic sequela",
    "Pleural effusion", "Mosaic attenuation pattern", "Peribronchial thickening",
    "Consolidation", "Bronchiectasis", "Interlobular septal thickening",
)  # fmt: skip
_VOLUMES = {
    "train": [f"train_{p}_{s}_{r}" for p in range(1, 9) for s, r in (("a", 1), ("a", 2), ("b", 1))],
    "valid": [f"valid_{p}_a_{r}" for p in range(1, 7) for r in (1, 2)],
}
_FOLDERS = {"train": "train_fixed", "valid": "valid"}
_NO_CHEST = {"train": ["train_5_b_1"], "valid": ["valid_6_a_1", "valid_6_a_2"]}
_MISSING = "train_3_a_2"


def _write_volume(path: Path, rng: np.random.Generator) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = rng.integers(-1024, 1500, (12, 10, 3)).astype(np.int16)
    nib.save(nib.Nifti1Image(values, np.diag([0.7, 0.7, 1.5, 1])), path)


def make(folder: Path) -> None:
    """24 volumes of 8 patients to train, 12 of 6 to validate."""
    rng = np.random.default_rng(8)
    dataset = folder / "dataset"
    for name in ("metadata", "multi_abnormality_labels"):
        (dataset / name).mkdir(parents=True)
    for split, volumes in _VOLUMES.items():
        lines = [",".join(["VolumeName", *_LABELS])]
        for index, volume in enumerate(volumes):
            patient, scan, _ = volume.rsplit("_", 2)
            place = dataset / _FOLDERS[split] / patient / f"{patient}_{scan}"
            if volume != _MISSING:
                _write_volume(place / f"{volume}.nii.gz", rng)
            values = ["01"[(index + column) % 3 == 0] for column in range(18)]
            lines.append(",".join([f"{volume}.nii.gz", *values]))
        labels = dataset / f"multi_abnormality_labels/{split}_predicted_labels.csv"
        labels.write_text("\n".join(lines) + "\n")
        listed = "".join(f"{volume}.nii.gz\n" for volume in _NO_CHEST[split])
        (dataset / f"metadata/no_chest_{split}.txt").write_text(listed)
    beside = dataset / "train_fixed/train_1/train_1_a/._train_1_a_1.nii.gz"
    beside.write_bytes(b"\0\5\x16\7 of macOS")
    # Of the train volumes as first released one was left behind.
    _write_volume(dataset / "train/train_3/train_3_a/train_3_a_1.nii.gz", rng)


def _as_first_released(folder: Path) -> None:
    shutil.rmtree(folder / "dataset/train")
    (folder / "dataset/train_fixed").rename(folder / "dataset/train")


MINIATURE = Miniature(
    make=make,
    layouts={"the first release": _as_first_released},
    items=35,
    groups=14,
    missing=(_MISSING,),
    sides={"official": {"train": 22, "test": 10}, "all": {"train": 23, "test": 12}},
    targets={
        "train_1_a_1": {
            "medical_material": 1,
            "arterial_wall_calcification": 0,
            "pericardial_effusion": 1,
            "interlobular_septal_thickening": 0,
            "folder": "train_fixed",
        },
        "train_1_a_2": {"medical_material": 0, "cardiomegaly": 1, "consolidation": 0},
        "valid_1_a_1": {"medical_material": 1, "split": "test", "folder": "valid"},
        "train_5_b_1": {"split": None, "split.all": "train"},
        "valid_6_a_2": {"split": None, "split.all": "test"},
    },
    rows={volume: 3 for volumes in _VOLUMES.values() for volume in volumes if volume != _MISSING},
)
