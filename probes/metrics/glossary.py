"""Metrics of segmentations by name: what each is, of what sort of task, and how it is read."""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, get_args

__all__ = ["GLOSSARY", "MaskMetric", "MaskTask", "check_mask_metrics", "known_mask_metrics"]

MaskTask = Literal["segmentation", "instances", "registration"]
Family = Literal["overlap", "surface", "component", "frame", "instance", "field"]
Over = Literal["cases", "pooled"]
Unit = Literal["1", "mm", "ml", "bit"]


@dataclass(frozen=True, kw_only=True)
class MaskMetric:
    """One metric of segmentations.

    Attributes:
        name: As it is asked for.
        family: What it looks at: counts of voxels, surfaces, connected components, counts frame
            by frame, neurons, or a displacement.
        tasks: The kinds of task that it is for.
        higher_is_better: Else lower is.
        unit: ``1`` is a share from 0 to 1; ``mm`` is pixels where no spacing is given.
        over: ``cases`` is a mean over cases, each with a value of its own; ``pooled`` is of the
            counts of all cases together.
        per_label: Whether each label has a value, too.
        definition: One sentence.
        source: Who defined it.
    """

    name: str
    family: Family
    tasks: tuple[MaskTask, ...]
    higher_is_better: bool
    unit: Unit
    over: Over
    per_label: bool
    definition: str
    source: str

    @property
    def base(self) -> str:
        """The name without ``binary_``."""
        return self.name.removeprefix("binary_")

    @property
    def is_binary(self) -> bool:
        """Whether it is of any label against the background, as if there were one label."""
        return self.name.startswith("binary_")


_MASKS: tuple[MaskTask, ...] = ("segmentation", "registration")
_COUNTED = "a case that has the label in neither mask is left out, in one alone it is 0"


def _entries() -> Iterable[MaskMetric]:
    yield from _of_any_label("dice", f"2|P and G| / (|P| + |G|); {_COUNTED}", "Dice, Ecology 1945")
    yield from _of_any_label(
        "iou", f"|P and G| / |P or G|; {_COUNTED}", "Jaccard, New Phytologist 1912"
    )
    yield from _of_any_label(
        "precision", f"|P and G| / |P|; {_COUNTED}", "medpy 0.5, metric.binary.precision"
    )
    yield from _of_any_label(
        "recall", f"|P and G| / |G|; {_COUNTED}", "medpy 0.5, metric.binary.recall"
    )
    surfaces = {
        "hd95": "95th percentile of the distances from each surface to the other, both together",
        "asd": "mean distance from the prediction's surface to the truth's, not the way back",
        "assd": "mean of the distances from each surface to the other, both together",
    }
    for name, sentence in surfaces.items():
        sentence += "; a case in which one mask is empty is left out and counted apart"
        yield from _of_any_label(name, sentence, f"medpy 0.5, metric.binary.{name}", mm=True)
    yield from _pooled()
    yield from _of_components()
    yield from _of_frames()
    yield from _of_instances()
    yield from _of_fields()


def _of_any_label(name: str, sentence: str, source: str, *, mm: bool = False) -> list[MaskMetric]:
    """Return the metric that is a mean over labels, and the one of their union."""
    whose = {
        name: "mean over cases, then over labels",
        f"binary_{name}": "of any label against the background; mean over cases",
    }
    return [
        MaskMetric(
            name=full,
            family="surface" if mm else "overlap",
            tasks=_MASKS,
            higher_is_better=not mm,
            unit="mm" if mm else "1",
            over="cases",
            per_label=full == name,
            definition=f"{sentence}; {mean}",
            source=source,
        )
        for full, mean in whose.items()
    ]


def _pooled() -> Iterable[MaskMetric]:
    sentences = {
        "dice_agg": (
            "2 sum |P and G| / sum (|P| + |G|) over cases; mean over labels",
            "HECKTOR 2022, evaluate_segmentation2022: DSCagg",
        ),
        "miou": (
            "sum |P and G| / sum |P or G| over cases; mean over labels",
            "PASCAL VOC, Everingham et al., IJCV 2010",
        ),
        "pooled_iou": (
            "sum |P and G| / sum |P or G| over cases and labels",
            "mIoU of ISINet's and SurgicalSAM's evaluation",
        ),
        "pooled_binary_iou": (
            "sum |P and G| / sum |P or G| over cases, of any label against the background",
            "as pooled_iou, of one label",
        ),
    }
    for name, (sentence, source) in sentences.items():
        yield MaskMetric(
            name=name,
            family="overlap",
            tasks=("segmentation",),
            higher_is_better=True,
            unit="1",
            over="pooled",
            per_label=name != "pooled_binary_iou",
            definition=sentence,
            source=source,
        )


def _of_components() -> Iterable[MaskMetric]:
    sentences = {
        "fp_volume": "volume of the prediction's connected components without any true voxel",
        "fn_volume": "volume of the truth's connected components without any predicted voxel",
    }
    for name, sentence in sentences.items():
        yield MaskMetric(
            name=name,
            family="component",
            tasks=("segmentation",),
            higher_is_better=False,
            unit="ml",
            over="cases",
            per_label=True,
            definition=f"{sentence}, neighbours by face or edge; mean over all cases, then labels",
            source="autoPET, val_script.py (connectivity 18)",
        )


def _of_frames() -> Iterable[MaskMetric]:
    sentences = {
        "instrument_iou": (
            "a frame's mean IoU over the labels in its truth; mean over frames with any",
            "EndoVis 2018 challenge; Challenge IoU in ISINet, Gonzalez et al., MICCAI 2020",
        ),
        "isinet_iou": (
            "a frame's mean IoU over the labels in its truth or prediction; mean over frames",
            "ISINet, Gonzalez et al., MICCAI 2020: IoU",
        ),
        "mc_iou": (
            "a label's mean IoU over the frames with it in truth or prediction; mean over labels",
            "ISINet, Gonzalez et al., MICCAI 2020: mean class IoU",
        ),
        "twoclass_iou": (
            "a frame's mean of the IoU of any label and that of the background; mean over frames",
            "mean IoU of the two classes, as in EndoVis 2017, Allan et al., arXiv:1902.06426",
        ),
    }
    for name, (sentence, source) in sentences.items():
        yield MaskMetric(
            name=name,
            family="frame",
            tasks=("segmentation",),
            higher_is_better=True,
            unit="1",
            over="cases",
            per_label=name != "twoclass_iou",
            definition=sentence,
            source=source,
        )


def _of_instances() -> Iterable[MaskMetric]:
    entropy = "in bits, voxels without a true neuron left out"
    sentences = {
        "voi": f"voi_split + voi_merge, {entropy}",
        "voi_split": f"entropy of the segments given the true neurons, {entropy}",
        "voi_merge": f"entropy of the true neurons given the segments, {entropy}",
        "arand": "1 - F1 of the pairs of voxels in one neuron, voxels without a true one left out",
    }
    for name, sentence in sentences.items():
        yield MaskMetric(
            name=name,
            family="instance",
            tasks=("instances",),
            higher_is_better=False,
            unit="1" if name == "arand" else "bit",
            over="cases",
            per_label=False,
            definition=f"{sentence}; mean over volumes",
            source=(
                "Arganda-Carreras et al., Front. Neuroanat. 2015; skimage adapted_rand_error"
                if name == "arand"
                else "Meila, J. Multivar. Anal. 2007; skimage variation_of_information"
            ),
        )


def _of_fields() -> Iterable[MaskMetric]:
    sentences = {
        "folding": "share of voxels whose Jacobian determinant of x + u(x) is at most 0",
        "log_jacobian_sd": (
            "standard deviation of the logarithm of that determinant, where it is above 0"
        ),
    }
    for name, sentence in sentences.items():
        yield MaskMetric(
            name=name,
            family="field",
            tasks=("registration",),
            higher_is_better=False,
            unit="1",
            over="cases",
            per_label=False,
            definition=f"{sentence}; mean over pairs",
            source="Learn2Reg, Hering et al., IEEE TMI 2022",
        )


GLOSSARY: Mapping[str, MaskMetric] = MappingProxyType({entry.name: entry for entry in _entries()})
"""Every metric of segmentations, by name."""


def known_mask_metrics(task: MaskTask | None = None) -> tuple[str, ...]:
    """Return the names that there are.

    Args:
        task: Only those for tasks of this kind; None for all.

    Returns:
        The names.
    """
    return tuple(name for name, known in GLOSSARY.items() if task is None or task in known.tasks)


def check_mask_metrics(
    names: Iterable[str], task: MaskTask | None = None
) -> tuple[MaskMetric, ...]:
    """Look names up and see that they suit a task.

    Args:
        names: At least one.
        task: Of what kind the task is; None if it does not matter.

    Returns:
        What each name means, in the same order.

    Raises:
        ValueError: If there is no such metric, it is for tasks of another kind, or none is named.
    """
    if task is not None and task not in get_args(MaskTask):
        raise ValueError(f"a task is one of {', '.join(get_args(MaskTask))}; got {task!r}")
    known = f"known{f' for {task}' if task else ''}: {', '.join(known_mask_metrics(task))}"
    found = []
    for name in names:
        entry = GLOSSARY.get(name)
        if entry is None:
            close = difflib.get_close_matches(name, GLOSSARY, n=1)
            hint = f", did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"there is no metric {name!r} of segmentations{hint}; {known}")
        if task is not None and task not in entry.tasks:
            raise ValueError(
                f"metric {name!r} is for {' and '.join(entry.tasks)}, this task is {task}; {known}"
            )
        found.append(entry)
    if not found:
        raise ValueError(f"name at least one metric; {known}")
    return tuple(found)
