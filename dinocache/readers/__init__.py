"""Readers of medical images, one a sort of item."""

from collections.abc import Callable, Mapping

from dinocache.errors import RequestError
from dinocache.readers.contract import Geometry, ItemRows, Pixels, Reader
from dinocache.readers.image import ImageReader

__all__ = ["READERS", "Geometry", "ImageReader", "ItemRows", "Pixels", "Reader", "make_reader"]

READERS: Mapping[str, Callable[..., Reader]] = {"image": ImageReader}


def make_reader(name: str, options: Mapping[str, object]) -> Reader:
    """Make a reader.

    Args:
        name: One of `READERS`.
        options: As its constructor takes them.

    Returns:
        The reader.

    Raises:
        RequestError: If there is no such reader or option.
    """
    if name not in READERS:
        raise RequestError(f"there is no reader {name!r}; there are {', '.join(READERS)}")
    try:
        return READERS[name](**options)
    except TypeError as exc:
        raise RequestError(f"reader {name!r}: {exc}") from exc
