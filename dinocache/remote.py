"""Folders of object stores and HTTP servers, through obstore. See docs/sharing.md.

A PUT is whole or has not happened, so nothing is written under a temporary name. What a server
refuses is tried again a few times, and so is what arrives cut.
"""

import re
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from html.parser import HTMLParser
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from dinocache.errors import RequestError, StoreError, StoreWriteError, one_line
from dinocache.folders import (
    MOST_WHOLE,
    UNKNOWN_SIZE,
    Entry,
    Folder,
    Listing,
    check_inside,
    check_size,
)

__all__ = ["IN_FLIGHT", "ObjectFolder", "in_parallel", "without_secrets"]

T = TypeVar("T")
R = TypeVar("R")

IN_FLIGHT = 64
"""Requests of one process at a time."""
_TRIES = 8
"""Of a whole request, each with a few retries of its own where the server says 5xx."""
_PAUSE_S = 0.05
"""Before the second try; doubled each time."""
_LARGEST_LISTING = 16 << 20


def without_secrets(text: str) -> str:
    """Cut out what a URL may carry to prove who asks: user and password, and its query."""
    text = re.sub(r"(\w+://)[^/\s]*@", r"\1", text)
    return re.sub(r"(\w+://[^\s?\"']*)\?[^\s\"')]*", r"\1", text)


def in_parallel(work: Callable[[T], R], tasks: Iterable[T], *, most: int = IN_FLIGHT) -> list[R]:
    """Do something for each of some tasks, many at a time; the first error is raised."""
    tasks = list(tasks)
    if len(tasks) < 2:
        return [work(task) for task in tasks]
    with ThreadPoolExecutor(min(most, len(tasks))) as pool:
        futures = [pool.submit(work, task) for task in tasks]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


class ObjectFolder(Folder):
    """A folder below a URL: `s3://`, `gs://`, `az://`, `http://` or `https://`.

    Who asks is proven as is usual with each: environment variables, and with boto3 installed the
    profiles of the AWS tools.
    """

    def __init__(self, url: str) -> None:
        """See the class.

        Args:
            url: Of the folder.

        Raises:
            RequestError: If the URL, or what the environment says of credentials, is no good.
        """
        self._url, self._prefix = url.rstrip("/"), ""
        self._is_http = urlsplit(url).scheme in ("http", "https")
        self._store = _connect(self._url)

    def __str__(self) -> str:
        return without_secrets(f"{self._url}/{self._prefix}".rstrip("/"))

    def __reduce__(self) -> tuple[Any, ...]:
        return ObjectFolder, (f"{self._url}/{self._prefix}".rstrip("/"),)

    def within(self, name: str) -> "ObjectFolder":
        """See `Folder`."""
        inner = ObjectFolder.__new__(ObjectFolder)
        inner.__dict__ |= self.__dict__ | {"_prefix": f"{self._key(name.strip('/'))}/"}
        return inner

    def read(
        self,
        name: str,
        is_whole: Callable[[bytes], bool] | None = None,
        *,
        most: int = MOST_WHOLE,
    ) -> bytes:
        """See `Folder`."""
        import obstore

        def get() -> bytes:
            answer = obstore.get(self._store, self._key(name))
            check_size(f"{self}/{name}", int(answer.meta["size"]), most)
            content = bytes(answer.bytes())
            if len(content) != answer.meta["size"]:
                raise _CutError(f"{len(content)} of {answer.meta['size']} bytes came")
            return content

        return self._until_whole(name, get, is_whole)

    def read_range(
        self, name: str, start: int, stop: int, is_whole: Callable[[bytes], bool] | None = None
    ) -> bytes:
        """See `Folder`."""
        import obstore

        def get() -> bytes:
            content = bytes(obstore.get_range(self._store, self._key(name), start=start, end=stop))
            if len(content) != stop - start:
                raise _CutError(f"{len(content)} of {stop - start} bytes came")
            return content

        return self._until_whole(name, get, is_whole) if stop > start else b""

    def size(self, name: str) -> int | None:
        """See `Folder`."""
        import obstore

        try:
            return int(self._ask(name, lambda: obstore.head(self._store, self._key(name)))["size"])
        except FileNotFoundError:
            return None

    def list(self, name: str = "") -> Listing:
        """See `Folder`; of an HTTP server what its index page links to."""
        import obstore

        prefix = self._key(name).rstrip("/")
        if self._is_http:
            return self._list_index(name)
        found = self._ask(name, lambda: obstore.list_with_delimiter(self._store, prefix or None))
        entries = [_entry(one, prefix) for one in found["objects"]]
        return Listing(
            files={entry.name: entry for entry in sorted(entries, key=lambda e: e.name)},
            folders=tuple(
                sorted(p.rstrip("/").rpartition("/")[2] for p in found["common_prefixes"])
            ),
        )

    def walk(self, name: str = "") -> Iterator[Entry]:
        """See `Folder`."""
        import obstore

        if self._is_http:
            listing = self.list(name)
            for file in listing.files.values():
                inner = f"{name}/{file.name}".lstrip("/")
                yield Entry(name=inner, bytes=file.bytes, modified=file.modified)
            for folder in listing.folders:
                yield from self.walk(f"{name}/{folder}".lstrip("/"))
            return
        prefix = self._key(name).rstrip("/")

        def all_pages() -> list[Any]:
            pages = obstore.list(self._store, prefix or None, chunk_size=1000)
            return [one for page in pages for one in page]

        for one in sorted(self._ask(name, all_pages), key=lambda one: str(one["path"])):
            yield _entry(one, self._prefix.rstrip("/"))

    def names_after(self, name: str) -> tuple[str, ...]:
        """See `Folder`; one request."""
        import obstore

        if self._is_http:
            return super().names_after(name)
        prefix = self._prefix.rstrip("/")

        def first_page() -> list[Any]:
            pages = obstore.list(
                self._store, prefix or None, offset=self._key(name), chunk_size=1000
            )
            return list(next(iter(pages), []))

        return tuple(_entry(one, prefix).name for one in self._ask(name, first_page))

    def replace(self, name: str, content: bytes | memoryview) -> None:
        """See `Folder`."""
        self._put(name, content, "overwrite")

    def keep(self, name: str, content: bytes) -> None:
        """See `Folder`."""
        try:
            same = self.read(name) == content
        except FileNotFoundError:
            same = False
        if not same:
            self.replace(name, content)

    def create(self, name: str, content: bytes) -> bool:
        """See `Folder`."""
        if self._put(name, content, "create"):
            return True
        # The answer to a first try may have been lost: then what is there is ours.
        return self.read(name) == content

    def remove(self, name: str) -> None:
        """See `Folder`."""
        import obstore

        try:
            self._ask(name, lambda: obstore.delete(self._store, self._key(name)), writes=True)
        except FileNotFoundError:
            return

    def abort_uploads(self, before: float) -> int:
        """See `Folder`; of S3, with boto3. Ours are never in parts, other tools' are."""
        if urlsplit(self._url).scheme != "s3":
            return 0
        try:
            import boto3
            from botocore.exceptions import BotoCoreError, ClientError
        except ImportError:
            return 0
        parts = urlsplit(f"{self._url}/{self._prefix}")
        where = {"Bucket": parts.netloc, "Prefix": parts.path.lstrip("/")}
        try:
            client = boto3.client("s3")
            pages = client.get_paginator("list_multipart_uploads").paginate(**where)
            old = [
                upload
                for page in pages
                for upload in page.get("Uploads", ())
                if upload["Initiated"].timestamp() < before
            ]
            for upload in old:
                client.abort_multipart_upload(
                    Bucket=parts.netloc, Key=upload["Key"], UploadId=upload["UploadId"]
                )
        except (BotoCoreError, ClientError) as exc:
            raise StoreWriteError(f"cannot look for uploads below {self}: {_why(exc)}") from None
        return len(old)

    def _put(self, name: str, content: bytes | memoryview, mode: Any) -> bool:  # noqa: ANN401 - a literal of obstore's
        import obstore
        from obstore.exceptions import AlreadyExistsError

        def put() -> bool:
            try:
                obstore.put(
                    self._store, self._key(name), bytes(content), mode=mode, use_multipart=False
                )
            except AlreadyExistsError:
                return False
            return True

        return self._ask(name, put, writes=True)

    def _key(self, name: str) -> str:
        return f"{self._prefix}{check_inside(name)}"

    def _list_index(self, name: str) -> Listing:
        """Read the page by which HTTP servers list a folder; without one nothing is listed."""
        try:
            page = self.read(f"{name}/" if name else "")
        except FileNotFoundError:
            return Listing()
        links = _Links()
        links.feed(page[:_LARGEST_LISTING].decode("utf-8", "replace"))
        names = {unquote(link.removeprefix("./")) for link in links.found if "?" not in link}
        plain = [
            n for n in names if re.fullmatch(r"[^/\\]+/?", n) and n.strip("/") not in ("..", ".")
        ]
        files = sorted(n for n in plain if not n.endswith("/"))
        return Listing(
            files={n: Entry(name=n, bytes=UNKNOWN_SIZE, modified=0.0) for n in files},
            folders=tuple(sorted(n.rstrip("/") for n in plain if n.endswith("/"))),
        )

    def _until_whole(
        self, name: str, get: Callable[[], bytes], is_whole: Callable[[bytes], bool] | None
    ) -> bytes:
        for attempt in range(_TRIES):
            content = self._ask(name, get)
            if is_whole is None or is_whole(content):
                break
            time.sleep(_PAUSE_S * 2**attempt)
        return content

    def _ask(self, name: str, request: Callable[[], T], *, writes: bool = False) -> T:
        """Make a request, again where the answer was lost or cut."""
        from obstore import exceptions

        what = f"{self}/{name}".rstrip("/")
        refused = (
            exceptions.PermissionDeniedError,
            exceptions.UnauthenticatedError,
            exceptions.NotSupportedError,
        )
        for attempt in range(_TRIES):
            try:
                return request()
            except (FileNotFoundError, exceptions.NotFoundError) as exc:
                raise FileNotFoundError(2, "no such file", what) from exc
            except refused as exc:
                verb = "write" if writes else "read"
                raise _error(writes)(
                    f"cannot {verb} {what}: the server refuses ({_why(exc)}); see that your "
                    "credentials are set and may do this"
                ) from None
            except (exceptions.BaseError, _CutError, OSError) as exc:
                if attempt == _TRIES - 1:
                    verb = "write" if writes else "read"
                    raise _error(writes)(
                        f"cannot {verb} {what}: {_why(exc)}; see whether the server answers, then "
                        "run the same command again"
                    ) from None
                time.sleep(_PAUSE_S * 2**attempt)
        raise AssertionError


class _CutError(Exception):
    """Fewer bytes came than were said to come."""


class _Links(HTMLParser):
    """What a page links to."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: "list[tuple[str, str | None]]") -> None:
        """Called of each tag."""
        self.found.extend(value for key, value in attrs if tag == "a" and key == "href" and value)


def _connect(url: str) -> Any:  # noqa: ANN401 - one of obstore's stores
    from obstore.exceptions import BaseError
    from obstore.store import from_url

    retries: Any = {
        "max_retries": 4,
        "retry_timeout": timedelta(seconds=60),
        "backoff": {
            "init_backoff": timedelta(milliseconds=50),
            "max_backoff": timedelta(seconds=2),
            "base": 2,
        },
    }
    options: dict[str, Any] = {"client_options": {"timeout": timedelta(seconds=120)}}
    scheme = urlsplit(url).scheme
    if scheme == "http":
        options["client_options"]["allow_http"] = True
    if scheme == "s3":
        options |= _aws_profile()
    try:
        return from_url(url, retry_config=retries, **options)
    except (BaseError, ValueError, TypeError) as exc:
        raise RequestError(f"{without_secrets(url)}: {_why(exc)}") from None


def _aws_profile() -> dict[str, Any]:
    """Take credentials from the files of the AWS tools, where no variable has them."""
    import os

    endpoint = os.environ.get("AWS_ENDPOINT_URL", "")
    plain: dict[str, Any] = (
        {"client_options": {"allow_http": True, "timeout": timedelta(seconds=120)}}
        if endpoint.startswith("http://")
        else {}
    )
    if "AWS_ACCESS_KEY_ID" in os.environ or "AWS_SKIP_SIGNATURE" in os.environ:
        return plain
    try:
        import boto3
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError:
        return plain
    session = boto3.Session()
    if session.get_credentials() is None:
        return plain
    found = {**plain, "credential_provider": Boto3CredentialProvider(session)}
    return {**found, "region": session.region_name} if session.region_name else found


def _error(writes: bool) -> type[StoreError]:
    return StoreWriteError if writes else StoreError


def _why(exc: Exception) -> str:
    """Say in one line, without secrets, what a server or a library complains of."""
    return without_secrets(one_line(exc))[:200]


def _entry(found: Any, prefix: str) -> Entry:  # noqa: ANN401 - obstore's ObjectMeta
    name = str(found["path"]).removeprefix(prefix).lstrip("/")
    return Entry(name=name, bytes=int(found["size"]), modified=found["last_modified"].timestamp())
