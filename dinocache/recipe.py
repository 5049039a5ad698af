"""The recipe: every choice that changes a number of a store.

See docs/store-format.md, "The recipe". Anything that changes features and is not in here would let
two different runs share a store.
"""

import hashlib
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from dinocache.documents import canonical
from dinocache.errors import StoreDamagedError

__all__ = [
    "EncoderRecipe",
    "InputRecipe",
    "ReaderRecipe",
    "Recipe",
    "ResizeRecipe",
    "WeightsRecipe",
    "resolution_name",
]

DIGEST_DIGITS = 32


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
    """The frozen model."""

    name: str
    dim: int
    patch_px: int
    weights: WeightsRecipe
    rope: Literal["checkpoint", "bfloat16", "float32"]


class ResizeRecipe(_Part):
    """How an image comes to the resolution; `clamp` cuts what bicubic overshoots [0, 1]."""

    mode: Literal["squash"] = "squash"
    filter: Literal["bicubic"] = "bicubic"
    antialias: Literal[True] = True
    clamp: Literal[True] = True


class InputRecipe(_Part):
    """What happens between the reader and the encoder."""

    resolution: tuple[int, int]
    window: Literal["full-range"] = "full-range"
    resize: ResizeRecipe = ResizeRecipe()
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class ReaderRecipe(_Part):
    """Which reader, with which options."""

    name: str
    options: dict[str, Any] = {}


class Recipe(_Part):
    """Every choice that changes a number."""

    encoder: EncoderRecipe
    input: InputRecipe
    reader: ReaderRecipe
    precision: Literal["fp32", "bf16"]
    dtype: Literal["float16"] = "float16"

    @property
    def digest(self) -> str:
        """First 32 hex digits of the sha256 of the canonical recipe, weights' name left out."""
        text = canonical(self.model_dump(mode="json", exclude={"encoder": {"weights": {"name"}}}))
        return hashlib.sha256(text.encode()).hexdigest()[:DIGEST_DIGITS]

    def differences(self, other: "Recipe") -> dict[str, tuple[Any, Any]]:
        """Name the fields that differ.

        Args:
            other: Another recipe.

        Returns:
            Dotted field -> (value here, value there); empty where the digests are equal.
        """
        ours, theirs = _flat(self.model_dump(mode="json")), _flat(other.model_dump(mode="json"))
        fields = [f for f in ours | theirs if f != "encoder.weights.name"]
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
        else:
            flat[f"{prefix}{key}"] = inner
    return flat
