"""AutoPET-II: folders with blanks in their names, a clinical table with a row a series."""

from pathlib import Path

import numpy as np
from miniature import Miniature
from niftis import write_macos, write_nifti

_DISEASES = ("NEGATIVE", "MELANOMA", "LUNG_CANCER", "LYMPHOMA")
_KINDS = ("PET-CT Ganzkoerper  primaer mit KM", "PET-CT Teilkoerper nativ", "Unspecified CT")
_HEADER = (
    "Series UID,Collection,3rd Party Analysis,Data Description URI,Subject ID,Study UID,"
    "Study Description,Study Date,Series Description,Manufacturer,Modality,SOP Class Name,"
    "SOP Class UID,Number of Images,File Size,File Location,Download Timestamp,diagnosis,age,sex"
)
_TWICE, _MISSING = 5, 8
"""Who came twice, and of whom the PET was not downloaded."""


def _patient(number: int) -> str:
    return f"PETCT_{number * 0x123456789:010x}"


def _studies() -> list[tuple[int, str, str]]:
    """List patients with the ends of their studies' UIDs, and diagnoses; one is healthy later."""
    found = [(n, f"{10445 + n:05d}", _DISEASES[n % 4]) for n in range(1, 18)]
    return [*found, (_TWICE, "00805", "NEGATIVE")]


def make(folder: Path) -> None:
    """17 patients, of whom one has two studies."""
    rng = np.random.default_rng(15)
    lines = []
    for number, ending, diagnosis in _studies():
        uid = f"1.3.6.1.4.1.14519.5.2.1.4219.6651.389860614478618826979{ending}"
        kind = _KINDS[number % 3]
        study = f"{_patient(number)}/03-{number:02d}-2003-NA-{kind}-{ending}"
        inside = folder / "FDG-PET-CT-Lesions" / study
        shape = (14, 15, 5)
        lesion = np.zeros(shape, np.uint8)
        if diagnosis != "NEGATIVE":
            lesion[4:7, 6:9, 2:4] = 1
        volumes = {
            "CTres": rng.integers(-1024, 1500, shape).astype(np.float32),
            "SUV": rng.gamma(1, 1, shape).astype(np.float32) + 8 * lesion,
            "SEG": lesion,
            "CT": np.zeros((2, 2, 2), np.int16),
            "PET": np.zeros((2, 2, 2), np.float32),
        }
        for name, voxels in volumes.items():
            if name != "SUV" or number != _MISSING:
                write_nifti(inside / f"{name}.nii.gz", voxels, (2.04, 2.04, 3))
            write_macos(inside / f"{name}.nii.gz")
        for series in ("SEG", "PT", "CT"):
            lines.append(
                f"1.2.{number},FDG-PET-CT-Lesions,NO,,{_patient(number)},{uid},{kind},"
                f"3/{number}/2003,,SIEMENS,{series},,,5,1 MB,"
                f"./FDG-PET-CT-Lesions/{study}/4.000000-{series}-1,2022-03-17T12:53:16.75,"
                f"{diagnosis},0{40 + number}Y,{'' if number == 2 else 'MF'[number % 2]}"
            )
    table = "\n".join([_HEADER, *lines]) + "\n"
    (folder / "Clinical Metadata FDG PET_CT Lesions.csv").write_text(table)


_ROOT = "FDG-PET-CT-Lesions"

MINIATURE = Miniature(
    make=make,
    items=17,
    groups=16,
    missing=(f"{_patient(_MISSING)}_10453",),
    sides={"holdout": {"train": 13, "test": 4}},
    targets={
        f"{_patient(5)}_10450": {
            "group": _patient(5),
            "diagnosis": "MELANOMA",
            "disease": "MELANOMA",
            "lesion": 1,
            "age": 45,
            "sex": "F",
            "path.ct": f"{_ROOT}/{_patient(5)}/03-05-2003-NA-Unspecified CT-10450/CTres.nii.gz",
            "path.pet": f"{_ROOT}/{_patient(5)}/03-05-2003-NA-Unspecified CT-10450/SUV.nii.gz",
            "mask": f"{_ROOT}/{_patient(5)}/03-05-2003-NA-Unspecified CT-10450/SEG.nii.gz",
        },
        f"{_patient(5)}_00805": {"diagnosis": "NEGATIVE", "disease": "MELANOMA", "lesion": 0},
        f"{_patient(2)}_10447": {"diagnosis": "LUNG_CANCER", "sex": None},
    },
    masks=17,
    rows={
        f"{_patient(number)}_{ending}": 5 for number, ending, _ in _studies() if number != _MISSING
    },
    features=("cls", "mean", "dense", "image", "mask"),
)
