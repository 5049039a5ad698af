"""The pseudo-3D decoder of segmentation: features of slices, and convolutions across them."""

from probes.heads.dense_blocks_head import DenseBlocksHead

__all__ = ["Decoder3dHead"]


class Decoder3dHead(DenseBlocksHead):
    """Stages of 3D convolutions on the patch features of neighbouring slices.

    Maps of level 0 are brought to their largest grid, concatenated, and brought to ``width``
    channels by a 1x1 convolution. A stage is twice a 3x3x3 convolution, an InstanceNorm and a
    LeakyReLU (0.01); each stage after the first has half the channels of the one before, and
    twice the grid in plane (bilinear). Maps of level k enter the stage after k others: by a 1x1
    convolution of their own to that stage's channels, brought to its grid, beside what comes from
    the stage before. Then a 1x1 convolution, and an interpolation in plane to the labels' size.
    Rows are never brought together: with 4 stages a row sees 8 rows to either side.

    The loss is cross-entropy + 1 - mean soft Dice, see `losses.dense_loss`; the optimiser AdamW,
    its learning rate falls to 0 by a half cosine.

    Args:
        width: Channels of the first stage; halved ``stages`` - 1 times without a remainder.
        stages: At least 1; more than the highest level of the maps.
        block_rows: Rows of a block, over the whole plane; fewer where an item has fewer.
        overlap: Share of a block that the next one covers, too, in prediction; 0 or more, below 1.
        foreground: Share of the blocks of training around a row with a label, 0 to 1.
        steps: Batches of an epoch, of items in proportion to their rows. None: of each item in
            each view as many blocks as it takes to cover it.
        standardize: Subtract the training mean of each channel and divide by its standard
            deviation (by 1 where that is zero).
        lr: Highest learning rate, above 0.
        weight_decay: AdamW's decoupled decay, at least 0; it applies to all parameters.
        warmup: Epochs in which the learning rate rises evenly, less than ``epochs``.
        epochs: Most passes over the training blocks.
        batch_size: Blocks of a step; the last of an epoch may have fewer.
        patience: Epochs without a higher validation Dice after which training stops; the weights
            of the best epoch are kept. None: all epochs, the last weights, no validation.
        seed: Of the first weights, and of the blocks.

    Attributes:
        weights_: Of the network by name; others: see `DenseBlocksHead` and `MapsHead`.

    Raises:
        ValueError: If a setting is out of its range.

    References:
        Liu et al., "Does DINOv3 Set a New Medical Vision Standard?", arXiv:2509.06467: slices
        stacked, a decoder of 3D convolutions with skips, AdamW 1e-4 with warm-up and cosine.
        Stages, widths, blocks, the levels' places and the batch are ours.
    """

    def __init__(
        self,
        *,
        width: int = 128,
        stages: int = 4,
        block_rows: int = 32,
        overlap: float = 0.5,
        foreground: float = 1 / 3,
        steps: int | None = None,
        standardize: bool = True,
        lr: float = 1e-4,
        weight_decay: float = 1e-5,
        warmup: int = 0,
        epochs: int = 100,
        batch_size: int = 2,
        patience: int | None = None,
        seed: int = 0,
    ) -> None:
        self.width = width
        self.stages = stages
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
        self.patience = patience
        self.seed = seed
        self._check_blocks()

    def get_params(self) -> dict[str, bool | int | float | str | None]:
        """Return the settings of the constructor, ready for JSON."""
        return {
            "width": self.width,
            "stages": self.stages,
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
            "patience": self.patience,
            "seed": self.seed,
        }
