"""What dense heads share: how they are fitted, asked, saved and restored; and those of rows."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Self, cast

import numpy as np
import numpy.typing as npt

from probes.heads.cases import Cases
from probes.heads.dense_checkpoint import Checkpoint
from probes.heads.dense_rows import (
    PIECE_ROWS,
    Group,
    MapBatches,
    Piece,
    RowBatches,
    Statistics,
    check_cases,
    read_ahead,
    read_maps,
    statistics,
)
from probes.heads.dense_training import Schedule, train
from probes.heads.device import Place, choose_place, computing, mixed_precision
from probes.heads.losses import dense_loss, one_hot

if TYPE_CHECKING:
    from torch import Tensor

    from probes.heads.dense_networks import MapNetwork, RowNetwork

__all__ = ["DenseRowsHead", "MapKinds", "MapsHead", "as_tensors", "probabilities"]

Arrays = dict[str, npt.NDArray[Any]]

_BLOCK_BYTES = 1 << 28
"""What a block of predictions may take, with what it is computed from."""
_WEIGHT = "weight."


class MapKinds(NamedTuple):
    """What is read together.

    Attributes:
        channels: Of each map.
        levels: Of each map: 0 for the last layer, 1 and more for ever earlier ones.
    """

    channels: tuple[int, ...]
    levels: tuple[int, ...]


class MapsHead(ABC):
    """A head that turns maps into labels of pixels or voxels.

    A subclass says which network it trains, in what batches, and how it is asked; and it has the
    settings below.

    Attributes:
        channels_: (n_maps,) int64, of each map that is read together.
        classes_: () int64, besides the background.
        overlapping_: () bool, whether the classes may overlap.
        mean_, scale_: (sum of channels,) float32, of the maps one behind another; zeros and ones
            unless ``standardize``.
        weights_: Parameters of the network by name, float32.
        loss_curve_: (epochs run,) float64, mean over the batches of an epoch.
        validation_curve_: (epochs run,) float64, mean Dice of the validation; empty without.
        best_epoch_: () int64, from 0: whose weights these are.
    """

    takes: ClassVar[Literal["maps"]] = "maps"
    gives: ClassVar[Literal["classes", "affinities"]] = "classes"
    learned: ClassVar[tuple[str, ...]] = (
        "channels",
        "classes",
        "overlapping",
        "mean",
        "scale",
        "loss_curve",
        "validation_curve",
        "best_epoch",
    )

    channels_: npt.NDArray[np.int64]
    classes_: npt.NDArray[np.int64]
    overlapping_: npt.NDArray[np.bool_]
    mean_: npt.NDArray[np.float32]
    scale_: npt.NDArray[np.float32]
    weights_: dict[str, npt.NDArray[np.float32]]
    loss_curve_: npt.NDArray[np.float64]
    validation_curve_: npt.NDArray[np.float64]
    best_epoch_: npt.NDArray[np.int64]

    standardize: bool
    lr: float
    weight_decay: float
    warmup: int
    epochs: int
    batch_size: int
    patience: int | None
    seed: int

    @property
    def selects(self) -> bool:
        """Whether validation items decide when to stop: with ``patience``."""
        return self.patience is not None

    @abstractmethod
    def get_params(self) -> dict[str, bool | int | float | str | None]:
        """Return the settings of the constructor, ready for JSON."""

    @abstractmethod
    def _network_of(self, kinds: MapKinds, outputs: int) -> "MapNetwork":
        """Make the network on the meta device."""

    @abstractmethod
    def _first_weights(self, network: Any) -> "dict[str, Tensor]":  # noqa: ANN401
        """Make the weights that training starts from, on the CPU."""

    @abstractmethod
    def _batches(
        self,
        cases: Cases,
        classes: int,
        *,
        overlapping: bool,
        views: tuple[str | None, ...] | None = None,
    ) -> MapBatches:
        """Give what is trained on, or what validates, in views of the cases or in these."""

    @abstractmethod
    def _predict(self, cases: Cases, item: int) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
        """Do what `predict` does, of what was checked."""

    def _loss(
        self, groups: "Sequence[tuple[Tensor, Tensor]]", classes: int, *, overlapping: bool
    ) -> "Tensor":
        """Compute the loss of a batch: logits and labels of each group, see `Group`."""
        masks = [(logits, one_hot(labels, classes)) for logits, labels in groups]
        return dense_loss(masks, overlapping=overlapping)

    def _kinds(self, cases: Cases) -> MapKinds:
        """Say what is read together, as far as this head tells it apart."""
        channels = tuple(map(int, cases.channels))
        return MapKinds(channels, (0,) * len(channels))

    def _learned_kinds(self, arrays: Mapping[str, npt.NDArray[Any]]) -> MapKinds:
        """Give what `_kinds` gave, out of what is saved."""
        channels = tuple(int(one) for one in arrays["channels"].reshape(-1))
        return MapKinds(channels, (0,) * len(channels))

    def fit(
        self,
        cases: Cases,
        classes: int,
        *,
        overlapping: bool = False,
        validation: Cases | None = None,
        checkpoint: Path | str | None = None,
    ) -> Self:
        """Train on all items, in all views; what comes next is read while the network trains.

        Before the first epoch pieces are read until a million patches were seen, for the mean
        and scale of each channel. On one machine the same cases and settings give the same bits
        with the same number of threads, interrupted or not.

        Args:
            cases: What is learned from, see docs/heads.md. Read from another thread, never from
                two at once.
            classes: Besides the background.
            overlapping: Labels are (classes, rows, Y, X) bool: a sigmoid for each class.
                Otherwise (rows, Y, X) whole numbers: a softmax, 0 the background.
            validation: Other items; needed and looked at with ``patience``, as they are, without
                views. Of each item and class that truth or prediction has, the Dice; the mean
                over items, then over classes.
            checkpoint: File in which the state is kept at the end of each epoch, and from which
                a fit goes on that was interrupted. It stays there at the end.

        Returns:
            The head itself, fitted.

        Raises:
            ValueError: If maps, labels or validation are not as above, the loss overflows, or
                the checkpoint is of another fit.
            OSError: If the checkpoint cannot be written.
        """
        check_cases(cases)
        if isinstance(classes, bool) or not isinstance(classes, int | np.integer) or classes < 1:
            raise ValueError(f"classes must be a whole number of at least 1, got {classes!r}")
        held = self._held(validation, cases)
        return self._learn(cases, int(classes), held, checkpoint, overlapping=overlapping)

    def _learn(
        self,
        cases: Cases,
        classes: int,
        held: Cases | None,
        checkpoint: Path | str | None,
        *,
        overlapping: bool,
    ) -> Self:
        """Do what `fit` does, of what was checked."""
        place, kinds = choose_place(), self._kinds(cases)
        batches = self._batches(cases, classes, overlapping=overlapping)
        found = statistics(cases, batches, classes, overlapping=overlapping)
        kept = self._checkpoint(
            checkpoint, cases, held, found, classes, overlapping=overlapping, place=place
        )
        mean, scale = found.mean, found.scale
        if not self.standardize:
            mean, scale = np.zeros_like(mean), np.ones_like(scale)
        outputs = classes if overlapping else 1 + classes
        network = self._network_of(kinds, outputs)
        with computing(place, training=True):
            _fill(network, self._first_weights(network), mean, scale, place)
        validate = None
        if held is not None:
            validate = self._validation(
                network, held, classes, overlapping=overlapping, place=place
            )
        progress = train(
            network,
            batches,
            self._loss_of(network, classes, place, overlapping=overlapping),
            self._schedule(),
            place=place,
            validate=validate,
            checkpoint=kept,
        )
        weights = {name: one.detach().cpu().numpy() for name, one in network.named_parameters()}
        self._keep_kinds(kinds)
        self.classes_ = np.array(classes, np.int64)
        self.overlapping_ = np.array(overlapping)
        self.mean_, self.scale_, self.weights_ = mean, scale, weights
        self.loss_curve_ = np.array(progress.loss_curve)
        self.validation_curve_ = np.array(progress.validation_curve)
        self.best_epoch_ = np.array(progress.best_epoch)
        return self

    def _keep_kinds(self, kinds: MapKinds) -> None:
        self.channels_ = np.array(kinds.channels, np.int64)

    def predict(self, cases: Cases, item: int) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
        """Label an item, block by block of its rows; the next one is read meanwhile.

        Args:
            cases: Labels are not read.
            item: Which.

        Yields:
            First row and probabilities: (1 + classes, rows, Y, X) float32 that sum to 1, or of
            classes that overlap (classes, rows, Y, X), each in [0, 1]. Each row comes once, in
            order.

        Raises:
            ValueError: If the head is not fitted, there is no such item, or maps are not finite
                or of other channels.
        """
        if not hasattr(self, "best_epoch_"):
            raise ValueError("the head is not fitted; call fit or from_arrays first")
        kinds, given = self._learned_kinds(self._saved()), self._kinds(cases)
        if given.channels != kinds.channels:
            raise ValueError(
                f"the head was fitted on maps of {kinds.channels} channels, got "
                f"{given.channels}; give it features of the encoder that it was fitted on"
            )
        if given.levels != kinds.levels:
            raise ValueError(
                f"the head was fitted on maps of the levels {kinds.levels}, got {given.levels}; "
                "give it maps of the same layers in the same order"
            )
        if not 0 <= item < len(cases):
            raise ValueError(f"there are items 0 to {len(cases) - 1}, got {item}")
        return self._predict(cases, item)

    def _ready(self, place: Place) -> "MapNetwork":
        """Make the network that was fitted, at a place."""
        import torch

        outputs = int(self.classes_) + (not self.overlapping_)
        with computing(place, training=False):
            network = self._network_of(self._learned_kinds(self._saved()), outputs)
            # numpy's arrays may be read-only; nothing is written to these copies, either.
            weights = {k: torch.from_numpy(v.copy()) for k, v in self.weights_.items()}
            _fill(network, weights, self.mean_, self.scale_, place)
        network.eval()
        return network

    def _saved(self) -> Arrays:
        return {name: getattr(self, f"{name}_") for name in self.learned}

    def to_arrays(self) -> Arrays:
        """Return what was learned, by name, without the trailing ``_``.

        Parameters of the network are called ``weight.NAME``.

        Raises:
            ValueError: If the head is not fitted.
        """
        if not hasattr(self, "best_epoch_"):
            raise ValueError("the head is not fitted; there is nothing to save before fit")
        return {**self._saved(), **{_WEIGHT + name: one for name, one in self.weights_.items()}}

    @classmethod
    def from_arrays(cls, params: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> Self:
        """Restore a fitted head that predicts as the saved one did.

        Args:
            params: What `get_params` returned.
            arrays: What `to_arrays` returned.

        Returns:
            A fitted head.

        Raises:
            ValueError: If an array is missing or has another shape, or a setting is out of its
                range.
        """
        head = cls(**params)
        head._check_names(arrays, cls.learned)
        for name in ("classes", "overlapping", "best_epoch"):
            if arrays[name].shape != ():
                raise ValueError(
                    f"array {name} of a {cls.__name__} must be one number, got "
                    f"{arrays[name].shape}. Fit the head again."
                )
        kinds = head._learned_kinds(arrays)
        outputs = int(arrays["classes"]) + (not bool(arrays["overlapping"]))
        if min(kinds.channels, default=0) < 1 or outputs < 1:
            raise ValueError(
                f"a {cls.__name__} has maps of at least one channel and at least one class, got "
                f"{kinds.channels} and {outputs} outputs. Fit the head again."
            )
        shapes = {
            _WEIGHT + name: tuple(one.shape)
            for name, one in head._network_of(kinds, outputs).named_parameters()
        }
        head._check_names(arrays, (*cls.learned, *shapes))
        shapes |= dict.fromkeys(("mean", "scale"), (sum(kinds.channels),))
        for name, shape in shapes.items():
            if arrays[name].shape != shape or arrays[name].dtype != np.float32:
                raise ValueError(
                    f"array {name} of a {cls.__name__} must be {shape} float32, got "
                    f"{arrays[name].shape} {arrays[name].dtype}. Fit the head again."
                )
        for name in cls.learned:
            setattr(head, f"{name}_", arrays[name])
        head.weights_ = {
            name.removeprefix(_WEIGHT): arrays[name] for name in shapes if name.startswith(_WEIGHT)
        }
        return head

    def _check_names(self, arrays: Mapping[str, Any], names: tuple[str, ...]) -> None:
        missing = [name for name in names if name not in arrays]
        if missing:
            raise ValueError(
                f"a {type(self).__name__} is saved as the arrays {', '.join(names)}; missing: "
                f"{', '.join(missing)}. Fit the head again."
            )

    def _check_training(self) -> None:
        """Refuse settings of the training that are out of range."""
        self._schedule().check()
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed}")

    def _schedule(self) -> Schedule:
        return Schedule(
            lr=self.lr,
            weight_decay=self.weight_decay,
            epochs=self.epochs,
            warmup=self.warmup,
            patience=self.patience,
        )

    def _held(self, validation: Cases | None, cases: Cases) -> Cases | None:
        if self.patience is None:
            return None
        if validation is None:
            raise ValueError(
                "validation items choose, got none; give fit validation=cases, or set patience=none"
            )
        check_cases(validation, "validation: ")
        given, kinds = self._kinds(validation), self._kinds(cases)
        if given.channels != kinds.channels:
            raise ValueError(
                f"validation items must be as those of training, maps of {kinds.channels} "
                f"channels; got {given.channels}"
            )
        if given.levels != kinds.levels:
            raise ValueError(
                f"validation items must be as those of training, maps of the levels "
                f"{kinds.levels}; got {given.levels}"
            )
        return validation

    def _checkpoint(
        self,
        path: Path | str | None,
        cases: Cases,
        held: Cases | None,
        found: Statistics,
        classes: int,
        *,
        overlapping: bool,
        place: Place,
    ) -> Checkpoint | None:
        if path is None:
            return None
        parts: dict[str, Any] = {
            "head": type(self).__name__,
            "settings": self.get_params(),
            "classes": [classes, bool(overlapping)],
            "items": [_shapes(cases), list(cases.views)],
            "validation items": None if held is None else _shapes(held),
            "features and labels": [one.tobytes().hex() for one in found],
            "device": [place.kind, place.precision],
        }
        levels = self._kinds(cases).levels
        if any(levels):
            parts["levels"] = levels
        return Checkpoint(Path(path), parts)

    def _validation(
        self,
        network: "MapNetwork",
        held: Cases,
        classes: int,
        *,
        overlapping: bool,
        place: Place,
    ) -> Callable[[], float]:
        """Return what computes the mean Dice of the validation items."""
        batches = self._batches(held, classes, overlapping=overlapping, views=(None,))

        def validate() -> float:
            # Of each item: pixels of truth and prediction both, of truth, of prediction.
            counts = np.zeros((len(held), 3, classes), np.int64)
            with computing(place, training=False):
                for batch in read_ahead(batches.in_order()):
                    for group in batch:
                        size = (group.labels.shape[-2], group.labels.shape[-1])
                        logits = _logits(network, group.maps, size, place)
                        some = _overlaps(logits, place.bring(group.labels), overlapping=overlapping)
                        np.add.at(counts, group.items, some)
            return _mean_dice(counts)

        return validate

    def _loss_of(
        self, network: "MapNetwork", classes: int, place: Place, *, overlapping: bool
    ) -> "Callable[[list[Group]], Tensor]":
        """Return what computes the loss of a batch."""
        import torch

        def loss_of(batch: list[Group]) -> "Tensor":
            pairs = []
            for group in batch:
                size = (group.labels.shape[-2], group.labels.shape[-1])
                logits = network([place.bring(one) for one in group.maps], size)
                pairs.append((logits, place.bring(group.labels)))
            with torch.autocast(place.kind, enabled=False):
                return self._loss(pairs, classes, overlapping=overlapping)

        return loss_of


class DenseRowsHead(MapsHead):
    """A head that labels the pixels of each row by itself.

    An epoch has each row once in each view. Up to 8 neighbours are read at once, in random order,
    and batches are drawn from 64 rows or more that are in memory. A subclass says which network
    it trains. Levels are not told apart.
    """

    @abstractmethod
    def _network(self, channels: tuple[int, ...], outputs: int) -> "RowNetwork":
        """Make the network on the meta device."""

    def _network_of(self, kinds: MapKinds, outputs: int) -> "RowNetwork":
        return self._network(kinds.channels, outputs)

    def _batches(
        self,
        cases: Cases,
        classes: int,
        *,
        overlapping: bool,
        views: tuple[str | None, ...] | None = None,
    ) -> RowBatches:
        return RowBatches(
            cases,
            classes,
            overlapping=overlapping,
            batch_size=self.batch_size,
            seed=self.seed,
            views=views,
        )

    def _predict(self, cases: Cases, item: int) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
        place, size = choose_place(), cases.size(item)
        overlapping = bool(self.overlapping_)
        outputs = int(self.classes_) + (not overlapping)
        network = cast("RowNetwork", self._ready(place))

        def read() -> Iterator[tuple[int, tuple[npt.NDArray[Any], ...]]]:
            for start in range(0, cases.n_rows(item), PIECE_ROWS):
                stop = min(start + PIECE_ROWS, cases.n_rows(item))
                maps = read_maps(cases, Piece(item, start, stop, None))
                n_together = _n_together(network, maps, size, outputs)
                for first in range(0, len(maps[0]), n_together):
                    yield start + first, tuple(one[first : first + n_together] for one in maps)

        for start, maps in read_ahead(read(), depth=1):
            # Not around the yield: the caller's modes are its own.
            with computing(place, training=False):
                logits = _logits(network, as_tensors(maps), size, place)
                found = probabilities(logits, overlapping=overlapping).transpose(0, 1).cpu().numpy()
            yield start, found


def as_tensors(maps: Sequence[npt.NDArray[Any]]) -> "tuple[Tensor, ...]":
    """Give maps to torch; what is read-only or has gaps is copied."""
    import torch

    return tuple(torch.from_numpy(np.require(one, None, ["C", "W"])) for one in maps)


def probabilities(logits: "Tensor", *, overlapping: bool) -> "Tensor":
    """Turn logits (rows or blocks, channels, ...) into what is predicted."""
    return logits.sigmoid() if overlapping else logits.softmax(1)


def _logits(
    network: "MapNetwork", maps: "tuple[Tensor, ...]", size: tuple[int, int], place: Place
) -> "Tensor":
    with mixed_precision(place):
        logits: Tensor = network([place.bring(one) for one in maps], size)
    return logits


def _fill(
    network: "MapNetwork",
    weights: "Mapping[str, Tensor]",
    mean: npt.NDArray[np.float32],
    scale: npt.NDArray[np.float32],
    place: Place,
) -> None:
    """Give a network of the meta device its values, on the place's device."""
    import torch

    buffers = network.statistics_of(torch.from_numpy(mean.copy()), torch.from_numpy(scale.copy()))
    network.load_state_dict({**weights, **buffers}, assign=True)
    network.to(place.device)


def _n_together(
    network: "RowNetwork",
    maps: tuple[npt.NDArray[Any], ...],
    size: tuple[int, int],
    outputs: int,
) -> int:
    """Say how many rows are computed together."""
    at_size = 3 * 4 * outputs * size[0] * size[1]
    within = network.row_bytes([one.shape[1:3] for one in maps])
    return max(1, _BLOCK_BYTES // (at_size + within))


def _overlaps(logits: "Tensor", labels: "Tensor", *, overlapping: bool) -> npt.NDArray[np.int64]:
    """Count pixels of each row or block: (., 3, classes), of both, of truth, of prediction."""
    classes = logits.shape[1] - (not overlapping)
    truth = one_hot(labels, classes)
    if overlapping:
        predicted = logits > 0
    else:
        truth, predicted = truth[:, 1:], one_hot(logits.argmax(1), classes)[:, 1:]
    pixels = tuple(range(2, truth.ndim))
    counts = [one.sum(pixels).cpu().numpy() for one in (truth & predicted, truth, predicted)]
    return np.stack(counts, axis=1)


def _mean_dice(counts: npt.NDArray[np.int64]) -> float:
    """Average over the items that have a class, in truth or prediction; then over classes."""
    both, truth, predicted = counts.swapaxes(0, 1)
    if not truth.any():
        raise ValueError(
            "validation items must have pixels of some class, they are all background; give "
            "others, or set patience=none"
        )
    size = truth + predicted
    has = size > 0
    dice = np.divide(2 * both, size, out=np.zeros(size.shape), where=has)
    seen = has.any(0)
    return float((dice.sum(0)[seen] / has.sum(0)[seen]).mean())


def _shapes(cases: Cases) -> list[Any]:
    items = [[cases.n_rows(item), *map(int, cases.size(item))] for item in range(len(cases))]
    return [[int(one) for one in cases.channels], items]
