"""Charts of results, as Vega-Lite: one specification for the page, for SVG, PDF and PNG."""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dinocache.errors import ProbeError

__all__ = [
    "KINDS",
    "Kind",
    "Rows",
    "bundle",
    "radar_rows",
    "specification",
    "themed",
    "write_chart",
]

Kind = Literal[
    "scaling", "bars", "radar", "roc", "pr", "reliability", "confusion", "k", "spread", "classes"
]
KINDS: tuple[Kind, ...] = (
    "scaling",
    "bars",
    "radar",
    "roc",
    "pr",
    "reliability",
    "confusion",
    "k",
    "spread",
    "classes",
)
Rows = Sequence[Mapping[str, Any]]
# Its own types name each of some hundred channels and marks; what is made is checked by drawing it.
_Altair = Any
_Chart = Any

_DATA = "rows"
_VERSION = "6.4"
"""Of Vega-Lite: what altair writes and vl-convert draws."""
_COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a6d00", "#56b4e9", "#5b5b5b", "#7b3fa0"]
"""Of Okabe and Ito (2008), the yellow darkened, with two more."""
_INK = {
    "light": {"ink": "#1b1f24", "line": "#8a94a0", "faint": "#dfe3e8", "paper": "#ffffff"},
    "dark": {"ink": "#e6e9ed", "line": "#7c8794", "faint": "#343b44", "paper": "#14171b"},
}
_STEPPED = {"bars": "series", "confusion": "truth", "spread": "run", "classes": "label"}
"""Charts with a line for each value of a field, which makes their height."""
_DARK_COLOURS = [
    "#56b4e9", "#e69f00", "#2bc79a", "#e79ac7", "#d9c04a", "#9ecbff", "#b4b4b4", "#bb8fe0"
]  # fmt: skip


def specification(kind: Kind, *, metric: str = "") -> dict[str, Any]:
    """Give the specification of a chart, without its data.

    Args:
        kind: Of `KINDS`. Its rows are, by kind:

            - `scaling`: series, resolution (px), value, low, high, text
            - `bars`: series, dataset, value, low, high, text; the axis ends at 1
            - `radar`: see `radar_rows`
            - `roc`, `pr`: curve, x and y: lists in [0, 1]
            - `reliability`: curve, x, y, n: lists
            - `confusion`: truth, predicted, share, n
            - `k`: series, k, value
            - `spread`: run, fold, seed, value, mean
            - `classes`: label, value, low, high
        metric: Named at the axis of values.

    Returns:
        Vega-Lite; the rows are its dataset `rows`.
    """
    import altair as alt

    chart = _CHARTS[kind](alt, alt.Chart(alt.NamedData(_DATA)), metric or "value")
    spec: dict[str, Any] = chart.to_dict(validate=False)
    spec.pop("config", None)
    if spec.get("width") == "container":
        # Of both sides only the width follows the page.
        spec["autosize"] = {"type": "fit-x", "contains": "padding"}
    if kind in _STEPPED:
        spec["usermeta"] = {"stepped": _STEPPED[kind]}
    return spec


def themed(theme: Literal["light", "dark"]) -> dict[str, Any]:
    """Give the configuration of charts on a light, or a dark ground."""
    ink = _INK[theme]
    axis = {
        "labelColor": ink["ink"],
        "titleColor": ink["ink"],
        "gridColor": ink["faint"],
        "domainColor": ink["line"],
        "tickColor": ink["line"],
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
    }
    return {
        "background": "transparent" if theme == "dark" else ink["paper"],
        "font": "system-ui, sans-serif",
        "view": {"stroke": None},
        "mark": {"color": (_COLOURS if theme == "light" else _DARK_COLOURS)[0]},
        "axis": axis,
        "legend": {
            "labelColor": ink["ink"],
            "titleColor": ink["ink"],
            "labelFontSize": 12,
            "labelLimit": 300,
            "orient": "bottom",
            "columns": 1,
            "titleFontWeight": "normal",
        },
        "title": {"color": ink["ink"], "fontWeight": "normal", "anchor": "start"},
        "text": {"color": ink["ink"]},
        "rule": {"color": ink["line"]},
        "range": {"category": _COLOURS if theme == "light" else _DARK_COLOURS},
    }


def write_chart(
    spec: Mapping[str, Any], rows: Rows, stem: Path, *, title: str = "", width: int = 460
) -> list[Path]:
    """Write a chart as SVG, PDF and PNG (200 pixels an inch).

    Args:
        spec: As `specification` gives it.
        rows: Its data.
        stem: Of the files, without an ending.
        title: Above it.
        width: Of the plot without axes and legend, px.

    Returns:
        The files.

    Raises:
        ProbeError: If they cannot be written.
    """
    import vl_convert

    whole: dict[str, Any] = {**spec, "datasets": {_DATA: list(rows)}, "config": themed("light")}
    if title:
        whole["title"] = title
    if "width" not in whole or whole["width"] == "container":
        whole["width"] = width
    drawn: dict[str, bytes] = {
        ".svg": vl_convert.vegalite_to_svg(whole, vl_version=_VERSION).encode(),
        ".pdf": vl_convert.vegalite_to_pdf(whole, vl_version=_VERSION),
        ".png": vl_convert.vegalite_to_png(whole, vl_version=_VERSION, ppi=200),
    }
    written = []
    try:
        stem.parent.mkdir(parents=True, exist_ok=True)
        for ending, content in drawn.items():
            path = stem.with_name(stem.name + ending)
            path.write_bytes(content)
            written.append(path)
    except OSError as exc:
        raise ProbeError(f"cannot write {stem}: {exc.strerror or exc}") from exc
    return written


@cache
def bundle() -> str:
    """Give the scripts that draw specifications in a browser: `vegaEmbed` and what it needs."""
    import vl_convert

    # What it leaves behind by default, said here as its type hints want it said.
    snippet = "window.vegaEmbed = vegaEmbed; window.vega = vega;"
    return vl_convert.javascript_bundle(snippet, vl_version=_VERSION)


def radar_rows(values: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    """Lay out a radar chart: values in [0, 1] from the middle outwards.

    Args:
        values: Series -> axis -> value; the axes are those of the first series.

    Returns:
        Rows of `radar`: `part` is ring, spoke, label or series; x and y in [-1, 1].
    """
    axes = list(next(iter(values.values())))
    angles = {axis: 2 * np.pi * place / len(axes) for place, axis in enumerate(axes)}

    def at(axis: str, radius: float) -> dict[str, float]:
        x, y = radius * np.sin(angles[axis]), radius * np.cos(angles[axis])
        return {"x": round(float(x), 4), "y": round(float(y), 4)}

    rows: list[dict[str, Any]] = []
    for ring in (0.25, 0.5, 0.75, 1.0):
        for order, axis in enumerate([*axes, axes[0]]):
            rows.append(
                {"part": "ring", "series": f"ring {ring}", "order": order, **at(axis, ring)}
            )
        rows.append({"part": "scale", "text": f"{ring:g}", **at(axes[0], ring)})
    for axis in axes:
        rows.append({"part": "spoke", **at(axis, 1)})
        rows.append({"part": "label", "text": axis, **at(axis, 1.14)})
    for series, found in values.items():
        for order, axis in enumerate([*axes, axes[0]]):
            if axis in found:
                rows.append(
                    {
                        "part": "series",
                        "series": series,
                        "order": order,
                        "axis": axis,
                        "value": found[axis],
                        **at(axis, found[axis]),
                    }
                )
    return rows


def _intervals(alt: _Altair, base: _Chart, x: _Chart, colour: _Chart, dash: _Chart) -> _Chart:
    """Draw them as rules; encoded like the lines, so that there is one legend.

    A screen reader has them with the points: a layer of its own, maybe empty, says nothing.
    """
    return (
        base.transform_filter("isValid(datum.low)")
        .mark_rule(opacity=0.6, aria=False)
        .encode(x=x, y="low:Q", y2="high", color=colour, strokeDash=dash)
    )


def _scaling(alt: _Altair, base: _Chart, metric: str) -> _Chart:
    x = alt.X(
        "resolution:Q",
        title="resolution (px)",
        scale=alt.Scale(type="log", base=2, nice=False, padding=18),
        axis=alt.Axis(values=[64, 96, 128, 192, 224, 256, 384, 512, 768, 1024, 1280], format="d"),
    )
    colour, dash = alt.Color("series:N", title=None), alt.StrokeDash("series:N", title=None)
    points = base.mark_line(point=alt.OverlayMarkDef(size=60, filled=True)).encode(
        x=x,
        y=alt.Y("value:Q", title=metric, scale=alt.Scale(zero=False)),
        color=colour,
        strokeDash=dash,
        tooltip=["series:N", "resolution:Q", alt.Tooltip("value:Q", format=".4f"), "text:N"],
    )
    return (_intervals(alt, base, x, colour, dash) + points).properties(
        width="container", height=280
    )


def _bars(alt: _Altair, base: _Chart, metric: str) -> _Chart:
    offset = alt.YOffset("dataset:N", sort=None)
    y = alt.Y("series:N", title=None, sort=None, axis=alt.Axis(labelLimit=200))
    scale = alt.Scale(domain=[0, 1], clamp=True)
    bars = base.mark_bar().encode(
        x=alt.X("value:Q", title=metric, scale=scale, stack=None),
        y=y,
        yOffset=offset,
        color=alt.Color("dataset:N", title=None, sort=None),
        tooltip=["series:N", "dataset:N", alt.Tooltip("value:Q", format=".4f"), "text:N"],
    )
    rules = (
        base.transform_filter("isValid(datum.low)")
        .mark_rule(strokeWidth=2, aria=False)
        .encode(x="low:Q", x2="high", y=y, yOffset=offset)
    )
    return (bars + rules).properties(width="container", height=alt.Step(32))


def _radar(alt: _Altair, base: _Chart, metric: str) -> _Chart:
    ground = alt.Scale(domain=[-1.3, 1.3])
    x = alt.X("x:Q", axis=None, scale=ground)
    y = alt.Y("y:Q", axis=None, scale=ground)

    def part(name: str) -> _Chart:
        return base.transform_filter(f"datum.part == '{name}'")

    rings = (
        part("ring")
        .mark_line(opacity=0.5, strokeWidth=1, color="#8a94a0")
        .encode(x=x, y=y, order="order:Q", detail="series:N")
    )
    spokes = part("spoke").mark_rule(opacity=0.5).encode(x=x, y=y, x2=alt.datum(0), y2=alt.datum(0))
    labels = part("label").mark_text(fontSize=12).encode(x=x, y=y, text="text:N")
    scale = part("scale").mark_text(fontSize=10, dx=12, opacity=0.8).encode(x=x, y=y, text="text:N")
    series = (
        part("series")
        .mark_line(point=True)
        .encode(
            x=x,
            y=y,
            order="order:Q",
            color=alt.Color("series:N", title=None),
            strokeDash=alt.StrokeDash("series:N", title=None),
            tooltip=["series:N", "axis:N", alt.Tooltip("value:Q", title=metric, format=".4f")],
        )
    )
    return (rings + spokes + labels + scale + series).properties(width=340, height=340)


def _curve(alt: _Altair, base: _Chart, titles: tuple[str, str]) -> _Chart:
    unit = alt.Scale(domain=[0, 1])
    x = alt.X("x:Q", title=titles[0], scale=unit)
    y = alt.Y("y:Q", title=titles[1], scale=unit)
    return (
        base.transform_flatten(["x", "y"])
        .transform_window(step="row_number()")
        .mark_line(interpolate="linear", clip=True)
        .encode(
            x=x,
            y=y,
            order="step:Q",
            color=alt.Color("curve:N", title=None, sort=None),
            tooltip=[
                "curve:N",
                alt.Tooltip("x:Q", title=titles[0], format=".3f"),
                alt.Tooltip("y:Q", title=titles[1], format=".3f"),
            ],
        )
    )


def _diagonal(alt: _Altair) -> _Chart:
    ends = [{"x": 0, "y": 0}, {"x": 1, "y": 1}]
    return (
        alt.Chart(alt.Data(values=ends))
        .mark_line(strokeDash=[4, 4], color="#8a94a0", strokeWidth=1)
        .encode(x="x:Q", y="y:Q")
    )


def _roc(alt: _Altair, base: _Chart, metric: str) -> _Chart:
    lines = _curve(alt, base, ("false positive rate", "true positive rate"))
    return (_diagonal(alt) + lines).properties(width="container", height=300)


def _pr(alt: _Altair, base: _Chart, metric: str) -> _Chart:
    return _curve(alt, base, ("recall", "precision")).properties(width="container", height=300)


def _reliability(alt: _Altair, base: _Chart, metric: str) -> _Chart:
    unit = alt.Scale(domain=[0, 1])
    flat = base.transform_flatten(["x", "y", "n"])
    points = flat.mark_line(point=alt.OverlayMarkDef(size=50, filled=True)).encode(
        x=alt.X("x:Q", title="mean score", scale=unit),
        y=alt.Y("y:Q", title="share that is positive", scale=unit),
        color=alt.Color("curve:N", title=None, sort=None),
        tooltip=[
            "curve:N",
            alt.Tooltip("x:Q", title="mean score", format=".3f"),
            alt.Tooltip("y:Q", title="share that is positive", format=".3f"),
            alt.Tooltip("n:Q", title="items"),
        ],
    )
    return (_diagonal(alt) + points).properties(width="container", height=300)


def _confusion(alt: _Altair, base: _Chart, metric: str) -> _Chart:
    x = alt.X("predicted:N", sort=None, axis=alt.Axis(labelAngle=-35, labelLimit=120))
    y = alt.Y("truth:N", sort=None, axis=alt.Axis(labelLimit=160))
    cells = base.mark_rect().encode(
        x=x,
        y=y,
        color=alt.Color(
            "share:Q",
            title="of the true class",
            scale=alt.Scale(scheme="blues", domain=[0, 1]),
            legend=alt.Legend(format=".0%"),
        ),
        tooltip=["truth:N", "predicted:N", "n:Q", alt.Tooltip("share:Q", format=".1%")],
    )
    numbers = base.mark_text(fontSize=11).encode(
        x=x,
        y=y,
        text="n:Q",
        color=alt.condition("datum.share > 0.5", alt.value("#ffffff"), alt.value("#1b1f24")),
    )
    return (cells + numbers).properties(width="container", height=alt.Step(30))


def _k(alt: _Altair, base: _Chart, metric: str) -> _Chart:
    return (
        base.mark_line(point=True)
        .encode(
            x=alt.X("k:Q", title="k", scale=alt.Scale(type="log", base=10)),
            y=alt.Y("value:Q", title="value", scale=alt.Scale(zero=False)),
            color=alt.Color("series:N", title=None, sort=None),
            tooltip=["series:N", "k:Q", alt.Tooltip("value:Q", format=".4f")],
        )
        .properties(width="container", height=280)
    )


def _spread(alt: _Altair, base: _Chart, metric: str) -> _Chart:
    y = alt.Y("run:N", title=None, sort=None, axis=alt.Axis(labelLimit=220))
    scale = alt.Scale(zero=False)
    points = base.mark_circle(size=60, opacity=0.7).encode(
        x=alt.X("value:Q", title=metric, scale=scale),
        y=y,
        color=alt.Color("fold:N", title="fold"),
        tooltip=["run:N", "fold:N", "seed:N", alt.Tooltip("value:Q", format=".4f")],
    )
    means = base.mark_tick(thickness=2, size=16, color="#8a94a0").encode(x="mean:Q", y=y)
    return (points + means).properties(width="container", height=alt.Step(22))


def _classes(alt: _Altair, base: _Chart, metric: str) -> _Chart:
    y = alt.Y("label:N", title=None, sort=None, axis=alt.Axis(labelLimit=200))
    scale = alt.Scale(zero=False)
    points = base.mark_circle(size=70, opacity=1).encode(
        x=alt.X("value:Q", title=metric, scale=scale),
        y=y,
        tooltip=[
            "label:N",
            *(alt.Tooltip(f"{f}:Q", format=".4f") for f in ("value", "low", "high")),
        ],
    )
    rules = (
        base.transform_filter("isValid(datum.low)")
        .mark_rule(aria=False)
        .encode(x="low:Q", x2="high", y=y)
    )
    return (rules + points).properties(width="container", height=alt.Step(22))


_CHARTS: dict[str, Any] = {
    "scaling": _scaling,
    "bars": _bars,
    "radar": _radar,
    "roc": _roc,
    "pr": _pr,
    "reliability": _reliability,
    "confusion": _confusion,
    "k": _k,
    "spread": _spread,
    "classes": _classes,
}
