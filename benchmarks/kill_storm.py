"""A hundred SIGKILLs at random processes of concurrent extractions, and what is left.

One to four workers extract the same table into one store, in rounds with a store each: the same
command several times at once, shares (`--part I/N`), both together, and a cluster. While they run,
one of their processes after the other is killed at a random moment: the command (the supervising
parent, or a cluster's client and scheduler), the extracting child, a cluster's worker. A killed
command is started again. Kills come as the store fills, so that they fall on its whole length.

In the rounds named "forked" a worker is a fork of this program that runs `dinocache extract
--no-isolate`, which saves the imports and so lets more kills hit work; the others are the command
itself, in processes of its own. What they do is noted by `probe/sitecustomize.py`, which also makes
each batch last as long as with a small real encoder.

Wanted, of each round: `features.zarr/`, `units/` and `plans/` bit-identical to those of a single
process that nothing disturbed, `verify` 0, no unit lost, no row wrong, no process left; no
committed file written again (workers that do the same units at once may: a unit that was not
committed yet when the second of them began, and then in the same bytes); and at most one unit
encoded again for each kill and each engine that it ended (a worker of a cluster has two).

    python benchmarks/kill_storm.py [--kills 100] [--rows 2000] [--seed 0] [--only WORD]
"""

import argparse
import contextlib
import hashlib
import importlib.util
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import timm  # noqa: F401 - imported once, before the forks
import torch
import zarr

from dinocache.cli import main as dinocache
from dinocache.job import Job  # noqa: F401 - likewise

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests" / "support"))
from making import make_table  # noqa: E402 - tests/ is no package

PROBE = HERE / "probe"
WITHIN = Path("images/tiny/32x48")
UNIT_ROWS, BATCH = 16, 2
SLOW_S = 0.025
"""Of a batch: a unit takes 0.2 s, less than with any real encoder and the default `--unit-rows`."""
AT_WORK = 0.8
"""Of the kills, those that wait for a victim that has begun to encode."""
BELOW = 0.4
"""Of the kills, those that spare commands if there is a child or a worker to kill."""
STUCK_S = 180
SLOTS = 2
"""Units that a worker of a cluster does at once."""
OPTIONS = (
    "--model", "tiny", "--resolution", "32x48", "--weights", "random:0", "--unit-rows",
    str(UNIT_ROWS), "--batch", str(BATCH), "--device", "cpu",
)  # fmt: skip

Stamp = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Round:
    """Some workers on one store.

    Attributes:
        name: For the table.
        share: Of all kills.
        workers: The options of each one's command.
        forked: Whether they are forks of this program.
    """

    name: str
    share: float
    workers: tuple[tuple[str, ...], ...]
    forked: bool = False

    @property
    def has_twins(self) -> bool:
        """Whether two of them do the same units."""
        whole = [w for w in self.workers if "--part" not in w]
        return len(whole) > 0 and len(self.workers) > 1

    @property
    def is_cluster(self) -> bool:
        """Whether units are handed out."""
        return "--cluster" in self.workers[0]


ROUNDS = (
    Round(name="forked, one", share=0.1, workers=((),), forked=True),
    Round(name="forked, the same 4 times", share=0.24, workers=((),) * 4, forked=True),
    Round(
        name="forked, parts of 4",
        share=0.24,
        workers=tuple(("--part", f"{n}/4") for n in range(1, 5)),
        forked=True,
    ),
    Round(name="commands, parts of 2", share=0.16, workers=(("--part", "1/2"), ("--part", "2/2"))),
    Round(
        name="commands, 2 the same, 2 parts",
        share=0.16,
        workers=((), (), ("--part", "1/2"), ("--part", "2/2")),
    ),
    Round(name="cluster of 2", share=0.1, workers=(("--cluster", "local:2"),)),
)


# ---------------------------------------------------------------------- processes


def members(session: int) -> dict[int, str]:
    """List the living processes of a session, and what each is."""
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        with contextlib.suppress(OSError):
            state, _, _, its, *_ = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(its) != session or state in "ZX":
                continue
            line = (folder / "cmdline").read_text()
            if int(folder.name) == session:
                found[session] = "command"
            elif "dinocache.child" in line:
                found[int(folder.name)] = "child"
            elif "spawn_main" in line:
                found[int(folder.name)] = "worker"
            else:
                found[int(folder.name)] = "helper"
    return found


@dataclass
class Worker:
    """A command that is started again until it ends well.

    Attributes:
        options: Of the command.
        forked: Whether it is a fork.
        root: Of the store.
        sessions: Of each start.
        complaints: Of those that ended otherwise than well, and not by a kill of theirs.
        done: Whether it has ended well.
    """

    options: tuple[str, ...]
    forked: bool
    root: Path
    sessions: list[int] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    done: bool = False

    def start(self) -> None:
        """Start it, in a session of its own."""
        options = [*OPTIONS, "--store", self.root.name, *self.options]
        arguments = ["extract", "images.csv", *options]
        if self.forked:
            self.pid = self._fork([*arguments, "--no-isolate"])
        else:
            program = str(Path(sys.executable).with_name("dinocache"))
            self.pid = os.posix_spawn(
                program,
                [program, *arguments],
                {**os.environ, "PYTHONPATH": str(PROBE)},
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, number, self._log, os.O_WRONLY | os.O_CREAT, 0o600)
                    for number in (1, 2)
                ],
                setsid=True,
            )
        self.sessions.append(self.pid)

    @property
    def _log(self) -> str:
        return f"{self.root.name}-{id(self)}-{len(self.sessions)}.log"

    def _fork(self, arguments: Sequence[str]) -> int:
        child = os.fork()
        if child:
            return child
        code = 70
        try:
            os.setsid()
            log = os.open(self._log, os.O_WRONLY | os.O_CREAT, 0o600)
            os.dup2(log, 1)
            os.dup2(log, 2)
            probe().watch()
            code = dinocache(arguments)
        finally:
            os._exit(code)

    def look(self) -> None:
        """See whether it has ended; start it again unless that was well."""
        if self.done:
            return
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid == 0:
            return
        code = os.waitstatus_to_exitcode(status)
        self.done = code == 0
        if not self.done:
            if code != -signal.SIGKILL:
                self.complaints.append(f"exit code {code}: {self._last_line()}")
            self.start()

    def end(self) -> None:
        """Kill it if it still runs: the storm has failed."""
        if self.sessions and not self.done:
            for pid in members(self.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def _last_line(self) -> str:
        number = len(self.sessions) - 1
        text = Path(f"{self.root.name}-{id(self)}-{number}.log").read_text()
        return (text.strip().splitlines() or [""])[-1]

    def targets(self) -> dict[int, str]:
        """Its processes that may be killed."""
        living = {} if self.done else members(self.pid)
        return {pid: what for pid, what in living.items() if what != "helper"}


def probe() -> ModuleType:
    """Load the probe, whose name is that of a module which Python may have loaded."""
    spec = importlib.util.spec_from_file_location("probe", PROBE / "sitecustomize.py")
    if spec is None or spec.loader is None:
        raise AssertionError(PROBE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ---------------------------------------------------------------------- what they do


@dataclass
class Events:
    """What the probe noted.

    Attributes:
        encoded: Process -> rows that went into the encoder.
        committed: Process -> rows of units that it committed.
        opened: Unit -> (moment, process) of each time that it was begun.
        first: Unit -> the moment at which it was committed.
        began: Process -> moments at which it was about to look at the store.
    """

    path: Path
    encoded: Counter[int] = field(default_factory=Counter)
    committed: Counter[int] = field(default_factory=Counter)
    opened: dict[str, list[tuple[float, int]]] = field(default_factory=lambda: defaultdict(list))
    first: dict[str, float] = field(default_factory=dict)
    began: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    _read: int = 0

    def read(self) -> None:
        """Read what was noted since."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self._read)
            whole = file.read().rpartition(b"\n")[0]  # a line may be on its way
            self._read += len(whole) + (len(whole) > 0)
            for line in whole.decode().splitlines():
                event, moment, pid, *facts = line.split()
                if event == "began":
                    self.began[int(pid)].append(float(moment))
                elif event == "encode":
                    self.encoded[int(pid)] += int(facts[0])
                elif event == "open":
                    self.opened[facts[1]].append((float(moment), int(pid)))
                else:
                    self.committed[int(pid)] += int(facts[0])
                    self.first.setdefault(facts[1], float(moment))

    def lost(self, pid: int) -> int:
        """Rows that a process encoded and did not commit."""
        return self.encoded[pid] - self.committed[pid]

    def needless(self) -> list[str]:
        """Name the units begun by a process that looked at the store once they were committed."""
        return [
            unit
            for unit, times in self.opened.items()
            for moment, pid in times
            if max(b for b in self.began[pid] if b <= moment) > self.first.get(unit, math.inf)
        ]


@dataclass
class Stamps:
    """Committed files, and which of them were written again."""

    store: Path
    first: dict[str, Stamp] = field(default_factory=dict)
    again: set[str] = field(default_factory=set)
    _records: set[str] = field(default_factory=set)

    def look(self) -> int:
        """Look at all; gives how many units are committed."""
        units = 0
        for record in (self.store / "units").glob("*.json"):
            units += record.name.endswith(".cls.json") and "closing" not in record.name
            if record.name not in self._records:
                self._records.add(record.name)
                names = json.loads(record.read_bytes())["body"]["objects"]
                for path in (record, *(self.store / name for name in names)):
                    self.first[str(path.relative_to(self.store))] = stamp(path)
        self.again |= {n for n, seen in self.first.items() if stamp(self.store / n) != seen}
        return units


def stamp(path: Path) -> Stamp:
    status = path.stat()
    return status.st_ino, status.st_mtime_ns


# ---------------------------------------------------------------------- a round


@dataclass
class Pass:
    """Workers on one store, while kills are left and until all have ended.

    Attributes:
        of: The round.
        root: Of its store, in the folder that all run in.
        n_units: Of the store.
        dice: Chooses victims and moments.
        killed: What was killed -> how often.
        at_work: Kills of what had begun to encode.
        victims: Processes that ended by a kill, their children included.
    """

    of: Round
    root: Path
    n_units: int
    dice: random.Random
    killed: Counter[str] = field(default_factory=Counter)
    at_work: int = 0
    victims: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.events = Events(Path(f"{self.root.name}.events"))
        self.stamps = Stamps(self.root / WITHIN)
        self.workers = [Worker(w, self.of.forked, self.root) for w in self.of.workers]

    def run(self, kills: int) -> int:
        """Run to the end; gives how many kills found a victim."""
        os.environ["DINOCACHE_PROBE"] = str(self.events.path)
        try:
            for worker in self.workers:
                worker.start()
            self._storm(kills)
        finally:
            for worker in self.workers:
                worker.end()
        self.stamps.look()
        self.events.read()
        return self.killed.total()

    def _storm(self, kills: int) -> None:
        while (number := self.killed.total()) < kills:
            wanted = 1 + number * (self.n_units - 4) // kills
            if not self._kill(wanted, picky=self.dice.random() < AT_WORK):
                break
        while self._tend() is not None:
            time.sleep(0.01)

    def _tend(self) -> int | None:
        """Look after all; gives the units that are committed, None once all workers are done."""
        for worker in self.workers:
            worker.look()
            if len(worker.complaints) > 20:
                raise RuntimeError(f"{self.of.name}: {worker.complaints[-1]}")
        self.events.read()
        return None if all(w.done for w in self.workers) else self.stamps.look()

    def _kill(self, wanted: int, *, picky: bool) -> bool:
        """Kill once so many units are committed; False if all ended before."""
        latest = time.monotonic() + STUCK_S
        while (units := self._tend()) is not None:
            if time.monotonic() > latest:
                raise RuntimeError(f"{self.of.name}: {units} units, and no victim for {STUCK_S} s")
            time.sleep(0.005)
            if units < wanted:
                continue
            time.sleep(self.dice.uniform(0, UNIT_ROWS / BATCH * SLOW_S))
            if self._strike(picky=picky):
                return True
        return False

    def _strike(self, *, picky: bool) -> bool:
        self.events.read()
        found: list[tuple[int, str, set[int]]] = []
        for worker in self.workers:
            targets = worker.targets()
            for pid, what in targets.items():
                ends = set(targets) if what == "command" else {pid}
                if not picky or any(self.events.encoded[p] for p in ends):
                    found.append((pid, what, ends))
        if not found:
            return False
        below = [f for f in found if f[1] != "command"]
        if self.dice.random() < BELOW:
            found = below or found
        pid, what, ends = self.dice.choice(found)
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return False
        self.killed[what] += 1
        self.at_work += any(self.events.encoded[p] for p in ends)
        self.victims |= ends
        return True

    def problems(self, whole: Path) -> Iterator[str]:
        """Say what is not as it must be."""
        store, events = self.root / WITHIN, self.events
        for worker in self.workers:
            for complaint in worker.complaints:
                if "the extracting process died again" not in complaint:
                    yield complaint
            for session in worker.sessions:
                if left := outliving(session):
                    yield f"outlived their command: {left}"
        different = [n for n, d in digests(whole).items() if digests(store).get(n) != d]
        if foreign := sorted(digests(store).keys() - digests(whole).keys()):
            yield f"{len(foreign)} files too many, as {foreign[0]}"
        if different:
            yield f"{len(different)} files differ, as {different[0]}"
        verified = subprocess.run(
            [Path(sys.executable).with_name("dinocache"), "verify", store],
            capture_output=True,
            text=True,
            check=False,
        )
        if verified.returncode:
            yield f"verify ends with {verified.returncode}: {verified.stdout[-300:]}"
        again = {name for name in self.stamps.again if not self._may_be_again(name)}
        if again:
            yield f"{len(again)} committed files were written again, as {min(again)}"
        if needless := events.needless():
            yield f"{len(needless)} units begun though committed before, as {needless[0]}"
        if spared := [p for p in events.encoded if events.lost(p) and p not in self.victims]:
            yield f"{len(spared)} processes that nobody killed lost rows"
        if self.lost > self.allowed:
            yield f"{self.lost} rows were encoded again, {self.allowed} may be"

    def _may_be_again(self, name: str) -> bool:
        """Whether a file belongs to a unit that twins did, or to what the last of all close."""
        if "item_" in name or "closing" in name:
            return len(self.workers) > 1
        unit = Path(name).name.partition(".")[0]
        if name.startswith("features.zarr/"):
            unit = f"0001-{int(name.split('.')[2]):05d}"
        return self.of.has_twins and len({pid for _, pid in self.events.opened[unit]}) > 1

    @property
    def lost(self) -> int:
        """Rows encoded and not committed by the same process."""
        return sum(self.events.lost(pid) for pid in self.events.encoded)

    @property
    def allowed(self) -> int:
        """Rows that kills may cost: a unit for each engine that they ended."""
        engines = SLOTS if self.of.is_cluster else 1
        ended = sum(self.events.encoded[pid] > 0 for pid in self.victims)
        return ended * engines * UNIT_ROWS

    def row(self, whole: Path, seconds: float) -> str:
        """Give its line of the table."""
        events = self.events
        rows = len(Path("images.csv").read_text().splitlines()) - 1
        twice = events.committed.total() - rows
        most = max(events.lost(pid) for pid in events.encoded) / UNIT_ROWS
        gave_up = sum(len(w.complaints) for w in self.workers)
        roles = "/".join(str(self.killed[what]) for what in ("command", "child", "worker"))
        cells: list[object] = [
            self.of.name, roles, self.at_work, events.encoded.total(), max(twice, 0), self.lost,
            self.allowed, f"{most:.1f}", gave_up, wrong_rows(whole, self.root / WITHIN),
            f"{seconds:.0f}",
        ]  # fmt: skip
        return f"| {' | '.join(map(str, cells))} |"


HEAD = (
    "round", "killed: commands/children/workers", "of them at work", "rows encoded",
    "done by twins, too", "encoded again", "may be", "most by one process, units", "gave up",
    "rows wrong", "s",
)  # fmt: skip


# ---------------------------------------------------------------------- stores


def outliving(session: int) -> list[str]:
    """Name what is left of a command some seconds after its end."""
    latest = time.monotonic() + 20
    while left := list(members(session).values()):
        if time.monotonic() > latest:
            break
        time.sleep(0.1)
    return left


def digests(store: Path) -> dict[str, str]:
    """Digest what must not depend on how a store was made."""
    return {
        str(path.relative_to(store)): hashlib.sha256(path.read_bytes()).hexdigest()
        for folder in ("features.zarr", "units", "plans")
        for path in sorted((store / folder).rglob("*"))
        if path.is_file() and not path.name.endswith(".partial")
    }


def wrong_rows(whole: Path, store: Path) -> int:
    """Count rows of which a bit differs."""
    wrong = 0
    for kind in sorted(p.name for p in (whole / "features.zarr").iterdir() if p.is_dir()):
        ours, theirs = (
            zarr.open_array(path / "features.zarr" / kind, mode="r")[:] for path in (whole, store)
        )
        same = ours.view(f"u{ours.itemsize}") == theirs.view(f"u{theirs.itemsize}")
        wrong += int((~same.reshape(len(same), -1).all(1)).sum())
    return wrong


def undisturbed(rows: int) -> Path:
    """Make the table, and a store of it by one process."""
    make_table(Path(), rows)
    program = Path(sys.executable).with_name("dinocache")
    subprocess.run(
        [program, "extract", "images.csv", *OPTIONS, "--store", "whole", "--no-isolate"],
        check=True,
        capture_output=True,
    )
    return Path("whole") / WITHIN


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="rounds whose names have this word")
    options = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "DINOCACHE_PROBE_SLOW": str(SLOW_S)}
    torch.set_num_threads(1)
    print(
        f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores, {options.rows} rows in units of "
        f"{UNIT_ROWS}, seed {options.seed}\n\n| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}"
    )
    began, kills, problems = time.monotonic(), 0, []
    with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(scratch):
        whole = undisturbed(options.rows)
        for number, of in enumerate(ROUNDS):
            if options.only not in of.name:
                continue
            left = round(options.kills * of.share)
            while left > 0:
                started = time.monotonic()
                root = Path(f"{number}-{left}")
                dice = random.Random(f"{options.seed} {root}")
                of_one = Pass(of, root, -(-options.rows // UNIT_ROWS), dice)
                done = of_one.run(left)
                found = list(of_one.problems(whole))
                print(of_one.row(whole, time.monotonic() - started), flush=True)
                problems += [f"{of.name}: {what}" for what in found]
                if not done:
                    problems.append(f"{of.name}: no kill found a victim")
                    break
                kills, left = kills + done, left - done
                shutil.rmtree(root)
    print(f"\n{kills} kills in {time.monotonic() - began:.0f} s; {len(problems)} promises broken")
    for what in problems:
        print(f"  {what}")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
