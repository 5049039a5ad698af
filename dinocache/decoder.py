"""The process that decodes items, for `dinocache.decoders`.

Orders come by the socket that is its standard input, one line of JSON each, and each gets one line
of JSON back. It ends where the socket does: nobody is left to ask. What a library prints goes to
standard error.
"""

import itertools
import json
import logging
import os
import signal
import socket
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dinocache.decoders import ALIGNED, Answer, Order, Run
from dinocache.errors import BUG, ItemError
from dinocache.intensity import item_windows
from dinocache.processes import ignore_stops
from dinocache.readers import ItemFiles, OpenItem, Reader, guarded, make_reader, read_rows
from dinocache.readers.channels import open_channels
from dinocache.terminal import quiet_libraries

__all__ = ["main"]

_BLOCK_ROWS = 16


class _Memory:
    """Arrays, one behind the other, in memory that can be passed on."""

    def __init__(self) -> None:
        self.descriptor = os.memfd_create("item")
        self._size = 0

    def add(self, arrays: Iterator[npt.NDArray[Any]]) -> list[Run]:
        """Put arrays behind what is there, and say where they lie."""
        runs: list[Run] = []
        for (shape, dtype), same in itertools.groupby(arrays, lambda a: (a.shape, a.dtype)):
            self._write(memoryview(bytes(-self._size % ALIGNED)))
            count = 0
            for array in same:
                self._write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
                count += 1
            runs.append((count, shape, dtype.str))
        return runs

    def _write(self, left: memoryview) -> None:
        while left:
            written = os.write(self.descriptor, left)
            self._size += written
            left = left[written:]


def main() -> int:
    """Do what is ordered until nobody orders any more.

    Returns:
        The exit code.
    """
    ignore_stops()
    # Who ends a process group by SIGPIPE means writers; here a broken pipe is the end, too.
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    ordering = socket.socket(fileno=os.dup(0))
    readers: dict[str, Reader[Any]] = {}
    try:
        with ordering, ordering.makefile("rb") as lines:
            for line in lines:
                order = Order.model_validate(json.loads(line))
                if not readers:
                    quiet_libraries(debug=order.debug)
                key = json.dumps([order.reader, order.options])
                if key not in readers:
                    readers[key] = make_reader(order.reader, order.options)
                _answer(ordering, order, readers[key])
    except (BrokenPipeError, ConnectionResetError):
        return 0
    except BaseException:
        traceback.print_exc()
        return BUG
    return 0


def _answer(ordering: socket.socket, order: Order, reader: Reader[Any]) -> None:
    memory = None
    try:
        answer, memory = _done(order, reader)
    except ItemError as exc:
        logging.getLogger(__name__).debug("an item cannot be read", exc_info=True)
        answer = Answer(error=str(exc))
    except ModuleNotFoundError as exc:
        answer = Answer(missing=exc.name or str(exc))
    line = json.dumps(answer.model_dump(mode="json")).encode() + b"\n"
    if memory is None:
        ordering.sendall(line)
        return
    try:
        socket.send_fds(ordering, [line[:1]], [memory.descriptor])
        ordering.sendall(line[1:])
    finally:
        os.close(memory.descriptor)


def _done(order: Order, reader: Reader[Any]) -> tuple[Answer, _Memory | None]:
    files = [
        ItemFiles(
            path=Path(one.path),
            mask=Path(one.mask) if one.mask else None,
            class_masks=tuple(Path(path) if path else None for path in one.class_masks),
            centre=Path(one.centre) if one.centre else None,
        )
        for one in order.files
    ]
    if order.count:
        return Answer(n_rows=guarded(lambda: reader.count_rows(files[0]))), None
    with guarded(lambda: open_channels(reader, files)) as item:
        if item.nbytes > order.most_bytes:
            return Answer(n_rows=item.n_rows), None
        memory = _Memory()
        try:
            return _decoded(order, item, memory), memory
        except BaseException:
            os.close(memory.descriptor)
            raise


def _decoded(order: Order, item: OpenItem, memory: _Memory) -> Answer:
    # Before the rows, as where threads read: of two faults the same one is told.
    windows = guarded(lambda: item_windows(tuple(order.windows), item))
    rows = memory.add(_rows(item))
    coords = guarded(item.coords)
    memory.add(iter([np.asarray(coords, "<f8")]))
    mask, mask_error = None, None
    if order.mask:
        try:
            labels = guarded(item.mask)
            (mask,) = memory.add(iter([labels]))
        except ItemError as exc:
            mask_error = str(exc)
    return Answer(
        n_rows=item.n_rows,
        rows=rows,
        coords=(coords.shape[0], coords.shape[1]),
        mask=mask,
        mask_error=mask_error,
        windows=list(windows),
        geometry=item.geometry.to_attributes(),
        value_range=item.value_range,
        notes=list(item.notes),
    )


def _rows(item: OpenItem) -> Iterator[npt.NDArray[Any]]:
    for start in range(0, item.n_rows, _BLOCK_ROWS):
        yield from read_rows(item, start, min(start + _BLOCK_ROWS, item.n_rows))


if __name__ == "__main__":
    sys.exit(main())
