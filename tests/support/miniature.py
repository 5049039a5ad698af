"""Tiny copies of datasets in their own official layouts, oddities included: tests/miniatures.

A module a dataset, named as its manifest with `_` for `-`. Each has `MINIATURE`.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dinocache.manifest import shipped_manifests

__all__ = ["Miniature", "miniature", "miniatures", "move"]


@dataclass(frozen=True, kw_only=True)
class Miniature:
    """What a tiny copy has.

    Attributes:
        make: Writes it into a folder.
        items: Item ids that have files.
        groups: How many groups these are of.
        missing: Ids that the tables list, and whose files the copy lacks.
        sides: Split -> side or fold -> items. Of rules, what they come to here.
        targets: Item id -> column -> value, of a few items, as worked out by hand.
        masks: Items that have a mask.
        rows: Of each item once read, where it is not 1.
        options: Of the reader, where real ones would make nothing of tiny files.
        features: Kinds to extract.
        layouts: Name -> rearranges a copy as mirrors, or other releases, have it.
    """

    make: Callable[[Path], None]
    items: int
    groups: int
    missing: tuple[str, ...] = ()
    sides: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    targets: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    masks: int = 0
    rows: Mapping[str, int] = field(default_factory=dict)
    options: Mapping[str, object] = field(default_factory=dict)
    features: tuple[str, ...] = ("cls", "mean")
    layouts: Mapping[str, Callable[[Path], None]] = field(default_factory=dict)


def move(folder: Path, pattern: str, target: str) -> None:
    """Move all files that match into one folder, and forget those that are left empty."""
    (folder / target).mkdir(parents=True, exist_ok=True)
    for path in sorted(folder.glob(pattern)):
        if path.is_file() and path.parent != folder / target:
            path.rename(folder / target / path.name)


def miniatures() -> list[str]:
    """Name the datasets that have one: all that are shipped, but for what comes with its data."""
    return [name for name in shipped_manifests() if name != "demo"]


def miniature(name: str) -> Miniature:
    """Find one by the name of its manifest."""
    module = importlib.import_module(name.replace("-", "_"))
    found: Miniature = module.MINIATURE
    return found
