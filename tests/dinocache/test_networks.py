import pytest
import torch

from dinocache.libraries import find_encoder
from dinocache.networks import build_network, wanted


@pytest.mark.parametrize(
    "name",
    [
        "tiny",
        "eupe-tiny",
        "dinov3-convnext-tiny",
        "resnet50-trunc",
        "byol",
        "conch",
        "biomedclip",
        "timm:test_vit",
        "open_clip:ViT-S-32",
    ],
)
def test_torch_compiles_each_sort_of_network_as_one_graph(name: str) -> None:
    """Without a break, with earlier layers, under bf16: what a GPU compiles. No compiler is run."""
    spec = find_encoder(name)
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
