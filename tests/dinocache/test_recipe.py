"""Invariant 6: whatever changes a number changes the digest."""

import pytest

from dinocache.errors import StoreDamagedError
from dinocache.recipe import Recipe, resolution_name
from dinocache.store import FeatureStore


def changed(value: object) -> object:
    if isinstance(value, bool | None) or value == {}:
        return None
    if isinstance(value, str):
        return f"{value}x"
    return [v + 1 for v in value] if isinstance(value, list) else value + 1  # type: ignore[operator]


def leaves(body: dict[str, object], prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for key, value in body.items():
        if isinstance(value, dict) and value:
            found += leaves(value, (*prefix, key))
        else:
            found.append((*prefix, key))
    return found


# Values that this version does not know are built without validation.
@pytest.mark.filterwarnings("ignore:Pydantic serializer")
def test_every_field_counts(tiny_store: FeatureStore) -> None:
    recipe = tiny_store.header.recipe
    fields = leaves(recipe.model_dump(mode="json"))
    assert len(fields) >= 18
    for field in fields:
        body = recipe.model_dump(mode="json")
        inner = body
        for key in field[:-1]:
            inner = inner[key]
        inner[field[-1]] = changed(inner[field[-1]])
        other = Recipe.model_construct(**body)
        name = ".".join(field)
        if name == "encoder.weights.name":
            assert Recipe.model_validate(body).digest == recipe.digest
            continue
        different = recipe.model_copy(update=vars(other))
        assert different.digest != recipe.digest, name
        assert list(recipe.differences(different)) == [name]


def test_an_unknown_field_is_refused(tiny_store: FeatureStore) -> None:
    body = tiny_store.header.recipe.model_dump(mode="json") | {"glow": 1}
    with pytest.raises(StoreDamagedError, match="field 'glow' is not one that this version"):
        Recipe.from_body(body, "store.json")


@pytest.mark.parametrize(("size", "name"), [((512, 512), "512"), ((512, 640), "512x640")])
def test_resolution_name(size: tuple[int, int], name: str) -> None:
    assert resolution_name(size) == name
