"""A store's vectors in the formats of others: HDF5 as TRIDENT and CLAM, .npz, Parquet, .h5ad, CSV.

See docs/formats.md. Each file says which recipe and which weights made its numbers.

References:
    TRIDENT: mahmoodlab/TRIDENT a91fa84, `trident/IO.py` (`save_h5`, `coords_to_h5`) and
    `trident/wsi_objects/WSI.py` (`extract_patch_features`): names of data sets and attributes.
    CLAM: mahmoodlab/CLAM 53e2409, `extract_features_fp.py`, `utils/file_utils.py`. .h5ad: the
    on-disk format of anndata, encodings `anndata` 0.1.0, `dataframe` and `array` 0.2.0.
"""

import contextlib
import hashlib
import io
import os
import re
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd

from dinocache import __version__
from dinocache.documents import canonical
from dinocache.durable import PARTIAL_SUFFIX, flush_folder, make_folder, replace_durably, writing
from dinocache.errors import RequestError, StoreIncompleteError
from dinocache.layout import COORD, VECTOR_KINDS, is_vector_kind, parse_kind
from dinocache.places import Where
from dinocache.recipe import Recipe
from dinocache.spreadsheets import as_text, write_csv
from dinocache.store import FeatureStore

__all__ = ["FORMATS", "Format", "export", "file_names", "possible_names"]

Format = Literal["hdf5", "npz", "parquet", "anndata", "csv"]
FORMATS: tuple[str, ...] = get_args(Format)

Vectors = dict[str, npt.NDArray[np.float32]]

_CHUNK_BYTES = 1 << 20
_LEAST_CHUNK_ROWS = 16
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=-]{0,119}(?<!\.)")
_DEVICE_NAME = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?")
_READABLE = 60
_HASHED = 20
"""Hex digits of a sha256 behind a name that was changed: two of 10**9 do not meet."""


def export(
    where: Where,
    out: Path,
    *,
    format: Format,
    kinds: Sequence[str] | None = None,
    items: Iterable[str] | None = None,
    dtype: Literal["float32", "float16"] = "float32",
    rows: bool = False,
    vectors: bool = False,
    csv: bool = False,
) -> Iterator[Path]:
    """Write a store's vectors in a format of others. Nothing is written before the first is asked.

    Args:
        where: The store: a path or a URL.
        out: A folder, which need not exist; files of the same names are replaced.
        format: `hdf5`: a file an item; `npz`, `parquet`, `anndata`: `features.npz`, `.parquet`,
            `.h5ad` of all items; `csv`: the item table, `items.csv`.
        kinds: Kinds of vector; by default all of the store, for `hdf5` the one that the encoder's
            publisher uses.
        items: Ids of some items; by default all. Those that failed are left out.
        dtype: Of rows, in `hdf5` and in the .npz files of `rows`; vectors of items are float32.
        rows: For `npz`: besides, the rows of each item, as `rows/<item>.npz`.
        vectors: For `csv`: whether the vectors are columns of the table.
        csv: For the others: besides, the item table as `items.csv`.

    Returns:
        Yields each file once it is whole and on the disk.

    Raises:
        RequestError: If the format, a kind or an item is unknown, or a library is missing.
        StoreError: If the store cannot be read or a kind of it is not complete.
        StoreWriteError: If the disk refuses.
    """
    if format not in FORMATS:
        raise RequestError(f"format {format!r}: choose from {', '.join(FORMATS)}")
    if dtype not in ("float32", "float16"):
        raise RequestError(f"dtype {dtype!r}: choose from float32, float16")
    if format in ("hdf5", "anndata"):
        _check_h5py()
    with_vectors = format != "csv" or vectors
    chosen = _Chosen.of(where, kinds, items, with_vectors=with_vectors, one=format == "hdf5")
    return _written(chosen, out, format, dtype=dtype, rows=rows, vectors=vectors, csv=csv)


def file_names(item_ids: Iterable[str]) -> dict[str, str]:
    """Name a file, without its suffix, for each of some items; no two are the same on any system.

    Args:
        item_ids: All ids of a store, each once.

    Returns:
        Id -> the id itself where every system takes it as a name and no other differs from it by
        upper and lower case alone; else what of it can be read, `~`, and 20 hex digits of the
        sha256 of the id.
    """
    ids = list(item_ids)
    folded = Counter(item_id.casefold() for item_id in ids)
    names = {i: i if _is_plain(i) and folded[i.casefold()] == 1 else _hashed(i) for i in ids}
    if len({name.casefold() for name in names.values()}) != len(names):
        raise AssertionError("two items have one file name")
    return names


def possible_names(item_id: str) -> tuple[str, str]:
    """Give both names that `file_names` may choose for an item."""
    return item_id, _hashed(item_id)


def _is_plain(text: str) -> bool:
    return bool(_PLAIN_NAME.fullmatch(text)) and not _DEVICE_NAME.fullmatch(text)


def _hashed(text: str) -> str:
    readable = re.sub(r"[^A-Za-z0-9_+=-]+", "_", text)[:_READABLE].lstrip("-")
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{readable or '_'}~{digest[:_HASHED]}"


# What is asked


@dataclass(frozen=True, kw_only=True)
class _Chosen:
    """What of a store is exported.

    Attributes:
        store: It.
        kinds: Of vectors, the first one first.
        table: Item table of those that are there.
        failed: Id -> why it is not.
        names: Id -> the stem of its file.
        facts: What each file says of itself.
    """

    store: FeatureStore
    kinds: tuple[str, ...]
    table: pd.DataFrame
    failed: dict[str, str]
    names: dict[str, str]
    facts: dict[str, str | bool]

    @classmethod
    def of(
        cls,
        where: Where,
        kinds: Sequence[str] | None,
        items: Iterable[str] | None,
        *,
        with_vectors: bool,
        one: bool,
    ) -> "_Chosen":
        """Open a store and settle what is asked of it; `one` takes one kind if none is named."""
        store = FeatureStore(where)
        if isinstance(kinds, str) or isinstance(items, str):
            raise RequestError("kinds and items are lists of names, not one text")
        table = _some(store, items)
        names = file_names(store.items["item_id"].tolist())
        chosen = _kinds(store, kinds, one=one) if with_vectors else ()
        failed = {}
        if chosen:
            _check_complete(store, chosen)
            asked = set(table["item_id"].tolist())
            failed = {
                f.item_id: f.failure.reason
                for f in store.failures()
                if f.item_id in asked and not set(f.kinds).isdisjoint(chosen)
            }
            table = table[~table["item_id"].isin(list(failed))].reset_index(drop=True)
        return cls(
            store=store,
            kinds=chosen,
            table=table,
            failed=failed,
            names=names,
            facts=_facts(store),
        )

    @property
    def ids(self) -> list[str]:
        """Of the items that are there."""
        return [str(item_id) for item_id in self.table["item_id"].tolist()]

    def vectors(self) -> Vectors:
        """Read the vectors of the items: kind -> (n_items, dim) float32, in order of `ids`."""
        found = {}
        for kind in self.kinds:
            ids, vectors = self.store.item_vectors(kind)
            at = {item_id: index for index, item_id in enumerate(ids)}
            found[kind] = vectors[[at[item_id] for item_id in self.ids]]
        return found

    def coords(
        self, item_id: str
    ) -> tuple[npt.NDArray[np.float64], tuple[tuple[str, str], ...]] | None:
        """Read where an item's rows stand, if the store says it of this one."""
        if COORD not in self.store.kinds:
            return None
        try:
            return self.store.coords(item_id)
        except StoreIncompleteError:  # all is committed: this one has none
            return None


def _facts(store: FeatureStore) -> dict[str, str | bool]:
    header = store.header
    encoder = header.recipe.encoder
    return {
        "made_by": f"dinocache {__version__}",
        "dataset": header.dataset,
        "encoder": encoder.name,
        "weights": encoder.weights.name,
        "random_weights": encoder.weights.is_random,
        "declared_weights": encoder.weights.is_declared,
        "digest": header.digest,
        "recipe": canonical(header.recipe.model_dump(mode="json")),
    }


def _some(store: FeatureStore, items: Iterable[str] | None) -> pd.DataFrame:
    if items is None:
        return store.items.reset_index(drop=True)
    asked = set(items)
    known = set(store.items["item_id"].tolist())
    if unknown := sorted(asked - known):
        raise RequestError(f"{store.folder} holds no item {unknown[0]!r} ({len(known)} others)")
    return store.items[store.items["item_id"].isin(list(asked))].reset_index(drop=True)


def _kinds(store: FeatureStore, kinds: Sequence[str] | None, *, one: bool) -> tuple[str, ...]:
    order = store.header.recipe.encoder.vectors

    def rank(kind: str) -> int:
        parsed = parse_kind(kind)
        return order.index(parsed.base) if parsed and parsed.base in order else len(order)

    there = sorted((kind for kind in store.kinds if is_vector_kind(kind)), key=rank)
    if kinds is None:
        if not there:
            raise StoreIncompleteError(
                f"{store.folder} has no vectors to export (it has "
                f"{', '.join(store.kinds) or 'nothing yet'}); add some with `dinocache extract "
                "... --features cls`"
            )
        return tuple(there[:1] if one else there)
    asked = tuple(dict.fromkeys(kinds))
    if no_vectors := [kind for kind in asked if not is_vector_kind(kind)]:
        raise RequestError(
            f"kind {no_vectors[0]!r} is not exported, only vectors are ({', '.join(VECTOR_KINDS)}, "
            "or with a channel's name behind it); maps and images are read by any Zarr library, "
            "see docs/store-format.md"
        )
    if not asked or (lacking := [kind for kind in asked if kind not in there]):
        named = repr(lacking[0]) if asked else "nothing"
        raise StoreIncompleteError(
            f"{store.folder}: {named} was asked for; it has {', '.join(there) or 'no vectors'}"
        )
    return asked


def _check_complete(store: FeatureStore, kinds: Sequence[str]) -> None:
    wanted = [*kinds, *([COORD] if COORD in store.kinds else [])]
    missing = store.missing(wanted)
    if missing or store.unplanned():
        total = len(store.work(wanted))
        raise StoreIncompleteError(
            f"{store.folder}: {total - len(missing)} of {total} units of {', '.join(kinds)} are "
            "committed; do the rest first, by the same command that made it"
        )


def _check_h5py() -> None:
    try:
        import h5py  # noqa: F401 - only whether it is there
    except ModuleNotFoundError as exc:
        raise RequestError(
            "this format needs h5py, which is not installed: pip install 'dinocache[export]'"
        ) from exc


# Files


def _written(
    chosen: _Chosen,
    out: Path,
    format: Format,
    *,
    dtype: str,
    rows: bool,
    vectors: bool,
    csv: bool,
) -> Iterator[Path]:
    make_folder(out)
    if format == "hdf5":
        for item_id in chosen.ids:
            path = out / f"{chosen.names[item_id]}.h5"
            replace_durably(path, _hdf5(chosen, item_id, dtype))
            yield path
    elif format == "npz":
        yield from _npz(chosen, out, dtype if rows else None)
    elif format == "parquet":
        yield _parquet(chosen, out / "features.parquet")
    elif format == "anndata":
        path = out / "features.h5ad"
        replace_durably(path, _h5ad(chosen))
        yield path
    if format == "csv" or csv:
        yield _csv(chosen, out / "items.csv", vectors=vectors and format == "csv")


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """Give a temporary name to write to, which gets its own once all is on the disk."""
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}{PARTIAL_SUFFIX}")
    with writing(path):
        try:
            yield partial
            with partial.open("rb+") as file:
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
    flush_folder(path.parent)


# HDF5


def _hdf5(chosen: _Chosen, item_id: str, dtype: str) -> memoryview:
    import h5py

    store, buffer = chosen.store, io.BytesIO()
    # Read first: what the store refuses is no error of writing.
    found = {kind: store.rows(kind, item_id).astype(dtype) for kind in chosen.kinds}
    placed = chosen.coords(item_id)
    with h5py.File(buffer, "w") as file:
        file.attrs.update({**chosen.facts, "item_id": as_text(item_id)})
        for number, (kind, values) in enumerate(found.items()):
            name = kind if number else "features"
            dataset = file.create_dataset(name, data=values, chunks=_chunk(values))
            said = {key: chosen.facts[key] for key in ("encoder", "weights", "random_weights")}
            dataset.attrs.update({**said, "name": as_text(item_id), "kind": kind})
        if placed is not None:
            coords, said_of = _hdf5_coords(*placed, chosen.store.header.recipe)
            dataset = file.create_dataset("coords", data=coords, chunks=_chunk(coords))
            dataset.attrs.update({**said_of, "name": as_text(item_id)})
    return buffer.getbuffer()


def _hdf5_coords(
    coords: npt.NDArray[np.float64], columns: Sequence[tuple[str, str]], recipe: Recipe
) -> tuple[npt.NDArray[Any], dict[str, Any]]:
    """Give coordinates, and what TRIDENT says of them as far as the recipe knows it."""
    said: dict[str, Any] = {"columns": canonical([list(column) for column in columns])}
    whole = np.rint(coords)
    if [name for name, _ in columns] != ["x", "y"] or not np.array_equal(whole, coords):
        return coords, said
    options = recipe.reader.options
    if recipe.reader.name == "slide":
        mpp = options.get("tile_mpp")
        said |= {"patch_size": options.get("tile_px"), "overlap": options.get("overlap_px")}
        if mpp == "native":
            said["patch_size_level0"] = options.get("tile_px")
        else:
            said["target_mpp"] = mpp
    elif isinstance(declared := options.get("declared"), dict):
        said |= {"patch_size": declared.get("tile_px"), "target_mpp": declared.get("mpp")}
    return whole.astype(np.int64), {key: v for key, v in said.items() if v is not None}


def _chunk(values: npt.NDArray[Any]) -> tuple[int, ...]:
    row_bytes = values[:1].nbytes
    return (min(len(values), max(_CHUNK_BYTES // row_bytes, _LEAST_CHUNK_ROWS)), *values.shape[1:])


# NumPy


def _npz(chosen: _Chosen, out: Path, rows_dtype: str | None) -> Iterator[Path]:
    path = out / "features.npz"
    vectors: dict[str, npt.NDArray[Any]] = {**chosen.vectors()}
    said = {key: np.array(value) for key, value in chosen.facts.items()}
    ids = np.array(chosen.ids, np.str_)
    with _whole(path) as partial, partial.open("xb") as file:
        failed = np.array(canonical(chosen.failed))
        np.savez(file, allow_pickle=False, item_id=ids, failed=failed, **vectors, **said)
    yield path
    if rows_dtype is None:
        return
    make_folder(out / "rows")
    for item_id in chosen.ids:
        path = out / "rows" / f"{chosen.names[item_id]}.npz"
        arrays = {k: chosen.store.rows(k, item_id).astype(rows_dtype) for k in chosen.kinds}
        if (placed := chosen.coords(item_id)) is not None:
            arrays["coords"] = placed[0]
            arrays["coord_columns"] = np.array(placed[1], np.str_)
        with _whole(path) as partial, partial.open("xb") as file:
            np.savez(file, allow_pickle=False, item_id=np.array(item_id), **arrays, **said)
        yield path


# Parquet


def _parquet(chosen: _Chosen, path: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pandas(chosen.table, preserve_index=False)
    if taken := [kind for kind in chosen.kinds if kind in table.column_names]:
        raise RequestError(
            f"the item table has a column {taken[0]!r}, as the vectors would be called; rename it "
            "with `dinocache relabel`"
        )
    for kind, vectors in chosen.vectors().items():
        lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
        table = table.append_column(kind, lists)
    said = {key: _word(value) for key, value in chosen.facts.items()}
    said["failed"] = canonical(chosen.failed)
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), **said})
    with _whole(path) as partial:
        pq.write_table(table, partial)
    return path


def _word(value: str | bool) -> str:
    return value if isinstance(value, str) else str(value).lower()


# AnnData


def _h5ad(chosen: _Chosen) -> memoryview:
    """Write what `anndata.read_h5ad` reads, without that library: it is strict about pandas."""
    import h5py

    buffer = io.BytesIO()
    first, *others = chosen.vectors().items()
    with h5py.File(buffer, "w") as file:
        _encoded(file, "anndata", "0.1.0")
        file.attrs.update(chosen.facts)
        _array(file, "X", first[1])
        _frame(file, "obs", chosen.ids, "item_id", chosen.table.drop(columns="item_id"))
        features = [f"{first[0]}_{number}" for number in range(first[1].shape[1])]
        _frame(file, "var", features, "feature", pd.DataFrame())
        for name in ("layers", "obsm", "obsp", "uns", "varm", "varp"):
            _encoded(file.create_group(name), "dict", "0.1.0")
        for kind, vectors in others:
            _array(file["obsm"], kind, vectors)
        said = {**chosen.facts, "kind": first[0], "failed": canonical(chosen.failed)}
        for name, value in said.items():
            if isinstance(value, bool):
                file["uns"][name] = value
                _encoded(file["uns"][name], "numeric-scalar", "0.2.0")
            else:
                file["uns"].create_dataset(name, data=value, dtype=h5py.string_dtype())
                _encoded(file["uns"][name], "string", "0.2.0")
    return buffer.getbuffer()


def _encoded(made: Any, kind: str, version: str) -> None:  # noqa: ANN401 - h5py is imported late
    made.attrs["encoding-type"] = kind
    made.attrs["encoding-version"] = version


def _array(group: Any, name: str, values: npt.NDArray[Any]) -> None:  # noqa: ANN401 - as above
    chunks = _chunk(values) if values.ndim > 1 and values.size else None
    _encoded(group.create_dataset(name, data=values, chunks=chunks), "array", "0.2.0")


def _texts(group: Any, name: str, values: Iterable[object]) -> None:  # noqa: ANN401 - as above
    import h5py

    data = [as_text(value) for value in values]
    made = group.create_dataset(name, data=data, shape=(len(data),), dtype=h5py.string_dtype())
    _encoded(made, "string-array", "0.2.0")


def _frame(
    file: Any,  # noqa: ANN401 - as above
    name: str,
    index: Sequence[str],
    index_name: str,
    table: pd.DataFrame,
) -> None:
    import h5py

    group = file.create_group(name)
    _encoded(group, "dataframe", "0.2.0")
    group.attrs["_index"] = index_name
    _texts(group, index_name, index)
    columns = _column_names(table.columns, {index_name, "_index"})
    group.attrs.create("column-order", list(columns.values()), dtype=h5py.string_dtype())
    for column, called in columns.items():
        _column(group, called, table[column])


def _column_names(columns: Iterable[str], taken: set[str]) -> dict[str, str]:
    """Name columns as HDF5 can: without `/`, and no two alike."""
    names: dict[str, str] = {}
    for column in columns:
        called = as_text(column).replace("/", "_").strip(".") or "_"
        while called in taken:
            called += "_"
        taken.add(called)
        names[column] = called
    return names


def _column(group: Any, name: str, values: "pd.Series[Any]") -> None:  # noqa: ANN401 - as above
    dtype, missing = values.dtype, values.isna().to_numpy()
    numbers = pd.api.types.is_bool_dtype(dtype) or pd.api.types.is_numeric_dtype(dtype)
    if numbers and isinstance(dtype, np.dtype) and dtype.kind in "biuf":
        _array(group, name, values.to_numpy())
    elif numbers and (pd.api.types.is_bool_dtype(dtype) or pd.api.types.is_integer_dtype(dtype)):
        is_bool = pd.api.types.is_bool_dtype(dtype)
        made = group.create_group(name)
        _encoded(made, "nullable-boolean" if is_bool else "nullable-integer", "0.1.0")
        filled = values.fillna(False if is_bool else 0)
        _array(made, "values", filled.to_numpy("bool" if is_bool else "int64"))
        _array(made, "mask", missing)
    elif numbers:
        _array(group, name, values.to_numpy("float64", na_value=np.nan))
    elif not missing.any():
        _texts(group, name, values.tolist())
    else:  # a text that is missing is a category of none: every version reads that
        texts = [None if gone else as_text(v) for v, gone in zip(values, missing, strict=True)]
        categories = sorted({text for text in texts if text is not None})
        code = {text: number for number, text in enumerate(categories)}
        made = group.create_group(name)
        _encoded(made, "categorical", "0.2.0")
        made.attrs["ordered"] = False
        _texts(made, "categories", categories)
        codes = [-1 if text is None else code[text] for text in texts]
        _array(made, "codes", np.array(codes, np.int32))


# CSV


def _csv(chosen: _Chosen, path: Path, *, vectors: bool) -> Path:
    parts = [chosen.table]
    if vectors:
        for kind, values in chosen.vectors().items():
            names = [f"{kind}_{number}" for number in range(values.shape[1])]
            parts.append(pd.DataFrame(values, columns=names))
    if vectors or chosen.facts["random_weights"]:
        said: Mapping[str, Any] = {
            f"dinocache_{key}": [_word(chosen.facts[key])] * len(chosen.table)
            for key in ("encoder", "weights", "digest")
        }
        parts.append(pd.DataFrame(said))
    with _whole(path) as partial:
        write_csv(pd.concat(parts, axis=1), partial)
    return path
