"""Notes what an extraction does, from within; for `benchmarks/kill_storm.py`.

With this folder on PYTHONPATH, every Python process that imports `dinocache.job` appends one line
an event to the file named by DINOCACHE_PROBE, each by a single write to a file opened to append,
so that no line is torn or lost when the process is killed right behind it:

    began MOMENT PID                  it is about to look at a store
    open MOMENT PID ROWS UNIT         it begins a unit
    encode MOMENT PID ROWS            a batch goes into the encoder
    done MOMENT PID ROWS UNIT         a unit is committed

MOMENT is the machine's monotonic clock, one for all processes. DINOCACHE_PROBE_SLOW is how many
seconds each batch takes longer, as with a real encoder.
"""

import importlib.abc
import importlib.util
import os
import sys
import time
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

WATCHED = "dinocache.job"


def note(event: str, *facts: object) -> None:
    """Append a line."""
    line = " ".join(map(str, (event, time.monotonic(), os.getpid(), *facts)))
    descriptor = os.open(os.environ["DINOCACHE_PROBE"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{line}\n".encode())
    os.close(descriptor)


def watch() -> None:
    """Wrap what begins, encodes and commits."""
    from dinocache.engine import Engine, _OpenUnit
    from dinocache.job import Job

    slow_s = float(os.environ.get("DINOCACHE_PROBE_SLOW", "0"))

    def begun(*_: object) -> None:
        note("began")

    def encoding(engine: Engine, batch: Sequence[object], *_: object) -> None:
        note("encode", len(batch))
        time.sleep(slow_s)

    def opened(unit: _OpenUnit, *_: object) -> None:
        note("open", unit.work.unit.n_rows, unit.work.unit.name)

    def committed(unit: _OpenUnit, *_: object) -> None:
        note("done", unit.work.unit.n_rows, unit.work.unit.name)

    _around(Job, "__post_init__", before=begun)
    _around(Engine, "encode", before=encoding)
    _around(_OpenUnit, "__init__", behind=opened)
    _around(_OpenUnit, "_commit", behind=committed)


def _around(
    owner: type,
    name: str,
    *,
    before: Callable[..., None] | None = None,
    behind: Callable[..., None] | None = None,
) -> None:
    wrapped = getattr(owner, name)

    def wrapper(*arguments: Any) -> Any:  # noqa: ANN401
        if before:
            before(*arguments)
        result = wrapped(*arguments)
        if behind:
            behind(*arguments)
        return result

    setattr(owner, name, wrapper)


class _Finder(importlib.abc.MetaPathFinder):
    """Lets a module be imported as always, and wraps it right behind."""

    def find_spec(
        self, name: str, path: object = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != WATCHED:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_watch(module: ModuleType) -> None:
                execute(module)
                watch()

            spec.loader.exec_module = execute_and_watch
        return spec


if "DINOCACHE_PROBE" in os.environ:
    sys.meta_path.insert(0, _Finder())
