"""Where a run goes: a folder that says what was asked, so that two runs never share one."""

import hashlib
from pathlib import Path

from dinocache.recipe import model_folder
from probes.features import kinds_of, store_facts
from probes.map_request import MapRequest
from probes.register_request import RegisterRequest
from probes.request import SEARCHES, FitRequest

__all__ = ["map_folder", "registration_folder", "run_folder", "safe_name"]

_LONGEST = 150


def run_folder(request: FitRequest) -> Path:
    """Name the folder of a run, below the folder of all runs.

    Args:
        request: What is asked.

    Returns:
        <dataset>/<task or targets>/<model>-<resolution>-<kinds>-<head>, and what else is not as
        usual.

    Raises:
        StoreError: If the store cannot be read.
    """
    store = store_facts(request.store)
    dataset, _, task = (request.task or "").rpartition("/")
    dataset = dataset or store.dataset
    target = task or safe_name("+".join(request.targets))
    parts = [model_folder(store.model), store.resolution, store.variant]
    parts += ["+".join(kinds_of(request.store, request.features)), *_unusual(request)]
    return Path(dataset) / target / safe_name("-".join(part for part in parts if part))


def map_folder(request: MapRequest) -> Path:
    """Name the folder of a run of maps; see `run_folder`."""
    store = store_facts(request.store)
    dataset, _, task = (request.task or "").rpartition("/")
    parts = [model_folder(store.model), store.resolution, store.variant]
    parts += ["+".join(request.features), request.head]
    parts += [f"{key}={_text(value)}" for key, value in sorted(request.settings.items())]
    if request.split not in (None, "split") and request.task is None:
        parts.append(str(request.split))
    if request.folds is not None:
        parts.append(f"folds={request.folds}")
    if request.rows and request.task is None:
        named = [
            f"{side}{f'_{item}' if item else ''}_{start}_{stop}"
            for side, of in request.rows.items()
            for item, (start, stop) in of.items()
        ]
        parts.append("rows=" + "+".join(named))
    if request.present_only and request.task is None:
        parts.append("present-only")
    labels = safe_name("+".join(request.labels.values()) or "neurons")
    return (
        Path(dataset or store.dataset)
        / (task or labels)
        / safe_name("-".join(part for part in parts if part))
    )


def registration_folder(request: RegisterRequest) -> Path:
    """Name the folder of a registration; see `run_folder`."""
    store = store_facts(request.store)
    dataset, _, task = (request.task or "").rpartition("/")
    parts = [model_folder(store.model), store.resolution, store.variant] if request.kinds else []
    parts += ["+".join(request.features), request.method]
    parts += [f"{key}={_text(value)}" for key, value in sorted(request.settings.items())]
    parts += [f"{key}={_several(values)}" for key, values in sorted(request.grid.items())]
    if request.split not in (None, "split") and request.task is None:
        parts.append(str(request.split))
    if request.folds is not None:
        parts.append(f"folds={request.folds}")
    if request.everything:
        parts.append("all")
    labels = safe_name(f"{request.pairs.moving}-{request.pairs.fixed}")
    return (
        Path(dataset or store.dataset)
        / (task or labels)
        / safe_name("-".join(part for part in parts if part))
    )


def _unusual(request: FitRequest) -> list[str]:
    """List the head, and what of a request is not the default."""
    parts = (
        [request.head] if request.pool in ("mean", "bags") else [str(request.pool), request.head]
    )
    parts += [f"{key}={_text(value)}" for key, value in sorted(request.settings.items())]
    if request.grid and request.grid == SEARCHES.get(request.head):
        parts.append("search")
    else:
        parts += [f"{key}={_several(values)}" for key, values in sorted(request.grid.items())]
    if request.split not in (None, "split") and request.task is None:
        parts.append(str(request.split))
    for name in ("folds", "shots", "fraction"):
        if (value := getattr(request, name)) is not None:
            parts.append(f"{name}={value}")
    if request.repeats > 1:
        parts.append(f"repeats={request.repeats}")
    if request.test_on is not None and request.task is None:
        parts.append(f"on={store_facts(request.test_on.store).dataset}")
    return parts


def _several(values: tuple[object, ...]) -> str:
    return "+".join(_text(value) for value in values)


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).lower()


def safe_name(text: str) -> str:
    """Make a file name of any text: readable, legal on every system, its own where it is cut."""
    name = "".join(c if c.isalnum() or c in "._-+=" else "_" for c in text)
    if len(name) <= _LONGEST:
        return name
    return f"{name[:_LONGEST]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
