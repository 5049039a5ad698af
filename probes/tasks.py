"""Tasks of manifests: what one asks of `probe fit` by the name DATASET/TASK."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dinocache.errors import RequestError, StoreNotFoundError
from dinocache.folders import Folder
from dinocache.manifest import (
    Folds,
    Manifest,
    SplitRule,
    Task,
    find_task,
    load_manifest,
    shipped_manifests,
    split_column,
)
from dinocache.places import Where
from dinocache.recipe import model_folder
from dinocache.roots import Place, find_stores
from dinocache.store import FeatureStore
from probes.heads import DENSE_HEADS, HEADS
from probes.map_request import MapRequest
from probes.register_request import RegisterRequest
from probes.request import FitRequest, TestOn

__all__ = [
    "list_tasks",
    "map_request",
    "registration_request",
    "store_of",
    "stores_of",
    "task_request",
    "test_target",
]

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


def store_of(
    root: Where, dataset: str, *, model: str, resolution: str | None, variant: str
) -> Folder:
    """Find the store of a dataset.

    Args:
        root: Of stores: a path or a URL.
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
    sides = None if resolution is None else [resolution]
    fitting = stores_of(root, dataset, models=[model], resolutions=sides, variant=variant)
    if len(fitting) == 1:
        return fitting[0].folder
    listed = ", ".join(f"{p.model} at {p.resolution}" for p in find_stores(root, dataset))
    if fitting:
        raise RequestError(f"--resolution: there are several stores of {dataset}: {listed}")
    raise StoreNotFoundError(
        f"there is no store of {dataset} by {model}{f' at {resolution}' if resolution else ''} "
        f"under {root} (there is: {listed or 'none of it'}); "
        f"`dinocache extract {dataset} --model {model}` makes it"
    )


def stores_of(
    root: Where,
    dataset: str,
    *,
    models: Sequence[str] | None = None,
    resolutions: Sequence[str] | None = None,
    variant: str = "",
) -> list[Place]:
    """Find the stores of a dataset.

    Args:
        root: Of stores: a path or a URL.
        dataset: Its name.
        models: Of these encoders; None for all.
        resolutions: At these; None for all.
        variant: Of this variant.

    Returns:
        Where they lie, in order of names, resolutions by size.
    """
    folders = None if models is None else [model_folder(model) for model in models]
    return [
        place
        for place in find_stores(root, dataset)
        if (folders is None or place.model in folders)
        and (resolutions is None or place.size in resolutions)
        and place.variant == variant
    ]


def task_request(
    named: str,
    store: Where,
    *,
    train_store: Where | None = None,
    **asked: Any,  # noqa: ANN401 - whatever FitRequest takes
) -> FitRequest:
    """Put together what a task asks for; what a person says goes first.

    Args:
        named: DATASET/TASK.
        store: Of that dataset.
        train_store: Of the dataset that its heads are fitted on, where the task names one.
        **asked: Fields of `FitRequest` in place of the task's; None takes the task's.

    Returns:
        The request.

    Raises:
        RequestError: If there is no such task, or its head or kind is not there yet.
        StoreError: If a store cannot be read.
    """
    manifest, name, task = find_task(named)
    said = {key: value for key, value in asked.items() if value is not None}
    head = str(said.get("head", task.head))
    _check_can(named, task, head)
    _check_columns(store, manifest, named, (split_column(task.split), *task.targets))
    own = task.settings if head == task.head else {}
    trains, rule, test_on = task, _rule(manifest, task), None
    if task.train_on:
        _, _, trains = find_task(task.train_on)
        rule = _rule(find_task(task.train_on)[0], trains)
        if train_store is None:
            raise RequestError(f"{named} tests heads that are fitted on {task.train_on}")
        test_on = TestOn(
            store=store,
            targets=task.targets,
            positive=task.positive,
            split=split_column(task.split),
        )
        store = train_store
    whole: dict[str, Any] = {
        "task": f"{manifest.name}/{name}",
        "targets": trains.targets,
        "of": task.of,
        "features": task.features or None,
        "positive": trains.positive,
        "split": None if said.get("folds") else split_column(trains.split),
        "validation": rule.validation if isinstance(rule, Folds) else None,
        "test_on": test_on,
        "seeds": task.seeds,
        "drop_missing": True,
        "metrics": task.metrics,
    }
    whole |= said
    whole |= {"head": head, "settings": {**own, **said.get("settings", {})}}
    return FitRequest(store=store, **whole)


def map_request(named: str, store: Where, **asked: Any) -> MapRequest:  # noqa: ANN401
    """Put together what a task of maps asks for; what a person says goes first.

    Args:
        named: DATASET/TASK.
        store: Of that dataset.
        **asked: Fields of `MapRequest` in place of the task's; None takes the task's.

    Returns:
        The request.

    Raises:
        RequestError: If there is no such task, or its head is not there yet.
        StoreError: If the store cannot be read.
    """
    manifest, name, task = find_task(named)
    said = {key: value for key, value in asked.items() if value is not None}
    head = str(said.get("head", task.head))
    if task.kind == "registration":
        raise RequestError(f"{named} is a registration: `probe register {named}` does it")
    if head not in DENSE_HEADS:
        raise RequestError(
            f"{named} wants the head {head!r}; of maps there are {', '.join(DENSE_HEADS)} so far"
        )
    rule = _rule(manifest, task)
    column = split_column(task.split)
    splits = not task.rows and (bool(manifest.splits) or task.split == "official")
    _check_columns(store, manifest, named, (column,) if splits else ())
    rows = {side: of if isinstance(of, dict) else {"": of} for side, of in task.rows.items()}
    whole: dict[str, Any] = {
        "task": f"{manifest.name}/{name}",
        "labels": task.labels,
        "kind": task.kind,
        "features": task.features or ("dense",),
        "split": column if splits else None,
        "rows": rows,
        "present_only": task.present_only,
        "validation": rule.validation if isinstance(rule, Folds) else None,
        "seeds": task.seeds,
        "metrics": task.metrics,
    }
    whole |= said
    whole |= {
        "head": head,
        "settings": {
            **(task.settings if head == task.head else {}),
            **said.get("settings", {}),
        },
    }
    return MapRequest(store=store, **whole)


def registration_request(named: str, store: Where, **asked: Any) -> RegisterRequest:  # noqa: ANN401
    """Put together what a task of registration asks for; what a person says goes first.

    Args:
        named: DATASET/TASK.
        store: Of that dataset.
        **asked: Fields of `RegisterRequest` in place of the task's; None takes the task's.

    Returns:
        The request.

    Raises:
        RequestError: If there is no such task, or it is none of registration.
        StoreError: If the store cannot be read.
    """
    manifest, name, task = find_task(named)
    if task.pairs is None:
        raise RequestError(f"{named} is of the kind {task.kind}: `probe fit {named}` does it")
    said = {key: value for key, value in asked.items() if value is not None}
    dealt_anew = said.get("everything") or said.get("folds") or said.get("split")
    column = None if dealt_anew else split_column(task.split)
    wanted = (task.pairs.by, task.pairs.role, *(() if column is None else (column,)))
    _check_columns(store, manifest, named, wanted)
    method = said.get("method", task.head)
    given = {**said.get("settings", {}), **said.get("grid", {})}
    usual = task.settings if method == task.head else {}
    tried = task.search if method == task.head and not said.get("everything") else {}
    features = task.features
    if method == "voxelmorph":
        features = tuple(kind for kind in features if kind != "mind")
    whole: dict[str, Any] = {
        "task": f"{manifest.name}/{name}",
        "pairs": task.pairs,
        "labels": task.labels,
        "method": method,
        "features": features or ("dense",),
        "split": column,
        "metrics": (*task.metrics, "folding", "log_jacobian_sd"),
    }
    whole |= said
    whole |= {
        "settings": {k: v for k, v in usual.items() if k not in given} | said.get("settings", {}),
        "grid": {k: v for k, v in tried.items() if k not in given} | said.get("grid", {}),
    }
    return RegisterRequest(store=store, **whole)


def test_target(named: str, store: Where) -> TestOn:
    """Say what of a task is tested by heads that are fitted on other items.

    Args:
        named: DATASET/TASK.
        store: Of that dataset.

    Returns:
        The side `test` of the task's split, or all items where the split has no such side.

    Raises:
        RequestError: If there is no such task.
        StoreError: If the store cannot be read.
    """
    _, _, task = find_task(named)
    column = split_column(task.split)
    items = FeatureStore(store).items
    sided = column in items and items[column].isin(["test", "testing"]).any()
    return TestOn(
        store=store,
        targets=task.targets,
        positive=task.positive,
        split=column if sided else None,
    )


def _check_can(named: str, task: Task, head: str) -> None:
    if task.kind not in _CLASSIFIES:
        raise RequestError(f"{named} is a {task.kind}, not a classification")
    if head not in HEADS:
        raise RequestError(f"{named} wants the head {head!r}; there are {', '.join(HEADS)} so far")


def _check_columns(store: Where, manifest: Manifest, named: str, wanted: Sequence[str]) -> None:
    columns = FeatureStore(store).items.columns
    if lacking := [column for column in wanted if column not in columns]:
        raise RequestError(
            f"the items of {store} have no column {lacking[0]!r}: the store is older than the "
            f"manifest. `dinocache relabel {store} {_named(manifest, named)} --data DIR` adds it"
        )


def _rule(manifest: Manifest, task: Task) -> SplitRule | None:
    return manifest.splits.get(task.split)


def _named(manifest: Manifest, named: str) -> str:
    return manifest.name if manifest.name in shipped_manifests() else named.rpartition("/")[0]
