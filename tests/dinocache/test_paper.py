"""The paper's figures: whole, each in its place, and its inconsistencies held against them."""

import json
import math
from collections import Counter
from importlib import resources
from typing import Any

import pytest

from dinocache.manifest import load_manifest, load_published, shipped_manifests

PUBLISHED = load_published()
ROWS: list[dict[str, Any]] = PUBLISHED["rows"]
NOTES: dict[str, dict[str, Any]] = {note["id"]: note for note in PUBLISHED["inconsistencies"]}

SHAPES = {
    2: (4, 8),
    3: (5, 4),
    4: (5, 4),
    5: (11, 7),
    6: (8, 4),
    7: (18, 2),
    8: (15, 9),
    9: (4, 8),
    10: (15, 5),
    11: (15, 6),
    12: (9, 12),
    13: (9, 8),
    14: (19, 8),
    15: (7, 3),
    16: (7, 3),
}
"""Table -> rows and columns of figures."""

RANGES = {
    "fraction": (0, 1),
    "percent": (0, 100),
    "bits": (0, math.inf),
    "pixel": (0, math.inf),
    "mm": (0, math.inf),
    "mm (unit not stated)": (0, math.inf),
}
"""Unit -> the least and the greatest value."""

KEYS = {
    *("table", "row", "column", "dataset", "task", "method", "refs", "family", "encoder"),
    *("adaptation", "metric", "value", "unit", "better"),
}
SOME_HAVE = {
    *("std", "resolution", "modality", "aggregate", "trained_on", "task_type", "venue", "arch"),
    *("underlined_in_text", "starred", "label_note"),
}

CLASSES = ("dice_NDBE", "dice_CA", "dice_HGD", "dice_polyp", "dice_Susp")
AVERAGE = "MSD/Average(10 tasks)"

each_table = pytest.mark.parametrize("table", SHAPES)


def found(**where: str | int) -> list[dict[str, Any]]:
    """Give the rows that agree in all that is said."""
    return [row for row in ROWS if all(row.get(key) == value for key, value in where.items())]


def figure(**where: str | int) -> float:
    """Give the one number at a place."""
    (row,) = found(**where)
    return float(row["value"])


def methods(table: int) -> list[str]:
    """Give a table's methods, from the top."""
    return list(dict.fromkeys(row["method"] for row in found(table=table)))


def mean_of_tasks(method: str) -> float:
    """Average a method over the ten tasks of Tables 10 and 11."""
    tasks = [row for row in found(method=method) if row["dataset"].startswith("MSD/Task")]
    assert len({row["dataset"] for row in tasks}) == len(tasks) == 10
    return float(sum(row["value"] for row in tasks)) / 10


def prevalence(method: str, dataset: str) -> float:
    """Give the share of positives that accuracy, precision and recall imply."""
    accuracy, precision, recall = (
        figure(method=method, dataset=dataset, metric=metric)
        for metric in ("accuracy", "precision", "recall")
    )
    return (1 - accuracy) / ((1 - recall) + recall * (1 / precision - 1))


def says(note: str, *figures: float, digits: int) -> bool:
    """Tell whether a note's text has all these figures."""
    return all(f"{value:.{digits}f}" in NOTES[note]["text"] for value in figures)


class TestRows:
    def test_strict_json(self) -> None:
        content = resources.files("manifests").joinpath("published.json").read_text("utf-8")

        def refuse(constant: str) -> None:
            raise ValueError(constant)

        assert json.loads(content, parse_constant=refuse) == PUBLISHED
        _, _, lines = content.partition('"rows": [\n')
        assert [json.loads(line.rstrip(",")) for line in lines.splitlines()[:-2]] == ROWS

    def test_all_tables(self) -> None:
        assert len(ROWS) == 923
        assert Counter(row["table"] for row in ROWS) == {t: r * c for t, (r, c) in SHAPES.items()}

    def test_keys(self) -> None:
        assert all(set(row) >= KEYS and set(row) - KEYS <= SOME_HAVE for row in ROWS)

    @each_table
    def test_every_place_once(self, table: int) -> None:
        rows, columns = SHAPES[table]
        places = {(row["row"], row["column"]) for row in found(table=table)}
        assert places == {(r + 1, c + 1) for r in range(rows) for c in range(columns)}

    def test_nothing_is_said_twice(self) -> None:
        keys = ("table", "dataset", "metric", "method", "adaptation", "modality")
        assert max(Counter(tuple(row.get(key) for key in keys) for row in ROWS).values()) == 1

    @each_table
    def test_a_row_is_one_method_and_a_column_one_metric(self, table: int) -> None:
        of_rows, of_columns = set(), set()
        for row in found(table=table):
            # The halves of Table 9 are two tables side by side.
            half = row["column"] > 4 if table == 9 else False
            of_rows.add((row["row"], half, row["method"], row["adaptation"], row.get("modality")))
            of_columns.add(
                (row["column"], row["dataset"], row["metric"], row["unit"], row["better"])
            )
        rows, columns = SHAPES[table]
        assert len(of_rows) == rows * (2 if table == 9 else 1)
        assert len(of_columns) == columns

    def test_values(self) -> None:
        for row in ROWS:
            value, std = row["value"], row.get("std")
            low, high = RANGES[row["unit"]]
            assert value in (None, "NaN") or low <= value <= high, row
            assert value in (None, "NaN") or (type(value) is float and math.isfinite(value)), row
            assert (std is not None) == (row["table"] in (15, 16)), row
            assert std is None or (type(std) is float and 0 < std < math.inf), row
        assert {row["table"] for row in ROWS if row["value"] is None} == {7}
        assert {row["table"] for row in found(value="NaN")} == {14}

    def test_which_is_better(self) -> None:
        lower = {"voi", "voi_split", "voi_merge", "arand", "hd95", "asd"}
        assert all(row["better"] == ("min" if row["metric"] in lower else "max") for row in ROWS)

    def test_encoders(self) -> None:
        assert all((row["encoder"] is not None) == (row["family"] == "dinov3") for row in ROWS)
        sizes = {"dinov3_vits": "S", "dinov3_vitb": "B", "dinov3_vitl": "L"}
        for row in found(family="dinov3"):
            assert row["method"].upper().startswith(("DINOV3-", "DINO-"))
            assert row["method"].partition("-")[2][0] == sizes[row["encoder"]]


class TestInconsistencies:
    def test_ids_are_unique(self) -> None:
        assert len(NOTES) == len(PUBLISHED["inconsistencies"])

    @pytest.mark.parametrize("note", NOTES.values(), ids=NOTES)
    def test_they_name_rows(self, note: dict[str, Any]) -> None:
        assert list(note) == ["id", "where", "severity", "tables", "datasets", "text"]
        assert note["severity"] in ("low", "medium", "high")
        assert note["where"]
        assert note["text"].endswith(".")
        assert set(note["tables"]) <= set(SHAPES)
        theirs = {(row["table"], row["dataset"]) for row in ROWS if row["table"] in note["tables"]}
        assert set(note["datasets"]) <= {dataset for _, dataset in theirs}
        if note["datasets"]:
            tables = {table for table, dataset in theirs if dataset in note["datasets"]}
            assert tables == set(note["tables"])

    def test_recomputed_figures_stand_beside_the_printed(self) -> None:
        for new in PUBLISHED["recomputed"]:
            where = {key: new[key] for key in ("table", "dataset", "method", "metric")}
            assert figure(**where) == new["printed"]
            assert new["table"] in NOTES[new["note"]]["tables"]
            assert new["dataset"] in NOTES[new["note"]]["datasets"]


class TestArithmetic:
    """What the notes say, by the rows."""

    def recomputed(self, note: str) -> dict[str, float]:
        """Give the recomputed figures of a note: method -> figure."""
        return {r["method"]: r["recomputed"] for r in PUBLISHED["recomputed"] if r["note"] == note}

    def test_averages_of_msd(self) -> None:
        means = {method: mean_of_tasks(method) for method in methods(11)}
        printed = {method: figure(method=method, dataset=AVERAGE) for method in means}
        wrong = {m for m in means if abs(means[m] - printed[m]) > 0.05 + 1e-6}
        assert wrong == {"DINOv3-B", "DINOv3-L", "MoCo-v3", "BYOL"}
        assert (means["DINOv3-B"], means["DINOv3-L"]) == pytest.approx((73.65, 73.46))
        assert means["DINOv3-B"] == pytest.approx(means["V-Net"])
        assert says("avg-msd", *(means[method] for method in wrong), digits=2)
        assert says("avg-msd", *(printed[method] for method in wrong), digits=1)
        new = self.recomputed("avg-msd")
        assert new == pytest.approx({method: means[method] for method in new})
        assert set(new) > wrong

    def test_sizes_on_msd(self) -> None:
        tasks = {row["dataset"] for row in ROWS if row["dataset"].startswith("MSD/Task")}
        base, large = (
            {task: figure(method=method, dataset=task) for task in tasks}
            for method in ("DINOv3-B", "DINOv3-L")
        )
        assert sum(base[task] > large[task] for task in tasks) == 8
        for dataset in ("AutoPET-II", "HECKTOR2022"):
            base_dice, large_dice = (
                figure(encoder=encoder, dataset=dataset, modality="CT+PET", metric="dice")
                for encoder in ("dinov3_vitb", "dinov3_vitl")
            )
            assert base_dice > large_dice

    def test_sums_of_voi(self) -> None:
        wrong = {}
        for row in found(metric="voi"):
            place = {key: row[key] for key in ("table", "dataset", "method")}
            total = sum(figure(**place, metric=part) for part in ("voi_split", "voi_merge"))
            if abs(total - row["value"]) > 0.0015:
                assert row["dataset"] == "AC3/4"
                assert says("voi-sums", total, row["value"], digits=3)
                wrong[row["method"]] = total
        assert wrong == pytest.approx(self.recomputed("voi-sums"))

    def test_averages_of_edd(self) -> None:
        wrong = {}
        for method in methods(8):
            mean = sum(figure(table=8, method=method, metric=name) for name in CLASSES) / 5
            if abs(mean - figure(table=8, method=method, metric="dice_avg")) > 0.01:
                wrong[method] = mean
        assert wrong == pytest.approx({"FCBFormer": 77.344})
        printed = figure(table=8, method="FCBFormer", metric="dice_NDBE")
        (swapped,) = self.recomputed("edd-fcb").values()
        mean = wrong["FCBFormer"] + (swapped - printed) / 5
        assert mean == pytest.approx(
            figure(table=8, method="FCBFormer", metric="dice_avg"), abs=0.005
        )
        assert sorted(f"{swapped:.2f}") == sorted(f"{printed:.2f}")
        assert says("edd-fcb", printed, swapped, wrong["FCBFormer"], mean, digits=2)

    def test_nearest_neighbours_on_ct(self) -> None:
        baselines = {method: found(table=9, method=method) for method in ("CT-Net", "CT-CLIP")}
        below = set()
        for row in found(table=9, family="dinov3"):
            for method, rows in baselines.items():
                (theirs,) = (x["value"] for x in rows if x["metric"] == row["metric"])
                if row["value"] < theirs:
                    below.add((row["adaptation"], row["metric"], method, row["method"][-1]))
                    assert says("table9-claim", row["value"], theirs, digits=3)
        assert below == {
            *(("knn", "recall", method, size) for method in baselines for size in "SBL"),
            *(("knn", "auc", "CT-CLIP", size) for size in "SL"),
        }
        for adaptation in ("knn", "linear_probe"):
            base, large = (
                figure(table=9, metric="auc", adaptation=adaptation, method=method)
                for method in ("DINOv3-B", "DINOv3-L")
            )
            assert large < base

    @pytest.mark.parametrize(
        ("note", "dataset", "digits", "prevalences"),
        [
            ("rsna-prevalence", "RSNA-Pneumonia", 4, (0.2482, 0.2480, 0.2475, 0.2395)),
            ("c16-implied", "Camelyon16", 3, (0.380, 0.480, 0.488, 0.387, 0.403)),
            ("c16-implied", "Camelyon17-Unseen", 3, (0.387, 0.454, 0.403, 0.327, 0.319)),
        ],
    )
    def test_implied_prevalences(
        self, note: str, dataset: str, digits: int, prevalences: tuple[float, ...]
    ) -> None:
        names = dict.fromkeys(row["method"] for row in found(dataset=dataset))
        implied = [prevalence(name, dataset) for name in names]
        assert implied == pytest.approx(prevalences, abs=0.51 * 10**-digits)
        assert says(note, *prevalences, digits=digits)

    def test_accuracy_is_weighted_recall(self) -> None:
        both = {
            method: [
                figure(table=5, method=method, metric=metric)
                for metric in ("accuracy", "weighted_recall")
            ]
            for method in methods(5)
        }
        wrong = {method: pair for method, pair in both.items() if pair[0] != pair[1]}
        assert wrong == {"GMSRF net": [0.6090, 0.6095]}
        assert says("kvasir-gmsrf", *wrong["GMSRF net"], digits=4)

    def test_dice_that_is_the_precision(self) -> None:
        same = [
            row
            for row in found(table=14, modality="CT+PET", metric="dice")
            if row["value"]
            == figure(
                table=14,
                modality="CT+PET",
                metric="precision",
                dataset=row["dataset"],
                method=row["method"],
            )
        ]
        assert {row["dataset"] for row in same} == {"AutoPET-II"}
        text = NOTES["pet-dice-eq-prec"]["text"]
        assert all(f"{row['method']} ({row['value']:.2f})" in text for row in same)
        assert len(same) == 5

    def test_distances_beyond_every_scan(self) -> None:
        rows = found(table=14, family="dinov3", metric="hd95")
        values = [row["value"] for row in rows if row["value"] != "NaN"]
        text = NOTES["pet-hd95"]["text"]
        assert f"{min(values):,.0f} to {max(values):,.0f}" in text
        assert min(values) > 2500
        without = found(table=14, family="dinov3", modality="CT", metric="dice")
        assert {row["value"] for row in without} == {0.0}
        assert sum(row["value"] == "NaN" for row in rows) == 2 < len(without)

    def test_registration_of_acdc(self) -> None:
        best = {
            metric: (min if metric != "dice" else max)(
                found(table=16, metric=metric), key=lambda row: row["value"]
            )
            for metric in ("dice", "hd95", "asd")
        }
        assert best["dice"]["encoder"] == best["asd"]["encoder"] == "dinov3_vitb"
        assert best["hd95"]["method"] == "VoxelMorph"
        dice = {row["method"]: row["value"] for row in found(table=16, metric="dice")}
        small_and_large = [dice[f"DINO-{size}+MIND+ConvexAdam"] for size in "SL"]
        others = [dice[f"{name}+ConvexAdam"] for name in ("MIND", "Anatomix")]
        assert max(small_and_large) < min(others)
        assert says("reg-claim", *small_and_large, *others, digits=4)
        assert says("reg-claim", *(row["value"] for row in best.values()), digits=4)


def test_every_figure_is_answered_to_by_a_task() -> None:
    """All of a table's rows belong to a dataset that is shipped, and to a task of it."""
    manifests = [load_manifest(path) for path in shipped_manifests().values()]
    answers = [p for m in manifests for task in m.tasks.values() for p in task.paper]
    unanswered = [
        (row["table"], row["dataset"], row["method"])
        for row in load_published()["rows"]
        if not any(
            (row["table"], row["dataset"]) == (answer.table, answer.dataset)
            and all(row.get(key) == value for key, value in answer.where.items())
            for answer in answers
        )
    ]
    assert sorted(set(unanswered)) == [(9, "CT-RATE", "CT-CLIP"), (9, "CT-RATE", "CT-Net")]
