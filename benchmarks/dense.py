"""Maps of patch features: writing and reading them, and the bytes that they take.

Four volumes of 24 slices are drawn, 32 x 32 patches of 1,024 float16 numbers each: 201 MB, in
shards of 16 slices, three a unit. What is compared takes turns, once without being counted, and
the median is printed.

- writing: by the writer that extraction uses, each shard and record flushed to the disk, against
  the same bytes through `np.memmap` with one flush at the end, and against plain files of the
  shards' sizes, each flushed.
- reading: all maps once, warm, in blocks of 8 slices in random order as a trainer does, against
  copies of the same blocks out of one `np.memmap`.
- bytes: of the same maps as int8 (`dinocache compact`), scales included.
- int8: the Dice that heads fitted on float16 maps lose on the same maps as int8; real volumes
  (MSD Task04, `images/` and `labels/` below `--data`), random weights.
- epochs: an epoch of decoder3d from a store of such volumes, against the same from memory.
- inference: the peak memory of decoder3d over 512 x 512 x 600 voxels, in a process of its own.

    python benchmarks/dense.py [--only writing,reading,bytes,int8,epochs,inference] [--rounds 5]
                               [--data ../shared/data/volumes/msd-task04-hippocampus]
"""

import argparse
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

import dense_heads
from making import make_table, tiny_request

from dinocache.compacting import compact_store
from dinocache.extract import extract
from dinocache.folders import LocalFolder
from dinocache.places import folder_of
from dinocache.plan import make_grid, make_segment
from dinocache.recipe import FormRecipe, StorageRecipe
from dinocache.records import Header, Record
from dinocache.store import FeatureStore
from dinocache.writer import StoreWriter, create_store

KIND, SIZE, PATCH, DIM = "dense", 512, 16, 1024
ITEMS = {f"scan{number}": 24 for number in range(4)}
BLOCK = 8

Work = Callable[[], object]
Maps = npt.NDArray[np.float16]


@dataclass(frozen=True, kw_only=True)
class Given:
    """What each part takes.

    Attributes:
        scratch: A folder for whatever it writes.
        header: Of a store for the maps.
        maps: (rows, 32, 32, 1024) of all items, one behind the other.
        rounds: How often it measures.
        data: Folder of real volumes.
    """

    scratch: Path
    header: Header
    maps: Maps
    rounds: int
    data: Path


def draw_maps() -> Maps:
    draws, side = np.random.default_rng(0), SIZE // PATCH
    maps = np.empty((sum(ITEMS.values()), side, side, DIM), np.float16)
    for one in maps:
        one[...] = draws.standard_normal(one.shape, np.float32)
    return maps


def make_header(scratch: Path) -> Header:
    """Take the header of a small store and give it maps of another size."""
    small = extract(tiny_request(make_table(scratch / "images", 2), scratch / "small"))
    header = FeatureStore(small.path).header
    recipe = header.recipe
    encoder = recipe.encoder.model_copy(update={"dim": DIM, "patch_px": PATCH})
    given = recipe.input.model_copy(update={"resolution": (SIZE, SIZE)})
    recipe = recipe.model_copy(update={"encoder": encoder, "input": given})
    grid = make_grid(list(ITEMS.values()), unit_rows=None, batch=8)
    return header.model_copy(update={"recipe": recipe, "digest": recipe.digest, "grid": grid})


def begin_store(folder: Path, header: Header) -> StoreWriter:
    """Make a store with items and a plan, into which nothing is written yet."""
    create_store(folder_of(folder), header)
    writer = StoreWriter(FeatureStore(folder))
    names = list(ITEMS)
    writer.put_items(pd.DataFrame({"item_id": names, "path": names, "group": names}))
    stamps = [None] * len(ITEMS)
    writer.add_segment(
        make_segment(
            list(ITEMS.items()), header.grid, recipe=header.digest, after=None, stamps=stamps
        )
    )
    writer.prepare([KIND])
    return writer


def write_units(writer: StoreWriter, maps: Maps) -> None:
    """Write and commit every unit, a shard at a time."""
    layout = writer.layout(KIND)
    at = 0
    for unit in writer.store.segments[0].units:
        objects = {}
        for start in range(0, unit.n_rows, layout.file_rows):
            block = maps[at + start : at + min(start + layout.file_rows, unit.n_rows)]
            objects |= writer.write_rows(KIND, unit.row_start + start, block)
        at += unit.n_rows
        record = Record(
            unit=unit.name,
            kind=KIND,
            recipe=writer.store.header.digest,
            rows=(unit.row_start, unit.row_start + unit.n_rows),
            items=unit.n_items,
            failed={},
            not_asked=(),
            objects=objects,
            made_by={},
        )
        writer.commit(record)


def make_store(folder: Path, given: Given) -> FeatureStore:
    writer = begin_store(folder, given.header)
    write_units(writer, given.maps)
    assert writer.seal()
    return writer.store


def take_turns(
    given: Given, begin: Mapping[str, Callable[[Path], Work]], times_over: int = 1
) -> dict[str, list[float]]:
    """Time what each begins in a fresh folder, in turns; the folder is removed afterwards."""
    times: dict[str, list[float]] = {name: [] for name in begin}
    for turn in range(given.rounds * times_over + 1):
        for name, make in begin.items():
            folder = given.scratch / "turn"
            folder.mkdir()
            work = make(folder)
            began = time.perf_counter()
            work()
            took = time.perf_counter() - began
            if turn:
                times[name].append(took)
            del work
            shutil.rmtree(folder)
    return times


def print_times(title: str, times: dict[str, list[float]], n_bytes: int, *, wanted: str) -> None:
    """Print a table; all but the first are peers, and the first's speed is said of each.

    What is said of a peer is the median over turns of the ratio within a turn: the machine may be
    slower in one turn than in another.
    """
    ours, *_ = times
    print(f"\n{title}\n\n| by | ms (fastest to slowest) | MB/s | {ours}, of its speed | wanted |")
    print("|---|---|---|---|---|")
    for number, (name, taken) in enumerate(times.items()):
        middle = statistics.median(taken)
        span = f"{1e3 * min(taken):.0f} to {1e3 * max(taken):.0f}"
        ratio = statistics.median(a / b for a, b in zip(taken, times[ours], strict=True))
        told = f"{ratio:.2f} | {wanted if number == 1 else ''}" if number else " | "
        print(f"| {name} | {1e3 * middle:.0f} ({span}) | {n_bytes / middle / 1e6:.0f} | {told} |")


def flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR)
    os.fsync(descriptor)
    os.close(descriptor)


def writing(given: Given) -> None:
    """Write all maps."""
    maps = given.maps

    def ours(folder: Path) -> Work:
        writer = begin_store(folder / "store", given.header)
        return lambda: write_units(writer, maps)

    def mapped(folder: Path) -> Work:
        def work() -> None:
            file = np.memmap(folder / "flat.bin", np.float16, "w+", shape=maps.shape)
            file[...] = maps
            file.flush()
            flush(folder / "flat.bin")

        return work

    shard = begin_store(given.scratch / "layout", given.header).layout(KIND).file_rows

    def files(folder: Path) -> Work:
        def work() -> None:
            for start in range(0, len(maps), shard):
                with (folder / f"{start}.bin").open("xb") as file:
                    file.write(maps[start : start + shard].data)
                    file.flush()
                    os.fsync(file.fileno())

        return work

    begin = {
        "dinocache": ours,
        "np.memmap, flushed once": mapped,
        f"files of {shard} maps, each flushed": files,
    }
    title = f"Writing {len(maps)} maps, {maps.nbytes / 1e6:.0f} MB"
    print_times(title, take_turns(given, begin), maps.nbytes, wanted=">= 0.7")


def reading(given: Given) -> None:
    """Read all maps in shuffled blocks."""
    maps = given.maps
    store = make_store(given.scratch / "read", given)
    maps.tofile(given.scratch / "flat.bin")
    flat = np.memmap(given.scratch / "flat.bin", np.float16, "r", shape=maps.shape)
    firsts = dict(zip(ITEMS, np.cumsum([0, *ITEMS.values()]).tolist(), strict=False))
    blocks = [(item, at) for item, rows in ITEMS.items() for at in range(0, rows, BLOCK)]
    order = np.random.default_rng(1)

    def from_store(item: str, at: int) -> Maps:
        return store.rows(KIND, item, at, at + BLOCK)

    def from_file(item: str, at: int) -> Maps:
        return np.array(flat[firsts[item] + at : firsts[item] + at + BLOCK])

    for block in blocks:
        assert np.array_equal(from_store(*block), from_file(*block))

    def shuffled(read: Callable[[str, int], Maps]) -> Callable[[Path], Work]:
        def begin(_: Path) -> Work:
            chosen = [blocks[number] for number in order.permutation(len(blocks))]

            def work() -> None:
                for block in chosen:
                    read(*block)

            return work

        return begin

    begin = {"dinocache": shuffled(from_store), "np.memmap": shuffled(from_file)}
    title = f"Reading {len(maps)} maps in shuffled blocks of {BLOCK}, copied, warm"
    print_times(title, take_turns(given, begin, 5), maps.nbytes, wanted=">= 0.7")


def bytes_kept(given: Given) -> None:
    """Compare the bytes of int8 with those of float16."""
    source = make_store(given.scratch / "float16", given)
    storage = StorageRecipe(vectors=FormRecipe(), dense=FormRecipe(dtype="int8"))
    small = compact_store(source, LocalFolder(given.scratch / "int8"), storage, "none")
    plain, kept = (sum(entry.bytes for entry in store.folder.walk("")) for store in (source, small))
    print("\nBytes of the whole store\n\n| form | MB | of float16 | wanted |\n|---|---|---|---|")
    print(f"| float16 | {plain / 1e6:.2f} | 1 | |")
    print(f"| int8 | {kept / 1e6:.2f} | {kept / plain:.4f} | <= 0.52 |")


PARTS: dict[str, Callable[[Given], None]] = {
    "writing": writing,
    "reading": reading,
    "bytes": bytes_kept,
    "int8": lambda given: dense_heads.int8_loss(given.data, given.scratch),
    "epochs": lambda given: dense_heads.epochs(given.data, given.scratch, given.rounds),
    "inference": lambda given: dense_heads.inference(600),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default=",".join(PARTS), help="parts, with commas between them")
    parser.add_argument("--rounds", type=int, default=5)
    volumes = "../shared/data/volumes/msd-task04-hippocampus"
    parser.add_argument("--data", type=Path, default=Path(volumes))
    asked = parser.parse_args()
    names = asked.only.split(",")
    if unknown := [name for name in names if name not in PARTS]:
        parser.error(f"--only: there is no {unknown[0]!r}; choose from {', '.join(PARTS)}")
    print(f"{os.cpu_count()} cores, {platform.machine()}, numpy {np.__version__}")
    maps = draw_maps()
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            scratch = Path(folder)
            header = make_header(scratch)
            given = Given(
                scratch=scratch, header=header, maps=maps, rounds=asked.rounds, data=asked.data
            )
            PARTS[name](given)


if __name__ == "__main__":
    main()
