"""How long neurons take from affinities, and how near they come, at the size of CREMI's test crop.

The neurons are basins of noise that touch, their borders widened; the affinities are those of the
labels with noise. The variation of information is in bits, against the widened labels where those
are not 0. "Peak" is the highest memory of the process so far; one process does all, in one thread.

    python benchmarks/neurons.py [--shape 25,512,512] [--noise 0.3] [--out build/neurons.md]
"""

import argparse
import os
import platform
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from skimage.morphology import local_minima
from skimage.segmentation import watershed

from probes.metrics.instances import compare_instances
from probes.neurons import affinities, agglomerate, fragments, widened

T = TypeVar("T")
THRESHOLDS = [0.1, 0.5, 0.9]
FINE = 2
"""Pixels of a section for each one that the neurons are grown in, along y and along x."""


def grown(shape: tuple[int, int, int]) -> npt.NDArray[Any]:
    coarse = (shape[0], -(-shape[1] // FINE), -(-shape[2] // FINE))
    noise = ndimage.gaussian_filter(np.random.default_rng(0).random(coarse), (8, 10, 10))
    seeds, _ = ndimage.label(local_minima(noise))
    labels = watershed(noise, seeds).astype(np.uint32).repeat(FINE, 1).repeat(FINE, 2)
    return np.ascontiguousarray(labels[:, : shape[1], : shape[2]])


def timed(do: Callable[[], T]) -> tuple[T, float]:
    began = time.perf_counter()
    return do(), time.perf_counter() - began


def peak_mb() -> int:
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit // 10**6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", default="25,512,512")
    parser.add_argument("--noise", type=float, default=0.3)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    depth, height, width = map(int, asked.shape.split(","))
    labels = grown((depth, height, width))
    lines = [
        f"{depth} x {height} x {width}, {len(np.unique(labels))} neurons, noise {asked.noise}; "
        f"{platform.machine()}, {os.cpu_count()} cores",
        "",
        "| step | s | result | VOI | peak, MB |",
        "|---|---|---|---|---|",
    ]

    def tell(step: str, seconds: float, result: str, voi: str = "") -> None:
        lines.append(f"| {step} | {seconds:.2f} | {result} | {voi} | {peak_mb()} |")

    wide, seconds = timed(lambda: widened(labels))
    tell("widened", seconds, f"{np.mean(wide == 0):.1%} background")
    exact, seconds = timed(lambda: affinities(wide))
    tell("affinities", seconds, f"{exact.mean():.1%} are 1")
    noise = np.random.default_rng(1).standard_normal(exact.shape, np.float32)
    given = np.clip(exact + np.float32(asked.noise) * noise, 0, 1)
    del exact, noise
    pieces, seconds = timed(lambda: fragments(given))
    tell("fragments", seconds, f"{pieces.max()} fragments")
    for scoring in ("median", "mean"):
        volumes = agglomerate(given, pieces, THRESHOLDS, scoring)
        for threshold in THRESHOLDS:
            found, seconds = timed(lambda: next(volumes))  # noqa: B023
            voi = compare_instances(wide, found).voi
            step = f"agglomerate, {scoring}, {threshold}"
            tell(step, seconds, f"{len(np.unique(found))} segments", f"{voi:.3f}")
    print("\n".join(lines))
    if asked.out is not None:
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        asked.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
