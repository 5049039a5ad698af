"""Gradient-boosted trees, stopped by validation items."""

import zlib
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import numpy.typing as npt

from probes.heads.saved import SavedHead, check_features, check_training
from probes.heads.supervision import (
    balancing_weights,
    check_both_values,
    check_validation,
    is_exclusive,
)

if TYPE_CHECKING:
    from xgboost import Booster

__all__ = ["XgboostHead"]

_PREDICT_ROWS = 8192

_SMALL = 2**22
"""Features times items up to which one thread grows the trees.

Threads that wait for each other spin. Where another process wanted one of two cores, two threads
took four to ten times as long as one at 300 to 10,000 items of 384 features.
"""


class XgboostHead(SavedHead):
    """Gradient-boosted trees by XGBoost, on histograms of the features.

    One booster an output, each with its own best round; exclusive classes have one booster
    together. A booster keeps its trees up to the round with the lowest log-loss of the
    validation items. The number of threads changes no bit.

    The defaults suit a few hundred to a thousand dense features, of which none matters much by
    itself: shallow trees, each of which sees a part of the items and of the features.

    Args:
        rounds: Most boosting rounds, at least 1.
        patience: Rounds without a lower validation loss after which an output stops; None: all
            rounds, no validation.
        lr: Shrinkage of each tree (eta), above 0 and at most 1.
        depth: Most levels of splits in a tree, at least 1.
        subsample: Share of the items that a tree sees, above 0 and at most 1.
        colsample: Share of the features that a tree sees, above 0 and at most 1.
        min_child_weight: Least sum of second derivatives in a leaf, at least 0.
        l2: L2 penalty on the values of the leaves (lambda), at least 0.
        balanced: Classes weigh alike, in training and where validation items stop it; without
            exclusive classes, the 0 and the 1 of each output.
        loss: "bce", a booster for each output; "ce", a softmax over exclusive classes; "auto",
            ce where there are two columns or more and each training row has one 1.
        seed: Seed of the items and features that trees see, 0 to 2**31 - 1.

    Attributes:
        boosters_: (n_bytes,) uint8, the boosters one after another, in XGBoost's UBJSON.
        sizes_: (n_boosters,) int64, bytes of each.
        checksums_: (n_boosters,) uint32, CRC-32 of each.
        rounds_: (n_boosters,) int64, rounds that were kept.
        validation_loss_: (n_boosters,) float64, log-loss of the validation items in nats with
            these rounds; (0,) without validation.
        shape_: (2,) int64, width of the features and number of outputs.

    Raises:
        ValueError: If a setting is out of its range.

    References:
        Chen and Guestrin, "XGBoost: A Scalable Tree Boosting System", KDD 2016.
    """

    boosters_: npt.NDArray[np.uint8]
    sizes_: npt.NDArray[np.int64]
    checksums_: npt.NDArray[np.uint32]
    rounds_: npt.NDArray[np.int64]
    validation_loss_: npt.NDArray[np.float64]
    shape_: npt.NDArray[np.int64]

    learned = ("boosters", "sizes", "checksums", "rounds", "validation_loss", "shape")

    def __init__(
        self,
        *,
        rounds: int = 500,
        patience: int | None = 20,
        lr: float = 0.1,
        depth: int = 4,
        subsample: float = 0.8,
        colsample: float = 0.3,
        min_child_weight: float = 1.0,
        l2: float = 1.0,
        balanced: bool = False,
        loss: Literal["auto", "bce", "ce"] = "auto",
        seed: int = 0,
    ) -> None:
        self.rounds = rounds
        self.patience = patience
        self.lr = lr
        self.depth = depth
        self.subsample = subsample
        self.colsample = colsample
        self.min_child_weight = min_child_weight
        self.l2 = l2
        self.balanced = balanced
        self.loss: Literal["auto", "bce", "ce"] = loss
        self.seed = seed
        self._check_settings()

    @property
    def selects(self) -> bool:
        """Whether validation items choose the rounds that are kept."""
        return self.patience is not None

    def fit(
        self,
        x: npt.NDArray[np.floating[Any]],
        y: npt.NDArray[Any],
        *,
        validation: tuple[Any, npt.NDArray[Any]] | None = None,
    ) -> Self:
        """Grow the trees.

        One byte for each feature of each item is held meanwhile, besides a float32 copy of
        ``x``.

        Args:
            x: (n_items, dim) features, a floating dtype; read as float32.
            y: (n_items, n_outputs) of 0 and 1; both in each column if ``balanced``.
            validation: Other items, which choose the rounds; looked at with ``patience``.

        Returns:
            The head itself, fitted.

        Raises:
            ValueError: If the shapes or the values are not as above, validation is missing, or
                XGBoost is not installed.
        """
        x, y = np.asarray(x), np.asarray(y)
        check_training(x, y)
        exclusive = is_exclusive(y, self.loss)
        if self.balanced:
            check_both_values(y)
        held = None
        if self.selects:
            held = check_validation(
                validation,
                dim=x.shape[1],
                n_outputs=y.shape[1],
                exclusive=exclusive,
                way_out="patience=none",
            )
        models, rounds, losses = [], [], []
        for booster in self._grow(x, y, held, exclusive=exclusive):
            models.append(bytes(booster.save_raw("ubj")))
            rounds.append(booster.num_boosted_rounds())
            if held is not None:
                losses.append(booster.best_score)
        self.boosters_ = np.frombuffer(b"".join(models), dtype=np.uint8)
        self.sizes_ = np.array([len(model) for model in models])
        self.checksums_ = np.array([zlib.crc32(model) for model in models], dtype=np.uint32)
        self.rounds_, self.validation_loss_ = np.array(rounds), np.array(losses)
        self.shape_ = np.array([x.shape[1], y.shape[1]])
        self._loaded = self._load()
        return self

    def predict_proba(self, x: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float32]:
        """Score items.

        Args:
            x: (n_items, dim) features, a floating dtype; read as float32.

        Returns:
            (n_items, n_outputs) float32 in [0, 1]: sigmoids, each on its own, or for exclusive
            classes a softmax, which sums to 1 in each row.

        Raises:
            ValueError: If the head is not fitted, or ``x`` is not (n_items, dim) and finite.
        """
        x = np.asarray(x)
        if not hasattr(self, "shape_"):
            raise ValueError("the head is not fitted; call fit or from_arrays first")
        check_features(x)
        dim, n_outputs = self.shape_
        if x.shape[1] != dim:
            raise ValueError(
                f"the head was fitted on features of width {dim}, got {x.shape[1]}; "
                "give it features of the encoder that it was fitted on"
            )
        scores = np.empty((len(x), n_outputs), dtype=np.float32)
        for start in range(0, len(x), _PREDICT_ROWS):
            rows = slice(start, start + _PREDICT_ROWS)
            inputs = x[rows].astype(np.float32)
            columns = [booster.inplace_predict(inputs) for booster in self._loaded]
            scores[rows] = columns[0] if columns[0].ndim == 2 else np.stack(columns, axis=1)
        return scores

    def get_params(self) -> dict[str, bool | int | float | str | None]:
        """Return the settings of the constructor, ready for JSON."""
        return {
            "rounds": self.rounds,
            "patience": self.patience,
            "lr": self.lr,
            "depth": self.depth,
            "subsample": self.subsample,
            "colsample": self.colsample,
            "min_child_weight": self.min_child_weight,
            "l2": self.l2,
            "balanced": self.balanced,
            "loss": self.loss,
            "seed": self.seed,
        }

    @classmethod
    def from_arrays(cls, params: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> Self:
        """Restore a fitted head that predicts as the saved one did.

        Args:
            params: What `get_params` returned.
            arrays: What `to_arrays` returned.

        Returns:
            A fitted head.

        Raises:
            ValueError: If an array is missing, a setting is out of its range, or a booster is
                not what was saved.
        """
        head = super().from_arrays(params, arrays)
        head._loaded = head._load()
        return head

    def _check_settings(self) -> None:
        if self.loss not in ("auto", "bce", "ce"):
            raise ValueError(f"loss must be auto, bce or ce; got {self.loss!r}")
        for name in ("rounds", "depth", "patience"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        for name in ("lr", "subsample", "colsample"):
            value = getattr(self, name)
            if not 0 < value <= 1:
                raise ValueError(f"{name} must be above 0 and at most 1, got {value}")
        for name in ("min_child_weight", "l2"):
            value = getattr(self, name)
            if not 0 <= value < np.inf:
                raise ValueError(f"{name} must be a number of at least 0, got {value}")
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"seed must be at least 0 and below 2**31, got {self.seed}")

    def _grow(
        self,
        x: npt.NDArray[np.floating[Any]],
        y: npt.NDArray[Any],
        held: tuple[npt.NDArray[np.floating[Any]], npt.NDArray[Any]] | None,
        *,
        exclusive: bool,
    ) -> "Iterator[Booster]":
        """Yield the boosters; the histogram bins of the features are made once for all."""
        xgboost = _import_xgboost()
        weights = balancing_weights(y, y, exclusive=True) if exclusive and self.balanced else None
        threads = 1 if x.size <= _SMALL else 0
        training = xgboost.QuantileDMatrix(
            np.asarray(x, np.float32), weight=weights, nthread=threads or None
        )
        stopping: dict[str, Any] = {}
        if held is not None:
            watched = xgboost.QuantileDMatrix(
                np.asarray(held[0], np.float32), ref=training, nthread=threads or None
            )
            stopping = {"evals": [(watched, "validation")]}
        for output, labels in enumerate(_labels(y, exclusive=exclusive)):
            training.set_label(labels)
            if held is not None:
                watched.set_label(_labels(held[1], exclusive=exclusive)[output])
                if self.balanced:
                    weights = balancing_weights(held[1], y, exclusive=exclusive)
                    watched.set_weight(weights[:, output])
                stopping["callbacks"] = [
                    xgboost.callback.EarlyStopping(rounds=self.patience, save_best=True)
                ]
            yield xgboost.train(
                {"nthread": threads, **self._parameters(labels, y.shape[1] if exclusive else 1)},
                training,
                self.rounds,
                verbose_eval=False,
                **stopping,
            )

    def _parameters(self, labels: npt.NDArray[Any], n_classes: int) -> dict[str, Any]:
        """Return the settings by XGBoost's names."""
        parameters = {
            "tree_method": "hist",
            "eta": self.lr,
            "max_depth": self.depth,
            "subsample": self.subsample,
            "colsample_bytree": self.colsample,
            "min_child_weight": self.min_child_weight,
            "lambda": self.l2,
            "seed": self.seed,
        }
        if n_classes > 1:
            softmax = {"objective": "multi:softprob", "num_class": n_classes}
            return {**parameters, **softmax, "eval_metric": "mlogloss"}
        if self.balanced:
            parameters["scale_pos_weight"] = (labels == 0).sum() / (labels == 1).sum()
        return {**parameters, "objective": "binary:logistic", "eval_metric": "logloss"}

    def _load(self) -> "list[Booster]":
        """Return the boosters from their bytes.

        The checksums stand before XGBoost, which ends the process at some broken bytes.
        """
        xgboost = _import_xgboost()
        boosters = []
        ends = np.cumsum(self.sizes_)
        for output, (size, end) in enumerate(zip(self.sizes_, ends, strict=True)):
            model = bytearray(self.boosters_[end - size : end].tobytes())
            if len(model) != size or zlib.crc32(model) != self.checksums_[output]:
                raise ValueError(
                    f"booster {output} is not what was saved, its checksum differs; "
                    "fit the head again"
                )
            booster = xgboost.Booster()
            booster.load_model(model)
            boosters.append(booster)
        return boosters


def _labels(y: npt.NDArray[Any], *, exclusive: bool) -> list[npt.NDArray[Any]]:
    """Return the labels of each booster: class numbers, or a column of ``y``."""
    return [y.argmax(axis=1)] if exclusive else list(y.T)


def _import_xgboost() -> ModuleType:
    try:
        import xgboost  # takes a second
    except ImportError as exc:
        raise ValueError("the head xgboost needs the package xgboost: pip install xgboost") from exc
    return xgboost
