"""Where everything lies in a store, and the `zarr.json` of each array.

See docs/store-format.md. The `zarr.json` files are written from here and not by zarr, so that they
are the same bytes whatever its version, and `verify` can compare them.
"""

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from crc32c import crc32c

from dinocache.errors import RequestError
from dinocache.plan import Grid
from dinocache.recipe import FormRecipe, Recipe
from dinocache.views import VIEWS

__all__ = [
    "BINDING_FORMAT",
    "CALIBRATION",
    "COORD",
    "FEATURES",
    "FORMAT",
    "FORMATS",
    "HEADER",
    "ITEM_PREFIX",
    "NATIVE",
    "NATIVE_KINDS",
    "PART",
    "PLANS",
    "RUNS",
    "SEALED",
    "THUMBS",
    "THUMB_SIZE",
    "UNITS",
    "VECTOR_KINDS",
    "ArrayLayout",
    "Kind",
    "Pass",
    "array_document",
    "array_kind",
    "array_layout",
    "base_of",
    "calibration_name",
    "check_kinds",
    "encoded_dim",
    "fitted_document",
    "form_of",
    "group_document",
    "is_row_kind",
    "is_vector_kind",
    "layer_kind",
    "layer_number",
    "native_document",
    "parse_kind",
    "pass_of",
    "plain_view",
    "record_name",
    "thumb_name",
]

FORMATS = 3, 4, 5
"""Versions that are read and added to; 3 has no features that are kept smaller than float16."""
FORMAT = FORMATS[-1]
"""Version of stores that are made now."""
BINDING_FORMAT = 5
"""Since this version the digests in records tell files of one size apart."""
HEADER = "store.json"
PLANS = "plans"
UNITS = "units"
RUNS = "runs"
FEATURES = "features.zarr"
NATIVE = "native.zarr"
CALIBRATION = "calibration"
THUMBS = "thumbs"
THUMB_SIZE = "size"
"""Text chunk of a thumbnail: width and height of the slide, level-0 px."""
SEALED = "sealed.json"
PART = "part.json"

VECTOR_KINDS = ("cls", "mean", "embed")
NATIVE_KINDS = ("image", "mask")
COORD = "row_coord"
"""Where each row stands; made by the reader, not by the encoder, and never asked for."""
ITEM_PREFIX = "item_"
_KIND = re.compile(
    r"(?P<base>cls|mean|embed|(?P<dense>dense)(?:\.L(?P<layer>\d\d))?)"
    rf"(?:\.(?P<channel>(?!(?:l\d\d|{'|'.join(VIEWS)})(?:\.|$))[a-z0-9_]+))?"
    rf"(?(dense)(?:\.(?P<view>{'|'.join(VIEWS)}))?)"
)

ABSENT_CODE = -128
_MAX_SHARD_BYTES = 128 << 20
_BYTES = {"name": "bytes", "configuration": {"endian": "little"}}
_CRC = {"name": "crc32c"}
_ZSTD = {"name": "zstd", "configuration": {"level": 3, "checksum": False}}
_BLOSC = {"cname": "zstd", "clevel": 5, "blocksize": 0}
_FITTED = re.compile(r"(?P<kind>.+)_(?:offset|basis|scale)")


@dataclass(frozen=True, kw_only=True)
class ArrayLayout:
    """Shape and chunks of one feature array.

    Attributes:
        kind: Its name.
        axis: What its first axis counts.
        tail: The other axes.
        dtype: Of the stored numbers.
        codec: That compresses them, or `none`.
        file_rows: Rows in one file: a chunk, or a shard of chunks of one row.
        sharded: Whether a file holds several chunks.
        columns: (name, unit) of each number in a row, of coordinates.
    """

    kind: str
    axis: Literal["row", "item"]
    tail: tuple[int, ...]
    dtype: Literal["int8", "float16", "float32", "float64"]
    file_rows: int
    codec: Literal["none", "zstd", "blosc"] = "none"
    sharded: bool = False
    columns: tuple[tuple[str, str], ...] = ()

    def key(self, index: int) -> str:
        """Path within the store of one file.

        Args:
            index: Number of the file along the first axis.

        Returns:
            As `features.zarr/cls/c.7.0`.
        """
        name = ".".join(["c", str(index), *["0"] * len(self.tail)])
        return f"{FEATURES}/{self.kind}/{name}"

    @property
    def row_bytes(self) -> int:
        """Of a row, before it is compressed."""
        return math.prod(self.tail) * np.dtype(self.dtype).itemsize

    @property
    def absent(self) -> float:
        """What stands where nothing is: NaN, or the one int8 that no feature becomes."""
        return ABSENT_CODE if self.dtype == "int8" else math.nan

    def is_absent(self, block: npt.NDArray[Any]) -> bool:
        """Tell whether nothing is in a whole block."""
        nothing = block == ABSENT_CODE if self.dtype == "int8" else np.isnan(block)
        return bool(nothing.all())

    def nothing(self, n_rows: int) -> npt.NDArray[Any]:
        """Make rows in which nothing is."""
        return np.full((n_rows, *self.tail), self.absent, self.dtype)


@dataclass(frozen=True)
class Kind:
    """What the name of a kind says, as `dense.L05.pet`.

    Attributes:
        base: What the encoder is asked for: `dense.L05`.
        layer: 5; None for vectors and the last layer's map.
        channel: `pet`, of an item whose channels pass through the encoder one by one; else None.
        view: `hflip`, of a map of the image mirrored so; None of the image as it is.
    """

    base: str
    layer: int | None
    channel: str | None
    view: str | None = None


def parse_kind(name: str) -> Kind | None:
    """Take the name of a kind that an encoder makes apart; None for any other."""
    match = _KIND.fullmatch(name)
    if match is None:
        return None
    layer = int(match["layer"]) if match["layer"] else None
    return Kind(match["base"], layer, match["channel"], match["view"])


def base_of(kind: str) -> str:
    """Name what the encoder is asked for, `dense.L05` of `dense.L05.pet`; any other kind itself."""
    parsed = parse_kind(kind)
    return parsed.base if parsed else kind


class Pass(NamedTuple):
    """Once through the encoder: which channel, turned how; None is all of them, and not at all."""

    channel: str | None
    view: str | None


def pass_of(kind: str) -> Pass:
    """Say in which pass a kind is made, as (`pet`, `hflip`) of `dense.L05.pet.hflip`."""
    parsed = parse_kind(kind)
    return Pass(parsed.channel, parsed.view) if parsed else Pass(None, None)


def plain_view(kind: str) -> str:
    """Name the kind of the image as it is, `dense.L05.pet` of `dense.L05.pet.hflip`."""
    view = pass_of(kind).view
    return kind.removesuffix(f".{view}") if view else kind


def layer_number(kind: str) -> int | None:
    """Give the layer, from 0, of a kind like `dense.L05`; None for any other kind."""
    parsed = parse_kind(kind)
    return parsed.layer if parsed else None


def layer_kind(number: int) -> str:
    """Name the map of a layer before the last, as `dense.L05`."""
    return f"dense.L{number:02d}"


def is_vector_kind(kind: str) -> bool:
    """Tell whether a kind is one vector a row, of whatever channel."""
    parsed = parse_kind(kind)
    return parsed is not None and parsed.base in VECTOR_KINDS


def is_row_kind(kind: str) -> bool:
    """Tell whether the encoder makes a kind of each row: a vector, or a map of some layer."""
    return parse_kind(kind) is not None


def check_kinds(kinds: Iterable[str]) -> tuple[str, ...]:
    """Let through kinds that a store can hold, each once, in the usual order.

    Args:
        kinds: As a person gave them.

    Returns:
        Vectors, maps from the first layer to the last, those of views behind, the rows'
        coordinates, the item's own grid; of several channels, in alphabetical order, all kinds of
        one before those of the next.

    Raises:
        RequestError: If one is unknown or there is none.
    """
    given = tuple(dict.fromkeys(kinds))
    unknown = [k for k in given if not is_row_kind(k) and k not in (COORD, *NATIVE_KINDS)]
    if unknown or not given:
        named = ", ".join(repr(k) for k in unknown) or "nothing"
        maps = "dense", "dense.L05 and the like", "dense.hflip and other views"
        choices = ", ".join((*VECTOR_KINDS, *maps, *NATIVE_KINDS))
        raise RequestError(f"--features: {named}; choose from {choices}")

    def rank(kind: str) -> tuple[bool, str, int, int, int]:
        parsed = parse_kind(kind)
        if parsed is None:
            return True, "", (COORD, *NATIVE_KINDS).index(kind), 0, 0
        base = (*VECTOR_KINDS, "dense").index(parsed.base.partition(".")[0])
        depth = 100 if parsed.layer is None else parsed.layer
        return False, parsed.channel or "", base, (None, *VIEWS).index(parsed.view), depth

    return tuple(sorted(given, key=rank))


def form_of(kind: str, recipe: Recipe) -> FormRecipe | None:
    """Say how a row kind is kept; None for any other kind."""
    parsed = parse_kind(kind)
    if parsed is None:
        return None
    return recipe.storage.vectors if parsed.base in VECTOR_KINDS else recipe.storage.dense


def encoded_dim(kind: str, recipe: Recipe) -> int:
    """Say how many channels the encoder gives of a row kind, before any of them are left out."""
    parsed, encoder = parse_kind(kind), recipe.encoder
    if parsed is None:
        raise AssertionError(f"{kind} is no array of features")
    if parsed.base == "embed":
        return encoder.embed_dim or encoder.dim
    return encoder.dim if parsed.base in VECTOR_KINDS else encoder.layer_shape(parsed.layer)[1]


def array_layout(kind: str, recipe: Recipe, grid: Grid) -> ArrayLayout:
    """Say how an array of features is laid out.

    Args:
        kind: A row kind, or an item kind as `item_cls`.
        recipe: The store's.
        grid: The store's.

    Returns:
        Its layout.
    """
    if kind == COORD:
        return ArrayLayout(
            kind=kind,
            axis="row",
            tail=(len(recipe.reader.columns),),
            dtype="float64",
            file_rows=grid.chunk_rows,
            columns=recipe.reader.columns,
        )
    of_row = kind.removeprefix(ITEM_PREFIX)
    parsed, form = parse_kind(of_row), form_of(of_row, recipe)
    if parsed is None or form is None:
        raise AssertionError(f"{kind} is no array of features")
    dim = form.pca or encoded_dim(of_row, recipe)
    if parsed.base in VECTOR_KINDS:
        is_item = kind != of_row
        return ArrayLayout(
            kind=kind,
            axis="item" if is_item else "row",
            tail=(dim,),
            dtype="float32" if is_item else form.dtype,
            file_rows=grid.item_chunk_rows if is_item else grid.chunk_rows,
            codec=grid.codec,
        )
    patch, _ = recipe.encoder.layer_shape(parsed.layer)
    height, width = recipe.input.resolution
    tail = (height // patch, width // patch, dim)
    map_bytes = math.prod(tail) * np.dtype(form.dtype).itemsize
    rows = grid.chunk_rows
    while rows > 1 and rows * map_bytes > _MAX_SHARD_BYTES:
        rows //= 2
    return ArrayLayout(
        kind=kind,
        axis="row",
        tail=tail,
        dtype=form.dtype,
        codec=grid.codec,
        file_rows=rows,
        sharded=True,
    )


def array_document(layout: ArrayLayout, length: int) -> bytes:
    """Write the `zarr.json` of an array.

    Args:
        layout: The array's.
        length: Of its first axis.

    Returns:
        The file's bytes (Zarr core specification, version 3.0; sharding: ZEP 2).
    """
    codecs = _codecs(layout)
    if layout.sharded:
        configuration = {
            "chunk_shape": [1, *layout.tail],
            "codecs": codecs,
            "index_codecs": [_BYTES, _CRC],
            "index_location": "end",
        }
        codecs = [{"name": "sharding_indexed", "configuration": configuration}]
    names = ["feature"] if len(layout.tail) == 1 else ["grid_row", "grid_column", "feature"]
    attributes: dict[str, Any] = {}
    if layout.columns:
        names = ["column"]
        attributes = {"columns": [list(column) for column in layout.columns]}
    return _array(
        shape=[length, *layout.tail],
        chunk=[layout.file_rows, *layout.tail],
        dtype=layout.dtype,
        fill=ABSENT_CODE if layout.dtype == "int8" else "NaN",
        codecs=codecs,
        names=[layout.axis, *names],
        attributes=attributes,
    )


def _codecs(layout: ArrayLayout) -> list[dict[str, Any]]:
    """List what becomes of a chunk; a checksum is last, so that it is of the bytes in the file."""
    item_bytes = np.dtype(layout.dtype).itemsize
    codecs: list[dict[str, Any]] = [{"name": "bytes"} if item_bytes == 1 else _BYTES]
    if layout.codec == "zstd":
        codecs.append(_ZSTD)
    elif layout.codec == "blosc":
        # Bits of a kind side by side: bytes of floats have little in common otherwise.
        configuration = {**_BLOSC, "typesize": item_bytes, "shuffle": "bitshuffle"}
        codecs.append({"name": "blosc", "configuration": configuration})
    return [*codecs, _CRC]


def calibration_name(kind: str) -> str:
    """Name of what was fitted for a kind, as `calibration/dense.json`."""
    return f"{CALIBRATION}/{kind}.json"


def array_kind(name: str) -> str:
    """Name the kind whose array this is, or what belongs to it, as `dense` for `dense_scale`."""
    match = _FITTED.fullmatch(name)
    return match["kind"] if match else name


def fitted_document(name: str, values: npt.NDArray[np.float32]) -> dict[str, bytes]:
    """Write a small array of what was fitted, for whoever reads the store by Zarr alone.

    Args:
        name: `dense_offset`, `dense_basis`, `dense_scale`.
        values: (dim,), (dim, components), (components,).

    Returns:
        Path within the store -> the file's bytes: of its `zarr.json` and its one chunk.
    """
    shape = list(values.shape)
    document = _array(
        shape=shape,
        chunk=shape,
        dtype="float32",
        fill="NaN",
        codecs=[_BYTES, _CRC],
        names=["feature", "component"][: len(shape)],
        attributes={},
    )
    raw = np.ascontiguousarray(values, "<f4").tobytes()
    chunk = raw + crc32c(raw).to_bytes(4, "little")
    key = ".".join(["c", *["0"] * len(shape)])
    return {f"{FEATURES}/{name}/zarr.json": document, f"{FEATURES}/{name}/{key}": chunk}


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


def thumb_name(position: int) -> str:
    """Name of an item's small picture, by its position on the item axis."""
    return f"{THUMBS}/{position}.png"


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
