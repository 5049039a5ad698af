"""`verify` finds any flipped bit, any truncated, missing or foreign file, and names the items."""

import random
import shutil
from pathlib import Path

import pandas as pd
import pytest

from dinocache.layout import SEALED, UNITS
from dinocache.plan import make_segment
from dinocache.store import FeatureStore
from dinocache.verify import verify
from dinocache.writer import StoreWriter, expected_documents


@pytest.fixture
def copy(tiny_store: FeatureStore, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_store.path, tmp_path / "copy"))


def unseal(store: Path) -> None:
    """Make it a store whose last step is still to come."""
    (store / SEALED).unlink()
    name = "features.zarr/zarr.json"
    opened = FeatureStore(store)
    (store / name).write_bytes(expected_documents(opened, opened.kinds, complete=False)[name])


def files_of(store: Path) -> list[Path]:
    return sorted(p for p in store.rglob("*") if p.is_file())


def test_a_whole_store_is_sound(tiny_store: FeatureStore) -> None:
    found = verify(tiny_store.path)
    assert (found.exit_code, found.damages, found.leftovers) == (0, [], [])
    # Per unit: cls, mean and dense; per item: image; and the two closing arrays.
    assert found.files == 3 * 3 + 42 * 2 + 2


@pytest.mark.parametrize("times", [1, pytest.param(5, marks=pytest.mark.long)])
def test_every_flipped_bit_is_found(copy: Path, times: int) -> None:
    """Each file of the store in turn, a random bit of it."""
    moments = random.Random(times)
    for path in files_of(copy):
        content = path.read_bytes()
        for _ in range(times):
            flipped = bytearray(content)
            flipped[moments.randrange(len(flipped))] ^= 1 << moments.randrange(8)
            path.write_bytes(flipped)
            found = verify(copy)
            assert found.exit_code == 1, path.relative_to(copy)
            assert path.name in " ".join(d.file for d in found.damages)
        path.write_bytes(content)
    assert verify(copy).exit_code == 0


@pytest.mark.parametrize(
    "harm",
    ["truncated", *(pytest.param(h, marks=pytest.mark.long) for h in ("missing", "emptied"))],
)
def test_every_missing_or_cut_file_is_found(copy: Path, harm: str) -> None:
    for path in files_of(copy):
        if harm == "missing" and path.name == "store.json":
            continue  # then it is no store
        if harm == "missing" and path.parent.name == "runs":
            continue  # a report for people: nothing depends on it, nothing lists it
        content = path.read_bytes()
        if harm == "missing":
            path.unlink()
        else:
            path.write_bytes(content[:-1] if harm == "truncated" else b"")
        assert verify(copy).exit_code == 1, path.relative_to(copy)
        path.write_bytes(content)


def test_the_items_of_a_damaged_file_are_named(copy: Path) -> None:
    path = copy / "features.zarr/mean/c.2.0"
    path.write_bytes(path.read_bytes()[:-1])
    (damage,) = verify(copy).damages
    assert damage.file == "features.zarr/mean/c.2.0"
    assert damage.items == tuple(f"{i:04d}" for i in range(32, 42))
    assert damage.what.endswith("were committed")


def test_foreign_files_and_links_are_found(copy: Path) -> None:
    (copy / "features.zarr" / "notes.txt").write_text("mine")
    (copy / "units" / "0009-00000.cls.json").write_text("{}")
    (copy / "features.zarr" / "cls" / "c.9.0").write_bytes(b"x")
    (copy / "elsewhere").symlink_to("/")
    damaged = {d.file for d in verify(copy).damages}
    assert damaged == {
        "features.zarr/notes.txt",
        "units/0009-00000.cls.json",
        "features.zarr/cls/c.9.0",
        "elsewhere",
    }


def test_an_unfinished_store_is_sound_but_incomplete(copy: Path) -> None:
    unseal(copy)
    for kind in ("cls", "mean", "dense", "image"):
        (copy / UNITS / f"0001-00002.{kind}.json").unlink()
    for kind in ("item_cls", "item_mean"):
        (copy / UNITS / f"0001-closing.{kind}.json").unlink()
    partial = copy / "features.zarr" / "cls" / f".c.2.0.{'0' * 32}.partial"
    partial.write_bytes(b"half")
    found = verify(copy)
    assert (found.exit_code, found.damages) == (3, [])
    assert str(partial.relative_to(copy)) in found.leftovers
    assert "features.zarr/mean/c.2.0" in found.leftovers


def test_a_store_that_was_not_sealed_is_incomplete(copy: Path) -> None:
    unseal(copy)
    found = verify(copy)
    assert (found.exit_code, found.complete) == (3, False)


def test_a_lost_seal_is_found(copy: Path) -> None:
    (copy / SEALED).unlink()
    (damage,) = verify(copy).damages
    assert damage.what == "says complete, but sealed.json or a record is missing"


def test_items_that_are_planned_and_nothing_more_make_it_incomplete(copy: Path) -> None:
    """An append that was stopped before, or while, the arrays were described anew."""
    store = FeatureStore(copy)
    unseal(copy)
    writer = StoreWriter(FeatureStore(copy))
    more = store.items.head(3).assign(item_id=["x", "y", "z"])
    writer.put_items(pd.concat([store.items, more], ignore_index=True))
    segment = make_segment(
        [(i, 1) for i in more["item_id"]],
        store.header.grid,
        recipe=store.header.digest,
        after=store.segments[-1],
        stamps=[None] * 3,
    )
    writer.add_segment(segment)
    assert (verify(copy).exit_code, verify(copy).damages) == (3, [])
    longer = expected_documents(writer.store, writer.store.kinds, complete=False)
    described = "features.zarr/cls/zarr.json"
    before = (copy / described).read_bytes()
    assert before != longer[described]
    (copy / described).write_bytes(longer[described])
    assert verify(copy).exit_code == 3
    (copy / described).write_bytes(before.replace(b"[", b"[ ", 1))
    assert verify(copy).exit_code == 1
