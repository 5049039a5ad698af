"""The paper's tables, held against published.json figure by figure."""

import json
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_runs import write_synthetic_run

from dinocache.manifest import load_published
from probes.paper_tables import Column, PaperTable, general_contradictions, paper_tables
from probes.report import write_report
from probes.standing import standing
from probes.table_texts import NONE, csv_of, markdown_of

PUBLISHED = load_published()
ROWS: list[dict[str, Any]] = PUBLISHED["rows"]


def text_of(row: dict[str, Any]) -> str:
    """Write a figure as published.json holds it."""
    if row["value"] is None:
        return ""
    return str(row["value"]) + (f" ± {row['std']}" if row.get("std") is not None else "")


def found_in(tables: list[PaperTable], row: dict[str, Any]) -> list[str]:
    """Find a figure by all that published.json says of it but its value."""
    return [
        figure.text
        for table in tables
        for line in table.rows
        for column, figure in line.figures.items()
        if table.number == row["table"]
        and line.method == row["method"]
        and line.modality == row.get("modality")
        and line.adaptation == row["adaptation"]
        and (column.dataset, column.metric) == (row["dataset"], row["metric"])
        and (column.unit, column.better) == (row["unit"], row["better"])
        and (line.family, line.encoder) == (row["family"], row["encoder"])
        and figure.std == row.get("std")
    ]


def test_every_figure_stands_once_and_in_its_cell() -> None:
    tables = paper_tables()
    assert sum(len(line.figures) for table in tables for line in table.rows) == len(ROWS) == 923
    for row in ROWS:
        assert found_in(tables, row) == [text_of(row)], row


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_figures_in_any_order(data: st.DataObject) -> None:
    """Whatever part of the figures there is, in whatever order: each stands once, no other does."""
    some = data.draw(st.lists(st.integers(0, len(ROWS) - 1), unique=True, min_size=1, max_size=60))
    changed = [{**ROWS[at], "value": float(place)} for place, at in enumerate(some)]
    tables = paper_tables({**PUBLISHED, "rows": changed})
    assert sum(len(line.figures) for table in tables for line in table.rows) == len(changed)
    for row in changed:
        assert found_in(tables, row) == [text_of(row)]


def test_rows_and_columns_have_names_of_their_own() -> None:
    for table in paper_tables():
        assert max(Counter(line.label for line in table.rows).values()) == 1
        assert len(set(table.columns)) == len(table.columns)
        heads = [(column.dataset, column.title) for column in table.columns]
        assert max(Counter(heads).values()) == 1


def test_a_method_that_is_adapted_in_two_ways_has_two_rows() -> None:
    [ct] = [table for table in paper_tables() if table.number == 9]
    labels = {line.label: line for line in ct.rows}
    auc = ct.columns[0]
    assert labels["DINOv3-S (knn)"].figures[auc].text == "0.716"
    assert labels["DINOv3-S (linear probe)"].figures[auc].text == "0.778"


def test_what_is_printed_and_is_no_number() -> None:
    tables = paper_tables()
    said = Counter(
        (figure.text, figure.value)
        for table in tables
        for line in table.rows
        for figure in line.figures.values()
        if figure.value is None
    )
    blank = sum(row["value"] is None for row in ROWS)
    assert said == {("", None): blank, ("NaN", None): sum(row["value"] == "NaN" for row in ROWS)}


def test_a_figure_that_others_contradict_says_so_and_is_not_changed() -> None:
    tables = {table.number: table for table in paper_tables()}
    [mean] = [c for c in tables[11].columns if c.dataset.startswith("MSD/Average")]
    by_label = {line.label: line.figures[mean] for line in tables[11].rows}
    assert by_label["DINOv3-B"].text == "71.3"
    assert by_label["DINOv3-B"].remark == "by its own figures 73.65, see avg-msd"
    assert by_label["DINOv3-S"].remark == ""  # recomputed, and as printed
    [ndbe] = [c for c in tables[8].columns if c.metric == "dice_NDBE"]
    fcb = next(line for line in tables[8].rows if line.label == "FCBFormer")
    assert fcb.figures[ndbe].remark == "probably 85.9, see edd-fcb"


def test_every_contradiction_stands_at_its_tables() -> None:
    tables = paper_tables()
    for one in PUBLISHED["inconsistencies"]:
        at = {t.number for t in tables if one["id"] in {c.id for c in t.contradictions}}
        assert at == set(one["tables"]), one["id"]
    general = {one.id for one in general_contradictions()}
    assert general == {one["id"] for one in PUBLISHED["inconsistencies"] if not one["tables"]}


@pytest.mark.parametrize(
    ("column", "title"),
    [
        (Column("a", "macro_f1", "fraction", "max"), "Macro F1 ↑"),
        (Column("a", "binary_iou", "percent", "max"), "Binary IoU (%) ↑"),
        (Column("a", "hd95", "mm (unit not stated)", "min"), "HD95 (mm; unit not stated) ↓"),
        (Column("a", "voi_split", "bits", "min"), "VOI split (bits) ↓"),
    ],
)
def test_titles(column: Column, title: str) -> None:
    assert column.title == title


# What is written of them


class Cells(HTMLParser):
    """Tables of a page: per table the heads, and per row the head and the published cells."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tables: dict[int, dict[str, Any]] = {}
        self._table: dict[str, Any] | None = None
        self._into: list[str] | None = None
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        name = given.get("id") or ""
        if tag == "details" and name.startswith("table-"):
            self._table = {"heads": [], "groups": [], "rows": [], "published": 0}
            self.tables[int(name.removeprefix("table-"))] = self._table
        if self._table is None or tag not in ("th", "td", "tr"):
            return
        if tag == "tr":
            self._table["rows"].append([])
            return
        self._into = [""]
        self._table["published"] += "data-published" in given
        if given.get("scope") == "colgroup":
            self._table["groups"] += [self._into] * int(given["colspan"] or 1)
        elif given.get("scope") == "col":
            self._table["heads"].append(self._into)
        else:
            self._table["rows"][-1].append(self._into)

    def handle_endtag(self, tag: str) -> None:
        if tag == "details":
            self._table = None
        if tag in ("th", "td"):
            self._into = None

    def handle_data(self, data: str) -> None:
        if self._into is not None:
            self._into[0] += data


def test_the_page_has_every_figure_once_under_its_head(tmp_path: Path) -> None:
    write_synthetic_run(tmp_path / "runs/one", "rsna-pneumonia/pneumonia")
    page = write_report(tmp_path / "runs", tmp_path / "page.html").page.read_text("utf-8")
    shown = Cells(page).tables
    assert sum(table["published"] for table in shown.values()) == len(ROWS)
    for table in paper_tables():
        cells = shown[table.number]
        groups = [one[0] for one in cells["groups"]]
        heads = [one[0] for one in cells["heads"]]
        several = len(table.datasets) > 1
        assert heads == [
            "Method" if several else table.datasets[0],
            *(c.title for c in table.columns),
        ]
        if several:
            assert groups == [column.dataset for column in table.columns]
        rows = {row[0][0]: [one[0] for one in row[1:]] for row in cells["rows"] if len(row) > 1}
        for line in table.rows:
            expected = [
                (figure.text or NONE) + ("†" if figure.remark else "")
                if (figure := line.figures.get(column))
                else ""
                for column in table.columns
            ]
            assert rows[line.label] == expected


def test_the_csv_has_every_figure_once() -> None:
    table = csv_of(standing(paper_tables(), {}))
    assert len(table) == len(ROWS)
    assert set(table["source"]) == {"paper"}
    lines = Counter(
        zip(table["table"], table["dataset"], table["metric"], table["printed"], strict=True)
    )
    assert lines == Counter((r["table"], r["dataset"], r["metric"], text_of(r)) for r in ROWS)


def test_markdown_has_every_figure() -> None:
    text = markdown_of(standing(paper_tables(), {}), general_contradictions())
    parts = text.split("\n## Table ")[1:]
    assert len(parts) == 15
    for part in parts:
        number = int(part.partition(":")[0])
        lines = [line for line in part.splitlines() if line.startswith("| ")][1:]
        cells = [c.strip(" *_†") for line in lines for c in line.strip("|").split(" | ")[1:]]
        shown = Counter(cell for cell in cells if cell and cell != NONE)
        rows = [row for row in ROWS if row["table"] == number and row["value"] is not None]
        assert shown == Counter(text_of(row) for row in rows), number
    for one in PUBLISHED["inconsistencies"]:
        assert f"[{one['id']}]" in text


def test_json_is_left_alone() -> None:
    before = json.dumps(PUBLISHED, sort_keys=True)
    paper_tables(PUBLISHED)
    assert json.dumps(PUBLISHED, sort_keys=True) == before
