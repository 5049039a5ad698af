"""One HTML page of all runs below a folder, complete in itself."""

import base64
import json
from importlib import resources
from pathlib import Path

from dinocache.errors import ProbeError
from probes.features import first_dense_item, store_facts
from probes.figures import pca_picture
from probes.published import published_tasks
from probes.runs import find_results

__all__ = ["write_report"]


def write_report(runs: Path, out: Path, store: Path | None = None) -> Path:
    """Write the page.

    Args:
        runs: Folder with runs, at any depth.
        out: The page.
        store: A store with `dense` and `image`, for a PCA picture of its first item.

    Returns:
        The page's path.

    Raises:
        RequestError: If there is no run.
        StoreError: If the store cannot serve.
        ProbeError: If the store's maps are too small for a picture, or the page cannot be written.
    """
    import jinja2

    results = find_results(runs)
    picture = None
    if store is not None:
        item_id, patches, image = first_dense_item(store)
        try:
            drawn = pca_picture(image, patches)
        except ValueError as exc:
            raise ProbeError(f"{store}: {exc}; choose a store of a higher resolution") from exc
        picture = {
            "data": base64.b64encode(drawn).decode("ascii"),
            "item_id": item_id,
            "grid": f"{patches.shape[0]} x {patches.shape[1]}",
            "facts": store_facts(store),
        }
    source = (resources.files("probes") / "report.html").read_text("utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["setting"] = lambda value: json.dumps(value).strip('"')
    environment.filters["figure"] = lambda value: "-" if value is None else f"{value:.3f}"
    page = environment.from_string(source).render(
        results=results,
        metrics=list(dict.fromkeys(m for r in results.values() for m in r.metrics)),
        any_random=any(r.random_weights for r in results.values()),
        picture=picture,
        published=published_tasks(r.task.name for r in results.values()),
    )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(page, "utf-8")
    except OSError as exc:
        raise ProbeError(f"cannot write {out}: {exc.strerror or exc}") from exc
    return out
