"""What the command line prints of encoders."""

import sys
from collections.abc import Sequence
from typing import Any

from dinocache.checkpoints import FAMILIES
from dinocache.cost import gflop
from dinocache.spec import EncoderSpec, takes
from dinocache.weights import cached_weights

__all__ = ["encoder_facts", "print_encoders", "shown"]


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
    from rich.console import Console
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
    Console(width=None if sys.stdout.isatty() else 120).print(table)
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
