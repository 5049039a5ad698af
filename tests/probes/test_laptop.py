"""What a laptop need not wait for: torch is imported by what fits, and by nothing else."""

import subprocess
import sys
from pathlib import Path

import pytest

from dinocache.store import FeatureStore

HEAVY = ("torch", "timm", "torchvision", "huggingface_hub", "sklearn", "matplotlib")

PROGRAM = """
import sys
{statement}
heavy = sorted(set({heavy!r}) & set(sys.modules))
print("heavy:", *heavy)
"""


def imported_by(statement: str) -> list[str]:
    """Say which heavy packages a fresh process has after a statement."""
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(statement=statement, heavy=HEAVY)],
        capture_output=True,
        text=True,
        check=True,
    )
    return ended.stdout.splitlines()[-1].split()[1:]


@pytest.mark.parametrize(
    "statement",
    [
        pytest.param("import dinocache.store", id="the-store"),
        pytest.param("import probes.features, probes.runs, probes.heads", id="the-door"),
        pytest.param("from probes.cli import main; assert main(['--help']) == 0", id="probe-help"),
        pytest.param("from probes.cli import main; assert main(['fit', '-h']) == 0", id="fit-help"),
        pytest.param(
            "from dinocache.cli import main; assert main(['--help']) == 0", id="dinocache-help"
        ),
    ],
)
def test_what_is_quick(statement: str) -> None:
    assert imported_by(statement) == []


def test_a_nearest_neighbour_needs_no_torch(tiny_store: FeatureStore, tmp_path: Path) -> None:
    given = ["fit", str(tiny_store.path), "--target", "bright", "--head", "knn"]
    given += ["--replicates", "9", "--out", str(tmp_path / "run")]
    assert "torch" not in imported_by(f"from probes.cli import main; assert main({given!r}) == 0")
    assert (tmp_path / "run/result.json").is_file()
