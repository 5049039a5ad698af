"""CPU seconds and memory of NIH ChestX-ray14's shape, from its store to the report page.

A store of 112,120 items x 384 features and 14 findings of 30,805 patients, official sizes of the
sides (86,524 and 25,596), is made first, which is not counted: its features are drawn at random by
an encoder that computes nothing, its findings depend on them, with the prevalences of the official
table. Then, in a process of its own on two cores, `probe fit` (linear, 50 epochs, 14 labels, as the
paper says; intervals by 1,000 draws of patients, class by class) and `probe report`.

    python benchmarks/nih_shape.py [--items 112120] [--seeds 1] [--keep FOLDER]
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from dinocache.extract import extract, relabel
from dinocache.inference import Encoder
from dinocache.request import ExtractRequest
from dinocache.store import FeatureStore

ITEMS, PATIENTS, TRAIN = 112_120, 30_805, 86_524
PREVALENCES = {
    "Atelectasis": 11559, "Cardiomegaly": 2776, "Effusion": 13317, "Infiltration": 19894,
    "Mass": 5782, "Nodule": 6331, "Pneumonia": 1431, "Pneumothorax": 5302, "Consolidation": 4667,
    "Edema": 2303, "Emphysema": 2516, "Fibrosis": 1686, "Pleural_Thickening": 3385, "Hernia": 227,
}  # fmt: skip
"""Items of each finding in the official table."""
LIMITS = {"cpu_s": 60.0, "peak_gb": 2.0}

CHILD = """
import json, resource, sys, time
from probes.cli import main
start = time.perf_counter()
store, folder, seeds = sys.argv[1:]
targets = {targets!r}
code = main(["fit", store, "--target", targets, "--seeds", seeds, "--out", folder + "/run"])
fitted = time.process_time()
code = code or main(["report", folder])
used = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps(dict(code=code, cpu_s=time.process_time(), fit_s=fitted,
    wall_s=time.perf_counter() - start, peak_gb=used.ru_maxrss * 1024 / 1e9)))
"""


def drawn(self: Encoder, pixels: torch.Tensor, kinds: object) -> dict[str, object]:
    """What an encoder returns, without computing: vectors with a few strong directions."""
    generator = torch.Generator().manual_seed(drawn.calls)
    drawn.calls += 1
    strong = torch.randn(len(pixels), 32, generator=generator)
    noise = torch.randn(len(pixels), 384, generator=generator)
    return {"cls": (strong @ drawn.directions + 0.5 * noise).half()}


drawn.calls = 0
drawn.directions = torch.randn(32, 384, generator=torch.Generator().manual_seed(7)) / 6


def make_store(folder: Path, n_items: int) -> Path:
    """Extract one small picture many times, then give its items findings."""
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(folder / "picture.png")
    train = round(n_items * TRAIN / ITEMS)
    n_patients = round(n_items * PATIENTS / ITEMS)
    patient = np.sort(np.random.default_rng(0).integers(n_patients, size=n_items))
    cut = np.searchsorted(patient, patient[train])  # the patient at the border is on one side
    table = pd.DataFrame(
        {
            "item_id": [f"{n:08d}" for n in range(n_items)],
            "path": "picture.png",
            "group": [f"p{p}" for p in patient],
            "split": np.where(np.arange(n_items) < cut, "train", "test"),
        }
    )
    table.to_parquet(folder / "nih.parquet")
    Encoder.__call__ = drawn  # type: ignore[method-assign,assignment]
    made = extract(
        ExtractRequest(
            dataset=str(folder / "nih.parquet"),
            root=folder / "features",
            model="dinov3-s",
            resolution=(16, 16),
            features=("cls",),
            weights="random:0",
            device="cpu",
            batch=1024,
        )
    )
    _, x = FeatureStore(made.path).item_vectors("cls")
    draws = np.random.default_rng(1)
    for name, count in PREVALENCES.items():
        score = x @ draws.standard_normal(x.shape[1]) / x.std() / 20 + draws.standard_normal(len(x))
        table[name] = (score >= np.quantile(score, 1 - count / ITEMS)).astype(np.int8)
    table.to_parquet(folder / "nih.parquet")
    relabel(made.path, folder / "nih.parquet", data=folder)
    return made.path


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--items", type=int, default=ITEMS)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="make the store there, and leave it")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        stores = sorted((folder / "features").glob("*/*/*/store.json"))
        store = stores[0].parent if stores else make_store(folder, given.items)
        program = CHILD.format(targets=",".join(PREVALENCES))
        command = [sys.executable, "-c", program, str(store), str(folder / "runs")]
        ended = subprocess.run(
            [*command, str(given.seeds)], capture_output=True, text=True, check=False
        )
        if ended.returncode:
            sys.exit(ended.stderr)
        print(ended.stdout)
        found = json.loads(ended.stdout.splitlines()[-1])
    print(f"\n{date.today()}, {os.cpu_count()} cores, {platform.machine()}, made-up features\n")
    print("| items x features | seeds | CPU s | of it the fit | wall s | peak GB |")
    print("|---|---|---|---|---|---|")
    print(
        f"| {given.items:,} x 384 | {given.seeds} | {found['cpu_s']:.1f} | {found['fit_s']:.1f} | "
        f"{found['wall_s']:.1f} | {found['peak_gb']:.2f} |"
    )
    for name, limit in LIMITS.items():
        print(f"{name}: {found[name]:.2f}, at most {limit}: {found[name] <= limit}")
    sys.exit(found["code"] or any(found[name] > limit for name, limit in LIMITS.items()))


if __name__ == "__main__":
    main()
