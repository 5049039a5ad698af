"""Heads of maps, fitted one seed and fold after the other, and asked about the test items."""

import contextlib
import sys
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dinocache.errors import ProbeError
from probes.feature_maps import ComponentMaps
from probes.features import row_picture
from probes.figures import component_picture
from probes.heads import DenseHead, make_dense_head
from probes.heads.dense_training import Reached, telling
from probes.map_request import MapRequest
from probes.maps import StoredCases
from probes.metrics.cases import Case
from probes.places import safe_name
from probes.protocol import Fold
from probes.runs import SearchFacts

__all__ = ["Key", "MapRun", "Told", "folder_of_key", "name_of", "seeds_of_maps", "tell"]

Key = tuple[int, int]
"""Seed and number of the fold."""
MOST_DRAWN = 8
"""Items that are drawn of each head."""
_TOLD_EVERY_S = 10.0
_ROWS_DRAWN = 5
"""Of an item's components."""
_MOST_PATCHES = 20_000
"""That these are fitted on."""


def seeds_of_maps(request: MapRequest) -> tuple[int, ...]:
    """Count from the head's own seed."""
    first = int(str(make_dense_head(request.head, **request.settings).get_params()["seed"]))
    return tuple(range(first, first + request.seeds))


def folder_of_key(folder: Path, key: Key) -> Path:
    """Say where what a head predicted lies, below a folder."""
    return folder / f"s{key[0]}.f{key[1]}"


def name_of(cases: StoredCases, item: int) -> str:
    """Name a case for a file: the item, and its rows where they are not all."""
    item_id, start, stop = cases.spans[item]
    whole = (start, stop) == (0, cases.store.n_rows(item_id))
    return safe_name(item_id if whole else f"{item_id}.rows{start}-{stop}")


class MapRun(ABC):
    """Fits heads and asks them; what they predict is written as it comes.

    Attributes:
        heads: What was fitted.
        measured: Ending of metrics' names -> head -> one case a tested item, in the fold's order.
            "" is what the request says; others are judged beside it.
        notes: What to know of the figures.
    """

    n_classes: int
    """What heads are told, besides the background."""
    overlapping: bool
    """What heads are told."""

    def __init__(self, request: MapRequest, cases: StoredCases, folder: Path) -> None:
        self.request, self.cases, self.folder = request, cases, folder
        self.heads: dict[Key, DenseHead] = {}
        self.measured: dict[str, dict[Key, list[Case]]] = {}
        self.notes: list[str] = []
        self._drawn: dict[Key, int] = {}

    def do(self, key: Key, fold: Fold) -> None:
        """Fit one head, and ask it about its fold's test items.

        The state of the fit is kept after each epoch, so that the same call goes on where it was
        interrupted.
        """
        self.check(fold)
        head = make_dense_head(self.request.head, **{**self.request.settings, "seed": key[0]})
        self.folder.mkdir(parents=True, exist_ok=True)
        checkpoint = self.folder / f".fit.s{key[0]}.f{key[1]}.safetensors"
        tell(f"seed {key[0]}, fold {key[1]}: {len(fold.train)} train")
        with telling(Told(f"seed {key[0]}, fold {key[1]}")):
            head.fit(
                self.cases.some(fold.train),
                self.n_classes,
                overlapping=self.overlapping,
                validation=self.cases.some(fold.val) if head.selects else None,
                checkpoint=checkpoint,
            )
        self.heads[key] = head
        self.choose(key, fold)
        for number, item in enumerate(fold.test.tolist()):
            tell(f"seed {key[0]}, fold {key[1]}: test {number + 1} of {len(fold.test)}")
            for ending, case in self.ask(key, item).items():
                self.measured.setdefault(ending, {}).setdefault(key, []).append(case)
        checkpoint.unlink(missing_ok=True)

    def check(self, fold: Fold) -> None:  # noqa: B027 - neurons are neurons
        """Look at what a fold trains on; raises `ProbeError`."""

    def choose(self, key: Key, fold: Fold) -> None:  # noqa: B027 - most have nothing to choose
        """Choose what is left to choose once a head is fitted."""

    @property
    def search(self) -> SearchFacts | None:
        """What was tried and chosen by `choose`."""
        return None

    @abstractmethod
    def ask(self, key: Key, item: int) -> dict[str, Case]:
        """Ask a head about an item, write its answer, and measure it."""

    def draw(self, key: Key, item: int, picture: bytes) -> None:
        """Keep a picture of an item, and, once, one of its components."""
        place = folder_of_key(self.folder / "overlays", key)
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{name_of(self.cases, item)}.png").write_bytes(picture)
        self._drawn[key] = self._drawn.get(key, 0) + 1
        path = self.folder / "components" / f"{name_of(self.cases, item)}.png"
        if not path.exists():
            # Of too few patches, or of patches that are all alike, there are none.
            with contextlib.suppress(ProbeError):
                components = self._components(item)
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(components)

    def _components(self, item: int) -> bytes:
        """Draw the principal components of a case's first map, over some of its rows."""
        span, store, kind = self.cases.spans[item], self.cases.store, self.cases.kinds[0]

        def read(start: int, stop: int) -> npt.NDArray[Any]:
            return store.rows(kind, span.item_id, span.start + start, span.start + stop)

        n_rows = span.stop - span.start
        found = ComponentMaps.fit(read, n_rows, most_patches=_MOST_PATCHES)
        shown = np.unique(np.linspace(0, n_rows - 1, 2 + _ROWS_DRAWN).astype(int)[1:-1]).tolist()
        maps = np.concatenate([read(row, row + 1) for row in shown])
        return component_picture(
            [row_picture(store, span.item_id, span.start + row) for row in shown],
            found.rgb(maps),
            found.foreground(maps),
            title=f"{self.title(item, span.start + shown[0], span.start + shown[-1])}, {kind}",
        )

    def is_drawn(self, key: Key) -> bool:
        """Whether a picture of a next item is wanted, and can be made."""
        return self._drawn.get(key, 0) < MOST_DRAWN and "image" in self.cases.store.kinds

    def title(self, item: int, row: int, last: int | None = None) -> str:
        """Name a row, or several, for a picture; random weights are named."""
        weights = self.cases.store.header.recipe.encoder.weights
        said = f" ({weights.name})" if weights.is_random else ""
        rows = f"row {row}" if last in (None, row) else f"rows {row} to {last}"
        return f"{self.cases.spans[item].item_id}, {rows}{said}"


class Told:
    """Says from time to time how far a fit is, and how long it will take: for `telling`."""

    def __init__(self, whose: str) -> None:
        self._whose = whose
        self._began = self._last = time.monotonic()
        self._first: int | None = None

    def __call__(self, reached: Reached) -> None:
        """Take how far it is."""
        now = time.monotonic()
        done = reached.epoch * reached.steps + reached.step
        if self._first is None:  # it may go on where it was interrupted
            self._first, self._began = done, now
        if now - self._last < _TOLD_EVERY_S:
            return
        self._last = now
        left = reached.epochs * reached.steps - done
        text = f"{self._whose}: epoch {reached.epoch + 1} of {reached.epochs}"
        if reached.loss is not None:
            text += f", loss {reached.loss:.4f}"
        if done > self._first:
            seconds = (now - self._began) / (done - self._first) * left
            text += f", at most {max(1, round(seconds / 60))} min left"
        tell(text)


def tell(text: str) -> None:
    """Say how far a run is."""
    print(text, file=sys.stderr, flush=True)
