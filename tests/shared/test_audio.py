"""Audio in: every common format, rate and channel count comes out as the same 16 kHz mono sound, or as AudioError."""

from __future__ import annotations

import functools
import io
import struct
import subprocess
import sys
import textwrap
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.shared.audio import (
    CUT_SHORT_S,
    SAMPLE_RATE,
    AudioError,
    encode_flac,
    load_audio,
    read_audio,
    resample,
    to_pcm16,
)
from tests.conftest import DEMO_CORPUS, ROOT
from tests.sounds import FORMATS, LOUDNESS, TONE_HZ, ffmpeg, in_format, noise, sine, video, wav

SECONDS = 0.6
REPEATABLE = settings(derandomize=True, deadline=None, database=None)


def with_soundfile(
    file_format: str, subtype: str, rate: int = 16_000, channels: int = 1, seconds: float = SECONDS
) -> bytes:
    """A tone as libsndfile writes it."""
    return wav(np.stack([sine(TONE_HZ, seconds, rate)] * channels, axis=1), rate, subtype, file_format)


def with_ffmpeg(container: str, codec: str, rate: int, layout: str = "mono", seconds: float = SECONDS) -> bytes:
    """A tone as FFmpeg's libraries write it."""
    return ffmpeg(container, codec, sine(TONE_HZ, seconds, rate), rate, layout)


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


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 32_000, 44_100, 48_000, 96_000, 192_000])
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
    assert_is_the_tone(load_audio(video(0.5)), seconds=0.5)


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
        load_audio(video(0.0))


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
    for wrong in (np.nan, np.inf, -np.inf):
        tone = np.stack([sine(TONE_HZ, SECONDS, 16_000)] * 2, axis=1)
        tone[1000, 1] = wrong
        for subtype in ("FLOAT", "DOUBLE"):
            with pytest.raises(AudioError) as raised:
                read_audio(wav(tone, subtype=subtype))
            assert raised.value.reason == "samples not finite"


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


# What was cut short


def left_of(data: bytes, share: float) -> tuple[float, float]:
    """Seconds that are left of a file of which a share arrived, and seconds that are said to be missing."""
    try:
        audio = read_audio(data[: int(share * len(data))])
    except AudioError:
        return 0.0, float("inf")
    return len(audio.samples) / audio.rate, audio.missing_s


@pytest.mark.parametrize("name", FORMATS)
def test_a_whole_file_misses_nothing(name: str) -> None:
    seconds, missing = left_of(in_format(name), 1)
    assert seconds == pytest.approx(2, abs=0.15)
    assert missing < CUT_SHORT_S / 2


@pytest.mark.parametrize("name", FORMATS)
@given(share=st.floats(0, 1))
@settings(REPEATABLE, max_examples=25)
def test_a_file_cut_short_is_never_taken_for_whole(name: str, share: float) -> None:
    """Half a sentence with a whole transcript teaches the model to make things up."""
    data = in_format(name)
    seconds, missing = left_of(data, share)
    if seconds < left_of(data, 1)[0] - CUT_SHORT_S:
        assert missing > CUT_SHORT_S


def cut_behind_a_frame(aac: bytes, frames: int) -> bytes:
    """ADTS frames tell their own length in 13 bits of their head."""
    at = 0
    for _ in range(frames):
        at += (aac[at + 3] & 3) << 11 | aac[at + 4] << 3 | aac[at + 5] >> 5
    return aac[:at]


def first_half(data: bytes) -> bytes:
    return data[: len(data) // 2]


# Files that say nowhere how long they are, cut short between two frames.
CANNOT_TELL: dict[str, Callable[[], bytes]] = {
    "aac": lambda: cut_behind_a_frame(in_format("aac"), 50),
    "mp3 without header": lambda: first_half(ffmpeg("mp3", "libmp3lame", noise(2, 48_000), 48_000, write_xing="0")),
    "webm as a browser records it": lambda: first_half(ffmpeg("webm", "libopus", noise(2, 48_000), 48_000, pipe=True)),
    "wav from a pipe": lambda: first_half(ffmpeg("wav", "pcm_s16le", noise(2), 16_000, pipe=True)),
}


@pytest.mark.parametrize("name", CANNOT_TELL)
def test_formats_that_cannot_tell_are_taken_as_they_are(name: str) -> None:
    """Known limits: nothing in these files says that there was more. The speaking rate is what may still tell."""
    audio = read_audio(CANNOT_TELL[name]())
    assert 0.9 < len(audio.samples) / audio.rate < 1.1
    assert audio.missing_s == 0


def id3(cover: int) -> bytes:
    """A tag with a picture of so many bytes, as players put in front of an MP3."""
    size = bytes((cover >> shift) & 0x7F for shift in (21, 14, 7, 0))
    return b"ID3\x03\0\0" + size + b"\0" * cover


def mp3(samples: np.ndarray, header: bool, variable: bool = True) -> bytes:
    """With as many bits a second as the sound needs, or with as many as ever."""
    bits = {"codec_flags": "+qscale", "codec_global_quality": "590"} if variable else {}
    return ffmpeg("mp3", "libmp3lame", samples, 48_000, write_xing=str(int(header)), **bits)


def wav_that_claims(size: int) -> bytes:
    """As programs write it into a pipe, and recorders that are switched off leave it."""
    data = wav(noise(3))
    at, told = data.find(b"data") + 4, struct.pack("<I", size)
    return data[:4] + told + data[8:at] + told + data[at + 4 :]


LOUD_FIRST = np.concatenate([noise(1.5, 48_000), np.zeros(72_000, dtype=np.float32)])
QUIET_FIRST = LOUD_FIRST[::-1].copy()
# Three seconds each. Whoever guesses their length from the first bits a second is far off.
ODD_BUT_WHOLE: dict[str, Callable[[], bytes]] = {
    "aac, quiet first": lambda: ffmpeg("adts", "aac", QUIET_FIRST, 48_000),
    "aac, loud first": lambda: ffmpeg("adts", "aac", LOUD_FIRST, 48_000),
    "variable mp3, no header, quiet first": lambda: mp3(QUIET_FIRST, header=False),
    "variable mp3, no header, loud first": lambda: mp3(LOUD_FIRST, header=False),
    "variable mp3": lambda: mp3(LOUD_FIRST, header=True),
    "mp3 with a cover, no header": lambda: id3(200_000) + mp3(LOUD_FIRST, header=False, variable=False),
    "mp3 with a cover": lambda: id3(200_000) + mp3(LOUD_FIRST, header=True),
    "mp3 with a title behind it": lambda: mp3(LOUD_FIRST, header=False, variable=False) + b"TAG" + b" " * 125,
    "flac from a pipe": lambda: ffmpeg("flac", "flac", noise(3), 16_000, pipe=True),
    "webm from a pipe": lambda: ffmpeg("webm", "libopus", LOUD_FIRST, 48_000, pipe=True),
    "pictures go on": lambda: video(3, 4),
    "sound goes on": lambda: video(3, 2),
    "pictures of an mp4 go on": lambda: video(3, 4, "mp4", "aac"),
    "pictures go on, by other programs": lambda: video(3, 4).replace(b"DURATION", b"OTHERTAG"),
    "wav that claims 4 GiB": lambda: wav_that_claims(0xFFFFFFFF),
    "wav that claims 2 GiB": lambda: wav_that_claims(0x7FFFFFFF),
    "wav that claims a page less": lambda: wav_that_claims(0x7FFFF000),
    "wav that claims nothing": lambda: wav_that_claims(0),
}


@pytest.mark.parametrize("name", ODD_BUT_WHOLE)
def test_odd_files_are_read_to_their_end_and_not_called_cut(name: str) -> None:
    audio = read_audio(ODD_BUT_WHOLE[name]())
    assert len(audio.samples) / audio.rate == pytest.approx(3, abs=0.1)
    assert audio.missing_s < CUT_SHORT_S / 2


# What is too long


TEN_MINUTES: dict[str, Callable[[np.ndarray], bytes]] = {
    "wav": lambda tone: wav(tone, 8_000),
    "flac": lambda tone: wav(tone, 8_000, file_format="FLAC"),
    "ogg": lambda tone: wav(tone, 8_000, "VORBIS", "OGG"),
    "mp3": lambda tone: wav(tone, 8_000, "MPEG_LAYER_III", "MP3"),
    "m4a": lambda tone: ffmpeg("mp4", "aac", tone, 8_000, codec_aac_coder="fast"),
}


@pytest.mark.parametrize("name", TEN_MINUTES)
def test_a_long_recording_is_not_decoded_whole(name: str) -> None:
    """Ten minutes are 19 MB of samples here, 31 s a megabyte; what is too long is dropped anyway."""
    data = TEN_MINUTES[name](sine(TONE_HZ, 600, 8_000))
    tracemalloc.start()
    audio = read_audio(data, limit_s=31)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert audio.longer
    assert 31 < len(audio.samples) / audio.rate < 70
    assert peak < 8_000_000


def test_the_limit_itself_is_not_longer() -> None:
    audio = read_audio(wav(noise(2)), limit_s=2)
    assert not audio.longer
    assert len(audio.samples) == 32_000


# Rounding


@given(st.lists(st.integers(-32768, 32767), min_size=1, max_size=50))
@settings(REPEATABLE, max_examples=40)
def test_16_bit_samples_come_back_as_they_were(samples: list[int]) -> None:
    pcm = np.array(samples, dtype=np.int16)
    decoded = read_audio(wav(pcm)).samples
    np.testing.assert_array_equal(to_pcm16(decoded), pcm)
    np.testing.assert_array_equal(to_pcm16(read_audio(encode_flac(pcm)).samples), pcm)
