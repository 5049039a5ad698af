"""Units done by Dask workers: the same bytes, whoever does them and whoever dies."""

import itertools
import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from multiprocessing import forkserver
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from making import contents, make_table, tiny_request

from dinocache import cluster, supervise, worker
from dinocache.cli import main
from dinocache.errors import (
    CrashError,
    RecipeMismatchError,
    RequestError,
    StoppedError,
    StoreWriteError,
    TooManyFailuresError,
)
from dinocache.extract import extract
from dinocache.layout import RUNS
from dinocache.progress import QuietProgress
from dinocache.records import Run
from dinocache.store import FeatureStore
from dinocache.verify import verify
from dinocache.writer import StoreWriter

distributed = pytest.importorskip("distributed")

KINDS = ("cls", "dense", "image")
DEADLY = Path(__file__).resolve().parents[1] / "support" / "deadly"

pytestmark = pytest.mark.timeout(240)


class Counting(QuietProgress):
    """Counts what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = self.units = self.total = self.done = self.n_bytes = 0
        self.stopped = False

    def start(self, total_rows: int, done_rows: int) -> None:
        self.total, self.done = total_rows, done_rows

    def advance(self, rows: int, n_bytes: int, busy: Mapping[str, float]) -> None:
        self.rows += rows
        self.n_bytes += n_bytes
        self.units += 1

    def stop(self) -> None:
        self.stopped = True


@pytest.fixture(scope="module")
def scheduler() -> Iterator[str]:
    """A cluster of somebody else: one worker, in this process, that does three units at once."""
    with distributed.LocalCluster(
        n_workers=1,
        threads_per_worker=3,
        processes=False,
        protocol="tcp://",
        dashboard_address="127.0.0.1:0",
    ) as running:
        yield running.scheduler_address


def whole(store: Path) -> dict[str, bytes]:
    """What counts, without what a writer left that was killed."""
    return {name: found for name, found in contents(store).items() if not name.endswith(".partial")}


# A worker that does several units at once


def test_units_done_at_once_by_one_worker_are_the_same_bytes(
    tmp_path: Path, scheduler: str
) -> None:
    table = make_table(tmp_path, 117)
    (tmp_path / "png/0020.png").write_bytes(b"no image")
    progress = Counting()
    outcome = cluster.extract_on(
        tiny_request(table, tmp_path / "f", features=KINDS), scheduler, progress
    )
    plain = extract(tiny_request(table, tmp_path / "g", features=KINDS))
    assert whole(outcome.path) == whole(plain.path)
    assert (outcome.rows, outcome.units, outcome.complete) == (117, 8, True)
    (failed,) = outcome.failures
    assert failed.failure.reason == "not an image: PNG, JPEG, TIFF, BMP or WebP was expected"
    assert (progress.total, progress.done, progress.rows, progress.units) == (117, 0, 117, 8)
    assert progress.n_bytes > 117 * 2 * 3 * 48 * 2
    assert progress.stopped
    assert progress.notes[0].startswith("dashboard: http://127.0.0.1:")
    assert sorted(outcome.busy) == ["collect", "encode", "read", "write"]
    (report,) = (outcome.path / RUNS).iterdir()
    run = Run.from_body(json.loads(report.read_bytes())["body"], report.name)
    assert (run.rows, run.units, run.workers, run.ended) == (117, 8, 1, "done")
    assert verify(outcome.path).exit_code == 0
    again = cluster.extract_on(
        tiny_request(table, tmp_path / "f", features=KINDS), scheduler, progress
    )
    assert (again.rows, again.units, again.complete) == (0, 0, True)


def test_a_worker_that_outlives_a_run_sees_what_has_changed_since(
    tmp_path: Path, scheduler: str
) -> None:
    """The same command, of a table that has grown meanwhile and of an item that was mended."""
    table = make_table(tmp_path, 37)
    mended = (tmp_path / "png/0003.png").read_bytes()
    (tmp_path / "png/0003.png").write_bytes(b"no image")
    whole = pd.read_csv(table, dtype={"item_id": str})
    whole[:19].to_csv(table, index=False)
    request = tiny_request(table, tmp_path / "f", append=True, retry_failed=True)
    first = cluster.extract_on(request, scheduler, QuietProgress())
    assert (first.rows, len(first.failures)) == (19, 1)
    whole.to_csv(table, index=False)
    (tmp_path / "png/0003.png").write_bytes(mended)
    second = cluster.extract_on(request, scheduler, QuietProgress())
    assert (second.rows, second.failures, second.complete) == (18 + 1, (), True)
    assert len(FeatureStore(second.path).item_vectors("cls")[0]) == 37
    assert verify(second.path).exit_code == 0


def test_on_the_command_line(
    tmp_path: Path, scheduler: str, capsys: pytest.CaptureFixture[str]
) -> None:
    table = make_table(tmp_path, 19)
    options = ["--model", "tiny", "--resolution", "32x48", "--weights", "random", "--device", "cpu"]
    command = ["extract", str(table), "--store", str(tmp_path / "f"), "--unit-rows", "16"]
    command += [*options, "--cluster", scheduler, "--json"]
    assert main(command) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["rows"] == 19
    assert "19/19 rows" in printed.err
    assert main([*command, "--adapt", "1:2"]) == 2
    assert "error: --cluster tcp://127.0.0.1:" in capsys.readouterr().err


# What goes wrong


def test_errors_are_raised_as_they_are(
    tmp_path: Path, scheduler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = make_table(tmp_path, 69)
    for name in ("0003", "0020", "0040"):
        (tmp_path / f"png/{name}.png").write_bytes(b"no image")
    request = tiny_request(table, tmp_path / "f")

    def run(**options: object) -> object:
        return cluster.extract_on(replace(request, **options), scheduler, Counting())  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(StoreWriter, "commit", refused)
        with pytest.raises(StoreWriteError, match=r"^cannot write it: the disk is full$"):
            run(root=tmp_path / "refused")
    with pytest.raises(TooManyFailuresError, match=r"^stopped: [23] items failed, --max-failures"):
        run(max_failures=1)
    assert 1 <= len(FeatureStore(tmp_path / "f/images/tiny/32x48").failures()) <= 3
    with pytest.raises(RecipeMismatchError, match=r"input\.resize\.mode: squash in the store, pad"):
        run(resize="pad")
    with pytest.raises(RequestError, match=r"^tiny has no 'embed'; it has cls, mean, dense$"):
        run(features=("embed",))
    assert len(cluster.extract_on(request, scheduler, Counting()).failures) == 3


def refused(self: StoreWriter, record: object) -> None:
    raise StoreWriteError("cannot write it: the disk is full")


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_ends_it(tmp_path: Path, scheduler: str, name: str, code: int) -> None:
    class Signals(Counting):
        def advance(self, rows: int, n_bytes: int, busy: Mapping[str, float]) -> None:
            super().advance(rows, n_bytes, busy)
            signal.raise_signal(signal.Signals[name])

    before = signal.getsignal(signal.SIGTERM)
    request = tiny_request(make_table(tmp_path, 69), tmp_path / "f")
    progress = Signals()
    with pytest.raises(StoppedError, match=r"^stopped at once; what was committed is") as stopped:
        cluster.extract_on(request, scheduler, progress)
    assert stopped.value.exit_code == code
    assert (progress.units, progress.stopped) == (1, True)
    assert signal.getsignal(signal.SIGTERM) is before
    assert cluster.extract_on(request, scheduler, Counting()).complete


def test_a_scheduler_that_goes_away_is_one_line(tmp_path: Path) -> None:
    with distributed.LocalCluster(
        n_workers=1,
        threads_per_worker=1,
        processes=False,
        protocol="tcp://",
        dashboard_address="127.0.0.1:0",
    ) as running:

        class Closes(Counting):
            def advance(self, rows: int, n_bytes: int, busy: Mapping[str, float]) -> None:
                running.close()

        request = tiny_request(make_table(tmp_path, 69), tmp_path / "f")
        with pytest.raises(CrashError, match=r"its scheduler is gone\. What was committed is who"):
            cluster.extract_on(request, running.scheduler_address, Closes())
    assert verify(tmp_path / "f/images/tiny/32x48").damages == []


def test_a_unit_that_is_recorded_is_not_done_again(tmp_path: Path) -> None:
    """Who had it before may have died between its commit and saying so."""
    request = tiny_request(make_table(tmp_path, 35), tmp_path / "f", features=KINDS)
    plain = cluster._plain(request)
    plan = worker.prepare_store(plain, torch.get_num_threads())
    assert {name: rows for name, (rows, _) in plan.units.items()} == {
        "0001-00000": 16,
        "0001-00001": 16,
        "0001-00002": 3,
    }
    assert worker.do_unit(plain, "0001-00002", {}).rows == 3
    files = [path for path in (tmp_path / "f").rglob("*") if path.is_file()]
    before = {path: path.stat().st_ctime_ns for path in files}
    assert worker.do_unit(plain, "0001-00002", {}).rows == 0
    assert {path: path.stat().st_ctime_ns for path in files} == before
    assert worker.do_unit(plain, "0001-00001", {}).rows == 16


# Workers that die, as the scheduler tells of them


class Deaths:
    """Stands in for what workers do; module-wide, as tasks find it by its name."""

    do_unit = staticmethod(worker.do_unit)
    blamed: Mapping[str, str]
    searches: "itertools.count[int]"


def killed() -> Exception:
    where = SimpleNamespace(address="tcp://127.0.0.1:9")
    error: Exception = distributed.KilledWorker("task", where, 1)
    return error


def dies_of_0020(plain: object, unit: str, killers: Mapping[str, str]) -> object:
    if unit == "0001-00001" and "0020" not in killers:
        raise killed()
    return Deaths.do_unit(plain, unit, killers)


def dies(*_: object) -> object:
    raise killed()


def finds(plain: object, item_ids: list[str]) -> Mapping[str, str]:
    if next(Deaths.searches) == 0:
        raise killed()  # it shared its worker with a unit that died
    assert item_ids == [f"{index:04d}" for index in range(16, 32)]
    return Deaths.blamed


def test_the_item_that_its_workers_died_of_is_recorded(
    tmp_path: Path, scheduler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "do_unit", dies_of_0020)
    monkeypatch.setattr(worker, "find_killers", finds)
    Deaths.blamed, Deaths.searches = {"0020": "reading it ends the process"}, itertools.count()
    progress = Counting()
    request = tiny_request(make_table(tmp_path, 69), tmp_path / "f")
    outcome = cluster.extract_on(request, scheduler, progress)
    assert [(f.item_id, f.failure.reason) for f in outcome.failures] == [
        ("0020", "reading it ends the process")
    ]
    assert progress.notes[1:] == [
        "workers died in unit 0001-00001; going on",
        "workers died in unit 0001-00001; recorded as failed: 0020; going on",
    ]
    assert (outcome.complete, progress.rows) == (True, 69)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("do_unit", r"^unit 0001-0000\d was lost with its worker 8 times, and no item of it is"),
        (
            "prepare_store",
            r"^workers died before the first unit, or behind the last one: the same comma",
        ),
        ("conclude_store", "^workers died before the first unit, or behind the last one"),
    ],
)
def test_workers_that_die_of_nothing_in_particular(
    tmp_path: Path,
    scheduler: str,
    monkeypatch: pytest.MonkeyPatch,
    function: str,
    message: str,
) -> None:
    monkeypatch.setattr(worker, function, dies)
    monkeypatch.setattr(worker, "find_killers", none)
    request = tiny_request(make_table(tmp_path, 19), tmp_path / "f")
    with pytest.raises(CrashError, match=message):
        cluster.extract_on(request, scheduler, Counting())


def none(*_: object) -> dict[str, str]:
    return {}


@pytest.fixture
def forked_workers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have a cluster's workers be forks of one process that has imported all, and reads `DEADLY`.

    Each is a process of its own as ever, that starts at once instead of behind its imports.
    """
    import dask

    monkeypatch.setenv("PYTHONPATH", str(DEADLY), prepend=os.pathsep)
    monkeypatch.setattr("distributed.utils._forkserver_preload_set", True)  # with its own list
    started_by = {"distributed.worker.multiprocessing-method": "forkserver"}
    preload = [
        "distributed",
        "timm",
        "dinocache.inference",
        "dinocache.worker",
        "dinocache.extract",
    ]
    multiprocessing.get_context("forkserver").set_forkserver_preload(preload)
    with dask.config.set(started_by):
        yield
    forkserver._forkserver._stop()  # it has read `DEADLY`, which is for this test only


@pytest.mark.skipif(sys.platform != "linux", reason="ends processes")
@pytest.mark.usefixtures("forked_workers")
def test_workers_that_are_killed_lose_nothing(tmp_path: Path) -> None:
    """One at the first unit, by somebody else; and whoever reads the item 0040."""
    table = make_table(tmp_path, 85)
    items = pd.read_csv(table, dtype={"item_id": str})
    items.loc[40, "path"] = "png/deadly-kill.png"
    items.to_csv(table, index=False)
    (tmp_path / "png/deadly-kill.png").write_bytes(b"no image")
    victims: list[int] = []

    class Kills(Counting):
        def advance(self, rows: int, n_bytes: int, busy: Mapping[str, float]) -> None:
            super().advance(rows, n_bytes, busy)
            workers = [p for p in multiprocessing.active_children() if p.pid]
            if not victims and workers:
                victims.append(workers[0].pid or 0)
                os.kill(victims[0], signal.SIGKILL)

    progress = Kills()
    request = tiny_request(table, tmp_path / "f", features=KINDS)
    outcome = cluster.extract_on(request, "local:2", progress)
    assert len(victims) == 1
    assert (outcome.complete, outcome.units) == (True, 6)
    (failed,) = outcome.failures
    assert failed.failure.model_dump() == {
        "reason": "reading it ends the process (SIGKILL, most often for want of memory)",
        "reader": "image",
        "path": "png/deadly-kill.png",
    }
    assert any("recorded as failed: 0040" in note for note in progress.notes)
    assert verify(outcome.path).exit_code == 0
    before = torch.get_num_threads()
    torch.set_num_threads(FeatureStore(outcome.path).header.execution.threads)
    try:
        plain = extract(replace(request, root=tmp_path / "g"))  # where it is merely unreadable
    finally:
        torch.set_num_threads(before)
    ours, theirs = whole(outcome.path), whole(plain.path)
    assert ours.keys() == theirs.keys()
    different = {name for name in ours if ours[name] != theirs[name]}
    assert different == {
        *(f"units/0001-00002.{kind}.json" for kind in KINDS),
        "units/0001-closing.item_cls.json",
        "sealed.json",
    }


# What cannot be asked for


@pytest.mark.parametrize(
    ("where", "options", "adapt", "message"),
    [
        ("moon", (), None, r"^--cluster 'moon': give local:N, gpu, slurm:N, or the address of a"),
        ("", (), None, "^--cluster '': give local:N"),
        ("local:x", (), None, "^--cluster 'local:x': give local:N"),
        ("local:0", (), None, "^--cluster 'local:0': give local:N"),
        ("local:-1", (), None, "^--cluster 'local:-1': give local:N"),
        ("slurm:0", (), None, "^--cluster 'slurm:0': give local:N"),
        ("gpu:2", (), None, "^--cluster 'gpu:2': give local:N"),
        ("local:2", ("queue=gpu",), None, "^--cluster-option is for slurm, not for local$"),
        ("gpu", ("--exclusive",), None, "^--cluster-option is for slurm, not for gpu$"),
        ("slurm", ("queue",), None, r"^--cluster-option 'queue': give NAME=VALUE, as walltime="),
        ("tcp://h:1", ("queue=gpu",), None, r"^--cluster tcp://h:1 is as it is: it takes no"),
        ("tcp://h:1", (), "1:2", r"^--cluster tcp://h:1 is as it is: it takes no options here$"),
        *(
            ("local:2", (), adapt, f"^--adapt '{adapt}': give MIN:MAX workers, as 1:16$")
            for adapt in ("", "3", "3:", ":3", "3:2", "0:0", "-1:2", "a:b", "1:2:3")
        ),
        ("tcp://127.0.0.1:1", (), None, r"^--cluster tcp://127.0.0.1:1: no scheduler answers the"),
        ("tcp://nowhere", (), None, "^--cluster tcp://nowhere: no scheduler answers there: missi"),
        ("moon://x:1", (), None, "^--cluster moon://x:1: no scheduler answers there: unknown"),
        ("tls://127.0.0.1:1", (), None, "^--cluster tls://127.0.0.1:1: no scheduler answers th"),
    ],
)
def test_clusters_that_cannot_be(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    options: tuple[str, ...],
    adapt: str | None,
    message: str,
) -> None:
    monkeypatch.setattr(cluster, "_ANSWERS_WITHIN", "300ms")
    request = tiny_request(make_table(tmp_path, 2), tmp_path / "f")
    with pytest.raises(RequestError, match=message):
        cluster.extract_on(request, where, QuietProgress(), options=options, adapt=adapt)
    assert not (tmp_path / "f/images").exists()


def test_what_is_said_of_a_slurm_job_reaches_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm = pytest.importorskip("dask_jobqueue.slurm")
    asked: dict[str, object] = {}

    def refuse(**given: object) -> None:
        asked.update(given)
        raise TypeError("Job.__init__() got an unexpected\nkeyword argument 'moons'")

    monkeypatch.setattr(slurm, "SLURMCluster", refuse)
    request = tiny_request(make_table(tmp_path, 2), tmp_path / "f")
    options = ("queue=gpu", "cores=3", "walltime=04:00:00", "--exclusive", "moons=5", "--nice=7")
    with pytest.raises(
        RequestError, match=r"^--cluster-option: Job.* unexpected keyword argument 'moons'$"
    ):
        cluster.extract_on(request, "slurm:6", QuietProgress(), options=options)
    expected = {
        "n_workers": 6,
        "queue": "gpu",
        "cores": 3,
        "memory": "16GB",
        "walltime": "04:00:00",
        "moons": 5,
        "job_extra_directives": ["--exclusive", "--nice=7"],
        "security": True,
        "shared_temp_directory": str(tmp_path / "f/.jobs"),
    }
    assert {name: asked[name] for name in expected} == expected


def test_a_machine_without_a_gpu_has_no_cluster_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    request = tiny_request(make_table(tmp_path, 2), tmp_path / "f")
    with pytest.raises(RequestError, match=r"^--cluster gpu: this machine has no CUDA device; loc"):
        cluster.extract_on(request, "gpu", QuietProgress())


def test_without_distributed_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    request = tiny_request(make_table(tmp_path, 2), tmp_path / "f")
    with pytest.raises(
        RequestError, match=r"^--cluster needs `pip install 'dinocache\[cluster\]'`"
    ):
        cluster.extract_on(request, "local:2", QuietProgress())


def test_workers_in_another_folder_find_the_same_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_table(tmp_path, 2)
    for name in ("mine.pth", "a,b.pth"):
        (tmp_path / name).write_bytes(b"")
    request = tiny_request(Path("images.csv"), Path("f"), data=Path(), weights="hub, mine.pth")
    there = worker.request_of(cluster._plain(request))
    assert there.dataset == str(tmp_path / "images.csv")
    assert (there.data, there.root) == (tmp_path, str(tmp_path / "f"))
    assert there.weights == f"hub,{tmp_path}/mine.pth"
    for weights, expected in (
        ("a,b.pth", f"{tmp_path}/a,b.pth"),
        ("random:3", "random:3"),
        ("hub,random:0", "hub,random:0"),
        (None, None),
    ):
        plain = cluster._plain(replace(request, dataset="demo", weights=weights))
        assert worker.request_of(plain).weights == expected
        assert worker.request_of(plain).dataset == "demo"


def test_items_are_tried_by_the_workers_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    request = tiny_request(Path("images.csv"), Path("f"))
    asked: list[object] = []
    monkeypatch.setattr(supervise, "find_killers", lambda *given: asked.append(given) or {"b": "x"})
    assert worker.find_killers(cluster._plain(request), ["a", "b"]) == {"b": "x"}
    ((given, ids),) = asked
    assert ids == ["a", "b"]
    assert given.root == str(Path("f").absolute())
