"""CSV that a spreadsheet opens: texts of others stay texts, figures stay figures."""

import ast
import csv
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import dinocache
from dinocache.errors import ProbeError
from dinocache.spreadsheets import harmless, write_csv
from probes.runs import write_table


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ("=HYPERLINK(1)", "'=HYPERLINK(1)"),
        ("+1-2", "'+1-2"),
        ("@x", "'@x"),
        ("\tx", "'\tx"),
        ("\r=1", "'\n=1"),
        ("-", "'-"),
        ("-5", "-5"),
        ("+1.5e3", "+1.5e3"),
        ("a=1", "a=1"),
        ("a\r=1\r\nb", "a\n=1\nb"),
        ("", ""),
        (-0.5, -0.5),
        (True, True),
        (["=1"], '["=1"]'),
        (np.array([3, 5]), "[3, 5]"),
        ("a\0\udcff", "a\ufffd?"),
    ],
)
def test_a_cell(value: object, wanted: object) -> None:
    assert harmless(value) == wanted


HOSTILE = pd.DataFrame(
    {
        "item_id": ["=1+1", "a\r=2+2", "-3"],
        "+score": [0.125, -7.0, np.nan],
        "cat": pd.Categorical(["@x", "y", None]),
        "count": [1, 2, 3],
    }
)
ROWS = [
    ["item_id", "'+score", "cat", "count"],
    ["'=1+1", "0.125", "'@x", "1"],
    ["a\n=2+2", "-7.0", "y", "2"],
    ["-3", "", "", "3"],
]


def test_a_table(tmp_path: Path) -> None:
    before = HOSTILE.copy()
    write_csv(HOSTILE, tmp_path / "x.csv")
    with (tmp_path / "x.csv").open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == ROWS
    assert b"\r" not in (tmp_path / "x.csv").read_bytes()
    pd.testing.assert_frame_equal(HOSTILE, before)


def test_columns_of_one_name(tmp_path: Path) -> None:
    table = pd.DataFrame([["=1", 2, "=3"]], columns=["a", "b", "a"])
    write_csv(table, tmp_path / "x.csv")
    assert (tmp_path / "x.csv").read_text() == "a,b,a\n'=1,2,'=3\n"


def test_scores_of_a_probe(tmp_path: Path) -> None:
    """What `probe predict --out` writes."""
    write_table(HOSTILE, tmp_path / "deep/x.csv")
    with (tmp_path / "deep/x.csv").open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == ROWS
    write_table(HOSTILE, tmp_path / "x.parquet")
    assert pd.read_parquet(tmp_path / "x.parquet")["item_id"].tolist() == ["=1+1", "a\r=2+2", "-3"]
    with pytest.raises(ProbeError, match="cannot write"):
        write_table(HOSTILE, tmp_path / "x.parquet/x.csv")


def test_no_other_module_writes_csv() -> None:
    root = Path(dinocache.__file__).parents[1]
    writing = {
        path.relative_to(root).as_posix()
        for package in ("dinocache", "probes")
        for path in (root / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
        and ast.unparse(node).endswith((".to_csv", ".write_csv", "csv.writer", "csv.DictWriter"))
    }
    assert writing == {"dinocache/spreadsheets.py"}
