"""BCNB: large JPEGs without um/px, polygons beside them, labels in a workbook."""

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
from camelyon16 import draw_slide
from miniature import Miniature
from PIL import Image

_PATIENTS = 32
_MISSING = 9
_HEADER = (
    "Patient ID", "Age(years)", "Tumour Size(cm)", "Tumour Type", "ER", "PR", "HER2",
    "HER2 Expression", "Histological grading", "Surgical", "Ki67", "Molecular subtype",
    "Number of lymph node metastases", "ALN status",
)  # fmt: skip
_MAIN = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
_OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
_PACKAGE = "http://schemas.openxmlformats.org/package/2006"
_SHEET = "application/vnd.openxmlformats-officedocument.spreadsheetml"


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


def _write_workbook(path: Path, rows: Sequence[Sequence[str | int | float | None]]) -> None:
    """Write what Excel calls a workbook of one sheet: a few small XML files in a zip."""

    def cell(value: str | int | float | None) -> str:
        if value is None:
            return "<c/>"
        if isinstance(value, str):
            return f'<c t="inlineStr"><is><t>{escape(value)}</t></is></c>'
        return f"<c><v>{value}</v></c>"

    table = "".join(f"<row>{''.join(map(cell, row))}</row>" for row in rows)
    parts = {
        "[Content_Types].xml": f'<Types xmlns="{_PACKAGE}/content-types">'
        '<Default Extension="rels" '
        'ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
        f'<Override PartName="/xl/workbook.xml" ContentType="{_SHEET}.sheet.main+xml"/>'
        f'<Override PartName="/xl/worksheets/sheet1.xml" ContentType="{_SHEET}.worksheet+xml"/>'
        "</Types>",
        "_rels/.rels": f'<Relationships xmlns="{_PACKAGE}/relationships"><Relationship Id="rId1" '
        f'Type="{_OFFICE}/officeDocument" Target="xl/workbook.xml"/></Relationships>',
        "xl/workbook.xml": f'<workbook xmlns="{_MAIN}" xmlns:r="{_OFFICE}"><sheets>'
        '<sheet name="Sheet1" sheetId="1" r:id="rId1"/></sheets></workbook>',
        "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{_PACKAGE}/relationships">'
        f'<Relationship Id="rId1" Type="{_OFFICE}/worksheet" Target="worksheets/sheet1.xml"/>'
        "</Relationships>",
        "xl/worksheets/sheet1.xml": f'<worksheet xmlns="{_MAIN}"><sheetData>{table}</sheetData>'
        "</worksheet>",
    }
    with zipfile.ZipFile(path, "w") as file:
        for name, content in parts.items():
            file.writestr(name, f'<?xml version="1.0" encoding="UTF-8"?>{content}')


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
    _write_workbook(folder / "patient-clinical-data.xlsx", rows)
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
