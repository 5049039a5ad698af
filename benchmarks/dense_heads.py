"""Heads of maps: what int8 costs them, how well the store keeps them busy, what they hold.

Parts of `benchmarks/dense.py`; the last is a process of its own:

    python benchmarks/dense_heads.py --inference 600
"""

import argparse
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from dinocache.compacting import compact_store
from dinocache.extract import extract
from dinocache.folders import LocalFolder
from dinocache.recipe import FormRecipe, StorageRecipe
from dinocache.request import ExtractRequest
from probes.heads import make_dense_head
from probes.maps import StoredCases, stored_cases
from probes.metrics.cases import evaluate_cases, measure_case
from probes.segmentation import predicted_labels

LABELS = {1: "anterior", 2: "posterior"}
SIZE = 512


def hippocampi(data: Path, scratch: Path, count: int) -> Path:
    """Extract volumes of the hippocampus by dinov3-s with random weights at 128 px."""
    names = sorted(path.name for path in (data / "images").glob("*.nii.gz"))[:count]
    table = scratch / "hippocampus.csv"
    rows = [{"path": f"images/{name}", "mask": f"labels/{name}"} for name in names]
    pd.DataFrame(rows).assign(item_id=names).to_csv(table, index=False)
    request = ExtractRequest(
        dataset=str(table),
        data=data,
        root=scratch / "features",
        model="dinov3-s",
        resolution=(128, 128),
        features=("dense", "mask"),
        weights="random:0",
    )
    return extract(request).path


def dice(cases: StoredCases, head: Any, items: range) -> float:  # noqa: ANN401 - any dense head
    measured = [
        measure_case(
            cases.labels(item, 0, cases.n_rows(item)),
            predicted_labels([head], cases, item, overlapping=False).labels,
            [1, 2],
            ["dice"],
        )
        for item in items
    ]
    return evaluate_cases(measured, ["dice"]).values["dice"]


def int8_loss(data: Path, scratch: Path) -> None:
    """Ask one fitted head about maps as they are, and about the same as int8."""
    store = hippocampi(data, scratch, 20)
    cases, _ = stored_cases(store, ["dense"], LABELS)
    form = StorageRecipe(vectors=FormRecipe(), dense=FormRecipe(dtype="int8"))
    small = compact_store(cases.store, LocalFolder(scratch / "int8"), form, "none")
    of_small, _ = stored_cases(small.folder, ["dense"], LABELS)
    train, test = range(14), range(14, 20)
    print("\nDice of 6 hippocampi, heads fitted on 14 with float16 maps, random weights\n")
    print("| head | float16 | int8 | lost | wanted |\n|---|---|---|---|---|")
    for name, settings in (
        ("linear2d", {"epochs": 20, "lr": 0.01}),
        ("decoder2d", {"epochs": 5, "lr": 0.001}),
        ("decoder3d", {"epochs": 8, "lr": 0.001, "width": 64, "stages": 3}),
    ):
        head = make_dense_head(name, **settings).fit(cases.some(list(train)), len(LABELS))
        plain, kept = dice(cases, head, test), dice(of_small, head, test)
        print(f"| {name} | {plain:.4f} | {kept:.4f} | {plain - kept:+.4f} | <= 0.005 |")


class Held:
    """Cases that were read into memory before."""

    def __init__(self, cases: StoredCases) -> None:
        self.channels, self.levels, self.views = cases.channels, cases.levels, (None,)
        rows = [cases.n_rows(item) for item in range(len(cases))]
        self._maps = [cases.maps(item, 0, n) for item, n in enumerate(rows)]
        self._labels = [cases.labels(item, 0, n) for item, n in enumerate(rows)]

    def __len__(self) -> int:
        return len(self._labels)

    def n_rows(self, item: int) -> int:
        """See `Cases`."""
        return len(self._labels[item])

    def size(self, item: int) -> tuple[int, int]:
        """See `Cases`."""
        height, width = self._labels[item].shape[1:]
        return height, width

    def maps(
        self, item: int, start: int, stop: int, view: str | None = None
    ) -> tuple[npt.NDArray[Any], ...]:
        """See `Cases`."""
        return tuple(one[start:stop] for one in self._maps[item])

    def labels(self, item: int, start: int, stop: int, view: str | None = None) -> npt.NDArray[Any]:
        """See `Cases`."""
        return self._labels[item][start:stop]


def epochs(data: Path, scratch: Path, rounds: int) -> None:
    """Time epochs of decoder3d from a store, and of the same from memory, in turns."""
    store = hippocampi(data, scratch, 6)
    cases, _ = stored_cases(store, ["dense"], LABELS)
    of = {"store": cases, "memory": Held(cases)}

    def fit(name: str, n_epochs: int) -> float:
        head = make_dense_head("decoder3d", epochs=n_epochs, width=64)
        began = time.perf_counter()
        head.fit(of[name], len(LABELS))
        return time.perf_counter() - began

    ratios: list[float] = []
    times: dict[str, list[float]] = {name: [] for name in of}
    for turn in range(rounds + 1):
        # What comes before the first epoch is in both, and falls out.
        took = {name: (fit(name, 3) - fit(name, 1)) / 2 for name in of}
        if turn:
            ratios.append(took["store"] / took["memory"])
            for name, seconds in took.items():
                times[name].append(seconds)
    print("\nAn epoch of decoder3d, 6 hippocampi, width 64\n")
    print("| from | s | times as long as from memory | wanted |\n|---|---|---|---|")
    for name, taken in times.items():
        told = f"{statistics.median(ratios):.3f} | <= 1.15" if name == "store" else " | "
        print(f"| {name} | {statistics.median(taken):.2f} | {told} |")


class Drawn:
    """One volume of 512 x 512 px whose maps are made when they are asked for."""

    channels, levels, views = (1024,), (0,), (None,)

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._one = np.random.default_rng(0).standard_normal((32, 32, 1024)).astype(np.float16)

    def __len__(self) -> int:
        return 1

    def n_rows(self, item: int) -> int:
        """See `Cases`."""
        return self._rows

    def size(self, item: int) -> tuple[int, int]:
        """See `Cases`."""
        return SIZE, SIZE

    def maps(
        self, item: int, start: int, stop: int, view: str | None = None
    ) -> tuple[npt.NDArray[Any], ...]:
        """See `Cases`."""
        return (np.stack([np.roll(self._one, row, axis=0) for row in range(start, stop)]),)

    def labels(self, item: int, start: int, stop: int, view: str | None = None) -> npt.NDArray[Any]:
        """See `Cases`."""
        labels = np.zeros((stop - start, SIZE, SIZE), np.uint8)
        labels[:, 100:200, 50:300] = 1
        labels[:, 300:400, 300:400] = 2
        return labels


def infer(rows: int) -> None:
    """Fit for one step, predict a whole volume into labels, and print the peak memory, MB."""
    few = Drawn(16)
    settings = {"epochs": 1, "block_rows": 8, "batch_size": 1, "steps": 1}
    fitted = make_dense_head("decoder3d", **settings).fit(few, len(LABELS))
    head = type(fitted).from_arrays(make_dense_head("decoder3d").get_params(), fitted.to_arrays())
    whole = Drawn(rows)
    labels = np.empty((rows, SIZE, SIZE), np.uint8)
    for first, scores in head.predict(whole, 0):
        labels[first : first + scores.shape[1]] = scores.argmax(0)
    measure_case(whole.labels(0, 0, rows), labels, [1, 2], ["dice"])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6)


def inference(rows: int) -> None:
    """Run `infer` in a process of its own."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, __file__, "--inference", str(rows)],
        check=True,
        capture_output=True,
        text=True,
    )
    took = time.perf_counter() - began
    print(f"\nInference of decoder3d, {SIZE} x {SIZE} x {rows}, 32 x 32 x 1024 maps, 3 classes\n")
    print("| peak, GB | s | wanted |\n|---|---|---|")
    print(f"| {float(done.stdout) / 1000:.2f} | {took:.0f} | < 6 |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--inference", type=int, required=True, metavar="ROWS")
    infer(parser.parse_args().inference)
