"""`dinocache show`: pictures and a page of a store, held against NumPy and a browser."""

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import browser
import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from browser import open_page
from making import make_table, tiny_request
from PIL import Image
from sklearn.neighbors import NearestNeighbors

from dinocache import feature_pictures, sights
from dinocache import show as showing
from dinocache.cli import main
from dinocache.copying import copy_store
from dinocache.errors import RequestError, StoreDamagedError
from dinocache.extract import extract
from dinocache.feature_pictures import PatchColours
from dinocache.folders import LocalFolder
from dinocache.show import ShowRequest, parse_patch, show
from dinocache.store import FeatureStore

needs_browser = pytest.mark.skipif(
    browser.chromium() is None, reason=f"no browser: looked for {', '.join(browser.NAMES)}"
)


@pytest.fixture(autouse=True)
def _small_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes most of the time here, and test_feature_pictures.py looks at what is drawn."""
    monkeypatch.setattr(feature_pictures, "_DPI", 36)


@pytest.fixture(scope="session")
def wide_store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """Five images, maps of 6 x 7 patches; do not change."""
    folder = tmp_path_factory.mktemp("wide")
    table = make_table(folder, 5)
    kinds = ("cls", "mean", "dense", "image")
    outcome = extract(tiny_request(table, folder / "f", resolution=(96, 112), features=kinds))
    assert outcome.complete
    return FeatureStore(outcome.path)


@pytest.fixture(scope="session")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """Two volumes of 19 and 3 slices of 24 x 20 px, 3 mm high and 1 mm wide; do not change."""
    nib = pytest.importorskip("nibabel", reason="nibabel is not installed")
    folder = tmp_path_factory.mktemp("volumes")
    rng = np.random.default_rng(0)
    for name, depth in (("a", 19), ("b", 3)):
        values = rng.integers(0, 200, (20, 24, depth)).astype(np.int16)
        nib.save(nib.Nifti1Image(values, np.diag([1.0, 3, 2, 1])), folder / f"{name}.nii")
    table = folder / "t.csv"
    table.write_text("item_id,path\na,a.nii\nb,b.nii\n")
    outcome = extract(tiny_request(table, folder / "f", features=("cls", "dense", "image")))
    assert outcome.complete
    return FeatureStore(outcome.path)


def facts(store: FeatureStore | str, out: Path, **asked: Any) -> dict[str, Any]:  # noqa: ANN401
    where = store if isinstance(store, str) else store.path
    return show(where, ShowRequest(out=out, **asked)).facts


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    """Run the command; give its exit code and its one line."""
    code = main(["show", *map(str, arguments)])
    (line,) = capsys.readouterr().err.splitlines()
    return code, line


def page_data(page: Path) -> dict[str, Any]:
    found = re.search(r'id="data">(.*?)</script>', page.read_text(), re.DOTALL)
    assert found
    data: dict[str, Any] = json.loads(found[1])
    return data


def decoded(uri: str) -> npt.NDArray[np.uint8]:
    content = base64.b64decode(uri.partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(content)))


def images(page: Path) -> list[npt.NDArray[np.uint8]]:
    """Decode what `<img>` have, in the order of the page."""
    return [decoded(uri) for uri in re.findall(r'<img src="(data:[^"]+)"', page.read_text())]


def cosine(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> float:
    one, other = one.astype(float), other.astype(float)
    return float(one @ other / np.sqrt((one @ one) * (other @ other)))


# The numbers


def test_a_patch_is_compared_to_all_others(wide_store: FeatureStore, tmp_path: Path) -> None:
    found = facts(wide_store, tmp_path, items=("0003",), patch=(4, 1))
    (item,) = found["items"]
    similarity = item["similarity"]
    maps = wide_store.rows("dense", "0003")[0]
    expected = [[cosine(maps[4, 1], maps[y, x]) for x in range(7)] for y in range(6)]
    np.testing.assert_allclose(similarity["cosines"], expected, atol=2e-6)
    others = {(y, x): expected[y][x] for y in range(6) for x in range(7) if (y, x) != (4, 1)}
    best = max(others, key=lambda place: others[place])
    assert similarity["most_alike"][0]["patch"] == list(best)
    assert similarity["mean"] == pytest.approx(np.mean(list(others.values())), abs=2e-6)
    assert (item["grid"], item["rows_shown"]) == ([6, 7], [0])
    for name in ("0003.pca.png", "0003.patch-4-1.png", "index.html"):
        assert (tmp_path / name).stat().st_size > 1000
    assert {p.name for p in tmp_path.iterdir()} == {
        "0003.pca.png",
        "0003.patch-4-1.png",
        "index.html",
    }


@pytest.mark.parametrize("kind", ["cls", "mean"])
def test_nearest_items_are_those_of_scikit_learn(
    kind: str, tiny_store: FeatureStore, tmp_path: Path
) -> None:
    asked = () if kind == "cls" else (kind,)
    found = facts(tiny_store, tmp_path, items=("0007",), nearest=4, features=asked)
    ids, vectors = tiny_store.item_vectors(kind)
    index = NearestNeighbors(n_neighbors=5, metric="cosine").fit(vectors)
    distances, numbers = index.kneighbors(vectors[[ids.index("0007")]])
    expected = [ids[n] for n in numbers[0]]
    assert expected[0] == "0007"
    (item,) = found["items"]
    assert [one["item_id"] for one in item["nearest"]] == expected[1:]
    np.testing.assert_allclose(
        [one["cosine"] for one in item["nearest"]], 1 - distances[0, 1:], atol=2e-6
    )
    assert found["vectors"] == kind
    assert (tmp_path / "0007.nearest.png").is_file()


def test_more_nearest_than_there_are(wide_store: FeatureStore, tmp_path: Path) -> None:
    (item,) = facts(wide_store, tmp_path, items=("0001",), nearest=50)["items"]
    assert sorted(one["item_id"] for one in item["nearest"]) == ["0000", "0002", "0003", "0004"]
    (item,) = facts(wide_store, tmp_path, items=("0001",), nearest=0)["items"]
    assert "nearest" not in item
    assert "not asked for" in (tmp_path / "index.html").read_text()


def test_components_and_scales_are_undone(tiny_table: Path, tmp_path: Path) -> None:
    """Cosines are of the encoder's own channels, not of components around the mean."""
    how = {"pca": "11:dense", "quantize": "int8", "features": ("cls", "dense")}
    outcome = extract(tiny_request(tiny_table, tmp_path / "f", **how))
    store = FeatureStore(outcome.path)
    (item,) = facts(store, tmp_path / "out", items=("0005",), patch=(1, 2))["items"]
    calibration = store.calibration("dense")
    assert calibration is not None
    maps = calibration.undone(store.rows("dense", "0005"))[0]
    assert maps.shape == (2, 3, 48)
    expected = [[cosine(maps[1, 2], maps[y, x]) for x in range(3)] for y in range(2)]
    np.testing.assert_allclose(item["similarity"]["cosines"], expected, atol=2e-6)


# The page


def test_the_page_computes_what_it_says(wide_store: FeatureStore, tmp_path: Path) -> None:
    found = facts(wide_store, tmp_path, items=("0002", "0004"))
    page = tmp_path / "index.html"
    text = page.read_text()
    said = re.search(r'<strong id="error">([\d.]+)</strong>', text)
    assert said
    worst = 0.0
    for item in page_data(page)["items"]:
        (row,) = item["rows"]
        codes, fine = (np.frombuffer(base64.b64decode(row[k]), np.int8) for k in ("codes", "fine"))
        scales, base = (np.frombuffer(base64.b64decode(row[k]), "<f4") for k in ("scales", "base"))
        parts = codes.reshape(len(base), -1).astype(float)
        assert parts.shape == (42, row["components"])
        parts[:, :2] += fine.reshape(len(base), -1) / 254
        parts *= scales
        maps = wide_store.rows("dense", item["id"])[0].reshape(42, -1)
        expected = np.array([[cosine(one, other) for other in maps] for one in maps])
        worst = max(worst, np.abs(base + base[:, None] + parts @ parts.T - expected).max())
    assert worst == pytest.approx(found["page_cosine_error"], abs=1e-5)
    assert worst <= float(said[1]) <= 0.02
    assert f"{2 * 42**2:,} pairs" in text


def test_the_page_stands_alone(wide_store: FeatureStore, tmp_path: Path) -> None:
    facts(wide_store, tmp_path)
    text = (tmp_path / "index.html").read_text()
    assert "default-src 'none'" in text
    assert not re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', text)
    assert not re.findall(r"https?:|url\(|@import|import\(|fetch\(", text)
    assert len(text) < 200_000
    assert str(wide_store.path.parent) not in text


def test_random_weights_are_named_everywhere(
    wide_store: FeatureStore,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    warned = []
    draw = showing.rows_picture
    monkeypatch.setattr(
        showing, "rows_picture", lambda *a, **k: (warned.append(k["warning"]), draw(*a, **k))[1]
    )
    assert main(["show", str(wide_store.path), "0001", "--out", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("RANDOM WEIGHTS (random:0)")
    assert lines[1:] == [str(tmp_path / "0001.pca.png"), str(tmp_path / "index.html")]
    assert warned[0].startswith("RANDOM WEIGHTS (random:0)")
    assert 'class="warn">RANDOM WEIGHTS (random:0)' in (tmp_path / "index.html").read_text()
    assert main(["show", str(wide_store.path), "0001", "--out", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["random_weights"] is True


def test_what_others_wrote_is_text(tmp_path: Path) -> None:
    """Ids of a table may hold markup, mathematics, paths, other scripts; none does anything."""
    names = [
        "</script><img src=x onerror=alert(1)>",
        "../../up",
        "$\\frac{$ \u5fc3",
        "a\x1b[2Jb",
        "{{7*7}}",
    ]
    table = make_table(tmp_path, 5)
    rows = pd.read_csv(table, dtype=str)
    rows["item_id"] = names
    rows.to_csv(table, index=False)
    asked = tiny_request(table, tmp_path / "f", features=("cls", "dense", "image"))
    outcome = extract(asked)
    some = tuple(names[:3])
    found = facts(FeatureStore(outcome.path), tmp_path / "out", items=some, nearest=4)
    assert [item["item_id"] for item in found["items"]] == names[:3]
    inside = {path.name for path in (tmp_path / "out").iterdir()}
    assert len(inside) == 7
    assert all(re.fullmatch(r"[\w.~=+-]+", name, re.ASCII) for name in inside)
    text = (tmp_path / "out" / "index.html").read_text()
    assert "<img src=x" not in text
    assert text.count("</script>") == 2
    assert "{{7*7}}" in text
    assert [item["id"] for item in page_data(tmp_path / "out" / "index.html")["items"]] == names[:3]


def test_colours_are_of_the_item_or_of_all(wide_store: FeatureStore, tmp_path: Path) -> None:
    ids = ("0001", "0002")
    maps = [wide_store.rows("dense", i)[0].astype(np.float32) for i in ids]
    shared = PatchColours.fit(np.concatenate([one.reshape(-1, 48) for one in maps]))
    for is_shared in (False, True):
        facts(wide_store, tmp_path, items=ids, shared=is_shared, nearest=0)
        _, first, _, _, second, _ = images(tmp_path / "index.html")
        for found, one in zip((first, second), maps, strict=True):
            expected = (shared if is_shared else PatchColours.fit(one)).of(one)
            np.testing.assert_allclose(found / 255, expected, atol=0.003)
    assert "components of all items here" in (tmp_path / "index.html").read_text()


def test_a_small_budget_is_kept_and_said(
    wide_store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(showing, "_CODE_BYTES", 3 * 2 * 42)
    found = facts(wide_store, tmp_path, items=("0000", "0001"))
    assert found["page_cosine_error"] > 0.02
    rows = [item["rows"][0] for item in page_data(tmp_path / "index.html")["items"]]
    assert [row["components"] for row in rows] == [3, 3]
    assert "show fewer items at once" in (tmp_path / "index.html").read_text()


# Items of several rows


def test_rows_are_spread_over_an_item(volumes: FeatureStore, tmp_path: Path) -> None:
    long, short = facts(volumes, tmp_path)["items"]
    assert long["rows_shown"] == [1, 3, 5, 8, 10, 13, 15, 17]
    assert short["rows_shown"] == [0, 1, 2]
    assert (long["rows"], long["grid"]) == (19, [2, 3])
    assert page_data(tmp_path / "index.html")["items"][0]["first"] == 4


def test_one_row(volumes: FeatureStore, tmp_path: Path) -> None:
    (item,) = facts(volumes, tmp_path, items=("a",), row=11, patch=(0, 2))["items"]
    maps = volumes.rows("dense", "a")[11]
    expected = [[cosine(maps[0, 2], maps[y, x]) for x in range(3)] for y in range(2)]
    np.testing.assert_allclose(item["similarity"]["cosines"], expected, atol=2e-6)
    assert item["similarity"]["row"] == 11
    assert (tmp_path / "a.row-11.patch-0-2.png").is_file()
    picture = images(tmp_path / "index.html")[0]
    # 24 lines of 3 mm by 20 columns of 1 mm.
    assert picture.shape[0] / picture.shape[1] == pytest.approx(24 * 3 / 20, rel=0.02)


# What the pictures are of


@pytest.mark.parametrize("mode", ["squash", "pad", "crop"])
def test_the_picture_is_what_the_encoder_saw(mode: str, tmp_path: Path) -> None:
    """The patches lie over the picture as they lay over the encoder's input, 32 x 48 px."""
    table = make_table(tmp_path, 2)
    Image.fromarray(np.full((40, 40), 255, np.uint8)).save(tmp_path / "png" / "0000.png")
    asked = tiny_request(table, tmp_path / "f", resize=mode, features=("cls", "dense", "image"))
    facts(FeatureStore(extract(asked).path), tmp_path / "out", items=("0000",), nearest=0)
    picture = images(tmp_path / "out" / "index.html")[0]
    bright = (picture > 128).mean(0)
    if mode == "squash":
        assert (picture.shape, bright.min()) == ((40, 40), 1)
    elif mode == "pad":  # 32 x 32 in the middle: a sixth to the left, a sixth to the right
        assert picture.shape == (40, 60)
        assert (bright[:9].max(), bright[11:49].min(), bright[51:].max()) == (0, 1, 0)
    else:  # 48 wide, of which 32 lines are seen
        assert picture.shape[1] == pytest.approx(picture.shape[0] * 1.5, abs=1.5)
        assert bright.min() == 1


def test_without_images_the_ground_is_grey(tiny_table: Path, tmp_path: Path) -> None:
    outcome = extract(tiny_request(tiny_table, tmp_path / "f", features=("cls", "dense")))
    facts(FeatureStore(outcome.path), tmp_path / "out", items=("0001",), nearest=2)
    picture, colours, *_ = images(tmp_path / "out" / "index.html")
    assert picture.shape[0] / picture.shape[1] == pytest.approx(2 / 3, abs=0.01)
    assert np.ptp(picture) == 0
    assert colours.shape == (2, 3, 3)
    text = (tmp_path / "out" / "index.html").read_text()
    assert "does not keep the image" in text
    assert 'id="over"' not in text


def test_a_map_of_the_image_turned_is_turned_back(tiny_table: Path, tmp_path: Path) -> None:
    asked = {"features": ("dense",), "views": (None, "hflip")}
    store = FeatureStore(extract(tiny_request(tiny_table, tmp_path / "f", **asked)).path)
    (item,) = facts(
        store, tmp_path / "out", items=("0001",), features=("dense.hflip",), patch=(1, 0)
    )["items"]
    maps = store.rows("dense.hflip", "0001")[0][:, ::-1]
    expected = [[cosine(maps[1, 0], maps[y, x]) for x in range(3)] for y in range(2)]
    np.testing.assert_allclose(item["similarity"]["cosines"], expected, atol=2e-6)
    assert facts(store, tmp_path / "out", items=("0001",))["maps"] == "dense"


def test_a_channel_has_its_own_picture(tmp_path: Path) -> None:
    for name, value in (("ct", 250), ("pet", 20)):
        Image.fromarray(np.full((40, 40), value, np.uint8)).save(tmp_path / f"{name}.png")
    table = tmp_path / "t.csv"
    table.write_text("item_id,path.ct,path.pet\nx,ct.png,pet.png\n")
    asked = tiny_request(table, tmp_path / "f", features=("dense", "image"))
    store = FeatureStore(extract(asked).path)
    for channel, value in (("ct", 250), ("pet", 20)):
        facts(store, tmp_path / "out", features=(f"dense.{channel}",))
        assert images(tmp_path / "out" / "index.html")[0].mean() == pytest.approx(value, abs=2)


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        (("cls", "dense.L03", "dense"), "dense"),
        (("dense.L03", "dense.L07"), "dense.L07"),
        (("dense.hflip", "dense.L02"), "dense.L02"),
        (("dense.ct", "dense.ct.hflip", "dense.pet"), "dense.ct"),
        (("cls", "image"), None),
    ],
)
def test_which_map_is_shown(kinds: tuple[str, ...], expected: str | None) -> None:
    assert sights._usual_map(kinds) == expected


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        (("cls", "mean", "embed"), "cls"),
        (("mean", "embed", "dense"), "mean"),
        (("embed", "dense"), "embed"),
        (("mean.ct", "cls.pet"), "cls.pet"),
        (("dense", "image"), None),
    ],
)
def test_which_vector_counts(kinds: tuple[str, ...], expected: str | None) -> None:
    assert sights._usual_vector(kinds) == expected


def test_any_place_that_has_a_store(wide_store: FeatureStore, tmp_path: Path) -> None:
    where = wide_store.path.resolve().as_uri()
    found = facts(where, tmp_path / "a", items=("0001",), patch=(0, 0))
    again = facts(wide_store, tmp_path / "b", items=("0001",), patch=(0, 0))
    assert found["items"][0]["similarity"]["cosines"] == again["items"][0]["similarity"]["cosines"]
    for name in ("0001.pca.png", "0001.patch-0-0.png", "index.html"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


# Stores that lack something


def test_nearest_items_need_no_maps(tmp_path: Path, tiny_table: Path) -> None:
    outcome = extract(tiny_request(tiny_table, tmp_path / "f", features=("cls", "image")))
    found = facts(FeatureStore(outcome.path), tmp_path / "out", items=("0003",), nearest=3)
    assert found["maps"] is None
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "0003.nearest.png",
        "index.html",
    }
    text = (tmp_path / "out" / "index.html").read_text()
    assert 'id="options"' not in text
    assert text.count("<li>") == 3


def test_a_part_with_the_means_alone(volumes: FeatureStore, tmp_path: Path) -> None:
    copy_store(volumes, LocalFolder(tmp_path / "part"), kinds=["item_cls"])
    found = facts(str(tmp_path / "part"), tmp_path / "out", nearest=3)
    assert found["maps"] is None
    near = {item["item_id"]: item["nearest"][0]["item_id"] for item in found["items"]}
    assert near == {"a": "b", "b": "a"}
    assert all(np.ptp(picture) == 0 for picture in images(tmp_path / "out" / "index.html"))


def test_items_that_failed_are_passed_over_or_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = make_table(tmp_path, 4)
    (tmp_path / "png" / "0000.png").write_bytes(b"no picture")
    outcome = extract(tiny_request(table, tmp_path / "f", features=("cls", "dense", "image")))
    store = FeatureStore(outcome.path)
    found = facts(store, tmp_path / "out")
    assert [item["item_id"] for item in found["items"]] == ["0001", "0002", "0003"]
    code, line = refused(capsys, store.path, "0000", "--out", tmp_path / "out")
    assert code == 1
    assert "has no 'dense' of item '0000': it is not extracted yet, it failed" in line


def test_mistakes_are_one_clear_line(
    wide_store: FeatureStore,
    volumes: FeatureStore,
    tmp_path: Path,
    tiny_table: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bare = extract(tiny_request(tiny_table, tmp_path / "f", features=("cls",)))
    single = extract(tiny_request(make_table(tmp_path / "one", 1), tmp_path / "one" / "f"))
    dense = extract(tiny_request(tiny_table, tmp_path / "d", features=("dense",)))
    wide, deep = wide_store.path, volumes.path
    for arguments, code, expected in [
        ((bare.path,), 1, "add them with `dinocache extract ... --features dense,image`"),
        ((bare.path, "--patch", "0,0", "--nearest", "2"), 1, "has no patches for --patch"),
        ((wide, "0O01"), 2, "holds no item '0O01'; did you mean 0001"),
        ((wide, "zzz"), 2, "did you mean 0000, 0001, 0002?"),
        ((wide, "0001", "--patch", "6,0"), 2, "6 x 7 patches: Y is 0 to 5, X is 0 to 6"),
        ((wide, "0001", "--patch", "0,7"), 2, "--patch 0,7 is outside the grid of item '0001'"),
        ((wide, "0001", "--patch", "3"), 2, "--patch takes Y,X"),
        ((wide, "0001", "--row", "1"), 2, "has 1 rows, the last is 0"),
        ((deep, "b", "--row", "3"), 2, "has 3 rows, the last is 2"),
        ((single.path, "--nearest", "3"), 2, "has one item, so no other is near"),
        ((dense.path, "--nearest", "3"), 1, "add them with `dinocache extract ... --features cls`"),
        ((wide, "--features", "sense"), 2, "'sense'; choose from cls"),
        ((wide, "--features", "image"), 2, "'image' is no map of patches and no vector"),
        ((wide, "--features", "dense.L01"), 1, "dinocache extract ... --features dense.L01"),
        ((wide, "--features", "cls,mean"), 2, "one of vector, as mean; got cls, mean"),
        ((tmp_path / "none",), 1, "there is no store at"),
    ]:
        ended, line = refused(capsys, *arguments, "--out", tmp_path / "out")
        assert ended == code, arguments
        assert line.startswith("error: ")
        assert expected in line, arguments
    assert not (tmp_path / "out").exists()


def test_maps_too_small_for_components(tmp_path: Path) -> None:
    asked = {"resolution": (16, 32), "features": ("dense",)}
    outcome = extract(tiny_request(make_table(tmp_path, 2), tmp_path / "f", **asked))
    with pytest.raises(RequestError, match=r"needs 4 patches .* higher resolution"):
        facts(FeatureStore(outcome.path), tmp_path / "out", items=("0000",))
    found = facts(FeatureStore(outcome.path), tmp_path / "out", shared=True)
    assert [item["grid"] for item in found["items"]] == [[1, 2], [1, 2]]


def test_a_folder_that_cannot_be_written(
    wide_store: FeatureStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    code, line = refused(capsys, wide_store.path, "--out", tmp_path / "file" / "show")
    assert (code, line.startswith("error: cannot ")) == (1, True)


@pytest.mark.parametrize("text", ["3", "1,2,3", "a,1", "-1,2", "1.5,2", "", "\u0661,2"])
def test_what_is_no_patch(text: str) -> None:
    with pytest.raises(RequestError, match="--patch takes Y,X"):
        parse_patch(text)


def test_a_patch_is_row_and_column() -> None:
    assert parse_patch(" 3, 05") == (3, 5)


@pytest.mark.parametrize(
    "windows",
    [None, [], [[1]], [[2, 1]], [[0, float("nan")]], "0,1", {"low": 0}, [[0, 10**400]]],
    ids=str,
)
def test_windows_of_others_are_held_against_what_we_write(windows: object) -> None:
    values = np.zeros((1, 2, 3), np.float32)
    with pytest.raises(StoreDamagedError, match="pairs of low and high were expected"):
        sights._windowed(values, {"windows": windows}, 0, "x")


def test_windows_by_hand() -> None:
    values = np.array([[[0, 5]], [[20, 30]]], np.float32)
    windows = {"windows": [[0, 10], [10, 30]]}
    np.testing.assert_allclose(sights._windowed(values[:1], windows, 0, "x"), [[0, 0.5]])
    np.testing.assert_allclose(sights._windowed(values[1:], windows, 1, "x"), [[0.5, 1]])
    colour = np.stack([values[0], values[0], values[0]])
    found = sights._windowed(colour, {"windows": [[0, 10]]}, 0, "x")
    np.testing.assert_allclose(found, [[[0] * 3, [0.5] * 3]])


def test_numbers_that_are_not_finite(
    wide_store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = FeatureStore.rows

    def broken(*arguments: Any) -> npt.NDArray[Any]:  # noqa: ANN401
        rows = read(*arguments).copy()
        rows[0, 2, 3, 4] = np.nan
        return rows

    monkeypatch.setattr(FeatureStore, "rows", broken)
    with pytest.raises(StoreDamagedError, match="'dense' of item '0001' has numbers"):
        facts(wide_store, tmp_path, items=("0001",))


# In a browser


def spoken(page: Any) -> dict[str, Any]:  # noqa: ANN401
    """Read what the live line says of the chosen patch: place -> cosine."""
    text = page.locator("#item-0 .said").inner_text().replace("\u2212", "-")
    pairs = re.findall(r"(\d+,\d+) \((-?[\d.]+)\)", text)
    return {"chosen": text.split(" (row")[0], **{place: float(value) for place, value in pairs}}


@needs_browser
def test_a_person_moves_about_the_pages(
    wide_store: FeatureStore, volumes: FeatureStore, tmp_path: Path
) -> None:
    facts(wide_store, tmp_path, items=("0003", "0001"), patch=(2, 3))
    facts(volumes, tmp_path / "volumes", items=("a",), patch=(1, 1))
    maps = wide_store.rows("dense", "0003")[0]
    tolerance = 0.02 + 0.005  # what the page states, and two digits

    def held(page: Any, y: int, x: int, maps: npt.NDArray[Any]) -> None:  # noqa: ANN401
        said = spoken(page)
        assert said.pop("chosen") == f"Patch {y},{x}"
        assert len(said) == 4
        for place, value in said.items():
            at = tuple(int(n) for n in place.split(","))
            assert value == pytest.approx(cosine(maps[y, x], maps[at]), abs=tolerance)

    with open_page(tmp_path / "index.html", width=1440) as opened:
        page = opened.page
        held(page, 2, 3, maps)
        area = page.locator("#item-0 .map")
        area.focus()
        for key in ("ArrowDown", "ArrowRight", "ArrowRight", "ArrowUp", "ArrowUp", "ArrowLeft"):
            page.keyboard.press(key)
        held(page, 1, 4, maps)
        page.keyboard.press("Home")
        for _ in range(3):
            page.keyboard.press("ArrowUp")  # stays at the rim
        held(page, 0, 0, maps)
        box = page.locator("#item-0 .image").bounding_box()
        assert box
        page.mouse.click(box["x"] + box["width"] * 6.5 / 7, box["y"] + box["height"] * 4.5 / 6)
        held(page, 4, 6, maps)
        box = area.bounding_box()
        assert box
        page.mouse.move(box["x"] + box["width"] * 1.5 / 7, box["y"] + box["height"] * 2.5 / 6)
        place, value = page.locator("#item-0 .hover").inner_text().split(": ")
        assert place == "2,1"
        found = float(value.replace("\u2212", "-"))
        assert found == pytest.approx(cosine(maps[4, 6], maps[2, 1]), abs=tolerance)
        painted = page.evaluate(
            "[...document.querySelector('#item-0 .map canvas').getContext('2d')"
            ".getImageData(6, 4, 1, 1).data]"
        )
        assert painted == [253, 231, 37, 255]  # the end of viridis: the patch itself
        assert opened.violations() == []
        page.click("#theme")
        assert page.locator("#theme").inner_text() == "Light theme"
        assert opened.violations() == []

        page.set_viewport_size({"width": 390, "height": 800})
        page.emulate_media(color_scheme="dark")
        page.goto((tmp_path / "volumes" / "index.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        before = page.locator("#item-0 .image img").get_attribute("src")
        page.select_option("#item-0 select", label="17")
        assert page.locator("#item-0 .image img").get_attribute("src") != before
        held(page, 1, 1, volumes.rows("dense", "a")[17])
        assert opened.violations() == []
        assert opened.errors == []
        assert [url for url in opened.requests if not url.startswith(("file:", "data:"))] == []
