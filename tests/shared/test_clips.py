"""Clips: a stored row gives the same spectrum whether it holds sound or log-mel."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.shared.audio import SAMPLE_RATE, encode_flac, load_audio
from asr.shared.clips import clip_columns, pack_spectrum, samples_of, spectrum_of
from asr.shared.features import LogMel
from tests.sounds import noise

REPEATABLE = settings(derandomize=True, deadline=None, database=None)
# Values of float16 between 8 and 16 lie 1/128 apart, and log10 of the mel spectrum lies between -10 and 4.
HALF_STEP = 1 / 256


def rows(seconds: float, log_mel: LogMel) -> tuple[dict[str, Any], dict[str, Any]]:
    """The same clip as both kinds of storage hold it."""
    flac = encode_flac(noise(seconds))
    spectrum = log_mel.spectrum(torch.from_numpy(load_audio(flac)))
    return {"audio": {"bytes": flac, "path": None}}, {"log_mel": pack_spectrum(spectrum)}


@pytest.mark.parametrize("mel_bins", [80, 128])
@pytest.mark.parametrize("seconds", [0.3, 1.0, 4.8765])
def test_both_kinds_of_storage_give_one_spectrum(mel_bins: int, seconds: float) -> None:
    log_mel = LogMel(mel_bins)
    sound, stored = rows(seconds, log_mel)
    expected, found = spectrum_of(sound, log_mel), spectrum_of(stored, log_mel)
    assert found.dtype == expected.dtype == torch.float32
    assert found.shape == expected.shape == (mel_bins, expected.shape[1])
    torch.testing.assert_close(found, expected, rtol=0, atol=HALF_STEP)


@pytest.mark.parametrize("mel_bins", [80, 128])
def test_log_mel_takes_two_bytes_a_value_of_the_real_length(mel_bins: int) -> None:
    _, stored = rows(2.0, LogMel(mel_bins))
    assert 200 * mel_bins * 2 < len(stored["log_mel"]) <= 203 * mel_bins * 2


def test_bytes_are_little_endian_halves_bin_by_bin() -> None:
    """The format of the bundle, whatever machine wrote it."""
    spectrum = torch.tensor([[1.0, -2.0], [0.5, -10.0]])
    assert pack_spectrum(spectrum) == bytes.fromhex("003c 00c0 0038 00c9")
    np.testing.assert_array_equal(np.frombuffer(pack_spectrum(spectrum), "<f2").reshape(2, 2), spectrum.numpy())


@given(st.integers(1, 30 * SAMPLE_RATE))
@REPEATABLE
def test_the_length_in_samples_comes_back_from_seconds_in_float32(samples: int) -> None:
    """A sample more than the window holds would be refused in the middle of a training."""
    assert samples_of({"duration_s": float(np.float32(samples / SAMPLE_RATE))}) == samples


def test_columns_differ_in_what_is_heard_alone() -> None:
    sound, log_mel = set(clip_columns("audio")), set(clip_columns("features"))
    assert sound ^ log_mel == {"audio", "log_mel"}
    assert sound & log_mel == {"text", "speaker", "duration_s", "source", "source_id", "labels"}
