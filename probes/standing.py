"""Where one's own runs stand in the paper's tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dinocache.errors import DinocacheError
from dinocache.manifest import Manifest, Published, Task
from dinocache.manifest import shipped_manifests as shipped
from probes.comparable import differences, find
from probes.paper_tables import Column, PaperFigure, PaperRow, PaperTable
from probes.runs import Estimate, Result

__all__ = [
    "Mark",
    "OwnFigure",
    "OwnRow",
    "Standing",
    "head_name",
    "settings_apart",
    "side_of",
    "standing",
]

_AVERAGE = "MSD/Average(10 tasks)"
_MEMBERS = 10
_ENCODERS = {"dinov3-s": "dinov3_vits", "dinov3-b": "dinov3_vitb", "dinov3-l": "dinov3_vitl"}
"""Our name -> the encoder of the paper's rows."""
_METHODS = {
    "anatomix": "Anatomix+ConvexAdam",
    "biomedclip": "BiomedCLIP",
    "byol": "BYOL",
    "conch": "CONCH",
    "mae-b": "MAE-ViT-B/16",
    "mae-l": "MAE-ViT-L/16",
    "mind": "MIND+ConvexAdam",
    "mocov3-b": "MoCo-v3",
    "resnet50": "ResNet50 (ImageNet)",
    "resnet50-trunc": "ResNet50 (ImageNet)",
    "simclr": "SimCLR",
    "swav": "SwAV",
    "uni": "UNI",
    "unregistered": "Unregistered",
    "voxelmorph": "VoxelMorph",
}
"""Our name of other encoders and methods -> the paper's."""

Mark = str
"""`best`, `second`, or empty."""


@dataclass(frozen=True, kw_only=True)
class OwnFigure:
    """A figure of one's own in a column of the paper.

    Attributes:
        value: In the column's unit.
        low: Of its 95% interval; None where there is none.
        high: Likewise.
        difference: From what the paper prints of the same method; None where it prints nothing.
        beyond: Whether what the paper prints lies outside the interval.
        runs: Whose figure it is; several of a mean over datasets.
    """

    value: float | None
    low: float | None
    high: float | None
    difference: float | None
    beyond: bool
    runs: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class OwnRow:
    """Runs of one set-up, a figure in each column that they answer to.

    Attributes:
        label: Encoder, resolution, head.
        against: The label of the paper's row that differences are from; empty if there is none.
        warnings: Where the set-up differs from the paper's, so that no figure compares.
        notes: What to know besides, as the runs say it.
        figures: By column.
    """

    label: str
    against: str
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    figures: Mapping[Column, OwnFigure] = field(hash=False)


@dataclass(frozen=True, kw_only=True)
class Standing:
    """A table of the paper with one's own rows below it.

    Attributes:
        table: What the paper prints.
        own: One's own rows.
        marks: (row, column) -> best or second among the paper's rows and those of one's own that
            carry no warning; a row is its place, the paper's first.
        differs: What the manifests say of how their tasks differ from the paper.
    """

    table: PaperTable
    own: tuple[OwnRow, ...]
    marks: Mapping[tuple[int, Column], Mark] = field(hash=False)
    differs: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Placed:
    """A run, and one of the places in the paper that its task answers to."""

    name: str
    result: Result
    manifest: Manifest
    task: Task
    answer: Published


def standing(tables: Sequence[PaperTable], results: Mapping[str, Result]) -> list[Standing]:
    """Place runs in the paper's tables.

    Args:
        tables: All of the paper.
        results: Folder -> result. Those of tasks that answer to no table have no place.

    Returns:
        One a table, in the order given.
    """
    placed = [one for name, result in results.items() for one in _places(name, result)]
    return [
        _of_table(table, [p for p in placed if p.answer.table == table.number]) for table in tables
    ]


def _places(name: str, result: Result) -> list[_Placed]:
    named = result.task.name
    if not named or named.partition("/")[0] not in shipped():
        return []
    try:
        manifest, _, task = find(named)
    except DinocacheError:
        return []  # a task that this version does not ship
    return [
        _Placed(name=name, result=result, manifest=manifest, task=task, answer=answer)
        for answer in task.paper
    ]


def _of_table(table: PaperTable, placed: Sequence[_Placed]) -> Standing:
    groups: dict[tuple[object, ...], list[_Placed]] = {}
    for one in placed:
        groups.setdefault(_setup(one), []).append(one)
    setups: dict[str, list[Result]] = {}
    for members in groups.values():
        setups.setdefault(_label(members[0]), []).append(members[0].result)
    own: list[OwnRow] = []
    for members in sorted(groups.values(), key=_in_order):
        label = _label(members[0])
        apart = settings_apart(members[0].result, setups[label])
        own += _rows(table, label + (f" ({apart})" if apart else ""), members)
    return Standing(
        table=table,
        own=tuple(own),
        marks=_marks(table, own),
        differs=tuple(
            dict.fromkeys(
                f"{one.result.task.name}: {' '.join(note.split())}"
                for one in placed
                for note in one.task.notes
            )
        ),
    )


def settings_apart(result: Result, alike: Sequence[Result]) -> str:
    """Name the settings of a head in which runs differ that are alike in all else."""
    settings = result.head.settings
    told = {
        key
        for other in alike
        for key in {*settings, *other.head.settings}
        if settings.get(key) != other.head.settings.get(key)
    }
    return ", ".join(f"{key}={value}" for key, value in settings.items() if key in told)


def side_of(resolution: str) -> int:
    """Give the longer side of `256` or `512x640`, px."""
    return max((int(side) for side in resolution.split("x") if side.isdigit()), default=0)


def _in_order(members: Sequence[_Placed]) -> tuple[object, ...]:
    result = members[0].result
    return result.store.model, side_of(result.store.resolution), _label(members[0])


def _setup(one: _Placed) -> tuple[object, ...]:
    """Say what runs of one row share."""
    result = one.result
    return (
        result.store.model if result.is_of_encoder else "",
        result.store.resolution,
        result.store.variant,
        result.store.weights,
        result.features,
        result.head.name,
        tuple(sorted((k, str(v)) for k, v in result.head.settings.items())),
        result.split.shots,
        result.split.fraction,
        result.pool,
        tuple(sorted(one.answer.where.items(), key=str)),
    )


def _label(one: _Placed) -> str:
    result = one.result
    parts = []
    if result.is_of_encoder:
        variant = f"-{result.store.variant}" if result.store.variant else ""
        parts.append(f"{result.store.model} @ {result.store.resolution}{variant}")
    parts.append(head_name(result))
    parts += [str(value) for key, value in one.answer.where.items() if key == "modality"]
    return ", ".join(parts)


def head_name(result: Result) -> str:
    """Name the head, what it reads, and what else is not a setting of it."""
    said = [result.head.name + (f" on {'+'.join(result.features)}" if result.features else "")]
    if result.pool in ("max", "mean+std"):
        said.append(f"pool {result.pool}")
    if result.split.shots:
        said.append(f"{result.split.shots}-shot")
    if result.split.fraction:
        said.append(f"{result.split.fraction:g} of the groups")
    if result.random_weights:
        said.append(result.store.weights)
    return ", ".join(said)


def _rows(table: PaperTable, label: str, members: Sequence[_Placed]) -> list[OwnRow]:
    """Make rows of the runs of one set-up: two runs of one column are two rows."""
    averaged = [one for one in members if one.answer.dataset == _AVERAGE]
    rows: list[list[_Placed]] = []
    for one in members:
        if one in averaged:
            continue
        free = [row for row in rows if all(r.answer.dataset != one.answer.dataset for r in row)]
        if free:
            free[0].append(one)
        else:
            rows.append([one])
    made = []
    mean = _average(table, averaged) if len(rows) < 2 else {}
    for row in rows or [[]]:
        figures = {**_figures(table, row), **mean}
        text = label
        if len(rows) > 1:
            text += f" [{', '.join(sorted(one.name for one in row))}]"
        if figures:
            made.append(_row(table, text, [*row, *(averaged if mean else ())], figures))
    return made


def _row(
    table: PaperTable,
    label: str,
    members: Sequence[_Placed],
    figures: Mapping[Column, OwnFigure],
) -> OwnRow:
    against = _same_method(table, members[0])
    return OwnRow(
        label=label,
        against=against.label if against else "",
        warnings=_shared(
            {
                one: differences(
                    one.result,
                    one.manifest,
                    one.task,
                    stated=_stated(table, one.answer.dataset),
                    known=against is not None,
                )
                for one in members
            }
        ),
        notes=tuple(dict.fromkeys(note for one in members for note in one.result.notes)),
        figures=figures,
    )


def _figures(table: PaperTable, members: Sequence[_Placed]) -> dict[Column, OwnFigure]:
    found = {}
    for one in members:
        against = _same_method(table, one)
        for column in table.columns:
            if column.dataset != one.answer.dataset:
                continue
            estimate = _estimate(one, column)
            if estimate is None:
                continue
            low, high = (
                None if bound is None else bound * column.scale
                for bound in (estimate.low, estimate.high)
            )
            value = None if estimate.value is None else estimate.value * column.scale
            found[column] = _figure(column, value, (low, high), against, (one.name,))
    return found


def _estimate(one: _Placed, column: Column) -> Estimate | None:
    """Find the figure of a run that is what a column is of."""
    ours = one.answer.metrics.get(column.metric, column.metric)
    if ours in one.result.metrics:
        return one.result.metrics[ours]
    metric, _, name = ours.partition(".")
    return one.result.per_class.get(name, {}).get(metric)


def _figure(
    column: Column,
    value: float | None,
    interval: tuple[float | None, float | None],
    against: PaperRow | None,
    runs: tuple[str, ...],
) -> OwnFigure:
    printed = _printed(against, column)
    low, high = interval
    difference = None if value is None or printed is None else value - printed
    beyond = bool(
        difference is not None
        and low is not None
        and high is not None
        and printed is not None
        and not low <= printed <= high
    )
    return OwnFigure(
        value=value, low=low, high=high, difference=difference, beyond=beyond, runs=runs
    )


def _printed(row: PaperRow | None, column: Column) -> float | None:
    figure: PaperFigure | None = row.figures.get(column) if row else None
    return figure.value if figure else None


def _average(table: PaperTable, members: Sequence[_Placed]) -> dict[Column, OwnFigure]:
    """Take the mean over the ten tasks of the Decathlon, where each has been run once."""
    datasets = {one.manifest.name for one in members}
    if len(members) != _MEMBERS or len(datasets) != _MEMBERS:
        return {}
    found = {}
    for column in table.columns:
        if column.dataset != _AVERAGE:
            continue
        estimates = [_estimate(one, column) for one in members]
        values = [e.value for e in estimates if e is not None and e.value is not None]
        if len(values) == _MEMBERS:
            mean = column.scale * sum(values) / _MEMBERS
            against = _same_method(table, members[0])
            names = tuple(one.name for one in members)
            found[column] = _figure(column, mean, (None, None), against, names)
    return found


def _same_method(table: PaperTable, one: _Placed) -> PaperRow | None:
    """Find the paper's row of the same encoder, adapted likewise, or of the same method."""
    ours = _our_name(one.result)
    wanted = {k: v for k, v in one.answer.where.items() if k in ("adaptation", "modality")}
    for row in table.rows:
        same = (
            row.encoder == _ENCODERS[ours]
            if ours in _ENCODERS
            else row.method == _METHODS.get(ours)
        )
        if same and all(getattr(row, key) == value for key, value in wanted.items()):
            return row
    return None


def _our_name(result: Result) -> str:
    if result.head.name in ("unregistered", "voxelmorph"):
        return result.head.name
    if not result.is_of_encoder:
        return "mind" if "mind" in result.features else ""
    return result.store.model


def _shared(warnings: Mapping[_Placed, Sequence[str]]) -> tuple[str, ...]:
    """Say once what holds for all datasets of a row, and else of which it does."""
    datasets = {one.answer.dataset for one in warnings}
    of_text: dict[str, dict[str, None]] = {}
    for one, texts in warnings.items():
        for text in texts:
            of_text.setdefault(text, {})[one.answer.dataset] = None
    return tuple(
        text if {*where} == datasets else f"{', '.join(where)}: {text}"
        for text, where in of_text.items()
    )


def _stated(table: PaperTable, dataset: str) -> int | None:
    """Find the resolution that the paper states of a dataset, px."""
    return next(
        (
            figure.resolution
            for row in table.rows
            for column, figure in row.figures.items()
            if column.dataset == dataset and figure.resolution
        ),
        None,
    )


def _marks(table: PaperTable, own: Sequence[OwnRow]) -> dict[tuple[int, Column], Mark]:
    marks: dict[tuple[int, Column], Mark] = {}
    for column in table.columns:
        values: dict[int, float] = {}
        for place, row in enumerate(table.rows):
            figure = row.figures.get(column)
            if figure is not None and figure.value is not None:
                values[place] = figure.value
        for place, mine in enumerate(own, start=len(table.rows)):
            found = mine.figures.get(column)
            if found is not None and found.value is not None and not mine.warnings:
                values[place] = found.value
        order = sorted(set(values.values()), reverse=column.better == "max")
        for place, value in values.items():
            if len(values) > 1 and value in order[:2]:
                marks[place, column] = "best" if value == order[0] else "second"
    return marks
