"""The items that a command is about: of a shipped manifest, of one's own, or of a table."""

from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from dinocache.errors import RequestError, TableError
from dinocache.items import channel_columns, check_name, normalise, read_table
from dinocache.manifest import ExtractDefaults, Manifest, load_manifest, shipped_manifests
from dinocache.query import select_items
from dinocache.splits import add_splits, check_no_leaks, side_of

__all__ = ["Dataset", "find_dataset", "is_manifest"]


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Items to extract, wherever they are listed.

    Attributes:
        name: Folder of its stores.
        data: Folder that the table's paths are relative to.
        table: The item table; the splits that follow from rules are columns of it.
        extract: Defaults of the extraction.
        manifest: None for a plain table.
        missing: Ids of items whose files are not there; they are not in the table.
        notes: What is not as the official release has it, a sentence each.
    """

    name: str
    data: Path
    table: pd.DataFrame
    extract: ExtractDefaults
    manifest: Manifest | None
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())


def is_manifest(dataset: str) -> bool:
    """Tell a manifest, shipped or one's own, from a table."""
    return dataset in shipped_manifests() or Path(dataset).suffix.lower() in (".yaml", ".yml")


def find_dataset(
    dataset: str,
    *,
    data: Path | None = None,
    name: str | None = None,
    allow_missing: bool = False,
) -> Dataset:
    """Find what DATASET stands for and read its item table.

    Args:
        dataset: Name of a shipped manifest, path of one, or path of a table.
        data: The data folder; by default the embedded one, `data/<name>` for a manifest, the
            table's own folder for a table.
        name: The dataset's name; by default the manifest's, or the table's stem.
        allow_missing: Whether items of a manifest may be left out whose files are not there, and
            its counts may differ.

    Returns:
        The dataset.

    Raises:
        RequestError: If there is no such dataset or folder.
        TableError: If the manifest or the table is not as it must be, if files are missing, if
            counts are not those of the official release, or a group is on two sides of a split.
    """
    path = Path(dataset)
    shipped = shipped_manifests()
    if dataset in shipped:
        path = shipped[dataset]
    elif path.suffix.lower() not in (".yaml", ".yml", ".csv", ".tsv", ".parquet"):
        raise RequestError(
            f"{dataset!r} is neither a shipped dataset (`dinocache datasets` lists them) nor the "
            "path of a manifest (.yaml) or of a table (.csv, .tsv, .parquet)"
        )
    if not is_manifest(dataset):
        folder = data or path.parent
        return Dataset(
            name=check_name(name or path.stem, "--name"),
            data=_existing(folder),
            table=read_table(path, folder),
            extract=ExtractDefaults(),
            manifest=None,
        )
    return _of_manifest(load_manifest(path), path, data, name, allow_missing)


def _of_manifest(
    manifest: Manifest, path: Path, data: Path | None, name: str | None, allow_missing: bool
) -> Dataset:
    embedded = path.parent / manifest.embedded if manifest.embedded else None
    folder = _existing(data or embedded or Path("data") / manifest.name, manifest)
    said = f"manifest {manifest.name}"
    listed = select_items(manifest, folder)
    missing = _missing(listed, said)
    notes = [_missing_text(manifest, missing, len(listed), folder)] if missing else []
    if missing and not allow_missing:
        raise TableError(f"{notes[0]}; --allow-missing goes on without them")
    # Drawn over all that are listed, so that nobody changes sides when the rest arrives.
    undrawn: list[str] = []
    table = normalise(_filled(listed), folder, said)
    table = add_splits(table, manifest.splits, said, undrawn if allow_missing else None)
    check_no_leaks(table, said)
    table = table[~table["item_id"].isin(missing)].reset_index(drop=True)
    differing = list(_differing(manifest, table))
    if differing and not allow_missing:
        raise TableError(
            f"{said}: {'; '.join(differing)} under {folder}. Is the download complete, and the "
            f"release the right one? {manifest.obtain.strip()} --allow-missing takes it as it is"
        )
    return Dataset(
        name=check_name(name or manifest.name, "--name"),
        data=folder,
        table=table,
        extract=manifest.extract,
        manifest=manifest,
        missing=tuple(missing),
        notes=(*notes, *differing, *undrawn),
    )


def _existing(folder: Path, manifest: Manifest | None = None) -> Path:
    if not folder.is_dir():
        hint = f" To obtain the data: {manifest.obtain.strip()}" if manifest else ""
        raise RequestError(f"there is no data folder {folder}; name it with --data.{hint}")
    return folder


def _paths(table: pd.DataFrame) -> list[str]:
    return [c for c in table.columns if c == "path" or c in channel_columns(table).values()]


def _filled(table: pd.DataFrame) -> pd.DataFrame:
    return table.fillna(dict.fromkeys(_paths(table), "missing")) if "item_id" in table else table


def _missing(table: pd.DataFrame, said: str) -> list[str]:
    """Name the items that have no file: the query gives them no path."""
    if not _paths(table) or "item_id" not in table:
        return []
    lacking = table[_paths(table)].isna().any(axis=1)
    missing = [str(i) for i in table["item_id"][lacking].tolist()]
    if len(missing) == len(table) > 0:
        raise TableError(
            f"{said}: of the {len(table)} items that its tables list no file is there, as of "
            f"{missing[0]!r}; is --data the right folder?"
        )
    return missing


def _missing_text(manifest: Manifest, missing: list[str], listed: int, folder: Path) -> str:
    return (
        f"{manifest.name}: files of {len(missing)} of {listed} items are missing under {folder}, "
        f"as of {', '.join(missing[:3])}"
    )


def _differing(manifest: Manifest, table: pd.DataFrame) -> "list[str]":
    """Say which counts are not those of the official release."""
    found = {"items": len(table), "groups": int(table["group"].nunique())}
    if "split" in table:
        sides = table["split"].dropna().map(side_of).value_counts()
        found |= {str(side): int(count) for side, count in sides.items()}
    texts = []
    for what, expected in manifest.expect.items():
        column, equals, value = what.partition("=")
        if what in found:
            count = found[what]
        elif column in table and equals:
            count = int((table[column].astype("string").fillna("") == value).sum())
        elif column in table:
            count = int(table[column].notna().sum())
        else:
            count = 0
        if count != expected:
            texts.append(f"expected {expected} {what}, found {count}")
    return texts
