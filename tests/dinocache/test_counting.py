"""Rows by headers: each header is read once, and remembered while its files look the same."""

import os
import time
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pydicom
import pytest
from dicoms import write_series
from making import make_table, tiny_request

from dinocache import counting
from dinocache.counting import Counted, count_items, stamp_items
from dinocache.errors import ItemError
from dinocache.extract import extract
from dinocache.memory import Memory
from dinocache.progress import QuietProgress
from dinocache.readers import ItemFiles, make_reader
from dinocache.readers.image import ImageReader
from dinocache.readers.volume import VolumeReader
from dinocache.source import Source
from dinocache.stamps import Stamp
from dinocache.store import FeatureStore

DEPTHS = {"a": 3, "b": 7, "c": 11}


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DINOCACHE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files whose headers are read, as they are."""
    names: list[str] = []
    plain = VolumeReader.count_rows

    def count(self: VolumeReader, files: ItemFiles) -> int:
        names.append(files.path.name)
        return plain(self, files)

    monkeypatch.setattr(VolumeReader, "count_rows", count)
    return names


def save(path: Path, depth: int) -> None:
    voxels = np.zeros((4, 5, depth), np.int16)
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), path)


def volumes(folder: Path, **columns: list[str | None]) -> Source:
    for name, depth in DEPTHS.items():
        save(folder / f"{name}.nii", depth)
    table = pd.DataFrame({"item_id": [*DEPTHS], "path": [f"{n}.nii" for n in DEPTHS], **columns})
    return Source.of_table(table, folder, make_reader("volume"))


def series(folder: Path) -> list[Path]:
    """Six slices, from one end to the other."""

    write_series(folder, np.zeros((6, 4, 5), np.int16), np.diag([1.0, 2.0, 3.0, 1.0]))
    return sorted(folder.iterdir(), key=lambda p: float(pydicom.dcmread(p).ImagePositionPatient[2]))


def count(source: Source, *, remembered: bool = True, workers: int = 2) -> Counted:
    progress = QuietProgress()
    ids = list(source.paths)
    stamps = stamp_items(source, ids, workers=workers, progress=progress)
    return count_items(source, stamps, workers=workers, progress=progress, remembered=remembered)


def test_headers_are_read_once(tmp_path: Path, opened: list[str]) -> None:
    source = volumes(tmp_path)
    first = count(source)
    assert first.rows == DEPTHS
    assert sorted(opened) == ["a.nii", "b.nii", "c.nii"]
    opened.clear()
    assert count(source) == first
    assert opened == []
    assert count(source, remembered=False) == first
    assert len(opened) == 3


def test_what_looks_otherwise_is_read_again(tmp_path: Path, opened: list[str]) -> None:
    mask = tmp_path / "mask.nii"
    mask.write_bytes(b"mask")
    source = volumes(tmp_path, mask=[None, "mask.nii", None])
    count(source)
    opened.clear()
    save(tmp_path / "a.nii", 13)  # another size
    content = (tmp_path / "c.nii").read_bytes()
    (tmp_path / "c.nii").write_bytes(content)
    os.utime(tmp_path / "c.nii", ns=(1, 2))  # another time
    mask.write_bytes(b"another")
    assert count(source).rows == {"a": 13, "b": 7, "c": 11}
    assert sorted(opened) == ["a.nii", "b.nii", "c.nii"]


@pytest.mark.parametrize("change", ["options", "version", "folder"])
def test_what_is_asked_otherwise_is_read_again(
    tmp_path: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    (tmp_path / "data").mkdir()
    source = volumes(tmp_path / "data")
    count(source)
    opened.clear()
    expected = DEPTHS
    if change == "options":
        expected = dict.fromkeys(DEPTHS, 5)
        reader = make_reader("volume", {"axis": "coronal"})
        source = Source(
            data=source.data, reader=reader, paths=source.paths, masks={}, crop_masks={}
        )
    elif change == "version":
        monkeypatch.setattr(counting, "__version__", "0.0.1")
    else:
        (tmp_path / "data").rename(tmp_path / "moved")
        source = volumes(tmp_path / "moved")
    assert count(source).rows == expected
    assert len(opened) == 3


def test_what_cannot_be_opened_is_tried_again(tmp_path: Path, opened: list[str]) -> None:
    source = volumes(tmp_path)
    good = (tmp_path / "b.nii").read_bytes()
    (tmp_path / "a.nii").unlink()
    (tmp_path / "b.nii").write_bytes(bytes(len(good)))
    os.utime(tmp_path / "b.nii", ns=(5, 5))
    found = count(source)
    assert found.rows == {"a": 1, "b": 1, "c": 11}
    assert found.unreadable["a"] == "the file is missing"
    assert set(found.unreadable) == {"a", "b"}
    (tmp_path / "b.nii").write_bytes(good)
    os.utime(tmp_path / "b.nii", ns=(5, 5))
    save(tmp_path / "a.nii", 3)
    assert count(source) == Counted(rows=DEPTHS)
    assert opened.count("c.nii") == 1


def test_images_are_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("an image was opened to count its one row")

    monkeypatch.setattr(ImageReader, "open", refuse)
    table = pd.read_csv(make_table(tmp_path, 5), dtype={"item_id": str})
    (tmp_path / "png/0001.png").unlink()
    source = Source.of_table(table, tmp_path, make_reader("image"))
    found = count(source)
    assert found.rows == dict.fromkeys(source.paths, 1)
    assert found.unreadable == {"0001": "the file is missing"}
    assert not (tmp_path / "cache").exists()


def test_a_mask_that_is_missing_makes_no_image_unreadable(tmp_path: Path) -> None:
    table = pd.read_csv(make_table(tmp_path, 3), dtype={"item_id": str})
    table["mask"] = ["gone.png", None, None]
    source = Source.of_table(table, tmp_path, make_reader("image"))
    assert count(source) == Counted(rows=dict.fromkeys(source.paths, 1))


def test_a_folder_that_loses_a_slice_is_read_again(tmp_path: Path) -> None:
    slices = series(tmp_path / "scan")
    source = Source(
        data=tmp_path,
        reader=make_reader("volume"),
        paths={"folder": ("scan",)},
        masks={},
        crop_masks={},
    )
    assert count(source).rows == {"folder": 6}
    slices[-1].unlink()
    assert count(source).rows == {"folder": 5}


def test_a_slice_that_comes_beside_a_dicom_file_is_seen(tmp_path: Path) -> None:
    """The file stands for its series; it does not itself change when the series grows."""
    slices = series(tmp_path / "scan")
    aside = slices[-1].rename(tmp_path / "aside")
    source = Source(
        data=tmp_path,
        reader=make_reader("volume"),
        paths={"file": (str(slices[0].relative_to(tmp_path)),)},
        masks={},
        crop_masks={},
    )
    assert count(source).rows == {"file": 5}
    aside.rename(slices[-1])
    assert count(source).rows == {"file": 6}


@pytest.mark.parametrize("rows", [0, -1, "3", None, [3], 3.5])
def test_what_is_remembered_is_held_against_what_it_must_be(tmp_path: Path, rows: object) -> None:
    source = volumes(tmp_path)
    stamps = stamp_items(source, ["a"], workers=1, progress=QuietProgress())
    count_items(source, stamps, workers=1, progress=QuietProgress())
    memory = next((tmp_path / "cache/rows").iterdir())
    spoiled = Memory("rows", 0)
    spoiled.path = memory
    stamp = stamps["a"]
    assert stamp is not None
    spoiled.keep("a.nii", [stamp.bytes, stamp.modified_ns, rows])
    spoiled.save()
    found = count_items(source, stamps, workers=1, progress=QuietProgress())
    assert found.rows == {"a": 3}


def test_an_interruption_keeps_what_was_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = volumes(tmp_path)
    plain = VolumeReader.count_rows
    read: list[str] = []

    def interrupted(self: VolumeReader, files: ItemFiles) -> int:
        if files.path.name == "c.nii":
            raise KeyboardInterrupt
        read.append(files.path.name)
        return plain(self, files)

    monkeypatch.setattr(VolumeReader, "count_rows", interrupted)
    with pytest.raises(KeyboardInterrupt):
        count(source)
    assert sorted(read) == ["a.nii", "b.nii"]
    monkeypatch.setattr(VolumeReader, "count_rows", plain)
    progress = QuietProgress()
    stamps = stamp_items(source, [*DEPTHS, *DEPTHS], workers=2, progress=progress)
    assert count_items(source, stamps, workers=2, progress=progress).rows == DEPTHS
    assert progress.notes == []  # of one header nothing is said


def test_what_is_read_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = volumes(tmp_path)
    progress = QuietProgress()
    stamps = stamp_items(source, ["a"], workers=2, progress=progress)
    count_items(source, stamps, workers=2, progress=progress)
    now = 0.0

    def later() -> float:
        nonlocal now
        now += 30
        return now

    with monkeypatch.context() as patch:
        patch.setattr(time, "monotonic", later)
        stamps = stamp_items(source, [*DEPTHS], workers=2, progress=progress)
        count_items(source, stamps, workers=2, progress=progress)
    assert progress.notes == [
        "reading the headers of 2 items; those of 1 are remembered",
        "1 of 2 headers read",
    ]


def test_a_library_that_is_missing_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object) -> int:
        raise ModuleNotFoundError("No module named 'nibabel'")

    source = volumes(tmp_path)
    monkeypatch.setattr(VolumeReader, "count_rows", missing)
    with pytest.raises(ModuleNotFoundError):
        count(source)


def test_digests_are_remembered_and_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = volumes(tmp_path)
    (tmp_path / "b.nii").unlink()

    def stamps() -> dict[str, Stamp | None]:
        return stamp_items(source, [*DEPTHS], workers=2, progress=QuietProgress(), digest=True)

    first = stamps()
    assert first["b"] is None
    assert first["a"] is not None
    assert first["a"].sha256
    plain = counting.stamp_of
    digested: list[str] = []

    def counted(paths: list[str], *, digest: bool = False) -> Stamp | None:
        if digest:
            digested.extend(Path(p).name for p in paths)
        return plain(paths, digest=digest)

    monkeypatch.setattr(counting, "stamp_of", counted)
    assert stamps() == first
    assert digested == []
    content = bytearray((tmp_path / "a.nii").read_bytes())
    content[-1] ^= 1
    (tmp_path / "a.nii").write_bytes(content)
    os.utime(tmp_path / "a.nii", ns=(5, 5))
    second = stamps()
    assert digested == ["a.nii"]
    assert second["a"] is not None
    assert second["a"].sha256 != first["a"].sha256
    assert second["c"] == first["c"]


def test_an_extraction_plans_with_stamps(tmp_path: Path) -> None:
    table = make_table(tmp_path, 19)
    (tmp_path / "png/0004.png").unlink()
    path = extract(tiny_request(table, tmp_path / "f", hash_sources=True)).path
    (segment,) = FeatureStore(path).segments
    for item_id, stamp in zip(segment.item_ids, segment.stamps, strict=True):
        file = tmp_path / f"png/{item_id}.png"
        if item_id == "0004":
            assert stamp is None
        else:
            assert stamp is not None
            assert stamp[:2] == (file.stat().st_size, file.stat().st_mtime_ns)
            assert stamp.sha256 is not None
    few = FeatureStore(extract(tiny_request(table, tmp_path / "g")).path)
    assert few.segments[0].stamps[0] == segment.stamps[0]._replace(sha256=None)  # type: ignore[union-attr]
    assert few.segments[0].units == segment.units


def test_a_retry_reads_the_header_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: list[str]
) -> None:
    """Where a remembered count is wrong, the item fails, and a retry must not ask memory again."""
    source = volumes(tmp_path)
    table = tmp_path / "volumes.csv"
    pd.DataFrame({"item_id": [*DEPTHS], "path": [f"{n}.nii" for n in DEPTHS]}).to_csv(
        table, index=False
    )
    with monkeypatch.context() as patch:
        plain = VolumeReader.count_rows
        patch.setattr(
            VolumeReader, "count_rows", lambda s, f: plain(s, f) + (f.path.name == "b.nii")
        )
        count(source)
    first = extract(tiny_request(table, tmp_path / "f"))
    assert [f.failure.reason[:35] for f in first.failures] == [
        "it has 7 rows, 8 were planned: the "
    ]
    again = extract(tiny_request(table, tmp_path / "f", retry_failed=True))
    assert again.failures == ()
    assert again.rows == 7


def test_a_reader_that_fails_is_an_item_that_cannot_be_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: VolumeReader, files: ItemFiles) -> int:
        if files.path.name == "a.nii":
            raise ItemError("no good")
        return 2

    monkeypatch.setattr(VolumeReader, "count_rows", fail)
    found = count(volumes(tmp_path))
    assert found == Counted(rows={"a": 1, "b": 2, "c": 2}, unreadable={"a": "no good"})


@pytest.mark.parametrize("slow_s", [1e9, 0.0], ids=["one-thread", "many"])
def test_a_slow_disk_changes_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow_s: float
) -> None:
    monkeypatch.setattr(counting, "_SLOW_S", slow_s)
    monkeypatch.setattr(counting, "_LOOKED_AT_ONCE", 3)
    table = pd.read_csv(make_table(tmp_path, 23), dtype={"item_id": str})
    source = Source.of_table(table, tmp_path, make_reader("image"))
    stamps = stamp_items(source, [*source.paths], workers=2, progress=QuietProgress())
    assert list(stamps) == list(table["item_id"])
    for item_id, stamp in stamps.items():
        status = (tmp_path / f"png/{item_id}.png").stat()
        assert stamp == Stamp(status.st_size, status.st_mtime_ns)
    assert stamp_items(source, [], workers=2, progress=QuietProgress()) == {}
