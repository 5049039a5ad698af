"""Files that are whole or absent, and on the disk when the call returns.

A file is written under a temporary name, flushed to the disk (`fsync`), renamed, and its folder is
flushed too: after a crash it is there in full or not at all. zarr's own LocalStore renames
but does not flush.
"""

import contextlib
import ctypes
import errno
import os
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

from dinocache.errors import StoreError, StoreWriteError, one_line

__all__ = [
    "PARTIAL_SUFFIX",
    "create_exclusively",
    "flush_folder",
    "keep_durably",
    "make_folder",
    "reading",
    "replace_durably",
    "writing",
]

PARTIAL_SUFFIX = ".partial"
_CAUSES = {
    errno.ENOSPC: "the disk is full; free some space",
    errno.EDQUOT: "your disk quota is used up; free some space",
    errno.EFBIG: "the file would exceed the size limit; raise it",
    errno.EROFS: "the file system is read-only; mount it writable, or choose another --store",
    errno.EACCES: "permission denied; choose another --store, or ask for access",
    errno.EPERM: "permission denied; choose another --store, or ask for access",
    errno.EIO: "the disk reported an input/output error; check it",
    errno.ENOENT: "it, or its folder, was removed meanwhile; see what removes files there",
    errno.EEXIST: "a file stands where a folder must be; move it away",
    errno.ENOTDIR: "a file stands where a folder must be; move it away",
    errno.ENAMETOOLONG: "its name is too long; choose another --store or a shorter --name",
    errno.EMFILE: "too many files are open; raise the limit (ulimit -n)",
    errno.ENFILE: "too many files are open on this machine; close some programs",
    errno.ESTALE: "the file server has lost it; mount the folder again",
    errno.EINTR: "the call was interrupted; see whether the file server answers",
}
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL)
_NO_EXCLUSIVE_RENAME = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
_NO_FOLDER_FLUSH = (errno.EINVAL, errno.EBADF, errno.ENOTSUP)


@contextlib.contextmanager
def writing(what: Path | str) -> Iterator[None]:
    """Turn an OSError of a write into one that names the file and the way out.

    Args:
        what: The thing written, for the message.

    Raises:
        StoreWriteError: For any OSError inside.
    """
    try:
        yield
    except StoreWriteError:
        raise
    except OSError as exc:
        raise StoreWriteError(f"cannot write {what}: {_way_out(exc)}") from exc


@contextlib.contextmanager
def reading(what: Path | str) -> Iterator[None]:
    """Turn an OSError of a read into one that names the file and the way out.

    A file that cannot be read now is not a damaged one: once it can, all goes on.

    Args:
        what: The thing read, for the message where the error itself names no file.

    Raises:
        StoreError: For any OSError inside that is not a StoreError already.
    """
    try:
        yield
    except StoreError:
        raise
    except OSError as exc:
        raise StoreError(f"cannot read {exc.filename or what}: {_way_out(exc)}") from exc


def _way_out(exc: OSError) -> str:
    unknown = f"{one_line(exc) if exc.strerror is None else exc.strerror}; put that right"
    return f"{_CAUSES.get(exc.errno or 0, unknown)}, then run the same command again"


def replace_durably(path: Path, content: bytes | memoryview) -> None:
    """Write a file as a whole, replacing what was there.

    Args:
        path: Where; its folder exists.
        content: All bytes.

    Raises:
        StoreWriteError: If the disk refuses.
    """
    with writing(path), _partial(path, content) as partial:
        partial.replace(path)
        _flush(path.parent)


def keep_durably(path: Path, content: bytes) -> None:
    """See that a file holds some bytes, on the disk; nothing is written where it does.

    Args:
        path: Where; its folder exists.
        content: All bytes.

    Raises:
        StoreError: If what is there cannot be read.
        StoreWriteError: If the disk refuses.
    """
    with reading(path):
        same = path.is_file() and path.read_bytes() == content
    if same:  # whoever wrote it may have been killed before its name was on the disk
        flush_folder(path.parent)
    else:
        replace_durably(path, content)


def create_exclusively(path: Path, content: bytes) -> bool:
    """Write a file as a whole unless one is there already.

    A hard link appears whole, or fails if the name is taken. Where the file system has none, a
    rename that replaces nothing does the same (exFAT, some network shares). Where it has neither
    (some FUSE file systems), the file is written under its own name: of two writers still one
    wins, but a crash in that moment leaves a torn file, which reads as damaged and must be removed
    by hand. A rename after a look would never be torn, but both writers could win, unnoticed.

    Args:
        path: Where; its folder exists.
        content: All bytes.

    Returns:
        True if this call made it, False if somebody was first; then nothing was changed.

    Raises:
        StoreWriteError: If the disk refuses.
    """
    with writing(path), _partial(path, content) as partial:
        try:
            _name_exclusively(partial, path, content)
        except FileExistsError:
            return False
        _flush(path.parent)
    return True


def make_folder(path: Path, known: set[Path] | None = None) -> None:
    """Make a folder and those above it, each flushed into its parent.

    Args:
        path: The folder; it may exist.
        known: Folders that were flushed before, to which it is added.

    Raises:
        StoreWriteError: If the disk refuses, or a file has that name.
    """
    if known is not None and path in known:
        return
    with writing(path):
        there = path.is_dir()
        if there:
            # Whoever made it may have been killed before it was on the disk. A folder above the
            # store may be one that nobody is allowed to list.
            with contextlib.suppress(PermissionError):
                _flush(path.parent)
    if not there:
        make_folder(path.parent, known)
        with writing(path):
            path.mkdir(exist_ok=True)
            _flush(path.parent)
    if known is not None:
        known.add(path)


def flush_folder(path: Path) -> None:
    """Flush the names in a folder to the disk.

    Args:
        path: The folder.

    Raises:
        StoreWriteError: If the disk refuses.
    """
    with writing(path):
        _flush(path)


@contextlib.contextmanager
def _partial(path: Path, content: bytes | memoryview) -> Iterator[Path]:
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}{PARTIAL_SUFFIX}")
    try:
        with partial.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        yield partial
    finally:
        # One that stays is never read, and the first error is the one to tell of.
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def _name_exclusively(partial: Path, path: Path, content: bytes) -> None:
    """Give a file its name; raises FileExistsError if that is taken."""
    try:
        os.link(partial, path)
    except OSError as exc:
        if exc.errno not in _NO_LINKS:
            raise
        try:
            _rename_exclusively(partial, path)
        except OSError as exc:
            if exc.errno not in _NO_EXCLUSIVE_RENAME:
                raise
            _write_exclusively(path, content)


def _rename_exclusively(source: Path, target: Path) -> None:
    if sys.platform == "win32":  # the plain rename replaces nothing there
        source.rename(target)
        return
    names = os.fsencode(source), os.fsencode(target)
    libc = ctypes.CDLL(None, use_errno=True)
    if sys.platform == "darwin" and hasattr(libc, "renamex_np"):
        refused = libc.renamex_np(*names, 0x4)  # RENAME_EXCL
    elif hasattr(libc, "renameat2"):
        at_cwd, no_replace = -100, 0x1
        refused = libc.renameat2(at_cwd, names[0], at_cwd, names[1], no_replace)
    else:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if refused:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(target))


def _write_exclusively(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        try:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        except BaseException:
            with contextlib.suppress(OSError):
                path.unlink()  # nobody else wrote it: the name was ours
            raise


def _flush(folder: Path) -> None:
    if sys.platform == "win32":  # folders cannot be opened there; NTFS journals the rename itself
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as exc:
        if exc.errno not in _NO_FOLDER_FLUSH:  # some file systems have no such thing
            raise
    finally:
        os.close(descriptor)
