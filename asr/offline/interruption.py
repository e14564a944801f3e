"""Interruption: a signal asks for the end, and the training ends where nothing is lost."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from types import FrameType
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState

from asr.offline.ranks import ALONE, Ranks
from utils import INTERRUPTED, Interrupted

# SIGBREAK is Ctrl-Break and the closed window of Windows, SIGHUP the closed terminal elsewhere.
NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
SIGNALS = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]
# A launcher may pass on the Ctrl-C that the terminal has sent to both: that is one, not two.
SAME_KEY_S = 0.5


class Interruption(TrainerCallback):
    """Notes inside its `with` block that a signal asked for the end; as a callback, ends the training after its step.

    A signal that the process was told to ignore, as nohup does, stays ignored. A second Ctrl-C ends it at once.

    Args:
        ranks: the processes that train together; a signal to one of them ends all, after the same step.

    Attributes:
        asked: name of the signal, or None.
        agreed: all ranks know of it.
    """

    def __init__(self, ranks: Ranks = ALONE) -> None:
        self.ranks = ranks
        self.asked: str | None = None
        self.agreed = False
        self._since = 0.0
        self._process = os.getpid()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        """Install the handlers, where that is possible: in the main thread."""
        if threading.current_thread() is threading.main_thread():
            handlers = {number: signal.getsignal(number) for number in SIGNALS}
            self._before = {n: handler for n, handler in handlers.items() if handler not in (signal.SIG_IGN, None)}
            for number in self._before:
                signal.signal(number, self._note)
        return self

    def __exit__(self, *given: object) -> None:
        """Restore the handlers that were there before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if given[0] is not None and self.ranks.world > 1 and signal.SIGTERM in self._before:
            # The launcher ends the rest as soon as it sees one end: not before it was told why.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        self._before = {}

    def is_asked(self) -> bool:
        """Whether this process knows of a signal that asked for the end."""
        return self.asked is not None or self.agreed

    def agree(self, stopped: bool) -> bool:
        """Return whether any rank says so, and have the training end then; all of them must ask."""
        self.agreed = self.agreed or self.ranks.any(stopped)
        return self.agreed

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        """Have the step saved after which the training ends."""
        if self.agree(self.is_asked()):
            control.should_save = True

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        """End the training: everything up to this step is saved."""
        if self.agreed:
            raise self.ended(state.global_step)

    def ended(self, step: int) -> Interrupted:
        """Return what the user is told when the training ends after `step`, which is saved."""
        by = self.asked or "a signal to another process"
        return Interrupted(f"interrupted at step {step} by {by}: it is saved, the same command with --resume goes on")

    def _note(self, number: int, frame: FrameType | None) -> None:
        # A process that was forked has this handler, too, and is none of those that are asked.
        if os.getpid() != self._process:
            return
        if self.asked is None:
            self.asked, self._since = signal.Signals(number).name, time.monotonic()
            _say(f"{self.asked}: stopping after this step; a second Ctrl-C stops at once")
        elif number == signal.SIGINT and time.monotonic() - self._since > SAME_KEY_S:
            _say("error: stopped at once; the same command with --resume goes on from the newest checkpoint")
            for worker in multiprocessing.active_children():
                worker.kill()
            os._exit(INTERRUPTED)


def leave_signals_alone() -> None:
    """Ignore in a loader's worker what asks for the end.

    Ctrl-C goes to the whole group of processes, and job schedulers send SIGTERM to all of a job: the main process could
    not finish its step without its workers. They end with it.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _say(line: str) -> None:
    # Not by way of logging: the signal may have come in the midst of another line.
    try:
        os.write(2, f"\n{line}\n".encode())
    except OSError:
        # The terminal is gone, and whatever is said from here on would be an error.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        os.close(nowhere)
