"""CPU seconds a row of an extraction, against the bare decoder and the bare forward pass.

Same process, same items, same batch, same threads; the three are run in turn and their ratios taken
pair by pair. What the extraction adds (resizing, normalising, checking, writing, flushing,
planning, loading the encoder) is in its own figure. Random weights: they cost what real ones cost.

    python benchmarks/overhead.py [--items images,volumes,slides] [--model dinov3-s]
                                  [--resolution 256] [--rows 384] [--pairs 3]
"""

import argparse
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image

from dinocache.dataset import find_dataset
from dinocache.encoders import encoder_spec
from dinocache.extract import extract
from dinocache.inference import load_encoder
from dinocache.request import ExtractRequest
from dinocache.store import FeatureStore

TILE_PX = 224


@dataclass(frozen=True)
class Items:
    """Items of one sort: a table of them, and how a plain loop decodes them."""

    table: Path
    decode: Callable[[FeatureStore], None]
    options: dict[str, Any] = field(default_factory=dict)


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


def images(folder: Path, n_rows: int) -> Items:
    table = make_table(folder, n_rows)

    def decode(_: FeatureStore) -> None:
        for path in sorted(folder.glob("*.png")):
            with Image.open(path) as image:
                np.asarray(image)

    return Items(table, decode)


def volumes(folder: Path, n_rows: int) -> Items:
    """CT volumes of 64 slices, .nii.gz."""
    import nibabel
    from readers import write_gzip

    paths = []
    for index in range(max(n_rows // 64, 1)):
        (home := folder / f"v{index}").mkdir()
        paths.append(write_gzip(home, 64))
    table = folder / "volumes.csv"
    pd.DataFrame({"path": [p.relative_to(folder) for p in paths]}).to_csv(table, index=False)

    def decode(_: FeatureStore) -> None:
        for path in paths:
            np.asarray(nibabel.load(path).dataobj)

    return Items(table, decode, {"options": {"axis": "axial"}})


def slides(folder: Path, n_rows: int) -> Items:
    """One slide with so many tiles, about, on its second level."""
    from readers import bare_openslide, write_slide

    side = int(n_rows**0.5) * 2 * TILE_PX
    path = write_slide(folder, side=-(-side // 512) * 512)
    table = folder / "slides.csv"
    pd.DataFrame({"path": [path.name]}).to_csv(table, index=False)

    def decode(store: FeatureStore) -> None:
        bare_openslide(1, TILE_PX)(path, store.coords(str(store.items["item_id"][0]))[0])

    options = {"tile_px": TILE_PX, "tissue": "none", "tile_mpp": 0.5}
    return Items(table, decode, {"reader": "slide", "options": options})


KINDS = {"images": images, "volumes": volumes, "slides": slides}


def forward(model: torch.nn.Module, resolution: int, n_rows: int, batch: int) -> None:
    pixels = torch.randn(batch, 3, resolution, resolution)
    with torch.inference_mode():
        for start in range(0, n_rows, batch):
            model.forward_features(pixels[: min(batch, n_rows - start)])


def compare(name: str, options: argparse.Namespace, model: torch.nn.Module) -> None:
    ratios = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        items = KINDS[name](folder, options.rows)
        for pair in range(options.pairs):
            request = ExtractRequest(
                dataset=str(items.table),
                root=folder / f"features{pair}",
                model=options.model,
                resolution=(options.resolution, options.resolution),
                weights="random:0",
                device="cpu",
                **items.options,
            )
            ours = cpu_seconds(lambda request=request: extract(request))
            name_in_root = items.table.stem, options.model, str(options.resolution)
            store = FeatureStore(request.root.joinpath(*name_in_root))
            rows = sum(sum(segment.item_rows) for segment in store.segments)
            batch = store.header.grid.batch
            bare_decode = cpu_seconds(lambda store=store: items.decode(store))
            bare_forward = cpu_seconds(
                lambda rows=rows, batch=batch: forward(model, options.resolution, rows, batch)
            )
            ratios.append(ours / (bare_decode + bare_forward))
            scale = 1000 / rows
            print(
                f"| {name} | {rows} | {ours * scale:.1f} | {bare_decode * scale:.1f} "
                f"| {bare_forward * scale:.1f} | {ratios[-1]:.3f} |",
                flush=True,
            )
    print(f"| {name}, **median** | | | | | **{statistics.median(ratios):.3f}** |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", default=",".join(KINDS))
    parser.add_argument("--model", default="dinov3-s")
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--rows", type=int, default=384)
    parser.add_argument("--pairs", type=int, default=3)
    options = parser.parse_args()
    model = load_encoder(encoder_spec(options.model), "random:0").network.trunk
    print(
        f"{options.model} at {options.resolution}, {torch.get_num_threads()} threads, "
        f"{os.cpu_count()} cores, torch {torch.__version__}, {platform.machine()}; CPU ms a row; "
        "a ratio of at most 1.05 is wanted"
    )
    print("| items | rows | extraction | decoder | forward | ratio |")
    print("|---|---|---|---|---|---|")
    for name in options.items.split(","):
        compare(name, options, model)


if __name__ == "__main__":
    main()
