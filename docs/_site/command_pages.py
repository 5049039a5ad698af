"""A page for each command of `dinocache` and `probe`, from what `--help` knows."""

import re
from functools import cache
from types import MappingProxyType
from typing import Any

import typer.main

from dinocache.cli import app as dinocache
from probes.cli import app as probe

APPS = MappingProxyType({"dinocache": dinocache, "probe": probe})


@cache
def command_pages() -> dict[str, str]:
    """Write all pages.

    Returns:
        Page -> Markdown; the first is that of all commands.
    """
    pages = {"commands/index.md": ""}
    lines = ["# Commands", "", "What `--help` says of each, on pages."]
    for program, app in APPS.items():
        commands = typer.main.get_command(app).commands
        lines += ["", f"## {program}", "", "| command | what it does |", "|---|---|"]
        for name, command in commands.items():
            summary = (command.help or "").split("\n\n")[0]
            lines.append(f"| [`{program} {name}`]({program}/{name}.md) | {_cell(summary)} |")
            pages[f"commands/{program}/{name}.md"] = _page(program, name, command)
    pages["commands/index.md"] = "\n".join(lines) + "\n"
    return pages


def _page(program: str, name: str, command: Any) -> str:  # noqa: ANN401 - typer's own classes
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and not p.hidden]
    usage = " ".join([program, name, *map(_usage, arguments), "[OPTIONS]"])
    said, _, examples = (command.help or "").partition("\nExamples:\n")
    lines = [f"# {program} {name}", "", _prose(said.strip()), "", "```text", usage, "```", ""]
    if examples:
        example = "\n".join(line.removeprefix("    ") for line in examples.splitlines())
        lines += ["## Examples", "", "```bash", example, "```", ""]
    if arguments:
        lines += ["## Arguments", "", "| argument | what |", "|---|---|"]
        lines += [f"| `{_cell(_usage(p))}` | {_cell(p.help or '')} |" for p in arguments] + [""]
    if options:
        lines += ["## Options", "", "| option | what |", "|---|---|"]
        lines += [f"| {_names(p)} | {_cell(p.help or '')}{_default(p)} |" for p in options]
    return "\n".join(lines) + "\n"


def _usage(argument: Any) -> str:  # noqa: ANN401
    name = argument.metavar or argument.name.upper()
    return name if argument.required or name.startswith("[") else f"[{name}]"


def _names(option: Any) -> str:  # noqa: ANN401
    names = [*option.opts, *option.secondary_opts]
    value = "" if option.is_flag else f" {option.metavar or option.name.strip('_').upper()}"
    return "<br>".join(f"`{_cell(name + value)}`" for name in names)


def _default(option: Any) -> str:  # noqa: ANN401
    value = option.default
    if option.required:
        return " **Required.**"
    if value is None or value == "" or isinstance(value, bool) or value == []:
        return ""
    return f" Default: `{_cell(str(value))}`."


def _cell(text: str) -> str:
    return _prose(" ".join(text.split())).replace("|", "&#124;")


def _prose(text: str) -> str:
    """Keep `<x>`, `_` and `*` as they are; what stands between backticks already is code."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else _escaped(part) for part in parts)


def _escaped(text: str) -> str:
    return re.sub(r"([_*\[\]])", r"\\\1", text).replace("<", "&lt;").replace(">", "&gt;")
