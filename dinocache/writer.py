"""Writing a store: data first, flushed to the disk, then the record that makes it count.

See docs/store-format.md and invariants 1 to 3 of docs/design.md: no lock, nothing read back to be
rewritten, and the same unit done twice, even at once, ends in the same bytes.
"""

import io
import uuid
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import zarr

from dinocache import documents
from dinocache.array_files import file_content
from dinocache.calibration import Calibration
from dinocache.durable import reading, writing
from dinocache.folders import Folder
from dinocache.items import latest_number, parquet_name, to_parquet
from dinocache.layout import (
    FEATURES,
    HEADER,
    ITEM_PREFIX,
    NATIVE,
    NATIVE_KINDS,
    PLANS,
    RUNS,
    SEALED,
    THUMB_SIZE,
    ArrayLayout,
    array_document,
    array_layout,
    calibration_name,
    group_document,
    is_vector_kind,
    native_document,
    record_name,
    thumb_name,
)
from dinocache.plan import Segment
from dinocache.records import Fitted, Header, Record, Run, StoredObject
from dinocache.remote import in_parallel
from dinocache.store import FeatureStore
from dinocache.zarrs import WrittenStore

__all__ = ["StoreWriter", "create_store", "expected_documents"]

Objects = dict[str, StoredObject]

_FILES_AT_ONCE, _BYTES_AT_ONCE = 8, 64 << 20
"""Files of an array that are written beside each other: each is a copy of its rows."""


def create_store(folder: Folder, header: Header) -> None:
    """Make a store with nothing in it, unless one is there already.

    Args:
        folder: Where.
        header: Its `store.json`.

    Raises:
        StoreWriteError: If it cannot be written.
    """
    folder.create(HEADER, documents.encode(header.model_dump(mode="json")))


class StoreWriter:
    """Adds to a store. One thread uses one writer; several writers, anywhere, may share a store.

    Attributes:
        store: The store as it was when the writer last looked.
    """

    def __init__(self, store: FeatureStore) -> None:
        self.store = store
        self.folder = store.folder
        self._native = WrittenStore(store.folder, NATIVE, store.header.format)
        self._open_native: tuple[str, zarr.Array[Any]] | None = None

    def reload(self) -> None:
        """Look at what is there again."""
        self.store = FeatureStore(self.folder, before=self.store)

    def layout(self, kind: str) -> ArrayLayout:
        """Say how an array of this store is laid out."""
        return self.store.layout(kind)

    def put_items(self, table: pd.DataFrame) -> None:
        """Make an item table the one in force.

        Args:
            table: See `dinocache.items`.

        Raises:
            StoreWriteError: If the disk refuses.
        """
        if not set(self.store.items["item_id"]).issuperset(table["item_id"]):
            self._say_incomplete()
        content = to_parquet(table)
        name = parquet_name(latest_number(self.store.items_name) + 1, content)
        self.folder.replace(name, content)
        self.reload()

    def add_segment(self, segment: Segment) -> None:
        """Add a plan segment; if another process was first with that number, its plan holds.

        Args:
            segment: The next one.

        Raises:
            StoreWriteError: If the disk refuses.
        """
        self._say_incomplete()
        name = f"{PLANS}/{segment.number:04d}.json"
        self.folder.create(name, documents.encode(segment.to_body()))
        self.reload()

    def _say_incomplete(self) -> None:
        """Take back that the store is complete, before it no longer is."""
        name = f"{FEATURES}/zarr.json"
        if self.store.kinds:
            documents_now = expected_documents(self.store, self.store.kinds, complete=False)
            self.folder.keep(name, documents_now[name])

    def prepare(self, kinds: Sequence[str]) -> None:
        """Write the `zarr.json` of the arrays of some kinds, in the sizes that the plan asks for.

        Args:
            kinds: Row and native kinds, besides those that the store has.

        Raises:
            StoreWriteError: If the disk refuses.
        """
        self.reload()
        wanted = {*kinds, *self.store.kinds}
        for name, content in expected_documents(self.store, wanted, complete=False).items():
            self.folder.keep(name, content)
        self.folder.flush(("", PLANS))
        self.reload()

    def write_rows(self, kind: str, row: int, block: npt.NDArray[Any]) -> Objects:
        """Write rows that begin on a file boundary and belong to one unit.

        Args:
            kind: Of a row, or `item_*`.
            row: First row, a multiple of the layout's `file_rows`.
            block: (rows, ...) of the layout's dtype; NaN, or -128, where nothing is.

        Returns:
            The files written; none where nothing is in all rows.

        Raises:
            StoreWriteError: If the disk refuses.
        """
        layout = self.layout(kind)
        fits = block.dtype == layout.dtype and block.shape[1:] == layout.tail
        if row % layout.file_rows or not fits:
            raise AssertionError(f"{kind} rows at {row}, {block.dtype} {block.shape}: not {layout}")
        firsts = range(0, len(block), layout.file_rows)
        at_once = min(_FILES_AT_ONCE, _BYTES_AT_ONCE // (layout.file_rows * layout.row_bytes))
        with writing(f"{self.folder}/{FEATURES}/{kind}"):
            written = in_parallel(
                lambda first: self._write_file(
                    layout, (row + first) // layout.file_rows, block[first:][: layout.file_rows]
                ),
                firsts,
                most=max(1, at_once),
            )
        return {name: stored for objects in written for name, stored in objects.items()}

    def _write_file(self, layout: ArrayLayout, index: int, rows: npt.NDArray[Any]) -> Objects:
        """Write one file of an array, or see that there is none where nothing is in all rows."""
        name, content = layout.key(index), file_content(layout, rows)
        if content is None:
            self.folder.remove(name)
            return {}
        self.folder.replace(name, content)
        return {name: self.stored(content)}

    def freeze(self, calibration: Calibration) -> None:
        """Keep what a kind is made small by, unless another process was first: then that holds.

        Args:
            calibration: It.

        Raises:
            StoreWriteError: If the disk refuses.
        """
        self.folder.create(calibration_name(calibration.kind), calibration.encode())

    def fitted(self, kind: str, clipped: int | None, numbers: int) -> Fitted | None:
        """Say for a record what a kind was made small by; None if it is kept as it is.

        Args:
            kind: Which.
            clipped: How many numbers of int8 were cut off; None where that is not known.
            numbers: Of how many.
        """
        checksum = self.store.calibration_checksum(kind)
        if checksum is None:
            return None
        return Fitted(calibration=checksum, clipped=clipped, numbers=numbers)

    def write_native(
        self,
        kind: str,
        position: int,
        rows: npt.NDArray[Any],
        *,
        start: int,
        depth: int,
        attributes: dict[str, Any],
    ) -> Objects:
        """Write some rows of an item's own grid, one file a row.

        Args:
            kind: `image` or `mask`.
            position: The item's, on the item axis.
            rows: (C, Z, Y, X).
            start: Number of the first of them within the item.
            depth: Rows of the whole item.
            attributes: Of the array.

        Returns:
            The files written.

        Raises:
            StoreWriteError: If the disk refuses.
        """
        channels, _, height, width = rows.shape
        shape = (channels, depth, height, width)
        name = f"{kind}/{position}"
        if self._open_native is None or self._open_native[0] != name:
            document = native_document(shape, str(rows.dtype), attributes)
            self._native.put(f"{name}/zarr.json", document)
            with reading(f"{self.folder}/{NATIVE}/{name}/zarr.json"):
                array = zarr.open_array(self._native, path=name, mode="r+")
            # An all-black slice is data: it gets its file like every other.
            self._open_native = name, array.with_config({"write_empty_chunks": True})
        with writing(f"{self.folder}/{NATIVE}/{name}"):
            self._open_native[1][:, start : start + rows.shape[1]] = rows
        return self._native.take()

    def close_native(self) -> None:
        """Let the next unit describe the array anew that it shares with this one."""
        self._open_native = None

    def write_thumb(
        self, position: int, picture: npt.NDArray[np.uint8], size: tuple[int, int] | None
    ) -> Objects:
        """Write an item's small picture.

        Args:
            position: The item's, on the item axis.
            picture: (Y, X, 3).
            size: (width, height) of what it shows, in the px of the coordinates: a text chunk.

        Returns:
            The file written.

        Raises:
            StoreWriteError: If the disk refuses.
        """
        from PIL import Image
        from PIL.PngImagePlugin import PngInfo

        buffer, said = io.BytesIO(), PngInfo()
        if size is not None:
            said.add_text(THUMB_SIZE, f"{size[0]} {size[1]}")
        Image.fromarray(picture).save(buffer, "PNG", pnginfo=said)
        return self.put_thumb(position, buffer.getvalue())

    def put_thumb(self, position: int, content: bytes) -> Objects:
        """Write the PNG of an item's small picture.

        Args:
            position: The item's, on the item axis.
            content: The file.

        Returns:
            The file written.

        Raises:
            StoreWriteError: If the disk refuses.
        """
        name = thumb_name(position)
        self.folder.replace(name, content)
        return {name: self.stored(content)}

    def stored(self, content: bytes | memoryview) -> StoredObject:
        """Describe a file as records of this store do.

        Args:
            content: All of it.
        """
        return StoredObject.of(content, self.store.header.format)

    def commit(self, record: Record) -> None:
        """Write the record that makes a unit and kind count. Its data is on the disk already.

        Args:
            record: What was done.

        Raises:
            StoreWriteError: If the disk refuses.
        """
        content = documents.encode(record.model_dump(mode="json"))
        self.folder.replace(record_name(record.unit, record.kind), content)

    def write_run(self, run: Run) -> None:
        """Keep what a run came to. It is for people: nothing depends on it.

        Args:
            run: It.

        Raises:
            StoreWriteError: If the disk refuses.
        """
        began = run.began.replace("-", "").replace(":", "")
        name = f"{RUNS}/{began}-{uuid.uuid4().hex[:8]}.json"
        self.folder.replace(name, documents.encode(run.model_dump(mode="json")))

    def seal(self) -> bool:
        """If all is done, gather every record in `sealed.json` and say so in the arrays' group.

        Returns:
            Whether the store is complete.

        Raises:
            StoreWriteError: If the disk refuses.
        """
        self.reload()
        store = self.store
        if not store.is_complete:
            return False
        units: documents.Body = {}
        for work in store.work():
            record = store.record(work.unit, work.kind)
            if record is None:  # removed since it was listed
                return False
            units[f"{work.unit}.{work.kind}"] = record.model_dump(mode="json")
        plans = {}
        for name in (f"{s.number:04d}.json" for s in store.segments):
            with reading(f"{self.folder}/{PLANS}/{name}"):
                plans[name] = documents.checksum(self.folder.read(f"{PLANS}/{name}"))
        body = {"units": units, "plans": plans, "items": store.items_name}
        self.folder.keep(SEALED, documents.encode(body))
        for name, content in expected_documents(store, store.kinds, complete=True).items():
            self.folder.keep(name, content)
        self.reload()
        return True


def expected_documents(
    store: FeatureStore,
    kinds: Sequence[str] | set[str],
    *,
    complete: bool,
    segments: Sequence[Segment] | None = None,
    broken: Collection[str] = (),
) -> dict[str, bytes]:
    """Say what the `zarr.json` files of a store must hold, those of single items apart.

    With them go the small arrays of what kinds were made small by.

    Args:
        store: The store.
        kinds: Row and native kinds.
        complete: Whether it is.
        segments: Of its plan; by default all.
        broken: Kinds of which what they were made small by cannot be read; it is left out.

    Returns:
        Path within the store -> bytes.
    """
    header, segments = store.header, store.segments if segments is None else segments
    rows = segments[-1].row_stop if segments else 0
    items = segments[-1].item_stop if segments else 0
    attributes = {
        "dinocache": {
            "format": header.format,
            "dataset": header.dataset,
            "recipe": header.recipe.model_dump(mode="json"),
            "digest": header.digest,
            "weights": header.recipe.encoder.weights.name,
            "complete": complete,
        }
    }
    files = {f"{FEATURES}/zarr.json": group_document(attributes)}
    files[f"{NATIVE}/zarr.json"] = group_document({})
    for kind in sorted(kinds):
        if kind in NATIVE_KINDS:
            files[f"{NATIVE}/{kind}/zarr.json"] = group_document({})
            continue
        layout = array_layout(kind, header.recipe, header.grid)
        if store.holds(kind):
            files[f"{FEATURES}/{kind}/zarr.json"] = array_document(layout, rows)
            if kind not in broken and (calibration := store.calibration(kind)):
                files |= calibration.zarr_files()
        if is_vector_kind(kind) and store.holds(f"{ITEM_PREFIX}{kind}"):
            of_items = array_layout(f"{ITEM_PREFIX}{kind}", header.recipe, header.grid)
            files[f"{FEATURES}/{of_items.kind}/zarr.json"] = array_document(of_items, items)
    return files
