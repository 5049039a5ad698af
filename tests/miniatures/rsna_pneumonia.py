"""RSNA Pneumonia: DICOM by patient, a row a box, the unlabelled test images beside them."""

import uuid
from pathlib import Path

import numpy as np
from dicoms import write_dicom
from miniature import Miniature

_PATIENTS = 40
_MISSING = 7
"""A patient whose image was not downloaded."""
_CLASSES = ("Normal", "No Lung Opacity / Not Normal")


def _name(patient: int) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"patient {patient}"))


def make(folder: Path) -> None:
    """40 patients, every other with pneumonia, these with one box or two."""
    rng = np.random.default_rng(2)
    for part in ("stage_2_train_images", "stage_2_test_images"):
        (folder / part).mkdir()
    boxes, classes = ["patientId,x,y,width,height,Target"], ["patientId,class"]
    for patient in range(_PATIENTS):
        name = _name(patient)
        if patient % 2:
            rows = 1 + patient // 2 % 2
            boxes += [f"{name},{100.0 * (k + 1)},152.0,213.0,379.0,1" for k in range(rows)]
            classes += [f"{name},Lung Opacity"] * rows
        else:
            boxes.append(f"{name},,,,,0")
            classes.append(f"{name},{_CLASSES[patient // 2 % 2]}")
        path = folder / f"stage_2_train_images/{name}.dcm"
        if patient != _MISSING:
            pixels = rng.integers(0, 256, (20, 20), dtype=np.uint8)
            write_dicom(path, pixels, Modality="CR", PatientID=name)
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7 of macOS")
    (folder / "stage_2_train_labels.csv").write_text("\n".join(boxes) + "\n")
    (folder / "stage_2_detailed_class_info.csv").write_text("\n".join(classes) + "\n")
    unlabelled = folder / f"stage_2_test_images/{_name(1000)}.dcm"
    write_dicom(unlabelled, np.zeros((20, 20), np.uint8), Modality="CR")


MINIATURE = Miniature(
    make=make,
    items=_PATIENTS - 1,
    groups=_PATIENTS - 1,
    missing=(_name(_MISSING),),
    sides={"mgca": {"train": 27, "val": 6, "test": 6}},
    targets={
        _name(0): {"pneumonia": 0, "class_name": "Normal"},
        _name(1): {"pneumonia": 1, "class_name": "Lung Opacity", "boxes": 1},
        _name(2): {"pneumonia": 0, "class_name": "No Lung Opacity / Not Normal", "boxes": 0},
        _name(3): {"pneumonia": 1, "class_name": "Lung Opacity", "boxes": 2},
    },
)
