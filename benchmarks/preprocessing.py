"""Our preprocessing against the libraries': grey levels apart, and CPU time.

On real images beside the repository: chest X-rays, whose one channel the library gets as three, as
its loaders do, and slides. The library's transform is timm's of the same facts; that it is each
encoder's own is what tests/dinocache/test_transforms.py holds. All start from decoded pixels and
run on one thread, in turn; a time is the median of an image's ratios of CPU time.

    python benchmarks/preprocessing.py [--images 16] [--repeats 3]
"""

import argparse
import platform
import re
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import PIL
import timm.data
import torch
from PIL import Image

from dinocache.encoders import ENCODERS
from dinocache.recipe import InputRecipe, ResizeRecipe
from dinocache.transforms import Preprocess

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
X_RAYS, SLIDES = "xray/hannover-covid19/png/*.png", "slides/ebhi-seg/**/images/*.jpg"
WINDOW = (0.0, 255.0)
UNCHANGED = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
HEAD = """
| encoders | input | images | float32: mean, max | uint8: max | library | float32 | uint8 |
|---|---|---|---|---|---|---|---|"""

Facts = tuple[int, str, float]


def groups() -> dict[Facts, str]:
    """Encoders by what their inputs differ in, named without their sizes."""
    named: dict[Facts, list[str]] = {}
    for spec in ENCODERS:
        if spec.channels == 3 and spec.name != "tiny":
            name = re.sub(r"-(tiny|small|base|large|s|splus|b|l|g|hplus|7b)(-sat)?$", "", spec.name)
            named.setdefault((spec.native_px, spec.filter, spec.crop_pct), []).append(name)
    return {facts: ", ".join(dict.fromkeys(names)) for facts, names in named.items()}


def load(pattern: str, count: int) -> list[Image.Image]:
    paths = sorted(SHARED_DATA.glob(pattern))
    if not paths:
        raise SystemExit(f"this needs real images, {SHARED_DATA / pattern}, which are not here")
    return [Image.open(paths[i * len(paths) // count]).copy() for i in range(count)]


def ways(facts: Facts, image: Image.Image) -> list[Callable[[], torch.Tensor]]:
    """Library, float32, uint8; each gives (3, side, side) in [0, 1]."""
    side, resampling, crop_pct = facts
    library = timm.data.create_transform(
        (3, side, side), interpolation=resampling, crop_pct=crop_pct, **UNCHANGED
    )
    rgb = image.convert("RGB")
    pixels = np.atleast_3d(np.asarray(image)).transpose(2, 0, 1).copy()

    def preprocess(arithmetic: str) -> Preprocess:
        how = {"crop_pct": crop_pct, "filter": resampling, "arithmetic": arithmetic}
        resize = ResizeRecipe(mode="crop", **how)
        recipe = InputRecipe(resolution=(side, side), resize=resize, **UNCHANGED)
        return Preprocess(recipe, torch.device("cpu"))

    float32, uint8 = preprocess("float32"), preprocess("uint8")

    ours = [partial(prepare, pixels, WINDOW) for prepare in (float32, uint8)]
    return [partial(library, rgb), *ours]


def compare(facts: Facts, images: list[Image.Image], repeats: int) -> str:
    deep, eighth, seconds = [], [], []
    for image in images:
        compared = ways(facts, image)
        library, float32, uint8 = (way() for way in compared)
        deep.append((float32 - library).abs().ravel() * 255)
        eighth.append((uint8 - library).abs().ravel() * 255)
        for _ in range(repeats):
            stamps = [time.process_time()]
            for way in compared:
                way()
                stamps.append(time.process_time())
            seconds.append(np.diff(stamps))
    spent, apart = np.array(seconds), torch.cat(deep)
    ratios = " | ".join(f"{r:.2f}" for r in np.median(spent[:, 1:] / spent[:, :1], axis=0))
    difference = f"{apart.mean():.2f}, {apart.max():.1f} | {torch.cat(eighth).max():.5f}"
    return f"{difference} | {np.median(spent[:, 0]) * 1000:.1f} ms | {ratios} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for option, default in ("--images", 16), ("--repeats", 3):
        parser.add_argument(option, type=int, default=default)
    options = parser.parse_args()
    loaded = {"X-rays": load(X_RAYS, options.images), "slides": load(SLIDES, options.images)}
    torch.set_num_threads(1)
    versions = f"Pillow {PIL.__version__}, torch {torch.__version__}, timm {timm.__version__}"
    print(f"{options.images} images each, one thread, {platform.machine()}, {versions}\n{HEAD}")
    for facts, names in groups().items():
        for source, images in loaded.items():
            cells = compare(facts, images, options.repeats)
            print(f"| {names} | {', '.join(map(str, facts))} | {source} | {cells}", flush=True)


if __name__ == "__main__":
    main()
