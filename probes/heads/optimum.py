"""The optimum of a penalised logistic regression, by L-BFGS on all items at once."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from probes.heads.training_set import Loss, Solution, TrainingSet, cross_entropy, workers

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["TOLERANCE", "minimise"]

Array = npt.NDArray[np.float32]
Wide = npt.NDArray[np.float64]

TOLERANCE = 1e-6
"""Largest component of the gradient at which an optimum is reached."""

_COARSE = 1e-4
"""The same for the first search: from where it ends, logits are differences of float32."""

_ROWS, _BLOCK_ROWS = 4096, 1024
"""Rows that one thread takes at a time, and of which the second product finds the inputs still in
the cache."""

_SPECTRUM_ROWS = 16
"""Rows for each feature that are enough to see how features hang together."""

_FLOOR = 1e-6
"""Of the variance along a direction of the features, as a part of the largest one."""


def minimise(
    x: npt.NDArray[np.floating[Any]],
    y: npt.NDArray[Any],
    penalties: Sequence[tuple[TrainingSet, float]],
    *,
    loss: Loss,
    max_iter: int,
) -> list[Solution]:
    """Minimise penalised losses of training sets.

    The objective is the mean over items of the cross-entropy, with "bce" summed over outputs,
    plus ``l2 / 2`` times the sum of all squared weights, without the biases. All outputs are
    found jointly. A float32 copy of the items of
    one training set is held meanwhile.

    L-BFGS runs in coordinates in which the objective is about as curved in all directions:
    weights along the principal directions of the features, each divided by the square root of
    its curvature where all weights are zero. It takes some 50 evaluations where plain
    coordinates take 100 to 1000.

    Products are of float32, of residuals and of the weights' distance from where the search
    started; it starts anew where rounding of the logits would hide what a step gains, with
    logits there of float64. Sums over items are of float64.

    Args:
        x: (n_items, dim) features.
        y: (n_items, n_outputs) of 0 and 1.
        penalties: Training sets, and ``l2`` of at least 0. Each is solved on its own.
        loss: "bce" or "ce".
        max_iter: Most iterations of each.

    Returns:
        One for each of ``penalties``.

    Raises:
        ValueError: If products of features overflow.

    References:
        Byrd et al., "A limited memory algorithm for bound constrained optimization", SIAM J.
        Sci. Comput. 16(5), 1995, as scipy's L-BFGS-B.
    """
    from threadpoolctl import threadpool_limits

    solutions: dict[int, Solution] = {}
    with (
        workers(1 + len(x) // _ROWS) as pool,
        # scipy's own steps are of some 10,000 numbers: too few to share, as above.
        threadpool_limits(1, "blas"),
    ):
        for training in {id(training): training for training, _ in penalties}.values():
            problem = _Problem(x, y, training, loss, pool)
            for number, (of, l2) in enumerate(penalties):
                if of is training:
                    solutions[number] = _Search(problem, l2, max_iter).run()
    return [solutions[number] for number in range(len(penalties))]


class _Problem:
    """Loss of a training set without its penalty, and how it is curved."""

    def __init__(
        self,
        x: npt.NDArray[np.floating[Any]],
        y: npt.NDArray[Any],
        training: TrainingSet,
        loss: Loss,
        pool: Executor,
    ) -> None:
        import torch

        self._loss, self._pool, self.training = loss, pool, training
        starts = range(0, len(training.items), _ROWS)
        pieces = [training.items[start : start + _ROWS] for start in starts]
        self._rows = list(pool.map(lambda items: _Rows(x, y, training, loss, items), pieces))
        self._zero = torch.zeros(y.shape[1], x.shape[1], dtype=torch.float64)
        self.variances, self.directions = self._spectrum(x)
        self.biases, self.curvatures = self._without_features()

    def start_from_zero(self) -> None:
        """Take logits from now on as those of zero weights and a difference."""
        self._origin = self._zero
        for rows in self._rows:
            rows.logits.zero_()

    def start_from(self, weight: "Tensor") -> None:
        """Take logits from now on as those of these weights (n_outputs, dim) and a difference."""
        self._origin = weight
        list(self._pool.map(lambda rows: rows.start_from(weight), self._rows))

    def value_and_gradient(
        self, weight: "Tensor", bias: "Tensor"
    ) -> "tuple[float, Tensor, Tensor]":
        """Return the loss, and its derivatives by weights (n_outputs, dim) and biases."""
        import torch

        moved = (weight - self._origin).float()
        value, by_weight, by_bias = 0.0, torch.zeros_like(weight), torch.zeros_like(bias)
        for part in self._pool.map(
            lambda rows: rows.value_and_gradient(moved, bias, self._loss), self._rows
        ):
            value += part[0]
            by_weight += part[1]
            by_bias += part[2]
        return value, by_weight, by_bias

    def _spectrum(self, x: npt.NDArray[np.floating[Any]]) -> "tuple[Tensor, Tensor]":
        """Return variances (dim,) along principal directions, the columns of (dim, dim)."""
        import torch

        items = self.training.items
        some = items[:: max(1, len(items) // (_SPECTRUM_ROWS * x.shape[1]))]
        inputs = torch.from_numpy(self.training.standardised(x, some))
        moments = torch.mm(inputs.t(), inputs).double() / len(some)
        if not moments.isfinite().all():
            raise ValueError(
                "features must have squares within float32, the largest is "
                f"{inputs.abs().max():.3g}; set standardize=true"
            )
        variances, directions = torch.linalg.eigh(moments)
        largest = variances[-1].item()
        return variances.clamp(min=_FLOOR * largest if largest > 0 else 1.0), directions

    def _without_features(self) -> "tuple[Tensor, Tensor]":
        """Return the best biases (n_outputs,) at zero weights, and the curvatures by them."""
        import torch

        targets = torch.cat([rows.targets for rows in self._rows], dim=1)
        weights = torch.cat([rows.weights for rows in self._rows], dim=1)
        every = weights.sum(1)
        half = 0.5 / len(self.training.items)  # for outputs that are all 0 or all 1
        share = ((targets * weights).sum(1) / every).clamp(half, 1 - half)
        biases = share.log() if self._loss == "ce" else share.logit()
        return biases, every * share * (1 - share)


class _Rows:
    """Some of the training items, all that one thread sees of them at a time."""

    def __init__(
        self,
        x: npt.NDArray[np.floating[Any]],
        y: npt.NDArray[Any],
        training: TrainingSet,
        loss: Loss,
        items: npt.NDArray[np.intp],
    ) -> None:
        import torch

        targets = y[items].astype(np.float32)
        weights = training.weights(targets, loss).astype(np.float64) / len(training.items)
        self.inputs = torch.from_numpy(training.standardised(x, items))  # (n, dim)
        self.targets = torch.from_numpy(targets.T.astype(np.float64))  # (n_outputs, n)
        self.weights = torch.from_numpy(weights.T)  # (n_outputs or 1, n)
        self.logits = torch.empty_like(self.targets)  # (n_outputs, n)

    def start_from(self, weight: "Tensor") -> None:
        """Set `logits` (n_outputs, n) to those of weights (n_outputs, dim)."""
        for some in self._blocks():
            self.logits[:, some] = weight @ self.inputs[some].double().t()

    def value_and_gradient(
        self, moved: "Tensor", bias: "Tensor", loss: Loss
    ) -> "tuple[float, Tensor, Tensor]":
        """Return loss and derivatives by weights and biases, all float64, of these items.

        Args:
            moved: (n_outputs, dim) float32, weights less those that `logits` are of.
            bias: (n_outputs,) float64.
            loss: "bce" or "ce".
        """
        import torch

        value, by_bias = 0.0, torch.zeros_like(bias)
        by_weight = torch.zeros(moved.shape, dtype=torch.float64)
        for some in self._blocks():
            inputs = self.inputs[some]
            logits = torch.mm(moved, inputs.t()) + self.logits[:, some]
            logits += bias[:, None]
            targets, weights = self.targets[:, some], self.weights[:, some]
            value += cross_entropy(loss, logits[None], targets, weights).item()
            by_weight += torch.mm(logits.float(), inputs)
            by_bias += logits.sum(1)
        return value, by_weight, by_bias

    def _blocks(self) -> Iterator[slice]:
        for start in range(0, len(self.inputs), _BLOCK_ROWS):
            yield slice(start, start + _BLOCK_ROWS)


class _Search:
    """L-BFGS in coordinates (n_outputs, dim + 1) that are alike curved; the biases come last."""

    def __init__(self, problem: _Problem, l2: float, max_iter: int) -> None:
        self._problem, self._l2, self._max_iter = problem, l2, max_iter
        curvatures = problem.curvatures[:, None]
        self._unit = (curvatures * problem.variances + l2).rsqrt()
        self._bias_unit = problem.curvatures.rsqrt()
        self._curve: list[float] = []
        self._largest = np.inf

    def run(self) -> Solution:
        """Search from the best biases and zero weights."""
        import torch

        problem = self._problem
        start = torch.zeros(len(problem.biases), len(problem.variances) + 1, dtype=torch.float64)
        start[:, -1] = problem.biases / self._bias_unit
        point = start.numpy().ravel()
        problem.start_from_zero()
        tolerance, iterations = _COARSE, -1
        while True:
            point = self._descend(point, tolerance)
            stuck = len(self._curve) == iterations
            if stuck or self._largest <= TOLERANCE or len(self._curve) >= self._max_iter:
                break
            tolerance, iterations = TOLERANCE, len(self._curve)
            problem.start_from(self._parameters(point)[0])
        weight, bias = self._parameters(point)
        return Solution(
            # What never varies has no say; the coordinates mix it in by a rounding error.
            weight=weight.numpy().astype(np.float32) * problem.training.varies,
            bias=bias.numpy().astype(np.float32),
            curve=np.array(self._curve),
            converged=self._largest <= TOLERANCE,
        )

    def _descend(self, start: Wide, tolerance: float) -> Wide:
        from scipy.optimize import OptimizeResult, minimize

        def note(intermediate_result: OptimizeResult) -> None:
            self._curve.append(float(intermediate_result.fun))
            if self._largest <= tolerance:
                raise StopIteration

        iterations = self._max_iter - len(self._curve)
        limits = {"maxiter": iterations, "maxfun": 50 * iterations, "ftol": 0.0, "gtol": 1e-12}
        found = minimize(
            self._value_and_gradient,
            start,
            jac=True,
            method="L-BFGS-B",
            callback=note,
            options=limits,
        )
        if self._largest > tolerance:
            self._value_and_gradient(found.x)  # the last one tried may be another
        point: Wide = found.x
        return point

    def _parameters(self, point: Wide) -> "tuple[Tensor, Tensor]":
        """Return weights (n_outputs, dim) and biases (n_outputs,) of coordinates."""
        import torch

        coordinates = torch.from_numpy(point).view(len(self._bias_unit), -1)
        weight = (coordinates[:, :-1] * self._unit) @ self._problem.directions.t()
        return weight, coordinates[:, -1] * self._bias_unit

    def _value_and_gradient(self, point: Wide) -> tuple[float, Wide]:
        import torch

        weight, bias = self._parameters(point)
        value, by_weight, by_bias = self._problem.value_and_gradient(weight, bias)
        value += self._l2 / 2 * weight.square().sum().item()
        by_weight.add_(weight, alpha=self._l2)
        self._largest = max(by_weight.abs().max().item(), by_bias.abs().max().item())
        by_weight = (by_weight @ self._problem.directions).mul_(self._unit)
        gradient = torch.cat([by_weight, (by_bias * self._bias_unit)[:, None]], dim=1)
        return value, gradient.numpy().ravel()
