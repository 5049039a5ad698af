"""Charts over many runs: the paper's Figures 1 to 3 from one's own runs, and folds and seeds."""

from collections.abc import Mapping, Sequence
from posixpath import commonpath
from typing import Any

from probes.charts import radar_rows
from probes.run_page import Figure, RunPage
from probes.runs import Result
from probes.standing import Standing, head_name, settings_apart, side_of

__all__ = ["encoder_name", "report_figures"]

_RADAR = "bcnb"
_MOST_RUNS = 24
"""Of one chart of folds and seeds."""


def report_figures(
    results: Mapping[str, Result],
    standings: Sequence[Standing],
    pages: Mapping[str, RunPage],
) -> list[Figure]:
    """Draw all runs together.

    Args:
        results: Folder -> result.
        standings: Where they stand in the paper.
        pages: Folder -> what is shown of the run.

    Returns:
        Scaling curves by task (Figure 1), bars of Tables 3 and 4 (Figure 2), a radar of BCNB's
        tasks (Figure 3), and folds and seeds of each task's runs; what there is.
    """
    return [*_scaling(results), *_bars(standings), *_radar(results), *_spread(results, pages)]


def encoder_name(result: Result) -> str:
    """Name the encoder; a hyphen where the figures depend on none."""
    return result.store.model if result.is_of_encoder else "-"


def _first(result: Result) -> str:
    return next(iter(result.metrics), "")


def _series(result: Result) -> str:
    """Name all of a set-up but the resolution."""
    variant = f"-{result.store.variant}" if result.store.variant else ""
    return f"{result.store.model}{variant}, {head_name(result)}"


def _scaling(results: Mapping[str, Result]) -> list[Figure]:
    """Set the first metric of each task against the resolution, as the paper's Figure 1 does."""
    tasks: dict[tuple[str, str], list[tuple[str, Result]]] = {}
    for name, result in results.items():
        if result.is_of_encoder and (metric := _first(result)):
            tasks.setdefault((result.task_name, metric), []).append((name, result))
    figures = []
    for (task, metric), runs in tasks.items():
        if len({result.store.resolution for _, result in runs}) < 2:
            continue
        rows = _scaling_rows(runs, metric)
        figures.append(
            Figure(
                kind="scaling",
                title=f"{task}: {metric} by resolution",
                caption="Own runs, 95% intervals.",
                rows=rows,
                metric=metric,
            )
        )
    return figures


def _scaling_rows(runs: Sequence[tuple[str, Result]], metric: str) -> list[dict[str, Any]]:
    alike: dict[str, list[Result]] = {}
    for _, result in runs:
        alike.setdefault(_series(result), []).append(result)
    rows = []
    for name, result in runs:
        found = result.metrics.get(metric)
        if found is None or found.value is None:
            continue
        series = _series(result)
        apart = settings_apart(result, alike[series])
        rows.append(
            {
                "series": f"{series} ({apart})" if apart else series,
                "resolution": side_of(result.store.resolution),
                "value": round(found.value, 5),
                "low": None if found.low is None else round(found.low, 5),
                "high": None if found.high is None else round(found.high, 5),
                "text": name,
            }
        )
    return sorted(rows, key=lambda row: (str(row["series"]), int(str(row["resolution"]))))


def _bars(standings: Sequence[Standing]) -> list[Figure]:
    """Set Table 3, one domain, beside Table 4, another, as the paper's Figure 2 does."""
    rows: list[dict[str, Any]] = []
    for one in standings:
        if one.table.number not in (3, 4):
            continue
        column = next(c for c in one.table.columns if c.metric == "auc")
        domain = "in domain (Camelyon16)" if one.table.number == 3 else "out of domain (Camelyon17)"
        for row in one.table.rows:
            rows.append(_bar(f"paper: {row.label}", domain, row.figures[column].value, None, None))
        for mine in one.own:
            if (found := mine.figures.get(column)) is not None:
                label = f"own: {mine.label}" + (" (not comparable)" if mine.warnings else "")
                text = "; ".join(mine.warnings)
                rows.append(_bar(label, domain, found.value, found.low, found.high, text))
    order = list(dict.fromkeys(row["series"] for row in rows))
    rows.sort(key=lambda row: order.index(row["series"]))
    caption = (
        "AUC of Tables 3 and 4, as the paper's Figure 2 shows them; own runs with 95% intervals, "
        "what differs in them on hover."
    )
    return [
        Figure(
            kind="bars",
            title="In one domain and in another",
            caption=caption,
            rows=[row for row in rows if row["value"] is not None],
            metric="AUC",
        )
    ]


def _bar(
    series: str,
    domain: str,
    value: float | None,
    low: float | None,
    high: float | None,
    text: str = "",
) -> dict[str, Any]:
    return {
        "series": series,
        "dataset": domain,
        "value": value,
        "low": low,
        "high": high,
        "text": text,
    }


def _radar(results: Mapping[str, Result]) -> list[Figure]:
    """Draw own runs of BCNB's tasks; the paper's Figure 3 prints no numbers."""
    values: dict[str, dict[str, float]] = {}
    for name, result in results.items():
        dataset, _, task = (result.task.name or "").partition("/")
        found = result.metrics.get("auc")
        if dataset != _RADAR or not task or found is None or found.value is None:
            continue
        series = f"{_series(result)} @ {result.store.resolution}"
        if task.upper() in values.get(series, {}):
            series = f"{series} [{name}]"  # another run of the same set-up
        values.setdefault(series, {})[task.upper()] = round(found.value, 4)
    axes = sorted({axis for of in values.values() for axis in of})
    whole = {
        series: {axis: of[axis] for axis in axes}
        for series, of in values.items()
        if set(of) == set(axes)
    }
    if len(axes) < 3 or not whole:
        return []
    rows = radar_rows(whole)
    caption = "Own AUC of each task."
    return [Figure(kind="radar", title="BCNB", caption=caption, rows=rows, metric="AUC")]


def _spread(results: Mapping[str, Result], pages: Mapping[str, RunPage]) -> list[Figure]:
    """Put folds and seeds of a task's runs below each other."""
    tasks: dict[tuple[str, str], dict[str, Figure]] = {}
    for name, result in results.items():
        for figure in pages[name].figures:
            if figure.kind == "spread":
                tasks.setdefault((result.task_name, figure.metric), {})[name] = figure
    figures = []
    for (task, metric), of_runs in tasks.items():
        names = list(of_runs)[:_MOST_RUNS]
        folder = f"{commonpath(names)}/" if len(names) > 1 else ""
        caption = (
            "A point is a fold and a seed, the bar their mean. How far seeds are apart is another "
            "thing than the interval, which is over patients."
        )
        if len(of_runs) > _MOST_RUNS:
            caption += f" The first {_MOST_RUNS} of {len(of_runs)} runs."
        rows = [
            {**row, "run": name.removeprefix(folder)}
            for name in names
            for row in of_runs[name].rows
        ]
        title = f"{task}: {metric} of each fold and seed"
        figures.append(
            Figure(kind="spread", title=title, caption=caption, rows=rows, metric=metric)
        )
    return figures
