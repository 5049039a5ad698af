"""The report as one HTML page, with its scripts inside."""

import base64
import gzip
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any
from urllib.parse import quote

from dinocache import __version__
from probes.charts import bundle, specification, themed
from probes.paper_tables import Column, Contradiction
from probes.report_figures import encoder_name
from probes.run_page import Figure, Picture, RunPage
from probes.runs import Result
from probes.standing import Standing, side_of
from probes.table_texts import NONE as _NONE
from probes.table_texts import (
    SOURCE,
    decimals_of,
    difference_text,
    figure_text,
    interval_text,
    remarks_of,
)

__all__ = ["Report", "html_of"]

_FIGURES = (
    "The paper's Figures 1 (curves by resolution) and 3 (radar of BCNB) print no numbers: such "
    "charts show own runs only. Overlays, components and warps (its Figures 4 to 8) stand on the "
    "page of each run."
)


@dataclass(frozen=True, kw_only=True)
class Report:
    """All that a page shows.

    Attributes:
        results: Folder -> result.
        standings: The paper's tables with own rows.
        general: Contradictions that concern no table.
        figures: Over many runs.
        pages: Folder -> what is shown of the run.
        pictures: Of features.
        remarks: What could not be read, or was left out.
    """

    results: Mapping[str, Result] = field(hash=False)
    standings: tuple[Standing, ...]
    general: tuple[Contradiction, ...]
    figures: tuple[Figure, ...]
    pages: Mapping[str, RunPage] = field(hash=False)
    pictures: tuple[Picture, ...] = ()
    remarks: tuple[str, ...] = ()


def html_of(report: Report) -> str:
    """Write the page: complete in itself, it fetches nothing.

    The page of each run is kept compressed, and unpacked by the browser once it is looked at.
    """
    environment = _environment()
    specifications: dict[str, dict[str, Any]] = {}
    packed = {name: _packed(environment, name, report, specifications) for name in report.results}
    shown = {
        "figures": [_figure(figure, specifications) for figure in report.figures],
        "themes": {"light": themed("light"), "dark": themed("dark")},
    }
    shown["specifications"] = specifications
    html: str = environment.get_template("report.html").render(
        results=report.results,
        standings=report.standings,
        general=report.general,
        figures=report.figures,
        figure_note=_FIGURES,
        pictures=report.pictures,
        remarks=report.remarks,
        any_random=any(result.random_weights for result in report.results.values()),
        source=SOURCE,
        version=__version__,
        styles=_safe(_tables_style() + _source("report.css")),
        scripts=_safe(bundle()),
        tables_script=_safe(_tables_script()),
        behaviour=_safe(_source("report.js")),
        page_json=_json(shown),
        packed_json=_json(packed),
    )
    return html


def _packed(
    environment: Any,  # noqa: ANN401 - of jinja2
    name: str,
    report: Report,
    specifications: dict[str, dict[str, Any]],
) -> str:
    result, shown = report.results[name], report.pages[name]
    html = environment.get_template("report_run.html").render(
        name=name,
        result=result,
        shown=shown,
        rows=_warned(name, report.standings),
        facts=_facts(result),
    )
    content = {"html": html, "figures": [_figure(f, specifications) for f in shown.figures]}
    # No time in it: the same runs give the same page.
    squeezed = gzip.compress(json.dumps(content).encode(), 6, mtime=0)
    return base64.b64encode(squeezed).decode("ascii")


def _warned(name: str, standings: Sequence[Standing]) -> list[dict[str, Any]]:
    return [
        {"table": one.table.number, "warnings": row.warnings}
        for one in standings
        for row in one.own
        if any(name in found.runs for found in row.figures.values())
    ]


def _figure(figure: Figure, specifications: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Refer to a specification by name: 200 runs have the same few."""
    key = f"{figure.kind} {figure.metric}"
    if key not in specifications:
        specifications[key] = specification(figure.kind, metric=figure.metric)
    return {
        "specification": key,
        "title": figure.title,
        "caption": figure.caption,
        "rows": list(figure.rows),
    }


def _facts(result: Result) -> dict[str, str]:
    """Say how a run was made."""
    store, split = result.store, result.split
    tested = result.test_store
    facts = {
        "Task": f"{result.task_name} ({result.task.kind}, of each {result.task.of})",
        "Classes": ", ".join(result.task.classes),
        "Head": f"{result.head.name}: "
        + ", ".join(f"{k}={json.dumps(v)}" for k, v in result.head.settings.items()),
        "Chosen": "" if result.head.search is None else _chosen(result),
        "Features": f"{'+'.join(result.features) or 'none'}, {result.pool}",
        "Split": f"{split.said}; {split.n_train:g} trained, {split.n_val:g} chose, "
        f"{split.n_test:g} tested (means over folds); digest {split.digest[:16]}",
        "Seeds": ", ".join(map(str, result.seeds)),
        "Items": f"{result.items} in {result.groups} groups",
        "Store": f"{store.dataset}, {store.model} at {store.resolution}"
        + (f"-{store.variant}" if store.variant else "")
        + f"; recipe {store.digest[:16]}; items {store.items_table[:24]}",
        "Weights": store.weights,
        "Tested on": "" if tested is None else f"{tested.dataset}; recipe {tested.digest[:16]}",
        "Inputs": result.inputs[:16],
        "Libraries": ", ".join(f"{name} {version}" for name, version in result.versions.items()),
        "Recipe": json.dumps(store.recipe, sort_keys=True) if store.recipe else "",
    }
    return {key: value for key, value in facts.items() if value}


def _chosen(result: Result) -> str:
    assert result.head.search is not None  # asked before
    return "; ".join(
        ", ".join(f"{key}={value}" for key, value in of_fold.items())
        for of_fold in result.head.search.chosen
    )


def _environment() -> Any:  # noqa: ANN401 - of jinja2
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_source),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["figure"] = lambda value: _NONE if value is None else f"{value:.3f}"
    environment.filters["data_url"] = lambda content: Markup(
        f"data:image/webp;base64,{base64.b64encode(content).decode('ascii')}"
    )
    environment.globals |= {
        "area": side_of,
        "decimals": decimals_of,
        "difference": difference_text,
        "encoder": encoder_name,
        "interval": interval_text,
        "order": _order,
        "remarks_of": remarks_of,
        "run_link": lambda name: f"#run={quote(name)}",
        "value": figure_text,
    }
    return environment


def _order(value: float | None, column: Column) -> float:
    """Say by what a cell is sorted: what is empty comes last where the better comes first."""
    if value is None:
        return -1e9 if column.better == "max" else 1e9
    return value


# Scripts of others, and what a page must not be broken by


def _source(name: str) -> str:
    return (resources.files("probes") / name).read_text("utf-8")


@cache
def _tables_script() -> str:
    """Give DataTables as a script that leaves `DataTable` behind: the bundle is a module."""
    source = (resources.files("itables") / "html" / "dt_bundle.js").read_text("utf-8")
    exported = re.search(r"export\s*\{([^{}]*)\}", source)
    name = exported and re.search(r"([\w$]+)\s+as\s+default\b", exported[1])
    if not exported or not name:
        raise RuntimeError("this version of itables brings no bundle of DataTables as a module")
    return f"{source[: exported.start()]}window.DataTable={name[1]};{source[exported.end() :]}"


@cache
def _tables_style() -> str:
    return (resources.files("itables") / "html" / "dt_bundle.css").read_text("utf-8")


def _safe(source: str) -> Any:  # noqa: ANN401 - of markupsafe
    """Put a script or a style into a page: it may not look like the end of itself, nor begin one.

    References:
        HTML Standard, 4.12.1.3, "Restrictions for contents of script elements".
    """
    from markupsafe import Markup

    return Markup(re.sub(r"<(?=!--|/?script|/style)", r"\\x3c", source, flags=re.IGNORECASE))


def _json(value: object) -> Any:  # noqa: ANN401 - of markupsafe
    from markupsafe import Markup

    return Markup(json.dumps(value).replace("<", "\\u003c"))
