"""Charts over many runs: which rows they have, and that bars stand beside each other."""

import re
from pathlib import Path

import pytest
from synthetic_runs import estimate, write_synthetic_run

from probes.charts import specification, write_chart
from probes.paper_tables import paper_tables
from probes.report_figures import report_figures
from probes.run_page import Figure, run_page
from probes.runs import Result
from probes.standing import standing


def figures_of(folder: Path, runs: dict[str, Result]) -> list[Figure]:
    pages = {name: run_page(folder / name, result, {}) for name, result in runs.items()}
    return report_figures(runs, standing(paper_tables(), runs), pages)


def auc(value: float) -> dict[str, object]:
    return {"metrics": {"auc": estimate(value, 0.02)}}


def made(folder: Path, named: str, **changes: object) -> Result:
    return write_synthetic_run(folder, named, **changes)  # type: ignore[arg-type]


def test_a_line_for_each_set_up_but_the_resolution(tmp_path: Path) -> None:
    runs = {
        f"{model}-{px}-{k}": made(
            tmp_path / f"{model}-{px}-{k}",
            "rsna-pneumonia/pneumonia",
            model=model,
            resolution=px,
            head="knn",
            settings={"k": k, "weighted": 0},
            seeds=1,
            random=model == "uni",
            **auc(0.5 + k / 100 + int(px) / 1e4),
        )
        for model in ("dinov3-s", "uni")
        for px in ("512", "1024", "256")
        for k in (5, 20)
    }
    [scaling] = [f for f in figures_of(tmp_path, runs) if f.kind == "scaling"]
    assert scaling.title == "rsna-pneumonia/pneumonia: auc by resolution"
    lines: dict[str, list[tuple[int, float]]] = {}
    for row in scaling.rows:
        lines.setdefault(row["series"], []).append((row["resolution"], row["value"]))
    assert lines == {
        f"{model} ({k})": [(px, pytest.approx(0.5 + n / 100 + px / 1e4)) for px in (256, 512, 1024)]
        for n, k in ((5, "k=5"), (20, "k=20"))
        for model in ("dinov3-s, knn on cls", "uni, knn on cls, random:0")
    }


def test_one_resolution_makes_no_line(tmp_path: Path) -> None:
    runs = {"a": made(tmp_path / "a", "rsna-pneumonia/pneumonia")}
    assert not [f for f in figures_of(tmp_path, runs) if f.kind == "scaling"]


def test_few_shots_are_lines_of_their_own(tmp_path: Path) -> None:
    whole = made(tmp_path / "x", "rsna-pneumonia/pneumonia")
    runs = {}
    for px in ("256", "512"):
        for shots in (1, 5):
            split = whole.split.model_copy(update={"shots": shots})
            name = f"{px}-{shots}"
            runs[name] = made(
                tmp_path / name, "rsna-pneumonia/pneumonia", resolution=px, split=split
            )
    [scaling] = [f for f in figures_of(tmp_path, runs) if f.kind == "scaling"]
    assert {row["series"] for row in scaling.rows} == {
        "dinov3-s, linear on cls, 1-shot",
        "dinov3-s, linear on cls, 5-shot",
    }


def test_bars_are_those_of_tables_3_and_4_and_stand_beside_each_other(tmp_path: Path) -> None:
    runs = {
        "fair": made(tmp_path / "fair", "camelyon16/tumour", resolution="224", **auc(0.75)),
        "large": made(tmp_path / "large", "camelyon16/tumour", resolution="512", **auc(0.65)),
        "random": made(
            tmp_path / "random", "camelyon16/tumour", resolution="224", random=True, **auc(0.55)
        ),
    }
    [bars] = [f for f in figures_of(tmp_path, runs) if f.kind == "bars"]
    own = {row["series"]: row["value"] for row in bars.rows if row["series"].startswith("own")}
    assert own == {
        "own: dinov3-s @ 224, abmil on mean": 0.75,
        "own: dinov3-s @ 512, abmil on mean (not comparable)": 0.65,
        "own: dinov3-s @ 224, abmil on mean, random:0 (not comparable)": 0.55,
    }
    printed = {(r["series"], r["dataset"]): r["value"] for r in bars.rows if r["low"] is None}
    assert len(printed) == 10
    assert printed["paper: UNI", "in domain (Camelyon16)"] == 0.965
    # The same label twice, as two runs of one set-up in a table: each bar begins at 0.
    twice = [*bars.rows, {**bars.rows[-1], "value": 0.35}]
    write_chart(specification("bars", metric="AUC"), twice, tmp_path / "bars")
    svg = (tmp_path / "bars.svg").read_text("utf-8")
    starts = re.findall(r'aria-roledescription="bar" d="M([\d.]+),', svg)
    assert len(starts) == len(twice)
    assert set(starts) == {"0"}


def test_a_radar_needs_all_tasks_of_a_set_up(tmp_path: Path) -> None:
    runs = {
        f"{model}-{task}": made(tmp_path / f"{model}-{task}", f"bcnb/{task}", model=model, **auc(v))
        for model, tasks in (("uni", ("aln", "er", "pr")), ("dinov3-s", ("aln", "er")))
        for v, task in zip((0.7, 0.8, 0.9), tasks, strict=False)
    }
    [radar] = [f for f in figures_of(tmp_path, runs) if f.kind == "radar"]
    points = {(r["series"], r["axis"]): r["value"] for r in radar.rows if r["part"] == "series"}
    series = "uni, abmil on mean @ 256"
    assert points == {(series, "ALN"): 0.7, (series, "ER"): 0.8, (series, "PR"): 0.9}
    del runs["uni-pr"]
    assert not [f for f in figures_of(tmp_path, runs) if f.kind == "radar"]


def test_runs_lose_the_folders_that_all_of_them_share(tmp_path: Path) -> None:
    names = ("x/rsna/a", "x/rsna/b")
    runs = {n: made(tmp_path / n, "rsna-pneumonia/pneumonia", seeds=2) for n in names}
    [spread] = [f for f in figures_of(tmp_path, runs) if f.kind == "spread"]
    assert [(r["run"], r["seed"]) for r in spread.rows] == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
