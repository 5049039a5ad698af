"""BCNB: large JPEGs without um/px, polygons beside them, labels in a workbook."""

import json
from pathlib import Path

import numpy as np
from camelyon16 import draw_slide
from miniature import Miniature
from PIL import Image
from workbook import write_workbook

_PATIENTS = 32
_MISSING = 9
_HEADER = (
    "Patient ID", "Age(years)", "Tumour Size(cm)", "Tumour Type", "ER", "PR", "HER2",
    "HER2 Expression", "Histological grading", "Surgical", "Ki67", "Molecular subtype",
    "Number of lymph node metastases", "ALN status",
)  # fmt: skip


def _sign(positive: bool) -> str:
    return "Positive" if positive else "Negative"


def _row(patient: int) -> list[str | int | float | None]:
    aln = ("N0", "N0", "N+(1-2)", "N+(>2)")[patient % 4]
    # As the paper has it, the majority is called negative; one cell is empty.
    ki67 = None if patient == 32 else _sign(patient % 2 == 0)
    return [
        patient, 30 + patient, 1.5, "Invasive ductal carcinoma", _sign(patient % 2 == 1),
        _sign(patient // 2 % 2 == 1), _sign(patient // 4 % 2 == 1), "1+", 2, "BCS", ki67,
        "Luminal A", patient % 4, aln,
    ]  # fmt: skip


def make(folder: Path) -> None:
    """32 patients, a slide each."""
    rng = np.random.default_rng(5)
    (folder / "WSIs").mkdir()
    for patient in range(1, _PATIENTS + 1):
        path = folder / f"WSIs/{patient}.jpg"
        if patient != _MISSING:
            Image.fromarray(draw_slide(rng)).save(path, quality=92)
        path.with_suffix(".json").write_text(json.dumps({"name": "", "positive": []}))
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7 of macOS")
    rows = [_HEADER, *(_row(patient) for patient in range(1, _PATIENTS + 1))]
    write_workbook(folder / "patient-clinical-data.xlsx", rows)
    (folder / "dataset-splitting").mkdir()
    (folder / "dataset-splitting/train_id.txt").write_text("1\n2\n")


MINIATURE = Miniature(
    make=make,
    items=_PATIENTS - 1,
    groups=_PATIENTS - 1,
    missing=(str(_MISSING),),
    sides={
        task: {"0": 7, "1": 7, "2": 6, "3": 5, "4": 6}
        for task in ("aln", "er", "pr", "her2", "ki67")
    },
    targets={
        "1": {"aln": 0, "er": 1, "pr": 0, "her2": 0, "ki67": 1, "aln_status": "N0"},
        "2": {"aln": 1, "er": 0, "pr": 1, "her2": 0, "ki67": 0, "aln_status": "N+(1-2)"},
        "4": {"aln": 0, "er": 0, "pr": 0, "her2": 1, "ki67": 0},
        "32": {"aln": 0, "ki67": None},
    },
    rows={str(patient): 2 for patient in range(1, _PATIENTS + 1) if patient != _MISSING},
    options={"tile_px": 64, "tissue_downsample": 4, "min_area": 0.001, "median": 3},
    features=("mean",),
)
