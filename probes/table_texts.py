"""Tables of the paper with one's own rows, as Markdown, LaTeX (booktabs) and CSV."""

import re
from collections.abc import Iterator, Mapping, Sequence

import pandas as pd

from probes.paper_tables import Column, Contradiction, PaperFigure, PaperTable
from probes.standing import Mark, OwnFigure, OwnRow, Standing

__all__ = [
    "NONE",
    "SOURCE",
    "csv_of",
    "decimals_of",
    "difference_text",
    "figure_text",
    "interval_text",
    "latex_of",
    "markdown_of",
    "remarks_of",
]

NONE = "\u2013"
MINUS = "\u2212"
SOURCE = "arXiv:2509.06467v3"
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "±": r"$\pm$", "↑": r"$\uparrow$", "↓": r"$\downarrow$", MINUS: "$-$",
    "<": r"\textless{}", ">": r"\textgreater{}", "†": r"$^{\dagger}$", NONE: "--",
}  # fmt: skip


def figure_text(figure: OwnFigure, decimals: int) -> str:
    """Write a figure of one's own: with a decimal more than the paper's, if it has under four."""
    return NONE if figure.value is None else f"{figure.value:.{_places(decimals)}f}"


def interval_text(figure: OwnFigure, decimals: int) -> str:
    """Write its 95% interval; empty where there is none."""
    if figure.low is None or figure.high is None:
        return ""
    places = _places(decimals)
    return f"{figure.low:.{places}f} to {figure.high:.{places}f}"


def difference_text(figure: OwnFigure, decimals: int) -> str:
    """Write by how much it is above the paper's; empty where there is nothing to compare."""
    if figure.difference is None:
        return ""
    text = f"{figure.difference:+.{_places(decimals)}f}".replace("-", MINUS)
    return text + ("*" if figure.beyond else "")


def decimals_of(standing: Standing, column: Column) -> int:
    """Say with how many decimals the paper prints a column."""
    found = (row.figures[column].decimals for row in standing.table.rows if column in row.figures)
    return next(found, 3)


def _places(decimals: int) -> int:
    return max(decimals, min(decimals + 1, 4))


def markdown_of(standings: Sequence[Standing], general: Sequence[Contradiction] = ()) -> str:
    """Write all tables as one page of Markdown."""
    parts = [
        "# The paper's tables and one's own runs\n",
        f"Figures of the paper: {SOURCE}, as printed. **Best**, _second_: among the paper's rows "
        "and those of one's own that carry no warning. Own figures: value (95% interval), and the "
        "difference from the paper's row of the same method; * where what the paper prints lies "
        "outside the interval.\n",
    ]
    for one in standings:
        parts += [*_markdown_table(one), ""]
    if general:
        parts += ["## Contradictions that concern no table\n", *_notes(general), ""]
    return "\n".join(parts)


def _markdown_table(one: Standing) -> Iterator[str]:
    table = one.table
    several = len(table.datasets) > 1
    heads = [f"{c.dataset}: {c.title}" if several else c.title for c in table.columns]
    yield f"## Table {table.number}: {table.title}\n"
    if not several:
        yield f"{table.datasets[0]}\n"
    yield f"| method | {' | '.join(map(_markdown, heads))} |"
    yield f"|---|{'---|' * len(heads)}"
    signs = {"best": "**", "second": "_"}
    for label, mine, cells in _lines(one):
        marked = [f"{signs.get(m, '')}{_markdown(text)}{signs.get(m, '')}" for text, m in cells]
        own = "**own:** " if mine else ""
        yield f"| {own}{_markdown(label)} | {' | '.join(marked)} |"
    yield ""
    for mine in one.own:
        if mine.warnings:
            yield f"- {_markdown(_warned(mine))}"
        if mine.against:
            yield f"- {_markdown(mine.label)}: differences are from {_markdown(mine.against)}"
        yield from (f"- {_markdown(f'{mine.label}: {note}')}" for note in mine.notes)
    yield from (f"- {_markdown(note)}" for note in one.differs)
    yield from (f"- {_markdown(text)}" for text in remarks_of(table))
    yield from _notes(table.contradictions)


def remarks_of(table: PaperTable) -> list[str]:
    """Say of each figure with a † what there is to say of it."""
    return [
        f"† {row.label}, {column.dataset}, {column.title}: {figure.text}, {figure.remark}"
        for row in table.rows
        for column, figure in row.figures.items()
        if figure.remark
    ]


def _notes(contradictions: Sequence[Contradiction]) -> Iterator[str]:
    for one in contradictions:
        yield f"- [{one.id}] {_markdown(one.where)}: {_markdown(one.text)}"


def _markdown(text: str) -> str:
    return re.sub(r"([|*_<>`\[\]\\])", r"\\\1", " ".join(text.split()))


def latex_of(one: Standing) -> str:
    r"""Write a table as LaTeX: `\usepackage{booktabs}`, best bold, second underlined."""
    table = one.table
    warned = [mine for mine in one.own if mine.warnings]
    lines = [
        f"% Figures of the paper: {SOURCE}, Table {table.number}, as printed. Best is bold, second",
        "% underlined, among the paper's rows and those of one's own that carry no warning.",
        *(f"% Own: {_warned(mine)}" for mine in warned),
        rf"\begin{{tabular}}{{l{'r' * len(table.columns)}}}",
        r"\toprule",
    ]
    if len(table.datasets) > 1:
        spans = [(name, sum(c.dataset == name for c in table.columns)) for name in table.datasets]
        heads = (rf"\multicolumn{{{n}}}{{c}}{{{_latex(name)}}}" for name, n in spans)
        lines.append(_latex_row("", *heads))
    lines += [_latex_row("Method", *(_latex(c.title) for c in table.columns)), r"\midrule"]
    commands = {"best": r"\textbf", "second": r"\underline"}
    is_own = False
    for label, mine, cells in _lines(one):
        if mine and not is_own:
            lines.append(r"\midrule")
        is_own = mine is not None
        sign = r"$^{\ddagger}$" if mine and mine.warnings else ""
        marked = [rf"{commands[m]}{{{_latex(t)}}}" if m else _latex(t) for t, m in cells]
        lines.append(_latex_row(f"{'Own: ' if mine else ''}{_latex(label)}{sign}", *marked))
    lines += [r"\bottomrule", r"\end{tabular}"]
    notes = [_latex(text) for text in remarks_of(table)]
    if any(f.beyond for mine in one.own for f in mine.figures.values()):
        notes.append("* what the paper prints lies outside the 95\\% interval")
    notes += [_latex(f"{m.label}: differences from {m.against}") for m in one.own if m.against]
    lines += [rf"\par\footnotesize {text}" for text in notes]
    if warned:
        said = "; ".join(dict.fromkeys(text for mine in warned for text in mine.warnings))
        lines.append(rf"\par\footnotesize $^{{\ddagger}}$ not comparable: {_latex(said)}")
    return "\n".join(lines) + "\n"


def _latex(text: str) -> str:
    return "".join(_LATEX.get(sign, sign) for sign in " ".join(text.split()))


def _latex_row(*cells: str) -> str:
    return " & ".join(cells) + r" \\"


def _warned(row: OwnRow) -> str:
    return " ".join(f"{row.label}: not comparable: {'; '.join(row.warnings)}".split())


def _lines(one: Standing) -> Iterator[tuple[str, OwnRow | None, list[tuple[str, Mark]]]]:
    """Yield of each line its label, the own row or None, and text and mark of each cell."""
    columns = one.table.columns
    for place, row in enumerate(one.table.rows):
        cells = [(_printed(row.figures.get(c)), one.marks.get((place, c), "")) for c in columns]
        yield row.label, None, cells
    for place, mine in enumerate(one.own, start=len(one.table.rows)):
        cells = [(_own(one, mine, c), one.marks.get((place, c), "")) for c in columns]
        yield mine.label, mine, cells


def _printed(figure: PaperFigure | None) -> str:
    if figure is None:
        return ""
    return (figure.text or NONE) + ("†" if figure.remark else "")


def _own(one: Standing, row: OwnRow, column: Column) -> str:
    figure = row.figures.get(column)
    if figure is None:
        return ""
    decimals = decimals_of(one, column)
    text = figure_text(figure, decimals)
    if interval := interval_text(figure, decimals):
        text += f" ({interval})"
    if difference := difference_text(figure, decimals):
        text += f" {difference}"
    return text


def csv_of(standings: Sequence[Standing]) -> pd.DataFrame:
    """Give all figures, one a line: the paper's and one's own."""
    lines: list[Mapping[str, object]] = []
    for one in standings:
        table = one.table
        for place, row in enumerate(table.rows):
            lines += [
                {
                    **_place(one, column),
                    "source": "paper",
                    "method": row.label,
                    "value": figure.value,
                    "std": figure.std,
                    "printed": figure.text,
                    "mark": one.marks.get((place, column), ""),
                    "warnings": "",
                    "remark": figure.remark,
                }
                for column, figure in row.figures.items()
            ]
        for place, mine in enumerate(one.own, start=len(table.rows)):
            lines += [
                {
                    **_place(one, column),
                    "source": "own",
                    "method": mine.label,
                    "value": found.value,
                    "low": found.low,
                    "high": found.high,
                    "against": mine.against,
                    "difference": found.difference,
                    "beyond": found.beyond,
                    "mark": one.marks.get((place, column), ""),
                    "warnings": "; ".join(mine.warnings),
                    "runs": "; ".join(found.runs),
                }
                for column, found in mine.figures.items()
            ]
    columns = ["table", "dataset", "metric", "unit", "better", "source", "method", "value"]
    columns += ["std", "printed", "low", "high", "against", "difference", "beyond", "mark"]
    columns += ["warnings", "remark", "runs"]
    return pd.DataFrame(lines, columns=columns)


def _place(one: Standing, column: Column) -> dict[str, object]:
    return {
        "table": one.table.number,
        "dataset": column.dataset,
        "metric": column.metric,
        "unit": column.unit,
        "better": column.better,
    }
