"""An SSH server with SFTP for tests: it serves a folder over a socket of this machine.

It is paramiko's server side, or its transport before OpenSSH's own `sftp-server`, where there is
one. It counts, and it breaks when told to.
"""

# ruff: noqa: ANN401 - paramiko ships no types

import contextlib
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import paramiko
from paramiko import sftp
from paramiko.sftp_attr import SFTPAttributes

__all__ = ["SshServer", "ssh_home", "ssh_server"]

_ALL = ("fsync@openssh.com", "hardlink@openssh.com", "posix-rename@openssh.com")


@dataclass
class SshServer:
    """A server, what it saw, and how it behaves.

    Attributes:
        root: The folder that is served as `/`.
        home: Below it: where relative paths begin.
        host_key: What it shows.
        user_key: Which it takes of a client.
        password: Which it takes of a client, where not None.
        extensions: What it says that it offers.
        most_sessions: Of one connection.
        cut_after: Bytes that are read until all connections are cut once; None for never.
        refuse_writes_behind: Byte of a file behind which nothing can be written: a full disk.
        cut_at: Name of a request that is done once, but not answered: all connections are cut.
        largest_read: Bytes that it gives at a time, however many are asked for.
        odd_names: That it lists in every folder besides what is there.
        offers_sftp: Whether there is SFTP at all.
        program: Path of OpenSSH's `sftp-server`, which then serves in place of ours.
        port: Where it listens.
        users: Who logged in, in order.
        connections: How many there were.
        most_open: Sessions of one connection at a time.
        forwarded: Where it was asked to connect to.
        requests: Names of what was asked of files, in order.
    """

    root: Path
    home: str = "home/ann"
    host_key: Any = field(default_factory=lambda: paramiko.ECDSAKey.generate())
    user_key: Any = field(default_factory=lambda: paramiko.ECDSAKey.generate())
    password: str | None = None
    extensions: tuple[str, ...] = _ALL
    most_sessions: int = 10
    cut_after: int | None = None
    refuse_writes_behind: int | None = None
    cut_at: str | None = None
    largest_read: int = 1 << 20
    odd_names: tuple[str, ...] = ()
    offers_sftp: bool = True
    program: str | None = None
    port: int = 0
    users: list[str] = field(default_factory=list)
    connections: int = 0
    most_open: int = 0
    requests: list[str] = field(default_factory=list)
    forwarded: list[tuple[str, int]] = field(default_factory=list)
    transports: list[Any] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Of the root, without a path."""
        return f"ssh://ann@127.0.0.1:{self.port}"

    @property
    def known_hosts_line(self) -> str:
        """What `known_hosts` must hold."""
        return f"[127.0.0.1]:{self.port} {self.host_key.get_name()} {self.host_key.get_base64()}\n"

    def cut(self) -> None:
        """Cut all connections."""
        for transport in self.transports:
            with contextlib.suppress(OSError):  # one that is gone already
                transport.sock.shutdown(socket.SHUT_RDWR)
        self.transports = [t for t in self.transports if t.is_active()]

    def count(self, n_bytes: int) -> bool:
        """Note that bytes are to be read; tells whether the connection was cut instead."""
        if self.cut_after is None:
            return False
        self.cut_after -= n_bytes
        if self.cut_after > 0:
            return False
        self.cut_after = None
        self.cut()
        return True


def ssh_home(folder: Path, server: SshServer, config: str = "") -> Path:
    """Make a home folder with a key, the server's host key, and a configuration."""
    dot = folder / ".ssh"
    dot.mkdir(parents=True)
    server.user_key.write_private_key_file(str(dot / "id_ecdsa"))
    (dot / "known_hosts").write_text(server.known_hosts_line)
    (dot / "config").write_text(config)
    return folder


@contextlib.contextmanager
def ssh_server(server: SshServer) -> Iterator[SshServer]:
    """Let a server listen; gives it back, its port filled in."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        server.port = listener.getsockname()[1]
        (server.root / server.home).mkdir(parents=True, exist_ok=True)
        thread = threading.Thread(target=_accept, args=(listener, server), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            # A blocked accept() is woken by nothing but a connection.
            server.port, port = 0, server.port
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), 5).close()
            thread.join(10)
            for transport in server.transports:
                transport.close()


def _accept(listener: socket.socket, server: SshServer) -> None:
    while True:
        client, _ = listener.accept()
        if server.port == 0:
            client.close()
            return
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        server.connections += 1
        transport = paramiko.Transport(client)
        transport.add_server_key(server.host_key)
        if server.offers_sftp:
            transport.set_subsystem_handler("sftp", _sftp_of(server), sftp_si=_Files)
        server.transports.append(transport)
        with contextlib.suppress(paramiko.SSHException, EOFError, OSError):
            transport.start_server(event=threading.Event(), server=_Door(server, transport))


class _Door(paramiko.ServerInterface):
    def __init__(self, server: SshServer, transport: Any) -> None:
        self.server, self.transport = server, transport

    def check_auth_publickey(self, username: str, key: Any) -> int:
        if key != self.server.user_key:
            return paramiko.AUTH_FAILED
        self.server.users.append(username)
        return paramiko.AUTH_SUCCESSFUL

    def check_auth_password(self, username: str, password: str) -> int:
        if self.server.password is None or password != self.server.password:
            return paramiko.AUTH_FAILED
        self.server.users.append(username)
        return paramiko.AUTH_SUCCESSFUL

    def get_allowed_auths(self, username: str) -> str:
        return "publickey,password"

    def check_channel_request(self, kind: str, chanid: int) -> int:
        live = [c for c in self.transport._channels.values() if not c.closed]
        self.server.most_open = max(self.server.most_open, len(live) + 1)
        if len(live) >= self.server.most_sessions:
            return paramiko.OPEN_FAILED_ADMINISTRATIVELY_PROHIBITED
        return paramiko.OPEN_SUCCEEDED

    def check_channel_direct_tcpip_request(
        self, chanid: int, origin: object, destination: tuple[str, int]
    ) -> int:
        self.server.forwarded.append(destination)
        threading.Thread(target=self._forward, args=(destination,), daemon=True).start()
        return paramiko.OPEN_SUCCEEDED

    def _forward(self, destination: tuple[str, int]) -> None:
        channel = self.transport.accept(10)
        with socket.create_connection(destination, 10) as target:

            def pump(source: Callable[[int], bytes], sink: Callable[[bytes], None]) -> None:
                with contextlib.suppress(OSError, EOFError):
                    while piece := source(1 << 16):
                        sink(piece)
                channel.close()
                with contextlib.suppress(OSError):
                    target.shutdown(socket.SHUT_RDWR)

            back = threading.Thread(target=pump, args=(target.recv, channel.sendall), daemon=True)
            back.start()
            pump(channel.recv, target.sendall)
            back.join(10)


def _sftp_of(server: SshServer) -> type:
    if server.program is not None:
        return type("Program", (_Program,), {"ours": server})
    return type("Sftp", (_Sftp,), {"ours": server})


class _Program(paramiko.server.SubsystemHandler):
    """OpenSSH's own server of files, its home folder being ours."""

    ours: SshServer

    def __init__(self, channel: Any, name: str, server: Any, sftp_si: object) -> None:
        super().__init__(channel, name, server)

    def start_subsystem(self, name: str, transport: Any, channel: Any) -> None:
        process = subprocess.Popen(
            [str(self.ours.program)],
            cwd=self.ours.root / self.ours.home,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert process.stdin
        assert process.stdout
        output = process.stdout

        def back() -> None:
            with contextlib.suppress(OSError, ValueError):
                while piece := os.read(output.fileno(), 1 << 16):
                    channel.sendall(piece)

        thread = threading.Thread(target=back, daemon=True)
        thread.start()
        try:
            while piece := channel.recv(1 << 16):
                process.stdin.write(piece)
                process.stdin.flush()
        finally:
            process.stdin.close()
            process.wait()
            thread.join(10)
            process.stdout.close()


class _Sftp(paramiko.SFTPServer):
    """Paramiko's server of files, with the extensions of OpenSSH's."""

    ours: SshServer

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.server.ours = self.ours

    def _send_server_version(self) -> int:
        self._read_packet()
        self.answers = True
        message = paramiko.Message()
        message.add_int(3)
        for name in self.ours.extensions:
            message.add_string(name)
            message.add_string("1")
        self._send_packet(sftp.CMD_VERSION, message)
        return 3

    def _process(self, kind: int, number: int, message: Any) -> None:
        name = sftp.CMD_NAMES[kind]
        if kind == sftp.CMD_EXTENDED:
            body = paramiko.Message(message.get_remainder())
            name = body.get_text()
            self._will_answer(name)
            if name not in self.ours.extensions:
                self._send_status(number, sftp.SFTP_OP_UNSUPPORTED)
            elif name == "fsync@openssh.com":
                handle = self.file_table[body.get_binary()]
                self._send_status(number, _status(lambda: os.fsync(handle.descriptor)))
            elif name == "hardlink@openssh.com":
                paths = [self.server.real(body.get_text()) for _ in range(2)]
                self._send_status(number, _status(lambda: os.link(*paths)))
            else:
                paths = [self.server.real(body.get_text()) for _ in range(2)]
                self._send_status(number, _status(lambda: os.replace(*paths)))
        else:
            self._will_answer(name)
            super()._process(kind, number, message)

    def _will_answer(self, name: str) -> None:
        self.ours.requests.append(name)
        self.answers = name != self.ours.cut_at

    def _send_packet(self, kind: int, packet: Any) -> None:
        if self.answers:
            super()._send_packet(kind, packet)
        else:
            self.ours.cut_at = None
            self.ours.cut()


class _Files(paramiko.SFTPServerInterface):
    ours: SshServer

    def real(self, path: str) -> str:
        """Give where a path lies that a client names."""
        inner = path if path.startswith("/") else f"{self.ours.home}/{path}"
        return f"{self.ours.root}/{inner}"

    def open(self, path: str, flags: int, attr: object) -> Any:
        try:
            descriptor = os.open(self.real(path), flags, 0o644)
        except OSError as exc:
            return _code(exc)
        return _Handle(descriptor, self.ours)

    def list_folder(self, path: str) -> Any:
        try:
            real = self.real(path)
            found = [
                SFTPAttributes.from_stat(os.lstat(f"{real}/{name}"), name)
                for name in os.listdir(real)
            ]
            odd = [SFTPAttributes.from_stat(os.lstat(real), name) for name in self.ours.odd_names]
            return found + odd
        except OSError as exc:
            return _code(exc)

    def stat(self, path: str) -> Any:
        return _attributes(lambda: os.stat(self.real(path)))

    def lstat(self, path: str) -> Any:
        return _attributes(lambda: os.lstat(self.real(path)))

    def remove(self, path: str) -> int:
        return _status(lambda: os.remove(self.real(path)))

    def mkdir(self, path: str, attr: object) -> int:
        return _status(lambda: os.mkdir(self.real(path)))

    def rename(self, oldpath: str, newpath: str) -> int:
        """As the protocol has it: not in the place of another."""
        if os.path.lexists(self.real(newpath)):
            return sftp.SFTP_FAILURE
        return _status(lambda: os.rename(self.real(oldpath), self.real(newpath)))


class _Handle(paramiko.SFTPHandle):
    def __init__(self, descriptor: int, ours: SshServer) -> None:
        super().__init__()
        self.descriptor, self.ours = descriptor, ours

    def close(self) -> None:
        os.close(self.descriptor)

    def read(self, offset: int, length: int) -> Any:
        if self.ours.count(length):
            return sftp.SFTP_FAILURE
        try:
            return os.pread(self.descriptor, min(length, self.ours.largest_read), offset)
        except OSError as exc:
            return _code(exc)

    def write(self, offset: int, data: bytes) -> int:
        limit = self.ours.refuse_writes_behind
        if limit is not None and offset + len(data) > limit:
            return sftp.SFTP_FAILURE
        if self.ours.count(len(data)):
            return sftp.SFTP_FAILURE
        return _status(lambda: os.pwrite(self.descriptor, data, offset))

    def stat(self) -> Any:
        return _attributes(lambda: os.fstat(self.descriptor))


def _attributes(look: Callable[[], os.stat_result]) -> Any:
    try:
        return SFTPAttributes.from_stat(look())
    except OSError as exc:
        return _code(exc)


def _status(act: Callable[[], object]) -> int:
    try:
        act()
    except OSError as exc:
        return _code(exc)
    return sftp.SFTP_OK


def _code(exc: OSError) -> int:
    return paramiko.SFTPServer.convert_errno(exc.errno)
