"""What the files of an item looked like: how large, how new, and, if asked for, their content."""

import hashlib
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

__all__ = ["Stamp", "stamp_of"]

_SHA256 = re.compile(r"[0-9a-f]{64}")


class Stamp(NamedTuple):
    """What some files looked like.

    A tuple, for a plan holds one for each of 100,000 items.

    Attributes:
        bytes: Of all of them.
        modified_ns: When the newest of them was modified, ns since 1970.
        sha256: Of their content, see `stamp_of`; None where nobody asked for it.
    """

    bytes: int
    modified_ns: int
    sha256: str | None = None

    def to_json(self) -> list[object]:
        """Give [bytes, modified_ns], and the sha256 behind them where there is one."""
        return [*self] if self.sha256 is not None else [self.bytes, self.modified_ns]

    @classmethod
    def from_json(cls, value: object) -> "Stamp":
        """Read it back.

        Args:
            value: As `to_json` gives it.

        Returns:
            The stamp.

        Raises:
            ValueError: If it is something else.
        """
        # Not isinstance: true is no number of bytes.
        if type(value) is list and len(value) in (2, 3):
            n_bytes, modified_ns = value[:2]
            sha256 = value[2] if len(value) == 3 else None
            numbers = type(n_bytes) is int and type(modified_ns) is int and n_bytes >= 0
            if numbers and (len(value) == 2 or _SHA256.fullmatch(str(sha256))):
                return cls(n_bytes, modified_ns, sha256)
        raise ValueError(f"{value!r} is no stamp of a file: [bytes, ns] or [bytes, ns, sha256]")


def stamp_of(paths: Iterable[str | Path], *, digest: bool = False) -> Stamp | None:
    """Look at the files of an item.

    Args:
        paths: Its files and folders. Of a folder all files count, those of its folders too; names
            that begin with `.` do not, as systems and programs leave such behind.
        digest: Whether to read them all.

    Returns:
        The stamp; None where one of the paths is missing or cannot be looked at. Its sha256 is that
        of the file where there is only one; of several, and of a folder, that of the lines
        `<sha256>  <name>`, each with a newline behind, in order of the names. A name is relative to
        the folder, so that an item may move; where there are several paths, the number of its path,
        from 0, and `/` stand before it. None where a file cannot be read.
    """
    listed = [os.fspath(path) for path in paths]
    n_bytes, newest = 0, None
    found: list[tuple[str, str]] = []
    try:
        for number, path in enumerate(listed):
            for name, file, status in _files(path):
                n_bytes += status.st_size
                newest = max(newest or status.st_mtime_ns, status.st_mtime_ns)
                if digest:
                    found.append((name if len(listed) == 1 else _joined(str(number), name), file))
            if newest is None:  # an empty folder
                newest = os.stat(path).st_mtime_ns
    except OSError:
        return None
    if newest is None:
        return None
    return Stamp(n_bytes, newest, _sha256(found) if digest else None)


def _files(path: str) -> Iterator[tuple[str, str, os.stat_result]]:
    """Yield (name within `path`, path, status) of a file, or of all files in a folder."""
    status = os.stat(path)
    if not stat.S_ISDIR(status.st_mode):
        yield "", path, status
        return
    for folder, folders, names in os.walk(path, onerror=_raise):
        folders[:] = [name for name in folders if not name.startswith(".")]
        within = os.path.relpath(folder, path)
        for name in names:
            if name.startswith("."):
                continue
            file = f"{folder}/{name}"
            try:
                status = os.stat(file)
            except FileNotFoundError:  # a link that leads nowhere
                continue
            yield (name if within == "." else _joined(within, name)), file, status


def _joined(folder: str, name: str) -> str:
    return f"{folder.replace(os.sep, '/')}/{name}" if name else folder


def _raise(error: OSError) -> None:
    raise error


def _sha256(found: Sequence[tuple[str, str]]) -> str | None:
    try:
        digests = sorted((name, _file_sha256(path)) for name, path in found)
    except OSError:
        return None
    if len(digests) == 1 and digests[0][0] == "":
        return digests[0][1]
    lines = "".join(f"{digest}  {name}\n" for name, digest in digests)
    return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()


def _file_sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
