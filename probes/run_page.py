"""What a report shows of one run besides its figures: curves, spread, its worst items, pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from dinocache.errors import DinocacheError, ProbeError, StoreError, StoreNotFoundError
from dinocache.layout import HEADER
from dinocache.places import Where, folder_of
from dinocache.roots import find_stores
from dinocache.store import FeatureStore
from probes.attention import read_thumbnail
from probes.charts import Kind
from probes.compared import ComparedRun, ScoredRun, compared
from probes.features import open_store, row_picture
from probes.metrics.names import needed_thresholds
from probes.pictures import webp_of_array, webp_of_png
from probes.places import safe_name
from probes.runs import Result, read_predictions

__all__ = ["Figure", "Picture", "RunPage", "WorstItem", "run_page", "stores_at_hand"]

_POINTS = 48
"""Of a curve; more cannot be told apart at the size it is drawn."""
_BINS = 10
"""Of a reliability diagram."""
_CURVES = 8
"""Beyond so many classes a curve of each is unreadable: the best and the worst are shown."""
_WORST = 6
_PICTURES = 6
_THUMB_PX = 112
_OVERLAY_PX = 320
_SORTS = {
    "overlays": "truth (solid) and prediction (dashed)",
    "warps": "source, target, and the warped source",
    "components": "principal components of patch features, and the foreground",
    "attention": "weights of the tiles over the slide",
}
"""Folders of pictures in a run's, and what they show."""
_PICTURE_PX = 900


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One chart: its kind, what stands above and below it, its rows."""

    kind: Kind
    title: str
    caption: str
    rows: Sequence[Mapping[str, Any]] = field(hash=False)
    metric: str = ""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture in a page.

    Attributes:
        caption: What it shows.
        content: WebP.
    """

    caption: str
    content: bytes = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class WorstItem:
    """An item that a run got most wrong: what it is, what was said of it, and its picture."""

    item_id: str
    truth: str
    said: str
    loss: float
    thumbnail: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, kw_only=True)
class RunPage:
    """What is shown of a run.

    Attributes:
        figures: Charts.
        worst: Items, the worst first.
        loss: What they are ordered by.
        pictures: That stand in its folder.
        remarks: What cannot be shown, and why.
    """

    figures: tuple[Figure, ...] = ()
    worst: tuple[WorstItem, ...] = ()
    loss: str = ""
    pictures: tuple[Picture, ...] = ()
    remarks: tuple[str, ...] = ()


def run_page(folder: Path, result: Result, stores: Mapping[str, FeatureStore]) -> RunPage:
    """Look at a run.

    Args:
        folder: Of the run.
        result: What it found.
        stores: Digest of the recipe and dataset -> store, for thumbnails; see `stores_at_hand`.

    Returns:
        What can be shown; predictions that cannot be read are a remark.
    """
    shown = _pictures(folder)
    try:
        table = read_predictions(folder)
        run = compared(folder, result, table)
    except ProbeError as exc:
        return RunPage(pictures=shown, remarks=(str(exc),))
    figures = [*_classes(result), *_k_curve(result)]
    if isinstance(run, ScoredRun):
        truth, scores, ids = _pooled(run)
        figures = [*_scored_figures(result, truth, scores), *figures]
        worst, loss = _worst_scored(result, truth, scores, ids), "distance of the scores from truth"
    else:
        worst, loss = _worst_cases(table)
    figures += _spread(folder.name, run)
    store = stores.get(_key(result))
    worst = [_with_picture(one, folder) for one in worst]
    if store is not None:
        by_row = result.task.of == "row"
        worst = [one if one.thumbnail else _with_thumbnail(one, store, by_row) for one in worst]
    return RunPage(
        figures=tuple(figures),
        worst=tuple(worst),
        loss=loss,
        pictures=shown,
    )


def stores_at_hand(root: Where | None, results: Mapping[str, Result]) -> dict[str, FeatureStore]:
    """Find the stores whose items runs were tested on.

    Args:
        root: Of stores, or a store: a path or a URL; None finds none.
        results: Folder -> result.

    Returns:
        Dataset and digest of the recipe -> store.

    Raises:
        StoreError: If there is none of any run.
    """
    if root is None:
        return {}
    wanted = {_key(result) for result in results.values()}
    datasets = sorted({(r.test_store or r.store).dataset for r in results.values()})
    places: list[Where] = [root] if folder_of(root).exists(HEADER) else []
    # Names come from files of runs: none may lead out of the root.
    named = [name for name in datasets if "/" not in name and not name.startswith(".")]
    places = places or [place.folder for name in named for place in find_stores(root, name)]
    found: dict[str, FeatureStore] = {}
    for place in places:
        try:
            store = open_store(place)
            found[f"{store.header.dataset}/{store.header.digest}"] = store
        except StoreError:
            continue  # a damaged one that maybe no run is of
    if not wanted & set(found):
        raise StoreNotFoundError(
            f"no run was tested on a store under {root}; `dinocache ls {root}` lists what is there"
        )
    return {key: store for key, store in found.items() if key in wanted}


def _key(result: Result) -> str:
    store = result.test_store or result.store
    return f"{store.dataset}/{store.digest}"


# Classifications


def _pooled(
    run: ScoredRun,
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float64], npt.NDArray[np.str_]]:
    """Put the folds together: truth, mean scores over seeds, ids; an item may stand twice."""
    scores = [np.mean(run.scores[fold], axis=0, dtype=np.float64) for fold in run.ids]
    truth = [run.truth[fold] for fold in run.ids]
    return np.concatenate(truth), np.concatenate(scores), np.concatenate(list(run.ids.values()))


def _scored_figures(
    result: Result, truth: npt.NDArray[np.int8], scores: npt.NDArray[np.float64]
) -> list[Figure]:
    from sklearn.calibration import calibration_curve
    from sklearn.metrics import precision_recall_curve, roc_curve

    classes = result.task.classes
    both = [n for n in range(truth.shape[1]) if 0 < truth[:, n].sum() < len(truth)]
    left_out = ""
    if len(both) > _CURVES:
        by_auc = sorted(both, key=lambda n: -_auc(result, classes[n]))
        kept = {*by_auc[: _CURVES // 2], *by_auc[-(_CURVES // 2) :]}
        left_out = f" The {_CURVES // 2} best and worst of {len(both)} classes by AUC."
        both = [n for n in both if n in kept]
    if not both:
        return []
    pooled = "Scores are means over seeds, test items of all folds together." + left_out
    rocs, prs, calibrated = [], [], []
    for n in both:
        name = classes[n] if n < len(classes) else str(n)
        x, y, _ = roc_curve(truth[:, n], scores[:, n])
        rocs.append({"curve": name, **_thinned(x, y)})
        y, x, _ = precision_recall_curve(truth[:, n], scores[:, n])
        prs.append({"curve": name, **_thinned(x[::-1], y[::-1])})
        part = np.clip(scores[:, n], 0, 1)
        y, x = calibration_curve(truth[:, n], part, n_bins=_BINS)
        # As scikit-learn bins: what lies on an edge belongs below it.
        bins = np.searchsorted(np.linspace(0, 1, _BINS + 1)[1:-1], part)
        n_items = [int(count) for count in np.bincount(bins) if count]
        calibrated.append({"curve": name, "x": _short(x), "y": _short(y), "n": n_items})
    figures = [
        Figure(kind="roc", title="ROC", caption=pooled, rows=rocs),
        Figure(kind="pr", title="Precision and recall", caption=pooled, rows=prs),
        Figure(
            kind="reliability",
            title="Reliability",
            caption=f"{_BINS} bins; on the dashed line scores are probabilities. {pooled}",
            rows=calibrated,
        ),
    ]
    return [*figures, *_confusion(result, truth, scores)]


def _auc(result: Result, name: str) -> float:
    found = result.per_class.get(name, {}).get("auc")
    return 0.0 if found is None or found.value is None else found.value


def _thinned(x: npt.NDArray[Any], y: npt.NDArray[Any]) -> dict[str, list[float]]:
    """Keep points that are evenly spaced along a curve, with both its ends."""
    if len(x) > _POINTS:
        way = np.concatenate([[0], np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y)))])
        at = np.searchsorted(way, np.linspace(0, way[-1], _POINTS)).clip(0, len(x) - 1)
        at = np.unique(np.concatenate([[0], at, [len(x) - 1]]))
        x, y = x[at], y[at]
    return {"x": _short(x), "y": _short(y)}


def _short(values: npt.NDArray[Any]) -> list[float]:
    return [round(float(value), 3) for value in values]


def _confusion(
    result: Result, truth: npt.NDArray[np.int8], scores: npt.NDArray[np.float64]
) -> list[Figure]:
    kind = result.task.kind
    if kind == "multilabel":
        return []
    names: tuple[str, ...] = result.task.classes
    if kind == "binary":
        names = (result.task.classes[0], "other")
        told, true = np.where(scores[:, 0] >= 0.5, 0, 1), 1 - truth[:, 0]
    else:
        told, true = scores.argmax(1), truth.argmax(1)
    counts = np.zeros((len(names), len(names)), np.int64)
    np.add.at(counts, (true, told), 1)
    rows = [
        {
            "truth": names[i],
            "predicted": names[j],
            "n": int(counts[i, j]),
            "share": round(float(counts[i, j] / max(counts[i].sum(), 1)), 4),
        }
        for i in range(len(names))
        for j in range(len(names))
    ]
    rule = "the threshold 0.5" if kind == "binary" else "the highest score"
    caption = f"Test items of all folds by {rule}; colours are shares of the true class."
    return [Figure(kind="confusion", title="Confusion", caption=caption, rows=rows)]


def _worst_scored(
    result: Result,
    truth: npt.NDArray[np.int8],
    scores: npt.NDArray[np.float64],
    ids: npt.NDArray[np.str_],
) -> list[WorstItem]:
    names = result.task.classes
    if result.task.kind == "multiclass":
        losses = 1 - (scores * truth).sum(1)
    else:
        losses = np.abs(scores - truth).mean(1)

    def told(values: npt.NDArray[Any], at: int) -> str:
        if result.task.kind == "multiclass":
            best = int(values[at].argmax())
            return f"{names[best]} ({values[at, best]:.2f})"
        return ", ".join(f"{n} {v:.2f}" for n, v in zip(names, values[at], strict=False))

    def true(at: int) -> str:
        return ", ".join(n for n, v in zip(names, truth[at], strict=False) if v) or "none"

    worst = np.argsort(-losses, kind="stable")
    firsts = pd.unique(pd.Series(ids[worst]))[:_WORST]
    places = [int(worst[np.flatnonzero(ids[worst] == item)[0]]) for item in firsts]
    return [
        WorstItem(
            item_id=str(ids[at]), truth=true(at), said=told(scores, at), loss=float(losses[at])
        )
        for at in places
    ]


# Maps and pairs


def _worst_cases(table: pd.DataFrame) -> tuple[list[WorstItem], str]:
    """Order items, or pairs, by what was counted or measured of them."""
    named = table["pair"] if "pair" in table else table["item_id"]
    if {"tp", "fp", "fn"} <= set(table):
        drawn = 2 * table["tp"] + table["fp"] + table["fn"]
        losses, loss = 1 - 2 * table["tp"] / drawn.where(drawn > 0), "1 - Dice of any label"
    elif "voi" in table:
        losses, loss = table["voi"], "variation of information (bits)"
    else:
        return [], ""
    means = losses.groupby(named).mean().dropna()
    worst = means.sort_values(ascending=False, kind="stable")[:_WORST]
    return [
        WorstItem(item_id=str(item), truth="", said="", loss=float(value))
        for item, value in worst.items()
    ], loss


# Of any kind


def _classes(result: Result) -> list[Figure]:
    """Show the first metric class by class."""
    metric = next(iter(result.metrics), None)
    if metric is None or len(result.per_class) < 2:
        return []
    rows = [
        {"label": name, "value": found.value, "low": found.low, "high": found.high}
        for name, of_class in result.per_class.items()
        if (found := of_class.get(metric)) is not None and found.value is not None
    ]
    rows.sort(key=lambda row: -float(row["value"]))  # type: ignore[arg-type]
    if not rows:
        return []
    caption = "Means over folds and seeds, with their 95% intervals."
    return [
        Figure(
            kind="classes", title=f"{metric} by class", caption=caption, rows=rows, metric=metric
        )
    ]


def _k_curve(result: Result) -> list[Figure]:
    if not result.curve:
        return []
    names = [name for name in result.metrics if name in result.curve[0]][:4]
    rows = [
        {"series": name, "k": point["k"], "value": point[name]}
        for name in names
        for point in result.curve
        if point.get(name) is not None
    ]
    caption = "The same heads asked with other numbers of neighbours."
    return [Figure(kind="k", title="Neighbours", caption=caption, rows=rows)] if rows else []


def _spread(name: str, run: ComparedRun) -> list[Figure]:
    """Show the first metric of each fold and seed."""
    scored = isinstance(run, ScoredRun)
    metric = next((m for m in run.result.metrics if not scored or not needed_thresholds([m])), None)
    if metric is None or sum(run.n_seeds.values()) < 2:
        return []
    values = {
        (fold, seed): float(run.judge(fold, seed, [metric], None)[metric])
        for fold in run.ids
        for seed in range(run.n_seeds[fold])
    }
    mean = run.result.metrics[metric].value
    rows = [
        {"run": name, "fold": fold, "seed": run.result.seeds[seed], "value": value, "mean": mean}
        for (fold, seed), value in values.items()
        if np.isfinite(value)
    ]
    caption = "Each point is a fold and a seed; the bar is their mean."
    figure = Figure(
        kind="spread",
        title=f"{metric} of each fold and seed",
        caption=caption,
        rows=rows,
        metric=metric,
    )
    return [figure] if rows else []


# Pictures


def _pictures(folder: Path) -> tuple[Picture, ...]:
    """Take pictures that a run's command left in its folder, the first of each sort."""
    found: list[Picture] = []
    for name, says in _SORTS.items():
        for path in _pngs(folder / name)[: _PICTURES // 2]:
            if (content := webp_of_png(path, _PICTURE_PX)) is not None:
                found.append(Picture(caption=f"{path.stem}: {says}", content=content))
    return tuple(found[:_PICTURES])


def _pngs(folder: Path) -> list[Path]:
    """List pictures, and none that a link leads to: nothing outside the run gets into the page."""
    return [] if folder.is_symlink() else sorted(folder.rglob("*.png"))


def _with_picture(item: WorstItem, folder: Path) -> WorstItem:
    """Show truth and answer where the run has a picture of them."""
    for name in ("overlays", "warps"):
        for path in _pngs(folder / name):
            if path.stem == safe_name(item.item_id):
                return replace(item, thumbnail=webp_of_png(path, _OVERLAY_PX))
    return item


def _with_thumbnail(item: WorstItem, store: FeatureStore, by_row: bool) -> WorstItem:
    """Show an item of a store, or one of its rows (`ID#ROW`); else leave it as it is."""
    named, _, row = item.item_id.rpartition("#") if by_row else (item.item_id, "", "")
    try:
        content = _thumbnail(store, named, int(row) if row else None)
    except (DinocacheError, ValueError, KeyError, OSError):
        return item
    return replace(item, thumbnail=content)


def _thumbnail(store: FeatureStore, item_id: str, row: int | None) -> bytes:
    if "image" not in store.kinds:
        return webp_of_array(read_thumbnail(store, item_id).pixels / 255, _THUMB_PX)
    count = store.native_array("image", item_id).shape[0]
    picture = row_picture(store, item_id, count // 2 if row is None else row)
    return webp_of_array(picture, _THUMB_PX)
