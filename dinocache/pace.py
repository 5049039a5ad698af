"""How fast stages are that work at the same time: arithmetic."""

import os
from dataclasses import dataclass

__all__ = ["Pace", "pace", "usable_cores"]


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How fast an extraction is.

    Attributes:
        seconds: In all.
        held_back_by: `reading` or `encoder`.
    """

    seconds: float
    held_back_by: str


def pace(
    *,
    reading_s: float,
    reading_cpu: float,
    encoder_s: float,
    encoder_cpu_s: float,
    workers: int,
    cores: int,
    shared: bool,
) -> Pace:
    """Put together what reading and encoding take, which go on at the same time.

    Args:
        reading_s: Seconds of reading, in one thread.
        reading_cpu: Seconds that cores work for each of them.
        encoder_s: Seconds of encoding.
        encoder_cpu_s: Seconds that cores work for that.
        workers: Threads that read.
        cores: Of the machine.
        shared: Whether the encoder runs on the cores that read.

    Returns:
        Of stages that share cores their sum, but at least the slower one; else the slower one.
    """
    reading = max(reading_s / workers, reading_s * reading_cpu / cores)
    if not shared:
        slower = "reading" if reading > encoder_s else "encoder"
        return Pace(seconds=max(reading, encoder_s), held_back_by=slower)
    both = (reading_s * reading_cpu + encoder_cpu_s) / cores
    seconds = max(both, reading, encoder_s)
    if seconds > both:
        slower = "reading" if reading > encoder_s else "encoder"
    else:
        slower = "reading" if reading_s * reading_cpu > encoder_cpu_s else "encoder"
    return Pace(seconds=seconds, held_back_by=slower)


def usable_cores() -> int:
    """Count the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
