"""Folders of SSH servers: a real one over a socket; keys, cuts and full disks."""

import os
import pickle
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import paramiko
import pytest
from making import contents, tiny_request
from ssh_serving import SshServer, ssh_home, ssh_server

from dinocache import sftp
from dinocache.errors import RequestError, StoreDamagedError, StoreError, StoreWriteError
from dinocache.extract import extract
from dinocache.folders import Folder, LocalFolder
from dinocache.places import folder_of
from dinocache.remote import in_parallel
from dinocache.sftp import SftpFolder
from dinocache.store import FeatureStore
from dinocache.verify import verify

OPENSSH = next(
    (
        path
        for path in (
            shutil.which("sftp-server"),
            "/usr/lib/openssh/sftp-server",
            "/usr/libexec/openssh/sftp-server",
            "/usr/libexec/sftp-server",
        )
        if path and Path(path).is_file()
    ),
    None,
)
PIECE = 32 << 10


@pytest.fixture(autouse=True)
def _no_surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    """No agent and no pause; HOME is set with each server."""
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    monkeypatch.setattr(sftp, "_PAUSE_S", 0.001)
    monkeypatch.setattr(sftp, "_LEFT_ALONE_S", 0.0)


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., SshServer]]:
    """Starts a server, and makes a home folder whose owner may log in."""
    with pytest.MonkeyPatch.context() as patched:
        running: list[Any] = []

        def begin(config: str = "", **options: Any) -> SshServer:  # noqa: ANN401 - of SshServer
            number = len(running)
            manager = ssh_server(SshServer(root=tmp_path / f"server{number}", **options))
            server = manager.__enter__()
            running.append(manager)
            patched.setenv("HOME", str(ssh_home(tmp_path / f"home{number}", server, config)))
            return server

        yield begin
        for manager in reversed(running):
            manager.__exit__(None, None, None)


@pytest.fixture
def server(start: Callable[..., SshServer]) -> SshServer:
    return start()


def home() -> Path:
    return Path(os.environ["HOME"]) / ".ssh"


def some(n_bytes: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(n_bytes)


def use(folder: Folder) -> list[object]:
    """Do a bit of everything; gives what came of it."""
    came: list[object] = [folder.list(), folder.size("a"), list(folder.walk())]
    folder.replace("plans/0001.json", b"one")
    folder.replace("plans/0001.json", memoryview(b"other"))
    folder.replace("ö/tief er/#x?", some(3 * PIECE + 17))
    folder.replace("empty", b"")
    folder.keep("kept", b"12")
    folder.keep("kept", b"12")
    folder.keep("kept", b"345")
    came += [folder.create("new/once", b"x"), folder.within("new").read("once")]
    folder.replace("gone", b"g")
    folder.remove("gone")
    folder.remove("gone")
    folder.remove("no folder/gone")
    big = folder.read("ö/tief er/#x?")
    came += [big, folder.read("plans/0001.json"), folder.read("empty"), folder.read("kept")]
    came += [folder.read_range("ö/tief er/#x?", 7, 2 * PIECE + 9) == big[7 : 2 * PIECE + 9]]
    came += [folder.read_range("kept", 1, 1), folder.read_range("kept", 2, 3)]
    came += [folder.size("plans"), folder.size("plans/0001.json"), folder.exists("nothing")]
    listed = [folder.list(name) for name in ("", "ö", "plans", "plans/0001.json", "nothing")]
    came += [(sorted(one.files), one.folders) for one in listed]
    came += [(entry.name, entry.bytes) for name in ("", "ö", "no") for entry in folder.walk(name)]
    return came


@pytest.mark.parametrize("program", [None, OPENSSH])
@pytest.mark.parametrize("extensions", ["all", "none"])
def test_it_is_like_a_folder_of_this_machine(
    start: Callable[..., SshServer], tmp_path: Path, program: str | None, extensions: str
) -> None:
    options: dict[str, Any] = {"extensions": ()} if extensions == "none" else {}
    server = start(**options)
    if program:
        server.program = program
    url = f"{server.url}/~/a store"
    assert use(folder_of(url)) == use(LocalFolder(tmp_path / "local"))
    there, here = server.root / "home/ann/a store", tmp_path / "local"
    if not server.program:
        assert ("fsync@openssh.com" in server.requests) == (extensions == "all")
        assert ("posix-rename@openssh.com" in server.requests) == (extensions == "all")
        assert ("rename" in server.requests) == (extensions == "none")
    names = [path.relative_to(here) for path in sorted(here.rglob("*"))]
    assert [path.relative_to(there) for path in sorted(there.rglob("*"))] == names


def test_times_and_sizes_of_a_listing(server: SshServer) -> None:
    folder = SftpFolder(f"{server.url}/data")
    folder.replace("x", b"12345")
    os.utime(server.root / "data/x", (5, 1_700_000_000))
    (entry,) = folder.walk()
    assert (entry.name, entry.bytes, entry.modified) == ("x", 5, 1_700_000_000)
    assert folder.list().files == {"x": entry}


@pytest.mark.parametrize("largest", [1, 1000, PIECE - 1, PIECE])
def test_a_server_may_give_less_than_was_asked_for(server: SshServer, largest: int) -> None:
    content = some(PIECE // 16 if largest == 1 else 17 * PIECE + 5)
    (server.root / "big").write_bytes(content)
    server.largest_read = largest
    folder = SftpFolder(server.url + "/")
    assert folder.read("big") == content
    assert folder.read_range("big", 99, len(content) - 1) == content[99:-1]


def test_a_range_that_is_not_there_is_an_error(server: SshServer) -> None:
    (server.root / "x").write_bytes(b"12345")
    with pytest.raises(StoreError, match="/x has 2 of the 4 bytes behind byte 3"):
        SftpFolder(server.url + "/").read_range("x", 3, 7)


def test_what_is_missing_or_too_large(server: SshServer) -> None:
    folder = SftpFolder(f"{server.url}/d")
    for read in (lambda: folder.read("no/x"), lambda: folder.read_range("x", 0, 1)):
        with pytest.raises(FileNotFoundError, match="no such file"):
            read()
    folder.replace("x", b"12345")
    assert folder.read("x", most=5) == b"12345"
    with pytest.raises(StoreDamagedError, match=r"/d/x has 5 bytes; .* at most 4"):
        folder.read("x", most=4)
    with pytest.raises(StoreDamagedError, match="leads out of the store's folder"):
        folder.read("../server0/d/x")


def test_what_is_not_whole_is_read_again(server: SshServer) -> None:
    folder = SftpFolder(server.url + "/")
    folder.replace("x", b"torn")
    seen = []

    def is_whole(content: bytes) -> bool:
        seen.append(content)
        folder.replace("x", b"whole")
        return content == b"whole"

    assert folder.read("x", is_whole) == b"whole"
    assert seen == [b"torn", b"whole"]


def test_a_full_disk_leaves_what_was_there(server: SshServer) -> None:
    folder = SftpFolder(f"{server.url}/d")
    folder.replace("x", b"old")
    server.refuse_writes_behind = 3 * PIECE
    for write in (
        lambda: folder.replace("x", some(5 * PIECE)),
        lambda: folder.create("y", some(5 * PIECE)),
    ):
        with pytest.raises(StoreWriteError, match=r"cannot write .*/d/.: the server says Failure"):
            write()
    assert {path.name: path.read_bytes() for path in (server.root / "d").iterdir()} == {"x": b"old"}
    server.extensions = ()
    other = SftpFolder(f"ssh://bob@127.0.0.1:{server.port}/d")
    with pytest.raises(StoreWriteError, match="/d/y"):
        other.create("y", some(5 * PIECE))
    assert not other.exists("y")


def test_no_access_says_so(server: SshServer) -> None:
    (server.root / "file").write_bytes(b"")
    folder = SftpFolder(f"{server.url}/file")
    with pytest.raises(StoreWriteError, match=r"cannot write .*/file/x: the server says"):
        folder.replace("x", b"1")


def test_links_are_shown_as_those_of_this_machine(server: SshServer, tmp_path: Path) -> None:
    real = server.root / "real"
    real.mkdir()
    (real / "x").write_bytes(b"1")
    for root in (server.root / "d", tmp_path / "local"):
        root.mkdir()
        (root / "folder").symlink_to(real)
        (root / "file").symlink_to(real / "x")
        (root / "nowhere").symlink_to(root / "nothing")
    there, here = SftpFolder(f"{server.url}/d"), LocalFolder(tmp_path / "local")
    for one, other in ((there.list(), here.list()),):
        assert (list(one.files), one.folders) == (list(other.files), other.folders)
    assert [e.name for e in there.walk()] == [e.name for e in here.walk()]


def test_names_that_lead_elsewhere_are_not_listed(server: SshServer) -> None:
    folder = SftpFolder(f"{server.url}/d")
    folder.replace("x", b"1")
    server.odd_names = ("..", ".", "../../etc", "a/b", "nul\0")
    assert folder.list().folders == ()
    assert [entry.name for entry in folder.walk()] == ["x"]


# Connections


def test_a_cut_in_the_middle_of_a_read_is_survived(server: SshServer) -> None:
    content = some(200 * PIECE + 1)
    (server.root / "big").write_bytes(content)
    folder = SftpFolder(server.url + "/")
    assert folder.exists("big")
    server.cut_after = 100 * PIECE
    assert folder.read("big") == content
    server.cut_after = 20 * PIECE
    assert folder.read_range("big", 5, 150 * PIECE) == content[5 : 150 * PIECE]
    assert server.cut_after is None
    assert server.connections == 3


def test_a_cut_in_the_middle_of_a_write_is_survived(server: SshServer) -> None:
    content = some(200 * PIECE + 1)
    folder = SftpFolder(f"{server.url}/d")
    server.cut_after = 100 * PIECE
    folder.replace("big", content)
    server.cut_at = "posix-rename@openssh.com"
    folder.replace("small", b"1")
    assert server.connections == 3
    assert server.cut_at is None
    # Nothing is left over.
    assert sorted(path.name for path in (server.root / "d").iterdir()) == ["big", "small"]
    assert (server.root / "d/big").read_bytes() == content


def test_all_threads_survive_a_cut(server: SshServer) -> None:
    folder = SftpFolder(f"{server.url}/d")
    files = {f"{i % 5}/{i}": some(PIECE + i, i) for i in range(64)}
    server.cut_after = 30 * PIECE
    in_parallel(lambda name: folder.replace(name, files[name]), files)
    server.cut_after = 30 * PIECE
    assert in_parallel(folder.read, files) == list(files.values())
    assert server.cut_after is None
    assert server.most_open <= 8


def test_a_server_of_few_sessions(start: Callable[..., SshServer]) -> None:
    server = start(most_sessions=2)
    folder = SftpFolder(f"{server.url}/d")
    in_parallel(lambda i: folder.replace(str(i), bytes([i])), range(40))
    assert in_parallel(lambda i: folder.read(str(i)), range(40)) == [bytes([i]) for i in range(40)]
    assert server.connections == 1


def test_a_server_without_sessions(start: Callable[..., SshServer]) -> None:
    server = start(most_sessions=0)
    with pytest.raises(StoreError, match="allows no session"):
        SftpFolder(f"{server.url}/d").list()


def test_a_server_without_files(start: Callable[..., SshServer]) -> None:
    server = start(offers_sftp=False)
    with pytest.raises(StoreError, match="no SFTP session came about"):
        SftpFolder(f"{server.url}/d").list()


def test_folders_share_a_connection(server: SshServer) -> None:
    folder = SftpFolder(f"{server.url}/d")
    folder.replace("a/b/x", b"1")
    again = pickle.loads(pickle.dumps(folder.within("a").within("b")))
    assert again.read("x") == b"1"
    assert str(again) == f"ssh://ann@127.0.0.1:{server.port}/d/a/b"
    assert SftpFolder(f"sftp://ann@127.0.0.1:{server.port}/d/a/").list().folders == ("b",)
    assert server.connections == 1


def test_a_server_that_is_gone(server: SshServer) -> None:
    port = server.port
    nobody = SftpFolder("ssh://ann@127.0.0.1:1/d")
    with pytest.raises(StoreError, match=r"cannot read .*:1/d/x: .*refused; see whether the serv"):
        nobody.read("x")
    with pytest.raises(StoreWriteError, match=r"cannot write ssh://ann@127.0.0.1:1/d/x"):
        nobody.replace("x", b"1")
    assert server.port == port


def test_a_login_script_that_prints(start: Callable[..., SshServer], tmp_path: Path) -> None:
    script = tmp_path / "chatty"
    script.write_text("#!/bin/sh\necho 'Welcome to the cluster!'\nsleep 1\n")
    script.chmod(0o700)
    server = start(program=str(script))
    with pytest.raises(StoreError, match="does its login script print something"):
        SftpFolder(f"{server.url}/d").list()


# Exclusive creation


@pytest.mark.parametrize("extensions", [("hardlink@openssh.com",), ()])
def test_of_many_creators_one_wins(
    start: Callable[..., SshServer], extensions: tuple[str, ...]
) -> None:
    server = start(extensions=extensions)
    folder = SftpFolder(f"{server.url}/d")
    for name in ("0001.json", "0002.json"):
        told = in_parallel(lambda i, name=name: folder.create(name, b"%d" % i), range(32))
        assert sum(told) == 1
        assert folder.read(name) == b"%d" % told.index(True)
    assert sorted(path.name for path in (server.root / "d").iterdir()) == ["0001.json", "0002.json"]


@pytest.mark.parametrize("extensions", [("hardlink@openssh.com",), ()])
def test_a_creator_whose_answer_was_lost_has_won(
    start: Callable[..., SshServer], extensions: tuple[str, ...]
) -> None:
    server = start(extensions=extensions)
    folder = SftpFolder(f"{server.url}/d")
    content = some(3 * PIECE)
    server.cut_at = extensions[0] if extensions else "write"
    assert folder.create("x", content)
    assert server.connections == 2
    assert folder.read("x") == content
    assert not folder.create("x", b"another's")
    assert folder.read("x") == content
    assert [path.name for path in (server.root / "d").iterdir()] == ["x"]


# Who is who


def refused(url: str) -> str:
    with pytest.raises(StoreError) as caught:
        SftpFolder(url).list()
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_an_unknown_host_is_refused(server: SshServer) -> None:
    (home() / "known_hosts").write_text("")
    message = refused(f"{server.url}/d")
    assert f"[127.0.0.1]:{server.port} is not in known_hosts" in message
    assert f"it shows ecdsa-sha2-nistp256 {server.host_key.fingerprint}" in message
    assert f"`ssh -p {server.port} ann@127.0.0.1`" in message
    assert server.users == []
    assert (home() / "known_hosts").read_text() == ""
    (home() / "known_hosts").unlink()
    assert "is not in known_hosts" in refused(f"{server.url}/d")


def test_a_host_whose_key_changed_is_refused(server: SshServer) -> None:
    known, server.host_key = server.host_key, paramiko.ECDSAKey.generate()
    message = refused(f"{server.url}/d")
    assert f"shows another key, ecdsa-sha2-nistp256 {server.host_key.fingerprint}" in message
    assert known.fingerprint in message
    assert f"`ssh-keygen -R '[127.0.0.1]:{server.port}'`" in message
    assert server.users == []
    with pytest.raises(StoreWriteError, match="shows another key"):
        SftpFolder(f"{server.url}/d").replace("x", b"1")


def test_a_key_of_another_type_is_another_key(server: SshServer) -> None:
    other = paramiko.RSAKey.generate(2048)
    line = f"[127.0.0.1]:{server.port} ssh-rsa {other.get_base64()}\n"
    (home() / "known_hosts").write_text(line)
    assert "shows another key" in refused(f"{server.url}/d")


def test_lines_of_known_hosts(server: SshServer) -> None:
    """Hashed, with wildcards, without the port, several keys of one type; markers and dirt."""
    at, key = f"[127.0.0.1]:{server.port}", server.host_key
    kind, blob = key.get_name(), key.get_base64()
    other = paramiko.ECDSAKey.generate().get_base64()
    hashed = paramiko.HostKeys.hash_host(at)
    good = [
        f"{hashed} {kind} {blob}",
        f"[127.0.0.*]:{server.port} {kind} {blob} a comment",
        f"127.0.0.1 {kind} {blob}",
        f"elsewhere,{at} {kind} {other}\n{at},x {kind} {blob}",
        f"# x\n\n|1|bad| {kind} {blob}\n{at} {kind} not!base64\n{at}\n{at} {kind} {blob}",
    ]
    bad = [
        f"@cert-authority {at} {kind} {blob}",
        f"@revoked {at} {kind} {blob}\n{at} {kind} {blob}",
        f"!{at},!127.*,* {kind} {blob}",
        f"{paramiko.HostKeys.hash_host('elsewhere')} {kind} {blob}",
        f"[127.0.0.1]:{server.port + 1} {kind} {blob}",
        f"127.0.0.1 {kind} {blob}\n{at} {kind} {other}",
    ]
    for number, lines in enumerate((*good, *bad)):
        (home() / "known_hosts").write_text(lines + "\n")
        url = f"ssh://u{number}@127.0.0.1:{server.port}/"
        if number < len(good):
            assert SftpFolder(url).list().folders, lines
        else:
            assert "known_hosts" in refused(url), lines


def test_a_user_whom_the_server_does_not_let_in(start: Callable[..., SshServer]) -> None:
    server = start(password="right")
    (home() / "id_ecdsa").unlink()
    url = f"ssh://ann:wr%40ng-secret@127.0.0.1:{server.port}/d"
    message = refused(url)
    assert "does not let 'ann' in" in message
    assert "ssh-copy-id" in message
    assert "secret" not in message + str(SftpFolder(url)) + repr(SftpFolder(url)._address)
    assert "does not let 'ann' in" in refused(f"{server.url}/d")
    folder = SftpFolder(f"ssh://ann:right@127.0.0.1:{server.port}/d")
    folder.replace("x", b"1")
    assert pickle.loads(pickle.dumps(folder)).read("x") == b"1"
    assert "right" not in str(folder)


def test_many_threads_knock_once(
    start: Callable[..., SshServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Servers lock out who fails to log in again and again."""
    server = start()
    monkeypatch.setattr(sftp, "_LEFT_ALONE_S", 60.0)
    (home() / "id_ecdsa").unlink()
    folder = SftpFolder(f"{server.url}/d")
    with pytest.raises(StoreError, match="does not let 'ann' in"):
        in_parallel(lambda i: folder.read(str(i)), range(50))
    assert server.connections == 1


def test_the_configuration_is_followed(start: Callable[..., SshServer]) -> None:
    server = start()
    (home() / "id_ecdsa").rename(home() / "other key")
    (home() / "more").mkdir()
    (home() / "more/lab").write_text(f"Host Lab\n HostName=127.0.0.1\n Port {server.port}\n")
    (home() / "config").write_text(
        'Include more/*\nIdentityFile "~/.ssh/other key"\nHost lab Lab\n  User bob\n'
        "Host *\n  User nobody\n  Port 1\n"
    )
    folder = SftpFolder("ssh://Lab/~/d")
    folder.replace("x", b"1")
    assert server.users == ["bob"]
    assert (server.root / "home/ann/d/x").read_bytes() == b"1"
    assert str(folder) == "ssh://Lab/~/d"
    assert SftpFolder("ssh://carl@Lab/~/d").read("x") == b"1"
    assert server.users == ["bob", "carl"]
    assert ":1/d" in refused("ssh://127.0.0.1:1/d")


def test_known_hosts_may_lie_elsewhere(server: SshServer) -> None:
    (home() / "known_hosts").rename(home() / "hosts")
    line = (home() / "hosts").read_text()
    assert "is not in known_hosts" in refused(f"{server.url}/")
    (home() / "config").write_text("Host 127.*\n UserKnownHostsFile /nowhere ~/.ssh/hosts\n")
    assert SftpFolder(f"{server.url}/").list().folders == ("home",)
    (home() / "hosts").write_text(line.replace(line.split()[0], "lab"))
    (home() / "config").write_text(
        "Host 127.*\n UserKnownHostsFile ~/.ssh/hosts\n HostKeyAlias lab\n"
    )
    assert SftpFolder(f"ssh://bob@127.0.0.1:{server.port}/").list().folders == ("home",)


def test_jump_hosts(start: Callable[..., SshServer]) -> None:
    behind, first, second = start(), start(), start()
    lines = [server.known_hosts_line for server in (behind, first, second)]
    (home() / "known_hosts").write_text("".join(lines))
    for number, server in enumerate((behind, first, second)):
        server.user_key.write_private_key_file(str(home() / f"key{number}"))
    (home() / "config").write_text(
        f"Host behind\n HostName 127.0.0.1\n Port {behind.port}\n IdentityFile ~/.ssh/key0\n"
        f" ProxyJump one,bob@127.0.0.1:{second.port}\n"
        f"Host one\n HostName 127.0.0.1\n Port {first.port}\n IdentityFile ~/.ssh/key1\n"
        "Host 127.0.0.1\n IdentityFile ~/.ssh/key2\n"
        "Host circle\n ProxyJump circle\n"
        "Host *\n User ann\n"
    )
    folder = SftpFolder("ssh://behind/d")
    content = some(20 * PIECE)
    folder.replace("x", content)
    assert folder.read("x") == content
    assert (first.users, second.users, behind.users) == (["ann"], ["bob"], ["ann"])
    assert first.forwarded == [("127.0.0.1", second.port)]
    assert second.forwarded == [("127.0.0.1", behind.port)]
    assert "or in a circle" in refused("ssh://circle/d")


@pytest.mark.skipif(sys.platform == "win32", reason="ProxyCommand is for POSIX systems")
def test_a_proxy_command(server: SshServer, tmp_path: Path) -> None:
    relay = tmp_path / "relay.py"
    relay.write_text(
        "import os, socket, sys, threading\n"
        "s = socket.create_connection((sys.argv[1], int(sys.argv[2])))\n"
        "def back():\n"
        "    while piece := s.recv(65536): os.write(1, piece)\n"
        "    os._exit(0)\n"
        "threading.Thread(target=back, daemon=True).start()\n"
        "while piece := os.read(0, 65536): s.sendall(piece)\n"
    )
    (home() / "config").write_text(
        f"Host lab\n HostName 127.0.0.1\n User ann\n"
        f" ProxyCommand {sys.executable} {relay} %h %p 2>/dev/null\n"
        "Host dead\n HostName 127.0.0.1\n ProxyCommand false\n"
    )
    folder = SftpFolder(f"ssh://lab:{server.port}/d")
    content = some(20 * PIECE)
    folder.replace("x", content)
    server.cut()
    assert folder.read("x") == content
    assert server.users == ["ann", "ann"]
    assert "see whether the server answers" in refused("ssh://dead/d")


def test_a_configuration_that_cannot_be_read(server: SshServer) -> None:
    (home() / "config").write_text("Host\n")
    with pytest.raises(RequestError, match=r"~/.ssh/config cannot be understood here"):
        SftpFolder(f"{server.url}/d").list()


# URLs


@pytest.mark.parametrize(
    ("url", "shown", "path"),
    [
        ("ssh://h", "ssh://h/~", "x"),
        ("ssh://h/~", "ssh://h/~", "x"),
        ("ssh://h/~/", "ssh://h/~", "x"),
        ("ssh://h/~/a/b/", "ssh://h/~/a/b", "a/b/x"),
        ("ssh://h/", "ssh://h/", "/x"),
        ("ssh://h//a//", "ssh://h/a", "/a/x"),
        ("ssh://h/a%20%23%3f", "ssh://h/a%20%23%3F", "/a #?/x"),
        ("sftp://Bob:pw@Lab:22/a", "ssh://Bob@Lab:22/a", "/a/x"),
        ("ssh://bob@[::1]:2222/a", "ssh://bob@[::1]:2222/a", "/a/x"),
        ("ssh://bob%40uni.edu:p%2Fw@h/a", "ssh://bob@uni.edu@h/a", "/a/x"),
    ],
)
def test_what_a_url_names(url: str, shown: str, path: str) -> None:
    folder = SftpFolder(url)
    assert str(folder) == shown
    assert folder._path("x") == path
    again = pickle.loads(pickle.dumps(folder))
    assert (again._address, again._root) == (folder._address, folder._root)


@pytest.mark.parametrize(
    "url",
    [
        "ssh:///a",
        "ssh://-oProxyCommand=touch/a",
        "ssh://$(id)/a",
        "ssh://-l@h/a",
        "ssh://a;b:s3cret@h/a",
        "ssh://u:s3cret@h:99999/a",
        "ssh://u:s3cret@h:x/a",
        "ssh://u:s3@cret h/a",
        "ssh://u:s3cret@h/~bob/a",
        "ssh://u:s3cret@h/a?b",
        "ssh://u:s3cret@h/a#b",
        "ssh://u:s3cret@h/a%00",
    ],
)
def test_urls_that_name_nothing(url: str) -> None:
    with pytest.raises(RequestError) as caught:
        folder_of(url)
    assert "s3" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_paramiko(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "paramiko", None)
    with pytest.raises(RequestError, match=r"pip install 'dinocache\[ssh\]'"):
        folder_of("ssh://h/a")


# Stores


def test_a_store_is_made_and_read_there(
    server: SshServer, tiny_table: Path, tiny_store: FeatureStore
) -> None:
    url = f"{server.url}/~/features"
    server.cut_after = 200_000
    made = extract(tiny_request(tiny_table, url, features=("cls", "mean", "dense", "image")))  # type: ignore[arg-type]
    assert made.complete
    assert server.cut_after is None
    (header,) = (server.root / "home/ann/features").rglob("store.json")
    assert contents(header.parent) == contents(tiny_store.path)

    name = header.parent.relative_to(server.root / "home/ann/features").as_posix()
    store = FeatureStore(f"{url}/{name}")
    np.testing.assert_array_equal(store.item_vectors("cls")[1], tiny_store.item_vectors("cls")[1])
    for kind in ("mean", "dense"):
        np.testing.assert_array_equal(store.rows(kind, "0016"), tiny_store.rows(kind, "0016"))
    np.testing.assert_array_equal(
        store.native("image", "0017")[0], tiny_store.native("image", "0017")[0]
    )
    assert verify(f"{url}/{name}").exit_code == 0
    damaged = header.parent / "features.zarr/cls/c.1.0"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"!")
    assert [one.file for one in verify(store.folder).damages] == ["features.zarr/cls/c.1.0"]
