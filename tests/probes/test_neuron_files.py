from pathlib import Path
from typing import Any

import h5py
import nibabel
import numpy as np
import numpy.typing as npt
import pytest

from probes.neurons import write_instances

Array = npt.NDArray[Any]
IDS = np.random.default_rng(0).integers(0, 300, (3, 14, 15), np.uint32)


@pytest.mark.parametrize("name", ["a.h5", "a.hdf", "A.HDF5"])
@pytest.mark.parametrize("labels", [IDS, IDS.T.astype(np.int16), IDS[:1].astype(np.uint64) << 50])
def test_hdf5_as_cremi_has_it(name: str, labels: Array, tmp_path: Path) -> None:
    write_instances(tmp_path / name, labels, (40, 4, 4.5))
    with h5py.File(tmp_path / name) as file:
        ids = file["volumes/labels/neuron_ids"]
        assert ids.dtype == np.uint64
        np.testing.assert_array_equal(ids[:], labels)
        assert ids.attrs["resolution"].tolist() == [40, 4, 4.5]
        assert file.attrs["file_format"] == "0.2"
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_hdf5_without_a_spacing_says_none(tmp_path: Path) -> None:
    write_instances(tmp_path / "a.h5", IDS)
    with h5py.File(tmp_path / "a.h5") as file:
        assert "resolution" not in file["volumes/labels/neuron_ids"].attrs


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize(
    ("highest", "kept"),
    [
        (255, np.uint8),
        (256, np.int16),
        (2**15, np.int32),
        (2**31, np.uint32),
        (2**32, np.uint64),
    ],
)
def test_nifti(name: str, highest: int, kept: Any, tmp_path: Path) -> None:  # noqa: ANN401
    labels = (IDS % 200).astype(np.uint64)
    labels[2, 13, 14] = highest
    write_instances(tmp_path / name, labels, (40, 4, 8))
    image = nibabel.load(tmp_path / name)
    assert image.get_data_dtype() == kept
    np.testing.assert_array_equal(np.asarray(image.dataobj), labels.transpose(2, 1, 0))
    np.testing.assert_allclose(image.affine, np.diag([0.008, 0.004, 0.04, 1]), rtol=1e-6)
    assert image.header.get_xyzt_units()[0] == "micron"
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_nifti_by_an_affine(tmp_path: Path) -> None:
    affine = np.array([[0, -2.0, 0, 5], [3, 0, 0, 6], [0, 0, 4, -7], [0, 0, 0, 1]])
    write_instances(tmp_path / "a.nii.gz", IDS, affine=affine)
    image = nibabel.load(tmp_path / "a.nii.gz")
    np.testing.assert_allclose(image.affine, affine)
    np.testing.assert_allclose(image.get_qform(), affine, atol=1e-5)
    assert image.header.get_xyzt_units()[0] == "mm"
    write_instances(tmp_path / "a.nii.gz", IDS + 1)  # in place of the other
    image = nibabel.load(tmp_path / "a.nii.gz")
    assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (0, 0)
    np.testing.assert_array_equal(np.asarray(image.dataobj), IDS.T + 1)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("a.tif", {}, r"a.tif must end in one of .h5, .hdf, .hdf5, .nii, .nii.gz"),
        ("a.h5", {"labels": IDS[0]}, r"labels must be a volume"),
        ("a.h5", {"labels": IDS.astype(float)}, "labels must be ids"),
        ("a.h5", {"labels": IDS.astype(int) - 1}, "labels must be ids, .*; got -1"),
        ("a.h5", {"spacing_nm": (4, 4)}, r"three numbers above 0: z, y, x; got \[4.0, 4.0\]"),
        ("a.nii", {"spacing_nm": (4, 4, 0)}, "three numbers above 0"),
        ("a.nii", {"spacing_nm": (4, 4, float("nan"))}, "three numbers above 0"),
        ("a.h5", {"affine": np.eye(4)}, "an affine can be kept in NIfTI only, not in .h5"),
        ("a.nii", {"affine": np.eye(4), "spacing_nm": (1, 1, 1)}, "not both"),
        ("a.nii", {"affine": np.eye(3)}, r"got the shape \(3, 3\)"),
        ("a.nii", {"affine": np.full((4, 4), np.nan)}, r"must be finite"),
    ],
)
def test_what_cannot_be_written(
    name: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        write_instances(tmp_path / name, **{"labels": IDS, **changes})
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a.h5", "a.nii.gz"])
def test_what_fails_halfway_leaves_what_was_there(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_instances(tmp_path / name, IDS)
    before = (tmp_path / name).read_bytes()

    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_instances(tmp_path / name, IDS + 1)
    assert (tmp_path / name).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    for name in ("a.h5", "a.nii"):
        with pytest.raises(OSError, match="No such file"):
            write_instances(tmp_path / "none" / name, IDS)
