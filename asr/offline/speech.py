"""Speech: where in a recording somebody speaks, found by Silero's detector, and cut into windows for the encoder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice

import numpy as np

from asr.shared.audio import SAMPLE_RATE

# Pauses shorter than this stay within a stretch; each stretch begins and ends so much early and late.
PAUSE_S, PADDING_S = 0.3, 0.2
SHORTEST_SPEECH_S = 0.1
# Two stretches further apart are never in one window: what lies between would be heard for nothing.
LONGEST_GAP_S = 2.0
# Of what was heard last so much is heard again with the next block, where a stretch may go on.
MARGIN_S = 2.0


@dataclass(frozen=True)
class Window:
    """A stretch of a recording in which somebody speaks.

    Attributes:
        start: its first sample in the recording, at 16 kHz.
        waveform: float32, shape (samples,).
        stretches: (first sample, end) of speech between pauses, in the recording.
    """

    start: int
    waveform: np.ndarray
    stretches: list[tuple[int, int]]


def speech_windows(blocks: Iterable[np.ndarray], longest_s: float) -> Iterator[Window]:
    """Yield the windows of a recording in their order; what is silent is in none.

    A recording that fits one window is heard as it is, as in an evaluation, unless nobody speaks in it.

    Args:
        blocks: of the recording, float32, 16 kHz.
        longest_s: of a window; continuous speech is cut at its last pause before that, or in the midst of it.
    """
    window: Window | None = None
    longest = int(longest_s * SAMPLE_RATE)
    blocks = iter(blocks)
    first = list(islice(blocks, 2))
    if sum(map(len, first)) <= longest and len(first) < 2:
        for whole in first:
            if stretches := _detect(whole, longest_s):
                yield Window(0, whole, stretches)
        return
    blocks = chain(first, blocks)
    for stretch in _stretches(blocks, longest_s):
        joined = window and _joined(window, stretch, longest)
        if window and not joined:
            yield window
        window = joined or stretch
    if window:
        yield window


def _joined(window: Window, stretch: Window, longest: int) -> Window | None:
    """Return both as one window, where they fit."""
    end = window.start + len(window.waveform)
    if stretch.start - end > LONGEST_GAP_S * SAMPLE_RATE:
        return None
    if stretch.start + len(stretch.waveform) - window.start > longest:
        return None
    pause = np.zeros(max(0, stretch.start - end), dtype=np.float32)
    waveform = np.concatenate([window.waveform, pause, stretch.waveform[max(0, end - stretch.start) :]])
    return Window(window.start, waveform, [*window.stretches, *stretch.stretches])


def _stretches(blocks: Iterable[np.ndarray], longest_s: float) -> Iterator[Window]:
    """Yield each stretch of speech as a window of its own."""
    kept, start = np.zeros(0, dtype=np.float32), 0
    for block in blocks:
        kept = np.concatenate([kept, block])
        final = len(kept) - int(MARGIN_S * SAMPLE_RATE)
        done = 0
        found = _detect(kept, longest_s)
        for begin, end in found:
            # A stretch that reaches into the margin may go on in the next block.
            if end > final and end - begin < longest_s * SAMPLE_RATE / 2:
                break
            yield Window(start + begin, kept[begin:end].copy(), [(start + begin, start + end)])
            done = end
        else:
            done = max(done, final)
        unfinished = next((begin for begin, end in found if begin >= done), None)
        keep_from = max(0, min(done, len(kept)) if unfinished is None else unfinished)
        kept, start = kept[keep_from:], start + keep_from
    for begin, end in _detect(kept, longest_s):
        yield Window(start + begin, kept[begin:end].copy(), [(start + begin, start + end)])


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
