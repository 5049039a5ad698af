"""How large a Parquet file becomes, known before it is read.

A few bytes of Parquet may stand for gigabytes: pages are compressed, values are repeated by count,
long texts by a number in a dictionary. Here the descriptions of all pages are added up.

References:
    Apache Parquet format 2.11, parquet.thrift; Apache Thrift compact protocol.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

__all__ = ["check_parquet"]

MOST_ROWS = 10_000_000
MOST_VALUES = 200_000_000
"""Of all columns together, of which there are twenty or so."""
MOST_BYTES = 1 << 30
"""Of all pages together, decompressed."""
MOST_TEXT = 4 << 30
"""Of all texts together, each as long as the longest of its dictionary."""
_MAGIC = b"PAR1"
_LARGEST_FOOTER = 4 << 20
_DEEPEST = 12
"""Of the schema, where a list is three levels; of a description in the file."""
_ENCODINGS = {0, 2, 3, 4, 8}
"""Plain, by dictionary, runs, bits: what is written by default. Others repeat parts of texts."""
_DICTIONARY = {2, 8}
_CODECS = {0: None, 1: "snappy", 2: "gzip", 4: "brotli", 6: "zstd", 7: "lz4_raw"}
_BYTE_ARRAY = 6
_LONGEST_FIXED = 32
"""Bytes of a value of fixed length: decimals have 32."""
_LARGEST_DICTIONARY = 64 << 20
_DATA_PAGE, _DICTIONARY_PAGE, _DATA_PAGE_V2 = 0, 2, 3

Fields = dict[int, Any]
"""Of a description: number of the field -> value."""


def check_parquet(content: bytes) -> None:
    """Refuse a file that is not plain, or becomes too large.

    Args:
        content: The file's bytes.

    Raises:
        ValueError: If it is no Parquet, uses what tables of items do not, or has more rows,
            values or bytes than those have; says what.
    """
    footer = _footer(content)
    rows = _number(footer, 3)
    if not 0 <= rows <= MOST_ROWS:
        raise ValueError(f"it says {rows} rows, a table of items has at most {MOST_ROWS}")
    _check_schema(_list(footer, 2))
    total = _Size()
    for group in _list(footer, 4):
        for column in _list(group, 1):
            total += _size_of(content, column)
            total.check()


@dataclass
class _Size:
    """What pages become.

    Attributes:
        values: How many, of all columns.
        n_bytes: Of the pages, decompressed.
        text_bytes: Of all texts, at most: each as long as the longest of its dictionary.
    """

    values: int = 0
    n_bytes: int = 0
    text_bytes: int = 0

    def __add__(self, other: "_Size") -> "_Size":
        return _Size(
            self.values + other.values,
            self.n_bytes + other.n_bytes,
            self.text_bytes + other.text_bytes,
        )

    def check(self) -> None:
        if self.values > MOST_VALUES:
            raise ValueError(f"it holds more than {MOST_VALUES} values")
        if self.n_bytes > MOST_BYTES:
            raise ValueError(f"decompressed it has more than {MOST_BYTES} bytes")
        if self.text_bytes > MOST_TEXT:
            raise ValueError(f"its texts may have more than {MOST_TEXT} bytes")


def _footer(content: bytes) -> Fields:
    """Read the description of the whole file, which is at its end."""
    if len(content) < 12 or content[:4] != _MAGIC or content[-4:] != _MAGIC:
        raise ValueError("it is no Parquet")
    length = int.from_bytes(content[-8:-4], "little")
    if length > min(_LARGEST_FOOTER, len(content) - 12):
        raise ValueError(f"its footer says {length} bytes")
    return _Thrift(content, len(content) - 8 - length, len(content) - 8).fields()


def _check_schema(schema: list[Any]) -> None:
    """See that columns are values or lists, not a tower, and of small values."""
    left: list[int] = []
    for element in schema:
        while left and left[-1] == 0:
            left.pop()
        if left:
            left[-1] -= 1
        left.append(_number(element, 5) if 5 in element else 0)
        if len(left) > _DEEPEST or left[-1] < 0:
            raise ValueError(f"its columns are nested more than {_DEEPEST} deep")
        if 2 in element and not 0 <= _number(element, 2) <= _LONGEST_FIXED:
            raise ValueError(f"a column of it has values of {_number(element, 2)} bytes")


def _size_of(content: bytes, column: Fields) -> _Size:
    if 1 in column:
        raise ValueError("a column of it lies in another file")
    said = _inner(column, 3)
    start, length = _number(said, 9), _number(said, 7)
    if 11 in said and 0 < _number(said, 11) < start:
        start = _number(said, 11)
    size, longest = _Size(), 0
    kind = _number(said, 1)
    for behind, page in _pages(content, start, start + length):
        n_bytes = _number(page, 2)
        size.n_bytes += n_bytes
        if _number(page, 1) == _DICTIONARY_PAGE:
            if kind == _BYTE_ARRAY:
                longest = _longest(content, behind, page, _number(said, 4))
            continue
        data, encoding = (_inner(page, 8), 4) if 8 in page else (_inner(page, 5), 2)
        values = _number(data, 1)
        if _number(data, encoding) not in _ENCODINGS:
            raise ValueError(f"a column of it has the encoding {_number(data, encoding)}")
        size.values += values
        if kind == _BYTE_ARRAY:
            by_number = _number(data, encoding) in _DICTIONARY
            size.text_bytes += values * longest if by_number else n_bytes
    return size


def _pages(content: bytes, start: int, stop: int) -> Iterator[tuple[int, Fields]]:
    """List the descriptions of a column's pages, and the byte behind each."""
    if not 0 <= start <= stop <= len(content):
        raise ValueError("a column of it lies beyond its end")
    while start < stop:
        thrift = _Thrift(content, start, stop)
        page = thrift.fields()
        if _number(page, 1) not in (_DATA_PAGE, _DICTIONARY_PAGE, _DATA_PAGE_V2):
            raise ValueError(f"a page of it is of the kind {_number(page, 1)}")
        if min(_number(page, 2), _number(page, 3)) < 0:
            raise ValueError("a page of it has fewer than no bytes")
        yield thrift.at, page
        start = thrift.at + _number(page, 3)


def _longest(content: bytes, start: int, page: Fields, codec: int) -> int:
    """Give the length of the longest text of a dictionary page."""
    n_bytes, stop = _number(page, 2), start + _number(page, 3)
    if codec not in _CODECS or n_bytes > _LARGEST_DICTIONARY:
        return n_bytes
    raw = content[start:stop]
    if _CODECS[codec] is not None:
        import pyarrow as pa

        try:
            raw = pa.decompress(raw, decompressed_size=n_bytes, codec=_CODECS[codec], asbytes=True)
        except OSError as exc:
            raise ValueError(f"a page of it cannot be decompressed ({exc})") from exc
    longest = at = 0
    while at < len(raw):
        length = int.from_bytes(raw[at : at + 4], "little")
        longest, at = max(longest, length), at + 4 + length
    return min(longest, n_bytes)


def _number(fields: Fields, key: int) -> int:
    value = fields.get(key)
    if type(value) is not int:
        raise ValueError(f"its descriptions lack the field {key}")
    return value


def _inner(fields: Fields, key: int) -> Fields:
    if not isinstance(value := fields.get(key), dict):
        raise ValueError(f"its descriptions lack the field {key}")  # noqa: TRY004 - not a type of ours
    return value


def _list(fields: Fields, key: int) -> list[Any]:
    value = fields.get(key, [])
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise ValueError(f"its descriptions have something else in the field {key}")
    return value


class _Thrift:
    """Descriptions in the compact protocol.

    Attributes:
        at: The byte behind what was read.
    """

    def __init__(self, content: bytes, start: int, stop: int) -> None:
        self._content, self.at, self._stop = content, start, stop

    def fields(self, depth: int = 0) -> Fields:
        """Read a structure."""
        if depth > _DEEPEST:
            raise ValueError("its descriptions are nested too deep")
        found: Fields = {}
        key = 0
        while (head := self._byte()) & 0x0F:
            key = key + (head >> 4) if head >> 4 else self._integer()
            found[key] = self._value(head & 0x0F, depth)
        return found

    def _value(self, kind: int, depth: int) -> Any:  # noqa: ANN401 - of any kind
        if kind in (1, 2):
            return kind == 1
        if kind in (4, 5, 6):
            return self._integer()
        if kind == 8:
            return self._take(self._varint())
        if kind == 12:
            return self.fields(depth + 1)
        if kind in (9, 10):
            head = self._byte()
            length = head >> 4 if head >> 4 != 15 else self._varint()
            if length > self._stop - self.at:  # each has a byte or more
                raise ValueError("its descriptions are cut")
            of = head & 0x0F
            if of in (1, 2):
                return [self._byte() == 1 for _ in range(length)]
            return [self._value(of, depth) for _ in range(length)]
        sizes = {3: 1, 7: 8}
        if kind not in sizes:
            raise ValueError(f"its descriptions have something of the kind {kind}")
        return self._take(sizes[kind])

    def _integer(self) -> int:
        value = self._varint()
        return value >> 1 ^ -(value & 1)

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value
            if shift > 63:
                raise ValueError("its descriptions have a number without end")

    def _byte(self) -> int:
        if self.at >= self._stop:
            raise ValueError("its descriptions are cut")
        self.at += 1
        return self._content[self.at - 1]

    def _take(self, length: int) -> bytes:
        if length > self._stop - self.at:
            raise ValueError("its descriptions are cut")
        self.at += length
        return self._content[self.at - length : self.at]
