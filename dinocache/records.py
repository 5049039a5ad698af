"""What a store writes down about itself: its header and its commit records.

See docs/store-format.md, "store.json" and "Commit records".
"""

import re
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from xxhash import xxh3_64_hexdigest

from dinocache.documents import Body, checksum
from dinocache.errors import RequestError, StoreDamagedError
from dinocache.items import check_name
from dinocache.layout import BINDING_FORMAT, FEATURES, FORMAT, FORMATS, NATIVE, THUMBS
from dinocache.plan import Grid
from dinocache.recipe import Recipe

__all__ = [
    "Execution",
    "Failure",
    "Fitted",
    "Header",
    "Part",
    "Record",
    "Run",
    "Seal",
    "StoredObject",
]

_INSIDE = re.compile(
    rf"(?:{'|'.join(map(re.escape, (FEATURES, NATIVE, THUMBS)))})(?:/(?!\.\.?(?:/|$))[\w.-]+)+",
    re.ASCII,
)
"""A file of numbers or a small picture; nothing else is ever committed."""

Content = bytes | memoryview


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Document(_Part):
    """The body of a document of its own."""

    @classmethod
    def from_body(cls, body: Body, name: str) -> Self:
        """Read it back.

        Args:
            body: The document's.
            name: The file, for messages.

        Returns:
            What it says.

        Raises:
            StoreDamagedError: If a field is missing or of another type.
        """
        try:
            return cls.model_validate(body)
        except ValidationError as exc:
            error = exc.errors()[0]
            field = ".".join(str(part) for part in error["loc"])
            raise StoreDamagedError(f"{name}: field {field!r}: {error['msg']}") from exc


class Execution(_Part):
    """What else the last bits depend on; a run goes on with it."""

    device: str
    threads: int
    compiled: bool


class Header(_Document):
    """The body of `store.json`."""

    format: int = FORMAT
    dataset: str
    variant: str
    recipe: Recipe
    digest: str
    grid: Grid
    execution: Execution
    provenance: dict[str, str]

    @classmethod
    def from_body(cls, body: Body, name: str) -> Self:
        """Read it back; raises `StoreDamagedError` also if it is of another format version."""
        if (found := body.get("format")) not in FORMATS:
            older = isinstance(found, int) and found < FORMATS[0]
            way_out = "Extract it again." if older else "Upgrade dinocache to read it."
            raise StoreDamagedError(
                f"{name} says format {found!r}; this version of dinocache reads "
                f"{FORMATS[0]} to {FORMATS[-1]}. {way_out}"
            )
        Recipe.from_body(body.get("recipe"), name)
        header = super().from_body(body, name)
        for given in (header.dataset, header.variant or "plain"):
            try:  # they name folders, where the store is copied to
                check_name(given, "")
            except RequestError:
                raise StoreDamagedError(f"{name}: {given!r} cannot name a folder") from None
        return header


class Failure(_Part):
    """Why an item has no features."""

    reason: str
    reader: str
    path: str


class StoredObject(_Part):
    """One committed file: its size, and one digest of all of its bytes.

    `xxh3` is XXH3 of 64 bits, seed 0, as 16 hex digits. Stores before format 5 have `crc32c`, which
    does not tell files of one size apart that end with their own CRC-32C, as chunks do: of data and
    its CRC the CRC is always the same.
    """

    bytes: int = Field(ge=0)
    crc32c: str | None = Field(default=None, exclude_if=lambda value: value is None)
    xxh3: str | None = Field(default=None, exclude_if=lambda value: value is None)

    @classmethod
    def of(cls, content: Content, format: int) -> Self:
        """Describe a file for a record.

        Args:
            content: All of it.
            format: Version of the store's format.
        """
        if format < BINDING_FORMAT:
            return cls(bytes=len(content), crc32c=checksum(content))
        return cls(bytes=len(content), xxh3=xxh3_64_hexdigest(content))

    def is_of(self, content: Content) -> bool:
        """Tell whether a file is the one that was committed."""
        if len(content) != self.bytes:
            return False
        if self.xxh3 is None:
            return checksum(content) == self.crc32c
        return xxh3_64_hexdigest(content) == self.xxh3

    def fits(self, format: int) -> bool:
        """Tell whether it has the digest of a version of the format, and no other."""
        old = format < BINDING_FORMAT
        return (self.crc32c is not None, self.xxh3 is not None) == (old, not old)

    @property
    def digest(self) -> str:
        """The digest, of whichever sort."""
        return self.xxh3 or self.crc32c or ""


class Fitted(_Part):
    """Of features that were made small: by what, and how many of int8 were cut off at its ends.

    `calibration` is the checksum of the document that holds scales and basis. What was cut off is
    not known of rows that were copied from another store.
    """

    calibration: str
    clipped: int | None = Field(ge=0)
    numbers: int = Field(ge=0)


class Record(_Document):
    """The body of a commit record: this kind of this unit is done and on the disk."""

    unit: str
    kind: str
    recipe: str
    rows: tuple[int, int]
    items: int
    failed: dict[str, Failure]
    not_asked: tuple[str, ...]
    notes: dict[str, tuple[str, ...]] = {}
    objects: dict[str, StoredObject]
    made_by: dict[str, str]
    fitted: Fitted | None = Field(default=None, exclude_if=lambda value: value is None)

    @property
    def absent(self) -> frozenset[str]:
        """Ids of items that this unit has nothing of."""
        return frozenset(self.failed) | frozenset(self.not_asked)

    @classmethod
    def from_body(cls, body: Body, name: str) -> Self:
        """Read it back; raises `StoreDamagedError` also if a path leaves the store."""
        record = super().from_body(body, name)
        for path in record.objects:
            if not _INSIDE.fullmatch(path):
                raise StoreDamagedError(f"{name} names {path!r}, which is outside the store")
        return record


class Seal(_Document):
    """The body of `sealed.json`: bodies of records, checksums of plans, the item table's name."""

    units: dict[str, Body]
    plans: dict[str, str]
    items: str


class Part(_Document):
    """The body of `part.json`: a copy that holds some of a store, and which.

    `kinds` as stored, `item_cls` among them; None for all. `units` likewise.
    """

    of: str
    digest: str
    kinds: tuple[str, ...] | None
    units: tuple[str, ...] | None

    def covers(self, unit: str, kind: str) -> bool:
        """Tell whether a unit and kind is to be there."""
        return (self.kinds is None or kind in self.kinds) and (
            self.units is None or unit in self.units
        )

    def joined(self, other: "Part") -> "Part":
        """Give a part that holds what either does; it may ask for more than both."""

        def both(
            ours: tuple[str, ...] | None, theirs: tuple[str, ...] | None
        ) -> tuple[str, ...] | None:
            return None if ours is None or theirs is None else tuple(sorted({*ours, *theirs}))

        return self.model_copy(
            update={
                "kinds": both(self.kinds, other.kinds),
                "units": both(self.units, other.units),
            }
        )


class Run(_Document):
    """The body of a file in `runs/`: what one process, or one cluster, came to."""

    began: str
    seconds: float
    rows: int
    units: int
    ended: str
    """`done`, `stopped`, or `failed`."""
    device: str
    workers: int
    part: str
    busy: dict[str, float]
    made_by: dict[str, str]
