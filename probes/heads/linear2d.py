"""The linear baseline of segmentation: one linear layer on patches, brought to the pixels."""

from typing import TYPE_CHECKING

from probes.heads.dense_head import DenseRowsHead

if TYPE_CHECKING:
    from torch import Tensor

    from probes.heads.dense_networks import RowNetwork

__all__ = ["Linear2dHead"]


class Linear2dHead(DenseRowsHead):
    """One linear layer on the features of each patch; its logits are interpolated to the pixels.

    Several maps are brought to the largest grid and concatenated. Interpolation is bilinear,
    corners not aligned, to the labels' size. Weights start at zero.

    The loss is cross-entropy + 1 - mean soft Dice, see `losses.dense_loss`; the optimiser AdamW,
    its learning rate falls to 0 by a half cosine.

    Args:
        standardize: Subtract the training mean of each channel and divide by its standard
            deviation (by 1 where that is zero).
        lr: Highest learning rate, above 0.
        weight_decay: AdamW's decoupled decay, at least 0; it applies to the bias too.
        warmup: Epochs in which the learning rate rises evenly, less than ``epochs``.
        epochs: Most passes over the training rows.
        batch_size: Rows of a step; the last of an epoch may have fewer.
        patience: Epochs without a higher validation Dice after which training stops; the weights
            of the best epoch are kept. None: all epochs, the last weights, no validation.
        seed: Of the order of the rows, the only thing that is drawn.

    Attributes:
        weights_: ``stem.weight`` (outputs, sum of channels), ``stem.bias`` (outputs,). Others:
            see `DenseRowsHead`.

    Raises:
        ValueError: If a setting is out of its range.
    """

    def __init__(
        self,
        *,
        standardize: bool = True,
        lr: float = 1e-4,
        weight_decay: float = 1e-4,
        warmup: int = 0,
        epochs: int = 50,
        batch_size: int = 8,
        patience: int | None = None,
        seed: int = 0,
    ) -> None:
        self.standardize = standardize
        self.lr = lr
        self.weight_decay = weight_decay
        self.warmup = warmup
        self.epochs = epochs
        self.batch_size = batch_size
        self.patience = patience
        self.seed = seed
        self._check_training()

    def get_params(self) -> dict[str, bool | int | float | str | None]:
        """Return the settings of the constructor, ready for JSON."""
        return {
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
        from probes.heads.dense_networks import Linear2d

        return Linear2d(channels, outputs)

    def _first_weights(self, network: "RowNetwork") -> "dict[str, Tensor]":
        import torch

        parameters = network.named_parameters()
        return {name: torch.zeros(one.shape, dtype=one.dtype) for name, one in parameters}
