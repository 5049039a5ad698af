"""Files that are whole or absent."""

import errno
import os
import threading
from pathlib import Path

import pytest

from dinocache.durable import create_exclusively, make_folder, replace_durably
from dinocache.errors import StoreWriteError


def test_the_first_wins_and_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    contents = [bytes([65 + i]) * 40_000 for i in range(9)]
    won: list[bytes] = []
    start = threading.Barrier(len(contents))

    def race(content: bytes) -> None:
        start.wait()
        if create_exclusively(path, content):
            won.append(content)

    racers = [threading.Thread(target=race, args=(c,)) for c in contents]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    assert won == [path.read_bytes()]
    assert os.listdir(tmp_path) == ["plan.json"]


def test_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: object, target: object) -> None:
        raise OSError(errno.ENOTSUP, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    assert create_exclusively(tmp_path / "a", b"one")
    assert not create_exclusively(tmp_path / "a", b"two")
    assert (tmp_path / "a").read_bytes() == b"one"
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (errno.ENOSPC, "cannot write a.json: the disk is full; free some space, then run the same"),
        (errno.EDQUOT, "your disk quota is used up"),
        (errno.EIO, "the disk reported an input/output error"),
        (errno.EACCES, "permission denied; choose another --store"),
    ],
)
def test_a_refused_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, message: str
) -> None:
    path = tmp_path / "a.json"
    replace_durably(path, b"old")

    def fail(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StoreWriteError, match=message):
        replace_durably(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.json"]


def test_folders(tmp_path: Path) -> None:
    make_folder(tmp_path / "a/b/c")
    make_folder(tmp_path / "a/b/c")
    assert (tmp_path / "a/b/c").is_dir()
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreWriteError, match="cannot write"):
        make_folder(tmp_path / "file" / "d")
