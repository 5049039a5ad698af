"""Two processes do the same units at once, and one of them sleeps through the other's work.

One is stopped (SIGSTOP) right before a file operation: files of a unit written and not committed, a
temporary file not renamed, a record written and its folder not flushed, and so on for every single
operation of an extraction. It is woken (SIGCONT) once the other has finished all. The other begins
while the first sleeps; then, a second time, the other is stopped first, at a random operation, so
that it does units, too, that the first committed meanwhile. Wanted, both while one sleeps and after
it has woken: a store that is complete and verified, every file under `features.zarr` bit-identical
to that of one process alone, no temporary file left.

    python benchmarks/twins.py [--every 1]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SUPPORT = Path(__file__).resolve().parents[1] / "tests" / "support"
sys.path.insert(0, str(SUPPORT))
from making import make_table  # noqa: E402 - tests/ is no package

SETS = (("cls,mean", 19), ("cls,dense", 19), ("image", 5))
"""Kinds, and images; 16 are a unit."""


def freeze(features: str, every: int, items: int) -> dict[str, Any]:
    """Run the freezing program on a table of its own, and read what it found."""
    with tempfile.TemporaryDirectory() as scratch:
        table = make_table(Path(scratch), items)
        ended = subprocess.run(
            [sys.executable, SUPPORT / "killing.py", "twins", table, scratch, features, str(every)],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--every", type=int, default=1, help="freeze before each n-th operation")
    options = parser.parse_args()
    print(f"{time.strftime('%Y-%m-%d')}, units of 16 images\n")
    print("| kinds | images | last operation | freezes | wrong | s |\n|---|---|---|---|---|---|")
    failed = False
    for features, items in SETS:
        began = time.monotonic()
        found = freeze(features, options.every, items)
        wrong = found["wrong"]
        seconds = time.monotonic() - began
        cells = [features, items, found["last"], found["frozen"], len(wrong), f"{seconds:.0f}"]
        print(f"| {' | '.join(map(str, cells))} |", flush=True)
        for line in wrong:
            print(f"  {line}", file=sys.stderr)
        failed = failed or bool(wrong) or not found["frozen"]
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
