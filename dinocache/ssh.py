"""Connections to SSH servers, as a person's own `ssh` makes them, through paramiko.

`~/.ssh/config` says how to reach a host; keys come from the agent and from `~/.ssh`. A host whose
key is not in `known_hosts`, or is another than that, is refused. Nothing is ever asked.
"""

import base64
import contextlib
import fnmatch
import getpass
import hashlib
import hmac
import logging
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from dinocache.errors import RequestError, one_line

__all__ = [
    "Address",
    "Connection",
    "DeniedError",
    "LostError",
    "connect",
    "printable",
    "require_paramiko",
]

_HOST = re.compile(r"(?!-)[A-Za-z0-9_.:-]+")
_USER = re.compile(r"(?!-)[A-Za-z0-9_.+@-]+")
"""Neither may look like an option of a ProxyCommand, or like a piece of shell."""
_SYSTEM_CONFIG = Path("/etc/ssh/ssh_config")
_KNOWN_HOSTS = ("~/.ssh/known_hosts", "~/.ssh/known_hosts2")
_SYSTEM_KNOWN_HOSTS = ("/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2")
_LARGEST_TEXT = 16 << 20
_DEEPEST = 8
"""Files that include each other, and hosts behind each other."""
_CONNECT_S = 30.0
_ANSWER_S = 60.0
_ALIVE_S = 15
"""Between signs of life, so that a connection that is gone is noticed."""


class DeniedError(Exception):
    """The connection will not come about however often it is tried; the message is whole."""


class LostError(Exception):
    """The connection broke, or did not come about this time."""


@dataclass(frozen=True)
class Address:
    """Whom to reach, as a URL says it; `str` leaves the password out.

    Attributes:
        host: A name, an address, or an alias of `~/.ssh/config`.
        port: None leaves it to `~/.ssh/config`, then 22.
        user: None leaves it to `~/.ssh/config`, then the local user.
        password: None where keys prove who asks.
    """

    host: str
    port: int | None = None
    user: str | None = None
    password: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        user = f"{self.user}@" if self.user else ""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{user}{host}{f':{self.port}' if self.port else ''}"

    @property
    def with_password(self) -> str:
        """As a part of a URL, for another process; never to be shown."""
        if self.password is None:
            return str(self)
        user, host = str(self).rpartition("@")[::2]
        return f"{user}:{quote(self.password, safe='')}@{host}"

    @classmethod
    def from_url(cls, url: str) -> "Address":
        """Take it from a URL, `ssh://[user[:password]@]host[:port]/path`.

        Args:
            url: The whole URL.

        Raises:
            RequestError: If it names no host, or a part has characters that none has.
        """
        try:
            parts = urlsplit(url)
            # urlsplit writes names in small letters; an alias may have others.
            host = re.sub(r":\d*$", "", parts.netloc.rpartition("@")[2]).strip("[]")
            port = parts.port
        except ValueError as exc:
            raise RequestError(f"{_bare(url)}: {exc}") from None
        user = unquote(parts.username) if parts.username else None
        if not _HOST.fullmatch(host) or (user is not None and not _USER.fullmatch(user)):
            raise RequestError(
                f"{_bare(url)}: expected ssh://[user@]host[:port]/path with a plain host and user"
            )
        password = unquote(parts.password) if parts.password else None
        return cls(host, port, user, password)


@dataclass
class Connection:
    """A connection that both sides have proven themselves on.

    Attributes:
        transport: Of paramiko.
    """

    transport: Any
    _closing: contextlib.ExitStack

    def open(self, host: str, port: int) -> Any:  # noqa: ANN401 - a channel, which is like a socket
        """Reach another host from this one; raises `LostError` if that does not come about."""
        paramiko = require_paramiko()
        try:
            return self.transport.open_channel(
                "direct-tcpip", (host, port), ("127.0.0.1", 0), timeout=_ANSWER_S
            )
        except (paramiko.SSHException, OSError, EOFError) as exc:
            raise LostError(f"{host} port {port}, from the host before: {printable(exc)}") from None

    @property
    def is_alive(self) -> bool:
        """Whether it still stands, as far as is known."""
        return bool(self.transport.is_active())

    def close(self) -> None:
        """Close it, and those it leads through."""
        with contextlib.suppress(Exception):  # whatever is left of a broken one
            self._closing.close()


@dataclass(frozen=True, kw_only=True)
class _Route:
    """What the configuration makes of an address."""

    address: Address
    host: str
    port: int
    user: str
    key_files: tuple[str, ...]
    uses_agent: bool
    jumps: tuple[Address, ...]
    command: str | None
    known_as: tuple[str, ...]
    """Names of the host in `known_hosts`, the first one that any line has counts."""
    known_hosts: tuple[Path, ...]
    connect_s: float


def connect(address: Address, *, through: Connection | None = None, depth: int = 0) -> Connection:
    """Connect to a server and prove who asks.

    Args:
        address: Whose.
        through: A host to go through, in place of what the configuration says.
        depth: How many hosts lie behind it.

    Returns:
        The connection.

    Raises:
        RequestError: If paramiko is not installed, or `~/.ssh/config` cannot be understood.
        DeniedError: If the host's key is not the known one, or the host does not take ours.
        LostError: If the host could not be reached this time.
    """
    paramiko = require_paramiko()
    route = _route(paramiko, address)
    if depth > _DEEPEST:
        raise DeniedError(
            f"{address}: its ProxyJump goes over more than {_DEEPEST} hosts, or in a circle; "
            "correct ~/.ssh/config"
        )
    keys = _HostKeys(route)

    def transport_of(sock: Any, **options: Any) -> Any:  # noqa: ANN401 - paramiko's
        transport = paramiko.Transport(sock, **options)
        keys.prefer_known(transport.get_security_options())
        return transport

    with contextlib.ExitStack() as closing:
        sock = through.open(route.host, route.port) if through else _reach(route, closing, depth)
        closing.callback(sock.close)
        client = paramiko.SSHClient()
        closing.callback(client.close)
        client.set_missing_host_key_policy(keys)
        try:
            client.connect(
                route.host,
                username=route.user,
                password=address.password,
                key_filename=list(route.key_files),
                allow_agent=route.uses_agent,
                look_for_keys=not route.key_files,
                sock=sock,
                timeout=route.connect_s,
                banner_timeout=route.connect_s,
                auth_timeout=_ANSWER_S,
                channel_timeout=_ANSWER_S,
                transport_factory=transport_of,
            )
        except (paramiko.SSHException, OSError, EOFError, ValueError) as exc:
            raise _explained(paramiko, route, client, exc) from None
        transport = client.get_transport()
        transport.set_keepalive(_ALIVE_S)
        return Connection(transport, closing.pop_all())
    raise AssertionError


def _explained(paramiko: Any, route: _Route, client: Any, exc: Exception) -> Exception:  # noqa: ANN401 - untyped
    """Say why a connection failed: for good, or this time."""
    transport = client.get_transport()
    at_the_door = transport is not None and transport.is_active() and transport.initial_kex_done
    if at_the_door or isinstance(exc, paramiko.AuthenticationException):
        return DeniedError(
            f"{route.address} does not let {route.user!r} in ({printable(exc)}); see that "
            f"`ssh {_option(route.address)}` works without a question: add the key with "
            "`ssh-copy-id`, and unlock it with `ssh-add`"
        )
    return LostError(printable(exc))


def _reach(route: _Route, closing: contextlib.ExitStack, depth: int) -> Any:  # noqa: ANN401 - or a channel
    """Reach a host: right away, through other hosts, or by a command."""
    if route.command is not None:
        return _run_proxy(route.command, closing)
    through = None
    for jump in route.jumps:
        through = connect(jump, through=through, depth=depth + 1)
        closing.callback(through.close)
    if through is not None:
        return through.open(route.host, route.port)
    try:
        sock = socket.create_connection((route.host, route.port), route.connect_s)
    except OSError as exc:
        raise LostError(f"{route.host} port {route.port}: {printable(exc)}") from None
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # small requests follow each other
    return sock


def _run_proxy(command: str, closing: contextlib.ExitStack) -> socket.socket:
    """Run a ProxyCommand as `ssh` does; gives its standard input and output.

    It is in a session of its own: Ctrl-C is for us, who still write what is whole.
    """
    if sys.platform == "win32":
        raise DeniedError("ProxyCommand of ~/.ssh/config is not run on Windows; use ProxyJump")
    ours, its = socket.socketpair()
    with its:
        process = subprocess.Popen(
            ["/bin/sh", "-c", f"exec {command}"],
            stdin=its.fileno(),
            stdout=its.fileno(),
            start_new_session=True,
        )

    def end() -> None:
        process.terminate()
        process.wait()

    closing.callback(end)
    return ours


def _route(paramiko: Any, address: Address) -> _Route:  # noqa: ANN401 - untyped
    """Look an address up in the files of the configuration."""
    found = _lookup(paramiko, address)
    host = str(found["hostname"])
    port = int(found.get("port", 22))
    alias = found.get("hostkeyalias")
    at_port = (host,) if port == 22 else (f"[{host}]:{port}", host)
    files = [Path(name).expanduser() for name in found.get("identityfile", [])]
    way = next((key for key in found if key in ("proxyjump", "proxycommand")), None)
    value = str(found[way]) if way and found[way] not in (None, "none") else ""
    return _Route(
        address=address,
        host=host,
        port=port,
        user=str(found.get("user") or getpass.getuser()),
        key_files=tuple(str(path) for path in files if path.is_file()),
        uses_agent=found.get("identitiesonly") != "yes",
        jumps=tuple(_jumps(value)) if way == "proxyjump" else (),
        command=value if value and way == "proxycommand" else None,
        known_as=(str(alias),) if alias else tuple(name.lower() for name in at_port),
        known_hosts=tuple(
            Path(name).expanduser()
            for key, usual in (
                ("userknownhostsfile", _KNOWN_HOSTS),
                ("globalknownhostsfile", _SYSTEM_KNOWN_HOSTS),
            )
            for name in (shlex.split(found[key]) if key in found else usual)
        ),
        connect_s=float(found.get("connecttimeout", _CONNECT_S)),
    )


def _lookup(paramiko: Any, address: Address) -> dict[str, Any]:  # noqa: ANN401 - untyped
    own = Path.home() / ".ssh" / "config"
    # What is obtained first counts: the URL, then the user's file, then the system's.
    said = [
        *([f"User {address.user}"] if address.user else []),
        *([f"Port {address.port}"] if address.port else []),
        *_config_lines(own, own.parent),
        *_config_lines(_SYSTEM_CONFIG, _SYSTEM_CONFIG.parent),
    ]
    try:
        return dict(paramiko.SSHConfig.from_text("\n".join(said)).lookup(address.host))
    except (paramiko.ssh_exception.SSHException, ValueError, KeyError, ImportError) as exc:
        raise RequestError(
            f"{address}: ~/.ssh/config cannot be understood here ({printable(exc)}); correct it"
        ) from None


def _config_lines(path: Path, folder: Path, header: str = "Host *", depth: int = 0) -> list[str]:
    """Read a file of the configuration, with what it includes."""
    lines = [header]
    for line in _text(path).splitlines():
        key, value = [*re.split(r"\s*=\s*|\s+", line.strip(), maxsplit=1), ""][:2]
        if key.lower() in ("host", "match"):
            header = line
        if key.lower() != "include" or depth >= _DEEPEST:
            lines.append(line)
            continue
        for pattern in shlex.split(value):
            whole = folder / Path(pattern).expanduser()
            for inner in sorted(whole.parent.glob(whole.name)):
                lines += _config_lines(inner, folder, header, depth + 1)
        lines.append(header)
    return lines


def _text(path: Path) -> str:
    """Read a small file; nothing where there is none."""
    try:
        with path.open("rb") as file:
            return file.read(_LARGEST_TEXT).decode("utf-8", "surrogateescape")
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return ""
    except OSError as exc:
        raise RequestError(f"{path} cannot be read: {one_line(exc)}; see who owns it") from None


def _jumps(value: str) -> Iterator[Address]:
    for hop in filter(None, value.split(",")):
        yield Address.from_url(hop if hop.startswith("ssh://") else f"ssh://{hop.strip()}")


class _HostKeys:
    """Which key a host must show, by the files of known hosts; a policy of paramiko."""

    def __init__(self, route: _Route) -> None:
        self._route = route
        lines = [line for path in route.known_hosts for line in _text(path).splitlines()]
        self._keys: set[tuple[str, bytes]] = set()
        self._revoked: set[bytes] = set()
        for name in route.known_as:
            for line in lines:
                self._take(line, name)
            if self._keys:
                break

    def _take(self, line: str, name: str) -> None:
        """Note what a line says of a host, if it does: `[@marker] names type key [comment]`."""
        marker, words = "", line.split()
        if words and words[0].startswith("@"):
            marker, *words = words
        if len(words) < 3 or words[0].startswith("#") or not _names(words[0], name):
            return
        try:
            key = base64.b64decode(words[2], validate=True)
        except ValueError:
            return
        if marker == "@revoked":
            self._revoked.add(key)
        elif not marker:
            self._keys.add((words[1], key))

    def prefer_known(self, options: Any) -> None:  # noqa: ANN401 - paramiko's SecurityOptions
        """Ask for a key of a type that is known: hosts have several."""
        known = {kind for kind, _ in self._keys}
        if "ssh-rsa" in known:
            known |= {"rsa-sha2-512", "rsa-sha2-256"}
        options.key_types = sorted(options.key_types, key=lambda kind: kind not in known)

    def missing_host_key(self, client: object, hostname: str, key: Any) -> None:  # noqa: ANN401 - paramiko's
        """Called with the key that a host shows; paramiko itself was told of none."""
        shown, name = (key.get_name(), key.asbytes()), self._route.known_as[0]
        if shown in self._keys and shown[1] not in self._revoked:
            return
        is_key, login = f"{shown[0]} {_fingerprint(shown[1])}", _option(self._route.address)
        if not self._keys and shown[1] not in self._revoked:
            raise DeniedError(
                f"{self._route.address}: {name} is not in known_hosts; it shows {is_key}. Connect "
                f"once with `ssh {login}`, compare that key with what its administrator says, and "
                "run the same command again"
            )
        known = ", ".join(sorted(f"{kind} {_fingerprint(known)}" for kind, known in self._keys))
        raise DeniedError(
            f"{self._route.address}: {name} shows another key, {is_key}, than known_hosts has "
            f"({known or 'it is revoked'}): somebody may stand between. Ask its administrator; if "
            f"the new key is right, remove the old one with `ssh-keygen -R {shlex.quote(name)}` "
            f"and connect once with `ssh {login}`"
        )


def _names(patterns: str, name: str) -> bool:
    """Tell whether the first word of a line of known hosts is about a host."""
    if patterns.startswith("|1|"):
        try:
            salt, digest = (base64.b64decode(part) for part in patterns[3:].split("|"))
        except ValueError:
            return False
        return hmac.compare_digest(hmac.digest(salt, name.encode(), "sha1"), digest)
    found = False
    for pattern in patterns.lower().split(","):
        # A bracket is one here, and no set of characters.
        escaped = pattern.removeprefix("!").replace("[", "[[]")
        if fnmatch.fnmatchcase(name.lower(), escaped):
            if pattern.startswith("!"):
                return False
            found = True
    return found


def _fingerprint(key: bytes) -> str:
    """Write a key as `ssh` does."""
    return f"SHA256:{base64.b64encode(hashlib.sha256(key).digest()).decode().rstrip('=')}"


def _option(address: Address) -> str:
    """Write an address as the arguments of `ssh`."""
    user = f"{address.user}@" if address.user else ""
    return f"{f'-p {address.port} ' if address.port else ''}{user}{address.host}"


def printable(exc: BaseException) -> str:
    """Say in one line what went wrong, without what would move a terminal's cursor."""
    return "".join(c if c.isprintable() else "?" for c in one_line(exc))


def _bare(url: str) -> str:
    """Leave out of a URL that cannot be parsed all that may be secret."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"


def require_paramiko() -> Any:  # noqa: ANN401 - it ships no types
    """Give paramiko; raises `RequestError` where it is not installed."""
    try:
        import paramiko
    except ImportError:
        raise RequestError(
            "ssh:// and sftp:// need paramiko: pip install 'dinocache[ssh]'"
        ) from None
    # What it has to say of a broken connection is said by our errors.
    logging.getLogger("paramiko").addHandler(logging.NullHandler())
    return paramiko
