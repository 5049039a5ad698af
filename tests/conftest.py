"""Tables and stores that tests share; all made here, none downloaded."""

import os
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from making import make_table, tiny_request
from serving import SECRET, Proxy, proxy, s3_server

from dinocache.extract import extract
from dinocache.store import FeatureStore

# Before any test module is imported: libraries read their environment only then.
# One thread of torch and of BLAS: pytest's workers use the cores already, and threads that wait for
# each other spin. Processes that tests start are told so, too.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_CACHE"] = os.devnull

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(autouse=True, scope="session")
def _no_surroundings(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests touch no network and no cache of the user's."""
    os.environ["DINOCACHE_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real medical images beside the repository."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"the real images are not here (looked for {SHARED_DATA.name}/ beside us)")
    return SHARED_DATA


@pytest.fixture(scope="session")
def tiny_table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of 42 images of 21 patients; do not change."""
    return make_table(tmp_path_factory.mktemp("images"), 42)


@pytest.fixture(scope="session")
def tiny_store(tiny_table: Path, tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """A complete store of the 42 images: cls, mean, dense, image; do not change."""
    root = tmp_path_factory.mktemp("features")
    outcome = extract(tiny_request(tiny_table, root, features=("cls", "mean", "dense", "image")))
    assert outcome.complete
    return FeatureStore(outcome.path)


@pytest.fixture(scope="session")
def _s3_server() -> Iterator[Proxy]:
    """An S3 server behind a proxy."""
    with s3_server() as url, proxy(url) as seen:
        yield seen


@pytest.fixture
def bucket(_s3_server: Proxy, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Proxy]:
    """A bucket of an S3 server, empty, and the proxy that counts what is asked of it."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", _s3_server.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "name")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    _s3_server.behave()
    name = f"b{uuid.uuid4().hex[:12]}"
    request = urllib.request.Request(f"{_s3_server.url}/{name}", method="PUT")
    urllib.request.urlopen(request).close()
    _s3_server.behave()
    return f"s3://{name}", _s3_server
