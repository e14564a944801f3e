"""Judging: one row in, one verdict out; a clip to keep, or the reason why there is none."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from asr.online.sources.row import Row
from asr.shared.audio import CUT_SHORT_S, SAMPLE_RATE, Audio, AudioError, encode_flac, read_audio, resample, to_pcm16
from asr.shared.tables.cells import flaw
from asr.shared.text import clean_text, count_syllables, strip_caption_marks
from config import Cleaning

if TYPE_CHECKING:
    import numpy as np

# The loudest 25 ms below this (-60 dB of full scale) is silence; 16-bit noise of a muted input lies near -90 dB.
SILENCE_RMS = 1e-3
FULL_SCALE = 0.999


@dataclass(frozen=True)
class Verdict:
    """What became of one row.

    Attributes:
        row: as the source gave it, without the audio's bytes: they have been used, and would be many at once.
        key: fingerprint of the row and its audio, by which a later run knows it again.
        text: cleaned.
        audio_id: fingerprint of the 16-bit samples.
        clip: FLAC, or float16 log-mel, as it is stored.
        duration_s: seconds.
        syllables: of the text.
        reason: why it is dropped, or "".
        detail: more about that.
    """

    row: Row
    key: bytes
    text: str = ""
    audio_id: int = 0
    clip: bytes = b""
    duration_s: float = 0.0
    syllables: int = 0
    reason: str = ""
    detail: str = ""


class Judge:
    """Judges rows; made once in each process.

    Args:
        cleaning: the limits.
        mel: number of mel bins and frames of the model's window where log-mel is stored, None where FLAC is.
    """

    def __init__(self, cleaning: Cleaning, mel: tuple[int, int] | None) -> None:
        self.cleaning = cleaning
        self.log_mel = None
        if mel:
            import torch

            from asr.shared.features import LogMel

            torch.set_num_threads(1)
            self.log_mel = LogMel(*mel)

    def __call__(self, row: Row) -> Verdict:
        """Look at a row's text, its audio, and at both together."""
        verdict = unjudged(row)
        try:
            return self._judged(row, verdict)
        except Refused as refused:
            return replace(verdict, reason=refused.reason, detail=refused.detail)
        except Exception as error:
            # A row that nobody thought of must not end a night's work, nor go without a word.
            told = " ".join(f"{type(error).__name__}: {error}".split())
            return replace(verdict, reason="could not be judged", detail=told[:300])

    def _judged(self, row: Row, verdict: Verdict) -> Verdict:
        limits = self.cleaning
        if row.refused:
            raise Refused(row.refused, row.detail)
        if trouble := flaw(row.text):
            raise Refused("malformed row", f"the text holds {trouble}")
        text = clean_text(row.text)
        if limits.strip_caption_marks:
            text = strip_caption_marks(text)
        if not any(char.isalnum() for char in text):
            raise Refused("empty text", f"nothing to say in {row.text[:40]!r}" if row.text.strip() else "")
        waveform = self._waveform(row)
        seconds = len(waveform) / SAMPLE_RATE
        syllables = count_syllables(text)
        _check_rate(syllables, seconds, limits)
        pcm = to_pcm16(waveform)
        return replace(
            verdict,
            text=text,
            audio_id=short_hash(pcm.tobytes()),
            clip=self._stored(pcm),
            duration_s=seconds,
            syllables=syllables,
        )

    def _waveform(self, row: Row) -> np.ndarray:
        limits = self.cleaning
        try:
            audio = read_audio(row.audio, limit_s=limits.max_seconds + 1)
        except AudioError as error:
            raise Refused(error.reason, str(error)) from None
        seconds = len(audio.samples) / audio.rate
        if audio.longer or seconds > limits.max_seconds:
            raise Refused("too long", f"{'more than ' if audio.longer else ''}{seconds:.2f} s")
        if audio.missing_s > CUT_SHORT_S:
            raise Refused("truncated audio", f"about {audio.missing_s:.1f} s are missing after {seconds:.2f} s")
        if seconds < limits.min_seconds:
            raise Refused("too short", f"{seconds:.2f} s")
        _check_level(audio, limits)
        waveform = resample(audio.samples, audio.rate).clip(-1.0, 1.0)
        # Resampling may round a clip at the very limit up by a sample.
        return waveform[: round(limits.max_seconds * SAMPLE_RATE)]

    def _stored(self, pcm: np.ndarray) -> bytes:
        if self.log_mel is None:
            return encode_flac(pcm)
        import torch

        from asr.shared.clips import pack_spectrum

        # From what FLAC would give back, so that both kinds of storage train alike.
        return pack_spectrum(self.log_mel.spectrum(torch.from_numpy(pcm.astype("float32") / 32768.0)))


class Refused(Exception):
    """A row is not kept."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


def unjudged(row: Row) -> Verdict:
    """Return the verdict on a row before anything is known of it."""
    return Verdict(replace(row, audio=b"") if isinstance(row.audio, bytes) else row, fingerprint(row))


def fingerprint(row: Row) -> bytes:
    """Return 16 bytes that change with the row, and with its audio: the bytes, or a file's path, size and time."""
    if isinstance(row.audio, bytes):
        audio = hashlib.blake2b(row.audio, digest_size=16).hexdigest()
    else:
        audio = f"{row.audio} {_stamp(row.audio)}"
    told = (row.source, row.source_id, row.text, row.split, row.speaker, row.group, row.refused, row.detail, audio)
    return hashlib.blake2b(repr(told).encode(), digest_size=16).digest()


def short_hash(data: bytes) -> int:
    """Return 63 bits that stand for `data`; among a million, two are alike once in 20 million tries."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little") >> 1


def _stamp(path: Path) -> str:
    try:
        stat = path.stat()
        return f"{stat.st_size} {stat.st_mtime_ns}"
    except (OSError, ValueError):
        return "missing"


def _check_level(audio: Audio, limits: Cleaning) -> None:
    import numpy as np

    samples = audio.samples
    frame = max(1, audio.rate // 40)
    whole = samples[: len(samples) // frame * frame] if len(samples) >= frame else samples
    power = np.square(whole, dtype=np.float64).reshape(-1, min(frame, len(whole))).mean(axis=1)
    loudest = float(np.sqrt(power.max()))
    if loudest < SILENCE_RMS:
        raise Refused("silent", f"the loudest 25 ms reach {20 * np.log10(max(loudest, 1e-9)):.0f} dB")
    clipped = float(np.count_nonzero(np.abs(samples) >= FULL_SCALE)) / len(samples)
    if clipped > limits.max_clipped:
        raise Refused("clipped", f"{100 * clipped:.1f} % of the samples are at full scale")


def _check_rate(syllables: int, seconds: float, limits: Cleaning) -> None:
    rate = syllables / seconds
    # A text without anything that can be counted, as Thai, has no rate.
    if syllables and not limits.min_syllables_per_second <= rate <= limits.max_syllables_per_second:
        kind = "speaks too slowly" if rate < limits.min_syllables_per_second else "speaks too fast"
        raise Refused(kind, f"{syllables} syllables in {seconds:.2f} s, {rate:.2f} a second")
