"""`dinocache datasets` and `dinocache index`, as a person and a program see them."""

import json
from pathlib import Path

import pytest
from making import make_table
from miniature import miniature, miniatures

from dinocache.cli import main
from dinocache.manifest import shipped_manifests

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "nih"
    folder.mkdir()
    miniature("nih14").make(folder)
    return folder


def test_all_are_listed(tmp_path: Path, capsys: Capture) -> None:
    store = ["--store", str(tmp_path)]
    assert main(["datasets", *store]) == 0
    printed = capsys.readouterr().out
    assert main(["datasets", "--json", *store]) == 0
    listed = {facts["name"]: facts for facts in json.loads(capsys.readouterr().out)}
    assert list(listed) == list(shipped_manifests())
    for name in miniatures():
        assert name in printed
        assert listed[name]["tasks"]
        assert listed[name]["stores"] == []


@pytest.mark.parametrize("name", shipped_manifests())
def test_each_is_explained(name: str, tmp_path: Path, capsys: Capture) -> None:
    assert main(["datasets", name, "--store", str(tmp_path)]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for said in ("licence:", "cite:", "to obtain:", f"dinocache extract {name}"):
        assert said in text
    if name != "demo":
        assert "The data folder" in text
        assert "Tasks:" in text


def test_a_store_of_it_is_named(tmp_path: Path, capsys: Capture) -> None:
    store = tmp_path / "nih14/tiny/32"
    store.mkdir(parents=True)
    (store / "store.json").touch()
    assert main(["datasets", "nih14", "--store", str(tmp_path)]) == 0
    assert "a store is here: nih14/tiny/32" in capsys.readouterr().out


def test_a_name_that_is_nearly_right(capsys: Capture) -> None:
    assert main(["datasets", "camelyon-16"]) == 2
    assert "did you mean camelyon16" in capsys.readouterr().err


def test_a_half_finished_download(data: Path, capsys: Capture) -> None:
    assert main(["index", "nih14", "--data", str(data)]) == 1
    printed = capsys.readouterr()
    assert printed.err == ""
    for line in (
        f"nih14: 31 items of 16 groups under {data}",
        "missing: 1 items have no file\n  00000007_001.png",
        "differs: expected 112120 items, found 31",
        "split: train 23, test 8; sha256 ",
        "no group is on two sides",
        "task findings, Hernia = 0: train 17, test 7; 1: train 6, test 1",
        "not whole\ndinocache extract --allow-missing takes what is there",
    ):
        assert line in printed.out
    assert main(["index", "nih14", "--data", str(data), "--allow-missing", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["missing"] == ["00000007_001.png"]
    assert found["splits"]["split.with_val"]["items"] == {"train": 19, "val": 4, "test": 8}
    assert found["targets"]["findings"]["Edema"]["1"] == {"test": 2, "train": 5}
    assert (found["whole"], found["unreadable"]) == (False, {})


def test_files_that_belong_to_no_item(data: Path, capsys: Capture) -> None:
    (data / "images_001/images/copy of 1.png").touch()
    assert main(["index", "nih14", "--data", str(data)]) == 1
    assert (
        "not used: 1 files of 'images' belong to no item\n  images_001/images/copy of 1.png"
        in capsys.readouterr().out
    )


def test_headers_are_opened_when_asked(data: Path, capsys: Capture) -> None:
    (data / "images_001/images/00000001_000.png").write_bytes(b"not an image")
    arguments = ["index", "nih14", "--data", str(data), "--allow-missing"]
    assert main(arguments) == 0
    assert "unreadable" not in capsys.readouterr().out
    assert main([*arguments[:-1], "--open"]) == 1
    assert "unreadable: 1 items cannot be opened\n  00000001_000.png: " in capsys.readouterr().out


def test_a_table_of_ones_own(tmp_path: Path, capsys: Capture) -> None:
    table = make_table(tmp_path, 6)
    assert main(["index", str(table), "--open"]) == 0
    assert "images: 6 items of 3 groups" in capsys.readouterr().out
    text = table.read_text().splitlines()
    sides = ["split", *["train"] * 5, "test"]
    table.write_text("\n".join(f"{a},{b}" for a, b in zip(text, sides, strict=True)))
    assert main(["index", str(table)]) == 2
    assert "1 of 3 groups are on two sides of 'split', as 'p2'" in capsys.readouterr().err


def test_what_is_missing_stops_an_extraction(data: Path, tmp_path: Path, capsys: Capture) -> None:
    command = ["extract", "nih14", "--data", str(data), "--store", str(tmp_path / "f")]
    command += ["--model", "tiny", "--resolution", "32", "--weights", "random", "--no-isolate"]
    assert main(command) == 2
    assert "--allow-missing goes on without them" in capsys.readouterr().err
    assert main([*command, "--allow-missing"]) == 0
    assert "as of 00000007_001.png; they are left out" in capsys.readouterr().err
    # The rest of the download comes later.
    good = data / "images_005/images"
    source = next((data / "images_001/images").glob("0*.png"))
    (good / "00000007_001.png").write_bytes(source.read_bytes())
    assert main([*command, "--allow-missing"]) == 1
    assert "--append" in capsys.readouterr().err
    assert main([*command, "--allow-missing", "--append"]) == 0
    assert "32 rows" not in capsys.readouterr().out  # only the new one is done
