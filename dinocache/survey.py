"""What stores there are below a root, by a few small requests each."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dinocache import documents
from dinocache.errors import StoreError, one_line
from dinocache.layout import HEADER, ITEM_PREFIX, PART, PLANS, SEALED, UNITS, is_vector_kind
from dinocache.places import Where
from dinocache.plan import Segment
from dinocache.records import Header
from dinocache.remote import in_parallel
from dinocache.roots import Place, find_stores

__all__ = ["Found", "survey"]

_PAGE = 1000
"""Names that a listing has at most where there is more."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """A store, from its header and seal.

    Attributes:
        name: Below the root, `nih14/dinov3-s/256`.
        dataset: Its name.
        model: The encoder's.
        resolution: `256`, `512x640`.
        variant: Of the recipe.
        weights: Their name.
        weights_sha256: Of the weights; empty where the features were imported.
        random_weights: Whether they were drawn, not trained.
        digest: Of the recipe.
        kinds: As stored, `item_cls` among them.
        items: How many; None if that is not known yet.
        rows: Likewise.
        percent: Of the units that are committed; None where telling would take too many requests:
            more than one segment has not been closed.
        at_least: Whether not all names were seen, so that more may be done.
        segments: How many were planned; None once it is complete.
        segments_closed: How many of them have all their items.
        n_bytes: Of the files of features; None until it is complete.
        part: What it holds of another store, if it is a part or derived.
        created: When it was begun.
        by: Who began it.
        damaged: What is wrong with it, where it cannot be read.
    """

    name: str
    dataset: str
    model: str
    resolution: str
    variant: str
    weights: str = ""
    weights_sha256: str = ""
    random_weights: bool = False
    digest: str = ""
    kinds: tuple[str, ...] = ()
    items: int | None = None
    rows: int | None = None
    percent: float | None = None
    at_least: bool = False
    segments: int | None = None
    segments_closed: int | None = None
    n_bytes: int | None = None
    part: str = ""
    created: str = ""
    by: str = ""
    damaged: str = ""

    @property
    def done(self) -> str:
        """How far it is, for people: `42%`, or `1 of 3 segments`."""
        if self.percent is None:
            known = bool(self.segments)
            text = f"{self.segments_closed} of {self.segments} segments" if known else "-"
        else:
            # What is not complete is never 100%.
            text = f"{self.percent if self.segments is None else min(self.percent, 99):.0f}%"
        return f"at least {text}" if self.at_least and text != "-" else text

    def to_json(self) -> dict[str, Any]:
        """Give it under JSON's types."""
        return asdict(self)


def survey(root: Where) -> list[Found]:
    """Look at all stores below a root: at most three requests each, 64 in flight.

    Those are: the names of some of its files; the header; and the seal, or one plan of a store that
    is not complete.

    Args:
        root: A folder: a path or a URL.

    Returns:
        In order of names, resolutions by size.

    Raises:
        StoreError: If the root cannot be listed now.
    """
    found: list[Found | None] = in_parallel(_look, find_stores(root, sure=False))
    return [one for one in found if one is not None]


def _look(place: Place) -> Found | None:
    named: dict[str, Any] = {
        "name": place.name,
        "dataset": place.dataset,
        "model": place.model,
        "resolution": place.size,
        "variant": place.variant,
    }
    try:
        # Records, plans, seal and header sort behind the arrays.
        names = place.folder.names_after("part")
        if HEADER not in names:
            return None
        header = Header.from_body(documents.read(place.folder, HEADER), HEADER)
        state = _of_seal(place) if SEALED in names else _of_plans(place, names)
    except (StoreError, OSError) as exc:
        return Found(**named, damaged=one_line(exc))
    weights = header.recipe.encoder.weights
    part = "a part" if PART in names else ""
    return Found(
        **named | {"model": header.recipe.encoder.name},
        weights=weights.name,
        weights_sha256="" if weights.is_declared else weights.sha256,
        random_weights=weights.is_random,
        digest=header.digest,
        part=header.provenance.get("derived", part),
        created=header.provenance.get("created", ""),
        by=header.provenance.get("by", ""),
        **state,
    )


def _of_seal(place: Place) -> dict[str, Any]:
    """Sum up the records of a store that is complete."""
    units = documents.read(place.folder, SEALED).get("units", {})
    rows: dict[str, int] = {}
    items: dict[str, int] = {}
    n_bytes = 0
    for name, record in units.items():
        unit, _, kind = name.partition(".")
        start, stop = record["rows"]
        if unit.endswith("-closing"):
            items[kind] = items.get(kind, 0) + record["items"]
        else:
            rows[kind] = rows.get(kind, 0) + stop - start
        n_bytes += sum(stored["bytes"] for stored in record["objects"].values())
    return {
        "kinds": tuple(sorted({*rows, *items})),
        "items": max(items.values(), default=None),
        "rows": max(rows.values(), default=None),
        "percent": 100.0,
        "n_bytes": n_bytes,
    }


def _of_plans(place: Place, names: Sequence[str]) -> dict[str, Any]:
    """Count the records of a store that is not complete.

    How many units a segment has stands in its plan, of which one is read. A segment that has been
    closed has all its units, so that their records tell it, too.
    """
    numbers = [_stem(name, PLANS) for name in names if name.startswith(f"{PLANS}/")]
    done: dict[str, set[str]] = {number: set() for number in numbers}
    kinds: set[str] = set()
    for name in names:
        if name.startswith(f"{UNITS}/"):
            number, _, record = _stem(name, UNITS).partition("-")  # 0001-00000.cls
            kinds.add(record.partition(".")[2])
            done.get(number, set()).add(record)
    of_rows = {kind for kind in kinds if not kind.startswith(ITEM_PREFIX)}
    means = {f"{ITEM_PREFIX}{kind}" for kind in of_rows if is_vector_kind(kind)} | kinds - of_rows
    closing = {f"closing.{kind}" for kind in means}
    unclosed = [number for number in numbers if not closing or not closing <= done[number]]
    told: dict[str, Any] = {
        "kinds": tuple(sorted(kinds)),
        "segments": len(numbers),
        "segments_closed": len(numbers) - len(unclosed),
        "at_least": len(names) == _PAGE,
    }
    if not numbers or len(unclosed) > 1:
        return told
    n_units = {n: len({r.partition(".")[0] for r in done[n] - closing}) for n in numbers}
    read = numbers[0] if len(numbers) == 1 else next(iter(unclosed), None)
    if read is not None:
        name = f"{PLANS}/{read}.json"
        segment = Segment.from_body(documents.read(place.folder, name), name)
        n_units[read] = len(segment.units)
        if len(numbers) == 1:
            told |= {"items": len(segment.item_ids), "rows": sum(segment.item_rows)}
    total = sum(n_units.values()) * len(of_rows) + len(numbers) * len(closing)
    committed = sum(map(len, done.values()))
    return told | {"percent": 100 * committed / total if total else 0.0}


def _stem(name: str, folder: str) -> str:
    return name.removeprefix(f"{folder}/").removesuffix(".json")
