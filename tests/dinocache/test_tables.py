"""Item tables, manifests and documents: what comes in from people is checked at the door."""

from pathlib import Path

import pandas as pd
import pytest

from dinocache import documents
from dinocache.dataset import find_dataset
from dinocache.errors import RequestError, StoreDamagedError, TableError
from dinocache.items import from_parquet, parquet_name, read_table, same_labels, to_parquet


def write(folder: Path, text: str, name: str = "t.csv") -> Path:
    path = folder / name
    path.write_text(text, "utf-8")
    return path


def test_identifiers_stay_text_and_gaps_are_filled(tmp_path: Path) -> None:
    table = read_table(
        write(tmp_path, "\ufeffpath,group,x\na/../b.png,007,1\nc.png,008,2\n"), tmp_path
    )
    assert list(table.columns) == ["item_id", "path", "group", "x"]
    assert table["path"].tolist() == ["b.png", "c.png"]
    assert table["item_id"].tolist() == ["a/../b.png", "c.png"]
    assert table["group"].tolist() == ["007", "008"]
    assert table["x"].tolist() == [1, 2]


def test_three_forms_say_the_same(tmp_path: Path) -> None:
    frame = pd.DataFrame({"path": ["a.png", "b.png"], "item_id": ["01", "02"], "y": [0, 1]})
    frame.to_csv(tmp_path / "t.csv", index=False)
    frame.to_csv(tmp_path / "t.tsv", index=False, sep="\t")
    frame.to_parquet(tmp_path / "t.parquet")
    csv, tsv, parquet = (
        read_table(tmp_path / f"t.{s}", tmp_path) for s in ("csv", "tsv", "parquet")
    )
    assert same_labels(csv, tsv)
    assert same_labels(csv, parquet)
    assert same_labels(csv, csv.iloc[::-1][["y", "path", "group", "item_id"]])
    assert not same_labels(csv, csv.assign(y=[1, 1]))
    assert not same_labels(csv, csv.assign(z=1))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,y\na.png,1\n", r"t.csv has no column 'path' \(it has: file, y\)"),
        ("path,y\n", "t.csv has no rows"),
        ("", "t.csv cannot be read as a table"),
        ('path\n"a.png\n', "t.csv cannot be read as a table"),
        ("path,item_id\na.png,1\nb.png,1\n", "item_id '1' stands in more than one row"),
        ("path,item_id\na.png,1\nb.png,\n", "row 2 has an empty 'item_id'; fill it in"),
        ("path\n../a.png\n", r"path '../a.png' lies outside the data folder; set --data"),
        ("path\n/etc/passwd\n", "lies outside the data folder"),
        ("path,mask\na.png,../m.png\n", "mask '../m.png' lies outside the data folder"),
    ],
)
def test_tables_that_are_none(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(TableError, match=message) as caught:
        read_table(write(tmp_path, text), tmp_path)
    assert "\n" not in str(caught.value).strip()


def test_absolute_paths_inside_become_relative(tmp_path: Path) -> None:
    table = read_table(write(tmp_path, f"path\n{tmp_path}/png/a.png\n"), tmp_path)
    assert table["path"].tolist() == ["png/a.png"]


def test_files_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"a table ends in one of .csv, .tsv, .parquet"):
        read_table(write(tmp_path, "path\n", "t.xlsx"), tmp_path)
    with pytest.raises(RequestError, match="there is no table"):
        read_table(tmp_path / "none.csv", tmp_path)
    with pytest.raises(
        RequestError, match=r"'moon' is neither a shipped dataset \(`dinocache datasets`"
    ):
        find_dataset("moon")


def test_item_tables_hold_their_own_digest() -> None:
    content = to_parquet(pd.DataFrame({"item_id": ["a"]}))
    name = parquet_name(3, content)
    assert from_parquet(content, name)["item_id"].tolist() == ["a"]
    with pytest.raises(StoreDamagedError, match="is damaged: its sha256 begins"):
        from_parquet(content[:-1] + b"?", name)


def test_the_demonstration_set() -> None:
    demo = find_dataset("demo")
    assert (len(demo.table), demo.table["group"].nunique()) == (48, 35)
    assert demo.table["projection"].value_counts().to_dict() == {"ap": 34, "pa": 14}
    for path in demo.table["path"]:
        assert (demo.data / path).is_file()


MANIFEST = """
name: x
title: t
licence: l
citation: c
home: h
obtain: Ask for it.
expect: {{items: {items}}}
items: |
  {query}
"""


def manifest(folder: Path, query: str, items: int = 1) -> Path:
    return write(folder, MANIFEST.format(query=query, items=items), "x.yaml")


def test_a_manifest_of_ones_own(tmp_path: Path) -> None:
    data = tmp_path / "it's data"
    data.mkdir()
    write(data, "name\na\n", "list.csv")
    query = "SELECT name AS item_id, name || '.png' AS path FROM read_csv('{data}/list.csv')"
    dataset = find_dataset(str(manifest(tmp_path, query)), data=data)
    assert dataset.table["path"].tolist() == ["a.png"]
    with pytest.raises(TableError, match=r"expected 2 items, found 1 under .* Ask for it\."):
        find_dataset(str(manifest(tmp_path, query, items=2)), data=data)
    with pytest.raises(RequestError, match="there is no data folder data/x; name it with --data"):
        find_dataset(str(manifest(tmp_path, query)))


@pytest.mark.parametrize(
    "query",
    [
        "SELECT content AS path FROM read_text('/etc/hostname')",
        "SELECT content AS path FROM read_text('{data}/../secret.csv')",
        "SELECT content AS path FROM read_text('{data}/link.csv')",
        "COPY (SELECT 1) TO '{data}/out.csv'",
        "SELECT 'a' AS path; SELECT 'b' AS path",
        "ATTACH '{data}/x.db'",
        "INSTALL httpfs",
        "SET enable_external_access=true",
        "SELECT",
    ],
)
def test_a_manifest_cannot_leave_its_folder(tmp_path: Path, query: str) -> None:
    data = tmp_path / "data"
    data.mkdir()
    write(tmp_path, "secret", "secret.csv")
    (data / "link.csv").symlink_to(tmp_path / "secret.csv")
    with pytest.raises(TableError, match="manifest x: ") as caught:
        find_dataset(str(manifest(tmp_path, query)), data=data)
    assert "secret\n" not in str(caught.value)
    assert not (data / "out.csv").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [", "is not YAML"),
        ("name: !!python/object:os.system {}", "is not YAML"),
        (MANIFEST.format(query="q", items=1) + "glow: 1\n", "field 'glow'"),
        ("name: x\n", "field 'title'"),
    ],
)
def test_manifests_that_are_none(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(TableError, match=message):
        find_dataset(str(write(tmp_path, text, "x.yaml")), data=tmp_path)


def test_every_flipped_bit_and_every_cut_of_a_document_shows() -> None:
    content = documents.encode({"a": [1, 2.5, "é"], "b": None})
    assert documents.decode(content, "d") == {"a": [1, 2.5, "é"], "b": None}
    for bit in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(StoreDamagedError, match="d is damaged"):
            documents.decode(bytes(flipped), "d")
    for end in range(len(content)):
        with pytest.raises(StoreDamagedError):
            documents.decode(content[:end], "d")
    with pytest.raises(ValueError, match="Out of range"):
        documents.encode({"a": float("nan")})
