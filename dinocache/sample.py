"""The rows that scales and bases are fitted on, and those that their cost is measured on.

Which they are depends on the plan alone: see docs/store-format.md, "Calibration".
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dinocache.calibration import Sample, by_hash
from dinocache.errors import RequestError
from dinocache.layout import form_of, is_vector_kind
from dinocache.plan import Segment
from dinocache.recipe import Recipe

__all__ = ["Share", "draw", "sample_of", "spread"]

_LEAST_ROWS, _MOST_ROWS, _SHARE = 64, 512, 0.05
"""Rows that are fitted on: a twentieth of the first segment's, within these bounds."""
_ROWS_A_COMPONENT = 4
_LEAST_OF_AN_ITEM = 16
_RUN = 4
"""Rows of an item that follow each other: they are decoded together, and much alike."""
_PATCHES_AT_LEAST, _MOST_VECTORS = 8, 1 << 16
"""Of a map that has hundreds or thousands; and of all."""
_MOST_MEASURED = 1 << 13

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Share:
    """Rows of an item that are in the sample.

    Attributes:
        item: Its position in the segment.
        runs: (first row within the item, rows), in order.
        measured: Whether the loss is measured on them; otherwise they are fitted on.
    """

    item: int
    runs: tuple[tuple[int, int], ...]
    measured: bool


def draw(
    segment: Segment,
    recipe: Recipe,
    kinds: Iterable[str],
    *,
    whole_items: bool = False,
    absent: Iterable[str] = (),
) -> list[Share]:
    """Draw the rows of the sample by a hash of the items' ids.

    Args:
        segment: The first of a store.
        recipe: Of the store.
        kinds: That are fitted.
        whole_items: Whether all rows of an item are needed together.
        absent: Ids that cannot be had.

    Returns:
        Shares, in the order in which they are drawn: first those that are fitted on.
    """
    left_out = set(absent)
    position = {item_id: number for number, item_id in enumerate(segment.item_ids)}
    order = [position[i] for i in by_hash(segment.item_ids) if i not in left_out]
    total = sum(segment.item_rows)
    target = min(max(_LEAST_ROWS, math.ceil(total * _SHARE)), _MOST_ROWS)
    components = [
        form.pca or 0
        for kind in kinds
        if is_vector_kind(kind) and (form := form_of(kind, recipe)) is not None
    ]
    target = max(target, _ROWS_A_COMPONENT * max(components, default=0))
    of_fitted = len(order) if len(order) < 2 else math.ceil(len(order) * 2 / 3)
    cap = max(_LEAST_OF_AN_ITEM, math.ceil(target / max(of_fitted, 1)))
    shares: list[Share] = []
    taken = {False: 0, True: 0}
    for number, item in enumerate(order):
        measured = number >= of_fitted or taken[False] >= target
        if measured and taken[True] >= target / 2:
            break
        n_rows = segment.item_rows[item]
        runs = ((0, n_rows),) if whole_items else _runs(n_rows, cap)
        shares.append(Share(item=item, runs=runs, measured=measured))
        taken[measured] += sum(count for _, count in runs)
    return shares


def _runs(n_rows: int, most: int) -> tuple[tuple[int, int], ...]:
    """Spread short runs of rows evenly over an item."""
    if n_rows <= most:
        return ((0, n_rows),)
    length = min(_RUN, most)
    count = most // length
    starts = np.linspace(0, n_rows - length, count).astype(int)
    return tuple((int(start), length) for start in np.unique(starts // length * length))


def sample_of(rows: Mapping[int, Floats], shares: Sequence[Share]) -> Sample:
    """Put the sample together.

    Args:
        rows: Position of an item -> (vectors, dim), of those that could be had.
        shares: As they were drawn.

    Raises:
        RequestError: If there is none.
    """
    there = [share for share in shares if share.item in rows]
    fitted = [rows[share.item] for share in there if not share.measured]
    measured = [rows[share.item] for share in there if share.measured]
    if not fitted:
        fitted, measured = measured, []
    if not fitted:
        raise RequestError(
            "nothing can be fitted: none of the items that were drawn for it can be read; mend "
            "them, or extract without --quantize and --pca"
        )
    return Sample(
        fitted=np.concatenate(fitted),
        measured=_some(np.concatenate(measured or fitted)),
        fitted_items=len(fitted),
        measured_items=len(measured or fitted),
        held_out=bool(measured),
    )


def _some(vectors: Floats) -> Floats:
    """Leave out some of too many, evenly."""
    count = min(len(vectors), _MOST_MEASURED)
    return vectors[np.linspace(0, len(vectors) - 1, count).astype(np.intp)]


def spread(row: Floats, shift: int, n_rows: int) -> Floats:
    """Take patches spread over a map.

    Args:
        row: (dim,) or (grid_height, grid_width, dim).
        shift: By which the places are moved, another for each row.
        n_rows: Of the whole sample: of many, each gives fewer patches.

    Returns:
        (n, dim).
    """
    vectors = row.reshape(-1, row.shape[-1])
    count = min(len(vectors), max(_PATCHES_AT_LEAST, _MOST_VECTORS // n_rows))
    at = np.arange(count) * len(vectors) // count + shift
    return vectors[at % len(vectors)]
