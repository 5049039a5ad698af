"""Which folder a path or a URL names, and where the user's cache is."""

import os
from pathlib import Path
from urllib.parse import unquote, urlsplit

import platformdirs

from dinocache.errors import RequestError
from dinocache.folders import Folder, LocalFolder
from dinocache.remote import ObjectFolder, without_secrets
from dinocache.sftp import SftpFolder

__all__ = ["Where", "cache_folder", "folder_of", "is_url"]

Where = Folder | Path | str
"""A folder, or a path or URL of one."""

_OBJECTS = ("s3", "gs", "az", "http", "https")
_SSH = ("ssh", "sftp")


def is_url(where: str) -> bool:
    """Tell a URL from a path; a Windows drive is no scheme."""
    scheme, colon, rest = where.partition("://")
    return bool(colon) and bool(rest) and scheme.replace("+", "").isalnum()


def folder_of(where: Where) -> Folder:
    """Give the folder that a path or a URL names; nothing is looked up yet.

    Args:
        where: A path, or a URL that begins with file://, s3://, gs://, az://, http://, https://,
            ssh:// or sftp://.

    Raises:
        RequestError: If the URL is of another kind, or what reads it is not installed.
    """
    if isinstance(where, Folder):
        return where
    if isinstance(where, Path) or not is_url(where):
        return LocalFolder(Path(where))
    scheme = urlsplit(where).scheme
    if scheme == "file":
        return LocalFolder(Path(unquote(urlsplit(where).path)))
    if scheme in _OBJECTS:
        return ObjectFolder(where)
    if scheme in _SSH:
        return SftpFolder(where)
    choices = ", ".join(f"{name}://" for name in ("file", *_OBJECTS, *_SSH))
    raise RequestError(f"{without_secrets(where)}: choose from {choices}, or a path")


def cache_folder() -> Path:
    """Name the folder for what is remembered or was fetched.

    `DINOCACHE_CACHE`, or the system's usual place.
    """
    folder = os.environ.get("DINOCACHE_CACHE") or platformdirs.user_cache_dir("dinocache")
    return Path(folder).expanduser()
