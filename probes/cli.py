"""The command `probe`: parses, calls one function, prints, chooses the exit code."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dinocache.recipe import model_folder
from dinocache.terminal import echo_json, run

if TYPE_CHECKING:
    from probes.fit import FitRequest
    from probes.heads import Setting
    from probes.runs import Result

__all__ = ["app", "main"]


def task_names(start: str) -> list[str]:
    """Complete DATASET/TASK: first the dataset, then the task."""
    from dinocache.manifest import load_manifest, shipped_manifests

    dataset, slash, task = start.partition("/")
    shipped = shipped_manifests()
    if not slash:
        return [f"{name}/" for name in shipped if name.startswith(dataset)]
    if dataset not in shipped:
        return []
    known = load_manifest(shipped[dataset]).tasks
    return [f"{dataset}/{name}" for name in known if name.startswith(task)]


app = typer.Typer(
    help="Light heads on cached features: fit, judge, report. Needs no GPU and no image.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _common() -> None:
    """Light heads on cached features: fit, judge, report. Needs no GPU and no image."""


@app.command()
def fit(
    what: Annotated[
        str,
        typer.Argument(
            autocompletion=task_names,
            metavar="DATASET/TASK|STORE",
            help="A task, as `probe tasks` lists them; or the folder of a store, with --target.",
        ),
    ],
    target: Annotated[
        str | None,
        typer.Option(
            help="Of a store: column of the item table; several with commas are multilabel, each "
            "of 0 and 1."
        ),
    ] = None,
    store: Annotated[Path, typer.Option(help="Of a task: root of the stores.")] = Path("features"),
    model: Annotated[str, typer.Option(help="Of a task: the encoder.")] = "dinov3-s",
    resolution: Annotated[
        str | None, typer.Option(help="Of a task: 512, or 512x640. Default: the only store's.")
    ] = None,
    variant: Annotated[str, typer.Option(help="Of a task: of the store.")] = "",
    head: Annotated[
        str | None,
        typer.Option(
            help="linear (BCE one-vs-rest, AdamW lr 0.005, batch 1024, 50 epochs) "
            "or knn (cosine, k=20). Default: the task's, else linear."
        ),
    ] = None,
    features: Annotated[
        str | None,
        typer.Option(
            help="cls, mean, embed, or several with commas (concatenated). Default: the one that "
            "the encoder's publisher uses."
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="A setting of the head, as lr=0.01; may be given again."),
    ] = None,
    positive: Annotated[
        str | None,
        typer.Option(help="Which of two values is positive. Default: 1, true, yes, else the last."),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            help="Of a store: column with train, val, test, or numbers of folds. Default: `split` "
            "where there is one."
        ),
    ] = None,
    folds: Annotated[
        int | None,
        typer.Option(min=2, help="Cross-validation by group instead. Default without a split: 5."),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(
            min=1, help="Fit this many times, seeds 0, 1, ... Default: the task's, else 1."
        ),
    ] = None,
    drop_missing: Annotated[
        bool, typer.Option(help="Leave out items that have no value of the target.")
    ] = False,
    replicates: Annotated[
        int, typer.Option(min=1, help="Bootstrap replicates behind the intervals.")
    ] = 1000,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Run folder. Default: "
            "runs/<dataset>/<task or target>/<model>-<res>-<kinds>-<head>."
        ),
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print result.json on standard output.")
    ] = False,
) -> None:
    """Fit a head on the features of a store and judge it on items it has not seen.

    Intervals are 95%, by bootstrap over groups (patients). No patient is ever on both sides.

    Examples:
        probe fit nih14/findings --model dinov3-b --resolution 512
        probe fit features/demo/dinov3-s/256 --target projection --positive pa
        probe fit features/nih14/dinov3-b/512 --target Effusion,Edema --head knn --set k=50
    """
    from dinocache.errors import RequestError
    from dinocache.manifest import find_task
    from probes.fit import FitRequest
    from probes.fit import fit as run_fit
    from probes.tasks import store_of, task_request

    kinds = None if features is None else _parts(features)
    if target is None and not Path(what).is_dir():
        if positive or split or folds:
            raise RequestError("a task says itself what --positive, --split and --folds would")
        manifest, _, task = find_task(what)
        place = store_of(store, manifest.name, model=model, resolution=resolution, variant=variant)
        request = task_request(
            what,
            place,
            head=head,
            features=kinds,
            settings=_settings(head or task.head, set_) if set_ else {},
            seeds=seeds,
            replicates=replicates,
        )
    elif target is None:
        raise RequestError(f"{what} is a folder: say what is to be told with --target COLUMN")
    else:
        request = FitRequest(
            store=Path(what),
            targets=_parts(target),
            head=head or "linear",
            features=kinds,
            settings=_settings(head or "linear", set_),
            positive=positive,
            split=split,
            folds=folds,
            seeds=seeds or 1,
            drop_missing=drop_missing,
            replicates=replicates,
        )
    fitted = run_fit(request)
    folder = out or _default_folder(request, fitted.result)
    fitted.result.write(folder, fitted.predictions, fitted.arrays)
    if json:
        echo_json(fitted.result.model_dump(mode="json"))
    else:
        _print_result(fitted.result)
        print(f"run: {folder}")


@app.command()
def tasks(
    dataset: Annotated[
        str | None, typer.Argument(help="One dataset, or the path of a manifest.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")] = False,
) -> None:
    """List the tasks that `probe fit` takes by name, and the tables of the paper they answer to."""
    from rich.console import Console
    from rich.table import Table

    from probes.heads import HEADS
    from probes.tasks import list_tasks

    listed = list_tasks(dataset)
    if json:
        echo_json(listed)
        return
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for title in ("task", "kind", "head", "paper", "title"):
        table.add_column(title, no_wrap=title != "title", overflow="fold")
    for task in listed:
        numbers = sorted({published["table"] for published in task["paper"]})
        table.add_row(
            task["task"],
            task["kind"],
            task["head"] + ("" if task["head"] in HEADS else " *"),
            f"Table {', '.join(map(str, numbers))}" if numbers else "",
            task["title"],
        )
    Console(highlight=False).print(table)
    if any(task["head"] not in HEADS for task in listed):
        print(
            f"\n* a head that is to come; --head takes {', '.join(HEADS)} where a task classifies"
        )


@app.command()
def report(
    runs: Annotated[Path, typer.Argument(help="Folder with runs, at any depth.")],
    store: Annotated[
        Path | None,
        typer.Option(help="A store with dense and image: adds a PCA picture of its first item."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The page to write. Default: report.html in the folder.")
    ] = None,
) -> None:
    """Write one HTML page, complete in itself, with a table of all runs below a folder."""
    from probes.report import write_report

    print(f"report: {write_report(runs, out or runs / 'report.html', store)}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Without the program; None takes the process's own.

    Returns:
        The exit code.
    """
    return run(app, "probe", arguments)


def _settings(head: str, texts: Sequence[str] | None) -> "dict[str, Setting]":
    from dinocache.errors import RequestError
    from probes.heads import HEADS, parse_settings

    if head not in HEADS:
        raise RequestError(f"--head {head!r}: choose from {', '.join(HEADS)}")
    try:
        return parse_settings(head, texts or [])
    except ValueError as exc:
        raise RequestError(f"--set: {exc}") from exc


def _parts(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _default_folder(request: "FitRequest", result: "Result") -> Path:
    store = result.store
    variant = f"-{store.variant}" if store.variant else ""
    target = "+".join(
        "".join(c if c.isalnum() or c in "._-" else "_" for c in t) for t in request.targets
    )
    if request.task:
        target = request.task.rpartition("/")[2]
    name = (
        f"{model_folder(store.model)}-{store.resolution}{variant}-{'+'.join(result.features)}-"
        f"{result.head.name}"
    )
    return Path("runs") / store.dataset / target[:100] / name


def _print_result(result: "Result") -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    if result.store.random_weights:
        console.print(
            f"RANDOM WEIGHTS ({result.store.weights}): these figures say nothing about the model",
            style="bold red",
            markup=False,
        )
    positive = f", positive: {result.task.classes[0]}" if result.task.kind == "binary" else ""
    split = result.split
    protocol = f"split {split.column!r}" if split.column else f"{split.folds} folds by group"
    console.print(f"{result.title}{positive}", markup=False, soft_wrap=True)
    console.print(
        f"{result.items} items of {result.groups} groups, {protocol}, about {split.n_train:.0f} "
        f"train and {split.n_test:.0f} test; {len(result.seeds)} seed(s); {len(result.left_out)} "
        "items left out",
        markup=False,
        soft_wrap=True,
    )
    table = Table(show_edge=False, pad_edge=False)
    for name, justify in (
        ("metric", "left"),
        ("value", "right"),
        ("95% interval", "right"),
        ("sd seeds", "right"),
    ):
        table.add_column(name, justify="left" if justify == "left" else "right")
    for metric, found in result.metrics.items():
        interval = "-" if found.low is None else f"{found.low:.3f} to {found.high:.3f}"
        table.add_row(metric, _figure(found.value), interval, _figure(found.sd_seeds))
    console.print(table)
    if result.auc_skipped:
        console.print(
            "AUC leaves out (one label value among the test items): "
            f"{', '.join(result.auc_skipped)}",
            markup=False,
        )


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
