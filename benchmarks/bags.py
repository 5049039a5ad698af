"""An epoch of `AbmilHead` over bags of a store, against the bare network on one bag in memory.

The bare network is the same in torch's own layers, dropout included, forwards and backwards over
one float32 bag again and again: nothing is read, no optimiser steps. Ours reads each bag from a
store, checks it, trains on it and steps. Both have all threads of torch. Ours and passes of the
bare network are run in turn, and the ratios of their speeds taken pair by pair. At the first pair
the files are not in the system's cache, and their checksums are verified.

    python benchmarks/bags.py [--bags 270] [--rows 10000] [--dim 384] [--pairs 3] [--quick]

Then the peak resident memory of a process that trains on one large bag, as the system accounts it.
"""

import argparse
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from dinocache.plan import make_grid, make_segment
from dinocache.records import Header, Record
from dinocache.store import FeatureStore
from dinocache.writer import StoreWriter, create_store
from probes.heads import AbmilHead

PROJECTION, HIDDEN, DROPOUT = 256, 128, 0.25
LARGE_ROWS, LARGE_DIM = 100_000, 1024


class Bags(Sequence[npt.NDArray[np.float16]]):
    """The items of a store, each read when it is asked for."""

    def __init__(self, path: Path) -> None:
        self._store = FeatureStore(path)
        self._ids = [str(item_id) for item_id in self._store.items["item_id"]]

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> npt.NDArray[np.float16]:
        return self._store.rows("cls", self._ids[index])


class Bare(torch.nn.Module):
    """Gated attention in torch's own layers."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.project = torch.nn.Linear(dim, PROJECTION)
        self.tanh = torch.nn.Sequential(
            torch.nn.Linear(PROJECTION, HIDDEN), torch.nn.Tanh(), torch.nn.Dropout(DROPOUT)
        )
        self.gate = torch.nn.Sequential(
            torch.nn.Linear(PROJECTION, HIDDEN), torch.nn.Sigmoid(), torch.nn.Dropout(DROPOUT)
        )
        self.score = torch.nn.Linear(HIDDEN, 1)
        self.classify = torch.nn.Linear(PROJECTION, 2)

    def forward(self, bag: torch.Tensor) -> torch.Tensor:
        """Give logits (2,) of a bag (n_rows, dim)."""
        h = self.project(bag)
        weights = self.score(self.tanh(h) * self.gate(h)).softmax(0)
        return self.classify((weights * h).sum(0))


def write_store(folder: Path, n_bags: int, rows: int, dim: int) -> Path:
    """Write a store of bags as an extraction writes it; the numbers are drawn."""
    items = [(f"slide{number:03d}", rows) for number in range(n_bags)]
    grid = make_grid([rows] * n_bags, unit_rows=None, batch=64)
    path = folder / "store"
    header = tiny_header(folder)
    # The digest stays that of the other width: it says which files belong together, no more.
    encoder = header.recipe.encoder.model_copy(update={"dim": dim})
    recipe = header.recipe.model_copy(update={"encoder": encoder})
    create_store(path, header.model_copy(update={"recipe": recipe, "grid": grid}))
    writer = StoreWriter(FeatureStore(path))
    ids = [item_id for item_id, _ in items]
    writer.put_items(pd.DataFrame({"item_id": ids, "path": ids, "group": ids}))
    segment = make_segment(
        items, grid, recipe=header.digest, after=None, stamps=[None] * len(items)
    )
    writer.add_segment(segment)
    writer.prepare(["cls"])
    block = np.random.default_rng(0).standard_normal((rows, dim), np.float32).astype(np.float16)
    for unit in segment.units:
        content = np.resize(block, (unit.n_rows, dim))
        objects = writer.write_rows("cls", unit.row_start, content)
        writer.commit(
            Record(
                unit=unit.name,
                kind="cls",
                recipe=segment.recipe,
                rows=(unit.row_start, unit.row_start + unit.n_rows),
                items=unit.n_items,
                failed={},
                not_asked=(),
                objects=objects,
                made_by={},
            )
        )
    return path


def tiny_header(folder: Path) -> Header:
    """Borrow the header of an extraction of one embedded X-ray."""
    from overhead import make_table

    from dinocache.extract import extract
    from dinocache.request import ExtractRequest

    request = ExtractRequest(
        dataset=str(make_table(folder, 1)),
        root=folder / "features",
        model="tiny",
        resolution=(32, 32),
        weights="random:0",
        device="cpu",
    )
    return FeatureStore(extract(request).path).header


def forget(path: Path) -> None:
    """Let the system drop a store's files from its cache; they are on the disk."""
    for file in path.rglob("c.*"):
        descriptor = os.open(file, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def head(epochs: int = 1) -> AbmilHead:
    return AbmilHead(
        projection=PROJECTION,
        hidden=HIDDEN,
        dropout=DROPOUT,
        balanced=False,
        patience=None,
        epochs=epochs,
    )


def bare_seconds(network: Bare, bag: torch.Tensor, passes: int) -> float:
    """Seconds a pass."""
    label = torch.tensor([1])
    began = time.perf_counter()
    for _ in range(passes):
        network.zero_grad()
        torch.nn.functional.cross_entropy(network(bag)[None], label).backward()
    return (time.perf_counter() - began) / passes


def epoch_seconds(bags: Bags, y: npt.NDArray[np.uint8]) -> float:
    """Seconds a bag of one epoch, drawing the first weights included."""
    began = time.perf_counter()
    head().fit(bags, y)
    return (time.perf_counter() - began) / len(bags)


def pairs(path: Path, options: argparse.Namespace) -> Iterator[tuple[str, float, float]]:
    """Yield (what, seconds a bag of the bare network, of ours)."""
    network, bag = Bare(options.dim), torch.randn(options.rows, options.dim)
    y = (np.arange(options.bags) % 2).astype(np.uint8)[:, None]
    passes = max(5, options.bags // 5)
    bare_seconds(network, bag, 2)
    head().fit([bag.numpy()[:100]], y[:1])  # imports the optimiser
    forget(path)
    bags = Bags(path)
    for number in range(options.pairs + 1):
        before = bare_seconds(network, bag, passes)
        ours = epoch_seconds(bags, y)
        after = bare_seconds(network, bag, passes)
        yield "first reading" if number == 0 else "again", (before + after) / 2, ours


def compare(options: argparse.Namespace) -> None:
    """Print the table of speeds."""
    print(f"{options.bags} bags of {options.rows} x {options.dim} float16\n")
    print("| epoch | bare network, ms a bag | ours, ms a bag | s an epoch | speed, ours / bare |")
    print("|---|---|---|---|---|")
    ratios = []
    with tempfile.TemporaryDirectory() as scratch:
        path = write_store(Path(scratch), options.bags, options.rows, options.dim)
        for what, bare, ours in pairs(path, options):
            ratios.append(bare / ours)
            print(
                f"| {what} | {bare * 1e3:.1f} | {ours * 1e3:.1f} | {ours * options.bags:.1f} "
                f"| {ratios[-1]:.2f} |",
                flush=True,
            )
    print(f"| **median** | | | | **{statistics.median(ratios):.2f}** |")


def large(rows: int, dim: int) -> None:
    """Train two steps on one bag of a store and print the peak memory so far, 1e9 bytes."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        draws, block = np.random.default_rng(0), 10_000
        bag = np.lib.format.open_memmap(folder / "bag.npy", "w+", np.float16, (rows, dim))
        for start in range(0, rows, block):
            bag[start : start + block] = draws.standard_normal((min(block, rows - start), dim))
        bag.flush()
        del bag
        before = peak_gb()
        bags = [np.load(folder / "bag.npy", mmap_mode="r")]
        head(epochs=2).fit(bags, np.array([[1]])).predict_proba(bags)
        print(before, peak_gb())


def peak_gb() -> float:
    """Of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e9 if sys.platform == "darwin" else peak * 1024 / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--bags", type=int, default=270)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="27 bags, two pairs")
    parser.add_argument("--large", nargs=2, type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.large:
        large(*options.large)
        return
    if options.quick:
        options.bags, options.pairs = 27, 2
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, "
        f"torch {torch.__version__}, {torch.get_num_threads()} threads\n"
    )
    compare(options)
    command = [sys.executable, __file__, "--large", str(LARGE_ROWS), str(LARGE_DIM)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    before, peak = map(float, output.split())
    print(f"\n| one bag of {LARGE_ROWS} x {LARGE_DIM} float16 | GB |\n|---|---|")
    print(f"| peak before training | {before:.2f} |\n| peak | **{peak:.2f}** |")


if __name__ == "__main__":
    main()
