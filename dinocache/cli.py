"""The command `dinocache`: parses, calls one function, prints, chooses the exit code."""

import logging
import os
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from dinocache import __version__
from dinocache.terminal import echo_json, run

if TYPE_CHECKING:
    from dinocache.extract import Outcome
    from dinocache.recipe import WindowRecipe
    from dinocache.request import ExtractRequest
    from dinocache.store import FailedItem

__all__ = ["app", "main"]

app = typer.Typer(
    help="Frozen vision features of medical images: extract once, probe anywhere.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


RESIZES = ("squash", "pad", "crop")
ARITHMETICS = ("float32", "uint8")
ROPES = ("auto", "float32")
PRECISIONS = ("fp32", "bf16")


def _starting(choices: Sequence[str]) -> Callable[[str], list[str]]:
    """Complete one of a few words."""
    return lambda incomplete: [word for word in choices if word.startswith(incomplete)]


def _encoder_names(start: str) -> list[str]:
    """Complete what stands after --model."""
    from dinocache.encoders import ENCODERS

    return [spec.name for spec in ENCODERS if spec.name.startswith(start)]


def _reader_names(start: str) -> list[str]:
    """Complete the name of a reader."""
    from dinocache.readers import READERS

    return [name for name in READERS if name.startswith(start)]


def _dataset_names(start: str) -> list[str]:
    """Complete the name of a shipped dataset."""
    from dinocache.manifest import shipped_manifests

    return [name for name in shipped_manifests() if name.startswith(start)]


DatasetArgument = Annotated[
    str,
    typer.Argument(
        autocompletion=_dataset_names,
        help="Name of a shipped dataset (see `dinocache datasets`), path of a manifest (.yaml), "
        "or of a table (.csv, .tsv, .parquet) with a column `path` and, if wanted, item_id, "
        "group, split, mask and any target columns.",
    ),
]
StoreArgument = Annotated[Path, typer.Argument(help="Folder of a store.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
DataOption = Annotated[
    Path | None,
    typer.Option(
        help="Folder that paths are relative to. Default: data/<name>; a table's own folder."
    ),
]
RootOption = Annotated[
    Path,
    typer.Option("--store", help="Root of the stores; one lies at ROOT/<dataset>/<model>/<res>."),
]
NameOption = Annotated[
    str | None,
    typer.Option(help="The dataset's name. Default: the manifest's, or the table's stem."),
]
ModelOption = Annotated[
    str,
    typer.Option(
        autocompletion=_encoder_names,
        help="Encoder: a name that `dinocache encoders` lists, timm:NAME, or open_clip:NAME/TAG.",
    ),
]
ResolutionOption = Annotated[
    str | None,
    typer.Option(
        help="What the encoder sees, px: 512, or 512x640 as height x width. Default: the dataset's "
        "(256 for a table), or the encoder's own size where it cannot take that."
    ),
]
VariantOption = Annotated[
    str,
    typer.Option(
        help="Gives a second recipe of the same dataset, model and resolution its folder."
    ),
]
FeaturesOption = Annotated[
    str | None,
    typer.Option(
        help="Kinds to keep, with commas: cls, mean, embed (a vector a row: the class token, the "
        "mean over patches, the publisher's own embedding), dense (a map of patch vectors), image, "
        "mask (the item's own grid). Default: what the store has, or the dataset's with all "
        "vectors of the encoder."
    ),
]
LayersOption = Annotated[
    str | None,
    typer.Option(
        help="Depths of dense: last, last4 (the last four blocks or stages), or their numbers from "
        "0, as 5,11. A map before the last layer is a kind of its own, dense.L05."
    ),
]
ResizeOption = Annotated[
    str | None,
    typer.Option(
        autocompletion=_starting(RESIZES),
        help="How an image comes to the resolution: squash (default; the aspect ratio goes), pad "
        "(with 0), or crop (the centre, as the encoder's publisher does).",
    ),
]
ArithmeticOption = Annotated[
    str | None,
    typer.Option(
        autocompletion=_starting(ARITHMETICS),
        help="Resize in float32 (default), or in uint8 as the encoders' own libraries do; uint8 is "
        "for 8-bit images.",
    ),
]
WindowOption = Annotated[
    str | None,
    typer.Option(
        help="Values that become 0 and 1: full-range (of the integer type), file (DICOM's own), "
        "min-max, LOW:HIGH, W400L40 (width, level), hu, lung, soft-tissue, bone, brain, suv, "
        "percentile:1:99, z-score:3; the last two and min-max with /nonzero to leave zeros out. "
        "One, or one a channel with commas; three make three channels of a grey one. Default: the "
        "dataset's; percentile for volumes; min-max for anatomix; else full-range."
    ),
]
ReaderOption = Annotated[
    str | None,
    typer.Option(
        autocompletion=_reader_names,
        help="image, volume, slide, video or stack (`dinocache readers`). Default: by file names.",
    ),
]
OptionsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--option",
        "-o",
        help="NAME=VALUE of the reader, as spacing=1,1,3; may be repeated. `dinocache readers "
        "NAME` lists them.",
    ),
]
MppOption = Annotated[
    float | None,
    typer.Option(help="um/px of a slide's full resolution, where its file does not say."),
]
ChannelsOption = Annotated[
    str | None,
    typer.Option(
        help="What becomes of several channels: stacked (the encoder's input together) or passes "
        "(through the encoder one by one: kinds cls.ct, cls.pet); passes:NAME,NAME names those of "
        "one file. Default: passes where a table has columns path.NAME."
    ),
]
DeviceOption = Annotated[str, typer.Option(help="auto, cuda, cuda:1, mps or cpu.")]
WorkersOption = Annotated[int | None, typer.Option(min=1, help="Threads that decode. Default: 4.")]
UnitRowsOption = Annotated[
    int | None,
    typer.Option(
        help="Rows that are committed together: a power of two, 16 to 4096. Fixed for a store."
    ),
]
BatchOption = Annotated[
    int | None,
    typer.Option(help="Rows a pass of the encoder. Fixed for a store: it changes last bits."),
]


def _version(wanted: bool) -> None:
    if wanted:
        print(f"dinocache {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Frozen vision features of medical images: extract once, probe anywhere."""


@app.command()
def extract(
    dataset: DatasetArgument,
    data: DataOption = None,
    store: RootOption = Path("features"),
    name: NameOption = None,
    model: ModelOption = "dinov3-s",
    resolution: ResolutionOption = None,
    variant: VariantOption = "",
    features: FeaturesOption = None,
    layers: LayersOption = None,
    resize: ResizeOption = None,
    arithmetic: ArithmeticOption = None,
    window: WindowOption = None,
    reader: ReaderOption = None,
    option: OptionsOption = None,
    mpp: MppOption = None,
    channels: ChannelsOption = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="hub, PATH of a checkpoint (.pth, .safetensors), random[:SEED] (tests and "
            "demonstrations only), or several with commas: the first that can be had. Default: "
            "as the store has it, else hub."
        ),
    ] = None,
    rope: Annotated[
        str | None,
        typer.Option(
            autocompletion=_starting(ROPES),
            help="RoPE periods: auto (the checkpoint's, else rounded to bfloat16 as released) "
            "or float32.",
        ),
    ] = None,
    device: DeviceOption = "auto",
    any_device: Annotated[
        bool, typer.Option(help="Go on with a store that another kind of device began.")
    ] = False,
    precision: Annotated[
        str | None,
        typer.Option(
            autocompletion=_starting(PRECISIONS),
            help="fp32 or bf16. Default: bf16 on cuda, fp32 elsewhere.",
        ),
    ] = None,
    compiled: Annotated[
        bool | None,
        typer.Option(
            "--compile/--no-compile",
            help="Let torch compile the encoder. Default: on cuda. Fixed for a store.",
        ),
    ] = None,
    batch: BatchOption = None,
    unit_rows: UnitRowsOption = None,
    workers: WorkersOption = None,
    append: Annotated[
        bool, typer.Option(help="Add this table's new items to the store of another table.")
    ] = False,
    retry_failed: Annotated[bool, typer.Option(help="Try items again that failed before.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done; write nothing.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Extract what is missing of a dataset's features.

    Run the same command again after any interruption: only what is not committed is done. Ends with
    0 if every item has its features, 1 if some failed (they are named), 2 for a wrong request.

    Examples:
        dinocache extract demo --weights random
        dinocache extract images.csv --data /data/xray --model dinov3-b --resolution 512
        dinocache extract scans.csv --window hu -o axis=coronal -o spacing=1,1,2
        dinocache extract slides.csv --reader slide -o tile_px=256 -o tile_mpp=0.5 --mpp 0.25
    """
    request = _request(
        dataset=dataset,
        data=data,
        root=store,
        name=name,
        model=model,
        resolution=resolution,
        variant=variant,
        features=features,
        layers=layers,
        resize=_choice("--resize", resize, RESIZES),
        arithmetic=_choice("--arithmetic", arithmetic, ARITHMETICS),
        window=window,
        reader=reader,
        option=option,
        mpp=mpp,
        channels=channels,
        weights=weights,
        rope=_choice("--rope", rope, ROPES),
        device=device,
        any_device=any_device,
        precision=_choice("--precision", precision, PRECISIONS),
        compiled=compiled,
        batch=batch,
        unit_rows=unit_rows,
        workers=workers,
        append=append,
        retry_failed=retry_failed,
    )
    if dry_run:
        _print_forecast(request, json)
        return
    from dinocache.extract import extract as run_extraction
    from dinocache.progress import make_progress

    try:
        outcome = run_extraction(request, make_progress())
    except KeyboardInterrupt:
        print(
            "stopped; what was committed is whole. Run the same command again to go on.",
            file=sys.stderr,
        )
        raise typer.Exit(130) from None
    _print_outcome(outcome, json)
    if outcome.failures:
        raise typer.Exit(1)


@app.command()
def plan(
    dataset: DatasetArgument,
    data: DataOption = None,
    store: RootOption = Path("features"),
    name: NameOption = None,
    model: ModelOption = "dinov3-s",
    resolution: ResolutionOption = None,
    variant: VariantOption = "",
    features: FeaturesOption = None,
    layers: LayersOption = None,
    resize: ResizeOption = None,
    window: WindowOption = None,
    reader: ReaderOption = None,
    option: OptionsOption = None,
    mpp: MppOption = None,
    channels: ChannelsOption = None,
    device: DeviceOption = "auto",
    workers: WorkersOption = None,
    batch: BatchOption = None,
    unit_rows: UnitRowsOption = None,
    json: JsonOption = False,
) -> None:
    """Say how many rows, units and bytes an extraction is; writes nothing, needs no weights."""
    request = _request(
        dataset=dataset,
        data=data,
        root=store,
        name=name,
        model=model,
        resolution=resolution,
        variant=variant,
        features=features,
        layers=layers,
        resize=_choice("--resize", resize, RESIZES),
        window=window,
        reader=reader,
        option=option,
        mpp=mpp,
        channels=channels,
        device=device,
        workers=workers,
        batch=batch,
        unit_rows=unit_rows,
    )
    _print_forecast(request, json)


@app.command()
def info(store: StoreArgument, json: JsonOption = False) -> None:
    """Show what a store holds: recipe, kinds, how much of it is done."""
    from dinocache.listing import shown
    from dinocache.store import FeatureStore

    opened = FeatureStore(store)
    header = opened.header
    kinds = {}
    for kind in opened.kinds:
        units = len(opened.work([kind]))
        kinds[kind] = {"units": units, "committed": units - len(opened.missing([kind]))}
    failures, notes = opened.failures(), opened.notes()
    facts: dict[str, Any] = {
        "dataset": header.dataset,
        "variant": header.variant,
        "weights": header.recipe.encoder.weights.name,
        "random_weights": header.recipe.encoder.weights.is_random,
        "complete": opened.is_complete,
        "items": len(opened.items),
        "rows": sum(sum(s.item_rows) for s in opened.segments),
        "segments": len(opened.segments),
        "failed_items": len(failures),
        "notes": notes,
        "kinds": kinds,
        "columns": list(opened.items.columns),
        "digest": header.digest,
        "recipe": header.recipe.model_dump(mode="json"),
        "grid": vars(header.grid),
        "execution": header.execution.model_dump(),
        "provenance": header.provenance,
    }
    if json:
        echo_json(facts)
        return
    if facts["random_weights"]:
        print(f"RANDOM WEIGHTS ({facts['weights']}): for tests and demonstrations only")
    encoder, given = header.recipe.encoder, header.recipe.input
    reader, channels = header.recipe.reader, header.recipe.channels
    told = [f"{key}={shown(value)}" for key, value in reader.options.items() if value is not None]
    rows = [
        ("dataset", f"{header.dataset}{f' ({header.variant})' if header.variant else ''}"),
        ("encoder", f"{encoder.name}, {encoder.dim} wide, patch {encoder.patch_px} px"),
        ("weights", f"{encoder.weights.name}, sha256 {encoder.weights.sha256[:16]}..."),
        *([("RoPE periods", encoder.rope)] if encoder.rope else []),
        (
            "input",
            f"{given.resolution[0]} x {given.resolution[1]} px, {given.resize.mode}, "
            f"{', '.join(_window(w) for w in given.windows)}, resized in {given.resize.arithmetic}",
        ),
        ("reader", " ".join([reader.name, *told])),
        *(
            [("channels", f"{channels.mode}: {', '.join(channels.names)}")]
            if channels.names
            else []
        ),
        ("precision", f"{header.recipe.precision}, stored as {header.recipe.dtype}"),
        ("items", f"{facts['items']} ({facts['failed_items']} failed), {facts['rows']} rows"),
        *((kind, f"{n['committed']} of {n['units']} units") for kind, n in kinds.items()),
        *([("notes", f"of {len(notes)} items; --json lists them")] if notes else []),
        ("complete", "yes" if facts["complete"] else "no: run the same `dinocache extract` again"),
        ("columns", ", ".join(facts["columns"])),
        ("digest", header.digest),
        ("made", f"{header.provenance.get('created')} on {header.execution.device}"),
    ]
    _print_rows(rows)


@app.command()
def verify(store: StoreArgument, json: JsonOption = False) -> None:
    """Hold every byte of a store against what was committed.

    Ends with 0 (sound and complete), 1 (damaged: files and items are named) or 3 (sound,
    incomplete).
    """
    from dinocache.verify import verify as check

    found = check(store)
    if json:
        echo_json(
            {
                "sound": not found.damages,
                "complete": found.complete,
                "files": found.files,
                "bytes": found.n_bytes,
                "damages": [vars(damage) for damage in found.damages],
                "leftovers": found.leftovers,
            }
        )
        raise typer.Exit(found.exit_code)
    from dinocache.progress import human_bytes

    for damage in found.damages:
        items = ", ".join(damage.items[:3]) + (", ..." if len(damage.items) > 3 else "")
        print(f"damaged: {damage.file}: {damage.what}" + (f" (items {items})" if items else ""))
    if found.leftovers:
        print(
            f"{len(found.leftovers)} files of interrupted work, harmless; as {found.leftovers[0]}"
        )
    state = "damaged" if found.damages else "sound"
    complete = "complete" if found.complete else "incomplete"
    print(f"{state}, {complete}: {found.files} files, {human_bytes(found.n_bytes)} read")
    raise typer.Exit(found.exit_code)


@app.command()
def failures(store: StoreArgument, json: JsonOption = False) -> None:
    """List the items that have no features, and why. Ends with 1 if there are any."""
    from dinocache.store import FeatureStore

    failed = FeatureStore(store).failures()
    if json:
        echo_json([_failure_facts(f) for f in failed])
    else:
        _print_failures(failed, sys.stdout)
        if not failed:
            print("no item failed")
    raise typer.Exit(1 if failed else 0)


@app.command()
def relabel(
    store: StoreArgument,
    table: Annotated[Path, typer.Argument(help="A table or manifest that lists the same items.")],
    data: DataOption = None,
) -> None:
    """Give a store's items other targets, groups or splits; no feature is computed again."""
    from dinocache.extract import relabel as change

    changed = change(store, table, data)
    print(f"{store}: {changed.items_name} is in force, columns {', '.join(changed.items.columns)}")


@app.command()
def datasets(
    name: Annotated[str | None, typer.Argument(help="One dataset, to explain it.")] = None,
    json: JsonOption = False,
) -> None:
    """List the datasets that are known by name, or explain one."""
    from dinocache.errors import RequestError
    from dinocache.manifest import load_manifest, shipped_manifests

    shipped = {key: load_manifest(path) for key, path in shipped_manifests().items()}
    if name is None:
        if json:
            echo_json({key: {"title": m.title, "licence": m.licence} for key, m in shipped.items()})
        else:
            _print_rows([(key, f"{m.title}; {m.licence}") for key, m in shipped.items()])
        return
    if name not in shipped:
        raise RequestError(f"there is no dataset {name!r}; there are {', '.join(shipped)}")
    manifest = shipped[name]
    if json:
        echo_json(manifest.model_dump(mode="json"))
        return
    extraction = manifest.extract
    _print_rows(
        [
            ("name", manifest.name),
            ("title", manifest.title),
            ("licence", manifest.licence),
            ("citation", manifest.citation),
            ("home", manifest.home),
            ("to obtain", manifest.obtain),
            ("expected", ", ".join(f"{n} {what}" for what, n in manifest.expect.items())),
            ("features", ", ".join(extraction.features)),
            ("resolution", ", ".join(str(r) for r in extraction.resolutions)),
        ]
    )


@app.command()
def encoders(
    name: Annotated[
        str | None,
        typer.Argument(
            autocompletion=_encoder_names,
            help="One encoder, to explain it; also timm:NAME or open_clip:NAME/TAG.",
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """List the encoders that are known by name, or explain one.

    GFLOP are 1e9 operations a row (a multiply-add is two). Weights that are `here` lie in the local
    Hugging Face cache; `gated` ones are given out by their publisher after a form.
    """
    from dinocache.encoders import ENCODERS
    from dinocache.libraries import find_encoder
    from dinocache.listing import encoder_facts, print_encoders, shown

    if name is not None:
        facts = encoder_facts(find_encoder(name))
        if json:
            echo_json(facts)
        else:
            _print_rows([(key.replace("_", " "), shown(value)) for key, value in facts.items()])
        return
    rows = [encoder_facts(spec) for spec in ENCODERS]
    if json:
        echo_json(rows)
        return
    print_encoders(rows)


@app.command()
def readers(
    name: Annotated[
        str | None,
        typer.Argument(autocompletion=_reader_names, help="One reader, to list its options."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """List the readers and what they read, or the options of one."""
    from dinocache.listing import shown
    from dinocache.readers import READERS, reader_class

    if name is None:
        summaries = {key: reader_class(key).summary for key in READERS}
        if json:
            echo_json(summaries)
        else:
            _print_rows(list(summaries.items()))
        return
    found = reader_class(name)
    schema = found.Options.model_json_schema()
    if json:
        echo_json({"name": name, "summary": found.summary, "options": schema})
        return
    defaults = found().options
    columns = ", ".join(f"{column} ({unit})" for column, unit in found.columns)
    _print_rows(
        [
            ("reads", found.summary),
            ("window", f"{found.window}, unless --window says otherwise"),
            *([("coordinates", columns)] if columns else []),
            *(
                (f"-o {key}=", f"{_line(field.description)} (default {shown(defaults[key])})")
                for key, field in found.Options.model_fields.items()
            ),
        ]
    )


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(help="A file, or a folder, that is one item.")],
    reader: ReaderOption = None,
    option: OptionsOption = None,
    mpp: MppOption = None,
    window: WindowOption = None,
    picture: Annotated[
        Path | None, typer.Option(help="Write some of its rows, windowed, to this PNG.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Say what a reader makes of one item: rows, type, spacing, values; writes no store.

    Examples:
        dinocache inspect scan.nii.gz --window lung --picture scan.png
        dinocache inspect slide.svs -o tile_px=256 --picture tiles.png
    """
    from dinocache.inspection import inspect_item
    from dinocache.listing import shown

    asked = _request(dataset="", reader=reader, option=option, mpp=mpp, window=window)
    found = inspect_item(path, reader=asked.reader, options=asked.options, windows=asked.windows)
    if picture is not None:
        found.draw(picture)
    if json:
        echo_json(found.facts)
        return
    facts = {
        key.replace("_", " "): value for key, value in found.facts.items() if value is not None
    }
    for key, value in facts.items():
        if isinstance(value, dict):
            facts[key] = ", ".join(f"{k} {shown(v)}" for k, v in value.items() if v is not None)
    _print_rows([(key, shown(value)) for key, value in facts.items() if value not in ([], "")])


@app.command()
def doctor(store: RootOption = Path("features"), json: JsonOption = False) -> None:
    """Say what this machine has for extraction, and what to do about each lack.

    Ends with 1 if something that extraction needs is missing.
    """
    from dinocache.doctor import examine

    findings = examine(store)
    if json:
        echo_json([vars(finding) for finding in findings])
    else:
        marks = {"good": "ok  ", "note": "note", "lack": "LACK"}
        _print_rows(
            [
                (
                    f"{marks[f.state]} {f.what}",
                    f.found + (f"; {f.advice}" if f.advice else ""),
                )
                for f in findings
            ]
        )
    raise typer.Exit(1 if any(f.state == "lack" for f in findings) else 0)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Without the program; None takes the process's own.

    Returns:
        The exit code.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    for library in ("pydicom", "nibabel.global", "tifffile"):  # whatever matters is raised
        logging.getLogger(library).setLevel(logging.CRITICAL)
    return run(app, "dinocache", arguments)


def _request(
    *,
    features: str | None = None,
    resolution: str | None = None,
    window: str | None = None,
    channels: str | None = None,
    reader: str | None = None,
    option: Sequence[str] | None = None,
    mpp: float | None = None,
    **options: Any,  # noqa: ANN401
) -> "ExtractRequest":
    from dinocache.readers import READERS
    from dinocache.request import (
        ExtractRequest,
        parse_channels,
        parse_options,
        parse_resolution,
        parse_windows,
    )

    return ExtractRequest(
        features=tuple(part.strip() for part in features.split(",")) if features else None,
        resolution=parse_resolution(resolution) if resolution else None,
        windows=parse_windows(window) if window else None,
        channels=parse_channels(channels) if channels else None,
        reader=_choice("--reader", reader, READERS),
        options=(parse_options(option or ()) | ({} if mpp is None else {"slide_mpp": mpp})),
        **options,
    )


def _choice(option: str, value: str | None, choices: Collection[str]) -> str | None:
    from dinocache.errors import RequestError

    if value is not None and value not in choices:
        raise RequestError(f"{option} {value!r}: choose from {', '.join(choices)}")
    return value


def _print_forecast(request: "ExtractRequest", json: bool) -> None:
    from dinocache.extract import dry_run
    from dinocache.progress import human_bytes

    forecast = dry_run(request)
    if json:
        echo_json(vars(forecast))
        return
    total = sum(forecast.n_bytes.values())
    example = next(iter(forecast.unreadable.items()), ("", ""))
    unreadable = f"{len(forecast.unreadable)}, as {example[0]}: {example[1]}"
    better = f"; --batch {forecast.suggested_batch} suits this device better"
    better = better if forecast.suggested_batch else ""
    _print_rows(
        [
            ("store", str(forecast.path)),
            ("items", str(forecast.items)),
            *([("unreadable", unreadable)] if forecast.unreadable else []),
            ("rows", str(forecast.rows)),
            ("units", f"{forecast.units} ({forecast.units_missing} to do)"),
            ("batch", f"{forecast.batch} rows a pass{better}"),
            *([("operations", f"{forecast.gflop:.3g} GFLOP a row")] if forecast.gflop else []),
            *((kind, human_bytes(size)) for kind, size in forecast.n_bytes.items()),
            ("free on disk", human_bytes(forecast.free_bytes)),
        ]
    )
    if total > forecast.free_bytes:
        print(
            f"warning: {human_bytes(total)} will not fit; choose another --store", file=sys.stderr
        )


def _print_outcome(outcome: "Outcome", json: bool) -> None:
    _print_failures(outcome.failures, sys.stderr)
    if json:
        echo_json(
            {
                "store": str(outcome.path),
                "complete": outcome.complete,
                "rows": outcome.rows,
                "units": outcome.units,
                "seconds": round(outcome.seconds, 3),
                "weights": outcome.weights,
                "random_weights": outcome.random_weights,
                "failures": [_failure_facts(f) for f in outcome.failures],
            }
        )
        return
    done = (
        f"{outcome.rows} rows in {outcome.seconds:.1f} s"
        if outcome.units
        else "nothing was missing"
    )
    if outcome.random_weights:
        print(f"RANDOM WEIGHTS ({outcome.weights}): for tests and demonstrations only")
    print(f"{outcome.path}: {'complete' if outcome.complete else 'incomplete'}; {done}")


def _print_failures(failed: Sequence["FailedItem"], stream: TextIO) -> None:
    for item in failed[:20]:
        print(f"failed: {item.item_id} ({item.failure.path}): {item.failure.reason}", file=stream)
    if len(failed) > 20:
        print(f"... and {len(failed) - 20} more: dinocache failures STORE lists all", file=stream)
    if failed:
        print(
            f"{len(failed)} items failed; once mended, --retry-failed tries them again", file=stream
        )


def _failure_facts(item: "FailedItem") -> dict[str, object]:
    return {"item_id": item.item_id, "kinds": item.kinds, **item.failure.model_dump()}


def _print_rows(rows: Sequence[tuple[str, str]]) -> None:
    width = max((len(name) for name, _ in rows), default=0)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")


def _line(text: str | None) -> str:
    return " ".join((text or "").split())


def _window(window: "WindowRecipe") -> str:
    zeros = " of what is not 0" if window.nonzero else ""
    if window.mode == "range":
        return f"{window.low:g} to {window.high:g}"
    limits = "" if window.low is None else f" {window.low:g} to {window.high:g}"
    return f"{window.mode}{limits}{zeros}"
