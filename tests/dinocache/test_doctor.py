"""The doctor: each lack is found, named and given a way out; nothing stops it."""

import importlib
import importlib.util
import json
import shutil
import sys
from collections import namedtuple
from pathlib import Path
from types import ModuleType, SimpleNamespace

import huggingface_hub
import PIL.features
import psutil
import pytest
import torch

from dinocache import __version__
from dinocache.cli import main
from dinocache.devices import can_compile, device_memory
from dinocache.doctor import Finding, examine

PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "open_clip",
    "PIL",
    "huggingface_hub",
    "psutil",
    "zarr",
)
OF_READERS = {
    "nibabel": "NIfTI volumes",
    "isal": "compressed volumes",
    "pydicom": "DICOM",
    "openslide": "slides",
    "tifffile": "TIFF",
    "imagecodecs": "slides, 16-bit colour, compressed DICOM",
    "av": "videos",
    "h5py": "HDF5 stacks",
    "scipy": "tissue of slides, channels on other grids",
}
Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with all that is wanted; the hub answers, and nobody asks it."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", "cache/of/hub")
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_secret")
    monkeypatch.setattr("dinocache.doctor.hub_answers", lambda _: "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"Card {index}")
    monkeypatch.setattr("dinocache.doctor.device_memory", lambda _: int(80e9))
    monkeypatch.setattr("dinocache.doctor.can_compile", lambda _: True)
    memory = SimpleNamespace(available=int(48e9), total=int(64e9))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(int(2e12), 0, int(1e12)))


def found(root: Path) -> dict[str, Finding]:
    findings = examine(root)
    by_name = {finding.what: finding for finding in findings}
    assert len(by_name) == len(findings)
    assert all("\n" not in finding.found + finding.advice for finding in findings)
    return by_name


def without(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)


def broken(monkeypatch: pytest.MonkeyPatch, module: str, error: Exception) -> None:
    plain = importlib.import_module

    def fail(name: str, package: str | None = None) -> ModuleType:
        if name == module:
            raise error
        return plain(name, package)

    monkeypatch.setattr(importlib, "import_module", fail)


def test_all_is_well(tmp_path: Path) -> None:
    findings = found(tmp_path)
    assert list(findings) == [
        "dinocache",
        *PACKAGES,
        *OF_READERS,
        "cuda:0",
        "cuda:1",
        "compiling",
        "image codecs",
        "hub",
        "hub token",
        "hub cache",
        "disk",
        "memory",
    ]
    assert {f.state for f in findings.values()} == {"good"}
    assert {f.advice for f in findings.values()} == {""}
    assert findings["dinocache"].found.startswith(f"{__version__}, Python 3.")
    assert findings["torch"].found == torch.__version__.split("+")[0]
    assert findings["cuda:1"].found == "Card 1, 80.0 GB"
    assert findings["image codecs"].found == "JPEG, PNG, compressed TIFF, JPEG 2000"
    assert findings["hub"].found == "answers"
    assert findings["hub cache"].found == "cache/of/hub"
    assert findings["disk"].found == f"1.0 TB free at {tmp_path}"
    assert findings["memory"].found == "48.0 GB of 64.0 GB available"
    assert not any("hf_secret" in finding.found for finding in findings.values())


class TestPackages:
    @pytest.mark.parametrize("package", PACKAGES)
    def test_missing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
        without(monkeypatch, package)
        findings = found(tmp_path)
        assert findings[package] == Finding(
            what=package,
            state="lack",
            found="not installed",
            advice="pip install 'dinocache[extract]'",
        )
        assert {f.what for f in findings.values() if f.state == "lack"} == {package}

    def test_all_missing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        without(monkeypatch, *PACKAGES)
        findings = found(tmp_path)
        assert {f.what for f in findings.values() if f.state == "lack"} == set(PACKAGES)
        assert "disk" in findings
        assert "memory" not in findings

    def test_torchvision_of_another_torch(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        error = RuntimeError("operator torchvision::nms\n  does not exist")
        broken(monkeypatch, "torchvision", error)
        assert found(tmp_path)["torchvision"] == Finding(
            what="torchvision",
            state="lack",
            found="cannot be imported: operator torchvision::nms does not exist",
            advice="install torch and torchvision as a pair, see README, 'What each machine gets'",
        )


class TestDevices:
    def test_no_triton(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("dinocache.doctor.can_compile", lambda _: False)
        compiling = found(tmp_path)["compiling"]
        assert (compiling.state, compiling.found) == (
            "note",
            "no triton: encoders run uncompiled",
        )
        assert compiling.advice.startswith("pip install triton, for ")

    @pytest.mark.parametrize(
        ("built", "text", "advice"),
        [
            (
                "13.7",
                "none; torch is built for CUDA 13.7",
                "on a machine with an NVIDIA GPU: see that `nvidia-smi` lists it",
            ),
            (
                None,
                "none; torch is built for the CPU only",
                "on a machine with an NVIDIA GPU: see that `nvidia-smi` lists it, and install "
                "PyPI's torch, which is the CUDA build",
            ),
        ],
    )
    def test_no_gpu(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        built: str | None,
        text: str,
        advice: str,
    ) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
        monkeypatch.setattr(torch.version, "cuda", built)
        monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
        findings = found(tmp_path)
        assert findings["gpu"] == Finding(what="gpu", state="note", found=text, advice=advice)
        assert findings["cpu"].found == "7 threads"
        assert "compiling" not in findings

    def test_apple(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
        findings = found(tmp_path)
        assert (findings["mps"].state, findings["mps"].found) == ("good", "Apple GPU")
        assert "gpu" not in findings

    def test_a_gpu_without_psutil(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A GPU's memory is asked of torch; that of the machine is then not told."""
        properties = SimpleNamespace(total_memory=24_000_000_000)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
        monkeypatch.setattr("dinocache.doctor.device_memory", device_memory)
        without(monkeypatch, "psutil")
        findings = found(tmp_path)
        assert findings["cuda:0"].found == "Card 0, 24.0 GB"
        assert "memory" not in findings

    def test_memory_of_a_device(self, monkeypatch: pytest.MonkeyPatch) -> None:
        properties = SimpleNamespace(total_memory=24_000_000_000)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
        sizes = [device_memory(device) for device in ("cuda", "cuda:1", "mps", "cpu")]
        assert sizes == [24_000_000_000] * 2 + [64_000_000_000] * 2
        assert not any(can_compile(device) for device in ("cpu", "mps"))


class TestReaders:
    def test_codec_is_missing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(PIL.features, "check", lambda codec: codec not in ("libtiff", "jpg"))
        assert found(tmp_path)["image codecs"] == Finding(
            what="image codecs",
            state="lack",
            found="without JPEG, compressed TIFF",
            advice="pip install --force-reinstall pillow",
        )

    @pytest.mark.parametrize(("module", "what"), OF_READERS.items())
    def test_what_readers_need(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, what: str
    ) -> None:
        without(monkeypatch, module)
        missing = found(tmp_path)[module]
        assert missing.state == "lack"
        assert missing.found == f"not installed: {what} cannot be read"
        assert missing.advice == "pip install 'dinocache[extract]'"


class TestHub:
    def test_no_answer(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[str] = []

        def refuse(repo: str) -> str:
            asked.append(repo)
            return "no answer within 8 s"

        monkeypatch.setattr("dinocache.doctor.hub_answers", refuse)
        hub = found(tmp_path)["hub"]
        assert (hub.state, hub.found) == ("note", "does not answer: no answer within 8 s")
        assert hub.advice == "pass files of weights with --weights PATH"
        assert asked == ["timm/vit_small_patch16_dinov3.lvd1689m"]

    def test_told_offline_asks_nobody(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        monkeypatch.setattr("dinocache.doctor.hub_answers", lambda _: pytest.fail("was asked"))
        hub = found(tmp_path)["hub"]
        assert (hub.state, hub.found) == ("note", "told offline")
        assert hub.advice == "unset HF_HUB_OFFLINE to download weights"

    def test_no_token(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
        token = found(tmp_path)["hub token"]
        assert (token.state, token.found) == ("note", "not set")
        assert token.advice == "for gated weights: `hf auth login`"


class TestRoom:
    @pytest.mark.parametrize(
        ("free", "state", "advice"),
        [(int(11e9), "good", ""), (int(9e9), "note", "`dinocache plan` says what is needed")],
    )
    def test_disk(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        free: int,
        state: str,
        advice: str,
    ) -> None:
        """Of the first folder above that is there; nothing is made."""
        looked_at: list[Path] = []

        def usage(folder: Path) -> Usage:
            looked_at.append(folder)
            return Usage(int(2e12), 0, free)

        monkeypatch.setattr(shutil, "disk_usage", usage)
        root = tmp_path / "not/yet/there"
        disk = found(root)["disk"]
        assert (disk.state, disk.advice) == (state, advice)
        assert disk.found == f"{free / 1e9:.1f} GB free at {root}"
        assert looked_at == [tmp_path]
        assert not (tmp_path / "not").exists()

    def test_a_folder_that_cannot_be_written(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("os.access", lambda *_: False)
        disk = found(tmp_path)["disk"]
        assert disk.state == "lack"
        assert disk.found.endswith(f"free at {tmp_path}, not writable")
        assert disk.advice == "choose another --store"

    def test_little_memory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        little = SimpleNamespace(available=int(3e9), total=int(16e9))
        monkeypatch.setattr(psutil, "virtual_memory", lambda: little)
        memory = found(tmp_path)["memory"]
        assert (memory.state, memory.found) == ("note", "3.0 GB of 16.0 GB available")
        assert memory.advice == "a smaller --batch needs less"


class TestCommand:
    def test_all_is_well(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["doctor", "--store", str(tmp_path)]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].split()[:3] == ["ok", "dinocache", f"{__version__},"]
        assert any(line.split()[:3] == ["ok", "cuda:0", "Card"] for line in lines)

    def test_a_note_is_no_lack(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
        assert main(["doctor", "--store", str(tmp_path)]) == 0
        (line,) = (li for li in capsys.readouterr().out.splitlines() if "hub token" in li)
        assert line.split(maxsplit=1)[0] == "note"
        assert line.endswith("not set; for gated weights: `hf auth login`")

    @pytest.mark.parametrize("as_json", [False, True])
    def test_a_lack_ends_with_1(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        as_json: bool,
    ) -> None:
        without(monkeypatch, "timm")
        more = ["--json"] if as_json else []
        assert main(["doctor", "--store", str(tmp_path), *more]) == 1
        printed = capsys.readouterr()
        assert printed.err == ""
        if as_json:
            findings = {f["what"]: f for f in json.loads(printed.out)}
            assert findings["timm"] == {
                "what": "timm",
                "state": "lack",
                "found": "not installed",
                "advice": "pip install 'dinocache[extract]'",
            }
            assert findings["torch"]["state"] == "good"
        else:
            (line,) = (li for li in printed.out.splitlines() if li.split()[:2] == ["LACK", "timm"])
            assert line.endswith("not installed; pip install 'dinocache[extract]'")
