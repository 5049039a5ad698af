"""Many linear models side by side: one gathered batch and one product serve all of them."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from threading import Event
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from probes.heads.training_set import Loss, Solution, TrainingSet, cross_entropy, workers

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Member", "descend"]

Array = npt.NDArray[np.float32]

_WIDE, _WIDEST = 128, 192
"""Outputs from which on a stack is cut in two, and of the largest piece.

The pieces train in threads of their own. Each gathers its batches itself, which takes as long as
the products of some 15 outputs.
"""

_BETA1, _BETA2, _EPS = 0.9, 0.999, 1e-8


@dataclass(frozen=True, eq=False)
class Member:
    """One model of a stack.

    Attributes:
        training: Its items.
        lr: Learning rate.
        weight_decay: AdamW's.
        seed: Of the order of the items.
    """

    training: TrainingSet
    lr: float
    weight_decay: float
    seed: int


def descend(
    x: npt.NDArray[np.floating[Any]],
    y: npt.NDArray[Any],
    members: Sequence[Member],
    *,
    loss: Loss,
    batch_size: int,
    epochs: int,
) -> list[Solution]:
    """Train linear models by AdamW from zero weights, side by side.

    Members of one seed see the same batches: their order is drawn over all items that train one
    of them, and an item weighs nothing for a member that it does not train. A batch is larger
    than ``batch_size`` by as much as the mean training set is smaller than all those items. To a
    member without items in a batch, that batch has a gradient of zero.

    Nothing depends on the number of threads, which is torch's, but the time.

    Args:
        x: (n_items, dim) float16 or float32, read batch by batch.
        y: (n_items, n_outputs) of 0 and 1.
        members: The models.
        loss: "bce", mean over items and outputs of the sigmoids' cross-entropies, or "ce", mean
            over items of the softmax's.
        batch_size: Items of a member in a step, about; exactly if its items are all there are.
        epochs: Passes over the items.

    Returns:
        What each member learned, in their order. Losses may be infinite or not a number.

    References:
        Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019, algorithm 2,
        with the constants and the order of operations of torch.optim.AdamW.
    """
    by_seed: dict[int, list[int]] = defaultdict(list)
    for number, member in enumerate(members):
        by_seed[member.seed].append(number)
    stacks: list[tuple[_Batches, list[int]]] = []
    for seed, numbers in by_seed.items():
        batches = _Batches(x, y, [members[n].training for n in numbers], loss, batch_size, seed)
        numbers.sort(key=lambda n: batches.set_of(members[n]))
        n_pieces = _n_pieces(len(numbers), y.shape[1])
        stacks.extend((batches, one.tolist()) for one in np.array_split(numbers, n_pieces))
    stop = Event()
    solutions: dict[int, Solution] = {}
    with workers(len(stacks)) as pool:
        running = [
            pool.submit(_train, batches, [members[n] for n in numbers], epochs, stop)
            for batches, numbers in stacks
        ]
        try:
            for (_, numbers), future in zip(stacks, running, strict=True):
                solutions.update(zip(numbers, future.result(), strict=True))
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [solutions[number] for number in range(len(members))]


class _Batch(NamedTuple):
    """Items of one step.

    inputs: (n, dim) less the mean that all items of the seed share. targets: (n_outputs, n).
    weights: (n_sets, n_outputs or 1, n), zero for an item that a set does not have.
    counts: items of each set. last: whether it is the last of its epoch.
    """

    inputs: "Tensor"
    targets: "Tensor"
    weights: "Tensor"
    counts: list[int]
    last: bool


class _Batches:
    """The batches that all members of one seed share."""

    def __init__(
        self,
        x: npt.NDArray[np.floating[Any]],
        y: npt.NDArray[Any],
        sets: Sequence[TrainingSet],
        loss: Loss,
        batch_size: int,
        seed: int,
    ) -> None:
        self.x, self.loss, self.seed, self.n_outputs = x, loss, seed, y.shape[1]
        self.sets = list({id(one): one for one in sets}.values())
        self.items = np.unique(np.concatenate([one.items for one in self.sets]))
        self.within = np.stack([np.isin(self.items, one.items) for one in self.sets])
        self.size = min(len(self.items), round(batch_size / self.within.mean()))
        # Any would do; this one leaves little to shift in each set.
        mean = np.mean([one.mean for one in self.sets], axis=0, dtype=np.float64)
        self.mean = mean.astype(np.float32)
        targets = y[self.items].astype(np.float32)
        weights = np.broadcast_arrays(*(one.weights(targets, loss) for one in self.sets))
        own = [w * within[:, np.newaxis] for w, within in zip(weights, self.within, strict=True)]
        # (n_rows, n_items): what a step needs of an item beside its features.
        self.table = np.concatenate([targets, *own], axis=1).T.copy()

    def set_of(self, member: Member) -> int:
        """Return the number of a member's training set."""
        return next(n for n, one in enumerate(self.sets) if one is member.training)

    def drawn(self, epochs: int) -> Iterator[_Batch]:
        """Yield the batches of all epochs; each overwrites the one before."""
        import torch

        order = np.random.default_rng(self.seed)
        starts = np.arange(0, len(self.items), self.size)
        gather = self._gatherer()
        for _ in range(epochs):
            shuffled = order.permutation(len(self.items))
            counts = np.add.reduceat(self.within[:, shuffled], starts, axis=1, dtype=np.int64)
            table = torch.from_numpy(self.table.take(shuffled, axis=1))
            targets = table[: self.n_outputs]
            weights = table[self.n_outputs :].view(len(self.sets), -1, len(shuffled))
            for number, start in enumerate(starts.tolist()):
                some = slice(start, start + self.size)
                yield _Batch(
                    inputs=gather(self.items[shuffled[some]]),
                    targets=targets[:, some],
                    weights=weights[:, :, some],
                    counts=counts[:, number].tolist(),
                    last=number == len(starts) - 1,
                )

    def _gatherer(self) -> "Callable[[npt.NDArray[np.intp]], Tensor]":
        """Return what reads rows of features (n, dim), always into the same memory."""
        import torch

        into = torch.empty(self.size, self.x.shape[1])
        # Halves are gathered as they are.
        halves = self.x.dtype == np.float16
        raw = np.empty(into.shape, np.float16) if halves else into.numpy()
        mean = torch.from_numpy(self.mean)

        def gather(rows: npt.NDArray[np.intp]) -> "Tensor":
            inputs = into[: len(rows)]
            # mode: the default fills a copy first, in case a row is out of range.
            self.x.take(rows, axis=0, out=raw[: len(rows)], mode="clip")
            if halves:
                inputs.copy_(torch.from_numpy(raw[: len(rows)]))
            return inputs.sub_(mean)

        return gather


def _train(
    batches: _Batches, members: Sequence[Member], epochs: int, stop: Event
) -> list[Solution]:
    """Train members of one seed, or until an epoch at whose end ``stop`` is set."""
    stack = _Stack(batches, members)
    curve = []
    for batch in batches.drawn(epochs):
        stack.step(batch)
        if batch.last:
            curve.append(stack.losses.numpy().copy())
            stack.losses.zero_()
            if stop.is_set():
                break
    per_item = batches.n_outputs if batches.loss == "bce" else 1
    learned = stack.parameters.numpy().reshape(len(members), batches.n_outputs, -1)
    return [
        Solution(
            weight=one[:, :-1].copy(),
            bias=one[:, -1].copy(),
            curve=losses / (len(member.training.items) * per_item),
            converged=False,
        )
        for member, one, losses in zip(members, learned, np.stack(curve, axis=1), strict=True)
    ]


class _Stack:
    """Parameters of some members, one row for each output of each, and how they move.

    Members of one training set stand beside each other; biases are the last column. Parameters
    are for features standardised by each member's own training set. It is they that are scaled
    and shifted for the inputs as they come, which are many more.
    """

    def __init__(self, batches: _Batches, members: Sequence[Member]) -> None:
        import torch

        self.loss, self.n_outputs = batches.loss, batches.n_outputs
        sets = np.array([batches.set_of(member) for member in members])
        self.losses = torch.zeros(len(members), dtype=torch.float64)  # sums over an epoch
        # Of each set: its number, its members, and a view of their losses.
        self.parts: list[tuple[int, slice, Tensor]] = []
        for number in np.unique(sets).tolist():
            part = slice(*np.searchsorted(sets, [number, number + 1]).tolist())
            self.parts.append((number, part, self.losses[part]))
        self.sets = torch.from_numpy(np.repeat(sets, self.n_outputs))
        # A feature that never varies among the items of a set has no say there.
        factors = np.stack([np.append(one.varies / one.scale, 1) for one in batches.sets])
        shifts = np.stack([one.mean - batches.mean for one in batches.sets])
        self.factor = torch.from_numpy(factors.astype(np.float32))[self.sets]
        self.shift = torch.from_numpy(shifts)[self.sets] if shifts.any() else None
        self.parameters, self.gradient, self.scaled, self.pull = (
            torch.zeros_like(self.factor) for _ in range(4)
        )
        self.counts: list[int] = []
        self.logits = torch.empty(len(self.sets) * batches.size)
        self.adamw = _AdamW(
            self.parameters,
            lr=np.repeat([one.lr for one in members], self.n_outputs),
            weight_decay=np.repeat([one.weight_decay for one in members], self.n_outputs),
        )

    def step(self, batch: _Batch) -> None:
        """Take a step, and add the losses before it to the sums."""
        import torch

        torch.mul(self.parameters, self.factor, out=self.scaled)
        weight, bias = self.scaled[:, :-1], self.scaled[:, -1:]
        if self.shift is not None:
            bias -= torch.linalg.vecdot(weight, self.shift)[:, None]
        n_rows, n_items = len(self.scaled), len(batch.inputs)
        # Rows of logits and columns of items: MKL multiplies thin matrices twice as fast so.
        logits = self.logits[: n_rows * n_items].view(n_rows, n_items)
        torch.addmm(bias, weight, batch.inputs.t(), out=logits)
        members = logits.view(-1, self.n_outputs, n_items)
        for number, part, losses in self.parts:
            losses += cross_entropy(self.loss, members[part], batch.targets, batch.weights[number])
        by_weight, by_bias = self.gradient[:, :-1], self.gradient[:, -1:]
        torch.mm(logits, batch.inputs, out=by_weight)
        torch.sum(logits, dim=1, keepdim=True, out=by_bias)
        if self.shift is not None:
            by_weight.addcmul_(by_bias, self.shift, value=-1)
        self._set_pull(batch.counts)
        self.adamw.step(self.gradient.mul_(self.pull))

    def _set_pull(self, counts: list[int]) -> None:
        """Set by what derivatives of summed losses are multiplied, if the batch has other counts.

        Dividing only now keeps sums of residuals that cancel at zero: Adam would scale up what is
        left of them by rounding.
        """
        import torch

        if counts != self.counts:
            per_item = self.n_outputs if self.loss == "bce" else 1
            divisors = torch.tensor(counts).clamp(min=1).mul_(per_item)[self.sets, None]
            torch.div(self.factor, divisors, out=self.pull)
            self.counts = counts


class _AdamW:
    """AdamW with a learning rate and a decay for each row of parameters."""

    def __init__(
        self,
        parameters: "Tensor",
        *,
        lr: npt.NDArray[np.float64],
        weight_decay: npt.NDArray[np.float64],
    ) -> None:
        import torch

        self.parameters, self.steps = parameters, 0
        self.first, self.second = torch.zeros_like(parameters), torch.zeros_like(parameters)
        self.direction = torch.empty_like(parameters)
        self.lr = torch.from_numpy(lr.astype(np.float32))[:, None]
        self.kept = torch.from_numpy((1 - lr * weight_decay).astype(np.float32))[:, None]
        self.decays = bool(weight_decay.any())

    def step(self, gradient: "Tensor") -> None:
        """Move the parameters."""
        import torch

        self.steps += 1
        self.first.lerp_(gradient, 1 - _BETA1)
        self.second.mul_(_BETA2).addcmul_(gradient, gradient, value=1 - _BETA2)
        # direction = (first / c1) / (sqrt(second / c2) + eps), c1 and c2 for the start from zero
        root = (1 - _BETA2**self.steps) ** 0.5
        torch.sqrt(self.second, out=self.direction).add_(_EPS * root)
        torch.div(self.first, self.direction, out=self.direction)
        if self.decays:
            self.parameters.mul_(self.kept)
        self.parameters.addcmul_(self.direction, self.lr, value=-root / (1 - _BETA1**self.steps))


def _n_pieces(n_members: int, n_outputs: int) -> int:
    """Return into how many stacks members of one seed are cut."""
    outputs = n_members * n_outputs
    return 1 if outputs < _WIDE else min(n_members, 2 * -(-outputs // (2 * _WIDEST)))
