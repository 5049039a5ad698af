"""What is remembered between runs may be lost, damaged or refused at any time."""

import json
import os
import threading
import time
from pathlib import Path

import pytest

from dinocache import memory as module
from dinocache.durable import replace_durably
from dinocache.memory import Memory
from dinocache.places import cache_folder


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DINOCACHE_CACHE", str(tmp_path / "cache"))


def test_what_was_kept_is_recalled() -> None:
    memory = Memory("rows", ["1.0", "/data"])
    assert memory.recall("a") is None
    memory.keep("a", [1, 2])
    assert memory.recall("a") == [1, 2]
    assert not cache_folder().exists()
    memory.save()
    assert Memory("rows", ["1.0", "/data"]).recall("a") == [1, 2]
    assert memory.path.parent == cache_folder() / "rows"


@pytest.mark.parametrize("whose", [["1.1", "/data"], ["1.0", "/other"], ["1.0", "/data", {}]])
def test_others_are_not_mixed_up(whose: object) -> None:
    memory = Memory("rows", ["1.0", "/data"])
    memory.keep("a", 3)
    memory.save()
    assert Memory("rows", whose).recall("a") is None
    assert Memory("digests", ["1.0", "/data"]).recall("a") is None


@pytest.mark.parametrize("content", [b"", b'{"a": 3', b"[1, 2]", b"\xff\xfe", b"[" * 100_000])
def test_a_damaged_file_is_empty_and_replaced(content: bytes) -> None:
    memory = Memory("rows", 1)
    memory.keep("a", 3)
    memory.save()
    memory.path.write_bytes(content)
    again = Memory("rows", 1)
    assert again.recall("a") is None
    again.keep("b", 4)
    again.save()
    assert json.loads(memory.path.read_bytes()) == {"b": 4}


def test_a_folder_that_cannot_be_written_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.write_text("here is no folder")
    monkeypatch.setenv("DINOCACHE_CACHE", str(file))
    memory = Memory("rows", 1)
    memory.keep("a", 3)
    memory.save()
    assert memory.recall("a") == 3
    assert file.read_text() == "here is no folder"


@pytest.mark.parametrize("cause", ["mkdir", "fsync", "replace"])
def test_a_disk_that_refuses_costs_nothing(monkeypatch: pytest.MonkeyPatch, cause: str) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    memory = Memory("rows", 1)
    memory.keep("a", 3)
    with monkeypatch.context() as patch:
        if cause == "fsync":
            patch.setattr(os, "fsync", refuse)
        else:
            patch.setattr(Path, cause, refuse)
        memory.save()
    assert memory.recall("a") == 3
    assert not memory.path.exists()


def test_of_two_that_save_nothing_is_lost_in_turn_and_no_file_is_ever_half() -> None:
    one, other = Memory("rows", 1), Memory("rows", 1)
    one.keep("a", 1)
    other.keep("b", 2)
    one.save()
    other.save()
    assert json.loads(one.path.read_bytes()) == {"a": 1, "b": 2}

    def save(number: int) -> None:
        memory = Memory("rows", 1)
        for index in range(40):
            memory.keep(f"{number}-{index}", [number] * 200)
            memory.save()

    threads = [threading.Thread(target=save, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        known = json.loads(one.path.read_bytes())
        assert all(value == [int(n[0])] * 200 for n, value in known.items() if "-" in n)
    last = Memory("rows", 1)
    assert any(last.recall(f"{number}-39") for number in range(3))
    assert [p.name for p in one.path.parent.iterdir()] == [one.path.name]


def test_it_saves_now_and_then_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    memory = Memory("rows", 1)
    memory.keep("a", 1)
    assert not memory.path.exists()
    now += 9
    memory.keep("b", 2)
    assert not memory.path.exists()
    now += 2
    memory.keep("c", 3)
    assert json.loads(memory.path.read_bytes()) == {"a": 1, "b": 2, "c": 3}


def test_its_size_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_ENTRIES", 5)
    monkeypatch.setattr(module, "MOST_FILES", 3)
    memory = Memory("rows", 0)
    for index in range(7):
        memory.keep(str(index), index)
    memory.save()
    assert list(json.loads(memory.path.read_bytes())) == ["2", "3", "4", "5", "6"]
    memory.keep("2", "anew")  # what is kept again is the newest
    memory.keep("7", 7)
    memory.save()
    assert list(json.loads(memory.path.read_bytes())) == ["4", "5", "6", "2", "7"]
    partial = memory.path.with_name(".x.json.0.partial")
    fresh = memory.path.with_name(".y.json.0.partial")
    replace_durably(partial, b"left over")
    replace_durably(fresh, b"being written")
    os.utime(partial, (0, 0))
    os.utime(memory.path, (100, 100))
    for number in range(1, 6):
        other = Memory("rows", number)
        other.keep("a", 1)
        other.save()
        os.utime(other.path, (100 + number, 100 + number))
    kept = {p.name for p in memory.path.parent.iterdir()}
    assert kept == {fresh.name, *(Memory("rows", n).path.name for n in (3, 4, 5))}


def test_a_file_too_large_to_be_ours_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Memory("rows", 1)
    memory.keep("a", "x" * 100)
    memory.save()
    monkeypatch.setattr(module, "_MOST_BYTES", 50)
    assert Memory("rows", 1).recall("a") is None
