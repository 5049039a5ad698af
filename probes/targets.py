"""From columns of an item table to what a head learns: a matrix of zeros and ones."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from dinocache.errors import ProbeError
from dinocache.items import is_reserved
from probes.metrics.classification import Kind

__all__ = ["Targets", "read_targets"]

_MOST_CLASSES = 200
_POSITIVE = ("1", "1.0", "true", "yes", "positive", "pos")


@dataclass(frozen=True, kw_only=True)
class Targets:
    """What the items are.

    Attributes:
        columns: Of the item table.
        kind: What the outputs are.
        classes: What each output stands for.
        y: (n_items, n_outputs) float32 of 0 and 1; for items with a missing target, undefined.
        known: (n_items,) bool: whether the item has its target.
        strata: (n_items,) str: what folds are stratified by.
    """

    columns: tuple[str, ...]
    kind: Kind
    classes: tuple[str, ...]
    y: npt.NDArray[np.float32]
    known: npt.NDArray[np.bool_]
    strata: npt.NDArray[np.str_]

    def of(self, rows: npt.NDArray[np.bool_]) -> "Targets":
        """Give the targets of some of the items: those where `rows` (n_items,) is True."""
        return replace(self, y=self.y[rows], known=self.known[rows], strata=self.strata[rows])


def read_targets(
    items: pd.DataFrame,
    columns: Sequence[str],
    *,
    positive: str | None,
    classes: Sequence[str] | None = None,
) -> Targets:
    """Read targets from the item table.

    One column with two values is binary, with more multiclass; several columns, each of 0 and 1,
    are multilabel.

    Args:
        items: The item table.
        columns: Names of target columns.
        positive: The value of a binary target that counts as positive; by default 1, true, yes or
            positive, else the last in order.
        classes: What the outputs stand for where a head was fitted already; the items may lack
            some, and can have no other.

    Returns:
        The targets.

    Raises:
        ProbeError: If a column is unknown or reserved, holds one value, or cannot be classes.
    """
    possible = [c for c in items.columns if not is_reserved(c)]
    for column in columns:
        if column not in possible:
            raise ProbeError(
                f"there is no target {column!r}; the store has: {', '.join(possible) or 'none'}. "
                "`dinocache relabel` adds more."
            )
    if len(columns) > 1:
        return _multilabel(items, tuple(columns), may_lack=classes is not None)
    values = items[columns[0]]
    known_items = values.notna().to_numpy()
    texts = values.map(_text)
    if classes is not None:
        return _as_fitted(columns[0], texts.to_numpy(np.str_), known_items, classes, positive)
    classes = sorted(set(texts[known_items]))
    if len(classes) < 2:
        only = repr(classes[0]) if classes else "no value"
        raise ProbeError(
            f"target {columns[0]!r} has one class ({only}); a probe needs at least two"
        )
    if len(classes) > _MOST_CLASSES or (
        pd.api.types.is_float_dtype(values) and len(classes) > 0.5 * known_items.sum()
    ):
        raise ProbeError(
            f"target {columns[0]!r} has {len(classes)} different values; it looks like a "
            "measurement, not classes. Make classes of it in the table, then `dinocache "
            "relabel`."
        )
    strata = texts.to_numpy(dtype=np.str_)
    if len(classes) == 2:
        chosen = _positive(classes, positive, columns[0])
        y = (strata == chosen).astype(np.float32)[:, None]
        outputs: tuple[str, ...] = (chosen,)
    elif positive is not None:
        raise ProbeError(f"--positive is for two classes; {columns[0]!r} has {len(classes)}")
    else:
        y = np.stack([strata == c for c in classes], axis=1).astype(np.float32)
        outputs = tuple(classes)
    return Targets(
        columns=tuple(columns),
        kind="binary" if len(classes) == 2 else "multiclass",
        classes=outputs,
        y=y,
        known=known_items,
        strata=strata,
    )


def _as_fitted(
    column: str,
    texts: npt.NDArray[np.str_],
    known: npt.NDArray[np.bool_],
    classes: Sequence[str],
    positive: str | None,
) -> Targets:
    """Read the values of one column as the outputs of a head that is there already."""
    binary = len(classes) == 1
    sought = [positive or classes[0]] if binary else list(classes)
    values = set(texts[known].tolist())
    if strange := sorted(values - set(sought)):
        if not binary:
            raise ProbeError(
                f"target {column!r} holds {strange[0]!r}, which the head does not know (it knows "
                f"{', '.join(classes)})"
            )
        if len(strange) > 1:
            raise ProbeError(
                f"target {column!r} holds {', '.join(sorted(values))}; the head tells "
                f"{sought[0]!r} from one other value"
            )
    if binary and sought[0] not in values:
        raise ProbeError(
            f"target {column!r} holds {', '.join(sorted(values)) or 'no value'}, and never "
            f"{sought[0]!r}, which the head was fitted to tell"
        )
    return Targets(
        columns=(column,),
        kind="binary" if binary else "multiclass",
        classes=tuple(classes),
        y=np.stack([texts == c for c in sought], axis=1).astype(np.float32),
        known=known,
        strata=texts,
    )


def _multilabel(
    items: pd.DataFrame, columns: tuple[str, ...], *, may_lack: bool = False
) -> Targets:
    table = items[list(columns)]
    known = table.notna().all(axis=1).to_numpy()
    y = np.zeros(table.shape, np.float32)
    for index, column in enumerate(columns):
        texts = table[column].map(_text)
        if strange := sorted(set(texts[known]) - {"0", "1"}):
            raise ProbeError(
                f"target {column!r} holds {strange[0]!r}; with several targets each is 0 or 1"
            )
        y[:, index] = texts.to_numpy() == "1"
        if len(set(texts[known])) < 2 and not may_lack:
            raise ProbeError(f"target {column!r} has one class; a probe needs at least two")
    # Folds keep the rarest label of each item even: strata of all combinations would be too thin.
    order = np.argsort(y[known].sum(0), kind="stable")
    rarest = np.where(y[:, order].any(1), order[y[:, order].argmax(1)], -1)
    names = np.array([*columns, "none"])
    return Targets(
        columns=columns,
        kind="multilabel",
        classes=columns,
        y=y,
        known=known,
        strata=names[rarest].astype(np.str_),
    )


def _positive(classes: Sequence[str], asked: str | None, column: str) -> str:
    if asked is not None:
        if asked not in classes:
            raise ProbeError(f"--positive {asked!r}: target {column!r} has {', '.join(classes)}")
        return asked
    return next((c for c in classes if c.lower() in _POSITIVE), classes[-1])


def _text(value: Any) -> str:  # noqa: ANN401 - a cell of a table
    if pd.isna(value):
        return ""
    if isinstance(value, bool | np.bool_):
        return str(int(value))
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return str(value)
