"""Medical Segmentation Decathlon: one task's folder, or that folder in a folder of tasks.

Labels and images of which one is unpacked, an image that was not downloaded, files of macOS.
"""

import json
from functools import partial
from pathlib import Path

import numpy as np
from miniature import Miniature
from niftis import write_macos, write_nifti
from sklearn.model_selection import KFold

_SLICES = (3, 4, 3, 4, 3, 4)


def _make(folder: Path, *, task: str, cases: list[str], labels: int, channels: int) -> None:
    rng = np.random.default_rng(11)
    number = int(task[4:6])
    # Half of them as the archive unpacks, half with --data at the task itself.
    root = folder / task if number % 2 else folder
    for index, case in enumerate(cases):
        slices = [*_SLICES, 3][index]
        shape = (18, 15, slices)
        image = rng.integers(1, 900, (*shape, channels) if channels else shape)
        mask = np.zeros(shape, np.uint8)
        mask[4:12, 5:11] = 1 + index % labels
        ending = ".nii" if index == 2 else ".nii.gz"
        if index < len(_SLICES):  # the last one was not downloaded
            write_nifti(root / f"imagesTr/{case}{ending}", image.astype(np.int16), (1, 1, 2.5))
        write_macos(root / f"imagesTr/{case}{ending}")
        ending = ".nii" if index == 3 else ".nii.gz"
        write_nifti(root / f"labelsTr/{case}{ending}", mask, (1, 1, 2.5))
        write_macos(root / f"labelsTr/{case}{ending}")
    write_nifti(root / f"labelsTr/{cases[0]}.nii", np.zeros((18, 15, 3), np.uint8))  # left behind
    write_nifti(root / f"imagesTs/{cases[0]}9.nii.gz", np.zeros((4, 4, 2), np.int16))
    listed = [{"image": f"./imagesTr/{c}.nii.gz", "label": f"./labelsTr/{c}.nii.gz"} for c in cases]
    (root / "dataset.json").write_text(json.dumps({"numTraining": len(cases), "training": listed}))
    write_macos(root / "dataset.json")


def _folds(cases: tuple[str, ...]) -> dict[str, int]:
    """Deal all cases, as the rule says, and count those that have an image."""
    dealt = KFold(5, shuffle=True, random_state=0).split(sorted(cases))
    sizes = {
        str(fold): sum(sorted(cases)[i] != cases[-1] for i in tested)
        for fold, (_, tested) in enumerate(dealt)
    }
    return {fold: size for fold, size in sizes.items() if size}


def msd(task: str, *cases: str, labels: int, channels: int = 0) -> Miniature:
    """Make the miniature of a task, as `Task04_Hippocampus`, from the names of seven cases.

    The last of them has no image.
    """
    found = dict(zip(cases[:-1], _SLICES, strict=True))
    return Miniature(
        make=partial(_make, task=task, cases=list(cases), labels=labels, channels=channels),
        items=6,
        groups=6,
        missing=(cases[-1],),
        sides={"cv": _folds(cases)},
        masks=6,
        rows=found,
        features=("cls", "mean", "dense", "image", "mask"),
    )
