"""Committed files of a store, as files of this machine: where they lie, or fetched into a cache.

What is fetched stays in the cache folder of the user, up to `DINOCACHE_CACHE_GB` (20); what was
not used for longest goes first. A file is named there by where it came from and by the digest
that its commit record has, so that another process, or a later one, finds it.
"""

import contextlib
import functools
import hashlib
import mmap
import os
import stat
import threading
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dinocache.durable import PARTIAL_SUFFIX, writing
from dinocache.errors import StoreDamagedError
from dinocache.folders import Folder, check_inside, plain_path
from dinocache.places import cache_folder
from dinocache.records import StoredObject
from dinocache.remote import in_parallel

__all__ = ["Bytes", "CommittedFiles", "committed_files", "map_file", "most_open_files"]

Bytes = npt.NDArray[np.uint8]

_LIMIT_GB = 20.0
_KEPT_SHARE = 0.9
"""Of the limit, that is left where it was exceeded."""


class CommittedFiles(ABC):
    """Files that commit records vouch for.

    Attributes:
        parts_stay: Whether a part is the same whenever it is read, so that it is verified once.
    """

    parts_stay = False

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self.expected: dict[str, StoredObject] = {}

    @abstractmethod
    def expect(self, objects: Mapping[str, StoredObject]) -> None:
        """Take note of files of which parts will be read; they must be there in their sizes."""

    @abstractmethod
    def fetch(self, objects: Mapping[str, StoredObject]) -> None:
        """See that files can be had, all of them at once.

        Args:
            objects: Name within the store -> what was committed.

        Raises:
            StoreDamagedError: If one is missing, or of another size; of what comes from a server
                also if its digest is another.
            StoreError: If one cannot be had now.
        """

    @abstractmethod
    def path(self, name: str) -> Path:
        """Say where a file that was fetched lies."""

    @abstractmethod
    def size(self, name: str) -> int:
        """Say how many bytes a file has that was fetched or is expected."""

    @abstractmethod
    def part(self, name: str, start: int, stop: int, is_whole: Callable[[Bytes], bool]) -> Bytes:
        """Read bytes of a file that is expected.

        Args:
            name: Which.
            start: First byte.
            stop: Byte behind the last.
            is_whole: Says whether they are as they were written; not asked again of bytes that
                lie on this machine.

        Returns:
            The bytes, whole or not.
        """


class _LocalFiles(CommittedFiles):
    parts_stay = True

    def __init__(self, folder: Folder, root: Path) -> None:
        super().__init__(folder)
        self._root = root
        self._plain: dict[str, Path] = {}
        # Python keeps a file open for each that is mapped.
        self._map = functools.lru_cache(most_open_files() // 4)(self._open)

    def expect(self, objects: Mapping[str, StoredObject]) -> None:
        for name, stored in objects.items():
            try:
                found = os.stat(self.path(name))
            except (FileNotFoundError, NotADirectoryError):
                found = None
            is_file = found is not None and stat.S_ISREG(found.st_mode)
            _check_size(name, found.st_size if found and is_file else None, stored)
        self.expected.update(objects)

    def fetch(self, objects: Mapping[str, StoredObject]) -> None:
        self.expect(objects)

    def path(self, name: str) -> Path:
        # Each folder is looked at once, and each file: a look is some calls of the system.
        if name not in self._plain:
            folder, _, leaf = check_inside(name).rpartition("/")
            if folder not in self._plain:
                self._plain[folder] = plain_path(self._root, folder)
            path = self._plain[folder] / leaf
            if os.name != "posix" or path.is_symlink():
                path = plain_path(self._root, name)
            self._plain[name] = path
        return self._plain[name]

    def size(self, name: str) -> int:
        return self.path(name).stat().st_size

    def part(
        self,
        name: str,
        start: int,
        stop: int,
        is_whole: Callable[[Bytes], bool],
    ) -> Bytes:
        return self._map(name)[start:stop]

    def _open(self, name: str) -> Bytes:
        return map_file(self.path(name))


class _FetchedFiles(CommittedFiles):
    def __init__(self, folder: Folder) -> None:
        super().__init__(folder)
        self._cache = _Cache(cache_folder() / "files", str(folder))
        self._fetched: set[str] = set()

    def expect(self, objects: Mapping[str, StoredObject]) -> None:
        self.expected.update(objects)

    def fetch(self, objects: Mapping[str, StoredObject]) -> None:
        self.expect(objects)
        in_parallel(self._fetch, [name for name in objects if name not in self._fetched])

    def path(self, name: str) -> Path:
        path = self._cache.path(name, self.expected[name])
        if not path.is_file():  # another process needed the room
            self._fetch(name)
        return path

    def size(self, name: str) -> int:
        return self.expected[name].bytes

    def part(self, name: str, start: int, stop: int, is_whole: Callable[[Bytes], bool]) -> Bytes:
        path = self._cache.path(f"{name} {start}-{stop}", self.expected[name])
        content = self._cache.read(path)
        if content is None or len(content) != stop - start or not is_whole(_array(content)):
            try:
                content = self.folder.read_range(
                    name, start, stop, lambda come: is_whole(_array(come))
                )
            except FileNotFoundError:
                _check_size(name, None, self.expected[name])
                raise
            self._cache.put(path, content)
        return _array(content)

    def _fetch(self, name: str) -> None:
        stored = self.expected[name]
        path = self._cache.path(name, stored)
        content = self._cache.read(path)
        if content is None or not stored.is_of(content):
            try:
                content = self.folder.read(name, stored.is_of)
            except FileNotFoundError:
                content = None
            _check_size(name, None if content is None else len(content), stored)
            if content is None or not stored.is_of(content):
                raise StoreDamagedError(
                    f"{name} is damaged: it is not what was committed, however often it is "
                    f"fetched. Run `dinocache verify {self.folder}` to see what else is."
                )
            self._cache.put(path, content)
        self._fetched.add(name)


class _Cache:
    """Files of one origin in a folder that all share; each may be gone at any time."""

    def __init__(self, folder: Path, origin: str) -> None:
        self._folder = folder
        self._origin = origin
        self._lock = threading.Lock()
        self._room = 0.0  # not known yet

    def path(self, name: str, stored: StoredObject) -> Path:
        """Say where a file is, or would be."""
        whose = f"{self._origin}\n{name}\n{stored.bytes}\n{stored.digest}"
        digest = hashlib.sha256(whose.encode()).hexdigest()[:40]
        return self._folder / digest[:2] / digest

    def read(self, path: Path) -> bytes | None:
        """Read a file, which counts as using it; None if it is not there."""
        try:
            os.utime(path)
            return path.read_bytes()
        except OSError:
            return None

    def put(self, path: Path, content: bytes) -> None:
        """Keep a file, and see that all of them are not too much.

        A crash may leave it torn: it is held against a digest before it is used again.
        """
        with self._lock:
            self._room -= len(content)
            if self._room < 0:
                self._room = self._make_room(len(content))
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}{PARTIAL_SUFFIX}")
        with writing(partial):
            try:
                partial.write_bytes(content)
                partial.replace(path)
            finally:
                partial.unlink(missing_ok=True)

    def _make_room(self, wanted: int) -> float:
        """Remove what was not used for longest; gives how many bytes are free then."""
        limit = float(os.environ.get("DINOCACHE_CACHE_GB") or _LIMIT_GB) * 1e9
        files = []
        for path in self._folder.glob("*/*"):
            with contextlib.suppress(OSError):  # removed by another process
                files.append((path.stat().st_mtime, path.stat().st_size, path))
        total = wanted + sum(size for _, size, _ in files)
        for _, size, path in sorted(files) if total > limit else ():
            path.unlink(missing_ok=True)
            total -= size
            if total <= _KEPT_SHARE * limit:
                break
        return max(limit - total, 0)


def most_open_files() -> int:
    """Say how many files a process may have open: 256 on macOS, 1,024 or more on Linux."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return 256
    return min(1024, max(128, resource.getrlimit(resource.RLIMIT_NOFILE)[0]))


def map_file(path: Path) -> Bytes:
    """Give the bytes of a file, (n,) uint8, read-only: as they lie on the disk, where that is safe.

    On Windows what is mapped cannot be replaced, so there the file is read.
    """
    if os.name != "posix":
        return _array(path.read_bytes())
    with path.open("rb", buffering=0) as file:
        if os.fstat(file.fileno()).st_size == 0:  # which cannot be mapped
            return _array(b"")
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)


def _array(content: bytes) -> Bytes:
    return np.frombuffer(content, np.uint8)


def committed_files(folder: Folder) -> CommittedFiles:
    """Give the committed files of a store, from where it lies."""
    return _FetchedFiles(folder) if folder.path is None else _LocalFiles(folder, folder.path)


def _check_size(name: str, size: int | None, stored: StoredObject) -> None:
    if size != stored.bytes:
        came = "is missing" if size is None else f"has {size} bytes, not {stored.bytes}"
        raise StoreDamagedError(
            f"{name} {came}; run `dinocache verify` to see what else is, and copy it again "
            "from where the store came from"
        )
