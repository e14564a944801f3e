"""Listening: every system hears every test set, in one window or two; what was heard before comes from its journal."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import torch

from asr.offline.decoding import Transcriber
from asr.offline.journal import Entry, Journal, open_journal
from asr.offline.results import Output
from asr.offline.systems import Opener, System
from asr.offline.test_sets import TestSet
from asr.shared.progress import progress_bar
from utils import log

OTHER = {"padded": "trimmed", "trimmed": "padded"}


@dataclass(frozen=True)
class Piece:
    """A clip, or the part of one that is longer than the window.

    Attributes:
        clip: its number in the set.
        part: its number in the clip.
        start: its first sample; None for a whole clip.
        samples: its length, at 16 kHz.
    """

    clip: int
    part: int
    start: int | None
    samples: int


@dataclass(frozen=True)
class Pass:
    """One system over one test set with one window."""

    system: System
    test: TestSet
    window: str
    journal: Journal

    def output(self, opener: Opener) -> Output:
        """Return what was written, once it is complete."""
        texts = self.journal.texts(len(self.test))
        return Output(self.system.name, self.window, texts, self.journal.seconds, opener.describe(self.system))


def listen(
    systems: Sequence[System], tests: Sequence[TestSet], opener: Opener, windows: str, folder: Path, fresh: bool = False
) -> list[list[Output]]:
    """Return the outputs of each test set: of every system with its own window, then those with another one.

    Args:
        systems: the one that others are compared with first.
        tests: what they hear.
        opener: of systems.
        windows: own; auto adds whole windows to what has shorter ones of its own; both.
        folder: of all journals.
        fresh: decode again what is in them.

    Raises:
        UserError: a system cannot be opened, or another process is at the same.
    """
    passes = [
        Pass(system, test, window, _journal(system, test, window, opener, folder, fresh))
        for other in (False, True)
        for test in tests
        for system in systems
        for window in _windows(system, windows, other)
    ]
    for system in systems:
        own = [each for each in passes if each.system is system]
        left = [each for each in own if not each.journal.complete]
        if len(left) < len(own):
            log.info("%s: %d of %d decoded before (%s)", system.name, len(own) - len(left), len(own), folder)
        if left:
            with opener.open(system) as transcriber:
                for each in left:
                    _hear(each, transcriber)
    return [[each.output(opener) for each in passes if each.test is test] for test in tests]


def _windows(system: System, windows: str, other: bool) -> Iterator[str]:
    if not other:
        yield system.window
    elif windows == "both" or (windows == "auto" and system.window == "trimmed"):
        yield OTHER[system.window]


def _journal(system: System, test: TestSet, window: str, opener: Opener, folder: Path, fresh: bool) -> Journal:
    about = {**opener.describe(system), "weights": system.weights, "window": window, "audio": test.fingerprint}
    return open_journal(folder, about, fresh)


def _hear(one: Pass, transcriber: Transcriber) -> None:
    """Decode what is not in the journal yet."""
    transcriber.trimmed = one.window == "trimmed"
    pieces = pieces_of(one.test, transcriber)
    batches = transcriber.plan([piece.samples for piece in pieces])
    planned = [[(pieces[place].clip, pieces[place].part) for place in batch.places] for batch in batches]

    def spectrum(place: int) -> torch.Tensor:
        piece, log_mel = pieces[place], transcriber.log_mel
        if piece.start is None:
            return one.test.spectrum(piece.clip, log_mel)
        waveform = one.test.waveform(piece.clip)[piece.start : piece.start + piece.samples]
        return log_mel.spectrum(torch.from_numpy(waveform))

    title = f"{one.system.name}, {one.test.utterances.name}, {one.window}"
    bar = progress_bar(total=len(pieces), desc=title, unit="clip", leave=False)
    with one.journal.going_on(planned) as journal, bar:
        done = len(journal.entries)
        bar.update(sum(map(len, planned[:done])))
        with closing(transcriber.decode(batches[done:], spectrum)) as decoded:
            for numbers in planned[done:]:
                began = time.monotonic()
                texts = next(decoded)
                journal.add(Entry(numbers, texts, time.monotonic() - began))
                bar.update(len(numbers))


def pieces_of(test: TestSet, transcriber: Transcriber) -> list[Piece]:
    """Return what is decoded of a test set: clips as they are, those longer than a window in parts."""
    pieces = []
    for clip in range(len(test)):
        samples = test.samples(clip)
        if samples <= transcriber.log_mel.window_samples:
            pieces.append(Piece(clip, 0, None, samples))
            continue
        lengths = [len(part) for part in transcriber.pieces(test.waveform(clip))]
        starts = accumulate(lengths[:-1], initial=0)
        pieces += [Piece(clip, n, *span) for n, span in enumerate(zip(starts, lengths, strict=True))]
    return pieces
