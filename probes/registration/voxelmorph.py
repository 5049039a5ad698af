"""VoxelMorph: a U-Net is trained on many pairs, then it registers a pair in one pass.

It sees two images, or the patch features of both, and gives a field of velocities. Its losses
compare the moving image, moved so, with the fixed one: no pair needs labels.

References:
    Balakrishnan, Zhao, Sabuncu, Guttag, Dalca, IEEE TMI 38(8), 2019: the network, local NCC.
    Dalca, Balakrishnan, Guttag, Sabuncu, MICCAI 2018: velocities, scaling and squaring.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, cast

import numpy as np
import numpy.typing as npt

from probes.heads.dense_checkpoint import Checkpoint
from probes.heads.dense_rows import draws_of, read_ahead
from probes.heads.dense_training import Schedule, train
from probes.heads.device import Place, choose_place, computing, mixed_precision
from probes.registration.voxelmorph_settings import Flat, Kind, VoxelMorphSettings

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["PairSource", "VoxelMorph"]

Array = npt.NDArray[Any]

_ROUNDING = 1e-3
"""So far may intensities lie outside of [0, 1]."""
_WEIGHT = "weight."


class PairSource(Protocol):
    """Pairs of images that are registered, all of one grid (Z, Y, X) or (Y, X).

    It is read from another thread, never from two at once.
    """

    def __len__(self) -> int:
        """How many pairs there are."""

    def images(self, pair: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Give the fixed and the moving image of a pair: each (*grid) float32 in [0, 1]."""

    def features(self, pair: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]] | None:
        """Give the features of both, each (channels, *grid) float32; None: there are none."""


class VoxelMorph:
    """A network that registers pairs of one grid.

    Where pairs have features, the network sees them alone; its loss has their difference, and
    that of the images.

    Args:
        settings: How it is made and trained; None: all defaults.

    Attributes:
        settings: Those.
        grid_: (axes,) int64, of the images.
        channels_: () int64, of the features of an image; 0: it sees the images.
        weights_: Parameters of the network by name, float32.
        loss_curve_: (epochs,) float64, mean over the batches of an epoch.
        validation_curve_: (epochs,) float64, mean loss of the validation pairs; empty without.
        best_epoch_: () int64, from 0: whose weights these are.
    """

    learned: ClassVar[tuple[str, ...]] = (
        "grid",
        "channels",
        "loss_curve",
        "validation_curve",
        "best_epoch",
    )

    grid_: npt.NDArray[np.int64]
    channels_: npt.NDArray[np.int64]
    weights_: dict[str, npt.NDArray[np.float32]]
    loss_curve_: npt.NDArray[np.float64]
    validation_curve_: npt.NDArray[np.float64]
    best_epoch_: npt.NDArray[np.int64]

    def __init__(self, settings: VoxelMorphSettings | None = None) -> None:
        self.settings = VoxelMorphSettings() if settings is None else settings

    def get_params(self) -> dict[str, Flat]:
        """Return the settings, ready for JSON."""
        return self.settings.get_params()

    def fit(
        self,
        pairs: PairSource,
        *,
        validation: PairSource | None = None,
        checkpoint: Path | None = None,
    ) -> Self:
        """Train on pairs; the next ones are read while the network trains.

        It runs where `running_on` says, else on CUDA where there is one, else on the CPU, and
        tells how far it is by `telling`. On one machine the same pairs and settings give the same
        bits with the same number of threads, interrupted or not.

        Args:
            pairs: What is learned from.
            validation: Other pairs, which choose: the weights of the epoch with their lowest mean
                loss are kept. None: those of the last epoch.
            checkpoint: File in which the state is kept at the end of each epoch, and from which
                a fit goes on that was interrupted. It stays there at the end. Other settings,
                numbers of pairs, or another first pair are another fit.

        Returns:
            Itself, fitted.

        Raises:
            ValueError: If pairs are not as `PairSource` says, of which the number is named; the
                loss overflows; or the checkpoint is damaged or of another fit.
            OSError: If the checkpoint cannot be written.
        """
        from probes.registration.voxelmorph_network import initial_weights, with_weights

        settings, place = self.settings, self._place()
        kind = _kind_of(pairs, "training ")
        held = None if validation is None else _Reader(validation, kind, "validation ")
        reader = _Reader(pairs, kind, "training ")
        kept = None
        if checkpoint is not None:
            kept = Checkpoint(checkpoint, _parts(reader, held, settings, place))
        with computing(place, training=True):
            network = with_weights(settings, kind, initial_weights(settings, kind), place)
        losses = _Losses(network, settings, place)
        progress = train(
            network,
            _PairBatches(reader, settings),
            losses.of_batch,
            _Steady(
                lr=settings.lr,
                weight_decay=0,
                epochs=settings.epochs,
                warmup=0,
                patience=None if held is None else settings.epochs,
            ),
            place=place,
            validate=None if held is None else lambda: -losses.mean(held),
            checkpoint=kept,
        )
        self.weights_ = {
            name: one.detach().cpu().contiguous().numpy()
            for name, one in network.named_parameters()
        }
        self.grid_ = np.array(kind.grid, np.int64)
        self.channels_ = np.array(kind.channels, np.int64)
        self.loss_curve_ = np.array(progress.loss_curve)
        self.validation_curve_ = -np.array(progress.validation_curve)
        self.best_epoch_ = np.array(progress.best_epoch)
        return self

    def displacement(self, pairs: PairSource, pair: int) -> npt.NDArray[np.float32]:
        """Register a pair.

        The network sees the moving image's channels first, then those of the fixed one. Voxels
        that are beyond the grid, to make each axis a multiple of 2 for each level, are 0.

        Args:
            pairs: Of the grid that was trained on, with as many channels of features.
            pair: Which.

        Returns:
            (axes, *grid) float32 in voxels, component k along axis k: the moving image, sampled at
            x + u(x), is the warped one on the fixed image's grid.

        Raises:
            ValueError: If it is not fitted, or the pair is another.
        """
        import torch

        from probes.registration.voxelmorph_network import move, with_weights

        if not hasattr(self, "best_epoch_"):
            raise ValueError("voxelmorph is not fitted; call fit or from_arrays first")
        if not 0 <= pair < len(pairs):
            raise ValueError(f"there are pairs 0 to {len(pairs) - 1}, got {pair}")
        kind, place = Kind(tuple(map(int, self.grid_)), int(self.channels_)), self._place()
        batch = _Reader(pairs, kind, "").read([pair]).on(place)
        with computing(place, training=False):
            # numpy's arrays may be read-only; nothing is written to these copies, either.
            weights = {k: torch.from_numpy(v.copy()) for k, v in self.weights_.items()}
            network = with_weights(self.settings, kind, weights, place)
            with mixed_precision(place):
                _, found = move(network, batch.seen(), self.settings.int_steps)
            field: npt.NDArray[np.float32] = found[0].cpu().numpy()
        return np.ascontiguousarray(field)

    def to_arrays(self) -> dict[str, Array]:
        """Return what was learned, by name, without the trailing ``_``.

        Parameters of the network are called ``weight.NAME``.

        Raises:
            ValueError: If it is not fitted.
        """
        if not hasattr(self, "best_epoch_"):
            raise ValueError("voxelmorph is not fitted; there is nothing to save before fit")
        saved = {name: getattr(self, f"{name}_") for name in self.learned}
        return {**saved, **{_WEIGHT + name: one for name, one in self.weights_.items()}}

    @classmethod
    def from_arrays(cls, params: Mapping[str, Flat], arrays: Mapping[str, Array]) -> Self:
        """Restore a fitted network that registers as the saved one did.

        Args:
            params: What `get_params` returned.
            arrays: What `to_arrays` returned.

        Raises:
            ValueError: If an array is missing or another, or a setting is out of its range.
        """
        from probes.registration.voxelmorph_network import make_network

        made = cls(VoxelMorphSettings.from_params(params))
        shapes: dict[str, tuple[int, ...] | None] = dict.fromkeys(cls.learned)
        _check_arrays(arrays, {**shapes, "channels": (), "best_epoch": ()})
        grid, channels = tuple(arrays["grid"].reshape(-1).tolist()), arrays["channels"].item()
        whole = all(isinstance(one, int) for one in (*grid, channels))
        if not whole or len(grid) not in (2, 3) or min(grid) < 1 or channels < 0:
            raise ValueError(
                "voxelmorph registers pictures or volumes, got a grid of "
                f"{grid} and {channels} channels. Fit it again."
            )
        network = make_network(made.settings, Kind(grid, channels))
        weights = {name: tuple(one.shape) for name, one in network.named_parameters()}
        _check_arrays(arrays, {_WEIGHT + name: shape for name, shape in weights.items()})
        for name in cls.learned:
            setattr(made, f"{name}_", arrays[name])
        made.weights_ = {name: arrays[_WEIGHT + name] for name in weights}
        return made

    def _place(self) -> Place:
        place = choose_place()
        return Place(place.device) if self.settings.precision == "fp32" else place


def _check_arrays(
    arrays: Mapping[str, Array], shapes: Mapping[str, tuple[int, ...] | None]
) -> None:
    """Refuse arrays that no fit gave; None is any shape."""
    missing = [name for name in shapes if name not in arrays]
    if missing:
        raise ValueError(
            f"voxelmorph is saved with the arrays {', '.join(shapes)}; missing: "
            f"{', '.join(missing)}. Fit it again."
        )
    for name, shape in shapes.items():
        array = arrays[name]
        weight = name.startswith(_WEIGHT)
        if (shape is not None and array.shape != shape) or (weight and array.dtype != np.float32):
            raise ValueError(
                f"array {name} of voxelmorph must be {shape}{' float32' if weight else ''}, got "
                f"{array.shape} {array.dtype}. Fit it again."
            )
        if weight and not np.isfinite(array).all():
            raise ValueError(f"array {name} of voxelmorph must be finite. Fit it again.")


@dataclass(frozen=True)
class _Batch:
    """Pairs of one step, each tensor (pairs, channels, *grid) float32."""

    numbers: tuple[int, ...]
    fixed: "Tensor"
    moving: "Tensor"
    features: "tuple[Tensor, Tensor] | None"
    """Of the fixed, of the moving image."""

    def on(self, place: Place) -> "_Batch":
        """Bring it to a place."""
        features = self.features and (place.bring(self.features[0]), place.bring(self.features[1]))
        return _Batch(self.numbers, place.bring(self.fixed), place.bring(self.moving), features)

    def seen(self) -> "Tensor":
        """Give what the network sees: of the moving image first, then of the fixed one."""
        import torch

        fixed, moving = self.features or (self.fixed, self.moving)
        return torch.cat([moving, fixed], dim=1)


def _kind_of(pairs: PairSource, what: str) -> Kind:
    """Look at the first pair."""
    if len(pairs) == 0:
        raise ValueError(f"voxelmorph needs at least one {what}pair, got none")
    grid = tuple(map(int, pairs.images(0)[0].shape))
    if len(grid) not in (2, 3) or min(grid) < 1:
        raise ValueError(f"images must be (Z, Y, X) or (Y, X), {what}pair 0 is {grid}")
    features = pairs.features(0)
    if features is None:
        return Kind(grid, 0)
    if not len(features[0]):
        raise ValueError(f"features need at least one channel, {what}pair 0 has none")
    return Kind(grid, len(features[0]))


class _Reader:
    """Reads pairs, and refuses those that are not of the kind of the others.

    Args:
        pairs: At least one.
        kind: What each must be.
        what: Comes before "pair" in messages.
    """

    def __init__(self, pairs: PairSource, kind: Kind, what: str) -> None:
        if len(pairs) == 0:
            raise ValueError(f"voxelmorph needs at least one {what}pair, got none")
        self.pairs, self.kind, self._what = pairs, kind, what

    def __len__(self) -> int:
        return len(self.pairs)

    def read(self, numbers: Sequence[int]) -> _Batch:
        """Read pairs to be computed together."""
        import torch

        images, features = zip(*map(self.arrays, numbers), strict=True)
        fixed, moving = (
            torch.from_numpy(np.stack(some)[:, None]) for some in zip(*images, strict=True)
        )
        if not self.kind.channels:
            return _Batch(tuple(numbers), fixed, moving, None)
        of_fixed, of_moving = (
            torch.from_numpy(np.stack(some)) for some in zip(*features, strict=True)
        )
        return _Batch(tuple(numbers), fixed, moving, (of_fixed, of_moving))

    def arrays(self, number: int) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        """Give images and features (empty: none) of a pair, fixed and moving; all float32."""
        name = f"{self._what}pair {number}"
        found = [
            _image(one, self.kind.grid, f"the {side} image of {name}")
            for one, side in zip(self.pairs.images(number), ("fixed", "moving"), strict=True)
        ]
        given = self.pairs.features(number)
        if (given is not None) != bool(self.kind.channels):
            raise ValueError(
                f"all pairs have features or none has: {name} has "
                f"{'none' if given is None else 'some'}, unlike those that are trained on"
            )
        features = [
            _floats(one, (self.kind.channels, *self.kind.grid), f"features, {side} of {name}")
            for one, side in zip(given or (), ("fixed", "moving"), strict=bool(given))
        ]
        return (found[0], found[1]), cast(tuple[Array, Array], tuple(features))


def _image(image: Array, grid: tuple[int, ...], name: str) -> npt.NDArray[np.float32]:
    found = _floats(image, grid, name)
    low, high = float(found.min()), float(found.max())
    if low < -_ROUNDING or high > 1 + _ROUNDING:
        raise ValueError(f"{name} must lie in [0, 1], it lies in [{low:g}, {high:g}]")
    if low == high:
        raise ValueError(f"{name} is {low:g} everywhere; leave that pair out")
    return found


def _floats(values: Array, shape: tuple[int, ...], name: str) -> npt.NDArray[np.float32]:
    if values.shape != shape:
        raise ValueError(f"{name} must be {shape} as in the others, got {values.shape}")
    if not np.issubdtype(values.dtype, np.floating):
        raise ValueError(f"{name} must be floats, got {values.dtype}")
    if not np.isfinite(values).all():
        raise ValueError(f"{name} must be finite, it is not; leave that pair out")
    return values.astype(np.float32, copy=False)


class _PairBatches:
    """Batches of an epoch, in random order, in which pairs come equally often."""

    def __init__(self, reader: _Reader, settings: VoxelMorphSettings) -> None:
        self._reader, self._seed, self._batch = reader, settings.seed, settings.batch
        steps = settings.steps_per_epoch
        self._drawn = len(reader) if steps is None else steps * settings.batch
        self.n_batches = -(-self._drawn // settings.batch)

    def epoch(self, number: int) -> Iterator[_Batch]:
        """Give the batches of an epoch."""
        draws = draws_of(self._seed, 1, number)
        rounds = -(-self._drawn // len(self._reader))
        order = np.concatenate([draws.permutation(len(self._reader)) for _ in range(rounds)])
        numbers = order[: self._drawn].tolist()
        for first in range(0, len(numbers), self._batch):
            yield self._reader.read(numbers[first : first + self._batch])


class _Steady(Schedule):
    """A learning rate that does not change."""

    def lr_of(self, step: int, n_batches: int) -> float:
        """Give it."""
        return self.lr


def _parts(
    reader: _Reader, held: _Reader | None, settings: VoxelMorphSettings, place: Place
) -> dict[str, Any]:
    """Say what makes a fit another than others."""
    digest = hashlib.sha256()
    images, features = reader.arrays(0)
    for one in (*images, *features):
        digest.update(np.ascontiguousarray(one).data)
    return {
        "method": "voxelmorph",
        "settings": settings.get_params(),
        "pairs": [len(reader), *reader.kind],
        "validation pairs": held and len(held),
        "the first pair": digest.hexdigest(),
        "device": [place.kind, place.precision],
    }


class _Losses:
    """Computes losses by a network."""

    def __init__(
        self, network: "nn.ModuleDict", settings: VoxelMorphSettings, place: Place
    ) -> None:
        self._network, self._settings, self._place = network, settings, place

    def of_batch(self, batch: _Batch) -> "Tensor":
        """Give the mean loss of pairs.

        Raises:
            ValueError: If it is not finite.
        """
        import torch

        from probes.registration.voxelmorph_network import move, ncc_loss, roughness, sample

        settings, batch = self._settings, batch.on(self._place)
        velocity, displacement = move(self._network, batch.seen(), settings.int_steps)
        with torch.autocast(self._place.kind, enabled=False):
            warped = sample(batch.moving, displacement)
            if settings.image_loss == "ncc":
                loss = ncc_loss(batch.fixed, warped, settings.window)
            else:
                loss = (batch.fixed - warped).square().mean()
            if batch.features is not None:
                of_fixed, of_moving = batch.features
                difference = of_fixed - sample(of_moving, displacement)
                loss = loss + settings.feature_loss * difference.square().mean()
            # At half size a voxel is two: gradients are counted twice.
            twice = 2 if settings.int_steps else 1
            loss = loss + settings.smoothness_weight * twice * roughness(velocity)
        if not math.isfinite(loss.item()):
            pairs = ", ".join(map(str, batch.numbers))
            raise ValueError(
                f"the loss must stay finite, it became {loss.item()} at pair {pairs}; lower lr "
                f"(now {settings.lr})"
            )
        return loss

    def mean(self, reader: _Reader) -> float:
        """Give the mean loss of all pairs, one by one."""
        batches = (reader.read([number]) for number in range(len(reader)))
        total = 0.0
        with computing(self._place, training=False):
            for batch in read_ahead(batches):
                with mixed_precision(self._place):
                    total += self.of_batch(batch).item()
        return total / len(reader)
