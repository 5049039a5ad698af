"""Rows a second of reading in threads and in processes, for each format.

What extraction does until the encoder's input is there: items are opened, windows measured, rows
decoded and resized on the CPU, by `dinocache.decoding` with two workers. "Threads" decode in this
process, "processes" in two others (`dinocache.decoders`), for which the threads wait. Both take
turns over the same items, a few rounds; then again beside one more thread that launches small
torch operations, as the one does that encodes.

    python benchmarks/parallel.py [image] [volume] [video] [stack] [DICOM]
"""

import contextlib
import os
import platform
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

if hasattr(os, "sched_getaffinity"):
    CORES = os.sched_getaffinity(0)

import pandas as pd
import torch

# It keeps itself to one core, before any library counts them: each thread here is worth one.
from readers import Case, cases

from dinocache.decoders import Decoders
from dinocache.decoding import READ, Decoding
from dinocache.extract import prepare, unit_work
from dinocache.job import Job
from dinocache.meter import Meter
from dinocache.progress import QuietProgress
from dinocache.request import ExtractRequest
from dinocache.source import Source

if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, CORES)

ROUNDS = 5
WORKERS = 2
SECONDS = 3.0
"""What a measurement takes, about."""
CLEARLY = 1.1
CHOSEN = (
    "image, PNG 1024 grey",
    "image, JPEG 1440 RGB",
    "image, TIFF deflate 1440 RGB",
    "image, DICOM 512 16-bit, beside pydicom",
    "volume, .nii.gz",
    "volume, .nii, beside nibabel's read",
    "volume, NRRD gzip, beside SimpleITK",
    "volume, MHA zlib, beside SimpleITK",
    "volume, DICOM series, beside SimpleITK",
    "volume, DICOM multi-frame, beside pydicom",
    "video, MP4 H.264 720p, one frame a second",
    "stack, HDF5 gzip",
    "stack, folder of PNG",
)


class Reading:
    """A store's work, to be read again and again and thrown away."""

    def __init__(self, case: Case, folder: Path, n_items: int) -> None:
        item = case.write(folder)
        names = [f"{index:05d}{''.join(item.suffixes)}" for index in range(n_items)]
        for name in names:
            os.symlink(item, folder / name)
        table = folder / f"{n_items}.csv"
        pd.DataFrame({"path": names}).to_csv(table, index=False)
        request = ExtractRequest(
            dataset=str(table),
            root=folder / "features",
            name=f"of-{n_items}",
            model="tiny",
            resolution=(256, 256),
            features=("cls",),
            reader=case.reader,
            options=dict(case.options),
            weights="random:0",
            device="cpu",
            workers=WORKERS,
        )
        job = Job(request, QuietProgress())
        self.writer, _ = prepare(job)
        job.close()
        self.source = job.source
        self.engine = job.engine(self.writer, workers=WORKERS)
        self.work = list(unit_work(self.writer.store, ("cls",)))
        self.rows = sum(work.unit.n_rows for work in self.work)

    def seconds(self, decoders: Decoders | None) -> float:
        """Read all rows until they are the encoder's input."""
        source = self.source
        # What a reader says of itself is what is asked here.
        source.reader.is_apart = lambda _: decoders is not None
        decoding = Decoding(
            Source(**{**vars(source), "decoders": decoders}),
            self.writer.store.header.recipe,
            self.engine.staged,
            workers=WORKERS,
            rows_ahead=WORKERS * 2 + self.writer.store.header.grid.batch,
            whole_items=False,
            meter=Meter({READ: WORKERS}),
            progress=QuietProgress(),
        )
        began, rows = time.perf_counter(), 0
        for piece in decoding.pieces(self.work):
            head = piece.head.result()
            rows += sum(len(block) for block in decoding.blocks(piece, head, ("cls",)))
            piece.shared.release()
        decoding.stop()
        took = time.perf_counter() - began
        if rows != self.rows:
            raise AssertionError(f"{rows} rows of {self.rows} were read")
        return took


@contextlib.contextmanager
def beside_torch(wanted: bool) -> Iterator[None]:
    """Have a thread launch small operations meanwhile."""
    enough = threading.Event()

    def spin() -> None:
        ones = torch.ones(8)
        while not enough.is_set():
            ones + ones

    thread = threading.Thread(target=spin)
    if wanted:
        thread.start()
    try:
        yield
    finally:
        enough.set()
        if wanted:
            thread.join()


def compare(case: Case) -> str:
    """Measure a format and give its line of the table."""
    with (
        tempfile.TemporaryDirectory() as scratch,
        contextlib.closing(Decoders(WORKERS)) as decoders,
    ):
        (few := Path(scratch) / "few").mkdir()
        (many := Path(scratch) / "many").mkdir()
        first = Reading(case, few, 4)
        first.seconds(decoders)  # libraries are loaded
        first.seconds(None)
        n_items = max(8, round(4 * SECONDS / first.seconds(None)))
        reading = Reading(case, many, n_items)
        times: dict[tuple[bool, bool], list[float]] = {}
        for _ in range(ROUNDS):
            for beside in (False, True):
                for apart in (False, True):
                    with beside_torch(beside):
                        took = reading.seconds(decoders if apart else None)
                    times.setdefault((beside, apart), []).append(took)

    def ratio(beside: bool) -> float:
        pairs = zip(times[beside, False], times[beside, True], strict=True)
        return statistics.median(threads / processes for threads, processes in pairs)

    rates = [f"{reading.rows / statistics.median(times[False, way]):.1f}" for way in (False, True)]
    name = case.name.partition(", beside")[0]
    return f"| {name} | {' | '.join(rates)} | {ratio(False):.2f} | {ratio(True):.2f} |"


def main() -> None:
    words = [word.lower() for word in sys.argv[1:]]
    named = {case.name: case for case in cases()}
    torch.set_num_threads(1)
    print(
        f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores, "
        f"{platform.machine()}, {WORKERS} workers; processes are worth it from {CLEARLY} on\n"
    )
    print("| item | threads | processes | processes / threads | beside torch operations |")
    print("|---|---|---|---|---|")
    for name in CHOSEN:
        if not words or any(word in name.lower() for word in words):
            print(compare(named[name]), flush=True)


if __name__ == "__main__":
    main()
