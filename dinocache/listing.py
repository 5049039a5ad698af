"""What the command line prints of encoders and stores."""

from collections.abc import Mapping, Sequence
from typing import Any

from dinocache.calibration import NEIGHBOURS
from dinocache.checkpoints import FAMILIES
from dinocache.cost import gflop
from dinocache.pseudonyms import telling_columns
from dinocache.recipe import Recipe, WindowRecipe
from dinocache.records import Header
from dinocache.spec import EncoderSpec, takes
from dinocache.store import FeatureStore
from dinocache.terminal import console
from dinocache.weights import cached_weights

__all__ = [
    "encoder_facts",
    "print_encoders",
    "shown",
    "storage_facts",
    "storage_rows",
    "store_facts",
    "store_rows",
]


def encoder_facts(spec: EncoderSpec) -> dict[str, Any]:
    """Say all that is known of an encoder.

    Args:
        spec: Its row.

    Returns:
        Facts under JSON's types, in the order in which they are shown; `weights_here` is the file
        in the local Hugging Face cache, or None.
    """
    path = cached_weights(spec)
    sizes = (224, 256, 512)
    return {
        "name": spec.name,
        "dim": spec.dim,
        "depth": spec.depth,
        "patch_px": spec.patch_px,
        "kinds": spec.kinds,
        "embed_dim": spec.embed_dim,
        "params": spec.params,
        "gflop": {
            str(side): round(cost, 1)
            for side in sizes
            if takes(spec, (side, side)) and (cost := gflop(spec, (side, side))) is not None
        },
        "sides": f"{spec.fixed_px} only" if spec.fixed_px else f"multiples of {spec.step_px}",
        "native_px": spec.native_px,
        "mean": spec.mean,
        "std": spec.std,
        "filter": spec.filter,
        "crop_pct": spec.crop_pct,
        "licence": spec.licence,
        "gated": spec.gated,
        "weights_here": str(path) if path else None,
        "hub": [hub_file.repo for hub_file in spec.hub],
        "files": spec.files,
        "formats": FAMILIES[spec.family].formats,
        "to_obtain": spec.obtain,
        "untested": spec.untested or None,
    }


def print_encoders(rows: Sequence[dict[str, Any]]) -> None:
    """Print facts of several encoders as a table, on standard output."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    cost_title = "GFLOP at\n224/256/512"
    for title in ("name", "dim", "patch", "params", cost_title, "weights", "licence"):
        right = title in ("dim", "patch", "params", cost_title)
        narrow = title != "licence"
        table.add_column(
            title, justify="right" if right else "left", no_wrap=narrow, overflow="fold"
        )
    for row in rows:
        costs = [row["gflop"].get(side) for side in ("224", "256", "512")]
        access = "gated" if row["gated"] else "free"
        table.add_row(
            row["name"] + (" *" if row["untested"] else ""),
            str(row["dim"]),
            str(row["patch_px"]),
            f"{row['params'] / 1e6:.1f}M" if row["params"] < 1e9 else f"{row['params'] / 1e9:.1f}B",
            "/".join("-" if c is None else f"{c:.0f}" if c >= 100 else f"{c:g}" for c in costs),
            f"{access}, here" if row["weights_here"] else access,
            row["licence"].removesuffix("-license"),
        )
    # Piped, a table is as wide as its rows, not as a terminal that is not there.
    console(width=120).print(table)
    for row in rows:
        if row["untested"]:
            print(f"* {row['name']} is untested: {row['untested']}")
    print(_BESIDES)


_BESIDES = """
Besides: timm:NAME and open_clip:NAME/TAG, any image model of these libraries.
CT-CLIP and CT-Net of the paper stay published rows: the one encodes no rows but
whole volumes of one size, the other has no published weights."""


def shown(value: object) -> str:
    """Write one fact for people."""
    if isinstance(value, dict):
        return ", ".join(f"{inner} at {key}" for key, inner in value.items()) or "-"
    if isinstance(value, list | tuple):
        words = [str(inner) for inner in value]
        return ("; " if any("," in word for word in words) else ", ").join(words) or "-"
    return (
        "-" if value is None else "yes" if value is True else "no" if value is False else str(value)
    )


def store_facts(store: FeatureStore) -> dict[str, Any]:
    """Say what a store holds.

    Args:
        store: It.

    Returns:
        Facts under JSON's types.
    """
    header = store.header
    kinds = {}
    for kind in store.kinds:
        units = len(store.work([kind]))
        kinds[kind] = {"units": units, "committed": units - len(store.missing([kind]))}
    failures, notes = store.failures(), store.notes()
    return {
        "dataset": header.dataset,
        "variant": header.variant,
        "weights": header.recipe.encoder.weights.name,
        "random_weights": header.recipe.encoder.weights.is_random,
        "complete": store.is_complete,
        "items": len(store.items),
        "rows": sum(sum(s.item_rows) for s in store.segments),
        "segments": len(store.segments),
        "failed_items": len(failures),
        "notes": notes,
        "kinds": kinds,
        "storage": storage_facts(store),
        "columns": list(store.items.columns),
        "could_identify": telling_columns(store),
        "part": None if store.part is None else store.part.model_dump(mode="json"),
        "digest": header.digest,
        "recipe": header.recipe.model_dump(mode="json"),
        "grid": vars(header.grid),
        "execution": header.execution.model_dump(),
        "provenance": header.provenance,
    }


def store_rows(store: FeatureStore, facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Say it for people.

    Args:
        store: It.
        facts: Of `store_facts`.

    Returns:
        (name, text) of each line.
    """
    header, kinds, notes = store.header, facts["kinds"], facts["notes"]
    channels, imported = header.recipe.channels, header.recipe.encoder.weights.is_declared
    command = "import" if imported else "extract"
    where = "" if imported else f" on {header.execution.device}"
    return [
        ("dataset", f"{header.dataset}{f' ({header.variant})' if header.variant else ''}"),
        *(_as_declared(header) if imported else _as_extracted(header.recipe)),
        *(
            [("channels", f"{channels.mode}: {', '.join(channels.names)}")]
            if channels.names
            else []
        ),
        ("precision", "not known" if imported else header.recipe.precision),
        ("stored as", _stored_as(header)),
        *storage_rows(facts["storage"]),
        ("items", f"{facts['items']} ({facts['failed_items']} failed), {facts['rows']} rows"),
        *((kind, f"{n['committed']} of {n['units']} units") for kind, n in kinds.items()),
        *([("notes", f"of {len(notes)} items; --json lists them")] if notes else []),
        (
            "complete",
            "yes" if facts["complete"] else f"no: run the same `dinocache {command}` again",
        ),
        *([("part", f"of {store.part.of}")] if store.part else []),
        ("columns", ", ".join(facts["columns"])),
        ("of these, who", f"{', '.join(facts['could_identify'])} could tell who somebody is"),
        ("digest", header.digest),
        ("made", f"{header.provenance.get('created')}{where}"),
    ]


def _as_extracted(recipe: Recipe) -> list[tuple[str, str]]:
    encoder, given, reader = recipe.encoder, recipe.input, recipe.reader
    told = [f"{key}={shown(value)}" for key, value in reader.options.items() if value is not None]
    return [
        ("encoder", f"{encoder.name}, {encoder.dim} wide, patch {encoder.patch_px} px"),
        ("weights", f"{encoder.weights.name}, sha256 {encoder.weights.sha256[:16]}..."),
        *([("RoPE periods", encoder.rope)] if encoder.rope else []),
        (
            "input",
            f"{given.resolution[0]} x {given.resolution[1]} px, {given.resize.mode}, "
            f"{', '.join(_window(w) for w in given.windows)}, resized in {given.resize.arithmetic}",
        ),
        ("reader", " ".join([reader.name, *told])),
    ]


def _as_declared(header: Header) -> list[tuple[str, str]]:
    """Say of imported features what somebody said: nothing else is known of them."""
    encoder, options = header.recipe.encoder, header.recipe.reader.options
    kind, (height, width) = ", ".join(encoder.vectors), header.recipe.input.resolution
    wide = encoder.embed_dim if kind == "embed" and encoder.embed_dim else encoder.dim
    said = options.get("declared")
    sides = [
        f"{shown(said[key])} {unit}"
        for key, unit in (("tile_px", "px"), ("mpp", "um/px"))
        if isinstance(said, dict) and key in said
    ]
    within = f", there {options['key']!r}" if options.get("key") else ""
    return [
        ("encoder", f"{encoder.name}, {wide} wide, as declared"),
        ("weights", f"{encoder.weights.name.removeprefix('declared:')}, as declared"),
        ("input", f"{height} x {width} px, as declared; how images became that is not known"),
        *([("tiles", f"{' at '.join(sides)}, as declared")] if sides else []),
        (
            "imported",
            f"{kind} of {header.provenance.get('imported_from', 'files of others')} "
            f"({shown(options.get('format'))}{within})",
        ),
    ]


def _stored_as(header: Header) -> str:
    storage, codec = header.recipe.storage, header.grid.codec
    forms = f"{storage.vectors}"
    if storage.dense != storage.vectors:
        forms = f"vectors {storage.vectors}; dense {storage.dense}"
    return forms if codec == "none" else f"{forms}; compressed by {codec}"


def storage_facts(store: FeatureStore) -> dict[str, Any]:
    """Say what it cost to keep features small, kind by kind.

    Args:
        store: The store.

    Returns:
        Kind -> what was measured when it was made, and `clipped_in_all`: the share of all stored
        numbers that int8 cut off, None where that is not known.
    """
    facts: dict[str, Any] = {}
    for kind in store.kinds:
        if (calibration := store.calibration(kind)) is None:
            continue
        records = (store.record(w.unit, w.kind) for w in store.work([kind]) if w.kind == kind)
        fitted = [record.fitted for record in records if record and record.fitted]
        clipped = [one.clipped for one in fitted if one.clipped is not None]
        numbers = sum(one.numbers for one in fitted)
        known = bool(numbers) and len(clipped) == len(fitted)
        facts[kind] = {
            **calibration.cost.model_dump(mode="json"),
            "fitted_items": calibration.fitted_items,
            "fitted_vectors": calibration.fitted_vectors,
            "clipped_in_all": sum(clipped) / numbers if known else None,
        }
    return facts


def storage_rows(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Say for people what `storage_facts` found: (name, text) of each line."""
    rows = []
    for kind, cost in facts.items():
        told = [f"cosine {cost['cosine']:.5f} (least {cost['cosine_least']:.4f})"]
        told.append(f"relative error {cost['relative_error']:.2%}")
        if cost["variance"] is not None:
            told.append(f"{cost['variance']:.2%} of the variance kept")
        if cost["neighbours"] is not None:
            told.append(f"{cost['neighbours']:.1%} of the {NEIGHBOURS} nearest stay")
        if cost["clipped_in_all"] is not None:
            told.append(f"{cost['clipped_in_all']:.2g} of all numbers cut off")
        others = "others" if cost["held_out"] else "the same"
        where = (
            f"measured on {cost['vectors']} vectors of {cost['items']} items, fitted on "
            f"{cost['fitted_vectors']} of {cost['fitted_items']} {others}"
        )
        rows.append((f"{kind}, kept small", f"{', '.join(told)}; {where}"))
    return rows


def _window(window: WindowRecipe) -> str:
    zeros = " of what is not 0" if window.nonzero else ""
    if window.mode == "range":
        return f"{window.low:g} to {window.high:g}"
    limits = "" if window.low is None else f" {window.low:g} to {window.high:g}"
    return f"{window.mode}{limits}{zeros}"
