"""Extraction in a child process, so that an item that kills it does not end the run.

A decoder that crashes, or that the system kills for memory, takes the child with it. The items that
were being read at that moment are read again, one by one, in children of their own; those that kill
again are recorded as failures, and the extraction goes on. Where none does so alone, their units
are done with one item open at a time, so that another death names the item.
"""

import contextlib
import json
import logging
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import FrameType
from typing import IO, TYPE_CHECKING, Any

from pydantic import TypeAdapter

from dinocache import errors
from dinocache.errors import BUG, CrashError, StoppedError
from dinocache.processes import died_of, python, reading_ends, start
from dinocache.progress import Progress
from dinocache.request import ExtractRequest

if TYPE_CHECKING:
    from dinocache.extract import Outcome

__all__ = ["Stopping", "find_killers", "supervised"]

_FRUITLESS = 2
"""Deaths without an item to blame, and without a unit committed since, behind which it gives up."""
_COMMAND = python("dinocache.child")


def supervised(
    request: ExtractRequest, progress: Progress, *, command: Sequence[str] | None = None
) -> "Outcome":
    """Extract in a child process; go on where it dies.

    The first SIGINT or SIGTERM has the child drop the unit in work and commit what is whole, the
    second kills it. Call it in the main thread.

    Args:
        request: What is asked.
        progress: Told how far it is.
        command: Starts a child; by default this Python's `dinocache.child`.

    Returns:
        What it came to.

    Raises:
        CrashError: If the child dies again and again, and no item is to blame.
        StoppedError: If it was stopped by a signal; `exit_code` says by which.
        DinocacheError: As `dinocache.extract.extract`.
    """
    killers: dict[str, str] = {}
    careful: set[str] = set()
    fruitless = rows = units = 0
    with Stopping(progress) as stopping:
        while True:
            order = {
                "request": _plain(request),
                "killers": killers,
                "careful": sorted(careful),
                "debug": _is_debugging(),
            }
            end = _Child(order, progress, stopping, command).run()
            if end.outcome is not None:
                done = end.outcome
                return replace(done, rows=done.rows + rows, units=done.units + units)
            rows, units = rows + end.rows, units + end.units
            suspects = [item_id for item_id in end.reading if item_id not in killers]
            # Headers are read many at a time, also of those items.
            if len(end.reading) == 1 and careful.issuperset(suspects):
                found = {i: reading_ends(end.died_of) for i in suspects}
            else:
                found = find_killers(request, suspects, stopping=stopping, command=command)
            fruitless = 0 if found or end.units else fruitless + 1
            if fruitless >= _FRUITLESS:
                raise CrashError(
                    f"the extracting process died again ({end.died_of}), and no item that it was "
                    "reading does so by itself; a smaller --batch (for a new store) or fewer "
                    "--workers need less memory. What was committed is whole"
                )
            named = f"; recorded as failed: {', '.join(found)}" if found else ""
            progress.note(f"the extracting process died ({end.died_of}){named}; going on")
            killers |= found
            careful |= set(suspects) - found.keys()


def find_killers(
    request: ExtractRequest,
    item_ids: Sequence[str],
    *,
    stopping: "Stopping | None" = None,
    command: Sequence[str] | None = None,
) -> dict[str, str]:
    """Read items one by one in child processes, and see which of them end those.

    Args:
        request: What was asked.
        item_ids: Which.
        stopping: Of the run.
        command: Starts a child.

    Returns:
        Item id -> why it is not to be touched again.

    Raises:
        DinocacheError: If the request cannot be met as it stands.
    """
    from dinocache.progress import QuietProgress

    found: dict[str, str] = {}
    died_once: set[str] = set()
    left = list(item_ids)
    while left:
        order = {"request": _plain(request), "items": left, "debug": _is_debugging()}
        end = _Child(order, QuietProgress(), stopping, command).run()
        died_in = next(iter(end.reading), None)
        if died_in is None:
            break
        left = left[left.index(died_in) :]
        # A crash is the item's own; that signal may have been meant for whoever was largest.
        if end.died_of.startswith("SIGKILL") and died_in not in died_once:
            died_once.add(died_in)
            continue
        found[died_in] = reading_ends(end.died_of)
        left = left[1:]
    return found


@dataclass
class _End:
    """How a child ended."""

    outcome: "Outcome | None" = None
    reading: list[str] = field(default_factory=list)
    """Items that were being read, each once; of a child that died only."""
    rows: int = 0
    units: int = 0
    died_of: str = ""


class _Child:
    """One child process, from its order to its end."""

    def __init__(
        self,
        order: Mapping[str, object],
        progress: Progress,
        stopping: "Stopping | None",
        command: Sequence[str] | None,
    ) -> None:
        self._order, self._command = order, command or _COMMAND
        self._progress, self._stopping = progress, stopping
        self._end = _End()
        self._reading: Counter[str] = Counter()
        self._finished = False
        self._process: subprocess.Popen[str] | None = None

    def run(self) -> _End:
        """Follow it to its end; raises what it raised."""
        try:
            self._process = start(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            self._say(json.dumps(self._order))
            if self._stopping is not None:
                self._stopping.tell = self._say
            for line in _piped(self._process.stdout):
                self._hear(line)
            code = self._process.wait()
        finally:
            if self._stopping is not None:
                self._stopping.tell = None
            self._end_process()
        if not self._finished:
            if code == BUG:  # its traceback stands on the screen
                raise CrashError("the extracting process ended by an error of dinocache's own")
            self._end.died_of = died_of(code)
            self._end.reading = list(+self._reading)
            self._progress.stop()
            if self._stopping is not None and self._stopping.asked:
                raise StoppedError(
                    f"stopped; the extracting process had died ({self._end.died_of}). What was "
                    "committed is whole. Run the same command again to go on"
                )
        return self._end

    def _end_process(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            with contextlib.suppress(OSError):  # it never read what still waits in the pipe
                _piped(self._process.stdin).close()
            _piped(self._process.stdout).close()

    def _say(self, text: str) -> None:
        try:
            pipe = _piped(self._process.stdin if self._process else None)
            pipe.write(text + "\n")
            pipe.flush()
        except OSError:  # it died; its end says so
            logging.getLogger(__name__).debug("a child died before it was told", exc_info=True)

    def _hear(self, line: str) -> None:
        try:
            message = json.loads(line)
        except ValueError:
            message = None
        if isinstance(message, list) and message:
            self._take(*message)
        else:  # printed by whatever Python ran before the child's own code
            print(line, end="", file=sys.stderr)

    def _take(self, what: str, *content: Any) -> None:  # noqa: ANN401
        progress = self._progress
        if what == "reading":
            self._reading[content[0]] += 1
        elif what == "read":
            self._reading[content[0]] -= 1
        elif what == "advance":
            self._end.units += 1
            self._end.rows += content[0]
            progress.advance(*content)
        elif what == "outcome":
            from dinocache.extract import Outcome

            self._end.outcome = TypeAdapter(Outcome).validate_python(content[0], strict=False)
            self._finished = True
        elif what == "tried":
            self._finished = True
        elif what == "error":
            raise _known_error(*content)
        elif what == "missing":
            raise ModuleNotFoundError(f"No module named {content[0]!r}", name=content[0])
        elif what == "note":
            progress.note(*content)
        elif what == "start":
            progress.start(*content)
        elif what == "end":
            progress.stop()


class Stopping:
    """What SIGINT and SIGTERM do while an extraction runs. A context manager."""

    def __init__(self, progress: Progress) -> None:
        self.tell: Callable[[str], None] | None = None
        self._progress = progress
        self._signal: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Stopping":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._stop)
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if isinstance(error, StoppedError) and self._signal is not None:
            error.exit_code = 128 + self._signal

    @property
    def asked(self) -> bool:
        """Whether there was a signal."""
        return self._signal is not None

    def _stop(self, number: int, frame: FrameType | None) -> None:
        again, self._signal = self.asked, number
        if again or self.tell is None:
            raise StoppedError(
                "stopped at once; what was committed is whole. Run the same command again to go on"
            )
        self._progress.note("stopping once what is whole is committed; once more stops at once")
        self.tell("stop")


def _known_error(name: str, message: str) -> errors.DinocacheError:
    """Make again what a child raised."""
    if name not in errors.__all__:
        raise CrashError(f"the extracting process ended by {name}: {message}")
    error: errors.DinocacheError = getattr(errors, name)(message)
    return error


def _plain(request: ExtractRequest) -> object:
    return TypeAdapter(ExtractRequest).dump_python(request, mode="json")


def _is_debugging() -> bool:
    return logging.getLogger("dinocache").isEnabledFor(logging.DEBUG)


def _piped(pipe: IO[str] | None) -> IO[str]:
    if pipe is None:
        raise AssertionError("a child has pipes")
    return pipe
