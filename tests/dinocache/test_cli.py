"""The command `dinocache`: exit codes, one clear line, clean JSON."""

import errno
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from making import make_table

from dinocache.cli import main
from dinocache.encoders import ENCODERS
from dinocache.store import FeatureStore


def tiny(table: Path, root: Path, *more: str) -> list[str]:
    options = ["--model", "tiny", "--resolution", "32x48", "--weights", "random", "--device", "cpu"]
    return ["extract", str(table), "--store", str(root), *options, "--unit-rows", "16", *more]


def test_the_whole_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = make_table(tmp_path, 18)
    assert main(tiny(table, tmp_path / "f", "--json")) == 0
    printed = capsys.readouterr()
    said = json.loads(printed.out)
    assert (said["rows"], said["units"], said["complete"], said["failures"]) == (18, 2, True, [])
    assert "18/18 rows" in printed.err  # line-based where there is no terminal
    store = tmp_path / "f/images/tiny/32x48"
    assert main(["info", str(store), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["random_weights"] is True
    assert facts["kinds"]["cls"] == {"units": 3, "committed": 3}
    assert main(["info", str(store)]) == 0
    assert capsys.readouterr().out.startswith("RANDOM WEIGHTS (random:0)")
    assert main(["verify", str(store)]) == 0
    assert capsys.readouterr().out.startswith("sound, complete: ")
    assert main(["failures", str(store)]) == 0
    assert capsys.readouterr().out == "no item failed\n"
    (store / "units/0001-00000.cls.json").unlink()
    assert main(["verify", str(store), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["damages"][0]["file"] == "units/0001-00000.cls.json"
    assert main(["plan", str(table), "--model", "tiny", "--store", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 18


def test_failures_are_named_and_the_exit_code_is_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = make_table(tmp_path, 3)
    (tmp_path / "png/0001.png").write_bytes(b"no image")
    assert main(tiny(table, tmp_path / "f", "--no-isolate")) == 1
    printed = capsys.readouterr()
    assert (
        "failed: 0001 (png/0001.png): not an image: PNG, JPEG, TIFF, BMP or WebP was expected"
        in printed.err
    )
    assert "--retry-failed tries them again" in printed.err
    assert main(["failures", str(tmp_path / "f/images/tiny/32x48"), "--json"]) == 1
    (failed,) = json.loads(capsys.readouterr().out)
    assert failed["item_id"] == "0001"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (
            ["extract", "moon"],
            2,
            "error: 'moon' is neither a shipped dataset (`dinocache datasets`",
        ),
        (["extract", "TABLE", "--resolution", "250"], 2, "Nearest that work: 240x240 or 256x256"),
        (["extract", "TABLE", "--resolution", "big"], 2, "--resolution 'big': give one side"),
        (["extract", "TABLE", "--rope", "int8"], 2, "--rope 'int8': choose from auto, float32"),
        (["extract", "TABLE", "--weights", "x.pth"], 1, "there is no file of weights at x.pth"),
        (["extract", "TABLE", "--resize", "fit"], 2, "--resize 'fit': choose from squash, pad, cr"),
        (["extract", "TABLE", "--arithmetic", "int"], 2, "'int': choose from float32, uint8"),
        (
            ["extract", "TABLE", "--window", "9:1"],
            2,
            "--window '9:1': give full-range, file, min-max",
        ),
        (["extract", "TABLE", "--layers", "12"], 2, "dinov3-s has 12 blocks, numbered 0 to 11"),
        (
            ["extract", "TABLE", "--model", "dinov3"],
            2,
            "there is no encoder 'dinov3'; did you mean",
        ),
        (["extract", "TABLE", "--part", "9/4"], 2, "--part '9/4': give I/N with I from 1 to N"),
        (["extract", "TABLE", "--adapt", "1:3"], 2, "--adapt and --cluster-option say how --clus"),
        (["extract", "TABLE", "--model", "hf:x"], 2, "before a colon stands timm or open_clip, as"),
        (
            ["extract", "TABLE", "--weights", "hub", "--no-isolate"],
            1,
            "; pass the file with --weights PATH (such",
        ),
        (["plan", "TABLE", "--features", "embed"], 2, "dinov3-s has no 'embed'; it has cls, mean"),
        (["encoders", "dinov9"], 2, "there is no encoder 'dinov9'; did you mean dinov"),
        (["info", "nowhere"], 1, "there is no store at nowhere: it has no store.json"),
        (["verify", "nowhere"], 1, "there is no store at nowhere"),
        (["datasets", "moon"], 2, "there is no dataset 'moon'; did you mean demo?"),
        (["extract"], 2, "Missing argument"),
    ],
)
def test_mistakes_are_one_clear_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    table = make_table(tmp_path, 2)
    given = [str(table) if a == "TABLE" else a for a in arguments]
    more = ["--store", str(tmp_path / "f")] if "TABLE" in arguments else []
    assert main([*given, *more]) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err
    assert "Traceback" not in printed.err
    if "Missing" not in message:
        assert printed.err.count("\n") == 1
    assert not (tmp_path / "f").exists()


def test_lists(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["encoders", "--json"]) == 0
    names = [row["name"] for row in json.loads(capsys.readouterr().out)]
    assert names == [spec.name for spec in ENCODERS]
    assert {"dinov3-s", "dinov3-b", "dinov3-l", "tiny"} <= set(names)
    assert main(["encoders"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed[1 : len(names) + 2]] == ["name", *names]
    (small,) = (line.split() for line in printed if line.startswith("dinov3-s "))
    assert small[1:] == ["384", "16", "21.6M", "9.4/12.5/63.9", "gated", "dinov3"]
    assert "* dinov3-7b is untested: 27 GB; a test builds it with 2 of its 40 blocks" in printed
    assert "timm:NAME" in " ".join(printed)
    assert main(["datasets", "demo"]) == 0
    assert "CC BY 3.0" in capsys.readouterr().out


def test_the_list_fits_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of 80 columns, without cutting a figure: licences may go on below."""
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["encoders"]) == 0
    lines = re.sub("\x1b[^m]*m", "", capsys.readouterr().out).splitlines()
    assert max(len(line) for line in lines) <= 80
    assert not any("\u2026" in line for line in lines)
    assert any("2726/3550/14516" in line for line in lines)


def test_one_encoder_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["encoders", "conch", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["dim"], facts["depth"], facts["embed_dim"]) == (768, 12, 512)
    assert facts["kinds"] == ["embed", "cls", "mean", "dense"]
    assert facts["sides"] == "multiples of 16"
    assert facts["gflop"].keys() == {"224", "256", "512"}
    assert facts["hub"] == ["MahmoodLab/conch"]
    assert facts["weights_here"] is None
    assert facts["to_obtain"].startswith("Ask for access")
    assert main(["encoders", "timm:test_vit.r160_in1k"]) == 0
    said = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert said["name"] == "timm:test_vit.r160_in1k"
    assert said["kinds"] == "cls, embed, mean, dense"
    assert said["licence"] == "apache-2.0"
    assert said["gated"] == "no"


@pytest.mark.parametrize(
    ("window", "shown"), [(None, "full-range"), ("min-max", "min-max"), ("9:230.5", "9 to 230.5")]
)
def test_what_was_asked_for_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], window: str | None, shown: str
) -> None:
    table = make_table(tmp_path, 3)
    more = ["--layers", "0,1", "--resize", "pad", "--arithmetic", "float32", "--no-compile"]
    more += ["--window", window] if window else []
    assert main(tiny(table, tmp_path / "f", "--no-isolate", *more)) == 0
    capsys.readouterr()
    assert main(["info", str(tmp_path / "f/images/tiny/32x48")]) == 0
    printed = capsys.readouterr().out
    assert f"32 x 48 px, pad, {shown}, resized in float32\n" in printed
    kinds = [line.split()[0] for line in printed.splitlines() if " of " in line and "unit" in line]
    assert kinds == ["cls", "mean", "dense.L00", "dense"]


@pytest.mark.parametrize("package", ["dinocache", "probes"])
def test_help_answers_at_once(package: str) -> None:
    """No torch, timm or zarr is imported to print help."""
    program = (
        f"import sys; from {package}.cli import main; main(['--help']); "
        "heavy = ('torch', 'timm', 'zarr', 'sklearn', 'open_clip', 'psutil'); "
        "sys.exit([m for m in heavy if m in sys.modules] or 0)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert "Commands" in ended.stdout


def test_reading_a_store_needs_no_torch(tiny_store: FeatureStore) -> None:
    program = (
        "import sys, pathlib; from dinocache.store import FeatureStore; "
        f"FeatureStore(pathlib.Path({str(tiny_store.path)!r})).item_vectors('cls'); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("dinocache extract demo --model dinov3-convnext-", "dinov3-convnext-tiny"),
        ("dinocache extract de", "demo"),
        ("dinocache encoders biom", "biomedclip"),
        ("dinocache extract demo --resize cr", "crop"),
        ("dinocache plan demo --resol", "--resolution"),
    ],
)
def test_tab_completes(
    words: str,
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("_DINOCACHE_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    assert main([]) == 0
    assert expected in capsys.readouterr().out.split()


def test_a_disk_that_does_not_answer_is_one_line(
    tiny_store: FeatureStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("dinocache.folders.check_size", refuse)
    assert main(["info", str(tiny_store.path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"error: cannot use {tiny_store.path / 'store.json'}: Input/output error; put that right"
    )
