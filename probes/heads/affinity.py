"""The head of neurons: affinities of voxels to the ones before them, for agglomeration."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt

from probes.heads.cases import Cases
from probes.heads.dense_blocks_head import DenseBlocksHead
from probes.heads.dense_head import MapKinds
from probes.heads.dense_rows import Piece, check_cases

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["AffinityHead"]

_AXES = 3


class AffinityHead(DenseBlocksHead):
    """The network of `Decoder3dHead` with three sigmoids: affinities along z, y and x.

    What it learns are the affinities of `probes.neurons.targets`, each voxel's to the one before
    it. The loss is their squared error, in which the rarer of 0 and 1 counts as much as the other
    in each block; the optimiser Adam (AdamW, if ``weight_decay`` is above 0), its learning rate
    falls to 0 by a half cosine. Nothing is chosen by validation.

    Args:
        width: Channels of the first stage; halved ``stages`` - 1 times without a remainder.
        stages: At least 1; more than the highest level of the maps.
        widen: Widen the borders between neurons before affinities are taken.
        block_rows: Rows of a block, over the whole plane; fewer where an item has fewer.
        overlap: Share of a block that the next one covers, too, in prediction; 0 or more, below 1.
        foreground: Share of the blocks of training around a row with a neuron, 0 to 1.
        steps: Batches of an epoch, of items in proportion to their rows. None: of each item in
            each view as many blocks as it takes to cover it.
        standardize: Subtract the training mean of each channel and divide by its standard
            deviation (by 1 where that is zero).
        lr: Highest learning rate, above 0.
        weight_decay: AdamW's decoupled decay, at least 0; it applies to all parameters.
        warmup: Epochs in which the learning rate rises evenly, less than ``epochs``.
        epochs: Passes over the training blocks.
        batch_size: Blocks of a step; the last of an epoch may have fewer.
        seed: Of the first weights, and of the blocks.

    Attributes:
        classes_: 3, the axes.
        overlapping_: True: a voxel may belong to several of those before it.
        weights_: Of the network by name; others: see `DenseBlocksHead` and `MapsHead`.

    Raises:
        ValueError: If a setting is out of its range.

    References:
        Liu et al., "Does DINOv3 Set a New Medical Vision Standard?", arXiv:2509.06467: affinities
        from frozen features, Adam 1e-3. Lee et al., arXiv:1706.00120: borders that are nobody's.
        The network and the blocks are ours.
    """

    gives: ClassVar[Literal["classes", "affinities"]] = "affinities"
    patience = None

    def __init__(
        self,
        *,
        width: int = 128,
        stages: int = 4,
        widen: bool = True,
        block_rows: int = 18,
        overlap: float = 0.5,
        foreground: float = 0.0,
        steps: int | None = None,
        standardize: bool = True,
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        warmup: int = 0,
        epochs: int = 100,
        batch_size: int = 2,
        seed: int = 0,
    ) -> None:
        self.width = width
        self.stages = stages
        self.widen = widen
        self.block_rows = block_rows
        self.overlap = overlap
        self.foreground = foreground
        self.steps = steps
        self.standardize = standardize
        self.lr = lr
        self.weight_decay = weight_decay
        self.warmup = warmup
        self.epochs = epochs
        self.batch_size = batch_size
        self.seed = seed
        self._check_blocks()

    def get_params(self) -> dict[str, bool | int | float | str | None]:
        """Return the settings of the constructor, ready for JSON."""
        return {
            "width": self.width,
            "stages": self.stages,
            "widen": self.widen,
            "block_rows": self.block_rows,
            "overlap": self.overlap,
            "foreground": self.foreground,
            "steps": self.steps,
            "standardize": self.standardize,
            "lr": self.lr,
            "weight_decay": self.weight_decay,
            "warmup": self.warmup,
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "seed": self.seed,
        }

    def fit(
        self,
        cases: Cases,
        classes: int = _AXES,
        *,
        overlapping: bool = False,
        validation: Cases | None = None,
        checkpoint: Path | str | None = None,
    ) -> Self:
        """Train on all items, in all views; see `MapsHead.fit`.

        Args:
            cases: What is learned from. Labels are (rows, Y, X) ids of neurons, integers of at
                least 0; 0 is background.
            classes: 3, the affinities of a voxel; no classes are told apart.
            overlapping: False: the ids are those of one volume.
            validation: Not looked at.
            checkpoint: As of other heads.

        Returns:
            The head itself, fitted.

        Raises:
            ValueError: If maps or labels are not as above, the loss overflows, or the checkpoint
                is of another fit.
            OSError: If the checkpoint cannot be written.
        """
        check_cases(cases)
        if classes != _AXES or overlapping:
            raise ValueError(
                f"affinities are learned from the ids of neurons in one volume: classes must be "
                f"{_AXES} (along z, y, x) and overlapping False, got {classes!r} and {overlapping}"
            )
        # Three masks that overlap, to all that follows.
        return self._learn(cases, _AXES, None, checkpoint, overlapping=True)

    def _learned_kinds(self, arrays: Mapping[str, npt.NDArray[Any]]) -> MapKinds:
        if arrays["classes"] != _AXES or not arrays["overlapping"]:
            raise ValueError(
                f"an AffinityHead has {_AXES} classes that overlap, got {arrays['classes']} and "
                f"overlapping {arrays['overlapping']}. Fit the head again."
            )
        return super()._learned_kinds(arrays)

    def _read_labels(
        self, cases: Cases, piece: Piece, classes: int, *, overlapping: bool
    ) -> npt.NDArray[Any]:
        """Read the affinities of a piece: (rows, 3, Y, X)."""
        del classes, overlapping
        from probes.neurons.targets import affinities, widened

        # The first plane's affinities along z need the row before it.
        before = min(1, piece.start)
        ids = _read_ids(cases, piece._replace(start=piece.start - before))
        return affinities(widened(ids) if self.widen else ids)[:, before:].swapaxes(0, 1)

    def _loss(
        self, groups: "Sequence[tuple[Tensor, Tensor]]", classes: int, *, overlapping: bool
    ) -> "Tensor":
        """Compute the weighted squared error of a batch, a voxel."""
        del classes, overlapping
        import torch

        from probes.neurons.targets import affinity_weights, weighted_mse

        errors, counts = [], []
        for logits, target in groups:
            weights = torch.from_numpy(affinity_weights(target.cpu().numpy())).to(logits.device)
            counts.append(logits[:, 0].numel())
            errors.append(weighted_mse(logits.sigmoid(), target, weights) * counts[-1])
        return torch.stack(errors).sum() / sum(counts)


def _read_ids(cases: Cases, piece: Piece) -> npt.NDArray[Any]:
    """Read the ids of a piece: (rows, Y, X), integers of at least 0."""
    ids = np.asarray(cases.labels(*piece))
    shape = (piece.stop - piece.start, *cases.size(piece.item))
    if ids.shape != shape:
        raise ValueError(
            f"{piece.of_row(0)}: ids of neurons must be {shape}, got {ids.shape}; see that they "
            "are of that item"
        )
    if not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(
            f"{piece.of_row(0)}: ids of neurons must be whole numbers, got {ids.dtype}"
        )
    lowest = ids.reshape(len(ids), -1).min(1)
    if lowest.min() < 0:
        row = int((lowest < 0).argmax())
        raise ValueError(
            f"{piece.of_row(row)}: ids of neurons must be at least 0, got {lowest[row]}; leave "
            "that item out"
        )
    return ids
