"""One item as a reader sees it, before anything is extracted."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dinocache.errors import ItemError, RequestError
from dinocache.intensity import Window, item_windows
from dinocache.readers import (
    ItemFiles,
    OpenItem,
    Pixels,
    Reader,
    guarded,
    guess_reader,
    make_reader,
)
from dinocache.recipe import WindowRecipe
from dinocache.request import parse_windows

__all__ = ["Inspection", "inspect_item"]

_DRAWN = 12
_COLUMNS = 4
_CELL_PX = 256
"""Width; the height follows from the rows."""


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What a reader makes of an item.

    Attributes:
        facts: Name -> JSON value, for people and programs.
        rows: Some of the item's rows, from the first to the last.
        windows: Values that become 0 and 1.
        thumbnail: A small picture of the whole, of slides.
    """

    facts: dict[str, Any]
    rows: list[Pixels]
    windows: tuple[Window, ...]
    thumbnail: npt.NDArray[np.uint8] | None

    def draw(self, path: Path) -> None:
        """Write the rows, windowed, to a PNG; a slide's small picture above them.

        Args:
            path: The file.

        Raises:
            RequestError: If it cannot be written.
        """
        from PIL import Image

        height, width = self.rows[0].shape[1:]
        cell_px = min(max(round(_CELL_PX * height / width), 16), 4 * _CELL_PX)
        cells = [_cell(row, self.windows, cell_px) for row in self.rows]
        lines = -(-len(cells) // _COLUMNS)
        columns = min(len(cells), _COLUMNS)
        top = 0 if self.thumbnail is None else self.thumbnail.shape[0]
        width = max(columns * _CELL_PX, 0 if self.thumbnail is None else self.thumbnail.shape[1])
        sheet = Image.new("RGB", (width, top + lines * cell_px))
        if self.thumbnail is not None:
            sheet.paste(Image.fromarray(self.thumbnail), (0, 0))
        for index, cell in enumerate(cells):
            line, column = divmod(index, _COLUMNS)
            sheet.paste(cell, (column * _CELL_PX, top + line * cell_px))
        try:
            sheet.save(path, "PNG")
        except OSError as exc:
            raise RequestError(f"--picture {path}: {exc.strerror or exc}") from exc


def inspect_item(
    path: Path,
    *,
    reader: str | None,
    options: Mapping[str, Any],
    windows: tuple[WindowRecipe, ...] | None,
) -> Inspection:
    """Open one item and read some of its rows.

    Args:
        path: Its file or folder.
        reader: Which reader; None chooses by the name.
        options: Of the reader.
        windows: Of a recipe; None takes the reader's own.

    Returns:
        What was found.

    Raises:
        RequestError: If there is no such reader or option, or the item cannot be read.
    """
    made = make_reader(reader or guess_reader([path]), options)
    try:
        item = guarded(lambda: made.open(ItemFiles(path=path)))
        with item:
            return guarded(lambda: _inspected(made, item, windows))
    except ItemError as exc:
        raise RequestError(f"{path}, by the reader {made.name}: {exc}") from exc


def _inspected(
    reader: Reader[Any], item: OpenItem, windows: tuple[WindowRecipe, ...] | None
) -> Inspection:
    numbers = np.unique(np.linspace(0, item.n_rows - 1, _DRAWN).round().astype(int)).tolist()
    rows = [row for number in numbers for row in item.rows(number, number + 1)]
    coords, geometry = item.coords(), item.geometry
    low, high = min(float(row.min()) for row in rows), max(float(row.max()) for row in rows)
    facts: dict[str, Any] = {
        "reader": reader.name,
        "options": reader.options,
        "rows": item.n_rows,
        "row_shape": list(rows[0].shape),
        "type": str(rows[0].dtype),
        "values_seen": [low, high],
        "values_possible": list(item.value_range) if item.value_range else None,
        "file_window": list(item.file_window) if item.file_window else None,
        "spacing_mm_zyx": list(geometry.spacing) if geometry.spacing else None,
        "affine_lps": geometry.affine.tolist() if geometry.affine is not None else None,
        "file_shape": list(geometry.source_shape) if geometry.source_shape else None,
        "first_row_at": _named(reader, coords[0]),
        "last_row_at": _named(reader, coords[-1]),
        "notes": list(item.notes),
    }
    return Inspection(
        facts=facts,
        rows=rows,
        windows=item_windows(windows or parse_windows(reader.window), item),
        thumbnail=item.thumbnail(),
    )


def _named(reader: Reader[Any], coord: npt.NDArray[np.float64]) -> dict[str, float]:
    names = [f"{name} ({unit})" for name, unit in reader.columns]
    return dict(zip(names, coord.tolist(), strict=True))


def _cell(row: Pixels, windows: tuple[Window, ...], height_px: int) -> Any:  # noqa: ANN401 - Pillow is imported late
    """Draw one row; of many channels the first three."""
    from PIL import Image

    shown = row[:3] if len(row) >= 3 else row[:1]
    pairs = np.array(windows[: len(shown)] if len(windows) >= len(shown) else windows[:1])
    low, high = pairs[:, 0, None, None], pairs[:, 1, None, None]
    grey = (np.clip((shown - low) / (high - low), 0, 1) * 255).astype(np.uint8)
    shaped = grey[0] if len(grey) == 1 else grey.transpose(1, 2, 0)
    image = Image.fromarray(shaped).convert("RGB")
    return image.resize((_CELL_PX, height_px))
