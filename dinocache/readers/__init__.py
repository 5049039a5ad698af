"""Readers of medical images, one a sort of item. See docs/readers.md."""

import importlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dinocache.errors import RequestError
from dinocache.readers.contract import ItemFiles, Labels, OpenItem, Pixels, Reader, ReaderOptions

__all__ = [
    "READERS",
    "ItemFiles",
    "Labels",
    "OpenItem",
    "Pixels",
    "Reader",
    "ReaderOptions",
    "guess_reader",
    "make_reader",
    "reader_class",
]

READERS = {
    "image": "ImageReader",
    "volume": "VolumeReader",
    "slide": "SlideReader",
    "video": "VideoReader",
    "stack": "StackReader",
}
"""Name -> class, in the module of that name: each brings libraries along that others do without."""


_SUFFIXES = {
    "volume": ".nii .nii.gz .nrrd .nhdr .mha .mhd .hdr .hdr.gz .img .img.gz",
    "slide": ".svs .ndpi .mrxs .scn .bif .vms .vmu .svslide",
    "video": ".mp4 .avi .mkv .mov .m4v .webm .mpg .mpeg",
    "stack": ".h5 .hdf .hdf5",
}
_READER_OF = {suffix: name for name, listed in _SUFFIXES.items() for suffix in listed.split()}
_PICTURES = (".png", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp", ".webp")


def guess_reader(paths: Iterable[Path]) -> str:
    """Choose the reader that suits the names of files.

    Args:
        paths: Of items; those that are folders are looked into.

    Returns:
        One of `READERS`. A folder of pictures is a stack, another one a volume, and what nothing
        else claims is an image.

    Raises:
        RequestError: If the names speak for different readers.
    """
    found: dict[str, Path] = {}
    for path in paths:
        lower = path.name.lower()
        suffix = "".join(
            Path(lower).suffixes[-2:] if lower.endswith(".gz") else [Path(lower).suffix]
        )
        found.setdefault(_READER_OF.get(suffix) or _reader_of_other(path, suffix), path)
    if len(found) > 1:
        (first, a), (second, b) = list(found.items())[:2]
        raise RequestError(
            f"{a.name} speaks for the reader {first}, {b.name} for {second}: a store has one; name "
            "it with --reader, or make a table of each sort"
        )
    return next(iter(found), "image")


def _reader_of_other(path: Path, suffix: str) -> str:
    if suffix in _PICTURES or not path.is_dir():
        return "image"
    first = min((p.name for p in path.iterdir() if p.is_file()), default="")
    return "stack" if first.lower().endswith(_PICTURES) else "volume"


def reader_class(name: str) -> type[Reader[Any]]:
    """Find a reader.

    Args:
        name: One of `READERS`.

    Returns:
        Its class.

    Raises:
        RequestError: If there is no such reader.
    """
    if name not in READERS:
        raise RequestError(f"there is no reader {name!r}; there are {', '.join(READERS)}")
    module = importlib.import_module(f"dinocache.readers.{name}")
    found: type[Reader[Any]] = getattr(module, READERS[name])
    return found


def make_reader(name: str, options: Mapping[str, object] | None = None) -> Reader[Any]:
    """Make a reader.

    Args:
        name: One of `READERS`.
        options: See its `Options`.

    Returns:
        The reader.

    Raises:
        RequestError: If there is no such reader or option, or a value is not what it must be.
    """
    return reader_class(name)(options)
