"""What the command line prints of datasets and of a download's index."""

from collections.abc import Mapping, Sequence
from typing import Any

from dinocache.index import Index
from dinocache.manifest import OFFICIAL, Folds, Manifest, SplitRule
from dinocache.places import Where
from dinocache.roots import find_stores
from dinocache.terminal import console

__all__ = ["dataset_facts", "print_dataset", "print_datasets", "print_index"]

_SHOWN = 20
_MOST_VALUES = 12


def dataset_facts(manifest: Manifest, root: Where) -> dict[str, Any]:
    """Say all that a manifest does, and which stores of it there are.

    Args:
        manifest: The manifest.
        root: Of stores.

    Returns:
        Facts under JSON's types.
    """
    return {
        **manifest.model_dump(mode="json"),
        "stores": [place.name for place in find_stores(root, manifest.name)],
    }


def print_datasets(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print several as a table, on standard output."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for title in ("name", "modality", "items", "paper", "stores", "tasks"):
        right = title in ("items", "stores")
        table.add_column(
            title,
            justify="right" if right else "left",
            no_wrap=title not in ("modality", "tasks"),
            overflow="fold",
            max_width=12 if title == "modality" else None,
        )
    for row in rows:
        tables = sorted({p["table"] for t in row["tasks"].values() for p in t["paper"]})
        table.add_row(
            row["name"],
            row["modality"],
            f"{row['expect'].get('items', 0):,}",
            f"Table {', '.join(map(str, tables))}" if tables else "",
            str(len(row["stores"]) or ""),
            ", ".join(row["tasks"]),
        )
    console().print(table)
    print("\ndinocache datasets NAME explains one; manifests/README.md says how to write your own")


def print_dataset(facts: Mapping[str, Any], manifest: Manifest) -> None:
    """Explain one, on standard output."""
    out = console()

    def say(text: str = "", style: str | None = None) -> None:
        out.print(text, style=style, soft_wrap=False)

    say(f"{manifest.name}: {manifest.title}", "bold")
    for name, value in (
        ("licence", manifest.licence),
        ("cite", manifest.citation),
        ("home", manifest.home),
        ("to obtain", manifest.obtain),
    ):
        say(f"{name + ':':<11}{' '.join(value.split())}")
    expected = ", ".join(f"{n:,} {what}" for what, n in manifest.expect.items())
    say(f"{'expected:':<11}{expected or 'nothing is asserted'}")
    if manifest.layout:
        say(f"\nThe data folder (--data, by default data/{manifest.name}):", "bold")
        say("\n".join(f"  {line}" for line in manifest.layout.rstrip().splitlines()))
    if manifest.oddities:
        say("\nTo know:", "bold")
        for oddity in manifest.oddities:
            say(f"- {' '.join(oddity.split())}")
    if manifest.splits:
        say("\nSplits, beside the official one:", "bold")
        for name, rule in manifest.splits.items():
            say(f"- {name}: {_rule_words(rule)}")
    if manifest.tasks:
        say("\nTasks:", "bold")
    for name, task in manifest.tasks.items():
        paper = "; ".join(
            " ".join([f"Table {p.table}", *(f"{k} {v}" for k, v in p.where.items())])
            for p in task.paper
        )
        targets = f" of {', '.join(task.targets)}" if task.targets else ""
        if task.labels:
            targets = f" of {', '.join(task.labels.values())}"
        say(f"- {manifest.name}/{name}: {task.title}")
        say(f"    {task.kind}{targets}; {_protocol(task.split, bool(task.rows), task.train_on)}")
        say(f"    head {task.head}; {', '.join(task.metrics)}{f'; {paper}' if paper else ''}")
        for note in task.notes:
            say(f"    note: {' '.join(note.split())}")
    extraction = manifest.extract
    say("\nThen:", "bold")
    say(f"  dinocache index {manifest.name} --data DIR")
    sizes = ", ".join(str(r) for r in extraction.resolutions)
    say(
        f"  dinocache extract {manifest.name} --data DIR      reader {extraction.reader}, "
        f"{','.join(extraction.features)}, at {sizes}"
    )
    for store in facts["stores"]:
        say(f"  a store is here: {store}")


def _protocol(split: str, by_rows: bool, train_on: str | None) -> str:
    if by_rows:
        return "split by ranges of rows"
    named = "the official split" if split == OFFICIAL else f"split {split}"
    return f"{named}, trained on {train_on}" if train_on else named


def _rule_words(rule: SplitRule) -> str:
    base = f", of the {rule.base} split's train side" if rule.base else ""
    if isinstance(rule, Folds):
        strata = f", stratified by {', '.join(rule.stratify)}" if rule.stratify else ""
        purpose = "validation" if rule.base else "testing"
        more = f", {rule.validation:.1%} of the rest for validation" if rule.validation else ""
        return f"{rule.folds} folds for {purpose} by group{strata}{base}, seed {rule.seed}{more}"
    steps = [
        f"{step.share:.0%} of {step.of} become {step.to}"
        + (f" (stratified by {', '.join(step.stratify)})" if step.stratify else "")
        + f", seed {step.seed}"
        for step in rule.steps
    ]
    return "; ".join(steps) + base


def print_index(index: Index) -> None:
    """Print what a download has, on standard output."""
    dataset = index.dataset
    table = dataset.table
    print(
        f"{dataset.name}: {len(table):,} items of {table['group'].nunique():,} groups under "
        f"{dataset.data}"
    )
    if dataset.missing:
        _list("missing", [str(i) for i in dataset.missing], "items have no file")
    for note in dataset.notes[1 if dataset.missing else 0 :]:
        print(f"differs: {note}")
    for name, paths in index.unlisted.items():
        _list("not used", paths, f"files of {name!r} belong to no item")
    if index.unreadable:
        reasons = [f"{item_id}: {why}" for item_id, why in index.unreadable.items()]
        _list("unreadable", reasons, "items cannot be opened")
    for column, facts in index.splits.items():
        words = [_side_words(facts.items)] if facts.items else []
        words += [f"on no side {facts.outside:,}"] if facts.outside else []
        print(f"{column}: {', '.join(words)}; sha256 {facts.digest[:12]}")
    if index.splits:
        print("no group is on two sides")
    for name, targets in index.targets.items():
        for target, values in targets.items():
            if len(values) > _MOST_VALUES:
                print(f"task {name}, {target}: {len(values)} values")
                continue
            words = [f"{value}: {_side_words(sides)}" for value, sides in values.items()]
            print(f"task {name}, {target} = {'; '.join(words)}")
    print("whole: everything is there" if index.is_whole else "not whole")


def _side_words(counts: dict[str, int]) -> str:
    """Write `train 8, val 1, test 2`; folds by their numbers; what has no side as a number."""
    if set(counts) == {""}:
        return f"{counts['']:,}"
    order: Sequence[str] = ("train", "val", "test")
    folds = [side for side in counts if side not in order]
    words = [f"fold {side} {counts[side]:,}" for side in sorted(folds)]
    return ", ".join([*(f"{side} {counts[side]:,}" for side in order if side in counts), *words])


def _list(what: str, found: Sequence[str], said: str) -> None:
    print(f"{what}: {len(found):,} {said}")
    for text in found[:_SHOWN]:
        print(f"  {text}")
    if len(found) > _SHOWN:
        print(f"  and {len(found) - _SHOWN:,} more, all of them with --json")
