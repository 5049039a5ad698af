"""What a person asks of an extraction, and how words become it."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dinocache.errors import RequestError
from dinocache.recipe import WindowRecipe

__all__ = ["ExtractRequest", "parse_resolution", "parse_window"]

DEFAULT_MODEL = "dinov3-s"


@dataclass(frozen=True, kw_only=True)
class ExtractRequest:
    """What a person asks of `dinocache extract`; None is "as the store has it, or the default"."""

    dataset: str
    data: Path | None = None
    root: Path = Path("features")
    name: str | None = None
    model: str = DEFAULT_MODEL
    resolution: tuple[int, int] | None = None
    variant: str = ""
    features: tuple[str, ...] | None = None
    layers: str | None = None
    resize: Literal["squash", "pad", "crop"] | None = None
    arithmetic: Literal["float32", "uint8"] | None = None
    window: WindowRecipe | None = None
    weights: str | None = None
    rope: Literal["auto", "float32"] | None = None
    device: str = "auto"
    any_device: bool = False
    precision: Literal["fp32", "bf16"] | None = None
    compiled: bool | None = None
    batch: int | None = None
    unit_rows: int | None = None
    workers: int | None = None
    append: bool = False
    retry_failed: bool = False


def parse_resolution(text: str | int) -> tuple[int, int]:
    """Read `512`, or `512x640` as height x width.

    Args:
        text: As a person or a manifest gives it.

    Returns:
        (height, width), px.

    Raises:
        RequestError: If it is neither.
    """
    parts = str(text).lower().split("x")
    if len(parts) not in (1, 2) or not all(p.isdecimal() and 0 < len(p) < 6 for p in parts):
        raise RequestError(
            f"--resolution {text!r}: give one side as 512, or height x width as 512x640"
        )
    return int(parts[0]), int(parts[-1])


def parse_window(text: str) -> WindowRecipe:
    """Read `full-range`, `min-max`, or `LOW:HIGH` in stored values.

    Args:
        text: As a person gives it.

    Returns:
        The window.

    Raises:
        RequestError: If it is none of these, or LOW is not below HIGH.
    """
    if text in ("full-range", "min-max"):
        return WindowRecipe(mode=text)
    try:
        low, high = (float(part) for part in text.split(":"))
    except ValueError:
        low = high = math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise RequestError(
            f"--window {text!r}: give full-range, min-max, or LOW:HIGH in stored values, as "
            "-1000:1000"
        )
    return WindowRecipe(mode="range", low=low, high=high)
