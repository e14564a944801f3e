"""Audio in: every common format, rate and channel count comes out as the same 16 kHz mono sound, or as AudioError."""

from __future__ import annotations

import functools
import io
import struct
import subprocess
import sys
import textwrap
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.shared.audio import SAMPLE_RATE, AudioError, encode_flac, load_audio, resample
from tests.conftest import DEMO_CORPUS, ROOT

TONE_HZ = 440.0
LOUDNESS = 0.3
SECONDS = 0.6
REPEATABLE = settings(derandomize=True, deadline=None, database=None)


def sine(hertz: float, seconds: float, rate: int) -> np.ndarray:
    return (LOUDNESS * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def with_soundfile(
    file_format: str, subtype: str, rate: int = 16_000, channels: int = 1, seconds: float = SECONDS
) -> bytes:
    """A tone as libsndfile writes it."""
    buffer = io.BytesIO()
    tone = np.stack([sine(TONE_HZ, seconds, rate)] * channels, axis=1)
    soundfile.write(buffer, tone, rate, format=file_format, subtype=subtype)
    return buffer.getvalue()


def with_ffmpeg(container: str, codec: str, rate: int, layout: str = "mono", seconds: float = SECONDS) -> bytes:
    """A tone as FFmpeg's libraries write it."""
    buffer = io.BytesIO()
    tone = sine(TONE_HZ, seconds, rate)
    channels = {"mono": 1, "stereo": 2}[layout]
    frame = av.AudioFrame.from_ndarray(np.stack([tone] * channels), format="fltp", layout=layout)
    frame.sample_rate = rate
    with av.open(buffer, "w", format=container) as file:
        stream = file.add_stream(codec, rate=rate, layout=layout)
        cut = av.AudioResampler(stream.format, layout, rate, frame_size=stream.codec_context.frame_size)
        for part in [*cut.resample(frame), *cut.resample(None)]:
            file.mux(stream.encode(part))
        file.mux(stream.encode(None))
    return buffer.getvalue()


def video(with_sound: bool) -> bytes:
    """Half a second of grey pictures, with a tone or with nothing to hear."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as file:
        pictures = file.add_stream("mpeg4", rate=10, width=32, height=32, pix_fmt="yuv420p")
        sound = file.add_stream("pcm_s16le", rate=16_000, layout="mono") if with_sound else None
        for _ in range(5):
            grey = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 99, dtype=np.uint8), format="rgb24")
            file.mux(pictures.encode(grey))
        file.mux(pictures.encode(None))
        if sound is not None:
            samples = (sine(TONE_HZ, 0.5, 16_000) * 32767).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
            frame.sample_rate = 16_000
            file.mux(sound.encode(frame))
            file.mux(sound.encode(None))
    return buffer.getvalue()


def dominant_hertz(waveform: np.ndarray) -> float:
    """The strongest frequency of the middle half, where no codec fades in or out."""
    middle = waveform[len(waveform) // 4 : -len(waveform) // 4]
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle)), n=1 << 17))
    return float(np.argmax(spectrum)) * SAMPLE_RATE / (1 << 17)


def assert_is_the_tone(waveform: np.ndarray, seconds: float = SECONDS, slack_ms: float = 1.0) -> None:
    assert waveform.dtype == np.float32
    assert waveform.ndim == 1
    assert len(waveform) / SAMPLE_RATE == pytest.approx(seconds, abs=slack_ms / 1000)
    assert dominant_hertz(waveform) == pytest.approx(TONE_HZ, abs=1.0)
    middle = waveform[len(waveform) // 4 : -len(waveform) // 4]
    assert float(np.sqrt(2 * np.mean(middle**2))) == pytest.approx(LOUDNESS, rel=0.1)


WITH_SOUNDFILE = [
    *[("WAV", subtype) for subtype in ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE")],
    ("FLAC", "PCM_16"),
    ("FLAC", "PCM_24"),
    ("OGG", "VORBIS"),
    ("OGG", "OPUS"),
    ("MP3", "MPEG_LAYER_III"),
]


@pytest.mark.parametrize(("file_format", "subtype"), WITH_SOUNDFILE)
def test_formats_of_libsndfile(file_format: str, subtype: str) -> None:
    assert_is_the_tone(load_audio(with_soundfile(file_format, subtype)))


@pytest.mark.parametrize(
    ("container", "codec", "rate", "layout"),
    [
        ("mp4", "aac", 44_100, "mono"),
        ("mp4", "aac", 48_000, "stereo"),
        ("adts", "aac", 32_000, "stereo"),
        ("webm", "libopus", 48_000, "mono"),
        ("webm", "libopus", 48_000, "stereo"),
        ("matroska", "aac", 16_000, "mono"),
    ],
)
def test_formats_of_ffmpeg(container: str, codec: str, rate: int, layout: str) -> None:
    """What phones and browsers record, as loud as from libsndfile.

    AAC begins with a frame of encoder delay and fills its last one.
    """
    slack_ms = 1.0 if codec == "libopus" else 1000 * 3 * 1024 / rate
    assert_is_the_tone(load_audio(with_ffmpeg(container, codec, rate, layout)), slack_ms=slack_ms)


@pytest.mark.parametrize("channels", [1, 2, 6])
@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 44_100, 48_000, 96_000])
def test_rates_and_channel_counts(rate: int, channels: int) -> None:
    assert_is_the_tone(load_audio(with_soundfile("WAV", "PCM_16", rate, channels)))


@pytest.mark.parametrize("rate", [24_000, 44_100, 48_000])
def test_mp3_rates(rate: int) -> None:
    assert_is_the_tone(load_audio(with_soundfile("MP3", "MPEG_LAYER_III", rate, 2)))


def test_channels_are_averaged() -> None:
    """A voice on one channel alone is kept at half its loudness; opposite channels cancel."""
    tone = sine(TONE_HZ, SECONDS, 16_000)
    for other, expected in ((np.zeros_like(tone), tone / 2), (-tone, np.zeros_like(tone))):
        buffer = io.BytesIO()
        soundfile.write(buffer, np.stack([tone, other], axis=1), 16_000, format="WAV", subtype="FLOAT")
        np.testing.assert_allclose(load_audio(buffer.getvalue()), expected, atol=1e-6)


def test_path_and_bytes_give_the_same(tmp_path: Path) -> None:
    data = with_soundfile("FLAC", "PCM_16", 48_000)
    file = tmp_path / "소리 1.flac"
    file.write_bytes(data)
    from_bytes = load_audio(data)
    np.testing.assert_array_equal(load_audio(file), from_bytes)
    np.testing.assert_array_equal(load_audio(str(file)), from_bytes)


def test_format_is_told_by_content_not_by_name(tmp_path: Path) -> None:
    file = tmp_path / "really-an-m4a.mp3"
    file.write_bytes(with_ffmpeg("mp4", "aac", 44_100))
    assert_is_the_tone(load_audio(file), slack_ms=70)


def test_sound_of_a_video() -> None:
    assert_is_the_tone(load_audio(video(with_sound=True)), seconds=0.5)


# Resampling


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
def test_resampling_keeps_what_16_khz_can_hold(rate: int) -> None:
    """Against the ideal result: the same tones, sampled at 16 kHz in the first place."""
    tones = [100.0, 997.0, 0.4 * min(rate, SAMPLE_RATE)]
    resampled = resample(np.sum([sine(hertz, 1.0, rate) for hertz in tones], axis=0), rate)
    ideal = np.sum([sine(hertz, 1.0, SAMPLE_RATE) for hertz in tones], axis=0)
    assert len(resampled) == len(ideal)
    np.testing.assert_allclose(resampled[1000:-1000], ideal[1000:-1000], atol=1e-3)


@pytest.mark.parametrize("hertz", [8_500.0, 12_000.0, 20_000.0])
def test_resampling_removes_what_16_khz_cannot_hold(hertz: float) -> None:
    """Without a good filter a tone above 8 kHz would come back as another one below."""
    resampled = resample(sine(hertz, 1.0, 48_000), 48_000)
    assert float(np.abs(resampled[1000:-1000]).max()) < LOUDNESS * 1e-4


def test_16_khz_passes_unchanged() -> None:
    tone = sine(TONE_HZ, SECONDS, 16_000)
    np.testing.assert_array_equal(resample(tone, 16_000), tone)


# Storage


def test_flac_is_within_16_bit_rounding() -> None:
    noise = np.random.default_rng(3).uniform(-0.999, 0.999, 16_000).astype(np.float32)
    stored = encode_flac(noise)
    info = soundfile.info(io.BytesIO(stored))
    assert (info.format, info.subtype, info.samplerate, info.channels) == ("FLAC", "PCM_16", 16_000, 1)
    assert float(np.abs(load_audio(stored) - noise).max()) <= 1 / 32768


def test_flac_of_flac_is_the_same() -> None:
    once = encode_flac(sine(TONE_HZ, SECONDS, 16_000))
    assert encode_flac(load_audio(once)) == once


def test_flac_clips_what_is_too_loud_instead_of_wrapping_round() -> None:
    stored = load_audio(encode_flac(np.array([0.5, 1.5, -1.5, 0.0] * 400, dtype=np.float32)))
    np.testing.assert_allclose(stored, np.array([0.5, 1.0, -1.0, 0.0] * 400), atol=1e-4)


# What cannot be used


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"\x00" * 5000, "decoded"),
        (b"<html><body>404 Not Found</body></html>" * 20, "decoded"),
        (with_soundfile("WAV", "PCM_16", seconds=0.0), "no audio"),
        (with_soundfile("WAV", "PCM_16")[:20], "decoded"),
    ],
    ids=["empty", "zeros", "a web page", "no samples", "cut in the header"],
)
def test_what_is_not_audio_is_told_in_one_line(content: bytes, reason: str) -> None:
    with pytest.raises(AudioError, match=reason) as raised:
        load_audio(content)
    assert "\n" not in str(raised.value)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match="does not exist"):
        load_audio(tmp_path / "none.wav")
    with pytest.raises(AudioError, match="cannot be read"):
        load_audio(tmp_path)


def test_video_without_sound() -> None:
    with pytest.raises(AudioError, match="no audio stream"):
        load_audio(video(with_sound=False))


def test_header_that_promises_more_than_memory_holds() -> None:
    """One damaged byte in a FLAC header can promise 2^36 samples; that is a bad clip, not the end of the run."""
    data = bytearray(with_soundfile("FLAC", "PCM_16"))
    data[21] |= 0x0F
    data[22:26] = b"\xff" * 4
    assert_audio_or_audio_error(bytes(data))


def test_mp3_whose_frame_count_is_damaged() -> None:
    data = bytearray(with_soundfile("MP3", "MPEG_LAYER_III"))
    tag = max(data.find(b"Xing"), data.find(b"Info"))
    assert tag > 0
    data[tag + 8 : tag + 12] = struct.pack(">I", 0xFFFFFFFF)
    assert_audio_or_audio_error(bytes(data))


def test_header_that_promises_many_channels(tmp_path: Path) -> None:
    """In a process of its own, because a crash inside a decoder would take the whole test run along."""
    data = bytearray(with_soundfile("WAV", "FLOAT"))
    data[22:24] = struct.pack("<H", 48)
    (tmp_path / "48 channels.wav").write_bytes(data)
    code = """
    import sys
    from asr.shared.audio import AudioError, load_audio
    try:
        print(load_audio(sys.argv[1]).size > 0)
    except AudioError as error:
        print(error)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "48 channels.wav")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ended with {done.returncode}: {done.stderr}"
    assert done.stdout.count("\n") == 1


def test_sound_that_turns_from_mono_to_stereo() -> None:
    """As a broadcast does between two programmes; a damaged frame header looks the same."""
    mono, stereo = (with_ffmpeg("adts", "aac", 32_000, layout) for layout in ("mono", "stereo"))
    assert_audio_or_audio_error(mono + stereo)
    assert_audio_or_audio_error(stereo + mono)


def test_samples_that_are_no_numbers() -> None:
    """A float WAV can hold NaN and infinity, of which one would turn every weight of a training into NaN."""
    for wrong in (np.nan, np.inf):
        buffer = io.BytesIO()
        tone = sine(TONE_HZ, SECONDS, 16_000)
        tone[1000] = wrong
        soundfile.write(buffer, tone, 16_000, format="WAV", subtype="FLOAT")
        assert_audio_or_audio_error(buffer.getvalue())


def test_float_samples_beyond_full_scale_come_out_within_it() -> None:
    """The contract is float32 in [-1, 1]; stored FLAC would clip, so what is heard must not differ from it."""
    buffer = io.BytesIO()
    soundfile.write(buffer, 10 * sine(TONE_HZ, SECONDS, 16_000), 16_000, format="WAV", subtype="FLOAT")
    loudest = float(np.abs(load_audio(buffer.getvalue())).max())
    assert loudest <= 1.0


def test_a_sound_too_short_for_one_sample_at_16_khz() -> None:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros(1, dtype=np.float32), 96_000, format="WAV", subtype="PCM_16")
    assert_audio_or_audio_error(buffer.getvalue())


def assert_audio_or_audio_error(data: bytes) -> None:
    """Damage ends in an AudioError or in audio that can be used; any other exception would end the whole batch."""
    waveform = audio_or_audio_error(data)
    if isinstance(waveform, AudioError):
        assert str(waveform)
        assert "\n" not in str(waveform)
    else:
        assert waveform.dtype == np.float32
        assert waveform.size
        assert bool(np.isfinite(waveform).all())


def audio_or_audio_error(data: bytes) -> np.ndarray | AudioError:
    try:
        return load_audio(data)
    except AudioError as error:
        return error


# Short, so that a damaged sample rate of 1 Hz does not make gigabytes.
@functools.cache
def whole_files() -> dict[str, bytes]:
    short = 0.1
    return {
        "wav": with_soundfile("WAV", "PCM_16", seconds=short),
        "flac": with_soundfile("FLAC", "PCM_16", seconds=short),
        "ogg": with_soundfile("OGG", "VORBIS", seconds=short),
        "opus": with_soundfile("OGG", "OPUS", seconds=short),
        "mp3": with_soundfile("MP3", "MPEG_LAYER_III", seconds=short),
        "m4a": with_ffmpeg("mp4", "aac", 44_100, seconds=short),
        "aac": with_ffmpeg("adts", "aac", 44_100, seconds=short),
        "webm": with_ffmpeg("webm", "libopus", 48_000, seconds=short),
        "common voice": next(iter(sorted((DEMO_CORPUS / "clips").glob("*.mp3")))).read_bytes(),
    }


@given(st.binary(min_size=1, max_size=400))
@settings(REPEATABLE, max_examples=60)
def test_random_bytes(data: bytes) -> None:
    assert_audio_or_audio_error(data)


@pytest.mark.parametrize("name", sorted(whole_files()))
@given(share=st.floats(0, 1))
@settings(REPEATABLE, max_examples=15)
def test_files_that_were_cut_short(name: str, share: float) -> None:
    data = whole_files()[name]
    assert_audio_or_audio_error(data[: int(share * len(data))])


@pytest.mark.parametrize("name", sorted(whole_files()))
@given(
    damage=st.lists(
        st.tuples(st.one_of(st.integers(0, 60), st.integers(0, 1 << 14)), st.integers(0, 255)), min_size=1, max_size=6
    )
)
@settings(REPEATABLE, max_examples=50)
def test_files_with_damaged_bytes(name: str, damage: list[tuple[int, int]]) -> None:
    """Headers above all: that is where sizes, rates and counts stand."""
    data = bytearray(whole_files()[name])
    for position, byte in damage:
        data[position % len(data)] = byte
    assert_audio_or_audio_error(bytes(data))
