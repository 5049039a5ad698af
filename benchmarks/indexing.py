"""Seconds to index downloads of the official size; no image is opened.

Folders of empty files in the official layouts, with tables of the official length, are made in a
scratch folder; `find_dataset` is what every command begins with. Beside it a plain loop in the same
run: the folder walked and the label table read by pandas.

    python benchmarks/indexing.py [nih14] [ct-rate]
"""

import csv
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from dinocache.dataset import find_dataset
from dinocache.manifest import load_manifest, shipped_manifests

ROUNDS = 3
_MOST_A_FOLDER = 10_000


def touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY))


def write(path: Path, rows: list[list[object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def nih(folder: Path) -> Path:
    """112,120 images of 30,805 patients; the last quarter of the patients tests."""
    rng = np.random.default_rng(0)
    patients = np.sort(np.r_[np.arange(30_805), rng.integers(0, 30_805, 112_120 - 30_805)]) + 1
    findings = list(load_manifest(shipped_manifests()["nih14"]).tasks["findings"].targets)
    header = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Sex"
    rows: list[list[object]] = [[*header.split(","), "View Position"]]
    lists: dict[str, list[list[object]]] = {"train_val_list.txt": [], "test_list.txt": []}
    follow_up = 0
    for index, patient in enumerate(patients.tolist()):
        follow_up = follow_up + 1 if index and patient == patients[index - 1] else 0
        name = f"{patient:08d}_{follow_up:03d}.png"
        label = "|".join({findings[k] for k in rng.integers(0, 14, 2)})
        rows.append([name, label, follow_up, patient, 50, "M", "PA"])
        lists["test_list.txt" if patient > 23_700 else "train_val_list.txt"].append([name])
        touch(folder / f"images_{index // _MOST_A_FOLDER + 1:03d}/images/{name}")
    write(folder / "Data_Entry_2017_v2020.csv", rows)
    for name, listed in lists.items():
        write(folder / name, listed)
    return folder / "Data_Entry_2017_v2020.csv"


def ct_rate(folder: Path) -> Path:
    """47,149 and 3,039 volumes, two of a scan, in a folder a scan."""
    manifest = load_manifest(shipped_manifests()["ct-rate"])
    columns = manifest.tables["train_labels"].columns
    if not isinstance(columns, dict):
        raise TypeError("the labels of CT-RATE have a header")
    spelled = [s if isinstance(s, str) else s[0] for s in columns.values()]
    labels = folder / "dataset/multi_abnormality_labels"
    for side, count in (("train", 47_149), ("valid", 3_039)):
        rows: list[list[object]] = [spelled]
        for number in range(count):
            scan, volume = number // 2 + 1, number % 2 + 1
            name = f"{side}_{scan}_a_{volume}.nii.gz"
            rows.append([name, *(int((number + k) % 3 == 0) for k in range(len(spelled) - 1))])
            touch(folder / f"dataset/{side}_fixed/{side}_{scan}/{side}_{scan}_a/{name}")
        write(labels / f"{side}_predicted_labels.csv", rows)
        (folder / "dataset/metadata").mkdir(exist_ok=True)
        write(folder / f"dataset/metadata/no_chest_{side}.txt", [[f"{side}_1_a_1.nii.gz"]])
    return labels / "train_predicted_labels.csv"


def plain(folder: Path, table: Path) -> int:
    files = [name for _, _, names in os.walk(folder) for name in names]
    return len(set(files)) + len(pd.read_csv(table, dtype=str))


def indexed(name: str, folder: Path) -> pd.DataFrame:
    return find_dataset(name, data=folder, allow_missing=True).table


def best(call: Callable[..., object], *arguments: object) -> float:
    times = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        call(*arguments)
        times.append(time.perf_counter() - began)
    return min(times)


def main() -> None:
    chosen = sys.argv[1:] or ["nih14", "ct-rate"]
    wanted = {"nih14": (nih, 5), "ct-rate": (ct_rate, 10)}
    print(f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores; best of {ROUNDS}\n")
    print("| dataset | items | index, s | plain loop, s | ratio | at most s |")
    print("|---|---|---|---|---|---|")
    for name in chosen:
        make, most = wanted[name]
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            table = make(folder)
            items = len(indexed(name, folder))
            took, loop = best(indexed, name, folder), best(plain, folder, table)
            print(
                f"| {name} | {items:,} | {took:.2f} | {loop:.2f} | {took / loop:.1f} | {most} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
