"""Names of metrics: which there are, what kinds of task they suit, and how one is read.

A name is ``[AVERAGE_]BASE[@THRESHOLD]``, such as ``f1``, ``macro_recall`` or
``precision@youden_val``.
"""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, get_args

__all__ = [
    "THRESHOLD_RULES",
    "Kind",
    "Metric",
    "MetricName",
    "check_metrics",
    "known_metrics",
    "needed_thresholds",
    "parse_metric",
]

Kind = Literal["binary", "multiclass", "multilabel"]
Metric = str
Family = Literal["ranking", "counting", "calibration", "phases"]

THRESHOLD_RULES = ("youden_val", "f1_val")
"""Thresholds that are chosen by validation items, each output for itself."""

_ALL: tuple[Kind, ...] = get_args(Kind)
_AVERAGED = ("precision", "recall", "f1", "jaccard")
_PHASE_BASES = ("accuracy", "precision", "recall", "jaccard")


@dataclass(frozen=True, kw_only=True)
class MetricName:
    """A name that was read."""

    text: str
    """The name as it was given."""
    base: str
    """What is measured: the name without average and threshold."""
    average: str
    """How outputs are put together: the prefix without ``_``; empty if there is none."""
    family: Family
    """What it looks at: the order of scores, decisions, the scores as probabilities, or decisions
    along videos."""
    threshold: float | str | None
    """What follows ``@``: a number, or one of `THRESHOLD_RULES`; None if nothing does."""


@dataclass(frozen=True, kw_only=True)
class _Known:
    base: str
    average: str = ""
    family: Family = "counting"
    kinds: tuple[Kind, ...] = _ALL


def _table() -> dict[str, _Known]:
    two: tuple[Kind, ...] = ("binary", "multilabel")
    table = {base: _Known(base=base, family="ranking") for base in ("auc", "average_precision")}
    counted = ("accuracy", "balanced_accuracy", *_AVERAGED, "specificity", "kappa", "mcc")
    table |= {base: _Known(base=base) for base in counted}
    table["subset_accuracy"] = _Known(base="subset_accuracy", kinds=("multilabel",))
    calibrated = ("brier", "ece", "log_loss")
    table |= {base: _Known(base=base, family="calibration") for base in calibrated}
    for average in ("macro", "weighted", "micro"):
        for base in _AVERAGED:
            table[f"{average}_{base}"] = _Known(base=base, average=average)
    for base in ("precision", "recall", "f1"):
        table[f"twoclass_{base}"] = _Known(base=base, average="twoclass", kinds=two)
    for average in ("video", "relaxed"):
        for base in _PHASE_BASES:
            table[f"{average}_{base}"] = _Known(
                base=base, average=average, family="phases", kinds=("multiclass",)
            )
    return table


_KNOWN: Mapping[str, _Known] = MappingProxyType(_table())


def known_metrics(kind: Kind | None = None) -> tuple[Metric, ...]:
    """Return the names that there are, without thresholds.

    Args:
        kind: Only those for tasks of this kind; None for all.

    Returns:
        The names.
    """
    return tuple(name for name, known in _KNOWN.items() if kind is None or kind in known.kinds)


def parse_metric(name: Metric) -> MetricName:
    """Read a name.

    Args:
        name: One of `known_metrics`; what decides may end in ``@0.3`` or another number from 0 to
            1, or in ``@`` and one of `THRESHOLD_RULES`.

    Returns:
        Its parts.

    Raises:
        ValueError: If there is no such metric or threshold, or the metric has no threshold.
    """
    stem, at, threshold = name.partition("@")
    known = _KNOWN.get(stem)
    if known is None:
        raise ValueError(f"there is no metric {name!r}{_closest(stem)}; {_list(None)}")
    if at and known.family not in ("counting", "phases"):
        raise ValueError(f"metric {name!r}: {stem} looks at scores, not at decisions; drop the @")
    return MetricName(
        text=name,
        base=known.base,
        average=known.average,
        family=known.family,
        threshold=_read_threshold(name, threshold) if at else None,
    )


def check_metrics(names: Iterable[Metric], kind: Kind) -> tuple[MetricName, ...]:
    """Read names and see that they suit a task.

    Args:
        names: At least one; see `parse_metric`.
        kind: Of the task.

    Returns:
        What each name means, in the same order.

    Raises:
        ValueError: If a name cannot be read or is for tasks of another kind, or there is none.
    """
    parsed = tuple(parse_metric(name) for name in names)
    if not parsed:
        raise ValueError(f"name at least one metric; {_list(kind)}")
    for name in parsed:
        kinds = _KNOWN[name.text.partition("@")[0]].kinds
        if kind not in kinds:
            raise ValueError(
                f"metric {name.text!r} is for {' and '.join(kinds)} tasks, this one is {kind}; "
                f"{_list(kind)}"
            )
        if kind == "multiclass" and name.threshold is not None:
            raise ValueError(
                f"metric {name.text!r}: a multiclass task decides by the highest score, not by a "
                "threshold; drop the @"
            )
    return parsed


def needed_thresholds(names: Iterable[Metric]) -> tuple[str, ...]:
    """Return which of `THRESHOLD_RULES` some names ask for.

    Args:
        names: See `parse_metric`.

    Returns:
        The rules; none if no validation items are needed.

    Raises:
        ValueError: If a name cannot be read.
    """
    wanted = {parse_metric(name).threshold for name in names}
    return tuple(rule for rule in THRESHOLD_RULES if rule in wanted)


def _read_threshold(name: Metric, text: str) -> float | str:
    if text in THRESHOLD_RULES:
        return text
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1:
        raise ValueError(
            f"metric {name!r}: after @ stands a number from 0 to 1, or "
            f"{' or '.join(THRESHOLD_RULES)}; got {text!r}"
        )
    return number


def _closest(stem: str) -> str:
    close = difflib.get_close_matches(stem, _KNOWN, n=1)
    return f", did you mean {close[0]!r}?" if close else ""


def _list(kind: Kind | None) -> str:
    return f"known{f' for {kind} tasks' if kind else ''}: {', '.join(known_metrics(kind))}"
