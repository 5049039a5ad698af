"""Files of weights: where they are, and which bytes they are."""

import hashlib
import json
import logging
import os
import queue
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dinocache.durable import make_folder, replace_durably
from dinocache.encoders import ENCODERS
from dinocache.errors import RequestError, WeightsError, WeightsUnavailableError
from dinocache.places import cache_folder
from dinocache.spec import EncoderSpec, HubFile

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "OTHER_FILE",
    "Weights",
    "cached_weights",
    "file_sha256",
    "hub_answers",
    "resolve_weights",
    "tensors_sha256",
]

_logger = logging.getLogger(__name__)

_SAFETENSORS_FILE = "model.safetensors"
_HUB_DEADLINE_S = 8.0
_RANDOM = re.compile(r"random(?::(\d{1,18}))?")
# Of Meta's DINOv3 files and of torchvision's; others may have a date there.
_PUBLISHED_HASH = re.compile(r"(?:dinov3_\w+|resnet\d+)-([0-9a-f]{8})\b.*\.pth?")
OTHER_FILE = "Download it again, or pass another file with --weights PATH"


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


def resolve_weights(choices: str, spec: EncoderSpec) -> Weights | int:
    """Find the first of several weights that can be had.

    Only the hub may be passed over (a line is logged then): a mistyped path must not end in random
    weights.

    Args:
        choices: `hub`, the path of a file (or of a folder with one of the encoder's files),
            `random[:SEED]`, or several of these with commas between them.
        spec: The encoder.

    Returns:
        The file's record, or the seed where random weights are the choice.

    Raises:
        RequestError: If `choices` cannot be understood.
        WeightsUnavailableError: If there is no such file, or the hub cannot serve it now.
        WeightsError: If the file cannot be read, or is not the one that its name promises.
    """
    if Path(os.path.expanduser(choices)).is_file():
        return _file_weights(choices, spec)  # a path may have a comma in it
    first, *others = [part.strip() for part in choices.split(",")]
    for part in others:
        _seed(part)  # so that a typo is seen at once
    if (seed := _seed(first)) is not None:
        return seed
    if first != "hub":
        return _file_weights(first, spec)
    try:
        return _hub_weights(spec)
    except WeightsUnavailableError as exc:
        if not others:
            example = f" (such as {spec.files[0]})" if spec.files else ""
            raise WeightsUnavailableError(
                f"{exc}. {spec.obtain}; pass the file with --weights PATH{example}, or take "
                "--weights random:0 for a trial"
            ) from exc
        _logger.warning("%s: going on with %s", exc, others[0])
    return resolve_weights(",".join(others), spec)


def cached_weights(spec: EncoderSpec) -> Path | None:
    """Look for an encoder's weights in the local Hugging Face cache; nobody is asked.

    Args:
        spec: The encoder.

    Returns:
        The file, or None.
    """
    found = _cached(spec.hub)
    return found[1] if found else None


def hub_answers(repo: str) -> str:
    """Ask the hub for a repository's facts, once.

    Args:
        repo: Its id.

    Returns:
        Why it does not answer; empty if it does.
    """
    import huggingface_hub

    api = huggingface_hub.HfApi()
    failure = _failure_within(
        _HUB_DEADLINE_S, lambda: api.model_info(repo, timeout=_HUB_DEADLINE_S)
    )
    return _reason(failure) if failure else ""


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


def _file_weights(path: str, spec: EncoderSpec, name: str | None = None) -> Weights:
    file = Path(os.path.expanduser(path))
    if file.is_dir():
        wanted = dict.fromkeys((*(h.file for h in spec.hub), *spec.files, _SAFETENSORS_FILE))
        within = [file / name for name in wanted if (file / name).is_file()]
        if not within:
            raise WeightsUnavailableError(
                f"there is no file of weights in {file}: looked for {', '.join(wanted)}"
            )
        file = within[0]
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
            f"begins with {digest[:8]}: the download was probably cut short. {OTHER_FILE}"
        )
    _check_whose(file.name, digest, spec)
    return Weights(name=name or file.name, sha256=digest, path=file.absolute())


def _check_whose(name: str, digest: str, spec: EncoderSpec) -> None:
    """Refuse the published file of another encoder of the same shape, which would load.

    It may have another mean and std, or other padding. It is told by its name, or by the head of
    its digest that its published name carries.
    """
    generic = {"pytorch_model.bin", "open_clip_pytorch_model.bin"}
    for other in ENCODERS:
        for file in set(other.files) - set(spec.files) - generic:
            head = _PUBLISHED_HASH.fullmatch(file)
            if name == file or (head and digest.startswith(head[1])):
                raise WeightsError(
                    f"{name} holds the weights of {other.name}, whose input is prepared in its own "
                    f"way: ask for --model {other.name}"
                )


def _digest_cache() -> Path:
    return cache_folder() / "file-digests.json"


def _recalled_digests() -> dict[str, object]:
    try:
        known = json.loads(_digest_cache().read_bytes())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _hub_weights(spec: EncoderSpec) -> Weights:
    """Take weights from the local Hugging Face cache, or else from the hub if it answers soon."""
    if not spec.hub:
        raise WeightsUnavailableError(f"the hub has no weights of {spec.name}")
    first = spec.hub[0]
    try:
        from huggingface_hub.constants import HF_HUB_OFFLINE
    except ModuleNotFoundError as exc:
        raise WeightsUnavailableError(
            f"{first.repo} cannot be asked for: install dinocache[extract] for huggingface_hub"
        ) from exc
    if found := _cached(spec.hub):
        hub_file, path = found
        return _file_weights(str(path), spec, f"hub:{hub_file.repo}")
    if HF_HUB_OFFLINE:
        raise WeightsUnavailableError(
            f"{first.repo} is not in the local Hugging Face cache, and HF_HUB_OFFLINE is set"
        )
    downloaded, reason = _downloaded([h for h in spec.hub if h.repo == first.repo])
    if downloaded is None:
        raise WeightsUnavailableError(
            f"{first.repo} is not in the local Hugging Face cache and cannot be had from the hub: "
            f"{reason}"
        )
    return _file_weights(downloaded, spec, f"hub:{first.repo}")


def _downloaded(files: Sequence[HubFile]) -> tuple[str | None, str]:
    """Download the first file that a repository has: its path, or None and why not."""
    import huggingface_hub

    # One request without retries: hf_hub_download alone goes on trying for minutes where no
    # network is.
    reason = hub_answers(files[0].repo)
    if reason:
        return None, reason
    for hub_file in files:
        try:
            return huggingface_hub.hf_hub_download(hub_file.repo, hub_file.file), ""
        except huggingface_hub.errors.EntryNotFoundError as exc:
            reason = _reason(exc)
        except Exception as exc:  # its HTTP library's and its Rust part's errors share no base
            return None, _reason(exc)
    return None, reason


def _cached(files: Sequence[HubFile]) -> tuple[HubFile, Path] | None:
    try:
        import huggingface_hub
    except ModuleNotFoundError:
        return None
    for hub_file in files:
        found = huggingface_hub.try_to_load_from_cache(hub_file.repo, hub_file.file)
        if isinstance(found, str):
            return hub_file, Path(found)
    return None


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
