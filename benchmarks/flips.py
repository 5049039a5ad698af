"""A thousand flipped bits, a hundred cut files, a hundred missing ones: what `verify` finds.

A small store of vectors, maps, images and means is damaged in one place at a time: a random file
(of any sort: chunks, shards, descriptions of arrays, plans, records, the seal, item tables), in it
a random bit, or its end cut off at a random byte, or the file gone. Each time `verify` must name
it, and where a file of features was hit, reading its rows must raise. The report of a run, which
nothing depends on, may be missing; the header is not deleted: then it is no store.

    python benchmarks/flips.py [--flips 1000] [--cuts 100] [--deletions 100] [--seed 0]
"""

import argparse
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

from making import make_table, tiny_request

from dinocache.errors import StoreError
from dinocache.extract import extract
from dinocache.store import FeatureStore
from dinocache.verify import verify


def read_all(folder: Path) -> None:
    """Read every number of the store."""
    store = FeatureStore(folder)
    for kind in ("cls", "mean", "dense"):
        store.all_rows(kind)
    for kind in ("cls", "mean"):
        store.item_vectors(kind)
    for item_id in store.items["item_id"]:
        store.native("image", item_id)


def raises(folder: Path) -> bool:
    try:
        read_all(folder)
    except StoreError:
        return True
    return False


def harmed(content: bytes, harm: str, draws: random.Random) -> bytes | None:
    if harm == "deletion":
        return None
    if harm == "cut":
        return content[: draws.randrange(len(content))]
    flipped = bytearray(content)
    flipped[draws.randrange(len(flipped))] ^= 1 << draws.randrange(8)
    return bytes(flipped)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--flips", type=int, default=1000)
    parser.add_argument("--cuts", type=int, default=100)
    parser.add_argument("--deletions", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    draws = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        features = ("cls", "mean", "dense", "image")
        table = make_table(scratch / "images", 20)
        store = extract(tiny_request(table, scratch / "f", features=features)).path
        assert verify(store).exit_code == 0
        files = sorted(p for p in store.rglob("*") if p.is_file())
        tried: Counter[str] = Counter()
        found: Counter[str] = Counter()
        hit: Counter[str] = Counter()
        raised: Counter[str] = Counter()
        wanted = {"flip": given.flips, "cut": given.cuts, "deletion": given.deletions}
        for harm in (harm for harm, count in wanted.items() for _ in range(count)):
            path = draws.choice(files)
            while harm == "deletion" and (path.name == "store.json" or path.parent.name == "runs"):
                path = draws.choice(files)
            content = path.read_bytes()
            worse = harmed(content, harm, draws)
            path.unlink() if worse is None else path.write_bytes(worse)
            tried[harm] += 1
            damages = verify(store).damages
            found[harm] += any(path.name in damage.file for damage in damages)
            parts = path.relative_to(store).parts
            if len(parts) == {"features.zarr": 3, "native.zarr": 4}.get(parts[0]):  # of an array
                hit[harm] += 1
                raised[harm] += raises(store)
            path.write_bytes(content)
        assert verify(store).exit_code == 0
    print("| harm | tried | found by verify | of files of features | reading raised |")
    print("|---|---|---|---|---|")
    for harm in wanted:
        print(f"| {harm} | {tried[harm]} | {found[harm]} | {hit[harm]} | {raised[harm]} |")


if __name__ == "__main__":
    main()
