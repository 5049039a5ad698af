"""What the pages say is so: blocks run as they stand, commands and files that are named exist.

A block of `bash` or `python` runs, in the order of the page, unless its title says what it needs.
A block of `text` right behind one is what it prints, on both streams, line by line; where it is
compared every number and digest counts as the same, as do the widths of columns and rules, and a
line `...` stands for any lines.
"""

import ast
import importlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import pandas as pd
import pytest
from pages import (
    APPS,
    OTHERS,
    PAGES,
    ROOT,
    Block,
    blocks,
    command_lines,
    commands_of,
    options,
    parse,
)
from warm_shell import warm_programs

BLOCKS = [block for page in PAGES for block in blocks(page)]
SHELL = [block for block in BLOCKS if block.language == "bash"]
RUN_ELSEWHERE = {"notebooks.md"}  # tests/dinocache/test_notebook.py
RUN = [page for page in PAGES if any(block.runs for block in blocks(page))]
MUST_RUN = {"tutorial.md", "own-dataset.md", "own-encoder.md", "notebooks.md"}
HOW_TO = {
    *("cluster.md", "own-dataset.md", "own-encoder.md", "notebooks.md", "probing.md"),
    *("registration.md", "segmentation.md", "sharing.md", "tutorial.md"),
}


def alike(line: str) -> str:
    """Take away what may differ between a page and a run."""
    line = re.sub(r"[━─]+", "━", line)
    line = re.sub(r"\b(?=\w*\d)[0-9a-f]{12,}\b", "#", line)
    line = re.sub(r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?", "#", line)
    return re.sub(r"\s+", " ", line).strip()


def shows(page: str, printed: str) -> bool:
    """Whether a page's block is what was printed."""
    wanted = [alike(line) for line in page.splitlines()]
    pattern = "".join("(?:.*\n)*" if line == "..." else f"{re.escape(line)}\n" for line in wanted)
    lines = "".join(f"{alike(line)}\n" for line in printed.splitlines() if line.strip())
    return re.fullmatch(pattern, lines) is not None


def test_what_counts_as_the_same() -> None:
    page = "auc  │ 0.58 │ 0.33 to 0.81\nsha256 0ab1c2d3e4f5\n...\nend\n"
    assert shows(page, "auc │ 0.6 │ 0.4 to 1\nsha256 99ab99ab99ab\n\nmore\nlast\nend\n")
    assert shows(page, "auc │ 0.6 │ 0.4 to 1\nsha256 99ab99ab99ab\nend\n")
    assert not shows(page, "auc │ - │ 0.4 to 1\nsha256 99ab99ab99ab\nend\n")
    assert not shows(page, "f1 │ 0.6 │ 0.4 to 1\nsha256 99ab99ab99ab\nend\n")
    assert not shows(page, "auc │ 0.6 │ 0.4 to 1\nsha256 99ab99ab99ab\nend\nmore\n")
    assert not shows("one\ntwo\n", "one\n")
    assert not shows("━━━╇━━\n1 of 2\n", "━╇━\n1 or 2\n")
    assert shows("━━━╇━━\n1 of 2\n", "━╇━━━━━\n30 of 4.5\n")


def run_page(page: Path, folder: Path, programs: Path) -> None:
    """Run a page's blocks one behind the other in a folder, with these programs on the path."""
    env = os.environ | {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    printed = ""
    for block in blocks(page):
        if block.language == "text" and block.follows and printed:
            assert shows(block.text, printed), f"{block} is not what came:\n{printed}"
        printed = ""
        if not block.runs:
            continue
        shell = ["bash", "-euo", "pipefail", "-c"]
        command = shell if block.language == "bash" else [sys.executable, "-W", "error", "-c"]
        ended = subprocess.run(
            [*command, block.text],
            cwd=folder,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert ended.returncode == 0, f"{block} ended with {ended.returncode}:\n{ended.stdout}"
        printed = ended.stdout


@pytest.fixture(scope="module")
def programs() -> Iterator[Path]:
    """A folder with `dinocache` and `probe`."""
    with warm_programs() as folder:
        yield folder


@pytest.fixture
def xrays(tmp_path: Path) -> Path:
    """A folder with what the pages on a dataset and an encoder of one's own begin with."""
    with resources.as_file(resources.files("manifests")) as manifests:
        demo = manifests / "demo"
        table = pd.read_csv(demo / "images.csv", dtype=str)
        table["path"] = "xrays/" + table["projection"] + "/" + table["image_id"] + ".png"
        for path in table["path"]:
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(demo / "images" / Path(path).name, tmp_path / path)
    named = table.rename(columns={"patient_id": "group", "projection": "view"})
    named[["path", "group", "view"]].to_csv(tmp_path / "xrays.csv", index=False)
    return tmp_path


HERE = [page for page in RUN if page.name not in RUN_ELSEWHERE]


@pytest.mark.parametrize("page", HERE, ids=lambda page: page.name)
def test_blocks_run_as_they_stand(page: Path, xrays: Path, programs: Path) -> None:
    run_page(page, xrays, programs)


def test_pages_with_blocks_to_run() -> None:
    """The tutorial runs but for its first block, and no page has lost what it ran."""
    assert {page.name for page in RUN} >= MUST_RUN
    tutorial = [b for b in SHELL if b.page.name == "tutorial.md"]
    assert [b.title for b in tutorial if not b.runs] == ["needs a fresh clone"]
    assert len(tutorial) >= 7


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.title], ids=str)
def test_a_block_that_does_not_run_says_why(block: Block) -> None:
    assert block.title.startswith("needs ")
    assert block.language in ("bash", "python")


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_command_lines_parse(block: Block) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for words in command_lines(block.text):
        if words[0] in APPS:
            parse(words)
        else:
            assert words[0] in OTHERS, f"{words[0]} is no program that a page may name"
        if words[0] == "make":
            assert words[1] in targets, f"there is no target {words[1]}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_stand_in_shell_blocks(page: Path) -> None:
    """Else they would be checked by nobody."""
    for block in blocks(page):
        if block.language in ("", "yaml", "csv"):
            assert not re.search("^(dinocache|probe) ", block.text, re.MULTILINE), str(block)
    if page.name in HOW_TO:
        assert "\n    dinocache " not in page.read_text()
        assert "\n    probe " not in page.read_text()


def test_a_wrong_command_line_is_seen() -> None:
    parse(["probe", "fit", "demo/x", "--seeds", "3"])
    with pytest.raises(AssertionError, match="has no command 'fitt'"):
        parse(["probe", "fitt"])
    for wrong, said in (
        (["--sedes", "3"], "No such option: --sedes"),
        (["--seeds", "many"], "valid integer"),
        (["more"], r"unexpected extra argument.*more"),
    ):
        with pytest.raises(Exception, match=said):
            parse(["probe", "fit", "demo/x", *wrong])


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_that_are_mentioned_exist(page: Path) -> None:
    for program, name, rest in re.findall(
        r"`(dinocache|probe) ([a-z]+)([^`]*)`", page.read_text("utf-8")
    ):
        known = options(program, name)
        named = set(re.findall(r"(?<=\s)--[a-z-]+", rest))
        assert named <= known, f"{program} {name} has no {', '.join(named - known)}"


@pytest.mark.parametrize("program", APPS)
def test_examples_of_help_parse(program: str) -> None:
    commands = commands_of(program)
    for name, command in commands.items():
        _, _, examples = (command.help or "").partition("\nExamples:\n")
        lines = list(command_lines(examples))
        assert not lines or [program, name] in [words[:2] for words in lines]
        for words in lines:
            parse(words)


@pytest.mark.parametrize(
    "block", [b for b in BLOCKS if b.language == "python" and b.title], ids=str
)
def test_python_that_does_not_run_names_what_exists(block: Block) -> None:
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module or "")
            missing = [name.name for name in node.names if not hasattr(module, name.name)]
            assert not missing


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda p: p.name)
def test_links_hold_in_the_repository(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#:\s]+)[)#]", page.read_text("utf-8")):
        assert (page.parent / link).exists(), f"{page.name}: {link}"
