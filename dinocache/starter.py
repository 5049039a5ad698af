"""A first manifest for a folder of one's own: guessed from how it looks, to be looked over."""

import itertools
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from dinocache.errors import RequestError, TableError, one_line
from dinocache.items import check_name
from dinocache.query import files_like
from dinocache.splits import side_of

__all__ = ["Started", "write_first_manifest"]

_PICTURES = r"\.(png|jpe?g|tiff?|bmp|webp|dcm)$"
_VOLUMES = r"\.(nii|nii\.gz|nrrd|mha|mhd)$"
_FILES = rf"({_PICTURES[:-1]}|{_VOLUMES[:-1]}|\.(svs|ndpi|mrxs|mp4|avi|mkv|h5|hdf5?))$"
_TABLES = ("*.csv", "*.tsv", "*.xlsx")
_SIDES = ("train", "val", "test")
_GROUPS = re.compile(r"patient|subject|case|participant|person", re.IGNORECASE)
_MOST_FILES, _MOST_FOLDERS = 20_000, 2000
_MOST_CLASSES = 20
_NAMED = 0.5
"""Share of a column's values that must be names of files, or of the files that it must name: a
table may list more than was downloaded."""


@dataclass(kw_only=True)
class Started:
    """A first manifest.

    Attributes:
        path: Where it was written.
        found: What the folder looked like.
        unsure: What a person should look at.
    """

    path: Path = Path()
    found: str = ""
    unsure: list[str] = field(default_factory=list)


def write_first_manifest(
    folder: Path, *, out: Path | None, name: str | None, force: bool
) -> Started:
    """Look into a folder and write a manifest.

    Args:
        folder: The data folder.
        out: The file; by default `NAME.yaml` in the current folder.
        name: Of the dataset; by default the folder's.
        force: Whether a file there may be written over.

    Returns:
        What was written.

    Raises:
        RequestError: If there is no such folder, nothing in it that is known, or a file is there.
    """
    if not folder.is_dir():
        raise RequestError(f"there is no folder {folder}")
    plain = re.sub(r"[^a-z0-9._-]+", "-", folder.resolve().name.lower()).strip("-._") or "data"
    named = check_name(name or plain, "--name")
    started = Started(path=out or Path(f"{named}.yaml"))
    if started.path.exists() and not force:
        raise RequestError(f"{started.path} is there already; --force writes over it")
    looks = (_pairs, _table, _classes)
    special = next((made for look in looks if (made := look(folder, started))), None)
    if special is None:
        raise RequestError(
            f"{folder} holds neither imagesTr and labelsTr, nor a table that names its files, nor "
            "a folder a class; write a table with a column 'path' instead, and extract that"
        )
    manifest = {
        "name": named,
        "title": f"{folder.resolve().name} (to be said)",
        "licence": "to be said",
        "citation": "to be said",
        "home": "to be said",
        "obtain": "to be said",
        **special,
    }
    started.path.write_text(
        "# Written by `dinocache init`; see manifests/README.md for what may stand here.\n"
        + yaml.dump(manifest, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110),
        "utf-8",
    )
    return started


class _Dumper(yaml.SafeDumper):
    """Writes text of several lines as people do."""


def _written(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _written)


# ------------------------------------------------------- imagesTr and labelsTr


def _pairs(folder: Path, started: Started) -> dict[str, Any] | None:
    images = [p for p in files_like(folder, "imagesTr/*") if re.search(_VOLUMES, p)]
    labels = [p for p in files_like(folder, "labelsTr/*") if re.search(_VOLUMES, p)]
    if not images or not labels:
        return None
    cases = {_case(path) for path in labels}
    channels = sorted({_channel(path, cases) for path in images})
    query = _pairs_query(channels)
    named = _label_names(folder, started)
    started.found = f"{len(cases)} cases with labels, {len(channels)} channel(s)"
    return {
        "files": {"images": "imagesTr/*", "labels": "labelsTr/*"},
        "items": query,
        "splits": {"cv": {"folds": 5}},
        "extract": {"reader": "volume", "features": ["cls", "mean", "dense", "image", "mask"]},
        "tasks": {
            "organs": {
                "title": "Labels of labelsTr",
                "kind": "segmentation",
                "labels": named,
                "split": "cv",
                "head": "decoder3d",
                "metrics": ["dice"],
            }
        },
    }


def _pairs_query(channels: Sequence[str]) -> str:
    stem = r"regexp_replace(name, '\.(nii|nii\.gz|nrrd|mha|mhd)$', '')"
    mask = f"(SELECT max(path) FROM labels WHERE {stem} = item) AS mask"
    if list(channels) == [""]:
        named = f"SELECT {stem} AS item_id, {stem} AS item, path"
        return f"{named},\n  {mask}\nFROM images ORDER BY item_id\n"
    parts = f"SELECT path, {stem} AS stem FROM images"
    columns = [f"max(path) FILTER (stem = item || '_{c}') AS \"path.c{c}\"" for c in channels]
    if len(channels) == 1:
        columns = ["max(path) AS path"]
    lines = ",\n  ".join(["SELECT item AS item_id", *columns, mask])
    return (
        f"WITH parts AS ({parts}),\n"
        "cases AS (SELECT *, regexp_replace(stem, '_[0-9]{4}$', '') AS item FROM parts)\n"
        f"{lines}\nFROM cases GROUP BY item ORDER BY item\n"
    )


def _case(path: str) -> str:
    return re.sub(_VOLUMES, "", path.rpartition("/")[2])


def _channel(path: str, cases: set[str]) -> str:
    """Give the `0000` that nnU-Net writes behind a case; "" where names are those of the labels."""
    stem = _case(path)
    match = re.fullmatch(r"(.+)_(\d{4})", stem)
    return match[2] if match and stem not in cases else ""


def _label_names(folder: Path, started: Started) -> dict[int, str]:
    path = folder / "dataset.json"
    try:
        if path.stat().st_size < 1 << 24:
            labels = json.loads(path.read_text("utf-8"))["labels"]
            pairs = labels.items()
            # Decathlon writes {"1": "liver"}, nnU-Net {"liver": 1}.
            found = {int(k): str(v) for k, v in pairs if str(k).isdecimal()} or {
                int(v): str(k) for k, v in pairs if isinstance(v, int)
            }
            if found := {value: name for value, name in found.items() if value}:
                return found
    except (OSError, ValueError, KeyError, AttributeError):
        pass
    started.unsure.append("labels: there is no dataset.json that names them; 1 is only a guess")
    return {1: "label 1"}


# -------------------------------------------------------------------- a table


def _table(folder: Path, started: Started) -> dict[str, Any] | None:
    tables = [path for pattern in _TABLES for path in files_like(folder, pattern)]
    files = {path.rpartition("/")[2]: path for path in _files(folder)}
    if not tables or not files:
        return None
    stems = {name.partition(".")[0]: name for name in files}
    for table in tables:
        content = _read(folder / table)
        scores = {c: _share(content[c], files, stems) for c in content.columns.tolist()}
        column = max(scores, key=lambda c: max(scores[c]), default=None)
        if column is None or max(scores[column]) < _NAMED:
            continue
        return _table_manifest(table, content, column, files, scores[column], started)
    return None


def _files(folder: Path) -> Iterator[str]:
    """List images and the like, four folders deep at most, and a bounded number of them."""
    found: Iterator[str] = itertools.chain.from_iterable(
        files_like(folder, "*/" * depth + "*") for depth in range(4)
    )
    matching = (path for path in found if re.search(_FILES, path.lower()))
    return itertools.islice(matching, _MOST_FILES)


def _read(path: Path) -> pd.DataFrame:
    try:
        if path.suffix.lower() == ".xlsx":
            table = pd.read_excel(path, dtype=str, engine="calamine")
        else:
            table = pd.read_csv(path, dtype=str, sep="\t" if path.suffix == ".tsv" else ",")
    except Exception as exc:  # whatever a parser raises of a damaged file
        raise TableError(f"{path.name} cannot be read as a table: {one_line(exc)}") from exc
    table.columns = table.columns.map(str)
    return table


def _share(
    values: "pd.Series[str]", files: dict[str, str], stems: dict[str, str]
) -> tuple[float, float]:
    """Say which share of a column are names of files, and which are names without an ending."""
    known = values.dropna().astype("string").str.replace("^.*/", "", regex=True)
    if not len(known) or known.nunique() < 0.5 * len(known):
        return 0.0, 0.0
    whole, stem = (int(known.isin(list(names)).sum()) for names in (files, stems))
    least = min(len(known), len(files))
    return min(whole / least, 1.0), min(stem / least, 1.0)


def _table_manifest(
    table: str,
    content: pd.DataFrame,
    column: str,
    files: dict[str, str],
    scores: tuple[float, float],
    started: Started,
) -> dict[str, Any]:
    by_stem = scores[1] > scores[0]
    others: list[str] = [c for c in content.columns.tolist() if c != column]
    group = next((c for c in others if _GROUPS.search(c)), None)
    split = next((c for c in others if c.lower() in ("split", "set", "fold", "subset")), None)
    if split and not set(content[split].dropna().map(side_of)) <= set(_SIDES):
        split = None
    targets = [
        c
        for c in others
        if c not in (group, split)
        and 2 <= content[c].nunique() <= _MOST_CLASSES
        and content[c].notna().mean() > _NAMED
    ]
    names = {c: _identifier(c) for c in (column, group, split, *targets) if c}
    depth = max(path.count("/") for path in files.values())
    key = "regexp_replace(name, '\\..*$', '')" if by_stem else "name"
    lines = [f"SELECT {names[column]} AS item_id, path"]
    lines += [f'  {names[group]} AS "group"'] if group else []
    lines += [f"  {names[split]} AS split"] if split else []
    lines += [f"  {names[c]}" for c in targets]
    join = f"{key} = regexp_extract({names[column]}, '[^/]*$')"
    query = ",\n".join(lines) + f"\nFROM labels LEFT JOIN images ON {join}\nORDER BY item_id\n"
    if group is None:
        started.unsure.append("group: no column looks like the patient; each item is its own")
    if not targets:
        started.unsure.append(f"targets: no column of {table} has 2 to {_MOST_CLASSES} values")
    named = content[column].dropna().str.replace("^.*/", "", regex=True)
    there = {f.partition(".")[0] for f in files} if by_stem else set(files)
    missing = int((~named.isin(list(there))).sum())
    started.found = f"{len(content)} rows in {table}, files named by {column!r}"
    if missing:
        started.unsure.append(f"{missing} rows of {table} name files that are not there")
    protocol: dict[str, Any] = {} if split else {"splits": {"cv": {"folds": 5}}}
    return {
        "tables": {
            "labels": {"file": table, "columns": {plain: header for header, plain in names.items()}}
        },
        "files": {"images": "/".join(["*"] * (depth + 1))},
        "items": query,
        **protocol,
        "tasks": {
            _task_name(c): _task(c, content[c].nunique(), split="official" if split else "cv")
            for c in targets
        },
    }


def _identifier(header: str) -> str:
    plain = re.sub(r"[^a-z0-9]+", "_", header.lower()).strip("_") or "column"
    taken = plain in ("item_id", "path", "group", "split", "mask", "name", "order", "select")
    return f"{plain}_" if taken or plain[0].isdecimal() else plain


def _task_name(column: str) -> str:
    return _identifier(column).strip("_").replace("_", "-")[:40]


def _task(column: str, n_classes: int, *, split: str) -> dict[str, Any]:
    return {
        "title": column,
        "kind": "binary" if n_classes == 2 else "multiclass",
        "targets": _identifier(column),
        "split": split,
        "head": "linear",
        "metrics": ["auc", "accuracy", "f1"],
    }


# ----------------------------------------------------------- a folder a class


def _classes(folder: Path, started: Started) -> dict[str, Any] | None:
    first = _folders(folder)
    sided = bool(first) and {side_of(name) for name in first} <= set(_SIDES) and len(first) > 1
    classes = sorted({c for side in first for c in _folders(folder / side)}) if sided else first
    pattern = "*/*/*" if sided else "*/*"
    files = [p for p in files_like(folder, pattern) if re.search(_FILES, p.lower())]
    if len(classes) < 2 or len(classes) > _MOST_FOLDERS or not files:
        return None
    listed = [p for p in files if p.split("/")[-2] in classes]
    found = sorted({p.split("/")[-2] for p in listed})
    if len(found) < 2:
        return None
    place = "^[^/]+/([^/]+)/" if sided else "^([^/]+)/"
    lines = [
        "SELECT path AS item_id, path",
        f"  regexp_extract(path, '{place}', 1) AS class",
        *([f"  {_sides_query(first, started)} AS split"] if sided else []),
    ]
    query = ",\n".join(lines) + (
        f"\nFROM files WHERE regexp_matches(lower(path), '{_FILES}')\nORDER BY path\n"
    )
    started.found = f"{len(listed)} files in {len(found)} classes: {', '.join(found[:8])}"
    started.unsure.append(
        "group: each file is its own; if several are of one patient, say so, or test items will "
        "have been seen in training"
    )
    protocol: dict[str, Any] = {}
    if not sided:
        protocol = {"splits": {"cv": {"folds": 5, "stratify": "class"}}}
    return {
        "files": {"files": pattern},
        "items": query,
        **protocol,
        "tasks": {"class": _task("class", len(found), split="official" if sided else "cv")},
    }


def _sides_query(folders: Sequence[str], started: Started) -> str:
    place = "regexp_extract(path, '^([^/]+)/', 1)"
    if "test" in {side_of(name) for name in folders}:
        return place
    (held,) = [name for name in folders if side_of(name) == "val"]
    started.unsure.append(f"split: there is no folder to test on; {held} is taken for that")
    return f"CASE {place} WHEN '{held}' THEN 'test' ELSE 'train' END"


def _folders(folder: Path) -> Sequence[str]:
    with os.scandir(folder) as entries:
        names = [e.name for e in entries if e.is_dir() and not e.name.startswith(".")]
    return sorted(names)
