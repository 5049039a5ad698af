"""Several files as the channels of one item, CT and PET, or as the classes of its mask."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dinocache.errors import ItemError
from dinocache.readers.contract import ItemFiles, Labels, OpenItem, Pixels, Reader

__all__ = ["open_channels"]


def open_channels(reader: Reader[Any], files: Sequence[ItemFiles]) -> OpenItem:
    """Open an item that may lie in several files, one a channel, with a mask a class.

    Args:
        reader: Of all of them.
        files: In order of channels; the masks stand with the first.

    Returns:
        The item on the grid of its first channel.

    Raises:
        ItemError: If one cannot be opened, or cannot be brought to the first one's grid.
    """
    item = _open_channels(reader, files)
    return _WithClassMasks(item, reader, files[0]) if files[0].class_masks else item


def _open_channels(reader: Reader[Any], files: Sequence[ItemFiles]) -> OpenItem:
    first = reader.open(files[0])
    if len(files) == 1:
        return first
    parts = [first]
    try:
        for channel in files[1:]:
            part = _opened(reader, channel, first)
            parts.append(part)
            if part.n_rows != first.n_rows:
                raise ItemError(
                    f"{channel.path.name} has {part.n_rows} rows, {files[0].path.name} "
                    f"{first.n_rows}: the channels of an item have the same"
                )
    except BaseException:
        for part in parts:
            part.close()
        raise
    return _Channels(tuple(parts), tuple(f.path.name for f in files))


def _opened(reader: Reader[Any], files: ItemFiles, first: OpenItem) -> OpenItem:
    try:
        return reader.open(files, like=first.geometry)
    except ItemError as exc:
        raise ItemError(f"channel {files.path.name}: {exc}") from exc


class _Channels(OpenItem):
    def __init__(self, parts: tuple[OpenItem, ...], names: tuple[str, ...]) -> None:
        self._parts, self._names = parts, names
        first = parts[0]
        self.n_rows = first.n_rows
        self.geometry = first.geometry
        self.notes = tuple(note for part in parts for note in part.notes)
        self.nbytes = sum(part.nbytes for part in parts)
        self.one_at_a_time = any(part.one_at_a_time for part in parts)
        self.size = parts[0].size

    @property
    def parts(self) -> tuple[OpenItem, ...]:
        return self._parts

    def rows(self, start: int, stop: int) -> list[Pixels]:
        read = [part.rows(start, stop) for part in self._parts]
        for rows, name in zip(read, self._names, strict=True):
            if rows and len(rows[0]) != 1:
                raise ItemError(f"channel {name}: it has {len(rows[0])} channels itself")
            if rows and rows[0].shape != read[0][0].shape:
                raise ItemError(
                    f"channel {name} is {_size(rows[0])} (lines x columns), {self._names[0]} "
                    f"{_size(read[0][0])}"
                )
        types = {row.dtype for rows in read for row in rows[:1]}
        common = types.pop() if len(types) == 1 else np.dtype(np.float32)
        joined: list[Any] = [np.concatenate(r, dtype=common) for r in zip(*read, strict=True)]
        return joined

    def coords(self) -> "np.ndarray[Any, np.dtype[np.float64]]":
        return self._parts[0].coords()

    def mask(self) -> Labels:
        return self._parts[0].mask()

    def thumbnail(self) -> "np.ndarray[Any, np.dtype[np.uint8]] | None":
        return self._parts[0].thumbnail()

    def close(self) -> None:
        for part in self._parts:
            part.close()


class _WithClassMasks(OpenItem):
    """An item whose mask has a channel a class, each of a file of its own: 1 where it is not 0."""

    def __init__(self, item: OpenItem, reader: Reader[Any], files: ItemFiles) -> None:
        self._item, self._reader, self._files = item, reader, files
        self.n_rows = item.n_rows
        self.geometry = item.geometry
        self.value_range = item.value_range
        self.file_window = item.file_window
        self.notes = item.notes
        self.nbytes = item.nbytes
        self.one_at_a_time = item.one_at_a_time
        self.size = item.size

    @property
    def parts(self) -> tuple[OpenItem, ...]:
        own = self._item.parts
        return own if len(own) > 1 else (self,)

    def rows(self, start: int, stop: int) -> list[Pixels]:
        return self._item.rows(start, stop)

    def coords(self) -> "np.ndarray[Any, np.dtype[np.float64]]":
        return self._item.coords()

    def mask(self) -> Labels:
        classes = [self._class_mask(path) for path in self._files.class_masks if path is not None]
        if not classes:
            plane = self._item.rows(0, 1)[0].shape[1:]
            return np.zeros((len(self._files.class_masks), self.n_rows, *plane), np.uint8)
        shapes = {found.shape for found in classes}
        if len(shapes) > 1 or len(classes[0]) != 1:
            raise ItemError(
                f"the masks of its classes differ in shape, or have several channels: "
                f"{', '.join(str(shape) for shape in sorted(shapes))}"
            )
        whole = np.zeros((len(self._files.class_masks), *classes[0].shape[1:]), np.uint8)
        present = [i for i, path in enumerate(self._files.class_masks) if path is not None]
        for index, found in zip(present, classes, strict=True):
            whole[index] = found[0] != 0
        return whole

    def _class_mask(self, path: Path) -> Labels:
        try:
            with self._reader.open(replace(self._files, mask=path, class_masks=())) as item:
                return item.mask()
        except ItemError as exc:
            raise ItemError(f"{path.name}: {exc}") from exc

    def thumbnail(self) -> "np.ndarray[Any, np.dtype[np.uint8]] | None":
        return self._item.thumbnail()

    def close(self) -> None:
        self._item.close()


def _size(row: Pixels) -> str:
    return " x ".join(str(n) for n in row.shape[1:])
