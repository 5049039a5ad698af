"""Frozen encoders: a table of facts, and one way to load and call them.

A new model of the same architecture is a new row of `ENCODERS`. torch and timm are imported only
when an encoder is loaded.

References:
    Siméoni et al., DINOv3, arXiv:2508.10104. Code read beside timm's: facebookresearch/dinov3
    6876159, `dinov3/hub/backbones.py` (sizes, file names) and `README.md` (mean and std).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from dinocache.errors import RequestError, WeightsError
from dinocache.weights import (
    Checkpoint,
    Weights,
    read_checkpoint,
    resolve_weights,
    tensors_sha256,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

__all__ = [
    "ENCODERS",
    "Encoder",
    "EncoderSpec",
    "Precision",
    "Rope",
    "RopeSource",
    "Tokens",
    "check_resolution",
    "encoder_spec",
    "load_encoder",
]

Rope = Literal["auto", "float32"]
RopeSource = Literal["checkpoint", "bfloat16", "float32"]
Precision = Literal["fp32", "bf16"]

_META = "facebookresearch/dinov3 6876159, dinov3/hub/backbones.py; README.md"


@dataclass(frozen=True, kw_only=True)
class EncoderSpec:
    """Facts of one encoder."""

    name: str
    dim: int
    """Width of a token."""
    depth: int
    """Number of blocks."""
    heads: int
    patch_px: int = 16
    prefix_tokens: int = 5
    """cls and four registers, before the patches."""
    rope_base: float = 100.0
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Of red, green, blue in [0, 1]."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    licence: str
    """Of the weights."""
    gated: bool
    """Whether the publisher gives out its own file only after a form."""
    source: str
    """What states the facts of this row."""
    timm_name: str
    hub_id: str | None
    """Hugging Face id of the weights in timm's format; None where none are published."""
    published_file: str | None
    """The publisher's own file, with the head of its sha256."""


ENCODERS = (
    EncoderSpec(
        name="dinov3-s",
        dim=384,
        depth=12,
        heads=6,
        licence="dinov3-license",
        gated=True,
        source=_META,
        timm_name="vit_small_patch16_dinov3",
        hub_id="timm/vit_small_patch16_dinov3.lvd1689m",
        published_file="dinov3_vits16_pretrain_lvd1689m-08c60483.pth",
    ),
    EncoderSpec(
        name="dinov3-b",
        dim=768,
        depth=12,
        heads=12,
        licence="dinov3-license",
        gated=True,
        source=_META,
        timm_name="vit_base_patch16_dinov3",
        hub_id="timm/vit_base_patch16_dinov3.lvd1689m",
        published_file="dinov3_vitb16_pretrain_lvd1689m-73cec8be.pth",
    ),
    EncoderSpec(
        name="dinov3-l",
        dim=1024,
        depth=24,
        heads=16,
        licence="dinov3-license",
        gated=True,
        source=_META,
        timm_name="vit_large_patch16_dinov3",
        hub_id="timm/vit_large_patch16_dinov3.lvd1689m",
        published_file="dinov3_vitl16_pretrain_lvd1689m-8aa4cbdd.pth",
    ),
    EncoderSpec(
        name="tiny",
        dim=48,
        depth=2,
        heads=3,
        licence="none: random weights, for tests",
        gated=False,
        source="dinov3-s, made small",
        timm_name="vit_small_patch16_dinov3",
        hub_id=None,
        published_file=None,
    ),
)
"""All that is known, in the order in which it is listed to people."""


def encoder_spec(name: str) -> EncoderSpec:
    """Look up an encoder.

    Args:
        name: As in `ENCODERS`.

    Returns:
        Its facts.

    Raises:
        RequestError: If there is none of that name.
    """
    for spec in ENCODERS:
        if spec.name == name:
            return spec
    known = ", ".join(spec.name for spec in ENCODERS)
    raise RequestError(f"there is no encoder {name!r}; known are {known}")


def check_resolution(spec: EncoderSpec, resolution: tuple[int, int]) -> None:
    """Refuse a size that the encoder cannot cut into whole patches.

    Args:
        spec: The encoder.
        resolution: (height, width), px.

    Raises:
        RequestError: If a side is no positive multiple of the patch.
    """
    patch = spec.patch_px
    if all(side > 0 and side % patch == 0 for side in resolution):
        return
    below = [max(side // patch, 1) * patch for side in resolution]
    above = [max(-(-side // patch), 1) * patch for side in resolution]
    nearest = dict.fromkeys(f"{height}x{width}" for height, width in (below, above))
    height, width = resolution
    raise RequestError(
        f"{spec.name} cannot take {height}x{width} px (height x width): both sides must be "
        f"positive multiples of its {patch} px patch. Nearest that work: {' or '.join(nearest)}"
    )


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """What an encoder makes of a batch: its last block's output after the final norm.

    The mean that is stored as a feature is that over the patches, registers left out.
    """

    cls: "Tensor"
    """(batch, dim) float32."""
    patches: "Tensor"
    """(batch, rows, columns, dim) float32, one token a patch, from the top left."""


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """A frozen model on a device; call it with pixels."""

    spec: EncoderSpec
    weights: Weights
    rope: RopeSource
    """Where the RoPE periods come from: the checkpoint, or computed here and rounded or not."""
    device: "torch.device"
    precision: Precision
    model: "nn.Module"

    def __call__(self, pixels: "Tensor") -> Tokens:
        """Encode a batch.

        Args:
            pixels: (batch, 3, height, width) float32, normalised by the spec's mean and std; on any
                device.

        Returns:
            Tokens on the encoder's device.

        Raises:
            RequestError: If the pixels have another shape or dtype, or a side is no multiple of the
                patch.
        """
        import torch

        if pixels.ndim != 4 or pixels.shape[1] != 3 or pixels.dtype != torch.float32:
            raise RequestError(
                "pixels must be (batch, 3, height, width) float32, "
                f"not {tuple(pixels.shape)} {pixels.dtype}"
            )
        height, width = pixels.shape[2:]
        check_resolution(self.spec, (height, width))
        with (
            torch.inference_mode(),
            torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"),
            # On by default, it would round the pixels to 11 bits in the patch embedding of "fp32".
            torch.backends.cudnn.flags(enabled=True, allow_tf32=False),
        ):
            tokens = self.model.forward_features(pixels.to(self.device)).float()  # type: ignore[operator]
        patches = tokens[:, self.spec.prefix_tokens :]
        grid = (height // self.spec.patch_px, width // self.spec.patch_px)
        return Tokens(cls=tokens[:, 0], patches=patches.unflatten(1, grid))


def load_encoder(
    spec: EncoderSpec,
    weights: str,
    *,
    rope: Rope = "auto",
    device: "torch.device | str" = "cpu",
    precision: Precision = "fp32",
) -> Encoder:
    """Load an encoder with its weights, frozen and ready to be called.

    Args:
        spec: Which encoder.
        weights: `hub`, a path, `random[:SEED]`, or several with commas between them; see
            `dinocache.weights.resolve_weights`.
        rope: `auto` takes the RoPE periods from the checkpoint, or computes them and rounds them to
            bfloat16, as the original release has them; `float32` computes and does not round.
        device: Where it runs.
        precision: `fp32`, or `bf16` for autocast. Weights and RoPE periods are float32 in both.

    Returns:
        The encoder.

    Raises:
        RequestError: If `weights`, `rope` or `precision` cannot be understood, or timm is missing.
        WeightsUnavailableError: If the weights cannot be had here and now.
        WeightsError: If they do not fit the encoder, or are damaged.
    """
    import torch

    if rope not in get_args(Rope) or precision not in get_args(Precision):
        raise RequestError(
            f"rope must be one of {', '.join(get_args(Rope))} and precision one of "
            f"{', '.join(get_args(Precision))}, not {rope!r} and {precision!r}"
        )
    found = resolve_weights(weights, hub_id=spec.hub_id, published_file=spec.published_file)
    stored_periods = None
    if isinstance(found, int):
        model = _random_model(spec, found)
        digest = tensors_sha256(model.state_dict())
        found = Weights(name=f"random:{found}", sha256=digest, path=None)
    else:
        checkpoint = read_checkpoint(found)
        model = _model_with(spec, checkpoint, found.name)
        stored_periods = checkpoint.periods
    periods, rope_source = _rope_periods(spec, rope, stored_periods)
    # In place of timm's own float32 ones. Every forward pass computes its angles from this buffer;
    # timm would compute it anew only if the model were cast to half precision, which none is here.
    model.rope.register_buffer("periods", periods, persistent=False)  # type: ignore[union-attr]
    target = torch.device(device)
    model = model.to(target).eval().requires_grad_(False)
    return Encoder(
        spec=spec,
        weights=found,
        rope=rope_source,
        device=target,
        precision=precision,
        model=model,
    )


def _build(spec: EncoderSpec) -> "nn.Module":
    """Build timm's model; all that the table says is passed, so that the table is the truth."""
    try:
        import timm
    except ModuleNotFoundError as exc:
        raise RequestError(
            "encoders need timm, which is not installed: install dinocache[extract]"
        ) from exc
    model: nn.Module = timm.create_model(
        spec.timm_name,
        pretrained=False,
        num_classes=0,
        embed_dim=spec.dim,
        depth=spec.depth,
        num_heads=spec.heads,
        patch_size=spec.patch_px,
        num_reg_tokens=spec.prefix_tokens - 1,
        rope_temperature=spec.rope_base,
        # LayerScale of random weights. With the release's starting value, 1e-5, the blocks would do
        # nothing, and cls would be the same for every image.
        init_values=1.0,
        use_naflex=False,  # or an environment variable would choose another implementation
    )
    return model


def _random_model(spec: EncoderSpec, seed: int) -> "nn.Module":
    import torch

    # Only the CPU's generator is seeded: torch.manual_seed would also touch those of the devices.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        return _build(spec)


def _model_with(spec: EncoderSpec, checkpoint: Checkpoint, name: str) -> "nn.Module":
    """Build a model around a checkpoint's tensors, or say what the checkpoint is instead."""
    import torch

    with torch.device("meta"):  # initial values, which take seconds, would be overwritten
        model = _build(spec)
    _check_fit(spec, checkpoint, name, model)
    model.load_state_dict(checkpoint.tensors, strict=True, assign=True)
    return model


def _check_fit(spec: EncoderSpec, checkpoint: Checkpoint, name: str, model: "nn.Module") -> None:
    wanted = {key: value.shape for key, value in model.state_dict().items()}
    found = {key: value.shape for key, value in checkpoint.tensors.items()}
    if checkpoint.periods is not None:
        wanted["rope_embed.periods"] = model.rope.periods.shape  # type: ignore[union-attr]
        found["rope_embed.periods"] = checkpoint.periods.shape
    if found == wanted:
        return
    misfit = f"{name} does not fit {spec.name} ({spec.dim} wide, {spec.depth} blocks)"
    size = (checkpoint.dim, checkpoint.depth)
    if size != (spec.dim, spec.depth):
        alike = [other.name for other in ENCODERS if (other.dim, other.depth) == size]
        looks = f"looks like {alike[0]}" if alike else "not a known encoder"
        way_out = f"Ask for {alike[0]}, or pass" if alike else "Pass"
        raise WeightsError(
            f"{misfit}: it is {size[0]} wide, {size[1]} blocks: {looks}. {way_out} other --weights"
        )
    odd = sorted(key for key in found | wanted if found.get(key) != wanted.get(key))
    raise WeightsError(
        f"{misfit}: it is as wide and as deep, but {len(odd)} of its tensors are missing, "
        f"unknown or of another shape, first {', '.join(odd[:3])}. Pass other --weights"
    )


def _rope_periods(
    spec: EncoderSpec, rope: Rope, stored: "Tensor | None"
) -> "tuple[Tensor, RopeSource]":
    """Choose the RoPE periods, (head_dim / 4,) float32.

    The original release carries its periods rounded to bfloat16; timm and transformers compute them
    in float32, which moves features by up to 3e-3.

    References:
        facebookresearch/dinov3 6876159, `dinov3/layers/rope_position_encoding.py`.
    """
    import torch

    if rope == "auto" and stored is not None:
        return stored, "checkpoint"
    quarter = spec.dim // spec.heads // 4
    periods = spec.rope_base ** (torch.arange(quarter, dtype=torch.float32) / quarter)
    if rope == "float32":
        return periods, "float32"
    return periods.bfloat16().float(), "bfloat16"
