"""From real X-rays to a finished report: 2 encoders x 3 resolutions x 3 heads x 3 seeds.

Random weights (`random:0`): the page shows what a report looks like, and nothing about DINOv3. The
images are no part of the repository; --data names a folder that has `xray/hannover-covid19`
(COVID-19 chest X-rays of Hannover, CC BY 3.0), as its source lays it out.

    python benchmarks/report.py --data ../shared/data [--out build/report]
"""

import argparse
import sys
from pathlib import Path

from real_images import x_ray_table

from dinocache.cli import main as dinocache
from probes.cli import main as probe

MODELS = ("dinov3-s", "dinov3-b")
RESOLUTIONS = ("128", "192", "256")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("build/report"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    source = given.data / "xray/hannover-covid19"
    x_ray_table(source).to_csv(given.out / "xrays.csv", index=False)
    features = str(given.out / "features")
    for model in MODELS:
        for resolution in RESOLUTIONS:
            command = ["extract", str(given.out / "xrays.csv"), "--data", str(source)]
            command += ["--store", features, "--model", model, "--resolution", resolution]
            command += ["--features", "cls,mean,dense,image", "--weights", "random:0"]
            if dinocache(command):
                sys.exit("extraction failed")
    command = ["sweep", "xrays", "--target", "sex", "--store", features]
    command += ["--head", "linear,logistic,knn", "--seeds", "3", "--folds", "5"]
    command += ["--set", "logistic.points=12", "--out", str(given.out / "runs"), "--jobs", "2"]
    command += ["--report", str(given.out / "page")]
    sys.exit(probe(command))


if __name__ == "__main__":
    main()
