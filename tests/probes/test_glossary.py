import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import yaml

from probes.metrics.glossary import GLOSSARY, MaskTask, check_mask_metrics, known_mask_metrics

MANIFESTS = sorted((Path(__file__).resolve().parents[2] / "manifests").glob("*.yaml"))


def test_every_metric_of_the_manifests_tasks_is_known() -> None:
    seen = set()
    for path in MANIFESTS:
        for task in (yaml.safe_load(path.read_text()).get("tasks") or {}).values():
            if task.get("kind") in get_args(MaskTask):
                check_mask_metrics(task["metrics"], task["kind"])
                seen |= {task["kind"]}
    assert {"segmentation", "instances"} <= seen


def test_how_each_is_read() -> None:
    lower = {name for name, entry in GLOSSARY.items() if not entry.higher_is_better}
    assert lower == {
        *("hd95", "asd", "assd", "binary_hd95", "binary_asd", "binary_assd"),
        *("fp_volume", "fn_volume", "voi", "voi_split", "voi_merge", "arand"),
        *("folding", "log_jacobian_sd"),
    }
    pooled = {name for name, entry in GLOSSARY.items() if entry.over == "pooled"}
    assert pooled == {"dice_agg", "miou", "pooled_iou", "pooled_binary_iou"}
    assert {GLOSSARY[name].unit for name in ("hd95", "fp_volume", "voi", "dice", "arand")} == {
        *("mm", "ml", "bit", "1")
    }
    assert GLOSSARY["binary_hd95"].base == "hd95"
    assert GLOSSARY["binary_hd95"].is_binary
    assert not GLOSSARY["pooled_binary_iou"].is_binary


def test_each_says_what_it_is_and_where_from() -> None:
    for name, entry in GLOSSARY.items():
        assert entry.name == name
        assert len(entry.definition) > 20
        assert re.search(r"19|20|medpy|skimage|autoPET|ISINet|pooled_iou", entry.source)
        assert not set("\n\t") & set(entry.definition + entry.source)


def test_names_that_are_not_known_or_do_not_suit() -> None:
    with pytest.raises(ValueError, match="no metric 'hd_95' of segmentations, did you mean 'hd95'"):
        check_mask_metrics(["hd_95"])
    with pytest.raises(ValueError, match="'voi' is for instances, this task is segmentation"):
        check_mask_metrics(["dice", "voi"], "segmentation")
    with pytest.raises(ValueError, match="at least one metric; known for instances: voi, "):
        check_mask_metrics([], "instances")
    with pytest.raises(ValueError, match="a task is one of segmentation, instances, registration"):
        check_mask_metrics(["dice"], "detection")  # type: ignore[arg-type]
    of_pairs = set(known_mask_metrics("registration"))
    assert of_pairs - set(known_mask_metrics("segmentation")) == {"folding", "log_jacobian_sd"}
    assert "arand" in known_mask_metrics()


def test_what_is_imported_only_when_it_is_needed() -> None:
    code = (
        "import sys, probes.metrics.cases; "
        "print([m for m in ('torch', 'skimage', 'waterz', 'medpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
