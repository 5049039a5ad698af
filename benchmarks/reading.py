"""Reading a store: from the local disk, and from a server 30 ms away.

Two stores of drawn numbers are made first: 24 bags of 10,000 x 384, and 64 maps of 32 x 32 x 384.
From the disk, warm: all vectors, one bag, one map, by this project, by `np.memmap` or a copy in
RAM as the limit, by zarr-python, zarrs (zarr's pipeline in Rust) and tensorstore on the same files,
and one bag from an HDF5 file with chunks of one row as CLAM writes them. All vectors are mapped as
one file of the same rows, and as the chunk files themselves, whose opening takes longer than their
reading where system calls are slow. What takes turns is repeated and the median printed. "First
touch" is a store opened anew, whose checksums are verified; the files are in the system's cache all
the same.

Remote: an S3 server in another process behind a proxy that waits 30 ms before each answer. A bag of
20,000 rows with the store open, in round trips of 30 ms; and all that a linear probe of 20,000
images fetches, opening included, as a multiple of the array that it needs.

    python benchmarks/reading.py [--rounds 7]
"""

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import tensorstore
import zarr

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

from making import make_table, tiny_request
from serving import proxy, s3_server

from dinocache.closing import close_segment
from dinocache.extract import extract
from dinocache.layout import ITEM_PREFIX, is_vector_kind
from dinocache.places import folder_of
from dinocache.plan import make_grid, make_segment
from dinocache.records import Record
from dinocache.store import FeatureStore
from dinocache.writer import StoreWriter, create_store

DIM, DELAY_S, IMAGES = 384, 0.03, 20_000


def make_store(folder: Path, kind: str, items: dict[str, int], template: FeatureStore) -> Path:
    """Write a store of drawn numbers by the writer that extraction uses."""
    recipe = template.header.recipe
    encoder = recipe.encoder.model_copy(update={"dim": DIM, "patch_px": 16})
    given = recipe.input.model_copy(update={"resolution": (512, 512)})
    recipe = recipe.model_copy(update={"encoder": encoder, "input": given})
    grid = make_grid(list(items.values()), unit_rows=None, batch=64)
    header = template.header.model_copy(
        update={"recipe": recipe, "digest": recipe.digest, "grid": grid}
    )
    create_store(folder_of(folder), header)
    writer = StoreWriter(FeatureStore(folder))
    writer.put_items(
        pd.DataFrame({"item_id": list(items), "path": list(items), "group": list(items)}).assign(
            label=np.arange(len(items)) % 2
        )
    )
    writer.add_segment(
        make_segment(
            list(items.items()), grid, recipe=recipe.digest, after=None, stamps=[None] * len(items)
        )
    )
    writer.prepare([kind])
    draws = np.random.default_rng(0)
    (segment,) = writer.store.segments
    layout = writer.layout(kind)
    for unit in segment.units:
        objects = {}
        for start in range(0, unit.n_rows, layout.file_rows):
            rows = min(layout.file_rows, unit.n_rows - start)
            block = draws.standard_normal((rows, *layout.tail), np.float32).astype(np.float16)
            objects |= writer.write_rows(kind, unit.row_start + start, block)
        record = Record(
            unit=unit.name,
            kind=kind,
            recipe=recipe.digest,
            rows=(unit.row_start, unit.row_start + unit.n_rows),
            items=unit.n_items,
            failed={},
            not_asked=(),
            objects=objects,
            made_by={},
        )
        writer.commit(record)
    writer.reload()
    if is_vector_kind(kind):
        close_segment(writer, segment, kind, {})
    assert writer.seal(), f"{ITEM_PREFIX}{kind}"
    return folder


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def medians(works: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Time each in turn, several times."""
    for work in works.values():
        work()
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            times[name].append(seconds(work))
    return {name: statistics.median(taken) for name, taken in times.items()}


def print_table(title: str, found: dict[str, float], limit: str, wanted: dict[str, str]) -> None:
    print(f"\n{title}\n\n| by | ms | speed, of {limit} | wanted |\n|---|---|---|---|")
    for name, taken in found.items():
        share = found[limit] / taken
        print(f"| {name} | {1000 * taken:.3f} | {share:.2f} | {wanted.get(name, '')} |")


def with_zarrs(work: Callable[[], object]) -> Callable[[], object]:
    def run() -> object:
        with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
            return work()

    return run


def local(vectors: Path, maps: Path, rounds: int, scratch: Path) -> None:
    array = vectors / "features.zarr/cls"
    store = FeatureStore(vectors)
    rows = sum(store.segments[0].item_rows)
    flat = scratch / "flat.bin"
    store.all_rows("cls").tofile(flat)
    shape = (rows, DIM)

    def opened(path: Path) -> object:
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path)}}
        return tensorstore.open(spec, open=True).result()

    whole = zarr.open_array(array, mode="r")
    chunks = [path for path in array.iterdir() if path.name.startswith("c.")]

    def map_chunks() -> object:
        room = np.empty((len(chunks), *whole.chunks), np.float16)
        for chunk, path in zip(room, chunks, strict=True):
            chunk[...] = np.memmap(path, np.float16, "r", shape=chunk.shape)
        return room

    found = medians(
        {
            "np.memmap": lambda: np.array(np.memmap(flat, np.float16, "r", shape=shape)),
            f"np.memmap of the {len(chunks)} chunk files": map_chunks,
            "dinocache": lambda: store.all_rows("cls"),
            "dinocache, first touch": lambda: FeatureStore(vectors).all_rows("cls"),
            "zarr-python": lambda: whole[:],
            "zarrs": with_zarrs(lambda: zarr.open_array(array, mode="r")[:]),
            "tensorstore": lambda: opened(array)[:].read().result(),
        },
        rounds,
    )
    wanted = {"dinocache": ">= 0.8", "dinocache, first touch": ">= 0.5"}
    print_table(f"All vectors, {rows} x {DIM}", found, "np.memmap", wanted)

    bag = store.rows("cls", "bag07")
    with h5py.File(scratch / "clam.h5", "w") as file:
        file.create_dataset("features", data=bag.astype(np.float32), chunks=(1, DIM))

    def clam() -> object:
        with h5py.File(scratch / "clam.h5") as file:
            return file["features"][:]

    where = slice(7 * 10_000, 8 * 10_000)
    found = medians(
        {
            "a copy in RAM": bag.copy,
            "dinocache": lambda: store.rows("cls", "bag07"),
            "zarr-python": lambda: whole[where],
            "zarrs": with_zarrs(lambda: zarr.open_array(array, mode="r")[where]),
            "tensorstore": lambda: opened(array)[where].read().result(),
            "HDF5, chunks of one row": clam,
        },
        rounds,
    )
    print_table(f"One bag, 10000 x {DIM}", found, "a copy in RAM", {"dinocache": ">= 0.67"})
    ratio = found["HDF5, chunks of one row"] / found["dinocache"]
    print(f"\n{ratio:.0f} times as fast as the HDF5 file (wanted: 30)")

    dense = FeatureStore(maps)
    array = maps / "features.zarr/dense"
    one = zarr.open_array(array, mode="r")
    copy = dense.rows("dense", "image03")
    found = medians(
        {
            "a copy in RAM": copy.copy,
            "dinocache": lambda: dense.rows("dense", "image03"),
            "zarr-python": lambda: one[3:4],
            "zarrs": with_zarrs(lambda: zarr.open_array(array, mode="r")[3:4]),
            "tensorstore": lambda: opened(array)[3:4].read().result(),
        },
        5 * rounds,
    )
    print_table(f"One map, 32 x 32 x {DIM}", found, "a copy in RAM", {"dinocache": "< 1 ms"})


def remote(vectors: Path, images: Path, scratch: Path) -> None:
    os.environ |= {
        "AWS_ACCESS_KEY_ID": "name",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
        "DINOCACHE_CACHE": str(scratch / "cache"),
    }
    from dinocache.copying import copy_store
    from probes.cli import main as fit

    with s3_server() as server, proxy(server) as seen:
        os.environ["AWS_ENDPOINT_URL"] = seen.url
        urllib.request.urlopen(urllib.request.Request(f"{server}/team", method="PUT")).close()
        copy_store(FeatureStore(vectors), folder_of("s3://team/x"))
        copy_store(FeatureStore(images), folder_of("s3://team/images"))
        print("\nRemote, 30 ms before each answer\n\n| what | requests | bytes | s | wanted |")
        print("|---|---|---|---|---|")
        seen.behave(delay_s=DELAY_S)
        began = time.perf_counter()
        far = FeatureStore("s3://team/x")
        took = time.perf_counter() - began
        print(f"| opening | {len(seen.requests)} | {seen.sent} | {took:.3f} | |")
        far.rows("cls", "bag00")  # the array is described, a connection is there
        seen.behave()
        whole = seconds(lambda: far.rows("cls", "large1"))
        seen.behave(delay_s=DELAY_S)
        took = seconds(lambda: far.rows("cls", "large2"))
        print(
            f"| a bag of 20000 rows | {len(seen.requests)} | {seen.sent} | {took:.3f} "
            f"({whole:.3f} without the delay): {(took - whole) / DELAY_S:.1f} round trips | <= 3 |"
        )
        seen.behave()
        command = ["fit", "s3://team/images", "--target", "label", "--replicates", "20"]
        fit([*command, "--set", "epochs=2", "--out", str(scratch / "run"), "--json"])
        needed = IMAGES * DIM * 4
        print(
            f"| linear probe of {IMAGES} images | {len(seen.requests)} | {seen.sent} | | "
            f"{seen.sent / needed:.2f} of the array's bytes | <= 1.3 |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        table = make_table(scratch / "images", 2)
        template = FeatureStore(extract(tiny_request(table, scratch / "f")).path)
        bags = {f"bag{n:02d}": 10_000 for n in range(22)} | {"large1": 20_000, "large2": 20_000}
        vectors = make_store(scratch / "vectors", "cls", bags, template)
        maps = make_store(
            scratch / "maps", "dense", {f"image{n:02d}": 1 for n in range(64)}, template
        )
        few = {f"{n:06d}": 1 for n in range(IMAGES)}
        images = make_store(scratch / "few", "cls", few, template)
        print(f"{os.cpu_count()} cores, {platform.machine()}, zarr {zarr.__version__}")
        local(vectors, maps, given.rounds, scratch)
        remote(vectors, images, scratch)


if __name__ == "__main__":
    main()
