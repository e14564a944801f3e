"""How far long work on bytes is, told with the standard library alone: the box may have no packages yet."""

from __future__ import annotations

import sys
import threading
import time

# On a terminal one line that changes; in a log a line now and then. Short work says nothing.
PACE_S = {True: 0.5, False: 5.0}


class Meter:
    """Tells on standard error how much of `total` bytes is done. Any thread may add to it.

    Args:
        doing: what is done, as "verifying".
        total: bytes.
    """

    def __init__(self, doing: str, total: int) -> None:
        self.doing, self.total, self.done = doing, total, 0
        self.lively = sys.stderr.isatty()
        self.began = self.told = time.monotonic()
        self.width = 0
        self.full = False
        self.lock = threading.Lock()

    def add(self, count: int) -> None:
        """Count bytes that are done."""
        with self.lock:
            self.done += count
            now = time.monotonic()
            if now - self.told >= PACE_S[self.lively]:
                self.told = now
                self._tell(now - self.began)

    def close(self) -> None:
        """Clear the line of a terminal."""
        if self.width:
            print("\r" + " " * self.width + "\r", end="", file=sys.stderr, flush=True)

    def _tell(self, seconds: float) -> None:
        share = min(self.done / self.total, 1) if self.total else 1
        left = seconds / share - seconds if share else 0
        line = f"{self.doing}: {share:4.0%} of {in_bytes(self.total)}, about {left:,.0f} s left"
        if self.lively:
            print("\r" + line.ljust(self.width), end="", file=sys.stderr, flush=True)
            self.width = len(line)
        elif not self.full:
            # Where `total` was an estimate, the end may be a while after it: a log needs to hear of it once.
            self.full = share == 1
            print(line, file=sys.stderr, flush=True)


def in_bytes(count: int) -> str:
    """Return a number of bytes as a person reads it, in units of 1000."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"
