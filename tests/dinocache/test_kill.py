"""Invariant 3: kill anything at any time, run the same command again."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from making import make_table

KILLING = Path(__file__).resolve().parents[1] / "support" / "killing.py"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, and reads /proc")


def run(*arguments: object) -> dict[str, object]:
    """Run the killing program and read what it found."""
    ended = subprocess.run(
        [sys.executable, str(KILLING), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    found: dict[str, object] = json.loads(ended.stdout)
    return found


@pytest.mark.parametrize(
    "every",
    [pytest.param(16, id="each-sixteenth"), pytest.param(1, id="each", marks=pytest.mark.long)],
)
@pytest.mark.parametrize(
    ("n_images", "features", "operations"),
    [
        pytest.param(19, "cls,dense", 90, id="vectors-and-maps-in-two-units"),
        pytest.param(2, "image", 40, id="images"),
    ],
)
def test_killed_between_any_two_file_operations(
    tmp_path: Path, n_images: int, features: str, operations: int, every: int
) -> None:
    found = run("between", make_table(tmp_path, n_images), tmp_path, features, every)
    assert found["wrong"] == []
    # Each file is opened, flushed, renamed, and its folder opened and flushed.
    assert int(str(found["kills"])) >= operations // every


@pytest.mark.long
def test_killed_at_twenty_random_moments(tmp_path: Path) -> None:
    found = run("random", make_table(tmp_path, 1000), tmp_path, 20)
    assert found["kills"] == 20
    assert int(str(found["units_before_last_kill"])) >= 5
    assert found["redone"] == []
    assert found["identical"]
    assert found["verify"] == 0


def test_frozen_twin_changes_nothing_once_it_wakes(tmp_path: Path) -> None:
    found = run("twins", make_table(tmp_path, 19), tmp_path, "cls", 31)
    assert found["wrong"] == []
    assert int(str(found["frozen"])) >= 5
