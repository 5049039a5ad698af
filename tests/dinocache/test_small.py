"""Small stores: what is kept, by what, what it cost, and that nothing else changes."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import zarr
from making import contents, make_table, tiny_request
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from dinocache import calibration, documents
from dinocache.calibration import Calibration, Sample
from dinocache.cli import main
from dinocache.compacting import compact_store, form_name
from dinocache.copying import copy_store
from dinocache.deriving import derive_store
from dinocache.encoders import encoder_spec
from dinocache.engine import Engine
from dinocache.errors import ProbeError, RecipeMismatchError, RequestError, StoreDamagedError
from dinocache.extract import extract
from dinocache.folders import LocalFolder
from dinocache.inference import Encoder
from dinocache.layout import calibration_name
from dinocache.recipe import FormRecipe, StorageRecipe
from dinocache.repairing import repair
from dinocache.request import parse_storage
from dinocache.sample import draw
from dinocache.store import FeatureStore
from dinocache.verify import verify
from probes.features import check_same_recipe, store_facts

KINDS = ("cls", "mean", "dense")
INT8 = FormRecipe(dtype="int8")
SMALL = {"quantize": "int8", "pca": "11:dense", "codec": "zstd"}


def correlated(n: int, dim: int, *, seed: int = 7) -> npt.NDArray[np.float32]:
    """Vectors as encoders give them: few directions matter, channels have offsets of their own."""
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(n, 5)) @ np.random.default_rng(1).normal(size=(5, dim))
    noise = rng.normal(size=(n, dim)) * 0.1
    return (mixed + noise + np.linspace(-9, 9, dim)).astype(np.float32)


def sample(n: int = 300, m: int = 90, dim: int = 17) -> Sample:
    return Sample(
        fitted=correlated(n, dim),
        measured=correlated(m, dim, seed=8),
        fitted_items=12,
        measured_items=4,
        held_out=True,
    )


# What is fitted


def test_codes_by_hand() -> None:
    made = replace(
        Calibration.fit("cls", "d" * 32, INT8, sample(dim=3)),
        offset=np.array([1, 0, -2], np.float32),
        scale=np.array([0.5, 2, 1], np.float32),
    )
    x = np.array([[2, 4, -2], [1.3, -1.1, 200], [-100, 0, np.nan]], np.float32)
    stored, clipped = made.small(x, INT8)
    # (2-1)/.5, 4/2, 0; .3/.5 = .6, -.55, 202 -> 127; -202 -> -127, 0, nothing
    assert stored.tolist() == [[2, 2, 0], [1, -1, 127], [-127, 0, -128]]
    assert (stored.dtype, clipped) == (np.int8, 2)
    back = np.empty((2, 3), np.float32)
    made.read_into(back, stored[:2])
    np.testing.assert_array_equal(back, [[2, 4, -2], [1.5, -2, 125]])
    with pytest.raises(StoreDamagedError, match="nothing is there"):
        made.read_into(back, stored[1:])


def test_the_basis_is_that_of_scikit_learn() -> None:
    given = sample()
    made = Calibration.fit("dense", "d" * 32, FormRecipe(pca=4), given)
    theirs = PCA(4, svd_solver="full").fit(given.fitted.astype(np.float64))
    ours, expected = made.codes(given.measured), theirs.transform(given.measured)
    signs = np.sign((ours * expected).sum(0))
    np.testing.assert_allclose(ours * signs, expected, atol=2e-4)
    np.testing.assert_allclose(made.undone(ours), theirs.inverse_transform(expected), atol=2e-4)
    assert made.basis is not None
    np.testing.assert_allclose(made.basis.T @ made.basis, np.eye(4), atol=1e-6)
    # The largest number of each direction is positive, so that two fits agree in their signs.
    assert (made.basis[np.abs(made.basis).argmax(0), range(4)] > 0).all()
    assert made.scale is None
    rest = ((given.measured - theirs.inverse_transform(expected)) ** 2).sum()
    around = ((given.measured - theirs.mean_) ** 2).sum()
    assert made.cost.variance == pytest.approx(1 - rest / around, abs=1e-6)


@pytest.mark.parametrize("form", [INT8, FormRecipe(pca=3), FormRecipe(dtype="int8", pca=5)])
def test_the_cost_is_what_others_measure(form: FormRecipe) -> None:
    given = sample()
    made = Calibration.fit("cls", "d" * 32, form, given)
    stored, clipped = made.small(given.measured, form)
    read = stored.astype(np.float32)
    if made.scale is not None:
        made.read_into(read, stored)
    x, back = given.measured.astype(np.float64), made.undone(read).astype(np.float64)
    cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(x, back, strict=True)]
    nearest = [
        NearestNeighbors(n_neighbors=11, metric="cosine")
        .fit(values)
        .kneighbors(return_distance=False)[:, :10]
        for values in (x, read.astype(np.float64))
    ]
    shared = np.mean([len({*a} & {*b}) / 10 for a, b in zip(*nearest, strict=True)])
    cost = made.cost
    assert cost.cosine == pytest.approx(np.mean(cosines), abs=1e-9)
    assert cost.cosine_least == pytest.approx(min(cosines), abs=1e-9)
    error = np.sqrt(((x - back) ** 2).sum() / (x**2).sum())
    assert cost.relative_error == pytest.approx(error, rel=1e-6)
    assert cost.neighbours == pytest.approx(shared, abs=0.003)
    assert 0.2 < shared < 1 if form.pca else shared > 0.95
    assert (cost.items, cost.vectors, cost.held_out) == (4, 90, True)
    assert cost.clipped == (None if made.scale is None else clipped / stored.size)


def test_an_offset_saves_what_a_scale_alone_loses() -> None:
    """A channel far from zero that hardly moves has all of its 255 steps where it moves."""
    x = correlated(400, 6)
    x[:, 2] = 50 + 0.01 * x[:, 2]
    given = Sample(fitted=x, measured=x, fitted_items=3, measured_items=3, held_out=False)
    made = Calibration.fit("cls", "d" * 32, INT8, given)
    read = np.empty_like(x)
    made.read_into(read, made.small(x, INT8)[0])
    assert np.abs(read[:, 2] - x[:, 2]).max() < 0.02 * np.ptp(x[:, 2])
    without = 50 / 127  # a step of a scale that reaches from 0 to 50
    assert np.ptp(x[:, 2]) < without


def test_few_far_numbers_do_not_cost_all_others_their_steps() -> None:
    """Of 20,000 numbers two are a thousand times as large."""
    x = np.random.default_rng(2).normal(size=(20_000, 3)).astype(np.float32)
    x[[3, 700], 1] = 1000
    given = Sample(fitted=x, measured=x[1000:], fitted_items=3, measured_items=2, held_out=False)
    scale = Calibration.fit("cls", "d" * 32, INT8, given).scale
    assert scale is not None
    assert scale[1] < 1000 / 127 / 5
    assert np.abs(x[:, 0]).max() / 127 > scale[0] * 0.6


def test_a_channel_that_never_changes() -> None:
    x = correlated(50, 4)
    x[:, 1] = 3
    given = Sample(fitted=x, measured=x, fitted_items=3, measured_items=3, held_out=False)
    made = Calibration.fit("cls", "d" * 32, INT8, given)
    read = np.empty_like(x)
    made.read_into(read, made.small(x, INT8)[0])
    np.testing.assert_allclose(read[:, 1], 3, atol=1e-6)


def test_a_calibration_goes_through_its_file() -> None:
    form = FormRecipe(dtype="int8", pca=5)
    made = Calibration.fit("dense.L05.pet", "d" * 32, form, sample())
    read = Calibration.decode(made.encode(), "c.json", form=form, dim=17)
    assert read.encode() == made.encode()
    assert (read.kind, read.recipe, read.cost) == (made.kind, made.recipe, made.cost)
    np.testing.assert_array_equal(read.basis, made.basis)
    for other, dim in ((INT8, 17), (FormRecipe(pca=5), 17), (form, 16), (FormRecipe(pca=4), 17)):
        with pytest.raises(StoreDamagedError, match=r"c\.json is no calibration of"):
            Calibration.decode(made.encode(), "c.json", form=other, dim=dim)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": {"shape": [17], "float32": "!"}}, "no base64"),
        ({"scale": {"shape": [1 << 40], "float32": ""}}, "an array is"),
        ({"fitted_items": 0}, "fitted on nothing"),
        ({"cost": {"cosine": 1}}, r"cost|validation"),
        ({"offset": None}, "is no calibration"),
    ],
)
def test_a_calibration_that_somebody_made_up(change: dict[str, object], message: str) -> None:
    made = Calibration.fit("cls", "d" * 32, INT8, sample())
    body = documents.decode(made.encode(), "c.json") | change
    with pytest.raises(StoreDamagedError, match=message):
        Calibration.decode(documents.encode(body), "c.json", form=INT8, dim=17)


def test_scales_that_are_no_numbers() -> None:
    made = Calibration.fit("cls", "d" * 32, INT8, sample())
    for bad in (np.nan, 0.0, -1.0, np.inf):
        scale = np.full(17, bad, np.float32)
        with pytest.raises(StoreDamagedError, match=r"finite|not above 0"):
            Calibration.decode(replace(made, scale=scale).encode(), "c.json", form=INT8, dim=17)


# What is drawn


def test_what_is_drawn_depends_on_the_ids_alone(tiny_store: FeatureStore) -> None:
    segment, recipe = tiny_store.segments[0], tiny_store.header.recipe
    shares = draw(segment, recipe, KINDS)
    assert shares == draw(segment, recipe, KINDS)
    fitted = {share.item for share in shares if not share.measured}
    measured = {share.item for share in shares if share.measured}
    assert (len(fitted), len(measured)) == (28, 14)
    assert not fitted & measured
    gone = segment.item_ids[shares[0].item]
    assert shares[0].item not in {s.item for s in draw(segment, recipe, KINDS, absent=[gone])}


def test_long_items_give_runs_of_rows(tiny_store: FeatureStore) -> None:
    segment = replace(
        tiny_store.segments[0],
        item_ids=tuple(f"v{n}" for n in range(9)),
        item_rows=(5, 1000, 7, 3000, 40, 900, 2, 1100, 600),
    )
    shares = draw(segment, tiny_store.header.recipe, KINDS)
    rows = {share.item: [r for f, n in share.runs for r in range(f, f + n)] for share in shares}
    for item, drawn in rows.items():
        assert len(set(drawn)) == len(drawn)
        assert max(drawn) < segment.item_rows[item]
    fitted = sum(len(rows[s.item]) for s in shares if not s.measured)
    assert 200 <= fitted <= 400  # a twentieth of 6,654 rows, as far as short items allow
    assert max(rows[3]) > 2500
    assert min(rows[3]) < 500
    whole = draw(segment, tiny_store.header.recipe, KINDS, whole_items=True)
    assert all(share.runs == ((0, segment.item_rows[share.item]),) for share in whole)


# Extraction


@pytest.fixture(scope="module")
def plain(tiny_table: Path, tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """The 42 images in float32; do not change."""
    request = tiny_request(
        tiny_table, tmp_path_factory.mktemp("plain"), features=KINDS, dtype="float32"
    )
    return FeatureStore(extract(request).path)


@pytest.fixture(scope="module")
def small(tiny_table: Path, tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """The 42 images as int8, maps of 11 components, compressed; do not change."""
    root = tmp_path_factory.mktemp("small")
    outcome = extract(tiny_request(tiny_table, root, features=(*KINDS, "image"), **SMALL))
    assert outcome.complete
    return FeatureStore(outcome.path)


@pytest.fixture
def copy(small: FeatureStore, tmp_path: Path) -> Path:
    return shutil.copytree(small.path, tmp_path / "copy")


def test_what_is_stored_is_what_was_encoded(plain: FeatureStore, small: FeatureStore) -> None:
    for kind in KINDS:
        fitted = small.calibration(kind)
        assert fitted is not None
        assert fitted.scale is not None
        assert (fitted.basis is not None) == (kind == "dense")
        theirs, ours = plain.all_rows(kind), small.all_rows(kind)
        assert (theirs.dtype, ours.dtype) == (np.float32, np.float32)
        expected = theirs if fitted.basis is None else (theirs - fitted.offset) @ fitted.basis
        off = np.abs(ours - expected) / fitted.scale
        assert (off <= 0.5 + 1e-3).mean() > 0.999  # but for what was cut off
        assert off.max() < 40
        record = small.record("0001-00000", kind)
        assert record is not None
        assert record.fitted is not None
        assert record.fitted.clipped is not None
        assert record.fitted.clipped < 0.002 * record.fitted.numbers
        assert record.fitted.numbers == 16 * ours[0].size
    assert small.all_rows("dense").shape == (42, 2, 3, 11)
    ids, means = small.item_vectors("cls")
    np.testing.assert_array_equal(means, small.all_rows("cls"))
    assert len(ids) == 42


def test_plain_zarr_reads_it_with_the_formula_of_the_documentation(small: FeatureStore) -> None:
    group = zarr.open_group(small.path / "features.zarr", mode="r")
    cls = np.asarray(group["cls"])[:42].astype(np.float32)
    got = cls * np.asarray(group["cls_scale"]) + np.asarray(group["cls_offset"])
    np.testing.assert_array_equal(got, small.all_rows("cls"))
    dense = np.asarray(group["dense"])
    np.testing.assert_array_equal(
        dense[:42].astype(np.float32) * np.asarray(group["dense_scale"]), small.all_rows("dense")
    )
    assert (dense[42:] == -128).all()
    fitted = small.calibration("dense")
    assert fitted is not None
    np.testing.assert_array_equal(group["dense_basis"], fitted.basis)
    np.testing.assert_array_equal(group["dense_offset"], fitted.offset)


def test_float32_is_what_float16_was_rounded_from(
    plain: FeatureStore, tiny_store: FeatureStore
) -> None:
    for kind in KINDS:
        full, half = plain.all_rows(kind), tiny_store.all_rows(kind)
        assert (full.dtype, half.dtype) == (np.float32, np.float16)
        np.testing.assert_array_equal(full.astype(np.float16), half)
    assert plain.header.format == tiny_store.header.format == 5
    assert plain.calibration("cls") is None


@pytest.mark.parametrize("parts", [1, 3])
def test_the_same_bytes_however_it_is_done(
    small: FeatureStore, tiny_table: Path, tmp_path: Path, parts: int
) -> None:
    for number in range(parts, 0, -1):
        part = (number, parts) if parts > 1 else None
        request = tiny_request(
            tiny_table, tmp_path, features=(*KINDS, "image"), part=part, workers=1, **SMALL
        )
        outcome = extract(request)
    assert contents(outcome.path) == contents(small.path)


def test_killed_behind_the_calibration(
    small: FeatureStore, tiny_table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = tiny_request(tiny_table, tmp_path, features=(*KINDS, "image"), **SMALL)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Engine, "run", killed)
        with pytest.raises(KeyboardInterrupt):
            extract(request)
    name = f"{tiny_table.stem}/tiny/32x48"
    held = (tmp_path / name / "calibration/dense.json").read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(calibration, "_scale", lambda _: pytest.fail("it was fitted again"))
        outcome = extract(request)
    assert (outcome.path / "calibration/dense.json").read_bytes() == held
    assert contents(outcome.path) == contents(small.path)


def test_of_two_that_fit_the_first_holds(
    small: FeatureStore, tiny_table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second goes on with the first's, whatever it found itself."""
    request = tiny_request(tiny_table, tmp_path, features=(*KINDS, "image"), **SMALL)
    plain_fit = Calibration.fit

    def raced(kind: str, *given: object, **more: object) -> Calibration:
        made = plain_fit(kind, *given, **more)  # type: ignore[arg-type]
        folder = tmp_path / f"{tiny_table.stem}/tiny/32x48"
        LocalFolder(folder).create(calibration_name(kind), made.encode())
        assert made.scale is not None
        return replace(made, scale=made.scale * np.float32(1.5))

    monkeypatch.setattr(Calibration, "fit", raced)
    assert contents(extract(request).path) == contents(small.path)


def test_what_is_appended_is_made_small_by_the_same(tmp_path: Path) -> None:
    table = make_table(tmp_path, 70)
    few = tmp_path / "few.csv"
    pd.read_csv(table, dtype=str).head(40).to_csv(few, index=False)
    first = extract(tiny_request(few, tmp_path / "f", name="x", features=KINDS, **SMALL))
    held = (first.path / "calibration/cls.json").read_bytes()
    outcome = extract(
        tiny_request(table, tmp_path / "f", name="x", features=KINDS, append=True, **SMALL)
    )
    assert outcome.complete
    store = FeatureStore(outcome.path)
    assert len(store.segments) == 2
    assert (outcome.path / "calibration/cls.json").read_bytes() == held
    assert store.all_rows("dense").shape == (70, 2, 3, 11)
    assert verify(outcome.path).exit_code == 0


def test_a_kind_that_comes_later_is_fitted_then(tiny_table: Path, tmp_path: Path) -> None:
    extract(tiny_request(tiny_table, tmp_path, features=("cls",), quantize="int8"))
    path = extract(tiny_request(tiny_table, tmp_path, features=("cls", "dense.L00"))).path
    store = FeatureStore(path)
    assert sorted(p.name for p in (path / "calibration").iterdir()) == [
        "cls.json",
        "dense.L00.json",
    ]
    fitted = store.calibration("dense.L00")
    assert fitted is not None
    assert fitted.cost.vectors == 14 * 6  # of the items that are held out, all patches
    assert verify(path).exit_code == 0


def test_items_that_cannot_be_read_are_left_out_of_the_sample(tmp_path: Path) -> None:
    table = make_table(tmp_path, 36)
    for number in (3, 17, 30):
        (tmp_path / f"png/{number:04d}.png").write_bytes(b"no image")
    outcome = extract(tiny_request(table, tmp_path / "f", features=KINDS, quantize="int8"))
    assert len(outcome.failures) == 3
    store = FeatureStore(outcome.path)
    fitted = store.calibration("cls")
    assert fitted is not None
    assert fitted.fitted_items + fitted.cost.items == 33
    assert store.all_rows("cls").shape == (33, 48)
    raw = np.asarray(zarr.open_group(outcome.path / "features.zarr")["cls"])
    assert [n for n in range(36) if (raw[n] == -128).all()] == [3, 17, 30]


def test_nothing_of_the_sample_can_be_read(tmp_path: Path) -> None:
    table = make_table(tmp_path, 5)
    for path in (tmp_path / "png").iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(RequestError, match="none of the items that were drawn for it can be read"):
        extract(tiny_request(table, tmp_path / "f", features=KINDS, quantize="int8"))


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e6])
def test_features_that_cannot_be_kept(
    tiny_table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: float
) -> None:
    """What is NaN or infinite fails; a million is cut off, and counted."""
    import torch

    plain_call = Encoder.__call__
    passes: list[int] = []

    def broken(self: Encoder, images: torch.Tensor, kinds: object) -> dict[str, torch.Tensor]:
        found = plain_call(self, images, kinds)  # type: ignore[arg-type]
        passes.append(len(images))
        if len(passes) == 12:  # six were for the sample
            cls = found["cls"].clone()
            cls[1, 5] = bad
            return found | {"cls": cls}
        return found

    monkeypatch.setattr(Encoder, "__call__", broken)
    outcome = extract(tiny_request(tiny_table, tmp_path, features=("cls",), quantize="int8"))
    store = FeatureStore(outcome.path)
    if np.isfinite(bad):
        assert not outcome.failures
        record = store.record("0001-00002", "cls")
        assert record is not None
        assert record.fitted is not None
        assert record.fitted.clipped
    else:
        assert [f.item_id for f in outcome.failures] == ["0041"]
        assert "NaN or infinite" in outcome.failures[0].failure.reason
        assert len(store.item_vectors("cls")[0]) == 41


# Damage


@pytest.mark.parametrize("kind", ["cls", pytest.param("dense", marks=pytest.mark.long)])
def test_every_flipped_bit_of_a_calibration_is_found(copy: Path, kind: str) -> None:
    path = copy / calibration_name(kind)
    content = path.read_bytes()
    rng = np.random.default_rng(4)
    for at in rng.choice(len(content), 25, replace=False).tolist():
        harmed = bytearray(content)
        harmed[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(harmed)
        found = verify(copy)
        assert [damage.file for damage in found.damages] == [calibration_name(kind)]
        with pytest.raises(StoreDamagedError):
            FeatureStore(copy).rows(kind, "0007")
    path.write_bytes(content)
    assert verify(copy).exit_code == 0


@pytest.mark.parametrize("how", ["missing", "another"])
def test_a_calibration_that_is_not_the_one(copy: Path, how: str) -> None:
    store = FeatureStore(copy)
    path = copy / calibration_name("cls")
    held = store.calibration("cls")
    assert held is not None
    assert held.scale is not None
    path.unlink()
    if how == "another":  # whole, of this store, and wrong
        path.write_bytes(replace(held, scale=held.scale * np.float32(2)).encode())
    with pytest.raises(StoreDamagedError, match=r"calibration/cls\.json is"):
        FeatureStore(copy).all_rows("cls")
    found = verify(copy)
    assert found.exit_code == 1
    named = [d for d in found.damages if d.file == "calibration/cls.json"]
    assert len(named) == 1
    assert len(named[0].items) == 42


@pytest.mark.parametrize("with_source", [False, True])
def test_repair(
    small: FeatureStore, copy: Path, tiny_table: Path, tmp_path: Path, with_source: bool
) -> None:
    """What was fitted is copied, or fitted again from the same rows: the same bytes."""
    path = copy / calibration_name("dense")
    path.write_bytes(path.read_bytes()[:-7])
    mended = repair(copy, source=small.path if with_source else None)
    assert not mended.units
    if not with_source:
        home = tmp_path / "f" / tiny_table.stem / "tiny" / "32x48"
        shutil.copytree(copy, home)
        extract(tiny_request(tiny_table, tmp_path / "f"))
        copy = home
    assert contents(copy) == contents(small.path)


def test_repair_of_units_that_were_written_by_another(copy: Path) -> None:
    store = FeatureStore(copy)
    held = store.calibration("cls")
    assert held is not None
    assert held.scale is not None
    path = copy / calibration_name("cls")
    path.unlink()
    path.write_bytes(replace(held, scale=held.scale * np.float32(2)).encode())
    mended = repair(copy)
    assert set(mended.units) == {f"0001-0000{n}.cls" for n in range(3)}
    assert path.is_file()


# Copies


def test_parts_bring_what_they_need(small: FeatureStore, tmp_path: Path) -> None:
    target = LocalFolder(tmp_path / "t")
    copied = copy_store(small, target, kinds=["item_cls", "mean"])
    assert sorted(p.name for p in (tmp_path / "t/calibration").iterdir()) == [
        "cls.json",
        "mean.json",
    ]
    np.testing.assert_array_equal(copied.store.all_rows("mean"), small.all_rows("mean"))
    assert verify(tmp_path / "t").exit_code == 0
    copy_store(small, target)
    assert contents(tmp_path / "t") == contents(small.path)


def test_some_items_are_a_store_of_the_same_codes(small: FeatureStore, tmp_path: Path) -> None:
    ids = [f"{n:04d}" for n in range(3, 42, 5)]
    made = derive_store(small, LocalFolder(tmp_path / "t"), ids)
    for item_id in ids:
        for kind in KINDS:
            np.testing.assert_array_equal(
                made.stored_rows(kind, item_id), small.stored_rows(kind, item_id)
            )
            assert made.stored_rows(kind, item_id).dtype == np.int8
    assert verify(tmp_path / "t").exit_code == 0
    first, second = (store.calibration("dense") for store in (made, small))
    assert first is not None
    assert second is not None
    assert first.encode() == second.encode()


# Another form


def test_compacted_is_what_would_have_been_extracted(
    plain: FeatureStore, small: FeatureStore, tmp_path: Path
) -> None:
    """From float32, with the same bases and scales: the same codes, but for ties."""
    storage = small.header.recipe.storage
    made = compact_store(plain, LocalFolder(tmp_path / "t"), storage, "zstd", like=small)
    assert made.is_complete
    assert verify(tmp_path / "t").exit_code == 0
    assert made.header.digest == small.header.digest
    for kind in KINDS:
        for item_id in ("0000", "0019", "0041"):
            ours, theirs = (s.stored_rows(kind, item_id) for s in (made, small))
            off = np.abs(ours.astype(int) - theirs)
            assert off.max() <= 1
            assert (off > 0).mean() < 0.01
    fitted = compact_store(plain, LocalFolder(tmp_path / "u"), storage, "zstd")
    for kind in KINDS:
        first, second = fitted.calibration(kind), small.calibration(kind)
        assert first is not None
        assert second is not None
        np.testing.assert_allclose(first.offset, second.offset, atol=1e-5)
        np.testing.assert_allclose(first.scale, second.scale, rtol=1e-3)
        assert first.cost.cosine == pytest.approx(second.cost.cosine, abs=1e-4)


def test_rounding_stays_said(tiny_store: FeatureStore, tmp_path: Path) -> None:
    storage = StorageRecipe(vectors=INT8, dense=INT8)
    made = compact_store(tiny_store, LocalFolder(tmp_path / "t"), storage, "none", variant="int8")
    assert made.header.recipe.storage.dense == FormRecipe(dtype="int8", rounded="float16")
    assert made.header.variant == "int8"
    assert made.header.provenance["compacted"].startswith(tiny_store.header.digest)
    np.testing.assert_array_equal(
        made.native("image", "0031")[0], tiny_store.native("image", "0031")[0]
    )
    for kind in KINDS:
        assert made.all_rows(kind).shape == tiny_store.all_rows(kind).shape
    # Only the compression changes then: the same codes, the same calibration.
    again = compact_store(made, LocalFolder(tmp_path / "u"), storage, "blosc")
    assert again.header.digest == made.header.digest
    np.testing.assert_array_equal(again.all_rows("dense"), made.all_rows("dense"))
    assert verify(tmp_path / "u").exit_code == 0
    sizes = [sum(e.bytes for e in s.folder.walk("features.zarr/dense")) for s in (made, tiny_store)]
    assert sizes[0] < 0.56 * sizes[1]


def test_what_was_left_out_does_not_come_back(small: FeatureStore, tmp_path: Path) -> None:
    target = LocalFolder(tmp_path / "t")
    for storage in (StorageRecipe(), StorageRecipe(vectors=INT8, dense=INT8)):
        with pytest.raises(RequestError, match="what was left out does not come back"):
            compact_store(small, target, storage, "none")
    assert not (tmp_path / "t").exists()


def test_compaction_goes_on(
    plain: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = StorageRecipe(vectors=INT8, dense=FormRecipe(pca=7))
    whole = compact_store(plain, LocalFolder(tmp_path / "whole"), storage, "none")
    target = LocalFolder(tmp_path / "t")

    def stop(done: int, _: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compact_store(plain, target, storage, "none", tell=stop)
    assert verify(tmp_path / "t").exit_code == 3
    done: list[int] = []
    compact_store(plain, target, storage, "none", tell=lambda n, _: done.append(n))
    assert len(done) == len(whole.work()) - 4
    assert contents(tmp_path / "t") == contents(tmp_path / "whole")
    with pytest.raises(RecipeMismatchError, match="is another store"):
        compact_store(plain, target, StorageRecipe(vectors=INT8), "none")


def test_only_some_kinds(tiny_store: FeatureStore, tmp_path: Path) -> None:
    storage = StorageRecipe(vectors=INT8)
    made = compact_store(tiny_store, LocalFolder(tmp_path / "t"), storage, "none", kinds=["cls"])
    assert made.kinds == ("cls",)
    assert made.part is not None
    assert made.is_complete
    assert verify(tmp_path / "t").exit_code == 0
    with pytest.raises(RequestError, match=r"has no 'embed'; choose from cls"):
        compact_store(tiny_store, LocalFolder(tmp_path / "u"), storage, "none", kinds=["embed"])


def test_numbers_that_float16_cannot_hold(plain: FeatureStore, tmp_path: Path) -> None:
    source = FeatureStore(plain.path)
    array = source._array("cls")
    source._arrays["cls"] = array
    read_into = array.read_into

    def large(block: npt.NDArray[np.float32], start: int) -> None:
        read_into(block, start)
        block[-1, 3] = 70_000

    array.read_into = large  # type: ignore[method-assign]
    with pytest.raises(RequestError, match="cls of unit 0001-00000 has features that do not fit"):
        compact_store(source, LocalFolder(tmp_path / "t"), StorageRecipe(), "none")


@pytest.mark.parametrize(
    ("storage", "codec", "name"),
    [
        (StorageRecipe(), "none", ""),
        (StorageRecipe(), "zstd", "zstd"),
        (StorageRecipe(vectors=INT8, dense=INT8), "none", "int8"),
        (StorageRecipe(dense=FormRecipe(dtype="int8", pca=64)), "blosc", "dense-pca64-int8-blosc"),
        (StorageRecipe(vectors=FormRecipe(dtype="float32")), "none", "float32"),
    ],
)
def test_forms_have_names(storage: StorageRecipe, codec: str, name: str) -> None:
    assert form_name(storage, codec) == name  # type: ignore[arg-type]


# What is asked


@pytest.mark.parametrize(
    ("said", "vectors", "dense"),
    [
        ({"quantize": "int8"}, INT8, INT8),
        ({"quantize": "int8:dense"}, FormRecipe(), INT8),
        ({"quantize": "int8", "pca": "64:dense"}, INT8, FormRecipe(dtype="int8", pca=64)),
        ({"pca": "64:dense,128:vectors"}, FormRecipe(pca=128), FormRecipe(pca=64)),
        ({"dtype": "float32"}, FormRecipe(dtype="float32"), FormRecipe(dtype="float32")),
        ({"dtype": "float32:vectors", "quantize": "int8:dense"}, FormRecipe(dtype="float32"), INT8),
    ],
)
def test_words(said: dict[str, str], vectors: FormRecipe, dense: FormRecipe) -> None:
    expected = StorageRecipe(vectors=vectors, dense=dense)
    assert parse_storage(StorageRecipe(), **said) == expected
    assert parse_storage(expected) == expected
    assert parse_storage(expected, quantize="none", pca="none").dense.is_fitted is False


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"quantize": "int4"}, "--quantize 'int4': give int8 or none; for maps alone int8:dense"),
        ({"quantize": "int8:maps"}, "--quantize 'int8:maps'"),
        ({"quantize": "int8:dense,none"}, "--quantize 'int8:dense,none'"),
        ({"pca": "0"}, "--pca '0': give a number of components, or none"),
        ({"pca": "many"}, "--pca 'many'"),
        ({"dtype": "int8"}, "--dtype 'int8': give float16 or float32"),
        ({"dtype": "float32", "quantize": "int8"}, "dense cannot be kept as both|vectors cannot"),
    ],
)
def test_words_that_say_nothing(said: dict[str, str], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        parse_storage(StorageRecipe(), **said)


def test_a_store_keeps_its_form(small: FeatureStore, tiny_table: Path, tmp_path: Path) -> None:
    """What is not said is as the store has it; what is said otherwise is refused by name."""
    home = tmp_path / tiny_table.stem / "tiny" / "32x48"
    shutil.copytree(small.path, home)
    before = contents(home)
    extract(tiny_request(tiny_table, tmp_path))
    extract(tiny_request(tiny_table, tmp_path, quantize="int8"))
    assert contents(home) == before
    for said, message in (
        ({"quantize": "none"}, "storage.vectors.dtype: int8 in the store, float16 asked for"),
        ({"pca": "12:dense"}, "storage.dense.pca: 11 in the store, 12 asked for"),
        ({"codec": "none"}, "--codec: zstd in the store, none asked for"),
    ):
        with pytest.raises(RecipeMismatchError, match=message):
            extract(tiny_request(tiny_table, tmp_path, **said))


def test_more_components_than_there_can_be(tiny_table: Path, tmp_path: Path) -> None:
    for said, message in (
        ("49:dense", "dense of tiny has 48 channels; give at most 48"),
        ("30", "cls is fitted on 28 of 42 rows; give at most 27, or --pca 30:dense"),
    ):
        with pytest.raises(RequestError, match=message):
            extract(tiny_request(tiny_table, tmp_path, features=("cls", "dense"), pca=said))
    assert not list(tmp_path.iterdir())


def test_commands(
    tiny_store: FeatureStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "f/x/tiny/32x48"
    shutil.copytree(tiny_store.path, home)
    assert main(["compact", str(home), "--quantize", "int8:dense", "--codec", "zstd"]) == 0
    said = capsys.readouterr().out
    made = home.with_name("32x48-dense-int8-zstd")
    assert f"{made}: complete; features" in said
    assert "dense, kept small: cosine 0.99" in said
    assert main(["info", str(made)]) == 0
    said = capsys.readouterr().out
    assert "vectors float16; dense int8 (float16 before); compressed by zstd" in said
    assert "of all numbers cut off; measured on" in said
    assert main(["info", str(made), "--json"]) == 0
    cost = json.loads(capsys.readouterr().out)["storage"]["dense"]
    assert cost["cosine"] > 0.99
    assert 0 <= cost["clipped_in_all"] < 0.01
    assert main(["compact", str(home), "--to", str(tmp_path / "g"), "--pca", "9", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["complete"]
    dataset = tiny_store.header.dataset
    assert FeatureStore(tmp_path / f"g/{dataset}/tiny/32x48-pca9").all_rows("mean").shape == (42, 9)
    for words, message in (
        (["compact", str(home)], "say in which form"),
        (["compact", str(made), "--quantize", "none"], "what was left out does not come back"),
        (["compact", str(home), "--codec", "lzma"], "--codec 'lzma': choose from none, zstd"),
        (["compact", str(home), "--pca", "60"], "give at most"),
    ):
        assert main(words) == 2
        err = capsys.readouterr().err
        assert message in err
        assert err.count("\n") == 1


# Components of another basis are other features


def test_stores_of_other_bases(tmp_path: Path, tiny_table: Path) -> None:
    other = make_table(tmp_path / "b", 33, seed=5)
    given = {"features": ("cls", "dense"), "pca": "6", "device": "cpu"}
    one = extract(tiny_request(tiny_table, tmp_path / "f", name="one", **given)).path
    two = extract(tiny_request(other, tmp_path / "f", name="two", **given)).path
    with pytest.raises(ProbeError, match="principal components of cls, dense by another basis"):
        check_same_recipe(store_facts(one), two)
    check_same_recipe(store_facts(one), one)
    three = extract(
        tiny_request(other, tmp_path / "f", name="three", calibration=str(one), **given)
    ).path
    check_same_recipe(store_facts(one), three)
    fitted, taken = (FeatureStore(path).calibration("cls") for path in (one, three))
    assert fitted is not None
    assert taken is not None
    np.testing.assert_array_equal(fitted.basis, taken.basis)
    assert fitted.cost.cosine != taken.cost.cosine  # measured on its own items
    with pytest.raises(RequestError, match=r"--calibration .*: it keeps tiny as"):
        extract(
            tiny_request(
                other, tmp_path / "f", name="four", calibration=str(one), features=("cls",)
            )
        )
    assert encoder_spec("tiny").dim == 48


def test_small_stores_on_a_server(
    small: FeatureStore, tiny_table: Path, tmp_path: Path, bucket: tuple[str, object]
) -> None:
    """Extracted to S3, read there, and pulled: the same bytes."""
    root, _ = bucket
    outcome = extract(tiny_request(tiny_table, root, features=(*KINDS, "image"), **SMALL))
    there = FeatureStore(outcome.store)
    np.testing.assert_array_equal(there.all_rows("dense"), small.all_rows("dense"))
    np.testing.assert_array_equal(there.rows("cls", "0017"), small.rows("cls", "0017"))
    copy_store(there, LocalFolder(tmp_path / "t"))
    assert contents(tmp_path / "t") == contents(small.path)
    made = compact_store(
        there, LocalFolder(tmp_path / "u"), small.header.recipe.storage, "none", kinds=["dense"]
    )
    np.testing.assert_array_equal(made.all_rows("dense"), small.all_rows("dense"))
