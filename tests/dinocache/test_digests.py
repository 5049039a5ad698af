"""Records bind what files hold; stores whose records do not are read, and added to, as before."""

import json
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import google_crc32c
import numpy as np
import pandas as pd
import pytest
from making import make_table, tiny_request
from serving import Proxy

from dinocache import documents
from dinocache.cli import main
from dinocache.closing import close_segment
from dinocache.copying import copy_store
from dinocache.errors import RecipeMismatchError, StoreDamagedError
from dinocache.extract import extract
from dinocache.folders import LocalFolder
from dinocache.layout import SEALED, record_name
from dinocache.places import cache_folder, folder_of
from dinocache.plan import make_segment
from dinocache.records import Record, StoredObject
from dinocache.repairing import repair
from dinocache.store import FeatureStore
from dinocache.verify import verify
from dinocache.writer import StoreWriter

Bucket = tuple[str, Proxy]
Capture = pytest.CaptureFixture[str]
OLDER = Path(__file__).parent / "stores"
"""Stores as dinocache 0.7.0 wrote them: 21 items, two units; `format4` with maps as int8, zstd."""


def files_of(folder: Path) -> dict[str, bytes]:
    paths = (p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in paths}


@pytest.fixture
def copy(tiny_store: FeatureStore, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_store.path, tmp_path / "copy"))


@pytest.fixture(scope="module")
def again(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """The tiny store of other images of the same sizes: every file has the name and the size."""
    folder = tmp_path_factory.mktemp("again")
    table = make_table(folder / "images", 42, seed=1)
    request = tiny_request(table, folder / "f", features=("cls", "mean", "dense", "image"))
    return FeatureStore(extract(request).path)


@pytest.fixture(params=[3, 4])
def older(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A store of an older format."""
    with zipfile.ZipFile(OLDER / f"format{request.param}.zip") as archive:
        archive.extractall(tmp_path / "older")
    return tmp_path / "older"


def swap(store: Path, names: tuple[str, str]) -> None:
    """Put two files of one size each in the place of the other."""
    one, other = (store / name for name in names)
    content = one.read_bytes()
    assert len(content) == other.stat().st_size
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)


def do_apart(store: Path) -> FeatureStore:
    """Do a unit anew, as from other images, and close the store."""
    (store / SEALED).unlink()
    writer = StoreWriter(FeatureStore(store))
    record = writer.store.record("0001-00001", "cls")
    assert record is not None
    block = np.stack([writer.store.rows("cls", f"{i:04d}")[0] for i in range(16, 32)])
    objects = writer.write_rows("cls", 16, block[::-1].copy())
    assert {n: o.bytes for n, o in objects.items()} == {
        n: o.bytes for n, o in record.objects.items()
    }
    writer.commit(record.model_copy(update={"objects": objects}))
    writer.reload()
    close_segment(writer, writer.store.segments[0], "cls", record.made_by)
    writer.seal()
    return FeatureStore(store)


# One file in the place of another


@pytest.mark.parametrize(
    "names",
    [
        ("features.zarr/cls/c.0.0", "features.zarr/cls/c.1.0"),
        ("features.zarr/cls/c.1.0", "features.zarr/mean/c.1.0"),
        ("features.zarr/dense/c.0.0.0.0", "features.zarr/dense/c.1.0.0.0"),
        ("features.zarr/item_cls/c.0.0", "features.zarr/item_mean/c.0.0"),
    ],
)
def test_swapped_files_are_found(
    copy: Path, tiny_store: FeatureStore, names: tuple[str, str]
) -> None:
    swap(copy, names)
    found = verify(copy)
    assert {damage.file for damage in found.damages} == set(names)
    assert {damage.what for damage in found.damages} == {"it is not what was committed"}
    with pytest.raises(StoreDamagedError, match="is missing or damaged"):
        copy_store(FeatureStore(copy), LocalFolder(copy.parent / "target"))
    assert repair(copy, source=tiny_store.path).found.exit_code == 0
    assert files_of(copy) == files_of(tiny_store.path)


def test_a_copy_that_began_with_other_contents(
    tiny_store: FeatureStore, again: FeatureStore, tmp_path: Path
) -> None:
    """What an interrupted copy left of an older extraction is not taken for the newer one's."""
    target = LocalFolder(tmp_path / "target")
    copy_store(again, target)
    (tmp_path / "target/store.json").unlink()
    copied = copy_store(tiny_store, target)
    assert copied.there == 0
    assert files_of(tmp_path / "target") == {
        **{n: c for n, c in files_of(again.path).items() if n.startswith("runs/")},
        **files_of(tiny_store.path),
    }
    assert verify(target).exit_code == 0


def test_copies_that_were_done_apart_are_not_mixed(
    copy: Path, tiny_store: FeatureStore, tmp_path: Path, capsys: Capture
) -> None:
    apart = do_apart(copy)
    theirs = tmp_path / "theirs"
    # They have the unit otherwise, and lack the next one.
    shutil.copytree(tiny_store.path, theirs)
    for name in (SEALED, record_name("0001-00002", "cls"), record_name("0001-closing", "item_cls")):
        (theirs / name).unlink()
    before = files_of(theirs)
    with pytest.raises(
        RecipeMismatchError,
        match=r"theirs: units/0001-00001.cls.json differs from that of .*copy, .*another root",
    ):
        copy_store(apart, LocalFolder(theirs))
    assert files_of(theirs) == before
    place = "images/tiny/32x48"
    for name, store in (("here", copy), ("there", theirs)):
        shutil.copytree(store, tmp_path / name / place)
    assert main(["sync", str(tmp_path / "here"), str(tmp_path / "there")]) == 1
    assert files_of(tmp_path / "there" / place) == before
    assert "0001-00001.cls.json differs" in capsys.readouterr().err


def test_the_cache_knows_contents(
    bucket: Bucket, tiny_store: FeatureStore, again: FeatureStore
) -> None:
    """A store is put in the place of another of the same names and sizes."""
    url = f"{bucket[0]}/x"
    shutil.rmtree(cache_folder() / "files", ignore_errors=True)
    folder = folder_of(url)
    for store in (again, tiny_store):
        for name in [entry.name for entry in folder.walk()]:
            folder.remove(name)
        copy_store(store, folder)
        there = FeatureStore(url)
        for kind in ("cls", "dense"):
            np.testing.assert_array_equal(there.rows(kind, "0017"), store.rows(kind, "0017"))
        np.testing.assert_array_equal(
            there.native("image", "0017")[0], store.native("image", "0017")[0]
        )
    assert not np.array_equal(tiny_store.rows("cls", "0017"), again.rows("cls", "0017"))


# Records


def test_the_digest_is_the_published_one() -> None:
    """XXH3_64bits of nothing and of `xxhash`, as the reference implementation has them."""
    assert StoredObject.of(b"", 5) == StoredObject(bytes=0, xxh3="2d06800538d394c2")
    assert StoredObject.of(b"123456789", 3) == StoredObject(bytes=9, crc32c="e3069283")


def test_a_record_holds_one_digest(tiny_store: FeatureStore) -> None:
    (stored,) = json.loads((tiny_store.path / record_name("0001-00001", "cls")).read_bytes())[
        "body"
    ]["objects"].values()
    assert tiny_store.header.format == 5
    assert set(stored) == {"bytes", "xxh3"}
    assert len(stored["xxh3"]) == 16


@pytest.mark.parametrize(
    "digests",
    [{}, {"crc32c": "48674bc7"}, {"crc32c": "48674bc7", "xxh3": "0" * 16}],
)
def test_a_record_with_another_digest_is_refused(copy: Path, digests: dict[str, str]) -> None:
    (copy / SEALED).unlink()
    name = record_name("0001-00001", "cls")
    body = documents.read(LocalFolder(copy), name)
    (path,) = body["objects"]
    body["objects"] = {path: {"bytes": 1540, **digests}}
    (copy / name).write_bytes(documents.encode(body))
    with pytest.raises(StoreDamagedError, match=r"cls.json: .*c.1.0 has not the digest of"):
        FeatureStore(copy).rows("cls", "0017")


# Older stores


def rows_of(store: FeatureStore) -> Iterator[tuple[str, np.ndarray]]:
    for kind in ("cls", "dense"):
        for item in store.items["item_id"]:
            yield f"{kind} {item}", store.rows(kind, item)
    for item in store.items["item_id"]:
        yield item, store.native("image", item)[0]


def test_an_older_store_is_read(older: Path) -> None:
    store = FeatureStore(older)
    assert store.is_complete
    raw = [(older / f"features.zarr/cls/c.{n}.0").read_bytes()[:-4] for n in range(2)]
    if store.header.format == 3:
        vectors = np.frombuffer(b"".join(raw), "<f2").reshape(32, 48)[:21]
        np.testing.assert_array_equal(
            np.concatenate([*map(store.rows, ["cls"] * 21, ids(store))]), vectors
        )
    assert sum(1 for _ in rows_of(store)) == 3 * 21
    for _, rows in rows_of(store):
        assert np.isfinite(rows).all()


def ids(store: FeatureStore) -> list[str]:
    return [str(item) for item in store.items["item_id"]]


def test_an_older_store_is_verified(older: Path, capsys: Capture) -> None:
    found = verify(older)
    assert (found.exit_code, found.damages) == (0, [])
    (warning,) = found.warnings
    assert "do not tell files of one size apart" in warning
    assert main(["verify", str(older)]) == 0
    assert capsys.readouterr().out.count("dinocache compact") == 1
    main(["verify", str(older), "--json"])
    assert json.loads(capsys.readouterr().out)["warnings"] == [warning]
    path = older / "features.zarr/item_cls/c.0.0"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert verify(older).exit_code == 1


def test_a_newer_store_has_no_warning(tiny_store: FeatureStore) -> None:
    assert verify(tiny_store.path).warnings == []


def test_an_older_store_is_added_to(older: Path) -> None:
    """Records of what is appended are such as older programs read."""
    before = files_of(older)
    old = FeatureStore(older)
    writer = StoreWriter(FeatureStore(older))
    more = old.items.head(3).assign(item_id=["x", "y", "z"])
    writer.put_items(pd.concat([old.items, more], ignore_index=True))
    segment = make_segment(
        [(i, 1) for i in more["item_id"]],
        old.header.grid,
        recipe=old.header.digest,
        after=old.segments[-1],
        stamps=[None] * 3,
    )
    writer.add_segment(segment)
    writer.prepare(old.kinds)
    (unit,) = segment.units
    for kind in old.kinds:
        model = old.record("0001-00000", kind)
        assert model is not None
        if kind == "image":
            objects = {}
            for number, source in enumerate(ids(old)[:3]):
                image, attributes = old.native("image", source)
                objects |= writer.write_native(
                    kind,
                    segment.item_start + number,
                    image,
                    start=0,
                    depth=1,
                    attributes=attributes,
                )
                writer.close_native()
        else:
            rows = [old.stored_rows(kind, source) for source in ids(old)[:3]]
            objects = writer.write_rows(kind, unit.row_start, np.concatenate(rows))
        said = {"unit": unit.name, "items": 3, "objects": objects}
        said |= {"rows": (unit.row_start, unit.row_start + 3)}
        writer.commit(model.model_copy(update=said))
        for name, stored in documents.read(writer.folder, record_name(unit.name, kind))[
            "objects"
        ].items():
            content = (older / name).read_bytes()
            crc = f"{google_crc32c.value(content):08x}"
            assert stored == {"bytes": len(content), "crc32c": crc}
    writer.reload()
    close_segment(writer, writer.store.segments[-1], "cls", {})
    assert writer.seal()
    assert verify(older).exit_code == 0
    now = FeatureStore(older)
    assert now.header == old.header
    for new, source in zip("xyz", ids(old), strict=False):
        np.testing.assert_array_equal(now.rows("dense", new), old.rows("dense", source))
    after = files_of(older)
    changed = {name for name, content in before.items() if after[name] != content}
    assert not {name for name in changed if not name.endswith(("zarr.json", SEALED))}


def test_an_older_store_is_pulled(older: Path, tmp_path: Path) -> None:
    target = LocalFolder(tmp_path / "pulled")
    store = FeatureStore(older)
    assert copy_store(store, target).store.is_complete
    assert files_of(tmp_path / "pulled") == files_of(older)
    assert copy_store(store, target).units == 0
    path = older / "features.zarr/cls/c.0.0"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(StoreDamagedError, match=r"cls/c.0.0 is missing or damaged"):
        copy_store(store, LocalFolder(tmp_path / "other"))


def test_some_items_of_an_older_store_are_a_newer_one(older: Path, tmp_path: Path) -> None:
    assert main(["pull", str(older), str(tmp_path / "root"), "--items", "third=b"]) == 0
    (path,) = (tmp_path / "root").glob("*/*/*")
    assert FeatureStore(path).header.format == 5
    assert (verify(path).exit_code, verify(path).warnings) == (0, [])


def test_an_older_store_is_written_anew(older: Path, tmp_path: Path, capsys: Capture) -> None:
    """In the form that it has; with records that tell files apart."""
    assert main(["compact", str(older), "--to", str(tmp_path / "root")]) == 0
    (path,) = (tmp_path / "root").glob("*/*/*")
    new, old = FeatureStore(path), FeatureStore(older)
    assert (new.header.format, new.header.digest) == (5, old.header.digest)
    assert (verify(path).exit_code, verify(path).warnings) == (0, [])
    for (name, ours), (_, theirs) in zip(rows_of(new), rows_of(old), strict=True):
        np.testing.assert_array_equal(ours, theirs, err_msg=name)
    files, before = files_of(path), files_of(older)
    for name in before:
        if name.startswith(("features.zarr/", "native.zarr/")) and "/c." in name:
            assert files[name] == before[name], name
    assert main(["compact", str(path), "--to", str(tmp_path / "third")]) == 2
    assert "say in which form" in capsys.readouterr().err


def test_records_of_an_older_store_are_the_same_text(older: Path) -> None:
    for path in (older / "units").iterdir():
        body = documents.decode(path.read_bytes(), path.name)
        record = Record.from_body(body, path.name)
        assert documents.encode(record.model_dump(mode="json")) == path.read_bytes()
