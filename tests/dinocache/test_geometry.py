"""Rows back to the file's own grid, and to the patient."""

import itertools
import json
from pathlib import Path
from typing import Any, Literal

import nibabel
import numpy as np
import numpy.typing as npt
import pytest
import SimpleITK

from dinocache.errors import StoreDamagedError
from dinocache.geometry import (
    Geometry,
    apply,
    input_to_row,
    placement,
    resized_shape,
    restore,
    token_to_input,
    write_nifti,
)
from dinocache.readers import ItemFiles, make_reader
from dinocache.recipe import InputRecipe, ResizeRecipe

Floats = npt.NDArray[np.float64]


def oblique(angle: float, spacing: tuple[float, float, float], origin: Floats) -> Floats:
    """An affine turned about all three axes, RAS."""
    turn = np.eye(3)
    for axis in range(3):
        i, j = [a for a in range(3) if a != axis]
        one = np.eye(3)
        one[i, i] = one[j, j] = np.cos(angle * (axis + 1))
        one[i, j], one[j, i] = -np.sin(angle * (axis + 1)), np.sin(angle * (axis + 1))
        turn = turn @ one
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag(spacing)
    affine[:3, 3] = origin
    return affine


def blobs(shape: tuple[int, int, int]) -> npt.NDArray[np.uint8]:
    """Two boxes of labels, none symmetric."""
    labels = np.zeros(shape, np.uint8)
    i, j, k = shape
    labels[i // 5 : i // 2, j // 4 : j - j // 3, k // 3 : k - 2] = 1
    labels[i // 2 : i - 3, j // 5 : j // 2, 2 : k // 2] = 2
    return labels


ORIENTATIONS = [
    (order, flips)
    for order in ((0, 1, 2), (2, 0, 1), (1, 0, 2), (0, 2, 1))
    for flips in ((1, 1, 1), (-1, 1, 1), (1, -1, -1))
]


def turned(
    order: tuple[int, int, int], flips: tuple[int, int, int], angle: float
) -> tuple[npt.NDArray[np.uint8], Floats]:
    """The same boxes, stored in another order of axes and directions: (array, RAS affine)."""
    base = oblique(angle, (0.9, 1.3, 2.1), np.array([11.0, -40.0, 7.5]))
    labels = blobs((19, 23, 14))
    step = np.zeros((4, 4))
    step[3, 3] = 1
    index = labels.transpose(order)
    for new, old in enumerate(order):
        step[old, new] = flips[new]
        if flips[new] < 0:
            index = np.flip(index, new)
            step[old, 3] = labels.shape[old] - 1
    return np.ascontiguousarray(index), base @ step


@pytest.mark.parametrize("axis", ["axial", "coronal", "sagittal"])
@pytest.mark.parametrize(("order", "flips"), ORIENTATIONS)
@pytest.mark.parametrize("angle", [0.0, 0.2])
def test_a_label_map_comes_back_voxel_by_voxel(
    tmp_path: Path,
    axis: str,
    order: tuple[int, int, int],
    flips: tuple[int, int, int],
    angle: float,
) -> None:
    labels, affine = turned(order, flips, angle)
    nibabel.save(nibabel.Nifti1Image(labels, affine), tmp_path / "labels.nii")
    reader = make_reader("volume", {"axis": axis})
    with reader.open(ItemFiles(path=tmp_path / "labels.nii")) as item:
        rows = np.stack(item.rows(0, item.n_rows))[:, 0]
        geometry = item.geometry
    back = restore(rows, geometry)
    np.testing.assert_array_equal(back, labels)
    write_nifti(tmp_path / "back.nii.gz", back, geometry)
    written = nibabel.load(tmp_path / "back.nii.gz")
    np.testing.assert_allclose(written.affine, affine, atol=1e-5)
    # The same voxel, by another library, in mm.
    image = SimpleITK.ReadImage(str(tmp_path / "labels.nii"))
    for voxel in itertools.product((0, 7), (0, 5), (0, 9)):
        in_row = apply(np.linalg.inv(geometry.row_to_source()), voxel)
        np.testing.assert_allclose(
            apply(geometry.row_to_mm(), in_row),
            image.TransformIndexToPhysicalPoint(voxel),
            atol=1e-4,
        )
        x, y, z = np.rint(in_row).astype(int)
        assert rows[z, y, x] == labels[voxel]


def centroids(labels: npt.NDArray[np.uint8]) -> list[Floats]:
    return [np.argwhere(labels == value).mean(0) for value in (1, 2)]


@pytest.mark.parametrize("mode", ["squash", "pad", "crop"])
@pytest.mark.parametrize("spacing", [None, (1.1, 1.1, 1.4)])
@pytest.mark.parametrize("angle", [0.0, 0.15])
def test_a_round_trip_through_the_encoders_input_moves_less_than_half_a_voxel(
    tmp_path: Path,
    mode: Literal["squash", "pad", "crop"],
    spacing: tuple[float, float, float] | None,
    angle: float,
) -> None:
    labels, affine = turned((1, 0, 2), (1, -1, -1), angle)
    labels = np.pad(labels, ((6, 6), (6, 6), (0, 0)))  # so that a crop of the middle loses none
    affine = affine.copy()
    affine[:3, 3] = (affine @ [-6, -6, 0, 1])[:3]
    nibabel.save(nibabel.Nifti1Image(labels, affine), tmp_path / "labels.nii")
    reader = make_reader("volume", {"spacing": spacing, "axis": "coronal"})
    path = tmp_path / "labels.nii"
    with reader.open(ItemFiles(path=path, mask=path)) as item:
        rows = item.mask()[0]
        geometry = item.geometry
    recipe = InputRecipe(
        resolution=(96, 128),
        resize=ResizeRecipe(mode=mode, crop_pct=1.0 if mode == "crop" else None),
        mean=(0, 0, 0),
        std=(1, 1, 1),
    )
    to_row = input_to_row(rows.shape[1:], recipe)
    # What the encoder sees, sampled by that matrix: an independent way through every pixel.
    line, column = np.meshgrid(np.arange(96), np.arange(128), indexing="ij")
    points = np.stack([column, line, np.zeros_like(line)], -1)
    x, y, _ = np.moveaxis(np.rint(apply(to_row, points)).astype(int), -1, 0)
    inside = (x >= 0) & (x < rows.shape[2]) & (y >= 0) & (y < rows.shape[1])
    seen = np.where(inside, rows[:, y.clip(0, rows.shape[1] - 1), x.clip(0, rows.shape[2] - 1)], 0)
    back = restore(seen, geometry, to_row)
    assert back.shape == labels.shape
    assert back.dtype == labels.dtype
    if mode == "crop":
        return  # what was cut off is 0, so centroids move
    for ours, theirs in zip(centroids(back), centroids(labels), strict=True):
        assert np.abs(ours - theirs).max() <= 0.5


def test_tokens_stand_for_the_middle_of_their_patches() -> None:
    recipe = InputRecipe(resolution=(32, 64), mean=(0, 0, 0), std=(1, 1, 1))
    matrix = input_to_row((64, 64), recipe) @ token_to_input(16)
    # The first of 2 x 4 patches covers x 0 to 16, y 0 to 32 of the row.
    np.testing.assert_allclose(apply(matrix, [0, 0, 5]), [7.5, 15.5, 5])
    np.testing.assert_allclose(apply(matrix, [3, 1, 5]), [55.5, 47.5, 5])


def test_a_map_of_tokens_covers_the_whole_row() -> None:
    """Nearest: each token fills its own patch, up to the outermost pixel."""
    recipe = InputRecipe(resolution=(32, 48), mean=(0, 0, 0), std=(1, 1, 1))
    tokens = np.arange(1, 2 * 2 * 3 + 1).reshape(2, 2, 3)
    matrix = input_to_row((8, 12), recipe) @ token_to_input(16)
    back = restore(tokens, Geometry(shape=(2, 8, 12)), matrix)
    np.testing.assert_array_equal(back, tokens.repeat(4, 1).repeat(4, 2).transpose(2, 1, 0))


def test_linear_restoring_is_linear_and_zero_outside() -> None:
    """A ramp comes back as the ramp; beyond the row grid, which is a crop, nothing is."""
    to_source = np.eye(4)
    to_source[:3, 3] = 3, 2, 1
    geometry = Geometry(shape=(4, 6, 8), to_source=to_source, source_shape=(13, 9, 7))
    z, y, x = np.meshgrid(np.arange(4), np.arange(6), np.arange(8), indexing="ij")
    ramp = (x + 10.0 * y + 100.0 * z).astype(np.float32)
    np.testing.assert_allclose(
        restore(ramp, geometry, method="linear")[3:11, 2:8, 1:5], ramp.transpose(2, 1, 0)
    )
    halved = InputRecipe(resolution=(3, 4), mean=(0, 0, 0), std=(1, 1, 1))
    coarse = ramp.reshape(4, 3, 2, 4, 2).mean((2, 4))
    back = restore(coarse, geometry, input_to_row((6, 8), halved), method="linear")
    np.testing.assert_allclose(back[4:10, 3:7, 1:5], ramp.transpose(2, 1, 0)[1:-1, 1:-1])
    outside = np.ones(back.shape, bool)
    outside[3:11, 2:8, 1:5] = False
    assert (back[outside] == 0).all()


def test_several_volumes_come_back_as_four_dimensions() -> None:
    rows = np.arange(2 * 3 * 4 * 5).reshape(6, 4, 5)
    back = restore(rows, Geometry(shape=(3, 4, 5), volumes=2))
    assert back.shape == (5, 4, 3, 2)
    np.testing.assert_array_equal(back[..., 1], rows[3:].transpose(2, 1, 0))


def test_what_cannot_be_restored_is_said() -> None:
    geometry = Geometry(shape=(3, 4, 5))
    with pytest.raises(ValueError, match=r"is \(rows, H, W\) with 3 rows, not \(2, 4, 5\)"):
        restore(np.zeros((2, 4, 5)), geometry)
    with pytest.raises(ValueError, match="form no grid"):
        restore(np.zeros((3, 4, 5)), Geometry())
    with pytest.raises(ValueError, match="linear is for float predictions, not int64"):
        restore(np.zeros((3, 4, 5), np.int64), geometry, method="linear")
    with pytest.raises(ValueError, match="differ by permuted axes only"):
        restore(np.zeros((3, 4, 5)), geometry, oblique(0.2, (1, 1, 1), np.zeros(3)))
    with pytest.raises(ValueError, match="does not say where its voxels lie"):
        geometry.row_to_mm()


def test_a_file_without_a_place_is_written_without_one(tmp_path: Path) -> None:
    write_nifti(tmp_path / "x.nii", np.zeros((3, 4, 5), np.uint8), Geometry(shape=(5, 4, 3)))
    header = nibabel.load(tmp_path / "x.nii").header
    assert (int(header["sform_code"]), int(header["qform_code"])) == (0, 0)


def test_geometry_travels_through_json() -> None:
    geometry = Geometry(
        shape=(3, 4, 5),
        volumes=2,
        affine=oblique(0.3, (0.7, 1.1, 3.0), np.array([1.0, 2.0, 3.0])),
        to_source=np.diag([-1.0, 1.0, 1.0, 1.0]),
        source_shape=(7, 4, 3),
    )
    again = Geometry.from_attributes(json.loads(json.dumps(geometry.to_attributes())))
    assert again.to_attributes() == geometry.to_attributes()
    np.testing.assert_allclose(geometry.spacing or (), (3.0, 1.1, 0.7))
    np.testing.assert_allclose(
        geometry.source_affine, geometry.row_to_mm() @ np.diag([-1.0, 1.0, 1.0, 1.0])
    )


SOUND = {
    "affine": [[0.7, 0, 0, -90.5], [0, 0.8, 0, 12], [0, 0, 3.0, -1e6], [0, 0, 0, 1]],
    "spacing": [3.0, 0.8, 0.7],
    "shape": [3, 4, 5],
    "volumes": 2,
    "to_source": [[-1, 0, 0, 6], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]],
    "source_shape": [7, 4, 3],
}
HUGE = 10**9
SINGULAR = [[1, 0, 0, 0], [0, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 1]]


def changed(key: str, line: int, column: int, value: object) -> list[list[object]]:
    matrix: list[list[object]] = [list(one) for one in SOUND[key]]  # type: ignore[attr-defined]
    matrix[line][column] = value
    return matrix


@pytest.mark.parametrize(
    ("key", "claimed"),
    [
        ("shape", [3, 4, 0]),
        ("shape", [3, -4, 5]),
        ("shape", [3, 4]),
        ("shape", [3, 4, 5, 6]),
        ("shape", [3, 4, 5.5]),
        ("shape", [3, True, 5]),
        ("shape", "345"),
        ("shape", 7),
        ("shape", [3, 4, (1 << 24) + 1]),
        ("shape", [1 << 20, 1 << 20, 1]),  # of two volumes
        ("source_shape", [HUGE, HUGE, HUGE]),
        ("source_shape", [1 << 14, 1 << 14, 1 << 14]),
        ("source_shape", [7, float("nan"), 3]),
        ("source_shape", {"0": 7}),
        ("volumes", 0),
        ("volumes", -1),
        ("volumes", 2.0),
        ("volumes", HUGE),
        ("volumes", None),
        ("affine", changed("affine", 1, 3, float("nan"))),
        ("affine", changed("affine", 1, 3, float("inf"))),
        ("affine", changed("affine", 0, 0, 10**400)),
        ("affine", changed("affine", 0, 0, "0.7")),
        ("affine", changed("affine", 0, 0, [0.7])),
        ("affine", changed("affine", 3, 3, 2)),
        ("affine", changed("affine", 3, 0, 1e-3)),
        ("affine", changed("affine", 2, 2, 0)),
        ("affine", changed("affine", 2, 2, 1e-320)),
        ("affine", SINGULAR),
        ("affine", [0.7] * 16),
        ("affine", [[0.7] * 4] * 3),
        ("affine", 3),
        ("to_source", changed("to_source", 0, 0, 0)),
        ("to_source", changed("to_source", 0, 3, -float("inf"))),
        ("to_source", SINGULAR),
    ],
)
def test_a_grid_that_cannot_be_is_refused(key: str, claimed: object) -> None:
    sound = Geometry.from_attributes(SOUND)
    assert sound.to_attributes() == SOUND
    with pytest.raises(StoreDamagedError, match=f"geometry has {key} .* expected") as caught:
        Geometry.from_attributes({**SOUND, key: claimed})
    assert len(str(caught.value)) < 400


def test_what_a_grid_may_claim() -> None:
    largest = {"shape": [1 << 24, 1 << 15, 1], "volumes": 2, "source_shape": [1, 1 << 15, 1 << 24]}
    found = Geometry.from_attributes(largest)
    assert (found.shape, found.source_shape) == ((1 << 24, 1 << 15, 1), (1, 1 << 15, 1 << 24))
    assert Geometry.from_attributes({}) == Geometry()
    assert Geometry.from_attributes({"affine": SOUND["affine"], "more": 3}).shape is None


@pytest.mark.parametrize("mode", ["squash", "pad", "crop"])
@pytest.mark.parametrize("shape", [(75, 90), (90, 75), (33, 97)])
def test_input_to_row_undoes_resizing_and_placing(
    mode: Literal["squash", "pad", "crop"], shape: tuple[int, int]
) -> None:
    """Edges to edges, by hand: the resized row's corners lie where they are placed."""
    resize = ResizeRecipe(mode=mode, crop_pct=0.875 if mode == "crop" else None)
    recipe = InputRecipe(resolution=(32, 48), resize=resize, mean=(0, 0, 0), std=(1, 1, 1))
    height, width = resized_shape(shape, (32, 48), resize)
    top, left = placement((height, width), (32, 48))
    matrix = input_to_row(shape, recipe)
    np.testing.assert_allclose(
        apply(matrix, [[left - 0.5, top - 0.5, 0], [left + width - 0.5, top + height - 0.5, 0]]),
        [[-0.5, -0.5, 0], [shape[1] - 0.5, shape[0] - 0.5, 0]],
        atol=1e-9,
    )


@pytest.mark.parametrize(
    ("dtype", "written"),
    [("int64", "uint8"), ("uint64", "uint8"), ("bool", "uint8"), ("float16", "float32")],
)
def test_any_type_of_prediction_can_be_written(tmp_path: Path, dtype: str, written: str) -> None:
    values = (np.arange(60).reshape(3, 4, 5) % 7).astype(dtype)
    write_nifti(tmp_path / "x.nii", values, Geometry(shape=(5, 4, 3)))
    found = nibabel.load(tmp_path / "x.nii")
    assert found.get_data_dtype() == written
    np.testing.assert_array_equal(np.asarray(found.dataobj), values.astype(written))
    large = np.array([[[-70000, 70000]]])
    write_nifti(tmp_path / "y.nii", large, Geometry(shape=(2, 1, 1)))
    assert nibabel.load(tmp_path / "y.nii").get_data_dtype() == np.int32


def test_a_sheared_grid_keeps_its_shear(tmp_path: Path) -> None:
    """Gantry tilt: a qform cannot hold it, and must not claim to."""
    affine = np.diag([0.8, 0.9, 3.0, 1.0])
    affine[1, 2] = 0.96  # lines drift by 17.7 degrees from slice to slice
    geometry = Geometry(shape=(5, 4, 3), affine=affine)
    write_nifti(tmp_path / "x.nii", np.ones((3, 4, 5), np.uint8), geometry)
    header = nibabel.load(tmp_path / "x.nii").header
    assert (int(header["sform_code"]), int(header["qform_code"])) == (1, 0)
    ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    np.testing.assert_allclose(nibabel.load(tmp_path / "x.nii").affine, ras, atol=1e-6)


def test_rows_that_are_turned_are_not_resampled() -> None:
    turned = np.array([[0.0, -1, 0, 6], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    given: dict[str, Any] = {"shape": (5, 7, 4), "source_shape": (7, 4, 5)}
    assert not Geometry(to_source=turned, **given).is_resampled
    assert not Geometry(shape=(5, 7, 4)).is_resampled
    for changed in (
        {"to_source": turned @ np.diag([1.0, 2, 1, 1])},
        {"to_source": turned @ np.diag([1.0, 1.25, 1, 1])},
        {"to_source": turned, "source_shape": (9, 4, 5)},  # rows were cut off
    ):
        assert Geometry(**{**given, **changed}).is_resampled
