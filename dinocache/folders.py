"""A folder of files by their names, wherever it lies; and folders of this machine.

Names are relative, with `/` between their parts. See docs/sharing.md.
"""

import errno
import os
import re
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from dinocache.durable import (
    create_exclusively,
    flush_folder,
    keep_durably,
    make_folder,
    replace_durably,
    writing,
)
from dinocache.errors import StoreDamagedError

__all__ = [
    "MOST_WHOLE",
    "UNKNOWN_SIZE",
    "Entry",
    "Folder",
    "Listing",
    "LocalFolder",
    "check_inside",
    "check_size",
    "plain_path",
]

MOST_WHOLE = 1 << 30
"""Bytes of a file that is read as a whole: all that a store has are far smaller."""
UNKNOWN_SIZE = -1
"""Of a file that was listed by a server that says no sizes."""
_FOLDERS_KNOWN = 1000
_OUTSIDE = re.compile(r"/.*|[A-Za-z]:.*|(?:.*/)?\.\.(?:/.*)?|.*[\\\0].*", re.DOTALL)
"""Absolute, with a drive, with a `..`, a backslash or a NUL."""
_JUNCTION = 0xA0000003
"""What Windows calls a folder that leads elsewhere (`mklink /J`)."""


def check_inside(name: str) -> str:
    """Let through a name that stays within a folder, on whatever system.

    Args:
        name: With `/` between its parts; "" is the folder itself.

    Returns:
        The name.

    Raises:
        StoreDamagedError: If it is absolute or has `..`, a backslash, a drive letter or a NUL.
    """
    if _OUTSIDE.fullmatch(name):
        raise StoreDamagedError(f"{name!r} leads out of the store's folder; nothing is read there")
    return name


def check_size(what: str, size: int, most: int) -> None:
    """Refuse a file that is too large to be one of a store's.

    Args:
        what: The file, for the message.
        size: In bytes, or -1 where that is not known.
        most: In bytes.

    Raises:
        StoreDamagedError: If it is larger than that, or nobody says how large it is.
    """
    if not 0 <= size <= most:
        said = f"has {size} bytes" if size >= 0 else "does not say how large it is"
        raise StoreDamagedError(
            f"{what} {said}; a file that is read as a whole has at most {most}, so it is none of "
            "a store's"
        )


def plain_path(root: Path, name: str) -> Path:
    """Give the path of a file within a folder, if no link is followed on the way to it.

    Args:
        root: The folder; it may be reached through links.
        name: Of the file, which need not exist.

    Returns:
        Its path.

    Raises:
        StoreDamagedError: If the name leads out of the folder, or it or a folder on the way is a
            link: a store that somebody else made must not show other files as its own.
    """
    path = root
    for part in check_inside(name).split("/") if name else ():
        path = path / part
        try:
            status = path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            break
        if stat.S_ISLNK(status.st_mode) or getattr(status, "st_reparse_tag", 0) == _JUNCTION:
            raise StoreDamagedError(
                f"{path.relative_to(root).as_posix()} is a link; a store holds plain files only. "
                "Copy what it leads to into its place."
            )
    return root / name


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A file.

    Attributes:
        name: Within the folder that was listed.
        bytes: How large it is, or `UNKNOWN_SIZE`.
        modified: Seconds since 1970.
    """

    name: str
    bytes: int
    modified: float


@dataclass(frozen=True, kw_only=True)
class Listing:
    """What stands right in a folder.

    Attributes:
        files: Name within the folder -> the file.
        folders: Names within the folder.
    """

    files: dict[str, Entry] = field(default_factory=dict)
    folders: tuple[str, ...] = ()


class Folder(ABC):
    """A folder of files. `str(folder)` is what people call it: a path or a URL, without secrets.

    A method that reads raises FileNotFoundError where there is no such file, and `StoreError` or
    an OSError where it cannot be read now; one that writes raises `StoreWriteError`.
    """

    @property
    def path(self) -> Path | None:
        """Where it lies on this machine; None if it does not."""
        return None

    @abstractmethod
    def within(self, name: str) -> "Folder":
        """Give a folder in it, which need not exist."""

    @abstractmethod
    def read(
        self,
        name: str,
        is_whole: Callable[[bytes], bool] | None = None,
        *,
        most: int = MOST_WHOLE,
    ) -> bytes:
        """Read a file.

        Args:
            name: Which.
            is_whole: Says whether the bytes are as they were written. Where they come over a
                network and it says no, they are read again a few times; what came last is
                returned, whole or not.
            most: Bytes that it may have; of a larger one nothing is read.

        Raises:
            StoreDamagedError: If it is larger, or no plain file.
        """

    @abstractmethod
    def read_range(
        self, name: str, start: int, stop: int, is_whole: Callable[[bytes], bool] | None = None
    ) -> bytes:
        """Read bytes of a file, from `start` up to but not including `stop`; all must be there.

        Args:
            name: Which.
            start: First byte.
            stop: Byte behind the last.
            is_whole: As for `read`.
        """

    @abstractmethod
    def size(self, name: str) -> int | None:
        """Say how many bytes a file has; None if there is none."""

    @abstractmethod
    def list(self, name: str = "") -> Listing:
        """List what stands right in a folder in it, or in itself; nothing where there is none."""

    @abstractmethod
    def walk(self, name: str = "") -> Iterator[Entry]:
        """List all files below a folder in it, or below itself; names are from itself."""

    def names_after(self, name: str) -> tuple[str, ...]:
        """List files below that sort after a name, in order; of many the first thousand or so."""
        listing = self.list()
        names = [file for file in listing.files if file > name]
        for folder in listing.folders:
            if f"{folder}/" > name:
                names += [f"{folder}/{file}" for file in self.list(folder).files]
        return tuple(sorted(names))

    @abstractmethod
    def replace(self, name: str, content: bytes | memoryview) -> None:
        """Write a file as a whole, in the place of what was there."""

    @abstractmethod
    def keep(self, name: str, content: bytes) -> None:
        """See that a file holds these bytes; nothing is written where it does."""

    @abstractmethod
    def create(self, name: str, content: bytes) -> bool:
        """Write a file as a whole unless one is there; tells whether it holds what was given."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file; nothing happens where there is none."""

    def flush(self, names: Iterable[str]) -> None:  # noqa: B027 - most have nothing to do
        """See that what stands in some folders in it is there to stay.

        It may be of a run that was killed before its name was on the disk.
        """

    def abort_uploads(self, before: float) -> int:
        """Give up uploads in parts that were begun before a time and never ended; says how many.

        Args:
            before: Seconds since 1970.
        """
        return 0

    def exists(self, name: str) -> bool:
        """Tell whether there is such a file."""
        return self.size(name) is not None


@dataclass(frozen=True)
class LocalFolder(Folder):
    """A folder of this machine, which need not exist before something is written."""

    root: Path
    _known: set[Path] = field(default_factory=set, repr=False, compare=False)

    def __str__(self) -> str:
        return str(self.root)

    @property
    def path(self) -> Path:
        """See `Folder`."""
        return self.root

    def within(self, name: str) -> "LocalFolder":
        """See `Folder`; links on the way to it are followed."""
        return LocalFolder(self.root / check_inside(name), self._known)

    def read(
        self,
        name: str,
        is_whole: Callable[[bytes], bool] | None = None,
        *,
        most: int = MOST_WHOLE,
    ) -> bytes:
        """See `Folder`; no link below the folder is followed."""
        path = plain_path(self.root, name)
        try:
            with open(_open_plain(path, name), "rb") as file:
                size = os.fstat(file.fileno()).st_size
                check_size(name, size, most)
                return file.read(size)
        except OSError as exc:
            exc.filename = exc.filename or str(path)
            raise

    def read_range(
        self, name: str, start: int, stop: int, is_whole: Callable[[bytes], bool] | None = None
    ) -> bytes:
        """See `Folder`; no link below the folder is followed."""
        with open(_open_plain(plain_path(self.root, name), name), "rb") as file:
            there = max(os.fstat(file.fileno()).st_size - start, 0)
            file.seek(start)
            return file.read(min(stop - start, there))

    def size(self, name: str) -> int | None:
        """See `Folder`."""
        try:
            status = (self.root / check_inside(name)).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return status.st_size if stat.S_ISREG(status.st_mode) else None

    def list(self, name: str = "") -> Listing:
        """See `Folder`; links to folders are followed."""
        folder = self.root / check_inside(name)
        files, folders = {}, []
        for path in _paths(folder):
            if path.is_dir():
                folders.append(path.name)
            elif entry := _entry(path, path.name):
                files[path.name] = entry
        return Listing(files=files, folders=tuple(folders))

    def walk(self, name: str = "") -> Iterator[Entry]:
        """See `Folder`; a link is listed as a file, whatever it leads to."""
        folder = self.root / check_inside(name)
        for path in _paths(folder):
            inner = path.relative_to(self.root).as_posix()
            if path.is_dir() and not path.is_symlink():
                yield from self.walk(inner)
            elif entry := _entry(path, inner):
                yield entry

    def replace(self, name: str, content: bytes | memoryview) -> None:
        """See `Folder`."""
        replace_durably(self._writable(name), content)

    def keep(self, name: str, content: bytes) -> None:
        """See `Folder`."""
        plain_path(self.root, name)  # what it leads to is not looked at
        keep_durably(self._writable(name), content)

    def create(self, name: str, content: bytes) -> bool:
        """See `Folder`."""
        return create_exclusively(self._writable(name), content)

    def remove(self, name: str) -> None:
        """See `Folder`."""
        path = self._plain(name)
        with writing(path):
            path.unlink(missing_ok=True)
            if path.parent.is_dir():
                flush_folder(path.parent)

    def flush(self, names: Iterable[str]) -> None:
        """See `Folder`."""
        for name in names:
            flush_folder(self.root / check_inside(name))

    def _plain(self, name: str) -> Path:
        """Give the path of a file to write or to remove: it may be a link, its folders may not."""
        plain_path(self.root, name.rpartition("/")[0])
        return self.root / check_inside(name)

    def _writable(self, name: str) -> Path:
        path = self._plain(name)
        if len(self._known) >= _FOLDERS_KNOWN:  # each image has a folder of its own
            self._known.clear()
        make_folder(path.parent, self._known)
        return path


def _open_plain(path: Path, name: str) -> int:
    """Open a file to read, if it is a plain one: a pipe would never end."""
    waits_not = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, os.O_RDONLY | waits_not)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return descriptor
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise StoreDamagedError(f"{name} is no plain file")


def _paths(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _entry(path: Path, name: str) -> Entry | None:
    """Give a file's entry; `None` if another writer has removed or renamed it since it was seen."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    return Entry(name=name, bytes=status.st_size, modified=status.st_mtime)
