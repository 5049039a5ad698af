"""Frozen encoders: a table of facts. A new model is a new row, not a class.

Nothing heavy is imported here. `dinocache.networks` builds what a row says, `dinocache.checkpoints`
knows the names in which its publisher wrote the weights, `dinocache.inference` puts both together.

References:
    DINOv3: Siméoni et al., arXiv:2508.10104; facebookresearch/dinov3 6876159,
    `dinov3/hub/backbones.py` (sizes, file names with the head of their sha256) and `README.md`
    (mean and std). EUPE: facebookresearch/EUPE, `hubconf.py`. DINOv2: Oquab et al.,
    arXiv:2304.07193. UNI, UNI2-h: mahmoodlab/UNI, `README.md` and `uni/get_encoder`. CONCH:
    mahmoodlab/CONCH, `conch/open_clip_custom`. BiomedCLIP: Zhang et al., arXiv:2303.00915. MAE: He
    et al., arXiv:2111.06377. MoCo-v3: facebookresearch/moco-v3, `vits.py`. SwAV:
    facebookresearch/swav, `hubconf.py`. SimCLR: google-research/simclr, `resnet.py`, and
    facebookresearch/vissl, `MODEL_ZOO.md`. BYOL: google-deepmind/deepmind-research, `byol/`.
    Anatomix: Dey et al., arXiv:2411.02372; neel-dey/anatomix a29b8a8. Truncated ResNet50:
    mahmoodlab/UNI, `resnet50_trunc.py` (after CLAM). Everything that timm knows of them:
    `timm.get_pretrained_cfg`.
"""

import difflib
from functools import partial

from dinocache.errors import RequestError
from dinocache.spec import IMAGENET_MEAN, IMAGENET_STD, EncoderSpec, HubFile

__all__ = ["ENCODERS", "encoder_spec"]

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def _dinov3(
    name: str,
    *,
    library_name: str,
    dim: int,
    depth: int,
    params: int,
    code: str,
    digest: str,
    data: str = "lvd1689m",
    untested: str = "",
) -> EncoderSpec:
    sat = data == "sat493m"
    hub_name = code.replace("_", "-")
    return EncoderSpec(
        name=name,
        network="tokens",
        family="dinov3-vit",
        library_name=library_name,
        # LayerScale of random weights. With the release's starting value, 1e-5, the blocks would
        # do nothing, and cls would be the same for every image.
        arguments={"init_values": 1.0, "use_naflex": False},
        dim=dim,
        depth=depth,
        patch_px=16,
        prefix_tokens=5,
        step_px=16,
        native_px=256,
        mean=(0.430, 0.411, 0.296) if sat else IMAGENET_MEAN,
        std=(0.213, 0.156, 0.143) if sat else IMAGENET_STD,
        rope_base=100.0,
        params=params,
        licence="dinov3-license",
        gated=True,
        hub=(
            HubFile(f"timm/{library_name}.{data}"),
            HubFile(f"facebook/{hub_name}-pretrain-{data}"),
        ),
        files=(f"{code}_pretrain_{data}-{digest}.pth",),
        obtain="Ask Meta for access at ai.meta.com/resources/models-and-libraries/dinov3-downloads "
        f"or at huggingface.co/facebook/{hub_name}-pretrain-{data}",
        untested=untested,
    )


_CONVNEXT_DIMS = {
    "tiny": (96, 192, 384, 768),
    "small": (96, 192, 384, 768),
    "base": (128, 256, 512, 1024),
    "large": (192, 384, 768, 1536),
}
_CONVNEXT_PARAMS = {
    "tiny": (27_820_128, 8.91),
    "small": (49_454_688, 17.366),
    "base": (87_566_464, 30.707),
    "large": (196_230_336, 68.72),
}


def _convnext(
    name: str,
    size: str,
    *,
    tag: str,
    native_px: int,
    licence: str,
    gated: bool,
    files: str,
    obtain: str,
) -> EncoderSpec:
    dims = _CONVNEXT_DIMS[size]
    params, gflop_224 = _CONVNEXT_PARAMS[size]
    facebook = f"facebook/dinov3-convnext-{size}-pretrain-lvd1689m"
    return EncoderSpec(
        name=name,
        network="maps",
        family="dinov3-convnext",
        library_name=f"convnext_{size}",
        arguments={"ls_init_value": 1.0},  # as for the transformers
        dim=dims[-1],
        depth=4,
        patch_px=32,
        pyramid=tuple(zip((4, 8, 16, 32), dims, strict=True)),
        step_px=32,
        native_px=native_px,
        params=params,
        gflop_224=gflop_224,
        licence=licence,
        gated=gated,
        hub=(
            HubFile(f"timm/convnext_{size}.{tag}"),
            *((HubFile(facebook),) if tag.startswith("dinov3") else ()),
        ),
        files=(files,),
        obtain=obtain,
    )


def _dinov3_convnext(size: str, digest: str) -> EncoderSpec:
    return _convnext(
        f"dinov3-convnext-{size}",
        size,
        tag="dinov3_lvd1689m",
        native_px=224,
        licence="dinov3-license",
        gated=True,
        files=f"dinov3_convnext_{size}_pretrain_lvd1689m-{digest}.pth",
        obtain="Ask Meta for access at ai.meta.com/resources/models-and-libraries/dinov3-downloads "
        f"or at huggingface.co/facebook/dinov3-convnext-{size}-pretrain-lvd1689m",
    )


_EUPE_LICENCE = "fair-noncommercial-research-license"


def _eupe_obtain(model: str) -> str:
    return f"See the README of github.com/facebookresearch/EUPE for the file of {model}"


def _eupe(name: str, *, size: str, code: str, dim: int, params: int) -> EncoderSpec:
    library_name = f"vit_{size}_patch16_dinov3_qkvb"
    return EncoderSpec(
        name=name,
        network="tokens",
        family="eupe-vit",
        library_name=library_name,
        arguments={"init_values": 1.0, "use_naflex": False},
        dim=dim,
        depth=12,
        patch_px=16,
        prefix_tokens=5,
        step_px=16,
        native_px=256,
        rope_base=100.0,
        params=params,
        licence=_EUPE_LICENCE,
        gated=False,
        hub=(HubFile(f"timm/{library_name}.eupe_lvd1689m"),),
        files=(f"{code}_pretrain_lvd1689m.pth",),
        obtain=_eupe_obtain(code),
    )


def _eupe_convnext(size: str) -> EncoderSpec:
    code = f"eupe_convnext_{size}"
    return _convnext(
        f"eupe-convnext-{size}",
        size,
        tag="eupe_lvd1689m",
        native_px=256,
        licence=_EUPE_LICENCE,
        gated=False,
        files=f"{code}_pretrain_lvd1689m.pth",
        obtain=_eupe_obtain(code),
    )


def _dinov2(name: str, *, size: str, code: str, dim: int, depth: int, params: int) -> EncoderSpec:
    library_name = f"vit_{size}_patch14_dinov2"
    file = f"{code}_pretrain.pth"
    return EncoderSpec(
        name=name,
        network="tokens",
        family="vit",
        library_name=library_name,
        arguments={"init_values": 1.0, "dynamic_img_size": True, "use_naflex": False},
        dim=dim,
        depth=depth,
        patch_px=14,
        prefix_tokens=1,
        step_px=14,
        native_px=518,
        params=params,
        licence="apache-2.0",
        gated=False,
        hub=(HubFile(f"timm/{library_name}.lvd142m"),),
        files=(file,),
        obtain=f"Download dl.fbaipublicfiles.com/dinov2/{code}/{file}",
    )


# Plain vision transformers of patch 16 and 224 px, as most publishers use them.
_vit_b = partial(
    EncoderSpec,
    network="tokens",
    family="vit",
    library_name="vit_base_patch16_224",
    arguments={"dynamic_img_size": True, "use_naflex": False},
    dim=768,
    depth=12,
    patch_px=16,
    prefix_tokens=1,
    step_px=16,
    native_px=224,
    params=85_798_656,
)
_vit_l = partial(
    _vit_b, library_name="vit_large_patch16_224", dim=1024, depth=24, params=303_301_632
)


def _mae(name: str, size: str) -> EncoderSpec:
    file = f"mae_pretrain_vit_{size}.pth"
    vit = _vit_l if size == "large" else _vit_b
    return vit(
        name=name,
        crop_pct=0.9,
        licence="cc-by-nc-4.0",
        gated=False,
        hub=(HubFile(f"timm/vit_{size}_patch16_224.mae"),),
        files=(file,),
        obtain=f"Download dl.fbaipublicfiles.com/mae/pretrain/{file}",
    )


_RESNET_STAGES = ((2, 64), (4, 256), (8, 512), (16, 1024), (32, 2048))


# The mean over positions is a ResNet's vector; it has no class token.
_resnet50 = partial(
    EncoderSpec,
    network="maps",
    family="resnet",
    library_name="resnet50",
    dim=2048,
    depth=5,
    patch_px=32,
    pyramid=_RESNET_STAGES,
    step_px=32,
    native_px=224,
    vectors=("mean",),
    filter="bilinear",
    crop_pct=0.875,
    params=23_508_032,
    gflop_224=8.174,
)

_TORCHVISION_RESNET = "resnet50-0676ba61.pth"
_MAHMOOD = "Ask for access, with an institution's address, at huggingface.co/MahmoodLab/"

ENCODERS = (
    _dinov3(
        "dinov3-s",
        library_name="vit_small_patch16_dinov3",
        dim=384,
        depth=12,
        params=21_586_944,
        code="dinov3_vits16",
        digest="08c60483",
    ),
    _dinov3(
        "dinov3-splus",
        library_name="vit_small_plus_patch16_dinov3",
        dim=384,
        depth=12,
        params=28_683_264,
        code="dinov3_vits16plus",
        digest="4057cbaa",
    ),
    _dinov3(
        "dinov3-b",
        library_name="vit_base_patch16_dinov3",
        dim=768,
        depth=12,
        params=85_641_216,
        code="dinov3_vitb16",
        digest="73cec8be",
    ),
    _dinov3(
        "dinov3-l",
        library_name="vit_large_patch16_dinov3",
        dim=1024,
        depth=24,
        params=303_079_424,
        code="dinov3_vitl16",
        digest="8aa4cbdd",
    ),
    _dinov3(
        "dinov3-hplus",
        library_name="vit_huge_plus_patch16_dinov3",
        dim=1280,
        depth=32,
        params=840_509_440,
        code="dinov3_vith16plus",
        digest="7c1da9a5",
    ),
    _dinov3(
        "dinov3-7b",
        library_name="vit_7b_patch16_dinov3",
        dim=4096,
        depth=40,
        params=6_716_030_976,
        code="dinov3_vit7b16",
        digest="a955f4ea",
        untested="27 GB; a test builds it with 2 of its 40 blocks",
    ),
    _dinov3(
        "dinov3-l-sat",
        library_name="vit_large_patch16_dinov3",
        dim=1024,
        depth=24,
        params=303_079_424,
        code="dinov3_vitl16",
        digest="eadcf0ff",
        data="sat493m",
    ),
    _dinov3(
        "dinov3-7b-sat",
        library_name="vit_7b_patch16_dinov3",
        dim=4096,
        depth=40,
        params=6_716_030_976,
        code="dinov3_vit7b16",
        digest="a6675841",
        data="sat493m",
        untested="27 GB; a test builds it with 2 of its 40 blocks",
    ),
    _dinov3_convnext("tiny", "21b726bb"),
    _dinov3_convnext("small", "296db49d"),
    _dinov3_convnext("base", "801f2ba9"),
    _dinov3_convnext("large", "61fa432d"),
    _dinov2("dinov2-s", size="small", code="dinov2_vits14", dim=384, depth=12, params=22_056_192),
    _dinov2("dinov2-b", size="base", code="dinov2_vitb14", dim=768, depth=12, params=86_579_712),
    _dinov2("dinov2-l", size="large", code="dinov2_vitl14", dim=1024, depth=24, params=304_367_616),
    _dinov2(
        "dinov2-g", size="giant", code="dinov2_vitg14", dim=1536, depth=40, params=1_136_479_232
    ),
    _eupe("eupe-tiny", size="tiny", code="eupe_vitt16", dim=192, params=5_489_664),
    _eupe("eupe-s", size="small", code="eupe_vits16", dim=384, params=21_596_160),
    _eupe("eupe-b", size="base", code="eupe_vitb16", dim=768, params=85_659_648),
    _eupe_convnext("tiny"),
    _eupe_convnext("small"),
    _eupe_convnext("base"),
    _vit_l(
        name="uni",
        arguments={"init_values": 1.0, "dynamic_img_size": True, "use_naflex": False},
        filter="bilinear",
        params=303_350_784,
        licence="cc-by-nc-nd-4.0",
        gated=True,
        hub=(
            HubFile("MahmoodLab/UNI", "pytorch_model.bin"),
            HubFile("MahmoodLab/uni", "pytorch_model.bin"),  # as many call it, and their cache
        ),
        files=("pytorch_model.bin",),
        obtain=f"{_MAHMOOD}UNI",
    ),
    EncoderSpec(
        name="uni2-h",
        network="tokens",
        family="vit",
        library_name="vit_giant_patch14_224",
        arguments={
            "depth": 24,
            "num_heads": 24,
            "embed_dim": 1536,
            "mlp_ratio": 2.66667 * 2,
            "mlp_layer": "SwiGLUPacked",
            "act_layer": "silu",
            "no_embed_class": True,
            "reg_tokens": 8,
            "init_values": 1.0,
            "dynamic_img_size": True,
            "use_naflex": False,
        },
        dim=1536,
        depth=24,
        patch_px=14,
        prefix_tokens=9,
        step_px=14,
        native_px=224,
        filter="bilinear",
        params=681_394_176,
        licence="cc-by-nc-nd-4.0",
        gated=True,
        hub=(HubFile("MahmoodLab/UNI2-h", "pytorch_model.bin"),),
        files=("pytorch_model.bin",),
        obtain=f"{_MAHMOOD}UNI2-h",
    ),
    _vit_b(
        name="conch",
        family="conch",
        arguments={"img_size": 448, "dynamic_img_size": True, "use_naflex": False},
        native_px=448,
        vectors=("embed", "cls", "mean"),
        embed_dim=512,
        mean=CLIP_MEAN,
        std=CLIP_STD,
        params=87_567_104,
        licence="cc-by-nc-nd-4.0",
        gated=True,
        hub=(HubFile("MahmoodLab/conch", "pytorch_model.bin"),),
        files=("pytorch_model.bin",),
        obtain=f"{_MAHMOOD}conch",
    ),
    _vit_b(
        name="biomedclip",
        family="biomedclip",
        vectors=("cls", "embed", "mean"),
        embed_dim=512,
        mean=CLIP_MEAN,
        std=CLIP_STD,
        params=86_191_872,
        licence="mit",
        gated=False,
        hub=(
            HubFile(
                "microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224",
                "open_clip_pytorch_model.bin",
            ),
        ),
        files=("open_clip_pytorch_model.bin",),
        obtain="Download open_clip_pytorch_model.bin from "
        "huggingface.co/microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224",
    ),
    _resnet50(
        name="resnet50",
        licence="bsd-3-clause",
        gated=False,
        hub=(HubFile("timm/resnet50.tv_in1k"),),
        files=(_TORCHVISION_RESNET, "resnet50-19c8e357.pth"),
        obtain=f"Download download.pytorch.org/models/{_TORCHVISION_RESNET}",
    ),
    _resnet50(
        name="resnet50-trunc",
        dim=1024,
        depth=4,
        patch_px=16,
        pyramid=_RESNET_STAGES[:4],
        classifier=("layer4",),
        step_px=16,
        crop_pct=1.0,
        params=8_543_296,
        gflop_224=6.556,
        licence="bsd-3-clause",
        gated=False,
        hub=(HubFile("timm/resnet50.tv_in1k"),),
        files=("resnet50-19c8e357.pth", _TORCHVISION_RESNET),
        obtain="Download download.pytorch.org/models/resnet50-19c8e357.pth",
    ),
    _mae("mae-b", "base"),
    _mae("mae-l", "large"),
    _vit_b(
        name="mocov3-b",
        crop_pct=0.875,
        filter="bilinear",
        licence="cc-by-nc-4.0",
        gated=False,
        files=("vit-b-300ep.pth.tar",),
        obtain="Download dl.fbaipublicfiles.com/moco-v3/vit-b-300ep/vit-b-300ep.pth.tar",
    ),
    _resnet50(
        name="swav",
        std=(0.228, 0.224, 0.225),
        licence="cc-by-nc-4.0",
        gated=False,
        files=("swav_800ep_pretrain.pth.tar",),
        obtain="Download dl.fbaipublicfiles.com/deepcluster/swav_800ep_pretrain.pth.tar",
    ),
    _resnet50(
        name="simclr",
        same_padding=("pool",),
        filter="bicubic",
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        licence="apache-2.0",
        gated=False,
        files=("resnet50-1x.pth",),
        obtain="Convert ResNet50_1x of github.com/google-research/simclr to PyTorch with "
        "github.com/tonylins/simclr-converter",
    ),
    _resnet50(
        name="simclr-vissl",
        licence="mit",
        gated=False,
        files=("model_final_checkpoint_phase799.torch",),
        obtain="Download the checkpoint 'SimCLR RN50 - 800 epochs' that MODEL_ZOO.md of "
        "github.com/facebookresearch/vissl links",
    ),
    _resnet50(
        name="byol",
        same_padding=("pool", "convolution"),
        filter="bicubic",
        licence="apache-2.0",
        gated=False,
        files=("pretrain_res50x1.pth.tar",),
        obtain="Convert pretrain_res50x1.pkl of github.com/google-deepmind/deepmind-research/tree/"
        "master/byol to PyTorch with github.com/chigur/byol-convert",
    ),
    EncoderSpec(
        name="anatomix",
        network="volume",
        family="anatomix",
        dim=16,
        depth=1,
        patch_px=1,
        step_px=1,
        native_px=128,
        vectors=(),
        channels=1,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        window="min-max",
        params=5_899_344,
        gflop_224=None,
        licence="mit",
        gated=False,
        hub=(HubFile("neeldey/anatomix", "anatomix.pth"),),
        files=("anatomix.pth",),
        obtain="Download model-weights/anatomix.pth of github.com/neel-dey/anatomix",
    ),
    EncoderSpec(
        name="tiny",
        network="tokens",
        family="dinov3-vit",
        library_name="vit_small_patch16_dinov3",
        arguments={
            "embed_dim": 48,
            "depth": 2,
            "num_heads": 3,
            "init_values": 1.0,
            "use_naflex": False,
        },
        dim=48,
        depth=2,
        patch_px=16,
        prefix_tokens=5,
        step_px=16,
        native_px=64,
        rope_base=100.0,
        params=93_696,
        licence="none: random weights, for tests",
        gated=False,
        obtain="Nobody trained it: it is for tests",
    ),
)
"""All that is known by a name of its own, in the order in which it is listed to people."""


def encoder_spec(name: str) -> EncoderSpec:
    """Look up an encoder of the table.

    Args:
        name: As in `ENCODERS`; `dinov3-s+` is `dinov3-splus`.

    Returns:
        Its facts.

    Raises:
        RequestError: If there is none of that name.
    """
    wanted = name.lower().replace("+", "plus")
    for spec in ENCODERS:
        if spec.name == wanted:
            return spec
    known = [spec.name for spec in ENCODERS]
    close = difflib.get_close_matches(wanted, known, n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else f"known are {', '.join(known)}."
    raise RequestError(
        f"there is no encoder {name!r}; {hint} `dinocache encoders` lists them; timm:NAME and "
        "open_clip:NAME/TAG take any model of those libraries"
    )
