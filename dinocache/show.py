"""Pictures of a store for people: PCA maps, a patch against all others, nearest items.

As PNG files and one page that needs no network. See docs/show.md.
"""

import base64
import contextlib
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from dinocache.durable import make_folder, replace_durably
from dinocache.errors import RequestError, StoreDamagedError, StoreIncompleteError
from dinocache.exporting import file_names
from dinocache.feature_pictures import (
    PatchColours,
    nearest_picture,
    patch_similarity,
    rows_picture,
    similarity_picture,
    unit_vectors,
)
from dinocache.geometry import Geometry, input_to_row
from dinocache.layout import (
    VECTOR_KINDS,
    array_layout,
    check_kinds,
    is_vector_kind,
    parse_kind,
    pass_of,
)
from dinocache.patch_codes import AIM, FINER, PatchCodes
from dinocache.places import Where
from dinocache.recipe import resolution_name
from dinocache.store import FeatureStore
from dinocache.terminal import visible
from dinocache.views import turned_back

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["ShowRequest", "Shown", "parse_patch", "print_shown", "show"]

_FIRST = 4
"""Items that are shown where none is named."""
_MOST_ROWS = 8
"""Of an item, beside each other."""
_ROWS_IN_ALL = 24
_MOST_ITEMS = 100
_PICTURE_PX = 512
"""Longer side of a picture, px."""
_THUMB_PX = 160
_FLATTEST = 20.0
"""Times that a pixel may be wider than high, or higher than wide, in a picture."""
_NEAREST = 6
"""On the page, where nothing is said."""
_MOST_VECTOR_BYTES = 64 << 20
"""Of all items' vectors that are read although nobody asked for nearest items."""
_CODE_BYTES = 1_100_000
"""Of all codes of a page."""
_GROUND = 0.5
"""Grey in place of a picture."""

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class ShowRequest:
    """What is to be shown.

    Attributes:
        items: Ids; the first few of the store where there is none.
        patch: (row, column) on the grid of patches, from 0, of a patch that is compared to all
            others of its row of the item; None leaves that picture out.
        nearest: How many of the nearest items; None: some on the page, no picture.
        row: Of items of several rows, from 0; None takes some, evenly spread.
        features: Kinds: a map, as `dense.L05`, a vector, as `mean`, or one of each.
        shared: Whether colours are of one basis for all items shown.
        out: Folder that is written to.
    """

    items: tuple[str, ...] = ()
    patch: tuple[int, int] | None = None
    nearest: int | None = None
    row: int | None = None
    features: tuple[str, ...] = ()
    shared: bool = False
    out: Path = Path("show")


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
    source = _Source.of(store, request)
    shown = [_read_item(source, item_id, request) for item_id in source.items]
    if request.shared and source.map_kind is not None:
        colours = _fitted([row.patches for item in shown for row in item.rows], "these items")
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


# What is read


@dataclass(frozen=True, kw_only=True, eq=False)
class _Row:
    """A row of an item: its number, its picture, (grid_height, grid_width, dim) patches."""

    number: int
    picture: Floats
    patches: Floats


@dataclass(frozen=True, kw_only=True, eq=False)
class _Item:
    """An item that is shown.

    Attributes:
        item_id: Its id.
        n_rows: How many rows it has.
        rows: Those shown; none where the store has no maps.
        picture: Of its middle row, or of the first shown.
        colours: Of its patches; None without maps.
        nearest: Id and cosine of the items nearest to it.
    """

    item_id: str
    n_rows: int
    rows: tuple[_Row, ...]
    picture: Floats
    colours: PatchColours | None
    nearest: tuple[tuple[str, float], ...]

    @property
    def grid(self) -> tuple[int, int]:
        height, width = self.rows[0].patches.shape[:2]
        return height, width


@dataclass(kw_only=True)
class _Source:
    """A store, and what of it is shown.

    Attributes:
        store: It.
        items: Ids.
        map_kind: Of patches; None where only nearest items are shown.
        vector_kind: Of items; None where no nearest items are shown.
        no_nearest: Why not, for people.
        names: Id -> name of its files.
    """

    store: FeatureStore
    items: tuple[str, ...]
    map_kind: str | None
    vector_kind: str | None
    no_nearest: str
    names: dict[str, str]
    _vectors: tuple[list[str], npt.NDArray[np.float64]] | None = field(default=None, init=False)
    _pictures: dict[str, Floats] = field(default_factory=dict, init=False)

    @classmethod
    def of(cls, store: FeatureStore, request: ShowRequest) -> Self:
        ids = [str(i) for i in store.items["item_id"]]
        _check_items(store, ids, request.items)
        asked_map, asked_vector = _asked_kinds(store, request.features)
        map_kind = asked_map or _usual_map(store.kinds)
        wants_nearest = bool(request.nearest)
        if map_kind is None and not wants_nearest:
            has = ", ".join(store.kinds) or "nothing yet"
            raise StoreIncompleteError(
                f"{store.folder} has no maps of patches to show (it has {has}); add them with "
                "`dinocache extract ... --features dense,image`, or ask for --nearest"
            )
        if map_kind is None and request.patch is not None:
            raise StoreIncompleteError(
                f"{store.folder} has no patches for --patch; add them with "
                "`dinocache extract ... --features dense`"
            )
        vector_kind = asked_vector or _usual_vector(store.kinds)
        no_nearest = _no_nearest(store, vector_kind, request)
        return cls(
            store=store,
            items=request.items or _first_items(store, ids, map_kind or vector_kind or ""),
            map_kind=map_kind,
            vector_kind=None if no_nearest else vector_kind,
            no_nearest=no_nearest,
            names=file_names(ids),
        )

    @property
    def facts(self) -> dict[str, Any]:
        """What the store is, as JSON."""
        header = self.store.header
        encoder = header.recipe.encoder
        return {
            "dataset": header.dataset,
            "model": encoder.name,
            "resolution": resolution_name(header.recipe.input.resolution),
            "variant": header.variant,
            "weights": encoder.weights.name,
            "random_weights": encoder.weights.is_random,
            "digest": header.digest,
            "maps": self.map_kind,
            "vectors": self.vector_kind,
        }

    @property
    def warning(self) -> str:
        """What must be said of random weights, and nothing of others."""
        encoder = self.store.header.recipe.encoder
        if not encoder.weights.is_random:
            return ""
        return _plain(
            f"RANDOM WEIGHTS ({encoder.weights.name}): for tests and demonstrations, this says "
            f"nothing about {encoder.name}"
        )

    @property
    def said(self) -> str:
        """What made the features, in a few words."""
        facts = self.facts
        return _plain(
            f"{facts['dataset']}, {facts['model']} at {facts['resolution']} px ({facts['weights']})"
        )

    def patches(self, item_id: str, row: int) -> Floats:
        """Read a row's patches, upright, in the encoder's own channels."""
        kind = self.map_kind or ""
        values: Floats = self.store.rows(kind, item_id, row, row + 1)[0].astype(np.float32)
        calibration = self.store.calibration(kind)
        if calibration is not None:
            values = calibration.undone(values)
        _check_finite(values, f"{kind!r} of item {item_id!r}")
        return turned_back(pass_of(kind).view, values, (0, 1))

    def picture(self, item_id: str, row: int) -> Floats:
        """Read what the encoder saw of a row, as people look at it; grey where it is not kept."""
        if "image" not in self.store.kinds:
            return self._ground()
        try:
            found = self.store.native_array("image", item_id)
        except StoreIncompleteError:
            return self._ground()
        channel = 0
        channels = self.store.header.recipe.channels
        if (name := pass_of(self.map_kind or "").channel) in channels.names:
            channel = channels.names.index(name or "")
        colour = channels.mode != "passes" and found.shape[0] == 3
        chosen = slice(0, 3) if colour else slice(channel, channel + 1)
        values = found.read(row, row + 1)[chosen, 0].astype(np.float32)
        seen = _windowed(values, found.attributes, channel, f"the image of {item_id!r}")
        return self._fitted_in(seen, values.shape[1:], found.attributes)

    def _fitted_in(
        self, picture: Floats, shape: tuple[int, ...], attributes: dict[str, Any]
    ) -> Floats:
        """Cut a row to what the grid of patches covers of it, small, its pixels square."""
        height, width = shape
        spacing = Geometry.from_attributes(attributes).spacing
        tall = height * _tallness(spacing)
        scale = min(1.0, _PICTURE_PX / max(tall, width))
        small = _resized(picture, max(1, round(tall * scale)), max(1, round(width * scale)))
        recipe = self.store.header.recipe
        to_row = input_to_row((height, width), recipe.input)
        seen_height, seen_width = recipe.input.resolution
        if self.map_kind is not None:
            layout = array_layout(self.map_kind, recipe, self.store.header.grid)
            parsed = parse_kind(self.map_kind)
            patch_px, _ = recipe.encoder.layer_shape(parsed.layer if parsed else None)
            seen_height, seen_width = (side * patch_px for side in layout.tail[:2])
        # Edges of the input, as shares of the row: a pixel's centre lies half behind its edge.
        ends = np.array([[-0.5, -0.5], [seen_width - 0.5, seen_height - 0.5]])
        edges = (ends * to_row[[0, 1], [0, 1]] + to_row[:2, 3] + 0.5) / [width, height]
        (left, top), (right, bottom) = np.rint(edges * small.shape[1::-1]).astype(int).tolist()
        return _cut(small, top, bottom, left, right)

    def _ground(self) -> Floats:
        """Give grey of the encoder's proportions."""
        height, width = self.store.header.recipe.input.resolution
        scale = _THUMB_PX / max(height, width)
        return np.full((max(1, round(height * scale)), max(1, round(width * scale))), _GROUND, "f4")

    def portrait(self, item_id: str) -> Floats:
        """Read the picture of an item's middle row, or a slide's small one; once."""
        if item_id not in self._pictures:
            small = None
            with contextlib.suppress(StoreIncompleteError):  # a part may have no small pictures
                small = None if "image" in self.store.kinds else self.store.thumbnail(item_id)
            middle = self.store.n_rows(item_id) // 2
            self._pictures[item_id] = _decoded(small) if small else self.picture(item_id, middle)
        return self._pictures[item_id]

    def nearest(self, item_id: str, count: int) -> tuple[tuple[str, float], ...]:
        """Find the items whose vectors are nearest by cosine, the nearest first."""
        kind = self.vector_kind
        if kind is None:
            return ()
        if self._vectors is None:
            ids, vectors = self.store.item_vectors(kind)
            calibration = self.store.calibration(kind)
            if calibration is not None:
                vectors = calibration.undone(vectors)
            _check_finite(vectors, f"{kind!r} of the items")
            self._vectors = ids, unit_vectors(vectors)
        ids, units = self._vectors
        if item_id not in ids:
            raise StoreIncompleteError(
                f"{self.store.folder} has no {kind!r} of item {item_id!r}: it failed; "
                "`dinocache failures` says why"
            )
        own = ids.index(item_id)
        cosines = np.clip(units @ units[own], -1, 1)
        cosines[own] = -np.inf
        order = np.argsort(-cosines, kind="stable")[: min(count, len(ids) - 1)]
        return tuple((ids[n], float(cosines[n])) for n in order.tolist())


def _check_items(store: FeatureStore, ids: Sequence[str], wanted: Sequence[str]) -> None:
    if len(wanted) > _MOST_ITEMS:
        raise RequestError(f"at most {_MOST_ITEMS} items are shown at once, got {len(wanted)}")
    known = set(ids)
    for item_id in wanted:
        if item_id not in known:
            near = get_close_matches(item_id, ids, n=3, cutoff=0.5) or ids[:3]
            said = f"did you mean {', '.join(near)}?" if near else "it has none"
            raise RequestError(f"{store.folder} holds no item {item_id!r}; {said}")


def _first_items(store: FeatureStore, ids: Sequence[str], kind: str) -> tuple[str, ...]:
    """Choose the first items that have a kind."""
    if is_vector_kind(kind):  # of a part of a store, the items' means may be all there is
        found = store.item_vectors(kind)[0][:_FIRST]
    else:
        found = list(islice((i for i in ids if _is_there(store, kind, i)), _FIRST))
    if not found:
        raise StoreIncompleteError(
            f"{store.folder} has no item with {kind!r} yet: each of them failed (`dinocache "
            "failures` says why), or is to be extracted"
        )
    return tuple(found)


def _is_there(store: FeatureStore, kind: str, item_id: str) -> bool:
    try:
        return store.presence(kind, item_id).present
    except StoreIncompleteError:
        return False


def _asked_kinds(store: FeatureStore, asked: Sequence[str]) -> tuple[str | None, str | None]:
    """Tell the map from the vector that are asked for."""
    if not asked:
        return None, None
    maps: list[str] = []
    vectors: list[str] = []
    for kind in check_kinds(asked):
        if kind not in store.kinds:
            raise StoreIncompleteError(
                f"{store.folder} has no {kind!r} (it has {', '.join(store.kinds) or 'nothing'}); "
                f"add it with `dinocache extract ... --features {kind}`"
            )
        if parse_kind(kind) is None:
            raise RequestError(f"--features: {kind!r} is no map of patches and no vector")
        (vectors if is_vector_kind(kind) else maps).append(kind)
    if len(maps) > 1 or len(vectors) > 1:
        raise RequestError(
            "--features takes one kind of map, as dense.L05, and one of vector, as mean; got "
            f"{', '.join(asked)}"
        )
    return next(iter(maps), None), next(iter(vectors), None)


def _usual_map(kinds: Sequence[str]) -> str | None:
    """Choose the last layer's map of the image as it is, or what comes next to it."""
    parsed = {k: one for k in kinds if (one := parse_kind(k)) and not is_vector_kind(k)}

    def rank(kind: str) -> tuple[bool, float]:
        layer = parsed[kind].layer
        return parsed[kind].view is not None, -math.inf if layer is None else -layer

    return min(parsed, key=rank, default=None)


def _usual_vector(kinds: Sequence[str]) -> str | None:
    """Choose cls, else mean, else the encoder's own embedding."""
    parsed = {k: one.base for k in kinds if is_vector_kind(k) and (one := parse_kind(k))}
    return min(parsed, key=lambda kind: VECTOR_KINDS.index(parsed[kind]), default=None)


def _no_nearest(store: FeatureStore, kind: str | None, request: ShowRequest) -> str:
    """Say why no nearest items are shown; nothing where they are.

    Raises:
        RequestError: If they are asked for, and there is one item.
        StoreIncompleteError: If they are asked for, and there are no vectors.
    """
    if request.nearest == 0:
        return "Nearest items were not asked for."
    if len(store.items) < 2:
        if request.nearest:
            raise RequestError(
                f"--nearest: {store.folder} has one item, so no other is near; choose a store of "
                "several"
            )
        return "The store has one item, so no other is near."
    if kind is None:
        if request.nearest:
            raise StoreIncompleteError(
                f"{store.folder} has no vectors for --nearest (it has {', '.join(store.kinds)}); "
                "add them with `dinocache extract ... --features cls`"
            )
        return "The store has no vectors of items: dinocache extract --features cls adds them."
    if request.nearest:
        return ""
    if (missing := store.missing([kind])) or store.unplanned():
        return f"Not all vectors are extracted yet ({len(missing)} units are left)."
    dim = array_layout(f"item_{kind}", store.header.recipe, store.header.grid).tail[0]
    if len(store.items) * dim * 4 > _MOST_VECTOR_BYTES:
        return "The store has very many items: dinocache show --nearest looks through all of them."
    return ""


def _read_item(source: _Source, item_id: str, request: ShowRequest) -> _Item:
    n_rows = source.store.n_rows(item_id)
    if request.row is not None and request.row >= n_rows:
        raise RequestError(
            f"--row {request.row}: item {item_id!r} has {n_rows} rows, the last is {n_rows - 1}"
        )
    most = max(1, min(_MOST_ROWS, _ROWS_IN_ALL // len(source.items)))
    numbers = _spread(n_rows, most) if request.row is None else [request.row]
    rows: list[_Row] = []
    colours = None
    if source.map_kind is not None:
        for number in numbers:
            patches = source.patches(item_id, number)
            rows.append(
                _Row(number=number, patches=patches, picture=source.picture(item_id, number))
            )
        _check_patch(request.patch, rows[0].patches, item_id)
        if not request.shared:
            colours = _fitted([row.patches for row in rows], f"item {item_id!r}")
    picture = rows[len(rows) // 2].picture if rows else source.portrait(item_id)
    wanted = _NEAREST if request.nearest is None else request.nearest
    return _Item(
        item_id=item_id,
        n_rows=n_rows,
        rows=tuple(rows),
        picture=picture,
        colours=colours,
        nearest=source.nearest(item_id, wanted),
    )


def _spread(n_rows: int, most: int) -> list[int]:
    """Choose rows: the middles of equal parts of the item; all where there are no more."""
    parts = min(n_rows, most)
    return [(2 * part + 1) * n_rows // (2 * parts) for part in range(parts)]


def _check_patch(patch: tuple[int, int] | None, patches: Floats, item_id: str) -> None:
    height, width = patches.shape[:2]
    if patch is not None and not (patch[0] < height and patch[1] < width):
        raise RequestError(
            f"--patch {patch[0]},{patch[1]} is outside the grid of item {item_id!r}, which has "
            f"{height} x {width} patches: Y is 0 to {height - 1}, X is 0 to {width - 1}"
        )


def _fitted(patches: Sequence[Floats], what: str) -> PatchColours:
    try:
        return PatchColours.fit(np.concatenate([one.reshape(-1, one.shape[-1]) for one in patches]))
    except ValueError as exc:
        raise RequestError(f"{what}: {exc}; choose a store of a higher resolution") from exc


def _check_finite(values: Floats, what: str) -> None:
    if not np.isfinite(values).all():
        raise StoreDamagedError(
            f"{what} has numbers that are not finite; run `dinocache verify`, and copy the store "
            "again from where it was made"
        )


def _tallness(spacing: tuple[float, float, float] | None) -> float:
    """Say how many times its width a pixel is high; 1 where nothing sensible is known."""
    if spacing is None or not min(spacing[1:]) > 0:
        return 1.0
    return min(max(spacing[1] / spacing[2], 1 / _FLATTEST), _FLATTEST)


def _windowed(values: Floats, attributes: dict[str, Any], channel: int, what: str) -> Floats:
    """Bring (C, Y, X) values to [0, 1] by an item's windows: (Y, X) or (Y, X, 3)."""
    windows = attributes.get("windows")
    try:
        pairs = np.array(windows, np.float64).reshape(-1, 2)
        chosen = pairs[[min(n + channel, len(pairs) - 1) for n in range(len(values))]]
        if not np.isfinite(chosen).all() or (chosen[:, 0] >= chosen[:, 1]).any():
            raise ValueError
    except (TypeError, ValueError, IndexError, OverflowError):
        raise StoreDamagedError(
            f"{what} has windows {str(windows)[:100]}; pairs of low and high were expected. Copy "
            "the store again from where it was made"
        ) from None
    low, high = chosen[:, 0, None, None], chosen[:, 1, None, None]
    with np.errstate(all="ignore"):  # what is not finite is black
        seen = np.nan_to_num(np.clip((values - low) / (high - low), 0, 1)).astype(np.float32)
    return seen.transpose(1, 2, 0) if len(seen) == 3 else seen[0]


def _cut(picture: Floats, top: int, bottom: int, left: int, right: int) -> Floats:
    """Cut a part out of a picture; what lies beyond it is black, as the encoder saw it."""
    height, width = picture.shape[:2]
    bottom, right = max(bottom, top + 1), max(right, left + 1)
    around = [(max(-top, 0), max(bottom - height, 0)), (max(-left, 0), max(right - width, 0))]
    padded = np.pad(picture, [*around, *[(0, 0)] * (picture.ndim - 2)])
    down, along = max(top, 0), max(left, 0)
    return padded[down : down + bottom - top, along : along + right - left]


# Small pictures


def _resized(picture: Floats, height: int, width: int) -> Floats:
    from PIL import Image

    if picture.shape[:2] == (height, width):
        return picture
    image = Image.fromarray(np.rint(picture * 255).astype(np.uint8))
    resized = image.resize((width, height), Image.Resampling.LANCZOS)
    return _in_0_1(resized)


def _in_0_1(image: "Image") -> Floats:
    values: Floats = np.asarray(image, np.float32)
    return values / np.float32(255)


def _decoded(content: bytes) -> Floats:
    """Decode a PNG of a store, whose size was looked at."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            image.thumbnail((_PICTURE_PX, _PICTURE_PX))
            return _in_0_1(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as exc:
        raise StoreDamagedError(f"a small picture of the store cannot be read: {exc}") from exc


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


def _plain(text: str) -> str:
    """Make a text of others one line that steers nothing."""
    return " ".join(visible(text).split())


# What is written


def _write_pictures(
    source: _Source, item: _Item, request: ShowRequest, files: list[Path]
) -> dict[str, Any]:
    """Write an item's pictures, note their files, and say what they show."""
    name, title = source.names[item.item_id], _plain(item.item_id)
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
                [(source.portrait(i), f"{_plain(i)}  {c:.3f}") for i, c in item.nearest],
                name=title,
                caption=f"{source.said}. Nearest by the cosine of {source.vector_kind}.",
                **texts,
            ),
        )
    return facts


def _write_similarity(
    source: _Source,
    item: _Item,
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
    source: _Source, shown: Sequence[_Item], request: ShowRequest
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
        thumbs={i: _jpeg(source.portrait(i), _THUMB_PX) for i in sorted(near)},
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
    item: _Item, most: int, patch: tuple[int, int] | None
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
                "image": _jpeg(row.picture, _PICTURE_PX),
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
        "image": rows[first]["image"] if rows else _jpeg(picture, _PICTURE_PX),
        "pca": rows[first]["pca"] if rows else "",
        "width": picture.shape[1],
        "height": picture.shape[0],
        "nearest": item.nearest,
        "data": data,
    }
    return entry, codes
