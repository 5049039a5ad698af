"""A store in another form: smaller, or compressed; rows and units keep their numbers.

See docs/sharing.md, "Small stores".
"""

import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from dinocache import documents
from dinocache.calibration import Calibration
from dinocache.closing import close_segment
from dinocache.copying import copy_file, stored_kinds
from dinocache.errors import RecipeMismatchError, RequestError
from dinocache.folders import Folder
from dinocache.layout import (
    FORMAT,
    HEADER,
    ITEM_PREFIX,
    PART,
    check_kinds,
    encoded_dim,
    form_of,
    is_row_kind,
    is_vector_kind,
    plain_view,
)
from dinocache.plan import Segment, Unit
from dinocache.recipe import FormRecipe, Recipe, StorageRecipe
from dinocache.records import Fitted, Part, Record, StoredObject
from dinocache.sample import Share, draw, sample_of, spread
from dinocache.store import FeatureStore, Work
from dinocache.writer import StoreWriter, create_store

__all__ = ["COMPACTED", "compact_store", "form_name"]

COMPACTED = "compacted"
"""Key of the provenance that says from which form a store was made."""

Codec = Literal["none", "zstd", "blosc"]
Floats = npt.NDArray[np.float32]


def form_name(storage: StorageRecipe, codec: Codec) -> str:
    """Name a form as variants are: `int8`, `dense-pca64-int8-zstd`; "" for plain float16."""
    vectors, dense = (_words(form) for form in (storage.vectors, storage.dense))
    words = [vectors] if vectors == dense else [vectors, dense and f"dense-{dense}"]
    return "-".join(filter(None, [*words, "" if codec == "none" else codec]))


def _words(form: FormRecipe) -> str:
    components = "" if form.pca is None else f"pca{form.pca}"
    return "-".join(filter(None, [components, "" if form.dtype == "float16" else form.dtype]))


def compact_store(
    source: FeatureStore,
    target: Folder,
    storage: StorageRecipe,
    codec: Codec,
    *,
    variant: str = "",
    kinds: Sequence[str] | None = None,
    like: FeatureStore | None = None,
    tell: Callable[[int, int], None] | None = None,
) -> FeatureStore:
    """Write a store anew in another form, or go on with it.

    Args:
        source: Where from; what is committed there is taken.
        target: Where to.
        storage: How features are to be kept.
        codec: That compresses them.
        variant: The new store's.
        kinds: Kinds of rows and native kinds; None for all.
        like: A store whose bases and scales are taken.
        tell: Called with (units done, units in all).

    Returns:
        The store; complete if the source is.

    Raises:
        RequestError: If features cannot be brought into that form, or there are no such kinds.
        RecipeMismatchError: If another store is there.
        StoreDamagedError: If a file of the source is not as it was committed.
    """
    recipe = _recipe(source.header.recipe, storage)
    stored = {w.kind for w in source.work()} if kinds is None else stored_kinds(source, kinds)
    held = check_kinds({kind.removeprefix(ITEM_PREFIX) for kind in stored})
    _check_components(source, recipe, held)
    writer = _begin(source, target, recipe, codec, variant, kinds)
    compacting = _Compacting(source, writer, like)
    compacting.calibrate(held)
    writer.prepare(held)
    todo = [w for w in writer.store.missing(held) if source.is_committed(w.unit, w.kind)]
    for done, work in enumerate(todo):
        compacting.do(work)
        if tell:
            tell(done + 1, len(todo))
    writer.reload()
    writer.seal()
    return writer.store


def _recipe(recipe: Recipe, storage: StorageRecipe) -> Recipe:
    """Say what the new store's recipe is: what was rounded before stays said."""
    forms = {}
    for sort in ("vectors", "dense"):
        old: FormRecipe = getattr(recipe.storage, sort)
        new: FormRecipe = getattr(storage, sort).model_copy(update={"rounded": None})
        if old.model_copy(update={"rounded": None}) == new:
            forms[sort] = old
            continue
        if old.is_fitted or (old.dtype, new.dtype) == ("float16", "float32"):
            raise RequestError(
                f"{sort} are kept as {old}, from which {new} cannot be made: what was left out "
                "does not come back. Compact the store that this was made of, or extract again"
            )
        is_rounded = old.dtype == "float16" and new.is_fitted
        forms[sort] = new.model_copy(update={"rounded": "float16" if is_rounded else None})
    return recipe.model_copy(update={"storage": StorageRecipe(**forms)})


def _check_components(source: FeatureStore, recipe: Recipe, kinds: Sequence[str]) -> None:
    """Refuse more components than there are channels, or vectors to fit them on."""
    n_rows = sum(source.segments[0].item_rows) if source.segments else 0
    for kind in filter(is_row_kind, kinds):
        form = form_of(kind, recipe)
        most = encoded_dim(kind, recipe)
        if is_vector_kind(kind):
            most = min(most, n_rows * 2 // 3 - 1)
        if form and form.pca and form.pca > most and not source.is_fitted(kind):
            raise RequestError(
                f"--pca {form.pca}: {kind} has {encoded_dim(kind, recipe)} channels and {n_rows} "
                f"rows to fit on; give at most {max(most, 1)}, or --pca {form.pca}:dense for maps "
                "alone"
            )


def _begin(
    source: FeatureStore,
    target: Folder,
    recipe: Recipe,
    codec: Codec,
    variant: str,
    kinds: Sequence[str] | None,
) -> StoreWriter:
    """Make the store, its items and its plan, unless they are there."""
    old = source.header
    grid = replace(old.grid, codec=codec)
    made = f"{old.digest}, {old.recipe.storage.vectors}; {old.recipe.storage.dense}"
    if not target.exists(HEADER):
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        update = {
            "format": FORMAT,
            "variant": variant,
            "recipe": recipe,
            "digest": recipe.digest,
            "grid": grid,
            "provenance": {**old.provenance, COMPACTED: made, "compacted_on": now},
        }
        if part := _part(source, recipe, kinds):
            target.create(PART, documents.encode(part.model_dump(mode="json")))
        create_store(target, old.model_copy(update=update))
    there = FeatureStore(target)
    if (there.header.digest, there.header.grid) != (recipe.digest, grid) or (
        there.header.provenance.get(COMPACTED) != made
    ):
        raise RecipeMismatchError(f"at {target} is another store; choose another root or --variant")
    writer = StoreWriter(there)
    if not writer.store.items.equals(source.items):
        writer.put_items(source.items)
    for segment in source.segments[len(writer.store.segments) :]:
        writer.add_segment(replace(segment, recipe=recipe.digest))
    return writer


def _part(source: FeatureStore, recipe: Recipe, kinds: Sequence[str] | None) -> Part | None:
    if kinds is not None:
        known = {w.kind for w in source.work()}
        wanted = stored_kinds(source, kinds)
        if unknown := wanted - known:
            raise RequestError(
                f"--features: {source.folder} has no {sorted(unknown)[0]!r}; choose from "
                f"{', '.join(source.kinds)}"
            )
    elif source.part is None:
        return None
    else:
        wanted = set(source.part.kinds or ())
    name = f"{source.header.dataset} by {source.header.recipe.encoder.name}"
    units = source.part.units if source.part else None
    chosen = tuple(sorted(wanted)) if wanted else None
    return Part(of=name, digest=recipe.digest, kinds=chosen, units=units)


@dataclass
class _Compacting:
    """Brings units from one form into another."""

    source: FeatureStore
    writer: StoreWriter
    like: FeatureStore | None

    # What kinds are made small by

    def calibrate(self, kinds: Sequence[str]) -> None:
        """Take from the source what stays, and fit the rest on a sample of its rows."""
        header = self.writer.store.header
        to_fit = []
        for kind in kinds:
            form = form_of(kind, header.recipe)
            if form is None or not form.is_fitted or self.writer.store.calibration(kind):
                continue
            if (known := self.source.calibration(kind)) is not None:
                self.writer.freeze(replace(known, recipe=header.digest))
            else:
                to_fit.append(kind)
        for kind in dict.fromkeys(map(plain_view, to_fit)):
            # Where the image as it is was left out, its first view stands for it.
            held = next(k for k in (kind, *to_fit) if k in kinds and plain_view(k) == kind)
            self.writer.freeze(replace(self._fit(held), kind=kind))
        self.writer.reload()

    def _fit(self, kind: str) -> Calibration:
        header, segment = self.writer.store.header, self.source.segments[0]
        form = form_of(kind, header.recipe) or FormRecipe()
        shares = draw(segment, header.recipe, [kind], absent=self._absent(kind, segment))
        total = sum(count for share in shares for _, count in share.runs)
        rows = {share.item: self._sampled(kind, segment, share, total) for share in shares}
        taken = self.like.calibration(kind) if self.like else None
        return Calibration.fit(kind, header.digest, form, sample_of(rows, shares), like=taken)

    def _absent(self, kind: str, segment: Segment) -> set[str]:
        """Name the items of which the source has no rows, or not yet."""
        absent: set[str] = set()
        for unit in segment.units:
            record = self.source.record(unit.name, kind)
            held = segment.item_ids[unit.first_item : unit.first_item + unit.n_items]
            absent |= set(held) if record is None else record.absent
        return absent

    def _sampled(self, kind: str, segment: Segment, share: Share, total: int) -> Floats:
        """Read the rows of a share, and keep some patches of each."""
        units = segment.units_of(share.item)
        found = []
        for first, count in share.runs:
            for unit in units:
                start, held = segment.rows_within(unit, share.item)
                offset = unit.offset if unit.n_items == 1 else 0
                low, high = max(first, offset), min(first + count, offset + held)
                if low < high:
                    at = start + low - offset
                    found.append(self.source.unit_rows(kind, unit.name, at, high - low))
        rows = np.concatenate(found).astype(np.float32)
        return np.concatenate([spread(row, index, total) for index, row in enumerate(rows)])

    # A unit

    def do(self, work: Work) -> None:
        """Bring one unit and kind over."""
        record = self.source.record(work.unit, work.kind)
        if record is None:
            return
        segment = self.writer.store.segments[work.segment.number - 1]
        unit = next((u for u in segment.units if u.name == work.unit), None)
        of_row = work.kind.removeprefix(ITEM_PREFIX)
        digest = self.writer.store.header.digest
        if unit is None and self._is_changed(of_row):
            self.writer.reload()
            close_segment(self.writer, segment, of_row, record.made_by)
            return
        if unit is None or not is_row_kind(work.kind):
            copied = {
                name: self.writer.stored(
                    copy_file(self.source.folder, self.writer.folder, (name, stored))
                )
                for name, stored in record.objects.items()
            }
            self.writer.commit(record.model_copy(update={"recipe": digest, "objects": copied}))
            return
        objects, fitted = self._rewrite(segment, unit, work.kind, record)
        update: dict[str, Any] = {"recipe": digest, "objects": objects, "fitted": fitted}
        self.writer.commit(record.model_copy(update=update))

    def _is_changed(self, kind: str) -> bool:
        """Whether numbers of a kind change, or the compression of its means."""
        ours, theirs = (s.header for s in (self.source, self.writer.store))
        return form_of(kind, ours.recipe) != form_of(kind, theirs.recipe) or (
            ours.grid.codec != theirs.grid.codec
        )

    def _rewrite(
        self, segment: Segment, unit: Unit, kind: str, record: Record
    ) -> tuple[dict[str, StoredObject], Fitted | None]:
        """Write the rows of a unit anew, file by file."""
        layout = self.writer.layout(kind)
        objects: dict[str, StoredObject] = {}
        clipped = numbers = 0
        present = [
            (row, row + count)
            for item, row, _, count in segment.pieces(unit)
            if segment.item_ids[item] not in record.absent
        ]
        stop = unit.row_start + unit.n_rows
        for start in range(unit.row_start, stop, layout.file_rows):
            end = min(start + layout.file_rows, stop)
            block = layout.nothing(end - start)
            for low, high in present:
                low, high = max(low, start), min(high, end)
                if low < high:
                    rows, cut = self._rows(kind, unit, low, high - low)
                    block[low - start : high - start] = rows
                    clipped, numbers = clipped + cut, numbers + rows.size
            if not layout.is_absent(block):
                objects |= self.writer.write_rows(kind, start, block)
        if self.source.calibration(kind) is not None and record.fitted is not None:
            return objects, self.writer.fitted(kind, record.fitted.clipped, record.fitted.numbers)
        return objects, self.writer.fitted(kind, clipped, numbers)

    def _rows(self, kind: str, unit: Unit, row: int, count: int) -> tuple[npt.NDArray[Any], int]:
        """Read rows and bring them into their form; says how many numbers were cut off."""
        form = form_of(kind, self.writer.store.header.recipe) or FormRecipe()
        calibration = self.writer.store.calibration(kind)
        is_kept = form == form_of(kind, self.source.header.recipe)
        rows = self.source.unit_rows(kind, unit.name, row, count, stored=is_kept)
        if is_kept:
            return rows, 0
        if calibration is None:
            with np.errstate(over="ignore"):
                cast = rows.astype(form.dtype)
            if not np.isfinite(cast).all():
                raise RequestError(
                    f"{kind} of unit {unit.name} has features that do not fit {form.dtype}; keep "
                    "them as float32, or give --quantize int8"
                )
            return cast, 0
        return calibration.small(rows.astype(np.float32), form)
