"""Extraction: what is missing is done, bad items are named, and nothing stored is lost."""

import errno
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from making import make_table, tiny_request

from dinocache.encoders import encoder_spec
from dinocache.errors import (
    RecipeMismatchError,
    RequestError,
    StoreIncompleteError,
    StoreWriteError,
    WeightsError,
)
from dinocache.extract import extract, relabel
from dinocache.inference import Encoder, load_encoder
from dinocache.layout import FEATURES
from dinocache.progress import QuietProgress
from dinocache.recipe import WindowRecipe
from dinocache.request import parse_resolution, parse_windows
from dinocache.store import FeatureStore
from dinocache.verify import verify


def stamps(store: Path) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in store.rglob("c.*") if p.is_file()}


def ctime(path: Path) -> int:
    return path.stat().st_ctime_ns


def test_a_second_run_finds_nothing_to_do(tmp_path: Path) -> None:
    request = tiny_request(make_table(tmp_path, 19), tmp_path / "f")
    first = extract(request)
    before = stamps(first.path)
    second = extract(request)
    assert (first.rows, first.units, first.complete) == (19, 2, True)
    assert (second.rows, second.units, second.complete) == (0, 0, True)
    assert stamps(first.path) == before


def test_a_kind_can_be_added_later_and_only_it_is_computed(tmp_path: Path) -> None:
    table = make_table(tmp_path, 19)
    path = extract(tiny_request(table, tmp_path / "f", features=("cls",))).path
    before = stamps(path)
    added = extract(tiny_request(table, tmp_path / "f", features=("cls", "mean", "dense", "image")))
    assert added.complete
    assert added.units == 2
    assert {k: v for k, v in stamps(path).items() if k in before} == before
    at_once = extract(
        tiny_request(table, tmp_path / "g", features=("cls", "mean", "dense", "image"))
    )
    for kind in ("cls", "mean", "dense"):
        for item_id in ("0000", "0018"):
            np.testing.assert_array_equal(
                FeatureStore(path).rows(kind, item_id),
                FeatureStore(at_once.path).rows(kind, item_id),
            )
    assert verify(path).exit_code == 0


def test_appended_items_are_a_new_segment(tmp_path: Path) -> None:
    table = make_table(tmp_path, 23)
    whole = pd.read_csv(table, dtype={"item_id": str})
    few = tmp_path / "few.csv"
    whole[:17].to_csv(few, index=False)
    path = extract(tiny_request(few, tmp_path / "f", name="x")).path
    before = stamps(path)
    with pytest.raises(
        RecipeMismatchError, match="has 6 others \\(as '0017'\\) and lacks 0\\. --append"
    ):
        extract(tiny_request(table, tmp_path / "f", name="x"))
    appended = extract(tiny_request(table, tmp_path / "f", name="x", append=True))
    store = FeatureStore(path)
    assert appended.rows == 6
    assert appended.complete
    assert [s.row_start for s in store.segments] == [0, 32]
    assert {k: v for k, v in stamps(path).items() if k in before} == before
    ids, vectors = store.item_vectors("cls")
    assert ids == list(whole["item_id"])
    assert np.isfinite(vectors).all()
    assert verify(path).exit_code == 0


def test_sources_that_changed_are_named_and_extracted_anew_if_asked(tmp_path: Path) -> None:
    table = make_table(tmp_path, 21)
    path = extract(tiny_request(table, tmp_path / "f")).path
    before, kept = FeatureStore(path), stamps(path)
    shutil.copyfile(tmp_path / "png/0002.png", tmp_path / "png/0005.png")
    (tmp_path / "png/0007.png").unlink()
    said = QuietProgress()
    assert extract(tiny_request(table, tmp_path / "f"), said).units == 0
    changed, missing = said.notes
    assert changed.startswith("note: the files of 1 items have changed since they were planned, as")
    assert "0005 (" in changed
    assert "--retry-changed" in changed
    assert "1 items are gone, as 0007" in missing
    again = extract(tiny_request(table, tmp_path / "f", retry_changed=True))
    assert (again.rows, again.complete, again.failures) == (1, True, ())
    after = FeatureStore(path)
    np.testing.assert_array_equal(after.rows("cls", "0005"), after.rows("cls", "0002"))
    np.testing.assert_array_equal(after.rows("cls", "0007"), before.rows("cls", "0007"))
    assert {k: v for k, v in stamps(path).items() if k in kept} == kept
    assert verify(path).exit_code == 0
    assert extract(tiny_request(table, tmp_path / "f", retry_changed=True)).units == 0


def test_bad_items_are_named_and_tried_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = make_table(tmp_path, 21)
    mended = {}
    for name, content in {
        "0003": None,
        "0004": (tmp_path / "png/0004.png").read_bytes()[:700],
        "0018": b"not an image",
    }.items():
        file = tmp_path / f"png/{name}.png"
        mended[file] = file.read_bytes()
        file.unlink()
        if content is not None:
            file.write_bytes(content)
    features = ("cls", "dense", "image")
    outcome = extract(tiny_request(table, tmp_path / "f", features=features))
    reasons = {f.item_id: f.failure.reason for f in outcome.failures}
    assert reasons["0003"] == "the file is missing"
    assert "PNG" in reasons["0004"]
    assert reasons["0018"] == "not an image: PNG, JPEG, TIFF, BMP or WebP was expected"
    assert len(reasons) == 3
    assert outcome.failures[0].failure.path == "png/0003.png"
    assert outcome.complete
    store = FeatureStore(outcome.path)
    assert len(store.item_vectors("cls")[0]) == 18
    with pytest.raises(StoreIncompleteError, match="`dinocache failures` says why"):
        store.rows("cls", "0003")
    # The neighbours' features are those of a run in which nothing failed.
    for file, content in mended.items():
        file.write_bytes(content)
    whole = FeatureStore(extract(tiny_request(table, tmp_path / "g", features=features)).path)
    for item_id in ("0002", "0005", "0020"):
        np.testing.assert_array_equal(store.rows("cls", item_id), whole.rows("cls", item_id))
    assert verify(outcome.path).exit_code == 0

    again = extract(tiny_request(table, tmp_path / "f", features=features, retry_failed=True))
    assert (again.rows, again.failures) == (3, ())
    store = FeatureStore(outcome.path)
    ids, vectors = store.item_vectors("cls")
    assert ids == whole.item_vectors("cls")[0]
    np.testing.assert_allclose(vectors, whole.item_vectors("cls")[1], atol=2e-3)
    assert store.native("image", "0004")[0].shape == (1, 1, 44, 54)
    assert verify(outcome.path).exit_code == 0
    assert capsys.readouterr().out == ""


def test_features_that_float16_cannot_hold_are_failures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Encoder.__call__

    def spoiled(
        self: Encoder, pixels: torch.Tensor, kinds: Sequence[str]
    ) -> dict[str, torch.Tensor]:
        features = {kind: values.clone() for kind, values in plain(self, pixels, kinds).items()}
        if len(pixels) == 8:
            features["cls"][1, 5] = float("nan")
            features["cls"][2, 6] = 65505.0
            features["cls"][3, 7] = 65504.0
            features["dense"][4, 0, 1, 2] = float("-inf")
            features["mean"][4, 2] = float("-inf")
        return features

    monkeypatch.setattr(Encoder, "__call__", spoiled)
    features = ("cls", "mean", "dense")
    outcome = extract(tiny_request(make_table(tmp_path, 11), tmp_path / "f", features=features))
    failed = {f.item_id: (f.kinds, f.failure.reason) for f in outcome.failures}
    assert failed == {
        "0001": (("cls",), "cls: features are NaN or infinite"),
        "0002": (("cls",), "cls: a feature of 65505 does not fit float16 (at most 65504)"),
        "0004": (("mean", "dense"), "mean: features are NaN or infinite"),
    }
    store = FeatureStore(outcome.path)
    assert float(store.rows("cls", "0003")[0, 7]) == 65504.0
    assert store.item_vectors("cls")[0] == [f"{i:04d}" for i in (0, *range(3, 11))]


def test_masks(tmp_path: Path) -> None:
    from PIL import Image

    table = make_table(tmp_path, 5)
    items = pd.read_csv(table, dtype={"item_id": str})
    labels = np.arange(43 * 53).reshape(43, 53) % 7
    Image.fromarray(labels.astype(np.uint8)).save(tmp_path / "mask3.png")
    Image.fromarray(labels[:, 1:].astype(np.uint8)).save(tmp_path / "mask4.png")
    items["mask"] = ["", "", "", "mask3.png", "mask4.png"]
    items.to_csv(table, index=False)
    outcome = extract(tiny_request(table, tmp_path / "f", features=("cls", "mask")))
    (failed,) = outcome.failures
    assert failed.kinds == ("mask",)
    assert failed.failure.reason == ("mask mask4.png: its mask has 43 x 52 px, the image 44 x 54")
    store = FeatureStore(outcome.path)
    np.testing.assert_array_equal(store.native("mask", "0003")[0][0, 0], labels)
    assert len(store.item_vectors("cls")[0]) == 5
    with pytest.raises(StoreIncompleteError, match="or it has none"):
        store.native("mask", "0000")
    assert outcome.complete
    assert verify(outcome.path).exit_code == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": "random:1"}, "encoder.weights.sha256: .* in the store"),
        ({"rope": "float32"}, "encoder.rope: bfloat16 in the store, float32 asked for"),
        ({"precision": "bf16"}, "precision: fp32 in the store, bf16 asked for"),
        ({"resize": "pad"}, "input.resize.mode: squash in the store, pad asked for"),
        ({"arithmetic": "uint8"}, "input.resize.arithmetic: float32 in the store, uint8 asked"),
        (
            {"windows": (WindowRecipe(mode="min-max"),)},
            "input.windows.0.mode: full-range in the store, min-max asked for",
        ),
        ({"compiled": True}, "--compile: False in the store, True asked for"),
        ({"batch": 4}, "--batch: 8 in the store, 4 asked for"),
        ({"unit_rows": 64}, "--unit-rows: 16 in the store, 64 asked for"),
    ],
)
def test_another_recipe_is_refused(
    tiny_store: FeatureStore, tiny_table: Path, change: dict[str, object], message: str
) -> None:
    root = tiny_store.path.parents[2]
    before = stamps(tiny_store.path)
    with pytest.raises(RecipeMismatchError, match=f"{message}.*--variant NAME"):
        extract(tiny_request(tiny_table, root, **change))
    assert stamps(tiny_store.path) == before


def test_a_variant_has_a_folder_of_its_own(tmp_path: Path) -> None:
    table = make_table(tmp_path, 3)
    extract(tiny_request(table, tmp_path / "f"))
    other = extract(tiny_request(table, tmp_path / "f", rope="float32", variant="exact"))
    assert other.path.name == "32x48-exact"
    assert FeatureStore(other.path).header.recipe.encoder.rope == "float32"


def test_what_the_store_has_is_the_default(tmp_path: Path) -> None:
    table = make_table(tmp_path, 18)
    request = tiny_request(table, tmp_path / "f", rope="float32", features=("mean",), batch=4)
    path = extract(request).path
    items = pd.read_csv(table, dtype={"item_id": str})
    pd.concat([items, items[:1].assign(item_id="new")]).to_csv(table, index=False)
    plain = tiny_request(
        table, tmp_path / "f", weights=None, unit_rows=None, batch=None, features=None, append=True
    )
    outcome = extract(plain)
    assert (outcome.path, outcome.rows, outcome.complete) == (path, 1, True)
    assert FeatureStore(path).kinds == ("mean",)


def test_a_store_begun_elsewhere_is_not_mixed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = make_table(tmp_path, 3)
    extract(tiny_request(table, tmp_path / "f"))
    monkeypatch.setattr("dinocache.job.Job.device", property(lambda self: "cuda"), raising=True)
    with pytest.raises(RecipeMismatchError, match="was begun on cpu; cuda gives other last bits"):
        extract(tiny_request(table, tmp_path / "f", precision="fp32"))


def test_relabel_changes_labels_and_no_feature(tmp_path: Path) -> None:
    table = make_table(tmp_path, 7)
    request = tiny_request(table, tmp_path / "f")
    path = extract(request).path
    before = stamps(path)
    items = pd.read_csv(table, dtype={"item_id": str})
    items["bright"] = 1 - items["bright"]
    items[::-1].to_csv(table, index=False)
    with pytest.raises(RecipeMismatchError, match=r"other columns differ .*: dinocache relabel "):
        extract(request)
    store = relabel(path, table)
    assert list(store.items["bright"]) == list(items["bright"])
    assert store.items_name.startswith("items-0002-")
    assert stamps(path) == before
    assert extract(request).rows == 0
    assert verify(path).exit_code == 0
    items[:5].to_csv(table, index=False)
    with pytest.raises(RecipeMismatchError, match="lists 5 items, the store 7, of which 5"):
        relabel(path, table)


FLUSHES = (1, 5, 9, 20, 28, 33, 36, 40)


@pytest.mark.parametrize(
    ("code", "flushes"),
    [
        (errno.ENOSPC, FLUSHES),
        (errno.EIO, FLUSHES[2:4]),
        (errno.EROFS, FLUSHES[5:7]),
        pytest.param(errno.EIO, FLUSHES, marks=pytest.mark.long),
        pytest.param(errno.EROFS, FLUSHES, marks=pytest.mark.long),
    ],
)
def test_a_failing_disk_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, flushes: tuple[int, ...]
) -> None:
    """The disk fails at the n-th flush and from then on; then it is mended."""
    table = make_table(tmp_path, 19)
    reference = extract(tiny_request(table, tmp_path / "whole", features=("cls",))).path
    flush = os.fsync
    for doomed in flushes:
        root = tmp_path / f"f{doomed}"
        calls = 0

        def failing(descriptor: int, doomed: int = doomed) -> None:
            nonlocal calls
            calls += 1
            if calls >= doomed:
                raise OSError(code, os.strerror(code))
            flush(descriptor)

        monkeypatch.setattr(os, "fsync", failing)
        with pytest.raises(StoreWriteError, match="then run the same command again"):
            extract(tiny_request(table, root, features=("cls",)))
        monkeypatch.setattr(os, "fsync", flush)
        path = root / "images" / "tiny" / "32x48"
        if (path / "store.json").exists():
            assert verify(path).damages == []
        outcome = extract(tiny_request(table, root, features=("cls",)))
        assert outcome.complete
        assert verify(path).exit_code == 0
        for file in (reference / FEATURES).rglob("*"):
            if file.is_file():
                twin = path / FEATURES / file.relative_to(reference / FEATURES)
                assert twin.read_bytes() == file.read_bytes()


def test_batches_do_not_depend_on_decoding_threads(tmp_path: Path) -> None:
    table = make_table(tmp_path, 37)
    one, four = (
        extract(tiny_request(table, tmp_path / str(n), features=("cls", "dense"), workers=n)).path
        for n in (1, 4)
    )
    for file in (one / FEATURES).rglob("*"):
        if file.is_file():
            assert (
                file.read_bytes()
                == (four / FEATURES / file.relative_to(one / FEATURES)).read_bytes()
            )


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"model": "dinov9"}, RequestError, "no encoder 'dinov9'; did you mean dinov.* lists them"),
        ({"model": "x"}, RequestError, "there is no encoder 'x'; known are dinov3-s, .*, tiny"),
        ({"resolution": (33, 48)}, RequestError, "33x48 .* Nearest that work: 32x48 or 48x48"),
        (
            {"features": ("cls", "moon")},
            RequestError,
            "'moon'; choose from cls, mean, embed, dense",
        ),
        ({"features": ("mask",)}, RequestError, "no column 'mask'; add one with the path"),
        ({"unit_rows": 100}, RequestError, r"--unit-rows is 100; it must be one of \[16, 32"),
        ({"batch": 0}, RequestError, "--batch is 0; it must be at least 1"),
        ({"device": "tpu"}, RequestError, "--device tpu: this machine has cpu"),
        ({"device": "cuda:99"}, RequestError, "--device cuda:99: this machine has cpu"),
        ({"variant": "a/b"}, RequestError, "'a/b' cannot name a folder .* with --variant"),
        ({"name": "../x"}, RequestError, "cannot name a folder of stores"),
        ({"weights": "nowhere.pth"}, WeightsError, "there is no file of weights at nowhere.pth"),
        ({"weights": "hub"}, WeightsError, "the hub has no weights of tiny. Nobody trained it"),
        ({"features": ("embed",)}, RequestError, "^tiny has no 'embed'; it has cls, mean, dense$"),
        ({"features": ("dense.L02",)}, RequestError, "tiny has 2 blocks, numbered 0 to 1"),
        ({"features": ("dense.L2",)}, RequestError, "'dense.L2'; choose from .*dense.L05 and the"),
        ({"layers": "2"}, RequestError, "--layers '2': tiny has 2 blocks, numbered 0 to 1"),
        ({"layers": "all"}, RequestError, "--layers 'all': give last, last4"),
    ],
)
def test_requests_that_cannot_be(
    tmp_path: Path, options: dict[str, object], error: type[Exception], message: str
) -> None:
    table = make_table(tmp_path, 3)
    with pytest.raises(error, match=message):
        extract(tiny_request(table, tmp_path / "f", **options))
    assert not (tmp_path / "f").exists()


def test_weights_of_another_model(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    trunk = load_encoder(encoder_spec("tiny"), "random:3").network.trunk
    save_file(trunk.state_dict(), tmp_path / "tiny.safetensors")
    table = make_table(tmp_path, 3)
    request = tiny_request(
        table, tmp_path / "f", model="dinov3-s", weights=str(tmp_path / "tiny.safetensors")
    )
    with pytest.raises(
        WeightsError, match=r"does not fit dinov3-s .* 48 wide, 2 layers: looks like tiny"
    ):
        extract(request)
    assert not (tmp_path / "f").exists()
    fitting = tiny_request(table, tmp_path / "f", weights=str(tmp_path / "tiny.safetensors"))
    path = extract(fitting).path
    assert FeatureStore(path).header.recipe.encoder.weights.name == "tiny.safetensors"
    # Complete: nothing needs the weights. With work to do they must be named again.
    unnamed = tiny_request(table, tmp_path / "f", weights=None)
    assert extract(unnamed).complete
    more = tiny_request(table, tmp_path / "f", weights=None, features=("dense",))
    with pytest.raises(
        WeightsError, match=r"was made with the weights file tiny.safetensors .* --weights"
    ):
        extract(more)


def test_two_at_once_end_in_the_same_bytes(tmp_path: Path) -> None:
    """A store that another process completed meanwhile: the same unit done twice is the same."""
    table = make_table(tmp_path, 19)
    request = tiny_request(table, tmp_path / "f")
    path = extract(request).path
    before = {p: p.read_bytes() for p in path.rglob("*") if p.is_file()}
    (path / "sealed.json").unlink()
    shutil.rmtree(path / "units")
    (path / "units").mkdir()
    assert extract(request).units == 2
    after = {p: p.read_bytes() for p in path.rglob("*") if p.is_file()}
    # A second run has a second report in runs/, of how long it took.
    assert {p for p in after if p not in before} == {max((path / "runs").iterdir(), key=ctime)}
    assert {p: content for p, content in after.items() if p in before} == before


def close(stored: np.ndarray, values: torch.Tensor) -> None:
    """Hold float16 numbers of one batch against float32 numbers of another."""
    np.testing.assert_allclose(stored.astype(np.float32), values.numpy(), rtol=2**-11, atol=2e-5)


def by_hand(picture: np.ndarray, kinds: Sequence[str] = ("cls",)) -> dict[str, torch.Tensor]:
    """Give tiny a picture, (32, 48) in [0, 1]."""
    spec = encoder_spec("tiny")
    mean, std = (torch.tensor(v)[:, None, None] for v in (spec.mean, spec.std))
    grey = torch.from_numpy(picture.astype(np.float32)).expand(3, -1, -1)
    return load_encoder(spec, "random:0")((grey - mean)[None] / std, kinds)


def test_layers(tmp_path: Path) -> None:
    table = make_table(tmp_path, 5)
    outcome = extract(tiny_request(table, tmp_path / "f", layers="0,1"))
    store = FeatureStore(outcome.path)
    assert store.kinds == ("cls", "mean", "dense.L00", "dense")
    first, last = (
        np.concatenate([store.rows(k, f"{i:04d}") for i in range(5)])
        for k in ("dense.L00", "dense")
    )
    assert first.shape == last.shape == (5, 2, 3, 48)
    assert np.abs(first.astype(float) - last).max() > 0.02
    other = extract(tiny_request(table, tmp_path / "g", features=("dense.L01", "dense.L00")))
    again = FeatureStore(other.path)
    assert again.kinds == ("dense.L00", "dense")
    for kind in again.kinds:
        np.testing.assert_array_equal(again.rows(kind, "0003"), store.rows(kind, "0003"))
    assert verify(outcome.path).exit_code == 0


def test_a_layer_can_be_added_later(tmp_path: Path) -> None:
    table = make_table(tmp_path, 19)
    path = extract(tiny_request(table, tmp_path / "f", features=("cls", "dense"))).path
    before = stamps(path)
    added = extract(tiny_request(table, tmp_path / "f", features=None, layers="0"))
    assert (added.units, added.complete) == (2, True)
    assert {k: v for k, v in stamps(path).items() if k in before} == before
    assert {k.split("features.zarr/")[1].split("/")[0] for k in stamps(path).keys() - before} == {
        "dense.L00"
    }
    assert FeatureStore(path).kinds == ("cls", "dense.L00", "dense")
    assert extract(tiny_request(table, tmp_path / "f", features=None)).units == 0
    at_once = extract(tiny_request(table, tmp_path / "g", features=("cls",), layers="last2")).path
    for kind in ("cls", "dense.L00", "dense"):
        for item_id in ("0000", "0018"):
            np.testing.assert_array_equal(
                FeatureStore(path).rows(kind, item_id), FeatureStore(at_once).rows(kind, item_id)
            )


def test_an_encoder_without_cls(tmp_path: Path) -> None:
    table = make_table(tmp_path, 3)
    request = tiny_request(table, tmp_path / "f", model="resnet50-trunc", layers="1")
    store = FeatureStore(extract(request).path)
    assert store.kinds == ("mean", "dense.L01")
    path = extract(replace(request, layers="last")).path
    store = FeatureStore(path)
    assert store.kinds == ("mean", "dense.L01", "dense")
    recipe = store.header.recipe
    assert (recipe.encoder.rope, recipe.encoder.vectors) == (None, ("mean",))
    assert store.rows("dense", "0002").shape == (1, 2, 3, 1024)
    assert store.rows("dense.L01", "0002").shape == (1, 8, 12, 256)
    ids, vectors = store.item_vectors("mean")
    assert ids == ["0000", "0001", "0002"]
    assert vectors.shape == (3, 1024)
    np.testing.assert_allclose(
        vectors[2], store.rows("dense", "0002")[0].mean((0, 1), dtype=float), rtol=1e-2, atol=1e-3
    )
    assert verify(path).exit_code == 0
    for root in ("f", "g"):
        asked = tiny_request(
            table, tmp_path / root, model="resnet50-trunc", features=("cls", "mean")
        )
        with pytest.raises(
            RequestError, match=r"^resnet50-trunc has no 'cls'; it has mean, dense$"
        ):
            extract(asked)
    assert not (tmp_path / "g").exists()


def test_an_encoder_with_an_embedding_of_its_own(tmp_path: Path) -> None:
    """All its vectors are kept where nothing is said; the embedding is narrower than a token."""
    table = make_table(tmp_path, 3)
    request = tiny_request(
        table, tmp_path / "f", model="open_clip:ViT-S-32-alt", resolution=(224, 224)
    )
    outcome = extract(request)
    assert outcome.path == tmp_path / "f/images/open_clip-ViT-S-32-alt/224"
    store = FeatureStore(outcome.path)
    assert store.kinds == ("cls", "mean", "embed")
    assert store.header.recipe.encoder.name == "open_clip:ViT-S-32-alt"
    for kind, dim in (("cls", 384), ("mean", 384), ("embed", 256)):
        assert store.item_vectors(kind)[1].shape == (3, dim)
    np.testing.assert_array_equal(store.item_vectors("embed")[1][1], store.rows("embed", "0001")[0])
    assert verify(outcome.path).exit_code == 0


@pytest.mark.parametrize("mode", ["pad", "crop"])
def test_other_ways_to_the_resolution(tmp_path: Path, mode: str) -> None:
    """Against the same done by hand: 44 x 54 px in 32 x 48."""
    from PIL import Image

    table = make_table(tmp_path, 5)
    request = tiny_request(table, tmp_path / "f", resize=mode, features=("cls", "dense"))
    path = extract(request).path
    store = FeatureStore(path)
    resize = store.header.recipe.input.resize
    assert (resize.mode, resize.crop_pct) == (mode, 1.0 if mode == "crop" else None)
    with Image.open(tmp_path / "png/0004.png") as image:
        assert image.size == (54, 44)
        grey = Image.fromarray(np.asarray(image, np.float32) / 255)
    if mode == "pad":
        size = (39, 32)  # 54 x 32 / 44 = 39.3
        picture = np.zeros((32, 48))
        picture[:, 4:43] = np.asarray(grey.resize(size, Image.Resampling.BICUBIC)).clip(0, 1)
    else:
        size = (48, 39)  # 44 x 48 / 54 = 39.1
        covered = np.asarray(grey.resize(size, Image.Resampling.BICUBIC)).clip(0, 1)
        picture = covered[4:36]  # 3.5 px are over on each side; torchvision rounds to even
    for kind, values in by_hand(picture, ("cls", "dense")).items():
        close(store.rows(kind, "0004"), values)
    # What is not said is as the store has it; what is said must agree.
    assert extract(replace(request, resize=None)).units == 0
    message = f"input.resize.mode: {mode} in the store, squash asked for"
    with pytest.raises(RecipeMismatchError, match=message):
        extract(replace(request, resize="squash"))


def write_deep_images(folder: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """Write TIFFs of 16 bits and of floats, at the resolution so that nothing is resized."""
    from PIL import Image

    rng = np.random.default_rng(5)
    flat = np.full((32, 48), 700, np.uint16)
    broken = rng.normal(0, 300, (32, 48)).astype(np.float32)
    broken[7, 9] = np.nan
    arrays = {
        "sixteen": rng.integers(100, 1501, (32, 48)).astype(np.uint16),
        "float": rng.normal(0, 300, (32, 48)).astype(np.float32),
        "flat": flat,
        "broken": broken,
    }
    for name, array in arrays.items():
        Image.fromarray(array).save(folder / f"{name}.tif")
    table = folder / "deep.csv"
    rows = [{"item_id": name, "path": f"{name}.tif"} for name in arrays]
    pd.DataFrame(rows).to_csv(table, index=False)
    return table, arrays


NOT_FINITE = "its pixels are NaN or infinite"
NO_RANGE = (
    "its pixels are floats, which have no full range: say --window min-max, percentile or LOW:HIGH"
)


@pytest.mark.parametrize(
    ("window", "failed"),
    [
        (None, {"float": NO_RANGE, "broken": NO_RANGE}),
        ("min-max", {"broken": NOT_FINITE}),
        ("-160:1240.5", {"broken": NOT_FINITE}),
    ],
)
def test_windows(tmp_path: Path, window: str | None, failed: dict[str, str]) -> None:
    table, arrays = write_deep_images(tmp_path)
    request = tiny_request(
        table,
        tmp_path / "f",
        windows=parse_windows(window) if window else None,
        features=("cls", "image"),
    )
    outcome = extract(request)
    assert {f.item_id: f.failure.reason for f in outcome.failures} == failed
    store = FeatureStore(outcome.path)
    for name, array in arrays.items():
        if name in failed:
            continue
        low, high = {
            None: (0, 65535),
            "min-max": (array.min(), array.max() if name != "flat" else 701),
            "-160:1240.5": (-160, 1240.5),
        }[window]
        picture = (array.astype(np.float64) - low) / (float(high) - low)
        close(store.rows("cls", name), by_hand(picture.clip(0, 1))["cls"])
        image, attributes = store.native("image", name)
        assert image.dtype == array.dtype
        np.testing.assert_array_equal(image[0, 0], array)
        assert attributes["windows"] == [[float(low), float(high)]]
    assert verify(outcome.path).exit_code == 0
    assert extract(replace(request, windows=None)).units == 0
    if window is not None:
        message = r"input\.windows\.0\.mode: \S+ in the store, full-range asked for"
        with pytest.raises(RecipeMismatchError, match=message):
            extract(replace(request, windows=parse_windows("full-range")))


def test_uint8_arithmetic_is_for_8_bit_images(tmp_path: Path) -> None:
    table, _ = write_deep_images(tmp_path)
    outcome = extract(tiny_request(table, tmp_path / "f", arithmetic="uint8"))
    reasons = {f.item_id: f.failure.reason for f in outcome.failures}
    assert reasons.keys() == {"sixteen", "float", "flat", "broken"}
    assert reasons["sixteen"] == (
        "its pixels are uint16; --arithmetic uint8 is for 8-bit images over their full range only"
    )


@pytest.mark.long
def test_anatomix(tmp_path: Path) -> None:
    """One map of the item's own window, a feature vector a pixel; no vector of the whole."""
    table = make_table(tmp_path, 1)
    request = tiny_request(table, tmp_path / "f", model="anatomix", resolution=(20, 28))
    outcome = extract(request)
    store = FeatureStore(outcome.path)
    assert store.kinds == ("dense",)
    given = store.header.recipe.input
    assert (given.channels, given.windows[0].mode) == (1, "min-max")
    maps = store.rows("dense", "0000")
    assert maps.shape == (1, 20, 28, 16)
    assert np.isfinite(maps).all()
    assert (np.ptp(maps[0].astype(float), axis=(0, 1)) > 0).all()
    assert verify(outcome.path).exit_code == 0
    with pytest.raises(RequestError, match=r"^anatomix has no 'cls'; it has dense$"):
        extract(replace(request, features=("cls",)))


@pytest.mark.parametrize(
    ("text", "expected"), [("256", (256, 256)), ("64x80", (64, 80)), (512, (512, 512))]
)
def test_parse_resolution(text: str | int, expected: tuple[int, int]) -> None:
    assert parse_resolution(text) == expected


@pytest.mark.parametrize("text", ["", "x", "64x", "64x64x64", "-5", "1e3", "999999"])
def test_parse_resolution_refuses(text: str) -> None:
    with pytest.raises(RequestError, match="give one side as 512, or height x width as 512x640"):
        parse_resolution(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("full-range", WindowRecipe(mode="full-range")),
        ("min-max", WindowRecipe(mode="min-max")),
        ("-1000:1000", WindowRecipe(mode="range", low=-1000.0, high=1000.0)),
        ("0.25:1e3", WindowRecipe(mode="range", low=0.25, high=1000.0)),
    ],
)
def test_parse_windows(text: str, expected: WindowRecipe) -> None:
    assert parse_windows(text) == (expected,)


@pytest.mark.parametrize(
    "text", ["", "x", "range", "1", "1:", ":1", "1:1", "2:1", "1:2:3", "nan:1", "0:inf", "a:b"]
)
def test_parse_windows_refuses(text: str) -> None:
    with pytest.raises(
        RequestError, match=r"^--window '.*': give full-range, file, min-max, LOW:HIGH in stored"
    ):
        parse_windows(text)


def test_what_is_compiled_sees_one_shape_and_one_set_of_kinds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also for the last rows of a unit, and for what an interrupted run left of it."""
    seen: list[tuple[tuple[int, ...], tuple[str, ...]]] = []

    def compile_(network: torch.nn.Module, *, dynamic: bool) -> torch.nn.Module:
        assert not dynamic
        network.register_forward_pre_hook(
            lambda _, given: seen.append((tuple(given[0].shape), tuple(k for k, _ in given[1])))
        )
        return network

    monkeypatch.setattr(torch, "compile", compile_)
    table, features = make_table(tmp_path, 21), ("cls", "mean", "dense.L00", "image")
    plain = extract(tiny_request(table, tmp_path / "plain", features=features))
    assert seen == []
    request = tiny_request(table, tmp_path / "f", features=features, compiled=True)
    outcome = extract(request)
    shape = (8, 3, 32, 48)
    assert seen == [(shape, ("cls", "mean", "dense.L00"))] * 3  # 16 and 5 rows
    for record in (outcome.path / "units").glob("0001-00001.mean.json"):
        record.unlink()
    (outcome.path / "sealed.json").unlink()
    again = extract(request)
    assert (again.rows, again.complete) == (5, True)
    assert seen[3:] == [(shape, ("cls", "mean", "dense.L00"))]
    for kind in ("cls", "mean", "dense.L00"):
        for item_id in ("0000", "0020"):
            ours = FeatureStore(again.path).rows(kind, item_id)
            assert np.array_equal(ours, FeatureStore(plain.path).rows(kind, item_id))
    assert FeatureStore(again.path).header.execution.compiled
    with pytest.raises(RecipeMismatchError, match="--compile: True in the store, False asked for"):
        extract(replace(request, compiled=False))


def test_maps_of_another_shape_than_the_facts_promise_are_never_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """zarr would cut off what is over, and verify would find it sound."""
    call = Encoder.__call__

    def larger(
        self: Encoder, pixels: torch.Tensor, kinds: Sequence[str]
    ) -> dict[str, torch.Tensor]:
        found = call(self, pixels, kinds)
        return found | {"dense": torch.nn.functional.pad(found["dense"], (0, 0, 0, 1))}

    monkeypatch.setattr(Encoder, "__call__", larger)
    request = tiny_request(make_table(tmp_path, 3), tmp_path / "f", features=("cls", "dense"))
    with pytest.raises(
        RequestError, match=r"tiny gives dense of 2 x 4 x 48 where 2 x 3 x 48 is st"
    ):
        extract(request)


def test_an_overwritten_file_of_weights_is_noticed(tmp_path: Path) -> None:
    weights = tmp_path / "mine.pth"
    for seed in (1, 2):
        trunk = load_encoder(encoder_spec("tiny"), f"random:{seed}").network.trunk
        torch.save(trunk.state_dict(), weights)
        request = tiny_request(make_table(tmp_path, 3), tmp_path / "f", weights=str(weights))
        if seed == 1:
            assert extract(request).complete
            assert extract(request).units == 0
        else:
            with pytest.raises(RecipeMismatchError, match=r"encoder\.weights\.sha256: "):
                extract(request)


def test_a_strip_that_a_crop_would_make_huge_is_a_failure(tmp_path: Path) -> None:
    table = make_table(tmp_path, 3)
    from PIL import Image

    Image.new("L", (9000, 2)).save(tmp_path / "png/0001.png")
    outcome = extract(tiny_request(table, tmp_path / "f", resize="crop"))
    (failed,) = outcome.failures
    assert failed.item_id == "0001"
    assert failed.failure.reason.startswith("2 x 9000 px would be resized to ")
    assert "--resize squash or pad takes it" in failed.failure.reason


def test_too_little_memory_and_no_compiler_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(error: Exception) -> Callable[..., object]:
        def forward(*_: object) -> object:
            raise error

        return forward

    request = tiny_request(make_table(tmp_path, 3), tmp_path / "f")
    of_cpu = "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"
    for memory in (torch.OutOfMemoryError("x"), RuntimeError(of_cpu)):
        with monkeypatch.context() as patch:
            patch.setattr("dinocache.networks.TokenNetwork.forward", fail(memory))
            with pytest.raises(RequestError, match="cpu has too little memory for 3 rows of 32x48"):
                extract(request)
    with monkeypatch.context() as patch:
        patch.setattr("dinocache.networks.TokenNetwork.forward", fail(RuntimeError("a fault")))
        with pytest.raises(RuntimeError, match=r"^a fault$"):  # ours, so with its traceback
            extract(request)
    # The store was begun with that batch; nothing is lost by beginning anew.
    message = (
        "--batch: 8 in the store, 2 asked for.*Nothing is committed in it yet: remove the folder"
    )
    with pytest.raises(RecipeMismatchError, match=message):
        extract(replace(request, batch=2))
    error = torch._dynamo.exc.TorchDynamoException("no compiler\nfound")
    with monkeypatch.context() as patch:
        patch.setattr("dinocache.networks.TokenNetwork.forward", fail(error))
        with pytest.raises(
            RequestError, match=r"cannot compile tiny here \(no compiler found\): make"
        ):
            extract(replace(request, root=tmp_path / "g"))


def test_what_cannot_go_together_is_said_before_a_store_is_made(tmp_path: Path) -> None:
    table = make_table(tmp_path, 3)
    window = WindowRecipe(mode="range", low=0, high=255)
    request = tiny_request(table, tmp_path / "f", arithmetic="uint8", windows=(window,))
    with pytest.raises(
        RequestError, match="--arithmetic uint8 is for 8-bit images over their full"
    ):
        extract(request)
    request = tiny_request(table, tmp_path / "f", model="anatomix", compiled=True)
    with pytest.raises(
        RequestError, match="anatomix takes items of any depth: leave out --compile"
    ):
        extract(request)
    assert not (tmp_path / "f").exists()


def test_dark_sixteen_bit_images_are_spoken_of_once(tmp_path: Path) -> None:
    from PIL import Image

    table = make_table(tmp_path, 4)
    for index, top in enumerate((4095, 4000, 60_000, 3000)):
        pixels = np.linspace(0, top, 40 * 50).reshape(40, 50).astype(np.uint16)
        Image.fromarray(pixels).save(tmp_path / f"png/{index:04d}.png")
    progress = QuietProgress()
    extract(tiny_request(table, tmp_path / "f", workers=1), progress)
    (note,) = [n for n in progress.notes if "16-bit" in n]
    assert "no value above 4095" in note
    assert "--window 0:4095" in note
    progress = QuietProgress()
    window = WindowRecipe(mode="range", low=0, high=4095)
    extract(tiny_request(table, tmp_path / "g", windows=(window,)), progress)
    assert not [n for n in progress.notes if "16-bit" in n]
