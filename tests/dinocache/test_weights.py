import json
import logging
import os
import pickle
import re
import subprocess
import sys
import threading
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import save_file

from dinocache.errors import RequestError, WeightsError, WeightsUnavailableError
from dinocache.weights import (
    Checkpoint,
    Weights,
    file_sha256,
    read_checkpoint,
    resolve_weights,
    tensors_sha256,
)

HUB_ID = "timm/vit_small_patch16_dinov3.lvd1689m"
PUBLISHED = "dinov3_vits16_pretrain_lvd1689m-08c60483.pth"
DIM, DEPTH, REGISTERS = 6, 3, 4

Tensors = dict[str, torch.Tensor]


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the tests off the user's caches and off the network."""
    monkeypatch.setenv("DINOCACHE_CACHE", str(tmp_path / "digests"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)

    def refuse(*_: object, **__: object) -> None:
        raise OSError("[Errno -3] Temporary failure in name resolution")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", refuse)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)


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


def read(file: Path) -> Checkpoint:
    return read_checkpoint(Weights(name=file.name, sha256="", path=file))


class TestResolve:
    @pytest.mark.parametrize(
        ("text", "seed"),
        [("random", 0), ("random:0", 0), ("random:17", 17), (" random:5 , hub", 5)],
    )
    def test_random(self, text: str, seed: int) -> None:
        assert resolve_weights(text, hub_id=None) == seed

    @pytest.mark.parametrize(
        "text", ["", "random:", "random:-1", "random:x", "hub,", "hub,random:x"]
    )
    def test_what_cannot_be_understood(self, text: str) -> None:
        with pytest.raises(RequestError, match="are none of: hub, the path of a file, random, "):
            resolve_weights(text, hub_id=HUB_ID)

    @pytest.mark.parametrize(
        "text", ["{folder}/a,b.pth", "{folder}/c.pth", "{folder}/c.pth,random"]
    )
    def test_file(self, tmp_path: Path, text: str) -> None:
        for name in ("a,b.pth", "c.pth"):
            (tmp_path / name).write_bytes(b"abc")
        found = resolve_weights(text.format(folder=tmp_path), hub_id=None)
        assert isinstance(found, Weights)
        assert found.path is not None
        assert found.name == found.path.name
        assert found.sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        assert not found.is_random

    def test_folder(self, tmp_path: Path) -> None:
        (tmp_path / "model.safetensors").write_bytes(b"abc")
        found = resolve_weights(str(tmp_path), hub_id=None)
        assert isinstance(found, Weights)
        assert (found.name, found.path) == ("model.safetensors", tmp_path / "model.safetensors")

    def test_missing_path_never_ends_in_random_weights(self, tmp_path: Path) -> None:
        with pytest.raises(
            WeightsUnavailableError, match=r"no file of weights at .*x\.pth\. Check"
        ):
            resolve_weights(f"{tmp_path}/x.pth,random:0", hub_id=None)

    @pytest.mark.parametrize("name", [PUBLISHED, PUBLISHED.replace(".pth", " (1).pth")])
    def test_published_hash_must_be_the_file_s(self, tmp_path: Path, name: str) -> None:
        (tmp_path / name).write_bytes(b"abc")
        message = rf"{re.escape(name)} promises .* with 08c60483, but it begins with ba7816bf: "
        with pytest.raises(WeightsError, match=message + "the download was probably cut short"):
            resolve_weights(str(tmp_path / name), hub_id=None)

    @pytest.mark.parametrize(
        "name",
        [
            PUBLISHED.replace("08c60483", "ba7816bf"),
            PUBLISHED.replace(".pth", ".safetensors"),  # converted: other bytes
            "mine-20240131.pth",
        ],
    )
    def test_names_that_promise_nothing_else(self, tmp_path: Path, name: str) -> None:
        (tmp_path / name).write_bytes(b"abc")
        assert isinstance(resolve_weights(str(tmp_path / name), hub_id=None), Weights)


class TestHub:
    def test_local_cache_needs_no_network(self, tmp_path: Path) -> None:
        repository = tmp_path / "hub" / f"models--{HUB_ID.replace('/', '--')}"
        file = repository / "snapshots" / "1234" / "model.safetensors"
        file.parent.mkdir(parents=True)
        file.write_bytes(b"abc")
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text("1234")
        found = resolve_weights("hub", hub_id=HUB_ID)
        assert isinstance(found, Weights)
        assert (found.name, found.path) == (f"hub:{HUB_ID}", file)

    def test_download(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        file = tmp_path / "model.safetensors"
        file.write_bytes(b"abc")
        asked: list[object] = []

        def download(*args: object) -> str:
            asked.append(args)
            return str(file)

        monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: None)
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
        found = resolve_weights("hub", hub_id=HUB_ID)
        assert isinstance(found, Weights)
        assert (found.name, found.path) == (f"hub:{HUB_ID}", file)
        assert asked == [(HUB_ID, "model.safetensors")]

    def test_unreachable(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(WeightsUnavailableError) as caught:
            resolve_weights("hub", hub_id=HUB_ID, published_file=PUBLISHED)
        assert str(caught.value) == (
            f"{HUB_ID} is not in the local Hugging Face cache and cannot be had from the hub: "
            "[Errno -3] Temporary failure in name resolution. Pass a file with --weights PATH "
            f"(such as Meta's {PUBLISHED}), or --weights random:0 for a trial"
        )
        assert capsys.readouterr().out == ""

    def test_failed_download(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: None)
        with pytest.raises(
            WeightsUnavailableError, match=r"cannot be had from the hub: .*resolution"
        ):
            resolve_weights("hub", hub_id=HUB_ID)

    def test_only_the_first_line_of_a_failure_is_told(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: object, **__: object) -> None:
            raise RuntimeError("\n404 Client Error.\n\nTraceback ...\nmore")

        monkeypatch.setattr(huggingface_hub.HfApi, "model_info", refuse)
        with pytest.raises(WeightsUnavailableError, match=r"the hub: 404 Client Error\.\. Pass"):
            resolve_weights("hub", hub_id=HUB_ID)

    def test_gated(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object, **__: object) -> None:
            # Its constructor wants the HTTP library's response, which changed with the versions.
            raise huggingface_hub.errors.GatedRepoError.__new__(
                huggingface_hub.errors.GatedRepoError
            )

        monkeypatch.setattr(huggingface_hub.HfApi, "model_info", refuse)
        with pytest.raises(WeightsUnavailableError, match="it is gated: accept its licence"):
            resolve_weights("hub", hub_id=HUB_ID)

    def test_offline_asks_nobody(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def ask(*_: object, **__: object) -> None:
            pytest.fail("the hub was asked")

        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        monkeypatch.setattr("dinocache.weights._failure_within", ask)
        with pytest.raises(WeightsUnavailableError, match="cache, and HF_HUB_OFFLINE is set"):
            resolve_weights("hub", hub_id=HUB_ID)

    def test_hanging_name_lookup_is_given_up(self, monkeypatch: pytest.MonkeyPatch) -> None:
        end = threading.Event()
        monkeypatch.setattr("dinocache.weights._HUB_DEADLINE_S", 0.05)
        monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: end.wait())
        try:
            with pytest.raises(WeightsUnavailableError, match=r"the hub: no answer within 0\.05 s"):
                resolve_weights("hub", hub_id=HUB_ID)
        finally:
            end.set()

    def test_process_ends_while_the_lookup_hangs(self) -> None:
        script = (
            "import threading; from dinocache import weights;"
            "print(weights._failure_within(0.05, threading.Event().wait))"
        )
        ended = subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        )
        assert ended.stdout == "no answer within 0.05 s\n"

    def test_falls_back_with_one_line(
        self, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with caplog.at_level(logging.WARNING, logger="dinocache.weights"):
            assert resolve_weights("hub,random:3", hub_id=HUB_ID) == 3
        assert caplog.messages == [
            f"{HUB_ID} is not in the local Hugging Face cache and cannot be had from the hub: "
            "[Errno -3] Temporary failure in name resolution: going on with random:3"
        ]
        assert caplog.records[0].exc_info is None
        assert capsys.readouterr().out == ""

    def test_nothing_published(self) -> None:
        with pytest.raises(WeightsUnavailableError, match="no weights are published for this enc"):
            resolve_weights("hub", hub_id=None)


class TestDigests:
    def test_recalled_until_the_file_changes(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        file = tmp_path / "w.pth"
        file.write_bytes(b"abc")
        first = file_sha256(file)
        with monkeypatch.context() as patch:
            patch.setattr("hashlib.file_digest", lambda *_: pytest.fail("read again"))
            assert file_sha256(file) == first
        file.write_bytes(b"abd")
        os.utime(file, ns=(0, 1))
        assert file_sha256(file) != first

    @pytest.mark.parametrize("content", ["{", "[]", "\udc80", '{"FILE": 7}', '{"FILE": [3, 0, 1]}'])
    def test_damaged_cache_is_done_without(self, tmp_path: Path, content: str) -> None:
        file = tmp_path / "w.pth"
        file.write_bytes(b"abc")
        cache = tmp_path / "digests" / "file-digests.json"
        cache.parent.mkdir()
        cache.write_text(content.replace("FILE", str(file)), errors="surrogateescape")
        assert file_sha256(file).startswith("ba7816bf")
        assert json.loads(cache.read_text())[str(file)][2].startswith("ba7816bf")

    def test_cache_that_cannot_be_written_is_done_without(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        file = tmp_path / "w.pth"
        file.write_bytes(b"abc")
        monkeypatch.setenv("DINOCACHE_CACHE", str(file / "no-folder"))
        assert file_sha256(file).startswith("ba7816bf")

    def test_tensors(self) -> None:
        a, b = torch.arange(6.0).reshape(2, 3), torch.ones(4)
        digest = tensors_sha256({"a": a, "b": b})
        assert digest == tensors_sha256({"b": b, "a": a.clone()})
        others = [
            {"a": a + 1, "b": b},
            {"a": a.reshape(3, 2), "b": b},
            {"a": a, "c": b},
            {"a": a, "b": b.int()},
        ]
        assert len({digest, *map(tensors_sha256, others)}) == 5


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
        expected = timm_tensors()
        assert checkpoint.tensors.keys() == expected.keys()
        for key, tensor in checkpoint.tensors.items():
            assert torch.equal(tensor, expected[key]), key
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
        assert torch.equal(checkpoint.tensors["reg_token"], half["storage_tokens"].float())
        assert checkpoint.periods is not None
        assert checkpoint.periods.dtype == torch.float32

    def test_tensors_outlive_the_file(self, tmp_path: Path) -> None:
        file = write(meta_tensors(), tmp_path / "w.pth")
        checkpoint = read(file)
        file.write_bytes(b"\0" * file.stat().st_size)
        assert torch.equal(checkpoint.tensors["reg_token"], meta_tensors()["storage_tokens"])

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
            r"w\.pth holds no DINOv3 vision .*: its first tensors are conv1\.weight, fc\.bias\."
        )
        with pytest.raises(WeightsError, match=message):
            read(write(tensors, tmp_path / "w.pth"))

    def test_suffix_that_is_not_known(self, tmp_path: Path) -> None:
        with pytest.raises(
            WeightsError, match=r"w\.bin ends in none of \.safetensors, \.pth, \.pt\."
        ):
            read(write(meta_tensors(), tmp_path / "w.bin"))

    def test_random_weights_are_in_no_file(self) -> None:
        with pytest.raises(ValueError, match="random:0 are in no file"):
            read_checkpoint(Weights(name="random:0", sha256="", path=None))

    @pytest.mark.parametrize("part", ["q_proj", "k_proj", "v_proj"])
    def test_incomplete_qkv_is_left_for_the_model_to_refuse(
        self, tmp_path: Path, part: str
    ) -> None:
        tensors = transformers_tensors()
        del tensors[f"layer.1.attention.{part}.weight"]
        assert "blocks.1.attn.qkv.weight" not in read(write(tensors, tmp_path / "w.pth")).tensors


def test_import_needs_no_torch() -> None:
    script = (
        "import sys, dinocache.encoders;"
        "print(sorted({'torch', 'timm', 'huggingface_hub', 'safetensors'} & set(sys.modules)))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert ended.stdout == "[]\n"
