"""Speech: where in a recording somebody speaks, found by Silero's detector, and cut into windows for the encoder."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice

import numpy as np

from asr.shared.audio import SAMPLE_RATE

# Pauses shorter than this stay within a stretch; each stretch begins and ends so much early and late.
PAUSE_S, PADDING_S = 0.3, 0.2
SHORTEST_SPEECH_S = 0.1
# Of a pause within a window no more is heard than this.
LONGEST_PAUSE_S = 1.0
# Two stretches further apart are in one window only where a window costs the same however full it is.
LONGEST_GAP_S = 2.0
# Of what was heard last so much is heard again with the next block, where a stretch may go on.
MARGIN_S = 2.0


@dataclass(frozen=True)
class Windowing:
    """How a recording is cut into windows.

    Attributes:
        longest_s: of a window; continuous speech is cut at its last pause before that, or in the midst of it.
        filled: a window costs the same however little it holds, so that as much is put into each as goes in.
    """

    longest_s: float
    filled: bool = False


@dataclass(frozen=True)
class Timeline:
    """Where in its recording a window's sound comes from.

    Attributes:
        offsets: first sample of each stretch in the window.
        starts: the same in the recording.
        ends: end of each stretch in the recording.
    """

    offsets: list[int]
    starts: list[int]
    ends: list[int]

    def stretch(self, seconds: float) -> int:
        """Return which stretch sounds at a time of the window, or was the last before it."""
        return max(0, bisect_right(self.offsets, seconds * SAMPLE_RATE) - 1)

    def at(self, seconds: float, stretch: int | None = None) -> float:
        """Return the time in the recording, in seconds, of a time in the window.

        Args:
            seconds: in the window.
            stretch: that it is measured from; by default the one that sounds then.
        """
        of = self.stretch(seconds) if stretch is None else stretch
        return max(0.0, self.starts[of] / SAMPLE_RATE + seconds - self.offsets[of] / SAMPLE_RATE)

    def latest(self, stretch: int) -> float:
        """Return until when, in seconds, something lasts that began in a stretch: to its end, if the pause was cut."""
        if stretch + 1 == len(self.starts):
            return math.inf
        following = self.offsets[stretch] + self.starts[stretch + 1] - self.starts[stretch]
        cut = following > self.offsets[stretch + 1]
        return (self.ends if cut else self.starts[1:])[stretch] / SAMPLE_RATE


@dataclass(frozen=True)
class Window:
    """A stretch of a recording in which somebody speaks, or several with their pauses shortened.

    Attributes:
        start: its first sample in the recording, at 16 kHz.
        waveform: float32, shape (samples,).
        stretches: (first sample, end) of speech between pauses, in the recording.
        offsets: where each begins in the waveform.
    """

    start: int
    waveform: np.ndarray
    stretches: list[tuple[int, int]]
    offsets: list[int]

    @property
    def timeline(self) -> Timeline:
        """Where its sound comes from; it holds none of it."""
        return Timeline(self.offsets, [start for start, _ in self.stretches], [end for _, end in self.stretches])


def speech_windows(blocks: Iterable[np.ndarray], windowing: Windowing) -> Iterator[Window]:
    """Yield the windows of a recording in their order; what is silent is in none.

    A recording that fits one window is heard as it is, as in an evaluation, unless nobody speaks in it.

    Args:
        blocks: of the recording, float32, 16 kHz.
        windowing: how it is cut.
    """
    window: Window | None = None
    longest_s = windowing.longest_s
    longest = int(longest_s * SAMPLE_RATE)
    blocks = iter(blocks)
    first = list(islice(blocks, 2))
    if sum(map(len, first)) <= longest and len(first) < 2:
        for whole in first:
            if stretches := _detect(whole, longest_s):
                yield Window(0, whole, stretches, [start for start, _ in stretches])
        return
    blocks = chain(first, blocks)
    for stretch in _stretches(blocks, longest_s):
        joined = window and _joined(window, stretch, longest, windowing.filled)
        if window and not joined:
            yield window
        window = joined or stretch
    if window:
        yield window


def _joined(window: Window, stretch: Window, longest: int, filled: bool) -> Window | None:
    """Return both as one window, where they fit."""
    _, end = window.stretches[-1]
    gap = stretch.start - end
    if gap > LONGEST_GAP_S * SAMPLE_RATE and not filled:
        return None
    pause = min(gap, int(LONGEST_PAUSE_S * SAMPLE_RATE))
    offset = len(window.waveform) + pause
    if offset + len(stretch.waveform) > longest:
        return None
    parts = [window.waveform, np.zeros(max(0, pause), dtype=np.float32), stretch.waveform[max(0, -gap) :]]
    offsets = [*window.offsets, offset]
    return Window(window.start, np.concatenate(parts), [*window.stretches, *stretch.stretches], offsets)


def _stretches(blocks: Iterable[np.ndarray], longest_s: float) -> Iterator[Window]:
    """Yield each stretch of speech as a window of its own."""
    kept, start = np.zeros(0, dtype=np.float32), 0
    for block in blocks:
        kept = np.concatenate([kept, block])
        final = len(kept) - int(MARGIN_S * SAMPLE_RATE)
        done = 0
        found = _detect(kept, longest_s)
        for begin, end in found:
            # A stretch that reaches into the margin may go on in the next block; the detector ends it in time.
            if end > final:
                break
            yield Window(start + begin, kept[begin:end].copy(), [(start + begin, start + end)], [0])
            done = end
        else:
            done = max(done, final)
        unfinished = next((begin for begin, end in found if begin >= done), None)
        keep_from = max(0, min(done, len(kept)) if unfinished is None else unfinished)
        kept, start = kept[keep_from:], start + keep_from
    for begin, end in _detect(kept, longest_s):
        yield Window(start + begin, kept[begin:end].copy(), [(start + begin, start + end)], [0])


def _detect(waveform: np.ndarray, longest_s: float) -> list[tuple[int, int]]:
    from faster_whisper.vad import VadOptions, get_speech_timestamps

    if not waveform.size:
        return []
    options = VadOptions(
        min_speech_duration_ms=int(1000 * SHORTEST_SPEECH_S),
        max_speech_duration_s=longest_s,
        min_silence_duration_ms=int(1000 * PAUSE_S),
        speech_pad_ms=int(1000 * PADDING_S),
    )
    return [(int(found["start"]), int(found["end"])) for found in get_speech_timestamps(waveform, options)]
