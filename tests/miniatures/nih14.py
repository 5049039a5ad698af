"""NIH ChestX-ray14: twelve folders of images, one of them RGBA, official lists, both spellings."""

from pathlib import Path

import numpy as np
from miniature import Miniature, move
from PIL import Image

_FINDINGS = (
    "Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia",
    "Pneumothorax", "Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural Thickening",
    "Hernia",
)  # fmt: skip
_PATIENTS = 16


def _findings(patient: int, follow_up: int) -> str:
    first = _FINDINGS[(patient + follow_up) % 14]
    if patient % 8 == 3 and follow_up:
        return "No Finding"
    others = (_FINDINGS[(patient + shift) % 14] for shift in (5, 9, 2))
    return "|".join(dict.fromkeys((first, *others)))


def make(folder: Path) -> None:
    """Two images of each of 16 patients; patients 12 to 15 test."""
    rng = np.random.default_rng(1)
    lines = []
    lists: dict[str, list[str]] = {"train_val_list.txt": [], "test_list.txt": []}
    for patient in range(1, _PATIENTS + 1):
        for follow_up in range(2):
            name = f"{patient:08d}_{follow_up:03d}.png"
            part = folder / f"images_{1 + (patient - 1) * 12 // _PATIENTS:03d}/images"
            part.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 256, (33, 35), dtype=np.uint8)
            image = Image.fromarray(pixels)
            if patient == 2:
                image = image.convert("RGBA")
            if name != "00000007_001.png":  # not downloaded
                image.save(part / name)
            (part / f"._{name}").write_bytes(b"\0\5\x16\7 of macOS")
            lines.append(
                f"{name},{_findings(patient, follow_up)},{follow_up:03d},{patient},{40 + patient},"
                f"{'MF'[patient % 2]},{('PA', 'AP')[follow_up]},35,33,0.143,0.143"
            )
            lists["test_list.txt" if patient > 12 else "train_val_list.txt"].append(name)
    header = (
        "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Sex,View Position,"
        "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
    )
    (folder / "Data_Entry_2017_v2020.csv").write_text("\n".join([header, *lines]) + "\n")
    for name, listed in lists.items():
        (folder / name).write_text("\n".join(listed))


def _as_mirrors(folder: Path) -> None:
    move(folder, "images_*/images/*.png", "images")


def _of_2017(folder: Path) -> None:
    newer = folder / "Data_Entry_2017_v2020.csv"
    text = newer.read_text().replace("Patient Sex", "Patient Gender")
    (folder / "Data_Entry_2017.csv").write_text(text.replace("Pleural Thick", "Pleural_Thick"))
    newer.unlink()


MINIATURE = Miniature(
    make=make,
    layouts={"one folder": _as_mirrors, "the release of 2017": _of_2017},
    items=31,
    groups=16,
    missing=("00000007_001.png",),
    sides={"official": {"train": 23, "test": 8}, "with_val": {"train": 19, "val": 4, "test": 8}},
    targets={
        "00000001_000.png": {"Cardiomegaly": 1, "Pneumonia": 1, "Hernia": 0, "sex": "F"},
        "00000012_000.png": {"Pleural_Thickening": 1, "Infiltration": 1, "Mass": 0},
        "00000003_001.png": {"Effusion": 0, "Consolidation": 0, "view": "AP"},
    },
)
