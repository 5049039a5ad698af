"""A stage: calls in order, a bounded number behind, and no error is lost."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError

import pytest

from dinocache.meter import Meter
from dinocache.pipeline import Stage

METER = Meter({"write": 1})
SOON = 30
"""Seconds within which a thread that is not stuck has come to its end."""


class Gate:
    """A call that begins and waits to be let through."""

    def __init__(self) -> None:
        self.begun, self.open = threading.Event(), threading.Event()

    def __call__(self) -> None:
        self.begun.set()
        assert self.open.wait(SOON)


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open.set()


def fail() -> None:
    raise OSError("the disk is gone")


def in_thread(call: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    return thread


def test_calls_are_done_in_order_also_those_of_several_givers() -> None:
    stage, done = Stage("write", ahead=2, meter=METER), list[tuple[str, int]]()

    def give(giver: str) -> None:
        for number in range(37):
            stage.put(lambda number=number: done.append((giver, number)))

    givers = [in_thread(lambda giver=giver: give(giver)) for giver in "abc"]
    for giver in givers:
        giver.join(SOON)
    stage.finish()
    assert len(done) == 3 * 37
    for giver in "abc":
        assert [number for by, number in done if by == giver] == list(range(37))


def test_whoever_gives_too_much_waits(gate: Gate) -> None:
    stage, given = Stage(None, ahead=3, meter=METER), threading.Semaphore(0)
    stage.put(gate)
    assert gate.begun.wait(SOON)

    def give() -> None:
        for _ in range(11):
            stage.put(lambda: None)
            given.release()

    giver = in_thread(give)
    for _ in range(3):
        assert given.acquire(timeout=SOON)
    assert not given.acquire(timeout=0.1)  # a fourth would have to wait behind the gate
    gate.open.set()
    giver.join(SOON)
    assert not giver.is_alive()
    stage.finish()


def test_a_future_is_done_with_its_call() -> None:
    stage, seen = Stage(None, ahead=1, meter=METER), list[int]()
    stage.put(lambda: seen.append(5)).result(SOON)
    assert seen == [5]
    with pytest.raises(OSError, match="the disk is gone"):
        stage.put(fail).result(SOON)
    stage.stop()


def test_an_error_is_raised_to_the_next_giver_and_at_the_end(gate: Gate) -> None:
    stage, seen = Stage("write", ahead=4, meter=METER), list[int]()
    stage.put(gate)
    failing = stage.put(fail)
    behind = [stage.put(lambda: seen.append(1)) for _ in range(3)]
    gate.open.set()
    with pytest.raises(OSError, match="the disk is gone"):
        failing.result(SOON)
    for _ in range(9):  # each giver, however many there are: none waits for a place
        with pytest.raises(OSError, match="the disk is gone"):
            stage.put(lambda: seen.append(2))
    with pytest.raises(OSError, match="the disk is gone"):
        stage.finish()
    for future in behind:
        with pytest.raises(CancelledError):
            future.result(SOON)
    assert seen == []
    stage.stop()  # has ended already


def test_who_waits_for_a_place_when_a_call_fails_does_not_wait_forever(gate: Gate) -> None:
    stage, ended = Stage(None, ahead=1, meter=METER), threading.Event()

    def gated_failure() -> None:
        gate()
        fail()

    def give() -> None:
        try:
            for _ in range(7):
                stage.put(lambda: None)
        except OSError:
            ended.set()

    stage.put(gated_failure)
    assert gate.begun.wait(SOON)
    giver = in_thread(give)
    gate.open.set()
    giver.join(SOON)
    assert not giver.is_alive()
    with pytest.raises(OSError, match="the disk is gone"):
        stage.finish()
    assert ended.is_set()


def test_an_error_that_no_library_makes_is_not_lost_either() -> None:
    stage = Stage(None, ahead=1, meter=METER)

    def leave() -> None:
        raise SystemExit(3)

    stage.put(leave)
    with pytest.raises(SystemExit, match="3"):
        stage.finish()


def test_stop_drops_what_has_not_begun(gate: Gate) -> None:
    told = threading.Event()

    class Told(Stage):
        def __setattr__(self, name: str, value: object) -> None:
            super().__setattr__(name, value)
            if name == "_dropping" and value:
                told.set()

    stage, seen = Told("write", ahead=2, meter=METER), list[int]()
    begun = stage.put(gate)
    assert gate.begun.wait(SOON)
    waiting = [stage.put(lambda: seen.append(1)) for _ in range(2)]
    stopper = in_thread(stage.stop)  # waits for a place itself: the queue is full
    assert told.wait(SOON)
    gate.open.set()
    stopper.join(SOON)
    assert not stopper.is_alive()
    begun.result(SOON)
    for future in waiting:
        with pytest.raises(CancelledError):
            future.result(SOON)
    assert seen == []
    stage.stop()


def test_only_stages_with_a_name_are_metered() -> None:
    meter = Meter({"write": 1})
    for name in ("write", None):
        stage = Stage(name, ahead=1, meter=meter)
        stage.put(lambda: None)
        stage.finish()
    unknown = Stage("read", ahead=1, meter=meter)
    unknown.put(lambda: None)
    with pytest.raises(KeyError, match="read"):
        unknown.finish()
