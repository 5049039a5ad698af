"""Manifests: one YAML file says all that is special about a dataset.

`items` is one SQL SELECT that DuckDB runs over the dataset's own files, read-only and confined to
the data folder; it yields the item table (see `dinocache.items`). A manifest is data: it cannot
read or write elsewhere, nor load an extension.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from dinocache.errors import RequestError, TableError
from dinocache.items import check_name, normalise, read_table

__all__ = [
    "Dataset",
    "ExtractDefaults",
    "Manifest",
    "find_dataset",
    "load_manifest",
    "shipped_manifests",
]

_MAX_BYTES = 1 << 20


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ExtractDefaults(_Part):
    """What `dinocache extract` does where nothing else is said."""

    reader: Literal["auto", "image", "volume", "slide", "video", "stack"] = "auto"
    options: dict[str, Any] = {}
    window: str | None = None
    """As for --window."""
    channels: str | None = None
    """As for --channels."""
    features: tuple[str, ...] = ("cls", "mean")
    resolutions: tuple[int | str, ...] = (256,)
    """The first is the default."""


class Manifest(_Part):
    """A dataset's YAML file."""

    name: str
    title: str
    licence: str
    citation: str
    home: str
    obtain: str
    embedded: str | None = None
    """A folder beside the manifest that holds the data, for demonstration sets."""
    expect: dict[str, int] = {}
    items: str
    extract: ExtractDefaults = ExtractDefaults()


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Items to extract, wherever they are listed.

    Attributes:
        name: Folder of its stores.
        data: Folder that the table's paths are relative to.
        table: The item table.
        extract: Defaults of the extraction.
        manifest: None for a plain table.
    """

    name: str
    data: Path
    table: pd.DataFrame
    extract: ExtractDefaults
    manifest: Manifest | None


def shipped_manifests() -> Mapping[str, Path]:
    """Find the manifests that come with the package.

    Returns:
        Name -> file, in order of names.
    """
    with resources.as_file(resources.files("manifests")) as folder:
        return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load_manifest(path: Path) -> Manifest:
    """Read a manifest.

    Args:
        path: The YAML file.

    Returns:
        The manifest.

    Raises:
        TableError: If it is not one: which field, what was expected.
        RequestError: If there is no such file.
    """
    if not path.is_file():
        raise RequestError(f"there is no manifest {path}")
    if path.stat().st_size > _MAX_BYTES:
        raise TableError(f"{path.name} is larger than a manifest may be ({_MAX_BYTES} bytes)")
    try:
        return Manifest.model_validate(yaml.safe_load(path.read_text("utf-8")))
    except (yaml.YAMLError, UnicodeDecodeError) as exc:
        raise TableError(f"{path.name} is not YAML: {' '.join(str(exc).split())}") from exc
    except ValidationError as exc:
        error = exc.errors()[0]
        field = ".".join(str(part) for part in error["loc"])
        raise TableError(f"{path.name}: field {field!r}: {error['msg']}") from exc


def find_dataset(dataset: str, *, data: Path | None = None, name: str | None = None) -> Dataset:
    """Find what DATASET stands for and read its item table.

    Args:
        dataset: Name of a shipped manifest, path of one, or path of a table.
        data: The data folder; by default the embedded one, `data/<name>` for a manifest, the
            table's own folder for a table.
        name: The dataset's name; by default the manifest's, or the table's stem.

    Returns:
        The dataset.

    Raises:
        RequestError: If there is no such dataset or folder.
        TableError: If the manifest or the table is not as it must be.
    """
    path = Path(dataset)
    shipped = shipped_manifests()
    if dataset in shipped:
        path = shipped[dataset]
    elif path.suffix.lower() not in (".yaml", ".yml", ".csv", ".tsv", ".parquet"):
        raise RequestError(
            f"{dataset!r} is neither a shipped dataset ({', '.join(shipped)}) nor the path of a "
            "manifest (.yaml) or of a table (.csv, .tsv, .parquet)"
        )
    if path.suffix.lower() not in (".yaml", ".yml"):
        folder = data or path.parent
        return Dataset(
            name=check_name(name or path.stem, "--name"),
            data=_existing(folder),
            table=read_table(path, folder),
            extract=ExtractDefaults(),
            manifest=None,
        )
    manifest = load_manifest(path)
    embedded = path.parent / manifest.embedded if manifest.embedded else None
    folder = _existing(data or embedded or Path("data") / manifest.name, manifest.obtain)
    return Dataset(
        name=check_name(name or manifest.name, "--name"),
        data=folder,
        table=_select_items(manifest, folder),
        extract=manifest.extract,
        manifest=manifest,
    )


def _existing(folder: Path, obtain: str = "") -> Path:
    if not folder.is_dir():
        hint = f" To obtain the data: {obtain.strip()}" if obtain else ""
        raise RequestError(f"there is no data folder {folder}; name it with --data.{hint}")
    return folder


def _select_items(manifest: Manifest, data: Path) -> pd.DataFrame:
    import duckdb

    quoted = str(data.resolve()).replace("'", "''")
    query = manifest.items.replace("{data}", quoted)
    name = f"manifest {manifest.name}"
    try:
        statements = duckdb.extract_statements(query)
        if [s.type for s in statements] != [duckdb.StatementType.SELECT]:
            raise TableError(f"{name}: 'items' must be one SELECT, nothing else")
        with duckdb.connect(":memory:") as connection:
            connection.execute(f"SET allowed_directories=['{quoted}']")
            connection.execute("SET enable_external_access=false")
            connection.execute("SET lock_configuration=true")
            table = connection.execute(query).df()
    except duckdb.Error as exc:
        raise TableError(
            f"{name}: the query of 'items' failed: {' '.join(str(exc).split())}"
        ) from exc
    table = normalise(table, data, name)
    found = {"items": len(table), "groups": int(table["group"].nunique())}
    if "split" in table:
        found |= {str(k): int(v) for k, v in table["split"].value_counts().items()}
    for what, expected in manifest.expect.items():
        if found.get(what, 0) != expected:
            raise TableError(
                f"{name}: expected {expected} {what}, found {found.get(what, 0)} under {data}; "
                f"is the download complete? {manifest.obtain.strip()}"
            )
    return table
