"""Listening: every system hears every test set, in one window or two; what was heard before comes from its journal."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from asr.offline.decoding import Transcriber
from asr.offline.hardware import free_memory
from asr.offline.journal import Entry, Journal, open_journal
from asr.offline.results import Output
from asr.offline.systems import Opener, Speaking, System
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
    opener: Opener
    journal: Journal

    def output(self) -> Output:
        """Return what was written, once it is complete."""
        texts = self.journal.texts(len(self.test))
        return Output(self.system.name, self.window, texts, self.journal.seconds, self.opener.describe(self.system))


def listen(
    systems: Sequence[System], tests: Sequence[TestSet], opener: Opener, windows: str, folder: Path, fresh: bool = False
) -> list[list[Output]]:
    """Return the outputs of each test set: of every system with its own window, then those with another one.

    Args:
        systems: the one that others are compared with first.
        tests: what they hear, each in the language of its bundle, or else of `opener`.
        opener: of systems.
        windows: own; auto adds whole windows to what has shorter ones of its own; both.
        folder: of all journals.
        fresh: decode again what is in them.

    Raises:
        UserError: a system cannot be opened, or another process is at the same.
    """
    openers = [opener.speaking_as(speaking_of(test, opener)) for test in tests]
    passes = [
        Pass(system, test, window, speaks, _journal(system, test, window, speaks, folder, fresh))
        for other in (False, True)
        for test, speaks in zip(tests, openers, strict=True)
        for system in systems
        for window in _windows(system, windows, other)
    ]
    for system in systems:
        own = [each for each in passes if each.system is system]
        left = [each for each in own if not each.journal.complete]
        if len(left) < len(own):
            log.info("%s: %d of %d decoded before (%s)", system.name, len(own) - len(left), len(own), folder)
        for speaking in dict.fromkeys(each.opener.speaking for each in left):
            _hear_all([each for each in left if each.opener.speaking == speaking])
            # Not before the function is left that held the model.
            free_memory()
    return [[each.output() for each in passes if each.test is test] for test in tests]


def speaking_of(test: TestSet, opener: Opener) -> Speaking:
    """Return the language and task of a test set."""
    return Speaking(test.language or opener.speaking.language, test.task or opener.speaking.task)


def _windows(system: System, windows: str, other: bool) -> Iterator[str]:
    if not other:
        yield system.window
    elif windows == "both" or (windows == "auto" and system.window == "trimmed"):
        yield OTHER[system.window]


def _journal(system: System, test: TestSet, window: str, opener: Opener, folder: Path, fresh: bool) -> Journal:
    # Neither names nor places: the same weights write the same, whatever they are called.
    about = {
        **opener.conditions(system),
        "weights": sorted(system.weights.values()),
        "window": window,
        "audio": test.fingerprint,
        "clips": len(test),
    }
    return open_journal(folder, about, fresh)


def _hear_all(passes: Sequence[Pass]) -> None:
    """Decode what one system has not decoded yet, in one language."""
    first = passes[0]
    with first.opener.open(first.system) as transcriber:
        for each in passes:
            _hear(each, transcriber)


def _hear(one: Pass, transcriber: Transcriber) -> None:
    transcriber.trimmed = one.window == "trimmed"
    title = f"{one.system.name}, {one.test.utterances.name}, {one.window}"
    with TemporaryDirectory() as folder:
        cut = Cut(one.test, transcriber, Path(folder))
        batches = transcriber.plan([piece.samples for piece in cut.pieces])
        planned = [[(cut.pieces[place].clip, cut.pieces[place].part) for place in batch.places] for batch in batches]
        bar = progress_bar(total=len(cut.pieces), desc=title, unit="clip", leave=False)
        with one.journal.going_on(planned) as journal, bar:
            done = len(journal.entries)
            bar.update(sum(map(len, planned[:done])))
            with closing(transcriber.decode(batches[done:], cut.spectrum)) as decoded:
                for numbers in planned[done:]:
                    began = time.monotonic()
                    texts = [spoken.text for spoken in next(decoded)]
                    journal.add(Entry(numbers, texts, time.monotonic() - began))
                    bar.update(len(numbers))


class Cut:
    """A test set as it is decoded: clips as they are, those longer than a window in parts.

    Args:
        test: the set.
        transcriber: whose windows they are for.
        folder: where the sound of long clips is kept, so that each file is read once and not for every part.
    """

    def __init__(self, test: TestSet, transcriber: Transcriber, folder: Path) -> None:
        self.test, self.log_mel, self.folder = test, transcriber.log_mel, folder
        self.pieces: list[Piece] = []
        for clip in range(len(test)):
            samples = test.samples(clip)
            if samples <= self.log_mel.window_samples:
                self.pieces.append(Piece(clip, 0, None, samples))
                continue
            waveform = test.waveform(clip)
            np.save(self._file(clip), waveform)
            lengths = [len(part) for part in transcriber.pieces(waveform)]
            starts = accumulate(lengths[:-1], initial=0)
            self.pieces += [Piece(clip, n, *span) for n, span in enumerate(zip(starts, lengths, strict=True))]

    def spectrum(self, place: int) -> torch.Tensor:
        """Return the spectrum of a piece."""
        piece = self.pieces[place]
        if piece.start is None:
            return self.test.spectrum(piece.clip, self.log_mel)
        waveform = np.load(self._file(piece.clip), mmap_mode="r")[piece.start : piece.start + piece.samples]
        return self.log_mel.spectrum(torch.from_numpy(np.array(waveform)))

    def _file(self, clip: int) -> Path:
        return self.folder / f"{clip}.npy"
