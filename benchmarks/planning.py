"""Seconds to plan very many items, and to see that all of them are done.

Images are hard links of a few small PNGs in a scratch folder, volumes copies of a small NIfTI file;
all is removed afterwards. Planning is what `dinocache plan --no-timing` does, from reading the
table on: once with nothing remembered of the headers, once with all of it. The store is a real one,
made by the smallest encoder; then the same command finds it finished. The plain loop looks at every
file and opens it with Pillow, in the same run.

    python benchmarks/planning.py [--images 100000] [--volumes 2000] [--profile]
"""

import argparse
import cProfile
import os
import platform
import pstats
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from dinocache.extract import extract
from dinocache.forecast import dry_run
from dinocache.request import ExtractRequest
from dinocache.verify import verify

DISTINCT = 50
"""A file system allows some 65,000 links of a file."""
LIMITS = {"planning, cold": 60.0, "planning, warm": 60.0, "seeing that all is done": 3.0}


def make_images(folder: Path, count: int) -> Path:
    """A table of small images in folders of a thousand."""
    rng = np.random.default_rng(0)
    originals = []
    (folder / "originals").mkdir(parents=True)
    for index in range(DISTINCT):
        pixels = rng.integers(0, 256, (32 + index % 7, 32 + index % 5)).astype(np.uint8)
        originals.append(folder / f"originals/{index}.png")
        Image.fromarray(pixels).save(originals[-1])
    rows = []
    for index in range(count):
        name = f"{index // 1000:03d}/{index:06d}.png"
        if index % 1000 == 0:
            (folder / f"{index // 1000:03d}").mkdir()
        os.link(originals[index % DISTINCT], folder / name)
        rows.append({"path": name, "group": f"p{index // 3}", "label": index % 2})
    return table_of(folder / "images.csv", rows)


def make_volumes(folder: Path, count: int) -> Path:
    """A table of small compressed volumes."""
    import nibabel

    folder.mkdir()
    original = folder / "original.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.zeros((32, 33, 34), np.int16), np.eye(4)), original)
    content = original.read_bytes()
    rows = []
    for index in range(count):
        (folder / f"{index:06d}.nii.gz").write_bytes(content)
        rows.append({"path": f"{index:06d}.nii.gz"})
    return table_of(folder / "volumes.csv", rows)


def table_of(path: Path, rows: list[dict[str, object]]) -> Path:
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def plain_loop(table: Path) -> None:
    for path in pd.read_csv(table)["path"]:
        os.stat(table.parent / path)
        with Image.open(table.parent / path) as image:
            image.size  # noqa: B018 - the header has been read


def measured(name: str, work: Callable[[], object], *, profile: bool) -> float:
    profiler = cProfile.Profile()
    began = time.perf_counter()
    if profile:
        profiler.runcall(work)
    else:
        work()
    seconds = time.perf_counter() - began
    if profile:
        print(f"--- {name}")
        pstats.Stats(profiler).sort_stats("cumulative").print_stats(40)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--volumes", type=int, default=2_000)
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        os.environ["DINOCACHE_CACHE"] = str(folder / "cache")
        images = make_images(folder / "images", options.images)
        volumes = make_volumes(folder / "volumes", options.volumes)
        # What is imported late is imported before anything is measured.
        few = table_of(folder / "images/few.csv", [{"path": "000/000000.png"}])
        extract(request_of(few, folder / "f"))
        dry_run(request_of(few, folder / "f"))

        def took(name: str, work: Callable[[], object]) -> float:
            return measured(name, work, profile=options.profile)

        request = request_of(images, folder / "f")
        of_images = {
            "the plain loop": took("plain loop", lambda: plain_loop(images)),
            "planning, cold": took("cold", lambda: dry_run(request)),
            "planning, warm": took("warm", lambda: dry_run(request)),
        }
        made = took("extraction", lambda: extract(request))
        of_images["seeing that all is done"] = took("done", lambda: extract(request))
        of_images["planning, of a finished store"] = took("plan", lambda: dry_run(request))
        if verify(dry_run(request).path).exit_code:
            raise SystemExit("the store is not sound")
        of_volumes = {
            "planning, cold": took("cold", lambda: dry_run(request_of(volumes, folder / "f"))),
            "planning, warm": took("warm", lambda: dry_run(request_of(volumes, folder / "f"))),
        }
    print(f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}")
    print(f"(the extraction itself took {made:.0f} s)")
    print("| items | what | s | of the plain loop | at most s |\n|---|---|---|---|---|")
    for what, seconds in of_images.items():
        ratio = seconds / of_images["the plain loop"]
        limit = LIMITS.get(what)
        print(
            f"| {options.images} images | {what} | {seconds:.2f} | {ratio:.2f} | "
            f"{'' if limit is None else f'{limit:g}'} |"
        )
    for what, seconds in of_volumes.items():
        print(f"| {options.volumes} volumes | {what} | {seconds:.2f} | | |")


def request_of(table: Path, root: Path) -> ExtractRequest:
    return ExtractRequest(
        dataset=str(table),
        root=root,
        model="tiny",
        resolution=(32, 32),
        weights="random:0",
        device="cpu",
        features=("cls",),
    )


if __name__ == "__main__":
    main()
