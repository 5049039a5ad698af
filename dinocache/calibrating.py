"""Before the first unit of a kind that is kept small: a sample is encoded, and fitted on.

See docs/store-format.md, "Calibration".
"""

from collections.abc import Iterable, Sequence
from contextlib import closing

import numpy as np
import numpy.typing as npt

from dinocache.calibration import Calibration
from dinocache.decoding import Decoding, Piece, UnitWork
from dinocache.engine import Engine
from dinocache.errors import ItemError
from dinocache.layout import form_of, pass_of, plain_view
from dinocache.plan import Segment, Unit
from dinocache.progress import Progress
from dinocache.sample import Share, draw, sample_of, spread
from dinocache.store import FeatureStore
from dinocache.transforms import Staged
from dinocache.writer import StoreWriter

__all__ = ["calibrate", "kinds_to_fit"]

Floats = npt.NDArray[np.float32]


def kinds_to_fit(writer: StoreWriter, features: Iterable[str]) -> list[str]:
    """Name the kinds that are kept small and for which nothing is fitted yet; views share one."""
    store = writer.store
    to_fit = [k for k in features if store.is_fitted(k) and store.calibration(k) is None]
    return list(dict.fromkeys(map(plain_view, to_fit)))


def calibrate(
    writer: StoreWriter,
    engine: Engine,
    kinds: Sequence[str],
    progress: Progress,
    *,
    like: FeatureStore | None = None,
) -> None:
    """Encode a sample, fit scales and bases on it, and freeze them in the store.

    Args:
        writer: Of the store, whose items are planned.
        engine: Of the same.
        kinds: Of rows, for which nothing is fitted yet.
        progress: Told of it.
        like: A store whose offsets, bases and scales are taken, if it has such kinds; only their
            cost is measured then.

    Raises:
        RequestError: If the sample is too small for what is asked, or nothing of it can be read.
        StoreWriteError: If the disk refuses.
        StoppedError: If it was asked to stop.
    """
    header, segment = writer.store.header, writer.store.segments[0]
    shares = draw(segment, header.recipe, kinds, whole_items=engine.whole_items)
    sampling = _Sampling(engine, segment, shares, kinds)
    progress.note(f"fitting what {', '.join(kinds)} are made small by, on {sampling.n_rows} rows")
    sampling.run()
    for kind in kinds:
        if form := form_of(kind, header.recipe):
            taken = like.calibration(kind) if like else None
            sample = sample_of(sampling.vectors(kind), shares)
            writer.freeze(Calibration.fit(kind, header.digest, form, sample, like=taken))
    writer.reload()


class _Sampling:
    """Encodes the rows of a sample, and keeps some patches of each."""

    def __init__(
        self, engine: Engine, segment: Segment, shares: Sequence[Share], kinds: Sequence[str]
    ) -> None:
        self._engine, self._kinds = engine, tuple(kinds)
        self._work = [
            UnitWork(segment=segment, unit=_unit_of(share.item, first, count), kinds=self._kinds)
            for share in shares
            for first, count in share.runs
        ]
        self.n_rows = sum(work.unit.n_rows for work in self._work)
        self._batch: list[tuple[int, tuple[Staged, ...]]] = []
        self._found: dict[str, dict[int, list[Floats]]] = {kind: {} for kind in kinds}
        self._unreadable: set[int] = set()

    def run(self) -> None:
        """Encode all; raises `StoppedError`."""
        decoding = self._engine.decoding()
        pieces = decoding.pieces(self._work)
        try:
            for work, piece in zip(self._work, pieces, strict=True):
                self._engine.check_stop()
                try:
                    self._read(decoding, work, piece)
                except ItemError:  # it is told of when its unit is done
                    self._unreadable.add(work.unit.first_item)
                finally:
                    piece.shared.release()
            self._encode()
        finally:
            decoding.stop()
            pieces.close()

    def vectors(self, kind: str) -> dict[int, Floats]:
        """Give what was found: position of an item -> (vectors, dim)."""
        return {
            item: np.concatenate(parts)
            for item, parts in self._found[kind].items()
            if item not in self._unreadable
        }

    def _read(self, decoding: Decoding, work: UnitWork, piece: Piece) -> None:
        head = piece.head.result()
        with closing(decoding.blocks(piece, head, work.kinds)) as blocks:
            for row in (row for block in blocks for row in block):
                self._batch.append((work.unit.first_item, row.inputs))
                if len(self._batch) == self._engine.batch:
                    self._encode()
        if self._engine.whole_items:
            self._encode()

    def _encode(self) -> None:
        batch, self._batch = self._batch, []
        for number, once in self._engine.passes_of(self._kinds) if batch else ():
            kinds = [kind for kind in self._kinds if pass_of(kind) == once]
            inputs = [row[number] for _, row in batch]
            features = self._engine.encode(inputs, kinds, once, plain=True).result()
            for kind, found in features.items():
                for index, (item, _) in enumerate(batch):
                    if np.isfinite(found.largest[index]):
                        some = spread(found.rows[index], index, self.n_rows)
                        self._found[kind].setdefault(item, []).append(some)


def _unit_of(item: int, first: int, count: int) -> Unit:
    return Unit(name="", first_item=item, n_items=1, row_start=0, n_rows=count, offset=first)
