"""What files look like: sizes, times, and content that survives a move."""

import hashlib
import os
import shutil
from pathlib import Path

import pytest

from dinocache.stamps import Stamp, stamp_of


def write(path: Path, content: bytes, modified_ns: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.utime(path, ns=(modified_ns, modified_ns))
    return path


def test_a_file(tmp_path: Path) -> None:
    file = write(tmp_path / "a.png", b"seventeen bytes..", 1_700_000_000_123_456_789)
    assert stamp_of([file]) == Stamp(17, 1_700_000_000_123_456_789)
    stamp = stamp_of([str(file)], digest=True)
    assert stamp is not None
    assert stamp.sha256 == hashlib.sha256(b"seventeen bytes..").hexdigest()


def test_all_files_of_an_item_count(tmp_path: Path) -> None:
    """A folder with folders in it, and a mask: bytes are added, the newest time is taken."""
    write(tmp_path / "scan/1.dcm", b"1" * 3, 5_000)
    write(tmp_path / "scan/more/2.dcm", b"2" * 11, 9_000)
    write(tmp_path / "scan/.DS_Store", b"3" * 101, 99_000)
    write(tmp_path / "scan/.hidden/4.dcm", b"4" * 1009, 99_000)
    (tmp_path / "scan/5.dcm").symlink_to("nowhere")
    mask = write(tmp_path / "mask.nii", b"6" * 50, 7_000)
    assert stamp_of([tmp_path / "scan"]) == Stamp(14, 9_000)
    assert stamp_of([tmp_path / "scan", mask]) == Stamp(64, 9_000)


@pytest.mark.parametrize("digest", [False, True])
def test_what_is_missing_has_none(tmp_path: Path, digest: bool) -> None:
    file = write(tmp_path / "a.png", b"abc", 1)
    assert stamp_of([file, tmp_path / "gone.png"], digest=digest) is None
    assert stamp_of([tmp_path / "a.png/b"], digest=digest) is None
    assert stamp_of([], digest=digest) is None


def test_an_empty_folder_is_there(tmp_path: Path) -> None:
    folder = tmp_path / "scan"
    folder.mkdir()
    os.utime(folder, ns=(3_000, 3_000))
    assert stamp_of([folder]) == Stamp(0, 3_000)


def digest_of(*paths: Path) -> str | None:
    stamp = stamp_of(paths, digest=True)
    assert stamp is not None
    return stamp.sha256


def test_a_digest_survives_a_move_and_nothing_else(tmp_path: Path) -> None:
    scan = tmp_path / "scan"
    write(scan / "b.dcm", b"second", 1)
    write(scan / "a/c.dcm", b"first", 2)
    before = digest_of(scan)
    # As `sha256sum` would print it of the files in order of their names.
    lines = (
        f"{hashlib.sha256(b'first').hexdigest()}  a/c.dcm\n"
        f"{hashlib.sha256(b'second').hexdigest()}  b.dcm\n"
    )
    assert before == hashlib.sha256(lines.encode()).hexdigest()
    moved = tmp_path / "elsewhere/named otherwise"
    shutil.copytree(scan, moved)
    assert digest_of(moved) == before
    (moved / "b.dcm").rename(moved / "d.dcm")
    assert digest_of(moved) != before
    (moved / "d.dcm").rename(moved / "b.dcm")
    (moved / "a/c.dcm").write_bytes(b"other")
    assert digest_of(moved) != before
    (moved / "a/c.dcm").unlink()
    assert digest_of(moved) not in (before, digest_of(scan / "b.dcm"))


def test_the_channels_of_an_item_do_not_change_places(tmp_path: Path) -> None:
    ct, pet = write(tmp_path / "ct.nii", b"ct", 1), write(tmp_path / "pet.nii", b"pet", 1)
    assert digest_of(ct, pet) != digest_of(pet, ct)
    assert digest_of(ct, pet) == digest_of(shutil.copy(ct, tmp_path / "x"), pet)


def test_what_cannot_be_read_has_no_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "a.png", b"abc", 4)

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(hashlib, "file_digest", refuse)
    assert stamp_of([file], digest=True) == Stamp(3, 4, None)


@pytest.mark.parametrize("stamp", [Stamp(0, -5), Stamp(10**12, 2**62, "0" * 63 + "f")])
def test_a_stamp_is_read_back(stamp: Stamp) -> None:
    assert Stamp.from_json(stamp.to_json()) == stamp


@pytest.mark.parametrize(
    "value",
    [
        None,
        "ab",
        {},
        [],
        [1],
        [1, 2, None],
        [1, 2, "ab"],
        [1, 2, "0" * 63 + "F"],
        [1, 2, "0" * 65],
        [1, 2, "0" * 64, 4],
        [-1, 2],
        [True, 2],
        [1, 2.0],
        ["1", 2],
    ],
)
def test_what_is_no_stamp_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="is no stamp of a file: "):
        Stamp.from_json(value)
