"""What a report shows of one run, against scikit-learn and by hand."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score
from synthetic_runs import write_synthetic_run

from dinocache.errors import StoreNotFoundError
from dinocache.store import FeatureStore
from probes.features import row_picture, store_facts
from probes.fit import fit
from probes.request import FitRequest
from probes.run_page import RunPage, run_page, stores_at_hand
from probes.runs import Result


def page_of(folder: Path, named: str, **changes: object) -> tuple[Result, RunPage]:
    result = write_synthetic_run(folder, named, **changes)  # type: ignore[arg-type]
    return result, run_page(folder, result, {})


def predictions(folder: Path) -> pd.DataFrame:
    return pd.read_parquet(folder / "predictions.parquet")


def test_curves_are_those_of_the_mean_scores(tmp_path: Path) -> None:
    _, page = page_of(tmp_path, "rsna-pneumonia/pneumonia")
    kinds = [figure.kind for figure in page.figures]
    assert kinds == ["roc", "pr", "reliability", "confusion", "spread"]
    mean = predictions(tmp_path).groupby("item_id")[["truth.positive", "score.positive"]].mean()
    truth, score = mean["truth.positive"].to_numpy(int), mean["score.positive"].to_numpy()
    [roc] = page.figures[0].rows
    area = np.trapezoid(roc["y"], roc["x"])
    assert area == pytest.approx(roc_auc_score(truth, score), abs=0.01)
    assert (roc["x"][0], roc["y"][0], roc["x"][-1], roc["y"][-1]) == (0, 0, 1, 1)
    [pr] = page.figures[1].rows
    assert pr["x"] == sorted(pr["x"])
    [calibrated] = page.figures[2].rows
    assert sum(calibrated["n"]) == len(mean)
    edges = np.minimum((score * 10).astype(int), 9)
    assert calibrated["x"] == [round(score[edges == b].mean(), 3) for b in np.unique(edges)]
    assert calibrated["y"] == [round(truth[edges == b].mean(), 3) for b in np.unique(edges)]
    cells = {(row["truth"], row["predicted"]): row["n"] for row in page.figures[3].rows}
    told = score >= 0.5
    assert cells == {
        ("positive", "positive"): int((told & (truth == 1)).sum()),
        ("positive", "other"): int((~told & (truth == 1)).sum()),
        ("other", "positive"): int((told & (truth == 0)).sum()),
        ("other", "other"): int((~told & (truth == 0)).sum()),
    }


def test_items_on_an_edge_are_counted_where_they_are_averaged(tmp_path: Path) -> None:
    """k-NN with ten neighbours scores in tenths, which are the edges of the bins."""
    result = write_synthetic_run(tmp_path, "rsna-pneumonia/pneumonia", seeds=1)
    table = predictions(tmp_path)
    table["score.positive"] = (np.arange(len(table)) % 4 + 1).astype(np.float32) / 10
    table.to_parquet(tmp_path / "predictions.parquet")
    calibrated = run_page(tmp_path, result, {}).figures[2].rows[0]
    for x, y, n in zip(calibrated["x"], calibrated["y"], calibrated["n"], strict=True):
        part = table[np.isclose(table["score.positive"], x)]
        assert (len(part), round(part["truth.positive"].mean(), 3)) == (n, y)


def test_long_curves_keep_their_shape_and_their_ends(tmp_path: Path) -> None:
    result = write_synthetic_run(tmp_path, "rsna-pneumonia/pneumonia", seeds=1)
    rng = np.random.default_rng(7)
    truth = (np.arange(4000) % 3 == 0).astype(int)
    score = np.clip(rng.normal(0.4 + 0.2 * truth, 0.15), 0, 1)
    pd.DataFrame(
        {
            "item_id": [f"i{n}" for n in range(4000)],
            "group": [f"g{n}" for n in range(4000)],
            "seed": 0,
            "fold": 0,
            "truth.positive": truth,
            "score.positive": score,
        }
    ).to_parquet(tmp_path / "predictions.parquet")
    roc = run_page(tmp_path, result, {}).figures[0].rows[0]
    assert 30 < len(roc["x"]) <= 50
    assert np.trapezoid(roc["y"], roc["x"]) == pytest.approx(roc_auc_score(truth, score), abs=0.002)
    assert (roc["x"][0], roc["y"][-1]) == (0, 1)


def test_many_classes_show_the_best_and_the_worst(tmp_path: Path) -> None:
    result, page = page_of(tmp_path, "nih14/findings")
    roc = next(figure for figure in page.figures if figure.kind == "roc")
    by_auc = sorted(result.per_class, key=lambda name: -result.per_class[name]["auc"].value)  # type: ignore[operator]
    assert {row["curve"] for row in roc.rows} == {*by_auc[:4], *by_auc[-4:]}
    assert "4 best and worst of 14 classes" in roc.caption
    classes = next(figure for figure in page.figures if figure.kind == "classes")
    assert [row["label"] for row in classes.rows] == by_auc
    assert not [figure for figure in page.figures if figure.kind == "confusion"]


def test_a_confusion_of_many_classes(tmp_path: Path) -> None:
    result, page = page_of(tmp_path, "kvasir-capsule/official")
    confusion = next(figure for figure in page.figures if figure.kind == "confusion")
    assert len(confusion.rows) == 11 * 11
    assert sum(row["n"] for row in confusion.rows) == 40
    table = predictions(tmp_path).drop(columns="group").groupby("item_id").mean()
    truth, told = (
        table[[f"{part}.{c}" for c in result.task.classes]].to_numpy().argmax(1)
        for part in ("truth", "score")
    )
    right = sum(row["n"] for row in confusion.rows if row["truth"] == row["predicted"])
    assert right == (truth == told).sum()


def test_worst_items_come_first(tmp_path: Path) -> None:
    _, page = page_of(tmp_path, "rsna-pneumonia/pneumonia")
    mean = predictions(tmp_path).groupby("item_id")[["truth.positive", "score.positive"]].mean()
    loss = (mean["truth.positive"] - mean["score.positive"]).abs().sort_values(ascending=False)
    assert [item.item_id for item in page.worst] == list(loss.index[:6])
    assert [item.loss for item in page.worst] == pytest.approx(list(loss[:6]))
    first = page.worst[0]
    assert first.truth == ("positive" if mean.loc[first.item_id, "truth.positive"] else "none")


def test_worst_maps_are_those_of_the_lowest_dice(tmp_path: Path) -> None:
    _, page = page_of(tmp_path, "msd-task04/segmentation")
    table = predictions(tmp_path).set_index("item_id")
    dice = 2 * table["tp"] / (2 * table["tp"] + table["fp"] + table["fn"])
    assert [item.item_id for item in page.worst] == list(dice.sort_values().index[:6])
    assert page.loss == "1 - Dice of any label"


def test_worst_neurons_are_those_of_the_highest_variation(tmp_path: Path) -> None:
    _, page = page_of(tmp_path, "cremi-a/neurons")
    voi = predictions(tmp_path).set_index("item_id")["voi"].sort_values(ascending=False)
    assert [item.item_id for item in page.worst] == list(voi.index[:6])


def test_folds_and_seeds_are_what_the_result_is_the_mean_of(
    tiny_store: FeatureStore, tmp_path: Path
) -> None:
    request = FitRequest(
        store=tiny_store.path, targets=("bright",), seeds=2, folds=3, replicates=20, head="linear",
        settings={"epochs": 3},
    )  # fmt: skip
    fitted = fit(request)
    fitted.result.write(tmp_path, fitted.predictions, fitted.arrays)
    page = run_page(tmp_path, fitted.result, {})
    spread = next(figure for figure in page.figures if figure.kind == "spread")
    assert [(row["fold"], row["seed"]) for row in spread.rows] == [
        (fold, seed) for fold in (0, 1, 2) for seed in (0, 1)
    ]
    first = next(iter(fitted.result.metrics.values()))
    assert np.mean([row["value"] for row in spread.rows]) == pytest.approx(first.value)
    assert {row["mean"] for row in spread.rows} == {first.value}


def test_pictures_of_items_come_from_the_store(tiny_store: FeatureStore, tmp_path: Path) -> None:
    facts = store_facts(tiny_store.path)
    result = write_synthetic_run(tmp_path / "run", "rsna-pneumonia/pneumonia", store=facts)
    table = predictions(tmp_path / "run")
    table["item_id"] = table["item_id"].str.replace("item-", "00", regex=False)
    table.to_parquet(tmp_path / "run/predictions.parquet")
    for root in (tiny_store.path, tiny_store.path.parents[2]):
        stores = stores_at_hand(root, {"run": result})
        page = run_page(tmp_path / "run", result, stores)
        assert all(item.thumbnail for item in page.worst)
    [first, *_] = page.worst
    assert first.thumbnail is not None
    (tmp_path / "one.webp").write_bytes(first.thumbnail)
    height, width = tiny_store.native_array("image", first.item_id).shape[-2:]
    with Image.open(tmp_path / "one.webp") as image:
        assert image.size == (width, height)
        shade = np.asarray(image.convert("L"), float)
    picture = row_picture(tiny_store, first.item_id, 0)
    gray = picture if picture.ndim == 2 else picture.mean(2)
    assert shade.mean() / 255 == pytest.approx(gray.mean(), abs=0.03)


def test_a_store_of_no_run_is_an_error(tiny_store: FeatureStore, tmp_path: Path) -> None:
    result = write_synthetic_run(tmp_path / "run", "rsna-pneumonia/pneumonia")
    with pytest.raises(StoreNotFoundError, match="no run was tested on a store under"):
        stores_at_hand(tiny_store.path, {"run": result})
    assert stores_at_hand(None, {"run": result}) == {}


def test_pictures_of_the_folder_are_made_small(tmp_path: Path) -> None:
    write_synthetic_run(tmp_path / "run", "msd-task04/segmentation")
    overlays = tmp_path / "run/overlays/s0.f0"
    overlays.mkdir(parents=True)
    Image.new("RGB", (1800, 900), "red").save(overlays / "case<1>.png")
    (overlays / "broken.png").write_bytes(b"\x89PNG no")
    (overlays / "link.png").symlink_to(overlays / "case<1>.png")
    (overlays / "note.txt").write_text("x")
    page = run_page(tmp_path / "run", Result.read(tmp_path / "run"), {})
    [picture] = page.pictures
    assert picture.caption.startswith("case<1>: truth (solid)")
    (tmp_path / "one.webp").write_bytes(picture.content)
    with Image.open(tmp_path / "one.webp") as image:
        assert image.size == (900, 450)


def test_a_worst_item_shows_truth_and_prediction_where_the_run_has_them(tmp_path: Path) -> None:
    result = write_synthetic_run(tmp_path / "run", "msd-task04/segmentation")
    worst = run_page(tmp_path / "run", result, {}).worst[0].item_id
    (tmp_path / "run/overlays/s0.f0").mkdir(parents=True)
    Image.new("RGB", (640, 480), "red").save(tmp_path / f"run/overlays/s0.f0/{worst}.png")
    items = run_page(tmp_path / "run", result, {}).worst
    assert [item.item_id for item in items if item.thumbnail] == [worst]


def test_pictures_are_found_by_the_names_that_files_have(tmp_path: Path) -> None:
    result = write_synthetic_run(tmp_path / "run", "msd-task04/segmentation")
    table = predictions(tmp_path / "run")
    table["item_id"] = "patient 1/" + table["item_id"]
    table.to_parquet(tmp_path / "run/predictions.parquet")
    worst = run_page(tmp_path / "run", result, {}).worst[0].item_id
    (tmp_path / "run/overlays").mkdir()
    named = f"patient_1_{worst.partition('/')[2]}.png"
    Image.new("RGB", (64, 48), "red").save(tmp_path / "run/overlays" / named)
    items = run_page(tmp_path / "run", result, {}).worst
    assert [item.item_id for item in items if item.thumbnail] == [worst]


def test_a_linked_folder_of_pictures_is_left_alone(tmp_path: Path) -> None:
    result = write_synthetic_run(tmp_path / "run", "msd-task04/segmentation")
    (tmp_path / "elsewhere").mkdir()
    Image.new("RGB", (64, 48), "red").save(tmp_path / "elsewhere/item-3.png")
    (tmp_path / "run/overlays").symlink_to(tmp_path / "elsewhere")
    page = run_page(tmp_path / "run", result, {})
    assert page.pictures == ()
    assert not [item for item in page.worst if item.thumbnail]


def test_a_picture_that_would_fill_the_memory_is_left_out(tmp_path: Path) -> None:
    result = write_synthetic_run(tmp_path / "run", "msd-task04/segmentation")
    (tmp_path / "run/overlays").mkdir()
    Image.new("1", (9000, 9000)).save(tmp_path / "run/overlays/huge.png")
    assert run_page(tmp_path / "run", result, {}).pictures == ()


def test_pairs_are_named_as_pairs(tmp_path: Path) -> None:
    result = write_synthetic_run(tmp_path, "acdc/ed-es")
    table = predictions(tmp_path)
    table["pair"] = [f"patient{n}" for n in range(len(table))]
    table.to_parquet(tmp_path / "predictions.parquet")
    dice = 2 * table["tp"] / (2 * table["tp"] + table["fp"] + table["fn"])
    worst = run_page(tmp_path, result, {}).worst
    assert worst[0].item_id == f"patient{dice.argmin()}"


def test_predictions_that_cannot_be_read_are_a_remark(tmp_path: Path) -> None:
    result = write_synthetic_run(tmp_path, "rsna-pneumonia/pneumonia")
    (tmp_path / "predictions.parquet").write_bytes(b"no table")
    page = run_page(tmp_path, result, {})
    assert page.figures == ()
    [remark] = page.remarks
    assert "predictions.parquet cannot be read" in remark
