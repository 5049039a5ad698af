"""Reading files of weights: every publisher's names become ours, and nothing is executed."""

import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dinocache.checkpoints import FAMILIES, Checkpoint, read_checkpoint
from dinocache.encoders import ENCODERS
from dinocache.errors import WeightsError
from dinocache.spec import EncoderSpec
from dinocache.weights import Weights

DIM, DEPTH, REGISTERS = 6, 3, 4

Tensors = dict[str, torch.Tensor]


def meta_tensors() -> Tensors:
    """Seeded tensors under Meta's names, no two axes of one length but where they must be."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    tensors = {
        "cls_token": draw(1, 1, DIM),
        "storage_tokens": draw(1, REGISTERS, DIM),
        "mask_token": draw(1, DIM),
        "patch_embed.proj.weight": draw(DIM, 3, 2, 2),
        "rope_embed.periods": torch.tensor([1.0, 10.0]),
        "local_cls_norm.weight": draw(DIM),
        "norm.weight": draw(DIM),
    }
    for block in range(DEPTH):
        tensors |= {
            f"blocks.{block}.norm1.weight": draw(DIM),
            f"blocks.{block}.attn.qkv.weight": draw(3 * DIM, DIM),
            f"blocks.{block}.attn.qkv.bias": torch.zeros(3 * DIM),
            f"blocks.{block}.attn.qkv.bias_mask": torch.ones(3 * DIM),
            f"blocks.{block}.attn.proj.weight": draw(DIM, DIM),
            f"blocks.{block}.ls1.gamma": draw(DIM),
            f"blocks.{block}.mlp.fc1.weight": draw(4 * DIM, DIM),
            f"blocks.{block}.mlp.fc2.weight": draw(DIM, 4 * DIM),
            f"blocks.{block}.ls2.gamma": draw(DIM),
        }
    return tensors


def transformers_tensors(prefix: str = "") -> Tensors:
    meta = meta_tensors()
    tensors = {
        "embeddings.cls_token": meta["cls_token"],
        "embeddings.register_tokens": meta["storage_tokens"],
        "embeddings.mask_token": meta["mask_token"][None],
        "embeddings.patch_embeddings.weight": meta["patch_embed.proj.weight"],
        "norm.weight": meta["norm.weight"],
    }
    for block in range(DEPTH):
        theirs, ours = f"{prefix}layer.{block}", f"blocks.{block}"
        query, key, value = meta[f"{ours}.attn.qkv.weight"].chunk(3)
        tensors |= {
            f"{theirs}.norm1.weight": meta[f"{ours}.norm1.weight"],
            f"{theirs}.attention.q_proj.weight": query,
            f"{theirs}.attention.q_proj.bias": torch.zeros(DIM),
            f"{theirs}.attention.k_proj.weight": key,
            f"{theirs}.attention.v_proj.weight": value,
            f"{theirs}.attention.v_proj.bias": torch.zeros(DIM),
            f"{theirs}.attention.o_proj.weight": meta[f"{ours}.attn.proj.weight"],
            f"{theirs}.layer_scale1.lambda1": meta[f"{ours}.ls1.gamma"],
            f"{theirs}.mlp.up_proj.weight": meta[f"{ours}.mlp.fc1.weight"],
            f"{theirs}.mlp.down_proj.weight": meta[f"{ours}.mlp.fc2.weight"],
            f"{theirs}.layer_scale2.lambda1": meta[f"{ours}.ls2.gamma"],
        }
    return {key: tensor.contiguous().clone() for key, tensor in tensors.items()}


def timm_tensors() -> Tensors:
    meta = meta_tensors()
    tensors = {key: meta[key] for key in ("cls_token", "patch_embed.proj.weight", "norm.weight")}
    tensors["reg_token"] = meta["storage_tokens"]
    for block in (f"blocks.{index}" for index in range(DEPTH)):
        tensors |= {
            f"{block}.{key}": meta[f"{block}.{key}"]
            for key in (
                "norm1.weight",
                "attn.qkv.weight",
                "attn.proj.weight",
                "mlp.fc1.weight",
                "mlp.fc2.weight",
            )
        }
        tensors[f"{block}.gamma_1"] = meta[f"{block}.ls1.gamma"]
        tensors[f"{block}.gamma_2"] = meta[f"{block}.ls2.gamma"]
    return tensors


def write(content: object, file: Path) -> Path:
    if file.suffix == ".safetensors":
        assert isinstance(content, dict)
        save_file(content, file)
    else:
        torch.save(content, file)
    return file


def read(file: Path, family: str = "dinov3-vit", *classifier: str) -> Checkpoint:
    weights = Weights(name=file.name, sha256="", path=file)
    return read_checkpoint(weights, family, classifier=classifier)


def draw(*names: str) -> Tensors:
    """Give each name a tensor of its own length and values."""
    generator = torch.Generator().manual_seed(len(names))
    return {name: torch.randn(2 + i, generator=generator) for i, name in enumerate(names)}


def prefixed(prefix: str, tensors: Tensors) -> Tensors:
    return {f"{prefix}{key}": tensor for key, tensor in tensors.items()}


def assert_read(checkpoint: Checkpoint, expected: Tensors) -> None:
    """Hold what was read against the names of a network without `trunk.`."""
    assert checkpoint.tensors.keys() == prefixed("trunk.", expected).keys()
    for key, tensor in expected.items():
        assert torch.equal(checkpoint.tensors[f"trunk.{key}"], tensor), key


class TestRead:
    @pytest.mark.parametrize(
        ("content", "file", "has_periods"),
        [
            pytest.param(meta_tensors(), "w.pth", True, id="meta"),
            pytest.param({"teacher": meta_tensors(), "step": 7}, "w.pt", True, id="meta-wrapped"),
            pytest.param({"model": {"state_dict": meta_tensors()}}, "w.PTH", True, id="twice"),
            pytest.param(meta_tensors(), "w.safetensors", True, id="meta-safetensors"),
            pytest.param(transformers_tensors(), "w.safetensors", False, id="transformers-4"),
            pytest.param(transformers_tensors("model."), "w.safetensors", False, id="5"),
            pytest.param(timm_tensors(), "w.safetensors", False, id="timm"),
        ],
    )
    def test_every_format_gives_the_same_tensors(
        self,
        tmp_path: Path,
        content: Tensors,
        file: str,
        has_periods: bool,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        checkpoint = read(write(content, tmp_path / file))
        assert_read(checkpoint, timm_tensors())
        assert (checkpoint.dim, checkpoint.depth) == (DIM, DEPTH)
        assert (checkpoint.periods is not None) == has_periods
        assert capsys.readouterr().out == ""

    def test_old_files_that_are_no_zip(self, tmp_path: Path) -> None:
        torch.save(meta_tensors(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
        assert read(tmp_path / "old.pth").depth == DEPTH

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_is_widened(self, tmp_path: Path, dtype: torch.dtype) -> None:
        half = {key: tensor.to(dtype) for key, tensor in meta_tensors().items()}
        checkpoint = read(write(half, tmp_path / "w.pth"))
        assert {tensor.dtype for tensor in checkpoint.tensors.values()} == {torch.float32}
        assert torch.equal(checkpoint.tensors["trunk.reg_token"], half["storage_tokens"].float())
        assert checkpoint.periods is not None
        assert checkpoint.periods.dtype == torch.float32

    def test_tensors_outlive_the_file(self, tmp_path: Path) -> None:
        file = write(meta_tensors(), tmp_path / "w.pth")
        checkpoint = read(file)
        file.write_bytes(b"\0" * file.stat().st_size)
        assert torch.equal(checkpoint.tensors["trunk.reg_token"], meta_tensors()["storage_tokens"])

    def test_masked_bias_is_no_bias(self, tmp_path: Path) -> None:
        tensors = meta_tensors()
        tensors["blocks.1.attn.qkv.bias"] += 0.5
        tensors["blocks.1.attn.qkv.bias_mask"] *= 0
        assert read(write(tensors, tmp_path / "w.pth")).depth == DEPTH

    @pytest.mark.parametrize(
        ("tensors", "key", "value"),
        [
            (meta_tensors(), "blocks.1.attn.qkv.bias", 0.5),
            (meta_tensors(), "blocks.1.attn.qkv.bias_mask", float("nan")),  # never initialised
            (transformers_tensors(), "layer.1.attention.q_proj.bias", 0.5),
            (transformers_tensors(), "layer.1.attention.v_proj.bias", 0.5),
            (timm_tensors(), "blocks.1.attn.q_bias", 0.5),
        ],
    )
    def test_bias_that_is_not_zero(
        self, tmp_path: Path, tensors: Tensors, key: str, value: float
    ) -> None:
        changed = tensors.get(key, torch.zeros(DIM)).clone()
        changed[2] = value
        file = write(tensors | {key: changed}, tmp_path / "w.safetensors")
        message = (
            r"w\.safetensors has a blocks\.1\.attn\.\S+bias that is not zero, as it is in every"
        )
        with pytest.raises(WeightsError, match=message):
            read(file)

    @pytest.mark.parametrize("key", ["blocks.2.ls1.gamma", "rope_embed.periods"])
    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_values_that_are_not_finite(self, tmp_path: Path, key: str, value: float) -> None:
        tensors = meta_tensors()
        tensors[key][1] = value
        with pytest.raises(WeightsError, match=r"w\.pth holds values in \S+ that are not finite"):
            read(write(tensors, tmp_path / "w.pth"))

    @pytest.mark.parametrize("zipped", [True, False])
    def test_code_is_refused_and_not_executed(self, tmp_path: Path, zipped: bool) -> None:
        class Bomb:
            def __reduce__(self) -> tuple[object, tuple[str]]:
                return os.mkdir, (str(tmp_path / "executed"),)

        file = tmp_path / "bomb.pth"
        if zipped:
            torch.save(meta_tensors() | {"bomb": Bomb()}, file)
        else:
            file.write_bytes(pickle.dumps(Bomb()))
        with pytest.raises(WeightsError, match=r"bomb\.pth is refused: .* never executed\. \S+ it"):
            read(file)
        assert not (tmp_path / "executed").exists()
        pickle.loads(pickle.dumps(Bomb()))  # the test has power: it is a bomb
        assert (tmp_path / "executed").exists()

    @pytest.mark.parametrize("file", ["w.pth", "w.safetensors"])
    @pytest.mark.parametrize("kept", [0.0, 0.3, 0.999])
    def test_cut_short(self, tmp_path: Path, file: str, kept: float) -> None:
        whole = write(meta_tensors(), tmp_path / file).read_bytes()
        (tmp_path / file).write_bytes(whole[: int(len(whole) * kept)])
        with pytest.raises(WeightsError, match=r"cannot be read as weights .*: it is cut short or"):
            read(tmp_path / file)

    @pytest.mark.parametrize("file", ["w.pth", "w.safetensors"])
    def test_web_page_instead_of_a_download(self, tmp_path: Path, file: str) -> None:
        (tmp_path / file).write_text("<html>Sign in to continue</html>")
        with pytest.raises(WeightsError, match=r"no file of weights, or|it is cut short or"):
            read(tmp_path / file)

    @pytest.mark.parametrize("content", [{}, [1], {"epoch": 7}, {"model": {3: torch.ones(2)}}])
    def test_no_table_of_tensors(self, tmp_path: Path, content: object) -> None:
        with pytest.raises(WeightsError, match=r"w\.pth holds no table of named tensors"):
            read(write(content, tmp_path / "w.pth"))

    def test_another_architecture(self, tmp_path: Path) -> None:
        tensors = {"conv1.weight": torch.ones(2, 3), "fc.bias": torch.ones(5)}
        message = (
            r"w\.pth holds none of: Meta's DINOv3 \.pth; transformers' .*; timm's model\.safetens.*"
            r"\. Its first tensors are conv1\.weight, fc\.bias\. Download it again, or pass another"
        )
        with pytest.raises(WeightsError, match=message):
            read(write(tensors, tmp_path / "w.pth"))

    @pytest.mark.parametrize("file", ["pytorch_model.bin", "w.torch", "w.pth.tar", "w"])
    def test_any_suffix_is_one_of_torchs(self, tmp_path: Path, file: str) -> None:
        assert_read(read(write(meta_tensors(), tmp_path / file)), timm_tensors())
        (tmp_path / file).write_text("<html>Sign in to continue</html>")
        with pytest.raises(WeightsError, match=r"is refused: it is no file of weights, or holds"):
            read(tmp_path / file)

    def test_random_weights_are_in_no_file(self) -> None:
        with pytest.raises(ValueError, match="random:0 are in no file"):
            read_checkpoint(Weights(name="random:0", sha256="", path=None), "dinov3-vit")

    @pytest.mark.parametrize("part", ["q_proj", "k_proj", "v_proj"])
    def test_incomplete_qkv_is_left_for_the_model_to_refuse(
        self, tmp_path: Path, part: str
    ) -> None:
        tensors = transformers_tensors()
        del tensors[f"layer.1.attention.{part}.weight"]
        found = read(write(tensors, tmp_path / "w.pth")).tensors
        assert "trunk.blocks.0.attn.qkv.weight" in found
        assert "trunk.blocks.1.attn.qkv.weight" not in found


class TestFamilies:
    def test_every_family_of_the_table_exists(self) -> None:
        """And no other, but those of what the libraries build besides."""
        assert {spec.family for spec in ENCODERS} | {"timm", "open_clip"} == FAMILIES.keys()
        assert all(family.formats for family in FAMILIES.values())

    @pytest.mark.parametrize("spec", ENCODERS, ids=lambda spec: spec.name)
    def test_another_file_is_told_which_formats_there_are(
        self, spec: EncoderSpec, tmp_path: Path
    ) -> None:
        file = write(draw("encoder.weight", "decoder.bias"), tmp_path / "w.pth")
        with pytest.raises(WeightsError) as caught:
            read(file, spec.family)
        assert str(caught.value).startswith(
            f"w.pth holds none of: {'; '.join(FAMILIES[spec.family].formats)}. "
            "Its first tensors are decoder.bias, encoder.weight. "
        )

    @pytest.mark.parametrize(
        "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."]
    )
    def test_what_training_writes_before_every_name(self, prefix: str, tmp_path: Path) -> None:
        file = write({"model": prefixed(prefix, meta_tensors())}, tmp_path / "w.pth")
        checkpoint = read(file)
        assert_read(checkpoint, timm_tensors())
        assert torch.equal(checkpoint.periods, meta_tensors()["rope_embed.periods"])

    @pytest.mark.parametrize(
        "wrapper",
        [
            "classy_state_dict",
            "base_model",
            "model_state_dict",
            "model",
            "trunk",
            "teacher",
            "state_dict",
        ],
    )
    def test_what_training_wraps_around_the_tensors(self, wrapper: str, tmp_path: Path) -> None:
        file = write({"epoch": 7, wrapper: meta_tensors(), "args": None}, tmp_path / "w.pth")
        assert_read(read(file), timm_tensors())

    def test_vissl(self, tmp_path: Path) -> None:
        backbone = draw("conv1.weight", "layer1.0.conv1.weight", "bn1.running_mean")
        trunk = prefixed("_feature_blocks.", backbone)
        model = {"trunk": trunk, "heads": draw("0.clf.0.weight")}
        classy = {"base_model": {"model": model, "meta": {"trunk": 3}}, "optimizer": {}}
        file = write({"phase": 799, "classy_state_dict": classy}, tmp_path / "m.torch")
        assert_read(read(file, "resnet"), backbone)

    @pytest.mark.parametrize("counted", ["bn1.", "layer1.0.bn2."])
    def test_resnet_leaves_counters_and_heads_out(self, counted: str, tmp_path: Path) -> None:
        backbone = draw("conv1.weight", "layer1.0.conv1.weight", "bn1.running_var")
        others: Tensors = {f"{counted}num_batches_tracked": torch.tensor(9)}
        others |= draw("fc.weight", "fc.bias", "projection_head.0.weight", "prototypes.weight")
        file = write(prefixed("module.", others | backbone), tmp_path / "swav.pth.tar")
        assert_read(read(file, "resnet"), backbone)

    def test_mocov3_is_its_base_encoder(self, tmp_path: Path) -> None:
        base = draw("cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.norm1.bias")
        tensors = prefixed("module.predictor.", draw("0.weight", "1.running_mean"))
        momentum = {key: tensor + 1 for key, tensor in base.items()}
        tensors |= prefixed("module.momentum_encoder.", momentum)
        heads = draw("head.0.weight", "head.1.num_batches_tracked")
        tensors |= prefixed("module.base_encoder.", base | heads)
        file = write({"epoch": 300, "state_dict": tensors}, tmp_path / "vit-b-300ep.pth.tar")
        assert_read(read(file, "vit"), base)

    def test_mae_leaves_its_decoder_out(self, tmp_path: Path) -> None:
        encoder = draw("cls_token", "pos_embed", "patch_embed.proj.weight", "norm.weight")
        others = draw(
            "mask_token", "decoder_embed.bias", "decoder_blocks.0.norm1.bias", "head.bias"
        )
        assert_read(read(write({"model": others | encoder}, tmp_path / "w.pth"), "vit"), encoder)

    def test_dinov2_giant_names_its_gates_otherwise(self, tmp_path: Path) -> None:
        plain = draw("cls_token", "pos_embed", "patch_embed.proj.weight")
        theirs = draw("blocks.0.mlp.w12.weight", "blocks.0.mlp.w3.bias")
        w12, w3 = theirs.values()
        file = write(plain | theirs, tmp_path / "w.pth")
        ours = {"blocks.0.mlp.fc1.weight": w12, "blocks.0.mlp.fc2.bias": w3}
        assert_read(read(file, "vit"), plain | ours)

    @pytest.mark.parametrize("writer", ["meta", "transformers-4", "transformers-5"])
    def test_convnext(self, writer: str, tmp_path: Path) -> None:
        names = {  # ours -> Meta's, transformers'
            "stem.0.weight": (
                "downsample_layers.0.0.weight",
                "stages.0.downsample_layers.0.weight",
            ),
            "stem.1.bias": ("downsample_layers.0.1.bias", "stages.0.downsample_layers.1.bias"),
            "stages.2.downsample.0.bias": (
                "downsample_layers.2.0.bias",
                "stages.2.downsample_layers.0.bias",
            ),
            "stages.1.blocks.4.conv_dw.weight": (
                "stages.1.4.dwconv.weight",
                "stages.1.layers.4.depthwise_conv.weight",
            ),
            "stages.1.blocks.4.norm.weight": (
                "stages.1.4.norm.weight",
                "stages.1.layers.4.layer_norm.weight",
            ),
            "stages.2.blocks.0.mlp.fc1.bias": (
                "stages.2.0.pwconv1.bias",
                "stages.2.layers.0.pointwise_conv1.bias",
            ),
            "stages.3.blocks.2.gamma": ("stages.3.2.gamma", "stages.3.layers.2.gamma"),
            "head.norm.weight": ("norm.weight", "layer_norm.weight"),
        }
        expected = draw(*names)
        theirs = {
            names[ours][writer != "meta"]: tensor.clone() for ours, tensor in expected.items()
        }
        if writer == "meta":
            theirs["norms.3.weight"] = theirs["norm.weight"] * 2  # once more, and not used
        elif writer == "transformers-5":
            theirs = prefixed("model.", theirs)
        file = write(theirs, tmp_path / "model.safetensors")
        assert_read(read(file, "dinov3-convnext"), expected)

    def test_eupe_keeps_the_biases_of_q_and_v(self, tmp_path: Path) -> None:
        tensors = meta_tensors()
        biases = draw(*(f"blocks.{block}" for block in range(DEPTH)))
        expected = timm_tensors()
        for block in biases:
            bias, mask = torch.linspace(1, 2, 3 * DIM) + len(block), torch.ones(3, DIM)
            mask[1] = 0
            tensors[f"{block}.attn.qkv.bias"] = bias
            tensors[f"{block}.attn.qkv.bias_mask"] = mask.flatten()
            expected[f"{block}.attn.q_bias"] = bias[:DIM]
            expected[f"{block}.attn.v_bias"] = bias[2 * DIM :]
        tensors["projectors.0.weight"] = torch.ones(2)
        assert_read(read(write(tensors, tmp_path / "w.pth"), "eupe-vit"), expected)
        tensors["blocks.2.attn.qkv.bias_mask"] = torch.ones(3 * DIM)
        message = r"w\.pth has a bias of k in blocks\.2\.attn\.qkv\.bias that is not zero: these"
        with pytest.raises(WeightsError, match=message):
            read(write(tensors, tmp_path / "w.pth"), "eupe-vit")

    def test_conch_is_its_trunk_and_its_contrastive_pooling(self, tmp_path: Path) -> None:
        trunk = draw("trunk.cls_token", "trunk.blocks.0.norm1.bias")
        theirs = draw(
            "attn_pool_contrast.query", "attn_pool_contrast.ln_k.bias", "ln_contrast.bias"
        )
        unused = draw("proj_contrast", "ln_caption.bias", "attn_pool_caption.query")
        tensors = prefixed("visual.", trunk | theirs | unused) | draw("text.cls_emb", "logit_scale")
        found = read(write(tensors, tmp_path / "w.bin"), "conch").tensors
        ours = ("embed.pool.query", "embed.pool.ln_k.bias", "embed.norm.bias")
        expected = trunk | dict(zip(ours, theirs.values(), strict=True))
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())

    def test_biomedclip_is_its_tower(self, tmp_path: Path) -> None:
        tensors = prefixed("visual.", draw("trunk.cls_token", "head.proj.weight"))
        file = write(tensors | draw("text.proj.0.weight", "logit_scale"), tmp_path / "w.bin")
        found = read(file, "biomedclip").tensors
        assert found.keys() == {"trunk.cls_token", "embed.weight"}
        assert torch.equal(found["embed.weight"], tensors["visual.head.proj.weight"])

    def test_a_classifier_is_left_out_by_its_whole_name(self, tmp_path: Path) -> None:
        """`head.norm` and `header` are no part of the classifier `head.fc`."""
        kept = draw("stem.weight", "head.norm.weight", "header.bias")
        tensors = kept | draw("head.fc.weight", "head.fc.bias", "head_dist.bias")
        file = write(tensors, tmp_path / "model.safetensors")
        assert_read(read(file, "timm", "head.fc", "head_dist"), kept)
        assert len(read(file, "timm").tensors) == 6

    def test_open_clip_is_its_tower(self, tmp_path: Path) -> None:
        tower = draw("conv1.weight", "proj", "transformer.resblocks.0.ln_1.bias")
        text = draw("token_embedding.weight", "transformer.resblocks.0.ln_1.bias")
        file = write(prefixed("visual.", tower) | text, tmp_path / "open_clip_model.safetensors")
        assert_read(read(file, "open_clip"), tower)

    def test_whole_numbers_stay_whole(self, tmp_path: Path) -> None:
        """Indices that some models keep beside their weights."""
        index = torch.arange(6).reshape(2, 3)
        file = write({"relative_position_index": index}, tmp_path / "model.safetensors")
        found = read(file, "timm").tensors["trunk.relative_position_index"]
        assert found.dtype == torch.int64
        assert torch.equal(found, index)
