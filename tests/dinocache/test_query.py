"""Downloads that are broken, renamed or half there; and manifests that ask for too much."""

import os
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from workbook import write_workbook

from dinocache.dataset import find_dataset
from dinocache.errors import RequestError, TableError
from dinocache.manifest import load_manifest
from dinocache.query import files_like

BASE: dict[str, Any] = {
    "name": "ours", "title": "t", "licence": "l", "citation": "c", "home": "h", "obtain": "Ask.",
    "tables": {
        "labels": {
            "file": ["labels_v2.csv", "labels.csv"],
            "columns": {"scan": "Scan ID", "patient": ["Patient", "Patient ID"], "sick": "Sick"},
        }
    },
    "files": {"images": ["img/*/*.png", "img/*.png"]},
    "items": 'SELECT scan AS item_id, patient AS "group", path, sick FROM labels '
    "LEFT JOIN images ON name = scan || '.png' ORDER BY scan",
    "expect": {"items": 4, "groups": 3, "sick": 4, "sick=1": 2},
}  # fmt: skip
LABELS = "Scan ID,Patient,Sick\na,p1,1\nb,p1,0\nc,p2,1\nd,p3,0\n"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "it's data"
    (folder / "img").mkdir(parents=True)
    (folder / "labels.csv").write_text(LABELS)
    for name in "abcd":
        (folder / f"img/{name}.png").touch()
        (folder / f"img/._{name}.png").touch()
    return folder


def written(folder: Path, **fields: object) -> str:
    path = folder / "ours.yaml"
    path.write_text(yaml.safe_dump({**BASE, **fields}))
    return str(path)


def refusal(data: Path, **fields: object) -> str:
    with pytest.raises(TableError) as raised:
        find_dataset(written(data.parent, **fields), data=data)
    said = str(raised.value)
    assert "\n" not in said
    return said


def test_a_whole_download(data: Path) -> None:
    found = find_dataset(written(data.parent), data=data)
    assert found.table["path"].tolist() == [f"img/{n}.png" for n in "abcd"]
    assert (found.missing, found.notes) == ((), ())
    assert found.table["sick"].tolist() == ["1", "0", "1", "0"]  # identifiers and labels stay text


def test_layouts_and_spellings_in_order(data: Path) -> None:
    (data / "img/deep").mkdir()
    for name in "abcd":
        (data / f"img/{name}.png").rename(data / f"img/deep/{name}.png")
    newer = LABELS.replace("Patient,", "patient_id,").replace("Scan ID", "\ufeffScan ID")
    (data / "labels_v2.csv").write_text(newer.replace("p2", "q9"), "utf-8")
    found = find_dataset(written(data.parent), data=data)
    assert found.table["path"].tolist() == [f"img/deep/{n}.png" for n in "abcd"]
    assert found.table["group"].tolist() == ["p1", "p1", "q9", "p3"]


def test_a_file_that_is_missing(data: Path) -> None:
    (data / "img/c.png").unlink()
    assert refusal(data) == (
        f"ours: files of 1 of 4 items are missing under {data}, as of c; --allow-missing goes on "
        "without them"
    )
    found = find_dataset(written(data.parent), data=data, allow_missing=True)
    assert (found.missing, len(found.table)) == (("c",), 3)
    assert "expected 4 items, found 3" in found.notes
    for name in "abd":
        (data / f"img/{name}.png").unlink()
    (data / "img/x.png").touch()
    assert "of the 4 items that its tables list no file is there" in refusal(data)
    (data / "img/x.png").unlink()
    assert refusal(data).startswith(f"ours: there is no img/*/*.png nor img/*.png under {data}; is")
    (data / "labels.csv").unlink()
    assert refusal(data).startswith(f"ours: there is no labels_v2.csv nor labels.csv under {data};")


def test_a_table_that_is_cut_off(data: Path) -> None:
    (data / "labels.csv").write_text(LABELS[:-7])
    assert "expected 4 items, found 3" in refusal(data)
    (data / "labels.csv").write_text(LABELS[:-4])
    assert refusal(data).startswith("ours: labels.csv cannot be read as a table (")
    (data / "labels.csv").write_bytes(b"")
    assert refusal(data).startswith("ours: labels.csv ")
    (data / "labels.csv").write_text("Scan ID,Patient,Sick\n")
    assert "has no rows" in refusal(data)


def test_what_a_table_says_wrong(data: Path) -> None:
    (data / "labels.csv").write_text(LABELS + "a,p1,1\n")
    assert "item_id 'a' stands in more than one row (1 such rows)" in refusal(data)
    (data / "labels.csv").write_text(LABELS.replace("Sick", "Diseased"))
    assert refusal(data) == (
        "ours: labels.csv has no column 'Sick'; it has Scan ID, Patient, Diseased. Was it renamed "
        "in a newer release?"
    )
    (data / "labels.csv").write_text(LABELS.replace("d,p3,0", "d,p3,1"))
    assert "expected 2 sick=1, found 3" in refusal(data)
    (data / "labels.csv").write_text(LABELS + "e,p4,1\n")  # a label for an absent image
    assert "files of 1 of 5 items are missing" in refusal(data)


def test_a_group_in_two_splits(data: Path) -> None:
    (data / "labels.csv").write_text(LABELS)
    query = BASE["items"].replace(
        "SELECT", "SELECT CASE WHEN scan < 'b' THEN 'train' ELSE 'test' END AS split,"
    )
    said = refusal(data, items=query)
    assert "1 of 3 groups are on two sides of 'split', as 'p1' in test and train" in said


def test_a_table_without_a_header(data: Path) -> None:
    (data / "list.txt").write_text("a\nb\nc\n")
    tables = {"listed": {"file": "list.txt", "columns": ["scan"]}}
    query = "SELECT scan AS item_id, path FROM listed JOIN images ON name = scan || '.png'"
    found = find_dataset(
        written(data.parent, tables=tables, items=query, expect={"items": 3}), data=data
    )
    assert found.table["item_id"].tolist() == ["a", "b", "c"]
    tables["listed"]["columns"] = ["scan", "side"]
    said = refusal(data, tables=tables, items=query)
    assert said == "ours: list.txt has 1 columns, expected 2: scan, side"


def test_a_workbook(data: Path) -> None:
    rows = [line.split(",") for line in LABELS.splitlines()]
    write_workbook(data / "labels.xlsx", rows)
    tables = {"labels": {**BASE["tables"]["labels"], "file": "labels.xlsx"}}
    found = find_dataset(written(data.parent, tables=tables), data=data)
    assert found.table["group"].tolist() == ["p1", "p1", "p2", "p3"]
    (data / "labels.xlsx").write_bytes((data / "labels.xlsx").read_bytes()[:300])
    assert "ours: labels.xlsx cannot be read as a workbook" in refusal(data, tables=tables)


def test_texts(data: Path) -> None:
    (data / "a.cfg").write_text("ED: 1\n")
    (data / "b.cfg").write_text("ED: 7\n")
    query = "SELECT name AS item_id, path, regexp_extract(content, 'ED: (\\d+)', 1) AS ed FROM info"
    found = find_dataset(
        written(data.parent, tables={}, files={}, texts={"info": "*.cfg"}, items=query, expect={}),
        data=data,
    )
    assert found.table["ed"].tolist() == ["1", "7"]
    (data / "b.cfg").write_bytes(b"x" * (2 << 20))
    said = refusal(data, tables={}, files={}, texts={"info": "*.cfg"}, items=query)
    assert said == "ours: b.cfg is larger than the text it should be"


def test_links_that_lead_out(data: Path) -> None:
    outside = data.parent / "secret.csv"
    outside.write_text(LABELS)
    (data / "labels.csv").unlink()
    (data / "labels.csv").symlink_to(outside)
    assert "cannot be read as a table" in refusal(data)
    (data / "labels.xlsx").symlink_to(outside)
    tables = {"labels": {**BASE["tables"]["labels"], "file": "labels.xlsx"}}
    assert "is a link that leads out of the data folder" in refusal(data, tables=tables)
    (data / "x.cfg").symlink_to(outside)
    assert "is a link that leads out" in refusal(data, tables={}, texts={"t": "x.cfg"})


@pytest.mark.parametrize("pattern", ["../*.csv", "/etc/*", "a/../../b", "C:/x", "a\\b", ""])
def test_patterns_that_lead_out(tmp_path: Path, pattern: str) -> None:
    for fields in (
        {"files": {"images": pattern}},
        {"texts": {"t": pattern}},
        {"tables": {"labels": {"file": pattern, "columns": ["a"]}}},
    ):
        with pytest.raises(TableError, match="must lie inside the data folder"):
            load_manifest(Path(written(tmp_path, **fields)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"files": {"labels": "*"}}, "must have different names"),
        ({"splits": {"official": {"folds": 3}}}, "is the column 'split'"),
        ({"splits": {"cv": {"folds": 1}}}, "field 'splits.cv"),
        ({"files": {"Not a name": "*"}}, "field 'files"),
        ({"tasks": {"t": {"title": "t", "kind": "binary", "head": "linear", "metrics": "auc"}}},
         "needs targets"),
        ({"tasks": {"t": {"title": "t", "kind": "binary", "head": "magic", "metrics": "auc"}}},
         "field 'tasks.t.head'"),
        ({"extract": {"reader": "moon"}}, "field 'extract.reader'"),
    ],
)  # fmt: skip
def test_manifests_that_say_what_none_may(
    tmp_path: Path, fields: dict[str, object], message: str
) -> None:
    with pytest.raises(TableError, match=message):
        load_manifest(Path(written(tmp_path, **fields)))


def test_files_like(tmp_path: Path) -> None:
    for name in (
        "a/1.png",
        "a/b/2.png",
        "a/b/c/3.png",
        ".git/4.png",
        "a/._1.png",
        "5.PNG",
        "a/x[1].png",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "a/folder.png").mkdir()
    (tmp_path / "a/b/loop").symlink_to(tmp_path)
    assert files_like(tmp_path, "*.PNG") == ["5.PNG"]
    assert files_like(tmp_path, "a/*.png") == ["a/1.png", "a/x[1].png"]
    assert files_like(tmp_path, "**/?.png") == ["a/1.png", "a/b/2.png", "a/b/c/3.png"]
    assert files_like(tmp_path, "a/**/*.png")[0] == "a/1.png"
    assert files_like(tmp_path, "a/b/**") == ["a/b/2.png", "a/b/c/3.png"]
    assert files_like(tmp_path, "a/1.png") == ["a/1.png"]
    assert files_like(tmp_path, "none/*/x") == []


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may list every folder")
def test_a_folder_that_may_not_be_listed(data: Path) -> None:
    (data / "img").chmod(0)
    try:
        assert "cannot be listed" in refusal(data)
    finally:
        (data / "img").chmod(0o755)


def test_a_dataset_that_is_none() -> None:
    with pytest.raises(RequestError, match="`dinocache datasets` lists them"):
        find_dataset("moon")


def test_lists_have_a_value_a_row(data: Path) -> None:
    query = BASE["items"].replace("path,", "path, [1, 2, 3] AS phase,")
    found = find_dataset(written(data.parent, items=query), data=data)
    assert [list(v) for v in found.table["phase"]] == [[1, 2, 3]] * 4
    assert isinstance(found.table, pd.DataFrame)
