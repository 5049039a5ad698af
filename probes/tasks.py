"""Tasks of manifests: what one asks of `probe fit` by the name DATASET/TASK."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dinocache.errors import RequestError, StoreNotFoundError
from dinocache.layout import HEADER
from dinocache.manifest import (
    Folds,
    Manifest,
    Task,
    find_task,
    load_manifest,
    shipped_manifests,
    split_column,
)
from dinocache.recipe import model_folder
from dinocache.store import FeatureStore
from probes.fit import FitRequest
from probes.heads import HEADS, Setting

__all__ = ["list_tasks", "store_of", "task_request"]

_CLASSIFIES = ("binary", "multiclass", "multilabel")


def list_tasks(dataset: str | None) -> list[dict[str, Any]]:
    """List the tasks of a dataset, or of all that are shipped.

    Args:
        dataset: Its name, or the path of a manifest.

    Returns:
        `task` (DATASET/TASK) and all that the manifest says of it, each as JSON.

    Raises:
        RequestError: If there is no such dataset.
    """
    shipped = shipped_manifests()
    if dataset is None:
        paths = list(shipped.values())
    elif dataset in shipped or dataset.endswith((".yaml", ".yml")):
        paths = [shipped.get(dataset, Path(dataset))]
    else:
        raise RequestError(f"there is no dataset {dataset!r}; `probe tasks` lists all tasks")
    manifests = [load_manifest(path) for path in paths]
    return [
        {"task": f"{m.name}/{name}", **task.model_dump(mode="json")}
        for m in manifests
        for name, task in m.tasks.items()
    ]


def store_of(root: Path, dataset: str, *, model: str, resolution: str | None, variant: str) -> Path:
    """Find the store of a dataset.

    Args:
        root: Of stores.
        dataset: Its name.
        model: The encoder's.
        resolution: `256` or `512x640`; None takes the only one there is.
        variant: Of the store.

    Returns:
        Its folder.

    Raises:
        StoreNotFoundError: If there is none, and which there are.
        RequestError: If there are several, and none was named.
    """
    folder = root / dataset / model_folder(model)
    ending = f"-{variant}" if variant else ""
    if resolution is not None:
        path = folder / f"{resolution}{ending}"
        if (path / HEADER).exists():
            return path
    there = sorted(h.parent for h in (root / dataset).glob(f"*/*/{HEADER}"))
    fitting = [p for p in there if p.parent == folder and ("-" in p.name) == bool(variant)]
    if resolution is None and len(fitting) == 1:
        return fitting[0]
    listed = ", ".join(f"{p.parent.name} at {p.name}" for p in there) or "none of it"
    if resolution is None and fitting:
        raise RequestError(f"--resolution: there are several stores of {dataset}: {listed}")
    raise StoreNotFoundError(
        f"there is no store of {dataset} by {model}{f' at {resolution}' if resolution else ''} "
        f"under {root} (there is: {listed}); `dinocache extract {dataset} --model {model}` makes it"
    )


def task_request(
    named: str,
    store: Path,
    *,
    head: str | None,
    features: Sequence[str] | None,
    settings: Mapping[str, Setting],
    seeds: int | None,
    replicates: int,
) -> FitRequest:
    """Put together what a task asks for; what a person says goes first.

    Args:
        named: DATASET/TASK.
        store: Of that dataset.
        head: In place of the task's.
        features: Likewise.
        settings: Of the head, beside the task's if the head is the task's.
        seeds: In place of the task's.
        replicates: Of the bootstrap.

    Returns:
        The request.

    Raises:
        RequestError: If there is no such task, or its head or kind is not there yet.
        StoreError: If the store cannot be read.
    """
    manifest, name, task = find_task(named)
    chosen = head or task.head
    if task.kind not in _CLASSIFIES:
        raise RequestError(f"{named} is a {task.kind}; `probe fit` classifies so far")
    if chosen not in HEADS:
        raise RequestError(
            f"{named} wants the head {chosen!r}; there are {', '.join(HEADS)} so far"
        )
    if task.train_on:
        raise RequestError(f"{named} tests heads that were fitted on {task.train_on}; fit that")
    column = split_column(task.split)
    columns = FeatureStore(store).items.columns
    if lacking := [c for c in (column, *task.targets) if c not in columns]:
        raise RequestError(
            f"the items of {store} have no column {lacking[0]!r}: the store is older than the "
            f"manifest. `dinocache relabel {store} {_named(manifest, named)} --data DIR` adds it"
        )
    own = task.settings if chosen == task.head else {}
    return FitRequest(
        store=store,
        task=f"{manifest.name}/{name}",
        targets=task.targets,
        of=task.of,
        head=chosen,
        features=tuple(features) if features else task.features or None,
        settings={**own, **settings},
        positive=task.positive,
        split=column,
        validation=_validation(manifest, task),
        seeds=seeds or task.seeds,
        drop_missing=True,
        replicates=replicates,
    )


def _named(manifest: Manifest, named: str) -> str:
    return manifest.name if manifest.name in shipped_manifests() else named.rpartition("/")[0]


def _validation(manifest: Manifest, task: Task) -> float | None:
    rule = manifest.splits.get(task.split)
    return rule.validation if isinstance(rule, Folds) else None
