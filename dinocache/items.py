"""The item table: what carries a label, where it lies, and to whom it belongs.

Columns that mean something to the project: `item_id` (unique), `path` (relative to the data
folder), `group` (the patient: nothing of one group is ever on both sides of a split), and where
there are any `split`, `split.NAME` (further splits), `mask` (a label map) or `mask.NAME` (one a
class, where classes overlap), and `crop_mask` (a label map at whose centroid a volume is cropped).
`path.ct`, `path.pet` and the like, instead of `path`, name the files of an item's channels. Every
other column is a target or a description; a list has one value a row.
"""

import hashlib
import io
import os
import re
from pathlib import Path

import numpy as np
import pandas as pd

from dinocache.errors import RequestError, StoreDamagedError, TableError, one_line
from dinocache.parquet import check_parquet

__all__ = [
    "channel_columns",
    "check_name",
    "from_parquet",
    "is_reserved",
    "latest_number",
    "mask_columns",
    "normalise",
    "parquet_name",
    "read_table",
    "same_labels",
    "to_parquet",
]

_RESERVED = ("item_id", "path", "group", "split", "mask", "crop_mask")
_SPLIT, _CLASS_MASK = "split.", "mask."
_CHANNEL = re.compile(r"path\.((?!l\d\d$)[a-z0-9_]+)")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_FILE = re.compile(r"items-(\d{4})-([0-9a-f]{16})\.parquet")
_ODD = r"(?:^|/)\.{0,2}(?:/|$)"
"""In a path that is absolute, or leads to the same as a shorter one."""
_OUTSIDE = r"^(?:/|[A-Za-z]:[\\/]|\\\\)|(?:^|[\\/])\.\.(?:[\\/]|$)|\x00"
"""In a path that leads out of its folder, on whatever system."""
_SUFFIXES = (".csv", ".tsv", ".parquet")


def check_name(name: str, option: str) -> str:
    """Let through a name that is safe as a folder's.

    Args:
        name: A dataset's or a variant's.
        option: What sets it, for the message.

    Returns:
        The name.

    Raises:
        RequestError: If it has other characters than letters, digits, `.`, `_`, `-`.
    """
    if not _NAME.fullmatch(name):
        raise RequestError(
            f"{name!r} cannot name a folder of stores: use letters, digits, '.', '_' and '-' "
            f"(at most 100). Set another with {option}."
        )
    return name


def is_reserved(column: str) -> bool:
    """Tell whether a column has a meaning of its own, and is no target."""
    return (
        column in _RESERVED
        or column.startswith((_SPLIT, _CLASS_MASK))
        or _CHANNEL.fullmatch(column) is not None
    )


def mask_columns(table: pd.DataFrame) -> list[str]:
    """Name the columns of label maps: `mask`, or `mask.NAME` for each class, in their order."""
    return [c for c in table.columns if c == "mask" or c.startswith(_CLASS_MASK)]


def channel_columns(table: pd.DataFrame) -> dict[str, str]:
    """Find the columns that name the files of an item's channels.

    Args:
        table: Of items.

    Returns:
        Channel -> column, in the table's order; empty where an item is one file.
    """
    matches = {column: _CHANNEL.fullmatch(column) for column in table.columns}
    return {match[1]: column for column, match in matches.items() if match}


def read_table(path: Path, data: Path) -> pd.DataFrame:
    """Read a table of items.

    Args:
        path: `.csv`, `.tsv` or `.parquet` with a column `path`.
        data: The folder that its paths are relative to.

    Returns:
        The item table, see `normalise`.

    Raises:
        TableError: If the file cannot be parsed, or does not hold what a table of items must.
        RequestError: If there is no such file or it is of another type.
    """
    if path.suffix.lower() not in _SUFFIXES:
        raise RequestError(f"{path.name}: a table ends in one of {', '.join(_SUFFIXES)}")
    if not path.is_file():
        raise RequestError(f"there is no table {path}")
    try:
        if path.suffix.lower() == ".parquet":
            table = pd.read_parquet(path)
        else:
            # Identifiers stay text: 00000001 is a patient, not the number one.
            table = pd.read_csv(
                path,
                sep="\t" if path.suffix.lower() == ".tsv" else ",",
                dtype=dict.fromkeys(_RESERVED, "string"),
                encoding="utf-8-sig",
            )
    except (ValueError, OSError, UnicodeDecodeError) as exc:
        raise TableError(f"{path.name} cannot be read as a table: {exc}") from exc
    return normalise(table, data, path.name)


def normalise(table: pd.DataFrame, data: Path, name: str) -> pd.DataFrame:
    """Check a table of items and fill in what may be left out.

    Args:
        table: With a column `path`, or several `path.NAME`, of which the first stands for it;
            `item_id` is the path where it is missing, `group` the item.
        data: The folder that its paths are relative to; absolute ones are made so.
        name: The table's, for messages.

    Returns:
        (n_items, columns) table, `item_id`, `path` and `group` first, all three text.

    Raises:
        TableError: If there is no column `path`, no row, an empty or repeated `item_id`, an empty
            path, or one that leaves the folder.
    """
    table.columns = table.columns.map(str)
    channels = _channels_of(table, name)
    if "path" not in table.columns and channels:
        table = table.assign(path=table[channels[0]])
    if "path" not in table.columns:
        columns = ", ".join(str(c) for c in table.columns[:12])
        raise TableError(
            f"{name} has no column 'path' (it has: {columns}); rename the column that names the "
            "files"
        )
    if table.empty:
        raise TableError(f"{name} has no rows")
    table = table.reset_index(drop=True).copy()
    for column in ("item_id", "group"):
        if column not in table:
            table[column] = table["path" if column == "item_id" else "item_id"]
    for column in ("item_id", "path", "group", *channels):
        table[column] = table[column].astype("string")
        if (empty := table[column].isna() | (table[column] == "")).any():
            row = int(empty.to_numpy().argmax()) + 1
            raise TableError(f"{name}: row {row} has an empty {column!r}; fill it in")
    if (repeated := table["item_id"].duplicated()).any():
        raise TableError(
            f"{name}: item_id {table['item_id'][repeated].iloc[0]!r} stands in more than one row "
            f"({int(repeated.sum())} such rows); give each item its own"
        )
    masks = mask_columns(table)
    if "mask" in masks and len(masks) > 1:
        raise TableError(
            f"{name} has both 'mask' and {masks[-1]!r}; an item has one label map, or one a class"
        )
    for column in [c for c in ("path", "crop_mask", *masks, *channels) if c in table]:
        table[column] = _relative(table[column].astype("string"), data, name, column)
    first = ["item_id", "path", "group"]
    return table[first + [c for c in table.columns if c not in first]]


def _channels_of(table: pd.DataFrame, name: str) -> list[str]:
    """Give the columns of channels' files; refuse what looks like one and is none."""
    channels = list(channel_columns(table).values())
    for column in table.columns:
        if column.lower().startswith("path.") and column not in channels:
            raise TableError(
                f"{name}: column {column!r} names no channel: behind 'path.' stand a-z, 0-9 and _ "
                "only, and no word like l05"
            )
    if channels and "path" in table and not table["path"].equals(table[channels[0]]):
        raise TableError(
            f"{name} has both 'path' and {channels[0]!r}, which differ; an item is one file "
            "(path) or several channels (path.NAME)"
        )
    return channels


def _relative(paths: "pd.Series[str]", data: Path, name: str, column: str) -> "pd.Series[str]":
    # Text, not Path objects, and most paths are left as they are: there may be 100,000.
    inside = os.path.join(os.path.abspath(data), "")
    folder = os.path.normcase(inside)

    def relative(path: str) -> str:
        whole = os.path.normpath(os.path.join(inside, path))
        rest = whole[len(inside) :]
        within = os.path.normcase(os.path.join(whole, "")).startswith(folder)
        if not within or os.path.isabs(rest):
            raise TableError(
                f"{name}: {column} {path!r} lies outside the data folder; set --data to a folder "
                "that holds all files (stores keep relative paths only)"
            )
        return rest.replace(os.sep, "/") or "."

    made = paths.mask(paths == "")
    odd = made.str.contains(_ODD, regex=True).fillna(False) if os.sep == "/" else made.notna()
    return made.mask(odd, made[odd].map(relative)).astype("string")


def same_labels(ours: pd.DataFrame, theirs: pd.DataFrame) -> bool:
    """Tell whether two tables of the same items say the same, the order of columns apart."""
    if set(ours.columns) != set(theirs.columns):
        return False
    left, right = (
        _plain(from_parquet(to_parquet(t.set_index("item_id").sort_index().reset_index()), ""))
        for t in (ours, theirs)
    )
    return left.equals(right[list(left.columns)])


def _plain(table: pd.DataFrame) -> pd.DataFrame:
    """Make text of lists, which pandas cannot compare."""
    lists = [c for c in table.columns if table[c].map(lambda v: isinstance(v, np.ndarray)).any()]
    return table.assign(
        **{c: table[c].map(lambda v: None if v is None else str(list(v))) for c in lists}
    )


def to_parquet(table: pd.DataFrame) -> bytes:
    """Write a table as the bytes of a Parquet file."""
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False, engine="pyarrow")
    return buffer.getvalue()


def parquet_name(number: int, content: bytes) -> str:
    """Name an item table's file: its number, and the head of its sha256."""
    return f"items-{number:04d}-{hashlib.sha256(content).hexdigest()[:16]}.parquet"


def latest_number(name: str) -> int:
    """Give the number in an item table's name; 0 for ""."""
    match = _FILE.fullmatch(name)
    return int(match[1]) if match else 0


def is_table_name(name: str) -> bool:
    """Tell whether a file is named as an item table is."""
    return _FILE.fullmatch(name) is not None


def is_named_by(content: bytes, name: str) -> bool:
    """Tell whether an item table is the one that its file's name promises."""
    match = _FILE.fullmatch(name)
    return match is not None and hashlib.sha256(content).hexdigest().startswith(match[2])


def from_parquet(content: bytes, name: str) -> pd.DataFrame:
    """Read an item table back.

    Args:
        content: The file's bytes.
        name: The file's name, which holds the head of its sha256; "" checks nothing.

    Returns:
        The table.

    Raises:
        StoreDamagedError: If the bytes are not those that the name promises, become too large, or
            are no table of items.
    """
    if name and not is_named_by(content, name):
        digest = hashlib.sha256(content).hexdigest()
        raise StoreDamagedError(f"{name} is damaged: its sha256 begins {digest[:16]}")
    try:
        check_parquet(content)
        table = pd.read_parquet(io.BytesIO(content), engine="pyarrow")
        _check_read(table)
    except Exception as exc:  # pyarrow and pandas raise whatever they stumble over
        what = name or "the table"
        raise StoreDamagedError(f"{what} is no table of items: {one_line(exc)}") from exc
    return table


def _check_read(table: pd.DataFrame) -> None:
    """See that a table that somebody else may have written is one of items."""
    if not isinstance(table.index, pd.RangeIndex) or not table.columns.is_unique:
        raise ValueError("it has an index, or two columns of one name")
    if "item_id" not in table:
        raise ValueError("it has no column 'item_id'")
    if table["item_id"].isna().any() or not table["item_id"].is_unique:
        raise ValueError("an item_id is empty, or stands in two rows")
    files = ["path", *channel_columns(table).values(), *mask_columns(table)]
    for column in [c for c in (*files, "crop_mask") if c in table]:
        paths = table[column].dropna().astype(str)
        if (outside := paths.str.contains(_OUTSIDE, regex=True)).any():
            raise ValueError(f"{column} {paths[outside].iloc[0]!r} leads out of the data folder")
