"""Where dense heads run, and in which precision."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Place", "choose_place", "computing", "mixed_precision", "running_on"]


@dataclass(frozen=True)
class Place:
    """A device of torch's, and how it multiplies.

    Attributes:
        device: "cpu", "cuda", "cuda:1".
        precision: "fp32"; or "bf16" or "fp16" for what autocast gives to it, float32 elsewhere.
    """

    device: str
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"

    @property
    def kind(self) -> str:
        """The device without its number."""
        return self.device.partition(":")[0]

    def bring(self, tensor: "Tensor") -> "Tensor":
        """Copy a tensor to the device, or give it as it is where it is there."""
        return tensor.to(self.device, non_blocking=True)


_chosen: ContextVar[Place | None] = ContextVar("_chosen", default=None)


def choose_place() -> Place:
    """Give the place of `running_on`; else CUDA with mixed precision; else the CPU."""
    import torch

    chosen = _chosen.get()
    if chosen is not None:
        return chosen
    if not torch.cuda.is_available():
        return Place("cpu")
    # Before Ampere bfloat16 is emulated, at a fraction of the speed of halves.
    native = torch.cuda.is_bf16_supported(including_emulation=False)
    return Place("cuda", "bf16" if native else "fp16")


@contextmanager
def running_on(place: Place) -> Iterator[None]:
    """Let dense heads run at a place, in this thread and until the block ends."""
    before = _chosen.set(place)
    try:
        yield
    finally:
        _chosen.reset(before)


@contextmanager
def computing(place: Place, *, training: bool) -> Iterator[None]:
    """Compute in the gradient mode that is needed, and on CUDA by repeatable convolutions.

    The caller's autocast is off: a backward pass would obey it, too. What the caller had is in
    force again at the end.

    Args:
        place: Where.
        training: Whether gradients are asked for.
    """
    import torch

    with ExitStack() as stack:
        if training:
            stack.enter_context(torch.inference_mode(mode=False))
            stack.enter_context(torch.enable_grad())
        else:
            stack.enter_context(torch.inference_mode())
        stack.enter_context(torch.autocast(place.kind, enabled=False))
        if place.kind == "cuda":
            flags = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True)
            stack.enter_context(flags)
        yield


@contextmanager
def mixed_precision(place: Place) -> Iterator[None]:
    """Let a network multiply in the precision of a place."""
    import torch

    half = torch.float16 if place.precision == "fp16" else torch.bfloat16
    # Its cache of converted weights is emptied at the end of the outermost autocast only, which
    # may be the caller's or that of `computing`: it would hold weights of earlier steps.
    mixed = place.precision != "fp32"
    with torch.autocast(place.kind, dtype=half, enabled=mixed, cache_enabled=False):
        yield
