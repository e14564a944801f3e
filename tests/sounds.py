"""Sounds that tests make: tones and noise of known length, in every format, written by libsndfile or FFmpeg."""

from __future__ import annotations

import functools
import io
import tempfile
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import soundfile

LOUDNESS = 0.3
TONE_HZ = 440.0


def sine(hertz: float, seconds: float, rate: int) -> np.ndarray:
    return (LOUDNESS * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def noise(seconds: float, rate: int = 16_000, seed: int = 0, loudness: float = 0.1) -> np.ndarray:
    """Different for each seed, far from silence and from full scale."""
    return np.random.default_rng(seed).normal(0, loudness, round(seconds * rate)).clip(-0.99, 0.99).astype(np.float32)


def wav(samples: np.ndarray, rate: int = 16_000, subtype: str = "PCM_16", file_format: str = "WAV") -> bytes:
    """The bytes of a file with these samples, shape (samples,) or (samples, channels)."""
    buffer = io.BytesIO()
    channels = 1 if samples.ndim == 1 else samples.shape[1]
    with soundfile.SoundFile(buffer, "w", rate, channels, subtype, format=file_format) as file:
        # libsndfile's Vorbis cannot take minutes at once.
        for begin in range(0, len(samples), 1 << 16):
            file.write(samples[begin : begin + (1 << 16)])
    return buffer.getvalue()


class _Pipe(io.RawIOBase):
    """Takes bytes and can go nowhere: what is written cannot be mended afterwards."""

    def __init__(self) -> None:
        self.written = io.BytesIO()

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:
        return self.written.write(data)

    def seekable(self) -> bool:
        return False


def ffmpeg(
    container: str,
    codec: str,
    samples: np.ndarray,
    rate: int,
    layout: str = "mono",
    pipe: bool = False,
    **options: str,
) -> bytes:
    """The bytes of a file as FFmpeg's libraries write it, into a file or into a pipe; `options` are the muxer's.

    A codec's option begins with `codec_`.
    """
    of_codec = {name.removeprefix("codec_"): value for name, value in options.items() if name.startswith("codec_")}
    of_muxer = {name: value for name, value in options.items() if not name.startswith("codec_")}
    channels = {"mono": 1, "stereo": 2}[layout]
    frame = av.AudioFrame.from_ndarray(np.stack([samples] * channels), format="fltp", layout=layout)
    frame.sample_rate = rate
    with tempfile.TemporaryDirectory() as folder:
        target = _Pipe() if pipe else str(Path(folder) / "sound")
        with av.open(target, "w", format=container, options=of_muxer) as file:
            stream = file.add_stream(codec, rate=rate, layout=layout, options=of_codec)
            cut = av.AudioResampler(stream.format, layout, rate, frame_size=stream.codec_context.frame_size)
            for part in [*cut.resample(frame), *cut.resample(None)]:
                file.mux(stream.encode(part))
            file.mux(stream.encode(None))
        return target.written.getvalue() if isinstance(target, _Pipe) else Path(target).read_bytes()


def video(sound_s: float, pictures_s: float = 0.5, container: str = "matroska", codec: str = "pcm_s16le") -> bytes:
    """Grey pictures, with a tone of so many seconds, or with nothing to hear."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as file:
        pictures = file.add_stream("mpeg4", rate=10, width=32, height=32, pix_fmt="yuv420p")
        sound = file.add_stream(codec, rate=16_000, layout="mono") if sound_s else None
        for _ in range(round(10 * pictures_s)):
            grey = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 99, dtype=np.uint8), format="rgb24")
            file.mux(pictures.encode(grey))
        file.mux(pictures.encode(None))
        if sound is not None:
            frame = av.AudioFrame.from_ndarray(sine(TONE_HZ, sound_s, 16_000)[None], format="fltp", layout="mono")
            frame.sample_rate = 16_000
            cut = av.AudioResampler(sound.format, "mono", 16_000, frame_size=sound.codec_context.frame_size or 1024)
            for part in [*cut.resample(frame), *cut.resample(None)]:
                file.mux(sound.encode(part))
            file.mux(sound.encode(None))
    return buffer.getvalue()


IN_PIECES = {"movflags": "frag_keyframe+empty_moov"}

# The same noise in each format that corpora come in, by its length in seconds.
FORMATS: dict[str, Callable[[float], bytes]] = {
    "wav": lambda s: wav(noise(s)),
    "wav 24 bit": lambda s: wav(noise(s), subtype="PCM_24"),
    "wav float": lambda s: wav(noise(s), subtype="FLOAT"),
    "wav mu-law": lambda s: wav(noise(s), subtype="ULAW"),
    "flac": lambda s: wav(noise(s), file_format="FLAC"),
    "ogg": lambda s: wav(noise(s), file_format="OGG", subtype="VORBIS"),
    "opus": lambda s: wav(noise(s), file_format="OGG", subtype="OPUS"),
    "mp3": lambda s: wav(noise(s, 48_000), 48_000, "MPEG_LAYER_III", "MP3"),
    "mp3 of FFmpeg": lambda s: ffmpeg("mp3", "libmp3lame", noise(s, 48_000), 48_000),
    "m4a": lambda s: ffmpeg("mp4", "aac", noise(s, 48_000), 48_000),
    "m4a, index first": lambda s: ffmpeg("mp4", "aac", noise(s, 48_000), 48_000, movflags="faststart"),
    "m4a, in pieces": lambda s: ffmpeg("mp4", "aac", noise(s, 48_000), 48_000, **IN_PIECES),
    "aac": lambda s: ffmpeg("adts", "aac", noise(s, 48_000), 48_000),
    "webm": lambda s: ffmpeg("webm", "libopus", noise(s, 48_000), 48_000),
    "webm of other programs": lambda s: in_format("webm", s).replace(b"DURATION", b"OTHERTAG"),
    "mkv": lambda s: ffmpeg("matroska", "aac", noise(s, 48_000), 48_000),
    "mp4 with pictures": lambda s: video(s, s, "mp4", "aac"),
}


@functools.cache
def in_format(name: str, seconds: float = 2.0) -> bytes:
    """A file of one of `FORMATS`."""
    return FORMATS[name](seconds)
