"""Pages of the documentation: their blocks, and the command lines in them."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import typer
from typer.main import get_command

from dinocache.cli import app as dinocache
from probes.cli import app as probe

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *sorted((ROOT / "docs").glob("*.md")),
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "manifests/README.md")),
]
APPS = {"dinocache": dinocache, "probe": probe}
FENCE = re.compile(r'^```(?P<language>\w*)(?: title="(?P<title>[^"]+)")?$')
OTHERS = {"make", "openssl", "source"}
"""Programs besides ours that a page may name."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes:
        page: Its file.
        line: Of the fence, from 1.
        language: Behind the fence, or "".
        title: What it needs, or "".
        text: What is in it.
        follows: Whether only blank lines stand between it and the block before.
    """

    page: Path
    line: int
    language: str
    title: str
    text: str
    follows: bool

    @property
    def runs(self) -> bool:
        """Whether it is meant to run as it stands."""
        return self.language in ("bash", "python") and not self.title

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """Read all fenced blocks of a page."""
    found: list[Block] = []
    fence: re.Match[str] | None = None
    inside: list[str] = []
    start, between = 0, False
    for number, line in enumerate(page.read_text("utf-8").splitlines(), 1):
        if fence is not None and line == "```":
            language, title = fence["language"], fence["title"] or ""
            text = "".join(f"{one}\n" for one in inside)
            found.append(Block(page, start, language, title, text, follows=not between))
            fence, between = None, False
        elif fence is not None:
            inside.append(line)
        elif line.startswith("```"):
            fence, inside, start = FENCE.match(line), [], number
            assert fence, f"{page.name}:{number}: {line!r} is no fence that this reads"
        else:
            between |= bool(line.strip())
    assert fence is None, f"{page.name}: a block does not end"
    return found


def command_lines(text: str) -> Iterator[list[str]]:
    """Give the words of each command of a shell block, continued lines as one."""
    for line in re.split(r"\n| && ", text.replace("\\\n", " ")):
        words = shlex.split(line, comments=True)
        if words[:1] == ["sbatch"]:
            words = shlex.split(words[words.index("--wrap") + 1])
        if words:
            yield words


@cache
def commands_of(program: str) -> dict[str, Any]:
    """Give the commands of a program by their names, as Typer makes them."""
    return dict(get_command(APPS[program]).commands)  # type: ignore[attr-defined]


def parse(words: list[str]) -> None:
    """Hold a command line against the program, without running it; raises what that would say."""
    program, name, *rest = words
    commands = commands_of(program)
    assert name in commands, f"{program} has no command {name!r}"
    try:
        commands[name].make_context(f"{program} {name}", rest).close()
    except typer.Exit:  # --help
        return


def options(program: str, name: str) -> set[str]:
    """Give all options of a command."""
    commands = commands_of(program)
    assert name in commands, f"{program} has no command {name!r}"
    of_each = (p.opts + p.secondary_opts for p in commands[name].params)
    return {"--help", *(option for some in of_each for option in some)}
