"""The linear probe: one linear layer on frozen features."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from probes.heads.activations import sigmoid, softmax
from probes.heads.optimum import minimise
from probes.heads.saved import SavedHead, check_features, check_training
from probes.heads.stack import Member, descend
from probes.heads.supervision import is_exclusive
from probes.heads.training_set import Solution, TrainingSet

__all__ = ["LinearHead", "fit_linear"]

_PREDICT_ROWS = 8192


class LinearHead(SavedHead):
    """Linear probe: standardise, then one linear layer, by minibatch descent or to its optimum.

    With ``solver="adamw"`` weights start at zero and those of the last epoch are kept; the
    learning rate is constant. The loss of a batch is the mean over its items and, with
    ``loss="bce"``, over the outputs.

    With ``solver="lbfgs"`` the objective is the mean over items of the cross-entropy, with
    ``loss="bce"`` summed over the outputs, plus ``l2 / 2`` times the sum of the squared weights,
    without the biases. So each output of "bce" has the weights that it would have alone, and
    ``l2`` is ``1 / (C * n_items)`` for scikit-learn's C. Classes that a hyperplane separates have
    no optimum without a penalty: there the gradient falls below the tolerance at large weights.

    With either, a feature that never varies in training has weight zero.

    Args:
        standardize: Subtract the training mean of each feature and divide by its standard
            deviation (by 1 where that is zero).
        loss: "bce", one-vs-rest sigmoids for any kind of target, or "ce", a softmax over
            mutually exclusive classes.
        balanced: Weigh the ones of each output by n_zeros / n_ones (with "ce" each item by
            n_items / (n_classes * n_items of its class)), so that classes weigh alike; what has
            no item of a class is left as it is.
        solver: "adamw", or "lbfgs": all items at once, until no component of the gradient of
            the objective exceeds 1e-6.
        lr: Learning rate of adamw, above 0.
        weight_decay: AdamW's decoupled decay, at least 0; it applies to the bias too. Of adamw
            only.
        batch_size: Items in a step of adamw; the last step of an epoch may have fewer.
        epochs: Passes of adamw over the training items.
        l2: Penalty on the weights, at least 0. Of lbfgs only.
        max_iter: Most iterations of lbfgs.
        seed: Seed of the order of the items in each epoch, the only thing that is drawn.

    Attributes:
        mean_: (dim,) float32, subtracted from the features; zeros unless ``standardize``.
        scale_: (dim,) float32, the features are divided by it; ones unless ``standardize``.
        weight_: (n_outputs, dim) float32, for standardised features.
        bias_: (n_outputs,) float32.
        converged_: () bool, whether lbfgs reached its tolerance; false with adamw, which has none.
        loss_curve_: (epochs,) float64, mean training loss over the items of each epoch; with
            lbfgs (n_iterations,), the objective after each iteration.

    Raises:
        ValueError: If a setting is out of its range, or of the other solver.

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
    converged_: npt.NDArray[np.bool_]
    loss_curve_: npt.NDArray[np.float64]

    learned = ("mean", "scale", "weight", "bias", "converged", "loss_curve")

    def __init__(
        self,
        *,
        standardize: bool = True,
        loss: Literal["bce", "ce"] = "bce",
        balanced: bool = False,
        solver: Literal["adamw", "lbfgs"] = "adamw",
        lr: float = 0.005,
        weight_decay: float = 0.0,
        batch_size: int = 1024,
        epochs: int = 50,
        l2: float = 0.0,
        max_iter: int = 1000,
        seed: int = 0,
    ) -> None:
        self.standardize = standardize
        self.loss: Literal["bce", "ce"] = loss
        self.balanced = balanced
        self.solver: Literal["adamw", "lbfgs"] = solver
        self.lr = lr
        self.weight_decay = weight_decay
        self.batch_size = batch_size
        self.epochs = epochs
        self.l2 = l2
        self.max_iter = max_iter
        self.seed = seed
        self._check_settings()

    def fit(
        self,
        x: npt.NDArray[np.floating[Any]],
        y: npt.NDArray[Any],
        *,
        validation: tuple[Any, npt.NDArray[Any]] | None = None,
    ) -> Self:
        """Train on all items.

        On one machine the same arrays and settings give the same bits, with any number of
        threads. No global random state is read or changed. With adamw features are read batch by
        batch, with lbfgs a float32 copy of them is held meanwhile.

        Args:
            x: (n_items, dim) features, a floating dtype.
            y: (n_items, n_outputs) of 0 and 1; with ``loss="ce"`` exactly one 1 in each row.
            validation: Not looked at.

        Returns:
            The head itself, fitted.

        Raises:
            ValueError: If the shapes or the values are not as above, or if the loss overflows.
        """
        fit_linear([self], x, y, [np.ones(len(np.asarray(x)), dtype=bool)])
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
        activation = softmax if self.loss == "ce" else sigmoid
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
            "balanced": self.balanced,
            "solver": self.solver,
            "lr": self.lr,
            "weight_decay": self.weight_decay,
            "batch_size": self.batch_size,
            "epochs": self.epochs,
            "l2": self.l2,
            "max_iter": self.max_iter,
            "seed": self.seed,
        }

    def _check_settings(self) -> None:
        if self.loss not in ("bce", "ce"):
            raise ValueError(f"loss must be bce or ce, got {self.loss!r}")
        if self.solver not in ("adamw", "lbfgs"):
            raise ValueError(f"solver must be adamw or lbfgs, got {self.solver!r}")
        if not 0 < self.lr < np.inf:
            raise ValueError(f"lr must be a number above 0, got {self.lr}")
        if self.lr > 1e37:
            raise ValueError(f"lr must fit float32 arithmetic, at most 1e37, got {self.lr}")
        if not 0 <= self.weight_decay < np.inf:
            raise ValueError(
                f"weight_decay must be a number of at least 0, got {self.weight_decay}"
            )
        if not 0 <= self.l2 < np.inf:
            raise ValueError(f"l2 must be a number of at least 0, got {self.l2}")
        if self.solver == "adamw" and self.l2 > 0:
            raise ValueError(
                f"l2 is of solver=lbfgs, got l2={self.l2}; with adamw set weight_decay"
            )
        if self.solver == "lbfgs" and self.weight_decay > 0:
            raise ValueError(
                f"weight_decay is of solver=adamw, got weight_decay={self.weight_decay}; "
                "with lbfgs set l2"
            )
        if min(self.batch_size, self.epochs, self.max_iter) < 1:
            raise ValueError(
                "batch_size, epochs and max_iter must be at least 1, got "
                f"batch_size={self.batch_size}, epochs={self.epochs} and max_iter={self.max_iter}"
            )
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed}")


_Fit = tuple[LinearHead, TrainingSet]


def fit_linear(
    heads: Sequence[LinearHead],
    x: npt.NDArray[np.floating[Any]],
    y: npt.NDArray[Any],
    train: Sequence[npt.NDArray[np.bool_]],
) -> None:
    """Fit many linear heads, each on its own items of one array, in little more time than one.

    What a head learns depends on its settings, on its items and, with adamw, on the items of
    those heads of its seed that are trained together with it: the order is drawn over all items
    that train one of them, an item weighs nothing for a head that it does not train, and a batch
    has about ``batch_size`` items of each. Up to rounding, other seeds and settings do not matter.
    Items that train no head influence nothing. A head that is fitted with all items, or beside
    others with the same items, learns what `LinearHead.fit` on them teaches it.

    Args:
        heads: They are fitted in place; those that share solver, loss, standardize, balanced,
            batch_size and epochs are trained together.
        x: (n_items, dim) features, a floating dtype.
        y: (n_items, n_outputs) of 0 and 1; with ``loss="ce"`` exactly one 1 in each row.
        train: (n_heads, n_items), or as many masks (n_items,): which items train each head.

    Raises:
        ValueError: If the shapes or the values are not as above, a head has no items, or a loss
            overflows; no head is fitted then.
    """
    x, y = np.asarray(x), np.asarray(y)
    check_training(x, y)
    _check_masks(train, len(heads), len(x))
    if x.dtype not in (np.float16, np.float32):
        x = x.astype(np.float32)
    sets: dict[tuple[bool | str | bytes, ...], TrainingSet] = {}
    together: dict[tuple[bool | int | str, ...], list[_Fit]] = defaultdict(list)
    for head, mask in zip(heads, train, strict=True):
        measured = head.loss, head.standardize, head.balanced
        key = *measured, np.packbits(mask).tobytes()
        if key not in sets:
            sets[key] = _measure(head, x, y, mask)
        steps = (head.max_iter,) if head.solver == "lbfgs" else (head.batch_size, head.epochs)
        together[head.solver, *measured, *steps].append((head, sets[key]))
    solved = [
        (head, training, solution)
        for group in together.values()
        for (head, training), solution in zip(group, _solve(x, y, group), strict=True)
    ]
    for head, training, solution in solved:
        head.mean_, head.scale_ = training.mean, training.scale
        head.weight_, head.bias_ = solution.weight, solution.bias
        head.converged_ = np.array(solution.converged)
        head.loss_curve_ = solution.curve


def _check_masks(train: Sequence[npt.NDArray[np.bool_]], n_heads: int, n_items: int) -> None:
    if len(train) != n_heads:
        raise ValueError(f"each head needs its own mask of items, got {n_heads} and {len(train)}")
    for number, mask in enumerate(train):
        if mask.shape != (n_items,) or mask.dtype != np.bool_:
            raise ValueError(
                f"a mask must be ({n_items},) bool, that of head {number} is "
                f"{mask.shape} {mask.dtype}"
            )
        if not mask.any():
            raise ValueError(f"head {number} has no items to train on; leave that head out")


def _measure(
    head: LinearHead, x: npt.NDArray[Any], y: npt.NDArray[Any], mask: npt.NDArray[np.bool_]
) -> TrainingSet:
    if head.loss == "ce":
        is_exclusive(y[mask], "ce")
    return TrainingSet.measure(
        x,
        y,
        np.flatnonzero(mask),
        loss=head.loss,
        standardize=head.standardize,
        balanced=head.balanced,
    )


def _solve(x: npt.NDArray[Any], y: npt.NDArray[Any], fits: Sequence[_Fit]) -> list[Solution]:
    """Solve for heads that share all settings but lr, weight_decay, l2 and seed."""
    first = fits[0][0]
    if first.solver == "lbfgs":
        penalties = [(training, head.l2) for head, training in fits]
        solutions = minimise(x, y, penalties, loss=first.loss, max_iter=first.max_iter)
    else:
        members = [
            Member(training, lr=head.lr, weight_decay=head.weight_decay, seed=head.seed)
            for head, training in fits
        ]
        solutions = descend(
            x, y, members, loss=first.loss, batch_size=first.batch_size, epochs=first.epochs
        )
        for head, solution in zip((head for head, _ in fits), solutions, strict=True):
            _check_finite(head, solution.curve)
    return solutions


def _check_finite(head: LinearHead, curve: npt.NDArray[np.float64]) -> None:
    finite = np.isfinite(curve)
    if not finite.all():
        epoch = int(np.argmin(finite))
        raise ValueError(
            f"the training loss must stay finite, it became {curve[epoch]} in epoch {epoch}; "
            f"lower lr (now {head.lr}) or set standardize=true"
        )
