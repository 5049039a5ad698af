"""Two local workers over one, against what two bare forward loops give over one, in the same run.

Each worker, and each loop, has one core to itself: the same model, batch and rows. Rows a second of
an extraction are counted between the first unit that is committed and the last, so that starting
Python is in neither figure.

    python benchmarks/scaling.py [--model dinov3-s] [--resolution 256] [--rows 512] [--pairs 3]
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from overhead import make_table

from dinocache.progress import QuietProgress

CORES = sorted(os.sched_getaffinity(0))[:2]
UNIT_ROWS, BATCH = 16, 4


def loop(model: str, resolution: int, rows: int) -> None:
    """Run forward passes in this process and print rows a second."""
    import torch

    from dinocache.encoders import encoder_spec
    from dinocache.inference import load_encoder

    torch.set_num_threads(1)
    trunk = load_encoder(encoder_spec(model), "random:0").network.trunk
    pixels = torch.randn(BATCH, 3, resolution, resolution)
    with torch.inference_mode():
        trunk.forward_features(pixels)
        print("ready", flush=True)
        sys.stdin.readline()
        began = time.perf_counter()
        for _ in range(0, rows, BATCH):
            trunk.forward_features(pixels)
    print(rows / (time.perf_counter() - began), flush=True)


class Clock(QuietProgress):
    """Notes when units are committed."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []
        self.rows: list[int] = []

    def advance(self, rows: int, n_bytes: int, busy: Mapping[str, float]) -> None:
        """Note the moment."""
        self.times.append(time.perf_counter())
        self.rows.append(rows)

    @property
    def rate(self) -> float:
        """Rows a second, from the second unit on: behind loading and compiling the encoder."""
        return sum(self.rows[2:]) / (self.times[-1] - self.times[1])


def extraction(table: Path, root: Path, options: argparse.Namespace, workers: int) -> float:
    """Extract by local workers; gives rows a second."""
    from dinocache.cluster import extract_on
    from dinocache.request import ExtractRequest

    request = ExtractRequest(
        dataset=str(table),
        root=root,
        model=options.model,
        resolution=(options.resolution, options.resolution),
        weights="random:0",
        device="cpu",
        unit_rows=UNIT_ROWS,
        batch=BATCH,
        workers=2,
    )
    clock = Clock()
    # A worker takes the cores that its parent has, divided by the number of workers.
    os.sched_setaffinity(0, CORES[:workers])
    extract_on(request, f"local:{workers}", clock)
    os.sched_setaffinity(0, CORES)
    return clock.rate


def bare(options: argparse.Namespace, loops: int) -> float:
    """Run so many loops at once; gives rows a second of all."""
    given = [options.model, options.resolution, options.rows // 2]
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, "loop", *map(str, given)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=lambda core=core: os.sched_setaffinity(0, [core]),
        )
        for core in CORES[:loops]
    ]
    for process in processes:
        process.stdout.readline()
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    return sum(float(process.communicate()[0]) for process in processes)


def main() -> None:
    if sys.argv[1:2] == ["loop"]:
        loop(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="dinov3-s")
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--pairs", type=int, default=3)
    options = parser.parse_args()
    print(
        f"{options.model} at {options.resolution}, batch {BATCH}, {options.rows} rows, one core "
        f"each, {platform.machine()}; rows a second"
    )
    print("| pair | one loop | two loops | gain | one worker | two workers | gain | ratio |")
    print("|---|---|---|---|---|---|---|---|")
    ratios = []
    for pair in range(options.pairs):
        with tempfile.TemporaryDirectory() as scratch:
            table = make_table(Path(scratch), options.rows)
            loops = bare(options, 1), bare(options, 2)
            workers = [extraction(table, Path(scratch) / f"s{n}", options, n) for n in (1, 2)]
        gains = loops[1] / loops[0], workers[1] / workers[0]
        ratios.append(gains[1] / gains[0])
        print(
            f"| {pair + 1} | {loops[0]:.2f} | {loops[1]:.2f} | {gains[0]:.2f} | {workers[0]:.2f} "
            f"| {workers[1]:.2f} | {gains[1]:.2f} | {ratios[-1]:.3f} |",
            flush=True,
        )
    print(f"median ratio {statistics.median(ratios):.3f} (at least 0.95 is wanted)")


if __name__ == "__main__":
    main()
