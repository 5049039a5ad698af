"""How often 95% intervals hold the true value, and how often tests find what is not there.

Simulated patients with one to several rows each, whose labels and scores depend on the patient. The
true value of a metric is that of 400,000 such patients. A range of 93.5 to 96.5% is wanted with 200
patients; the AUC of a label of 9%, some 45 patients of them, stays below, as does DeLong's.
"Missed" is how often the truth was below, and above, the interval.

    python benchmarks/coverage.py [--simulations 4000] [--processes 2]
"""

import argparse
import functools
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from probes.metrics.classification import Kind, evaluate
from probes.metrics.swaps import swapped_differences
from probes.stats import (
    delong,
    delong_test,
    group_bootstrap_weights,
    group_draws,
    group_swaps,
    interval,
    paired_bootstrap,
    permutation_p_value,
)

REPLICATES = 1000
POPULATION = 400_000
CHUNK = 50
Array = npt.NDArray[Any]
Sample = tuple[Array, Array, Array]
"""Groups, truth and scores."""


def patients(draws: np.random.Generator, n_groups: int) -> Array:
    """The patient of each row; three rows a patient on average."""
    return np.repeat(np.arange(n_groups), 1 + draws.poisson(2, n_groups))


def two_classes(
    draws: np.random.Generator, n_groups: int, *, limit: float, apart: float, runs: int = 1
) -> Sample:
    """A label above a limit; runs that see it alike, each with its own errors."""
    groups = patients(draws, n_groups)
    rows = len(groups)
    hidden = 0.7 * draws.standard_normal(n_groups)[groups] + 0.7 * draws.standard_normal(rows)
    truth = (hidden > limit)[:, None]
    of_patient = 0.6 * draws.standard_normal((n_groups, runs))[groups]
    scores = apart * (truth - 0.5) + of_patient + 0.8 * draws.standard_normal((rows, runs))
    return groups, truth.astype(np.uint8), 1 / (1 + np.exp(-scores))


def several_classes(
    draws: np.random.Generator, n_groups: int, *, shares: Sequence[float], apart: float
) -> Sample:
    """Exclusive classes that a patient has more or less of."""
    groups = patients(draws, n_groups)
    shape = (len(groups), len(shares))
    leaning = np.log(shares) + 1.5 * draws.standard_normal((n_groups, len(shares)))[groups]
    truth = np.eye(len(shares))[(leaning + draws.gumbel(size=shape)).argmax(axis=1)]
    of_patient = 0.7 * draws.standard_normal((n_groups, len(shares)))[groups]
    scores = np.exp(apart * truth + of_patient + 0.7 * draws.standard_normal(shape))
    return groups, truth, scores / scores.sum(axis=1, keepdims=True)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Patients, and what is measured on them."""

    name: str
    n_groups: int
    kind: Kind
    metrics: tuple[str, ...]
    sample: Callable[[np.random.Generator, int], Sample]


COMMON = functools.partial(two_classes, limit=0.5, apart=1.2)
RARE = functools.partial(two_classes, limit=1.3, apart=2.7)
CLASSES = functools.partial(several_classes, shares=(0.4, 0.3, 0.2, 0.1), apart=1.6)
TWO = ("auc", "accuracy", "macro_f1", "average_precision")
MANY = ("auc", "accuracy", "macro_f1")
SETTINGS = (
    Setting(name="label of 30%", n_groups=200, kind="binary", metrics=TWO, sample=COMMON),
    Setting(name="4 classes", n_groups=200, kind="multiclass", metrics=MANY, sample=CLASSES),
    Setting(name="label of 9%", n_groups=200, kind="binary", metrics=TWO, sample=RARE),
    Setting(name="label of 30%", n_groups=30, kind="binary", metrics=TWO, sample=COMMON),
    Setting(name="4 classes", n_groups=30, kind="multiclass", metrics=MANY, sample=CLASSES),
)


def simulate(setting: Setting, numbers: range) -> list[dict[tuple[str, str], tuple[float, ...]]]:
    """Return, for each simulation, metric and method -> interval."""
    found = []
    for number in numbers:
        draws = np.random.default_rng([1, number])
        groups, truth, scores = setting.sample(draws, setting.n_groups)
        weights = group_bootstrap_weights(groups, n_boot=REPLICATES, seed=number)
        drawn = group_draws(weights, groups)
        options: dict[str, Any] = {"kind": setting.kind, "metrics": setting.metrics}
        value = evaluate(truth, scores, **options).overall
        replicates = evaluate(truth, scores, weights=weights, **options).overall
        one: dict[tuple[str, str], tuple[float, ...]] = {}
        for metric in setting.metrics:
            plain = interval(replicates[metric])
            better = interval(replicates[metric], estimate=float(value[metric]), draws=drawn)
            one[metric, "percentile"] = plain.low, plain.high
            one[metric, "BCa"] = better.low, better.high
        if setting.kind == "binary":
            labels, column = truth[:, 0], scores[:, 0]
            one["auc", "DeLong, rows"] = delong(labels, column).interval()
            one["auc", "DeLong, patients"] = delong(labels, column, groups=groups).interval()
        found.append(one)
    return found


def compare(apart: float, numbers: range) -> list[dict[str, float]]:
    """Return p-values of two runs on 60 patients whose AUCs differ by what ``apart`` makes."""
    found = []
    for number in numbers:
        draws = np.random.default_rng([2, number])
        groups, truth, scores = two_classes(draws, 60, limit=0.5, apart=1.2, runs=2)
        logits = np.log(scores / (1 - scores)) + [apart, 0] * (truth - 0.5)
        runs = [column[:, None] for column in logits.T]
        swaps = group_swaps(groups, n_permutations=REPLICATES, seed=number)
        weights = group_bootstrap_weights(groups, n_boot=REPLICATES, seed=number)
        none = np.zeros((1, len(groups)), dtype=bool)
        of_runs = [
            evaluate(truth, scores, "binary", weights=weights, metrics=["auc"]).overall["auc"]
            for scores in runs
        ]
        value, *permuted = swapped_differences(
            truth, *runs, "binary", np.concatenate([none, swaps]), metrics=["auc"]
        )["auc"]
        resampled = paired_bootstrap(
            *of_runs, estimate=float(value), draws=group_draws(weights, groups)
        )
        columns = truth[:, 0], logits[:, 0], logits[:, 1]
        found.append(
            {
                "permutation": permutation_p_value(float(value), permuted),
                "paired bootstrap": resampled.p,
                "DeLong, patients": delong_test(*columns, groups=groups).p,
                "DeLong, rows": delong_test(*columns).p,
            }
        )
    return found


def spread(pool: ProcessPoolExecutor, work: Callable[[range], list[Any]], count: int) -> list[Any]:
    chunks = [range(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]
    return [one for part in pool.map(work, chunks) for one in part]


def one_thread() -> None:
    from threadpoolctl import threadpool_limits

    threadpool_limits(1)


def coverage(pool: ProcessPoolExecutor, count: int) -> None:
    print("| patients | task | metric | truth | interval | covers, % | missed, % | mean width |")
    print("|---|---|---|---|---|---|---|---|")
    for setting in SETTINGS:
        _, truth, scores = setting.sample(np.random.default_rng(0), POPULATION)
        true = evaluate(truth, scores, setting.kind, metrics=setting.metrics).overall
        found = spread(pool, functools.partial(simulate, setting), count)
        for metric, method in sorted(found[0], key=lambda key: setting.metrics.index(key[0])):
            ends = np.array([one[metric, method] for one in found])
            ends = ends[~np.isnan(ends).any(axis=1)]
            below, above = (ends[:, 0] > true[metric]).mean(), (ends[:, 1] < true[metric]).mean()
            print(
                f"| {setting.n_groups} | {setting.name} | {metric} | {true[metric]:.4f} "
                f"| {method} | {100 * (1 - below - above):.1f} "
                f"| {100 * below:.1f}, {100 * above:.1f} | {np.diff(ends, axis=1).mean():.3f} |",
                flush=True,
            )


def rejections(pool: ProcessPoolExecutor, count: int) -> None:
    print(
        "\n| test of two AUCs, 60 patients | difference | p < 0.01, % | p < 0.05, % | p < 0.5, % |"
    )
    print("|---|---|---|---|---|")
    for apart in (0.0, 0.6):
        found = spread(pool, functools.partial(compare, apart), count)
        for method in found[0]:
            p = np.array([one[method] for one in found])
            shares = " | ".join(f"{100 * (p < level).mean():.1f}" for level in (0.01, 0.05, 0.5))
            print(f"| {method} | {'planted' if apart else 'none'} | {shares} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--simulations", type=int, default=4000)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    began = time.perf_counter()
    print(f"{options.simulations} simulations, {REPLICATES} replicates\n", flush=True)
    with ProcessPoolExecutor(options.processes, initializer=one_thread) as pool:
        coverage(pool, options.simulations)
        rejections(pool, options.simulations // 4)
    print(f"\n{(time.perf_counter() - began) / 60:.0f} minutes")


if __name__ == "__main__":
    main()
