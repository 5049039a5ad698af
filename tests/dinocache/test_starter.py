"""`dinocache init` on folders as people have them: what it writes is read back by `index`."""

import json
from pathlib import Path

import pytest
import yaml

from dinocache.cli import main
from dinocache.dataset import Dataset, find_dataset
from dinocache.errors import RequestError
from dinocache.starter import write_first_manifest

Capture = pytest.CaptureFixture[str]


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def begun(folder: Path, **more: object) -> tuple[Dataset, list[str]]:
    """Write a manifest for a folder and read the items by it."""
    out = folder.parent / "made.yaml"
    started = write_first_manifest(folder, out=out, name=None, force=True)
    return find_dataset(str(out), data=folder, **more), started.unsure  # type: ignore[arg-type]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "It's Ours 2"
    made.mkdir()
    return made


def test_a_folder_a_class(folder: Path) -> None:
    touch(
        folder, *(f"{c}/{n}.{e}" for c in ("cat", "dog") for n, e in enumerate(["png", "JPG"] * 4))
    )
    touch(folder, "cat/._0.png", "cat/notes.txt", "readme.md")
    found, unsure = begun(folder)
    assert found.table["class"].value_counts().to_dict() == {"cat": 8, "dog": 8}
    assert set(found.table["split.cv"]) == set("01234")
    assert found.name == "it-s-ours-2"
    assert "group" in unsure[0]


def test_classes_below_train_and_test(folder: Path) -> None:
    touch(
        folder, *(f"{s}/{c}/{s}{n}.png" for s in ("train", "valid") for c in "ab" for n in range(3))
    )
    found, unsure = begun(folder)
    assert found.table.groupby(["split", "class"]).size().to_dict() == {
        ("train", "a"): 3, ("train", "b"): 3, ("test", "a"): 3, ("test", "b"): 3,
    }  # fmt: skip
    assert "split: there is no folder to test on; valid is taken for that" in unsure
    touch(folder, "test/a/x.png", "test/b/y.png")
    found, unsure = begun(folder)
    assert found.table["split"].value_counts().to_dict() == {"train": 6, "valid": 6, "test": 2}
    assert len(unsure) == 1
    assert found.manifest
    assert found.manifest.tasks["class"].split == "official"


@pytest.mark.parametrize("channels", [(), ("_0000",), ("_0000", "_0001")])
@pytest.mark.parametrize("ending", [".nii.gz", ".nii"])
def test_pairs_of_nifti(folder: Path, channels: tuple[str, ...], ending: str) -> None:
    cases = [f"case_{n:03d}" for n in range(6)]
    touch(folder, *(f"imagesTr/{c}{k}{ending}" for c in cases for k in channels or ("",)))
    touch(folder, *(f"labelsTr/{c}.nii.gz" for c in cases[1:]), "imagesTr/._case_001.nii.gz")
    found, unsure = begun(folder)
    assert found.table["item_id"].tolist() == cases
    assert found.table["mask"].isna().tolist() == [True] + [False] * 5
    columns = [c for c in found.table if c.startswith("path.")]
    assert columns == ([f"path.c{c[1:]}" for c in channels] if len(channels) == 2 else [])
    assert found.table["path"][0] == f"imagesTr/case_000{(*channels, '')[0]}{ending}"
    assert "dataset.json" in unsure[0]
    for labels in ({"0": "background", "1": "liver"}, {"background": 0, "liver": 1}):
        (folder / "dataset.json").write_text(json.dumps({"labels": labels}))
        found, unsure = begun(folder)
        assert found.manifest
        assert found.manifest.tasks["organs"].labels == {1: "liver"}
        assert not unsure


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_a_table_that_names_files(folder: Path, suffix: str) -> None:
    touch(folder, *(f"img/x/s{n}.png" for n in range(8)))
    comma = "\t" if suffix == "tsv" else ","
    lines = ["Image,Patient ID,Set,Sick,Order,Score"]
    lines += [
        f"s{n},p{n // 2},{'train' if n < 6 else 'test'},{'yn'[n % 2]},{n % 3},{n}.5"
        for n in range(9)
    ]
    (folder / f"list.{suffix}").write_text("\n".join(lines).replace(",", comma))
    touch(folder, "other.csv")
    (folder / "other.csv").write_text("a,b\n1,2\n")
    found, unsure = begun(folder, allow_missing=True)
    assert found.missing == ("s8",)
    assert found.table["group"].nunique() == 4
    assert found.table["split"].value_counts().to_dict() == {"train": 6, "test": 2}
    assert found.manifest
    assert {k: t.kind for k, t in found.manifest.tasks.items()} == {
        "sick": "binary", "order": "multiclass", "score": "multiclass",
    }  # fmt: skip
    assert "1 rows of" in unsure[-1]


def test_what_is_unknown_and_what_is_there(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    touch(folder, "a.png", "b.png")
    with pytest.raises(RequestError, match="holds neither imagesTr and labelsTr, nor a table"):
        begun(folder)
    with pytest.raises(RequestError, match="there is no folder"):
        write_first_manifest(tmp_path / "none", out=None, name=None, force=False)
    touch(folder, "x/1.png", "y/1.png")
    out = tmp_path / "own.yaml"
    command = ["init", str(folder), "--name", "own", "--out", str(out)]
    assert main(command) == 0
    assert f"next: dinocache index {out} --data {folder}" in capsys.readouterr().out
    assert yaml.safe_load(out.read_text())["name"] == "own"
    assert main(command) == 2
    assert "is there already; --force writes over it" in capsys.readouterr().err
    assert main([*command, "--force"]) == 0
    assert main(["init", str(folder), "--name", "no/name"]) == 2
