"""What the paper prints of a task, and where it contradicts itself."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from dinocache.manifest import find_task, load_published, shipped_manifests

__all__ = ["PublishedTask", "published_tasks"]

_APART = ("adaptation", "modality", "trained_on", "aggregate")
"""What tells rows of one method apart; said where a task's rows differ in it."""


@dataclass(frozen=True, kw_only=True)
class PublishedTask:
    """Rows of the paper's tables that a task answers to.

    Attributes:
        name: DATASET/TASK.
        tables: Their numbers.
        metrics: Name, with its unit if that is no fraction.
        rows: (method, metric -> value as printed; "" where there is none).
        notes: Where the paper contradicts itself, of these tables and this dataset.
        differs: What the task says of how it differs from the paper.
    """

    name: str
    tables: tuple[int, ...]
    metrics: tuple[str, ...]
    rows: tuple[tuple[str, dict[str, str]], ...]
    notes: tuple[str, ...]
    differs: tuple[str, ...]


def published_tasks(names: Iterable[str | None]) -> list[PublishedTask]:
    """Find what the paper prints of tasks.

    Args:
        names: DATASET/TASK, or None; those that are no shipped task are passed over.

    Returns:
        One for each that the paper has figures of, in order.
    """
    shipped = shipped_manifests()
    known = [n for n in dict.fromkeys(names) if n and n.partition("/")[0] in shipped]
    if not known:
        return []
    published = load_published()
    found = (_published(name, published) for name in known)
    return [task for task in found if task.rows]


def _published(name: str, published: dict[str, Any]) -> PublishedTask:
    manifest, key, task = find_task(name)
    places = {(answer.table, answer.dataset) for answer in task.paper}
    rows = [
        row
        for row in published["rows"]
        if any(
            (row["table"], row["dataset"]) == (answer.table, answer.dataset)
            and all(row.get(field) == value for field, value in answer.where.items())
            for answer in task.paper
        )
    ]
    apart = [field for field in _APART if len({row.get(field) for row in rows}) > 1]
    by_method: dict[str, dict[str, str]] = {}
    for row in rows:
        said = [str(row[field]).replace("_", " ") for field in apart if row.get(field)]
        method = row["method"] + (f" ({', '.join(said)})" if said else "")
        by_method.setdefault(method, {})[_metric(row)] = _value(row)
    notes = [
        f"{note['where']}: {note['text']}"
        for note in published["inconsistencies"]
        if any(
            table in note["tables"] and dataset in (note["datasets"] or [dataset])
            for table, dataset in places
        )
    ]
    return PublishedTask(
        name=f"{manifest.name}/{key}",
        tables=tuple(sorted({table for table, _ in places})),
        metrics=tuple(dict.fromkeys(_metric(row) for row in rows)),
        rows=tuple(by_method.items()),
        notes=tuple(notes),
        differs=tuple(" ".join(note.split()) for note in task.notes),
    )


def _metric(row: dict[str, Any]) -> str:
    return str(row["metric"]) + ("" if row["unit"] == "fraction" else f" ({row['unit']})")


def _value(row: dict[str, Any]) -> str:
    if row["value"] is None:
        return ""
    deviation = row.get("std")
    return f"{row['value']}" + (f" ± {deviation}" if deviation is not None else "")
