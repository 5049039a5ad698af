"""The commands by which stores are listed, copied, mended and handed on."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dinocache.errors import DinocacheError, RequestError
from dinocache.options import (
    CODECS,
    CalibrationOption,
    CodecOption,
    DtypeOption,
    JsonOption,
    PcaOption,
    QuantizeOption,
    StoreArgument,
    choice,
)
from dinocache.terminal import console, echo_json

if TYPE_CHECKING:
    from dinocache.copying import Copied
    from dinocache.store import FeatureStore
    from dinocache.survey import Found

__all__ = ["register"]

RootArgument = Annotated[str, typer.Argument(help="Root of stores: a folder or a URL.")]
KindsOption = Annotated[
    str | None,
    typer.Option(
        "--features",
        help="Kinds, with commas: cls, dense, image; item_cls for the items' means alone, all that "
        "a probe of whole images, volumes or videos reads. Default: all.",
    ),
]
ItemsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--items", help="Only items with COLUMN=VALUE; may be repeated. Makes a derived store."
    ),
]
WhereOption = Annotated[
    str | None,
    typer.Option(
        help="Only items of which this holds, as SQL says it: \"label = 1 AND sex = 'F'\". "
        "Makes a derived store."
    ),
]


def ls(root: RootArgument = "features", json: JsonOption = False) -> None:
    """List the stores below a root: what they hold, how complete, how large, by whom and when.

    Examples:
        dinocache ls
        dinocache ls s3://team/features --json
    """
    from dinocache.survey import survey

    found = survey(root)
    if json:
        echo_json([one.to_json() for one in found])
        return
    if not found:
        print(f"there is no store below {root}; `dinocache extract` makes one")
        return
    _print_found(found)


def pull(
    source: Annotated[str, typer.Argument(help="A store, or a root of stores: folder or URL.")],
    root: Annotated[str, typer.Argument(help="Root that it goes to.")] = "features",
    features: KindsOption = None,
    units: Annotated[
        str | None, typer.Option(help="Only these units, with commas: 0001-00003.")
    ] = None,
    items: ItemsOption = None,
    where: WhereOption = None,
    json: JsonOption = False,
) -> None:
    """Bring stores here: what is missing, checked, and going on where it was interrupted.

    All, some kinds or some units are copied byte by byte; what comes is a store, and says so if it
    is a part of one. Some items make a derived store with a plan of its own.

    Examples:
        dinocache pull s3://team/features/nih14/dinov3-s/256
        dinocache pull s3://team/features/nih14/dinov3-s/256 --features item_cls
        dinocache pull s3://team/features/nih14/dinov3-s/256 --items split=train --where "Hernia = 1"
        dinocache pull s3://team/features laptop
    """  # noqa: E501 - an example stays one line
    _copy(source, root, features=features, units=units, items=items, where=where, json=json)


def push(
    source: Annotated[str, typer.Argument(help="A store, or a root of stores: folder or URL.")],
    root: Annotated[str, typer.Argument(help="Root that it goes to.")],
    features: KindsOption = None,
    units: Annotated[
        str | None, typer.Option(help="Only these units, with commas: 0001-00003.")
    ] = None,
    items: ItemsOption = None,
    where: WhereOption = None,
    pseudonymise: Annotated[
        Path | None,
        typer.Option(
            metavar="KEYFILE",
            help="Hand on ids, groups and paths as keyed hashes; one key gives the same names.",
        ),
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option(help="With --pseudonymise: columns of the item table that stay, with commas."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Put stores elsewhere: what is missing there. Nobody sees a store before it is whole.

    Examples:
        dinocache push features/nih14/dinov3-s/256 s3://team/features
        dinocache push features s3://team/features --pseudonymise key --keep split,Hernia
    """
    if pseudonymise is None and keep is not None:
        raise RequestError("--keep goes with --pseudonymise")
    _copy(
        source,
        root,
        features=features,
        units=units,
        items=items,
        where=where,
        json=json,
        key=pseudonymise,
        keep=_parts(keep),
    )


def sync(
    here: Annotated[str, typer.Argument(help="A root of stores: folder or URL.")],
    there: Annotated[str, typer.Argument(help="Another.")],
    json: JsonOption = False,
) -> None:
    """Bring two roots to the same stores: each gets what the other has and it lacks.

    Stores that were appended to apart from each other are named, and left. Ends with 1 then.

    Examples:
        dinocache sync features s3://team/features
    """
    from dinocache.copying import copy_store
    from dinocache.places import folder_of
    from dinocache.roots import find_stores
    from dinocache.store import FeatureStore

    roots = [folder_of(here), folder_of(there)]
    names = {place.name for root in roots for place in find_stores(root)}
    done: list[dict[str, Any]] = []
    for name in sorted(names):
        for source, target in (roots, roots[::-1]):
            if not source.within(name).exists("store.json"):
                continue
            said: dict[str, Any] = {"store": name, "to": str(target)}
            try:
                opened = FeatureStore(source.within(name))
                if opened.part is not None and target.within(name).exists("store.json"):
                    continue  # what a part has, the whole has
                copied = copy_store(opened, target.within(name), tell=_teller(name))
                done.append(said | _facts(copied))
            except DinocacheError as exc:
                done.append(said | {"error": str(exc)})
    if json:
        echo_json(done)
    else:
        for one in done:
            _print_copied(f"{one['store']} to {one['to']}", one)
    raise typer.Exit(int(any("error" in one for one in done)))


def compact(
    store: StoreArgument,
    root: Annotated[
        str | None,
        typer.Option("--to", help="Root that it goes to. Default: beside the store."),
    ] = None,
    variant: Annotated[
        str | None,
        typer.Option(help="Of the new store. Default: names the form, as int8 or pca64-int8-zstd."),
    ] = None,
    features: Annotated[
        str | None, typer.Option(help="Only these kinds, with commas. Default: all.")
    ] = None,
    dtype: DtypeOption = None,
    quantize: QuantizeOption = None,
    pca: PcaOption = None,
    calibration: CalibrationOption = None,
    codec: CodecOption = None,
    json: JsonOption = False,
) -> None:
    """Write a store anew in a smaller form, or compressed; the store itself stays.

    What is left out does not come back, so it is made of one with plain features. What that cost
    is measured on a sample and said: see `dinocache info`. Run it again to go on where it was
    interrupted, or when items were appended. A store of an older format is written in the present
    one, with no form named in the form that it has; give it another root.

    Examples:
        dinocache compact features/nih14/dinov3-s/512 --quantize int8:dense
        dinocache compact features/nih14/dinov3-s/512 --pca 64:dense --codec zstd --to laptop
    """
    from dinocache.compacting import compact_store, form_name
    from dinocache.items import check_name
    from dinocache.layout import FORMAT
    from dinocache.listing import storage_facts, storage_rows
    from dinocache.places import folder_of
    from dinocache.recipe import model_folder, resolution_name
    from dinocache.request import parse_storage
    from dinocache.store import FeatureStore

    source = FeatureStore(store)
    header = source.header
    storage = parse_storage(header.recipe.storage, dtype=dtype, quantize=quantize, pca=pca)
    chosen: Any = choice("--codec", codec, CODECS) or header.grid.codec
    is_same = (storage, chosen) == (header.recipe.storage, header.grid.codec)
    if is_same and features is None and header.format == FORMAT:
        raise RequestError("say in which form: --quantize int8, --pca N, --dtype, or --codec")
    old_form = form_name(header.recipe.storage, header.grid.codec)
    kept = "" if header.variant == old_form else header.variant
    named = "-".join(filter(None, [kept, form_name(storage, chosen)]))
    form = named if variant is None else variant
    name = resolution_name(header.recipe.input.resolution)
    name += f"-{check_name(form, '--variant')}" if form else ""
    beside = store.rstrip("/").rpartition("/")[0] or "."
    place = f"{header.dataset}/{model_folder(header.recipe.encoder.name)}/{name}"
    target = folder_of(root).within(place) if root else folder_of(beside).within(name)
    made = compact_store(
        source,
        target,
        storage,
        chosen,
        variant=form,
        kinds=_parts(features) or None,
        like=FeatureStore(calibration) if calibration else None,
        tell=_teller(name),
    )
    facts = storage_facts(made)
    sizes = [sum(e.bytes for e in one.folder.walk("features.zarr")) for one in (source, made)]
    if json:
        echo_json(
            {
                "store": str(target),
                "complete": made.is_complete,
                "bytes_before": sizes[0],
                "bytes": sizes[1],
                "storage": facts,
            }
        )
        return
    from dinocache.progress import human_bytes

    state = "complete" if made.is_complete else "incomplete, as its source is"
    print(f"{target}: {state}; features {human_bytes(sizes[0])} -> {human_bytes(sizes[1])}")
    for what, text in storage_rows(facts):
        print(f"  {what}: {text}")


def repair(
    store: StoreArgument,
    source: Annotated[
        str | None,
        typer.Option("--from", help="The same store elsewhere: what is broken is copied from it."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Take back what is broken in a store, and exactly that; copy it anew with --from.

    Without --from the same `dinocache extract` does it again. Ends as `verify` does.

    Examples:
        dinocache repair features/nih14/dinov3-s/256 --from s3://team/features/nih14/dinov3-s/256
        dinocache repair features/nih14/dinov3-s/256 && dinocache extract nih14
    """
    from dinocache.repairing import repair as mend

    mended = mend(store, source=source)
    if json:
        echo_json(
            {
                "units": mended.units,
                "fetched": mended.fetched,
                "sound": not mended.found.damages,
                "complete": mended.found.complete,
                "damages": [vars(damage) for damage in mended.found.damages],
            }
        )
        raise typer.Exit(mended.found.exit_code)
    if mended.units:
        few = ", ".join(mended.units[:5]) + (", ..." if len(mended.units) > 5 else "")
        print(f"taken back: {len(mended.units)} units ({few}); copied anew: {mended.fetched}")
    for damage in mended.found.damages:
        print(f"damaged: {damage.file}: {damage.what}")
    if mended.found.damages:
        print("what is left needs --from, the same store elsewhere")
    elif not mended.found.complete:
        print("sound, incomplete: run the same `dinocache extract` to do the rest again")
    else:
        print("sound, complete")
    raise typer.Exit(mended.found.exit_code)


def gc(
    store: StoreArgument,
    older_than_hours: Annotated[
        float, typer.Option(min=0, help="What is younger stays: it may be of work under way.")
    ] = 24.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    json: JsonOption = False,
) -> None:
    """Remove files that no record refers to, and uploads that were begun and never ended."""
    from dinocache.progress import human_bytes
    from dinocache.repairing import collect_garbage

    garbage = collect_garbage(store, older_than_s=older_than_hours * 3600, dry_run=dry_run)
    if json:
        echo_json(asdict(garbage))
        return
    for name in garbage.removed:
        print(name)
    verb = "would go" if dry_run else "removed"
    print(f"{len(garbage.removed)} files, {human_bytes(garbage.n_bytes)} {verb}")
    if garbage.young:
        print(f"{garbage.young} younger files stay; --older-than-hours 0 takes them, too")
    if garbage.uploads:
        print(f"{garbage.uploads} unfinished uploads given up")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (ls, pull, push, sync, compact, repair, gc):
        app.command()(command)


def _copy(
    source: str,
    root: str,
    *,
    features: str | None,
    units: str | None,
    items: Sequence[str] | None,
    where: str | None,
    json: bool,
    key: Path | None = None,
    keep: Sequence[str] = (),
) -> None:
    from dinocache.copying import copy_store
    from dinocache.deriving import choose_items, derive_store
    from dinocache.pseudonyms import Pseudonyms

    pseudonyms = None if key is None else Pseudonyms.read(key)
    kinds = None if features is None else _parts(features)
    some = bool(items) or where is not None
    if some and (units is not None or pseudonyms is not None):
        raise RequestError(
            "--items and --where make a derived store; first make it, then push it with "
            "--units or --pseudonymise"
        )
    done: list[dict[str, Any]] = []
    for store, target in _sources(source, root):
        if some:
            ids = choose_items(store, equal=items or (), where=where)
            derived = derive_store(store, target, ids, kinds=kinds, tell=_teller(str(target)))
            said = {"store": str(target), "items": len(derived.items), "complete": True}
        else:
            copied = copy_store(
                store,
                target,
                kinds=kinds,
                units=None if units is None else _parts(units),
                rename=None if pseudonyms is None else pseudonyms.of_store(store, keep),
                tell=_teller(str(target)),
            )
            said = {"store": str(target), **_facts(copied)}
        done.append(said)
        if not json:
            _print_copied(str(target), said)
    if json:
        echo_json(done)


def _sources(source: str, root: str) -> "list[tuple[FeatureStore, Any]]":
    """Pair each store with the folder that it goes to."""
    from dinocache.errors import StoreNotFoundError
    from dinocache.places import folder_of
    from dinocache.recipe import model_folder, resolution_name
    from dinocache.roots import find_stores
    from dinocache.store import FeatureStore

    folder, target = folder_of(source), folder_of(root)
    if folder.exists("store.json"):
        store = FeatureStore(folder)
        header = store.header
        resolution = resolution_name(header.recipe.input.resolution)
        variant = f"-{header.variant}" if header.variant else ""
        model = model_folder(header.recipe.encoder.name)
        return [(store, target.within(f"{header.dataset}/{model}/{resolution}{variant}"))]
    places = find_stores(folder)
    if not places:
        raise StoreNotFoundError(f"there is no store at {folder}, nor below it")
    return [(FeatureStore(place.folder), target.within(place.name)) for place in places]


def _facts(copied: "Copied") -> dict[str, Any]:
    return {
        "units": copied.units,
        "units_there_before": copied.there,
        "units_lacking_at_source": copied.lacking,
        "files": copied.files,
        "bytes": copied.n_bytes,
        "part": copied.store.part is not None,
        "complete": copied.store.is_complete,
    }


def _print_copied(what: str, said: dict[str, Any]) -> None:
    from dinocache.progress import human_bytes

    if "error" in said:
        print(f"{what}: {said['error']}", file=sys.stderr)
        return
    if "items" in said:
        print(f"{what}: a derived store of {said['items']} items")
        return
    sort = "a part, " if said["part"] else ""
    complete = "complete" if said["complete"] else "incomplete, as the source is"
    print(
        f"{what}: {sort}{complete}; {said['units']} units copied ({said['files']} files, "
        f"{human_bytes(said['bytes'])}), {said['units_there_before']} were there"
    )


def _teller(what: str) -> Callable[[int, int], None] | None:
    """Show progress on a terminal."""
    if not sys.stderr.isatty():
        return None

    def tell(done: int, total: int) -> None:
        end = "\n" if done >= total else ""
        print(f"\r{what}: {100 * done / max(total, 1):3.0f}%", end=end, file=sys.stderr, flush=True)

    return tell


def _print_found(found: "Sequence[Found]") -> None:
    from rich.table import Table

    from dinocache.progress import human_bytes

    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for title in ("store", "kinds", "items", "rows", "done", "size", "weights", "by", "made"):
        right = title in ("items", "rows", "done", "size")
        table.add_column(title, justify="right" if right else "left", overflow="fold")
    for one in found:
        if one.damaged:
            table.add_row(one.name, f"cannot be read: {one.damaged}")
            continue
        weights = one.weights if one.random_weights else f"{one.weights} {one.weights_sha256[:8]}"
        table.add_row(
            one.name + (" *" if one.part else ""),
            ", ".join(one.kinds),
            *("-" if n is None else f"{n:,}" for n in (one.items, one.rows)),
            one.done,
            "-" if one.n_bytes is None else human_bytes(one.n_bytes),
            weights,
            one.by or "-",
            one.created[:10],
        )
    console(width=160).print(table)
    for one in found:
        if one.part:
            print(f"* {one.name}: {one.part}")


def _parts(text: str | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())
