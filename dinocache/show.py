"""Pictures of a store for people: PCA maps, a patch against all others, nearest items.

As PNG files and one page that needs no network. See docs/show.md.
"""

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dinocache.durable import make_folder, replace_durably
from dinocache.errors import RequestError
from dinocache.feature_pictures import (
    nearest_picture,
    patch_similarity,
    rows_picture,
    similarity_picture,
)
from dinocache.patch_codes import AIM, FINER, PatchCodes
from dinocache.places import Where
from dinocache.sights import (
    PICTURE_PX,
    THUMB_PX,
    Floats,
    ShownItem,
    ShownStore,
    ShowRequest,
    fitted,
    plain,
    read_item,
)
from dinocache.store import FeatureStore

if TYPE_CHECKING:
    pass

__all__ = ["ShowRequest", "Shown", "parse_patch", "print_shown", "show"]

_CODE_BYTES = 1_100_000
"""Of all codes of a page."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What was written.

    Attributes:
        page: The page.
        files: The pictures.
        facts: For programs, as JSON: store, kinds, random weights, and of each item its rows,
            files, similarities and nearest items.
    """

    page: Path
    files: tuple[Path, ...]
    facts: dict[str, Any]


def parse_patch(text: str) -> tuple[int, int]:
    """Read `3,5`: row and column on the grid of patches.

    Raises:
        RequestError: If it is something else.
    """
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 2 or not all(part.isascii() and part.isdigit() for part in parts):
        raise RequestError(
            f"--patch takes Y,X, row and column on the grid of patches from 0, as 3,5; got {text!r}"
        )
    return int(parts[0]), int(parts[1])


def show(where: Where, request: ShowRequest) -> Shown:
    """Write pictures of items of a store, and a page of them.

    Args:
        where: The store: a path or a URL.
        request: What is to be shown.

    Returns:
        What was written: <item>.pca.png, <item>.patch-Y-X.png, <item>.nearest.png, index.html.

    Raises:
        RequestError: If the store has no such item, row, patch or kind of feature.
        StoreError: If it is missing, damaged or incomplete, or a file cannot be written.
    """
    store = FeatureStore(where)
    source = ShownStore.of(store, request)
    shown = [read_item(source, item_id, request) for item_id in source.items]
    if request.shared and source.map_kind is not None:
        colours = fitted([row.patches for item in shown for row in item.rows], "these items")
        shown = [replace(item, colours=colours) for item in shown]
    make_folder(request.out)
    files: list[Path] = []
    facts = [_write_pictures(source, item, request, files) for item in shown]
    page, error = _page(source, shown, request)
    path = request.out / "index.html"
    replace_durably(path, page.encode())
    said = {
        "store": str(store.folder),
        **source.facts,
        "shared": request.shared,
        "page": str(path),
        "page_bytes": len(page.encode()),
        "page_cosine_error": error,
        "items": facts,
    }
    return Shown(page=path, files=tuple(files), facts=said)


def print_shown(shown: Shown) -> None:
    """Say for people what was written, and what the pictures show."""
    facts = shown.facts
    if facts["random_weights"]:
        print(f"RANDOM WEIGHTS ({facts['weights']}): for tests and demonstrations only")
    for item in facts["items"]:
        name = item["item_id"]
        if similarity := item.get("similarity"):
            y, x = similarity["patch"]
            of_row = f" of row {similarity['row']}" if item["rows"] > 1 else ""
            alike = ", ".join(
                "{},{} ({:.3f})".format(*one["patch"], one["cosine"])
                for one in similarity["most_alike"]
            )
            print(f"{name}: patch {y},{x}{of_row} is most like {alike or 'no other'}")
        if "nearest_picture" in item:
            near = ", ".join(f"{one['item_id']} ({one['cosine']:.3f})" for one in item["nearest"])
            print(f"{name}: nearest by {facts['vectors']}: {near}")
    for path in (*shown.files, shown.page):
        print(path)


# Small pictures


def _jpeg(picture: Floats, most_px: int) -> str:
    """Give a picture as a data URI."""
    from PIL import Image

    image = Image.fromarray(np.rint(picture * 255).astype(np.uint8))
    image.thumbnail((most_px, most_px))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85, optimize=True)
    return f"data:image/jpeg;base64,{_text(buffer.getvalue())}"


def _png(colours: Floats) -> str:
    """Give a map of colours, a px a patch, as a data URI."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.rint(colours * 255).astype(np.uint8)).save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{_text(buffer.getvalue())}"


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


# What is written


def _write_pictures(
    source: ShownStore, item: ShownItem, request: ShowRequest, files: list[Path]
) -> dict[str, Any]:
    """Write an item's pictures, note their files, and say what they show."""
    name, title = source.names[item.item_id], plain(item.item_id)
    facts: dict[str, Any] = {"item_id": item.item_id, "rows": item.n_rows}

    def write(suffix: str, content: bytes) -> str:
        path = request.out / f"{name}.{suffix}.png"
        replace_durably(path, content)
        files.append(path)
        return str(path)

    texts = {"title": title, "warning": source.warning}
    if item.colours is not None:
        height, width = item.grid
        of_whom = "all items shown" if request.shared else "this item"
        facts["rows_shown"] = [row.number for row in item.rows]
        facts["grid"] = [height, width]
        facts["pca"] = write(
            "pca",
            rows_picture(
                [row.picture for row in item.rows],
                [item.colours.of(row.patches) for row in item.rows],
                names=[f"row {row.number}" for row in item.rows] if item.n_rows > 1 else (),
                caption=f"{source.said}. First three principal components of {source.map_kind}, "
                f"{height} x {width} patches a row, of {of_whom}: red, green, blue.",
                **texts,
            ),
        )
    if request.patch is not None and item.rows:
        facts["similarity"] = _write_similarity(source, item, request.patch, texts, write)
    if item.nearest or request.nearest:
        facts["nearest"] = [{"item_id": i, "cosine": round(c, 6)} for i, c in item.nearest]
    if request.nearest and item.nearest:
        facts["nearest_picture"] = write(
            "nearest",
            nearest_picture(
                source.portrait(item.item_id),
                [(source.portrait(i), f"{plain(i)}  {c:.3f}") for i, c in item.nearest],
                name=title,
                caption=f"{source.said}. Nearest by the cosine of {source.vector_kind}.",
                **texts,
            ),
        )
    return facts


def _write_similarity(
    source: ShownStore,
    item: ShownItem,
    patch: tuple[int, int],
    texts: dict[str, str],
    write: Any,  # noqa: ANN401 - a function of ours
) -> dict[str, Any]:
    row = item.rows[len(item.rows) // 2]
    similarity = patch_similarity(row.patches, patch)
    others = similarity.ravel().copy()
    own = patch[0] * similarity.shape[1] + patch[1]
    others[own] = -np.inf
    of_row = f" of row {row.number}" if item.n_rows > 1 else ""
    within = f"row-{row.number}." if item.n_rows > 1 else ""
    picture = similarity_picture(
        row.picture,
        similarity,
        patch,
        caption=f"{source.said}. Cosine of {source.map_kind} between patch {patch[0]},{patch[1]}"
        f"{of_row} (outlined) and all others; the colours begin at the least alike.",
        **texts,
    )
    order = np.argsort(-others, kind="stable")[: min(5, others.size - 1)]
    places = [divmod(int(n), similarity.shape[1]) for n in order]
    return {
        "row": row.number,
        "patch": list(patch),
        "most_alike": [
            {"patch": [y, x], "cosine": round(float(similarity[y, x]), 6)} for y, x in places
        ],
        "mean": round(float(np.delete(others, own).mean()), 6) if others.size > 1 else None,
        "cosines": [[round(float(c), 6) for c in line] for line in similarity],
        "picture": write(f"{within}patch-{patch[0]}-{patch[1]}", picture),
    }


# The page


def _page(
    source: ShownStore, shown: Sequence[ShownItem], request: ShowRequest
) -> tuple[str, float | None]:
    """Make the page, and say how far its cosines are off at most."""
    import jinja2
    from matplotlib import colormaps

    n_patches = sum(row.patches[..., 0].size for item in shown for row in item.rows)
    most = max(1, _CODE_BYTES // max(n_patches, 1))
    items, codes = [], []
    for item in shown:
        entry, of_item = _item_entry(item, most, request.patch)
        items.append(entry)
        codes += of_item
    near = {i for item in shown for i, _ in item.nearest}
    viridis = np.rint(colormaps["viridis"](np.arange(256))[:, :3] * 255).astype(np.uint8)
    error = max((one.error for one in codes), default=None)
    template = (resources.files("dinocache") / "show.html").read_text("utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.from_string(template).render(
        facts=source.facts,
        warning=source.warning,
        shared=request.shared,
        items=items,
        numbers={item.item_id: n for n, item in enumerate(shown)},
        thumbs={i: _jpeg(source.portrait(i), THUMB_PX) for i in sorted(near)},
        no_nearest=source.no_nearest,
        has_image="image" in source.store.kinds,
        error=None if error is None else math.ceil(error * 1000) / 1000,
        aim=AIM,
        finer=FINER,
        pairs=sum(one.pairs for one in codes),
        is_all=all(one.is_all for one in codes),
        is_close=all(one.is_close for one in codes),
        components=[one.codes.shape[1] for one in codes],
        data={"viridis": _text(viridis.tobytes()), "items": [one["data"] for one in items]},
    )
    return page, error


def _item_entry(
    item: ShownItem, most: int, patch: tuple[int, int] | None
) -> tuple[dict[str, Any], list[PatchCodes]]:
    """Make what the template and the page's script need of an item."""
    first = len(item.rows) // 2
    rows, codes = [], []
    for row in item.rows:
        small = PatchCodes.of(row.patches, most)
        codes.append(small)
        colours = (
            np.zeros((1, 1, 3), "f4") if item.colours is None else item.colours.of(row.patches)
        )
        rows.append(
            {
                "number": row.number,
                "image": _jpeg(row.picture, PICTURE_PX),
                "pca": _png(colours),
                "codes": _text(small.codes.tobytes()),
                "components": small.codes.shape[1],
                "fine": _text(small.fine.tobytes()),
                "scales": _text(small.scales.astype("<f4").tobytes()),
                "base": _text(small.base.astype("<f4").tobytes()),
            }
        )
    grid = item.grid if item.rows else (1, 1)
    start = patch or (grid[0] // 2, grid[1] // 2)
    # The row that is shown first has its pictures in the page itself, for those without scripts.
    data = {
        "id": item.item_id,
        "grid": grid,
        "first": first,
        "start": start,
        "rows": [
            {k: v for k, v in row.items() if n != first or k not in ("image", "pca")}
            for n, row in enumerate(rows)
        ],
    }
    picture = item.picture
    entry = {
        "item_id": item.item_id,
        "n_rows": item.n_rows,
        "grid": grid,
        "rows": [row["number"] for row in rows],
        "first": first,
        "image": rows[first]["image"] if rows else _jpeg(picture, PICTURE_PX),
        "pca": rows[first]["pca"] if rows else "",
        "width": picture.shape[1],
        "height": picture.shape[0],
        "nearest": item.nearest,
        "data": data,
    }
    return entry, codes
