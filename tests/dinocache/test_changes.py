"""Files that changed under a store: by size, by time, by content where that was kept."""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from dicoms import write_series
from making import make_table, tiny_request

from dinocache import changes as module
from dinocache.changes import Changes, changed_sources
from dinocache.extract import extract
from dinocache.progress import QuietProgress
from dinocache.readers import make_reader
from dinocache.source import Source
from dinocache.store import FeatureStore

S = 1_000_000_000


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DINOCACHE_CACHE", str(tmp_path / "cache"))


def changes(store: Path, data: Path, ids: list[str] | None = None) -> Changes:
    opened = FeatureStore(store)
    source = Source.of_table(opened.items, data, make_reader(opened.header.recipe.reader.name))
    return changed_sources(
        opened,
        source,
        list(opened.items["item_id"]) if ids is None else ids,
        workers=3,
        progress=QuietProgress(),
    )


def touched(file: Path, by_ns: int) -> None:
    modified_ns = file.stat().st_mtime_ns + by_ns
    os.utime(file, ns=(modified_ns, modified_ns))


def flipped(file: Path) -> None:
    """Change one byte, and the time by two minutes."""
    modified_ns = file.stat().st_mtime_ns
    content = bytearray(file.read_bytes())
    content[-1] ^= 255
    file.write_bytes(content)
    os.utime(file, ns=(modified_ns + 120 * S, modified_ns + 120 * S))


TIMES = r"modified (\d{4}-\d\d-\d\d \d\d:\d\d), (\d{4}-\d\d-\d\d \d\d:\d\d) when it was extracted"


@pytest.mark.parametrize("hashed", [False, True])
def test_what_changed_is_told_from_what_was_touched(tmp_path: Path, hashed: bool) -> None:
    table = make_table(tmp_path, 7)
    path = extract(tiny_request(table, tmp_path / "f", hash_sources=hashed)).path
    assert changes(path, tmp_path) == Changes(changed={}, missing=[])
    png = tmp_path / "png"
    touched(png / "0001.png", 180 * S)
    flipped(png / "0002.png")
    size = (png / "0003.png").stat().st_size
    with (png / "0003.png").open("ab") as file:
        file.write(b"12345")
    (png / "0004.png").unlink()
    found = changes(path, tmp_path)
    assert found.missing == ["0004"]
    assert found.changed["0003"] == f"{size + 5} bytes, {size} when it was extracted"
    assert re.fullmatch(TIMES, found.changed["0002"])
    assert set(found.changed) == {"0002", "0003"} | (set() if hashed else {"0001"})
    assert changes(path, tmp_path, ["0006", "0003", "0000", "no such item"]) == Changes(
        changed={"0003": found.changed["0003"]}, missing=[]
    )


def test_content_is_read_only_where_it_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = extract(tiny_request(make_table(tmp_path, 5), tmp_path / "f", hash_sources=True)).path
    read: list[str] = []
    plain: Callable[..., object] = module.stamp_items

    def seen(source: Source, ids: list[str], **options: bool) -> object:
        read.extend(ids if options.get("digest") else [])
        return plain(source, ids, **options)

    monkeypatch.setattr(module, "stamp_items", seen)
    changes(path, tmp_path)
    assert read == []
    touched(tmp_path / "png/0001.png", 180 * S)
    with (tmp_path / "png/0003.png").open("ab") as file:
        file.write(b"another size says enough")
    assert list(changes(path, tmp_path).changed) == ["0003"]
    assert read == ["0001"]


@pytest.mark.parametrize(
    ("then", "now", "same"),
    [
        pytest.param(5 * S + 7, 5 * S + 7, True, id="equal"),
        pytest.param(5 * S + 7, 5 * S, True, id="a-disk-that-keeps-seconds"),
        pytest.param(5 * S, 5 * S + 7, True, id="a-store-of-such-a-disk"),
        pytest.param(5 * S + 7, 5 * S + 8, False, id="a-nanosecond"),
        pytest.param(5 * S + 7, 6 * S, False, id="another-second"),
        pytest.param(5 * S, 6 * S, False, id="whole-seconds"),
    ],
)
def test_times(tmp_path: Path, then: int, now: int, same: bool) -> None:
    table = make_table(tmp_path, 2)
    file = tmp_path / "png/0001.png"
    os.utime(file, ns=(then, then))
    path = extract(tiny_request(table, tmp_path / "f")).path
    os.utime(file, ns=(now, now))
    assert list(changes(path, tmp_path).changed) == ([] if same else ["0001"])


def test_times_are_told_as_exactly_as_they_differ(tmp_path: Path) -> None:
    table = make_table(tmp_path, 2)
    file = tmp_path / "png/0001.png"
    day = 86_400 * 20_000 * S
    os.utime(file, ns=(day + 3 * S + 1000, day + 3 * S + 1000))
    path = extract(tiny_request(table, tmp_path / "f")).path
    for by, ending in ((60 * S, r"\d\d:01, .*\d\d:00 when"), (2 * S, ":05, .*:03 when")):
        os.utime(file, ns=(day + 3 * S + 1000 + by, day + 3 * S + 1000 + by))
        (reason,) = changes(path, tmp_path).changed.values()
        assert re.search(ending, reason)
    os.utime(file, ns=(day + 3 * S + 4000, day + 3 * S + 4000))
    (reason,) = changes(path, tmp_path).changed.values()
    assert re.search(r"03\.000004, .*03\.000001 when", reason)


def test_a_folder_that_loses_one_slice_has_changed(tmp_path: Path) -> None:
    voxels = np.arange(6 * 21 * 26).reshape(6, 21, 26).astype(np.int16)
    write_series(tmp_path / "scan", voxels, np.eye(4))
    table = tmp_path / "scans.csv"
    pd.DataFrame({"path": ["scan"]}).to_csv(table, index=False)
    path = extract(tiny_request(table, tmp_path / "f")).path
    assert not changes(path, tmp_path).changed
    shutil.copytree(tmp_path / "scan", tmp_path / "copy/scan")
    assert not changes(path, tmp_path / "copy").changed
    sizes = {p: p.stat().st_size for p in (tmp_path / "scan").iterdir()}
    lost = next(iter(sizes))
    lost.unlink()
    total = sum(sizes.values())
    assert changes(path, tmp_path).changed == {
        "scan": f"{total - sizes[lost]} bytes, {total} when it was extracted"
    }


def test_the_last_segment_counts(tmp_path: Path) -> None:
    """An item that was missing, came, and was extracted anew is as it was then."""
    table = make_table(tmp_path, 4)
    file = tmp_path / "png/0002.png"
    content = file.read_bytes()
    file.unlink()
    path = extract(tiny_request(table, tmp_path / "f")).path
    assert changes(path, tmp_path) == Changes(changed={}, missing=["0002"])
    file.write_bytes(content)
    there = "missing when it was extracted, there now"
    assert changes(path, tmp_path) == Changes(changed={"0002": there}, missing=[])
    extract(tiny_request(table, tmp_path / "f", retry_failed=True))
    assert len(FeatureStore(path).segments) == 2
    assert changes(path, tmp_path) == Changes(changed={}, missing=[])
