"""Interruption: which signals ask for the end, when, and of whom."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable

import pytest
from transformers import TrainerControl, TrainerState

from asr.offline.interruption import SAME_KEY_S, SIGNALS, Interruption, leave_signals_alone
from asr.offline.ranks import Ranks
from utils import Interrupted

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no signals to itself")


def in_a_fork(act: Callable[[], int], *numbers: int, pause: float = 0.1) -> int:
    """Run `act` in a forked process, send it signals with a pause before each, and return its exit code."""
    ready, tell = os.pipe()
    pid = os.fork()
    if not pid:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        os.write(tell, b"x")
        os._exit(act())
    os.read(ready, 1)
    for number in numbers:
        time.sleep(pause)
        os.kill(pid, number)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def endless(interruption: Interruption) -> int:
    with interruption:
        time.sleep(60)
    return 0


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_noted_and_nothing_else_happens(number, capfd):
    with Interruption() as interruption:
        assert not interruption.is_asked()
        signal.raise_signal(number)
        assert interruption.asked == number.name
    assert f"{number.name}: stopping after this step" in capfd.readouterr().err


def test_handlers_are_there_for_the_training_alone():
    before = [signal.getsignal(number) for number in SIGNALS]
    with Interruption():
        assert all(signal.getsignal(number) not in before for number in SIGNALS)
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_what_is_ignored_stays_ignored():
    """nohup: closing the terminal does not end the training."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interruption() as interruption:
            signal.raise_signal(signal.SIGHUP)
        assert interruption.asked is None
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_ctrl_c_ends_the_process_at_once():
    twice = in_a_fork(lambda: endless(Interruption()), signal.SIGINT, signal.SIGINT, pause=1.2 * SAME_KEY_S)
    assert twice == 75


def test_ctrl_c_from_terminal_and_launcher_is_one():
    """torchrun passes on what the terminal has sent to both."""

    def act() -> int:
        with Interruption() as interruption:
            deadline = time.monotonic() + 4 * SAME_KEY_S
            while time.monotonic() < deadline:
                time.sleep(0.01)
        return 10 if interruption.asked == "SIGINT" else 11

    assert in_a_fork(act, signal.SIGINT, signal.SIGINT, pause=0.01) == 10


@pytest.mark.parametrize("numbers", [(signal.SIGTERM, signal.SIGTERM), (signal.SIGHUP, signal.SIGTERM)])
def test_only_a_second_ctrl_c_means_at_once(numbers):
    """A scheduler that repeats itself still gets a saved step."""

    def act() -> int:
        with Interruption() as interruption:
            deadline = time.monotonic() + 6 * SAME_KEY_S
            while time.monotonic() < deadline:
                time.sleep(0.01)
        return 10 if interruption.is_asked() else 11

    assert in_a_fork(act, *numbers, pause=1.2 * SAME_KEY_S) == 10


def test_a_forked_worker_heeds_no_signal_in_its_parents_name(capfd):
    """Between fork and `leave_signals_alone` it has the parent's handlers."""
    with Interruption() as interruption:
        pid = os.fork()
        if not pid:
            signal.raise_signal(signal.SIGINT)
            os._exit(20 if interruption.asked is None else 21)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 20
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("number", SIGNALS)
def test_a_loaders_worker_outlives_what_its_group_is_sent(number):
    def act() -> int:
        leave_signals_alone()
        time.sleep(0.5)
        return 30

    assert in_a_fork(act, number, pause=0.2) == 30


def after_a_step(interruption: Interruption) -> TrainerControl:
    control = TrainerControl()
    interruption.on_step_end(None, TrainerState(global_step=3), control)
    return control


def test_the_step_is_saved_and_then_the_training_ends():
    interruption = Interruption()
    interruption.on_save(None, TrainerState(global_step=2), TrainerControl())
    assert not after_a_step(interruption).should_save
    interruption.asked = "SIGTERM"
    assert after_a_step(interruption).should_save
    with pytest.raises(Interrupted, match="interrupted at step 3 by SIGTERM"):
        interruption.on_save(None, TrainerState(global_step=3), TrainerControl())


def test_all_ranks_end_after_the_same_step():
    """The signal may reach one of them alone, or some of them a step later."""

    class Others(Ranks):
        asked_elsewhere = False

        def any(self, flag: bool) -> bool:
            return flag or Others.asked_elsewhere

    interruption = Interruption(Others())
    assert not after_a_step(interruption).should_save
    Others.asked_elsewhere = True
    assert interruption.asked is None
    assert after_a_step(interruption).should_save
    assert interruption.is_asked(), "no evaluation is begun any more"
    with pytest.raises(Interrupted, match="by a signal to another process"):
        interruption.on_save(None, TrainerState(global_step=3), TrainerControl())
