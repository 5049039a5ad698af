"""The site: built without a warning, whole by itself, with every command, task and figure."""

import html
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from pages import APPS, ROOT, command_lines, commands_of, parse

from dinocache.manifest import Task, load_manifest, load_published, shipped_manifests

pytest.importorskip("material", reason="the site needs mkdocs-material (the extra `docs`)")

MANIFESTS = {name: load_manifest(path) for name, path in shipped_manifests().items()}
PUBLISHED: list[dict[str, Any]] = load_published()["rows"]
TASKS = [(name, key) for name, m in MANIFESTS.items() for key in m.tasks]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, as `make docs` builds it, in a folder of its own."""
    folder = tmp_path_factory.mktemp("site")
    ended = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", ".mkdocs.yml", "-d", folder],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert "WARNING" not in ended.stderr
    return folder


def pages(site: Path) -> Iterator[tuple[str, str]]:
    """Give the name and the text of each page."""
    for page in sorted(site.rglob("*.html")):
        yield page.relative_to(site).as_posix(), page.read_text("utf-8")


def test_pages_are_there(site: Path) -> None:
    names = {name for name, _ in pages(site)}
    for page in (ROOT / "docs").glob("*.md"):
        assert f"{page.stem}.html" in names
    for page in ("index", "changelog", "contributing", "manifests", "datasets/index"):
        assert f"{page}.html" in names
    assert not any(name.startswith("_site") for name in names)


def test_nothing_comes_from_elsewhere(site: Path) -> None:
    """No font, script, style or picture; links that a reader follows may lead anywhere."""
    fetched = re.compile(
        r"<(?:script|img|iframe|source|link)\b[^>]*?\b(?:src|href)=\"?((?:https?:)?//[^\"\s>]+)"
    )
    for name, text in pages(site):
        found = [url for url in fetched.findall(text) if "canonical" not in url]
        assert not found, f"{name} fetches {found}"
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(\s*[\"']?(?:https?:)?//", style.read_text("utf-8")), style


def test_no_markup_is_left(site: Path) -> None:
    """GitHub makes lists and tables where Python's Markdown wants a blank line before them."""
    for name, text in pages(site):
        body = re.sub(r"<pre\b.*?</pre>|<code>.*?</code>|<script.*?</script>", "", text, flags=re.S)
        assert not re.search(r"<p>[^<]*\n(?:- |\| |\d\. |```)", body), name
        assert not re.search(r"<p>[^<]*(?:\]\(|\*\*|```)", body), name


def test_every_link_within_the_site_holds(site: Path) -> None:
    """Also those that are made by hand of HTML, which MkDocs does not see; and on a disk."""
    for name, text in pages(site):
        if name == "404.html":
            continue  # its links are absolute
        here = (site / name).parent
        for link in re.findall(r"<a\b[^>]*?\bhref=\"?([^\"\s>]+)", text):
            target = html.unescape(link).partition("#")[0]
            if target and not re.match(r"[a-z]+:", target):
                assert (here / target).exists(), f"{name}: {link}"


@pytest.mark.parametrize("program", APPS)
def test_every_command_has_a_page(site: Path, program: str) -> None:
    overview = (site / "commands/index.html").read_text("utf-8")
    commands = commands_of(program)
    for name, command in commands.items():
        text = html.unescape((site / f"commands/{program}/{name}.html").read_text("utf-8"))
        for option in (o for p in command.params for o in p.opts + p.secondary_opts):
            if option.startswith("-"):
                assert re.search(rf"<code>{option}\b", text), f"{program} {name} {option}"
        assert f"{program}/{name}.html" in overview


def test_command_lines_of_made_pages_parse(site: Path) -> None:
    """Those of datasets and commands; those of written pages are held in test_pages.py."""
    parsed = 0
    for name, text in pages(site):
        if not name.startswith(("datasets/", "commands/")) or name.endswith("index.html"):
            continue
        for block in re.findall(r"<code>(.*?)</code></pre>", text, re.DOTALL):
            shown = html.unescape(re.sub(r"<[^>]+>", "", block))
            if shown.startswith(tuple(f"{program} " for program in APPS)) and "[" not in shown:
                for words in command_lines(shown):
                    parse(words)
                    parsed += 1
    assert parsed > 2 * len(MANIFESTS)


@dataclass
class Section:
    """A heading, and the tables below it."""

    level: str
    anchor: str
    title: str
    tables: list[list[list[str]]] = field(default_factory=list)


class Outline(HTMLParser):
    """Reads headings and tables of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.sections: list[Section] = []
        self._into: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("h1", "h2", "h3"):
            self.sections.append(Section(tag, dict(attrs).get("id") or "", ""))
            self._into = "title"
        elif tag == "table" and self.sections:
            self.sections[-1].tables.append([])
        elif tag == "tr" and self.sections and self.sections[-1].tables:
            self.sections[-1].tables[-1].append([])
        elif tag in ("td", "th"):
            self.sections[-1].tables[-1][-1].append("")
            self._into = "cell"

    def handle_endtag(self, tag: str) -> None:
        if tag in ("h1", "h2", "h3", "td", "th"):
            self._into = None

    def handle_data(self, data: str) -> None:
        if self._into == "title":
            self.sections[-1].title += data
        elif self._into == "cell":
            self.sections[-1].tables[-1][-1][-1] += data


@dataclass(frozen=True)
class Printed:
    """A figure as a page has it."""

    table: str
    method: str
    metric: str
    text: str


def figures_of(page: Path, anchor: str) -> list[Printed]:
    """Read the figures below the heading of a task, up to the next of its level."""
    outline = Outline()
    outline.feed(page.read_text("utf-8"))
    found, inside = [], False
    for section in outline.sections:
        if section.level == "h2":
            inside = section.anchor == anchor
        for head, *lines in section.tables if inside and section.level == "h3" else []:
            title = section.title.removesuffix("¶").strip()
            found += [
                Printed(title, line[0], metric, text)
                for line in lines
                for metric, text in zip(head[1:], line[1:], strict=True)
            ]
    return found


def is_of(figure: Printed, row: dict[str, Any]) -> bool:
    """Whether a figure on a page is that row of published.json."""
    value = "-" if row["value"] is None else str(row["value"])
    deviation = f" ± {row['std']}" if row.get("std") is not None else ""
    unit = "" if row["unit"] == "fraction" else f", {row['unit']}"
    metric = f"{row['metric'].replace('_', ' ')}{unit} {'↑' if row['better'] == 'max' else '↓'}"
    return (
        figure.table == f"Table {row['table']}, {row['dataset']}"
        and (figure.method == row["method"] or figure.method.startswith(f"{row['method']} ("))
        and (figure.metric == metric or figure.metric.startswith(f"{metric} ("))
        and figure.text == value + deviation + ("*" if row.get("starred") else "")
    )


def rows_of(task: Task) -> list[dict[str, Any]]:
    """Give the rows of published.json that a task answers to."""
    return [
        row
        for answer in task.paper
        for row in PUBLISHED
        if (row["table"], row["dataset"]) == (answer.table, answer.dataset)
        and all(row.get(key) == value for key, value in answer.where.items())
    ]


@pytest.mark.parametrize(("dataset", "key"), TASKS, ids=map("/".join, TASKS))
def test_each_published_figure_stands_on_its_page_once(site: Path, dataset: str, key: str) -> None:
    task = MANIFESTS[dataset].tasks[key]
    left = figures_of(site / f"datasets/{dataset}.html", key)
    rows = rows_of(task)
    # The longer names first: "X (y)" is a method, and may be method X told apart by y.
    for row in sorted(rows, key=lambda row: -len(row["method"])):
        match = next((figure for figure in left if is_of(figure, row)), None)
        assert match, f"{row['method']}, {row['metric']} of {row['dataset']} is not there"
        left.remove(match)
    assert not [figure for figure in left if figure.text], "figures that are no published rows"


def test_no_published_row_is_lost(site: Path) -> None:
    """What no task answers to stands under a heading of its own, on its dataset's page."""
    of_tasks = [id(row) for m in MANIFESTS.values() for t in m.tasks.values() for row in rows_of(t)]
    others = [row for row in PUBLISHED if id(row) not in of_tasks]
    assert {(row["table"], row["dataset"]) for row in others} == {(9, "CT-RATE")}
    left = figures_of(site / "datasets/ct-rate.html", "other-rows-of-the-paper")
    for row in others:
        left.remove(next(figure for figure in left if is_of(figure, row)))
    assert not [figure for figure in left if figure.text]


@pytest.mark.parametrize("dataset", MANIFESTS)
def test_a_dataset_says_what_its_manifest_does(site: Path, dataset: str) -> None:
    manifest = MANIFESTS[dataset]
    page = (site / f"datasets/{dataset}.html").read_text("utf-8")
    text = " ".join(html.unescape(re.sub(r"<[^>]+>", "", page)).split())
    said = [manifest.title, manifest.licence, manifest.citation, manifest.obtain]
    said += [*manifest.oddities, *(n for task in manifest.tasks.values() for n in task.notes)]
    said += [manifest.layout] if manifest.layout else []
    for one in said:
        assert " ".join(one.replace("`", "").split()) in text
    for name, task in manifest.tasks.items():
        assert f"{dataset}/{name}" in text
        for target in (*task.targets, *task.labels.values(), *task.metrics):
            assert target in text


@pytest.mark.parametrize("table", sorted({row["table"] for row in PUBLISHED}))
def test_contradictions_of_the_paper_stand_with_their_figures(site: Path, table: int) -> None:
    notes = [n for n in load_published()["inconsistencies"] if table in n["tables"]]
    for name, manifest in MANIFESTS.items():
        answers = [a for task in manifest.tasks.values() for a in task.paper if a.table == table]
        if not answers:
            continue
        page = (site / f"datasets/{name}.html").read_text("utf-8")
        text = " ".join(html.unescape(re.sub(r"<[^>]+>", "", page)).split())
        for note in notes:
            if any(a.dataset in (note["datasets"] or [a.dataset]) for a in answers):
                assert " ".join(note["text"].replace("`", "").split()) in text
