"""Kills or freezes extractions and looks at what is left. Run as a program, so that it may fork.

A fresh process imports everything and starts no thread; each extraction runs in a fork of it, which
costs no import, and dies by SIGKILL: no handler, no cleaning up. Prints one JSON object.

    killing.py between TABLE FOLDER FEATURES N before each N-th file operation of an extraction
    killing.py random TABLE FOLDER N           N times at random moments after the first record
    killing.py twins TABLE FOLDER FEATURES N   freezes one of two that do the same units, before
                                               each N-th file operation in turn
"""

import hashlib
import itertools
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import imagecodecs._png  # noqa: F401 - imported once, before the forks, as all that follows
import pyarrow.dataset  # noqa: F401
import timm  # noqa: F401
import torch
import zarr  # noqa: F401
from making import tiny_request

import dinocache.inference
import dinocache.readers.image  # noqa: F401
from dinocache.extract import extract
from dinocache.layout import FEATURES, UNITS
from dinocache.request import ExtractRequest
from dinocache.verify import verify

Stamp = tuple[int, int]


def fork(work: Callable[[], None]) -> int:
    """Run something in a child; gives its process id."""
    child = os.fork()
    if child:
        return child
    status = 70
    try:
        work()
        status = 0
    finally:
        sys.stderr.flush()
        os._exit(status)


def wait(child: int) -> int:
    """Give how a child ended: its exit status, or minus the signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def wait_for_stop(child: int) -> int | None:
    """Wait until a child is stopped, or has ended: then its exit status, or minus the signal."""
    status = os.waitpid(child, os.WUNTRACED)[1]
    return None if os.WIFSTOPPED(status) else os.waitstatus_to_exitcode(status)


def wake(child: int) -> int:
    """Let a stopped child go on to its end."""
    os.kill(child, signal.SIGCONT)
    return wait(child)


def signal_before(operation: int, folder: Path, number: signal.Signals) -> None:
    """Arrange that this process gets a signal just before its n-th change below a folder."""
    turns = itertools.count(1)  # one step of the interpreter: several threads write

    def count(path: object) -> None:
        if str(path).startswith(str(folder)) and next(turns) == operation:
            os.kill(os.getpid(), number)

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if (event == "open" and set(str(arguments[1])) & set("wxa+")) or event in (
            "os.rename",
            "os.link",
            "os.remove",
            "os.mkdir",
        ):
            count(arguments[0])

    flush = os.fsync

    def fsync(descriptor: int) -> None:
        count(os.readlink(f"/proc/self/fd/{descriptor}"))
        flush(descriptor)

    os.fsync = fsync
    sys.addaudithook(hook)


def digests(store: Path) -> dict[str, str]:
    """Digest each file under features.zarr."""
    files = sorted(p for p in (store / FEATURES).rglob("*") if p.is_file())
    return {
        str(p.relative_to(store)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in files
        if not p.name.endswith(".partial")
    }


def committed(store: Path) -> dict[str, Stamp]:
    """Stamp every record that stands, and every file that it vouches for."""
    stamps = {}
    for record in (store / UNITS).glob("*.json"):
        body = json.loads(record.read_bytes())["body"]
        for path in (record, *(store / name for name in body["objects"])):
            status = path.stat()
            stamps[str(path)] = (status.st_ino, status.st_mtime_ns)
    return stamps


def redone(before: dict[str, Stamp]) -> list[str]:
    """Name the files that were written again."""
    now = {name: Path(name).stat() for name in before}
    return [n for n, stamp in before.items() if (now[n].st_ino, now[n].st_mtime_ns) != stamp]


def store_of(request: ExtractRequest) -> Path:
    return request.root / Path(request.dataset).stem / request.model / "32x48"


def undisturbed(request: ExtractRequest) -> dict[str, str]:
    assert wait(fork(lambda: extract(request) and None)) == 0
    return digests(store_of(request))


def between(table: Path, folder: Path, features: tuple[str, ...], every: int) -> dict[str, object]:
    expected = undisturbed(tiny_request(table, folder / "whole", features=features))
    request = tiny_request(table, folder / "killed", features=features)
    store = store_of(request)
    kills, wrong = 0, []
    for operation in range(1, 10_000, every):
        shutil.rmtree(request.root, ignore_errors=True)

        def doomed(operation: int = operation) -> None:
            signal_before(operation, request.root, signal.SIGKILL)
            extract(request)

        ended = wait(fork(doomed))
        if ended == 0:
            break
        assert ended == -signal.SIGKILL, ended
        kills += 1
        before = committed(store)
        again = wait(fork(lambda: extract(request) and None))
        found = verify(store)
        if again or digests(store) != expected or redone(before) or found.exit_code:
            wrong.append([operation, again, redone(before), [str(d) for d in found.damages]])
    return {"kills": kills, "wrong": wrong}


def twins(table: Path, folder: Path, features: tuple[str, ...], every: int) -> dict[str, object]:
    """Freeze one of two before each n-th of its file operations; wake it once the other is done.

    The other begins while the first is frozen, and, a second time, was itself frozen at a random
    moment before the first began, so that it does units that the first committed meanwhile.
    """
    expected = undisturbed(tiny_request(table, folder / "whole", features=features))
    request = tiny_request(table, folder / "twins", features=features)
    store = store_of(request)
    moments = random.Random(11)
    frozen, wrong = 0, []

    def twin(operation: int) -> Callable[[], None]:
        def work() -> None:
            signal_before(operation, request.root, signal.SIGSTOP)
            extract(request)

        return work

    def look(when: str) -> list[str]:
        found = verify(store)
        wrong = [f"{when}: {damage}" for damage in found.damages]
        if not found.complete:
            wrong.append(f"{when}: not complete")
        if digests(store) != expected:
            wrong.append(f"{when}: other bytes")
        return wrong

    def freeze(operation: int, *, early: bool) -> bool:
        """Do it once; False if the first was done before its time had come."""
        shutil.rmtree(request.root, ignore_errors=True)
        other = ended = None
        if early:
            other = fork(twin(moments.randint(1, operation)))
            ended = wait_for_stop(other)
        first = fork(twin(operation))
        if (end := wait_for_stop(first)) is not None:
            wrong.extend([f"before {operation}: exit {end}"] * (end != 0))
            if other is not None and ended is None:
                wake(other)
            return False
        if other is None:
            ended = wait(fork(lambda: extract(request) and None))
        elif ended is None:
            ended = wake(other)
        found = [f"the other: exit {ended}"] * (ended != 0) + look("while one sleeps")
        end = wake(first)
        found += [f"the woken: exit {end}"] * (end != 0) + look("after waking")
        found += [f"left over: {p.name}" for p in store.rglob("*.partial")]
        wrong.extend(f"before {operation}, {'early' * early or 'late'}: {what}" for what in found)
        return True

    for operation in range(1, 10_000, every):
        if not freeze(operation, early=False):
            break
        frozen += 1 + freeze(operation, early=True)
    return {"frozen": frozen, "last": operation - every, "wrong": wrong}


def at_random(table: Path, folder: Path, n_kills: int) -> dict[str, object]:
    began = time.monotonic()
    expected = undisturbed(tiny_request(table, folder / "whole", unit_rows=64))
    request = tiny_request(table, folder / "killed", unit_rows=64)
    store = store_of(request)
    n_units = len(
        list((store_of(tiny_request(table, folder / "whole")) / UNITS).glob("*.cls.json"))
    )
    unit_s = (time.monotonic() - began) / n_units
    moments = random.Random(7)
    kills, again, units_before_last = 0, [], 0
    while kills < n_kills:
        before = committed(store) if store.exists() else {}
        child = fork(lambda: extract(request) and None)
        # Ever later in the run, so that kills fall on its whole length.
        wanted = 1 + kills * (n_units - 4) // n_kills
        while len(list((store / UNITS).glob("*.cls.json"))) < wanted:
            time.sleep(0.001)
        time.sleep(moments.uniform(0, unit_s))
        os.kill(child, signal.SIGKILL)
        if wait(child) == 0:
            break  # it was done before its time had come
        kills += 1
        again += redone(before)
        units_before_last = len(list((store / UNITS).glob("*.cls.json")))
    before = committed(store)
    assert wait(fork(lambda: extract(request) and None)) == 0
    return {
        "kills": kills,
        "units": n_units,
        "units_before_last_kill": units_before_last,
        "redone": again + redone(before),
        "identical": digests(store) == expected,
        "verify": verify(store).exit_code,
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    mode, table, folder = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    if mode == "between":
        features, every = tuple(sys.argv[4].split(",")), int(sys.argv[5])
        print(json.dumps(between(table, folder, features, every)))
    elif mode == "twins":
        features, every = tuple(sys.argv[4].split(",")), int(sys.argv[5])
        print(json.dumps(twins(table, folder, features, every)))
    else:
        print(json.dumps(at_random(table, folder, int(sys.argv[4]))))
