"""The report: the paper's tables and figures beside one's own, as a page and as files."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from dinocache.errors import DinocacheError, ProbeError
from dinocache.places import Where
from dinocache.store import FeatureStore
from probes.charts import specification, write_chart
from probes.features import first_dense_item, store_facts
from probes.figures import pca_picture
from probes.paper_tables import general_contradictions, paper_tables
from probes.pictures import webp_of_png
from probes.report_figures import report_figures
from probes.report_page import Report, html_of
from probes.run_page import Picture, RunPage, run_page, stores_at_hand
from probes.runs import read_results, write_table
from probes.standing import standing
from probes.table_texts import csv_of, latex_of, markdown_of

__all__ = ["FIGURES", "Written", "write_report"]

FIGURES = ("summary", "all", "none")
"""Which charts are written as files: those over many runs, those of each run, too, or none."""
_PICTURE_BYTES = 5 << 19
"""Of a page, for pictures: it stays below 8 MB."""
_MOST_STORES = 3
"""Of which components are drawn."""
_PICTURE_PX = 900


@dataclass(frozen=True, kw_only=True)
class Written:
    """What a report wrote.

    Attributes:
        page: The HTML page.
        tables: Markdown, CSV, LaTeX.
        figures: SVG, PDF and PNG.
        runs: How many it shows.
        remarks: What could not be read, or was left out.
    """

    page: Path
    tables: tuple[Path, ...]
    figures: tuple[Path, ...]
    runs: int
    remarks: tuple[str, ...]

    def facts(self) -> dict[str, object]:
        """Give it as JSON."""
        return {
            "page": str(self.page),
            "tables": [str(path) for path in self.tables],
            "figures": [str(path) for path in self.figures],
            "runs": self.runs,
            "remarks": list(self.remarks),
        }


def write_report(
    runs: Path,
    out: Path,
    store: Where | None = None,
    *,
    figures: str = "summary",
    told: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Written:
    """Write the report of all runs below a folder.

    Args:
        runs: Folder with runs, at any depth.
        out: A folder, which gets `index.html`, tables and figures; or an .html file, which is all
            that is written then.
        store: Root of the stores, or one store: for pictures of items and of features.
        figures: Which charts are written as files; of `FIGURES`.
        told: Is called with what is being done, how much of it is, and of how much.

    Returns:
        What was written.

    Raises:
        RequestError: If there is no run.
        StoreError: If no run was made of what lies at `store`.
        ProbeError: If no run can be read, or something cannot be written.
    """
    results, errors = read_results(runs)
    for name in [name for name in results if not _is_text(name)]:
        del results[name]
        errors[name] = ProbeError(f"the folder {name!r}: its name is no UTF-8; rename it")
    if not results:
        raise next(iter(errors.values()))
    stores = stores_at_hand(store, results)
    room = _PICTURE_BYTES // len(results)
    pages: dict[str, RunPage] = {}
    for name, result in results.items():
        told("runs looked at", len(pages), len(results))
        pages[name] = _within(run_page(runs / name, result, stores), room)
    placed = standing(paper_tables(), results)
    report = Report(
        results=results,
        standings=tuple(placed),
        general=tuple(general_contradictions()),
        figures=tuple(report_figures(results, placed, pages)),
        pages=pages,
        pictures=_components(stores),
        remarks=tuple(f"Left out: {error}" for error in errors.values()),
    )
    alone = out.suffix.lower() in (".html", ".htm")
    page = out if alone else out / "index.html"
    told("page written", 0, 1)
    _write(page, html_of(report))
    return Written(
        page=page,
        tables=() if alone else _tables(report, out),
        figures=() if alone else _figures(report, out / "figures", figures, told),
        runs=len(results),
        remarks=report.remarks,
    )


def _within(page: RunPage, budget: int) -> RunPage:
    """Leave out pictures that a page of so many runs has no room for, thumbnails last."""
    worst, pictures, left = [], [], budget
    for item in page.worst:
        left -= len(item.thumbnail or b"")
        worst.append(item if left >= 0 else replace(item, thumbnail=None))
    for picture in page.pictures:
        left -= len(picture.content)
        if left >= 0:
            pictures.append(picture)
    dropped = len(page.pictures) - len(pictures)
    remark = f"{dropped} of its pictures left out here for want of room; they stand in its folder"
    return replace(
        page,
        worst=tuple(worst),
        pictures=tuple(pictures),
        remarks=page.remarks + ((remark,) if dropped else ()),
    )


def _components(stores: Mapping[str, FeatureStore]) -> tuple[Picture, ...]:
    """Draw the first item of some stores beside its features (the paper's Figures 5 to 7)."""
    found: list[Picture] = []
    for store in stores.values():
        if len(found) == _MOST_STORES:
            break
        try:
            item_id, patches, image = first_dense_item(store.folder)
            content = webp_of_png(pca_picture(image, patches), _PICTURE_PX)
        except (DinocacheError, ValueError):
            continue  # without maps, or with too small ones
        facts = store_facts(store.folder)
        caption = (
            f"Item {item_id} of {facts.dataset} and its {patches.shape[0]} x {patches.shape[1]} "
            f"patch features ({facts.model} at {facts.resolution}, {facts.weights}): the first "
            "three principal components as red, green, blue"
        )
        if content is not None:
            found.append(Picture(caption=caption, content=content))
    return tuple(found)


def _tables(report: Report, out: Path) -> tuple[Path, ...]:
    paths = [out / "tables.md", out / "tables.csv"]
    _write(paths[0], markdown_of(report.standings, report.general))
    write_table(csv_of(report.standings), paths[1])
    for one in report.standings:
        paths.append(out / "tables" / f"table-{one.table.number:02d}.tex")
        _write(paths[-1], latex_of(one))
    return tuple(paths)


def _figures(
    report: Report, out: Path, wanted: str, told: Callable[[str, int, int], None]
) -> tuple[Path, ...]:
    if wanted == "none":
        return ()
    charts = [("", figure) for figure in report.figures]
    if wanted == "all":
        charts += [(name, figure) for name, page in report.pages.items() for figure in page.figures]
    taken: set[Path] = set()
    written: list[Path] = []
    for run, figure in charts:
        stem = (
            out / _file_name(run) / _file_name(figure.title)
            if run
            else out / _file_name(figure.title)
        )
        while stem in taken:  # another run's, of a name that files cannot tell apart
            stem = stem.with_name(f"{stem.name}-2")
        told("charts written", len(taken), len(charts))
        taken.add(stem)
        spec = specification(figure.kind, metric=figure.metric)
        written += write_chart(spec, figure.rows, stem, title=figure.title)
    return tuple(written)


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _file_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9@+=-]+", "-", text).strip("-").lower()[:100] or "figure"


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    except OSError as exc:
        raise ProbeError(f"cannot write {path}: {exc.strerror or exc}") from exc
