"""What tests make for themselves: images, tables, requests."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from dinocache.layout import RUNS
from dinocache.readers import ItemFiles, OpenItem, Pixels, make_reader
from dinocache.request import ExtractRequest


class RowsItem(OpenItem):
    """An item of given rows."""

    def __init__(self, rows: Sequence[Pixels]) -> None:
        self._rows = list(rows)
        self.n_rows = len(rows)

    def rows(self, start: int, stop: int) -> list[Pixels]:
        return self._rows[start:stop]


def read_image(path: Path) -> Pixels:
    """Decode a picture by the image reader."""
    with make_reader("image").open(ItemFiles(path=path)) as item:
        return item.rows(0, 1)[0]


def make_table(folder: Path, n_images: int, *, seed: int = 0) -> Path:
    """Write grey PNGs of two kinds, bright and dark, and a table of them.

    Two images a patient; `bright` is the target; sizes all differ.
    """
    from PIL import Image

    rng = np.random.default_rng(seed)
    (folder / "png").mkdir(parents=True, exist_ok=True)
    rows = []
    for index in range(n_images):
        bright = (index // 2) % 2
        pixels = rng.integers(0, 120, (40 + index % 7, 50 + index % 5)) + 120 * bright
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"png/{index:04d}.png")
        rows.append(
            {
                "item_id": f"{index:04d}",
                "path": f"png/{index:04d}.png",
                "group": f"p{index // 2}",
                "bright": bright,
                "third": "abc"[(index // 2) % 3],
            }
        )
    table = folder / "images.csv"
    pd.DataFrame(rows).to_csv(table, index=False)
    return table


def tiny_request(table: Path, root: Path | str, **options: object) -> ExtractRequest:
    """Ask for the tiny encoder at 32 x 48 px in units of 16 rows."""
    given: dict[str, object] = {
        "dataset": str(table),
        "root": root,
        "model": "tiny",
        "resolution": (32, 48),
        "weights": "random:0",
        "unit_rows": 16,
        "batch": 8,
        "device": "cpu",
    }
    return ExtractRequest(**(given | options))  # type: ignore[arg-type]


def contents(store: Path) -> dict[str, bytes]:
    """Everything but the header, which says when the store was made, and the runs' reports."""
    return {
        name: path.read_bytes()
        for path in store.rglob("*")
        if path.is_file()
        and (name := path.relative_to(store).as_posix()) != "store.json"
        and not name.startswith(RUNS)
    }
