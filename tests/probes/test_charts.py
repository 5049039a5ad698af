"""Charts: what is drawn of which rows, seen in the SVG."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dinocache.errors import ProbeError
from probes.charts import KINDS, Kind, bundle, radar_rows, specification, themed, write_chart

INTERVAL = {"low": 0.6, "high": 0.9, "text": ""}
RADAR = {"s": {"ALN": 0.7, "ER": 0.8, "PR": 0.75}, "l": {"ALN": 0.6, "ER": 0.9, "PR": 0.5}}
ROWS: dict[Kind, list[dict[str, Any]]] = {
    "scaling": [
        {"series": name, "resolution": px, "value": 0.7 + px / 1e4, **INTERVAL}
        for name in ("one", "two")
        for px in (256, 512, 1024)
    ],
    "bars": [
        {"series": name, "dataset": of, "value": 0.8, "low": None, "high": None, "text": ""}
        for name in ("a", "b", "c")
        for of in ("in", "out")
    ],
    "radar": radar_rows(RADAR),
    "roc": [{"curve": "a", "x": [0, 0.1, 1], "y": [0, 0.6, 1]}],
    "pr": [{"curve": "a", "x": [0, 0.1, 1], "y": [1, 0.6, 0.2]}],
    "reliability": [{"curve": "a", "x": [0.1, 0.7], "y": [0.2, 0.6], "n": [3, 4]}],
    "confusion": [
        {"truth": t, "predicted": p, "n": 3 if t == p else 1, "share": 0.75 if t == p else 0.25}
        for t in "ab"
        for p in "ab"
    ],
    "k": [{"series": "auc", "k": k, "value": 0.7 + k / 100} for k in (1, 5, 20)],
    "spread": [
        {"run": "a", "fold": f, "seed": s, "value": 0.7 + f / 50, "mean": 0.72}
        for f in (0, 1)
        for s in (0, 1, 2)
    ],
    "classes": [
        {"label": name, "value": 0.7, "low": 0.6, "high": 0.8} for name in ("Mass", "Nodule")
    ],
}
MARKS = {
    # What SVG has of it: mark -> how many.
    "scaling": {"line": 2, "symbol": 6, "rule": 6},
    "bars": {"bar": 6, "rule": 0},
    "radar": {"line": 6, "symbol": 8, "text": 7},
    "roc": {"line": 2},
    "pr": {"line": 1},
    "reliability": {"line": 2, "symbol": 2},
    "confusion": {"rect": 4, "text": 4},
    "k": {"line": 1, "symbol": 3},
    "spread": {"symbol": 6},
    "classes": {"symbol": 2, "rule": 2},
}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("charts")
    for kind in KINDS:
        spec = specification(kind, metric="<AUC> & more")
        write_chart(spec, ROWS[kind], folder / kind, title=f"A <{kind}>")
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_each_form(drawn: Path, kind: str) -> None:
    assert (drawn / f"{kind}.pdf").read_bytes().startswith(b"%PDF-")
    assert (drawn / f"{kind}.png").read_bytes().startswith(b"\x89PNG\r\n")
    svg = (drawn / f"{kind}.svg").read_text("utf-8")
    assert svg.startswith("<svg")
    assert f"A &lt;{kind}&gt;" in svg
    assert "NaN" not in svg


@pytest.mark.parametrize("kind", KINDS)
def test_each_row_is_drawn(drawn: Path, kind: str) -> None:
    svg = (drawn / f"{kind}.svg").read_text("utf-8")
    names = {"bar": "bar", "symbol": "(?:point|circle)"}
    names |= {mark: f"{mark} mark" for mark in ("line", "text", "rect")}
    for mark, count in MARKS[kind].items():
        found = re.findall(rf'aria-roledescription="{names.get(mark, mark)}"', svg)
        if mark == "rule":  # intervals, which a screen reader has with the points
            layers = re.findall(r'<g class="mark-rule [^>]*aria-hidden[^>]*>(.*?)</g>', svg)
            found = [line for layer in layers for line in re.findall("<line", layer)]
        assert len(found) == count, mark


def test_what_it_cannot_write_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ProbeError, match="cannot write"):
        write_chart(specification("k"), ROWS["k"], tmp_path / "file/k")


def test_a_radar_by_hand() -> None:
    rows = radar_rows({"s": {"a": 1.0, "b": 0.5, "c": 0.25, "d": 0.0}})
    points = [(r["axis"], r["x"], r["y"]) for r in rows if r["part"] == "series"]
    # From the top, clockwise; the first stands at the end again.
    assert points == [
        ("a", 0, 1),
        ("b", 0.5, 0),
        ("c", 0, -0.25),
        ("d", 0, 0),
        ("a", 0, 1),
    ]
    rings = [(r["x"], r["y"]) for r in rows if r["part"] == "ring"]
    assert len(rings) == 4 * 5
    assert np.hypot(*np.array(rings).T).reshape(4, 5) == pytest.approx(
        np.repeat([[0.25], [0.5], [0.75], [1]], 5, axis=1), abs=1e-3
    )


def test_themes_differ_where_they_must() -> None:
    light, dark = themed("light"), themed("dark")
    assert set(light) == set(dark)
    assert light["axis"]["labelColor"] != dark["axis"]["labelColor"]
    assert light["range"]["category"] != dark["range"]["category"]


def test_the_scripts_are_whole_and_ask_for_nothing() -> None:
    script = bundle()
    assert "window.vegaEmbed" in script
    assert not re.search(r"""\bimport\s*[("'{]|from\s*["']https?:""", script)
