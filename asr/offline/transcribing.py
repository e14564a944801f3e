"""Transcribing: recordings in, transcripts out, of any number and length, in a bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from asr.offline.decoding import Spoken, Transcriber
from asr.offline.recordings import read_blocks
from asr.offline.speech import Timeline, Window, Windowing, speech_windows
from asr.offline.transcripts import Segment, Shape, Transcript, segments_of, without_loop
from asr.offline.word_times import Word
from asr.shared.audio import SAMPLE_RATE, AudioError

# Sound that waits to be decoded together, of one file or many: about 40 MB.
POOL_S = 600.0
SHORTEST_WORD_S = 0.04

Hear = Callable[[list[Window]], list[Spoken]]


@dataclass(frozen=True)
class Failure:
    """A file of which nothing can be transcribed, and why."""

    name: str
    reason: str


@dataclass
class _Recording:
    """A file that is under way."""

    path: Path
    samples: int = 0
    windows: list[tuple[Timeline, int, Spoken, Spoken | None]] = field(default_factory=list)
    waiting: int = 0
    read: bool = False
    trouble: AudioError | None = None


def transcribe_recordings(
    paths: Iterable[Path],
    hear: Hear,
    windowing: Windowing,
    shape: Shape,
    hear_base: Hear | None = None,
    heard: Callable[[float], None] = lambda seconds: None,
    pool_s: float = POOL_S,
) -> Iterator[Transcript | Failure]:
    """Yield what is said in each file, in the order of the files.

    Args:
        paths: of the files.
        hear: returns what is said in windows of sound; see `hearing`.
        windowing: how each is cut.
        shape: of segments.
        hear_base: the same with the untuned model.
        heard: told the seconds of sound that are done.
        pool_s: sound that waits to be decoded together.
    """
    begun: list[_Recording] = []
    pool: list[tuple[_Recording, Window]] = []
    for path in paths:
        begun.append(_Recording(path))
        for window in _windows(begun[-1], windowing, heard):
            begun[-1].waiting += 1
            pool.append((begun[-1], window))
            if sum(len(waiting.waveform) for _, waiting in pool) >= pool_s * SAMPLE_RATE:
                _decode(pool, hear, hear_base)
                pool = []
                yield from _finished(begun, shape, hear_base is not None)
        begun[-1].read = True
    _decode(pool, hear, hear_base)
    yield from _finished(begun, shape, hear_base is not None)


def hearing(transcriber: Transcriber, timed: bool) -> Hear:
    """Return what hears windows by a transcriber; `timed` with the times of words."""

    def hear(windows: list[Window]) -> list[Spoken]:
        samples = [len(window.waveform) for window in windows]
        batches = transcriber.plan(samples)
        spoken = [Spoken("")] * len(windows)

        def spectrum(place: int) -> torch.Tensor:
            return transcriber.log_mel.spectrum(torch.from_numpy(windows[place].waveform))

        with closing(transcriber.decode(batches, spectrum, samples if timed else None)) as decoded:
            for batch, texts in zip(batches, decoded, strict=True):
                for place, text in zip(batch.places, texts, strict=True):
                    spoken[place] = text
        return spoken

    return hear


def _windows(recording: _Recording, windowing: Windowing, heard: Callable[[float], None]) -> Iterator[Window]:
    """Yield the windows of a file; what goes wrong while it is read is kept."""

    def blocks() -> Iterator[np.ndarray]:
        try:
            for block in read_blocks(recording.path):
                recording.samples += len(block)
                heard(len(block) / SAMPLE_RATE)
                yield block
        except AudioError as error:
            recording.trouble = error

    return speech_windows(blocks(), windowing)


def _decode(pool: Sequence[tuple[_Recording, Window]], hear: Hear, hear_base: Hear | None) -> None:
    windows = [window for _, window in pool]
    spoken = hear(windows) if windows else []
    base: list[Spoken | None] = [None] * len(windows)
    if hear_base and windows:
        base = [*hear_base(windows)]
    for (recording, window), text, other in zip(pool, spoken, base, strict=True):
        recording.windows.append((window.timeline, len(window.waveform), text, other))
        recording.waiting -= 1


def _finished(begun: list[_Recording], shape: Shape, compared: bool) -> Iterator[Transcript | Failure]:
    """Yield the files that are done, from the first one that was begun on."""
    while begun and begun[0].read and not begun[0].waiting:
        recording = begun.pop(0)
        trouble = recording.trouble
        if trouble and not recording.samples:
            yield Failure(str(recording.path), f"{trouble.reason}: {trouble}")
            continue
        yield _transcript(recording, shape, compared)


def _transcript(recording: _Recording, shape: Shape, compared: bool) -> Transcript:
    duration = recording.samples / SAMPLE_RATE
    segments: list[Segment] = []
    base = []
    for timeline, samples, spoken, other in recording.windows:
        segments += _segments(spoken, timeline, samples / SAMPLE_RATE, duration, shape)
        base += [other.text] if other else []
    notes = [f"{recording.trouble.reason}: {recording.trouble}"] if recording.trouble else []
    loops = sum(segment.repeats > 1 for segment in segments)
    notes += [f"{loops} {'loop was' if loops == 1 else 'loops were'} cut off"] if loops else []
    told = " ".join(filter(None, base)) if compared else None
    return Transcript(str(recording.path), duration, segments, notes, told)


def _segments(spoken: Spoken, timeline: Timeline, length_s: float, duration: float, shape: Shape) -> list[Segment]:
    """Return the segments of a window of so many seconds, with times of the recording."""
    if not spoken.text:
        return []
    end = min(duration, timeline.at(length_s))
    text, repeats = without_loop(spoken.text)
    if repeats > 1 or not spoken.words:
        # What was said in a loop's time is not known.
        return [Segment(timeline.at(0.0), end, text, [], repeats)]
    words = [replace(word, end=min(word.end, end)) for word in _placed(spoken.words, timeline, length_s)]
    return segments_of(words, shape, end)


def _placed(words: Sequence[Word], timeline: Timeline, length_s: float) -> list[Word]:
    """Return words with times of the recording; none is over in no time, however the model lost itself."""
    placed = []
    now = 0.0
    for word in words:
        start = max(now, word.start)
        now = max(word.end, start + SHORTEST_WORD_S)
        placed.append((word, start, now))
    scale = min(1.0, length_s / now) if now else 1.0
    return [_moved(word, timeline, scale * start, scale * end) for word, start, end in placed]


def _moved(word: Word, timeline: Timeline, start: float, end: float) -> Word:
    of = timeline.stretch(start)
    begin = timeline.at(start, of)
    # A word whose end is heard after a pause has not been said through it.
    latest = max(timeline.latest(of), begin + SHORTEST_WORD_S)
    return replace(word, start=begin, end=min(timeline.at(end, of), latest))
