"""Run folders: written whole, read as data."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError
from safetensors import safe_open

from dinocache.errors import ProbeError, RequestError
from dinocache.store import FeatureStore
from probes.cli import main
from probes.runs import (
    Estimate,
    HeadFacts,
    Interval,
    Result,
    SplitFacts,
    StoreOrigin,
    Subgroup,
    TaskFacts,
    find_results,
)

PREDICTIONS = pd.DataFrame({"item_id": ["é1", "é2"], "truth.b": [0, 1]})
ARRAYS = {"s0.f0.weight": np.arange(6, dtype=np.float32).reshape(3, 2).T}


def estimate(value: float | None = 0.75) -> Estimate:
    return Estimate(
        value=value,
        low=None if value is None else value - 0.125,
        high=None if value is None else value + 0.125,
        level=0.95,
        defined=7,
        replicates=9,
        sd_seeds=None,
        sd_folds=0.1,
    )


def result(**changes: object) -> Result:
    """A result such as `fit` gives, with some fields changed."""
    made = Result(
        inputs="i1",
        task=TaskFacts(targets=("a", "b"), kind="multilabel", classes=("a", "b")),
        head=HeadFacts(name="knn", settings={"k": 5, "temperature": None}),
        features=("cls", "mean"),
        pool="mean",
        store=StoreOrigin(
            dataset="demo",
            model="tiny",
            resolution="32x48",
            variant="two",
            digest="d1",
            weights="hub:timm/tiny",
            random_weights=False,
            items_table="items-0001.parquet",
        ),
        split=SplitFacts(
            protocol="folds", column=None, folds=3, digest="d2", n_train=28.0, n_test=14.0
        ),
        seeds=(0,),
        items=42,
        groups=21,
        left_out={"x": "target missing"},
        metrics={"auc": estimate(), "f1": estimate(None)},
        per_class={"a": {"auc": estimate(0.1 + 0.2)}, "b": {"auc": estimate(None)}},
        subgroups={"sex": {"F": Subgroup(items=3, groups=2, metrics={"auc": estimate()})}},
        delong={"a": Interval(value=0.5, low=None, high=None, level=0.95)},
        auc_skipped=("b",),
        curve=({"k": 1.0, "auc": None}, {"k": 5.0, "auc": 0.75}),
        versions={"python": "3.11"},
    )
    return made.model_copy(update=changes)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "run"
    result().write(folder, PREDICTIONS, ARRAYS)
    assert sorted(p.name for p in folder.iterdir()) == [
        "head.safetensors",
        "predictions.parquet",
        "result.json",
    ]
    assert Result.read(folder) == result()
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "predictions.parquet"), PREDICTIONS)
    with safe_open(folder / "head.safetensors", "np") as head:
        np.testing.assert_array_equal(head.get_tensor("s0.f0.weight"), ARRAYS["s0.f0.weight"])
    assert result().title == ("demo/a+b: tiny at 32x48-two (hub:timm/tiny), cls+mean, knn")


def test_what_is_not_defined_is_null(tmp_path: Path) -> None:
    result().write(tmp_path, PREDICTIONS, ARRAYS)

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    body = json.loads((tmp_path / "result.json").read_text("utf-8"), parse_constant=refuse)
    assert body["metrics"]["f1"]["value"] is None
    assert body["curve"][0] == {"k": 1.0, "auc": None}
    with pytest.raises(ValidationError, match="finite number"):
        estimate(float("nan"))


def test_a_former_run_is_replaced(tmp_path: Path) -> None:
    result(items=41).write(tmp_path, PREDICTIONS, ARRAYS)
    result(items=40).write(tmp_path, PREDICTIONS, ARRAYS)
    assert Result.read(tmp_path).items == 40


def test_a_run_that_was_interrupted_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old result goes first and the new one comes last: no folder mixes two runs."""
    result().write(tmp_path, PREDICTIONS, ARRAYS)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(pd.DataFrame, "to_parquet", full)
        with pytest.raises(ProbeError, match=r"cannot write the run .*: No space left on device"):
            result().write(tmp_path, PREDICTIONS, ARRAYS)
    with pytest.raises(ProbeError, match="there is no run at"):
        Result.read(tmp_path)


def garbled(change: str) -> bytes:
    text = result().model_dump_json()
    old, new = change.split(" -> ")
    assert old in text
    return text.replace(old, new, 1).encode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"", "the file: Invalid JSON", id="empty"),
        pytest.param(b"\xff\xfe\x00", "the file: Invalid JSON", id="no-text"),
        pytest.param(b"[]", "the file: Input should be an object", id="a-list"),
        pytest.param(b"{}", "inputs: Field required", id="no-fields"),
        pytest.param(b"[" * 9999, "the file: Invalid JSON: recursion", id="very-deep"),
        pytest.param(garbled('"format":2 -> "format":3'), "format: Input should be 2", id="later"),
        pytest.param(garbled('"items":42 -> "items":"no"'), "items: Input", id="another-type"),
        pytest.param(garbled('"items":42 -> "items":42,"x":1'), "x: Extra inputs", id="unknown"),
        pytest.param(
            garbled('"value":0.75 -> "value":NaN'), "metrics.auc.value: Input should be", id="nan"
        ),
    ],
)
def test_what_is_no_result_is_one_clear_line(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "result.json").write_bytes(content)
    with pytest.raises(ProbeError) as caught:
        Result.read(tmp_path)
    assert f"result.json is no result of this version ({message}" in str(caught.value)
    assert str(caught.value).endswith("; fit again")
    assert "\n" not in str(caught.value)


def test_runs_are_found_at_any_depth_in_order(tmp_path: Path) -> None:
    for name, items in (("b", 3), ("a/2", 2), ("a/1", 1)):
        result(items=items).write(tmp_path / name, PREDICTIONS, ARRAYS)
    found = find_results(tmp_path)
    assert [(name, run.items) for name, run in found.items()] == [("a/1", 1), ("a/2", 2), ("b", 3)]


@pytest.mark.parametrize("name", ["empty", "absent"])
def test_a_folder_without_runs(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(RequestError, match=f"there is no run below .*{name}; `probe fit"):
        find_results(tmp_path / name)


def test_a_run_names_no_place_on_this_machine(tiny_store: FeatureStore, tmp_path: Path) -> None:
    """Parquet is compressed, so its columns and metadata are read, not searched as bytes."""
    out = tmp_path / "run"
    given = ["fit", str(tiny_store.path), "--target", "third", "--head", "knn", "--set", "k=3"]
    assert main([*given, "--replicates", "9", "--out", str(out)]) == 0
    table = pq.read_table(out / "predictions.parquet")
    with safe_open(out / "head.safetensors", "np") as head:
        header = f"{head.metadata()} {list(head.keys())}"
    texts = [(out / "result.json").read_text(), str(table.to_pydict()), header]
    texts += [str(table.schema.metadata), pq.read_metadata(out / "predictions.parquet").created_by]
    for text in texts:
        for place in (tiny_store.path, tmp_path, Path.home(), Path.cwd()):
            assert f"{place}" not in text
        assert '"/' not in text
