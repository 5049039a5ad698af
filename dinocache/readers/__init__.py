"""Readers of medical images, one a sort of item. See docs/readers.md."""

import importlib
import itertools
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from dinocache.errors import RequestError
from dinocache.readers.contract import (
    ItemFiles,
    Labels,
    OpenItem,
    Pixels,
    Reader,
    ReaderOptions,
    guarded,
    read_rows,
)

__all__ = [
    "READERS",
    "ItemFiles",
    "Labels",
    "OpenItem",
    "Pixels",
    "Reader",
    "ReaderOptions",
    "guarded",
    "guess_reader",
    "make_reader",
    "read_rows",
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
_LOOKERS, _AT_ONCE = 32, 256
"""Threads that look whether paths are folders: on a file server they mostly wait."""
_PICTURES = (".png", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp", ".webp")
_READER_OF = {suffix: name for name, listed in _SUFFIXES.items() for suffix in listed.split()}
_READER_OF |= dict.fromkeys(_PICTURES, "image")


def guess_reader(paths: Iterable[str | Path]) -> str:
    """Choose the reader that suits the names of files.

    Args:
        paths: Of items; those that are folders are looked into.

    Returns:
        One of `READERS`. A folder of pictures is a stack, another one a volume, and what nothing
        else claims is an image.

    Raises:
        RequestError: If the names speak for different readers.
    """
    listed = list(paths)
    named = [_READER_OF.get(_suffix(path), "") for path in listed]
    others = [path for path, name in zip(listed, named, strict=True) if not name]
    parts = [others[i : i + _AT_ONCE] for i in range(0, len(others), _AT_ONCE)]
    with ThreadPoolExecutor(_LOOKERS) as pool:
        done = pool.map(lambda part: [_reader_of_other(path) for path in part], parts)
        looked = itertools.chain.from_iterable(done)
    found: dict[str, str | Path] = {}
    for path, name in zip(listed, named, strict=True):
        found.setdefault(name or next(looked), path)
    if len(found) > 1:
        (first, a), (second, b) = list(found.items())[:2]
        raise RequestError(
            f"{os.path.basename(a)} speaks for the reader {first}, {os.path.basename(b)} for "
            f"{second}: a store has one; name it with --reader, or make a table of each sort"
        )
    return next(iter(found), "image")


def _suffix(path: str | Path) -> str:
    stem, suffix = os.path.splitext(os.path.basename(path).lower())
    return os.path.splitext(stem)[1] + suffix if suffix == ".gz" else suffix


def _reader_of_other(path: str | Path) -> str:
    if not os.path.isdir(path):
        return "image"
    first = min((p.name for p in Path(path).iterdir() if p.is_file()), default="")
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
