"""Judging: each row gets the one verdict that fits, with the reason and what it was found by."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.online.judging import Judge, Verdict, fingerprint, short_hash
from asr.online.sources.row import Row
from asr.shared.audio import SAMPLE_RATE, read_audio
from asr.shared.features import LogMel
from config import Cleaning
from tests.sounds import FORMATS, in_format, noise, sine, wav

REPEATABLE = settings(derandomize=True, deadline=None, database=None)
TEXT = "오늘은 날씨가 맑습니다"


def judged(audio: Path | bytes, text: str = TEXT, mel: tuple[int, int] | None = None, **limits: Any) -> Verdict:
    return Judge(Cleaning(**limits), mel)(Row("test", "test:1", audio, text))


def refused(audio: Path | bytes, text: str = TEXT, **limits: Any) -> tuple[str, str]:
    """The reason and the detail of a row that must not be kept, and of which nothing is stored."""
    verdict = judged(audio, text, **limits)
    assert verdict.reason, "the row was kept"
    assert (verdict.clip, verdict.text, verdict.duration_s) == (b"", "", 0.0)
    assert "\n" not in verdict.detail
    return verdict.reason, verdict.detail


# What is kept


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_kept_at_its_length(name: str) -> None:
    """AAC begins with a frame of its encoder's delay and fills its last one: 64 ms each at 16 kHz."""
    verdict = judged(in_format(name))
    assert verdict.reason == ""
    exact = name.startswith(("wav", "flac", "ogg", "opus", "mp3", "webm"))
    assert verdict.duration_s == pytest.approx(2, abs=0.001 if exact else 0.15)
    assert len(read_audio(verdict.clip).samples) == round(verdict.duration_s * SAMPLE_RATE)
    assert read_audio(verdict.clip).rate == SAMPLE_RATE


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000, 96_000, 192_000])
@pytest.mark.parametrize("channels", [1, 2, 8])
@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
def test_every_rate_channel_count_and_depth_is_kept(rate: int, channels: int, subtype: str) -> None:
    tone = np.stack([sine(440, 0.5, rate)] * channels, axis=1)
    verdict = judged(wav(tone, rate, subtype), "네")
    assert verdict.reason == ""
    assert verdict.duration_s == pytest.approx(0.5, abs=0.0002)
    samples = read_audio(verdict.clip).samples
    assert float(np.abs(samples).max()) == pytest.approx(0.3, abs=0.02)


def test_what_is_stored_is_16_bit_flac_of_the_very_samples() -> None:
    pcm = (noise(1) * 32767).astype(np.int16)
    verdict = judged(wav(pcm))
    assert verdict.clip[:4] == b"fLaC"
    np.testing.assert_array_equal(read_audio(verdict.clip).samples, pcm / np.float32(32768))


def test_the_verdict_tells_text_length_and_syllables() -> None:
    verdict = judged(wav(noise(2)), "  오늘은\u3000날씨가\n맑습니다\u200b ")
    assert (verdict.text, verdict.duration_s, verdict.syllables) == (TEXT, 2.0, 10)


@pytest.mark.parametrize(("strip", "text"), [(False, "(웃음) 네 - 아니요"), (True, "네 아니요")])
def test_caption_marks_go_where_that_is_asked_for(strip: bool, text: str) -> None:
    assert judged(wav(noise(1)), "(웃음) 네 - 아니요", strip_caption_marks=strip).text == text


def test_log_mel_is_stored_for_the_real_length() -> None:
    for bins in (80, 128):
        verdict = judged(wav(noise(2)), mel=(bins, 3000))
        assert 200 * bins * 2 < len(verdict.clip) <= 203 * bins * 2


def test_log_mel_is_of_what_flac_would_give_back() -> None:
    """Otherwise the two kinds of storage would train on sounds that differ by a rounding."""
    import torch

    from asr.shared.clips import pack_spectrum

    data = wav(noise(1.3, 44_100), 44_100, "FLOAT")
    sound, features = judged(data), judged(data, mel=(80, 3000))
    heard = torch.from_numpy(read_audio(sound.clip).samples)
    assert features.clip == pack_spectrum(LogMel(80).spectrum(heard))
    assert features.audio_id == sound.audio_id


def test_a_clip_of_the_longest_length_fits_the_window_at_any_rate() -> None:
    """Resampling may round up by a sample, which the window could not hold."""
    for rate in (11_025, 22_050, 44_099):
        verdict = judged(wav(noise(5, rate), rate), mel=(80, 500), max_seconds=5.0)
        assert verdict.reason == ""
        assert verdict.duration_s <= 5.0


# What is not kept


def test_missing(tmp_path: Path) -> None:
    reason, detail = refused(tmp_path / "none.wav")
    assert reason == "missing audio"
    assert "none.wav" in detail


@pytest.mark.parametrize("name", ["garbage", "zeros", "folder", "text", "half a header"])
def test_undecodable(tmp_path: Path, name: str) -> None:
    audio = {
        "garbage": np.random.default_rng(0).bytes(3000),
        "zeros": bytes(5000),
        "folder": tmp_path,
        "text": b"<html>503 Service Unavailable</html>" * 50,
        "half a header": wav(noise(1))[:20],
    }[name]
    assert refused(audio)[0] == "unreadable audio"


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("share", [0.88, 0.6, 0.3, 0.1])
def test_truncated(name: str, share: float) -> None:
    """Half of a file is never a clip, and hardly ever anything but truncated."""
    data = in_format(name)
    reason, detail = refused(data[: int(share * len(data))])
    assert reason in ("truncated audio", "unreadable audio", "empty audio")
    if reason == "truncated audio":
        assert "missing" in detail


def test_a_long_clip_of_which_half_a_second_is_gone_is_truncated() -> None:
    """Half a second holds two words, however long the rest is."""
    data = wav(noise(28))
    assert refused(data[: -SAMPLE_RATE // 2 * 2], "가" * 60)[0] == "truncated audio"


def test_a_clip_that_lacks_a_tenth_of_a_second_is_kept() -> None:
    assert judged(wav(noise(2))[: -SAMPLE_RATE // 10 * 2]).reason == ""


@pytest.mark.parametrize(
    "audio", [b"", wav(noise(0)), wav(noise(0), file_format="FLAC")], ids=["no bytes", "wav", "flac"]
)
def test_empty(audio: bytes) -> None:
    assert refused(audio)[0] == "empty audio"


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "a.wav").touch()
    assert refused(tmp_path / "a.wav") == ("empty audio", "the file is empty")


@pytest.mark.parametrize("loudness", [0.0, 1e-4, 5e-4])
def test_silent(loudness: float) -> None:
    reason, detail = refused(wav(noise(1, loudness=loudness), subtype="FLOAT"))
    assert reason == "silent"
    assert "dB" in detail


def test_one_word_in_silence_is_not_silent() -> None:
    """The loudest 25 ms count: a mean over all would call a late short answer silent."""
    clip = np.zeros(10 * SAMPLE_RATE, dtype=np.float32)
    clip[-1600:] = noise(0.1, loudness=0.01)
    assert judged(wav(clip), "네 그렇습니다").reason == ""


def test_clipped() -> None:
    tone = (4 * sine(200, 1, SAMPLE_RATE)).clip(-1, 1)
    reason, detail = refused(wav(tone))
    assert reason == "clipped"
    assert "%" in detail
    assert judged(wav(tone), max_clipped=1.0).reason == ""
    assert judged(wav(sine(200, 1, SAMPLE_RATE) / 0.3 * 0.99)).reason == ""


@pytest.mark.parametrize(("seconds", "kept"), [(0.29, False), (0.3, True), (0.31, True)])
def test_too_short(seconds: float, kept: bool) -> None:
    verdict = judged(wav(noise(seconds)), "네")
    assert verdict.reason == ("" if kept else "too short")


@pytest.mark.parametrize(("seconds", "kept"), [(29.99, True), (30.0, True), (30.01, False), (31.5, False)])
def test_too_long(seconds: float, kept: bool) -> None:
    verdict = judged(wav(noise(seconds, 8_000), 8_000), "가" * 60)
    assert verdict.reason == ("" if kept else "too long")
    assert kept or "3" in verdict.detail


def test_limits_are_the_configurations() -> None:
    assert judged(wav(noise(0.2)), "네", min_seconds=0.1).reason == ""
    assert judged(wav(noise(2)), max_seconds=1.0).reason == "too long"


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_samples_that_are_no_numbers(wrong: float) -> None:
    samples = noise(1)
    samples[5000] = wrong
    assert refused(wav(samples, subtype="FLOAT"))[0] == "samples not finite"


@pytest.mark.parametrize("text", ["", "  \n", "\u200b\ufeff", "...", "?!", "♪", "- "])
def test_empty_text(text: str) -> None:
    assert refused(wav(noise(1)), text)[0] == "empty text"


def test_a_text_of_caption_marks_alone_is_empty_once_they_go() -> None:
    assert judged(wav(noise(1)), "(웃음) [음악]").reason == ""
    assert refused(wav(noise(1)), "(웃음) [음악]", strip_caption_marks=True)[0] == "empty text"


@pytest.mark.parametrize("text", ["앞 \ud800 뒤", "\udfff", "앞\0뒤"])
def test_a_text_that_no_file_could_hold(text: str) -> None:
    assert refused(wav(noise(1)), text)[0] == "malformed row"


@pytest.mark.parametrize(
    ("text", "seconds", "reason"),
    [
        ("가" * 16, 1, "speaks too fast"),
        ("가" * 15, 1, ""),
        ("네", 6, "speaks too slowly"),
        ("네", 5, ""),
        ("ภาษาไทย", 6, ""),
    ],
)
def test_speaking_rate(text: str, seconds: float, reason: str) -> None:
    """Text that does not belong to the sound is caught here, and text of a script that is not counted is not."""
    verdict = judged(wav(noise(seconds)), text)
    assert verdict.reason == reason
    assert not reason or "syllables in" in verdict.detail


def test_limits_of_the_speaking_rate_are_the_configurations() -> None:
    assert judged(wav(noise(1)), "가" * 16, max_syllables_per_second=16).reason == ""
    assert judged(wav(noise(6)), "네", min_syllables_per_second=0).reason == ""


def test_what_the_source_refused_stays_refused() -> None:
    row = Row("test", "test:1", wav(noise(1)), TEXT, refused="unknown split", detail="column split holds 'x'")
    verdict = Judge(Cleaning(), None)(row)
    assert (verdict.reason, verdict.detail) == ("unknown split", "column split holds 'x'")


def test_what_nobody_thought_of_is_a_verdict_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(audio: bytes, limit_s: float) -> None:
        raise MemoryError(f"no room\nfor {limit_s} s of {len(audio)} bytes")

    monkeypatch.setattr("asr.online.judging.read_audio", fails)
    assert refused(b"four") == ("could not be judged", "MemoryError: no room for 31.0 s of 4 bytes")


@pytest.mark.parametrize("limit", [0.0, 0.3])
def test_a_single_sample_is_a_verdict(limit: float) -> None:
    assert refused(wav(np.full(1, 0.5, np.float32), 96_000), min_seconds=limit)


ANY_TEXT = st.text(st.characters(codec=None), max_size=30) | st.sampled_from(["\ud800", "가\0나", "가" * 100_000])
CLIPS = st.sampled_from(["wav", "flac", "ogg", "mp3", "m4a", "webm", "aac"]).map(lambda name: in_format(name, 0.5))
CUT = st.tuples(CLIPS, st.floats(0, 1)).map(lambda pair: pair[0][: int(pair[1] * len(pair[0]))])
ANY_AUDIO = (
    st.binary(max_size=200) | CLIPS | CUT | st.sampled_from(["none.wav", "\udcff.wav", "a\0b", "x" * 5000]).map(Path)
)


@given(audio=ANY_AUDIO, text=ANY_TEXT)
@settings(REPEATABLE, max_examples=120)
def test_any_bytes_and_any_text_end_in_a_verdict(audio: Path | bytes, text: str) -> None:
    """And in one that was thought of."""
    verdict = judged(audio, text)
    assert verdict.reason != "could not be judged", verdict.detail
    assert bool(verdict.reason) != bool(verdict.clip)


# How a row is known again


def test_equal_rows_have_equal_fingerprints(tmp_path: Path) -> None:
    file = tmp_path / "a.wav"
    file.write_bytes(wav(noise(1)))
    assert fingerprint(Row("s", "1", file, "가")) == fingerprint(Row("s", "1", file, "가"))
    assert fingerprint(Row("s", "1", b"x", "가")) == fingerprint(Row("s", "1", b"x", "가"))


@pytest.mark.parametrize(
    "change",
    [{"source": "t"}, {"source_id": "2"}, {"audio": b"y"}, {"text": "나"}, {"split": "test"}, {"speaker": "b"},
     {"group": "g"}, {"refused": "no"}, {"detail": "why"}, {"audio": Path("x")}],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_a_row_that_differs_has_another_fingerprint(change: dict[str, Any]) -> None:
    row = Row("s", "1", b"x", "가")
    assert fingerprint(replace(row, **change)) != fingerprint(row)


def test_text_cannot_pose_as_another_column() -> None:
    assert fingerprint(Row("s", "1", b"", "가\x1ftest", "")) != fingerprint(Row("s", "1", b"", "가", "test"))


def test_a_file_that_was_written_again_has_another_fingerprint(tmp_path: Path) -> None:
    file = tmp_path / "a.wav"
    row = Row("s", "1", file, "가")
    seen = {fingerprint(row)}
    file.write_bytes(b"one")
    seen.add(fingerprint(row))
    file.write_bytes(b"other")
    seen.add(fingerprint(row))
    os.utime(file, ns=(0, time.time_ns() + 10**9))
    seen.add(fingerprint(row))
    assert len(seen) == 4


def test_equal_samples_have_one_id_whatever_holds_them() -> None:
    pcm = (noise(1) * 32767).astype(np.int16)
    ids = {judged(wav(pcm, file_format=kind)).audio_id for kind in ("WAV", "FLAC")}
    ids.add(judged(wav(pcm / np.float64(32768), subtype="DOUBLE")).audio_id)
    ids.add(judged(wav(np.stack([pcm, pcm], axis=1))).audio_id)
    assert len(ids) == 1
    assert judged(wav(noise(1, seed=1))).audio_id not in ids


def test_the_bytes_of_a_row_do_not_travel_on_with_its_verdict() -> None:
    """Blobs of half a minute, five hundred at once, would be gigabytes."""
    data = wav(noise(1))
    verdict = judged(data)
    assert verdict.row.audio == b""
    assert verdict.key == fingerprint(Row("test", "test:1", data, TEXT))


def test_short_hashes_fit_a_signed_64_bit_column() -> None:
    assert all(0 <= short_hash(bytes([byte])) < 1 << 63 for byte in range(256))
