"""The item table of a manifest: its query, run by DuckDB over the files of a download.

The query sees the tables that the manifest names and the files of the data folder, and nothing
else: DuckDB runs in memory, reads below that folder only (links that lead out of it are refused),
loads no extension, and takes a single SELECT.
"""

import fnmatch
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from dinocache.errors import TableError, one_line
from dinocache.manifest import Manifest, TableFile

if TYPE_CHECKING:
    import duckdb

__all__ = ["files_like", "select_items"]

_MOST_TEXT = 1 << 20
_MOST_WORKBOOK = 64 << 20
_WORKBOOKS = (".xlsx", ".xls", ".ods")


def select_items(manifest: Manifest, data: Path) -> pd.DataFrame:
    """Run a manifest's query.

    Args:
        manifest: The manifest.
        data: The data folder.

    Returns:
        What it selects, as DuckDB gives it.

    Raises:
        TableError: If a file or a column that it needs is not there, or the query is refused or
            fails; which, and the way out.
    """
    import duckdb

    name = f"manifest {manifest.name}"
    quoted = _quoted(data.resolve())
    query = manifest.items.replace("{data}", quoted)
    try:
        statements = duckdb.extract_statements(query)
        if [s.type for s in statements] != [duckdb.StatementType.SELECT]:
            raise TableError(f"{name}: 'items' must be one SELECT, nothing else")
        with duckdb.connect(":memory:") as connection:
            connection.execute(f"SET allowed_directories=['{quoted}']")
            connection.execute("SET enable_external_access=false")
            connection.execute("SET lock_configuration=true")
            _offer(connection, manifest, data)
            return connection.execute(query).df()
    except duckdb.Error as exc:
        raise TableError(
            f"{name}: the query of 'items' failed: {' '.join(str(exc).split())[:600]}"
        ) from exc


def _quoted(path: Path) -> str:
    return str(path).replace("'", "''")


def _offer(connection: "duckdb.DuckDBPyConnection", manifest: Manifest, data: Path) -> None:
    """Make the tables that the query may name."""
    for name, spec in manifest.tables.items():
        _offer_table(connection, name, spec, data, manifest)
    for name, patterns in manifest.files.items():
        found = first_like(data, patterns)
        if not found:
            raise _missing(manifest, data, patterns)
        table = pd.DataFrame({"path": found})
        table["name"] = table["path"].str.rpartition("/")[2]
        _keep(connection, name, table)
    for name, patterns in manifest.texts.items():
        found = first_like(data, patterns)
        if not found:
            raise _missing(manifest, data, patterns)
        contents = [_text(data, path, manifest.name) for path in found]
        names = [path.rpartition("/")[2] for path in found]
        _keep(connection, name, pd.DataFrame({"path": found, "name": names, "content": contents}))


def _missing(manifest: Manifest, data: Path, patterns: Sequence[str]) -> TableError:
    return TableError(
        f"{manifest.name}: there is no {' nor '.join(patterns)} under {data}; is the download "
        f"complete? `dinocache datasets {manifest.name}` says what the folder must look like"
    )


def _keep(connection: "duckdb.DuckDBPyConnection", name: str, table: pd.DataFrame) -> None:
    connection.register("given", table)
    connection.execute(f'CREATE TABLE "{name}" AS SELECT * FROM given')
    connection.unregister("given")


def _offer_table(
    connection: "duckdb.DuckDBPyConnection",
    name: str,
    spec: TableFile,
    data: Path,
    manifest: Manifest,
) -> None:
    import duckdb

    files = first_like(data, spec.file)
    if not files:
        raise _missing(manifest, data, spec.file)
    said = f"{manifest.name}: {files[0]}"
    headed = isinstance(spec.columns, dict)
    try:
        if files[0].lower().endswith(_WORKBOOKS):
            _keep(connection, "read", _workbook(data, files[0], spec, said))
        else:
            options = "all_varchar=true, union_by_name=false"
            options += f", header={str(headed).lower()}, skip={spec.skip}"
            # Found out by itself, a file that is cut off would be one of a single column.
            usual = "\t" if ".tsv" in files[0].lower() else ","
            options += ", delim='{}'".format((spec.delimiter or usual).replace("'", "''"))
            listed = ", ".join(f"'{_quoted(data.resolve() / f)}'" for f in files)
            connection.execute(
                f'CREATE TABLE "read" AS SELECT * FROM read_csv([{listed}], {options})'
            )
    except duckdb.Error as exc:
        first = " ".join(str(exc).partition("\n")[0].split())[:300]
        raise TableError(
            f"{said} cannot be read as a table ({first}); is it damaged, or cut off?"
        ) from exc
    headers = [row[0] for row in connection.execute('DESCRIBE "read"').fetchall()]
    chosen = ", ".join(
        f"{_identifier(header)} AS {_identifier(column)}"
        for column, header in _columns(spec, headers, said)
    )
    connection.execute(f'CREATE TABLE "{name}" AS SELECT {chosen} FROM "read"')
    connection.execute('DROP TABLE "read"')


def _identifier(column: str) -> str:
    return '"{}"'.format(column.replace('"', '""'))


def _columns(spec: TableFile, headers: Sequence[str], said: str) -> Iterator[tuple[str, str]]:
    """Pair the query's columns with the file's."""
    if isinstance(spec.columns, tuple):
        if len(headers) < len(spec.columns):
            raise TableError(
                f"{said} has {len(headers)} columns, expected {len(spec.columns)}: "
                f"{', '.join(spec.columns)}"
            )
        yield from zip(spec.columns, headers, strict=False)
        return
    plain = {_plain(header): header for header in reversed(headers)}
    for column, spellings in spec.columns.items():
        wanted = (spellings,) if isinstance(spellings, str) else spellings
        found = next((plain[_plain(s)] for s in wanted if _plain(s) in plain), None)
        if found is None:
            raise TableError(
                f"{said} has no column {' nor '.join(map(repr, wanted))}; it has "
                f"{', '.join(headers[:30])}. Was it renamed in a newer release?"
            )
        yield column, found


def _plain(header: str) -> str:
    """Let case, blanks and a byte order mark not count."""
    return re.sub(r"[\s_\ufeff]+", " ", header).strip().lower()


def _workbook(data: Path, file: str, spec: TableFile, said: str) -> pd.DataFrame:
    path = _inside(data, file, said)
    if path.stat().st_size > _MOST_WORKBOOK:
        raise TableError(f"{said} is larger than {_MOST_WORKBOOK >> 20} MB")
    try:
        table = pd.read_excel(
            path,
            sheet_name=spec.sheet,
            header=0 if isinstance(spec.columns, dict) else None,
            skiprows=spec.skip,
            dtype=str,
            engine="calamine",
        )
    except ImportError as exc:
        raise TableError(
            f"{said}: reading workbooks needs `pip install 'dinocache[extract]'`"
        ) from exc
    except Exception as exc:  # whatever a parser raises of a damaged workbook
        raise TableError(f"{said} cannot be read as a workbook ({one_line(exc)})") from exc
    table.columns = table.columns.map(str)
    return table.astype("string")


def _text(data: Path, file: str, name: str) -> str:
    path = _inside(data, file, f"{name}: {file}")
    with path.open("rb") as opened:
        content = opened.read(_MOST_TEXT + 1)
    if len(content) > _MOST_TEXT:
        raise TableError(f"{name}: {file} is larger than the text it should be")
    return content.decode("utf-8", "replace")


def _inside(data: Path, file: str, said: str) -> Path:
    path = (data / file).resolve()
    if not path.is_relative_to(data.resolve()):
        raise TableError(f"{said} is a link that leads out of the data folder")
    return path


# ---------------------------------------------------------------------- files


def first_like(data: Path, patterns: Sequence[str]) -> list[str]:
    """List the files that match the first pattern that any does, in order of names."""
    return next((found for pattern in patterns if (found := files_like(data, pattern))), [])


def files_like(data: Path, pattern: str) -> list[str]:
    """List the files below a folder that match a pattern.

    Hidden ones are left out, as are the `._NAME` that macOS lays beside each file of a copy.

    Args:
        data: The folder.
        pattern: With `/` between folders; `*` and `?` within a name, `**` for any folders.

    Returns:
        Paths from the folder on, in order.
    """
    found = ["".join(parts) for parts in _walk(str(data), "", pattern.split("/"))]
    return sorted(set(found))


def _walk(folder: str, below: str, parts: Sequence[str]) -> Iterator[str]:
    part, rest = parts[0], parts[1:]
    if part == "**":
        yield from _walk(folder, below, rest or ["*"])
        for name in _names(folder, folders=True):
            inner = os.path.join(folder, name)
            if not os.path.islink(inner):  # a link to a folder above would have no end
                yield from _walk(inner, f"{below}{name}/", parts)
        return
    if not re.search(r"[*?\[]", part):
        path = os.path.join(folder, part)
        if rest and os.path.isdir(path):
            yield from _walk(path, f"{below}{part}/", rest)
        elif not rest and os.path.isfile(path):
            yield f"{below}{part}"
        return
    matches = re.compile(fnmatch.translate(part)).match
    for name in _names(folder, folders=bool(rest)):
        if matches(name):
            if rest:
                yield from _walk(os.path.join(folder, name), f"{below}{name}/", rest)
            else:
                yield f"{below}{name}"


def _names(folder: str, *, folders: bool) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return [
                entry.name
                for entry in entries
                if not entry.name.startswith(".")
                and (entry.is_dir() if folders else entry.is_file())
            ]
    except OSError as exc:
        raise TableError(f"{folder} cannot be listed: {one_line(exc)}") from exc
