"""The recipe: every choice that changes a number of a store.

See docs/store-format.md, "The recipe". Anything that changes features and is not in here would let
two different runs share a store.
"""

import hashlib
import math
import re
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from dinocache.documents import canonical
from dinocache.errors import RecipeMismatchError, StoreDamagedError

__all__ = [
    "ChannelsRecipe",
    "EncoderRecipe",
    "FormRecipe",
    "InputRecipe",
    "ReaderRecipe",
    "Recipe",
    "ResizeRecipe",
    "StorageRecipe",
    "WeightsRecipe",
    "WindowRecipe",
    "model_folder",
    "resolution_name",
    "same_features",
]

DIGEST_DIGITS = 32
_FACTS = ("vectors", "depth", "pyramid")
"""Of an encoder: a library's next release may tell more layers, and no number changes."""
_DECLARED = "declared:"
_MOST_PX = 1 << 16
"""And of numbers of a vector; the largest encoders have some thousands."""
_MOST_MAP_BYTES = 1 << 30
_MPP_ALIKE = 0.01
"""Relative; people say 0.5 um/px of what is 0.499."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class WeightsRecipe(_Part):
    """Which weights; `name` is for people and no part of the digest."""

    name: str
    sha256: str

    @property
    def is_random(self) -> bool:
        """Whether they were drawn, not trained."""
        return self.name.startswith(("random:", f"{_DECLARED}random:"))

    @property
    def is_declared(self) -> bool:
        """Whether a person said which they are, and nobody saw them: the features were imported."""
        return self.sha256.startswith(_DECLARED)

    @classmethod
    def declared(cls, said: str) -> "WeightsRecipe":
        """Write down what a person said; no digest of a file is ever the same."""
        return cls(name=f"{_DECLARED}{said}", sha256=f"{_DECLARED}{said}")


class EncoderRecipe(_Part):
    """The frozen model, and the shapes of what it gives."""

    name: str
    weights: WeightsRecipe
    rope: Literal["checkpoint", "bfloat16", "float32"] | None
    vectors: tuple[str, ...]
    dim: int
    patch_px: int
    depth: int
    pyramid: tuple[tuple[int, int], ...] = ()
    embed_dim: int | None = None

    def layer_shape(self, layer: int | None) -> tuple[int, int]:
        """Give (patch_px, dim) of a layer's map; None is the last layer."""
        if layer is None:
            return self.patch_px, self.dim
        if layer >= self.depth:
            raise StoreDamagedError(f"{self.name} has no layer {layer}: it has {self.depth}")
        return self.pyramid[layer] if self.pyramid else (self.patch_px, self.dim)


class WindowRecipe(_Part):
    """Which two values of an item become 0 and 1; see docs/readers.md, "Intensity".

    `low` and `high` are values for `range`, percents for `percentile`, standard deviations from the
    mean for `z-score`. With `nonzero`, zeros do not count (the air around a skull-stripped brain).
    """

    mode: Literal["full-range", "file", "range", "min-max", "percentile", "z-score"] = "full-range"
    low: float | None = None
    high: float | None = None
    nonzero: bool = False


class ResizeRecipe(_Part):
    """How an image comes to the resolution.

    `squash` lets the aspect ratio go; `pad` fits it in and fills with 0 around it; `crop` covers
    the resolution divided by `crop_pct` and keeps the centre. `clamp` cuts what bicubic overshoots
    [0, 1].
    """

    mode: Literal["squash", "pad", "crop"] = "squash"
    crop_pct: float | None = None
    filter: Literal["bicubic", "bilinear"] = "bicubic"
    antialias: Literal[True] = True
    arithmetic: Literal["float32", "uint8"] = "float32"
    clamp: Literal[True] = True


class InputRecipe(_Part):
    """What happens between the reader and the encoder."""

    resolution: tuple[int, int]
    channels: Literal[1, 3] = 3
    windows: tuple[WindowRecipe, ...] = (WindowRecipe(),)
    """One for all channels, or one a channel; three for one grey channel make three of it."""
    resize: ResizeRecipe = ResizeRecipe()
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class ReaderRecipe(_Part):
    """Which reader, with which options."""

    name: str
    options: dict[str, Any] = {}
    columns: tuple[tuple[str, str], ...] = ()
    """(name, unit) of the rows' coordinates; a fact of the reader."""


class ChannelsRecipe(_Part):
    """What becomes of the channels of an item: the encoder's input, or one pass each, by name."""

    mode: Literal["stacked", "passes"] = "stacked"
    names: tuple[str, ...] = ()


class FormRecipe(_Part):
    """How features of a sort are kept.

    `pca` components are kept of them, fitted on a sample; `int8` has a scale a channel, likewise.
    `rounded` says that they were float16 before they were made so small (`dinocache compact`).
    """

    dtype: Literal["float16", "float32", "int8"] = "float16"
    pca: int | None = Field(default=None, ge=1)
    rounded: Literal["float16"] | None = None

    @property
    def is_fitted(self) -> bool:
        """Whether scales or a basis are needed, which are fitted on a sample of the features."""
        return self.dtype == "int8" or self.pca is not None

    def __str__(self) -> str:
        """Say it in a few words: `64 components, int8`."""
        components = "" if self.pca is None else f"{self.pca} components, "
        return f"{components}{self.dtype}{' (float16 before)' if self.rounded else ''}"


class StorageRecipe(_Part):
    """How vectors are kept, and maps of patch vectors."""

    vectors: FormRecipe = FormRecipe()
    dense: FormRecipe = FormRecipe()


class Recipe(_Part):
    """Every choice that changes a number."""

    encoder: EncoderRecipe
    input: InputRecipe
    reader: ReaderRecipe
    channels: ChannelsRecipe = ChannelsRecipe()
    precision: Literal["fp32", "bf16"]
    storage: StorageRecipe = StorageRecipe()

    @model_validator(mode="before")
    @classmethod
    def _read_plain(cls, body: Any) -> Any:  # noqa: ANN401 - whatever a file holds
        """Take `dtype: float16`, which stands for storage where all is kept plainly."""
        if isinstance(body, dict) and "storage" not in body and body.get("dtype") == "float16":
            return {key: value for key, value in body.items() if key != "dtype"}
        return body

    @model_serializer(mode="wrap")
    def _write_plain(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        body: dict[str, Any] = write(self)
        if self.storage == StorageRecipe():
            del body["storage"]
            body["dtype"] = "float16"
        return body

    @property
    def digest(self) -> str:
        """First 32 hex digits of the sha256 of the canonical recipe.

        The weights' name is left out, and facts of the encoder that no choice was made of.
        """
        body = self.model_dump(mode="json", exclude={"encoder": {"weights": {"name"}}})
        for fact in _FACTS:
            del body["encoder"][fact]
        del body["reader"]["columns"]
        text = canonical(body)
        return hashlib.sha256(text.encode()).hexdigest()[:DIGEST_DIGITS]

    def differences(self, other: "Recipe") -> dict[str, tuple[Any, Any]]:
        """Name the fields that differ.

        Args:
            other: Another recipe.

        Returns:
            Dotted field -> (value here, value there); empty where the digests are equal.
        """
        plain = {"storage": StorageRecipe().model_dump(mode="json")}
        ours, theirs = (_flat(plain | recipe.model_dump(mode="json")) for recipe in (self, other))
        facts = (f"encoder.{fact}" for fact in _FACTS)
        left_out = ("encoder.weights.name", "reader.columns", "dtype", *facts)
        fields = [f for f in ours | theirs if f not in left_out]
        return {f: (ours.get(f), theirs.get(f)) for f in fields if ours.get(f) != theirs.get(f)}

    @classmethod
    def from_body(cls, body: object, name: str) -> "Recipe":
        """Read a recipe from a document.

        Args:
            body: The parsed JSON.
            name: The file, for messages.

        Returns:
            The recipe.

        Raises:
            StoreDamagedError: If it is not one that this version knows.
        """
        try:
            recipe = cls.model_validate(body)
        except ValidationError as exc:
            field = ".".join(str(part) for part in exc.errors()[0]["loc"])
            raise StoreDamagedError(
                f"{name}: recipe field {field!r} is not one that this version of dinocache knows "
                f"({exc.errors()[0]['msg']}); a newer version may read it"
            ) from exc
        _check_sizes(recipe, name)
        return recipe


def _check_sizes(recipe: Recipe, name: str) -> None:
    """Refuse sizes that no encoder has, before memory is taken for them."""
    encoder = recipe.encoder
    maps = encoder.pyramid or ((encoder.patch_px, encoder.dim),)
    sides = (*recipe.input.resolution, *(patch for patch, _ in maps), encoder.patch_px)
    dims = (encoder.dim, encoder.embed_dim or 1, *(dim for _, dim in maps))
    counts = encoder.depth, len(maps), len(encoder.vectors) + 1, len(recipe.reader.columns) + 1
    if not all(1 <= n <= _MOST_PX for n in (*sides, *dims, *counts)):
        raise StoreDamagedError(f"{name}: the recipe's sizes are not from 1 to {_MOST_PX}")
    if encoder.pyramid and len(encoder.pyramid) != encoder.depth:
        raise StoreDamagedError(f"{name}: the recipe has {len(maps)} of {encoder.depth} layers")
    for form in (recipe.storage.vectors, recipe.storage.dense):
        if (form.pca or 1) > max(dims):
            raise StoreDamagedError(f"{name}: by its recipe {form.pca} components are of {dims[0]}")
    height, width = recipe.input.resolution
    item_bytes = 4 if recipe.storage.dense.dtype == "float32" else 2
    largest = max((height // patch) * (width // patch) * dim for patch, dim in maps) * item_bytes
    if largest > _MOST_MAP_BYTES:
        raise StoreDamagedError(
            f"{name}: by its recipe a map has {largest} bytes, more than {_MOST_MAP_BYTES}"
        )


def model_folder(name: str) -> str:
    """Name an encoder as folders do: what is no letter, digit or one of `_.+-` becomes `-`."""
    return re.sub(r"[^A-Za-z0-9_.+-]+", "-", name)


def resolution_name(resolution: tuple[int, int]) -> str:
    """Name a resolution as folders do.

    Args:
        resolution: (height, width), px.

    Returns:
        `512`, or `512x640` for height x width.
    """
    height, width = resolution
    return str(height) if height == width else f"{height}x{width}"


def same_features(ours: Recipe, theirs: Recipe, *, trust: bool) -> None:
    """Refuse two recipes whose features may not be set side by side.

    Two that were extracted must be the same recipe. Where one is declared (its features were
    imported), nothing can be known; if that is to be trusted, what was said must at least fit.

    Args:
        ours: Of one store.
        theirs: Of the other.
        trust: Whether what a person declared counts.

    Raises:
        RecipeMismatchError: If they differ, or one is declared and that is not trusted.
    """
    declared = [r for r in (ours, theirs) if r.encoder.weights.is_declared]
    if not declared:
        for field, (one, other) in ours.differences(theirs).items():
            raise RecipeMismatchError(
                f"the features are of different recipes: {field} is {one!r} in one and {other!r} "
                "in the other; extract both with the same settings"
            )
        return
    if not trust:
        said = declared[0].encoder
        raise RecipeMismatchError(
            f"features of {said.name} were imported, and how they were made is only declared "
            f"({said.weights.name}); --trust compares them all the same"
        )
    for what, one, other in _comparable(ours, theirs):
        alike = one == other
        if isinstance(one, float) and isinstance(other, float):
            alike = math.isclose(one, other, rel_tol=_MPP_ALIKE)
        if not alike:
            raise RecipeMismatchError(
                f"the features cannot be of one sort: {what} is {one} in one and {other} in the "
                "other, one of them declared; import them again if that was said wrongly"
            )


def _comparable(ours: Recipe, theirs: Recipe) -> list[tuple[str, object, object]]:
    """List (what, ours, theirs) of all that both a declared and another recipe say."""
    pairs: list[tuple[str, object, object]] = [
        ("the encoder", ours.encoder.name, theirs.encoder.name),
        (
            "the resolution",
            resolution_name(ours.input.resolution),
            resolution_name(theirs.input.resolution),
        ),
    ]
    widths, others = _widths(ours.encoder), _widths(theirs.encoder)
    common = [kind for kind in widths if kind in others]
    if not common:
        pairs.append(("the kind of vector", " or ".join(widths), " or ".join(others)))
    pairs += [(f"the width of {kind}", widths[kind], others[kind]) for kind in common]
    tiles, other_tiles = _tiles(ours.reader), _tiles(theirs.reader)
    both = [what for what in tiles if what in other_tiles]
    return pairs + [(what, tiles[what], other_tiles[what]) for what in both]


def _widths(encoder: EncoderRecipe) -> dict[str, int]:
    wide = encoder.embed_dim or encoder.dim
    return {kind: wide if kind == "embed" else encoder.dim for kind in encoder.vectors}


def _tiles(reader: ReaderRecipe) -> dict[str, float]:
    """Say how large a tile is, as far as it is known; it is for slides only."""
    said = reader.options if reader.name == "slide" else reader.options.get("declared")
    found: dict[str, float] = {}
    if isinstance(said, dict):
        side, mpp = said.get("tile_px"), said.get("tile_mpp", said.get("mpp"))
        if isinstance(side, int):
            found["the side of a tile, px"] = side
        if isinstance(mpp, int | float):  # `native` is no number
            found["um/px of a tile"] = float(mpp)
    return found


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        if isinstance(inner, dict) and inner:
            flat |= _flat(inner, f"{prefix}{key}.")
        elif isinstance(inner, list) and inner and all(isinstance(part, dict) for part in inner):
            flat |= _flat({str(i): part for i, part in enumerate(inner)}, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = inner
    return flat
