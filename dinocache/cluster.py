"""Extraction by Dask workers: each task is a unit; the client plans nothing and computes nothing.

A worker loads the encoder once and does two units at a time: one is read and written while the
other passes through the device. Workers may come, die or be taken away: a lost unit is done
elsewhere, and one that is done twice ends in the same bytes.

Tasks run code: whoever reaches a scheduler's port can run code as its owner. The clusters that are
started here speak TLS with keys of their own; one that is reached by its address is as safe as its
owner made it.
"""

import contextlib
import itertools
import logging
import os
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import TypeAdapter

from dinocache import supervise, worker
from dinocache.errors import CrashError, RequestError, TooManyFailuresError, one_line
from dinocache.extract import Outcome
from dinocache.places import folder_of
from dinocache.progress import Progress
from dinocache.request import ExtractRequest
from dinocache.worker import Done, Plain, Plan

if TYPE_CHECKING:
    from distributed import Client
    from distributed.deploy.cluster import Cluster

__all__ = ["extract_on"]

T = TypeVar("T")

SLOTS = "dinocache"
"""The resource that a unit takes one of."""
_SLOTS_A_WORKER = 2
_LOST = 8
"""Times that a unit may be lost with its worker, without an item to blame."""
_ANSWERS_WITHIN = "20s"
_NOTES_TOLD = 20
"""`request`, and `run`, another one each time: what a worker that outlives a run knows of tables,
files and stores is of then."""


def extract_on(
    request: ExtractRequest,
    where: str,
    progress: Progress,
    *,
    options: Sequence[str] = (),
    adapt: str | None = None,
) -> Outcome:
    """Do what is missing of a store, on a cluster.

    Args:
        request: What is asked; the workers must see the same files.
        where: `local:N`, `gpu`, `slurm` or `slurm:N`, or the address of a scheduler.
        progress: Told how far it is.
        options: NAME=VALUE each, for the cluster; `--NAME=VALUE` goes to SLURM as it is.
        adapt: `MIN:MAX` workers.

    Returns:
        What it came to.

    Raises:
        RequestError: If there is no such cluster, or the options are not for it.
        CrashError: If workers die of a unit again and again, and no item is to blame.
        StoppedError: If it was stopped by a signal.
        DinocacheError: As `dinocache.extract.extract`.
    """
    began = time.monotonic()
    plain = _plain(request)
    with supervise.Stopping(progress), _connected(where, request, options, adapt) as client:
        progress.note(f"dashboard: {client.dashboard_link}")
        threads = _threads(where)
        plan: Plan = _asked(client, worker.prepare_store, plain, threads)
        for note in plan.notes:
            progress.note(note)
        progress.start(plan.total_rows, plan.done_rows)
        try:
            busy = _Run(client, plain, plan, request.max_failures, progress).run()
        finally:
            progress.stop()
        seconds = time.monotonic() - began
        outcome: Outcome = _asked(
            client, worker.conclude_store, plain, sorted(plan.units), seconds, *busy
        )
        return outcome


def _asked(client: "Client", function: Callable[..., T], *arguments: object) -> T:
    """Have a worker do something that is no unit."""
    from distributed import KilledWorker

    try:
        found: T = client.submit(function, *arguments, pure=False).result()
    except KilledWorker as exc:
        raise CrashError(
            "workers died before the first unit, or behind the last one: the same command without "
            "--cluster says of which item, if one is to blame. What was committed is whole"
        ) from exc
    return found


class _Run:
    """The units of a plan, handed out to workers until all are done."""

    def __init__(
        self,
        client: "Client",
        plain: Plain,
        plan: Plan,
        max_failures: int | None,
        progress: Progress,
    ) -> None:
        self._client, self._plain, self._plan = client, plain, plan
        self._max_failures, self._progress = max_failures, progress
        self._killers: dict[str, str] = {}
        self._failed: set[str] = set()
        self._lost = dict.fromkeys(plan.units, 0)
        self._busy_s: dict[str, float] = {}
        self._told = 0
        self._began = time.monotonic()
        self._number = itertools.count()
        self._resources = {SLOTS: 1} if _has_slots(client) else None

    def run(self) -> tuple[dict[str, float], int]:
        """Hand out all units; gives how busy each stage of a worker was, and how many they are."""
        from distributed import KilledWorker, as_completed

        ahead = as_completed(loop=self._client.loop)
        units = {}
        for unit in self._plan.units:
            future = self._submit(unit)
            units[future.key] = unit
            ahead.add(future)
        for future in ahead:
            unit = units.pop(future.key)
            try:
                self._take(future.result())
            except KilledWorker:
                self._look_for_killers(unit)
                again = self._submit(unit)
                units[again.key] = unit
                ahead.add(again)
        return self._busy(), self._workers()

    def _submit(self, unit: str) -> Any:  # noqa: ANN401
        ids = self._plan.units[unit][1]
        killers = {i: self._killers[i] for i in ids if i in self._killers}
        return self._client.submit(
            worker.do_unit,
            self._plain,
            unit,
            killers,
            key=f"{unit}-{os.getpid()}-{next(self._number)}",
            resources=self._resources,
            pure=False,
        )

    def _take(self, done: Done) -> None:
        for stage, seconds in done.busy_s.items():
            self._busy_s[stage] = self._busy_s.get(stage, 0.0) + seconds
        for note in done.notes[: _NOTES_TOLD - self._told]:  # of each unit, else; the store has all
            self._told += 1
            self._progress.note(note)
        self._failed.update(done.failed)
        self._progress.advance(done.rows, done.n_bytes, self._busy())
        if self._max_failures is not None and len(self._failed) > self._max_failures:
            raise TooManyFailuresError(
                f"stopped: {len(self._failed)} items failed, --max-failures is "
                f"{self._max_failures}. What was committed is whole"
            )

    def _look_for_killers(self, unit: str) -> None:
        ids = [i for i in self._plan.units[unit][1] if i not in self._killers]
        try:
            found = _asked(self._client, worker.find_killers, self._plain, ids)
        except CrashError:  # it shares its worker with units, which may hold another such item
            found = {}
        self._lost[unit] += 1
        if not found and self._lost[unit] >= _LOST:
            raise CrashError(
                f"unit {unit} was lost with its worker {self._lost[unit]} times, and no item of it "
                "is to blame: give workers more memory, or --workers less to do at once. What was "
                "committed is whole"
            )
        named = f"; recorded as failed: {', '.join(found)}" if found else ""
        self._progress.note(f"workers died in unit {unit}{named}; going on")
        self._killers |= found

    def _workers(self) -> int:
        return max(len(self._client.scheduler_info(n_workers=-1)["workers"]), 1)

    def _busy(self) -> dict[str, float]:
        wall = max(time.monotonic() - self._began, 1e-9) * self._workers()
        return {stage: min(seconds / wall, 1.0) for stage, seconds in self._busy_s.items()}


# Clusters


@contextmanager
def _connected(
    where: str, request: ExtractRequest, options: Sequence[str], adapt: str | None
) -> "Iterator[Client]":
    try:
        import dask
        from distributed import Client
    except ModuleNotFoundError as exc:
        raise RequestError(
            f"--cluster needs `pip install 'dinocache[cluster]'` ({exc.name} is not installed)"
        ) from exc
    limits = _limits(adapt)
    for name in [*logging.root.manager.loggerDict]:
        if name.split(".")[0] in ("distributed", "bokeh", "tornado"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # what matters is raised
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        # A port that is taken, a worker that ends with its job: neither is for a person here.
        warnings.simplefilter("ignore")
        stack.enter_context(
            dask.config.set(
                {
                    "distributed.scheduler.allowed-failures": 1,
                    "distributed.scheduler.worker-ttl": "5 minutes",
                    "distributed.comm.timeouts.connect": "30s",
                }
            )
        )
        if "://" in where:
            if options or limits:
                raise RequestError(f"--cluster {where} is as it is: it takes no options here")
            try:
                client = stack.enter_context(Client(where, timeout=_ANSWERS_WITHIN))
            except (OSError, TypeError, ValueError) as exc:  # TLS without keys, no such scheme
                raise RequestError(
                    f"--cluster {where}: no scheduler answers there: {one_line(exc)}"
                ) from exc
        else:
            # Whatever address workers know the scheduler by, its pages are for this machine only.
            link = {"distributed.dashboard.link": "{scheme}://127.0.0.1:{port}/status"}
            stack.enter_context(dask.config.set(link))
            cluster = stack.enter_context(_started(where, request, _options(options)))
            if limits:
                cluster.adapt(minimum=limits[0], maximum=limits[1])
            client = stack.enter_context(Client(cluster))
        try:
            yield client
        except CancelledError as exc:
            raise CrashError(
                f"--cluster {where}: its scheduler is gone. What was committed is whole; run the "
                "same command again to go on"
            ) from exc


def _started(where: str, request: ExtractRequest, options: dict[str, Any]) -> "Cluster":
    kind, _, number = where.partition(":")
    numbered = kind in ("local", "slurm") and number.isdecimal() and int(number) > 0
    if not numbered and where not in ("local", "gpu", "slurm"):
        raise RequestError(
            f"--cluster {where!r}: give local:N, gpu, slurm:N, or the address of a scheduler, as "
            "tcp://login1:8786"
        )
    if kind == "slurm":
        return _slurm(int(number or 1), request, options)
    if options:
        raise RequestError(f"--cluster-option is for slurm, not for {kind}")
    if kind == "gpu":
        return _gpus()
    from distributed import LocalCluster

    return LocalCluster(
        n_workers=int(number or 2),
        threads_per_worker=_SLOTS_A_WORKER,
        resources={SLOTS: _SLOTS_A_WORKER},
        memory_limit=0,
        dashboard_address="127.0.0.1:8787",
        security=True,
        protocol="tls://",
        silence_logs=_QUIET,
        env={"OMP_NUM_THREADS": str(_threads(where)), **_QUIET_WORKER},
    )


def _gpus() -> "Cluster":
    import torch
    from distributed import Nanny, Scheduler, Security, SpecCluster

    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = listed.split(",") if listed else [str(i) for i in range(torch.cuda.device_count())]
    if not devices:
        raise RequestError("--cluster gpu: this machine has no CUDA device; local:N works without")
    security = Security.temporary()
    workers = {
        f"gpu{device}": {
            "cls": Nanny,
            "options": {
                "nthreads": _SLOTS_A_WORKER,
                "resources": {SLOTS: _SLOTS_A_WORKER},
                "memory_limit": 0,
                "env": {"CUDA_VISIBLE_DEVICES": device, **_QUIET_WORKER},
                "protocol": "tls://",
                "security": security,
            },
        }
        for device in devices
    }
    options = {
        "dashboard_address": "127.0.0.1:8787",
        "protocol": "tls://",
        "host": "127.0.0.1",
        "security": security,
    }
    return SpecCluster(
        workers=workers,
        scheduler={"cls": Scheduler, "options": options},
        security=security,
        silence_logs=_QUIET,
    )


def _slurm(jobs: int, request: ExtractRequest, options: dict[str, Any]) -> "Cluster":
    import dask

    try:
        from dask_jobqueue.slurm import SLURMCluster
    except ModuleNotFoundError as exc:
        raise RequestError("--cluster slurm needs `pip install 'dinocache[cluster]'`") from exc
    root = folder_of(request.root).path or Path("features")
    folder = str(root.absolute() / ".jobs")
    Path(folder).mkdir(parents=True, exist_ok=True)
    usual = {
        "cores": dask.config.get("jobqueue.slurm.cores", None) or 4,
        "memory": dask.config.get("jobqueue.slurm.memory", None) or "16GB",
        "log_directory": folder,
    }
    given = {
        **usual,
        "processes": 1,
        "security": True,
        "shared_temp_directory": folder,
        "scheduler_options": {"dashboard_address": "127.0.0.1:8787"},
        "worker_extra_args": [
            *("--nthreads", str(_SLOTS_A_WORKER), "--memory-limit", "0"),
            *("--resources", f"{SLOTS}={_SLOTS_A_WORKER}"),
        ],
        "silence_logs": _QUIET,
        **options,
    }
    try:
        return SLURMCluster(n_workers=jobs, **given)
    except (TypeError, ValueError) as exc:
        raise RequestError(f"--cluster-option: {' '.join(str(exc).split())}") from exc


_QUIET = logging.CRITICAL
_QUIET_WORKER = {"DASK_DISTRIBUTED__LOGGING__DISTRIBUTED": "critical"}


def _options(given: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    directives = []
    for text in given:
        if text.startswith("--"):
            directives.append(text)
            continue
        name, equals, value = text.partition("=")
        if not equals:
            raise RequestError(f"--cluster-option {text!r}: give NAME=VALUE, as walltime=04:00:00")
        found[name] = int(value) if value.isdecimal() else value
    return found | ({"job_extra_directives": directives} if directives else {})


def _limits(adapt: str | None) -> tuple[int, int] | None:
    if adapt is None:
        return None
    low, _, high = adapt.partition(":")
    if low.isdecimal() and high.isdecimal() and int(low) <= int(high) and int(high) > 0:
        return int(low), int(high)
    raise RequestError(f"--adapt {adapt!r}: give MIN:MAX workers, as 1:16")


def _threads(where: str) -> int | None:
    """Threads of torch in a worker; None leaves what its job has."""
    kind, _, number = where.partition(":")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max((cores or 1) // int(number or 2), 1) if kind == "local" else None


def _has_slots(client: "Client") -> bool:
    """Whether the workers were started with the resource; else a task that asks would wait."""
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    return not workers or any(SLOTS in worker["resources"] for worker in workers)


def _plain(request: ExtractRequest) -> Plain:
    """Write a request for workers that may stand in another folder."""
    where = Path(request.dataset)
    absolute = replace(
        request,
        dataset=str(where.absolute()) if where.exists() else request.dataset,
        data=request.data and request.data.absolute(),
        root=_absolute(request.root),
        weights=request.weights and _fixed(request.weights),
    )
    plain = TypeAdapter(ExtractRequest).dump_python(absolute, mode="json")
    return {"request": plain, "run": uuid.uuid4().hex}


def _absolute(root: Path | str) -> str:
    path = folder_of(root).path
    return str(root) if path is None else str(path.absolute())


def _fixed(weights: str) -> str:
    """Make the paths among choices of weights absolute."""
    if (whole := Path(weights).expanduser()).is_file():
        return str(whole.absolute())
    named = [part.strip() for part in weights.split(",")]
    paths = [Path(part).expanduser() for part in named]
    return ",".join(
        str(path.absolute()) if part != "hub" and path.exists() else part
        for part, path in zip(named, paths, strict=True)
    )
