"""What is remembered between runs, in the user's cache folder. Every run goes well without it."""

import hashlib
import json
import logging
import time

from dinocache.documents import canonical
from dinocache.durable import PARTIAL_SUFFIX, make_folder, replace_durably
from dinocache.places import cache_folder

__all__ = ["Memory"]

_logger = logging.getLogger(__name__)

MOST_ENTRIES = 200_000
"""Of a file; the oldest are forgotten."""
MOST_FILES = 24
"""Of a topic; likewise."""
_MOST_BYTES = 128 << 20
_SAVE_EVERY_S = 10.0
_SHARE = 20
"""Saving takes at most about one part in so many of the time."""
_LEFT_OVER_S = 86_400.0


class Memory:
    """Names and JSON values in one file, which may be lost at any time.

    There is no lock: a file is replaced as a whole, with what others have put there meanwhile. Of
    two processes that save at the same moment one loses what it had to add. A file that cannot be
    read is empty, one that cannot be written is left alone. One thread uses one memory.

    Args:
        topic: Folder of the file.
        whose: JSON value that tells this file from others of the topic.
    """

    def __init__(self, topic: str, whose: object) -> None:
        name = hashlib.sha256(canonical(whose).encode("utf-8", "surrogateescape")).hexdigest()[:32]
        self.path = cache_folder() / topic / f"{name}.json"
        self._known = self._read()
        self._fresh: dict[str, object] = {}
        self._saved, self._pause_s = time.monotonic(), _SAVE_EVERY_S

    def recall(self, name: str) -> object:
        """Give the value of a name, whatever it may be; None if there is none."""
        return self._known.get(name)

    def keep(self, name: str, value: object) -> None:
        """Remember a value; it is saved now and then, and by `save`."""
        self._known[name] = self._fresh[name] = value
        if time.monotonic() - self._saved >= self._pause_s:
            self.save()

    def save(self) -> None:
        """Write down what is new; nothing is raised if that cannot be done."""
        if not self._fresh:
            return
        began = time.monotonic()
        try:
            make_folder(self.path.parent)
            others = self._read()
            for name in self._fresh:
                others.pop(name, None)  # so that what is new stands last
            whole = [*others.items(), *self._fresh.items()][-MOST_ENTRIES:]
            replace_durably(self.path, json.dumps(dict(whole)).encode())
            self._tidy()
        except OSError as exc:
            _logger.debug("%s is not kept: %s", self.path.parent.name, exc)
        self._fresh = {}
        self._saved = time.monotonic()
        self._pause_s = max(_SAVE_EVERY_S, _SHARE * (self._saved - began))

    def _read(self) -> dict[str, object]:
        try:
            if self.path.stat().st_size > _MOST_BYTES:
                return {}
            known = json.loads(self.path.read_bytes())
        except (OSError, ValueError, RecursionError):
            return {}
        return known if isinstance(known, dict) else {}

    def _tidy(self) -> None:
        """Remove the topic's oldest files, and what writers that were killed have left."""
        files = {path: path.stat().st_mtime for path in self.path.parent.iterdir()}
        whole = sorted((p for p in files if p.suffix == ".json"), key=lambda p: files[p])
        old = time.time() - _LEFT_OVER_S
        partial = [p for p in files if p.suffix == PARTIAL_SUFFIX and files[p] < old]
        for path in (*whole[:-MOST_FILES], *partial):
            path.unlink(missing_ok=True)
