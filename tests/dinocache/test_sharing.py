"""Stores that are shared: pushed, pulled, synced, mended; read where they lie."""

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from making import make_table, tiny_request
from serving import SECRET, Proxy, http_server, proxy

from dinocache.cli import main
from dinocache.copying import copy_store
from dinocache.deriving import choose_items
from dinocache.errors import (
    DinocacheError,
    RecipeMismatchError,
    RequestError,
    StoreDamagedError,
    StoreIncompleteError,
)
from dinocache.extract import extract
from dinocache.folders import LocalFolder
from dinocache.places import folder_of
from dinocache.repairing import collect_garbage, repair
from dinocache.store import FeatureStore
from dinocache.verify import verify

Bucket = tuple[str, Proxy]
Capture = pytest.CaptureFixture[str]
PLACE = "images/tiny/32x48"


def files_of(folder: Path) -> dict[str, bytes]:
    paths = (p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in paths}


def clear_cache() -> None:
    from dinocache.places import cache_folder

    shutil.rmtree(cache_folder() / "files", ignore_errors=True)


@pytest.fixture
def copy(tiny_store: FeatureStore, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_store.path, tmp_path / "copy"))


@pytest.fixture
def pushed(tiny_store: FeatureStore, bucket: Bucket) -> Bucket:
    """The store, on S3."""
    url, seen = bucket
    assert main(["push", str(tiny_store.path), f"{url}/team"]) == 0
    clear_cache()
    seen.behave()
    return f"{url}/team/{PLACE}", seen


# Copies


def test_there_and_back_is_the_same(
    pushed: Bucket, tiny_store: FeatureStore, tmp_path: Path, capsys: Capture
) -> None:
    url, seen = pushed
    assert main(["pull", url, str(tmp_path / "here")]) == 0
    assert files_of(tmp_path / "here" / PLACE) == files_of(tiny_store.path)
    said = capsys.readouterr().out
    assert f"{PLACE}: complete; 14 units copied (95 files" in said
    seen.behave()
    assert main(["pull", url, str(tmp_path / "here"), "--json"]) == 0
    (again,) = json.loads(capsys.readouterr().out)
    assert (again["units"], again["units_there_before"], again["complete"]) == (0, 14, True)
    assert not [path for _, path in seen.requests if "/c." in path]


def test_nothing_tells_the_secret(pushed: Bucket, tmp_path: Path, capfd: Capture) -> None:
    url, _ = pushed
    main(["pull", url, str(tmp_path / "here")])
    main(["pull", f"{url}x", str(tmp_path / "here")])
    main(["info", url])
    printed = "".join(capfd.readouterr())
    assert "there is no store at" in printed
    whole = b"".join(files_of(tmp_path / "here").values()) + printed.encode()
    assert SECRET.encode() not in whole


def test_some_kinds_are_a_part(pushed: Bucket, tmp_path: Path) -> None:
    url, _ = pushed
    whole = FeatureStore(url)
    target = LocalFolder(tmp_path / "part")
    copied = copy_store(whole, target, kinds=["item_cls"])
    part = copied.store
    assert (part.is_complete, part.kinds, copied.files) == (True, ("cls",), 1)
    ids, vectors = part.item_vectors("cls")
    assert ids == whole.item_vectors("cls")[0]
    np.testing.assert_array_equal(vectors, whole.item_vectors("cls")[1])
    with pytest.raises(StoreIncompleteError, match="a part of the store images by tiny, without"):
        part.rows("cls", ids[0])
    with pytest.raises(StoreIncompleteError, match="without 'item_mean'"):
        part.item_vectors("mean")
    assert verify(target).exit_code == 0
    # A part grows.
    grown = copy_store(whole, target, kinds=["dense"]).store
    np.testing.assert_array_equal(grown.rows("dense", "0040"), whole.rows("dense", "0040"))
    assert verify(target).exit_code == 0
    whole_again = copy_store(whole, target).store
    assert whole_again.part is None
    assert files_of(tmp_path / "part").keys() == {e.name for e in whole.folder.walk()}


def test_some_units_are_a_part(tiny_store: FeatureStore, tmp_path: Path) -> None:
    target = LocalFolder(tmp_path / "part")
    part = copy_store(tiny_store, target, kinds=["mean"], units=["0001-00001"]).store
    np.testing.assert_array_equal(part.rows("mean", "0017"), tiny_store.rows("mean", "0017"))
    with pytest.raises(StoreIncompleteError):
        part.rows("mean", "0002")
    assert verify(target).exit_code == 0
    with pytest.raises(RequestError, match=r"--units: .* has no '0009-00001'; choose from 0001-0"):
        copy_store(tiny_store, target, units=["0009-00001"])
    with pytest.raises(RequestError, match=r"--features: .* has no 'embed'"):
        copy_store(tiny_store, target, kinds=["embed"])


def test_a_part_is_not_extracted_into(
    tiny_store: FeatureStore, tiny_table: Path, tmp_path: Path
) -> None:
    copy_store(tiny_store, LocalFolder(tmp_path / PLACE), kinds=["item_cls"])
    with pytest.raises(RequestError, match="is a part of the store images by tiny; extract into"):
        extract(tiny_request(tiny_table, tmp_path))


def test_an_interrupted_copy_goes_on(
    tiny_store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = LocalFolder(tmp_path / "copy")
    monkeypatch.setattr("dinocache.copying._BATCH_FILES", 8)
    done: list[int] = []

    def tell(n_bytes: int, _: int) -> None:
        done.append(n_bytes)
        if len(done) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        copy_store(tiny_store, target, tell=tell)
    assert not target.exists("store.json")  # nobody takes it for a store
    copied = copy_store(tiny_store, target)
    assert copied.there > 0
    assert files_of(tmp_path / "copy") == files_of(tiny_store.path)


def test_remains_of_another_store_are_written_over(
    tiny_store: FeatureStore, tiny_table: Path, tmp_path: Path
) -> None:
    """Records of the same names, in a folder without header, are not taken for ours."""
    other = extract(tiny_request(tiny_table, tmp_path, unit_rows=32, features=("cls", "mean")))
    (other.path / "store.json").unlink()
    copied = copy_store(tiny_store, LocalFolder(other.path))
    assert copied.there == 2  # the means over items, in the same places, are the same
    assert verify(other.path).damages == []
    np.testing.assert_array_equal(copied.store.rows("cls", "0040"), tiny_store.rows("cls", "0040"))


def test_another_store_is_not_written_over(
    tiny_store: FeatureStore, tiny_table: Path, tmp_path: Path
) -> None:
    other = extract(tiny_request(tiny_table, tmp_path, weights="random:1"))
    before = files_of(other.path)
    with pytest.raises(RecipeMismatchError, match=r"another store .encoder.weights.sha256: "):
        copy_store(tiny_store, LocalFolder(other.path))
    assert files_of(other.path) == before


def test_a_damaged_source_is_not_copied(copy: Path, tmp_path: Path) -> None:
    path = copy / "features.zarr/mean/c.1.0"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    target = LocalFolder(tmp_path / "target")
    with pytest.raises(StoreDamagedError, match=r"features.zarr/mean/c.1.0 is missing or damaged"):
        copy_store(FeatureStore(copy), target)
    assert not target.exists("store.json")


def test_more_is_added_to_a_copy(tmp_path: Path) -> None:
    """A store grows at its source; while its copy is brought up, readers see it whole."""
    table = make_table(tmp_path / "images", 21)
    first = extract(tiny_request(table, tmp_path / "f", features=("cls",)))
    target = LocalFolder(tmp_path / "copy")
    copy_store(FeatureStore(first.path), target)
    more = make_table(tmp_path / "images", 33)
    second = extract(tiny_request(more, tmp_path / "f", features=("cls",), append=True))
    seen: list[bool] = []
    copied = copy_store(
        FeatureStore(second.path),
        target,
        tell=lambda *_: seen.append(FeatureStore(target).is_complete),
    )
    assert seen
    assert all(seen)
    assert len(copied.store.items) == 33
    assert files_of(tmp_path / "copy") == files_of(second.path)


@pytest.mark.parametrize("seed", range(3))
def test_a_fifth_of_the_answers_is_wrong(
    pushed: Bucket, tiny_store: FeatureStore, tmp_path: Path, seed: int
) -> None:
    url, seen = pushed
    seen.behave(fault_share=0.2, seed=seed)
    target = LocalFolder(tmp_path / "here")
    for _ in range(5):
        try:
            copy_store(FeatureStore(url), target)
        except DinocacheError:  # a clear error, and the same call goes on
            continue
        break
    assert seen.faults > 10
    assert files_of(tmp_path / "here") == files_of(tiny_store.path)


def test_pushing_where_a_fifth_of_the_answers_is_wrong(
    bucket: Bucket, tiny_store: FeatureStore
) -> None:
    url, seen = bucket
    seen.behave(fault_share=0.2, seed=7)
    copy_store(tiny_store, folder_of(f"{url}/x"))
    assert seen.faults > 10
    seen.behave()
    folder = folder_of(f"{url}/x")
    assert {e.name: folder.read(e.name) for e in folder.walk()} == files_of(tiny_store.path)


# Derived stores


def test_some_items_are_a_store_of_their_own(
    tiny_store: FeatureStore, tmp_path: Path, capsys: Capture
) -> None:
    command = ["pull", str(tiny_store.path), str(tmp_path), "--items", "third=b"]
    assert main([*command, "--where", "bright = 0"]) == 0
    assert "a derived store of 6 items" in capsys.readouterr().out
    derived = FeatureStore(tmp_path / PLACE)
    assert set(derived.items["third"]) == {"b"}
    assert set(derived.items["bright"]) == {0}
    for item_id in derived.items["item_id"]:
        for kind in ("cls", "mean", "dense"):
            rows = derived.rows(kind, item_id)
            np.testing.assert_array_equal(rows, tiny_store.rows(kind, item_id))
        image, attributes = derived.native("image", item_id)
        np.testing.assert_array_equal(image, tiny_store.native("image", item_id)[0])
        assert attributes == tiny_store.native("image", item_id)[1]
    ids, vectors = tiny_store.item_vectors("mean")
    theirs = vectors[[ids.index(item_id) for item_id in derived.items["item_id"]]]
    np.testing.assert_array_equal(derived.item_vectors("mean")[1], theirs)
    assert verify(derived.path).exit_code == 0
    assert derived.header.provenance["derived"].startswith("some items of images, items-0001-")
    with pytest.raises(RecipeMismatchError, match=r"is another store .made at another time"):
        copy_store(derived, tiny_store.folder)
    assert main([*command, "--where", "bright = 0"]) == 0  # nothing is left to do
    assert main(command) == 1
    assert "is a store of other items" in capsys.readouterr().err


def test_means_of_some_items(tiny_store: FeatureStore, tmp_path: Path) -> None:
    command = ["pull", str(tiny_store.path), str(tmp_path), "--items", "third=a"]
    assert main([*command, "--features", "item_cls"]) == 0
    derived = FeatureStore(tmp_path / PLACE)
    assert len(derived.item_vectors("cls")[0]) == 14
    assert verify(derived.path).exit_code == 0
    assert [p.name for p in (derived.path / "features.zarr").iterdir() if p.is_dir()] == [
        "item_cls"
    ]


@pytest.mark.parametrize(
    ("equal", "where", "message"),
    [
        (["colour=red"], None, r"--items 'colour=red': give COLUMN=VALUE, of the columns item_id"),
        (["bright"], None, "give COLUMN=VALUE"),
        (["third=z"], None, "no item of .* is like that"),
        ([], "brght = 1", "--where 'brght = 1': Binder Error"),
        ([], "1=1; DROP TABLE items", "give one condition, nothing else"),
        ([], "item_id IN (SELECT content FROM read_text('/etc/hostname'))", "--where .*disabled"),
    ],
)
def test_conditions_that_choose_nothing(
    tiny_store: FeatureStore, equal: list[str], where: str | None, message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        choose_items(tiny_store, equal=equal, where=where)


# Names


def test_names_become_hashes(
    tiny_store: FeatureStore, bucket: Bucket, tmp_path: Path, capsys: Capture
) -> None:
    url, _ = bucket
    key = tmp_path / "key"
    key.write_text("correct horse battery staple\n")
    command = ["push", str(tiny_store.path), f"{url}/p", "--pseudonymise", str(key)]
    assert main([*command, "--keep", "third"]) == 0
    shared = FeatureStore(f"{url}/p/{PLACE}")
    assert list(shared.items.columns) == ["item_id", "path", "group", "third"]
    assert verify(shared.folder).exit_code == 0
    everything = b"".join(shared.folder.read(e.name) for e in shared.folder.walk())
    for name in ("0007", "png/0007.png", "p3", "dinocache-user"):
        assert f'"{name}"'.encode() not in everything
    assert b"PNG" not in everything  # nothing but features
    names = shared.items["item_id"].tolist()
    assert len({*names}) == 42
    assert shared.items["group"].nunique() == 21
    np.testing.assert_array_equal(shared.rows("cls", names[7]), tiny_store.rows("cls", "0007"))
    # The same key gives the same names, another key others, and a second push nothing.
    capsys.readouterr()
    assert main([*command, "--keep", "third", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["units"] == 0
    key.write_text("another key that is long enough")
    assert main([*command, "--keep", "third"]) == 1
    key.write_text("short")
    assert main(command) == 2
    assert main([*command[:3], "--keep", "third"]) == 2
    errors = capsys.readouterr().err
    assert "the key must have 16 to 65536 bytes, it has 5" in errors
    assert "--keep goes with --pseudonymise" in errors


def test_what_could_tell_who_somebody_is(
    tiny_store: FeatureStore, tmp_path: Path, capsys: Capture
) -> None:
    assert main(["info", str(tiny_store.path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["could_identify"] == ["item_id", "path", "group"]


# Lists


def test_what_there_is(pushed: Bucket, capsys: Capture) -> None:
    url, seen = pushed
    root = url.removesuffix(f"/{PLACE}")
    capsys.readouterr()
    seen.behave()
    assert main(["ls", root, "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["name"], found["items"], found["rows"]) == (PLACE, 42, 42)
    assert (found["percent"], found["random_weights"]) == (100.0, True)
    assert found["kinds"] == ["cls", "dense", "image", "item_cls", "item_mean", "mean"]
    assert found["n_bytes"] > 42 * 2 * 48 * 2
    of_store = [path for _, path in seen.requests if PLACE in path.replace("%2F", "/")]
    assert len(of_store) == 3
    assert main(["ls", root]) == 0
    assert "random:0" in capsys.readouterr().out
    assert main(["ls", f"{root}/nothing"]) == 0
    assert "there is no store below" in capsys.readouterr().out


def test_how_far_a_store_is(tiny_table: Path, tmp_path: Path, capsys: Capture) -> None:
    made = extract(tiny_request(tiny_table, tmp_path, features=("cls",), part=(1, 2)))
    assert not made.complete
    capsys.readouterr()
    assert main(["ls", str(tmp_path), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["items"], found["n_bytes"]) == (42, None)
    assert found["percent"] == pytest.approx(100 * 2 / 4)  # of three units and the closing one
    (made.path / "store.json").write_bytes(b"{}")
    assert main(["ls", str(tmp_path), "--json"]) == 0
    assert "store.json is damaged" in json.loads(capsys.readouterr().out)[0]["damaged"]


# Two roots


def test_two_roots_get_what_they_lack(
    tiny_store: FeatureStore, tmp_path: Path, capsys: Capture
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    shutil.copytree(tiny_store.path, here / PLACE)
    other = extract(
        tiny_request(make_table(tmp_path / "x", 5), there, features=("mean",), name="y")
    )
    assert other.complete
    assert main(["sync", str(here), str(there)]) == 0
    assert files_of(here) == files_of(there)
    assert len(files_of(here)) > 100
    assert main(["sync", str(here), str(there), "--json"]) == 0
    done = json.loads(capsys.readouterr().out.partition("[")[2].join(["[", ""]))
    assert [one["units"] for one in done] == [0] * 4


def test_stores_that_grew_apart_are_named(tmp_path: Path, capsys: Capture) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    table = make_table(tmp_path / "images", 9)
    extract(tiny_request(table, here, features=("mean",)))
    assert main(["sync", str(here), str(there)]) == 0
    for root, count in ((here, 12), (there, 15)):
        more = make_table(tmp_path / "images", count)
        extract(tiny_request(more, root, features=("mean",), append=True))
    before = files_of(there)
    assert main(["sync", str(here), str(there)]) == 1
    assert "both were appended to, apart from each other" in capsys.readouterr().err
    assert files_of(there) == before


# Mending


def test_what_is_broken_is_copied_again(
    copy: Path, tiny_store: FeatureStore, capsys: Capture
) -> None:
    for name in ("features.zarr/mean/c.1.0", "units/0001-00002.cls.json", "sealed.json"):
        content = bytearray((copy / name).read_bytes())
        content[len(content) // 2] ^= 1
        (copy / name).write_bytes(content)
    (copy / "native.zarr/image/7/zarr.json").unlink()
    if not (copy / "sealed.json").unlink():
        assert main(["repair", str(copy), "--from", str(tiny_store.path), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert "0001-00001.mean" in said["units"]
    assert "0001-00002.cls" in said["units"]
    assert said["fetched"] == len(said["units"]) <= 4
    assert files_of(copy) == files_of(tiny_store.path)


def test_what_is_broken_is_extracted_again(tiny_table: Path, tmp_path: Path) -> None:
    request = tiny_request(tiny_table, tmp_path, features=("cls", "mean"))
    made = extract(request)
    before = files_of(made.path)
    path = made.path / "features.zarr/cls/c.1.0"
    path.write_bytes(path.read_bytes()[:-5])
    mended = repair(made.path)
    assert (mended.units, mended.fetched) == (("0001-00001.cls",), 0)
    assert (mended.found.damages, mended.found.exit_code) == ([], 3)
    again = extract(request)
    assert (again.complete, again.units) == (True, 1)
    assert {n: c for n, c in files_of(made.path).items() if "runs/" not in n} == {
        n: c for n, c in before.items() if "runs/" not in n
    }


def test_a_plan_that_is_broken(copy: Path, tiny_store: FeatureStore) -> None:
    (copy / "plans/0001.json").write_bytes(b"no plan")
    assert repair(copy, source=tiny_store.path).found.exit_code == 0
    assert files_of(copy) == files_of(tiny_store.path)


def test_files_that_nothing_refers_to_go(copy: Path, capsys: Capture) -> None:
    before = files_of(copy)
    (copy / "features.zarr/cls/.c.0.0.123.partial").write_bytes(b"12345")
    assert collect_garbage(copy).young == 1
    assert collect_garbage(copy, older_than_s=0, dry_run=True).n_bytes == 5
    assert files_of(copy) != before
    capsys.readouterr()
    assert main(["gc", str(copy), "--older-than-hours", "0"]) == 0
    assert "1 files, 5 B removed" in capsys.readouterr().out
    assert files_of(copy) == before


def test_a_sample_is_verified(copy: Path) -> None:
    path = copy / "features.zarr/mean/c.1.0"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert verify(copy, share=0).damages == []
    assert len(verify(copy).damages) == 1
    path.write_bytes(content[:-1])
    (damage,) = verify(copy, share=0).damages
    assert damage.what == f"{len(content) - 1} bytes, {len(content)} were committed"
    assert damage.items == tuple(f"{i:04d}" for i in range(16, 32))


# Reading where it lies


@pytest.fixture
def web(tiny_store: FeatureStore) -> Iterator[Bucket]:
    with http_server(tiny_store.path) as url, proxy(url) as seen:
        clear_cache()
        yield seen.url, seen


@pytest.mark.parametrize("place", ["pushed", "web"])
def test_a_store_is_read_where_it_lies(
    place: str, tiny_store: FeatureStore, request: pytest.FixtureRequest
) -> None:
    url, seen = request.getfixturevalue(place)
    far = FeatureStore(url)
    assert (far.kinds, far.is_complete) == (tiny_store.kinds, True)
    seen.behave()
    np.testing.assert_array_equal(far.item_vectors("cls")[1], tiny_store.item_vectors("cls")[1])
    assert len(seen.requests) == 2  # what describes the array, and its one chunk
    for kind in ("mean", "dense"):
        np.testing.assert_array_equal(far.rows(kind, "0033"), tiny_store.rows(kind, "0033"))
    np.testing.assert_array_equal(
        far.native("image", "0005")[0], tiny_store.native("image", "0005")[0]
    )
    # Another time nothing of it is fetched.
    seen.behave()
    again = FeatureStore(url)
    opening = len(seen.requests)
    np.testing.assert_array_equal(again.rows("dense", "0033"), tiny_store.rows("dense", "0033"))
    np.testing.assert_array_equal(again.rows("mean", "0033"), tiny_store.rows("mean", "0033"))
    assert len(seen.requests) - opening == 2  # the two descriptions


def test_of_a_map_no_more_than_it_is_fetched(pushed: Bucket, tiny_store: FeatureStore) -> None:
    url, seen = pushed
    far = FeatureStore(url)
    far.rows("dense", "0001")
    seen.behave()
    far.rows("dense", "0002")
    assert seen.sent == 2 * 3 * 48 * 2 + 4


def test_far_bytes_that_are_wrong_are_an_error(
    pushed: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dinocache.remote._TRIES", 3)  # the pauses between eight take long
    url, _ = pushed
    folder = folder_of(url)
    for name in ("features.zarr/mean/c.1.0", "features.zarr/dense/c.1.0.0.0"):
        content = bytearray(folder.read(name))
        content[7] ^= 8
        folder.replace(name, bytes(content))
    folder.remove("features.zarr/cls/c.2.0")
    far = FeatureStore(url)
    with pytest.raises(
        StoreDamagedError, match=r"mean/c.1.0 is damaged: it is not what was committed"
    ):
        far.rows("mean", "0020")
    with pytest.raises(StoreDamagedError, match=r"dense/c.1.0.0.0 is damaged"):
        far.rows("dense", "0016")
    with pytest.raises(StoreDamagedError, match=r"cls/c.2.0 is missing"):
        far.rows("cls", "0041")


def test_the_cache_is_bounded(
    pushed: Bucket, tiny_store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DINOCACHE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("DINOCACHE_CACHE_GB", "4e-6")
    url, _ = pushed
    far = FeatureStore(url)
    for number in range(42):
        item_id = f"{number:04d}"
        np.testing.assert_array_equal(far.rows("dense", item_id), tiny_store.rows("dense", item_id))
        np.testing.assert_array_equal(far.rows("cls", item_id), tiny_store.rows("cls", item_id))
    held = sum(p.stat().st_size for p in (tmp_path / "cache/files").rglob("*") if p.is_file())
    assert 0 < held <= 4000


def test_a_cached_file_that_is_torn_is_fetched_again(
    pushed: Bucket, tiny_store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DINOCACHE_CACHE", str(tmp_path / "cache"))
    url, _ = pushed
    FeatureStore(url).rows("cls", "0003")
    for path in (tmp_path / "cache/files").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:-9])
    np.testing.assert_array_equal(
        FeatureStore(url).rows("cls", "0003"), tiny_store.rows("cls", "0003")
    )


# Extraction right to a server


def test_extraction_to_a_server(
    bucket: Bucket, tiny_store: FeatureStore, tiny_table: Path, tmp_path: Path
) -> None:
    url, seen = bucket
    features = ("cls", "mean", "dense", "image")
    request = dataclasses.replace(
        tiny_request(tiny_table, tmp_path, features=features), root=f"{url}/f"
    )
    seen.behave(fault_share=0.05, seed=3)
    made = extract(request)
    assert made.complete
    assert seen.faults > 5
    seen.behave()
    far = FeatureStore(made.store)
    near = files_of(tiny_store.path)
    for entry in far.folder.walk("features.zarr"):
        assert far.folder.read(entry.name) == near[entry.name]
    assert verify(made.store).exit_code == 0
    seen.behave()
    assert extract(request).units == 0
    assert not [method for method, _ in seen.requests if method in ("PUT", "DELETE")]
