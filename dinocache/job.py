"""One extraction, settled: which items, which recipe, which store; or why not."""

import contextlib
import datetime
import getpass
import platform
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from importlib import metadata
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from dinocache import __version__
from dinocache.cost import default_batch
from dinocache.counting import count_items, stamp_items
from dinocache.dataset import Dataset, find_dataset
from dinocache.decoders import CAN_HAND_OVER, Decoders
from dinocache.decoding import UnitWork
from dinocache.devices import can_compile, choose_device, device_memory, has_bf16
from dinocache.engine import Engine
from dinocache.errors import (
    RecipeMismatchError,
    RequestError,
    StoppedError,
    StoreWriteError,
    WeightsError,
)
from dinocache.items import channel_columns, check_name, mask_columns, same_labels
from dinocache.layout import (
    COORD,
    FORMAT,
    HEADER,
    base_of,
    check_kinds,
    is_row_kind,
    is_vector_kind,
    layer_number,
    pass_of,
)
from dinocache.libraries import find_encoder
from dinocache.pace import usable_cores
from dinocache.places import folder_of
from dinocache.plan import Grid, make_grid
from dinocache.progress import Progress
from dinocache.readers import Reader, guess_reader, make_reader
from dinocache.recipe import (
    ChannelsRecipe,
    EncoderRecipe,
    InputRecipe,
    ReaderRecipe,
    Recipe,
    ResizeRecipe,
    StorageRecipe,
    WeightsRecipe,
    WindowRecipe,
    model_folder,
    resolution_name,
)
from dinocache.records import Execution, Header, Run
from dinocache.request import (
    ExtractRequest,
    parse_channels,
    parse_resolution,
    parse_storage,
    parse_windows,
)
from dinocache.source import Source, Watch
from dinocache.spec import EncoderSpec, check_resolution, extracted_kinds, takes
from dinocache.stamps import Stamp
from dinocache.store import FeatureStore
from dinocache.views import swaps_axes
from dinocache.weights import resolve_weights
from dinocache.writer import StoreWriter, create_store

if TYPE_CHECKING:
    from dinocache.inference import Encoder

__all__ = ["NO_WEIGHTS", "Job", "Supervision", "made_by"]


def _unwatched(item_id: str) -> AbstractContextManager[None]:
    return nullcontext()


_MOST_WORKERS = 16
_WORTH_PROCESSES = 8
"""Items; for fewer, starting processes takes longer than they save."""
NO_WEIGHTS = WeightsRecipe(name="", sha256="")
"""For a forecast, whose recipe is thrown away."""


@dataclass(frozen=True, kw_only=True)
class Supervision:
    """What whoever watches an extraction knows, and wants to know.

    Attributes:
        killers: Item id -> why it is not to be touched: reading it has ended a process.
        careful: Items, one of which may have ended a process: read one at a time.
        watch: Told of each item that a reader is at work on.
        stop: Set to have the extraction end soon.
    """

    killers: Mapping[str, str] = field(default_factory=dict)
    careful: frozenset[str] = frozenset()
    watch: Watch = _unwatched
    stop: threading.Event = field(default_factory=threading.Event)


@dataclass
class Job:
    """One extraction while it is being settled; to be closed behind it."""

    request: ExtractRequest
    progress: Progress
    supervision: Supervision = field(default_factory=Supervision)
    dataset: Dataset = field(init=False)
    spec: EncoderSpec = field(init=False)
    encoder: "Encoder | None" = None
    unreadable: dict[str, str] = field(default_factory=dict, init=False)
    """Items that were counted and cannot be opened, and why."""
    _counted: dict[str, int] = field(default_factory=dict, init=False)
    _stamps: dict[str, Stamp | None] = field(default_factory=dict, init=False)
    _failed: set[str] = field(default_factory=set, init=False)

    def __post_init__(self) -> None:
        request = self.request
        self.spec = find_encoder(request.model)
        self.dataset = find_dataset(
            request.dataset,
            data=request.data,
            name=request.name,
            allow_missing=request.allow_missing,
        )
        if self.dataset.missing:
            self.progress.note(f"note: {self.dataset.notes[0]}; they are left out")
        defaults = self.dataset.extract
        listed = [parse_resolution(r) for r in defaults.resolutions]
        native = (self.spec.native_px, self.spec.native_px)
        usual = next((r for r in listed if takes(self.spec, r)), native)
        self.resolution = request.resolution or usual
        check_resolution(self.spec, self.resolution)
        folder = resolution_name(self.resolution)
        if request.variant:
            folder += f"-{check_name(request.variant, '--variant')}"
        place = f"{self.dataset.name}/{model_folder(self.spec.name)}/{folder}"
        self.folder = folder_of(request.root).within(place)
        self.store = FeatureStore(self.folder) if self.folder.exists(HEADER) else None
        if self.store and self.store.part:
            raise RequestError(
                f"{self.folder} is a part of the store {self.store.part.of}; extract into the "
                "whole one, and pull again"
            )
        if self.store and self.store.header.recipe.encoder.weights.is_declared:
            raise RequestError(
                f"{self.folder} holds imported features, and nothing is extracted into it: go on "
                "with `dinocache import`, or give this a folder of its own with --variant NAME"
            )
        self.reader = self._reader()
        self.source = self._source_of(self.dataset.table)
        self.channels = self._channels()
        stored = self.store.kinds if self.store else ()
        asked = check_kinds(request.features) if request.features else stored or None
        names = self.channels.names if self.channels.mode == "passes" else ()
        kinds = extracted_kinds(
            self.spec, asked, defaults.features, request.layers, names, request.views
        )
        self.features = check_kinds((*kinds, COORD) if self.reader.columns else kinds)
        height, width = self.resolution
        if height != width and any(swaps_axes(pass_of(kind).view) for kind in kinds):
            raise RequestError(
                f"--views: only an image of equal sides can be turned by 90 degrees, this one is "
                f"{height} x {width}; take hflip, vflip and rot180, or --resolution {height}"
            )
        self._check_windows()
        # What cannot be met is refused before anything is read or made.
        self._storage()
        _ = self.calibrated
        modes = {window.mode for window in self.windows} - {"full-range"}
        if self._resize().arithmetic == "uint8" and modes:
            raise RequestError(
                f"--arithmetic uint8 is for 8-bit images over their full range, not for the window "
                f"{modes.pop()}; leave one of the two out"
            )
        if "mask" in self.features and not mask_columns(self.dataset.table):
            raise RequestError(
                f"--features mask: the items of {self.dataset.name} have no column 'mask'; "
                "add one with the path of each item's mask"
            )

    def _source_of(self, table: pd.DataFrame) -> Source:
        return Source.of_table(
            table,
            self.dataset.data,
            self.reader,
            killers=self.supervision.killers,
            watch=self.supervision.watch,
            decoders=self.decoders,
        )

    @cached_property
    def decoders(self) -> Decoders | None:
        """Processes for items that are better read there; None where few items are to be read."""
        if not CAN_HAND_OVER or len(self.dataset.table) < _WORTH_PROCESSES:
            return None
        return Decoders(self.workers)

    def close(self) -> None:
        """End the processes that decode."""
        if self.decoders:
            self.decoders.close()

    # The store

    def settle(self) -> FeatureStore:
        """Open the store after seeing that it is the one asked for, or make it."""
        if self.store is None:
            encoder = self.load_encoder(self.request.weights or "hub")
            create_store(self.folder, self._new_header(encoder))
            # Another process may have been first: from here on what is on the disk holds.
            self.store = FeatureStore(self.folder)
            self._check_recipe(self.store, encoder)
        else:
            self._check_said(self.store)
        self._check_device(self.store)
        self._check_items(self.store)
        return self.store

    def recipe_of(
        self, weights: WeightsRecipe, rope: Literal["checkpoint", "bfloat16", "float32"] | None
    ) -> Recipe:
        """Put together what is asked for; what is not said is as an existing store has it."""
        spec = self.spec
        return Recipe(
            encoder=EncoderRecipe(
                name=spec.name,
                weights=weights,
                rope=rope,
                vectors=spec.vectors,
                dim=spec.dim,
                patch_px=spec.patch_px,
                depth=spec.depth,
                pyramid=spec.pyramid,
                embed_dim=spec.embed_dim,
            ),
            input=InputRecipe(
                resolution=self.resolution,
                channels=spec.channels,
                windows=self.windows,
                resize=self._resize(),
                mean=spec.mean,
                std=spec.std,
            ),
            reader=ReaderRecipe(
                name=self.reader.name,
                options=self.reader.options,
                columns=self.reader.columns,
            ),
            channels=self.channels,
            precision=self._precision(),
            storage=self._storage(),
        )

    def _storage(self) -> StorageRecipe:
        request = self.request
        known = self.store.header.recipe.storage if self.store else StorageRecipe()
        return parse_storage(known, dtype=request.dtype, quantize=request.quantize, pca=request.pca)

    @cached_property
    def calibrated(self) -> FeatureStore | None:
        """The store whose bases and scales are to be taken."""
        if self.request.calibration is None:
            return None
        other = FeatureStore(self.request.calibration)
        theirs = other.header.recipe
        if theirs.storage != self._storage() or theirs.encoder.name != self.spec.name:
            raise RequestError(
                f"--calibration {self.request.calibration}: it keeps {theirs.encoder.name} as "
                f"vectors {theirs.storage.vectors}, dense {theirs.storage.dense}; give the same "
                "--model, --dtype, --quantize and --pca"
            )
        return other

    def new_grid(self) -> Grid:
        """Choose the grid of a new store."""
        asked = self.request.batch
        batch = default_batch(self.spec, self.resolution) if asked is None else asked
        rows = list(self.count_rows(self.dataset.table["item_id"].tolist()).values())
        self._check_components(sum(rows))
        grid = make_grid(rows, unit_rows=self.request.unit_rows, batch=batch)
        grid = replace(grid, codec=self.request.codec or "none")
        # No pass is larger than a unit.
        return grid if asked else replace(grid, batch=min(batch, grid.unit_rows))

    def _check_components(self, n_rows: int) -> None:
        """Refuse more components than there are channels, or vectors to fit them on."""
        storage, spec = self._storage(), self.spec
        for kind in filter(is_row_kind, self.features):
            is_vector = is_vector_kind(kind)
            form = storage.vectors if is_vector else storage.dense
            most = (spec.embed_dim or spec.dim) if base_of(kind) == "embed" else spec.dim
            if not is_vector:
                layer = layer_number(kind)
                most = spec.pyramid[layer][1] if spec.pyramid and layer is not None else spec.dim
            what = f"{kind} of {spec.name} has {most} channels"
            fitted = n_rows * 2 // 3 - 1
            if is_vector and fitted < most and self.request.calibration is None:
                most, what = fitted, f"{kind} is fitted on {fitted + 1} of {n_rows} rows"
            if form.pca is not None and form.pca > most:
                raise RequestError(
                    f"--pca {self.request.pca}: {what}; give at most {max(most, 1)}, or "
                    f"--pca {form.pca}:dense for maps alone"
                )

    def better_batch(self, grid: Grid) -> int | None:
        """Suggest a batch for the device at hand; None if the grid's is as good."""
        memory = device_memory(self.device)
        better = default_batch(self.spec, self.resolution, memory_bytes=memory)
        better = min(better, grid.unit_rows)
        return None if better == grid.batch else better

    def count_rows(self, item_ids: Iterable[str], *, remembered: bool = True) -> dict[str, int]:
        """Count the rows of some items by their headers, each once, and look at their files.

        Args:
            item_ids: Which.
            remembered: Whether what earlier runs read of the headers may be taken.

        Returns:
            Item id -> rows; one that cannot be opened gets one, and fails when it is read.
        """
        wanted = [str(i) for i in item_ids]
        fresh = [i for i in wanted if not (remembered and i in self._counted)]
        stamps = stamp_items(
            self.source,
            fresh,
            workers=self.workers,
            progress=self.progress,
            digest=self.request.hash_sources,
        )
        counted = count_items(
            self.source,
            stamps,
            workers=self.workers,
            progress=self.progress,
            remembered=remembered,
        )
        self._stamps |= stamps
        self._counted |= counted.rows
        self.unreadable |= counted.unreadable
        return {i: self._counted[i] for i in wanted}

    def stamps(self, item_ids: Iterable[str]) -> list[Stamp | None]:
        """Say what the files of items looked like when their rows were counted."""
        return [self._stamps[i] for i in item_ids]

    def load_encoder(self, weights: str) -> "Encoder":
        """Load the encoder once."""
        import torch

        from dinocache.inference import load_encoder

        if self.encoder is None:
            # An environment variable that some containers set would let "fp32" round to 11 bits.
            torch.set_float32_matmul_precision("highest")
            self.encoder = load_encoder(
                self.spec,
                weights,
                rope=self._rope(),
                device=self.device,
                precision=self._precision(),
                compiled=self._compiled(),
            )
        return self.encoder

    @property
    def device(self) -> str:
        """The device asked for."""
        return choose_device(self.request.device)

    @property
    def workers(self) -> int:
        """Threads that read: enough for a GPU; beside an encoder on the CPU more would not help."""
        usual = min(_MOST_WORKERS, usable_cores()) if self.device.startswith("cuda") else 4
        return self.request.workers or usual

    def _reader(self) -> Reader[Any]:
        """Make the reader that was asked for, with the options of the store or the dataset."""
        request, defaults = self.request, self.dataset.extract
        if self.store:
            known = self.store.header.recipe.reader
            name, options = known.name, known.options
        else:
            name, options = defaults.reader, defaults.options
        if request.reader and request.reader != name:
            name, options = request.reader, {}
        if name == "auto":
            table = self.dataset.table
            columns = list(channel_columns(table).values()) or ["path"]
            paths = pd.concat([table[column] for column in columns])
            name = guess_reader(f"{self.dataset.data}/{path}" for path in paths.tolist())
        return make_reader(name, {**options, **request.options})

    def _channels(self) -> ChannelsRecipe:
        """Settle what becomes of an item's channels, whose names are the table's if it has any."""
        in_table = tuple(channel_columns(self.dataset.table))
        said = self.dataset.extract.channels
        asked = self.request.channels or (parse_channels(said) if said else None)
        if self.store and not self.request.channels:
            asked = self.store.header.recipe.channels
        if asked is None:
            # One pass each lets stores of one channel, and of several, share what is computed.
            mode: Literal["stacked", "passes"] = "passes" if len(in_table) > 1 else "stacked"
            asked = ChannelsRecipe(mode=mode)
        if in_table and asked.names not in ((), in_table):
            raise RequestError(
                f"--channels names {', '.join(asked.names)}, the table's columns "
                f"{', '.join(in_table)}; leave the names out"
            )
        if asked.mode == "passes" and not (in_table or asked.names):
            raise RequestError(
                "--channels passes: name the channels of each file, as passes:flair,t1gd,t2"
            )
        return ChannelsRecipe(mode=asked.mode, names=in_table or asked.names)

    @property
    def windows(self) -> tuple[WindowRecipe, ...]:
        """Which values become 0 and 1, for all channels or for each."""
        if self.request.windows:
            return self.request.windows
        if self.store:
            return self.store.header.recipe.input.windows
        if self.dataset.extract.window:
            return parse_windows(self.dataset.extract.window)
        if self.spec.window != "full-range":
            return (WindowRecipe(mode=self.spec.window),)
        return parse_windows(self.reader.window)

    def _check_windows(self) -> None:
        """Refuse windows that no item of these channels can have."""
        names, windows = self.channels.names, len(self.windows)
        if names and windows not in (1, len(names)):
            raise RequestError(
                f"--window names {windows} windows, the items have {len(names)} channels "
                f"({', '.join(names)}); give one for all, or one each"
            )
        several = max(windows, len(names)) > 1
        if self.spec.channels == 1 and self.channels.mode == "stacked" and several:
            raise RequestError(
                f"{self.spec.name} takes one channel; let each pass by itself with --channels "
                "passes"
            )

    def _resize(self) -> ResizeRecipe:
        if self.store:
            known = self.store.header.recipe.input.resize
        else:
            known = ResizeRecipe(filter=self.spec.filter)
        mode = self.request.resize or known.mode
        return ResizeRecipe(
            mode=mode,
            crop_pct=self.spec.crop_pct if mode == "crop" else None,
            filter=known.filter,
            arithmetic=self.request.arithmetic or known.arithmetic,
        )

    def _compiled(self) -> bool:
        if self.store:
            return self.store.header.execution.compiled
        if self.request.compiled is None:
            return can_compile(self.device) and self.spec.network != "volume"
        return self.request.compiled

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
        # Without instructions for it, a CPU is many times slower in bf16 than in fp32.
        return "bf16" if has_bf16(self.device) else "fp32"

    def _new_header(self, encoder: "Encoder") -> Header:
        import torch

        recipe, grid = self._recipe_with(encoder), self.new_grid()
        return Header(
            format=FORMAT,
            dataset=self.dataset.name,
            variant=self.request.variant,
            recipe=recipe,
            digest=recipe.digest,
            grid=grid,
            execution=Execution(
                device=self.device.split(":")[0],
                threads=torch.get_num_threads(),
                compiled=encoder.compiled,
            ),
            provenance={
                "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                "by": _user(),
                "platform": platform.platform(terse=True),
                "python": platform.python_version(),
                **made_by(self.device),
            },
        )

    def _recipe_with(self, encoder: "Encoder") -> Recipe:
        weights = WeightsRecipe(name=encoder.weights.name, sha256=encoder.weights.sha256)
        return self.recipe_of(weights, encoder.rope)

    def _check_said(self, store: FeatureStore) -> None:
        """Hold what the person said against an existing store; weights are digested if need be."""
        stored = store.header.recipe.encoder.weights
        said = self.request.weights
        names = [w.strip() for w in said.split(",")] if said else []
        weights = stored
        if said and not (
            stored.is_random and stored.name in ["random:0" if n == "random" else n for n in names]
        ):
            hub = stored.name.startswith("hub:") and "hub" in names
            found = resolve_weights("hub" if hub else said, self.spec)
            if isinstance(found, int):
                weights = WeightsRecipe(name=f"random:{found}", sha256=f"random:{found}")
            else:
                weights = WeightsRecipe(name=found.name, sha256=found.sha256)
        self.check_options(store, weights)

    def check_options(self, store: FeatureStore, weights: WeightsRecipe) -> None:
        """Hold all other options against an existing store.

        Args:
            store: It.
            weights: Its own, or others that were asked for.

        Raises:
            RecipeMismatchError: If it was made otherwise: which fields.
        """
        rope = store.header.recipe.encoder.rope
        if rope is not None and self.request.rope == "float32":
            rope = "float32"
        if self.request.rope == "auto" and rope == "float32":
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
            ("--codec", grid.codec, self.request.codec),
        ):
            if theirs is not None and theirs != ours:
                differences.append(f"{option}: {ours} in the store, {theirs} asked for")
        asked = self.request.compiled
        if asked not in (None, store.header.execution.compiled):
            differences.append(f"--compile: {not asked} in the store, {asked} asked for")
        if differences:
            raise RecipeMismatchError(
                f"{self.folder} was made by another recipe ({'; '.join(differences)}). Leave those "
                "options out to go on with it, or give this one a folder of its own with "
                f"--variant NAME.{_nothing_to_lose(store)}"
            )

    def _check_device(self, store: FeatureStore) -> None:
        import torch

        ours, theirs = store.header.execution.device, self.device.split(":")[0]
        if ours != theirs and not self.request.any_device:
            raise RecipeMismatchError(
                f"{self.folder} was begun on {ours}; {theirs} gives other last bits. Go on there "
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
                f"{self.folder} holds {len(ours)} items; this table has {len(fresh)} "
                f"others{_example(fresh)} and lacks {len(gone)}{_example(gone)}. --append adds "
                "the new ones to the store; --name NAME gives the table a store of its own."
            )
        common = ours.index.intersection(theirs.index)
        both = [t.loc[common].reset_index() for t in (ours, theirs)]
        moved = both[0]["path"].to_numpy() != both[1]["path"].to_numpy()
        if moved.any():
            raise RecipeMismatchError(
                f"{self.folder}: item {common[moved][0]!r} lies at another path in this table "
                f"({int(moved.sum())} such items); are these the same items?"
            )
        if not same_labels(*both):
            raise RecipeMismatchError(
                f"{self.folder}: the table's other columns differ from the store's. To change "
                f"targets, groups or splits: dinocache relabel {self.folder} TABLE (no feature is "
                "computed again)."
            )

    # The work

    def run(self, writer: StoreWriter, work: Sequence[UnitWork]) -> dict[str, float]:
        """Do units.

        Args:
            writer: Of the store.
            work: In order of rows.

        Returns:
            How busy each stage was.

        Raises:
            StoreWriteError: If the disk refuses; what was committed before is whole.
            StoppedError: If it was asked to stop; likewise.
            TooManyFailuresError: If more items failed than may; likewise.
        """
        careful = [w for w in work if self._is_careful(w)]
        number, shares = self.request.part or (1, 1)
        units = [unit for segment in writer.store.segments for unit in segment.units]
        total = sum(unit.n_rows for unit in units[number - 1 :: shares])
        self.progress.start(total, total - sum(w.unit.n_rows for w in work))
        try:
            if careful:
                # Nothing else is open while one of them is: another death names the item.
                self._run(writer, careful, workers=1, careful=True)
            others = [w for w in work if not self._is_careful(w)]
            return self._run(writer, others, workers=self.workers)
        finally:
            self.progress.stop()
            writer.reload()

    def _is_careful(self, work: UnitWork) -> bool:
        unit = work.unit
        ids = work.segment.item_ids[unit.first_item : unit.first_item + unit.n_items]
        return not self.supervision.careful.isdisjoint(ids)

    def _run(
        self, writer: StoreWriter, work: Sequence[UnitWork], *, workers: int, careful: bool = False
    ) -> dict[str, float]:
        engine = self.engine(writer, workers=workers, careful=careful, failed=self._failed)
        ended = "failed"
        try:
            engine.run(work)
            ended = "done"
        except StoppedError:
            ended = "stopped"
            raise
        finally:
            busy = engine.meter.fractions()
            if engine.units_done:
                self.report(
                    writer,
                    rows=engine.rows_done,
                    units=engine.units_done,
                    seconds=engine.meter.elapsed_s,
                    busy=busy,
                    ended=ended,
                    workers=workers,
                )
        return busy

    def report(
        self,
        writer: StoreWriter,
        *,
        rows: int,
        units: int,
        seconds: float,
        busy: Mapping[str, float],
        ended: str,
        workers: int,
    ) -> None:
        """Keep in the store what a run came to; a disk that refuses has been told of before.

        Args:
            writer: Of the store.
            rows: Done.
            units: Done.
            seconds: That this took.
            busy: Stage -> fraction.
            ended: `done`, `stopped` or `failed`.
            workers: Threads that read, or processes of a cluster.
        """
        began = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=seconds)
        part = self.request.part
        run = Run(
            began=began.strftime("%Y-%m-%dT%H:%M:%SZ"),
            seconds=round(seconds, 3),
            rows=rows,
            units=units,
            ended=ended,
            device=self.device.split(":")[0],
            workers=workers,
            part=f"{part[0]}/{part[1]}" if part else "",
            busy={stage: round(fraction, 3) for stage, fraction in busy.items()},
            made_by=made_by(self.device),
        )
        with contextlib.suppress(StoreWriteError):
            writer.write_run(run)

    def engine(
        self,
        writer: StoreWriter,
        *,
        workers: int,
        device_turn: AbstractContextManager[Any] | None = None,
        progress: Progress | None = None,
        careful: bool = False,
        failed: set[str] | None = None,
    ) -> Engine:
        """Make what does units of a settled store; loads the encoder at the first call.

        Args:
            writer: Of the store.
            workers: Threads that read.
            device_turn: Held during a pass, where several engines share a device.
            progress: Told of what is committed; by default the job's own.
            careful: Whether items are read one by one and never beside a pass.
            failed: Ids of items that failed in this run before, to which those that fail are added.

        Returns:
            The engine.

        Raises:
            WeightsError: If the weights cannot be had or do not fit.
            RecipeMismatchError: If the encoder is not the one that made the store.
        """
        stored = writer.store.header.recipe.encoder.weights
        encoder = self.load_encoder(
            self.request.weights or _weights_option(stored, str(self.folder))
        )
        self._check_recipe(writer.store, encoder)
        return Engine(
            writer,
            self._source_of(writer.store.items),
            encoder,
            workers=workers,
            progress=progress or self.progress,
            made_by=made_by(self.device),
            failed=failed,
            max_failures=self.request.max_failures,
            stop=self.supervision.stop,
            device_turn=device_turn,
            careful=careful,
        )


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container may have none
        return ""


def _nothing_to_lose(store: FeatureStore) -> str:
    """Say so where a store may as well be begun anew."""
    if not any(store.is_committed(work.unit, work.kind) for work in store.work()):
        return " Nothing is committed in it yet: remove the folder to begin anew."
    if len(store.failures()) == len(store.items):
        return " Every item in it failed: remove the folder to begin anew."
    return ""


def _weights_option(stored: WeightsRecipe, where: str) -> str:
    """Say how the weights of a store are asked for again."""
    if stored.is_random:
        return stored.name
    if stored.name.startswith("hub:"):
        return "hub"
    raise WeightsError(
        f"{where} was made with the weights file {stored.name} (sha256 {stored.sha256[:12]}...); "
        "pass it with --weights PATH to go on"
    )


def made_by(device: str) -> dict[str, str]:
    """Say which versions, and which kind of device, make the numbers."""
    return {"dinocache": __version__, "device": device.split(":")[0], **_versions()}


@cache
def _versions() -> dict[str, str]:
    return {package: metadata.version(package) for package in ("numpy", "timm", "torch")}


def _example(ids: "pd.Index[str]") -> str:
    return f" (as {ids[0]!r})" if len(ids) else ""
