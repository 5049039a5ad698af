"""How busy each stage of an extraction is, and its rate against that of its slowest stage alone.

Real files of 1024 px, half JPEG, half PNG, are read in threads, resized, encoded and written. Each
stage alone: reading without an encoder, passes over pixels that lie on the device, writing of
features that lie in memory.

    python benchmarks/stages.py [--models dinov3-s,dinov3-b,dinov3-l] [--resolution 512]
                                [--rows 4096] [--workers 16] [--features cls,mean] [--device auto]
"""

import argparse
import itertools
import os
import platform
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from readers import texture
from scaling import Clock

from dinocache.decoding import READ, Decoding, UnitWork
from dinocache.devices import choose_device
from dinocache.extract import extract, prepare
from dinocache.job import Job
from dinocache.meter import Meter, busy_text
from dinocache.progress import QuietProgress
from dinocache.request import ExtractRequest
from dinocache.writer import StoreWriter

SIDE = 1024
VARIETY = 64


def make_table(folder: Path, n_rows: int) -> Path:
    """Pictures of some variety; each row has a file of its own."""
    rng = np.random.default_rng(3)
    originals = []
    for index in range(VARIETY):
        image = Image.fromarray(np.roll(texture(SIDE, SIDE), rng.integers(0, SIDE, 2), (0, 1)))
        originals.append(folder / f"original{index}.{'jpg' if index % 2 else 'png'}")
        image.convert("L").save(originals[-1], **({"quality": 92} if index % 2 else {}))
    names = []
    for index, original in zip(range(n_rows), itertools.cycle(originals), strict=False):
        names.append(f"{index:06d}{original.suffix}")
        os.link(original, folder / names[-1])
    table = folder / "images.csv"
    pd.DataFrame({"path": names}).to_csv(table, index=False)
    return table


def rate(rows: int, began: float) -> float:
    return rows / (time.perf_counter() - began)


def reading(job: Job, writer: StoreWriter, work: list[UnitWork]) -> float:
    """Read and stage all rows, and throw them away; gives rows a second."""
    engine = job.engine(writer, workers=job.workers)
    decoding = Decoding(
        engine.source,
        writer.store.header.recipe,
        engine.staged,
        workers=job.workers,
        rows_ahead=job.workers * 2 + writer.store.header.grid.batch,
        whole_items=False,
        meter=Meter({READ: job.workers}),
        progress=QuietProgress(),
    )
    began, rows = time.perf_counter(), 0
    for piece in decoding.pieces(work):
        head = piece.head.result()
        rows += sum(len(block) for block in decoding.blocks(piece, head, job.features))
        piece.shared.release()
    decoding.stop()
    return rate(rows, began)


def encoding(job: Job, writer: StoreWriter) -> float:
    """Pass pixels that are on the device already; gives rows a second."""
    encoder = job.load_encoder("random:0")
    recipe, batch = writer.store.header.recipe, writer.store.header.grid.batch
    pixels = torch.randn(batch, recipe.input.channels, *recipe.input.resolution)
    pixels = pixels.to(encoder.device)
    kinds = tuple(k for k in job.features if k in encoder.spec.kinds)

    def one() -> None:
        found = encoder(pixels, kinds)
        next(iter(found.values())).flatten()[0].item()

    for _ in range(2):
        one()
    began, rows = time.perf_counter(), 0
    while time.perf_counter() - began < 5:
        one()
        rows += batch
    return rate(rows, began)


def writing(writer: StoreWriter, job: Job, rows: int) -> float:
    """Write features that are in memory, in one thread; gives rows a second."""
    blocks = {}
    for kind in job.features:
        layout = writer.layout(kind)
        blocks[kind] = np.ones((layout.file_rows, *layout.tail), layout.dtype)
    began = time.perf_counter()
    for kind, block in blocks.items():
        for row in range(0, rows - len(block) + 1, len(block)):
            writer.write_rows(kind, row, block)
    return rate(rows, began)


def compare(model: str, table: Path, root: Path, options: argparse.Namespace) -> str:
    request = ExtractRequest(
        dataset=str(table),
        root=root / "alone",
        model=model,
        resolution=(options.resolution,) * 2,
        features=tuple(options.features.split(",")),
        weights="random:0",
        device=options.device,
        workers=options.workers,
    )
    job = Job(request, QuietProgress())
    writer, work = prepare(job)
    alone = {
        "read": reading(job, writer, work),
        "encode": encoding(job, writer),
        "write": writing(writer, job, options.rows),
    }
    clock = Clock()
    whole = extract(ExtractRequest(**{**vars(request), "root": root / "whole"}), clock)
    slowest = min(alone, key=lambda stage: alone[stage])
    rates = " | ".join(f"{value:.1f}" for value in alone.values())
    return (
        f"| {model} | {options.resolution} | {rates} | {clock.rate:.1f} | {slowest} "
        f"| {clock.rate / alone[slowest]:.3f} | {busy_text(whole.busy)} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="dinov3-s,dinov3-b,dinov3-l")
    parser.add_argument("--resolution", type=int, default=512)
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 4)
    parser.add_argument("--features", default="cls,mean")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    device = choose_device(options.device)
    named = torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.machine()
    print(f"{named}, {options.workers} threads that read, torch {torch.__version__}; rows a second")
    print("| encoder | side | read | encode | write | whole | slowest | whole / slowest | busy |")
    print("|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        table = make_table(Path(scratch), options.rows)
        for model in options.models.split(","):
            root = Path(scratch) / model
            print(compare(model, table, root, options), flush=True)


if __name__ == "__main__":
    main()
