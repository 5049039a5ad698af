"""Networks behind the table of encoders, each with the same call: pixels and kinds in, features.

timm and open_clip build what they know. The wrappers here only name what comes out: the class
token, the mean over patches, the publisher's own embedding, and maps of any layer, all of one pass.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from dinocache.errors import RequestError
from dinocache.layout import layer_number
from dinocache.spec import EncoderSpec

__all__ = ["Network", "Wanted", "build_network", "wanted"]

Wanted = tuple[tuple[str, int | None], ...]
"""Kinds, each with its layer, None for the last: told apart before torch compiles what follows."""


def wanted(kinds: Sequence[str]) -> Wanted:
    """Tell of which layer each kind is."""
    return tuple((kind, layer_number(kind)) for kind in kinds)


class Network(nn.Module):
    """A frozen network: `network(pixels, wanted(kinds))` gives a tensor for each kind.

    Attributes:
        trunk: What the library built.
        embed: What makes the publisher's embedding, or None.
    """

    def __init__(self, trunk: nn.Module, embed: nn.Module | None = None) -> None:
        super().__init__()
        self.trunk = trunk
        self.embed = embed

    def forward(self, pixels: Tensor, kinds: Wanted) -> dict[str, Tensor]:
        """Encode.

        Args:
            pixels: (batch, channels, height, width), normalised.
            kinds: Which features, see `wanted`.

        Returns:
            Kind -> (batch, dim) or (batch, rows, columns, dim), float32.
        """
        raise NotImplementedError


class TokenNetwork(Network):
    """A vision transformer of timm's; the last norm is applied to the map of every layer."""

    def __init__(
        self, trunk: nn.Module, *, prefix_tokens: int, patch_px: int, embed: nn.Module | None = None
    ) -> None:
        super().__init__(trunk, embed)
        self._prefix = prefix_tokens
        self._patch = patch_px

    def forward(self, pixels: Tensor, kinds: Wanted) -> dict[str, Tensor]:
        """See `Network`."""
        trunk: Any = self.trunk
        layers = _earlier(kinds)
        if layers:
            tokens, maps = trunk.forward_intermediates(
                pixels, indices=layers, norm=True, output_fmt="NLC"
            )
        else:
            tokens, maps = trunk.forward_features(pixels), []
        patches = tokens[:, self._prefix :].float()
        grid = (pixels.shape[2] // self._patch, pixels.shape[3] // self._patch)
        by_layer = dict(zip(layers, maps, strict=True))
        given = {}
        for kind, layer in kinds:
            if kind == "cls":
                given[kind] = tokens[:, 0].float()
            elif kind == "mean":
                given[kind] = patches.mean(1)
            elif kind == "embed" and self.embed is not None:
                given[kind] = self.embed(tokens).float()
            elif kind == "dense":
                given[kind] = patches.unflatten(1, grid)
            elif layer is not None:
                given[kind] = by_layer[layer].float().unflatten(1, grid)
        return given


class MapNetwork(Network):
    """A convolutional network of timm's, or a transformer that gives maps.

    DINOv3 applies ConvNeXt's norm before the classifier to each position of the last map, and to
    the mean over positions, which it calls the class token.
    """

    def __init__(
        self,
        trunk: nn.Module,
        *,
        normed: bool = False,
        rows_first: bool = False,
        embed: nn.Module | None = None,
    ) -> None:
        super().__init__(trunk, embed)
        self._normed = normed
        self._rows_first = rows_first

    def forward(self, pixels: Tensor, kinds: Wanted) -> dict[str, Tensor]:
        """See `Network`."""
        trunk: Any = self.trunk
        layers = _earlier(kinds)
        if layers:
            last, maps = trunk.forward_intermediates(pixels, indices=layers)
        else:
            last, maps = trunk.forward_features(pixels), []
        by_layer = dict(zip(layers, maps, strict=True))
        features = trunk.head.norm(last) if self._normed else last
        dense = (features if self._rows_first else features.permute(0, 2, 3, 1)).float()
        given = {}
        for kind, layer in kinds:
            if kind == "cls":
                given[kind] = trunk.head.norm(last.mean((2, 3), keepdim=True)).float()[..., 0, 0]
            elif kind == "mean":
                given[kind] = dense.mean((1, 2))
            elif kind == "embed" and self.embed is not None:
                given[kind] = self.embed(last).float()
            elif kind == "dense":
                given[kind] = dense
            elif layer is not None:
                given[kind] = by_layer[layer].float().permute(0, 2, 3, 1)
        return given


class VolumeNetwork(Network):
    """A 3D network over the rows of one item: rows are slices, and each slice gets a map."""

    def forward(self, pixels: Tensor, kinds: Wanted) -> dict[str, Tensor]:
        """See `Network`; the batch is one volume, its rows from first to last."""
        from dinocache.unet3d import slide

        features = slide(self.trunk, pixels.permute(1, 0, 2, 3)[None])
        return {"dense": features[0].permute(1, 2, 3, 0)}


class ClipNetwork(Network):
    """A tower under open_clip's common call."""

    def __init__(self, trunk: nn.Module, *, depth: int, has_cls: bool) -> None:
        super().__init__(trunk)
        self._last = depth - 1
        # CoCa's last norm is of what it pools, not of its tokens.
        self._options = {"normalize_intermediates": getattr(trunk, "attn_pool", None) is None}
        if has_cls:
            self._options["output_extra_tokens"] = True

    def forward(self, pixels: Tensor, kinds: Wanted) -> dict[str, Tensor]:
        """See `Network`."""
        trunk: Any = self.trunk
        layers = [*_earlier(kinds), self._last]
        found = trunk.forward_intermediates(pixels, indices=layers, **self._options)
        maps = dict(zip(layers, found["image_intermediates"], strict=True))
        given = {}
        for kind, layer in kinds:
            if kind == "cls":
                given[kind] = found["image_intermediates_prefix"][-1][:, 0].float()
            elif kind == "mean":
                given[kind] = maps[self._last].float().mean((2, 3))
            elif kind == "embed":
                given[kind] = found["image_features"].float()
            else:
                at = self._last if layer is None else layer
                given[kind] = maps[at].float().permute(0, 2, 3, 1)
        return given


def _earlier(kinds: Wanted) -> list[int]:
    """List the layers before the last of which maps are wanted, ascending."""
    return sorted({layer for _, layer in kinds if layer is not None})


class _AttentionPool(nn.Module):
    """CONCH's contrastive pooling: one learned query over all tokens, then a norm.

    References:
        mahmoodlab/CONCH, `vision_tower.py`, `forward_no_head`: what `encode_image` gives with
        `proj_contrast=False, normalize=False`, as the publisher tells for features.
    """

    def __init__(self, tokens_dim: int, dim: int) -> None:
        super().__init__()
        from open_clip.transformer import AttentionalPooler

        self.pool = AttentionalPooler(dim, tokens_dim, n_head=8, n_queries=1)
        self.norm = nn.LayerNorm(dim)

    def forward(self, tokens: Tensor) -> Tensor:
        pooled: Tensor = self.norm(self.pool(tokens)[:, 0])
        return pooled


class _Projection(nn.Linear):
    """BiomedCLIP's projection of the class token into the space shared with text."""

    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens[:, 0])


def build_network(spec: EncoderSpec) -> Network:
    """Build the network of a row of the table, with random weights of torch's generators.

    Args:
        spec: Which.

    Returns:
        It, in evaluation mode.

    Raises:
        RequestError: If the library that builds it is not installed.
    """
    builders: Mapping[str, Callable[[EncoderSpec], Network]] = {
        "tokens": _token_network,
        "maps": _map_network,
        "volume": _volume_network,
        "open-clip": _clip_network,
    }
    return builders[spec.network](spec).eval()


def _timm_model(spec: EncoderSpec) -> Any:  # noqa: ANN401 - timm has no types
    try:
        import timm
    except ModuleNotFoundError as exc:
        raise RequestError(
            "encoders need timm, which is not installed: install dinocache[extract]"
        ) from exc
    except RuntimeError as exc:  # torchvision beside a torch that it was not built for
        raise RequestError(
            f"timm cannot be imported ({' '.join(str(exc).split())}): install torch and "
            "torchvision as a pair; `dinocache doctor` says what is there"
        ) from exc
    arguments: dict[str, Any] = dict(spec.arguments)
    if "mlp_layer" in arguments:
        arguments["mlp_layer"] = getattr(timm.layers, str(arguments["mlp_layer"]))
    return timm.create_model(spec.library_name, pretrained=False, num_classes=0, **arguments)


def _token_network(spec: EncoderSpec) -> Network:
    embed: nn.Module | None = None
    if spec.family == "conch":
        embed = _AttentionPool(spec.dim, spec.embed_dim or 0)
    elif spec.family == "biomedclip":
        embed = _Projection(spec.dim, spec.embed_dim or 0, bias=False)
    trunk = _timm_model(spec)
    if spec.family == "timm":
        embed = _Head(trunk)
    return TokenNetwork(
        trunk, prefix_tokens=spec.prefix_tokens, patch_px=spec.patch_px, embed=embed
    )


class _Head(nn.Module):
    """timm's own pooling: what its model gives without a classifier. Owns nothing."""

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self._pool: Callable[..., Tensor] = trunk.forward_head  # type: ignore[assignment]

    def forward(self, features: Tensor) -> Tensor:
        return self._pool(features, pre_logits=True)


def _map_network(spec: EncoderSpec) -> Network:
    trunk = _timm_model(spec)
    if spec.family == "resnet":
        for stage in range(spec.depth, 5):
            setattr(trunk, f"layer{stage}", nn.Identity())
    if spec.same_padding:
        _pad_same(trunk, spec.same_padding)
    embed = _Head(trunk) if spec.family == "timm" else None
    rows_first = getattr(trunk, "output_fmt", "NCHW") == "NHWC"
    normed = spec.family == "dinov3-convnext"
    return MapNetwork(trunk, normed=normed, rows_first=rows_first, embed=embed)


def _pad_same(trunk: nn.Module, parts: Sequence[str]) -> None:
    """Replace strided layers by timm's with SAME padding; no parameter changes its name."""
    from timm.layers.conv2d_same import Conv2dSame
    from timm.layers.pool2d_same import MaxPool2dSame

    for path, layer in list(trunk.named_modules()):
        other: nn.Module | None = None
        if "pool" in parts and isinstance(layer, nn.MaxPool2d):
            other = MaxPool2dSame(layer.kernel_size, layer.stride)
        elif (
            "convolution" in parts
            and isinstance(layer, nn.Conv2d)
            and layer.stride != (1, 1)
            and layer.kernel_size != (1, 1)
        ):
            other = Conv2dSame(
                layer.in_channels,
                layer.out_channels,
                layer.kernel_size,  # type: ignore[arg-type] # timm says int | tuple[int, int]
                stride=layer.stride,  # type: ignore[arg-type]
                bias=layer.bias is not None,
            )
            other.weight = layer.weight
        if other is not None:
            trunk.set_submodule(path, other)


def _volume_network(spec: EncoderSpec) -> Network:
    from dinocache.unet3d import UNet3d

    return VolumeNetwork(UNet3d(outputs=spec.dim))


def _clip_network(spec: EncoderSpec) -> Network:
    from dinocache.libraries import open_clip_tower

    tower = open_clip_tower(spec.library_name)
    return ClipNetwork(tower, depth=spec.depth, has_cls=spec.prefix_tokens > 0)
