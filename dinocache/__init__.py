"""Stage 1: frozen vision features of medical images, kept in Zarr stores."""

__version__ = "0.6.0"

__all__ = ["__version__"]
