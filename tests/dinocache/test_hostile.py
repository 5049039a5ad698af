"""Stores that somebody made to harm: each is refused in one line, at once, without memory.

Whoever makes one can compute every checksum, so all of these are consistent in them. They are read
in a process of their own, whose memory is bounded.
"""

import base64
import io
import json
import os
import pickle
import re
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
from numcodecs import Zstd

from dinocache import documents
from dinocache.errors import StoreDamagedError
from dinocache.items import parquet_name, to_parquet
from dinocache.layout import FORMAT, SEALED, array_document, array_layout, native_document
from dinocache.records import Header, StoredObject
from dinocache.store import FeatureStore
from dinocache.verify import verify

HUGE = 10**12
UNIT, ITEM, POSITION = "0001-00000", "0003", 3
DENSE, IMAGE = "features.zarr/dense/c.0.0.0.0", f"native.zarr/image/{POSITION}"
EXTRA_BYTES = 1 << 31
"""That the process may take beyond what it has when all is imported."""


@dataclass(frozen=True)
class Hostile:
    """A store and how it is refused.

    Attributes:
        name: What is wrong with it.
        craft: Makes it so.
        use: What is then asked for: an expression of `store`.
        message: Of the error, a regular expression.
        verified: What `verify` says: a file that it names; None if it need not see anything.
    """

    name: str
    craft: "Callable[[Crafted], object]"
    use: str
    message: str
    verified: str | None = None


class Crafted:
    """A copy of a sound store, to be changed so that all checksums are right."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def put(self, name: str, content: bytes) -> None:
        """Write a file; the copy shares its files with the original."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_bytes(content)

    def read(self, name: str) -> bytes:
        return (self.root / name).read_bytes()

    def body(self, name: str) -> Any:  # noqa: ANN401 - JSON
        return json.loads(self.read(name))["body"]

    def change(self, name: str, where: str, value: object) -> None:
        """Set a part of a document, as `recipe.encoder.dim`; of a list by number; None for none."""
        body = self.body(name)
        *path, last = where.split("|" if "|" in where else ".")
        inner = body
        for key in path:
            inner = inner[int(key) if isinstance(inner, list) else key]
        if value is None:
            del inner[last]
        else:
            inner[int(last) if isinstance(inner, list) else last] = value
        self.put(name, documents.encode(body))

    def commit(self, name: str, content: bytes, kind: str, unit: str = UNIT) -> None:
        """Write a file of numbers, and its checksum into the record of its unit."""
        self.put(name, content)
        record = f"units/{unit}.{kind}.json"
        body = self.body(record)
        stored = StoredObject.of(content, FORMAT).model_dump()
        body["objects"] = {**body["objects"], name: stored}
        self.put(record, documents.encode(body))

    def rename(self, name: str, other: str, kind: str) -> None:
        """Let a record name another path."""
        record = f"units/{UNIT}.{kind}.json"
        body = self.body(record)
        body["objects"][other] = body["objects"].pop(name)
        self.put(record, documents.encode(body))

    def sparse(self, name: str, n_bytes: int = 3 << 30) -> None:
        self.put(name, b"")
        os.truncate(self.root / name, n_bytes)

    def link(self, name: str) -> None:
        """Move a file or folder out of the store, and leave a link to it."""
        outside = self.root.parent / f"{self.root.name}-outside"
        outside.mkdir(exist_ok=True)
        there = outside / name.replace("/", "-")
        (self.root / name).rename(there)
        (self.root / name).symlink_to(there)

    def pipe(self, name: str) -> None:
        (self.root / name).unlink()
        os.mkfifo(self.root / name)

    def items(self, content: bytes) -> None:
        """Make a table the one in force."""
        self.put(parquet_name(9, content), content)

    def table(self, **columns: object) -> None:
        (name,) = self.root.glob("items-*.parquet")
        table = pd.read_parquet(name)
        self.items(to_parquet(table.assign(**columns)))  # type: ignore[arg-type]

    def nested(self, name: str, *, is_document: bool = True) -> None:
        deep = "[" * 100_000 + "]" * 100_000
        text = f'{{"x":{deep}}}'
        if is_document:
            text = f'{{"body":{text},"crc32c":"{documents.checksum(text.encode())}"}}'
        self.put(name, f"{text}\n".encode())

    def seal(self, **fields: object) -> None:
        """Put back a seal that says something else."""
        body = {"units": {}, "plans": {}, "items": "", **fields}
        self.put(SEALED, documents.encode(body))

    def native(self, change: Callable[[dict[str, Any]], object], *, ours: bool = False) -> None:
        """Change the `zarr.json` of an image, to one that we could have written, or to any."""
        document = json.loads(self.read(f"{IMAGE}/zarr.json"))
        change(document)
        content = json.dumps(document, indent=2, sort_keys=True).encode() + b"\n"
        if ours:
            said = document["attributes"]
            content = native_document(tuple(document["shape"]), document["data_type"], said)
        self.commit(f"{IMAGE}/zarr.json", content, "image")

    def chunk(self, frame: bytes) -> None:
        """Put something in the place of a row of an image, its checksum right."""
        crc = struct.pack("<I", google_crc32c.value(frame))
        self.commit(f"{IMAGE}/c.0.0.0.0", frame + crc, "image")

    def shard(self, change: Callable[[np.ndarray[Any, np.dtype[np.uint64]]], object]) -> None:
        """Change the index of a shard: (16, 2) offsets and lengths."""
        content = self.read(DENSE)
        index = np.frombuffer(content[-16 * 16 - 4 : -4], "<u8").reshape(16, 2).copy()
        change(index)
        raw = index.tobytes()
        crc = struct.pack("<I", google_crc32c.value(raw))
        self.commit(DENSE, content[: -len(raw) - 4] + raw + crc, "dense")

    def thumb(self, content: bytes) -> None:
        body = self.body(f"units/{UNIT}.cls.json") | {"kind": "row_coord", "objects": {}}
        self.put(f"units/{UNIT}.row_coord.json", documents.encode(body))
        self.commit(f"thumbs/{POSITION}.png", content, "row_coord")
        self.put("features.zarr/row_coord/zarr.json", b"{}")

    def wide(self) -> None:
        """Let vectors have 65,536 numbers, and the plan 40,000 items: 10 GB of nothing."""
        self.change("store.json", "recipe.encoder.dim", 1 << 16)
        body = self.body("plans/0001.json")
        items = [[f"{i:04d}", 1] for i in range(40_000)]
        units = [
            [at, min(4096, 40_000 - at), at, min(4096, 40_000 - at), 0]
            for at in range(0, 40_000, 4096)
        ]
        body |= {"items": items, "stamps": [None] * 40_000, "units": units}
        self.put("plans/0001.json", documents.encode(body))
        said = Header.from_body(self.body("store.json"), "store.json")
        layout = array_layout("item_cls", said.recipe, said.grid)
        self.put("features.zarr/item_cls/zarr.json", array_document(layout, 40_000))

    def long_description(self) -> None:
        """Let the `zarr.json` of an image have 300 MB of zeros, its checksum right."""
        name, zeros, digest = f"{IMAGE}/zarr.json", bytes(1 << 20), xxhash.xxh3_64()
        for _ in range(300):
            digest.update(zeros)
        self.sparse(name, 300 << 20)
        record = f"units/{UNIT}.image.json"
        body = self.body(record)
        body["objects"][name] = {"bytes": 300 << 20, "xxh3": digest.hexdigest()}
        self.put(record, documents.encode(body))

    def older_zarr(self) -> None:
        """Describe an image in the manner of Zarr 2, to be unpickled."""
        said = {"zarr_format": 2, "shape": [1, 1, 43, 53], "chunks": [1, 1, 43, 53]}
        said |= {"dtype": "|O", "compressor": None, "filters": [{"id": "pickle"}]}
        said |= {"order": "C", "fill_value": None}
        self.commit(f"{IMAGE}/.zarray", json.dumps(said).encode(), "image")
        self.commit(f"{IMAGE}/0.0.0.0", pickle.dumps(Boom()), "image")
        self.change(f"units/{UNIT}.image.json", f"objects|{IMAGE}/zarr.json", None)

    def append(self, **fields: object) -> None:
        """Add a second segment, of one item."""
        body = self.body("plans/0001.json")
        stop = body["row_start"] + 64
        body |= {"segment": 2, "row_start": stop, "item_start": 64, "stamps": [None]}
        body |= {"items": [["new", 1]], "units": [[0, 1, stop, 1, 0]], **fields}
        self.put("plans/0002.json", documents.encode(body))


def parquet(table: pa.Table, **options: object) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, **options)
    return buffer.getvalue()


def many_rows() -> bytes:
    nulls = pa.nulls(20_000_000, pa.string())
    return parquet(pa.table({name: nulls for name in ("item_id", "path", "group")}))


def long_texts() -> bytes:
    """Each of 6,000 rows the same text of 900,000 letters, written once."""
    texts = pa.DictionaryArray.from_arrays(
        pa.array(np.zeros(6_000, np.int32)), pa.array(["x" * 900_000])
    )
    return parquet(pa.table({"item_id": texts, "path": texts, "group": texts}))


def packed_pages() -> bytes:
    """A page that says that it becomes 2 GiB."""
    table = pa.table({"item_id": pa.array([b"\0" * 140_000_000])})
    content = parquet(table, compression="zstd", use_dictionary=False)
    assert content[4:7] == b"\x15\x00\x15"  # a data page, and its size as five bytes
    return content[:7] + varint(2 * (2**31 - 1)) + content[12:]


def varint(value: int) -> bytes:
    return (b"" if value < 0x80 else bytes([value & 0x7F | 0x80])) + (
        varint(value >> 7) if value >= 0x80 else bytes([value])
    )


def long_list() -> bytes:
    one = pa.ListArray.from_arrays(pa.array([0, 200_000_001], pa.int32()), pa.nulls(200_000_001))
    return parquet(pa.table({"item_id": ["a"], "path": ["a"], "group": ["a"], "x": one}))


def shared_beginnings() -> bytes:
    table = pa.table({"item_id": [f"{'x' * 200}{i}" for i in range(999)]})
    encoding = {"item_id": "DELTA_BYTE_ARRAY"}
    return parquet(table, use_dictionary=False, column_encoding=encoding)


def deep_schema() -> bytes:
    """A column in 20,000 groups, one in the other."""
    group = bytes([0x35, 0x00, 0x18, 0x01, 0x61, 0x15, 0x02, 0x00])  # required, "a", one child
    leaf = bytes([0x15, 0x02, 0x25, 0x00, 0x18, 0x01, 0x61, 0x00])  # int32
    n = 20_000
    footer = bytes([0x15, 0x02, 0x19, 0xFC]) + varint(n + 1) + group * n + leaf
    footer += bytes([0x16, 0x00, 0x19, 0x0C, 0x00])
    return b"PAR1" + footer + struct.pack("<I", len(footer)) + b"PAR1"


class Boom:
    """What would be done if it were ever unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("executed",)


def executable_type() -> bytes:
    """A column whose type asks to be unpickled, as pyarrow once did."""
    field = pa.field(
        "item_id",
        pa.string(),
        metadata={
            "ARROW:extension:name": "arrow.py_extension_type",
            "ARROW:extension:metadata": pickle.dumps(Boom()),
        },
    )
    column = [f"{i:04d}" for i in range(42)]
    columns = [field, pa.field("path", pa.string()), pa.field("group", pa.string())]
    return parquet(pa.table([column] * 3, schema=pa.schema(columns)))


def png(width: int, height: int) -> bytes:
    def part(kind: bytes, content: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + crc

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", head) + part(b"IDAT", data) + part(b"IEND", b"")


def frame_of(n_bytes: int) -> bytes:
    """The head of a zstd frame that says how large its content is, and an empty block."""
    return struct.pack("<IBQ", 0xFD2FB528, 0xE0, n_bytes) + b"\x01\x00\x00"


def frame_without_size(content: bytes) -> bytes:
    """A zstd frame that repeats a byte in blocks of 128 KiB, and does not say how often."""
    blocks = b"".join(
        (1 << 17 << 3 | 1 << 1).to_bytes(3, "little") + content[:1] for _ in range(20_000)
    )
    return struct.pack("<IBB", 0xFD2FB528, 0x00, 0x58) + blocks + b"\x01\x00\x00"


def header(where: str, value: object, message: str) -> Hostile:
    def craft(store: Crafted) -> None:
        store.change("store.json", where, value)

    return Hostile(f"header {where} {value!r:.20}", craft, "None", f"^store.json: {message}", "sto")


def plan(where: str, value: object, message: str) -> Hostile:
    def craft(store: Crafted) -> None:
        store.change("plans/0001.json", where, value)

    return Hostile(
        f"plan {where} {value!r:.20}",
        craft,
        "None",
        f"0001.json is not a plan segment: .*{message}",
        "0001.json",
    )


def outside(path: str) -> Hostile:
    def craft(store: Crafted) -> None:
        store.rename("features.zarr/cls/c.0.0", path, "cls")

    return Hostile(
        f"record names {path!r}",
        craft,
        f"store.rows('cls', {ITEM!r})",
        f"^units/{UNIT}.cls.json names .* outside the store",
        f"units/{UNIT}.cls.json",
    )


def linked(name: str, use: str, *, shown: str | None = None) -> Hostile:
    return Hostile(
        f"link {name}", lambda s: s.link(name), use, f"^{shown or name} is a link; ", shown or name
    )


def native(
    name: str, change: Callable[[dict[str, Any]], object], message: str, *, ours: bool = False
) -> Hostile:
    return Hostile(f"native {name}", lambda s: s.native(change, ours=ours), GRID, message)


ROWS, MAPS = f"store.rows('cls', {ITEM!r})", f"store.rows('dense', {ITEM!r})"
GRID, VECTORS = f"store.native('image', {ITEM!r})", "store.item_vectors('cls')"
TABLE = r"^items-0009-\w+.parquet is no table of items: "

HOSTILE = [
    header("recipe.encoder.dim", HUGE, "the recipe's sizes are not from 1"),
    header("recipe.encoder.dim", -48, "the recipe's sizes are not from 1"),
    header("recipe.encoder.embed_dim", HUGE, "the recipe's sizes are not from 1"),
    header("recipe.encoder.patch_px", 0, "the recipe's sizes are not from 1"),
    header("recipe.encoder.depth", HUGE, "the recipe's sizes are not from 1"),
    header("recipe.encoder.pyramid", [[16, 48]], "the recipe has 1 of 2 layers"),
    header("recipe.input.resolution", [HUGE, HUGE], "the recipe's sizes are not from 1"),
    header("recipe.input.resolution", [65536, 65536], "by its recipe a map has 16[0-9]+ bytes"),
    header("grid.chunk_rows", HUGE, "field 'grid.*chunk_rows is 10+, not 1 to 4096"),
    header("grid.chunk_rows", 0, "field 'grid.*chunk_rows is 0, not 1 to 4096"),
    header("grid.item_chunk_rows", HUGE, "field 'grid.*item_chunk_rows is"),
    header("grid.batch", -1, "field 'grid.*batch is -1"),
    header("dataset", "../../.ssh", r"'../../.ssh' cannot name a folder"),
    header("dataset", "/etc", "'/etc' cannot name a folder"),
    header("variant", "..\\x", r"'..\\\\x' cannot name a folder"),
    Hostile("header deep", lambda s: s.nested("store.json"), "None", "^store.json is damaged"),
    Hostile("header large", lambda s: s.sparse("store.json"), "None", "^store.json has 3221225472"),
    Hostile("header a pipe", lambda s: s.pipe("store.json"), "None", "^store.json is no plain fil"),
    Hostile(
        "header a number without end",
        lambda s: s.put("store.json", b'{"body":{"x":' + b"9" * 1_000_000 + b"}}"),
        "None",
        "^store.json is damaged",
    ),
    linked("store.json", "None"),
    plan("items.3.1", HUGE, "does not hold the items"),
    plan("items.3.1", 1 << 60, "is no number from 1 to"),
    plan("items.3.1", True, "True is no number"),
    plan("items.3.1", 0, "0 is no number from 1"),
    plan("items.3.0", "0002", "an item stands in it twice"),
    plan("units.0.3", HUGE, "does not hold the items"),
    plan("units.0.3", -16, "-16 is no number"),
    plan("units.0.2", -64, "-64 is no number"),
    plan("units.1.2", 3, "unit 0001-00001 has rows 3"),
    plan("units.1.0", 3, "does not hold the items behind"),
    plan("units.2.1", 1000, "does not hold the items behind"),
    plan("units.0.4", 5, "does not hold the items behind"),
    plan("units", [], "its units hold 0 of 42 items"),
    plan("row_start", -1, "-1 is no number"),
    plan("item_start", 1e300, "is no number"),
    Hostile(
        "plan of one item, twice 10**12 rows",
        lambda s: s.put(
            "plans/0001.json",
            documents.encode(
                s.body("plans/0001.json")
                | {"items": [["a", HUGE]], "stamps": [None], "units": [[0, 1, 0, HUGE, 0]]}
            ),
        ),
        "None",
        "unit 0001-00000 has rows 0 and 10+ more",
        "0001.json",
    ),
    Hostile(
        "plan of another number",
        lambda s: s.append(segment=1),
        "None",
        "^plans/0002.json says that it is segment 1",
    ),
    Hostile(
        "plan over another's rows",
        lambda s: s.append(row_start=7, units=[[0, 1, 7, 1, 0]]),
        "None",
        "^plans/0002.json begins at row 7",
    ),
    Hostile(
        "plan over another's items",
        lambda s: s.append(item_start=7),
        "None",
        "^plans/0002.json begins at .* item 7",
    ),
    Hostile("plan deep", lambda s: s.nested("plans/0001.json"), "None", "^plans/0001.json is dama"),
    linked("plans/0001.json", "None"),
    linked("plans", "None", shown="plans"),
    Hostile("seal of plans a number", lambda s: s.seal(plans=5), "None", "^sealed.json: field 'pl"),
    Hostile("seal of units a list", lambda s: s.seal(units=[5]), "None", "^sealed.json: field 'un"),
    Hostile("seal of a plan gone", lambda s: s.seal(plans={"0007.json": "0"}), "None", "0007.json"),
    Hostile(
        "seal of a table gone",
        lambda s: s.seal(items="items-0009-0123456789abcdef.parquet"),
        "None",
        "^items-0009-0123456789abcdef.parquet is missing",
    ),
    Hostile(
        "seal of a record that is none",
        lambda s: s.seal(units={f"{UNIT}.cls": {"unit": UNIT}}),
        ROWS,
        f"^units/{UNIT}.cls.json: field",
    ),
    Hostile("seal large", lambda s: s.sparse("sealed.json"), "None", "^sealed.json has 3221225472"),
    outside("../../etc/passwd"),
    outside("features.zarr/../../x"),
    outside("/etc/passwd"),
    outside("features.zarr\\..\\..\\x"),
    outside("C:/x"),
    outside("features.zarr/cls/c.0.0\0"),
    outside("store.json"),
    outside("units/../store.json"),
    Hostile(
        "record of fewer than no bytes",
        lambda s: s.change(
            f"units/{UNIT}.cls.json",
            "objects",
            {"features.zarr/cls/c.0.0": {"bytes": -1, "xxh3": "0" * 16}},
        ),
        ROWS,
        f"^units/{UNIT}.cls.json: field 'objects.*greater than or equal to 0",
        f"units/{UNIT}.cls.json",
    ),
    Hostile(
        "record of petabytes",
        lambda s: s.change(
            f"units/{UNIT}.cls.json",
            "objects",
            {"features.zarr/cls/c.0.0": {"bytes": 10**15, "xxh3": "0" * 16}},
        ),
        ROWS,
        "^features.zarr/cls/c.0.0 has 1540 bytes, not 10+",
        "features.zarr/cls/c.0.0",
    ),
    linked("features.zarr/cls/c.0.0", ROWS),
    linked(DENSE, MAPS),
    linked("features.zarr/cls/zarr.json", ROWS),
    linked("features.zarr/cls", ROWS),
    linked("features.zarr", VECTORS),
    linked("native.zarr", GRID),
    linked(f"{IMAGE}/c.0.0.0.0", GRID),
    linked(f"{IMAGE}/zarr.json", GRID),
    linked(f"units/{UNIT}.cls.json", ROWS),
    linked("units", ROWS),
    Hostile(
        "link to the table",
        lambda s: s.link(next(s.root.glob("items-*")).name),
        "None",
        r"^items-0001-\w+.parquet is a link; ",
    ),
    Hostile("table of rows", lambda s: s.items(many_rows()), "None", TABLE + "it says 20000000 ro"),
    Hostile(
        "table of texts", lambda s: s.items(long_texts()), "None", TABLE + "its texts may have"
    ),
    Hostile(
        "table packed", lambda s: s.items(packed_pages()), "None", TABLE + "decompressed it has"
    ),
    Hostile(
        "table of a list", lambda s: s.items(long_list()), "None", TABLE + "it holds more than"
    ),
    Hostile(
        "table by deltas", lambda s: s.items(shared_beginnings()), "None", TABLE + ".*encoding"
    ),
    Hostile("table nested", lambda s: s.items(deep_schema()), "None", TABLE + ".*nested more than"),
    Hostile(
        "table no Parquet", lambda s: s.items(b"item_id,path\n"), "None", TABLE + "it is no Par"
    ),
    Hostile("table cut", lambda s: s.items(many_rows()[:-9] + b"PAR1"), "None", TABLE),
    Hostile("table without ids", lambda s: s.items(parquet(pa.table({"a": [1]}))), "None", TABLE),
    Hostile(
        "table of one item", lambda s: s.table(item_id="0000"), "None", TABLE + "an item_id is"
    ),
    Hostile(
        "table of a path up", lambda s: s.table(path="a/../../x"), "None", TABLE + "path '.*out"
    ),
    Hostile(
        "table of a root", lambda s: s.table(mask="/etc/passwd"), "None", TABLE + "mask '.*out"
    ),
    Hostile("table of a drive", lambda s: s.table(path="C:\\x"), "None", TABLE + "path '.*out of"),
    Hostile(
        "table without groups",
        lambda s: s.items(parquet(pa.table({"item_id": ["a"], "path": ["a"]}))),
        "None",
        TABLE + "it has no column 'group'",
    ),
    Hostile(
        "shard's index beyond its end",
        lambda s: s.shard(lambda index: index.__setitem__((3, 0), 1 << 40)),
        MAPS,
        f"^{DENSE} is damaged: its index points beyond its end",
    ),
    Hostile(
        "shard's index before its beginning",
        lambda s: s.shard(lambda index: index.__setitem__((3, 0), (1 << 64) - 2)),
        MAPS,
        f"^{DENSE} is damaged: its index points beyond its end",
    ),
    Hostile(
        "shard's chunks of another length",
        lambda s: s.shard(lambda index: index.__setitem__((3, 1), 1 << 40)),
        MAPS,
        f"^{DENSE} is damaged: a chunk of it has not ",
    ),
    Hostile(
        "shard's chunks one over the other",
        lambda s: s.shard(lambda index: index.__setitem__((3, 0), index[2, 0])),
        MAPS,
        f"^{DENSE} is damaged: its chunks overlap",
    ),
    Hostile(
        "vectors by pickle",
        lambda s: s.put(
            "features.zarr/cls/zarr.json",
            s.read("features.zarr/cls/zarr.json").replace(b'"crc32c"', b'"numcodecs.pickle"'),
        ),
        ROWS,
        "^features.zarr/cls/zarr.json is missing or damaged",
        "features.zarr/cls/zarr.json",
    ),
    Hostile(
        "vectors' document deep",
        lambda s: s.nested("features.zarr/cls/zarr.json", is_document=False),
        ROWS,
        "^features.zarr/cls/zarr.json is missing or damaged",
        "features.zarr/cls/zarr.json",
    ),
    Hostile(
        "vectors' document large",
        lambda s: s.sparse("features.zarr/cls/zarr.json"),
        ROWS,
        "^features.zarr/cls/zarr.json has 3221225472 bytes",
        "features.zarr/cls/zarr.json",
    ),
    native(
        "of petabytes",
        lambda d: d.update(shape=[1, 1, 10**9, 10**6]),
        f"^{IMAGE}/zarr.json is not that of an item of 1 rows",
    ),
    native(
        "of slices",
        lambda d: d.update(shape=[1, HUGE, 43, 53]),
        f"^{IMAGE}/zarr.json is not that of an item of 1 rows",
    ),
    native(
        "of petabytes, ours",
        lambda d: d.update(shape=[1, 1, 10**9, 10**6]),
        "^native.zarr/image/3, a row of it, has 2?10+",
        ours=True,
    ),
    native("of slices, ours", lambda d: d.update(shape=[1, HUGE, 43, 53]), "^native", ours=True),
    native(
        "of nothing", lambda d: d.update(shape=[0, 1, 43, 53]), "^native.zarr/image/3", ours=True
    ),
    native(
        "of another size", lambda d: d.update(shape=[1, 1, 43, 5]), "^native.zarr/im", ours=True
    ),
    native(
        "of less than nothing", lambda d: d.update(shape=[1, 1, -43, 53]), "^native.zarr/image/3"
    ),
    native("of objects", lambda d: d.update(data_type="object"), "^native.zarr/image/3"),
    native("by a codec of nobody", lambda d: d.update(codecs=[{"name": "x"}]), "^native.zarr/im"),
    native(
        "by pickle",
        lambda d: d.update(codecs=[{"name": "numcodecs.pickle", "configuration": {}}]),
        "^native.zarr/image/3/zarr.json",
    ),
    native(
        "by a transformer",
        lambda d: d.update(storage_transformers=[{"name": "x"}]),
        "^native.zarr/image/3/zarr.json",
    ),
    native("a group", lambda d: d.update(node_type="group"), "^native.zarr/image/3"),
    Hostile(
        "native deep",
        lambda s: s.commit(f"{IMAGE}/zarr.json", b"[" * 100_000 + b"]" * 100_000, "image"),
        GRID,
        f"^{IMAGE}",
    ),
    Hostile(
        "native that no record names",
        lambda s: s.change(
            f"units/{UNIT}.image.json",
            "objects",
            {
                name: stored
                for name, stored in s.body(f"units/{UNIT}.image.json")["objects"].items()
                if name != f"{IMAGE}/zarr.json"
            },
        ),
        GRID,
        f"^{IMAGE}",
    ),
    Hostile("native of Zarr 2", lambda s: s.older_zarr(), GRID, f"^{IMAGE}"),
    Hostile(
        "native document large",
        lambda s: s.long_description(),
        GRID,
        f"^{IMAGE}/zarr.json has 314572800 bytes",
    ),
    Hostile(
        "vectors of 10 GB of nothing",
        lambda s: s.wide(),
        VECTORS,
        "^features.zarr/item_cls: what is asked for has 10485760000 bytes, more than",
    ),
    Hostile(
        "native in two frames",
        lambda s: s.chunk(Zstd().encode(bytes(43 * 53)) + Zstd().encode(bytes(1 << 30))),
        GRID,
        f"^{IMAGE}",
    ),
    Hostile("native frame of a terabyte", lambda s: s.chunk(frame_of(1 << 40)), GRID, f"^{IMAGE}"),
    Hostile("native frame of 1.5 GB", lambda s: s.chunk(frame_of(3 << 29)), GRID, f"^{IMAGE}"),
    Hostile("native endless", lambda s: s.chunk(frame_without_size(b"\0")), GRID, f"^{IMAGE}"),
    Hostile(
        "native row packed a million times",
        lambda s: s.chunk(Zstd().encode(bytes(1 << 30))),
        GRID,
        f"^{IMAGE}",
    ),
    Hostile("native row too short", lambda s: s.chunk(Zstd().encode(b"1")), GRID, f"^{IMAGE}"),
    Hostile("native row no zstd", lambda s: s.chunk(b"12345"), GRID, f"^{IMAGE}"),
    Hostile(
        "thumbnail of 60,000 x 60,000",
        lambda s: s.thumb(png(60_000, 60_000)),
        f"store.thumbnail({ITEM!r})",
        f"^thumbs/{POSITION}.png says 60000 x 60000 px",
    ),
    Hostile(
        "thumbnail that is none",
        lambda s: s.thumb(b"GIF89a" + bytes(40)),
        f"store.thumbnail({ITEM!r})",
        f"^thumbs/{POSITION}.png is no PNG",
    ),
    Hostile(
        "thumbnail large",
        lambda s: (s.thumb(png(10, 10)), s.sparse(f"thumbs/{POSITION}.png")),
        f"store.thumbnail({ITEM!r})",
        f"^thumbs/{POSITION}.png has 3221225472 bytes",
        f"thumbs/{POSITION}.png",
    ),
]

READ = """
import json, resource, sys, time, warnings
from dinocache.errors import DinocacheError
from dinocache.store import FeatureStore
from dinocache.verify import verify

warnings.simplefilter("ignore")
def attempt(act):
    try:
        act()
    except DinocacheError as exc:
        return ["refused", str(exc)]
    except BaseException as exc:
        return ["escaped", repr(exc)[:500]]
    return ["served", ""]

def size():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()

def named(path):
    said = []
    came = attempt(lambda: said.extend(f"{d.file}: {d.what}" for d in verify(path).damages))
    return [*came, said]

sound, extra, *cases = sys.argv[1:]
for use in cases[1::2]:  # threads and modules take their part before the limit is set
    if "thumbnail" not in use:
        (lambda store: eval(use))(FeatureStore(sound))
verify(sound)
try:
    resource.setrlimit(resource.RLIMIT_AS, (size() + int(extra),) * 2)
except OSError:  # no such system file
    pass
for path, use in zip(cases[::2], cases[1::2]):
    came = attempt(lambda: (lambda store: eval(use))(FeatureStore(path)))
    print(json.dumps([path, came, named(path)]), flush=True)
"""

pytestmark = pytest.mark.skipif(os.name != "posix", reason="pipes and limits of memory")


@pytest.fixture(scope="module")
def came(tiny_store: FeatureStore, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What came of each: (name, of the use, of `verify`)."""
    folder = tmp_path_factory.mktemp("hostile")
    arguments = [str(tiny_store.path), str(EXTRA_BYTES)]
    names = {}
    for number, hostile in enumerate(HOSTILE):
        store = Crafted(folder / str(number))
        shutil.copytree(tiny_store.path, store.root, copy_function=os.link)
        (store.root / SEALED).unlink()
        hostile.craft(store)
        arguments += [str(store.root), hostile.use]
        names[str(store.root)] = hostile.name
    read = subprocess.run(
        [sys.executable, "-c", READ, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert not (folder / "executed").exists()
    lines = [json.loads(line) for line in read.stdout.splitlines()]
    return {names[path]: (of_use, of_verify) for path, of_use, of_verify in lines} | {
        "": read.stderr
    }


@pytest.mark.parametrize("hostile", HOSTILE, ids=lambda hostile: hostile.name)
def test_it_is_refused(came: dict[str, Any], hostile: Hostile) -> None:
    assert hostile.name in came, f"the process ended: {came[''][-2000:]}"
    (how, message), (verified, said, damages) = came[hostile.name]
    assert (how, "\n" in message) == ("refused", False), message
    assert re.search(hostile.message, message), message
    assert len(message) < 600
    assert verified != "escaped", said
    if hostile.verified is not None:
        assert any(hostile.verified in one for one in [*damages, said]), damages
    assert not any("\n" in one for one in damages)


def test_names_differ() -> None:
    assert len({hostile.name for hostile in HOSTILE}) == len(HOSTILE) >= 100


@pytest.fixture
def crafted(tiny_store: FeatureStore, tmp_path: Path) -> Crafted:
    store = Crafted(tmp_path / "store")
    shutil.copytree(tiny_store.path, store.root, copy_function=os.link)
    (store.root / SEALED).unlink()
    return store


def test_the_copies_are_sound_before(crafted: Crafted, tiny_store: FeatureStore) -> None:
    """What is refused above is refused for what was changed; what is sound is not."""
    crafted.change("store.json", "provenance", {"x": "y"})
    crafted.native(lambda document: document["attributes"].update(windows=[[0, 7]]), ours=True)
    crafted.shard(lambda index: None)
    crafted.table(third="x")
    crafted.chunk(Zstd().encode(tiny_store.native("image", ITEM)[0].tobytes()))
    crafted.thumb(png(10, 10))
    store = FeatureStore(crafted.root)
    for kind in ("cls", "dense"):
        np.testing.assert_array_equal(store.rows(kind, ITEM), tiny_store.rows(kind, ITEM))
    array, attributes = store.native("image", ITEM)
    np.testing.assert_array_equal(array, tiny_store.native("image", ITEM)[0])
    assert attributes["windows"] == [[0, 7]]
    assert store.thumbnail(ITEM) == png(10, 10)
    assert (store.items["third"] == "x").all()
    layout = array_layout("cls", store.header.recipe, store.header.grid)
    assert array_document(layout, 42) == crafted.read("features.zarr/cls/zarr.json")


def test_a_type_that_asks_to_be_unpickled_is_not(
    crafted: Crafted, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    content = executable_type()
    said = base64.b64decode(pq.read_metadata(io.BytesIO(content)).metadata[b"ARROW:schema"])
    assert pickle.dumps(Boom()) in said
    crafted.items(content)
    assert len(FeatureStore(crafted.root).items) == 42
    assert not (tmp_path / "executed").exists()


def test_the_store_itself_may_be_reached_by_links(crafted: Crafted, tmp_path: Path) -> None:
    (tmp_path / "here").symlink_to(tmp_path)
    linked = tmp_path / "here/other"
    linked.symlink_to(crafted.root)
    assert len(FeatureStore(linked).rows("cls", ITEM)) == 1
    assert verify(linked) == verify(crafted.root)


def test_nothing_is_written_through_links(crafted: Crafted, tmp_path: Path) -> None:
    folder = FeatureStore(crafted.root).folder
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/x").write_bytes(b"mine")
    (crafted.root / "runs").rename(tmp_path / "runs")
    (crafted.root / "runs").symlink_to(tmp_path / "mine")
    (crafted.root / "leads").symlink_to(tmp_path / "mine/x")
    for act in (
        lambda: folder.replace("runs/x", b"theirs"),
        lambda: folder.create("runs/y", b"theirs"),
        lambda: folder.keep("runs/x", b"mine"),
        lambda: folder.remove("runs/x"),
        lambda: folder.keep("leads", b"mine"),
        lambda: folder.replace("../mine/x", b"theirs"),
        lambda: folder.within("../mine"),
    ):
        with pytest.raises(StoreDamagedError, match=r"is a link|leads out of the store's folder"):
            act()
    folder.replace("leads", b"theirs")  # the link is replaced, not what it leads to
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["x"]
    assert (tmp_path / "mine/x").read_bytes() == b"mine"
