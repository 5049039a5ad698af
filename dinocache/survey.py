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
        weights_sha256: Of the weights.
        random_weights: Whether they were drawn, not trained.
        digest: Of the recipe.
        kinds: As stored, `item_cls` among them.
        items: How many; None if that is not known yet.
        rows: Likewise.
        percent: Of the units that are committed; None where telling would take too many requests.
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
    n_bytes: int | None = None
    part: str = ""
    created: str = ""
    by: str = ""
    damaged: str = ""

    def to_json(self) -> dict[str, Any]:
        """Give it under JSON's types."""
        return asdict(self)


def survey(root: Where) -> list[Found]:
    """Look at all stores below a root: at most three requests each, 64 in flight.

    Those are: the names of some of its files; the header; and the seal, or the plan of a store that
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
        state = _of_seal(place) if SEALED in names else _of_plan(place, names)
    except (StoreError, OSError) as exc:
        return Found(**named, damaged=one_line(exc))
    weights = header.recipe.encoder.weights
    part = "a part" if PART in names else ""
    return Found(
        **named | {"model": header.recipe.encoder.name},
        weights=weights.name,
        weights_sha256=weights.sha256,
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


def _of_plan(place: Place, names: Sequence[str]) -> dict[str, Any]:
    """Count the records of a store that is not complete."""
    plans = [name for name in names if name.startswith(f"{PLANS}/")]
    records = [name.removeprefix(f"{UNITS}/") for name in names if name.startswith(f"{UNITS}/")]
    kinds = sorted({name.partition(".")[2].removesuffix(".json") for name in records})
    if len(plans) != 1:
        return {"kinds": tuple(kinds)}
    segment = Segment.from_body(documents.read(place.folder, plans[0]), plans[0])
    of_rows = [kind for kind in kinds if not kind.startswith(ITEM_PREFIX)]
    closing = sum(is_vector_kind(kind) for kind in of_rows)
    total = len(segment.units) * len(of_rows) + closing
    return {
        "kinds": tuple(kinds),
        "items": len(segment.item_ids),
        "rows": sum(segment.item_rows),
        "percent": 100 * len(records) / total if total else 0.0,
    }
