"""The recipe: every choice that changes a number of a store.

See docs/store-format.md, "The recipe". Anything that changes features and is not in here would let
two different runs share a store.
"""

import hashlib
import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from dinocache.documents import canonical
from dinocache.errors import StoreDamagedError

__all__ = [
    "ChannelsRecipe",
    "EncoderRecipe",
    "InputRecipe",
    "ReaderRecipe",
    "Recipe",
    "ResizeRecipe",
    "WeightsRecipe",
    "WindowRecipe",
    "model_folder",
    "resolution_name",
]

DIGEST_DIGITS = 32
_FACTS = ("vectors", "depth", "pyramid")
"""Of an encoder: a library's next release may tell more layers, and no number changes."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class WeightsRecipe(_Part):
    """Which weights; `name` is for people and no part of the digest."""

    name: str
    sha256: str

    @property
    def is_random(self) -> bool:
        """Whether they were drawn, not trained."""
        return self.name.startswith("random:")


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


class Recipe(_Part):
    """Every choice that changes a number."""

    encoder: EncoderRecipe
    input: InputRecipe
    reader: ReaderRecipe
    channels: ChannelsRecipe = ChannelsRecipe()
    precision: Literal["fp32", "bf16"]
    dtype: Literal["float16"] = "float16"

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
        ours, theirs = _flat(self.model_dump(mode="json")), _flat(other.model_dump(mode="json"))
        facts = (f"encoder.{fact}" for fact in _FACTS)
        left_out = ("encoder.weights.name", "reader.columns", *facts)
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
            return cls.model_validate(body)
        except ValidationError as exc:
            field = ".".join(str(part) for part in exc.errors()[0]["loc"])
            raise StoreDamagedError(
                f"{name}: recipe field {field!r} is not one that this version of dinocache knows "
                f"({exc.errors()[0]['msg']}); a newer version may read it"
            ) from exc


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
