"""Encoders that are not in the table: any model of timm or open_clip.

What the table says of its rows is asked of the library here: of its pretrained configuration, and
of the model itself, built without memory.
"""

import difflib
from typing import Any

from dinocache.encoders import encoder_spec
from dinocache.errors import RequestError
from dinocache.spec import EncoderSpec, HubFile

__all__ = ["find_encoder", "open_clip_tower"]


def find_encoder(name: str) -> EncoderSpec:
    """Find what a person calls an encoder.

    Args:
        name: Of the table, or `timm:NAME`, or `open_clip:NAME/TAG`.

    Returns:
        Its facts.

    Raises:
        RequestError: If there is no such encoder, or it is of a sort that gives no features here.
    """
    library, colon, model = name.partition(":")
    if not colon:
        return encoder_spec(name)
    described = {"timm": _timm_spec, "open_clip": _open_clip_spec}.get(library)
    if described is None:
        raise RequestError(
            f"there is no encoder {name!r}: before a colon stands timm or open_clip, as "
            "timm:vit_base_patch16_224.mae or open_clip:ViT-B-16/openai"
        )
    try:
        return described(name, model)
    except ModuleNotFoundError as exc:
        raise RequestError(
            f"{name} needs {exc.name}, which is not installed: install dinocache[extract]"
        ) from exc


def open_clip_tower(name: str) -> Any:  # noqa: ANN401 - open_clip is typed loosely
    """Build the vision tower of an open_clip model, without its text tower.

    Args:
        name: `NAME/TAG`, or `NAME`.

    Returns:
        The tower, with random weights.
    """
    import open_clip
    from open_clip.model import _build_vision_tower  # there is no public way to leave text out

    model, _, tag = name.partition("/")
    config = open_clip.get_model_config(model)
    quick = bool(open_clip.get_pretrained_cfg(model, tag).get("quick_gelu")) if tag else False
    return _build_vision_tower(
        config["embed_dim"], config["vision_cfg"], quick or bool(config.get("quick_gelu"))
    )


def _timm_spec(name: str, model_name: str) -> EncoderSpec:
    import timm
    import torch

    if not timm.is_model(model_name):
        close = difflib.get_close_matches(model_name.split(".")[0], timm.list_models(), n=3)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise RequestError(f"timm has no model {model_name!r}{hint}")
    try:
        facts: Any = timm.get_pretrained_cfg(model_name)
    except RuntimeError as exc:
        known = ", ".join(timm.list_pretrained(f"{model_name.split('.')[0]}.*"))
        raise RequestError(f"timm has no weights {model_name!r}; it has {known or 'none'}") from exc
    side = min(facts.input_size[1:])
    with torch.device("meta"), torch.no_grad():
        model, arguments = _timm_model(model_name)
        pixels = torch.empty(1, 3, side, side)
        features = model.forward_features(pixels)
        if not isinstance(features, torch.Tensor) or features.ndim not in (3, 4):
            raise RequestError(f"{name} gives neither tokens nor a map")
        try:
            embed_dim = model.forward_head(features, pre_logits=True).shape[-1]
        except (AttributeError, NotImplementedError, TypeError) as exc:  # as each model says it
            raise RequestError(
                f"{name} pools nothing without a classifier; choose another"
            ) from exc
        shape = _timm_shape(name, model, pixels, features)
        step = shape["step_px"]
        if not _takes_others(model, shape, (side + step, side + 2 * step)):
            shape["fixed_px"] = side
    rope: Any = getattr(model, "rope", None)
    classifier = facts.classifier or ()
    return EncoderSpec(
        **shape,
        name=name,
        family="timm",
        library_name=model_name,
        arguments=arguments,
        native_px=side,
        embed_dim=embed_dim,
        mean=tuple(facts.mean),
        std=tuple(facts.std),
        filter="bilinear" if facts.interpolation == "bilinear" else "bicubic",
        crop_pct=facts.crop_pct or 1.0,
        rope_base=getattr(rope, "temperature", None) if hasattr(rope, "periods") else None,
        params=sum(parameter.numel() for parameter in model.parameters()),
        classifier=(classifier,) if isinstance(classifier, str) else tuple(classifier),
        licence=facts.license or "not stated by timm",
        gated=False,
        hub=(HubFile(facts.hf_hub_id),) if facts.hf_hub_id else (),
        obtain=f"See huggingface.co/{facts.hf_hub_id}" if facts.hf_hub_id else "See timm",
        untested="any model of timm",
    )


def _timm_model(model_name: str) -> tuple[Any, dict[str, Any]]:
    """Build a model, for any size where it can be, and say with which arguments."""
    import timm

    arguments: dict[str, Any] = {"dynamic_img_size": True}
    try:
        model = timm.create_model(model_name, pretrained=False, num_classes=0, **arguments)
    except TypeError:  # only transformers with position embeddings know it
        arguments = {}
        model = timm.create_model(model_name, pretrained=False, num_classes=0)
    return model.eval(), arguments


def _timm_shape(
    name: str,
    model: Any,  # noqa: ANN401
    pixels: Any,  # noqa: ANN401
    features: Any,  # noqa: ANN401
) -> dict[str, Any]:
    """Tell tokens from maps, and how large they are."""
    side = pixels.shape[-1]
    if features.ndim == 3:
        prefix = getattr(model, "num_prefix_tokens", 0)
        per_side = round((features.shape[1] - prefix) ** 0.5)
        if per_side < 2 or per_side**2 + prefix != features.shape[1] or side % per_side:
            raise RequestError(f"{name}: its {features.shape[1]} tokens form no square grid")
        has_cls = getattr(model, "cls_token", None) is not None
        earlier = _intermediates(model, pixels, norm=True, output_fmt="NLC")
        alike = all(m.shape[1:] == (per_side**2, features.shape[2]) for m in earlier)
        return {
            "network": "tokens",
            "dim": features.shape[2],
            "depth": max(1, len(earlier)) if alike else 1,
            "patch_px": side // per_side,
            "prefix_tokens": prefix,
            "step_px": side // per_side,
            "vectors": ("cls", "embed", "mean") if has_cls else ("embed", "mean"),
        }
    rows_first = getattr(model, "output_fmt", "NCHW") == "NHWC"
    height, dim = (features.shape[1], features.shape[3]) if rows_first else features.shape[2:0:-1]
    patch = side // height
    if side // patch != height:
        raise RequestError(f"{name}: {height} map rows do not divide its {side} px")
    earlier = _intermediates(model, pixels)
    pyramid = tuple((side // m.shape[-1], m.shape[1]) for m in earlier)
    whole = all(
        side // stride == m.shape[-1] for (stride, _), m in zip(pyramid, earlier, strict=True)
    )
    if not pyramid or not whole:
        pyramid = ((patch, dim),)
    return {
        "network": "maps",
        "dim": dim,
        "depth": len(pyramid),
        "patch_px": patch,
        "pyramid": pyramid,
        "step_px": side if side % patch else patch,
        "vectors": ("embed", "mean"),
    }


def _takes_others(model: Any, shape: dict[str, Any], resolution: tuple[int, int]) -> bool:  # noqa: ANN401
    """Try another size: whether it is taken, and gives maps of the sizes that the facts promise."""
    import torch

    pixels = torch.empty(1, 3, *resolution)
    try:
        features = model.forward_features(pixels)
        maps = _intermediates(model, pixels) if shape["network"] == "maps" else []
    except Exception:  # each model says in its own way that it takes one size
        return False
    grid = tuple(side // shape["patch_px"] for side in resolution)
    if shape["network"] == "tokens":
        return bool(features.shape[1] == grid[0] * grid[1] + shape["prefix_tokens"])
    rows_first = getattr(model, "output_fmt", "NCHW") == "NHWC"
    found = tuple(features.shape[1:3] if rows_first else features.shape[2:])
    strides = [stride for stride, _ in shape["pyramid"]] if shape["depth"] > 1 else []
    promised = [tuple(side // stride for side in resolution) for stride in strides]
    return found == grid and [tuple(m.shape[2:]) for m in maps[: len(promised)]] == promised


def _intermediates(model: Any, pixels: Any, **options: object) -> list[Any]:  # noqa: ANN401
    """Give the maps of a model's layers; none where it cannot."""
    if not hasattr(model, "forward_intermediates"):
        return []
    try:
        maps: list[Any] = model.forward_intermediates(pixels, intermediates_only=True, **options)
    except Exception:  # each model says in its own way what it does not know
        return []
    return maps


def _open_clip_spec(name: str, model_name: str) -> EncoderSpec:
    import open_clip
    import torch

    model, _, tag = model_name.partition("/")
    config = open_clip.get_model_config(model) if model in open_clip.list_models() else None
    if config is None:
        close = difflib.get_close_matches(model, open_clip.list_models(), n=3)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise RequestError(f"open_clip has no model {model!r}{hint}")
    tags = open_clip.list_pretrained_tags_by_model(model)
    if tag and tag not in tags:
        raise RequestError(f"open_clip has no weights {tag!r} of {model}; it has {', '.join(tags)}")
    facts = open_clip.get_pretrained_cfg(model, tag) if tag else {}
    size = config["vision_cfg"].get("image_size", 224)
    side = size if isinstance(size, int) else size[0]
    with torch.device("meta"), torch.no_grad():
        tower = open_clip_tower(model_name).eval()
        pixels = torch.empty(1, 3, side, side)
        try:
            found = tower.forward_intermediates(pixels, output_extra_tokens=True)
        except TypeError:  # towers without tokens do not know it
            found = tower.forward_intermediates(pixels)
    maps = found["image_intermediates"]
    prefix = found.get("image_intermediates_prefix")
    shapes = tuple((side // m.shape[-1], m.shape[1]) for m in maps)
    repo, files = _open_clip_hub(facts.get("hf_hub", ""))
    return EncoderSpec(
        name=name,
        network="open-clip",
        family="open_clip",
        library_name=model_name,
        dim=shapes[-1][1],
        depth=len(shapes),
        patch_px=shapes[-1][0],
        pyramid=shapes if len(set(shapes)) > 1 else (),
        prefix_tokens=prefix[-1].shape[1] if prefix else 0,
        step_px=side,
        fixed_px=side,
        native_px=side,
        vectors=("embed", "cls", "mean") if prefix else ("embed", "mean"),
        embed_dim=config["embed_dim"],
        mean=tuple(facts.get("mean") or open_clip.OPENAI_DATASET_MEAN),
        std=tuple(facts.get("std") or open_clip.OPENAI_DATASET_STD),
        filter="bilinear" if facts.get("interpolation") == "bilinear" else "bicubic",
        params=sum(parameter.numel() for parameter in tower.parameters()),
        licence="see the model card",
        gated=False,
        hub=tuple(HubFile(repo, file) for file in files),
        obtain=f"See huggingface.co/{repo}" if repo else _open_clip_obtain(model, tags),
        untested="any model of open_clip",
    )


def _open_clip_obtain(model: str, tags: list[str]) -> str:
    if not tags:
        return "open_clip names no weights of it"
    return f"Name its weights, as open_clip:{model}/{tags[0]} (there are {', '.join(tags)})"


def _open_clip_hub(place: str) -> tuple[str, tuple[str, ...]]:
    """Split `org/repository/` or `org/repository/file`; without a file there are two usual ones."""
    owner, _, rest = place.partition("/")
    repo, _, file = rest.partition("/")
    usual = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
    return (f"{owner}/{repo}", (file,) if file else usual) if repo else ("", ())
