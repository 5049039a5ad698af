"""A child that extracts and dies, one that is stopped, and one that is told wrong things."""

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from making import make_table, tiny_request

from dinocache import errors
from dinocache.cli import main
from dinocache.errors import BUG, CrashError, DinocacheError, StoppedError
from dinocache.extract import extract
from dinocache.layout import UNITS
from dinocache.progress import QuietProgress
from dinocache.store import FeatureStore
from dinocache.supervise import find_killers, supervised
from dinocache.verify import verify

DEADLY = Path(__file__).resolve().parents[1] / "support" / "deadly"
SOON = 120

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="signals, pipes with names, pidfd")

Fake = Callable[[str], list[str]]
FAKE = """
import json, os, signal, sys

def say(*message):
    os.write(1, json.dumps(message).encode() + b"\\n")

def die(number=signal.SIGKILL):
    os.kill(os.getpid(), number)

def outcome(rows=0, units=0):
    say("outcome", {{"store": "x/y", "complete": True, "rows": rows, "units": units,
        "seconds": 1.5, "failures": [{{"item_id": "b", "kinds": ["cls"], "failure":
        {{"reason": "r", "reader": "image", "path": "b.png"}}}}], "weights": "random:0",
        "random_weights": True, "units_left": 0, "busy": {{"read": 0.25}}}})

order = json.loads(sys.stdin.readline())
items, killers = order.get("items"), order.get("killers", {{}})
with open({log!r}, "a") as log:
    log.write(json.dumps({{"items": items, "killers": killers,
        "careful": order.get("careful")}}) + "\\n")
with open({log!r}) as log:
    start = len(log.readlines())
"""


@pytest.fixture
def fake(tmp_path: Path) -> Fake:
    """Make a command that speaks as a child does; `start` counts from 1."""

    def make(body: str) -> list[str]:
        script = tmp_path / "fake.py"
        script.write_text(FAKE.format(log=str(tmp_path / "orders")) + body)
        return [sys.executable, "-I", str(script)]

    return make


def orders(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "orders").read_text().splitlines()]


@pytest.fixture(autouse=True)
def _signals_are_as_before() -> Iterator[None]:
    def state() -> object:
        numbers = (signal.SIGINT, signal.SIGTERM)
        return [signal.getsignal(n) for n in numbers], signal.pthread_sigmask(signal.SIG_BLOCK, ())

    before = state()
    yield
    assert state() == before


REQUEST = tiny_request(Path("images.csv"), Path("stores"))


# What a child says


def test_the_outcome_of_a_child_is_that_of_the_run(fake: Fake, tmp_path: Path) -> None:
    """Beside what it prints, and with what others committed that died before it."""
    command = fake(
        """
os.write(1, b"printed by a library\\n42\\n{}\\n[]\\n\\xff\\xfe\\n\\n")
if start < 3:
    say("note", "a note")
    say("start", 64, 5)
    say("reading", "a")
    say("read", "a")
    say("advance", 7 * start, 100, {"read": 0.5})
    die()
say("advance", 3, 100, {})
outcome(rows=3, units=1)
"""
    )
    progress = QuietProgress()
    outcome = supervised(REQUEST, progress, command=command)
    assert (outcome.rows, outcome.units, outcome.complete) == (7 + 14 + 3, 3, True)
    assert (outcome.path, outcome.busy, outcome.seconds) == (Path("x/y"), {"read": 0.25}, 1.5)
    (failed,) = outcome.failures
    assert (failed.item_id, failed.kinds, failed.failure.path) == ("b", ("cls",), "b.png")
    died = "the extracting process died (SIGKILL, most often for want of memory); going on"
    assert progress.notes == ["a note", died] * 2
    assert [order["killers"] for order in orders(tmp_path)] == [{}] * 3


@pytest.mark.parametrize(
    "error",
    [
        error
        for name in errors.__all__
        if isinstance(error := getattr(errors, name), type) and issubclass(error, DinocacheError)
    ],
)
def test_what_a_child_raises_is_raised(fake: Fake, error: type[DinocacheError]) -> None:
    command = fake(f'say("error", "{error.__name__}", "not so: ask otherwise")')
    with pytest.raises(error, match=r"^not so: ask otherwise$") as raised:
        supervised(REQUEST, QuietProgress(), command=command)
    assert type(raised.value) is error
    assert raised.value.exit_code == error.exit_code


@pytest.mark.parametrize(
    ("body", "error", "message"),
    [
        ('say("missing", "tifffile")', ModuleNotFoundError, "No module named 'tifffile'"),
        ('say("error", "KeyError", "x")', CrashError, "process ended by KeyError: x$"),
        (f"sys.exit({BUG})", CrashError, "ended by an error of dinocache's own$"),
        (f'say("reading", "a")\nsys.exit({BUG})', CrashError, "an error of dinocache's own$"),
    ],
)
def test_other_ends(
    fake: Fake, tmp_path: Path, body: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        supervised(REQUEST, QuietProgress(), command=fake(body))
    assert len(orders(tmp_path)) == 1


# Who is to blame


@pytest.mark.parametrize(
    ("body", "died_of"),
    [
        ("die()", "SIGKILL, most often for want of memory"),
        ("die(signal.SIGSEGV)", "SIGSEGV"),
        ("die(34)", "SIGRTMIN"),
        ("die(40)", "signal 40"),
        ("sys.exit(3)", "exit code 3"),
        ("", "exit code 0"),
    ],
)
def test_nobody_is_to_blame(fake: Fake, tmp_path: Path, body: str, died_of: str) -> None:
    with pytest.raises(CrashError) as raised:
        supervised(REQUEST, QuietProgress(), command=fake(body))
    assert str(raised.value) == (
        f"the extracting process died again ({died_of}), and no item that it was reading does so "
        "by itself; a smaller --batch (for a new store) or fewer --workers need less memory. What "
        "was committed is whole"
    )
    assert len(orders(tmp_path)) == 2


def test_a_child_that_never_listens(tmp_path: Path) -> None:
    """Its order, which a pipe cannot hold, is left half written."""
    request = replace(REQUEST, options={"spacing": "1" * 300_000})
    with pytest.raises(CrashError, match=r"died again \(exit code 1\)"):
        supervised(request, QuietProgress(), command=[sys.executable, "-c", "raise SystemExit(1)"])


def test_deaths_behind_which_units_were_committed_are_not_fruitless(
    fake: Fake, tmp_path: Path
) -> None:
    command = fake('say("advance", 5, 1, {}) if start not in (3, 5, 6) else None\ndie()')
    with pytest.raises(CrashError, match="died again"):
        supervised(REQUEST, QuietProgress(), command=command)
    assert len(orders(tmp_path)) == 6


def test_an_item_that_kills_by_itself_is_found_among_its_neighbours(
    fake: Fake, tmp_path: Path
) -> None:
    """Also where several threads read it; one that was killed for before is not tried again."""
    command = fake(
        """
if items is not None:
    for item in items:
        say("reading", item)
        if item in ("b", "d"):
            die(signal.SIGSEGV)
        say("read", item)
    say("tried")
elif "b" in killers and "d" in killers:
    outcome()
else:
    for item in "abbcbd" if "b" not in killers else "acd":
        say("reading", item)
    say("read", "c")
    die()
"""
    )
    progress = QuietProgress()
    supervised(REQUEST, progress, command=command)
    reason = "reading it ends the process (SIGSEGV)"
    first, *tried, last = orders(tmp_path)
    assert first == {"items": None, "killers": {}, "careful": []}
    assert [order["items"] for order in tried] == [["a", "b", "d"], ["d"]]
    assert last == {"items": None, "killers": {"b": reason, "d": reason}, "careful": ["a"]}
    assert progress.notes == [
        "the extracting process died (SIGKILL, most often for want of memory); recorded as failed: "
        "b, d; going on"
    ]


def test_an_item_that_kills_in_company_only_is_found_by_itself_carefully(
    fake: Fake, tmp_path: Path
) -> None:
    command = fake(
        """
if items is not None:
    for item in items:
        say("reading", item)
        say("read", item)
    say("tried")
elif killers:
    outcome()
elif order["careful"]:
    say("reading", "a")
    say("read", "a")
    say("reading", "c")
    die(signal.SIGBUS)
else:
    for item in "abc":
        say("reading", item)
    die()
"""
    )
    supervised(REQUEST, QuietProgress(), command=command)
    given = orders(tmp_path)
    assert [order["items"] for order in given] == [None, ["a", "b", "c"], None, None]
    assert given[2]["careful"] == ["a", "b", "c"]
    assert given[3]["killers"] == {"c": "reading it ends the process (SIGBUS)"}


def test_items_that_are_read_together_are_not_blamed_together(fake: Fake, tmp_path: Path) -> None:
    """As headers are, of items that are suspected, too."""
    command = fake(
        """
if items is not None:
    say("tried")
else:
    for item in "abc":
        say("reading", item)
    die()
"""
    )
    with pytest.raises(CrashError, match="no item that it was reading does so by itself"):
        supervised(REQUEST, QuietProgress(), command=command)
    given = orders(tmp_path)
    assert [order["items"] for order in given] == [None, ["a", "b", "c"]] * 2
    assert [order["killers"] for order in given[::2]] == [{}, {}]


def test_find_killers_ends_where_a_child_cannot_even_begin(fake: Fake, tmp_path: Path) -> None:
    assert find_killers(REQUEST, ["a", "b"], command=fake("die()")) == {}
    assert find_killers(REQUEST, [], command=fake("die()")) == {}
    assert len(orders(tmp_path)) == 1


@pytest.mark.parametrize(
    ("number", "deaths", "blamed"), [("SIGKILL", 1, 0), ("SIGKILL", 2, 1), ("SIGSEGV", 1, 1)]
)
def test_one_sigkill_may_have_been_meant_for_another(
    fake: Fake, tmp_path: Path, number: str, deaths: int, blamed: int
) -> None:
    """Whoever needs most memory is ended, whoever took it; a fault is the item's own."""
    command = fake(
        f"""
for item in items:
    say("reading", item)
    if item == "b" and start <= {deaths}:
        die(signal.{number})
    say("read", item)
say("tried")
"""
    )
    found = find_killers(REQUEST, ["a", "b", "c"], command=command)
    assert list(found) == ["b"] * blamed
    asked = [order["items"] for order in orders(tmp_path)]
    behind = ["c"] if blamed else ["b", "c"]
    assert asked == [["a", "b", "c"], *[["b", "c"]] * (deaths - 1), behind]


# Signals


class Signals(QuietProgress):
    """Raises a signal at each note that asks for one."""

    def note(self, text: str) -> None:
        super().note(text)
        if text.startswith("SIG"):
            signal.raise_signal(signal.Signals[text])


STOPPABLE = """
say("note", {first!r})
assert sys.stdin.readline() == "stop\\n"
say("error", "StoppedError", "stopped: 3 of 7 units are committed; run the same command again")
"""


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_has_the_child_stop(fake: Fake, tmp_path: Path, name: str, code: int) -> None:
    progress = Signals()
    with pytest.raises(StoppedError, match=r"^stopped: 3 of 7 units are committed;") as stopped:
        supervised(REQUEST, progress, command=fake(STOPPABLE.format(first=name)))
    assert stopped.value.exit_code == code
    assert progress.notes == [
        name,
        "stopping once what is whole is committed; once more stops at once",
    ]
    assert len(orders(tmp_path)) == 1


def test_a_second_signal_ends_it_at_once(fake: Fake, tmp_path: Path) -> None:
    command = fake(
        f"""
with open({str(tmp_path / "pid")!r}, "w") as file:
    file.write(str(os.getpid()))
say("note", "SIGINT")
assert sys.stdin.readline() == "stop\\n"
say("note", "SIGTERM")
signal.pause()
"""
    )
    with pytest.raises(StoppedError, match=r"^stopped at once; what was committed is") as stopped:
        supervised(REQUEST, Signals(), command=command)
    assert stopped.value.exit_code == 143
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_a_child_that_dies_when_it_is_to_stop_is_not_started_again(
    fake: Fake, tmp_path: Path
) -> None:
    body = 'say("reading", "a")\nsay("note", "SIGTERM")\nsys.stdin.readline()\ndie()'
    with pytest.raises(StoppedError, match=r"^stopped; the extracting process had died \(SIGKILL"):
        supervised(REQUEST, Signals(), command=fake(body))
    assert len(orders(tmp_path)) == 1


def test_no_further_item_is_tried_when_it_is_to_stop(fake: Fake, tmp_path: Path) -> None:
    command = fake(
        """
if items is None:
    say("reading", "a")
    die()
os.kill(os.getppid(), signal.SIGTERM)
assert sys.stdin.readline() == "stop\\n"
say("error", "StoppedError", "stopped before the first unit")
"""
    )
    with pytest.raises(StoppedError, match=r"^stopped before the first unit$") as stopped:
        supervised(REQUEST, QuietProgress(), command=command)
    assert stopped.value.exit_code == 143
    assert [order["items"] for order in orders(tmp_path)] == [None, ["a"]]


def test_a_child_that_has_not_begun_is_not_ended_by_a_signal_to_all(fake: Fake) -> None:
    """Ctrl-C goes to a whole group of processes; a child ignores it once it has imported all."""
    command = fake(
        """
held = signal.pthread_sigmask(signal.SIG_BLOCK, ())
say("note", " ".join(sorted(signal.Signals(number).name for number in held)))
outcome()
"""
    )
    progress = QuietProgress()
    supervised(REQUEST, progress, command=command)
    assert progress.notes == ["SIGINT SIGTERM"]


# Real children

KINDS = ("cls", "dense", "image")


def contents(store: Path) -> dict[str, bytes]:
    """What the numbers are, and where they lie; not what a writer left that was killed."""
    folders = ("features.zarr", "native.zarr", "plans", "units")
    return {
        str(path.relative_to(store)): path.read_bytes()
        for folder in folders
        for path in (store / folder).rglob("*")
        if path.is_file() and path.suffix != ".partial"
    }


def renamed(table: Path, names: Mapping[str, str]) -> None:
    """Give items files of other names."""
    items = pd.read_csv(table, dtype={"item_id": str}).set_index("item_id", drop=False)
    for item_id, name in names.items():
        (table.parent / f"png/{item_id}.png").rename(table.parent / f"png/{name}")
        items.loc[item_id, "path"] = f"png/{name}"
    items.to_csv(table, index=False)


def command_line(table: Path, root: Path, *more: str) -> list[str]:
    options = ["--model", "tiny", "--resolution", "32x48", "--weights", "random", "--device", "cpu"]
    options += ["--unit-rows", "16", "--batch", "8", "--features", ",".join(KINDS)]
    return ["extract", str(table), "--store", str(root), *options, *more]


def in_this_process(table: Path, root: Path, threads: int) -> Path:
    """Extract without a child, with as many threads of torch."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return extract(tiny_request(table, root, features=KINDS)).path
    finally:
        torch.set_num_threads(before)


def test_items_that_end_the_process_cost_themselves_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Of two units, one item each; and whatever libraries print, JSON stays JSON."""
    table = make_table(tmp_path, 53)
    deadly = {"0004": "deadly-segv.png", "0021": "deadly-kill.png"}
    renamed(table, {**deadly, "0030": "loud.png"})
    for name in deadly.values():
        (tmp_path / f"png/{name}").write_bytes(b"no image")
    monkeypatch.setenv("PYTHONPATH", str(DEADLY), prepend=os.pathsep)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("LOUD", "1")
    assert main(command_line(table, tmp_path / "f", "--json")) == 1
    printed = capfd.readouterr()
    said = json.loads(printed.out)
    path = tmp_path / "f/images/tiny/32x48"
    assert (said["complete"], said["rows"], said["units"]) == (True, 53, 4)
    by_segv = "reading it ends the process (SIGSEGV)"
    by_kill = "reading it ends the process (SIGKILL, most often for want of memory)"
    ledger = {f["item_id"]: (f["reason"], f["reader"], f["path"]) for f in said["failures"]}
    assert ledger == {
        "0004": (by_segv, "image", "png/deadly-segv.png"),
        "0021": (by_kill, "image", "png/deadly-kill.png"),
    }
    assert f"failed: 0004 (png/deadly-segv.png): {by_segv}" in printed.err
    assert "; recorded as failed: " in printed.err
    for text in ("said before anything else", "a library says something", "and another one, below"):
        assert text in printed.err
    assert "Traceback" not in printed.err
    assert main(["failures", str(path)]) == 1
    listed = capfd.readouterr().out
    assert f"failed: 0021 (png/deadly-kill.png): {by_kill}" in listed
    assert "2 items failed" in listed
    assert verify(path).exit_code == 0

    # Where they are merely unreadable.
    threads = FeatureStore(path).header.execution.threads
    ours, theirs = contents(path), contents(in_this_process(table, tmp_path / "g", threads))
    assert ours.keys() == theirs.keys()
    different = {name for name in ours if ours[name] != theirs[name]}
    records = {f"0001-0000{u}.{kind}.json" for u in (0, 1) for kind in KINDS}
    assert {Path(name).name for name in different} == {*records, "0001-closing.item_cls.json"}


class Held:
    """An extraction by a child that waits in the middle, at the item 0070."""

    def __init__(self, table: Path, folder: Path) -> None:
        for name in ("waits", "goes-on"):
            os.mkfifo(folder / name)
        self._goes_on = folder / "goes-on"
        waits = os.open(folder / "waits", os.O_RDONLY | os.O_NONBLOCK)
        program = "import sys; from dinocache.cli import main; sys.exit(main(sys.argv[1:]))"
        path = filter(None, [os.environ.get("PYTHONPATH")])
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, *command_line(table, folder / "f")],
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": os.pathsep.join([str(DEADLY), *path]),
                "HELD_AT": str(folder),
            },
        )
        try:
            assert select.select([waits], [], [], SOON)[0], "it never came to the item"
            self.child = os.pidfd_open(int(os.read(waits, 100)))
        finally:
            os.close(waits)
        self.path = folder / "f/images/tiny/32x48"

    def signal(self, number: int) -> None:
        """Send a signal; returns once it was spoken of."""
        self.process.send_signal(number)
        assert self.process.stderr is not None
        while "stopping once what is whole" not in (line := self.process.stderr.readline()):
            assert line, "it ended without a word"

    def go_on(self) -> None:
        self._goes_on.write_text("")

    def ended(self) -> tuple[int, str]:
        """Wait for both processes; gives the parent's exit code and what it said."""
        assert self.process.stderr is not None
        assert self.process.stdout is not None
        said = self.process.stderr.read()
        assert self.process.stdout.read() == ""
        code = self.process.wait(SOON)
        self.process.stderr.close()
        self.process.stdout.close()
        assert select.select([self.child], [], [], SOON)[0], "the child is still there"
        os.close(self.child)
        return code, said


@pytest.fixture(scope="module")
def held_table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    table = make_table(tmp_path_factory.mktemp("held"), 205)
    renamed(table, {"0070": "held.png"})
    return table


@pytest.fixture(scope="module")
def undisturbed(held_table: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What is in the store by one thread, as in a child of `Held`."""
    return contents(in_this_process(held_table, tmp_path_factory.mktemp("undisturbed"), 1))


@pytest.mark.parametrize(
    "how",
    [
        "SIGTERM",
        pytest.param("SIGINT twice", marks=pytest.mark.long),
        pytest.param("parent killed", marks=pytest.mark.long),
    ],
)
def test_whatever_ends_a_run_what_is_committed_is_whole(
    tmp_path: Path, held_table: Path, undisturbed: dict[str, bytes], how: str
) -> None:
    held = Held(held_table, tmp_path)
    if how == "parent killed":
        held.process.kill()
    else:
        number = signal.Signals[how.split()[0]]
        held.signal(number)
        if how == "SIGINT twice":
            held.process.send_signal(number)
        else:
            held.go_on()
    code, said = held.ended()
    done = len(list((held.path / UNITS).glob("*.cls.json")))
    assert code == {"SIGTERM": 143, "SIGINT twice": 130, "parent killed": -signal.SIGKILL}[how]
    if how == "SIGTERM":
        assert 3 <= done < 13
        assert said == (
            f"error: stopped: {done} of 13 units are committed; run the same command again to go "
            "on\n"
        )
    elif how == "SIGINT twice":
        assert said == (
            "error: stopped at once; what was committed is whole. Run the same command again to go "
            "on\n"
        )
    found = verify(held.path)
    assert (found.damages, found.exit_code) == ([], 3)
    assert FeatureStore(held.path).header.execution.threads == 1
    in_this_process(held_table, tmp_path / "f", 1)
    assert contents(held.path) == undisturbed
    assert verify(held.path).exit_code == 0


def test_a_child_takes_names_that_are_no_utf_8_and_no_module_of_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/sc\xe4ns"))
    folder.mkdir()
    table = make_table(folder, 3)
    (folder / "token.py").write_text("raise SystemExit('taken for a module of the library')")
    monkeypatch.chdir(folder)
    assert main(command_line(Path(table.name), Path("f"), "--json")) == 0
    assert json.loads(capfd.readouterr().out)["rows"] == 3
