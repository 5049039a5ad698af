"""Logistic regression to its optimum, its regularisation chosen by validation items."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from probes.heads.activations import sigmoid, softmax
from probes.heads.saved import SavedHead, check_features, check_training
from probes.heads.supervision import (
    balancing_weights,
    check_both_values,
    check_validation,
    is_exclusive,
)

__all__ = ["LogisticHead"]

_ROWS = 8192
"""Rows that are standardised at a time."""


class LogisticHead(SavedHead):
    """Logistic regression with an L2 penalty, by L-BFGS: scikit-learn's, at its tolerance.

    C weighs the loss against the penalty: the larger, the weaker the regularisation. Without a
    fixed ``c`` a path of C is followed from strong to weak regularisation, each fit starting from
    the one before, and the C with the lowest log-loss of the validation items is kept; among
    equals the smallest. The log-loss is a proper score and always defined, where an area under
    a curve is not if a class is missing. One C serves all outputs, by the mean of their
    losses: an output with few positives does not choose by them alone.

    Args:
        c: C, above 0; None: chosen among ``10 ** linspace(-6, 5, points)``.
        points: Number of C on the path, at least 2.
        balanced: Classes weigh alike, in training and where C is chosen; without exclusive
            classes, the 0 and the 1 of each output.
        loss: "bce", one regression for each output; "ce", a softmax over exclusive classes (two
            of them are one regression, as in scikit-learn); "auto", ce where there are two
            columns or more and each training row has one 1.
        standardize: Subtract the training mean of each feature and divide by its standard
            deviation (by 1 where that is zero).
        max_iter: Most iterations of a fit, at least 1.

    Attributes:
        mean_: (dim,) float32, subtracted from the features; zeros unless ``standardize``.
        scale_: (dim,) float32, the features are divided by it; ones unless ``standardize``.
        weight_: (n_outputs, dim) float32, for standardised features.
        bias_: (n_outputs,) float32.
        exclusive_: () bool, whether the scores are a softmax over the outputs.
        c_: () float64, the C of these weights.
        unconverged_: (n,) float64, each C with an output that ``max_iter`` or rounding stopped
            before the tolerance was reached.
        validation_loss_: (points,) float64, mean log-loss of the validation items in nats, by
            ascending C; (0,) with a fixed ``c``.

    Raises:
        ValueError: If a setting is out of its range.

    References:
        The public evaluation code of DINOv2 and DINOv3 (log_regression): the 45 values of C,
        their choice on validation items, and 1000 iterations. The log-loss, the tolerance
        (scikit-learn's own) and the warm starts are ours.
    """

    mean_: npt.NDArray[np.float32]
    scale_: npt.NDArray[np.float32]
    weight_: npt.NDArray[np.float32]
    bias_: npt.NDArray[np.float32]
    exclusive_: npt.NDArray[np.bool_]
    c_: npt.NDArray[np.float64]
    unconverged_: npt.NDArray[np.float64]
    validation_loss_: npt.NDArray[np.float64]

    learned = (
        "mean",
        "scale",
        "weight",
        "bias",
        "exclusive",
        "c",
        "unconverged",
        "validation_loss",
    )

    def __init__(
        self,
        *,
        c: float | None = None,
        points: int = 45,
        balanced: bool = False,
        loss: Literal["auto", "bce", "ce"] = "auto",
        standardize: bool = True,
        max_iter: int = 1000,
    ) -> None:
        if c is not None and not 0 < c < np.inf:
            raise ValueError(f"c must be a number above 0, or none to choose it; got {c}")
        if points < 2 or max_iter < 1:
            raise ValueError(
                "points must be at least 2 and max_iter at least 1, "
                f"got points={points} and max_iter={max_iter}"
            )
        if loss not in ("auto", "bce", "ce"):
            raise ValueError(f"loss must be auto, bce or ce; got {loss!r}")
        self.c = c
        self.points = points
        self.balanced = balanced
        self.loss: Literal["auto", "bce", "ce"] = loss
        self.standardize = standardize
        self.max_iter = max_iter

    @property
    def selects(self) -> bool:
        """Whether C is chosen by validation items."""
        return self.c is None

    def fit(
        self,
        x: npt.NDArray[np.floating[Any]],
        y: npt.NDArray[Any],
        *,
        validation: tuple[Any, npt.NDArray[Any]] | None = None,
    ) -> Self:
        """Fit to the optimum, at each C of the path or at the one that is fixed.

        Nothing is drawn. A float64 copy of ``x`` is held meanwhile.

        Args:
            x: (n_items, dim) features, a floating dtype.
            y: (n_items, n_outputs) of 0 and 1, both in each column.
            validation: Other items, which choose C; not looked at with a fixed ``c``.

        Returns:
            The head itself, fitted.

        Raises:
            ValueError: If the shapes or the values are not as above, or validation is missing.
        """
        x, y = np.asarray(x), np.asarray(y)
        check_training(x, y)
        exclusive = is_exclusive(y, self.loss)
        check_both_values(y)
        if self.selects:
            held_x, held_y = check_validation(
                validation,
                dim=x.shape[1],
                n_outputs=y.shape[1],
                exclusive=exclusive,
                way_out="c to a number",
            )
        mean, scale = _mean_and_scale(x, standardize=self.standardize)
        regressions = _Regressions(self, _standardized(x, mean, scale), y, exclusive=exclusive)
        c, losses = self.c, np.empty(0)
        if c is None:
            weights = balancing_weights(held_y, y, exclusive=exclusive) if self.balanced else None
            held = _Held(
                inputs=_standardized(held_x, mean, scale),
                y=held_y,
                weights=weights,
                exclusive=exclusive,
            )
            c, weight, bias, losses = _choose(
                regressions, held, 10 ** np.linspace(-6, 5, self.points)
            )
        else:
            weight, bias = regressions.fit(c)
        self.mean_, self.scale_ = mean, scale
        self.weight_, self.bias_ = weight.astype(np.float32), bias.astype(np.float32)
        self.exclusive_, self.c_ = np.array(exclusive), np.array(c)
        self.unconverged_ = np.array(regressions.unconverged)
        self.validation_loss_ = losses
        return self

    def predict_proba(self, x: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float32]:
        """Score items.

        Args:
            x: (n_items, dim) features, a floating dtype.

        Returns:
            (n_items, n_outputs) float32 in [0, 1]: sigmoids, each on its own, or for exclusive
            classes a softmax, which sums to 1 in each row.

        Raises:
            ValueError: If the head is not fitted, or ``x`` is not (n_items, dim) and finite.
        """
        x = np.asarray(x)
        if not hasattr(self, "validation_loss_"):
            raise ValueError("the head is not fitted; call fit or from_arrays first")
        check_features(x)
        if x.shape[1] != len(self.mean_):
            raise ValueError(
                f"the head was fitted on features of width {len(self.mean_)}, got {x.shape[1]}; "
                "give it features of the encoder that it was fitted on"
            )
        activation = softmax if self.exclusive_ else sigmoid
        scores = np.empty((len(x), len(self.bias_)), dtype=np.float32)
        for rows in _blocks(len(x)):
            inputs = _block_inputs(x[rows], self.mean_, self.scale_)
            scores[rows] = activation(inputs @ self.weight_.T + self.bias_)
        return scores

    def get_params(self) -> dict[str, bool | int | float | str | None]:
        """Return the settings of the constructor, ready for JSON."""
        return {
            "c": self.c,
            "points": self.points,
            "balanced": self.balanced,
            "loss": self.loss,
            "standardize": self.standardize,
            "max_iter": self.max_iter,
        }


class _Regressions:
    """The regressions of all outputs, each fit starting where the last one ended.

    Args:
        head: Its settings.
        inputs: (n_items, dim) float64, standardised.
        y: (n_items, n_outputs) of 0 and 1.
        exclusive: Whether one regression has all outputs as its classes.

    Attributes:
        unconverged: Each C that was fitted without reaching the tolerance.
    """

    def __init__(
        self,
        head: LogisticHead,
        inputs: npt.NDArray[np.float64],
        y: npt.NDArray[Any],
        *,
        exclusive: bool,
    ) -> None:
        from sklearn.linear_model import LogisticRegression  # takes a second

        self.unconverged: list[float] = []
        self._inputs = inputs
        self._targets = [y.argmax(axis=1)] if exclusive else list(y.T)
        self._exclusive = exclusive
        self._models = [
            LogisticRegression(
                max_iter=head.max_iter,
                class_weight="balanced" if head.balanced else None,
                warm_start=True,
            )
            for _ in self._targets
        ]

    def fit(self, c: float) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Fit all outputs; return weight (n_outputs, dim) and bias (n_outputs,)."""
        from sklearn import config_context

        # The inputs are known to be finite; looking again takes as long as an iteration.
        with _convergence_warnings() as warned, config_context(assume_finite=True):
            for model, target in zip(self._models, self._targets, strict=True):
                model.set_params(C=c).fit(self._inputs, target)
        if warned:
            self.unconverged.append(c)
        weight = np.concatenate([model.coef_ for model in self._models])
        bias = np.concatenate([model.intercept_ for model in self._models])
        if self._exclusive and len(bias) == 1:
            # Two classes: the softmax of -z/2 and z/2 is the sigmoid of z.
            weight, bias = np.concatenate([-weight, weight]) / 2, np.append(-bias, bias) / 2
        return weight, bias


@dataclass(frozen=True, kw_only=True)
class _Held:
    """Validation items.

    Attributes:
        inputs: (n_items, dim) float64, standardised.
        y: (n_items, n_outputs) of 0 and 1.
        weights: (n_items, n_outputs) or (n_items, 1), of their losses; None for equal ones.
        exclusive: Whether the outputs are exclusive classes.
    """

    inputs: npt.NDArray[np.float64]
    y: npt.NDArray[Any]
    weights: npt.NDArray[np.float64] | None
    exclusive: bool

    def log_loss(self, weight: npt.NDArray[np.float64], bias: npt.NDArray[np.float64]) -> float:
        """Return the mean over items, then outputs, of -log of the probability of the truth."""
        logits = self.inputs @ weight.T + bias
        if self.exclusive:
            of_truth = logits[self.y == 1]
            losses = (np.logaddexp.reduce(logits, axis=1) - of_truth)[:, np.newaxis]
        else:
            losses = np.logaddexp(0, np.where(self.y == 1, -logits, logits))
        return float(np.average(losses, axis=0, weights=self.weights).mean())


def _choose(
    regressions: _Regressions, held: _Held, grid: npt.NDArray[np.float64]
) -> tuple[float, npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Fit at each C; return that of the lowest loss, weight and bias there, and all losses."""
    losses = np.full(len(grid), np.inf)
    for point, c in enumerate(grid):
        weight, bias = regressions.fit(c)
        loss = held.log_loss(weight, bias)
        if point == 0 or loss < losses.min():
            best = c, weight, bias
        losses[point] = loss
    return *best, losses


@contextmanager
def _convergence_warnings() -> Iterator[list[warnings.WarningMessage]]:
    """Collect warnings that a fit did not converge, and let all others through."""
    from sklearn.exceptions import ConvergenceWarning

    collected: list[warnings.WarningMessage] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        yield collected
    for warning in caught:
        if issubclass(warning.category, ConvergenceWarning):
            collected.append(warning)
        else:
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )


def _mean_and_scale(
    x: npt.NDArray[np.floating[Any]], *, standardize: bool
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return mean and standard deviation (dim,) of the columns; 1 for one that never varies."""
    if not standardize:
        return np.zeros(x.shape[1], dtype=np.float32), np.ones(x.shape[1], dtype=np.float32)
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler()
    for rows in _blocks(len(x)):
        scaler.partial_fit(x[rows].astype(np.float32).astype(np.float64))
    scale = scaler.scale_.astype(np.float32)
    scale[scale == 0] = 1
    return scaler.mean_.astype(np.float32), scale


def _standardized(
    x: npt.NDArray[np.floating[Any]], mean: npt.NDArray[np.float32], scale: npt.NDArray[np.float32]
) -> npt.NDArray[np.float64]:
    """Return what predicting multiplies with the weights, as float64 for the optimiser.

    In float32 the mean of a constant feature leaves zero, and not what is left by rounding.
    """
    inputs = np.empty(x.shape)
    for rows in _blocks(len(x)):
        inputs[rows] = _block_inputs(x[rows], mean, scale)
    return inputs


def _block_inputs(
    x: npt.NDArray[np.floating[Any]], mean: npt.NDArray[np.float32], scale: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    inputs = x.astype(np.float32)
    inputs -= mean
    inputs /= scale
    return inputs


def _blocks(n_items: int) -> list[slice]:
    return [slice(start, start + _ROWS) for start in range(0, n_items, _ROWS)]
