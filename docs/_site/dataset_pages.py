"""A page for each dataset: where it is from, how it is read, its tasks, and the paper's figures.

From manifests/*.yaml and manifests/published.json alone.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from dinocache.manifest import (
    OFFICIAL,
    Folds,
    Manifest,
    Published,
    SplitRule,
    Task,
    load_manifest,
    load_published,
    shipped_manifests,
)

Row = Mapping[str, Any]
_OF_LINES = ("adaptation", "modality", "trained_on", "arch", "resolution")
_OF_COLUMNS = ("aggregate",)
"""Fields that tell lines, or columns, of one name apart; said where they do."""
_GENERAL = "What is said of the paper as a whole"


@cache
def dataset_pages() -> dict[str, str]:
    """Write all pages.

    Returns:
        Page -> Markdown; the first is that of all datasets.
    """
    published = load_published()
    manifests = [load_manifest(path) for path in shipped_manifests().values()]
    pages = {"datasets/index.md": _overview(manifests, published)}
    return pages | {f"datasets/{m.name}.md": _page(m, published) for m in manifests}


def _overview(manifests: Sequence[Manifest], published: Row) -> str:
    source = published["source"]
    lines = [
        "# Datasets",
        "",
        "Each is read from its official download by one file, a [manifest](../manifests.md). "
        f"Tasks say which rows of the paper they answer to: *{source['title']}* "
        f"(arXiv:{source['arxiv']}, version {source['version']}, {source['date']}). Figures stand "
        "as they are printed; where the paper contradicts itself, the page says so.",
        "",
        "| dataset | what | items | tasks | tables |",
        "|---|---|---:|---|---|",
    ]
    for m in manifests:
        tables = sorted({answer.table for task in m.tasks.values() for answer in task.paper})
        tasks = ", ".join(f"[{name}]({m.name}.md#{name})" for name in m.tasks)
        items = f"{m.expect['items']:,}" if "items" in m.expect else ""
        numbers = ", ".join(map(str, tables))
        lines.append(
            f"| [{m.name}]({m.name}.md) | {_text(m.title)} | {items} | {tasks} | {numbers} |"
        )
    lines += ["", f"## {_GENERAL}", ""]
    lines += [_note(note) for note in published["inconsistencies"] if not note["tables"]]
    lines += ["", "Not in its text, and so not in these tables:", ""]
    lines += [f"- {_text(figure)}" for figure in published["not_in_text"]]
    return "\n".join(lines) + "\n"


def _page(m: Manifest, published: Row) -> str:
    facts = [("what", m.title), ("modality", m.modality), ("licence", m.licence)]
    facts += [("home", m.home), ("cite", m.citation), ("to obtain", m.obtain)]
    facts.append(("expected", ", ".join(f"{n:,} {what}" for what, n in m.expect.items())))
    lines = [f"# {m.name}", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {_text(said)} |" for name, said in facts if said]
    data = "" if m.embedded else " --data DIR"
    others = "".join(f", or {size}" for size in m.extract.resolutions[1:])
    lines += ["", f'```bash title="{"needs the weights" if m.embedded else "needs the download"}"']
    lines += [f"dinocache index {m.name}{data}", f"dinocache extract {m.name}{data}"]
    lines += [_fit_line(m, name, task) for name, task in m.tasks.items()]
    lines += ["```", ""]
    lines.append(f"Unless more is said, the reader is `{m.extract.reader}`, and what is kept is")
    lines.append(f"{_codes(m.extract.features)}, at {m.extract.resolutions[0]} px{others}.")
    if m.layout:
        lines += ["", "## The data folder", "", "```text", m.layout.rstrip(), "```"]
    if m.oddities:
        lines += ["", "## To know", "", *(f"- {_text(oddity)}" for oddity in m.oddities)]
    if m.splits:
        lines += ["", "## Splits", "", "Beside the official one, where there is one:", ""]
        lines += [f"- `{name}`: {_rule(rule)}" for name, rule in m.splits.items()]
    for name, task in m.tasks.items():
        lines += ["", *_task(m, name, task, published)]
    lines += _unclaimed(m, published)
    return "\n".join(lines) + "\n"


def _fit_line(m: Manifest, name: str, task: Task) -> str:
    verb = "register" if task.kind == "registration" else "fit"
    return f"probe {verb} {m.name}/{name}"


def _task(m: Manifest, name: str, task: Task, published: Row) -> list[str]:
    settings = ", ".join(f"{key}={value}" for key, value in task.settings.items())
    search = "; ".join(f"{k} of {', '.join(map(str, v))}" for k, v in task.search.items())
    facts = [
        ("kind", task.kind + (", of each row" if task.of == "row" else "")),
        (
            "targets",
            _codes(task.targets) + (f", positive: `{task.positive}`" * bool(task.positive)),
        ),
        ("labels", ", ".join(f"{value} {label}" for value, label in task.labels.items())),
        ("pairs", _pairs(task)),
        ("split", _split(task)),
        ("trained on", f"`{task.train_on}`" if task.train_on else ""),
        ("head", f"`{task.head}`" + (f" ({settings})" if settings else "")),
        ("chosen", search and f"by validation pairs: {search}"),
        ("features", _codes(task.features)),
        ("seeds", str(task.seeds)),
        ("metrics", _codes(task.metrics)),
    ]
    lines = [
        f"## {m.name}/{name} {{ #{name} }}",
        "",
        f"{_text(task.title)}.",
        "",
        "| | |",
        "|---|---|",
    ]
    lines += [f"| {what} | {said} |" for what, said in facts if said]
    if task.notes:
        lines += ["", *(f"- {_text(note)}" for note in task.notes)]
    for answer in task.paper:
        rows = [row for row in published["rows"] if _answers(answer, row)]
        lines += ["", *_figures(answer.table, answer.dataset, rows, published)]
    return lines


def _answers(answer: Published, row: Row) -> bool:
    return (row["table"], row["dataset"]) == (answer.table, answer.dataset) and all(
        row.get(field) == value for field, value in answer.where.items()
    )


def _unclaimed(m: Manifest, published: Row) -> list[str]:
    """Show the rows of this dataset that none of its tasks answers to."""
    answers = [answer for task in m.tasks.values() for answer in task.paper]
    places = dict.fromkeys((answer.table, answer.dataset) for answer in answers)
    lines = []
    for table, dataset in places:
        rows = [
            row
            for row in published["rows"]
            if (row["table"], row["dataset"]) == (table, dataset)
            and not any(_answers(answer, row) for answer in answers)
        ]
        if rows:
            lines += ["", "## Other rows of the paper", "", "No task answers to these.", ""]
            lines += _figures(table, dataset, rows, published)
    return lines


def _figures(table: int, dataset: str, rows: Sequence[Row], published: Row) -> list[str]:
    """Draw printed figures: a line a method, a column a metric, in the order of the paper."""
    lines_of = _labels(rows, "row", lambda row: str(row["method"]), _OF_LINES)
    columns = _labels(rows, "column", _metric, _OF_COLUMNS)
    cells: dict[tuple[str, str], str] = {}
    for row in rows:
        cell = lines_of[_key(row, "method", _OF_LINES)], columns[_key(row, "metric", _OF_COLUMNS)]
        if cell in cells:
            raise ValueError(f"Table {table}, {dataset}: two figures are called {cell}")
        cells[cell] = _figure(row)
    heads = list(dict.fromkeys(columns.values()))
    drawn = [f"### Table {table}, {_text(dataset)} {{ data-search-exclude }}", ""]
    drawn += [f"| method | {' | '.join(heads)} |", f"|---|{'---:|' * len(heads)}"]
    for label in dict.fromkeys(lines_of.values()):
        drawn.append(f"| {label} | {' | '.join(cells.get((label, head), '') for head in heads)} |")
    notes = [
        _note(note)
        for note in published["inconsistencies"]
        if table in note["tables"] and dataset in (note["datasets"] or [dataset])
    ]
    notes += [
        f"- {_text(one['method'])}, {_text(one['metric'])}: printed {one['printed']}, by other "
        f"figures of the paper {one['recomputed']}{' (probably)' if one.get('probable') else ''}."
        for one in published["recomputed"]
        if (one["table"], one["dataset"]) == (table, dataset)
        and any((one["method"], one["metric"]) == (r["method"], r["metric"]) for r in rows)
        and one["printed"] != one["recomputed"]
    ]
    if notes:
        drawn += ["", "Where the paper contradicts itself, or leaves something open:", "", *notes]
    return drawn


def _key(row: Row, name: str, fields: Sequence[str]) -> tuple[str, ...]:
    return row[name], *(str(row.get(field) or "") for field in fields)


def _labels(
    rows: Sequence[Row], order: str, title: Callable[[Row], str], fields: Sequence[str]
) -> dict[tuple[str, ...], str]:
    """Name the lines, or the columns, of a table; what tells equal names apart is said, too."""
    name = "method" if order == "row" else "metric"
    firsts = {_key(row, name, fields): row for row in sorted(rows, key=lambda r: -r[order])}
    labels = {}
    for key, row in sorted(firsts.items(), key=lambda entry: entry[1][order]):
        alike = [other for other in firsts if other[0] == key[0]]
        apart = [n for n in range(1, len(key)) if len({other[n] for other in alike}) > 1]
        said = ", ".join(key[n].replace("_", " ") for n in apart if key[n])
        labels[key] = _text(title(row) + (f" ({said})" if said else ""))
    return labels


def _metric(row: Row) -> str:
    unit = "" if row["unit"] == "fraction" else f", {row['unit']}"
    return f"{row['metric'].replace('_', ' ')}{unit} {'↑' if row['better'] == 'max' else '↓'}"


def _figure(row: Row) -> str:
    if row["value"] is None:
        return "-"
    deviation = f" ± {row['std']}" if row.get("std") is not None else ""
    return f"{row['value']}{deviation}{'*' if row.get('starred') else ''}"


def _note(note: Row) -> str:
    return f"- {_text(note['where'])}: {_text(note['text'])}"


def _pairs(task: Task) -> str:
    if task.pairs is None:
        return ""
    p = task.pairs
    return (
        f"of one `{p.by}`; `{p.role}` {p.moving} is warped onto {p.fixed}; "
        f"distances in {p.distances}"
    )


def _split(task: Task) -> str:
    if task.rows:
        sides = [
            f"{side} {rows}" if isinstance(rows, tuple) else
            f"{side} " + ", ".join(f"{item} {some}" for item, some in rows.items())
            for side, rows in task.rows.items()
        ]  # fmt: skip
        return "rows: " + _text("; ".join(sides))
    return "the official one" if task.split == OFFICIAL else f"`{task.split}`"


def _rule(rule: SplitRule) -> str:
    base = f", of the {rule.base} split's train side" if rule.base else ""
    if isinstance(rule, Folds):
        strata = f", stratified by {_codes(rule.stratify)}" if rule.stratify else ""
        purpose = "validation" if rule.base else "testing"
        more = f"; {rule.validation:.1%} of the rest for validation" if rule.validation else ""
        return f"{rule.folds} folds for {purpose}, by group{strata}{base}, seed {rule.seed}{more}."
    steps = [
        f"{step.share:.0%} of {step.of} become {step.to}"
        + (f", stratified by {_codes(step.stratify)}" if step.stratify else "")
        + f", seed {step.seed}"
        for step in rule.steps
    ]
    return "; ".join(steps) + base + "."


def _codes(words: Iterable[str]) -> str:
    return ", ".join(f"`{word}`" for word in words)


def _text(text: str) -> str:
    """Let text be text: one line, nothing of it Markdown but code in backticks, and addresses."""
    line = " ".join(text.split()).replace("|", "&#124;")
    parts = re.split(r"(`[^`]*`|https?://[^\s,;)]*[^\s,;).])", line)
    parts[::2] = map(_escaped, parts[::2])
    parts[1::2] = map(_kept, parts[1::2])
    return "".join(parts)


def _escaped(text: str) -> str:
    return re.sub(r"([\\*_\[\]])", r"\\\1", text).replace("<", "&lt;").replace(">", "&gt;")


def _kept(text: str) -> str:
    return text if text.startswith("`") else f"<{text}>"
