"""The linear probe: one linear layer on frozen features, trained by minibatch descent."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import numpy.typing as npt

from probes.heads.saved import SavedHead, check_features, check_training

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["LinearHead"]

_PREDICT_ROWS = 8192


class LinearHead(SavedHead):
    """Linear probe: standardise, one linear layer, AdamW at a constant learning rate.

    The weights of the last epoch are kept. They start at zero: the loss is convex, so the start
    does not choose the solution, and a feature that never varies in training keeps weight zero.
    The loss of a batch is the mean over its items and, with ``loss="bce"``, over the outputs.

    Args:
        standardize: Subtract the training mean of each feature and divide by its standard
            deviation (by 1 where that is zero).
        loss: "bce", one-vs-rest sigmoids for any kind of target, or "ce", a softmax over
            mutually exclusive classes.
        lr: Learning rate, above 0.
        weight_decay: AdamW's decoupled decay, at least 0; it applies to the bias too.
        batch_size: Items in a step; the last step of an epoch may have fewer.
        epochs: Passes over the training items.
        seed: Seed of the order of the items in each epoch, the only thing that is drawn.

    Attributes:
        mean_: (dim,) float32, subtracted from the features; zeros unless ``standardize``.
        scale_: (dim,) float32, the features are divided by it; ones unless ``standardize``.
        weight_: (n_outputs, dim) float32, for standardised features.
        bias_: (n_outputs,) float32.
        loss_curve_: (epochs,) float64, mean training loss over the items of each epoch.

    Raises:
        ValueError: If a setting is out of its range.

    References:
        Liu et al., "Does DINOv3 Set a New Medical Vision Standard?", arXiv:2509.06467, for
        binary cross-entropy, learning rate 0.005, batch 1024 and 50 epochs. The paper does not
        name the optimiser, its decay or a standardisation: those defaults are ours.
        AdamW: Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019.
    """

    mean_: npt.NDArray[np.float32]
    scale_: npt.NDArray[np.float32]
    weight_: npt.NDArray[np.float32]
    bias_: npt.NDArray[np.float32]
    loss_curve_: npt.NDArray[np.float64]

    learned = ("mean", "scale", "weight", "bias", "loss_curve")

    def __init__(
        self,
        *,
        standardize: bool = True,
        loss: Literal["bce", "ce"] = "bce",
        lr: float = 0.005,
        weight_decay: float = 0.0,
        batch_size: int = 1024,
        epochs: int = 50,
        seed: int = 0,
    ) -> None:
        self.standardize = standardize
        self.loss = loss
        self.lr = lr
        self.weight_decay = weight_decay
        self.batch_size = batch_size
        self.epochs = epochs
        self.seed = seed
        self._check_settings()

    def fit(
        self,
        x: npt.NDArray[np.floating[Any]],
        y: npt.NDArray[Any],
        *,
        validation: tuple[Any, npt.NDArray[Any]] | None = None,
    ) -> Self:
        """Train on all items, from zero weights.

        On one machine the same arrays and settings give the same bits. No global random state
        is read or changed. One float32 copy of ``x`` is held meanwhile.

        Args:
            x: (n_items, dim) features, a floating dtype.
            y: (n_items, n_outputs) of 0 and 1; with ``loss="ce"`` exactly one 1 in each row.
            validation: Not looked at.

        Returns:
            The head itself, fitted.

        Raises:
            ValueError: If the shapes or the values are not as above, or if the loss overflows.
        """
        x, y = np.asarray(x), np.asarray(y)
        check_training(x, y)
        if self.loss == "ce":
            _check_one_hot(y)
        inputs = np.array(x, dtype=np.float32)
        mean, scale = _statistics(inputs, standardize=self.standardize)
        # The same float32 mean as in predict_proba, so that a constant feature is exactly zero
        # in both and not what is left by rounding.
        inputs -= mean
        inputs /= scale
        weight, bias, curve = self._descend(inputs, y)
        finite = np.isfinite(curve)
        if not finite.all():
            epoch = int(np.argmin(finite))
            raise ValueError(
                f"the training loss must stay finite, it became {curve[epoch]} in epoch {epoch}; "
                f"lower lr (now {self.lr}) or set standardize=true"
            )
        self.mean_, self.scale_, self.weight_, self.bias_ = mean, scale, weight, bias
        self.loss_curve_ = curve
        return self

    def predict_proba(self, x: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float32]:
        """Score items.

        Args:
            x: (n_items, dim) features, a floating dtype.

        Returns:
            (n_items, n_outputs) float32 in [0, 1]: sigmoids, each on its own, or with
            ``loss="ce"`` a softmax, which sums to 1 in each row.

        Raises:
            ValueError: If the head is not fitted, or ``x`` is not (n_items, dim) and finite.
        """
        x = np.asarray(x)
        if not hasattr(self, "weight_"):
            raise ValueError("the head is not fitted; call fit or from_arrays first")
        check_features(x)
        if x.shape[1] != len(self.mean_):
            raise ValueError(
                f"the head was fitted on features of width {len(self.mean_)}, got {x.shape[1]}; "
                "give it features of the encoder that it was fitted on"
            )
        activation = _softmax if self.loss == "ce" else _sigmoid
        scores = np.empty((len(x), len(self.bias_)), dtype=np.float32)
        for start in range(0, len(x), _PREDICT_ROWS):
            rows = slice(start, start + _PREDICT_ROWS)
            inputs = x[rows].astype(np.float32)
            inputs -= self.mean_
            inputs /= self.scale_
            scores[rows] = activation(inputs @ self.weight_.T + self.bias_)
        return scores

    def get_params(self) -> dict[str, bool | int | float | str | None]:
        """Return the settings of the constructor, ready for JSON."""
        return {
            "standardize": self.standardize,
            "loss": self.loss,
            "lr": self.lr,
            "weight_decay": self.weight_decay,
            "batch_size": self.batch_size,
            "epochs": self.epochs,
            "seed": self.seed,
        }

    def _check_settings(self) -> None:
        if self.loss not in ("bce", "ce"):
            raise ValueError(f"loss must be bce or ce, got {self.loss!r}")
        if not 0 < self.lr < np.inf:
            raise ValueError(f"lr must be a number above 0, got {self.lr}")
        if self.lr > 1e37:
            raise ValueError(f"lr must fit float32 arithmetic, at most 1e37, got {self.lr}")
        if not 0 <= self.weight_decay < np.inf:
            raise ValueError(
                f"weight_decay must be a number of at least 0, got {self.weight_decay}"
            )
        if self.batch_size < 1 or self.epochs < 1:
            raise ValueError(
                "batch_size and epochs must be at least 1, "
                f"got batch_size={self.batch_size} and epochs={self.epochs}"
            )
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed}")

    def _descend(
        self, inputs: npt.NDArray[np.float32], y: npt.NDArray[Any]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.float64]]:
        """Minimise the loss over ``inputs`` (n_items, dim), already standardised."""
        import torch  # takes seconds; predicting does without

        order = np.random.default_rng(self.seed)
        features = torch.from_numpy(inputs)
        targets, criterion = self._objective(y)
        weight = torch.zeros(y.shape[1], inputs.shape[1], requires_grad=True)
        bias = torch.zeros(y.shape[1], requires_grad=True)
        optimiser = torch.optim.AdamW([weight, bias], lr=self.lr, weight_decay=self.weight_decay)
        curve = np.zeros(self.epochs)
        with torch.enable_grad(), _one_thread():
            for epoch in range(self.epochs):
                shuffled = torch.from_numpy(order.permutation(len(y)))
                for start in range(0, len(y), self.batch_size):
                    batch = shuffled[start : start + self.batch_size]
                    # index_select takes a third of the time of features[batch].
                    rows = features.index_select(0, batch)
                    logits = torch.nn.functional.linear(rows, weight, bias)
                    loss = criterion(logits, targets.index_select(0, batch))
                    optimiser.zero_grad()
                    torch.autograd.backward(loss)
                    optimiser.step()
                    curve[epoch] += loss.item() * len(batch) / len(y)
        return weight.detach().numpy(), bias.detach().numpy(), curve

    def _objective(
        self, y: npt.NDArray[Any]
    ) -> "tuple[Tensor, Callable[[Tensor, Tensor], Tensor]]":
        """Return the targets as the loss wants them, and the loss."""
        import torch

        if self.loss == "ce":
            return torch.from_numpy(y.argmax(axis=1)), torch.nn.functional.cross_entropy
        targets = torch.from_numpy(y.astype(np.float32))
        return targets, torch.nn.functional.binary_cross_entropy_with_logits


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let torch compute in the calling thread alone, and set it back afterwards.

    The products of a step are too small to share. Two threads gained nothing on two free cores,
    and took eight times as long where another process wanted one of them. It also makes the
    result the same however many cores there are.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _statistics(
    inputs: npt.NDArray[np.float32], *, standardize: bool
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return mean and scale (dim,) of the columns, summed in float64."""
    dim = inputs.shape[1]
    if not standardize:
        return np.zeros(dim, dtype=np.float32), np.ones(dim, dtype=np.float32)
    mean = inputs.mean(axis=0, dtype=np.float64).astype(np.float32)
    squares = np.zeros(dim)
    for start in range(0, len(inputs), _PREDICT_ROWS):
        centred = inputs[start : start + _PREDICT_ROWS] - mean
        squares += np.square(centred, dtype=np.float64).sum(axis=0)
    scale = np.sqrt(squares / len(inputs)).astype(np.float32)
    scale[scale == 0] = 1
    return mean, scale


def _sigmoid(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    # Through the logarithm: no overflow, and small scores keep their order, where
    # (1 + tanh) / 2 would round all below 6e-8 to a tie.
    scores: npt.NDArray[np.float32] = np.exp(-np.logaddexp(np.float32(0), -logits))
    return scores


def _softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    scores: npt.NDArray[np.float32] = exponentials / exponentials.sum(axis=1, keepdims=True)
    return scores


def _check_one_hot(y: npt.NDArray[Any]) -> None:
    ones = y.sum(axis=1)
    if y.shape[1] < 2 or (ones != 1).any():
        raise ValueError(
            "loss=ce needs mutually exclusive classes: two or more columns, one 1 in each row; "
            f"got {y.shape[1]} column(s) and rows with {ones.min():g} to {ones.max():g} ones. "
            "Use loss=bce."
        )
