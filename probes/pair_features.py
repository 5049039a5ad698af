"""Feature stacks of a pair: components of its maps, MIND of its images, the images themselves."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dinocache.errors import ProbeError
from probes.pairs import StoredPairs
from probes.register_request import ConvexAdamMethod, VoxelMorphMethod

__all__ = ["LearnedComponents", "PairFeatures"]

Floats = npt.NDArray[np.float32]
_ROWS_TOGETHER = 8
"""Of maps that are read at once: 130 MB of 64 x 64 patches of 1,024 numbers."""
_INSIDE = 0.99
"""Share of a patch that shows something, as DINO-Reg's mask (> .99)."""


class LearnedComponents(NamedTuple):
    """Components that are the same for all pairs, as a network is trained on them.

    Attributes:
        basis: (dim, components).
        mean: (components, 1, 1, 1), of the training pairs.
        deviation: Of all components together.
    """

    basis: Floats
    mean: npt.NDArray[np.float64]
    deviation: float


class PairFeatures:
    """Makes the features of pairs.

    Components are of one basis for fixed and moving (DINO-Reg): that of each pair, or, for what is
    trained on several pairs, one of all of these.
    """

    def __init__(
        self,
        pairs: StoredPairs,
        features: Sequence[str],
        settings: ConvexAdamMethod | VoxelMorphMethod,
        learned: "LearnedComponents | None" = None,
    ) -> None:
        self.pairs, self.features, self.settings = pairs, tuple(features), settings
        self.learned = learned

    def fitted(self, numbers: Sequence[int]) -> "PairFeatures":
        """Find one basis for all pairs, by some of them; of images nothing is to be found."""
        if not self.pairs.cases.kinds:
            return self
        basis = self.find_basis(numbers)
        plain = self._with(LearnedComponents(basis, np.zeros((len(basis.T), 1, 1, 1)), 1.0))
        count, total, squares = 0, np.zeros(basis.shape[1]), 0.0
        for number in numbers:
            for side in plain.components(number):
                count += side[0].size
                total += side.sum(axis=(1, 2, 3), dtype=np.float64)
                squares += float(np.square(side, dtype=np.float64).sum())
        mean = total / count
        variance = squares / count / len(mean) - np.square(mean).mean()
        return self._with(
            LearnedComponents(basis, mean[:, None, None, None], float(max(variance, 1e-12) ** 0.5))
        )

    def _with(self, learned: "LearnedComponents") -> "PairFeatures":
        return PairFeatures(self.pairs, self.features, self.settings, learned)

    def of(self, number: int) -> tuple[Floats, Floats]:
        """Make the features of a pair.

        Returns:
            (fixed, moving): each (channels, *grid).

        Raises:
            ProbeError: If its maps or images allow none.
        """
        from probes.registration.mind import mind_ssc

        stacks: list[tuple[Floats, Floats]] = []
        if self.pairs.cases.kinds:
            stacks.append(self._scaled(number))
        fixed, moving = self.pairs.images(number)
        if "mind" in self.features:
            how = {
                "radius": self.settings.mind_radius,
                "dilation": self.settings.mind_dilation,
            }
            stacks.append((mind_ssc(fixed, **how), mind_ssc(moving, **how)))
        if "image" in self.features:
            stacks.append((fixed[None], moving[None]))
        if len(stacks) == 1:
            return stacks[0]
        first, second = (np.concatenate(side) for side in zip(*stacks, strict=True))
        return first, second

    def components(self, number: int) -> tuple[Floats, Floats]:
        """Make the components of a pair's maps, on the maps' own grid.

        Returns:
            (fixed, moving): each (components, rows, grid_height, grid_width).
        """
        from probes.registration.pca import project

        learned = self.learned
        basis = self.find_basis([number]) if learned is None else learned.basis
        found = []
        for case in self.pairs.pairs[number][1:]:
            blocks = [project(maps, basis) for maps in self._blocks(case)]
            whole = np.concatenate(blocks, axis=1)
            if learned is not None:
                whole = ((whole - learned.mean) / learned.deviation).astype(np.float32)
            found.append(whole)
        return found[0], found[1]

    def on_grid(self, components: Floats, number: int) -> Floats:
        """Bring components to a pair's own grid: (components, *grid)."""
        from probes.registration.pca import to_grid

        return to_grid(components, self.pairs.grid(number))

    def find_basis(self, numbers: Sequence[int]) -> Floats:
        """Find the basis of some pairs' patches: (dim, components)."""
        from probes.registration.pca import shared_components

        def blocks() -> Iterator[Floats]:
            for number in numbers:
                images = self.pairs.images(number)
                for case, image in zip(self.pairs.pairs[number][1:], images, strict=True):
                    yield from self._tokens(case, image)

        named = ", ".join(self.pairs.pairs[number].name for number in numbers[:3])
        # Some encoders have fewer channels: all of them are taken then.
        wanted = min(self.settings.components, sum(self.pairs.cases.channels))
        try:
            return shared_components(blocks, wanted)
        except ValueError as exc:
            raise ProbeError(f"components of {named}: {exc}") from exc

    def _scaled(self, number: int) -> tuple[Floats, Floats]:
        from probes.registration.pca import scaled

        fixed, moving = (self.on_grid(side, number) for side in self.components(number))
        beside = len(self.features) > len(self.pairs.cases.kinds)
        return scaled(fixed, moving, self.settings.feature_scale if beside else 1.0)

    def _blocks(self, case: int) -> Iterator[Floats]:
        """Read the maps of an item by some rows: (rows, grid_height, grid_width, dim)."""
        cases = self.pairs.cases
        for start in range(0, cases.n_rows(case), _ROWS_TOGETHER):
            maps = cases.maps(case, start, min(start + _ROWS_TOGETHER, cases.n_rows(case)))
            whole = [one.astype(np.float32, copy=False) for one in maps]
            yield whole[0] if len(whole) == 1 else np.concatenate(whole, axis=-1)

    def _tokens(self, case: int, image: Floats) -> Iterator[Floats]:
        """Yield the patches that components are of: (n, dim)."""
        rows = image if image.ndim == 3 else image[None]
        start = 0
        for maps in self._blocks(case):
            stop = start + len(maps)
            tokens = maps.reshape(-1, maps.shape[-1])
            if self.settings.inside == "foreground":
                tokens = tokens[_inside(rows[start:stop], maps.shape[1:3]).ravel()]
            start = stop
            if len(tokens):
                yield tokens


def _inside(rows: Floats, grid: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Say which patches show something in all of their pixels: (rows, *grid)."""
    import torch
    from scipy import ndimage

    # Speckle is black in places; the frame around the cone is black throughout.
    shown = [
        ndimage.binary_fill_holes(ndimage.binary_closing(row > row.min(), iterations=2))
        for row in rows
    ]
    share = torch.nn.functional.adaptive_avg_pool2d(
        torch.from_numpy(np.stack(shown).astype(np.float32)), grid
    )
    return np.asarray(share.numpy() > _INSIDE)
