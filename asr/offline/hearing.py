"""Hearing: what an evaluation has to know of each clip before any is decoded to text, found on all cores."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from asr.offline.symptoms import loudness_of
from asr.shared.audio import CUT_SHORT_S, AudioError, read_audio, waveform_of
from asr.shared.progress import progress_bar

# A bar for what is done in a moment says nothing.
BAR_AFTER_S = 3.0


@dataclass(frozen=True)
class Clip:
    """A row that may become part of a test set.

    Attributes:
        source_id: where it stands in what it is of.
        text: what is said.
        speaker, source: names, or None.
        sound: gives the bytes of its audio file, or raises an AudioError that says why there are none.
    """

    source_id: str
    text: str
    speaker: str | None
    source: str | None
    sound: Callable[[], bytes]


@dataclass(frozen=True)
class Heard:
    """What is kept of a clip's audio; the sound itself is not.

    Attributes:
        samples: its length at 16 kHz.
        loudness_db: level of the loudest 25 ms (`loudness_of`).
        digest: SHA-256 of its file, 32 bytes.
    """

    samples: int
    loudness_db: float
    digest: bytes


def hear_all(clips: Sequence[Clip], doing: str) -> list[Heard | AudioError]:
    """Listen to each clip, and return for each what was heard, or why it cannot be used.

    No more clips are in memory than there are cores.

    Args:
        clips: any number.
        doing: what the progress is called.
    """
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        heard = pool.map(_heard_or_why_not, clips)
        options = {"total": len(clips), "desc": doing, "unit": "clip", "leave": False, "delay": BAR_AFTER_S}
        return list(progress_bar(heard, **options))
    finally:
        # Ctrl-C would wait for every clip.
        pool.shutdown(cancel_futures=True)


def hear(data: bytes) -> Heard:
    """Decode the bytes of an audio file.

    Raises:
        AudioError: empty, not audio, broken or cut short.
    """
    audio = read_audio(data)
    if audio.missing_s > CUT_SHORT_S:
        seconds = len(audio.samples) / audio.rate
        raise AudioError(f"about {audio.missing_s:.1f} s are missing after {seconds:.2f} s", "truncated audio")
    waveform = waveform_of(audio)
    return Heard(len(waveform), loudness_of(waveform), hashlib.sha256(data).digest())


def _heard_or_why_not(clip: Clip) -> Heard | AudioError:
    try:
        return hear(clip.sound())
    except AudioError as error:
        # A new one: what was raised holds on to the sound by its traceback.
        return AudioError(str(error), error.reason)
    except Exception as error:
        # A file that nobody thought of must not end the evaluation of all others.
        told = " ".join(f"{type(error).__name__}: {error}".split())
        return AudioError(told[:300], "could not be judged")
