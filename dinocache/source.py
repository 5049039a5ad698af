"""Where the items of a store come from: a table's paths, opened by a reader."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from dinocache.decoders import Decoders
from dinocache.errors import ItemError
from dinocache.intensity import Window, item_windows
from dinocache.items import channel_columns, mask_columns
from dinocache.readers import ItemFiles, OpenItem, Reader, guarded
from dinocache.readers.channels import open_channels
from dinocache.recipe import WindowRecipe
from dinocache.records import Failure

__all__ = ["Source", "Watch"]

Watch = Callable[[str], AbstractContextManager[None]]
"""Told of each item, by its id, while a reader is at work on it: where that ends the process, this
is how the item is found."""


def _nobody(item_id: str) -> AbstractContextManager[None]:
    return nullcontext()


@dataclass(frozen=True, kw_only=True)
class Source:
    """The items of a table, on the disk.

    Attributes:
        data: The data folder.
        reader: Opens the items.
        paths: Item id -> paths relative to the data folder, one a channel.
        masks: Item id -> paths of its masks, one, or one a class, "" where it has none of that
            class; items without any are not in it.
        crop_masks: Item id -> path of the label map at whose centroid it is cropped.
        killers: Item id -> why it is not to be touched: reading it has ended a process.
        watch: Held while a reader is at work on an item.
        decoders: Processes for items that are better read there; None reads all in this one.
    """

    data: Path
    reader: Reader[Any]
    paths: Mapping[str, tuple[str, ...]]
    masks: Mapping[str, tuple[str, ...]]
    crop_masks: Mapping[str, str]
    killers: Mapping[str, str] = field(default_factory=dict)
    watch: Watch = _nobody
    decoders: Decoders | None = None

    @classmethod
    def of_table(
        cls,
        table: pd.DataFrame,
        data: Path,
        reader: Reader[Any],
        *,
        killers: Mapping[str, str] | None = None,
        watch: Watch = _nobody,
        decoders: Decoders | None = None,
    ) -> "Source":
        """Take the paths out of an item table."""
        columns = list(channel_columns(table).values()) or ["path"]
        ids = [str(i) for i in table["item_id"].tolist()]
        paths = zip(*(table[column].tolist() for column in columns), strict=True)
        return cls(
            data=data,
            reader=reader,
            paths=dict(zip(ids, paths, strict=True)),
            masks=_masks(table),
            crop_masks=_present(table, "crop_mask"),
            killers=killers or {},
            watch=watch,
            decoders=decoders,
        )

    def files(self, item_id: str) -> list[ItemFiles]:
        """Name an item's files, one a channel; the masks stand with each, as each is cropped."""
        masks = [self.data / p if p else None for p in self.masks.get(item_id, ())]
        centre = self.crop_masks.get(item_id)
        return [
            ItemFiles(
                path=self.data / path,
                mask=masks[0] if len(masks) == 1 else None,
                class_masks=tuple(masks) if len(masks) > 1 else (),
                centre=self.data / centre if centre else None,
            )
            for path in self.paths[item_id]
        ]

    def open(self, item_id: str) -> OpenItem:
        """Open an item; raises `ItemError`. Whoever calls this, and reads it, holds `watch`."""
        if item_id in self.killers:
            raise ItemError(self.killers[item_id])
        return guarded(lambda: open_channels(self.reader, self.files(item_id)))

    def open_measured(
        self, item_id: str, windows: tuple[WindowRecipe, ...], *, mask: bool
    ) -> tuple[OpenItem, tuple[Window, ...]]:
        """Open an item and measure its windows, in another process where that is better.

        Whoever calls this, and reads the item, holds `watch`.

        Args:
            item_id: Its.
            windows: Of the recipe.
            mask: Whether its mask will be asked for, if it has one.

        Returns:
            (the item, its windows).

        Raises:
            ItemError: If it cannot be opened or measured, or ended processes before.
        """
        files = self.files(item_id)
        if self.decoders and item_id not in self.killers and self._is_apart(files):
            mask = mask and item_id in self.masks
            if found := self.decoders.open(self.reader, files, windows, mask=mask):
                return found.item, found.windows
        item = self.open(item_id)
        try:
            return item, guarded(lambda: item_windows(windows, item))
        except BaseException:
            item.close()
            raise

    def _is_apart(self, files: Sequence[ItemFiles]) -> bool:
        return all(self.reader.is_apart(one) for one in files)

    def count_rows(self, item_id: str) -> int:
        """Count an item's rows by its header; raises `ItemError`."""
        if item_id in self.killers:
            raise ItemError(self.killers[item_id])
        files = self.files(item_id)
        for channel in files:
            if not channel.path.exists():
                raise ItemError("the file is missing")
        with self.watch(item_id):
            if self.decoders and self._is_apart(files):
                return self.decoders.count(self.reader, files[0])
            return guarded(lambda: self.reader.count_rows(files[0]))

    def failure(self, item_id: str, reason: str) -> Failure:
        """Make the entry of the failure ledger."""
        return Failure(reason=reason, reader=self.reader.name, path=self.paths[item_id][0])


def _masks(table: pd.DataFrame) -> dict[str, tuple[str, ...]]:
    columns = mask_columns(table)
    if not columns:
        return {}
    # Of masks by class, an item without any has none of the classes.
    listed = table[["item_id", *columns]]
    listed = listed.dropna() if columns == ["mask"] else listed.fillna("")
    paths = zip(*(listed[column].astype(str) for column in columns), strict=True)
    return dict(zip(listed["item_id"].astype(str), paths, strict=True))


def _present(table: pd.DataFrame, column: str) -> dict[str, str]:
    if column not in table:
        return {}
    listed = table[["item_id", column]].dropna()
    return {str(i): str(path) for i, path in zip(listed["item_id"], listed[column], strict=True)}
