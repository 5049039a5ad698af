"""A run read back: its heads asked about items of another store."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from dinocache.errors import ProbeError, RequestError
from dinocache.places import Where
from dinocache.store import FeatureStore
from probes.attention import attention_picture, read_thumbnail, tile_side
from probes.cohort import Cohort, load_labelled
from probes.features import Bags, check_same_recipe, row_coords
from probes.heads import HEADS, AbmilHead, Head
from probes.judging import Predictions, judge
from probes.metrics.names import needed_thresholds
from probes.places import safe_name
from probes.protocol import Fold
from probes.request import FitRequest
from probes.runs import Estimate, Result, read_arrays, write_table
from probes.training import Key

__all__ = ["Answer", "FittedRun", "write_attention"]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What heads say of items.

    Attributes:
        table: One row an item: `item_id`, `group`, and per class `score.<class>`, the mean over
            the heads, and `sd.<class>` over them (where there are several).
        metrics: Name -> estimate, each head judged apart; None where the items have no targets.
        left_out: Item id -> why.
    """

    table: pd.DataFrame
    metrics: dict[str, Estimate] | None
    left_out: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class FittedRun:
    """A run folder: what it found, and the heads that it fitted.

    Attributes:
        folder: Where it lies.
        result: What it found.
        heads: Seed and fold -> head.
    """

    folder: Path
    result: Result
    heads: dict[Key, Head]

    @classmethod
    def read(cls, folder: Path) -> "FittedRun":
        """Read a run folder.

        Args:
            folder: With `result.json` and `head.safetensors`.

        Returns:
            The run.

        Raises:
            ProbeError: If it is none, damaged, or of another version.
        """
        result = Result.read(folder)
        if result.pool == "maps":
            raise ProbeError(
                f"{folder}: the run is of {result.task.kind}, which gives no scores of items; what "
                "it predicted is in its folder labels"
            )
        named = read_arrays(folder)
        try:
            heads = {key: _restore(result, key, arrays) for key, arrays in named.items()}
        except (ValueError, IndexError, KeyError) as exc:
            raise ProbeError(f"{folder}: the heads cannot be read ({exc}); fit again") from exc
        return cls(folder=folder, result=result, heads=heads)

    def predict(self, store: Where, *, replicates: int = 1000, trust: bool = False) -> Answer:
        """Ask every head about every item of a store of the same recipe.

        Args:
            store: A path or a URL.
            replicates: Of the bootstrap, where the items have the targets.
            trust: Whether what somebody declared of imported features counts.

        Returns:
            Scores; and figures, unless the store is of the dataset that the heads were fitted on.

        Raises:
            StoreError: If the store is missing, incomplete or damaged.
            ProbeError: If it is of another recipe, or its features are not finite.
        """
        check_same_recipe(self.result.store, store, trust=trust)
        request = self._request(store, replicates)
        loaded, labelled = load_labelled(request, self.result.task.classes)
        try:
            scores = {key: head.predict_proba(loaded.x) for key, head in self.heads.items()}
        except ValueError as exc:
            raise ProbeError(f"{store}: {exc}") from exc
        stacked = np.stack(list(scores.values()))
        table: dict[str, Any] = {c: loaded.items[c].to_numpy() for c in ("item_id", "group")}
        for index, name in enumerate(self.result.task.classes):
            table[f"score.{name}"] = stacked[:, :, index].mean(0)
            if len(scores) > 1:
                table[f"sd.{name}"] = stacked[:, :, index].std(0, ddof=1)
        metrics = None
        if labelled is not None and loaded.store.dataset != self.result.store.dataset:
            of_labelled = loaded.items["item_id"].isin(labelled.ids).to_numpy()
            metrics = self._judge(
                request, labelled, {key: given[of_labelled] for key, given in scores.items()}
            )
        return Answer(table=pd.DataFrame(table), metrics=metrics, left_out=loaded.failed)

    def attention(self, store: Where, item_id: str, *, trust: bool = False) -> pd.DataFrame:
        """Weigh the rows of one item as the heads do.

        Args:
            store: A path or a URL; of the recipe that the heads were fitted on.
            item_id: Which item.
            trust: As for `predict`.

        Returns:
            One row a row of the item: its coordinates, as the store names them, and `weight`, the
            mean over the heads; weights sum to 1.

        Raises:
            RequestError: If the heads weigh nothing.
            StoreError: If the store has no such item.
            ProbeError: If it is of another recipe.
        """
        check_same_recipe(self.result.store, store, trust=trust)
        weighing = [head for head in self.heads.values() if isinstance(head, AbmilHead)]
        if not weighing:
            raise RequestError(
                f"{self.folder}: a {self.result.head.name} head weighs no rows; fit --head abmil"
            )
        bag = Bags.of(store, self.result.features, [item_id])[0]
        try:
            weights = np.mean([head.attention(bag) for head in weighing], axis=0)
        except ValueError as exc:
            raise ProbeError(f"item {item_id!r}: {exc}") from exc
        return row_coords(store, item_id).assign(weight=weights)

    def _request(self, store: Where, replicates: int) -> FitRequest:
        task, rules, pool = self.result.task, needed_thresholds, self.result.pool
        assert pool != "maps"  # `read` refuses those
        return FitRequest(
            store=store,
            targets=task.targets,
            of=task.of,
            head=self.result.head.name,
            features=self.result.features,
            pool=pool,
            metrics=tuple(m for m in self.result.metrics if not rules([m])),
            drop_missing=True,
            replicates=replicates,
        )

    def _judge(
        self, request: FitRequest, cohort: Cohort, scores: dict[Key, npt.NDArray[np.float32]]
    ) -> dict[str, Estimate]:
        """Judge each head on all items; none of them trained it."""
        nobody, everybody = np.empty(0, np.intp), np.arange(len(cohort.ids))
        n_folds = 1 + max(fold for _, fold in scores)
        folds = [Fold(train=nobody, val=nobody, test=everybody)] * n_folds
        said = Predictions(scores=scores, thresholds={key: {} for key in scores})
        return judge(request, cohort, folds, said).metrics


def _restore(result: Result, key: Key, arrays: dict[str, npt.NDArray[Any]]) -> Head:
    seed, fold = key
    settings = dict(result.head.settings)
    if result.head.search is not None:
        settings |= result.head.search.chosen[fold]
    if "seed" in settings:
        settings["seed"] = seed
    return HEADS[result.head.name].from_arrays(settings, arrays)


def write_attention(
    folder: Path, store: Where, items: Sequence[str] | None, out: Path, *, trust: bool = False
) -> Iterator[Path]:
    """Write how the heads of a run weigh the rows of items, and draw it for slides.

    Args:
        folder: Of the run.
        store: Of the items; of the recipe that the heads were fitted on.
        items: Ids; None for all.
        out: Folder for <item>.parquet, and <item>.png of slides.
        trust: As for `FittedRun.predict`.

    Yields:
        Each file, once it is written.

    Raises:
        RequestError: If the heads weigh nothing, or the store has no such item.
        StoreError: If the store is missing or damaged.
        ProbeError: If it is of another recipe, or a file cannot be written.
    """
    run, opened = FittedRun.read(folder), FeatureStore(store)
    failed = {failure.item_id for failure in opened.failures()}
    wanted = items or [i for i in opened.items["item_id"].astype(str) if i not in failed]
    options = run.result.store.recipe["reader"]["options"]
    for item_id in wanted:
        table = run.attention(store, item_id, trust=trust)
        path = out / f"{safe_name(item_id)}.parquet"
        write_table(table, path)
        yield path
        if run.result.store.recipe["reader"]["name"] != "slide":
            continue
        corners = table.iloc[:, :2].to_numpy()
        try:
            side = tile_side(
                corners, tile_px=options["tile_px"], overlap_px=options.get("overlap_px", 0)
            )
            picture = attention_picture(
                corners,
                table["weight"].to_numpy(np.float32),
                side=side,
                thumbnail=read_thumbnail(opened, item_id),
            )
        except ValueError as exc:
            raise ProbeError(f"item {item_id!r}: {exc}") from exc
        path.with_suffix(".png").write_bytes(picture)
        yield path.with_suffix(".png")
