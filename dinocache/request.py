"""What a person asks of an extraction, and how words become it."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dinocache.errors import RequestError
from dinocache.recipe import ChannelsRecipe, FormRecipe, StorageRecipe, WindowRecipe
from dinocache.views import VIEWS

__all__ = [
    "CT_WINDOWS",
    "ExtractRequest",
    "parse_channels",
    "parse_options",
    "parse_part",
    "parse_resolution",
    "parse_storage",
    "parse_windows",
]

DEFAULT_MODEL = "dinov3-s"

CT_WINDOWS = {
    "hu": (-1000.0, 1000.0),
    "lung": (-1350.0, 150.0),
    "soft-tissue": (-160.0, 240.0),
    "mediastinum": (-125.0, 225.0),
    "bone": (-500.0, 1300.0),
    "brain": (0.0, 80.0),
    "suv": (0.0, 20.0),
}
"""Names for pairs of values: HU, but for suv. `hu` and `suv` as CT-CLIP and autoPET clip; the
others are the usual widths and levels: 1500/-600, 400/40, 350/50, 1800/400, 80/40."""
_LEVEL_WIDTH = re.compile(r"W(?P<width>[\d.]+)L(?P<level>-?[\d.]+)", re.IGNORECASE)
_SORTS = ("vectors", "dense")
_SPREADS = {"percentile": (0.5, 99.5), "z-score": (-3.0, 3.0)}


@dataclass(frozen=True, kw_only=True)
class ExtractRequest:
    """What a person asks of `dinocache extract`; None is "as the store has it, or the default"."""

    dataset: str
    data: Path | None = None
    root: Path | str = "features"
    name: str | None = None
    model: str = DEFAULT_MODEL
    resolution: tuple[int, int] | None = None
    variant: str = ""
    features: tuple[str, ...] | None = None
    layers: str | None = None
    views: tuple[str | None, ...] = (None,)
    resize: Literal["squash", "pad", "crop"] | None = None
    arithmetic: Literal["float32", "uint8"] | None = None
    windows: tuple[WindowRecipe, ...] | None = None
    channels: ChannelsRecipe | None = None
    reader: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    weights: str | None = None
    rope: Literal["auto", "float32"] | None = None
    device: str = "auto"
    any_device: bool = False
    precision: Literal["fp32", "bf16"] | None = None
    dtype: str | None = None
    quantize: str | None = None
    pca: str | None = None
    calibration: str | None = None
    codec: Literal["none", "zstd", "blosc"] | None = None
    compiled: bool | None = None
    batch: int | None = None
    unit_rows: int | None = None
    workers: int | None = None
    append: bool = False
    allow_missing: bool = False
    retry_failed: bool = False
    retry_changed: bool = False
    max_failures: int | None = None
    hash_sources: bool = False
    part: tuple[int, int] | None = None


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


def parse_part(text: str) -> tuple[int, int]:
    """Read `3/8`, the third of eight shares of the units.

    Args:
        text: As a person or a job array gives it.

    Returns:
        (number from 1, shares).

    Raises:
        RequestError: If it is not so.
    """
    number, _, shares = text.partition("/")
    if number.isdecimal() and shares.isdecimal() and 1 <= int(number) <= int(shares) <= 100_000:
        return int(number), int(shares)
    raise RequestError(f"--part {text!r}: give I/N with I from 1 to N, as 3/8")


def parse_windows(text: str) -> tuple[WindowRecipe, ...]:
    """Read windows, one for all channels or one a channel, with commas.

    Args:
        text: Each is `full-range`, `file`, `min-max`, `LOW:HIGH`, `W400L40`, a name of
            `CT_WINDOWS`, `percentile[:LOW:HIGH]` (0.5 to 99.5) or `z-score[:N]` (3); the last two
            and `min-max` also with `/nonzero` behind.

    Returns:
        The windows.

    Raises:
        RequestError: If one is none of these, or its low value is not below its high one.
    """
    return tuple(_parse_window(part.strip(), text) for part in text.split(","))


def _parse_window(text: str, whole: str) -> WindowRecipe:
    name, _, numbers = text.removesuffix("/nonzero").partition(":")
    nonzero = text.endswith("/nonzero")
    mode: Any = name
    if name in ("full-range", "file", "min-max") and not numbers:
        if not nonzero or name == "min-max":
            return WindowRecipe(mode=mode, nonzero=nonzero)
    elif name in _SPREADS:
        low, high = _SPREADS[name]
        try:
            given = [float(part) for part in numbers.split(":")] if numbers else []
            if name == "z-score" and given:
                (spread,) = given
                low, high = -spread, spread
            elif given:
                low, high = given
        except ValueError:
            low = high = math.nan
        within = name == "z-score" or (low >= 0 and high <= 100)
        if low < high and within and math.isfinite(high):
            return WindowRecipe(mode=mode, low=low, high=high, nonzero=nonzero)
    elif not nonzero and (pair := _two_values(text)):
        return WindowRecipe(mode="range", low=pair[0], high=pair[1])
    raise RequestError(
        f"--window {whole!r}: give full-range, file, min-max, LOW:HIGH in stored values (as "
        f"-1000:1000), W400L40, {', '.join(CT_WINDOWS)}, percentile:1:99, or z-score:3; one, or "
        "one a channel with commas"
    )


def _two_values(text: str) -> tuple[float, float] | None:
    """Read `LOW:HIGH`, width and level, or a name; None if it is none of them."""
    if text in CT_WINDOWS:
        return CT_WINDOWS[text]
    try:
        if match := _LEVEL_WIDTH.fullmatch(text):
            # Exact, as for values that are not whole numbers: DICOM PS3.3 C.11.2.1.3.2.
            level, width = float(match["level"]), float(match["width"])
            low, high = level - width / 2, level + width / 2
        else:
            low, high = (float(part) for part in text.split(":"))
    except ValueError:
        return None
    return (low, high) if math.isfinite(low) and math.isfinite(high) and low < high else None


def parse_channels(text: str) -> ChannelsRecipe:
    """Read `stacked`, `passes`, or `passes:NAME,NAME` for the channels of one file.

    Args:
        text: As a person or a manifest gives it.

    Returns:
        What becomes of an item's channels.

    Raises:
        RequestError: If it is none of these, or a name has other characters than a-z, 0-9 and _.
    """
    mode, _, names = text.partition(":")
    listed = tuple(name.strip() for name in names.split(",")) if names else ()
    good = all(re.fullmatch(r"(?!l\d\d$)[a-z0-9_]+", name) for name in listed)
    good = good and not set(listed) & set(VIEWS)
    if mode not in ("stacked", "passes") or not good or len(set(listed)) != len(listed):
        raise RequestError(
            f"--channels {text!r}: give stacked, passes, or passes:NAME,NAME (each name once, of "
            "a-z, 0-9 and _)"
        )
    chosen: Literal["stacked", "passes"] = "stacked" if mode == "stacked" else "passes"
    return ChannelsRecipe(mode=chosen, names=listed)


def parse_storage(
    known: StorageRecipe,
    *,
    dtype: str | None = None,
    quantize: str | None = None,
    pca: str | None = None,
) -> StorageRecipe:
    """Read how features are to be kept; each for all, or with `:dense` or `:vectors` for one sort.

    Args:
        known: What holds where nothing is said.
        dtype: As `float32`, or `float32:vectors`.
        quantize: `int8`, or `int8:dense`, or `none`.
        pca: Components, as `64`, or `64:dense,128:vectors`, or `none`.

    Returns:
        How.

    Raises:
        RequestError: If one cannot be read, or two exclude each other.
    """
    floats = _by_sort("--dtype", dtype, ("float16", "float32"))
    codes = _by_sort("--quantize", quantize, ("int8", "none"))
    components = _by_sort("--pca", pca, None)
    forms: dict[str, FormRecipe] = {}
    for sort in _SORTS:
        form: FormRecipe = getattr(known, sort)
        if sort in floats and codes.get(sort) == "int8":
            raise RequestError(
                f"--dtype {dtype} and --quantize {quantize}: {sort} cannot be kept as both; leave "
                "one of the two out"
            )
        said: dict[str, Any] = {}
        if codes.get(sort) == "none" and form.dtype == "int8":
            said["dtype"] = "float16"
        elif codes.get(sort) == "int8":
            said["dtype"] = "int8"
        if sort in floats:
            said["dtype"] = floats[sort]
        if sort in components:
            said["pca"] = None if components[sort] == "none" else int(components[sort])
        forms[sort] = form.model_copy(update=said)
    return StorageRecipe(**forms)


def _by_sort(option: str, text: str | None, choices: tuple[str, ...] | None) -> dict[str, Any]:
    """Read `VALUE` or `VALUE:dense,VALUE:vectors` as sort -> value; a count without choices."""
    found: dict[str, Any] = {}
    for part in text.split(",") if text is not None else ():
        value, colon, sort = part.strip().partition(":")
        known = value in choices if choices else value == "none" or _is_count(value)
        sorts = (sort,) if colon else _SORTS
        if not known or not set(sorts) <= set(_SORTS) or not found.keys().isdisjoint(sorts):
            named = " or ".join(choices) if choices else "a number of components, or none"
            example = f"{choices[0] if choices else 64}:dense"
            raise RequestError(f"{option} {text!r}: give {named}; for maps alone {example}")
        found |= dict.fromkeys(sorts, value)
    return found


def _is_count(text: str) -> bool:
    return text.isdecimal() and len(text) < 6 and int(text) > 0


def parse_options(given: Sequence[str]) -> dict[str, Any]:
    """Read options of a reader.

    Args:
        given: Each as `spacing=1,1,3` or `axis=coronal`; commas make a list.

    Returns:
        Name -> value; numbers are still text, the reader's own checks turn them.

    Raises:
        RequestError: If one has no `=`.
    """
    options: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise RequestError(f"--option {text!r}: give NAME=VALUE, as spacing=1,1,3")
        parts = [part.strip() for part in value.split(",") if part.strip()]
        options[name.strip()] = parts if "," in value else value
    return options
