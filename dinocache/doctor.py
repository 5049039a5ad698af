"""What this machine has for extraction, and what to do about each lack."""

import importlib
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from dinocache import __version__
from dinocache.devices import can_compile, device_memory
from dinocache.places import folder_of
from dinocache.progress import human_bytes
from dinocache.weights import hub_answers

__all__ = ["Finding", "examine"]

State = Literal["good", "note", "lack"]

_PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "open_clip",
    "PIL",
    "huggingface_hub",
    "psutil",
    "zarr",
)
_OF_READERS = {
    "nibabel": "NIfTI volumes",
    "isal": "compressed volumes",
    "pydicom": "DICOM",
    "openslide": "slides",
    "tifffile": "TIFF",
    "imagecodecs": "slides, 16-bit colour, compressed DICOM",
    "av": "videos",
    "h5py": "HDF5 stacks",
    "scipy": "tissue of slides, channels on other grids",
}
_DISTRIBUTIONS = {
    "PIL": "pillow",
    "open_clip": "open_clip_torch",
    "openslide": "openslide-python",
}
_CODECS = {"jpg": "JPEG", "zlib": "PNG", "libtiff": "compressed TIFF", "jpg_2000": "JPEG 2000"}
_PROBED_REPO = "timm/vit_small_patch16_dinov3.lvd1689m"
_LITTLE_DISK, _LITTLE_MEMORY = 10e9, 8e9


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        what: Its name.
        state: `good`; `note`, where something is missing that may not be needed; or `lack`.
        found: What is there.
        advice: What to do about it; empty where nothing need be done.
    """

    what: str
    state: State
    found: str
    advice: str = ""


def examine(root: Path | str) -> list[Finding]:
    """Look at everything.

    Args:
        root: Where stores are to lie; its disk is looked at.

    Returns:
        Findings, in order.
    """
    checks: tuple[Callable[[], list[Finding]], ...] = (
        _python,
        _packages,
        _devices,
        _readers,
        _hub,
        lambda: _room(root),
    )
    return [finding for check in checks for finding in check()]


def _python() -> list[Finding]:
    version = ".".join(str(n) for n in sys.version_info[:3])
    return [Finding(what="dinocache", state="good", found=f"{__version__}, Python {version}")]


def _packages() -> list[Finding]:
    found = []
    for name in (*_PACKAGES, *_OF_READERS):
        distribution = _DISTRIBUTIONS.get(name, name)
        try:
            importlib.import_module(name)
            version = metadata.version(distribution)
        except metadata.PackageNotFoundError:  # there, under another distribution's name
            found.append(Finding(what=name, state="good", found="version unknown"))
        except ModuleNotFoundError as exc:
            advice = "pip install 'dinocache[extract]'"
            text = "not installed" if exc.name == name else f"needs {exc.name}, not installed"
            if name in _OF_READERS:
                text += f": {_OF_READERS[name]} cannot be read"
            found.append(Finding(what=name, state="lack", found=text, advice=advice))
        except Exception as exc:  # torchvision beside a foreign torch fails in its own way
            advice = "install torch and torchvision as a pair, see README, 'What each machine gets'"
            text = f"cannot be imported: {' '.join(str(exc).split())}"
            found.append(Finding(what=name, state="lack", found=text, advice=advice))
        else:
            found.append(Finding(what=name, state="good", found=version))
    return found


def _devices() -> list[Finding]:
    try:
        import torch
    except (ImportError, OSError):  # a broken one is reported among the packages
        return []
    if torch.cuda.is_available():
        found = []
        for index in range(torch.cuda.device_count()):
            device = f"cuda:{index}"
            text = f"{torch.cuda.get_device_name(index)}, {human_bytes(device_memory(device))}"
            found.append(Finding(what=device, state="good", found=text))
        compiles = can_compile("cuda")
        found.append(
            Finding(
                what="compiling",
                state="good" if compiles else "note",
                found="triton" if compiles else "no triton: encoders run uncompiled",
                advice="" if compiles else "pip install triton, for 1.3 to 1.7 times the speed",
            )
        )
        return found
    if torch.backends.mps.is_available():
        return [Finding(what="mps", state="good", found="Apple GPU")]
    built = torch.version.cuda
    advice = "on a machine with an NVIDIA GPU: see that `nvidia-smi` lists it" + (
        "" if built else ", and install PyPI's torch, which is the CUDA build"
    )
    text = f"none; torch is built {f'for CUDA {built}' if built else 'for the CPU only'}"
    threads = Finding(what="cpu", state="good", found=f"{torch.get_num_threads()} threads")
    return [Finding(what="gpu", state="note", found=text, advice=advice), threads]


def _readers() -> list[Finding]:
    try:
        from PIL import features
    except Exception:  # a broken one is reported among the packages
        return []
    lacking = [name for codec, name in _CODECS.items() if not features.check(codec)]
    codecs = Finding(
        what="image codecs",
        state="lack" if lacking else "good",
        found=f"without {', '.join(lacking)}" if lacking else ", ".join(_CODECS.values()),
        advice="pip install --force-reinstall pillow" if lacking else "",
    )
    return [codecs]


def _hub() -> list[Finding]:
    try:
        import huggingface_hub
        from huggingface_hub.constants import HF_HUB_CACHE, HF_HUB_OFFLINE
    except Exception:  # a broken one is reported among the packages
        return []
    cache = Finding(what="hub cache", state="good", found=str(HF_HUB_CACHE))
    token = huggingface_hub.get_token() is not None
    log_in = Finding(
        what="hub token",
        state="good" if token else "note",
        found="set" if token else "not set",
        advice="" if token else "for gated weights: `hf auth login`",
    )
    if HF_HUB_OFFLINE:
        advice = "unset HF_HUB_OFFLINE to download weights"
        return [
            Finding(what="hub", state="note", found="told offline", advice=advice),
            log_in,
            cache,
        ]
    reason = hub_answers(_PROBED_REPO)
    hub = Finding(
        what="hub",
        state="note" if reason else "good",
        found=f"does not answer: {reason}" if reason else "answers",
        advice="pass files of weights with --weights PATH" if reason else "",
    )
    return [hub, log_in, cache]


def _room(root: Path | str) -> list[Finding]:
    path = folder_of(root).path
    return [*([] if path is None else [_disk(path)]), *_memory()]


def _disk(root: Path) -> Finding:
    folder = root.absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    writable = os.access(folder, os.W_OK)
    return Finding(
        what="disk",
        state="lack" if not writable else "note" if free < _LITTLE_DISK else "good",
        found=f"{human_bytes(free)} free at {root}{'' if writable else ', not writable'}",
        advice="choose another --store"
        if not writable
        else "`dinocache plan` says what is needed"
        if free < _LITTLE_DISK
        else "",
    )


def _memory() -> list[Finding]:
    try:
        import psutil
    except Exception:  # a broken one is reported among the packages
        return []
    memory = psutil.virtual_memory()
    little = memory.available < _LITTLE_MEMORY
    found = f"{human_bytes(memory.available)} of {human_bytes(memory.total)} available"
    advice = "a smaller --batch needs less" if little else ""
    state: State = "note" if little else "good"
    return [Finding(what="memory", state=state, found=found, advice=advice)]
