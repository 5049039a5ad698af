"""What commands print for people: tables of results."""

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from dinocache import terminal

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console
    from rich.table import Table

    from probes.compare import Comparison
    from probes.leaderboard import Group, Leaderboard, Line, Step
    from probes.runs import Estimate, Result
    from probes.sweep import Ran

__all__ = [
    "console",
    "leaderboard_markdown",
    "print_comparisons",
    "print_estimates",
    "print_leaderboard",
    "print_registration",
    "print_result",
    "print_sweep",
    "table_of",
]

_CLASS_METRICS = 5
"""Columns of the table of classes: more do not fit a terminal."""


def console() -> "Console":
    """Give a console that colours nothing but what is styled, and cuts no line of a file."""
    return terminal.console(width=240)


def table_of(columns: Sequence[str], *, left: int = 1) -> "Table":
    """Begin a table.

    Args:
        columns: Titles.
        left: How many of them, from the left, hold words; the others hold figures.

    Returns:
        A table without rows.
    """
    from rich.table import Table

    table = Table(show_edge=False, pad_edge=False)
    for number, title in enumerate(columns):
        table.add_column(title, justify="left" if number < left else "right")
    return table


def print_result(result: "Result") -> None:
    """Print what a fit found."""
    out = console()
    _print_head(result)
    print_estimates(result.metrics, sd=True)
    if result.task.kind != "binary" and result.per_class:
        _print_classes(result)
    for column, values in result.subgroups.items():
        table = table_of([column, "items", "groups", *list(result.metrics)[:2]])
        for value, found in values.items():
            figures = [_with_interval(found.metrics[m]) for m in list(result.metrics)[:2]]
            table.add_row(value, str(found.items), str(found.groups), *figures)
        out.print(table)
    for note in result.notes:
        out.print(f"note: {note}", soft_wrap=True, highlight=False)
    if result.auc_skipped:
        out.print(
            "AUC leaves out (one label value among the test items): "
            f"{', '.join(result.auc_skipped)}",
        )


def _print_head(result: "Result") -> None:
    """Print which run it is, who took part, and what was chosen."""
    out = console()
    if result.random_weights:
        out.print(
            f"RANDOM WEIGHTS ({result.store.weights}): these figures say nothing about the model",
            style="bold red",
        )
    positive = f", positive: {result.task.classes[0]}" if result.task.kind == "binary" else ""
    for line in (f"{result.title}{positive}", _who(result), *_choices(result)):
        out.print(line, soft_wrap=True)


def print_registration(result: "Result") -> None:
    """Print what a registration found: each metric before and after, and label by label."""
    out = console()
    _print_head(result)
    table = table_of(["metric", "unregistered", "registered", "sd pairs", "95% interval"])
    for metric, found in result.metrics.items():
        before = result.unregistered[metric]
        table.add_row(
            metric, figure(before.value), figure(found.value), figure(found.sd_items),
            _interval(found),
        )  # fmt: skip
    out.print(table)
    _print_classes(result)
    for note in result.notes:
        out.print(f"note: {note}", soft_wrap=True, highlight=False)
    if result.seconds is not None:
        print(f"{result.seconds:.2g} s a pair (median)")


def print_estimates(metrics: "dict[str, Estimate]", *, sd: bool = False) -> None:
    """Print metrics with their intervals.

    Args:
        metrics: Name -> estimate.
        sd: Whether standard deviations over seeds and folds are shown.
    """
    folds = any(found.sd_folds is not None for found in metrics.values())
    columns = ["metric", "value", "95% interval"]
    columns += (["sd seeds"] + (["sd folds"] if folds else [])) if sd else []
    table = table_of(columns)
    for metric, found in metrics.items():
        row = [metric, figure(found.value), _interval(found)]
        row += [figure(found.sd_seeds)] + ([figure(found.sd_folds)] if folds else []) if sd else []
        table.add_row(*row)
    console().print(table)


def print_sweep(ran: "Iterable[Ran]", out: "Path") -> None:
    """Print one line a run: its first metric, and whether it was fitted now.

    Args:
        ran: What came of each run.
        out: The folder that all of them are in.
    """
    table = table_of(["run", "metric", "value", "95% interval", "sd seeds", "", ""])
    for one in ran:
        name = one.folder.relative_to(out).as_posix()
        if one.result is None:
            table.add_row(name, "", "", "", "", "", one.state)
            continue
        metric, found = next(iter(one.result.metrics.items()))
        random = "random weights" if one.result.random_weights else ""
        figures = figure(found.value), _interval(found), figure(found.sd_seeds)
        table.add_row(name, metric, *figures, random, one.state)
    console().print(table)


def print_comparisons(found: "Sequence[Comparison]") -> None:
    """Print one line a test."""
    out = console()
    if any(one.random_weights for one in found):
        out.print("RANDOM WEIGHTS: these figures say nothing about any model", style="bold red")
    out.print(f"base: {found[0].base}; {found[0].groups} groups")
    columns = ["run", "metric", "base", "run", "difference", "95% interval"]
    columns += ["p (bootstrap)", "p (permutation)", "p (DeLong)", "p (Holm)"]
    table = table_of(columns, left=2)
    for one in found:
        interval = "-" if one.low is None else f"{one.low:+.3f} to {one.high:+.3f}"
        difference = "-" if one.difference is None else f"{one.difference:+.3f}"
        ps = one.p_bootstrap, one.p_permutation, one.p_delong, one.p_holm
        values = figure(one.value_base), figure(one.value_run)
        table.add_row(one.run, one.metric, *values, difference, interval, *map(_p_value, ps))
    out.print(table)


_OF_RUNS = ("", "run", "encoder", "features", "head", "made")
_OF_STEPS = ("made", "run", "encoder", "led before")
_OF_TESTS = ("difference", "p", "p (Holm)")
_OF_LINES = (*_OF_RUNS, "seeds", "value", "95% interval", *_OF_TESTS, "not tested")
_OF_RECORD = (*_OF_STEPS, "value", *_OF_TESTS, "significant")
_NARROWEST = 140
"""Columns of the terminal below which a leaderboard's words would be folded letter by letter."""
_IN_MARKDOWN = re.compile(r"[\\`*_\[\]<>|&~#]")


def print_leaderboard(board: "Leaderboard") -> None:
    """Print a table a group, and all that is in none."""
    out = console()
    for sentence in _random_said(board):
        out.print(sentence, style="bold red", soft_wrap=True)
    for group in board.groups:
        out.print(f"\n{_group_said(group)}", style="bold", soft_wrap=True)
        _print_cells(_OF_LINES, len(_OF_RUNS), [_line_cells(line) for line in group.lines])
        if group.record:
            out.print("\nwho took the lead, and when:", soft_wrap=True)
            _print_cells(_OF_RECORD, len(_OF_STEPS), [_step_cells(one) for one in group.record])
    for sentence in ["", *_rest_said(board)]:
        out.print(sentence, soft_wrap=True)


def leaderboard_markdown(board: "Leaderboard") -> str:
    """Write the same tables as Markdown, of which no name of others makes more than text."""
    lines = ["# Leaderboard", ""]
    for sentence in _random_said(board):
        lines += [f"**{_markdown(sentence)}**", ""]
    for group in board.groups:
        lines += [f"## {_markdown(_group_said(group))}", ""]
        lines += [*_markdown_table(_OF_LINES, len(_OF_RUNS), map(_line_cells, group.lines)), ""]
        if group.record:
            lines += ["Who took the lead, and when:", ""]
            steps = map(_step_cells, group.record)
            lines += [*_markdown_table(_OF_RECORD, len(_OF_STEPS), steps), ""]
    lines += [f"- {_markdown(sentence)}" for sentence in _rest_said(board)]
    return "\n".join(lines).rstrip() + "\n"


def _random_said(board: "Leaderboard") -> list[str]:
    if not any(line.random_weights for group in board.groups for line in group.lines):
        return []
    return [
        "RANDOM WEIGHTS where it says random: these figures say nothing about the model; such runs "
        "lead no group that has others, and stand behind these whatever their figures"
    ]


def _group_said(group: "Group") -> str:
    """Name a group, who was tested, and what orders it."""
    few = ", ".join(group.classes) if len(group.classes) <= 4 else f"{len(group.classes)} classes"
    what = "pairs" if group.kind == "registration" else "items"
    on = "" if group.task.startswith(f"{group.dataset}/") else f" of {group.dataset}"
    better = "higher" if group.higher_is_better else "lower"
    return (
        f"{group.task} ({group.kind}{f': {few}' if few else ''}), {group.items} {what}{on} of "
        f"{group.groups} groups tested in {group.folds} fold(s); by {group.metric}, {better} is "
        f"better" + (f"; apart from the first: {group.apart}" if group.apart else "")
    )


def _rest_said(board: "Leaderboard") -> list[str]:
    """Say what the figures are, what was left out, and what could not be read."""
    said = []
    if board.groups:
        said.append(
            "difference: from the leader, the run less it; p by permutation, (Holm) corrected for "
            f"the tests of the table; only the first {board.top} of a group are tested"
        )
    if board.other_tasks:
        said.append(f"{board.other_tasks} run(s) of other tasks are left out")
    if board.before:
        said.append(f"{board.before} run(s) made before are left out")
    if board.errors:
        said.append(f"{len(board.errors)} run(s) cannot be read:")
        said += [f"{name}: {error}" for name, error in board.errors.items()]
    return said


def _line_cells(line: "Line") -> list[str]:
    found = line.comparison
    tests = (found.p_permutation, found.p_holm) if found else (None, None)
    interval = "-" if line.low is None else f"{line.low:.3f} to {line.high:.3f}"
    return [
        "-" if line.rank is None else str(line.rank), line.run, _encoder(line),
        "+".join(line.features), line.head, f"{line.made:%Y-%m-%d %H:%M:%S}", str(line.seeds),
        figure(line.value), interval, _signed(found), *map(_p_value, tests), line.reason,
    ]  # fmt: skip


def _step_cells(step: "Step") -> list[str]:
    found = step.comparison
    tests = (found.p_permutation, found.p_holm) if found else (None, None)
    significant = step.reason or {None: "-", True: "yes", False: "no"}[step.significant]
    return [
        f"{step.made:%Y-%m-%d %H:%M:%S}", step.run, _encoder(step), step.before or "-",
        figure(step.value), _signed(found), *map(_p_value, tests), significant,
    ]  # fmt: skip


def _encoder(one: "Line | Step") -> str:
    return f"{one.encoder or '-'}{' random' if one.random_weights else ''}"


def _signed(found: "Comparison | None") -> str:
    return "-" if found is None or found.difference is None else f"{found.difference:+.3f}"


def _print_cells(columns: Sequence[str], left: int, rows: Sequence[Sequence[str]]) -> None:
    """Print a table of which nothing is cut: words are folded, and lines in a narrow terminal.

    A column without a word in it is left out.
    """
    shown = [n for n in range(len(columns)) if any(row[n] for row in rows)]
    table = table_of([columns[n] for n in shown], left=sum(n < left for n in shown))
    for column in table.columns:
        column.overflow = "fold"
        of_figures = column.justify == "right" and column.header != "not tested"
        column.no_wrap = of_figures or column.header == "made"
    for row in rows:
        table.add_row(*(row[n] for n in shown))
    out = console()
    out.width = max(out.width, _NARROWEST)
    out.print(table)


def _markdown_table(
    columns: Sequence[str], left: int, rows: Iterable[Sequence[str]]
) -> Iterable[str]:
    yield f"| {' | '.join(columns)} |"
    yield f"|{'|'.join('---' if n < left else '--:' for n in range(len(columns)))}|"
    for row in rows:
        yield f"| {' | '.join(map(_markdown, row))} |"


def _markdown(text: str) -> str:
    """Write text of others so that Markdown shows it as it is, in one line."""
    return _IN_MARKDOWN.sub(r"\\\g<0>", terminal.visible(" ".join(text.split())))


def _p_value(p: float | None) -> str:
    return "-" if p is None else f"{p:.3f}" if p >= 0.001 else f"{p:.1g}"


def figure(value: float | None) -> str:
    """Write a figure with three digits; `-` where there is none."""
    return "-" if value is None else f"{value:.3f}"


def _print_classes(result: "Result") -> None:
    """Print the figures of each class, and the interval of the first."""
    names = list(next(iter(result.per_class.values())))[:_CLASS_METRICS]
    if not names:
        return
    table = table_of(["class", names[0], "95% interval", *names[1:]])
    for name, found in result.per_class.items():
        rest = [figure(found[m].value) for m in names[1:]]
        table.add_row(name, figure(found[names[0]].value), _interval(found[names[0]]), *rest)
    console().print(table)


def _who(result: "Result") -> str:
    split = result.split
    protocol = split.said
    if split.repeats > 1:
        protocol += f", {split.repeats} times"
    if split.shots is not None:
        protocol += f", {split.shots} training items a class"
    if split.fraction is not None:
        protocol += f", {split.fraction:g} of the training groups"
    if result.test_store is not None:
        protocol += f", tested on {result.test_store.dataset}"
    val = f", {split.n_val:.0f} validation" if split.n_val else ""
    what = "pairs" if result.task.kind == "registration" else "items"
    return (
        f"{result.items} {what} of {result.groups} groups, {protocol}, about {split.n_train:.0f} "
        f"train{val} and {split.n_test:.0f} test; {len(result.seeds)} seed(s); "
        f"{len(result.left_out)} {what} left out"
    )


def _choices(result: "Result") -> list[str]:
    search = result.head.search
    if search is None:
        return []
    said = [", ".join(f"{k}={v}" for k, v in chosen.items()) for chosen in search.chosen]
    tried = len(search.losses[0])
    who = {"instances": "sections that are not tested", "registration": "pairs not tested"}.get(
        result.task.kind, "validation items"
    )
    return [f"{tried} settings tried; {who} chose: {'; '.join(dict.fromkeys(said))}"]


def _interval(found: "Estimate") -> str:
    return "-" if found.low is None else f"{found.low:.3f} to {found.high:.3f}"


def _with_interval(found: "Estimate") -> str:
    return figure(found.value) + ("" if found.low is None else f" ({_interval(found)})")
