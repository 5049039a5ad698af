"""Each row of the table from a seeded file under its publisher's names, against another library."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import open_clip.model
import psutil
import pytest
import torch
import torchvision
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn

from dinocache.encoders import ENCODERS, encoder_spec
from dinocache.errors import WeightsError
from dinocache.inference import load_encoder
from dinocache.spec import EncoderSpec

Tensors = dict[str, Tensor]
Features = dict[str, Tensor]
Reference = Callable[[Tensor], Features]

_LARGE = 200_000_000
"""Parameters above which a file is written in bfloat16, for the time that it takes."""
_FEW = 3
"""Blocks that stand for all of a large model: they differ in nothing but their number."""


@pytest.fixture(autouse=True)
def digests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("DINOCACHE_CACHE", str(tmp_path / "digests"))
    yield
    for file in tmp_path.iterdir():  # gigabytes, which pytest would keep for three runs
        if file.is_file():
            file.unlink()


def need_memory(spec: EncoderSpec) -> None:
    """Skip the largest rows where two networks, a file and what is between them do not fit."""
    needed = 12 * spec.params
    if psutil.virtual_memory().available < needed and spec.params > _LARGE:
        pytest.skip(f"{spec.name} needs {needed / 1e9:.0f} GB of memory")


def seed(model: nn.Module, *, large: bool = False) -> nn.Module:
    """Give a model seeded values, all of which matter to the features."""
    noise = torch.randn(1 << 22, generator=torch.Generator().manual_seed(1))
    tensors: Tensors = {}
    for number, (key, empty) in enumerate(model.state_dict().items()):
        if not empty.is_floating_point():
            tensors[key] = torch.zeros(empty.shape, dtype=empty.dtype)
            continue
        start = number * 7919 % 1024
        values = noise[start : start + min(len(noise) - 1024, empty.numel())]
        values = values.repeat(-(-empty.numel() // max(1, len(values))))[: empty.numel()]
        values = values.reshape(empty.shape)
        if re.search(r"(lambda1|gamma|running_var)$|(norm|ln|bn)\w*\.weight$|\.1\.weight$", key):
            values = (1 + values / 4) if values.ndim == 1 else values
        elif values.ndim > 1 and "token" not in key and "pos" not in key and "query" not in key:
            values *= values[0].numel() ** -0.5
        else:
            values *= 0.1
        if key.endswith(("running_var", ".1.weight")):
            values = values.abs()
        tensors[key] = values.bfloat16().float() if large else values
    model.load_state_dict(tensors, strict=True, assign=True)
    return model.eval()


def on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return build()


def write(tensors: object, file: Path, *, large: bool = False) -> str:
    if large and isinstance(tensors, dict):
        tensors = {key: tensor.bfloat16() for key, tensor in tensors.items()}
    if file.suffix == ".safetensors":
        assert isinstance(tensors, dict)
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, file)
    else:
        torch.save(tensors, file)
    return str(file)


def renamed(tensors: Tensors, *renames: tuple[str, str]) -> Tensors:
    result = {}
    for key, tensor in tensors.items():
        for pattern, replacement in renames:
            key = re.sub(pattern, replacement, key)
        result[key] = tensor
    return result


def check(spec: EncoderSpec, file: str, reference: Reference, side: tuple[int, int]) -> None:
    """Hold every kind that a reference gives against ours, both in units of their spread."""
    encoder = load_encoder(spec, file)
    pixels = torch.randn(
        (2, spec.channels, *side), generator=torch.Generator().manual_seed(2), dtype=torch.float32
    )
    with torch.inference_mode():
        expected = reference(pixels)
    features = encoder(pixels, tuple(expected))
    assert set(spec.kinds) <= set(expected)
    for kind, values in expected.items():
        assert features[kind].shape == values.shape
        spread = float(values.std())
        assert spread > 1e-3, f"{kind}: a reference that says nothing"
        difference = float((features[kind] - values).abs().max()) / max(1.0, spread)
        assert difference <= 1e-4, f"{kind}: {difference}"


def token_features(tokens: Tensor, prefix: int, grid: tuple[int, int]) -> Features:
    patches = tokens[:, prefix:]
    return {
        "cls": tokens[:, 0],
        "mean": patches.mean(1),
        "dense": patches.unflatten(1, grid),
    }


# DINOv3 and EUPE


def dinov3_reference(spec: EncoderSpec, *, large: bool = False) -> nn.Module:
    """Build transformers' DINOv3 with the release's rounded RoPE periods, and EUPE's biases."""
    hidden = {384: 1536, 192: 768, 768: 3072, 1024: 4096, 1280: 5120, 4096: 8192, 48: 192}[spec.dim]
    heads = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 20, 4096: 32, 48: 3}[spec.dim]
    gated = "plus" in spec.name or "7b" in spec.name
    config = transformers.DINOv3ViTConfig(
        hidden_size=spec.dim,
        intermediate_size=hidden,
        num_hidden_layers=spec.depth,
        num_attention_heads=heads,
        num_register_tokens=4,
        use_gated_mlp=gated,
        hidden_act="silu" if gated else "gelu",  # as the published configurations say
    )
    model = seed(on_meta(lambda: transformers.DINOv3ViTModel(config)), large=large)
    if spec.family == "dinov3-vit":  # their biases are zero
        for key, parameter in model.named_parameters():
            if re.search(r"[qv]_proj\.bias$", key):
                parameter.data.zero_()
    quarter = spec.dim // heads // 4
    model.rope_embeddings.inv_freq = 1 / periods(quarter)
    return model


def periods(quarter: int) -> Tensor:
    """Compute what Meta's code computes, in its order of operations, and round it."""
    exponents = 2 * torch.arange(quarter, dtype=torch.float32) / (2 * quarter)
    return (100.0**exponents).bfloat16().float()


def transformers_names(model: nn.Module) -> Tensors:
    return {key.removeprefix("model."): value for key, value in model.state_dict().items()}


def meta_names(model: nn.Module, spec: EncoderSpec) -> Tensors:
    """Rename the way back, with all that Meta's files have besides."""
    theirs = transformers_names(model)
    heads = model.config.num_attention_heads
    tensors = {"rope_embed.periods": periods(spec.dim // heads // 4)}
    for key, tensor in theirs.items():
        block = f"blocks.{key.split('.')[1]}.attn.qkv"
        if ".q_proj.weight" in key:
            parts = [theirs[key.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            tensors[f"{block}.weight"] = torch.cat(parts)
            if spec.name not in ("dinov3-7b", "dinov3-7b-sat"):
                query, value = (
                    theirs[key.replace("q_proj.weight", f"{p}_proj.bias")] for p in "qv"
                )
                of_key = torch.full_like(query, 3.0)  # masked away
                tensors[f"{block}.bias"] = torch.cat([query, of_key, value])
                mask = torch.ones(3, spec.dim)
                mask[1] = 0
                tensors[f"{block}.bias_mask"] = mask.flatten()
        elif not re.search(r"[qkv]_proj", key):
            tensors[key] = tensor
    if model.config.use_gated_mlp:
        mlp = (("gate_proj", "w1"), ("up_proj", "w2"), ("down_proj", "w3"))
    else:
        mlp = (("up_proj", "fc1"), ("down_proj", "fc2"))
    named = renamed(
        tensors,
        (r"^embeddings\.register_tokens", "storage_tokens"),
        (r"^embeddings\.patch_embeddings", "patch_embed.proj"),
        (r"^embeddings\.", ""),
        (r"^layer\.", "blocks."),
        (r"attention\.o_proj", "attn.proj"),
        (r"layer_scale(\d)\.lambda1", r"ls\1.gamma"),
        *mlp,
    )
    if "7b" in spec.name or "sat" in spec.name:
        named |= {"local_cls_norm.weight": torch.ones(spec.dim)}
    return named


def is_large(spec: EncoderSpec) -> bool:
    """Say it of a row of the table, however few of its blocks are left."""
    return encoder_spec(spec.name).params > _LARGE


def with_blocks(spec: EncoderSpec, blocks: int) -> EncoderSpec:
    """Leave a network its width and some of its blocks."""
    params = spec.params * blocks // spec.depth
    arguments = {**spec.arguments, "depth": blocks}
    return dataclasses.replace(spec, depth=blocks, arguments=arguments, params=params)


def sizes(specs: Iterable[EncoderSpec]) -> list[Any]:
    """Test large models with a few of their blocks; whole ones are for the long tests."""
    given = []
    for spec in specs:
        if spec.untested:
            alike = (pytest.mark.long,)
            given.append(pytest.param(with_blocks(spec, 2), id=spec.name, marks=alike))
        elif is_large(spec):
            given.append(pytest.param(with_blocks(spec, _FEW), id=spec.name))
            given.append(pytest.param(spec, id=f"{spec.name}-whole", marks=pytest.mark.long))
        else:
            given.append(pytest.param(spec, id=spec.name))
    return given


DINOV3 = [s for s in ENCODERS if s.family == "dinov3-vit" and s.name not in ("tiny",)]


@pytest.mark.parametrize("writer", ["meta", "transformers"])
@pytest.mark.parametrize("spec", sizes(DINOV3))
def test_dinov3(spec: EncoderSpec, writer: str, tmp_path: Path) -> None:
    large = is_large(spec)
    need_memory(spec)
    model = dinov3_reference(spec, large=large)
    if writer == "meta":
        file = write(meta_names(model, spec), tmp_path / "w.pth", large=large)
    else:
        file = write(transformers_names(model), tmp_path / "model.safetensors", large=large)
    check(spec, file, lambda x: token_features(model(x).last_hidden_state, 5, (2, 3)), (32, 48))


EUPE = [s for s in ENCODERS if s.family == "eupe-vit"]


@pytest.mark.parametrize("spec", EUPE, ids=lambda s: s.name)
def test_eupe(spec: EncoderSpec, tmp_path: Path) -> None:
    model = dinov3_reference(spec)
    assert float(model.state_dict()["model.layer.0.attention.q_proj.bias"].abs().sum()) > 0
    tensors = meta_names(model, spec) | {"projectors.0.weight": torch.ones(3)}
    file = write(tensors, tmp_path / "eupe.pth")
    check(spec, file, lambda x: token_features(model(x).last_hidden_state, 5, (2, 3)), (32, 48))
    tensors["blocks.0.attn.qkv.bias_mask"] = torch.ones(3 * spec.dim)
    with pytest.raises(WeightsError, match=r"has a bias of k in blocks\.0\.attn\.qkv\.bias that"):
        load_encoder(spec, write(tensors, tmp_path / "odd.pth"))


CONVNEXT = [s for s in ENCODERS if s.family == "dinov3-convnext"]
_DEPTHS = {"tiny": [3, 3, 9, 3]}


@pytest.mark.parametrize("writer", ["meta", "transformers"])
@pytest.mark.parametrize(
    "spec",
    [
        pytest.param(s, id=s.name, marks=(pytest.mark.long,) if s.dim > 768 else ())
        for s in CONVNEXT
    ],
)
def test_convnext(spec: EncoderSpec, writer: str, tmp_path: Path) -> None:
    size = spec.name.split("-")[-1]
    config = transformers.DINOv3ConvNextConfig(
        hidden_sizes=[dim for _, dim in spec.pyramid], depths=_DEPTHS.get(size, [3, 3, 27, 3])
    )
    model = seed(on_meta(lambda: transformers.DINOv3ConvNextModel(config)))
    tensors = transformers_names(model)
    if writer == "meta":
        tensors = renamed(
            tensors,
            (r"^stages\.(\d)\.downsample_layers\.", r"downsample_layers.\1."),
            (r"^stages\.(\d)\.layers\.(\d+)\.", r"stages.\1.\2."),
            (r"^layer_norm", "norm"),
            ("depthwise_conv", "dwconv"),
            (r"layer_norm", "norm"),
            ("pointwise_conv", "pwconv"),
        )
        tensors |= {"norms.3.weight": tensors["norm.weight"], "norms.3.bias": tensors["norm.bias"]}
        file = write(tensors, tmp_path / "w.pth")
    else:
        file = write(tensors, tmp_path / "model.safetensors")

    def reference(pixels: Tensor) -> Features:
        out = model(pixels, output_hidden_states=True)
        earlier = out.hidden_states[1]  # behind the first stage
        assert earlier.shape[1] == spec.pyramid[0][1]
        features = token_features(out.last_hidden_state, 1, (2, 3))
        return features | {"dense.L00": earlier.permute(0, 2, 3, 1)}

    check(spec, file, reference, (64, 96))


# Plain transformers

DINOV2_LIKE = {
    "dinov2-s": (6, False, 0),
    "dinov2-b": (12, False, 0),
    "dinov2-l": (16, False, 0),
    "dinov2-g": (24, True, 0),
    "uni": (16, False, 0),
    "uni2-h": (24, True, 8),
}


def timm_names(model: nn.Module) -> Tensors:
    """Rename transformers' ViT and DINOv2 to timm's names, which most publishers use."""
    tensors = transformers_names(model)
    tensors.pop("embeddings.mask_token", None)
    for key in [k for k in tensors if ".q_proj." in k]:
        parts = [tensors.pop(key.replace("q_proj", f"{part}_proj")) for part in "qkv"]
        tensors[key.replace("attention.q_proj", "attn.qkv")] = torch.cat(parts)
    for key in [k for k in tensors if ".gate_proj." in k]:
        both = torch.cat([tensors.pop(key), tensors.pop(key.replace("gate_proj", "up_proj"))])
        tensors[key.replace("gate_proj", "fc1")] = both
    return renamed(
        tensors,
        (r"^embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
        (r"^embeddings\.position_embeddings", "pos_embed"),
        (r"^embeddings\.register_tokens", "reg_token"),
        (r"^embeddings\.", ""),
        (r"^(encoder\.layer|layers)\.", "blocks."),
        (r"attention\.o_proj", "attn.proj"),
        (r"layer_scale(\d)\.lambda1", r"ls\1.gamma"),
        (r"mlp\.down_proj", "mlp.fc2"),
        (r"layernorm_before", "norm1"),
        (r"layernorm_after", "norm2"),
        (r"^layernorm\.", "norm."),
    )


@pytest.mark.parametrize("spec", sizes(encoder_spec(name) for name in DINOV2_LIKE))
def test_dinov2_and_uni(spec: EncoderSpec, tmp_path: Path) -> None:
    heads, swiglu, registers = DINOV2_LIKE[spec.name]
    # At the grid that the file has; how others are interpolated is said in docs/encoders.md.
    side = 2 * spec.patch_px
    native = spec.native_px if spec.name == "dinov2-s" else side
    config = transformers.Dinov2WithRegistersConfig(
        hidden_size=spec.dim,
        num_hidden_layers=spec.depth,
        num_attention_heads=heads,
        image_size=native,
        patch_size=spec.patch_px,
        use_swiglu_ffn=swiglu,
        num_register_tokens=registers,
    )
    large = is_large(spec)
    need_memory(spec)
    model = seed(on_meta(lambda: transformers.Dinov2WithRegistersModel(config)), large=large)
    if registers:  # its class token has no position
        model.embeddings.position_embeddings.data[:, 0] = 0
    tensors = timm_names(model)
    if registers:
        tensors["pos_embed"] = tensors["pos_embed"][:, 1:].contiguous()
    else:
        tensors.pop("reg_token")
    if spec.name == "dinov2-g":
        tensors = renamed(tensors, (r"mlp\.fc1", "mlp.w12"), (r"mlp\.fc2", "mlp.w3"))
    small = dataclasses.replace(spec, arguments={**spec.arguments, "img_size": native})
    file = write(tensors, tmp_path / "pytorch_model.bin", large=large)
    del tensors  # gigabytes, for the largest
    grid = (native // spec.patch_px,) * 2

    def reference(pixels: Tensor) -> Features:
        return token_features(model(pixels).last_hidden_state, 1 + registers, grid)

    check(small, file, reference, (native, native))


def vit_reference(spec: EncoderSpec) -> nn.Module:
    config = transformers.ViTConfig(
        hidden_size=spec.dim,
        intermediate_size=4 * spec.dim,
        num_hidden_layers=spec.depth,
        num_attention_heads=spec.dim // 64,
        image_size=spec.native_px,
        layer_norm_eps=1e-6,
    )
    build = lambda: transformers.ViTModel(config, add_pooling_layer=False)  # noqa: E731
    return seed(on_meta(build), large=is_large(spec))


@pytest.mark.parametrize("spec", sizes(map(encoder_spec, ("mae-b", "mae-l", "mocov3-b"))))
def test_plain_vit(spec: EncoderSpec, tmp_path: Path) -> None:
    model = vit_reference(spec)
    tensors = timm_names(model)
    large = is_large(spec)
    if spec.name == "mocov3-b":
        others = {f"module.predictor.{n}.weight": torch.ones(3) for n in range(2)}
        others |= {f"module.base_encoder.{key}": value for key, value in tensors.items()}
        others |= {f"module.momentum_encoder.{key}": value * 2 for key, value in tensors.items()}
        others["module.base_encoder.head.0.weight"] = torch.ones(5)
        file = write({"epoch": 300, "state_dict": others}, tmp_path / spec.files[0])
    else:
        tensors |= {"mask_token": torch.ones(1, 1, 7), "decoder_embed.weight": torch.ones(2, 3)}
        if large:
            tensors = {key: value.bfloat16() for key, value in tensors.items()}
        file = write({"model": tensors}, tmp_path / spec.files[0])
    check(
        spec,
        file,
        lambda x: token_features(model(x).last_hidden_state, 1, (14, 14)),
        (224, 224),
    )


@pytest.mark.long
def test_biomedclip(tmp_path: Path) -> None:
    """Against open_clip's own tower, as the model's configuration on the hub describes it."""
    spec = encoder_spec("biomedclip")
    configuration = {
        "timm_model_name": "vit_base_patch16_224",
        "timm_model_pretrained": False,
        "timm_pool": "",
        "timm_proj": "linear",
        "image_size": 224,
    }
    tower = seed(open_clip.model._build_vision_tower(512, configuration))
    tensors = {f"visual.{key}": value for key, value in tower.state_dict().items()}
    tensors |= {"logit_scale": torch.ones(()), "text.proj.0.weight": torch.ones(2, 3)}
    file = write(tensors, tmp_path / spec.files[0])

    def reference(pixels: Tensor) -> Features:
        tokens = tower.trunk.forward_features(pixels)
        return token_features(tokens, 1, (14, 14)) | {"embed": tower(pixels)}

    check(spec, file, reference, (224, 224))


@pytest.mark.long
def test_conch(tmp_path: Path) -> None:
    """Against transformers' trunk and torch's own attention, put together as CONCH does."""
    spec = encoder_spec("conch")
    model = vit_reference(spec)
    attention = seed(nn.MultiheadAttention(512, 8, kdim=768, vdim=768, batch_first=True))
    norms = {"ln_q": 512, "ln_k": 768, "ln_contrast": 512}
    layers = {name: seed(nn.LayerNorm(dim)) for name, dim in norms.items()}
    query = torch.randn(1, 512, generator=torch.Generator().manual_seed(4))
    pool = "visual.attn_pool_contrast"
    tensors = {f"visual.trunk.{key}": value for key, value in timm_names(model).items()}
    tensors |= {f"{pool}.attn.{key}": value for key, value in attention.state_dict().items()}
    tensors[f"{pool}.query"] = query
    for name, layer in layers.items():
        place = "visual.ln_contrast" if name == "ln_contrast" else f"{pool}.{name}"
        tensors |= {f"{place}.{key}": value for key, value in layer.state_dict().items()}
    tensors |= {
        "visual.proj_contrast": torch.ones(512, 512),
        "visual.ln_caption.weight": torch.ones(768),
        "visual.attn_pool_caption.query": torch.ones(256, 768),
        "text.cls_emb": torch.ones(768),
        "logit_scale": torch.ones(()),
    }
    file = write(tensors, tmp_path / spec.files[0])

    def reference(pixels: Tensor) -> Features:
        tokens = model(pixels).last_hidden_state
        context = layers["ln_k"](tokens)
        queries = layers["ln_q"](query).expand(len(pixels), 1, 512)
        pooled = attention(queries, context, context, need_weights=False)[0]
        embed = layers["ln_contrast"](pooled[:, 0])
        return token_features(tokens, 1, (28, 28)) | {"embed": embed}

    check(spec, file, reference, (448, 448))


# ResNets


def pad_same(layer: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    """Pad as TensorFlow's and JAX's SAME: so that sides / stride come out, the odd pixel behind."""
    pads = []
    for axis in (1, 0):
        side = inputs[0].shape[2 + axis]
        kernel = (
            layer.kernel_size if isinstance(layer.kernel_size, int) else layer.kernel_size[axis]
        )
        stride = layer.stride if isinstance(layer.stride, int) else layer.stride[axis]
        total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
        pads += [total // 2, total - total // 2]
    return (nn.functional.pad(inputs[0], pads),)


def resnet_reference(name: str) -> nn.Module:
    model = seed(torchvision.models.resnet50())
    kinds: tuple[type[nn.Module], ...] = ()
    if name in ("simclr", "byol"):
        kinds = (nn.MaxPool2d,) if name == "simclr" else (nn.MaxPool2d, nn.Conv2d)
    for module in model.modules():
        if isinstance(module, kinds):
            module.padding = 0 if isinstance(module, nn.MaxPool2d) else (0, 0)
            module.register_forward_pre_hook(pad_same)
    return model


def resnet_file(name: str, tensors: Tensors) -> object:
    """Wrap the tensors as that publisher does."""
    backbone = {key: value for key, value in tensors.items() if not key.startswith("fc.")}
    match name:
        case "swav":
            heads = {"module.projection_head.0.weight": torch.ones(3, 2)}
            heads["module.prototypes.weight"] = torch.ones(4, 2)
            return {f"module.{key}": value for key, value in backbone.items()} | heads
        case "simclr":
            return {"state_dict": tensors}
        case "simclr-vissl":
            trunk = {f"_feature_blocks.{key}": value for key, value in backbone.items()}
            model = {"trunk": trunk, "heads": {"0.clf.0.weight": torch.ones(2, 3)}}
            return {"classy_state_dict": {"base_model": {"model": model}}, "iteration": 7}
        case "byol":
            return {k: v for k, v in tensors.items() if "num_batches_tracked" not in k}
    return tensors


@pytest.mark.parametrize(
    "name", ["resnet50", "resnet50-trunc", "swav", "simclr", "simclr-vissl", "byol"]
)
def test_resnet(name: str, tmp_path: Path) -> None:
    spec = encoder_spec(name)
    model = resnet_reference(name)
    file = write(resnet_file(name, dict(model.state_dict())), tmp_path / "w.pth.tar")

    def reference(pixels: Tensor) -> Features:
        x = model.maxpool(model.relu(model.bn1(model.conv1(pixels))))
        first = x = model.layer1(x)
        for stage in (model.layer2, model.layer3, model.layer4)[: spec.depth - 2]:
            x = stage(x)
        return {
            "mean": x.mean((2, 3)),
            "dense": x.permute(0, 2, 3, 1),
            "dense.L01": first.permute(0, 2, 3, 1),
        }

    check(spec, file, reference, (64, 96))


# Anatomix, which only its own repository implements: a plain reading of its sequence


def anatomix_layers() -> list[str]:
    """Write down the sequence of the repository: c convolution, n norm and ReLU, p pool, u up."""
    down = ["cn", *["cncnp"] * 4, "cncn"]
    return list("".join([*down, *["ucncn"] * 4, "c"]))


@pytest.mark.long
def test_anatomix(tmp_path: Path) -> None:
    widths = [16, 16, 16, 32, 32, 64, 64, 128, 128, 256, 256, 128, 128, 64, 64, 32, 32, 16, 16, 16]
    inputs = [1, 16, 16, 16, 32, 32, 64, 64, 128, 128, 256, 384, 128, 192, 64, 96, 32, 48, 16, 16]
    generator = torch.Generator().manual_seed(3)
    tensors: Tensors = {}
    position, number = 0, 0
    steps: list[tuple[str, int]] = []
    for step in anatomix_layers():
        steps.append((step, position))
        if step == "c":
            shape = (widths[number], inputs[number], 3, 3, 3)
            values = torch.randn(shape, generator=generator) * (27 * inputs[number] / 2) ** -0.5
            tensors[f"model.{position}.weight"] = values
            number += 1
        elif step == "n":
            width = widths[number - 1]
            for key, value in (("weight", 1.0), ("bias", 0.1), ("running_mean", 0.05)):
                tensors[f"model.{position}.{key}"] = torch.full((width,), value)
            tensors[f"model.{position}.running_var"] = torch.linspace(0.5, 1.5, width)
            tensors[f"model.{position}.num_batches_tracked"] = torch.tensor(9)
            position += 1  # the ReLU
        position += 1
    assert position == 66
    assert number == len(widths)

    def network(volume: Tensor) -> Tensor:
        skips: list[Tensor] = []
        for step, place in steps:
            name = f"model.{place}"
            if step == "c":
                padded = nn.functional.pad(volume, (1,) * 6, mode="reflect")
                volume = nn.functional.conv3d(padded, tensors[f"{name}.weight"])
            elif step == "n":
                of = [tensors[f"{name}.{k}"] for k in ("running_mean", "running_var")]
                scale = [tensors[f"{name}.{k}"] for k in ("weight", "bias")]
                volume = nn.functional.batch_norm(volume, *of, *scale).relu()
            elif step == "p":
                skips.append(volume)
                volume = nn.functional.max_pool3d(volume, 2)
            else:
                volume = nn.functional.interpolate(volume, scale_factor=2, mode="nearest")
                volume = torch.cat((skips.pop(), volume), dim=1)
        return volume

    def reference(pixels: Tensor) -> Features:
        """Two slices in a window of 128 voxels: zeros around them, as MONAI pads."""
        pads = (40, 40, 48, 48, 63, 63)
        features = network(nn.functional.pad(pixels.permute(1, 0, 2, 3)[None], pads))
        return {"dense": features[0, :, 63:65, 48:80, 40:88].permute(1, 2, 3, 0)}

    spec = encoder_spec("anatomix")
    file = write({f"_orig_mod.{k}": v for k, v in tensors.items()}, tmp_path / "anatomix.pth")
    check(spec, file, reference, (32, 48))


def test_every_row_that_is_not_marked_untested_is_tested_here() -> None:
    names = {s.name for s in (*DINOV3, *EUPE, *CONVNEXT)} | set(DINOV2_LIKE)
    names |= {"mae-b", "mae-l", "mocov3-b", "biomedclip", "conch", "anatomix"}
    names |= {"resnet50", "resnet50-trunc", "swav", "simclr", "simclr-vissl", "byol"}
    assert names == {s.name for s in ENCODERS} - {"tiny"}
    assert {s.name for s in ENCODERS if s.untested} == {"dinov3-7b", "dinov3-7b-sat"}
