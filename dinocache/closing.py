"""Closing a segment: the mean over each item's rows, from what is committed."""

import numpy as np

from dinocache.layout import ITEM_PREFIX
from dinocache.plan import Segment
from dinocache.records import Failure, Record, StoredObject
from dinocache.store import FeatureStore
from dinocache.writer import StoreWriter

__all__ = ["close_segment"]


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
    store, item_kind = writer.store, f"{ITEM_PREFIX}{kind}"
    layout = writer.layout(item_kind)
    failed = _failed_in(store, segment, kind)
    objects: dict[str, StoredObject] = {}
    n_items = len(segment.item_ids)
    for start in range(0, n_items, layout.file_rows):
        stop = min(start + layout.file_rows, n_items)
        block = np.full((stop - start, *layout.tail), np.nan, np.float32)
        for item in range(start, stop):
            if segment.item_ids[item] not in failed:
                rows = store.segment_rows(kind, segment, item)
                block[item - start] = rows.mean(0, dtype=np.float64)
        if not np.isnan(block).all():
            objects |= writer.write_rows(item_kind, segment.item_start + start, block)
    writer.commit(
        Record(
            unit=segment.closing_name,
            kind=item_kind,
            recipe=segment.recipe,
            rows=(segment.item_start, segment.item_stop),
            items=n_items,
            failed=failed,
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
