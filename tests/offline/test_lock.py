"""The lock: a run belongs to one process, and to nobody when that is dead."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from asr.offline.lock import sole_use
from utils import UserError

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="forks")


def holder(folder: Path, with_child: bool = False) -> int:
    """Fork a process that holds the lock, and return its number when it does."""
    ready, tell = os.pipe()
    pid = os.fork()
    if not pid:
        with sole_use(folder):
            if with_child and not os.fork():
                time.sleep(3)
                os._exit(0)
            os.write(tell, b"x")
            time.sleep(60)
        os._exit(0)
    os.read(ready, 1)
    return pid


def end(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_another_process_is_refused_and_told_by_whom(tmp_path):
    pid = holder(tmp_path)
    try:
        told = re.escape(f"{tmp_path} is in use by process {pid} on {os.uname().nodename}: wait")
        with pytest.raises(UserError, match=told), sole_use(tmp_path):
            pass
    finally:
        end(pid)


@pytest.mark.parametrize("with_child", [False, True], ids=["alone", "with a loader's worker that lives on"])
def test_kill_9_leaves_nothing_locked(tmp_path, with_child):
    end(holder(tmp_path, with_child))
    with sole_use(tmp_path):
        assert f"process {os.getpid()} " in (tmp_path / ".lock").read_text()


def test_it_is_given_back(tmp_path):
    for _ in range(2):
        with sole_use(tmp_path):
            pass
    end(holder(tmp_path))


def test_a_file_system_without_locks_is_no_obstacle(tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("asr.offline.lock._lock", refuse)
    with ExitStack() as stack:
        stack.enter_context(sole_use(tmp_path))
