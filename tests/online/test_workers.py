"""Workers: results in order, on any number of processes; a crash costs one item; nothing stays behind."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from asr.online.judging import Judge, Verdict
from asr.online.sources.row import Row
from asr.online.workers import CHUNK, CHUNKS_AHEAD, map_in_order
from tests.conftest import ROOT


class Doubling:
    """Doubles numbers; some kill the process, as a codec's crash does, and some raise."""

    def __init__(self, deadly: tuple[int, ...] = (), wrong: tuple[int, ...] = ()) -> None:
        self.deadly, self.wrong = deadly, wrong

    def __call__(self, number: int) -> int:
        if number in self.deadly:
            os._exit(1)
        if number in self.wrong:
            raise LookupError(f"{number} is wrong")
        return 2 * number


class Deadly(Judge):
    """Judges, and ends its process where a text says so."""

    def __call__(self, row: Row) -> Verdict:
        if row.text == "끝":
            os._exit(1)
        return super().__call__(row)


class Telling(Doubling):
    """Doubles numbers, and writes down for each which process did it; it takes its time to die."""

    def __init__(self, file: Path, *deadly: int) -> None:
        super().__init__(deadly)
        self.file = file

    def __call__(self, number: int) -> int:
        with open(self.file, "a", encoding="utf-8") as file:
            file.write(f"{os.getpid()} {number}\n")
        if number in self.deadly:
            time.sleep(0.5)
        return super().__call__(number)


def cannot_be_made(name: str) -> Callable[[int], int]:
    raise OSError(f"{name} is not installed")


def crashed(number: int) -> int:
    return -number


def doubled(numbers: Iterator[int] | range, processes: int, *arguments: tuple[int, ...]) -> Iterator[int]:
    return map_in_order(Doubling, arguments, numbers, processes, crashed)


@pytest.fixture(autouse=True)
def _nothing_stays() -> Iterator[None]:
    yield
    deadline = time.monotonic() + 5
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("count", [0, 1, CHUNK, 3 * CHUNK * CHUNKS_AHEAD + 1])
def test_results_come_in_order(processes: int, count: int) -> None:
    assert list(doubled(range(count), processes)) == [2 * number for number in range(count)]


@pytest.mark.parametrize("deadly", [(0,), (5, 6, 33), (99,), (63, 64)])
def test_an_item_that_kills_its_process_costs_itself_alone(deadly: tuple[int, ...]) -> None:
    found = list(doubled(range(100), 2, deadly))
    assert found == [-number if number in deadly else 2 * number for number in range(100)]


def test_a_pool_that_breaks_while_nobody_looks_is_noticed() -> None:
    """The consumer writes a part to the disk; meanwhile an item further on kills its process."""
    results = doubled(range(200), 2, (20,))
    found = [next(results)]
    time.sleep(1.5)
    found += results
    assert found == [-20 if number == 20 else 2 * number for number in range(200)]


def test_a_crash_costs_few_processes_and_little_work(tmp_path: Path) -> None:
    """Each process takes seconds to start where log-mel is made, and corpora have broken files by the thousand."""
    file = tmp_path / "work.txt"
    found = list(map_in_order(Telling, (file, 100), range(300), 2, crashed))
    assert found == [-number if number == 100 else 2 * number for number in range(300)]
    lines = [line.split() for line in file.read_text(encoding="utf-8").splitlines()]
    assert len({pid for pid, _ in lines}) <= 2 + 2 + 2
    assert len(lines) <= 300 + 3 * CHUNK, "what the other process did meanwhile is not done again"


def test_a_function_that_cannot_be_made_is_told_as_what_it_is() -> None:
    """It must not look as if each item had killed its process: every row of a night would be dropped."""
    with pytest.raises(OSError, match="a codec is not installed"):
        list(map_in_order(cannot_be_made, ("a codec",), range(100), 2, crashed))


def test_an_error_of_the_function_comes_through() -> None:
    with pytest.raises(LookupError, match="17 is wrong"):
        list(doubled(range(100), 2, (), (17,)))


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("at", [0, 5, 70])
def test_an_error_of_the_items_comes_through(processes: int, at: int) -> None:
    def numbers() -> Iterator[int]:
        yield from range(at)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(doubled(numbers(), processes))


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_only_a_few_items_are_read_ahead(processes: int) -> None:
    """A million rows with their audio must not be in memory at once."""
    read = 0

    def numbers() -> Iterator[int]:
        nonlocal read
        while True:
            read += 1
            yield read

    results = doubled(numbers(), processes)
    for taken in range(1, 301):
        next(results)
        assert read <= taken + (CHUNKS_AHEAD * processes + 1) * CHUNK
    results.close()


def test_a_consumer_that_stops_leaves_nothing_running() -> None:
    results = doubled(range(1000), 2, (40,))
    assert list(itertools.islice(results, 50))[-1] == 98
    results.close()


KILLED = """
import itertools, multiprocessing, sys
from asr.online.workers import map_in_order
from tests.online.test_workers import Doubling, crashed

if __name__ == "__main__":
    for result in map_in_order(Doubling, (), itertools.count(), 2, crashed):
        if result == 0:
            print(*(child.pid for child in multiprocessing.active_children()), flush=True)
"""


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="asks Linux which processes there are")
def test_workers_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    """kill -9 gives it no time to tell them."""
    (tmp_path / "killed.py").write_text(KILLED, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, tmp_path / "killed.py"], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    workers = process.stdout.readline().split()
    assert len(workers) == 2
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert still_running(workers, 10) == []


def still_running(pids: list[str], seconds: float) -> list[str]:
    """Those of the processes that are still there after so long."""
    deadline = time.monotonic() + seconds
    while (alive := [pid for pid in pids if _runs(pid)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return alive


def _runs(pid: str) -> bool:
    try:
        # The state stands behind the name; one whose parent has not looked yet is a zombie.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
