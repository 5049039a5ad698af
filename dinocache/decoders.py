"""Processes that decode whole items, for readers to which Python's one lock costs too much.

Parsing the headers of a DICOM series holds that lock; in threads of one process it would wait for
others that do, and the encoder for it. Each process here decodes one item at a time. Rows are
handed over in memory that both have, so that nothing is copied but into it once. Which readers:
docs/benchmarks.md, "Threads or processes".

A process that dies takes its item along and nothing else. See `dinocache.decoder` for what runs in
it.
"""

import json
import logging
import mmap
import os
import queue
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel

from dinocache.errors import BUG, CrashError, ItemError
from dinocache.geometry import Geometry
from dinocache.intensity import Window
from dinocache.processes import died_of, python, reading_ends, start
from dinocache.readers import ItemFiles, Labels, OpenItem, Pixels, Reader
from dinocache.recipe import WindowRecipe

__all__ = ["ALIGNED", "CAN_HAND_OVER", "Answer", "Decoders", "Files", "Opened", "Order", "Run"]

CAN_HAND_OVER = hasattr(os, "memfd_create") and hasattr(socket, "send_fds")
"""Whether this system has memory that a process can pass to another; so far Linux has."""
_MOST_BYTES = 2 << 30
"""Of an item that is held decoded as a whole; larger ones are read in threads, in parts."""
_ANSWER_BYTES = 1 << 16
ALIGNED = 64
"""Every run begins at a multiple of so many bytes."""

Run = tuple[int, tuple[int, ...], str]
"""(arrays, shape of each, dtype of each as NumPy writes it) that lie one behind the other."""


class Files(BaseModel):
    """The paths of `ItemFiles`."""

    path: str
    mask: str | None
    class_masks: list[str | None]
    centre: str | None


class Order(BaseModel):
    """What a decoder is to do; one line of JSON.

    Attributes:
        reader: Of `READERS`.
        options: Its.
        files: Of the item, one a channel.
        windows: To be measured.
        count: Whether only rows are to be counted.
        mask: Whether the label map is wanted, too.
        most_bytes: Of an item that is decoded; of a larger one nothing is.
        debug: Whether tracebacks go to standard error.
    """

    reader: str
    options: dict[str, Any]
    files: list[Files]
    windows: list[WindowRecipe]
    count: bool
    mask: bool
    most_bytes: int
    debug: bool


class Answer(BaseModel):
    """What it comes to; one line of JSON, and with `rows` the memory that the arrays lie in.

    Attributes:
        error: Why the item cannot be read; nothing else is said then.
        missing: The library that is not installed; likewise.
        n_rows: Of the item; alone where it was to be counted, or is too large.
        rows: Its rows, in order.
        coords: Shape of the coordinates behind them, float64.
        mask: The label map behind those, if it was wanted and can be read.
        mask_error: Why it cannot.
        windows: Values that become 0 and 1.
        geometry: As its `to_attributes` gives it.
        value_range: As `OpenItem` has it.
        notes: Likewise.
    """

    error: str | None = None
    missing: str | None = None
    n_rows: int = 0
    rows: list[Run] = []
    coords: tuple[int, int] = (0, 0)
    mask: Run | None = None
    mask_error: str | None = None
    windows: list[Window] = []
    geometry: dict[str, Any] = {}
    value_range: tuple[float, float] | None = None
    notes: list[str] = []


class _DecodedItem(OpenItem):
    """An item that another process has decoded. Its arrays lie in memory that is shared with it."""

    def __init__(self, answer: Answer, memory: int) -> None:
        """Take it over.

        Args:
            answer: What the process said.
            memory: The file descriptor of what it wrote; to be closed by the caller.
        """
        self.n_rows = answer.n_rows
        self.geometry = Geometry.from_attributes(answer.geometry)
        self.value_range = answer.value_range
        self.notes = tuple(answer.notes)
        self.nbytes = os.fstat(memory).st_size
        # Copied where it is written to: nobody else has these pages any more.
        self._memory = mmap.mmap(memory, self.nbytes, flags=mmap.MAP_PRIVATE)
        self._at = 0
        self._rows = [row for run in answer.rows for row in self._take(run)]
        (self._coords,) = self._take((1, answer.coords, "<f8"))
        self._mask = next(iter(self._take(answer.mask)), None) if answer.mask else None
        self._mask_error = answer.mask_error

    def _take(self, run: Run) -> list[npt.NDArray[Any]]:
        count, shape, dtype = run
        self._at += -self._at % ALIGNED
        arrays = []
        for _ in range(count):
            arrays.append(np.ndarray(shape, np.dtype(dtype), self._memory, self._at))
            self._at += arrays[-1].nbytes
        return arrays

    def rows(self, start: int, stop: int) -> list[Pixels]:
        found: list[Any] = self._rows[start:stop]
        return found

    def coords(self) -> npt.NDArray[np.float64]:
        return self._coords

    def mask(self) -> Labels:
        if self._mask is None:
            raise ItemError(self._mask_error or "its mask was not asked for")
        return self._mask

    def close(self) -> None:
        self._rows, self._mask = [], None


class _DiedError(Exception):
    """A decoder ended before it answered."""


class _Decoder:
    """One process; does one order at a time."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        try:
            with theirs:
                self._process: subprocess.Popen[str] = start(
                    python("dinocache.decoder"), stdin=theirs, stdout=sys.stderr
                )
        except OSError:
            self._socket.close()
            raise

    def ask(self, order: Order) -> tuple[Answer, int | None]:
        """Have an order done: (answer, descriptor of memory); raises `_DiedError`."""
        memory: list[int] = []
        try:
            # By json, not by pydantic: names of files may have bytes that are no UTF-8.
            self._socket.sendall(json.dumps(order.model_dump(mode="json")).encode() + b"\n")
            line = b""
            while not line.endswith(b"\n"):
                part, passed, _, _ = socket.recv_fds(self._socket, _ANSWER_BYTES, 1)
                memory += passed
                if not part:
                    raise _DiedError
                line += part
        except (OSError, _DiedError) as exc:
            for descriptor in memory:
                os.close(descriptor)
            if (code := self.close()) == BUG:  # its traceback stands on the screen
                text = "a process that decodes ended by an error of dinocache's own"
                raise CrashError(text) from exc
            raise _DiedError(died_of(code)) from exc
        return Answer.model_validate(json.loads(line)), next(iter(memory), None)

    def close(self) -> int:
        """End it, and give its exit code."""
        self._socket.close()
        return self._process.wait()


@dataclass(frozen=True, kw_only=True)
class Opened:
    """An item that a decoder has decoded.

    Attributes:
        item: Open, with all its rows.
        windows: As `dinocache.intensity.item_windows` gives them.
    """

    item: OpenItem
    windows: tuple[Window, ...]


class Decoders:
    """Up to a number of processes, each started once it is needed; to be closed."""

    def __init__(self, most: int) -> None:
        """See the class.

        Args:
            most: Processes.
        """
        self._most = most
        # The last that was given back is taken first: few at work are few that were started.
        self._idle: queue.LifoQueue[_Decoder | None] = queue.LifoQueue()
        for _ in range(most):
            self._idle.put(None)
        self._alone = threading.Lock()

    def count(self, reader: Reader[Any], files: ItemFiles) -> int:
        """Count an item's rows, as `Reader.count_rows`."""
        answer, _ = self._ask(_order(reader, [files], count=True))
        return answer.n_rows

    def open(
        self,
        reader: Reader[Any],
        files: Sequence[ItemFiles],
        windows: tuple[WindowRecipe, ...],
        *,
        mask: bool,
    ) -> Opened | None:
        """Decode an item.

        Args:
            reader: Reads it; of one that gives thumbnails these are lost.
            files: One a channel.
            windows: Of the recipe.
            mask: Whether its label map is wanted, too.

        Returns:
            The item; None where it is too large to be held as a whole.

        Raises:
            ItemError: If it cannot be opened, or a row of it cannot be decoded, or it ended two
                processes.
        """
        order = _order(reader, files, windows, mask=mask)
        answer, memory = self._ask(order)
        if memory is None:
            return None
        try:
            item = _DecodedItem(answer, memory)
        finally:
            os.close(memory)
        return Opened(item=item, windows=tuple(answer.windows))

    def _ask(self, order: Order) -> tuple[Answer, int | None]:
        try:
            answer, memory = self._by_one(order)
        except _DiedError:
            # Once more with nothing beside it: a kill for want of memory may have been meant for
            # whoever was largest.
            logging.getLogger(__name__).debug("a decoder died", exc_info=True)
            try:
                answer, memory = self._by_one_alone(order)
            except _DiedError as exc:
                raise ItemError(reading_ends(str(exc))) from exc
        if answer.missing is not None:
            raise ModuleNotFoundError(f"No module named {answer.missing!r}", name=answer.missing)
        if answer.error is not None:
            raise ItemError(answer.error)
        return answer, memory

    def _by_one(self, order: Order) -> tuple[Answer, int | None]:
        decoder = self._idle.get()
        try:
            decoder = decoder or _Decoder()
            answer = decoder.ask(order)
        except BaseException:
            decoder = None
            raise
        finally:
            self._idle.put(decoder)
        return answer

    def _by_one_alone(self, order: Order) -> tuple[Answer, int | None]:
        with self._alone:
            others = [self._idle.get() for _ in range(self._most - 1)]
            try:
                return self._by_one(order)
            finally:
                for other in others:
                    self._idle.put(other)

    def close(self) -> None:
        """End the processes, once what they were asked is done."""
        for decoder in [self._idle.get() for _ in range(self._most)]:
            if decoder is not None:
                decoder.close()
            self._idle.put(None)


def _order(
    reader: Reader[Any],
    files: Sequence[ItemFiles],
    windows: tuple[WindowRecipe, ...] = (),
    *,
    count: bool = False,
    mask: bool = False,
) -> Order:
    return Order(
        reader=reader.name,
        options=reader.options,
        files=[
            Files(
                path=str(one.path),
                mask=str(one.mask) if one.mask else None,
                class_masks=[str(path) if path else None for path in one.class_masks],
                centre=str(one.centre) if one.centre else None,
            )
            for one in files
        ],
        windows=list(windows),
        count=count,
        mask=mask,
        most_bytes=_MOST_BYTES,
        debug=logging.getLogger("dinocache").isEnabledFor(logging.DEBUG),
    )
