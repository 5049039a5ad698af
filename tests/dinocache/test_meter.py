"""How busy stages are, by a clock that the tests turn."""

import threading
from types import SimpleNamespace

import pytest

from dinocache.meter import Meter, busy_text

SOON = 30


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("dinocache.meter.time", SimpleNamespace(monotonic=clock))
    return clock


def test_fractions_are_of_the_time_of_all_threads_of_a_stage(clock: Clock) -> None:
    meter = Meter({"read": 4, "encode": 1, "write": 2})
    with meter.busy("read"):
        clock.now += 6
    with meter.busy("encode"):
        clock.now += 2
    meter.add("write", 4)
    assert meter.elapsed_s == 8
    assert meter.fractions() == {"read": 6 / 4 / 8, "encode": 0.25, "write": 0.25}
    assert list(meter.fractions()) == ["read", "encode", "write"]
    clock.now += 8
    assert meter.fractions()["encode"] == 0.125


def test_threads_that_work_at_the_same_time_add_up(clock: Clock) -> None:
    meter = Meter({"read": 3})
    inside, leave = threading.Barrier(4), threading.Barrier(4)

    def work() -> None:
        with meter.busy("read"):
            inside.wait(SOON)
            leave.wait(SOON)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    inside.wait(SOON)
    clock.now += 5
    leave.wait(SOON)
    for thread in threads:
        thread.join(SOON)
    clock.now += 5
    assert meter.fractions() == {"read": 0.5}


def test_no_count_is_lost_between_threads(clock: Clock) -> None:
    meter = Meter({"read": 5})

    def work() -> None:
        for _ in range(2000):
            meter.add("read", 0.25)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON)
    clock.now += 1000
    assert meter.fractions() == {"read": 0.5}


def test_what_fails_has_worked_too(clock: Clock) -> None:
    meter = Meter({"encode": 1})

    def fail() -> None:
        with meter.busy("encode"):
            clock.now += 3
            raise OSError("no")

    with pytest.raises(OSError, match="no"):
        fail()
    clock.now += 1
    assert meter.fractions() == {"encode": 0.75}


def test_nothing_is_more_than_wholly_busy_nor_divided_by_no_time(clock: Clock) -> None:
    meter = Meter({"encode": 1, "write": 2})
    assert meter.fractions() == {"encode": 0.0, "write": 0.0}
    meter.add("encode", 9)  # on a device that began before
    clock.now += 4
    assert meter.fractions() == {"encode": 1.0, "write": 0.0}


def test_for_people() -> None:
    fractions = {"read": 0.349, "encode": 0.98, "collect": 0.0, "write": 1.0}
    assert busy_text(fractions) == "read 35%, encode 98%, collect 0%, write 100%"
    assert busy_text({}) == ""
