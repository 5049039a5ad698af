"""How both command lines end: one line for a person's mistake, never a traceback."""

import json
import logging
import os
import sys
from collections.abc import Sequence

import typer

from dinocache.errors import DinocacheError

__all__ = ["echo_json", "quiet_libraries", "run"]

_OF_EXTRACTION = (
    "PIL", "av", "h5py", "huggingface_hub", "imagecodecs", "isal", "nibabel", "open_clip",
    "openslide", "psutil", "pydicom", "scipy", "tifffile", "timm", "torchvision",
)  # fmt: skip


def run(app: typer.Typer, name: str, arguments: Sequence[str] | None) -> int:
    """Run a command line.

    Args:
        app: Its commands.
        name: The program's.
        arguments: Without the program; None takes the process's own.

    Returns:
        The exit code: 0 if all went well, 1 if something failed, 2 for a wrong request.
    """
    try:
        app(args=None if arguments is None else list(arguments), prog_name=name)
    except SystemExit as exc:
        return exc.code if isinstance(exc.code, int) else int(bool(exc.code))
    except DinocacheError as exc:
        logging.getLogger(__name__).debug("the command failed", exc_info=True)
        print(f"error: {exc}", file=sys.stderr)
        return exc.exit_code
    except BrokenPipeError:  # whoever read what is printed has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as exc:
        logging.getLogger(__name__).debug("the command failed", exc_info=True)
        what = exc.filename or "a file"
        print(f"error: cannot use {what}: {exc.strerror or exc}; put that right", file=sys.stderr)
        return 1
    except ModuleNotFoundError as exc:
        if (exc.name or "").split(".")[0] not in _OF_EXTRACTION:
            raise
        print(
            f"error: {exc.name} is not installed: extraction needs `pip install "
            "'dinocache[extract]'`; probing does not",
            file=sys.stderr,
        )
        return 1
    return 0


def quiet_libraries(*, debug: bool = False) -> None:
    """Send what is logged to standard error, and keep libraries from logging what is raised anyway.

    Args:
        debug: Whether our own debugging messages, with their tracebacks, are shown.
    """
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    for library in ("pydicom", "nibabel.global", "tifffile"):
        logging.getLogger(library).setLevel(logging.CRITICAL)
    if debug:
        logging.getLogger("dinocache").setLevel(logging.DEBUG)


def echo_json(value: object) -> None:
    """Print a value as JSON on standard output, where nothing else goes."""
    print(json.dumps(value, indent=2, default=str))
