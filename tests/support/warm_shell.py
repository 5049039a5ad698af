"""Both programs on the path of a shell, without the seconds that each start takes to import torch.

`dinocache` and `probe` are small scripts here, which hand their arguments, their folder and their
streams to one server. That has imported what is slow, forks, and calls the program's `main` in the
child: a process of its own for each command, as a shell has it.
"""

import contextlib
import importlib
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

PROGRAMS = {"dinocache": "dinocache.cli", "probe": "probes.cli"}
SLOW = (
    "torch",
    "pandas",
    "pyarrow.parquet",
    "sklearn.linear_model",
    "scipy.stats",
    "zarr",
    "duckdb",
)
CLIENT = """#!{python} -SE
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    asked = json.dumps([{program!r}, os.getcwd(), sys.argv[1:]]).encode()
    socket.send_fds(server, [asked], [0, 1, 2])
    sys.exit(int(server.recv(16) or 70))
"""
MOST = 1 << 16
"""Bytes that a command line may have."""


@contextlib.contextmanager
def warm_programs() -> Iterator[Path]:
    """Give a folder with both programs, to stand first on the path, while the server runs."""
    with tempfile.TemporaryDirectory() as folder:  # short: an address has 107 bytes at most
        address = f"{folder}/server"
        for program in PROGRAMS:
            client = Path(folder) / program
            client.write_text(
                CLIENT.format(python=sys.executable, address=address, program=program)
            )
            client.chmod(0o755)
        server = subprocess.Popen([sys.executable, __file__, address], stdout=subprocess.PIPE)
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == b"ready\n", "the server did not start"
            yield Path(folder)
        finally:
            server.terminate()
            server.communicate()


def serve(address: str) -> None:
    """Run what clients ask for, each in a child of its own; without end."""
    for module in (*SLOW, *PROGRAMS.values()):
        importlib.import_module(module)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen()
        print("ready", flush=True)
        while True:
            client, _ = server.accept()
            if os.fork() == 0:
                _answer(client)
            client.close()
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass


def _answer(client: socket.socket) -> None:
    """Be the program, tell the client its exit code, and end."""
    asked, streams, _, _ = socket.recv_fds(client, MOST, 3)
    program, folder, arguments = json.loads(asked)
    os.chdir(folder)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.argv = [program, *arguments]
    code = 70
    try:
        code = importlib.import_module(PROGRAMS[program]).main(arguments)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        client.sendall(str(code).encode())
        os._exit(code)


if __name__ == "__main__":
    serve(sys.argv[1])
