import re
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from transformers import DINOv3ViTConfig, DINOv3ViTModel

from dinocache.encoders import (
    ENCODERS,
    Encoder,
    EncoderSpec,
    Tokens,
    check_resolution,
    encoder_spec,
    load_encoder,
)
from dinocache.errors import RequestError, WeightsError, WeightsUnavailableError

TINY = encoder_spec("tiny")
Tensors = dict[str, torch.Tensor]


@pytest.fixture(autouse=True)
def digests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DINOCACHE_CACHE", str(tmp_path / "digests"))


def reference_model(spec: EncoderSpec) -> DINOv3ViTModel:
    """Build transformers' DINOv3 with seeded weights, all of which matter to the features.

    LayerScale as it is initialised would hide every block.
    """
    config = DINOv3ViTConfig(
        hidden_size=spec.dim,
        intermediate_size=4 * spec.dim,
        num_hidden_layers=spec.depth,
        num_attention_heads=spec.heads,
        num_register_tokens=spec.prefix_tokens - 1,
    )
    with torch.device("meta"):
        model = DINOv3ViTModel(config).eval()
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for key, empty in model.state_dict().items():
        values = torch.randn(empty.shape, generator=generator)
        if re.search(r"[qv]_proj\.bias$", key):
            values *= 0
        elif re.search(r"(lambda1|norm\d?\.weight)$", key):
            values = 1 + values / 4
        elif "token" not in key:
            values *= values[0].numel() ** -0.5 if values.ndim > 1 else 0.1
        tensors[key] = values
    model.load_state_dict(tensors, strict=True, assign=True)
    model.rope_embeddings.inv_freq = 1 / rounded_periods(spec)
    return model


def periods(spec: EncoderSpec) -> torch.Tensor:
    """Compute what Meta's code computes, in its order of operations."""
    head_dim = spec.dim // spec.heads
    return 100.0 ** (2 * torch.arange(head_dim // 4, dtype=torch.float32) / (head_dim // 2))


def rounded_periods(spec: EncoderSpec) -> torch.Tensor:
    return periods(spec).bfloat16().float()


def published_by_transformers(model: DINOv3ViTModel) -> Tensors:
    return {key.removeprefix("model."): tensor for key, tensor in model.state_dict().items()}


def published_by_meta(model: DINOv3ViTModel, spec: EncoderSpec) -> Tensors:
    """Rename the way back, with all that Meta's files have besides."""
    theirs = published_by_transformers(model)
    tensors = {"rope_embed.periods": rounded_periods(spec)}
    renames = (
        (r"^embeddings\.register_tokens", "storage_tokens"),
        (r"^embeddings\.patch_embeddings", "patch_embed.proj"),
        (r"^embeddings\.", ""),
        (r"^layer\.", "blocks."),
        (r"attention\.o_proj", "attn.proj"),
        (r"layer_scale(\d)\.lambda1", r"ls\1.gamma"),
        (r"up_proj", "fc1"),
        (r"down_proj", "fc2"),
    )
    for key, tensor in theirs.items():
        if ".q_proj.weight" in key:
            parts = [theirs[key.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            block = f"blocks.{key.split('.')[1]}.attn.qkv"
            tensors[f"{block}.weight"] = torch.cat(parts)
            tensors[f"{block}.bias"] = torch.zeros(3 * spec.dim)
            tensors[f"{block}.bias_mask"] = torch.zeros(3 * spec.dim)
        elif not re.search(r"[qkv]_proj", key):
            for pattern, replacement in renames:
                key = re.sub(pattern, replacement, key)
            tensors[key] = tensor
    return tensors


@pytest.fixture(scope="module")
def small() -> DINOv3ViTModel:
    return reference_model(encoder_spec("dinov3-s"))


@pytest.fixture(scope="module")
def files(small: DINOv3ViTModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The same weights as each publisher writes them, by where their RoPE periods come from."""
    folder = tmp_path_factory.mktemp("small")
    torch.save(published_by_meta(small, encoder_spec("dinov3-s")), folder / "meta.pth")
    save_file(published_by_transformers(small), folder / "transformers.safetensors")
    return {"checkpoint": f"{folder}/meta.pth", "bfloat16": f"{folder}/transformers.safetensors"}


def pixels(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2))


def largest_difference(tokens: Tokens, reference: DINOv3ViTModel, images: torch.Tensor) -> float:
    """Compare cls, every patch token and their mean with transformers' output."""
    with torch.inference_mode():
        expected = reference(images).last_hidden_state
    patches = tokens.patches.flatten(1, 2)
    differences = (
        tokens.cls - expected[:, 0],
        patches - expected[:, 5:],
        patches.mean(dim=1) - expected[:, 5:].mean(dim=1),
    )
    return max(float(difference.abs().max()) for difference in differences)


class TestFacts:
    def test_names_are_unique(self) -> None:
        assert len({spec.name for spec in ENCODERS}) == len(ENCODERS)

    @pytest.mark.parametrize("spec", ENCODERS, ids=lambda spec: spec.name)
    def test_table_agrees_with_timm(self, spec: EncoderSpec) -> None:
        head_dim, rest = divmod(spec.dim, spec.heads)
        assert (rest, head_dim % 4) == (0, 0)
        if spec.hub_id is not None:
            config = timm.get_pretrained_cfg(spec.hub_id.removeprefix("timm/"))
            assert config.hf_hub_id == spec.hub_id
            assert (config.mean, config.std, config.license) == (spec.mean, spec.std, spec.licence)
            with torch.device("meta"):
                model = timm.create_model(spec.timm_name)
            shape = (model.embed_dim, len(model.blocks), model.blocks[0].attn.num_heads)
            assert shape == (spec.dim, spec.depth, spec.heads)
            assert model.num_prefix_tokens == spec.prefix_tokens
            assert model.rope.temperature == spec.rope_base

    def test_unknown_name_lists_the_known(self) -> None:
        with pytest.raises(RequestError, match=r"no encoder 'vit'; known are dinov3-s, .*, tiny$"):
            encoder_spec("vit")

    @pytest.mark.parametrize("resolution", [(16, 16), (224, 224), (1024, 1280)])
    def test_whole_patches(self, resolution: tuple[int, int]) -> None:
        check_resolution(TINY, resolution)

    @pytest.mark.parametrize(
        ("resolution", "nearest"),
        [
            ((250, 250), "240x240 or 256x256"),
            ((250, 64), "240x64 or 256x64"),
            ((7, 100), "16x96 or 16x112"),
            ((0, 64), "16x64"),
            ((-16, 64), "16x64"),
        ],
    )
    def test_broken_patches_name_the_nearest_sizes(
        self, resolution: tuple[int, int], nearest: str
    ) -> None:
        height, width = resolution
        message = rf"tiny cannot take {height}x{width} px .* 16 px patch\. Nearest .*: {nearest}$"
        with pytest.raises(RequestError, match=message):
            check_resolution(TINY, resolution)


class TestAgainstTransformers:
    """An independent implementation, given the periods that the original release has."""

    @pytest.mark.parametrize("rope", ["checkpoint", "bfloat16"])
    @pytest.mark.parametrize("side", [(64, 64), (64, 96), (112, 48)])
    def test_small(
        self, small: DINOv3ViTModel, files: dict[str, str], rope: str, side: tuple[int, int]
    ) -> None:
        encoder = load_encoder(encoder_spec("dinov3-s"), files[rope])
        assert encoder.rope == rope
        images = pixels(2, 3, *side)
        tokens = encoder(images)
        assert tokens.cls.shape == (2, 384)
        assert tokens.patches.shape == (2, side[0] // 16, side[1] // 16, 384)
        assert {tokens.cls.dtype, tokens.patches.dtype} == {torch.float32}
        assert largest_difference(tokens, small, images) <= 1e-4

    def test_unrounded_periods_are_seen(self, small: DINOv3ViTModel, files: dict[str, str]) -> None:
        images = pixels(2, 3, 64, 96)
        for file in files.values():
            encoder = load_encoder(encoder_spec("dinov3-s"), file, rope="float32")
            assert encoder.rope == "float32"
            assert largest_difference(encoder(images), small, images) > 1e-3

    def test_periods_of_the_file_are_the_ones_used(
        self, small: DINOv3ViTModel, tmp_path: Path
    ) -> None:
        spec = encoder_spec("dinov3-s")
        tensors = published_by_meta(small, spec)
        tensors["rope_embed.periods"] = tensors["rope_embed.periods"] * 1.5
        torch.save(tensors, tmp_path / "w.pth")
        images = pixels(1, 3, 64, 96)
        tokens = load_encoder(spec, str(tmp_path / "w.pth"))(images)
        assert largest_difference(tokens, small, images) > 1e-2

    def test_base(self, tmp_path: Path) -> None:
        spec = encoder_spec("dinov3-b")
        reference = reference_model(spec)
        torch.save(published_by_meta(reference, spec), tmp_path / "base.pth")
        images = pixels(2, 3, 64, 96)
        tokens = load_encoder(spec, str(tmp_path / "base.pth"))(images)
        assert tokens.cls.shape == (2, 768)
        assert largest_difference(tokens, reference, images) <= 1e-4


class TestRandom:
    def test_seeds(self) -> None:
        first, again = load_encoder(TINY, "random"), load_encoder(TINY, "random:0")
        assert first.weights == again.weights
        assert (first.weights.name, first.weights.path) == ("random:0", None)
        assert first.weights.is_random
        assert re.fullmatch(r"[0-9a-f]{64}", first.weights.sha256)
        images = pixels(2, 3, 32, 48)
        assert torch.equal(first(images).patches, again(images).patches)
        assert load_encoder(TINY, "random:1").weights.sha256 != first.weights.sha256

    def test_global_generator_is_left_alone(self) -> None:
        torch.manual_seed(7)
        before = torch.get_rng_state()
        first = load_encoder(TINY, "random:5").weights.sha256
        assert torch.equal(torch.get_rng_state(), before)
        torch.rand(3)
        assert load_encoder(TINY, "random:5").weights.sha256 == first

    def test_cls_tells_images_apart(self) -> None:
        cls = load_encoder(TINY, "random")(pixels(5, 3, 32, 48)).cls
        assert float(cls.std(dim=0).mean()) > 0.01

    @pytest.mark.parametrize("weights", ["hub", "hub,random:3"])
    def test_tiny_has_no_published_weights(self, weights: str) -> None:
        if weights == "hub":
            with pytest.raises(WeightsUnavailableError, match="no weights are published"):
                load_encoder(TINY, weights)
        else:
            assert load_encoder(TINY, weights).weights.name == "random:3"


class TestEncoder:
    @pytest.fixture
    def encoder(self) -> Encoder:
        return load_encoder(TINY, "random")

    def test_frozen(self, encoder: Encoder) -> None:
        assert not encoder.model.training
        assert not any(parameter.requires_grad for parameter in encoder.model.parameters())
        assert encoder(pixels(1, 3, 32, 48)).cls.is_inference()

    def test_order_in_a_batch_changes_nothing(self, encoder: Encoder) -> None:
        images, order = pixels(5, 3, 32, 48), [3, 0, 4, 2, 1]
        tokens, shuffled = encoder(images), encoder(images[order])
        torch.testing.assert_close(shuffled.cls, tokens.cls[order], rtol=0, atol=1e-5)
        torch.testing.assert_close(shuffled.patches, tokens.patches[order], rtol=0, atol=1e-5)

    def test_patches_lie_as_in_the_image(self, encoder: Encoder) -> None:
        """A change to one patch of pixels moves the token of that row and column most."""
        images = pixels(1, 3, 64, 96)
        changed = images.clone()
        changed[:, :, 16:32, 64:80] += 1
        moved = (encoder(changed).patches - encoder(images).patches).abs().sum(dim=-1)[0]
        assert divmod(int(moved.argmax()), 6) == (1, 4)

    @pytest.mark.parametrize(
        ("images", "message"),
        [
            (pixels(3, 32, 48), r"not \(3, 32, 48\) torch\.float32"),
            (pixels(2, 1, 32, 48), r"not \(2, 1, 32, 48\) torch\.float32"),
            (pixels(2, 3, 32, 48).half(), r"not \(2, 3, 32, 48\) torch\.float16"),
            (pixels(2, 3, 32, 50), "tiny cannot take 32x50 px"),
        ],
    )
    def test_other_pixels_are_refused(
        self, encoder: Encoder, images: torch.Tensor, message: str
    ) -> None:
        with pytest.raises(RequestError, match=message):
            encoder(images)

    def test_bf16_computes_in_bf16_with_float32_weights_and_periods(self) -> None:
        full, half = load_encoder(TINY, "random"), load_encoder(TINY, "random", precision="bf16")
        images = pixels(2, 3, 32, 48)
        seen: list[torch.dtype] = []
        half.model.blocks[0].mlp.fc1.register_forward_hook(lambda *args: seen.append(args[2].dtype))
        expected, tokens = full(images), half(images)
        assert seen == [torch.bfloat16]
        assert {tokens.cls.dtype, tokens.patches.dtype} == {torch.float32}
        difference = float((tokens.patches - expected.patches).abs().max())
        assert 0 < difference < 0.1
        assert half.weights == full.weights
        assert torch.equal(half.model.rope.periods, rounded_periods(TINY))

    def test_fp32_stays_fp32_inside_the_caller_s_autocast(self, encoder: Encoder) -> None:
        images = pixels(2, 3, 32, 48)
        expected = encoder(images)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(encoder(images).patches, expected.patches)

    def test_tf32_is_off_while_encoding_and_restored(self, encoder: Encoder) -> None:
        flags = torch.backends.cudnn
        before = (flags.enabled, flags.allow_tf32)
        seen: list[tuple[bool, bool]] = []
        encoder.model.patch_embed.register_forward_hook(
            lambda *_: seen.append((flags.enabled, flags.allow_tf32))
        )
        encoder(pixels(1, 3, 32, 48))
        assert seen == [(True, False)]
        assert (flags.enabled, flags.allow_tf32) == before

    @pytest.mark.parametrize(
        ("rope", "expected"), [("auto", rounded_periods(TINY)), ("float32", periods(TINY))]
    )
    def test_periods_survive_a_move(self, rope: str, expected: torch.Tensor) -> None:
        encoder = load_encoder(TINY, "random", rope=rope, device=torch.device("cpu"))
        assert not torch.equal(rounded_periods(TINY), periods(TINY))
        encoder(pixels(1, 3, 32, 48))
        moved = encoder.model.to("cpu", non_blocking=True)._apply(torch.clone)
        assert torch.equal(moved.rope.periods, expected)
        assert moved.rope.pos_embed_cached is None

    @pytest.mark.gpu
    def test_cuda_agrees_with_cpu(self, encoder: Encoder) -> None:
        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")
        on_gpu = load_encoder(TINY, "random", device="cuda")
        images = pixels(2, 3, 64, 96)
        expected, tokens = encoder(images), on_gpu(images)
        torch.testing.assert_close(tokens.cls.cpu(), expected.cls, rtol=0, atol=1e-4)
        torch.testing.assert_close(tokens.patches.cpu(), expected.patches, rtol=0, atol=1e-4)
        assert torch.equal(on_gpu.model.rope.periods.cpu(), rounded_periods(TINY))

    @pytest.mark.parametrize("wrong", [{"rope": "bfloat16"}, {"precision": "fp16"}])
    def test_unknown_choices_are_refused(self, wrong: dict[str, str]) -> None:
        with pytest.raises(RequestError, match=r"one of auto, float32 and .* one of fp32, bf16"):
            load_encoder(TINY, "random", **wrong)


class TestWrongFiles:
    @pytest.fixture
    def tensors(self) -> Tensors:
        return published_by_meta(reference_model(TINY), TINY)

    def load(self, spec: EncoderSpec, tensors: Tensors, folder: Path) -> Encoder:
        torch.save(tensors, folder / "w.pth")
        return load_encoder(spec, str(folder / "w.pth"))

    def test_right_file(
        self, tensors: Tensors, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        encoder = self.load(TINY, tensors, tmp_path)
        assert encoder.weights.name == "w.pth"
        assert not encoder.weights.is_random
        assert not any(tensor.is_meta for tensor in encoder.model.state_dict().values())
        assert capsys.readouterr().out == ""

    def test_half_precision_file(self, tensors: Tensors, tmp_path: Path) -> None:
        half = {key: tensor.bfloat16() for key, tensor in tensors.items()}
        encoder = self.load(TINY, half, tmp_path)
        assert {tensor.dtype for tensor in encoder.model.parameters()} == {torch.float32}
        assert encoder(pixels(1, 3, 32, 48)).cls.dtype == torch.float32

    def test_another_encoder_is_named(self, tensors: Tensors, tmp_path: Path) -> None:
        message = (
            r"w\.pth does not fit dinov3-s \(384 wide, 12 blocks\): it is 48 wide, 2 blocks: looks "
            r"like tiny\. Ask for tiny, or pass other --weights"
        )
        with pytest.raises(WeightsError, match=message):
            self.load(encoder_spec("dinov3-s"), tensors, tmp_path)

    def test_unknown_size(self, tensors: Tensors, tmp_path: Path) -> None:
        shallow = {key: value for key, value in tensors.items() if not key.startswith("blocks.1")}
        message = r"it is 48 wide, 1 blocks: not a known encoder\. Pass other --weights"
        with pytest.raises(WeightsError, match=message):
            self.load(TINY, shallow, tmp_path)

    @pytest.mark.parametrize(
        ("key", "other"),
        [
            ("norm.bias", None),
            ("blocks.0.mlp.w1.weight", torch.ones(3)),
            ("blocks.1.mlp.fc2.weight", torch.ones(48, 7)),
            ("rope_embed.periods", torch.ones(6)),
        ],
    )
    def test_same_size_but_another_model(
        self, tensors: Tensors, tmp_path: Path, key: str, other: torch.Tensor | None
    ) -> None:
        tensors.pop(key, None)
        changed = tensors if other is None else tensors | {key: other}
        message = rf"as wide and as deep, but 1 of its tensors are .* first {re.escape(key)}\. Pass"
        with pytest.raises(WeightsError, match=message):
            self.load(TINY, changed, tmp_path)
