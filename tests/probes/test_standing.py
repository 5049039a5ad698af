"""Where own runs stand in the paper's tables, by hand-worked cases."""

from pathlib import Path

import pytest
from synthetic_runs import estimate, write_synthetic_run

from dinocache.manifest import find_task, split_column
from probes.heads import DENSE_HEADS, HEADS, make_dense_head, make_head
from probes.paper_tables import Column, PaperTable, paper_tables
from probes.runs import Estimate, Result, SplitFacts
from probes.standing import OwnRow, Standing, settings_apart, side_of, standing
from probes.tasks import list_tasks

TABLES = {table.number: table for table in paper_tables()}


def placed(number: int, **runs: Result) -> Standing:
    [one] = standing([TABLES[number]], runs)
    return one


def column(table: PaperTable, dataset: str, metric: str) -> Column:
    [found] = [c for c in table.columns if (c.dataset, c.metric) == (dataset, metric)]
    return found


def run(folder: Path, named: str, **changes: object) -> Result:
    return write_synthetic_run(folder / named.replace("/", "-"), named, **changes)  # type: ignore[arg-type]


def only(one: Standing) -> OwnRow:
    [row] = one.own
    return row


def test_the_difference_is_from_the_same_encoder(tmp_path: Path) -> None:
    metrics = {"auc": estimate(0.80, 0.02), "recall": estimate(0.50, 0.1)}
    row = only(placed(2, one=run(tmp_path, "nih14/findings", model="dinov3-b", metrics=metrics)))
    assert row.label == "dinov3-b @ 256, linear on cls"
    assert (row.against, row.warnings) == ("DINOv3-B", ())
    auc = row.figures[column(TABLES[2], "NIH-14", "auc")]
    assert auc.value == 0.80
    assert auc.difference == pytest.approx(0.80 - 0.7833)  # what the paper prints of DINOv3-B
    assert auc.beyond is False  # from 0.78 to 0.83
    recall = row.figures[column(TABLES[2], "NIH-14", "recall")]
    assert recall.difference == pytest.approx(0.50 - 0.5753)
    assert recall.beyond is False
    assert len(row.figures) == 2


@pytest.mark.parametrize(("value", "beyond"), [(0.7833 + 0.0299, False), (0.7833 + 0.0301, True)])
def test_whether_what_is_printed_lies_within_the_interval(
    tmp_path: Path, value: float, beyond: bool
) -> None:
    metrics = {
        "auc": Estimate.model_validate(estimate(value).model_dump() | {"high": value + 0.03})
    }
    row = only(placed(2, one=run(tmp_path, "nih14/findings", model="dinov3-b", metrics=metrics)))
    assert row.figures[column(TABLES[2], "NIH-14", "auc")].beyond is beyond


def test_shares_become_percent(tmp_path: Path) -> None:
    metrics = {"dice": estimate(0.75, 0.02)}
    one = placed(10, one=run(tmp_path, "msd-task04/segmentation", metrics=metrics))
    figure = only(one).figures[column(TABLES[10], "MSD/Task04_Hippocampus", "dice")]
    assert (figure.value, figure.low, figure.high) == pytest.approx((75, 73, 78))


def test_names_that_differ_are_matched_as_the_manifest_says(tmp_path: Path) -> None:
    metrics = {"dice": estimate(0.41), "binary_dice": estimate(0.52)}
    hecktor = only(placed(14, one=run(tmp_path, "hecktor2022/ct-pet", metrics=metrics)))
    assert hecktor.figures[column(TABLES[14], "HECKTOR2022", "dice")].value == pytest.approx(52)
    assert hecktor.against == "DINOv3-S/16 (CT+PET)"
    classes = {"BE": {"dice": estimate(0.61)}, "polyp": {"dice": estimate(0.33)}}
    edd = run(tmp_path, "edd2020/diseases", metrics={"dice": estimate(0.45)}, per_class=classes)
    figures = only(placed(8, one=edd)).figures
    assert figures[column(TABLES[8], "EDD2020", "dice_NDBE")].value == pytest.approx(61)
    assert figures[column(TABLES[8], "EDD2020", "dice_polyp")].value == pytest.approx(33)
    assert figures[column(TABLES[8], "EDD2020", "dice_avg")].value == pytest.approx(45)
    assert column(TABLES[8], "EDD2020", "dice_CA") not in figures


def test_every_mapped_name_is_a_metric_and_a_column() -> None:
    """A manifest that names a metric wrongly would leave its column empty for ever."""
    for task in list_tasks(None):
        for answer in task["paper"]:
            columns = TABLES[answer["table"]].columns
            metrics = {c.metric for c in columns if c.dataset == answer["dataset"]}
            assert metrics, task["task"]
            for theirs in metrics:
                ours, _, of = answer["metrics"].get(theirs, theirs).partition(".")
                assert ours in task["metrics"], (task["task"], theirs)
                assert not of or of in task["labels"].values(), (task["task"], of)
            assert set(answer["metrics"]) <= metrics


@pytest.mark.parametrize(
    ("named", "changes", "warning"),
    [
        ("nih14/findings", {"random": True}, "random weights (random:0)"),
        ("nih14/findings", {"resolution": "512"}, "resolution 512, the paper's is 256"),
        ("nih14/findings", {"head": "knn"}, "head knn, not the paper's (linear)"),
        ("nih14/findings", {"seeds": 2}, "2 of 3 seeds"),
        ("nih14/findings", {"model": "mae-b"}, "the paper prints nothing of this encoder"),
        ("nih14/findings", {"left_out": {"x": "target missing"}}, "1 items left out"),
        (
            "msd-task04/segmentation",
            {"resolution": "512"},
            "resolution 512; the paper states none, 256 stands for it",
        ),
    ],
)
def test_what_differs_is_said(
    tmp_path: Path, named: str, changes: dict[str, object], warning: str
) -> None:
    plain = run(tmp_path, named)
    number = find_task(named)[2].paper[0].table
    assert only(placed(number, one=plain)).warnings == ()
    assert only(placed(number, one=run(tmp_path, named, **changes))).warnings == (warning,)


@pytest.mark.parametrize(
    ("split", "warning"),
    [
        (
            {"column": None, "protocol": "folds", "folds": 5},
            "other split (5 folds by group, not 'split')",
        ),
        ({"column": "view"}, "other split (split 'view', not 'split')"),
        ({"shots": 5}, "trained on 5 items a class"),
        ({"fraction": 0.1}, "trained on 0.1 of the groups"),
        ({"n_test": 48}, "48 items tested, the official release has 25,596"),
        ({"n_train": 50}, "trained on 50 items, the official release has 86,524"),
    ],
)
def test_other_patients_are_said(tmp_path: Path, split: dict[str, object], warning: str) -> None:
    usual = run(tmp_path, "nih14/findings").split.model_dump()
    if "folds" in split:
        usual["n_test"] = 25596 / 5
    facts = SplitFacts.model_validate(usual | split)
    row = only(placed(2, one=run(tmp_path, "nih14/findings", split=facts)))
    assert row.warnings == (warning,)


def test_pairs_are_counted_as_pairs(tmp_path: Path) -> None:
    """ACDC's 100 test items are 50 pairs."""
    facts = run(tmp_path, "acdc/ed-es", resolution="512").split
    whole = facts.model_copy(update={"n_test": 50})
    few = facts.model_copy(update={"n_test": 15})
    for split, warnings in ((whole, ()), (few, ("15 pairs tested, the official release has 50",))):
        row = only(placed(16, one=run(tmp_path, "acdc/ed-es", resolution="512", split=split)))
        assert (row.against, row.warnings) == ("DINO-S+MIND+ConvexAdam", warnings)


def test_what_holds_of_one_dataset_of_a_row_names_it(tmp_path: Path) -> None:
    both = placed(
        2,
        one=run(tmp_path, "nih14/findings", random=True, seeds=2),
        two=run(tmp_path, "rsna-pneumonia/pneumonia", random=True),
    )
    assert only(both).warnings == ("random weights (random:0)", "NIH-14: 2 of 3 seeds")
    assert len(only(both).figures) == 8


def test_what_one_dataset_alone_has_names_it(tmp_path: Path) -> None:
    both = placed(
        2,
        one=run(tmp_path, "nih14/findings", seeds=2),
        two=run(tmp_path, "rsna-pneumonia/pneumonia"),
    )
    assert only(both).warnings == ("NIH-14: 2 of 3 seeds",)


@pytest.mark.parametrize("named", sorted(t["task"] for t in list_tasks(None) if t["paper"]))
def test_a_task_as_it_stands_on_the_whole_release_compares(tmp_path: Path, named: str) -> None:
    manifest, _, task = find_task(named)
    changes: dict[str, object] = {"resolution": str(manifest.extract.resolutions[0])}
    head = task.head if task.head != "convexadam" else "decoder3d"
    if head in HEADS or head in DENSE_HEADS:
        made = make_head if head in HEADS else make_dense_head
        changes["settings"] = made(head, **task.settings).get_params() if head == task.head else {}
    if task.train_on:
        trained = find_task(task.train_on)[0].name
        plain = run(tmp_path, named, **changes)
        changes["test_store"] = plain.store
        changes["store"] = plain.store.model_copy(update={"dataset": trained})
        column = split_column(find_task(task.train_on)[2].split)
        changes["split"] = plain.split.model_copy(update={"column": column, "folds": 5})
    # The official lists leave frames out that are on no side.
    changes["left_out"] = {"x": f"no value of {split_column(task.split)!r}"}
    table = task.paper[0].table
    assert only(placed(table, one=run(tmp_path, named, **changes))).warnings == ()


@pytest.mark.parametrize(
    ("named", "changes", "warning"),
    [
        ("acdc/ed-es", {"features": ("dense",)}, "features dense, not dense+mind"),
        ("autopet2/ct", {"features": ("dense.pet",)}, "features dense.pet, not dense.ct"),
        ("nih14/findings", {"features": ("mean",)}, "features mean, not the encoder's own vector"),
        (
            "acdc/ed-es",
            {"head": "voxelmorph", "features": ("dense",)},
            "features dense, not image",
        ),
        ("acdc/ed-es", {"model": "anatomix"}, "features dense+mind, not dense"),
        ("nih14/findings", {"settings": {"epochs": 1}}, "settings epochs=1 (usually 50)"),
        ("nih14/findings", {"pool": "max"}, "pool max"),
        ("edd2020/diseases", {"present_only": True}, "means over other labels (--present-only)"),
    ],
)
def test_another_set_up_is_said(
    tmp_path: Path, named: str, changes: dict[str, object], warning: str
) -> None:
    manifest, _, task = find_task(named)
    changes = {"resolution": str(manifest.extract.resolutions[0]), **changes}
    table = task.paper[0].table
    assert warning in only(placed(table, one=run(tmp_path, named, **changes))).warnings


def test_another_method_has_no_row_to_differ_from(tmp_path: Path) -> None:
    made = run(tmp_path, "acdc/ed-es", features=("image",), resolution="512")
    row = only(placed(16, one=made))
    assert row.against == ""
    assert "the paper prints nothing of this method" in row.warnings


def test_fewer_targets_are_said(tmp_path: Path) -> None:
    made = run(tmp_path, "nih14/findings")
    task = made.task.model_copy(update={"targets": ("Hernia",)})
    row = only(placed(2, one=made.model_copy(update={"task": task})))
    assert row.warnings == ("1 of 14 targets",)


def test_the_store_that_was_tested_must_be_the_tasks(tmp_path: Path) -> None:
    made = run(tmp_path, "nih14/findings")
    other = made.store.model_copy(update={"dataset": "mine"})
    row = only(placed(2, one=made.model_copy(update={"test_store": other})))
    assert row.warnings == ("trained on nih14, tested on mine (the task: nih14, nih14)",)


def test_how_images_were_read_is_compared(tmp_path: Path) -> None:
    made = run(tmp_path, "camelyon16/tumour", resolution="224")
    for mpp, warnings in ((0.5, ()), (0.25, ("read with tile_mpp=0.25 (the manifest: 0.5)",))):
        recipe = {"reader": {"options": {"tile_px": 224, "tile_mpp": mpp, "overlap": 0}}}
        store = made.store.model_copy(update={"recipe": recipe})
        row = only(placed(3, one=made.model_copy(update={"store": store})))
        assert row.warnings == warnings


def test_a_column_of_the_items_is_a_split_too(tmp_path: Path) -> None:
    made = run(tmp_path, "kvasir-capsule/reversed")
    split = made.split.model_copy(update={"column": None, "protocol": "folds", "folds": 5})
    row = only(placed(5, one=made.model_copy(update={"split": split})))
    assert "other split (5 folds by group, not 'split.reversed')" in row.warnings


def test_a_run_without_the_other_nine_tasks_is_not_blamed_for_them(tmp_path: Path) -> None:
    whole = run(tmp_path, "msd-task06/segmentation")
    few = run(tmp_path, "msd-task01/segmentation")
    split = few.split.model_copy(update={"n_test": 1})
    one = placed(11, a=whole, b=few.model_copy(update={"split": split}))
    assert only(one).warnings == ()


def test_what_is_no_setting_is_in_the_label(tmp_path: Path) -> None:
    split = run(tmp_path, "nih14/findings").split.model_copy(update={"shots": 5})
    runs = {
        "a": run(tmp_path, "nih14/findings"),
        "b": run(tmp_path, "nih14/findings", random=True),
        "c": run(tmp_path, "nih14/findings", split=split),
        "d": run(tmp_path, "nih14/findings", pool="max"),
    }
    assert sorted(row.label for row in placed(2, **runs).own) == [
        "dinov3-s @ 256, linear on cls",
        "dinov3-s @ 256, linear on cls, 5-shot",
        "dinov3-s @ 256, linear on cls, pool max",
        "dinov3-s @ 256, linear on cls, random:0",
    ]


def test_folds_that_choose_test_the_same_slides(tmp_path: Path) -> None:
    """Camelyon16: each of five folds tests the official 129 slides."""
    kept = run(tmp_path, "camelyon16/tumour", resolution="224").split
    for n_test, warnings in ((129, ()), (40, ("40 items tested, the official release has 129",))):
        split = kept.model_copy(update={"n_test": n_test, "folds": 5})
        made = run(tmp_path, "camelyon16/tumour", resolution="224", split=split)
        assert only(placed(3, one=made)).warnings == warnings


def test_folds_that_test_share_the_items(tmp_path: Path) -> None:
    """Hippocampus: each of five folds tests a fifth of the 260 volumes."""
    kept = run(tmp_path, "msd-task04/segmentation").split
    for n_test, warnings in ((52, ()), (51, ("255 items tested, the official release has 260",))):
        split = kept.model_copy(update={"n_test": n_test, "folds": 5})
        made = run(tmp_path, "msd-task04/segmentation", split=split)
        assert only(placed(10, one=made)).warnings == warnings


def test_only_what_compares_is_marked(tmp_path: Path) -> None:
    auc = column(TABLES[2], "NIH-14", "auc")
    fair = run(tmp_path, "nih14/findings", metrics={"auc": estimate(0.99)})
    one = placed(2, one=fair)
    assert (one.marks[4, auc], one.marks[3, auc]) == ("best", "second")  # 3 is DINOv3-L, 0.7865
    assert (2, auc) not in one.marks
    unfair = run(tmp_path, "nih14/findings", metrics={"auc": estimate(0.99)}, random=True)
    one = placed(2, one=unfair)
    assert (4, auc) not in one.marks
    assert (one.marks[3, auc], one.marks[2, auc]) == ("best", "second")


def test_where_less_is_better_the_least_is_best(tmp_path: Path) -> None:
    metrics = {"voi": estimate(0.6)}  # CAD has 0.565, LSD 0.61
    made = run(tmp_path, "cremi-a/neurons", resolution="1248", metrics=metrics)
    one = placed(12, one=made)
    voi = column(TABLES[12], "CREMI-A", "voi")
    marked = {place: mark for (place, c), mark in one.marks.items() if c == voi}
    labels = [*(row.label for row in one.table.rows), "own"]
    assert {labels[place]: mark for place, mark in marked.items()} == {
        "CAD": "best",
        "own": "second",
    }


def test_ties_share_a_mark() -> None:
    one = placed(11)
    pancreas = column(TABLES[11], "MSD/Task07_Pancreas", "dice")
    second = [
        one.table.rows[p].label for (p, c), m in one.marks.items() if (c, m) == (pancreas, "second")
    ]
    assert second == ["SwinUNETR", "DINOv3-B"]  # 78.9 both


def test_the_mean_of_the_decathlon_needs_all_ten(tmp_path: Path) -> None:
    runs = {
        f"t{n}": run(
            tmp_path,
            f"msd-task{n:02d}/segmentation",
            model="dinov3-l",
            metrics={"dice": estimate(n / 20)},
        )
        for n in range(1, 11)
    }
    mean = column(TABLES[11], "MSD/Average(10 tasks)", "dice")
    row = only(placed(11, **runs))
    figure = row.figures[mean]
    assert figure.value == pytest.approx(27.5)  # percent: (1 + ... + 10) / 20 / 10
    assert (figure.low, figure.high) == (None, None)
    assert figure.difference == pytest.approx(27.5 - 71.0)
    assert len(figure.runs) == 10
    assert len(row.figures) == 6
    del runs["t3"]
    assert mean not in only(placed(11, **runs)).figures


def test_two_runs_of_one_column_are_two_rows(tmp_path: Path) -> None:
    small = run(tmp_path, "nih14/findings", settings={"lr": 0.1, "epochs": 5})
    large = run(tmp_path, "nih14/findings", settings={"lr": 0.5, "epochs": 5})
    labels = [row.label for row in placed(2, a=small, b=large).own]
    assert labels == [
        "dinov3-s @ 256, linear on cls (lr=0.1)",
        "dinov3-s @ 256, linear on cls (lr=0.5)",
    ]
    labels = [row.label for row in placed(2, a=small, b=small).own]
    assert labels == ["dinov3-s @ 256, linear on cls [a]", "dinov3-s @ 256, linear on cls [b]"]


def test_what_depends_on_no_encoder(tmp_path: Path) -> None:
    kept = run(tmp_path, "acdc/ed-es").split.model_copy(update={"n_test": 50})
    made = {
        name: run(tmp_path, "acdc/ed-es", head=head, features=features, split=kept)
        for name, head, features in (
            ("mind", "convexadam", ("mind",)),
            ("raw", "unregistered", ()),
            ("net", "voxelmorph", ("image",)),
        )
    }
    found = {row.label: (row.against, row.warnings) for row in placed(16, **made).own}
    assert found == {
        "convexadam on mind": ("MIND+ConvexAdam", ()),
        "unregistered": ("Unregistered", ()),
        "voxelmorph on image": ("VoxelMorph", ()),
    }


def test_runs_that_answer_to_no_table_have_no_place(tmp_path: Path) -> None:
    made = run(tmp_path, "bcnb/aln")
    other = made.model_copy(update={"task": made.task.model_copy(update={"name": "elsewhere/x"})})
    gone = made.model_copy(update={"task": made.task.model_copy(update={"name": "nih14/gone"})})
    unnamed = made.model_copy(update={"task": made.task.model_copy(update={"name": None})})
    for one in standing(list(TABLES.values()), {"a": made, "b": other, "c": gone, "d": unnamed}):
        assert one.own == ()


def test_settings_and_sides() -> None:
    assert (side_of("256"), side_of("512x640"), side_of("?")) == (256, 640, 0)


def test_settings_that_tell_runs_apart(tmp_path: Path) -> None:
    small, large = (run(tmp_path, "nih14/findings", settings={"k": k, "x": 1}) for k in (5, 20))
    assert settings_apart(small, [small, large]) == "k=5"
    assert settings_apart(small, [small]) == ""
