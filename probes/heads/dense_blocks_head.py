"""What heads of blocks of rows share: their network, how blocks are drawn, how they are asked."""

from abc import ABC
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
import numpy.typing as npt

from probes.heads.cases import Cases
from probes.heads.dense_blocks import Blend, BlockBatches, Drawing, starts_of
from probes.heads.dense_head import MapKinds, MapsHead, as_tensors, probabilities
from probes.heads.dense_rows import Piece, read_ahead, read_labels, read_maps
from probes.heads.device import Place, choose_place, computing, mixed_precision

if TYPE_CHECKING:
    from torch import Tensor, nn

    from probes.heads.volume_networks import Decoder3d

__all__ = ["DenseBlocksHead"]

_OUTPUT_BYTES = 1 << 28
"""What rows may take at the labels' size, with what they are computed from."""


class DenseBlocksHead(MapsHead, ABC):
    """A head that looks at blocks of neighbouring rows, by the network `Decoder3d`.

    It is trained on blocks over the whole plane, see `Drawing`, each read at once. It is asked
    block by block: their logits are averaged where blocks overlap, see `Blend`, on the network's
    own grid, and brought to the labels' size then. In memory are the maps of a block and of the
    next one, and the logits of a block.

    Attributes:
        levels_: (n_maps,) int64, of each map that is read together.
    """

    learned: ClassVar[tuple[str, ...]] = ("channels", "levels", *MapsHead.learned[1:])

    levels_: npt.NDArray[np.int64]

    width: int
    stages: int
    block_rows: int
    overlap: float
    foreground: float
    steps: int | None

    def _check_blocks(self) -> None:
        """Refuse settings that are out of range."""
        if self.stages < 1:
            raise ValueError(f"stages must be at least 1, got {self.stages}")
        if self.width < 1 or self.width % (1 << (self.stages - 1)):
            raise ValueError(
                f"width must be a multiple of {1 << (self.stages - 1)} to be halved in "
                f"{self.stages} stages, got {self.width}"
            )
        if self.block_rows < 1:
            raise ValueError(f"block_rows must be at least 1, got {self.block_rows}")
        if not 0 <= self.overlap < 1:
            raise ValueError(f"overlap must be at least 0 and less than 1, got {self.overlap}")
        if not 0 <= self.foreground <= 1:
            raise ValueError(f"foreground must be 0 to 1, got {self.foreground}")
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"steps must be at least 1, or none, got {self.steps}")
        self._check_training()

    def _read_labels(
        self, cases: Cases, piece: Piece, classes: int, *, overlapping: bool
    ) -> npt.NDArray[Any]:
        """Read what is learned: (rows, Y, X) numbers, or (rows, channels, Y, X) bool."""
        return read_labels(cases, piece, classes, overlapping=overlapping)

    def _batches(
        self,
        cases: Cases,
        classes: int,
        *,
        overlapping: bool,
        views: tuple[str | None, ...] | None = None,
    ) -> BlockBatches:
        def read(piece: Piece) -> npt.NDArray[Any]:
            return self._read_labels(cases, piece, classes, overlapping=overlapping)

        drawing = Drawing(
            block_rows=self.block_rows,
            batch_size=self.batch_size,
            foreground=self.foreground,
            steps=self.steps,
            seed=self.seed,
        )
        return BlockBatches(cases, read, drawing, views)

    def _kinds(self, cases: Cases) -> MapKinds:
        kinds = MapKinds(tuple(map(int, cases.channels)), tuple(map(int, cases.levels)))
        if len(kinds.levels) != len(kinds.channels) or min(kinds.levels, default=0) != 0:
            raise ValueError(
                f"each of {len(kinds.channels)} maps needs a level, and some the level 0, that of "
                f"the last layer; got the levels {kinds.levels}"
            )
        if max(kinds.levels, default=0) >= self.stages:
            raise ValueError(
                f"maps of the levels 1 to {self.stages - 1} are taken by {self.stages} stages, got "
                f"the level {max(kinds.levels)}; give fewer maps, or set stages="
                f"{max(kinds.levels) + 1}"
            )
        return kinds

    def _learned_kinds(self, arrays: Mapping[str, npt.NDArray[Any]]) -> MapKinds:
        kinds = super()._learned_kinds(arrays)
        levels = tuple(int(one) for one in arrays["levels"].reshape(-1))
        if len(levels) != len(kinds.channels) or not (
            min(levels, default=0) == 0 and max(levels, default=0) < self.stages
        ):
            raise ValueError(
                f"array levels of a {type(self).__name__} of {self.stages} stages and "
                f"{len(kinds.channels)} maps cannot be {levels}. Fit the head again."
            )
        return kinds._replace(levels=levels)

    def _keep_kinds(self, kinds: MapKinds) -> None:
        super()._keep_kinds(kinds)
        self.levels_ = np.array(kinds.levels, np.int64)

    def _network_of(self, kinds: MapKinds, outputs: int) -> "Decoder3d":
        from probes.heads.volume_networks import Decoder3d

        return Decoder3d(*kinds, outputs, width=self.width, stages=self.stages)

    def _first_weights(self, network: "nn.Module") -> "dict[str, Tensor]":
        from probes.heads.dense_networks import first_weights

        return first_weights(network, self.seed)

    def _predict(self, cases: Cases, item: int) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
        place, n_rows, size = choose_place(), cases.n_rows(item), cases.size(item)
        network = cast("Decoder3d", self._ready(place))
        starts = starts_of(n_rows, self.block_rows, self.overlap)

        def read() -> Iterator[tuple[npt.NDArray[Any], ...]]:
            for start in starts:
                stop = min(start + self.block_rows, n_rows)
                yield read_maps(cases, Piece(item, start, stop, None))

        blend = Blend()
        for number, maps in enumerate(read_ahead(read(), depth=1)):
            start, until = starts[number], [*starts[1:], n_rows][number]
            # Not around the yield: the caller's modes are its own.
            with computing(place, training=False):
                with mixed_precision(place):
                    logits = network.on_grid([place.bring(one[None]) for one in as_tensors(maps)])
                done = blend.add(logits[0].float(), until - start)
            del logits
            for first, scores in self._at_size(done, size, place):
                yield start + first, scores

    def _at_size(
        self, logits: "Tensor", size: tuple[int, int], place: Place
    ) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
        """Yield (first row, probabilities) of logits (channels, rows, height, width)."""
        from probes.heads.volume_networks import resize_planes

        overlapping = bool(self.overlapping_)
        together = max(1, _OUTPUT_BYTES // (3 * 4 * len(logits) * size[0] * size[1]))
        for first in range(0, logits.shape[1], together):
            with computing(place, training=False):
                some = resize_planes(logits[None, :, first : first + together], size)
                scores = probabilities(some, overlapping=overlapping)[0].cpu().numpy()
            yield first, scores
