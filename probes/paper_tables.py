"""The tables of figures that the paper prints, from manifests/published.json."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from dinocache.manifest import load_published

__all__ = [
    "Column",
    "Contradiction",
    "PaperFigure",
    "PaperRow",
    "PaperTable",
    "general_contradictions",
    "paper_tables",
]

_TITLES = {
    2: "Findings in chest radiographs",
    3: "Tumour in whole slides, trained and tested in one domain",
    4: "Tumour in whole slides of centres that were not trained on",
    5: "Findings in capsule endoscopy",
    6: "Phases of laparoscopic hysterectomy",
    7: "Instruments in endoscopic surgery",
    8: "Disease in gastrointestinal endoscopy",
    9: "Abnormalities in chest CT",
    10: "Medical Segmentation Decathlon, tasks 1 to 5",
    11: "Medical Segmentation Decathlon, tasks 6 to 10 and the mean of all ten",
    12: "Neurons in electron microscopy: CREMI",
    13: "Neurons in electron microscopy: AC3/4 and Wafer4",
    14: "Lesions and tumours in PET and CT",
    15: "Registration of cardiac ultrasound",
    16: "Registration of cardiac MR",
}
_METRICS = {
    "arand": "ARAND",
    "asd": "ASD",
    "auc": "AUC",
    "dice_avg": "Dice, mean",
    "hd95": "HD95",
    "miou": "mIoU",
    "voi": "VOI",
    "voi_merge": "VOI merge",
    "voi_split": "VOI split",
}


@dataclass(frozen=True)
class Column:
    """What a column of figures is of.

    Attributes:
        dataset: As the paper names it.
        metric: As published.json names it.
        unit: `fraction`, `percent`, `bits`, `pixel`, `mm`, or `mm (unit not stated)`.
        better: Which figure is the better one.
    """

    dataset: str
    metric: str
    unit: str
    better: Literal["max", "min"]

    @property
    def title(self) -> str:
        """The metric as people write it, its unit, and an arrow to the better side."""
        words = self.metric.replace("_", " ").replace("iou", "IoU").replace("f1", "F1")
        name = _METRICS.get(self.metric, words[:1].upper() + words[1:])
        unit = {"fraction": "", "percent": " (%)"}.get(
            self.unit, f" ({self.unit.replace(' (', '; ').removesuffix(')')})"
        )
        return f"{name}{unit} {'↑' if self.better == 'max' else '↓'}"

    @property
    def scale(self) -> float:
        """By what our figures, shares from 0 to 1, are multiplied to be in its unit."""
        return 100.0 if self.unit == "percent" else 1.0


@dataclass(frozen=True, kw_only=True)
class PaperFigure:
    """One printed figure.

    Attributes:
        text: As printed, but for zeros at the end, which JSON drops; `NaN` where it is printed,
            empty where there is a dash or a blank.
        value: Its number, or None.
        std: What follows ±, or None.
        decimals: With how many its column is printed.
        resolution: Of the images, where the paper states it, px.
        remark: What other figures of the same tables give in its place, and the like.
    """

    text: str
    value: float | None
    std: float | None
    decimals: int
    resolution: int | None
    remark: str


@dataclass(frozen=True, kw_only=True)
class PaperRow:
    """A method of a table.

    Attributes:
        label: Its name, with what tells it from others of that name in the table.
        method: Its name.
        family: What sort it is.
        encoder: `dinov3_vits`, `dinov3_vitb`, `dinov3_vitl`, or None.
        adaptation: How it was adapted.
        modality: Of the images, where a table has several.
        figures: What it reaches.
    """

    label: str
    method: str
    family: str
    encoder: str | None
    adaptation: str
    modality: str | None
    figures: Mapping[Column, PaperFigure] = field(hash=False)


@dataclass(frozen=True)
class Contradiction:
    """Where the paper contradicts itself; `where` names table, section or figure."""

    id: str
    where: str
    text: str


@dataclass(frozen=True, kw_only=True)
class PaperTable:
    """A table of the paper.

    Attributes:
        number: As the paper counts.
        title: What it is of, in our words.
        columns: From the left.
        rows: From the top; each has a figure, maybe an empty one, in some columns.
        contradictions: That concern it.
    """

    number: int
    title: str
    columns: tuple[Column, ...]
    rows: tuple[PaperRow, ...]
    contradictions: tuple[Contradiction, ...]

    @property
    def datasets(self) -> tuple[str, ...]:
        """Of its columns, each once."""
        return tuple(dict.fromkeys(column.dataset for column in self.columns))


def paper_tables(published: Mapping[str, Any] | None = None) -> list[PaperTable]:
    """Give all tables of figures.

    Args:
        published: What published.json holds; None reads it.

    Returns:
        In order of their numbers.
    """
    published = load_published() if published is None else published
    by_number: dict[int, list[dict[str, Any]]] = {}
    for row in published["rows"]:
        by_number.setdefault(row["table"], []).append(row)
    return [_table(number, rows, published) for number, rows in sorted(by_number.items())]


def general_contradictions(published: Mapping[str, Any] | None = None) -> list[Contradiction]:
    """Give those that concern no table of figures."""
    published = load_published() if published is None else published
    return [_contradiction(one) for one in published["inconsistencies"] if not one["tables"]]


def _table(number: int, printed: list[dict[str, Any]], published: Mapping[str, Any]) -> PaperTable:
    printed = sorted(printed, key=lambda row: (row["row"], row["column"]))
    columns = tuple(dict.fromkeys(_column(row) for row in printed))
    decimals = {column: _decimals(printed, column) for column in columns}
    apart = _what_tells_apart(printed)
    rows: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in printed:
        rows.setdefault(tuple(row.get(key) for key in ("method", *apart)), []).append(row)
    remarks = {
        (one["table"], one["dataset"], one["method"], one["metric"]): one
        for one in published["recomputed"]
    }
    datasets = {column.dataset for column in columns}
    return PaperTable(
        number=number,
        title=_TITLES.get(number, f"Table {number}"),
        columns=columns,
        rows=tuple(_row(cells, apart, decimals, remarks) for cells in rows.values()),
        contradictions=tuple(
            _contradiction(one)
            for one in published["inconsistencies"]
            if number in one["tables"] and (not one["datasets"] or datasets & {*one["datasets"]})
        ),
    )


def _what_tells_apart(printed: list[dict[str, Any]]) -> tuple[str, ...]:
    """Name the fields in which rows of one method differ."""
    methods: dict[str, list[dict[str, Any]]] = {}
    for row in printed:
        methods.setdefault(row["method"], []).append(row)
    return tuple(
        key
        for key in ("adaptation", "modality")
        if any(len({row.get(key) for row in rows}) > 1 for rows in methods.values())
    )


def _row(
    cells: list[dict[str, Any]],
    apart: Iterable[str],
    decimals: Mapping[Column, int],
    remarks: Mapping[tuple[Any, ...], Mapping[str, Any]],
) -> PaperRow:
    first = cells[0]
    # What stands in brackets is an explanation of published.json's.
    said = [str(first[key]).partition(" (")[0].replace("_", " ") for key in apart if first.get(key)]
    return PaperRow(
        label=first["method"] + (f" ({', '.join(said)})" if said else ""),
        method=first["method"],
        family=first["family"],
        encoder=first["encoder"],
        adaptation=first["adaptation"],
        modality=first.get("modality"),
        figures={
            (column := _column(cell)): _figure(cell, decimals[column], remarks) for cell in cells
        },
    )


def _figure(
    cell: Mapping[str, Any],
    decimals: int,
    remarks: Mapping[tuple[Any, ...], Mapping[str, Any]],
) -> PaperFigure:
    value, std = cell["value"], cell.get("std")
    text = "" if value is None else str(value)
    number = float(value) if isinstance(value, int | float) else None
    if number is not None:
        text += "" if std is None else f" ± {std}"
    remark = "category taken from the prompt" if cell.get("starred") else ""
    other = remarks.get(tuple(cell[key] for key in ("table", "dataset", "method", "metric")))
    if other is not None and other["printed"] == value != other["recomputed"]:
        guess = "probably" if other.get("probable") else "by its own figures"
        remark = f"{guess} {other['recomputed']}, see {other['note']}"
    return PaperFigure(
        text=text,
        value=number,
        std=std,
        decimals=decimals,
        resolution=cell.get("resolution"),
        remark=remark,
    )


def _column(row: Mapping[str, Any]) -> Column:
    return Column(row["dataset"], row["metric"], row["unit"], row["better"])


def _decimals(printed: list[dict[str, Any]], column: Column) -> int:
    """Say how many decimals a column is printed with."""
    found = [
        len(str(number).partition(".")[2])
        for row in printed
        if _column(row) == column
        for number in (row["value"], row.get("std"))
        if isinstance(number, int | float)
    ]
    return max(found, default=0)


def _contradiction(one: Mapping[str, Any]) -> Contradiction:
    return Contradiction(one["id"], one["where"], one["text"])
