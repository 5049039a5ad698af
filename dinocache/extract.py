"""Extraction: plan what is missing of a store, do it, close it."""

import itertools
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from dinocache.calibrating import calibrate, kinds_to_fit
from dinocache.changes import changed_sources
from dinocache.closing import close_segment
from dinocache.dataset import find_dataset
from dinocache.decoding import UnitWork
from dinocache.errors import RecipeMismatchError, StoppedError, TableError
from dinocache.items import same_labels
from dinocache.job import Job, Supervision, made_by
from dinocache.layout import ITEM_PREFIX, NATIVE_KINDS, is_vector_kind
from dinocache.places import Where
from dinocache.plan import make_segment
from dinocache.progress import Progress, QuietProgress, human_bytes
from dinocache.request import ExtractRequest
from dinocache.store import FailedItem, FeatureStore
from dinocache.writer import StoreWriter

__all__ = [
    "Outcome",
    "conclude",
    "extract",
    "outcome_of",
    "prepare",
    "relabel",
    "unit_work",
]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What an extraction came to.

    Attributes:
        store: Where it lies: a path or a URL.
        complete: Whether all is committed.
        rows: Rows done in this run.
        units: Units done in this run.
        seconds: That this took.
        failures: Items without features, from any run.
        weights: Their name.
        random_weights: Whether they were drawn, not trained.
        units_left: Units that are still to be done, of this part or another.
        busy: Stage -> the fraction of the time that its threads worked.
    """

    store: str
    complete: bool
    rows: int
    units: int
    seconds: float
    failures: tuple[FailedItem, ...]
    weights: str
    random_weights: bool
    units_left: int
    busy: dict[str, float]

    @property
    def path(self) -> Path:
        """The store's folder, where it is one of this machine."""
        return Path(self.store)


def extract(
    request: ExtractRequest,
    progress: Progress | None = None,
    supervision: Supervision | None = None,
) -> Outcome:
    """Do what is missing of a store, in this process.

    Args:
        request: What is asked.
        progress: Told how far it is.
        supervision: What whoever watches it knows, and wants to know.

    Returns:
        What it came to.

    Raises:
        RequestError: If the request cannot be met as it stands.
        TableError: If the table or the manifest is not as it must be.
        WeightsError: If the weights cannot be had or do not fit.
        RecipeMismatchError: If the store there was made otherwise.
        StoreDamagedError: If the store's files are not as they were written.
        StoreWriteError: If the disk refuses.
        StoppedError: If it was asked to stop.
        TooManyFailuresError: If more items failed than may.
    """
    job = Job(request, progress or QuietProgress(), supervision or Supervision())
    with closing(job):
        return _extracted(job)


def _extracted(job: Job) -> Outcome:
    began = time.monotonic()
    writer, work = prepare(job)
    try:
        busy = job.run(writer, work) if work else {}
    except StoppedError as exc:
        units = {u.name for s in writer.store.segments for u in s.units}
        left = {w.unit for w in writer.store.missing(job.features)} & units
        raise StoppedError(
            f"stopped: {len(units) - len(left)} of {len(units)} units are committed; run the same "
            "command again to go on"
        ) from exc
    conclude(writer, job)
    return outcome_of(writer, work, seconds=time.monotonic() - began, busy=busy)


def prepare(job: Job) -> tuple[StoreWriter, list[UnitWork]]:
    """Settle a store, plan all items, and say what is to be done.

    Args:
        job: What is asked.

    Returns:
        (of the store, units of this part that lack a kind).

    Raises:
        DinocacheError: As for `extract`.
    """
    writer = StoreWriter(job.settle())
    _plan(writer, job)
    work = list(unit_work(writer.store, job.features, job.request.part))
    if to_fit := kinds_to_fit(writer, job.features):
        engine = job.engine(writer, workers=job.workers)
        calibrate(writer, engine, to_fit, job.progress, like=job.calibrated)
    if writer.store.missing(job.features):
        writer.prepare(job.features)
    if work:
        _warn_of_space(writer, work, job.progress)
    return writer, work


def conclude(writer: StoreWriter, job: Job) -> None:
    """Close the segments of which every unit is done, and seal the store if that is all.

    Args:
        writer: Of the store.
        job: What was asked.

    Raises:
        StoreDamagedError: If a committed file is not as it was written.
        StoreWriteError: If the disk refuses.
    """
    writer.reload()
    _close(writer, job.features)
    writer.seal()


def outcome_of(
    writer: StoreWriter, work: Sequence[UnitWork], *, seconds: float, busy: dict[str, float]
) -> Outcome:
    """Say what an extraction came to.

    Args:
        writer: Of the store, which it has looked at again.
        work: What was done.
        seconds: That this took.
        busy: Stage -> fraction.

    Returns:
        The outcome.
    """
    store = writer.store
    weights = store.header.recipe.encoder.weights
    return Outcome(
        store=str(store.folder),
        complete=store.is_complete,
        rows=sum(w.unit.n_rows for w in work),
        units=len(work),
        seconds=seconds,
        failures=tuple(store.failures()),
        weights=weights.name,
        random_weights=weights.is_random,
        units_left=len({w.unit for w in store.missing() if w.unit != w.segment.closing_name}),
        busy=busy,
    )


def relabel(where: Where, table_path: Path, data: Path | None = None) -> FeatureStore:
    """Give a store's items other targets, groups or splits; no feature changes.

    Args:
        where: The store: a path or a URL.
        table_path: A table that lists the same items.
        data: The folder its paths are relative to; by default its own.

    Returns:
        The store with the new table in force.

    Raises:
        RecipeMismatchError: If it lists other items, or other files for them.
        TableError: If it is not a table of items.
    """
    store = FeatureStore(where)
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
    planned = {i: None for segment in store.segments for i in segment.item_ids}
    known, listed = (set(t["item_id"].tolist()) for t in (store.items, table))
    if not known >= listed:
        fresh = table[~table["item_id"].isin(known)]
        writer.put_items(table if not known else pd.concat([store.items, fresh], ignore_index=True))
    while unplanned := writer.store.unplanned():
        if lost := [i for i in unplanned if i not in listed]:
            raise TableError(
                f"{job.folder}: item {lost[0]!r} was appended but is not extracted yet, and this "
                "table does not list it; run the command that appended it again first"
            )
        _add(writer, job, job.count_rows(unplanned))
    again = _to_do_again(writer.store, job, [i for i in planned if i in listed])
    if again:
        _add(writer, job, job.count_rows(again, remembered=False))


def _to_do_again(store: FeatureStore, job: Job, planned: Sequence[str]) -> list[str]:
    """Name items to extract anew, as was asked; say which sources are no longer what they were."""
    changes = changed_sources(
        store, job.source, planned, workers=job.workers, progress=job.progress
    )
    if changes.changed:
        item_id, how = next(iter(changes.changed.items()))
        way_out = "" if job.request.retry_changed else "; --retry-changed extracts them anew"
        job.progress.note(
            f"note: the files of {len(changes.changed)} items have changed since they were "
            f"planned, as {item_id} ({how}){way_out}"
        )
    failed = {f.item_id for f in store.failures()} if changes.missing else set()
    if gone := [item_id for item_id in changes.missing if item_id not in failed]:
        job.progress.note(
            f"note: the files of {len(gone)} items are gone, as {gone[0]}; what was extracted of "
            "them stays"
        )
    again = set(changes.changed) if job.request.retry_changed else set()
    if job.request.retry_failed:
        again.update(f.item_id for f in store.failures())
    # Those that a segment holds which is still to be done are being done again already.
    last = store.segments[-1] if len(store.segments) > 1 else None
    if last and any(w.segment is last for w in store.missing(job.features)):
        again.difference_update(last.item_ids)
    return [item_id for item_id in planned if item_id in again]


def _add(writer: StoreWriter, job: Job, rows: Mapping[str, int]) -> None:
    store = writer.store
    segment = make_segment(
        list(rows.items()),
        store.header.grid,
        recipe=store.header.digest,
        after=store.segments[-1] if store.segments else None,
        stamps=job.stamps(rows),
    )
    writer.add_segment(segment)


def unit_work(
    store: FeatureStore, features: Sequence[str], part: tuple[int, int] | None = None
) -> Iterator[UnitWork]:
    """List the units that lack a kind.

    Args:
        store: The store.
        features: Kinds that are wanted.
        part: (number from 1, shares): every so manieth unit of the plan only, whatever is done.

    Yields:
        What is missing, in order of rows.
    """
    number, shares = part or (1, 1)
    units = ((segment, unit) for segment in store.segments for unit in segment.units)
    for segment, unit in itertools.islice(units, number - 1, None, shares):
        kinds = tuple(k for k in features if not store.is_committed(unit.name, k))
        if kinds:
            yield UnitWork(segment=segment, unit=unit, kinds=kinds)


def _close(writer: StoreWriter, features: Sequence[str]) -> None:
    made = made_by(writer.store.header.execution.device)
    for segment in writer.store.segments:
        for kind in (k for k in features if is_vector_kind(k)):
            closed = writer.store.is_committed(segment.closing_name, f"{ITEM_PREFIX}{kind}")
            if not closed and all(writer.store.is_committed(u.name, kind) for u in segment.units):
                close_segment(writer, segment, kind, made)


def _warn_of_space(writer: StoreWriter, work: Sequence[UnitWork], progress: Progress) -> None:
    needed = 0
    for unit_work in work:
        for kind in (k for k in unit_work.kinds if k not in NATIVE_KINDS):
            needed += unit_work.unit.n_rows * writer.layout(kind).row_bytes
    path = writer.folder.path
    free = None if path is None else shutil.disk_usage(path).free
    if free is not None and needed > free:
        progress.note(
            f"warning: about {human_bytes(needed)} are still to be written, {human_bytes(free)} "
            "are free on that disk; what is committed when it is full stays valid"
        )
