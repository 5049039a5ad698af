"""What Dask workers do for a cluster: settle and plan a store, do its units, close it.

A worker loads the encoder once and keeps it. `dinocache.cluster` hands these functions out; they
are found by their names, so that nothing but names and plain values travels.
"""

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from pydantic import TypeAdapter

from dinocache import supervise
from dinocache.decoding import UnitWork
from dinocache.extract import Outcome, conclude, outcome_of, prepare
from dinocache.job import Job, Supervision
from dinocache.layout import record_name
from dinocache.pace import usable_cores
from dinocache.plan import Segment, Unit
from dinocache.progress import QuietProgress
from dinocache.request import ExtractRequest
from dinocache.terminal import quiet_libraries
from dinocache.writer import StoreWriter

__all__ = [
    "Done",
    "Plain",
    "Plan",
    "conclude_store",
    "do_unit",
    "find_killers",
    "prepare_store",
    "request_of",
]

Plain = Mapping[str, Any]
"""A request as JSON has it, and the id of the run that it is for."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What `prepare_store` finds."""

    units: dict[str, tuple[int, list[str]]]
    """Name -> (rows, item ids), of those to be done."""
    total_rows: int
    done_rows: int
    notes: list[str]


@dataclass(frozen=True, kw_only=True)
class Done:
    """What `do_unit` comes to."""

    rows: int
    n_bytes: int
    busy_s: dict[str, float]
    """Seconds of one slot."""
    failed: list[str]
    notes: list[str]


def request_of(plain: Plain) -> ExtractRequest:
    """Read a request back."""
    return TypeAdapter(ExtractRequest).validate_python(plain["request"])


@dataclass
class _Held:
    """What a worker keeps between units."""

    job: Job
    notes: QuietProgress
    turn: threading.Lock = field(default_factory=threading.Lock)
    units: dict[str, tuple[Segment, Unit]] = field(default_factory=dict)

    @cached_property
    def writer(self) -> StoreWriter:
        """Of the store, which is settled at the first look."""
        return StoreWriter(self.job.settle())

    def look(self) -> None:
        """See which units the plan has now."""
        self.writer.reload()
        self.units = {
            unit.name: (segment, unit)
            for segment in self.writer.store.segments
            for unit in segment.units
        }


_held: dict[str, _Held] = {}
_holding = threading.Lock()


def _hold(plain: Plain, threads: int | None = None) -> _Held:
    import torch

    key = json.dumps(plain, sort_keys=True)
    with _holding:
        if key not in _held:
            for held in _held.values():
                held.job.close()
            _held.clear()  # one encoder at a time
            quiet_libraries()
            torch.set_num_threads(threads or usable_cores())
            notes = QuietProgress()
            _held[key] = _Held(job=Job(request_of(plain), notes), notes=notes)
        return _held[key]


def prepare_store(plain: Plain, threads: int | None) -> Plan:
    """Settle a store, and plan what is to be done.

    Args:
        plain: What is asked.
        threads: Of torch in each worker, for a new store; None takes the worker's cores.

    Returns:
        The plan.
    """
    held = _hold(plain, threads)
    held.writer, work = prepare(held.job)
    store = held.writer.store
    total = sum(u.n_rows for s in store.segments for u in s.units)
    units = {
        w.unit.name: (
            w.unit.n_rows,
            list(w.segment.item_ids[w.unit.first_item : w.unit.first_item + w.unit.n_items]),
        )
        for w in work
    }
    left = sum(rows for rows, _ in units.values())
    return Plan(units=units, total_rows=total, done_rows=total - left, notes=_told(held))


def do_unit(plain: Plain, unit: str, killers: Mapping[str, str]) -> Done:
    """Do what is missing of a unit.

    Args:
        plain: What is asked.
        unit: Its name.
        killers: Items of it that are not to be touched, and why.

    Returns:
        What it came to.
    """
    held = _hold(plain)
    with _holding:
        work = _find_unit(held, unit)
        if work is None:
            return Done(rows=0, n_bytes=0, busy_s={}, failed=[], notes=_told(held))
        known = {**held.job.supervision.killers, **killers}
        held.job.supervision = Supervision(killers=known)
        progress = _Counting()
        engine = held.job.engine(
            StoreWriter(held.writer.store),
            workers=held.job.workers,
            device_turn=held.turn,
            progress=progress,
        )
    engine.run([work])
    seconds = {k: f * engine.meter.elapsed_s for k, f in engine.meter.fractions().items()}
    return Done(
        rows=progress.rows,
        n_bytes=progress.n_bytes,
        busy_s=seconds,
        failed=sorted(engine.failed),
        notes=[*_told(held), *progress.notes],
    )


def _find_unit(held: _Held, name: str) -> UnitWork | None:
    """Find what is missing of a unit; None if another worker has done it meanwhile."""
    if name not in held.units:
        held.look()
    segment, unit = held.units[name]
    store = held.writer.store
    # Who had it before may have committed it and died before that was known.
    kinds = tuple(
        kind
        for kind in held.job.features
        if not store.is_committed(name, kind) and not store.folder.exists(record_name(name, kind))
    )
    return UnitWork(segment=segment, unit=unit, kinds=kinds) if kinds else None


def find_killers(plain: Plain, item_ids: Sequence[str]) -> dict[str, str]:
    """Try items, as `dinocache.supervise.find_killers`, where the files are seen."""
    return supervise.find_killers(request_of(plain), item_ids)


def conclude_store(
    plain: Plain, units: Sequence[str], seconds: float, busy: dict[str, float], workers: int
) -> Outcome:
    """Close and seal what can be, and keep a report of the run.

    Args:
        plain: What was asked.
        units: Names of those that were done.
        seconds: That this took.
        busy: Stage -> fraction.
        workers: How many there were.

    Returns:
        What it came to.
    """
    held = _hold(plain)
    writer = held.writer
    conclude(writer, held.job)
    wanted = set(units)
    work = [
        UnitWork(segment=segment, unit=unit, kinds=held.job.features)
        for segment in writer.store.segments
        for unit in segment.units
        if unit.name in wanted
    ]
    if work:
        held.job.report(
            writer,
            rows=sum(w.unit.n_rows for w in work),
            units=len(work),
            seconds=seconds,
            busy=busy,
            ended="done",
            workers=workers,
        )
    return outcome_of(writer, work, seconds=seconds, busy=busy)


def _told(held: _Held) -> list[str]:
    notes, held.notes.notes[:] = list(held.notes.notes), []
    return notes


class _Counting(QuietProgress):
    """Counts what is committed."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = self.n_bytes = 0

    def advance(self, rows: int, n_bytes: int, busy: Mapping[str, float]) -> None:
        """Count."""
        self.rows += rows
        self.n_bytes += n_bytes
