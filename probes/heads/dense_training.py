"""Training of dense heads: AdamW, warm-up, cosine, epochs that can be interrupted between."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

from probes.heads.dense_checkpoint import Checkpoint, Progress
from probes.heads.dense_rows import read_ahead
from probes.heads.device import Place, computing, mixed_precision

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["Batches", "Reached", "Schedule", "telling", "train"]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Reached(NamedTuple):
    """How far a training has come."""

    epoch: int
    """That is under way, from 0."""
    epochs: int
    """Most of them."""
    step: int
    """Steps of the epoch that were taken."""
    steps: int
    """Of an epoch."""
    loss: float | None
    """Mean of the last whole epoch."""


_told: ContextVar[Callable[[Reached], None] | None] = ContextVar("_told", default=None)


@contextmanager
def telling(told: Callable[[Reached], None]) -> Iterator[None]:
    """Let dense heads tell after each step how far they are, in this thread and until the end."""
    before = _told.set(told)
    try:
        yield
    finally:
        _told.reset(before)


class Batches(Protocol[T_co]):
    """What a network is trained on.

    Attributes:
        n_batches: In an epoch.
    """

    @property
    def n_batches(self) -> int:
        """How many batches an epoch has."""

    def epoch(self, number: int) -> Iterator[T_co]:
        """Give the batches of an epoch; nothing that is drawn depends on other epochs.

        It is called, and asked for batches, in a thread of its own.
        """


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How a network is trained.

    Attributes:
        lr: Highest learning rate of AdamW.
        weight_decay: Its decoupled decay, of all parameters.
        epochs: Most passes over the batches.
        warmup: Epochs in which the learning rate rises evenly; then it falls to 0 by a half
            cosine.
        patience: Epochs without a better validation after which training stops; the weights of
            the best epoch are kept. None: all epochs, the last weights.
    """

    lr: float
    weight_decay: float
    epochs: int
    warmup: int
    patience: int | None

    def check(self) -> None:
        """Refuse what is out of range.

        Raises:
            ValueError: If it is.
        """
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr must be above 0, got {self.lr}")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay must be at least 0, got {self.weight_decay}")
        if self.epochs < 1:
            raise ValueError(f"epochs must be at least 1, got {self.epochs}")
        if not 0 <= self.warmup < self.epochs:
            raise ValueError(
                f"warmup must be at least 0 and less than epochs ({self.epochs}), got {self.warmup}"
            )
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"patience must be at least 1, or none, got {self.patience}")

    def lr_of(self, step: int, n_batches: int) -> float:
        """Give the learning rate of a step, from 0, over all epochs."""
        rising, steps = self.warmup * n_batches, self.epochs * n_batches
        if step < rising:
            return self.lr * (step + 1) / rising
        return self.lr * 0.5 * (1 + math.cos(math.pi * (step - rising) / (steps - rising)))

    def is_over(self, progress: Progress) -> bool:
        """Say whether there is nothing left to train."""
        waited = progress.epochs - 1 - progress.best_epoch
        return progress.epochs >= self.epochs or (
            self.patience is not None and waited >= self.patience
        )


def train(
    network: "nn.Module",
    batches: Batches[T],
    loss_of: "Callable[[T], Tensor]",
    schedule: Schedule,
    *,
    place: Place,
    validate: Callable[[], float] | None = None,
    checkpoint: Checkpoint | None = None,
) -> Progress:
    """Train a network where it is; at the end it has the weights that are kept.

    The same network, batches and schedule give the same bits on one machine, with so many
    threads as torch has, whether or not the fit was interrupted between.

    Args:
        network: On the place's device, float32.
        batches: Of each epoch.
        loss_of: Computes the loss of a batch by the network; under the place's precision.
        schedule: How.
        place: Where, and in which precision.
        validate: Scores the network, more is better, after each epoch; given if ``schedule`` has
            patience, and only then.
        checkpoint: Where the state is kept after each epoch, and from where it goes on.

    Returns:
        The curves, and which epoch's weights are kept.

    Raises:
        ValueError: If the loss overflows, or the checkpoint is damaged or of another fit. Errors
            of ``batches`` as they are.
        OSError: If the checkpoint cannot be written.
    """
    if (validate is None) != (schedule.patience is None):
        raise ValueError("what validates is given with a patience, and only then; give both")
    with computing(place, training=True):
        training = _Training(network, schedule, place)
        if checkpoint is not None:
            training.resume(checkpoint)
        while not schedule.is_over(training.progress):
            training.epoch(batches, loss_of)
            training.choose(validate)
            if checkpoint is not None:
                checkpoint.save(training.state(), training.progress)
        training.keep_best()
    return training.progress


class _Training:
    """A network, its optimiser, and how far it has come."""

    def __init__(self, network: "nn.Module", schedule: Schedule, place: Place) -> None:
        import torch

        self.network, self.schedule, self.place = network, schedule, place
        self.progress = Progress()
        self.parameters = dict(network.named_parameters())
        self.optimiser = torch.optim.AdamW(
            self.parameters.values(), lr=schedule.lr, weight_decay=schedule.weight_decay
        )
        self.scaler = torch.amp.GradScaler(place.kind, enabled=place.precision == "fp16")
        self.best = self._weights() if schedule.patience is not None else {}
        for parameter in self.parameters.values():
            self.optimiser.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }

    def epoch(self, batches: Batches[T], loss_of: "Callable[[T], Tensor]") -> None:
        """Take a step for each batch."""
        import torch

        number, told = self.progress.epochs, _told.get()
        last = self.progress.loss_curve[-1] if self.progress.loss_curve else None
        total = torch.zeros((), dtype=torch.float64, device=self.place.device)
        self.network.train()
        coming = read_ahead(batches.epoch(number))
        try:
            for count, batch in enumerate(coming):
                step = number * batches.n_batches + count
                for group in self.optimiser.param_groups:
                    group["lr"] = self.schedule.lr_of(step, batches.n_batches)
                total += self._step(loss_of, batch)
                if told is not None:
                    most = self.schedule.epochs
                    told(Reached(number, most, count + 1, batches.n_batches, last))
        finally:
            coming.close()  # type: ignore[attr-defined]
        loss = total.item() / batches.n_batches
        if not math.isfinite(loss):
            raise ValueError(
                f"the training loss must stay finite, it became {loss} in epoch {number}; lower "
                f"lr (now {self.schedule.lr}) or set standardize=true"
            )
        self.progress.loss_curve.append(loss)
        self.progress.epochs += 1

    def _step(self, loss_of: "Callable[[T], Tensor]", batch: T) -> "Tensor":
        with mixed_precision(self.place):
            loss = loss_of(batch)
        self.optimiser.zero_grad()
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.scaler.step(self.optimiser)
        self.scaler.update()
        return loss.detach().double()

    def choose(self, validate: Callable[[], float] | None) -> None:
        """Keep the weights if none before were better."""
        progress = self.progress
        progress.scaler = self.scaler.state_dict()
        if validate is None:
            progress.best_epoch = progress.epochs - 1
            return
        self.network.eval()
        curve = progress.validation_curve
        curve.append(validate())
        if len(curve) == 1 or curve[-1] > curve[progress.best_epoch]:
            progress.best_epoch = len(curve) - 1
            self.best = self._weights()

    def keep_best(self) -> None:
        """Give the network the weights that are kept."""
        self._put(self.best)

    def state(self) -> "dict[str, Tensor]":
        """Give all tensors that training goes on from, by name."""
        tensors = {f"best.{name}": tensor for name, tensor in self.best.items()}
        for name, parameter in self.parameters.items():
            tensors[f"weight.{name}"] = parameter.detach()
            for part, tensor in self.optimiser.state[parameter].items():
                tensors[f"{part}.{name}"] = tensor
        return tensors

    def resume(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint, if there is one."""
        found = checkpoint.load(self.state())
        if found is None:
            return
        tensors, progress = found
        has_curve = bool(progress.validation_curve)
        chose = self.schedule.patience is not None and progress.epochs > 0
        if has_curve != chose or set(progress.scaler) != set(self.scaler.state_dict()):
            raise checkpoint.damaged()
        self.progress = progress
        for name, tensor in self.state().items():
            tensor.copy_(tensors[name])
        if progress.scaler:
            self.scaler.load_state_dict(progress.scaler)

    def _weights(self) -> "dict[str, Tensor]":
        return {name: one.detach().clone() for name, one in self.parameters.items()}

    def _put(self, weights: "dict[str, Tensor]") -> None:
        for name, tensor in weights.items():
            self.parameters[name].detach().copy_(tensor)
