"""How far an extraction is: one bar on a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Mapping
from typing import Protocol, TextIO

from dinocache.meter import busy_text
from dinocache.terminal import console

__all__ = [
    "LineProgress",
    "Progress",
    "QuietProgress",
    "RichProgress",
    "human_bytes",
    "human_seconds",
    "make_progress",
]


class Progress(Protocol):
    """What an extraction tells while it runs. Calls may come from any thread."""

    def note(self, text: str) -> None:
        """Say one line."""
        ...

    def start(self, total_rows: int, done_rows: int) -> None:
        """Begin, with some rows done before."""
        ...

    def advance(self, rows: int, n_bytes: int, busy: Mapping[str, float]) -> None:
        """Count rows and bytes that are committed; `busy` is the fraction of each stage so far."""
        ...

    def stop(self) -> None:
        """End, done or not."""
        ...


class QuietProgress:
    """Says nothing but keeps the notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        """Keep the line."""
        self.notes.append(text)

    def start(self, total_rows: int, done_rows: int) -> None:
        """Do nothing."""

    def advance(self, rows: int, n_bytes: int, busy: Mapping[str, float]) -> None:
        """Do nothing."""

    def stop(self) -> None:
        """Do nothing."""


class LineProgress:
    """A line every so often, for logs."""

    interval_s = 10.0

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self._total = self._done = self._fresh = self._bytes = 0
        self._began = self._said = time.monotonic()

    def note(self, text: str) -> None:
        """Say the line."""
        print(text, file=self.stream, flush=True)

    def start(self, total_rows: int, done_rows: int) -> None:
        """Begin counting."""
        self._total, self._done, self._fresh = total_rows, done_rows, 0
        self._began = self._said = time.monotonic()

    def advance(self, rows: int, n_bytes: int, busy: Mapping[str, float]) -> None:
        """Count, and say so if the last line is long ago."""
        self._done += rows
        self._fresh += rows
        self._bytes += n_bytes
        now = time.monotonic()
        if now - self._said >= self.interval_s or self._done >= self._total:
            self._said = now
            rate = self._fresh / max(now - self._began, 1e-9)
            left = (self._total - self._done) / rate if rate else 0
            self.note(
                f"{self._done}/{self._total} rows, {rate:.1f} rows/s, "
                f"{human_bytes(self._bytes)} written, {human_seconds(left)} left"
                + (f"; busy: {busy_text(busy)}" if busy else "")
            )

    def stop(self) -> None:
        """Do nothing: the last line has been said."""


class RichProgress:
    """One bar with rows a second, bytes and time left."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self._bar = Bar(
            TextColumn("{task.completed:.0f}/{task.total:.0f} rows"),
            BarColumn(),
            TextColumn("{task.fields[rate]:.1f} rows/s"),
            TextColumn("{task.fields[written]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[busy]}", style="dim"),
            console=console(stderr=True),
        )
        self._task = self._bar.add_task(
            "", total=None, visible=False, rate=0.0, written="0 B", busy=""
        )
        self._fresh = self._bytes = 0
        self._began = time.monotonic()

    def note(self, text: str) -> None:
        """Say the line above the bar."""
        self._bar.console.print(text)

    def start(self, total_rows: int, done_rows: int) -> None:
        """Show the bar."""
        self._began, self._fresh = time.monotonic(), 0
        self._bar.update(self._task, total=total_rows, completed=done_rows, visible=True)
        self._bar.start()

    def advance(self, rows: int, n_bytes: int, busy: Mapping[str, float]) -> None:
        """Move the bar."""
        self._fresh += rows
        self._bytes += n_bytes
        rate = self._fresh / max(time.monotonic() - self._began, 1e-9)
        self._bar.update(
            self._task,
            advance=rows,
            rate=rate,
            written=human_bytes(self._bytes),
            busy=busy_text(busy),
        )

    def stop(self) -> None:
        """Leave the bar as it stands."""
        self._bar.stop()


def make_progress() -> Progress:
    """Choose by what standard error is."""
    return RichProgress() if sys.stderr.isatty() else LineProgress(sys.stderr)


def human_bytes(n_bytes: float) -> str:
    """Write a size as people do, as `12.3 MB` (powers of 1,000)."""
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} TB"


def human_seconds(seconds: float) -> str:
    """Write a duration as people do: `42 s`, `12 min`, `3.4 h`, `2.1 days`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"
