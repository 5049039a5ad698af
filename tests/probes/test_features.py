"""The one door to the stores."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from making import make_table, tiny_request
from PIL import Image

from dinocache.errors import DinocacheError, StoreIncompleteError
from dinocache.extract import extract
from dinocache.recipe import WindowRecipe
from dinocache.store import FeatureStore
from probes.features import first_dense_item, load_item_features, store_facts


def test_vectors_stand_beside_their_rows_of_the_table(tiny_store: FeatureStore) -> None:
    loaded = load_item_features(tiny_store.path, ["cls"])
    assert loaded.x.shape == (42, 48)
    assert loaded.items["item_id"].tolist() == tiny_store.items["item_id"].tolist()
    assert loaded.failed == {}
    for position in (0, 17, 41):
        rows = tiny_store.rows("cls", str(loaded.items["item_id"][position]))
        np.testing.assert_allclose(loaded.x[position], rows[0], atol=2e-3)


def test_kinds_are_concatenated_in_the_order_given(tiny_store: FeatureStore) -> None:
    cls, mean = (load_item_features(tiny_store.path, [kind]).x for kind in ("cls", "mean"))
    assert not np.array_equal(cls, mean)
    both = load_item_features(tiny_store.path, ["mean", "cls"]).x
    np.testing.assert_array_equal(both, np.concatenate([mean, cls], axis=1))


def test_the_vector_that_the_publisher_uses_is_the_default(
    tiny_store: FeatureStore, tmp_path: Path
) -> None:
    """Else the next that the store has; never two of them, and never a map."""
    loaded = load_item_features(tiny_store.path, None)
    assert loaded.kinds == ("cls",)
    np.testing.assert_array_equal(loaded.x, load_item_features(tiny_store.path, ["cls"]).x)
    table = make_table(tmp_path, 3)
    stores = {
        features: extract(
            tiny_request(
                table,
                tmp_path / "f",
                model="timm:test_convnext",
                resolution=(32, 64),
                features=features,
                variant="-".join(features),
            )
        ).path
        for features in (("mean", "embed"), ("mean", "dense"))
    }
    with_embed, without = (load_item_features(path, None) for path in stores.values())
    assert (with_embed.kinds, without.kinds) == (("embed",), ("mean",))
    assert with_embed.x.shape == without.x.shape == (3, 64)
    assert not np.array_equal(with_embed.x, without.x)
    mean = load_item_features(stores["mean", "embed"], ["mean"])
    np.testing.assert_array_equal(mean.x, without.x)


def test_the_origin_of_features(tiny_store: FeatureStore) -> None:
    facts = store_facts(tiny_store.path)
    assert facts == load_item_features(tiny_store.path, ["mean"]).store
    assert (facts.dataset, facts.model, facts.resolution) == ("images", "tiny", "32x48")
    assert (facts.weights, facts.random_weights, facts.variant) == ("random:0", True, "")
    assert facts.digest == tiny_store.header.digest
    assert (tiny_store.path / facts.items_table).is_file()


def test_the_first_item_with_its_image(tiny_store: FeatureStore, tiny_table: Path) -> None:
    item_id, patches, image = first_dense_item(tiny_store.path)
    assert item_id == "0000"
    assert (patches.shape, patches.dtype) == ((2, 3, 48), np.float32)
    np.testing.assert_array_equal(patches, tiny_store.rows("dense", "0000")[0])
    pixels = np.asarray(Image.open(tiny_table.parent / "png/0000.png"))
    np.testing.assert_allclose(image, pixels / np.float32(255), atol=1e-6)


def test_a_picture_is_within_its_window(tmp_path: Path) -> None:
    table = make_table(tmp_path, 1)
    request = tiny_request(
        table,
        tmp_path / "f",
        features=("dense", "image"),
        windows=(WindowRecipe(mode="range", low=30, high=90),),
    )
    _, _, image = first_dense_item(extract(request).path)
    pixels = np.asarray(Image.open(tmp_path / "png/0000.png"), np.float32)
    assert pixels.min() < 30
    assert pixels.max() > 90
    np.testing.assert_allclose(image, ((pixels - 30) / 60).clip(0, 1), atol=1e-6)


def test_a_colour_image_whose_forerunner_failed(tmp_path: Path) -> None:
    table = make_table(tmp_path, 6)
    (tmp_path / "png/0000.png").write_bytes(b"?")
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "png/0001.png")
    path = extract(tiny_request(table, tmp_path / "f", features=("cls", "dense", "image"))).path
    item_id, _, image = first_dense_item(path)
    assert item_id == "0001"
    np.testing.assert_allclose(image, pixels / np.float32(255), atol=1e-6)
    loaded = load_item_features(path, ["cls"])
    assert loaded.items["item_id"].tolist() == [f"{n:04d}" for n in range(1, 6)]
    assert list(loaded.failed) == ["0000"]


@pytest.mark.parametrize(
    ("features", "break_all", "message"),
    [
        pytest.param(("cls", "image"), False, "no 'dense'. Add it with `dinocache", id="no-dense"),
        pytest.param(("cls", "dense"), False, "no 'image'. Add it with `dinocache", id="no-image"),
        pytest.param(("dense", "image"), True, "no item to draw: each of them", id="all-failed"),
    ],
)
def test_a_store_without_a_picture(
    tmp_path: Path, features: tuple[str, ...], break_all: bool, message: str
) -> None:
    table = make_table(tmp_path, 2)
    if break_all:
        for path in (tmp_path / "png").iterdir():
            path.write_bytes(b"?")
    path = extract(tiny_request(table, tmp_path / "f", features=features)).path
    with pytest.raises(StoreIncompleteError, match=message):
        first_dense_item(path)


def test_a_kind_that_was_never_extracted(tmp_path: Path) -> None:
    path = extract(tiny_request(make_table(tmp_path, 2), tmp_path / "f", features=("cls",))).path
    with pytest.raises(StoreIncompleteError, match=r"has no 'mean' .*--features mean"):
        load_item_features(path, ["cls", "mean"])


def test_no_store(tmp_path: Path) -> None:
    pd.DataFrame({"path": ["a"]}).to_csv(tmp_path / "t.csv")
    with pytest.raises(DinocacheError, match=r"there is no store at .*: it has no store\.json"):
        load_item_features(tmp_path, ["cls"])
