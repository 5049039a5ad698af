"""Python processes of our own: how they start, and what they died of."""

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

__all__ = ["died_of", "ignore_stops", "python", "reading_ends", "start"]


def python(module: str) -> tuple[str, ...]:
    """Give the command that runs a module of ours in a process of its own.

    -P: a file of that name in the folder where a person stands is none of ours.
    """
    return (sys.executable, "-P", "-m", module)


def start(command: Sequence[str], **pipes: Any) -> "subprocess.Popen[str]":  # noqa: ANN401
    """Start a process that calls `ignore_stops` first.

    Args:
        command: See `python`.
        pipes: As `subprocess.Popen` takes them.

    Returns:
        The process.

    Raises:
        OSError: If the system does not start one more.
    """
    with _stops_held():
        return subprocess.Popen(command, text=True, encoding="utf-8", errors="replace", **pipes)


@contextlib.contextmanager
def _stops_held() -> Iterator[None]:
    """Have a process begin with SIGINT and SIGTERM held back, until it ignores them itself.

    Both are sent to whole groups of processes, also while one still imports.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_stops() -> None:
    """Leave it to the parent what SIGINT and SIGTERM mean: both go to whole groups of processes."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGTERM))


def died_of(code: int) -> str:
    """Say what an exit code of `subprocess` means."""
    if code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    return name + ", most often for want of memory" * (name == "SIGKILL")


def reading_ends(death: str) -> str:
    """Give the reason of failure of an item that ended a process.

    Args:
        death: See `died_of`.
    """
    return f"reading it ends the process ({death})"
