"""How fast stages are together, by numbers whose answer is known by hand."""

import pytest

from dinocache.pace import Pace, pace, usable_cores


@pytest.mark.parametrize(
    ("given", "seconds", "slower"),
    [
        # 10 s of cores for reading and 90 s for encoding, on 2 cores.
        pytest.param((10, 1.0, 45, 90, 4, 2, True), 50, "encoder", id="cores-are-shared"),
        pytest.param((200, 1.0, 45, 90, 4, 2, True), 145, "reading", id="mostly-reading"),
        # A thread waits for the disk nine tenths of its time.
        pytest.param((800, 0.1, 45, 90, 4, 2, True), 200, "reading", id="a-slow-disk"),
        pytest.param((10, 1.0, 80, 90, 4, 2, True), 80, "encoder", id="an-encoder-of-one-thread"),
        pytest.param((40, 1.0, 15, 15, 5, 16, False), 15, "encoder", id="a-gpu-holds-back"),
        pytest.param((100, 1.0, 15, 15, 5, 16, False), 20, "reading", id="a-gpu-waits"),
        pytest.param((100, 1.0, 15, 15, 5, 2, False), 50, "reading", id="a-gpu-and-few-cores"),
        pytest.param((100, 0.5, 15, 15, 5, 2, False), 25, "reading", id="that-mostly-wait"),
    ],
)
def test_stages(given: tuple[float, ...], seconds: float, slower: str) -> None:
    reading_s, reading_cpu, encoder_s, encoder_cpu_s, workers, cores, shared = given
    found = pace(
        reading_s=reading_s,
        reading_cpu=reading_cpu,
        encoder_s=encoder_s,
        encoder_cpu_s=encoder_cpu_s,
        workers=int(workers),
        cores=int(cores),
        shared=bool(shared),
    )
    assert found == Pace(seconds=pytest.approx(seconds), held_back_by=slower)


def test_there_is_a_core() -> None:
    assert usable_cores() >= 1
