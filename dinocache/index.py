"""A download held against its manifest: what is there, what is missing, who is on which side."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from dinocache.dataset import Dataset, find_dataset
from dinocache.errors import ItemError
from dinocache.items import channel_columns, mask_columns
from dinocache.manifest import Task, split_column
from dinocache.progress import Progress
from dinocache.query import first_like
from dinocache.readers import guess_reader, make_reader
from dinocache.source import Source
from dinocache.splits import check_no_leaks, digest_of, side_of, split_columns

__all__ = ["Index", "SplitFacts", "index_dataset"]

_OPENERS = 16
_TOLD_EVERY = 10_000


@dataclass(frozen=True, kw_only=True)
class SplitFacts:
    """Who is where.

    Attributes:
        items: Side, or number of a fold -> items.
        groups: The same of groups.
        outside: Items that are on no side.
        digest: sha256 of it, see `dinocache.splits.digest_of`.
    """

    items: dict[str, int]
    groups: dict[str, int]
    outside: int
    digest: str


@dataclass(frozen=True, kw_only=True)
class Index:
    """What a download has.

    Attributes:
        dataset: The items.
        splits: Column -> who is where.
        targets: Task -> target -> value -> side -> items; "" is the side where there is no split.
        unlisted: Name of a manifest's `files` -> those that belong to no item.
        unreadable: Item id -> why its header cannot be read, of those that were opened.
    """

    dataset: Dataset
    splits: dict[str, SplitFacts]
    targets: dict[str, dict[str, dict[str, dict[str, int]]]]
    unlisted: dict[str, list[str]]
    unreadable: dict[str, str] = field(default_factory=dict)

    @property
    def is_whole(self) -> bool:
        """Whether everything is as the official release has it, and can be read."""
        return not self.dataset.notes and not self.unreadable

    def to_json(self) -> dict[str, Any]:
        """Give all of it as JSON."""
        dataset = self.dataset
        return {
            "name": dataset.name,
            "data": str(dataset.data),
            "items": len(dataset.table),
            "groups": int(dataset.table["group"].nunique()),
            "columns": list(dataset.table.columns),
            "missing": list(dataset.missing),
            "differs": list(dataset.notes),
            "unlisted": self.unlisted,
            "unreadable": self.unreadable,
            "splits": {column: vars(facts) for column, facts in self.splits.items()},
            "targets": self.targets,
            "whole": self.is_whole,
        }


def index_dataset(
    dataset: str, *, data: Path | None, opened: bool, progress: Progress, name: str | None = None
) -> Index:
    """Hold a download against its manifest, or look through a table.

    Args:
        dataset: As for `find_dataset`.
        data: Likewise.
        opened: Whether every item's header is to be read.
        progress: Told of how far that is.
        name: As for `find_dataset`.

    Returns:
        What was found; nothing is refused but what makes no item table.

    Raises:
        RequestError: As for `find_dataset`.
        TableError: Likewise; also where a group is on two sides of a table's own split.
    """
    found = find_dataset(dataset, data=data, name=name, allow_missing=True)
    table = found.table
    if found.manifest is None:
        check_no_leaks(table, found.name)
    tasks = found.manifest.tasks if found.manifest else {}
    return Index(
        dataset=found,
        splits={column: _split_facts(table, column) for column in split_columns(table)},
        targets={key: _counted(table, task) for key, task in tasks.items() if task.targets},
        unlisted=_unlisted(found),
        unreadable=_unreadable(found, progress) if opened else {},
    )


def _split_facts(table: pd.DataFrame, column: str) -> SplitFacts:
    sides = table[column].dropna().map(side_of)
    groups = table["group"][sides.index].groupby(sides).nunique()
    return SplitFacts(
        items={str(side): int(n) for side, n in sides.value_counts().sort_index().items()},
        groups={str(side): int(n) for side, n in groups.items()},
        outside=len(table) - len(sides),
        digest=digest_of(table, column),
    )


def _counted(table: pd.DataFrame, task: Task) -> dict[str, dict[str, dict[str, int]]]:
    column = split_column(task.split)
    sides = table[column].map(side_of, na_action="ignore") if column in table else None
    counted: dict[str, dict[str, dict[str, int]]] = {}
    for target in task.targets:
        of_rows = pd.DataFrame({"value": table[target], "side": "" if sides is None else sides})
        if task.of == "row":
            of_rows = of_rows.explode("value")
        values: dict[str, dict[str, int]] = {}
        counts = of_rows.astype(str).groupby(["value", "side"]).size().reset_index(name="n")
        for value, side, n in counts.itertuples(index=False):
            values.setdefault(value, {})[side] = int(n)
        counted[target] = values
    return counted


def _unlisted(found: Dataset) -> dict[str, list[str]]:
    """Name the files that the manifest's patterns find and its query does not use."""
    if found.manifest is None:
        return {}
    table = found.table
    columns = ["path", "crop_mask", *mask_columns(table), *channel_columns(table).values()]
    used = {p for c in columns if c in table for p in table[c].dropna().tolist()}
    listed = {
        name: [path for path in first_like(found.data, patterns) if path not in used]
        for name, patterns in found.manifest.files.items()
    }
    return {name: paths for name, paths in listed.items() if paths}


def _unreadable(found: Dataset, progress: Progress) -> dict[str, str]:
    """Open every item, in threads; nothing is decoded."""
    table, defaults = found.table, found.extract
    columns = list(channel_columns(table).values()) or ["path"]
    paths = pd.concat([table[column] for column in columns]).tolist()
    guessed = guess_reader(f"{found.data}/{path}" for path in paths)
    reader = guessed if defaults.reader == "auto" else defaults.reader
    source = Source.of_table(table, found.data, make_reader(reader, defaults.options))
    ids = [str(i) for i in table["item_id"].tolist()]

    def reason(item_id: str) -> str | None:
        try:
            source.open(item_id).close()
        except ItemError as exc:
            return str(exc)
        return None

    reasons: dict[str, str] = {}
    with ThreadPoolExecutor(_OPENERS, thread_name_prefix="open") as pool:
        for done, (item_id, why) in enumerate(
            zip(ids, pool.map(reason, ids, chunksize=1), strict=True), 1
        ):
            if why is not None:
                reasons[item_id] = why
            if done % _TOLD_EVERY == 0:
                progress.note(f"{done} of {len(ids)} headers read")
    return reasons
