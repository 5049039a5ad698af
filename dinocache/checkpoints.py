"""Files of weights: which names their publishers gave the tensors, and what our networks call them.

Nothing in such a file is executed. A family is a table of renames, so that every publisher's file
of it arrives under one set of names.

References:
    DINOv3, EUPE: facebookresearch/dinov3 6876159, `dinov3/models/vision_transformer.py`,
    `models/convnext.py`, `layers/attention.py`; huggingface/transformers, `models/dinov3_vit/` and
    `models/dinov3_convnext/` (5.x adds `model.`; published files have the names without it);
    `timm/models/eva.py` (whose own conversion prints to stdout). MoCo-v3: facebookresearch/moco-v3,
    `convert_to_deit.py`. SwAV: facebookresearch/swav, `hubconf.py`. VISSL: facebookresearch/vissl,
    `extra_scripts/convert_vissl_to_torchvision.py`. BYOL: chigur/byol-convert, `convert.py`.
    SimCLR: tonylins/simclr-converter, `convert.py`. CONCH: mahmoodlab/CONCH, `vision_tower.py`.
    Anatomix: neel-dey/anatomix a29b8a8, `anatomix/model/load_from_hf.py`.
"""

import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dinocache.errors import WeightsError
from dinocache.weights import OTHER_FILE, Weights

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["FAMILIES", "Checkpoint", "Family", "read_checkpoint"]

Tensors = dict[str, "Tensor"]
Renames = tuple[tuple[re.Pattern[str], str], ...]

# What a training loop wraps around the table of tensors, from the outside in.
_WRAPPERS = (
    "classy_state_dict",
    "base_model",
    "model_state_dict",
    "model",
    "trunk",
    "teacher",
    "state_dict",
)
# What data-parallel and compiled models write before every name.
_HARNESS = re.compile(r"^(?:_orig_mod\.|module\.)+")
_COUNTERS = re.compile(r"(?:.*\.)?num_batches_tracked")


@dataclass(frozen=True, kw_only=True)
class Family:
    """Checkpoint formats of one sort of network."""

    formats: tuple[str, ...]
    """What is accepted, for people."""
    prefixes: tuple[str, ...] = ()
    """The first of them that any name begins with is taken away; other names are left out."""
    unused: re.Pattern[str] = re.compile(r"(?!)")
    """Used in training only."""
    renames: Renames = ()
    revise: Callable[[Tensors, str], None] | None = None
    """What no rename can do; takes the tensors, which it changes, and the file's name."""
    marks: frozenset[str] = frozenset()
    """Names without which a file is no such network at all."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a file of weights holds."""

    tensors: Tensors
    """Parameters and buffers under our networks' names, float32, finite, in memory of their own."""
    periods: "Tensor | None"
    """RoPE periods, (head_dim / 4,) float32, where the file has them (Meta's do)."""

    @property
    def dim(self) -> int | None:
        """Width of a token, where it is a transformer."""
        token = self.tensors.get("trunk.cls_token")
        return None if token is None else token.numel()

    @property
    def depth(self) -> int:
        """Number of a transformer's blocks."""
        blocks = {n.split(".")[2] for n in self.tensors if n.startswith("trunk.blocks.")}
        return len(blocks)


def read_checkpoint(weights: Weights, family: str, *, classifier: Sequence[str] = ()) -> Checkpoint:
    """Read weights in any format of a family.

    Args:
        weights: Of a file: `.safetensors`, or one of torch's, of which only tensors are taken.
        family: As in `FAMILIES`.
        classifier: Modules that are left out besides.

    Returns:
        Its tensors, half precision widened to float32.

    Raises:
        ValueError: If the weights are random.
        WeightsError: If it is damaged or of another family, or if a value is not finite.
    """
    if weights.path is None:
        raise ValueError(f"{weights.name} are in no file")
    name, known = weights.name, FAMILIES[family]
    loaded = _named_tensors(_load(weights.path, name), name)
    loaded = {_HARNESS.sub("", key): tensor for key, tensor in loaded.items()}
    periods = loaded.pop("rope_embed.periods", None)
    tensors = {
        _renamed(key, known.renames): tensor
        for key, tensor in _without_prefix(loaded, known.prefixes).items()
        if not known.unused.fullmatch(key)
        and not _COUNTERS.fullmatch(key)
        and not key.startswith(tuple(f"{module}." for module in classifier))
    }
    if not known.marks <= tensors.keys():
        raise WeightsError(
            f"{name} holds none of: {'; '.join(known.formats)}. Its first tensors are "
            f"{', '.join(sorted(loaded)[:3])}. {OTHER_FILE}"
        )
    if known.revise is not None:
        known.revise(tensors, name)
    return Checkpoint(
        tensors={
            key if key.startswith(("trunk.", "embed.")) else f"trunk.{key}": _finite_float32(
                value, key, name
            )
            for key, value in tensors.items()
        },
        periods=None if periods is None else _finite_float32(periods, "rope_embed.periods", name),
    )


# Reading a file


def _load(file: Path, name: str) -> object:
    reader = _load_safetensors if file.suffix.lower() == ".safetensors" else _load_pickle
    try:
        return reader(file)
    except pickle.UnpicklingError as exc:
        raise WeightsError(
            f"{name} is refused: it is no file of weights, or holds Python objects besides "
            f"tensors, which are never executed. {OTHER_FILE}"
        ) from exc
    except Exception as exc:  # what bytes that are no weights lead to is not to be foreseen
        raise WeightsError(
            f"{name} cannot be read as weights ({type(exc).__name__}): it is cut short or "
            f"damaged. {OTHER_FILE}"
        ) from exc


def _load_safetensors(file: Path) -> object:
    import safetensors.torch

    return safetensors.torch.load_file(file)


def _load_pickle(file: Path) -> object:
    import torch

    with warnings.catch_warnings():
        # It warns of a foreign pickle protocol just before it refuses the file.
        warnings.simplefilter("ignore")
        # Files from before torch 1.6 are no zip and cannot be mapped.
        return torch.load(
            file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file)
        )


def _named_tensors(loaded: object, name: str) -> Tensors:
    import torch

    while isinstance(loaded, dict):
        inner = next((loaded[w] for w in _WRAPPERS if isinstance(loaded.get(w), dict)), None)
        if inner is None:
            break
        loaded = inner
    tensors = loaded if isinstance(loaded, dict) else {}
    if not tensors or not all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in tensors.items()
    ):
        raise WeightsError(
            f"{name} holds no table of named tensors, neither at its top nor under "
            f"{', '.join(_WRAPPERS)}. {OTHER_FILE}"
        )
    return dict(tensors)


def _without_prefix(tensors: Tensors, prefixes: tuple[str, ...]) -> Tensors:
    for prefix in prefixes:
        within = {
            key.removeprefix(prefix): tensor
            for key, tensor in tensors.items()
            if key.startswith(prefix)
        }
        if within:
            return within
    return tensors


def _renamed(key: str, renames: Renames) -> str:
    for pattern, replacement in renames:
        key = pattern.sub(replacement, key)
    return key


def _finite_float32(tensor: "Tensor", key: str, name: str) -> "Tensor":
    """Copy out of the mapped file, so that nothing done to it later reaches the model."""
    import torch

    if not tensor.is_floating_point():  # indices that a model keeps as a buffer
        return tensor.detach().clone().contiguous()
    wide = tensor.detach().to(torch.float32, copy=True).contiguous()
    if not torch.isfinite(wide).all():
        raise WeightsError(f"{name} holds values in {key} that are not finite. {OTHER_FILE}")
    return wide


# DINOv3's transformers

_QKV_BIAS = re.compile(r".*\.attn\.(qkv\.bias|[qkv]_proj\.bias|[qkv]_bias)")


def _revise_dinov3(tensors: Tensors, name: str) -> None:
    """Drop the biases of q, k and v, which are zero in every released file, and join the three."""
    for key in [key for key in tensors if _QKV_BIAS.fullmatch(key)]:
        if (_effective_bias(tensors, key) != 0).any():
            raise WeightsError(
                f"{name} has a {key} that is not zero, as it is in every released DINOv3 file: "
                f"these weights need another model. {OTHER_FILE}"
            )
    _fuse_qkv(tensors)
    _name_gates(tensors)


def _revise_eupe(tensors: Tensors, name: str) -> None:
    """Keep the biases of q and v as timm names them; that of k is masked to zero in the release."""
    for key in [key for key in tensors if key.endswith(".attn.qkv.bias")]:
        bias = _effective_bias(tensors, key)
        query, of_key, value = bias.chunk(3)
        if (of_key != 0).any():
            raise WeightsError(
                f"{name} has a bias of k in {key} that is not zero: these weights need another "
                f"model. {OTHER_FILE}"
            )
        block = key.removesuffix("qkv.bias")
        tensors[f"{block}q_bias"], tensors[f"{block}v_bias"] = query, value


def _effective_bias(tensors: Tensors, key: str) -> "Tensor":
    """Take a bias out, times the mask beside it, as Meta's layer adds it.

    The mask is NaN until a model is initialised, and a NaN is refused like any other odd value.
    """
    bias = tensors.pop(key)
    mask = tensors.pop(f"{key}_mask", None)
    return bias if mask is None else bias * mask


def _fuse_qkv(tensors: Tensors) -> None:
    """Join what transformers keeps as three matrices; an incomplete block is left as it is."""
    import torch

    for query in [key for key in tensors if key.endswith(".attn.q_proj.weight")]:
        keys = [query.replace("q_proj", part) for part in ("q_proj", "k_proj", "v_proj")]
        if all(key in tensors for key in keys):
            fused = torch.cat([tensors.pop(key) for key in keys])
            tensors[query.replace("q_proj", "qkv")] = fused


def _name_gates(tensors: Tensors) -> None:
    """Tell the first matrix of a gated MLP, which transformers calls as it does an ungated one."""
    for gate in [key for key in tensors if ".mlp.fc1_g." in key]:
        plain = gate.replace("fc1_g", "fc1")
        if plain in tensors:
            tensors[gate.replace("fc1_g", "fc1_x")] = tensors.pop(plain)


# No two publishers use one name for different things, so one table serves all three.
_DINOV3_RENAMES = (
    # Meta
    (re.compile(r"^storage_tokens$"), "reg_token"),
    (re.compile(r"\.ls([12])\.gamma$"), r".gamma_\1"),
    (re.compile(r"\.mlp\.w1\."), ".mlp.fc1_g."),
    (re.compile(r"\.mlp\.w2\."), ".mlp.fc1_x."),
    (re.compile(r"\.mlp\.w3\."), ".mlp.fc2."),
    # transformers
    (re.compile(r"^embeddings\.cls_token$"), "cls_token"),
    (re.compile(r"^embeddings\.register_tokens$"), "reg_token"),
    (re.compile(r"^embeddings\.patch_embeddings\."), "patch_embed.proj."),
    (re.compile(r"^(?:model\.)?layer\.(\d+)\."), r"blocks.\1."),
    (re.compile(r"\.attention\.o_proj\."), ".attn.proj."),
    (re.compile(r"\.attention\."), ".attn."),
    (re.compile(r"\.layer_scale([12])\.lambda1$"), r".gamma_\1"),
    (re.compile(r"\.mlp\.gate_proj\."), ".mlp.fc1_g."),
    (re.compile(r"\.mlp\.up_proj\."), ".mlp.fc1."),
    (re.compile(r"\.mlp\.down_proj\."), ".mlp.fc2."),
)
_DINOV3_MARKS = frozenset({"cls_token", "reg_token", "patch_embed.proj.weight"})

_CONVNEXT_RENAMES = (
    # Meta
    (re.compile(r"^downsample_layers\.0\."), "stem."),
    (re.compile(r"^downsample_layers\.(\d)\."), r"stages.\1.downsample."),
    (re.compile(r"^stages\.(\d)\.(\d+)\."), r"stages.\1.blocks.\2."),
    (re.compile(r"\.dwconv\."), ".conv_dw."),
    (re.compile(r"\.pwconv([12])\."), r".mlp.fc\1."),
    (re.compile(r"^norm\."), "head.norm."),
    # transformers
    (re.compile(r"^model\."), ""),
    (re.compile(r"^stages\.0\.downsample_layers\."), "stem."),
    (re.compile(r"^stages\.(\d)\.downsample_layers\."), r"stages.\1.downsample."),
    (re.compile(r"^stages\.(\d)\.layers\."), r"stages.\1.blocks."),
    (re.compile(r"\.depthwise_conv\."), ".conv_dw."),
    (re.compile(r"\.layer_norm\."), ".norm."),
    (re.compile(r"\.pointwise_conv([12])\."), r".mlp.fc\1."),
    (re.compile(r"^layer_norm\."), "head.norm."),
)

_VIT_RENAMES = (
    # Meta's DINOv2-giant
    (re.compile(r"\.mlp\.w12\."), ".mlp.fc1."),
    (re.compile(r"\.mlp\.w3\."), ".mlp.fc2."),
)

FAMILIES: Mapping[str, Family] = {
    "dinov3-vit": Family(
        formats=(
            "Meta's DINOv3 .pth",
            "transformers' model.safetensors (facebook/dinov3-*)",
            "timm's model.safetensors (timm/vit_*_dinov3*)",
        ),
        # For masked patches, and for the cls token of small crops.
        unused=re.compile(r"(embeddings\.)?mask_token|local_cls_norm\..*"),
        renames=_DINOV3_RENAMES,
        revise=_revise_dinov3,
        marks=_DINOV3_MARKS,
    ),
    "eupe-vit": Family(
        formats=("Meta's EUPE .pth", "timm's model.safetensors (timm/vit_*_qkvb.eupe_lvd1689m)"),
        unused=re.compile(r"mask_token|local_cls_norm\..*|projectors\..*"),
        renames=_DINOV3_RENAMES,
        revise=_revise_eupe,
        marks=_DINOV3_MARKS,
    ),
    "dinov3-convnext": Family(
        formats=(
            "Meta's DINOv3 or EUPE ConvNeXt .pth",
            "transformers' model.safetensors (facebook/dinov3-convnext-*)",
            "timm's model.safetensors (timm/convnext_*)",
        ),
        # `norms.3` is `norm` once more.
        unused=re.compile(r"norms\..*|projectors\..*|mask_token"),
        renames=_CONVNEXT_RENAMES,
        marks=frozenset({"stem.0.weight", "head.norm.weight"}),
    ),
    "vit": Family(
        formats=(
            "a vision transformer under timm's names (.pth, pytorch_model.bin, model.safetensors), "
            "with MAE's decoder or a classifier or without",
            "Meta's DINOv2 .pth",
            "MoCo-v3's .pth.tar, of which the base encoder is taken",
        ),
        prefixes=("base_encoder.",),
        unused=re.compile(r"head\..*|mask_token|decoder_.*"),
        renames=_VIT_RENAMES,
        marks=frozenset({"cls_token", "pos_embed", "patch_embed.proj.weight"}),
    ),
    "conch": Family(
        formats=("CONCH's pytorch_model.bin",),
        prefixes=("visual.",),
        # What the publisher's features leave out, and what captions are made from.
        unused=re.compile(r"proj_contrast|(attn_pool|ln)_caption\..*"),
        renames=(
            (re.compile(r"^attn_pool_contrast\."), "embed.pool."),
            (re.compile(r"^ln_contrast\."), "embed.norm."),
        ),
        marks=frozenset({"trunk.cls_token", "embed.pool.query"}),
    ),
    "biomedclip": Family(
        formats=("open_clip's open_clip_pytorch_model.bin",),
        prefixes=("visual.",),
        renames=((re.compile(r"^head\.proj\."), "embed."),),
        marks=frozenset({"trunk.cls_token", "embed.weight"}),
    ),
    "resnet": Family(
        formats=(
            "torchvision's resnet50-*.pth",
            "timm's model.safetensors (timm/resnet50.tv_in1k)",
            "SwAV's .pth.tar",
            "VISSL's .torch, whole or converted to torchvision's names",
            "what simclr-converter and byol-convert write",
        ),
        prefixes=("_feature_blocks.",),
        unused=re.compile(r"(fc|projection_head|prototypes)\..*"),
        marks=frozenset({"conv1.weight", "layer1.0.conv1.weight"}),
    ),
    "anatomix": Family(
        formats=("anatomix.pth of neel-dey/anatomix",),
        marks=frozenset({"model.0.weight"}),
    ),
    "timm": Family(
        formats=("the library's own model.safetensors",),
    ),
    "open_clip": Family(
        formats=("open_clip's open_clip_model.safetensors or open_clip_pytorch_model.bin",),
        prefixes=("visual.",),
    ),
}
"""By the name that a row of the table of encoders gives."""
