"""What an extraction would do: nothing is written, and what is said holds for the run."""

import re
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from making import make_table, tiny_request

from dinocache import trial
from dinocache.cost import default_batch, gflop
from dinocache.encoders import encoder_spec
from dinocache.errors import RecipeMismatchError, RequestError
from dinocache.extract import extract
from dinocache.forecast import dry_run, human_duration
from dinocache.inference import Encoder
from dinocache.progress import QuietProgress
from dinocache.readers.image import ImageReader
from dinocache.request import ExtractRequest, parse_channels
from dinocache.stamps import stamp_of
from dinocache.trial import drawn, why_not


def make_volumes(folder: Path, depths: dict[str, int], *, masked: int = 0) -> Path:
    """Volumes of int16, 6 x 7 px a slice; the first few have masks."""
    rows = []
    for number, (name, depth) in enumerate(depths.items()):
        voxels = np.random.default_rng(number).integers(0, 900, (6, 7, depth)).astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), folder / f"{name}.nii.gz")
        mask = None
        if number < masked:
            mask = f"{name}-mask.nii.gz"
            labels = nibabel.Nifti1Image((voxels > 500).astype(np.uint8), np.eye(4))
            nibabel.save(labels, folder / mask)
        rows.append({"item_id": name, "path": f"{name}.nii.gz", "mask": mask})
    table = folder / "volumes.csv"
    pd.DataFrame(rows).to_csv(table, index=False)
    return table


def everything(folder: Path) -> dict[Path, tuple[int, int]]:
    return {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("timed", [False, True])
def test_dry_run_writes_nothing(tmp_path: Path, timed: bool) -> None:
    table = make_table(tmp_path, 40)
    request = tiny_request(table, tmp_path / "f", weights="hub", features=("cls", "dense", "image"))
    before = everything(tmp_path)
    forecast = dry_run(request, timed=timed)
    assert everything(tmp_path) == before
    assert not (tmp_path / "f").exists()
    assert (forecast.items, forecast.rows, forecast.units, forecast.units_missing) == (40, 40, 3, 3)
    assert forecast.rows_missing == 40
    assert forecast.n_bytes["cls"] == 40 * 48 * 2
    assert forecast.n_bytes["dense"] == 40 * 2 * 3 * 48 * 2
    assert forecast.n_bytes["image"] == pytest.approx(40 * 43 * 52, rel=0.05)
    assert forecast.estimated == ("image",)
    assert forecast.bytes_missing == sum(forecast.n_bytes.values())
    assert (forecast.batch, forecast.suggested_batch) == (8, 16)
    assert forecast.gflop == gflop(encoder_spec("tiny"), (32, 48))
    extract(tiny_request(table, tmp_path / "f", features=("cls", "dense", "image")))
    done = dry_run(request, timed=timed)
    assert (done.units_missing, done.rows_missing, done.bytes_missing) == (0, 0, 0)
    assert (done.hours, done.rows_per_second) == ((0.0, None) if timed else (None, None))
    assert done.n_bytes == forecast.n_bytes


def test_forecast_suggests_a_batch_for_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan is the same on every machine; only the advice is not."""
    table = make_table(tmp_path, 3)
    spec, resolution = encoder_spec("resnet50"), (512, 640)
    planned = default_batch(spec, resolution)
    request = tiny_request(
        table, tmp_path, model="resnet50", resolution=resolution, batch=None, unit_rows=64
    )
    for memory in (3e9, 8e9, 80e9):
        monkeypatch.setattr("dinocache.job.device_memory", lambda _, memory=memory: int(memory))
        forecast = dry_run(request)
        better = min(64, default_batch(spec, resolution, memory_bytes=memory))
        assert (better == planned) == (memory == 8e9)
        assert forecast.batch == planned
        assert forecast.suggested_batch == (None if better == planned else better)
    assert forecast.n_bytes == {"mean": 3 * 2048 * 2}


def test_a_dry_run_refuses_what_the_run_would_refuse(tmp_path: Path) -> None:
    request = tiny_request(make_table(tmp_path, 3), tmp_path / "f")
    extract(request)
    assert dry_run(replace(request, weights=None)).units_missing == 0
    with pytest.raises(RecipeMismatchError, match=r"input\.resize\.mode: squash in the store, pad"):
        dry_run(replace(request, resize="pad"))


@pytest.mark.parametrize(
    ("model", "folder"), [("dinov3-s", "256"), ("dinov2-s", "518"), ("uni2-h", "224")]
)
def test_the_default_size_is_one_that_the_encoder_takes(
    tmp_path: Path, model: str, folder: str
) -> None:
    forecast = dry_run(
        ExtractRequest(dataset=str(make_table(tmp_path, 3)), root=tmp_path / "f", model=model)
    )
    assert forecast.store == str(tmp_path / "f/images" / model / folder)


def test_only_what_is_missing_counts(tmp_path: Path) -> None:
    """19 of 42 images are done; of those another kind is asked for."""
    table = make_table(tmp_path, 42)
    few = tmp_path / "few.csv"
    pd.read_csv(table, dtype={"item_id": str})[:19].to_csv(few, index=False)
    extract(tiny_request(few, tmp_path / "f", name="x", features=("cls",)))
    request = tiny_request(table, tmp_path / "f", name="x", append=True)
    forecast = dry_run(replace(request, features=("cls",)))
    assert (forecast.rows, forecast.rows_missing, forecast.units_missing) == (42, 23, 2)
    assert forecast.bytes_missing == 23 * 48 * 2
    forecast = dry_run(replace(request, features=("cls", "mean")), timed=True)
    assert (forecast.rows_missing, forecast.units_missing) == (42, 4)
    assert forecast.bytes_missing == (23 + 42) * 48 * 2
    assert forecast.hours is not None
    assert forecast.hours > 0
    # Of two shares the second has every other unit: 3 rows of the 19, 7 of the 23.
    share = dry_run(replace(request, features=("cls", "mean"), part=(2, 2)))
    assert (share.rows_missing, share.units, share.units_missing) == (3 + 7, 4, 2)


def test_images_and_masks_are_estimated_by_some_items(tmp_path: Path) -> None:
    table = make_volumes(tmp_path, {"a": 5, "b": 9, "c": 13}, masked=2)
    features = ("cls", "image", "mask")
    forecast = dry_run(tiny_request(table, tmp_path / "f", features=features))
    assert forecast.estimated == ("image", "mask")
    assert forecast.n_bytes["image"] == 27 * 42 * 2
    assert forecast.n_bytes["mask"] == 27 * 42 * 2 // 3  # a byte a voxel, of two items in three
    assert dry_run(tiny_request(table, tmp_path / "g", features=("cls",))).estimated == ()


def test_sources_that_changed_are_told(tmp_path: Path) -> None:
    table = make_table(tmp_path, 5)
    request = tiny_request(table, tmp_path / "f")
    (tmp_path / "png/0000.png").unlink()
    assert dry_run(request).missing == ["0000"]
    assert dry_run(request).unreadable == {"0000": "the file is missing"}
    extract(request)
    with (tmp_path / "png/0002.png").open("ab") as file:
        file.write(b"123")
    (tmp_path / "png/0003.png").unlink()
    forecast = dry_run(request)
    assert list(forecast.changed) == ["0002"]
    assert "bytes when it was extracted" not in forecast.changed["0002"]
    assert forecast.changed["0002"].endswith(" when it was extracted")
    assert forecast.missing == ["0000", "0003"]


def test_a_forecast_does_not_read_every_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **options: bool) -> object:
        assert not options.get("digest")
        return stamp_of(*_)  # type: ignore[arg-type]

    monkeypatch.setattr("dinocache.counting.stamp_of", refuse)
    table = make_table(tmp_path, 3)
    assert dry_run(tiny_request(table, tmp_path / "f", hash_sources=True)).rows == 3


# ---------------------------------------------------------------------- trial


@pytest.fixture
def _no_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    for limit in ("_READING_S", "_ENCODING_S", "_ENOUGH_S"):
        monkeypatch.setattr(trial, limit, 1e9)


@pytest.mark.usefixtures("_no_hurry")
def test_a_trial_says_how_long_it_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the clock is asserted; what is read and encoded is."""
    opened: list[str] = []
    passes: list[int] = []
    plain_open, plain_call = ImageReader.open, Encoder.__call__

    def seen_open(self: ImageReader, *given: object, **options: object) -> object:
        opened.append(given[0].path.name)  # type: ignore[attr-defined]
        return plain_open(self, *given, **options)  # type: ignore[arg-type]

    def seen_call(self: Encoder, pixels: torch.Tensor, kinds: object) -> object:
        passes.append(len(pixels))
        return plain_call(self, pixels, kinds)  # type: ignore[arg-type]

    monkeypatch.setattr(ImageReader, "open", seen_open)
    monkeypatch.setattr(Encoder, "__call__", seen_call)
    table = make_table(tmp_path, 45)
    progress = QuietProgress()
    forecast = dry_run(tiny_request(table, tmp_path / "f"), progress, timed=True)
    assert progress.notes == ["trying a few items, to say how long it would take"]
    assert len(set(opened)) == 32
    assert passes == [1, 2, 8]  # which is the batch
    assert forecast.hours is not None
    assert forecast.rows_per_second == pytest.approx(45 / (forecast.hours * 3600))
    assert forecast.held_back_by in ("reading", "encoder")
    assert forecast.not_tried == ""
    again: list[str] = opened[:]
    opened.clear()
    dry_run(tiny_request(table, tmp_path / "g"), timed=True)
    assert sorted(opened) == sorted(again)


@pytest.mark.parametrize("channels", ["stacked", "passes"])
def test_a_trial_of_volumes_and_channels(tmp_path: Path, channels: str) -> None:
    make_volumes(tmp_path, {"a": 5, "b": 19, "c": 40, "d": 3, "e": 5, "f": 19, "g": 40, "h": 3})
    names = [f"{name}.nii.gz" for name in "abcdefgh"]
    table = tmp_path / "pairs.csv"
    pd.DataFrame(
        {"item_id": [*"abcd"], "path.ct": names[:4], "path.pet": names[4:], "mask": names[:4]}
    ).to_csv(table, index=False)
    forecast = dry_run(
        tiny_request(
            table, tmp_path / "f", channels=parse_channels(channels), features=None, batch=None
        ),
        timed=True,
    )
    assert forecast.rows_missing == 5 + 19 + 40 + 3
    assert forecast.hours
    assert ("cls.ct" in forecast.n_bytes) == (channels == "passes")


@pytest.mark.usefixtures("_no_hurry")
def test_a_trial_of_an_encoder_of_volumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It gets all rows of a usual item at once, or the fewest that take no less."""
    depths: list[int] = []

    def call(self: Encoder, pixels: torch.Tensor, kinds: list[str]) -> dict[str, torch.Tensor]:
        depths.append(len(pixels))
        return dict.fromkeys(kinds, torch.zeros((len(pixels), 2)))

    monkeypatch.setattr(Encoder, "__call__", call)
    table = make_volumes(tmp_path, {"a": 5, "b": 19, "c": 40})
    request = tiny_request(table, tmp_path / "f", model="anatomix", features=None, batch=None)
    assert dry_run(request, timed=True).hours
    assert set(depths) == {19}
    depths.clear()
    table = make_volumes(tmp_path, {"a": 400})
    assert dry_run(replace(request, root=tmp_path / "g"), timed=True).hours
    assert depths == [128, 256, 400]


def test_where_only_the_items_own_grid_is_missing_no_encoder_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("an encoder was made")

    table = make_table(tmp_path, 5)
    extract(tiny_request(table, tmp_path / "f", features=("cls",)))
    monkeypatch.setattr("dinocache.inference.load_encoder", refuse)
    forecast = dry_run(tiny_request(table, tmp_path / "f", features=("cls", "image")), timed=True)
    assert (forecast.rows_missing, forecast.held_back_by) == (5, "reading")


def test_what_cannot_be_tried_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = make_table(tmp_path, 3)
    request = tiny_request(table, tmp_path / "f", model="dinov3-7b", resolution=None, batch=None)
    forecast = dry_run(request, timed=True)
    assert forecast.hours is None
    assert forecast.not_tried.startswith(
        ("dinov3-7b needs 32.4 GB of memory, ", "drawing 26.9 GB of weights for dinov3-7b takes")
    )
    assert dry_run(request).not_tried == ""

    def fail(self: Encoder, *_: object) -> None:
        raise RequestError("cpu has too little memory for 1 rows")

    with monkeypatch.context() as patch:
        patch.setattr(Encoder, "__call__", fail)
        forecast = dry_run(tiny_request(table, tmp_path / "f"), timed=True)
    assert (forecast.hours, forecast.not_tried) == (None, "cpu has too little memory for 1 rows")
    for file in (tmp_path / "png").iterdir():
        file.write_bytes(b"no image")
    forecast = dry_run(tiny_request(table, tmp_path / "f"), timed=True)
    assert forecast.hours is None
    assert forecast.not_tried.startswith("none of 3 items can be read: not an image: ")
    assert len(forecast.unreadable) == 3


def test_memory_that_runs_out_half_way_ends_the_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Encoder.__call__

    def small(self: Encoder, pixels: torch.Tensor, kinds: object) -> object:
        if len(pixels) > 3:
            raise RequestError("too little memory")
        return plain(self, pixels, kinds)  # type: ignore[arg-type]

    monkeypatch.setattr(Encoder, "__call__", small)
    assert dry_run(tiny_request(make_table(tmp_path, 3), tmp_path / "f"), timed=True).hours


@pytest.mark.parametrize(
    ("free", "answer"),
    [
        (1 << 40, ""),
        (100_000, r"tiny needs .* of memory, 100\.0 kB are free"),
    ],
)
def test_memory(monkeypatch: pytest.MonkeyPatch, free: int, answer: str) -> None:
    memory = psutil.virtual_memory()._replace(available=free)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    assert re.fullmatch(answer, why_not(encoder_spec("tiny"), (32, 48), torch.device("cpu")))


def test_the_draw_follows_from_the_ids() -> None:
    ids = [f"{i:05d}" for i in range(2000)]
    first = drawn(ids)
    assert len(set(first)) == 32
    assert drawn(reversed(ids)) == first
    assert first != sorted(first)
    assert drawn(ids[:5]) != ids[:5]
    assert sorted(drawn(ids[:5])) == ids[:5]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.42, "0.42 s"),
        (1, "1 s"),
        (89, "89 s"),
        (90, "1.5 min"),
        (45 * 60, "45 min"),
        (89 * 60, "89 min"),
        (3.24 * 3600, "3.2 h"),
        (47 * 3600, "47 h"),
        (60 * 3600, "2.5 days"),
        (99 * 86_400, "99 days"),
        (1234 * 86_400, "1234 days"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert human_duration(seconds) == text
