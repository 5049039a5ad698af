"""The report in a real browser: 923 published figures and 200 runs, in both themes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import browser
import pytest
from browser import Opened, open_page
from playwright.sync_api import expect
from synthetic_runs import write_synthetic_runs

from probes.report import write_report
from probes.table_texts import NONE

pytestmark = pytest.mark.skipif(
    browser.chromium() is None, reason=f"no browser: looked for {', '.join(browser.NAMES)}"
)

RUNS = 200
LARGEST = 8_000_000


def page_of(folder: Path, runs: int) -> Path:
    write_synthetic_runs(folder / "runs", runs)
    return write_report(folder / "runs", folder / "page.html").page


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return page_of(tmp_path_factory.mktemp("report"), RUNS)


@pytest.fixture(params=[False, True], ids=["light", "dark"])
def opened(path: Path, request: pytest.FixtureRequest) -> Iterator[Opened]:
    with open_page(path, dark=request.param) as page:
        page.page.wait_for_selector("html[data-ready]")
        yield page


def texts(opened: Opened, selector: str) -> list[str]:
    found: list[str] = opened.page.eval_on_selector_all(
        selector, "all => all.filter(e => e.offsetParent).map(e => e.innerText.trim())"
    )
    return found


def is_dark(opened: Opened) -> bool:
    colour = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
    return sum(int(part) for part in colour[4:-1].split(",")) < 3 * 128


def show_all_charts(opened: Opened, within: str) -> int:
    """Bring every chart into view; wait until each is drawn."""
    charts = opened.page.locator(f"{within} .chart")
    for place in range(charts.count()):
        charts.nth(place).scroll_into_view_if_needed()
        expect(charts.nth(place).locator("svg.marks")).to_be_visible()
    return charts.count()


def test_it_is_small_and_whole(path: Path, opened: Opened) -> None:
    assert path.stat().st_size < LARGEST
    assert opened.page.locator("td[data-published]").count() == 923
    drawn = show_all_charts(opened, "#overview")
    assert drawn > 10
    marks = opened.page.eval_on_selector_all(
        ".chart", "all => all.map(c => Number(c.dataset.marks))"
    )
    assert min(marks) > 0
    assert opened.errors == []
    assert [
        address for address in opened.requests if not address.startswith(("file:", "data:"))
    ] == []
    assert len([address for address in opened.requests if address.startswith("file:")]) == 1


def test_the_theme_is_the_systems_until_somebody_chooses(
    opened: Opened, request: pytest.FixtureRequest
) -> None:
    dark = "dark" in request.node.name
    assert is_dark(opened) is dark
    chart = opened.page.locator("#overview .chart").first
    chart.scroll_into_view_if_needed()
    label = chart.locator(".role-axis-label text").first
    before = label.get_attribute("fill")
    opened.page.select_option("#theme", "light" if dark else "dark")
    assert is_dark(opened) is not dark
    expect(label).not_to_have_attribute("fill", before or "")
    assert opened.errors == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("runs", [3, 34, pytest.param(RUNS, marks=pytest.mark.long)])
def test_accessibility(tmp_path: Path, runs: int, dark: bool) -> None:
    with open_page(page_of(tmp_path, runs), dark=dark) as opened:
        opened.page.wait_for_selector("html[data-ready]")
        show_all_charts(opened, "#overview")
        opened.page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        opened.page.wait_for_timeout(300)
        assert opened.violations() == []
        opened.page.locator("#runs tbody a").first.click()
        show_all_charts(opened, "#run")
        assert opened.violations() == []
        assert opened.errors == []


def test_runs_sort_and_filter(path: Path) -> None:
    with open_page(path) as opened:
        page = opened.page
        page.wait_for_selector("html[data-ready]")
        page.get_by_label("Show", exact=False).first.select_option("-1")
        value = "#runs tbody td:nth-child(8)"
        assert len(texts(opened, value)) == RUNS
        head = page.locator("#runs thead th", has_text="Value")
        for ascending in (True, False):
            head.click()
            page.wait_for_timeout(100)
            values = [float(text) for text in texts(opened, value)]
            assert values == sorted(values, reverse=not ascending)
        page.select_option(".filters select[data-column='2']", "uni")
        page.select_option(".filters select[data-column='4']", "knn")
        assert set(texts(opened, "#runs tbody td:nth-child(3)")) == {"uni"}
        assert {
            text.partition(" ")[0] for text in texts(opened, "#runs tbody td:nth-child(5)")
        } == {"knn"}
        page.select_option(".filters select[data-column='2']", "")
        page.select_option(".filters select[data-column='4']", "")
        page.locator("#runs-part ~ .dt-container input, section input[type=search]").first.fill(
            "edd2020"
        )
        assert set(texts(opened, "#runs tbody td:nth-child(2)")) == {"edd2020/diseases"}
        assert opened.errors == []


def test_a_table_of_the_paper_sorts_and_filters(path: Path) -> None:
    with open_page(path) as opened:
        page = opened.page
        page.wait_for_selector("html[data-ready]")
        table = page.locator("#table-5")
        assert table.get_attribute("open") is not None  # there are own runs of it
        closed = page.locator("#table-7")
        assert closed.get_attribute("open") is None
        closed.locator("summary").click()
        closed.locator("thead th", has_text="Instrument IoU").click()
        shown = texts(opened, "#table-7 tbody td:nth-child(3)")
        values = [-1 if text == NONE else float(text.rstrip("†")) for text in shown]
        assert values == sorted(values)
        assert len(values) == 18
        closed.locator("input[type=search]").fill("SAM")
        names = texts(opened, "#table-7 tbody th")
        assert len(names) == 5
        assert all("SAM" in name for name in names)
        assert opened.errors == []


def test_a_run_has_a_page_of_its_own(path: Path) -> None:
    with open_page(path, width=390) as opened:
        page = opened.page
        page.wait_for_selector("html[data-ready]")
        link = page.locator("#runs tbody a").first
        name = link.inner_text()
        link.focus()
        page.keyboard.press("Enter")
        heading = page.locator("#run h1")
        expect(heading).to_have_text(name)
        expect(heading).to_be_focused()
        expect(page.locator("#overview")).to_be_hidden()
        assert show_all_charts(opened, "#run") > 0
        numbers = page.locator("#run details.rows").first
        numbers.locator("summary").click()
        expect(numbers.locator("table tbody tr").first).to_be_visible()
        page.go_back()
        expect(page.locator("#overview")).to_be_visible()
        assert opened.errors == []


@pytest.mark.parametrize("width", [390, 1440])
def test_nothing_is_wider_than_the_window(path: Path, width: int) -> None:
    with open_page(path, width=width) as opened:
        page = opened.page
        page.wait_for_selector("html[data-ready]")
        page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
        show_all_charts(opened, "#overview")
        widest: Any = page.evaluate("document.documentElement.scrollWidth")
        assert widest <= width


def test_a_run_that_is_not_there_shows_the_overview(path: Path) -> None:
    with open_page(path) as opened:
        opened.page.wait_for_selector("html[data-ready]")
        opened.page.evaluate("location.hash = '#run=nobody'")
        expect(opened.page.locator("#overview")).to_be_visible()
        assert opened.errors == []
