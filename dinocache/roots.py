"""Which stores there are below a root."""

from dataclasses import dataclass

from dinocache.folders import Folder
from dinocache.layout import HEADER
from dinocache.places import Where, folder_of
from dinocache.remote import in_parallel

__all__ = ["Place", "find_stores"]


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a store lies below a root.

    Attributes:
        dataset: Its folder's name.
        model: Likewise.
        resolution: Likewise, with the variant behind it: `256`, `512x640-lung`.
        folder: Of the store.
    """

    dataset: str
    model: str
    resolution: str
    folder: Folder

    @property
    def name(self) -> str:
        """Below the root: `nih14/dinov3-s/256`."""
        return f"{self.dataset}/{self.model}/{self.resolution}"

    @property
    def size(self) -> str:
        """What the encoder sees: `256`, `512x640`."""
        return self.resolution.partition("-")[0]

    @property
    def variant(self) -> str:
        """Of the recipe: `lung`; "" for the plain one."""
        return self.resolution.partition("-")[2]


def find_stores(root: Where, dataset: str | None = None, *, sure: bool = True) -> list[Place]:
    """List the stores below a root, in order of names, resolutions by size.

    Args:
        root: A folder: a path or a URL.
        dataset: Of this dataset; None for all.
        sure: Look into each folder for the header of a store; else all that may be are listed.

    Raises:
        StoreError: If it cannot be listed now.
    """
    top = folder_of(root)
    datasets = top.list().folders if dataset is None else (dataset,)
    models = [
        (of, model)
        for of, found in zip(datasets, in_parallel(lambda of: top.list(of), datasets), strict=True)
        for model in found.folders
    ]
    listed = in_parallel(lambda m: top.list(f"{m[0]}/{m[1]}").folders, models)
    places = [
        Place(
            dataset=of,
            model=model,
            resolution=resolution,
            folder=top.within(f"{of}/{model}/{resolution}"),
        )
        for (of, model), resolutions in zip(models, listed, strict=True)
        for resolution in resolutions
    ]
    if sure:
        are_stores = in_parallel(lambda place: place.folder.exists(HEADER), places)
        places = [p for p, is_one in zip(places, are_stores, strict=True) if is_one]
    return sorted(places, key=_order)


def _order(place: Place) -> tuple[str, str, list[int], str]:
    sides = [int(n) for n in place.size.split("x") if n.isdecimal()]
    return place.dataset, place.model, sides, place.resolution
