"""Stores for notebooks: `dinocache.open(...)`. See docs/notebooks.md."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from dinocache.errors import RequestError
from dinocache.layout import is_vector_kind
from dinocache.places import Where
from dinocache.store import FeatureStore

if TYPE_CHECKING:
    import dask.array
    import polars
    import torch

__all__ = ["ItemDataset", "Rows", "Store", "open_store"]

_DASK_BYTES = 128 << 20


class Rows:
    """The rows of one kind, in a store's order; read when they are asked for.

    `rows[10:20]` and `np.asarray(rows)` are NumPy arrays, `rows.torch()` and `rows.dask()` those of
    others.

    Attributes:
        kind: Its name.
        shape: (n_rows, dim), of maps (n_rows, grid_height, grid_width, dim).
        dtype: NumPy's.
        item_ids: (n_rows,) the item that each row is of.
    """

    def __init__(self, store: FeatureStore, kind: str) -> None:
        self._store = store
        self.kind = kind
        first = store.all_rows(kind, slice(0, 1))
        self._numbers = store.row_items(kind)
        self.shape: tuple[int, ...] = (len(self._numbers), *first.shape[1:])
        self.dtype = first.dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"<{self.kind} of {self._store.folder}: {self.shape} {self.dtype}>"

    def __getitem__(self, which: Any) -> npt.NDArray[Any]:  # noqa: ANN401 - as NumPy's
        """Read some rows, as NumPy's: a range of rows by itself, any other choice of all rows."""
        if isinstance(which, slice) and which.step in (None, 1):
            return self._store.all_rows(self.kind, which)
        if isinstance(which, int | np.integer):
            number = int(which) + len(self) * (which < 0)
            if not 0 <= number < len(self):
                raise IndexError(f"row {which} of {len(self)}")
            row: npt.NDArray[Any] = self._store.all_rows(self.kind, slice(number, number + 1))[0]
            return row
        rows: npt.NDArray[Any] = self[:][which]
        return rows

    def __array__(
        self, dtype: npt.DTypeLike | None = None, copy: bool | None = None
    ) -> npt.NDArray[Any]:
        """Read all rows."""
        if copy is False:
            raise ValueError("rows are read into memory; that is a copy")
        return np.asarray(self[:], dtype)

    def __iter__(self) -> Iterator[npt.NDArray[Any]]:
        step = max(1, _DASK_BYTES // max(1, self[:1].nbytes))
        for start in range(0, len(self), step):
            yield from self[start : start + step]

    @property
    def item_ids(self) -> npt.NDArray[np.str_]:
        """See the class."""
        return np.asarray(self._store.items["item_id"].astype(str), np.str_)[self._numbers]

    def torch(self) -> "torch.Tensor":
        """Read all rows into a tensor."""
        import torch

        return torch.from_numpy(self[:])

    def dask(self, rows: int | None = None) -> "dask.array.Array":
        """Give an array of dask that is read block by block.

        Args:
            rows: Of a block; by default such that it has some 128 MB.

        Raises:
            RequestError: If dask is not installed.
        """
        try:
            import dask.array
        except ModuleNotFoundError as exc:
            raise RequestError("dask is not installed: `pip install 'dask[array]'`") from exc
        row_bytes = int(np.prod(self.shape[1:])) * self.dtype.itemsize
        step = rows or max(1, _DASK_BYTES // row_bytes)
        blocks: dask.array.Array = dask.array.from_array(
            self, chunks=(step, *self.shape[1:]), meta=np.empty((0,) * len(self.shape), self.dtype)
        )
        return blocks


class Store:
    """A store: `store["cls"]`, `store.items`, `store.bag("slide_012")`.

    Attributes:
        items: The item table: `item_id`, `group`, targets.
        kinds: Kinds that it has.
        weights: Name of the encoder's weights.
        is_random: Whether they were drawn, not trained.
    """

    def __init__(self, store: FeatureStore) -> None:
        self.store = store

    def __repr__(self) -> str:
        header = self.store.header
        encoder = header.recipe.encoder
        return (
            f"<{header.dataset} by {encoder.name} ({encoder.weights.name}) at "
            f"{self.store.folder}: {len(self.items)} items, {', '.join(self.kinds)}>"
        )

    def __getitem__(self, kind: str) -> Rows:
        """Give the rows of a kind.

        Args:
            kind: `cls`, `mean`, `dense`, `dense.L05`, `row_coord`.

        Raises:
            StoreIncompleteError: If the store lacks it, or some of it.
        """
        return Rows(self.store, kind)

    @property
    def items(self) -> pd.DataFrame:
        """See the class."""
        return self.store.items

    @property
    def kinds(self) -> tuple[str, ...]:
        """See the class."""
        return self.store.kinds

    @property
    def weights(self) -> str:
        """See the class."""
        return self.store.header.recipe.encoder.weights.name

    @property
    def is_random(self) -> bool:
        """See the class."""
        return self.store.header.recipe.encoder.weights.is_random

    def items_polars(self) -> "polars.DataFrame":
        """Give the item table as polars has it.

        Raises:
            RequestError: If polars is not installed.
        """
        try:
            import polars
        except ModuleNotFoundError as exc:
            raise RequestError("polars is not installed: `pip install polars`") from exc
        return polars.from_pandas(self.items)

    def means(self, kind: str = "cls") -> pd.DataFrame:
        """Read one vector an item, the mean over its rows.

        Args:
            kind: `cls`, `mean` or `embed`.

        Returns:
            (n_items, dim) float32, by item id; items that failed are not there.
        """
        ids, vectors = self.store.item_vectors(kind)
        return pd.DataFrame(vectors, index=pd.Index(ids, name="item_id"))

    def bag(self, item_id: str, kind: str = "cls") -> npt.NDArray[np.float16 | np.float32]:
        """Read the rows of an item, (n_rows, dim)."""
        return self.store.rows(kind, item_id)

    def dense(self, item_id: str, kind: str = "dense") -> npt.NDArray[np.float16 | np.float32]:
        """Read the maps of an item, (n_rows, grid_height, grid_width, dim)."""
        return self.store.rows(kind, item_id)

    def image(self, item_id: str, kind: str = "image") -> npt.NDArray[Any]:
        """Read an item's own grid, (C, Z, Y, X); `kind` may be `mask`."""
        return self.store.native(kind, item_id)[0]

    def coords(self, item_id: str) -> pd.DataFrame:
        """Say where the rows of an item stand: a column a coordinate, named with its unit."""
        coords, columns = self.store.coords(item_id)
        return pd.DataFrame(coords, columns=[f"{name} ({unit})" for name, unit in columns])

    def dataset(self, target: str, kind: str = "cls", *, bags: bool = False) -> "ItemDataset":
        """Make a dataset for a DataLoader of torch.

        Args:
            target: Column of the item table; items without a value are left out.
            kind: Of the features.
            bags: Whether an item is all of its rows; otherwise it is their mean.

        Returns:
            Pairs of a float32 tensor and the target's value.
        """
        return ItemDataset(self, target, kind, bags=bags)


class ItemDataset:
    """(features, target) of items, for `torch.utils.data.DataLoader`."""

    def __init__(self, store: Store, target: str, kind: str, *, bags: bool) -> None:
        """See `Store.dataset`.

        Raises:
            RequestError: If there is no such column.
        """
        items = store.items
        if target not in items:
            raise RequestError(
                f"there is no target {target!r}; the store has {', '.join(items.columns)}"
            )
        if not is_vector_kind(kind):
            raise RequestError(f"{kind!r} is no vector; take cls, mean or embed")
        self._store, self._kind, self._bags = store, kind, bags
        ids, vectors = store.store.item_vectors(kind)
        values = items.set_index("item_id")[target].reindex(ids)
        known = values.notna().to_numpy()
        self.item_ids: Sequence[str] = [
            i for i, is_known in zip(ids, known, strict=True) if is_known
        ]
        self.targets: list[Any] = values[known].tolist()
        self._vectors = None if bags else vectors[known]

    def __len__(self) -> int:
        return len(self.item_ids)

    def __getitem__(self, number: int) -> "tuple[torch.Tensor, Any]":
        import torch

        if self._vectors is None:
            rows = self._store.bag(self.item_ids[number], self._kind)
            return torch.from_numpy(rows.astype(np.float32)), self.targets[number]
        return torch.from_numpy(self._vectors[number]), self.targets[number]


def open_store(where: Where) -> Store:
    """Open a store.

    Args:
        where: Its folder, or its URL: s3://, gs://, az://, https://, ssh://, file://.

    Returns:
        The store; features are read when they are asked for.

    Raises:
        StoreNotFoundError: If there is none.
        StoreDamagedError: If its files are not as they were written.
    """
    return Store(FeatureStore(where))
