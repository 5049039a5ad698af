"""What of a store `dinocache show` shows: items and their rows, as the encoder saw them."""

import contextlib
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from dinocache.errors import RequestError, StoreDamagedError, StoreIncompleteError
from dinocache.exporting import file_names
from dinocache.feature_pictures import PatchColours, unit_vectors
from dinocache.geometry import Geometry, input_to_row
from dinocache.layout import (
    VECTOR_KINDS,
    array_layout,
    check_kinds,
    is_vector_kind,
    parse_kind,
    pass_of,
)
from dinocache.recipe import resolution_name
from dinocache.store import FeatureStore
from dinocache.terminal import visible
from dinocache.views import turned_back

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "PICTURE_PX",
    "THUMB_PX",
    "Floats",
    "ShowRequest",
    "ShownItem",
    "ShownRow",
    "ShownStore",
    "fitted",
    "plain",
    "read_item",
]

_FIRST = 4
"""Items that are shown where none is named."""
_MOST_ROWS = 8
"""Of an item, beside each other."""
_ROWS_IN_ALL = 24
_MOST_ITEMS = 100
PICTURE_PX = 512
"""Longer side of a picture, px."""
THUMB_PX = 160
_FLATTEST = 20.0
"""Times that a pixel may be wider than high, or higher than wide, in a picture."""
_NEAREST = 6
"""On the page, where nothing is said."""
_MOST_VECTOR_BYTES = 64 << 20
"""Of all items' vectors that are read although nobody asked for nearest items."""
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


# What is read


@dataclass(frozen=True, kw_only=True, eq=False)
class ShownRow:
    """A row of an item: its number, its picture, (grid_height, grid_width, dim) patches."""

    number: int
    picture: Floats
    patches: Floats


@dataclass(frozen=True, kw_only=True, eq=False)
class ShownItem:
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
    rows: tuple[ShownRow, ...]
    picture: Floats
    colours: PatchColours | None
    nearest: tuple[tuple[str, float], ...]

    @property
    def grid(self) -> tuple[int, int]:
        """Of its patches, (height, width)."""
        height, width = self.rows[0].patches.shape[:2]
        return height, width


@dataclass(kw_only=True)
class ShownStore:
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
        """Choose items and kinds; raises `RequestError` or `StoreIncompleteError`."""
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
        return plain(
            f"RANDOM WEIGHTS ({encoder.weights.name}): for tests and demonstrations, this says "
            f"nothing about {encoder.name}"
        )

    @property
    def said(self) -> str:
        """What made the features, in a few words."""
        facts = self.facts
        return plain(
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
        scale = min(1.0, PICTURE_PX / max(tall, width))
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
        scale = THUMB_PX / max(height, width)
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


def read_item(source: ShownStore, item_id: str, request: ShowRequest) -> ShownItem:
    """Read what is shown of an item; raises `RequestError` of a row or a patch it has not."""
    n_rows = source.store.n_rows(item_id)
    if request.row is not None and request.row >= n_rows:
        raise RequestError(
            f"--row {request.row}: item {item_id!r} has {n_rows} rows, the last is {n_rows - 1}"
        )
    most = max(1, min(_MOST_ROWS, _ROWS_IN_ALL // len(source.items)))
    numbers = _spread(n_rows, most) if request.row is None else [request.row]
    rows: list[ShownRow] = []
    colours = None
    if source.map_kind is not None:
        for number in numbers:
            patches = source.patches(item_id, number)
            rows.append(
                ShownRow(number=number, patches=patches, picture=source.picture(item_id, number))
            )
        _check_patch(request.patch, rows[0].patches, item_id)
        if not request.shared:
            colours = fitted([row.patches for row in rows], f"item {item_id!r}")
    picture = rows[len(rows) // 2].picture if rows else source.portrait(item_id)
    wanted = _NEAREST if request.nearest is None else request.nearest
    return ShownItem(
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


def fitted(patches: Sequence[Floats], what: str) -> PatchColours:
    """Fit the colours of patches (..., dim); raises `RequestError` of too few."""
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


def _resized(picture: Floats, height: int, width: int) -> Floats:
    from PIL import Image

    if picture.shape[:2] == (height, width):
        return picture
    image = Image.fromarray(np.rint(picture * 255).astype(np.uint8))
    _resized = image.resize((width, height), Image.Resampling.LANCZOS)
    return _in_0_1(_resized)


def _in_0_1(image: "Image") -> Floats:
    values: Floats = np.asarray(image, np.float32)
    return values / np.float32(255)


def _decoded(content: bytes) -> Floats:
    """Decode a PNG of a store, whose size was looked at."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            image.thumbnail((PICTURE_PX, PICTURE_PX))
            return _in_0_1(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as exc:
        raise StoreDamagedError(f"a small picture of the store cannot be read: {exc}") from exc


def plain(text: str) -> str:
    """Make a text of others one line that steers nothing."""
    return " ".join(visible(text).split())
