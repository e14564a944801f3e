"""Ranks: what the processes of a job tell each other, and that one voice is heard of all of them.

Threads with one store stand in for the processes where nothing but the store is needed.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch.distributed

from asr.offline.ending import LOST, Ending
from asr.offline.precision import limit_devices
from asr.offline.ranks import ALONE, Ranks, launched, together
from asr.offline.runs import start_run
from asr.shared.bundle import open_bundle
from tests.conftest import ROOT
from tests.offline.test_trainer import begun, configuration
from utils import BundleError, UserError, WhisperError


def of_two(rank: int) -> dict[str, str]:
    return {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}


@pytest.fixture
def environment(monkeypatch) -> Callable[[dict[str, str]], None]:
    """Set what a launcher sets, and nothing of what this machine sets."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "CUDA_VISIBLE_DEVICES", "ACCELERATE_USE_CPU"):
        # Set first, so that it is restored even where the code takes it away.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)

    def set_all(values: dict[str, str]) -> None:
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return set_all


def test_the_launcher_tells_who_this_is(environment):
    environment({"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"})
    ranks = launched()
    assert (ranks.rank, ranks.local_rank, ranks.world, ranks.local_world) == (5, 1, 8, 4)
    assert ranks.neighbours == [4, 6, 7]
    assert not ranks.is_main


@pytest.mark.parametrize(
    "values",
    [{}, {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}, {"RANK": "1", "WORLD_SIZE": "2"}],
    ids=["nothing", "one process", "a machine of several"],
)
def test_a_process_by_itself_waits_for_nobody(environment, values):
    """Some clusters set RANK and WORLD_SIZE for each machine; accelerate would wait for the others for ever."""
    environment(values)
    with together() as ranks:
        assert ranks is ALONE
        assert "WORLD_SIZE" not in os.environ
        assert ranks.first(lambda: 7) == 7
        assert ranks.any(True)
        assert not ranks.any(False)
        assert ranks.gather(["a"]) == ["a"]


@pytest.mark.parametrize(
    ("values", "wanted", "visible"),
    [
        (of_two(1), "0", None),
        (of_two(1), "2,3", "2,3"),
        (of_two(1) | {"CUDA_VISIBLE_DEVICES": "4,5"}, "0", "4,5"),
        ({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}, "0", "0"),
        ({"ACCELERATE_USE_CPU": "True"}, "0", ""),
    ],
)
def test_the_default_device_hides_no_gpu_from_several_processes(environment, values, wanted, visible):
    environment(values)
    limit_devices(wanted)
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == visible


@pytest.mark.parametrize("number", [0, 1, 5, 9])
def test_shares_are_everything_once_and_of_like_length(number):
    """Longest first: no rank gets the long clips alone."""
    shares = [Ranks(rank=rank, world=3).share(number) for rank in range(3)]
    assert sorted(itertools.chain.from_iterable(shares)) == list(range(number))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert all(b - a == 3 for share in shares for a, b in itertools.pairwise(share))


def at_once(act: Callable[[Ranks], Any], ranks: list[Ranks]) -> list[Any]:
    """Have each rank act in a thread of its own, and return what each found, or what it ended by."""
    found: list[Any] = [None] * len(ranks)

    def run(number: int) -> None:
        try:
            found[number] = act(ranks[number])
        except BaseException as error:
            found[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(ranks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert not any(thread.is_alive() for thread in threads)
    return found


def job(world: int, local_world: int) -> list[Ranks]:
    store = torch.distributed.HashStore()
    return [Ranks(rank, rank % local_world, world, local_world, Ending(store)) for rank in range(world)]


def test_the_first_one_acts_and_all_know():
    acted = []
    ranks = job(3, 3)

    def act(one: Ranks) -> list[Any]:
        return [one.first(lambda: acted.append(one.rank) or {"run": "한"}), one.first(lambda: one.rank)]

    assert at_once(act, ranks) == [[{"run": "한"}, 0]] * 3
    assert acted == [0]


def test_the_first_one_of_each_machine_acts():
    """Each machine verifies its own copy of the bundle."""
    found = at_once(lambda one: one.first(lambda: one.rank, each_machine=True), job(4, 2))
    assert found == [0, 0, 2, 2]


def end_by(error: Exception) -> Callable[[Ranks], None]:
    """Let the first process fail while the others wait for it."""

    def fail() -> None:
        raise error

    def act(one: Ranks) -> None:
        assert one.ending is not None
        try:
            one.first(fail)
        except BaseException as ended:
            one.ending.by(ended)

    return act


@pytest.mark.parametrize(("error", "code"), [(BundleError("damaged"), 3), (UserError("taken"), 2), (OSError("x"), 1)])
def test_who_waits_leaves_in_silence_with_the_same_exit_code(error, code):
    first, *others = at_once(end_by(error), job(3, 3))
    assert first is error
    assert [type(one) for one in others] == [SystemExit] * 2
    assert [one.code for one in others] == [code] * 2


def test_of_several_errors_one_is_told():
    """All of them fail at the same thing, as at a layer that the model has not."""
    ranks = job(4, 4)
    found = at_once(lambda one: one.ending.by(UserError("no such layer")), ranks)
    assert sorted(type(one).__name__ for one in found) == ["SystemExit"] * 3 + ["UserError"]
    assert {one.code for one in found if isinstance(one, SystemExit)} == {2}


def test_a_lost_connection_is_told_in_plain_words_unless_its_cause_was():
    gone = RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:2961")
    one, other = job(2, 2)
    with pytest.raises(WhisperError, match=LOST):
        one.ending.by(gone)
    with pytest.raises(SystemExit):
        other.ending.by(UserError("this is what follows from it"))


def test_a_connection_that_was_lost_to_an_error_is_not_told():
    one, other = job(2, 2)
    with pytest.raises(UserError):
        one.ending.by(UserError("a clip is broken"))
    with pytest.raises(SystemExit) as silent:
        other.ending.by(RuntimeError("Connection reset by peer"))
    assert silent.value.code == 2


WATCHING = """
import sys, time
import torch.distributed
from asr.offline.ending import Ending
ending = Ending(torch.distributed.TCPStore("127.0.0.1", int(sys.argv[1]), is_master=False))
ending.watch({1: int(sys.argv[2]), 2: int(sys.argv[3])})
ending.store.set("watching", "")
time.sleep(60)
"""


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs Linux")
def test_a_process_that_waits_for_a_dead_one_ends_with_one_line():
    """As where a GPU waits in a kernel, no exception ever comes. Who left in peace before is not missed."""
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    others = [subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) for _ in range(2)]
    try:
        watching = subprocess.Popen(
            [sys.executable, "-c", WATCHING, str(store.port), *(str(other.pid) for other in others)],
            stderr=subprocess.PIPE, text=True, cwd=ROOT,
        )  # fmt: skip
        store.get("watching")
        store.set("left/1", "")
        others[0].kill()
        others[0].wait()
        with pytest.raises(subprocess.TimeoutExpired):
            watching.wait(timeout=0.5)
        others[1].kill()
        assert watching.wait(timeout=30) == 1
        assert watching.stderr is not None
        assert watching.stderr.read().strip() == f"error: {LOST}"
    finally:
        for process in (*others, watching):
            process.kill()
            process.wait()


@pytest.mark.parametrize(("rank", "lines"), [(0, 1), (1, 0)])
def test_a_wrong_flag_is_told_once(rank, lines):
    """Before the processes have met, the first one of a machine speaks."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "train_offline.py"), "--no-such-flag"],
        env={**os.environ, **of_two(rank)}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == lines
    assert done.stdout == ""


def test_resume_with_another_number_of_processes_is_refused(mini_bundle: Path, tmp_path: Path):
    """A step would have other clips, and the random numbers of the missing processes were lost."""
    bundle = open_bundle(mini_bundle)
    begun(start_run(configuration(mini_bundle, tmp_path, "--run-name", "night"), bundle, processes=2))
    again = configuration(mini_bundle, tmp_path, "--run-name", "night", "--resume")
    with pytest.raises(UserError, match=r"started with 2 processes \(now 1\)"):
        start_run(again, bundle)
    assert start_run(again, bundle, processes=2).record["processes"] == 2


@pytest.mark.parametrize("flags", [("--gradient-checkpointing", "on"), ("--early-stopping-patience", 3)])
def test_resume_may_change_what_leaves_a_step_as_it_is(mini_bundle: Path, tmp_path: Path, flags):
    bundle = open_bundle(mini_bundle)
    begun(start_run(configuration(mini_bundle, tmp_path, "--run-name", "night"), bundle))
    start_run(configuration(mini_bundle, tmp_path, "--run-name", "night", "--resume", *flags), bundle)
