"""Many runs: tasks by encoders by resolutions by heads, those that are there already left alone."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

from dinocache.errors import DinocacheError, RequestError, StoreNotFoundError
from dinocache.folders import Folder
from dinocache.layout import HEADER
from dinocache.manifest import Task, find_task
from dinocache.places import Where, folder_of
from probes import map_fit, register
from probes.fit import fit, inputs_of
from probes.heads import DENSE_HEADS, HEADS
from probes.map_request import MapRequest
from probes.places import map_folder, registration_folder, run_folder
from probes.register_request import METHODS, RegisterRequest
from probes.request import FitRequest
from probes.runs import Result
from probes.tasks import map_request, registration_request, stores_of, task_request

__all__ = ["Planned", "Ran", "SweepRequest", "plan_sweep", "run_sweep"]

State = Literal["fitted", "unchanged", "failed"]
Request = FitRequest | MapRequest | RegisterRequest
_OF_ITEMS = {"repeats": 1, "by": (), "shots": None, "fraction": None, "pool": None}
"""What tasks of maps and pairs have none of, and what it is where nobody asks."""


@dataclass(frozen=True, kw_only=True)
class SweepRequest:
    """What a person asks of `probe sweep`.

    Attributes:
        tasks: DATASET/TASK each; or, with `targets`, datasets.
        root: Of the stores.
        out: Folder that runs go to.
        targets: Columns, where datasets are named.
        models: Encoders; None for all that have stores.
        resolutions: Likewise.
        variant: Of the stores.
        heads: Or methods of registration; None takes each task's own.
        settings: Head -> setting -> values, of which each combination is a run.
        searches: Head -> grid that validation items choose from within a run.
        varied: Field of `FitRequest` -> values, likewise: shots, fraction, pool, features.
        fixed: Fields of `FitRequest` that are the same for all runs.
    """

    tasks: tuple[str, ...]
    root: Where
    out: Path
    targets: tuple[str, ...] | None = None
    models: tuple[str, ...] | None = None
    resolutions: tuple[str, ...] | None = None
    variant: str = ""
    heads: tuple[str, ...] | None = None
    settings: Mapping[str, Mapping[str, tuple[Any, ...]]] = field(default_factory=dict)
    searches: Mapping[str, Mapping[str, tuple[Any, ...]]] = field(default_factory=dict)
    varied: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Planned:
    """One run to be."""

    folder: Path
    request: Request
    unchanged: bool
    """Whether its folder holds this very run."""


@dataclass(frozen=True, kw_only=True)
class Ran:
    """What came of one run."""

    folder: Path
    state: State
    result: Result | None = None
    error: str = ""


def plan_sweep(request: SweepRequest) -> list[Planned]:
    """Find the runs that a sweep stands for, and which of them are there.

    Args:
        request: What is asked.

    Returns:
        In order of tasks, encoders, resolutions, heads, settings.

    Raises:
        RequestError: If a name is unknown, or two runs would go to one folder.
        StoreError: If a store cannot be read, or a task has none.
    """
    planned: dict[Path, Planned] = {}
    for name in request.tasks:
        for store, train_store in _stores(request, name):
            for asked in _combinations(request, name):
                one = _request(request, name, store, train_store, asked)
                folder = request.out / _folder(one)
                if folder in planned:
                    continue  # a setting of another head, or features that no encoder makes
                planned[folder] = Planned(
                    folder=folder, request=one, unchanged=_is_there(folder, one)
                )
    return list(planned.values())


def run_sweep(
    planned: Sequence[Planned], *, jobs: int, told: Callable[[Ran], None] = lambda ran: None
) -> list[Ran]:
    """Do the runs that are not there.

    Args:
        planned: All of them.
        jobs: Processes at once; each computes with one thread, so that results do not depend on
            how many there are.
        told: Called as each run ends, here, in the order of their ends.

    Returns:
        What came of each, in the order of `planned`.
    """
    ended: dict[Path, Ran] = {}

    def end(ran: Ran) -> None:
        ended[ran.folder] = ran
        told(ran)

    todo = [one for one in planned if not one.unchanged]
    for one in planned:
        if one.unchanged:
            end(Ran(folder=one.folder, state="unchanged", result=Result.read(one.folder)))
    with ProcessPoolExecutor(
        max_workers=max(1, min(jobs, len(todo))),
        mp_context=get_context("spawn"),
        initializer=_alone,
    ) as pool:
        running: dict[Future[Ran], Planned] = {pool.submit(_run, one): one for one in todo}
        try:
            for future in as_completed(running):
                end(_outcome(future, running[future]))
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [ended[one.folder] for one in planned]


def _outcome(future: "Future[Ran]", planned: Planned) -> Ran:
    try:
        return future.result()
    except BrokenProcessPool:
        why = "a process was killed, perhaps for want of memory; do the rest with --jobs 1"
        return Ran(folder=planned.folder, state="failed", error=why)


def _run(planned: Planned) -> Ran:
    """Fit and write one run, in a process of its own."""
    try:
        fitted = _fitted(planned)
        fitted.result.write(planned.folder, fitted.predictions, fitted.arrays)
    except DinocacheError as exc:
        return Ran(folder=planned.folder, state="failed", error=str(exc))
    return Ran(folder=planned.folder, state="fitted", result=fitted.result)


def _fitted(planned: Planned) -> Any:  # noqa: ANN401 - of either sort
    if isinstance(planned.request, FitRequest):
        return fit(planned.request)
    if isinstance(planned.request, MapRequest):
        return map_fit.fit_maps(planned.request, planned.folder)
    return register.register(planned.request, planned.folder)


def _folder(request: Request) -> Path:
    if isinstance(request, FitRequest):
        return run_folder(request)
    return map_folder(request) if isinstance(request, MapRequest) else registration_folder(request)


def _inputs(request: Request) -> str:
    if isinstance(request, FitRequest):
        return inputs_of(request)
    if isinstance(request, MapRequest):
        return map_fit.inputs_of(request)
    return register.inputs_of(request)


def _alone() -> None:
    """Compute with one thread in this process: as many processes as cores share them out."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    from threadpoolctl import threadpool_limits  # comes with scikit-learn

    threadpool_limits(1)


def _is_there(folder: Path, request: Request) -> bool:
    if not (folder / "result.json").is_file():
        return False
    try:
        return Result.read(folder).inputs == _inputs(request)
    except DinocacheError:
        return False  # of another version: it is fitted again


def _stores(request: SweepRequest, name: str) -> Iterator[tuple[Folder, Folder | None]]:
    """Yield each store of a task, with the one that its heads are fitted on if that is another."""
    if request.targets is not None:
        dataset, train_on = name, None
    else:
        manifest, _, task = find_task(name)
        dataset, train_on = manifest.name, task.train_on
    asked: dict[str, Any] = {
        "models": request.models,
        "resolutions": request.resolutions,
        "variant": request.variant,
    }
    stores = stores_of(request.root, dataset, **asked)
    if not stores:
        raise StoreNotFoundError(
            f"there is no store of {dataset} under {request.root} by these encoders at these "
            "resolutions; `dinocache ls` lists the stores, `dinocache extract` makes one"
        )
    for store in stores:
        if train_on is None:
            yield store.folder, None
            continue
        other = find_task(train_on)[0].name
        trains = folder_of(request.root).within(f"{other}/{store.model}/{store.resolution}")
        if not trains.exists(HEADER):
            raise StoreNotFoundError(
                f"{name} tests heads that are fitted on {train_on}; there is no store {trains}"
            )
        yield store.folder, trains


def _combinations(request: SweepRequest, name: str) -> Iterator[dict[str, Any]]:
    """Yield what tells runs on one store apart."""
    own = "linear" if request.targets is not None else find_task(name)[2].head
    varied = [dict(zip(request.varied, v, strict=True)) for v in product(*request.varied.values())]
    for head in request.heads or (None,):
        if head is not None and head not in (known := [*HEADS, *DENSE_HEADS, *METHODS]):
            raise RequestError(f"--head {head!r}: choose from {', '.join(known)}")
        grid = request.settings.get(head or own, {})
        for values in product(*grid.values()):
            for one in varied:
                yield {**one, "head": head, "settings": dict(zip(grid, values, strict=True))}


def _request(
    request: SweepRequest,
    name: str,
    store: Folder,
    train_store: Folder | None,
    asked: Mapping[str, Any],
) -> Request:
    given = {k: v for k, v in {**request.fixed, **asked}.items() if v is not None}
    if request.targets is None:
        task = find_task(name)[2]
        if task.kind in ("segmentation", "instances", "registration"):
            return _of_maps(name, task, store, given)
        head = given.get("head", task.head)
    else:
        head = given.setdefault("head", "linear")
    if head in request.searches:
        given["grid"] = dict(request.searches[head])
    if request.targets is None:
        return task_request(name, store, train_store=train_store, **given)
    return FitRequest(store=store, targets=request.targets, **given)


def _of_maps(name: str, task: Task, store: Folder, given: dict[str, Any]) -> Request:
    """Put together a run of maps or pairs; refuse what is of items."""
    for field_name, usual in _OF_ITEMS.items():
        if given.pop(field_name, usual) != usual:
            raise RequestError(f"--{field_name}: {name} is a {task.kind}, which has no such thing")
    if task.kind != "registration":
        return map_request(name, store, **given)
    if given.pop("seeds", 1) != 1:
        raise RequestError(f"--seeds: {name} is a registration, which is done once")
    return registration_request(name, store, method=given.pop("head", None), **given)
