"""Tables and stores that tests share; all made here, none downloaded."""

import os
from pathlib import Path

import pytest
from making import make_table, tiny_request

from dinocache.extract import extract
from dinocache.store import FeatureStore

# Before any test module is imported: huggingface_hub reads its environment only then.
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
