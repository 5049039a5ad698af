"""Where an encoder runs: which device, how much memory it has, whether torch can compile for it."""

from dinocache.errors import RequestError

__all__ = ["can_compile", "choose_device", "device_memory", "has_bf16"]


def choose_device(asked: str) -> str:
    """Find the device that a person asks for.

    Args:
        asked: `auto`, or a device of torch's; `auto` is the first of cuda, mps, cpu that is there.

    Returns:
        A device of torch's.

    Raises:
        RequestError: If this machine has none of that name.
    """
    import torch

    there = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if asked == "auto":
        return next(kind for kind, is_there in there.items() if is_there)
    try:
        device = torch.device(asked)
        beyond = device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()
        kind = "" if beyond else device.type
    except RuntimeError:
        kind = ""
    if not there.get(kind, False):
        have = ", ".join(k for k, is_there in there.items() if is_there)
        raise RequestError(f"--device {asked}: this machine has {have}; 'auto' chooses")
    return asked


def device_memory(device: str) -> int:
    """Give the memory of a device, bytes; where it is the machine's own, that."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.get_device_properties(device).total_memory)
    import psutil

    return int(psutil.virtual_memory().total)


def has_bf16(device: str) -> bool:
    """Tell whether a CUDA device multiplies in bfloat16 by itself (from Ampere on)."""
    if not device.startswith("cuda"):
        return False
    import torch

    return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def can_compile(device: str) -> bool:
    """Tell whether torch can compile for a device, to any use.

    On a CPU it takes 20 s and gains next to nothing (docs/benchmarks.md).
    """
    if not has_bf16(device):
        return False
    from torch.utils._triton import has_triton

    return bool(has_triton())
