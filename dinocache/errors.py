"""Everything that can go wrong and that a person can do something about.

    DinocacheError
    |-- RequestError            ask differently (also a ValueError; exit code 2)
    |-- TableError              mend the table or the manifest (also a ValueError; exit code 2)
    |-- ItemError               one item cannot be used; it is recorded and the run goes on
    |-- WeightsError            other weights are needed
    |   `-- WeightsUnavailableError   they cannot be had here and now
    |-- StoreError              something about a store
    |   |-- StoreNotFoundError  there is none (also a FileNotFoundError)
    |   |-- RecipeMismatchError it was made otherwise
    |   |-- StoreIncompleteError    not all of it is there yet
    |   |-- StoreDamagedError   its bytes are not those that were written
    |   `-- StoreWriteError     the disk refused (also an OSError)
    |-- CrashError              the extracting process died again and again
    |-- StoppedError            a person or the system asked to stop
    |-- TooManyFailuresError    more items failed than --max-failures allows
    `-- ProbeError              a head cannot be fitted on what was given (also a ValueError)

A message says what was expected, what came, which file, and the way out. The command lines
print it as one line and end with `exit_code`.
"""

__all__ = [
    "BUG",
    "CrashError",
    "DinocacheError",
    "ItemError",
    "ProbeError",
    "RecipeMismatchError",
    "RequestError",
    "StoppedError",
    "StoreDamagedError",
    "StoreError",
    "StoreIncompleteError",
    "StoreNotFoundError",
    "StoreWriteError",
    "TableError",
    "TooManyFailuresError",
    "WeightsError",
    "WeightsUnavailableError",
    "one_line",
]

BUG = 70
"""The exit code of a process that ended by an error of our own; sysexits.h calls it EX_SOFTWARE."""


def one_line(exc: BaseException) -> str:
    """Say what went wrong, in one line of at most 200 characters."""
    return (" ".join(str(exc).split()) or type(exc).__name__)[:200]


class DinocacheError(Exception):
    """The root: whoever catches it catches every error that is meant for a person."""

    exit_code = 1


class RequestError(DinocacheError, ValueError):
    """What was asked for cannot be; nothing was done."""

    exit_code = 2


class TableError(DinocacheError, ValueError):
    """A table of items, or a manifest, does not say what it must."""

    exit_code = 2


class ItemError(DinocacheError):
    """One item cannot be read, or its features cannot be kept."""


class WeightsError(DinocacheError):
    """A file of weights is not what the encoder needs."""


class WeightsUnavailableError(WeightsError):
    """The weights are neither on this machine nor to be had from the hub now."""


class StoreError(DinocacheError):
    """A store cannot serve as asked."""


class StoreNotFoundError(StoreError, FileNotFoundError):
    """There is no store at that place."""


class RecipeMismatchError(StoreError):
    """The store was made by another recipe, or of other items."""


class StoreIncompleteError(StoreError):
    """What is asked for has not been extracted yet."""


class StoreDamagedError(StoreError):
    """The store's files are not the ones that were committed."""


class StoreWriteError(StoreError, OSError):
    """The disk refused a write; what was committed before is whole."""


class CrashError(DinocacheError):
    """The process that extracts died, and no item is known to be the cause."""


class StoppedError(DinocacheError):
    """Somebody asked to stop; what was committed before is whole."""

    exit_code = 130


class TooManyFailuresError(DinocacheError):
    """More items failed than may; what was committed before is whole."""


class ProbeError(DinocacheError, ValueError):
    """The features or the labels do not allow this fit."""
