"""The report: what it writes, that it is complete in itself, and that names stay text."""

import base64
import gzip
import json
import os
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from making import make_table, tiny_request
from synthetic_runs import estimate, write_synthetic_run

from dinocache.errors import DinocacheError, ProbeError, RequestError, StoreNotFoundError
from dinocache.extract import extract
from dinocache.store import FeatureStore
from probes import charts
from probes.cli import main
from probes.features import store_facts
from probes.report import Written, write_report
from probes.runs import Result

HOSTILE = '"><script>alert("1")</script><!-- '


@pytest.fixture(autouse=True)
def _short_scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scripts of others are looked at in a browser; putting them together takes seconds."""
    monkeypatch.setattr(charts, "bundle", lambda: "window.vegaEmbed = 1")
    monkeypatch.setattr("probes.report_page.bundle", lambda: "window.vegaEmbed = 1")


class Page(HTMLParser):
    """What a browser would make of a page, and of the packed pages of its runs."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.source = path.read_text("utf-8")
        self._data: dict[str, str] = {}
        self._into: str | None = None
        self._in_script = False
        self.feed(self.source)
        packed = json.loads(self._data["packed"])
        self.runs = {
            name: json.loads(gzip.decompress(base64.b64decode(content)))
            for name, content in packed.items()
        }
        self.figures = json.loads(self._data["page"])["figures"]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._in_script = tag in ("script", "style")
        self._into = dict(attrs).get("id") if tag == "script" else None

    def handle_endtag(self, tag: str) -> None:
        self._in_script, self._into = False, None

    def handle_data(self, data: str) -> None:
        if self._into:
            self._data[self._into] = data
        elif not self._in_script:
            self.words.append(" ".join(data.split()))

    @property
    def text(self) -> str:
        return " ".join(word for word in self.words if word)

    def loads(self) -> list[str]:
        """Name every address that a browser would fetch."""
        names = ("src", "srcset", "poster", "action", "data", "xlink:href", "background")
        links = [attrs["href"] or "" for tag, attrs in self.tags if tag == "link"]
        return links + [
            value or "" for _, attrs in self.tags for name, value in attrs.items() if name in names
        ]


def written(runs: Path, store: Path | None = None) -> Page:
    return Page(write_report(runs, runs / "page.html", store).page)


def pneumonia(folder: Path, **changes: object) -> Result:
    return write_synthetic_run(folder, "rsna-pneumonia/pneumonia", **changes)  # type: ignore[arg-type]


def test_every_figure_stands_with_its_interval(tmp_path: Path) -> None:
    result = pneumonia(tmp_path / "one", seeds=1)
    page = written(tmp_path)
    auc = result.metrics["auc"]
    assert auc.value is not None
    assert auc.low is not None
    assert auc.high is not None
    assert f"{auc.value:.3f} {auc.low:.3f} to {auc.high:.3f} hub:made-up" in page.text
    html = page.runs["one"]["html"]
    for metric, found in result.metrics.items():
        assert metric in html
        assert f"{found.value:.3f}<small>{found.low:.3f} to {found.high:.3f}</small>" in html
    assert "Not comparable with Table 2: 1 of 3 seeds" in html


def test_what_is_not_defined_is_a_dash(tmp_path: Path) -> None:
    nothing = estimate(0.5).model_copy(update={"value": None, "low": None, "high": None})
    pneumonia(tmp_path / "one", metrics={"auc": nothing})
    page = written(tmp_path)
    assert "auc – – hub:made-up" in page.text  # noqa: RUF001
    for text in (page.text, page.runs["one"]["html"]):
        assert "None" not in text
        assert "nan" not in text


@pytest.mark.parametrize("is_random", [False, True])
def test_random_weights_taint_their_own_runs_only(tmp_path: Path, is_random: bool) -> None:
    pneumonia(tmp_path / "one")
    pneumonia(tmp_path / "two", random=is_random)
    page = written(tmp_path)
    assert page.source.count('<span class="tag">random:0</span>') == is_random
    assert ("they say nothing about any model" in page.text) == is_random
    assert ("random weights (random:0)" in page.text) == is_random
    assert "random" not in page.runs["one"]["html"]
    assert ("these figures say nothing about any model" in page.runs["two"]["html"]) == is_random


def test_a_page_fetches_nothing(tiny_store: FeatureStore, tmp_path: Path) -> None:
    pneumonia(tmp_path / "one", store=store_facts(tiny_store.path))
    page = written(tmp_path, tiny_store.path)
    assert all(address.startswith("data:") for address in page.loads())
    [policy] = [a["content"] for t, a in page.tags if t == "meta" and "http-equiv" in a]
    assert policy is not None
    assert policy.startswith("default-src 'none';")
    assert "connect-src" not in policy
    assert "http" not in policy
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]
    assert 'src="data:image/webp;base64,' in page.source
    assert "Item 0000 of" in page.text
    assert "random:0" in page.text  # the store's, beside its picture


def test_a_page_is_the_same_each_time(tmp_path: Path) -> None:
    pneumonia(tmp_path / "runs/one")
    first, second = (write_report(tmp_path / "runs", tmp_path / f"{n}.html").page for n in "ab")
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize(
    "place", ["target", "dataset", "class", "weights", "random", "setting", "note"]
)
def test_names_are_text(tmp_path: Path, place: str) -> None:
    made = pneumonia(tmp_path / "plain", seeds=1)
    task, store, head = made.task, made.store, made.head
    changed = made.model_copy(
        update={
            "target": {"task": task.model_copy(update={"name": None, "targets": (HOSTILE,)})},
            "dataset": {
                "task": task.model_copy(update={"name": None}),
                "store": store.model_copy(update={"dataset": HOSTILE}),
            },
            "class": {"per_class": {HOSTILE: made.metrics, "b": made.metrics}},
            "weights": {"store": store.model_copy(update={"weights": HOSTILE})},
            "random": {
                "store": store.model_copy(update={"weights": HOSTILE, "random_weights": True})
            },
            "setting": {"head": head.model_copy(update={"settings": {"k": HOSTILE}})},
            "note": {"notes": (HOSTILE,)},
        }[place]
    )
    table = pd.read_parquet(tmp_path / "plain/predictions.parquet")
    table["item_id"] = HOSTILE + table["item_id"]
    changed.write(tmp_path / "plain", table, {})
    page = written(tmp_path)
    scripts = [dict(attrs) for tag, attrs in page.tags if tag == "script"]
    assert len(scripts) == 5
    html = page.runs["plain"]["html"]
    assert "<script" not in html
    assert "&lt;script&gt;alert(" in html
    assert page.source.count("</script>") == 5
    assert "<!--" not in page.source


def test_a_run_of_a_hostile_name(tmp_path: Path) -> None:
    name = "a'b\"<i>&c#d%e"
    pneumonia(tmp_path / name)
    page = written(tmp_path)
    [link] = {a["href"] for t, a in page.tags if t == "a" and (a["href"] or "").startswith("#run=")}
    assert link == "#run=a%27b%22%3Ci%3E%26c%23d%25e"
    assert list(page.runs) == [name]


def test_a_folder_of_tables_and_figures(tmp_path: Path) -> None:
    for px in ("256", "512"):
        pneumonia(tmp_path / f"runs/{px}", resolution=px, seeds=1)
    found = write_report(tmp_path / "runs", tmp_path / "out", figures="all")
    assert found.page == tmp_path / "out/index.html"
    names = sorted(path.relative_to(tmp_path / "out").as_posix() for path in found.tables)
    assert names[:2] == ["tables.csv", "tables.md"]
    assert names[2:] == [f"tables/table-{n:02d}.tex" for n in range(2, 17)]
    figures = {path.relative_to(tmp_path / "out/figures").as_posix() for path in found.figures}
    scaling = "rsna-pneumonia-pneumonia-auc-by-resolution"
    assert {f"{scaling}{ending}" for ending in (".svg", ".pdf", ".png")} <= figures
    assert {"256/roc.svg", "512/reliability.pdf", "512/confusion.png"} <= figures
    assert all(path.is_file() for path in (*found.tables, *found.figures))
    assert found.runs == 2


def test_without_figures_and_a_page_alone(tmp_path: Path) -> None:
    pneumonia(tmp_path / "runs/one")
    found = write_report(tmp_path / "runs", tmp_path / "out", figures="none")
    assert found.figures == ()
    assert not (tmp_path / "out/figures").exists()
    alone = write_report(tmp_path / "runs", tmp_path / "new/folder/page.html")
    assert (alone.tables, alone.figures) == ((), ())
    assert [path.name for path in (tmp_path / "new/folder").iterdir()] == ["page.html"]


def test_a_damaged_run_is_named_and_stops_no_other(tmp_path: Path) -> None:
    pneumonia(tmp_path / "good")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/result.json").write_text("{")
    found: Written = write_report(tmp_path, tmp_path / "page.html")
    assert found.runs == 1
    [remark] = found.remarks
    assert "bad" in remark
    page = Page(found.page)
    assert "Left out: " in page.text
    assert list(page.runs) == ["good"]


def nans(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(**{"score.positive": float("nan")})


@pytest.mark.parametrize(
    "harm",
    [
        pytest.param(nans, id="no-numbers"),
        pytest.param(lambda t: t.assign(**{"score.positive": "high"}), id="text"),
        pytest.param(lambda t: t.iloc[:0], id="empty"),
        pytest.param(lambda t: t.iloc[1:], id="one-row-less"),
    ],
)
def test_odd_predictions_are_a_remark_and_stop_nothing(
    tmp_path: Path, harm: Callable[[pd.DataFrame], pd.DataFrame]
) -> None:
    pneumonia(tmp_path / "good")
    pneumonia(tmp_path / "odd")
    file = tmp_path / "odd/predictions.parquet"
    harm(pd.read_parquet(file)).to_parquet(file)
    page = written(tmp_path)
    assert set(page.runs) == {"good", "odd"}
    assert "fit again" in page.runs["odd"]["html"]
    assert "fit again" not in page.runs["good"]["html"]


def test_a_run_without_metrics(tmp_path: Path) -> None:
    pneumonia(tmp_path / "one", metrics={})
    assert list(written(tmp_path).runs) == ["one"]


def test_a_folder_whose_name_is_no_text(tmp_path: Path) -> None:
    pneumonia(tmp_path / "good")
    pneumonia(tmp_path / "bad")
    os.rename(os.fsencode(tmp_path / "bad"), os.fsencode(tmp_path) + b"/b\xff")
    found = write_report(tmp_path, tmp_path / "page.html")
    assert list(Page(found.page).runs) == ["good"]
    assert "its name is no UTF-8" in found.remarks[0]


def test_figures_of_names_alike_do_not_overwrite_each_other(tmp_path: Path) -> None:
    for name in ("a b", "a_b", "A-b", "\u00c4"):
        pneumonia(tmp_path / f"runs/{name}", seeds=1)
    found = write_report(tmp_path / "runs", tmp_path / "out", figures="all")
    assert len({str(path).lower() for path in found.figures}) == len(found.figures)
    assert all(path.is_file() for path in found.figures)


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        pytest.param(None, RequestError, "there is no run below", id="none"),
        pytest.param("{", ProbeError, "is no result of this version", id="garbage"),
    ],
)
def test_without_readable_runs_there_is_no_page(
    tmp_path: Path, content: str | None, error: type[DinocacheError], message: str
) -> None:
    if content is not None:
        (tmp_path / "result.json").write_text(content)
    with pytest.raises(error, match=message):
        write_report(tmp_path, tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_where_it_cannot_be_written(tmp_path: Path) -> None:
    pneumonia(tmp_path / "runs/one")
    (tmp_path / "page.html").mkdir()
    with pytest.raises(ProbeError, match=r"cannot write .*page\.html: Is a directory"):
        write_report(tmp_path / "runs", tmp_path / "page.html")


def test_pictures_share_the_room_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    write_synthetic_run(tmp_path / "one", "msd-task04/segmentation")
    (tmp_path / "one/overlays").mkdir()
    for name in "abc":
        Image.effect_noise((300, 200), 90).save(tmp_path / f"one/overlays/{name}.png")
    html = written(tmp_path).runs["one"]["html"]
    size = len(base64.b64decode(re.findall(r"base64,([^\"]+)", html)[0]))
    assert html.count("<img") == 3
    monkeypatch.setattr("probes.report._PICTURE_BYTES", round(2.5 * size))
    html = written(tmp_path).runs["one"]["html"]
    assert html.count("<img") == 2
    assert "1 of its pictures left out here for want of room" in html


def test_features_of_maps_too_small_for_a_picture_are_left_out(tmp_path: Path) -> None:
    asked = tiny_request(
        make_table(tmp_path, 2), tmp_path / "f", resolution=(16, 32), features=("dense", "image")
    )
    store = extract(asked).path
    pneumonia(tmp_path / "runs/one", store=store_facts(store))
    page = written(tmp_path / "runs", store)
    assert "principal components as red" not in page.text


# The command


def test_the_command_says_what_it_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pneumonia(tmp_path / "runs/one", seeds=1)
    assert main(["report", str(tmp_path / "runs"), "--figures", "none"]) == 0
    printed = capsys.readouterr().out
    page = tmp_path / "runs/report/index.html"
    assert re.search(
        rf"^report: {re.escape(str(page))} \(1 runs, \d\.\d MB\)$", printed, re.MULTILINE
    )
    assert "tables.md, 16 more beside it" in printed
    assert (
        main(["report", str(tmp_path / "runs"), "--out", str(tmp_path / "p.html"), "--json"]) == 0
    )
    facts = json.loads(capsys.readouterr().out)
    assert facts == {
        "page": str(tmp_path / "p.html"),
        "tables": [],
        "figures": [],
        "runs": 1,
        "remarks": [],
    }


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--figures", "some"], 2, "--figures 'some': choose from summary, all, none"),
        (["--store", "nowhere"], 1, "no run was tested on a store under nowhere"),
    ],
)
def test_mistakes_are_one_clear_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    code: int,
    message: str,
) -> None:
    pneumonia(tmp_path / "one", seeds=1)
    assert main(["report", str(tmp_path), *options]) == code
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said


def test_a_store_that_no_run_is_of(tiny_store: FeatureStore, tmp_path: Path) -> None:
    pneumonia(tmp_path / "one", seeds=1)
    with pytest.raises(StoreNotFoundError, match="no run was tested on a store"):
        write_report(tmp_path, tmp_path / "page.html", tiny_store.path)
