"""What all heads share: checks of what they are given, and saving what they learned."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt

__all__ = ["SavedHead", "check_features", "check_training"]


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
    if not ((y == 0) | (y == 1)).all():
        raise ValueError(
            f"targets must be 0 or 1, got {y[(y != 0) & (y != 1)][0]}; "
            "leave out items without a label, write classes as one column each"
        )


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
