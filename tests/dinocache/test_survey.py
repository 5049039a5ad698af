"""How far stores are, as `ls` tells it from a few small requests."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from making import make_table, tiny_request

from dinocache import documents, survey
from dinocache.cli import main
from dinocache.extract import extract
from dinocache.folders import Folder
from dinocache.places import folder_of
from dinocache.store import FeatureStore
from dinocache.survey import Found


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with a store of three segments: 37 images, 42, 53; do not change."""
    folder, root = tmp_path_factory.mktemp("images"), tmp_path_factory.mktemp("features")
    for n_images in (37, 42, 53):
        table = make_table(folder, n_images)
        kinds = {"features": ("cls", "mean", "image"), "append": n_images > 37}
        assert extract(tiny_request(table, root, **kinds)).complete
    return root


def undone(grown: Path, root: Path, records: Sequence[str]) -> None:
    """Copy the store without its seal and some records."""
    (place,) = survey.find_stores(folder_of(grown))
    shutil.copytree(grown / place.name, root / place.name)
    (root / place.name / "sealed.json").unlink()
    for record in records:
        (root / place.name / f"units/{record}.json").unlink()


CLOSING = ["0003-closing.item_cls", "0003-closing.item_mean"]


@pytest.mark.parametrize(
    ("records", "closed"),
    [
        ([], 3),
        (CLOSING[:1], 2),
        (CLOSING, 2),
        ([*CLOSING, "0003-00000.cls"], 2),
        ([*CLOSING, "0003-00000.cls", "0003-00000.image", "0003-00000.mean"], 2),
        (["0002-00000.image"], 3),
        (["0001-closing.item_cls", "0001-00001.cls", "0001-00001.image"], 2),
    ],
)
def test_several_segments_of_which_one_is_open(
    grown: Path,
    tmp_path: Path,
    records: list[str],
    closed: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    n_all = len(list(grown.rglob("units/*.json")))
    assert n_all == (3 + 1 + 1) * 3 + 3 * 2  # units of three kinds, and two means of each segment
    undone(grown, tmp_path, records)
    asked = count_requests(monkeypatch)
    (found,) = survey.survey(tmp_path)
    assert found.percent == pytest.approx(100 * (n_all - len(records)) / n_all)
    assert (found.segments, found.segments_closed) == (3, closed)
    assert len(asked) <= 3
    assert found.done == f"{min(found.percent, 99):.0f}%"


def test_several_open_segments(
    grown: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    undone(grown, tmp_path, [*CLOSING, "0002-closing.item_cls"])
    assert main(["ls", str(tmp_path)]) == 0
    assert "1 of 3 segments" in capsys.readouterr().out
    asked = count_requests(monkeypatch)
    (found,) = survey.survey(tmp_path)
    assert (found.percent, found.done) == (None, "1 of 3 segments")
    assert found.kinds == ("cls", "image", "item_cls", "item_mean", "mean")
    assert len(asked) <= 3


def test_a_store_that_is_complete(grown: Path) -> None:
    (found,) = survey.survey(grown)
    assert (found.percent, found.done, found.segments, found.at_least) == (100, "100%", None, False)


def test_one_segment(tiny_store: FeatureStore, tmp_path: Path) -> None:
    place = tmp_path / "d/tiny/32x48"
    shutil.copytree(tiny_store.path, place)
    (place / "sealed.json").unlink()
    (place / "units/0001-closing.item_cls.json").unlink()
    (found,) = survey.survey(tmp_path)
    # Three units of four kinds, and two means of items.
    assert found.percent == pytest.approx(100 * 13 / 14)
    assert (found.items, found.rows, found.segments, found.done) == (42, 42, 1, "93%")
    shutil.rmtree(place / "plans")
    (found,) = survey.survey(tmp_path)
    assert (found.percent, found.done) == (None, "-")


def test_a_listing_that_was_cut(
    tiny_store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "d/tiny/32x48"
    shutil.copytree(tiny_store.path, place)
    (place / "sealed.json").unlink()
    whole = Folder.names_after

    monkeypatch.setattr(survey, "_PAGE", 7)
    monkeypatch.setattr(Folder, "names_after", lambda folder, name: whole(folder, name)[:7])
    (found,) = survey.survey(tmp_path)
    assert found.at_least
    assert found.done.startswith("at least ")


def test_what_is_not_complete_is_never_all() -> None:
    named = {"name": "", "dataset": "", "model": "", "resolution": "", "variant": ""}
    assert Found(**named, percent=99.9, segments=1).done == "99%"
    assert Found(**named, percent=100.0).done == "100%"
    assert Found(**named, percent=0.4, segments=1).done == "0%"


def count_requests(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note each listing and each document that is read."""
    asked: list[str] = []
    read, names_after = documents.read, Folder.names_after

    def noted_read(folder: Folder, name: str) -> object:
        asked.append(name)
        return read(folder, name)

    def noted_names(folder: Folder, name: str) -> tuple[str, ...]:
        asked.append("names")
        return names_after(folder, name)

    monkeypatch.setattr(documents, "read", noted_read)
    monkeypatch.setattr(Folder, "names_after", noted_names)
    return asked
