"""An extraction in parts, one that stops, and one that has had enough: what is whole stays."""

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from making import contents, make_table, tiny_request
from safetensors.torch import save_file

from dinocache.cli import main
from dinocache.encoders import encoder_spec
from dinocache.errors import RequestError, StoppedError, StoreDamagedError, TooManyFailuresError
from dinocache.extract import Outcome, extract
from dinocache.inference import Encoder, load_encoder
from dinocache.job import Supervision
from dinocache.layout import RUNS, UNITS
from dinocache.progress import QuietProgress
from dinocache.records import Run
from dinocache.request import parse_part
from dinocache.store import FeatureStore
from dinocache.verify import verify

KINDS = ("cls", "dense", "image")


def committed(store: Path) -> set[str]:
    return {path.name[:10] for path in (store / UNITS).glob("*.cls.json")}


def runs(store: Path) -> list[Run]:
    """The reports, the last behind."""
    files = sorted((store / RUNS).iterdir(), key=lambda path: path.stat().st_mtime_ns)
    return [Run.from_body(json.loads(path.read_bytes())["body"], path.name) for path in files]


# Parts


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 1, 2)])
def test_parts_are_disjoint_and_together_whole(tmp_path: Path, order: tuple[int, ...]) -> None:
    """Of five units the first part has two, the second two, the third one."""
    table = make_table(tmp_path, 69)
    plain = extract(tiny_request(table, tmp_path / "plain", features=KINDS))
    before: set[str] = set()
    units_left = 5
    for number in order:
        request = tiny_request(table, tmp_path / "f", features=KINDS, part=(number, 3))
        outcome = extract(request)
        mine = committed(outcome.path) - before
        assert mine == {f"0001-{unit:05d}" for unit in range(number - 1, 5, 3)}
        before |= mine
        units_left -= len(mine)
        assert (outcome.units, outcome.units_left) == (len(mine), units_left)
        assert outcome.complete == (units_left == 0)
        assert verify(outcome.path).exit_code == (0 if outcome.complete else 3)
        again = extract(request)
        assert (again.units, again.rows, again.complete) == (0, 0, outcome.complete)
    assert contents(outcome.path) == contents(plain.path)
    assert [run.part for run in runs(outcome.path)] == [f"{number}/3" for number in order]
    assert sum(run.rows for run in runs(outcome.path)) == 69


def test_parts_that_begin_at_the_same_time_share_a_plan(tmp_path: Path) -> None:
    table, weights = make_table(tmp_path, 69), tmp_path / "tiny.safetensors"
    # From a file: threads of one process share the generator that random weights are drawn by.
    trunk = load_encoder(encoder_spec("tiny"), "random:0").network.trunk
    save_file(trunk.state_dict(), weights)
    request = tiny_request(table, tmp_path / "f", features=KINDS, weights=str(weights))
    plain = extract(replace(request, root=tmp_path / "plain"))
    together, outcomes = threading.Barrier(2), dict[int, Outcome]()

    def run(number: int) -> None:
        together.wait(30)
        outcomes[number] = extract(replace(request, part=(number, 2)))

    threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert [outcomes[number].units for number in (1, 2)] == [3, 2]
    assert any(outcome.complete for outcome in outcomes.values())
    assert contents(outcomes[1].path) == contents(plain.path)
    assert verify(outcomes[1].path).exit_code == 0


def test_more_parts_than_units(tmp_path: Path) -> None:
    table = make_table(tmp_path, 19)
    request = tiny_request(table, tmp_path / "f", part=(5, 7))
    nothing = extract(request)
    assert (nothing.units, nothing.rows, nothing.complete, nothing.units_left) == (0, 0, False, 2)
    assert verify(nothing.path).exit_code == 3
    done = [extract(replace(request, part=(number, 7))).units for number in (2, 1, 7)]
    assert done == [1, 1, 0]
    assert verify(nothing.path).exit_code == 0


def test_a_part_is_said_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = make_table(tmp_path, 37)
    options = ["--model", "tiny", "--resolution", "32x48", "--weights", "random", "--device", "cpu"]
    command = ["extract", str(table), "--store", str(tmp_path / "f"), "--unit-rows", "16"]
    command += [*options, "--no-isolate"]
    assert main([*command, "--part", "2/2"]) == 0
    assert "incomplete; 16 rows in " in (printed := capsys.readouterr().out)
    assert printed.endswith("; 2 units are still to be done by other parts\n")
    assert main([*command, "--part", "1/2", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["complete"], said["units"], said["rows"], said["units_left"]) == (True, 2, 21, 0)


@pytest.mark.parametrize(("text", "expected"), [("1/1", (1, 1)), ("03/8", (3, 8))])
def test_parse_part(text: str, expected: tuple[int, int]) -> None:
    assert parse_part(text) == expected


@pytest.mark.parametrize(
    "text", ["", "1", "0/3", "4/3", "1/0", "-1/3", "1/3/5", "a/3", "1.5/3", "1/100001"]
)
def test_parse_part_refuses(text: str) -> None:
    with pytest.raises(RequestError, match=r"^--part '.*': give I/N with I from 1 to N, as 3/8$"):
        parse_part(text)


# Failures


def spoil(folder: Path, names: list[str]) -> dict[Path, bytes]:
    """Make images unreadable; gives what they held."""
    files = [folder / f"png/{name}.png" for name in names]
    held = {file: file.read_bytes() for file in files}
    for file in files:
        file.write_bytes(b"no image")
    return held


def test_too_many_failures_stop_a_run_and_hide_nothing(tmp_path: Path) -> None:
    table = make_table(tmp_path, 69)
    held = spoil(tmp_path, ["0003", "0020", "0021", "0066"])
    request = tiny_request(table, tmp_path / "f", features=KINDS, max_failures=2)
    with pytest.raises(
        TooManyFailuresError,
        match=r"^stopped: 3 items failed, --max-failures is 2\..*`dinocache failures .*32x48` says",
    ):
        extract(request)
    path = tmp_path / "f/images/tiny/32x48"
    assert committed(path) == {"0001-00000", "0001-00001"}
    assert [f.item_id for f in FeatureStore(path).failures()] == ["0003", "0020", "0021"]
    assert verify(path).exit_code == 3
    assert [(run.ended, run.units, run.rows) for run in runs(path)] == [("failed", 2, 32)]
    # A higher limit goes on; those of before are no failures of this run.
    outcome = extract(request)
    assert outcome.complete
    assert [f.item_id for f in outcome.failures] == ["0003", "0020", "0021", "0066"]
    spoilt = extract(replace(request, root=tmp_path / "at-once", max_failures=None))
    assert contents(path) == contents(spoilt.path)
    # Mended, they are all tried again, in a segment of their own.
    for file, content in held.items():
        file.write_bytes(content)
    again = extract(replace(request, retry_failed=True, max_failures=0))
    assert (again.rows, again.units, again.failures, again.complete) == (4, 1, (), True)
    assert FeatureStore(path).segments[1].item_ids == ("0003", "0020", "0021", "0066")
    assert extract(replace(request, retry_failed=True)).units == 0
    assert verify(path).exit_code == 0


def test_the_limit_is_on_the_command_line_and_the_exit_code_is_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = make_table(tmp_path, 40)
    spoil(tmp_path, ["0001"])
    options = ["--model", "tiny", "--resolution", "32x48", "--weights", "random", "--device", "cpu"]
    command = ["extract", str(table), "--store", str(tmp_path / "f"), "--unit-rows", "16"]
    assert main([*command, *options, "--no-isolate", "--max-failures", "0"]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "error: stopped: 1 items failed, --max-failures is 0" in printed.err
    path = tmp_path / "f/images/tiny/32x48"
    assert main(["failures", str(path)]) == 1
    assert "0001 (png/0001.png): not an image" in capsys.readouterr().out


def test_features_that_cannot_be_kept_count_as_failures_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Encoder.__call__

    def spoiled(
        self: Encoder, pixels: torch.Tensor, kinds: Sequence[str]
    ) -> dict[str, torch.Tensor]:
        return {k: torch.full_like(v, torch.nan) for k, v in plain(self, pixels, kinds).items()}

    monkeypatch.setattr(Encoder, "__call__", spoiled)
    request = tiny_request(make_table(tmp_path, 160), tmp_path / "f", max_failures=15)
    # Batches that are still on their way are not counted yet.
    with pytest.raises(TooManyFailuresError, match=r"^stopped: (1[6-9]|[2-9]\d) items failed"):
        extract(request)
    path = tmp_path / "f/images/tiny/32x48"
    assert 1 <= len(committed(path)) < 10
    assert len(FeatureStore(path).failures()) == 16 * len(committed(path))


# Stopping


class StopsBehind(QuietProgress):
    """Asks to stop once so many units are committed."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.left, self.stop_event = units, threading.Event()

    def advance(self, rows: int, n_bytes: int, busy: Mapping[str, float]) -> None:
        self.left -= 1
        if self.left == 0:
            self.stop_event.set()


@pytest.mark.parametrize("readable", [True, False])
def test_a_run_that_is_stopped_keeps_what_is_whole(tmp_path: Path, readable: bool) -> None:
    table = make_table(tmp_path, 163)
    if not readable:
        spoil(tmp_path, [f"{index:04d}" for index in range(163)])
    request = tiny_request(table, tmp_path / "f", features=KINDS)
    progress = StopsBehind(2)
    with pytest.raises(StoppedError) as stopped:
        extract(request, progress, Supervision(stop=progress.stop_event))
    path = tmp_path / "f/images/tiny/32x48"
    done = len(committed(path))
    assert 2 <= done < 11
    assert str(stopped.value) == (
        f"stopped: {done} of 11 units are committed; run the same command again to go on"
    )
    assert verify(path).exit_code == 3
    assert [(run.ended, run.units, run.rows) for run in runs(path)] == [
        ("stopped", done, 16 * done)
    ]
    outcome = extract(request)
    assert (outcome.units, outcome.complete) == (11 - done, True)
    plain = extract(replace(request, root=tmp_path / "plain"))
    assert contents(path) == contents(plain.path)
    assert verify(path).exit_code == 0


def test_a_run_that_is_stopped_before_it_begins_commits_nothing(tmp_path: Path) -> None:
    request = tiny_request(make_table(tmp_path, 19), tmp_path / "f")
    stop = threading.Event()
    stop.set()
    with pytest.raises(StoppedError, match=r"^stopped: 0 of 2 units are committed; run the same"):
        extract(request, supervision=Supervision(stop=stop))
    path = tmp_path / "f/images/tiny/32x48"
    assert committed(path) == set()
    assert not (path / RUNS).exists()
    assert extract(request).units == 2


# What a run came to


def test_each_run_leaves_a_report_that_verify_reads(tmp_path: Path) -> None:
    table = make_table(tmp_path, 21)
    request = tiny_request(table, tmp_path / "f", features=("cls",), workers=3)
    path = extract(request).path
    extract(request)  # does nothing, and has nothing to report
    extract(replace(request, features=("cls", "mean"), workers=None))
    first, second = runs(path)
    assert (first.rows, first.units, first.ended, first.part) == (21, 2, "done", "")
    assert (first.workers, second.workers) == (3, 4)
    assert (first.device, first.made_by["device"]) == ("cpu", "cpu")
    assert sorted(first.busy) == ["collect", "encode", "read", "write"]
    assert all(0 <= fraction <= 1 for fraction in first.busy.values())
    assert first.busy["encode"] > 0
    assert first.seconds > 0
    assert pd.Timestamp(first.began) <= pd.Timestamp.now(tz="UTC")
    assert verify(path).exit_code == 0


def test_a_flipped_bit_in_a_report_is_found(tmp_path: Path) -> None:
    path = extract(tiny_request(make_table(tmp_path, 3), tmp_path / "f")).path
    (report,) = (path / RUNS).iterdir()
    whole = report.read_bytes()
    for position in range(0, len(whole), 7):
        spoilt = bytearray(whole)
        spoilt[position] ^= 1 << position % 8
        report.write_bytes(bytes(spoilt))
        (damage,) = verify(path).damages
        assert damage.file == f"{RUNS}/{report.name}"
    report.write_bytes(whole[:-9])
    assert [damage.file for damage in verify(path).damages] == [f"{RUNS}/{report.name}"]
    report.unlink()  # nothing depends on it
    assert verify(path).exit_code == 0
    other = path / RUNS / "notes.txt"
    other.write_text("mine")
    (damage,) = verify(path).damages
    assert damage.what == "no file of this store"


def test_a_report_of_other_fields_is_damaged() -> None:
    with pytest.raises(StoreDamagedError, match=r"^runs/x.json: field 'began': Field required$"):
        Run.from_body({"rows": 3}, "runs/x.json")
