"""Features that others extracted, made a store: HDF5 of TRIDENT and CLAM, .pt, .npy, .npz.

See docs/formats.md. What made such features is not known here, only declared by whoever imports
them; the store's recipe says so, and its digest is never that of an extracted store.

Files of others are data: no pickle is executed, no link is followed, and what a file claims to hold
is held against its size before memory is taken. HDF5 gives the header and the places of the chunks;
bytes are read and decoded here, as in `dinocache.readers.hdf5`, whose reasons are the same.
"""

import datetime
import importlib.metadata
import json
import math
import platform
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd

from dinocache import __version__
from dinocache.closing import close_segment
from dinocache.encoders import encoder_spec
from dinocache.errors import ItemError, RecipeMismatchError, RequestError, TableError
from dinocache.exporting import possible_names
from dinocache.items import check_name, is_reserved, normalise, same_labels
from dinocache.layout import COORD, HEADER, ITEM_PREFIX, VECTOR_KINDS
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

__all__ = ["SOURCE_FORMATS", "Declared", "SourceFormat", "import_features"]

SourceFormat = Literal["auto", "hdf5", "pt", "npy", "npz"]
SOURCE_FORMATS: tuple[str, ...] = get_args(SourceFormat)

Floats = npt.NDArray[np.floating[Any]]
Columns = tuple[tuple[str, str], ...]

_READER = "imported"
_SUFFIXES = {"hdf5": (".h5", ".hdf5", ".hdf"), "pt": (".pt", ".pth"), "npz": (".npz",)}
_LEVEL0: Columns = (("x", "level-0 px"), ("y", "level-0 px"))
_FLOAT16_MAX = 65504.0
_KEYS = ("features", "feats", "embeddings", "embedding", "x")
_TABLES = (".csv", ".tsv", ".parquet")
_TEXT_COLUMNS = ("item_id", "path", "group", "split")

_MAX_DIM = 1 << 16
"""As `Recipe.from_body` takes, of sides, too."""
_MAX_ROWS = 1 << 31
_MAX_ARRAY = 1 << 36
_MAX_CHUNK = 1 << 30
_MAX_CHUNKS = 1 << 24
_MAX_COLUMNS = 8
_MAX_TEXT = 1 << 16
_RATIO = 1100
"""Deflate makes at most 1032 bytes of one."""
_GZIP, _SHUFFLE = 1, 2
_SAID = {
    "": ("dataset", "weights", "digest"),
    "features": ("encoder",),
    "coords": (
        "patch_size",
        "patch_size_level0",
        "overlap",
        "level0_magnification",
        "target_magnification",
        "target_mpp",
        "patch_level",
    ),
}
"""Attributes of HDF5 files that are noted: of the root, of the features, of the coordinates."""


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
            if any(v is not None and not 0 < v <= _MAX_DIM for v in values):
                raise RequestError(f"{what} {values}: must be from 1 to {_MAX_DIM}")
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
    opened = _open_source(source, format, key)
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
        source: "_Source",
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
                f"or splits: dinocache relabel {store.folder} TABLE"
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


# Sources


class _Item(ABC):
    """The features of one item, in the file of others.

    Attributes:
        n_rows: At least 1.
        dim: Width of a vector.
        columns: (name, unit) of the coordinates; empty where there are none.
        said: What the file says of how it was made.
    """

    n_rows: int
    dim: int
    columns: Columns = ()
    said: Mapping[str, str] = {}

    @abstractmethod
    def rows(self, start: int, stop: int) -> Floats:
        """Read (rows, dim)."""

    def coords(self, start: int, stop: int) -> npt.NDArray[np.float64]:
        """Read (rows, columns) of an item that has coordinates."""
        raise NotImplementedError


class _ArrayItem(_Item):
    """An item whose arrays are at hand, or mapped."""

    def __init__(
        self,
        values: Any,  # noqa: ANN401 - an array, or a tensor
        *,
        shape: tuple[int, int],
        coords: npt.NDArray[Any] | None = None,
        columns: Columns = (),
        said: Mapping[str, str] | None = None,
        convert: Callable[[Any], Floats] = np.asarray,
    ) -> None:
        self._values, self._coords, self._convert = values, coords, convert
        self.n_rows, self.dim = shape
        self.columns = columns if coords is not None else ()
        self.said = said or {}

    def rows(self, start: int, stop: int) -> Floats:
        return self._convert(self._values[start:stop])

    def coords(self, start: int, stop: int) -> npt.NDArray[np.float64]:
        if self._coords is None:
            raise AssertionError("it has no coordinates")
        return self._coords[start:stop].astype(np.float64)


class _Source(ABC):
    """Where features of others are.

    Attributes:
        data: Folder that paths of items are relative to.
        name: For messages, and the store's provenance.
        format: As `SourceFormat`.
        key: Name of the features within a file, where one was given.
    """

    def __init__(self, path: Path, format: str, key: str | None) -> None:
        self.name, self.format, self.key = path.name or str(path), format, key
        self.data = path if path.is_dir() else path.parent

    @abstractmethod
    def items(self, table: Path | None, progress: Progress) -> pd.DataFrame:
        """List the items; `path` is the file of each."""

    @abstractmethod
    def open(self, path: str, item_id: str) -> _Item:
        """Open an item, after seeing that its file is what it should be.

        Raises:
            ItemError: If it is not.
        """


def _open_source(source: Path, format: str, key: str | None) -> _Source:
    if format not in SOURCE_FORMATS:
        raise RequestError(f"format {format!r}: choose from {', '.join(SOURCE_FORMATS)}")
    if source.is_dir():
        return _Folder(source, format, key)
    if not source.is_file():
        raise RequestError(f"there is no file or folder {source}")
    guessed = source.suffix.lower().removeprefix(".")
    wanted = guessed if format == "auto" else format
    if wanted not in ("npy", "npz"):
        raise RequestError(
            f"{source.name}: a source is a folder of .h5, .pt or .npz files, or one .npy or .npz "
            "file with a row an item"
        )
    return _Matrix(source, wanted, key)


class _Folder(_Source):
    """A file an item."""

    def __init__(self, path: Path, format: str, key: str | None) -> None:
        names = sorted(p.name for p in path.iterdir() if not p.name.startswith("."))
        by_format = {
            known: [n for n in names if n.lower().endswith(suffixes) and (path / n).is_file()]
            for known, suffixes in _SUFFIXES.items()
        }
        there = [known for known, found in by_format.items() if found]
        if format == "auto" and len(there) > 1:
            raise RequestError(f"{path.name} has files of {', '.join(there)}; choose with --format")
        format = there[0] if format == "auto" and there else format
        if not by_format.get(format):
            inner = [n for n in ("h5_files", "pt_files") if n in names]
            hint = f"; did you mean its folder {inner[0]}?" if inner else ""
            raise RequestError(f"{path.name} has no .h5, .pt or .npz files of features{hint}")
        super().__init__(path, format, key)
        if format == "hdf5":
            _import_h5py()
        self._files = by_format[format]
        self._open: tuple[str, _Item] | None = None

    def items(self, table: Path | None, progress: Progress) -> pd.DataFrame:
        by_stem: dict[str, str] = {}
        for name in self._files:
            stem = Path(name).stem
            if stem in by_stem:
                raise RequestError(f"{by_stem[stem]} and {name} are one item; move one away")
            by_stem[stem] = name
        if table is None:
            ids = [self._item_id(stem, name) for stem, name in by_stem.items()]
            made = pd.DataFrame({"item_id": ids, "path": list(by_stem.values())})
            return normalise(made, self.data, self.name)
        listed = _read_table(table)
        if "item_id" not in listed and "path" not in listed:
            raise TableError(f"{table.name} has neither a column 'item_id' nor 'path'; add one")
        for column in ("item_id", "path"):
            if column not in listed:
                other = listed["path" if column == "item_id" else "item_id"]
                listed[column] = other.astype("string")
        texts = listed[["item_id", "path"]].astype("string").fillna("").to_numpy(str).tolist()
        paths = [self._path(item_id, path, by_stem) for item_id, path in texts]
        if unlisted := sorted(set(self._files) - set(paths)):
            progress.note(
                f"note: {len(unlisted)} files of {self.name} are in no row of {table.name}, as "
                f"{unlisted[0]}; they are left out"
            )
        return normalise(listed.assign(path=paths), self.data, table.name)

    def _path(self, item_id: str, path: str, by_stem: Mapping[str, str]) -> str:
        """Find the file of a row of the table; one that is missing fails later, by name."""
        suffixes = _SUFFIXES[self.format]
        if path.lower().endswith(suffixes):
            return path
        for stem in (*possible_names(item_id), Path(item_id).stem, Path(path).stem):
            if stem in by_stem:
                return by_stem[stem]
        return f"{possible_names(item_id)[1]}{suffixes[0]}"

    def _item_id(self, stem: str, name: str) -> str:
        """Take the stem, or what an export of ours says that it stands for."""
        if "~" in stem:
            try:
                said = self.open(name, stem).said.get("item_id", "")
            except ItemError:
                return stem
            if stem in possible_names(said):
                return said
        return stem

    def open(self, path: str, item_id: str) -> _Item:
        if self._open is None or self._open[0] != path:
            file = self.data / path
            if not file.is_file():
                raise ItemError("the file is missing")
            if not file.resolve().is_relative_to(self.data.resolve()):
                raise ItemError("it is a link that leads out of its folder; put the file there")
            opener = {"hdf5": _Hdf5Item, "pt": _pt_item, "npz": _npz_item}[self.format]
            with translated("it cannot be read"):
                item = opener(file, self.key)
            self._open = path, item
        return self._open[1]


class _Matrix(_Source):
    """One array with a row an item."""

    def __init__(self, path: Path, format: str, key: str | None) -> None:
        super().__init__(path, format, key)
        self._ids: list[str] | None = None
        self._said: Mapping[str, str] = {}
        try:
            with translated(f"{path.name} cannot be read"):
                self._values: npt.NDArray[Any]
                if format == "npy":
                    self._values = np.lib.format.open_memmap(path, mode="r")
                else:
                    self._values, others = _npz_arrays(path, key, ("item_id", "weights", "digest"))
                    if "item_id" in others:
                        self._ids = [str(i) for i in others["item_id"].reshape(-1).tolist()]
                    self._said = _texts(others, ("weights", "digest"))
                if self._values.ndim != 2:
                    raise ItemError(f"{path.name} is {self._values.shape}; (items, dim) is wanted")
                self._shape = _checked_shape(self._values.shape, self._values.dtype)
        except ItemError as exc:
            raise RequestError(str(exc)) from exc
        if self._ids is not None and len(self._ids) != len(self._values):
            raise RequestError(f"{path.name}: {len(self._ids)} ids, {len(self._values)} rows")
        self._row_of: dict[str, int] = {}
        self._path = path

    def items(self, table: Path | None, progress: Progress) -> pd.DataFrame:
        n_items = len(self._values)
        digits = max(len(str(n_items - 1)), 4)
        ids = self._ids or [f"{number:0{digits}d}" for number in range(n_items)]
        listed = _read_table(table) if table else pd.DataFrame({"item_id": ids})
        name = table.name if table else self.name
        rows = self._rows(listed, name, progress)
        if "item_id" not in listed:
            named = listed["path"].tolist() if "path" in listed else [ids[row] for row in rows]
            listed = listed.assign(item_id=named)
        made = normalise(listed.assign(path=self._path.name), self.data, name)
        self._row_of = dict(zip(made["item_id"].astype(str).tolist(), rows, strict=True))
        return made

    def _rows(self, listed: pd.DataFrame, name: str, progress: Progress) -> list[int]:
        """Say which row of the array each row of the table is."""
        n_items = len(self._values)
        if "row" not in listed:
            by_id = {item_id: row for row, item_id in enumerate(self._ids or [])}
            if self._ids is not None and "item_id" in listed:
                asked = listed["item_id"].astype(str).tolist()
                if lacking := [i for i in asked if i not in by_id]:
                    raise TableError(f"{name}: {self.name} has no item {lacking[0]!r}")
                return [by_id[i] for i in asked]
            if len(listed) != n_items:
                raise TableError(
                    f"{name} has {len(listed)} rows, {self.name} {n_items}; list all in the same "
                    "order, or add a column 'row' that counts from 0"
                )
            return list(range(n_items))
        numbers = pd.to_numeric(listed["row"], errors="coerce")
        sound = numbers.notna() & (numbers % 1 == 0) & (numbers >= 0) & (numbers < n_items)
        if not sound.all() or numbers.duplicated().any():
            raise TableError(
                f"{name}: column 'row' must name rows of {self.name}, from 0 to {n_items - 1}, "
                "each once"
            )
        if len(listed) < n_items:
            progress.note(f"note: {n_items - len(listed)} rows of {self.name} are left out")
        return [int(number) for number in numbers.tolist()]

    def open(self, path: str, item_id: str) -> _Item:
        row = self._row_of[item_id]
        dim = self._shape[1]
        return _ArrayItem(self._values[row : row + 1], shape=(1, dim), said=self._said)


def _read_table(path: Path) -> pd.DataFrame:
    suffix = path.suffix.lower()
    if suffix not in _TABLES:
        raise RequestError(f"{path.name}: a table ends in one of {', '.join(_TABLES)}")
    if not path.is_file():
        raise RequestError(f"there is no table {path}")
    try:
        if suffix == ".parquet":
            table = pd.read_parquet(path)
        else:
            # Identifiers stay text: 00000001 is a patient, not the number one.
            table = pd.read_csv(
                path,
                sep="\t" if suffix == ".tsv" else ",",
                dtype=dict.fromkeys(_TEXT_COLUMNS, "string"),
                encoding="utf-8-sig",
            )
    except (ValueError, OSError, UnicodeDecodeError) as exc:
        raise TableError(f"{path.name} cannot be read as a table: {exc}") from exc
    table.columns = table.columns.map(str)
    if table.empty:
        raise TableError(f"{path.name} has no rows")
    # Images and masks lie elsewhere, and no feature depends on them any more.
    kept = [
        column
        for column in map(str, table.columns)
        if column in _TEXT_COLUMNS or column.startswith("split.") or not is_reserved(column)
    ]
    return table[kept].copy()


def _checked_shape(shape: Sequence[int], dtype: np.dtype[Any]) -> tuple[int, int]:
    """Give (rows, dim) of features that may be (dim,), (rows, dim) or (1, rows, dim)."""
    if dtype.kind != "f" or dtype.itemsize > 8:
        raise ItemError(f"its features are {dtype}; floating-point numbers were expected")
    plain = tuple(int(side) for side in shape)
    if len(plain) == 3 and plain[0] == 1:
        plain = plain[1:]
    if len(plain) == 1:
        plain = (1, *plain) if plain[0] else (0, 1)
    if len(plain) != 2:
        raise ItemError(f"its features are {tuple(shape)}; (rows, dim) or (1, rows, dim) is wanted")
    rows, dim = plain
    if not rows:
        raise ItemError("it has no rows: no tile was kept of it")
    if not 0 < dim <= _MAX_DIM or rows > _MAX_ROWS:
        raise ItemError(f"it claims {rows} rows, {dim} wide")
    return rows, dim


def _checked_columns(shape: Sequence[int], n_rows: int, columns: Columns | None) -> Columns:
    """Give the columns of coordinates that may be (rows, k) or (1, rows, k)."""
    plain = tuple(shape[1:]) if len(shape) == 3 and shape[0] == 1 else tuple(shape)
    if len(plain) != 2 or plain[0] != n_rows or not 0 < plain[1] <= _MAX_COLUMNS:
        raise ItemError(f"its coordinates are {tuple(shape)}, its features {n_rows} rows")
    named = _LEVEL0 if columns is None else columns
    if len(named) != plain[1]:
        raise ItemError(f"its coordinates have {plain[1]} columns; x and y were expected")
    return named


def _parsed_columns(text: str | None) -> Columns | None:
    """Read what an export of ours says of coordinates; None for others, whose are x and y."""
    try:
        listed = json.loads(text) if text else None
        if isinstance(listed, list) and 0 < len(listed) <= _MAX_COLUMNS:
            return tuple((str(name)[:100], str(unit)[:100]) for name, unit in listed)
    except (ValueError, TypeError, RecursionError):
        pass
    return None


# .pt


def _pt_item(path: Path, key: str | None) -> _Item:
    import torch

    size = path.stat().st_size
    zipped = zipfile.is_zipfile(path)
    if zipped:
        with zipfile.ZipFile(path) as file:
            listed = file.infolist()
        if any(info.compress_type != zipfile.ZIP_STORED for info in listed) or size < sum(
            info.file_size for info in listed
        ):
            raise ItemError("it claims to hold more than its size; torch.save writes no such file")
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as exc:
        if "weights_only" in str(exc):
            raise ItemError(
                "it holds more than tensors (a pickle of Python objects), which is not read; save "
                "the tensor alone"
            ) from exc
        raise
    tensor, others = _only_tensor(loaded, key)
    if tensor.device.type != "cpu" or tensor.layout != torch.strided or tensor.is_quantized:
        raise ItemError("its features are no plain tensor")
    if tensor.numel() * tensor.element_size() > size:
        raise ItemError(f"it claims {tuple(tensor.shape)} features in a file of {size} bytes")
    is_bfloat = tensor.dtype == torch.bfloat16
    shape = _checked_shape(
        tensor.shape,
        np.dtype(np.float32) if is_bfloat else np.dtype(str(tensor.dtype).removeprefix("torch.")),
    )
    coords: npt.NDArray[Any] | None = None
    columns: Columns = ()
    placed = others.get("coords")
    if isinstance(placed, torch.Tensor) and tensor.ndim > 1:
        if placed.numel() * placed.element_size() > size or placed.layout != torch.strided:
            raise ItemError(f"it claims {tuple(placed.shape)} coordinates")
        columns = _checked_columns(placed.shape, shape[0], None)
        coords = placed.detach().reshape(shape[0], -1).to(torch.float64).numpy()
    return _ArrayItem(
        tensor.detach().reshape(shape),
        shape=shape,
        coords=coords,
        columns=columns,
        convert=lambda part: (part.float() if is_bfloat else part).numpy(),
    )


def _only_tensor(loaded: object, key: str | None) -> tuple[Any, dict[Any, Any]]:
    """Find the features in what a .pt file holds; gives the rest, too."""
    import torch

    if isinstance(loaded, torch.Tensor) and key is None:
        return loaded, {}
    if not isinstance(loaded, dict):
        raise ItemError(f"it holds a {type(loaded).__name__}; a tensor, or a dict of one is wanted")
    tensors = {k: v for k, v in loaded.items() if isinstance(v, torch.Tensor)}
    floats = [k for k, v in tensors.items() if v.is_floating_point() and k != "coords"]
    return tensors[_chosen_key(tensors, floats, key)], tensors


def _chosen_key(there: Mapping[Any, Any], floats: Sequence[Any], key: str | None) -> Any:  # noqa: ANN401
    """Choose the name of the features: the one given, a usual one, or the only one."""
    if key is not None:
        if key not in there:
            raise ItemError(f"it holds no {key!r}; it has {_listed(there)}")
        return key
    usual = [name for name in _KEYS if name in floats] or list(floats)
    if not usual or (len(usual) > 1 and usual[0] not in _KEYS):
        raise ItemError(f"which are its features? It has {_listed(there)}; name one by --key")
    return usual[0]


def _listed(names: Mapping[Any, Any]) -> str:
    shown = ", ".join(str(name)[:50] for name in list(names)[:8])
    return f"{shown}, ..." if len(names) > 8 else shown or "nothing"


# .npz


def _npz_item(path: Path, key: str | None) -> _Item:
    others = ("coords", "coord_columns", "weights", "digest", "encoder", "item_id")
    values, found = _npz_arrays(path, key, others)
    shape = _checked_shape(values.shape, values.dtype)
    coords = found.get("coords")
    columns: Columns = ()
    if coords is not None and values.ndim > 1:
        if coords.dtype.kind not in "iuf":
            raise ItemError(f"its coordinates are {coords.dtype}")
        named = found.get("coord_columns")
        listed = None if named is None else json.dumps(named.tolist())
        columns = _checked_columns(coords.shape, shape[0], _parsed_columns(listed))
        coords = coords.reshape(shape[0], -1)
    said = _texts(found, ("encoder", "weights", "digest", "item_id"))
    return _ArrayItem(values.reshape(shape), shape=shape, coords=coords, columns=columns, said=said)


def _npz_arrays(
    path: Path, key: str | None, others: Sequence[str]
) -> tuple[npt.NDArray[Any], dict[str, npt.NDArray[Any]]]:
    """Read the features of an .npz file, and those others that it has."""
    with zipfile.ZipFile(path) as file:
        members = {i.filename.removesuffix(".npy"): i for i in file.infolist()}
        heads = {name: _npy_head(file, info) for name, info in members.items()}
        floats = [
            name
            for name, (shape, dtype) in heads.items()
            if dtype.kind == "f" and len(shape) and name not in others
        ]
        if key is None and not any(name in floats for name in _KEYS):
            kinds = [name for name in floats if name in VECTOR_KINDS]
            floats = kinds if len(kinds) == 1 else floats
        chosen = _chosen_key(heads, floats, key)
        values = _npy(file, members[chosen], heads[chosen])
        found = {n: _npy(file, members[n], heads[n]) for n in others if n in members}
    return values, found


def _npy_head(
    file: zipfile.ZipFile, info: zipfile.ZipInfo
) -> tuple[tuple[int, ...], np.dtype[Any]]:
    with file.open(info) as member:
        version = np.lib.format.read_magic(member)
        if version not in ((1, 0), (2, 0)):
            raise ItemError(f"{info.filename} is of .npy version {version}, which is not read")
        first = version == (1, 0)
        read = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(member)
    return shape, dtype


def _npy(
    file: zipfile.ZipFile, info: zipfile.ZipInfo, head: tuple[tuple[int, ...], np.dtype[Any]]
) -> npt.NDArray[Any]:
    """Read one array, after holding what it claims against the file."""
    shape, dtype = head
    if dtype.hasobject:
        raise ItemError(f"{info.filename} holds Python objects (a pickle), which are not read")
    n_bytes = math.prod(shape) * dtype.itemsize
    packed = info.compress_size * (1 if info.compress_type == zipfile.ZIP_STORED else _RATIO)
    if n_bytes > min(info.file_size, packed, _MAX_ARRAY):
        raise ItemError(f"{info.filename} claims {n_bytes} bytes and holds {info.compress_size}")
    with file.open(info) as member:
        array: npt.NDArray[Any] = np.lib.format.read_array(member, allow_pickle=False)
    return array


def _texts(found: Mapping[str, npt.NDArray[Any]], names: Sequence[str]) -> dict[str, str]:
    return {
        name: _short(str(found[name][()]))
        for name in names
        if name in found and found[name].dtype.kind == "U" and found[name].ndim == 0
    }


def _short(text: str) -> str:
    return " ".join(text.split())[:200]


# HDF5


def _import_h5py() -> Any:  # noqa: ANN401 - h5py comes late
    try:
        import h5py
    except ModuleNotFoundError as exc:
        raise RequestError(
            "this format needs h5py, which is not installed: pip install 'dinocache[export]'"
        ) from exc
    return h5py


class _Hdf5Item(_Item):
    """A file of TRIDENT, of CLAM, or an export of ours."""

    def __init__(self, path: Path, key: str | None) -> None:
        h5py = _import_h5py()
        size = path.stat().st_size
        # No lock: the file may lie on read-only media.
        with h5py.File(path, "r", locking=False) as file:
            names = [str(name) for name, _ in zip(file, range(1000), strict=False)]
            chosen = _chosen_key(dict.fromkeys(names), [n for n in names if n != "coords"], key)
            found = _data_set(file, chosen)
            self.n_rows, self.dim = _checked_shape(found.shape, found.dtype)
            self._values = _Stored(found, path, size)
            self._coords: _Stored | None = None
            self.said = _hdf5_texts(file, _SAID[""]) | _hdf5_texts(found, _SAID["features"])
            if "coords" in names and found.ndim > 1:
                placed = _data_set(file, "coords")
                if placed.dtype.kind not in "iuf":
                    raise ItemError(f"its coordinates are {placed.dtype}")
                named = _parsed_columns(_hdf5_texts(placed, ("columns",), None).get("columns"))
                self.columns = _checked_columns(placed.shape, self.n_rows, named)
                self._coords = _Stored(placed, path, size)
                self.said |= _hdf5_texts(placed, _SAID["coords"])
            if item_id := _hdf5_texts(file, ("item_id",), None):
                self.said |= item_id

    def rows(self, start: int, stop: int) -> Floats:
        return self._values.read(start, stop)

    def coords(self, start: int, stop: int) -> npt.NDArray[np.float64]:
        if self._coords is None:
            raise AssertionError("it has no coordinates")
        return self._coords.read(start, stop).astype(np.float64)


def _data_set(file: Any, name: str) -> Any:  # noqa: ANN401 - h5py comes late
    """Give a data set of numbers that lies in this file, and nowhere else."""
    import h5py

    link = file.get(name, getlink=True)
    if link is None:
        raise ItemError(f"it has no data set {name!r}")
    if not isinstance(link, h5py.HardLink):
        raise ItemError(f"{name!r} is a link, which is not followed; make a copy that holds it")
    found = file[name]
    if not isinstance(found, h5py.Dataset) or found.shape is None:
        raise ItemError(f"{name!r} is no data set")
    if found.is_virtual or found.external:
        raise ItemError(f"{name!r} keeps its values in another file; make a copy that holds them")
    stored = found.id.get_type()
    if found.dtype.kind not in "iuf" or found.dtype.itemsize > 8:
        raise ItemError(f"{name!r} holds {found.dtype}; numbers were expected")
    if stored.get_size() != found.dtype.itemsize or stored.get_precision() != 8 * stored.get_size():
        raise ItemError(f"{name!r} holds numbers of {stored.get_precision()} bits")
    return found


class _Stored:
    """A data set of one, two or three axes (the first of one), read as (rows, columns)."""

    def __init__(self, found: Any, path: Path, size: int) -> None:  # noqa: ANN401 - as above
        self._path, self._dtype = path, found.dtype
        self._rows, self._columns = _two_axes(found.shape)
        self._whole: npt.NDArray[Any] | None = None
        self._last: tuple[int, npt.NDArray[Any]] | None = None
        self._offsets: npt.NDArray[np.int64] | None = None
        claimed = self._rows * self._columns * self._dtype.itemsize
        if found.chunks is not None:
            self._note_chunks(found, size)
            return
        self._filters: tuple[int, ...] = ()
        self._chunk, self._full = (1, self._columns), (1, self._columns)
        stored, offset = found.id.get_storage_size(), found.id.get_offset()
        if stored != claimed or claimed > size:
            raise ItemError(
                f"{found.name} claims {claimed} bytes, {stored} are stored in a file of {size}"
            )
        if offset is None:  # within the header: 64 KiB at most
            self._whole = np.asarray(found[()]).reshape(self._rows, self._columns)
            return
        if offset + stored > size:
            raise ItemError(f"{found.name} lies outside of the file")
        self._start = offset

    def _note_chunks(self, found: Any, size: int) -> None:  # noqa: ANN401 - as above
        """Look up where chunks lie, and hold them against the file."""
        plist = found.id.get_create_plist()
        filters = tuple(plist.get_filter(i)[0] for i in range(plist.get_nfilters()))
        if unknown := [f for f in filters if f not in (_GZIP, _SHUFFLE)]:
            raise ItemError(
                f"{found.name} is packed by filter {unknown[0]} of HDF5, which is not read; "
                "`h5repack -f GZIP=1` makes a copy that is"
            )
        if len(set(filters)) < len(filters):
            raise ItemError(f"{found.name} is packed by one filter several times over")
        self._filters, self._full = filters, tuple(found.chunks)
        self._chunk = _two_axes(found.chunks)
        chunk_bytes = math.prod(self._full) * self._dtype.itemsize
        down, across = -(-self._rows // self._chunk[0]), -(-self._columns // self._chunk[1])
        written = found.id.get_num_chunks()
        if written != down * across or written > _MAX_CHUNKS or chunk_bytes > _MAX_CHUNK:
            raise ItemError(
                f"{found.name} claims {down * across} chunks of {chunk_bytes} bytes, {written} "
                "were written"
            )
        self._across = across
        offsets = np.full(written, -1)
        self._sizes, self._masks = np.zeros(written, np.int64), np.zeros(written, np.int64)

        def note(chunk: Any) -> None:  # noqa: ANN401 - h5py's StoreInfo
            corner = tuple(chunk.chunk_offset)
            if len(corner) == 3 and corner[0] == 0:
                corner = corner[1:]
            elif len(corner) == 1:
                corner = (0, *corner)
            row, column = corner
            number = row // self._chunk[0] * across + column // self._chunk[1]
            outside = chunk.byte_offset is None or chunk.byte_offset + chunk.size > size
            if outside or not (0 <= row < self._rows and 0 <= column < self._columns):
                raise ItemError(f"a chunk of {found.name} lies outside of it")
            packed = _GZIP in self._filters and not chunk.filter_mask >> filters.index(_GZIP) & 1
            if chunk.size * (_RATIO if packed else 1) < chunk_bytes or (
                not packed and chunk.size != chunk_bytes
            ):
                raise ItemError(f"a chunk of {chunk.size} bytes cannot hold {chunk_bytes}")
            offsets[number], self._sizes[number] = chunk.byte_offset, chunk.size
            self._masks[number] = chunk.filter_mask

        found.id.chunk_iter(note)
        if (offsets < 0).any():
            raise ItemError(f"chunks of {found.name} are missing")
        self._offsets = offsets

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Read (rows, columns) in the machine's order of bytes.

        Raises:
            ItemError: If they are damaged.
        """
        if self._whole is not None:
            return self._whole[start:stop].astype(self._dtype.newbyteorder("="))
        with self._path.open("rb") as file:
            if self._offsets is None:
                line = self._columns * self._dtype.itemsize
                data = _read_at(file, self._start + start * line, (stop - start) * line)
                found = np.frombuffer(data, self._dtype).reshape(stop - start, self._columns)
                return found.astype(self._dtype.newbyteorder("="))
            deep, wide = self._chunk
            out = np.empty((stop - start, self._columns), self._dtype.newbyteorder("="))
            for top in range(start - start % deep, stop, deep):
                low, high = max(top, start), min(top + deep, stop)
                for left in range(0, self._columns, wide):
                    chunk = self._decoded(file, top // deep * self._across + left // wide)
                    target = out[low - start : high - start, left : left + wide]
                    target[...] = chunk[low - top : high - top, : target.shape[1]]
            return out

    def _decoded(self, file: Any, number: int) -> npt.NDArray[Any]:  # noqa: ANN401
        if self._last is not None and self._last[0] == number:
            return self._last[1]
        if self._offsets is None:
            raise AssertionError("it has no chunks")
        data = _read_at(file, int(self._offsets[number]), int(self._sizes[number]))
        n_bytes = math.prod(self._full) * self._dtype.itemsize
        for place, which in reversed(list(enumerate(self._filters))):
            if int(self._masks[number]) >> place & 1:
                continue
            if which == _GZIP:
                data = zlib.decompressobj().decompress(data, n_bytes + 1)
            else:
                data = _unshuffled(data, self._dtype.itemsize)
        if len(data) != n_bytes:
            raise ItemError(f"a chunk of {len(data)} bytes, not {n_bytes}")
        chunk = np.frombuffer(data, self._dtype).reshape(self._full)
        if chunk.ndim == 3:
            chunk = chunk[0]
        self._last = number, chunk.reshape(self._chunk)
        return self._last[1]


def _two_axes(shape: Sequence[int]) -> tuple[int, int]:
    """Give (rows, columns) of (columns,), (rows, columns) or (any, rows, columns)."""
    rows, columns = (1, *shape)[-2:]
    return int(rows), int(columns)


def _read_at(file: Any, offset: int, n_bytes: int) -> bytes:  # noqa: ANN401 - a binary file
    file.seek(offset)
    data: bytes = file.read(n_bytes)
    if len(data) != n_bytes:
        raise ItemError("the file became shorter while it was read")
    return data


def _unshuffled(data: bytes, width: int) -> bytes:
    """Undo HDF5's shuffle; bytes that fill no whole value stay as they are."""
    count = len(data) // width
    planes = np.frombuffer(data, np.uint8, count * width).reshape(width, count)
    return planes.T.tobytes() + data[count * width :]


def _hdf5_texts(
    holder: Any,  # noqa: ANN401 - h5py comes late
    names: Sequence[str],
    most: int | None = 200,
) -> dict[str, str]:
    """Read some attributes that are one text or one number."""
    import h5py

    found = {}
    for name in names:
        if name not in holder.attrs:
            continue
        attribute = h5py.h5a.open(holder.id, name.encode())
        if attribute.shape not in ((), (1,)) or attribute.get_storage_size() > _MAX_TEXT:
            continue
        value = holder.attrs[name]
        if isinstance(value, np.ndarray):
            value = value.ravel()[0]
        if isinstance(value, bytes):
            value = value.decode("utf-8", "replace")
        if isinstance(value, str | int | float | np.number | np.bool_):
            text = str(value)
            found[name] = text[:_MAX_TEXT] if most is None else _short(text)
    return found
