"""Features that others extracted, made a store: HDF5 of TRIDENT and CLAM, .pt, .npy, .npz.

See docs/formats.md. What made such features is not known here, only declared by whoever imports
them; the store's recipe says so, and its digest is never that of an extracted store.

How their files are opened: `dinocache.foreign`.
"""

import datetime
import importlib.metadata
import platform
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from dinocache import __version__
from dinocache.closing import close_segment
from dinocache.encoders import encoder_spec
from dinocache.errors import ItemError, RecipeMismatchError, RequestError
from dinocache.foreign import ForeignSource, SourceFormat, open_source
from dinocache.foreign_item import MAX_DIM, Columns, Floats
from dinocache.items import check_name, same_labels
from dinocache.layout import COORD, HEADER, ITEM_PREFIX
from dinocache.places import Where, folder_of
from dinocache.plan import Segment, Unit, make_grid, make_segment
from dinocache.progress import Progress, QuietProgress
from dinocache.readers.contract import translated
from dinocache.recipe import (
    EncoderRecipe,
    InputRecipe,
    ReaderRecipe,
    Recipe,
    WeightsRecipe,
    model_folder,
    resolution_name,
)
from dinocache.records import Execution, Failure, Header, Record
from dinocache.spec import EncoderSpec, check_resolution
from dinocache.stamps import Stamp, stamp_of
from dinocache.store import FeatureStore
from dinocache.writer import StoreWriter, create_store

__all__ = ["Declared", "import_features"]

_READER = "imported"
_FLOAT16_MAX = 65504.0


@dataclass(frozen=True, kw_only=True)
class Declared:
    """What a person says of features that were extracted elsewhere.

    Attributes:
        model: Name of the encoder; one of `dinocache encoders` is held against its facts.
        resolution: (height, width) of what the encoder saw, px.
        kind: Which vector of a row they are.
        weights: Which weights: a file, a release; `random:0` for random ones. By default the
            model's name stands for them.
        tile_px: Side of a tile, px at `mpp`.
        mpp: Um/px of a tile.
        dim: Width of a vector; by default what most of the files have.

    Raises:
        RequestError: If one of them is no such thing.
    """

    model: str
    resolution: tuple[int, int]
    kind: Literal["cls", "mean", "embed"] = "cls"
    weights: str = ""
    tile_px: int | None = None
    mpp: float | None = None
    dim: int | None = None

    def __post_init__(self) -> None:
        for what, text, least in (("model", self.model, 1), ("weights", self.weights, 0)):
            if not least <= len(text) <= 200 or not (text.isprintable() and text == text.strip()):
                raise RequestError(f"the {what}'s name {text!r}: 1 to 200 printable characters")
        sides: dict[str, list[int | None]] = {
            "resolution": [*self.resolution],
            "tile_px": [self.tile_px],
            "dim": [self.dim],
        }
        for what, values in sides.items():
            if any(v is not None and not 0 < v <= MAX_DIM for v in values):
                raise RequestError(f"{what} {values}: must be from 1 to {MAX_DIM}")
        if len(self.resolution) != 2:
            raise RequestError(f"resolution {self.resolution}: give (height, width)")
        if self.mpp is not None and not 0 < self.mpp < 1e6:
            raise RequestError(f"mpp {self.mpp}: um/px of a tile must be above 0")
        if self.kind not in ("cls", "mean", "embed"):
            raise RequestError(f"kind {self.kind!r}: choose from cls, mean, embed")

    def spec(self) -> EncoderSpec | None:
        """Give the facts of the encoder where it is known here.

        Raises:
            RequestError: If it has no such kind or takes no such resolution.
        """
        try:
            spec = encoder_spec(self.model)
        except RequestError:
            return None
        check_resolution(spec, self.resolution)
        if self.kind not in spec.vectors:
            raise RequestError(
                f"{spec.name} gives no {self.kind!r}; it gives {', '.join(spec.vectors)}"
            )
        return spec

    def to_options(self) -> dict[str, Any]:
        """Give what was said, for the recipe; what was not is left out."""
        said = {
            "model": self.model,
            "resolution": [*self.resolution],
            "kind": self.kind,
            "weights": self.weights or None,
            "tile_px": self.tile_px,
            "mpp": None if self.mpp is None else float(self.mpp),
            "dim": self.dim,
        }
        return {key: value for key, value in said.items() if value is not None}


def import_features(
    source: Path,
    root: Where,
    *,
    dataset: str,
    declared: Declared,
    table: Path | None = None,
    format: SourceFormat = "auto",
    key: str | None = None,
    variant: str = "",
    unit_rows: int | None = None,
    retry_failed: bool = False,
    progress: Progress | None = None,
) -> FeatureStore:
    """Make a store of features that others extracted, or go on with one.

    Args:
        source: A folder of .h5, .pt or .npz files, one an item; or one .npy or .npz file of
            (n_items, dim).
        root: Below which stores lie: a path or a URL.
        dataset: The first folder below it.
        declared: What is said of the features.
        table: Items with `item_id`, `group`, `split` and targets. By default the stems of the
            files are the items, each a group of its own.
        format: Of the source; by default as its names say.
        key: Name of the features within a file; by default the usual ones are looked for.
        variant: Behind the resolution in the store's name.
        unit_rows: Rows a unit, a power of two; see `make_grid`.
        retry_failed: Whether items that failed before are read again.
        progress: Told of what is committed.

    Returns:
        The store, complete; items whose files cannot be used are among its `failures()`.

    Raises:
        RequestError: If the source, the declaration or both together cannot be.
        TableError: If the table does not fit the source.
        RecipeMismatchError: If a store is there that was made otherwise, or of other items.
        StoreError: If it cannot be read or written.
    """
    progress = progress or QuietProgress()
    opened = open_source(source, format, key)
    spec = declared.spec()
    if spec is None:
        progress.note(
            f"note: {declared.model} is not in `dinocache encoders`; what is said is taken"
        )
    items = opened.items(table, progress)
    name = resolution_name(declared.resolution)
    if variant:
        name += f"-{check_name(variant, '--variant')}"
    model = spec.name if spec else declared.model
    folder = folder_of(root).within(
        f"{check_name(dataset, '--dataset')}/{model_folder(model)}/{name}"
    )
    job = _Import(opened, declared, spec, items, progress)
    store = FeatureStore(folder) if folder.exists(HEADER) else None
    if store is None:
        create_store(folder, job.header(dataset, variant, unit_rows))
        # Another process may have been first: from here on what is on the disk holds.
        store = FeatureStore(folder)
    job.check(store)
    return job.run(StoreWriter(store), retry_failed=retry_failed)


# The import


@dataclass(frozen=True)
class _Seen:
    """What the header of an item's file says; of one that cannot be opened, why."""

    n_rows: int = 1
    dim: int = 0
    columns: Columns = ()
    said: Mapping[str, str] = field(default_factory=dict)
    reason: str = ""


class _Import:
    """Features of others on their way into a store."""

    def __init__(
        self,
        source: ForeignSource,
        declared: Declared,
        spec: EncoderSpec | None,
        items: pd.DataFrame,
        progress: Progress,
    ) -> None:
        self.source, self.declared, self.spec = source, declared, spec
        self.items, self.progress = items, progress
        self.paths = {str(i): str(p) for i, p in zip(items["item_id"], items["path"], strict=True)}
        self._seen: dict[str, _Seen] = {}

    # What it is to be

    def header(self, dataset: str, variant: str, unit_rows: int | None) -> Header:
        """Describe a new store, from the headers of all files."""
        seen = self.look(list(self.paths))
        recipe = self.recipe(self._width(seen), _most(s.columns for s in seen if s.columns))
        return Header(
            dataset=dataset,
            variant=variant,
            recipe=recipe,
            digest=recipe.digest,
            grid=make_grid([s.n_rows for s in seen], unit_rows=unit_rows, batch=1),
            execution=Execution(device="cpu", threads=1, compiled=False),
            provenance={
                "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                "imported_from": self.source.name,
                "platform": platform.platform(terse=True),
                "python": platform.python_version(),
                **_made_by(),
            },
        )

    def look(self, item_ids: Sequence[str]) -> list[_Seen]:
        """Read the headers of some items, each once; refuse random weights nobody spoke of."""
        for item_id in item_ids:
            if item_id not in self._seen:
                self._seen[item_id] = self._look(item_id)
        seen = [self._seen[item_id] for item_id in item_ids]
        for item_id, one in zip(item_ids, seen, strict=True):
            drawn = one.said.get("weights", "").removeprefix("declared:")
            if drawn.startswith("random:") and not self.declared.weights.startswith("random:"):
                raise RequestError(
                    f"{self.paths[item_id]} says that its weights are {drawn}: declare that "
                    f"(--weights {drawn}), so that every result says it, too"
                )
        self._note_tiles(seen)
        return seen

    def _look(self, item_id: str) -> _Seen:
        try:
            item = self.source.open(self.paths[item_id], item_id)
        except ItemError as exc:
            return _Seen(reason=str(exc))
        return _Seen(item.n_rows, item.dim, item.columns, item.said)

    def _note_tiles(self, seen: Sequence[_Seen]) -> None:
        sides = Counter(one.said["patch_size"] for one in seen if "patch_size" in one.said)
        other = [side for side in sides if side != str(self.declared.tile_px)]
        if self.declared.tile_px is not None and other:
            self.progress.note(
                f"warning: {sum(sides[side] for side in other)} files say patch_size {other[0]}, "
                f"declared is tile_px {self.declared.tile_px}"
            )

    def _width(self, seen: Sequence[_Seen]) -> int:
        widths = Counter(one.dim for one in seen if not one.reason)
        if not widths:
            raise RequestError(
                f"none of the {len(seen)} items of {self.source.name} can be used; the first: "
                f"{seen[0].reason}"
            )
        found = widths.most_common(1)[0][0]
        expected, whose = self.declared.dim, "declared"
        if self.spec is not None:
            expected, whose = self.spec.dim, f"that of {self.spec.name}"
            if self.declared.kind == "embed":
                expected = self.spec.embed_dim or self.spec.dim
            if self.declared.dim not in (None, expected):
                raise RequestError(f"dim {self.declared.dim} was declared; {whose} is {expected}")
        if expected is not None and found != expected:
            raise RequestError(
                f"the features of {self.source.name} are {found} wide; {expected} is {whose}. Is "
                "the model, or the kind, another?"
            )
        return found

    def recipe(self, width: int, columns: Columns) -> Recipe:
        """Write down what was said, where a recipe of extracted features has what is known."""
        said, spec = self.declared, self.spec
        is_embed = said.kind == "embed"
        encoder = EncoderRecipe(
            name=spec.name if spec else said.model,
            weights=WeightsRecipe.declared(said.weights or said.model),
            rope=None,
            vectors=(said.kind,),
            dim=spec.dim if spec else width,
            # Of an unknown encoder no map can be asked for: one layer, whose one patch is all.
            patch_px=spec.patch_px if spec else max(said.resolution),
            depth=spec.depth if spec else 1,
            pyramid=spec.pyramid if spec else (),
            embed_dim=(spec.embed_dim if spec else width) if is_embed else None,
        )
        return Recipe(
            encoder=encoder,
            input=InputRecipe(
                resolution=said.resolution,
                channels=spec.channels if spec else 3,
                mean=spec.mean if spec else (0.0, 0.0, 0.0),
                std=spec.std if spec else (1.0, 1.0, 1.0),
            ),
            reader=ReaderRecipe(
                name=_READER,
                options={
                    "format": self.source.format,
                    "key": self.source.key,
                    "declared": said.to_options(),
                },
                columns=columns,
            ),
            precision="fp32",
        )

    def check(self, store: FeatureStore) -> None:
        """Refuse a store that was made otherwise, or of other items."""
        there = store.header.recipe
        kind, encoder = self.declared.kind, there.encoder
        width = encoder.embed_dim or encoder.dim if kind == "embed" else encoder.dim
        differences = there.differences(self.recipe(width, there.reader.columns))
        if differences:
            listed = "; ".join(
                f"{field}: {ours} in the store, {theirs} declared now"
                for field, (ours, theirs) in differences.items()
            )
            raise RecipeMismatchError(
                f"{store.folder} was made by another recipe ({listed}). Declare the same to go on "
                "with it, or give this import a folder of its own with --variant NAME"
            )
        if store.items.empty:
            return
        ours, theirs = (t.set_index("item_id")["path"] for t in (store.items, self.items))
        if not ours.sort_index().equals(theirs.sort_index()):
            raise RecipeMismatchError(
                f"{store.folder} holds {len(ours)} items; {len(theirs)} are given now, of which "
                f"{len(ours.index.intersection(theirs.index))} have the same item_id. Give these "
                "a store of their own, by another --dataset"
            )
        if not same_labels(store.items, self.items):
            raise RecipeMismatchError(
                f"{store.folder}: the other columns of the items differ. To change targets, groups "
                f"or splits: dinocache relabel {store.folder} TABLE, whose column 'path' is the "
                f"store's own, as {ours.iloc[0]}"
            )

    # Doing it

    def run(self, writer: StoreWriter, *, retry_failed: bool) -> FeatureStore:
        """Do what is missing; gives the store."""
        kinds = (
            self.declared.kind,
            *([COORD] if writer.store.header.recipe.reader.columns else []),
        )
        if writer.store.items.empty:
            writer.put_items(self.items)
        if unplanned := writer.store.unplanned():
            self._plan(writer, unplanned)
        elif retry_failed and not writer.store.missing(kinds) and writer.store.failures():
            self._plan(writer, [one.item_id for one in writer.store.failures()])
        if writer.store.missing(kinds):
            writer.prepare(kinds)
        self._do_units(writer, kinds)
        writer.reload()
        kind = self.declared.kind
        for segment in writer.store.segments:
            if not writer.store.is_committed(segment.closing_name, f"{ITEM_PREFIX}{kind}"):
                close_segment(writer, segment, kind, _made_by())
        writer.seal()
        return writer.store

    def _plan(self, writer: StoreWriter, item_ids: Sequence[str]) -> None:
        store, stamps = writer.store, dict[str, Stamp | None]()
        rows = [one.n_rows for one in self.look(item_ids)]
        for item_id in item_ids:
            path = self.paths[item_id]
            if path not in stamps:
                stamps[path] = stamp_of([self.source.data / path])
        writer.add_segment(
            make_segment(
                list(zip(item_ids, rows, strict=True)),
                store.header.grid,
                recipe=store.header.digest,
                after=store.segments[-1] if store.segments else None,
                stamps=[stamps[self.paths[item_id]] for item_id in item_ids],
            )
        )

    def _do_units(self, writer: StoreWriter, kinds: Sequence[str]) -> None:
        store = writer.store
        work = [
            (segment, unit, lacking)
            for segment in store.segments
            for unit in segment.units
            if (lacking := [k for k in kinds if not store.is_committed(unit.name, k)])
        ]
        total = sum(unit.n_rows for segment in store.segments for unit in segment.units)
        self.progress.start(total, total - sum(unit.n_rows for _, unit, _ in work))
        try:
            for segment, unit, lacking in work:
                self._do_unit(writer, segment, unit, lacking)
        finally:
            self.progress.stop()

    def _do_unit(
        self, writer: StoreWriter, segment: Segment, unit: Unit, kinds: Sequence[str]
    ) -> None:
        blocks = {
            kind: np.full((unit.n_rows, *layout.tail), np.nan, layout.dtype)
            for kind in kinds
            for layout in [writer.layout(kind)]
        }
        failed: dict[str, Failure] = {}
        unplaced: list[str] = []
        notes: dict[str, tuple[str, ...]] = {}
        for position, row, offset, n_rows in segment.pieces(unit):
            item_id = segment.item_ids[position]
            whole = segment.item_rows[position]
            try:
                found = self._piece(writer, item_id, whole, offset, n_rows)
            except ItemError as exc:
                path = self.paths[item_id]
                failed[item_id] = Failure(reason=str(exc), reader=_READER, path=path)
                continue
            if found.said:
                notes[item_id] = (found.said,)
            if found.coords is None:
                unplaced.append(item_id)
            for kind, block in blocks.items():
                values = found.coords if kind == COORD else found.values
                if values is not None:
                    block[row - unit.row_start :][:n_rows] = values
        written = 0
        for kind, block in blocks.items():
            empty = bool(np.isnan(block).all())
            objects = {} if empty else writer.write_rows(kind, unit.row_start, block)
            written += sum(stored.bytes for stored in objects.values())
            writer.commit(
                Record(
                    unit=unit.name,
                    kind=kind,
                    recipe=segment.recipe,
                    rows=(unit.row_start, unit.row_start + unit.n_rows),
                    items=unit.n_items,
                    failed=failed,
                    not_asked=tuple(unplaced) if kind == COORD else (),
                    notes=notes,
                    objects=objects,
                    made_by=_made_by(),
                )
            )
        self.progress.advance(unit.n_rows, written, {})

    def _piece(
        self, writer: StoreWriter, item_id: str, whole: int, offset: int, n_rows: int
    ) -> "_Piece":
        """Read some rows of an item, as they are stored.

        Raises:
            ItemError: If they cannot be read or kept.
        """
        item = self.source.open(self.paths[item_id], item_id)
        (width,) = writer.layout(self.declared.kind).tail
        columns = writer.store.header.recipe.reader.columns
        if item.n_rows != whole:
            raise ItemError(f"it has {item.n_rows} rows; {whole} were planned when it was imported")
        if item.dim != width:
            raise ItemError(f"its vectors are {item.dim} wide, those of the store {width}")
        if item.columns not in ((), columns):
            raise ItemError(f"its coordinates are {item.columns}, those of the store {columns}")
        stop = offset + n_rows
        with translated("it cannot be read"):
            values = item.rows(offset, stop)
            coords = item.coords(offset, stop) if item.columns and columns else None
        largest = np.abs(values).max()
        if not largest <= _FLOAT16_MAX:  # also for NaN
            raise ItemError(
                f"a feature of {largest:.6g} does not fit float16 (at most {_FLOAT16_MAX:.0f})"
                if _FLOAT16_MAX < largest < np.inf
                else "features are NaN or infinite"
            )
        if coords is not None and not np.isfinite(coords).all():
            raise ItemError("coordinates are NaN or infinite")
        said = ", ".join(f"{key}={value}" for key, value in item.said.items())
        return _Piece(values, coords, f"its file says {said}" if said else "")


@dataclass(frozen=True)
class _Piece:
    values: Floats
    coords: npt.NDArray[np.float64] | None
    said: str


def _most(found: Iterator[Columns]) -> Columns:
    counted = Counter(found).most_common(1)
    return counted[0][0] if counted else ()


def _made_by() -> dict[str, str]:
    return {"dinocache": __version__, "numpy": importlib.metadata.version("numpy")}
