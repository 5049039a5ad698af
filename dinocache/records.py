"""What a store writes down about itself: its header and its commit records.

See docs/store-format.md, "store.json" and "Commit records".
"""

from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

from dinocache.documents import Body
from dinocache.errors import StoreDamagedError
from dinocache.layout import FORMAT
from dinocache.plan import Grid
from dinocache.recipe import Recipe

__all__ = ["Execution", "Failure", "Header", "Record", "Run", "StoredObject"]


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
        if (found := body.get("format")) != FORMAT:
            older = isinstance(found, int) and found < FORMAT
            way_out = "Extract it again." if older else "Upgrade dinocache to read it."
            raise StoreDamagedError(
                f"{name} says format {found!r}; this version of dinocache reads {FORMAT}. {way_out}"
            )
        Recipe.from_body(body.get("recipe"), name)
        return super().from_body(body, name)


class Failure(_Part):
    """Why an item has no features."""

    reason: str
    reader: str
    path: str


class StoredObject(_Part):
    """One committed file."""

    bytes: int
    crc32c: str


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

    @property
    def absent(self) -> frozenset[str]:
        """Ids of items that this unit has nothing of."""
        return frozenset(self.failed) | frozenset(self.not_asked)

    @classmethod
    def from_body(cls, body: Body, name: str) -> Self:
        """Read it back; raises `StoreDamagedError` also if a path leaves the store."""
        record = super().from_body(body, name)
        for path in record.objects:
            if path.startswith("/") or "\\" in path or ".." in path.split("/"):
                raise StoreDamagedError(f"{name} names {path!r}, which is outside the store")
        return record


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
