"""Losses of dense heads: soft Dice, and cross-entropy of classes or of each class alone."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["SMOOTH", "dense_loss", "one_hot"]

SMOOTH = 1e-5


def one_hot(labels: "Tensor", classes: int) -> "Tensor":
    """Turn labels into one mask a class.

    Args:
        labels: (rows, ...) whole numbers up to ``classes``, or bool (rows, classes, ...), which
            are masks already.
        classes: Besides the background.

    Returns:
        (rows, 1 + classes, ...) bool, the background first; masks as they are.
    """
    import torch

    if labels.dtype == torch.bool:
        return labels
    numbers = torch.arange(1 + classes, device=labels.device, dtype=labels.dtype)
    return labels.unsqueeze(1) == numbers.view(-1, *[1] * (labels.ndim - 1))


def dense_loss(groups: "Iterable[tuple[Tensor, Tensor]]", *, overlapping: bool) -> "Tensor":
    """Compute cross-entropy + (1 - mean soft Dice) of a batch.

    The soft Dice of a class is (2 sum(p t) + s) / (sum(p) + sum(t) + s) over the pixels of the
    whole batch, s = `SMOOTH`. A class that nobody has in the batch has a Dice near 0 as long as
    anything of it is predicted. Rows of several sizes count by their pixels.

    Args:
        groups: Of logits (rows, channels, ...) float32 and masks of the same shape, bool; rows
            of a group have one size.
        overlapping: If not, the channels are the background and exclusive classes: softmax, its
            cross-entropy, mean over pixels; Dice without the background. Otherwise each
            channel is a class: sigmoid, binary cross-entropy, mean over pixels and classes; Dice
            of all.

    Returns:
        The loss, a scalar.
    """
    import torch
    from torch.nn.functional import binary_cross_entropy_with_logits

    entropies, counts, shared, sizes = [], 0, [], []
    for logits, masks in groups:
        t = masks.to(logits.dtype)
        if overlapping:
            entropy = binary_cross_entropy_with_logits(logits, t, reduction="sum")
            p, counted = logits.sigmoid(), logits.numel()
        else:
            # Not by `nll_loss`, whose sum on CUDA is another each time.
            log_p = logits.log_softmax(1)
            entropy = -(log_p * t).sum()
            p, t = log_p[:, 1:].exp(), t[:, 1:]
            counted = logits.numel() // logits.shape[1]
        pixels = [axis for axis in range(logits.ndim) if axis != 1]
        entropies.append(entropy)
        counts += counted
        shared.append((p * t).sum(pixels))
        sizes.append(p.sum(pixels) + t.sum(pixels))
    dice = (2 * torch.stack(shared).sum(0) + SMOOTH) / (torch.stack(sizes).sum(0) + SMOOTH)
    return torch.stack(entropies).sum() / counts + (1 - dice.mean())
