"""How busy each stage of an extraction is: what holds it back is the one that never waits."""

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

__all__ = ["Meter", "busy_text"]


class Meter:
    """Counts the seconds that the threads of each stage work.

    Attributes:
        threads: Stage -> threads that work at it, in the order of the pipeline.
    """

    def __init__(self, threads: Mapping[str, int]) -> None:
        self.threads = dict(threads)
        self._seconds = dict.fromkeys(threads, 0.0)
        self._lock = threading.Lock()
        self._began = time.monotonic()

    @contextmanager
    def busy(self, stage: str) -> Iterator[None]:
        """Count the time inside."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.add(stage, time.monotonic() - began)

    def add(self, stage: str, seconds: float) -> None:
        """Count time that was measured otherwise."""
        with self._lock:
            self._seconds[stage] += seconds

    @property
    def elapsed_s(self) -> float:
        """Seconds since the meter was made."""
        return time.monotonic() - self._began

    def fractions(self) -> dict[str, float]:
        """Give, of each stage, the part of the time that its threads worked, from 0 to 1."""
        elapsed = max(self.elapsed_s, 1e-9)
        with self._lock:
            return {
                stage: min(self._seconds[stage] / threads / elapsed, 1.0)
                for stage, threads in self.threads.items()
            }


def busy_text(fractions: Mapping[str, float]) -> str:
    """Write fractions for people, as `read 35%, encode 98%, collect 2%, write 12%`."""
    return ", ".join(f"{stage} {fraction:.0%}" for stage, fraction in fractions.items())
