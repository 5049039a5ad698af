"""What an extraction would do, would need, and how long it would take; nothing is written."""

import itertools
import shutil
import statistics
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from dinocache.changes import Changes, changed_sources
from dinocache.cost import gflop
from dinocache.errors import RequestError
from dinocache.folders import Folder
from dinocache.job import NO_WEIGHTS, Job
from dinocache.layout import NATIVE_KINDS, array_layout, is_row_kind
from dinocache.pace import pace, usable_cores
from dinocache.plan import Grid, Segment, make_segment
from dinocache.progress import Progress, QuietProgress
from dinocache.recipe import Recipe
from dinocache.request import ExtractRequest
from dinocache.store import FeatureStore
from dinocache.trial import Encoding, Reading, drawn, try_encoding, try_reading, why_not

if TYPE_CHECKING:
    import torch

    from dinocache.inference import Encoder

__all__ = ["Forecast", "dry_run", "human_duration"]


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What an extraction would do.

    Attributes:
        store: Where it lies, or would.
        items: Items in the table.
        rows: Rows in all.
        rows_missing: Rows of which something is still to be done.
        units: Units in all.
        units_missing: Units that are not done for every kind.
        n_bytes: Kind -> bytes of its array when done.
        estimated: Kinds of which that is an estimate, from above: images and masks, by what some
            items are once decoded; they are compressed when they are written.
        bytes_missing: Bytes still to be written.
        free_bytes: On the disk of the store's root; None if that is a server.
        gflop: 1e9 operations of one row; None where it is not known.
        batch: Rows that pass through the encoder together.
        suggested_batch: A better one for the device at hand; None if that is as good.
        unreadable: Items that cannot be opened -> why; they count as one row, and will fail. Of
            single images only a few are looked at.
        changed: Items that are extracted -> how their files differ from what they were.
        missing: Ids of items whose files are not there.
        hours: That what is still to be done takes on this machine, writing not counted; None where
            that was not tried.
        rows_per_second: Likewise; None also where nothing is missing.
        held_back_by: `reading` or `encoder`, likewise.
        not_tried: Why there is no answer, if one was asked for.
    """

    store: str
    items: int
    rows: int
    rows_missing: int
    units: int
    units_missing: int
    n_bytes: dict[str, int]
    estimated: tuple[str, ...]
    bytes_missing: int
    free_bytes: int | None
    gflop: float | None
    batch: int
    suggested_batch: int | None
    unreadable: dict[str, str]
    changed: dict[str, str]
    missing: list[str]
    hours: float | None
    rows_per_second: float | None
    held_back_by: str | None
    not_tried: str


def dry_run(
    request: ExtractRequest, progress: Progress | None = None, *, timed: bool = False
) -> Forecast:
    """Say what an extraction would do; nothing is written, no weights are needed.

    Args:
        request: What is asked.
        progress: Told of what takes long.
        timed: Whether a few items are read and a few passes made, with random weights, to say how
            long it would take; some ten seconds.

    Returns:
        The forecast.

    Raises:
        RequestError: If the request cannot be met as it stands.
        TableError: If the table or the manifest is not as it must be.
        RecipeMismatchError: If the store there was made otherwise.
    """
    progress = progress or QuietProgress()
    with closing(Job(replace(request, hash_sources=False), progress)) as job:
        return _forecast(job, progress, timed=timed)


def _forecast(job: Job, progress: Progress, *, timed: bool) -> Forecast:
    request, store = job.request, job.store
    if store:
        job.check_options(store, store.header.recipe.encoder.weights)
    grid = store.header.grid if store else job.new_grid()
    segments, gone = _planned(job, grid)
    todo = _todo(segments, store, job.features, request.part)
    changes = _changes(job, progress)
    recipe = store.header.recipe if store else job.recipe_of(NO_WEIGHTS, "bfloat16")
    reading, trial = _tried(job, recipe, grid, segments, todo, timed=timed)
    a_row = _bytes_a_row(job, recipe, grid, reading)
    rows = sum(sum(s.item_rows) for s in segments)
    reserved = segments[-1].row_stop if segments else 0
    return Forecast(
        store=str(job.folder),
        items=len(job.dataset.table),
        rows=rows,
        rows_missing=sum(todo.item_rows.values()),
        units=sum(len(s.units) for s in segments),
        units_missing=todo.units,
        n_bytes={k: round(n * (rows if k in NATIVE_KINDS else reserved)) for k, n in a_row.items()},
        estimated=tuple(k for k in job.features if k in NATIVE_KINDS),
        bytes_missing=round(sum(a_row[k] * n for k, n in todo.kind_rows.items())),
        free_bytes=_free_bytes(job.folder),
        gflop=gflop(job.spec, job.resolution),
        batch=grid.batch,
        suggested_batch=None if store else job.better_batch(grid),
        unreadable=job.unreadable | reading.unreadable,
        changed=changes.changed,
        missing=[*changes.missing, *gone],
        hours=None if trial.seconds is None else trial.seconds / 3600,
        rows_per_second=todo.rows / trial.seconds if trial.seconds else None,
        held_back_by=trial.held_back_by,
        not_tried=trial.why_not,
    )


def human_duration(seconds: float) -> str:
    """Write a time as people do, to two digits: `40 s`, `12 min`, `3.2 h`, `4.5 days`."""
    for unit, length, most in (("s", 1, 90), ("min", 60, 90 * 60), ("h", 3600, 48 * 3600)):
        if seconds < most:
            return f"{seconds / length:.2g} {unit}"
    days = seconds / 86_400
    return f"{days:.2g} days" if days < 100 else f"{days:.0f} days"


@dataclass(kw_only=True)
class _Todo:
    """What is not done.

    Attributes:
        item_rows: Item id -> rows of it that are to be read.
        kind_rows: Kind -> rows that are to be written.
        encoded: Rows that are to pass through the encoder.
        units: Units that lack a kind.
    """

    item_rows: dict[str, int] = field(default_factory=dict)
    kind_rows: dict[str, int] = field(default_factory=dict)
    encoded: int = 0
    units: int = 0

    @property
    def rows(self) -> int:
        return sum(self.item_rows.values())


def _planned(job: Job, grid: Grid) -> tuple[list[Segment], list[str]]:
    """Give the segments, with one for what is not planned yet, and the ids of what is missing."""
    segments = list(job.store.segments) if job.store else []
    held = {i for s in segments for i in s.item_ids}
    fresh = job.count_rows(i for i in job.dataset.table["item_id"].tolist() if i not in held)
    if not fresh:
        return segments, []
    stamps = job.stamps(fresh)
    last = segments[-1] if segments else None
    added = make_segment(list(fresh.items()), grid, recipe="", after=last, stamps=stamps)
    gone = [i for i, stamp in zip(fresh, stamps, strict=True) if stamp is None]
    return [*segments, added], gone


def _todo(
    segments: Sequence[Segment],
    store: FeatureStore | None,
    kinds: Sequence[str],
    part: tuple[int, int] | None,
) -> _Todo:
    todo = _Todo()
    number, shares = part or (1, 1)
    units = ((segment, unit) for segment in segments for unit in segment.units)
    for segment, unit in itertools.islice(units, number - 1, None, shares):
        lacking = [k for k in kinds if store is None or not store.is_committed(unit.name, k)]
        if not lacking:
            continue
        todo.units += 1
        for kind in lacking:
            todo.kind_rows[kind] = todo.kind_rows.get(kind, 0) + unit.n_rows
        if any(is_row_kind(kind) for kind in lacking):
            todo.encoded += unit.n_rows
        for item, _, _, rows in segment.pieces(unit):
            item_id = segment.item_ids[item]
            todo.item_rows[item_id] = todo.item_rows.get(item_id, 0) + rows
    return todo


def _changes(job: Job, progress: Progress) -> Changes:
    if job.store is None:
        return Changes(changed={}, missing=[])
    return changed_sources(
        job.store,
        job.source,
        job.dataset.table["item_id"].tolist(),
        workers=job.workers,
        progress=progress,
    )


def _bytes_a_row(job: Job, recipe: Recipe, grid: Grid, reading: Reading) -> dict[str, float]:
    """Say what a row takes of each kind."""
    image = reading.nbytes / reading.rows if reading.rows else 0.0
    masked = len(job.source.masks) / len(job.dataset.table)
    sizes = {"image": image, "mask": (reading.plane_px or image) * masked}
    for kind in (k for k in job.features if k not in NATIVE_KINDS):
        sizes[kind] = array_layout(kind, recipe, grid).row_bytes
    return {kind: sizes[kind] for kind in job.features}


def _free_bytes(folder: Folder) -> int | None:
    path = folder.path
    if path is None:
        return None
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


# ---------------------------------------------------------------------- trial


@dataclass(frozen=True, kw_only=True)
class _Trial:
    """How long it takes; or why that is not known, if somebody asked."""

    seconds: float | None = None
    held_back_by: str | None = None
    why_not: str = ""


def _tried(
    job: Job, recipe: Recipe, grid: Grid, segments: Sequence[Segment], todo: _Todo, *, timed: bool
) -> tuple[Reading, _Trial]:
    """Read some items: to see how large they are, and how long they take."""
    if not timed or not todo.units:
        native = any(kind in NATIVE_KINDS for kind in job.features)
        ids = drawn(i for s in segments for i in s.item_ids) if native else []
        return _read(job, recipe, ids, None), _Trial(seconds=0.0 if timed else None)
    import torch

    job.progress.note("trying a few items, to say how long it would take")
    device = torch.device(job.device)
    ids = drawn(todo.item_rows)
    reading = _read(job, recipe, ids, device)
    if not reading.items:
        reason = next(iter(reading.unreadable.values()))
        return reading, _Trial(why_not=f"none of {len(ids)} items can be read: {reason}")
    if todo.encoded and (reason := why_not(job.spec, job.resolution, device)):
        return reading, _Trial(why_not=reason)
    encoding = Encoding(row_s=0, row_cpu_s=0, start_s=0)
    if todo.encoded:
        try:
            encoding = _encode(job, recipe, grid, todo, reading)
        except RequestError as exc:
            return reading, _Trial(why_not=str(exc))
    found = pace(
        reading_s=reading.seconds(todo.item_rows.values()),
        reading_cpu=reading.cpu,
        encoder_s=encoding.start_s + todo.encoded * encoding.row_s,
        encoder_cpu_s=encoding.start_s + todo.encoded * encoding.row_cpu_s,
        workers=job.workers,
        cores=usable_cores(),
        shared=device.type == "cpu",
    )
    return reading, _Trial(seconds=found.seconds, held_back_by=found.held_back_by)


def _read(
    job: Job, recipe: Recipe, item_ids: Sequence[str], device: "torch.device | None"
) -> Reading:
    return try_reading(
        job.source, recipe, item_ids, kinds=job.features, workers=job.workers, device=device
    )


def _encode(job: Job, recipe: Recipe, grid: Grid, todo: _Todo, reading: Reading) -> Encoding:
    import torch

    from dinocache.inference import load_encoder

    torch.set_float32_matmul_precision("highest")  # as for the extraction
    batch = grid.batch
    if job.spec.network == "volume":
        batch = round(statistics.median(todo.item_rows.values()))

    def load() -> "Encoder":
        # Compiling takes longer than the trial may, and gains little.
        return load_encoder(
            job.spec, "random:0", device=job.device, precision=recipe.precision, compiled=False
        )

    return try_encoding(load, recipe, reading.inputs, kinds=job.features, batch=batch)
