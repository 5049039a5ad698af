"""The terminal: what is shown on it, and how both command lines end.

Names, reasons and notes of a store may be anybody's. Whatever a command prints goes through
`visible`, so that no text of others steers the terminal.
"""

import contextlib
import json
import logging
import os
import re
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TextIO, cast

import typer

from dinocache.errors import DinocacheError

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["console", "echo_json", "print_rows", "quiet_libraries", "run", "visible"]

_OF_EXTRACTION = (
    "PIL", "av", "h5py", "huggingface_hub", "imagecodecs", "isal", "nibabel", "open_clip",
    "openslide", "psutil", "pydicom", "scipy", "tifffile", "timm", "torchvision",
)  # fmt: skip

_STEERING = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 but tab and newline, DEL, C1
    "\u202a-\u202e\u2066-\u2069"  # what turns the direction of writing
    "\ud800-\udfff]"  # bytes of file names that are no text: no stream takes them
)


def visible(text: str) -> str:
    r"""Write control characters as escapes that can be seen: `\x1b` in place of ESC.

    Args:
        text: Of whoever.

    Returns:
        It, in one form on every terminal; newlines and tabs stay.
    """
    return _STEERING.sub(lambda found: ascii(found[0])[1:-1], text)


def console(*, stderr: bool = False, width: int | None = None) -> "Console":
    """Give a console for tables and bars: styles are ours alone, text is text.

    Args:
        stderr: Whether it is standard error, not standard output.
        width: Columns where that is no terminal, so that no line of a file is cut.

    Returns:
        A console of Rich that takes no markup, colours nothing by itself, and shows strings as
        `visible` gives them.
    """
    from rich.console import Console

    class Plain(Console):
        def render_str(self, text: str, **how: Any) -> Any:  # noqa: ANN401 - as Rich has it
            return super().render_str(visible(text), **how)

    stream = sys.stderr if stderr else sys.stdout
    return Plain(
        # The stream itself: while a bar is shown, Rich puts one of its own before ours.
        file=getattr(stream, "rich_proxied_file", stream),
        width=None if stream.isatty() else width,
        highlight=False,
        markup=False,
        emoji=False,
    )


class _Shown:
    """A stream that everything is printed on, and nothing raw.

    Rich's own sequences pass: it looks for a stream behind this one by the attribute's name.
    """

    def __init__(self, stream: TextIO) -> None:
        self.rich_proxied_file = stream

    def write(self, text: str) -> int:
        # At the very start a return goes back over a counter of ours; a line begins there anyway.
        start = text.startswith("\r")
        self.rich_proxied_file.write("\r" * start + visible(text[start:]))
        return len(text)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - all else is the stream's
        return getattr(self.rich_proxied_file, name)


@contextlib.contextmanager
def _shown() -> Iterator[None]:
    """Let all that is printed be visible."""
    out, err = (cast(TextIO, _Shown(stream)) for stream in (sys.stdout, sys.stderr))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        yield


def run(app: typer.Typer, name: str, arguments: Sequence[str] | None) -> int:
    """Run a command line: one line for a person's mistake, never a traceback.

    Args:
        app: Its commands.
        name: The program's.
        arguments: Without the program; None takes the process's own.

    Returns:
        The exit code: 0 if all went well, 1 if something failed, 2 for a wrong request.
    """
    with _shown():
        return _run(app, name, arguments)


def _run(app: typer.Typer, name: str, arguments: Sequence[str] | None) -> int:
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


class _VisibleLines(logging.Formatter):
    """What is logged goes to the terminal, too."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record))


def quiet_libraries(*, debug: bool = False) -> None:
    """Send what is logged to standard error, and keep libraries from logging what is raised anyway.

    Args:
        debug: Whether our own debugging messages, with their tracebacks, are shown.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_VisibleLines("%(message)s"))
    logging.basicConfig(handlers=[handler])
    for library in ("pydicom", "nibabel.global", "tifffile"):
        logging.getLogger(library).setLevel(logging.CRITICAL)
    if debug:
        logging.getLogger("dinocache").setLevel(logging.DEBUG)


def echo_json(value: object) -> None:
    """Print a value as JSON on standard output, where nothing else goes."""
    text = json.dumps(value, indent=2, default=str)
    # JSON may hold DEL as it is; shown as an escape of ours it would be JSON no more.
    print(text.replace("\x7f", "\\u007f"))


def print_rows(rows: Sequence[tuple[str, str]]) -> None:
    """Print (name, text) of each line on standard output, the texts below each other."""
    width = max((len(name) for name, _ in rows), default=0)
    for name, text in rows:
        print(f"{name:<{width}}  {text}")
