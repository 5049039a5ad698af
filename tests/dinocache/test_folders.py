"""Folders of this machine while others write to them."""

from pathlib import Path

import pytest

from dinocache.folders import LocalFolder


@pytest.fixture
def busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalFolder:
    """A folder that another writer renames a file of, right after its names were read."""
    for name in ("b.json", ".a.partial", "inner/c.json"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"12345")
    real = Path.lstat

    def lstat(path: Path) -> object:
        if path.name == ".a.partial" and path.exists():
            path.rename(path.with_name("a.json"))
        return real(path)

    monkeypatch.setattr(Path, "lstat", lstat)
    return LocalFolder(tmp_path)


def test_a_file_that_is_renamed_meanwhile_is_not_listed(busy: LocalFolder) -> None:
    listing = busy.list()
    assert (sorted(listing.files), listing.folders) == (["b.json"], ("inner",))
    assert listing.files["b.json"].bytes == 5
    assert sorted(busy.list().files) == ["a.json", "b.json"]


def test_a_file_that_is_renamed_meanwhile_is_not_walked(busy: LocalFolder) -> None:
    assert [entry.name for entry in busy.walk()] == ["b.json", "inner/c.json"]


def test_what_is_not_there_is_empty_and_has_no_size(tmp_path: Path) -> None:
    folder = LocalFolder(tmp_path)
    (tmp_path / "file").write_bytes(b"123")
    for name in ("nothing", "file"):
        assert not folder.list(name).files
        assert list(folder.walk(name)) == []
    assert [folder.size(n) for n in ("file", "nothing", "file/inner", "")] == [3, None, None, None]
