"""The command `probe`: parses, calls one function, prints, chooses the exit code."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dinocache.terminal import echo_json, run

if TYPE_CHECKING:
    from probes.heads import Setting
    from probes.request import TestOn
    from probes.sweep import Planned, Ran

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


Target = Annotated[
    str | None,
    typer.Option(
        help="Column of the item table, where no task is named; several with commas are "
        "multilabel, each of 0 and 1."
    ),
]
Root = Annotated[
    str, typer.Option("--store", help="Of a task: root of the stores, a folder or a URL.")
]
Model = Annotated[str, typer.Option(help="Of a task: the encoder.")]
Resolution = Annotated[
    str | None, typer.Option(help="Of a task: 512, or 512x640. Default: the only store's.")
]
Variant = Annotated[str, typer.Option(help="Of a task: of the store.")]
Features = Annotated[
    str | None,
    typer.Option(
        help="cls, mean, embed, or several with commas (concatenated). Default: the one that "
        "the encoder's publisher uses."
    ),
]
Pooling = Annotated[
    str | None,
    typer.Option(
        help="How slices, tiles or frames become an item's vector: mean (as stored; the "
        "default), max, mean+std; or attention, which is learned (--head abmil)."
    ),
]
Folds = Annotated[
    int | None,
    typer.Option(
        min=2,
        help="Cross-validation by group, stratified by label, instead of a split. Default without "
        "a split: 5.",
    ),
]
Repeats = Annotated[
    int, typer.Option(min=1, help="Deal folds, or draw shots or a fraction, this many times.")
]
Search = Annotated[
    bool,
    typer.Option(
        help="Try settings (linear: 24 of lr and weight decay; knn: k) and keep what is best on "
        "validation items, fold by fold."
    ),
]
Seeds = Annotated[
    int | None,
    typer.Option(min=1, help="Fit this many times, seeds 0, 1, ... Default: the task's, else 1."),
]
Metrics = Annotated[
    str | None,
    typer.Option(
        help="Names with commas, see `probe metrics`. Default: the task's, else "
        "auc,average_precision,accuracy,precision,recall,f1."
    ),
]
By = Annotated[
    str | None,
    typer.Option(
        help="Columns with commas (sex,centre,scanner): judge each of their values apart."
    ),
]
Replicates = Annotated[int, typer.Option(min=1, help="Bootstrap replicates behind the intervals.")]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust", help="Take what somebody declared of imported features for what they are."
    ),
]
ResultAsJson = Annotated[bool, typer.Option("--json", help="Print result.json on standard output.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]


@app.command()
def fit(
    what: Annotated[
        str,
        typer.Argument(
            autocompletion=task_names,
            metavar="DATASET/TASK|STORE",
            help="A task, as `probe tasks` lists them; or the folder of a store, with --target, "
            "--labels or --instances.",
        ),
    ],
    target: Target = None,
    store: Root = "features",
    model: Model = "dinov3-s",
    resolution: Resolution = None,
    variant: Variant = "",
    head: Annotated[
        str | None,
        typer.Option(
            help="linear (BCE one-vs-rest, AdamW lr 0.005, batch 1024, 50 epochs), logistic "
            "(C swept on validation items), knn (cosine, k=20), xgboost, or abmil (gated attention "
            "over an item's rows). Default: the task's, else linear."
        ),
    ] = None,
    features: Features = None,
    pool: Pooling = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="A setting of the head, as lr=0.01; may be given again."),
    ] = None,
    search: Search = False,
    grid: Annotated[
        list[str] | None,
        typer.Option(help="Search these values instead, as lr=0.01,0.001; may be given again."),
    ] = None,
    positive: Annotated[
        str | None,
        typer.Option(help="Which of two values is positive. Default: 1, true, yes, else the last."),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            metavar="VALUE=NAME,...",
            help="Of a store with maps and masks: what the mask's values are, as 1=liver,2=tumour; "
            "fits a head of maps: decoder3d, decoder2d (the default), linear2d.",
        ),
    ] = None,
    instances: Annotated[
        bool,
        typer.Option(
            "--instances",
            help="Of a store with maps and masks of ids: fits affinities, joined to neurons.",
        ),
    ] = False,
    rows: Annotated[
        str | None,
        typer.Option(
            metavar="SIDE=FIRST:BEHIND,...",
            help="Of volumes: which rows train and are tested, as train=0:100,test=100:125, or of "
            "an item, train=AC4@0:80.",
        ),
    ] = None,
    present_only: Annotated[
        bool,
        typer.Option(
            "--present-only",
            help="Of masks: means over the items whose truth has the label, as autoPET's.",
        ),
    ] = False,
    split: Annotated[
        str | None,
        typer.Option(
            help="Of a store: column with train, val, test, or numbers of folds. Default: `split` "
            "where there is one."
        ),
    ] = None,
    folds: Folds = None,
    repeats: Repeats = 1,
    shots: Annotated[
        int | None, typer.Option(min=1, help="Train on this many items of each class.")
    ] = None,
    fraction: Annotated[
        float | None, typer.Option(help="Train on this share of the training groups.")
    ] = None,
    validation: Annotated[
        float | None,
        typer.Option(
            help="Share of the training groups that chooses and does not train. Default: the "
            "task's; 0.2 where something is to be chosen and the split has no such side."
        ),
    ] = None,
    test_on: Annotated[
        str | None,
        typer.Option(
            autocompletion=task_names,
            metavar="DATASET/TASK|STORE",
            help="Test on these items, of the same recipe, instead.",
        ),
    ] = None,
    trust: Trust = False,
    seeds: Seeds = None,
    metrics: Metrics = None,
    by: By = None,
    drop_missing: Annotated[
        bool, typer.Option(help="Leave out items that have no value of the target.")
    ] = False,
    replicates: Replicates = 1000,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Run folder. Default: runs/<dataset>/<task or target>/"
            "<model>-<res>-<kinds>-<head>, and what else is not as usual."
        ),
    ] = None,
    json: ResultAsJson = False,
) -> None:
    """Fit a head on the features of a store and judge it on items it has not seen.

    Intervals are 95%, by bootstrap over groups (patients). No patient is ever on both sides.

    Examples:
        probe fit nih14/findings --model dinov3-b --resolution 512
        probe fit features/demo/dinov3-s/256 --target projection --positive pa
        probe fit features/nih14/dinov3-b/512 --target Effusion,Edema --head linear --search
        probe fit camelyon17/unseen --model dinov3-l
        probe fit edd2020/diseases --model dinov3-b --head linear2d
        probe fit features/scans/dinov3-s/512 --labels 1=liver,2=tumour --head decoder3d --folds 5
        probe fit features/stack/dinov3-s/512 --instances --rows train=0:100,test=100:125
        probe fit nih14/findings --shots 10 --repeats 5 --by sex
    """
    from dinocache.errors import RequestError
    from dinocache.manifest import find_task
    from probes.fit import fit as run_fit
    from probes.places import run_folder
    from probes.printing import print_result
    from probes.request import SEARCHES, FitRequest
    from probes.tasks import store_of, task_request

    is_task = target is None and not _is_place(what)
    of_maps = is_task and find_task(what)[2].kind in _OF_MAPS
    if labels is not None or instances or of_maps:
        if (labels is not None) + instances + (target is not None) > 1:
            raise RequestError(
                "--labels, --instances and --target are three sorts of fits; give one of them"
            )
        usual = find_task(what)[2].head if of_maps else "affinity" if instances else "decoder2d"
        chosen = head or usual
        _fit_maps(
            what,
            is_task=is_task,
            labels=labels,
            instances=instances,
            rows=rows,
            present_only=present_only or None,
            place={"root": store, "model": model, "resolution": resolution, "variant": variant},
            out=out,
            json=json,
            head=head,
            features=None if features is None else _parts(features),
            settings=_settings(chosen, set_) if set_ else None,
            split=split,
            folds=folds,
            validation=validation,
            seeds=seeds,
            metrics=None if metrics is None else _parts(metrics),
            replicates=replicates,
        )
        return
    if rows or present_only:
        raise RequestError("--rows and --present-only are of maps; give --labels or --instances")
    if is_task and (positive or split or folds):
        raise RequestError("a task says itself what --positive, --split and --folds would")
    if target is None and not is_task:
        raise RequestError(f"{what} is a folder: say what is to be told with --target COLUMN")
    named = find_task(what)[2] if is_task else None
    chosen = head or (named.head if named else "linear")
    asked: dict[str, Any] = {
        "head": head,
        "features": None if features is None else _parts(features),
        "pool": _pool(pool),
        "settings": _settings(chosen, set_) if set_ else {},
        "grid": _grid(chosen, grid) or (dict(SEARCHES.get(chosen, {})) if search else {}),
        "repeats": repeats,
        "shots": shots,
        "fraction": fraction,
        "validation": validation,
        "seeds": seeds,
        "metrics": None if metrics is None else _parts(metrics),
        "by": _parts(by or ""),
        "replicates": replicates,
    }
    if search and not asked["grid"]:
        raise RequestError(f"--search: {chosen} has nothing to try; name values with --grid")
    place: dict[str, Any] = {"model": model, "resolution": resolution, "variant": variant}
    if named is not None:
        manifest = find_task(what)[0]
        trains = find_task(named.train_on)[0].name if named.train_on else None
        request = task_request(
            what,
            store_of(store, manifest.name, **place),
            train_store=store_of(store, trains, **place) if trains else None,
            test_on=_test_on(test_on, (), None, store, place, trust=trust),
            **asked,
        )
    else:
        columns = _parts(target or "")
        request = FitRequest(
            store=what,
            targets=columns,
            positive=positive,
            split=split,
            folds=folds,
            drop_missing=drop_missing,
            test_on=_test_on(test_on, columns, positive, store, place, trust=trust),
            **{k: v for k, v in asked.items() if v is not None},
        )
    fitted = run_fit(request)
    folder = out or Path("runs") / run_folder(request)
    fitted.result.write(folder, fitted.predictions, fitted.arrays)
    if json:
        echo_json(fitted.result.model_dump(mode="json"))
    else:
        print_result(fitted.result)
        print(f"run: {folder}")


_OF_MAPS = ("segmentation", "instances", "registration")


def _fit_maps(
    what: str,
    *,
    is_task: bool,
    labels: str | None,
    instances: bool,
    rows: str | None,
    place: dict[str, Any],
    out: Path | None,
    json: bool,
    **asked: Any,  # noqa: ANN401 - fields of MapRequest
) -> None:
    """Fit a head of maps, and print what it is worth."""
    from dinocache.errors import RequestError
    from dinocache.manifest import find_task
    from probes.map_fit import fit_maps
    from probes.map_request import MapRequest, parse_labels, parse_rows
    from probes.places import map_folder
    from probes.printing import print_result
    from probes.tasks import map_request, store_of

    if is_task:
        if labels or instances or rows or asked["split"] or asked["folds"]:
            raise RequestError(
                "a task says itself what --labels, --instances, --rows, --split and --folds would"
            )
        asked = {k: v for k, v in asked.items() if k not in ("split", "folds")}
        root = place.pop("root")
        request = map_request(what, store_of(root, find_task(what)[0].name, **place), **asked)
    else:
        said = {key: value for key, value in asked.items() if value is not None}
        if instances:
            said = {"head": "affinity", **said, "kind": "instances"}
        request = MapRequest(
            store=what,
            labels=parse_labels(labels) if labels else {},
            rows=parse_rows(rows) if rows else {},
            **said,
        )
    folder = out or Path("runs") / map_folder(request)
    fitted = fit_maps(request, folder)
    fitted.result.write(folder, fitted.predictions, fitted.arrays)
    if json:
        echo_json(fitted.result.model_dump(mode="json"))
    else:
        print_result(fitted.result)
        print(f"run: {folder}; predicted labels: {folder / 'labels'}")


@app.command()
def register(
    what: Annotated[
        str,
        typer.Argument(
            autocompletion=task_names,
            metavar="DATASET/TASK|STORE",
            help="A task, as `probe tasks` lists them; or the folder of a store, with --by, --role,"
            " --moving, --fixed and --labels.",
        ),
    ],
    store: Root = "features",
    model: Model = "dinov3-s",
    resolution: Resolution = None,
    variant: Variant = "",
    features: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL@RESOLUTION|KIND,...",
            help="What is compared: dense (maps of the store), mind, image; an encoder may be "
            "named with them, as dinov3-l@512. Default: the task's, else dense.",
        ),
    ] = None,
    with_: Annotated[
        str | None, typer.Option("--with", help="A feature beside them: mind, image.")
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="convexadam (trains nothing; the default), voxelmorph (a U-Net, trained on the "
            "training pairs' images, or their maps), or unregistered."
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="A setting of the method, as lambda_weight=0.75, grid_sp=2x4x4 (z, y, x); of "
            "several values with commas validation pairs choose one. May be given again.",
        ),
    ] = None,
    by: Annotated[
        str | None, typer.Option(help="Of a store: column that is the same for both of a pair.")
    ] = None,
    role: Annotated[
        str | None, typer.Option(help="Of a store: column that tells the two apart.")
    ] = None,
    moving: Annotated[
        str | None, typer.Option(help="Of a store: its value for what is warped.")
    ] = None,
    fixed: Annotated[str | None, typer.Option(help="Of a store: its value for the other.")] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            metavar="VALUE=NAME,...", help="Of a store: what the mask's values are, as 1=ventricle."
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(help="Column with train, val, test. Default: the task's, else `split`."),
    ] = None,
    folds: Folds = None,
    all_: Annotated[
        bool, typer.Option("--all", help="Test every pair; nothing is chosen or trained then.")
    ] = False,
    metrics: Metrics = None,
    replicates: Replicates = 1000,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Run folder. Default: runs/<dataset>/<task>/<model>-<res>-<features>-<method>, "
            "and what else is not as usual."
        ),
    ] = None,
    json: ResultAsJson = False,
) -> None:
    """Register pairs of images by the features of a store, and judge how well their labels agree.

    Maps become principal components, of one basis for both images. Each pair leaves its
    displacement (NIfTI, in mm as ITK reads it, and in voxels), the warped image and labels, and
    the first ones a picture. The pairs as they are, unregistered, stand beside every result.

    Examples:
        probe register acdc/ed-es --features dinov3-l@512 --with mind
        probe register acdc/ed-es --features mind
        probe register camus/ed-es --features dinov3-b@512 --set lambda_weight=0.25,0.75,1.25
        probe register acdc/ed-es --features image --method voxelmorph
        probe register features/mine/dinov3-s/256 --by patient --role visit --moving 1 --fixed 2 \
            --labels 1=liver --all
    """
    from dinocache.errors import RequestError
    from dinocache.manifest import Pairs, find_task
    from probes.map_request import parse_labels
    from probes.places import registration_folder
    from probes.printing import print_registration
    from probes.register import register as run_register
    from probes.register_request import RegisterRequest, parse_method_settings
    from probes.tasks import registration_request, store_of

    named = {"--by": by, "--role": role, "--moving": moving, "--fixed": fixed, "--labels": labels}
    is_task = not _is_place(what)
    if is_task and (kind := find_task(what)[2].kind) != "registration":
        raise RequestError(f"{what} is of the kind {kind}: `probe fit {what}` does it")
    kinds, encoder = _kinds_and_encoder(features)
    chosen = method or (find_task(what)[2].head if is_task else "convexadam")
    try:
        values = parse_method_settings(chosen, set_ or [])
    except ValueError as exc:
        raise RequestError(f"--set: {exc}") from exc
    asked: dict[str, Any] = {
        "method": method,
        "features": kinds or None,
        "settings": {name: found[0] for name, found in values.items() if len(found) == 1},
        "grid": {name: found for name, found in values.items() if len(found) > 1},
        "split": split,
        "folds": folds,
        "everything": all_ or None,
        "metrics": None if metrics is None else _parts(metrics),
        "replicates": replicates,
    }
    if with_ is not None:
        usual = (find_task(what)[2].features if is_task else ()) or ("dense",)
        asked["features"] = tuple(dict.fromkeys([*(kinds or usual), *_parts(with_)]))
    if is_task:
        if given := [option for option, value in named.items() if value is not None]:
            raise RequestError(f"a task says itself what {given[0]} would")
        place: dict[str, Any] = {"model": encoder[0] or model}
        place |= {"resolution": encoder[1] or resolution, "variant": variant}
        where = store_of(store, find_task(what)[0].name, **place)
        request = registration_request(what, where, **asked)
    else:
        if encoder[0]:
            raise RequestError(f"--features {features}: a store says itself which encoder it is of")
        if lacking := [option for option, value in named.items() if value is None]:
            raise RequestError(f"{what} is a folder: say which items are pairs with {lacking[0]}")
        request = RegisterRequest(
            store=what,
            pairs=Pairs(by=by or "", role=role or "", moving=moving or "", fixed=fixed or ""),
            labels=parse_labels(labels or ""),
            **{key: value for key, value in asked.items() if value is not None},
        )
    folder = out or Path("runs") / registration_folder(request)
    found = run_register(request, folder)
    found.result.write(folder, found.predictions, found.arrays)
    if json:
        echo_json(found.result.model_dump(mode="json"))
    else:
        print_registration(found.result)
        moved = f"; displacements: {folder / 'pairs'}" if request.method != "unregistered" else ""
        print(f"run: {folder}{moved}")


def _kinds_and_encoder(
    features: str | None,
) -> tuple[tuple[str, ...], tuple[str | None, str | None]]:
    """Tell MODEL@RESOLUTION from kinds: (kinds, (model, resolution))."""
    from dinocache.errors import RequestError

    parts = _parts(features or "")
    encoders = [part for part in parts if "@" in part]
    if len(encoders) > 1:
        raise RequestError(f"--features {features!r}: name one encoder; `probe sweep` takes more")
    model, _, resolution = encoders[0].rpartition("@") if encoders else ("", "", "")
    kinds = tuple(part for part in parts if "@" not in part)
    return kinds, (model or None, resolution or None)


@app.command()
def sweep(
    what: Annotated[
        list[str],
        typer.Argument(
            autocompletion=task_names,
            metavar="DATASET/TASK...",
            help="Tasks; or datasets, with --target.",
        ),
    ],
    target: Target = None,
    store: Root = "features",
    model: Annotated[
        str | None, typer.Option(help="Encoders with commas. Default: all that have stores.")
    ] = None,
    resolution: Annotated[
        str | None, typer.Option(help="Resolutions with commas. Default: all that have stores.")
    ] = None,
    variant: Variant = "",
    head: Annotated[
        str | None,
        typer.Option(
            help="Heads, or methods of registration, with commas. Default: each task's own, else "
            "linear."
        ),
    ] = None,
    features: Annotated[
        str | None,
        typer.Option(help="cls, mean, dense; alternatives with commas, to be concatenated with +."),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Alternatives of a setting, as knn.k=5,20 or lr=0.01,0.001; may be given again.",
        ),
    ] = None,
    search: Search = False,
    folds: Folds = None,
    repeats: Repeats = 1,
    shots: Annotated[
        str | None, typer.Option(help="Training items a class; alternatives with commas.")
    ] = None,
    fraction: Annotated[
        str | None, typer.Option(help="Share of the training groups; alternatives with commas.")
    ] = None,
    seeds: Seeds = None,
    metrics: Metrics = None,
    by: By = None,
    replicates: Replicates = 1000,
    out: Annotated[Path, typer.Option(help="Folder that all runs go to.")] = Path("runs"),
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Runs at once. Default: as many as there are cores.")
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(help="Write the report of all runs in --out there, as `probe report` does."),
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="Only list what would be done.")] = False,
    json: AsJson = False,
) -> None:
    """Fit tasks by encoders by resolutions by heads; what is there and has not changed is left.

    Tasks of maps are fitted, and pairs registered (--head takes the method), likewise.

    Interrupt it at any time: the same command goes on. A run that fails is named, and stops no
    other; the exit code is then 1.

    Examples:
        probe sweep nih14/findings rsna-pneumonia/pneumonia --head linear,knn --seeds 3
        probe sweep demo --target projection --head linear,logistic,knn,xgboost --report report
        probe sweep nih14/findings --shots 1,5,10,50 --repeats 5
        probe sweep acdc/ed-es --features dense+mind,dense,mind --set components=12,24,48
    """
    from dinocache.manifest import find_task
    from probes.request import SEARCHES
    from probes.sweep import SweepRequest, plan_sweep

    heads = None if head is None else _parts(head)
    named = ("linear",) if target else [find_task(one)[2].head for one in what]
    varied = {
        "features": None
        if features is None
        else tuple(tuple(one.split("+")) for one in _parts(features)),
        "shots": None if shots is None else _numbers("--shots", shots, int),
        "fraction": None if fraction is None else _numbers("--fraction", fraction, float),
    }
    fixed = {
        "folds": folds,
        "repeats": repeats,
        "seeds": seeds,
        "metrics": None if metrics is None else _parts(metrics),
        "by": _parts(by or ""),
        "replicates": replicates,
    }
    planned = plan_sweep(
        SweepRequest(
            tasks=tuple(what),
            root=store,
            out=out,
            targets=None if target is None else _parts(target),
            models=None if model is None else _parts(model),
            resolutions=None if resolution is None else _parts(resolution),
            variant=variant,
            heads=heads,
            settings=_alternatives(heads or tuple(dict.fromkeys(named)), set_ or []),
            searches=SEARCHES if search else {},
            varied={key: values for key, values in varied.items() if values},
            fixed={key: value for key, value in fixed.items() if value is not None},
        )
    )
    if dry_run:
        for one in planned:
            print(f"{'there' if one.unchanged else 'to do'}  {one.folder}")
        return
    failed = _run_sweep(planned, out, jobs, as_json=json)
    if report is not None and failed < len(planned):
        _write_report(out, report, store, "summary", as_json=False, quiet=json)
    if failed:
        raise typer.Exit(1)


@app.command()
def predict(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    store: Annotated[
        str, typer.Argument(help="A store of the same recipe as the run's: its folder, or a URL.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Write the scores there: .csv or .parquet (default: print the first). Of maps: "
            "folder of label files (default: predicted)."
        ),
    ] = None,
    replicates: Replicates = 1000,
    trust: Trust = False,
    json: AsJson = False,
) -> None:
    """Ask the heads of a run about the items of another store.

    Scores are means over the run's seeds and folds. Where the store holds the run's targets, each
    head is judged, with intervals by bootstrap over groups.

    Of a run of maps, labels are written: of each pixel by the mean over the heads, as NIfTI, PNG
    or, of neurons, HDF5. Where the store holds masks, these labels are judged.

    Examples:
        probe predict runs/nih14/findings/dinov3-b-512-cls-linear features/mychests/dinov3-b/512
        probe predict runs/scans/liver+tumour/dinov3-s-512-dense-decoder3d features/new/dinov3-s/512
    """
    from dinocache.errors import RequestError
    from probes.fitted import FittedRun
    from probes.printing import console, print_estimates
    from probes.runs import Result, write_table

    if Result.read(run_folder).pool == "maps":
        _predict_maps(run_folder, store, out, replicates=replicates, trust=trust, json=json)
        return
    if out is not None and out.suffix not in (".csv", ".parquet"):
        raise RequestError(f"--out {out}: end it in .csv or .parquet")
    answer = FittedRun.read(run_folder).predict(store, replicates=replicates, trust=trust)
    if out is not None:
        write_table(answer.table, out)
    if json:
        metrics = {k: v.model_dump() for k, v in (answer.metrics or {}).items()}
        items = answer.table.to_dict(orient="records")
        echo_json({"metrics": metrics, "left_out": answer.left_out, "items": items})
        return
    if out is None:
        shown = answer.table.head(20)
        console().print(shown.to_string(index=False, float_format="{:.3f}".format))
    print(
        f"{len(answer.table)} items, {len(answer.left_out)} left out" + (f": {out}" if out else "")
    )
    if answer.metrics:
        print_estimates(answer.metrics, sd=True)


def _predict_maps(
    run_folder: Path, store: str, out: Path | None, *, replicates: int, trust: bool, json: bool
) -> None:
    """Label the items of a store, and say where the labels lie."""
    from probes.fitted_maps import predict_maps
    from probes.printing import print_estimates

    folder = out or Path("predicted")
    answer = predict_maps(run_folder, store, folder, replicates=replicates, trust=trust)
    if json:
        metrics = {k: v.model_dump() for k, v in (answer.metrics or {}).items()}
        items = answer.table.astype(object).where(answer.table.notna(), None)
        echo_json(
            {
                "labels": str(folder),
                "metrics": metrics,
                "left_out": answer.left_out,
                "items": items.to_dict(orient="records"),
            }
        )
        return
    print(f"{len(answer.table)} items, {len(answer.left_out)} left out; labels: {folder}")
    if answer.metrics:
        print_estimates(answer.metrics)


@app.command()
def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN RUN...", help="Run folders; each is set against the first."),
    ],
    metrics: Annotated[
        str | None, typer.Option(help="Names with commas. Default: those that all runs have.")
    ] = None,
    replicates: Replicates = 1000,
    permutations: Annotated[int, typer.Option(min=1, help="Of the permutation test.")] = 1000,
    json: AsJson = False,
) -> None:
    """Test whether runs differ on the same items, patient by patient.

    Difference, 95% interval and p by bootstrap over groups; p by permutation, where whole groups
    swap runs; p by DeLong for the AUC of one column on one test set. `p (Holm)` is the
    permutation's, corrected for all tests in the table.

    Examples:
        probe compare runs/nih14/findings/dinov3-s-512-cls-linear runs/nih14/findings/*-b-512-*
    """
    from probes.compare import compare_runs
    from probes.printing import print_comparisons

    found = compare_runs(
        runs,
        metrics=None if metrics is None else _parts(metrics),
        replicates=replicates,
        permutations=permutations,
    )
    if json:
        echo_json([one.model_dump(mode="json") for one in found])
    else:
        print_comparisons(found)


@app.command()
def leaderboard(
    runs: Annotated[Path, typer.Argument(metavar="DIR", help="Folder with runs, at any depth.")],
    metric: Annotated[
        str | None, typer.Option(help="That orders the runs. Default: each task's first.")
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(metavar="PATTERN", help="Only tasks of such names, as 'nih14/*'."),
    ] = None,
    since: Annotated[
        datetime | None,
        typer.Option(
            formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M:%S"],
            metavar="DATE",
            help="Only runs made at this date, in local time, or later.",
        ),
    ] = None,
    top: Annotated[
        int,
        typer.Option(min=1, help="Test so many of a group against its leader, itself counted."),
    ] = 20,
    over_time: Annotated[
        bool,
        typer.Option(
            "--over-time", help="Also: who took the lead when, tested against who led before."
        ),
    ] = False,
    replicates: Replicates = 1000,
    permutations: Annotated[int, typer.Option(min=1, help="Of the permutation test.")] = 1000,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write it there instead: .csv, .parquet or .md."),
    ] = None,
    json: AsJson = False,
) -> None:
    """Order all runs below a folder, and test each against the best that it compares with.

    A group is of one task, with the same test items in the same folds; what cannot be compared is
    listed with the reason. p by permutation, as `probe compare`; `p (Holm)` is corrected for the
    tests of a group. Random weights lead no group that has real ones.

    `made` is the time of the file result.json, which copying may change (cp -p and rsync -t keep
    it).

    Exit code 1 if none of the runs could be read.

    Examples:
        probe leaderboard runs
        probe leaderboard runs --task 'nih14/*' --metric auc --over-time
        probe leaderboard runs --since 2025-06-01 --out leaderboard.md
    """
    from dinocache.errors import RequestError
    from probes.leaderboard import LeaderboardRequest, make_leaderboard
    from probes.printing import leaderboard_markdown, print_leaderboard
    from probes.runs import write_table

    if out is not None and out.suffix not in (".csv", ".parquet", ".md"):
        raise RequestError(f"--out {out}: end it in .csv, .parquet or .md")
    request = LeaderboardRequest(
        root=runs,
        metric=metric,
        task=task,
        since=since,
        top=top,
        over_time=over_time,
        replicates=replicates,
        permutations=permutations,
    )
    with _progress("runs read") as told:
        board = make_leaderboard(request, told=told)
    if out is not None and out.suffix == ".md":
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(leaderboard_markdown(board), "utf-8")
    elif out is not None:
        write_table(board.table(), out)
    if json:
        echo_json(board.model_dump(mode="json"))
    elif out is None:
        print_leaderboard(board)
    else:
        print(
            f"{sum(len(group.lines) for group in board.groups)} run(s) in {len(board.groups)} "
            f"group(s), {len(board.errors)} cannot be read: {out}"
        )
    if board.nothing_read:
        raise typer.Exit(1)


@contextmanager
def _progress(what: str) -> "Iterator[Callable[[str, int, int], None]]":
    """Show one line of progress on a terminal; what is yielded takes what is done, and how much."""
    from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from dinocache.terminal import console

    err = console(stderr=True)
    columns = TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn()
    # Where nobody watches it would leave an empty line behind.
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        bar = progress.add_task(what, total=None)

        def told(what: str, done: int, total: int) -> None:
            progress.update(bar, description=what, completed=done, total=total)

        yield told


@app.command()
def attention(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Of an abmil head.")],
    store: Annotated[
        str, typer.Argument(help="A store of the same recipe as the run's: its folder, or a URL.")
    ],
    items: Annotated[
        list[str] | None, typer.Argument(metavar="[ITEM]...", help="Default: all of the store.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder. Default: `attention` in the run's, for the report.")
    ] = None,
    trust: Trust = False,
) -> None:
    """Write how an abmil head weighs the tiles, slices or frames of items.

    One table an item (.parquet): coordinates and weight of each row. Of slides also a picture: the
    weights over the thumbnail.

    Examples:
        probe attention RUN features/camelyon16/dinov3-s/224 test_001 test_002
    """
    from probes.fitted import write_attention

    folder = out or run_folder / "attention"
    for path in write_attention(run_folder, store, items or None, folder, trust=trust):
        print(path)


@app.command()
def metrics(json: AsJson = False) -> None:
    """List the names that --metrics takes."""
    from dataclasses import asdict

    from probes.metrics.glossary import GLOSSARY
    from probes.metrics.names import THRESHOLD_RULES, known_metrics
    from probes.printing import console, table_of

    kinds = {kind: known_metrics(kind) for kind in ("binary", "multiclass", "multilabel")}
    if json:
        of_scores = {kind: list(names) for kind, names in kinds.items()}
        echo_json(of_scores | {"maps": [asdict(entry) for entry in GLOSSARY.values()]})
        return
    table = table_of(["metric", *kinds])
    for name in known_metrics():
        table.add_row(name, *("yes" if name in names else "" for names in kinds.values()))
    console().print(table)
    print(
        "\nWhat decides takes a threshold: accuracy@0.3, or "
        f"{' or '.join(f'@{rule}' for rule in THRESHOLD_RULES)} by validation items.\n"
    )
    of_maps = table_of(["of labels of pixels or voxels", "better", "unit", "what it is"], left=4)
    for entry in GLOSSARY.values():
        better = "higher" if entry.higher_is_better else "lower"
        of_maps.add_row(entry.name, better, entry.unit, f"{entry.definition} ({entry.source})")
    console().print(of_maps)


@app.command()
def tasks(
    dataset: Annotated[
        str | None, typer.Argument(help="One dataset, or the path of a manifest.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")] = False,
) -> None:
    """List the tasks that `probe fit` takes by name, and the tables of the paper they answer to."""
    from rich.table import Table

    from dinocache.terminal import console
    from probes.heads import DENSE_HEADS, HEADS
    from probes.tasks import list_tasks

    heads = [*HEADS, *DENSE_HEADS]
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
            task["head"] + ("" if task["head"] in heads else " *"),
            f"Table {', '.join(map(str, numbers))}" if numbers else "",
            task["title"],
        )
    console().print(table)
    if any(task["head"] not in heads for task in listed):
        print(
            f"\n* a head that is to come; --head takes {', '.join(HEADS)} where a task classifies, "
            f"{', '.join(DENSE_HEADS)} where it segments"
        )


@app.command()
def report(
    runs: Annotated[Path, typer.Argument(help="Folder with runs, at any depth.")],
    store: Annotated[
        str | None,
        typer.Option(
            help="Root of the stores, or one store (a path or a URL): adds pictures of the worst "
            "items, and of features."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder, or an .html file for the page alone. Default: RUNS/report."),
    ] = None,
    figures: Annotated[
        str,
        typer.Option(
            help="Charts that are written as SVG, PDF and PNG: summary (those over many runs), "
            "all (those of each run, too: half a second each), none."
        ),
    ] = "summary",
    json: AsJson = False,
) -> None:
    """Set all runs below a folder beside the paper's tables: one page, and files for a paper.

    Writes `index.html` (complete in itself: sortable tables, charts, a page for each run),
    `tables.md`, `tables.csv`, `tables/*.tex` (booktabs) and `figures/`. Every own figure has its
    interval, its difference from what the paper prints of the same method, and a warning where
    the set-up differs so that the two do not compare.

    Examples:
        probe report runs
        probe report runs --store features --out report --figures all
        probe report runs --out report.html
    """
    from dinocache.errors import RequestError
    from probes.report import FIGURES

    if figures not in FIGURES:
        raise RequestError(f"--figures {figures!r}: choose from {', '.join(FIGURES)}")
    _write_report(runs, out or runs / "report", store, figures, as_json=json)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Without the program; None takes the process's own.

    Returns:
        The exit code.
    """
    return run(app, "probe", arguments)


def _write_report(
    runs: Path, out: Path, store: str | None, figures: str, *, as_json: bool, quiet: bool = False
) -> None:
    """Write a report, and say where; `quiet` where standard output is something else's."""
    from probes.report import write_report

    with _progress("runs read") as told:
        written = write_report(runs, out, store, figures=figures, told=told)
    for text in written.remarks:
        print(f"warning: {text}", file=sys.stderr)
    if as_json:
        echo_json(written.facts())
        return
    stream = sys.stderr if quiet else sys.stdout
    megabytes = written.page.stat().st_size / 1e6
    print(f"report: {written.page} ({written.runs} runs, {megabytes:.1f} MB)", file=stream)
    if written.tables:
        beside = len(written.tables) - 1
        print(f"tables: {written.tables[0]}, {beside} more beside it", file=stream)
    if written.figures:
        print(f"figures: {written.figures[0].parent} ({len(written.figures)} files)", file=stream)


def _settings(head: str, texts: Sequence[str] | None) -> "dict[str, Setting]":
    from dinocache.errors import RequestError
    from probes.heads import DENSE_HEADS, HEADS, parse_settings
    from probes.register_request import METHODS, parse_method_settings

    if head not in (known := [*HEADS, *DENSE_HEADS, *METHODS]):
        raise RequestError(f"--head {head!r}: choose from {', '.join(known)}")
    try:
        if head in METHODS:
            return {k: v[0] for k, v in parse_method_settings(head, texts or []).items()}
        return parse_settings(head, texts or [])
    except ValueError as exc:
        raise RequestError(f"--set: {exc}") from exc


def _parts(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _pool(pool: str | None) -> str | None:
    from dinocache.errors import RequestError

    if pool not in (None, "mean", "max", "mean+std", "attention"):
        raise RequestError(f"--pool {pool!r}: choose from mean, max, mean+std, attention")
    return "bags" if pool == "attention" else pool


def _grid(head: str, texts: Sequence[str] | None) -> "dict[str, tuple[Setting, ...]]":
    """Read KEY=V,V as alternatives of settings."""
    found: dict[str, tuple[Setting, ...]] = {}
    for text in texts or ():
        key, equals, values = text.partition("=")
        parts = _parts(values) if equals else ("",)
        found[key.strip()] = tuple(
            next(iter(_settings(head, [f"{key.strip()}={one}"]).values())) for one in parts
        )
    return found


def _alternatives(
    heads: Sequence[str], texts: Sequence[str]
) -> "dict[str, dict[str, tuple[Setting, ...]]]":
    """Read [HEAD.]KEY=V,V as alternatives of settings, head by head."""
    from dinocache.errors import RequestError

    found: dict[str, dict[str, tuple[Setting, ...]]] = {}
    for text in texts:
        before, dot, rest = text.partition(".")
        whose = bool(dot) and "=" not in before  # a dot may also be that of 0.01
        if not whose and len(heads) != 1:
            raise RequestError(f"--set {text!r}: say whose setting it is, as knn.{text}")
        head = before if whose else heads[0]
        found.setdefault(head, {}).update(_grid(head, [rest if whose else text]))
    return found


def _numbers(option: str, text: str, kind: type) -> tuple[float, ...]:
    from dinocache.errors import RequestError

    try:
        return tuple(kind(part) for part in _parts(text))
    except ValueError as exc:
        raise RequestError(f"{option} {text!r}: numbers with commas") from exc


def _is_place(what: str) -> bool:
    """Tell a store from the name of a task."""
    from dinocache.places import is_url

    return is_url(what) or Path(what).is_dir()


def _test_on(
    what: str | None,
    targets: tuple[str, ...],
    positive: str | None,
    root: str,
    place: "dict[str, Any]",
    *,
    trust: bool,
) -> "TestOn | None":
    """Find the items that are tested in place of the training store's."""
    from dataclasses import replace

    from dinocache.manifest import find_task
    from probes.request import TestOn
    from probes.tasks import store_of, test_target

    if what is None:
        return None
    if _is_place(what):
        return TestOn(store=what, targets=targets, positive=positive, trust=trust)
    found = test_target(what, store_of(root, find_task(what)[0].name, **place))
    return replace(found, trust=trust)


def _run_sweep(planned: "Sequence[Planned]", out: Path, jobs: int | None, *, as_json: bool) -> int:
    """Do the runs, with one line of progress; print a table, and say how many failed."""
    import os

    from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from dinocache.terminal import console
    from probes.printing import print_sweep
    from probes.sweep import run_sweep

    err = console(stderr=True)
    columns = TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=err, transient=True) as progress:
        bar = progress.add_task("runs", total=len(planned))

        def told(ran: "Ran") -> None:
            progress.advance(bar)
            if ran.state != "unchanged":
                error = f": {ran.error}" if ran.error else ""
                progress.console.print(f"{ran.state}  {ran.folder}{error}", soft_wrap=True)

        ran = run_sweep(planned, jobs=jobs or os.cpu_count() or 1, told=told)
    if as_json:
        echo_json(
            [
                {"run": str(r.folder), "state": r.state, "error": r.error or None,
                 "metrics": r.result and {k: v.model_dump() for k, v in r.result.metrics.items()}}
                for r in ran
            ]
        )  # fmt: skip
    else:
        print_sweep(ran, out)
    if failed := sum(r.state == "failed" for r in ran):
        err.print(f"{failed} of {len(ran)} runs failed; the same command tries them again")
    return failed
