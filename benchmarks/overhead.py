"""CPU seconds a row of an extraction, against the bare decoder and the bare forward pass.

Same process, same images, same batch, same threads; the three are run in turn and their ratios
taken pair by pair. What the extraction adds (resizing, normalising, checking, writing, flushing,
planning, loading the encoder) is in its own figure. Random weights: they cost what real ones cost.

    python benchmarks/overhead.py [--model dinov3-s] [--resolution 256] [--rows 192] [--pairs 3]
"""

import argparse
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from dinocache.encoders import encoder_spec
from dinocache.extract import extract
from dinocache.inference import load_encoder
from dinocache.manifest import find_dataset
from dinocache.request import ExtractRequest
from dinocache.store import FeatureStore


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU time of all threads of this process."""
    began = time.process_time()
    work()
    return time.process_time() - began


def make_table(folder: Path, n_rows: int) -> Path:
    """A table of the embedded X-rays, as often as needed; each row a file of its own."""
    demo = find_dataset("demo")
    rows = []
    for index in range(n_rows):
        source = demo.data / demo.table["path"][index % len(demo.table)]
        path = folder / f"{index:05d}.png"
        shutil.copyfile(source, path)
        rows.append({"path": path.name})
    table = folder / "images.csv"
    pd.DataFrame(rows).to_csv(table, index=False)
    return table


def decode(paths: list[Path]) -> None:
    for path in paths:
        with Image.open(path) as image:
            np.asarray(image)


def forward(model: torch.nn.Module, resolution: int, n_rows: int, batch: int) -> None:
    pixels = torch.randn(batch, 3, resolution, resolution)
    with torch.inference_mode():
        for start in range(0, n_rows, batch):
            model.forward_features(pixels[: min(batch, n_rows - start)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="dinov3-s")
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--rows", type=int, default=192)
    parser.add_argument("--pairs", type=int, default=3)
    options = parser.parse_args()
    model = load_encoder(encoder_spec(options.model), "random:0").network.trunk
    print(
        f"{options.model} at {options.resolution}, {options.rows} rows, {torch.get_num_threads()} "
        f"threads, {os.cpu_count()} cores, torch {torch.__version__}, {platform.machine()}"
    )
    print("CPU ms a row:  extraction   decoder   forward   ratio")
    ratios = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        table = make_table(folder, options.rows)
        paths = sorted(folder.glob("*.png"))
        for pair in range(options.pairs):
            request = ExtractRequest(
                dataset=str(table),
                root=folder / f"features{pair}",
                model=options.model,
                resolution=(options.resolution, options.resolution),
                weights="random:0",
                device="cpu",
            )
            ours = cpu_seconds(lambda request=request: extract(request))
            name = "images", options.model, str(options.resolution)
            batch = FeatureStore(request.root.joinpath(*name)).header.grid.batch
            bare_decode = cpu_seconds(lambda: decode(paths))
            bare_forward = cpu_seconds(
                lambda batch=batch: forward(model, options.resolution, options.rows, batch)
            )
            ratios.append(ours / (bare_decode + bare_forward))
            scale = 1000 / options.rows
            print(
                f"               {ours * scale:10.1f}{bare_decode * scale:10.1f}"
                f"{bare_forward * scale:10.1f}{ratios[-1]:8.3f}",
                flush=True,
            )
    print(f"median ratio {statistics.median(ratios):.3f} (at most 1.10 is wanted)")


if __name__ == "__main__":
    main()
