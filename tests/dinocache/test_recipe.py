"""Invariant 6: whatever changes a number changes the digest."""

from typing import Any

import pytest

from dinocache.errors import StoreDamagedError
from dinocache.recipe import (
    ChannelsRecipe,
    FormRecipe,
    Recipe,
    ResizeRecipe,
    StorageRecipe,
    WindowRecipe,
    resolution_name,
)
from dinocache.store import FeatureStore


def changed(value: object) -> object:
    if isinstance(value, bool) or value == {}:
        return None
    if isinstance(value, str):
        return f"{value}x"
    if isinstance(value, list):
        return [changed(v) for v in value] or [[3, 5]]
    return 7 if value is None else value + 1  # type: ignore[operator]


def leaves(body: dict[Any, Any], prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = []
    for key, value in body.items():
        if isinstance(value, dict) and value:
            found += leaves(value, (*prefix, key))
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            found += leaves(dict(enumerate(value)), (*prefix, key))
        else:
            found.append((*prefix, key))
    return found


def with_all_that_may_be_empty(recipe: Recipe) -> Recipe:
    """Fill in what an encoder without RoPE, a crop, windows and channels say besides."""
    encoder = recipe.encoder.model_copy(
        update={"rope": None, "pyramid": ((4, 96), (8, 192)), "embed_dim": 512}
    )
    given = recipe.input.model_copy(
        update={
            "windows": (
                WindowRecipe(mode="range", low=-160.0, high=240.0),
                WindowRecipe(mode="percentile", low=1.0, high=98.0, nonzero=True),
            ),
            "resize": ResizeRecipe(mode="crop", crop_pct=0.875, arithmetic="uint8"),
        }
    )
    reader = recipe.reader.model_copy(
        update={"options": {"spacing": [1.0, 2.0, 3.0]}, "columns": (("slice", "voxel"),)}
    )
    return recipe.model_copy(
        update={
            "encoder": encoder,
            "input": given,
            "reader": reader,
            "channels": ChannelsRecipe(mode="passes", names=("ct", "pet")),
            "storage": StorageRecipe(dense=FormRecipe(dtype="int8", pca=24, rounded="float16")),
        }
    )


# Of the encoder or the reader alone: no choice was made of them.
FACTS = ("encoder.vectors", "encoder.depth", "encoder.pyramid", "reader.columns")


# Values that this version does not know are built without validation.
@pytest.mark.filterwarnings("ignore:Pydantic serializer")
@pytest.mark.parametrize("filled", [False, True])
def test_every_field_counts(tiny_store: FeatureStore, filled: bool) -> None:
    recipe = tiny_store.header.recipe
    if filled:
        recipe = with_all_that_may_be_empty(recipe)
    assert Recipe.model_validate(recipe.model_dump(mode="json")) == recipe
    fields = leaves(recipe.model_dump(mode="json"))
    assert len(fields) >= 27
    # Of plain float16 one word stands for the whole of `storage`.
    for field in [f for f in fields if f != ("dtype",)]:
        body = recipe.model_dump(mode="json")
        inner = body
        for key in field[:-1]:
            inner = inner[key]
        inner[field[-1]] = changed(inner[field[-1]])
        other = Recipe.model_construct(**body)
        name = ".".join(map(str, field))
        if name in ("encoder.weights.name", *FACTS):
            assert recipe.model_copy(update=vars(other)).digest == recipe.digest
            continue
        different = recipe.model_copy(update=vars(other))
        assert different.digest != recipe.digest, name
        assert list(recipe.differences(different)) == [name]


def test_plain_features_are_one_word(tiny_store: FeatureStore) -> None:
    """So that the digest of what was extracted before there was anything else stays."""
    recipe = tiny_store.header.recipe
    body = recipe.model_dump(mode="json")
    assert body["dtype"] == "float16"
    assert "storage" not in body
    int8 = recipe.model_copy(update={"storage": StorageRecipe(vectors=FormRecipe(dtype="int8"))})
    assert int8.digest != recipe.digest
    assert "dtype" not in int8.model_dump(mode="json")
    assert int8.differences(recipe) == {"storage.vectors.dtype": ("int8", "float16")}
    assert Recipe.model_validate(int8.model_dump(mode="json")) == int8
    with pytest.raises(StoreDamagedError, match="recipe field 'dtype'"):
        Recipe.from_body(body | {"dtype": "float64"}, "store.json")


def test_an_unknown_field_is_refused(tiny_store: FeatureStore) -> None:
    body = tiny_store.header.recipe.model_dump(mode="json") | {"glow": 1}
    with pytest.raises(StoreDamagedError, match="field 'glow' is not one that this version"):
        Recipe.from_body(body, "store.json")


@pytest.mark.parametrize(("size", "name"), [((512, 512), "512"), ((512, 640), "512x640")])
def test_resolution_name(size: tuple[int, int], name: str) -> None:
    assert resolution_name(size) == name


def test_the_shape_of_a_layer(tiny_store: FeatureStore) -> None:
    encoder = tiny_store.header.recipe.encoder
    assert [encoder.layer_shape(layer) for layer in (0, 1, None)] == [(16, 48)] * 3
    with pytest.raises(StoreDamagedError, match=r"^tiny has no layer 2: it has 2$"):
        encoder.layer_shape(2)
    pyramid = encoder.model_copy(update={"pyramid": ((4, 96), (8, 192))})
    assert [pyramid.layer_shape(layer) for layer in (0, 1, None)] == [(4, 96), (8, 192), (16, 48)]
