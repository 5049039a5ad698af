"""Items that another process decodes: the same as here, and what becomes of those that end it."""

import os
import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from dicoms import write_series
from making import contents, tiny_request

from dinocache import decoders, job
from dinocache.decoders import Decoders
from dinocache.errors import CrashError, ItemError
from dinocache.extract import extract
from dinocache.forecast import dry_run
from dinocache.intensity import item_windows
from dinocache.progress import QuietProgress
from dinocache.readers import ItemFiles, Reader, make_reader
from dinocache.readers.channels import open_channels
from dinocache.recipe import WindowRecipe
from dinocache.request import ExtractRequest
from dinocache.source import Source
from dinocache.verify import verify

pytestmark = pytest.mark.skipif(not decoders.CAN_HAND_OVER, reason="no memory to hand over here")

DEADLY = Path(__file__).resolve().parents[1] / "support" / "deadly"
PERCENTILE = (WindowRecipe(mode="percentile", low=0.5, high=99.5),)
SPACED = np.diag([0.5, 0.6, 2.0, 1.0])
AFFINE = np.array([[0.7, 0, 0, -11], [0, 0.8, 0.3, 5], [0, 0, 1.5, 40], [0, 0, 0, 1]])


@pytest.fixture
def two() -> Iterator[Decoders]:
    with closing(Decoders(2)) as made:
        yield made


@pytest.fixture(scope="module")
def shared() -> Iterator[Decoders]:
    """Two that go on from test to test, as they do from item to item."""
    with closing(Decoders(2)) as made:
        yield made


def write_nifti(path: Path, seed: int = 0, *, shape: tuple[int, ...] = (13, 11, 5)) -> Path:
    """Write random int16, (i, j, k[, volumes])."""
    values = np.random.default_rng(seed).integers(-900, 1200, shape).astype(np.int16)
    nib.save(nib.Nifti1Image(values, AFFINE), path)
    return path


def write_labels(
    path: Path, shape: tuple[int, ...] = (13, 11, 5), affine: np.ndarray = AFFINE
) -> Path:
    values = np.random.default_rng(7).integers(0, 3, shape).astype(np.uint8)
    nib.save(nib.Nifti1Image(values, affine), path)
    return path


def series(folder: Path, slices: int = 4) -> Path:
    values = np.random.default_rng(slices).integers(0, 999, (slices, 9, 7)).astype(np.int16)
    lps = np.diag([-1, -1, 1, 1]) @ SPACED
    return write_series(folder / "series", values, lps, RescaleSlope="1.5")


def two_channels(folder: Path) -> list[ItemFiles]:
    names = {"ct.nii.gz": 1, "pet.nii.gz": 2}
    mask = write_labels(folder / "labels.nii.gz")
    paths = [write_nifti(folder / name, seed) for name, seed in names.items()]
    return [ItemFiles(path=path, mask=mask) for path in paths]


CASES: dict[str, Any] = {
    "NIfTI": (lambda folder: [ItemFiles(path=write_nifti(folder / "a.nii.gz"))], {}),
    "4-D": (
        lambda folder: [ItemFiles(path=write_nifti(folder / "a.nii.gz", shape=(9, 7, 3, 2)))],
        {"axis": "coronal"},
    ),
    "resampled": (
        lambda folder: [ItemFiles(path=write_nifti(folder / "a.nii.gz"))],
        {"spacing": [1, 1, 1], "crop": "foreground", "foreground_above": 1100},
    ),
    "DICOM series": (lambda folder: [ItemFiles(path=series(folder))], {}),
    "two channels and a mask": (two_channels, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_an_item_is_the_same_from_another_process(
    case: str, tmp_path: Path, shared: Decoders
) -> None:
    write, options = CASES[case]
    reader, files = make_reader("volume", options), write(tmp_path)
    has_mask = files[0].mask is not None
    opened = shared.open(reader, files, PERCENTILE, mask=has_mask)
    assert opened is not None
    theirs = opened.item
    with open_channels(reader, files) as ours:
        assert theirs.n_rows == ours.n_rows == shared.count(reader, files[0])
        assert opened.windows == item_windows(PERCENTILE, ours)
        assert theirs.geometry.to_attributes() == ours.geometry.to_attributes()
        assert (theirs.value_range, theirs.notes) == (ours.value_range, ours.notes)
        np.testing.assert_array_equal(theirs.coords(), ours.coords(), strict=True)
        for start, stop in ((0, ours.n_rows), (1, 3), (2, 2)):
            pairs = zip(theirs.rows(start, stop), ours.rows(start, stop), strict=True)
            for their_row, our_row in pairs:
                np.testing.assert_array_equal(their_row, our_row, strict=True)
        if has_mask:
            np.testing.assert_array_equal(theirs.mask(), ours.mask(), strict=True)
        else:
            with pytest.raises(ItemError, match=r"^its mask was not asked for$"):
                theirs.mask()
        theirs.rows(0, 1)[0][...] = 3  # whoever has a row may write into it
    theirs.close()


def test_many_items_at_once(tmp_path: Path, shared: Decoders) -> None:
    """Sizes differ, so that an answer that came to another item would be seen."""
    reader = make_reader("volume")
    paths = [
        write_nifti(tmp_path / f"{n}.nii.gz", n, shape=(6 + n, 5 + n, 2 + n)) for n in range(12)
    ]

    def read(path: Path) -> bool:
        opened = shared.open(reader, [ItemFiles(path=path)], PERCENTILE, mask=False)
        assert opened is not None
        with reader.open(ItemFiles(path=path)) as ours:
            rows = ours.rows(0, ours.n_rows)
        pairs = zip(opened.item.rows(0, len(rows)), rows, strict=True)
        return all(np.array_equal(*pair) for pair in pairs)

    with ThreadPoolExecutor(5) as pool:
        assert all(pool.map(read, paths * 3))


def test_what_is_wrong_with_an_item_is_said_as_here(tmp_path: Path, shared: Decoders) -> None:
    reader = make_reader("volume")
    cut = write_nifti(tmp_path / "cut.nii.gz")
    cut.write_bytes(cut.read_bytes()[:-40])
    for path in (tmp_path / "none.nii.gz", cut):
        with (
            pytest.raises(ItemError) as here,
            reader.open(ItemFiles(path=path)) as item,
        ):
            item.rows(0, item.n_rows)
        with pytest.raises(ItemError) as there:
            shared.open(reader, [ItemFiles(path=path)], PERCENTILE, mask=False)
        assert str(there.value) == str(here.value)
    constant = tmp_path / "zeros.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros((4, 3, 2), np.int16), AFFINE), constant)
    wanted = (WindowRecipe(mode="percentile", low=1, high=99, nonzero=True),)
    with pytest.raises(ItemError, match=r"^all of its values are 0"):
        shared.open(reader, [ItemFiles(path=constant)], wanted, mask=False)


def test_a_mask_that_does_not_fit_costs_the_mask(tmp_path: Path, shared: Decoders) -> None:
    files = ItemFiles(
        path=write_nifti(tmp_path / "a.nii.gz"), mask=write_labels(tmp_path / "m.nii", (12, 11, 5))
    )
    opened = shared.open(make_reader("volume"), [files], PERCENTILE, mask=True)
    assert opened is not None
    assert len(opened.item.rows(0, 5)) == 5
    with pytest.raises(ItemError, match=r"^its mask: it lies on another grid"):
        opened.item.mask()


def test_names_that_are_no_utf_8(tmp_path: Path, shared: Decoders) -> None:
    path = write_nifti(tmp_path / "a.nii.gz").rename(tmp_path / os.fsdecode(b"\xe9t\xe9.nii.gz"))
    assert shared.count(make_reader("volume"), ItemFiles(path=path)) == 5


def test_signals_to_all_are_for_the_parent(tmp_path: Path, two: Decoders) -> None:
    files = ItemFiles(path=write_nifti(tmp_path / "a.nii.gz"))
    assert two.count(make_reader("volume"), files) == 5
    (started,) = [one for one in list(two._idle.queue) if one is not None]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE):
        os.kill(started._process.pid, number)
    assert two.count(make_reader("volume"), files) == 5
    assert [one for one in list(two._idle.queue) if one is not None] == [started]
    assert started.close() == 0  # which ends where nobody is left to ask


def test_an_error_of_our_own_is_no_fault_of_the_item(
    tmp_path: Path, two: Decoders, capfd: pytest.CaptureFixture[str]
) -> None:
    reader: Reader[Any] = make_reader("volume")
    reader.options = {"nonsense": 1}
    with pytest.raises(CrashError, match="ended by an error of dinocache's own"):
        two.open(reader, [ItemFiles(path=tmp_path / "a.nii")], (), mask=False)
    assert "it has no option 'nonsense'" in capfd.readouterr().err


def test_a_library_that_is_not_installed(
    tmp_path: Path, two: Decoders, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pydicom.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'pydicom'\", name='pydicom')"
    )
    path = series(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(ModuleNotFoundError) as raised:
        two.count(make_reader("volume"), ItemFiles(path=path))
    assert raised.value.name == "pydicom"


# Items that end the process


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("deadly-segv.nii.gz", r"^reading it ends the process \(SIGSEGV\)$"),
        ("deadly-kill.nii.gz", r"^reading it ends the process \(SIGKILL, most often for want of"),
    ],
)
def test_an_item_that_ends_two_processes_is_to_blame(
    tmp_path: Path, two: Decoders, monkeypatch: pytest.MonkeyPatch, name: str, reason: str
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(DEADLY), prepend=os.pathsep)
    reader = make_reader("volume")
    good, bad = (write_nifti(tmp_path / n) for n in ("good.nii.gz", name))
    files = [ItemFiles(path=path) for path in (good, bad, bad, good, bad, good)]

    def count(one: ItemFiles) -> int | str:
        try:
            return two.count(reader, one)
        except ItemError as exc:
            return str(exc)

    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(count, files))
    assert [found[i] for i in (0, 3, 5)] == [5, 5, 5]
    for said in (found[1], found[2], found[4]):
        with pytest.raises(ItemError, match=reason):
            raise ItemError(said)


def test_one_death_is_no_proof(
    tmp_path: Path, two: Decoders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill for want of memory may have been meant for whoever was largest."""
    monkeypatch.setenv("PYTHONPATH", str(DEADLY), prepend=os.pathsep)
    path = write_nifti(tmp_path / "deadly-once.nii.gz")
    assert two.count(make_reader("volume"), ItemFiles(path=path)) == 5
    assert (tmp_path / "deadly-once.nii.gz.died").exists()


# Extractions


@pytest.fixture
def volumes(tmp_path: Path) -> Path:
    """A table of nine series, one missing, one damaged, some with masks, one of which is bad."""
    rows = []
    for n in range(9):
        path = series(tmp_path / f"v{n}", 3 + n)
        mask = write_labels(tmp_path / f"m{n}.nii.gz", (7, 9, 3 + n), SPACED) if n % 3 else None
        where = path if n % 2 else next(path.iterdir())
        rows.append(
            {
                "item_id": f"v{n}",
                "path": where.relative_to(tmp_path).as_posix(),
                "mask": mask and mask.name,
            }
        )
    shutil.rmtree(tmp_path / "v2")
    next((tmp_path / "v5/series").iterdir()).write_bytes(b"no DICOM")
    write_labels(tmp_path / "m7.nii.gz", (7, 8, 10), SPACED)
    pd.DataFrame(rows).to_csv(tmp_path / "volumes.csv", index=False)
    return tmp_path / "volumes.csv"


def of_volumes(table: Path, root: Path, **options: object) -> ExtractRequest:
    return tiny_request(table, root, reader="volume", workers=2, **options)


def test_an_extraction_ends_in_the_same_bytes(
    volumes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = ("cls", "dense", "image", "mask")
    opened: list[str] = []
    before = Decoders.open

    def counted(self: Decoders, *arguments: Any, **more: Any) -> Any:  # noqa: ANN401
        opened.append(str(arguments[1][0].path))
        return before(self, *arguments, **more)

    monkeypatch.setattr(Decoders, "open", counted)
    apart = extract(of_volumes(volumes, tmp_path / "apart", features=kinds))
    assert len(set(opened)) == 9
    monkeypatch.setattr(job, "_WORTH_PROCESSES", 10)
    here = extract(of_volumes(volumes, tmp_path / "here", features=kinds))
    assert len(set(opened)) == len(opened) == 9
    assert {f.item_id for f in apart.failures} == {"v2", "v5", "v7"}
    assert apart.failures == here.failures
    assert contents(apart.path) == contents(here.path)


def test_an_item_too_large_to_hold_is_read_in_parts(
    volumes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = extract(of_volumes(volumes, tmp_path / "whole", features=("cls", "mask")))
    parts: list[str] = []
    before = Source.open

    def counted(self: Source, item_id: str) -> Any:  # noqa: ANN401
        parts.append(item_id)
        return before(self, item_id)

    monkeypatch.setattr(Source, "open", counted)
    monkeypatch.setattr(decoders, "_MOST_BYTES", 4 * 9 * 7 * 8)
    here = extract(of_volumes(volumes, tmp_path / "parts", features=("cls", "mask")))
    assert sorted(parts) == ["v6", "v7", "v8"]
    assert contents(whole.path) == contents(here.path)


def test_an_extraction_goes_on_without_what_ends_a_decoder(
    volumes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process, which would not survive it; and a plan, which counts rows, does as well."""
    slice_ = next((tmp_path / "v3/series").iterdir())
    slice_.rename(slice_.with_name("deadly-segv.dcm"))
    monkeypatch.setenv("PYTHONPATH", str(DEADLY), prepend=os.pathsep)
    request = of_volumes(volumes, tmp_path / "f", features=("cls",))
    reason = "reading it ends the process (SIGSEGV)"
    assert dry_run(request).unreadable["v3"] == reason
    outcome = extract(request, QuietProgress())
    ledger = {f.item_id: f.failure.reason for f in outcome.failures}
    assert ledger.keys() == {"v2", "v3", "v5"}
    assert ledger["v3"] == reason
    assert outcome.complete
    assert verify(outcome.path).exit_code == 0


def test_no_process_is_left_behind(volumes: Path, tmp_path: Path) -> None:
    def of_us() -> set[str]:
        listed = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text()
        return set(listed.split())

    before = of_us()
    extract(of_volumes(volumes, tmp_path / "f", features=("cls",)))
    assert of_us() <= before
