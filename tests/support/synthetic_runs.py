"""Run folders of made-up figures, in the form that `probe fit` writes, of many tasks at once."""

from pathlib import Path

import numpy as np
import pandas as pd

from dinocache.manifest import Folds, find_task, split_column
from probes.runs import Estimate, HeadFacts, Result, SplitFacts, StoreOrigin, TaskFacts

__all__ = ["estimate", "write_synthetic_run", "write_synthetic_runs"]

TASKS = {
    "nih14/findings": ("linear", "knn"),
    "rsna-pneumonia/pneumonia": ("linear", "knn"),
    "camelyon16/tumour": ("abmil",),
    "camelyon17/unseen": ("abmil",),
    "kvasir-capsule/official": ("linear", "xgboost"),
    "bcnb/aln": ("abmil",),
    "bcnb/er": ("abmil",),
    "bcnb/pr": ("abmil",),
    "edd2020/diseases": ("decoder2d",),
    "msd-task04/segmentation": ("decoder3d",),
    "acdc/ed-es": ("convexadam",),
    "cremi-a/neurons": ("affinity",),
}


def estimate(value: float, half: float = 0.03) -> Estimate:
    return Estimate(
        value=value,
        low=value - half,
        high=value + 1.5 * half,
        level=0.95,
        defined=1000,
        replicates=1000,
        sd_seeds=0.004,
        sd_folds=None,
    )


def write_synthetic_run(
    folder: Path,
    named: str,
    *,
    model: str = "dinov3-s",
    resolution: str = "256",
    head: str | None = None,
    random: bool = False,
    seeds: int | None = None,
    settings: dict[str, int | float] | None = None,
    draw: int = 0,
    **changes: object,
) -> Result:
    """Write a run of a shipped task whose figures are made up.

    Args:
        folder: Of the run.
        named: DATASET/TASK.
        model: Of the store.
        resolution: Of the store.
        head: None takes the task's.
        random: Whether the encoder's weights were random.
        seeds: None takes the task's.
        settings: Of the head.
        draw: Seed of what is made up.
        **changes: Fields of the result in place of ours.

    Returns:
        The result.
    """
    rng = np.random.default_rng(draw)
    manifest, _, task = find_task(named)
    maps = task.kind in ("segmentation", "instances", "registration")
    classes = tuple(task.labels.values()) if maps else task.targets
    if task.kind == "binary":
        classes = ("positive",)
    if task.kind == "multiclass":
        classes = tuple("abcdefghijk")
    metrics = {name: estimate(float(rng.uniform(0.5, 0.9))) for name in task.metrics}
    store = StoreOrigin(
        dataset=manifest.name,
        model=model,
        resolution=resolution,
        variant="",
        digest=f"{named}{model}{resolution}",
        weights="random:0" if random else "hub:made-up",
        random_weights=random,
        items_table="items",
    )
    column = split_column(task.split)
    folds = 5 if isinstance(manifest.splits.get(task.split), Folds) else None
    sides = {
        side: manifest.expect.get(f"{column}={side}") or manifest.expect.get(side)
        for side in ("train", "test")
    }
    whole = sides["test"] or manifest.expect.get("items", 40) / (folds or 1)
    if task.pairs is not None:
        whole /= 2
    facts: dict[str, object] = {
        "inputs": "made-up",
        "task": TaskFacts(
            name=named,
            targets=task.targets or ("mask",),
            kind=task.kind,
            classes=classes,
            labels=task.labels,
        ),
        "head": HeadFacts(name=head or task.head, settings=settings or {"made_up": 1}),
        "features": task.features or ("cls",),
        "pool": "maps" if maps else "mean",
        "store": store,
        "split": SplitFacts(
            protocol="rows" if task.rows else "column",
            column=None if task.rows else column,
            folds=folds,
            digest="made-up",
            n_train=sides["train"] or 70,
            n_test=1 if task.rows else whole,
        ),
        "seeds": tuple(range(seeds or task.seeds)),
        "items": round(manifest.expect.get("items", whole) / (2 if task.pairs else 1)),
        "groups": manifest.expect.get("groups", 23),
        "present_only": task.present_only,
        "left_out": {},
        "metrics": metrics,
        "per_class": {
            name: {metric: estimate(float(rng.uniform(0.4, 0.95))) for metric in task.metrics[:2]}
            for name in classes
        }
        if len(classes) > 1
        else {},
        "subgroups": {},
        "delong": {},
        "auc_skipped": (),
        "curve": tuple({"k": k, "auc": float(rng.uniform(0.5, 0.9))} for k in (1, 5, 20))
        if head == "knn"
        else None,
        "versions": {"made-up": "1"},
    } | changes
    result = Result.model_validate(facts)
    table = _maps(rng, result) if maps else _scores(rng, result)
    result.write(folder, table, {"made_up": np.zeros(3, np.float32)})
    return result


def _scores(rng: np.random.Generator, result: Result, n: int = 40) -> pd.DataFrame:
    classes, kind = result.task.classes, result.task.kind
    truth = (rng.random((n, len(classes))) < 0.4).astype(np.int8)
    truth[0], truth[1] = 0, 1
    if kind == "multiclass":
        truth = np.eye(len(classes), dtype=np.int8)[rng.integers(0, len(classes), n)]
    parts = []
    for seed in result.seeds:
        scores = np.clip(0.5 * truth + 0.6 * rng.random(truth.shape), 0, 1).astype(np.float32)
        if kind == "multiclass":
            scores /= scores.sum(1, keepdims=True)
        columns: dict[str, object] = {
            "item_id": [f"item-{i:02d}" for i in range(n)],
            "group": [f"group-{i % 23}" for i in range(n)],
            "seed": seed,
            "fold": 0,
        }
        columns |= {f"truth.{c}": truth[:, i] for i, c in enumerate(classes)}
        columns |= {f"score.{c}": scores[:, i] for i, c in enumerate(classes)}
        parts.append(pd.DataFrame(columns))
    return pd.concat(parts, ignore_index=True)


def _maps(rng: np.random.Generator, result: Result, n: int = 7) -> pd.DataFrame:
    endings = [*(f".{name}" for name in result.task.classes), ""]
    rows = []
    for i in range(n):
        row: dict[str, object] = {
            "item_id": f"item-{i}",
            "group": f"group-{i}",
            "seed": 0,
            "fold": 0,
            "start": 0,
            "stop": 5,
        }
        if result.task.kind == "instances":
            row |= {metric: float(rng.uniform(0.5, 3)) for metric in result.metrics}
        else:
            for ending in endings:
                row |= {
                    f"{cell}{ending}": int(rng.integers(5, 90)) for cell in ("tp", "fp", "fn", "tn")
                }
            for metric in result.metrics:
                row |= {f"{metric}{ending}": float(rng.uniform(0.5, 9)) for ending in endings}
        rows.append(row)
    return pd.DataFrame(rows)


def write_synthetic_runs(root: Path, count: int) -> None:
    """Write so many runs: tasks by encoders by resolutions by heads, some with random weights."""
    made = 0
    while made < count:
        for model in ("dinov3-s", "dinov3-b", "dinov3-l", "uni"):
            for resolution in ("256", "512", "1024"):
                for named, heads in TASKS.items():
                    for head in heads:
                        if made == count:
                            return
                        name = f"{named}/{model}-{resolution}-{head}-{made}"
                        write_synthetic_run(
                            root / name,
                            named,
                            model=model,
                            resolution=resolution,
                            head=head,
                            random=(model, resolution) == ("dinov3-b", "1024"),
                            settings={"made_up": made // 180},
                            draw=made,
                        )
                        made += 1
