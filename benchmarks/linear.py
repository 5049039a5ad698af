"""The linear head against the limit of its products, a plain loop, scikit-learn and file loaders.

Features are synthetic: low rank plus noise, 14 labels of 0.2 % to 18 %. All that is compared runs
in this process; what a ratio compares takes turns, and the median of the rounds is printed.

The limit of a descent is the time of what it cannot do without: for each batch the product for the
logits and the one for the gradient, on operands that lie in the cache, each with one thread or with
as many as torch has, whichever is faster in that round; and once an epoch a sum over all features
where they lie, for their bytes. Gathering, losses, the optimiser and Python are not in it.

    python benchmarks/linear.py [--quick] [--rounds 5]

A single fit and a search are timed whole, with the statistics of the features. scikit-learn fits
all labels, one after another, on features standardised beforehand (not timed), with its defaults.
It and the plain loop have one thread or all, whichever a short trial shows to be faster: threads
that share small products wait for each other where another process wants a core. `lightning` is
not needed: the loop over .pt files is the bare one that its trainer runs, without hooks and
logging, and is timed on a part of the rows.
"""

import argparse
import os
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import sklearn
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from threadpoolctl import threadpool_limits
from torch.utils.data import DataLoader, Dataset

from probes.heads.linear import LinearHead, fit_linear

Array = npt.NDArray[np.float32]
Targets = npt.NDArray[np.uint8]

DIM, LABELS, RANK, BATCH = 768, 14, 64, 1024
RATES = (0.0005, 0.002, 0.005, 0.02)
DECAYS = (0.0, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
L2 = 1e-3
"""Of both optima: so strong that where scikit-learn stops by default makes no difference."""
THREADS = torch.get_num_threads()


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    train: int = 100_000
    held: int = 20_000
    epochs: int = 50
    search_epochs: int = 5
    files: int = 5_000


QUICK = Sizes(train=12_000, held=4_000, epochs=6, search_epochs=2, files=500)


def make_data(n_items: int, seed: int) -> tuple[Array, Targets]:
    """Features (n_items, DIM) and targets (n_items, LABELS); the seed draws the items only."""
    fixed, draws = np.random.default_rng(0), np.random.default_rng(seed)
    loadings = fixed.standard_normal((RANK, DIM)) * np.arange(1, RANK + 1)[:, None] ** -0.5
    direction = fixed.standard_normal((RANK, LABELS)) * 2 / RANK**0.5
    factors = draws.standard_normal((n_items, RANK), dtype=np.float32)
    x = factors @ loadings.astype(np.float32)
    x += 0.5 * draws.standard_normal(x.shape, dtype=np.float32)
    x += fixed.standard_normal(DIM).astype(np.float32)
    logits = factors @ direction + draws.logistic(size=(n_items, LABELS))
    shares = np.geomspace(0.002, 0.18, LABELS)
    # The same cut for all draws: logits have one distribution.
    cuts = np.array([np.quantile(logits[:, c], 1 - share) for c, share in enumerate(shares)])
    return x, (logits > cuts).astype(np.uint8)


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def products(n_items: int, columns: int) -> float:
    """Seconds of the products of one epoch, with the better number of threads."""
    sizes = [BATCH] * (n_items // BATCH) + [n_items % BATCH] * (n_items % BATCH > 0)
    rows, weight = torch.randn(BATCH, DIM), torch.randn(columns, DIM)
    residuals, gradient = torch.randn(columns * BATCH), torch.empty(columns, DIM)

    def epoch() -> None:
        for size in sizes:
            logits = residuals[: columns * size].view(columns, size)
            torch.mm(weight, rows[:size].t(), out=logits)
            torch.mm(logits, rows[:size], out=gradient)

    return min(with_threads(threads, epoch) for threads in {1, THREADS})


def with_threads(threads: int, work: Callable[[], object]) -> float:
    """Seconds of some work with so many threads of torch and of BLAS."""
    torch.set_num_threads(threads)
    with threadpool_limits(threads):
        took = seconds(work)
    torch.set_num_threads(THREADS)
    return took


def better_threads(trial: Callable[[], object]) -> int:
    """Say with how many threads some work is faster, one or all, by a short trial of it."""
    return min({1, THREADS}, key=lambda threads: with_threads(threads, trial))


def limit(x: Array, columns: int) -> float:
    """Seconds of an epoch that cannot be saved; see the docstring of the module."""
    features = torch.from_numpy(x)
    reading = min(with_threads(threads, features.sum) for threads in {1, THREADS})
    return products(len(x), columns) + reading


def plain_loop(x: Array, y: Targets, epochs: int) -> None:
    """Train the same head as most scripts do, on the same standardised features."""
    deviation, mean = torch.std_mean(torch.from_numpy(x), dim=0, correction=0)
    features, targets = (torch.from_numpy(x) - mean) / deviation, torch.from_numpy(y).float()
    model = torch.nn.Linear(DIM, LABELS)
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.005, weight_decay=0.0)
    criterion = torch.nn.BCEWithLogitsLoss()
    for _ in range(epochs):
        order = torch.randperm(len(x))
        for start in range(0, len(x), BATCH):
            rows = order[start : start + BATCH]
            loss = criterion(model(features.index_select(0, rows)), targets.index_select(0, rows))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()


class FilePerSample(Dataset):
    """One .pt file a sample."""

    def __init__(self, folder: Path, n_files: int) -> None:
        self.paths = [folder / f"{number}.pt" for number in range(n_files)]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        return torch.load(self.paths[number])


def file_loop(folder: Path, n_files: int) -> None:
    """Train for one epoch on batches of single files."""
    loader = DataLoader(FilePerSample(folder, n_files), batch_size=BATCH, shuffle=True)
    model = torch.nn.Linear(DIM, LABELS)
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.005, weight_decay=0.0)
    for batch in loader:
        logits = model(batch["features"])
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, batch["targets"])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def mean_auc(y: Targets, scores: npt.NDArray[np.floating]) -> float:
    return float(np.mean([roc_auc_score(y[:, c], scores[:, c]) for c in range(LABELS)]))


class Table:
    """Rows of a Markdown table; a target is at least or at most."""

    def __init__(self) -> None:
        self.rows: list[str] = []

    def add(self, what: str, ours: Sequence[float], other: Sequence[float], target: str) -> None:
        """Add the ratio of ``other`` to ``ours``, or for "<=" of ``ours`` to ``other``."""
        pairs = list(zip(ours, other, strict=True))
        ratios = [a / b if target.startswith("<=") else b / a for a, b in pairs]
        ratio = statistics.median(ratios)
        met = ""
        if target:
            bound = float(target.lstrip("<>= "))
            met = "yes" if (ratio <= bound if target.startswith("<=") else ratio >= bound) else "no"
        self.rows.append(
            f"| {what} | {statistics.median(ours):.2f} | {statistics.median(other):.2f} "
            f"| {ratio:.2f} ({min(ratios):.2f} to {max(ratios):.2f}) | {target} | {met} |"
        )

    def print(self) -> None:
        """Print it."""
        print("| what | ours, s | other, s | ratio, median (range) | target | met |")
        print("|---|---|---|---|---|---|")
        print("\n".join(self.rows))


def single(table: Table, x: Array, y: Targets, sizes: Sizes, rounds: int) -> None:
    """One head: against the limit, the plain loop, and itself on halves."""
    halves = x.astype(np.float16)
    ours, of_halves, bounds, plain = [], [], [], []
    for _ in range(rounds):
        before = limit(x, LABELS)
        ours.append(seconds(lambda: LinearHead(epochs=sizes.epochs).fit(x, y)))
        bounds.append(sizes.epochs * (before + limit(x, LABELS)) / 2)
        of_halves.append(seconds(lambda: LinearHead(epochs=sizes.epochs).fit(halves, y)))
        threads = better_threads(lambda: plain_loop(x, y, 1))
        plain.append(with_threads(threads, lambda: plain_loop(x, y, sizes.epochs)))
    name = f"one fit, {sizes.epochs} epochs"
    table.add(f"{name}: of its limit", ours, bounds, "<= 3")
    table.add(f"{name}: plain torch loop", ours, plain, "")
    table.add(f"{name}: plain torch loop, of that limit", plain, bounds, "<= 3")
    table.add(f"{name}: the same on float16", ours, of_halves, "")


def search(table: Table, x: Array, y: Targets, sizes: Sizes, rounds: int) -> None:
    """24 points side by side: against the limit, and against single fits."""
    points = [(rate, decay) for rate in RATES for decay in DECAYS]
    everything = [np.ones(len(x), dtype=bool)] * len(points)

    def heads() -> list[LinearHead]:
        return [LinearHead(epochs=sizes.search_epochs, lr=a, weight_decay=b) for a, b in points]

    ours, bounds, singles = [], [], []
    for turn in range(rounds):
        before = limit(x, LABELS * len(points))
        ours.append(seconds(lambda: fit_linear(heads(), x, y, everything)))
        bounds.append(sizes.search_epochs * (before + limit(x, LABELS * len(points))) / 2)
        some = heads()[turn % 8 :: 8]
        took = sum(seconds(lambda head=head: head.fit(x, y)) for head in some)
        singles.append(took * len(points) / len(some))
    name = f"search of {len(points)} points, {sizes.search_epochs} epochs"
    table.add(f"{name}: of its limit", ours, bounds, "<= 1.5")
    table.add(f"{name}: as single fits (3 timed)", ours, singles, ">= 3")


def scikit(
    table: Table, train: tuple[Array, Targets], held: tuple[Array, Targets], sizes: Sizes
) -> list[str]:
    """All labels: both solvers against scikit-learn, with the areas under the curves."""
    (x, y), (held_x, held_y) = train, held
    mean, deviation = x.mean(axis=0), x.std(axis=0)
    scaled, held_scaled = (x - mean) / deviation, (held_x - mean) / deviation
    models: list[LogisticRegression] = []
    c = 1 / (L2 * len(x))
    optimum = LinearHead(solver="lbfgs", l2=L2)
    descent = LinearHead(epochs=sizes.epochs)
    ours = seconds(lambda: optimum.fit(x, y))
    ours_descent = seconds(lambda: descent.fit(x, y))
    threads = better_threads(lambda: LogisticRegression(C=c, max_iter=20).fit(scaled, y[:, -1]))
    took = with_threads(
        threads,
        lambda: models.extend(LogisticRegression(C=c).fit(scaled, y[:, n]) for n in range(LABELS)),
    )
    again = seconds(lambda: optimum.fit(x, y))
    table.add("scikit-learn's LogisticRegression: lbfgs", [ours, again], [took, took], ">= 5")
    table.add("scikit-learn's LogisticRegression: adamw", [ours_descent], [took], "")
    scores = np.stack([model.predict_proba(held_scaled)[:, 1] for model in models], axis=1)
    areas = {
        "scikit-learn": mean_auc(held_y, scores),
        "lbfgs": mean_auc(held_y, optimum.predict_proba(held_x)),
        "adamw": mean_auc(held_y, descent.predict_proba(held_x)),
    }
    iterations = [int(model.n_iter_[0]) for model in models]
    return [
        f"Mean area under the curve on {len(held_x)} rows: "
        + ", ".join(f"{name} {area:.4f}" for name, area in areas.items())
        + ".",
        f"Iterations: lbfgs {len(optimum.loss_curve_)} of all labels together "
        f"(converged: {bool(optimum.converged_)}), scikit-learn {min(iterations)} to "
        f"{max(iterations)} a label.",
    ]


def files(table: Table, x: Array, y: Targets, sizes: Sizes, rounds: int) -> None:
    """An epoch over single files, against an epoch of ours, a sample."""
    ours, loops = [], []
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(sizes.files):
            sample = {
                "features": torch.from_numpy(x[number].copy()),
                "targets": torch.from_numpy(y[number].astype(np.float32)),
            }
            torch.save(sample, Path(scratch) / f"{number}.pt")
        for _ in range(rounds):
            loop = seconds(lambda: file_loop(Path(scratch), sizes.files))
            loops.append(loop * len(x) / sizes.files)
            fit = seconds(lambda: LinearHead(epochs=sizes.search_epochs).fit(x, y))
            ours.append(fit / sizes.search_epochs)
    table.add(f"an epoch over .pt files ({sizes.files} timed)", ours, loops, ">= 20")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes; ratios mean little")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    # scikit-learn's default of 100 iterations is part of what it is compared with.
    warnings.simplefilter("ignore", ConvergenceWarning)
    sizes = QUICK if options.quick else Sizes()
    x, y = make_data(sizes.train, seed=1)
    held = make_data(sizes.held, seed=2)
    LinearHead(epochs=1).fit(x[:BATCH], y[:BATCH])  # imports what is imported late
    table = Table()
    single(table, x, y, sizes, options.rounds)
    search(table, x, y, sizes, options.rounds)
    notes = scikit(table, (x, y), held, sizes)
    files(table, x, y, sizes, options.rounds)
    print(
        f"{os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__} with {THREADS} "
        f"threads, scikit-learn {sklearn.__version__}; {sizes.train} x {DIM} float32, {LABELS} "
        f"labels, batches of {BATCH}\n"
    )
    table.print()
    print("\n" + "\n".join(notes))


if __name__ == "__main__":
    main()
