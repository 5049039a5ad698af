"""Folders below URLs: over sockets, against servers that answer well and badly."""

import pickle
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from serving import Proxy, http_server, proxy

from dinocache.errors import RequestError, StoreError, StoreWriteError
from dinocache.folders import Folder, LocalFolder
from dinocache.places import folder_of
from dinocache.remote import ObjectFolder, in_parallel, without_secrets

Bucket = tuple[str, Proxy]


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    if request.param == "local":
        return LocalFolder(tmp_path / "root")
    url, _ = request.getfixturevalue("bucket")
    return folder_of(f"{url}/root")


def test_what_is_written_is_read(folder: Folder) -> None:
    assert folder.size("a/b.bin") is None
    assert not folder.exists("a/b.bin")
    assert list(folder.walk()) == []
    assert folder.list().files == {}
    folder.replace("a/b.bin", b"0123456")
    folder.replace("a/c/d.bin", b"89")
    folder.replace("e", b"")
    assert folder.read("a/b.bin") == b"0123456"
    assert folder.read_range("a/b.bin", 2, 5) == b"234"
    assert (folder.size("a/b.bin"), folder.size("e")) == (7, 0)
    listing = folder.list()
    assert (list(listing.files), listing.folders) == (["e"], ("a",))
    assert list(folder.list("a").files) == ["b.bin"]
    assert folder.list("a").folders == ("c",)
    assert folder.list("nowhere").files == {}
    assert [(e.name, e.bytes) for e in folder.walk()] == [
        ("a/b.bin", 7),
        ("a/c/d.bin", 2),
        ("e", 0),
    ]
    inner = folder.within("a")
    assert [e.name for e in inner.walk()] == ["b.bin", "c/d.bin"]
    assert inner.within("c").read("d.bin") == b"89"
    assert str(inner) == f"{folder}/a"
    assert set(folder.names_after("b")) == {"e"}
    folder.replace("a/b.bin", b"new")
    assert folder.read("a/b.bin") == b"new"


def test_one_of_two_creates(folder: Folder) -> None:
    assert folder.create("x/y", b"first")
    assert not folder.create("x/y", b"second")
    assert folder.read("x/y") == b"first"
    folder.keep("x/y", b"third")
    folder.keep("x/z", b"third")
    assert folder.read("x/y") == folder.read("x/z") == b"third"
    folder.remove("x/y")
    folder.remove("x/y")
    with pytest.raises(FileNotFoundError):
        folder.read("x/y")
    with pytest.raises(FileNotFoundError):
        folder.read_range("x/y", 0, 2)


def test_it_is_the_same_in_another_process(folder: Folder) -> None:
    folder.replace("a/b", b"12")
    again = pickle.loads(pickle.dumps(folder.within("a")))
    assert again.read("b") == b"12"
    assert str(again) == str(folder.within("a"))


# Servers that answer badly


def blobs(count: int) -> dict[str, bytes]:
    draws = random.Random(1)
    return {f"d/{n:03d}": draws.randbytes(3000 + n) for n in range(count)}


def test_a_fifth_of_the_answers_is_wrong(bucket: Bucket) -> None:
    url, seen = bucket
    folder, content = folder_of(url), blobs(80)
    seen.behave(fault_share=0.2, seed=4)
    in_parallel(lambda name: folder.replace(name, content[name]), content)
    read = in_parallel(lambda name: folder.read(name, lambda come: come == content[name]), content)
    assert read == list(content.values())
    parts = in_parallel(
        lambda name: folder.read_range(name, 7, 1900, lambda come: come == content[name][7:1900]),
        content,
    )
    assert parts == [whole[7:1900] for whole in content.values()]
    assert seen.faults > 30
    assert len(seen.requests) > 3 * len(content) + 20
    seen.behave()
    assert {e.name: e.bytes for e in folder.walk()} == {n: len(c) for n, c in content.items()}


def test_a_file_that_is_cut_quietly_is_handed_over_as_it_came(bucket: Bucket) -> None:
    """Only who knows what it must be can tell; it is told so after some tries."""
    url, _ = bucket
    folder = folder_of(url)
    folder.replace("a", b"12345678")
    asked = []
    assert folder.read("a", lambda come: bool(asked.append(come))) == b"12345678"
    assert len(asked) > 3


@pytest.mark.parametrize("way", ["500", "reset"])
def test_a_server_that_never_answers_well(
    bucket: Bucket, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, seen = bucket
    folder = folder_of(url)
    folder.replace("a", b"12345678")
    monkeypatch.setattr("dinocache.remote._TRIES", 2)
    monkeypatch.setattr(seen, "draw", lambda: way)
    with pytest.raises(StoreError, match=r"cannot read s3://b\w+/a: .*then run the same command"):
        folder.read("a")
    with pytest.raises(StoreWriteError, match=r"cannot write s3://b\w+/b: .*see whether the serv"):
        folder.replace("b", b"1")


def test_a_bucket_that_is_not_there(bucket: Bucket) -> None:
    with pytest.raises(FileNotFoundError, match="no such file: 's3://nobody-has-this/a'"):
        folder_of("s3://nobody-has-this").read("a")


def test_credentials_are_in_no_message() -> None:
    url = "https://anna:geheim@host/folder?sig=abc123&x=1"
    assert without_secrets(f"cannot read {url} (as {url})") == (
        "cannot read https://host/folder (as https://host/folder)"
    )
    folder = ObjectFolder("http://anna:geheim@127.0.0.1:9/folder")
    assert str(folder) == "http://127.0.0.1:9/folder"


@pytest.mark.parametrize("url", ["ftp://host/x", "s3://", "hdfs://a/b"])
def test_other_urls_are_refused(url: str) -> None:
    if url == "s3://":
        assert str(folder_of(url)) == "s3:"  # no URL: a folder of that name
        return
    with pytest.raises(RequestError, match=r"choose from file://, s3://"):
        folder_of(url)


def test_file_urls_and_paths(tmp_path: Path) -> None:
    (tmp_path / "a b").mkdir()
    assert folder_of(f"file://{tmp_path}/a%20b").path == tmp_path / "a b"
    assert folder_of(str(tmp_path)) == folder_of(tmp_path) == LocalFolder(tmp_path)


# HTTP


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[str, Proxy, Path]]:
    with http_server(tmp_path) as url, proxy(url) as seen:
        yield seen.url, seen, tmp_path


def test_an_http_server(web: tuple[str, Proxy, Path]) -> None:
    url, seen, served = web
    (served / "x/y").mkdir(parents=True)
    (served / "x/a 1.bin").write_bytes(b"0123456")
    (served / "x/y/g").write_bytes(b"1")
    folder = folder_of(f"{url}/x")
    assert folder.read("a 1.bin") == b"0123456"
    seen.behave()
    assert folder.read_range("a 1.bin", 2, 5) == b"234"
    assert seen.sent == 3
    assert (folder.size("a 1.bin"), folder.size("none")) == (7, None)
    listing = folder.list()
    assert (list(listing.files), listing.folders) == (["a 1.bin"], ("y",))
    assert [entry.name for entry in folder.walk()] == ["a 1.bin", "y/g"]
    with pytest.raises(StoreWriteError, match="cannot write"):
        folder.replace("b", b"1")


def test_links_of_an_index_page_stay_in_the_folder(web: tuple[str, Proxy, Path]) -> None:
    url, _, served = web
    (served / "x").mkdir()
    links = [
        "../up",
        "/top",
        "http://else/where",
        "a?sort=1",
        "..",
        "..%2F..%2Fetc",
        "in/deep",
        "ok",
    ]
    page = "".join(f'<a href="{link}">x</a>' for link in links)
    (served / "x/index.html").write_text(page)
    listing = folder_of(f"{url}/x").list()
    assert (list(listing.files), listing.folders) == (["ok"], ())


def test_work_in_parallel_ends_with_the_first_error() -> None:
    def fail(number: int) -> int:
        if number == 3:
            raise ValueError("three")
        return number * 2

    assert in_parallel(fail, [1, 2, 4]) == [2, 4, 8]
    with pytest.raises(ValueError, match="three"):
        in_parallel(fail, range(10))
    double: Callable[[int], int] = lambda number: 2 * number  # noqa: E731
    assert in_parallel(double, []) == []
