"""What keeps a run from being set beside the paper: where its set-up is not that of its task."""

import inspect
from collections.abc import Iterator
from functools import cache
from typing import Any

from dinocache.manifest import OFFICIAL, Folds, Manifest, Task, find_task, split_column
from probes.heads import DENSE_HEADS, HEADS
from probes.register_request import METHODS
from probes.runs import Result

__all__ = ["differences", "find", "is_unregistered"]

_PUBLISHERS = ({"cls"}, {"embed"})
"""Vectors that a task without features of its own takes, whatever the encoder calls them."""
_FEATURES_OF = {"voxelmorph": ("image",), "mind": ("mind",), "anatomix": ("dense",)}
"""Of what the paper calls by these names, where a task's own features are those of DINOv3."""

find = cache(find_task)


def is_unregistered(result: Result) -> bool:
    """Whether a run is of pairs as they are."""
    return result.head.name == "unregistered"


def differences(
    result: Result, manifest: Manifest, task: Task, *, stated: int | None, known: bool
) -> list[str]:
    """Say where a run's set-up differs from its task's, as far as result and manifest tell.

    Args:
        result: The run.
        manifest: Of the task.
        task: The run's.
        stated: The resolution that the paper states, px; None where it states none.
        known: Whether the paper has a row of the same encoder, or method.

    Returns:
        A phrase each; none of a run of the task as it stands, on the whole official release, with
        trained weights, by an encoder or a method that the paper has.
    """
    found = [f"random weights ({result.store.weights})"] if result.random_weights else []
    if not known:
        found.append(f"the paper prints nothing of this {_what(result)}")
    found += _of_split(result, manifest, task)
    found += _of_items(result, manifest, task)
    found += _of_head(result, task)
    found += _of_features(result, manifest, task)
    if result.is_of_encoder:
        found += _of_resolution(result, manifest, stated)
    return found


def _what(result: Result) -> str:
    return "encoder" if result.is_of_encoder else "method"


# Who trained, and who was tested


def _of_split(result: Result, manifest: Manifest, task: Task) -> Iterator[str]:
    split = result.split
    trained = find(task.train_on)[0].name if task.train_on else manifest.name
    tested = (result.test_store or result.store).dataset
    if (result.store.dataset, tested) != (trained, manifest.name):
        wanted = f"the task: {trained}, {manifest.name}"
        yield f"trained on {result.store.dataset}, tested on {tested} ({wanted})"
    if split.shots:
        yield f"trained on {split.shots} items a class"
    if split.fraction:
        yield f"trained on {split.fraction:g} of the groups"
    if task.rows:
        if split.protocol != "rows":
            yield f"other split ({split.said}, not ranges of rows)"
        return
    column = split_column(find(task.train_on)[2].split if task.train_on else task.split)
    if split.column != column:
        yield f"other split ({split.said}, not {column!r})"


def _of_items(result: Result, manifest: Manifest, task: Task) -> Iterator[str]:
    if task.rows:
        return  # each range of rows is counted as an item
    without_side = f"no value of {split_column(task.split)!r}"
    left_out = sum(why != without_side for why in result.left_out.values())
    if left_out:
        yield f"{left_out:,} items left out"
    if task.of == "row":
        groups = manifest.expect.get("groups")
        if groups is not None and result.groups < groups:
            yield f"{result.groups:,} of {groups:,} groups"
        return
    pairs = 2 if task.pairs is not None else 1
    whole = _expected(manifest, task, "test")
    tested = round(result.split.n_test * _rounds(result, manifest, task))
    if whole is not None:
        if tested != whole // pairs:
            what = "pairs" if task.pairs else "items"
            yield f"{tested:,} {what} tested, the official release has {whole // pairs:,}"
    elif not task.train_on and (items := manifest.expect.get("items")) is not None:
        took_part = result.items * pairs + len(result.left_out)
        if took_part < items:
            yield f"{took_part:,} items, the official release has {items:,}"
    trained = _expected(manifest, task, "train")
    learned = round(result.split.n_train + result.split.n_val)
    if trained is not None and learned < trained and task.kind != "registration":
        yield f"trained on {learned:,} items, the official release has {trained:,}"


def _expected(manifest: Manifest, task: Task, side: str) -> int | None:
    """Count the items of a side in the official release, where the manifest says."""
    if task.train_on and side == "train":
        return None
    column, rule = split_column(task.split), manifest.splits.get(task.split)
    names = [f"{column}={side}"]
    if column == "split" or getattr(rule, "base", None) == OFFICIAL:
        names.append(side)
    elif isinstance(rule, Folds) and not rule.base and side == "test":
        names.append("items")
    return next((manifest.expect[name] for name in names if name in manifest.expect), None)


def _rounds(result: Result, manifest: Manifest, task: Task) -> int:
    """Say in how many parts the items were tested; folds that choose test the same ones."""
    rule = manifest.splits.get(task.split)
    chooses = isinstance(rule, Folds) and bool(rule.base)
    same = result.split.protocol == "column" and chooses
    return 1 if same or result.test_store is not None else result.split.folds or 1


# What was learned, from what


def _of_head(result: Result, task: Task) -> Iterator[str]:
    name = result.head.name
    if name != task.head:
        # The paper has rows of these, too, beside the head of the task.
        if name not in ("unregistered", "voxelmorph"):
            yield f"head {name}, not the paper's ({task.head})"
    elif len(result.seeds) < task.seeds:
        yield f"{len(result.seeds)} of {task.seeds} seeds"
    usual = _defaults(name) | (task.settings if name == task.head else {})
    searched = result.head.search.grid if result.head.search else {}
    # Neurons are joined at several thresholds in any case.
    chosen = [key for key in searched if key not in task.search and task.kind != "instances"]
    if chosen:
        yield f"{', '.join(chosen)} chosen by validation items"
    other = {
        key: value
        for key, value in result.head.settings.items()
        if key in usual and key not in {*searched, *task.search} and value != usual[key]
    }
    if other and name in (task.head, "voxelmorph"):
        yield "settings " + ", ".join(
            f"{key}={value} (usually {usual[key]})" for key, value in other.items()
        )
    if result.pool in ("max", "mean+std"):
        yield f"pool {result.pool}"
    if result.present_only != task.present_only and task.kind == "segmentation":
        yield "means over other labels (--present-only)"
    if result.task.labels != task.labels and task.labels:
        yield "other labels"
    if task.targets and result.task.targets != task.targets:
        yield f"{len(result.task.targets)} of {len(task.targets)} targets"


@cache
def _defaults(name: str) -> dict[str, Any]:
    kinds: dict[str, type] = {**HEADS, **DENSE_HEADS, **METHODS}
    if name not in kinds:
        return {}
    found = inspect.signature(kinds[name]).parameters.values()
    return {p.name: p.default for p in found if p.name != "seed" and p.default is not p.empty}


def _of_features(result: Result, manifest: Manifest, task: Task) -> Iterator[str]:
    if is_unregistered(result):
        return
    ours = set(result.features)
    wanted: tuple[str, ...] = _FEATURES_OF.get(_method(result), task.features)
    if wanted and ours != set(wanted):
        yield f"features {'+'.join(result.features)}, not {'+'.join(wanted)}"
    elif not wanted and ours not in _PUBLISHERS:
        yield f"features {'+'.join(result.features)}, not the encoder's own vector"
    if result.store.variant:
        yield f"a store of the variant {result.store.variant}"
    options = result.store.recipe.get("reader", {}).get("options", {})
    for key, value in manifest.extract.options.items():
        if key in options and options[key] != value:
            yield f"read with {key}={options[key]} (the manifest: {value})"
    if any(note.startswith("distances are in voxels") for note in result.notes) and (
        task.pairs is not None and task.pairs.distances == "mm"
    ):
        yield "distances in voxels"


def _method(result: Result) -> str:
    if result.head.name == "voxelmorph":
        return "voxelmorph"
    return result.store.model if result.is_of_encoder else "mind"


def _of_resolution(result: Result, manifest: Manifest, stated: int | None) -> Iterator[str]:
    ours, usual = result.store.resolution, str(manifest.extract.resolutions[0])
    if stated is not None:
        if ours != str(stated):
            yield f"resolution {ours}, the paper's is {stated}"
    elif ours != usual:
        yield f"resolution {ours}; the paper states none, {usual} stands for it"
