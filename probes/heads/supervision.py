"""What targets ask of a head: which loss, which weights, and which items choose."""

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from probes.heads.saved import check_training

__all__ = ["balancing_weights", "check_both_values", "check_validation", "is_exclusive"]


def is_exclusive(y: npt.NDArray[Any], loss: Literal["auto", "bce", "ce"]) -> bool:
    """Say whether the outputs are exclusive classes, under a softmax.

    Args:
        y: (n_items, n_outputs) training targets of 0 and 1.
        loss: "bce": no. "ce": yes. "auto": yes where there are two columns or more and each row
            has one 1.

    Raises:
        ValueError: If ``loss`` is "ce" and the classes are not exclusive.
    """
    ones = y.sum(axis=1)
    exclusive = y.shape[1] > 1 and bool((ones == 1).all())
    if loss == "ce" and not exclusive:
        raise ValueError(
            "loss=ce needs mutually exclusive classes: two or more columns, one 1 in each row; "
            f"got {y.shape[1]} column(s) and rows with {ones.min():g} to {ones.max():g} ones. "
            "Use loss=bce."
        )
    return exclusive and loss != "bce"


def check_both_values(y: npt.NDArray[Any]) -> None:
    """Refuse targets (n_items, n_outputs) with a column that is all 0 or all 1.

    Raises:
        ValueError: If there is one; the first is named.
    """
    one_valued = (y == y[0]).all(axis=0)
    if one_valued.any():
        column = int(np.argmax(one_valued))
        raise ValueError(
            f"each output needs training items with 0 and with 1, column {column} has only "
            f"{y[0, column]:g}; leave that output out"
        )


def check_validation(
    validation: tuple[Any, npt.NDArray[Any]] | None,
    *,
    dim: int,
    n_outputs: int,
    exclusive: bool,
    way_out: str,
) -> tuple[npt.NDArray[np.floating[Any]], npt.NDArray[Any]]:
    """Refuse validation items that cannot choose for the training items.

    Args:
        validation: What ``fit`` was given.
        dim: Width of the training features.
        n_outputs: Columns of the training targets.
        exclusive: Whether the outputs are exclusive classes.
        way_out: How to do without, for the message.

    Returns:
        Features (n_items, dim) and targets (n_items, n_outputs).

    Raises:
        ValueError: If there are none, or shapes, dtypes or values do not fit.
    """
    if validation is None:
        raise ValueError(
            f"validation items choose, got none; give fit validation=(x, y), or set {way_out}"
        )
    x, y = np.asarray(validation[0]), np.asarray(validation[1])
    try:
        check_training(x, y)
    except ValueError as exc:
        raise ValueError(f"validation: {exc}") from exc
    if (x.shape[1], y.shape[1]) != (dim, n_outputs):
        raise ValueError(
            f"validation items must be as those of training, {dim} features and {n_outputs} "
            f"outputs; got {x.shape[1]} and {y.shape[1]}"
        )
    if exclusive and (y.sum(axis=1) != 1).any():
        row = int(np.argmax(y.sum(axis=1) != 1))
        raise ValueError(
            f"classes are exclusive in training, but validation row {row} has "
            f"{y[row].sum():g} ones; leave that item out, or set loss=bce"
        )
    return x, y


def balancing_weights(
    y: npt.NDArray[Any], training: npt.NDArray[Any], *, exclusive: bool
) -> npt.NDArray[np.float64]:
    """Weigh items so that the classes of the training items weigh alike.

    An item of class c weighs n_items / (n_classes * n_items of c), counted in training: the
    weights of the training items have mean 1. It is what scikit-learn calls "balanced".

    Args:
        y: (n_items, n_outputs) targets to weigh.
        training: (n_train, n_outputs) targets that are counted, both values in each column.
        exclusive: Whether the columns are classes; otherwise 0 and 1 of each column are.

    Returns:
        (n_items, n_outputs); for exclusive classes (n_items, 1).
    """
    n_train = len(training)
    ones = training.sum(axis=0, dtype=np.float64)
    if exclusive:
        of_class = n_train / (y.shape[1] * ones)
        weights: npt.NDArray[np.float64] = of_class[y.argmax(axis=1), np.newaxis]
    else:
        weights = np.where(y == 1, n_train / (2 * ones), n_train / (2 * (n_train - ones)))
    return weights
