"""Small stores of real images: bytes, how fast they are made and read, and what they cost.

102 chest X-rays are extracted once with random weights (`random:0`; the losses are of such
features, not of DINOv3's), kept as float32, and written anew in each form. A map's read time is the
median over all images in turns with plain float16. "Neighbours" is the share of the 10 nearest
patches that stay, measured on images that were held out.

    python benchmarks/small.py --data ../shared/data [--rounds 3] [--out build/small]
"""

import argparse
import os
import platform
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import pandas as pd

from dinocache.compacting import compact_store
from dinocache.extract import extract
from dinocache.folders import LocalFolder
from dinocache.progress import QuietProgress
from dinocache.recipe import FormRecipe, StorageRecipe
from dinocache.request import ExtractRequest
from dinocache.store import FeatureStore

FORMS = [
    ("float16", FormRecipe(), "none"),
    ("float16, zstd", FormRecipe(), "zstd"),
    ("float16, blosc", FormRecipe(), "blosc"),
    ("int8", FormRecipe(dtype="int8"), "none"),
    ("int8, zstd", FormRecipe(dtype="int8"), "zstd"),
    ("int8, blosc", FormRecipe(dtype="int8"), "blosc"),
    ("64 components", FormRecipe(pca=64), "none"),
    ("64 components, int8", FormRecipe(dtype="int8", pca=64), "none"),
    ("64 components, int8, blosc", FormRecipe(dtype="int8", pca=64), "blosc"),
]


def extracted(data: Path, folder: Path) -> FeatureStore:
    source = data / "xray/hannover-covid19"
    given = pd.read_csv(source / "data.csv", dtype=str)
    table = pd.DataFrame(
        {"item_id": given["image_id"], "path": "png/" + given["image_id"] + ".png"}
    )
    table = table[[(source / path).is_file() for path in table["path"]]]
    folder.mkdir(parents=True, exist_ok=True)
    table.to_csv(folder / "xrays.csv", index=False)
    request = ExtractRequest(
        dataset=str(folder / "xrays.csv"),
        data=source,
        root=folder / "features",
        resolution=(512, 512),
        features=("cls", "dense"),
        weights="random:0",
        dtype="float32",
    )
    return FeatureStore(extract(request, QuietProgress()).path)


def dense_bytes(store: FeatureStore) -> int:
    return sum(entry.bytes for entry in store.folder.walk("features.zarr/dense"))


def read_maps(stores: Sequence[FeatureStore], rounds: int) -> list[float]:
    """Seconds a map of each store, in turns."""
    times: list[list[float]] = [[] for _ in stores]
    for _ in range(rounds):
        for item_id in stores[0].items["item_id"].tolist():
            for store, taken in zip(stores, times, strict=True):
                began = time.perf_counter()
                store.rows("dense", item_id)
                taken.append(time.perf_counter() - began)
    return [statistics.median(taken) for taken in times]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("build/small"))
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    source = extracted(args.data, args.out)
    stores, made_s = [], []
    for number, (_, form, codec) in enumerate(FORMS):
        place = args.out / f"form{number}"
        shutil.rmtree(place, ignore_errors=True)
        began = time.perf_counter()
        storage = StorageRecipe(vectors=FormRecipe(), dense=form)
        stores.append(compact_store(source, LocalFolder(place), storage, codec))  # type: ignore[arg-type]
        made_s.append(time.perf_counter() - began)
    read_maps(stores, 1)
    read_s = read_maps(stores, args.rounds)
    plain = dense_bytes(stores[0])
    print(
        f"{date.today()}, {os.cpu_count()} cores ({platform.machine()}), {len(source.items)} "
        f"X-rays, {source.header.recipe.encoder.name} at 512 px, random:0; float16 maps have "
        f"{plain / 1e6:.0f} MB, one is read in {read_s[0] * 1e3:.2f} ms"
    )
    print()
    print(
        "| form of the maps | bytes | made, MB/s of float32 | a map read, times as long | cosine "
        "| relative error | neighbours | cut off |"
    )
    print("|---|---|---|---|---|---|---|---|")
    whole = dense_bytes(source) / 1e6
    for (name, _, _), store, made, read in zip(FORMS, stores, made_s, read_s, strict=True):
        calibration = store.calibration("dense")
        cost = calibration.cost if calibration else None
        told = (
            f"{cost.cosine:.5f} | {cost.relative_error:.2%} | {cost.neighbours:.1%} | "
            f"{'-' if cost.clipped is None else f'{cost.clipped:.1e}'}"
            if cost and cost.neighbours is not None
            else "- | - | - | -"
        )
        size = dense_bytes(store) / plain
        print(f"| {name} | {size:.3f} | {whole / made:.0f} | {read / read_s[0]:.1f} | {told} |")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
