"""Folders of SSH servers, by SFTP. See docs/sharing.md.

A file is written under a temporary name, flushed to the server's disk where the server offers that
(OpenSSH does), and renamed: it is whole or absent. What a lost connection cut is tried again.
"""

import contextlib
import os
import posixpath
import stat
import threading
import time
import uuid
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeVar
from urllib.parse import quote, unquote, urlsplit

from dinocache.durable import PARTIAL_SUFFIX
from dinocache.errors import RequestError, StoreError, StoreWriteError
from dinocache.folders import MOST_WHOLE, Entry, Folder, Listing, check_inside, check_size
from dinocache.ssh import (
    Address,
    Connection,
    DeniedError,
    LostError,
    connect,
    printable,
    require_paramiko,
)

__all__ = ["SftpFolder"]

T = TypeVar("T")

_SESSIONS = 8
"""Of one connection; OpenSSH allows 10."""
_TRIES = 8
_FIRST_TRIES = 5
"""Where no connection ever came about: then it is rather the address that is wrong."""
_LEFT_ALONE_S = 0.5
"""After a connection that failed."""
_READS = 2
"""Of a file that is not whole: what comes over SSH is what lies there."""
_PAUSE_S = 0.05
"""Before the second try; doubled each time."""
_ANSWER_S = 120.0
_IN_FLIGHT = 64
_PIECE = 32 << 10
"""Bytes of one request: what every server must take."""
_LARGEST_PACKET = 1 << 20
_MOST_NAMES = 5_000_000

_LISTED_AT_ONCE = 8
"""Requests; each gives about 100 names."""
_NO_ATTRIBUTES = bytes(4)

# Numbers of the protocol, version 3 (draft-ietf-secsh-filexfer-02).
_INIT, _VERSION = 1, 2
_OPEN, _CLOSE, _READ, _WRITE, _LSTAT, _FSTAT = 3, 4, 5, 6, 7, 8
_OPENDIR, _READDIR, _REMOVE, _MKDIR, _STAT, _RENAME = 11, 12, 13, 14, 17, 18
_STATUS, _HANDLE, _DATA, _NAME, _ATTRS, _EXTENDED = 101, 102, 103, 104, 105, 200
_OK, _EOF, _NO_SUCH_FILE, _PERMISSION_DENIED, _FAILURE, _UNSUPPORTED = 0, 1, 2, 3, 4, 8
_FOR_READING, _FOR_WRITING, _CREATING, _EMPTYING, _EXCLUSIVELY = 1, 2, 8, 16, 32
_FSYNC, _LINK, _REPLACE = (
    "fsync@openssh.com",
    "hardlink@openssh.com",
    "posix-rename@openssh.com",
)


class SftpFolder(Folder):
    """A folder below `ssh://[user@]host[:port]/path`, or `sftp://...`, which is the same.

    `/path` is from the root, `/~/path` from the home folder, no path is the home folder.
    `~/.ssh/config` is followed, keys are the agent's or the usual files; see `dinocache.ssh`. All
    folders of one address in a process share a connection, with a few SFTP sessions on it.

    What holds, where the server is OpenSSH's or offers the same: `replace` is atomic, `create` is
    exclusive and atomic, and a file's bytes are on the disk when the call returns (SFTP cannot
    flush a folder, so that its name is there as soon as the server's file system sees fit).
    Without `posix-rename@openssh.com` there is a moment without the file; without
    `hardlink@openssh.com` `create` is exclusive, but a connection lost meanwhile leaves a torn
    file, which reads as damaged.
    """

    def __init__(self, url: str) -> None:
        """See the class; nothing is connected yet.

        Args:
            url: Of the folder.

        Raises:
            RequestError: If the URL is no good, or paramiko is not installed.
        """
        require_paramiko()
        self._address = Address.from_url(url)
        self._root = _path_of(url, self._address)
        self._line = _line_to(self._address)

    def __str__(self) -> str:
        return f"ssh://{self._address}{self._shown_path}"

    def __reduce__(self) -> tuple[Any, ...]:
        return SftpFolder, (f"ssh://{self._address.with_password}{self._shown_path}",)

    @property
    def _shown_path(self) -> str:
        path = self._root if self._root.startswith("/") else f"/~/{self._root}"
        return quote(path.rstrip("/") or "/", safe="/~")

    def within(self, name: str) -> "SftpFolder":
        """See `Folder`."""
        inner = SftpFolder.__new__(SftpFolder)
        inner.__dict__ |= self.__dict__ | {"_root": self._path(name.strip("/"))}
        return inner

    def read(
        self,
        name: str,
        is_whole: Callable[[bytes], bool] | None = None,
        *,
        most: int = MOST_WHOLE,
    ) -> bytes:
        """See `Folder`."""

        def get(session: _Session) -> bytes:
            with session.open(self._path(name), _FOR_READING) as handle:
                size = session.size_of(handle)
                check_size(f"{self}/{name}", size, most)
                return session.read(handle, 0, size)

        return self._until_whole(name, get, is_whole)

    def read_range(
        self, name: str, start: int, stop: int, is_whole: Callable[[bytes], bool] | None = None
    ) -> bytes:
        """See `Folder`."""

        def get(session: _Session) -> bytes:
            with session.open(self._path(name), _FOR_READING) as handle:
                content = session.read(handle, start, stop)
            if len(content) != stop - start:
                raise StoreError(
                    f"{self}/{name} has {len(content)} of the {stop - start} bytes behind byte "
                    f"{start}; copy it again from where the store came from"
                )
            return content

        return self._until_whole(name, get, is_whole) if stop > start else b""

    def size(self, name: str) -> int | None:
        """See `Folder`."""
        try:
            found = self._ask(name, lambda session: session.stat(self._path(name)))
        except FileNotFoundError:
            return None
        return found.bytes if found.is_file else None

    def list(self, name: str = "") -> Listing:
        """See `Folder`."""
        files, folders = {}, []
        for entry in self._ask(name, lambda session: _list(session, self._path(name))):
            if entry.leads_to_folder:
                folders.append(entry.name)
            else:
                files[entry.name] = _entry(entry, entry.name)
        return Listing(files=files, folders=tuple(folders))

    def walk(self, name: str = "") -> Iterator[Entry]:
        """See `Folder`; a link is listed as a file, whatever it leads to."""
        for entry in self._ask(name, lambda session: _list(session, self._path(name))):
            inner = f"{name}/{entry.name}".lstrip("/")
            if entry.is_folder:
                yield from self.walk(inner)
            else:
                yield _entry(entry, inner)

    def replace(self, name: str, content: bytes | memoryview) -> None:
        """See `Folder`."""
        path = self._path(name)
        partial = _partial(path)  # the same at each try, so that none is left over

        def put(session: _Session) -> None:
            with session.written(partial, content):
                session.rename(partial, path)

        self._ask(name, put, writes=True)

    def keep(self, name: str, content: bytes) -> None:
        """See `Folder`."""
        try:
            same = self.size(name) == len(content) and self.read(name) == content
        except FileNotFoundError:
            same = False
        if not same:
            self.replace(name, content)

    def create(self, name: str, content: bytes) -> bool:
        """See `Folder`; what guarantees hold depends on the server, see the class."""
        path = self._path(name)
        partial, begun = _partial(path), _Begun()

        def put(session: _Session) -> bool:
            if _LINK in session.offers:
                with session.written(partial, content):
                    if session.try_link(partial, path):
                        return True
                    if session.exists(path):
                        return False
            return session.write_exclusively(path, content, begun)

        if self._ask(name, put, writes=True):
            return True
        # The answer to a first try may have been lost: then what is there is ours.
        return self.size(name) == len(content) and self.read(name) == content

    def remove(self, name: str) -> None:
        """See `Folder`."""
        with contextlib.suppress(FileNotFoundError):
            self._ask(name, lambda session: session.remove(self._path(name)), writes=True)

    def _path(self, name: str) -> str:
        """Give the path on the server of a name in it; "" is the home folder."""
        return posixpath.join(self._root, check_inside(name)).rstrip("/") or self._root

    def _until_whole(
        self,
        name: str,
        get: "Callable[[_Session], bytes]",
        is_whole: Callable[[bytes], bool] | None,
    ) -> bytes:
        for _ in range(_READS):
            content = self._ask(name, get)
            if is_whole is None or is_whole(content):
                break
        return content

    def _ask(self, name: str, request: "Callable[[_Session], T]", *, writes: bool = False) -> T:
        """Make requests in one session, again from the start where the connection was lost."""
        what = f"{self}/{name}".rstrip("/")
        refused: type[StoreError] = StoreWriteError if writes else StoreError
        failed = f"cannot {'write' if writes else 'read'} {what}"
        attempt = 0
        while True:
            try:
                with self._line.session() as session:
                    return request(session)
            except _StatusError as exc:
                if exc.code == _NO_SUCH_FILE and not writes:
                    raise FileNotFoundError(2, "no such file", what) from None
                raise refused(f"{failed}: the server says {exc}{exc.way_out}") from None
            except FileNotFoundError:
                raise FileNotFoundError(2, "no such file", what) from None
            except DeniedError as exc:
                raise refused(f"{failed}: {exc}") from None
            except LostError as exc:
                attempt += 1
                if attempt >= (_TRIES if self._line.was_up else _FIRST_TRIES):
                    raise refused(
                        f"{failed}: {exc}; see whether the server answers, then run the same "
                        "command again"
                    ) from None
                time.sleep(_PAUSE_S * 2 ** (attempt - 1))


@dataclass(frozen=True, kw_only=True)
class _Found:
    """What a server says of a file; of a link where it says so."""

    name: str
    bytes: int
    mode: int
    modified: float
    leads_to_folder: bool = False

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.mode)

    @property
    def is_folder(self) -> bool:
        return stat.S_ISDIR(self.mode)


@dataclass
class _Begun:
    """Whether a file stands under its own name that this call began to write."""

    ours: bool = False


class _StatusError(Exception):
    """A server answered that it does not do what was asked."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(printable(Exception(text or f"status {code}")))
        self.code = code

    @property
    def way_out(self) -> str:
        """For the message."""
        if self.code == _PERMISSION_DENIED:
            return "; choose another folder, or ask for access"
        return "; see that the folder is there, can be used, and has room"


class _Answer:
    """The body of an answer, taken apart from its beginning."""

    def __init__(self, content: bytes) -> None:
        self._rest = memoryview(content)

    def take(self, n: int) -> bytes:
        if n > len(self._rest):
            raise LostError("the server's answer is no SFTP")
        taken, self._rest = self._rest[:n], self._rest[n:]
        return bytes(taken)

    def number(self) -> int:
        return int.from_bytes(self.take(4), "big")

    def string(self) -> bytes:
        return self.take(self.number())

    def __bool__(self) -> bool:
        return bool(self._rest)

    def found(self, name: str) -> _Found:
        """Take the attributes of a file."""
        flags, size, mode, modified = self.number(), -1, 0, 0
        if flags & 1:
            size = int.from_bytes(self.take(8), "big")
        if flags & 2:
            self.take(8)  # owner and group
        if flags & 4:
            mode = self.number()
        if flags & 8:
            self.take(4)
            modified = self.number()
        if flags & 0x80000000:
            for _ in range(self.number()):
                self.string()
                self.string()
        is_folder = stat.S_ISDIR(mode)
        return _Found(
            name=name, bytes=size, mode=mode, modified=modified, leads_to_folder=is_folder
        )

    def status(self) -> _StatusError:
        """Take what a server says of a request that gives nothing else."""
        code = self.number()
        return _StatusError(code, self.string().decode("utf-8", "replace") if self else "")


class _Session:
    """Requests and answers of SFTP over one channel, for one thread at a time.

    Attributes:
        offers: Extensions that the server has.
        broken: Whether an answer is owed that may never come.
    """

    def __init__(self, channel: Any) -> None:  # noqa: ANN401 - paramiko's
        self._channel = channel
        channel.settimeout(_ANSWER_S)
        self._number = 0
        self.offers: set[str] = set()
        self._put(_INIT, _number(3))
        kind, answer = self._get()
        if kind != _VERSION:
            raise LostError("the server's answer is no SFTP")
        answer.number()
        while answer:
            self.offers.add(answer.string().decode("utf-8", "replace"))
            answer.string()

    # Files

    @contextlib.contextmanager
    def open(self, path: str, flags: int) -> "Iterator[bytes]":
        """Open a file; gives its handle."""
        parts = _string(path), _number(flags), _NO_ATTRIBUTES
        opened = self._ask(_OPEN, *parts, wants=_HANDLE).string()
        try:
            yield opened
        finally:
            with contextlib.suppress(LostError, _StatusError, OSError):  # the first error counts
                self._ask(_CLOSE, _string(opened))

    def size_of(self, handle: bytes) -> int:
        """Say how many bytes an open file has."""
        return self._ask(_FSTAT, _string(handle), wants=_ATTRS).found("").bytes

    def stat(self, path: str) -> _Found:
        """Look at a file, or at what a link leads to."""
        return self._ask(_STAT, _string(path), wants=_ATTRS).found("")

    def exists(self, path: str) -> bool:
        """Tell whether a name is taken."""
        try:
            self._ask(_LSTAT, _string(path), wants=_ATTRS)
        except _StatusError as exc:
            if exc.code != _NO_SUCH_FILE:
                raise
            return False
        return True

    def read(self, handle: bytes, start: int, stop: int) -> bytes:
        """Read a range, with many requests in flight; fewer bytes where the file ends before."""
        content = bytearray(stop - start)
        wanted = deque((at, min(_PIECE, stop - at)) for at in range(start, stop, _PIECE))
        while wanted:
            asked = [((at, n), (_string(handle), _number(at, 8), _number(n))) for at, n in wanted]
            wanted.clear()
            for (at, n), kind, answer in self._in_flight(_READ, asked):
                if kind == _DATA:
                    piece = answer.string()
                    if not 0 < len(piece) <= n:
                        raise LostError("the server's answer is no SFTP")
                    content[at - start : at - start + len(piece)] = piece
                    if len(piece) < n:
                        wanted.append((at + len(piece), n - len(piece)))
                elif (status := answer.status()).code == _EOF:
                    stop = min(stop, at)
                else:
                    raise status
        del content[max(stop - start, 0) :]
        return bytes(content)

    def write(self, handle: bytes, content: bytes | memoryview) -> None:
        """Write a file from its beginning, with many requests in flight, and flush it."""
        view = memoryview(content).cast("B")
        asked = (
            (at, (_string(handle), _number(at, 8), _string(bytes(view[at : at + _PIECE]))))
            for at in range(0, len(view), _PIECE)
        )
        for _, _, answer in self._in_flight(_WRITE, asked):
            if (status := answer.status()).code != _OK:
                raise status
        if _FSYNC in self.offers:
            self._ask(_EXTENDED, _string(_FSYNC), _string(handle))

    @contextlib.contextmanager
    def written(self, partial: str, content: bytes | memoryview) -> Iterator[None]:
        """Have a file under a temporary name, which is gone afterwards."""
        try:
            with self._open_to_write(partial, _EMPTYING) as handle:
                self.write(handle, content)
            yield
        finally:
            # One that stays is never read, and the first error is the one to tell of.
            with contextlib.suppress(LostError, _StatusError, OSError):
                self.remove(partial)

    def write_exclusively(self, path: str, content: bytes, begun: _Begun) -> bool:
        """Write a file under its own name, unless one is there that this call did not begin."""
        if begun.ours:
            with contextlib.suppress(FileNotFoundError):
                self.remove(path)
        try:
            with self._open_to_write(path, _EXCLUSIVELY) as handle:
                begun.ours = True
                self.write(handle, content)
        except _StatusError:
            if not begun.ours and self.exists(path):
                return False
            if begun.ours:
                self.remove(path)
            raise
        return True

    def try_link(self, partial: str, path: str) -> bool:
        """Give a file a second name, if that is not taken and the server's disk allows it."""
        try:
            self._ask(_EXTENDED, _string(_LINK), _string(partial), _string(path))
        except _StatusError:
            return False
        return True

    def rename(self, partial: str, path: str) -> None:
        """Give a file another name, also one that is taken."""
        if _REPLACE in self.offers:
            self._ask(_EXTENDED, _string(_REPLACE), _string(partial), _string(path))
            return
        with contextlib.suppress(_StatusError):
            self._ask(_RENAME, _string(partial), _string(path))
            return
        self.remove(path)
        self._ask(_RENAME, _string(partial), _string(path))

    def remove(self, path: str) -> None:
        """Remove a file."""
        try:
            self._ask(_REMOVE, _string(path))
        except _StatusError as exc:
            if exc.code == _NO_SUCH_FILE:
                raise FileNotFoundError from None
            raise

    @contextlib.contextmanager
    def _open_to_write(self, path: str, flag: int) -> "Iterator[bytes]":
        flags = _FOR_WRITING | _CREATING | flag
        with contextlib.ExitStack() as opened:
            try:
                handle = opened.enter_context(self.open(path, flags))
            except _StatusError as exc:
                if exc.code != _NO_SUCH_FILE:
                    raise
                self._make_folder(posixpath.dirname(path))
                handle = opened.enter_context(self.open(path, flags))
            yield handle

    def _make_folder(self, path: str) -> None:
        try:
            self._ask(_MKDIR, _string(path), _NO_ATTRIBUTES)
        except _StatusError as exc:
            if exc.code == _NO_SUCH_FILE and posixpath.dirname(path) not in ("", "/", path):
                self._make_folder(posixpath.dirname(path))
                self._make_folder(path)
            elif not self.stat(path).is_folder:  # another thread may have been first
                raise

    def leads_to_folder(self, path: str) -> bool:
        """Tell whether a path is a folder's, or that of a link to one."""
        try:
            return self.stat(path).is_folder
        except _StatusError:
            return False

    def names(self, path: str) -> "list[_Found]":
        """List a folder, links as such."""
        handle = self._ask(_OPENDIR, _string(path), wants=_HANDLE).string()
        found: dict[str, _Found] = {}
        more = True
        try:
            while more:
                for _, kind, answer in self._in_flight(
                    _READDIR, [(0, (_string(handle),))] * _LISTED_AT_ONCE
                ):
                    if kind == _NAME:
                        found |= self._names(answer)
                    elif (status := answer.status()).code == _EOF:
                        more = False
                    else:
                        raise status
                if len(found) > _MOST_NAMES:
                    raise StoreError(f"{path} has more than {_MOST_NAMES} names")
        finally:
            with contextlib.suppress(LostError, _StatusError, OSError):
                self._ask(_CLOSE, _string(handle))
        return [found[name] for name in sorted(found)]

    def _names(self, answer: _Answer) -> dict[str, _Found]:
        found = {}
        for _ in range(answer.number()):
            name = answer.string().decode("utf-8", "surrogateescape")
            answer.string()
            one = answer.found(name)
            if name not in ("", ".", "..") and "/" not in name and "\0" not in name:
                found[name] = one
        return found

    # Requests and answers

    def _ask(self, kind: int, *parts: bytes, wants: int = _STATUS) -> _Answer:
        """Make one request; gives its answer, if it is of the kind that is wanted."""
        [(_, came, answer)] = self._in_flight(kind, [(None, parts)])
        if came == _STATUS:
            status = answer.status()
            if wants != _STATUS or status.code != _OK:
                raise status
        elif came != wants:
            raise LostError("the server's answer is no SFTP")
        return answer

    def _in_flight(
        self, kind: int, requests: Iterable[tuple[T, tuple[bytes, ...]]]
    ) -> Iterator[tuple[T, int, _Answer]]:
        """Make requests, many of them before the first is answered.

        Args:
            kind: Of all of them.
            requests: (what it is, its parts).

        Yields:
            (what it is, kind of its answer, answer), as they come.
        """
        waiting: dict[int, T] = {}
        for what, parts in requests:
            if len(waiting) >= _IN_FLIGHT:
                yield self._next(waiting)
            self._number = (self._number + 1) & 0xFFFFFFFF
            waiting[self._number] = what
            self._put(kind, _number(self._number) + b"".join(parts))
        while waiting:
            yield self._next(waiting)

    def _next(self, waiting: dict[int, T]) -> tuple[T, int, _Answer]:
        """Take the next answer that is waited for; one of a request given up is passed over."""
        while True:
            kind, answer = self._get()
            if (number := answer.number()) in waiting:
                return waiting.pop(number), kind, answer

    def _put(self, kind: int, content: bytes) -> None:
        try:
            self._channel.sendall(_number(len(content) + 1) + bytes([kind]) + content)
        except Exception as exc:  # OSError, EOFError, or one of paramiko's own
            raise LostError(f"the connection broke ({printable(exc)})") from None

    def _get(self) -> tuple[int, _Answer]:
        length = int.from_bytes(self._receive(4), "big")
        if not 0 < length <= _LARGEST_PACKET:
            raise LostError("the server's answer is no SFTP; does its login script print something")
        content = self._receive(length)
        return content[0], _Answer(content[1:])

    def _receive(self, n: int) -> bytes:
        pieces: list[bytes] = []
        while n:
            try:
                piece = self._channel.recv(n)
            except Exception as exc:
                raise LostError(f"the connection broke ({printable(exc)})") from None
            if not piece:
                raise LostError("the connection broke")
            pieces.append(piece)
            n -= len(piece)
        return b"".join(pieces)

    def close(self) -> None:
        """End the session."""
        with contextlib.suppress(Exception):  # the connection may be gone
            self._channel.close()


class _Line:
    """The connection to one address, made anew when it is lost, and the sessions on it.

    Attributes:
        was_up: Whether there ever was a connection.
    """

    def __init__(self, address: Address) -> None:
        self._address = address
        self._changed = threading.Condition()
        self._opening = threading.Lock()
        self._connection: Connection | None = None
        self._idle: list[_Session] = []
        self._open = 0
        self._most = _SESSIONS
        self._failure: DeniedError | LostError | None = None
        self._failed_at = 0.0
        self.was_up = False

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # Python may be ending
            if self._connection is not None:
                self._connection.close()

    @contextlib.contextmanager
    def session(self) -> Iterator[_Session]:
        """Have a session for oneself; waits where all are in use.

        Raises:
            DeniedError: If there cannot be a connection.
            LostError: If there is none this time.
        """
        connection, session = self._take()
        try:
            yield session
        except (_StatusError, FileNotFoundError, StoreError):
            self._give_back(connection, session)
            raise
        except LostError:
            with self._changed:
                self._drop(connection)
            raise
        except BaseException:  # between request and answer: the session is of no more use
            session.close()
            self._give_back(connection, None)
            raise
        else:
            self._give_back(connection, session)

    def _take(self) -> tuple[Connection, _Session]:
        while True:
            with self._changed:
                connection = self._connected()
                if self._idle:
                    return connection, self._idle.pop()
                if self._open >= self._most:
                    self._changed.wait()
                    continue
                self._open += 1
            try:
                return connection, _Session(self._open_channel(connection))
            except _NoMoreError as exc:
                with self._changed:
                    if connection is self._connection:
                        self._open -= 1
                        if not self._open:
                            raise DeniedError(str(exc)) from None
                        self._most = self._open
            except BaseException:
                with self._changed:
                    self._drop(connection)
                raise

    def _open_channel(self, connection: Connection) -> Any:  # noqa: ANN401 - paramiko's
        import paramiko

        try:
            with self._opening:  # of two that fail at once, paramiko tells one of them nothing
                channel = connection.transport.open_session(timeout=_ANSWER_S)
        except paramiko.ChannelException as exc:
            raise _NoMoreError(f"{self._address} allows no session ({printable(exc)})") from None
        except (paramiko.SSHException, OSError, EOFError) as exc:
            raise LostError(printable(exc)) from None
        try:
            channel.invoke_subsystem("sftp")
        except (paramiko.SSHException, OSError, EOFError) as exc:
            raise LostError(f"no SFTP session came about ({printable(exc)})") from None
        return channel

    def _connected(self) -> Connection:
        if self._connection is not None and not self._connection.is_alive:
            self._drop(self._connection)
        if self._connection is None:
            # Those who waited meanwhile do not all knock again: servers lock out who does.
            if self._failure is not None and time.monotonic() - self._failed_at < _LEFT_ALONE_S:
                raise type(self._failure)(*self._failure.args)
            try:
                self._connection = connect(self._address)
            except (DeniedError, LostError) as exc:
                self._failure, self._failed_at = exc, time.monotonic()
                raise
            self._failure, self.was_up = None, True
        return self._connection

    def _drop(self, connection: Connection) -> None:
        if connection is self._connection:
            self._connection, self._idle, self._open = None, [], 0
            self._changed.notify_all()
        connection.close()

    def _give_back(self, connection: Connection, session: _Session | None) -> None:
        with self._changed:
            if connection is not self._connection:
                return
            if session is None:
                self._open -= 1
            else:
                self._idle.append(session)
            self._changed.notify()


class _NoMoreError(Exception):
    """A server allows no further session."""


_lines: "weakref.WeakValueDictionary[tuple[int, Address], _Line]" = weakref.WeakValueDictionary()
_lines_lock = threading.Lock()


def _line_to(address: Address) -> _Line:
    """Give the connection that all folders of an address share, in this process."""
    with _lines_lock:
        key = os.getpid(), address
        line = _lines.get(key)
        if line is None:
            _lines[key] = line = _Line(address)
        return line


def _path_of(url: str, address: Address) -> str:
    """Take the path on the server from a URL; relative, or "", is below the home folder."""
    parts = urlsplit(url)
    path = unquote(parts.path)
    if parts.query or parts.fragment or "\0" in path:
        raise RequestError(f"ssh://{address}{parts.path}: in a path write %3F for ?, %23 for #")
    if path in ("", "/~") or path.startswith("/~/"):
        return path[3:].strip("/")
    if path.startswith("/~"):
        raise RequestError(
            f"ssh://{address}{parts.path}: only your own home folder is known (/~/...); write the "
            "whole path of another's"
        )
    return f"/{path.strip('/')}"


def _list(session: _Session, path: str) -> list[_Found]:
    """List a folder, nothing where there is none; says of links whether they lead to one."""
    try:
        names = session.names(path or ".")
    except _StatusError as exc:
        if exc.code == _NO_SUCH_FILE or not session.leads_to_folder(path or "."):
            return []
        raise
    return [
        replace(one, leads_to_folder=session.leads_to_folder(posixpath.join(path, one.name)))
        if stat.S_ISLNK(one.mode)
        else one
        for one in names
    ]


def _entry(found: _Found, name: str) -> Entry:
    return Entry(name=name, bytes=found.bytes, modified=found.modified)


def _partial(path: str) -> str:
    folder, name = posixpath.split(path)
    return posixpath.join(folder, f".{name}.{uuid.uuid4().hex}{PARTIAL_SUFFIX}")


def _number(value: int, n_bytes: int = 4) -> bytes:
    return value.to_bytes(n_bytes, "big")


def _string(value: str | bytes) -> bytes:
    """Write text or a handle with its length before it."""
    content = value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value
    return _number(len(content)) + content
