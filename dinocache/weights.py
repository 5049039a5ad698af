"""Files of weights: where they are, which bytes they are, what they hold.

Nothing in such a file is executed. Whatever names its publisher gave the tensors, they leave here
under the names of timm's `Eva` model.

References:
    Meta's names: facebookresearch/dinov3 6876159, `dinov3/models/vision_transformer.py` and
    `dinov3/layers/attention.py`. Transformers' names: huggingface/transformers,
    `models/dinov3_vit/` (5.x adds `model.` before `layer.`; published files have it without).
    timm's: `timm/models/eva.py`; its own conversion prints to stdout, hence the table here.
"""

import hashlib
import json
import logging
import os
import pickle
import queue
import re
import threading
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import platformdirs

from dinocache.durable import make_folder, replace_durably
from dinocache.errors import RequestError, WeightsError, WeightsUnavailableError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "Checkpoint",
    "Weights",
    "file_sha256",
    "read_checkpoint",
    "resolve_weights",
    "tensors_sha256",
]

_logger = logging.getLogger(__name__)

_SAFETENSORS_FILE = "model.safetensors"
_HUB_DEADLINE_S = 8.0
_RANDOM = re.compile(r"random(?::(\d{1,18}))?")
_PUBLISHED_HASH = re.compile(r"dinov3_\w+-([0-9a-f]{8})\b.*\.pth?")
_OTHER_FILE = "Download it again, or pass another file with --weights PATH"

_WRAPPERS = ("model", "teacher", "state_dict")
# Used in training only: for masked patches, and for the cls token of small crops.
_UNUSED = re.compile(r"(embeddings\.)?mask_token|local_cls_norm\..*")
_QKV_BIAS = re.compile(r".*\.attn\.(qkv\.bias|[qkv]_proj\.bias|[qkv]_bias)")
# No two publishers use one name for different things, so one table serves all three.
_TIMM_NAMES = (
    # Meta
    (re.compile(r"^storage_tokens$"), "reg_token"),
    (re.compile(r"\.ls([12])\.gamma$"), r".gamma_\1"),
    # transformers
    (re.compile(r"^embeddings\.cls_token$"), "cls_token"),
    (re.compile(r"^embeddings\.register_tokens$"), "reg_token"),
    (re.compile(r"^embeddings\.patch_embeddings\."), "patch_embed.proj."),
    (re.compile(r"^(?:model\.)?layer\.(\d+)\."), r"blocks.\1."),
    (re.compile(r"\.attention\.o_proj\."), ".attn.proj."),
    (re.compile(r"\.attention\."), ".attn."),
    (re.compile(r"\.layer_scale([12])\.lambda1$"), r".gamma_\1"),
    (re.compile(r"\.mlp\.up_proj\."), ".mlp.fc1."),
    (re.compile(r"\.mlp\.down_proj\."), ".mlp.fc2."),
)


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Which weights an encoder has."""

    name: str
    """`hub:` and the id, the file's bare name, or `random:` and the seed; for people."""
    sha256: str
    """Of the file's bytes, or of the tensors where they are random (`tensors_sha256`)."""
    path: Path | None
    """The file; None for random weights."""

    @property
    def is_random(self) -> bool:
        """Whether they were drawn, not trained."""
        return self.path is None


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a file of DINOv3 weights holds."""

    tensors: dict[str, "Tensor"]
    """Parameters under the names of timm's `Eva`, float32, finite, in memory of their own."""
    periods: "Tensor | None"
    """RoPE periods, (head_dim / 4,) float32, where the file has them (Meta's do)."""

    @property
    def dim(self) -> int:
        """Width of a token."""
        return self.tensors["cls_token"].numel()

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len({name.split(".")[1] for name in self.tensors if name.startswith("blocks.")})


def resolve_weights(
    choices: str, *, hub_id: str | None, published_file: str | None = None
) -> Weights | int:
    """Find the first of several weights that can be had.

    Only the hub may be passed over (a line is logged then): a mistyped path must not end in random
    weights.

    Args:
        choices: `hub`, the path of a file (or of a folder with a `model.safetensors`),
            `random[:SEED]`, or several of these with commas between them.
        hub_id: Hugging Face id of the encoder's weights; None where none are published.
        published_file: Name of the publisher's own file, for the message.

    Returns:
        The file's record, or the seed where random weights are the choice.

    Raises:
        RequestError: If `choices` cannot be understood.
        WeightsUnavailableError: If there is no such file, or the hub cannot serve it now.
        WeightsError: If the file cannot be read, or is not the one that its name promises.
    """
    if Path(os.path.expanduser(choices)).is_file():
        return _file_weights(choices)  # a path may have a comma in it
    first, *others = [part.strip() for part in choices.split(",")]
    for part in others:
        _seed(part)  # so that a typo is seen at once
    if (seed := _seed(first)) is not None:
        return seed
    if first != "hub":
        return _file_weights(first)
    try:
        return _hub_weights(hub_id)
    except WeightsUnavailableError as exc:
        if not others:
            example = f" (such as Meta's {published_file})" if published_file else ""
            raise WeightsUnavailableError(
                f"{exc}. Pass a file with --weights PATH{example}, "
                "or --weights random:0 for a trial"
            ) from exc
        _logger.warning("%s: going on with %s", exc, others[0])
    return resolve_weights(",".join(others), hub_id=hub_id, published_file=published_file)


def file_sha256(file: Path) -> str:
    """Digest a file, or recall its digest while its size and time of change are the same.

    What is recalled lies in the user's cache folder, or in `DINOCACHE_CACHE`; a cache that cannot
    be read or written is done without.

    Args:
        file: The file.

    Returns:
        64 hex digits.

    Raises:
        OSError: If the file cannot be read.
    """
    status = file.stat()  # before the bytes: a file that changes meanwhile is digested anew
    key, state = str(file.resolve()), [status.st_size, status.st_mtime_ns]
    match _recalled_digests().get(key):
        case [size, mtime_ns, str(digest)] if [size, mtime_ns] == state:
            return digest
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    try:
        make_folder(_digest_cache().parent)
        content = json.dumps(_recalled_digests() | {key: [*state, digest]}, indent=1)
        replace_durably(_digest_cache(), content.encode())
    except OSError as exc:
        _logger.debug("digests are not kept: %s", exc)
    return digest


def tensors_sha256(tensors: Mapping[str, "Tensor"]) -> str:
    """Digest named tensors: each one's name, shape, dtype and bytes, in the order of the names.

    Args:
        tensors: On the CPU, of any shape and dtype that numpy knows.

    Returns:
        64 hex digits.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


def read_checkpoint(weights: Weights) -> Checkpoint:
    """Read DINOv3 weights in Meta's, transformers' or timm's format.

    Args:
        weights: Of a file: `.safetensors`, or `.pth`/`.pt`, of which only tensors are taken.

    Returns:
        Its tensors, half precision widened to float32. A qkv bias, which is zero in every released
        file, is left out.

    Raises:
        ValueError: If the weights are random.
        WeightsError: If it is damaged or no DINOv3 vision transformer, if a value is not finite, or
            if the qkv bias is not zero.
    """
    if weights.path is None:
        raise ValueError(f"{weights.name} are in no file")
    name = weights.name
    tensors = _named_tensors(_load(weights.path, name), name)
    periods = tensors.pop("rope_embed.periods", None)
    tensors = {
        _timm_name(key): value for key, value in tensors.items() if not _UNUSED.fullmatch(key)
    }
    if not {"cls_token", "reg_token", "patch_embed.proj.weight"} <= tensors.keys():
        raise WeightsError(
            f"{name} holds no DINOv3 vision transformer in Meta's, transformers' or timm's format: "
            f"its first tensors are {', '.join(sorted(tensors)[:3])}. {_OTHER_FILE}"
        )
    _drop_zero_qkv_bias(tensors, name)
    _fuse_qkv(tensors)
    return Checkpoint(
        tensors={key: _finite_float32(value, key, name) for key, value in tensors.items()},
        periods=None if periods is None else _finite_float32(periods, "rope_embed.periods", name),
    )


def _seed(part: str) -> int | None:
    """Parse `random[:SEED]`; None for what is something else."""
    if match := _RANDOM.fullmatch(part):
        return int(match[1] or 0)
    if not part or part.startswith("random:"):
        raise RequestError(
            f"weights {part!r} are none of: hub, the path of a file, random, random:SEED with a "
            "whole number as the seed, or several of these with commas between them"
        )
    return None


def _file_weights(path: str, name: str | None = None) -> Weights:
    file = Path(os.path.expanduser(path))
    if file.is_dir():
        file /= _SAFETENSORS_FILE
    if not file.is_file():
        raise WeightsUnavailableError(
            f"there is no file of weights at {file}. Check the path given with --weights"
        )
    try:
        digest = file_sha256(file)
    except OSError as exc:
        raise WeightsError(f"{file} cannot be read: {exc.strerror or exc}. Mend that") from exc
    if (promised := _PUBLISHED_HASH.fullmatch(file.name)) and not digest.startswith(promised[1]):
        raise WeightsError(
            f"the name of {file.name} promises a sha256 that begins with {promised[1]}, but it "
            f"begins with {digest[:8]}: the download was probably cut short. {_OTHER_FILE}"
        )
    return Weights(name=name or file.name, sha256=digest, path=file.absolute())


def _digest_cache() -> Path:
    folder = os.environ.get("DINOCACHE_CACHE") or platformdirs.user_cache_dir("dinocache")
    return Path(folder).expanduser() / "file-digests.json"


def _recalled_digests() -> dict[str, object]:
    try:
        known = json.loads(_digest_cache().read_bytes())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _hub_weights(hub_id: str | None) -> Weights:
    """Take weights from the local Hugging Face cache, or else from the hub if it answers soon."""
    if hub_id is None:
        raise WeightsUnavailableError("no weights are published for this encoder")
    try:
        import huggingface_hub
        from huggingface_hub.constants import HF_HUB_OFFLINE
    except ModuleNotFoundError as exc:
        raise WeightsUnavailableError(
            f"{hub_id} cannot be asked for: install dinocache[extract] for huggingface_hub"
        ) from exc

    name = f"hub:{hub_id}"
    cached = huggingface_hub.try_to_load_from_cache(hub_id, _SAFETENSORS_FILE)
    if isinstance(cached, str):
        return _file_weights(cached, name)
    if HF_HUB_OFFLINE:
        raise WeightsUnavailableError(
            f"{hub_id} is not in the local Hugging Face cache, and HF_HUB_OFFLINE is set"
        )
    api = huggingface_hub.HfApi()
    # One request without retries: hf_hub_download alone goes on trying for minutes where no
    # network is.
    failure = _failure_within(
        _HUB_DEADLINE_S, lambda: api.model_info(hub_id, timeout=_HUB_DEADLINE_S)
    )
    if failure is None:
        try:
            downloaded = huggingface_hub.hf_hub_download(hub_id, _SAFETENSORS_FILE)
            return _file_weights(downloaded, name)
        except WeightsError:
            raise
        except Exception as exc:  # its HTTP library's and its Rust part's errors share no base
            failure = exc
    raise WeightsUnavailableError(
        f"{hub_id} is not in the local Hugging Face cache and cannot be had from the hub: "
        f"{_reason(failure)}"
    ) from failure


def _failure_within(seconds: float, request: Callable[[], object]) -> Exception | None:
    """Wait for a request until a deadline that holds even where a name look-up hangs."""
    outcome: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()

    def ask() -> None:
        try:
            request()
        except Exception as exc:  # handed to the caller, whatever it is
            outcome.put(exc)
        else:
            outcome.put(None)

    # A daemon: nothing can interrupt a name look-up, and the process must be able to end meanwhile.
    threading.Thread(target=ask, name="hub-probe", daemon=True).start()
    try:
        return outcome.get(timeout=seconds)
    except queue.Empty:
        return TimeoutError(f"no answer within {seconds:g} s")


def _reason(failure: Exception) -> str:
    """Tell in one line what went wrong at the hub."""
    from huggingface_hub.errors import GatedRepoError

    if isinstance(failure, GatedRepoError):
        return "it is gated: accept its licence on the hub, then log in with `hf auth login`"
    return str(failure).strip().partition("\n")[0] or type(failure).__name__


def _load(file: Path, name: str) -> object:
    readers = {".safetensors": _load_safetensors, ".pth": _load_pickle, ".pt": _load_pickle}
    if (reader := readers.get(file.suffix.lower())) is None:
        raise WeightsError(
            f"{name} ends in none of {', '.join(readers)}. Pass such a file with --weights PATH"
        )
    try:
        return reader(file)
    except pickle.UnpicklingError as exc:
        raise WeightsError(
            f"{name} is refused: it is no file of weights, or holds Python objects besides "
            f"tensors, which are never executed. {_OTHER_FILE}"
        ) from exc
    except Exception as exc:  # what bytes that are no weights lead to is not to be foreseen
        raise WeightsError(
            f"{name} cannot be read as weights ({type(exc).__name__}): it is cut short or "
            f"damaged. {_OTHER_FILE}"
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


def _named_tensors(loaded: object, name: str) -> dict[str, "Tensor"]:
    import torch

    for wrapper in _WRAPPERS:
        if isinstance(loaded, dict) and isinstance(loaded.get(wrapper), dict):
            loaded = loaded[wrapper]
    tensors = loaded if isinstance(loaded, dict) else {}
    if not tensors or not all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in tensors.items()
    ):
        raise WeightsError(
            f"{name} holds no table of named tensors, neither at its top nor under "
            f"{', '.join(_WRAPPERS)}. {_OTHER_FILE}"
        )
    return dict(tensors)


def _timm_name(key: str) -> str:
    for pattern, replacement in _TIMM_NAMES:
        key = pattern.sub(replacement, key)
    return key


def _drop_zero_qkv_bias(tensors: dict[str, "Tensor"], name: str) -> None:
    """Remove the biases of q, k and v, which timm's models lack.

    Meta's layer adds `bias * bias_mask`; the mask is NaN until the model is initialised, and a NaN
    here is refused like any other value that is not zero.
    """
    for key in [key for key in tensors if _QKV_BIAS.fullmatch(key)]:
        bias = tensors.pop(key)
        mask = tensors.pop(f"{key}_mask", None)
        effective = bias if mask is None else bias * mask
        if (effective != 0).any():
            raise WeightsError(
                f"{name} has a {key} that is not zero, as it is in every released DINOv3 file: "
                f"these weights need another model. {_OTHER_FILE}"
            )


def _fuse_qkv(tensors: dict[str, "Tensor"]) -> None:
    """Join what transformers keeps as three matrices; an incomplete block is left as it is."""
    import torch

    for query in [key for key in tensors if key.endswith(".attn.q_proj.weight")]:
        keys = [query.replace("q_proj", part) for part in ("q_proj", "k_proj", "v_proj")]
        if all(key in tensors for key in keys):
            fused = torch.cat([tensors.pop(key) for key in keys])
            tensors[query.replace("q_proj", "qkv")] = fused


def _finite_float32(tensor: "Tensor", key: str, name: str) -> "Tensor":
    """Copy out of the mapped file, so that nothing done to it later reaches the model."""
    import torch

    wide = tensor.detach().to(torch.float32, copy=True).contiguous()
    if not torch.isfinite(wide).all():
        raise WeightsError(f"{name} holds values in {key} that are not finite. {_OTHER_FILE}")
    return wide
