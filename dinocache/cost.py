"""What a row costs an encoder: operations, memory, and the batch that follows from them.

All from the table's facts: the plan must be the same on every machine.
"""

from dinocache.spec import EncoderSpec

__all__ = ["activation_bytes", "default_batch", "gflop", "weight_bytes"]

_ENOUGH_GFLOP = 12_000.0
"""Of a pass: some 20 ms of the largest GPU, beside which starting it costs nothing."""
_ENOUGH_TOKENS = 4096
"""Of a pass: with fewer, matrices are too thin for it."""
_MOST_ROWS = 256
_USABLE = 0.85
"""Of a device's memory; the rest is the driver's and the allocator's."""


def gflop(spec: EncoderSpec, resolution: tuple[int, int]) -> float | None:
    """Estimate the operations of one row.

    Args:
        spec: The encoder.
        resolution: (height, width), px.

    Returns:
        1e9 operations, a multiply-add counted as two; to 3%. None where it is not known.
    """
    height, width = resolution
    if spec.gflop_224 is not None:
        return spec.gflop_224 * height * width / 224**2
    if spec.network != "tokens":
        return None
    tokens = _tokens(spec, resolution)
    return (2 * tokens * spec.params + 4 * tokens**2 * spec.dim * spec.depth) / 1e9


def weight_bytes(spec: EncoderSpec) -> int:
    """Give the size of the weights in float32; under bf16 they take about half of it."""
    return 4 * spec.params


def activation_bytes(spec: EncoderSpec, resolution: tuple[int, int]) -> int:
    """Estimate the memory of a row's forward pass in float32, from above.

    Args:
        spec: The encoder.
        resolution: (height, width), px.

    Returns:
        Bytes, weights apart; not for a `volume` network, which takes an item at a time. Held
        against what is measured in `benchmarks/memory.py`.
    """
    height, width = resolution
    if spec.pyramid:
        patch, dim = max(spec.pyramid, key=lambda stage: stage[1] / stage[0] ** 2)
        return 4 * 13 * dim * (height // patch) * (width // patch)
    return 4 * 32 * spec.dim * _tokens(spec, resolution)


def default_batch(
    spec: EncoderSpec, resolution: tuple[int, int], *, memory_bytes: float = 8e9
) -> int:
    """Choose the rows of a pass: what keeps a large GPU busy and fits beside the weights.

    Args:
        spec: The encoder.
        resolution: (height, width), px.
        memory_bytes: What the device has. An encoder whose weights alone do not fit in the default
            is given 2e9 for its rows.

    Returns:
        A power of two from 1 to 256.
    """
    if spec.network == "volume":
        return 1
    free = max(_USABLE * memory_bytes - weight_bytes(spec), 2e9)
    fits = int(free / activation_bytes(spec, resolution))
    operations = gflop(spec, resolution) or _ENOUGH_GFLOP
    enough = max(_ENOUGH_GFLOP / operations, _ENOUGH_TOKENS / _tokens(spec, resolution))
    rows = max(1, min(int(enough), fits, _MOST_ROWS))
    return 1 << (rows.bit_length() - 1)


def _tokens(spec: EncoderSpec, resolution: tuple[int, int]) -> int:
    height, width = resolution
    return (height // spec.patch_px) * (width // spec.patch_px) + spec.prefix_tokens
