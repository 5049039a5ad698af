"""Files that are whole or absent, whatever the disk says."""

import errno
import hashlib
import itertools
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest
from making import make_table, tiny_request

from dinocache import durable
from dinocache.durable import (
    create_exclusively,
    flush_folder,
    keep_durably,
    make_folder,
    reading,
    replace_durably,
)
from dinocache.errors import StoreDamagedError, StoreError, StoreWriteError
from dinocache.extract import extract
from dinocache.verify import verify

RUN = "import sys; from dinocache.cli import main; sys.exit(main())"
FEATURES = "cls,dense,image"

Fail = Callable[..., None]


def failing(code: int) -> Fail:
    """Make a call that always fails."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    return fail


# A file


def test_the_first_wins_and_is_whole(tmp_path: Path) -> None:
    race(tmp_path / "plan.json")


def test_the_first_wins_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", failing(errno.EPERM))
    race(tmp_path / "plan.json")


def test_the_first_wins_without_links_or_exclusive_renames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", failing(errno.ENOTSUP))
    monkeypatch.setattr(durable, "_rename_exclusively", failing(errno.EINVAL))
    race(tmp_path / "plan.json")


def race(path: Path) -> None:
    contents = [bytes([65 + i]) * 40_000 for i in range(9)]
    won: list[bytes] = []
    start = threading.Barrier(len(contents))

    def compete(content: bytes) -> None:
        start.wait()
        if create_exclusively(path, content):
            won.append(content)

    racers = [threading.Thread(target=compete, args=(c,)) for c in contents]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    assert won == [path.read_bytes()]
    assert os.listdir(path.parent) == [path.name]
    assert not create_exclusively(path, b"late")


@pytest.mark.parametrize("call", ["link", "_rename_exclusively"])
def test_a_link_that_fails_for_another_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    monkeypatch.setattr(os, "link", failing(errno.EIO if call == "link" else errno.ENOSYS))
    monkeypatch.setattr(durable, "_rename_exclusively", failing(errno.EIO))
    with pytest.raises(StoreWriteError, match=r"cannot write .*plan.json: the disk reported"):
        create_exclusively(tmp_path / "plan.json", b"one")
    assert os.listdir(tmp_path) == []


def test_nothing_torn_where_the_name_must_come_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", failing(errno.ENOTSUP))
    monkeypatch.setattr(durable, "_rename_exclusively", failing(errno.ENOSYS))
    path, flush = tmp_path / "plan.json", os.fsync

    def fail_late(descriptor: int) -> None:
        if path.exists():
            failing(errno.ENOSPC)()
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", fail_late)
    with pytest.raises(StoreWriteError, match="the disk is full"):
        create_exclusively(path, b"one")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (errno.ENOSPC, "the disk is full; free some space, then run the same command again"),
        (errno.EDQUOT, "your disk quota is used up"),
        (errno.EIO, "the disk reported an input/output error"),
        (errno.EACCES, "permission denied; choose another --store"),
        (errno.EROFS, "the file system is read-only"),
        (errno.ENXIO, f"{os.strerror(errno.ENXIO)}; put that right, then run the same command"),
    ],
)
def test_a_refused_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, message: str
) -> None:
    path = tmp_path / "a.json"
    replace_durably(path, b"old")
    monkeypatch.setattr(os, "fsync", failing(code))
    with pytest.raises(StoreWriteError) as caught:
        replace_durably(path, b"new")
    assert f"cannot write {path}: {message}" in str(caught.value)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.json"]


def test_the_first_error_is_told_where_tidying_up_fails_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "replace", failing(errno.ENOSPC))
    monkeypatch.setattr(os, "unlink", failing(errno.EROFS))
    with pytest.raises(StoreWriteError, match="the disk is full"):
        replace_durably(tmp_path / "a.json", b"new")
    assert [name.endswith(".partial") for name in os.listdir(tmp_path)] == [True]


def test_a_file_that_cannot_be_tidied_up_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "unlink", failing(errno.EIO))
    assert create_exclusively(tmp_path / "plan.json", b"one")
    assert len(os.listdir(tmp_path)) == 2


def test_a_name_that_is_not_flushed_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_durably(tmp_path / "a", b"old")
    monkeypatch.setattr(durable, "_flush", failing(errno.EIO))
    with pytest.raises(StoreWriteError, match="input/output"):
        replace_durably(tmp_path / "a", b"new")
    with pytest.raises(StoreWriteError, match="input/output"):
        create_exclusively(tmp_path / "b", b"one")
    with pytest.raises(StoreWriteError, match="input/output"):
        keep_durably(tmp_path / "a", b"new")
    with pytest.raises(StoreWriteError, match="input/output"):
        make_folder(tmp_path / "c")
    with pytest.raises(StoreWriteError, match="input/output"):
        make_folder(tmp_path / "c")


def test_a_file_system_that_cannot_flush_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flush = os.fsync

    def refuse_folders(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").is_dir():
            failing(errno.EINVAL)()
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", refuse_folders)
    flush_folder(tmp_path)
    replace_durably(tmp_path / "a", b"one")
    assert (tmp_path / "a").read_bytes() == b"one"


def test_kept_where_it_is_the_same(tmp_path: Path) -> None:
    path = tmp_path / "a"
    keep_durably(path, b"one")
    before = path.stat()
    keep_durably(path, b"one")
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    keep_durably(path, b"two")
    assert path.read_bytes() == b"two"


def test_a_file_that_cannot_be_read_is_not_damaged(tmp_path: Path) -> None:
    message = r"cannot read .*gone: it, or its folder, was removed"
    with pytest.raises(StoreError, match=message) as caught, reading("what"):
        (tmp_path / "gone").read_bytes()
    assert not isinstance(caught.value, StoreDamagedError | StoreWriteError)
    with pytest.raises(StoreError, match="cannot read what: the disk reported"), reading("what"):
        failing(errno.EIO)()
    with pytest.raises(StoreDamagedError, match="as it is"), reading("what"):
        raise StoreDamagedError("as it is")


def test_folders(tmp_path: Path) -> None:
    make_folder(tmp_path / "a/b/c")
    make_folder(tmp_path / "a/b/c")
    assert (tmp_path / "a/b/c").is_dir()
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreWriteError, match=r"cannot write .*: a file stands where a folder"):
        make_folder(tmp_path / "file" / "d")
    with pytest.raises(StoreWriteError, match=r"cannot write .*: a file stands where a folder"):
        make_folder(tmp_path / "file")


def test_folders_are_flushed_into_their_parents_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a/b").mkdir(parents=True)  # by a run that was killed before it flushed them
    flushed: list[Path] = []
    monkeypatch.setattr(durable, "_flush", flushed.append)
    known: set[Path] = set()
    make_folder(tmp_path / "a/b/c", known)
    make_folder(tmp_path / "a/b/c", known)
    assert flushed == [tmp_path / "a", tmp_path / "a/b"]


# A whole extraction


def digests(store: Path) -> dict[str, str]:
    return {
        str(path.relative_to(store)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((store / "features.zarr").rglob("*"))
        if path.is_file() and not path.name.endswith(".partial")
    }


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_table(tmp_path_factory.mktemp("images"), 18)


@pytest.fixture(scope="module")
def undisturbed(table: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return digests(whole(table, tmp_path_factory.mktemp("whole")))


def whole(table: Path, root: Path) -> Path:
    """Extract in this process what `run` has a process extract."""
    outcome = extract(tiny_request(table, root, features=tuple(FEATURES.split(","))))
    assert outcome.complete
    assert outcome.failures == ()
    return outcome.path


def check(store: Path, expected: dict[str, str], again: Callable[[], object]) -> None:
    """See that a store is sound, and complete and bit-identical after another run."""
    if (store / "store.json").is_file():
        assert verify(store).exit_code in (0, 3)
    again()
    assert verify(store).exit_code == 0
    assert digests(store) == expected


@pytest.mark.parametrize(
    ("call", "code", "numbers"),
    [
        ("fsync", errno.EIO, (1, 2, 9, 30, 77, 130)),
        ("replace", errno.ENOSPC, (1, 4, 25, 49)),
        ("mkdir", errno.EACCES, (1, 3, 9, 23)),
        ("link", errno.EIO, (1, 2)),
    ],
)
def test_an_extraction_whose_disk_fails(
    tmp_path: Path,
    table: Path,
    undisturbed: dict[str, str],
    call: str,
    code: int,
    numbers: Sequence[int],
) -> None:
    for number in numbers:
        request = tiny_request(table, tmp_path / str(number), features=tuple(FEATURES.split(",")))
        fail = fail_from(number, getattr(os, call), code)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, call, fail)
            with pytest.raises(StoreWriteError, match=r"cannot write .*then run the same command"):
                extract(request)
        check(request.root / "images/tiny/32x48", undisturbed, partial(extract, request))


def fail_from(number: int, whole: Callable[..., object], code: int) -> Callable[..., object]:
    """Let the n-th call fail, and all behind it."""
    numbers = itertools.count(1)  # counts whole in several threads

    def fail(*given: object, **named: object) -> object:
        if next(numbers) >= number:
            raise OSError(code, os.strerror(code))
        return whole(*given, **named)

    return fail


def run(table: Path, root: Path, *before: str, **process: object) -> "subprocess.CompletedProcess":
    command = [*before, sys.executable, "-c", RUN]
    options = "--model tiny --resolution 32x48 --weights random:0 --unit-rows 16 --batch 8 "
    options += f"--features {FEATURES} --device cpu"
    return subprocess.run(
        [*command, "extract", str(table), "--store", str(root), *options.split()],
        capture_output=True,
        text=True,
        check=False,
        cwd=table.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        **process,
    )


def check_line(stderr: str, *named: str) -> None:
    assert "Traceback" not in stderr
    lines = [line for line in stderr.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    for part in ("cannot write", "then run the same command again", *named):
        assert part in lines[0]


@pytest.mark.skipif(sys.platform == "win32", reason="there is no RLIMIT_FSIZE on Windows")
@pytest.mark.parametrize(
    "n_bytes",
    [
        pytest.param(1_000, marks=pytest.mark.long),
        6_000,
        pytest.param(9_000, marks=pytest.mark.long),
    ],
)
def test_the_command_where_files_may_not_be_large(
    tmp_path: Path, table: Path, undisturbed: dict[str, str], n_bytes: int
) -> None:
    import resource

    def lower() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, n_bytes))

    ended = run(table, tmp_path, preexec_fn=lower)
    assert ended.returncode == 1
    check_line(ended.stderr, "the file would exceed the size limit; raise it", str(tmp_path))
    check(tmp_path / "images/tiny/32x48", undisturbed, lambda: whole(table, tmp_path))


def can_trace() -> bool:
    strace = shutil.which("strace")
    return (
        strace is not None
        and not subprocess.run(
            [strace, "-f", "--seccomp-bpf", "-o", os.devnull, sys.executable, "-c", ""],
            check=False,
            capture_output=True,
        ).returncode
    )


@pytest.fixture
def strace() -> str:
    if not can_trace():
        pytest.skip(
            "strace is not installed, or may not trace here; benchmarks/faults.py says more"
        )
    return "strace"


@pytest.mark.parametrize(
    ("file", "inject"),
    [
        ("plans", "fsync:error=EIO"),
        pytest.param("features.zarr/cls", "fsync:error=ENOSPC", marks=pytest.mark.long),
        pytest.param("units", "fsync:error=EIO:when=3+", marks=pytest.mark.long),
        pytest.param("features.zarr/dense", "mkdir:error=EROFS", marks=pytest.mark.long),
    ],
)
def test_the_command_where_a_system_call_fails(
    tmp_path: Path,
    table: Path,
    undisturbed: dict[str, str],
    strace: str,
    file: str,
    inject: str,
) -> None:
    store = tmp_path / "images/tiny/32x48"
    call = inject.split(":", 1)[0]
    # Of all calls it stops at those alone; a first process's imports are some ten thousand.
    traced = [strace, "-f", "--seccomp-bpf", "-qq", "-o", os.devnull, "-P", str(store / file)]
    ended = run(table, tmp_path, *traced, "-e", f"trace={call}", "-e", f"inject={inject}")
    assert ended.returncode == 1, ended.stderr
    check_line(ended.stderr, file)
    check(store, undisturbed, lambda: whole(table, tmp_path))
