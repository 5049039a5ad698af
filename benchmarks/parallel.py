"""Rows a second of decoding in threads and in processes, for each format.

What is decoded is wanted in one process, where the encoder is: rows that another process decoded
are handed over in shared memory that is made once and used again, the cheapest way there is. One
thread, two threads and two processes take turns over the same items, a few rounds, each from
opening an item until its rows were seen by the calling thread. Then two threads and two processes
again, while one more thread keeps the interpreter's lock: by pure Python, which lets it go only
when asked to (every 5 ms), or by small torch operations, each of which lets it go, as a thread
does that launches the kernels of an encoder.

    python benchmarks/parallel.py [image] [volume] [slide] [video] [stack] [DICOM]
"""

import contextlib
import itertools
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

if hasattr(os, "sched_setaffinity"):
    CORES = os.sched_getaffinity(0)

import numpy as np

# It keeps itself to one core, before any library counts them: each thread here is worth one.
from readers import BATCH, Case, cases, look

from dinocache.readers import ItemFiles, make_reader

if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, CORES)

ROUNDS = 3
WORKERS = 2
AHEAD = 4
"""Items asked for before the first is taken; also segments of shared memory."""
SECONDS = 1.5
"""What one thread should need for a measurement, about; a fourth of the items beside a load."""
CLEARLY = 1.15
CHOSEN = (
    "image, PNG 1024 grey",
    "image, JPEG 1440 RGB",
    "image, TIFF deflate 1440 RGB",
    "image, DICOM 512 16-bit",
    "volume, .nii.gz",
    "volume, DICOM series",
    "volume, NRRD gzip",
    "slide, tiles of 224 px as stored",
    "slide, of 224 px, deflate",
    "video, MP4 H.264 720p, one frame a second",
    "video, MP4 H.264 720p, every frame, fast colours",
    "stack, HDF5 gzip",
    "stack, folder of PNG",
)

Rows = list[np.ndarray]
Take = Callable[[], Rows]


@dataclass(frozen=True, kw_only=True)
class Item:
    """What is decoded again and again.

    Attributes:
        reader: Of `READERS`.
        options: Its.
        path: The item.
    """

    reader: str
    options: Mapping[str, object]
    path: Path

    def decode(self) -> Rows:
        """Open it and give all of its rows."""
        with make_reader(self.reader, self.options).open(ItemFiles(path=self.path)) as item:
            starts = range(0, item.n_rows, BATCH)
            return [r for s in starts for r in item.rows(s, min(s + BATCH, item.n_rows))]


@cache
def attached(segment: str) -> SharedMemory:
    """Map a segment once a process."""
    return SharedMemory(segment)


def decode_into(item: Item, segment: str) -> list[tuple[tuple[int, ...], str]]:
    """Decode an item into shared memory, in another process; give each row's shape and type."""
    buffer, at, told = attached(segment).buf, 0, []
    for row in item.decode():
        there = np.ndarray(row.shape, row.dtype, buffer, at)
        there[...] = row
        at += row.nbytes
        told.append((row.shape, str(row.dtype)))
    return told


def mapped(segment: SharedMemory, told: Sequence[tuple[tuple[int, ...], str]]) -> Rows:
    """Give the rows that lie in shared memory, without copying them."""
    rows, at = [], 0
    for shape, dtype in told:
        rows.append(np.ndarray(shape, dtype, segment.buf, at))
        at += rows[-1].nbytes
    return rows


def drain(begin: Callable[[int], Take], n_items: int) -> None:
    """Take items in order, some of them begun ahead."""
    ahead: deque[Take] = deque()
    for index in range(n_items):
        if len(ahead) == AHEAD:
            look(ahead.popleft()())
        ahead.append(begin(index))
    while ahead:
        look(ahead.popleft()())


def by_threads(pool: ThreadPoolExecutor, item: Item) -> Callable[[int], Take]:
    return lambda _: pool.submit(item.decode).result


def by_processes(
    pool: ProcessPoolExecutor, item: Item, segments: Sequence[SharedMemory]
) -> Callable[[int], Take]:
    def begin(index: int) -> Take:
        segment = segments[index % AHEAD]  # taken before: there are as many as items ahead
        told: Future[list[tuple[tuple[int, ...], str]]]
        told = pool.submit(decode_into, item, segment.name)
        return lambda: mapped(segment, told.result())

    return begin


@contextlib.contextmanager
def workers(item: Item, n_bytes: int) -> Iterator[dict[str, Callable[[int], Take]]]:
    """Start threads and processes, and give the ways of decoding by their names."""
    segments = [SharedMemory(create=True, size=n_bytes) for _ in range(AHEAD)]
    try:
        with (
            ThreadPoolExecutor(1) as one,
            ThreadPoolExecutor(WORKERS) as several,
            ProcessPoolExecutor(WORKERS, multiprocessing.get_context("spawn")) as processes,
        ):
            yield {
                "one": by_threads(one, item),
                "threads": by_threads(several, item),
                "processes": by_processes(processes, item, segments),
            }
    finally:
        for segment in segments:
            segment.close()
            segment.unlink()


@contextlib.contextmanager
def beside(work: Callable[[], object] | None) -> Iterator[None]:
    """Have a thread do something again and again meanwhile."""
    if work is None:
        yield
        return
    enough = threading.Event()

    def spin() -> None:
        while not enough.is_set():
            work()

    thread = threading.Thread(target=spin)
    thread.start()
    try:
        yield
    finally:
        enough.set()
        thread.join()


def pure_python() -> object:
    return sum(number * number for number in range(300))


def small_operations() -> Callable[[], object]:
    import torch

    torch.set_num_threads(1)
    ones = torch.ones(8)
    return lambda: ones + ones


def seconds(begin: Callable[[int], Take], n_items: int, work: Callable[[], object] | None) -> float:
    with beside(work):
        began = time.perf_counter()
        drain(begin, n_items)
        return time.perf_counter() - began


def compare(case: Case) -> str:
    """Measure a format and give its line of the table."""
    with tempfile.TemporaryDirectory() as scratch:
        item = Item(reader=case.reader, options=case.options, path=case.write(Path(scratch)))
        rows = item.decode()
        began = time.perf_counter()
        look(item.decode())
        alone = time.perf_counter() - began
        n_items = {"": max(AHEAD, round(SECONDS / alone))}
        n_items["python"] = n_items["torch"] = max(AHEAD, n_items[""] // 4)
        n_rows = len(rows)
        loads = {"": None, "python": pure_python, "torch": small_operations()}
        runs = list(itertools.product(loads, ("one", "threads", "processes")))
        times: dict[tuple[str, str], list[float]] = {run: [] for run in runs}
        with workers(item, sum(row.nbytes for row in rows)) as ways:
            del rows
            for begin in ways.values():
                drain(begin, 2 * AHEAD)  # libraries are loaded, segments mapped
            for _ in range(ROUNDS):
                for load, way in runs:
                    if way != "one" or not load:
                        times[load, way].append(seconds(ways[way], n_items[load], loads[load]))

    def speed(load: str, way: str) -> float:
        return n_rows * n_items[load] / statistics.median(times[load, way])

    def ratio(load: str) -> float:
        pairs = zip(times[load, "threads"], times[load, "processes"], strict=True)
        return statistics.median(threads / processes for threads, processes in pairs)

    cells = [f"{speed('', way):.1f}" for way in ("one", "threads", "processes")]
    cells.append(f"{ratio(''):.2f}")
    for load in ("python", "torch"):
        cells += [f"{speed(load, way):.1f}" for way in ("threads", "processes")]
        cells.append(f"{ratio(load):.2f}")
    name = case.name.partition(", beside")[0]
    return f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    words = [word.lower() for word in sys.argv[1:]]
    named = {case.name.partition(", beside")[0]: case for case in cases()}
    print(
        f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores, "
        f"{platform.machine()}, {WORKERS} workers; processes where they are more than "
        f"{CLEARLY} times as fast\n"
    )
    head = ["item", "1 thread", "2 threads", "2 processes", "processes / threads"]
    head += [
        f"{what}, beside {load}"
        for load in ("pure Python", "torch operations")
        for what in ("threads", "processes", "ratio")
    ]
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for name in CHOSEN:
        if not words or any(word in name.lower() for word in words):
            print(compare(named[name]), flush=True)


if __name__ == "__main__":
    main()
