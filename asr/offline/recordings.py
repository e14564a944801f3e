"""Recordings: audio of any length and format, read block by block: hours of it take no more memory than minutes."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soxr

from asr.shared.audio import (
    CUT_SHORT_S,
    SAMPLE_RATE,
    AudioError,
    frames_of_stream,
    missing_samples,
    promised_seconds,
    sound_stream,
)

BLOCK_S = 30


def read_blocks(path: Path) -> Iterator[np.ndarray]:
    """Yield a file's sound as float32 in [-1, 1], mono, 16 kHz, in blocks of about `BLOCK_S`.

    What can be read of a damaged file is yielded before the error is raised.

    Raises:
        AudioError: missing, empty, not audio, or broken; `reason` is "truncated audio" where it began well.
    """
    import av

    read = 0
    try:
        with av.open(str(path)) as container:
            stream, rate = sound_stream(container)
            promised = promised_seconds(container, stream)
            for block in _resampled(frames_of_stream(container, stream), rate):
                read += len(block)
                yield block
    except FileNotFoundError:
        raise AudioError(f"the file does not exist ({path})", "missing audio") from None
    except IsADirectoryError:
        raise AudioError(f"this is a folder ({path})") from None
    except (av.FFmpegError, OSError, ValueError) as error:
        told = getattr(error, "strerror", None) or str(error)
        if read:
            raise AudioError(f"it breaks off after {read / SAMPLE_RATE:.1f} s: {told}", "truncated audio") from None
        raise AudioError(f"the file cannot be decoded: {told}") from None
    if not read:
        raise AudioError("the file holds no audio samples", "empty audio")
    promised = max(promised, read / SAMPLE_RATE + _missing_s(path))
    if promised - read / SAMPLE_RATE > CUT_SHORT_S:
        told = f"its header promises {promised:.1f} s, and it breaks off after {read / SAMPLE_RATE:.1f} s"
        raise AudioError(told, "truncated audio")


def duration_of(path: Path) -> float:
    """Return how long a file says that it is, in seconds, for a progress bar; 0 where it does not say."""
    import av

    try:
        with av.open(str(path)) as container:
            return (container.duration or 0) / 1_000_000
    except (av.FFmpegError, OSError, ValueError):
        return 0.0


def _missing_s(path: Path) -> float:
    """Return how much of a WAV or Ogg is missing, which FFmpeg reads to its end without a word."""
    import soundfile

    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            if data[:4] not in (b"RIFF", b"OggS"):
                return 0.0
            with soundfile.SoundFile(path) as sound:
                return missing_samples(data, sound) / sound.samplerate
    except (soundfile.SoundFileError, OSError, ValueError):
        return 0.0


def _resampled(chunks: Iterator[np.ndarray], rate: int) -> Iterator[np.ndarray]:
    """Yield chunks of `rate` Hz, joined and resampled, in blocks; with the filter that the preparation uses."""
    resampler: Any = None if rate == SAMPLE_RATE else soxr.ResampleStream(rate, SAMPLE_RATE, 1, quality="HQ")
    waiting: list[np.ndarray] = []
    length = 0
    for chunk in chunks:
        if not np.isfinite(chunk).all():
            raise AudioError("the file holds samples that are no numbers", "samples not finite")
        waiting.append(chunk)
        length += len(chunk)
        if length >= BLOCK_S * rate:
            yield _block(waiting, resampler, last=False)
            waiting, length = [], 0
    block = _block(waiting, resampler, last=True)
    if block.size:
        yield block


def _block(waiting: list[np.ndarray], resampler: Any, last: bool) -> np.ndarray:
    joined = np.concatenate([np.zeros(0, dtype=np.float32), *waiting]).astype(np.float32, copy=False)
    if resampler is not None:
        joined = resampler.resample_chunk(joined, last=last)
    return joined.clip(-1.0, 1.0)
