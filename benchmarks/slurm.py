"""Extractions on a real SLURM: of one node, started here and ended again.

munged, slurmctld and slurmd run on this machine, with all that they keep in a scratch folder and
ports of their own. Then two extractions, each with a store of its own that nothing makes
beforehand:

    cluster  `dinocache extract --cluster slurm:2`; the job of a worker is cancelled (scancel) once
             a fourth of all units is committed, and the run goes on without it. A second such run
             is killed outright (SIGKILL to the command) and started again
    array    `sbatch --array=1-4 --wrap 'dinocache extract ... --part $SLURM_ARRAY_TASK_ID/4'`: its
             jobs race to make the store; one is cancelled in its middle, another is killed without
             warning (scancel --signal=KILL --full), and both are submitted again

Wanted: no unit that was committed when a job was cancelled is lost or written again, and in the
end a store that is complete, verified and bit-identical to that of a plain run. Needs slurm-wlm and
munge, and to be root; says so, and ends well, where they are absent.

    python benchmarks/slurm.py [--rows 640] [--log benchmarks/slurm-log.txt]
"""

import argparse
import contextlib
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kill_storm import OPTIONS, PROBE, UNIT_ROWS, WITHIN, Stamps, digests, undisturbed, wrong_rows

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "sinfo", "scancel", "scontrol")
DINOCACHE = Path(sys.executable).with_name("dinocache")
SLOW_S = 0.1
"""Of a batch of two rows: a unit takes 0.8 s, so that there is a middle to cancel in."""
PATIENCE_S = 240
CONFIGURATION = """\
ClusterName=bench
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmUser=root
ReturnToService=2
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
KillWait=15
SlurmdSpoolDir={folder}/spool
StateSaveLocation={folder}/state
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory={memory} State=UNKNOWN
PartitionName=bench Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def absent() -> str | None:
    """Say what is lacking here; None if nothing is."""
    if missing := [name for name in NEEDED if shutil.which(name) is None]:
        return f"{', '.join(missing)} not installed (Debian: slurm-wlm, munge)"
    if os.geteuid() != 0:
        return "the daemons are started as root, and this is another user"
    return None


# ---------------------------------------------------------------------- what is told


@dataclass
class Log:
    """What is shown, and kept without the names of this machine."""

    hidden: dict[str, str]
    lines: list[str] = field(default_factory=list)

    def say(self, text: str = "") -> None:
        """Show some lines."""
        for there, name in self.hidden.items():
            text = re.sub(rf"(?<!\w){re.escape(there)}(?!\w)", name, text)
        text = re.sub(r"https?://(?!127\.0\.0\.1)[^\s\"']+", "URL", text)
        self.lines.append(text)
        print(text, flush=True)

    def run(self, *command: str) -> str:
        """Run a command and show what it says."""
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        output = (ended.stdout + ended.stderr).rstrip()
        self.say(f"$ {' '.join(command)}" + f"\n{output}" * bool(output))
        if ended.returncode:
            raise RuntimeError(f"{command[0]} ends with {ended.returncode}: {output}")
        return output


# ---------------------------------------------------------------------- SLURM


@contextlib.contextmanager
def slurm(folder: Path, log: Log) -> Iterator[None]:
    """Start SLURM, of one node; end it."""
    host = socket.gethostname().partition(".")[0]
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**20
    for name in ("spool", "state"):
        (folder / name).mkdir()
    conf = folder / "slurm.conf"
    conf.write_text(
        CONFIGURATION.format(
            host=host, folder=folder, ports=free_ports(2), memory=min(memory * 9 // 10, 8000)
        )
    )
    os.environ["SLURM_CONF"] = str(conf)
    key = folder / "munge.key"
    key.write_bytes(random.SystemRandom().randbytes(1024))
    key.chmod(0o400)
    files = {"key-file": key, "socket": folder / "munge.socket", "pid-file": folder / "munged.pid"}
    files |= {"log-file": folder / "munged.log", "seed-file": folder / "munge.seed"}
    try:
        subprocess.run(["munged", *(f"--{k}={v}" for k, v in files.items())], check=True)
        subprocess.run(["slurmctld", "-f", conf], check=True)
        subprocess.run(["slurmd", "-f", conf], check=True)
        wait_until(lambda: said("sinfo", "-h", "-o", "%T") == "idle", "the node to be idle")
        yield
    finally:
        log.say("\n## End")
        with contextlib.suppress(subprocess.CalledProcessError, RuntimeError):
            subprocess.run(["scancel", "--partition=bench"], check=True)
            wait_until(lambda: said("squeue", "-h") == "", "no job to be left")
        for daemon in ("slurmd", "slurmctld", "munged"):
            log.say(f"{daemon}: {end(folder / f'{daemon}.pid')}")


def end(pid_file: Path) -> str:
    """End a daemon by its pid file; says how."""
    if not pid_file.exists():
        return "was not running"
    pid = int(pid_file.read_text())
    os.kill(pid, signal.SIGTERM)
    for _ in range(300):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return "ended"
        time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)
    return "did not end within 30 s, and was killed"


def free_ports(count: int) -> list[int]:
    """Name ports that nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def said(*command: str) -> str:
    """Run a command; gives what it says, or nothing if it fails."""
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    return ended.stdout.strip() if ended.returncode == 0 else f"exit code {ended.returncode}"


def wait_until(is_so: Callable[[], bool], what: str) -> None:
    """Wait for something; raises RuntimeError if that takes too long."""
    latest = time.monotonic() + PATIENCE_S
    while not is_so():
        if time.monotonic() > latest:
            raise RuntimeError(f"waited {PATIENCE_S} s for {what}")
        time.sleep(0.05)


# ---------------------------------------------------------------------- extractions


@dataclass
class Trial:
    """A store, what is committed in it, and what went wrong."""

    name: str
    whole: Path
    n_units: int
    log: Log
    wrong: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.store = Path(self.name) / WITHIN
        self.stamps = Stamps(self.store)
        self.options = ["extract", "images.csv", *OPTIONS, "--store", self.name]
        self.log.say(f"\n## {self.name}")

    def wait_for(self, part: float) -> int:
        """Wait until a part of all units is committed; gives how many are."""
        wanted = int(part * self.n_units)
        wait_until(lambda: self.stamps.look() >= wanted, f"{wanted} units of {self.name}")
        return self.stamps.look()

    def check_in_the_middle(self, units: int) -> None:
        """See that a run was cut in its middle, which is what is looked at here."""
        if units >= self.n_units:
            self.wrong.append("all was done before a job could be cancelled")

    def check(self) -> None:
        """Look at the store once all is done."""
        before = len(self.stamps.first)
        self.stamps.look()
        lost = [name for name in self.stamps.first if not (self.store / name).exists()]
        again = [n for n in self.stamps.again if "item_" not in n and "closing" not in n]
        ours, theirs = digests(self.store), digests(self.whole)
        different = {n for n in ours.keys() | theirs.keys() if ours.get(n) != theirs.get(n)}
        verified = subprocess.run(
            [DINOCACHE, "verify", self.store], capture_output=True, text=True, check=False
        )
        self.log.say(f"$ dinocache verify {self.store}\n{verified.stdout.strip()}")
        self.wrong += [f"{len(lost)} committed files lost"] * bool(lost)
        self.wrong += [f"{len(again)} committed files written again"] * bool(again)
        self.wrong += [f"{len(different)} files differ"] * bool(different)
        self.wrong += [f"verify ends with {verified.returncode}"] * bool(verified.returncode)
        rows = wrong_rows(self.whole, self.store)
        self.log.say(
            f"{self.name}: {before} committed files kept their inode and time, {len(different)} "
            f"files differ from the plain run's, {rows} rows wrong: "
            f"{'; '.join(self.wrong) or 'as promised'}"
        )


def by_cluster(trial: Trial, *, kill: bool) -> None:
    """Let Dask's workers be jobs; cancel one of them, or kill the command and start it again."""
    command = [DINOCACHE, *trial.options, "--cluster", "slurm:2"]
    for option in ("cores=1", "memory=2GB", "walltime=00:20:00"):
        command += ["--cluster-option", option]
    trial.log.say(f"$ {' '.join(['dinocache', *map(str, command[1:])])}")
    running = start(command)
    try:
        units = trial.wait_for(0.25)
        jobs = re.findall(r"^\s*(\d+) .* R ", trial.log.run("squeue"), re.MULTILINE)
        trial.check_in_the_middle(units)
        if kill:
            trial.log.say(f"SIGKILL to the command, {units} of {trial.n_units} units committed")
            running.kill()
            running.communicate()
            running = start(command)
        elif jobs:
            trial.log.say(f"{units} of {trial.n_units} units committed")
            trial.log.run("scancel", jobs[0])
            time.sleep(2)
            trial.log.run("squeue")
        else:
            trial.wrong.append("no job was running")
        output, _ = running.communicate(timeout=PATIENCE_S)
    finally:
        running.kill()
    trial.log.say(f"{output.strip()}\nexit code {running.returncode}")
    if running.returncode:
        trial.wrong.append(f"the command ended with {running.returncode}")


def start(command: Sequence[str | Path]) -> "subprocess.Popen[str]":
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def by_array(trial: Trial) -> None:
    """Let each job of an array do a share; cancel one, kill one, submit both again."""
    submit(trial, "1-4")
    cancelled = []
    for part, how in ((0.15, []), (0.6, ["--signal=KILL", "--batch"])):
        units = trial.wait_for(part)
        trial.check_in_the_middle(units)
        trial.log.run("squeue")
        # The one that began last: it has most before it.
        tasks = said("squeue", "-h", "-t", "R", "-S", "-S", "-o", "%i").split()
        if not tasks:
            trial.wrong.append("no job was running")
            return
        trial.log.say(f"{units} of {trial.n_units} units committed")
        trial.log.run("scancel", *how, tasks[0])
        cancelled.append(tasks[0].partition("_")[2])
    wait_until(lambda: said("squeue", "-h") == "", "the array to end")
    show(trial)
    trial.log.say(f"{trial.n_units - trial.stamps.look()} of {trial.n_units} units left")
    submit(trial, ",".join(cancelled))
    wait_until(lambda: said("squeue", "-h") == "", "what was submitted again to end")
    if "nothing was missing" in show(trial):
        trial.wrong.append("a share was done before its job could be cancelled")


def submit(trial: Trial, numbers: str) -> None:
    words = " ".join(map(str, [DINOCACHE, *trial.options, "--part"]))
    wrapped = f"{words} $SLURM_ARRAY_TASK_ID/4"
    trial.log.run(
        "sbatch", f"--array={numbers}", f"--output={trial.name}-%A-%a.out", "--wrap", wrapped
    )


def show(trial: Trial) -> str:
    """Show what the jobs of the array said since."""
    told = ""
    for output in sorted(Path().glob(f"{trial.name}-*.out")):
        lines = output.read_text().strip().splitlines()
        told += f"{output.name}: {' / '.join(line.strip() for line in lines)}\n"
        output.unlink()
    trial.log.say(told.rstrip())
    return told


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=640)
    parser.add_argument("--log", type=Path, help="keeps what is shown, too")
    options = parser.parse_args()
    if reason := absent():
        print(f"skipped: {reason}")
        return 0
    keep = options.log and options.log.absolute()
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROBE)}
    wrong = []
    with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(scratch):
        Path(scratch).chmod(0o755)  # munged wants its socket where every user can come to it
        whole = undisturbed(options.rows)
        names = {scratch: "SCRATCH", str(DINOCACHE.parent): "BIN", sys.prefix: "ENVIRONMENT"}
        names |= {str(PROBE.parents[1]): "REPOSITORY", socket.gethostname(): "HOST"}
        names[socket.gethostname().partition(".")[0]] = "HOST"
        log = Log(names)
        log.say(f"# SLURM, {time.strftime('%Y-%m-%d')}, {options.rows} rows\n\n## Start")
        os.environ |= {"DINOCACHE_PROBE": f"{scratch}/events", "DINOCACHE_PROBE_SLOW": str(SLOW_S)}
        trials = []
        with slurm(Path(scratch), log):
            for command in (["sinfo", "--version"], ["sinfo", "-N", "-l"]):
                log.run(*command)
            for name in ("cluster", "cluster-killed", "array"):
                trial = Trial(name, whole, -(-options.rows // UNIT_ROWS), log)
                trials.append(trial)
                if name == "array":
                    by_array(trial)
                else:
                    by_cluster(trial, kill=name == "cluster-killed")
                trial.check()
            log.run("sinfo")
        wrong = [f"{trial.name}: {what}" for trial in trials for what in trial.wrong]
        log.say(f"\n{len(wrong)} promises broken" + "".join(f"\n  {what}" for what in wrong))
        if keep:
            lines = "\n".join(log.lines).split("\n")
            keep.write_text("".join(f"{line.rstrip()}\n" for line in lines))
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
