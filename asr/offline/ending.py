"""Ending: how the processes of one job end, by one error that is told once."""

from __future__ import annotations

import multiprocessing
import os
import select
import sys
import threading
import time
from typing import Any, NoReturn

from utils import FAILED, INTERRUPTED, WhisperError

LOST = "another process of this job ended; the same command with --resume goes on from the newest checkpoint"
# How gloo and NCCL say so.
LOST_SIGNS = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exit")
SECONDS_BETWEEN_LOOKS = 0.05
# Standard output and error of a process that is not to speak.
_kept: dict[int, int] = {}


class Ending:
    """The end of a job: the first process that fails tells why, and the others leave with its exit code.

    Args:
        store: of torch.distributed, which all of them reach.
    """

    def __init__(self, store: Any) -> None:
        self.store = store
        # Whoever has it ends this process: the main thread, or the one that watches.
        self.under_way = threading.RLock()

    def wait_for(self, keys: list[str]) -> None:
        """Wait until the store holds `keys`, or the job ends; looking in between, so that signals are heard."""
        while not self.store.check(keys):
            if self.store.check(["code"]):
                raise SystemExit(self._code(self.store))
            time.sleep(SECONDS_BETWEEN_LOOKS)

    def begin(self) -> None:
        """Leave the end of this process to the main thread from here on."""
        self.under_way.acquire()

    def by(self, error: BaseException) -> NoReturn:
        """End this process by `error`, which is told where none was told before."""
        self.begin()
        if isinstance(error, SystemExit):
            raise error
        if not self._is_first(self.store, _exit_code(error)):
            raise SystemExit(self._code(self.store)) from error
        speak()
        if isinstance(error, RuntimeError) and any(sign in str(error) for sign in LOST_SIGNS):
            raise WhisperError(LOST) from error
        raise error

    def watch(self, others: dict[int, int]) -> None:
        """End this process when another one dies: work on a GPU would wait for it until the timeout.

        Args:
            others: ranks of this machine and their process ids; one that ends in peace has set left/RANK before.
        """
        # Linux alone has them. Elsewhere the closed connection tells, which between CPUs is soon enough.
        if hasattr(os, "pidfd_open"):
            handles = {os.pidfd_open(process): rank for rank, process in others.items()}
            threading.Thread(target=self._watch, args=(handles, self.store.clone()), daemon=True).start()

    def _watch(self, handles: dict[int, int], store: Any) -> None:
        poll = select.poll()
        for handle in handles:
            poll.register(handle, select.POLLIN)
        while handles:
            for handle, _ in poll.poll():
                poll.unregister(handle)
                os.close(handle)
                if not _holds(store, f"left/{handles.pop(handle)}"):
                    self._end(store)

    def _end(self, store: Any) -> None:
        if self.under_way.acquire(blocking=False):
            if self._is_first(store, FAILED):
                speak()
                print(f"\nerror: {LOST}", file=sys.stderr)
            end_at_once(self._code(store))

    def _is_first(self, store: Any, code: int) -> bool:
        try:
            first = store.add("told", 1) == 1
            if first:
                store.set("code", str(code))
        except RuntimeError:
            # The store went with the process that kept it.
            return True
        return first

    def _code(self, store: Any) -> int:
        return int(store.get("code")) if _holds(store, "code") else FAILED


def end_at_once(code: int) -> NoReturn:
    """End this process without waiting for its workers, nor for threads of the libraries that wait for other ranks."""
    for worker in multiprocessing.active_children():
        worker.kill()
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.flush()
    os._exit(code)


def hush() -> None:
    """Lead what this process and its libraries say nowhere."""
    if not _kept:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for descriptor in (1, 2):
            _kept[descriptor] = os.dup(descriptor)
            os.dup2(nowhere, descriptor)
        os.close(nowhere)


def speak() -> None:
    """Undo `hush`, on a line of its own: the first process may be showing a bar."""
    if _kept:
        os.write(_kept[2], b"\n")
    while _kept:
        descriptor, kept = _kept.popitem()
        os.dup2(kept, descriptor)
        os.close(kept)


def _exit_code(error: BaseException) -> int:
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    return error.exit_code if isinstance(error, WhisperError) else FAILED


def _holds(store: Any, key: str) -> bool:
    try:
        return store.check([key])
    except RuntimeError:
        return False
