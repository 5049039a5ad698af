"""What a terminal is shown of texts that may be anybody's."""

import ast
import io
import json
import logging
import os
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import typer

from dinocache import cli, documents
from dinocache.importing import Declared, import_features
from dinocache.progress import LineProgress
from dinocache.store import FeatureStore
from dinocache.terminal import console, echo_json, quiet_libraries, run, visible
from probes.printing import print_estimates
from probes.runs import Estimate

CLEAR = "\x1b[2J"
SEEN = r"\x1b[2J"
TURNING = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


# Text


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Grüße, 片 ≤ 3 µm\n\tמשה", "Grüße, 片 ≤ 3 µm\n\tמשה"),
        (CLEAR, SEEN),
        ("a\rb\x08\x7f\x00", r"a\rb\x08\x7f\x00"),
        ("\x9b2J\x85", r"\x9b2J\x85"),
        ("gpj.\u202eexe\u2066\u2069", r"gpj.\u202eexe\u2066\u2069"),
        ("\udcff.png", r"\udcff.png"),
    ],
)
def test_a_text(text: str, wanted: str) -> None:
    assert visible(text) == wanted


def test_every_character_that_steers_and_no_other() -> None:
    for number in range(sys.maxunicode + 1):
        character = chr(number)
        steers = character not in "\n\t" and unicodedata.category(character) in ("Cc", "Cs")
        steers |= unicodedata.bidirectional(character) in TURNING
        assert (visible(character) != character) == steers, f"U+{number:04X}"
        assert not steers or visible(character).isascii()


# Streams


def say(*texts: str) -> typer.Typer:
    """A command line that prints."""
    app = typer.Typer(add_completion=False)

    @app.command()
    def speak() -> None:
        for text in texts:
            print(text, end="")
            print(text, end="", file=sys.stderr)

    return app


def test_what_is_printed_on_both_streams(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout, sys.stderr
    assert run(say("a", CLEAR, "\nb"), "say", []) == 0
    assert (sys.stdout, sys.stderr) == before
    printed = capsys.readouterr()
    assert printed.out == printed.err == f"a{SEEN}\nb"


def test_a_counter_goes_back_over_itself(capsys: pytest.CaptureFixture[str]) -> None:
    run(say("\r1%", "\r2%", "\r\r", "x\ry"), "say", [])
    assert capsys.readouterr().out == "\r1%\r2%\r\\rx\\ry"


def test_the_stream_is_as_it_was_otherwise(capfd: pytest.CaptureFixture[str]) -> None:
    app = typer.Typer(add_completion=False)

    @app.command()
    def write() -> None:
        os.write(sys.stdout.fileno(), b"plain ")
        print(sys.stdout.isatty(), sys.stdout.encoding.lower())

    assert run(app, "write", []) == 0
    assert capfd.readouterr().out == "plain False utf-8\n"


def test_errors_that_end_a_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["info", f"{tmp_path}/{CLEAR}"]) != 0
    printed = capsys.readouterr().err
    assert SEEN in printed
    assert "\x1b" not in printed


def test_what_is_logged(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    handlers, root.handlers = root.handlers, []
    try:
        quiet_libraries()
        logging.getLogger("dinocache.x").warning("a %s", CLEAR)
    finally:
        root.handlers = handlers
    assert capsys.readouterr().err == f"a {SEEN}\n"


def test_notes_of_progress(capsys: pytest.CaptureFixture[str]) -> None:
    app = typer.Typer(add_completion=False)

    @app.command()
    def note() -> None:
        LineProgress(sys.stderr).note(f"warning: {CLEAR}")

    run(app, "note", [])
    assert capsys.readouterr().err == f"warning: {SEEN}\n"


def test_json_stays_json(capsys: pytest.CaptureFixture[str]) -> None:
    value = {f"k{CLEAR}": "\x7f\x9b\u202e\udcff\r\\u007f"}
    app = typer.Typer(add_completion=False)
    app.command()(lambda: echo_json(value))
    run(app, "json", [])
    printed = capsys.readouterr().out
    assert json.loads(printed) == value
    assert visible(printed) == printed


# Rich


def test_styles_are_ours_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.table import Table

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    app = typer.Typer(add_completion=False)

    @app.command()
    def show() -> None:
        table = Table(f"title {CLEAR}", header_style="bold")
        table.add_row(f"cell {CLEAR} [red]not red[/red] :smile:")
        table.add_row("[/no markup]")
        console().print(table)
        console().print(f"line {CLEAR}", style="red")

    assert run(app, "show", []) == 0
    shown = screen.getvalue()
    assert "\x1b[1m" in shown, "the header is bold"
    assert "\x1b[31m" in shown, "the line is red"
    assert CLEAR not in shown
    for text in ("title", "cell", "line"):
        assert f"{text} {SEEN}" in shown
    assert "[red]not red[/red] :smile:" in shown
    assert "[/no markup]" in shown


def test_a_bar_and_what_is_printed_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rich puts a stream of its own before ours; its own sequences still arrive."""
    from rich.progress import Progress

    monkeypatch.setenv("TERM", "xterm")
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    app = typer.Typer(add_completion=False)

    @app.command()
    def work() -> None:
        with Progress(console=console(stderr=True), auto_refresh=False) as bar:
            bar.console.print(f"note {CLEAR}")
            bar.refresh()

    assert run(app, "work", []) == 0
    shown = screen.getvalue()
    assert f"note {SEEN}" in shown
    assert CLEAR not in shown
    assert "\x1b[?25l" in shown, "the cursor is hidden"
    assert r"\x1b[?25l" not in shown


def test_no_module_makes_a_console_of_its_own() -> None:
    root = Path(cli.__file__).parents[1]
    made = {
        path.relative_to(root).as_posix()
        for package in ("dinocache", "probes")
        for path in (root / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and "Console" in ast.unparse(node.func)
    }
    assert made == set(), "dinocache.terminal.console shows what is visible"


# Stores


@pytest.fixture
def crafted(tmp_path: Path) -> FeatureStore:
    """A store whose ids, reasons, columns, paths and maker would clear the screen."""
    source = tmp_path / "source"
    source.mkdir()
    rng = np.random.default_rng(0)
    np.savez(source / "good.npz", features=rng.normal(size=(5, 7)).astype(np.float32))
    bad = {f"one{CLEAR}": np.zeros((2, 7)), f"two{CLEAR}": np.zeros((2, 7))}
    np.savez(source / f"bad{CLEAR}.npz", **bad)  # type: ignore[arg-type]
    table = tmp_path / "items.csv"
    rows = {
        "item_id": [f"good{CLEAR}", f"bad{CLEAR}"],
        "path": ["good.npz", f"bad{CLEAR}.npz"],
        f"column{CLEAR}": [3, 4],
    }
    pd.DataFrame(rows).to_csv(table, index=False)
    said = Declared(model="some-encoder", resolution=(224, 192))
    store = import_features(source, tmp_path / "f", dataset="d", declared=said, table=table)
    header = store.path / "store.json"
    body = json.loads(header.read_bytes())["body"]
    body["provenance"] |= {"by": f"by{CLEAR}", "created": f"made{CLEAR}"}
    header.write_bytes(documents.encode(body))
    return FeatureStore(store.path)


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("info", ["column", "made"]),
        ("failures", ["bad", "one", "two"]),
        ("ls", ["by"]),
        ("verify", ["good"]),
    ],
)
def test_a_store_of_others_steers_no_terminal(
    crafted: FeatureStore,
    tmp_path: Path,
    command: str,
    told: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    chunk = crafted.path / "features.zarr/cls/c.0.0"
    chunk.write_bytes(chunk.read_bytes()[:-1])
    where = str(tmp_path / "f") if command == "ls" else str(crafted.path)
    cli.main([command, where])
    printed = "".join(capsys.readouterr())
    assert "\x1b" not in printed
    for text in told:
        assert f"{text}{SEEN}" in printed
    cli.main([command, where, "--json"])
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert CLEAR in json.dumps(json.loads(printed), ensure_ascii=False).replace(r"\u001b", "\x1b")


# Probes


def test_tables_of_a_probe(capsys: pytest.CaptureFixture[str]) -> None:
    """Names of classes and columns come from a store."""
    found = Estimate(
        value=0.75,
        low=0.5,
        high=0.875,
        level=0.95,
        defined=7,
        replicates=7,
        sd_seeds=None,
        sd_folds=None,
    )
    print_estimates({f"auc {CLEAR} [bold]": found})
    printed = capsys.readouterr().out
    assert f"auc {SEEN} [bold]" in printed
    assert "0.500 to 0.875" in printed
    assert "\x1b" not in printed
