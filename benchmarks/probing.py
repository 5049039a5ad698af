"""Speed and memory of the probes: the benchmarks of each head, and of a whole fit, in turn.

    python benchmarks/probing.py [--quick]

Each is a program of its own, which says what it measures and against what: linear.py (linear
probes and searches), neighbours.py (k-NN), bags.py (ABMIL), nih_shape.py (from store to report).
--quick shrinks all of them, to see that they run.
"""

import argparse
import subprocess
import sys
from pathlib import Path

QUICK = {
    "linear.py": ["--quick"],
    "neighbours.py": ["--quick"],
    "bags.py": ["--quick"],
    "nih_shape.py": ["--items", "3000"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    failed = []
    for name, quick in QUICK.items():
        print(f"\n## {name}\n", flush=True)
        command = [sys.executable, str(Path(__file__).with_name(name))]
        if subprocess.run([*command, *(quick if given.quick else [])], check=False).returncode:
            failed.append(name)
    if failed:
        sys.exit(f"not reached, or failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
