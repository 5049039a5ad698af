"""What a person asks of `probe fit`."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from dinocache.errors import RequestError
from dinocache.places import Where
from probes.features import VECTORS, Pool, is_vector
from probes.heads import HEADS, Setting, make_head
from probes.metrics.names import parse_metric

__all__ = ["DEFAULT_METRICS", "SEARCHES", "FitRequest", "TestOn"]

SEARCHES: Mapping[str, Mapping[str, tuple[Setting, ...]]] = {
    "linear": {
        "lr": (0.0005, 0.002, 0.005, 0.02),
        "weight_decay": (0.0, 0.0001, 0.001, 0.01, 0.1, 1.0),
    },
    "knn": {"k": (1, 5, 10, 20, 50, 100, 200)},
}
"""Head -> what `--search` tries; other heads choose by themselves."""

DEFAULT_METRICS = ("auc", "average_precision", "accuracy", "precision", "recall", "f1")


@dataclass(frozen=True, kw_only=True)
class TestOn:
    """Items of another store that heads are tested on.

    Attributes:
        store: A path or a URL.
        targets: Its columns, in the order of the training store's.
        positive: As there.
        split: Column whose side `test` is tested; None tests all items.
        trust: Whether what somebody declared of imported features counts.
    """

    __test__ = False  # pytest: this is no test

    store: Where
    targets: tuple[str, ...]
    positive: str | None = None
    split: str | None = None
    trust: bool = False


@dataclass(frozen=True, kw_only=True)
class FitRequest:
    """What a person asks of `probe fit`.

    Attributes:
        store: A path or a URL.
        targets: Columns.
        task: DATASET/TASK that this is, if it is one.
        of: Whether items have targets, or each of their rows, whose columns then hold lists.
        head: Of `HEADS`.
        features: Kinds; None takes the publisher's vector.
        pool: How an item's rows become its vector; None is `mean`, or `bags` for a head that takes
            these.
        settings: Of the head.
        grid: Setting -> values that are tried, the best of all combinations chosen by validation
            items.
        positive: The value of a binary target that counts.
        split: Column with sides, or numbers of folds.
        folds: Drawn here, instead.
        repeats: How often folds are dealt, or training items drawn.
        shots: Training items of each class that are drawn.
        fraction: Share of the training groups that is drawn.
        validation: Share of a fold's training groups that does not train, but chooses.
        test_on: Items of another store that are tested in place of this one's.
        seeds: How often it is fitted.
        metrics: Names.
        by: Columns whose values are judged apart.
        drop_missing: Whether items without a target are left out.
        replicates: Of the bootstrap.
    """

    store: Where
    targets: tuple[str, ...]
    task: str | None = None
    of: Literal["item", "row"] = "item"
    head: str = "linear"
    features: tuple[str, ...] | None = None
    pool: Pool | None = None
    settings: Mapping[str, Setting] = field(default_factory=dict)
    grid: Mapping[str, tuple[Setting, ...]] = field(default_factory=dict)
    positive: str | None = None
    split: str | None = None
    folds: int | None = None
    repeats: int = 1
    shots: int | None = None
    fraction: float | None = None
    validation: float | None = None
    test_on: TestOn | None = None
    seeds: int = 1
    metrics: tuple[str, ...] = DEFAULT_METRICS
    by: tuple[str, ...] = ()
    drop_missing: bool = False
    replicates: int = 1000

    def __post_init__(self) -> None:
        """Refuse what cannot be, whatever the store holds.

        Raises:
            RequestError: Which option, and what it takes.
        """
        if self.head not in HEADS:
            raise RequestError(f"--head {self.head!r}: choose from {', '.join(HEADS)}")
        if not self.targets:
            raise RequestError("--target: name at least one column")
        features = self.features or ()
        lists = (("--target", self.targets), ("--features", features), ("--metrics", self.metrics))
        for option, given in lists:
            if len(set(given)) < len(given):
                raise RequestError(f"{option} {','.join(given)!r}: give each once")
        if self.features == () or not all(is_vector(kind) for kind in features):
            raise RequestError(
                f"--features {','.join(features)!r}: choose from {', '.join(VECTORS)}, or of a "
                "channel, as cls.pet"
            )
        if self.split is not None and self.folds is not None:
            raise RequestError("--split and --folds are two protocols; give one of them")
        if min(self.seeds, self.replicates, self.repeats) < 1:
            raise RequestError("--seeds, --repeats and --replicates must be at least 1")
        self._check_draws()
        if self.pool is None:
            object.__setattr__(self, "pool", "bags" if self.takes_bags else "mean")
        self._check_pool()
        try:
            for name in self.metrics:
                parse_metric(name)
            for key, values in self.grid.items():
                for value in values:
                    make_head(self.head, **{**self.settings, key: value})
        except ValueError as exc:
            raise RequestError(str(exc)) from exc

    @property
    def takes_bags(self) -> bool:
        """Whether the head takes an item's rows themselves."""
        return HEADS[self.head].takes == "bags"

    def _check_draws(self) -> None:
        if self.shots is not None and self.fraction is not None:
            raise RequestError("--shots and --fraction both choose who trains; give one of them")
        if self.shots is not None and self.shots < 1:
            raise RequestError(f"--shots {self.shots}: at least 1 a class")
        for option, share in (("--fraction", self.fraction), ("--validation", self.validation)):
            if share is not None and not 0 < share < 1:
                raise RequestError(f"{option} {share}: a share between 0 and 1")

    def _check_pool(self) -> None:
        if self.takes_bags and self.of == "row":
            raise RequestError(f"--head {self.head} takes the rows of an item; here each is one")
        if self.of == "row" and self.pool != "mean":
            raise RequestError(f"--pool {self.pool}: the items of this task are single rows")
        if self.takes_bags != (self.pool == "bags"):
            raise RequestError(
                f"--pool {self.pool} gives "
                f"{'rows' if self.pool == 'bags' else 'one vector an item'}; --head {self.head} "
                f"takes {'rows (--pool attention)' if self.takes_bags else 'vectors'}"
            )

    def digest(self, **beside: Any) -> str:  # noqa: ANN401 - JSON
        """Sum up all that decides the figures.

        Args:
            **beside: What the stores are: digests of recipes, names of item tables.

        Returns:
            sha256, hex; the same wherever the stores lie.
        """
        asked = asdict(self)
        del asked["store"]
        if self.test_on is not None:
            del asked["test_on"]["store"]
        text = json.dumps({"request": asked, **beside}, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()
