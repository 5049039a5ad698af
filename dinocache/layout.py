"""Where everything lies in a store, and the `zarr.json` of each array.

See docs/store-format.md. The `zarr.json` files are written from here and not by zarr, so that they
are the same bytes whatever its version, and `verify` can compare them.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dinocache.errors import RequestError
from dinocache.plan import Grid
from dinocache.recipe import Recipe

__all__ = [
    "FEATURES",
    "FORMAT",
    "HEADER",
    "ITEM_PREFIX",
    "NATIVE",
    "NATIVE_KINDS",
    "PLANS",
    "SEALED",
    "UNITS",
    "VECTOR_KINDS",
    "ArrayLayout",
    "array_document",
    "array_layout",
    "check_kinds",
    "group_document",
    "is_row_kind",
    "layer_kind",
    "layer_number",
    "native_document",
    "record_name",
    "stored_kinds",
]

FORMAT = 2
HEADER = "store.json"
PLANS = "plans"
UNITS = "units"
FEATURES = "features.zarr"
NATIVE = "native.zarr"
SEALED = "sealed.json"

VECTOR_KINDS = ("cls", "mean", "embed")
NATIVE_KINDS = ("image", "mask")
ITEM_PREFIX = "item_"
_LAYER = re.compile(r"dense\.L(\d\d)")

_MAX_SHARD_BYTES = 128 << 20
_BYTES = {"name": "bytes", "configuration": {"endian": "little"}}
_CRC = {"name": "crc32c"}
_ZSTD = {"name": "zstd", "configuration": {"level": 3, "checksum": False}}


@dataclass(frozen=True, kw_only=True)
class ArrayLayout:
    """Shape and chunks of one feature array.

    Attributes:
        kind: Its name.
        axis: What its first axis counts.
        tail: The other axes.
        dtype: Of the stored numbers.
        file_rows: Rows in one file: a chunk, or a shard of chunks of one row.
        sharded: Whether a file holds several chunks.
    """

    kind: str
    axis: Literal["row", "item"]
    tail: tuple[int, ...]
    dtype: Literal["float16", "float32"]
    file_rows: int
    sharded: bool = False

    def key(self, index: int) -> str:
        """Path within the store of one file.

        Args:
            index: Number of the file along the first axis.

        Returns:
            As `features.zarr/cls/c.7.0`.
        """
        name = ".".join(["c", str(index), *["0"] * len(self.tail)])
        return f"{FEATURES}/{self.kind}/{name}"


def layer_number(kind: str) -> int | None:
    """Give the layer, from 0, of a kind like `dense.L05`; None for any other kind."""
    match = _LAYER.fullmatch(kind)
    return int(match[1]) if match else None


def layer_kind(number: int) -> str:
    """Name the map of a layer before the last, as `dense.L05`."""
    return f"dense.L{number:02d}"


def is_row_kind(kind: str) -> bool:
    """Tell whether a kind is made of each row: a vector, or a map of some layer."""
    return kind in VECTOR_KINDS or kind == "dense" or layer_number(kind) is not None


def check_kinds(kinds: Iterable[str]) -> tuple[str, ...]:
    """Let through kinds that can be extracted, each once, in the usual order.

    Args:
        kinds: As a person gave them.

    Returns:
        Vectors, maps from the first layer to the last, the item's own grid.

    Raises:
        RequestError: If one is unknown or there is none.
    """
    given = list(kinds)
    unknown = [k for k in given if not is_row_kind(k) and k not in NATIVE_KINDS]
    if unknown or not given:
        named = ", ".join(repr(k) for k in unknown) or "nothing"
        choices = ", ".join((*VECTOR_KINDS, "dense", "dense.L05 and the like", *NATIVE_KINDS))
        raise RequestError(f"--features: {named}; choose from {choices}")
    layers = sorted({k for k in given if layer_number(k) is not None})
    order = (*VECTOR_KINDS, *layers, "dense", *NATIVE_KINDS)
    return tuple(kind for kind in order if kind in given)


def array_layout(kind: str, recipe: Recipe, grid: Grid) -> ArrayLayout:
    """Say how an array of features is laid out.

    Args:
        kind: A row kind, or an item kind as `item_cls`.
        recipe: The store's.
        grid: The store's.

    Returns:
        Its layout.
    """
    encoder = recipe.encoder
    of_row = kind.removeprefix(ITEM_PREFIX)
    dim = encoder.embed_dim or encoder.dim if of_row == "embed" else encoder.dim
    if kind != of_row:
        return ArrayLayout(
            kind=kind, axis="item", tail=(dim,), dtype="float32", file_rows=grid.item_chunk_rows
        )
    if kind in VECTOR_KINDS:
        return ArrayLayout(
            kind=kind, axis="row", tail=(dim,), dtype="float16", file_rows=grid.chunk_rows
        )
    patch, dim = encoder.layer_shape(layer_number(kind))
    height, width = recipe.input.resolution
    tail = (height // patch, width // patch, dim)
    map_bytes = tail[0] * tail[1] * tail[2] * 2
    rows = grid.chunk_rows
    while rows > 1 and rows * map_bytes > _MAX_SHARD_BYTES:
        rows //= 2
    return ArrayLayout(
        kind=kind, axis="row", tail=tail, dtype="float16", file_rows=rows, sharded=True
    )


def array_document(layout: ArrayLayout, length: int) -> bytes:
    """Write the `zarr.json` of an array.

    Args:
        layout: The array's.
        length: Of its first axis.

    Returns:
        The file's bytes (Zarr core specification, version 3.0; sharding: ZEP 2).
    """
    codecs: list[dict[str, Any]] = [_BYTES, _CRC]
    if layout.sharded:
        configuration = {
            "chunk_shape": [1, *layout.tail],
            "codecs": [_BYTES, _CRC],
            "index_codecs": [_BYTES, _CRC],
            "index_location": "end",
        }
        codecs = [{"name": "sharding_indexed", "configuration": configuration}]
    names = ["feature"] if len(layout.tail) == 1 else ["grid_row", "grid_column", "feature"]
    return _array(
        shape=[length, *layout.tail],
        chunk=[layout.file_rows, *layout.tail],
        dtype=layout.dtype,
        fill="NaN",
        codecs=codecs,
        names=[layout.axis, *names],
        attributes={},
    )


def native_document(
    shape: tuple[int, int, int, int], dtype: str, attributes: dict[str, Any]
) -> bytes:
    """Write the `zarr.json` of one item's image or mask.

    Args:
        shape: (C, Z, Y, X).
        dtype: NumPy's name of an integer or float type.
        attributes: Of the array.

    Returns:
        The file's bytes.
    """
    channels, _, height, width = shape
    return _array(
        shape=list(shape),
        chunk=[channels, 1, height, width],
        dtype=dtype,
        fill=0,
        codecs=[_BYTES if dtype not in ("uint8", "int8") else {"name": "bytes"}, _ZSTD, _CRC],
        names=["channel", "z", "y", "x"],
        attributes=attributes,
    )


def group_document(attributes: dict[str, Any]) -> bytes:
    """Write the `zarr.json` of a group."""
    return _text({"zarr_format": 3, "node_type": "group", "attributes": attributes})


def record_name(unit: str, kind: str) -> str:
    """Name of a commit record, as `units/0001-00007.cls.json`."""
    return f"{UNITS}/{unit}.{kind}.json"


def stored_kinds(path: Path) -> tuple[str, ...]:
    """List the kinds that a store has or was told to have.

    Args:
        path: The store.

    Returns:
        Kinds whose arrays exist, in the usual order; item kinds are not listed.
    """
    found = [
        folder.name
        for group in (FEATURES, NATIVE)
        if (path / group).is_dir()
        for folder in (path / group).iterdir()
        if (is_row_kind(folder.name) or folder.name in NATIVE_KINDS)
        and (folder / "zarr.json").exists()
    ]
    return check_kinds(found) if found else ()


def _array(
    *,
    shape: list[int],
    chunk: list[int],
    dtype: str,
    fill: float | str,
    codecs: list[dict[str, Any]],
    names: list[str],
    attributes: dict[str, Any],
) -> bytes:
    return _text(
        {
            "zarr_format": 3,
            "node_type": "array",
            "shape": shape,
            "data_type": dtype,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
            "fill_value": fill,
            "codecs": codecs,
            "dimension_names": names,
            "attributes": attributes,
        }
    )


def _text(document: dict[str, Any]) -> bytes:
    return (json.dumps(document, indent=2, sort_keys=True) + "\n").encode()
