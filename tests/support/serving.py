"""Servers for the tests of sharing: S3, HTTP with ranges, and a proxy that counts and breaks.

All of them listen on sockets of this machine.
"""

import contextlib
import http.client
import http.server
import os
import random
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

__all__ = ["SECRET", "Proxy", "http_server", "proxy", "s3_server"]

SECRET = "abcdefghijklmnop"
"""What proves to the S3 server who asks; nothing that is written may hold it."""
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "server", "date"}


@contextlib.contextmanager
def s3_server() -> Iterator[str]:
    """Run moto's server in a process of its own; gives its URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"},
    )
    try:
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("moto's server did not start")
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def http_server(folder: Path) -> Iterator[str]:
    """Serve a folder over HTTP/1.1, ranges and index pages included; gives its URL."""

    class Handler(_Ranges):
        root = folder

    with _serving(Handler) as url:
        yield url


@dataclass
class Proxy:
    """What a proxy saw, and how it behaves.

    Attributes:
        url: Its own.
        fault_share: Of requests that are answered wrongly.
        delay_s: Before each answer.
        requests: (method, path with query) of each request.
        sent: Bytes of all bodies that were sent to the client.
        faults: How many answers were wrong.
    """

    url: str = ""
    fault_share: float = 0.0
    delay_s: float = 0.0
    requests: list[tuple[str, str]] = field(default_factory=list)
    sent: int = 0
    faults: int = 0

    def __post_init__(self) -> None:
        self.draws = random.Random(0)
        self.lock = threading.Lock()

    def behave(self, *, fault_share: float = 0.0, delay_s: float = 0.0, seed: int = 0) -> None:
        """Count from zero, and behave so from now on."""
        self.requests, self.sent, self.faults = [], 0, 0
        self.fault_share, self.delay_s, self.draws = fault_share, delay_s, random.Random(seed)

    def draw(self) -> str:
        """Choose what becomes of the next request."""
        with self.lock:
            if self.draws.random() >= self.fault_share:
                return "none"
            self.faults += 1
            return self.draws.choice(["500", "503", "reset", "cut", "cut quietly"])


@contextlib.contextmanager
def proxy(target: str) -> Iterator[Proxy]:
    """Pass requests on to a server; gives what counts and breaks them."""
    seen = Proxy()

    class Handler(_Passing):
        proxy = seen
        target_host = urlsplit(target).netloc

    with _serving(Handler) as url:
        seen.url = url
        yield seen


@contextlib.contextmanager
def _serving(handler: type[http.server.BaseHTTPRequestHandler]) -> Iterator[str]:
    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def handle_error(self, request: object, client_address: object) -> None:
            """Clients that go away are no news."""

    server = Server(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Quiet(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def log_message(self, *_: object) -> None:
        """Nothing on standard error."""


class _Ranges(_Quiet, http.server.SimpleHTTPRequestHandler):
    root: Path

    def translate_path(self, path: str) -> str:
        """Take names from the folder that is served."""
        self.directory = str(self.root)
        return super().translate_path(path)

    def do_GET(self) -> None:
        """Answer with a range, where one is asked for."""
        path = Path(self.translate_path(self.path))
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if not match or not path.is_file():
            super().do_GET()
            return
        total = path.stat().st_size
        start, last = int(match[1]), min(int(match[2]), total - 1)
        with path.open("rb") as file:
            file.seek(start)
            content = file.read(last - start + 1)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{last}/{total}")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Last-Modified", self.date_time_string(int(path.stat().st_mtime)))
        self.end_headers()
        self.wfile.write(content)


class _Passing(_Quiet):
    proxy: Proxy
    target_host: str

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        proxy, fault = self.proxy, self.proxy.draw()
        with proxy.lock:
            proxy.requests.append((self.command, self.path))
        time.sleep(proxy.delay_s)
        if fault == "reset":
            self._reset()
            return
        if fault in ("500", "503"):
            self.send_response(int(fault))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        connection = http.client.HTTPConnection(self.target_host, timeout=60)
        try:
            headers = {k: v for k, v in self.headers.items() if k.lower() != "connection"}
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        self.send_response(answer.status)
        for key, value in answer.getheaders():
            if key.lower() not in _HOP_BY_HOP:
                self.send_header(key, value)
        cut = fault.startswith("cut") and len(content) > 1
        given = content[: len(content) // 2] if cut else content
        length = len(given) if fault == "cut quietly" else len(content)
        if self.command == "HEAD":
            length = int(answer.getheader("Content-Length") or 0)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(given)
        with proxy.lock:
            proxy.sent += len(given)
        if fault == "cut":
            self.wfile.flush()
            self._reset()

    def _reset(self) -> None:
        """Close the connection so that the client sees a reset."""
        self.close_connection = True
        linger = b"\x01\x00\x00\x00\x00\x00\x00\x00"
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.connection.shutdown(socket.SHUT_RDWR)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _pass_on
