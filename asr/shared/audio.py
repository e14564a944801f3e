"""Audio: any file in, 16 kHz mono float32 out; FLAC bytes for storage."""

from __future__ import annotations

import io
import itertools
import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from mmap import mmap
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

SAMPLE_RATE = 16_000
BLOCK = 1 << 20
# How the names of audio files end, where a whole folder is read.
AUDIO_ENDINGS = ".wav .mp3 .flac .ogg .opus .m4a .aac .webm .mp4 .wma .amr .aif .aiff"
# Containers round their duration, and lossy codecs pad: only more than this is called cut short.
CUT_SHORT_S = 0.2
# Beyond these a header is damaged: a minute at "1 Hz" would become days of audio.
SLOWEST_RATE, FASTEST_RATE = 1_000, 768_000
# What programs write as the size of a WAV file that they send into a pipe: 0, or about 2 or 4 GiB.
OPEN_SIZE = 0x7FFF0000
# Of these the header tells the duration; of others FFmpeg guesses it from the first frames, and may be far off.
TELL_DURATION = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "flac")


class AudioError(Exception):
    """The audio cannot be used; the message says why, and `reason` in two words what kind of trouble it is."""

    def __init__(self, message: str, reason: str = "unreadable audio") -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Audio:
    """Decoded audio as its file has it, mixed to mono.

    Attributes:
        samples: float32, full scale is 1, shape (samples,).
        rate: samples a second.
        missing_s: seconds that the file promises and does not hold; it was cut short.
        longer: decoding stopped at the limit, there is more.
    """

    samples: np.ndarray
    rate: int
    missing_s: float = 0.0
    longer: bool = False


def load_audio(source: str | os.PathLike[str] | bytes) -> np.ndarray:
    """Decode a file or its bytes.

    Args:
        source: path, or the bytes of a file; every format that libsndfile or FFmpeg's libraries read.

    Returns:
        float32 in [-1, 1], mono, 16 kHz, shape (samples,).

    Raises:
        AudioError: missing, empty, not audio, or broken.
    """
    return waveform_of(read_audio(source))


def waveform_of(audio: Audio) -> np.ndarray:
    """Bring decoded audio to 16 kHz: float32 in [-1, 1], shape (samples,).

    Raises:
        AudioError: it is so short that no sample is left.
    """
    samples = resample(audio.samples, audio.rate)
    if not samples.size:
        raise AudioError("the file holds no audio samples", "empty audio")
    # Float files and lossy codecs overshoot full scale; what is stored as 16 bit would clip there too.
    return samples.clip(-1.0, 1.0)


def read_audio(source: str | os.PathLike[str] | bytes, limit_s: float | None = None) -> Audio:
    """Decode a file or its bytes at its own rate.

    Args:
        source: path, or the bytes of a file.
        limit_s: stop after about so many seconds.

    Raises:
        AudioError: missing, empty, not audio, broken, or without finite samples.
    """
    import numpy as np

    data = source if isinstance(source, bytes) else read_file(Path(source))
    if not data:
        raise AudioError("the file is empty", "empty audio")
    audio = _decode(data, limit_s)
    if audio.samples.size == 0:
        raise AudioError("the file holds no audio samples", "empty audio")
    if not np.isfinite(audio.samples).all():
        raise AudioError("the file holds samples that are no numbers", "samples not finite")
    return audio


def read_file(path: Path) -> bytes:
    """Return the content of a file, decoded by nobody yet.

    Raises:
        AudioError: missing, or it cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise AudioError(f"the file does not exist ({_in_a_line(path)})", "missing audio") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise AudioError(f"the file cannot be read: {reason} ({_in_a_line(path)})") from None


def _in_a_line(path: Path) -> str:
    shown = str(path)[:200]
    return shown if shown.isprintable() else repr(shown)[1:-1]


def resample(waveform: np.ndarray, rate: int) -> np.ndarray:
    """Bring mono float32 audio of `rate` Hz to 16 kHz with soxr at high quality."""
    import numpy as np

    if rate == SAMPLE_RATE:
        return np.ascontiguousarray(waveform, dtype=np.float32)
    import soxr

    return soxr.resample(waveform.astype(np.float32, copy=False), rate, SAMPLE_RATE, quality="HQ")


def is_audio(name: str) -> bool:
    """Tell whether a file's name ends as those of audio files do."""
    return os.path.splitext(name)[1].lower() in AUDIO_ENDINGS.split()


def to_pcm16(waveform: np.ndarray) -> np.ndarray:
    """Round float32 audio to int16, so that what was 16 bit before comes back as it was."""
    import numpy as np

    return np.rint(waveform * 32768.0).clip(-32768, 32767).astype(np.int16)


def encode_flac(waveform: np.ndarray) -> bytes:
    """Store 16 kHz mono audio (int16, or float32 in [-1, 1]) as 16-bit FLAC."""
    import numpy as np
    import soundfile

    buffer = io.BytesIO()
    pcm = waveform if waveform.dtype == np.int16 else to_pcm16(waveform)
    soundfile.write(buffer, pcm, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def _decode(data: bytes, limit_s: float | None) -> Audio:
    import numpy as np
    import soundfile

    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            if file.format == "MP3" and not _mp3_tells_length(data):
                return _decode_with_ffmpeg(data, limit_s)
            rate = _plausible(file.samplerate)
            limit = int(limit_s * rate) if limit_s else None
            blocks, length = [np.zeros(0, dtype=np.float32)], 0
            # Block by block, because a damaged header may promise terabytes.
            while len(block := file.read(min(BLOCK, limit or BLOCK), dtype="float32", always_2d=True)):
                blocks.append(_mono(block))
                length += len(block)
                if limit and length > limit:
                    return Audio(np.concatenate(blocks), rate, longer=True)
            if not length:
                # A recorder that was switched off leaves sizes of 0, which FFmpeg does not believe.
                return _decode_with_ffmpeg(data, limit_s)
            missing = max(missing_samples(data, file), file.frames - length) / rate
            return Audio(np.concatenate(blocks), rate, missing)
    except (soundfile.SoundFileError, RuntimeError):
        return _decode_with_ffmpeg(data, limit_s)


def missing_samples(data: bytes | mmap, file: Any) -> int:
    """Return how many samples were cut off where libsndfile does not tell: it trusts the length of the file.

    Args:
        data: of a WAV or Ogg file, else the answer is 0.
        file: the same, opened with soundfile.
    """
    if data[:4] == b"RIFF" and data[8:12] == b"WAVE":
        return _missing_of_wave(data) // max(1, file.channels * _bytes_a_sample(file.subtype))
    if data[:4] == b"OggS" and _ogg_is_cut(data):
        # How much is gone cannot be known; a second stands for it.
        return file.samplerate
    return 0


def _missing_of_wave(data: bytes | mmap) -> int:
    at = 12
    while at + 8 <= len(data):
        name, size = data[at : at + 4], struct.unpack_from("<I", data, at + 4)[0]
        if name == b"data":
            return max(0, size - (len(data) - at - 8)) if 0 < size < OPEN_SIZE else 0
        at += 8 + size + size % 2
    return 0


def _bytes_a_sample(subtype: str) -> int:
    return {"PCM_24": 3, "PCM_32": 4, "FLOAT": 4, "DOUBLE": 8, "PCM_16": 2}.get(subtype, 1)


def _mp3_tells_length(data: bytes) -> bool:
    """Whether an MP3 begins with a frame that tells its length; without one libsndfile guesses, and ends there."""
    at = 0
    if data[:3] == b"ID3" and len(data) >= 10:
        at = 10 + sum((byte & 0x7F) << shift for byte, shift in zip(data[6:10], (21, 14, 7, 0), strict=True))
    first_frame = data[at : at + 200]
    return any(tag in first_frame for tag in (b"Xing", b"Info", b"VBRI"))


def _ogg_is_cut(data: bytes | mmap) -> bool:
    """Whether the last page of an Ogg stream is incomplete, or not marked as the last."""
    at = data.rfind(b"OggS")
    segments = data[at + 26] if at + 26 < len(data) else 0
    table = data[at + 27 : at + 27 + segments]
    whole = at + 27 + segments + sum(table) <= len(data) and len(table) == segments
    return not whole or at + 5 >= len(data) or not data[at + 5] & 4


def _mono(samples: np.ndarray) -> np.ndarray:
    return samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1)


def _plausible(rate: int) -> int:
    if not SLOWEST_RATE <= rate <= FASTEST_RATE:
        raise AudioError(f"the file claims a sample rate of {rate} Hz")
    return rate


def _decode_with_ffmpeg(data: bytes, limit_s: float | None) -> Audio:
    """Decode what libsndfile does not know (m4a, aac, webm, mp4) with PyAV, which carries FFmpeg's libraries."""
    import av
    import numpy as np

    chunks: list[np.ndarray] = []
    length = 0
    try:
        with av.open(io.BytesIO(data)) as container:
            stream, rate = sound_stream(container)
            promised = promised_seconds(container, stream)
            for chunk in frames_of_stream(container, stream):
                chunks.append(chunk)
                length += len(chunk)
                if limit_s and length > limit_s * rate:
                    return Audio(np.concatenate(chunks), rate, longer=True)
    except (av.FFmpegError, ValueError) as error:
        if not chunks:
            raise AudioError(f"the file cannot be decoded: {getattr(error, 'strerror', None) or error}") from None
        # It began well and broke off.
        return Audio(np.concatenate(chunks), rate, max(1.0, promised - length / rate))
    if not chunks:
        raise AudioError("the file holds no audio samples", "empty audio")
    return Audio(np.concatenate(chunks), rate, max(0.0, promised - length / rate))


def sound_stream(container: Any) -> tuple[Any, int]:
    """Return the first audio stream of an opened file (PyAV), and its rate.

    Raises:
        AudioError: it has none that can be decoded.
    """
    if not container.streams.audio:
        raise AudioError("the file holds no audio stream")
    stream = container.streams.audio[0]
    if stream.codec_context is None:
        raise AudioError("the file names no codec that is known")
    return stream, _plausible(int(stream.rate))


def promised_seconds(container: Any, stream: Any) -> float:
    """Return how long the audio is by its header, or 0 where that does not say."""
    if container.format.name not in TELL_DURATION:
        return 0.0
    if stream.duration:
        return float(stream.duration * stream.time_base)
    end = 0.0
    if told := re.fullmatch(r"(\d+):(\d+):(\d+\.?\d*)", stream.metadata.get("DURATION", "")):
        end = 3600 * int(told[1]) + 60 * int(told[2]) + float(told[3])
    elif len(container.streams) == 1:
        # Of several streams the longest counts, and pictures may go on when the sound has ended.
        end = (container.duration or 0) / 1_000_000
    return max(0.0, end - float((stream.start_time or 0) * stream.time_base))


def frames_of_stream(container: Any, stream: Any) -> Iterator[np.ndarray]:
    """Yield a stream's frames as mono float32; a damaged file may change its channels, so each is mixed down alone."""
    import av

    to_float = av.AudioResampler(format="flt")
    for frame in itertools.chain(container.decode(stream), [None]):
        for part in to_float.resample(frame):
            yield part.to_ndarray().reshape(-1, part.layout.nb_channels).mean(axis=1)
