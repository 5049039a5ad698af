"""Attention-based multiple-instance learning: one label for a bag of rows."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt

from probes.heads.bags import Bags, read_ahead, row_statistics
from probes.heads.pooling import BRANCHES, PARAMETERS, BagNetwork, EachBlock, Pooling, row_blocks
from probes.heads.saved import SavedHead, check_bag_targets
from probes.heads.supervision import is_exclusive

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["AbmilHead"]

Arrays = dict[str, npt.NDArray[Any]]


class AbmilHead(SavedHead):
    """Gated attention pooling of the rows of a bag, trained one bag a step.

    For rows e_i: h_i = W e_i + b; s_i = w . (tanh(V h_i + b_V) * sigmoid(U h_i + b_U));
    a = softmax(s); z = sum_i a_i h_i; logits = C z + c. A bias beside w would change no weight:
    the softmax takes it away.

    For one column of targets the paper has two logits under a softmax. That is the sigmoid of
    their difference, so here it is one logit and binary cross-entropy: the same functions and the
    same loss, with one row of weights in place of two that Adam moves in opposite directions.

    Args:
        pooling: "gated" as above; "plain": without the sigmoid; "mean" or "max": of each
            dimension of h in place of the weighted sum.
        projection: Dimensions of h.
        hidden: Dimensions of each branch of the attention.
        bias: Whether the branches have the biases b_V and b_U.
        dropout: Share of the values of each branch that is left out of a training step, in
            [0, 1).
        standardize: Subtract the mean of each feature over all training rows and divide by its
            standard deviation (by 1 where that is zero).
        max_rows: Rows of a bag that a training step sees, drawn anew each time; None for all.
            Validation and prediction see all.
        loss: "bce", a sigmoid for each output; "ce", a softmax over exclusive classes; "auto",
            ce where there are two columns or more and each training bag has one 1.
        balanced: Draw the bags of an epoch with replacement, each class alike; a bag of several
            labels by the mean over the outputs. Otherwise each bag comes once.
        lr: Adam's learning rate, above 0.
        weight_decay: Adam's L2 penalty, at least 0.
        epochs: Most passes over the training bags.
        patience: Epochs without a lower validation loss after which training stops; the weights
            of the best epoch are kept. None: all epochs, the last weights, no validation.
        min_epochs: Epochs before which training does not stop.
        seed: Of the first weights, the order of bags, the rows drawn and the dropout.

    Attributes:
        mean_, scale_: (dim,) float32; zeros and ones unless ``standardize``.
        projection_weight_, projection_bias_: W (projection, dim) and b (projection,) float32.
        attention_weight_, attention_bias_: V above U, (branches * hidden, projection) and
            (branches * hidden,) float32, of two branches ("gated"), one or none.
        score_weight_: w, (hidden,) float32; empty without attention.
        class_weight_, class_bias_: C (n_outputs, projection) and c (n_outputs,) float32.
        exclusive_: () bool, whether the scores are a softmax over the outputs.
        loss_curve_: (epochs run,) float64, mean training loss over the bags drawn.
        validation_curve_: (epochs run,) float64, mean over the validation bags; empty without.
        best_epoch_: () int64, from 0: whose weights these are.

    Raises:
        ValueError: If a setting is out of its range.

    References:
        Ilse et al., "Attention-based Deep Multiple Instance Learning", ICML 2018, equations 8
        and 9. Liu et al., "Does DINOv3 Set a New Medical Vision Standard?", arXiv:2509.06467,
        equations 1 and 2, for the projection and the loss; it names no sizes and no training.
        Those follow CLAM (github.com/mahmoodlab/CLAM): biases, dropout, Adam, early stopping;
        balanced drawing also AttriMIL. Ours are projection 256 and hidden 128, as the paper asks
        for a projection narrower than the features, and ``standardize``, which the paper does
        not mention and which is therefore off.
    """

    takes: ClassVar[Literal["vectors", "bags"]] = "bags"
    learned = (
        "mean",
        "scale",
        *PARAMETERS,
        "exclusive",
        "loss_curve",
        "validation_curve",
        "best_epoch",
    )

    mean_: npt.NDArray[np.float32]
    scale_: npt.NDArray[np.float32]
    projection_weight_: npt.NDArray[np.float32]
    projection_bias_: npt.NDArray[np.float32]
    attention_weight_: npt.NDArray[np.float32]
    attention_bias_: npt.NDArray[np.float32]
    score_weight_: npt.NDArray[np.float32]
    class_weight_: npt.NDArray[np.float32]
    class_bias_: npt.NDArray[np.float32]
    exclusive_: npt.NDArray[np.bool_]
    loss_curve_: npt.NDArray[np.float64]
    validation_curve_: npt.NDArray[np.float64]
    best_epoch_: npt.NDArray[np.int64]

    def __init__(
        self,
        *,
        pooling: Pooling = "gated",
        projection: int = 256,
        hidden: int = 128,
        bias: bool = True,
        dropout: float = 0.25,
        standardize: bool = False,
        max_rows: int | None = None,
        loss: Literal["auto", "bce", "ce"] = "auto",
        balanced: bool = True,
        lr: float = 1e-4,
        weight_decay: float = 1e-5,
        epochs: int = 200,
        patience: int | None = 20,
        min_epochs: int = 50,
        seed: int = 0,
    ) -> None:
        self.pooling: Pooling = pooling
        self.projection = projection
        self.hidden = hidden
        self.bias = bias
        self.dropout = dropout
        self.standardize = standardize
        self.max_rows = max_rows
        self.loss: Literal["auto", "bce", "ce"] = loss
        self.balanced = balanced
        self.lr = lr
        self.weight_decay = weight_decay
        self.epochs = epochs
        self.patience = patience
        self.min_epochs = min_epochs
        self.seed = seed
        self._check_settings()

    @property
    def selects(self) -> bool:
        """Whether validation bags decide when to stop: with ``patience``."""
        return self.patience is not None

    def fit(
        self,
        x: Bags,
        y: npt.NDArray[Any],
        *,
        validation: tuple[Any, npt.NDArray[Any]] | None = None,
    ) -> Self:
        """Train on all bags; each is read when its turn comes, while the one before it trains.

        All bags are read once before the first epoch: one that cannot be used is not to stop a
        training that has run for hours. At most three are held. They are computed in as many
        threads as torch has; on one machine the same bags and settings give the same bits, with
        any number of threads.

        Args:
            x: n_items bags (n_rows, dim), a floating dtype; each is read in every epoch.
            y: (n_items, n_outputs) of 0 and 1; with ``loss="ce"`` exactly one 1 in each row.
            validation: Other bags and their targets; needed and looked at with ``patience``.

        Returns:
            The head itself, fitted.

        Raises:
            ValueError: If the shapes or the values are not as above, validation is missing, or
                the loss overflows.
        """
        y = np.asarray(y)
        check_bag_targets(len(x), y)
        exclusive = is_exclusive(y, self.loss)
        held = self._held(validation, y.shape[1], exclusive=exclusive)
        with row_blocks() as each_block:
            training = _Training(self, x, y, exclusive=exclusive, each_block=each_block)
            arrays = training.run(held)
        for name in self.learned:
            setattr(self, f"{name}_", arrays[name])
        return self

    def predict_proba(self, x: Bags) -> npt.NDArray[np.float32]:
        """Score bags, each by all of its rows.

        Args:
            x: n_items bags (n_rows, dim), a floating dtype.

        Returns:
            (n_items, n_outputs) float32 in [0, 1]: sigmoids, or a softmax where `exclusive_`.

        Raises:
            ValueError: If the head is not fitted, or a bag is not finite, empty or of another
                width.
        """
        network = self._network()
        scores = np.empty((len(x), len(self.class_bias_)), dtype=np.float32)
        with row_blocks() as each_block:
            bags = read_ahead(x, range(len(x)), len(self.mean_))
            for row, bag in zip(scores, bags, strict=True):
                logits = network.logits(bag, each_block)
                row[:] = logits.softmax(0) if self.exclusive_ else logits.sigmoid()
        return scores

    def attention(self, bag: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float32]:
        """Say how much each row of a bag has to do with its score.

        Args:
            bag: (n_rows, dim), a floating dtype.

        Returns:
            (n_rows,) float32 of at least 0, sum 1: the attention a; with "mean" all alike; with
            "max" the share of dimensions in which a row has the maximum.

        Raises:
            ValueError: If the head is not fitted, or the bag is not finite, empty or of another
                width.
        """
        network = self._network()
        with row_blocks() as each_block:
            (rows,) = read_ahead([bag], [0], len(self.mean_))
            weights: npt.NDArray[np.float32] = network.row_weights(rows, each_block).numpy()
        return weights

    def get_params(self) -> dict[str, bool | int | float | str | None]:
        """Return the settings of the constructor, ready for JSON."""
        return {
            "pooling": self.pooling,
            "projection": self.projection,
            "hidden": self.hidden,
            "bias": self.bias,
            "dropout": self.dropout,
            "standardize": self.standardize,
            "max_rows": self.max_rows,
            "loss": self.loss,
            "balanced": self.balanced,
            "lr": self.lr,
            "weight_decay": self.weight_decay,
            "epochs": self.epochs,
            "patience": self.patience,
            "min_epochs": self.min_epochs,
            "seed": self.seed,
        }

    def _check_settings(self) -> None:
        if self.pooling not in BRANCHES:
            raise ValueError(f"pooling must be {', '.join(BRANCHES)}; got {self.pooling!r}")
        if self.loss not in ("auto", "bce", "ce"):
            raise ValueError(f"loss must be auto, bce or ce; got {self.loss!r}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {self.dropout}")
        if not 0 < self.lr <= 1e37:
            raise ValueError(f"lr must be a number above 0 and at most 1e37, got {self.lr}")
        if not 0 <= self.weight_decay < np.inf:
            raise ValueError(
                f"weight_decay must be a number of at least 0, got {self.weight_decay}"
            )
        for name in ("projection", "hidden", "epochs", "patience", "max_rows"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        for name in ("min_epochs", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")

    def _held(
        self,
        validation: tuple[Any, npt.NDArray[Any]] | None,
        n_outputs: int,
        *,
        exclusive: bool,
    ) -> tuple[Bags, npt.NDArray[Any]] | None:
        """Return the validation bags and targets, or None where they are not looked at."""
        if not self.selects:
            return None
        if validation is None:
            raise ValueError(
                f"with patience={self.patience} validation bags say when to stop, got none; "
                "give fit validation=(x, y), or set patience=none"
            )
        x, y = validation[0], np.asarray(validation[1])
        try:
            check_bag_targets(len(x), y)
        except ValueError as exc:
            raise ValueError(f"validation: {exc}") from exc
        if y.shape[1] != n_outputs:
            raise ValueError(
                f"validation targets must have the {n_outputs} columns of the training targets, "
                f"got {y.shape[1]}"
            )
        if exclusive and (y.sum(axis=1) != 1).any():
            row = int(np.argmax(y.sum(axis=1) != 1))
            raise ValueError(
                f"classes are exclusive in training, but validation bag {row} has "
                f"{y[row].sum():g} ones; leave that item out, or set loss=bce"
            )
        return x, y

    def _network(self) -> BagNetwork:
        if not hasattr(self, "best_epoch_"):
            raise ValueError("the head is not fitted; call fit or from_arrays first")
        arrays = {name: getattr(self, f"{name}_") for name in ("mean", "scale", *PARAMETERS)}
        return BagNetwork(arrays, pooling=self.pooling)


class _Training:
    """One training, from first weights to the best ones."""

    def __init__(
        self,
        head: AbmilHead,
        x: Bags,
        y: npt.NDArray[Any],
        *,
        exclusive: bool,
        each_block: EachBlock,
    ) -> None:
        import torch

        seeds = np.random.SeedSequence(head.seed).spawn(4)
        first, *draws = (np.random.default_rng(seed) for seed in seeds)
        self._order, self._rows, self._dropout = draws
        self._head, self._x, self._each_block = head, x, each_block
        self._exclusive = exclusive
        self._targets = torch.from_numpy(y.astype(np.float32))
        self._chances = _drawing_chances(y) if head.balanced else None
        mean, scale = row_statistics(x, each_block, standardize=head.standardize)
        self._scaling = {"mean": mean, "scale": scale}
        arrays = _first_weights(head, len(mean), self._targets.shape[1], first)
        self._network = BagNetwork({**arrays, **self._scaling}, pooling=head.pooling)
        moved = dict(self._network.parameters)
        if not head.bias:
            del moved["attention_bias"]
        self._optimiser = torch.optim.Adam(
            [tensor.requires_grad_() for tensor in moved.values()],
            lr=head.lr,
            weight_decay=head.weight_decay,
            fused=True,
        )

    def run(self, held: tuple[Bags, npt.NDArray[Any]] | None) -> Arrays:
        """Train until the last epoch, or until the validation loss has stopped falling."""
        head = self._head
        curve: list[float] = []
        held_curve: list[float] = []
        best, best_epoch = self._weights(), 0
        for epoch in range(head.epochs):
            curve.append(self._epoch(epoch))
            if held is None or head.patience is None:
                best, best_epoch = self._weights(), epoch
                continue
            held_curve.append(self._validate(epoch, *held))
            if epoch == 0 or held_curve[-1] < held_curve[best_epoch]:
                best, best_epoch = self._weights(), epoch
            elif epoch + 1 >= head.min_epochs and epoch - best_epoch >= head.patience:
                break
        return {
            **self._scaling,
            **best,
            "loss_curve": np.array(curve),
            "validation_curve": np.array(held_curve),
            "best_epoch": np.array(best_epoch),
            "exclusive": np.array(self._exclusive),
        }

    def _epoch(self, epoch: int) -> float:
        """Take a step for each bag drawn; return the mean loss."""
        head, n_items, total = self._head, len(self._x), 0.0
        if self._chances is None:
            drawn = self._order.permutation(n_items)
        else:
            drawn = self._order.choice(n_items, n_items, p=self._chances)
        bags = read_ahead(self._x, drawn, len(self._scaling["mean"]), self._choose_rows)
        for number, bag in zip(drawn, bags, strict=True):
            self._optimiser.zero_grad()
            loss = self._network.backward(
                bag,
                self._loss_of(self._targets[number]),
                self._each_block,
                dropout=head.dropout,
                seed=int(self._dropout.integers(1 << 62)),
            )
            self._check_loss("training", epoch, loss)
            self._optimiser.step()
            total += loss
        return total / n_items

    def _validate(self, epoch: int, x: Bags, y: npt.NDArray[Any]) -> float:
        """Return the mean loss over other bags."""
        import torch

        total, targets = 0.0, torch.from_numpy(y.astype(np.float32))
        bags = read_ahead(x, range(len(x)), len(self._scaling["mean"]))
        for bag, target in zip(bags, targets, strict=True):
            logits = self._network.logits(bag, self._each_block)
            total += self._loss_of(target)(logits).item()
        self._check_loss("validation", epoch, total)
        return total / len(x)

    def _choose_rows(self, bag: "Tensor") -> "Tensor":
        """Return the rows of a bag that a step sees."""
        import torch

        if self._head.max_rows is None or len(bag) <= self._head.max_rows:
            return bag
        chosen = self._rows.choice(len(bag), self._head.max_rows, replace=False)
        return bag[torch.from_numpy(np.sort(chosen))]

    def _loss_of(self, target: "Tensor") -> "Callable[[Tensor], Tensor]":
        import torch

        if self._exclusive:
            return lambda logits: -(target @ logits.log_softmax(0))
        return lambda logits: torch.nn.functional.binary_cross_entropy_with_logits(logits, target)

    def _check_loss(self, which: str, epoch: int, loss: float) -> None:
        if not np.isfinite(loss):
            raise ValueError(
                f"the {which} loss must stay finite, it became {loss} in epoch {epoch}; "
                f"lower lr (now {self._head.lr}) or set standardize=true"
            )

    def _weights(self) -> Arrays:
        tensors = self._network.parameters.items()
        return {name: tensor.detach().numpy().copy() for name, tensor in tensors}


def _first_weights(
    head: AbmilHead, dim: int, n_logits: int, draws: np.random.Generator
) -> dict[str, npt.NDArray[np.float32]]:
    """Draw `PARAMETERS` evenly from within 1 / sqrt(inputs) of zero, as PyTorch's layers do."""
    branches = BRANCHES[head.pooling] * head.hidden

    def drawn(inputs: int, *shape: int) -> npt.NDArray[np.float32]:
        return draws.uniform(-1, 1, shape).astype(np.float32) / np.float32(np.sqrt(inputs))

    arrays = {
        "projection_weight": drawn(dim, head.projection, dim),
        "projection_bias": drawn(dim, head.projection),
        "attention_weight": drawn(head.projection, branches, head.projection),
        "attention_bias": drawn(head.projection, branches),
        "score_weight": drawn(head.hidden, min(branches, head.hidden)),
        "class_weight": drawn(head.projection, n_logits, head.projection),
        "class_bias": drawn(head.projection, n_logits),
    }
    if not head.bias:
        arrays["attention_bias"][:] = 0
    return arrays


def _drawing_chances(y: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return (n_items,) chances by which all classes are drawn alike.

    One over the number of bags of its class; of several labels at once, the mean over the
    outputs of one over the number of bags with the same value there.
    """
    ones = y.sum(axis=0)
    if y.shape[1] > 1 and (y.sum(axis=1) == 1).all():
        chances = 1 / ones[y.argmax(axis=1)]
    else:
        alike = np.where(y == 1, ones, len(y) - ones)
        chances = (1 / alike).mean(axis=1)
    share: npt.NDArray[np.float64] = chances / chances.sum()
    return share
