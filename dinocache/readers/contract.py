"""What every reader of items can do. See docs/readers.md.

Arrays are (C, Z, Y, X); a row is one slice (C, Y, X) of it.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Generic, Literal, Self, TypeVar, cast

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator

from dinocache.errors import ItemError, RequestError, one_line
from dinocache.geometry import Geometry

__all__ = [
    "ItemFiles",
    "Labels",
    "OpenItem",
    "Pixels",
    "Reader",
    "ReaderOptions",
    "guarded",
    "read_rows",
    "translated",
]

T = TypeVar("T")

Pixels = (
    npt.NDArray[np.uint8] | npt.NDArray[np.int16] | npt.NDArray[np.uint16] | npt.NDArray[np.float32]
)
"""Decoded values in the file's own unit; the recipe's window brings them to [0, 1]."""
Labels = npt.NDArray[np.integer[Any]]


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Turn what a library raises on damaged bytes into an `ItemError`.

    Every class is caught: parsers of foreign bytes raise nearly all of Python's (seen in pydicom:
    AttributeError, AssertionError, RecursionError, struct.error), and one bad item must not end a
    run of thousands.

    Args:
        what: What could not be done, the beginning of the message.

    Raises:
        ItemError: For whatever was raised inside.
    """
    try:
        # NaN and values beyond a type's range are given on or named; numpy need not warn of them.
        with np.errstate(all="ignore"):
            yield
    except (ItemError, ModuleNotFoundError):
        raise
    except FileNotFoundError as exc:
        raise ItemError("the file is missing") from exc
    except MemoryError as exc:
        raise ItemError(f"{what}: it needs more memory than there is") from exc
    except Exception as exc:
        raise ItemError(f"{what}: {one_line(exc)}") from exc


def guarded(call: Callable[[], T]) -> T:
    """Call into a reader; whatever it raises becomes an `ItemError`: one item never stops a run.

    A library that is not installed does: it would fail every item.
    """
    try:
        return call()
    except (ItemError, ModuleNotFoundError):
        raise
    except Exception as exc:
        logging.getLogger(__name__).debug("a reader failed", exc_info=True)
        text = " ".join(str(exc).split())[:300]
        raise ItemError(f"its reader failed ({type(exc).__name__}: {text})") from exc


@dataclass(frozen=True, kw_only=True)
class ItemFiles:
    """The files of an item.

    Attributes:
        path: Its file, or its folder.
        mask: Its label map, if there is one.
        class_masks: In place of it one a class, where classes may overlap; None where the item has
            none of that class. Seen to by `dinocache.readers.channels`, not by readers.
        centre: A label map whose centroid is the centre of a crop; by default `mask`.
    """

    path: Path
    mask: Path | None = None
    class_masks: tuple[Path | None, ...] = ()
    centre: Path | None = None


class OpenItem(ABC):
    """An item whose header has been read. A context manager.

    Attributes:
        n_rows: At least 1.
        geometry: Where the rows lie.
        value_range: Least and greatest value that the pixels can have; None is that of their type.
        file_window: The values that the file itself asks to be shown as black and white, if any.
        notes: What a person should know of it, a clause each.
        nbytes: Of all rows once decoded, about; what a queue of items is bounded by.
        one_at_a_time: Whether `rows` must not be called by two threads at once.
        size: (width, height) in the px that coordinates are in, of what has a thumbnail.
    """

    n_rows: int
    geometry: Geometry = Geometry()
    value_range: tuple[float, float] | None = None
    file_window: tuple[float, float] | None = None
    notes: tuple[str, ...] = ()
    nbytes: int = 0
    one_at_a_time: bool = False
    size: tuple[int, int] | None = None

    @property
    def parts(self) -> "tuple[OpenItem, ...]":
        """The files whose channels it puts together; itself, of one file."""
        return (self,)

    @abstractmethod
    def rows(self, start: int, stop: int) -> list[Pixels]:
        """Decode some rows.

        Args:
            start: First row.
            stop: Row behind the last; at most `n_rows`.

        Returns:
            One (C, Y, X) array a row; C is 1 for grey, 3 for RGB.

        Raises:
            ItemError: If the file is damaged.
        """

    def coords(self) -> npt.NDArray[np.float64]:
        """Say where each row stands, as the reader's `columns` name it.

        Returns:
            (n_rows, len(columns)).
        """
        return np.empty((self.n_rows, 0))

    def mask(self) -> Labels:
        """Decode the item's label map, on the grid of the rows.

        Returns:
            (C, Z, Y, X) labels as stored, Z `n_rows`; 0 is background. C is 1, but for masks of
            classes that may overlap: then one channel a class.

        Raises:
            ItemError: If there is none, it is damaged, or lies on another grid.
        """
        raise ItemError("this reader knows no masks")

    def thumbnail(self) -> npt.NDArray[np.uint8] | None:
        """Give a small picture of the whole, (Y, X, 3); None where rows are pictures enough."""
        return None

    def close(self) -> None:  # noqa: B027 - most have nothing to give back
        """Give back files and memory. Called once, after the last `rows`."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def read_rows(item: OpenItem, start: int, stop: int) -> list[Pixels]:
    """Decode rows of an item, and see that a reader gave as many; raises `ItemError`."""
    rows = guarded(lambda: item.rows(start, stop))
    if len(rows) != stop - start:  # else other items would have this one's rows
        raise ItemError(f"its reader gave {len(rows)} rows, {stop - start} were asked for")
    return rows


class ReaderOptions(BaseModel):
    """Options of a reader: all of them are part of the recipe."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )

    @field_validator("*", mode="before")
    @classmethod
    def _listed(cls, value: object, info: ValidationInfo) -> object:
        """Make a list of the one value that a command line gives where several may stand."""
        field = cls.model_fields[str(info.field_name)]
        wants_list = "tuple" in str(field.annotation)
        return [value] if wants_list and isinstance(value, str | int | float) else value


Settings = TypeVar("Settings", bound=ReaderOptions)


class Reader(ABC, Generic[Settings]):
    """Opens items of one sort.

    Attributes:
        name: As `--reader` takes it.
        summary: What it reads, in a few words.
        Options: The model of its options.
        columns: (name, unit) of what `OpenItem.coords` gives.
        one_row: Whether every item has one row, so that none need be opened to count them.
        window: The window of a recipe that says nothing else.
        settings: The options, typed.
        options: The options as the recipe records them, all of them, JSON.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    Options: ClassVar[type[ReaderOptions]] = ReaderOptions
    columns: ClassVar[tuple[tuple[str, str], ...]] = ()
    one_row: ClassVar[bool] = False
    window: ClassVar[Literal["full-range", "percentile"]] = "full-range"
    settings: Settings
    options: dict[str, Any]

    def __init__(self, options: Mapping[str, object] | None = None) -> None:
        try:
            settings = self.Options.model_validate(dict(options or {}))
        except ValidationError as exc:
            raise RequestError(f"reader {self.name!r}: {self._mistake(exc)}") from exc
        self.settings = cast(Settings, settings)
        self.options = settings.model_dump(mode="json")

    def _mistake(self, exc: ValidationError) -> str:
        error = exc.errors()[0]
        message = error["msg"].removeprefix("Value error, ")
        if not error["loc"]:
            return message
        option = ".".join(str(part) for part in error["loc"][:1])
        if error["type"] == "extra_forbidden":
            known = ", ".join(self.Options.model_fields) or "none"
            told = "--mpp is for slides; " if option == "slide_mpp" else ""
            return f"{told}it has no option {option!r}; its options are: {known}"
        return f"option {option}={error['input']!r}: {message}"

    @abstractmethod
    def open(self, files: ItemFiles, like: Geometry | None = None) -> OpenItem:
        """Open an item; no pixel is decoded yet.

        Args:
            files: Its files.
            like: The grid that its rows must have: that of the item's first channel. A reader that
                cannot resample refuses another grid.

        Returns:
            The open item.

        Raises:
            ItemError: If it is missing, damaged, or of another sort.
        """

    def is_apart(self, files: ItemFiles) -> bool:
        """Whether an item is better decoded in a process of its own, as a whole.

        So where Python itself has much to do for its rows, and it gives no thumbnail. Nothing is
        read to say so.
        """
        return False

    def count_rows(self, files: ItemFiles) -> int:
        """Count an item's rows, without decoding them.

        Args:
            files: Its files.

        Returns:
            At least 1.

        Raises:
            ItemError: As for `open`.
        """
        with self.open(files) as item:
            return item.n_rows
