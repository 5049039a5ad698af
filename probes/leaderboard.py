"""All runs below a folder, among those that they compare with, and how sure the order is."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from pydantic import BaseModel, ConfigDict

from dinocache.errors import DinocacheError, ProbeError, RequestError
from dinocache.manifest import find_task, shipped_manifests
from dinocache.spreadsheets import as_text
from probes.compare import Comparison, Tested, compare_each, read_tested, with_holm
from probes.metrics.glossary import GLOSSARY
from probes.metrics.names import needed_thresholds, parse_metric
from probes.runs import Estimate, Result, read_results, when_made

__all__ = [
    "SIGNIFICANT",
    "Group",
    "Leaderboard",
    "LeaderboardRequest",
    "Line",
    "Step",
    "make_leaderboard",
]

SIGNIFICANT = 0.05
"""A step of the record below this, corrected, counts as one."""
_OF_MAPS = ("segmentation", "instances", "registration")


@dataclass(frozen=True, kw_only=True)
class LeaderboardRequest:
    """What a person asks of `probe leaderboard`.

    Attributes:
        root: Folder with runs, at any depth.
        metric: That orders them; None takes each task's first.
        task: Pattern of names, as of files; None takes all.
        since: Runs made before are left out; of this machine's time zone if it has none.
        top: How many of a group are tested against its leader, itself counted.
        over_time: Whether the steps of the record are tested.
        replicates: Of the bootstrap.
        permutations: Of the permutation test.
    """

    root: Path
    metric: str | None = None
    task: str | None = None
    since: datetime | None = None
    top: int = 20
    over_time: bool = False
    replicates: int = 1000
    permutations: int = 1000


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class Line(_Part):
    """One run of a group.

    Attributes:
        run: Its folder, relative to the root.
        rank: 1 is the leader; None where it has no value, or random weights among real ones.
        value: Of the group's metric, with `low` and `high`, its interval.
        encoder: ENCODER@RESOLUTION; "" where the figures depend on none.
        random_weights: Whether these were drawn at random.
        features: Kinds.
        head: Its name.
        seeds: How many.
        made: When its `result.json` was last written.
        comparison: With the leader; None for that, and where there is none.
        reason: Why there is none.
    """

    run: str
    rank: int | None
    value: float | None
    low: float | None
    high: float | None
    encoder: str
    random_weights: bool
    features: tuple[str, ...]
    head: str
    seeds: int
    made: datetime
    comparison: Comparison | None
    reason: str


class Step(_Part):
    """A run that took the lead.

    Attributes:
        run: Which.
        encoder: As in `Line`, as is `random_weights`.
        made: When.
        value: Of the group's metric.
        before: Who led until then; None for the first.
        comparison: With that one.
        reason: Why there is none.
        significant: Whether `comparison.p_holm`, corrected for all steps, is below `SIGNIFICANT`.
    """

    run: str
    encoder: str
    random_weights: bool
    made: datetime
    value: float
    before: str | None
    comparison: Comparison | None
    reason: str
    significant: bool | None


class Group(_Part):
    """Runs of one task that tested the same items in the same folds.

    Attributes:
        task: DATASET/TASK, or dataset and targets.
        kind: As in `result.json`.
        classes: What the outputs stand for.
        dataset: Whose items were tested.
        items: How many.
        groups: How many patients these are of.
        folds: How many.
        apart: Why these runs stand apart from the first group of this task; "" for that.
        metric: That orders them.
        higher_is_better: Else lower is.
        leader: The best run; None where none has a value.
        lines: All runs, the best first; random weights behind real ones, then those without value.
        record: Who took the lead when; None where nobody asked.
    """

    task: str
    kind: str
    classes: tuple[str, ...]
    dataset: str
    items: int
    groups: int
    folds: int
    apart: str
    metric: str
    higher_is_better: bool
    leader: str | None
    lines: tuple[Line, ...]
    record: tuple[Step, ...] | None


class Leaderboard(_Part):
    """All runs below a folder.

    Attributes:
        groups: By names of tasks, the larger first.
        errors: Folder relative to the root -> why it cannot be read.
        other_tasks: How many runs the pattern of tasks left out.
        before: How many others were made before what was asked.
        top: How many of a group were tested at most, its leader counted.
    """

    groups: tuple[Group, ...]
    errors: dict[str, str]
    other_tasks: int
    before: int
    top: int

    @property
    def nothing_read(self) -> bool:
        """Whether none of the runs could be read."""
        return not (self.groups or self.other_tasks or self.before)

    def table(self) -> pd.DataFrame:
        """Give one row a run, those that cannot be read last, with their error as the reason.

        A run that took the lead has the one that led before it, and the test against that.
        """
        rows = [_row(group, line) for group in self.groups for line in group.lines]
        rows += [{"run": as_text(name), "reason": as_text(e)} for name, e in self.errors.items()]
        table = pd.DataFrame(rows, columns=list(_COLUMNS))
        return table.astype({name: kind for name, kind in _COLUMNS.items() if kind != "object"})


_COLUMNS = {
    "task": "object", "kind": "object", "tested": "object", "items": "Int64", "groups": "Int64",
    "folds": "Int64", "metric": "object", "better": "object", "rank": "Int64", "run": "object",
    "value": "Float64", "low": "Float64", "high": "Float64", "encoder": "object",
    "weights": "object", "features": "object", "head": "object", "seeds": "Int64",
    "made": "object", "leader": "object", "difference": "Float64", "difference_low": "Float64",
    "difference_high": "Float64", "p_permutation": "Float64", "p_holm": "Float64",
    "reason": "object", "took_lead_from": "object", "lead_difference": "Float64",
    "lead_p_permutation": "Float64", "lead_p_holm": "Float64", "lead_significant": "boolean",
}  # fmt: skip


class _Comparable(NamedTuple):
    """What runs have in common that can be set against each other."""

    task: str
    kind: str
    of: str
    classes: tuple[str, ...]
    dataset: str
    folds_digest: str


@dataclass(frozen=True, kw_only=True)
class _Run:
    """A run that was read."""

    name: str
    folder: Path
    result: Result
    made: datetime
    tested: Tested

    @property
    def key(self) -> _Comparable:
        task, store = self.result.task, self.result.test_store or self.result.store
        return _Comparable(
            task=self.result.task_name,
            kind=task.kind,
            of=task.of,
            classes=task.classes,
            dataset=store.dataset,
            folds_digest=self.tested.folds_digest,
        )

    @property
    def encoder(self) -> str:
        store = self.result.store
        if not self.result.is_of_encoder:
            return ""
        return f"{store.model}@{store.resolution}" + (f"-{store.variant}" if store.variant else "")

    def estimate(self, metric: str) -> Estimate | None:
        return self.result.metrics.get(metric)


@dataclass(frozen=True, kw_only=True)
class _Ordered:
    """A group before it is tested.

    Attributes:
        metric: That orders it.
        higher_is_better: Else lower is.
        runs: All of them, in the order of the table.
        ranked: Those that may lead, the best first.
        apart: See `Group`.
        steps: Each run that took the lead, the first first; none where nobody asked.
    """

    metric: str
    higher_is_better: bool
    runs: list[_Run]
    ranked: list[_Run]
    apart: str
    steps: list[_Run] = field(default_factory=list)

    def tested(self, top: int) -> list[_Run]:
        """List those that are tested against the leader."""
        if not self.ranked or _lacks_scores(self.metric, self.ranked[0].result.task.kind):
            return []
        valued = [run for run in self.runs if _value(run, self.metric) is not None]
        return [run for run in valued[:top] if run is not self.ranked[0]]


def make_leaderboard(
    request: LeaderboardRequest,
    *,
    told: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Leaderboard:
    """Order all runs below a folder, and test the order.

    Args:
        request: What is asked.
        told: Called with what is done (`runs read`, `tests`), how many are, and of how many.

    Returns:
        Every run: in its group, or with the reason why it cannot be read.

    Raises:
        RequestError: If there is no run, none of such a task, or none has the metric.
    """
    results, failed = read_results(request.root)
    errors = {as_text(name): str(exc) for name, exc in failed.items()}
    of_task = _of_task(results, request.task, len(errors))
    runs, before = _read_runs(request, of_task, errors, told)
    if request.metric is not None:
        _check_metric(request.metric, runs)
    groups = _groups(request, runs)
    return Leaderboard(
        groups=tuple(_test(request, groups, told)),
        errors=dict(sorted(errors.items())),
        other_tasks=len(results) - len(of_task),
        before=before,
        top=request.top,
    )


def higher_is_better(metric: str, kind: str) -> bool:
    """Say which way is better.

    Args:
        metric: A name, as in `result.json`.
        kind: Of the task.

    Returns:
        Whether more is.

    Raises:
        ProbeError: If there is no such metric.
    """
    try:
        if kind in _OF_MAPS:
            return GLOSSARY[metric.partition("@")[0]].higher_is_better
        # What looks at scores as probabilities (Brier, log-loss, calibration) is an error.
        return parse_metric(metric).family != "calibration"
    except (KeyError, ValueError) as exc:
        raise ProbeError(f"there is no metric {metric!r} of {kind}; `probe metrics` lists") from exc


def _of_task(results: dict[str, Result], pattern: str | None, n_errors: int) -> dict[str, Result]:
    if pattern is None or not results:
        return results
    found = {n: r for n, r in results.items() if fnmatchcase(r.task_name, pattern)}
    if not found:
        there = ", ".join(sorted({result.task_name for result in results.values()}))
        unread = f"; {n_errors} cannot be read" if n_errors else ""
        raise RequestError(
            f"--task {pattern!r}: no run is of such a task; there are {there}{unread}"
        )
    return found


def _read_runs(
    request: LeaderboardRequest,
    results: dict[str, Result],
    errors: dict[str, str],
    told: Callable[[str, int, int], None],
) -> tuple[list[_Run], int]:
    """Read who was tested; what cannot be read joins `errors`. Also count those made before."""
    runs, before = [], 0
    for done, (name, result) in enumerate(results.items(), 1):
        folder = request.root / name
        try:
            made = when_made(folder)
            if request.since is not None and made < request.since.astimezone():
                before += 1
            else:
                _check(name, folder, result)
                tested = read_tested(folder)
                runs.append(_Run(name=name, folder=folder, result=result, made=made, tested=tested))
        except ProbeError as exc:
            errors[as_text(name)] = str(exc)
        told("runs read", done, len(results))
    return runs, before


def _check(name: str, folder: Path, result: Result) -> None:
    """Refuse what later steps have no use for."""
    if as_text(name) != name:
        raise ProbeError(f"{folder}: its name is no text; rename the folder")
    if not result.metrics:
        raise ProbeError(f"{folder} has no metric; fit again")
    for metric in result.metrics:
        try:
            higher_is_better(metric, result.task.kind)
        except ProbeError as exc:
            raise ProbeError(f"{folder}: {exc}; fit again") from exc


def _check_metric(metric: str, runs: Iterable[_Run]) -> None:
    known = list(dict.fromkeys(name for run in runs for name in run.result.metrics))
    if known and metric not in known:
        raise RequestError(f"--metric {metric!r}: no run has it; they have {', '.join(known)}")


def _groups(request: LeaderboardRequest, runs: Sequence[_Run]) -> list[_Ordered]:
    """Put together what can be compared."""
    found: dict[_Comparable, list[_Run]] = {}
    for run in sorted(runs, key=lambda run: (run.made, run.name)):
        found.setdefault(run.key, []).append(run)
    first: dict[str, _Run] = {}
    groups = []
    for key in sorted(found, key=lambda key: (key.task, -len(found[key]), found[key][0].made, key)):
        one = found[key][0]
        apart = _apart(one, first.setdefault(key.task, one))
        groups.append(_order(request, found[key], apart))
    return groups


def _apart(one: _Run, first: _Run) -> str:
    """Say in a few words why a group is not the first one of its task."""
    ours, theirs = one.key, first.key
    if ours == theirs:
        return ""
    if (ours.kind, ours.of) != (theirs.kind, theirs.of):
        return "another kind of task"
    if ours.classes != theirs.classes:
        return "other classes"
    if ours.dataset != theirs.dataset:
        return "items of another dataset"
    if one.tested.items_digest != first.tested.items_digest:
        return f"other test items ({one.tested.items}, not those {first.tested.items})"
    return "other folds of the same test items"


def _order(request: LeaderboardRequest, runs: Sequence[_Run], apart: str) -> _Ordered:
    """Order runs, which come in the order of time.

    Random weights stand behind real ones, so that they lead only where there is nothing else.
    """
    metric = request.metric or _first_metric(runs)
    higher = higher_is_better(metric, runs[0].result.task.kind) if _has(runs, metric) else True
    real = [run for run in runs if not run.result.random_weights]
    eligible = real or list(runs)
    others = [run for run in runs if run.result.random_weights] if real else []

    def worse(run: _Run) -> float:
        value = _value(run, metric)
        assert value is not None
        return -value if higher else value

    def by_value(some: Iterable[_Run]) -> list[_Run]:
        return sorted((run for run in some if _value(run, metric) is not None), key=worse)

    ranked = by_value(eligible)
    without = [run for run in runs if _value(run, metric) is None]
    ordered = _Ordered(
        metric=metric,
        higher_is_better=higher,
        runs=[*ranked, *by_value(others), *without],
        ranked=ranked,
        apart=apart,
    )
    if request.over_time:
        # Of runs made at the same moment the best is the one that took the lead.
        for run in sorted(ranked, key=lambda run: (run.made, worse(run), run.name)):
            if not ordered.steps or worse(run) < worse(ordered.steps[-1]):
                ordered.steps.append(run)
    return ordered


def _first_metric(runs: Sequence[_Run]) -> str:
    """Choose what orders runs of a task: its own first metric, else what most of them name first.

    Only shipped tasks are looked up: the name is whatever somebody's `result.json` says.
    """
    name = runs[0].result.task.name
    if name is not None and name.rpartition("/")[0] in shipped_manifests():
        try:
            own = find_task(name)[2].metrics
        except DinocacheError:  # a task that this version does not have
            own = ()
        if own and _has(runs, own[0]):
            return own[0]
    return Counter(next(iter(run.result.metrics)) for run in runs).most_common(1)[0][0]


def _has(runs: Iterable[_Run], metric: str) -> bool:
    return any(run.estimate(metric) is not None for run in runs)


def _value(run: _Run, metric: str) -> float | None:
    found = run.estimate(metric)
    return None if found is None else found.value


def _lacks_scores(metric: str, kind: str) -> bool:
    """Tell whether the metric needs what is not kept with the predictions."""
    return kind not in _OF_MAPS and bool(needed_thresholds([metric]))


def _test(
    request: LeaderboardRequest,
    groups: Sequence[_Ordered],
    told: Callable[[str, int, int], None],
) -> Iterable[Group]:
    """Do the tests, group by group."""
    total = sum(len(one.tested(request.top)) + max(0, len(one.steps) - 1) for one in groups)
    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        told("tests", done, total)

    for one in groups:
        first, key = one.runs[0], one.runs[0].key
        yield Group(
            task=key.task,
            kind=key.kind,
            classes=key.classes,
            dataset=key.dataset,
            items=first.tested.items,
            groups=first.tested.groups,
            folds=first.tested.folds,
            apart=one.apart,
            metric=one.metric,
            higher_is_better=one.higher_is_better,
            leader=one.ranked[0].name if one.ranked else None,
            lines=tuple(_lines(request, one, count)),
            record=tuple(_record(request, one, count)) if request.over_time else None,
        )


def _lines(
    request: LeaderboardRequest, group: _Ordered, told: Callable[[], None]
) -> Iterable[Line]:
    """Set the first runs of a group against its leader."""
    tested = group.tested(request.top)
    found, reasons = (
        _compare(request, group.metric, group.ranked[0], tested, told) if tested else ({}, {})
    )
    ranks = {run.name: rank for rank, run in enumerate(group.ranked, 1)}
    for run in group.runs:
        estimate = run.estimate(group.metric)
        rank, comparison = ranks.get(run.name), found.get(run.name)
        compared = rank == 1 or comparison is not None
        yield Line(
            run=run.name,
            rank=rank,
            value=estimate and estimate.value,
            low=estimate and estimate.low,
            high=estimate and estimate.high,
            encoder=run.encoder,
            random_weights=run.result.random_weights,
            features=run.result.features,
            head=run.result.head.name,
            seeds=len(run.result.seeds),
            made=run.made,
            comparison=comparison,
            reason="" if compared else reasons.get(run.name) or _untested(group, run, request.top),
        )


def _untested(group: _Ordered, run: _Run, top: int) -> str:
    """Say why nobody tried to compare a run."""
    estimate = run.estimate(group.metric)
    if estimate is None:
        return f"not judged by {group.metric}"
    if estimate.value is None:
        return f"{group.metric} is not defined"
    if _lacks_scores(group.metric, run.result.task.kind):
        return "the thresholds of validation items are not kept"
    if not group.ranked:
        return "nobody leads"
    return f"not tested: below the first {top}"


def _record(
    request: LeaderboardRequest, group: _Ordered, told: Callable[[], None]
) -> Iterable[Step]:
    """Set each run that took the lead against the one that led before."""
    found: list[Comparison] = []
    reasons: dict[str, str] = {}
    for before, run in zip(group.steps, group.steps[1:], strict=False):
        if _lacks_scores(group.metric, run.result.task.kind):
            reasons[run.name] = _untested(group, run, request.top)
            told()
            continue
        compared, refused = _compare(request, group.metric, before, [run], told)
        found += compared.values()
        reasons |= refused
    adjusted = {one.run: one for one in with_holm(found)}
    for place, run in enumerate(group.steps):
        value, comparison = _value(run, group.metric), adjusted.get(run.name)
        assert value is not None
        p = None if comparison is None else comparison.p_holm
        yield Step(
            run=run.name,
            encoder=run.encoder,
            random_weights=run.result.random_weights,
            made=run.made,
            value=value,
            before=group.steps[place - 1].name if place else None,
            comparison=comparison,
            reason=reasons.get(run.name, ""),
            significant=None if p is None else p < SIGNIFICANT,
        )


def _compare(
    request: LeaderboardRequest,
    metric: str,
    base: _Run,
    others: Sequence[_Run],
    told: Callable[[], None],
) -> tuple[dict[str, Comparison], dict[str, str]]:
    """Compare runs with one: name -> comparison, and name -> why there is none."""
    names = {run.folder: run.name for run in others}
    by_folder = {str(run.folder): run.name for run in (base, *others)}
    found, refused = compare_each(
        base.folder,
        list(names),
        metric=metric,
        replicates=request.replicates,
        permutations=request.permutations,
        told=told,
    )
    named = [
        one.model_copy(update={"base": by_folder[one.base], "run": by_folder[one.run]})
        for one in found
    ]
    return (
        {one.run: one for one in named},
        {names[folder]: reason for folder, reason in refused.items()},
    )


def _row(group: Group, line: Line) -> dict[str, object]:
    """Write a run's line, and its step if it took the lead, as cells of a table."""
    with_leader = line.comparison
    step = next((one for one in group.record or () if one.run == line.run), None)
    with_before = step and step.comparison
    return {
        "task": as_text(group.task),
        "kind": group.kind,
        "tested": as_text(group.dataset),
        "items": group.items,
        "groups": group.groups,
        "folds": group.folds,
        "metric": group.metric,
        "better": "higher" if group.higher_is_better else "lower",
        "rank": line.rank,
        "run": line.run,
        "value": line.value,
        "low": line.low,
        "high": line.high,
        "encoder": as_text(line.encoder),
        "weights": "random" if line.random_weights else "",
        "features": as_text("+".join(line.features)),
        "head": as_text(line.head),
        "seeds": line.seeds,
        "made": line.made.isoformat(timespec="seconds"),
        "leader": group.leader,
        "difference": with_leader and with_leader.difference,
        "difference_low": with_leader and with_leader.low,
        "difference_high": with_leader and with_leader.high,
        "p_permutation": with_leader and with_leader.p_permutation,
        "p_holm": with_leader and with_leader.p_holm,
        "reason": line.reason,
        "took_lead_from": step and step.before,
        "lead_difference": with_before and with_before.difference,
        "lead_p_permutation": with_before and with_before.p_permutation,
        "lead_p_holm": with_before and with_before.p_holm,
        "lead_significant": step and step.significant,
    }
