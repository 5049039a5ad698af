"""What all heads share: checks of what they are given, and saving what they learned."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt

__all__ = ["SavedHead", "check_bag", "check_bag_targets", "check_features", "check_training"]


_CHECKED_ROWS = 8192


class SavedHead:
    """A head whose learned values are arrays, saved and restored by their names.

    A subclass names them in `learned`, without the trailing ``_``; the last one to be set by
    ``fit`` comes last.
    """

    takes: ClassVar[Literal["vectors", "bags"]] = "vectors"
    learned: ClassVar[tuple[str, ...]]

    @property
    def selects(self) -> bool:
        """Whether something is chosen by validation items; most heads choose nothing."""
        return False

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return what was learned, by name, without the trailing ``_``.

        Raises:
            ValueError: If the head is not fitted.
        """
        if not hasattr(self, f"{self.learned[-1]}_"):
            raise ValueError("the head is not fitted; there is nothing to save before fit")
        return {name: getattr(self, f"{name}_") for name in self.learned}

    @classmethod
    def from_arrays(cls, params: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> Self:
        """Restore a fitted head that predicts as the saved one did.

        Args:
            params: What `get_params` returned.
            arrays: What `to_arrays` returned.

        Returns:
            A fitted head.

        Raises:
            ValueError: If an array is missing or a setting is out of its range.
        """
        missing = [name for name in cls.learned if name not in arrays]
        if missing:
            raise ValueError(
                f"a {cls.__name__} is saved as the arrays {', '.join(cls.learned)}; "
                f"missing: {', '.join(missing)}. Fit the head again."
            )
        head = cls(**params)
        for name in cls.learned:
            setattr(head, f"{name}_", arrays[name])
        return head


def check_training(x: npt.NDArray[Any], y: npt.NDArray[Any]) -> None:
    """Refuse what no head can be fitted on.

    Args:
        x: (n_items, dim) features.
        y: (n_items, n_outputs) targets of 0 and 1.

    Raises:
        ValueError: If shapes, dtypes or values are others.
    """
    if y.ndim != 2 or len(x) != len(y) or len(y) == 0 or y.shape[1] == 0:
        raise ValueError(
            "a head is fitted on features (n_items, dim) and targets (n_items, n_outputs) of the "
            f"same items, at least one; got {x.shape} and {y.shape}"
        )
    check_features(x)
    _check_zero_or_one(y)


def check_features(x: npt.NDArray[Any]) -> None:
    """Refuse features that are not (n_items, dim) finite floats.

    Args:
        x: The features.

    Raises:
        ValueError: If they are others; the first bad row is named.
    """
    if x.ndim != 2 or not np.issubdtype(x.dtype, np.floating):
        raise ValueError(f"features must be (n_items, dim) floats, got {x.shape} {x.dtype}")
    for start in range(0, len(x), _CHECKED_ROWS):
        finite = np.isfinite(x[start : start + _CHECKED_ROWS]).all(axis=1)
        if not finite.all():
            row = start + int(np.argmin(finite))
            raise ValueError(f"features must be finite, row {row} is not; leave that item out")


def check_bag_targets(n_bags: int, y: npt.NDArray[Any]) -> None:
    """Refuse targets that do not belong to so many bags.

    Args:
        n_bags: Number of bags.
        y: (n_items, n_outputs) targets of 0 and 1.

    Raises:
        ValueError: If the shape or the values are others.
    """
    if y.ndim != 2 or n_bags != len(y) or n_bags == 0 or y.shape[1] == 0:
        raise ValueError(
            "a head is fitted on bags (n_rows, dim) and targets (n_items, n_outputs) of the same "
            f"items, at least one; got {n_bags} bags and {y.shape}"
        )
    _check_zero_or_one(y)


def check_bag(bag: npt.NDArray[Any], number: int) -> None:
    """Refuse a bag that is not (n_rows, dim) finite floats with at least one row.

    Args:
        bag: The rows of one item.
        number: The item's, for messages.

    Raises:
        ValueError: If it is another.
    """
    if bag.ndim != 2 or not np.issubdtype(bag.dtype, np.floating):
        raise ValueError(f"bag {number} must be (n_rows, dim) floats, got {bag.shape} {bag.dtype}")
    if len(bag) == 0:
        raise ValueError(f"bag {number} has no rows; leave that item out")
    for start in range(0, len(bag), _CHECKED_ROWS):
        if not _is_finite(bag[start : start + _CHECKED_ROWS]):
            raise ValueError(f"features must be finite, bag {number} is not; leave that item out")


def _is_finite(rows: npt.NDArray[np.floating[Any]]) -> bool:
    if rows.dtype != np.float16 or not rows.flags.c_contiguous:
        return bool(np.isfinite(rows).all())
    # All bits of the exponent are set. numpy's own test of halves takes ten times as long.
    return bool((rows.view(np.uint16) & 0x7FFF).max(initial=0) < 0x7C00)


def _check_zero_or_one(y: npt.NDArray[Any]) -> None:
    if not ((y == 0) | (y == 1)).all():
        raise ValueError(
            f"targets must be 0 or 1, got {y[(y != 0) & (y != 1)][0]}; "
            "leave out items without a label, write classes as one column each"
        )
