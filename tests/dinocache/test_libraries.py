"""Any model of timm or open_clip: its facts, its shapes, its own embedding."""

import sys
from functools import cache
from pathlib import Path

import open_clip
import pytest
import timm
import torch
from safetensors.torch import save_file

from dinocache.cost import default_batch, gflop
from dinocache.encoders import encoder_spec
from dinocache.errors import RequestError, WeightsError
from dinocache.inference import Encoder, load_encoder
from dinocache.libraries import find_encoder
from dinocache.spec import EncoderSpec, HubFile

TIMM_VIT = "timm:test_vit.r160_in1k"
TIMM_CNN = "timm:test_convnext.r160_in1k"
SWIN = "timm:swin_tiny_patch4_window7_224.ms_in1k"
CLIP_VIT = "open_clip:ViT-S-32-alt"

Tensors = dict[str, torch.Tensor]


@pytest.fixture(autouse=True)
def digests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DINOCACHE_CACHE", str(tmp_path / "digests"))


@cache
def random_encoder(name: str) -> Encoder:
    return load_encoder(find_encoder(name), "random")


def pixels(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2))


def seeded(model: torch.nn.Module) -> torch.nn.Module:
    """Give every parameter and running statistic values that matter to the features."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                noise = torch.randn(tensor.shape, generator=generator)
                if name.endswith("running_var"):
                    tensor.copy_(1 + noise.abs())
                elif "norm" in name and name.endswith("weight"):
                    tensor.copy_(1 + noise / 4)
                else:
                    fan_in = tensor[0].numel() if tensor.ndim > 1 else 100
                    tensor.copy_(noise * fan_in**-0.5)
    return model.eval()


class TestFacts:
    def test_a_name_of_the_table_is_that_row(self) -> None:
        assert find_encoder("dinov3-s+") is encoder_spec("dinov3-splus")

    def test_timm(self) -> None:
        spec = find_encoder(TIMM_VIT)
        facts = timm.get_pretrained_cfg("test_vit.r160_in1k")
        assert (spec.name, spec.network, spec.family) == (TIMM_VIT, "tokens", "timm")
        assert (spec.dim, spec.depth, spec.patch_px, spec.prefix_tokens) == (64, 6, 16, 1)
        assert (spec.vectors, spec.embed_dim) == (("cls", "embed", "mean"), 64)
        assert (spec.native_px, spec.step_px, spec.fixed_px) == (160, 16, None)
        assert (spec.mean, spec.std, spec.crop_pct) == (facts.mean, facts.std, facts.crop_pct)
        assert (spec.filter, spec.licence) == (facts.interpolation, facts.license)
        assert spec.classifier == ("head",)
        assert spec.hub == (HubFile("timm/test_vit.r160_in1k"),)
        assert spec.obtain == "See huggingface.co/timm/test_vit.r160_in1k"
        model = timm.create_model("test_vit", num_classes=0)
        assert spec.params == sum(parameter.numel() for parameter in model.parameters())

    def test_timm_maps(self) -> None:
        spec = find_encoder(TIMM_CNN)
        assert (spec.network, spec.vectors) == ("maps", ("embed", "mean"))
        assert spec.pyramid == ((4, 24), (8, 32), (16, 48), (32, 64))
        assert (spec.dim, spec.depth, spec.step_px, spec.fixed_px) == (64, 4, 32, None)
        assert spec.classifier == ("head.fc",)

    def test_an_untagged_name_is_timms_default(self) -> None:
        assert find_encoder("timm:test_vit").hub == find_encoder(TIMM_VIT).hub

    def test_a_row_of_the_table_under_timms_own_name(self) -> None:
        row = encoder_spec("dinov3-s")
        spec = find_encoder("timm:vit_small_patch16_dinov3.lvd1689m")
        for fact in ("dim", "depth", "patch_px", "prefix_tokens", "params", "mean", "std"):
            assert getattr(spec, fact) == getattr(row, fact)
        assert spec.licence == row.licence

    def test_a_model_of_one_size(self) -> None:
        spec = find_encoder("timm:test_maxvit")
        assert (spec.native_px, spec.fixed_px) == (160, 160)

    def test_open_clip(self) -> None:
        spec = find_encoder("open_clip:ViT-B-32/openai")
        facts = open_clip.get_pretrained_cfg("ViT-B-32", "openai")
        assert (spec.network, spec.family) == ("open-clip", "open_clip")
        assert (spec.dim, spec.depth, spec.patch_px, spec.prefix_tokens) == (768, 12, 32, 1)
        assert (spec.vectors, spec.embed_dim) == (("embed", "cls", "mean"), 512)
        assert (spec.native_px, spec.fixed_px) == (224, 224)
        assert (spec.mean, spec.std) == (tuple(facts["mean"]), tuple(facts["std"]))
        assert [h.file for h in spec.hub] == [
            "open_clip_model.safetensors",
            "open_clip_pytorch_model.bin",
        ]
        assert all(facts["hf_hub"].startswith(h.repo) for h in spec.hub)
        assert spec.params == 87_849_216

    def test_open_clip_maps(self) -> None:
        spec = find_encoder("open_clip:RN50")
        assert (spec.vectors, spec.prefix_tokens, spec.hub) == (("embed", "mean"), 0, ())
        assert spec.pyramid == ((4, 64), (4, 256), (8, 512), (16, 1024), (32, 2048))

    def test_untagged_open_clip_says_which_weights_there_are(self) -> None:
        obtain = find_encoder("open_clip:ViT-B-32").obtain
        assert obtain.startswith(
            "Name its weights, as open_clip:ViT-B-32/openai (there are openai, "
        )

    @pytest.mark.parametrize("name", [TIMM_VIT, TIMM_CNN, CLIP_VIT])
    def test_a_plan_can_be_made(self, name: str) -> None:
        spec = find_encoder(name)
        resolution = (spec.native_px, spec.native_px)
        assert default_batch(spec, resolution) in [1 << n for n in range(9)]
        assert (gflop(spec, resolution) is None) == (spec.network != "tokens")


class TestUnknownNames:
    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("timm:tset_vit", r"^timm has no model 'tset_vit'; did you mean test_vit or .*\?$"),
            ("timm:resnet5.a1", r"^timm has no model 'resnet5\.a1'; did you mean resnet50.*\?$"),
            ("timm:qqqqqqqq", r"^timm has no model 'qqqqqqqq'$"),
            ("timm:", r"^timm has no model ''$"),
            (
                "open_clip:ViT-B32/openai",
                r"^open_clip has no model 'ViT-B32'; did you mean ViT-B-32 or .*\?$",
            ),
            ("open_clip:qqqqqqqq", r"^open_clip has no model 'qqqqqqqq'$"),
            (
                "open_clip:ViT-B-32/opnai",
                r"^open_clip has no weights 'opnai' of ViT-B-32; it has openai, laion400m_e31, ",
            ),
            (
                "hub:vit",
                r"^there is no encoder 'hub:vit': before a colon stands timm or open_clip, as "
                r"timm:vit_base_patch16_224\.mae or open_clip:ViT-B-16/openai$",
            ),
            ("vit", r"^there is no encoder 'vit'; .* take any model of those libraries$"),
        ],
    )
    def test_refused_with_a_hint(self, name: str, message: str) -> None:
        with pytest.raises(RequestError, match=message):
            find_encoder(name)

    def test_a_tag_that_timm_does_not_have(self) -> None:
        with pytest.raises(RequestError, match=r"test_vit.*\bnosuch\b.*r160_in1k"):
            find_encoder("timm:test_vit.nosuch")

    def test_a_model_that_gives_neither_tokens_nor_maps(self) -> None:
        """Two branches, each with tokens of its own."""
        with pytest.raises(RequestError, match="crossvit_9_240"):
            find_encoder("timm:crossvit_9_240")

    @pytest.mark.parametrize(
        ("name", "library"), [(TIMM_VIT, "timm"), ("open_clip:ViT-B-32", "open_clip")]
    )
    def test_without_the_library(
        self, monkeypatch: pytest.MonkeyPatch, name: str, library: str
    ) -> None:
        monkeypatch.setitem(sys.modules, library, None)
        message = rf"^{name} needs {library}, which is not installed: install dinocache\[extract\]$"
        with pytest.raises(RequestError, match=message):
            find_encoder(name)


class TestShapes:
    @pytest.mark.parametrize(
        ("name", "side", "expected"),
        [
            (
                TIMM_VIT,
                (32, 48),
                {
                    "cls": (2, 64),
                    "embed": (2, 64),
                    "mean": (2, 64),
                    "dense": (2, 2, 3, 64),
                    "dense.L04": (2, 2, 3, 64),
                },
            ),
            (
                TIMM_CNN,
                (64, 96),
                {
                    "embed": (2, 64),
                    "mean": (2, 64),
                    "dense": (2, 2, 3, 64),
                    "dense.L00": (2, 16, 24, 24),
                    "dense.L01": (2, 8, 12, 32),
                },
            ),
            (  # channels last, with a norm before its classifier
                "timm:test_mambaout",
                (64, 96),
                {
                    "embed": (2, 256),
                    "mean": (2, 64),
                    "dense": (2, 2, 3, 64),
                    "dense.L01": (2, 8, 12, 32),
                },
            ),
            (
                SWIN,
                (224, 224),
                {
                    "embed": (2, 768),
                    "mean": (2, 768),
                    "dense": (2, 7, 7, 768),
                    "dense.L00": (2, 56, 56, 96),
                    "dense.L02": (2, 14, 14, 384),
                },
            ),
            (
                CLIP_VIT,
                (224, 224),
                {
                    "embed": (2, 256),
                    "cls": (2, 384),
                    "mean": (2, 384),
                    "dense": (2, 7, 7, 384),
                    "dense.L03": (2, 7, 7, 384),
                },
            ),
        ],
    )
    def test_kinds(
        self, name: str, side: tuple[int, int], expected: dict[str, tuple[int, ...]]
    ) -> None:
        spec = find_encoder(name)
        encoder = random_encoder(name)
        assert set(spec.kinds) <= expected.keys()
        features = encoder(pixels(2, 3, *side), tuple(expected))
        assert {kind: tuple(values.shape) for kind, values in features.items()} == expected
        for kind, values in features.items():
            assert float(values.std()) > 0, kind
            assert torch.isfinite(values).all(), kind

    def test_rows_and_columns_of_channels_last_maps(self) -> None:
        """A change in one corner of the image moves that corner of the map most."""
        encoder = random_encoder(SWIN)
        images = pixels(1, 3, 224, 224)
        changed = images.clone()
        changed[:, :, 32:64, 160:192] += 1
        for kind, patch in (("dense.L00", 4), ("dense", 32)):
            moved = encoder(changed, (kind,))[kind] - encoder(images, (kind,))[kind]
            row, column = divmod(int(moved.abs().sum(-1)[0].argmax()), 224 // patch)
            assert (row * patch // 32, column * patch // 32) == (1, 5), kind

    def test_another_size_is_refused(self) -> None:
        encoder = random_encoder(CLIP_VIT)
        message = r"^open_clip:ViT-S-32-alt cannot take 256x224 px .*: it takes 224x224 only$"
        with pytest.raises(RequestError, match=message):
            encoder(pixels(1, 3, 256, 224))


def timm_file(name: str, folder: Path) -> tuple[EncoderSpec, torch.nn.Module, str]:
    """Write a model with its classifier, as timm publishes it."""
    model = seeded(timm.create_model(name.removeprefix("timm:"), num_classes=11))
    file = folder / "model.safetensors"
    save_file({key: tensor.contiguous() for key, tensor in model.state_dict().items()}, file)
    return find_encoder(name), model, str(file)


def clip_file(name: str, folder: Path) -> tuple[EncoderSpec, torch.nn.Module, str]:
    """Write a model with its text tower, as open_clip publishes it."""
    model = seeded(open_clip.create_model(name.removeprefix("open_clip:"), pretrained=None))
    file = folder / "open_clip_pytorch_model.bin"
    torch.save(model.state_dict(), file)
    return find_encoder(name), model, str(file)


class TestFiles:
    @pytest.mark.parametrize(
        ("name", "side"),
        [
            (TIMM_VIT, (160, 160)),
            (TIMM_CNN, (64, 96)),
            ("timm:test_resnet.r160_in1k", (64, 96)),
            (SWIN, (224, 224)),
        ],
    )
    def test_timms_embedding(self, name: str, side: tuple[int, int], tmp_path: Path) -> None:
        spec, model, file = timm_file(name, tmp_path)
        encoder = load_encoder(spec, file)
        images = pixels(2, 3, *side)
        features = encoder(images, spec.kinds)
        with torch.inference_mode():
            tokens = model.forward_features(images)
            expected = model.forward_head(tokens, pre_logits=True)
            whole = model(images)
        assert whole.shape == (2, 11)  # the file has a classifier, which is done without
        torch.testing.assert_close(features["embed"], expected, rtol=1e-4, atol=1e-5)
        assert float(expected.std()) > 1e-3
        if spec.network == "tokens":
            torch.testing.assert_close(features["cls"], tokens[:, 0], rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("name", [CLIP_VIT])
    def test_open_clips_embedding(self, name: str, tmp_path: Path) -> None:
        spec, model, file = clip_file(name, tmp_path)
        encoder = load_encoder(spec, file)
        images = pixels(2, 3, 224, 224)
        with torch.inference_mode():
            expected = model.encode_image(images)
        features = encoder(images, spec.kinds)
        assert float(expected.std()) > 1e-3
        torch.testing.assert_close(features["embed"], expected, rtol=1e-4, atol=1e-5)

    def test_a_file_of_another_model(self, tmp_path: Path) -> None:
        _, _, file = timm_file("timm:test_resnet", tmp_path)
        message = (
            r"^model\.safetensors does not fit timm:test_convnext\.r160_in1k \(64 wide, 4 layers\)"
            r": \d+ of its tensors are missing, unknown or of another shape, first .*\. Pass other"
        )
        with pytest.raises(WeightsError, match=message):
            load_encoder(find_encoder(TIMM_CNN), file)

    @pytest.mark.parametrize("name", [TIMM_VIT, "timm:test_vit_relpos"])
    def test_one_tensor_is_missing_with_a_class_token_or_without(
        self, name: str, tmp_path: Path
    ) -> None:
        spec, model, _ = timm_file(name, tmp_path)
        tensors = {k: v for k, v in model.state_dict().items() if k != "blocks.1.mlp.fc2.bias"}
        torch.save(tensors, tmp_path / "w.pth")
        with pytest.raises(
            WeightsError, match=r": 1 of its tensors are .*, first blocks\.1\.mlp\.fc2\.bias\. Pass"
        ):
            load_encoder(spec, str(tmp_path / "w.pth"))

    def test_one_seed_gives_one_network(self) -> None:
        spec = find_encoder(TIMM_CNN)
        first, again, other = (
            load_encoder(spec, f"random:{seed}").weights.sha256 for seed in (4, 4, 5)
        )
        assert first == again != other


@pytest.mark.parametrize("name", ["timm:mobilevitv2_050", "timm:efficientvit_m0"])
def test_what_gives_other_grids_at_other_sizes_takes_its_own_only(name: str) -> None:
    """They resize within, so that a map is not what its stride says."""
    spec = find_encoder(name)
    assert spec.fixed_px == spec.native_px


def test_dinov3_of_timm_has_its_periods_rounded_too() -> None:
    spec = find_encoder("timm:vit_small_patch16_dinov3.lvd1689m")
    assert spec.rope_base == 100.0
    encoder = load_encoder(spec, "random")
    assert encoder.rope == "bfloat16"
    periods = encoder.network.trunk.rope.periods
    assert torch.equal(periods, periods.bfloat16().float())


@pytest.mark.parametrize(
    "name", ["open_clip:hf-hub:foo/bar", "timm:qwen3_vit_306m_enc", "timm:mobilenetv5_300m_enc"]
)
def test_names_that_no_library_builds_here_end_in_one_line(name: str) -> None:
    with pytest.raises(RequestError):
        find_encoder(name)
