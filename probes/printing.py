"""What commands print for people: tables of results."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from dinocache import terminal

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console
    from rich.table import Table

    from probes.compare import Comparison
    from probes.runs import Estimate, Result
    from probes.sweep import Ran

__all__ = [
    "console",
    "print_comparisons",
    "print_estimates",
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
