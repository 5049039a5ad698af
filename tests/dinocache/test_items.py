"""Volumes, channels and coordinates through the whole of an extraction."""

from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
from making import make_table, tiny_request
from PIL import Image

from dinocache.encoders import encoder_spec
from dinocache.errors import ItemError, RequestError, TableError
from dinocache.extract import extract
from dinocache.forecast import dry_run
from dinocache.geometry import Geometry, restore
from dinocache.inference import load_encoder
from dinocache.intensity import item_windows
from dinocache.progress import QuietProgress
from dinocache.readers import ItemFiles, OpenItem, Pixels, guess_reader, make_reader
from dinocache.readers.pictures import Picture
from dinocache.readers.volume import VolumeReader
from dinocache.request import ExtractRequest, parse_channels, parse_options, parse_windows
from dinocache.store import FeatureStore
from dinocache.transforms import Preprocess
from dinocache.verify import verify

AFFINE = np.diag([-1.5, -2.0, 3.0, 1.0])  # stored as LPS, so that rows are the file's own slices
DEPTHS = {"a": 5, "b": 23, "c": 9}


def volume(depth: int, *, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1000, 1000, (26, 21, depth)).astype(np.int16)


def save(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> str:
    nibabel.save(nibabel.Nifti1Image(array, affine), path)
    return path.name


def make_volumes(folder: Path) -> Path:
    """Three CT-like volumes with masks; c.nii.gz is cut short."""
    rows = []
    for seed, (item, depth) in enumerate(DEPTHS.items()):
        array = volume(depth, seed=seed)
        mask = (array > 300).astype(np.uint8)
        rows.append(
            {
                "item_id": item,
                "path": save(folder / f"{item}.nii.gz", array),
                "mask": save(folder / f"{item}-mask.nii.gz", mask),
                "label": seed % 2,
            }
        )
    cut = folder / "c.nii.gz"
    cut.write_bytes(cut.read_bytes()[:-2000])
    table = folder / "volumes.csv"
    pd.DataFrame(rows).to_csv(table, index=False)
    return table


def by_hand(
    request: ExtractRequest, row: np.ndarray, windows: list[tuple[float, float]]
) -> np.ndarray:
    """The encoder called on one row, outside of the engine."""
    store = FeatureStore(request.root / "volumes/tiny/32x48")
    prepare = Preprocess(store.header.recipe.input, torch.device("cpu"))
    encoder = load_encoder(encoder_spec("tiny"), "random:0")
    return encoder(prepare(row, windows)[None], ("cls",))["cls"][0].numpy()


def test_volumes(tmp_path: Path) -> None:
    table = make_volumes(tmp_path)
    request = tiny_request(
        table,
        tmp_path / "f",
        features=("cls", "dense", "image", "mask"),
        windows=parse_windows("hu"),
    )
    forecast = dry_run(request)
    assert (forecast.items, forecast.rows) == (3, 5 + 23 + 1)  # c cannot be opened
    assert forecast.n_bytes["row_coord"] == forecast.n_bytes["cls"] // (2 * 48) * 16
    outcome = extract(request)
    assert [f.item_id for f in outcome.failures] == ["c"]
    assert outcome.complete
    store = FeatureStore(outcome.path)
    assert store.header.recipe.reader.name == "volume"
    assert store.kinds == ("cls", "dense", "row_coord", "image", "mask")
    assert not verify(outcome.path).damages
    for seed, item in enumerate("ab"):
        expected = volume(DEPTHS[item], seed=seed).transpose(2, 1, 0)
        image, attributes = store.native("image", item)
        np.testing.assert_array_equal(image[0], expected)
        assert attributes["windows"] == [[-1000, 1000]]
        assert attributes["spacing"] == [3.0, 2.0, 1.5]
        mask, of_mask = store.native("mask", item)
        np.testing.assert_array_equal(mask[0], expected > 300)
        # What a decoder finds goes back to the file's own grid, from the store alone.
        back = restore(mask[0], Geometry.from_attributes(of_mask))
        np.testing.assert_array_equal(back, volume(DEPTHS[item], seed=seed) > 300)
        coords, columns = store.coords(item)
        assert [name for name, _ in columns] == ["volume", "slice"]
        np.testing.assert_array_equal(coords[:, 1], np.arange(DEPTHS[item]))
        stored = store.rows("cls", item)
        for number in (0, DEPTHS[item] - 1):
            wanted = by_hand(request, expected[None, number], [(-1000, 1000)])
            np.testing.assert_allclose(stored[number], wanted, rtol=2**-10, atol=1e-4)


def test_a_units_interruption_leaves_no_trace(tmp_path: Path) -> None:
    """Kinds added one after another, and all at once, are the same bytes."""
    table = make_volumes(tmp_path)
    whole = extract(tiny_request(table, tmp_path / "f", features=("cls", "mean", "image")))
    for features in (("cls",), ("mean", "image"), ("cls", "mean", "image")):
        parts = extract(tiny_request(table, tmp_path / "g", features=features))
    files = [p.relative_to(whole.path) for p in (whole.path / "features.zarr").rglob("*")]
    assert len([f for f in files if f.name.startswith("c.")]) > 6
    for file in files:
        if (whole.path / file).is_file():
            assert (whole.path / file).read_bytes() == (parts.path / file).read_bytes(), file


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """CT and PET of two patients, of the same grid."""
    rows = []
    for seed, (item, depth) in enumerate((("p1", 6), ("p2", 11))):
        pet = (volume(depth, seed=seed + 10) / 100).astype(np.float32)
        rows.append(
            {
                "item_id": item,
                "path.ct": save(tmp_path / f"{item}_ct.nii.gz", volume(depth, seed=seed)),
                "path.pet": save(tmp_path / f"{item}_pet.nii.gz", np.abs(pet)),
            }
        )
    table = tmp_path / "volumes.csv"
    pd.DataFrame(rows).to_csv(table, index=False)
    return table


def test_channels_one_pass_each(pairs: Path, tmp_path: Path) -> None:
    request = tiny_request(
        pairs, tmp_path / "f", features=("cls", "image"), windows=parse_windows("hu,suv")
    )
    store = FeatureStore(extract(request).path)
    assert store.kinds == ("cls.ct", "cls.pet", "row_coord", "image")
    assert store.header.recipe.channels.names == ("ct", "pet")
    image, attributes = store.native("image", "p2")
    assert image.shape == (2, 11, 21, 26)
    assert image.dtype == np.float32
    assert attributes["windows"] == [[-1000, 1000], [0, 20]]
    for channel, kind in enumerate(("cls.ct", "cls.pet")):
        wanted = by_hand(request, image[channel : channel + 1, 4], [attributes["windows"][channel]])
        np.testing.assert_allclose(store.rows(kind, "p2")[4], wanted, rtol=2**-10, atol=1e-4)
        ids, vectors = store.item_vectors(kind)
        assert (ids, vectors.shape) == (["p1", "p2"], (2, 48))
    assert not verify(store.path).damages
    # One of them may be added later, or be all that is wanted.
    extract(tiny_request(pairs, tmp_path / "f", features=("mean.pet",)))
    assert "mean.pet" in FeatureStore(store.path).kinds
    with pytest.raises(RequestError, match=r"there is no channel 'mr'; they are ct, pet"):
        extract(tiny_request(pairs, tmp_path / "f", features=("cls.mr",)))


def test_channels_as_one_input(pairs: Path, tmp_path: Path) -> None:
    """Of two channels the mean, behind their windows, is the third."""
    request = tiny_request(
        pairs,
        tmp_path / "f",
        features=("cls", "image"),
        windows=parse_windows("hu,suv"),
        channels=parse_channels("stacked"),
    )
    store = FeatureStore(extract(request).path)
    assert store.kinds == ("cls", "row_coord", "image")
    image, _ = store.native("image", "p1")
    windowed = [
        np.clip((image[0] + 1000) / 2000, 0, 1),
        np.clip(image[1] / 20, 0, 1),
    ]
    three = np.stack([*windowed, (windowed[0] + windowed[1]) / 2]).astype(np.float32)
    wanted = by_hand(request, three[:, 3], [(0.0, 1.0)])
    np.testing.assert_allclose(
        store.rows("cls", "p1")[3], wanted, atol=5e-3
    )  # overshoots are cut first


def test_a_channel_on_another_grid_is_brought_to_the_firsts(pairs: Path, tmp_path: Path) -> None:
    """PET at half the resolution; linear between its voxels."""
    x, y, z = np.meshgrid(np.arange(15), np.arange(13), np.arange(8), indexing="ij")
    affine = np.diag([-3.0, -4.0, 4.0, 1.0])
    affine[:3, 3] = 1.5, 2.0, -1.0
    ramp = (x + 2 * y + 5 * z).astype(np.float32)
    for item in ("p1", "p2"):
        save(tmp_path / f"{item}_pet.nii.gz", ramp, affine)
    request = tiny_request(
        pairs, tmp_path / "f", features=("image",), windows=parse_windows("hu,suv")
    )
    store = FeatureStore(extract(request).path)
    image, _ = store.native("image", "p1")
    # A voxel of the CT lies at -1.5 i mm; there the PET's index is (1.5 i + 1.5) / 3, and so on.
    line, column = np.meshgrid(np.arange(21), np.arange(26), indexing="ij")
    for number in range(6):
        at = (column + 1) / 2 + 2 * (2 * line + 2) / 4 + 5 * (3 * number + 1) / 4
        np.testing.assert_allclose(image[1, number], at, atol=1e-3)


def test_channels_of_one_file(tmp_path: Path) -> None:
    """The volumes of a 4-D file as channels, one pass each."""
    array = np.random.default_rng(0).integers(0, 99, (14, 17, 6, 4)).astype(np.uint8)
    table = tmp_path / "volumes.csv"
    pd.DataFrame([{"path": save(tmp_path / "x.nii", array)}]).to_csv(table, index=False)
    options = {"volumes": "channels", "pick": [0, 2, 3]}
    request = tiny_request(
        table,
        tmp_path / "f",
        features=("cls", "image"),
        options=options,
        channels=parse_channels("passes:flair,t1gd,t2"),
    )
    store = FeatureStore(extract(request).path)
    assert store.kinds == ("cls.flair", "cls.t1gd", "cls.t2", "row_coord", "image")
    image, attributes = store.native("image", "x.nii")
    np.testing.assert_array_equal(image, array[..., [0, 2, 3]].transpose(3, 2, 1, 0))
    assert len(attributes["windows"]) == 1
    named = parse_channels("passes:flair,t1gd")
    outcome = extract(tiny_request(table, tmp_path / "g", options=options, channels=named))
    assert "it has 3 channels, 2 were named" in outcome.failures[0].failure.reason
    rgb = extract(tiny_request(table, tmp_path / "h", options=options, features=("cls",)))
    assert not rgb.failures


def test_what_is_said_of_channels_must_fit(pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="--channels names a, b, the table's columns ct, pet"):
        extract(tiny_request(pairs, tmp_path / "f", channels=parse_channels("passes:a,b")))
    table = make_volumes(tmp_path)
    with pytest.raises(RequestError, match="name the channels of each file, as passes:flair"):
        extract(tiny_request(table, tmp_path / "f", channels=parse_channels("passes")))
    for text in ("both", "passes:A", "passes:x,x", "passes:l05"):
        with pytest.raises(RequestError, match="give stacked, passes, or passes:NAME,NAME"):
            parse_channels(text)


def test_an_item_that_changed_since_it_was_planned(tmp_path: Path) -> None:
    table = make_volumes(tmp_path)
    request = tiny_request(table, tmp_path / "f", features=("cls",))
    extract(request)
    save(tmp_path / "a.nii.gz", volume(7, seed=0))
    outcome = extract(tiny_request(table, tmp_path / "f", features=("cls", "mean")))
    reasons = {f.item_id: f.failure.reason for f in outcome.failures}
    assert "it has 7 rows, 5 were planned" in reasons["a"]
    again = extract(
        tiny_request(table, tmp_path / "f", features=("cls", "mean"), retry_failed=True)
    )
    assert {f.item_id for f in again.failures} == {"c"}
    assert len(FeatureStore(again.path).rows("mean", "a")) == 7


def test_a_readers_own_mistake_never_stops_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = make_volumes(tmp_path)
    plain = VolumeReader.open

    def broken(self: VolumeReader, files: ItemFiles, like: Geometry | None = None) -> OpenItem:
        item = plain(self, files, like)
        if files.path.name == "b.nii.gz":
            monkeypatch.setattr(item, "rows", lambda start, stop: 1 / 0)
        return item

    monkeypatch.setattr(VolumeReader, "open", broken)
    outcome = extract(tiny_request(table, tmp_path / "f", features=("cls",)), QuietProgress())
    reasons = {f.item_id: f.failure.reason for f in outcome.failures}
    assert reasons["b"] == "its reader failed (ZeroDivisionError: division by zero)"
    assert set(reasons) == {"b", "c"}


def make_slide(path: Path, *, tissue: bool) -> np.ndarray:
    """A tiled TIFF of 0.5 um/px: white, with a pink half where there is tissue."""
    rng = np.random.default_rng(3)
    pixels = np.full((320, 448, 3), 244, np.uint8)
    if tissue:
        pixels[:, 160:] = rng.integers(120, 200, (320, 288, 3)) * np.array([1, 0.5, 0.9])
    tifffile.imwrite(
        path,
        pixels,
        tile=(64, 64),
        photometric="rgb",
        compression="deflate",
        resolution=(20_000, 20_000),
        resolutionunit="CENTIMETER",
    )
    return pixels


def test_slides(tmp_path: Path) -> None:
    pixels = make_slide(tmp_path / "a.tif", tissue=True)
    make_slide(tmp_path / "b.tif", tissue=False)
    table = tmp_path / "slides.csv"
    pd.DataFrame([{"path": "a.tif"}, {"path": "b.tif"}]).to_csv(table, index=False)
    request = tiny_request(
        table,
        tmp_path / "f",
        reader="slide",
        options={"tile_px": 64, "min_area": 0, "median": 1, "close": 0, "tissue_downsample": 8},
        features=("cls", "image"),
    )
    outcome = extract(request)
    (failure,) = outcome.failures
    assert failure.item_id == "b.tif"
    assert "no tile is tissue" in failure.failure.reason
    store = FeatureStore(outcome.path)
    coords, columns = store.coords("a.tif")
    assert columns == (("x", "level-0 px"), ("y", "level-0 px"))
    # Half of the tile at 128 is tissue.
    expected = [(x, y) for y in range(0, 320, 64) for x in range(128, 448, 64)]
    np.testing.assert_array_equal(coords, expected)
    image, _ = store.native("image", "a.tif")
    for number, (x, y) in enumerate(coords.astype(int)):
        tile = pixels[y : y + 64, x : x + 64].transpose(2, 0, 1)
        np.testing.assert_array_equal(image[:, number], tile)
    (thumb,) = (store.path / "thumbs").iterdir()
    with Image.open(thumb) as picture:
        assert picture.size == (448, 320)
    assert not verify(store.path).damages
    content = bytearray(thumb.read_bytes())
    content[100] ^= 1
    thumb.write_bytes(content)
    assert [d.file for d in verify(store.path).damages] == [f"thumbs/{thumb.name}"]


def test_the_reader_follows_from_names(tmp_path: Path) -> None:
    folder = tmp_path / "series"
    folder.mkdir()
    (folder / "1.dcm").write_bytes(b"")
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    (pictures / "1.png").write_bytes(b"")
    names = {
        "volume": ["x.nii.gz", "x.nii", "X.NRRD", "x.mha", "series"],
        "image": ["x.png", "x.JPG", "x.tif", "x.dcm", "x", "gone"],
        "slide": ["x.svs", "x.ndpi", "x.mrxs"],
        "video": ["x.mp4", "x.AVI", "x.mkv"],
        "stack": ["x.h5", "x.hdf5", "pictures"],
    }
    for reader, of_reader in names.items():
        assert guess_reader(tmp_path / name for name in of_reader) == reader
    with pytest.raises(
        RequestError, match=r"x\.nii speaks for the reader volume, y\.png for image"
    ):
        guess_reader([tmp_path / "x.nii", tmp_path / "y.png"])


def test_an_item_of_several_units_that_fails_in_its_middle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Appended behind a good one: it stays a failure, whatever its other units say."""
    monkeypatch.setattr("dinocache.plan.MAX_ITEM_ROWS_IN_A_UNIT", 16)
    save(tmp_path / "a.nii", volume(5, seed=0))
    save(tmp_path / "b.nii", volume(50, seed=1))
    plain = VolumeReader.open

    def broken(self: VolumeReader, files: ItemFiles, like: Geometry | None = None) -> OpenItem:
        item = plain(self, files, like)
        if files.path.name == "b.nii":
            rows = item.rows

            def some(start: int, stop: int) -> list[Pixels]:
                if start <= 22 < stop:
                    raise ItemError("row 22 is damaged")
                return rows(start, stop)

            monkeypatch.setattr(item, "rows", some)
        return item

    table = tmp_path / "volumes.csv"
    table.write_text("path\na.nii\n")
    hu = parse_windows("hu")
    extract(tiny_request(table, tmp_path / "f", features=("cls", "image"), windows=hu))
    table.write_text("path\na.nii\nb.nii\n")
    with monkeypatch.context() as patch:
        patch.setattr(VolumeReader, "open", broken)
        outcome = extract(tiny_request(table, tmp_path / "f", append=True))
    (failure,) = outcome.failures
    assert (failure.item_id, failure.failure.reason) == ("b.nii", "row 22 is damaged")
    assert failure.kinds == ("cls", "row_coord", "image")
    store = FeatureStore(outcome.path)
    assert store.item_vectors("cls")[0] == ["a.nii"]
    assert not verify(store.path).damages
    again = extract(tiny_request(table, tmp_path / "f", retry_failed=True))
    assert not again.failures
    assert FeatureStore(store.path).rows("cls", "b.nii").shape == (50, 48)


def test_a_kind_added_behind_a_retried_item(tmp_path: Path) -> None:
    """The same item closes one segment and opens the next, in other rows."""
    save(tmp_path / "a.nii", volume(5, seed=0))
    table = tmp_path / "volumes.csv"
    table.write_text("path\na.nii\nb.nii\n")
    assert extract(tiny_request(table, tmp_path / "f", features=("cls",))).failures
    save(tmp_path / "b.nii", volume(9, seed=1))
    assert not extract(tiny_request(table, tmp_path / "f", retry_failed=True)).failures
    added = extract(tiny_request(table, tmp_path / "f", features=("cls", "mean")))
    assert not added.failures
    assert FeatureStore(added.path).rows("mean", "b.nii").shape == (9, 48)


def test_windows_are_measured_once_for_all_units(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dinocache.plan.MAX_ITEM_ROWS_IN_A_UNIT", 16)
    array = volume(50, seed=1)
    save(tmp_path / "a.nii", array)
    table = tmp_path / "volumes.csv"
    table.write_text("path\na.nii\n")
    measured = []
    monkeypatch.setattr(
        "dinocache.source.item_windows",
        lambda windows, item: measured.append(item) or item_windows(windows, item),
    )
    outcome = extract(tiny_request(table, tmp_path / "f", features=("image",)))
    assert len(measured) == 1
    _, attributes = FeatureStore(outcome.path).native("image", "a.nii")
    np.testing.assert_allclose(attributes["windows"], [np.percentile(array, (0.5, 99.5))])


def test_an_item_whose_file_allows_one_value_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = VolumeReader.open

    def flat(self: VolumeReader, files: ItemFiles, like: Geometry | None = None) -> OpenItem:
        item = plain(self, files, like)
        item.value_range = (7.0, 7.0)
        return item

    monkeypatch.setattr(VolumeReader, "open", flat)
    save(tmp_path / "a.nii", volume(3, seed=0))
    table = tmp_path / "volumes.csv"
    table.write_text("path\na.nii\n")
    windows = parse_windows("full-range")
    (failure,) = extract(tiny_request(table, tmp_path / "f", windows=windows)).failures
    assert "all its values lie between 7 and 7" in failure.failure.reason


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("path.CT,path.pet", r"column 'path\.CT' names no channel"),
        ("path.l05,path.pet", r"column 'path\.l05' names no channel"),
        ("path,path.pet", r"both 'path' and 'path\.pet', which differ"),
    ],
)
def test_columns_that_name_no_channel_are_refused(
    tmp_path: Path, header: str, message: str
) -> None:
    table = tmp_path / "volumes.csv"
    table.write_text(f"{header}\na.nii,b.nii\n")
    with pytest.raises(TableError, match=message):
        extract(tiny_request(table, tmp_path / "f"))


def test_what_no_item_can_have_is_refused_before_a_store_is_made(
    pairs: Path, tmp_path: Path
) -> None:
    windows = parse_windows("hu,suv,lung")
    with pytest.raises(RequestError, match="names 3 windows, the items have 2 channels"):
        extract(tiny_request(pairs, tmp_path / "f", windows=windows))
    stacked = parse_channels("stacked")
    with pytest.raises(RequestError, match="anatomix takes one channel"):
        extract(tiny_request(pairs, tmp_path / "f", model="anatomix", channels=stacked))
    assert not (tmp_path / "f").exists()


def test_a_forecast_names_what_cannot_be_opened(tmp_path: Path) -> None:
    table = make_volumes(tmp_path)
    (tmp_path / "a.nii.gz").unlink()
    forecast = dry_run(tiny_request(table, tmp_path / "f"))
    assert set(forecast.unreadable) == {"a", "c"}
    assert forecast.unreadable["a"] == "the file is missing"


@pytest.mark.parametrize(
    ("reader", "options", "message"),
    [
        ("volume", ["pick=a"], "option pick='a': Input should be a valid integer"),
        ("volume", ["crop=mask"], r"reader 'volume': crop=mask needs a crop_size"),
        ("volume", ["slide_mpp=1"], r"--mpp is for slides; it has no option 'slide_mpp'; its opt"),
        ("image", ["colour=red"], r"it has no option 'colour'; its options are: page, channels"),
        ("video", ["fps=-1"], r"option fps='-1': Input should be greater than 0"),
    ],
)
def test_a_wrong_option_is_named(reader: str, options: list[str], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        make_reader(reader, parse_options(options))


def test_one_value_of_a_list() -> None:
    for text in ("pick=1", "pick=1,"):
        assert make_reader("volume", parse_options([text])).options["pick"] == [1]
    assert make_reader("image", parse_options(["channels=2"])).options["channels"] == [2]


@pytest.mark.parametrize("window", ["full-range", "percentile"])
def test_a_picture_is_decoded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, window: str
) -> None:
    table = make_table(tmp_path, 5)
    decoded = []
    plain = Picture.decode
    monkeypatch.setattr(Picture, "decode", lambda self: decoded.append(self.path) or plain(self))
    windows = parse_windows(window)
    assert not extract(tiny_request(table, tmp_path / "f", windows=windows)).failures
    assert len(decoded) == len(set(decoded)) == 5
