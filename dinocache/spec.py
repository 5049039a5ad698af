"""Facts of an encoder, and what follows from them alone: sizes it takes, kinds it gives."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from dinocache.errors import RequestError
from dinocache.layout import VECTOR_KINDS, layer_kind, parse_kind

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "EncoderSpec",
    "HubFile",
    "check_resolution",
    "dense_kinds",
    "extracted_kinds",
    "takes",
]

Triple = tuple[float, float, float]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

_LAYERS = re.compile(r"last(\d*)|\d{1,2}(?:,\d{1,2})*")


@dataclass(frozen=True)
class HubFile:
    """A file of weights on the Hugging Face hub."""

    repo: str
    file: str = "model.safetensors"


@dataclass(frozen=True, kw_only=True)
class EncoderSpec:
    """Facts of one encoder."""

    name: str
    network: Literal["tokens", "maps", "volume", "open-clip"]
    """How it is built and read: `tokens` (a vision transformer), `maps` (a convolutional network),
    `volume` (a 3D U-Net over the rows of an item), `open-clip` (that library's own tower)."""
    family: str
    """Whose checkpoint formats it has; see `dinocache.checkpoints`."""
    library_name: str = ""
    """Under which timm or open_clip builds it."""
    arguments: Mapping[str, object] = field(default_factory=dict)
    """Of timm's constructor, besides what the model's name says."""
    same_padding: tuple[str, ...] = ()
    """What of a ResNet pads as TensorFlow's and JAX's SAME does, more behind than before: `pool`,
    `convolution`."""
    dim: int
    """Width of a patch token, or channels of the last map."""
    depth: int
    """Number of blocks, or of stages, whose maps can be kept."""
    patch_px: int
    """Side of what one token or map element stands for, px."""
    pyramid: tuple[tuple[int, int], ...] = ()
    """(patch_px, dim) of each stage, where they differ."""
    prefix_tokens: int = 0
    """cls and registers, before the patches."""
    step_px: int
    """Both sides of an input are multiples of this."""
    fixed_px: int | None = None
    """The one side that it takes, where it takes only one."""
    native_px: int
    """The side it was trained or is evaluated at."""
    vectors: tuple[str, ...] = ("cls", "mean")
    """Kinds of vector that a row has, the one that its publisher uses first."""
    embed_dim: int | None = None
    """Width of `embed`, where there is one."""
    channels: Literal[1, 3] = 3
    mean: Triple = IMAGENET_MEAN
    """Of red, green, blue in [0, 1]; for a grey input the first counts."""
    std: Triple = IMAGENET_STD
    filter: Literal["bicubic", "bilinear"] = "bicubic"
    """The resizing filter of its library's own transform."""
    crop_pct: float = 1.0
    """Part of the resized image that its library's own transform keeps; for `crop`."""
    window: Literal["full-range", "min-max"] = "full-range"
    rope_base: float | None = None
    params: int
    """Without a classifier."""
    classifier: tuple[str, ...] = ()
    """Modules of the library's model that its file has and features do without."""
    gflop_224: float | None = None
    """Of convolutional networks: 1e9 operations (a multiply-add is two) for 224 x 224 px."""
    licence: str
    """Of the weights."""
    gated: bool
    """Whether the publisher gives out its own file only after a form."""
    hub: tuple[HubFile, ...] = ()
    """Where the hub has the weights, the first choice first."""
    files: tuple[str, ...] = ()
    """The publisher's own files; eight hex digits in a name begin their sha256."""
    obtain: str
    """What to do to get them, as one sentence without a full stop."""
    untested: str = ""
    """Why no test builds this very row from a file in its published names."""

    def layer_shape(self, layer: int) -> tuple[int, int]:
        """Give (patch_px, dim) of a block's or stage's map, counted from 0."""
        return self.pyramid[layer] if self.pyramid else (self.patch_px, self.dim)

    @property
    def kinds(self) -> tuple[str, ...]:
        """What can be kept of a row, besides maps of earlier layers."""
        return (*self.vectors, "dense")


def takes(spec: EncoderSpec, resolution: tuple[int, int]) -> bool:
    """Tell whether an encoder can take an input of (height, width) px."""
    if spec.fixed_px is not None:
        return resolution == (spec.fixed_px, spec.fixed_px)
    return all(side > 0 and side % spec.step_px == 0 for side in resolution)


def check_resolution(spec: EncoderSpec, resolution: tuple[int, int]) -> None:
    """Refuse a size that the encoder cannot take.

    Args:
        spec: The encoder.
        resolution: (height, width), px.

    Raises:
        RequestError: If a side is no positive multiple of what it must be.
    """
    if takes(spec, resolution):
        return
    height, width = resolution
    what = f"{spec.name} cannot take {height}x{width} px (height x width)"
    if spec.fixed_px is not None:
        raise RequestError(f"{what}: it takes {spec.fixed_px}x{spec.fixed_px} only")
    step = spec.step_px
    below = [max(side // step, 1) * step for side in resolution]
    above = [max(-(-side // step), 1) * step for side in resolution]
    nearest = dict.fromkeys(f"{h}x{w}" for h, w in (below, above))
    raise RequestError(
        f"{what}: both sides must be positive multiples of {step} px. "
        f"Nearest that work: {' or '.join(nearest)}; its own size is {spec.native_px}"
    )


def dense_kinds(spec: EncoderSpec, layers: str) -> tuple[str, ...]:
    """Name the kinds that `--layers` asks for.

    Args:
        spec: The encoder.
        layers: `last`, `last4` and the like, or block (stage) numbers from 0 with commas.

    Returns:
        `dense` for the last layer, `dense.L05` for the sixth, in order of depth.

    Raises:
        RequestError: If it is none of these, or there is no such layer.
    """
    compact = ",".join(part.strip() for part in layers.split(","))
    match = _LAYERS.fullmatch(compact)
    if match is None:
        raise RequestError(
            f"--layers {layers!r}: give last, last4 (the last four), or numbers of "
            f"{_what_layers_are(spec)} from 0 with commas, as 5,{spec.depth - 1}"
        )
    if compact.startswith("last"):
        count = int(match[1] or 1)
        numbers = list(range(spec.depth - count, spec.depth)) if count else []
    else:
        numbers = sorted({int(part) for part in compact.split(",")})
    if not numbers or numbers[0] < 0 or numbers[-1] >= spec.depth:
        raise RequestError(f"--layers {layers!r}: {_layers_of(spec)}")
    return tuple("dense" if n == spec.depth - 1 else layer_kind(n) for n in numbers)


def _what_layers_are(spec: EncoderSpec) -> str:
    return "stages" if spec.pyramid else "blocks"


def _layers_of(spec: EncoderSpec) -> str:
    what = _what_layers_are(spec)
    return f"{spec.name} has {spec.depth} {what}, numbered 0 to {spec.depth - 1}"


def extracted_kinds(
    spec: EncoderSpec,
    asked: tuple[str, ...] | None,
    defaults: tuple[str, ...],
    layers: str | None,
    channels: tuple[str, ...] = (),
    views: tuple[str | None, ...] = (None,),
) -> tuple[str, ...]:
    """Settle which kinds an extraction is about.

    Args:
        spec: The encoder.
        asked: What a person said; None for nothing.
        defaults: What holds then: the store's or the dataset's. The vectors among the dataset's
            stand for all that the encoder has.
        layers: As for `dense_kinds`; replaces `dense`. None for nothing said.
        channels: Names of those that pass through the encoder one by one: a kind that names none
            stands for that kind of each.
        views: Of the image: a map that names none stands for that of each.

    Returns:
        Kinds, unordered.

    Raises:
        RequestError: If the encoder has none of what was asked for, or there is no such channel.
    """
    kinds = asked
    if kinds is None:
        vectors = spec.vectors or ("dense",)
        kinds = tuple(k for d in defaults for k in (vectors if d in VECTOR_KINDS else (d,)))
    if layers is not None:
        kinds = (*(k for k in kinds if k != "dense"), *dense_kinds(spec, layers))
    settled = [settled for kind in kinds for settled in _of_channels(spec, kind, channels)]
    viewed = [of_view for kind in settled for of_view in _of_views(kind, views)]
    return tuple(dict.fromkeys(viewed))


def _of_views(kind: str, views: tuple[str | None, ...]) -> list[str]:
    """Give a map a name for each view that it is of."""
    parsed = parse_kind(kind)
    if parsed is None or parsed.base in VECTOR_KINDS or parsed.view:
        return [kind]
    return [f"{kind}.{view}" if view else kind for view in views]


def _of_channels(spec: EncoderSpec, kind: str, channels: tuple[str, ...]) -> list[str]:
    """Check one kind that was asked for, and give it a name for each channel that it is of."""
    parsed = parse_kind(kind)
    if parsed is None:
        return [kind]
    if parsed.layer is not None and parsed.layer >= spec.depth:
        raise RequestError(f"--features {kind!r}: {_layers_of(spec)}")
    if parsed.base in VECTOR_KINDS and parsed.base not in spec.vectors:
        raise RequestError(f"{spec.name} has no {parsed.base!r}; it has {', '.join(spec.kinds)}")
    if parsed.channel is not None and parsed.channel not in channels:
        passes = f"they are {', '.join(channels)}" if channels else "no channel passes by itself"
        raise RequestError(f"--features {kind!r}: there is no channel {parsed.channel!r}; {passes}")
    base = "dense" if parsed.layer == spec.depth - 1 else parsed.base
    behind = f".{parsed.view}" if parsed.view else ""
    if parsed.channel is not None:
        return [f"{base}.{parsed.channel}{behind}"]
    return [f"{base}.{channel}{behind}" for channel in channels] or [f"{base}{behind}"]
