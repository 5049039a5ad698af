"""The engine when something fails, in whichever thread: no hang, no lost error, no wrong row."""

import itertools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from making import contents, make_table, tiny_request
from PIL import Image

from dinocache.engine import Engine, _Encoded
from dinocache.errors import StoppedError, StoreWriteError
from dinocache.extract import extract
from dinocache.inference import Encoder
from dinocache.job import Supervision
from dinocache.progress import QuietProgress
from dinocache.readers import OpenItem, Pixels
from dinocache.readers.image import ImageReader
from dinocache.source import Source
from dinocache.store import FeatureStore
from dinocache.verify import verify
from dinocache.writer import StoreWriter

KINDS = ("cls", "dense", "image")
STAGES = ("decode", "write", "stage")

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    assert [t.name for t in threading.enumerate() if t.name.startswith(STAGES)] == []


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[OpenItem]]:
    """Items that are open; none may be at the end."""
    still: list[OpenItem] = []
    plain = Source.open

    def open_item(self: Source, item_id: str) -> OpenItem:
        item = plain(self, item_id)
        close = item.close

        def closed() -> None:
            still.remove(item)
            close()

        monkeypatch.setattr(item, "close", closed)
        still.append(item)
        return item

    monkeypatch.setattr(Source, "open", open_item)
    yield still
    assert still == []


@pytest.fixture(scope="module")
def seventy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_table(tmp_path_factory.mktemp("seventy"), 70)


@pytest.fixture(scope="module")
def undisturbed(seventy: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    root = tmp_path_factory.mktemp("undisturbed")
    return contents(extract(tiny_request(seventy, root, features=KINDS)).path)


# Errors in the threads


@pytest.mark.parametrize("method", ["write_rows", "write_native", "commit", "close_native"])
@pytest.mark.parametrize("doomed", [1, 4])
def test_a_disk_that_refuses_ends_the_run(
    tmp_path: Path,
    seventy: Path,
    undisturbed: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    opened: list[OpenItem],
    method: str,
    doomed: int,
) -> None:
    request = tiny_request(seventy, tmp_path / "f", features=KINDS)
    plain, calls = getattr(StoreWriter, method), itertools.count(1)

    def refused(self: StoreWriter, *given: object, **named: object) -> object:
        if next(calls) == doomed:
            raise StoreWriteError("cannot write it: the disk is full")
        return plain(self, *given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(StoreWriter, method, refused)
        with pytest.raises(StoreWriteError, match=r"^cannot write it: the disk is full$"):
            extract(request)
    path = tmp_path / "f/images/tiny/32x48"
    assert verify(path).damages == []
    assert not FeatureStore(path).is_complete
    assert extract(request).complete
    assert contents(path) == undisturbed


@pytest.mark.parametrize(
    ("where", "doomed"),
    [
        ("encode", 1),
        ("encode", 4),
        ("collect", 2),
        ("read", 1),
        ("read", 40),
        ("tell", 2),
    ],
)
def test_an_error_of_our_own_is_raised_as_it_is(
    tmp_path: Path,
    seventy: Path,
    monkeypatch: pytest.MonkeyPatch,
    opened: list[OpenItem],
    where: str,
    doomed: int,
) -> None:
    calls = itertools.count(1)

    def failing(plain: Callable[..., object]) -> Callable[..., object]:
        def call(*given: object, **named: object) -> object:
            if next(calls) == doomed:
                raise ModuleNotFoundError("No module named 'x'", name="x")
            return plain(*given, **named)

        return call

    owner, name = {
        "encode": (Engine, "encode"),
        "collect": (_Encoded, "result"),
        "read": (ImageReader, "open"),
        "tell": (QuietProgress, "advance"),
    }[where]
    monkeypatch.setattr(owner, name, failing(getattr(owner, name)))
    with pytest.raises(ModuleNotFoundError, match=r"^No module named 'x'$"):
        extract(tiny_request(seventy, tmp_path / "f", features=KINDS))
    assert verify(tmp_path / "f/images/tiny/32x48").damages == []


def test_what_was_asked_for_ahead_is_closed_when_a_run_stops(
    tmp_path: Path, opened: list[OpenItem]
) -> None:
    stop, most = threading.Event(), 0

    class Stops(QuietProgress):
        def advance(self, rows: int, n_bytes: int, busy: Mapping[str, float]) -> None:
            nonlocal most
            most = max(most, len(opened))
            stop.set()

    request = tiny_request(make_table(tmp_path, 150), tmp_path / "f", workers=3)
    with pytest.raises(StoppedError, match="of 10 units are committed"):
        extract(request, Stops(), Supervision(stop=stop))
    assert most > 0


# Readers that do what they must not


class Odd(OpenItem):
    """An item of five rows that gives another number of them than it is asked for."""

    n_rows = 5

    def __init__(self, surplus: int) -> None:
        self.surplus = surplus
        self.nbytes = 5 * (16 << 20)  # so that two rows are read at a time

    def rows(self, start: int, stop: int) -> list[Pixels]:
        n_rows = stop - start + (self.surplus if start else 0)
        return [np.full((1, 32, 48), 10 * start, np.uint8)] * n_rows


@pytest.mark.parametrize("surplus", [-1, 1])
def test_a_reader_that_gives_another_number_of_rows_fails_the_item(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, surplus: int
) -> None:
    """Else the rows of the items behind would be taken for others, or none for some."""
    table = make_table(tmp_path, 3)
    plain = ImageReader.open

    def odd(self: ImageReader, files: Any, like: Any = None) -> OpenItem:  # noqa: ANN401
        return Odd(surplus) if files.path.stem == "0001" else plain(self, files, like)

    monkeypatch.setattr(ImageReader, "open", odd)
    monkeypatch.setattr(ImageReader, "one_row", False)
    outcome = extract(tiny_request(table, tmp_path / "f", features=("cls",)))
    (failed,) = outcome.failures
    assert (failed.item_id, failed.failure.reason) == (
        "0001",
        f"its reader gave {2 + surplus} rows, 2 were asked for",
    )
    store = FeatureStore(outcome.path)
    monkeypatch.undo()
    alone = pd.read_csv(table, dtype={"item_id": str}).query("item_id == '0002'")
    alone.to_csv(tmp_path / "alone.csv", index=False)
    reference = extract(tiny_request(tmp_path / "alone.csv", tmp_path / "g", features=("cls",)))
    np.testing.assert_allclose(
        store.rows("cls", "0002").astype(float),
        FeatureStore(reference.path).rows("cls", "0002").astype(float),
        atol=2e-3,
    )


# What cannot be kept


def test_what_is_not_finite_is_its_own_item_s_also_beside_failed_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows 1 and 6 of the first batch cannot be read; rows 2, 5 and 7 give what cannot be kept."""
    table = make_table(tmp_path, 19)
    for name in ("0001", "0006"):
        (tmp_path / f"png/{name}.png").write_bytes(b"no image")
    undisturbed = extract(tiny_request(table, tmp_path / "plain", features=("cls", "mean")))
    plain, passes = Encoder.__call__, itertools.count()

    def spoiled(
        self: Encoder, pixels: torch.Tensor, kinds: Sequence[str]
    ) -> dict[str, torch.Tensor]:
        found = {kind: values.clone() for kind, values in plain(self, pixels, kinds).items()}
        if next(passes) == 0:
            found["cls"][2, 3] = float("nan")
            found["cls"][1] = float("nan")  # of a row that is not there
            found["mean"][5] = float("inf")
            found["cls"][7, 11], found["mean"][7, 1] = -70_000.0, float("-inf")
        return found

    monkeypatch.setattr(Encoder, "__call__", spoiled)
    outcome = extract(tiny_request(table, tmp_path / "f", features=("cls", "mean")))
    no_image = "not an image: PNG, JPEG, TIFF, BMP or WebP was expected"
    assert {f.item_id: (f.kinds, f.failure.reason) for f in outcome.failures} == {
        "0001": (("cls", "mean"), no_image),
        "0002": (("cls",), "cls: features are NaN or infinite"),
        "0005": (("mean",), "mean: features are NaN or infinite"),
        "0006": (("cls", "mean"), no_image),
        "0007": (
            ("cls", "mean"),
            "cls: a feature of 70000 does not fit float16 (at most 65504)",
        ),
    }
    ours, theirs = FeatureStore(outcome.path), FeatureStore(undisturbed.path)
    for kind, absent in (("cls", {1, 2, 6, 7}), ("mean", {1, 5, 6, 7})):
        ids, vectors = ours.item_vectors(kind)
        assert ids == [f"{i:04d}" for i in range(19) if i not in absent]
        assert np.isfinite(vectors).all()
        for item_id in ids:
            np.testing.assert_array_equal(ours.rows(kind, item_id), theirs.rows(kind, item_id))
    assert verify(outcome.path).exit_code == 0


# Channels that pass one by one, and the item's own grid


def write_channels(folder: Path, n_items: int) -> Path:
    """Write items of two files and a mask each; sizes all differ between items."""
    rng = np.random.default_rng(11)
    rows = []
    for index in range(n_items):
        shape = (33 + index, 47 + 2 * index)
        for channel, top in (("ct", 200), ("pet", 90)):
            pixels = rng.integers(0, top, shape).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{channel}{index}.png")
        labels = rng.integers(0, 4, shape).astype(np.uint8)
        Image.fromarray(labels).save(folder / f"mask{index}.png")
        rows.append(
            {
                "item_id": f"i{index}",
                "path.ct": f"ct{index}.png",
                "path.pet": f"pet{index}.png",
                "mask": f"mask{index}.png",
            }
        )
    table = folder / "channels.csv"
    pd.DataFrame(rows).to_csv(table, index=False)
    return table


def test_channels_pass_one_by_one_and_the_own_grid_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each channel's features are those of a store of that channel alone."""
    table = write_channels(tmp_path, 21)
    (tmp_path / "pet3.png").write_bytes(b"no image")
    Image.fromarray(np.zeros((5, 7), np.uint8)).save(tmp_path / "mask4.png")
    features = ("cls.ct", "cls.pet", "dense.pet", "image", "mask")
    outcome = extract(tiny_request(table, tmp_path / "f", features=features))
    assert {f.item_id: f.kinds for f in outcome.failures} == {"i3": features, "i4": ("mask",)}
    store = FeatureStore(outcome.path)
    items = pd.read_csv(table, dtype=str)
    for channel, kinds in (("ct", ("cls",)), ("pet", ("cls", "dense"))):
        # The channel that cannot be read makes its item fail as a whole.
        alone = items.rename(columns={f"path.{channel}": "path"})[["item_id", "path"]]
        alone.loc[3, "path"] = "nothing.png"
        alone.to_csv(tmp_path / f"{channel}.csv", index=False)
        single = extract(tiny_request(tmp_path / f"{channel}.csv", tmp_path / "g", features=kinds))
        reference = FeatureStore(single.path)
        for kind, item in itertools.product(kinds, (0, 2, 4, 20)):
            np.testing.assert_array_equal(
                store.rows(f"{kind}.{channel}", f"i{item}"), reference.rows(kind, f"i{item}")
            )
    for item in (0, 20):
        image, attributes = store.native("image", f"i{item}")
        for place, channel in enumerate(("ct", "pet")):
            with Image.open(tmp_path / f"{channel}{item}.png") as picture:
                np.testing.assert_array_equal(image[place, 0], np.asarray(picture))
        assert attributes["windows"] == [[0.0, 255.0]] * 2
        with Image.open(tmp_path / f"mask{item}.png") as labels:
            np.testing.assert_array_equal(
                store.native("mask", f"i{item}")[0][0, 0], np.asarray(labels)
            )
    assert verify(outcome.path).exit_code == 0

    # Of one channel only, what cannot be kept.
    plain, passes = Encoder.__call__, itertools.count()

    def spoiled(
        self: Encoder, pixels: torch.Tensor, kinds: Sequence[str]
    ) -> dict[str, torch.Tensor]:
        found = {kind: values.clone() for kind, values in plain(self, pixels, kinds).items()}
        if next(passes) == 1:  # the first batch's second channel
            found["cls"][6, 0] = float("inf")
        return found

    monkeypatch.setattr(Encoder, "__call__", spoiled)
    again = extract(tiny_request(table, tmp_path / "h", features=("cls.ct", "cls.pet")))
    failed = {f.item_id: (f.kinds, f.failure.reason) for f in again.failures}
    assert failed["i6"] == (("cls.pet",), "cls.pet: features are NaN or infinite")
    assert failed.keys() == {"i3", "i6"}


# Carefully


def test_carefully_one_item_is_open_at_a_time_and_never_beside_a_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: list[OpenItem]
) -> None:
    table = make_table(tmp_path, 37)
    (tmp_path / "png/0020.png").write_bytes(b"no image")
    plain = extract(tiny_request(table, tmp_path / "plain", features=KINDS))
    reading: list[str] = []
    seen: list[tuple[str, ...]] = []
    n_open: list[int] = []

    @contextmanager
    def watch(item_id: str) -> Iterator[None]:
        reading.append(item_id)
        seen.append(tuple(reading))
        n_open.append(len(opened))
        try:
            yield
        finally:
            reading.remove(item_id)

    encode = Engine.encode
    beside: list[list[str]] = []

    def encode_(self: Engine, *given: Any) -> Any:  # noqa: ANN401
        if self._careful:
            beside.append(list(reading))
        return encode(self, *given)

    monkeypatch.setattr(Engine, "encode", encode_)
    careful = frozenset({"0003", "0019"})  # of the first two units
    outcome = extract(
        tiny_request(table, tmp_path / "f", features=KINDS),
        supervision=Supervision(careful=careful, watch=watch),
    )
    assert contents(outcome.path) == contents(plain.path)
    assert seen[:32] == [(f"{index:04d}",) for index in range(32)]
    assert n_open[:32] == [0] * 32
    assert beside == [[]] * 4
    assert len(seen) == 37


class Long(OpenItem):
    """An item of three blocks, each of which says that it is read."""

    n_rows = 48

    def __init__(self) -> None:
        self.read = {start: threading.Event() for start in (0, 16, 32)}

    def rows(self, start: int, stop: int) -> list[Pixels]:
        self.read[start].set()
        return [np.full((1, 32, 48), start, np.uint8)] * (stop - start)


def test_carefully_no_row_is_read_beside_a_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    item, passes = Long(), itertools.count()
    monkeypatch.setattr(ImageReader, "open", lambda *_: item)
    monkeypatch.setattr(ImageReader, "one_row", False)
    monkeypatch.setattr("dinocache.source.item_windows", lambda *_: ((0.0, 255.0),))
    encode = Engine.encode

    def encode_(self: Engine, *given: Any) -> Any:  # noqa: ANN401
        block = next(passes) // 2 * 16  # a block is two batches
        assert all(read.is_set() == (start <= block) for start, read in item.read.items())
        if block + 16 in item.read:
            assert not item.read[block + 16].wait(0.05)
        return encode(self, *given)

    monkeypatch.setattr(Engine, "encode", encode_)
    request = tiny_request(make_table(tmp_path, 1), tmp_path / "f", features=("cls",))
    outcome = extract(request, supervision=Supervision(careful=frozenset({"0000"})))
    assert (outcome.rows, outcome.complete, next(passes)) == (48, True, 6)


def test_an_item_that_ended_a_process_is_not_touched(tmp_path: Path) -> None:
    table = make_table(tmp_path, 19)
    readable = (tmp_path / "png/0005.png").read_bytes()
    (tmp_path / "png/0005.png").write_bytes(b"no image")
    plain = extract(tiny_request(table, tmp_path / "plain", features=KINDS))
    (tmp_path / "png/0005.png").write_bytes(readable)
    outcome = extract(
        tiny_request(table, tmp_path / "f", features=KINDS),
        supervision=Supervision(killers={"0005": "reading it ends the process (SIGSEGV)"}),
    )
    (failed,) = outcome.failures
    assert failed.failure.model_dump() == {
        "reason": "reading it ends the process (SIGSEGV)",
        "reader": "image",
        "path": "png/0005.png",
    }
    ours, theirs = contents(outcome.path), contents(plain.path)
    for name in ours:
        if name.startswith(("features.zarr/", "native.zarr/")):
            assert ours[name] == theirs[name], name
    assert ours.keys() == theirs.keys()
