"""Files that are whole or absent, and on the disk when the call returns.

A file is written under a temporary name, flushed to the disk (`fsync`), renamed, and its folder is
flushed too: after a crash it is there in full or not at all. zarr's own LocalStore renames
but does not flush.
"""

import contextlib
import errno
import os
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

from dinocache.errors import StoreWriteError

__all__ = ["PARTIAL_SUFFIX", "create_exclusively", "make_folder", "replace_durably", "writing"]

PARTIAL_SUFFIX = ".partial"
_CAUSES = {
    errno.ENOSPC: "the disk is full; free some space",
    errno.EDQUOT: "your disk quota is used up; free some space",
    errno.EFBIG: "the file would exceed the size limit; raise it",
    errno.EROFS: "the file system is read-only; mount it writable, or choose another --store",
    errno.EACCES: "permission denied; choose another --store, or ask for write access",
    errno.EPERM: "permission denied; choose another --store, or ask for write access",
    errno.EIO: "the disk reported an input/output error; check it",
}


@contextlib.contextmanager
def writing(what: str) -> Iterator[None]:
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
        cause = _CAUSES.get(exc.errno or 0, exc.strerror or str(exc))
        raise StoreWriteError(
            f"cannot write {what}: {cause}, then run the same command again"
        ) from exc


def replace_durably(path: Path, content: bytes | memoryview) -> None:
    """Write a file as a whole, replacing what was there.

    Args:
        path: Where; its folder exists.
        content: All bytes.

    Raises:
        StoreWriteError: If the disk refuses.
    """
    with writing(path.name), _partial(path, content) as partial:
        partial.replace(path)
        _flush_folder(path.parent)


def create_exclusively(path: Path, content: bytes) -> bool:
    """Write a file as a whole unless one is there already.

    Args:
        path: Where; its folder exists.
        content: All bytes.

    Returns:
        True if this call made it, False if somebody was first; then nothing was changed.

    Raises:
        StoreWriteError: If the disk refuses.
    """
    with writing(path.name), _partial(path, content) as partial:
        try:
            # A hard link appears whole or fails if the name is taken; no rename does that.
            os.link(partial, path)
        except FileExistsError:
            return False
        except OSError as exc:
            if exc.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
                raise
            return _create_without_links(path, content)
        _flush_folder(path.parent)
    return True


def make_folder(path: Path) -> None:
    """Make a folder and those above it, each flushed into its parent.

    Args:
        path: The folder; it may exist.

    Raises:
        StoreWriteError: If the disk refuses, or a file has that name.
    """
    if path.is_dir():
        return
    make_folder(path.parent)
    with writing(str(path.name)):
        path.mkdir(exist_ok=True)
        _flush_folder(path.parent)


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
        partial.unlink(missing_ok=True)


def _create_without_links(path: Path, content: bytes) -> bool:
    """For file systems without hard links; a crash leaves a file that reads as damaged."""
    try:
        with path.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        return False
    _flush_folder(path.parent)
    return True


def _flush_folder(folder: Path) -> None:
    if sys.platform == "win32":  # folders cannot be opened there; NTFS journals the rename itself
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
