"""Encoders with their weights: what comes out, and that nothing else decides it."""

import dataclasses
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import DINOv3ViTConfig, DINOv3ViTModel

from dinocache.encoders import encoder_spec
from dinocache.errors import RequestError, WeightsError, WeightsUnavailableError
from dinocache.inference import Encoder, load_encoder
from dinocache.libraries import find_encoder
from dinocache.spec import EncoderSpec

TINY = encoder_spec("tiny")
HEADS = {"dinov3-s": 6, "dinov3-b": 12, "tiny": 3}
TOKENS = ("cls", "mean", "dense")

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
        num_attention_heads=HEADS[spec.name],
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
    head_dim = spec.dim // HEADS[spec.name]
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


def largest_difference(features: Tensors, reference: DINOv3ViTModel, images: torch.Tensor) -> float:
    """Compare cls, every patch token and their mean with transformers' output."""
    with torch.inference_mode():
        expected = reference(images).last_hidden_state
    differences = (
        features["cls"] - expected[:, 0],
        features["dense"].flatten(1, 2) - expected[:, 5:],
        features["mean"] - expected[:, 5:].mean(dim=1),
    )
    return max(float(difference.abs().max()) for difference in differences)


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
        features = encoder(images, TOKENS)
        assert {kind: tuple(values.shape) for kind, values in features.items()} == {
            "cls": (2, 384),
            "mean": (2, 384),
            "dense": (2, side[0] // 16, side[1] // 16, 384),
        }
        assert {values.dtype for values in features.values()} == {torch.float32}
        assert largest_difference(features, small, images) <= 1e-4

    def test_maps_of_earlier_layers(self, small: DINOv3ViTModel, files: dict[str, str]) -> None:
        """As transformers' hidden states, with the last norm applied to each."""
        spec = encoder_spec("dinov3-s")
        images = pixels(2, 3, 64, 96)
        layers = range(spec.depth - 1)
        kinds = [*(f"dense.L{layer:02d}" for layer in layers), "dense"]
        features = load_encoder(spec, files["checkpoint"])(images, kinds)
        with torch.inference_mode():
            hidden = small(images, output_hidden_states=True).hidden_states
            assert len(hidden) == spec.depth + 1  # the first is what goes into the blocks
            expected = [small.norm(state)[:, 5:].unflatten(1, (4, 6)) for state in hidden[1:]]
        for kind, states in zip(kinds, expected, strict=True):
            assert float((features[kind] - states).abs().max()) <= 1e-4, kind
        assert float((features["dense.L10"] - features["dense"]).abs().max()) > 0.1

    def test_unrounded_periods_are_seen(self, small: DINOv3ViTModel, files: dict[str, str]) -> None:
        images = pixels(2, 3, 64, 96)
        for file in files.values():
            encoder = load_encoder(encoder_spec("dinov3-s"), file, rope="float32")
            assert encoder.rope == "float32"
            assert largest_difference(encoder(images, TOKENS), small, images) > 1e-3

    def test_periods_of_the_file_are_the_ones_used(
        self, small: DINOv3ViTModel, tmp_path: Path
    ) -> None:
        spec = encoder_spec("dinov3-s")
        tensors = published_by_meta(small, spec)
        tensors["rope_embed.periods"] = tensors["rope_embed.periods"] * 1.5
        torch.save(tensors, tmp_path / "w.pth")
        images = pixels(1, 3, 64, 96)
        features = load_encoder(spec, str(tmp_path / "w.pth"))(images, TOKENS)
        assert largest_difference(features, small, images) > 1e-2

    def test_base(self, tmp_path: Path) -> None:
        spec = encoder_spec("dinov3-b")
        reference = reference_model(spec)
        torch.save(published_by_meta(reference, spec), tmp_path / "base.pth")
        images = pixels(2, 3, 64, 96)
        features = load_encoder(spec, str(tmp_path / "base.pth"))(images, TOKENS)
        assert features["cls"].shape == (2, 768)
        assert largest_difference(features, reference, images) <= 1e-4

    @pytest.mark.parametrize("name", ["dinov3-s", "dinov3-b"])
    def test_bf16_points_the_same_way(self, name: str, tmp_path: Path) -> None:
        """The class token and every patch of bf16 against float32 of the other implementation."""
        spec = encoder_spec(name)
        reference = reference_model(spec)
        torch.save(published_by_meta(reference, spec), tmp_path / "w.pth")
        images = pixels(2, 3, 64, 64)
        features = load_encoder(spec, str(tmp_path / "w.pth"), precision="bf16")(images, TOKENS)
        with torch.inference_mode():
            expected = reference(images).last_hidden_state
        cosine = torch.nn.functional.cosine_similarity
        assert float(cosine(features["cls"], expected[:, 0], dim=-1).min()) >= 0.999
        patches = cosine(features["dense"].flatten(1, 2), expected[:, 5:], dim=-1)
        assert patches.shape == (2, 16)
        assert float(patches.min()) >= 0.999


class TestRandom:
    def test_seeds(self) -> None:
        first, again = load_encoder(TINY, "random"), load_encoder(TINY, "random:0")
        assert first.weights == again.weights
        assert (first.weights.name, first.weights.path) == ("random:0", None)
        assert first.weights.is_random
        assert re.fullmatch(r"[0-9a-f]{64}", first.weights.sha256)
        images = pixels(2, 3, 32, 48)
        assert torch.equal(first(images)["dense"], again(images)["dense"])
        assert load_encoder(TINY, "random:1").weights.sha256 != first.weights.sha256

    def test_global_generator_is_left_alone(self) -> None:
        torch.manual_seed(7)
        before = torch.get_rng_state()
        first = load_encoder(TINY, "random:5").weights.sha256
        assert torch.equal(torch.get_rng_state(), before)
        torch.rand(3)
        assert load_encoder(TINY, "random:5").weights.sha256 == first

    def test_cls_tells_images_apart(self) -> None:
        cls = load_encoder(TINY, "random")(pixels(5, 3, 32, 48))["cls"]
        assert float(cls.std(dim=0).mean()) > 0.01

    @pytest.mark.parametrize("weights", ["hub", "hub,random:3"])
    def test_tiny_has_no_published_weights(self, weights: str) -> None:
        if weights == "hub":
            with pytest.raises(
                WeightsUnavailableError, match=r"^the hub has no weights of tiny\. "
            ):
                load_encoder(TINY, weights)
        else:
            assert load_encoder(TINY, weights).weights.name == "random:3"


class TestEncoder:
    @pytest.fixture
    def encoder(self) -> Encoder:
        return load_encoder(TINY, "random")

    def test_frozen(self, encoder: Encoder) -> None:
        assert not any(module.training for module in encoder.network.modules())
        assert not any(parameter.requires_grad for parameter in encoder.network.parameters())
        assert all(values.is_inference() for values in encoder(pixels(1, 3, 32, 48)).values())

    def test_order_in_a_batch_changes_nothing(self, encoder: Encoder) -> None:
        images, order = pixels(5, 3, 32, 48), [3, 0, 4, 2, 1]
        features, shuffled = encoder(images, TOKENS), encoder(images[order], TOKENS)
        for kind in TOKENS:
            expected = features[kind][order]
            torch.testing.assert_close(shuffled[kind], expected, rtol=0, atol=1e-5)

    def test_patches_lie_as_in_the_image(self, encoder: Encoder) -> None:
        """A change to one patch of pixels moves the token of that row and column most."""
        images = pixels(1, 3, 64, 96)
        changed = images.clone()
        changed[:, :, 16:32, 64:80] += 1
        kinds = ("dense.L00", "dense")
        for kind, values in encoder(changed, kinds).items():
            moved = (values - encoder(images, kinds)[kind]).abs().sum(dim=-1)[0]
            assert moved.shape == (4, 6)
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

    def test_bf16_multiplies_in_bf16_and_keeps_the_rest_in_float32(self) -> None:
        full, half = load_encoder(TINY, "random"), load_encoder(TINY, "random", precision="bf16")
        images = pixels(2, 3, 32, 48)
        seen: list[torch.dtype] = []
        block = half.network.trunk.blocks[0]
        block.mlp.fc1.register_forward_hook(lambda *args: seen.append(args[2].dtype))
        expected, features = full(images, TOKENS), half(images, TOKENS)
        assert seen == [torch.bfloat16]
        assert {values.dtype for values in features.values()} == {torch.float32}
        difference = float((features["dense"] - expected["dense"]).abs().max())
        assert 0 < difference < 0.1
        assert half.weights == full.weights
        dtypes = {
            key.removeprefix("trunk."): tensor.dtype
            for key, tensor in half.network.state_dict().items()
        }
        halved = {key for key, dtype in dtypes.items() if dtype == torch.bfloat16}
        assert {
            key for key in dtypes if re.search(r"(qkv|proj|fc\d)\.(weight|bias)$", key)
        } == halved
        assert {dtypes[key] for key in dtypes.keys() - halved} == {torch.float32}
        assert torch.equal(half.network.trunk.rope.periods, rounded_periods(TINY))

    def test_fp32_stays_fp32_inside_the_caller_s_autocast(self, encoder: Encoder) -> None:
        images = pixels(2, 3, 32, 48)
        expected = encoder(images)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(encoder(images)["dense"], expected["dense"])

    def test_tf32_is_off_while_encoding_and_restored(self, encoder: Encoder) -> None:
        flags = torch.backends.cudnn
        before = (flags.enabled, flags.allow_tf32)
        seen: list[tuple[bool, bool]] = []
        encoder.network.trunk.patch_embed.register_forward_hook(
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
        moved = encoder.network.to("cpu", non_blocking=True)._apply(torch.clone)
        assert torch.equal(moved.trunk.rope.periods, expected)
        assert moved.trunk.rope.pos_embed_cached is None

    @pytest.mark.gpu
    def test_cuda_agrees_with_cpu(self, encoder: Encoder) -> None:
        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")
        on_gpu = load_encoder(TINY, "random", device="cuda")
        images = pixels(2, 3, 64, 96)
        expected, features = encoder(images, TOKENS), on_gpu(images, TOKENS)
        for kind in TOKENS:
            assert features[kind].device.type == "cuda"
            torch.testing.assert_close(features[kind].cpu(), expected[kind], rtol=0, atol=1e-4)
        assert torch.equal(on_gpu.network.trunk.rope.periods.cpu(), rounded_periods(TINY))

    @pytest.mark.gpu
    @pytest.mark.parametrize("precision", ["fp32", "bf16"])
    @pytest.mark.parametrize("name", ["tiny", "resnet50-trunc"])
    def test_compiled_agrees_with_uncompiled(self, name: str, precision: str) -> None:
        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")
        spec, images = encoder_spec(name), pixels(2, 3, 64, 96)
        kinds = every_kind(spec)
        plain, compiled = (
            load_encoder(spec, "random", device="cuda", precision=precision, compiled=choice)
            for choice in (False, True)
        )
        assert compiled.weights == plain.weights
        expected, features = plain(images, kinds), compiled(images, kinds)
        for kind in kinds:
            scale = max(1.0, float(expected[kind].abs().max()))
            difference = float((features[kind] - expected[kind]).abs().max())
            assert difference <= scale * (1e-4 if precision == "fp32" else 0.05), kind

    @pytest.mark.parametrize("wrong", [{"rope": "bfloat16"}, {"precision": "fp16"}])
    def test_unknown_choices_are_refused(self, wrong: dict[str, str]) -> None:
        with pytest.raises(RequestError, match=r"one of auto, float32 and .* one of fp32, bf16"):
            load_encoder(TINY, "random", **wrong)


def every_kind(spec: EncoderSpec) -> tuple[str, ...]:
    return (*spec.kinds, *(f"dense.L{layer:02d}" for layer in range(spec.depth - 1)))


SORTS = {
    "tiny": (32, 48),
    "resnet50-trunc": (32, 48),
    "timm:test_convnext": (64, 96),
    "timm:test_vit": (32, 48),
    "open_clip:ViT-S-32": (224, 224),
}
"""One encoder of each sort of network, and a size that it takes."""


@pytest.fixture(scope="module", params=SORTS)
def sort(request: pytest.FixtureRequest) -> tuple[Encoder, torch.Tensor]:
    """An encoder with random weights, and a batch."""
    return load_encoder(find_encoder(request.param), "random:4"), pixels(
        2, 3, *SORTS[request.param]
    )


class TestKinds:
    def test_shapes(self, sort: tuple[Encoder, torch.Tensor]) -> None:
        encoder, images = sort
        spec = encoder.spec
        features = encoder(images, every_kind(spec))
        assert tuple(features) == every_kind(spec)
        for kind, values in features.items():
            assert values.dtype == torch.float32
            if kind.startswith("dense"):
                layer = int(kind[7:] or spec.depth - 1)
                patch, dim = spec.layer_shape(layer)
                if kind == "dense":
                    patch, dim = spec.patch_px, spec.dim
                assert values.shape == (2, images.shape[2] // patch, images.shape[3] // patch, dim)
            else:
                assert values.shape == (2, spec.embed_dim if kind == "embed" else spec.dim)

    def test_one_pass_gives_all(self, sort: tuple[Encoder, torch.Tensor]) -> None:
        encoder, images = sort
        calls: list[int] = []
        layers = [m for m in encoder.network.trunk.modules() if isinstance(m, torch.nn.Conv2d)]
        hook = layers[0].register_forward_hook(lambda *_: calls.append(1))
        encoder(images, every_kind(encoder.spec))
        hook.remove()
        assert len(calls) == 1

    def test_more_kinds_change_no_bit_of_the_others(
        self, sort: tuple[Encoder, torch.Tensor]
    ) -> None:
        encoder, images = sort
        kinds = every_kind(encoder.spec)
        together = encoder(images, kinds)
        backwards = encoder(images, kinds[::-1])
        for kind in kinds:
            assert torch.equal(backwards[kind], together[kind]), kind
        for kind in (*encoder.spec.kinds, "dense.L00"):
            assert torch.equal(encoder(images, (kind,))[kind], together[kind]), kind

    def test_what_is_not_asked_for_is_not_given(self, sort: tuple[Encoder, torch.Tensor]) -> None:
        encoder, images = sort
        assert encoder(images, ("mean",)).keys() == {"mean"}
        assert encoder(images, ("dense.L00",)).keys() == {"dense.L00"}

    def test_mean_is_over_the_map(self, sort: tuple[Encoder, torch.Tensor]) -> None:
        encoder, images = sort
        features = encoder(images, ("mean", "dense"))
        torch.testing.assert_close(
            features["mean"], features["dense"].mean((1, 2)), rtol=1e-5, atol=1e-6
        )

    @pytest.mark.parametrize("name", ["tiny", "timm:test_vit"])
    def test_maps_are_timms_own_with_its_norm(self, name: str) -> None:
        encoder = load_encoder(find_encoder(name), "random")
        images = pixels(2, 3, 32, 48)
        kinds = [k for k in every_kind(encoder.spec) if k.startswith("dense.")]
        features = encoder(images, [*kinds, "dense"])
        with torch.inference_mode():
            maps = encoder.network.trunk.forward_intermediates(
                images, norm=True, intermediates_only=True
            )
        assert len(maps) == encoder.spec.depth
        for kind, expected in zip([*kinds, "dense"], maps, strict=True):
            assert torch.equal(features[kind], expected.permute(0, 2, 3, 1)), kind

    def test_maps_of_a_convolutional_network_are_timms_own(self) -> None:
        encoder = load_encoder(encoder_spec("resnet50-trunc"), "random")
        images = pixels(2, 3, 32, 48)
        kinds = ("dense.L00", "dense.L01", "dense.L02", "dense")
        features = encoder(images, kinds)
        with torch.inference_mode():
            maps = encoder.network.trunk.forward_intermediates(
                images.contiguous(memory_format=torch.channels_last),
                indices=[0, 1, 2, 3],
                intermediates_only=True,
            )
        for kind, expected in zip(kinds, maps, strict=True):
            assert torch.equal(features[kind], expected.permute(0, 2, 3, 1)), kind


def shallow(name: str) -> EncoderSpec:
    """Give a vision transformer of the table two blocks: bfloat16 is slow on most CPUs."""
    spec = find_encoder(name)
    if spec.family == "timm" or spec.network != "tokens":
        return spec
    return dataclasses.replace(spec, depth=2, arguments={**spec.arguments, "depth": 2})


class TestHalfWeights:
    @pytest.mark.parametrize(
        ("name", "side"),
        [
            ("dinov3-s", (32, 48)),
            ("eupe-tiny", (32, 48)),
            ("conch", (32, 48)),
            ("biomedclip", (32, 48)),
            ("byol", (32, 64)),
            ("timm:test_convnext", (64, 96)),
            ("timm:test_vit", (32, 48)),
            ("open_clip:ViT-S-32", (224, 224)),
        ],
    )
    def test_the_numbers_are_those_of_float32_weights(
        self, name: str, side: tuple[int, int]
    ) -> None:
        """torch's autocast rounds the weights at each call; here they are kept rounded."""
        spec = shallow(name)
        full, half = (load_encoder(spec, "random", precision=p) for p in ("fp32", "bf16"))
        rounding = dataclasses.replace(full, precision="bf16")
        images, kinds = pixels(2, 3, *side), every_kind(spec)
        features, expected = half(images, kinds), rounding(images, kinds)
        exact = full(images, kinds)
        for kind in kinds:
            assert torch.equal(features[kind], expected[kind]), kind
            assert not torch.equal(features[kind], exact[kind]), kind
        sizes = [sum(p.nbytes for p in e.network.parameters()) for e in (half, full)]
        assert sizes[0] < 0.7 * sizes[1]


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
        assert not any(tensor.is_meta for tensor in encoder.network.state_dict().values())
        assert capsys.readouterr().out == ""

    def test_half_precision_file(self, tensors: Tensors, tmp_path: Path) -> None:
        half = {key: tensor.bfloat16() for key, tensor in tensors.items()}
        encoder = self.load(TINY, half, tmp_path)
        assert {tensor.dtype for tensor in encoder.network.parameters()} == {torch.float32}
        assert encoder(pixels(1, 3, 32, 48))["cls"].dtype == torch.float32

    def test_another_encoder_is_named(self, tensors: Tensors, tmp_path: Path) -> None:
        message = (
            r"w\.pth does not fit dinov3-s \(384 wide, 12 layers\): it is 48 wide, 2 layers: looks "
            r"like tiny\. Ask for tiny, or pass other --weights"
        )
        with pytest.raises(WeightsError, match=message):
            self.load(encoder_spec("dinov3-s"), tensors, tmp_path)

    def test_unknown_size(self, tensors: Tensors, tmp_path: Path) -> None:
        shallow = {key: value for key, value in tensors.items() if not key.startswith("blocks.1")}
        message = r"it is 48 wide, 1 layers: not a known encoder\. Pass other --weights"
        with pytest.raises(WeightsError, match=message):
            self.load(TINY, shallow, tmp_path)

    @pytest.mark.parametrize(
        ("key", "other", "odd", "first"),
        [
            ("norm.bias", None, 1, "norm.bias"),
            ("blocks.0.mlp.w4.weight", torch.ones(3), 1, "blocks.0.mlp.w4.weight"),
            ("blocks.1.mlp.fc2.weight", torch.ones(48, 7), 1, "blocks.1.mlp.fc2.weight"),
            ("rope_embed.periods", torch.ones(6), 1, "rope_embed.periods"),
            # Half of a gated MLP: what is called fc1 beside it would be the other half.
            ("blocks.0.mlp.w1.weight", torch.ones(3), 3, "blocks.0.mlp.fc1.weight"),
        ],
    )
    def test_same_size_but_another_model(
        self,
        tensors: Tensors,
        tmp_path: Path,
        key: str,
        other: torch.Tensor | None,
        odd: int,
        first: str,
    ) -> None:
        tensors.pop(key, None)
        changed = tensors if other is None else tensors | {key: other}
        others = "" if odd == 1 else r", \S+, \S+"
        message = (
            rf"w\.pth does not fit tiny \(48 wide, 2 layers\): {odd} of its tensors are missing, "
            rf"unknown or of another shape, first {re.escape(first)}{others}\. Pass other --weigh"
        )
        with pytest.raises(WeightsError, match=message):
            self.load(TINY, changed, tmp_path)
