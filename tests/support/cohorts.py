"""Made-up items of probes: features that tell a label, more or less."""

import os

import numpy as np
import numpy.typing as npt
import pandas as pd

from probes.features import ItemFeatures
from probes.runs import StoreOrigin


def made_up(
    labels: npt.ArrayLike, groups: npt.ArrayLike, *, noise: float = 1, **columns: object
) -> ItemFeatures:
    """Features (n_items, 5) of which one tells the label, more or less."""
    labels, groups = np.asarray(labels), np.asarray(groups)
    ids = [f"i{n:04d}" for n in range(len(labels))]
    x = np.random.default_rng(0).normal(0, noise, (len(labels), 5)).astype(np.float32)
    x[:, 2] += np.unique(labels, return_inverse=True)[1]
    table = {"item_id": ids, "path": ids, "group": [f"p{g}" for g in groups], "t": labels}
    return ItemFeatures(
        x=x,
        kinds=("cls",),
        items=pd.DataFrame(table | columns),
        failed={},
        store=StoreOrigin(
            dataset="made-up",
            model="none",
            resolution="8",
            variant="",
            digest="d",
            weights="random:0",
            random_weights=True,
            items_table="t",
        ),
    )


def killed_at_once(*_: object) -> None:
    """End this process, as the kernel does where memory runs out."""
    os._exit(9)
