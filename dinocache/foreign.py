"""Where features of others lie: a folder with a file an item, or one array with a row an item.

A table beside them may say what the items are. It is data, too: no path in it leaves the folder.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd

from dinocache.errors import ItemError, RequestError, TableError
from dinocache.exporting import possible_names
from dinocache.foreign_arrays import npz_arrays, npz_item, pt_item, texts_of
from dinocache.foreign_hdf5 import Hdf5Item, import_h5py
from dinocache.foreign_item import ArrayItem, ForeignItem, checked_shape
from dinocache.items import is_reserved, normalise
from dinocache.progress import Progress
from dinocache.readers.contract import translated

__all__ = ["SOURCE_FORMATS", "ForeignSource", "SourceFormat", "open_source"]

SourceFormat = Literal["auto", "hdf5", "pt", "npy", "npz"]
SOURCE_FORMATS: tuple[str, ...] = get_args(SourceFormat)

_SUFFIXES = {"hdf5": (".h5", ".hdf5", ".hdf"), "pt": (".pt", ".pth"), "npz": (".npz",)}
_TABLES = (".csv", ".tsv", ".parquet")
_TEXT_COLUMNS = ("item_id", "path", "group", "split")


class ForeignSource(ABC):
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
        """List the items.

        Args:
            table: Of what is known of them; None takes what the source alone says.
            progress: Told of what is left out.

        Returns:
            As `normalise` gives it; `path` is the file of each, relative to `data`.

        Raises:
            RequestError: If the source names an item twice.
            TableError: If the table does not fit the source.
        """

    @abstractmethod
    def open(self, path: str, item_id: str) -> ForeignItem:
        """Open an item, after seeing that its file is what it should be.

        Raises:
            ItemError: If it is not.
        """


def open_source(source: Path, format: str, key: str | None) -> ForeignSource:
    """Open what somebody points at.

    Args:
        source: A folder, or a .npy or .npz file.
        format: As `SourceFormat`.
        key: Name of the features within a file; None looks for the usual ones.

    Raises:
        RequestError: If it is no source, or there is none.
    """
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


class _Folder(ForeignSource):
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
            import_h5py()
        self._files = by_format[format]
        self._open: tuple[str, ForeignItem] | None = None

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

    def open(self, path: str, item_id: str) -> ForeignItem:
        if self._open is None or self._open[0] != path:
            file = self.data / path
            if not file.is_file():
                raise ItemError("the file is missing")
            if not file.resolve().is_relative_to(self.data.resolve()):
                raise ItemError("it is a link that leads out of its folder; put the file there")
            opener = {"hdf5": Hdf5Item, "pt": pt_item, "npz": npz_item}[self.format]
            with translated("it cannot be read"):
                item = opener(file, self.key)
            self._open = path, item
        return self._open[1]


class _Matrix(ForeignSource):
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
                    self._values, others = npz_arrays(path, key, ("item_id", "weights", "digest"))
                    if "item_id" in others:
                        self._ids = [str(i) for i in others["item_id"].reshape(-1).tolist()]
                    self._said = texts_of(others, ("weights", "digest"))
                if self._values.ndim != 2:
                    raise ItemError(f"{path.name} is {self._values.shape}; (items, dim) is wanted")
                self._shape = checked_shape(self._values.shape, self._values.dtype)
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

    def open(self, path: str, item_id: str) -> ForeignItem:
        row = self._row_of[item_id]
        dim = self._shape[1]
        return ArrayItem(self._values[row : row + 1], shape=(1, dim), said=self._said)


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
