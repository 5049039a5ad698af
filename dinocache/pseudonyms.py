"""Copies of stores without names: ids, groups and paths become keyed hashes.

The same key gives the same names, so that stores of one cohort still join. See docs/sharing.md.
"""

import hmac
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from dinocache import documents
from dinocache.copying import Rename
from dinocache.errors import RequestError
from dinocache.items import (
    channel_columns,
    latest_number,
    mask_columns,
    parquet_name,
    to_parquet,
)
from dinocache.records import Failure, Record
from dinocache.store import FeatureStore

__all__ = ["Pseudonyms", "telling_columns"]

_LEAST_KEY = 16
_MOST_KEY = 1 << 16
_HEX = 24
"""Digits of a name: 96 bits, of which two of a million items share one with probability 1e-17."""
_PLAIN_PROVENANCE = ("numpy", "timm", "torch", "dinocache", "device", "python")
_TELLING = (
    *("name", "birth", "dob", "date", "address", "zip", "postal", "phone", "mail", "mrn", "ssn"),
    *("patient", "accession", "uid", "study", "series", "institution", "physician"),
)
"""Words in names of columns that often tell who somebody is."""


class Pseudonyms:
    """Names made of a key by HMAC-SHA256 (RFC 2104)."""

    def __init__(self, key: bytes) -> None:
        """See the class.

        Raises:
            RequestError: If the key is too short to be secret.
        """
        if not _LEAST_KEY <= len(key) <= _MOST_KEY:
            raise RequestError(
                f"the key must have {_LEAST_KEY} to {_MOST_KEY} bytes, it has {len(key)}; "
                "make one with `openssl rand -hex 32 > key`"
            )
        self._key = key

    @classmethod
    def read(cls, path: Path) -> "Pseudonyms":
        """Read the key from a file, whose white space at the end does not count.

        Raises:
            RequestError: If it cannot be read, or is too short.
        """
        try:
            with path.open("rb") as file:
                return cls(file.read(_MOST_KEY + 1).strip())
        except OSError as exc:
            raise RequestError(f"--pseudonymise {path}: {exc.strerror or exc}") from exc

    def name(self, sort: str, value: str) -> str:
        """Name something: 24 hex digits.

        Args:
            sort: What it is: `item`, `group`, `path`.
            value: Its own name.
        """
        digest = hmac.new(
            self._key, f"{sort}\0{value}".encode("utf-8", "surrogateescape"), "sha256"
        )
        return digest.hexdigest()[:_HEX]

    def of_store(self, store: FeatureStore, keep: Sequence[str]) -> Rename:
        """Say what a copy of a store says otherwise.

        Args:
            store: The store.
            keep: Columns of the item table that stay; ids, groups and paths always do, renamed.

        Raises:
            RequestError: If there is no such column.
        """
        table = self._table(store, keep)
        content = to_parquet(table)
        header = store.header
        provenance = {k: v for k, v in header.provenance.items() if k in _PLAIN_PROVENANCE}
        provenance |= {"created": "withheld", "pseudonymised": self._mark(store)}
        header = header.model_copy(update={"provenance": provenance})
        plans = {}
        for segment in store.segments:
            ids = tuple(self.name("item", i) for i in segment.item_ids)
            renamed = replace(segment, item_ids=ids, stamps=(None,) * len(ids))
            plans[f"{segment.number:04d}.json"] = documents.encode(renamed.to_body())
        number = max(latest_number(store.items_name), 1)
        return Rename(
            header=documents.encode(header.model_dump(mode="json")),
            plans=plans,
            record=self._record,
            items=(parquet_name(number, content), content),
        )

    def _mark(self, store: FeatureStore) -> str:
        """Tell copies by one key from those by another, without telling the key."""
        return self.name("store", store.header.digest)

    def _table(self, store: FeatureStore, keep: Sequence[str]) -> pd.DataFrame:
        items = store.items
        if unknown := [column for column in keep if column not in items]:
            raise RequestError(
                f"--keep: there is no column {unknown[0]!r}; choose from {', '.join(items.columns)}"
            )
        named = {"item_id": "item", "group": "group", "path": "path"}
        paths = [*mask_columns(items), *channel_columns(items).values()]
        named |= dict.fromkeys(paths, "path")
        columns = {}
        for column in items.columns:
            if column in named:
                sort = named[column]
                columns[column] = [
                    None if pd.isna(v) else self.name(sort, str(v)) for v in items[column]
                ]
            elif column in keep:
                columns[column] = items[column].tolist()
        return pd.DataFrame(columns).astype({c: items[c].dtype for c in columns if c not in named})

    def _record(self, record: Record) -> bytes:
        withheld = {
            self.name("item", item): Failure(
                reason="withheld", reader=failure.reader, path=self.name("path", failure.path)
            )
            for item, failure in record.failed.items()
        }
        renamed = record.model_copy(
            update={
                "failed": withheld,
                "not_asked": tuple(self.name("item", item) for item in record.not_asked),
                "notes": {},
            }
        )
        return documents.encode(renamed.model_dump(mode="json"))


def telling_columns(store: FeatureStore) -> list[str]:
    """Name the columns of the item table that could identify a person.

    Ids, groups and paths always may; others by their names, or as nearly every patient has a value
    of its own.
    """
    items = store.items
    telling = []
    for column in items.columns:
        lower = column.lower()
        groups = items["group"].nunique() if "group" in items else len(items)
        values = items[column].map(str)
        unique = values.nunique() >= max(0.9 * groups, 20) and not column.startswith("split")
        by_name = column in ("item_id", "group", "path", *mask_columns(items))
        if by_name or unique or any(word in lower for word in _TELLING):
            telling.append(column)
    return telling
