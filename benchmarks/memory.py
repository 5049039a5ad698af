"""Peak memory of an extraction against the bare forward pass, and of a row against the model of it.

Each figure is the peak resident memory of a process of its own, as the system accounts it.

    python benchmarks/memory.py [--model dinov3-s] [--resolution 256] [--batch 64] [--rows 192]
                                [--pairs 5]
    python benchmarks/memory.py --rows-of dinov3-s,dinov3-l,dinov3-convnext-base,resnet50
    python benchmarks/memory.py --steady 20000

The last is of a long run: resident memory from row 1,000 to the end, of the process that extracts.
"""

import argparse
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from overhead import make_table


def peak_mb() -> float:
    """Of this process so far, 1e6 bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def bare(model: str, resolution: int, batch: int, passes: int) -> None:
    """Run a plain timm loop and print its peak."""
    import torch

    from dinocache.encoders import encoder_spec
    from dinocache.networks import build_network

    spec = encoder_spec(model)
    trunk = build_network(spec).trunk
    for _ in range(passes):
        pixels = torch.randn(batch, spec.channels, resolution, resolution)
        with torch.inference_mode():
            trunk.forward_features(pixels)
    print(peak_mb())


def ours(model: str, resolution: int, batch: int, rows: int) -> None:
    """Extract copies of the embedded X-rays and print the peak."""
    from dinocache.encoders import encoder_spec
    from dinocache.extract import extract
    from dinocache.request import ExtractRequest

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        request = ExtractRequest(
            dataset=str(make_table(folder, rows)),
            root=folder / "features",
            model=model,
            resolution=(resolution, resolution),
            features=encoder_spec(model).kinds,
            weights="random:0",
            device="cpu",
            batch=batch,
        )
        extract(request)
        print(peak_mb())


def measured(*arguments: object) -> float:
    """Run this file in a process of its own and read the figure that it prints."""
    command = [sys.executable, __file__, *(str(part) for part in arguments)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def compare_rows(models: str, resolution: int) -> None:
    """Print what a row adds to the peak, beside what the plan assumes."""
    from dinocache.cost import activation_bytes, gflop
    from dinocache.encoders import encoder_spec

    print("| encoder | side | MB a row, measured | assumed | assumed / measured |")
    print("|---|---|---|---|---|")
    for model in models.split(","):
        spec = encoder_spec(model)
        many = max(3, min(33, int(2000 / (gflop(spec, (resolution, resolution)) or 100))))
        few = measured("bare", model, resolution, 1, 2)
        added = (measured("bare", model, resolution, many, 2) - few) / (many - 1)
        assumed = activation_bytes(spec, (resolution, resolution)) / 1e6
        print(
            f"| {model} | {resolution} | {added:.1f} | {assumed:.1f} | {assumed / added:.2f} |",
            flush=True,
        )


def steady(rows: int) -> None:
    """Extract many small images by the tiny encoder; print the memory along the way."""
    import psutil

    from dinocache.extract import extract
    from dinocache.progress import QuietProgress
    from dinocache.request import ExtractRequest

    class Sampled(QuietProgress):
        """Notes the resident memory whenever a unit is committed."""

        done = 0
        samples: ClassVar[list[tuple[int, float]]] = []

        def advance(self, rows: int, n_bytes: int, busy: Mapping[str, float]) -> None:
            """Note it."""
            self.done += rows
            self.samples.append((self.done, psutil.Process().memory_info().rss / 1e6))

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        request = ExtractRequest(
            dataset=str(make_table(folder, rows)),
            root=folder / "features",
            model="tiny",
            resolution=(64, 64),
            features=("cls", "mean", "dense", "image"),
            weights="random:0",
            device="cpu",
            unit_rows=64,
        )
        progress = Sampled()
        extract(request, progress)
    later = [(row, mb) for row, mb in progress.samples if row >= 1000]
    for row, mb in later[:: max(len(later) // 10, 1)]:
        print(f"row {row}: {mb:.0f} MB")
    first = later[0][1]
    worst = max(abs(mb / first - 1) for _, mb in later)
    print(f"from row {later[0][0]} to {later[-1][0]}: at most {worst:.1%} away (10% is wanted)")


def main() -> None:
    if sys.argv[1:2] == ["bare"]:
        bare(sys.argv[2], *(int(part) for part in sys.argv[3:6]))
        return
    if sys.argv[1:2] == ["ours"]:
        ours(sys.argv[2], *(int(part) for part in sys.argv[3:6]))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="dinov3-s")
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rows", type=int, default=192)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--rows-of", help="Models, with commas.")
    parser.add_argument("--steady", type=int, help="Rows of a long run.")
    options = parser.parse_args()
    if options.steady:
        steady(options.steady)
        return
    if options.rows_of:
        compare_rows(options.rows_of, options.resolution)
        return
    passes = options.rows // options.batch
    of_pass = options.model, options.resolution, options.batch
    print(f"{' '.join(str(part) for part in of_pass)}, {options.rows} rows, {platform.machine()}")
    ratios = []
    for _ in range(options.pairs):
        forward = measured("bare", *of_pass, passes)
        extraction = measured("ours", *of_pass, options.rows)
        ratios.append(extraction / forward)
        print(
            f"bare forward {forward:.0f} MB, extraction {extraction:.0f} MB, {ratios[-1]:.2f}",
            flush=True,
        )
    print(f"median ratio {statistics.median(ratios):.2f} (at most 1.30 is wanted)")


if __name__ == "__main__":
    main()
