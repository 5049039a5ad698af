"""Pairs of a fold, registered one after the other: chosen settings, files, figures, measures."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dinocache.errors import ProbeError
from probes.displacement_files import write_displacement, write_grid
from probes.heads import Setting
from probes.heads.dense_training import telling
from probes.kept_pairs import KeptPairs
from probes.map_run import MOST_DRAWN, Key, Told, folder_of_key, tell
from probes.metrics.cases import Case, measure_case
from probes.metrics.glossary import GLOSSARY
from probes.metrics.overlap import dice
from probes.pair_features import PairFeatures
from probes.pairs import StoredPairs, distance_unit
from probes.places import safe_name
from probes.protocol import Fold
from probes.register_request import (
    ConvexAdamMethod,
    RegisterRequest,
    UnregisteredMethod,
    VoxelMorphMethod,
    make_method,
)
from probes.registration.convexadam import convex_adam
from probes.runs import SearchFacts

__all__ = ["PairRun", "Registered"]

Floats = npt.NDArray[np.float32]
Displace = Callable[[int], Floats]
"""Number of a pair -> displacement."""
_FEATURE_SETTINGS = frozenset(
    {"components", "feature_scale", "inside", "mind_radius", "mind_dilation"}
)


@dataclass(frozen=True, kw_only=True)
class Registered:
    """What is known of a pair once it is registered.

    Attributes:
        before: What its labels are worth as they are.
        after: What they are worth warped.
        seconds: From reading the features to the displacement.
    """

    before: Case
    after: Case
    seconds: float


class PairRun:
    """Registers the test pairs of folds; files are written as they come.

    Attributes:
        inputs: All that decides the figures, summed up.
        found: Seed and number of the fold -> its test pairs, in the fold's order.
        arrays: What was trained, a name each.
    """

    def __init__(
        self, request: RegisterRequest, pairs: StoredPairs, folder: Path, inputs: str
    ) -> None:
        self.request, self.pairs, self.folder, self.inputs = request, pairs, folder, inputs
        self.found: dict[Key, list[Registered]] = {}
        self.arrays: dict[str, npt.NDArray[Any]] = {}
        self._chosen: list[dict[str, Setting]] = []
        self._losses: list[tuple[float, ...]] = []
        self._kept = KeptPairs(inputs)

    @property
    def search(self) -> SearchFacts | None:
        """What was tried and chosen."""
        if not self.request.grid:
            return None
        return SearchFacts(
            grid={name: tuple(values) for name, values in self.request.grid.items()},
            chosen=tuple(self._chosen),
            losses=tuple(self._losses),
        )

    def do(self, key: Key, fold: Fold) -> None:
        """Choose settings, or train, and register a fold's test pairs.

        What was done before it was interrupted is not done again.

        Raises:
            ProbeError: If nothing is left to choose or train by, or a pair allows no features.
            OSError: If a file cannot be written.
        """
        chosen = self._choose(key, fold)
        method = make_method(self.request.method, **self.request.settings, **chosen)
        ask, settings = self._asker(method, key, fold), asdict(method)
        for number, pair in enumerate(fold.test.tolist()):
            tell(f"fold {key[1]}: pair {number + 1} of {len(fold.test)}")
            place = self._place(key, pair)
            kept = self._kept.displacement(place, settings, len(self.pairs.grid(pair)))
            if kept is None:
                began = time.perf_counter()
                displacement = ask(pair)
                seconds = time.perf_counter() - began
            else:
                displacement, seconds = kept
            done = self._measured(key, pair, displacement, seconds, written=kept is not None)
            self.found.setdefault(key, []).append(done)
            if kept is None and self.request.method != "unregistered":
                self._kept.keep_displacement(place, settings, seconds)

    def _place(self, key: Key, pair: int) -> Path:
        return folder_of_key(self.folder / "pairs", key) / safe_name(self.pairs.pairs[pair].name)

    # ------------------------------------------------------------------ displacements

    def _asker(
        self, method: UnregisteredMethod | ConvexAdamMethod | VoxelMorphMethod, key: Key, fold: Fold
    ) -> Displace:
        if isinstance(method, UnregisteredMethod):
            return self._nothing
        if isinstance(method, ConvexAdamMethod):
            features = PairFeatures(self.pairs, self.request.features, method)
            return lambda pair: _convex_adam(features.of(pair), method)
        return self._trained(method, key, fold)

    def _nothing(self, pair: int) -> Floats:
        grid = self.pairs.grid(pair)
        return np.zeros((len(grid), *grid), np.float32)

    def _trained(self, method: VoxelMorphMethod, key: Key, fold: Fold) -> Displace:
        from probes.registration.voxelmorph import VoxelMorph

        if not len(fold.train):
            raise ProbeError("no pair is left to train on; check the split, or use --folds")
        features = PairFeatures(self.pairs, self.request.features, method).fitted(
            fold.train.tolist()
        )
        network = VoxelMorph(method.settings())
        self.folder.mkdir(parents=True, exist_ok=True)
        checkpoint = self.folder / f".fit.f{key[1]}.safetensors"
        with telling(Told(f"fold {key[1]}")):
            network.fit(
                _Source(features, fold.train),
                validation=_Source(features, fold.val) if len(fold.val) else None,
                checkpoint=checkpoint,
            )
        checkpoint.unlink(missing_ok=True)
        learned = dict(network.to_arrays())
        if features.learned is not None:
            learned |= {n: np.asarray(a) for n, a in features.learned._asdict().items()}
        self.arrays |= {f"s{key[0]}.f{key[1]}.{name}": array for name, array in learned.items()}
        tested = _Source(features, np.arange(len(self.pairs)))
        return lambda pair: network.displacement(tested, pair)

    # ------------------------------------------------------------------ search

    def _choose(self, key: Key, fold: Fold) -> dict[str, Setting]:
        """Try settings on pairs that are not tested, and keep what their labels agree best by."""
        grid = self.request.grid
        if not grid:
            return {}
        # ConvexAdam trains nothing, so that pairs of the training side may choose.
        by = fold.val if len(fold.val) else fold.train
        if not len(by):
            raise ProbeError(
                f"no pair is left to choose {', '.join(grid)} by: the split has no side val; give "
                "one value of each, or deal pairs with --folds"
            )
        tried = [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]
        # Settings of features outermost: a pair's features are then made once for the others.
        tried.sort(key=lambda one: [repr(one[n]) for n in grid if n in _FEATURE_SETTINGS])
        path = self.folder / f".search.f{key[1]}.json"
        losses = self._kept.losses(path)
        names = [self.pairs.pairs[pair].name for pair in by.tolist()]
        for place, (pair, name) in enumerate(zip(by.tolist(), names, strict=True)):
            tell(f"choosing: pair {place + 1} of {len(by)}, {len(tried)} settings")
            if name not in losses:
                losses[name] = list(self._losses_of(pair, tried))
                self._kept.keep_losses(path, losses)
        means = np.mean([losses[name] for name in names], axis=0)
        best = tried[int(means.argmin())]
        self._chosen.append(best)
        order = [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]
        self._losses.append(tuple(float(means[tried.index(one)]) for one in order))
        return best

    def _losses_of(self, pair: int, tried: Sequence[dict[str, Setting]]) -> Iterator[float]:
        made: tuple[dict[str, Setting], tuple[Floats, Floats]] | None = None
        for one in tried:
            method = make_method(self.request.method, **self.request.settings, **one)
            assert isinstance(method, ConvexAdamMethod)  # see RegisterRequest
            of_features = {n: v for n, v in asdict(method).items() if n in _FEATURE_SETTINGS}
            if made is None or made[0] != of_features:
                features = PairFeatures(self.pairs, self.request.features, method)
                made = of_features, features.of(pair)
            warped = self._warp_labels(pair, _convex_adam(made[1], method))
            after = self._case(pair, warped, ("dice",))
            assert after.counts is not None  # of labels
            yield 1 - float(np.nanmean(dice(after.counts[:-1])))

    # ------------------------------------------------------------------ what comes of it

    def _measured(
        self, key: Key, pair: int, displacement: Floats, seconds: float, *, written: bool
    ) -> Registered:
        from probes.registration.displacement import folding, log_jacobian_sd

        warped = self._warp_labels(pair, displacement)
        of_field = {"folding": folding, "log_jacobian_sd": log_jacobian_sd}
        found = []
        for labels, field in (
            (self.pairs.labels(pair)[1], np.zeros_like(displacement)),
            (warped, displacement),
        ):
            case = self._case(pair, labels, self.request.metrics)
            values = {
                name: np.array([measure(field)])
                for name, measure in of_field.items()
                if name in self.request.metrics
            }
            found.append(Case(counts=case.counts, values={**case.values, **values}))
        if not written:
            self._write(self._place(key, pair), pair, displacement, warped)
        if len(self.found.get(key, ())) < MOST_DRAWN:
            drawn = folder_of_key(self.folder / "warps", key)
            drawn.mkdir(parents=True, exist_ok=True)
            name = safe_name(self.pairs.pairs[pair].name)
            (drawn / f"{name}.png").write_bytes(self._drawn(pair, displacement, warped))
        return Registered(before=found[0], after=found[1], seconds=seconds)

    def _warp_labels(self, pair: int, displacement: Floats) -> npt.NDArray[np.uint8]:
        from probes.registration.displacement import warp

        moving = self.pairs.labels(pair)[1]
        return np.asarray(warp(moving, displacement, method="nearest", outside=0))

    def _case(self, pair: int, labels: npt.NDArray[np.uint8], metrics: Sequence[str]) -> Case:
        """Measure labels against those of the fixed image."""
        fixed = self.pairs.labels(pair)[0]
        return measure_case(
            fixed,
            labels,
            range(1, len(self.request.labels) + 1),
            [name for name in metrics if GLOSSARY[name].family != "field"] or ["dice"],
            distance_unit(self.request.pairs, self.pairs.geometry(pair)[0], fixed.ndim),
        )

    def _write(
        self, place: Path, pair: int, displacement: Floats, labels: npt.NDArray[np.uint8]
    ) -> None:
        from probes.registration.displacement import warp

        if self.request.method == "unregistered":
            return
        geometry = self.pairs.geometry(pair)
        place.mkdir(parents=True, exist_ok=True)
        write_displacement(place, displacement, *geometry)
        image = warp(self.pairs.values(pair)[1], displacement)
        write_grid(place / "warped.nii.gz", image, geometry[0])
        own = np.array([0, *self.request.labels], np.uint8)[labels]
        write_grid(place / "warped_labels.nii.gz", own, geometry[0])

    def _drawn(self, pair: int, displacement: Floats, labels: npt.NDArray[np.uint8]) -> bytes:
        """Draw the slice with the most labels."""
        from probes.registration.displacement import warp
        from probes.warp_figures import warp_picture

        fixed, moving = self.pairs.images(pair)
        fixed_labels, moving_labels = self.pairs.labels(pair)
        row = None if fixed.ndim == 2 else int((fixed_labels > 0).sum(axis=(1, 2)).argmax())
        plane = ... if row is None else row
        spacing = self.pairs.geometry(pair)[0].spacing or (1.0, 1.0, 1.0)
        return warp_picture(
            moving[plane],
            fixed[plane],
            warp(moving, displacement)[plane],
            (moving_labels[plane], fixed_labels[plane], labels[plane]),
            title=self._title(pair, row),
            names=list(self.request.labels.values()),
            spacing=spacing[1:],
            displacement=displacement[-2:, plane],
        )

    def _title(self, pair: int, row: int | None) -> str:
        weights = self.pairs.cases.store.header.recipe.encoder.weights
        said = f" ({weights.name})" if weights.is_random and self.request.kinds else ""
        rule = self.request.pairs
        of_row = "" if row is None else f", row {row}"
        return (
            f"{self.pairs.pairs[pair].name}{of_row}: {rule.moving} to {rule.fixed}, "
            f"{self.request.method}{said}"
        )


class _Source:
    """Pairs as a network is trained on them; components of maps are kept, small as they are."""

    def __init__(self, features: PairFeatures, numbers: npt.NDArray[np.intp]) -> None:
        self._features, self._numbers = features, numbers.tolist()
        self._kept: dict[int, tuple[npt.NDArray[np.float16], npt.NDArray[np.float16]]] = {}

    def __len__(self) -> int:
        return len(self._numbers)

    def images(self, pair: int) -> tuple[Floats, Floats]:
        return self._features.pairs.images(self._numbers[pair])

    def features(self, pair: int) -> tuple[Floats, Floats] | None:
        number = self._numbers[pair]
        if not self._features.pairs.cases.kinds:
            return None
        if number not in self._kept:
            fixed, moving = self._features.components(number)
            self._kept[number] = fixed.astype(np.float16), moving.astype(np.float16)
        first, second = (
            self._features.on_grid(side.astype(np.float32), number) for side in self._kept[number]
        )
        return first, second


def _convex_adam(stacks: tuple[Floats, Floats], method: ConvexAdamMethod) -> Floats:
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return convex_adam(*stacks, method.settings(stacks[0].ndim - 1), device=device)
