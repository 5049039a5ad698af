"""Pairs of a store, registered from features: from request to files, figures and figures' truth."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pytest
import SimpleITK
from making import tiny_request
from PIL import Image
from scipy.ndimage import gaussian_filter, map_coordinates

from dinocache.errors import ProbeError, RequestError
from dinocache.extract import extract
from dinocache.geometry import Geometry
from dinocache.manifest import Pairs
from probes import registration_run
from probes.cli import main
from probes.displacement_files import displacement_mm, write_displacement
from probes.pair_features import PairFeatures
from probes.pairs import distance_unit, stored_pairs
from probes.register import register
from probes.register_request import RegisterRequest, make_method, parse_method_settings
from probes.runs import Result, read_predictions

RULE = Pairs(by="heart", role="phase", moving="ED", fixed="ES")
LABELS = {2: "wall", 5: "cavity"}
QUICK = {
    "grid_sp": "1x2x2",
    "grid_sp_adam": "1x2x2",
    "disp_hw": "1x3x3",
    "niter": 40,
    "lambda_weight": 0.5,
}
SHIFT = (0, 3, -2)  # of the moving image, (z, y, x)


def ball(shape: tuple[int, ...], radius: float) -> np.ndarray:
    axes = np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in shape), indexing="ij")
    away = np.sqrt(
        sum((axis / (n / min(shape[-2:]))) ** 2 for axis, n in zip(axes, shape, strict=True))
    )
    labels = np.zeros(shape, np.uint8)
    labels[away < radius], labels[away < 0.6 * radius] = 2, 5
    return labels


def hearts(folder: Path, *, flat: bool = False, **options: object) -> Path:
    """Six hearts of three patients; systole is diastole moved by `SHIFT`.

    Volumes of 36 x 44 x 6 voxels (x, y, z), or pictures without a third axis, seen obliquely.
    """
    rng = np.random.default_rng(3)
    affine = np.diag([-1.1, -0.9, 3.0, 1.0])
    affine[:3, 3] = 11, 7, -5
    rows = []
    for number in range(6):
        shape = (1 if flat else 6, 44, 36)
        labels = ball(shape, 12 + number % 3)
        texture = gaussian_filter(rng.normal(0, 1, shape), (0 if flat else 1, 2, 2))
        image = 60 * (labels > 0) + 50 * (labels == 5) + 90 * texture / texture.std() * 0.3 + 90
        for phase in ("ED", "ES"):
            shift = SHIFT if phase == "ED" else (0, 0, 0)
            for name, values in (("i", image.clip(0, 255)), ("m", labels)):
                moved = np.roll(values.astype(np.uint8), shift, (0, 1, 2)).transpose(2, 1, 0)
                nibabel.Nifti1Image(moved, affine).to_filename(
                    folder / f"{name}{number}{phase}.nii.gz"
                )
            rows.append(
                {
                    "item_id": f"h{number}{phase}",
                    "path": f"i{number}{phase}.nii.gz",
                    "mask": f"m{number}{phase}.nii.gz",
                    "group": f"p{number // 2}",
                    "heart": f"h{number}",
                    "phase": phase,
                    "split": ["train", "val", "test"][number // 2],
                }
            )
    table = folder / "hearts.csv"
    pd.DataFrame(rows).to_csv(table, index=False)
    asked: dict[str, Any] = {"features": ("dense", "image", "mask"), "resolution": (64, 48)}
    asked |= options
    return extract(tiny_request(table, folder / "f", **asked)).path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hearts")


@pytest.fixture(scope="module")
def store(place: Path) -> Path:
    return hearts(place)


def asked(store: Path, **more: object) -> RegisterRequest:
    given: dict[str, Any] = {
        "store": store,
        "pairs": RULE,
        "labels": LABELS,
        "features": ("mind",),
        "settings": QUICK,
        "replicates": 50,
    }
    return RegisterRequest(**(given | more))


@pytest.fixture(scope="module")
def registered(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("registered") / "run"
    found = register(asked(store, features=("dense", "mind")), folder)
    found.result.write(folder, found.predictions, found.arrays)
    return folder


def test_a_shift_is_found(registered: Path) -> None:
    result = Result.read(registered)
    dice, before = result.metrics["dice"], result.unregistered["dice"]
    assert dice.value is not None
    assert before.value is not None
    assert before.value < 0.75
    assert dice.value > 0.9
    assert result.per_class["cavity"]["dice"].value > 0.9  # type: ignore[operator]
    assert result.metrics["hd95"].value < result.unregistered["hd95"].value  # type: ignore[operator]
    assert result.metrics["folding"].value < 0.005  # type: ignore[operator]
    assert result.unregistered["folding"].value == 0
    assert (result.items, result.groups, result.split.n_test) == (6, 3, 2)
    assert result.notes[0] == "phase ED is warped to phase ES"
    table = read_predictions(registered)
    assert table["item_id"].tolist() == ["h4ES", "h5ES"]
    assert table["moving"].tolist() == ["h4ED", "h5ED"]
    # Means and deviations by hand from each pair's own figures.
    own = table[["tp.wall", "fp.wall", "fn.wall", "tp.cavity", "fp.cavity", "fn.cavity"]]
    tp, fp, fn = own.to_numpy(float).reshape(2, 2, 3).transpose(2, 0, 1)
    each = (2 * tp / (2 * tp + fp + fn)).mean(axis=1)
    assert dice.value == pytest.approx(each.mean(), abs=1e-12)
    assert dice.sd_items == pytest.approx(each.std(ddof=1), abs=1e-12)
    field = nibabel.load(registered / "pairs/s0.f0/h4/displacement_voxels.nii.gz")
    inside = np.asarray(field.dataobj)[10:26, 12:32, 2:4, 0]
    assert np.abs(inside.mean((0, 1, 2)) - [-2, 3, 0]).max() < 0.7


def test_files_are_what_itk_makes_of_them(registered: Path, place: Path) -> None:
    folder = registered / "pairs/s0.f0/h5"
    read, nearest = SimpleITK.ReadImage, SimpleITK.sitkNearestNeighbor
    field = read(str(folder / "displacement_mm.nii.gz"), SimpleITK.sitkVectorFloat64)
    # The file as it was, on its own grid: rows have another order of lines and columns.
    moving = read(str(place / "i5ED.nii.gz"), SimpleITK.sitkFloat32)
    ours = read(str(folder / "warped.nii.gz"))
    transform = SimpleITK.DisplacementFieldTransform(field)
    theirs = SimpleITK.Resample(moving, ours, transform, SimpleITK.sitkLinear)
    first, second = (SimpleITK.GetArrayFromImage(one) for one in (ours, theirs))
    inside = np.s_[1:-1, 6:-6, 6:-6]
    assert np.abs(first[inside] - second[inside]).max() < 0.5
    assert first[inside].std() > 10
    labels = read(str(folder / "warped_labels.nii.gz"))
    moving = read(str(place / "m5ED.nii.gz"))
    transform = SimpleITK.DisplacementFieldTransform(
        read(str(folder / "displacement_mm.nii.gz"), SimpleITK.sitkVectorFloat64)
    )
    theirs = SimpleITK.Resample(moving, labels, transform, nearest)
    same = SimpleITK.GetArrayFromImage(labels) == SimpleITK.GetArrayFromImage(theirs)
    assert same[inside].mean() > 0.999
    assert set(np.unique(SimpleITK.GetArrayFromImage(labels))) == {0, 2, 5}
    # What is judged is what is in the file.
    truth = SimpleITK.GetArrayFromImage(
        SimpleITK.Resample(read(str(place / "m5ES.nii.gz")), labels, SimpleITK.Transform(), nearest)
    )
    row = read_predictions(registered).set_index("item_id").loc["h5ES"]
    made = SimpleITK.GetArrayFromImage(labels)
    assert row["tp.cavity"] == ((made == 5) & (truth == 5)).sum()
    assert row["fp.wall"] == ((made == 2) & (truth != 2)).sum()


def test_pictures_are_drawn(registered: Path) -> None:
    pictures = sorted((registered / "warps/s0.f0").glob("*.png"))
    assert [picture.name for picture in pictures] == ["h4.png", "h5.png"]
    with Image.open(pictures[0]) as opened:
        assert opened.size[0] > 600


def test_validation_pairs_choose(store: Path, tmp_path: Path) -> None:
    grid = {"niter": (1, 10), "components": (3, 5)}
    settings = {"grid_sp": "1x4x4", "disp_hw": 1}
    found = register(
        asked(store, features=("dense", "mind"), settings=settings, grid=grid), tmp_path
    )
    search = found.result.head.search
    assert search is not None
    assert search.grid == {"niter": (1, 10), "components": (3, 5)}
    ((losses,), (chosen,)) = search.losses, search.chosen
    assert len(losses) == 4
    order = [{"niter": n, "components": c} for n in (1, 10) for c in (3, 5)]
    assert chosen == order[int(np.argmin(losses))]
    # By another way: the validation pairs, tested.
    alone = register(
        asked(
            store, features=("dense", "mind"), settings={**settings, **order[2]}, everything=True
        ),
        tmp_path / "all",
    )
    table = alone.predictions[alone.predictions["group"] == "p1"]
    cells = ["tp", "fp", "fn"]
    tp, fp, fn = (table[[f"{cell}.wall", f"{cell}.cavity"]].to_numpy(float) for cell in cells)
    assert losses[2] == pytest.approx(1 - (2 * tp / (2 * tp + fp + fn)).mean(), abs=1e-9)


def test_an_interrupted_registration_goes_on(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = asked(
        store, folds=3, settings={"grid_sp": "1x4x4", "niter": 2}, grid={"disp_hw": (1, 2)}
    )
    whole = register(request, tmp_path / "whole")
    monkeypatch.setattr(registration_run, "MOST_DRAWN", 0)
    done: list[int] = []
    real = registration_run._convex_adam

    def interrupted(*given: object) -> object:
        done.append(1)
        if len(done) == most:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(registration_run, "_convex_adam", interrupted)
    # Each of three folds chooses by four pairs and tests two: 8 + 2.
    for most, total in ((4, 3), (11, 9), (5, 4), (99, 14)):
        done.clear()
        if most < 99:
            with pytest.raises(KeyboardInterrupt):
                register(request, tmp_path / "parts")
        else:
            parts = register(request, tmp_path / "parts")
        assert len(done) == (most if most < 99 else total)
    fields = {"metrics", "per_class", "head", "unregistered"}
    assert parts.result.model_dump(include=fields) == whole.result.model_dump(include=fields)
    done.clear()
    register(request, tmp_path / "parts")
    assert not done
    # A damaged file is made anew, and so is all of another request.
    damaged = tmp_path / "parts/pairs/s0.f1/h2/displacement_voxels.nii.gz"
    kept = damaged.read_bytes()
    damaged.write_bytes(kept[:-40])
    done.clear()
    register(request, tmp_path / "parts")
    assert len(done) == 1
    assert damaged.read_bytes() == kept
    done.clear()
    register(replace(request, settings={"grid_sp": "1x4x4", "niter": 3}), tmp_path / "parts")
    assert len(done) == 30


def test_folds_and_everything(store: Path, tmp_path: Path) -> None:
    method = {"method": "unregistered", "settings": {}}
    folds = register(asked(store, folds=3, **method), tmp_path).result
    whole = register(asked(store, everything=True, **method), tmp_path).result
    assert (folds.split.protocol, folds.split.n_test) == ("folds", 2)
    assert (whole.split.protocol, whole.split.n_test) == ("all", 6)
    assert whole.metrics["dice"].value == pytest.approx(folds.metrics["dice"].value, abs=1e-12)
    assert whole.metrics["dice"].value == whole.unregistered["dice"].value
    assert whole.features == ()


def test_pictures_take_two_axes(tmp_path: Path) -> None:
    store = hearts(tmp_path, flat=True)
    settings = {"grid_sp": 4, "disp_hw": 2, "niter": 10}
    request = asked(store, settings=settings, features=("dense", "mind"), everything=True)
    result = register(request, tmp_path / "run").result
    assert result.metrics["dice"].value > 0.9 > 0.85 > result.unregistered["dice"].value  # type: ignore[operator]
    field = nibabel.load(tmp_path / "run/pairs/s0.f0/h2/displacement_voxels.nii.gz")
    vectors = np.asarray(field.dataobj)
    assert vectors.shape == (36, 44, 1, 1, 3)
    assert (vectors[..., 2] == 0).all()
    assert np.abs(vectors[10:26, 12:32, 0, 0].mean((0, 1)) - [-2, 3, 0]).max() < 0.7


@pytest.mark.parametrize("features", [("image",), pytest.param(("dense",), marks=pytest.mark.long)])
def test_a_network_is_trained(store: Path, tmp_path: Path, features: tuple[str, ...]) -> None:
    settings = {"epochs": 2, "lr": 0.001} | ({"components": 4} if "dense" in features else {})
    request = asked(store, method="voxelmorph", features=features, settings=settings)
    first, second = (register(request, tmp_path / name) for name in ("a", "b"))
    assert first.result.split.n_train == 2
    assert first.result.metrics == second.result.metrics
    assert first.result.head.settings["epochs"] == 2
    assert first.arrays
    assert first.result.metrics["folding"].value == 0
    for name, array in first.arrays.items():
        np.testing.assert_array_equal(array, second.arrays[name])


def test_displacements_in_the_patients_space() -> None:
    """By hand: the moving image is stored to the right, and begins elsewhere."""
    fixed = Geometry(shape=(2, 3, 4), affine=np.diag([2.0, 3.0, 5.0, 1.0]))
    other = np.diag([2.0, 3.0, 5.0, 1.0])
    other[:3, 3] = 10, 0, -1
    moving = Geometry(shape=(2, 3, 4), affine=other)
    u = np.zeros((3, 2, 3, 4), np.float32)
    u[:, 1, 2, 3] = 1, -2, 0.5  # z, y, x
    found = displacement_mm(u, fixed, moving)
    assert found.shape == (2, 3, 4, 3)
    np.testing.assert_allclose(found[0, 0, 0], (10, 0, -1))
    np.testing.assert_allclose(found[1, 2, 3], (10 + 2 * 0.5, 3 * -2, -1 + 5))


@pytest.mark.parametrize("oblique", [False, True])
def test_a_displacement_through_a_file(tmp_path: Path, *, oblique: bool) -> None:
    """What ITK samples with the file is what we sample with the array."""
    rng = np.random.default_rng(8)
    shape = (7, 12, 15)
    u = np.stack([gaussian_filter(rng.normal(0, 1, shape), 3) for _ in range(3)])
    u = (u / np.abs(u).max() * 2).astype(np.float32)
    affine = np.diag([1.3, 0.7, 2.1, 1.0])
    if oblique:
        turn = np.linalg.qr(rng.normal(0, 1, (3, 3)))[0]
        affine[:3, :3] = turn * np.sign(np.linalg.det(turn)) @ affine[:3, :3]
    affine[:3, 3] = 4, -9, 30
    geometry = Geometry(shape=shape, affine=affine)
    write_displacement(tmp_path, u, geometry, geometry)
    image = gaussian_filter(rng.normal(0, 1, shape), 1).astype(np.float32)
    moving = SimpleITK.GetImageFromArray(image)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    moving.SetSpacing(spacing.tolist())
    moving.SetDirection((affine[:3, :3] / spacing).ravel().tolist())
    moving.SetOrigin(affine[:3, 3].tolist())
    field = SimpleITK.ReadImage(
        str(tmp_path / "displacement_mm.nii.gz"), SimpleITK.sitkVectorFloat64
    )
    transform = SimpleITK.DisplacementFieldTransform(field)
    theirs = SimpleITK.GetArrayFromImage(SimpleITK.Resample(moving, moving, transform))
    places = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij")) + u
    ours = map_coordinates(image, places, order=1, mode="nearest")
    np.testing.assert_allclose(ours[2:-2, 3:-3, 3:-3], theirs[2:-2, 3:-3, 3:-3], atol=1e-4)


def test_distances_are_in_mm_or_in_voxels() -> None:
    geometry = Geometry(shape=(2, 3, 4), affine=np.diag([2.0, 3.0, 5.0, 1.0]))
    in_voxels = RULE.model_copy(update={"distances": "voxels"})
    assert distance_unit(RULE, geometry, 3) == (5, 3, 2)
    assert distance_unit(RULE, geometry, 2) == (3, 2)
    assert distance_unit(in_voxels, geometry, 3) == (1, 1, 1)
    assert distance_unit(RULE, Geometry(), 2) == (1, 1)


# Bad input


def changed(place: Path, folder: Path, table: pd.DataFrame) -> Path:
    """Extract the hearts anew, with other files or another item table."""
    for path in place.glob("*.nii.gz"):
        if not (folder / path.name).exists():
            shutil.copy(path, folder)
    table.to_csv(folder / "hearts.csv", index=False)
    asked: dict[str, Any] = {"features": ("dense", "image", "mask"), "resolution": (64, 48)}
    return extract(tiny_request(folder / "hearts.csv", folder / "f", **asked)).path


def test_pairs_that_cannot_be_registered_are_left_out(
    place: Path, tmp_path: Path, store: Path
) -> None:
    table = pd.read_csv(place / "hearts.csv")
    affine = nibabel.load(place / "i0ED.nii.gz").affine
    odd = {
        "h0ED": (np.random.default_rng(0).integers(0, 9, (36, 40, 6)), affine),  # another grid
        "h1ES": (np.random.default_rng(0).integers(0, 9, (36, 44, 6)), np.diag([-2.0, -2, 3, 1])),
        "h2ED": (np.full((36, 44, 6), 7), affine),  # the same everywhere
    }
    for item_id, (values, own) in odd.items():
        labels = np.zeros(values.shape, np.uint8)
        labels[9:20, 9:20] = 2
        for name, made in (("i", values), ("m", labels)):
            path = tmp_path / f"{name}{item_id[1:]}.nii.gz"
            nibabel.Nifti1Image(made.astype(np.uint8), own).to_filename(path)
    nothing = nibabel.Nifti1Image(np.zeros((36, 44, 6), np.uint8), affine)
    nothing.to_filename(tmp_path / "m3ES.nii.gz")
    table.loc[table["item_id"] == "h4ES", "phase"] = "ED"
    made = changed(place, tmp_path, table)
    pairs = stored_pairs(made, (), LABELS, RULE)
    assert [pair.name for pair in pairs.pairs] == ["h5"]
    assert {name: why.split(";")[0] for name, why in pairs.left_out.items()} == {
        "h0": "h0ES and h0ED have 6 x 44 x 36 and 6 x 40 x 36 voxels",
        "h1": "h1ES and h1ED have voxels of 3 x 2 x 2 mm and 3 x 0.9 x 1.1 mm",
        "h2": "the image of h2ED is the same everywhere",
        "h3": "the mask of h3ES is empty",
        "h4": "it has 0 items with phase 'ES', not one",
    }
    result = register(asked(made, everything=True), tmp_path / "run").result
    assert any("5 pairs are left out; h0: h0ES and" in note for note in result.notes)


def test_what_cannot_be_is_one_line(store: Path, place: Path, tmp_path: Path) -> None:
    rule = {"pairs": RULE.model_copy(update={"by": "organ"})}
    with pytest.raises(ProbeError, match="have no column 'organ', which tells pairs; there are"):
        register(asked(store, **rule), tmp_path)
    rule = {"pairs": RULE.model_copy(update={"moving": "XX"})}
    with pytest.raises(ProbeError, match=r"no pair of .* it has 0 items with phase 'XX', not one"):
        register(asked(store, **rule), tmp_path)
    with pytest.raises(ProbeError, match="its mask holds the label 5, which the task"):
        register(asked(store, labels={2: "wall"}), tmp_path)
    vectors = changed_kinds(place, tmp_path)
    with pytest.raises(Exception, match=r"has no 'dense' .*add it with"):
        register(asked(vectors, features=("dense",)), tmp_path)


def changed_kinds(place: Path, folder: Path) -> Path:
    table = place / "hearts.csv"
    return extract(tiny_request(table, folder / "g", features=("cls", "image", "mask"))).path


def test_of_few_channels_all_are_taken(store: Path) -> None:
    pairs = stored_pairs(store, ("dense",), LABELS, RULE)
    (channels,) = pairs.cases.channels
    method = make_method("convexadam", components=channels + 5)
    fixed, moving = PairFeatures(pairs, ("dense", "mind"), method).of(3)
    assert fixed.shape == moving.shape == (channels + 12, 6, 44, 36)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"method": "elastix"}, "--method 'elastix': choose from convexadam, voxelmorph"),
        ({"features": ("cls",)}, "--features 'cls': name maps, as dense"),
        ({"features": ()}, "--features: name maps of the store"),
        ({"features": ("mind", "mind")}, "name each once"),
        ({"labels": {}}, "--labels: name at least one"),
        ({"everything": True, "folds": 3}, "three protocols"),
        ({"everything": True, "grid": {"niter": (1, 2)}, "settings": {}}, "none is left to choose"),
        ({"grid": {"niter": (1, 2)}}, "niter is given as one value and as several"),
        ({"settings": {"lambda": 3}}, "method convexadam has no setting 'lambda'"),
        ({"settings": {"grid_sp": "0x4"}}, "'0x4' is not a number, or one for each axis"),
        ({"settings": {"niter": -1}}, "niter must be a whole number of at least 0, got -1"),
        (
            {"method": "voxelmorph", "features": ("image",), "settings": {"epochs": 0}},
            "epochs must be a whole number of at least 1, got 0",
        ),
        ({"metrics": ("voi",)}, "metric 'voi' is for instances"),
        ({"method": "voxelmorph", "settings": {}}, "voxelmorph takes images and maps, not mind"),
    ],
)
def test_requests_that_are_refused(store: Path, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        asked(store, **wrong)


def test_settings_are_read() -> None:
    found = parse_method_settings("convexadam", ["lambda_weight=0.25,2", "grid_sp=2x4x4"])
    assert found == {"lambda_weight": (0.25, 2.0), "grid_sp": ("2x4x4",)}
    assert make_method("voxelmorph", smoothness="none", lr="0.001") == make_method(
        "voxelmorph", lr=0.001
    )
    for text, message in (
        ("niter", "written key=value"),
        ("niter=", "written key=value"),
        ("niter=x", "must be a whole number"),
        ("nitre=3", "has no setting 'nitre'"),
    ):
        with pytest.raises(ValueError, match=message):
            parse_method_settings("convexadam", [text])


def test_commands(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    of_pairs = ["--by", "heart", "--role", "phase", "--moving", "ED", "--fixed", "ES"]
    command = ["register", str(store), *of_pairs, "--labels", "2=wall,5=cavity"]
    quick = ["--set", "grid_sp=1x4x4", "--set", "disp_hw=2", "--set", "niter=3"]
    assert main([*command, *quick, "--with", "mind"]) == 0
    said = capsys.readouterr().out
    assert "RANDOM WEIGHTS" in said
    assert "note: phase ED is warped to phase ES" in said
    name = "runs/hearts/ED-ES/tiny-64x48-dense+mind-convexadam-disp_hw=2-grid_sp=1x4x4-niter=3"
    assert f"run: {name}; displacements: {name}/pairs" in said
    assert main([*command, "--method", "unregistered", "--all", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["split"]["protocol"], said["split"]["n_test"]) == ("all", 6)
    assert main([*command, "--method", "unregistered"]) == 0
    assert main(["compare", "runs/hearts/ED-ES/unregistered", name]) == 1
    assert "tested one group (p2); a comparison draws" in capsys.readouterr().err
    assert main([*command, *quick, "--features", "mind", "--all", "--out", "b"]) == 0
    assert main([*command, "--method", "unregistered", "--all", "--out", "a"]) == 0
    capsys.readouterr()
    assert main(["compare", "a", "b", "--json"]) == 0
    compared = {one["metric"]: one for one in json.loads(capsys.readouterr().out)}
    assert compared["dice"]["difference"] > 0
    assert "folding" in compared
    for wrong, message in (
        ([str(store)], "say which items are pairs with --by"),
        ([str(store), "--features", "dinov3-l@512"], "a store says itself which encoder"),
        (["acdc/ed-es", "--by", "x"], "a task says itself what --by would"),
        (["acdc/ed-es"], "there is no store of acdc"),
        (["nih14/findings"], "is of the kind multilabel: `probe fit nih14/findings` does it"),
        ([str(store), *of_pairs, "--labels", "2=wall", "--set", "a=1"], "--set: method convexadam"),
    ):
        assert main(["register", *wrong]) != 0
        printed = capsys.readouterr().err
        assert printed.count("\n") <= 2
        assert message in printed
