"""CSV for people, who open it in a spreadsheet: no cell of it is run there as a formula."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd

__all__ = ["as_text", "harmless", "write_csv"]

_FORMULA = tuple("=+-@\t\n")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """Write a table of whoever's texts as CSV: UTF-8, `,`, a newline behind each row.

    Args:
        table: Columns of numbers stay as they are; all other cells, and the names of columns, are
            written as `harmless` gives them; lists as JSON.
        path: Of the file.

    Raises:
        OSError: If it cannot be written.
    """
    shown = table.copy()
    for place in range(table.shape[1]):
        column = table.iloc[:, place]
        if not pd.api.types.is_numeric_dtype(column.dtype):
            shown.isetitem(place, column.map(harmless, na_action="ignore").to_numpy(object))
    shown.columns = pd.Index([harmless(name) for name in table.columns])
    shown.to_csv(path, index=False, lineterminator="\n", encoding="utf-8")


def harmless(value: object) -> object:
    """Put an apostrophe before what a spreadsheet takes for a formula.

    Args:
        value: Of a cell.

    Returns:
        It, if it is a number; else text, whose lines end in a newline alone.
    """
    if isinstance(value, bool | int | float | np.number):
        return value
    # A return alone is not quoted by every writer, and begins a new row all the same.
    text = as_text(value).replace("\r\n", "\n").replace("\r", "\n")
    if text.startswith(_FORMULA) and not _NUMBER.fullmatch(text):
        return f"'{text}"
    return text


def as_text(value: object) -> str:
    """Write a cell as text that every format takes: lists as JSON, no NUL, no lone surrogate."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    text = json.dumps(value, default=str) if isinstance(value, list | dict) else str(value)
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()
