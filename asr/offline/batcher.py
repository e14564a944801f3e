"""Batching: what many callers want heard at the same moment is decoded together, and none waits for a long one."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future
from functools import partial

from asr.offline.decoding import Spoken
from asr.offline.speech import Window
from asr.offline.transcribing import Hear

Pair = tuple[Window, "Future[Spoken]"]
Waiting = deque[Pair]


class Batcher:
    """Models that one thread runs for callers in many threads.

    Of all callers that wait for a model, windows are taken in turn, so that somebody with a sentence is answered while
    somebody else's hour is decoded.

    Args:
        hears: the models by name; see `asr.offline.transcribing.hearing`.
        most: windows that are decoded together.
    """

    def __init__(self, hears: Mapping[str, Hear], most: int) -> None:
        self.hears, self.most = dict(hears), most
        self._waiting: dict[str, deque[Waiting]] = {name: deque() for name in hears}
        self._change = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="batcher", daemon=True)
        self._thread.start()

    def hearing(self, name: str) -> Hear:
        """Return what hears windows with a model; it waits for its turn.

        What it is called with raises whatever the model raised, and RuntimeError once the batcher is closed.
        """
        return partial(self._hear, name)

    def close(self) -> None:
        """End the thread after its batch; whoever waits is told."""
        with self._change:
            self._closed = True
            self._change.notify()
        self._thread.join()

    def _hear(self, name: str, windows: list[Window]) -> list[Spoken]:
        futures: list[Future[Spoken]] = [Future() for _ in windows]
        with self._change:
            if self._closed:
                raise RuntimeError("the models are closed")
            if windows:
                self._waiting[name].append(deque(zip(windows, futures, strict=True)))
                self._change.notify()
        return [future.result() for future in futures]

    def _work(self) -> None:
        while taken := self._take():
            name, pairs = taken
            if not self._answer(name, pairs, alone=len(pairs) == 1):
                # Whose window it is that cannot be heard is seen one by one: the others are not to blame.
                for pair in pairs:
                    self._answer(name, [pair], alone=True)
        for callers in self._waiting.values():
            for _, future in (pair for caller in callers for pair in caller):
                future.set_exception(RuntimeError("the models are closed"))

    def _answer(self, name: str, pairs: list[Pair], alone: bool) -> bool:
        """Hear windows and tell their callers; a failure is told to a window `alone`. Return whether all is told."""
        try:
            spoken = self.hears[name]([window for window, _ in pairs])
        except Exception as error:
            if alone:
                pairs[0][1].set_exception(error)
            return alone
        for (_, future), text in zip(pairs, spoken, strict=True):
            future.set_result(text)
        return True

    def _take(self) -> tuple[str, list[Pair]] | None:
        """Return the model whose turn it is and what it is to hear, or None at the end."""
        with self._change:
            self._change.wait_for(lambda: self._closed or any(self._waiting.values()))
            if self._closed:
                return None
            name = next(name for name, callers in self._waiting.items() if callers)
            # The next turn is another model's.
            callers = self._waiting.pop(name)
            self._waiting[name] = callers
            taken: list[Pair] = []
            while callers and len(taken) < self.most:
                caller = callers.popleft()
                taken.append(caller.popleft())
                if caller:
                    callers.append(caller)
            return name, taken
