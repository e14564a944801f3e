"""Batching: callers share a model; nobody waits for a long recording, and a failure reaches who caused it."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from asr.offline.batcher import Batcher
from asr.offline.decoding import Spoken
from asr.offline.speech import Window


def windows(*numbers: int) -> list[Window]:
    return [Window(number, np.zeros(1, dtype=np.float32), [(number, number + 1)], [0]) for number in numbers]


class Ear:
    """Hears the number of each window; waits before the first batch until it is let go."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.heard, self.go_on = threading.Event(), threading.Event()

    def __call__(self, given: list[Window]) -> list[Spoken]:
        self.batches.append([window.start for window in given])
        self.heard.set()
        assert self.go_on.wait(30)
        if any(window.start < 0 for window in given):
            raise ValueError("a bad window")
        return [Spoken(str(window.start)) for window in given]


@pytest.fixture
def ear():
    return Ear()


@pytest.fixture
def batcher(ear):
    batcher = Batcher({"tuned": ear, "base": ear}, most=4)
    yield batcher
    ear.go_on.set()
    batcher.close()


def ask(pool, batcher, *numbers, name="tuned"):
    return pool.submit(batcher.hearing(name), windows(*numbers))


def waiting(batcher, callers):
    """Wait until so many callers stand in line."""
    while sum(map(len, batcher._waiting.values())) < callers:
        threading.Event().wait(0.001)


def test_everybody_gets_what_is_theirs_in_turn(ear, batcher):
    """A caller with ten windows comes first; one with a single window is in the very next batch."""
    with ThreadPoolExecutor(3) as pool:
        first = ask(pool, batcher, *range(10))
        assert ear.heard.wait(30)
        second, third = ask(pool, batcher, 100), ask(pool, batcher, 200, 201)
        waiting(batcher, 3)
        ear.go_on.set()
        assert [spoken.text for spoken in first.result(30)] == list(map(str, range(10)))
        assert [spoken.text for spoken in second.result(30)] == ["100"]
        assert [spoken.text for spoken in third.result(30)] == ["200", "201"]
    assert ear.batches[0] == [0, 1, 2, 3]
    assert {100, 200} <= set(ear.batches[1])
    assert max(map(len, ear.batches)) == 4


def test_models_take_turns(ear, batcher):
    with ThreadPoolExecutor(3) as pool:
        begun = ask(pool, batcher, 0)
        assert ear.heard.wait(30)
        others = [ask(pool, batcher, *range(10, 22)), ask(pool, batcher, 100, name="base")]
        waiting(batcher, 2)
        ear.go_on.set()
        for future in [begun, *others]:
            future.result(30)
    assert [100] in ear.batches[1:3], "the base did not wait until everything else was done"
    assert all(100 not in batch or batch == [100] for batch in ear.batches), "no batch is of two models"


def test_a_failure_reaches_who_caused_it_alone(ear, batcher):
    with ThreadPoolExecutor(3) as pool:
        first = ask(pool, batcher, 0)
        assert ear.heard.wait(30)
        bad, good = ask(pool, batcher, -1, 7), ask(pool, batcher, 5)
        waiting(batcher, 2)
        ear.go_on.set()
        assert first.result(30)[0].text == "0"
        assert good.result(30)[0].text == "5"
        with pytest.raises(ValueError, match="a bad window"):
            bad.result(30)
    assert batcher.hearing("tuned")([]) == []


def test_who_waits_at_the_end_is_told(ear, batcher):
    with ThreadPoolExecutor(3) as pool:
        first = ask(pool, batcher, 1)
        assert ear.heard.wait(30)
        second = ask(pool, batcher, 2)
        waiting(batcher, 1)
        closing = pool.submit(batcher.close)
        while not batcher._closed:
            threading.Event().wait(0.001)
        ear.go_on.set()
        closing.result(30)
        assert first.result(30)[0].text == "1"
        with pytest.raises(RuntimeError, match="closed"):
            second.result(30)
    with pytest.raises(RuntimeError, match="closed"):
        batcher.hearing("tuned")(windows(3))
