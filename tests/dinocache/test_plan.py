"""Invariant 2: a unit owns whole files; and every row of every item is somewhere, once."""

import os
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from making import make_table, tiny_request

from dinocache.errors import RequestError, StoreDamagedError
from dinocache.extract import extract
from dinocache.job import Job
from dinocache.plan import Grid, Segment, make_grid, make_segment
from dinocache.progress import QuietProgress
from dinocache.stamps import Stamp
from dinocache.store import FeatureStore
from dinocache.verify import verify
from dinocache.writer import StoreWriter

STAMPS = (Stamp(17, 1_700_000_000_123_456_789), None, Stamp(0, -3, "0a" * 32))
rows = st.lists(st.one_of(st.integers(1, 40), st.integers(4090, 9000)), min_size=1, max_size=30)


def segments_of(batches: list[list[int]], unit_rows: int) -> tuple[Grid, list[Segment]]:
    grid = make_grid(batches[0], unit_rows=unit_rows, batch=8)
    made: list[Segment] = []
    for number, counts in enumerate(batches):
        items = [(f"{number}-{i}", n) for i, n in enumerate(counts)]
        stamps = [STAMPS[i % len(STAMPS)] for i in range(len(counts))]
        after = made[-1] if made else None
        made.append(make_segment(items, grid, recipe="r", after=after, stamps=stamps))
    return grid, made


@settings(max_examples=60, deadline=None)
@given(st.lists(rows, min_size=1, max_size=3), st.sampled_from([16, 64, 256, 4096]))
def test_no_two_units_share_a_file_and_no_row_is_lost(
    batches: list[list[int]], unit_rows: int
) -> None:
    grid, segments = segments_of(batches, unit_rows)
    owner: dict[int, str] = {}
    for segment, counts in zip(segments, batches, strict=True):
        assert segment.row_start % grid.chunk_rows == 0
        assert segment.item_start % grid.item_chunk_rows == 0
        seen: dict[int, list[int]] = {}
        for unit in segment.units:
            assert unit.row_start % grid.chunk_rows == 0
            last = unit.row_start + unit.n_rows - 1
            for chunk in range(unit.row_start // grid.chunk_rows, last // grid.chunk_rows + 1):
                assert owner.setdefault(chunk, unit.name) == unit.name
            for item, row, offset, n in segment.pieces(unit):
                assert segment.rows_within(unit, item) == (row, n)
                assert unit in segment.units_of(item)
                seen.setdefault(item, []).extend(range(offset, offset + n))
        assert {i: list(range(n)) for i, n in enumerate(counts)} == seen
        assert all(
            len(segment.units_of(i)) == -(-n // 4096) or n <= 4096 for i, n in seen_rows(seen)
        )


def seen_rows(seen: dict[int, list[int]]) -> list[tuple[int, int]]:
    return [(item, len(found)) for item, found in seen.items()]


@settings(max_examples=60, deadline=None)
@given(rows, st.sampled_from([64, 1024, 4096]))
def test_little_is_wasted(counts: list[int], unit_rows: int) -> None:
    grid, (segment,) = segments_of([counts], unit_rows)
    used = [u.n_rows for u in segment.units[:-1]]
    wasted = sum(-n % grid.chunk_rows for n in used)
    assert wasted <= 0.03 * sum(used) or grid.chunk_rows == 16


def test_images_fill_their_units() -> None:
    grid, (segment,) = segments_of([[1] * 102], 64)
    assert (grid.chunk_rows, grid.item_chunk_rows) == (64, 128)
    assert [(u.row_start, u.n_rows, u.n_items) for u in segment.units] == [
        (0, 64, 64),
        (64, 38, 38),
    ]


@pytest.mark.parametrize(
    ("n_rows", "unit_rows"), [(48, 64), (5000, 64), (20_000, 256), (112_120, 1024), (10**7, 4096)]
)
def test_by_default_a_crash_costs_little(n_rows: int, unit_rows: int) -> None:
    assert make_grid([1] * n_rows, unit_rows=None, batch=4).unit_rows == unit_rows


def test_a_segment_is_read_back() -> None:
    _, segments = segments_of([[3, 5000, 2], [7]], 64)
    for segment in segments:
        assert Segment.from_body(segment.to_body(), "plans/0001.json") == segment
    with pytest.raises(StoreDamagedError, match=r"plans/0001.json is not a plan segment"):
        Segment.from_body({"segment": 1}, "plans/0001.json")


def test_stamps_are_written_shortly() -> None:
    _, (segment,) = segments_of([[3, 5, 2, 7]], 64)
    assert segment.to_body()["stamps"] == [
        [17, 1_700_000_000_123_456_789],
        None,
        [0, -3, "0a" * 32],
        [17, 1_700_000_000_123_456_789],
    ]


@pytest.mark.parametrize(
    ("stamps", "message"),
    [
        (None, "has no len"),
        ([], "2 items, 0 stamps"),
        ([None], "2 items, 1 stamps"),
        ([None, None, None], "2 items, 3 stamps"),
        ([None, [1, 2.5]], r"\[1, 2.5\] is no stamp of a file"),
        ("ab", "'a' is no stamp of a file"),
        ([0, None], "0 is no stamp of a file"),
    ],
)
def test_stamps_that_are_none_are_damage(stamps: object, message: str) -> None:
    _, (segment,) = segments_of([[3, 5]], 64)
    body = segment.to_body() | {"stamps": stamps}
    with pytest.raises(StoreDamagedError, match=f"p.json is not a plan segment: .*{message}"):
        Segment.from_body(body, "p.json")
    del body["stamps"]
    with pytest.raises(StoreDamagedError, match=r"p\.json is not a plan segment: 'stamps'"):
        Segment.from_body(body, "p.json")


@settings(max_examples=60, deadline=None)
@given(rows, st.sampled_from([16, 256]), st.data())
def test_units_do_not_depend_on_stamps(
    counts: list[int], unit_rows: int, data: st.DataObject
) -> None:
    grid = make_grid(counts, unit_rows=unit_rows, batch=8)
    items = [(str(i), n) for i, n in enumerate(counts)]
    one, other = (
        make_segment(
            items,
            grid,
            recipe="r",
            after=None,
            stamps=data.draw(
                st.lists(st.sampled_from(STAMPS), min_size=len(items), max_size=len(items))
            ),
        )
        for _ in range(2)
    )
    assert one.units == other.units
    assert one.to_body() | {"stamps": []} == other.to_body() | {"stamps": []}


def test_what_cannot_be_planned() -> None:
    grid = make_grid([1], unit_rows=16, batch=1)
    with pytest.raises(RequestError, match="item 'x' has no rows; leave it out"):
        make_segment([("x", 0)], grid, recipe="r", after=None, stamps=[None])


def test_of_planners_that_race_the_first_holds(tmp_path: Path) -> None:
    """A file is touched between them: their units are the same, their stamps are not."""
    table = make_table(tmp_path, 19)
    request = tiny_request(table, tmp_path / "f")
    job = Job(request, QuietProgress())
    store = job.settle()
    StoreWriter(store).put_items(job.dataset.table)
    writers = [StoreWriter(FeatureStore(store.path)) for _ in range(4)]
    ready = threading.Barrier(len(writers))
    planned: list[Segment] = []

    def plan(writer: StoreWriter, number: int) -> None:
        os.utime(tmp_path / "png/0003.png", ns=(number, number))
        rows = (own := Job(request, QuietProgress())).count_rows(writer.store.unplanned())
        segment = make_segment(
            list(rows.items()),
            store.header.grid,
            recipe=store.header.digest,
            after=None,
            stamps=own.stamps(rows),
        )
        planned.append(segment)
        ready.wait()
        writer.add_segment(segment)

    threads = [
        threading.Thread(target=plan, args=(writer, 10**9 * number))
        for number, writer in enumerate(writers, 1)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    held = {writer.store.segments for writer in writers}
    assert len(held) == 1
    ((segment,),) = held
    assert segment in planned
    assert {p.units for p in planned} == {segment.units}
    outcome = extract(request)
    assert outcome.complete
    assert FeatureStore(outcome.path).segments == (segment,)
    assert verify(outcome.path).exit_code == 0
