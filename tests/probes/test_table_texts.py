"""Tables as Markdown, LaTeX and CSV: what they say, and that no name breaks them."""

import re
from pathlib import Path

import pandas as pd
import pytest
from synthetic_runs import estimate, write_synthetic_run

from probes.paper_tables import paper_tables
from probes.runs import Result
from probes.standing import OwnFigure, Standing, standing
from probes.table_texts import (
    csv_of,
    difference_text,
    figure_text,
    interval_text,
    latex_of,
    markdown_of,
)

HOSTILE = r"a|b_c*d&e%f#g{h}\i<b>$x$^~"


def placed(number: int, result: Result) -> Standing:
    [one] = [s for s in standing(paper_tables(), {"run": result}) if s.table.number == number]
    return one


def pneumonia(folder: Path, **changes: object) -> Result:
    metrics = {"auc": estimate(0.9, 0.02), "recall": estimate(0.5, 0.01)}
    return write_synthetic_run(folder, "rsna-pneumonia/pneumonia", metrics=metrics, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("decimals", "texts"),
    [
        (1, ("71.26", "70.15 to 72.38", "\u22120.74*")),
        (2, ("71.260", "70.150 to 72.380", "\u22120.740*")),
        (4, ("71.2600", "70.1500 to 72.3800", "\u22120.7400*")),
    ],
)
def test_a_decimal_more_than_the_paper_has(decimals: int, texts: tuple[str, ...]) -> None:
    figure = OwnFigure(
        value=71.26, low=70.15, high=72.38, difference=-0.74, beyond=True, runs=("a",)
    )
    said = (
        figure_text(figure, decimals),
        interval_text(figure, decimals),
        difference_text(figure, decimals),
    )
    assert said == texts


def test_what_is_not_defined() -> None:
    figure = OwnFigure(value=None, low=None, high=1, difference=None, beyond=False, runs=("a",))
    assert (figure_text(figure, 2), interval_text(figure, 2), difference_text(figure, 2)) == (
        "\u2013",
        "",
        "",
    )


def test_an_own_row_in_each_form(tmp_path: Path) -> None:
    one = placed(2, pneumonia(tmp_path, model="dinov3-l"))
    # The paper prints 0.8708 and 0.7744 of DINOv3-L; recall has three decimals less than four.
    line = next(x for x in markdown_of([one]).splitlines() if x.startswith("| **own:**"))
    assert "dinov3-l @ 256, linear on cls |" in line
    assert "**0.9000 (0.8800 to 0.9300) +0.0292\\***" in line
    assert "0.5000 (0.4900 to 0.5150) \u22120.2744\\*" in line
    row = next(x for x in latex_of(one).splitlines() if x.startswith("Own: "))
    assert r"\textbf{0.9000 (0.8800 to 0.9300) +0.0292*}" in row
    assert row.endswith(r"\\")
    table = csv_of([one])
    own = table[table["source"] == "own"].set_index("metric")
    assert list(own["value"]) == [0.9, 0.5]
    assert own.loc["auc", "difference"] == pytest.approx(0.0292)
    assert own.loc["auc", "mark"] == "best"
    assert own.loc["auc", "against"] == "DINOv3-L"


def test_a_row_that_does_not_compare_says_so_in_each_form(tmp_path: Path) -> None:
    one = placed(2, pneumonia(tmp_path, random=True))
    said = "random weights (random:0)"
    assert f"not comparable: {said}" in markdown_of([one])
    latex = latex_of(one)
    assert f"not comparable: {said}" in latex.splitlines()[2]
    assert rf"$^{{\ddagger}}$ not comparable: {said}" in latex.splitlines()[-1]
    table = csv_of([one])
    assert set(table.loc[table["source"] == "own", "warnings"]) == {said}
    assert set(table.loc[table["source"] == "own", "mark"]) == {""}


def test_latex_is_a_whole_table() -> None:
    for one in standing(paper_tables(), {}):
        text = latex_of(one)
        lines = text.splitlines()
        assert [
            line for line in lines if line.startswith(r"\begin") or line == r"\end{tabular}"
        ] == [
            rf"\begin{{tabular}}{{l{'r' * len(one.table.columns)}}}",
            r"\end{tabular}",
        ]
        rows = [line for line in lines if line.endswith(r"\\")]
        spans = len(one.table.datasets) > 1
        assert len(rows) == len(one.table.rows) + 1 + spans
        for row in rows[spans:]:
            assert len(re.findall(r"(?<!\\)&", row)) == len(one.table.columns)
        assert (
            lines.count(r"\toprule") == lines.count(r"\midrule") == lines.count(r"\bottomrule") == 1
        )
        assert balanced(text)


def balanced(text: str) -> bool:
    depth = 0
    for brace in re.findall(r"(?<!\\)[{}]", text):
        depth += 1 if brace == "{" else -1
        assert depth >= 0
    return depth == 0


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    made = pneumonia(tmp_path, random=True)
    store = made.store.model_copy(update={"model": HOSTILE + "\n\\end", "weights": HOSTILE})
    one = placed(2, made.model_copy(update={"store": store}))
    latex = latex_of(one)
    row = next(line for line in latex.splitlines() if line.startswith("Own: "))
    assert len(re.findall(r"(?<!\\)&", row)) == 8
    assert r"\textbackslash{}end" in row
    assert balanced(row)
    assert not re.search(r"(?<!\\)[%#$_](?!\^\{)", re.sub(r"\$\^\{.dd?agger\}\$|\$[-+]\$", "", row))
    text = markdown_of([one])
    [line] = [x for x in text.splitlines() if x.startswith("| **own:**")]
    assert len(re.findall(r"(?<!\\)\|", line)) == 10
    assert r"\<b\>" in line


def test_a_spreadsheet_runs_nothing(tmp_path: Path) -> None:
    from probes.runs import write_table

    made = pneumonia(tmp_path / "run")
    store = made.store.model_copy(update={"model": "=cmd()"})
    write_table(csv_of([placed(2, made.model_copy(update={"store": store}))]), tmp_path / "t.csv")
    methods = pd.read_csv(tmp_path / "t.csv")["method"]
    assert not [name for name in methods if name.startswith(("=", "+", "-", "@"))]
