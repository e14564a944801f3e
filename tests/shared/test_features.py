"""Log-mel features: the very numbers of transformers' WhisperFeatureExtractor, at less cost."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import WhisperFeatureExtractor

from asr.shared.features import SILENCE, LogMel

WINDOW = 480_000
ROUNDING = 5e-7
MEL_BINS = [80, 128]
NOISE = (0.2 * np.random.default_rng(7).standard_normal(WINDOW)).astype(np.float32)
# Both ends of the window, where padding begins or ends, and hops and analysis windows that are just not full.
LENGTHS = st.one_of(
    st.integers(0, 1000),
    st.integers(WINDOW - 1000, WINDOW),
    st.integers(0, WINDOW),
    st.integers(0, 3000).map(lambda hops: 160 * hops),
)


@functools.cache
def our(mel_bins: int) -> LogMel:
    return LogMel(mel_bins)


@functools.cache
def reference(mel_bins: int) -> WhisperFeatureExtractor:
    return WhisperFeatureExtractor(feature_size=mel_bins)


def expected(waveform: np.ndarray, mel_bins: int) -> torch.Tensor:
    return reference(mel_bins)(waveform, sampling_rate=16_000, return_tensors="pt").input_features[0]


def assert_equal(waveform: np.ndarray, mel_bins: int) -> None:
    computed = our(mel_bins)(torch.from_numpy(waveform))
    assert computed.dtype == torch.float32
    assert computed.shape == (mel_bins, 3000)
    # Equal on most machines; matrix products of another width may round the last bit otherwise.
    torch.testing.assert_close(computed, expected(waveform, mel_bins), rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("mel_bins", MEL_BINS)
@given(samples=LENGTHS)
@settings(derandomize=True, deadline=None, database=None, max_examples=15)
def test_equals_whisper_feature_extractor_at_any_length(mel_bins: int, samples: int) -> None:
    assert_equal(NOISE[:samples], mel_bins)


@pytest.mark.parametrize("mel_bins", MEL_BINS)
@pytest.mark.parametrize("samples", [0, 1, 160, 400, WINDOW - 400, WINDOW - 399, WINDOW - 1, WINDOW])
def test_equals_whisper_feature_extractor_at_the_edges(mel_bins: int, samples: int) -> None:
    assert_equal(NOISE[:samples], mel_bins)


@pytest.mark.parametrize("mel_bins", MEL_BINS)
def test_silence_and_near_silence(mel_bins: int) -> None:
    assert_equal(np.zeros(16_000, dtype=np.float32), mel_bins)
    assert_equal(np.full(16_000, 1e-7, dtype=np.float32), mel_bins)


def test_loud_speech_then_silence_keeps_the_dynamic_range_of_the_whole_window() -> None:
    waveform = np.concatenate([NOISE[:8000], np.zeros(8000, dtype=np.float32), 1e-4 * NOISE[:8000]])
    assert_equal(waveform, 80)


def test_batch_of_unequal_lengths_equals_the_single_ones() -> None:
    lengths = [100, 16_000, 40_123, 80_000]
    batch = np.zeros((len(lengths), max(lengths)), dtype=np.float32)
    for row, samples in enumerate(lengths):
        # Each clip has its own loudness: the floor of one must not depend on its neighbours.
        batch[row, :samples] = NOISE[:samples] * 10.0**-row
    computed = our(80)(torch.from_numpy(batch))
    assert computed.shape == (len(lengths), 80, 3000)
    for row, samples in enumerate(lengths):
        torch.testing.assert_close(computed[row], expected(batch[row, :samples], 80), rtol=0, atol=1e-5)


def test_a_shorter_window_equals_an_extractor_of_that_chunk_length() -> None:
    five_seconds = WhisperFeatureExtractor(chunk_length=5)
    log_mel = LogMel(window_frames=500)
    assert log_mel.window_s == 5
    assert log_mel.window_samples == 80_000
    for samples in (8_000, 79_900, 80_000):
        wanted = five_seconds(NOISE[:samples], sampling_rate=16_000, return_tensors="pt").input_features[0]
        torch.testing.assert_close(log_mel(torch.from_numpy(NOISE[:samples])), wanted, rtol=0, atol=ROUNDING)


def test_audio_that_does_not_fit_the_window_is_refused() -> None:
    """Cutting it off in silence would teach the model to skip speech."""
    with pytest.raises(ValueError, match=r"30\.00 s .* 30 s"):
        our(80)(torch.zeros(WINDOW + 1))
    with pytest.raises(ValueError, match=r"6\.00 s .* 5 s"):
        LogMel(window_frames=500)(torch.zeros(2, 96_000))


# In two steps: what depends on the clip alone, and what depends on its window


@pytest.mark.parametrize("samples", [1, 159, 160, 161, 16_000, 79_601, 80_000])
def test_the_spectrum_of_a_clip_is_all_that_is_not_silence(samples: int) -> None:
    """Two or three frames behind its end it has faded; every later frame of a window holds silence alone."""
    spectrum = our(80).spectrum(torch.from_numpy(NOISE[:samples]))
    frames = -(-samples // 160)
    assert frames + 1 <= spectrum.shape[-1] <= frames + 3
    whole = our(80).spectrum(torch.nn.functional.pad(torch.from_numpy(NOISE[:samples]), (0, 8000)))
    torch.testing.assert_close(whole[:, : spectrum.shape[-1]], spectrum, rtol=0, atol=1e-5)
    assert torch.equal(whole[:, spectrum.shape[-1] :], torch.full_like(whole[:, spectrum.shape[-1] :], SILENCE))


@pytest.mark.parametrize("frames", [None, 500, 100])
def test_a_window_of_a_spectrum_is_what_the_waveform_gives(frames: int | None) -> None:
    waveform = torch.from_numpy(NOISE[:16_000])
    assert torch.equal(our(80).window(our(80).spectrum(waveform), frames), our(80)(waveform, frames))


def test_a_window_is_cut_to_what_it_holds() -> None:
    """The fading frames of a clip that fills the window have no place in it."""
    spectrum = torch.zeros(80, 3003)
    assert our(80).window(spectrum).shape == (80, 3000)


@pytest.mark.parametrize(("samples", "frames"), [(0, 20), (1_600, 30), (1_601, 40), (16_000, 120), (WINDOW, 3000)])
def test_shorter_windows_hold_the_clip_and_a_little_silence(samples: int, frames: int) -> None:
    assert our(80).frames_for(samples) == frames
