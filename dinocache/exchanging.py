"""The commands by which features go to the formats of others, and come from them."""

from pathlib import Path
from typing import Annotated, Any

import typer

from dinocache.options import JsonOption, StoreArgument, encoder_names, starting
from dinocache.terminal import echo_json, print_rows

__all__ = ["register"]

_FORMATS = ("hdf5", "npz", "parquet", "anndata", "csv")
_SOURCES = ("auto", "hdf5", "pt", "npy", "npz")


def export(
    store: StoreArgument,
    out: Annotated[Path, typer.Option(help="Folder that is written to.")],
    format: Annotated[
        str,
        typer.Option(
            autocompletion=starting(_FORMATS),
            help="hdf5 (a file an item, as CLAM and TRIDENT have them), npz, parquet, anndata, or "
            "csv (the item table).",
        ),
    ] = "hdf5",
    features: Annotated[
        str | None, typer.Option(help="Kinds of vector, with commas. Default: all; hdf5 has one.")
    ] = None,
    items: Annotated[
        list[str] | None, typer.Option("--item", help="Only this item; may be repeated.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="Of rows: float32 or float16.")] = "float32",
    rows: Annotated[
        bool, typer.Option("--rows", help="npz: the rows of each item, too, a file an item.")
    ] = False,
    vectors: Annotated[
        bool, typer.Option("--vectors", help="csv: the vectors, too, a column a number.")
    ] = False,
    csv: Annotated[bool, typer.Option("--csv", help="Besides, the item table as CSV.")] = False,
    json: JsonOption = False,
) -> None:
    """Write a store's vectors in a format of others. See docs/formats.md.

    Examples:
        dinocache export features/camelyon16/uni/224 --out h5
        dinocache export features/nih14/dinov3-s/256 --format parquet --out tables
    """
    from dinocache.exporting import export as write

    some: dict[str, Any] = {"format": format, "dtype": dtype}  # told apart, and refused, there
    written = []
    for path in write(
        store,
        out,
        kinds=None if features is None else [k.strip() for k in features.split(",")],
        items=items or None,
        rows=rows,
        vectors=vectors,
        csv=csv,
        **some,
    ):
        written.append(str(path))
        if not json:
            print(path)
    if json:
        echo_json(written)


def import_(
    source: Annotated[
        Path,
        typer.Argument(
            help="A folder of .h5 (CLAM, TRIDENT), .pt or .npz files, one an item; or one .npy or "
            ".npz file of all items."
        ),
    ],
    dataset: Annotated[str, typer.Option(help="Name of the data set.")],
    model: Annotated[
        str,
        typer.Option(
            autocompletion=encoder_names, help="What made the features, as far as you know."
        ),
    ],
    resolution: Annotated[
        str, typer.Option(help="What the encoder saw, px: 224, or 512x640 as height x width.")
    ],
    table: Annotated[
        Path | None,
        typer.Option(help="Items: item_id, group, split, targets (.csv, .tsv, .parquet)."),
    ] = None,
    store: Annotated[str, typer.Option("--store", help="Root of the stores.")] = "features",
    kind: Annotated[str, typer.Option(help="What they are: cls, mean or embed.")] = "cls",
    weights: Annotated[
        str, typer.Option(help="Which weights, as far as you know; random:0 for random ones.")
    ] = "",
    tile_px: Annotated[int | None, typer.Option(min=1, help="Side of a tile, px.")] = None,
    mpp: Annotated[float | None, typer.Option(help="Um/px of a tile.")] = None,
    format: Annotated[
        str, typer.Option(autocompletion=starting(_SOURCES), help="Of the source.")
    ] = "auto",
    key: Annotated[
        str | None, typer.Option(help="Name of the features within a file. Default: the usual.")
    ] = None,
    variant: Annotated[str, typer.Option(help="Gives a second import its own folder.")] = "",
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Read again what could not be read before.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Make a store of features that others extracted. See docs/formats.md.

    What made them is as you say, and the store says that you said so: such features are compared
    with others only with --trust. Ends with 1 if a file could not be used.

    Examples:
        dinocache import trident/features_uni_v1 --dataset mine --model uni --resolution 224
        dinocache import x.npy --table items.csv --dataset mine --model dinov3-b --resolution 512
    """
    from dinocache.importing import Declared, import_features
    from dinocache.listing import store_facts, store_rows
    from dinocache.progress import make_progress
    from dinocache.request import parse_resolution

    said: dict[str, Any] = {"kind": kind}
    how: dict[str, Any] = {"format": format}
    made = import_features(
        source,
        store,
        dataset=dataset,
        declared=Declared(
            model=model,
            resolution=parse_resolution(resolution),
            weights=weights,
            tile_px=tile_px,
            mpp=mpp,
            **said,
        ),
        table=table,
        key=key,
        variant=variant,
        retry_failed=retry_failed,
        progress=make_progress(),
        **how,
    )
    facts, failed = store_facts(made), made.failures()
    if json:
        echo_json({"store": str(made.folder), **facts})
    else:
        print_rows(store_rows(made, facts))
        for item in failed:
            print(f"failed: {item.item_id} ({item.failure.path}): {item.failure.reason}")
        print(f"store: {made.folder}")
    raise typer.Exit(int(bool(failed)))


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(export)
    app.command(name="import")(import_)
