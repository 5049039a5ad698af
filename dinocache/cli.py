"""The command `dinocache`: parses, calls one function, prints, chooses the exit code."""

import os
import sys
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from dinocache import __version__, exchanging, sharing
from dinocache.errors import RequestError
from dinocache.options import (
    ARITHMETICS,
    CODECS,
    PRECISIONS,
    RESIZES,
    ROPES,
    AdaptOption,
    AllowMissingOption,
    AnyDeviceOption,
    AppendOption,
    ArithmeticOption,
    BatchOption,
    CalibrationOption,
    ChannelsOption,
    ClusterOption,
    ClusterSettingsOption,
    CodecOption,
    CompiledOption,
    DataOption,
    DatasetArgument,
    DebugOption,
    DeviceOption,
    DryRunOption,
    DtypeOption,
    FeaturesOption,
    HashSourcesOption,
    IsolateOption,
    JsonOption,
    LayersOption,
    MaxFailuresOption,
    ModelOption,
    MppOption,
    NameOption,
    OptionsOption,
    PartOption,
    PcaOption,
    PrecisionOption,
    QuantizeOption,
    ReaderOption,
    ResizeOption,
    ResolutionOption,
    RetryChangedOption,
    RetryFailedOption,
    RootOption,
    RopeOption,
    RowsOption,
    StoreArgument,
    TimingOption,
    UnitRowsOption,
    VariantOption,
    ViewsOption,
    WeightsOption,
    WindowOption,
    WorkersOption,
    choice,
    dataset_names,
    encoder_names,
    reader_names,
)
from dinocache.terminal import echo_json, print_rows, quiet_libraries, run
from dinocache.views import parse_views

if TYPE_CHECKING:
    from dinocache.extract import Outcome
    from dinocache.forecast import Forecast
    from dinocache.request import ExtractRequest
    from dinocache.store import FailedItem

__all__ = ["app", "main"]

app = typer.Typer(
    help="Frozen vision features of medical images: extract once, probe anywhere.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


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
    store: RootOption = "features",
    name: NameOption = None,
    model: ModelOption = "dinov3-s",
    resolution: ResolutionOption = None,
    variant: VariantOption = "",
    features: FeaturesOption = None,
    layers: LayersOption = None,
    views: ViewsOption = None,
    rows: RowsOption = None,
    resize: ResizeOption = None,
    arithmetic: ArithmeticOption = None,
    window: WindowOption = None,
    reader: ReaderOption = None,
    option: OptionsOption = None,
    mpp: MppOption = None,
    channels: ChannelsOption = None,
    weights: WeightsOption = None,
    rope: RopeOption = None,
    device: DeviceOption = "auto",
    any_device: AnyDeviceOption = False,
    precision: PrecisionOption = None,
    dtype: DtypeOption = None,
    quantize: QuantizeOption = None,
    pca: PcaOption = None,
    calibration: CalibrationOption = None,
    codec: CodecOption = None,
    compiled: CompiledOption = None,
    batch: BatchOption = None,
    unit_rows: UnitRowsOption = None,
    workers: WorkersOption = None,
    append: AppendOption = False,
    allow_missing: AllowMissingOption = False,
    retry_failed: RetryFailedOption = False,
    retry_changed: RetryChangedOption = False,
    hash_sources: HashSourcesOption = False,
    max_failures: MaxFailuresOption = None,
    part: PartOption = None,
    cluster: ClusterOption = None,
    cluster_option: ClusterSettingsOption = None,
    adapt: AdaptOption = None,
    isolate: IsolateOption = True,
    debug: DebugOption = False,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
) -> None:
    """Extract what is missing of a dataset's features.

    Run the same command again after any interruption: only what is not committed is done. Ends with
    0 if every item has its features, 1 if some failed (they are named), 2 for a wrong request, 130
    or 143 if it was stopped. Ctrl-C or SIGTERM commits what is whole; a second one stops at once.

    Examples:
        dinocache extract demo --weights random
        dinocache extract images.csv --data /data/xray --model dinov3-b --resolution 512
        dinocache extract scans.csv --window hu -o axis=coronal -o spacing=1,1,2
        dinocache extract slides.csv --reader slide -o tile_px=256 -o tile_mpp=0.5 --mpp 0.25
        dinocache extract scans.csv --features cls,dense --quantize int8:dense
        dinocache extract scans.csv --cluster slurm:8 --cluster-option queue=gpu
        dinocache extract scans.csv --part $SLURM_ARRAY_TASK_ID/8
    """
    quiet_libraries(debug=debug)
    if not cluster and (adapt or cluster_option):
        raise RequestError("--adapt and --cluster-option say how --cluster works: give that, too")
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
        views=views,
        rows=rows,
        resize=choice("--resize", resize, RESIZES),
        arithmetic=choice("--arithmetic", arithmetic, ARITHMETICS),
        window=window,
        reader=reader,
        option=option,
        mpp=mpp,
        channels=channels,
        weights=weights,
        rope=choice("--rope", rope, ROPES),
        device=device,
        any_device=any_device,
        precision=choice("--precision", precision, PRECISIONS),
        dtype=dtype,
        quantize=quantize,
        pca=pca,
        calibration=calibration,
        codec=choice("--codec", codec, CODECS),
        compiled=compiled,
        batch=batch,
        unit_rows=unit_rows,
        workers=workers,
        append=append,
        allow_missing=allow_missing,
        retry_failed=retry_failed,
        retry_changed=retry_changed,
        hash_sources=hash_sources,
        max_failures=max_failures,
        part=part,
    )
    if dry_run:
        _print_forecast(request, json)
        return
    from dinocache.progress import make_progress

    progress = make_progress()
    if cluster:
        from dinocache.cluster import extract_on

        outcome = extract_on(request, cluster, progress, options=cluster_option or (), adapt=adapt)
    elif isolate:
        from dinocache.supervise import supervised

        outcome = supervised(request, progress)
    else:
        from dinocache.extract import extract as run_extraction

        outcome = run_extraction(request, progress)
    _print_outcome(outcome, json)
    if outcome.failures:
        raise typer.Exit(1)


@app.command()
def plan(
    dataset: DatasetArgument,
    data: DataOption = None,
    store: RootOption = "features",
    name: NameOption = None,
    model: ModelOption = "dinov3-s",
    resolution: ResolutionOption = None,
    variant: VariantOption = "",
    features: FeaturesOption = None,
    layers: LayersOption = None,
    views: ViewsOption = None,
    rows: RowsOption = None,
    resize: ResizeOption = None,
    window: WindowOption = None,
    reader: ReaderOption = None,
    option: OptionsOption = None,
    mpp: MppOption = None,
    channels: ChannelsOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = None,
    quantize: QuantizeOption = None,
    pca: PcaOption = None,
    codec: CodecOption = None,
    workers: WorkersOption = None,
    batch: BatchOption = None,
    unit_rows: UnitRowsOption = None,
    allow_missing: AllowMissingOption = False,
    timing: TimingOption = True,
    json: JsonOption = False,
) -> None:
    """Say how many rows, units, bytes and hours an extraction is; writes nothing.

    No weights are needed: the sample that is timed is encoded with random ones.
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
        views=views,
        rows=rows,
        resize=choice("--resize", resize, RESIZES),
        window=window,
        reader=reader,
        option=option,
        mpp=mpp,
        channels=channels,
        device=device,
        dtype=dtype,
        quantize=quantize,
        pca=pca,
        codec=choice("--codec", codec, CODECS),
        workers=workers,
        batch=batch,
        unit_rows=unit_rows,
        allow_missing=allow_missing,
    )
    _print_forecast(request, json, timed=timing)


@app.command()
def info(store: StoreArgument, json: JsonOption = False) -> None:
    """Show what a store holds: recipe, kinds, how much of it is done."""
    from dinocache.listing import store_facts, store_rows
    from dinocache.store import FeatureStore

    opened = FeatureStore(store)
    facts = store_facts(opened)
    if json:
        echo_json(facts)
        return
    if facts["random_weights"]:
        print(f"RANDOM WEIGHTS ({facts['weights']}): for tests and demonstrations only")
    print_rows(store_rows(opened, facts))


@app.command()
def verify(
    store: StoreArgument,
    share: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="Share of the units that is read, others each time; all are counted."
        ),
    ] = 1.0,
    json: JsonOption = False,
) -> None:
    """Hold every byte of a store against what was committed, or with --share a sample of it.

    Ends with 0 (sound and complete), 1 (damaged: files and items are named) or 3 (sound,
    incomplete).
    """
    from dinocache.verify import verify as check

    found = check(store, share=share)
    if json:
        echo_json(
            {
                "sound": not found.damages,
                "complete": found.complete,
                "files": found.files,
                "bytes": found.n_bytes,
                "damages": [vars(damage) for damage in found.damages],
                "leftovers": found.leftovers,
                "warnings": found.warnings,
            }
        )
        raise typer.Exit(found.exit_code)
    from dinocache.progress import human_bytes

    for damage in found.damages:
        items = ", ".join(damage.items[:3]) + (", ..." if len(damage.items) > 3 else "")
        print(f"damaged: {damage.file}: {damage.what}" + (f" (items {items})" if items else ""))
    for warning in found.warnings:
        print(f"note: {warning}")
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
    name: Annotated[
        str | None,
        typer.Argument(
            autocompletion=dataset_names,
            help="One dataset, or the path of a manifest, to explain it.",
        ),
    ] = None,
    store: RootOption = "features",
    json: JsonOption = False,
) -> None:
    """List the datasets that are known by name, or explain one.

    Where to get it, its licence, what its folder must look like, its tasks, and which stores of it
    there are.

    Examples:
        dinocache datasets
        dinocache datasets nih14
    """
    from dinocache.catalogue import dataset_facts, print_dataset, print_datasets
    from dinocache.manifest import load_manifest, shipped_manifests

    shipped = shipped_manifests()
    if name is None:
        facts = [dataset_facts(load_manifest(path), store) for path in shipped.values()]
        if json:
            echo_json(facts)
        else:
            print_datasets(facts)
        return
    if name not in shipped and not name.endswith((".yaml", ".yml")):
        near = get_close_matches(name, shipped, n=3, cutoff=0.5) or list(shipped)
        raise RequestError(f"there is no dataset {name!r}; did you mean {', '.join(near)}?")
    manifest = load_manifest(shipped.get(name, Path(name)))
    if json:
        echo_json(dataset_facts(manifest, store))
    else:
        print_dataset(dataset_facts(manifest, store), manifest)


@app.command()
def index(
    dataset: DatasetArgument,
    data: DataOption = None,
    name: NameOption = None,
    allow_missing: Annotated[
        bool, typer.Option(help="End with 0 although files are missing, or counts differ.")
    ] = False,
    opened: Annotated[
        bool, typer.Option("--open", help="Read the header of every item, too.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Hold a download against its manifest: what is missing, and who is on which side of a split.

    No file is opened but the dataset's own tables, unless --open is given. Ends with 0 if all is as
    the official release has it, 1 if not, 2 if it is no such dataset at all.

    Examples:
        dinocache index nih14 --data /data/nih14
        dinocache index ours.yaml --data scans --open
    """
    from dinocache.catalogue import print_index
    from dinocache.index import index_dataset
    from dinocache.progress import make_progress

    quiet_libraries()
    found = index_dataset(dataset, data=data, name=name, opened=opened, progress=make_progress())
    if json:
        echo_json(found.to_json())
    else:
        print_index(found)
        if not found.is_whole and not allow_missing:
            print("dinocache extract --allow-missing takes what is there")
    if not found.is_whole and not allow_missing:
        raise typer.Exit(1)


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="Folder with images or volumes.")],
    out: Annotated[
        Path | None, typer.Option(help="The manifest to write. Default: NAME.yaml here.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Of the dataset. Default: the folder's.")] = None,
    force: Annotated[bool, typer.Option(help="Write over a manifest that is there.")] = False,
) -> None:
    """Look into a folder and write a first manifest for it.

    Known are imagesTr and labelsTr with NIfTI pairs; a table (.csv, .tsv, .xlsx) one of whose
    columns names the files; and a folder a class, below train, val and test where there are these.

    Examples:
        dinocache init /data/ours
        dinocache init scans --name lung --out lung.yaml
    """
    from dinocache.starter import write_first_manifest

    started = write_first_manifest(folder, out=out, name=name, force=force)
    print(f"{started.path}: {started.found}")
    for line in started.unsure:
        print(f"  look at: {line}")
    print(f"next: dinocache index {started.path} --data {folder}")


@app.command()
def encoders(
    name: Annotated[
        str | None,
        typer.Argument(
            autocompletion=encoder_names,
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
            print_rows([(key.replace("_", " "), shown(value)) for key, value in facts.items()])
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
        typer.Argument(autocompletion=reader_names, help="One reader, to list its options."),
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
            print_rows(list(summaries.items()))
        return
    found = reader_class(name)
    schema = found.Options.model_json_schema()
    if json:
        echo_json({"name": name, "summary": found.summary, "options": schema})
        return
    defaults = found().options
    columns = ", ".join(f"{column} ({unit})" for column, unit in found.columns)
    print_rows(
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
    print_rows([(key, shown(value)) for key, value in facts.items() if value not in ([], "")])


@app.command()
def show(
    store: StoreArgument,
    items: Annotated[
        list[str] | None,
        typer.Argument(metavar="[ITEM]...", help="Default: the first few of the store."),
    ] = None,
    patch: Annotated[
        str | None,
        typer.Option(
            metavar="Y,X",
            help="Compare this patch to all others: its row and column on the grid, from 0.",
        ),
    ] = None,
    nearest: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=100,
            metavar="N",
            help="Draw the N items whose vectors are nearest by cosine.",
        ),
    ] = None,
    row: Annotated[
        int | None,
        typer.Option(min=0, help="Of items of several rows, from 0. Default: some, evenly spread."),
    ] = None,
    features: Annotated[
        str | None,
        typer.Option(
            help="A map, a vector, or both, as dense.L05,mean. Default: the last layer's map, and "
            "cls, else mean, else the encoder's own embedding."
        ),
    ] = None,
    shared: Annotated[
        bool, typer.Option("--shared", help="Colours mean the same in all items shown.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder that is written to.")] = Path("show"),
    json: JsonOption = False,
) -> None:
    """Draw what the encoder sees: PCA maps, one patch against all others, nearest items.

    As PNG files, and as OUT/index.html: one page that needs no network, in which any patch can be
    chosen. Maps need a store with `--features dense`, pictures beside them `image`.

    Examples:
        dinocache show features/demo/dinov3-s/256
        dinocache show features/demo/dinov3-s/256 fff13f3a --patch 3,5
        dinocache show features/demo/dinov3-s/256 fff13f3a --nearest 8 --features mean
        dinocache show features/acdc/dinov3-s/256 patient001_frame01 --row 12 --shared
    """
    from dinocache.show import ShowRequest, parse_patch, print_shown
    from dinocache.show import show as draw

    request = ShowRequest(
        items=tuple(items or ()),
        patch=parse_patch(patch) if patch is not None else None,
        nearest=nearest,
        row=row,
        features=tuple(kind.strip() for kind in features.split(",")) if features else (),
        shared=shared,
        out=out,
    )
    shown = draw(store, request)
    if json:
        echo_json(shown.facts)
    else:
        print_shown(shown)


@app.command()
def doctor(store: RootOption = "features", json: JsonOption = False) -> None:
    """Say what this machine has for extraction, and what to do about each lack.

    Ends with 1 if something that extraction needs is missing.
    """
    from dinocache.doctor import examine

    findings = examine(store)
    if json:
        echo_json([vars(finding) for finding in findings])
    else:
        marks = {"good": "ok  ", "note": "note", "lack": "LACK"}
        print_rows(
            [
                (
                    f"{marks[f.state]} {f.what}",
                    f.found + (f"; {f.advice}" if f.advice else ""),
                )
                for f in findings
            ]
        )
    raise typer.Exit(1 if any(f.state == "lack" for f in findings) else 0)


sharing.register(app)
exchanging.register(app)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Without the program; None takes the process's own.

    Returns:
        The exit code.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    quiet_libraries()
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
    views: str | None = None,
    rows: str | None = None,
    part: str | None = None,
    **options: Any,  # noqa: ANN401
) -> "ExtractRequest":
    from dinocache.readers import READERS
    from dinocache.request import (
        ExtractRequest,
        parse_channels,
        parse_options,
        parse_part,
        parse_resolution,
        parse_windows,
    )

    return ExtractRequest(
        features=tuple(part.strip() for part in features.split(",")) if features else None,
        resolution=parse_resolution(resolution) if resolution else None,
        windows=parse_windows(window) if window else None,
        channels=parse_channels(channels) if channels else None,
        reader=choice("--reader", reader, READERS),
        part=parse_part(part) if part else None,
        options=(
            parse_options(option or ())
            | ({} if mpp is None else {"slide_mpp": mpp})
            | ({} if rows is None else {"rows": rows})
        ),
        views=parse_views(views) if views else (None,),
        **options,
    )


def _print_forecast(request: "ExtractRequest", json: bool, *, timed: bool = True) -> None:
    from dinocache.forecast import dry_run
    from dinocache.progress import human_bytes, make_progress

    forecast = dry_run(request, make_progress(), timed=timed)
    if json:
        echo_json(vars(forecast))
        return
    suggested = forecast.suggested_batch
    better = f"; --batch {suggested} suits this device better" if suggested else ""
    said = [
        ("store", forecast.store),
        ("items", str(forecast.items)),
        ("missing", _some(dict.fromkeys(forecast.missing, "the file is missing"))),
        ("unreadable", _some(forecast.unreadable)),
        ("changed", _some(forecast.changed)),
        ("rows", f"{forecast.rows} ({forecast.rows_missing} to do)"),
        ("units", f"{forecast.units} ({forecast.units_missing} to do)"),
        ("batch", f"{forecast.batch} rows a pass{better}"),
        ("operations", f"{forecast.gflop:.3g} GFLOP a row" if forecast.gflop else ""),
    ]
    for kind, size in forecast.n_bytes.items():
        about = " at most, by some items" if kind in forecast.estimated else ""
        said.append((kind, f"{human_bytes(size)}{about}"))
    if forecast.free_bytes is not None:
        said.append(("free on disk", human_bytes(forecast.free_bytes)))
    said.append(("time", _time(forecast) if timed else ""))
    print_rows([(name, value) for name, value in said if value])
    if forecast.free_bytes is not None and forecast.bytes_missing > forecast.free_bytes:
        print(
            f"warning: {human_bytes(forecast.bytes_missing)} are still to be written, which will "
            "not fit; choose another --store",
            file=sys.stderr,
        )


def _some(reasons: Mapping[str, str]) -> str:
    """Say how many items there are, and one of them; nothing where there is none."""
    return "".join(f"{len(reasons)}, as {i}: {why}" for i, why in [*reasons.items()][:1])


def _time(forecast: "Forecast") -> str:
    from dinocache.forecast import human_duration

    if forecast.hours is None:
        return f"not known: {forecast.not_tried}"
    if not forecast.rows_per_second:
        return "nothing is to be done"
    return (
        f"about {human_duration(forecast.hours * 3600)} on this machine "
        f"({forecast.rows_per_second:.3g} rows/s); {forecast.held_back_by} holds it back"
    )


def _print_outcome(outcome: "Outcome", json: bool) -> None:
    from dinocache.meter import busy_text

    _print_failures(outcome.failures, sys.stderr)
    if json:
        echo_json(
            {
                "store": outcome.store,
                "complete": outcome.complete,
                "rows": outcome.rows,
                "units": outcome.units,
                "seconds": round(outcome.seconds, 3),
                "weights": outcome.weights,
                "random_weights": outcome.random_weights,
                "units_left": outcome.units_left,
                "busy": outcome.busy,
                "failures": [_failure_facts(f) for f in outcome.failures],
            }
        )
        return
    done = "nothing was missing"
    if outcome.units:
        done = f"{outcome.rows} rows in {outcome.seconds:.1f} s; busy: {busy_text(outcome.busy)}"
    if outcome.units_left:
        done += f"; {outcome.units_left} units are still to be done by other parts"
    if outcome.random_weights:
        print(f"RANDOM WEIGHTS ({outcome.weights}): for tests and demonstrations only")
    print(f"{outcome.store}: {'complete' if outcome.complete else 'incomplete'}; {done}")


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


def _line(text: str | None) -> str:
    return " ".join((text or "").split())
