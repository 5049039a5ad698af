"""Folders of numbered pictures: frames of a video, sections of a stack."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dinocache.errors import ItemError
from dinocache.readers.contract import Labels, Pixels, translated
from dinocache.readers.pictures import Picture, open_pictures, printable

__all__ = ["Sequence", "natural"]

_SUFFIXES = {
    ".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".tif": "TIFF", ".tiff": "TIFF", ".bmp": "BMP",
    ".webp": "WebP",
}  # fmt: skip


def natural(name: str) -> tuple[tuple[str, int], ...]:
    """Give the key that sorts frame2 before frame10.

    Args:
        name: Of a file.

    Returns:
        Its texts and numbers in turn.
    """
    parts = re.split(r"([0-9]+)", name)
    return tuple(
        (text, int(number[:4000] or 0))
        for text, number in zip(parts[::2], [*parts[1::2], ""], strict=True)
    )


class Sequence:
    """The pictures of a folder in natural order, all of one size and type.

    Files of other suffixes than a picture's, and hidden ones, are passed over. Several kinds of
    pictures are refused: a converter that leaves its source there makes two of each.

    Attributes:
        shape: (C, Y, X) of a picture, without alpha.
        dtype: Of their values.
        value_range: If it is not that of the type.
        notes: Numbers that are left out.
    """

    def __init__(self, folder: Path) -> None:
        with translated("cannot be listed"):
            paths = [
                path
                for path in folder.iterdir()
                if path.suffix.lower() in _SUFFIXES
                and not path.name.startswith(".")
                and path.is_file()
            ]
        if not paths:
            raise ItemError("a folder without a picture: " + ", ".join(sorted(_SUFFIXES)))
        paths.sort(key=lambda path: (natural(path.name), path.name))
        _check_one_kind(paths)
        self._pictures = [_only(path) for path in paths]
        first = self._pictures[0]
        for picture in self._pictures:
            if (picture.shape, picture.dtype) != (first.shape, first.dtype):
                raise ItemError(
                    f"{printable(picture.path.name)} is {_sort(picture)}, "
                    f"{printable(first.path.name)} {_sort(first)}; all must be the same"
                )
        channels, *plane = first.shape
        self.shape = (channels - first.alpha, plane[0], plane[1])
        if self.shape[0] not in (1, 3):
            raise ItemError(f"{printable(first.path.name)} has {channels} channels, not 1 or 3")
        self.dtype = first.dtype
        self.value_range = first.value_range
        self.notes = _gaps([path.stem for path in paths])

    def __len__(self) -> int:
        return len(self._pictures)

    def row(self, index: int) -> Pixels:
        """Decode a picture.

        Args:
            index: Its place.

        Returns:
            (C, Y, X).

        Raises:
            ItemError: If it is damaged.
        """
        picture = self._pictures[index]
        try:
            return picture.decode()[: self.shape[0]]
        except ItemError as exc:
            raise ItemError(f"{printable(picture.path.name)}: {exc}") from exc

    def labels(self) -> Labels:
        """Decode all pictures as label maps.

        Returns:
            (1, pictures, Y, X) integers.

        Raises:
            ItemError: If one is damaged, or none.
        """
        found = []
        for picture in self._pictures:
            try:
                found.append(picture.labels())
            except ItemError as exc:
                raise ItemError(f"{printable(picture.path.name)}: {exc}") from exc
        whole: npt.NDArray[np.integer[Any]] = np.stack(found)[None]
        return whole


def _check_one_kind(paths: list[Path]) -> None:
    first: dict[str, str] = {}
    for path in paths:
        first.setdefault(_SUFFIXES[path.suffix.lower()], printable(path.name))
    if len(first) > 1:
        (one, name), (other, another) = list(first.items())[:2]
        raise ItemError(
            f"a folder of pictures of several kinds, {one} ({name}) and {other} ({another}); keep "
            "one kind in it"
        )


def _only(path: Path) -> Picture:
    try:
        pictures = open_pictures(path)
        if len(pictures) > 1:
            raise ItemError(f"{len(pictures)} pages; one a file is expected")
    except ItemError as exc:
        raise ItemError(f"{printable(path.name)}: {exc}") from exc
    return pictures[0]


def _sort(picture: Picture) -> str:
    return f"{' x '.join(map(str, picture.shape))} {picture.dtype.name}"


def _gaps(stems: list[str]) -> tuple[str, ...]:
    """Say which numbers are missing, where the last number of a name counts and the rest is one."""
    numbers = [re.fullmatch(r"(.*?)([0-9]{1,9})([^0-9]*)", stem) for stem in stems]
    around = {(match[1], match[3]) for match in numbers if match}
    if not all(numbers) or len(around) != 1:
        return ()
    present = [int(match[2]) for match in numbers if match]
    missing = present[-1] - present[0] + 1 - len(present)
    if missing <= 0:
        return ()
    return (f"of the numbers {present[0]} to {present[-1]} {missing} are missing",)
