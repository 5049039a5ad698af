"""Faults of the disk and the system, put under `dinocache extract`, and what comes of them.

Each trial runs the command on a small table under one fault. Wanted: exit code 1 and one line that
names the file, the cause and the way out; a store that is sound, whose every record's files are
whole; and, once the fault is gone, that the same command completes the store, bit-identical to one
that was never disturbed. Where nothing is lost (an unlink that fails) it may go on as well.

    calls    system calls that fail once, or from then on, injected by strace. A traced run first
             finds every call that touches the store; then each sort of call on each sort of file
             fails in turn: opening, writing, flushing, renaming, reading and so on. Then every
             change fails from the n-th on, also of a run that appends items to a store
    full     a small file system (tmpfs) that fills up, of bytes and of inodes
    limit    RLIMIT_FSIZE: the largest file that a process may write
    denied   folders and files without permission; a file system mounted read-only

`calls` needs strace, mounting needs to be root; what cannot be done here is said. Permissions mean
nothing to root, so as root the command gives up the privilege of ignoring them (setpriv).

    python benchmarks/faults.py [calls] [full] [limit] [denied] [--seed 0] [--jobs 1] [--every 1]
"""

import argparse
import contextlib
import hashlib
import itertools
import json
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xxhash
from PIL import Image

from dinocache.layout import RUNS
from dinocache.verify import verify

N_IMAGES = 18
"""Two units of each kind: of 16 rows and of 2."""
WITHIN = Path("images/tiny/32x48")
TIMEOUT_S = 120
OPTIONS = (
    "--model", "tiny", "--resolution", "32x48", "--weights", "random:0", "--unit-rows", "16",
    "--batch", "8", "--features", "cls,dense,image", "--device", "cpu",
)  # fmt: skip


# ---------------------------------------------------------------------- one trial


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a command ended."""

    code: int
    stderr: str


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a fault came to.

    Attributes:
        outcome: `refused`, `went on` or `not reached`.
        line: The line that told of it.
        defects: What should not be.
    """

    outcome: str
    line: str = ""
    defects: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What all trials share.

    Attributes:
        folder: For everything that is made.
        table: Of the images.
        whole: A store that was never disturbed.
        begun: A root of stores to begin with; None begins with nothing.
        options: More of the command.
    """

    folder: Path
    table: Path
    whole: Path
    begun: Path | None = None
    options: tuple[str, ...] = ()

    def root(self, name: str) -> Path:
        """Give a root of stores for a trial."""
        root = self.folder / name
        if self.begun is not None:
            shutil.copytree(self.begun, root)
        return root

    def extract(self, root: Path, *, before: Sequence[str] = (), **process: Any) -> Ended:  # noqa: ANN401
        """Run the command."""
        program = Path(sys.executable).with_name("dinocache")
        command = [*before, str(program), "extract", str(self.table), *OPTIONS, *self.options]
        command += ["--data", str(self.folder)]
        extra = process.pop("env", {})
        ended = subprocess.run(
            [*command, "--store", str(root)],
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT_S,
            cwd=self.folder,
            env={**os.environ, "OMP_NUM_THREADS": "1", "HOME": str(self.folder), **extra},
            **process,
        )
        return Ended(code=ended.returncode, stderr=ended.stderr)

    def judge(
        self, root: Path, ended: Ended, mend: Callable[[], object], named: Iterable[str] = ()
    ) -> Verdict:
        """Look at what a fault left, take it away, run the command again, and look again."""
        store = root / WITHIN
        defects = [] if ended.code == 0 else list(blame(ended, named))
        defects += [f"after the fault: {what}" for what in damages(store)]
        mend()
        again = self.extract(root)
        if again.code:
            defects.append(f"run again: exit {again.code}: {again.stderr.strip()[-300:]}")
        elif different := differences(self.whole, store):
            defects.append(f"run again: {different}")
        elif (code := verify(store).exit_code) != 0:
            defects.append(f"run again: verify ends with {code}")
        line = ended.stderr.strip().splitlines()[-1:] if ended.code else []
        return Verdict(
            outcome="refused" if ended.code else "went on",
            line=line[0] if line else "",
            defects=tuple(defects),
        )


def blame(ended: Ended, named: Iterable[str]) -> Iterator[str]:
    """Say what is wrong with how a command told of a fault."""
    lines = [line for line in ended.stderr.splitlines() if line.startswith("error:")]
    if ended.code != 1:
        yield f"exit {ended.code}"
    if "Traceback" in ended.stderr or len(lines) != 1:
        yield f"not one line: ...{ended.stderr.strip()[-300:]!r}"
        return
    if not all(part in lines[0] for part in named):
        yield f"does not name {', '.join(named)}: {lines[0]!r}"
    if "run the same command again" not in lines[0]:
        yield f"no way out: {lines[0]!r}"


def damages(store: Path) -> Iterator[str]:
    """Say what is not sound in a store; one that was not begun is sound."""
    if not (store / "store.json").is_file():
        return
    found = verify(store)
    if found.exit_code not in (0, 3):
        yield f"verify ends with {found.exit_code}: {found.damages[0]}"
    for record in sorted((store / "units").glob("*.json")):
        if record.name.startswith("."):
            continue
        for name, said in json.loads(record.read_bytes())["body"]["objects"].items():
            path = store / name
            content = path.read_bytes() if path.is_file() else b""
            if {"bytes": len(content), "xxh3": xxhash.xxh3_64_hexdigest(content)} != said:
                yield f"{record.name} vouches for {name}, which is not whole"


def differences(whole: Path, store: Path) -> str:
    """Say where the arrays of two stores differ."""
    ours, theirs = digests(whole), digests(store)
    names = [name for name in ours | theirs if ours.get(name) != theirs.get(name)]
    return f"{len(names)} files differ, as {names[0]}" if names else ""


def digests(store: Path) -> dict[str, str]:
    return {
        str(path.relative_to(store)): hashlib.sha256(path.read_bytes()).hexdigest()
        for group in ("features.zarr", "native.zarr")
        for path in sorted((store / group).rglob("*"))
        if path.is_file() and not path.name.endswith(".partial")
    }


@contextlib.contextmanager
def bench() -> Iterator[Bench]:
    """Make the images and the undisturbed store."""
    rng = np.random.default_rng(3)
    with tempfile.TemporaryDirectory(prefix="faults-") as scratch:
        folder = Path(scratch)
        (folder / "png").mkdir()
        for index in range(N_IMAGES):
            pixels = rng.integers(0, 255, (30 + index % 7, 40 + index % 5)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"png/{index:02d}.png")
        whole = folder / "whole"
        made = Bench(folder=folder, table=write_table(folder, N_IMAGES), whole=whole / WITHIN)
        undisturbed(made, whole)
        yield made


def write_table(folder: Path, n_images: int) -> Path:
    """Write a table of the first images; its name is the store's."""
    path = folder / f"first-{n_images}" / "images.csv"
    path.parent.mkdir()
    names = [f"{index:02d}" for index in range(n_images)]
    table = pd.DataFrame({"item_id": names, "path": [f"png/{name}.png" for name in names]})
    table.to_csv(path, index=False)
    return path


def undisturbed(made: Bench, root: Path) -> None:
    ended = made.extract(root)
    if ended.code:
        raise SystemExit(f"the undisturbed run fails: {ended.stderr}")


def appending(made: Bench) -> Bench:
    """Begin with a complete store of fewer images, to which the others are appended."""
    begun = made.folder / "begun"
    undisturbed(replace(made, table=write_table(made.folder, N_IMAGES // 2)), begun)
    whole = made.folder / "appended"
    found = replace(made, begun=begun, options=("--append",), whole=whole / WITHIN)
    undisturbed(found, found.root(whole.name))
    return found


# ---------------------------------------------------------------------- the table


@dataclass
class Tally:
    """What became of the faults of one sort."""

    errors: set[str] = field(default_factory=set)
    outcomes: Counter[str] = field(default_factory=Counter)
    defects: list[str] = field(default_factory=list)
    examples: dict[str, str] = field(default_factory=dict)


class Report:
    """Gathers verdicts by the sort of fault."""

    def __init__(self) -> None:
        self._tallies: dict[tuple[str, str], Tally] = defaultdict(Tally)

    def add(self, what: str, where: str, error: str, at: str, verdict: Verdict) -> None:
        """Take a verdict."""
        tally = self._tallies[what, where]
        tally.errors.add(error)
        tally.outcomes[verdict.outcome] += 1
        tally.defects += [f"{what} of {at}, {error}: {defect}" for defect in verdict.defects]
        tally.examples.setdefault(error, verdict.line)

    def show(self, *, lines: bool) -> int:
        """Print the table; gives the number of defects."""
        print("| fault | where | as | times | refused in one line | went on | defects |")
        print("|---|---|---|---|---|---|---|")
        for (what, where), tally in self._tallies.items():
            reached = tally.outcomes["refused"] + tally.outcomes["went on"]
            print(
                f"| {what} | {where} | {', '.join(sorted(tally.errors))} | {reached} "
                f"| {tally.outcomes['refused']} | {tally.outcomes['went on']} "
                f"| {len(tally.defects)} |"
            )
        missed = sum(tally.outcomes["not reached"] for tally in self._tallies.values())
        if missed:
            print(f"\n{missed} more faults were not reached: threads took their turns otherwise")
        if lines:
            for error, line in itertools.chain(
                *(tally.examples.items() for tally in self._tallies.values())
            ):
                print(f"{error}: {line}")
        defects = [defect for tally in self._tallies.values() for defect in tally.defects]
        for defect in defects:
            print(f"\n{defect}", file=sys.stderr)
        return len(defects)


# ---------------------------------------------------------------------- calls

_FIXED_NAMES = """
import uuid
uuid.uuid4 = lambda: uuid.UUID(int=0)
"""
"""Names of temporary files that are the same in each run, so that strace can be told of them."""
_CALL = re.compile(r"(?P<tid>\d+)\s+(?P<name>\w+)\((?P<rest>.*)\)\s+= (?P<result>.*)")
_PATH = re.compile(r'"([^"]*)"|<(/[^>]*)>')
TRACED = (
    "openat", "write", "pwrite64", "fsync", "close", "rename", "renameat2", "link", "linkat",
    "mkdir", "unlink", "unlinkat", "read", "pread64", "getdents64", "newfstatat", "stat", "statx",
    "mmap", "ftruncate", "fallocate",
)  # fmt: skip


@dataclass(frozen=True)
class Call:
    """A system call on a file of the store.

    Attributes:
        name: Of the call.
        path: Within the root of stores.
        role: What it is for, as the table says it.
        number: Which one it is of that call on that file, in its thread.
        report: Whether it is for the report of the run, on which nothing depends.
    """

    name: str
    path: str
    role: str
    number: int
    report: bool

    @property
    def sort(self) -> tuple[str, str, bool, str]:
        """Calls of one sort are alike: the same on files whose names differ in numbers only."""
        return (
            self.name,
            self.role,
            self.report,
            re.sub(r"\d+", "0", re.sub(r"-[0-9a-f]{16}", "", self.path)),
        )

    @property
    def file(self) -> str:
        """The file's own name, also of a temporary one."""
        match = re.fullmatch(r"\.(.*)\.0{32}\.partial", Path(self.path).name)
        return match[1] if match else Path(self.path).name


ERRORS: dict[str, tuple[str, ...]] = {
    "make a folder": ("EIO", "ENOSPC", "EACCES", "EROFS", "EDQUOT"),
    "create": ("EIO", "ENOSPC", "EACCES", "EROFS", "EMFILE"),
    "write": ("ENOSPC", "EIO", "EDQUOT", "EFBIG"),
    "flush": ("EIO", "ENOSPC", "EDQUOT"),
    "close": ("EIO", "ENOSPC"),
    "rename": ("EIO", "ENOSPC", "EACCES", "EROFS", "EINTR"),
    "link": ("EIO", "ENOSPC", "EACCES", "EPERM", "EOPNOTSUPP"),
    "flush the folder": ("EIO", "ENOSPC", "EINVAL"),
    "open the folder": ("EIO", "EMFILE"),
    "remove": ("EIO", "EROFS", "EACCES"),
    "open to read": ("EIO", "EACCES", "EMFILE", "ESTALE"),
    "read": ("EIO", "ESTALE"),
    "list": ("EIO", "EACCES"),
    "look": ("EIO", "EACCES", "ESTALE"),
    "map": ("EIO", "ENOMEM"),
}
HARMLESS = {("link", "EPERM"), ("link", "EOPNOTSUPP"), ("flush the folder", "EINVAL")}
"""Another way is there, or nothing is lost."""
MAY_GO_ON = {"remove", "close", "open to read", "read", "list", "look", "map"}


def traced(made: Bench, root: Path) -> list[Call]:
    """Run the command undisturbed and list its calls on files of the store."""
    log = made.folder / "trace"
    before = ["strace", "-f", "-y", "-qq", "--seccomp-bpf", "-e", f"trace={','.join(TRACED)}"]
    ended = made.extract(
        root, before=[*before, "-e", "signal=none", "-o", str(log)], env=fixed_names(made)
    )
    if ended.code:
        raise SystemExit(f"the traced run fails: {ended.stderr}")
    counts: Counter[tuple[str, str, str]] = Counter()
    calls, report = [], False
    for line in joined(log.read_text(errors="replace").splitlines()):
        match = _CALL.match(line)
        if match is None:
            continue
        paths = ["".join(found) for found in _PATH.findall(match["rest"])]
        path = next((p for p in paths if p.startswith(f"{root}/") or p == str(root)), None)
        if path is None:
            continue
        counts[match["tid"], match["name"], path] += 1
        role = role_of(match["name"], match["rest"], path)
        number = counts[match["tid"], match["name"], path]
        within = os.path.relpath(path, root)
        # The reports' folder is made in the store's, which is flushed right behind.
        report = RUNS in Path(within).parts or (report and Path(within) == WITHIN)
        if role and not match["result"].startswith("-1"):
            calls.append(Call(match["name"], within, role, number, report))
    return calls


def joined(lines: Iterable[str]) -> Iterator[str]:
    """Put together what strace wrote in two lines, as another thread came between."""
    begun: dict[str, str] = {}
    for line in lines:
        tid = line.split(" ", 1)[0]
        if line.endswith("<unfinished ...>"):
            begun[tid] = line.removesuffix("<unfinished ...>")
        elif " resumed>" in line and tid in begun:
            yield begun.pop(tid) + line.partition(" resumed>")[2]
        else:
            yield line


def role_of(name: str, rest: str, path: str) -> str:
    """Say what a call on a file of the store is for; "" for what cannot go wrong."""
    unnamed = path.endswith(".partial")
    if name == "openat":
        if "O_CREAT" in rest:
            return "create"
        if "O_DIRECTORY" in rest:
            return "list"
        return "open the folder" if Path(path).is_dir() else "open to read"
    if name == "fsync":
        return "flush" if unnamed else "flush the folder"
    if name == "close":
        return "close" if unnamed else ""
    return {
        "write": "write", "rename": "rename", "renameat2": "rename", "link": "link",
        "linkat": "link", "mkdir": "make a folder", "unlink": "remove", "unlinkat": "remove",
        "read": "read", "pread64": "read", "getdents64": "list", "newfstatat": "look",
        "stat": "look", "statx": "look", "mmap": "map",
    }.get(name, "")  # fmt: skip


def fixed_names(made: Bench) -> dict[str, str]:
    """Make an environment in which temporary names are the same in each run."""
    folder = made.folder / "site"
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(_FIXED_NAMES)
    known = os.environ.get("PYTHONPATH", "")
    return {"PYTHONPATH": f"{folder}{os.pathsep}{known}" if known else str(folder)}


def one_of_each(calls: Sequence[Call], rng: random.Random) -> list[tuple[Call, str]]:
    """Choose the last call of each sort, of changes the first, too; and errors for them in turn."""
    by_sort: dict[tuple[str, str, bool, str], list[Call]] = defaultdict(list)
    for call in calls:
        by_sort[call.sort].append(call)
    chosen = {alike[-1]: None for alike in by_sort.values()}
    chosen |= {alike[0]: None for alike in by_sort.values() if alike[0].role not in MAY_GO_ON}
    turns = {role: itertools.cycle(rng.sample(names, len(names))) for role, names in ERRORS.items()}
    return [(call, next(turns[call.role])) for call in chosen]


def inject(
    made: Bench, root: Path, calls: str, error: str, when: str, path: Path | None = None
) -> tuple[Ended, bool]:
    """Run the command while calls fail; tell whether one did."""
    log = root.with_suffix(".strace")
    before = ["strace", "-f", "-qq", "--seccomp-bpf", "-o", str(log), "-e", "signal=none"]
    before += [] if path is None else ["-P", str(path)]
    before += ["-e", f"trace={calls}", "-e", f"inject={calls}:error={error}:when={when}"]
    ended = made.extract(root, before=before, env=fixed_names(made))
    reached = "(INJECTED)" in log.read_text(errors="replace")
    log.unlink()
    return ended, reached


def fail_call(made: Bench, number: int, call: Call, error: str, *, on: bool) -> Verdict:
    """Let one call fail, once or from then on."""
    root = made.folder / f"call-{number}-{int(on)}"
    when = f"{call.number}{'+' if on else ''}"
    ended, reached = inject(made, root, call.name, error, when, root / call.path)
    if not reached:
        shutil.rmtree(root, ignore_errors=True)
        return Verdict(outcome="not reached")
    harmless = call.report or call.role in MAY_GO_ON or (call.role, error) in HARMLESS
    if ended.code == 0 and not harmless:
        shutil.rmtree(root)
        return Verdict(outcome="went on", defects=("it went on as if nothing had happened",))
    # A mapped file has no name in an error; its folder, the array, has.
    named = Path(call.path).parent.name if call.role == "map" else call.file
    verdict = made.judge(root, ended, lambda: None, [named])
    shutil.rmtree(root)
    return verdict


def fail_all(made: Bench, number: int, error: str) -> Verdict:
    """Let whatever changes a disk fail from its n-th call on, in each thread."""
    root = made.root(f"all-{number}-{len(made.options)}")
    ended, reached = inject(made, root, "fsync,rename,link,mkdir", error, f"{number}+")
    verdict = Verdict(outcome="not reached")
    if reached:
        verdict = made.judge(root, ended, lambda: None)
    shutil.rmtree(root, ignore_errors=True)
    return verdict


def calls(made: Bench, report: Report, options: argparse.Namespace) -> None:
    """Let system calls fail."""
    if shutil.which("strace") is None:
        print("calls: left out, strace is not installed", file=sys.stderr)
        return
    found = traced(made, made.folder / "traced")
    again = {call.sort for call in traced(made, made.folder / "traced-again")}
    chosen = one_of_each(
        [call for call in found if call.sort in again], random.Random(options.seed)
    )
    chosen = chosen[:: options.every]
    print(f"{len(found)} calls on the store, {len(chosen)} chosen", file=sys.stderr)

    def once(numbered: tuple[int, tuple[Call, str]]) -> None:
        number, (call, error) = numbered
        on = number % 2 == 1
        verdict = fail_call(made, number, call, error, on=on)
        at = f"{call.path} ({call.name}, number {call.number}{' and on' if on else ''})"
        where = "the report of a run" if call.report else "a file of the store"
        report.add(call.role, where, error, at, verdict)

    def persistent(number: int, to: Bench) -> None:
        error = ("EIO", "ENOSPC", "EROFS")[number % 3]
        where = "while items are appended" if to.begun else "of a new store"
        verdict = fail_all(to, number, error)
        report.add("every change from the n-th on", where, error, f"number {number}", verdict)

    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(once, enumerate(chosen)))
        for to in (made, appending(made)):
            list(pool.map(partial(persistent, to=to), range(1, 41, options.every)))


# ---------------------------------------------------------------------- other faults


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """Mount a file system in memory; SystemError where that is not allowed."""
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        folder.rmdir()
        raise SystemError(done.stderr.strip())
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)
        folder.rmdir()


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


def full(made: Bench, report: Report, options: argparse.Namespace) -> None:
    """Fill a small file system."""
    files = [path for path in made.whole.rglob("*") if path.is_file()]
    pages = sum(-(-path.stat().st_size // 4096) for path in files)
    inodes = len(list(made.whole.rglob("*"))) + len(WITHIN.parts) + 1
    rounds = [("size", f"{4096 * n}") for n in range(1, pages + 1, max(1, pages // 24))]
    rounds += [("nr_inodes", f"{n}") for n in range(2, inodes, max(1, inodes // 16))]
    for what, value in rounds[:: options.every]:
        try:
            with mounted(made.folder / "small", f"{what}={value},mode=755") as root:
                ended = made.extract(root)
                verdict = made.judge(root, ended, partial(remount, root, "size=1g,nr_inodes=0"))
        except SystemError as exc:
            print(f"full: left out, cannot mount here: {exc}", file=sys.stderr)
            return
        how = "bytes" if what == "size" else "inodes"
        report.add("a full file system", how, "ENOSPC", f"{what}={value}", verdict)


def limit(made: Bench, report: Report, options: argparse.Namespace) -> None:
    """Limit how large a file may be."""
    sizes = sorted({path.stat().st_size for path in made.whole.rglob("*") if path.is_file()})
    # Python itself writes a few bytes to see whether it may.
    for n_bytes in [16, *(size - 1 for size in sizes)][:: options.every]:
        root = made.folder / "limited"

        def lower(n_bytes: int = n_bytes) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, n_bytes))

        ended = made.extract(root, preexec_fn=lower)
        verdict = made.judge(root, ended, lambda: None)
        report.add("RLIMIT_FSIZE", "largest file", "EFBIG", f"{n_bytes} bytes", verdict)
        shutil.rmtree(root)


def half_done(made: Bench, root: Path) -> Path:
    """Copy the undisturbed store and take the second unit, and what closes it, away."""
    store = root / WITHIN
    shutil.copytree(made.whole, store)
    for path in [*(store / "units").glob("0001-00001.*"), *(store / "units").glob("*closing*")]:
        path.unlink()
    (store / "sealed.json").unlink()
    group = store / "features.zarr/zarr.json"
    group.write_text(group.read_text().replace('"complete": true', '"complete": false'))
    return store


def denied(made: Bench, report: Report, options: argparse.Namespace) -> None:
    """Take permissions away."""
    before: list[str] = []
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            print("denied: left out, root needs setpriv for it", file=sys.stderr)
            return
        before = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"]
    parts = {
        re.sub(r"\d+", "0", re.sub(r"-[0-9a-f]{16}", "", str(path))): path
        for path in sorted(p.relative_to(made.whole) for p in made.whole.rglob("*"))
        if path.parts[:1] != ("runs",)
    }
    cases = [(Path(), 0o555), (Path(), 0)]
    cases += [(p, mode) for p in parts.values() for mode in (0o555, 0) if (made.whole / p).is_dir()]
    cases += [(path, 0) for path in parts.values() if (made.whole / path).is_file()]
    for part, mode in cases[:: options.every]:
        root = made.folder / "denied"
        store = half_done(made, root)
        victim = store / part
        if not victim.exists():
            shutil.rmtree(root)
            continue
        usual = victim.stat().st_mode
        victim.chmod(mode)
        ended = made.extract(root, before=before)
        verdict = made.judge(root, ended, partial(victim.chmod, usual))
        how = "a folder" if usual & 0o040000 else "a file"
        how += " that may not be written" if mode else " that may not be read"
        report.add("no permission", how, "EACCES", f"{part}", verdict)
        shutil.rmtree(root)
    read_only(made, report)


def read_only(made: Bench, report: Report) -> None:
    """Mount the file system of no store, of one half done, and of a complete one read-only."""
    for state in ("not begun", "half done", "complete"):
        try:
            with mounted(made.folder / "read-only", "size=1g,mode=755") as mount:
                root = mount / "stores"
                root.mkdir()
                if state != "not begun":
                    store = half_done(made, root)
                if state == "complete":
                    shutil.copytree(made.whole, store, dirs_exist_ok=True)
                remount(mount, "ro")
                ended = made.extract(root)
                verdict = made.judge(root, ended, partial(remount, mount, "rw"))
        except SystemError as exc:
            print(f"denied: no read-only mount, cannot mount here: {exc}", file=sys.stderr)
            return
        report.add("a read-only file system", f"a store {state}", "EROFS", state, verdict)


FAULTS: dict[str, Callable[[Bench, Report, argparse.Namespace], None]] = {
    "calls": calls,
    "full": full,
    "limit": limit,
    "denied": denied,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("faults", nargs="*", help=f"of {', '.join(FAULTS)}; all by default")
    parser.add_argument("--seed", type=int, default=0, help="chooses which error each call gives")
    parser.add_argument("--jobs", type=int, default=1, help="trials at once, of `calls`")
    parser.add_argument("--every", type=int, default=1, help="run every n-th trial only")
    parser.add_argument("--lines", action="store_true", help="print what was said of each fault")
    options = parser.parse_args()
    if unknown := [name for name in options.faults if name not in FAULTS]:
        parser.error(f"there is no {unknown[0]!r}; there are {', '.join(FAULTS)}")
    report = Report()
    with bench() as made:
        for name in options.faults or FAULTS:
            FAULTS[name](made, report, options)
            print(f"{name}: done", file=sys.stderr)
    if report.show(lines=options.lines):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
