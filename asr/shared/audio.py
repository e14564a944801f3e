"""Audio: any file in, 16 kHz mono float32 out; FLAC bytes for storage."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

SAMPLE_RATE = 16_000
BLOCK = 1 << 20


class AudioError(Exception):
    """The audio cannot be used; the message says why."""


def load_audio(source: str | os.PathLike[str] | bytes) -> np.ndarray:
    """Decode a file or its bytes.

    Args:
        source: path, or the bytes of a file; every format that libsndfile or FFmpeg's libraries read.

    Returns:
        float32 in [-1, 1], mono, 16 kHz, shape (samples,).

    Raises:
        AudioError: missing, empty, not audio, or broken.
    """
    import numpy as np

    data = source if isinstance(source, bytes) else _read_file(Path(source))
    if not data:
        raise AudioError("the file is empty")
    waveform, rate = _decode(data)
    samples = resample(waveform.mean(axis=1), rate)
    if samples.size == 0:
        raise AudioError("the file holds no audio samples")
    if not np.isfinite(samples).all():
        raise AudioError("the file holds samples that are no numbers")
    # Float files and lossy codecs overshoot full scale; what is stored as 16 bit would clip there too.
    return samples.clip(-1.0, 1.0)


def resample(waveform: np.ndarray, rate: int) -> np.ndarray:
    """Bring mono float32 audio of `rate` Hz to 16 kHz with soxr at high quality."""
    import numpy as np

    if rate == SAMPLE_RATE:
        return np.ascontiguousarray(waveform, dtype=np.float32)
    import soxr

    return soxr.resample(waveform.astype(np.float32, copy=False), rate, SAMPLE_RATE, quality="HQ")


def encode_flac(waveform: np.ndarray) -> bytes:
    """Store 16 kHz mono float32 audio as 16-bit FLAC."""
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, waveform, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise AudioError("the file does not exist") from None
    except OSError as error:
        raise AudioError(f"the file cannot be read: {error.strerror}") from None


def _decode(data: bytes) -> tuple[np.ndarray, int]:
    """Return float32 samples, shape (samples, channels), and their rate in Hz."""
    import numpy as np
    import soundfile

    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            blocks = []
            # Block by block, because a damaged header may promise terabytes.
            while len(block := file.read(BLOCK, dtype="float32", always_2d=True)):
                blocks.append(block)
            return np.concatenate(blocks or [np.zeros((0, 1), dtype=np.float32)]), file.samplerate
    except (soundfile.SoundFileError, RuntimeError):
        return _decode_with_ffmpeg(data)


def _decode_with_ffmpeg(data: bytes) -> tuple[np.ndarray, int]:
    """Decode what libsndfile does not know (m4a, aac, webm, mp4) with PyAV, which carries FFmpeg's libraries."""
    import av
    import numpy as np

    try:
        with av.open(io.BytesIO(data)) as container:
            if not container.streams.audio:
                raise AudioError("the file holds no audio stream")
            stream = container.streams.audio[0]
            to_float = av.AudioResampler(format="flt")
            frames = [part for frame in container.decode(stream) for part in to_float.resample(frame)]
            frames += to_float.resample(None)
            # A damaged file may change its channels from frame to frame, so each is mixed down alone.
            channels = (frame.to_ndarray().reshape(-1, frame.layout.nb_channels) for frame in frames)
            chunks = [samples.mean(axis=1, keepdims=True) for samples in channels]
            rate = stream.rate
    except av.FFmpegError as error:
        raise AudioError(f"the file cannot be decoded: {error.strerror}") from None
    except ValueError as error:
        raise AudioError(f"the file cannot be decoded: {error}") from None
    if not chunks:
        raise AudioError("the file holds no audio samples")
    return np.concatenate(chunks), int(rate)
