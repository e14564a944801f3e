"""Sessions: an offline script run many times for the price of one start, and killed where a test wants it.

A helper imports everything once and forks a child for each session; the child runs what the script runs.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.conftest import ROOT

DEADLINE_S = 240
CONFIGURATIONS = {"train_offline": "TrainOffline", "evaluate_model": "EvaluateModel", "inference": "Inference"}


class Sessions:
    """Starts sessions of train_offline.py, or of another script.

    Args:
        folder: for what they print.
        prefix: of the helper's command line.
    """

    def __init__(self, folder: Path, prefix: tuple[str, ...] = ()) -> None:
        self.folder, self.number = folder, 0
        self.helper = subprocess.Popen(
            [*prefix, sys.executable, "-m", "tests.sessions"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"},
        )  # fmt: skip
        assert self._answer() == "ready"

    def start(self, *flags: object, **how: Any) -> Session:
        """Start a session; `how` is what `main` takes."""
        self.number += 1
        log = self.folder / f"session-{self.number}.log"
        log.touch()
        self._ask(flags=list(map(str, flags)), log=str(log), **how)
        return Session(self, self._answer(), log)

    def run(self, *flags: object, **how: Any) -> Session:
        """Run a session to its end."""
        session = self.start(*flags, **how)
        session.wait()
        return session

    def close(self) -> None:
        self.helper.stdin.close()
        self.helper.wait(DEADLINE_S)

    def _ask(self, **what: Any) -> None:
        self.helper.stdin.write(json.dumps(what) + "\n")
        self.helper.stdin.flush()

    def _answer(self) -> Any:
        return json.loads(self.helper.stdout.readline())


class Session:
    """A session that runs, or has ended with `code`."""

    def __init__(self, sessions: Sessions, pid: int, log: Path) -> None:
        self.sessions, self.pid, self.log = sessions, pid, log
        self.code: int | None = None

    @property
    def told(self) -> str:
        """What it has printed."""
        return self.log.read_text(encoding="utf-8")

    def wait(self) -> int:
        """Wait for its end and return its exit code, or minus the signal that killed it."""
        if self.code is None:
            self.sessions._ask(wait=self.pid)
            self.code = self.sessions._answer()
        return self.code

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait_until_stopped(self) -> None:
        """Wait until it has stopped itself."""
        wait_until(lambda: self._state() in "TZ", lambda: self.told)
        assert self._state() == "T", self.told

    def _state(self) -> str:
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]


def wait_until(sign: Callable[[], bool], told: Callable[[], str] = str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not sign():
        assert time.monotonic() < deadline, told()
        time.sleep(0.005)


# In the helper and its children


def serve() -> None:
    """Answer requests on standard input: a session to start, or one to wait for."""
    for name in ("asr.offline.preflight", "asr.offline.trainer", "torch.utils.tensorboard", *CONFIGURATIONS):
        importlib.import_module(name)
    answers = os.fdopen(os.dup(1), "w")
    # Trainer collects garbage at its start: not all that is imported, in each child.
    gc.freeze()
    print(json.dumps("ready"), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer = os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])
        else:
            answer = os.fork()
            if not answer:
                os._exit(main(**request))
        print(json.dumps(answer), file=answers, flush=True)


def main(
    flags: list[str],
    log: str,
    kill_at: int | None = None,
    kill_by: str = "files",
    trace: str | None = None,
    raise_at: tuple[str, int] = ("", 0),
    raise_in_batch: tuple[int, int] | tuple[int, int, float] = (0, 0),
    needed: int | None = None,
    script: str = "train_offline",
) -> int:
    """Run a session in a forked child and return its exit code.

    Args:
        flags: of the script.
        log: file for what it prints.
        kill_at: kill -9 at so many uses of files in the run's folder, or calls of functions, of the training itself.
        kill_by: "files" or "calls".
        trace: file for the list of the uses of files, or for the number of calls.
        raise_at: pattern of a use of a file, and the signal that the session sends itself when it comes to it.
        raise_in_batch: number of a batch that is decoded, the signal that the session sends itself in it, and for how
            many seconds the batch then lasts at least.
        needed: bytes that are taken for a checkpoint's size, in place of the estimate.
        script: its name, without .py.
    """
    import asr.offline.trainer
    import config
    import utils
    from asr.shared.cli import parse

    # It dies with the helper.
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    printed = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(printed, 1)
    os.dup2(printed, 2)
    uses: list[str] = []
    if kill_by == "calls":
        _watch_calls(uses, kill_at)
    elif kill_at or trace or raise_at[0]:
        _watch_files(uses, kill_at, *raise_at)
    if raise_in_batch[0]:
        _watch_batches(*raise_in_batch)
    if needed is not None:
        asr.offline.trainer.checkpoint_bytes = lambda model: needed
    try:
        with utils.error_boundary():
            utils.set_up_logging()
            importlib.import_module(script).main(parse(getattr(config, CONFIGURATIONS[script]), flags)[0])
        code = 0
    except SystemExit as end:
        code = int(end.code)
    if trace is not None:
        Path(trace).write_text(json.dumps(uses), encoding="utf-8")
    return code


def _watch_files(uses: list[str], kill_at: int | None, pattern: str, number: int) -> None:
    """Note each use of a file in a run's folder from the first that the training itself makes."""

    def heard(event: str, given: tuple[Any, ...]) -> None:
        if event.split(".")[0] not in ("open", "os", "shutil") or not given or not isinstance(given[0], str | Path):
            return
        use = f"{event} {given[0]}"
        if (uses or ".metrics.jsonl" in use) and "/runs/" in use and "/tensorboard/" not in use:
            uses.append(use)
            if len(uses) == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            if pattern and re.search(pattern, use) and not any(re.search(pattern, before) for before in uses[:-1]):
                os.kill(os.getpid(), number)

    sys.addaudithook(heard)


def _watch_calls(uses: list[str], kill_at: int | None) -> None:
    """Count the calls of functions within the training."""
    import asr.offline.trainer

    train = asr.offline.trainer._train
    count = 0

    def called(*_: object) -> None:
        nonlocal count
        count += 1
        if count == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def counted(*given: Any) -> Any:
        sys.setprofile(called)
        try:
            return train(*given)
        finally:
            sys.setprofile(None)
            uses.append(str(count))

    asr.offline.trainer._train = counted


def _watch_batches(batch: int, number: int, lasting_s: float = 0.0) -> None:
    from asr.offline.decoding import Transcriber

    decode = Transcriber._decode
    count = 0

    def counted(*given: Any) -> Any:
        nonlocal count
        count += 1
        if count == batch:
            os.kill(os.getpid(), number)
            time.sleep(lasting_s)
        return decode(*given)

    Transcriber._decode = counted


if __name__ == "__main__":
    serve()
