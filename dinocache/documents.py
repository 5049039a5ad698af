"""The JSON documents of a store: canonical text and a checksum, so that every flipped bit shows.

See docs/store-format.md, "JSON documents".
"""

import json
from typing import Any

from crc32c import crc32c

from dinocache.errors import StoreDamagedError
from dinocache.folders import Folder

__all__ = ["Body", "canonical", "checksum", "decode", "encode", "is_whole", "read"]

Body = dict[str, Any]


def canonical(value: object) -> str:
    """Write a value as the one text that stands for it.

    Args:
        value: Of JSON's types.

    Returns:
        JSON with sorted keys, no white space, ASCII only.

    Raises:
        ValueError: If it holds NaN or infinity, which JSON has not.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def checksum(content: bytes | memoryview) -> str:
    """Give the CRC-32C (Castagnoli, RFC 3720 B.4) of some bytes, as 8 hex digits."""
    return f"{crc32c(content):08x}"


def encode(body: Body) -> bytes:
    """Make the bytes of a document from its body."""
    text = canonical(body)
    return f'{{"body":{text},"crc32c":"{checksum(text.encode())}"}}\n'.encode()


def decode(content: bytes, name: str) -> Body:
    """Check a document and give its body.

    Args:
        content: The file's bytes.
        name: The file, for messages.

    Returns:
        The body.

    Raises:
        StoreDamagedError: If any byte is not as it was written.
    """
    try:
        body: Body = json.loads(content)["body"]
        whole = isinstance(body, dict) and encode(body) == content
    except (ValueError, TypeError, KeyError, RecursionError):
        whole = False
    if not whole:
        raise StoreDamagedError(
            f"{name} is damaged: its {len(content)} bytes are not the document that was written. "
            "Copy it again from where the store came from, or run `dinocache verify` for the rest."
        )
    return body


def is_whole(content: bytes, name: str) -> bool:
    """Tell whether a document is as it was written; see `decode`."""
    try:
        decode(content, name)
    except StoreDamagedError:
        return False
    return True


def read(folder: Folder, name: str) -> Body:
    """Read and check a document.

    Args:
        folder: Of the store.
        name: The file in it.

    Returns:
        The body.

    Raises:
        StoreDamagedError: If it is damaged or too large to be ours.
        FileNotFoundError: If there is none.
    """
    return decode(folder.read(name, lambda content: is_whole(content, name)), name)
