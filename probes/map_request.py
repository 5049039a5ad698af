"""What a person asks of `probe fit` where labels of pixels or voxels are told from maps."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import combinations
from types import MappingProxyType
from typing import Any, Literal

from dinocache.errors import RequestError
from dinocache.layout import is_row_kind, is_vector_kind
from dinocache.places import Where
from probes.heads import DENSE_HEADS, Setting, make_dense_head
from probes.metrics.glossary import check_mask_metrics

__all__ = ["SIDES", "MapKind", "MapRequest", "Rows", "parse_labels", "parse_rows"]

MapKind = Literal["segmentation", "instances"]
Rows = Mapping[str, Mapping[str, tuple[int, int]]]
"""Side -> item id, or "" for every item -> (first row, row behind the last)."""

SIDES = ("train", "val", "test")
USUAL_METRICS: Mapping[MapKind, tuple[str, ...]] = MappingProxyType(
    {
        "segmentation": ("dice", "iou", "precision", "recall"),
        "instances": ("voi", "voi_split", "voi_merge", "arand"),
    }
)


@dataclass(frozen=True, kw_only=True)
class MapRequest:
    """What a person asks.

    Attributes:
        store: A path or a URL.
        labels: Value of the mask -> what it is; of classes that overlap, in the order of the
            mask's channels. Of neurons nothing.
        task: DATASET/TASK that this is, if it is one.
        kind: Whether the mask holds classes, or an id for each neuron.
        head: Of `HEADS`, one that takes maps.
        features: Kinds of maps.
        settings: Of the head.
        split: Column with sides, or numbers of folds.
        folds: Drawn here, instead.
        rows: Instead of both: which rows are of which side.
        validation: Share of a fold's training groups that does not train, but chooses.
        seeds: How often it is fitted.
        metrics: Names; () takes the usual ones.
        present_only: Whether a label's mean leaves out items whose truth does not have it.
        replicates: Of the bootstrap.
    """

    store: Where
    labels: Mapping[int, str] = field(default_factory=dict)
    task: str | None = None
    kind: MapKind = "segmentation"
    head: str = "decoder2d"
    features: tuple[str, ...] = ("dense",)
    settings: Mapping[str, Setting] = field(default_factory=dict)
    split: str | None = None
    folds: int | None = None
    rows: Rows = field(default_factory=dict)
    validation: float | None = None
    seeds: int = 1
    metrics: tuple[str, ...] = ()
    present_only: bool = False
    replicates: int = 1000

    def __post_init__(self) -> None:
        """Refuse what cannot be, whatever the store holds.

        Raises:
            RequestError: Which option, and what it takes.
        """
        if not self.metrics:
            object.__setattr__(self, "metrics", USUAL_METRICS[self.kind])
        self._check_head()
        maps = [kind for kind in self.features if is_row_kind(kind) and not is_vector_kind(kind)]
        if not self.features or list(self.features) != maps or len(set(maps)) < len(maps):
            raise RequestError(
                f"--features {','.join(self.features)!r}: name maps, as dense, dense.L05, dense.ct"
            )
        if self.kind == "segmentation" and (not self.labels or min(self.labels) < 1):
            raise RequestError("--labels: name at least one value above 0, as 1=liver,2=tumour")
        if sum([self.split is not None, self.folds is not None, bool(self.rows)]) > 1:
            raise RequestError("--split, --folds and --rows are three protocols; give one of them")
        if self.validation is not None and self.rows:
            raise RequestError("--validation: with --rows, name those that choose, as val=80:100")
        _check_rows(self.rows)
        if min(self.seeds, self.replicates) < 1:
            raise RequestError("--seeds and --replicates must be at least 1")
        if self.validation is not None and not 0 < self.validation < 1:
            raise RequestError(f"--validation {self.validation}: a share between 0 and 1")
        try:
            check_mask_metrics(self.metrics, self.kind)
            make_dense_head(self.head, **self.settings)
        except ValueError as exc:
            raise RequestError(str(exc)) from exc

    def _check_head(self) -> None:
        neurons = self.kind == "instances"
        wanted = "affinities" if neurons else "classes"
        fitting = [name for name, head in DENSE_HEADS.items() if head.gives == wanted]
        if self.head not in fitting:
            raise RequestError(f"--head {self.head!r}: of {wanted} there are {', '.join(fitting)}")
        if neurons and self.labels:
            raise RequestError("--labels name classes; neurons have ids, and none is named")

    def digest(self, **beside: Any) -> str:  # noqa: ANN401 - JSON
        """Sum up all that decides the figures: sha256, hex; the same wherever the store lies."""
        asked = asdict(self)
        del asked["store"]
        text = json.dumps({"request": asked, **beside}, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()


def _check_rows(rows: Rows) -> None:
    """Refuse ranges that are none, sides that lack, and rows that are on two sides."""
    if not rows:
        return
    if unknown := set(rows) - set(SIDES):
        raise RequestError(f"--rows: {min(unknown)!r} is no side; there are {', '.join(SIDES)}")
    if lacking := [side for side in ("train", "test") if not rows.get(side)]:
        raise RequestError(f"--rows: no rows to {lacking[0]}; give train=0:100,test=100:125")
    named = [(side, item, *span) for side, of in rows.items() for item, span in of.items()]
    for _, item, start, stop in named:
        if not 0 <= start < stop:
            raise RequestError(f"--rows {f'{item}@' if item else ''}{start}:{stop}: no such range")
    for (side, item, start, stop), (other, another, low, high) in combinations(named, 2):
        alike = item == another or not item or not another
        if side != other and alike and max(start, low) < min(stop, high):
            raise RequestError(
                f"--rows: {max(start, low)}:{min(stop, high)} is on two sides, {side} and {other}"
            )


def parse_labels(text: str) -> dict[int, str]:
    """Read `1=liver,2=tumour`.

    Raises:
        RequestError: If it is not so.
    """
    labels: dict[int, str] = {}
    for part in text.split(","):
        value, sign, name = (piece.strip() for piece in part.partition("="))
        if not sign or not name or not value.isdecimal() or not 0 < int(value) < 256:
            raise RequestError(f"--labels {text!r}: give VALUE=NAME from 1 to 255, as 1=liver")
        if int(value) in labels or name in labels.values():
            raise RequestError(f"--labels {text!r}: give each value and name once")
        labels[int(value)] = name
    return labels


def parse_rows(text: str) -> dict[str, dict[str, tuple[int, int]]]:
    """Read `train=0:100,test=100:125`, or of one item each `train=AC4@0:80,test=AC3@0:100`.

    Raises:
        RequestError: If it is not so.
    """
    rows: dict[str, dict[str, tuple[int, int]]] = {}
    for part in text.split(","):
        side, _, what = part.strip().partition("=")
        item, _, span = what.rpartition("@")
        match = re.fullmatch(r"([0-9]{1,9}):([0-9]{1,9})", span)
        if match is None or item in rows.get(side, {}):
            raise RequestError(
                f"--rows {text!r}: give SIDE=FIRST:BEHIND once a side, as train=0:100,test=100:"
                "125, or of an item, as train=AC4@0:80"
            )
        rows.setdefault(side, {})[item] = int(match[1]), int(match[2])
    return rows
