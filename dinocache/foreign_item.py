"""The features of one item in a file of others, and what such a file may claim."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from dinocache.errors import ItemError

__all__ = [
    "KEYS",
    "MAX_DIM",
    "MOST_OF_DEFLATE",
    "ArrayItem",
    "Columns",
    "Floats",
    "ForeignItem",
    "checked_columns",
    "checked_shape",
    "chosen_key",
    "parsed_columns",
    "shortened",
]

Floats = npt.NDArray[np.floating[Any]]
Columns = tuple[tuple[str, str], ...]

KEYS = ("features", "feats", "embeddings", "embedding", "x")
"""What features are called, in the order in which they are looked for."""
MAX_DIM = 1 << 16
"""As `Recipe.from_body` takes, of sides, too."""
MOST_OF_DEFLATE = 1100
"""Deflate makes at most 1032 bytes of one."""

_LEVEL0: Columns = (("x", "level-0 px"), ("y", "level-0 px"))
_MAX_ROWS = 1 << 31
_MAX_COLUMNS = 8


class ForeignItem(ABC):
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
        """Read (rows, dim).

        Raises:
            ItemError: If they are damaged.
        """

    def coords(self, start: int, stop: int) -> npt.NDArray[np.float64]:
        """Read (rows, columns) of an item that has coordinates."""
        raise NotImplementedError


class ArrayItem(ForeignItem):
    """An item whose arrays are at hand, or mapped.

    Args:
        values: (rows, dim), an array or a tensor.
        shape: Its own.
        coords: (rows, columns) of numbers, if it has any.
        columns: (name, unit) of each.
        said: What the file says of how it was made.
        convert: Makes some of the rows a NumPy array.
    """

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
        """Take (rows, dim)."""
        return self._convert(self._values[start:stop])

    def coords(self, start: int, stop: int) -> npt.NDArray[np.float64]:
        """Take (rows, columns) of an item that has coordinates."""
        if self._coords is None:
            raise AssertionError("it has no coordinates")
        return self._coords[start:stop].astype(np.float64)


def checked_shape(shape: Sequence[int], dtype: np.dtype[Any]) -> tuple[int, int]:
    """Give (rows, dim) of features.

    Args:
        shape: As the file has it: (dim,), (rows, dim) or (1, rows, dim).
        dtype: As the file has it.

    Returns:
        (rows, dim), at least (1, 1).

    Raises:
        ItemError: If it is none of these, holds no floats, or claims too much.
    """
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
    if not 0 < dim <= MAX_DIM or rows > _MAX_ROWS:
        raise ItemError(f"it claims {rows} rows, {dim} wide")
    return rows, dim


def checked_columns(shape: Sequence[int], n_rows: int, columns: Columns | None) -> Columns:
    """Give the columns of coordinates.

    Args:
        shape: As the file has it: (rows, k) or (1, rows, k).
        n_rows: Of the features.
        columns: What the file says that they are; None stands for x and y in level-0 px.

    Returns:
        (name, unit) of each.

    Raises:
        ItemError: If they are not the features' own, or more or fewer than what they are called.
    """
    plain = tuple(shape[1:]) if len(shape) == 3 and shape[0] == 1 else tuple(shape)
    if len(plain) != 2 or plain[0] != n_rows or not 0 < plain[1] <= _MAX_COLUMNS:
        raise ItemError(f"its coordinates are {tuple(shape)}, its features {n_rows} rows")
    named = _LEVEL0 if columns is None else columns
    if len(named) != plain[1]:
        raise ItemError(f"its coordinates have {plain[1]} columns; x and y were expected")
    return named


def parsed_columns(text: str | None) -> Columns | None:
    """Read what an export of ours says of coordinates; None for others, whose are x and y."""
    try:
        listed = json.loads(text) if text else None
        if isinstance(listed, list) and 0 < len(listed) <= _MAX_COLUMNS:
            return tuple((str(name)[:100], str(unit)[:100]) for name, unit in listed)
    except (ValueError, TypeError, RecursionError):
        pass
    return None


def chosen_key(there: Mapping[Any, Any], floats: Sequence[Any], key: str | None) -> Any:  # noqa: ANN401
    """Choose the name of the features: the one given, a usual one, or the only one.

    Args:
        there: All that the file holds, by name.
        floats: Names of what could be features.
        key: The name that was given, if one was.

    Returns:
        A name in `there`.

    Raises:
        ItemError: If it is not there, or none stands out.
    """
    if key is not None:
        if key not in there:
            raise ItemError(f"it holds no {key!r}; it has {_listed(there)}")
        return key
    usual = [name for name in KEYS if name in floats] or list(floats)
    if not usual or (len(usual) > 1 and usual[0] not in KEYS):
        raise ItemError(f"which are its features? It has {_listed(there)}; name one by --key")
    return usual[0]


def _listed(names: Mapping[Any, Any]) -> str:
    shown = ", ".join(str(name)[:50] for name in list(names)[:8])
    return f"{shown}, ..." if len(names) > 8 else shown or "nothing"


def shortened(text: str) -> str:
    """Give a text of others as one line of at most 200 characters."""
    return " ".join(text.split())[:200]
