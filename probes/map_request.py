"""What a person asks of `probe fit` where labels of pixels or voxels are told from maps."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from dinocache.errors import RequestError
from dinocache.layout import is_row_kind, is_vector_kind
from dinocache.places import Where
from probes.heads import DENSE_HEADS, Setting, make_dense_head
from probes.metrics.glossary import check_mask_metrics

__all__ = ["MapRequest", "parse_labels"]


@dataclass(frozen=True, kw_only=True)
class MapRequest:
    """What a person asks.

    Attributes:
        store: A path or a URL.
        labels: Value of the mask -> what it is; of classes that overlap, in the order of the
            mask's channels.
        task: DATASET/TASK that this is, if it is one.
        head: Of `HEADS`, one that takes maps.
        features: Kinds of maps.
        settings: Of the head.
        split: Column with sides, or numbers of folds.
        folds: Drawn here, instead.
        validation: Share of a fold's training groups that does not train, but chooses.
        seeds: How often it is fitted.
        metrics: Names.
        present_only: Whether a label's mean leaves out items whose truth does not have it.
        replicates: Of the bootstrap.
    """

    store: Where
    labels: Mapping[int, str]
    task: str | None = None
    head: str = "decoder2d"
    features: tuple[str, ...] = ("dense",)
    settings: Mapping[str, Setting] = field(default_factory=dict)
    split: str | None = None
    folds: int | None = None
    validation: float | None = None
    seeds: int = 1
    metrics: tuple[str, ...] = ("dice", "iou", "precision", "recall")
    present_only: bool = False
    replicates: int = 1000

    def __post_init__(self) -> None:
        """Refuse what cannot be, whatever the store holds.

        Raises:
            RequestError: Which option, and what it takes.
        """
        if self.head not in DENSE_HEADS:
            raise RequestError(f"--head {self.head!r}: of maps there are {', '.join(DENSE_HEADS)}")
        maps = [kind for kind in self.features if is_row_kind(kind) and not is_vector_kind(kind)]
        if not self.features or list(self.features) != maps or len(set(maps)) < len(maps):
            raise RequestError(
                f"--features {','.join(self.features)!r}: name maps, as dense, dense.L05, dense.ct"
            )
        if not self.labels or min(self.labels) < 1:
            raise RequestError("--labels: name at least one value above 0, as 1=liver,2=tumour")
        if self.split is not None and self.folds is not None:
            raise RequestError("--split and --folds are two protocols; give one of them")
        if min(self.seeds, self.replicates) < 1:
            raise RequestError("--seeds and --replicates must be at least 1")
        if self.validation is not None and not 0 < self.validation < 1:
            raise RequestError(f"--validation {self.validation}: a share between 0 and 1")
        try:
            for entry in check_mask_metrics(self.metrics):
                if "segmentation" not in entry.tasks:
                    raise ValueError(f"metric {entry.name!r} is not of segmentations")
            make_dense_head(self.head, **self.settings)
        except ValueError as exc:
            raise RequestError(str(exc)) from exc

    def digest(self, **beside: Any) -> str:  # noqa: ANN401 - JSON
        """Sum up all that decides the figures: sha256, hex; the same wherever the store lies."""
        asked = asdict(self)
        del asked["store"]
        text = json.dumps({"request": asked, **beside}, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()


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
