"""Stages of a pipeline: threads that work through calls in order, a bounded number behind."""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future

from dinocache.meter import Meter

__all__ = ["Stage"]

Call = Callable[[], None]


class Stage:
    """A thread that does what it is given, one call after the other.

    Args:
        name: Of the stage, as the meter knows it; None is not metered.
        ahead: Calls that may wait; whoever gives one more waits itself.
        meter: Counts the thread's work.
    """

    def __init__(self, name: str | None, *, ahead: int, meter: Meter) -> None:
        self._name, self._meter = name, meter
        self._queue: queue.Queue[tuple[Call, Future[None]] | None] = queue.Queue(ahead)
        self._error: BaseException | None = None
        self._dropping = False
        self._thread = threading.Thread(target=self._run, name=name or "stage", daemon=True)
        self._thread.start()

    def put(self, call: Call) -> Future[None]:
        """Queue a call; raises what an earlier one raised."""
        if self._error is not None:
            raise self._error
        done: Future[None] = Future()
        self._queue.put((call, done))
        return done

    def finish(self) -> None:
        """Wait for all calls; raises what one of them raised."""
        self._queue.put(None)
        self._thread.join()
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """Drop the calls that have not begun, and end."""
        if self._thread.is_alive():
            self._dropping = True
            self._queue.put(None)
            self._thread.join()

    def _run(self) -> None:
        while (given := self._queue.get()) is not None:
            call, done = given
            if self._error is not None or self._dropping:
                done.cancel()
                continue
            try:
                if self._name is None:
                    call()
                else:
                    with self._meter.busy(self._name):
                        call()
            except BaseException as exc:  # raised again where the next call is given
                self._error = exc
                done.set_exception(exc)
            else:
                done.set_result(None)
