"""Metrics that count right and wrong decisions, for many weightings of the items at once."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt

from probes.metrics.names import Kind, MetricName
from probes.metrics.thresholds import Decision

__all__ = ["Counting"]

_Float = npt.NDArray[np.float64]
_Bool = npt.NDArray[np.bool_]
_Values = tuple[_Float, _Float | None]


class _Counts(NamedTuple):
    """Weights of the four cells of each column's table, each (n_replicates, n_columns)."""

    true_positive: _Float
    false_positive: _Float
    false_negative: _Float
    true_negative: _Float
    known: _Bool
    """(n_columns,) whether any item at all has the label."""
    known_without: _Bool
    """(n_columns,) whether any item at all lacks it."""

    @property
    def called(self) -> _Float:
        return self.true_positive + self.false_positive

    @property
    def present(self) -> _Float:
        return self.true_positive + self.false_negative

    @property
    def absent(self) -> _Float:
        return self.false_positive + self.true_negative

    @property
    def total(self) -> _Float:
        return self.present + self.absent

    def complement(self) -> Self:
        """Return the table of the label's absence."""
        tp, fp, fn, tn, known, without = self
        return type(self)(tn, fn, fp, tp, without, known)

    def both(self) -> Self:
        """Return the columns of the labels, then those of their absence."""
        pairs = zip(self, self.complement(), strict=True)
        return type(self)(*(np.concatenate(pair, axis=-1) for pair in pairs))

    def pooled(self) -> Self:
        """Return one column: all columns together."""
        cells = (cell.sum(axis=1, keepdims=True) for cell in self[:4])
        return type(self)(*cells, *(known.any(keepdims=True) for known in self[4:]))


class Counting:
    """Metrics that follow from one set of decisions.

    Where one divides by zero the value is 0. A replicate that drew no item of a class, though
    there are some, says nothing about it and is NaN there: not 0, as if all were missed.
    ``balanced_accuracy``, ``kappa`` and ``mcc`` compare two sides: a column whose items all have,
    or all lack, the label is NaN and the mean over columns leaves it out.

    Args:
        truth: (n_items, n_outputs).
        decision: Of the same items.
        kind: What the columns are.
        names: The metrics.

    References:
        Sokolova and Lapalme, Information Processing and Management 45 (2009) 427-437. Kappa:
        Cohen, Educational and Psychological Measurement 20 (1960) 37-46. MCC of several classes:
        Gorodkin, Computational Biology and Chemistry 28 (2004) 367-374. Averages: scikit-learn,
        ``precision_recall_fscore_support``.
    """

    def __init__(
        self, truth: _Bool, decision: Decision, kind: Kind, names: Sequence[MetricName]
    ) -> None:
        called = decision.labels
        cells = (truth & called, ~truth & called, truth & ~called, ~truth & ~called)
        exact = (truth == called).all(axis=1, keepdims=True)
        # One product gives all four cells: a zero is then exactly zero.
        self._indicators = np.concatenate([*cells, exact], axis=1, dtype=np.float64)
        self._known = np.asarray(truth.any(axis=0)), np.asarray(~truth.all(axis=0))
        self._undefined = decision.undefined
        self._kind: Kind = kind
        self._names = names

    def __call__(self, weights: _Float) -> dict[str, _Values]:
        """Return overall (n_replicates,) and columns (n_replicates, n_outputs) of each metric.

        Args:
            weights: (n_replicates, n_items).
        """
        sums = weights @ self._indicators
        tp, fp, fn, tn = np.split(sums[:, :-1], 4, axis=1)
        counts = _Counts(tp, fp, fn, tn, *self._known)
        values: dict[str, _Values] = {}
        for name in self._names:
            if name.base == "subset_accuracy":
                overall, columns = sums[:, -1] / counts.total[:, 0], None
            elif name.average in ("", "twoclass"):
                overall, columns = self._plain(name, counts)
            else:
                overall, columns = _averaged(name, counts, self._kind), None
            values[name.text] = self._where_decided(overall, columns)
        return values

    def _plain(self, name: MetricName, counts: _Counts) -> _Values:
        measure = _MEASURES[name.base]
        columns = measure(counts)
        if name.average == "twoclass":
            columns = (columns + measure(counts.complement())) / 2
        if self._kind == "multiclass" and name.base in _OF_CLASSES:
            overall = _OF_CLASSES[name.base](counts)
            return overall, columns if name.base in ("kappa", "mcc") else None
        if name.base in ("balanced_accuracy", "kappa", "mcc"):
            return _mean(columns[:, counts.known & counts.known_without]), columns
        return _mean(columns), columns

    def _where_decided(self, overall: _Float, columns: _Float | None) -> _Values:
        if not self._undefined.any():
            return overall, columns
        if columns is not None:
            columns = np.where(self._undefined, np.nan, columns)
        return np.full_like(overall, np.nan), columns


def _averaged(name: MetricName, counts: _Counts, kind: Kind) -> _Float:
    """Return (n_replicates,) of ``macro``, ``weighted`` or ``micro``."""
    measure = _MEASURES[name.base]
    if kind == "binary":
        counts = counts.both()
    if name.average == "micro":
        return measure(counts.pooled())[:, 0]
    columns = measure(counts)
    if name.average == "macro":
        return _mean(columns)
    present = counts.present
    total = present.sum(axis=1)
    # A class that a replicate lost weighs nothing there.
    sums = np.where(present > 0, present * columns, 0).sum(axis=1)
    return np.where((total == 0) & counts.known.any(), np.nan, _ratio(sums, total))


def _mean(columns: _Float) -> _Float:
    if columns.shape[1] == 0:
        return np.full(len(columns), np.nan)
    return np.asarray(columns.mean(axis=1))


def _ratio(numerator: _Float, denominator: _Float) -> _Float:
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)


# One value for each column, (n_replicates, n_columns)


def _unless_lost(counts: _Counts, values: _Float) -> _Float:
    return np.where((counts.present == 0) & counts.known, np.nan, values)


def _precision(counts: _Counts) -> _Float:
    return _unless_lost(counts, _ratio(counts.true_positive, counts.called))


def _recall(counts: _Counts) -> _Float:
    return _unless_lost(counts, _ratio(counts.true_positive, counts.present))


def _specificity(counts: _Counts) -> _Float:
    return _recall(counts.complement())


def _f1(counts: _Counts) -> _Float:
    values = _ratio(2 * counts.true_positive, counts.called + counts.present)
    return _unless_lost(counts, values)


def _jaccard(counts: _Counts) -> _Float:
    values = _ratio(counts.true_positive, counts.called + counts.false_negative)
    return _unless_lost(counts, values)


def _accuracy(counts: _Counts) -> _Float:
    return (counts.true_positive + counts.true_negative) / counts.total


def _unless_one_sided(counts: _Counts, values: _Float) -> _Float:
    return np.where((counts.present == 0) | (counts.absent == 0), np.nan, values)


def _balanced_accuracy(counts: _Counts) -> _Float:
    return _unless_one_sided(counts, (_recall(counts) + _specificity(counts)) / 2)


def _kappa(counts: _Counts) -> _Float:
    total, called, present = counts.total, counts.called, counts.present
    by_chance = (called * present + (total - called) * counts.absent) / total**2
    values = _ratio(_accuracy(counts) - by_chance, 1 - by_chance)
    return _unless_one_sided(counts, values)


def _mcc(counts: _Counts) -> _Float:
    tp, fp, fn, tn = counts[:4]
    spread = np.sqrt(counts.called * (fn + tn)) * np.sqrt(counts.present * counts.absent)
    return _unless_one_sided(counts, _ratio(tp * tn - fp * fn, spread))


_MEASURES: Mapping[str, Callable[[_Counts], _Float]] = MappingProxyType(
    {
        "accuracy": _accuracy,
        "balanced_accuracy": _balanced_accuracy,
        "f1": _f1,
        "jaccard": _jaccard,
        "kappa": _kappa,
        "mcc": _mcc,
        "precision": _precision,
        "recall": _recall,
        "specificity": _specificity,
    }
)


# One value for exclusive classes, (n_replicates,)


def _class_accuracy(counts: _Counts) -> _Float:
    right: _Float = counts.true_positive.sum(axis=1)
    return right / counts.total[:, 0]


def _class_balanced_accuracy(counts: _Counts) -> _Float:
    return _unless_one_class(counts, _mean(_recall(counts)[:, counts.known]))


def _class_kappa(counts: _Counts) -> _Float:
    by_chance = (counts.called * counts.present).sum(axis=1) / counts.total[:, 0] ** 2
    values = _ratio(_class_accuracy(counts) - by_chance, 1 - by_chance)
    return _unless_one_class(counts, values)


def _class_mcc(counts: _Counts) -> _Float:
    total, called, present = counts.total[:, 0], counts.called, counts.present
    right = counts.true_positive.sum(axis=1)
    together = right * total - (called * present).sum(axis=1)
    of_called = total**2 - (called**2).sum(axis=1)
    of_present = total**2 - (present**2).sum(axis=1)
    # Decisions for one class alone: rounding must not make their spread more than 0.
    one = (called > 0).sum(axis=1) == 1
    spread = np.where(one, 0, np.sqrt(np.maximum(of_called, 0) * np.maximum(of_present, 0)))
    return _unless_one_class(counts, _ratio(together, spread))


def _unless_one_class(counts: _Counts, values: _Float) -> _Float:
    return np.where((counts.present > 0).sum(axis=1) == 1, np.nan, values)


_OF_CLASSES: Mapping[str, Callable[[_Counts], _Float]] = MappingProxyType(
    {
        "accuracy": _class_accuracy,
        "balanced_accuracy": _class_balanced_accuracy,
        "kappa": _class_kappa,
        "mcc": _class_mcc,
    }
)
