"""Which file of weights is taken, and what is said where none can be had."""

import json
import logging
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import huggingface_hub
import pytest
import torch

from dinocache.encoders import encoder_spec
from dinocache.errors import RequestError, WeightsError, WeightsUnavailableError
from dinocache.spec import EncoderSpec
from dinocache.weights import (
    Weights,
    cached_weights,
    file_sha256,
    hub_answers,
    resolve_weights,
    tensors_sha256,
)

SPEC = encoder_spec("dinov3-s")
TINY = encoder_spec("tiny")  # nobody publishes weights of it
FIRST, SECOND = (hub_file.repo for hub_file in SPEC.hub)
(PUBLISHED,) = SPEC.files
NO_NETWORK = "[Errno -3] Temporary failure in name resolution"
ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the tests off the user's caches and off the network."""
    monkeypatch.setenv("DINOCACHE_CACHE", str(tmp_path / "digests"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(NO_NETWORK)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", refuse)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)


def put_in_cache(folder: Path, repo: str, name: str) -> Path:
    """Lay a file as the hub's own cache has it."""
    repository = folder / "hub" / f"models--{repo.replace('/', '--')}"
    file = repository / "snapshots" / "1234" / name
    file.parent.mkdir(parents=True)
    file.write_bytes(b"abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("1234")
    return file


class TestResolve:
    @pytest.mark.parametrize(
        ("text", "seed"),
        [("random", 0), ("random:0", 0), ("random:17", 17), (" random:5 , hub", 5)],
    )
    def test_random(self, text: str, seed: int) -> None:
        assert resolve_weights(text, TINY) == seed

    @pytest.mark.parametrize(
        "text", ["", "random:", "random:-1", "random:x", "hub,", "hub,random:x"]
    )
    def test_what_cannot_be_understood(self, text: str) -> None:
        with pytest.raises(RequestError, match="are none of: hub, the path of a file, random, "):
            resolve_weights(text, SPEC)

    @pytest.mark.parametrize(
        "text", ["{folder}/a,b.pth", "{folder}/c.pth", "{folder}/c.pth,random"]
    )
    def test_file(self, tmp_path: Path, text: str) -> None:
        for name in ("a,b.pth", "c.pth"):
            (tmp_path / name).write_bytes(b"abc")
        found = resolve_weights(text.format(folder=tmp_path), TINY)
        assert isinstance(found, Weights)
        assert found.path is not None
        assert found.name == found.path.name
        assert found.sha256 == ABC
        assert not found.is_random

    @pytest.mark.parametrize(
        ("encoder", "name"),
        [
            ("tiny", "model.safetensors"),
            ("dinov3-s", "model.safetensors"),
            ("mocov3-b", "vit-b-300ep.pth.tar"),  # the publisher's own
            ("mocov3-b", "model.safetensors"),
            ("uni", "pytorch_model.bin"),  # the hub's
            ("biomedclip", "open_clip_pytorch_model.bin"),
            ("anatomix", "anatomix.pth"),
        ],
    )
    def test_folder_with_one_of_the_encoders_files(
        self, tmp_path: Path, encoder: str, name: str
    ) -> None:
        (tmp_path / "notes.pth").write_bytes(b"not asked for")
        (tmp_path / name).write_bytes(b"abc")
        found = resolve_weights(str(tmp_path), encoder_spec(encoder))
        assert isinstance(found, Weights)
        assert (found.name, found.path) == (name, tmp_path / name)
        assert found.sha256 == ABC

    def test_folder_without(self, tmp_path: Path) -> None:
        (tmp_path / "notes.pth").write_bytes(b"abc")
        message = (
            rf"^there is no file of weights in {re.escape(str(tmp_path))}: looked for "
            rf"model\.safetensors, {re.escape(PUBLISHED)}$"
        )
        with pytest.raises(WeightsUnavailableError, match=message):
            resolve_weights(str(tmp_path), SPEC)

    def test_missing_path_never_ends_in_random_weights(self, tmp_path: Path) -> None:
        with pytest.raises(
            WeightsUnavailableError, match=r"no file of weights at .*x\.pth\. Check"
        ):
            resolve_weights(f"{tmp_path}/x.pth,random:0", TINY)

    @pytest.mark.parametrize(
        ("name", "promised"),
        [
            (PUBLISHED, "08c60483"),
            (PUBLISHED.replace(".pth", " (1).pth"), "08c60483"),
            ("dinov3_convnext_tiny_pretrain_lvd1689m-21b726bb.pth", "21b726bb"),
            ("dinov3_vit7b16_pretrain_sat493m-a6675841.pth", "a6675841"),
            ("resnet50-0676ba61.pth", "0676ba61"),
            ("resnet50-19c8e357.pth", "19c8e357"),
            ("resnet50-19c8e357 (2).pt", "19c8e357"),
        ],
    )
    def test_published_hash_must_be_the_file_s(
        self, tmp_path: Path, name: str, promised: str
    ) -> None:
        (tmp_path / name).write_bytes(b"abc")
        message = rf"{re.escape(name)} promises .* with {promised}, but it begins with ba7816bf: "
        with pytest.raises(WeightsError, match=message + "the download was probably cut short"):
            resolve_weights(str(tmp_path / name), TINY)

    @pytest.mark.parametrize(
        "name",
        [
            PUBLISHED.replace("08c60483", "ba7816bf"),
            PUBLISHED.replace(".pth", ".safetensors"),  # converted: other bytes
            "resnet50-ba7816bf.pth",
            "resnet50-2x.pth",
            "mine-20240131.pth",
            "vit-s-300ep.pth.tar",
        ],
    )
    def test_names_that_promise_nothing_else(self, tmp_path: Path, name: str) -> None:
        (tmp_path / name).write_bytes(b"abc")
        assert isinstance(resolve_weights(str(tmp_path / name), TINY), Weights)

    @pytest.mark.parametrize(
        ("name", "asked", "owner"),
        [
            ("resnet50-1x.pth", "resnet50", "simclr"),
            ("swav_800ep_pretrain.pth.tar", "resnet50", "swav"),
            ("vit-b-300ep.pth.tar", "mae-b", "mocov3-b"),
        ],
    )
    def test_file_of_another_encoder_of_the_same_shape(
        self, tmp_path: Path, name: str, asked: str, owner: str
    ) -> None:
        (tmp_path / name).write_bytes(b"abc")
        message = rf"^{re.escape(name)} holds the weights of {owner}, .* --model {owner}$"
        with pytest.raises(WeightsError, match=message):
            resolve_weights(str(tmp_path / name), encoder_spec(asked))
        assert isinstance(resolve_weights(str(tmp_path / name), encoder_spec(owner)), Weights)

    def test_it_is_told_by_its_digest_also_under_another_name(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The head of the sha256 that Meta's name carries."""
        (tmp_path / "mine.pth").write_bytes(b"abc")
        monkeypatch.setattr("dinocache.weights.file_sha256", lambda _: "eadcf0ff" + "0" * 56)
        with pytest.raises(WeightsError, match="of dinov3-l-sat, whose input"):
            resolve_weights(str(tmp_path / "mine.pth"), encoder_spec("dinov3-l"))
        path = str(tmp_path / "mine.pth")
        assert isinstance(resolve_weights(path, encoder_spec("dinov3-l-sat")), Weights)

    def test_both_torchvision_files_are_a_resnet50(self) -> None:
        for name in ("resnet50", "resnet50-trunc"):
            spec = encoder_spec(name)
            assert {"resnet50-0676ba61.pth", "resnet50-19c8e357.pth"} == set(spec.files)


class TestHub:
    @pytest.mark.parametrize(
        ("encoder", "number"), [("dinov3-s", 0), ("dinov3-s", 1), ("uni", 0), ("anatomix", 0)]
    )
    def test_local_cache_needs_no_network(self, tmp_path: Path, encoder: str, number: int) -> None:
        """Where an encoder lies in several repositories, one of them is enough."""
        spec = encoder_spec(encoder)
        hub_file = spec.hub[number]
        assert cached_weights(spec) is None
        file = put_in_cache(tmp_path, hub_file.repo, hub_file.file)
        found = resolve_weights("hub", spec)
        assert isinstance(found, Weights)
        assert (found.name, found.path) == (f"hub:{hub_file.repo}", file)
        assert cached_weights(spec) == file

    def test_the_first_repository_goes_before_the_second(self, tmp_path: Path) -> None:
        put_in_cache(tmp_path, SECOND, "model.safetensors")
        first = put_in_cache(tmp_path, FIRST, "model.safetensors")
        found = resolve_weights("hub", SPEC)
        assert isinstance(found, Weights)
        assert (found.name, found.path) == (f"hub:{FIRST}", first)

    @pytest.mark.parametrize(
        ("encoder", "asked_for"),
        [
            ("dinov3-s", (FIRST, "model.safetensors")),
            ("uni2-h", ("MahmoodLab/UNI2-h", "pytorch_model.bin")),
        ],
    )
    def test_download(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        encoder: str,
        asked_for: tuple[str, str],
    ) -> None:
        file = tmp_path / asked_for[1]
        file.write_bytes(b"abc")
        asked: list[object] = []

        def download(*args: object) -> str:
            asked.append(args)
            return str(file)

        monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: None)
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
        found = resolve_weights("hub", encoder_spec(encoder))
        assert isinstance(found, Weights)
        assert (found.name, found.path) == (f"hub:{asked_for[0]}", file)
        assert asked == [asked_for]

    def test_unreachable(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(WeightsUnavailableError) as caught:
            resolve_weights("hub", SPEC)
        assert str(caught.value) == (
            f"{FIRST} is not in the local Hugging Face cache and cannot be had from the hub: "
            f"{NO_NETWORK}. Ask Meta for access at "
            "ai.meta.com/resources/models-and-libraries/dinov3-downloads or at "
            f"huggingface.co/{SECOND}; pass the file with --weights PATH (such as {PUBLISHED}), "
            "or take --weights random:0 for a trial"
        )
        assert capsys.readouterr().out == ""

    def test_failed_download(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: None)
        with pytest.raises(
            WeightsUnavailableError, match=r"cannot be had from the hub: .*resolution"
        ):
            resolve_weights("hub", SPEC)

    def test_only_the_first_line_of_a_failure_is_told(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: object, **__: object) -> None:
            raise RuntimeError("\n404 Client Error.\n\nTraceback ...\nmore")

        monkeypatch.setattr(huggingface_hub.HfApi, "model_info", refuse)
        with pytest.raises(WeightsUnavailableError, match=r"the hub: 404 Client Error\.\. Ask"):
            resolve_weights("hub", SPEC)

    def test_gated(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object, **__: object) -> None:
            # Its constructor wants the HTTP library's response, which changed with the versions.
            raise huggingface_hub.errors.GatedRepoError.__new__(
                huggingface_hub.errors.GatedRepoError
            )

        monkeypatch.setattr(huggingface_hub.HfApi, "model_info", refuse)
        with pytest.raises(WeightsUnavailableError, match="it is gated: accept its licence"):
            resolve_weights("hub", SPEC)

    def test_offline_asks_nobody(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def ask(*_: object, **__: object) -> None:
            pytest.fail("the hub was asked")

        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        monkeypatch.setattr("dinocache.weights._failure_within", ask)
        with pytest.raises(WeightsUnavailableError, match="cache, and HF_HUB_OFFLINE is set"):
            resolve_weights("hub", SPEC)

    def test_hanging_name_lookup_is_given_up(self, monkeypatch: pytest.MonkeyPatch) -> None:
        end = threading.Event()
        monkeypatch.setattr("dinocache.weights._HUB_DEADLINE_S", 0.05)
        monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: end.wait())
        try:
            with pytest.raises(WeightsUnavailableError, match=r"the hub: no answer within 0\.05 s"):
                resolve_weights("hub", SPEC)
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
            assert resolve_weights("hub,random:3", SPEC) == 3
        assert caplog.messages == [
            f"{FIRST} is not in the local Hugging Face cache and cannot be had from the hub: "
            f"{NO_NETWORK}: going on with random:3"
        ]
        assert caplog.records[0].exc_info is None
        assert capsys.readouterr().out == ""

    @pytest.mark.parametrize(
        ("spec", "message"),
        [
            pytest.param(
                encoder_spec("mocov3-b"),
                "the hub has no weights of mocov3-b. Download "
                "dl.fbaipublicfiles.com/moco-v3/vit-b-300ep/vit-b-300ep.pth.tar; pass the file "
                "with --weights PATH (such as vit-b-300ep.pth.tar), or take --weights random:0 "
                "for a trial",
                id="a-file-elsewhere",
            ),
            pytest.param(
                TINY,
                "the hub has no weights of tiny. Nobody trained it: it is for tests; pass the file "
                "with --weights PATH, or take --weights random:0 for a trial",
                id="none-at-all",
            ),
        ],
    )
    def test_encoder_without_hub_weights(
        self, monkeypatch: pytest.MonkeyPatch, spec: EncoderSpec, message: str
    ) -> None:
        """One line says where to get the file and how to pass it; nobody is asked."""

        def ask(*_: object, **__: object) -> None:
            pytest.fail("the hub was asked")

        monkeypatch.setattr("dinocache.weights._failure_within", ask)
        with pytest.raises(WeightsUnavailableError) as caught:
            resolve_weights("hub", spec)
        assert str(caught.value) == message
        assert cached_weights(spec) is None

    def test_answers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert hub_answers(FIRST) == NO_NETWORK
        asked: list[str] = []
        monkeypatch.setattr(
            huggingface_hub.HfApi, "model_info", lambda _, repo, **__: asked.append(repo)
        )
        assert hub_answers(FIRST) == ""
        assert asked == [FIRST]


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


@pytest.mark.parametrize("module", ["encoders", "cost", "weights", "checkpoints", "libraries"])
def test_import_needs_no_torch(module: str) -> None:
    script = (
        f"import sys, dinocache.{module};"
        "heavy = {'torch', 'timm', 'open_clip', 'huggingface_hub', 'safetensors', 'psutil'};"
        "print(sorted(heavy & set(sys.modules)))"
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
