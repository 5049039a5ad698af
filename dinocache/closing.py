"""Closing a segment: the mean over each item's rows, from what is committed."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from dinocache.layout import ITEM_PREFIX
from dinocache.plan import Segment
from dinocache.records import Failure, Record, StoredObject
from dinocache.store import FeatureStore
from dinocache.writer import StoreWriter

__all__ = ["close_segment", "write_means"]


def close_segment(
    writer: StoreWriter, segment: Segment, kind: str, made_by: dict[str, str]
) -> None:
    """Write the mean over each item's rows, from the committed rows of a segment.

    Args:
        writer: Of the store; every unit of the segment is committed for this kind.
        segment: Which.
        kind: `cls` or `mean`.
        made_by: For the record.

    Raises:
        StoreWriteError: If the disk refuses.
        StoreDamagedError: If a committed file is not as it was written.
    """
    store = writer.store

    def mean_of(position: int) -> npt.NDArray[Any]:
        mean: npt.NDArray[Any] = store.segment_rows(kind, segment, position).mean(
            0, dtype=np.float64
        )
        return mean

    write_means(writer, segment, kind, mean_of, _failed_in(store, segment, kind), made_by)


def write_means(
    writer: StoreWriter,
    segment: Segment,
    kind: str,
    mean_of: Callable[[int], npt.NDArray[Any]],
    failed: Mapping[str, Failure],
    made_by: dict[str, str],
) -> None:
    """Write one vector an item of a segment, and commit it.

    Args:
        writer: Of the store.
        segment: Which.
        kind: Of the rows.
        mean_of: Gives the vector of an item by its position in the segment, (dim,).
        failed: Item id -> why it has none.
        made_by: For the record.

    Raises:
        StoreWriteError: If the disk refuses.
    """
    item_kind = f"{ITEM_PREFIX}{kind}"
    layout, ids = writer.layout(item_kind), segment.item_ids
    objects: dict[str, StoredObject] = {}
    for start in range(0, len(ids), layout.file_rows):
        block = layout.nothing(min(layout.file_rows, len(ids) - start))
        for number in range(len(block)):
            if ids[start + number] not in failed:
                block[number] = mean_of(start + number)
        if not layout.is_absent(block):
            objects |= writer.write_rows(item_kind, segment.item_start + start, block)
    writer.commit(
        Record(
            unit=segment.closing_name,
            kind=item_kind,
            recipe=segment.recipe,
            rows=(segment.item_start, segment.item_stop),
            items=len(ids),
            failed=dict(failed),
            not_asked=(),
            objects=objects,
            made_by=made_by,
        )
    )


def _failed_in(store: FeatureStore, segment: Segment, kind: str) -> dict[str, Failure]:
    failed: dict[str, Failure] = {}
    for unit in segment.units:
        record = store.record(unit.name, kind)
        if record is not None:
            failed |= record.failed
    return failed
