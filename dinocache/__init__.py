"""Stage 1: frozen vision features of medical images, kept in Zarr stores.

In a notebook: `store = dinocache.open("features/nih14/dinov3-s/256")`; see docs/notebooks.md.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dinocache.notebook import open_store as open

__version__ = "0.10.0"

__all__ = ["__version__", "open"]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - PEP 562
    if name != "open":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from dinocache.notebook import open_store  # late: it imports what the rest does

    return open_store
