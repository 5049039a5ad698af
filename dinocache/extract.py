"""From a request to a store: find the items, settle the recipe, plan, do what is missing."""

import datetime
import platform
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pandas as pd

from dinocache import __version__
from dinocache.encoders import EncoderSpec, check_resolution, encoder_spec, load_encoder
from dinocache.engine import Engine, Source, UnitWork, close_segment
from dinocache.errors import (
    ItemError,
    RecipeMismatchError,
    RequestError,
    TableError,
    WeightsError,
)
from dinocache.items import check_name, same_labels
from dinocache.layout import (
    FORMAT,
    HEADER,
    ITEM_PREFIX,
    NATIVE_KINDS,
    VECTOR_KINDS,
    array_layout,
    check_kinds,
)
from dinocache.manifest import Dataset, find_dataset
from dinocache.plan import Grid, make_grid, make_segment
from dinocache.progress import Progress, QuietProgress, human_bytes
from dinocache.readers import Reader, make_reader
from dinocache.recipe import (
    EncoderRecipe,
    InputRecipe,
    ReaderRecipe,
    Recipe,
    WeightsRecipe,
    resolution_name,
)
from dinocache.records import Execution, Header
from dinocache.store import FailedItem, FeatureStore
from dinocache.writer import StoreWriter, create_store

if TYPE_CHECKING:
    from dinocache.encoders import Encoder

__all__ = ["ExtractRequest", "Outcome", "dry_run", "extract", "parse_resolution", "relabel"]

DEFAULT_MODEL = "dinov3-s"
_TOKENS_A_BATCH = 1 << 14
"""Bounds the memory of a batch: 64 rows of 256 px, 16 of 512."""


@dataclass(frozen=True, kw_only=True)
class ExtractRequest:
    """What a person asks of `dinocache extract`; None is "as the store has it, or the default"."""

    dataset: str
    data: Path | None = None
    root: Path = Path("features")
    name: str | None = None
    model: str = DEFAULT_MODEL
    resolution: tuple[int, int] | None = None
    variant: str = ""
    features: tuple[str, ...] | None = None
    weights: str | None = None
    rope: Literal["auto", "float32"] | None = None
    device: str = "auto"
    any_device: bool = False
    precision: Literal["fp32", "bf16"] | None = None
    batch: int | None = None
    unit_rows: int | None = None
    workers: int | None = None
    append: bool = False
    retry_failed: bool = False


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
    """

    path: Path
    complete: bool
    rows: int
    units: int
    seconds: float
    failures: tuple[FailedItem, ...]


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
    """

    path: Path
    items: int
    rows: int
    units: int
    units_missing: int
    n_bytes: dict[str, int]
    free_bytes: int


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
    job = _Job(request, progress)
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
    job = _Job(request, QuietProgress())
    store = job.store
    planned = {i for s in store.segments for i in s.item_ids} if store else set()
    fresh = [item for item in job.count_rows() if item[0] not in planned]
    grid = store.header.grid if store else job.new_grid()
    segments = list(store.segments) if store else []
    missing = {w.unit for w in store.missing(job.features)} if store else set()
    if fresh:
        last = segments[-1] if segments else None
        segments.append(make_segment(fresh, grid, recipe="", after=last))
        missing |= {u.name for u in segments[-1].units}
    rows = segments[-1].row_stop if segments else 0
    recipe = store.header.recipe if store else job.recipe_of(_NO_WEIGHTS, "bfloat16")
    sizes = {}
    for kind in (k for k in job.features if k not in NATIVE_KINDS):
        layout = array_layout(kind, recipe, grid)
        width = 1
        for length in layout.tail:
            width *= length
        sizes[kind] = 2 * rows * width
    units = {u.name for s in segments for u in s.units}
    return Forecast(
        path=job.path,
        items=len(job.dataset.table),
        rows=sum(sum(s.item_rows) for s in segments),
        units=len(units),
        units_missing=len(missing & units),
        n_bytes=sizes,
        free_bytes=shutil.disk_usage(_existing_parent(job.path)).free,
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


def parse_resolution(text: str | int) -> tuple[int, int]:
    """Read `512`, or `512x640` as height x width.

    Args:
        text: As a person or a manifest gives it.

    Returns:
        (height, width), px.

    Raises:
        RequestError: If it is neither.
    """
    parts = str(text).lower().split("x")
    if len(parts) not in (1, 2) or not all(p.isdecimal() and 0 < len(p) < 6 for p in parts):
        raise RequestError(
            f"--resolution {text!r}: give one side as 512, or height x width as 512x640"
        )
    return int(parts[0]), int(parts[-1])


_NO_WEIGHTS = WeightsRecipe(name="", sha256="")


@dataclass
class _Job:
    """One extraction while it is being settled."""

    request: ExtractRequest
    progress: Progress
    dataset: Dataset = field(init=False)
    spec: EncoderSpec = field(init=False)
    encoder: "Encoder | None" = None

    def __post_init__(self) -> None:
        request = self.request
        self.spec = encoder_spec(request.model)
        self.dataset = find_dataset(request.dataset, data=request.data, name=request.name)
        defaults = self.dataset.extract
        self.reader: Reader = make_reader(defaults.reader, defaults.options)
        self.resolution = request.resolution or parse_resolution(defaults.resolutions[0])
        check_resolution(self.spec, self.resolution)
        folder = resolution_name(self.resolution)
        if request.variant:
            folder += f"-{check_name(request.variant, '--variant')}"
        self.path = request.root / self.dataset.name / self.spec.name / folder
        self.store = FeatureStore(self.path) if (self.path / HEADER).exists() else None
        self.features = check_kinds(
            request.features or (self.store.kinds if self.store else ()) or defaults.features
        )
        if "mask" in self.features and "mask" not in self.dataset.table:
            raise RequestError(
                f"--features mask: the items of {self.dataset.name} have no column 'mask'; "
                "add one with the path of each item's mask"
            )

    # The store

    def settle(self) -> FeatureStore:
        """Open the store after seeing that it is the one asked for, or make it."""
        if self.store is None:
            encoder = self.load_encoder(self.request.weights or "hub")
            create_store(self.path, self._new_header(encoder))
            # Another process may have been first: from here on what is on the disk holds.
            self.store = FeatureStore(self.path)
            self._check_recipe(self.store, encoder)
        else:
            self._check_said(self.store)
        self._check_device(self.store)
        self._check_items(self.store)
        return self.store

    def recipe_of(
        self, weights: WeightsRecipe, rope: Literal["checkpoint", "bfloat16", "float32"]
    ) -> Recipe:
        """Put together the recipe of a new store."""
        return Recipe(
            encoder=EncoderRecipe(
                name=self.spec.name,
                dim=self.spec.dim,
                patch_px=self.spec.patch_px,
                weights=weights,
                rope=rope,
            ),
            input=InputRecipe(resolution=self.resolution, mean=self.spec.mean, std=self.spec.std),
            reader=ReaderRecipe(name=self.reader.name, options=self.reader.options),
            precision=self._precision(),
        )

    def new_grid(self) -> Grid:
        """Choose the grid of a new store."""
        height, width = self.resolution
        tokens = height * width // self.spec.patch_px**2
        fits = max(1, _TOKENS_A_BATCH // tokens)
        batch = (
            self.request.batch if self.request.batch is not None else 1 << (fits.bit_length() - 1)
        )
        rows = [rows for _, rows in self.count_rows()]
        return make_grid(rows, unit_rows=self.request.unit_rows, batch=batch)

    def count_rows(self) -> list[tuple[str, int]]:
        """Count each item's rows; one that cannot be opened gets one, and fails when read."""
        counts = []
        for item_id, path in zip(
            self.dataset.table["item_id"], self.dataset.table["path"], strict=True
        ):
            try:
                rows = self.reader.count_rows(self.dataset.data / path)
            except ItemError:
                rows = 1
            counts.append((str(item_id), rows))
        return counts

    def load_encoder(self, weights: str) -> "Encoder":
        """Load the encoder once."""
        if self.encoder is None:
            self.encoder = load_encoder(
                self.spec,
                weights,
                rope=self._rope(),
                device=self.device,
                precision=self._precision(),
            )
        return self.encoder

    @property
    def device(self) -> str:
        """The device asked for; `auto` is the first of cuda, mps, cpu that is there."""
        import torch

        asked = self.request.device
        if asked == "auto":
            if torch.cuda.is_available():
                return "cuda"
            return "mps" if torch.backends.mps.is_available() else "cpu"
        try:
            device = torch.device(asked)
            missing = device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()
            kind = "" if missing else device.type
        except RuntimeError:
            kind = ""
        there = {
            "cpu": True,
            "cuda": torch.cuda.is_available(),
            "mps": torch.backends.mps.is_available(),
        }
        if not there.get(kind, False):
            have = ", ".join(k for k, is_there in there.items() if is_there)
            raise RequestError(f"--device {asked}: this machine has {have}; 'auto' chooses")
        return asked

    def _rope(self) -> Literal["auto", "float32"]:
        if self.request.rope:
            return self.request.rope
        float32 = self.store is not None and self.store.header.recipe.encoder.rope == "float32"
        return "float32" if float32 else "auto"

    def _precision(self) -> Literal["fp32", "bf16"]:
        if self.request.precision:
            return self.request.precision
        if self.store:
            return self.store.header.recipe.precision
        # bf16 matrix products are 40 to 80 times slower than fp32 on most CPUs.
        return "bf16" if self.device.startswith("cuda") else "fp32"

    def _new_header(self, encoder: "Encoder") -> Header:
        import torch

        recipe = self._recipe_with(encoder)
        return Header(
            format=FORMAT,
            dataset=self.dataset.name,
            variant=self.request.variant,
            recipe=recipe,
            digest=recipe.digest,
            grid=self.new_grid(),
            execution=Execution(device=self.device.split(":")[0], threads=torch.get_num_threads()),
            provenance={
                "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                "platform": platform.platform(terse=True),
                "python": platform.python_version(),
                **_made_by(self.device),
            },
        )

    def _recipe_with(self, encoder: "Encoder") -> Recipe:
        weights = WeightsRecipe(name=encoder.weights.name, sha256=encoder.weights.sha256)
        return self.recipe_of(weights, encoder.rope)

    def _check_said(self, store: FeatureStore) -> None:
        """Hold what the person said against an existing store; weights are loaded if need be."""
        stored = store.header.recipe.encoder
        said = self.request.weights
        names = [w.strip() for w in said.split(",")] if said else []
        canonical = ["random:0" if n == "random" else n for n in names]
        if said and stored.weights.name not in canonical:
            hub = stored.weights.name.startswith("hub:") and "hub" in names
            encoder = self.load_encoder("hub" if hub else said)
            self._check_recipe(store, encoder)
            return
        weights = stored.weights
        rope = "float32" if self.request.rope == "float32" else stored.rope
        if self.request.rope == "auto" and stored.rope == "float32":
            rope = "bfloat16"
        self._compare(store, self.recipe_of(weights, rope))

    def _check_recipe(self, store: FeatureStore, encoder: "Encoder") -> None:
        self._compare(store, self._recipe_with(encoder))

    def _compare(self, store: FeatureStore, recipe: Recipe) -> None:
        differences = [
            f"{field}: {ours} in the store, {theirs} asked for"
            for field, (ours, theirs) in store.header.recipe.differences(recipe).items()
        ]
        grid = store.header.grid
        for option, ours, theirs in (
            ("--batch", grid.batch, self.request.batch),
            ("--unit-rows", grid.unit_rows, self.request.unit_rows),
        ):
            if theirs is not None and theirs != ours:
                differences.append(f"{option}: {ours} in the store, {theirs} asked for")
        if differences:
            raise RecipeMismatchError(
                f"{self.path} was made by another recipe ({'; '.join(differences)}). Leave those "
                "options out to go on with it, or give this one a folder of its own with "
                "--variant NAME."
            )

    def _check_device(self, store: FeatureStore) -> None:
        import torch

        ours, theirs = store.header.execution.device, self.device.split(":")[0]
        if ours != theirs and not self.request.any_device:
            raise RecipeMismatchError(
                f"{self.path} was begun on {ours}; {theirs} gives other last bits. Go on there "
                f"(--device {ours}), or say --any-device to mix them."
            )
        torch.set_num_threads(store.header.execution.threads)

    def _check_items(self, store: FeatureStore) -> None:
        if store.items.empty:
            return
        ours, theirs = (t.set_index("item_id") for t in (store.items, self.dataset.table))
        fresh = theirs.index.difference(ours.index, sort=False)
        gone = ours.index.difference(theirs.index, sort=False)
        if (len(fresh) or len(gone)) and not self.request.append:
            raise RecipeMismatchError(
                f"{self.path} holds {len(ours)} items; this table has {len(fresh)} "
                f"others{_example(fresh)} and lacks {len(gone)}{_example(gone)}. --append adds "
                "the new ones to the store; --name NAME gives the table a store of its own."
            )
        common = ours.index.intersection(theirs.index)
        both = [t.loc[common].reset_index() for t in (ours, theirs)]
        moved = both[0]["path"].to_numpy() != both[1]["path"].to_numpy()
        if moved.any():
            raise RecipeMismatchError(
                f"{self.path}: item {common[moved][0]!r} lies at another path in this table "
                f"({int(moved.sum())} such items); are these the same items?"
            )
        if not same_labels(*both):
            raise RecipeMismatchError(
                f"{self.path}: the table's other columns differ from the store's. To change "
                f"targets, groups or splits: dinocache relabel {self.path} TABLE (no feature is "
                "computed again)."
            )

    # The work

    def run(self, writer: StoreWriter, work: Sequence[UnitWork]) -> None:
        """Do units."""
        stored = writer.store.header.recipe.encoder.weights
        encoder = self.load_encoder(self.request.weights or _weights_option(stored, self.path))
        self._check_recipe(writer.store, encoder)
        items = writer.store.items
        masks = items["mask"].dropna() if "mask" in items else pd.Series(dtype=str)
        source = Source(
            data=self.dataset.data,
            reader=self.reader,
            paths=dict(zip(items["item_id"], items["path"], strict=True)),
            masks=dict(zip(items["item_id"][masks.index], masks, strict=True)),
        )
        engine = Engine(
            writer,
            source,
            encoder,
            workers=self.request.workers or 4,
            progress=self.progress,
            made_by=_made_by(self.device),
        )
        total = sum(u.n_rows for s in writer.store.segments for u in s.units)
        self.progress.start(total, total - sum(w.unit.n_rows for w in work))
        try:
            engine.run(work)
        finally:
            self.progress.stop()
            writer.reload()


def _plan(writer: StoreWriter, job: _Job) -> None:
    """See that the item table is stored and that every item is in a segment."""
    store, table = writer.store, job.dataset.table
    known = set(store.items["item_id"])
    if not known.issuperset(table["item_id"]):
        fresh = table[~table["item_id"].isin(known)]
        writer.put_items(table if not known else pd.concat([store.items, fresh], ignore_index=True))
    counts = dict(job.count_rows())
    while unplanned := writer.store.unplanned():
        if lost := [i for i in unplanned if i not in counts]:
            raise TableError(
                f"{job.path}: item {lost[0]!r} was appended but is not extracted yet, and this "
                "table does not list it; run the command that appended it again first"
            )
        _add(writer, [(i, counts[i]) for i in unplanned])
    if job.request.retry_failed:
        # Those that a segment holds which is still to be done are being retried already.
        pending = {
            i
            for w in writer.store.missing(job.features)
            for i in w.segment.item_ids
            if w.segment.number == writer.store.segments[-1].number > 1
        }
        failed = [f.item_id for f in writer.store.failures() if f.item_id not in pending]
        again = [(i, counts[i]) for i in failed if i in counts]
        if again:
            _add(writer, again)


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
        for kind in (k for k in features if k in VECTOR_KINDS):
            if not writer.store.is_committed(segment.closing_name, f"{ITEM_PREFIX}{kind}"):
                close_segment(writer, segment, kind, _made_by(writer.store.header.execution.device))


def _warn_of_space(writer: StoreWriter, work: Sequence[UnitWork], progress: Progress) -> None:
    needed = 0
    for unit_work in work:
        for kind in (k for k in unit_work.kinds if k not in NATIVE_KINDS):
            width = 2
            for length in writer.layout(kind).tail:
                width *= length
            needed += unit_work.unit.n_rows * width
    free = shutil.disk_usage(writer.store.path).free
    if needed > free:
        progress.note(
            f"warning: about {human_bytes(needed)} are still to be written, {human_bytes(free)} "
            "are free on that disk; what is committed when it is full stays valid"
        )


def _weights_option(stored: WeightsRecipe, path: Path) -> str:
    """Say how the weights of a store are asked for again."""
    if stored.is_random:
        return stored.name
    if stored.name.startswith("hub:"):
        return "hub"
    raise WeightsError(
        f"{path} was made with the weights file {stored.name} (sha256 {stored.sha256[:12]}...); "
        "pass it with --weights PATH to go on"
    )


def _made_by(device: str) -> dict[str, str]:
    versions = {package: metadata.version(package) for package in ("numpy", "timm", "torch")}
    return {"dinocache": __version__, "device": device.split(":")[0], **versions}


def _example(ids: "pd.Index[str]") -> str:
    return f" (as {ids[0]!r})" if len(ids) else ""


def _existing_parent(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path
