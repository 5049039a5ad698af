"""Manifests: one YAML file says all that is special about a dataset. See manifests/README.md."""

import json
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from dinocache.errors import RequestError, TableError

__all__ = [
    "OFFICIAL",
    "SPLIT_PREFIX",
    "ExtractDefaults",
    "Folds",
    "Manifest",
    "Pairs",
    "Parts",
    "Published",
    "SplitRule",
    "Step",
    "TableFile",
    "Task",
    "find_task",
    "load_manifest",
    "load_published",
    "shipped_manifests",
    "split_column",
]

OFFICIAL = "official"
"""The split that stands in the column `split`."""
SPLIT_PREFIX = "split."
_MAX_BYTES = 1 << 20
_NAME = r"^[a-z][a-z0-9_]{0,40}$"


def split_column(name: str) -> str:
    """Give the column of the item table that a split stands in."""
    return "split" if name == OFFICIAL else f"{SPLIT_PREFIX}{name}"


def _within(pattern: str) -> str:
    parts = PurePosixPath(pattern).parts
    if not parts or pattern.startswith("/") or ".." in parts or "\\" in pattern or ":" in pattern:
        raise ValueError(f"{pattern!r} must lie inside the data folder, written with /")
    return pattern


def _several(value: object) -> object:
    return (value,) if isinstance(value, str) else value


Pattern = Annotated[str, AfterValidator(_within)]
"""A path inside the data folder, with `*`, `?` and `**` as shells have them."""


Side = Literal["train", "val", "test"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Several(_Part):
    """A part of which a string stands for a list of one."""

    @model_validator(mode="before")
    @classmethod
    def _list(cls, value: object) -> object:
        if not isinstance(value, Mapping):
            return value
        listed = [k for k, f in cls.model_fields.items() if "tuple[" in str(f.annotation)]
        return {k: _several(v) if k in listed else v for k, v in value.items()}


class TableFile(_Several):
    """A file of the download that is a table, and which of its columns the query uses.

    Attributes:
        file: Patterns in order; the first that a file matches counts, all files that match it are
            one table.
        columns: Name in the query -> header, or several spellings of it; a list names the columns
            of a file without a header, from the left.
        delimiter: Between columns; by default a tab for .tsv, else a comma.
        skip: Lines above the table.
        sheet: Of a workbook, from 0.
    """

    file: tuple[Pattern, ...]
    columns: dict[str, str | tuple[str, ...]] | tuple[str, ...]
    delimiter: str | None = None
    skip: int = Field(0, ge=0)
    sheet: int = Field(0, ge=0)


class Step(_Several):
    """A share of one side is drawn and becomes another side.

    Attributes:
        share: Of the groups (scikit-learn's `test_size`).
        of: The side that it is drawn from.
        to: The side that it becomes.
        seed: Of the draw.
        stratify: Columns whose values keep their shares.
    """

    share: float = Field(gt=0, lt=1)
    of: Side = "train"
    to: Side
    seed: int = Field(0, ge=0)
    stratify: tuple[str, ...] = ()


class Parts(_Part):
    """A split that is drawn once.

    Attributes:
        base: Split whose sides are drawn from; without one all items are `train`.
        steps: In order.
    """

    base: str | None = None
    steps: tuple[Step, ...] = Field(min_length=1)


class Folds(_Several):
    """Cross-validation.

    Attributes:
        folds: How many.
        base: Split whose `train` is dealt; its `test` stays what it is, and a fold is then for
            validation. Without one all items are dealt, and a fold is for testing.
        seed: Of the shuffle.
        stratify: Columns whose values keep their shares.
        validation: Share of what a fold trains on that is kept for validation, drawn at fit time.
    """

    folds: int = Field(ge=2, le=100)
    base: str | None = None
    seed: int = Field(0, ge=0)
    stratify: tuple[str, ...] = ()
    validation: float | None = Field(None, gt=0, lt=1)


SplitRule = Parts | Folds
Rows = tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=1)]]


class Pairs(_Part):
    """Which items are registered with each other.

    Attributes:
        by: Column that is the same for the two of a pair.
        role: Column that tells them apart.
        moving: Its value for the image that is warped.
        fixed: Its value for the other.
        distances: Whether distances are in mm, or in voxels of the rows' grid.
    """

    by: str
    role: str
    moving: str
    fixed: str
    distances: Literal["mm", "voxels"] = "mm"


class Published(_Part):
    """Which rows of published.json a task answers to: those that agree in all that is said.

    Attributes:
        table: Its number.
        dataset: As the paper names it.
        where: Field of a row -> value.
        metrics: The paper's metric -> the task's, or `METRIC.CLASS`, where names differ.
    """

    table: int
    dataset: str
    where: dict[str, str | int] = {}
    metrics: dict[str, str] = {}


class Task(_Several):
    """A target, a split protocol, a head and metrics.

    Attributes:
        title: For people.
        kind: What is predicted.
        of: Of an item, or of each of its rows, whose target columns hold a list.
        targets: Columns of the item table.
        positive: The value of a binary target that counts.
        labels: Value (or channel) of the mask -> what it is; 0 is background.
        split: `official` or one of the manifest's.
        rows: Side -> (first row, row behind the last), of every item or by its id, where sides are
            ranges of rows.
        train_on: DATASET/TASK whose heads are tested here.
        pairs: Of a registration.
        head: That the paper uses, or that stands nearest.
        settings: Of the head, where they differ from its defaults.
        search: Setting -> values of a registration, of which validation pairs choose.
        features: Kinds that it reads; () takes the publisher's vector.
        seeds: How often it is fitted.
        metrics: Names.
        present_only: Of segmentations: whether a label's mean leaves out items whose truth does
            not have it.
        paper: Rows of the paper's tables that it answers to.
        notes: What differs from the paper, or is open there.
    """

    title: str
    kind: Literal["binary", "multiclass", "multilabel", "segmentation", "instances", "registration"]
    of: Literal["item", "row"] = "item"
    targets: tuple[str, ...] = ()
    positive: str | None = None
    labels: dict[int, str] = {}
    split: str = OFFICIAL
    rows: dict[Side, Rows | dict[str, Rows]] = {}
    train_on: str | None = None
    pairs: Pairs | None = None
    head: Literal[
        "linear", "knn", "logistic", "xgboost", "abmil",
        "linear2d", "decoder2d", "decoder3d", "affinity", "convexadam",
    ]  # fmt: skip
    settings: dict[str, str | int | float | bool] = {}
    search: dict[str, tuple[str | int | float | bool, ...]] = {}
    features: tuple[str, ...] = ()
    seeds: int = Field(1, ge=1)
    metrics: tuple[str, ...]
    present_only: bool = False
    paper: tuple[Published, ...] = ()
    notes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _whole(self) -> "Task":
        classifies = self.kind in ("binary", "multiclass", "multilabel")
        if classifies and not self.targets:
            raise ValueError(f"a {self.kind} task needs targets, columns of the items")
        if self.kind == "segmentation" and not self.labels:
            raise ValueError("a segmentation needs labels: value of the mask -> what it is")
        if self.kind == "registration" and self.pairs is None:
            raise ValueError("a registration needs pairs")
        return self


class ExtractDefaults(_Part):
    """What `dinocache extract` does where nothing else is said."""

    reader: Literal["auto", "image", "volume", "slide", "video", "stack"] = "auto"
    options: dict[str, Any] = {}
    window: str | None = None
    """As for --window."""
    channels: str | None = None
    """As for --channels."""
    features: tuple[str, ...] = ("cls", "mean")
    resolutions: tuple[int | str, ...] = (256,)
    """The first is the default."""


Named = dict[Annotated[str, Field(pattern=_NAME)], tuple[Pattern, ...]]


class Manifest(_Part):
    """A dataset's YAML file.

    Attributes:
        name: As commands take it.
        title: What it is, in a line.
        modality: In a word or two.
        licence: Under which terms one may use it.
        citation: Whom to cite.
        home: Where it is described.
        obtain: How one comes by it.
        layout: What the data folder must look like.
        oddities: What real downloads are known for, a sentence each, and what is done about it.
        embedded: A folder beside the manifest that holds the data, for demonstration sets.
        tables: Name in the query -> table of the download.
        files: Name in the query -> patterns, in order; the first that a file matches counts. A
            table of `path` (in the data folder) and `name` (without folders).
        texts: The same of small text files, with their `content`.
        expect: What the official release has: `items`, `groups`, `train`, `val`, `test`, `COLUMN`
            (items that have it) or `COLUMN=VALUE` -> count.
        items: One SELECT over these, see manifests/README.md.
        splits: Name -> rule.
        extract: Defaults of the extraction.
        tasks: Name -> task.
    """

    name: str
    title: str
    modality: str = ""
    licence: str
    citation: str
    home: str
    obtain: str
    layout: str = ""
    oddities: tuple[str, ...] = ()
    embedded: str | None = None
    tables: dict[Annotated[str, Field(pattern=_NAME)], TableFile] = {}
    files: Named = {}
    texts: Named = {}
    expect: dict[str, int] = {}
    items: str
    splits: dict[Annotated[str, Field(pattern=_NAME)], SplitRule] = {}
    extract: ExtractDefaults = ExtractDefaults()
    tasks: dict[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,40}$")], Task] = {}

    @model_validator(mode="before")
    @classmethod
    def _lists(cls, value: object) -> object:
        if not isinstance(value, Mapping):
            return value
        made = dict(value)
        for key in ("files", "texts"):
            if isinstance(named := made.get(key), Mapping):
                made[key] = {name: _several(patterns) for name, patterns in named.items()}
        return made

    @model_validator(mode="after")
    def _consistent(self) -> "Manifest":
        names = [*self.tables, *self.files, *self.texts]
        if len(set(names)) < len(names):
            raise ValueError("tables, files and texts must have different names")
        if OFFICIAL in self.splits:
            raise ValueError(f"{OFFICIAL!r} is the column 'split' of the items, and no rule")
        return self


def shipped_manifests() -> Mapping[str, Path]:
    """Find the manifests that come with the package.

    Returns:
        Name -> file, in order of names.
    """
    with resources.as_file(resources.files("manifests")) as folder:
        return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load_manifest(path: Path) -> Manifest:
    """Read a manifest.

    Args:
        path: The YAML file.

    Returns:
        The manifest.

    Raises:
        TableError: If it is not one: which field, what was expected.
        RequestError: If there is no such file.
    """
    if not path.is_file():
        raise RequestError(f"there is no manifest {path}")
    if path.stat().st_size > _MAX_BYTES:
        raise TableError(f"{path.name} is larger than a manifest may be ({_MAX_BYTES} bytes)")
    try:
        return Manifest.model_validate(yaml.safe_load(path.read_text("utf-8")))
    except (yaml.YAMLError, UnicodeDecodeError) as exc:
        raise TableError(f"{path.name} is not YAML: {' '.join(str(exc).split())}") from exc
    except ValidationError as exc:
        error = exc.errors()[0]
        field = ".".join(str(part) for part in error["loc"])
        message = error["msg"].removeprefix("Value error, ")
        raise TableError(f"{path.name}: field {field!r}: {message}") from exc


def find_task(named: str) -> tuple[Manifest, str, Task]:
    """Find what DATASET/TASK stands for.

    Args:
        named: Name of a shipped manifest, or the path of one, `/`, and the name of a task.

    Returns:
        (manifest, name of the task, the task).

    Raises:
        RequestError: If there is no such manifest or task.
        TableError: If the manifest is not as it must be.
    """
    dataset, _, task = named.rpartition("/")
    shipped = shipped_manifests()
    if dataset not in shipped and not re.search(r"\.ya?ml$", dataset):
        raise RequestError(
            f"{named!r} is not DATASET/TASK, where DATASET is a shipped one or the path of a "
            "manifest (.yaml); `probe tasks` lists them"
        )
    manifest = load_manifest(shipped.get(dataset, Path(dataset)))
    if task not in manifest.tasks:
        raise RequestError(
            f"{manifest.name} has no task {task!r}; it has {', '.join(manifest.tasks) or 'none'}"
        )
    return manifest, task, manifest.tasks[task]


def load_published() -> dict[str, Any]:
    """Read manifests/published.json: the figures of the paper's tables."""
    content = resources.files("manifests").joinpath("published.json").read_bytes()
    published: dict[str, Any] = json.loads(content)
    return published
