"""Stores in notebooks: arrays, tables, datasets; and the examples of docs/notebooks.md."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from making import make_table, tiny_request

import dinocache
from dinocache.errors import RequestError, StoreIncompleteError
from dinocache.extract import extract
from dinocache.notebook import Store
from dinocache.store import FeatureStore

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture
def store(tiny_store: FeatureStore) -> Store:
    return dinocache.open(tiny_store.path)


def test_rows_are_arrays(store: Store, tiny_store: FeatureStore) -> None:
    rows = store["cls"]
    assert (rows.shape, rows.dtype, len(rows)) == ((42, 48), np.float16, 42)
    whole = np.asarray(rows)
    expected = np.concatenate([tiny_store.rows("cls", i) for i in store.items["item_id"]])
    np.testing.assert_array_equal(whole, expected)
    assert rows.item_ids.tolist() == store.items["item_id"].tolist()
    np.testing.assert_array_equal(rows[15:19], whole[15:19])
    np.testing.assert_array_equal(rows[-2], whole[-2])
    np.testing.assert_array_equal(rows[[7, 3]], whole[[7, 3]])
    np.testing.assert_array_equal(rows[::5], whole[::5])
    np.testing.assert_array_equal(np.stack(list(rows)), whole)
    with pytest.raises(IndexError, match="row 42 of 42"):
        rows[42]
    np.testing.assert_array_equal(rows.torch().numpy(), whole)
    blocks = rows.dask(rows=10)
    assert blocks.chunks[0] == (10, 10, 10, 10, 2)
    np.testing.assert_array_equal(
        blocks.max(axis=0).compute(scheduler="threads"), whole.max(axis=0)
    )
    assert store["dense"].shape == (42, 2, 3, 48)
    np.testing.assert_array_equal(store["dense"][33:35], tiny_store.all_rows("dense")[33:35])
    assert "(42, 48) float16" in repr(rows)


def test_items_one_by_one(store: Store, tiny_store: FeatureStore) -> None:
    np.testing.assert_array_equal(store.bag("0007"), tiny_store.rows("cls", "0007"))
    np.testing.assert_array_equal(store.dense("0007"), tiny_store.rows("dense", "0007"))
    assert store.image("0007").shape == (1, 1, 40, 52)
    means = store.means("mean")
    assert means.shape == (42, 48)
    np.testing.assert_array_equal(means.loc["0041"], tiny_store.item_vectors("mean")[1][41])
    assert (store.weights, store.is_random) == ("random:0", True)
    assert "images by tiny (random:0)" in repr(store)
    with pytest.raises(StoreIncompleteError, match="has no 'embed'"):
        store["embed"]


def test_polars(store: Store) -> None:
    polars = pytest.importorskip("polars", reason="polars is not installed")
    table = store.items_polars()
    assert isinstance(table, polars.DataFrame)
    assert table["third"].to_list() == store.items["third"].tolist()


@pytest.mark.parametrize("bags", [False, True])
def test_a_dataset_for_torch(store: Store, bags: bool) -> None:
    from torch.utils.data import DataLoader

    dataset = store.dataset("bright", bags=bags)
    features, target = dataset[9]
    assert features.shape == ((1, 48) if bags else (48,))
    assert target == store.items["bright"][9]
    batches = list(DataLoader(dataset, batch_size=8))
    assert sum(len(batch) for batch, _ in batches) == 42
    with pytest.raises(RequestError, match="there is no target 'none'; the store has item_id"):
        store.dataset("none")
    with pytest.raises(RequestError, match="'dense' is no vector"):
        store.dataset("bright", "dense")


def test_rows_of_items_that_failed_or_came_later(tmp_path: Path) -> None:
    """Rows are those of items that are present, each in the latest segment that has it."""
    table = make_table(tmp_path / "images", 23)
    broken = tmp_path / "images/png/0004.png"
    content = broken.read_bytes()
    broken.write_bytes(b"no picture")
    extract(tiny_request(table, tmp_path / "f", features=("cls",)))
    made = extract(
        tiny_request(make_table(tmp_path / "more", 25), tmp_path / "g", features=("cls",))
    )
    assert made.complete
    store = FeatureStore(tmp_path / "f/images/tiny/32x48")
    numbers = store.row_items("cls")
    assert numbers.tolist() == [n for n in range(23) if n != 4]
    rows = store.all_rows("cls")
    expected = np.concatenate([store.rows("cls", f"{n:04d}") for n in numbers])
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_array_equal(store.all_rows("cls", slice(2, 6)), expected[2:6])
    broken.write_bytes(content)
    extract(tiny_request(table, tmp_path / "f", features=("cls",), retry_failed=True))
    again = FeatureStore(store.path)
    assert again.row_items("cls").tolist() == [*numbers.tolist(), 4]
    np.testing.assert_array_equal(again.all_rows("cls")[-1:], again.rows("cls", "0004"))


def test_large_items_and_hidden_ones(tmp_path: Path) -> None:
    """Items of several rows; one that the table in force does not list has none."""
    import nibabel

    draws = np.random.default_rng(0)
    (tmp_path / "v").mkdir()
    for name, depth in (("a", 5), ("b", 21), ("c", 3)):
        volume = draws.integers(0, 200, (9, 11, depth), np.uint8)
        nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / f"v/{name}.nii")
    table = tmp_path / "v/v.csv"
    pd.DataFrame({"item_id": ["c", "a", "b"], "path": ["c.nii", "a.nii", "b.nii"]}).to_csv(
        table, index=False
    )
    made = extract(tiny_request(table, tmp_path / "f", features=("cls",)))
    store = FeatureStore(made.path)
    assert np.bincount(store.row_items("cls")).tolist() == [3, 5, 21]
    expected = np.concatenate([store.rows("cls", i) for i in ("c", "a", "b")])
    np.testing.assert_array_equal(store.all_rows("cls"), expected)
    np.testing.assert_array_equal(store.all_rows("row_coord")[:3, -1], [0, 1, 2])


EXAMPLES = re.findall(r"```python\n(.*?)```", (DOCS / "notebooks.md").read_text(), re.DOTALL)
RUN = """
import json, sys, traceback

for example in json.load(sys.stdin):
    try:
        exec(compile(example, "example", "exec"), {"__name__": "__main__"})
        said = ""
    except BaseException:
        said = traceback.format_exc()
    print("\\nended:", json.dumps(said))
"""


@pytest.fixture(scope="module")
def ends(tiny_store: FeatureStore, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """How each ended, one behind the other in one process, in a folder with a store."""
    folder = tmp_path_factory.mktemp("notebook")
    place = folder / "features/demo/dinov3-s/256"
    place.parent.mkdir(parents=True)
    place.symlink_to(tiny_store.path)
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", RUN],
        cwd=folder,
        input=json.dumps(EXAMPLES),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    return [json.loads(said) for said in re.findall("^ended: (.*)$", ended.stdout, re.MULTILINE)]


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_examples_of_the_page(number: int, ends: list[str]) -> None:
    """Each runs as it stands, from names of its own only."""
    assert len(ends) == len(EXAMPLES)
    assert ends[number] == ""
    assert len(EXAMPLES[number].splitlines()) <= 10
