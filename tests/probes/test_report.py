"""The page: every figure of every run, complete in itself."""

import base64
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from making import make_table, tiny_request

from dinocache.errors import DinocacheError, ProbeError, RequestError
from dinocache.extract import extract
from dinocache.store import FeatureStore
from probes.report import write_report
from probes.runs import (
    Estimate,
    HeadFacts,
    Result,
    SplitFacts,
    StoreOrigin,
    TaskFacts,
)

HOSTILE = '<script>alert("1")</script>'


class Page(HTMLParser):
    """What a browser would make of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.source = path.read_text("utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(" ".join(data.split()))

    @property
    def text(self) -> str:
        return " ".join(word for word in self.words if word)

    def loads(self) -> list[str]:
        """Name every address that a browser would fetch."""
        names = ("src", "href", "srcset", "poster", "action", "data", "xlink:href", "background")
        return [
            value or "" for _, attrs in self.tags for name, value in attrs.items() if name in names
        ]


def write_run(folder: Path, value: float | None = 0.25, **changes: object) -> None:
    """Write a run whose five figures all differ; `changes` replace fields of its parts."""
    figures = {
        name: Estimate(
            value=None if value is None else value + 0.011 * place,
            low=None if value is None else value + 0.011 * place - 0.07,
            high=None if value is None else value + 0.011 * place + 0.13,
            level=0.95,
            defined=8,
            replicates=9,
            sd_seeds=None,
            sd_folds=None,
        )
        for place, name in enumerate(("auc", "accuracy", "precision", "recall", "f1"))
    }
    facts: dict[str, object] = {
        "dataset": "demo",
        "model": "tiny",
        "resolution": "32x48",
        "variant": "",
        "digest": "d1",
        "weights": "hub:timm/tiny",
        "random_weights": False,
        "items_table": "items",
        "recipe": {},
        "bases": {},
        "targets": ("nodule",),
        "classes": ("yes",),
        "kind": "binary",
        "features": ("cls",),
        "settings": {"k": 5, "temperature": None},
        "left_out": {},
        "column": None,
        "auc_skipped": (),
        "seeds": (0,),
    } | changes
    Result(
        task=TaskFacts.model_validate({k: facts[k] for k in ("targets", "kind", "classes")}),
        head=HeadFacts.model_validate({"name": "knn", "settings": facts["settings"]}),
        features=facts["features"],
        store=StoreOrigin.model_validate({k: facts[k] for k in StoreOrigin.model_fields}),
        split=SplitFacts.model_validate(
            {
                "protocol": "column" if facts["column"] else "folds",
                "column": facts["column"],
                "folds": None if facts["column"] else 3,
                "digest": "d2",
                "n_train": 28,
                "n_test": 14,
            }
        ),
        seeds=facts["seeds"],
        items=42,
        groups=21,
        left_out=facts["left_out"],
        metrics=figures,
        per_class={},
        subgroups={},
        delong={},
        inputs="i",
        pool="mean",
        auc_skipped=facts["auc_skipped"],
        curve=None,
        versions={},
    ).write(folder, pd.DataFrame({"item_id": ["a"]}), {"x": np.zeros(3, np.float32)})


def report(runs: Path, store: Path | None = None) -> Page:
    return Page(write_report(runs, runs / "report.html", store))


def test_every_figure_stands_with_its_interval(tmp_path: Path) -> None:
    write_run(tmp_path / "one", 0.25)
    write_run(tmp_path / "two", 0.55, left_out={"x": "target missing"}, column="fold")
    text = report(tmp_path).text
    for value in (0.25, 0.55):
        for place in range(5):
            figure = value + 0.011 * place
            assert f"{figure:.3f} {figure - 0.07:.3f} to {figure + 0.13:.3f}" in text
    assert "42 items, 21 groups; 3 folds by group" in text
    assert "42 items, 21 groups; split 'fold'; 1 items left out" in text
    assert text.index("auc") < text.index("accuracy") < text.index("f1")


def test_what_is_not_defined_is_a_dash(tmp_path: Path) -> None:
    write_run(tmp_path / "one", None)
    page = report(tmp_path)
    assert page.words.count("-") == 5
    assert "None" not in page.text
    assert "nan" not in page.text


def test_runs_are_told_apart(tmp_path: Path) -> None:
    write_run(tmp_path / "few", settings={"k": 5, "temperature": None})
    write_run(tmp_path / "deep/many", settings={"k": 50, "temperature": 0.07}, seeds=(0, 1))
    text = report(tmp_path).text
    assert "demo: nodule (positive: yes) few 42 items" in text
    assert "demo: nodule (positive: yes) deep/many 42 items" in text
    assert "1 seed, settings k=5, temperature=null" in text
    assert "2 seeds, settings k=50, temperature=0.07" in text


def test_an_auc_that_leaves_classes_out_says_so(tmp_path: Path) -> None:
    write_run(tmp_path / "one", classes=("a", "b", "c"), kind="multiclass", auc_skipped=("b", "c"))
    text = report(tmp_path).text
    assert "; AUC without b, c" in text
    assert "positive" not in text


@pytest.mark.parametrize("is_random", [False, True])
def test_random_weights_taint_their_own_runs_only(tmp_path: Path, is_random: bool) -> None:
    write_run(tmp_path / "one")
    if is_random:
        write_run(tmp_path / "two", weights="random:3", random_weights=True)
    page = report(tmp_path)
    assert page.source.count('<span class="tag">random:3</span>') == is_random
    assert ("they say nothing about any model" in page.text) == is_random
    assert '<span class="tag">hub' not in page.source
    assert "hub:timm/tiny" in page.text


def test_a_page_loads_nothing_and_runs_nothing(tiny_store: FeatureStore, tmp_path: Path) -> None:
    write_run(tmp_path / "one")
    page = report(tmp_path, tiny_store.path)
    [image] = page.loads()
    assert image.startswith("data:image/png;base64,")
    assert base64.b64decode(image.split(",")[1], validate=True).startswith(b"\x89PNG")
    shown = page.source.replace(image, "")
    for outside in ("//", "@import", "url(", "<script", "<link", "<iframe", "<base", "http-equiv"):
        assert outside not in shown
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]
    [alt] = [attrs["alt"] for tag, attrs in page.tags if tag == "img"]
    assert alt is not None
    assert alt.startswith("Left: item 0000. Right: its 2 x 3 patch features")
    assert '<span class="tag">random:0</span>' in page.source  # the store's, not a run's


def test_no_store_no_picture(tmp_path: Path) -> None:
    write_run(tmp_path / "one")
    page = report(tmp_path)
    assert page.loads() == []
    assert "Patch features" not in page.text


def test_the_page_suits_dark_rooms_and_telephones(tmp_path: Path) -> None:
    write_run(tmp_path / "one")
    page = report(tmp_path)
    assert "@media (prefers-color-scheme: dark)" in page.source
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in (
        page.tags
    )


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"targets": (HOSTILE,)}, id="target"),
        pytest.param({"dataset": HOSTILE}, id="dataset"),
        pytest.param({"classes": (HOSTILE,)}, id="class"),
        pytest.param({"weights": HOSTILE}, id="weights"),
        pytest.param({"weights": HOSTILE, "random_weights": True}, id="random-weights"),
        pytest.param({"column": HOSTILE}, id="split"),
        pytest.param({"settings": {"k": HOSTILE}}, id="setting"),
        pytest.param({"auc_skipped": (HOSTILE,)}, id="class-left-out"),
    ],
)
def test_names_are_text(tmp_path: Path, changes: dict[str, object]) -> None:
    write_run(tmp_path / "one", **changes)
    page = report(tmp_path)
    assert "script" not in {tag for tag, _ in page.tags}
    assert "&lt;script&gt;alert(" in page.source


def test_a_hostile_item_stays_inside_its_attribute(tmp_path: Path) -> None:
    table = make_table(tmp_path, 2)
    items = pd.read_csv(table, dtype=str)
    items["item_id"] = ['"><script>1</script>', "plain"]
    items.to_csv(table, index=False)
    store = extract(tiny_request(table, tmp_path / "f", features=("dense", "image"))).path
    write_run(tmp_path / "runs/one")
    page = report(tmp_path / "runs", store)
    assert "script" not in {tag for tag, _ in page.tags}
    [alt] = [attrs["alt"] for tag, attrs in page.tags if tag == "img"]
    assert alt is not None
    assert '"><script>1</script>' in alt


def test_maps_too_small_for_a_picture(tmp_path: Path) -> None:
    asked = tiny_request(
        make_table(tmp_path, 2), tmp_path / "f", resolution=(16, 32), features=("dense", "image")
    )
    store = extract(asked).path
    write_run(tmp_path / "one")
    with pytest.raises(ProbeError, match=r"needs 4 patches .* got \(1, 2, 48\); choose a store"):
        write_report(tmp_path, tmp_path / "report.html", store)


def test_where_the_page_goes(tmp_path: Path) -> None:
    write_run(tmp_path / "one")
    out = tmp_path / "new/folder/page.html"
    assert write_report(tmp_path, out) == out
    assert out.is_file()
    with pytest.raises(ProbeError, match=r"cannot write .*one: Is a directory"):
        write_report(tmp_path, tmp_path / "one")


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
        write_report(tmp_path, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()
