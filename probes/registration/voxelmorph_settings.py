"""How a VoxelMorph is made and trained."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple, Self, cast

__all__ = ["Flat", "Kind", "VoxelMorphSettings"]

Flat = bool | int | float | str

_SMOOTHNESS = {"ncc": 1.0, "mse": 0.01}
_MOST_CHANNELS, _MOST_LAYERS = 4096, 32


class Kind(NamedTuple):
    """What pairs have in common: their grid, and how many features an image has (0: none)."""

    grid: tuple[int, ...]
    channels: int


@dataclass(frozen=True, kw_only=True)
class VoxelMorphSettings:
    """How a VoxelMorph is made and trained.

    Attributes:
        encoder: Channels of each level, from the full grid on; each next one has half the grid.
        decoder: Channels of as many levels back, from the smallest grid on, and of those layers
            that follow on the full grid.
        int_steps: Squarings that make a displacement of velocities, which has an inverse then:
            2 ** int_steps small steps. 0: the network gives the displacement itself.
        image_loss: "ncc": minus the mean square of local correlations, -1 is the best; or "mse":
            the mean squared difference.
        window: Width in voxels of what a correlation is local to; odd.
        smoothness: Weight of the mean squared gradient of velocities; None: 1 with "ncc", 0.01
            with "mse".
        feature_loss: Weight of the mean squared difference of features, where there are any.
        lr: Of Adam, the same in all steps.
        epochs: How many.
        steps_per_epoch: Batches of an epoch, for which pairs come equally often; None: so many
            that each training pair comes once.
        batch: Pairs of a step.
        seed: Of the first weights and of the order of pairs.
        precision: "auto": mixed on a GPU; or "fp32" everywhere.

    Raises:
        ValueError: If one is out of its range.
    """

    encoder: tuple[int, ...] = (16, 32, 32, 32)
    decoder: tuple[int, ...] = (32, 32, 32, 32, 32, 16, 16)
    int_steps: int = 7
    image_loss: Literal["ncc", "mse"] = "ncc"
    window: int = 9
    smoothness: float | None = None
    feature_loss: float = 1.0
    lr: float = 1e-4
    epochs: int = 100
    steps_per_epoch: int | None = None
    batch: int = 1
    seed: int = 0
    precision: Literal["auto", "fp32"] = "auto"

    def __post_init__(self) -> None:
        for name in ("encoder", "decoder"):
            _check_channels(name, getattr(self, name))
        if len(self.decoder) < len(self.encoder):
            raise ValueError(
                f"decoder needs at least as many layers as encoder ({len(self.encoder)}), got "
                f"{len(self.decoder)}"
            )
        for name, choices in (("image_loss", ("ncc", "mse")), ("precision", ("auto", "fp32"))):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{name} must be {' or '.join(choices)}, got {getattr(self, name)!r}"
                )
        _check_whole("int_steps", self.int_steps, 0, 16)
        _check_whole("window", self.window, 3, 999)
        if self.window % 2 == 0:
            raise ValueError(f"window must be odd, got {self.window}")
        for name, least in (("epochs", 1), ("batch", 1), ("seed", 0)):
            _check_whole(name, getattr(self, name), least, None)
        if self.steps_per_epoch is not None:
            _check_whole("steps_per_epoch", self.steps_per_epoch, 1, None)
        weights = (("smoothness", self.smoothness_weight), ("feature_loss", self.feature_loss))
        for name, weight in weights:
            if not _is_number(weight) or not 0 <= weight < math.inf:
                raise ValueError(f"{name} must be at least 0, got {weight!r}")
        if not _is_number(self.lr) or not 0 < self.lr < math.inf:
            raise ValueError(f"lr must be above 0, got {self.lr!r}")

    @property
    def smoothness_weight(self) -> float:
        """What `smoothness` is, or stands for."""
        return _SMOOTHNESS[self.image_loss] if self.smoothness is None else self.smoothness

    def get_params(self) -> dict[str, Flat]:
        """Return all settings, ready for JSON.

        Channels are text, as "16,32,32,32"; `smoothness` is the weight itself; `steps_per_epoch`
        is 0 for None.
        """
        flat: dict[str, Flat] = {one.name: getattr(self, one.name) for one in fields(self)}
        for name in ("encoder", "decoder"):
            flat[name] = ",".join(map(str, getattr(self, name)))
        flat["smoothness"] = float(self.smoothness_weight)
        flat["steps_per_epoch"] = self.steps_per_epoch or 0
        return flat

    @classmethod
    def from_params(cls, params: Mapping[str, Flat]) -> Self:
        """Read settings as `get_params` gives them, or each as text; others keep their default.

        Raises:
            ValueError: If there is no such setting, or it cannot be so.
        """
        known = [one.name for one in fields(cls)]
        read: dict[str, Any] = {}
        for name, value in params.items():
            if name not in known:
                raise ValueError(f"voxelmorph has no setting {name!r}; it has: {', '.join(known)}")
            try:
                read[name] = _READERS[name](value)
            except (ValueError, OverflowError) as exc:
                raise ValueError(
                    f"setting {name} of voxelmorph cannot be {value!r}; its default is "
                    f"{cls().get_params()[name]!r}"
                ) from exc
        return cls(**read)


def _check_channels(name: str, channels: object) -> None:
    if not isinstance(channels, tuple) or not 1 <= len(channels) <= _MOST_LAYERS:
        raise ValueError(f"{name} must be channels of 1 to {_MOST_LAYERS} layers, got {channels!r}")
    for one in channels:
        _check_whole(f"channels of {name}", one, 1, _MOST_CHANNELS)


def _check_whole(name: str, value: object, least: int, most: int | None) -> None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or cast(int, value) < least or (most is not None and cast(int, value) > most):
        span = f"of at least {least}" if most is None else f"of {least} to {most}"
        raise ValueError(f"{name} must be a whole number {span}, got {value!r}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _read_channels(value: Flat) -> tuple[int, ...]:
    return tuple(int(part) for part in str(value).split(","))


def _read_whole(value: Flat) -> int:
    return int(str(value))  # not of 1.5, nor of True


def _read_number(value: Flat) -> float:
    return float(str(value))


def _read_steps(value: Flat) -> int | None:
    return None if value == "none" else _read_whole(value) or None


_READERS: Mapping[str, Callable[[Flat], object]] = {
    "encoder": _read_channels,
    "decoder": _read_channels,
    "int_steps": _read_whole,
    "image_loss": str,
    "window": _read_whole,
    "smoothness": _read_number,
    "feature_loss": _read_number,
    "lr": _read_number,
    "epochs": _read_whole,
    "steps_per_epoch": _read_steps,
    "batch": _read_whole,
    "seed": _read_whole,
    "precision": str,
}
