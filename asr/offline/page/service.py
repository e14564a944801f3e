"""The service behind the page and its API: a recording in, a transcript out, for many visitors at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from asr.offline.batcher import Batcher
from asr.offline.choice import Choice
from asr.offline.hardware import is_out_of_memory
from asr.offline.page.wording import Refused
from asr.offline.recordings import duration_of
from asr.offline.speech import Windowing
from asr.offline.transcribing import Failure, hearing, transcribe_recordings
from asr.offline.transcripts import Shape, Transcript
from utils import log

TUNED, BASE = "tuned", "base"
# Sound of a visitor that waits to be decoded: with little of it a bar moves, and many visitors fit in the memory.
POOL_S = 60.0
# Windows that are cut are decoded four times as many at once.
BATCHES_A_TURN = 4
# Gradio has 40 threads, and not all are for recordings.
MOST_AT_ONCE = 32


@dataclass(frozen=True)
class Service:
    """Models that are open, and what they take.

    Attributes:
        batcher: runs them.
        windowing: how recordings are cut.
        most_minutes: of a recording.
        at_once: recordings that are read at a time.
    """

    batcher: Batcher
    windowing: Windowing
    most_minutes: float
    at_once: int

    @property
    def compares(self) -> bool:
        """Whether the base model is there."""
        return BASE in self.batcher.hears

    def transcribe(
        self,
        path: Path,
        name: str,
        shape: Shape,
        compare: bool = False,
        heard: Callable[[float], None] = lambda share: None,
    ) -> Transcript:
        """Return what is said in a recording, with the times of words; `base` where that is wanted.

        Args:
            path: of the recording.
            name: that the transcript has.
            shape: of segments.
            compare: let the base write it, too, where it is there.
            heard: told the share of the recording that was read.

        Raises:
            Refused: it cannot be read, or is too long.
        """
        duration = duration_of(path)
        self._require_short(duration)
        read = 0.0

        def count(seconds: float) -> None:
            nonlocal read
            read += seconds
            # A header may not tell the length, or tell a wrong one.
            self._require_short(read)
            heard(min(1.0, read / duration) if duration else 0.0)

        base = self.batcher.hearing(BASE) if compare and self.compares else None
        found = transcribe_recordings([path], self.batcher.hearing(TUNED), self.windowing, shape, base, count, POOL_S)
        try:
            (transcript,) = found
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            log.error("out of memory with a recording of %.0f s", duration)
            raise Refused("memory") from None
        if isinstance(transcript, Failure):
            raise Refused("unreadable", told=transcript.reason)
        return replace(transcript, name=name)

    def _require_short(self, seconds: float) -> None:
        if seconds > 60 * self.most_minutes:
            raise Refused("too_long", minutes=f"{self.most_minutes:g}")


@contextmanager
def open_service(choice: Choice, batch: int, most_minutes: float) -> Iterator[Service]:
    """Give the service inside the block, with the models of `choice` open.

    Args:
        choice: the models.
        batch: whole windows that are decoded together.
        most_minutes: of a recording.
    """
    with ExitStack() as stack:
        hears = {TUNED: hearing(stack.enter_context(choice.opener.open(choice.system)), timed=True)}
        if choice.base:
            hears[BASE] = hearing(stack.enter_context(choice.opener.open(choice.base)), timed=False)
        batcher = Batcher(hears, BATCHES_A_TURN * batch)
        stack.callback(batcher.close)
        yield Service(batcher, choice.windowing, most_minutes, at_once=min(batch, MOST_AT_ONCE))
