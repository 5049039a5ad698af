"""Extraction: plan what is missing of a store, do it, close it; or say what that would be."""

import math
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from dinocache.cost import gflop
from dinocache.decoding import UnitWork
from dinocache.engine import close_segment
from dinocache.errors import RecipeMismatchError, TableError
from dinocache.items import same_labels
from dinocache.job import NO_WEIGHTS, Job, made_by
from dinocache.layout import ITEM_PREFIX, NATIVE_KINDS, array_layout, is_vector_kind
from dinocache.manifest import find_dataset
from dinocache.plan import make_segment
from dinocache.progress import Progress, QuietProgress, human_bytes
from dinocache.request import ExtractRequest
from dinocache.store import FailedItem, FeatureStore
from dinocache.writer import StoreWriter

__all__ = ["Forecast", "Outcome", "dry_run", "extract", "relabel"]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What an extraction came to.

    Attributes:
        path: The store.
        complete: Whether all is committed.
        rows: Rows done in this run.
        units: Units done in this run.
        seconds: That this took.
        failures: Items without features, from any run.
        weights: Their name.
        random_weights: Whether they were drawn, not trained.
    """

    path: Path
    complete: bool
    rows: int
    units: int
    seconds: float
    failures: tuple[FailedItem, ...]
    weights: str
    random_weights: bool


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What an extraction would do.

    Attributes:
        path: The store.
        items: Items in the table.
        rows: Rows in all.
        units: Units in all.
        units_missing: Units that are not done for every kind.
        n_bytes: Kind -> bytes of its array when done; images and masks are not counted.
        free_bytes: On the disk of the store's root.
        gflop: 1e9 operations of one row; None where it is not known.
        batch: Rows that pass through the encoder together.
        suggested_batch: A better one for the device at hand; None if that is as good.
        unreadable: Items that cannot be opened -> why; they count as one row, and will fail.
    """

    path: Path
    items: int
    rows: int
    units: int
    units_missing: int
    n_bytes: dict[str, int]
    free_bytes: int
    gflop: float | None
    batch: int
    suggested_batch: int | None
    unreadable: dict[str, str]


def extract(request: ExtractRequest, progress: Progress | None = None) -> Outcome:
    """Do what is missing of a store.

    Args:
        request: What is asked.
        progress: Told how far it is.

    Returns:
        What it came to.

    Raises:
        RequestError: If the request cannot be met as it stands.
        TableError: If the table or the manifest is not as it must be.
        WeightsError: If the weights cannot be had or do not fit.
        RecipeMismatchError: If the store there was made otherwise.
        StoreDamagedError: If the store's files are not as they were written.
        StoreWriteError: If the disk refuses.
    """
    progress = progress or QuietProgress()
    began = time.monotonic()
    job = Job(request, progress)
    writer = StoreWriter(job.settle())
    _plan(writer, job)
    work = list(_unit_work(writer.store, job.features))
    closing = bool(writer.store.missing(job.features))
    if work or closing:
        writer.prepare(job.features)
    if work:
        _warn_of_space(writer, work, progress)
        job.run(writer, work)
    if closing:
        _close(writer, job.features)
    complete = writer.seal()
    return Outcome(
        path=job.path,
        complete=complete,
        rows=sum(w.unit.n_rows for w in work),
        units=len(work),
        seconds=time.monotonic() - began,
        failures=tuple(writer.store.failures()),
        weights=writer.store.header.recipe.encoder.weights.name,
        random_weights=writer.store.header.recipe.encoder.weights.is_random,
    )


def dry_run(request: ExtractRequest) -> Forecast:
    """Say what an extraction would do; nothing is written, no weights are needed.

    Args:
        request: What is asked.

    Returns:
        The forecast.

    Raises:
        RequestError: If the request cannot be met as it stands.
        TableError: If the table or the manifest is not as it must be.
    """
    job = Job(request, QuietProgress())
    store = job.store
    if store:
        job.check_options(store, store.header.recipe.encoder.weights)
    planned = {i for s in store.segments for i in s.item_ids} if store else set()
    unplanned = [str(i) for i in job.dataset.table["item_id"] if str(i) not in planned]
    fresh = list(job.count_rows(unplanned).items())
    grid = store.header.grid if store else job.new_grid()
    segments = list(store.segments) if store else []
    missing = {w.unit for w in store.missing(job.features)} if store else set()
    if fresh:
        last = segments[-1] if segments else None
        segments.append(make_segment(fresh, grid, recipe="", after=last))
        missing |= {u.name for u in segments[-1].units}
    rows = segments[-1].row_stop if segments else 0
    recipe = store.header.recipe if store else job.recipe_of(NO_WEIGHTS, "bfloat16")
    sizes = {}
    for kind in (k for k in job.features if k not in NATIVE_KINDS):
        layout = array_layout(kind, recipe, grid)
        sizes[kind] = np.dtype(layout.dtype).itemsize * rows * math.prod(layout.tail)
    units = {u.name for s in segments for u in s.units}
    return Forecast(
        path=job.path,
        items=len(job.dataset.table),
        rows=sum(sum(s.item_rows) for s in segments),
        units=len(units),
        units_missing=len(missing & units),
        n_bytes=sizes,
        free_bytes=shutil.disk_usage(_existing_parent(job.path)).free,
        gflop=gflop(job.spec, job.resolution),
        batch=grid.batch,
        suggested_batch=None if store else job.better_batch(grid),
        unreadable=job.unreadable,
    )


def relabel(path: Path, table_path: Path, data: Path | None = None) -> FeatureStore:
    """Give a store's items other targets, groups or splits; no feature changes.

    Args:
        path: The store.
        table_path: A table that lists the same items.
        data: The folder its paths are relative to; by default its own.

    Returns:
        The store with the new table in force.

    Raises:
        RecipeMismatchError: If it lists other items, or other files for them.
        TableError: If it is not a table of items.
    """
    store = FeatureStore(path)
    dataset = find_dataset(str(table_path), data=data)
    ours, theirs = (t.set_index("item_id")["path"] for t in (store.items, dataset.table))
    if not ours.sort_index().equals(theirs.sort_index()):
        common = ours.index.intersection(theirs.index)
        raise RecipeMismatchError(
            f"{table_path.name} lists {len(theirs)} items, the store {len(ours)}, of which "
            f"{len(common)} have the same item_id; relabel wants the same items with the same "
            "paths"
        )
    writer = StoreWriter(store)
    if not same_labels(store.items, dataset.table):
        # The plan's order stays: vectors are joined by item_id, but people compare files.
        writer.put_items(
            dataset.table.set_index("item_id").loc[store.items["item_id"]].reset_index()
        )
        writer.seal()
    return writer.store


def _plan(writer: StoreWriter, job: Job) -> None:
    """See that the item table is stored and that every item is in a segment."""
    store, table = writer.store, job.dataset.table
    known = set(store.items["item_id"])
    if not known.issuperset(table["item_id"]):
        fresh = table[~table["item_id"].isin(known)]
        writer.put_items(table if not known else pd.concat([store.items, fresh], ignore_index=True))
    listed = set(table["item_id"])
    while unplanned := writer.store.unplanned():
        if lost := [i for i in unplanned if i not in listed]:
            raise TableError(
                f"{job.path}: item {lost[0]!r} was appended but is not extracted yet, and this "
                "table does not list it; run the command that appended it again first"
            )
        _add(writer, list(job.count_rows(unplanned).items()))
    if job.request.retry_failed:
        # Those that a segment holds which is still to be done are being retried already.
        pending = {
            i
            for w in writer.store.missing(job.features)
            for i in w.segment.item_ids
            if w.segment.number == writer.store.segments[-1].number > 1
        }
        failed = [f.item_id for f in writer.store.failures() if f.item_id not in pending]
        again = [item_id for item_id in failed if item_id in listed]
        if again:
            _add(writer, list(job.count_rows(again).items()))


def _add(writer: StoreWriter, items: Sequence[tuple[str, int]]) -> None:
    store = writer.store
    last = store.segments[-1] if store.segments else None
    header = store.header
    writer.add_segment(make_segment(items, header.grid, recipe=header.digest, after=last))


def _unit_work(store: FeatureStore, features: Sequence[str]) -> Iterator[UnitWork]:
    for segment in store.segments:
        for unit in segment.units:
            kinds = tuple(k for k in features if not store.is_committed(unit.name, k))
            if kinds:
                yield UnitWork(segment=segment, unit=unit, kinds=kinds)


def _close(writer: StoreWriter, features: Sequence[str]) -> None:
    for segment in writer.store.segments:
        for kind in (k for k in features if is_vector_kind(k)):
            if not writer.store.is_committed(segment.closing_name, f"{ITEM_PREFIX}{kind}"):
                close_segment(writer, segment, kind, made_by(writer.store.header.execution.device))


def _warn_of_space(writer: StoreWriter, work: Sequence[UnitWork], progress: Progress) -> None:
    needed = 0
    for unit_work in work:
        for kind in (k for k in unit_work.kinds if k not in NATIVE_KINDS):
            needed += 2 * unit_work.unit.n_rows * math.prod(writer.layout(kind).tail)
    free = shutil.disk_usage(writer.store.path).free
    if needed > free:
        progress.note(
            f"warning: about {human_bytes(needed)} are still to be written, {human_bytes(free)} "
            "are free on that disk; what is committed when it is full stays valid"
        )


def _existing_parent(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path
