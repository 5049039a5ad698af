"""Every head on real labelled images: extraction, sweep, and a table with intervals.

Random weights (`random:0`): the figures show that the path works on real data, and nothing about
DINOv3. The images are no part of the repository; --data names a folder that has
`xray/hannover-covid19` (COVID-19 chest X-rays of Hannover, CC BY 3.0) and `cardiac/acdc/training`
(ACDC, Bernard et al. 2018), as their sources lay them out.

    python benchmarks/real_images.py --data ../shared/data [--out build/real-images]
"""

import argparse
import sys
from datetime import date
from pathlib import Path

import pandas as pd

from dinocache.cli import main as dinocache
from probes.cli import main as probe
from probes.runs import Estimate, Result, find_results

FOLDS = ["--folds", "5"]


def x_ray_table(source: Path) -> pd.DataFrame:
    """List the X-rays that are there: projection, sex, and three labels that may occur together."""
    given = pd.read_csv(source / "data.csv", dtype=str)
    table = pd.DataFrame(
        {
            "item_id": given["image_id"],
            "path": "png/" + given["image_id"] + ".png",
            "group": given["patient_id"],
            "projection": given["projection"],
            "sex": given["sex"],
            "ap": (given["projection"] == "ap").astype(int),
            "male": (given["sex"] == "m").astype(int),
            "intensive_care": given["icu_admission_offset"].notna().astype(int),
        }
    )
    return table[[(source / path).is_file() for path in table["path"]]]


def x_rays(data: Path, folder: Path) -> Path:
    """102 X-rays of 35 patients."""
    source = data / "xray/hannover-covid19"
    x_ray_table(source).to_csv(folder / "xrays.csv", index=False)
    extract(folder / "xrays.csv", source, folder, "256")
    return folder / "features/xrays/dinov3-s/256"


def hearts(data: Path, folder: Path) -> Path:
    """30 MR volumes of 15 patients: end of diastole or of systole."""
    source = data / "cardiac/acdc/training"
    rows = []
    for patient in sorted(path for path in source.iterdir() if path.is_dir()):
        said = dict(line.split(": ") for line in (patient / "Info.cfg").read_text().splitlines())
        for phase in ("ED", "ES"):
            name = f"{patient.name}_frame{int(said[phase]):02d}"
            found = sorted(patient.glob(f"{name}.nii*"))
            if found:
                path = found[0].relative_to(source).as_posix()
                rows.append({"item_id": name, "path": path, "group": patient.name, "phase": phase})
    pd.DataFrame(rows).to_csv(folder / "hearts.csv", index=False)
    extract(folder / "hearts.csv", source, folder, "224")
    return folder / "features/hearts/dinov3-s/224"


def extract(table: Path, data: Path, folder: Path, resolution: str) -> None:
    command = ["extract", str(table), "--data", str(data), "--store", str(folder / "features")]
    command += ["--model", "dinov3-s", "--resolution", resolution, "--weights", "random:0"]
    if dinocache(command):
        sys.exit("extraction failed")


def sweep(folder: Path, dataset: str, target: str, *options: str) -> None:
    command = ["sweep", dataset, "--target", target, "--store", str(folder / "features")]
    command += ["--out", str(folder / "runs"), *FOLDS, "--jobs", "2", *options]
    if probe(command):
        sys.exit("a run failed")


def cell(found: Estimate | None) -> str:
    if found is None or found.value is None:
        return "-"
    interval = "" if found.low is None else f" ({found.low:.2f} to {found.high:.2f})"
    return f"{found.value:.2f}{interval}"


def table_of(results: list[Result], metrics: list[str]) -> None:
    print(f"\n| target | items, patients | head | {' | '.join(metrics)} |")
    print(f"|---|---|---|{'---|' * len(metrics)}")
    for result in results:
        figures = " | ".join(cell(result.metrics.get(metric)) for metric in metrics)
        print(
            f"| {', '.join(result.task.targets)} | {result.items}, {result.groups} | "
            f"{result.head.name} | {figures} |"
        )


def classes_of(results: list[Result], metric: str) -> None:
    classes = results[0].task.classes
    print(f"\n{metric}, label by label:\n\n| head | {' | '.join(classes)} |")
    print(f"|---|{'---|' * len(classes)}")
    for result in results:
        cells = " | ".join(cell(result.per_class[name][metric]) for name in classes)
        print(f"| {result.head.name} | {cells} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("build/real-images"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    x_rays(given.data, given.out)
    hearts(given.data, given.out)
    vectors = ["--head", "linear,logistic,knn,xgboost", "--set", "logistic.points=12"]
    sweep(given.out, "xrays", "projection", *vectors, "--by", "sex")
    sweep(given.out, "xrays", "ap,male,intensive_care", *vectors)
    hearts_heads = ["--head", "linear,knn,abmil", "--set", "knn.k=5", "--set", "abmil.lr=0.001"]
    sweep(given.out, "hearts", "phase", *hearts_heads)
    results = list(find_results(given.out / "runs").values())
    print(f"\n`random:0`, {date.today()}: made with random weights, not DINOv3's")
    table_of(results, ["auc", "average_precision", "accuracy", "f1"])
    classes_of([r for r in results if r.task.kind == "multilabel"], "auc")
    probe(["report", str(given.out / "runs")])


if __name__ == "__main__":
    main()
