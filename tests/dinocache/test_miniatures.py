"""Every shipped manifest over a tiny copy of its official download: index, then extract."""

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from faithful import surprises
from miniature import miniature, miniatures

from dinocache.dataset import Dataset, find_dataset
from dinocache.errors import RequestError, TableError
from dinocache.extract import Outcome, extract
from dinocache.items import is_reserved, mask_columns
from dinocache.manifest import Folds, load_manifest, load_published, shipped_manifests, split_column
from dinocache.request import ExtractRequest
from dinocache.splits import side_of, split_columns
from dinocache.store import FeatureStore
from probes.fit import fit
from probes.heads import HEADS
from probes.map_fit import fit_maps
from probes.register import register
from probes.sweep import SweepRequest, plan_sweep
from probes.tasks import map_request, registration_request, task_request


@pytest.fixture(scope="module", params=miniatures())
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def data(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(name) / "it's a copy"
    folder.mkdir()
    miniature(name).make(folder)
    return folder


@pytest.fixture(scope="module")
def found(name: str, data: Path) -> Dataset:
    return find_dataset(name, data=data, allow_missing=True)


def test_its_items_are_found(name: str, found: Dataset) -> None:
    expected, table = miniature(name), found.table
    assert (len(table), table["group"].nunique()) == (expected.items, expected.groups)
    assert found.missing == expected.missing
    for split, sides in expected.sides.items():
        counts = table[split_column(split)].dropna().map(side_of).value_counts().to_dict()
        assert counts == sides, split
    by_id = table.set_index("item_id")
    for item_id, targets in expected.targets.items():
        for column, value in targets.items():
            got = by_id.loc[item_id, column]
            got = got.tolist() if hasattr(got, "tolist") else got
            assert (None if pd.api.types.is_scalar(got) and pd.isna(got) else got) == value, (
                item_id,
                column,
            )
    masks = mask_columns(table)
    assert int(table[masks].notna().any(axis=1).sum() if masks else 0) == expected.masks
    files = [c for c in table if c.startswith("path.") or c in ("path", "crop_mask", *masks)]
    for path in pd.unique(table[files].to_numpy().ravel()):
        if not pd.isna(path):
            assert (found.data / path).exists(), path
            assert not Path(path).name.startswith("._")


def test_other_layouts_are_read(name: str, data: Path, found: Dataset, tmp_path: Path) -> None:
    assert found.manifest
    targets = [t for task in found.manifest.tasks.values() for t in task.targets]
    columns = ["item_id", "group", *split_columns(found.table), *dict.fromkeys(targets)]
    for layout, rearrange in miniature(name).layouts.items():
        folder = tmp_path / layout
        shutil.copytree(data, folder)
        rearrange(folder)
        other = find_dataset(name, data=folder, allow_missing=True)
        assert other.missing == found.missing, layout
        pd.testing.assert_frame_equal(other.table[columns], found.table[columns])


def test_what_the_official_release_has_is_asserted(name: str, data: Path, found: Dataset) -> None:
    manifest = found.manifest
    assert manifest is not None
    assert manifest.expect["items"] > len(found.table) or name.startswith(
        ("cremi", "wafer", "ac34")
    )
    if manifest.expect["items"] != len(found.table):
        with pytest.raises(TableError, match=rf"{re.escape(name)}.*(missing|expected \d+ items)"):
            find_dataset(name, data=data)


def test_an_empty_folder_is_told_what_is_missing(name: str, tmp_path: Path) -> None:
    with pytest.raises(TableError, match=rf"^{re.escape(name)}: there is no .* under ") as raised:
        find_dataset(name, data=tmp_path)
    assert "dinocache datasets" in str(raised.value)


def test_its_manifest_is_whole(name: str, found: Dataset) -> None:
    manifest = load_manifest(shipped_manifests()[name])
    assert manifest.name == name
    for said in (manifest.modality, manifest.layout, manifest.licence, manifest.citation):
        assert said.strip()
    assert manifest.home.startswith("https://")
    assert manifest.tasks
    published = load_published()["rows"]
    for task in manifest.tasks.values():
        columns = set(found.table.columns)
        assert set(task.targets) <= columns - {c for c in columns if is_reserved(c)}
        assert task.rows or split_column(task.split) in columns
        if task.pairs:
            assert {task.pairs.by, task.pairs.role} <= columns
        if task.kind in ("segmentation", "instances"):
            assert mask_columns(found.table)
            assert "mask" in manifest.extract.features
        for answer in task.paper:
            rows = [
                row
                for row in published
                if (row["table"], row["dataset"]) == (answer.table, answer.dataset)
                and all(row.get(key) == value for key, value in answer.where.items())
            ]
            assert rows, answer
    for rule in manifest.splits.values():
        assert (
            not isinstance(rule, Folds)
            or rule.base is None
            or rule.base
            in (
                "official",
                *manifest.splits,
            )
        )


@pytest.fixture(scope="module")
def outcome(name: str, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return extract(
        ExtractRequest(
            dataset=name,
            data=data,
            root=tmp_path_factory.mktemp("features"),
            model="tiny",
            resolution=(32, 32),
            features=miniature(name).features,
            options=miniature(name).options,
            weights="random:0",
            device="cpu",
            allow_missing=True,
        )
    )


def test_its_features_are_extracted(name: str, outcome: Outcome) -> None:
    assert outcome.complete
    assert not outcome.failures
    rows = {
        item_id: n
        for segment in FeatureStore(outcome.path).segments
        for item_id, n in zip(segment.item_ids, segment.item_rows, strict=True)
    }
    assert {item_id: n for item_id, n in rows.items() if n != 1} == dict(miniature(name).rows)
    if miniature(name).masks and "mask" in miniature(name).features:
        # A mask that cannot be read is no failure of its item.
        store = FeatureStore(outcome.path)
        masks = mask_columns(store.items)
        for item_id in store.items["item_id"][store.items[masks].notna().any(axis=1)]:
            mask, _ = store.native("mask", str(item_id))
            assert mask.shape[1] == rows[item_id]


ALIKE = {f"msd-task{n:02d}" for n in (2, 3, 5, 6, 7, 8, 9, 10)} | {"cremi-b", "cremi-c"}
"""Their tasks differ from others' by numbers alone: they are asked for, not fitted."""
SMALL: dict[str, dict[str, Any]] = {
    "decoder2d": {"width": 8},
    "decoder3d": {"width": 8, "block_rows": 4, "steps": 1, "warmup": 0},
    "affinity": {"width": 8, "block_rows": 4, "steps": 1},
}


def test_its_tasks_of_maps_are_fitted(
    name: str, outcome: Outcome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("probes.map_run.MOST_DRAWN", 1)
    tasks = load_manifest(shipped_manifests()[name]).tasks
    of_maps = {k: t for k, t in tasks.items() if t.kind in ("segmentation", "instances")}
    if not of_maps:
        pytest.skip(f"{name} has no such tasks")
    for key, task in of_maps.items():
        settings = SMALL[task.head] | {"epochs": 1}
        request = map_request(f"{name}/{key}", outcome.path, settings=settings, replicates=20)
        assert request.metrics == task.metrics
        if name in ALIKE:
            continue
        result = fit_maps(request, tmp_path / key).result
        assert (result.task.name, result.task.kind) == (f"{name}/{key}", task.kind)
        assert set(task.metrics) <= set(result.metrics)
        assert result.features == task.features
        assert surprises(result) == []
        assert result.store.random_weights
        assert any(found.value is not None for found in result.metrics.values())
        assert list((tmp_path / key / "labels").rglob("*.*"))
        if task.kind == "segmentation":
            assert result.task.labels == task.labels
            assert result.split.column == split_column(task.split)
        else:
            assert result.split.protocol == "rows"
            assert {f"{metric}@val" for metric in task.metrics} <= set(result.metrics)


def test_its_pairs_are_registered(name: str, outcome: Outcome, tmp_path: Path) -> None:
    tasks = load_manifest(shipped_manifests()[name]).tasks
    pairs = {k: t for k, t in tasks.items() if t.kind == "registration"}
    if not pairs:
        pytest.skip(f"{name} has no such tasks")
    for key, task in pairs.items():
        quick = {"niter": 1, "disp_hw": 1, "components": 3, "lambda_weight": 1.0}
        request = registration_request(f"{name}/{key}", outcome.path, settings=quick, replicates=20)
        assert set(task.metrics) <= set(request.metrics)
        assert request.settings == {**task.settings, **quick}
        assert not request.grid  # lambda is given
        found = register(request, tmp_path / key)
        result = found.result
        assert (result.task.name, result.task.kind) == (f"{name}/{key}", task.kind)
        assert result.features == task.features
        assert surprises(result) == []
        assert result.split.column == split_column(task.split)
        assert set(request.metrics) == set(result.metrics)
        assert any("TRUE labels" in note for note in result.notes) == (name == "acdc")
        assert list((tmp_path / key / "pairs").rglob("displacement_mm.nii.gz"))
        # A sweep asks for the same, and leaves it once it is there.
        sweep = SweepRequest(
            tasks=(f"{name}/{key}",),
            root=outcome.path.parents[2],
            out=tmp_path / "runs",
            settings={"convexadam": {setting: (value,) for setting, value in quick.items()}},
            fixed={"replicates": 20, "repeats": 1, "by": ()},
        )
        (planned,) = plan_sweep(sweep)
        assert not planned.unchanged
        result.write(planned.folder, found.predictions, found.arrays)
        assert [one.unchanged for one in plan_sweep(sweep)] == [True]
        with pytest.raises(RequestError, match=r"^--shots: .* is a registration, which"):
            plan_sweep(replace(sweep, varied={"shots": (3,)}))


def test_its_tasks_are_fitted(name: str, outcome: Outcome) -> None:
    """Those of scores whose head is there; others are refused by name."""
    for key, task in load_manifest(shipped_manifests()[name]).tasks.items():
        asked = {"features": None, "head": None, "settings": {}, "seeds": 1, "replicates": 20}
        if task.kind not in ("binary", "multiclass", "multilabel") or task.head not in HEADS:
            with pytest.raises(RequestError, match=rf"{name}/{key} (is a|wants the head)"):
                task_request(f"{name}/{key}", outcome.path, **asked)
            continue
        if task.train_on:
            with pytest.raises(RequestError, match=f"are fitted on {task.train_on}"):
                task_request(f"{name}/{key}", outcome.path, **asked)
            continue
        if task.head == "abmil":
            asked["settings"] = {"epochs": 2, "min_epochs": 1, "projection": 8, "hidden": 4}
        result = fit(task_request(f"{name}/{key}", outcome.path, **asked)).result
        assert (result.task.name, result.task.kind) == (f"{name}/{key}", task.kind)
        assert result.split.column == split_column(task.split)
        assert surprises(result) == []
        assert result.store.random_weights
        assert any(found.value is not None for found in result.metrics.values())
        if task.of == "row":
            assert result.items > result.groups
