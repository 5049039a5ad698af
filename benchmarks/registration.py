"""Registration of a pair against the public package: time, peak memory, how far results differ.

Both register the same pair of 128 x 128 x 32 voxels with the same settings, each in a fresh process
that also says its peak memory; they take turns, and medians are printed. Time is from images to a
displacement, without imports: MIND-SSC is in it, which each computes on its own. With --features
both are given 24 channels that stand for components of patches beside it, for the package in
place of what it would compute. Without --pair the images are synthetic.

"Differs" is the mean length of the difference of both displacements, and in brackets the mean of
its components, voxels: once with displacements measured as the package does it
(`as_published`), and once with ours as they are by default.

    pip install convexAdam==0.2.0
    python benchmarks/registration.py [--pair fixed.nii.gz moving.nii.gz] [--features]
                                      [--spacing 6] [--reach 4] [--rounds 3] [--threads 2]
    python benchmarks/registration.py --components

The last times the shared components of 65,536 tokens of 1,024, against `torch.pca_lowrank`.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

GRID = (32, 128, 128)
CHANNELS = 24
COMPONENTS = 24
Array = npt.NDArray[Any]


def synthetic() -> tuple[Array, Array]:
    """A volume of structures of all sizes, and the same with its middle displaced."""
    from scipy.ndimage import gaussian_filter

    from probes.registration.displacement import warp

    draws = np.random.default_rng(0)
    moving = sum(
        width * gaussian_filter(draws.standard_normal(GRID), width).astype(np.float32)
        for width in (1, 2, 4, 8)
    )
    places = np.indices(GRID)
    middle = [n / 2 for n in GRID]
    away = sum(((x - m) / (n / 6)) ** 2 for x, m, n in zip(places, middle, GRID, strict=True))
    u = np.exp(-away / 2) * np.array([2, -5, 5]).reshape(3, 1, 1, 1)
    return warp(moving, u), moving


def read_pair(fixed: Path, moving: Path) -> tuple[Array, Array]:
    """Middles of two NIfTI volumes, (Z, Y, X), with z made dense enough."""
    import nibabel
    from scipy.ndimage import zoom

    pair = []
    for path in (fixed, moving):
        values = np.asarray(nibabel.load(path).dataobj).astype(np.float32).T
        if values.shape[0] < GRID[0]:
            values = zoom(values, (GRID[0] / values.shape[0], 1, 1), order=1)
        starts = [(n - size) // 2 for n, size in zip(values.shape, GRID, strict=True)]
        if min(starts) < 0:
            raise SystemExit(f"{path} is {values.shape}, smaller than {GRID}")
        inner = tuple(slice(s, s + size) for s, size in zip(starts, GRID, strict=True))
        low, high = np.percentile(values[inner], [1, 99])
        pair.append((np.clip(values[inner], low, high) - low) / (high - low) * 2 - 1)
    return pair[0], pair[1]


def stand_ins(pair: tuple[Array, Array]) -> list[Array]:
    """Channels that follow the images as components of patches do: products of smooth ones."""
    from scipy.ndimage import gaussian_filter

    stacks = []
    for image in pair:
        smooth = [gaussian_filter(image, 1 + 0.25 * k) for k in range(CHANNELS)]
        stack = np.stack([np.sin((k % 5 + 1) * one) for k, one in enumerate(smooth)])
        stacks.append((0.1 / stack.std() * stack).astype(np.float32))
    return stacks


def ours(
    pair: tuple[Array, Array], more: list[Array], spacing: int, reach: int, published: bool
) -> Array:
    from probes.registration.convexadam import ConvexAdamSettings, convex_adam
    from probes.registration.mind import mind_ssc

    stacks = [mind_ssc(image) for image in pair]
    if more:
        stacks = [np.concatenate(both) for both in zip(stacks, more, strict=True)]
    settings = ConvexAdamSettings(grid_sp=spacing, disp_hw=reach, as_published=published)
    return convex_adam(stacks[0], stacks[1], settings)


def package(pair: tuple[Array, Array], more: list[Array], spacing: int, reach: int) -> Array:
    import torch
    from convexAdam import convex_adam_MIND as module

    if more:
        plain = module.extract_features

        def extract(*args: Any, **options: Any) -> list[Any]:  # noqa: ANN401 - passed on
            stacks = plain(*args, **options)
            ready = [torch.from_numpy(stack)[None] for stack in more]
            return [torch.cat(both, 1) for both in zip(stacks, ready, strict=True)]

        module.extract_features = extract
    found = module.convex_adam_pt(
        *pair,
        grid_sp=spacing,
        disp_hw=reach,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
    return np.moveaxis(found, -1, 0)


def child(asked: argparse.Namespace) -> None:
    """Register once in this process; print seconds, the peak after imports, and in the end."""
    import torch

    torch.set_num_threads(asked.threads)
    with np.load(asked.scratch / "pair.npz") as held:
        pair, more = (held["fixed"], held["moving"]), [held[k] for k in held if k[0] == "_"]
    sizes = (more, asked.spacing, asked.reach)
    run: Callable[[], Array]
    if asked.child == "package":
        import convexAdam.convex_adam_MIND  # noqa: F401 - before the time is taken

        run = lambda: package(pair, *sizes)  # noqa: E731
    else:
        import probes.registration.convexadam  # noqa: F401

        run = lambda: ours(pair, *sizes, asked.child == "as_published")  # noqa: E731
    torch.nn.functional.avg_pool3d(torch.zeros(1, 2, 2, 2), 2)
    before, began = peak_mb(), time.perf_counter()
    found = run()
    print(f"result {time.perf_counter() - began} {before} {peak_mb()}")
    np.save(asked.scratch / f"{asked.child}.npy", found)


def peak_mb() -> float:
    """Of this process so far, 1e6 bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def measured(who: str, asked: argparse.Namespace, scratch: Path) -> list[float]:
    command = [sys.executable, __file__, "--child", who, "--scratch", str(scratch)]
    for name in ("spacing", "reach", "threads"):
        command += [f"--{name}", str(getattr(asked, name))]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    told = next(line for line in done.stdout.splitlines() if line.startswith("result "))
    return [float(word) for word in told.split()[1:]]


def compare(asked: argparse.Namespace) -> None:
    pair = read_pair(*asked.pair) if asked.pair else synthetic()
    arrays = {"fixed": pair[0].astype(np.float32), "moving": pair[1].astype(np.float32)}
    if asked.features:
        arrays.update({f"_{k}": stack for k, stack in enumerate(stand_ins(pair))})
    taken: dict[str, list[list[float]]] = {"package": [], "as_published": [], "ours": []}
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        np.savez(scratch / "pair.npz", **arrays)
        for turn in range(asked.rounds):
            for who, figures in taken.items():
                if turn == 0 or who != "as_published":
                    figures.append(measured(who, asked, scratch))
        found = {who: np.load(scratch / f"{who}.npy") for who in taken}
    s, base, peak = (
        {who: statistics.median(row[k] for row in rows) for who, rows in taken.items()}
        for k in range(3)
    )
    added = {who: peak[who] - base[who] for who in taken}
    channels = "MIND and 24 components" if asked.features else "MIND"
    print(
        f"{channels}, {' x '.join(map(str, GRID))} voxels, grid_sp {asked.spacing}, disp_hw "
        f"{asked.reach}, {asked.threads} thread(s), median of {asked.rounds}\n"
    )
    print("| what | ours | package | ratio | wanted |\n|---|---|---|---|---|")
    for what, of, wanted in (
        ("time, s", s, "<= 0.8"),
        ("peak memory, MB", peak, "<= 1.0"),
        ("of it beyond imports and images", added, ""),
    ):
        told = f"{of['ours']:.1f} | {of['package']:.1f} | {of['ours'] / of['package']:.2f}"
        print(f"| {what} | {told} | {wanted} |")
    for who, wanted in (("as_published", "<= 0.05"), ("ours", "")):
        off = found[who] - found["package"]
        length, parts = np.linalg.norm(off, axis=0).mean(), np.abs(off).mean()
        print(f"| differs, {who}, voxels | {length:.3f} ({parts:.3f}) | | | {wanted} |")


def components(asked: argparse.Namespace) -> None:
    import torch
    from threadpoolctl import threadpool_limits

    from probes.registration.pca import shared_components

    torch.set_num_threads(asked.threads)
    draws, n, dim = np.random.default_rng(0), 1 << 16, 1024
    scores = draws.standard_normal((n, 64), np.float32) * np.arange(1, 65, dtype=np.float32) ** -0.5
    tokens = scores @ draws.standard_normal((64, dim), np.float32)
    tokens += 0.5 * draws.standard_normal((n, dim), np.float32)
    half = tokens.astype(np.float16)
    wide = half.astype(np.float64)
    exact = np.linalg.eigh(np.cov(wide.T))[1][:, : -COMPONENTS - 1 : -1]
    del scores, tokens, wide

    def lowrank() -> Array:
        torch.manual_seed(0)
        found = torch.pca_lowrank(torch.from_numpy(half).float(), q=COMPONENTS)[2]
        return found.numpy()

    ways: dict[str, Callable[[], Array]] = {
        "shared_components": lambda: shared_components(lambda: iter([half]), COMPONENTS),
        "torch.pca_lowrank": lowrank,
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    least = {}
    with threadpool_limits(asked.threads, "blas"):
        for _ in range(asked.rounds):
            for name, way in ways.items():
                began = time.perf_counter()
                basis = way()
                taken[name].append(time.perf_counter() - began)
                least[name] = np.linalg.svd(exact.T @ basis)[1].min()
    print(f"{COMPONENTS} components of {n} tokens of {dim}, float16, {asked.threads} thread(s)\n")
    print("| way | s | least cosine between its space and the exact one |\n|---|---|---|")
    for name, seconds in taken.items():
        print(f"| {name} | {statistics.median(seconds):.2f} | {least[name]:.6f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--pair", type=Path, nargs=2)
    parser.add_argument("--features", action="store_true")
    parser.add_argument("--components", action="store_true")
    parser.add_argument("--spacing", type=int, default=6)
    parser.add_argument("--reach", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--child", choices=["package", "as_published", "ours"])
    parser.add_argument("--scratch", type=Path)
    asked = parser.parse_args()
    if asked.child:
        child(asked)
    elif asked.components:
        components(asked)
    else:
        compare(asked)


if __name__ == "__main__":
    main()
