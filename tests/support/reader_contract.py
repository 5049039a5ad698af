"""What every reader must do, as tests: docs/readers.md, "The contract".

A test class of a reader inherits `ReaderContract` and says, by a fixture, how to make an item and
what its rows must hold.
"""

import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dinocache.documents import canonical
from dinocache.errors import ItemError
from dinocache.readers import Reader, make_reader
from dinocache.readers.contract import ItemFiles, Pixels

DTYPES = ("uint8", "int16", "uint16", "float32")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """An item on the disk and what must come of it.

    Attributes:
        files: Its files.
        rows: (rows, C, Y, X), what all of its rows must be.
        options: Of the reader.
        tolerance: Largest difference that is let through; 0 for lossless formats.
        claims: Of formats whose header claims a size: a file with a short body and a header that
            claims some 10^12 pixels; None where the format has none.
    """

    files: ItemFiles
    rows: np.ndarray
    options: Mapping[str, object] = field(default_factory=dict)
    tolerance: float = 0
    claims: Path | None = None


class ReaderContract:
    """Inherited by the tests of each format of each reader."""

    reader_name: str

    @pytest.fixture
    def sample(self, tmp_path: Path) -> Sample:
        raise NotImplementedError

    @pytest.fixture
    def reader(self, sample: Sample) -> Reader:
        return make_reader(self.reader_name, sample.options)

    def check(self, found: list[Pixels], expected: np.ndarray, sample: Sample) -> None:
        assert len(found) == len(expected)
        for row, wanted in zip(found, expected, strict=True):
            assert row.shape == wanted.shape
            difference = np.abs(row.astype(np.float64) - wanted.astype(np.float64))
            assert difference.max(initial=0) <= sample.tolerance

    def test_it_gives_all_rows(self, reader: Reader, sample: Sample) -> None:
        with reader.open(sample.files) as item:
            assert item.n_rows == len(sample.rows) == reader.count_rows(sample.files)
            found = item.rows(0, item.n_rows)
        assert {str(row.dtype) for row in found} <= set(DTYPES)
        assert len({(row.dtype, row.shape) for row in found}) == 1
        self.check(found, sample.rows, sample)

    def test_any_range_is_the_same_whatever_was_read_before(
        self, reader: Reader, sample: Sample
    ) -> None:
        n_rows = len(sample.rows)
        ranges = [(n_rows - 1, n_rows), (0, 1), (n_rows // 2, n_rows), (0, n_rows), (0, 0)]
        with reader.open(sample.files) as item:
            for start, stop in ranges:
                found = item.rows(start, stop)
                self.check(found, sample.rows[start:stop], sample)
        with reader.open(sample.files) as item:
            middle = n_rows // 2
            self.check(item.rows(middle, middle + 1), sample.rows[middle : middle + 1], sample)

    def test_threads_may_read_at_once(self, reader: Reader, sample: Sample) -> None:
        with reader.open(sample.files) as item:
            if item.one_at_a_time:
                pytest.skip("it says that it is read one range at a time")
            starts = list(range(item.n_rows)) * 4
            with ThreadPoolExecutor(4) as pool:
                for start, found in zip(
                    starts, pool.map(lambda i: item.rows(i, i + 1), starts), strict=True
                ):
                    self.check(found, sample.rows[start : start + 1], sample)

    def test_coordinates_are_as_many_as_columns(self, reader: Reader, sample: Sample) -> None:
        with reader.open(sample.files) as item:
            coords = item.coords()
            assert coords.shape == (item.n_rows, len(reader.columns))
            assert coords.dtype == np.float64
            assert np.isfinite(coords).all()

    def test_the_geometry_has_the_shape_of_the_rows(self, reader: Reader, sample: Sample) -> None:
        with reader.open(sample.files) as item:
            shape = item.geometry.shape
            if shape is not None:
                rows, *plane = shape
                assert rows * item.geometry.volumes == item.n_rows
                assert tuple(plane) == sample.rows.shape[2:]

    def test_options_are_canonical(self, reader: Reader, sample: Sample) -> None:
        assert canonical(reader.options)
        again = make_reader(self.reader_name, reader.options)
        assert again.options == reader.options

    def test_a_missing_file_is_named(self, reader: Reader, sample: Sample) -> None:
        gone = ItemFiles(path=sample.files.path.with_name("gone" + sample.files.path.suffix))
        with pytest.raises(ItemError, match="missing"):
            reader.open(gone).rows(0, 1)

    def test_an_empty_file_is_refused(self, reader: Reader, sample: Sample, tmp_path: Path) -> None:
        empty = tmp_path / f"empty{''.join(sample.files.path.suffixes)}"
        empty.write_bytes(b"")
        with pytest.raises(ItemError):
            reader.open(ItemFiles(path=empty)).rows(0, 1)

    def test_a_claim_of_terabytes_is_refused(self, reader: Reader, sample: Sample) -> None:
        if sample.claims is None:
            pytest.skip("this format's header claims no size")
        with pytest.raises(ItemError):
            reader.open(ItemFiles(path=sample.claims)).rows(0, 1)

    def test_a_file_cut_short_is_refused_or_reads_the_same(
        self, reader: Reader, sample: Sample, tmp_path: Path
    ) -> None:
        for share in (0.1, 0.5, 0.9):
            damaged = _copy(sample.files.path, tmp_path / f"cut-{share}")
            victim = _victim(damaged)
            content = victim.read_bytes()
            victim.write_bytes(content[: int(len(content) * share)])
            self.read_or_refuse(reader, damaged)

    @settings(
        max_examples=25,
        deadline=None,
        suppress_health_check=[
            HealthCheck.function_scoped_fixture,
            HealthCheck.differing_executors,  # one process runs the class of every format
        ],
    )
    @given(data=st.data())
    def test_damaged_bytes_are_read_or_refused_by_name(
        self, reader: Reader, sample: Sample, tmp_path: Path, data: st.DataObject
    ) -> None:
        damaged = _copy(sample.files.path, tmp_path / "damaged")
        victim = _victim(damaged)
        content = bytearray(victim.read_bytes())
        # Headers are where the harm is done.
        reach = data.draw(st.sampled_from([min(len(content), 512), len(content)]))
        for _ in range(data.draw(st.integers(1, 8))):
            content[data.draw(st.integers(0, reach - 1))] = data.draw(st.integers(0, 255))
        victim.write_bytes(bytes(content))
        self.read_or_refuse(reader, damaged)

    def read_or_refuse(self, reader: Reader, path: Path) -> None:
        """Read the whole; `ItemError` is the only exception that may come."""
        try:
            with reader.open(ItemFiles(path=path)) as item:
                assert item.n_rows >= 1
                found = item.rows(0, min(item.n_rows, 64))
                assert {str(row.dtype) for row in found} <= set(DTYPES)
        except ItemError as exc:
            refusal = str(exc)
        else:
            return
        assert refusal.strip()
        assert "\n" not in refusal


def _copy(source: Path, folder: Path) -> Path:
    """Copy an item's file or folder into a fresh folder, under its own name."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    target = folder / source.name
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copyfile(source, target)
    return target


def _victim(path: Path) -> Path:
    """Choose the file to damage: itself, or the first in a folder."""
    return path if path.is_file() else sorted(p for p in path.iterdir() if p.is_file())[0]
