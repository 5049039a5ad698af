"""An encoder with its weights on a device: pixels in, features out."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from dinocache.checkpoints import Checkpoint, read_checkpoint
from dinocache.encoders import ENCODERS
from dinocache.errors import RequestError, WeightsError, one_line
from dinocache.networks import Network, build_network, wanted
from dinocache.spec import EncoderSpec, check_resolution
from dinocache.weights import Weights, resolve_weights, tensors_sha256

__all__ = ["Encoder", "Precision", "Rope", "RopeSource", "load_encoder"]

Rope = Literal["auto", "float32"]
RopeSource = Literal["checkpoint", "bfloat16", "float32"]
Precision = Literal["fp32", "bf16"]

_DRAWING = threading.Lock()
_MATRICES = (nn.Linear, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """A frozen network on a device; call it with pixels and kinds."""

    spec: EncoderSpec
    weights: Weights
    rope: RopeSource | None
    """Where the RoPE periods come from: the checkpoint, or computed here and rounded or not; None
    where the network has none."""
    device: torch.device
    precision: Precision
    network: Network
    compiled: bool = False
    """Whether torch compiles the network for each shape of batch: keep that shape."""

    @cached_property
    def _call(self) -> Callable[..., dict[str, Tensor]]:
        return torch.compile(self.network, dynamic=False) if self.compiled else self.network

    @property
    def channels_last(self) -> bool:
        """Whether convolutions run on (batch, height, width, channels) in memory."""
        return self.spec.network == "maps"

    def __call__(
        self, pixels: Tensor, kinds: Sequence[str] = ("cls", "dense")
    ) -> dict[str, Tensor]:
        """Encode a batch, or the slices of one volume.

        Args:
            pixels: (batch, channels, height, width) float32, normalised by the spec's mean and std;
                on any device.
            kinds: Which features: `cls`, `mean` (over the patches, registers left out), `embed`,
                `dense`, `dense.L05`.

        Returns:
            Kind -> (batch, dim) or (batch, rows, columns, dim) float32 on the encoder's device.
            `cls`, `mean` and `dense` are of the last layer, behind its final norm; so are maps of
            earlier layers of a transformer.

        Raises:
            RequestError: If the pixels have another shape or dtype, or a side that does not fit.
        """
        channels = self.spec.channels
        if pixels.ndim != 4 or pixels.shape[1] != channels or pixels.dtype != torch.float32:
            raise RequestError(
                f"pixels must be (batch, {channels}, height, width) float32, "
                f"not {tuple(pixels.shape)} {pixels.dtype}"
            )
        height, width = pixels.shape[2:]
        check_resolution(self.spec, (height, width))
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        with (
            torch.inference_mode(),
            torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"),
            # On by default, it would round the pixels to 11 bits in the patch embedding of "fp32".
            torch.backends.cudnn.flags(enabled=True, allow_tf32=False),
        ):
            moved = pixels.to(self.device).contiguous(memory_format=layout)
            try:
                features = self._call(moved, wanted(kinds))
            except RuntimeError as exc:
                if (reason := self._reason(exc, len(pixels), (height, width))) is None:
                    raise
                raise RequestError(reason) from exc
        return features

    def _reason(self, exc: RuntimeError, rows: int, resolution: tuple[int, int]) -> str | None:
        """Say what a person can do about an error of torch's; None where that is not known."""
        height, width = resolution
        # The CPU's allocator raises a plain RuntimeError.
        if isinstance(exc, torch.OutOfMemoryError) or "can't allocate memory" in str(exc):
            return (
                f"{self.device} has too little memory for {rows} rows of {height}x{width} px a "
                f"pass of {self.spec.name}: make the store with a smaller --batch, as "
                f"{max(1, rows // 4)}"
            )
        if isinstance(exc, torch._dynamo.exc.TorchDynamoException):
            return (
                f"torch cannot compile {self.spec.name} here ({one_line(exc)}): make the store "
                "with --no-compile"
            )
        return None


def load_encoder(
    spec: EncoderSpec,
    weights: str,
    *,
    rope: Rope = "auto",
    device: torch.device | str = "cpu",
    precision: Precision = "fp32",
    compiled: bool = False,
) -> Encoder:
    """Load an encoder with its weights, frozen and ready to be called.

    Args:
        spec: Which encoder.
        weights: `hub`, a path, `random[:SEED]`, or several with commas between them; see
            `dinocache.weights.resolve_weights`.
        rope: `auto` takes the RoPE periods from the checkpoint, or computes them and rounds them to
            bfloat16, as the original release has them; `float32` computes and does not round.
        device: Where it runs.
        precision: `fp32`, or `bf16`: matrix products in bfloat16 (their weights are kept so), all
            else in float32, as torch's autocast has it.
        compiled: Whether torch compiles the network.

    Returns:
        The encoder.

    Raises:
        RequestError: If `weights`, `rope` or `precision` cannot be understood, or a library is
            missing, or the encoder cannot be compiled.
        WeightsUnavailableError: If the weights cannot be had here and now.
        WeightsError: If they do not fit the encoder, or are damaged.
    """
    if rope not in get_args(Rope) or precision not in get_args(Precision):
        raise RequestError(
            f"rope must be one of {', '.join(get_args(Rope))} and precision one of "
            f"{', '.join(get_args(Precision))}, not {rope!r} and {precision!r}"
        )
    if compiled and spec.network == "volume":
        raise RequestError(f"{spec.name} takes items of any depth: leave out --compile")
    found = resolve_weights(weights, spec)
    stored_periods = None
    if isinstance(found, int):
        network = _random_network(spec, found)
        digest = tensors_sha256(network.state_dict())
        found = Weights(name=f"random:{found}", sha256=digest, path=None)
    else:
        checkpoint = read_checkpoint(found, spec.family, classifier=spec.classifier)
        network = _network_with(spec, checkpoint, found.name)
        stored_periods = checkpoint.periods
    rope_source = _set_rope_periods(spec, network, rope, stored_periods)
    target = torch.device(device)
    return Encoder(
        spec=spec,
        weights=found,
        rope=rope_source,
        device=target,
        precision=precision,
        network=_placed(network, spec, target, precision),
        compiled=compiled,
    )


def _placed(
    network: Network, spec: EncoderSpec, device: torch.device, precision: Precision
) -> Network:
    """Freeze a network and move it, its tensors in the types and the order that are fastest."""
    if precision == "bf16":
        for module in network.modules():
            if isinstance(module, _MATRICES):
                module.to(torch.bfloat16)
    network = network.to(device).eval().requires_grad_(False)
    return network.to(memory_format=torch.channels_last) if spec.network == "maps" else network


def _random_network(spec: EncoderSpec, seed: int) -> Network:
    # Only the CPU's generator is seeded: torch.manual_seed would also touch those of the devices.
    # It is one for all threads.
    with _DRAWING, torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        return build_network(spec)


def _network_with(spec: EncoderSpec, checkpoint: Checkpoint, name: str) -> Network:
    """Build a network around a checkpoint's tensors, or say what the checkpoint is instead."""
    if spec.family in ("timm", "open_clip"):
        network = _random_network(spec, 0)  # buffers that only its constructor can fill
    else:
        with torch.device("meta"):  # initial values, which take seconds, would be overwritten
            network = build_network(spec)
    _check_fit(spec, checkpoint, name, network)
    network.load_state_dict(checkpoint.tensors, strict=False, assign=True)
    for path, module in network.named_modules():
        for key, buffer in module.named_buffers(recurse=False):
            if buffer.is_meta and key in _ZERO:
                zeros = torch.zeros_like(buffer, device="cpu")
                module.register_buffer(key, zeros, persistent=key == _COUNTER)
            elif buffer.is_meta and key != "periods":  # those are set right after this
                raise AssertionError(f"{spec.name}: nothing fills the buffer {path}.{key}")
    return network


_COUNTER = "num_batches_tracked"
_ZERO = (_COUNTER, "k_bias")


def _check_fit(spec: EncoderSpec, checkpoint: Checkpoint, name: str, network: nn.Module) -> None:
    wanted = {
        key: value.shape
        for key, value in network.state_dict().items()
        if not key.endswith(_COUNTER)
    }
    found = {key: value.shape for key, value in checkpoint.tensors.items()}
    if checkpoint.periods is not None:
        periods = getattr(getattr(network.trunk, "rope", None), "periods", torch.empty(0))
        wanted["rope_embed.periods"] = periods.shape
        found["rope_embed.periods"] = checkpoint.periods.shape
    if found == wanted:
        return
    misfit = f"{name} does not fit {spec.name} ({spec.dim} wide, {spec.depth} layers)"
    size = (checkpoint.dim, checkpoint.depth)
    if size[0] is not None and size != (spec.dim, spec.depth):
        alike = [
            other.name
            for other in ENCODERS
            if (other.dim, other.depth) == size and other.family == spec.family
        ]
        looks = f"looks like {alike[0]}" if alike else "not a known encoder"
        way_out = f"Ask for {alike[0]}, or pass" if alike else "Pass"
        raise WeightsError(
            f"{misfit}: it is {size[0]} wide, {size[1]} layers: {looks}. {way_out} other --weights"
        )
    odd = sorted(key for key in found | wanted if found.get(key) != wanted.get(key))
    raise WeightsError(
        f"{misfit}: {len(odd)} of its tensors are missing, unknown or of another shape, first "
        f"{', '.join(key.removeprefix('trunk.') for key in odd[:3])}. Pass other --weights"
    )


def _set_rope_periods(
    spec: EncoderSpec, network: Network, rope: Rope, stored: Tensor | None
) -> RopeSource | None:
    """Put RoPE periods, (head_dim / 4,) float32, in place of those that timm computed.

    The original release carries its periods rounded to bfloat16; timm and transformers compute them
    in float32, which moves features by up to 3e-3. Every forward pass computes its angles from this
    buffer; timm would compute it anew only if the model were cast to half precision, which none is.

    References:
        facebookresearch/dinov3 6876159, `dinov3/layers/rope_position_encoding.py`.
    """
    if spec.rope_base is None:
        return None
    source: RopeSource = "checkpoint"
    embedding = network.trunk.rope
    if rope == "auto" and stored is not None:
        periods = stored
    else:
        quarter = embedding.periods.numel()  # type: ignore[union-attr, operator]
        periods = spec.rope_base ** (torch.arange(quarter, dtype=torch.float32) / quarter)
        source = "float32"
        if rope == "auto":
            periods, source = periods.bfloat16().float(), "bfloat16"
    embedding.register_buffer("periods", periods, persistent=False)  # type: ignore[union-attr]
    return source
