"""The 2D decoder of segmentation: a few convolutions on patch features."""

from typing import TYPE_CHECKING

from probes.heads.dense_head import DenseRowsHead

if TYPE_CHECKING:
    from torch import Tensor

    from probes.heads.dense_networks import RowNetwork

__all__ = ["Decoder2dHead"]


class Decoder2dHead(DenseRowsHead):
    """A stem, blocks of convolutions that double the grid, and logits at the labels' own size.

    The stem is a 1x1 convolution to ``width`` channels; several maps are brought to the largest
    grid and concatenated before. A block is a 3x3 convolution, a GroupNorm, a GELU and a bilinear
    interpolation to twice the size; the first one keeps ``width`` channels, each later one has
    half as many as the one before. Then a 1x1 convolution, and an interpolation to the
    labels' size. Any grid and any size will do. With the defaults and 1024 channels these
    are 1.2 million weights.

    The loss is cross-entropy + 1 - mean soft Dice, see `losses.dense_loss`; the optimiser AdamW,
    its learning rate falls to 0 by a half cosine.

    Args:
        width: Channels of the stem; halved ``blocks`` - 1 times without a remainder.
        blocks: At least 1.
        standardize: Subtract the training mean of each channel and divide by its standard
            deviation (by 1 where that is zero).
        lr: Highest learning rate, above 0.
        weight_decay: AdamW's decoupled decay, at least 0; it applies to all parameters.
        warmup: Epochs in which the learning rate rises evenly, less than ``epochs``.
        epochs: Most passes over the training rows.
        batch_size: Rows of a step; the last of an epoch may have fewer.
        patience: Epochs without a higher validation Dice after which training stops; the weights
            of the best epoch are kept. None: all epochs, the last weights, no validation.
        seed: Of the first weights and the order of the rows.

    Attributes:
        weights_: Of the network by name; others: see `DenseRowsHead`.

    Raises:
        ValueError: If a setting is out of its range.

    References:
        Liu et al., "Does DINOv3 Set a New Medical Vision Standard?", arXiv:2509.06467: shallow
        convolutional blocks, upsampling to the input's size, AdamW 1e-4. Widths, GroupNorm, the
        loss, epochs and batch are ours.
    """

    def __init__(
        self,
        *,
        width: int = 256,
        blocks: int = 3,
        standardize: bool = True,
        lr: float = 1e-4,
        weight_decay: float = 1e-4,
        warmup: int = 0,
        epochs: int = 50,
        batch_size: int = 8,
        patience: int | None = None,
        seed: int = 0,
    ) -> None:
        self.width = width
        self.blocks = blocks
        self.standardize = standardize
        self.lr = lr
        self.weight_decay = weight_decay
        self.warmup = warmup
        self.epochs = epochs
        self.batch_size = batch_size
        self.patience = patience
        self.seed = seed
        if blocks < 1:
            raise ValueError(f"blocks must be at least 1, got {blocks}")
        if width < 1 or width % (1 << (blocks - 1)):
            raise ValueError(
                f"width must be a multiple of {1 << (blocks - 1)} to be halved in {blocks} blocks, "
                f"got {width}"
            )
        self._check_training()

    def get_params(self) -> dict[str, bool | int | float | str | None]:
        """Return the settings of the constructor, ready for JSON."""
        return {
            "width": self.width,
            "blocks": self.blocks,
            "standardize": self.standardize,
            "lr": self.lr,
            "weight_decay": self.weight_decay,
            "warmup": self.warmup,
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "patience": self.patience,
            "seed": self.seed,
        }

    def _network(self, channels: tuple[int, ...], outputs: int) -> "RowNetwork":
        from probes.heads.dense_networks import Decoder2d

        return Decoder2d(channels, outputs, width=self.width, blocks=self.blocks)

    def _first_weights(self, network: "RowNetwork") -> "dict[str, Tensor]":
        from probes.heads.dense_networks import first_weights

        return first_weights(network, self.seed)
