"""The process that extracts, or tries items, for `dinocache.supervise`.

One line of JSON comes by standard input, the order; then `stop`, or the end of it, at which this
process ends at once: nobody is left to tell. Messages go out by standard output, one line of JSON
each; whatever a library prints there goes to standard error instead.
"""

import json
import logging
import os
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from pydantic import BaseModel, TypeAdapter

from dinocache.durable import reading
from dinocache.errors import BUG, DinocacheError, ItemError, StoppedError
from dinocache.extract import Outcome, extract
from dinocache.intensity import item_windows
from dinocache.job import Job, Supervision
from dinocache.processes import ignore_stops
from dinocache.progress import QuietProgress
from dinocache.readers import guarded
from dinocache.request import ExtractRequest
from dinocache.source import Source
from dinocache.terminal import quiet_libraries

__all__ = ["Order", "main"]

_TRIED_ROWS = 64


class Order(BaseModel):
    """What a child is to do.

    Attributes:
        request: What a person asked.
        killers: Item id -> why it is not to be touched.
        careful: Items to be read one at a time.
        items: To be read and thrown away, in place of an extraction.
        debug: Whether tracebacks go to standard error.
    """

    request: ExtractRequest
    killers: dict[str, str] = {}
    careful: frozenset[str] = frozenset()
    items: list[str] | None = None
    debug: bool = False


class _Messages:
    """Tells the parent; a `Progress`."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lock = threading.Lock()
        self.started = False

    def send(self, *message: object) -> None:
        """Send one message; it is with the parent even if this process dies right behind."""
        line = memoryview(json.dumps(message).encode() + b"\n")
        with self._lock:
            while line:
                line = line[os.write(self._descriptor, line) :]

    def note(self, text: str) -> None:
        self.send("note", text)

    def start(self, total_rows: int, done_rows: int) -> None:
        self.started = True
        self.send("start", total_rows, done_rows)

    def advance(self, rows: int, n_bytes: int, busy: Mapping[str, float]) -> None:
        self.send("advance", rows, n_bytes, dict(busy))

    def stop(self) -> None:
        self.send("end")

    @contextmanager
    def watch(self, item_id: str) -> Iterator[None]:
        """Say that a reader is at work on an item."""
        self.send("reading", item_id)
        try:
            yield
        finally:
            self.send("read", item_id)


def main() -> int:
    """Do what is ordered.

    Returns:
        The exit code: 0 if the last message says what it came to, else `BUG`.
    """
    ignore_stops()
    messages = _Messages(os.dup(1))
    os.dup2(2, 1)
    if not (line := sys.stdin.readline()):
        return BUG  # the parent is gone
    # By json, not by pydantic: names of files may have bytes that are no UTF-8.
    order = Order.model_validate(json.loads(line))
    quiet_libraries(debug=order.debug)
    stop = threading.Event()
    threading.Thread(target=_listen, args=(messages, stop), daemon=True).start()
    supervision = Supervision(
        killers=order.killers, careful=order.careful, watch=messages.watch, stop=stop
    )
    try:
        if order.items is not None:
            job = Job(order.request, QuietProgress(), supervision)
            source = replace(job.source, decoders=None)  # it is this process that is to die
            for item_id in order.items:
                _try(job, source, item_id)
            messages.send("tried")
        else:
            with reading("the store"):
                outcome = extract(order.request, messages, supervision)
            messages.send("outcome", TypeAdapter(Outcome).dump_python(outcome, mode="json"))
    except DinocacheError as exc:
        logging.getLogger(__name__).debug("the extraction failed", exc_info=True)
        messages.send("error", type(exc).__name__, str(exc))
    except ModuleNotFoundError as exc:
        messages.send("missing", exc.name)
    except BaseException:
        traceback.print_exc()
        return BUG
    return 0


def _listen(messages: _Messages, stop: threading.Event) -> None:
    for line in sys.stdin:
        if line.strip() == "stop":
            stop.set()
            if not messages.started:
                text = "stopped before the first unit; run the same command again to go on"
                messages.send("error", StoppedError.__name__, text)
                os._exit(0)
    os._exit(BUG)


def _try(job: Job, source: Source, item_id: str) -> None:
    """Read an item to its end, as an extraction does."""
    with source.watch(item_id):
        try:
            source.count_rows(item_id)
            with source.open(item_id) as item:
                guarded(lambda: item_windows(job.windows, item))
                for start in range(0, item.n_rows, _TRIED_ROWS):
                    _read(item, start)
                if item_id in source.masks and "mask" in job.features:
                    guarded(item.mask)
        except ItemError:
            logging.getLogger(__name__).debug("an item cannot be read", exc_info=True)


def _read(item: Any, start: int) -> None:  # noqa: ANN401
    guarded(lambda: item.rows(start, min(start + _TRIED_ROWS, item.n_rows)))


if __name__ == "__main__":
    sys.exit(main())
