import dataclasses

import pytest
import torch

from dinocache.libraries import find_encoder
from dinocache.networks import build_network, wanted
from dinocache.spec import EncoderSpec

RESNET = {"layers": (2, 2, 2, 2)}
FEW: dict[str, dict[str, object]] = {
    "tiny": {},
    "eupe-tiny": {"depth": 2},
    "dinov3-convnext-tiny": {"depths": (1, 1, 2, 1)},
    "resnet50-trunc": RESNET,
    "byol": RESNET,
    "conch": {"depth": 2},
    "biomedclip": {"depth": 2},
    "timm:test_vit": {},
    "open_clip:ViT-S-32": {},
}
"""Each sort of network, and what leaves it a few blocks of each of its sorts of block."""
COMPILED = ("tiny", "dinov3-convnext-tiny")
"""Of these, which are compiled in every run of the suite: it takes seconds each."""


def with_blocks(spec: EncoderSpec, few: dict[str, object]) -> EncoderSpec:
    depth = few.get("depth", spec.depth)
    return dataclasses.replace(spec, depth=depth, arguments={**spec.arguments, **few})


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.long)])
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in COMPILED else (pytest.mark.long,)) for name in FEW],
)
def test_torch_compiles_each_sort_of_network_as_one_graph(name: str, whole: bool) -> None:
    """Without a break, with earlier layers, under bf16: what a GPU compiles. No compiler is run."""
    spec = with_blocks(find_encoder(name), {} if whole else FEW[name])
    network = build_network(spec).requires_grad_(False)
    height = spec.fixed_px or spec.step_px * 2
    width = spec.fixed_px or spec.step_px * 3
    pixels = torch.randn((2, spec.channels, height, width))
    kinds = wanted((*spec.kinds, "dense.L00"))
    compiled = torch.compile(network, fullgraph=True, backend="eager", dynamic=False)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        found, expected = compiled(pixels, kinds), network(pixels, kinds)
    torch._dynamo.reset()
    assert list(found) == [kind for kind, _ in kinds]
    for kind, values in expected.items():
        assert torch.equal(found[kind], values)
