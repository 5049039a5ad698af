"""How fast the k nearest neighbours are found, beside faiss, scikit-learn and torch.

All search the same made-up features (of rank 64, with noise) by cosine, in one process, in turn,
with the same number of threads; a method's seconds are the median of its repetitions, its ratio
the median of the ratios to faiss in the same repetition. scikit-learn is slow: it searches a
fifth of the queries, and its seconds are five times those measured.

    python benchmarks/neighbours.py [--queries 10000] [--train 90000] [--dim 768] [--k 20]
                                    [--repetitions 3] [--threads 2] [--quick]
"""

import argparse
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import sklearn
import torch
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits

from probes.heads.knn import KnnHead

RANK, SLOW_SHARE, TORCH_ROWS = 64, 5, 512
Search = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.int64]]


@dataclass(frozen=True)
class Method:
    """A way to find neighbours; `share`: one in so many queries is searched."""

    name: str
    search: Search
    share: int = 1


def features(rng: np.random.Generator, n_items: int, mixing: npt.NDArray[np.float32]):  # noqa: ANN201
    made = rng.standard_normal((n_items, RANK), dtype=np.float32) @ mixing
    return made + rng.standard_normal(made.shape, dtype=np.float32)


def unit(rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def methods(train: npt.NDArray[np.float32], k: int) -> list[Method]:
    head = KnnHead(k=k).fit(train, np.ones((len(train), 1), dtype=np.uint8))
    index = faiss.IndexFlatIP(train.shape[1])
    index.add(unit(train))
    brute = NearestNeighbors(n_neighbors=k, metric="cosine", algorithm="brute").fit(train)
    tensor = torch.from_numpy(unit(train))

    def by_torch(queries: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
        blocks = torch.from_numpy(unit(queries)).split(TORCH_ROWS)
        return torch.cat([(block @ tensor.T).topk(k).indices for block in blocks]).numpy()

    return [
        Method("faiss IndexFlatIP", lambda queries: index.search(unit(queries), k)[1]),
        Method("probes", lambda queries: head.neighbours(queries)[0]),
        Method("torch, topk of whole rows", by_torch),
        Method(
            f"scikit-learn brute cosine (1/{SLOW_SHARE})",
            lambda queries: brute.kneighbors(queries, return_distance=False),
            SLOW_SHARE,
        ),
    ]


def difference(
    queries: npt.NDArray[np.float32],
    train: npt.NDArray[np.float32],
    rows: npt.NDArray[np.int64],
    best: npt.NDArray[np.int64],
) -> float:
    """Return how far the cosines of two neighbours of the same rank are apart, at most."""
    query, rank = np.nonzero(rows != best)
    asked = unit(queries[query].astype(np.float64))
    cosines = [
        (asked * unit(train[chosen[query, rank]].astype(np.float64))).sum(axis=1)
        for chosen in (rows, best)
    ]
    return float(np.abs(cosines[0] - cosines[1]).max(initial=0))


def table(options: argparse.Namespace) -> str:
    rng = np.random.default_rng(7)
    mixing = rng.standard_normal((RANK, options.dim), dtype=np.float32)
    train = features(rng, options.train, mixing)
    queries = features(rng, options.queries, mixing)
    compared = methods(train, options.k)
    seconds = np.empty((options.repetitions, len(compared)))
    found = {}
    for method in compared:  # libraries load, threads start
        method.search(queries[:64])
    for repetition in range(options.repetitions):
        for column, method in enumerate(compared):
            asked = queries[: max(1, len(queries) // method.share)]
            began = time.perf_counter()
            found[method.name] = method.search(asked)
            elapsed = time.perf_counter() - began
            seconds[repetition, column] = elapsed * len(queries) / len(asked)
    operations = 2e-9 * options.queries * options.train * options.dim
    lines = [
        "| | s | GF/s | ratio to faiss | same neighbours as probes | others: cosines apart |",
        "|---|---|---|---|---|---|",
    ]
    for column, method in enumerate(compared):
        median = np.median(seconds[:, column])
        ratio = np.median(seconds[:, column] / seconds[:, 0])
        rows = found[method.name]
        best = found["probes"][: len(rows)]
        same, apart = (rows == best).mean(), difference(queries, train, rows, best)
        figures = (
            f"{median:.2f} | {operations / median:.0f} | {ratio:.2f} | {same:.6f} | {apart:.1e}"
        )
        lines.append(f"| {method.name} | {figures} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--train", type=int, default=90_000)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--k", type=int, default=20)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument(
        "--quick", action="store_true", help="a smoke run: no figure means anything"
    )
    options = parser.parse_args()
    if options.quick:
        options.queries, options.train, options.repetitions = 200, 9000, 1
    torch.set_num_threads(options.threads)
    faiss.omp_set_num_threads(options.threads)
    with threadpool_limits(options.threads):
        print(
            f"{options.queries} queries, {options.train} training items, {options.dim} features, "
            f"k={options.k}; {options.threads} threads, {options.repetitions} repetitions, "
            f"{platform.processor() or platform.machine()}; numpy {np.__version__}, "
            f"faiss {faiss.__version__}, torch {torch.__version__}, "
            f"scikit-learn {sklearn.__version__}\n"
        )
        print(table(options))


if __name__ == "__main__":
    main()
